//! Loads and stores: the inline TLB hit, and the slow path with walks, MMIO, page
//! crossings, watches and breakpoints.

use crate::core::Core;
use crate::flags::mask;
use crate::op::{Op, Stop};
use crate::tlb::{View, data_index};
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::Access;
use cpu::state::seg;
use memory::{HostPage, RamBlock};

/// What lies behind a linear address.
#[derive(Clone, Copy)]
pub enum Place {
    Ram {
        page: HostPage,
        block: RamBlock,
        offset: u64,
    },
    /// Not plain memory for this access: the physical address.
    Io(u64),
}

#[inline(always)]
pub fn page_load(page: HostPage, offset: usize, size: usize) -> u64 {
    match size {
        1 => u64::from(page.load::<u8>(offset)),
        2 => u64::from(page.load::<u16>(offset)),
        4 => u64::from(page.load::<u32>(offset)),
        _ => page.load::<u64>(offset),
    }
}

#[inline(always)]
pub fn page_store(page: HostPage, offset: usize, size: usize, value: u64) {
    match size {
        1 => page.store(offset, value as u8),
        2 => page.store(offset, value as u16),
        4 => page.store(offset, value as u32),
        _ => page.store(offset, value),
    }
}

impl Core {
    // ---- fast path, for handlers: `None`/`false` means self.fault (or self.smc) is set ----

