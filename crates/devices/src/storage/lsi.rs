//! `lsi53c895a`: the LSI53C895A PCI SCSI controller (technical manual S14028.B).
//!
//! The registers ([`chip`]) start a processor of its own, whose programs (SCRIPTS, chapter 5) lie in guest
//! memory or in the controller's RAM ([`scripts`]); they move bytes between memory and the
//! SCSI bus ([`side`]). On the other end of the bus are the units of a [`ScsiBus`], which change phases,
//! disconnect while the disk works and reselect when it is done ([`target`]). The bus is
//! narrow and asynchronous: wider or faster transfers are negotiated down.

mod chip;
mod scripts;
mod side;
mod target;
#[cfg(test)]
mod tests;

use super::Pending;
use super::scsi::{ScsiBus, ScsiHost};
use base::{Mutex, Result};
use chip::Chip;
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{Bus, BusKind, Device, Model, Props, ResetKind, Wiring};
use memory::{Handler, RamBlock, Target};
use std::any::Any;
use std::sync::{Arc, Weak};

pub static MODEL: Model = Model {
    name: "lsi53c895a",
    aliases: &["lsi"],
    description: "LSI53C895A SCSI host",
    bus: BusKind::Pci,
    parent: "pci-device",
    properties: &[device::pci::PROPERTIES],
    user_creatable: true,
    hotpluggable: true,
    create,
};

const MAX_TARGET: u8 = 7;
const MAX_LUN: u16 = 7;
/// Bytes that the I/O and the memory BAR decode.
const PORTS: u64 = 256;
const REGISTERS: u64 = 1024;
/// Bytes of the RAM for SCRIPTS.
const RAM: u64 = 8192;

pub struct Lsi {
    core: Arc<PciCore>,
    bus: Arc<ScsiBus>,
    pending: Pending,
    chip: Mutex<Chip>,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let identity = Identity { subsystem: (0, 0x1000), ..Identity::new(0x1000, 0x0012, 0, 0x01_0000) };
    let core = PciCore::new("lsi53c895a", identity, props, wiring)?;
    core.set_interrupt_pin(1);
    let ram = RamBlock::new("lsi-ram", RAM)?;
    let name = wiring.bus_name("scsi", 0);
    let lsi = Arc::new_cyclic(|me: &Weak<Lsi>| {
        let host: Weak<dyn ScsiHost> = me.clone();
        let bus = ScsiBus::new(name, (MAX_TARGET, MAX_LUN), host);
        let pending = Pending::default();
        let chip = Chip::new(me.clone(), core.clone(), bus.clone(), pending.clone(), wiring.clock());
        Lsi { core: core.clone(), bus, pending, chip: Mutex::new(chip) }
    });
    core.add_io_bar(0, RegionKind::Io, PORTS, lsi.clone());
    core.add_io_bar(1, RegionKind::Memory32, REGISTERS, lsi.clone());
    core.add_bar(2, RegionKind::Memory32, RAM, Target::Ram { block: ram, offset: 0 });
    Ok(lsi)
}

impl Lsi {
    fn wait(&self) {
        let drives: Vec<_> = self.bus.luns().into_iter().map(|(_, lun)| lun.backend.clone()).collect();
        self.pending.wait(&drives);
    }

    /// Lets the disks finish what they do, and forgets it.
    fn clear(&self) {
        let before = self.chip.lock().set_paused(true);
        self.wait();
        let mut chip = self.chip.lock();
        chip.reset();
        chip.set_paused(before);
    }
}

impl Handler for Lsi {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut chip = self.chip.lock();
        (0..size).fold(0, |value, i| value | u64::from(chip.read((offset + u64::from(i)) as u8)) << (i * 8))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut chip = self.chip.lock();
        (0..size).for_each(|i| chip.write((offset + u64::from(i)) as u8, (value >> (i * 8)) as u8));
    }

    fn max_access(&self) -> u8 {
        4
    }
}

impl ScsiHost for Lsi {
    // A parallel bus does not tell who comes and goes.
    fn plugged(&self, _target: u8, _lun: u16, _present: bool) {}
    fn resized(&self, _target: u8, _lun: u16) {}
}

impl PciFunction for Lsi {
    fn core(&self) -> &PciCore {
        &self.core
    }
}

impl Device for Lsi {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.clear();
    }
    fn pause(&self) {
        self.chip.lock().set_paused(true);
        self.wait();
    }
    fn resume(&self) {
        self.chip.lock().set_paused(false);
    }
    fn unplug(&self) {
        self.core.unplug();
        self.clear();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.bus.clone()]
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
