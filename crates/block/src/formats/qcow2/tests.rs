use crate::driver::{Fix, Snapshot};
use crate::graph::{Graph, Pin, Settings, tests::graph};
use crate::options::Options;
use crate::types::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use testkit::Dice;

pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().expect("the qemu tools are installed");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {text}");
    text
}

fn make(graph: &Arc<Graph>, path: &Path, options: Value) {
    let (at, path) = (graph.clone(), path.to_str().unwrap().to_string());
    graph.block_on(async move { at.create_image(&path, "qcow2", Options::json(options)).await }).unwrap();
}

fn open(graph: &Arc<Graph>, path: &Path) -> Pin {
    let options =
        json!({"driver": "qcow2", "discard": "unmap", "file": {"driver": "file", "filename": path}});
    let at = graph.clone();
    graph.block_on(async move { at.open(Options::json(options), Settings::default()).await }).unwrap()
}

fn close(graph: &Arc<Graph>, pin: Pin) {
    drop(pin);
    let at = graph.clone();
    graph.block_on(async move { at.collect().await });
    assert!(graph.nodes().is_empty());
}

fn paths(dir: &tempfile::TempDir) -> (PathBuf, PathBuf) {
    (dir.path().join("a.qcow2"), dir.path().join("model.raw"))
}

fn judge(image: &Path, model: &[u8], raw: &Path) {
    let text = tool("qemu-img", &["check", image.to_str().unwrap()]);
    assert!(text.contains("No errors were found"), "{text}");
    std::fs::write(raw, model).unwrap();
    tool(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", image.to_str().unwrap(), raw.to_str().unwrap()],
    );
}

/// Random requests, checked against a plain array.
pub(crate) async fn churn(node: &crate::Node, model: &mut [u8], dice: &mut Dice, rounds: usize) {
    let size = model.len() as u64;
    for _ in 0..rounds {
        let offset = dice.below(size);
        let longest = if dice.below(4) == 0 { 300_000 } else { 6000 };
        let len = (1 + dice.below(longest)).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match dice.below(10) {
            0..=4 => {
                let bits = dice.roll();
                let data: Vec<u8> = (0..len).map(|at| (bits >> (at % 7)) as u8 | 1).collect();
                node.write(offset, &data, WriteFlags::empty()).await.unwrap();
                model[range].copy_from_slice(&data);
            }
            5 => {
                let flags = if dice.below(2) == 0 { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
                node.write_zeroes(offset, len, flags).await.unwrap();
                model[range].fill(0);
            }
            6 => {
                node.discard(offset, len).await.unwrap();
                let mut now = vec![0; len as usize];
                node.read(offset, &mut now).await.unwrap();
                // Whether a discarded byte is kept is open; it is the old one or zero.
                for (new, old) in now.iter().zip(&mut model[range]) {
                    assert!(*new == *old || *new == 0);
                    *old = *new;
                }
            }
            7 => node.flush().await.unwrap(),
            _ => {
                let mut data = vec![0xaa; len as usize];
                node.read(offset, &mut data).await.unwrap();
                assert!(data == model[range], "read at {offset:#x}+{len:#x}");
            }
        }
    }
}

fn variants() -> Vec<Value> {
    vec![
        json!({}),
        json!({"compat": "0.10"}),
        json!({"cluster_size": "512"}),
        json!({"cluster_size": "2M"}),
        json!({"cluster_size": "4k", "refcount_bits": "1"}),
        json!({"cluster_size": "1k", "refcount_bits": "64"}),
        json!({"cluster_size": "16k", "extended_l2": "on"}),
        json!({"extended_l2": "on"}),
        json!({"lazy_refcounts": "on", "preallocation": "metadata"}),
        json!({"preallocation": "falloc", "cluster_size": "8k"}),
        json!({"compression_type": "zstd", "refcount_bits": "8"}),
    ]
}

#[test]
fn random_requests_leave_what_qemu_img_reads() {
    for (round, mut options) in variants().into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (image, raw) = paths(&dir);
        let graph = graph();
        let size = 5 * (1 << 20) + 1536;
        options["size"] = size.into();
        make(&graph, &image, options.clone());
        tool("qemu-img", &["check", image.to_str().unwrap()]);
        let mut model = vec![0; size];
        for pass in 0..2 {
            let pin = open(&graph, &image);
            let node = pin.clone();
            let mut dice = Dice::new(1 + round as u64 * 77 + pass);
            let mut state = model.clone();
            model = graph.block_on(async move {
                churn(&node, &mut state, &mut dice, 250).await;
                state
            });
            close(&graph, pin);
            eprintln!("{options}");
            judge(&image, &model, &raw);
        }
    }
}

