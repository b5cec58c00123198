//! Executable memory: one memfd mapped twice, writable at one address and executable at
//! another, so that no page is ever both. Guard pages surround both mappings.

use base::{Failure, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use std::sync::atomic::{AtomicU32, Ordering};

const GUARD: usize = 1 << 16;
const PAGE: usize = 4096;
/// Bytes of each part for which there is memory before they are used.
const AHEAD: usize = 256 << 10;
/// Share of the area for code that is run often.
const HOT: (usize, usize) = (7, 16);

pub struct Area {
    write: usize,
    pub execute: usize,
    pub size: usize,
    /// Where code that is seldom run begins.
    cold: usize,
    /// Ends of both parts, and up to where there is memory for them.
    ends: [usize; 2],
    filled: [usize; 2],
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
        let cold = size / HOT.1 * HOT.0;
        Ok(Area { write, execute, size, cold, ends: [0, cold], filled: [0, cold], fixed: 0 })
    }

    /// Bytes that are left in each part, at least.
    pub fn room(&self) -> usize {
        (self.cold - self.ends[0]).min(self.size - self.ends[1])
    }

    pub fn used(&self) -> usize {
        self.ends[0] + self.ends[1] - self.cold
    }

    /// Offsets where the next code will lie: what is run often, and what is not.
    pub fn next(&self) -> [usize; 2] {
        self.ends
    }

    /// Copies `code` in, whose bytes from `cold` on are seldom run; returns its address for execution.
    pub fn add(&mut self, code: &[u8], cold: usize) -> Option<usize> {
        if code.len() > self.room() {
            return None;
        }
        let start = self.ends[0];
        for (part, code) in [&code[..cold], &code[cold..]].into_iter().enumerate() {
            let at = self.ends[part];
            self.fill(part, at + code.len());
            // SAFETY: the bytes from `at` lie within the writable mapping, in this part, and nothing
            // executes there yet.
            unsafe {
                std::ptr::copy_nonoverlapping(code.as_ptr(), (self.write + at) as *mut u8, code.len());
            }
            self.ends[part] = (at + code.len()).next_multiple_of(16).min([self.cold, self.size][part]);
        }
        Some(self.execute + start)
    }

    /// Takes memory for `part` up to `end` and some more at once: page by page it takes longer.
    fn fill(&mut self, part: usize, end: usize) {
        let from = self.filled[part] & !(PAGE - 1);
        if end > self.filled[part] {
            let to = (end + AHEAD).min([self.cold, self.size][part]);
            // SAFETY: a part of the writable mapping, whose contents are kept. If there is none to be
            // had, the first write to it tells.
            let _ = unsafe { madvise((self.write + from) as *mut _, to - from, Advice::LinuxPopulateWrite) };
            self.filled[part] = to;
        }
    }

    /// What was added so far survives every [`Area::clear`]; nothing of it is seldom run.
    pub fn keep(&mut self) {
        self.fixed = self.ends[0];
    }

    pub fn clear(&mut self) {
        self.ends = [self.fixed, self.cold];
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
