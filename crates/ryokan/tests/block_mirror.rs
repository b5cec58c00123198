//! drive-mirror and blockdev-mirror over QMP.

use serde_json::{Value, json};
use testkit::images::tool;
use testkit::{Bench, Images};

const SIZE: &str = "4M";

/// top.qcow2 over base.qcow2, and `model.raw` as they read.
fn images() -> Images {
    let images = Images::new();
    images.create("base.qcow2", SIZE, &[]);
    images.io("base.qcow2", &["write -P 1 0 2M"]);
    images.overlay("top.qcow2", "base.qcow2");
    images.io("top.qcow2", &["write -P 2 1M 2M", "write -z 0 64k"]);
    images.create("model.raw", SIZE, &[]);
    images.io("model.raw", &["write -P 1 0 2M", "write -P 2 1M 2M", "write -z 0 64k"]);
    images
}

fn bench() -> Bench {
    let images = images();
    let drive = format!("if=none,id=d,driver=qcow2,node-name=top,file.filename={}", images.path("top.qcow2"));
    Bench::start(images, &["-drive", &drive])
}

/// Waits until it is ready, writes, switches over, writes again.
fn pivot(bench: &mut Bench, job: &str) {
    bench.story(job, "READY");
    bench.io("d", "write -P 5 3M 100k");
    bench.run("block-job-complete", json!({"device": job}));
    assert_eq!(bench.story(job, "null"), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    bench.io("d", "write -P 6 3500k 100k");
}

fn pivoted(images: &Images, copy: &str) {
    images.io("model.raw", &["write -P 5 3M 100k", "write -P 6 3500k 100k"]);
    images.check(copy);
    images.same(copy, "model.raw");
}

#[test]
fn drive_mirror_full_makes_a_file_and_moves_the_drive_to_it() {
    let mut bench = bench();
    let target = bench.images.path("copy.qcow2");
    bench.run(
        "drive-mirror",
        json!({"device": "d", "target": target, "sync": "full", "format": "qcow2", "node-name": "copy",
            "granularity": 65536, "buf-size": 131072}),
    );
    assert_eq!(bench.story("d", "READY"), ["created", "running", "ready", "READY"]);
    let job = bench.job("d");
    // The new file reads as zeroes: what neither image holds is not copied.
    let told = json!({"type": "mirror", "device": "d", "len": 3 << 20, "offset": 3 << 20, "busy": job["busy"],
        "paused": false, "speed": 0, "io-status": "ok", "ready": true, "status": "ready",
        "auto-finalize": true, "auto-dismiss": true});
    assert_eq!(job, told);
    bench.io("d", "write -P 5 3M 100k");
    bench.run("block-job-complete", json!({"device": "d"}));
    assert_eq!(bench.story("d", "null"), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    let medium = bench.medium("d");
    assert_eq!((&medium["node-name"], &medium["file"]), (&json!("copy"), &json!(target)));
    assert_eq!((&medium["backing_file_depth"], bench.node("top")), (&json!(0), Value::Null));
    bench.io("d", "write -P 6 3500k 100k");
    let images = bench.quit();
    images.remove("top.qcow2");
    images.remove("base.qcow2");
    pivoted(&images, "copy.qcow2");
}

#[test]
fn drive_mirror_top_stands_on_the_same_base() {
    let mut bench = bench();
    let target = bench.images.path("copy.qcow2");
    bench.run("drive-mirror", json!({"device": "d", "job-id": "j", "target": target, "sync": "top"}));
    pivot(&mut bench, "j");
    assert_eq!(bench.medium("d")["backing_file"], bench.images.path("base.qcow2"));
    let images = bench.quit();
    let own = tool("qemu-img", &["map", "--output=json", &images.path("copy.qcow2")]);
    assert!(own.contains("\"depth\": 1"), "{own}");
    pivoted(&images, "copy.qcow2");
}

/// What stands in an image's cluster beside what is copied comes from below, not from nothing.
#[test]
fn a_mirror_of_the_top_fills_clusters_that_are_larger_than_the_sources() {
    let images = Images::new();
    images.create("base.qcow2", SIZE, &[]);
    images.io("base.qcow2", &["write -P 1 0 4M"]);
    images.overlay("top.qcow2", "base.qcow2");
    images.io("top.qcow2", &["write -P 2 1088k 512"]);
    let (base, copy) = (images.path("base.qcow2"), images.path("copy.qcow2"));
    let drive = format!("if=none,id=d,driver=qcow2,node-name=top,file.filename={}", images.path("top.qcow2"));
    let mut bench = Bench::start(images, &["-drive", &drive]);
    for (size, sync) in [("128k", "top"), ("1M", "top"), ("128k", "none")] {
        let size = format!("cluster_size={size},backing_file={base},backing_fmt=qcow2");
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &size, &copy]);
        let node = json!({"driver": "qcow2", "node-name": "copy", "backing": null,
            "file": {"driver": "file", "filename": copy}});
        bench.run("blockdev-add", node);
        bench.run("blockdev-mirror", json!({"device": "d", "job-id": "j", "target": "copy", "sync": sync}));
        bench.story("j", "READY");
        bench.io("d", "write -P 3 64k 1k");
        bench.run("block-job-cancel", json!({"device": "j"}));
        bench.story("j", "null");
        bench.run("blockdev-del", json!({"node-name": "copy"}));
        bench.io("d", "flush");
        if sync == "top" {
            bench.images.check("copy.qcow2");
            bench.images.same("copy.qcow2", "top.qcow2");
        } else {
            bench.images.io("copy.qcow2", &["read -P 3 64k 1k", "read -P 1 0 64k", "read -P 1 65k 63k"]);
        }
    }
    bench.quit();
}

