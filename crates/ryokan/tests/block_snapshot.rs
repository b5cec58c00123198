//! Snapshots over QMP: over an image, inside of one, and their ends.

use serde_json::{Value, json};
use testkit::images::tool;
use testkit::{Bench, Images};

fn bench() -> Bench {
    let images = Images::new();
    images.create("a.qcow2", "4M", &[]);
    images.io("a.qcow2", &["write -P 1 0 2M"]);
    let drive = format!("if=none,id=d,driver=qcow2,node-name=a,file.filename={}", images.path("a.qcow2"));
    Bench::start(images, &["-drive", &drive])
}

#[test]
fn an_overlay_takes_the_writes_and_the_image_below_stays() {
    let mut bench = bench();
    let paths = ["s1.qcow2", "s2.qcow2"].map(|name| bench.images.path(name));
    bench.run("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": paths[0], "format": "qcow2"}));
    let before = bench.images.bytes("a.qcow2");
    let medium = bench.medium("d");
    assert_eq!(
        (&medium["file"], &medium["backing_file"]),
        (&json!(paths[0]), &json!(bench.images.path("a.qcow2")))
    );
    assert_eq!(bench.node("a")["ro"], true);
    bench.io("d", "write -P 2 1M 64k");
    let name = medium["node-name"].clone();
    let by_node = json!({"node-name": name, "snapshot-file": paths[1], "snapshot-node-name": "second"});
    bench.run("blockdev-snapshot-sync", by_node);
    assert_eq!(bench.medium("d")["node-name"], "second");
    bench.io("d", "write -P 3 0 64k");
    bench.io("d", "read -P 1 64k 960k");
    bench.io("d", "read -P 2 1M 64k");
    let images = bench.quit();
    assert!(images.bytes("a.qcow2") == before, "the image below was written");
    for (name, below) in [("s1.qcow2", "a.qcow2"), ("s2.qcow2", "s1.qcow2")] {
        let info = images.info(name);
        assert_eq!(info["backing-filename"], images.path(below));
        assert_eq!(
            (&info["backing-filename-format"], &info["virtual-size"]),
            (&json!("qcow2"), &json!(4 << 20))
        );
        images.check(name);
    }
    images.io("s2.qcow2", &["read -P 3 0 64k", "read -P 2 1M 64k"]);
    images.io("s1.qcow2", &["read -P 1 0 1M"]);
}

#[test]
fn overlays_that_exist_and_overlays_that_are_open() {
    let mut bench = bench();
    bench.images.create("mine.qcow2", "4M", &[]);
    let header = bench.images.info("mine.qcow2")["backing-filename"].clone();
    let mine = bench.images.path("mine.qcow2");
    bench.run("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": mine, "mode": "existing"}));
    bench.io("d", "read -P 1 0 2M");
    bench.images.create("open.qcow2", "4M", &[]);
    bench.open("open", "open.qcow2", json!({"backing": null}));
    bench.run("blockdev-snapshot", json!({"node": "d", "overlay": "open"}));
    assert_eq!(
        (&bench.medium("d")["node-name"], &bench.medium("d")["backing_file_depth"]),
        (&json!("open"), &json!(2))
    );
    bench.io("d", "write -P 4 0 64k");
    let used = bench.refused("blockdev-del", json!({"node-name": "open"}));
    assert_eq!(used, "GenericError: Node open is in use");
    let images = bench.quit();
    // What is in the headers was left to the user.
    assert_eq!(images.info("mine.qcow2")["backing-filename"], header);
    images.check("open.qcow2");
    images.io("open.qcow2", &["read -P 4 0 64k"]);
}

