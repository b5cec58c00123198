//! Random commands, many of them wrong, from one and from two monitors: each is answered once and
//! soon, one that is refused changes nothing, and in the end all can be taken away again.
//! `RYOKAN_WALK=seed:count` runs more.

mod disk;
mod kill;
mod make;
mod model;
mod table;
mod take;

use make::{Maker, QCOW2, RAW};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use testkit::{Images, Qmp, Vm, dice};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
const CLASSES: [&str; 6] = [
    "GenericError",
    "CommandNotFound",
    "DeviceNotFound",
    "DeviceNotActive",
    "DeviceEncrypted",
    "KVMMissingCap",
];
/// What no message to a user has in it.
const INTERNAL: [&str; 14] = [
    "panick",
    "unwrap",
    "poison",
    "channel closed",
    "JoinError",
    "(os error",
    "Some(",
    "None)",
    "Err(",
    "Ok(",
    "invalid digit",
    "at line ",
    "overflow",
    "assert",
];

/// A case under way. Dropped in a panic: tells how to see it again.
struct Walk {
    seed: u64,
    vm: Vm,
    second: Qmp,
    make: Maker,
    log: Vec<String>,
    asked: u64,
    /// Names that descriptors may have been given.
    fds: BTreeSet<String>,
    /// Whether requests may be under way that nobody waited for.
    restless: bool,
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("RYOKAN_WALK={}:1 failed; its commands:\n{}", self.seed, self.log.join("\n"));
            eprintln!("standard error: {}", self.vm.errors());
        }
    }
}

/// The images that all cases begin with.
fn templates() -> Images {
    let images = Images::new();
    for name in RAW {
        images.create(name, "4M", &[]);
    }
    images.create(QCOW2[0], "4M", &["-o", "cluster_size=4k"]);
    images.io(QCOW2[0], &["write -P 1 0 1M"]);
    images.overlay(QCOW2[1], QCOW2[0]);
    images.io(QCOW2[1], &["write -P 2 512k 1M"]);
    images.overlay(QCOW2[2], QCOW2[1]);
    images.create(QCOW2[3], "4M", &["-o", "extended_l2=on"]);
    images.create(QCOW2[4], "3M", &["-o", "refcount_bits=1,lazy_refcounts=on"]);
    images
}

