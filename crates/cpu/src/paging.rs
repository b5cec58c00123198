//! Page walks (SDM vol. 3A ch. 4), the same for every engine.

use crate::CpuState;
use crate::fault::{Fault, page_fault};
use memory::{FlatView, HostPage};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const LARGE: u64 = 0x80;
const GLOBAL: u64 = 0x100;
const NX: u64 = 1 << 63;

pub const CR0_PE: u64 = 1;
pub const CR0_MP: u64 = 2;
pub const CR0_EM: u64 = 4;
pub const CR0_TS: u64 = 8;
pub const CR0_NE: u64 = 0x20;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_AM: u64 = 1 << 18;
pub const CR0_PG: u64 = 1 << 31;
pub const CR4_VME: u64 = 1;
pub const CR4_PVI: u64 = 2;
pub const CR4_TSD: u64 = 4;
pub const CR4_DE: u64 = 8;
pub const CR4_PSE: u64 = 0x10;
pub const CR4_PAE: u64 = 0x20;
pub const CR4_PGE: u64 = 0x80;
pub const CR4_OSFXSR: u64 = 0x200;
pub const CR4_OSXMMEXCPT: u64 = 0x400;
pub const CR4_UMIP: u64 = 0x800;
pub const CR4_FSGSBASE: u64 = 1 << 16;
pub const CR4_PCIDE: u64 = 1 << 17;
pub const CR4_OSXSAVE: u64 = 1 << 18;
pub const CR4_SMEP: u64 = 1 << 20;
pub const CR4_SMAP: u64 = 1 << 21;
pub const EFER_SCE: u64 = 1;
pub const EFER_LME: u64 = 0x100;
pub const EFER_LMA: u64 = 0x400;
pub const EFER_NXE: u64 = 0x800;

/// What a page walk needs of the processor's state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paging {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// ANDed to every physical address (A20 gate).
    pub a20_mask: u64,
    /// MAXPHYADDR.
    pub physical_bits: u8,
}

/// The kind of access a walk is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub write: bool,
    pub execute: bool,
    /// At CPL 3 (and not an implicit supervisor access).
    pub user: bool,
    /// SMAP does not apply: explicit supervisor access with RFLAGS.AC set.
    pub smap_off: bool,
}

impl Access {
    pub const fn read(user: bool) -> Self {
        Access { write: false, execute: false, user, smap_off: false }
    }
    pub const fn write(user: bool) -> Self {
        Access { write: true, execute: false, user, smap_off: false }
    }
    pub const fn execute(user: bool) -> Self {
        Access { write: false, execute: true, user, smap_off: false }
    }
}

/// Where a linear page leads and what may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest physical address of the 4 KiB page.
    pub page: u64,
    /// A write through this mapping is allowed for the access's privilege *and* the dirty
    /// flag is already set.
    pub write_now: bool,
    pub user: bool,
    pub global: bool,
    /// Mapped size in bytes (4 KiB to 1 GiB; 0 when paging is off).
    pub size: u64,
}

impl Paging {
    pub fn of(state: &CpuState, physical_bits: u8) -> Self {
        Paging {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            a20_mask: if state.a20 { u64::MAX } else { !(1 << 20) },
            physical_bits,
        }
    }

    pub fn enabled(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }

    /// Walks for `access`, setting accessed and dirty flags; faults as the processor does.
    pub fn walk(&self, view: &FlatView, linear: u64, access: Access) -> Result<Mapping, Fault> {
        if !self.enabled() {
            let page = linear & 0xffff_f000 & self.a20_mask;
            return Ok(Mapping { page, write_now: true, user: true, global: false, size: 0 });
        }
        let (walk, leaf) = loop {
            let mut walk = Walk::new(self, view, linear);
            let leaf = walk.descend().map_err(|reserved| self.fault(linear, access, reserved))?;
            self.check(&leaf, access).map_err(|()| {
                let fault = self.fault(linear, access, false);
                Fault::page(fault.error.unwrap_or(0) | page_fault::PRESENT, linear)
            })?;
            if walk.mark(access.write).is_ok() {
                break (walk, leaf);
            }
        };
        Ok(Mapping {
            page: leaf.page & self.a20_mask,
            write_now: (access.write || walk.dirty())
                && self.check(&leaf, Access { write: true, execute: false, ..access }).is_ok(),
            user: leaf.user,
            global: leaf.global && self.cr4 & CR4_PGE != 0,
            size: leaf.size,
        })
    }

