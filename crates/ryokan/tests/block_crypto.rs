//! Encrypted disks over QMP: secrets, LUKS and qcow2, made here and read by the usual tools.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testkit::Vm;

const PASSWORD: &str = "correct horse";

fn idle() -> Vm {
    let secret = format!("secret,id=k,data={PASSWORD}");
    Vm::start(&["-machine", "none", "-accel", "qtest", "-object", &secret]).unwrap()
}

/// Runs `blockdev-create` to its end; an error is what the job says.
fn create(vm: &mut Vm, options: Value) -> Result<(), String> {
    vm.qmp.execute("blockdev-create", json!({"job-id": "c", "options": options}))?;
    loop {
        let event = vm.qmp.event("JOB_STATUS_CHANGE", Duration::from_secs(60))?;
        if event["data"]["status"] == "concluded" {
            break;
        }
    }
    let jobs = vm.qmp.execute("query-jobs", Value::Null)?;
    vm.qmp.execute("job-dismiss", json!({"id": "c"}))?;
    match jobs[0]["error"].as_str() {
        Some(error) => Err(error.to_string()),
        None => Ok(()),
    }
}

fn file(vm: &mut Vm, name: &str) -> std::path::PathBuf {
    let path = vm.dir().join(name);
    std::fs::write(&path, []).unwrap();
    let node = json!({"driver": "file", "node-name": "f", "filename": path});
    vm.qmp.execute("blockdev-add", node).unwrap();
    path
}

#[track_caller]
fn io(vm: &mut Vm, node: &str, command: &str) {
    let line = json!({"command-line": format!("qemu-io {node} \"{command}\"")});
    vm.qmp.execute("human-monitor-command", line).unwrap();
    // As in QEMU its output goes to the standard output.
    let said = vm.expect("ops", Duration::from_secs(20)).unwrap();
    assert!(!said.contains("failed"), "{command}: {said}");
}

#[track_caller]
fn judged(image: &str, path: &Path, command: &str) {
    let object = format!("secret,id=k,data={PASSWORD}");
    let image = format!("{image},file.filename={}", path.display());
    let mut judge = Command::new("qemu-io");
    let out = judge.args(["--object", &object, "--image-opts", &image, "-c", command]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("ops") && !text.contains("failed"), "{command}: {text}");
}

#[test]
fn luks_and_qcow2_are_made_used_and_read_elsewhere() {
    let mut vm = idle();
    let path = file(&mut vm, "disk.luks");
    let luks = json!({"driver": "luks", "file": "f", "size": 4 << 20, "key-secret": "k", "iter-time": 10});
    create(&mut vm, luks.clone()).unwrap();
    let mut wrong = luks;
    wrong["key-secret"] = "none".into();
    assert!(create(&mut vm, wrong).unwrap_err().contains("No secret with id 'none'"));
    let node = |key: &str| json!({"driver": "luks", "node-name": "n", "file": "f", "key-secret": key});
    let said = vm.qmp.execute("blockdev-add", node("none")).unwrap_err();
    assert!(said.contains("No secret with id 'none'"), "{said}");
    vm.qmp.execute("object-add", json!({"qom-type": "secret", "id": "w", "data": "wrong"})).unwrap();
    let said = vm.qmp.execute("blockdev-add", node("w")).unwrap_err();
    assert!(said.contains("Invalid password, cannot unlock any keyslot"), "{said}");
    vm.qmp.execute("blockdev-add", node("k")).unwrap();
    io(&mut vm, "n", "write -P 0x21 1000 101k");
    io(&mut vm, "n", "read -P 0x21 1000 100k");
    let nodes = vm.qmp.execute("query-named-block-nodes", Value::Null).unwrap();
    let shown = nodes.as_array().unwrap().iter().find(|one| one["node-name"] == "n").unwrap();
    assert_eq!(shown["encrypted"], true);
    for name in ["n", "f"] {
        vm.qmp.execute("blockdev-del", json!({"node-name": name})).unwrap();
    }
    judged("driver=luks,key-secret=k", &path, "read -P 0x21 1024 100k");

    let path = file(&mut vm, "disk.qcow2");
    let encrypt = json!({"format": "luks", "key-secret": "k", "iter-time": 10});
    let qcow2 = json!({"driver": "qcow2", "file": "f", "size": 64 << 20, "encrypt": encrypt});
    create(&mut vm, qcow2).unwrap();
    let encrypt = json!({"format": "luks", "key-secret": "k"});
    let node = json!({"driver": "qcow2", "node-name": "n", "file": "f", "encrypt": encrypt});
    vm.qmp.execute("blockdev-add", node).unwrap();
    io(&mut vm, "n", "write -P 0x22 1000 101k");
    io(&mut vm, "n", "write -z 0 512");
    for name in ["n", "f"] {
        vm.qmp.execute("blockdev-del", json!({"node-name": name})).unwrap();
    }
    judged("driver=qcow2,encrypt.key-secret=k", &path, "read -P 0x22 1024 100k");
    judged("driver=qcow2,encrypt.key-secret=k", &path, "read -P 0 0 512");
}

