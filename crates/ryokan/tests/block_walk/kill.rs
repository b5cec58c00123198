//! Random requests and jobs until the process is killed at a random instant, or quits: the images
//! are sound, and the disk holds all that was flushed, also for who opens it next.

use super::disk::{Files, SIZE, export, node, start};
use super::model::{Change, Model, SECTOR};
use super::{ANSWER, edges};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::nbd::{Client, FLUSH, READ, WRITE};
use testkit::{Dice, Vm, dice};

const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

/// What the one job does to the chain when it has ended well: some files leave it, one may come
/// to stand below what is left.
#[derive(Default)]
struct Job {
    leave: Vec<usize>,
    comes: Option<usize>,
}

impl Job {
    fn done(&self, chain: &[usize]) -> Vec<usize> {
        let stay = chain.iter().copied().filter(|one| !self.leave.contains(one));
        self.comes.into_iter().chain(stay).collect()
    }
}

struct Scene {
    dice: Dice,
    files: Files,
    vm: Vm,
    client: Client,
    model: Model,
    cookie: u64,
    /// A filter stands over the disk.
    filtered: bool,
    /// The disk's files, the lowest first.
    chain: Vec<usize>,
    /// Where the disk may be as well, as no answer has come yet.
    other: Option<usize>,
    job: Option<Job>,
    /// The answer to the next command is not waited for.
    is_last: bool,
    /// `quit` was sent.
    ending: bool,
    log: Vec<String>,
    seed: u64,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("RYOKAN_WALK={}:1 failed; its commands:\n{}", self.seed, self.log.join("\n"));
            eprintln!("standard error: {}", self.vm.errors());
        }
    }
}

impl Scene {
    /// A disk of one or two files, perhaps under a filter, exported.
    fn start(seed: u64) -> Scene {
        let mut dice = Dice::new(seed);
        let (files, top) = Files::make(&mut dice);
        let mut vm = start();
        vm.qmp.execute("blockdev-add", top.clone()).unwrap();
        let chain: Vec<usize> = (0..files.count).collect();
        let mut filter = json!({"node-name": "filter", "file": node(files.count - 1)});
        let filtered = match dice.below(4) {
            0 => {
                let limits = json!({"bps-total": 256 << 20});
                let group = json!({"qom-type": "throttle-group", "id": "g", "limits": limits});
                vm.qmp.execute("object-add", group).unwrap();
                filter["throttle-group"] = "g".into();
                filter["driver"] = "throttle".into();
                true
            }
            1 => {
                filter["driver"] = "copy-on-read".into();
                true
            }
            _ => false,
        };
        let mut log = vec![top.to_string()];
        if filtered {
            vm.qmp.execute("blockdev-add", filter.clone()).unwrap();
            log.push(filter.to_string());
        }
        let root = if filtered { "filter".into() } else { node(files.count - 1) };
        let client = export(&mut vm, &root);
        Scene {
            dice,
            files,
            vm,
            client,
            model: Model::new(SIZE),
            cookie: 0,
            filtered,
            chain,
            other: None,
            job: None,
            is_last: false,
            ending: false,
            log,
            seed,
        }
    }

    /// What is exported.
    fn root(&self) -> String {
        if self.filtered { "filter".into() } else { node(self.top()) }
    }

    fn top(&self) -> usize {
        self.chain[self.chain.len() - 1]
    }

    fn request(&mut self) {
        self.cookie += 1;
        let cookie = self.cookie;
        let (command, flags) = match self.dice.below(14) {
            0 | 1 => {
                self.log.push(format!("{cookie}: flush"));
                self.model.flush(cookie);
                return self.client.send(&Client::request(FLUSH, cookie, 0, 0, &[])).unwrap();
            }
            2 => (WRITE_ZEROES, NO_HOLE),
            3 => (WRITE_ZEROES, 0),
            4 => (TRIM, 0),
            5 => (WRITE, FUA),
            6 | 7 => (READ, 0),
            _ => (WRITE, 0),
        };
        // Often whole clusters.
        let unit = *self.dice.pick(&[1, 8, 8, 128]);
        let longest = (256 / unit).max(2);
        let sectors = self.model.size() / SECTOR;
        let first = self.dice.below(sectors / unit) * unit;
        let end = (first + (1 + self.dice.below(longest)) * unit).min(sectors);
        let (first, end) = (first as usize, end as usize);
        if !self.model.is_free(first, end) {
            return;
        }
        let with = 1 + self.dice.below(255) as u8;
        let (data, with) = match command {
            WRITE => (vec![with; (end - first) * SECTOR as usize], Some(with)),
            TRIM | READ => (Vec::new(), None),
            _ => (Vec::new(), Some(0)),
        };
        let (offset, len) = (first as u64 * SECTOR, ((end - first) as u64 * SECTOR) as u32);
        let mut bytes = Client::request(command, cookie, offset, len, &data);
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        self.log.push(format!("{cookie}: request {command} ({flags}) of sectors {first}..{end}: {with:?}"));
        let change = Change { cookie, first, end, durable: flags == FUA };
        match command {
            READ => self.model.read(change),
            _ => self.model.change(change, with),
        }
        self.client.send(&bytes).unwrap();
    }

