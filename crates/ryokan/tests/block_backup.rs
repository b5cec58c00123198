//! drive-backup and blockdev-backup over QMP: one point in time, whatever the disk does meanwhile.

use serde_json::{Value, json};
use testkit::bench::SOON;
use testkit::{Bench, Images};

/// disk.qcow2 over base.qcow2 as drive d (node disk), and model.raw as they read.
fn bench() -> Bench {
    let images = Images::new();
    images.create("base.qcow2", "4M", &[]);
    images.io("base.qcow2", &["write -P 1 0 2M"]);
    images.overlay("disk.qcow2", "base.qcow2");
    images.io("disk.qcow2", &["write -P 2 1M 2M"]);
    images.create("model.raw", "4M", &[]);
    images.io("model.raw", &["write -P 1 0 2M", "write -P 2 1M 2M"]);
    let drive =
        format!("if=none,id=d,driver=qcow2,node-name=disk,file.filename={}", images.path("disk.qcow2"));
    Bench::start(images, &["-drive", &drive])
}

fn target(bench: &mut Bench, name: &str) {
    bench.images.create(name, "4M", &[]);
    bench.open("copy", name, json!({}));
}

/// Changes all of the disk while a backup crawls, then lets it run.
fn overwrite(bench: &mut Bench, job: &str) {
    for at in (0..4096).step_by(512) {
        bench.io("d", &format!("write -P 9 {at}k 512k"));
    }
    bench.run("block-job-set-speed", json!({"device": job, "speed": 0}));
    bench.done(job);
    bench.io("d", "read -P 9 0 4M");
}

