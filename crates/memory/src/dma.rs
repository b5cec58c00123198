use crate::{AddressSpace, Gpa};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device's way to guest memory. Clones share the revocation: when bus mastering is
/// disabled or the device is unplugged, accesses through any of them fail.
#[derive(Clone)]
pub struct Dma {
    space: Arc<AddressSpace>,
    allowed: Arc<AtomicBool>,
    memory_only: bool,
}

/// The access was not made: the handle is revoked (bus mastering off, device gone), or it
/// reaches memory only and the range is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked;

impl Dma {
    pub fn new(space: Arc<AddressSpace>, allowed: bool) -> Self {
        Dma { space, allowed: Arc::new(AtomicBool::new(allowed)), memory_only: false }
    }

    /// The same handle, refusing accesses that would reach another device's registers (and so
    /// could come back into the device that makes them) or nothing at all.
    pub fn memory_only(mut self) -> Self {
        self.memory_only = true;
        self
    }

    /// Grants or revokes access for all clones.
    pub fn set_allowed(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Release);
    }

    pub fn is_allowed(&self) -> bool {
        self.allowed.load(Ordering::Acquire)
    }

    pub fn read(&self, address: Gpa, to: &mut [u8]) -> Result<(), Revoked> {
        self.check(address, to.len())?;
        self.space.read(address, to);
        Ok(())
    }

    pub fn write(&self, address: Gpa, from: &[u8]) -> Result<(), Revoked> {
        self.check(address, from.len())?;
        self.space.write(address, from);
        Ok(())
    }

    /// One little-endian access of 1, 2, 4 or 8 bytes (single copy if aligned RAM).
    pub fn load(&self, address: Gpa, size: u8) -> Result<u64, Revoked> {
        self.check(address, size.into())?;
        Ok(self.space.load(address, size))
    }

    /// See [`Dma::load`].
    pub fn store(&self, address: Gpa, size: u8, value: u64) -> Result<(), Revoked> {
        self.check(address, size.into())?;
        self.space.store(address, size, value);
        Ok(())
    }

    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    fn check(&self, address: Gpa, len: usize) -> Result<(), Revoked> {
        let reachable = || !self.memory_only || self.space.view().is_memory(address, len as u64);
        if self.is_allowed() && reachable() { Ok(()) } else { Err(Revoked) }
    }
}
