//! Resizing, headers, thresholds, exports, and the block commands of the human monitor.

use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use testkit::bench::SOON;
use testkit::images::tool;
use testkit::{Bench, Images};

/// A line of the human monitor; what it printed, lines ending in a plain newline.
#[track_caller]
fn say(bench: &mut Bench, line: &str) -> String {
    bench.vm.qmp.hmp(line).unwrap().replace("\r\n", "\n")
}

#[test]
fn resizing_by_device_and_by_node() {
    let mut bench = Bench::chain(&["-device", "virtio-blk-pci,drive=d"]);
    bench.run("block_resize", json!({"device": "d", "size": 8 << 20}));
    assert_eq!(bench.medium("d")["image"]["virtual-size"], json!(8 << 20));
    assert_eq!(say(&mut bench, "block_resize d 9"), "");
    bench.run("block_resize", json!({"node-name": "top", "size": 10 << 20}));
    assert_eq!(bench.medium("d")["image"]["virtual-size"], json!(10 << 20));
    for (asked, text) in [
        (json!({"node-name": "top-file", "size": 512}), "The feature 'resize' is not enabled"),
        (json!({"node-name": "base", "size": 512}), "The feature 'resize' is not enabled"),
        (json!({"device": "d", "size": -1}), "Parameter 'size' expects a >0 size"),
        (json!({"device": "x", "size": 1}), "Cannot find device='x' nor node-name=''"),
    ] {
        assert_eq!(bench.refused("block_resize", asked), format!("GenericError: {text}"));
    }
    let images = bench.quit();
    images.check("top.qcow2");
    assert_eq!(images.info("top.qcow2")["virtual-size"], json!(10 << 20));
    images.io("top.qcow2", &["read -P 2 512k 512k", "read -P 0 4M 6M"]);
}

#[test]
fn the_backing_file_name_is_rewritten() {
    let mut bench = Bench::chain(&[]);
    let other = bench.images.path("other.qcow2");
    bench.images.copy("base.qcow2", "other.qcow2");
    let asked = |node: &str| json!({"device": "d", "image-node-name": node, "backing-file": other});
    bench.run("change-backing-file", asked("top"));
    assert_eq!(bench.images.info("top.qcow2")["backing-filename"], json!(other));
    assert_eq!(bench.images.info("top.qcow2")["backing-filename-format"], json!("qcow2"));
    let still = bench.images.path("base.qcow2");
    assert_eq!(bench.node("base")["file"], json!(still), "what is open stays open");
    assert_eq!(
        bench.refused("change-backing-file", asked("base")),
        "GenericError: not allowing backing file change on an image without a backing file"
    );
    let nobody = json!({"device": "x", "image-node-name": "top", "backing-file": "y"});
    assert_eq!(bench.refused("change-backing-file", nobody), "DeviceNotFound: Device 'x' not found");
    bench.images.overlay("far.qcow2", "other.qcow2");
    let far = bench.images.path("far.qcow2");
    bench.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "far", "file": {"driver": "file", "filename": far}}),
    );
    assert_eq!(
        bench.refused("change-backing-file", asked("far")),
        "GenericError: 'd' and image file are not in the same chain"
    );
    let images = bench.quit();
    images.check("top.qcow2");
    images.io("top.qcow2", &["read -P 1 0 512k", "read -P 2 512k 512k"]);
}

#[test]
fn a_write_threshold_is_told_once() {
    let mut bench = Bench::chain(&[]);
    bench.run("block-set-write-threshold", json!({"node-name": "top", "write-threshold": 1 << 20}));
    assert_eq!(bench.node("top")["write_threshold"], json!(1 << 20));
    bench.io("d", "write 1000k 64k");
    let event = bench.vm.qmp.event("BLOCK_WRITE_THRESHOLD", SOON).unwrap();
    assert_eq!(
        event["data"],
        json!({"node-name": "top", "write-threshold": 1 << 20, "amount-exceeded": (1064 << 10) - (1 << 20)})
    );
    assert_eq!(bench.node("top")["write_threshold"], json!(0));
    let why = bench.refused("block-set-write-threshold", json!({"node-name": "x", "write-threshold": 1}));
    assert_eq!(why, "GenericError: Device 'x' not found");
    bench.quit();
}