#[test]
fn parallel_requests_do_not_lose_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"size": 8 << 20, "cluster_size": "64k"}));
    let pin = open(&graph, &image);
    let node = pin.clone();
    let model = graph.block_on(async move {
        let mut model = vec![0u8; 8 << 20];
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..2048u64 {
            // Neighbours share a cluster; the order is scrambled.
            let offset = (at * 797 % 2048) * 4096;
            let node = node.clone();
            let byte = (at % 250 + 1) as u8;
            model[offset as usize..offset as usize + 4096].fill(byte);
            let flush = pin_flush(&node);
            tasks.spawn(
                async move { node.write(offset, &vec![byte; 4096], WriteFlags::empty()).await.unwrap() },
            );
            if at % 500 == 0 {
                tasks.spawn(flush);
            }
        }
        while tasks.join_next().await.is_some() {}
        model
    });
    close(&graph, pin);
    judge(&image, &model, &raw);
}

fn pin_flush(node: &Arc<crate::Node>) -> impl Future<Output = ()> + Send + 'static {
    let node = node.clone();
    async move { node.flush().await.unwrap() }
}

#[test]
fn images_of_qemu_img_are_read_with_backing_and_compression() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let base = dir.path().join("base.qcow2");
    let mut dice = Dice::new(5);
    let model: Vec<u8> =
        (0..4 << 20).map(|at: u64| if at % 65536 < 30000 { (dice.roll() % 5) as u8 } else { 0 }).collect();
    std::fs::write(&raw, &model).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        tool(
            "qemu-img",
            &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &option, &text(&raw), &text(&base)],
        );
        let _ = std::fs::remove_file(&image);
        tool("qemu-img", &["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", &text(&image), "5M"]);
        let graph = graph();
        let pin = open(&graph, &image);
        assert_eq!(pin.backing().unwrap().filename(), text(&base));
        let node = pin.clone();
        let mut state = model.clone();
        state.resize(5 << 20, 0);
        let seen = graph.block_on(async move {
            let mut data = vec![1; 5 << 20];
            node.read(0, &mut data).await.unwrap();
            assert!(data == state);
            churn(&node, &mut state, &mut Dice::new(9), 150).await;
            state
        });
        close(&graph, pin);
        let other = dir.path().join("other.raw");
        judge(&image, &seen, &other);
    }
}

#[test]
fn compressed_clusters_of_ours_are_read_by_qemu_img() {
    for kind in ["zlib", "zstd"] {
        let dir = tempfile::tempdir().unwrap();
        let (image, raw) = paths(&dir);
        let graph = graph();
        make(&graph, &image, json!({"size": (3 << 20) + 512, "compression_type": kind}));
        let pin = open(&graph, &image);
        let node = pin.clone();
        let model = graph.block_on(async move {
            let mut dice = Dice::new(3);
            let mut model: Vec<u8> = (0..(3 << 20) + 512)
                .map(|at: u64| if at.is_multiple_of(3) { (dice.roll() % 9) as u8 } else { 7 })
                .collect();
            for (at, piece) in model.chunks(65536).enumerate() {
                node.write(at as u64 * 65536, piece, WriteFlags::COMPRESSED).await.unwrap();
            }
            churn(&node, &mut model, &mut dice, 100).await;
            model
        });
        close(&graph, pin);
        judge(&image, &model, &raw);
    }
}

