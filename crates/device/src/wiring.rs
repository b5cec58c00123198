use crate::pci::PciBus;
use crate::{Bus, IrqLine, MsiSink, Power, Props};
use base::clock::Clock;
use base::notice::Notices;
use base::{Result, fail};
use memory::{AddressSpace, Dma};
use std::any::Any;
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

/// What one device gets when it is created.
pub struct Wiring<'a> {
    pub services: &'a Services,
    /// The bus it was put on; downcast with [`Wiring::bus`].
    pub bus: Arc<dyn Bus>,
    /// The user's id, if any.
    pub id: Option<&'a str>,
    /// Its place in the object tree (`/machine/peripheral/<id>`, `/machine/unattached/device[3]`).
    pub qom_path: String,
    /// Plugged into a running machine.
    pub hotplugged: bool,
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

    /// The PCI bus it sits on.
    pub fn pci_bus(&self) -> Result<Arc<PciBus>> {
        self.bus()
    }

    /// A global system interrupt; past the last one a line that leads nowhere.
    pub fn irq(&self, number: usize) -> IrqLine {
        self.services.irqs.get(number).cloned().unwrap_or_else(IrqLine::unconnected)
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
