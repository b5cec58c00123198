//! `-drive`: where a drive is put (`if`, `bus`, `unit`, `index`, `media`), its name, and the
//! device that the board makes for it.

use crate::Host;
use base::{Result, bail, fail};
use block::Backend;
use serde_json::{Map, Value};
use spec::machine::{MachineKind, MachineSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    // Numbers that people know from the human monitor.
    None = 0,
    Ide = 1,
    Scsi = 2,
    Floppy = 3,
    Pflash = 4,
    Virtio = 7,
}

impl Interface {
    fn parse(name: &str) -> Result<Interface> {
        Ok(match name {
            "ide" => Interface::Ide,
            "scsi" => Interface::Scsi,
            "floppy" => Interface::Floppy,
            "pflash" => Interface::Pflash,
            "virtio" => Interface::Virtio,
            "none" => Interface::None,
            "mtd" | "sd" | "xen" => bail!("machine type does not support if={name}"),
            _ => bail!("unsupported bus type '{name}'"),
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Interface::Ide => "ide",
            Interface::Scsi => "scsi",
            Interface::Floppy => "floppy",
            Interface::Pflash => "pflash",
            Interface::Virtio => "virtio",
            Interface::None => "none",
        }
    }

    /// Drives on one bus; 0: buses have no meaning.
    fn per_bus(self, kind: MachineKind) -> u64 {
        match self {
            Interface::Ide if kind == MachineKind::Q35 => 1,
            Interface::Ide => 2,
            Interface::Scsi => 7,
            _ => 0,
        }
    }

    /// Bus and unit of the drive with this index.
    fn at_index(self, index: u64, kind: MachineKind) -> (u64, u64) {
        match self.per_bus(kind) {
            0 => (0, index),
            per_bus => (index / per_bus, index % per_bus),
        }
    }
}

/// A drive in its place, its back end made.
pub(crate) struct Drive {
    pub interface: Interface,
    pub bus: u64,
    pub unit: u64,
    pub is_cdrom: bool,
    pub backend: Backend,
    /// `serial=`, `addr=` and the like that old command lines give to the drive.
    pub device_props: Map<String, Value>,
    /// The option it comes from, for messages.
    pub option: Option<String>,
}

/// Opens all `-drive`s, and the empty ones that a board has if nothing else takes their place.
pub(crate) fn open(host: &Host, spec: &MachineSpec) -> Result<Vec<Drive>> {
    let mut all: Vec<Drive> = Vec::new();
    for (at, keys) in spec.drives.iter().enumerate() {
        let mut drive =
            open_one(host, spec.kind, keys, &all).map_err(|failure| match spec.places.drive(at) {
                Some(place) => failure.within(place),
                None => failure,
            })?;
        drive.option = spec.places.drive(at).map(str::to_string);
        all.push(drive);
    }
    for (interface, index, keys) in defaults(spec) {
        let place = interface.at_index(index, spec.kind);
        let there = |d: &Drive| d.interface == interface && (d.bus, d.unit) == place;
        if interface == Interface::None || !all.iter().any(there) {
            let drive = open_one(host, spec.kind, &keys, &all)?;
            all.push(drive);
        }
    }
    Ok(all)
}

/// Drives without media that there are unless `-nodefaults` or a `-device` of their kind is given:
/// a CD drive, a floppy drive (i440FX), and a slot for SD cards that no device serves.
fn defaults(spec: &MachineSpec) -> Vec<(Interface, u64, Map<String, Value>)> {
    if spec.nodefaults || spec.kind == MachineKind::None {
        return Vec::new();
    }
    let keys = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_string(), Value::from(*value))).collect::<Map<_, _>>()
    };
    let mut list = Vec::new();
    if !spec.has_device(&["ide-cd", "ide-hd", "scsi-cd", "scsi-hd"]) {
        list.push((Interface::Ide, 2, keys(&[("if", "ide"), ("index", "2"), ("media", "cdrom")])));
    }
    if spec.kind == MachineKind::Pc && !spec.has_device(&["isa-fdc", "floppy"]) {
        list.push((Interface::Floppy, 0, keys(&[("if", "floppy"), ("index", "0")])));
    }
    list.push((Interface::None, 0, keys(&[("if", "none"), ("id", "sd0")])));
    list
}

