use crate::*;
use base::fd::{FdSets, Inherited};
use base::notice::Notices;
use machine::{Host, Objects};
use qapi::Value;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;
use spec::chardev::ChardevSocket;
use spec::{Chardev, ChardevKind, SocketAddress};
use std::collections::BTreeSet;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

struct NoHost(FdSets, Arc<Inherited>);

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> base::Result<OwnedFd> {
        let raw = name.parse().map_err(|_| base::fail!("no descriptor {name}"))?;
        self.1.take(raw)
    }
    fn open_fdset(&self, set: u64, flags: rustix::fs::OFlags) -> Result<base::fd::SetFd, rustix::io::Errno> {
        self.0.open(set, flags)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

pub fn control() -> Control {
    let notices = Notices::new();
    let clocks = machine::clocks(false);
    let (fdsets, inherited) = (FdSets::new(), Arc::new(Inherited::default()));
    let chardev_host = Arc::new(NoHost(fdsets.clone(), inherited.clone()));
    let host = Host::new(
        notices,
        chardev::Chardevs::new(tokio::runtime::Handle::current(), chardev_host),
        fdsets.clone(),
        clocks,
    );
    let spec = spec::MachineSpec {
        kind: spec::MachineKind::None,
        type_name: "none".into(),
        name: Some("guest".into()),
        uuid: Some(*b"0123456789abcdef"),
        start_stopped: true,
        ..spec::MachineSpec::default()
    };
    host.graph.set_inherited(inherited.clone());
    let machine = machine::build(spec, &host).unwrap();
    Control::new(World {
        identity: Identity::default(),
        host,
        machine,
        fdsets,
        inherited,
        trace: trace::Points::new(),
        options: Vec::new(),
        human_monitor: Some(Arc::new(|_, line, cpu| {
            Box::pin(async move { Ok(format!("{cpu}:{line}\r\n")) })
        })),
    })
}

struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    async fn line(&mut self) -> Value {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        let length = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
        assert!(length > 0, "end of connection");
        serde_json::from_str(&line).unwrap()
    }

    async fn send(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        self.send(&request.to_string()).await;
        self.line().await
    }

    /// The value, or a panic with the error.
    async fn get(&mut self, command: &str, arguments: Value) -> Value {
        let reply = self.ask(command, arguments).await;
        reply.get("return").unwrap_or_else(|| panic!("{command}: {reply}")).clone()
    }

    async fn refusal(&mut self, command: &str, arguments: Value) -> (String, String) {
        let reply = self.ask(command, arguments).await;
        let error = &reply["error"];
        let text =
            |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{command}: {reply}")).to_string();
        (text("class"), text("desc"))
    }

    fn send_fds(&self, text: &str, fds: &[impl AsFd]) {
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let data = [IoSlice::new(text.as_bytes())];
        rustix::net::sendmsg(self.reader.get_ref(), &data, &mut ancillary, SendFlags::empty()).unwrap();
    }
}

/// A control plane with a QMP monitor on a listening Unix socket.
struct Rig {
    control: Control,
    path: String,
    _port: Arc<QmpPort>,
    _folder: tempfile::TempDir,
}

async fn rig() -> Rig {
    let control = control();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp").to_str().unwrap().to_string();
    let port = monitor(&control, "compat_monitor0", &path).await;
    let events = control.clone();
    tokio::spawn(async move { events.events().run().await });
    Rig { control, path, _port: port, _folder: folder }
}

async fn monitor(control: &Control, id: &str, path: &str) -> Arc<QmpPort> {
    let socket = ChardevSocket {
        addr: SocketAddress::unix(path),
        server: true,
        wait: false,
        nodelay: false,
        telnet: false,
        reconnect: 0,
    };
    control.world().host.chardevs.add(&Chardev::new(id, ChardevKind::Socket(socket))).await.unwrap();
    QmpPort::open(control, id, qmp::Options { pretty: false, oob: true }).unwrap()
}

async fn connect(path: &str) -> Client {
    Client { reader: BufReader::new(UnixStream::connect(path).await.unwrap()) }
}

impl Rig {
    async fn client(&self) -> Client {
        let mut client = connect(&self.path).await;
        assert!(client.line().await["QMP"]["version"]["qemu"]["major"].is_i64());
        assert_eq!(client.get("qmp_capabilities", json!({})).await, json!({}));
        client
    }
}

