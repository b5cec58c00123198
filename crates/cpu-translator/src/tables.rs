//! A vCPU's translation tables: for every linear page the distance to its host page.
//!
//! An entry is `host page - linear page + 1`; zero means that nothing is known. So an access
//! is `[address + entry - 1]` after a test of bit 0. There is a table for reads and one for
//! writes in each privilege view, in memory that is reserved but only populated where used.
//! Where that much cannot be reserved, the tables are short and hashed: see [`Form`].

mod contexts;

use crate::cache::Mixed;
use crate::layout::*;
use crate::near::Gone;
use base::{Failure, Result};
use contexts::Contexts;
use cpu_interpreter::View;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const GUARD: usize = 1 << 21;
pub const VIEWS: usize = 3;

/// How a page's entry is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every page has its place: a tebibyte of address space for each view.
    Flat,
    /// Pages share [`HASHED_SLOTS`] slots by the low bits of their number. A tag, `-page`, says
    /// whose entry a slot holds; a slot without an entry has a tag that no page of it matches.
    Hashed,
}

impl Form {
    /// `wanted`, or what the host's limits allow. Strict overcommit, RLIMIT_AS and small
    /// containers forbid flat tables.
    pub fn for_host(wanted: Option<Form>) -> Result<Form> {
        match wanted {
            Some(form) => Tables::new(form, 0).map(|_| form),
            None if Tables::new(Form::Flat, 0).is_ok() => Ok(Form::Flat),
            None => Tables::new(Form::Hashed, 0).map(|_| Form::Hashed),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Form::Flat => "flat",
            Form::Hashed => "hashed",
        }
    }

    /// Slots of a table.
    fn slots(self) -> u64 {
        match self {
            Form::Flat => TABLE_PAGES,
            Form::Hashed => HASHED_SLOTS,
        }
    }

    /// Bytes below and above the GS base.
    fn extent(self) -> (usize, usize) {
        let words = if self == Form::Flat { 1 } else { 2 };
        let table = words * 8 * self.slots() as usize;
        (table, READ_TABLE as usize + table)
    }

