//! Every writable format both ways against qemu-img and qemu-io.

use super::qcow2::tests::{churn, tool};
use crate::graph::{Graph, Pin, Settings, tests::graph};
use crate::options::Options;
use crate::types::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use testkit::Dice;

/// A way to make an image: options by the names of command line tools.
struct Case {
    format: &'static str,
    options: &'static [(&'static str, &'static str)],
    /// What `qemu-img check` can do.
    checks: bool,
    backing: bool,
}

const CASES: &[Case] = &[
    case("vdi", &[], true),
    case("vdi", &[("static", "on")], true),
    case("vpc", &[("force_size", "on")], false),
    case("vpc", &[("subformat", "fixed"), ("force_size", "on")], false),
    case("qed", &[], true),
    Case { backing: true, ..case("qed", &[("cluster_size", "4096"), ("table_size", "2")], true) },
    case("qcow", &[], false),
    Case { backing: true, ..case("qcow", &[], false) },
    case("vhdx", &[], true),
    case("vhdx", &[("block_size", "1048576"), ("block_state_zero", "off")], true),
    case("vhdx", &[("subformat", "fixed"), ("log_size", "2097152")], true),
    case("vmdk", &[], true),
    case("vmdk", &[("zeroed_grain", "on"), ("adapter_type", "lsilogic"), ("compat6", "on")], true),
    case("vmdk", &[("subformat", "monolithicFlat")], true),
    case("vmdk", &[("subformat", "twoGbMaxExtentSparse")], true),
    case("vmdk", &[("subformat", "twoGbMaxExtentFlat")], true),
    Case { backing: true, ..case("vmdk", &[], true) },
    case("parallels", &[], true),
    case("parallels", &[("cluster_size", "65536")], true),
];

const fn case(format: &'static str, options: &'static [(&'static str, &'static str)], checks: bool) -> Case {
    Case { format, options, checks, backing: false }
}

const SIZE: usize = 5 * (1 << 20) + 65536;

fn ours(graph: &Arc<Graph>, path: &Path, case: &Case, base: Option<&Path>) {
    let mut options = json!({"size": SIZE});
    for (name, value) in case.options {
        options[name] = (*value).into();
    }
    if let Some(base) = base {
        options["backing_file"] = base.to_str().into();
        options["backing_fmt"] = base_format(case).into();
    }
    if case.format == "qcow" {
        options.as_object_mut().unwrap().remove("backing_fmt");
    }
    let (at, path, format) = (graph.clone(), path.to_str().unwrap().to_string(), case.format);
    graph.block_on(async move { at.create_image(&path, format, Options::json(options)).await }).unwrap();
}

/// What an overlay can stand on.
fn base_format(case: &Case) -> &'static str {
    if case.format == "vmdk" { "vmdk" } else { "raw" }
}

fn theirs(path: &Path, case: &Case, base: Option<&Path>) {
    let list: Vec<String> = case.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let (list, size) = (list.join(","), SIZE.to_string());
    let mut args = vec!["create", "-q", "-f", case.format];
    if !list.is_empty() {
        args.extend(["-o", &list]);
    }
    if let Some(base) = base {
        args.extend(["-b", base.to_str().unwrap(), "-F", base_format(case)]);
    }
    args.extend([path.to_str().unwrap(), &size]);
    tool("qemu-img", &args);
}

pub(super) fn open(graph: &Arc<Graph>, path: &Path, format: &str, read_only: bool) -> Pin {
    let options = json!({"driver": format, "discard": "unmap", "read-only": read_only,
        "file": {"driver": "file", "filename": path}});
    let at = graph.clone();
    graph.block_on(async move { at.open(Options::json(options), Settings::default()).await }).unwrap()
}

pub(super) fn close(graph: &Arc<Graph>, pin: Pin) {
    drop(pin);
    let at = graph.clone();
    graph.block_on(async move { at.collect().await });
    assert!(graph.nodes().is_empty());
}

