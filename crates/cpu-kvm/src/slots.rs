//! KVM's memory slots, kept equal to the address space's RAM and ROM.

use base::{Failure, Mutex, Result, fail};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use memory::{FlatView, PAGE_SIZE, RamBlock, Target};
use std::sync::atomic::{AtomicU64, Ordering};

/// A piece of guest memory that KVM maps by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    len: u64,
    block: RamBlock,
    offset: u64,
    writable: bool,
}

#[derive(Default)]
struct Slots {
    /// By slot number; `None`: free.
    used: Vec<Option<Piece>>,
    logging: bool,
    error: Option<Failure>,
}

#[derive(Default)]
pub struct SlotTable {
    slots: Mutex<Slots>,
    changes: AtomicU64,
}

/// What of the view KVM can map: whole pages of RAM and ROM.
fn pieces(view: &FlatView) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for range in view.ranges() {
        let (block, offset, writable) = match range.target {
            Target::Ram { block, offset } => (block, offset, true),
            Target::Rom { block, offset } | Target::RomDevice { block, offset, .. } => (block, offset, false),
            Target::Io { .. } => continue,
        };
        let Some(start) = range.start.checked_next_multiple_of(PAGE_SIZE) else { continue };
        let skipped = start - range.start;
        let end = range.last.saturating_add(1) & !(PAGE_SIZE - 1);
        let offset = offset + skipped;
        if end > start && offset.is_multiple_of(PAGE_SIZE) {
            pieces.push(Piece { start, len: end - start, block, offset, writable });
        }
    }
    pieces
}

impl SlotTable {
    /// Counts beginnings and ends of changes.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether a change was going on at any time since `changes` was read: then memory may
    /// have been missing for a moment, and a vCPU that failed tries again.
    pub fn changed_since(&self, changes: u64) -> bool {
        !changes.is_multiple_of(2) || self.changes() != changes
    }

    /// The failure of an update that nobody could be told about at once.
    pub fn error(&self) -> Option<Failure> {
        self.slots.lock().error.clone()
    }

    /// Brings the slots in line with `view`.
    pub fn update(&self, vm: &VmFd, view: &FlatView) {
        let wanted = pieces(view);
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        let gone: Vec<usize> = (0..slots.used.len())
            .filter(|&slot| slots.used[slot].is_some_and(|piece| !wanted.contains(&piece)))
            .collect();
        let new: Vec<Piece> =
            wanted.iter().filter(|&&piece| !slots.used.contains(&Some(piece))).copied().collect();
        if gone.is_empty() && new.is_empty() {
            return;
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        for slot in gone {
            if let Some(piece) = slots.used[slot].take() {
                slots.note(set(vm, slot, piece, 0, 0));
            }
        }
        for piece in new {
            let slot = slots.used.iter().position(Option::is_none).unwrap_or(slots.used.len());
            if slot == slots.used.len() {
                slots.used.push(None);
            }
            slots.used[slot] = Some(piece);
            let flags = slots.flags(piece);
            slots.note(set(vm, slot, piece, piece.len, flags));
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Starts or ends logging of guest writes; see [`SlotTable::collect`].
    pub fn set_logging(&self, vm: &VmFd, logging: bool) -> Result<()> {
        let mut slots = self.slots.lock();
        slots.logging = logging;
        for (slot, piece) in slots.used.iter().enumerate() {
            if let Some(piece) = *piece {
                set(vm, slot, piece, piece.len, slots.flags(piece))?;
            }
        }
        Ok(())
    }

    /// Tells the watchers of all pages that the guest wrote since the last call.
    pub fn collect(&self, vm: &VmFd) -> Result<()> {
        let slots = self.slots.lock();
        if !slots.logging {
            return Ok(());
        }
        for (slot, piece) in slots.used.iter().enumerate() {
            let Some(piece) = piece.filter(|piece| piece.writable) else { continue };
            let words = vm
                .get_dirty_log(slot as u32, piece.len as usize)
                .map_err(|e| Failure::os("KVM: cannot read the dirty log", &e.into()))?;
            for (word, mut bits) in words.into_iter().enumerate() {
                while bits != 0 {
                    let page = word as u64 * 64 + u64::from(bits.trailing_zeros());
                    bits &= bits - 1;
                    if page * PAGE_SIZE < piece.len {
                        piece.block.note_write(piece.offset + page * PAGE_SIZE, PAGE_SIZE);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Slots {
    fn flags(&self, piece: Piece) -> u32 {
        match (piece.writable, self.logging) {
            (false, _) => KVM_MEM_READONLY,
            (true, true) => KVM_MEM_LOG_DIRTY_PAGES,
            (true, false) => 0,
        }
    }

    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

/// Sets a slot; length 0 removes it.
fn set(vm: &VmFd, slot: usize, piece: Piece, len: u64, flags: u32) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: slot as u32,
        flags,
        guest_phys_addr: piece.start,
        memory_size: len,
        userspace_addr: piece.block.host_address() as u64 + piece.offset,
    };
    // SAFETY: RAM blocks stay mapped while the process lives, and the range lies in one.
    unsafe { vm.set_user_memory_region(region) }.map_err(|e| {
        let error = Failure::os("", &e.into()).text;
        fail!("KVM: cannot map guest memory at {:#x} ({:#x} bytes){error}", piece.start, piece.len)
    })
}