    /// The physical address behind `linear`, whatever the privilege, with no side effect.
    pub fn peek(&self, view: &FlatView, linear: u64) -> Option<u64> {
        if !self.enabled() {
            return Some(linear & 0xffff_ffff & self.a20_mask);
        }
        if self.efer & EFER_LMA != 0 && (linear as i64) << 16 >> 16 != linear as i64 {
            return None;
        }
        let leaf = Walk::new(self, view, linear).descend().ok()?;
        Some(leaf.page & self.a20_mask | linear & 0xfff)
    }

    fn check(&self, leaf: &Leaf, access: Access) -> Result<(), ()> {
        let allowed = if access.user {
            leaf.user && (!access.write || leaf.writable) && !(access.execute && leaf.nx)
        } else if access.execute {
            !(leaf.nx || leaf.user && self.cr4 & CR4_SMEP != 0)
        } else {
            (!access.write || leaf.writable || self.cr0 & CR0_WP == 0)
                && (!leaf.user || self.cr4 & CR4_SMAP == 0 || access.smap_off)
        };
        if allowed { Ok(()) } else { Err(()) }
    }

    fn fault(&self, linear: u64, access: Access, reserved: bool) -> Fault {
        let mut code = 0;
        if access.write {
            code |= page_fault::WRITE;
        }
        if access.user {
            code |= page_fault::USER;
        }
        if reserved {
            code |= page_fault::RESERVED | page_fault::PRESENT;
        }
        let nx_shown = self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0;
        if access.execute && (nx_shown || self.cr4 & CR4_SMEP != 0) {
            code |= page_fault::FETCH;
        }
        Fault::page(code, linear)
    }
}

struct Leaf {
    page: u64,
    writable: bool,
    user: bool,
    nx: bool,
    global: bool,
    size: u64,
}

/// One entry met on the way: where it lies and what was read.
#[derive(Clone, Copy)]
struct Entry {
    page: HostPage,
    offset: usize,
    wide: bool,
    value: u64,
    physical: u64,
    writable: bool,
}

struct Walk<'a> {
    regs: &'a Paging,
    view: &'a FlatView,
    linear: u64,
    entries: [Option<Entry>; 4],
    count: usize,
    /// Entries 0 and 1 of a PAE walk (PDPTEs) have no accessed flag.
    skip_marks: usize,
}

impl<'a> Walk<'a> {
    fn new(regs: &'a Paging, view: &'a FlatView, linear: u64) -> Self {
        Walk { regs, view, linear, entries: [None; 4], count: 0, skip_marks: 0 }
    }

    /// `Err(true)`: a reserved bit was set; `Err(false)`: not present.
    fn descend(&mut self) -> Result<Leaf, bool> {
        if self.regs.cr4 & CR4_PAE == 0 {
            self.legacy()
        } else if self.regs.efer & EFER_LMA == 0 {
            self.pae()
        } else {
            let table = self.regs.cr3 & self.address_mask();
            self.levels(table, 4, Rights { writable: true, user: true, nx: false })
        }
    }

    fn address_mask(&self) -> u64 {
        ((1 << self.regs.physical_bits.clamp(32, 52)) - 1) & !0xfff
    }

    fn read(&mut self, address: u64, wide: bool) -> Result<u64, bool> {
        let address = address & self.regs.a20_mask;
        let (block, offset, writable) = self.view.memory_page(address).ok_or(false)?;
        let page = block.page(offset);
        let at = (address & 0xfff) as usize;
        let value = if wide { page.load::<u64>(at) } else { u64::from(page.load::<u32>(at)) };
        if let Some(slot) = self.entries.get_mut(self.count) {
            *slot = Some(Entry { page, offset: at, wide, value, physical: address, writable });
            self.count += 1;
        }
        if value & PRESENT == 0 { Err(false) } else { Ok(value) }
    }

