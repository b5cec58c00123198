//! Disk images of tests: a folder of them, made and judged by `qemu-img` and `qemu-io`.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of images, removed when dropped. The format of an image is the ending of its name
/// (`a.qcow2`, `b.raw`). Methods panic where a tool fails: they are made for tests.
pub struct Images {
    dir: PathBuf,
}

impl Default for Images {
    fn default() -> Self {
        Images::new()
    }
}

impl Images {
    /// In memory where that is possible.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ryokan-images-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let dir = base.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Images { dir }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn format(name: &str) -> &str {
        name.rsplit('.').next().unwrap_or("raw")
    }

    /// `qemu-img create` with further arguments before the name.
    pub fn create(&self, name: &str, size: &str, more: &[&str]) -> String {
        let path = self.path(name);
        let mut args = vec!["create", "-q", "-f", Images::format(name)];
        args.extend(more);
        args.extend([path.as_str(), size]);
        tool("qemu-img", &args);
        path
    }

    /// An image over another.
    pub fn overlay(&self, name: &str, below: &str) -> String {
        let (path, base) = (self.path(name), self.path(below));
        let (format, below) = (Images::format(name), Images::format(below));
        tool("qemu-img", &["create", "-q", "-f", format, "-b", &base, "-F", below, &path]);
        path
    }

    /// Runs `qemu-io` commands on an image.
    pub fn io(&self, name: &str, commands: &[&str]) -> String {
        let path = self.path(name);
        let mut args = vec!["-f", Images::format(name)];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&path);
        let said = tool("qemu-io", &args);
        assert!(!said.contains("verification failed"), "{name}: {said}");
        said
    }

    /// The image has neither errors nor leaks.
    pub fn check(&self, name: &str) {
        let said = tool("qemu-img", &["check", "-f", Images::format(name), &self.path(name)]);
        assert!(said.contains("No errors"), "{name}: {said}");
    }

    /// Both images show the same bytes.
    pub fn same(&self, one: &str, other: &str) {
        if let Some(difference) = self.difference(one, other) {
            panic!("{one} and {other}: {difference}");
        }
    }

    pub fn difference(&self, one: &str, other: &str) -> Option<String> {
        let (from, to) = (self.path(one), self.path(other));
        let args = [
            "compare",
            "-U",
            "-f",
            Images::format(one),
            "-F",
            Images::format(other),
            from.as_str(),
            to.as_str(),
        ];
        let out = output("qemu-img", &args);
        (!out.status.success()).then(|| text(&out))
    }

    /// `qemu-img info` of an image, also of one in use.
    pub fn info(&self, name: &str) -> Value {
        let said = tool("qemu-img", &["info", "-U", "--output=json", &self.path(name)]);
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }

    /// A plain copy of the file.
    pub fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).unwrap_or_else(|e| panic!("{from}: {e}"));
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// What an image shows to its user, also one in use.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let (path, plain) = (self.path(name), self.path("contents"));
        tool("qemu-img", &["convert", "-U", "-f", Images::format(name), "-O", "raw", &path, &plain]);
        let bytes = self.bytes("contents");
        self.remove("contents");
        bytes
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Runs a program that must succeed; what it printed.
pub fn tool(program: &str, args: &[&str]) -> String {
    let out = output(program, args);
    assert!(out.status.success(), "{program} {args:?}: {}", text(&out));
    text(&out)
}