fn error(class: &str, text: &str) -> (String, String) {
    (class.to_string(), text.to_string())
}

/// A command that is declared but has no handler, or the reverse, must not go unnoticed.
#[tokio::test]
async fn declared_routed_and_listed_are_the_same_commands() {
    let rig = rig().await;
    let declared: BTreeSet<_> = schema::all_commands().map(|entry| entry.info.name.to_string()).collect();
    let routed: BTreeSet<_> = rig.control.routes().names().map(str::to_string).collect();
    assert_eq!(declared, routed);
    let mut client = rig.client().await;
    let listed = client.get("query-commands", json!({})).await;
    let name = |entry: &Value| entry["name"].as_str().unwrap().to_string();
    let listed: BTreeSet<_> = listed.as_array().unwrap().iter().map(name).collect();
    assert_eq!(declared, listed);
    let schema = client.get("query-qmp-schema", json!({})).await;
    let commands = schema.as_array().unwrap().iter().filter(|entry| entry["meta-type"] == "command");
    assert_eq!(commands.map(name).collect::<BTreeSet<_>>(), declared);
    let events = schema.as_array().unwrap().iter().filter(|entry| entry["meta-type"] == "event");
    let listed = client.get("query-events", json!({})).await;
    let listed: BTreeSet<_> = listed.as_array().unwrap().iter().map(name).collect();
    assert_eq!(events.map(name).collect::<BTreeSet<_>>(), listed);
}

#[tokio::test]
async fn identity() {
    let rig = rig().await;
    let mut client = connect(&rig.path).await;
    let greeting = client.line().await;
    client.get("qmp_capabilities", json!({})).await;
    let version = client.get("query-version", json!({})).await;
    assert_eq!(greeting["QMP"]["version"], version);
    assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
    assert_eq!(version["qemu"], json!({"major": 7, "minor": 2, "micro": 0}));
    assert_eq!(client.get("query-name", json!({})).await, json!({"name": "guest"}));
    let uuid = client.get("query-uuid", json!({})).await;
    assert_eq!(uuid, json!({"UUID": "30313233-3435-3637-3839-616263646566"}));
    assert_eq!(client.get("query-target", json!({})).await, json!({"arch": "x86_64"}));
    assert_eq!(client.get("cpu", json!({"index": -1})).await, json!({}));
}

