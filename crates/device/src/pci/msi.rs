//! Message-signalled interrupts of one function (PCI 3.0 §6.8).

use crate::{MsiMessage, MsiSink};
use base::Mutex;
use memory::Handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bits of the MSI-X message control register that software may change: enable and function mask.
pub(super) const MSIX_CONTROL_WRITABLE: u16 = 0xc000;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_BYTES: u64 = 16;
const MASKED: u32 = 1;

#[derive(Clone, Copy)]
struct Entry {
    /// Address low, address high, data, control.
    words: [u32; 4],
    pending: bool,
}

impl Entry {
    const RESET: Entry = Entry { words: [0, 0, 0, MASKED], pending: false };
}

struct Table {
    control: u16,
    entries: Vec<Entry>,
}

/// The MSI-X table and pending bits; [`Handler`] of the BAR part that holds them.
pub(super) struct Msix {
    table: Mutex<Table>,
    table_offset: u64,
    pba_offset: u64,
    /// Where the capability stands in configuration space.
    pub capability: u16,
    sink: Arc<dyn MsiSink>,
    /// Bus mastering, without which no message leaves.
    master: Arc<AtomicBool>,
}

impl Msix {
    pub fn new(
        vectors: u16,
        offsets: (u64, u64),
        capability: u16,
        sink: Arc<dyn MsiSink>,
        master: Arc<AtomicBool>,
    ) -> Self {
        let entries = vec![Entry::RESET; usize::from(vectors)];
        Msix {
            table: Mutex::new(Table { control: 0, entries }),
            table_offset: offsets.0,
            pba_offset: offsets.1,
            capability,
            sink,
            master,
        }
    }

    pub fn vectors(&self) -> usize {
        self.table.lock().entries.len()
    }

    pub fn is_enabled(&self) -> bool {
        self.table.lock().control & MSIX_ENABLE != 0
    }

    pub fn set_control(&self, control: u16) {
        let mut table = self.table.lock();
        table.control = control;
        let due = (0..table.entries.len()).filter_map(|at| table.take_pending(at)).collect::<Vec<_>>();
        drop(table);
        self.send(&due);
    }

    pub fn reset(&self) {
        let mut table = self.table.lock();
        table.control = 0;
        table.entries.fill(Entry::RESET);
    }

    /// Signals a vector; remembered while masked. Vectors past the table lead nowhere.
    pub fn trigger(&self, vector: usize) {
        let mut table = self.table.lock();
        if table.control & MSIX_ENABLE == 0 || vector >= table.entries.len() {
            return;
        }
        table.entries[vector].pending = true;
        let due = table.take_pending(vector);
        drop(table);
        self.send(due.as_slice());
    }

    /// Whether a vector waits behind a mask.
    pub fn is_pending(&self, vector: usize) -> bool {
        self.table.lock().entries.get(vector).is_some_and(|entry| entry.pending)
    }

    fn send(&self, messages: &[MsiMessage]) {
        if self.master.load(Ordering::Acquire) {
            for &message in messages {
                self.sink.send(message);
            }
        }
    }
}

impl Table {
    fn take_pending(&mut self, at: usize) -> Option<MsiMessage> {
        let open = self.control & (MSIX_ENABLE | MSIX_FUNCTION_MASK) == MSIX_ENABLE;
        let entry = &mut self.entries[at];
        if !entry.pending || !open || entry.words[3] & MASKED != 0 {
            return None;
        }
        entry.pending = false;
        let address = u64::from(entry.words[0]) | u64::from(entry.words[1]) << 32;
        Some(MsiMessage { address, data: entry.words[2] })
    }
}

impl Handler for Msix {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let table = self.table.lock();
        if let Some(at) = offset.checked_sub(self.pba_offset) {
            let first = at / 4 * 32;
            return (0..32).fold(0, |bits, i| {
                let entry = usize::try_from(first + i).ok().and_then(|at| table.entries.get(at));
                bits | u64::from(entry.is_some_and(|entry| entry.pending)) << i
            });
        }
        let Some(at) = offset.checked_sub(self.table_offset) else { return 0 };
        let entry = table.entries.get((at / VECTOR_BYTES) as usize);
        entry.map_or(0, |entry| u64::from(entry.words[(at % VECTOR_BYTES / 4) as usize]))
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let Some(at) = offset.checked_sub(self.table_offset).filter(|_| offset < self.pba_offset) else {
            return;
        };
        let mut table = self.table.lock();
        let index = (at / VECTOR_BYTES) as usize;
        let word = (at % VECTOR_BYTES / 4) as usize;
        let Some(entry) = table.entries.get_mut(index) else { return };
        entry.words[word] = match word {
            0 => value as u32 & !3,
            3 => value as u32 & MASKED,
            _ => value as u32,
        };
        let due = table.take_pending(index);
        drop(table);
        self.send(due.as_slice());
    }

    fn min_access(&self) -> u8 {
        4
    }

    fn max_access(&self) -> u8 {
        4
    }
}

/// What an MSI capability (not MSI-X) holds, read from configuration space.
pub(super) fn msi_message(words: [u32; 3], is_64: bool, control: u16, vector: u32) -> MsiMessage {
    let enabled = 1u32 << (control >> 4 & 7).min(5);
    let (address, data) = if is_64 {
        (u64::from(words[0]) | u64::from(words[1]) << 32, words[2])
    } else {
        (u64::from(words[0]), words[1])
    };
    let data = data & 0xffff;
    MsiMessage { address, data: (data & !(enabled - 1)) | (vector & (enabled - 1)) }
}
