use crate::{Gpa, Handler, HostPage, PAGE_SIZE, RamBlock, SpaceKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What answers a range of addresses.
#[derive(Clone)]
pub enum Target {
    /// Plain memory, from byte `offset` of the block.
    Ram { block: RamBlock, offset: u64 },
    /// Memory that ignores writes.
    Rom { block: RamBlock, offset: u64 },
    /// Reads like memory, writes go to the handler (flash).
    RomDevice { block: RamBlock, offset: u64, handler: Arc<dyn Handler> },
    /// All accesses go to the handler, at `offset` plus the distance from the range's start.
    Io { handler: Arc<dyn Handler>, offset: u64 },
}

impl Target {
    pub(crate) fn advanced(&self, by: u64) -> Target {
        let mut target = self.clone();
        match &mut target {
            Target::Ram { offset, .. }
            | Target::Rom { offset, .. }
            | Target::RomDevice { offset, .. }
            | Target::Io { offset, .. } => *offset += by,
        }
        target
    }
}

/// A piece of the flat view: one target, no overlap with another piece.
#[derive(Clone)]
pub struct FlatRange {
    pub start: Gpa,
    /// Last address of the range (inclusive).
    pub last: Gpa,
    pub target: Target,
    /// The mapping's name, for `info mtree`.
    pub name: Arc<str>,
}

/// What an address space looks like at one moment: sorted, non-overlapping ranges.
#[derive(Default)]
pub struct FlatView {
    pub(crate) ranges: Vec<FlatRange>,
    pub(crate) kind: SpaceKind,
    pub(crate) unassigned: u64,
    /// Counts publications; an engine that sees another number drops what it derived.
    pub generation: u64,
    /// Index of the range that was found last (of memory: only RAM).
    pub(crate) hint: AtomicUsize,
}

impl FlatView {
    pub fn ranges(&self) -> &[FlatRange] {
        &self.ranges
    }

    /// The range that holds `address`.
    #[inline]
    pub fn find(&self, address: Gpa) -> Option<&FlatRange> {
        let hint = self.hint.load(Ordering::Relaxed);
        if let Some(range) =
            self.ranges.get(hint).filter(|range| range.start <= address && address <= range.last)
        {
            return Some(range);
        }
        self.search(address)
    }

    #[inline(never)]
    fn search(&self, address: Gpa) -> Option<&FlatRange> {
        let at = self.ranges.partition_point(|range| range.last < address);
        let found = self.ranges.get(at).filter(|range| range.start <= address)?;
        if self.kind == SpaceKind::Port || matches!(found.target, Target::Ram { .. }) {
            self.hint.store(at, Ordering::Relaxed);
        }
        Some(found)
    }

    /// The RAM page around `address` as (block, page-aligned offset in it), if all of the
    /// page is one piece of writable RAM.
    pub fn ram_page(&self, address: Gpa) -> Option<(RamBlock, u64)> {
        let (block, offset, writable) = self.memory_page(address)?;
        writable.then_some((block, offset))
    }

    /// Like [`FlatView::ram_page`] but also ROM; the flag tells whether writes go to memory.
    pub fn memory_page(&self, address: Gpa) -> Option<(RamBlock, u64, bool)> {
        let page = address & !(PAGE_SIZE - 1);
        let range = self.find(address).filter(|r| r.start <= page && r.last >= page | (PAGE_SIZE - 1))?;
        let (block, offset, writable) = match range.target {
            Target::Ram { block, offset } => (block, offset, true),
            Target::Rom { block, offset } | Target::RomDevice { block, offset, .. } => (block, offset, false),
            Target::Io { .. } => return None,
        };
        let offset = offset + (page - range.start);
        offset.is_multiple_of(PAGE_SIZE).then_some((block, offset, writable))
    }

    /// The host page around `address` if it is RAM or ROM.
    pub fn host_page(&self, address: Gpa) -> Option<HostPage> {
        self.memory_page(address).map(|(block, offset, _)| block.page(offset))
    }

    /// Whether all of a range is RAM or ROM: no handler and no hole.
    pub fn is_memory(&self, address: Gpa, len: u64) -> bool {
        let Some(last) = address.checked_add(len.max(1) - 1) else { return false };
        let mut at = address;
        loop {
            match self.find(at) {
                Some(FlatRange { target: Target::Io { .. }, .. }) | None => return false,
                Some(range) if range.last >= last => return true,
                Some(range) => at = range.last + 1,
            }
        }
    }

    /// One access of 1, 2, 4 or 8 bytes, little endian. Unassigned addresses read as the
    /// space's unassigned value.
    pub fn load(&self, address: Gpa, size: u8) -> u64 {
        let mask = if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        match self.find(address) {
            Some(range) if range.last - address >= u64::from(size) - 1 => {
                let by = address - range.start;
                match &range.target {
                    Target::Ram { block, offset }
                    | Target::Rom { block, offset }
                    | Target::RomDevice { block, offset, .. } => ram_load(*block, offset + by, size),
                    Target::Io { handler, offset } => io_read(&**handler, offset + by, size) & mask,
                }
            }
            None if size == 1 => self.unassigned & 0xff,
            // Crosses the end of a range or may touch one: byte by byte.
            _ => (0..size)
                .fold(0, |value, i| value | (self.load(address.wrapping_add(u64::from(i)), 1) << (i * 8))),
        }
    }

    /// One write of 1, 2, 4 or 8 bytes, little endian. Unassigned addresses and ROM ignore it.
    pub fn store(&self, address: Gpa, size: u8, value: u64) {
        match self.find(address) {
            Some(range) if range.last - address >= u64::from(size) - 1 => {
                let by = address - range.start;
                match &range.target {
                    Target::Ram { block, offset } => {
                        ram_store(*block, offset + by, size, value);
                    }
                    Target::Rom { .. } => {}
                    Target::RomDevice { handler, offset, .. } | Target::Io { handler, offset } => {
                        io_write(&**handler, offset + by, size, value);
                    }
                }
            }
            None if size == 1 => {}
            _ => {
                for i in 0..size {
                    self.store(address.wrapping_add(u64::from(i)), 1, (value >> (i * 8)) & 0xff);
                }
            }
        }
    }

    /// Reads any length; I/O ranges are read in their largest fitting accesses.
    pub fn read(&self, address: Gpa, to: &mut [u8]) {
        self.chunks(address, to.len(), |range, at, from, len| {
            let to = &mut to[from..from + len];
            match range {
                Some(FlatRange { target: Target::Io { .. }, .. }) | None => {
                    self.pieces(at, len, |at, size, from| {
                        let value = self.load(at, size);
                        to[from..from + usize::from(size)]
                            .copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
                    });
                }
                Some(FlatRange { start, target, .. }) => {
                    if let Target::Ram { block, offset }
                    | Target::Rom { block, offset }
                    | Target::RomDevice { block, offset, .. } = target
                    {
                        block.read(offset + (at - start), to);
                    }
                }
            }
        });
    }

    /// Writes any length; see [`FlatView::read`].
    pub fn write(&self, address: Gpa, from: &[u8]) {
        self.chunks(address, from.len(), |range, at, begin, len| {
            let from = &from[begin..begin + len];
            match range {
                Some(FlatRange { start, target: Target::Ram { block, offset }, .. }) => {
                    block.write(offset + (at - start), from);
                }
                None | Some(FlatRange { target: Target::Rom { .. }, .. }) => {}
                _ => self.pieces(at, len, |at, size, begin| {
                    let mut bytes = [0; 8];
                    bytes[..usize::from(size)].copy_from_slice(&from[begin..begin + usize::from(size)]);
                    self.store(at, size, u64::from_le_bytes(bytes));
                }),
            }
        });
    }

    fn chunks(&self, address: Gpa, len: usize, mut each: impl FnMut(Option<&FlatRange>, Gpa, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let left = (len - done) as u64;
            let index = self.ranges.partition_point(|range| range.last < at);
            let next = self.ranges.get(index);
            let (range, room) = match next {
                Some(range) if range.start <= at => (next, (range.last - at).saturating_add(1)),
                Some(range) => (None, range.start - at),
                None => (None, left),
            };
            let step = left.min(room.max(1)) as usize;
            each(range, at, done, step);
            done += step;
        }
    }

    fn pieces(&self, at: Gpa, len: usize, mut each: impl FnMut(Gpa, u8, usize)) {
        let mut done = 0;
        while done < len {
            let address = at + done as u64;
            let size = [8u8, 4, 2, 1]
                .into_iter()
                .find(|&size| usize::from(size) <= len - done && address.is_multiple_of(u64::from(size)))
                .unwrap_or(1);
            each(address, size, done);
            done += usize::from(size);
        }
    }
}

/// Aligned accesses are single-copy atomic: ring indices are read while a vCPU writes them.
fn ram_load(block: RamBlock, at: u64, size: u8) -> u64 {
    let (page, within) = (block.page(at), (at % PAGE_SIZE) as usize);
    match size {
        1 => page.load::<u8>(within).into(),
        2 if at.is_multiple_of(2) => page.load::<u16>(within).into(),
        4 if at.is_multiple_of(4) => page.load::<u32>(within).into(),
        8 if at.is_multiple_of(8) => page.load::<u64>(within),
        _ => {
            let mut bytes = [0; 8];
            block.read(at, &mut bytes[..usize::from(size)]);
            u64::from_le_bytes(bytes)
        }
    }
}

/// See [`ram_load`].
fn ram_store(block: RamBlock, at: u64, size: u8, value: u64) {
    let (page, within) = (block.page(at), (at % PAGE_SIZE) as usize);
    match size {
        1 => page.store(within, value as u8),
        2 if at.is_multiple_of(2) => page.store(within, value as u16),
        4 if at.is_multiple_of(4) => page.store(within, value as u32),
        8 if at.is_multiple_of(8) => page.store(within, value),
        _ => return block.write(at, &value.to_le_bytes()[..usize::from(size)]),
    }
    block.note_write(at, size.into());
}

fn io_read(handler: &dyn Handler, offset: u64, size: u8) -> u64 {
    let (min, max) = (handler.min_access(), handler.max_access());
    if size > max {
        return (0..size / max).fold(0, |value, i| {
            value | (io_read(handler, offset + u64::from(i * max), max) << (u32::from(i * max) * 8))
        });
    }
    if size < min {
        let aligned = offset & !u64::from(min - 1);
        return handler.read(aligned, min) >> ((offset - aligned) * 8);
    }
    handler.read(offset, size)
}

fn io_write(handler: &dyn Handler, offset: u64, size: u8, value: u64) {
    let (min, max) = (handler.min_access(), handler.max_access());
    if size > max {
        let mask = if max >= 8 { u64::MAX } else { (1 << (max * 8)) - 1 };
        for i in 0..size / max {
            handler.write(offset + u64::from(i * max), max, (value >> (u32::from(i * max) * 8)) & mask);
        }
    } else {
        let mask = if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        handler.write(offset, size.max(min), value & mask);
    }
}