#[tokio::test]
async fn stop_and_cont_with_their_events() {
    let rig = rig().await;
    let (mut one, path) = (rig.client().await, format!("{}2", rig.path));
    let _second = monitor(&rig.control, "second", &path).await;
    let mut two = connect(&path).await;
    two.line().await;
    let status =
        |status: &str| json!({"running": status == "running", "singlestep": false, "status": status});
    assert_eq!(one.get("query-status", json!({})).await, status("prelaunch"));
    assert_eq!(one.get("stop", json!({})).await, json!({}), "no event when it does not run");
    let event = one.ask("cont", json!({})).await;
    assert_eq!(event["event"], "RESUME");
    assert!(event.get("data").is_none() && event["timestamp"]["microseconds"].is_i64());
    assert_eq!(one.line().await, json!({"return": {}}));
    assert_eq!(one.get("cont", json!({})).await, json!({}));
    two.send("{'execute':'qmp_capabilities'}").await;
    assert_eq!(two.line().await, json!({"return": {}}), "events before it are not delivered");
    assert_eq!(one.ask("stop", json!({})).await["event"], "STOP");
    assert_eq!(one.line().await, json!({"return": {}}));
    assert_eq!(two.line().await["event"], "STOP");
    assert_eq!(two.get("query-status", json!({})).await, status("paused"));
    assert_eq!(one.get("system_reset", json!({})).await, json!({}));
    let reset = one.line().await;
    assert_eq!(reset["event"], "RESET");
    assert_eq!(reset["data"], json!({"guest": false, "reason": "host-qmp-system-reset"}));
    assert_eq!(one.get("system_powerdown", json!({})).await, json!({}));
    assert_eq!(one.line().await["event"], "POWERDOWN");
    assert_eq!(one.get("quit", json!({})).await, json!({}));
    let shutdown = one.line().await;
    assert_eq!(shutdown["event"], "SHUTDOWN");
    assert_eq!(shutdown["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(rig.control.world().machine.finished(), Some(0));
}

#[tokio::test]
async fn arguments_are_checked_before_anything_happens() {
    let rig = rig().await;
    let mut client = rig.client().await;
    for (command, arguments, text) in [
        ("stop", json!({"x": 1}), "Invalid parameter 'x'"),
        ("memsave", json!({"val": 1, "size": 1}), "Parameter 'filename' is missing"),
        (
            "memsave",
            json!({"val": "1", "size": 1, "filename": "x"}),
            "Invalid parameter type for 'val', expected: int",
        ),
        (
            "trace-event-set-state",
            json!({"name": "*", "enable": "true"}),
            "Invalid parameter type for 'enable', expected: bool",
        ),
        ("qmp_capabilities", json!({"enable": ["x"]}), "Invalid parameter 'x'"),
        (
            "memsave",
            json!({"val": 1, "size": 1, "filename": "/nowhere", "cpu": 9}),
            "Parameter 'cpu-index' expects a CPU number",
        ),
        (
            "pmemsave",
            json!({"val": 1, "size": 1, "filename": "/nowhere/x"}),
            "Could not open '/nowhere/x': No such file or directory",
        ),
        (
            "chardev-add",
            json!({"id": "x", "backend": {"type": "nope", "data": {}}}),
            "Invalid parameter 'nope'",
        ),
    ] {
        assert_eq!(client.refusal(command, arguments).await, error("GenericError", text));
    }
    assert_eq!(
        client.refusal("nope", json!({})).await,
        error("CommandNotFound", "The command nope has not been found")
    );
}

#[tokio::test]
async fn physical_memory_is_saved() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let file = rig._folder.path().join("dump");
    let arguments = json!({"val": 4090, "size": 70000, "filename": file});
    assert_eq!(client.get("pmemsave", arguments).await, json!({}));
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 70000);
}

#[tokio::test]
async fn the_socket_of_an_nbd_client_is_passed_in() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let (disk, path) = (rig._folder.path().join("disk"), rig._folder.path().join("nbd"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    let file = json!({"driver": "file", "node-name": "disk", "filename": disk});
    client.get("blockdev-add", file).await;
    let address = json!({"type": "unix", "data": {"path": path}});
    client.get("nbd-server-start", json!({"addr": address})).await;
    client.get("nbd-server-add", json!({"device": "disk"})).await;
    let nbd = |name: &str| {
        let server = json!({"type": "fd", "str": name});
        json!({"driver": "raw", "node-name": "n", "read-only": true,
            "file": {"driver": "nbd", "export": "disk", "server": server}})
    };
    for (name, text) in [
        ("s", "File descriptor named 's' has not been found"),
        ("7x", "File descriptor named '7x' has not been found"),
        ("999", "File descriptor 999 is not open or already in use"),
    ] {
        assert_eq!(client.refusal("blockdev-add", nbd(name)).await, error("GenericError", text));
    }
    // A socket that leads to no server is not kept.
    let (mut ours, theirs) = StdStream::pair().unwrap();
    client.send_fds("{'execute':'getfd','arguments':{'fdname':'s'}}", &[&theirs]);
    assert_eq!(client.line().await, json!({"return": {}}));
    drop(theirs);
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    client.refusal("blockdev-add", nbd("s")).await;
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "closed");
    let connected = StdStream::connect(&path).unwrap();
    client.send_fds("{'execute':'getfd','arguments':{'fdname':'s'}}", &[&connected]);
    assert_eq!(client.line().await, json!({"return": {}}));
    client.get("blockdev-add", nbd("s")).await;
    let nodes = client.get("query-named-block-nodes", json!({"flat": true})).await;
    let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "n").unwrap().clone();
    assert_eq!(node["image"]["virtual-size"], 4096);
}

