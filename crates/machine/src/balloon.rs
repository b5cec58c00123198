//! The memory balloon, wherever it is plugged.

use crate::Machine;
use base::{Class, Failure, Result};
use devices::virtio::{Balloon, VirtioPci};

impl Machine {
    fn with_balloon<R>(&self, act: impl FnOnce(&Balloon) -> R) -> Result<R> {
        for entry in self.devices.entries() {
            if let Some(pci) = entry.device.as_any().downcast_ref::<VirtioPci>()
                && let Some(balloon) = pci.device().as_any().downcast_ref::<Balloon>()
            {
                return Ok(act(balloon));
            }
        }
        Err(Failure::of(Class::DeviceNotActive, "No balloon device has been activated"))
    }

    /// Asks the guest to keep this many bytes of its memory and give the rest.
    pub fn set_balloon(&self, target: u64) -> Result<()> {
        let size = self.memory.size();
        self.with_balloon(|balloon| balloon.set_target(size - target.min(size)))
    }

    /// Bytes of memory that the guest has.
    pub fn balloon_actual(&self) -> Result<u64> {
        let size = self.memory.size();
        self.with_balloon(|balloon| size.saturating_sub(balloon.given()))
    }
}
