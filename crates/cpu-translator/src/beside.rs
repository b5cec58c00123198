//! Stores to a page that holds translated code, but not where they write: made through the
//! table entry that such a page must not have, one at a time. (Programs that keep data beside
//! their code make many of them.)

use memory::{RamBlock, VERSION, Watch};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Longest store, in bytes.
const LONGEST: u64 = 32;

/// Stores that one look at a page serves.
pub const BATCH: u32 = 64;

/// What must not have changed since a page was looked at: flushes of the tables, blocks that
/// ended, blocks that were made.
pub type Stamp = (u64, u64, u64);

/// The page that was stored to last.
pub struct Beside {
    view: usize,
    linear: u64,
    entry: u64,
    /// Granules of 64 bytes with code.
    granules: u64,
    version: &'static AtomicU32,
    watch: &'static AtomicU8,
    stamp: Stamp,
    /// Stores that may still be made so, until somebody asks whether the page should be watched.
    left: u32,
}

impl Beside {
    /// `host` is the page's address; `granules` says where its code is. The vCPU must be the
    /// only one: another might be translating what is written.
    pub fn new(view: usize, linear: u64, ram: RamBlock, offset: u64, granules: u64, stamp: Stamp) -> Beside {
        let linear = linear & !0xfff;
        let host = ram.page(offset).as_ptr() as u64;
        Beside {
            view,
            linear,
            entry: host.wrapping_sub(linear).wrapping_add(1),
            granules,
            version: ram.code_version_cell(offset),
            watch: ram.watch_cell(offset),
            stamp,
            left: BATCH,
        }
    }

    /// The table entry for one store at `linear`, if no code is there. What the interpreter
    /// decoded from the page is void then.
    pub fn entry(&mut self, view: usize, linear: u64, stamp: Stamp) -> Option<u64> {
        let same = self.view == view && self.linear == linear & !0xfff && self.stamp == stamp;
        let (first, last) = ((linear & 0xfff) / 64, ((linear & 0xfff) + LONGEST - 1).min(4095) / 64);
        let free = self.granules >> first & 1 == 0 && self.granules >> last & 1 == 0;
        self.left = self.left.saturating_sub(1);
        if !same || !free || self.left == 0 || self.watch.load(Ordering::SeqCst) != Watch::CODE.bits() {
            return None;
        }
        self.version.fetch_add(VERSION, Ordering::SeqCst);
        Some(self.entry)
    }
}
