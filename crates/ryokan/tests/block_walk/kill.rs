//! Random requests and jobs until the process is killed at a random instant: the images are sound
//! and the disk holds all that was flushed.

use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::nbd::{Client, FLUSH, WRITE};
use testkit::{Dice, Images, Vm, dice};

const SECTOR: u64 = 512;
const SIZE: u64 = 4 << 20;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

/// A request on its way, or one that a flush still has to make durable.
#[derive(Clone, Copy)]
struct Change {
    cookie: u64,
    first: usize,
    end: usize,
    durable: bool,
}

/// What the disk may hold.
struct Model {
    /// For each sector, what it was filled with and by which request (`None`: by anything): what
    /// was flushed last, and what came after it.
    sectors: Vec<Vec<(u64, Option<u8>)>>,
    under_way: Vec<Change>,
    /// Answered, but not flushed.
    answered: Vec<Change>,
    /// Flushes under way, and what they make durable.
    flushes: Vec<(u64, Vec<Change>)>,
}

impl Model {
    fn new() -> Model {
        let sectors = vec![vec![(0, Some(0))]; (SIZE / SECTOR) as usize];
        Model { sectors, under_way: Vec::new(), answered: Vec::new(), flushes: Vec::new() }
    }

    fn in_flight(&self) -> usize {
        self.under_way.len() + self.flushes.len()
    }

    /// Of requests that overlap, none is told to be the later one.
    fn is_free(&self, first: usize, end: usize) -> bool {
        self.under_way.iter().all(|one| one.end <= first || end <= one.first)
    }

    fn change(&mut self, change: Change, with: Option<u8>) {
        self.sectors[change.first..change.end].iter_mut().for_each(|held| held.push((change.cookie, with)));
        self.under_way.push(change);
    }

    fn reply(&mut self, cookie: u64) {
        if let Some(at) = self.flushes.iter().position(|flush| flush.0 == cookie) {
            let (_, done) = self.flushes.swap_remove(at);
            self.answered.retain(|one| !done.iter().any(|other| other.cookie == one.cookie));
            done.iter().for_each(|one| self.settle(one));
        } else {
            let at = self.under_way.iter().position(|one| one.cookie == cookie).unwrap();
            let change = self.under_way.swap_remove(at);
            match change.durable {
                true => self.settle(&change),
                false => self.answered.push(change),
            }
        }
    }

    /// What came before is gone.
    fn settle(&mut self, change: &Change) {
        for held in &mut self.sectors[change.first..change.end] {
            held.retain(|(cookie, _)| *cookie >= change.cookie);
        }
    }

    fn compare(&self, bytes: &[u8]) -> Result<(), String> {
        for (at, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let held = &self.sectors[at];
            let even = sector.iter().all(|byte| *byte == sector[0]);
            let known = |with: &Option<u8>| with.is_none_or(|with| even && with == sector[0]);
            if !held.iter().any(|(_, with)| known(with)) {
                return Err(format!("sector {at} has {}.., may have {held:?}", sector[0]));
            }
        }
        Ok(())
    }
}

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
    images: Images,
    vm: Vm,
    client: Client,
    model: Model,
    cookie: u64,
    /// Image files made so far, each the node of the same number.
    files: usize,
    /// The disk's files, the lowest first.
    chain: Vec<usize>,
    /// Where the disk may be as well, as no answer has come yet.
    other: Option<usize>,
    job: Option<Job>,
    /// The answer to the next command is not waited for.
    is_last: bool,
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

fn file(number: usize) -> String {
    format!("f{number}.qcow2")
}

fn node(number: usize) -> String {
    format!("n{number}")
}

impl Scene {
    /// A disk of two files, exported.
    fn start(seed: u64) -> Scene {
        let mut dice = Dice::new(seed);
        let images = Images::new();
        let size = SIZE.to_string();
        let kinds = ["cluster_size=4k", "cluster_size=64k", "extended_l2=on", "refcount_bits=1", "compat=v2"];
        let (kind, below_kind) = (*dice.pick(&kinds), *dice.pick(&kinds));
        let below = images.create(&file(0), &size, &["-o", below_kind]);
        images.create(&file(1), &size, &["-o", kind, "-F", "qcow2", "-b", &below]);
        let open = |dice: &mut Dice, number: usize| {
            let file = json!({"driver": "file", "filename": images.path(&file(number)),
                "aio": dice.pick(&["threads", "io_uring"])});
            json!({"driver": "qcow2", "node-name": node(number), "file": file,
                "discard": dice.pick(&["unmap", "ignore"]), "detect-zeroes": dice.pick(&["off", "on"])})
        };
        let mut top = open(&mut dice, 1);
        top["backing"] = open(&mut dice, 0);
        if dice.once_in(3) && kind != "compat=v2" {
            top["lazy-refcounts"] = true.into();
        }
        let vm = Vm::start_plain(&["-M", "none", "-accel", "qtest", "-nodefaults", "-display", "none"]);
        let mut vm = vm.unwrap();
        let socket = vm.dir().join("nbd");
        vm.qmp.execute("blockdev-add", top.clone()).unwrap();
        let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
        vm.qmp.execute("nbd-server-start", address).unwrap();
        let export = json!({"type": "nbd", "id": "e", "node-name": node(1), "name": "e", "writable": true});
        vm.qmp.execute("block-export-add", export).unwrap();
        let client = Client::new(&socket, "e").unwrap();
        Scene {
            dice,
            images,
            vm,
            client,
            model: Model::new(),
            cookie: 0,
            files: 2,
            chain: vec![0, 1],
            other: None,
            job: None,
            is_last: false,
            log: vec![top.to_string()],
            seed,
        }
    }