#[test]
fn what_external_snapshots_refuse_leaves_everything() {
    let mut bench = bench();
    bench.images.create("plain.raw", "4M", &[]);
    bench.open("plain", "plain.raw", json!({}));
    bench.images.create("based.qcow2", "4M", &[]);
    bench.open("based", "based.qcow2", json!({"backing": "plain"}));
    bench.images.create("copy.qcow2", "4M", &[]);
    bench.open("copy", "copy.qcow2", json!({"backing": null}));
    let before = bench.run("query-named-block-nodes", json!({"flat": true}));
    let file = bench.images.path("s.qcow2");
    let sync = |more: Value| {
        let mut all = json!({"snapshot-file": file});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    let sync_cases = [
        (json!({"device": "x"}), "Cannot find device='x' nor node-name=''"),
        (json!({"node-name": "x", "snapshot-node-name": "s"}), "Cannot find device='' nor node-name='x'"),
        (json!({"node-name": "a"}), "New overlay node-name missing"),
        (json!({"node-name": "a", "snapshot-node-name": "copy"}), "New overlay node-name already in use"),
        (json!({"device": "d", "format": "nonsense"}), "Invalid block format 'nonsense'"),
        (json!({"device": "d", "format": "raw"}), "The overlay does not support backing images"),
        (
            json!({"device": "d", "mode": "existing"}),
            &format!("Could not open '{file}': No such file or directory"),
        ),
    ];
    for (more, text) in sync_cases {
        let refused = bench.refused("blockdev-snapshot-sync", sync(more));
        assert_eq!(refused, format!("GenericError: {text}"));
    }
    let cases = [
        ("a", "x", "Cannot find device='x' nor node-name='x'"),
        ("x", "copy", "Cannot find device='x' nor node-name='x'"),
        ("a", "based", "The overlay already has a backing image"),
        ("a", "plain", "The overlay does not support backing images"),
        ("copy", "a", "The overlay is already in use"),
    ];
    for (node, overlay, text) in cases {
        let refused = bench.refused("blockdev-snapshot", json!({"node": node, "overlay": overlay}));
        assert_eq!(refused, format!("GenericError: {text}"), "{node} {overlay}");
    }
    assert_eq!(bench.run("query-named-block-nodes", json!({"flat": true})), before);
    bench.images.create("slow.raw", "4M", &[]);
    bench.open("slow", "slow.raw", json!({}));
    bench.run("blockdev-backup", json!({"device": "d", "target": "slow", "sync": "full", "speed": 65536}));
    let busy = bench.refused("blockdev-snapshot", json!({"node": "a", "overlay": "copy"}));
    assert_eq!(busy, "GenericError: Node 'a' is busy: block device is in use by block job: backup");
    let busy = bench.refused("blockdev-snapshot-internal-sync", json!({"device": "d", "name": "s"}));
    assert_eq!(busy, "GenericError: Need a root block node");
    bench.run("job-cancel", json!({"id": "d"}));
    bench.story("d", "null");
    bench.quit();
}

#[test]
fn internal_snapshots_are_made_found_and_deleted() {
    let mut bench = bench();
    for (name, value) in [("one", 2), ("two", 3)] {
        bench.run("blockdev-snapshot-internal-sync", json!({"device": "d", "name": name}));
        bench.io("d", &format!("write -P {value} 0 1M"));
    }
    let refuse = |bench: &mut Bench, command: &str, arguments: Value, text: &str| {
        assert_eq!(bench.refused(&format!("blockdev-snapshot-{command}"), arguments), text);
    };
    let text = "GenericError: Snapshot with name 'one' already exists on device 'd'";
    refuse(&mut bench, "internal-sync", json!({"device": "d", "name": "one"}), text);
    refuse(&mut bench, "internal-sync", json!({"device": "d", "name": ""}), "GenericError: Name is empty");
    let text = "DeviceNotFound: Device 'x' not found";
    refuse(&mut bench, "internal-sync", json!({"device": "x", "name": "s"}), text);
    refuse(&mut bench, "delete-internal-sync", json!({"device": "x", "name": "s"}), text);
    let text = "GenericError: Name or id must be provided";
    refuse(&mut bench, "delete-internal-sync", json!({"device": "d"}), text);
    for (given, text) in [
        (json!({"name": "x"}), "id '(null)' and name 'x'"),
        (json!({"id": "9"}), "id '9' and name '(null)'"),
        (json!({"id": "1", "name": "two"}), "id '1' and name 'two'"),
    ] {
        let mut arguments = given;
        arguments["device"] = "d".into();
        let text = format!("GenericError: Snapshot with {text} does not exist on device 'd'");
        refuse(&mut bench, "delete-internal-sync", arguments, &text);
    }
    let told = bench.medium("d")["image"]["snapshots"].clone();
    let told: Vec<_> = told.as_array().unwrap().iter().map(|one| (&one["id"], &one["name"])).collect();
    assert_eq!(told, [(&json!("1"), &json!("one")), (&json!("2"), &json!("two"))]);
    let shown = bench.vm.qmp.hmp("info block -v d").unwrap();
    assert!(shown.contains("Snapshot list:\r\nID ") && shown.contains("\n2         two "), "{shown}");
    let gone =
        bench.run("blockdev-snapshot-delete-internal-sync", json!({"device": "d", "id": "1", "name": "one"}));
    assert_eq!(gone["name"], "one");
    assert_eq!(
        (&gone["id"], &gone["vm-state-size"], &gone["vm-clock-sec"]),
        (&json!("1"), &json!(0), &json!(0))
    );
    bench.run("blockdev-snapshot-internal-sync", json!({"device": "d", "name": "three"}));
    bench.io("d", "write -P 9 0 4M");
    let images = bench.quit();
    images.check("a.qcow2");
    let path = images.path("a.qcow2");
    let list = tool("qemu-img", &["snapshot", "-l", &path]);
    assert!(list.contains("two") && list.contains("three") && !list.contains("one"), "{list}");
    for (name, value) in [("two", 2), ("three", 3)] {
        tool("qemu-img", &["snapshot", "-a", name, &path]);
        images.check("a.qcow2");
        images.io("a.qcow2", &[&format!("read -P {value} 0 1M"), "read -P 1 1M 1M"]);
    }
}

#[test]
fn other_formats_and_read_only_disks_have_no_internal_snapshots() {
    let images = Images::new();
    images.create("r.raw", "1M", &[]);
    images.create("q.qcow2", "1M", &[]);
    let raw = format!("if=none,id=r,format=raw,file={}", images.path("r.raw"));
    let fixed = format!("if=none,id=q,format=qcow2,read-only=on,file={}", images.path("q.qcow2"));
    let mut bench = Bench::start(images, &["-drive", &raw, "-drive", &fixed]);
    let refused = bench.refused("blockdev-snapshot-internal-sync", json!({"device": "r", "name": "s"}));
    assert_eq!(
        refused,
        "GenericError: Block format 'raw' used by device 'r' does not support internal snapshots"
    );
    let refused =
        bench.refused("blockdev-snapshot-delete-internal-sync", json!({"device": "r", "name": "s"}));
    assert_eq!(
        refused,
        "GenericError: Block format 'raw' used by device 'r' does not support internal snapshot deletion"
    );
    let refused = bench.refused("blockdev-snapshot-internal-sync", json!({"device": "q", "name": "s"}));
    assert_eq!(refused, "GenericError: Device 'q' is read only");
    bench.quit();
}
