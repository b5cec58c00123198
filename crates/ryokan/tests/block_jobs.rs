//! The life of jobs over QMP: verbs and the states they hold in, finalising, dismissing, speed,
//! groups, blockdev-create.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::bench::SOON;
use testkit::{Bench, Images};

const SIZE: &str = "8M";

fn bench() -> Bench {
    let images = Images::new();
    for name in ["a.qcow2", "b.qcow2"] {
        images.create(name, SIZE, &[]);
        images.io(name, &["write -P 1 0 8M"]);
    }
    let mut bench = Bench::start(images, &[]);
    bench.open("a", "a.qcow2", json!({}));
    bench.open("b", "b.qcow2", json!({}));
    bench
}

fn target(bench: &mut Bench, node: &str) {
    let name = format!("{node}.raw");
    bench.images.create(&name, SIZE, &[]);
    bench.open(node, &name, json!({}));
}

fn backup(more: Value) -> Value {
    let mut all = json!({"device": "a", "job-id": "j", "target": "copy", "sync": "full"});
    more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
    all
}

#[test]
fn verbs_hold_in_the_states_they_are_for() {
    let mut bench = bench();
    target(&mut bench, "copy");
    let says = |bench: &mut Bench, command: &str, key: &str, text: &str| {
        assert_eq!(bench.refused(command, json!({key: "j"})), text);
    };
    for command in ["pause", "resume", "complete", "cancel"] {
        let text = "DeviceNotActive: Block job 'j' not found";
        says(&mut bench, &format!("block-job-{command}"), "device", text);
        says(&mut bench, &format!("job-{command}"), "id", "GenericError: Job not found");
    }
    bench.run(
        "blockdev-backup",
        backup(json!({"speed": 65536, "auto-finalize": false, "auto-dismiss": false})),
    );
    let state = |verb: &str, state: &str| {
        format!("GenericError: Job 'j' in state '{state}' cannot accept command verb '{verb}'")
    };
    says(&mut bench, "job-complete", "id", &state("complete", "running"));
    says(&mut bench, "block-job-finalize", "id", &state("finalize", "running"));
    says(&mut bench, "job-dismiss", "id", &state("dismiss", "running"));
    says(&mut bench, "job-resume", "id", "GenericError: Can't resume a job that was not paused");
    let again = bench.refused("blockdev-backup", backup(json!({"device": "b"})));
    assert_eq!(again, "GenericError: Job ID 'j' already in use");
    bench.run("job-pause", json!({"id": "j"}));
    assert_eq!(bench.story("j", "paused"), ["created", "running", "paused"]);
    assert_eq!(bench.story("j", "paused"), ["running", "paused"]);
    let job = bench.job("j");
    assert_eq!(
        (&job["paused"], &job["busy"], &job["status"]),
        (&json!(true), &json!(false), &json!("paused"))
    );
    says(&mut bench, "job-pause", "id", "GenericError: Job is already paused");
    bench.run("block-job-pause", json!({"device": "j"}));
    let stood = job["offset"].clone();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bench.job("j")["offset"], stood);
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    let negative = bench.refused("block-job-set-speed", json!({"device": "j", "speed": -5}));
    assert_eq!(negative, "GenericError: Parameter 'speed' expects a non-negative value");
    bench.run("block-job-resume", json!({"device": "j"}));
    bench.run("block-job-resume", json!({"device": "j"}));
    assert_eq!(bench.story("j", "PENDING"), ["running", "waiting", "pending", "PENDING"]);
    says(&mut bench, "job-pause", "id", &state("pause", "pending"));
    says(&mut bench, "job-dismiss", "id", &state("dismiss", "pending"));
    let speed = bench.refused("block-job-set-speed", json!({"device": "j", "speed": 0}));
    assert_eq!(speed, state("set-speed", "pending"));
    bench.run("job-finalize", json!({"id": "j"}));
    assert_eq!(bench.story("j", "concluded"), ["COMPLETED", "concluded"]);
    says(&mut bench, "job-cancel", "id", &state("cancel", "concluded"));
    says(&mut bench, "job-finalize", "id", &state("finalize", "concluded"));
    let told = json!([{"id": "j", "type": "backup", "status": "concluded", "current-progress": 8 << 20,
        "total-progress": 8 << 20}]);
    assert_eq!(bench.run("query-jobs", Value::Null), told);
    bench.run("job-dismiss", json!({"id": "j"}));
    assert_eq!(bench.story("j", "null"), ["null"]);
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    let images = bench.quit();
    images.same("a.qcow2", "copy.raw");
}