    fn top(&self) -> usize {
        self.chain[self.chain.len() - 1]
    }

    fn request(&mut self) {
        self.cookie += 1;
        let cookie = self.cookie;
        let (command, flags) = match self.dice.below(12) {
            0 | 1 => {
                self.log.push(format!("{cookie}: flush"));
                self.model.flushes.push((cookie, self.model.answered.clone()));
                return self.client.send(&Client::request(FLUSH, cookie, 0, 0, &[])).unwrap();
            }
            2 => (WRITE_ZEROES, NO_HOLE),
            3 => (WRITE_ZEROES, 0),
            4 => (TRIM, 0),
            5 => (WRITE, FUA),
            _ => (WRITE, 0),
        };
        // Often whole clusters.
        let unit = *self.dice.pick(&[1, 8, 8, 128]);
        let longest = (256 / unit).max(2);
        let first = self.dice.below(SIZE / SECTOR / unit) * unit;
        let end = (first + (1 + self.dice.below(longest)) * unit).min(SIZE / SECTOR);
        let (first, end) = (first as usize, end as usize);
        if !self.model.is_free(first, end) {
            return;
        }
        let with = 1 + self.dice.below(255) as u8;
        let (data, with) = match command {
            WRITE => (vec![with; (end - first) * SECTOR as usize], Some(with)),
            TRIM => (Vec::new(), None),
            _ => (Vec::new(), Some(0)),
        };
        let (offset, len) = (first as u64 * SECTOR, ((end - first) as u64 * SECTOR) as u32);
        let mut bytes = Client::request(command, cookie, offset, len, &data);
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        self.log.push(format!("{cookie}: request {command} ({flags}) of sectors {first}..{end}: {with:?}"));
        self.model.change(Change { cookie, first, end, durable: flags == FUA }, with);
        self.client.send(&bytes).unwrap();
    }

    /// Takes answers until no more than so many requests are under way, or the process is gone.
    fn replies(&mut self, most: usize) {
        while self.model.in_flight() > most {
            let Some((cookie, error)) = self.client.reply() else { return };
            self.log.push(format!("{cookie}: done ({error})"));
            assert_eq!(error, 0, "request {cookie}");
            self.model.reply(cookie);
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
        let (top, new) = (self.top(), self.files);
        let bitmap = json!({"node": node(top), "name": format!("b{}", self.dice.below(2))});
        let inside = json!({"device": node(top), "name": format!("s{}", self.dice.below(2))});
        match self.dice.below(9) {
            // A job that nobody knows yet to have ended has changed the chain.
            0 if self.job.is_none() => {
                let overlay = self.images.path(&file(new));
                let arguments = json!({"node-name": node(top), "snapshot-file": overlay,
                    "snapshot-node-name": node(new)});
                self.other = Some(new);
                if self.run("blockdev-snapshot-sync", arguments) {
                    self.chain.push(new);
                    self.files += 1;
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
            _ if self.job.is_none() => self.begin_job(),
            _ => {}
        }
    }

    fn begin_job(&mut self) {
        let (top, new) = (self.top(), self.files);
        let speed = 1u64 << (22 + self.dice.below(5));
        let target = self.images.path(&file(new));
        let mut arguments =
            json!({"job-id": "j", "device": node(top), "speed": speed, "auto-dismiss": false});
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
                arguments["sync"] = "full".into();
                arguments["node-name"] = node(new).into();
                arguments["copy-mode"] = (*self.dice.pick(&["background", "write-blocking"])).into();
                self.files += usize::from(!self.is_last);
                ("drive-mirror", Job { leave: self.chain.clone(), comes: Some(new) })
            }
            _ => {
                arguments["target"] = target.into();
                arguments["sync"] = (*self.dice.pick(&["full", "top", "none"])).into();
                self.files += usize::from(!self.is_last);
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
                    self.chain = job.done(&self.chain);
                }
                self.other = None;
                self.run("job-dismiss", id);
            }
            _ => {}
        }
    }

    /// What `qemu-img check` has against a file, leaks apart.
    fn faults(&self, number: usize) -> Option<String> {
        let path = self.images.path(&file(number));
        let out = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output();
        let out = out.expect("qemu-img is installed");
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        (!matches!(out.status.code(), Some(0 | 3))).then(|| format!("{path}: {said}"))
    }

    fn verify(&self) {
        for number in (0..self.files).filter(|number| Path::new(&self.images.path(&file(*number))).exists()) {
            assert_eq!(self.faults(number), None);
        }
        let holds = |number: usize| self.model.compare(&self.images.contents(&file(number)));
        let Err(why) = holds(self.top()) else { return };
        let there = self.other.filter(|other| self.faults(*other).is_none());
        assert!(there.is_some_and(|other| holds(other).is_ok()), "{}: {why}", file(self.top()));
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
    let instant = Instant::now() + Duration::from_micros(scene.dice.below(1500));
    while Instant::now() < instant {
        std::hint::spin_loop();
    }
    scene.vm.kill().unwrap();
    scene.log.push("(killed)".into());
    // What was answered before it was killed counts.
    scene.replies(0);
    scene.verify();
}

#[test]
fn random_kills() {
    dice::walk(1, 25, case);
}
