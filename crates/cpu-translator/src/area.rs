//! Executable memory: one memfd mapped twice, writable at one address and executable at
//! another, so that no page is ever both. Guard pages surround both mappings.

use base::{Failure, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::sync::atomic::{AtomicU32, Ordering};

const GUARD: usize = 1 << 16;

pub struct Area {
    write: usize,
    pub execute: usize,
    pub size: usize,
    pub used: usize,
    /// What a flush goes back to.
    fixed: usize,
}

fn reserve(size: usize) -> rustix::io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::empty(), flags) }
        .map(|at| at as usize)
}

impl Area {
    pub fn new(size: usize) -> Result<Area> {
        let what = "cannot make executable memory for translated code";
        let os = |error: rustix::io::Errno| Failure::os(what, &error.into());
        let fd = memfd_create("ryokan-code", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("ryokan-code", MemfdFlags::CLOEXEC))
            .map_err(os)?;
        ftruncate(&fd, size as u64).map_err(os)?;
        let map = |prot| {
            let at = reserve(size + 2 * GUARD)? + GUARD;
            // SAFETY: replaces part of a reservation that was just made and is used by nobody.
            unsafe { mmap(at as *mut _, size, prot, MapFlags::SHARED | MapFlags::FIXED, &fd, 0) }
                .map(|at| at as usize)
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE).map_err(os)?;
        let execute = map(ProtFlags::READ | ProtFlags::EXEC).map_err(os)?;
        Ok(Area { write, execute, size, used: 0, fixed: 0 })
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.size - self.used
    }

    /// Where the next code will lie, for execution.
    pub fn next(&self) -> usize {
        self.execute + self.used
    }

    /// Copies `code` in; returns its address for execution.
    pub fn add(&mut self, code: &[u8]) -> Option<usize> {
        if code.len() > self.room() {
            return None;
        }
        let start = self.used;
        // SAFETY: start.. lies within the writable mapping and nothing executes there yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), (self.write + start) as *mut u8, code.len());
        }
        self.used = (start + code.len()).next_multiple_of(16).min(self.size);
        Some(self.execute + start)
    }

    /// What was added so far survives every [`Area::clear`].
    pub fn keep(&mut self) {
        self.fixed = self.used;
    }

    pub fn clear(&mut self) {
        self.used = self.fixed;
    }

    /// Replaces four bytes of code at once; they must not cross a multiple of eight.
    pub fn patch(&mut self, at: usize, value: u32) {
        let offset = at.wrapping_sub(self.execute);
        assert!(offset <= self.size - 4 && offset & 7 <= 4);
        // SAFETY: inside the writable mapping; x86 stores that do not cross a cache line are
        // single, whatever their alignment.
        unsafe {
            if offset & 3 == 0 {
                AtomicU32::from_ptr((self.write + offset) as *mut u32).store(value, Ordering::SeqCst);
            } else {
                ((self.write + offset) as *mut u32).write_unaligned(value);
            }
        }
    }

    pub fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.execute) < self.size
    }
}