    /// Takes answers until no more than so many requests are under way, or the process is gone.
    fn replies(&mut self, most: usize) {
        while self.model.in_flight() > most {
            let Some((cookie, error)) = self.client.reply() else { return };
            self.log.push(format!("{cookie}: done ({error})"));
            if error != 0 && self.ending {
                continue;
            }
            assert_eq!(error, 0, "request {cookie}");
            let Some(read) = self.model.reply(cookie) else { continue };
            let len = (read.end - read.first) as u64 * SECTOR;
            let Some(data) = self.client.data(len as u32) else { return };
            self.model.shows(read.first, &data).unwrap_or_else(|why| panic!("read {cookie}: {why}"));
        }
    }

    /// A command; one that was refused has changed nothing.
    fn run(&mut self, command: &str, arguments: Value) -> bool {
        self.log.push(format!("{command} {arguments}"));
        if self.is_last {
            let message = json!({"execute": command, "arguments": arguments, "id": "last"});
            self.vm.qmp.send(&message.to_string()).unwrap();
            return false;
        }
        let done = self.vm.qmp.execute(command, arguments);
        self.log.push(format!("    {done:?}"));
        done.is_ok()
    }

    fn command(&mut self) {
        if self.job.is_some() {
            self.follow_job();
        }
        let (top, new) = (self.top(), self.files.count);
        let bitmap = json!({"node": node(top), "name": format!("b{}", self.dice.below(2))});
        let inside = json!({"device": self.root(), "name": format!("s{}", self.dice.below(2))});
        match self.dice.below(12) {
            // A job that nobody knows yet to have ended has changed the chain.
            0 if self.job.is_none() => {
                let overlay = self.files.path(new);
                let arguments = json!({"node-name": node(top), "snapshot-file": overlay,
                    "snapshot-node-name": node(new)});
                self.other = Some(new);
                if self.run("blockdev-snapshot-sync", arguments) {
                    self.chain.push(new);
                    self.files.count += 1;
                }
                if !self.is_last {
                    self.other = None;
                }
            }
            1 => drop(self.run("blockdev-snapshot-internal-sync", inside)),
            2 => drop(self.run("blockdev-snapshot-delete-internal-sync", inside)),
            3 => {
                let mut arguments = bitmap.clone();
                arguments["persistent"] = true.into();
                self.run("block-dirty-bitmap-add", arguments);
            }
            4 => drop(self.run("block-dirty-bitmap-remove", bitmap)),
            // Where the disk is must be known: a filter that it has left can be resized, too.
            5 if self.other.is_none() => self.resize(),
            6 | 7 if self.job.is_none() => self.reopen(),
            _ if self.job.is_none() => self.begin_job(),
            _ => {}
        }
    }

    fn resize(&mut self) {
        self.replies(0);
        // A file below that is longer would come to light.
        let least = if self.chain.len() == 1 { 3 << 20 } else { self.model.size() };
        let size = (least + (self.dice.below(24) << 16)).min(6 << 20).max(least);
        self.model.other_size = Some(size);
        if self.run("block_resize", json!({"node-name": self.root(), "size": size})) {
            self.cookie += 1;
            self.model.resize(size, self.cookie);
        }
        if !self.is_last {
            self.model.other_size = None;
        }
    }

    /// Reopens the topmost image, or its file, with other options.
    fn reopen(&mut self) {
        let top = node(self.top());
        let graph = self.vm.qmp.execute("x-debug-query-block-graph", json!({})).unwrap();
        let below: Vec<_> = edges(&graph).into_iter().filter(|edge| edge.0 == top).collect();
        let dice = &mut self.dice;
        let mut options = json!({"driver": self.files.format(self.chain[self.chain.len() - 1]),
            "node-name": top, "discard": dice.pick(&["unmap", "ignore"]),
            "detect-zeroes": dice.pick(&["off", "on"]), "cache": {"direct": dice.once_in(2)}});
        for (_, role, child, _) in &below {
            options[role] = child.as_str().into();
        }
        if options["driver"] == "qcow2" {
            options["lazy-refcounts"] = dice.once_in(2).into();
        }
        let mut list = vec![options.take()];
        let file = below.iter().find(|edge| edge.1 == "file");
        if let Some((_, _, file, _)) = file
            && dice.once_in(2)
        {
            list.push(json!({"driver": "file", "node-name": file, "filename": self.files.path(self.top()),
                "cache": list[0]["cache"]}));
        }
        self.run("blockdev-reopen", json!({ "options": list }));
    }

