//! Power loss: recorders below the images, then cut anywhere, with unflushed writes lost.
//!
//! A scene ([`scenes`]) works on images through recorders and promises, after each flush, what
//! the guest's disk is. A cut restores the files as a loss of power could have left them: per
//! file all before its last flush, and of the rest a prefix or a random choice. Every image must
//! then be without corruption, and the disk as it was promised last, except where it was written
//! since. `CRASH_CASES` is the number of cuts of each scene.

pub(crate) mod recorder;
mod scenes;

pub(crate) use recorder::RECORDER;

use super::tests::tool;
use crate::driver::Fix;
use crate::graph::{Graph, Pin, Settings, tests::graph};
use crate::options::Options;
use crate::types::*;
use recorder::{LOGS, Log, Op, apply};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use testkit::Dice;

/// What the guest may rely on at a point of the log.
struct Promise {
    at: usize,
    /// The image that is the disk.
    root: usize,
    disk: Vec<u8>,
    /// Lengths the disk may have.
    sizes: Vec<u64>,
}

/// Images of one scene and what is written to them.
struct Stage {
    graph: Arc<Graph>,
    dir: tempfile::TempDir,
    log: Log,
    name: String,
    /// Each file's content when the scene began.
    start: Vec<Vec<u8>>,
    promises: Vec<Promise>,
    /// (position in the log, range) of every request that changed the disk.
    touched: Vec<(usize, u64, u64)>,
    /// Files that are no image (external data).
    plain: Vec<usize>,
}

impl Stage {
    fn new(name: &str) -> Stage {
        let log = Log::default();
        LOGS.lock().insert(name.into(), log.clone());
        Stage {
            graph: graph(),
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
            log,
            name: name.into(),
            start: Vec::new(),
            promises: Vec::new(),
            touched: Vec::new(),
            plain: Vec::new(),
        }
    }

    fn path(&self, index: usize) -> String {
        self.dir.path().join(format!("{index}.img")).to_str().unwrap().to_string()
    }

    /// Makes image number `index` with `qemu-img create` options and content by `qemu-io`.
    fn image(&self, index: usize, size: u64, options: &Value, commands: &[&str]) {
        let mut options = options.clone();
        options["size"] = size.into();
        let (at, path) = (self.graph.clone(), self.path(index));
        self.graph
            .block_on(async move { at.create_image(&path, "qcow2", Options::json(options)).await })
            .unwrap();
        let path = self.path(index);
        for command in commands {
            tool("qemu-io", &["-f", "qcow2", "-c", command, &path]);
        }
    }

    /// From here on everything counts: remembers the files 0 to `count`.
    fn begin(&mut self, count: usize) {
        self.start = (0..count).map(|index| std::fs::read(self.path(index)).unwrap()).collect();
    }

    /// Options of a recorded file.
    fn file(&self, index: usize) -> Value {
        json!({"driver": "test-recorder", "log": self.name, "index": index,
            "file": {"driver": "file", "filename": self.path(index)}})
    }

    /// Options of a recorded image.
    fn tree(&self, index: usize) -> Value {
        json!({"driver": "qcow2", "discard": "unmap", "l2-cache-size": 1024, "file": self.file(index)})
    }

    fn position(&self) -> usize {
        self.log.lock().len()
    }

    fn touch(&mut self, offset: u64, len: u64) {
        self.touched.push((self.position(), offset, len));
    }

    fn promise(&mut self, root: usize, disk: &[u8], sizes: &[u64]) {
        let (at, disk, sizes) = (self.position(), disk.to_vec(), sizes.to_vec());
        self.promises.push(Promise { at, root, disk, sizes });
    }

    /// The files after a loss of power at `position`.
    fn cut(&self, position: usize, mut keep: impl FnMut() -> bool) -> Vec<Vec<u8>> {
        let log = self.log.lock();
        let mut images = self.start.clone();
        for (index, image) in images.iter_mut().enumerate() {
            let mine = |op: &&(usize, Op)| op.0 == index;
            let ops: Vec<_> = log[..position].iter().filter(mine).collect();
            let flushed = ops.iter().rposition(|op| matches!(op.1, Op::Flush)).unwrap_or(0);
            for (at, (_, op)) in ops.iter().enumerate() {
                if at < flushed || keep() {
                    apply(image, op);
                }
            }
        }
        images
    }

    fn last_promise(&self, position: usize) -> Option<&Promise> {
        self.promises.iter().rev().find(|promise| promise.at <= position)
    }

