//! Buffers for copying, kept for the next piece: fresh memory costs more than the copy.

use base::Mutex;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// Bytes kept at most for all, and in the longest buffer that is kept.
const KEEP: usize = 8 << 20;
const LONGEST: usize = (2 << 20) + LINE;
/// Where buffers begin: the kernel's copy takes twice as long to an address in the middle of a
/// line of the processor's cache.
const LINE: usize = 64;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread used last: it is still in its processor's cache.
    static WARM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn fits(store: &[u8], len: usize) -> bool {
    store.len() >= len + LINE && store.len() <= len.max(65536) * 4
}

fn lend(store: Vec<u8>, len: usize) -> Lent {
    let start = store.as_ptr().align_offset(LINE).min(store.len() - len);
    Lent { store, start, len }
}

/// A buffer with any content; goes back when dropped.
pub(crate) struct Lent {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Lent {
    /// Leaves `len` bytes from `start` on.
    pub fn cut(&mut self, start: usize, len: usize) {
        self.start = (self.start + start).min(self.store.len());
        self.len = len.min(self.store.len() - self.start);
    }
}

pub(crate) fn take(len: usize) -> Lent {
    // A thread that ends has no store.
    let warm = WARM.try_with(Cell::take).unwrap_or_default();
    if len > 0 && fits(&warm, len) {
        return lend(warm, len);
    }
    let mut spare = SPARE.lock();
    let found = spare.iter().rposition(|store| fits(store, len)).map(|at| spare.swap_remove(at));
    if !warm.is_empty() {
        keep(&mut spare, warm);
    }
    drop(spare);
    lend(found.unwrap_or_else(|| vec![0; len + LINE]), len)
}

fn keep(spare: &mut Vec<Vec<u8>>, store: Vec<u8>) {
    let kept: usize = spare.iter().map(Vec::len).sum();
    if store.len() <= LONGEST && kept + store.len() <= KEEP {
        spare.push(store);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let store = std::mem::take(&mut self.store);
        if store.is_empty() {
            return;
        }
        // The one used last replaces the one before.
        let other = match store.len() <= LONGEST {
            true => WARM.try_with(|warm| warm.replace(store)).unwrap_or_default(),
            false => return,
        };
        if !other.is_empty() {
            keep(&mut SPARE.lock(), other);
        }
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

impl From<Vec<u8>> for Lent {
    fn from(store: Vec<u8>) -> Self {
        Lent { start: 0, len: store.len(), store }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn buffers_have_the_length_asked_for_whatever_is_spare() {
        for len in [1, 65536, 1_234_567, 1_000_000, 3 << 20, 100, 0, 70_000] {
            let mut buffer = super::take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(64), 0);
            buffer.fill(7);
        }
    }
}
