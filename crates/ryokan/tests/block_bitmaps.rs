//! Dirty bitmaps over QMP: marking, their verbs, incremental chains, keeping them in images.

use serde_json::{Value, json};
use testkit::images::tool;
use testkit::{Bench, Images};

fn bench() -> Bench {
    let images = Images::new();
    images.create("disk.qcow2", "4M", &[]);
    images.io("disk.qcow2", &["write -P 1 0 4M"]);
    start(images)
}

fn start(images: Images) -> Bench {
    let drive = format!(
        "if=none,id=d,driver=qcow2,node-name=disk,discard=unmap,file.filename={}",
        images.path("disk.qcow2")
    );
    Bench::start(images, &["-drive", &drive])
}

fn add(bench: &mut Bench, name: &str, more: Value) {
    let mut all = json!({"node": "d", "name": name, "granularity": 65536});
    more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
    bench.run("block-dirty-bitmap-add", all);
}

fn bitmap(bench: &mut Bench, name: &str) -> Value {
    let medium = bench.medium("d");
    let list = medium["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|one| one["name"] == name).unwrap_or_default()
}

fn count(bench: &mut Bench, name: &str) -> i64 {
    bitmap(bench, name)["count"].as_i64().unwrap_or(-1)
}

#[test]
fn writes_are_marked_and_the_verbs_do_what_they_say() {
    let mut bench = bench();
    add(&mut bench, "a", json!({}));
    add(&mut bench, "fine", json!({"granularity": 512}));
    add(&mut bench, "off", json!({"disabled": true}));
    let told = json!({"name": "a", "count": 0, "granularity": 65536, "recording": true, "busy": false,
        "persistent": false, "status": "active"});
    assert_eq!(bitmap(&mut bench, "a"), told);
    assert_eq!(bitmap(&mut bench, "off")["status"], "disabled");
    bench.io("d", "write 65535 2");
    bench.io("d", "write -z 1M 128k");
    bench.io("d", "read 2M 1M");
    bench.io("d", "discard 3M 64k");
    let counts = ["a", "fine", "off"].map(|name| count(&mut bench, name));
    assert_eq!(counts, [5 << 16, 1024 + (192 << 10), 0]);
    let all = bench.run("query-block", Value::Null);
    assert_eq!(all[0]["dirty-bitmaps"], bench.medium("d")["dirty-bitmaps"]);
    bench.run("block-dirty-bitmap-disable", json!({"node": "d", "name": "a"}));
    bench.run("block-dirty-bitmap-enable", json!({"node": "disk", "name": "off"}));
    bench.io("d", "write 2M 64k");
    assert_eq!([count(&mut bench, "a"), count(&mut bench, "off")], [5 << 16, 1 << 16]);
    let merge = json!({"node": "d", "target": "off", "bitmaps": ["a", {"node": "disk", "name": "fine"}]});
    bench.run("block-dirty-bitmap-merge", merge);
    assert_eq!(count(&mut bench, "off"), 6 << 16);
    bench.run("block-dirty-bitmap-clear", json!({"node": "d", "name": "off"}));
    assert_eq!(count(&mut bench, "off"), 0);
    // Bitmaps follow the size of the disk.
    bench.run("block_resize", json!({"device": "d", "size": 8 << 20}));
    bench.io("d", "write 7M 1M");
    assert_eq!(count(&mut bench, "off"), 1 << 20);
    bench.run("block_resize", json!({"device": "d", "size": 4 << 20}));
    assert_eq!(count(&mut bench, "off"), 0);
    for name in ["a", "fine", "off"] {
        bench.run("block-dirty-bitmap-remove", json!({"node": "d", "name": name}));
    }
    assert_eq!(bench.medium("d")["dirty-bitmaps"], Value::Null);
    bench.quit().check("disk.qcow2");
}

#[test]
fn what_is_refused() {
    let mut bench = bench();
    add(&mut bench, "a", json!({}));
    bench.images.create("plain.raw", "4M", &[]);
    bench.open("plain", "plain.raw", json!({}));
    bench.images.create("other.raw", "8M", &[]);
    bench.open("other", "other.raw", json!({}));
    bench.run("block-dirty-bitmap-add", json!({"node": "other", "name": "o"}));
    let granularity = "Granularity must be power of 2 and at least 512";
    let long = "x".repeat(1024);
    let too_long = format!("Bitmap name too long: {long}");
    let cases = [
        ("add", json!({"node": "x", "name": "b"}), "Cannot find device='x' nor node-name='x'"),
        ("add", json!({"node": "d", "name": ""}), "Bitmap name cannot be empty"),
        ("add", json!({"node": "d", "name": "a"}), "Bitmap already exists: a"),
        ("add", json!({"node": "d", "name": "b", "granularity": 1000}), granularity),
        ("add", json!({"node": "d", "name": "b", "granularity": 256}), granularity),
        ("add", json!({"node": "d", "name": long}), too_long.as_str()),
        (
            "add",
            json!({"node": "plain", "name": "b", "persistent": true}),
            "Can't store persistent bitmaps to plain: Operation not supported",
        ),
        ("remove", json!({"node": "x", "name": "a"}), "Node 'x' not found"),
        ("remove", json!({"node": "d", "name": "b"}), "Dirty bitmap 'b' not found"),
        ("clear", json!({"node": "d", "name": "b"}), "Dirty bitmap 'b' not found"),
        ("enable", json!({"node": "d", "name": "b"}), "Dirty bitmap 'b' not found"),
        ("merge", json!({"node": "d", "target": "b", "bitmaps": ["a"]}), "Dirty bitmap 'b' not found"),
        ("merge", json!({"node": "d", "target": "a", "bitmaps": ["b"]}), "Dirty bitmap 'b' not found"),
        (
            "merge",
            json!({"node": "d", "target": "a", "bitmaps": [{"node": "other", "name": "o"}]}),
            "Bitmaps are of different sizes (destination size is 4194304 and source size is 8388608) and can't be merged",
        ),
    ];
    for (verb, arguments, text) in cases {
        let refused = bench.refused(&format!("block-dirty-bitmap-{verb}"), arguments);
        assert_eq!(refused, format!("GenericError: {text}"));
    }
    bench.images.create("copy.raw", "4M", &[]);
    bench.open("copy", "copy.raw", json!({}));
    bench.io("d", "write 0 4M");
    let backup =
        json!({"device": "d", "target": "copy", "sync": "incremental", "bitmap": "a", "speed": 65536});
    bench.run("blockdev-backup", backup);
    assert_eq!(bitmap(&mut bench, "a")["status"], "frozen");
    let busy = "GenericError: Bitmap 'a' is currently in use by another operation and cannot be used";
    for verb in ["remove", "clear", "disable", "enable"] {
        let refused = bench.refused(&format!("block-dirty-bitmap-{verb}"), json!({"node": "d", "name": "a"}));
        assert_eq!(refused, busy);
    }
    bench.run("job-cancel", json!({"id": "d"}));
    bench.story("d", "null");
    assert_eq!((count(&mut bench, "a"), &bitmap(&mut bench, "a")["status"]), (4 << 20, &json!("active")));
    bench.quit();
}

/// Full backup, then increments in a chain, each an overlay of the one before, while the disk is
/// written; every link is what the disk was then.
#[test]
fn the_check_sum_is_that_of_the_bits() {
    let mut bench = bench();
    add(&mut bench, "a", json!({}));
    let sum = |bench: &mut Bench| {
        let told = bench.run("x-debug-block-dirty-bitmap-sha256", json!({"node": "d", "name": "a"}));
        told["sha256"].as_str().unwrap_or_default().to_string()
    };
    // Of one 64-bit word: zero, and one (from coreutils' sha256sum).
    assert_eq!(sum(&mut bench), "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc");
    bench.io("d", "write 0 64k");
    assert_eq!(sum(&mut bench), "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8");
    let refused = bench.refused("x-debug-block-dirty-bitmap-sha256", json!({"node": "d", "name": "x"}));
    assert_eq!(refused, "GenericError: Dirty bitmap 'x' not found");
    bench.quit();
}

#[test]
fn an_incremental_chain_restores_every_state() {
    let mut bench = bench();
    let models = ["m0.raw", "m1.raw", "m2.raw", "m3.raw"];
    bench.images.create("now.raw", "4M", &[]);
    bench.images.io("now.raw", &["write -P 1 0 4M"]);
    let links = ["inc0.qcow2", "inc1.qcow2", "inc2.qcow2", "inc3.qcow2"];
    for (index, link) in links.iter().enumerate() {
        let target = bench.images.path(link);
        let mut action = json!({"device": "d", "target": target, "format": "qcow2", "sync": "full"});
        let mut actions = Vec::new();
        if index == 0 {
            actions.push(json!({"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b"}}));
        } else {
            bench.images.overlay(link, links[index - 1]);
            action["mode"] = "existing".into();
            action["sync"] = "incremental".into();
            action["bitmap"] = "b".into();
        }
        actions.push(json!({"type": "drive-backup", "data": action}));
        bench.images.copy("now.raw", models[index]);
        bench.run("transaction", json!({"actions": actions}));
        // While it runs, and after.
        for round in 0..6 {
            let at = (index * 7 + round * 11) * 50_000 % 4_000_000;
            let write = format!("write -P {} {at} 70001", 10 * index + round + 2);
            bench.io("d", &write);
            bench.images.io("now.raw", &[&write]);
        }
        bench.done("d");
    }
    let images = bench.quit();
    images.same("disk.qcow2", "now.raw");
    for (link, model) in links.iter().zip(models) {
        images.check(link);
        images.same(link, model);
    }
}