pub(super) fn content(graph: &Arc<Graph>, path: &Path, format: &str) -> Vec<u8> {
    let pin = open(graph, path, format, true);
    let node = pin.clone();
    let data = graph.block_on(async move {
        let mut data = vec![0xaa; node.size() as usize];
        node.read(0, &mut data).await.unwrap();
        let mut at = 0;
        while at < node.size() {
            let status = node.block_status(at, node.size() - at).await.unwrap();
            if status.flags.contains(StatusFlags::ZERO) {
                assert!(data[at as usize..(at + status.len) as usize].iter().all(|byte| *byte == 0));
            }
            at += status.len;
        }
        data
    });
    close(graph, pin);
    data
}

fn judge(case: &Case, image: &Path, model: &[u8], raw: &Path) {
    let name = image.to_str().unwrap();
    if case.checks {
        let text = tool("qemu-img", &["check", "-f", case.format, name]);
        assert!(text.contains("No errors were found"), "{text}");
    }
    std::fs::write(raw, model).unwrap();
    tool("qemu-img", &["compare", "-f", case.format, "-F", "raw", name, raw.to_str().unwrap()]);
}

/// Random writes by qemu-io, and what the disk is then.
fn their_writes(case: &Case, image: &Path, model: &mut [u8], dice: &mut Dice) {
    let mut commands = vec!["-f".to_string(), case.format.to_string()];
    for _ in 0..40 {
        let offset = dice.below(SIZE as u64 / 512) * 512;
        let len = ((1 + dice.below(100)) * 512).min(SIZE as u64 - offset);
        let byte = 1 + dice.below(250) as u8;
        commands.extend(["-c".to_string(), format!("write -P {byte} {offset} {len}")]);
        model[offset as usize..(offset + len) as usize].fill(byte);
    }
    commands.push(image.to_str().unwrap().to_string());
    let args: Vec<&str> = commands.iter().map(String::as_str).collect();
    tool("qemu-io", &args);
}

fn both_ways(case: &Case, seed: u64) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, raw, base) =
        (dir.path().join("a.img"), dir.path().join("a.raw"), dir.path().join("base.raw"));
    let graph = graph();
    let mut dice = Dice::new(seed);
    for made_by_us in [true, false] {
        eprintln!("{} {:?} made by us: {made_by_us}", case.format, case.options);
        let mut model = vec![0u8; SIZE];
        if case.backing {
            model.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 700) as u8);
            std::fs::write(&raw, &model).unwrap();
            let args = ["convert", "-f", "raw", "-O", base_format(case)];
            tool("qemu-img", &[&args[..], &[raw.to_str().unwrap(), base.to_str().unwrap()]].concat());
        }
        let below = case.backing.then_some(base.as_path());
        match made_by_us {
            true => ours(&graph, &image, case, below),
            false => theirs(&image, case, below),
        }
        judge(case, &image, &model, &raw);
        assert!(content(&graph, &image, case.format) == model, "a new image");
        for _ in 0..2 {
            let pin = open(&graph, &image, case.format, false);
            let (node, mut state, seed) = (pin.clone(), model, dice.roll());
            model = graph.block_on(async move {
                churn(&node, &mut state, &mut Dice::new(seed), 150).await;
                state
            });
            close(&graph, pin);
            judge(case, &image, &model, &raw);
            their_writes(case, &image, &mut model, &mut dice);
            assert!(content(&graph, &image, case.format) == model, "after writes by qemu-io");
        }
        judge(case, &image, &model, &raw);
    }
}

#[test]
fn images_are_read_and_written_both_ways() {
    let only = std::env::var("FORMAT").ok();
    for (at, case) in CASES.iter().enumerate() {
        if only.as_deref().is_none_or(|only| only == case.format) {
            both_ways(case, 7 + at as u64);
        }
    }
}