#[tokio::test]
async fn descriptors() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let missing = error("GenericError", "No file descriptor supplied via SCM_RIGHTS");
    assert_eq!(client.refusal("getfd", json!({"fdname": "a"})).await, missing);
    let (ours, theirs) = StdStream::pair().unwrap();
    let mut ours = ours;
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.send_fds("{'execute':'getfd','arguments':{'fdname':'1a'}}", &[&theirs]);
    assert_eq!(
        client.line().await["error"]["desc"],
        "Parameter 'fdname' expects a name not starting with a digit"
    );
    client.send_fds("{'execute':'getfd','arguments':{'fdname':'a'}}", &[&theirs]);
    assert_eq!(client.line().await, json!({"return": {}}));
    drop(theirs);
    assert_eq!(client.get("closefd", json!({"fdname": "a"})).await, json!({}));
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "closed");
    let gone = error("GenericError", "File descriptor named 'a' not found");
    assert_eq!(client.refusal("closefd", json!({"fdname": "a"})).await, gone);

    let file = std::fs::File::create(rig._folder.path().join("out")).unwrap();
    client.send_fds("{'execute':'add-fd','arguments':{'fdset-id':3,'opaque':'x'}}", &[&file]);
    let fd = client.line().await["return"]["fd"].clone();
    let sets = client.get("query-fdsets", json!({})).await;
    assert_eq!(sets, json!([{"fdset-id": 3, "fds": [{"fd": fd, "opaque": "x"}]}]));
    client.send_fds("{'execute':'add-fd','arguments':{'fdset-id':5}}", &[&file]);
    assert_eq!(client.line().await["return"]["fdset-id"], 5);
    let sets = client.get("query-fdsets", json!({})).await;
    assert_eq!((&sets[0]["fdset-id"], &sets[1]["fdset-id"]), (&json!(5), &json!(3)), "the last set first");
    client.get("remove-fd", json!({"fdset-id": 5})).await;
    client.get("pmemsave", json!({"val": 0, "size": 10, "filename": "/dev/fdset/3"})).await;
    assert_eq!(
        client.refusal("pmemsave", json!({"val": 0, "size": 10, "filename": "/dev/fdset/4"})).await.1,
        "Could not open '/dev/fdset/4': No such file or directory"
    );
    assert_eq!(
        client.refusal("remove-fd", json!({"fdset-id": 3, "fd": -1})).await.1,
        "File descriptor named 'fdset-id:3, fd:-1' not found"
    );
    assert_eq!(client.get("remove-fd", json!({"fdset-id": 3})).await, json!({}));
    assert_eq!(client.get("query-fdsets", json!({})).await, json!([]));
}

#[tokio::test]
async fn ring_buffers() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let add = json!({"id": "rb", "backend": {"type": "ringbuf", "data": {"size": 16}}});
    assert_eq!(client.get("chardev-add", add.clone()).await, json!({}));
    assert_eq!(client.refusal("chardev-add", add).await.1, "Chardev 'rb' already exists");
    client.get("ringbuf-write", json!({"device": "rb", "data": "aGVsbG8=", "format": "base64"})).await;
    client.get("ringbuf-write", json!({"device": "rb", "data": " é"})).await;
    assert_eq!(client.get("ringbuf-read", json!({"device": "rb", "size": 5})).await, "hello");
    assert_eq!(
        client.get("ringbuf-read", json!({"device": "rb", "size": 9, "format": "base64"})).await,
        "IMOp"
    );
    assert_eq!(
        client.refusal("ringbuf-read", json!({"device": "rb", "size": 0})).await.1,
        "size must be greater than zero"
    );
    assert_eq!(
        client.refusal("ringbuf-read", json!({"device": "no", "size": 1})).await.1,
        "Device 'no' not found"
    );
    let bad = json!({"device": "rb", "data": "?", "format": "base64"});
    assert!(client.refusal("ringbuf-write", bad).await.1.contains("base64"));
    let list = client.get("query-chardev", json!({})).await;
    assert!(
        list.as_array()
            .unwrap()
            .contains(&json!({"label": "rb", "filename": "ringbuf", "frontend-open": false}))
    );
    assert_eq!(
        client.refusal("chardev-remove", json!({"id": "compat_monitor0"})).await.1,
        "Chardev 'compat_monitor0' is busy"
    );
    assert_eq!(client.get("chardev-remove", json!({"id": "rb"})).await, json!({}));
    let mut pty = client.get("chardev-add", json!({"id": "p", "backend": {"type": "pty", "data": {}}})).await;
    assert!(pty["pty"].take().as_str().unwrap().starts_with("/dev/pts/"));
}

