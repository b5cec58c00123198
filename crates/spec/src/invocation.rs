use crate::{Chardev, MachineSpec};

/// A whole command line, as data: the machine and the process around it.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    pub machine: MachineSpec,
    /// In order of making. Legacy forms (`-serial tcp:...`) are among them under their
    /// customary ids (`serial0`, `compat_monitor0`, `gdb`, `qtest`).
    pub chardevs: Vec<Chardev>,
    pub monitors: Vec<Monitor>,
    /// Character device of the qtest channel.
    pub qtest: Option<String>,
    /// Where the qtest channel is logged; without: standard error; "none": nowhere.
    pub qtest_log: Option<String>,
    /// Character device of the gdb server.
    pub gdb: Option<String>,
    pub add_fds: Vec<AddFd>,
    pub daemonize: bool,
    pub pidfile: Option<String>,
    pub log: Log,
    pub trace: Trace,
    pub message: MessageFormat,
    /// Introduces the commands of multiplexers; Ctrl-A is 1.
    pub escape: u8,
    pub overcommit: Overcommit,
    /// `-sandbox on`.
    pub sandbox: Option<Sandbox>,
    /// `-name process=`.
    pub process_name: Option<String>,
    /// `-name debug-threads=on`.
    pub debug_threads: bool,
    pub places: Places,
}

/// Which system calls the process gives up, beside those that it never needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub obsolete_allowed: bool,
    pub elevate: Elevate,
    /// No new programs and processes.
    pub spawn_denied: bool,
    /// No change of scheduling and limits.
    pub resources_denied: bool,
}

/// Whether the process may gain privileges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Elevate {
    #[default]
    Allow,
    Deny,
    /// Only programs that it starts may not.
    Children,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    pub id: Option<String>,
    pub chardev: String,
    pub mode: MonitorMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorMode {
    /// HMP for people.
    Readline,
    /// QMP.
    Control { pretty: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddFd {
    pub fd: i32,
    pub set: u64,
    pub opaque: Option<String>,
}

/// `-d`, `-D`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub items: Vec<String>,
    pub file: Option<String>,
}

/// `-trace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Patterns to switch on (`-` in front: off), in order.
    pub patterns: Vec<String>,
    /// A file with a pattern a line.
    pub events: Option<String>,
    pub file: Option<String>,
}

/// `-msg`: how messages on standard error begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageFormat {
    pub timestamp: bool,
    pub guest_name: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overcommit {
    /// Lock all memory of the process.
    pub mem_lock: bool,
}

/// Which part of the command line each thing came from ("-device virtio-blk-pci,drive=d0"), in
/// the order of the lists they belong to, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub machine: Option<String>,
    pub accel: Option<String>,
    pub cpu: Option<String>,
    pub chardevs: Vec<String>,
    pub monitors: Vec<String>,
    pub objects: Vec<String>,
    pub drives: Vec<String>,
    pub blockdevs: Vec<String>,
    pub devices: Vec<String>,
    pub globals: Vec<String>,
    pub add_fds: Vec<String>,
    pub gdb: Option<String>,
    pub qtest: Option<String>,
}

impl Places {
    /// The place of the `at`th `-device`; one made by other means is told by its driver.
    pub fn device(&self, at: usize, driver: &str) -> String {
        self.devices.get(at).cloned().unwrap_or_else(|| format!("-device {driver}"))
    }

    /// The place of the `at`th `-drive` or its short form, if known.
    pub fn drive(&self, at: usize) -> Option<&str> {
        self.drives.get(at).map(String::as_str)
    }
}
