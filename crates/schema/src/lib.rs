//! Every command and every event, each as one struct: the only place where they are declared.
//!
//! To add a command: write its struct with `#[derive(Command)]` in the file of its area, name
//! it in that file's `commands!` list, and route a handler for it in `control`. Dispatch,
//! argument checks, `query-commands`, `query-qmp-schema` and `docs/qmp.md` follow from that.
//! An event likewise, with `#[derive(Event)]` and `events!`.

#![forbid(unsafe_code)]

pub mod block;
pub mod blockdev;
pub mod blockjobs;
pub mod chardev;
pub mod cpu;
pub mod docs;
pub mod export;
pub mod fd;
pub mod introspect;
pub mod lifecycle;
pub mod machine;
pub mod media;
pub mod memory;
pub mod migration;
pub mod monitor;
pub mod pci;
pub mod prepared;
pub mod qom;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod trace;

use qapi::{CommandEntry, EventEntry};

/// A group of commands and events that belong together: a file here, a chapter in the docs.
pub struct Area {
    pub title: &'static str,
    pub commands: &'static [CommandEntry],
    pub events: &'static [EventEntry],
}

macro_rules! commands {
    ($($name:ident),* $(,)?) => {
        pub(crate) const COMMANDS: &[::qapi::CommandEntry] = &[$(::qapi::CommandEntry::of::<$name>()),*];
    };
}

macro_rules! events {
    ($($name:ident),* $(,)?) => {
        pub(crate) const EVENTS: &[::qapi::EventEntry] = &[$(::qapi::EventEntry::of::<$name>()),*];
    };
}

pub(crate) use {commands, events};

/// All areas, in the order of the documentation.
pub const AREAS: &[Area] = &[
    Area { title: "Running the machine", commands: lifecycle::COMMANDS, events: lifecycle::EVENTS },
    Area { title: "Machine", commands: machine::COMMANDS, events: machine::EVENTS },
    Area { title: "Processors", commands: cpu::COMMANDS, events: &[] },
    Area { title: "Memory", commands: memory::COMMANDS, events: memory::EVENTS },
    Area { title: "Devices and objects", commands: qom::COMMANDS, events: qom::EVENTS },
    Area { title: "PCI", commands: pci::COMMANDS, events: &[] },
    Area { title: "Block devices", commands: block::COMMANDS, events: block::EVENTS },
    Area { title: "Media", commands: media::COMMANDS, events: &[] },
    Area { title: "Block nodes", commands: blockdev::COMMANDS, events: blockdev::EVENTS },
    Area { title: "Block jobs", commands: blockjobs::COMMANDS, events: blockjobs::EVENTS },
    Area { title: "Snapshots and dirty bitmaps", commands: snapshot::COMMANDS, events: &[] },
    Area { title: "Exports", commands: export::COMMANDS, events: export::EVENTS },
    Area { title: "Character devices", commands: chardev::COMMANDS, events: &[] },
    Area { title: "Descriptors", commands: fd::COMMANDS, events: &[] },
    Area { title: "Migration", commands: migration::COMMANDS, events: &[] },
    Area { title: "Monitor", commands: monitor::COMMANDS, events: &[] },
    Area { title: "Introspection", commands: introspect::COMMANDS, events: &[] },
    Area { title: "Tracing", commands: trace::COMMANDS, events: &[] },
];

/// Every declared command.
pub fn all_commands() -> impl Iterator<Item = &'static CommandEntry> {
    AREAS.iter().flat_map(|area| area.commands)
}

/// Every declared event.
pub fn all_events() -> impl Iterator<Item = &'static EventEntry> {
    AREAS.iter().flat_map(|area| area.events)
}
