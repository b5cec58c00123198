//! Mirror, commit and stream under a Linux that writes to the disk all the while and verifies
//! what it wrote.

use serde_json::{Value, json};
use testkit::record::Plan;
use testkit::{Bench, Images, Writer};

const SIZE: &str = "32M";
/// Bytes per second of a job that is to go on for a while.
const CRAWL: u64 = 1 << 16;
const PLAN: Plan = Plan { seed: 1, threads: 2, blocks: 8192, zeros: true };

fn drive(images: &Images, name: &str) -> String {
    let format = name.rsplit('.').next().unwrap();
    let file = images.path(name);
    format!(
        "if=none,id=d,driver={format},node-name=top,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename={file}"
    )
}

/// The guest ends; what it wrote is what it knows of and is in the image.
fn ends(mut bench: Bench, writer: &Writer, image: &str) -> Images {
    let done = writer.verify(&mut bench);
    let images = bench.quit();
    writer.is_after(&done, &images.contents(image));
    images
}

#[track_caller]
fn complete(bench: &mut Bench, job: &str) {
    bench.run("block-job-complete", json!({"device": job}));
    bench.done(job);
}

/// A mirror that crawls is paused, resumed and cancelled.
fn cancelled_mirror(bench: &mut Bench, writer: &Writer) {
    let target = bench.images.path("never.raw");
    let mirror = json!({"device": "d", "job-id": "slow", "target": target, "sync": "full", "format": "raw",
        "speed": CRAWL});
    bench.run("drive-mirror", mirror);
    bench.story("slow", "running");
    bench.run("block-job-pause", json!({"device": "slow"}));
    bench.story("slow", "paused");
    let paused = bench.job("slow");
    writer.more(bench, 50);
    assert_eq!(bench.job("slow")["offset"], paused["offset"]);
    bench.run("block-job-resume", json!({"device": "slow"}));
    bench.story("slow", "running");
    bench.run("block-job-set-speed", json!({"device": "slow", "speed": 2 * CRAWL}));
    assert_eq!(bench.job("slow")["speed"], 2 * CRAWL);
    bench.run("block-job-cancel", json!({"device": "slow", "force": true}));
    assert!(bench.story("slow", "null").contains(&"CANCELLED".to_string()));
    assert_eq!(bench.medium("d")["node-name"], "top");
    writer.check(bench);
}

#[test]
fn mirrors_of_virtio_blk_with_an_iothread() {
    let images = Images::new();
    images.create("a.qcow2", SIZE, &[]);
    let drive = drive(&images, "a.qcow2");
    let args =
        ["-object", "iothread,id=t0", "-drive", &drive, "-device", "virtio-blk-pci,drive=d,iothread=t0"];
    let mut bench = Bench::boot(images, &args);
    let writer = Writer::start(&mut bench, "vda", PLAN, "");
    writer.more(&mut bench, 200);
    cancelled_mirror(&mut bench, &writer);

    // Cancelled when it is ready: a copy of that moment.
    let [copy, raw] = ["copy.qcow2", "b.raw"].map(|name| bench.images.path(name));
    bench.run("drive-mirror", json!({"device": "d", "target": copy, "sync": "full", "format": "qcow2"}));
    bench.story("d", "READY");
    bench.run("block-job-cancel", json!({"device": "d"}));
    bench.done("d");
    let copied = writer.moment(&bench.images.contents("copy.qcow2"));
    writer.more(&mut bench, 50);

    bench.run(
        "drive-mirror",
        json!({"device": "d", "target": raw, "sync": "full", "format": "raw", "node-name": "b"}),
    );
    bench.story("d", "READY");
    writer.more(&mut bench, 50);
    complete(&mut bench, "d");
    assert_eq!(bench.medium("d")["node-name"], "b");
    let left = writer.moment(&bench.images.contents("a.qcow2"));
    assert!(left > copied, "{left:?} after {copied:?}");
    bench.images.check("a.qcow2");
    writer.more(&mut bench, 50);
    assert_eq!(writer.moment(&bench.images.contents("a.qcow2")), left, "the old image is written");
    writer.check(&mut bench);

    bench.images.create("c.qcow2", SIZE, &[]);
    bench.open("c", "c.qcow2", json!({"discard": "unmap"}));
    let mirror =
        json!({"device": "d", "job-id": "j", "target": "c", "sync": "full", "copy-mode": "write-blocking"});
    bench.run("blockdev-mirror", mirror);
    bench.story("j", "READY");
    writer.more(&mut bench, 50);
    complete(&mut bench, "j");
    writer.moment(&bench.images.bytes("b.raw"));
    writer.check(&mut bench);

    let (over, top) = (bench.images.path("over.qcow2"), bench.images.path("top.qcow2"));
    bench.run("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": over}));
    writer.more(&mut bench, 50);
    bench.run("drive-mirror", json!({"device": "d", "target": top, "sync": "top"}));
    bench.story("d", "READY");
    writer.more(&mut bench, 50);
    complete(&mut bench, "d");
    writer.more(&mut bench, 50);
    assert_eq!(bench.medium("d")["backing_file"], bench.images.path("c.qcow2"));
    let images = ends(bench, &writer, "top.qcow2");
    for name in ["c.qcow2", "over.qcow2", "top.qcow2", "copy.qcow2"] {
        images.check(name);
        writer.moment(&images.contents(name));
    }
}

