//! Split virtqueues (virtio 1.2 §2.7).

use crate::sg::{self, Span};
use memory::Dma;
use std::sync::atomic::{Ordering, fence};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u64 = 1;
const DESC_BYTES: u64 = 16;
/// More pieces than this in one chain are refused, as by peers.
const MAX_PIECES: usize = 1024;

/// Why a queue cannot go on: the driver broke the rules or a ring is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// One buffer that the driver made available: what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain {
    pub queue: usize,
    pub(super) head: u16,
    /// Life of the queue that it belongs to; a reset begins a new one.
    pub(super) life: u64,
    pub readable: Vec<Span>,
    pub writable: Vec<Span>,
}

impl Chain {
    pub fn readable_len(&self) -> u64 {
        sg::total(&self.readable)
    }

    pub fn writable_len(&self) -> u64 {
        sg::total(&self.writable)
    }

    /// Copies out of the readable part; `None` past its end or outside memory.
    pub fn read(&self, dma: &Dma, at: u64, to: &mut [u8]) -> Option<()> {
        sg::read(&self.readable, dma, at, to)
    }

    /// Copies into the writable part; `None` past its end or outside memory.
    pub fn write(&self, dma: &Dma, at: u64, bytes: &[u8]) -> Option<()> {
        sg::write(&self.writable, dma, at, bytes)
    }
}

/// The device's side of one ring.
pub struct Queue {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub vector: u16,
    pub event_idx: bool,
    next_avail: u16,
    next_used: u16,
    /// Used index at the last interrupt decision, if any was made.
    signalled: Option<u16>,
    pub life: u64,
}

pub const NO_VECTOR: u16 = 0xffff;

fn align(value: u64, to: u64) -> u64 {
    value.checked_next_multiple_of(to).unwrap_or(u64::MAX)
}

impl Queue {
    pub fn new(max_size: u16) -> Self {
        Queue {
            max_size,
            size: max_size,
            ready: false,
            desc: 0,
            avail: 0,
            used: 0,
            vector: NO_VECTOR,
            event_idx: false,
            next_avail: 0,
            next_used: 0,
            signalled: None,
            life: 0,
        }
    }

    pub fn reset(&mut self) {
        *self = Queue { life: self.life + 1, ..Queue::new(self.max_size) };
    }

    /// Places the three parts as the legacy interface does (virtio 1.2 §2.7.2).
    pub fn place_legacy(&mut self, base: u64) {
        self.desc = base;
        self.avail = base.saturating_add(DESC_BYTES * u64::from(self.size));
        self.used = align(self.avail.saturating_add(6 + 2 * u64::from(self.size)), 4096);
        self.ready = base != 0;
    }

    fn load(&self, dma: &Dma, base: u64, offset: u64, size: u8) -> Result<u64, Broken> {
        let at = base.checked_add(offset).ok_or(Broken("ring address overflows"))?;
        dma.load(at, size).map_err(|_| Broken("ring is not in memory"))
    }

    fn store(&self, dma: &Dma, base: u64, offset: u64, size: u8, value: u64) -> Result<(), Broken> {
        let at = base.checked_add(offset).ok_or(Broken("ring address overflows"))?;
        dma.store(at, size, value).map_err(|_| Broken("ring is not in memory"))
    }