#[test]
fn what_is_wrong_with_a_secret_is_said() {
    let mut vm = idle();
    let add = |vm: &mut Vm, more: Value| {
        let mut all = json!({"qom-type": "secret", "id": "s"});
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        vm.qmp.execute("object-add", all).map(drop)
    };
    assert!(add(&mut vm, json!({})).unwrap_err().contains("Must provide 'file' or 'data'"));
    let both = json!({"data": "x", "file": "/dev/null"});
    assert!(add(&mut vm, both).unwrap_err().contains("mutually exclusive"));
    let keyed = json!({"data": "AAAA", "format": "base64", "keyid": "nobody", "iv": "AAAA"});
    assert!(add(&mut vm, keyed).unwrap_err().contains("No secret with id 'nobody'"));
    add(&mut vm, json!({"data": "hidden"})).unwrap();
    let read = vm.qmp.execute("qom-get", json!({"path": "/objects/s", "property": "data"}));
    assert!(read.is_err(), "a secret is not shown: {read:?}");
}

/// Runs `x-blockdev-amend` to its end; an error is what the job says.
fn amend(vm: &mut Vm, node: &str, options: Value, force: bool) -> Result<(), String> {
    let arguments = json!({"job-id": "a", "node-name": node, "options": options, "force": force});
    vm.qmp.execute("x-blockdev-amend", arguments)?;
    loop {
        let event = vm.qmp.event("JOB_STATUS_CHANGE", Duration::from_secs(60))?;
        if event["data"]["status"] == "concluded" {
            break;
        }
    }
    let jobs = vm.qmp.execute("query-jobs", Value::Null)?;
    assert_eq!(jobs[0]["type"], "amend");
    vm.qmp.execute("job-dismiss", json!({"id": "a"}))?;
    jobs[0]["error"].as_str().map_or(Ok(()), |error| Err(error.to_string()))
}

/// Whether `qemu-io` opens the image with a password.
fn opens(image: &str, path: &Path, password: &str) -> bool {
    let object = format!("secret,id=k,data={password}");
    let image = format!("{image},file.filename={}", path.display());
    let mut judge = Command::new("qemu-io");
    let out = judge
        .args(["-r", "-U", "--object", &object, "--image-opts", &image, "-c", "length"])
        .output()
        .unwrap();
    out.status.success()
}

#[test]
fn key_slots_come_and_go_while_the_image_is_in_use() {
    let luks = |secret: &str| json!({"driver": "luks", "file": "f", "key-secret": secret});
    let encrypted = |secret: &str| json!({"driver": "qcow2", "file": "f", "encrypt": {"format": "luks", "key-secret": secret}});
    for (name, judge) in [
        ("luks", "driver=luks,key-secret=k"),
        ("qcow2", "driver=qcow2,encrypt.format=luks,encrypt.key-secret=k"),
    ] {
        let mut vm = idle();
        for (id, data) in [("k1", "one"), ("k2", "two")] {
            vm.qmp.execute("object-add", json!({"qom-type": "secret", "id": id, "data": data})).unwrap();
        }
        let path = file(&mut vm, "disk");
        let mut node = if name == "luks" { luks("k1") } else { encrypted("k1") };
        let (mut made, size) = (node.clone(), 1 << 20);
        made["size"] = json!(size);
        let quick = if name == "luks" { &mut made } else { &mut made["encrypt"] };
        quick["iter-time"] = json!(10);
        create(&mut vm, made).unwrap();
        node["node-name"] = json!("n");
        vm.qmp.execute("blockdev-add", node).unwrap();
        io(&mut vm, "n", "write -P 5 0 64k");
        let change = |fields: Value| match name {
            "luks" => {
                let mut all = fields;
                all["driver"] = json!("luks");
                all
            }
            _ => {
                let mut all = fields;
                all["format"] = json!("luks");
                json!({"driver": "qcow2", "encrypt": all})
            }
        };
        let add = change(json!({"state": "active", "new-secret": "k2", "iter-time": 10}));
        amend(&mut vm, "n", add.clone(), false).unwrap();
        let known = ["one", "two", "three"].map(|password| opens(judge, &path, password));
        assert_eq!(known, [true, true, false], "{name}");
        let taken = change(json!({"state": "active", "new-secret": "k2", "keyslot": 1}));
        let why = amend(&mut vm, "n", taken, false).unwrap_err();
        assert_eq!(why, "Refusing to overwrite active keyslot 1 - please erase it first");
        let wrong = change(json!({"state": "active", "old-secret": "k", "new-secret": "k2"}));
        assert_eq!(
            amend(&mut vm, "n", wrong, false).unwrap_err(),
            "Invalid password, cannot unlock any keyslot"
        );
        for (fields, why) in [
            (json!({"state": "active"}), "'new-secret' is required to activate a keyslot"),
            (
                json!({"state": "inactive", "new-secret": "k2"}),
                "'new-secret' must not be given when erasing keyslots",
            ),
            (
                json!({"state": "inactive", "keyslot": 8}),
                "Invalid keyslot 8 specified, must be between 0 and 7",
            ),
            (
                json!({"state": "inactive", "old-secret": "k"}),
                "No keyslots match given (old) password for erase operation",
            ),
        ] {
            assert_eq!(amend(&mut vm, "n", change(fields), false).unwrap_err(), why);
        }
        amend(&mut vm, "n", change(json!({"state": "inactive", "old-secret": "k1"})), false).unwrap();
        assert!(!opens(judge, &path, "one") && opens(judge, &path, "two"));
        let last = change(json!({"state": "inactive", "keyslot": 1}));
        let why = amend(&mut vm, "n", last.clone(), false).unwrap_err();
        assert!(why.starts_with("Attempt to erase the only active keyslot 1"), "{why}");
        // What is in use stays so.
        io(&mut vm, "n", "read -P 5 0 64k");
        amend(&mut vm, "n", last, true).unwrap();
        assert!(!opens(judge, &path, "two"));
        let other = json!({"job-id": "a", "node-name": "f", "options": {"driver": "file"}});
        let why = vm.qmp.execute("x-blockdev-amend", other).unwrap_err();
        assert!(why.contains("Driver does not support x-blockdev-amend"), "{why}");
    }
}