/// Adds a drive to a running machine: one that no device uses yet (`if=none`).
pub fn add_drive(host: &Host, kind: MachineKind, keys: &Map<String, Value>) -> Result<()> {
    let interface = match keys.get("if").and_then(Value::as_str) {
        Some(name) => Interface::parse(name)?,
        None => Interface::Ide,
    };
    if interface != Interface::None {
        bail!("Can't hot-add drive to type {}", interface as u8);
    }
    open_one(host, kind, keys, &[]).map(drop)
}

fn open_one(host: &Host, kind: MachineKind, keys: &Map<String, Value>, others: &[Drive]) -> Result<Drive> {
    let mut keys = keys.clone();
    let interface = match take_text(&mut keys, "if")? {
        Some(name) => Interface::parse(&name)?,
        None => Interface::Ide,
    };
    let is_cdrom = match take_text(&mut keys, "media")?.as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => bail!("'{other}' invalid media"),
    };
    let (bus, unit) = place(&mut keys, interface, kind, others)?;
    let id = match take_text(&mut keys, "id")? {
        Some(id) if spec::id_wellformed(&id) => id,
        Some(_) => bail!("Parameter 'id' expects an identifier"),
        None => name_of(interface, kind, bus, unit, is_cdrom),
    };
    let mut device_props = Map::new();
    for name in ["serial", "addr", "logical_block_size", "physical_block_size"] {
        if let Some(value) = keys.shift_remove(name) {
            device_props.insert(name.into(), value);
        }
    }
    if is_cdrom && !keys.contains_key("read-only") && !keys.contains_key("readonly") {
        keys.insert("read-only".into(), "on".into());
    }
    if kind == MachineKind::None && interface != Interface::None {
        bail!("machine type does not support if={},bus={bus},unit={unit}", interface.name());
    }
    let graph = host.graph.clone();
    let backend = host.graph.block_on(async move { graph.open_drive(&id, keys).await })?;
    backend.set_for_device();
    if interface != Interface::None {
        backend.set_automatic();
    }
    Ok(Drive { interface, bus, unit, is_cdrom, backend, device_props, option: None })
}

fn place(
    keys: &mut Map<String, Value>,
    interface: Interface,
    kind: MachineKind,
    others: &[Drive],
) -> Result<(u64, u64)> {
    let per_bus = interface.per_bus(kind);
    let index = take_number(keys, "index")?;
    let bus = take_number(keys, "bus")?;
    let unit = take_number(keys, "unit")?;
    let taken = |bus: u64, unit: u64| {
        others.iter().any(|d| d.interface == interface && d.bus == bus && d.unit == unit)
    };
    let (bus, unit) = match (index, bus, unit) {
        (Some(_), Some(1..), _) | (Some(_), _, Some(_)) => bail!("index cannot be used with bus and unit"),
        (Some(index), _, None) => interface.at_index(index, kind),
        (None, bus, Some(unit)) => (bus.unwrap_or(0), unit),
        (None, bus, None) => {
            let (mut bus, mut unit) = (bus.unwrap_or(0), 0);
            while taken(bus, unit) {
                unit += 1;
                if per_bus > 0 && unit >= per_bus {
                    (bus, unit) = (bus + 1, 0);
                }
            }
            (bus, unit)
        }
    };
    if per_bus > 0 && unit >= per_bus {
        bail!("unit {unit} too big (max is {})", per_bus - 1);
    }
    if taken(bus, unit) {
        bail!("drive with bus={bus}, unit={unit} (index={}) exists", index.map_or(-1, |i| i as i64));
    }
    Ok((bus, unit))
}

fn name_of(interface: Interface, kind: MachineKind, bus: u64, unit: u64, is_cdrom: bool) -> String {
    let media = match (interface, is_cdrom) {
        (Interface::Ide | Interface::Scsi, true) => "-cd",
        (Interface::Ide | Interface::Scsi, false) => "-hd",
        _ => "",
    };
    let name = interface.name();
    if interface.per_bus(kind) > 0 {
        format!("{name}{bus}{media}{unit}")
    } else {
        format!("{name}{media}{unit}")
    }
}

fn take_text(keys: &mut Map<String, Value>, name: &str) -> Result<Option<String>> {
    match keys.shift_remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => bail!("Invalid parameter type for '{name}', expected: string"),
    }
}

fn take_number(keys: &mut Map<String, Value>, name: &str) -> Result<Option<u64>> {
    let number = match keys.shift_remove(name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    let number = number.filter(|&number| number < 1 << 16);
    number.map(Some).ok_or_else(|| fail!("Parameter '{name}' expects a number"))
}
