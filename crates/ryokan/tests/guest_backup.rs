//! Backups, snapshots and exports under a Linux that writes to the disk all the while: each is
//! of one moment.

use serde_json::{Value, json};
use testkit::images::tool;
use testkit::linux::BOOT;
use testkit::record::Plan;
use testkit::{Bench, Images, Writer};

const SIZE: &str = "32M";
/// Bytes per second of a job that is to go on for a while.
const CRAWL: u64 = 1 << 16;
const PLAN: Plan = Plan { seed: 2, threads: 2, blocks: 8192, zeros: true };

/// A drive `id` over the image, not in a device yet.
fn drive(images: &Images, id: &str, name: &str) -> String {
    let format = name.rsplit('.').next().unwrap();
    let file = images.path(name);
    format!("if=none,id={id},driver={format},discard=unmap,file.driver=file,file.filename={file}")
}

/// What is marked in bitmap `b` of drive `d`.
fn bitmap(bench: &mut Bench) -> Value {
    let medium = bench.medium("d");
    let list = medium["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|one| one["name"] == "b").unwrap_or_default()
}

fn increment(target: &str) -> Value {
    json!({"device": "d", "job-id": "j", "target": target, "sync": "incremental", "bitmap": "b"})
}

/// Full backup with a new bitmap, three increments over it, one that fails and one more.
fn chain_of_backups(disk: &str, args: &[&str], device: &str) {
    let images = Images::new();
    images.create(disk, SIZE, &[]);
    let drive = drive(&images, "d", disk);
    let mut all = vec!["-drive", &drive];
    all.extend(args);
    let mut bench = Bench::boot(images, &all);
    let writer = Writer::start(&mut bench, device, PLAN, "");
    writer.more(&mut bench, 200);

    let full = bench.images.path("full.qcow2");
    let backup = json!({"device": "d", "job-id": "j", "target": full, "sync": "full", "format": "qcow2", "speed": CRAWL});
    let both = json!({"actions": [
        {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b"}},
        {"type": "drive-backup", "data": backup}]});
    bench.run("transaction", both);
    bench.story("j", "running");
    writer.more(&mut bench, 20);
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.done("j");
    bench.images.check("full.qcow2");
    let mut moments = vec![writer.moment(&bench.images.contents("full.qcow2"))];

    let mut below = "full.qcow2".to_string();
    for round in 1..=3 {
        writer.more(&mut bench, 60);
        let name = format!("i{round}.qcow2");
        let target = bench.images.overlay(&name, &below);
        let mut backup = increment(&target);
        backup["mode"] = "existing".into();
        if round == 3 {
            backup["speed"] = json!(CRAWL);
            bench.run("stop", Value::Null);
            bench.vm.qmp.event("STOP", BOOT).unwrap();
            std::fs::write(bench.images.path("then.raw"), bench.images.contents(disk)).unwrap();
        }
        bench.run("drive-backup", backup);
        if round == 3 {
            bench.run("cont", Value::Null);
            writer.more(&mut bench, 20);
            bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
        }
        bench.done("j");
        bench.images.check(&name);
        moments.push(writer.moment(&bench.images.contents(&name)));
        below = name;
    }
    assert!(moments.is_sorted(), "{moments:?}");
    bench.images.same("i3.qcow2", "then.raw");

    // No space for the fourth: the bitmap keeps all that it had.
    writer.more(&mut bench, 60);
    bench.images.create("broken.raw", SIZE, &[]);
    let file = bench.images.path("broken.raw");
    let rules = json!([{"event": "none", "iotype": "write", "errno": 28}]);
    bench.run(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "broken", "file": {"driver": "blkdebug",
        "inject-error": rules, "image": {"driver": "file", "filename": file}}}),
    );
    let before = bitmap(&mut bench)["count"].as_u64().unwrap();
    let mut backup = increment("broken");
    backup["on-target-error"] = "stop".into();
    bench.run("blockdev-backup", backup);
    bench.story("j", "ERROR write stop");
    // A guest's write whose old data cannot be saved fails, which stops the machine.
    let stop = bench.vm.qmp.event("BLOCK_IO_ERROR", BOOT).unwrap();
    assert_eq!((&stop["data"]["action"], &stop["data"]["nospace"]), (&json!("stop"), &json!(true)));
    bench.vm.qmp.event("STOP", BOOT).unwrap();
    bench.run("block-job-cancel", json!({"device": "j", "force": true}));
    assert!(bench.story("j", "null").contains(&"CANCELLED".to_string()));
    bench.run("cont", Value::Null);
    let after = bitmap(&mut bench);
    assert!(after["count"].as_u64().unwrap() >= before && before > 0, "{before} and then {after}");
    assert_eq!((&after["busy"], &after["recording"]), (&json!(false), &json!(true)));
    writer.check(&mut bench);
    bench.images.overlay("i4.qcow2", "i3.qcow2");
    bench.open("i4", "i4.qcow2", json!({}));
    bench.run("blockdev-backup", increment("i4"));
    bench.done("j");
    bench.run("blockdev-del", json!({"node-name": "i4"}));
    let last = writer.moment(&bench.images.contents("i4.qcow2"));
    assert!(last > moments[3]);
    let done = writer.verify(&mut bench);
    let images = bench.quit();
    images.check("i4.qcow2");
    writer.is_after(&done, &images.contents(disk));
}

#[test]
fn increments_of_a_qcow2_under_ide() {
    chain_of_backups("disk.qcow2", &["-device", "ide-hd,drive=d,bus=ide.0"], "sda");
}

