//! Media and trays over QMP: CD drives on IDE and SCSI, drives without device.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use testkit::bench::SOON;
use testkit::{Bench, Images};

const IDE: &[&str] = &["-device", "ide-cd,id=cd,drive=d,bus=ide.1"];
const SCSI: &[&str] = &["-device", "virtio-scsi-pci,id=s", "-device", "scsi-cd,id=cd,drive=d,bus=s.0"];

fn images() -> Images {
    let images = Images::new();
    for (name, pattern) in [("one.raw", 1), ("two.raw", 2)] {
        images.create(name, "1M", &[]);
        images.io(name, &[&format!("write -P {pattern} 0 1M")]);
    }
    images
}

/// A drive `d` with `one.raw` in it, and a device over it if asked.
fn bench(device: &[&str]) -> Bench {
    let images = images();
    let media = if device.is_empty() { "disk" } else { "cdrom" };
    let drive = format!("if=none,id=d,format=raw,media={media},file={}", images.path("one.raw"));
    let mut args = vec!["-drive", &drive];
    args.extend(device);
    Bench::start(images, &args)
}

fn disk(bench: &mut Bench) -> Value {
    bench.run("query-block", Value::Null)[0].clone()
}

#[track_caller]
fn moved(bench: &mut Bench, open: bool) {
    let event = bench.vm.qmp.event("DEVICE_TRAY_MOVED", SOON).unwrap();
    assert_eq!(event["data"], json!({"device": "d", "id": "cd", "tray-open": open}));
}

#[track_caller]
fn unmoved(bench: &mut Bench) {
    bench.run("query-status", Value::Null);
    assert!(!bench.vm.qmp.take_events().contains(&"DEVICE_TRAY_MOVED".to_string()));
}

fn step_by_step(device: &[&str]) {
    let mut bench = bench(device);
    let two = bench.images.path("two.raw");
    let before = disk(&mut bench);
    assert_eq!(
        (&before["removable"], &before["tray_open"], &before["locked"], &before["inserted"]["ro"]),
        (&json!(true), &json!(false), &json!(false), &json!(true))
    );
    let cd = json!({"id": "cd"});
    let refused = bench.refused("blockdev-remove-medium", cd.clone());
    assert_eq!(refused, "GenericError: Tray of device 'cd' is not open");
    bench.run("blockdev-close-tray", cd.clone());
    unmoved(&mut bench);
    bench.run("blockdev-open-tray", cd.clone());
    moved(&mut bench, true);
    bench.run("blockdev-open-tray", json!({"device": "d"}));
    unmoved(&mut bench);
    let opened = disk(&mut bench);
    assert_eq!((&opened["tray_open"], opened["inserted"].is_object()), (&json!(true), true));
    let insert = json!({"id": "cd", "node-name": "new"});
    assert_eq!(bench.refused("blockdev-insert-medium", insert.clone()), "GenericError: Node 'new' not found");
    bench.run(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "new", "read-only": true,
            "file": {"driver": "file", "filename": two}}),
    );
    assert_eq!(
        bench.refused("blockdev-insert-medium", insert.clone()),
        "GenericError: There already is a medium in device 'cd'"
    );
    bench.run("blockdev-remove-medium", cd.clone());
    bench.run("blockdev-remove-medium", cd.clone());
    assert!(disk(&mut bench)["inserted"].is_null());
    bench.run("blockdev-insert-medium", insert.clone());
    assert_eq!(bench.refused("blockdev-insert-medium", insert), "GenericError: Node 'new' is already in use");
    bench.run("blockdev-close-tray", cd.clone());
    moved(&mut bench, false);
    let closed = disk(&mut bench);
    assert_eq!((&closed["tray_open"], &closed["inserted"]["node-name"]), (&json!(false), &json!("new")));
    bench.io("d", "read -P 2 0 1M");
    let busy = bench.refused("blockdev-del", json!({"node-name": "new"}));
    assert!(busy.contains("is in use"), "{busy}");
    bench.run("eject", json!({"device": "d"}));
    moved(&mut bench, true);
    bench.run("blockdev-del", json!({"node-name": "new"}));
    bench.quit();
}

#[test]
fn step_by_step_on_ide() {
    step_by_step(IDE);
}

#[test]
fn step_by_step_on_scsi() {
    step_by_step(SCSI);
}

#[test]
fn eject_and_change_move_the_tray() {
    for device in [IDE, SCSI] {
        let mut bench = bench(device);
        let (one, two) = (bench.images.path("one.raw"), bench.images.path("two.raw"));
        bench.run("change", json!({"device": "d", "target": two, "arg": "raw"}));
        moved(&mut bench, true);
        moved(&mut bench, false);
        assert_eq!(bench.medium("d")["file"], json!(two));
        let why = bench.refused("change", json!({"device": "d", "target": "/nonexistent/x", "arg": "raw"}));
        assert!(why.starts_with("GenericError: Could not open '/nonexistent/x'"), "{why}");
        let why = bench.refused("change", json!({"device": "d", "target": one, "arg": "quux"}));
        assert!(why.contains("quux"), "{why}");
        unmoved(&mut bench);
        assert_eq!(bench.medium("d")["file"], json!(two));
        bench.run("eject", json!({"device": "d"}));
        moved(&mut bench, true);
        bench.run("eject", json!({"id": "cd"}));
        unmoved(&mut bench);
        bench.run("blockdev-change-medium", json!({"id": "cd", "filename": one, "format": "raw"}));
        moved(&mut bench, false);
        bench.io("d", "read -P 1 0 1M");
        assert_eq!(bench.vm.qmp.hmp("eject d").unwrap(), "");
        assert_eq!(bench.vm.qmp.hmp(&format!("change d {two} raw")).unwrap(), "");
        bench.io("d", "read -P 2 0 1M");
        bench.quit();
    }
}

