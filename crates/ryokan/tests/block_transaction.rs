//! transaction over QMP: every kind of action, all at one point in time, all or none; and
//! blockdev-reopen, which is as strict.

use serde_json::{Value, json};
use testkit::bench::SOON;
use testkit::{Bench, Images};

/// Two drives, d and e, on qcow2 images a and b.
fn bench() -> Bench {
    let images = Images::new();
    for name in ["a.qcow2", "b.qcow2"] {
        images.create(name, "4M", &[]);
        images.io(name, &["write -P 1 0 2M"]);
    }
    let drive = |id: &str, node: &str| {
        let file = images.path(&format!("{node}.qcow2"));
        format!("if=none,id={id},driver=qcow2,node-name={node},file.filename={file}")
    };
    let (d, e) = (drive("d", "a"), drive("e", "b"));
    Bench::start(images, &["-drive", &d, "-drive", &e])
}

fn action(kind: &str, data: Value) -> Value {
    json!({"type": kind, "data": data})
}

/// What must be the same after a rollback.
fn state(bench: &mut Bench) -> Value {
    let (nodes, block) = (json!({"flat": true}), Value::Null);
    json!([bench.run("query-named-block-nodes", nodes), bench.run("query-block", block)])
}

#[test]
fn everything_at_once() {
    let mut bench = bench();
    bench.images.create("over.qcow2", "4M", &[]);
    bench.open("over", "over.qcow2", json!({"backing": null}));
    bench.images.create("copy.raw", "4M", &[]);
    bench.open("copy", "copy.raw", json!({}));
    for name in ["old", "cleared"] {
        bench.run("block-dirty-bitmap-add", json!({"node": "a", "name": name}));
    }
    bench.io("d", "write -P 2 0 64k");
    let snapshot = bench.images.path("snap.qcow2");
    let actions = json!([
        action("block-dirty-bitmap-add", json!({"node": "a", "name": "new", "disabled": true})),
        action("block-dirty-bitmap-merge", json!({"node": "a", "target": "new", "bitmaps": ["old"]})),
        action("block-dirty-bitmap-enable", json!({"node": "a", "name": "new"})),
        action("block-dirty-bitmap-disable", json!({"node": "a", "name": "cleared"})),
        action("block-dirty-bitmap-clear", json!({"node": "a", "name": "cleared"})),
        action("block-dirty-bitmap-remove", json!({"node": "a", "name": "old"})),
        action("blockdev-snapshot-internal-sync", json!({"device": "d", "name": "inside"})),
        action("blockdev-backup", json!({"device": "d", "target": "copy", "sync": "full", "job-id": "j"})),
        action("blockdev-snapshot-sync", json!({"device": "e", "snapshot-file": snapshot})),
    ]);
    bench.run("transaction", json!({"actions": actions}));
    bench.done("j");
    let bitmaps = bench.node("a")["dirty-bitmaps"].clone();
    let told: Vec<Value> = bitmaps
        .as_array()
        .unwrap()
        .iter()
        .map(|one| json!([one["name"], one["count"], one["recording"]]))
        .collect();
    assert_eq!(json!(told), json!([["new", 65536, true], ["cleared", 0, false]]));
    assert_eq!(bench.medium("e")["file"], snapshot);
    bench.run(
        "transaction",
        json!({"actions": [action("blockdev-snapshot", json!({"node": "a", "overlay": "over"}))]}),
    );
    bench.io("d", "write -P 3 0 64k");
    bench.run("transaction", json!({"actions": []}));
    let images = bench.quit();
    images.check("a.qcow2");
    images.same("a.qcow2", "copy.raw");
    let list = images.info("a.qcow2")["snapshots"].clone();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!("inside")));
    images.io("over.qcow2", &["read -P 3 0 64k"]);
}

