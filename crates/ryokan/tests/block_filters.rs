//! The filter nodes that jobs put into the graph: what clients see of them and what is refused
//! while they are there (facts: QEMU 10 asked the same); what blkdebug hears of formats.

use serde_json::{Value, json};
use testkit::{Bench, Images};

/// base <- mid <- top under the device `vd`, and a node `t` of the same size.
fn bench() -> Bench {
    let images = Images::new();
    images.create("base.qcow2", "8M", &[]);
    images.io("base.qcow2", &["write -P 1 0 8M"]);
    images.overlay("mid.qcow2", "base.qcow2");
    images.io("mid.qcow2", &["write -P 2 0 4M"]);
    images.overlay("top.qcow2", "mid.qcow2");
    images.io("top.qcow2", &["write -P 3 1M 3M"]);
    images.create("t.qcow2", "8M", &[]);
    let node = |name: &str, more: &str| {
        let file = images.path(&format!("{name}.qcow2"));
        format!(
            "driver=qcow2,node-name={name},file.driver=file,file.filename={file},file.node-name={name}f{more}"
        )
    };
    let nodes = [node("base", ""), node("mid", ",backing=base"), node("top", ",backing=mid"), node("t", "")];
    let mut args: Vec<&str> = nodes.iter().flat_map(|node| ["-blockdev", node]).collect();
    args.extend(["-device", "virtio-blk,drive=top,id=vd"]);
    Bench::start(images, &args)
}

struct Case {
    command: &'static str,
    arguments: Value,
    kind: &'static str,
    driver: &'static str,
    /// The node that it shows.
    over: &'static str,
    /// Edges as `parent child: does | lets others do`, `#` for the filter.
    edges: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let slow = |mut more: Value| {
        more["job-id"] = "j".into();
        more["speed"] = 1.into();
        more
    };
    vec![
        Case {
            command: "blockdev-mirror",
            arguments: slow(json!({"device": "top", "target": "t", "sync": "full"})),
            kind: "mirror",
            driver: "mirror_top",
            over: "top",
            edges: &[
                "/machine/peripheral/vd/virtio-backend root #: cr w | cr wu rs",
                "j main node #: cr | cr w wu",
                "j source top: | cr w wu",
                "# backing top: cr w | cr wu",
                " root t: w | wu",
                "j target t: | cr w wu rs",
            ],
        },
        Case {
            command: "block-commit",
            arguments: slow(json!({"device": "top"})),
            kind: "commit",
            driver: "mirror_top",
            over: "top",
            edges: &[
                "j main node #: cr | cr w wu",
                "j source top: | cr w wu",
                "# backing top: w | cr w wu",
                "top backing mid: | cr w wu rs",
                "j intermediate node mid: | w wu",
                "mid backing base: | cr w wu rs",
                " root base: w | cr w wu",
                "j target base: | cr w wu rs",
            ],
        },
        Case {
            command: "block-commit",
            arguments: slow(json!({"device": "top", "top-node": "mid", "base-node": "base"})),
            kind: "commit",
            driver: "commit_top",
            over: "mid",
            edges: &[
                "j main node top: | cr w wu rs",
                "top backing #: cr | cr wu",
                "# backing mid: | cr w wu rs",
                "j intermediate node mid: | w wu",
                " root mid: | cr w wu rs",
                "mid backing base: | cr w wu rs",
                " root base: cr w | cr wu",
                "j base base: | cr w wu rs",
            ],
        },
        Case {
            command: "block-stream",
            arguments: slow(json!({"device": "top", "base-node": "base"})),
            kind: "stream",
            driver: "copy-on-read",
            over: "top",
            edges: &[
                "j main node #: | cr w wu rs",
                " root #: cr | cr w wu",
                "# file top: cr w wu | cr wu",
                "j active node top: | cr w wu",
                "j intermediate node mid: | cr wu",
            ],
        },
        Case {
            command: "blockdev-backup",
            arguments: slow(json!({"device": "top", "target": "t", "sync": "full"})),
            kind: "backup",
            driver: "copy-before-write",
            over: "top",
            edges: &[
                // A reader, so that nobody writes past it though it may be the only user.
                "j main node #: cr | cr w wu rs",
                "# file top: cr w | cr wu",
                "# target t: w | cr w wu",
                "j target t: | cr w wu rs",
            ],
        },
    ]
}

fn nodes(bench: &mut Bench) -> Vec<Value> {
    let all = bench.run("query-named-block-nodes", json!({"flat": true}));
    all.as_array().unwrap().clone()
}