#[test]
fn snapshots_are_kept_and_reverted() {
    for options in [json!({"cluster_size": "4k"}), json!({"extended_l2": "on"}), json!({"compat": "0.10"})] {
        let dir = tempfile::tempdir().unwrap();
        let (image, raw) = paths(&dir);
        let graph = graph();
        let mut options = options;
        options["size"] = (2u64 << 20).into();
        make(&graph, &image, options);
        let pin = open(&graph, &image);
        let node = pin.clone();
        let (first, last) = graph.block_on(async move {
            let mut dice = Dice::new(11);
            let mut model = vec![0; 2 << 20];
            churn(&node, &mut model, &mut dice, 100).await;
            let facet = node.layer().snapshots().unwrap();
            let named = |name: &str| Snapshot {
                name: name.into(),
                date_sec: 1,
                vm_clock_nsec: 5,
                ..Snapshot::default()
            };
            facet.create(named("one")).await.unwrap();
            let first = model.clone();
            churn(&node, &mut model, &mut dice, 100).await;
            facet.create(named("two")).await.unwrap();
            churn(&node, &mut model, &mut dice, 60).await;
            facet.write_vmstate(0, &[5; 100_000]).await.unwrap();
            let mut state = vec![0; 100_000];
            facet.read_vmstate(0, &mut state).await.unwrap();
            assert_eq!(state, [5; 100_000]);
            assert_eq!(facet.list().len(), 2);
            facet.delete("2").await.unwrap();
            churn(&node, &mut model, &mut dice, 60).await;
            (first, model)
        });
        close(&graph, pin);
        judge(&image, &last, &raw);
        let listed = tool("qemu-img", &["snapshot", "-l", image.to_str().unwrap()]);
        assert!(listed.contains("one") && !listed.contains("two"), "{listed}");
        let copy = dir.path().join("copy.qcow2");
        std::fs::copy(&image, &copy).unwrap();
        tool("qemu-img", &["snapshot", "-a", "one", copy.to_str().unwrap()]);
        judge(&copy, &first, &raw);
        let pin = open(&graph, &image);
        let node = pin.clone();
        graph.block_on(async move { node.layer().snapshots().unwrap().goto("1").await.unwrap() });
        close(&graph, pin);
        judge(&image, &first, &raw);
        tool("qemu-img", &["snapshot", "-d", "one", image.to_str().unwrap()]);
        judge(&image, &first, &raw);
    }
}

#[test]
fn sizes_change_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let graph = graph();
    for options in [json!({"cluster_size": "512"}), json!({"compat": "0.10"}), json!({"extended_l2": "on"})] {
        let mut options = Options::json(options);
        options.set("size", 1 << 20);
        make(&graph, &image, options.0.into());
        let pin = open(&graph, &image);
        let node = pin.clone();
        let model = graph.block_on(async move {
            let mut dice = Dice::new(21);
            let mut model = vec![0; 1 << 20];
            for size in [3usize << 20, (1 << 19) + 512, (40 << 20) + 512, 4096, 1 << 20] {
                churn(&node, &mut model, &mut dice, 40).await;
                node.truncate(size as u64, Truncate::default()).await.unwrap();
                model.resize(size, 0);
            }
            churn(&node, &mut model, &mut dice, 40).await;
            model
        });
        close(&graph, pin);
        judge(&image, &model, &raw);
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn subclusters_behind_a_new_end_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"extended_l2": "on", "size": 1 << 20}));
    let pin = open(&graph, &image);
    let node = pin.clone();
    graph.block_on(async move {
        // The new end lies in a subcluster that was never written.
        node.write(6144, &[5; 4096], WriteFlags::empty()).await.unwrap();
        for size in [4096, 1 << 20] {
            node.truncate(size, Truncate::default()).await.unwrap();
        }
    });
    close(&graph, pin);
    judge(&image, &vec![0; 1 << 20], &raw);
}

#[test]
fn a_version_2_image_grows_where_nothing_below_comes_to_light() {
    let dir = tempfile::tempdir().unwrap();
    let (image, below) = paths(&dir);
    for (len, why) in [(1 << 20, ""), (3 << 20, "Failed to zero out new clusters: Operation not supported")] {
        std::fs::write(&below, vec![7; len]).unwrap();
        let (image, below) = (image.to_str().unwrap(), below.to_str().unwrap());
        let options = ["-o", "compat=0.10", "-b", below, "-F", "raw", image, "1M"];
        tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], &options[..]].concat());
        let graph = graph();
        let pin = open(&graph, image.as_ref());
        let node = pin.clone();
        let (result, size) = graph.block_on(async move {
            let result = node.truncate(2 << 20, Truncate { zero: true, ..Truncate::default() }).await;
            (result, node.size())
        });
        assert_eq!(result.err().map_or(String::new(), |why| why.text), why);
        assert_eq!(size, if why.is_empty() { 2 << 20 } else { 1 << 20 });
        close(&graph, pin);
    }
}