#[tokio::test]
async fn object_tree() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let add = json!({"qom-type": "rng-random", "id": "rng0", "filename": "/dev/urandom"});
    assert_eq!(client.get("object-add", add.clone()).await, json!({}));
    assert!(
        client.refusal("object-add", add).await.1.starts_with("attempt to add duplicate property 'rng0'")
    );
    let list = client.get("qom-list", json!({"path": "/objects"})).await;
    assert!(list.as_array().unwrap().contains(&json!({"name": "rng0", "type": "child<rng-random>"})));
    let got = client.get("qom-get", json!({"path": "/objects/rng0", "property": "filename"})).await;
    assert_eq!(got, "/dev/urandom");
    assert_eq!(
        client.refusal("qom-list", json!({"path": "/nowhere"})).await,
        error("DeviceNotFound", "Device '/nowhere' not found")
    );
    assert_eq!(
        client.refusal("qom-get", json!({"path": "rng0", "property": "x"})).await.1,
        "Property '.x' not found"
    );
    client.get("object-add", json!({"qom-type": "iothread", "id": "io0"})).await;
    let threads = client.get("query-iothreads", json!({})).await;
    assert_eq!(threads[0]["id"], "io0");
    let task = format!("/proc/self/task/{}", threads[0]["thread-id"]);
    assert!(std::path::Path::new(&task).exists(), "{task}");
    assert_eq!(threads[0]["poll-max-ns"], 32768);
    let set = |value: i64| json!({"path": "/objects/io0", "property": "poll-max-ns", "value": value});
    client.get("qom-set", set(1000)).await;
    assert_eq!(
        client.refusal("qom-set", set(-1)).await.1,
        "poll-max-ns value must be in range [0, 9223372036854775807]"
    );
    assert_eq!(client.get("query-iothreads", json!({})).await[0]["poll-max-ns"], 1000);
    client.get("object-del", json!({"id": "io0"})).await;
    for path in ["/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"] {
        assert_eq!(
            client.get("qom-list", json!({"path": path})).await,
            json!([{"name": "type", "type": "string"}])
        );
    }
    let kind = client.get("qom-get", json!({"path": "/machine", "property": "type"})).await;
    assert_eq!(kind, "none-machine");
    let types = client.get("qom-list-types", json!({"implements": "user-creatable"})).await;
    assert!(types.as_array().unwrap().iter().any(|kind| kind["name"] == "rng-random"));
    assert_eq!(client.get("qom-list-types", json!({"implements": "nope"})).await, json!([]));
    let nope = error("DeviceNotFound", "Device 'nope' not found");
    assert_eq!(client.refusal("device-list-properties", json!({"typename": "nope"})).await, nope);
    let memory = json!({"qom-type": "memory-backend-memfd", "id": "m", "size": 8192, "prealloc": true});
    assert_eq!(client.get("object-add", memory).await, json!({}));
    let memdev = client.get("query-memdev", json!({})).await;
    assert_eq!(memdev[0]["id"], "m");
    assert_eq!((&memdev[0]["size"], &memdev[0]["prealloc"]), (&json!(8192), &json!(true)));
    assert_eq!(client.get("object-del", json!({"id": "m"})).await, json!({}));
    let file = rig._folder.path().join("short");
    std::fs::write(&file, [0; 100]).unwrap();
    let short = json!({"qom-type": "memory-backend-file", "id": "m", "size": 8192, "mem-path": file});
    assert!(client.refusal("object-add", short).await.1.contains("does not match"));
    assert_eq!(client.get("query-memdev", json!({})).await, json!([]));
    assert_eq!(client.get("object-del", json!({"id": "rng0"})).await, json!({}));
    assert!(client.refusal("object-del", json!({"id": "rng0"})).await.1.contains("not found"));
}

