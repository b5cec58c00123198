//! Images with the old AES encryption that are opened without their password, and `block_passwd`.

use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::bench::SOON;
use testkit::{Bench, Images};

const SECRET: &str = "secret,id=k,data=correct horse";

fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !text.contains("failed"), "{program} {args:?}: {text}");
    text
}

/// Runs commands on an encrypted image with its password.
fn judge(images: &Images, name: &str, commands: &[&str]) {
    let driver = name.rsplit('.').next().unwrap();
    let image = format!("driver={driver},encrypt.key-secret=k,file.filename={}", images.path(name));
    let mut args = vec!["--object", SECRET, "--image-opts", &image];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    tool("qemu-io", &args);
}

/// An image with 64 KiB of the pattern at 1 MiB.
fn make(images: &Images, name: &str) -> String {
    let format = name.rsplit('.').next().unwrap();
    let more = ["--object", SECRET, "-o", "encrypt.format=aes,encrypt.key-secret=k"];
    let path = images.path(name);
    tool("qemu-img", &[&["create", "-q", "-f", format], &more[..], &[&path, "4M"]].concat());
    judge(images, name, &["write -P 9 1M 64k"]);
    path
}

fn pass(device: &str, password: &str) -> Value {
    json!({"device": device, "password": password})
}

#[test]
fn a_machine_waits_for_the_passwords_of_its_disks() {
    for name in ["disk.qcow2", "disk.qcow"] {
        let images = Images::new();
        let path = make(&images, name);
        let drive = format!("if=none,id=d,file={path},format={}", name.rsplit('.').next().unwrap());
        let mut bench = Bench::start(images, &["-drive", &drive, "-device", "ide-hd,id=hd,drive=d"]);
        assert_eq!(bench.run("query-status", Value::Null)["status"], "prelaunch");
        let end = Instant::now() + SOON;
        while !bench.vm.errors().contains("is encrypted") {
            assert!(Instant::now() < end, "{}", bench.vm.errors());
            std::thread::sleep(Duration::from_millis(5));
        }
        let medium = bench.medium("d");
        assert_eq!((&medium["encrypted"], &medium["encryption_key_missing"]), (&json!(true), &json!(true)));
        let lacking = format!("DeviceEncrypted: 'd' ({path}) is encrypted");
        assert_eq!(bench.refused("cont", Value::Null), lacking);
        for command in ["read 1M 512", "write 1M 512", "write -z 0 64k"] {
            let said = bench.try_io("d", command);
            assert!(said.contains("Permission denied"), "{name} {command}: {said}");
        }
        let nobody = "GenericError: Cannot find device='x' nor node-name='y'";
        let both = json!({"device": "x", "node-name": "y", "password": ""});
        assert_eq!(bench.refused("block_passwd", both), nobody);

        bench.run("block_passwd", pass("d", "wrong"));
        assert_eq!(bench.medium("d")["encryption_key_missing"], false);
        let garbage = bench.try_io("d", "read -P 9 1M 512");
        assert!(garbage.contains("verification failed"), "{garbage}");
        assert_eq!(bench.vm.qmp.hmp("block_passwd d \"correct horse\"").unwrap(), "");
        bench.io("d", "read -P 9 1M 64k");
        bench.io("d", "write -P 7 1050000 1000");
        bench.io("d", "write -P 6 2M 1000");
        bench.io("d", "write -P 5 3M 64k");
        bench.io("d", "write -z 3148800 1000");
        bench.run("cont", Value::Null);
        bench.vm.qmp.event("RESUME", SOON).unwrap();
        let images = bench.quit();
        let ours = [
            "read -P 9 1M 1424",
            "read -P 7 1050000 1000",
            "read -P 9 1051000 1000",
            "read -P 6 2M 1000",
            "read -P 0 2098152 1000",
            "read -P 5 3M 3072",
            "read -P 0 3148800 1000",
            "read -P 5 3149800 1000",
        ];
        judge(&images, name, &ours);
        if name.ends_with("qcow2") {
            let image = format!("driver=qcow2,encrypt.key-secret=k,file.filename={path}");
            let said = tool("qemu-img", &["check", "--object", SECRET, "--image-opts", &image]);
            assert!(said.contains("No errors"), "{said}");
        }
    }
}

