//! The soft TLB: linear page to host page, one set for each privilege view.

use memory::{HostPage, RamBlock};
use std::sync::atomic::AtomicU8;

pub const DATA_ENTRIES: usize = 1024;
pub const CODE_ENTRIES: usize = 512;

/// A page that may be read. `tag` is the linear page address.
#[derive(Clone, Copy)]
pub struct ReadEntry {
    pub tag: u64,
    pub page: HostPage,
}

/// A page that may be written (dirty flag already set). Every store tests `watch`.
#[derive(Clone, Copy)]
pub struct WriteEntry {
    pub tag: u64,
    pub page: HostPage,
    pub watch: &'static AtomicU8,
}

/// A page that may be executed, and its guest physical address.
#[derive(Clone, Copy)]
pub struct CodeEntry {
    pub tag: u64,
    pub physical: u64,
    pub global: bool,
    /// Bytes of the mapping that the page is a piece of.
    pub size: u64,
}

/// The privilege view that a set of entries was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    User = 0,
    Supervisor = 1,
    /// Supervisor with SMAP on and RFLAGS.AC set.
    SupervisorAc = 2,
}

const READ: u32 = 0;
const WRITE: u32 = 1 << 16;
const CODE: u32 = 2 << 16;
const KINDS: u32 = 3 << 16;

/// Where pieces of large pages are known: 2 MiB regions by a hash, so that it may be said of
/// some others too.
struct Regions {
    bits: Box<[u64; 256]>,
    /// 1 GiB regions.
    huge: Vec<u64>,
}

impl Default for Regions {
    fn default() -> Self {
        Regions { bits: Box::new([0; 256]), huge: Vec::new() }
    }
}

impl Regions {
    fn place(linear: u64) -> (usize, u64) {
        let region = linear >> 21;
        let hash = (region ^ region >> 14) as usize;
        (hash / 64 % 256, 1 << (hash % 64))
    }

    fn insert(&mut self, linear: u64, size: u64) {
        let (word, bit) = Regions::place(linear);
        self.bits[word] |= bit;
        if size > 2 << 20 && !self.huge.contains(&(linear >> 30)) {
            self.huge.push(linear >> 30);
        }
    }

    fn contains(&self, linear: u64) -> bool {
        let (word, bit) = Regions::place(linear);
        self.huge.contains(&(linear >> 30)) || self.bits[word] & bit != 0
    }

    fn clear(&mut self) {
        self.bits.fill(0);
        self.huge.clear();
    }
}

pub struct TlbSet {
    pub read: Box<[ReadEntry; DATA_ENTRIES]>,
    pub write: Box<[WriteEntry; DATA_ENTRIES]>,
    pub code: Box<[CodeEntry; CODE_ENTRIES]>,
    /// What was entered since it was last dropped: local pages, global pages. An entry that took
    /// the place of one of the other kind may be in both.
    logs: [Vec<u32>; 2],
    large: Regions,
}

/// A tag that no address with this index has.
fn never(index: usize, entries: usize) -> u64 {
    (((index + 1) % entries) as u64) << 12
}

#[inline(always)]
pub fn data_index(linear: u64) -> usize {
    (linear >> 12) as usize % DATA_ENTRIES
}

#[inline(always)]
pub fn code_index(linear: u64) -> usize {
    (linear >> 12) as usize % CODE_ENTRIES
}

impl TlbSet {
    /// `parking` backs empty entries; it is never accessed.
    pub fn new(parking: RamBlock) -> Self {
        let (page, watch) = (parking.page(0), parking.watch_cell(0));
        let read = std::array::from_fn(|i| ReadEntry { tag: never(i, DATA_ENTRIES), page });
        let write = std::array::from_fn(|i| WriteEntry { tag: never(i, DATA_ENTRIES), page, watch });
        let code = std::array::from_fn(|i| CodeEntry {
            tag: never(i, CODE_ENTRIES),
            physical: u64::MAX,
            global: false,
            size: 0,
        });
        TlbSet {
            read: Box::new(read),
            write: Box::new(write),
            code: Box::new(code),
            logs: [Vec::new(), Vec::new()],
            large: Regions::default(),
        }
    }

    pub fn add_read(&mut self, tag: u64, page: HostPage, global: bool) {
        self.read[data_index(tag)] = ReadEntry { tag, page };
        self.note(READ, data_index(tag), global);
    }

    pub fn add_write(&mut self, tag: u64, page: HostPage, watch: &'static AtomicU8, global: bool) {
        self.write[data_index(tag)] = WriteEntry { tag, page, watch };
        self.note(WRITE, data_index(tag), global);
    }

    pub fn add_code(&mut self, tag: u64, (physical, size): (u64, u64), global: bool) {
        self.code[code_index(tag)] = CodeEntry { tag, physical, global, size };
        self.note(CODE, code_index(tag), global);
    }

    pub fn note_large(&mut self, tag: u64, size: u64) {
        self.large.insert(tag, size);
    }

    fn note(&mut self, kind: u32, index: usize, global: bool) {
        let log = &mut self.logs[usize::from(global)];
        if log.len() >= 8 * DATA_ENTRIES {
            // Each entry once.
            log.sort_unstable();
            log.dedup();
        }
        log.push(kind | index as u32);
    }

    fn drop_entry(&mut self, item: u32) {
        let index = (item & 0xffff) as usize;
        match item & KINDS {
            READ => self.read[index].tag = never(index, DATA_ENTRIES),
            WRITE => self.write[index].tag = never(index, DATA_ENTRIES),
            _ => {
                self.code[index] =
                    CodeEntry { tag: never(index, CODE_ENTRIES), physical: u64::MAX, global: false, size: 0 }
            }
        }
    }

    /// Drops everything, or everything but global pages.
    pub fn flush(&mut self, globals_too: bool) {
        for kind in 0..=usize::from(globals_too) {
            let mut log = std::mem::take(&mut self.logs[kind]);
            log.drain(..).for_each(|item| self.drop_entry(item));
            self.logs[kind] = log;
        }
        if globals_too {
            self.large.clear();
        }
    }

    /// INVLPG.
    pub fn flush_page(&mut self, linear: u64) {
        if self.large.contains(linear) {
            return self.flush(true);
        }
        let tag = linear & !0xfff;
        let index = data_index(tag);
        if self.read[index].tag == tag {
            self.drop_entry(READ | index as u32);
        }
        if self.write[index].tag == tag {
            self.drop_entry(WRITE | index as u32);
        }
        let index = code_index(tag);
        if self.code[index].tag == tag {
            self.drop_entry(CODE | index as u32);
        }
    }
}
