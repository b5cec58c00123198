use crate::sink;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// What `-d` and HMP `log` switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Item {
    /// exceptions and interrupts that the guest takes
    Int = 1 << 0,
    /// guest instructions when they are first met
    InAsm = 1 << 1,
    /// each block of guest code that is run
    Exec = 1 << 2,
    /// registers before each block
    Cpu = 1 << 3,
    /// vCPU resets
    CpuReset = 1 << 4,
    /// address translation
    Mmu = 1 << 5,
    /// what guests should not do
    GuestErrors = 1 << 6,
    /// what guests asked for and this program lacks
    Unimp = 1 << 7,
}

static ON: AtomicU32 = AtomicU32::new(0);

/// All items with their names on the command line and a line of help.
pub const ITEMS: &[(Item, &str, &str)] = &[
    (Item::Int, "int", "show interrupts/exceptions in short format"),
    (Item::InAsm, "in_asm", "show guest instructions when they are first met"),
    (Item::Exec, "exec", "show each block of guest code that is run"),
    (Item::Cpu, "cpu", "show CPU registers before entering a block"),
    (Item::CpuReset, "cpu_reset", "show CPU state before CPU resets"),
    (Item::Mmu, "mmu", "log MMU-related activities"),
    (Item::GuestErrors, "guest_errors", "log when the guest OS does something invalid"),
    (Item::Unimp, "unimp", "log unimplemented functionality"),
];

impl Item {
    #[inline(always)]
    pub fn is_on(self) -> bool {
        ON.load(Ordering::Relaxed) & self as u32 != 0
    }

    /// Writes a line if the item is on.
    pub fn log(self, what: fmt::Arguments<'_>) {
        if self.is_on() {
            sink::write_line(what);
        }
    }
}

/// A set of log items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Items(u32);

impl Items {
    /// Reads a comma-separated list (`all`, `none`, names); the error is the unknown name.
    pub fn parse(list: &str) -> Result<Items, String> {
        let mut set = 0;
        for name in list.split(',').filter(|name| !name.is_empty()) {
            match (name, ITEMS.iter().find(|(_, known, _)| *known == name)) {
                (_, Some((item, ..))) => set |= *item as u32,
                ("all", _) => set |= ITEMS.iter().fold(0, |all, (item, ..)| all | *item as u32),
                ("none", _) => set = 0,
                _ => return Err(name.to_string()),
            }
        }
        Ok(Items(set))
    }

    /// Switches exactly these items on.
    pub fn apply(self) {
        ON.store(self.0, Ordering::Relaxed);
    }

    /// What is on now.
    pub fn current() -> Items {
        Items(ON.load(Ordering::Relaxed))
    }

    /// The lines of `-d help`.
    pub fn help() -> String {
        let line = |(_, name, text): &(Item, &str, &str)| format!("{name:<15} {text}\n");
        ITEMS.iter().map(line).collect()
    }
}

/// Logs under an item: `log!(GuestErrors, "bad port {port:#x}")`.
#[macro_export]
macro_rules! log {
    ($item:ident, $($arg:tt)*) => {
        if $crate::Item::$item.is_on() {
            $crate::Item::$item.log(format_args!($($arg)*));
        }
    };
}
