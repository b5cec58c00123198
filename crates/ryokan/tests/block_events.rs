//! Limits of events, on the clock of a machine without guest, which only the test moves.

use serde_json::{Value, json};
use std::time::Duration;
use testkit::Qtest;
use testkit::linux::SOON;

const SECOND: u64 = 1_000_000_000;

/// A machine with a good disk, and two (`bad1`, `bad2`) whose reads fail.
fn machine() -> Qtest {
    let mut machine = Qtest::start(&[]).unwrap();
    add(
        &mut machine,
        json!({"driver": "null-co", "node-name": "good", "size": 1 << 20, "read-zeroes": true}),
    );
    for bad in ["bad1", "bad2"] {
        let image = json!({"driver": "null-co", "size": 1 << 20, "read-zeroes": true});
        let rule = json!([{"event": "none", "iotype": "read", "errno": 5}]);
        add(
            &mut machine,
            json!({"driver": "blkdebug", "node-name": bad, "image": image, "inject-error": rule}),
        );
    }
    machine
}

fn add(machine: &mut Qtest, node: Value) {
    machine.vm.qmp.execute("blockdev-add", node).unwrap();
}

fn quorum(machine: &mut Qtest, name: &str, children: [&str; 2], threshold: u32) {
    let node =
        json!({"driver": "quorum", "node-name": name, "vote-threshold": threshold, "children": children});
    add(machine, node);
}

fn read(machine: &mut Qtest, node: &str, sector: u64) {
    machine.vm.qmp.hmp(&format!("qemu-io {node} \"read {}k 1k\"", sector / 2)).unwrap();
}

/// The sector of the next event of this name that tells of `node`.
#[track_caller]
fn told(machine: &mut Qtest, name: &str, key: &str, node: &str) -> u64 {
    let event = machine.vm.qmp.event(name, SOON).unwrap();
    assert_eq!(event["data"][key], node, "{event}");
    event["data"]["sector-num"].as_u64().unwrap()
}

/// No such event has come: what was sent before the answer of a command is there with it.
#[track_caller]
fn quiet(machine: &mut Qtest, name: &str) {
    machine.vm.qmp.execute("query-status", Value::Null).unwrap();
    assert!(machine.vm.qmp.event(name, Duration::from_millis(50)).is_err());
}

#[test]
fn each_bad_child_of_a_quorum_is_told_of_once_a_second() {
    const BAD: &str = "QUORUM_REPORT_BAD";
    let mut machine = machine();
    quorum(&mut machine, "q1", ["good", "bad1"], 1);
    quorum(&mut machine, "q2", ["good", "bad2"], 1);
    read(&mut machine, "q1", 0);
    assert_eq!(told(&mut machine, BAD, "node-name", "bad1"), 0);
    read(&mut machine, "q1", 2);
    read(&mut machine, "q1", 4);
    read(&mut machine, "q2", 6);
    // Another child has a limit of its own.
    assert_eq!(told(&mut machine, BAD, "node-name", "bad2"), 6);
    machine.step(SECOND - 1);
    quiet(&mut machine, BAD);
    machine.step(1);
    // Only the last of those that waited comes.
    assert_eq!(told(&mut machine, BAD, "node-name", "bad1"), 4);
    machine.step(SECOND);
    quiet(&mut machine, BAD);
    read(&mut machine, "q1", 8);
    assert_eq!(told(&mut machine, BAD, "node-name", "bad1"), 8);
}

#[test]
fn failures_of_all_quorums_have_one_limit() {
    const FAILURE: &str = "QUORUM_FAILURE";
    let mut machine = machine();
    quorum(&mut machine, "q1", ["good", "bad1"], 2);
    quorum(&mut machine, "q2", ["good", "bad2"], 2);
    read(&mut machine, "q1", 0);
    assert_eq!(told(&mut machine, FAILURE, "reference", "q1"), 0);
    read(&mut machine, "q1", 2);
    read(&mut machine, "q2", 4);
    machine.step(SECOND - 1);
    quiet(&mut machine, FAILURE);
    machine.step(1);
    assert_eq!(told(&mut machine, FAILURE, "reference", "q2"), 4);
}