#[test]
fn persistent_bitmaps_survive_and_are_seen_by_qemu_img() {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"size": 64 << 20}));
    let pin = open(&graph, &image);
    let bitmap = crate::DirtyBitmap::new(Some("b0".into()), 65536, 64 << 20);
    bitmap.set_persistent(true);
    pin.bitmaps().add(Arc::new(bitmap));
    let node = pin.clone();
    graph.block_on(async move {
        node.write(100_000, &[1; 100_000], WriteFlags::empty()).await.unwrap();
    });
    let count = pin.bitmaps().find("b0").unwrap().count();
    close(&graph, pin);
    let info = tool("qemu-img", &["info", "--output=json", image.to_str().unwrap()]);
    assert!(info.contains("\"name\": \"b0\""), "{info}");
    tool("qemu-img", &["check", image.to_str().unwrap()]);
    tool("qemu-img", &["bitmap", "--add", image.to_str().unwrap(), "theirs"]);
    let pin = open(&graph, &image);
    assert_eq!(pin.bitmaps().find("b0").unwrap().count(), count);
    assert!(pin.bitmaps().find("b0").unwrap().is_enabled());
    let node = pin.clone();
    graph.block_on(async move {
        let gone = node.bitmaps().find("theirs").unwrap();
        node.bitmaps().remove(&gone);
        node.layer().stored_bitmaps().unwrap().remove("theirs").await.unwrap();
    });
    close(&graph, pin);
    let info = tool("qemu-img", &["info", "--output=json", image.to_str().unwrap()]);
    assert!(info.contains("\"name\": \"b0\"") && !info.contains("theirs"), "{info}");
    tool("qemu-img", &["check", image.to_str().unwrap()]);
}

#[test]
fn an_external_data_file_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let data = dir.path().join("data.raw");
    let graph = graph();
    make(&graph, &image, json!({"size": 2 << 20, "data_file": data, "data_file_raw": "on"}));
    let pin = open(&graph, &image);
    let node = pin.clone();
    let model = graph.block_on(async move {
        let mut model = vec![0; 2 << 20];
        churn(&node, &mut model, &mut Dice::new(8), 80).await;
        let mut at = 0;
        while at < 2 << 20 {
            let status = node.block_status(at, u64::MAX).await.unwrap();
            let said = model[at as usize..(at + status.len) as usize].iter().all(|byte| *byte == 0);
            assert!(said || !status.flags.contains(StatusFlags::ZERO), "no zeroes at {at:#x}: {status:?}");
            at += status.len;
        }
        model
    });
    close(&graph, pin);
    judge(&image, &model, &raw);
    assert!(std::fs::read(&data).unwrap() == model);
}

/// Tables of hostile images point anywhere.
#[test]
fn clusters_are_counted_up_to_the_last_offset() {
    let mut counts = super::rebuild::Counts::new(16);
    counts.add(u64::MAX, 1);
    counts.add(u64::MAX - 5, 100);
    assert_eq!(counts.get(u64::MAX >> 16), 2);
}

/// A guest trims its disk and flushes once: the file has shrunk, without another request.
#[test]
fn one_flush_gives_discarded_space_back() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, _) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"size": 16 << 20}));
    let at = graph.clone();
    let file = json!({"driver": "file", "filename": image, "discard": "unmap"});
    let options = json!({"driver": "qcow2", "discard": "unmap", "file": file});
    let pin =
        graph.block_on(async move { at.open(Options::json(options), Settings::default()).await }).unwrap();
    let node = pin.clone();
    graph.block_on(async move {
        node.write(0, &vec![7; 8 << 20], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        node.discard(0, 8 << 20).await.unwrap();
        node.flush().await.unwrap();
    });
    assert!(std::fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
    close(&graph, pin);
}

#[test]
fn a_raw_data_file_shows_whatever_lies_under_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, base) = paths(&dir);
    let data = dir.path().join("data.raw");
    let graph = graph();
    make(&graph, &image, json!({"size": 2 << 20, "data_file": data, "data_file_raw": "on"}));
    std::fs::write(&data, vec![5; 2 << 20]).unwrap();
    std::fs::write(&base, vec![7; 4 << 20]).unwrap();
    let below = json!({"driver": "raw", "file": {"driver": "file", "filename": base}});
    let image = json!({"driver": "qcow2", "file": {"driver": "file", "filename": image}, "backing": below});
    let at = graph.clone();
    let (pin, read) = graph.block_on(async move {
        let pin = at.open(Options::json(image), Settings::default()).await.unwrap();
        pin.truncate(3 << 20, Truncate::default()).await.unwrap();
        let mut read = vec![1; 3 << 20];
        pin.read(0, &mut read).await.unwrap();
        (pin, read)
    });
    assert!(read[..2 << 20].iter().all(|byte| *byte == 5));
    assert!(read[2 << 20..].iter().all(|byte| *byte == 0));
    close(&graph, pin);
}