/// The test channel of the machine.
struct Qtest(BufReader<UnixStream>);

impl Qtest {
    fn ask(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let mut reply = String::new();
            self.0.read_line(&mut reply).unwrap();
            if !reply.starts_with("IRQ") {
                assert!(reply.starts_with("OK"), "{line}: {reply}");
                return;
            }
        }
    }

    /// PREVENT ALLOW MEDIUM REMOVAL to the master of the secondary channel.
    fn prevent_removal(&mut self, on: bool) {
        for (port, value) in [(0x176, 0xa0), (0x171, 0), (0x174, 0), (0x175, 8), (0x177, 0xa0)] {
            self.ask(&format!("outb {port:#x} {value:#x}"));
        }
        for word in [0x1e, 0, u16::from(on), 0, 0, 0] {
            self.ask(&format!("outw 0x170 {word:#x}"));
        }
    }
}

#[test]
fn a_tray_that_the_guest_locked_opens_by_force_only() {
    let images = images();
    let drive = format!("if=none,id=d,format=raw,media=cdrom,file={}", images.path("one.raw"));
    let socket = images.path("qtest");
    let channel = format!("unix:{socket},server=on,wait=off");
    let mut args = vec!["-drive", drive.as_str(), "-qtest", &channel, "-M", "pc"];
    args.extend(IDE);
    let mut bench = Bench::start(images, &args);
    let mut guest = Qtest(BufReader::new(UnixStream::connect(&socket).unwrap()));
    guest.prevent_removal(true);
    assert_eq!(disk(&mut bench)["locked"], json!(true));
    let refused = bench.refused("eject", json!({"device": "d"}));
    assert!(refused.starts_with("GenericError: Device 'd' is locked"), "{refused}");
    // Succeeds: the guest has been asked.
    bench.run("blockdev-open-tray", json!({"id": "cd"}));
    unmoved(&mut bench);
    assert!(disk(&mut bench)["inserted"].is_object());
    bench.run("eject", json!({"device": "d", "force": true}));
    moved(&mut bench, true);
    let after = disk(&mut bench);
    assert_eq!((&after["locked"], after["inserted"].is_null()), (&json!(false), true));
    bench.quit();
}

#[test]
fn wrong_names_and_disks_are_refused() {
    let images = images();
    let drive = format!("if=none,id=h,format=raw,file={}", images.path("one.raw"));
    let mut bench = Bench::start(images, &["-drive", &drive, "-device", "virtio-blk-pci,id=disk,drive=h"]);
    for (command, more) in
        [("eject", json!({})), ("blockdev-change-medium", json!({"filename": "/dev/null"}))]
    {
        let mut asked = more.clone();
        asked["device"] = json!("nobody");
        assert_eq!(bench.refused(command, asked), "DeviceNotFound: Device 'nobody' not found");
        let mut asked = more.clone();
        asked["id"] = json!("nobody");
        assert_eq!(bench.refused(command, asked), "DeviceNotFound: Device 'nobody' not found");
        assert_eq!(
            bench.refused(command, more.clone()),
            "GenericError: Need exactly one of 'device' and 'id'"
        );
        let mut asked = more;
        asked["device"] = json!("h");
        assert_eq!(bench.refused(command, asked), "GenericError: Device 'h' is not removable");
    }
    let vnc = bench.refused("change", json!({"device": "vnc", "target": ":1"}));
    assert_eq!(vnc, "GenericError: VNC display not active");
    bench.quit();
}

#[test]
fn a_new_medium_is_writable_as_asked() {
    let mut bench = bench(&[]);
    let two = bench.images.path("two.raw");
    let change =
        |mode: &str| json!({"device": "d", "filename": two, "format": "raw", "read-only-mode": mode});
    for (mode, read_only) in
        [("retain", false), ("read-only", true), ("retain", true), ("read-write", false), ("retain", false)]
    {
        bench.run("blockdev-change-medium", change(mode));
        assert_eq!(bench.medium("d")["ro"], json!(read_only), "{mode}");
    }
    bench.io("d", "write -P 5 0 64k");
    bench.run("eject", json!({"device": "d"}));
    let images = bench.quit();
    images.io("two.raw", &["read -P 5 0 64k", "read -P 2 64k 64k"]);
}

#[test]
fn a_medium_in_use_by_a_job_stays() {
    let mut bench = bench(IDE);
    let target = bench.images.path("copy.raw");
    bench.run(
        "drive-mirror",
        json!({"device": "d", "job-id": "j", "target": target, "sync": "full", "format": "raw", "speed": 1}),
    );
    let refused = bench.refused("eject", json!({"device": "d", "force": true}));
    assert!(refused.contains("is busy: block device is in use by block job: mirror"), "{refused}");
    assert!(disk(&mut bench)["inserted"].is_object());
    bench.run("block-job-cancel", json!({"device": "j", "force": true}));
    bench.vm.qmp.event("BLOCK_JOB_CANCELLED", SOON).unwrap();
    bench.quit();
}
