//! block-stream and block-commit over QMP: every way to say what goes where, errors, policies.

use serde_json::{Value, json};
use testkit::bench::SOON;
use testkit::{Bench, Images};

const WELL: [&str; 7] = ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"];

/// base <- mid <- top, 4 MiB, each with data of its own; `model.raw` shows what is read.
fn chain() -> Images {
    let images = Images::new();
    images.create("base.qcow2", "4M", &[]);
    images.io("base.qcow2", &["write -P 1 0 2M"]);
    images.overlay("mid.qcow2", "base.qcow2");
    images.io("mid.qcow2", &["write -P 2 1M 2M"]);
    images.overlay("top.qcow2", "mid.qcow2");
    images.io("top.qcow2", &["write -P 3 2500k 100k", "write -z 0 64k"]);
    images.create("model.raw", "4M", &[]);
    images
        .io("model.raw", &["write -P 1 0 2M", "write -P 2 1M 2M", "write -P 3 2500k 100k", "write -z 0 64k"]);
    images
}

/// The chain as nodes base, mid, top under the drive d.
fn bench() -> Bench {
    let images = chain();
    let file = images.path("top.qcow2");
    let drive = format!(
        "if=none,id=d,driver=qcow2,node-name=top,file.driver=file,file.filename={file},backing.node-name=mid,\
         backing.backing.node-name=base"
    );
    Bench::start(images, &["-drive", &drive])
}

#[test]
fn stream_of_the_whole_chain_makes_the_top_stand_alone() {
    let mut bench = bench();
    bench.run("block-stream", json!({"device": "d"}));
    assert_eq!(bench.story("d", "null"), WELL);
    let medium = bench.medium("d");
    assert_eq!((&medium["backing_file_depth"], &medium["backing_file"]), (&json!(0), &Value::Null));
    let images = bench.quit();
    images.remove("mid.qcow2");
    images.remove("base.qcow2");
    images.check("top.qcow2");
    images.same("top.qcow2", "model.raw");
    assert!(images.info("top.qcow2")["backing-filename"].is_null());
}

#[test]
fn stream_down_to_a_base_by_name_by_file_and_by_bottom() {
    for by in ["base", "base-node", "bottom"] {
        let mut bench = bench();
        let base = bench.images.path("base.qcow2");
        let mut arguments = json!({"device": "top", "job-id": "j", "filter-node-name": "f"});
        arguments[by] = match by {
            "base" => base.as_str().into(),
            "base-node" => "base".into(),
            _ => "mid".into(),
        };
        bench.run("block-stream", arguments);
        assert_eq!(bench.story("j", "null"), WELL);
        assert_eq!(bench.node("f"), Value::Null);
        assert_eq!(bench.medium("d")["backing_file"], base.as_str());
        assert_eq!(bench.node("mid"), Value::Null);
        let images = bench.quit();
        assert_eq!(images.info("top.qcow2")["backing-filename"], base.as_str());
        assert_eq!(images.info("top.qcow2")["backing-filename-format"], "qcow2");
        images.remove("mid.qcow2");
        images.check("top.qcow2");
        images.same("top.qcow2", "model.raw");
    }
}

#[test]
fn a_stream_shows_its_filter_takes_guest_writes_and_can_be_stopped() {
    let mut bench = bench();
    let before = bench.images.bytes("mid.qcow2");
    let slow = json!({"device": "top", "job-id": "j", "speed": 65536, "filter-node-name": "f",
        "backing-file": "named.qcow2", "base-node": "base"});
    bench.run("block-stream", slow);
    let filter = bench.node("f");
    assert_eq!(filter["drv"], "copy-on-read");
    assert_eq!(bench.medium("d")["node-name"], "f");
    let busy = bench.refused("block_resize", json!({"node-name": "top", "size": 8 << 20}));
    assert_eq!(busy, "GenericError: Device 'top' is in use");
    let busy = bench.refused("block-commit", json!({"device": "d", "job-id": "k"}));
    assert_eq!(busy, "GenericError: Need a root block node");
    bench.io("d", "write -P 9 3M 64k");
    bench.io("d", "read -P 9 3M 64k");
    bench.io("d", "read -P 2 1M 1M");
    bench.run("block-job-cancel", json!({"device": "j"}));
    let story = bench.story("j", "null");
    assert_eq!(story, ["created", "running", "aborting", "CANCELLED", "concluded", "null"]);
    assert_eq!(bench.medium("d")["node-name"], "top");
    assert_eq!(bench.node("f"), Value::Null);
    bench.run(
        "block-stream",
        json!({"device": "top", "job-id": "j", "base-node": "base", "backing-file": "n.qcow2"}),
    );
    bench.done("j");
    let images = bench.quit();
    assert_eq!(images.bytes("mid.qcow2"), before);
    assert_eq!(images.info("top.qcow2")["backing-filename"], "n.qcow2");
    images.copy("base.qcow2", "n.qcow2");
    images.check("top.qcow2");
    images.io("model.raw", &["write -P 9 3M 64k"]);
    images.same("top.qcow2", "model.raw");
}

