//! Loads for guests that bring out what breaks a CPU engine: generated code, rewritten kernel
//! code, signals, single steps, atomics, the libraries of large languages.
//!
//! A load is a shell script in an initramfs of Debian packages. It prints `PASS: what` or
//! `FAIL: what`; it passes if there is a `PASS`, no `FAIL`, and nothing in the kernel's log
//! that [`complains`].

mod programs;
mod tree;

use crate::guests::{self, Result};
use crate::linux::{BOOT, SOON, complains};
use crate::vm::Vm;
use std::path::PathBuf;
use std::time::Duration;

pub use programs::LOADS;

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub name: &'static str,
    /// Debian packages; those they depend on come along.
    pub packages: &'static [&'static str],
    /// Kernel modules (without `.ko`) that are put into `/modules`.
    pub modules: &'static [&'static str],
    /// Further files.
    pub files: &'static [(&'static str, &'static str)],
    /// Runs under busybox's shell; `$TIME` is how many seconds it should take, where that can
    /// be chosen.
    pub script: &'static str,
    /// MiB of guest memory.
    pub memory: u32,
}

/// How a load came out.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Its `PASS` and `FAIL` lines.
    pub lines: Vec<String>,
    /// What the kernel complained of.
    pub complaints: Vec<String>,
    pub console: String,
}

impl Verdict {
    pub fn passed(&self) -> bool {
        let failed = self.lines.iter().any(|line| line.starts_with("FAIL"));
        !failed && !self.lines.is_empty() && self.complaints.is_empty()
    }
}

pub fn find(name: &str) -> Option<&'static Load> {
    LOADS.iter().find(|load| load.name == name)
}

const KERNEL: &str = "linux-image-cloud-amd64";

impl Load {
    /// Runs it in a machine with `args`, for about `seconds` where its length can be chosen;
    /// fails if it does not end within `limit`.
    pub fn run(&self, args: &[&str], seconds: u32, limit: Duration) -> Result<Verdict> {
        let kernel = guests::kernel(KERNEL)?.display().to_string();
        let initrd = Remove(self.initramfs(seconds)?);
        let (file, memory) = (initrd.0.display().to_string(), self.memory.to_string());
        let mut all = vec!["-m", memory.as_str(), "-kernel", &kernel, "-initrd", &file];
        all.extend(["-append", "console=ttyS0 panic=-1 quiet"]);
        all.extend(args);
        let mut vm = Vm::start(&all)?;
        vm.expect("GUEST-UP", BOOT)?;
        let output = vm.expect("LOAD-END", limit)?.replace('\r', "");
        let log = vm.expect("LOG-END", SOON)?;
        let _ = vm.wait(SOON);
        let lines = output.lines().filter(|line| line.starts_with("PASS") || line.starts_with("FAIL"));
        Ok(Verdict {
            lines: lines.map(str::to_string).collect(),
            complaints: log.lines().filter(|line| complains(line)).map(str::to_string).collect(),
            console: output,
        })
    }

    fn initramfs(&self, seconds: u32) -> Result<PathBuf> {
        let script = format!(
            "export TIME={seconds} HOME=/tmp LC_ALL=C\nmkdir -p /run /var/tmp\nip link set lo up 2>/dev/null\n\
             {}\necho LOAD-END\ndmesg\necho LOG-END\nsleep 3\npoweroff -f\n",
            self.script
        );
        let mut archive = guests::base_archive(&script)?;
        for name in tree::closure(self.packages)? {
            tree::add(&mut archive, &guests::package(&name)?)?;
        }
        archive.directory("modules");
        for module in self.modules {
            archive.file(&format!("modules/{module}.ko"), &tree::module(KERNEL, module)?);
        }
        for (name, text) in self.files {
            archive.file(name, text.as_bytes());
        }
        guests::write_cache(&format!("load-{}", self.name), &archive.finish())
    }
}

/// Removes a file when done with.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