#[test]
fn increments_of_a_raw_disk_under_virtio_blk() {
    chain_of_backups("disk.raw", &["-device", "virtio-blk-pci,drive=d"], "vda");
}

/// Of two disks that get each request one after the other, these are of one moment.
#[track_caller]
fn together(writer: &Writer, one: &[u8], other: &[u8]) -> Vec<u64> {
    let (first, second) = (writer.moment(one), writer.moment(other));
    for (first, second) in first.iter().zip(&second) {
        assert!(*first == *second || *first == second + 1, "{first} requests on one, {second} on the other");
    }
    first
}

/// A snapshot inside of an image, as it reads.
fn inside(images: &Images, name: &str, snapshot: &str) -> Vec<u8> {
    let (from, to) = (images.path(name), images.path("inside"));
    let snapshot = format!("snapshot.name={snapshot}");
    tool("qemu-img", &["convert", "-U", "-l", &snapshot, "-f", "qcow2", "-O", "raw", &from, &to]);
    let bytes = images.bytes("inside");
    images.remove("inside");
    bytes
}

/// Reads an export of the machine's NBD server.
fn export(images: &Images, name: &str) -> Vec<u8> {
    let to = images.path("exported");
    let _ = std::fs::remove_file(&to);
    tool("nbdcopy", &[&format!("nbd+unix:///{name}?socket={}", images.path("nbd")), &to]);
    images.bytes("exported")
}

#[test]
fn two_disks_are_kept_of_one_moment() {
    // Zeros at the end would hide how many requests there were.
    let plan = Plan { zeros: false, ..PLAN };
    let images = Images::new();
    for name in ["x.qcow2", "y.qcow2"] {
        images.create(name, SIZE, &[]);
    }
    let (x, y) = (drive(&images, "x", "x.qcow2"), drive(&images, "y", "y.qcow2"));
    let scsi = ["-device", "virtio-scsi-pci,id=s", "-device", "scsi-hd,drive=y,bus=s.0"];
    let mut args = vec!["-drive", &x, "-drive", &y, "-device", "virtio-blk-pci,drive=x"];
    args.extend(scsi);
    let mut bench = Bench::boot(images, &args);
    let writer = Writer::start(&mut bench, "vda,sda", plan, "");
    let both = |kind: &str, one: Value, other: Value| json!({"actions": [{"type": kind, "data": one}, {"type": kind, "data": other}]});

    // Snapshots inside of the images.
    for name in ["early", "late"] {
        writer.more(&mut bench, 100);
        let one = |device: &str| json!({"device": device, "name": name});
        bench.run("transaction", both("blockdev-snapshot-internal-sync", one("x"), one("y")));
    }
    writer.more(&mut bench, 50);
    for device in ["x", "y"] {
        let gone =
            bench.run("blockdev-snapshot-delete-internal-sync", json!({"device": device, "name": "early"}));
        assert_eq!(gone["name"], "early");
    }
    writer.check(&mut bench);

    // Point-in-time exports of both, which are read while the guest goes on.
    bench.run(
        "nbd-server-start",
        json!({"addr": {"type": "unix", "data": {"path": bench.images.path("nbd")}}}),
    );
    for disk in ["x", "y"] {
        let name = format!("f{disk}.qcow2");
        bench.images.create(&name, SIZE, &[]);
        let live = bench.medium(disk)["node-name"].clone();
        bench.open(&format!("f{disk}"), &name, json!({"backing": live}));
    }
    let none = |disk: &str| json!({"device": disk, "job-id": format!("j{disk}"), "target": format!("f{disk}"), "sync": "none"});
    bench.run("transaction", both("blockdev-backup", none("x"), none("y")));
    for disk in ["fx", "fy"] {
        bench.run("nbd-server-add", json!({"device": disk}));
    }
    writer.more(&mut bench, 50);
    let (one, other) = (export(&bench.images, "fx"), export(&bench.images, "fy"));
    let exported = together(&writer, &one, &other);
    writer.more(&mut bench, 100);
    assert!(export(&bench.images, "fx") == one && export(&bench.images, "fy") == other, "the export changed");
    assert!(writer.progress(&mut bench) > exported);
    bench.run("nbd-server-stop", Value::Null);
    for disk in ["x", "y"] {
        bench.run("block-job-cancel", json!({"device": format!("j{disk}")}));
        bench.story(&format!("j{disk}"), "null");
        bench.run("blockdev-del", json!({"node-name": format!("f{disk}")}));
    }
    writer.check(&mut bench);

    // Overlays over both at once.
    let over = |device: &str| json!({"device": device, "snapshot-file": bench.images.path(&format!("{device}1.qcow2"))});
    let actions = both("blockdev-snapshot-sync", over("x"), over("y"));
    bench.run("transaction", actions);
    writer.more(&mut bench, 50);
    let done = writer.verify(&mut bench);
    let images = bench.quit();
    for name in ["x.qcow2", "y.qcow2", "x1.qcow2", "y1.qcow2"] {
        images.check(name);
    }
    let late = together(&writer, &inside(&images, "x.qcow2", "late"), &inside(&images, "y.qcow2", "late"));
    let below = together(&writer, &images.contents("x.qcow2"), &images.contents("y.qcow2"));
    assert!(late < exported && exported < below && below < done, "{late:?} {exported:?} {below:?} {done:?}");
    for name in ["x1.qcow2", "y1.qcow2"] {
        writer.is_after(&done, &images.contents(name));
    }
}
