use crate::pci::PciBus;
use crate::{Bus, IrqLine, MsiSink, Power, Props};
use base::clock::Clock;
use base::notice::Notices;
use base::{Mutex, Result, fail};
use memory::{AddressSpace, Dma};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The machine's clocks.
#[derive(Clone)]
pub struct Clocks {
    /// Stops with the machine; the guest's time.
    pub virtual_: Clock,
    /// Host monotonic time.
    pub realtime: Clock,
    /// Wall-clock time (ns since 1970).
    pub host: Clock,
}

/// Back ends by name.
pub trait Backends: Send + Sync {
    /// Claims a character device for one front end.
    fn chardev(&self, name: &str) -> Result<chardev::Port>;
    /// Claims a block back end (by back-end name, or making an anonymous one over a node) for
    /// a device of the given type.
    fn drive(&self, name: &str, kind: &str) -> Result<block::Backend>;
    /// Whether another device has the block back end of that name.
    fn is_taken(&self, _name: &str) -> bool {
        false
    }
    /// A new anonymous block back end without a medium (a CD drive without `drive=`).
    fn empty_drive(&self) -> Result<block::Backend>;
    /// Runs `unplug`, which takes a device apart; drives made for a device (`-drive`,
    /// `drive_add`) that it lets go of are deleted.
    fn release(&self, unplug: &dyn Fn()) {
        unplug();
    }
    /// A user-created object (`rng-random`, `iothread`), to be downcast by its type.
    fn object(&self, id: &str) -> Option<Arc<dyn Any + Send + Sync>>;
}

/// The handles every device of one machine shares.
#[derive(Clone)]
pub struct Services {
    pub memory: Arc<AddressSpace>,
    pub ports: Arc<AddressSpace>,
    pub clocks: Clocks,
    /// ISA interrupts 0-15, then the I/O APIC's own pins 16-23 (global system interrupts).
    pub irqs: Arc<[IrqLine]>,
    pub msi: Arc<dyn MsiSink>,
    pub power: Arc<dyn Power>,
    pub notices: Notices,
    pub backends: Arc<dyn Backends>,
}

/// Numbers of the buses that are named after their kind (`scsi.0`, `scsi.1`): one series a kind
/// in the whole machine.
#[derive(Default)]
pub struct BusNumbers(Mutex<BTreeMap<String, usize>>);

impl BusNumbers {
    /// The next number of a kind.
    pub fn take(&self, kind: &str) -> usize {
        let mut numbers = self.0.lock();
        let next = numbers.entry(kind.to_string()).or_default();
        *next += 1;
        *next - 1
    }
}

/// What one device gets when it is created.
pub struct Wiring<'a> {
    pub services: &'a Services,
    /// The bus it was put on; downcast with [`Wiring::bus`].
    pub bus: Arc<dyn Bus>,
    pub bus_numbers: &'a BusNumbers,
    /// The user's id, if any.
    pub id: Option<&'a str>,
    /// Its place in the object tree (`/machine/peripheral/<id>`, `/machine/unattached/device[3]`).
    pub qom_path: String,
    /// Plugged into a running machine.
    pub hotplugged: bool,
    /// Interrupt outputs that the device asked for, in that order.
    pub outputs: Mutex<Vec<IrqLine>>,
}

impl Wiring<'_> {
    /// The bus as the concrete type the device needs.
    pub fn bus<T: Any + Send + Sync>(&self) -> Result<Arc<T>> {
        self.bus
            .clone()
            .as_any()
            .downcast::<T>()
            .map_err(|_| fail!("Bus '{}' is of another kind", self.bus.name()))
    }

    /// The name of the device's own bus number `child`: after the device's id, or else the next
    /// of its kind.
    pub fn bus_name(&self, kind: &str, child: usize) -> String {
        match self.id {
            Some(id) => format!("{id}.{child}"),
            None => format!("{kind}.{}", self.bus_numbers.take(kind)),
        }
    }

    /// The PCI bus it sits on.
    pub fn pci_bus(&self) -> Result<Arc<PciBus>> {
        self.bus()
    }

    /// The device's own wire to a global system interrupt; past the last one a line that leads
    /// nowhere.
    pub fn irq(&self, number: usize) -> IrqLine {
        let input = self.services.irqs.get(number);
        let wire = input.map_or_else(IrqLine::unconnected, IrqLine::another);
        self.outputs.lock().push(wire.clone());
        wire
    }

    /// Guest memory for a device that may always access it (not a PCI bus master).
    pub fn dma(&self) -> Dma {
        Dma::new(self.services.memory.clone(), true)
    }

    pub fn clock(&self) -> &Clock {
        &self.services.clocks.virtual_
    }

    /// Claims the character device a property names; unset gives `None`.
    pub fn chardev(&self, props: &Props, property: &str) -> Result<Option<chardev::Port>> {
        props.str(property).map(|name| self.services.backends.chardev(name)).transpose()
    }

    /// Claims the drive a property names for a device of type `kind`; unset gives `None`.
    pub fn drive(&self, props: &Props, property: &str, kind: &str) -> Result<Option<block::Backend>> {
        props.str(property).map(|name| self.services.backends.drive(name, kind)).transpose()
    }
}
