//! Hot-plug of the root bus through ACPI: the registers at port AE00h that the DSDT's methods
//! use, and general purpose event 1 that makes the guest look. The interface is that of
//! QEMU's `docs/specs/acpi_pci_hotplug.rst`.

use super::acpi_pm::AcpiPm;
use base::{Mutex, Result};
use device::Power;
use device::pci::{PciBus, SlotControl, devfn};
use memory::Handler;
use std::sync::{Arc, Weak};

pub const PORT: u64 = 0xae00;
pub const SIZE: u64 = 0x14;
const GPE: u8 = 1;
/// After a millisecond a guest that forgot the event while it booted may be asked again.
const PATIENCE: u64 = 1_000_000;

pub struct AcpiHotplug {
    bus: Weak<PciBus>,
    acpi: Arc<AcpiPm>,
    power: Arc<dyn Power>,
    state: Mutex<State>,
}

/// One bit a slot.
#[derive(Default)]
struct State {
    came: u32,
    shall_go: u32,
    /// The bus that the registers show; 0 is the root bus, there is no other.
    selected: u32,
}

impl AcpiHotplug {
    pub fn new(bus: &Arc<PciBus>, acpi: Arc<AcpiPm>, power: Arc<dyn Power>) -> Arc<Self> {
        Arc::new(AcpiHotplug { bus: Arc::downgrade(bus), acpi, power, state: Mutex::default() })
    }

    pub fn reset(&self) {
        *self.state.lock() = State::default();
    }

    /// Slots that are empty or whose function can be unplugged.
    fn removable(&self) -> u32 {
        let Some(bus) = self.bus.upgrade() else { return 0 };
        let stays = |slot: u8| bus.function(devfn(slot, 0)).is_some_and(|f| !f.model().hotpluggable);
        (0..32).filter(|&slot| !stays(slot)).fold(0, |bits, slot| bits | 1 << slot)
    }

    fn eject(&self, slots: u32) {
        let Some(bus) = self.bus.upgrade() else { return };
        for slot in (0..32u8).filter(|slot| slots & 1 << slot != 0) {
            bus.eject(slot, &*self.power);
        }
        let mut state = self.state.lock();
        state.came &= !slots;
        state.shall_go &= !slots;
    }
}

impl SlotControl for AcpiHotplug {
    fn plugged(&self, slot: u8) {
        self.state.lock().came |= 1 << (slot & 31);
        self.acpi.raise_gpe(GPE);
    }

    fn unplug(&self, slot: u8) -> Result<bool> {
        self.state.lock().shall_go |= 1 << (slot & 31);
        self.acpi.raise_gpe(GPE);
        Ok(false)
    }

    fn patience(&self) -> u64 {
        PATIENCE
    }
}

impl Handler for AcpiHotplug {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let mut state = self.state.lock();
        if offset == 0x10 {
            return state.selected.into();
        }
        if state.selected != 0 {
            return 0;
        }
        match offset {
            0 => std::mem::take(&mut state.came).into(),
            4 => state.shall_go.into(),
            12 => {
                drop(state);
                self.removable().into()
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let selected = self.state.lock().selected;
        match offset {
            8 if selected == 0 => self.eject(value as u32),
            0x10 => self.state.lock().selected = value as u32,
            _ => {}
        }
    }

    fn min_access(&self) -> u8 {
        4
    }

    fn max_access(&self) -> u8 {
        4
    }
}