    fn cell(self, gs: usize, linear: u64, (read, write): (i32, i32), is_write: bool) -> &'static AtomicU64 {
        let index = (linear >> 12) & (self.slots() - 1);
        let at = if is_write {
            (gs as u64 - 8 - 8 * index).wrapping_add_signed(i64::from(write))
        } else {
            gs as u64 + 8 * index + read as u64
        };
        // SAFETY: the index is below the number of slots, so this is an aligned word inside of
        // the mapping, which lives as long as the vCPU (entries are used only while it does).
        unsafe { AtomicU64::from_ptr(at as *mut u64) }
    }

    fn entry(self, gs: usize, linear: u64, write: bool) -> &'static AtomicU64 {
        self.cell(gs, linear, (READ_TABLE, WRITE_TABLE), write)
    }

    fn tag(self, gs: usize, linear: u64, write: bool) -> &'static AtomicU64 {
        self.cell(gs, linear, (READ_TAGS, WRITE_TAGS), write)
    }

    /// The tag of the slot of `page` when it belongs to no page.
    fn no_tag(page: u64) -> u64 {
        if (page >> 12).is_multiple_of(HASHED_SLOTS) { 0x1000 } else { 0 }
    }

    fn set(self, gs: usize, page: u64, write: bool, value: u64) {
        self.entry(gs, page, write).store(value, Ordering::Release);
        if self == Form::Hashed {
            self.tag(gs, page, write).store(page.wrapping_neg(), Ordering::Release);
        }
    }

    /// Takes the entry of `page` away; 0: there is none.
    fn take(self, gs: usize, page: u64, write: bool) -> u64 {
        let known =
            self == Form::Flat || self.tag(gs, page, write).load(Ordering::Acquire) == page.wrapping_neg();
        let entry = if known { self.entry(gs, page, write).load(Ordering::Acquire) } else { 0 };
        if entry != 0 {
            self.clear(gs, page, write);
        }
        entry
    }

    fn clear(self, gs: usize, page: u64, write: bool) {
        match self {
            Form::Flat => self.entry(gs, page, write).store(0, Ordering::Release),
            Form::Hashed => {
                let (order, none) = (Ordering::SeqCst, Form::no_tag(page));
                let _ = self.tag(gs, page, write).compare_exchange(page.wrapping_neg(), none, order, order);
            }
        }
    }

    /// Whether there is an entry in the place of `page`, other than `value`.
    fn differs(self, gs: usize, page: u64, write: bool, value: u64) -> bool {
        let entry = self.entry(gs, page, write).load(Ordering::Relaxed);
        entry != 0 && entry != value
    }

    /// Whether the write entry of `linear` (a page) leads to `host`.
    pub fn writes(self, gs: usize, linear: u64, host: usize) -> bool {
        self.entry(gs, linear, true).load(Ordering::SeqCst) == entry_value(linear, host)
    }

    /// Drops the write entry of `linear` in a view if it leads to `host`.
    pub fn protect(self, gs: usize, linear: u64, host: usize) {
        let page = linear & !0xfff;
        let value = entry_value(page, host);
        let entry = self.entry(gs, page, true);
        match self {
            Form::Flat => {
                let _ = entry.compare_exchange(value, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
            Form::Hashed if entry.load(Ordering::SeqCst) == value => self.clear(gs, page, true),
            Form::Hashed => {}
        }
    }
}

/// What an entry for `page` holds that leads to `host`.
fn entry_value(page: u64, host: usize) -> u64 {
    (host as u64).wrapping_sub(page).wrapping_add(1)
}

/// One privilege view.
struct Space {
    form: Form,
    /// The whole reservation.
    start: usize,
    gs: usize,
    /// What is known: of pages that are not global, and of those that are.
    logs: [Log; 2],
}

/// What a flush has to undo. Entries may stand here more than once, or be gone already.
#[derive(Default)]
struct Log {
    pages: Vec<u64>,
    /// Code map slots and indirect branches that were set.
    code: Vec<u32>,
    branches: Vec<u32>,
}

impl Log {
    fn forget_code(&mut self, gs: usize, unknown: u64) {
        for slot in self.code.drain(..) {
            code_slot(gs, slot).store(0, Ordering::Release);
        }
        for slot in self.branches.drain(..) {
            branch_slot(gs, slot).store(unknown, Ordering::Release);
        }
    }
}

impl Space {
    /// (What is not there need not be written: most of the tables is never touched.)
    fn forget_page(&self, page: u64) {
        for write in [false, true] {
            if self.form == Form::Hashed || self.form.entry(self.gs, page, write).load(Ordering::Relaxed) != 0
            {
                self.form.clear(self.gs, page, write);
            }
        }
    }

    /// Forgets the code of `page`, and with it other branches of the same slots.
    fn forget_code_of(&self, page: u64, unknown: u64) {
        code_slot(self.gs, map_slot(page)).store(0, Ordering::Release);
        let first = page as u32 & 0xf000;
        for slot in first..first + 0x1000 {
            branch_slot(self.gs, slot).store(unknown, Ordering::Release);
        }
    }
}

/// Bytes of the common large page, and of the largest.
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;

/// The tables of one vCPU.
pub struct Tables {
    spaces: [Space; VIEWS],
    state: usize,
    size: usize,
    /// Where indirect branches without an entry go.
    unknown: u64,
    /// Linear pages whose code or branches are (or were) known in any view.
    code_pages: Mixed<u64, ()>,
    /// Regions of [`LARGE`] bytes with pieces of large pages.
    large: Mixed<u64, ()>,
    /// Likewise for larger pages.
    huge: Mixed<u64, ()>,
    contexts: Contexts,
    pub fills: u64,
    pub flushes: u64,
    /// Counts flushes of any kind.
    pub epoch: u64,
    pub gone: Gone,
}

impl Tables {
    pub fn new(form: Form, unknown: usize) -> Result<Tables> {
        let what = "cannot reserve address space for translation tables";
        let os = |error: rustix::io::Errno| {
            Failure::os(what, &error.into()).hint("-accel interpreter needs none; or raise RLIMIT_AS")
        };
        let fd = memfd_create("ryokan-vcpu", MemfdFlags::CLOEXEC).map_err(os)?;
        ftruncate(&fd, STATE_SIZE as u64).map_err(os)?;
        let (below, above) = form.extent();
        let size = 2 * GUARD + below + above;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let space = || -> rustix::io::Result<Space> {
            // SAFETY: new mappings at an address of the kernel's choice; the inner two replace
            // parts of this reservation, which is used by nobody yet.
            unsafe {
                let start = mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::empty(), flags)? as usize;
                let gs = start + GUARD + below;
                mmap_anonymous((start + GUARD) as *mut _, below + above, access, flags | MapFlags::FIXED)?;
                mmap(gs as *mut _, STATE_SIZE, access, MapFlags::SHARED | MapFlags::FIXED, &fd, 0)?;
                Ok(Space { form, start, gs, logs: Default::default() })
            }
        };
        let spaces = [space().map_err(os)?, space().map_err(os)?, space().map_err(os)?];
        let state = spaces[0].gs;
        let mut tables = Tables {
            spaces,
            state,
            size,
            unknown: unknown as u64,
            code_pages: Mixed::default(),
            large: Mixed::default(),
            huge: Mixed::default(),
            contexts: Contexts::default(),
            fills: 0,
            flushes: 0,
            epoch: 0,
            gone: Gone::default(),
        };
        tables.forget_code_everywhere();
        tables.prepare_slots();
        for gs in tables.all_views() {
            // SAFETY: an aligned word of the view, which nobody else knows yet.
            unsafe { ((gs + SELF as usize) as *mut u64).write(gs as u64) };
        }
        if form == Form::Hashed {
            for space in &tables.spaces {
                for write in [false, true] {
                    form.tag(space.gs, 0, write).store(Form::no_tag(0), Ordering::Release);
                }
            }
        }
        Ok(tables)
    }

    pub fn state(&self) -> *mut State {
        self.state as *mut State
    }

    pub fn all_views(&self) -> impl Iterator<Item = usize> + '_ {
        self.spaces.iter().map(|space| space.gs)
    }

    /// The GS base of a view.
    pub fn gs(&self, view: View) -> usize {
        self.spaces[view as usize].gs
    }

    /// Makes the page at `linear` known.
    pub fn fill(&mut self, view: View, linear: u64, host: usize, writable: bool, global: bool) {
        let page = linear & !0xfff;
        let value = entry_value(page, host);
        let space = &mut self.spaces[view as usize];
        // The guest has changed its tables and need not have said so.
        if [false, true].iter().any(|&write| space.form.differs(space.gs, page, write, value)) {
            self.gone.note(page, 4096);
        }
        space.form.set(space.gs, page, false, value);
        if writable {
            space.form.set(space.gs, page, true, value);
        }
        space.logs[usize::from(global)].pages.push(page);
        if global {
            self.contexts.note_mixed(page);
        }
        self.fills += 1;
    }

    /// The host address of `linear`, if its page is known.
    fn host_address(&self, view: View, linear: u64) -> Option<u64> {
        let (form, gs) = (self.spaces[view as usize].form, self.gs(view));
        let page = linear & !0xfff;
        let canonical = (linear << 16) as i64 >> 16 == linear as i64;
        let tagged =
            form == Form::Flat || form.tag(gs, page, false).load(Ordering::Acquire) == page.wrapping_neg();
        let entry = form.entry(gs, page, false).load(Ordering::Acquire);
        (canonical && tagged && entry != 0).then(|| linear.wrapping_add(entry - 1))
    }

    /// Two bytes at `linear`, if their page is known.
    pub fn peek(&self, view: View, linear: u64) -> Option<u16> {
        if linear & 0xfff == 0xfff {
            return None;
        }
        let at = self.host_address(view, linear)? as *const [u8; 2];
        // SAFETY: an entry leads to a page of guest RAM, which lives as long as the machine;
        // both bytes are in it. Other vCPUs may be writing there: the read is volatile.
        Some(u16::from_le_bytes(unsafe { std::ptr::read_volatile(at) }))
    }

    /// Words at `linear`, if they are aligned, within one page, and that page is known.
    pub fn peek_words<const N: usize>(&self, view: View, linear: u64) -> Option<[u64; N]> {
        if linear & 7 != 0 || (linear & 0xfff) as usize > 4096 - 8 * N {
            return None;
        }
        let at = self.host_address(view, linear)? as *mut u64;
        // SAFETY: an entry leads to a page of guest RAM, which lives as long as the machine; the
        // words are aligned and in it. Others may be writing there: the accesses are atomic.
        Some(std::array::from_fn(|n| unsafe { AtomicU64::from_ptr(at.add(n)) }.load(Ordering::Acquire)))
    }

    /// The page of `linear` is a piece of a large one.
    pub fn note_large(&mut self, linear: u64, size: u64) {
        if size > LARGE {
            self.huge.insert(linear & !(HUGE - 1), ());
        } else {
            self.large.insert(linear & !(LARGE - 1), ());
        }
    }

    /// Drops everything, or everything but global pages of the present address space.
    pub fn flush(&mut self, globals_too: bool) {
        self.flushes += 1;
        self.epoch += 1;
        self.gone.all = true;
        for space in &mut self.spaces {
            let (form, gs) = (space.form, space.gs);
            for log in &mut space.logs[..1 + usize::from(globals_too)] {
                for page in log.pages.drain(..) {
                    form.clear(gs, page, false);
                    form.clear(gs, page, true);
                }
                log.forget_code(gs, self.unknown);
            }
        }
        self.contexts.forget_mixed();
        if globals_too {
            self.contexts.forget_others();
            self.code_pages.clear();
            self.large.clear();
            self.huge.clear();
        }
    }

    /// INVLPG.
    pub fn flush_page(&mut self, linear: u64) {
        self.epoch += 1;
        if self.huge.contains_key(&(linear & !(HUGE - 1))) {
            return self.flush(true);
        }
        let large = linear & !(LARGE - 1);
        let (first, count) =
            if self.large.remove(&large).is_some() { (large, LARGE / 4096) } else { (linear & !0xfff, 1) };
        self.gone.note(first, 4096 * count);
        for page in (0..count).map(|n| first + 4096 * n) {
            let has_code = self.code_pages.remove(&page).is_some();
            self.contexts.note_mixed(page);
            if has_code {
                self.contexts.note_code_flush();
            }
            for space in &self.spaces {
                space.forget_page(page);
                if has_code {
                    space.forget_code_of(page, self.unknown);
                }
            }
        }
        self.trim();
    }

    /// INVLPG of a page without code that is no piece of a large one. `false`: it is another.
    pub fn flush_plain_page(&mut self, linear: u64) -> bool {
        let page = linear & !0xfff;
        let is_piece = self.huge.contains_key(&(linear & !(HUGE - 1)))
            || self.large.contains_key(&(linear & !(LARGE - 1)));
        if is_piece || self.code_pages.contains_key(&page) {
            return false;
        }
        self.epoch += 1;
        self.gone.note(page, 4096);
        self.contexts.note_mixed(page);
        for space in &self.spaces {
            space.forget_page(page);
        }
        self.trim();
        true
    }

    /// Keeps the logs from growing without bound under INVLPG.
    fn trim(&mut self) {
        if self.spaces.iter().flat_map(|space| &space.logs).any(|log| log.pages.len() > 1 << 16) {
            self.flush(true);
        }
        if self.code_pages.len() > 1 << 14 {
            self.forget_code();
        }
    }

    /// The pair `id` is what the page of `linear` leads to now.
    pub fn set_code(&mut self, view: View, linear: u64, id: u32, global: bool) {
        let space = &mut self.spaces[view as usize];
        let log = &mut space.logs[usize::from(global)];
        let slot = map_slot(linear);
        let cell = code_slot(space.gs, slot);
        if cell.load(Ordering::Relaxed) != id {
            cell.store(id, Ordering::Release);
            log.code.push(slot);
            self.code_pages.insert(linear & !0xfff, ());
            tidy(&mut log.code);
        }
    }

    /// Indirect branches to `rip` go to `host`.
    pub fn set_branch(&mut self, view: View, rip: u64, host: usize, global: bool) {
        let space = &mut self.spaces[view as usize];
        let log = &mut space.logs[usize::from(global)];
        let slot = (rip & 0xffff) as u32;
        branch_slot(space.gs, slot).store(host as u64, Ordering::Release);
        log.branches.push(slot);
        self.code_pages.insert(rip & !0xfff, ());
        tidy(&mut log.branches);
    }

    /// Forgets branches and code pages of all views.
    pub fn forget_code(&mut self) {
        self.code_pages.clear();
        self.contexts.forget_code();
        for space in &mut self.spaces {
            for log in &mut space.logs {
                log.forget_code(space.gs, self.unknown);
            }
        }
    }

    fn forget_code_everywhere(&mut self) {
        for space in &self.spaces {
            for slot in 0..INDIRECT_SLOTS {
                branch_slot(space.gs, slot as u32).store(self.unknown, Ordering::Release);
            }
        }
    }
}

