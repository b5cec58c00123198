//! The disk of a walk that ends suddenly: image files of several kinds, and a filter over them.

use super::model::SECTOR;
use serde_json::{Value, json};
use std::path::Path;
use testkit::nbd::{Client, READ};
use testkit::{Dice, Images, Vm};

pub const SIZE: u64 = 4 << 20;
const KINDS: [&str; 5] =
    ["cluster_size=4k", "cluster_size=64k", "extended_l2=on", "refcount_bits=1", "compat=v2"];

/// Image files so far, each the node of the same number.
pub struct Files {
    pub images: Images,
    pub count: usize,
    /// File 0 is raw.
    raw: bool,
    /// File 0 has its data in this file, which shows the same as the image.
    pub plain: Option<String>,
}

pub fn node(number: usize) -> String {
    format!("n{number}")
}

impl Files {
    pub fn name(&self, number: usize) -> String {
        format!("f{number}.{}", self.format(number))
    }

    pub fn format(&self, number: usize) -> &'static str {
        if self.raw && number == 0 { "raw" } else { "qcow2" }
    }

    pub fn path(&self, number: usize) -> String {
        self.images.path(&self.name(number))
    }

    /// Makes a disk of one or two files; what opens it.
    pub fn make(dice: &mut Dice) -> (Files, Value) {
        let mut files = Files { images: Images::new(), count: 1, raw: dice.once_in(4), plain: None };
        let mut open = match files.raw {
            true => {
                files.images.create(&files.name(0), &SIZE.to_string(), &[]);
                files.open(dice, 0)
            }
            false => files.qcow2(dice, None),
        };
        if !dice.once_in(4) {
            files.count = 2;
            let mut top = files.qcow2(dice, Some(0));
            top["backing"] = open;
            open = top;
        }
        (files, open)
    }

    /// Makes a file of format qcow2, perhaps with its data in a file of its own.
    fn qcow2(&mut self, dice: &mut Dice, below: Option<usize>) -> Value {
        let number = self.count - 1;
        let kind = *dice.pick(&KINDS);
        let mut options = kind.to_string();
        let data = self.images.path(&format!("d{number}.raw"));
        let apart = kind != "compat=v2" && dice.once_in(4);
        if apart {
            options += &format!(",data_file={data}");
            if below.is_none() && dice.once_in(2) {
                options += ",data_file_raw=on";
                self.plain = Some(format!("d{number}.raw"));
            }
        }
        let mut more = vec!["-o", &options];
        let path = below.map(|below| self.path(below));
        if let (Some(path), Some(below)) = (&path, below) {
            more.extend(["-F", self.format(below), "-b", path]);
        }
        self.images.create(&self.name(number), &SIZE.to_string(), &more);
        let mut open = self.open(dice, number);
        if apart && dice.once_in(2) {
            open["data-file"] = json!({"driver": "file", "filename": data});
        }
        if dice.once_in(3) && kind != "compat=v2" {
            open["lazy-refcounts"] = true.into();
        }
        open
    }

    fn open(&self, dice: &mut Dice, number: usize) -> Value {
        let file = json!({"driver": "file", "filename": self.path(number),
            "aio": dice.pick(&["threads", "io_uring"])});
        json!({"driver": self.format(number), "node-name": node(number), "file": file,
            "discard": dice.pick(&["unmap", "ignore"]), "detect-zeroes": dice.pick(&["off", "on"])})
    }

    /// What `qemu-img check` has against a file; leaks are none if it was `closed`.
    pub fn faults(&self, number: usize, closed: bool) -> Option<String> {
        if self.format(number) == "raw" {
            return None;
        }
        let path = self.path(number);
        let since = std::time::Instant::now();
        let (status, said) = loop {
            let out = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output();
            let out = out.expect("qemu-img is installed");
            let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            // The kernel lets go of the files of a killed process's io_uring a while after its end.
            if !said.contains(" lock") || since.elapsed() > super::ANSWER {
                break (out.status, said.into_owned());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let sound = match status.code() {
            Some(0) => true,
            Some(3) => !closed,
            _ => false,
        };
        (!sound).then(|| format!("{path}: {said}"))
    }

    pub fn check(&self, closed: bool) {
        for number in (0..self.count).filter(|number| Path::new(&self.path(*number)).exists()) {
            assert_eq!(self.faults(number, closed), None);
        }
    }

    /// Opens a disk anew, as after a crash: what it shows then.
    pub fn show(&self, number: usize) -> Vec<u8> {
        let mut vm = start();
        let file = json!({"driver": "file", "filename": self.path(number)});
        let disk = json!({"driver": self.format(number), "node-name": "n", "file": file});
        vm.qmp.execute("blockdev-add", disk).unwrap();
        let mut client = export(&mut vm, "n");
        let mut bytes = Vec::new();
        for offset in (0..client.size).step_by(1 << 20) {
            let len = (client.size - offset).min(1 << 20) as u32;
            client.send(&Client::request(READ, 1, offset, len, &[])).unwrap();
            assert_eq!(client.reply(), Some((1, 0)));
            bytes.extend(client.data(len).expect("the server stays"));
        }
        assert_eq!(bytes.len() as u64 % SECTOR, 0);
        vm.qmp.execute("quit", json!({})).unwrap();
        assert!(vm.wait(super::ANSWER).unwrap().success());
        bytes
    }
}

pub fn start() -> Vm {
    Vm::start_plain(&["-M", "none", "-accel", "qtest", "-nodefaults", "-display", "none"]).unwrap()
}

/// A node as an NBD export, and a session with it.
pub fn export(vm: &mut Vm, node: &str) -> Client {
    let socket = vm.dir().join("nbd");
    let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
    vm.qmp.execute("nbd-server-start", address).unwrap();
    let export = json!({"type": "nbd", "id": "e", "node-name": node, "name": "e", "writable": true});
    vm.qmp.execute("block-export-add", export).unwrap();
    Client::new(&socket, "e").unwrap()
}