#[test]
fn drive_mirror_into_what_exists_and_of_new_writes_only() {
    let mut bench = bench();
    bench.images.create("copy.raw", SIZE, &[]);
    bench.images.io("copy.raw", &["write -P 77 0 4M"]);
    let target = bench.images.path("copy.raw");
    let mode = json!({"device": "d", "target": target, "sync": "full", "format": "raw", "mode": "existing",
        "unmap": false, "copy-mode": "background"});
    bench.run("drive-mirror", mode);
    pivot(&mut bench, "d");
    let images = bench.quit();
    images.io("model.raw", &["write -P 5 3M 100k", "write -P 6 3500k 100k"]);
    images.same("copy.raw", "model.raw");

    let mut bench = self::bench();
    let target = bench.images.path("new.qcow2");
    bench.run("drive-mirror", json!({"device": "d", "target": target, "sync": "none"}));
    pivot(&mut bench, "d");
    assert_eq!(bench.medium("d")["backing_file_depth"], 2);
    let images = bench.quit();
    pivoted(&images, "new.qcow2");
}

#[test]
fn blockdev_mirror_shows_its_filter_and_writes_both_sides_at_once() {
    let mut bench = bench();
    bench.images.create("copy.raw", SIZE, &[]);
    bench.open("copy", "copy.raw", json!({}));
    let mirror = json!({"device": "d", "target": "copy", "sync": "full", "job-id": "j", "speed": 1 << 20,
        "filter-node-name": "f", "copy-mode": "write-blocking"});
    bench.run("blockdev-mirror", mirror);
    assert_eq!(
        (&bench.node("f")["drv"], &bench.medium("d")["node-name"]),
        (&json!("mirror_top"), &json!("f"))
    );
    for node in ["top", "copy"] {
        let busy = bench.refused("block_resize", json!({"node-name": node, "size": 8 << 20}));
        assert_eq!(busy, format!("GenericError: Device '{node}' is in use"));
    }
    // Written to both although the job is far from there.
    bench.run("block-job-pause", json!({"device": "j"}));
    bench.story("j", "paused");
    assert_eq!(bench.job("j")["actively-synced"], false);
    bench.io("d", "write -P 5 3M 128k");
    bench.io("d", "write -z 3200k 64k");
    assert!(bench.images.bytes("copy.raw")[3 << 20..(3 << 20) + (128 << 10)].iter().all(|byte| *byte == 5));
    bench.run("block-job-resume", json!({"device": "j"}));
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.story("j", "READY");
    bench.io("d", "write -P 6 1000001 7777");
    assert!(bench.images.bytes("copy.raw")[1_000_001..1_007_778].iter().all(|byte| *byte == 6));
    assert_eq!(bench.job("j")["actively-synced"], true);
    bench.run("job-complete", json!({"id": "j"}));
    bench.done("j");
    assert_eq!((bench.node("f"), &bench.medium("d")["node-name"]), (Value::Null, &json!("copy")));
    let images = bench.quit();
    images.io("model.raw", &["write -P 5 3M 128k", "write -z 3200k 64k", "write -P 6 1000001 7777"]);
    images.same("copy.raw", "model.raw");
}

