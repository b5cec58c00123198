//! Disks on SSH servers, over QMP: Debian's sshd and ssh-agent on loopback.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::Vm;
use testkit::images::tool;
use testkit::ssh::Ssh;

/// An idle machine that knows the agent of a server; both work in `dir`.
struct Bed {
    vm: Vm,
    ssh: Ssh,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let ssh = Ssh::new(&dir.path().join("ssh")).unwrap();
        let environment = ssh.environment();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let vm = Vm::start_in(&environment, &["-machine", "none", "-accel", "qtest"]).unwrap();
        Bed { vm, ssh, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where a file lies, as BlockdevOptionsSsh has it; any host key will do.
    fn location(&self, name: &str) -> Value {
        let server = json!({"host": "127.0.0.1", "port": self.ssh.port.to_string()});
        json!({"server": server, "path": self.path(name), "host-key-check": {"mode": "none"}})
    }

    fn node(&self, node: &str, name: &str) -> Value {
        let mut options = self.location(name);
        options["driver"] = json!("ssh");
        options["node-name"] = json!(node);
        options
    }

    #[track_caller]
    fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.vm.qmp.execute(command, arguments).unwrap_or_else(|why| panic!("{command}: {why}"))
    }

    #[track_caller]
    fn refused(&mut self, arguments: Value) -> String {
        self.vm.qmp.execute("blockdev-add", arguments).unwrap_err()
    }

    /// Runs `blockdev-create` to its end; an error is what the job says.
    fn create(&mut self, options: Value) -> Result<(), String> {
        self.run("blockdev-create", json!({"job-id": "c", "options": options}));
        self.concluded("c")
    }

    fn concluded(&mut self, job: &str) -> Result<(), String> {
        loop {
            let event = self.vm.qmp.event("JOB_STATUS_CHANGE", Duration::from_secs(60))?;
            if event["data"]["status"] == "concluded" && event["data"]["id"] == job {
                break;
            }
        }
        let jobs = self.run("query-jobs", Value::Null);
        self.run("job-dismiss", json!({"id": job}));
        jobs[0]["error"].as_str().map_or(Ok(()), |error| Err(error.to_string()))
    }

    /// Runs a `qemu-io` command, which says `until` in the end.
    #[track_caller]
    fn io(&mut self, node: &str, command: &str, until: &str) {
        let line = format!("qemu-io {node} \"{command}\"");
        self.run("human-monitor-command", json!({"command-line": line}));
        // As in QEMU its output goes to the standard output.
        let said =
            self.vm.expect(until, Duration::from_secs(60)).unwrap_or_else(|why| panic!("{command}: {why}"));
        assert!(!said.contains("failed"), "{command}: {said}");
    }
}

fn same(left: (&str, &Path), right: (&str, &Path)) {
    let text = |path: &Path| path.display().to_string();
    tool("qemu-img", &["compare", "-U", "-f", left.0, "-F", right.0, &text(left.1), &text(right.1)]);
}

#[test]
fn files_are_made_written_grown_and_read() {
    let mut bed = Bed::new();
    let location = bed.location("disk.raw");
    bed.create(json!({"driver": "ssh", "location": location, "size": 3 << 20})).unwrap();
    assert_eq!(std::fs::metadata(bed.path("disk.raw")).unwrap().len(), 3 << 20);
    let node = bed.node("far", "disk.raw");
    bed.run("blockdev-add", node);
    for command in ["write -P 1 0 1M", "write -P 2 1500k 700k"] {
        bed.io("far", command, "ops/sec");
    }
    bed.run("human-monitor-command", json!({"command-line": "qemu-io far flush"}));
    bed.run("block_resize", json!({"node-name": "far", "size": 5 << 20}));
    let nodes = bed.run("query-named-block-nodes", Value::Null);
    assert_eq!(nodes[0]["image"]["virtual-size"], 5 << 20);
    let name = nodes[0]["file"].as_str().unwrap().to_string();
    assert!(name.starts_with("ssh://") && name.ends_with("disk.raw?host_key_check=no"), "{name}");
    bed.run("blockdev-del", json!({"node-name": "far"}));
    let model = bed.path("model.raw");
    tool("qemu-img", &["create", "-q", "-f", "raw", model.to_str().unwrap(), "5M"]);
    for command in ["write -P 1 0 1M", "write -P 2 1500k 700k"] {
        tool("qemu-io", &["-f", "raw", "-c", command, model.to_str().unwrap()]);
    }
    same(("raw", &bed.path("disk.raw")), ("raw", &model));
    // By its URI, and read-only.
    bed.run(
        "blockdev-add",
        json!({"driver": "ssh", "node-name": "far", "filename": name, "read-only": true}),
    );
    bed.io("far", "read -P 2 1500k 700k", "ops/sec");
    let said = bed.vm.qmp.hmp("qemu-io far \"write 0 512\"").unwrap();
    assert!(said.contains("read-only"), "{said}");
}

