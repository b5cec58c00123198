//! The ICH9 SATA controller in AHCI mode (AHCI 1.3.1): registers of the host and interrupts.

mod port;
#[cfg(test)]
mod tests;

use super::IdeBus;
use base::{Mutex, Result};
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{Bus, BusKind, Device, Model, Props, ResetKind, Wiring};
use memory::Handler;
use port::Port;
use std::any::Any;
use std::sync::{Arc, OnceLock};

pub static MODEL: Model = Model {
    name: "ich9-ahci",
    aliases: &["ahci"],
    description: "AHCI controller",
    bus: BusKind::Pci,
    parent: "sysbus-ahci-pci",
    properties: &[device::pci::PROPERTIES],
    user_creatable: true,
    hotpluggable: true,
    create,
};

const PORTS: usize = 6;
const SLOTS: u32 = 32;
const GHC_RESET: u32 = 1;
const GHC_INTERRUPTS: u32 = 2;
const GHC_AHCI: u32 = 1 << 31;
/// 64-bit addresses, AHCI only, generation 1 speed, slots, ports.
const CAP: u32 = 1 << 31 | 1 << 20 | 1 << 18 | (SLOTS - 1) << 8 | (PORTS as u32 - 1);
const VERSION: u32 = 0x0001_0300;
const PORT_BASE: u64 = 0x100;
const PORT_STRIDE: u64 = 0x80;
const BAR_SIZE: u64 = 0x1000;

/// What the ports share.
struct Shared {
    core: Arc<PciCore>,
    control: Mutex<u32>,
    line: Mutex<()>,
    ports: OnceLock<Vec<Arc<Port>>>,
}

pub struct Ahci {
    shared: Arc<Shared>,
    core: Arc<PciCore>,
}

impl Shared {
    fn ports(&self) -> &[Arc<Port>] {
        self.ports.get().map_or(&[], Vec::as_slice)
    }

    /// Ports with an enabled interrupt pending.
    fn pending(&self) -> u32 {
        (0..).zip(self.ports()).fold(0, |bits, (i, port)| bits | u32::from(port.wants_interrupt()) << i)
    }

    /// Brings the interrupt in line; with MSI every call while something is pending sends one.
    fn update_interrupt(&self) {
        let _in_order = self.line.lock();
        let enabled = *self.control.lock() & GHC_INTERRUPTS != 0;
        let level = enabled && self.pending() != 0;
        if self.core.msi_enabled() {
            if level {
                self.core.msi_trigger(0);
            }
        } else {
            self.core.set_intx(level);
        }
    }

    fn reset(&self) {
        *self.control.lock() = GHC_AHCI;
        self.ports().iter().for_each(|port| port.reset());
        self.update_interrupt();
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => CAP,
            0x04 => *self.control.lock(),
            0x08 => self.pending(),
            0x0c => (1 << PORTS) - 1,
            0x10 => VERSION,
            _ => match self.port(offset) {
                Some((port, register)) => port.read(register),
                None => 0,
            },
        }
    }

    fn write(&self, offset: u64, value: u32) {
        match offset {
            0x04 if value & GHC_RESET != 0 => self.reset(),
            0x04 => {
                *self.control.lock() = value & GHC_INTERRUPTS | GHC_AHCI;
                self.update_interrupt();
            }
            // The pending bits follow the ports; writing asks for what is left.
            0x08 => self.update_interrupt(),
            _ => {
                if let Some((port, register)) = self.port(offset) {
                    port.write(register, value);
                }
            }
        }
    }

    fn port(&self, offset: u64) -> Option<(&Arc<Port>, u64)> {
        let at = offset.checked_sub(PORT_BASE)?;
        Some((self.ports().get((at / PORT_STRIDE) as usize)?, at % PORT_STRIDE))
    }
}

struct Registers(Arc<Shared>);

impl Handler for Registers {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0.read(offset & !3).into()
    }
    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.0.write(offset & !3, value as u32);
    }
    fn min_access(&self) -> u8 {
        4
    }
    fn max_access(&self) -> u8 {
        4
    }
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("ich9-ahci", Identity::new(0x8086, 0x2922, 2, 0x01_0601), props, wiring)?;
    core.set_interrupt_pin(1);
    // Address map: all ports AHCI.
    core.init(0x90, &[0x40]);
    core.add_msi(1)?;
    let shared = Arc::new(Shared {
        core: core.clone(),
        control: Mutex::new(GHC_AHCI),
        line: Mutex::new(()),
        ports: OnceLock::new(),
    });
    let ports = (0..PORTS).map(|index| {
        let bus = IdeBus::new(wiring.bus_name("ide", index), index, 1, true);
        Port::new(Arc::downgrade(&shared), bus, core.dma())
    });
    let ports: Vec<_> = ports.collect();
    let _ = shared.ports.set(ports);
    core.add_io_bar(5, RegionKind::Memory32, BAR_SIZE, Arc::new(Registers(shared.clone())));
    Ok(Arc::new(Ahci { shared, core }))
}

impl PciFunction for Ahci {
    fn core(&self) -> &PciCore {
        &self.core
    }
}

impl Device for Ahci {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.shared.reset();
    }
    fn unplug(&self) {
        self.core.unplug();
        self.shared.reset();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.shared.ports().iter().map(|port| port.bus().clone() as Arc<dyn Bus>).collect()
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
