//! The machine a user asks for: `-machine`, `-accel`, `-cpu`, `-smp`, `-m`, ... as typed data.

use crate::invocation::Places;
use crate::{Said, Tree};
use serde_json::Value;

/// Everything that decides what machine is built. Made by `cli` (and by tests directly).
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// `pc`, `q35` or `none`.
    pub kind: MachineKind,
    /// The type name as the user wrote it (`pc-i440fx-7.2`), for `query-current-machine`.
    pub type_name: String,
    /// `-machine` keys that the board reads (`hpet`, `acpi`, `usb`, `vmport`, `i8042`,
    /// `memory-backend`, `dump-guest-core`, ...).
    pub options: Tree,
    /// Accelerators in order of preference.
    pub accels: Vec<Accel>,
    /// `-cpu` as given (`model,+a,-b,k=v`).
    pub cpu: Option<String>,
    pub smp: Smp,
    pub memory: MemorySpec,
    pub numa: Vec<Tree>,
    pub name: Option<String>,
    pub uuid: Option<[u8; 16]>,
    pub smbios: Vec<Tree>,
    /// `-S`.
    pub start_stopped: bool,
    pub actions: Actions,
    pub nodefaults: bool,
    pub boot: Boot,
    pub rtc: Rtc,
    pub objects: Vec<Said>,
    /// `-drive` (with `if`, `index`, `media`...), shorthand options included.
    pub drives: Vec<Tree>,
    pub blockdevs: Vec<Said>,
    /// `-device`, in order.
    pub devices: Vec<Tree>,
    /// `-global driver.property=value`.
    pub globals: Vec<(String, String, String)>,
    /// Character device ids of serial ports by index; `None`: no port (`-serial none`).
    pub serials: Vec<Option<String>>,
    pub parallels: Vec<Option<String>>,
    /// `-debugcon` character device id.
    pub debugcon: Option<String>,
    /// Command line `-fw_cfg` entries.
    pub fw_cfg: Vec<Tree>,
    /// Where on the command line all this stands, for messages.
    pub places: Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MachineKind {
    #[default]
    Pc,
    Q35,
    None,
}

/// A machine type as `-machine help` and `query-machines` list it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineType {
    pub kind: MachineKind,
    pub name: &'static str,
    pub alias: Option<&'static str>,
    pub description: &'static str,
}

/// The machine types; the first is the default.
pub const MACHINE_TYPES: &[MachineType] = &[
    MachineType {
        kind: MachineKind::Pc,
        name: "pc-i440fx-7.2",
        alias: Some("pc"),
        description: "PC with i440FX and PIIX3",
    },
    MachineType {
        kind: MachineKind::Q35,
        name: "pc-q35-7.2",
        alias: Some("q35"),
        description: "PC with Q35 and ICH9",
    },
    MachineType { kind: MachineKind::None, name: "none", alias: None, description: "empty machine" },
];

/// One accelerator of `-accel`.
#[derive(Clone, Debug, PartialEq)]
pub struct Accel {
    /// `kvm`, `tcg`, `interpreter`, `translator`, `qtest`.
    pub name: String,
    pub options: Tree,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smp {
    pub cpus: u32,
    pub maxcpus: u32,
    pub sockets: u32,
    pub dies: u32,
    pub cores: u32,
    pub threads: u32,
}

impl Default for Smp {
    fn default() -> Self {
        Smp { cpus: 1, maxcpus: 1, sockets: 1, dies: 1, cores: 1, threads: 1 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// Bytes.
    pub size: u64,
    pub slots: u32,
    pub max: u64,
    pub path: Option<String>,
    pub prealloc: bool,
}

impl Default for MemorySpec {
    fn default() -> Self {
        MemorySpec { size: 128 << 20, slots: 0, max: 0, path: None, prealloc: false }
    }
}

/// `-action`, `-no-reboot`, `-no-shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Actions {
    /// A guest reset ends the machine.
    pub reboot_shuts_down: bool,
    /// A guest power-off only pauses.
    pub shutdown_pauses: bool,
    pub panic: PanicAction,
    pub watchdog: WatchdogChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PanicAction {
    #[default]
    Pause,
    Shutdown,
    ExitFailure,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WatchdogChoice {
    #[default]
    Reset,
    Shutdown,
    Poweroff,
    Pause,
    Debug,
    None,
    InjectNmi,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Boot {
    pub kernel: Option<String>,
    pub initrd: Option<String>,
    pub append: Option<String>,
    pub bios: Option<String>,
    /// `-L`, in order of search.
    pub firmware_dirs: Vec<String>,
    /// `order=`, drive letters.
    pub order: Option<String>,
    pub once: Option<String>,
    pub menu: bool,
    /// Milliseconds.
    pub splash_time: Option<u16>,
    pub reboot_timeout: Option<i32>,
    pub strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rtc {
    pub base: RtcBase,
    pub clock: RtcClock,
    /// `driftfix=slew`.
    pub slew: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RtcBase {
    #[default]
    Utc,
    LocalTime,
    /// Seconds since 1970.
    Date(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RtcClock {
    #[default]
    Host,
    Realtime,
    Virtual,
}

impl MachineSpec {
    /// Whether a `-device` asks for one of these models.
    pub fn has_device(&self, models: &[&str]) -> bool {
        let driver =
            |keys: &Tree| keys.get("driver").and_then(Value::as_str).is_some_and(|d| models.contains(&d));
        self.devices.iter().any(driver)
    }

    /// Whether a `-drive` has this `if=`.
    pub fn has_drive(&self, interface: &str) -> bool {
        self.drives.iter().any(|keys| keys.get("if").and_then(Value::as_str) == Some(interface))
    }

    /// A `-machine` key that is on or off; `None` when it was not given.
    pub fn switch(&self, key: &str) -> Option<bool> {
        match self.options.get(key)? {
            Value::Bool(on) => Some(*on),
            value => Some(value != "off"),
        }
    }
}

impl Default for MachineSpec {
    fn default() -> Self {
        MachineSpec {
            kind: MachineKind::Pc,
            type_name: "pc".into(),
            options: Tree::new(),
            accels: Vec::new(),
            cpu: None,
            smp: Smp::default(),
            memory: MemorySpec::default(),
            numa: Vec::new(),
            name: None,
            uuid: None,
            smbios: Vec::new(),
            start_stopped: false,
            actions: Actions::default(),
            nodefaults: false,
            boot: Boot::default(),
            rtc: Rtc::default(),
            objects: Vec::new(),
            drives: Vec::new(),
            blockdevs: Vec::new(),
            devices: Vec::new(),
            globals: Vec::new(),
            serials: Vec::new(),
            parallels: Vec::new(),
            debugcon: None,
            fw_cfg: Vec::new(),
            places: Places::default(),
        }
    }
}
