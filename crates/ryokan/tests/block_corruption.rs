//! qcow2 images whose metadata contradict themselves, and such that were left dirty.

use serde_json::{Value, json};
use std::io::{Seek, SeekFrom, Write};
use testkit::bench::SOON;
use testkit::{Bench, Images};

/// Where things lie in a fresh image of 64 KiB clusters with 1 MiB written.
const L1_TABLE: u64 = 3 << 16;
const L2_TABLE: u64 = 4 << 16;

/// The drive `d` on an image with a word overwritten.
fn bench(at: u64, word: u64, more: &str) -> Bench {
    let images = Images::new();
    images.create("disk.qcow2", "4M", &[]);
    images.io("disk.qcow2", &["write -P 1 0 1M"]);
    let path = images.path("disk.qcow2");
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&word.to_be_bytes()).unwrap();
    let drive = format!("if=none,id=d,driver=qcow2,node-name=disk,file.filename={path}{more}");
    Bench::start(images, &["-drive", &drive])
}

fn is_corrupt(images: &Images) -> bool {
    images.info("disk.qcow2")["format-specific"]["data"]["corrupt"] == json!(true)
}

#[test]
fn a_write_over_metadata_is_prevented_and_the_image_marked() {
    let mut bench = bench(L2_TABLE, 1 << 63 | L1_TABLE, "");
    let said = bench.try_io("d", "write 0 4k");
    assert!(said.contains("write failed: Input/output error"), "{said}");
    let event = bench.vm.qmp.event("BLOCK_IMAGE_CORRUPTED", SOON).unwrap();
    assert_eq!(
        event["data"],
        json!({
            "device": "d", "node-name": "disk", "fatal": true, "offset": L1_TABLE, "size": 4096,
            "msg": "Preventing invalid write on metadata (overlaps with active L1 table)"
        })
    );
    // Nothing goes any more, and it is told once.
    for command in ["read 64k 4k", "write 2M 4k"] {
        let said = bench.try_io("d", command);
        assert!(said.contains("failed: No medium found"), "{said}");
    }
    assert!(!bench.vm.qmp.take_events().contains(&"BLOCK_IMAGE_CORRUPTED".to_string()));
    let path = bench.images.path("disk.qcow2");
    let images = bench.quit();
    assert!(is_corrupt(&images));
    let mut again = Bench::start(images, &[]);
    let open = |read_only: bool| {
        json!({"driver": "qcow2", "node-name": "n", "read-only": read_only,
            "file": {"driver": "file", "filename": path}})
    };
    let refused = again.refused("blockdev-add", open(false));
    assert_eq!(refused, "GenericError: qcow2: Image is corrupt; cannot be opened read/write");
    again.run("blockdev-add", open(true));
    again.io("n", "read -P 1 64k 64k");
    again.quit();
}

#[test]
fn entries_that_lead_nowhere_are_told_of_by_their_place() {
    for (at, word, text) in [
        (
            L2_TABLE + 16 * 8,
            1 << 63 | 0x50200,
            "Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0x10)",
        ),
        (L1_TABLE, 1 << 63 | 0x42a00, "L2 table offset 0x42a00 unaligned (L1 index: 0)"),
    ] {
        let mut bench = bench(at, word, "");
        assert!(bench.try_io("d", "read 1M 4k").contains("read failed"), "{text}");
        let event = bench.vm.qmp.event("BLOCK_IMAGE_CORRUPTED", SOON).unwrap();
        assert_eq!(event["data"], json!({"device": "d", "node-name": "disk", "fatal": true, "msg": text}));
        assert!(is_corrupt(&bench.quit()));
    }
}

#[test]
fn what_is_only_read_is_told_of_once_and_stays() {
    let mut bench = bench(L2_TABLE, 1 << 63 | 0x50200, ",read-only=on");
    for _ in 0..2 {
        let said = bench.try_io("d", "read 0 4k");
        assert!(said.contains("read failed: Input/output error"), "{said}");
    }
    bench.io("d", "read -P 1 64k 64k");
    assert_eq!(bench.vm.qmp.event("BLOCK_IMAGE_CORRUPTED", SOON).unwrap()["data"]["fatal"], json!(false));
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    assert!(!bench.vm.qmp.take_events().contains(&"BLOCK_IMAGE_CORRUPTED".to_string()));
    assert!(!is_corrupt(&bench.quit()));
}

#[test]
fn an_image_left_dirty_is_repaired_by_its_next_writer() {
    let images = Images::new();
    images.create("disk.qcow2", "4M", &["-o", "lazy_refcounts=on"]);
    let path = images.path("disk.qcow2");
    // qemu-io ends itself without closing the image.
    let ended = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "abort", &path])
        .output()
        .unwrap();
    assert!(!ended.status.success());
    assert_eq!(images.info("disk.qcow2")["dirty-flag"], json!(true));
    let mut bench = Bench::start(images, &[]);
    bench.open("ro", "disk.qcow2", json!({"read-only": true}));
    assert_eq!(bench.node("ro")["image"]["dirty-flag"], json!(true));
    bench.run("blockdev-del", json!({"node-name": "ro"}));
    bench.open("rw", "disk.qcow2", json!({}));
    bench.io("rw", "read -P 1 0 1M");
    bench.io("rw", "write -P 2 2M 64k");
    let images = bench.quit();
    images.check("disk.qcow2");
    assert_eq!(images.info("disk.qcow2")["dirty-flag"], json!(false));
    images.io("disk.qcow2", &["read -P 1 0 1M", "read -P 2 2M 64k"]);
}