#[test]
fn a_mirror_stopped_before_it_is_ready_is_cancelled_and_afterwards_complete() {
    let mut bench = bench();
    let before = bench.images.bytes("top.qcow2");
    bench.images.create("copy.qcow2", SIZE, &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    let mirror = |speed: u64| {
        json!({"device": "d", "target": "copy", "sync": "full", "speed": speed,
        "filter-node-name": "f"})
    };
    bench.run("blockdev-mirror", mirror(65536));
    bench.run("block-job-cancel", json!({"device": "d"}));
    let story = bench.story("d", "null");
    assert_eq!(story, ["created", "running", "aborting", "CANCELLED", "concluded", "null"]);
    bench.run("blockdev-mirror", mirror(0));
    bench.story("d", "READY");
    bench.run("block-job-cancel", json!({"device": "d"}));
    assert_eq!(bench.story("d", "null"), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    assert_eq!(bench.medium("d")["node-name"], "top");
    for (command, arguments) in
        [("block-job-cancel", json!({"device": "d", "force": true})), ("job-cancel", json!({"id": "d"}))]
    {
        bench.run("blockdev-mirror", mirror(0));
        bench.story("d", "READY");
        bench.run(command, arguments);
        assert_eq!(bench.story("d", "null"), ["aborting", "CANCELLED", "concluded", "null"]);
    }
    assert_eq!(bench.node("f"), Value::Null);
    let images = bench.quit();
    assert!(images.bytes("top.qcow2") == before, "the source was written");
    images.check("copy.qcow2");
    images.same("copy.qcow2", "model.raw");
}

#[test]
fn a_child_of_a_quorum_is_replaced() {
    let images = Images::new();
    for name in ["a.raw", "b.raw", "c.raw"] {
        images.create(name, SIZE, &[]);
        images.io(name, &["write -P 1 0 1M"]);
    }
    let mut bench = Bench::start(images, &[]);
    for name in ["a", "b", "c"] {
        bench.open(name, &format!("{name}.raw"), json!({}));
    }
    let quorum =
        json!({"driver": "quorum", "node-name": "q", "vote-threshold": 2, "children": ["a", "b", "c"]});
    bench.run("blockdev-add", quorum);
    bench.images.create("new.qcow2", SIZE, &[]);
    bench.images.create("big.raw", "8M", &[]);
    bench.open("big", "big.raw", json!({}));
    bench.images.create("alone.raw", SIZE, &[]);
    bench.open("alone", "alone.raw", json!({}));
    let target = bench.images.path("new.qcow2");
    let mirror = |replaces: &str| {
        json!({"device": "q", "job-id": "j", "target": target, "sync": "full",
        "mode": "existing", "format": "qcow2", "node-name": "new", "replaces": replaces})
    };
    let mut unnamed = mirror("a");
    unnamed.as_object_mut().unwrap().remove("node-name");
    let refused = bench.refused("drive-mirror", unnamed);
    assert_eq!(
        refused,
        "GenericError: a node-name must be provided when replacing a named node of the graph"
    );
    assert_eq!(bench.refused("drive-mirror", mirror("x")), "GenericError: Node name 'x' not found");
    let size = bench.refused("drive-mirror", mirror("big"));
    assert_eq!(size, "GenericError: cannot replace image with a mirror image of different size");
    let other = bench.refused("drive-mirror", mirror("alone"));
    assert!(other.contains("Cannot replace 'alone' by a node mirrored from 'q'"), "{other}");
    assert_eq!(bench.node("new"), Value::Null);
    bench.run("drive-mirror", mirror("b"));
    bench.story("j", "READY");
    bench.run("block-job-complete", json!({"device": "j"}));
    bench.done("j");
    bench.run("blockdev-del", json!({"node-name": "b"}));
    bench.io("q", "write -P 3 1M 1M");
    let images = bench.quit();
    images.check("new.qcow2");
    images.same("new.qcow2", "a.raw");
    images.io("new.qcow2", &["read -P 1 0 1M", "read -P 3 1M 1M"]);
}

#[test]
fn what_mirrors_refuse_leaves_nothing_behind() {
    let mut bench = bench();
    bench.images.create("copy.qcow2", SIZE, &[]);
    let target = bench.images.path("copy.qcow2");
    let before = bench.run("query-named-block-nodes", json!({"flat": true}));
    let with = |more: Value| {
        let mut all = json!({"device": "d", "target": target, "sync": "full", "mode": "existing"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    let cases = [
        (json!({"device": "x"}), "Cannot find device='x' nor node-name='x'"),
        (json!({"granularity": 256}), "Parameter 'granularity' expects a value in range [512B, 64MB]"),
        (json!({"granularity": 3000}), "Parameter 'granularity' expects a power of 2"),
        (json!({"buf-size": -1}), "Invalid parameter 'buf-size'"),
        (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
        (json!({"sync": "incremental"}), "Sync mode 'incremental' not supported"),
        (json!({"format": "nonsense"}), "Invalid block format 'nonsense'"),
        (json!({"job-id": "1x"}), "Invalid job ID '1x'"),
        (json!({"target": "/nowhere/x"}), "Could not open '/nowhere/x': No such file or directory"),
        (json!({"node-name": "top"}), "Duplicate nodes with node-name='top'"),
    ];
    for (more, text) in cases {
        assert_eq!(bench.refused("drive-mirror", with(more)), format!("GenericError: {text}"));
    }
    let itself = bench.refused("blockdev-mirror", json!({"device": "d", "target": "top", "sync": "full"}));
    assert_eq!(itself, "GenericError: Can't mirror node into itself");
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    assert_eq!(bench.run("query-named-block-nodes", json!({"flat": true})), before);
    bench.quit();
}

/// Opens `copy.qcow2` as node copy over a blkdebug with these rules.
fn open_broken(bench: &mut Bench, rules: Value) {
    bench.images.create("copy.raw", SIZE, &[]);
    let file = bench.images.path("copy.raw");
    let copy = json!({"driver": "raw", "node-name": "copy", "file": {"driver": "blkdebug", "inject-error": rules,
        "image": {"driver": "file", "filename": file}}});
    bench.run("blockdev-add", copy);
}

#[test]
fn errors_of_the_target_are_met_as_the_policy_says() {
    let full = |once: bool| json!([{"event": "none", "iotype": "write", "errno": 28, "once": once}]);
    let mirror = |policy: &str| {
        json!({"device": "d", "job-id": "j", "target": "copy", "sync": "full",
        "on-target-error": policy})
    };
    let mut bench = bench();
    open_broken(&mut bench, full(false));
    bench.run("blockdev-mirror", mirror("report"));
    let story = bench.story("j", "null");
    let end = ["aborting", "COMPLETED: No space left on device", "concluded", "null"];
    assert_eq!(story[story.len() - 4..], end);
    assert!(story.contains(&"ERROR write report".to_string()), "{story:?}");
    bench.run("blockdev-del", json!({"node-name": "copy"}));
    for policy in ["stop", "enospc", "auto"] {
        open_broken(&mut bench, full(true));
        bench.run("blockdev-mirror", mirror(policy));
        assert_eq!(bench.story("j", "paused"), ["created", "running", "ERROR write stop", "paused"]);
        assert_eq!(bench.job("j")["io-status"], "nospace");
        bench.run("block-job-resume", json!({"device": "j"}));
        bench.story("j", "READY");
        assert_eq!(bench.job("j")["io-status"], "ok");
        bench.run("block-job-cancel", json!({"device": "j"}));
        bench.done("j");
        bench.run("blockdev-del", json!({"node-name": "copy"}));
        bench.images.same("copy.raw", "model.raw");
    }
    open_broken(&mut bench, full(true));
    bench.run("blockdev-mirror", mirror("ignore"));
    let story = bench.story("j", "READY");
    assert_eq!(story, ["created", "running", "ERROR write ignore", "ready", "READY"]);
    bench.run("block-job-cancel", json!({"device": "j"}));
    bench.done("j");
    bench.quit();
}

/// An image in a window of a file that is too small is full there; a larger window lets it go on.
#[test]
fn a_target_that_is_full_can_be_given_more_room() {
    let mut bench = bench();
    bench.images.create("copy.qcow2", SIZE, &[]);
    let file = bench.images.path("copy.qcow2");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(8 << 20).unwrap();
    let target = |size: u64| {
        json!({"driver": "qcow2", "node-name": "copy", "file": {"driver": "raw", "size": size,
            "file": {"driver": "file", "filename": file}}})
    };
    bench.run("blockdev-add", target(1 << 20));
    bench.run(
        "blockdev-mirror",
        json!({"device": "d", "job-id": "j", "target": "copy", "sync": "full", "on-target-error": "enospc"}),
    );
    let story = bench.story("j", "paused");
    assert_eq!(story.last().unwrap(), "paused", "{story:?}");
    assert!(story.contains(&"ERROR write stop".to_string()), "{story:?}");
    assert_eq!(bench.job("j")["io-status"], "nospace");
    bench.run("blockdev-reopen", json!({"options": [target(8 << 20)]}));
    bench.run("block-job-resume", json!({"device": "j"}));
    bench.story("j", "READY");
    bench.run("block-job-cancel", json!({"device": "j"}));
    bench.done("j");
    bench.run("blockdev-del", json!({"node-name": "copy"}));
    bench.images.same("copy.qcow2", "model.raw");
    bench.quit();
}

/// Of an image that stands on nothing, too, only what it holds is its top.
#[test]
fn the_top_of_an_image_without_backing_is_what_it_holds() {
    let images = Images::new();
    images.create("disk.qcow2", SIZE, &[]);
    images.io("disk.qcow2", &["write -P 1 1M 128k"]);
    images.create("copy.raw", SIZE, &[]);
    images.io("copy.raw", &["write -P 7 0 4M"]);
    let drive = format!("if=none,id=d,driver=qcow2,file.filename={}", images.path("disk.qcow2"));
    let mut bench = Bench::start(images, &["-drive", &drive]);
    bench.open("copy", "copy.raw", json!({}));
    bench.run("blockdev-mirror", json!({"device": "d", "job-id": "j", "target": "copy", "sync": "top"}));
    bench.story("j", "READY");
    assert_eq!(bench.job("j")["len"], 128 << 10);
    bench.run("block-job-cancel", json!({"device": "j"}));
    bench.done("j");
    let images = bench.quit();
    images.io("copy.raw", &["read -P 7 0 1M", "read -P 1 1M 128k", "read -P 7 1152k 2944k"]);
}

/// A server, and its disk as the node `far`, which waits for so many seconds when the server is lost.
fn far(bench: &mut Bench, delay: u64) -> std::process::Child {
    bench.images.create("far.raw", SIZE, &[]);
    let socket = bench.images.path("nbd");
    let server = std::process::Command::new("qemu-nbd")
        .args(["-t", "-f", "raw", "-k", &socket, "-x", "e", &bench.images.path("far.raw")])
        .spawn()
        .unwrap();
    for _ in 0..500 {
        if std::path::Path::new(&socket).exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let far = json!({"driver": "nbd", "node-name": "far", "export": "e", "reconnect-delay": delay,
        "server": {"type": "unix", "path": socket}});
    bench.run("blockdev-add", far);
    server
}

#[test]
fn a_cancelled_job_does_not_wait_for_a_lost_target() {
    for command in ["blockdev-mirror", "blockdev-backup"] {
        let mut bench = bench();
        let mut server = far(&mut bench, 3600);
        bench.run(
            command,
            json!({"device": "d", "job-id": "j", "target": "far", "sync": "full", "speed": 65536}),
        );
        bench.story("j", "running");
        server.kill().unwrap();
        server.wait().unwrap();
        bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
        bench.run("block-job-cancel", json!({"device": "j", "force": true}));
        let story = bench.story("j", "null");
        assert!(story.contains(&"CANCELLED".to_string()), "{story:?}");
        bench.io("d", "write -P 5 3M 64k");
        bench.run("blockdev-del", json!({"node-name": "far"}));
        let images = bench.quit();
        images.io("model.raw", &["write -P 5 3M 64k"]);
        images.same("top.qcow2", "model.raw");
    }
}

#[test]
fn a_target_that_disappears_ends_the_job_and_not_the_guest() {
    for copy_mode in ["background", "write-blocking"] {
        let mut bench = bench();
        let mut server = far(&mut bench, 0);
        let mirror =
            json!({"device": "d", "job-id": "j", "target": "far", "sync": "full", "copy-mode": copy_mode});
        bench.run("blockdev-mirror", mirror);
        bench.story("j", "READY");
        server.kill().unwrap();
        server.wait().unwrap();
        bench.io("d", "write -P 5 3M 64k");
        let story = bench.story("j", "null");
        assert!(story.contains(&"ERROR write report".to_string()), "{story:?}");
        let why = "COMPLETED: Input/output error".to_string();
        assert!(story.contains(&why), "{story:?}");
        assert_eq!(bench.medium("d")["node-name"], "top");
        bench.io("d", "read -P 5 3M 64k");
        bench.run("blockdev-del", json!({"node-name": "far"}));
        let images = bench.quit();
        images.io("model.raw", &["write -P 5 3M 64k"]);
        images.check("top.qcow2");
        images.same("top.qcow2", "model.raw");
    }
}

#[test]
fn a_ready_job_stands_still_before_it_ends_with_the_machine() {
    let mut bench = Bench::chain(&[]);
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    bench.run("blockdev-mirror", json!({"job-id": "m", "device": "d", "target": "copy", "sync": "full"}));
    bench.story("m", "READY");
    bench.run("quit", Value::Null);
    let story = bench.story("m", "null");
    assert_eq!(story, ["standby", "ready", "aborting", "CANCELLED", "concluded", "null"]);
    assert!(bench.vm.wait(testkit::bench::SOON).unwrap().success());
}

/// A flush of an image is one event, however often its format has the file flushed.
#[test]
fn a_flush_that_fails_at_the_end_is_tried_again() {
    for format in ["raw", "qcow2", "qed", "vhdx"] {
        let mut bench = Bench::chain(&[]);
        let copy = format!("copy.{format}");
        bench.images.create(&copy, "4M", &[]);
        let rules = json!({
            "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
            "inject-error": [{"event": "flush_to_disk", "state": 2, "immediately": true, "once": true}],
        });
        let mut file = json!({"driver": "blkdebug", "image": {"driver": "file",
            "filename": bench.images.path(&copy)}});
        file.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
        bench.run("blockdev-add", json!({"driver": format, "node-name": "copy", "file": file}));
        bench.io("d", "write -P 1 0 64k");
        let mirror = json!({"job-id": "m", "device": "d", "target": "copy", "sync": "full",
            "on-target-error": "stop"});
        bench.run("blockdev-mirror", mirror);
        assert!(!bench.story("m", "READY").iter().any(|word| word.starts_with("ERROR")), "{format}");
        bench.io("d", "write -P 2 0 64k");
        // To end cleanly, without going over to the copy.
        bench.run("block-job-cancel", json!({"device": "m"}));
        assert!(bench.story("m", "standby").iter().any(|word| word.starts_with("ERROR")), "{format}");
        bench.run("block-job-resume", json!({"device": "m"}));
        let story = bench.story("m", "null");
        assert!(story.contains(&"COMPLETED".to_string()), "{format}: {story:?}");
        let images = bench.quit();
        images.io(&copy, &["read -P 2 0 64k"]);
    }
}
