//! Group F: whatever an action did is taken back when a later one fails.

use super::{bench, placed, state};
use serde_json::{Value, json};
use testkit::Bench;

fn action(kind: &str, data: Value) -> Value {
    json!({"type": kind, "data": data})
}

/// Two bitmaps of `q`: `m`, persistent, with 64 KiB, and `n`, which does not record.
fn with_bitmaps() -> Bench {
    let mut bench = bench();
    bench.run("block-dirty-bitmap-add", json!({"node": "qn", "name": "m", "persistent": true}));
    bench.run("block-dirty-bitmap-add", json!({"node": "qn", "name": "n", "disabled": true}));
    bench.io("q", "write -P 7 64k 64k");
    bench
}

/// All that can be seen, and the bits of both bitmaps.
fn all(bench: &mut Bench) -> Value {
    let bits = ["m", "n"]
        .map(|name| bench.run("x-debug-block-dirty-bitmap-sha256", json!({"node": "qn", "name": name})));
    json!([state(bench), bits])
}

/// Does `actions` and then one that fails.
#[track_caller]
fn taken_back(bench: &mut Bench, mode: &str, actions: &[Value], last: Value) {
    let before = all(bench);
    let mut actions = actions.to_vec();
    actions.push(last);
    let mut asked = json!({"actions": actions});
    if mode == "grouped" {
        asked["properties"] = json!({"completion-mode": "grouped"});
    }
    let asked = placed(bench, &asked);
    bench.refused("transaction", asked.clone());
    assert_eq!(all(bench), before, "{asked}");
}

#[test]
fn each_kind_is_taken_back() {
    let mut bench = with_bitmaps();
    let bitmap = |verb: &str, name: &str| {
        action(&format!("block-dirty-bitmap-{verb}"), json!({"node": "qn", "name": name}))
    };
    let backup = |more: Value| {
        let mut data = json!({"device": "q", "job-id": "j", "sync": "full"});
        more.as_object().unwrap().iter().for_each(|(key, value)| data[key] = value.clone());
        data
    };
    let increment = json!({"sync": "incremental", "bitmap": "m", "target": "t"});
    let always = json!({"sync": "bitmap", "bitmap": "m", "bitmap-mode": "always", "target": "t"});
    let sync = json!({"device": "r", "snapshot-file": "@new.qcow2", "snapshot-node-name": "s"});
    let jobs = [
        action("drive-backup", backup(json!({"target": "@new.raw"}))),
        action("drive-backup", backup(json!({"target": "@new.raw", "sync": "incremental", "bitmap": "m"}))),
        action("blockdev-backup", backup(json!({"target": "t", "sync": "none"}))),
        action("blockdev-backup", backup(increment)),
        action("blockdev-backup", backup(always)),
    ];
    let others = [
        action("blockdev-snapshot-sync", sync),
        action("blockdev-snapshot", json!({"node": "rn", "overlay": "over"})),
        action("blockdev-snapshot-internal-sync", json!({"device": "q", "name": "i"})),
        action("block-dirty-bitmap-add", json!({"node": "qn", "name": "new", "persistent": true})),
        bitmap("remove", "m"),
        bitmap("clear", "m"),
        bitmap("disable", "m"),
        bitmap("enable", "n"),
        action("block-dirty-bitmap-merge", json!({"node": "qn", "target": "n", "bitmaps": ["m"]})),
    ];
    // Slow enough that a job which had begun would have ended.
    let making =
        |at: usize| json!({"device": "d", "target": format!("@none{at}/x"), "sync": "full", "job-id": "k"});
    for one in &jobs {
        for mode in ["individual", "grouped"] {
            taken_back(&mut bench, mode, std::slice::from_ref(one), action("abort", json!({})));
            bench.story("j", "null");
            taken_back(&mut bench, mode, std::slice::from_ref(one), action("drive-backup", making(0)));
            bench.story("j", "null");
        }
    }
    let snapshot = |at: u32| json!({"device": "r", "snapshot-file": format!("@slow{at}.qcow2")});
    let slow: Vec<Value> = (0..4).map(|at| action("blockdev-snapshot-sync", snapshot(at))).collect();
    for one in jobs.iter().chain(&others) {
        let is_job = one["data"]["job-id"] == "j";
        let mut actions = vec![one.clone()];
        if is_job {
            actions.extend(slow.clone());
        }
        taken_back(&mut bench, "individual", &actions, action("abort", json!({})));
        if is_job {
            bench.story("j", "null");
        }
        let missing = action("block-dirty-bitmap-clear", json!({"node": "qn", "name": "x"}));
        taken_back(&mut bench, "individual", std::slice::from_ref(one), missing);
        if is_job {
            bench.story("j", "null");
        }
        // The same again is refused where it cannot be done twice.
        if !is_job && one["type"].as_str().unwrap().contains("snapshot") {
            taken_back(&mut bench, "individual", std::slice::from_ref(one), one.clone());
        }
    }
    bench.vm.qmp.take_events();
    // Nothing that cannot be taken part in is begun.
    for one in &others {
        taken_back(&mut bench, "grouped", &[jobs[2].clone()], one.clone());
        assert!(bench.vm.qmp.take_events().is_empty());
    }
    bench.io("q", "read -P 7 64k 64k");
    let images = bench.quit();
    ["q.qcow2", "top.qcow2", "over.qcow2"].iter().for_each(|name| images.check(name));
    assert!(images.info("q.qcow2")["snapshots"].is_null());
}

/// The increment that a failed transaction did not take can be taken afterwards.
#[test]
fn an_increment_is_not_lost() {
    let mut bench = with_bitmaps();
    let asked = json!({"device": "q", "job-id": "j", "target": "t", "sync": "incremental", "bitmap": "m"});
    let backup = action("blockdev-backup", asked.clone());
    taken_back(&mut bench, "individual", &[backup], action("abort", json!({})));
    bench.story("j", "null");
    bench.run("blockdev-backup", asked);
    bench.done("j");
    let images = bench.quit();
    images.io("t.raw", &["read -P 7 64k 64k", "read -P 0 0 64k"]);
}