fn edges(bench: &mut Bench) -> Vec<String> {
    let graph = bench.run("x-debug-query-block-graph", Value::Null);
    let name = |id: &Value| {
        let node = graph["nodes"].as_array().unwrap().iter().find(|node| node["id"] == *id).unwrap();
        let name = node["name"].as_str().unwrap();
        if name.starts_with('#') { "#".to_string() } else { name.to_string() }
    };
    let words = |list: &Value| {
        let short = [("consistent-read", "cr"), ("write", "w"), ("write-unchanged", "wu"), ("resize", "rs")];
        let has = |word: &str| list.as_array().unwrap().iter().any(|one| one == word);
        short.iter().filter(|(word, _)| has(word)).map(|(_, short)| format!(" {short}")).collect::<String>()
    };
    let tell = |edge: &Value| {
        let (parent, child) = (name(&edge["parent"]), name(&edge["child"]));
        let (does, lets) = (words(&edge["perm"]), words(&edge["shared-perm"]));
        format!("{parent} {} {child}:{does} |{lets}", edge["name"].as_str().unwrap())
    };
    graph["edges"].as_array().unwrap().iter().map(tell).collect()
}

#[test]
fn each_job_has_a_filter_that_query_block_leaves_out() {
    for case in cases() {
        let mut bench = bench();
        let medium = |bench: &mut Bench| bench.run("query-block", Value::Null)[0]["inserted"].clone();
        let (before, shown, graph) = (nodes(&mut bench), medium(&mut bench), edges(&mut bench));
        bench.run(case.command, case.arguments.clone());
        let during = nodes(&mut bench);
        let new: Vec<&Value> = during
            .iter()
            .filter(|node| before.iter().all(|old| old["node-name"] != node["node-name"]))
            .collect();
        let [filter] = new[..] else { panic!("{}: {new:?}", case.command) };
        assert!(filter["node-name"].as_str().unwrap().starts_with("#block"));
        assert_eq!(filter["drv"], case.driver);
        assert_eq!(filter["ro"], json!(case.driver == "commit_top"));
        assert_eq!(filter["file"], bench.images.path(&format!("{}.qcow2", case.over)));
        let now = medium(&mut bench);
        for key in ["node-name", "drv", "file", "backing_file", "backing_file_depth"] {
            assert_eq!(now[key], shown[key], "{} {key}", case.command);
        }
        let stats = bench.run("query-blockstats", Value::Null)[0].clone();
        assert_eq!(stats["node-name"], "top");
        assert_eq!(stats["backing"]["node-name"], "mid");
        let during = edges(&mut bench);
        for edge in case.edges {
            assert!(during.iter().any(|one| one == edge), "{}: {edge} is not in {during:#?}", case.command);
        }
        bench.run("block-job-cancel", json!({"device": "j", "force": true}));
        assert!(bench.story("j", "null").contains(&"CANCELLED".to_string()));
        // All is as it was, permissions too.
        assert_eq!(nodes(&mut bench).len(), before.len());
        assert_eq!(edges(&mut bench), graph, "{}", case.command);
        let images = bench.quit();
        ["base", "mid", "top"].iter().for_each(|name| images.check(&format!("{name}.qcow2")));
    }
}

#[test]
fn what_a_job_uses_is_not_taken_from_it() {
    for case in cases() {
        let mut bench = bench();
        bench.run(case.command, case.arguments.clone());
        let busy =
            format!("GenericError: Node 'top' is busy: block device is in use by block job: {}", case.kind);
        let filtered = case.over == "top";
        // A job has it, or a filter stands on it.
        let root = "GenericError: Need a root block node";
        let snapshot = json!({"node-name": "top", "snapshot-file": "s.qcow2", "snapshot-node-name": "s"});
        assert_eq!(bench.refused("blockdev-snapshot-sync", snapshot), busy);
        assert_eq!(bench.refused("block-stream", json!({"device": "top", "job-id": "k"})), busy);
        let copy = json!({"device": "top", "target": "t", "sync": "full", "job-id": "k"});
        assert_eq!(bench.refused("blockdev-backup", copy.clone()), busy);
        assert_eq!(bench.refused("blockdev-mirror", copy), root);
        assert_eq!(bench.refused("block-commit", json!({"device": "top", "job-id": "k"})), root);
        let internal = json!({"device": "top", "name": "s"});
        assert_eq!(bench.refused("blockdev-snapshot-internal-sync", internal), root);
        assert_eq!(bench.refused("block-commit", json!({"device": "mid", "job-id": "k"})), root);
        let alone =
            json!({"options": [{"driver": "qcow2", "node-name": "top", "file": "topf", "backing": null}]});
        match (case.command, filtered) {
            ("block-commit", false) => assert_eq!(
                bench.refused("blockdev-reopen", alone),
                "GenericError: Cannot replace implicit backing child of top"
            ),
            ("block-commit" | "block-stream", _) => assert_eq!(
                bench.refused("blockdev-reopen", alone),
                "GenericError: Cannot change frozen 'backing' link from 'top' to 'mid'"
            ),
            _ => {}
        }
        let same =
            json!({"options": [{"driver": "qcow2", "node-name": "top", "file": "topf", "backing": "mid"}]});
        bench.run("blockdev-reopen", same);
        assert_eq!(bench.job("j")["status"], "running");
        bench.quit();
    }
}

