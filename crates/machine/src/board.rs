//! What differs between boards.

mod none;
pub(crate) mod pc;

pub(crate) use none::NoneBoard;

use crate::Machine;
use base::Result;
use device::pci::PciBus;
use std::sync::Arc;

/// A board: what the run-state driver needs of the chipset.
pub trait Board: Send + Sync {
    /// After all devices and vCPUs were reset: puts kernel or firmware in place.
    fn after_reset(&self, machine: &Machine) -> Result<()>;
    /// The power button is pressed.
    fn power_button(&self, machine: &Machine);
    /// The wake-up of S3: devices were reset, RAM kept; the vCPUs start at the firmware.
    fn woken(&self, machine: &Machine);
    /// NMI to all vCPUs.
    fn inject_nmi(&self, machine: &Machine);
    /// The root PCI buses.
    fn pci_roots(&self) -> Vec<Arc<PciBus>> {
        Vec::new()
    }
}