fn server(bench: &mut Bench, more: Value) -> String {
    let path = bench.images.path("nbd");
    let mut asked = json!({"addr": {"type": "unix", "data": {"path": path}}});
    more.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
    bench.run("nbd-server-start", asked);
    path
}

#[test]
fn exports_come_and_go() {
    let mut bench = Bench::chain(&["-object", "iothread,id=io"]);
    let add = |more: Value| {
        let mut asked = json!({"type": "nbd", "id": "e", "node-name": "top", "name": "disk"});
        more.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
        asked
    };
    assert_eq!(bench.refused("block-export-add", add(json!({}))), "GenericError: NBD server not running");
    assert_eq!(bench.run("query-block-exports", Value::Null), json!([]));
    let socket = server(&mut bench, json!({}));
    bench.run("block-dirty-bitmap-add", json!({"node": "top", "name": "b", "disabled": true}));
    let all = json!({"writable": true, "iothread": "io", "bitmaps": ["b"], "allocation-depth": true,
        "writethrough": true, "description": "a disk"});
    bench.run("block-export-add", add(all));
    assert_eq!(
        bench.run("query-block-exports", Value::Null),
        json!([{"id": "e", "type": "nbd", "node-name": "top", "shutting-down": false}])
    );
    for (more, text) in [
        (json!({}), "Block export id 'e' is already in use"),
        (json!({"id": "f"}), "NBD server already has export named 'disk'"),
        (json!({"name": "x"}), "Block export id 'e' is already in use"),
        (json!({"id": "1x"}), "Invalid block export id"),
        (json!({"id": "f", "node-name": "x"}), "Cannot find device='' nor node-name='x'"),
        (
            json!({"id": "f", "name": "y", "node-name": "base", "writable": true}),
            "Cannot export read-only node as writable",
        ),
        (json!({"id": "f", "name": "y", "bitmaps": ["none"]}), "Bitmap 'none' is not found"),
        (json!({"id": "f", "name": "y", "iothread": "none"}), "iothread \"none\" not found"),
    ] {
        assert_eq!(bench.refused("block-export-add", add(more)), format!("GenericError: {text}"));
    }
    let busy = bench.refused("object-del", json!({"id": "io"}));
    assert!(busy.contains("in use"), "{busy}");
    let uri = format!("nbd+unix:///disk?socket={socket}");
    let told = tool("nbdinfo", &[&uri]);
    for part in ["qemu:dirty-bitmap:b", "qemu:allocation-depth", "base:allocation", "a disk"] {
        assert!(told.contains(part), "{told}");
    }
    tool("qemu-io", &["-f", "raw", "-c", "write -P 9 2M 64k", &uri]);
    bench.io("d", "read -P 9 2M 64k");
    bench.run("block-export-del", json!({"id": "e"}));
    let gone = bench.vm.qmp.event("BLOCK_EXPORT_DELETED", SOON).unwrap();
    assert_eq!(gone["data"], json!({"id": "e"}));
    assert_eq!(
        bench.refused("block-export-del", json!({"id": "e"})),
        "GenericError: Export 'e' is not found"
    );
    bench.run("object-del", json!({"id": "io"}));
    bench.run("nbd-server-stop", Value::Null);
    bench.quit();
}

/// What a client gets within half a second of connecting.
fn greeting(socket: &str) -> (UnixStream, usize) {
    let mut client = UnixStream::connect(socket).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut hello = [0; 18];
    let got = client.read(&mut hello).unwrap_or(0);
    (client, got)
}

#[test]
fn more_clients_than_allowed_wait_for_their_turn() {
    let mut bench = Bench::chain(&[]);
    let socket = server(&mut bench, json!({"max-connections": 2}));
    let (first, one) = greeting(&socket);
    let (_second, two) = greeting(&socket);
    let (mut third, three) = greeting(&socket);
    assert_eq!((one, two, three), (18, 18, 0));
    drop(first);
    third.set_read_timeout(Some(SOON)).unwrap();
    third.read_exact(&mut [0; 18]).unwrap();
    bench.quit();
}

