//! `rerror` and `werror`: what happens when the image cannot be read or written.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::Qtest;
use testkit::linux::SOON;

/// A machine with an IDE disk whose next request of a kind fails with `errno`, once.
fn machine(kind: &str, errno: i32, policy: &str) -> (Qtest, tempfile::NamedTempFile) {
    failing(kind, errno, policy, true)
}

/// As [`machine`], for all such requests or the first.
fn failing(kind: &str, errno: i32, policy: &str, once: bool) -> (Qtest, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 1 << 20]).unwrap();
    let node = json!({"driver": "raw", "node-name": "n0", "file": {"driver": "blkdebug",
        "inject-error": [{"event": "none", "iotype": kind, "errno": errno, "sector": 3, "once": once}],
        "image": {"driver": "file", "filename": file.path()}}});
    let device = format!("ide-hd,drive=n0,id=disk{policy}");
    (Qtest::start(&["-blockdev", &node.to_string(), "-device", &device]).unwrap(), file)
}

/// The status once the drive is no longer busy, or `None` while it stays so.
fn settled(machine: &mut Qtest, limit: Duration) -> Option<u8> {
    let end = Instant::now() + limit;
    loop {
        let status = machine.inb(0x3f6);
        if status & 0x80 == 0 {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
    }
}

fn command(machine: &mut Qtest, command: u8) {
    for (register, value) in [(0x1f2, 1), (0x1f3, 3), (0x1f4, 0), (0x1f5, 0), (0x1f6, 0xe0), (0x1f7, command)]
    {
        machine.outb(register, value);
    }
}

fn read_sector(machine: &mut Qtest) -> Vec<u8> {
    (0..512).map(|_| machine.inb(0x1f0)).collect()
}

fn told(machine: &mut Qtest) -> (String, String) {
    let event = machine.vm.qmp.event("BLOCK_IO_ERROR", SOON).unwrap();
    let text = |key: &str| event["data"][key].as_str().unwrap_or_default().to_string();
    assert_eq!(text("node-name"), "n0");
    (text("operation"), text("action"))
}

fn io_status(machine: &mut Qtest) -> Value {
    machine.vm.qmp.execute("query-block", Value::Null).unwrap()[0]["io-status"].take()
}

const FAILED: u8 = 1;
const DATA: u8 = 8;

#[test]
fn report_and_ignore() {
    let (mut vm, _file) = machine("read", 5, "");
    command(&mut vm, 0x20);
    assert_eq!(told(&mut vm), ("read".into(), "report".into()));
    assert_eq!(settled(&mut vm, SOON).unwrap() & (FAILED | DATA), FAILED);
    command(&mut vm, 0x20);
    assert_eq!(settled(&mut vm, SOON).unwrap() & (FAILED | DATA), DATA, "only once");
    let (mut vm, _file) = machine("read", 5, ",rerror=ignore");
    command(&mut vm, 0x20);
    assert_eq!(told(&mut vm), ("read".into(), "ignore".into()));
    assert_eq!(settled(&mut vm, SOON).unwrap() & (FAILED | DATA), DATA);
}

#[test]
fn a_stopped_request_is_tried_again() {
    let (mut vm, _file) = machine("read", 5, ",rerror=stop");
    command(&mut vm, 0x20);
    assert_eq!(told(&mut vm), ("read".into(), "stop".into()));
    vm.vm.qmp.event("STOP", SOON).unwrap();
    let status = vm.vm.qmp.execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "io-error");
    assert_eq!(io_status(&mut vm), "failed");
    assert_eq!(settled(&mut vm, Duration::from_millis(200)), None, "the guest knows nothing");
    vm.vm.qmp.execute("cont", Value::Null).unwrap();
    vm.vm.qmp.event("RESUME", SOON).unwrap();
    assert_eq!(settled(&mut vm, SOON).unwrap() & (FAILED | DATA), DATA);
    assert_eq!(read_sector(&mut vm), [0x5a; 512]);
    assert_eq!(io_status(&mut vm), "ok");
}

#[test]
fn a_full_disk_stops_by_default() {
    let write = |vm: &mut Qtest| {
        command(vm, 0x30);
        assert_eq!(settled(vm, SOON).unwrap() & DATA, DATA);
        (0..512).for_each(|_| vm.outb(0x1f0, 0x77));
    };
    let (mut vm, file) = machine("write", 28, "");
    write(&mut vm);
    assert_eq!(told(&mut vm), ("write".into(), "stop".into()));
    vm.vm.qmp.event("STOP", SOON).unwrap();
    assert_eq!(io_status(&mut vm), "nospace");
    vm.vm.qmp.execute("cont", Value::Null).unwrap();
    assert_eq!(settled(&mut vm, SOON).unwrap() & FAILED, 0);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!((bytes[1535], &bytes[1536..2048], bytes[2048]), (0x5a, &[0x77; 512][..], 0x5a));
    // Another error is reported, as `enospc` says; `werror=report` reports this one too.
    for (errno, policy) in [(5, ",werror=enospc"), (28, ",werror=report")] {
        let (mut vm, _file) = machine("write", errno, policy);
        write(&mut vm);
        assert_eq!(told(&mut vm), ("write".into(), "report".into()));
        assert_eq!(settled(&mut vm, SOON).unwrap() & FAILED, FAILED);
    }
}

/// Other than those of quorums, these events have no limit.
#[test]
fn every_failed_request_is_told_of() {
    let (mut vm, _file) = failing("read", 5, "", false);
    for _ in 0..3 {
        command(&mut vm, 0x20);
        assert_eq!(told(&mut vm), ("read".into(), "report".into()));
        assert_eq!(settled(&mut vm, SOON).unwrap() & (FAILED | DATA), FAILED);
    }
}