#[test]
fn passwords_go_down_the_chain_and_only_to_what_needs_one() {
    let images = Images::new();
    let base = make(&images, "base.qcow2");
    let top = images.path("top.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-u", "-b", &base, "-F", "qcow2", &top, "4M"]);
    let plain = images.create("plain.qcow2", "1M", &[]);
    let (drive, other) =
        (format!("if=none,id=d,file={top}"), format!("if=none,id=p,node-name=plain,file={plain}"));
    let mut bench = Bench::start(images, &["-drive", &drive, "-drive", &other]);
    let missing = |bench: &mut Bench| bench.medium("d")["encryption_key_missing"].clone();
    assert_eq!((bench.medium("d")["encrypted"].clone(), missing(&mut bench)), (json!(false), json!(true)));
    assert_eq!(bench.medium("p")["encryption_key_missing"], Value::Null);
    assert_eq!(bench.refused("cont", Value::Null), format!("DeviceEncrypted: 'd' ({base}) is encrypted"));
    assert_eq!(bench.refused("block_passwd", pass("p", "x")), "GenericError: Node 'p' is not encrypted");
    bench.run("block_passwd", pass("d", "correct horse"));
    assert_eq!(missing(&mut bench), false);
    bench.io("d", "write -P 1 1M 512");
    bench.io("d", "read -P 9 1049088 65024");
    bench.run("cont", Value::Null);

    // Nodes of their own bring their secret along.
    let node = json!({"driver": "qcow2", "node-name": "n", "read-only": true,
        "file": {"driver": "file", "filename": base}});
    let said = bench.refused("blockdev-add", node);
    assert_eq!(said, "GenericError: Parameter 'encrypt.key-secret' is required for cipher");
    let first = json!({"options": {"driver": "qcow2", "id": "e", "read-only": true,
        "file": {"driver": "file", "filename": base}}});
    let said = bench.refused("blockdev-add", first);
    assert_eq!(said, "GenericError: blockdev-add doesn't support encrypted devices");
    assert_eq!(bench.medium("e"), Value::Null);
    bench.run("object-add", json!({"qom-type": "secret", "id": "k", "data": "correct horse"}));
    let keyed = json!({"driver": "qcow2", "node-name": "n", "read-only": true,
        "encrypt": {"format": "aes", "key-secret": "k"}, "file": {"driver": "file", "filename": base}});
    bench.run("blockdev-add", keyed);
    bench.io("n", "read -P 9 1M 64k");
    bench.quit();
}

#[test]
fn a_medium_is_there_for_the_guest_once_its_password_is() {
    let images = Images::new();
    let disc = make(&images, "disc.qcow2");
    let args =
        ["-drive", "if=none,id=cd,read-only=on", "-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=cd"];
    let mut bench = Bench::start(images, &args);
    let moved = |bench: &mut Bench| {
        let event = bench.vm.qmp.event("DEVICE_TRAY_MOVED", SOON).unwrap();
        event["data"]["tray-open"].as_bool().unwrap()
    };
    let change = json!({"device": "cd", "target": disc, "arg": "qcow2"});
    let said = bench.refused("change", change);
    assert_eq!(said, format!("DeviceEncrypted: 'cd' ({disc}) is encrypted"));
    assert_eq!([moved(&mut bench), moved(&mut bench)], [true, false]);
    assert_eq!(bench.medium("cd")["encryption_key_missing"], true, "it is in nevertheless");
    bench.run("block_passwd", pass("cd", "correct horse"));
    assert_eq!([moved(&mut bench), moved(&mut bench)], [true, false]);
    bench.io("cd", "read -P 9 1M 64k");
    // Once more changes the key, and nothing for the guest.
    bench.run("block_passwd", pass("cd", "another"));
    let later = json!({"device": "cd", "filename": disc, "format": "qcow2"});
    let said = bench.refused("blockdev-change-medium", later);
    assert_eq!(said, "GenericError: Parameter 'encrypt.key-secret' is required for cipher");
    assert!(bench.vm.qmp.take_events().iter().all(|event| !event.contains("TRAY")));
    bench.quit();
}