/// Several machines may share the disk of a LUKS image whose users all say so; its header is not
/// written meanwhile.
#[test]
fn a_luks_image_is_shared_as_its_users_share() {
    let mut vm = Vm::start_plain(&[
        "-nodefaults",
        "-display",
        "none",
        "-accel",
        "qtest",
        "-object",
        &format!("secret,id=k,data={PASSWORD}"),
    ])
    .unwrap();
    let path = file(&mut vm, "shared.luks");
    let luks = json!({"driver": "luks", "file": "f", "size": 1 << 20, "key-secret": "k", "iter-time": 10});
    create(&mut vm, luks).unwrap();
    vm.qmp.execute("blockdev-del", json!({"node-name": "f"})).unwrap();
    for number in 1..=2 {
        let node = json!({"driver": "luks", "node-name": format!("l{number}"), "key-secret": "k",
            "file": {"driver": "file", "filename": path}});
        vm.qmp.execute("blockdev-add", node).unwrap();
    }
    let looks = || {
        let object = format!("secret,id=k,data={PASSWORD}");
        let options = format!("driver=luks,key-secret=k,file.filename={}", path.display());
        let mut judge = Command::new("qemu-io");
        let out =
            judge.args(["--object", &object, "--image-opts", &options, "-c", "write -P 5 0 512"]).output();
        let out = out.unwrap();
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains("ops")
    };
    let add = |number: u32, share: bool| json!({"driver": "virtio-blk-pci", "id": format!("v{number}"), "drive": format!("l{number}"), "share-rw": share});
    assert!(looks(), "an image that nobody uses");
    vm.qmp.execute("device_add", add(1, false)).unwrap();
    let another = json!({"driver": "luks", "node-name": "l3", "key-secret": "k",
        "file": {"driver": "file", "filename": path}});
    vm.qmp.execute("blockdev-add", another).expect("opened as long as nobody writes through it");
    vm.qmp.execute("blockdev-del", json!({"node-name": "l3"})).unwrap();
    for share in [false, true] {
        let why = vm.qmp.execute("device_add", add(2, share)).unwrap_err();
        assert_eq!(why, "GenericError: Failed to get \"write\" lock");
    }
    assert!(!looks(), "one that is used alone");
    // The first device goes at the next reset, as there is no guest.
    vm.qmp.execute("device_del", json!({"id": "v1"})).unwrap();
    vm.qmp.execute("system_reset", Value::Null).unwrap();
    vm.qmp.event("DEVICE_DELETED", Duration::from_secs(60)).unwrap();
    vm.qmp.execute("device_add", add(1, true)).unwrap();
    vm.qmp.execute("device_add", add(2, true)).unwrap();
    assert!(looks(), "one that all share");
    for (writer, reader, byte) in [("l1", "l2", 7), ("l2", "l1", 8)] {
        io(&mut vm, writer, &format!("write -P {byte} 64k 64k"));
        io(&mut vm, reader, &format!("read -P {byte} 64k 64k"));
    }
}