#[test]
fn an_export_of_a_drive_goes_with_its_medium() {
    let mut bench = Bench::chain(&[]);
    let socket = server(&mut bench, json!({}));
    assert_eq!(say(&mut bench, "nbd_server_add -w d disk"), "");
    let uri = format!("nbd+unix:///disk?socket={socket}");
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64k", &uri]);
    bench.io("d", "read -P 7 0 64k");
    assert_eq!(say(&mut bench, "nbd_server_remove quux"), "Error: Export 'quux' is not found\n");
    assert_eq!(say(&mut bench, "eject d"), "");
    let gone = bench.vm.qmp.event("BLOCK_EXPORT_DELETED", SOON).unwrap();
    assert_eq!(gone["data"]["id"], json!("disk"));
    assert_eq!(say(&mut bench, "nbd_server_stop"), "");
    assert_eq!(say(&mut bench, "nbd_server_start -w unix:/tmp/x"), "Error: -w only valid together with -a\n");
    let images = bench.quit();
    images.check("top.qcow2");
}

#[test]
fn all_disks_are_exported_by_one_command() {
    let mut bench = Bench::chain(&[]);
    let socket = bench.images.path("nbd");
    assert_eq!(say(&mut bench, &format!("nbd_server_start -a -w unix:{socket}")), "");
    let told = tool("nbdinfo", &["--list", &format!("nbd+unix:///?socket={socket}")]);
    assert!(told.contains("export=\"d\"") && told.contains("is_read_only: false"), "{told}");
    bench.quit();
}

#[test]
fn drives_are_added_and_removed_by_hand() {
    let mut bench = Bench::start(Images::new(), &[]);
    let file = bench.images.create("a,b.raw", "1M", &[]).replace(',', ",,");
    assert_eq!(say(&mut bench, &format!("drive_add 0 if=none,id=x,format=raw,file={file}")), "OK\n");
    assert_eq!(
        say(&mut bench, &format!("drive_add 0 if=none,id=x,format=raw,file={file}")),
        "Device with id 'x' already exists\n"
    );
    assert_eq!(say(&mut bench, "drive_add 0 if=virtio,id=y"), "Can't hot-add drive to type 7\n");
    bench.run("device_add", json!({"driver": "virtio-blk-pci", "id": "v", "drive": "x"}));
    assert_eq!(say(&mut bench, "drive_del x"), "");
    assert_eq!(say(&mut bench, "drive_del x"), "Device 'x' not found\n");
    let left = bench.run("query-block", Value::Null)[0].clone();
    let front = json!("/machine/peripheral/v/virtio-backend");
    assert_eq!((&left["device"], &left["qdev"], left["inserted"].is_null()), (&json!(""), &front, true));
    assert_eq!(say(&mut bench, "drive_add -n 0 driver=null-co,node-name=n,size=65536"), "");
    assert_eq!(bench.node("n")["drv"], json!("null-co"));
    let named = r#"n: json:{"driver": "null-co", "size": "65536"} (null-co)"#;
    assert_eq!(say(&mut bench, "info block -n n").lines().next().unwrap(), named);
    assert_eq!(say(&mut bench, "drive_del n"), "");
    assert!(bench.node("n").is_null());
    bench.quit();
}

#[test]
fn snapshots_by_hand() {
    let mut bench = Bench::chain(&[]);
    assert_eq!(say(&mut bench, "info snapshots"), "There is no snapshot available.\n");
    assert_eq!(say(&mut bench, "snapshot_blkdev_internal d s0"), "");
    let told = say(&mut bench, "info snapshots");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], "List of snapshots present on all disks:");
    assert_eq!(lines[1], "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT");
    assert!(
        lines[2].starts_with("--        s0                    0 B ") && lines[2].ends_with("00:00:00.000"),
        "{told}"
    );
    assert_eq!(say(&mut bench, "snapshot_delete_blkdev_internal d s0"), "");
    assert_eq!(
        say(&mut bench, "snapshot_delete_blkdev_internal d s0"),
        "Error: Snapshot with id '(null)' and name 's0' does not exist on device 'd'\n"
    );
    assert_eq!(say(&mut bench, "snapshot_blkdev d"), "Error: Parameter 'snapshot-file' is missing\n");
    let new = bench.images.path("new.qcow2");
    let said = say(&mut bench, &format!("snapshot_blkdev d {new} qcow2"));
    assert!(!said.contains("Error"), "{said}");
    assert_eq!(bench.medium("d")["file"], json!(new));
    let shown = say(&mut bench, "info block -v d");
    for part in [
        "    Backing file:     ",
        "(chain depth: 2)",
        "virtual size: 4 MiB (4194304 bytes)",
        "    compat: 1.1\n",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    let images = bench.quit();
    images.check("top.qcow2");
    images.check("new.qcow2");
}

