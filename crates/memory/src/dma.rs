use crate::{AddressSpace, Gpa};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device's way to guest memory. Clones share the revocation: when bus mastering is
/// disabled or the device is unplugged, accesses through any of them fail.
#[derive(Clone)]
pub struct Dma {
    space: Arc<AddressSpace>,
    allowed: Arc<AtomicBool>,
}

/// The access was not made: the handle is revoked (bus mastering off, device gone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked;

impl Dma {
    pub fn new(space: Arc<AddressSpace>, allowed: bool) -> Self {
        Dma { space, allowed: Arc::new(AtomicBool::new(allowed)) }
    }

    /// Grants or revokes access for all clones.
    pub fn set_allowed(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Release);
    }

    pub fn is_allowed(&self) -> bool {
        self.allowed.load(Ordering::Acquire)
    }

    pub fn read(&self, address: Gpa, to: &mut [u8]) -> Result<(), Revoked> {
        self.check()?;
        self.space.read(address, to);
        Ok(())
    }

    pub fn write(&self, address: Gpa, from: &[u8]) -> Result<(), Revoked> {
        self.check()?;
        self.space.write(address, from);
        Ok(())
    }

    /// One little-endian access of 1, 2, 4 or 8 bytes (single copy if aligned RAM).
    pub fn load(&self, address: Gpa, size: u8) -> Result<u64, Revoked> {
        self.check()?;
        Ok(self.space.load(address, size))
    }

    /// See [`Dma::load`].
    pub fn store(&self, address: Gpa, size: u8, value: u64) -> Result<(), Revoked> {
        self.check()?;
        self.space.store(address, size, value);
        Ok(())
    }

    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    fn check(&self) -> Result<(), Revoked> {
        if self.is_allowed() { Ok(()) } else { Err(Revoked) }
    }
}