/// Drops repetitions from a log of slots before it grows large.
fn tidy(log: &mut Vec<u32>) {
    if log.len() > 1 << 17 {
        log.sort_unstable();
        log.dedup();
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for space in &self.spaces {
            // SAFETY: the reservation made in `new`; the vCPU is gone and its thread does not
            // run translated code any more.
            let _ = unsafe { rustix::mm::munmap(space.start as *mut _, self.size) };
        }
    }
}

/// The code map slot of a linear address.
pub fn map_slot(linear: u64) -> u32 {
    let page = linear >> 12;
    ((page ^ page >> 16) as u32) & (CODE_MAP_SLOTS as u32 - 1)
}

fn code_slot(gs: usize, slot: u32) -> &'static AtomicU32 {
    // SAFETY: an aligned word of the view's code map, which lives as long as the vCPU.
    unsafe {
        AtomicU32::from_ptr((gs + CODE_MAP as usize + 4 * (slot as usize % CODE_MAP_SLOTS)) as *mut u32)
    }
}

/// Whether something may be asked of the vCPU, for its translated code; any thread may set it.
pub fn asked(gs: usize) -> &'static AtomicU32 {
    // SAFETY: an aligned word of the vCPU's state pages, which live as long as the vCPU.
    unsafe { AtomicU32::from_ptr((gs + ASKED as usize) as *mut u32) }
}

/// The table entry of an indirect branch, also for other threads.
pub fn branch_slot(gs: usize, slot: u32) -> &'static AtomicU64 {
    // SAFETY: an aligned word of the view's branch table, which lives as long as the vCPU.
    unsafe {
        AtomicU64::from_ptr((gs + INDIRECT as usize + 8 * (slot as usize % INDIRECT_SLOTS)) as *mut u64)
    }
}

#[cfg(test)]
mod tests;
