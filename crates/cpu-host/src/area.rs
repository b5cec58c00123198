//! Executable memory for thunks: one memfd mapped twice, writable at one address and
//! executable at another, so that no page is ever both.

use base::{Failure, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Room for thunks in bytes. Thunks are keyed by their normalised instruction, of which
/// there are at most some ten thousand (immediates included), each under 160 bytes.
const SIZE: usize = 32 << 20;

/// A bump allocator over the double mapping. Never unmapped: plans hold raw entry addresses.
pub struct Area {
    write: usize,
    execute: usize,
    used: usize,
}

impl Area {
    pub fn new() -> Result<Area> {
        let what = "cannot make executable memory for SIMD thunks";
        let os = |error: rustix::io::Errno| Failure::os(what, &error.into());
        // MFD_EXEC is unknown to kernels before 6.3, which make every memfd executable.
        let fd = memfd_create("ryokan-simd", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("ryokan-simd", MemfdFlags::CLOEXEC))
            .map_err(os)?;
        ftruncate(&fd, SIZE as u64).map_err(os)?;
        let map = |prot| {
            // SAFETY: a new shared mapping at an address of the kernel's choice.
            unsafe { mmap(std::ptr::null_mut(), SIZE, prot, MapFlags::SHARED, &fd, 0) }
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE).map_err(os)? as usize;
        let execute = map(ProtFlags::READ | ProtFlags::EXEC).map_err(os)? as usize;
        Ok(Area { write, execute, used: 0 })
    }

    /// Copies `code` in and returns its address for execution; `None` when full.
    pub fn add(&mut self, code: &[u8]) -> Option<usize> {
        let start = self.used.next_multiple_of(32);
        let end = start.checked_add(code.len()).filter(|&end| end <= SIZE)?;
        // SAFETY: start..end lies within the writable mapping, is given out once, and nothing
        // executes there yet: the address is returned only afterwards.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), (self.write + start) as *mut u8, code.len());
        }
        self.used = end;
        Some(self.execute + start)
    }
}