/// Jobs work on another thread than the monitor's.
#[test]
fn completing_is_answered_before_its_events_and_finalizing_after_them() {
    let mut bench = bench();
    for node in ["from", "to"] {
        bench.run("blockdev-add", json!({"driver": "null-co", "node-name": node, "size": 65536}));
    }
    let mirror = json!({"device": "from", "job-id": "j", "target": "to", "sync": "full",
        "auto-finalize": false, "auto-dismiss": false});
    for verb in ["job-complete", "block-job-complete"].into_iter().cycle().take(40) {
        bench.run("blockdev-mirror", mirror.clone());
        bench.story("j", "READY");
        let key = if verb == "job-complete" { "id" } else { "device" };
        bench.run(verb, json!({key: "j"}));
        assert_eq!(bench.vm.qmp.take_events(), [""; 0], "{verb}");
        assert_eq!(bench.story("j", "PENDING"), ["waiting", "pending", "PENDING"]);
        bench.run("job-finalize", json!({"id": "j"}));
        assert_eq!(bench.vm.qmp.take_events(), ["BLOCK_JOB_COMPLETED", "JOB_STATUS_CHANGE"]);
        bench.run("job-dismiss", json!({"id": "j"}));
        bench.story("j", "null");
    }
    bench.quit();
}

#[test]
fn a_pending_job_can_be_cancelled_and_says_so_until_dismissed() {
    let mut bench = bench();
    target(&mut bench, "copy");
    bench.run("blockdev-backup", backup(json!({"auto-finalize": false, "auto-dismiss": false})));
    bench.story("j", "PENDING");
    bench.run("job-cancel", json!({"id": "j"}));
    assert_eq!(bench.story("j", "concluded"), ["aborting", "CANCELLED", "concluded"]);
    assert_eq!(bench.job("j")["error"], "Operation canceled");
    bench.run("block-job-dismiss", json!({"id": "j"}));
    bench.quit();
}

#[test]
fn a_limit_holds_and_can_be_changed_on_the_way() {
    let mut bench = bench();
    target(&mut bench, "copy");
    let begin = Instant::now();
    bench.run("blockdev-mirror", backup(json!({"speed": 4 << 20, "buf-size": 65536})));
    std::thread::sleep(Duration::from_millis(900));
    let job = bench.job("j");
    let (done, time) = (job["offset"].as_f64().unwrap(), begin.elapsed().as_secs_f64());
    let rate = done / time / f64::from(4 << 20);
    assert!((0.7..1.3).contains(&rate), "{rate} of the limit: {job}");
    assert_eq!(job["speed"], 4 << 20);
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    bench.story("j", "READY");
    assert!(begin.elapsed() < Duration::from_secs(8));
    // A ready job stands by when paused.
    bench.run("job-pause", json!({"id": "j"}));
    assert_eq!(bench.story("j", "standby"), ["standby"]);
    let refused = bench.refused("job-complete", json!({"id": "j"}));
    assert_eq!(refused, "GenericError: Job 'j' in state 'standby' cannot accept command verb 'complete'");
    bench.run("job-resume", json!({"id": "j"}));
    assert_eq!(bench.story("j", "ready"), ["ready"]);
    bench.run("block-job-cancel", json!({"device": "j"}));
    bench.done("j");
    bench.quit().same("a.qcow2", "copy.raw");
}

/// A limited mirror asks for a buffer and then waits; that much has been done when it is cancelled,
/// however soon.
#[test]
fn a_cancelled_mirror_tells_of_what_it_had_begun() {
    for (more, offset) in [(json!({"buf-size": 65536}), 65536), (json!({}), 8 << 20)] {
        let mut bench = bench();
        target(&mut bench, "copy");
        let mut mirror = backup(json!({"speed": 65536}));
        more.as_object().unwrap().iter().for_each(|(key, value)| mirror[key] = value.clone());
        bench.run("blockdev-mirror", mirror);
        bench.run("block-job-cancel", json!({"device": "j", "force": true}));
        let is_end = |event: &Value| event["event"] == "BLOCK_JOB_CANCELLED";
        let events = bench.vm.qmp.events_until(is_end, is_end, SOON).unwrap();
        assert_eq!(
            (&events[0]["data"]["offset"], &events[0]["data"]["len"]),
            (&json!(offset), &json!(8 << 20))
        );
        bench.quit();
    }
}