#[test]
fn formats_are_told_by_content() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let graph = graph();
    for (at, case) in CASES.iter().enumerate() {
        let path = dir.path().join(format!("{at}.img"));
        ours(&graph, &path, case, None);
        let info: Value =
            serde_json::from_str(&tool("qemu-img", &["info", "--output=json", path.to_str().unwrap()]))
                .unwrap();
        let fixed = case.options.contains(&("subformat", "fixed"));
        let expected = if fixed && case.format == "vpc" { "raw" } else { case.format };
        assert_eq!(info["format"], expected);
        let (opener, name) = (graph.clone(), path.clone());
        let pin = graph.block_on(async move {
            opener
                .open(Options::json(json!({"filename": name, "read-only": true})), Settings::default())
                .await
        });
        let pin = pin.unwrap();
        assert_eq!(pin.driver().name, expected);
        close(&graph, pin);
    }
}

/// What `blockdev-create` refuses, before the file is touched, and which longest and shortest disks
/// the judge can open.
#[test]
fn disks_that_a_format_cannot_tell_are_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("a.img");
    let graph = graph();
    let make = |driver: &str, more: Value| {
        std::fs::write(&path, [7; 512]).unwrap();
        let file = json!({"driver": "file", "filename": path.to_str().unwrap()});
        let mut all = json!({"driver": driver, "file": file});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        let at = graph.clone();
        graph.block_on(async move { at.create(Options::json(all)).await }).map_err(|why| why.text)
    };
    let huge = u64::MAX - 511;
    for (driver, more, why) in [
        ("vpc", json!({"size": 1 << 20}), "The requested image size cannot be represented in CHS geometry"),
        ("vhdx", json!({"size": huge}), "Image size too large; max of 64TB"),
        ("vhdx", json!({"size": 512, "block-size": 0}), "Block size must be a multiple of 1 MB"),
        ("vhdx", json!({"size": 512, "block-size": 3 << 20}), "Block size must be a power of two"),
        ("vhdx", json!({"size": 512, "block-size": 512 << 20}), "Block size must not exceed 268435456"),
        ("vhdx", json!({"size": 512, "log-size": 0}), "Log size must be a multiple of 1 MB"),
        ("vhdx", json!({"size": 512, "log-size": 1u64 << 32}), "Log size must be smaller than 4 GB"),
        (
            "vdi",
            json!({"size": huge}),
            "Unsupported VDI image size (size is 0xfffffffffffffe00, max supported is 0x1fffff8000000)",
        ),
        ("parallels", json!({"size": 1234}), "Image size must be a multiple of 512 bytes"),
        ("parallels", json!({"size": huge}), "Image size is too large for this cluster size"),
        (
            "parallels",
            json!({"size": 512, "cluster-size": 0}),
            "Image size is too large for this cluster size",
        ),
        (
            "parallels",
            json!({"size": 512, "cluster-size": 128}),
            "Cluster size must be a multiple of 512 bytes",
        ),
        ("parallels", json!({"size": 512, "cluster-size": 1u64 << 32}), "Cluster size is too large"),
        ("vmdk", json!({"size": 512, "subformat": "monolithicFlat"}), "Extent [0] not specified"),
        ("luks", json!({"size": 512}), "Parameter 'key-secret' is missing"),
    ] {
        assert_eq!(make(driver, more), Err(why.to_string()), "{driver}");
        assert_eq!(std::fs::read(&path).unwrap(), [7; 512], "{driver}: {why}");
    }
    for (driver, size) in [("vhdx", 0), ("vpc", 0), ("parallels", 1u64 << 42)] {
        make(driver, json!({"size": size})).unwrap();
        let told = tool("qemu-img", &["info", "--output=json", "-f", driver, path.to_str().unwrap()]);
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["virtual-size"], json!(size), "{driver}");
        close(&graph, open(&graph, &path, driver, false));
    }
    // Longer than its table can tell: QEMU makes such disks, and its newer releases do not open them.
    let size = (1u64 << 52) - 512;
    make("parallels", json!({"size": size})).unwrap();
    let pin = open(&graph, &path, "parallels", false);
    assert_eq!(pin.size(), size);
    close(&graph, pin);
}