#[test]
fn a_disk_is_read_as_it_was_while_its_device_writes() {
    let images = Images::new();
    images.create("disk.qcow2", "4M", &[]);
    images.io("disk.qcow2", &["write -P 1 0 4M"]);
    images.create("temp.qcow2", "4M", &[]);
    let file = images.path("disk.qcow2");
    let disk = format!("driver=qcow2,node-name=disk,file.driver=file,file.filename={file}");
    let device = "scsi-hd,id=sda,drive=disk,serial=x";
    let mut bench =
        Bench::start(images, &["-blockdev", &disk, "-device", "virtio-scsi-pci", "-device", device]);
    bench.open("temp", "temp.qcow2", json!({"backing": "disk"}));
    bench.run(
        "blockdev-add",
        json!({"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "temp"}),
    );
    let property = |name: &str| json!({"path": "/machine/peripheral/sda", "property": name});
    let set = |name: &str, value: Value| {
        let mut arguments = property(name);
        arguments["value"] = value;
        arguments
    };
    for (refused, text) in [
        (set("drive", json!("nix")), "Cannot find device='' nor node-name='nix'"),
        (set("drive", json!(1)), "Invalid parameter type for 'drive', expected: string"),
        (
            set("serial", json!("y")),
            "Attempt to set property 'serial' on device 'sda' (type 'scsi-hd') after it was realized",
        ),
    ] {
        assert_eq!(bench.refused("qom-set", refused), format!("GenericError: {text}"));
    }
    assert_eq!(bench.run("qom-get", property("drive")), "disk");
    bench.run("qom-set", set("drive", json!("cbw")));
    assert_eq!(bench.run("qom-get", property("drive")), "cbw");
    bench.io("-d sda", "write -P 2 1M 1M");
    bench.io("temp", "read -P 1 0 4M");
    bench.io("-d sda", "read -P 2 1M 1M");
    let used = bench.refused("blockdev-del", json!({"node-name": "cbw"}));
    assert_eq!(used, "GenericError: Node cbw is in use");
    bench.run("qom-set", set("drive", json!("disk")));
    bench.run("blockdev-del", json!({"node-name": "cbw"}));
    bench.io("-d sda", "write -P 3 0 1M");
    bench.io("temp", "read -P 3 0 1M");
    let images = bench.quit();
    images.check("disk.qcow2");
    images.io("disk.qcow2", &["read -P 3 0 1M", "read -P 2 1M 1M", "read -P 1 2M 2M"]);
}

/// What formats do with their data is an event to blkdebug, by QEMU's names.
#[test]
fn formats_tell_blkdebug_of_reads_and_writes() {
    let formats = ["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "parallels"];
    let images = Images::new();
    for format in formats {
        let name = format!("a.{format}");
        images.create(&name, "1M", &[]);
        images.io(&name, &["write -P 1 0 64k"]);
    }
    let mut bench = Bench::start(images, &[]);
    for format in formats {
        for (event, command) in [("read_aio", "read -P 1 0 512"), ("write_aio", "write -P 1 0 512")] {
            let file = json!({"driver": "file", "filename": bench.images.path(&format!("a.{format}"))});
            let rules = json!([{"event": event, "errno": 28, "once": true}]);
            let debug = json!({"driver": "blkdebug", "image": file, "inject-error": rules});
            bench.run("blockdev-add", json!({"driver": format, "node-name": "n", "file": debug}));
            let said = bench.try_io("n", command);
            assert!(said.contains("failed: No space left on device"), "{format} {event}: {said}");
            bench.io("n", command);
            bench.run("blockdev-del", json!({"node-name": "n"}));
        }
    }
    bench.quit();
}