impl Walk {
    fn start(seed: u64, images: &Images, dir: &str) -> Walk {
        let make = Maker::new(seed, dir.to_string());
        for name in RAW.iter().chain(&QCOW2) {
            std::fs::copy(images.path(name), format!("{dir}/{name}")).unwrap();
        }
        // Backing files are named by where they were made.
        for (name, below) in [(QCOW2[1], QCOW2[0]), (QCOW2[2], QCOW2[1])] {
            let (image, below) = (format!("{dir}/{name}"), format!("{dir}/{below}"));
            testkit::images::tool(
                "qemu-img",
                &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below, &image],
            );
        }
        let socket = format!("unix:{dir}/second,server=on,wait=off");
        let machine = if seed.is_multiple_of(2) { "none" } else { "pc" };
        let mut args =
            vec!["-M", machine, "-accel", "qtest", "-nodefaults", "-display", "none", "-qmp", &socket];
        if machine == "pc" {
            args.extend(["-device", "virtio-scsi-pci,id=s0"]);
        }
        let vm = Vm::start_at(dir.as_ref(), &args).unwrap();
        let second = Qmp::connect(format!("{dir}/second").as_ref(), ANSWER).unwrap();
        Walk { seed, vm, second, make, log: Vec::new(), asked: 0, fds: BTreeSet::new(), restless: false }
    }

    /// Has the process open what it keeps open from the first use on.
    fn warm_up(&mut self) {
        let file = format!("{}/r0.raw", self.make.dir);
        // Where tmpfs knows no O_DIRECT, nothing can open with `native`.
        for (name, aio, direct) in [("native", "native", true), ("warm", "io_uring", false)] {
            let node = json!({"driver": "file", "filename": file, "node-name": name, "aio": aio,
                "cache": {"direct": direct}});
            if self.ask("blockdev-add", node).is_ok() {
                let read = json!({"command-line": format!("qemu-io {name} \"read 0 4k\"")});
                self.ask("human-monitor-command", read.clone()).unwrap();
                self.settle(&read);
            }
        }
        self.ask("blockdev-add", json!({"driver": "null-co", "node-name": "sink", "size": 4 << 20})).unwrap();
        let copy = json!({"job-id": "warm", "device": "warm", "target": "sink", "sync": "full"});
        self.ask("blockdev-backup", copy).unwrap();
        self.vm.qmp.event("BLOCK_JOB_COMPLETED", ANSWER).unwrap();
        for node in ["native", "warm", "sink"] {
            let _ = self.ask("blockdev-del", json!({ "node-name": node }));
        }
        self.log.clear();
    }

    /// Sends a command; what it is waited for by.
    fn send(&mut self, second: bool, command: &str, arguments: &Value) -> u64 {
        self.asked += 1;
        let message = json!({"execute": command, "arguments": arguments, "id": self.asked}).to_string();
        self.log.push(format!("{}{message}", if second { "2: " } else { "" }));
        if let ("getfd", Some(name)) = (command, arguments["fdname"].as_str()) {
            self.fds.insert(name.into());
        }
        let takes_fd = ["getfd", "add-fd"].contains(&command);
        if takes_fd && !second && !self.make.dice.once_in(5) {
            let path = format!("{}/r0.raw", self.make.dir);
            let file =
                std::fs::File::options().read(true).write(!self.make.dice.once_in(3)).open(path).unwrap();
            self.vm.qmp.send_fd(&format!("{message}\n"), &file).unwrap();
        } else {
            let qmp = if second { &mut self.second } else { &mut self.vm.qmp };
            qmp.send(&message).unwrap();
        }
        self.asked
    }

    /// The answer, and the next one that there is.
    fn answer(&mut self, second: bool, id: u64) -> Result<Value, String> {
        let qmp = if second { &mut self.second } else { &mut self.vm.qmp };
        let mut reply = match qmp.reply(ANSWER) {
            Ok(reply) => reply,
            Err(e) => panic!("no answer: {e}; {}", self.log.last().unwrap()),
        };
        // What is no request has no id.
        let formless = ["Invalid JSON syntax", "QMP input object member 'arguments' expects 'object'"];
        if !formless.iter().any(|text| reply["error"]["desc"] == *text) {
            assert_eq!(reply["id"], id, "{reply}");
        }
        let (class, text) = (reply["error"]["class"].clone(), reply["error"]["desc"].clone());
        let Some(text) = text.as_str() else {
            assert!(reply.get("return").is_some(), "{reply}");
            return Ok(reply["return"].take());
        };
        self.log.push(format!("    {text}"));
        assert!(CLASSES.iter().any(|known| class == *known), "{reply}");
        assert!(!text.is_empty() && INTERNAL.iter().all(|word| !text.contains(word)), "{reply}");
        Err(text.to_string())
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let id = self.send(false, command, &arguments);
        self.answer(false, id)
    }

    /// A query that cannot fail.
    fn query(&mut self, command: &str, arguments: Value) -> Value {
        let length = self.log.len();
        let found = self.ask(command, arguments);
        self.log.truncate(length);
        found.unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// What a refused command leaves as it is, sorted; `None` while jobs or requests change it.
    fn state(&mut self) -> Option<BTreeMap<String, Value>> {
        if self.restless || self.query("query-jobs", json!({})) != json!([]) {
            return None;
        }
        let mut state = BTreeMap::new();
        let graph = self.query("x-debug-query-block-graph", json!({}));
        let edges = edges(&graph);
        let nodes = list(self.query("query-named-block-nodes", json!({"flat": true})));
        let stores = stores(&nodes, &edges);
        for mut node in nodes {
            let name = text(&node["node-name"]);
            if stores.contains(&name) {
                written(&mut node);
            }
            state.insert(format!("node {name}"), steady(node));
        }
        for drive in list(self.query("query-block", json!({}))) {
            state.insert(format!("drive {} {}", drive["device"], drive["qdev"]), steady(drive));
        }
        let mut exports = list(self.query("query-block-exports", json!({})));
        // Those go by themselves.
        exports.retain(|export| export["shutting-down"] == false);
        state.insert("exports".into(), exports.into());
        for (parent, role, child, rights) in edges {
            state.insert(format!("edge {parent} {role} {child}"), rights);
        }
        Some(state)
    }

    fn step(&mut self) {
        let (command, arguments) = self.make.command();
        let io = command == "human-monitor-command";
        let before = if io { None } else { self.state() };
        let id = self.send(false, command, &arguments);
        if self.make.dice.once_in(6) {
            // Meanwhile another one on the other monitor.
            let (command, arguments) = self.make.command();
            let other = self.send(true, command, &arguments);
            self.restless |= command == "human-monitor-command";
            let _ = self.answer(true, other);
            let _ = self.answer(false, id);
            return;
        }
        let answer = self.answer(false, id);
        if io {
            self.settle(&arguments);
        } else if let (Err(why), Some(before)) = (answer, before)
            && let Some(after) = self.state()
        {
            for (key, value) in &before {
                let now = after.get(key).cloned().unwrap_or_default();
                assert_eq!(*value, now, "{key} changed although {command} was refused: {why}");
            }
            let new: Vec<_> = after.keys().filter(|key| !before.contains_key(*key)).collect();
            assert!(new.is_empty(), "there is {new:?} although {command} was refused: {why}");
        }
    }

    /// Waits a while for a request of the human monitor.
    fn settle(&mut self, arguments: &Value) {
        let line = arguments["command-line"].as_str().unwrap_or_default().to_string();
        if !line.starts_with("qemu-io") || self.restless {
            self.restless |= line.starts_with("commit");
            return;
        }
        let disk = line.split(' ').nth(1).unwrap_or_default();
        let mark = format!("mark{}", self.asked);
        let begin = self.vm.console().len();
        for line in [format!("qemu-io {disk} aio_flush"), format!("qemu-io {disk} {mark}")] {
            let arguments = json!({ "command-line": line });
            let id = self.send(false, "human-monitor-command", &arguments);
            self.log.pop();
            if self.answer(false, id).is_ok_and(|said| said != json!("")) {
                return;
            }
        }
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            if self.vm.console()[begin..].contains(&mark) {
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.restless = true;
    }

    fn sound(&mut self) {
        self.query("query-status", json!({}));
        let said = self.vm.errors();
        assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    }

    fn refresh(&mut self) {
        let nodes = list(self.query("query-named-block-nodes", json!({"flat": true})));
        self.make.nodes =
            nodes.iter().map(|node| node["node-name"].as_str().unwrap_or_default().to_string()).collect();
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        other => panic!("{other} is no list"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

/// Parent, role, child, and what is allowed.
fn edges(graph: &Value) -> Vec<(String, String, String, Value)> {
    let named = |id: &Value| {
        let found = graph["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == *id);
        found.map_or(String::new(), |node| text(&node["name"]))
    };
    let edge = |edge: &Value| {
        let rights = json!([edge["perm"], edge["shared-perm"]]);
        (named(&edge["parent"]), text(&edge["name"]), named(&edge["child"]), rights)
    };
    graph["edges"].as_array().into_iter().flatten().map(edge).collect()
}

/// Nodes that hold an image file of format qcow2, where a snapshot that was taken back leaves
/// free clusters.
fn stores(nodes: &[Value], edges: &[(String, String, String, Value)]) -> BTreeSet<String> {
    let images = nodes.iter().filter(|node| node["drv"] == "qcow2");
    let images: BTreeSet<String> = images.map(|node| text(&node["node-name"])).collect();
    let mut stores = BTreeSet::new();
    loop {
        let count = stores.len();
        for (parent, role, child, _) in edges {
            if stores.contains(parent) || role == "file" && images.contains(parent) {
                stores.insert(child.clone());
            }
        }
        if stores.len() == count {
            return stores;
        }
    }
}

/// Without what changes with each write.
fn written(node: &mut Value) {
    if let Some(image) = node["image"].as_object_mut() {
        image.remove("virtual-size");
    }
    for bitmap in node["dirty-bitmaps"].as_array_mut().into_iter().flatten() {
        bitmap["count"].take();
    }
}

/// Without what changes by itself.
fn steady(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.remove("actual-size");
            if fields.get("format") == Some(&json!("file")) {
                fields.remove("virtual-size");
            }
            fields.values_mut().for_each(|field| *field = steady(field.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|one| *one = steady(one.take())),
        _ => {}
    }
    value
}

fn case(seed: u64, images: &Images) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut walk = Walk::start(seed, images, &dir.path().display().to_string());
    walk.warm_up();
    let before = take::descriptors(walk.vm.pid());
    for number in 0..60 {
        walk.step();
        if number % 4 == 0 {
            walk.refresh();
            walk.sound();
        }
    }
    walk.sound();
    if !seed.is_multiple_of(3) {
        walk.take_away();
        walk.nothing_left(&before);
    }
    walk.sound();
    walk.ask("quit", json!({})).unwrap();
    walk.vm.qmp.event("SHUTDOWN", ANSWER).unwrap();
    let ended = walk.vm.wait(ANSWER).unwrap();
    assert!(ended.success(), "{ended:?}");
    let said = walk.vm.errors();
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn random_commands() {
    let images = templates();
    dice::walk(1, 60, |seed| case(seed, &images));
}