#[test]
fn failed_and_repeated_backups_lose_no_marks() {
    let mut bench = bench();
    add(&mut bench, "b", json!({}));
    bench.io("d", "write -P 2 0 1M");
    let backup = |more: Value| {
        let mut all =
            json!({"device": "d", "job-id": "j", "target": "copy", "sync": "bitmap", "bitmap": "b"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    let open = |bench: &mut Bench, sector: Value| {
        bench.images.create("copy.raw", "4M", &[]);
        let file = bench.images.path("copy.raw");
        let rules = if sector.is_null() {
            json!([])
        } else {
            json!([{"event": "none", "iotype": "write", "errno": 5, "sector": sector}])
        };
        let copy = json!({"driver": "raw", "node-name": "copy", "file": {"driver": "blkdebug",
            "inject-error": rules, "image": {"driver": "file", "filename": file}}});
        bench.run("blockdev-add", copy);
    };
    // Fails at half of it: nothing is forgotten on-success, the rest only with always.
    for (mode, left) in [("on-success", 1 << 20), ("always", 1 << 19)] {
        open(&mut bench, json!(1024));
        bench.run(
            "blockdev-backup",
            backup(json!({"bitmap-mode": mode, "x-perf": {"max-workers": 1, "max-chunk": 65536}})),
        );
        assert!(bench.story("j", "null").contains(&"COMPLETED: Input/output error".to_string()));
        assert_eq!(count(&mut bench, "b"), left, "{mode}");
        bench.run("blockdev-del", json!({"node-name": "copy"}));
    }
    // Done, but what was marked stays with never; writes of the meantime are added.
    for (mode, left) in [("never", (1 << 19) + (1 << 16)), ("on-success", 1 << 16)] {
        open(&mut bench, Value::Null);
        bench.run("blockdev-backup", backup(json!({"bitmap-mode": mode, "auto-finalize": false})));
        bench.story("j", "PENDING");
        bench.io("d", "write 3M 64k");
        bench.run("job-finalize", json!({"id": "j"}));
        bench.done("j");
        assert_eq!(count(&mut bench, "b"), left, "{mode}");
        bench.run("blockdev-del", json!({"node-name": "copy"}));
    }
    // With other sync modes the bitmap is brought up to date.
    open(&mut bench, Value::Null);
    bench.run("blockdev-backup", backup(json!({"sync": "full", "bitmap-mode": "on-success"})));
    bench.done("j");
    assert_eq!(count(&mut bench, "b"), 0);
    let images = bench.quit();
    images.same("disk.qcow2", "copy.raw");
}

fn stored(images: &Images) -> Value {
    images.info("disk.qcow2")["format-specific"]["data"]["bitmaps"].clone()
}

#[test]
fn persistent_bitmaps_outlive_the_machine() {
    let mut bench = bench();
    add(&mut bench, "keep", json!({"persistent": true}));
    add(&mut bench, "still", json!({"persistent": true, "disabled": true}));
    add(&mut bench, "gone", json!({"persistent": true}));
    add(&mut bench, "here", json!({}));
    bench.io("d", "write 1M 100k");
    bench.run("block-dirty-bitmap-remove", json!({"node": "d", "name": "gone"}));
    let images = bench.quit();
    images.check("disk.qcow2");
    let wanted = json!([{"name": "keep", "granularity": 65536, "flags": ["auto"]},
        {"name": "still", "granularity": 65536, "flags": []}]);
    assert_eq!(stored(&images), wanted);

    // What another program makes of them: merged and written while the machine is away.
    tool("qemu-img", &["bitmap", "--add", "--enable", "-g", "64k", &images.path("disk.qcow2"), "theirs"]);
    let merge = ["bitmap", "--merge", "keep", &images.path("disk.qcow2"), "theirs"];
    tool("qemu-img", &merge);
    images.io("disk.qcow2", &["write 2M 64k"]);
    let mut bench = start(images);
    assert_eq!(count(&mut bench, "keep"), 3 << 16);
    assert_eq!(count(&mut bench, "theirs"), 3 << 16);
    assert_eq!(bitmap(&mut bench, "still")["recording"], false);
    bench.io("d", "write 3M 64k");
    assert_eq!(count(&mut bench, "keep"), 4 << 16);
    assert_eq!(bitmap(&mut bench, "keep")["persistent"], true);
    // Killed: they are not to be trusted any more, and only that.
    let Bench { vm, images, .. } = bench;
    drop(vm);
    let mut bench = start(images);
    assert_eq!(bitmap(&mut bench, "keep")["inconsistent"], true);
    let refused = bench.refused("block-dirty-bitmap-clear", json!({"node": "d", "name": "keep"}));
    assert_eq!(refused, "GenericError: Bitmap 'keep' is inconsistent and cannot be used");
    for name in ["keep", "theirs"] {
        bench.run("block-dirty-bitmap-remove", json!({"node": "d", "name": name}));
    }
    let images = bench.quit();
    images.check("disk.qcow2");
    assert_eq!(stored(&images), json!([{"name": "still", "granularity": 65536, "flags": ["in-use"]}]));
}

/// The one below an overlay: it can be read, and stays in its image.
#[test]
fn persistent_bitmaps_of_read_only_nodes_stay() {
    let mut bench = bench();
    add(&mut bench, "keep", json!({"persistent": true}));
    let overlay = bench.images.path("over.qcow2");
    let snapshot = json!({"node-name": "disk", "snapshot-file": overlay, "snapshot-node-name": "over"});
    bench.run("blockdev-snapshot-sync", snapshot);
    for command in ["block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-disable"] {
        let why = bench.refused(command, json!({"node": "disk", "name": "keep"}));
        assert_eq!(why, "GenericError: Bitmap 'keep' is readonly and cannot be modified");
    }
    bench.run("block-dirty-bitmap-add", json!({"node": "over", "name": "sum"}));
    let source = json!([{"node": "disk", "name": "keep"}]);
    bench.run("block-dirty-bitmap-merge", json!({"node": "over", "target": "sum", "bitmaps": source}));
    let images = bench.quit();
    let info = images.info("disk.qcow2");
    assert_eq!(info["format-specific"]["data"]["bitmaps"][0]["name"], "keep");
    assert_eq!(info["format-specific"]["data"]["bitmaps"][0]["flags"], json!(["auto"]));
}