#[test]
fn leaks_and_wrong_counts_are_found_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"size": 4 << 20}));
    let pin = open(&graph, &image);
    let node = pin.clone();
    let model = graph.block_on(async move {
        let mut model = vec![0; 4 << 20];
        churn(&node, &mut model, &mut Dice::new(4), 80).await;
        model
    });
    close(&graph, pin);
    let mut bytes = std::fs::read(&image).unwrap();
    let be = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let block = be(&bytes, be(&bytes, 48) as usize) as usize;
    bytes[block + 2 * 5 + 1] = 0; // in use, counted as free
    bytes[block + 2 * 4000 + 1] = 3; // counted, not in use
    std::fs::write(&image, &bytes).unwrap();
    let pin = open(&graph, &image);
    let node = pin.clone();
    let (before, after) = graph.block_on(async move {
        let layer = node.layer();
        (layer.check(Fix::Nothing).await.unwrap(), {
            layer.check(Fix::All).await.unwrap();
            layer.check(Fix::Nothing).await.unwrap()
        })
    });
    assert!(before.corruptions >= 1 && before.leaks == 1, "{before:?}");
    assert_eq!((after.corruptions, after.leaks), (0, 0), "{after:?}");
    close(&graph, pin);
    judge(&image, &model, &raw);
}

/// A cluster that was given up while tables were being written is still named by those on disk:
/// nothing else may be written there.
#[test]
fn what_is_given_up_during_a_write_back_is_not_taken_before_the_next() {
    use crate::filters::blkdebug::BlkDebug;
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = paths(&dir);
    let graph = graph();
    make(&graph, &image, json!({"size": 16 << 20}));
    let file = json!({"driver": "blkdebug", "image": {"driver": "file", "filename": image}});
    let options = json!({"driver": "qcow2", "discard": "unmap", "file": file});
    let at = graph.clone();
    let pin =
        graph.block_on(async move { at.open(Options::json(options), Settings::default()).await }).unwrap();
    let node = pin.clone();
    graph.block_on(async move {
        let below = node.child(Role::PRIMARY).unwrap().node();
        let rules = crate::driver::layer_of::<BlkDebug>(&below).unwrap();
        let stopped = async |tag: &str| {
            rules.set_break("l2_update", tag).unwrap();
            let flush = tokio::spawn(pin_flush(&node));
            rules.wait_suspended(tag).await;
            (flush,)
        };
        node.write(0, &[1; 65536], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        node.write(1 << 20, &[2; 65536], WriteFlags::empty()).await.unwrap();
        let (flush,) = stopped("first").await;
        node.write_zeroes(0, 65536, ZeroFlags::MAY_UNMAP).await.unwrap();
        rules.resume("first").unwrap();
        flush.await.unwrap();
        let (flush,) = stopped("second").await;
        node.write(2 << 20, &[3; 65536], WriteFlags::empty()).await.unwrap();
        std::fs::copy(&image, dir.path().join("killed")).unwrap();
        rules.resume("second").unwrap();
        flush.await.unwrap();
        let killed = dir.path().join("killed");
        let said = tool("qemu-io", &["-f", "qcow2", "-c", "read -P 1 0 64k", killed.to_str().unwrap()]);
        assert!(!said.contains("verification failed"), "{said}");
    });
    close(&graph, pin);
}