#[test]
fn a_full_backup_is_of_the_moment_it_began() {
    for workers in [1, 64] {
        let mut bench = bench();
        target(&mut bench, "copy.qcow2");
        let perf = json!({"max-workers": workers, "max-chunk": 131072, "use-copy-range": false});
        bench.run(
            "blockdev-backup",
            json!({"device": "d", "target": "copy", "sync": "full", "job-id": "j", "speed": 65536,
                "filter-node-name": "f", "x-perf": perf}),
        );
        assert_eq!(bench.node("f")["drv"], "copy-before-write");
        // It looks at the disk once the command is answered.
        let begun = std::time::Instant::now();
        while bench.job("j")["len"] != 4 << 20 {
            assert!(begun.elapsed() < SOON, "{}", bench.job("j"));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let busy = bench.refused(
            "blockdev-backup",
            json!({"device": "disk", "target": "copy", "sync": "full", "job-id": "k"}),
        );
        assert_eq!(busy, "GenericError: Node 'disk' is busy: block device is in use by block job: backup");
        overwrite(&mut bench, "j");
        assert_eq!(bench.node("f"), Value::Null);
        let images = bench.quit();
        images.check("copy.qcow2");
        images.same("copy.qcow2", "model.raw");
    }
}

#[test]
fn drive_backup_of_the_top_only_and_of_what_is_overwritten() {
    let mut bench = bench();
    let (top, none) = (bench.images.path("top.qcow2"), bench.images.path("none.qcow2"));
    bench.run("drive-backup", json!({"device": "d", "target": top, "sync": "top"}));
    let story = bench.story("d", "null");
    assert_eq!(story[..4], ["created", "running", "paused", "running"]);
    assert_eq!(story[4..], ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    bench.run("drive-backup", json!({"device": "d", "target": none, "sync": "none"}));
    bench.io("d", "write -P 9 0 4M");
    // What others had copied before they wrote is the job's work.
    assert_eq!((&bench.job("d")["offset"], &bench.job("d")["len"]), (&json!(4 << 20), &json!(4 << 20)));
    // The copy stands on the disk itself, not on what the job put over it.
    let busy = bench.refused("blockdev-del", json!({"node-name": "disk"}));
    assert!(
        busy.starts_with("GenericError: Node 'disk' is busy: node is used as backing hd of '#block"),
        "{busy}"
    );
    bench.run("block-job-cancel", json!({"device": "d"}));
    assert!(bench.story("d", "null").contains(&"CANCELLED".to_string()));
    let images = bench.quit();
    for (copy, below) in [("top.qcow2", "base.qcow2"), ("none.qcow2", "disk.qcow2")] {
        images.check(copy);
        assert_eq!(images.info(copy)["backing-filename"], images.path(below));
        images.same(copy, "model.raw");
    }
    images.io("disk.qcow2", &["read -P 9 0 4M"]);
}

#[test]
fn a_compressed_backup_is_compressed() {
    let mut bench = bench();
    let file = bench.images.path("packed.qcow2");
    bench.run("drive-backup", json!({"device": "d", "target": file, "sync": "full", "compress": true}));
    bench.done("d");
    target(&mut bench, "copy.raw");
    let refused = bench.refused(
        "blockdev-backup",
        json!({"device": "d", "target": "copy", "sync": "full", "compress": true}),
    );
    assert_eq!(refused, "GenericError: Compression is not supported for this drive copy");
    bench.images.create("packed.vmdk", "4M", &["-o", "subformat=streamOptimized"]);
    bench.open("stream", "packed.vmdk", json!({}));
    bench
        .run("blockdev-backup", json!({"device": "d", "target": "stream", "sync": "full", "compress": true}));
    bench.done("d");
    let images = bench.quit();
    images.same("packed.vmdk", "model.raw");
    images.check("packed.qcow2");
    images.same("packed.qcow2", "model.raw");
    let said = testkit::images::tool("qemu-img", &["check", "--output=json", &images.path("packed.qcow2")]);
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["compressed-clusters"], 48, "{said}");
}

#[test]
fn what_backups_refuse_leaves_nothing_behind() {
    let mut bench = bench();
    target(&mut bench, "copy.qcow2");
    bench.images.create("big.qcow2", "8M", &[]);
    bench.open("big", "big.qcow2", json!({}));
    bench.run("block-dirty-bitmap-add", json!({"node": "disk", "name": "b"}));
    let before = bench.run("query-named-block-nodes", json!({"flat": true}));
    let cases = [
        (json!({"device": "x"}), "Cannot find device='x' nor node-name='x'"),
        (json!({"target": "x"}), "Cannot find device='x' nor node-name='x'"),
        (json!({"target": "disk"}), "Source and target cannot be the same"),
        (json!({"target": "big"}), "Source and target image have different sizes"),
        (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
        (json!({"sync": "bitmap"}), "must provide a valid bitmap name for 'bitmap' sync mode"),
        (json!({"sync": "incremental"}), "must provide a valid bitmap name for 'incremental' sync mode"),
        (json!({"bitmap-mode": "never"}), "Cannot specify bitmap sync mode without a bitmap"),
        (json!({"bitmap": "b"}), "Bitmap sync mode must be given when providing a bitmap"),
        (json!({"bitmap": "c", "sync": "incremental"}), "Bitmap 'c' could not be found"),
        (
            json!({"bitmap": "b", "sync": "incremental", "bitmap-mode": "always"}),
            "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
        ),
        (
            json!({"bitmap": "b", "sync": "none", "bitmap-mode": "always"}),
            "sync mode 'none' does not produce meaningful bitmap outputs",
        ),
        (
            json!({"bitmap": "b", "bitmap-mode": "never"}),
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
        ),
        (json!({"x-perf": {"max-workers": 0}}), "max-workers must be between 1 and 2147483647"),
        (json!({"x-perf": {"max-chunk": -1}}), "max-chunk must be zero (which means no limit) or positive"),
        (
            json!({"x-perf": {"max-chunk": 4096}}),
            "Required max-chunk (4096) is less than backup cluster size (65536)",
        ),
        (json!({"filter-node-name": "copy"}), "Could not create node: Duplicate nodes with node-name='copy'"),
    ];
    for (more, text) in cases {
        let mut all = json!({"device": "d", "target": "copy", "sync": "full"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        assert_eq!(bench.refused("blockdev-backup", all), format!("GenericError: {text}"));
    }
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    assert_eq!(bench.run("query-named-block-nodes", json!({"flat": true})), before);
    bench.io("d", "write 0 64k");
    bench.quit();
}

#[test]
fn a_target_without_space_and_a_bad_source() {
    let mut bench = bench();
    bench.images.create("copy.raw", "4M", &[]);
    let file = bench.images.path("copy.raw");
    let rule = json!([{"event": "none", "iotype": "write", "errno": 28, "once": true, "sector": 2048}]);
    let copy = json!({"driver": "raw", "node-name": "copy", "file": {"driver": "blkdebug", "inject-error": rule,
        "image": {"driver": "file", "filename": file}}});
    let backup = |policy: &str| {
        json!({"device": "d", "job-id": "j", "target": "copy", "sync": "full",
        "on-target-error": policy, "auto-dismiss": false})
    };
    bench.run("blockdev-add", copy.clone());
    bench.run("blockdev-backup", backup("report"));
    let story = bench.story("j", "concluded");
    let end = ["ERROR write report", "aborting", "COMPLETED: No space left on device", "concluded"];
    assert_eq!(story[4..], end);
    let ended = json!([{"id": "j", "type": "backup", "status": "concluded", "current-progress": 0,
        "total-progress": 4 << 20, "error": "No space left on device"}]);
    let mut told = bench.run("query-jobs", Value::Null);
    told[0]["current-progress"] = 0.into();
    assert_eq!(told, ended);
    bench.run("job-dismiss", json!({"id": "j"}));
    bench.story("j", "null");
    bench.run("blockdev-del", json!({"node-name": "copy"}));
    for policy in ["enospc", "ignore"] {
        bench.run("blockdev-add", copy.clone());
        bench.run("blockdev-backup", backup(policy));
        if policy == "enospc" {
            assert_eq!(bench.story("j", "paused"), ["created", "running", "paused"]);
            assert_eq!(bench.story("j", "paused"), ["running", "ERROR write stop", "paused"]);
            assert_eq!(bench.job("j")["io-status"], "nospace");
            // Guest writes are still safe.
            bench.io("d", "write -P 9 3M 64k");
            bench.run("job-resume", json!({"id": "j"}));
        }
        let story = bench.story("j", "concluded");
        assert!(story.contains(&"COMPLETED".to_string()), "{story:?}");
        bench.run("block-job-dismiss", json!({"id": "j"}));
        bench.run("blockdev-del", json!({"node-name": "copy"}));
        bench.images.same("copy.raw", "model.raw");
        bench.images.io("model.raw", &["write -P 9 3M 64k"]);
    }
    bench.quit();
}

#[test]
fn a_guest_write_waits_for_the_copy_and_fails_with_it() {
    let mut bench = bench();
    bench.images.create("copy.raw", "4M", &[]);
    let file = bench.images.path("copy.raw");
    let rule = json!([{"event": "none", "iotype": "write", "errno": 5}]);
    let copy = json!({"driver": "raw", "node-name": "copy", "file": {"driver": "blkdebug", "inject-error": rule,
        "image": {"driver": "file", "filename": file}}});
    bench.run("blockdev-add", copy);
    bench.run("blockdev-backup", json!({"device": "d", "job-id": "j", "target": "copy", "sync": "none"}));
    let said = bench.try_io("d", "write -P 9 0 64k");
    assert!(said.contains("write failed: Input/output error"), "{said}");
    bench.io("d", "read -P 1 0 64k");
    bench.run("job-cancel", json!({"id": "j"}));
    bench.story("j", "null");
    bench.io("d", "write -P 9 0 64k");
    let images = bench.quit();
    images.check("disk.qcow2");
}

/// Whoever writes past the filter would spoil the copy: it is refused before and after the start.
#[test]
fn nobody_writes_past_a_backup_of_an_unused_node() {
    let images = Images::new();
    images.create("disk.qcow2", "4M", &[]);
    images.io("disk.qcow2", &["write -P 1 0 4M"]);
    images.copy("disk.qcow2", "model.qcow2");
    let mut bench = Bench::start(images, &[]);
    bench.open("disk", "disk.qcow2", json!({}));
    target(&mut bench, "copy.qcow2");
    let backup = json!({"device": "disk", "target": "copy", "sync": "full", "job-id": "j", "speed": 65536,
        "filter-node-name": "f"});
    bench.run("blockdev-backup", backup);
    let unshared = "and unshared by node 'f' (uses node 'disk' as 'file' child).";
    let conflict = |user: &str| {
        format!(
            "Permission conflict on node 'disk': permissions 'write' are both required by {user} (uses node \
            'disk' as 'root' child) {unshared}"
        )
    };
    let said = bench.try_io("disk", "write -P 9 2M 64k");
    assert!(said.contains(&conflict("an unnamed block device")), "{said}");
    let socket = bench.images.path("nbd");
    bench.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    let said = bench.refused("block-export-add", export);
    assert_eq!(said, format!("GenericError: {}", conflict("an unnamed block device")));
    for share in [false, true] {
        let device = json!({"driver": "virtio-blk-pci", "id": "v", "drive": "disk", "share-rw": share});
        let said = bench.refused("device_add", device);
        let user = conflict("block device '/machine/peripheral/v/virtio-backend'");
        assert_eq!(said, format!("GenericError: {user}"));
    }
    bench.run("blockdev-add", json!({"driver": "raw", "node-name": "over", "file": "disk"}));
    let said = bench.try_io("over", "write -P 9 2M 64k");
    assert!(said.contains(unshared), "{said}");
    // Reading is everybody's, and writing through the filter too.
    bench.io("disk", "read -P 1 2M 64k");
    bench.io("f", "write -P 9 0 2M");
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.done("j");
    bench.io("disk", "write -P 9 2M 64k");
    let images = bench.quit();
    images.same("copy.qcow2", "model.qcow2");
}