/// The description of `object-add` names the types that can be made, with their properties.
#[test]
fn described_objects_are_those_that_can_be_made() {
    let info = qapi::Book::schema_info(schema::all_commands(), schema::all_events());
    let find = |name: &str| info.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    let arguments = find(find("object-add")["arg-type"].as_str().unwrap());
    let mut described = BTreeSet::new();
    for variant in arguments["variants"].as_array().unwrap() {
        let members = find(variant["type"].as_str().unwrap())["members"].as_array().unwrap().clone();
        let names = members.iter().map(|member| member["name"].as_str().unwrap().to_string());
        described.insert((variant["case"].as_str().unwrap().to_string(), names.collect::<BTreeSet<_>>()));
    }
    let made: BTreeSet<_> = Objects::types()
        .iter()
        .map(|kind| (kind.name.to_string(), kind.properties.iter().map(|p| p.name.to_string()).collect()))
        .collect();
    assert_eq!(described, made);
}

#[tokio::test]
async fn actions() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let set = json!({"reboot": "shutdown", "panic": "none", "watchdog": "inject-nmi"});
    client.get("set-action", set).await;
    client.get("watchdog-set-action", json!({"action": "pause"})).await;
    let actions = rig.control.world().machine.actions();
    assert!(actions.reboot_shuts_down && !actions.shutdown_pauses);
    assert_eq!(actions.panic, spec::machine::PanicAction::None);
    assert_eq!(actions.watchdog, spec::machine::WatchdogChoice::Pause);
    assert_eq!(client.get("system_reset", json!({})).await, json!({}));
    assert_eq!(client.line().await["event"], "SHUTDOWN");
    assert!(rig.control.world().machine.finished().is_some());
}

#[tokio::test]
async fn migration_capabilities() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let events = |state: bool| json!([{"capability": "events", "state": state}]);
    assert_eq!(client.get("query-migrate-capabilities", json!({})).await, events(false));
    client.get("migrate-set-capabilities", json!({"capabilities": events(true)})).await;
    assert_eq!(client.get("query-migrate-capabilities", json!({})).await, events(true));
    let unknown = json!({"capabilities": [{"capability": "x", "state": true}]});
    assert_eq!(client.refusal("migrate-set-capabilities", unknown).await.1, "Invalid parameter 'x'");
}

#[tokio::test]
async fn trace_points() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let all = client.get("trace-event-get-state", json!({"name": "*"})).await;
    assert!(all.as_array().unwrap().len() > 100, "{}", all.as_array().unwrap().len());
    let name = "qmp_enter_query_kvm";
    let state = |state: &str| json!([{"name": name, "state": state}]);
    assert_eq!(client.get("trace-event-get-state", json!({"name": name})).await, state("disabled"));
    client.get("trace-event-set-state", json!({"name": "qmp_enter_query_k*", "enable": true})).await;
    assert_eq!(client.get("trace-event-get-state", json!({"name": name})).await, state("enabled"));
    client.get("trace-event-set-state", json!({"name": "*", "enable": false})).await;
    assert_eq!(
        client.refusal("trace-event-get-state", json!({"name": "nope"})).await.1,
        "unknown event \"nope\""
    );
    assert_eq!(client.get("trace-event-get-state", json!({"name": "nope*"})).await, json!([]));
}

#[tokio::test]
async fn human_monitor() {
    let rig = rig().await;
    let mut client = rig.client().await;
    assert_eq!(client.get("human-monitor-command", json!({"command-line": "info x"})).await, "0:info x\r\n");
    let wrong = json!({"command-line": "info x", "cpu-index": 7});
    assert_eq!(
        client.refusal("human-monitor-command", wrong).await.1,
        "Parameter 'cpu-index' expects a CPU number"
    );
}

#[tokio::test]
async fn the_typed_door() {
    let control = control();
    let status = control.call(schema::lifecycle::QueryStatus {}).await.unwrap();
    assert_eq!(status.status, schema::lifecycle::RunState::Prelaunch);
    let error = control.call(schema::fd::Getfd { fdname: "x".into() }).await.unwrap_err();
    assert!(error.text.contains("QMP monitor"));
}

