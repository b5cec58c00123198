//! Buffers for copying, kept for the next piece: fresh memory costs more than the copy.

use base::Mutex;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

/// Bytes kept at most for all, and in the longest buffer that is kept.
const KEEP: usize = 8 << 20;
const LONGEST: usize = (2 << 20) + LINE;
/// Where buffers begin: the kernel's copy takes twice as long to an address in the middle of a
/// line of the processor's cache.
const LINE: usize = 64;

/// What nobody uses, and how many bytes that is.
struct Spare {
    stores: Vec<Vec<u8>>,
    bytes: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { stores: Vec::new(), bytes: 0 });

thread_local! {
    /// What this thread used last: it is still in its processor's cache.
    static WARM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn fits(store: &[u8], len: usize) -> bool {
    store.len() >= len + LINE && store.len() <= len.max(65536) * 4
}

fn lend(store: Vec<u8>, len: usize) -> Lent {
    let start = store.as_ptr().align_offset(LINE).min(store.len() - len);
    Lent { store, start, len, taken: true }
}

/// Bytes of a request; a buffer that was [taken](take) goes back when dropped.
pub struct Lent {
    store: Vec<u8>,
    start: usize,
    len: usize,
    /// To be kept: it did not come from elsewhere.
    taken: bool,
}

impl Lent {
    /// Leaves `len` bytes from `start` on.
    pub fn cut(&mut self, start: usize, len: usize) {
        self.start = (self.start + start).min(self.store.len());
        self.len = len.min(self.store.len() - self.start);
    }
}

/// A MiB of zeroes. It begins with a page: where the kernel copies from memory that was never
/// touched it stops at the end of a page, and should the process be killed there, no sector is torn.
pub fn zeroes() -> &'static [u8] {
    const PAGE: usize = 4096;
    const LEN: usize = 1 << 20;
    static ZEROES: OnceLock<Vec<u8>> = OnceLock::new();
    let store = ZEROES.get_or_init(|| vec![0; LEN + PAGE]);
    let start = store.as_ptr().align_offset(PAGE).min(PAGE);
    &store[start..start + LEN]
}

/// A buffer of `len` bytes with any content: whoever takes it fills it.
pub fn take(len: usize) -> Lent {
    // A thread that ends has no store.
    let warm = WARM.try_with(Cell::take).unwrap_or_default();
    if len > 0 && fits(&warm, len) {
        return lend(warm, len);
    }
    let mut spare = SPARE.lock();
    let found = spare.find(len);
    spare.keep(warm);
    drop(spare);
    lend(found.unwrap_or_else(|| vec![0; len + LINE]), len)
}

impl Spare {
    fn find(&mut self, len: usize) -> Option<Vec<u8>> {
        let at = self.stores.iter().rposition(|store| fits(store, len))?;
        let store = self.stores.swap_remove(at);
        self.bytes -= store.len();
        Some(store)
    }

    fn keep(&mut self, store: Vec<u8>) {
        if !store.is_empty() && store.len() <= LONGEST && self.bytes + store.len() <= KEEP {
            self.bytes += store.len();
            self.stores.push(store);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.taken || self.store.len() > LONGEST {
            return;
        }
        // The one used last replaces the one before.
        let store = std::mem::take(&mut self.store);
        let before = WARM.try_with(|warm| warm.replace(store)).unwrap_or_default();
        if !before.is_empty() {
            SPARE.lock().keep(before);
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
        Lent { start: 0, len: store.len(), store, taken: false }
    }
}

impl From<Lent> for Vec<u8> {
    fn from(mut bytes: Lent) -> Self {
        match bytes.taken || bytes.start > 0 {
            true => bytes.to_vec(),
            false => {
                bytes.store.truncate(bytes.len);
                std::mem::take(&mut bytes.store)
            }
        }
    }
}

impl Default for Lent {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl Clone for Lent {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl PartialEq for Lent {
    fn eq(&self, other: &Lent) -> bool {
        **self == **other
    }
}

impl Eq for Lent {}

impl PartialEq<Vec<u8>> for Lent {
    fn eq(&self, other: &Vec<u8>) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn zeroes_begin_with_a_page() {
        let zeroes = super::zeroes();
        assert!(zeroes.as_ptr().align_offset(4096) == 0 && zeroes.iter().all(|byte| *byte == 0));
    }

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
