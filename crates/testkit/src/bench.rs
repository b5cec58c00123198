//! A machine whose disks are driven over QMP, for tests of the block layer: without guest
//! (`-accel qtest`), or with a Linux that uses the disks ([`crate::Writer`]).

use crate::images::Images;
use crate::linux::{self, Initrd, Linux};
use crate::vm::Vm;
use crate::writer;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a job on a small image may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A running machine and its images. Methods panic where a command fails.
pub struct Bench {
    pub vm: Vm,
    pub images: Images,
    marks: usize,
    /// Of the guest, if there is one.
    _initrd: Option<Initrd>,
}

/// What Linux needs for the disks that we have.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "sr_mod"];

impl Bench {
    pub fn start(images: Images, args: &[&str]) -> Bench {
        let mut all = vec!["-accel", "qtest", "-nodefaults", "-display", "none"];
        all.extend(args);
        let vm = Vm::start_plain(&all).unwrap_or_else(|e| panic!("{e}"));
        Bench { vm, images, marks: 0, _initrd: None }
    }

    /// A machine with the drive `d`: `top.qcow2` (node `top` over `top-file`) with 512 KiB of 2
    /// from 512 KiB on, over `base.qcow2` (node `base`, 4 MiB) with 1 MiB of 1.
    pub fn chain(more: &[&str]) -> Bench {
        let images = Images::new();
        images.create("base.qcow2", "4M", &[]);
        images.io("base.qcow2", &["write -P 1 0 1M"]);
        images.overlay("top.qcow2", "base.qcow2");
        images.io("top.qcow2", &["write -P 2 512k 512k"]);
        let drive = format!(
            "if=none,id=d,driver=qcow2,node-name=top,file.driver=file,file.node-name=top-file,\
             file.filename={},backing.node-name=base",
            images.path("top.qcow2")
        );
        let mut args = vec!["-drive", &drive];
        args.extend(more);
        Bench::start(images, &args)
    }

    /// Boots Debian's kernel to a shell, with the drivers of all disks and the program `writer`.
    pub fn boot(images: Images, args: &[&str]) -> Bench {
        let mut all = vec!["-m", "192"];
        all.extend(args);
        let program = writer::program().unwrap_or_else(|e| panic!("{e}"));
        let files: [(&str, &[u8]); 1] = [("bin/writer", &program)];
        let booted = Linux::boot_holding("linux-image-cloud-amd64", &all, "quiet", &MODULES, &files);
        let Linux { vm, initrd } = booted.unwrap_or_else(|e| panic!("{e}"));
        let mut bench = Bench { vm, images, marks: 0, _initrd: Some(initrd) };
        // Messages of the kernel would mix with answers.
        bench.shell("dmesg -n 1");
        bench
    }

    /// What a command of the guest's shell prints.
    #[track_caller]
    pub fn shell(&mut self, command: &str) -> String {
        let said = self.vm.shell(command, linux::BOOT);
        said.unwrap_or_else(|e| panic!("{command}: {e}")).trim().to_string()
    }

