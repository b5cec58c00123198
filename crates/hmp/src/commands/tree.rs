use super::block::human_size;
use super::push;
use crate::Session;
use crate::parse::Args;
use base::Result;
use device::{Bus, Property, PropertyKind};
use machine::Entry;
use memory::Target;
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;

pub async fn mtree(session: Session, args: Args) -> Result<String> {
    let services = &session.machine().services;
    let mut out = String::new();
    for (at, (name, root, space)) in
        [("memory", "system", &services.memory), ("I/O", "io", &services.ports)].into_iter().enumerate()
    {
        let view = space.snapshot();
        if args.flag("f") {
            let _ =
                writeln!(out, "FlatView #{at}\n AS \"{name}\", root: {root}\n Root memory region: {root}");
        } else {
            let last: u64 = if name == "I/O" { 0xffff } else { u64::MAX };
            let _ = writeln!(out, "address-space: {name}\n  {:016x}-{last:016x} (prio 0, i/o): {root}", 0);
        }
        let indent = if args.flag("f") { "  " } else { "    " };
        for range in view.ranges() {
            let (kind, offset) = match range.target {
                Target::Ram { offset, .. } => ("ram", offset),
                Target::Rom { offset, .. } => ("rom", offset),
                Target::RomDevice { offset, .. } => ("romd", offset),
                Target::Io { offset, .. } => ("i/o", offset),
            };
            let offset =
                if offset != 0 && args.flag("f") { format!(" @{offset:016x}") } else { String::new() };
            let line = format!(
                "{indent}{:016x}-{:016x} (prio 0, {kind}): {}{offset}\n",
                range.start, range.last, range.name
            );
            if !push(&mut out, &line) {
                return Ok(out);
            }
        }
        out.push('\n');
    }
    Ok(out)
}

pub async fn qtree(session: Session, _: Args) -> Result<String> {
    let devices = &session.machine().devices;
    let (entries, buses) = (devices.entries(), devices.buses());
    let tree = DeviceTree { entries, buses };
    let mut out = "bus: main-system-bus\n  type System\n".to_string();
    let on_board =
        |e: &&Arc<Entry>| e.bus.as_ref().is_none_or(|b| !tree.buses.iter().any(|bus| bus.name() == *b));
    for entry in tree.entries.iter().rev().filter(on_board) {
        tree.device(&mut out, entry, 2, 0);
    }
    // Buses that the board itself made.
    for bus in tree.buses.iter().rev().filter(|bus| !tree.is_of_device(bus)) {
        tree.bus(&mut out, bus, 2, 0);
    }
    Ok(out)
}

struct DeviceTree {
    entries: Vec<Arc<Entry>>,
    buses: Vec<Arc<dyn Bus>>,
}

impl DeviceTree {
    fn is_of_device(&self, bus: &Arc<dyn Bus>) -> bool {
        self.entries.iter().any(|e| e.device.buses().iter().any(|own| own.name() == bus.name()))
    }

    fn bus(&self, out: &mut String, bus: &Arc<dyn Bus>, indent: usize, depth: usize) {
        let name = bus.name();
        let _ = writeln!(out, "{:indent$}bus: {name}\n{:indent$}  type {}", "", "", bus.kind().name());
        if depth > 32 {
            return;
        }
        for entry in self.entries.iter().rev().filter(|e| e.bus.as_deref() == Some(name.as_str())) {
            self.device(out, entry, indent + 2, depth + 1);
        }
    }

    fn device(&self, out: &mut String, entry: &Arc<Entry>, indent: usize, depth: usize) {
        let id = entry.id.as_deref().unwrap_or_default();
        let _ = writeln!(out, "{:indent$}dev: {}, id \"{id}\"", "", entry.model().name);
        for property in entry.model().all_properties() {
            if let Some(value) = shown(entry, property) {
                let _ = writeln!(out, "{:indent$}  {} = {value}", "", property.name);
            }
        }
        for bus in entry.device.buses().iter().rev() {
            self.bus(out, bus, indent + 2, depth + 1);
        }
    }
}

/// The value of a property in use, else as it was given, in the customary form for its kind; not
/// of one that was not given and has no default.
fn shown(entry: &Entry, property: &Property) -> Option<String> {
    let value = entry.device.dynamic_property(property.name);
    let value = value.or_else(|| entry.props.get(property.name).cloned())?;
    Some(match (property.kind, &value) {
        (PropertyKind::Size, Value::Number(size)) => {
            format!("{size} ({})", human_size(size.as_u64().unwrap_or_default()))
        }
        (PropertyKind::PciAddress, Value::String(place)) => pci_place(place),
        (_, Value::Number(number)) => match number.as_i64() {
            Some(number) => format!("{number} ({number:#x})"),
            None => format!("{number} ({:#x})", number.as_u64().unwrap_or_default()),
        },
        (_, Value::String(text)) => format!("\"{text}\""),
        (_, other) => other.to_string(),
    })
}

/// `slot[.function]` with two digits for the slot.
fn pci_place(place: &str) -> String {
    let (slot, function) = place.split_once('.').unwrap_or((place, "0"));
    format!("{slot:0>2}.{function}")
}

pub async fn qom_tree(session: Session, args: Args) -> Result<String> {
    let tree = &session.control.world().host.tree;
    let (path, object) = tree.resolve(args.text("path").unwrap_or("/machine"))?;
    let mut out = format!("{path} ({})\n", object.type_name());
    children(&mut out, tree, &path, 2);
    Ok(out)
}

fn children(out: &mut String, tree: &qom::Tree, path: &str, indent: usize) {
    let mut all = tree.children(path);
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, object) in all {
        if !push(out, &format!("{:indent$}/{name} ({})\n", "", object.type_name())) {
            return;
        }
        let below = if path == "/" { format!("/{name}") } else { format!("{path}/{name}") };
        children(out, tree, &below, indent + 2);
    }
}
