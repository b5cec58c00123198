//! The graph of nodes over QMP: who uses whom, children that come and go, what is refused of
//! nodes in use, and how images and their chains are told of.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use testkit::bench::SOON;
use testkit::images::tool;
use testkit::{Bench, Images};

/// The edges of the graph as "parent/name -> child".
fn edges(bench: &mut Bench) -> BTreeSet<String> {
    let graph = bench.run("x-debug-query-block-graph", Value::Null);
    let list = |key: &str| graph[key].as_array().cloned().unwrap_or_default();
    let name = |id: &Value| {
        let found = list("nodes").into_iter().find(|node| node["id"] == *id);
        found.unwrap_or_else(|| panic!("no node {id} in {graph}"))["name"].as_str().unwrap_or("").to_string()
    };
    let tell = |edge: &Value| {
        format!(
            "{}/{} -> {}",
            name(&edge["parent"]),
            edge["name"].as_str().unwrap_or(""),
            name(&edge["child"])
        )
    };
    list("edges").iter().map(tell).collect()
}

#[test]
fn the_graph_names_every_user() {
    let mut bench = Bench::chain(&[]);
    let told = edges(&mut bench);
    for edge in ["d/root -> top", "top/file -> top-file", "top/backing -> base"] {
        assert!(told.contains(edge), "{edge} in {told:?}");
    }
    let graph = bench.run("x-debug-query-block-graph", Value::Null);
    let of = |name: &str| graph["nodes"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned();
    assert_eq!(of("d").unwrap()["type"], "block-backend");
    let top = of("top").unwrap();
    assert_eq!(top["type"], "block-driver");
    assert_eq!(graph["nodes"].as_array().unwrap().last(), of("d").as_ref(), "the first is told last");
    let list = graph["edges"].as_array().unwrap();
    let backing = list.iter().find(|edge| edge["parent"] == top["id"] && edge["name"] == "backing").unwrap();
    assert!(backing["perm"].as_array().unwrap().contains(&json!("consistent-read")), "{backing}");
    assert!(backing["shared-perm"].as_array().unwrap().contains(&json!("write-unchanged")), "{backing}");
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    let mirror = json!({"job-id": "m", "device": "d", "target": "copy", "sync": "full"});
    bench.run("blockdev-mirror", mirror);
    bench.story("m", "READY");
    let told = edges(&mut bench);
    assert!(told.iter().any(|edge| edge.starts_with("m/") && edge.ends_with("-> copy")), "{told:?}");
    bench.run("job-cancel", json!({"id": "m"}));
    bench.story("m", "null");
    bench.quit();
}

#[test]
fn a_quorum_gets_and_loses_children() {
    let images = Images::new();
    for name in ["a.raw", "b.raw", "c.raw", "short.raw"] {
        images.create(name, if name == "short.raw" { "1M" } else { "4M" }, &[]);
    }
    let mut bench = Bench::start(images, &[]);
    for node in ["a", "b", "c", "short"] {
        bench.open(node, &format!("{node}.raw"), json!({}));
    }
    bench.run(
        "blockdev-add",
        json!({"driver": "quorum", "node-name": "q", "vote-threshold": 2, "children": ["a", "b"]}),
    );
    bench.io("q", "write -P 7 0 64k");
    let change = "x-blockdev-change";
    for (asked, text) in [
        (json!({"parent": "x", "node": "c"}), "Cannot find device='x' nor node-name='x'"),
        (json!({"parent": "q"}), "Either child or node must be specified"),
        (
            json!({"parent": "q", "node": "c", "child": "children.0"}),
            "The parameters child and node are in conflict",
        ),
        (json!({"parent": "q", "node": "x"}), "Node 'x' not found"),
        (json!({"parent": "q", "node": "a"}), "The node a already has a parent"),
        (json!({"parent": "q", "node": "short"}), "Quorum children have different sizes"),
        (json!({"parent": "q", "child": "x"}), "Node 'q' does not have child 'x'"),
        (
            json!({"parent": "q", "child": "children.0"}),
            "The number of children cannot be lower than the vote threshold 2",
        ),
        (json!({"parent": "c", "node": "short"}), "The node c does not support adding a child"),
        (json!({"parent": "c", "child": "file"}), "The node c does not support removing a child"),
    ] {
        assert_eq!(bench.refused(change, asked), format!("GenericError: {text}"));
    }
    bench.run(change, json!({"parent": "q", "node": "c"}));
    assert!(edges(&mut bench).contains("q/children.2 -> c"));
    bench.io("q", "write -P 8 1M 64k");
    bench.run(change, json!({"parent": "q", "child": "children.0"}));
    assert!(!edges(&mut bench).iter().any(|edge| edge.starts_with("q/children.0")));
    // The new child has all since it came; the old one nothing since it went.
    bench.io("q", "write -P 9 2M 64k");
    bench.run("blockdev-del", json!({"node-name": "a"}));
    let images = bench.quit();
    images.io("c.raw", &["read -P 0 0 64k", "read -P 8 1M 64k", "read -P 9 2M 64k"]);
    images.io("b.raw", &["read -P 7 0 64k", "read -P 8 1M 64k", "read -P 9 2M 64k"]);
    images.io("a.raw", &["read -P 7 0 64k", "read -P 8 1M 64k", "read -P 0 2M 64k"]);
}

#[test]
fn a_node_that_others_stand_on_is_left_alone() {
    let mut bench = Bench::chain(&[]);
    let new = bench.images.path("new.qcow2");
    let busy = "GenericError: Node 'base' is busy: node is used as backing hd of 'top'";
    let snapshot = json!({"node-name": "base", "snapshot-node-name": "n", "snapshot-file": new});
    assert_eq!(bench.refused("blockdev-snapshot-sync", snapshot), busy);
    assert!(!std::path::Path::new(&new).exists());
    assert_eq!(bench.refused("blockdev-del", json!({"node-name": "base"})), busy);
    assert_eq!(
        bench.refused("blockdev-del", json!({"node-name": "top"})),
        "GenericError: Node top is in use"
    );
    let file = bench.refused("blockdev-del", json!({"node-name": "top-file"}));
    assert_eq!(file, "GenericError: Node top-file is not owned by the monitor");
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    let file = bench.refused("blockdev-del", json!({"node-name": "copy-file"}));
    assert_eq!(file, "GenericError: Node copy-file is not owned by the monitor");
    let mirror = json!({"job-id": "m", "device": "base", "target": "copy", "sync": "full"});
    assert_eq!(bench.refused("blockdev-mirror", mirror), "GenericError: Need a root block node");
    let backup = json!({"job-id": "j", "device": "d", "target": "copy", "sync": "none"});
    bench.run("blockdev-backup", backup);
    bench.story("j", "running");
    let text = "is busy: block device is in use by block job: backup";
    assert_eq!(
        bench.refused("blockdev-del", json!({"node-name": "copy"})),
        format!("GenericError: Node 'copy' {text}")
    );
    // A node is called by the drive that shows it.
    let stream = json!({"job-id": "s", "device": "d"});
    assert_eq!(bench.refused("block-stream", stream), format!("GenericError: Node 'd' {text}"));
    assert_eq!(
        bench.refused("block_resize", json!({"device": "d", "size": 8 << 20})),
        "GenericError: Device 'd' is in use"
    );
    bench.run("block-job-cancel", json!({"device": "j"}));
    bench.story("j", "null");
    bench.run("blockdev-del", json!({"node-name": "copy"}));
    bench.quit();
}

#[test]
fn chains_are_told_of_through_filters() {
    let mut bench = Bench::chain(&[]);
    bench.run("blockdev-add", json!({"driver": "copy-on-read", "node-name": "cor", "file": "top"}));
    let nested = bench.run("query-named-block-nodes", Value::Null);
    let node =
        |name: &str| nested.as_array().unwrap().iter().find(|one| one["node-name"] == name).cloned().unwrap();
    let (filter, top) = (node("cor"), node("top"));
    assert_eq!(filter["backing_file_depth"], json!(2));
    assert_eq!(filter["backing_file"], Value::Null);
    assert_eq!(filter["image"]["backing-image"], top["image"]);
    assert_eq!(filter["image"]["cluster-size"], json!(65536));
    assert_eq!(top["backing_file_depth"], json!(1));
    let base = bench.images.path("base.qcow2");
    assert_eq!(top["backing_file"], json!(base));
    assert_eq!(top["image"]["full-backing-filename"], json!(base));
    // Flat: each node for itself.
    let flat = bench.node("top");
    assert_eq!(flat["backing_file_depth"], json!(0));
    assert_eq!(flat["image"]["backing-image"], Value::Null);
    assert_eq!(flat["image"]["dirty-flag"], json!(false));
    // Sizes are whole sectors, whatever the file's.
    let file = bench.images.path("odd.raw");
    std::fs::write(&file, [0; 1000]).unwrap();
    bench.open("odd", "odd.raw", json!({}));
    assert_eq!(bench.node("odd-file")["image"]["virtual-size"], json!(1024));
    // Bitmaps: the newest first, and none that a job keeps for itself.
    for name in ["one", "two"] {
        bench.run("block-dirty-bitmap-add", json!({"node": "top", "name": name}));
    }
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({}));
    bench.run("blockdev-del", json!({"node-name": "cor"}));
    bench.run("blockdev-mirror", json!({"job-id": "m", "device": "d", "target": "copy", "sync": "full"}));
    bench.story("m", "READY");
    let bitmaps = bench.medium("d")["dirty-bitmaps"].clone();
    let names: Vec<_> = bitmaps.as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, [json!("two"), json!("one")]);
    bench.run("job-cancel", json!({"id": "m"}));
    bench.story("m", "null");
    bench.quit();
}