    /// Compares a disk with what was promised, but where it was written since.
    fn compare(&self, position: usize, promise: &Promise, mut seen: Vec<u8>) {
        let sizes = &promise.sizes;
        assert!(sizes.contains(&(seen.len() as u64)), "cut at {position}: {} bytes long", seen.len());
        let mut wanted = promise.disk.clone();
        let len = wanted.len().min(seen.len());
        wanted.truncate(len);
        seen.truncate(len);
        for (_, offset, count) in self.touched.iter().filter(|(at, ..)| *at >= promise.at) {
            let range = (*offset as usize).min(len)..((offset + count) as usize).min(len);
            seen[range.clone()].fill(0);
            wanted[range].fill(0);
        }
        if let Some(at) = seen.iter().zip(&wanted).position(|(one, other)| one != other) {
            panic!("cut at {position}: flushed data is gone at {at:#x}: {} for {}", seen[at], wanted[at]);
        }
    }

    /// Puts the files back as after a cut and looks at them, with our own code; with the usual
    /// tools as well where `thorough`.
    fn judge(&self, graph: &Arc<Graph>, position: usize, images: &[Vec<u8>], thorough: bool) {
        for (index, image) in images.iter().enumerate() {
            std::fs::write(self.path(index), image).unwrap();
        }
        for index in (0..images.len()).filter(|index| !self.plain.contains(index)) {
            let found = self.inspect(graph, index, &images[index]);
            assert_eq!(found, (0, 0), "cut at {position}, image {index}: corruptions and check errors");
        }
        if let Some(promise) = self.last_promise(position) {
            let pin = open_plain(graph, &self.path(promise.root), true);
            let mut seen = vec![0; pin.size() as usize];
            let node = pin.clone();
            let seen = graph.block_on(async move {
                node.read(0, &mut seen).await.unwrap();
                seen
            });
            close(graph, pin);
            self.compare(position, promise, seen);
        }
        if thorough {
            self.judge_by_tools(graph, position, images);
        }
    }

    /// Corruptions and errors that the check finds.
    fn inspect(&self, graph: &Arc<Graph>, index: usize, image: &[u8]) -> (u64, u64) {
        if image.len() < 512 {
            return (0, 0); // not there yet
        }
        let pin = open_plain(graph, &self.path(index), true);
        let node = pin.clone();
        let found = graph.block_on(async move { node.layer().check(Fix::Nothing).await }).unwrap();
        close(graph, pin);
        (found.corruptions, found.check_errors)
    }

    fn judge_by_tools(&self, graph: &Arc<Graph>, position: usize, images: &[Vec<u8>]) {
        for index in (0..images.len()).filter(|index| !self.plain.contains(index)) {
            let path = self.path(index);
            let out = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output();
            let out = out.unwrap();
            // 0: clean, 3: leaks only.
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(matches!(out.status.code(), Some(0 | 3)), "cut at {position}: {said}");
        }
        if let Some(promise) = self.last_promise(position) {
            let raw = format!("{}.raw", self.path(promise.root));
            tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &self.path(promise.root), &raw]);
            self.compare(position, promise, std::fs::read(&raw).unwrap());
        }
        // Written again and closed, no leak is left that repair does not find.
        for index in (0..images.len()).filter(|index| !self.plain.contains(index)) {
            let pin = open_plain(graph, &self.path(index), false);
            let node = pin.clone();
            graph
                .block_on(async move {
                    node.layer().check(Fix::All).await?;
                    node.write(0, &[1; 700], WriteFlags::empty()).await
                })
                .unwrap();
            close(graph, pin);
            let said = tool("qemu-img", &["check", "-f", "qcow2", &self.path(index)]);
            assert!(said.contains("No errors"), "cut at {position}, repaired: {said}");
        }
    }

    /// Cuts `cases` times.
    fn cut_often(&self, seed: u64, cases: u64) {
        let (mut dice, graph) = (Dice::new(seed), graph());
        let len = self.position() as u64;
        assert!(len > 20, "nothing was recorded");
        for case in 0..cases {
            let position = dice.below(len + 1) as usize;
            let lossy = dice.below(4) > 0;
            let images = self.cut(position, || !lossy || dice.below(2) == 0);
            self.judge(&graph, position, &images, case % 100 == 99);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        LOGS.lock().remove(&self.name);
    }
}

fn open_plain(graph: &Arc<Graph>, path: &str, read_only: bool) -> Pin {
    let tree =
        json!({"driver": "qcow2", "read-only": read_only, "file": {"driver": "file", "filename": path}});
    let at = graph.clone();
    let opened = graph.block_on(async move { at.open(Options::json(tree), Settings::default()).await });
    opened.unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn close(graph: &Arc<Graph>, pin: Pin) {
    drop(pin);
    let at = graph.clone();
    graph.block_on(async move { at.collect().await });
    assert!(graph.nodes().is_empty(), "{:?}", graph.nodes());
}

/// Cuts of each scene.
fn cases() -> u64 {
    std::env::var("CRASH_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Whether a file is there.
fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