    fn levels(&mut self, mut table: u64, top: u32, mut rights: Rights) -> Result<Leaf, bool> {
        let mask = self.address_mask();
        let mut reserved = 0x000f_ffff_ffff_f000 & !mask;
        if self.regs.efer & EFER_NXE == 0 {
            reserved |= NX;
        }
        if top < 4 {
            // PAE entries: bits 62:52 are reserved too.
            reserved |= 0x7ff0_0000_0000_0000;
        }
        let mut level = top;
        loop {
            let shift = 3 + 9 * level;
            let value = self.read(table + ((self.linear >> shift) & 0x1ff) * 8, true)?;
            let large = level > 1 && value & LARGE != 0;
            if value & reserved != 0 || (level == 4 && large) {
                return Err(true);
            }
            rights.narrow(value);
            if level == 1 || large {
                let size = 1u64 << shift;
                if value & mask & (size - 1) & !0x1fff != 0 && large {
                    return Err(true);
                }
                let page = (value & mask & !(size - 1)) | (self.linear & (size - 1) & !0xfff);
                return Ok(rights.leaf(page, value, size));
            }
            table = value & mask;
            level -= 1;
        }
    }

    fn pae(&mut self) -> Result<Leaf, bool> {
        let table = self.regs.cr3 & 0xffff_ffe0;
        let value = self.read(table + ((self.linear >> 30) & 3) * 8, true)?;
        self.skip_marks = 1;
        if value & ((0x7fff << 48) | NX | 0x1e6) & !self.address_mask() != 0 {
            return Err(true);
        }
        let linear = self.linear;
        self.linear = linear & 0xffff_ffff;
        let leaf =
            self.levels(value & self.address_mask(), 2, Rights { writable: true, user: true, nx: false });
        self.linear = linear;
        leaf
    }

    fn legacy(&mut self) -> Result<Leaf, bool> {
        let linear = self.linear & 0xffff_ffff;
        let mut rights = Rights { writable: true, user: true, nx: false };
        let value = self.read((self.regs.cr3 & 0xffff_f000) + (linear >> 22) * 4, false)?;
        rights.narrow(value);
        if value & LARGE != 0 && self.regs.cr4 & CR4_PSE != 0 {
            if value & (1 << 21) != 0 {
                return Err(true);
            }
            let base = (value & 0xffc0_0000) | ((value >> 13) & 0xff) << 32;
            return Ok(rights.leaf(base | (linear & 0x3f_f000), value, 1 << 22));
        }
        let value = self.read((value & 0xffff_f000) + ((linear >> 12) & 0x3ff) * 4, false)?;
        rights.narrow(value);
        Ok(rights.leaf(value & 0xffff_f000, value, 1 << 12))
    }

    fn dirty(&self) -> bool {
        self.count > 0 && self.entries[self.count - 1].is_some_and(|e| e.value & DIRTY != 0)
    }

    /// Sets A in every entry and, for writes, D in the last one. `Err`: an entry changed
    /// under the walk, which must be made again.
    fn mark(&mut self, write: bool) -> Result<(), ()> {
        for i in self.skip_marks..self.count {
            let Some(entry) = self.entries[i] else { continue };
            let want = ACCESSED | if write && i + 1 == self.count { DIRTY } else { 0 };
            if entry.value & want == want || !entry.writable {
                continue;
            }
            let mut seen = entry.value;
            loop {
                let done = if entry.wide {
                    entry.page.compare_exchange::<u64>(entry.offset, seen, seen | want)
                } else {
                    let (now, done) =
                        entry.page.compare_exchange::<u32>(entry.offset, seen as u32, (seen | want) as u32);
                    (u64::from(now), done)
                };
                if done.1 {
                    break;
                }
                if (done.0 ^ entry.value) & !(ACCESSED | DIRTY) != 0 {
                    return Err(());
                }
                seen = done.0;
            }
            if let Some((block, offset, _)) = self.view.memory_page(entry.physical) {
                block.note_write(offset + entry.offset as u64, 8);
            }
        }
        Ok(())
    }
}

struct Rights {
    writable: bool,
    user: bool,
    nx: bool,
}

impl Rights {
    fn narrow(&mut self, value: u64) {
        self.writable &= value & WRITABLE != 0;
        self.user &= value & USER != 0;
        self.nx |= value & NX != 0;
    }

    fn leaf(&self, page: u64, value: u64, size: u64) -> Leaf {
        Leaf {
            page,
            writable: self.writable,
            user: self.user,
            nx: self.nx,
            global: value & GLOBAL != 0,
            size,
        }
    }
}