#[test]
fn committing_by_hand() {
    let mut bench = Bench::chain(&["-drive", "if=none,id=e"]);
    for (disk, text) in [("x", "Device 'x' not found"), ("e", "Device 'e' has no medium")] {
        assert_eq!(say(&mut bench, &format!("commit {disk}")), format!("{text}\n"));
    }
    bench.io("d", "write -P 3 2M 64k");
    assert_eq!(say(&mut bench, "commit d"), "");
    // All is below now, and the image itself is empty and can be written.
    assert!(bench.io("d", "map").starts_with("4 MiB (0x400000) bytes not allocated"));
    bench.io("d", "read -P 1 0 512k");
    bench.io("d", "read -P 2 512k 512k");
    assert_eq!(bench.node("base")["ro"], json!(true));
    bench.io("d", "write -P 4 3M 64k");
    assert_eq!(say(&mut bench, "commit all"), "");
    bench.io("d", "read -P 4 3M 64k");
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    bench.run("blockdev-backup", json!({"device": "d", "target": "copy", "sync": "none"}));
    assert_eq!(say(&mut bench, "commit d"), "'commit' error for 'd': Device or resource busy\n");
    let images = bench.quit();
    for name in ["base.qcow2", "top.qcow2"] {
        images.check(name);
    }
    images.io("base.qcow2", &["read -P 2 512k 512k", "read -P 3 2M 64k", "read -P 4 3M 64k"]);
}

#[test]
fn jobs_by_hand() {
    let mut bench = Bench::chain(&[]);
    assert_eq!(say(&mut bench, "info block-jobs"), "No active jobs\n");
    let target = bench.images.path("copy.qcow2");
    let said = say(&mut bench, &format!("drive_mirror -f d {target} qcow2"));
    assert!(!said.contains("Error"), "{said}");
    bench.vm.qmp.event("BLOCK_JOB_READY", SOON).unwrap();
    let told = say(&mut bench, "info block-jobs");
    assert!(
        told.starts_with("Type mirror, device d: Completed ")
            && told.ends_with(" bytes, speed limit 0 bytes/s\n"),
        "{told}"
    );
    assert_eq!(say(&mut bench, "block_job_set_speed d 2"), "");
    assert!(say(&mut bench, "info block-jobs").ends_with("speed limit 2097152 bytes/s\n"));
    assert_eq!(say(&mut bench, "block_job_pause d"), "");
    assert_eq!(say(&mut bench, "block_job_resume d"), "");
    assert_eq!(say(&mut bench, "block_job_complete d"), "");
    bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
    assert_eq!(bench.medium("d")["file"], json!(target));
    let backup = bench.images.path("backup.raw");
    let said = say(&mut bench, &format!("drive_backup -f d {backup} raw"));
    assert!(!said.contains("Error"), "{said}");
    bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
    let said = say(&mut bench, "block_job_cancel d");
    assert!(said.contains("'d'"), "{said}");
    let images = bench.quit();
    images.check("copy.qcow2");
    images.same("copy.qcow2", "backup.raw");
    images.same("copy.qcow2", "top.qcow2");
}

#[test]
fn streaming_by_hand() {
    let mut bench = Bench::chain(&[]);
    assert_eq!(say(&mut bench, "block_stream d 100M"), "");
    bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
    assert_eq!(bench.medium("d")["backing_file_depth"], json!(0));
    let images = bench.quit();
    images.remove("base.qcow2");
    images.io("top.qcow2", &["read -P 1 0 512k", "read -P 2 512k 512k"]);
}