#[test]
fn later_actions_find_what_earlier_ones_made() {
    let mut bench = bench();
    bench.run("block-dirty-bitmap-add", json!({"node": "a", "name": "old"}));
    bench.io("d", "write -P 2 0 64k");
    let (copy, unused) = (bench.images.path("copy.qcow2"), bench.images.path("unused.qcow2"));
    // As libvirt makes incremental backups.
    let actions = json!([
        action("block-dirty-bitmap-add", json!({"node": "a", "name": "mine", "disabled": true})),
        action("block-dirty-bitmap-merge", json!({"node": "a", "target": "mine", "bitmaps": ["old"]})),
        action(
            "drive-backup",
            json!({"device": "d", "target": copy, "sync": "incremental", "bitmap": "mine", "job-id": "j"})
        ),
    ]);
    bench.run("transaction", json!({"actions": actions}));
    assert_eq!(bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap()["data"]["len"], json!(65536));
    // Nothing is made for an action that is never tried.
    let actions = json!([
        action("abort", json!({})),
        action("drive-backup", json!({"device": "d", "target": unused, "sync": "full", "job-id": "j"})),
    ]);
    let refused = bench.refused("transaction", json!({"actions": actions}));
    assert_eq!(refused, "GenericError: Transaction aborted using Abort action");
    assert!(!std::path::Path::new(&unused).exists());
    // The making of an image is told on the standard output, in the words of the tools.
    let told = format!(
        "Formatting '{copy}', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib size=4194304 \
         lazy_refcounts=off refcount_bits=16\n"
    );
    assert!(bench.vm.console().contains(&told), "{}", bench.vm.console());
    let images = bench.quit();
    images.io("copy.qcow2", &["read -P 2 0 64k", "read -P 0 64k 1M"]);
}

#[test]
fn the_first_failure_takes_everything_back() {
    let mut bench = bench();
    bench.images.create("over.qcow2", "4M", &[]);
    bench.open("over", "over.qcow2", json!({"backing": null}));
    bench.images.create("copy.raw", "4M", &[]);
    bench.open("copy", "copy.raw", json!({}));
    bench.run("block-dirty-bitmap-add", json!({"node": "a", "name": "m", "persistent": true}));
    bench.run("block-dirty-bitmap-add", json!({"node": "a", "name": "n", "disabled": true}));
    bench.io("d", "write -P 2 0 1M");
    let before = state(&mut bench);
    let (snapshot, backup) = (bench.images.path("snap.qcow2"), bench.images.path("backup.qcow2"));
    let all = [
        action(
            "blockdev-snapshot-sync",
            json!({"device": "e", "snapshot-file": snapshot, "snapshot-node-name": "s"}),
        ),
        action("drive-backup", json!({"device": "d", "target": backup, "sync": "none", "job-id": "k"})),
        action("block-dirty-bitmap-add", json!({"node": "b", "name": "new"})),
        action("block-dirty-bitmap-merge", json!({"node": "a", "target": "n", "bitmaps": ["m"]})),
        action("block-dirty-bitmap-clear", json!({"node": "a", "name": "m"})),
        action("block-dirty-bitmap-disable", json!({"node": "a", "name": "m"})),
        action("block-dirty-bitmap-enable", json!({"node": "a", "name": "n"})),
        action("block-dirty-bitmap-remove", json!({"node": "a", "name": "m"})),
    ];
    let failures = [
        ("abort", json!({}), "Transaction aborted using Abort action"),
        ("block-dirty-bitmap-clear", json!({"node": "a", "name": "x"}), "Dirty bitmap 'x' not found"),
        (
            "blockdev-snapshot",
            json!({"node": "a", "overlay": "none"}),
            "Cannot find device='none' nor node-name='none'",
        ),
        ("blockdev-snapshot-internal-sync", json!({"device": "e", "name": ""}), "Name is empty"),
    ];
    for (kind, data, text) in failures {
        let mut actions = all.to_vec();
        actions.push(action(kind, data));
        // Never reached.
        actions.push(action("blockdev-snapshot", json!({"node": "a", "overlay": "over"})));
        let refused = bench.refused("transaction", json!({"actions": actions}));
        assert!(refused.ends_with(text), "{refused}");
        assert_eq!(bench.story("k", "null"), ["created", "aborting", "CANCELLED", "concluded", "null"]);
        assert_eq!(state(&mut bench), before, "after {kind}");
        assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    }
    let internal = json!([
        action("blockdev-snapshot-internal-sync", json!({"device": "d", "name": "inside"})),
        action("blockdev-snapshot-internal-sync", json!({"device": "e", "name": "inside"})),
        action("blockdev-snapshot", json!({"node": "a", "overlay": "over"})),
        action("abort", json!({})),
    ]);
    bench.refused("transaction", json!({"actions": internal}));
    assert!(bench.medium("d")["image"]["snapshots"].is_null());
    for text in ["unknown", ""] {
        let refused = bench.refused("transaction", json!({"actions": [action(text, json!({}))]}));
        assert!(refused.contains(&format!("'{text}'")), "{refused}");
    }
    bench.io("d", "read -P 2 0 1M");
    let images = bench.quit();
    for name in ["a.qcow2", "b.qcow2"] {
        images.check(name);
        assert!(images.info(name)["snapshots"].is_null());
    }
}