fn pair(first: Value, second: Value, mode: &str) -> Value {
    let action = |device: &str, target: &str, more: Value| {
        let mut data =
            json!({"device": device, "job-id": format!("job-{device}"), "target": target, "sync": "full"});
        more.as_object().unwrap().iter().for_each(|(key, value)| data[key] = value.clone());
        json!({"type": "blockdev-backup", "data": data})
    };
    json!({"actions": [action("a", "copy-a", first), action("b", "copy-b", second)],
        "properties": {"completion-mode": mode}})
}

#[test]
fn grouped_jobs_end_together() {
    let mut bench = bench();
    target(&mut bench, "copy-a");
    target(&mut bench, "copy-b");
    bench.run("transaction", pair(json!({}), json!({"speed": 1 << 20, "auto-finalize": false}), "grouped"));
    assert_eq!(bench.story("job-a", "waiting"), ["created", "running", "paused", "running", "waiting"]);
    bench.run("block-job-set-speed", json!({"device": "job-b", "speed": 0}));
    bench.story("job-b", "PENDING");
    assert_eq!(bench.story("job-a", "pending"), ["pending"]);
    bench.run("job-finalize", json!({"id": "job-b"}));
    assert_eq!(bench.story("job-a", "null"), ["COMPLETED", "concluded", "null"]);
    bench.story("job-b", "null");

    // One is cancelled: so is the other, which had done its work.
    bench.run("transaction", pair(json!({}), json!({"speed": 65536}), "grouped"));
    bench.story("job-a", "waiting");
    bench.run("block-job-cancel", json!({"device": "job-b"}));
    assert_eq!(bench.story("job-a", "null"), ["aborting", "CANCELLED", "concluded", "null"]);
    assert!(bench.story("job-b", "null").contains(&"CANCELLED".to_string()));

    // Each for itself.
    bench.run("transaction", pair(json!({}), json!({"speed": 65536}), "individual"));
    bench.done("job-a");
    bench.run("job-cancel", json!({"id": "job-b"}));
    assert!(bench.story("job-b", "null").contains(&"CANCELLED".to_string()));
    let images = bench.quit();
    images.same("a.qcow2", "copy-a.raw");
}

