//! The registry of object types: what `qom-list-types` lists, made from the records of models,
//! objects, boards and CPU models.

use machine::Machine;
use qom::Types;
use spec::machine::MachineKind;

/// Abstract types that the others derive from.
const BASES: &[(&str, Option<&str>, &[&str])] = &[
    ("object", None, &[]),
    ("device", Some("object"), &[]),
    ("bus", Some("object"), &[]),
    ("machine", Some("object"), &[]),
    ("accel", Some("object"), &[]),
    ("sys-bus-device", Some("device"), &[]),
    ("isa-device", Some("device"), &[]),
    ("pci-device", Some("device"), &[]),
    ("ide-device", Some("device"), &[]),
    ("scsi-device", Some("device"), &[]),
    ("virtio-serial-port", Some("device"), &[]),
    ("usb-device", Some("device"), &[]),
    ("cpu", Some("device"), &[]),
    ("x86_64-cpu", Some("cpu"), &[]),
    ("x86-machine", Some("machine"), &[]),
    ("generic-pc-machine", Some("x86-machine"), &["hotplug-handler", "nmi"]),
    ("memory-backend", Some("object"), &["user-creatable"]),
    ("rng-backend", Some("object"), &["user-creatable"]),
    ("secret_common", Some("object"), &[]),
];

pub fn registry(running: &Machine) -> Types {
    let mut types = Types::new();
    for (name, parent, interfaces) in BASES {
        types.add(name, *parent, true, interfaces);
    }
    types.add("container", Some("object"), false, &[]);
    for kind in machine::Objects::types() {
        parent(&mut types, kind.parent, "object");
        types.add(kind.name, Some(kind.parent), false, &["user-creatable"]);
    }
    for model in running.devices.models() {
        parent(&mut types, model.parent, "device");
        // A bridge may be named as its own parent: the chain of parents must end.
        let above = if types.is_a(model.parent, model.name) { "device" } else { model.parent };
        types.add(model.name, Some(above), false, &[]);
        if types.get(model.bus.name()).is_none() {
            types.add(model.bus.name(), Some("bus"), false, &[]);
        }
    }
    for board in spec::machine::MACHINE_TYPES {
        let above = if board.kind == MachineKind::None { "machine" } else { "generic-pc-machine" };
        types.add(&format!("{}-machine", board.name), Some(above), false, &[]);
    }
    for name in machine::engines::NAMES {
        types.add(&format!("{name}-accel"), Some("accel"), false, &[]);
    }
    for model in cpu::models::definitions(&machine::engines::offer(running.engine.name())) {
        types.add(&model.typename, Some("x86_64-cpu"), false, &[]);
    }
    types
}

/// Enters an abstract parent that no base names.
fn parent(types: &mut Types, name: &str, above: &str) {
    if types.get(name).is_none() {
        types.add(name, Some(above), true, &[]);
    }
}