    /// Waits until a command of the guest's shell prints `wanted`.
    #[track_caller]
    pub fn until(&mut self, command: &str, wanted: &str) {
        let end = Instant::now() + SOON;
        loop {
            let said = self.shell(command);
            if said == wanted {
                return;
            }
            assert!(
                Instant::now() < end,
                "{command}: still {said}, not {wanted}; {}",
                self.shell("dmesg | tail -n 40")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let shown = arguments.to_string();
        match self.vm.qmp.execute(command, arguments) {
            Ok(reply) => reply,
            Err(e) => panic!("{command} {shown}: {e}; stderr: {}", self.vm.errors()),
        }
    }

    /// Runs a command that must fail; "class: description".
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> String {
        let shown = arguments.to_string();
        match self.vm.qmp.execute(command, arguments) {
            Ok(reply) => panic!("{command} {shown} succeeded: {reply}"),
            Err(e) => e,
        }
    }

    /// Opens an image (format by its name's ending) as a node over its file's node
    /// `NODE-file`, with further options.
    #[track_caller]
    pub fn open(&mut self, node: &str, image: &str, more: Value) {
        let driver = image.rsplit('.').next().unwrap_or("raw");
        let mut options = json!({"driver": driver, "node-name": node, "file": {"driver": "file",
            "node-name": format!("{node}-file"), "filename": self.images.path(image)}});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        self.run("blockdev-add", options);
    }

    /// A `qemu-io` command on a drive or node that must succeed; what it printed.
    #[track_caller]
    pub fn io(&mut self, disk: &str, command: &str) -> String {
        let said = self.try_io(disk, command);
        assert!(!said.contains("failed"), "qemu-io {disk} {command}: {said}");
        said
    }

    /// As [`Bench::io`] where it may fail. (The emulator prints it on its standard output.)
    #[track_caller]
    pub fn try_io(&mut self, disk: &str, command: &str) -> String {
        self.marks += 1;
        let mark = format!("mark{}", self.marks);
        let begin = self.vm.console().len();
        for line in [format!("qemu-io {disk} \"{command}\""), format!("qemu-io {disk} {mark}")] {
            let said = self.vm.qmp.hmp(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
            if !said.is_empty() {
                return format!("failed: {said}");
            }
        }
        let end = Instant::now() + SOON;
        loop {
            let said = self.vm.console();
            if let Some(at) = said[begin..].find(&format!("command \"{mark}\" not found")) {
                return said[begin..begin + at].to_string();
            }
            assert!(Instant::now() < end, "{disk} {command}: no output but {said}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits for an event of a job and returns those before it and itself, in short words: the
    /// status of JOB_STATUS_CHANGE, names of others, with what a job ended with.
    #[track_caller]
    pub fn story(&mut self, job: &str, last: &str) -> Vec<String> {
        let of_job = |event: &Value| event["data"]["id"] == job || event["data"]["device"] == job;
        let events = self.vm.qmp.events_until(of_job, |event| tell(event) == last, SOON);
        let events = events.unwrap_or_else(|e| panic!("waiting for {last} of {job}: {e}"));
        events.iter().map(tell).collect()
    }

    /// Waits for a job's end; it must have ended well.
    #[track_caller]
    pub fn done(&mut self, job: &str) {
        let story = self.story(job, "null");
        assert!(story.iter().any(|word| word == "COMPLETED"), "{story:?}");
    }

    /// The one job of `query-block-jobs` of this id.
    #[track_caller]
    pub fn job(&mut self, id: &str) -> Value {
        let all = self.run("query-block-jobs", Value::Null);
        let found = all.as_array().and_then(|all| all.iter().find(|one| one["device"] == id));
        found.unwrap_or_else(|| panic!("no job {id} in {all}")).clone()
    }

    /// A node as `query-named-block-nodes` tells of it; null if there is none.
    pub fn node(&mut self, name: &str) -> Value {
        let all = self.run("query-named-block-nodes", json!({"flat": true}));
        all.as_array()
            .and_then(|all| all.iter().find(|one| one["node-name"] == name))
            .cloned()
            .unwrap_or_default()
    }

    /// The medium of a drive as `query-block` tells of it.
    pub fn medium(&mut self, drive: &str) -> Value {
        let all = self.run("query-block", Value::Null);
        let found = all.as_array().and_then(|all| all.iter().find(|one| one["device"] == drive));
        found.map(|one| one["inserted"].clone()).unwrap_or_default()
    }

    /// Ends the machine as users do; the images stay.
    pub fn quit(mut self) -> Images {
        self.run("quit", Value::Null);
        match self.vm.wait(SOON) {
            Ok(status) if status.success() => {}
            other => panic!("{other:?}: {}", self.vm.errors()),
        }
        self.images
    }
}

fn tell(event: &Value) -> String {
    let data = &event["data"];
    let name = event["event"].as_str().unwrap_or_default();
    match (name, data["error"].as_str()) {
        ("JOB_STATUS_CHANGE", _) => data["status"].as_str().unwrap_or_default().to_string(),
        ("BLOCK_JOB_ERROR", _) => {
            format!(
                "ERROR {} {}",
                data["operation"].as_str().unwrap_or(""),
                data["action"].as_str().unwrap_or("")
            )
        }
        (name, None) => name.trim_start_matches("BLOCK_JOB_").to_string(),
        (name, Some(why)) => format!("{}: {why}", name.trim_start_matches("BLOCK_JOB_")),
    }
}