#[test]
fn a_group_fails_as_one_and_only_takes_what_can_be_grouped() {
    let mut bench = bench();
    target(&mut bench, "copy-a");
    bench.images.create("bad.raw", SIZE, &[]);
    let file = bench.images.path("bad.raw");
    let rule = json!([{"event": "none", "iotype": "write", "errno": 5, "sector": 8192}]);
    let bad = json!({"driver": "raw", "node-name": "copy-b", "file": {"driver": "blkdebug", "inject-error": rule,
        "image": {"driver": "file", "filename": file}}});
    bench.run("blockdev-add", bad);
    for node in ["a", "b"] {
        bench.run("block-dirty-bitmap-add", json!({"node": node, "name": "m"}));
        bench.io(node, "write -P 3 0 8M");
    }
    let sync = json!({"sync": "incremental", "bitmap": "m"});
    bench.run("transaction", pair(sync.clone(), sync, "grouped"));
    let story = bench.story("job-b", "null");
    assert!(story.contains(&"COMPLETED: Input/output error".to_string()), "{story:?}");
    let story = bench.story("job-a", "null");
    assert!(story.contains(&"CANCELLED".to_string()), "{story:?}");
    // What was to be copied is still marked in both.
    for node in ["a", "b"] {
        assert_eq!(bench.node(node)["dirty-bitmaps"][0]["count"], 8 << 20, "{node}");
    }
    let snapshot = json!({"actions": [{"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "m"}}],
        "properties": {"completion-mode": "grouped"}});
    assert_eq!(
        bench.refused("transaction", snapshot),
        "GenericError: Action 'block-dirty-bitmap-clear' does not support transaction property completion-mode = grouped"
    );
    bench.quit();
}

#[test]
fn images_are_made_by_a_job() {
    let mut bench = bench();
    let path = bench.images.path("new.qcow2");
    let file = json!({"job-id": "j", "options": {"driver": "file", "filename": path, "size": 0}});
    bench.run("blockdev-create", file);
    assert_eq!(bench.story("j", "concluded"), ["created", "running", "waiting", "pending", "concluded"]);
    bench.run("job-dismiss", json!({"id": "j"}));
    bench.run("blockdev-add", json!({"driver": "file", "node-name": "f", "filename": path}));
    let image = |size: i64| {
        json!({"job-id": "j", "options": {"driver": "qcow2", "file": "f", "size": size,
        "cluster-size": 4096, "refcount-bits": 1, "version": "v3"}})
    };
    bench.run("blockdev-create", image(8 << 20));
    bench.story("j", "concluded");
    assert_eq!(bench.run("query-jobs", Value::Null)[0]["error"], Value::Null);
    assert_eq!(bench.run("query-block-jobs", Value::Null), json!([]));
    bench.run("job-dismiss", json!({"id": "j"}));
    bench.run("blockdev-create", image(-1));
    assert_eq!(bench.story("j", "concluded"), ["null", "created", "running", "aborting", "concluded"]);
    assert!(bench.run("query-jobs", Value::Null)[0]["error"].is_string());
    let images = bench.quit();
    images.check("new.qcow2");
    let info = images.info("new.qcow2");
    assert_eq!((&info["virtual-size"], &info["cluster-size"]), (&json!(8 << 20), &json!(4096)));
    assert_eq!(info["format-specific"]["data"]["refcount-bits"], 1);
}

#[test]
fn quitting_ends_every_job_and_leaves_good_images() {
    let mut bench = bench();
    target(&mut bench, "copy");
    target(&mut bench, "other");
    bench.run("blockdev-mirror", backup(json!({"speed": 65536})));
    bench.run("blockdev-backup", backup(json!({"device": "b", "target": "other", "job-id": "k"})));
    bench.io("a", "write -P 4 1M 1M");
    bench.run("quit", Value::Null);
    // Told before the monitor closes.
    let story = bench.story("j", "null");
    assert_eq!(
        story,
        ["created", "running", "paused", "running", "aborting", "CANCELLED", "concluded", "null"]
    );
    assert!(bench.vm.wait(SOON).is_ok_and(|status| status.success()), "{}", bench.vm.errors());
    let images = bench.images;
    images.check("a.qcow2");
    images.check("b.qcow2");
    images.io("a.qcow2", &["read -P 1 0 1M", "read -P 4 1M 1M"]);
}

#[test]
fn quitting_does_not_wait_for_a_throttled_disk() {
    let mut bench = bench();
    let slow = json!({"qom-type": "throttle-group", "id": "slow", "limits": {"bps-read": 4096}});
    bench.run("object-add", slow);
    let node = json!({"driver": "throttle", "node-name": "t", "throttle-group": "slow", "file": "a"});
    bench.run("blockdev-add", node);
    bench.run("blockdev-add", json!({"driver": "null-co", "node-name": "null", "size": 8 << 20}));
    let mirror = json!({"job-id": "j", "device": "t", "target": "null", "sync": "full"});
    bench.run("blockdev-mirror", mirror);
    bench.run("quit", Value::Null);
    let asked = std::time::Instant::now();
    assert!(bench.vm.wait(SOON).is_ok_and(|status| status.success()), "{}", bench.vm.errors());
    // A piece takes minutes at the limit.
    assert!(asked.elapsed().as_secs() < 4, "{:?}", asked.elapsed());
}

#[test]
fn what_was_given_up_is_free_also_when_a_job_runs_to_the_end() {
    let images = Images::new();
    images.create("a.qcow2", SIZE, &[]);
    images.io("a.qcow2", &["write -P 1 0 8M"]);
    let mut bench = Bench::start(images, &[]);
    bench.open("a", "a.qcow2", json!({"discard": "unmap"}));
    target(&mut bench, "copy");
    bench.io("a", "discard 0 4M");
    bench.io("a", "flush");
    bench.run("blockdev-backup", backup(json!({"sync": "none"})));
    let images = bench.quit();
    images.check("a.qcow2");
    images.io("a.qcow2", &["read -P 0 0 4M", "read -P 1 4M 4M"]);
}