#[test]
fn images_in_formats_and_targets_of_mirrors_lie_there() {
    let mut bed = Bed::new();
    let location = bed.location("disk.qcow2");
    bed.create(json!({"driver": "ssh", "location": location, "size": 0})).unwrap();
    let node = bed.node("file", "disk.qcow2");
    bed.run("blockdev-add", node);
    bed.create(json!({"driver": "qcow2", "file": "file", "size": 8 << 20})).unwrap();
    bed.run("blockdev-add", json!({"driver": "qcow2", "node-name": "far", "file": "file"}));
    let near = bed.path("near.qcow2");
    let path = near.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"]);
    tool("qemu-io", &["-c", "write -P 3 0 3M", "-c", "write -P 4 5M 100k", path]);
    let file = json!({"driver": "file", "filename": near});
    bed.run("blockdev-add", json!({"driver": "qcow2", "node-name": "near", "file": file}));
    let mirror = json!({"job-id": "m", "device": "near", "target": "far", "sync": "full"});
    bed.run("blockdev-mirror", mirror);
    bed.vm.qmp.event("BLOCK_JOB_READY", Duration::from_secs(60)).unwrap();
    bed.run("job-complete", json!({"id": "m"}));
    bed.vm.qmp.event("BLOCK_JOB_COMPLETED", Duration::from_secs(60)).unwrap();
    bed.run("blockdev-del", json!({"node-name": "near"}));
    bed.run("blockdev-del", json!({"node-name": "far"}));
    bed.run("blockdev-del", json!({"node-name": "file"}));
    let far = bed.path("disk.qcow2");
    tool("qemu-img", &["check", "-q", far.to_str().unwrap()]);
    same(("qcow2", &far), ("qcow2", &near));
}

#[test]
fn host_keys_are_checked() {
    let mut bed = Bed::new();
    std::fs::write(bed.path("disk"), vec![7; 4096]).unwrap();
    let by = |bed: &Bed, check: Value| {
        let mut node = bed.node("n", "disk");
        node["host-key-check"] = check;
        node
    };
    let hash = |digits: &str| json!({"mode": "hash", "type": "md5", "hash": digits});
    let fingerprint = bed.ssh.fingerprint();
    let good = by(&bed, hash(&fingerprint));
    bed.run("blockdev-add", good);
    bed.run("blockdev-del", json!({"node-name": "n"}));
    let bad = by(&bed, hash(&"0123456789abcdef".repeat(2)));
    let why = bed.refused(bad);
    let found = fingerprint.replace(':', "");
    assert!(why.contains(&format!("remote host key fingerprint 'md5:{found}' does not match")), "{why}");
    // Without a word of it: as known_hosts says.
    let mut known = bed.node("n", "disk");
    known.as_object_mut().unwrap().remove("host-key-check");
    let why = bed.refused(known.clone());
    assert!(why.contains("no host key was found in known_hosts"), "{why}");
    let port = bed.ssh.port;
    let line = |key: &str| format!("[127.0.0.1]:{port} {key}\n");
    std::fs::write(bed.ssh.known_hosts(), line(&bed.ssh.host_key())).unwrap();
    bed.run("blockdev-add", known.clone());
    bed.run("blockdev-del", json!({"node-name": "n"}));
    let other = std::fs::read_to_string(bed.path("ssh/user.pub")).unwrap();
    let other: Vec<&str> = other.split(' ').take(2).collect();
    std::fs::write(bed.ssh.known_hosts(), line(&other.join(" "))).unwrap();
    let why = bed.refused(known);
    assert!(why.contains("host key does not match the one in known_hosts (line 1)"), "{why}");
}

#[test]
fn what_fails_is_a_clear_error_and_ends() {
    let mut bed = Bed::new();
    let node = bed.node("n", "absent");
    let why = bed.refused(node);
    let path = bed.path("absent");
    assert!(why.contains(&format!("failed to open remote file '{}': No such file", path.display())), "{why}");
    std::fs::write(bed.path("disk"), vec![7; 1 << 20]).unwrap();
    let node = bed.node("n", "disk");
    bed.run("blockdev-add", node.clone());
    bed.io("n", "read -P 7 0 1M", "ops/sec");
    // The server goes: requests fail, the node can be taken away.
    bed.ssh.cut();
    bed.io("n", "read 0 512", "read failed: Input/output error");
    bed.run("blockdev-del", json!({"node-name": "n"}));
    bed.run("blockdev-add", node.clone());
    bed.run("blockdev-del", json!({"node-name": "n"}));
    bed.ssh.accept_nobody();
    let why = bed.refused(node.clone());
    assert!(why.contains("failed to authenticate using publickey authentication"), "{why}");
    let mut nowhere = node;
    nowhere["server"] = json!({"host": "127.0.0.1", "port": "1"});
    let why = bed.refused(nowhere);
    assert!(why.contains("Failed to connect to '127.0.0.1:1': Connection refused"), "{why}");
}