#[test]
fn the_name_of_a_job_is_free_with_its_last_event() {
    let mut bench = Bench::chain(&[]);
    bench.images.create("copy.raw", "4M", &[]);
    bench.open("copy", "copy.raw", json!({}));
    for round in 0..40 {
        let backup =
            json!({"device": "d", "target": "copy", "sync": if round % 2 == 0 { "top" } else { "none" }});
        bench.run("blockdev-backup", backup);
        if round % 2 == 1 {
            bench.run("block-job-cancel", json!({"device": "d"}));
            bench.vm.qmp.event("BLOCK_JOB_CANCELLED", SOON).unwrap();
            continue;
        }
        let ended = bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
        // Only what the top image holds is counted.
        assert_eq!((&ended["data"]["len"], &ended["data"]["error"]), (&json!(512 << 10), &Value::Null));
    }
    let backup = json!({"device": "d", "target": "copy", "sync": "full", "auto-dismiss": false});
    bench.run("blockdev-backup", backup);
    bench.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON).unwrap();
    assert_eq!(bench.job("d")["busy"], json!(false));
    bench.run("job-dismiss", json!({"id": "d"}));
    bench.run("blockdev-del", json!({"node-name": "copy"}));
    bench.quit();
}

/// Names as QEMU 10 gives them for the same nodes.
#[test]
fn names_tell_what_opens_the_same_nodes_again() {
    let images = Images::new();
    images.create("base.qcow2", "1M", &[]);
    images.io("base.qcow2", &["write -P 1 0 64k"]);
    images.overlay("mid.qcow2", "base.qcow2");
    images.overlay("top.qcow2", "mid.qcow2");
    for name in ["a.raw", "b.raw", "cfg.raw"] {
        images.create(name, "1M", &[]);
    }
    std::fs::write(images.path("cfg.raw"), "").unwrap();
    let path = |name: &str| images.path(name);
    let dir = path("");
    let file = |name: &str| json!({"driver": "file", "filename": path(name), "locking": "off"});
    let zero = json!({"driver": "null-co"});
    let sized = json!({"driver": "null-co", "size": 1 << 20, "read-zeroes": true, "latency-ns": 1});
    let image = |driver: &str, name: &str, more: Value| {
        let mut all = json!({"driver": driver, "read-only": true, "file": file(name)});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    let rules = json!([{"event": "read_aio", "errno": 7, "once": true}]);
    let blkdebug = |mut more: Value| {
        more["driver"] = "blkdebug".into();
        more["image"] = file("a.raw");
        json!({"driver": "raw", "read-only": true, "file": more})
    };
    let nodes = [
        (zero.clone(), "null-co://"),
        (sized.clone(), r#"json:{"read-zeroes": true, "driver": "null-co", "size": 1048576}"#),
        (
            json!({"driver": "throttle", "throttle-group": "tg", "file": zero}),
            r#"json:{"throttle-group": "tg", "driver": "throttle", "file": {"driver": "null-co"}}"#,
        ),
        (
            image("raw", "a.raw", json!({"offset": 512, "size": 1024})),
            r#"json:{"offset": 512, "driver": "raw", "size": 1024, "file": {"driver": "file", "filename": "@a.raw"}}"#,
        ),
        (
            json!({"driver": "raw", "read-only": true, "file": image("qcow2", "base.qcow2", json!({}))}),
            r#"json:{"driver": "raw", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": "@base.qcow2"}}}"#,
        ),
        (blkdebug(json!({"config": path("cfg.raw")})), "blkdebug:@cfg.raw:@a.raw"),
        (blkdebug(json!({})), "blkdebug::@a.raw"),
        (
            blkdebug(json!({"inject-error": rules})),
            r#"json:{"driver": "raw", "file": {"inject-error.0.once": true, "image": {"driver": "file", "filename": "@a.raw"}, "driver": "blkdebug", "inject-error.0.errno": 7, "inject-error.0.event": "read_aio"}}"#,
        ),
        (
            json!({"driver": "blkverify", "test": image("raw", "a.raw", json!({})), "raw": file("b.raw")}),
            "blkverify:@b.raw:@a.raw",
        ),
        (
            json!({"driver": "quorum", "vote-threshold": 1, "rewrite-corrupted": false, "read-pattern": "fifo",
                "read-only": true, "children": [file("a.raw"), image("raw", "b.raw", json!({}))]}),
            r#"json:{"read-pattern": "fifo", "children": [{"driver": "file", "filename": "@a.raw"}, {"driver": "raw", "file": {"driver": "file", "filename": "@b.raw"}}], "driver": "quorum", "rewrite-corrupted": false, "vote-threshold": 1}"#,
        ),
        (image("qcow2", "top.qcow2", json!({})), "@top.qcow2"),
        (
            image("qcow2", "mid.qcow2", json!({"backing": null})),
            r#"json:{"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "@mid.qcow2"}}"#,
        ),
        (
            image("qcow2", "mid.qcow2", json!({"backing": sized})),
            r#"json:{"backing": {"read-zeroes": true, "driver": "null-co", "size": 1048576}, "driver": "qcow2", "file": {"driver": "file", "filename": "@mid.qcow2"}}"#,
        ),
        (
            image(
                "qcow2",
                "top.qcow2",
                json!({"backing": image("qcow2", "mid.qcow2", json!({"backing": null}))}),
            ),
            r#"json:{"backing": {"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "@mid.qcow2"}}, "driver": "qcow2", "file": {"driver": "file", "filename": "@top.qcow2"}}"#,
        ),
    ];
    let mut bench = Bench::start(images, &["-object", "throttle-group,id=tg,x-iops-total=1000"]);
    for (at, (mut options, name)) in nodes.into_iter().enumerate() {
        let node = format!("n{at}");
        options["node-name"] = node.as_str().into();
        bench.run("blockdev-add", options);
        assert_eq!(bench.node(&node)["file"], name.replace('@', &dir));
    }
    // Another tool opens the same chain by the name, and so does a snapshot of it.
    let name = bench.node("n13")["file"].as_str().unwrap().to_string();
    let over = bench.images.path("over.qcow2");
    let snapshot = json!({"node-name": "n13", "snapshot-node-name": "over", "snapshot-file": over});
    bench.run("blockdev-snapshot-sync", snapshot);
    let images = bench.quit();
    assert_eq!(images.info("over.qcow2")["backing-filename"], name);
    images.io("top.qcow2", &["read -P 1 0 64k"]);
    images.io("over.qcow2", &["read -P 0 0 64k"]);
}

/// As in QEMU: what `-blockdev` says in words is recorded by its types, what `-drive` says as words.
#[test]
fn words_of_blockdev_are_recorded_by_their_types() {
    let images = Images::new();
    images.create("a.raw", "1M", &[]);
    let dir = images.path("");
    let rule = "inject-error.0.event=read_aio,inject-error.0.errno=7,inject-error.0.once=on";
    let below = format!("driver=blkdebug,{rule},image.driver=file,image.filename={}", images.path("a.raw"));
    let debug = format!("{below},node-name=debug");
    let drive = "if=none,id=d,driver=null-co,read-zeroes=on,node-name=drive";
    let mut bench = Bench::start(
        images,
        &[
            "-blockdev",
            "driver=null-co,node-name=null,read-zeroes=on,size=1024",
            "-blockdev",
            "driver=raw,node-name=raw,offset=1k,file.driver=null-co,file.read-zeroes=yes",
            "-blockdev",
            &debug,
            "-drive",
            drive,
        ],
    );
    for (node, name) in [
        ("null", r#"json:{"read-zeroes": true, "driver": "null-co", "size": 1024}"#),
        (
            "raw",
            r#"json:{"offset": 1024, "driver": "raw", "file": {"read-zeroes": true, "driver": "null-co"}}"#,
        ),
        (
            "debug",
            r#"json:{"inject-error.0.once": true, "image": {"driver": "file", "filename": "@a.raw"}, "driver": "blkdebug", "inject-error.0.errno": 7, "inject-error.0.event": "read_aio"}"#,
        ),
        ("drive", r#"json:{"read-zeroes": "on", "driver": "null-co"}"#),
    ] {
        assert_eq!(bench.node(node)["file"], name.replace('@', &dir));
    }
    bench.quit();
}

/// What becomes a backing file is read-only, and so is its file if it was opened with it.
#[test]
fn a_file_node_of_its_own_stays_writable_below_a_snapshot() {
    let images = Images::new();
    for name in ["a.qcow2", "b.qcow2", "top-a.qcow2", "top-b.qcow2"] {
        images.create(name, "1M", &[]);
    }
    let mut bench = Bench::start(images, &[]);
    let file = |bench: &Bench, name: &str, node: &str| json!({"driver": "file", "node-name": node, "filename": bench.images.path(name)});
    let (own, inner) = (file(&bench, "a.qcow2", "a-file"), file(&bench, "b.qcow2", "b-file"));
    bench.run("blockdev-add", own);
    bench.run("blockdev-add", json!({"driver": "qcow2", "node-name": "a", "file": "a-file"}));
    bench.run("blockdev-add", json!({"driver": "qcow2", "node-name": "b", "file": inner}));
    for node in ["a", "b"] {
        let top = format!("top-{node}");
        bench.open(&top, &format!("{top}.qcow2"), json!({"backing": null}));
        bench.run("blockdev-snapshot", json!({"node": node, "overlay": top}));
    }
    let read_only = ["a", "a-file", "b", "b-file"].map(|node| bench.node(node)["ro"] == true);
    assert_eq!(read_only, [true, false, true, true]);
    bench.quit();
}

/// With an offset alone, all behind it is the disk, however long it is.
#[test]
fn a_window_without_a_size_is_resized_with_its_file() {
    let images = Images::new();
    images.create("a.raw", "64k", &[]);
    let mut bench = Bench::start(images, &[]);
    bench.open("w", "a.raw", json!({"offset": 4096}));
    let size = |bench: &mut Bench| bench.node("w")["image"]["virtual-size"].clone();
    assert_eq!(size(&mut bench), 61440);
    bench.run("block_resize", json!({"node-name": "w", "size": 1 << 20}));
    bench.io("w", "write -P 7 1023k 1k");
    assert_eq!(size(&mut bench), 1 << 20);
    let fixed = json!({"driver": "raw", "node-name": "w", "offset": 4096, "size": 8192, "file": "w-file"});
    bench.run("blockdev-reopen", json!({"options": [fixed]}));
    let why = bench.refused("block_resize", json!({"node-name": "w", "size": 4096}));
    assert_eq!(why, "GenericError: Cannot resize fixed-size raw disks");
    let bytes = bench.quit().bytes("a.raw");
    assert_eq!((bytes.len(), bytes[(1 << 20) + 4095]), ((1 << 20) + 4096, 7));
}

/// Backing files may be anything, and users look at them; where an image's own data lie is a path.
#[test]
fn what_images_name_for_their_data_is_a_path() {
    let images = Images::new();
    let data = images.path("data");
    images.create("a.qcow2", "1M", &["-o", &format!("data_file={data}")]);
    let image = images.path("a.qcow2");
    tool("qemu-img", &["amend", "-f", "qcow2", "-o", &format!("data_file=blkdebug::{data}"), &image]);
    let head =
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
    let extent = |name: &str| format!("{head}\nRW 2048 FLAT \"{name}\" 0\n");
    std::fs::write(images.path("plain.vmdk"), extent("data")).unwrap();
    std::fs::write(images.path("a.vmdk"), extent(&format!("blkdebug::{data}"))).unwrap();
    let mut bench = Bench::start(images, &[]);
    for driver in ["qcow2", "vmdk"] {
        let file = json!({"driver": "file", "filename": bench.images.path(&format!("a.{driver}"))});
        let why = bench.refused("blockdev-add", json!({"driver": driver, "node-name": "n", "file": file}));
        assert!(why.contains("blkdebug::") && why.ends_with("No such file or directory"), "{driver}: {why}");
    }
    bench.open("plain", "plain.vmdk", json!({}));
    let debug = json!({"driver": "blkdebug", "image": {"driver": "file", "filename": data}});
    bench.open("a", "a.qcow2", json!({"data-file": debug}));
    bench.quit();
}