#[test]
fn discards_of_a_file_are_counted() {
    let images = Images::new();
    images.create("a.raw", "4M", &[]);
    let mut bench = Bench::start(images, &[]);
    bench.open("a", "a.raw", json!({"discard": "unmap"}));
    bench.io("a", "write 0 1M");
    bench.io("a", "discard 0 512k");
    bench.io("a", "discard 512k 64k");
    let all = bench.run("query-blockstats", json!({"query-nodes": true}));
    let of =
        |name: &str| all.as_array().unwrap().iter().find(|one| one["node-name"] == name).unwrap().clone();
    let told =
        json!({"driver": "file", "discard-nb-ok": 2, "discard-nb-failed": 0, "discard-bytes-ok": 576 << 10});
    assert_eq!(of("a-file")["driver-specific"], told);
    assert_eq!(of("a")["driver-specific"], Value::Null);
    assert_eq!(of("a")["parent"]["driver-specific"], told);
    bench.quit();
}

/// A set that a disk uses is there until it is closed, whatever is removed from it.
#[test]
fn descriptors_of_a_set_are_removed_under_their_users() {
    let images = Images::new();
    images.create("disk.raw", "1M", &[]);
    let mut bench = Bench::start(images, &[]);
    let open =
        std::fs::OpenOptions::new().read(true).write(true).open(bench.images.path("disk.raw")).unwrap();
    for _ in 0..2 {
        bench.vm.qmp.send_fd(r#"{"execute": "add-fd", "arguments": {"fdset-id": 3}}"#, &open).unwrap();
        assert_eq!(bench.vm.qmp.reply(SOON).unwrap()["return"]["fdset-id"], 3);
    }
    let sets = |bench: &mut Bench| bench.run("query-fdsets", Value::Null);
    let first = sets(&mut bench)[0]["fds"][0]["fd"].clone();
    let disk = json!({"driver": "file", "node-name": "disk", "filename": "/dev/fdset/3"});
    bench.run("blockdev-add", disk.clone());
    bench.run("remove-fd", json!({"fdset-id": 3, "fd": first}));
    let why = bench.refused("remove-fd", json!({"fdset-id": 3, "fd": first}));
    assert_eq!(why, format!("GenericError: File descriptor named 'fdset-id:3, fd:{first}' not found"));
    assert_eq!(sets(&mut bench)[0]["fds"].as_array().unwrap().len(), 1);
    bench.run("remove-fd", json!({"fdset-id": 3}));
    assert_eq!(sets(&mut bench), json!([{"fdset-id": 3, "fds": []}]));
    bench.io("disk", "write -P 7 0 64k");
    // Nobody else can open it, and whoever adds to it joins the set.
    let mut other = disk;
    other["node-name"] = "other".into();
    let why = bench.refused("blockdev-add", other);
    assert_eq!(why, "GenericError: Could not open '/dev/fdset/3': Permission denied");
    bench.run("blockdev-del", json!({"node-name": "disk"}));
    assert_eq!(sets(&mut bench), json!([]));
    let why = bench.refused("remove-fd", json!({"fdset-id": 3}));
    assert_eq!(why, "GenericError: File descriptor named 'fdset-id:3' not found");
    bench.quit().io("disk.raw", &["read -P 7 0 64k"]);
}

/// `qemu-io -d` takes a device by its id or path, without it a drive or node by its name.
#[test]
fn qemu_io_finds_the_disk_of_a_device() {
    let mut bench = Bench::chain(&["-device", "virtio-blk-pci,drive=d,id=v"]);
    bench.io("-d v", "write -P 5 0 64k");
    bench.io("-d /machine/peripheral/v", "read -P 5 0 64k");
    bench.io("d", "read -P 5 0 64k");
    for (line, why) in [
        ("qemu-io v \"read 0 512\"", "Error: Cannot find device='' nor node-name='v'\n"),
        ("qemu-io -d d \"read 0 512\"", "Error: Device 'd' not found\n"),
    ] {
        assert_eq!(say(&mut bench, line), why);
    }
    bench.quit();
}