#[tokio::test]
async fn hostile_and_slow_clients_leave_others_alone() {
    let rig = rig().await;
    let path = format!("{}2", rig.path);
    let _second = monitor(&rig.control, "second", &path).await;
    let mut hostile = connect(&path).await;
    hostile.line().await;
    let garbage: Vec<u8> = (0..10u32 << 20).map(|n| (n.wrapping_mul(2654435761) >> 24) as u8).collect();
    let flood = tokio::spawn(async move {
        // Reads nothing: its own writes may come to a halt, nothing else.
        let _ =
            tokio::time::timeout(Duration::from_secs(3), hostile.reader.get_mut().write_all(&garbage)).await;
        hostile
    });
    let mut client = rig.client().await;
    for _ in 0..100 {
        client.get("query-status", json!({})).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(flood.await.unwrap());
    let mut again = connect(&path).await;
    assert!(again.line().await.get("QMP").is_some(), "the next client is greeted");
}

#[tokio::test]
async fn throttled_events_come_with_their_own_time() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let change = |id: &str, open| device::Notice::PortChanged { id: id.into(), open };
    for open in [true, false, true] {
        rig.control.world().host.notices.send(change("p1", open));
    }
    rig.control.world().host.notices.send(change("p2", true));
    let sent = std::time::Instant::now();
    let first = client.line().await;
    assert_eq!(first["data"], json!({"id": "p1", "open": true}));
    assert_eq!(client.line().await["data"], json!({"id": "p2", "open": true}));
    let last = client.line().await;
    assert_eq!(last["data"], json!({"id": "p1", "open": true}));
    assert!(sent.elapsed() > Duration::from_millis(900));
    let gap =
        last["timestamp"]["seconds"].as_i64().unwrap() - first["timestamp"]["seconds"].as_i64().unwrap();
    assert!(gap <= 1);
}

/// What libvirt asks a machine without devices (`spec/clients.md`, probing).
#[tokio::test]
async fn probing_an_empty_machine() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let machines = client.get("query-machines", json!({})).await;
    let names: Vec<_> = machines.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pc-i440fx-7.2", "pc-q35-7.2", "none"]);
    assert_eq!(machines[0]["is-default"], true);
    assert_eq!(machines[0]["alias"], "pc");
    let cpus = client.get("query-cpu-definitions", json!({})).await;
    let cpu = |name: &str| cpus.as_array().unwrap().iter().find(|cpu| cpu["name"] == name).cloned();
    assert_eq!(cpu("qemu64").unwrap()["typename"], "qemu64-x86_64-cpu");
    assert!(cpu("Haswell").is_some() && cpu("max").is_some());
    let model = json!({"type": "static", "model": {"name": "max", "props": {"migratable": false}}});
    let expansion = client.get("query-cpu-model-expansion", model).await;
    assert_eq!(expansion["model"]["name"], "base");
    let props = expansion["model"]["props"].clone();
    assert_eq!(props["sse2"], true);
    let full = json!({"type": "full", "model": {"name": "base", "props": props}});
    let full = client.get("query-cpu-model-expansion", full).await;
    assert_eq!(full["model"]["props"]["sse2"], true);
    let unknown = json!({"type": "full", "model": {"name": "nope"}});
    assert!(client.refusal("query-cpu-model-expansion", unknown).await.1.contains("'nope'"));
    let types = client.get("qom-list-types", json!({})).await;
    let has = |name: &str| types.as_array().unwrap().iter().any(|kind| kind["name"] == name);
    for name in ["max-x86_64-cpu", "none-machine", "pc-i440fx-7.2-machine", "tcg-accel", "rng-random"] {
        assert!(has(name), "{name}");
    }
    let list = client.get("qom-list-properties", json!({"typename": "max-x86_64-cpu"})).await;
    let names: Vec<_> = list.as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"unavailable-features") && names.contains(&"migratable"));
    for command in [
        "query-cpus",
        "query-cpus-fast",
        "query-pci",
        "query-block",
        "query-blockstats",
        "query-iothreads",
        "query-memdev",
        "query-memory-devices",
        "query-tpm-models",
        "query-tpm-types",
    ] {
        assert_eq!(client.get(command, json!({})).await, json!([]), "{command}");
    }
    assert_eq!(client.get("query-memory-size-summary", json!({})).await["base-memory"], 0);
    assert_eq!(
        client.get("query-current-machine", json!({})).await,
        json!({"wakeup-suspend-support": false})
    );
    assert_eq!(
        client.refusal("query-hotpluggable-cpus", json!({})).await.1,
        "machine does not support hot-plugging CPUs"
    );
}
