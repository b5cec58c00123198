//! PCI buses and functions (PCI Local Bus 3.0, PCI-to-PCI bridge 1.2, PCI Express base 3.0).
//!
//! A function model owns a [`PciCore`]: made first in its `create` (it reserves the slot and
//! holds the configuration space), then told its BARs and capabilities, each with the
//! [`memory::Target`] that answers. [`PciFunction`] then needs one method. Whoever created
//! the device puts it on the bus with [`PciCore::attach`].

mod bus;
mod config;
mod core;
mod msi;
#[cfg(test)]
mod tests;

pub use bus::{IntxRoute, PciBus, devfn, parse_address};
pub use config::{Identity, Region, RegionKind, regs};
pub use core::PciCore;

use crate::{Property, PropertyKind};
use std::sync::Arc;

/// One PCI function. Configuration space is little endian; `size` is 1, 2 or 4 and the
/// access does not cross a doubleword.
pub trait PciFunction: Send + Sync {
    fn core(&self) -> &PciCore;

    /// Offsets up to 255 (4095 on PCI Express).
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.core().config_read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core().config_write(offset, size, value);
    }

    /// The bus behind a PCI-to-PCI bridge.
    fn secondary_bus(&self) -> Option<Arc<PciBus>> {
        None
    }
}

/// What tells the guest of functions that come to and leave a bus of a running machine, and
/// hears when it lets go ([`PciBus::eject`]).
pub trait SlotControl: Send + Sync {
    /// The functions of a slot are there.
    fn plugged(&self, slot: u8);
    /// Asks the guest to let go of a slot. True: it need not be asked, the functions may go
    /// at once.
    fn unplug(&self, slot: u8) -> base::Result<bool>;
    /// Nanoseconds for which the guest is not asked again.
    fn patience(&self) -> u64;
}

/// Properties of every PCI function.
pub const PROPERTIES: &[Property] = &[
    Property::unset(
        "addr",
        PropertyKind::PciAddress,
        "Slot and optional function number, example: 06.0 or 06",
    ),
    Property::unset("romfile", PropertyKind::Str, "Option ROM image file"),
    Property::new("rombar", PropertyKind::U32, "1", "Show the option ROM in the ROM BAR"),
    Property::new("multifunction", PropertyKind::Bool, "off", "Function 0 of a multi-function device"),
];