#[test]
fn what_stream_and_commit_refuse_leaves_everything() {
    let mut bench = bench();
    bench.open("other", "model.raw", json!({}));
    bench.images.create("ro.qcow2", "4M", &[]);
    let fixed = json!({"driver": "qcow2", "node-name": "ro", "read-only": true, "backing": "mid",
        "file": {"driver": "file", "filename": bench.images.path("ro.qcow2"), "read-only": true}});
    bench.run("blockdev-add", fixed);
    let wrong = bench.refused("block-stream", json!({"device": "ro", "job-id": "j", "base-node": "base"}));
    assert_eq!(wrong, "GenericError: Block node is read-only");
    bench.run("blockdev-del", json!({"node-name": "ro"}));
    let mut says = |command: &str, arguments: Value, text: &str| {
        assert_eq!(bench.refused(command, arguments), text);
    };
    let file = "/nowhere.qcow2";
    let stream = |more: Value| {
        let mut all = json!({"device": "top", "job-id": "j"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    says(
        "block-stream",
        json!({"device": "none"}),
        "GenericError: Cannot find device='none' nor node-name='none'",
    );
    says("block-stream", json!({"device": "mid"}), "GenericError: Invalid job ID ''");
    says(
        "block-stream",
        stream(json!({"base": file})),
        "GenericError: Can't find '/nowhere.qcow2' in the backing chain",
    );
    says(
        "block-stream",
        stream(json!({"base-node": "other"})),
        "GenericError: Node 'other' is not a backing image of 'top'",
    );
    says(
        "block-stream",
        stream(json!({"bottom": "other"})),
        "GenericError: Node 'other' is not in a chain starting from 'top'",
    );
    says(
        "block-stream",
        stream(json!({"bottom": "mid", "base-node": "base"})),
        "GenericError: 'bottom' and 'base-node' cannot be specified at the same time",
    );
    says(
        "block-stream",
        stream(json!({"backing-file": "x"})),
        "GenericError: backing file specified, but streaming the entire chain",
    );
    says(
        "block-stream",
        stream(json!({"speed": -1})),
        "GenericError: Parameter 'speed' expects a non-negative value",
    );
    says(
        "block-stream",
        stream(json!({"filter-node-name": "mid"})),
        "GenericError: Could not create node: Duplicate nodes with node-name='mid'",
    );
    says("block-commit", json!({"device": "none"}), "DeviceNotFound: Device 'none' not found");
    says(
        "block-commit",
        json!({"device": "d", "top": file}),
        "GenericError: Top image file /nowhere.qcow2 not found",
    );
    says(
        "block-commit",
        json!({"device": "d", "base": file}),
        "GenericError: Can't find '/nowhere.qcow2' in the backing chain",
    );
    says(
        "block-commit",
        json!({"device": "d", "top-node": "other"}),
        "GenericError: 'other' is not in this backing file chain",
    );
    says(
        "block-commit",
        json!({"device": "d", "top-node": "base", "base-node": "mid"}),
        "GenericError: 'mid' is not in this backing file chain",
    );
    says(
        "block-commit",
        json!({"device": "d", "top-node": "mid", "base-node": "mid"}),
        "GenericError: cannot commit an image into itself",
    );
    says(
        "block-commit",
        json!({"device": "other", "job-id": "j"}),
        "GenericError: cannot commit an image into itself",
    );
    says(
        "block-commit",
        json!({"device": "d", "backing-file": "x"}),
        "GenericError: 'backing-file' specified, but 'top' is the active layer",
    );
    says(
        "block-commit",
        json!({"device": "d", "top": "x", "top-node": "mid"}),
        "GenericError: 'top-node' and 'top' are mutually exclusive",
    );
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    assert_eq!(bench.medium("d")["backing_file_depth"], 2);
    // Where nothing lies below there is nothing to do.
    bench.run("block-stream", json!({"device": "other", "job-id": "j"}));
    let ended = bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
    assert_eq!((&ended["data"]["len"], &ended["data"]["offset"]), (&json!(0), &json!(0)));
    bench.quit().same("top.qcow2", "model.raw");
}

#[test]
fn a_commit_below_the_active_image_goes_into_its_base() {
    for by_node in [true, false] {
        let mut bench = bench();
        let base = bench.images.path("base.qcow2");
        let mut arguments = json!({"device": "d", "filter-node-name": "f", "speed": 0});
        if by_node {
            arguments["top-node"] = "mid".into();
            arguments["base-node"] = "base".into();
            arguments["backing-file"] = "base.qcow2".into();
        } else {
            arguments["top"] = bench.images.path("mid.qcow2").into();
            arguments["base"] = base.as_str().into();
        }
        bench.run("block-commit", arguments);
        assert_eq!(bench.story("d", "null"), WELL);
        assert_eq!((bench.node("f"), bench.node("mid")), (Value::Null, Value::Null));
        assert_eq!(bench.node("base")["ro"], true);
        bench.io("d", "read -P 2 1M 1M");
        let images = bench.quit();
        let name = if by_node { "base.qcow2" } else { base.as_str() };
        assert_eq!(images.info("top.qcow2")["backing-filename"], name);
        images.remove("mid.qcow2");
        images.check("base.qcow2");
        images.check("top.qcow2");
        images.same("top.qcow2", "model.raw");
    }
}

#[test]
fn a_commit_stopped_half_way_leaves_the_chain_as_it_reads() {
    let mut bench = bench();
    bench.run(
        "block-commit",
        json!({"device": "d", "top-node": "mid", "base-node": "base", "speed": 65536, "filter-node-name": "f"}),
    );
    assert_eq!(bench.node("f")["drv"], "commit_top");
    assert_eq!(bench.job("d")["type"], "commit");
    bench.run("block-job-cancel", json!({"device": "d"}));
    assert!(bench.story("d", "null").contains(&"CANCELLED".to_string()));
    assert_eq!(bench.medium("d")["backing_file_depth"], 2);
    assert_eq!((&bench.node("base")["ro"], bench.node("f")), (&json!(true), Value::Null));
    let images = bench.quit();
    images.check("base.qcow2");
    images.same("top.qcow2", "model.raw");
}

#[test]
fn the_active_image_is_committed_and_written_below_from_then_on() {
    let mut bench = bench();
    bench.run("block-commit", json!({"device": "d", "base-node": "base", "filter-node-name": "f"}));
    assert_eq!(bench.story("d", "READY"), ["created", "running", "ready", "READY"]);
    let job = bench.job("d");
    assert_eq!(
        (&job["ready"], &job["status"], &job["type"]),
        (&json!(true), &json!("ready"), &json!("commit"))
    );
    bench.io("d", "write -P 7 3M 1M");
    bench.run("block-job-complete", json!({"device": "d"}));
    assert_eq!(bench.story("d", "null"), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    let medium = bench.medium("d");
    assert_eq!((&medium["node-name"], &medium["ro"]), (&json!("base"), &json!(false)));
    assert_eq!((bench.node("top"), bench.node("mid")), (Value::Null, Value::Null));
    bench.io("d", "write -P 8 0 64k");
    let images = bench.quit();
    images.check("base.qcow2");
    images.io("model.raw", &["write -P 7 3M 1M", "write -P 8 0 64k"]);
    images.same("base.qcow2", "model.raw");
}

#[test]
fn without_a_base_all_goes_into_the_image_at_the_bottom() {
    for bottom in ["bottom.raw", "bottom.qcow2"] {
        let images = Images::new();
        images.create(bottom, "4M", &[]);
        images.overlay("top.qcow2", bottom);
        images.io("top.qcow2", &["write -P 3 1M 1M"]);
        let drive = format!("if=none,id=d,file={},format=qcow2", images.path("top.qcow2"));
        let mut bench = Bench::start(images, &["-drive", &drive]);
        bench.run("block-commit", json!({"device": "d"}));
        bench.story("d", "READY");
        bench.run("block-job-complete", json!({"device": "d"}));
        bench.done("d");
        let medium = bench.medium("d");
        assert_eq!(medium["file"], bench.images.path(bottom));
        assert_eq!(medium["drv"], bottom.split_once('.').unwrap().1);
        bench.io("d", "write -P 4 2M 1M");
        bench.quit().io(bottom, &["read -P 3 1M 1M", "read -P 4 2M 1M"]);
    }
}

#[test]
fn an_active_commit_told_to_stop_when_ready_leaves_the_top_in_use() {
    let mut bench = bench();
    bench.run("block-commit", json!({"device": "d", "base-node": "mid"}));
    bench.story("d", "READY");
    bench.run("block-job-cancel", json!({"device": "d"}));
    assert_eq!(bench.story("d", "null"), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    assert_eq!(bench.medium("d")["node-name"], "top");
    assert_eq!(bench.node("mid")["ro"], true);
    let images = bench.quit();
    images.check("mid.qcow2");
    images.same("top.qcow2", "model.raw");
    images.same("mid.qcow2", "model.raw");
}

/// base.raw, whose first read of the second MiB fails, under top.qcow2.
fn broken(once: bool) -> Bench {
    let images = Images::new();
    images.create("base.raw", "4M", &[]);
    images.io("base.raw", &["write -P 1 0 4M"]);
    images.overlay("top.qcow2", "base.raw");
    let mut bench = Bench::start(images, &[]);
    let file = bench.images.path("base.raw");
    let rule = json!({"event": "none", "iotype": "read", "errno": 5, "sector": 2048, "once": once});
    let base = json!({"driver": "raw", "node-name": "base", "read-only": true, "file":
        {"driver": "blkdebug", "image": {"driver": "file", "filename": file}, "inject-error": [rule]}});
    bench.run("blockdev-add", base);
    bench.open("top", "top.qcow2", json!({"backing": "base"}));
    bench
}

#[test]
fn a_stream_meets_a_bad_sector_as_its_policy_says() {
    let stream = |policy: &str| json!({"device": "top", "job-id": "j", "on-error": policy});
    let mut bench = broken(false);
    for policy in ["report", "enospc"] {
        bench.run("block-stream", stream(policy));
        let story = bench.story("j", "null");
        let end = ["ERROR read report", "aborting", "COMPLETED: Input/output error", "concluded", "null"];
        assert_eq!(story[2..], end, "{policy}");
    }
    bench.run("block-stream", stream("ignore"));
    let story = bench.story("j", "null");
    assert!(story.contains(&"ERROR read ignore".to_string()), "{story:?}");
    assert!(story.contains(&"COMPLETED: Input/output error".to_string()), "{story:?}");
    let images = bench.quit();
    assert_eq!(images.info("top.qcow2")["backing-filename"], images.path("base.raw"));
    images.check("top.qcow2");
    images.same("top.qcow2", "base.raw");

    let mut bench = broken(true);
    bench.run("block-stream", stream("stop"));
    assert_eq!(bench.story("j", "paused"), ["created", "running", "ERROR read stop", "paused"]);
    let job = bench.job("j");
    assert_eq!((&job["io-status"], &job["paused"]), (&json!("failed"), &json!(true)));
    let held = bench.refused("block-job-cancel", json!({"device": "j"}));
    assert_eq!(held, "GenericError: The block job for device 'j' is currently paused");
    bench.run("block-job-resume", json!({"device": "j"}));
    assert_eq!(bench.story("j", "null"), ["running", "waiting", "pending", "COMPLETED", "concluded", "null"]);
    let images = bench.quit();
    images.same("top.qcow2", "base.raw");
    images.remove("base.raw");
    images.check("top.qcow2");
}

#[test]
fn one_part_of_a_chain_is_streamed_once_at_a_time() {
    let mut bench = bench();
    let lower = json!({"device": "mid", "job-id": "lower", "speed": 65536, "filter-node-name": "over-mid"});
    bench.run("block-stream", lower);
    let busy = bench.refused("block-stream", json!({"device": "top", "job-id": "upper"}));
    assert_eq!(busy, "GenericError: Node 'over-mid' is busy: block device is in use by block job: stream");
    bench.run("block-job-set-speed", json!({"device": "lower", "speed": 0}));
    bench.done("lower");
    bench.run("block-stream", json!({"device": "top", "job-id": "upper", "auto-dismiss": false}));
    bench.story("upper", "concluded");
    bench.run("job-dismiss", json!({"id": "upper"}));
    let images = bench.quit();
    images.remove("base.qcow2");
    images.remove("mid.qcow2");
    images.check("top.qcow2");
    images.same("top.qcow2", "model.raw");
}