    fn available(&self, dma: &Dma) -> Result<u16, Broken> {
        let index = self.load(dma, self.avail, 2, 2)? as u16;
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(Broken("guest moved the available index too far"));
        }
        Ok(waiting)
    }

    /// Takes the next available chain.
    pub fn pop(&mut self, dma: &Dma, queue: usize) -> Result<Option<Chain>, Broken> {
        if !self.ready {
            return Ok(None);
        }
        if self.available(dma)? == 0 {
            if !self.event_idx {
                return Ok(None);
            }
            // Ask for a notification, then look again: a buffer may have come in between.
            self.store(dma, self.used, 4 + 8 * u64::from(self.size), 2, self.next_avail.into())?;
            fence(Ordering::SeqCst);
            if self.available(dma)? == 0 {
                return Ok(None);
            }
        }
        fence(Ordering::Acquire);
        let slot = u64::from(self.next_avail % self.size);
        let head = self.load(dma, self.avail, 4 + 2 * slot, 2)? as u16;
        let mut chain = Chain { queue, head, life: self.life, readable: Vec::new(), writable: Vec::new() };
        self.collect(dma, head, &mut chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Whether buffers are waiting.
    pub fn has_available(&self, dma: &Dma) -> bool {
        self.ready && self.available(dma).is_ok_and(|waiting| waiting > 0)
    }

    fn descriptor(&self, dma: &Dma, table: u64, index: u16) -> Result<(Span, u16, u16), Broken> {
        let at = table.checked_add(DESC_BYTES * u64::from(index)).ok_or(Broken("descriptor overflows"))?;
        let mut bytes = [0; 16];
        dma.read(at, &mut bytes).map_err(|_| Broken("descriptor is not in memory"))?;
        let value = u128::from_le_bytes(bytes);
        let span = Span { address: value as u64, len: (value >> 64) as u32 };
        Ok((span, (value >> 96) as u16, (value >> 112) as u16))
    }

    fn collect(&self, dma: &Dma, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        if head >= self.size {
            return Err(Broken("head index out of range"));
        }
        let (mut table, mut entries, mut index) = (self.desc, self.size, head);
        let (mut indirect, mut steps) = (false, 0u32);
        loop {
            steps += 1;
            if steps > u32::from(entries) {
                return Err(Broken("looped descriptor"));
            }
            let (span, flags, next) = self.descriptor(dma, table, index)?;
            if flags & DESC_INDIRECT != 0 {
                let count = u64::from(span.len) / DESC_BYTES;
                let whole = u64::from(span.len).is_multiple_of(DESC_BYTES) && (1..=65535).contains(&count);
                if indirect || flags & DESC_NEXT != 0 || !whole {
                    return Err(Broken("invalid indirect table"));
                }
                (table, entries, index, indirect, steps) = (span.address, count as u16, 0, true, 0);
                continue;
            }
            if span.len == 0 {
                return Err(Broken("zero sized buffers are not allowed"));
            }
            if flags & DESC_WRITE != 0 {
                chain.writable.push(span);
            } else if chain.writable.is_empty() {
                chain.readable.push(span);
            } else {
                return Err(Broken("incorrect order for descriptors"));
            }
            if chain.readable.len() + chain.writable.len() > MAX_PIECES {
                return Err(Broken("too many descriptors in one chain"));
            }
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            if next >= entries {
                return Err(Broken("descriptor index out of range"));
            }
            index = next;
        }
    }

    /// Gives a chain back with the number of bytes written into it. Tells whether the driver
    /// wants an interrupt for it.
    pub fn push(&mut self, dma: &Dma, chain: &Chain, written: u32) -> Result<bool, Broken> {
        if chain.life != self.life || !self.ready {
            return Ok(false);
        }
        let slot = u64::from(self.next_used % self.size);
        let element = u64::from(chain.head) | u64::from(written) << 32;
        // The element is 8 bytes at 4-byte alignment.
        self.store(dma, self.used, 4 + 8 * slot, 4, element & 0xffff_ffff)?;
        self.store(dma, self.used, 8 + 8 * slot, 4, element >> 32)?;
        fence(Ordering::Release);
        self.next_used = self.next_used.wrapping_add(1);
        self.store(dma, self.used, 2, 2, self.next_used.into())?;
        fence(Ordering::SeqCst);
        self.wants_interrupt(dma)
    }

    fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, Broken> {
        if !self.event_idx {
            return Ok(self.load(dma, self.avail, 0, 2)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = self.load(dma, self.avail, 4 + 2 * u64::from(self.size), 2)? as u16;
        let new = self.next_used;
        let old = self.signalled.replace(new);
        // virtio 1.2 §2.7.7.2: has the used index passed the event since the last decision?
        Ok(old.is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)))
    }
}