    fn begin_job(&mut self) {
        let new = self.files.count;
        let speed = 1u64 << (22 + self.dice.below(5));
        let target = self.files.path(new);
        let mut arguments =
            json!({"job-id": "j", "device": self.root(), "speed": speed, "auto-dismiss": false});
        let count = self.chain.len() as u64;
        let (command, job) = match self.dice.below(5) {
            0 if count > 2 => {
                let base = self.dice.below(count - 2) as usize;
                let from = base + 1 + self.dice.below(count - 2 - base as u64) as usize;
                arguments["top-node"] = node(self.chain[from]).into();
                arguments["base-node"] = node(self.chain[base]).into();
                ("block-commit", Job { leave: self.chain[base + 1..=from].to_vec(), comes: None })
            }
            0 | 1 if count > 1 => {
                let base = self.dice.below(count - 1) as usize;
                arguments["base-node"] = node(self.chain[base]).into();
                ("block-commit", Job { leave: self.chain[base + 1..].to_vec(), comes: None })
            }
            2 if count > 2 => {
                arguments["base-node"] = node(self.chain[0]).into();
                ("block-stream", Job { leave: self.chain[1..self.chain.len() - 1].to_vec(), comes: None })
            }
            2 => ("block-stream", Job { leave: self.chain[..self.chain.len() - 1].to_vec(), comes: None }),
            3 => {
                arguments["target"] = target.into();
                arguments["format"] = "qcow2".into();
                arguments["sync"] = "full".into();
                arguments["node-name"] = node(new).into();
                arguments["copy-mode"] = (*self.dice.pick(&["background", "write-blocking"])).into();
                self.files.count += usize::from(!self.is_last);
                ("drive-mirror", Job { leave: self.chain.clone(), comes: Some(new) })
            }
            _ => {
                arguments["target"] = target.into();
                arguments["format"] = "qcow2".into();
                arguments["sync"] = (*self.dice.pick(&["full", "top", "none"])).into();
                self.files.count += usize::from(!self.is_last);
                ("drive-backup", Job::default())
            }
        };
        if self.run(command, arguments) {
            self.job = Some(job);
        }
    }

    /// Moves the job on, and learns of its end.
    fn follow_job(&mut self) {
        let jobs = self.vm.qmp.execute("query-jobs", json!({})).unwrap();
        let id = json!({"id": "j"});
        match jobs[0]["status"].as_str().unwrap_or_default() {
            "ready" if self.dice.once_in(2) => {
                self.other = self.job.as_ref().and_then(|job| job.done(&self.chain).last().copied());
                self.run("job-complete", id);
            }
            "running" | "ready"
                if self.other.is_none() && self.dice.once_in(12) && self.run("job-cancel", id.clone()) =>
            {
                self.job = Some(Job::default());
            }
            "concluded" => {
                self.log.push(format!("concluded: {}", jobs[0]));
                if let (Some(job), Value::Null) = (self.job.take(), &jobs[0]["error"]) {
                    let top = self.top();
                    self.chain = job.done(&self.chain);
                    // What takes the place of the disk takes that of the filter as well.
                    self.filtered &= self.top() == top;
                }
                self.other = None;
                self.run("job-dismiss", id);
            }
            _ => {}
        }
    }

    /// Ends the process, now or when it likes; whether the images are closed.
    fn end(&mut self) -> bool {
        if self.dice.once_in(3) {
            self.log.push("(quit)".into());
            self.ending = true;
            self.vm.qmp.send(&json!({"execute": "quit"}).to_string()).unwrap();
            self.replies(0);
            let ended = self.vm.wait(ANSWER).unwrap();
            assert!(ended.success(), "{ended:?}");
            self.model.closed();
            return true;
        }
        let instant = Instant::now() + Duration::from_micros(self.dice.below(1500));
        while Instant::now() < instant {
            std::hint::spin_loop();
        }
        self.vm.kill().unwrap();
        self.log.push("(killed)".into());
        // What was answered before it was killed counts.
        self.replies(0);
        false
    }

    fn verify(&self, closed: bool) {
        self.files.check(closed);
        let shows = |number: usize| self.files.images.contents(&self.files.name(number));
        let (mut number, mut bytes) = (self.top(), shows(self.top()));
        if let Err(why) = self.model.compare(&bytes) {
            let there = self.other.filter(|other| self.files.faults(*other, closed).is_none());
            number = there.unwrap_or_else(|| panic!("{}: {why}", self.files.name(number)));
            bytes = shows(number);
            if let Err(also) = self.model.compare(&bytes) {
                panic!("{}: {why}; {}: {also}", self.files.name(self.top()), self.files.name(number));
            }
        }
        if let Some(plain) = self.files.plain.as_ref().filter(|_| number == 0) {
            assert_eq!(self.model.compare(&self.files.images.bytes(plain)), Ok(()), "{plain}");
        }
        if self.seed.is_multiple_of(3) {
            assert!(self.files.show(number) == bytes, "{} shows something else", self.files.name(number));
            assert_eq!(self.files.faults(number, false), None);
        }
    }
}

fn case(seed: u64) {
    let mut scene = Scene::start(seed);
    for _ in 0..20 + scene.dice.below(80) {
        for _ in 0..scene.dice.below(6) {
            scene.request();
        }
        scene.replies(8);
        if scene.dice.once_in(3) {
            scene.command();
        }
    }
    for _ in 0..1 + scene.dice.below(8) {
        scene.request();
    }
    scene.is_last = true;
    if scene.dice.once_in(2) {
        scene.command();
    }
    let closed = scene.end();
    scene.verify(closed);
}

#[test]
fn random_kills() {
    dice::walk(1, 15, case);
}