/// Overlays of these names, one over the other, with writes before each; what the image below
/// each holds.
fn snapshots(bench: &mut Bench, writer: &Writer, names: &[&str]) -> Vec<Vec<u64>> {
    let mut moments = Vec::new();
    for name in names {
        writer.more(bench, 60);
        let below = bench.medium("d")["file"].as_str().unwrap().rsplit('/').next().unwrap().to_string();
        let file = bench.images.path(&format!("{name}.qcow2"));
        let snapshot = json!({"device": "d", "snapshot-file": file, "format": "qcow2"});
        bench.run("blockdev-snapshot-sync", snapshot);
        moments.push(writer.moment(&bench.images.contents(&below)));
    }
    assert!(moments.is_sorted(), "{moments:?}");
    moments
}

/// Commits and streams of chains over `first`.
fn chains(first: &str, args: &[&str], disk: &str) {
    let images = Images::new();
    images.create(first, SIZE, &[]);
    let drive = drive(&images, first);
    let mut all = vec!["-drive", &drive];
    all.extend(args);
    let mut bench = Bench::boot(images, &all);
    let writer = Writer::start(&mut bench, disk, PLAN, "");
    let moments = snapshots(&mut bench, &writer, &["s1", "s2", "s3"]);
    let [a, s1, s2] = [first, "s1.qcow2", "s2.qcow2"].map(|name| bench.images.path(name));

    bench.run("block-commit", json!({"device": "d", "job-id": "j", "top": s2, "base": s1}));
    bench.done("j");
    assert_eq!(bench.medium("d")["backing_file_depth"], 2);
    assert_eq!(writer.moment(&bench.images.contents("s1.qcow2")), moments[2]);
    writer.check(&mut bench);

    bench.run("block-commit", json!({"device": "d", "job-id": "j", "speed": CRAWL}));
    bench.story("j", "running");
    writer.more(&mut bench, 20);
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.story("j", "READY");
    writer.more(&mut bench, 50);
    complete(&mut bench, "j");
    let medium = bench.medium("d");
    assert_eq!((&medium["file"], &medium["backing_file_depth"]), (&json!(a), &json!(0)));
    writer.check(&mut bench);

    // Into the middle of a chain, then all of it.
    snapshots(&mut bench, &writer, &["t1", "t2", "t3"]);
    let t1 = bench.images.path("t1.qcow2");
    bench.run("block-stream", json!({"device": "d", "job-id": "j", "base": t1}));
    bench.done("j");
    assert_eq!(bench.medium("d")["backing_file_depth"], 2);
    writer.check(&mut bench);
    bench.run("block-stream", json!({"device": "d", "job-id": "j", "speed": CRAWL}));
    bench.story("j", "running");
    writer.more(&mut bench, 20);
    // It is over if the guest has written nearly everywhere already.
    let _ = bench.vm.qmp.execute("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.done("j");
    assert_eq!(bench.medium("d")["backing_file_depth"], 0);
    writer.more(&mut bench, 50);
    let images = ends(bench, &writer, "t3.qcow2");
    images.check("t3.qcow2");
    assert_eq!(images.info("t3.qcow2")["backing-filename"], Value::Null);
    writer.moment(&images.contents("t2.qcow2"));
}

#[test]
fn chains_under_virtio_scsi() {
    chains("a.qcow2", &["-device", "virtio-scsi-pci,id=s", "-device", "scsi-hd,drive=d,bus=s.0"], "sda");
}

#[test]
fn chains_under_ide() {
    chains("a.raw", &["-device", "ide-hd,drive=d,bus=ide.0"], "sda");
}
