//! NBD with TLS over QMP: two machines, one serving, one using, and the usual tools.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testkit::Vm;
use testkit::certificates::Authority;

const GUEST: &str = "C=GB,O=Ryokan,CN=guest";

fn idle() -> Vm {
    Vm::start(&["-machine", "none", "-accel", "qtest"]).unwrap()
}

fn credentials(vm: &mut Vm, dir: &Path, endpoint: &str) {
    let object = json!({"qom-type": "tls-creds-x509", "id": "tls", "dir": dir, "endpoint": endpoint});
    vm.qmp.execute("object-add", object).unwrap();
}

#[track_caller]
fn refused(vm: &mut Vm, command: &str, arguments: Value) -> String {
    vm.qmp.execute(command, arguments).expect_err("it must be refused")
}

#[test]
fn a_disk_goes_through_tls_to_another_machine() {
    let mut server = idle();
    let dir = server.dir().clone();
    let authority = Authority::new(&dir.join("ca")).unwrap();
    authority.server(&dir.join("server")).unwrap();
    authority.client(&dir.join("client"), "guest").unwrap();
    let image = dir.join("disk.raw");
    std::fs::write(&image, vec![0x33; 1 << 20]).unwrap();
    let socket = dir.join("nbd");
    let disk = json!({"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": image}});
    server.qmp.execute("blockdev-add", disk).unwrap();

    let start = |creds: &str, authz: &str| json!({"addr": {"type": "unix", "data": {"path": socket}}, "tls-creds": creds, "tls-authz": authz});
    assert!(refused(&mut server, "nbd-server-start", start("tls", "who")).contains("who"));
    let who = json!({"qom-type": "authz-simple", "id": "who", "identity": GUEST});
    server.qmp.execute("object-add", who).unwrap();
    let said = refused(&mut server, "nbd-server-start", start("tls", "who"));
    assert!(said.contains("No TLS credentials with id 'tls'"), "{said}");
    credentials(&mut server, &dir.join("client"), "client");
    let said = refused(&mut server, "nbd-server-start", start("tls", "who"));
    assert!(said.contains("Expecting TLS credentials with a server endpoint"), "{said}");
    server.qmp.execute("object-del", json!({"id": "tls"})).unwrap();
    credentials(&mut server, &dir.join("server"), "server");
    server.qmp.execute("nbd-server-start", start("tls", "who")).unwrap();
    server.qmp.execute("nbd-server-add", json!({"device": "disk", "writable": true})).unwrap();

    let certificates = dir.join("client");
    let secure = format!(
        "nbds+unix://localhost/disk?socket={}&tls-certificates={}&tls-verify-peer=true",
        socket.display(),
        certificates.display()
    );
    let seen = Command::new("nbdinfo").args(["--size", &secure]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "1048576", "{seen:?}");

    let mut client = idle();
    let node = |creds: Value| {
        let mut node = json!({"driver": "nbd", "node-name": "far", "export": "disk",
            "server": {"type": "unix", "path": socket}});
        for (key, value) in creds.as_object().unwrap() {
            node[key] = value.clone();
        }
        node
    };
    let said = refused(&mut client, "blockdev-add", node(json!({})));
    assert!(said.contains("server requires TLS"), "{said}");
    credentials(&mut client, &certificates, "client");
    let said =
        refused(&mut client, "blockdev-add", node(json!({"tls-creds": "tls", "tls-hostname": "other"})));
    assert!(said.contains("TLS handshake failed"), "{said}");
    client
        .qmp
        .execute("blockdev-add", node(json!({"tls-creds": "tls", "tls-hostname": "localhost"})))
        .unwrap();
    for command in ["read -P 0x33 0 1M", "write -P 0x44 64k 64k"] {
        let line = json!({"command-line": format!("qemu-io far \"{command}\"")});
        client.qmp.execute("human-monitor-command", line).unwrap();
        // As in QEMU its output goes to the standard output.
        let said = client.expect("ops", Duration::from_secs(20)).unwrap();
        assert!(!said.contains("failed"), "{command}: {said}");
    }
    client.qmp.execute("blockdev-del", json!({"node-name": "far"})).unwrap();
    server.qmp.execute("nbd-server-stop", Value::Null).unwrap();
    let data = std::fs::read(&image).unwrap();
    assert!(data[..65536] == [0x33; 65536] && data[65536..131_072] == [0x44; 65536]);
    // Without credentials, rights cannot be checked.
    let bare = json!({"addr": {"type": "unix", "data": {"path": socket}}, "tls-authz": "who"});
    assert!(refused(&mut server, "nbd-server-start", bare).contains("no TLS credentials"));
}

#[test]
fn credentials_are_checked_when_they_are_added() {
    let mut vm = idle();
    let dir = vm.dir().clone();
    let add = |dir: &Path| json!({"qom-type": "tls-creds-x509", "id": "t", "dir": dir, "endpoint": "server"});
    let said = refused(&mut vm, "object-add", add(&dir));
    assert!(said.contains("ca-cert.pem"), "{said}");
    let mut priority = add(&dir);
    priority["priority"] = "NORMAL".into();
    let said = refused(&mut vm, "object-add", priority);
    assert!(said.contains("priority"), "{said}");
    for kind in ["tls-creds-psk", "tls-creds-anon"] {
        let said = refused(&mut vm, "object-add", json!({"qom-type": kind, "id": "t", "dir": dir}));
        assert!(said.contains(kind), "{said}");
    }
    assert_eq!(
        vm.qmp.execute("qom-list", json!({"path": "/objects"})).unwrap().as_array().map(Vec::len),
        Some(1)
    );
}
