use crate::{Device, Property, Props, Wiring};
use base::Result;
use std::any::Any;
use std::sync::Arc;

/// Kinds of bus a model can sit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BusKind {
    /// The board itself (made by the board, not by `-device`, unless the model says so).
    System,
    Isa,
    Pci,
    Ide,
    Scsi,
    VirtioSerial,
    Floppy,
    Usb,
}

impl BusKind {
    /// The bus type's QOM name, which `-device help` prints after `bus`.
    pub fn name(self) -> &'static str {
        match self {
            BusKind::System => "System",
            BusKind::Isa => "ISA",
            BusKind::Pci => "PCI",
            BusKind::Ide => "IDE",
            BusKind::Scsi => "SCSI",
            BusKind::VirtioSerial => "virtio-serial-bus",
            BusKind::Floppy => "floppy-bus",
            BusKind::Usb => "usb-bus",
        }
    }
}

/// How devices come to and leave a bus of a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hotplug {
    /// They do not.
    No,
    /// A device is gone when the unplug returns.
    AtOnce,
    /// The guest is asked to let a device go; a reset of the machine does it too.
    ByGuest,
}

/// A bus of a machine. Devices that sit on it downcast to the concrete type they need
/// ([`crate::pci::PciBus`], the IDE bus in `devices::storage`, ...).
pub trait Bus: Send + Sync + Any {
    /// `pci.0`, `ide.1`, `isa.0`, `<id>.0`.
    fn name(&self) -> String;
    fn kind(&self) -> BusKind;
    /// Whether one more device fits (a full bus is skipped when no `bus=` is given).
    fn is_full(&self) -> bool;
    fn hotplug(&self) -> Hotplug {
        Hotplug::No
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The static record of a model: all that listing, describing and creating it needs.
pub struct Model {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub description: &'static str,
    pub bus: BusKind,
    /// The QOM type it derives from (`pci-device`, `isa-device`, `scsi-device`, ...).
    pub parent: &'static str,
    /// Own properties, then those common to its bus.
    pub properties: &'static [&'static [Property]],
    /// May be given to `-device` and `device_add`; board devices may not.
    pub user_creatable: bool,
    pub hotpluggable: bool,
    pub create: fn(&Props, &mut Wiring<'_>) -> Result<Arc<dyn Device>>,
}

impl Model {
    pub fn property(&self, name: &str) -> Option<&'static Property> {
        self.all_properties().find(|property| property.name == name)
    }

    pub fn all_properties(&self) -> impl Iterator<Item = &'static Property> {
        self.properties.iter().flat_map(|group| group.iter())
    }

    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({})", self.name)
    }
}