#[test]
fn overlays_of_two_drives_made_together_hold_the_same() {
    let mut bench = bench();
    for round in 0..8 {
        for count in 0..5 {
            let value = 10 + round * 5 + count;
            bench.io("d", &format!("write -q -P {value} 0 512"));
            bench.io("e", &format!("write -q -P {value} 0 512"));
        }
        let file = |bench: &Bench, drive: &str| bench.images.path(&format!("{drive}{round}.qcow2"));
        let (d, e) = (file(&bench, "d"), file(&bench, "e"));
        let actions = json!([
            action("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": d})),
            action("blockdev-snapshot-sync", json!({"device": "e", "snapshot-file": e})),
        ]);
        bench.run("transaction", json!({"actions": actions}));
    }
    let images = bench.quit();
    images.same("d7.qcow2", "e7.qcow2");
    images.same("d3.qcow2", "e3.qcow2");
    images.same("a.qcow2", "b.qcow2");
}

#[test]
fn reopening_changes_all_or_nothing() {
    let mut bench = bench();
    bench.images.create("base.qcow2", "4M", &[]);
    bench.images.create("other.qcow2", "4M", &[]);
    bench.images.create("top.qcow2", "4M", &[]);
    bench.images.io("base.qcow2", &["write -P 7 0 1M"]);
    bench.images.io("other.qcow2", &["write -P 8 0 1M"]);
    bench.open("base", "base.qcow2", json!({"read-only": true}));
    bench.open("other", "other.qcow2", json!({"read-only": true}));
    bench.open("top", "top.qcow2", json!({"backing": "base"}));
    bench.io("top", "read -P 7 0 1M");
    let top = |more: Value| {
        let mut all = json!({"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": "base"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    bench.run("blockdev-reopen", reopen(&[top(json!({"backing": "other"}))]));
    bench.io("top", "read -P 8 0 1M");
    bench.run("blockdev-reopen", reopen(&[top(json!({"backing": null}))]));
    bench.io("top", "read -P 0 0 1M");
    // As it was first called.
    bench.run("x-blockdev-reopen", top(json!({"backing": "base", "read-only": true})));
    assert_eq!(bench.node("top")["ro"], true);
    bench.io("top", "read -P 7 0 1M");
    let before = state(&mut bench);
    let mut missing = top(json!({}));
    missing.as_object_mut().unwrap().remove("backing");
    let cases = [
        (missing, "backing is missing for 'top'"),
        (top(json!({"driver": "raw"})), "Cannot change the option 'driver'"),
        (top(json!({"node-name": "x"})), "Failed to find node with node-name='x'"),
        (top(json!({"backing": "x"})), "Cannot find device='' nor node-name='x'"),
        (top(json!({"backing": "top"})), "Making 'top' a backing child of 'top' would create a cycle"),
        (top(json!({"file": "x"})), "Cannot find device='' nor node-name='x'"),
        (top(json!({"nonsense": 1})), "Cannot change the option 'nonsense'"),
        (top(json!({"detect-zeroes": "maybe"})), "does not accept value 'maybe'"),
    ];
    for (bad, text) in cases {
        // The good one comes first, and is taken back.
        let other =
            json!({"driver": "qcow2", "node-name": "other", "file": "other-file", "detect-zeroes": "on"});
        let refused = bench.refused("blockdev-reopen", reopen(&[other, bad]));
        assert!(refused.contains(text), "{refused}");
        assert_eq!(state(&mut bench), before, "{text}");
    }
    let unnamed = bench.refused("blockdev-reopen", reopen(&[json!({"driver": "raw"})]));
    assert_eq!(unnamed, "GenericError: node-name not specified");
    // A writer below forbids read-only; a drive without device is one once it is written.
    bench.io("d", "write -P 1 0 64k");
    let a = json!({"driver": "qcow2", "node-name": "a", "read-only": true});
    let refused = bench.refused("blockdev-reopen", reopen(&[top(json!({"backing": null})), a]));
    assert_eq!(refused, "GenericError: Read-only block node 'a' cannot support read-write users");
    assert_eq!(state(&mut bench), before);
    bench.io("top", "read -P 7 0 1M");
    bench.run("blockdev-reopen", reopen(&[top(json!({}))]));
    bench.io("top", "write -P 9 0 64k");
    let images = bench.quit();
    images.check("top.qcow2");
    images.io("top.qcow2", &["read -P 9 0 64k"]);
}

/// blockdev-reopen of these nodes at once.
fn reopen(list: &[Value]) -> Value {
    json!({"options": list})
}

/// `base` with other and further options.
fn with(base: &Value, more: Value) -> Value {
    let mut all = base.clone();
    more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
    all
}

#[test]
fn what_stands_on_what_is_reopened_too() {
    let mut bench = bench();
    for (name, value) in [("base.qcow2", 7), ("one.raw", 3), ("two.raw", 4)] {
        bench.images.create(name, "2M", &[]);
        bench.images.io(name, &[&format!("write -P {value} 0 1M"), "write -P 9 1M 1M"]);
    }
    bench.images.overlay("top.qcow2", "base.qcow2");
    let file = |bench: &Bench, name: &str| json!({"driver": "file", "filename": bench.images.path(name)});
    let top = json!({"driver": "qcow2", "node-name": "top", "file": file(&bench, "top.qcow2"),
        "backing": {"driver": "qcow2", "node-name": "base", "file": file(&bench, "base.qcow2")}});
    bench.run("blockdev-add", top.clone());
    let before = bench.run("query-named-block-nodes", json!({"flat": true}));
    bench.run("blockdev-reopen", reopen(&[with(&top, json!({"cache": {"no-flush": true}}))]));
    for name in ["top", "base"] {
        assert_eq!(bench.node(name)["cache"]["no-flush"], true, "{name}");
    }
    let on = with(&top["backing"], json!({"detect-zeroes": "on"}));
    bench.run("blockdev-reopen", reopen(&[with(&top, json!({"backing": on}))]));
    assert_eq!(bench.node("base")["detect_zeroes"], "on");
    assert_eq!(bench.node("base")["ro"], true);
    bench.run("blockdev-reopen", reopen(std::slice::from_ref(&top)));
    assert_eq!(bench.run("query-named-block-nodes", json!({"flat": true})), before);
    // By the monitor's command: what was said stays, the rest comes from above.
    bench.io("top", "reopen -o backing.detect-zeroes=on,cache.no-flush=on");
    let base = bench.node("base");
    assert_eq!((&base["detect_zeroes"], &base["cache"]["no-flush"]), (&json!("on"), &json!(true)));
    bench.io("top", "reopen -c writeback");
    let base = bench.node("base");
    assert_eq!((&base["detect_zeroes"], &base["cache"]["no-flush"]), (&json!("on"), &json!(false)));
    assert!(bench.try_io("top", "reopen -c none -o cache.direct=on").contains("Cannot set both"));
    let bad = bench.try_io("top", "reopen -o backing.nonsense=1");
    assert!(bad.contains("Cannot change the option 'nonsense'"), "{bad}");
    // A node that is only referred to keeps its options to itself.
    bench.run("blockdev-reopen", reopen(&[with(&top, json!({"backing": null}))]));
    bench.open("base", "base.qcow2", json!({"read-only": true}));
    bench.run("blockdev-reopen", reopen(&[with(&top, json!({"backing": "base"}))]));
    let refused = bench.refused("blockdev-reopen", reopen(&[top]));
    assert_eq!(refused, "GenericError: Cannot change the option 'backing.driver'");
    bench.io("top", "read -P 7 0 1M");

    // A backing file of which only the name of its file's node is said is the header's.
    bench.images.overlay("again.qcow2", "base.qcow2");
    bench.open(
        "again",
        "again.qcow2",
        json!({"backing": {"driver": "qcow2", "file": {"node-name": "below"}}}),
    );
    assert_eq!(bench.node("below")["file"], bench.images.path("base.qcow2"));
    bench.io("again", "read -P 7 0 1M");

    bench.open("one", "one.raw", json!({}));
    bench.open("two", "two.raw", json!({}));
    let raw = |name: &str, file: &str| json!({"driver": "raw", "node-name": name, "file": file});
    let part = with(&raw("one", "one-file"), json!({"offset": 1 << 20, "size": 65536}));
    bench.run("blockdev-reopen", reopen(&[part]));
    bench.io("one", "read -P 9 0 64k");
    assert_eq!(bench.node("one")["image"]["virtual-size"], 65536);
    bench.run("blockdev-reopen", reopen(&[raw("one", "one-file")]));
    bench.io("one", "read -P 3 0 1M");
    for _ in 0..2 {
        bench.run("blockdev-reopen", reopen(&[raw("one", "two-file"), raw("two", "one-file")]));
        bench.io("one", "read -P 4 0 1M");
        bench.run("blockdev-reopen", reopen(&[raw("one", "one-file"), raw("two", "two-file")]));
        bench.io("one", "read -P 3 0 1M");
    }
    bench.quit();
}

#[test]
fn an_image_is_read_anew_from_another_file() {
    let mut bench = bench();
    for (name, order) in [
        ("x.qcow2", ["write -P 5 0 64k", "write -P 6 1M 64k"]),
        ("y.qcow2", ["write -P 6 1M 64k", "write -P 8 0 64k"]),
    ] {
        bench.images.create(name, "2M", &[]);
        bench.images.io(name, &order);
    }
    bench.images.create("coarse.qcow2", "2M", &["-o", "cluster_size=128k"]);
    for name in ["x", "y", "coarse"] {
        bench.open(name, &format!("{name}.qcow2"), json!({}));
    }
    bench.io("x", "write -P 1 128k 64k");
    let image = |name: &str, file: &str| json!({"driver": "qcow2", "node-name": name, "file": file});
    // Each takes the other's file; alone none can.
    let taken = bench.refused("blockdev-reopen", reopen(&[image("x", "y-file")]));
    assert!(taken.contains("Permission conflict on node 'y-file'"), "{taken}");
    let swap = reopen(&[image("x", "y-file"), image("y", "x-file")]);
    // Bitmaps in a file that is taken would be lost.
    bench.run("block-dirty-bitmap-add", json!({"node": "y", "name": "b", "persistent": true}));
    bench.io("y", "write -P 9 1984k 64k");
    let refused = bench.refused("blockdev-reopen", swap.clone());
    assert_eq!(refused, "GenericError: The new file of node 'x' has dirty bitmaps of its own");
    let bitmap = bench.node("y")["dirty-bitmaps"][0].clone();
    assert_eq!((&bitmap["count"], &bitmap["recording"]), (&json!(65536), &json!(true)));
    bench.run("block-dirty-bitmap-remove", json!({"node": "y", "name": "b"}));
    bench.run("blockdev-reopen", swap);
    for (node, command) in [
        ("x", "read -P 8 0 64k"),
        ("x", "read -P 6 1M 64k"),
        ("x", "read -P 0 128k 64k"),
        ("y", "read -P 5 0 64k"),
        ("y", "read -P 1 128k 64k"),
        ("y", "write -P 2 512k 64k"),
    ] {
        bench.io(node, command);
    }
    let refused =
        bench.refused("blockdev-reopen", reopen(&[image("x", "coarse-file"), image("coarse", "y-file")]));
    assert_eq!(refused, "GenericError: The new file of node 'x' is not an image of the same kind");
    bench.io("x", "read -P 8 0 64k");
    let images = bench.quit();
    for name in ["x.qcow2", "y.qcow2", "coarse.qcow2"] {
        images.check(name);
    }
    images.io("x.qcow2", &["read -P 5 0 64k", "read -P 1 128k 64k", "read -P 2 512k 64k"]);
    images.io("y.qcow2", &["read -P 8 0 64k", "read -P 0 128k 64k"]);
}

#[test]
fn options_that_stay_as_they_are() {
    let mut bench = bench();
    bench.images.create("f.raw", "1M", &[]);
    let path = bench.images.path("f.raw");
    let file = json!({"driver": "file", "node-name": "f", "filename": path, "locking": "on"});
    let null = json!({"driver": "null-co", "node-name": "n", "size": 1024});
    for one in [&file, &null] {
        bench.run("blockdev-add", one.clone());
        bench.run("blockdev-reopen", reopen(std::slice::from_ref(one)));
    }
    let without = |from: &Value, key: &str| {
        let mut all = from.clone();
        all.as_object_mut().unwrap().remove(key);
        all
    };
    let mut cases = vec![
        (with(&file, json!({"locking": "off"})), "Cannot change the option 'locking'"),
        (without(&file, "locking"), "Option 'locking' cannot be reset to its default value"),
        (with(&file, json!({"aio": "io_uring"})), "Cannot change the option 'aio'"),
        (with(&file, json!({"force-share": true})), "Cannot change the option 'force-share'"),
        (with(&file, json!({"filename": "x"})), "Cannot change the option 'filename'"),
        (
            with(&file, json!({"filename": null})),
            "Invalid parameter type for 'options[0].filename', expected: string",
        ),
        (with(&null, json!({"size": 2048})), "Cannot change the option 'size'"),
        (without(&null, "size"), "Option 'size' cannot be reset to its default value"),
        (with(&null, json!({"driver": "x"})), "Parameter 'driver' does not accept value 'x'"),
    ];
    bench.run("blockdev-add", json!({"driver": "null-co", "node-name": "m", "size": 1024}));
    let quorum = json!({"driver": "quorum", "node-name": "q", "children": ["n", "m"], "vote-threshold": 1});
    bench.run("blockdev-add", quorum.clone());
    cases.push((quorum, "Block format 'quorum' used by node 'q' does not support reopening files"));
    for (options, text) in cases {
        let refused = bench.refused("blockdev-reopen", reopen(&[options]));
        assert_eq!(refused, format!("GenericError: {text}"));
    }
    bench.quit();
}

#[test]
fn jobs_run_when_all_is_prepared() {
    let mut bench = bench();
    let copy = |bench: &Bench, device: &str, job: &str| {
        let target = bench.images.path(&format!("{job}.qcow2"));
        action("drive-backup", json!({"device": device, "job-id": job, "target": target, "sync": "full"}))
    };
    let (one, two) = (copy(&bench, "d", "j"), copy(&bench, "e", "k"));
    let wrong = bench.refused("transaction", json!({"actions": [&one, &two, action("abort", json!({}))]}));
    assert_eq!(wrong, "GenericError: Transaction aborted using Abort action");
    for job in ["j", "k"] {
        assert_eq!(bench.story(job, "null"), ["created", "aborting", "CANCELLED", "concluded", "null"]);
    }
    assert_eq!(bench.run("query-jobs", Value::Null), json!([]));
    bench.run("transaction", json!({"actions": [one, two]}));
    let begins = |event: &Value| {
        ["created", "running", "paused"].iter().any(|status| event["data"]["status"] == *status)
    };
    let last = |event: &Value| event["data"] == json!({"id": "k", "status": "running"});
    // They begin while all disks are held, and are let go together.
    let mut events = bench.vm.qmp.events_until(begins, last, SOON).unwrap();
    events.extend(bench.vm.qmp.events_until(begins, last, SOON).unwrap());
    let story: Vec<String> =
        events.iter().map(|one| format!("{} {}", one["data"]["id"], one["data"]["status"])).collect();
    assert_eq!(story[..2], [r#""j" "created""#, r#""k" "created""#], "{story:?}");
    let held = [r#""j" "running""#, r#""j" "paused""#, r#""k" "running""#, r#""k" "paused""#];
    assert_eq!(story[2..6], held, "{story:?}");
    assert_eq!(story[6..], [r#""j" "running""#, r#""k" "running""#], "{story:?}");
    bench.done("j");
    bench.done("k");
    let images = bench.quit();
    images.same("a.qcow2", "j.qcow2");
    images.same("b.qcow2", "k.qcow2");
}