    #[inline(always)]
    pub fn load(&mut self, linear: u64, size: usize, op: &Op) -> Option<u64> {
        let entry = &self.tlb.read[data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 {
            return Some(page_load(entry.page, offset as usize, size));
        }
        self.load_slow(linear, size, op.seg)
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, linear: u64, size: usize, segment: u8) -> Option<u64> {
        let result = self.check_canonical(linear, size, segment).and_then(|()| self.read(linear, size));
        result.map_err(|fault| self.fault = fault).ok()
    }

    /// `false`: the instruction faulted, or (with [`Core::smc`]) must end its block.
    #[inline(always)]
    pub fn store(&mut self, linear: u64, size: usize, value: u64, op: &Op) -> bool {
        let entry = &self.tlb.write[data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 {
            page_store(entry.page, offset as usize, size, value);
            if entry.watch.load(std::sync::atomic::Ordering::Relaxed) == 0 {
                return true;
            }
            return self.store_watched(linear, size);
        }
        self.store_slow(linear, size, value, op.seg)
    }

    #[cold]
    #[inline(never)]
    fn store_watched(&mut self, linear: u64, size: usize) -> bool {
        self.note_stored(linear, size);
        !self.smc
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, linear: u64, size: usize, value: u64, segment: u8) -> bool {
        let result =
            self.check_canonical(linear, size, segment).and_then(|()| self.write(linear, size, value));
        match result {
            Ok(()) => !self.smc,
            Err(fault) => {
                self.fault = fault;
                false
            }
        }
    }

    /// The value at `linear` which the instruction will write back: write permission first.
    #[inline(always)]
    pub fn load_rmw(&mut self, linear: u64, size: usize, op: &Op) -> Option<u64> {
        let entry = &self.tlb.write[data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 {
            return Some(page_load(entry.page, offset as usize, size));
        }
        self.load_rmw_slow(linear, size, op.seg)
    }

    #[cold]
    #[inline(never)]
    fn load_rmw_slow(&mut self, linear: u64, size: usize, segment: u8) -> Option<u64> {
        let result = self.check_canonical(linear, size, segment).and_then(|()| self.read_rmw(linear, size));
        result.map_err(|fault| self.fault = fault).ok()
    }

    fn check_canonical(&self, linear: u64, size: usize, segment: u8) -> Result<(), Fault> {
        let last = linear.wrapping_add(size as u64 - 1);
        let ok = if self.is_64bit() {
            Core::canonical(linear) && Core::canonical(last)
        } else {
            // The end of a segment from 0 to 4 GiB.
            last <= 0xffff_ffff || self.sc[usize::from(segment & 7)].base != 0
        };
        if ok { Ok(()) } else { Err(canonical_fault(segment)) }
    }

    /// How a handler ends whose access was refused.
    #[cold]
    #[inline(never)]
    pub fn refused(&mut self, op: &Op) -> Stop {
        self.smc = false;
        self.rip = op.pc;
        self.budget += i64::from(op.left);
        Stop::Fault
    }

    /// How a handler ends whose store (already complete) hit a watched code page.
    #[cold]
    #[inline(never)]
    pub fn stored_code(&mut self, op: &Op) -> Stop {
        self.smc = false;
        self.budget += i64::from(op.left) - 1;
        self.rip = op.next_pc();
        if !self.is_64bit() {
            self.rip &= if self.mode & 3 == 1 { 0xffff_ffff } else { 0xffff };
        }
        Stop::Resolve
    }

    // ---- generic path ----

    /// The linear address of an access, after the segment checks.
    pub fn linear(&self, segment: u8, offset: u64, size: usize, write: bool) -> Result<u64, Fault> {
        let s = &self.sc[usize::from(segment & 7)];
        let linear = s.base.wrapping_add(offset);
        if self.is_64bit() {
            if Core::canonical(linear) && Core::canonical(linear.wrapping_add(size as u64 - 1)) {
                return Ok(linear);
            }
            return Err(canonical_fault(segment));
        }
        let allowed = if write { s.writable } else { s.readable };
        let last = offset.wrapping_add(size as u64 - 1);
        if !allowed || offset < s.low || last > s.high || last < offset {
            return Err(canonical_fault(segment));
        }
        Ok(linear & 0xffff_ffff)
    }

    pub fn access(&self, write: bool) -> Access {
        Access {
            write,
            execute: false,
            user: self.view == View::User,
            smap_off: self.view == View::SupervisorAc,
        }
    }

    /// Translates for data and fills the TLB where the page is plain memory.
    pub fn place(&mut self, linear: u64, write: bool) -> Result<Place, Fault> {
        let mapping = self.paging.walk(&self.memory_view, linear, self.access(write))?;
        let physical = mapping.page | linear & 0xfff;
        if self.bus.apic_offset(mapping.page).is_some() {
            return Ok(Place::Io(physical));
        }
        let Some((block, offset, writable)) = self.memory_view.memory_page(mapping.page) else {
            return Ok(Place::Io(physical));
        };
        if write && !writable {
            return Ok(Place::Io(physical));
        }
        let page = block.page(offset);
        let tag = linear & !0xfff;
        if mapping.size > 4096 {
            self.tlb.note_large(tag, mapping.size);
        }
        let watched = self.watchpoints.iter().any(|w| w.overlaps(tag, 4096));
        if !watched {
            if !write {
                self.tlb.add_read(tag, page, mapping.global);
            }
            if mapping.write_now && writable {
                self.tlb.add_write(tag, page, block.watch_cell(offset), mapping.global);
            }
        }
        Ok(Place::Ram { page, block, offset: offset + (linear & 0xfff) })
    }

    fn check_alignment(&self, linear: u64, size: usize) -> Result<(), Fault> {
        if self.ac_on && self.view == View::User && size.is_power_of_two() && linear & (size as u64 - 1) != 0
        {
            return Err(Fault::coded(vector::AC, 0));
        }
        Ok(())
    }

    pub fn hit_watchpoints(&mut self, linear: u64, size: usize, write: bool) {
        for w in &self.watchpoints {
            if w.overlaps(linear, size as u64) && (write || !w.write_only) {
                if w.dr6 == 0 {
                    self.debug_hit = true;
                } else {
                    self.pending_db |= w.dr6;
                }
            }
        }
    }

    fn note_access(&mut self, linear: u64, size: usize, write: bool) {
        if !self.watchpoints.is_empty() {
            self.hit_watchpoints(linear, size, write);
        }
    }

    /// Reads 1, 2, 4 or 8 bytes at a linear address through the active view.
    pub fn read(&mut self, linear: u64, size: usize) -> Result<u64, Fault> {
        self.check_alignment(linear, size)?;
        let entry = &self.tlb.read[data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 {
            return Ok(page_load(entry.page, offset as usize, size));
        }
        if (linear & 0xfff) + size as u64 > 4096 {
            let first = 4096 - (linear & 0xfff) as usize;
            let second = self.wrap(linear.wrapping_add(first as u64));
            let low = self.read_bytes_within(linear, first)?;
            let high = self.read_bytes_within(second, size - first)?;
            self.note_access(linear, size, false);
            return Ok(low | high << (first * 8));
        }
        self.note_access(linear, size, false);
        match self.place(linear, false)? {
            Place::Ram { page, .. } => Ok(page_load(page, (linear & 0xfff) as usize, size)),
            Place::Io(physical) => {
                let value = self.bus.load(physical, size as u8);
                self.after_io();
                Ok(value & mask(size))
            }
        }
    }

    /// Up to 8 bytes of any count within one page, as a little-endian number.
    fn read_bytes_within(&mut self, linear: u64, count: usize) -> Result<u64, Fault> {
        let place = self.place(linear, false)?;
        let mut value = 0;
        for i in 0..count {
            let byte = match place {
                Place::Ram { page, .. } => u64::from(page.load::<u8>((linear & 0xfff) as usize + i)),
                Place::Io(physical) => self.bus.load(physical + i as u64, 1) & 0xff,
            };
            value |= byte << (8 * i);
        }
        self.after_io();
        Ok(value)
    }

    /// Writes 1, 2, 4 or 8 bytes; nothing is written if any byte faults.
    pub fn write(&mut self, linear: u64, size: usize, value: u64) -> Result<(), Fault> {
        self.check_alignment(linear, size)?;
        if (linear & 0xfff) + size as u64 > 4096 {
            let first = 4096 - (linear & 0xfff) as usize;
            let second = self.wrap(linear.wrapping_add(first as u64));
            let places = (self.place(linear, true)?, self.place(second, true)?);
            self.write_bytes_at(places.0, value, first);
            self.write_bytes_at(places.1, value >> (first * 8), size - first);
            self.note_access(linear, size, true);
            return Ok(());
        }
        let entry = &self.tlb.write[data_index(linear)];
        if entry.tag == linear & !0xfff {
            page_store(entry.page, (linear & 0xfff) as usize, size, value);
            if entry.watch.load(std::sync::atomic::Ordering::Relaxed) != 0 {
                self.note_stored(linear, size);
            }
            return Ok(());
        }
        match self.place(linear, true)? {
            Place::Ram { page, block, offset } => {
                page_store(page, (linear & 0xfff) as usize, size, value);
                self.note_write(block, offset, size);
            }
            Place::Io(physical) => {
                self.bus.store(physical, size as u8, value & mask(size));
                self.after_io();
            }
        }
        self.note_access(linear, size, true);
        Ok(())
    }

    fn write_bytes_at(&mut self, place: Place, value: u64, count: usize) {
        for i in 0..count {
            let byte = (value >> (8 * i)) as u8;
            match place {
                Place::Ram { page, offset, .. } => page.store((offset & 0xfff) as usize + i, byte),
                Place::Io(physical) => self.bus.store(physical + i as u64, 1, u64::from(byte)),
            }
        }
        match place {
            Place::Ram { block, offset, .. } => self.note_write(block, offset, count),
            Place::Io(_) => self.after_io(),
        }
    }

    /// Reads a value that the same instruction writes back: write permission is checked first.
    pub fn read_rmw(&mut self, linear: u64, size: usize) -> Result<u64, Fault> {
        self.check_alignment(linear, size)?;
        self.probe_write(linear, size)?;
        self.read(linear, size)
    }

    /// Faults as a write of `size` bytes would.
    pub fn probe_write(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        if self.tlb.write[data_index(linear)].tag != linear & !0xfff {
            self.place(linear, true)?;
        }
        if (linear & 0xfff) + size as u64 > 4096 {
            // CR2 is the first byte of the page that faults.
            let second = self.wrap((linear & !0xfff).wrapping_add(4096));
            self.place(second, true)?;
        }
        Ok(())
    }

    pub fn read_bytes(&mut self, linear: u64, to: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < to.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let count = (to.len() - done).min(4096 - (at & 0xfff) as usize);
            match self.place(at, false)? {
                Place::Ram { page, .. } => page.read((at & 0xfff) as usize, &mut to[done..done + count]),
                Place::Io(physical) => {
                    for i in 0..count {
                        to[done + i] = self.bus.load(physical + i as u64, 1) as u8;
                    }
                    self.after_io();
                }
            }
            done += count;
        }
        self.note_access(linear, to.len(), false);
        Ok(())
    }

    /// Writes all of `from` or nothing.
    pub fn write_bytes(&mut self, linear: u64, from: &[u8]) -> Result<(), Fault> {
        let mut done = 0;
        if (linear & 0xfff) as usize + from.len() > 4096 {
            while done < from.len() {
                let at = self.wrap(linear.wrapping_add(done as u64));
                self.place(at, true)?;
                done += 4096 - (at & 0xfff) as usize;
            }
        }
        done = 0;
        while done < from.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let count = (from.len() - done).min(4096 - (at & 0xfff) as usize);
            match self.place(at, true)? {
                Place::Ram { page, block, offset } => {
                    page.write((at & 0xfff) as usize, &from[done..done + count]);
                    self.note_write(block, offset, count);
                }
                Place::Io(physical) => {
                    for i in 0..count {
                        self.bus.store(physical + i as u64, 1, u64::from(from[done + i]));
                    }
                    self.after_io();
                }
            }
            done += count;
        }
        self.note_access(linear, from.len(), true);
        Ok(())
    }

    /// `old -> new` under a bus lock; `f` may run several times. Returns the old value.
    pub fn locked(&mut self, linear: u64, size: usize, mut f: impl FnMut(u64) -> u64) -> Result<u64, Fault> {
        self.check_alignment(linear, size)?;
        if (linear & 0xfff) + size as u64 > 4096 {
            let guard = self.bus_lock.clone();
            let _guard = guard.lock();
            let old = self.read_rmw(linear, size)?;
            self.write(linear, size, f(old))?;
            return Ok(old);
        }
        let Some((page, watch)) = self.page_to_write(linear)? else {
            let Place::Io(physical) = self.place(linear, true)? else { return Err(Fault::GP0) };
            let old = self.bus.load(physical, size as u8) & mask(size);
            self.bus.store(physical, size as u8, f(old) & mask(size));
            self.after_io();
            return Ok(old);
        };
        let at = (linear & 0xfff) as usize;
        let mut old = page_load(page, at, size);
        loop {
            let (seen, done) = exchange(page, at, size, old, f(old));
            if done {
                break;
            }
            old = seen;
        }
        self.watch_write(watch, linear, size);
        self.note_access(linear, size, true);
        Ok(old)
    }

    /// The page around `linear` for writing, if it is plain memory; give its watch cell to
    /// [`Core::watch_write`] after the write.
    #[inline]
    pub fn page_to_write(
        &mut self,
        linear: u64,
    ) -> Result<Option<(HostPage, &'static std::sync::atomic::AtomicU8)>, Fault> {
        let entry = &self.tlb.write[data_index(linear)];
        if entry.tag == linear & !0xfff {
            return Ok(Some((entry.page, entry.watch)));
        }
        Ok(match self.place(linear, true)? {
            Place::Ram { page, block, offset } => Some((page, block.watch_cell(offset))),
            Place::Io(_) => None,
        })
    }

    /// The page around `linear` for reading, if it is plain memory.
    #[inline]
    pub fn page_to_read(&mut self, linear: u64) -> Result<Option<HostPage>, Fault> {
        let entry = &self.tlb.read[data_index(linear)];
        if entry.tag == linear & !0xfff {
            return Ok(Some(entry.page));
        }
        Ok(match self.place(linear, false)? {
            Place::Ram { page, .. } => Some(page),
            Place::Io(_) => None,
        })
    }

    /// To be called after a write through [`Core::page_to_write`].
    #[inline]
    pub fn watch_write(&mut self, watch: &std::sync::atomic::AtomicU8, linear: u64, size: usize) {
        if watch.load(std::sync::atomic::Ordering::Relaxed) != 0 {
            self.note_stored(linear, size);
        }
    }

    #[inline]
    pub fn note_write(&mut self, block: RamBlock, offset: u64, size: usize) {
        let watch = block.watch(offset);
        if !watch.is_empty() {
            block.note_write(offset, size as u64);
            if watch.contains(memory::Watch::CODE) {
                self.smc = true;
            }
        }
    }

    /// A store through the write TLB hit a watched page.
    #[cold]
    pub fn note_stored(&mut self, linear: u64, size: usize) {
        if let Ok(Place::Ram { block, offset, .. }) = self.place(linear, true) {
            self.note_write(block, offset, size);
        }
    }

    /// After a port or MMIO access: the device may have changed the memory map.
    #[inline]
    pub fn after_io(&mut self) {
        if self.bus.memory.generation() != self.memory_view.generation {
            self.memory_map_changed();
        }
    }

    #[cold]
    pub fn memory_map_changed(&mut self) {
        self.memory_view = self.bus.memory.snapshot();
        self.flush_tlbs(true);
        self.slack += self.budget;
        self.budget = 0;
    }

    // ---- system structures: supervisor accesses whatever the CPL ----

    pub fn as_supervisor<T>(&mut self, f: impl FnOnce(&mut Core) -> Result<T, Fault>) -> Result<T, Fault> {
        let old = self.view;
        self.set_view(View::Supervisor);
        let result = f(self);
        self.set_view(old);
        result
    }

    pub fn read_system(&mut self, linear: u64, size: usize) -> Result<u64, Fault> {
        let linear = if self.long_mode() { linear } else { linear & 0xffff_ffff };
        if self.long_mode() && !Core::canonical(linear) {
            return Err(Fault::GP0);
        }
        self.as_supervisor(|core| core.read(linear, size))
    }

    pub fn write_system(&mut self, linear: u64, size: usize, value: u64) -> Result<(), Fault> {
        let linear = if self.long_mode() { linear } else { linear & 0xffff_ffff };
        self.as_supervisor(|core| core.write(linear, size, value))
    }
}

fn canonical_fault(segment: u8) -> Fault {
    if usize::from(segment) == seg::SS { Fault::SS0 } else { Fault::GP0 }
}

/// `lock cmpxchg` within a page.
pub fn exchange(page: HostPage, offset: usize, size: usize, old: u64, new: u64) -> (u64, bool) {
    match size {
        1 => wide(page.compare_exchange(offset, old as u8, new as u8)),
        2 => wide(page.compare_exchange(offset, old as u16, new as u16)),
        4 => wide(page.compare_exchange(offset, old as u32, new as u32)),
        _ => page.compare_exchange(offset, old, new),
    }
}

fn wide<T: memory::Scalar>((seen, done): (T, bool)) -> (u64, bool) {
    (seen.to_u64(), done)
}
