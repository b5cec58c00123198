//! Dirty bitmaps: which parts of a node were written since.

use base::{Mutex, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// 1 GiB of bits: 512 TiB at 64 KiB.
const MOST_BITS: u64 = 1 << 33;

/// The dirty bitmaps of one node.
#[derive(Default)]
pub struct Bitmaps {
    all: Mutex<Vec<Arc<DirtyBitmap>>>,
    count: AtomicUsize,
}

impl Bitmaps {
    pub fn list(&self) -> Vec<Arc<DirtyBitmap>> {
        self.all.lock().clone()
    }

    pub fn find(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        self.all.lock().iter().find(|bitmap| bitmap.name().as_deref() == Some(name)).cloned()
    }

    pub fn add(&self, bitmap: Arc<DirtyBitmap>) {
        self.insert(usize::MAX, bitmap);
    }

    /// As [`Bitmaps::add`], at a place in the list.
    pub fn insert(&self, at: usize, bitmap: Arc<DirtyBitmap>) {
        let mut all = self.all.lock();
        let at = at.min(all.len());
        all.insert(at, bitmap);
        self.count.store(all.len(), Ordering::Release);
    }

    pub fn remove(&self, bitmap: &Arc<DirtyBitmap>) {
        let mut all = self.all.lock();
        all.retain(|one| !Arc::ptr_eq(one, bitmap));
        self.count.store(all.len(), Ordering::Release);
    }

    /// Marks a written range in every enabled bitmap.
    pub fn mark(&self, offset: u64, len: u64) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for bitmap in self.all.lock().iter() {
            if bitmap.is_enabled() {
                bitmap.set(offset, len);
            }
        }
    }

    /// Whether the node can have `size`.
    pub fn check_size(&self, size: u64) -> Result<()> {
        let all = self.all.lock();
        all.iter().try_for_each(|bitmap| DirtyBitmap::check_size(bitmap.granularity(), size))
    }

    /// The node has another size.
    pub fn resize(&self, size: u64) {
        for bitmap in self.all.lock().iter() {
            bitmap.resize(size);
        }
    }
}

/// A map of dirty ranges.
pub struct DirtyBitmap {
    name: Mutex<Option<String>>,
    granularity: u32,
    bits: Mutex<Bits>,
    enabled: AtomicBool,
    /// In use by a job or an export.
    busy: AtomicBool,
    persistent: AtomicBool,
    /// Loaded from an image where it was not stored properly; may only be removed.
    inconsistent: AtomicBool,
    read_only: AtomicBool,
    /// Kept by a job for itself, never shown.
    private: AtomicBool,
    /// Records in its place.
    successor: Mutex<Option<Arc<DirtyBitmap>>>,
}

struct Bits {
    words: Vec<u64>,
    size: u64,
    set: u64,
}

impl DirtyBitmap {
    /// `granularity` is a power of two, at least 512; `size` is the node's, in bytes.
    pub fn new(name: Option<String>, granularity: u32, size: u64) -> Self {
        let mut bits = Bits { words: Vec::new(), size: 0, set: 0 };
        bits.resize(size, granularity);
        DirtyBitmap {
            name: Mutex::new(name),
            granularity,
            bits: Mutex::new(bits),
            enabled: AtomicBool::new(true),
            busy: AtomicBool::new(false),
            persistent: AtomicBool::new(false),
            inconsistent: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            private: AtomicBool::new(false),
            successor: Mutex::default(),
        }
    }

    /// Refuses a bitmap of more bits than can be held in memory.
    pub fn check_size(granularity: u32, size: u64) -> Result<()> {
        if size / u64::from(granularity) > MOST_BITS {
            bail!("The image is too large for a dirty bitmap with a granularity of {granularity} bytes");
        }
        Ok(())
    }

    /// Hides it from queries.
    pub(crate) fn set_private(&self) {
        self.private.store(true, Ordering::Release);
    }

    pub(crate) fn is_private(&self) -> bool {
        self.private.load(Ordering::Acquire)
    }

    pub fn name(&self) -> Option<String> {
        self.name.lock().clone()
    }

    pub fn set_name(&self, name: Option<String>) {
        *self.name.lock() = name;
    }

    /// Bytes a bit stands for.
    pub fn granularity(&self) -> u32 {
        self.granularity
    }

    pub fn size(&self) -> u64 {
        self.bits.lock().size
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub fn enable(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Lets another record in its place, or no more.
    pub(crate) fn set_successor(&self, next: Option<&Arc<DirtyBitmap>>) {
        *self.successor.lock() = next.cloned();
    }

    pub(crate) fn has_successor(&self) -> bool {
        self.successor.lock().is_some()
    }

    /// Whether what is written now is recorded, in it or in what records in its place.
    pub fn is_recorded(&self) -> bool {
        self.is_enabled() || self.successor.lock().as_ref().is_some_and(|next| next.is_enabled())
    }

    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    pub fn set_busy(&self, on: bool) {
        self.busy.store(on, Ordering::Release);
    }

    pub fn is_persistent(&self) -> bool {
        self.persistent.load(Ordering::Acquire)
    }

    pub fn set_persistent(&self, on: bool) {
        self.persistent.store(on, Ordering::Release);
    }

    pub fn is_inconsistent(&self) -> bool {
        self.inconsistent.load(Ordering::Acquire)
    }

    pub fn set_inconsistent(&self, on: bool) {
        self.inconsistent.store(on, Ordering::Release);
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub fn set_read_only(&self, on: bool) {
        self.read_only.store(on, Ordering::Release);
    }

    /// Dirty bytes: set bits times granularity.
    pub fn count(&self) -> u64 {
        self.bits.lock().set * u64::from(self.granularity)
    }

    /// Marks a range dirty; what lies beyond the end is left out.
    pub fn set(&self, offset: u64, len: u64) {
        self.change(offset, len, true);
    }

    /// Marks a range clean: every bit it touches.
    pub fn reset(&self, offset: u64, len: u64) {
        self.change(offset, len, false);
    }

    fn change(&self, offset: u64, len: u64, on: bool) {
        let mut bits = self.bits.lock();
        let end = offset.saturating_add(len).min(bits.size);
        if offset >= end {
            return;
        }
        let shift = self.granularity.trailing_zeros();
        bits.fill(offset >> shift, ((end - 1) >> shift) + 1, on);
    }

    pub fn clear(&self) {
        let mut bits = self.bits.lock();
        bits.words.fill(0);
        bits.set = 0;
    }

    pub fn get(&self, offset: u64) -> bool {
        let bits = self.bits.lock();
        let at = offset >> self.granularity.trailing_zeros();
        bits.words.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// The first dirty range at or after `from`: start and length in bytes, cut at the end
    /// of the node and at `max` bytes.
    pub fn next_dirty(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let bits = self.bits.lock();
        let shift = self.granularity.trailing_zeros();
        let first = bits.next(from >> shift, true)?;
        let start = (first << shift).max(from);
        if start >= bits.size {
            return None;
        }
        let limit = start.saturating_add(max.max(1)).min(bits.size);
        let stop = bits.next(first, false).map_or(u64::MAX, |bit| bit << shift);
        Some((start, stop.min(limit) - start))
    }

    /// Length of the run of equal bits from `offset` on, and whether it is dirty.
    pub fn run(&self, offset: u64, max: u64) -> (bool, u64) {
        let dirty = self.get(offset);
        let bits = self.bits.lock();
        let shift = self.granularity.trailing_zeros();
        let limit = offset.saturating_add(max).min(bits.size.max(offset));
        let stop = bits.next(offset >> shift, !dirty).map_or(u64::MAX, |bit| bit << shift);
        (dirty, stop.min(limit).saturating_sub(offset))
    }

    pub fn resize(&self, size: u64) {
        self.bits.lock().resize(size, self.granularity);
    }

    /// Adds what is dirty in `other` (same node size; granularities may differ).
    pub fn merge(&self, other: &DirtyBitmap) {
        let mut at = 0;
        while let Some((start, len)) = other.next_dirty(at, u64::MAX) {
            self.set(start, len);
            at = start + len;
        }
    }

    /// Another bitmap with the same bits.
    pub fn copy(&self, name: Option<String>) -> DirtyBitmap {
        let copy = DirtyBitmap::new(name, self.granularity, self.size());
        copy.restore(self.words());
        copy
    }

    /// The bits, least significant first.
    pub fn words(&self) -> Vec<u64> {
        self.bits.lock().words.clone()
    }

    /// SHA-256 of the bits, as lower-case hexadecimal digits. The bits are 64-bit words in the order
    /// of the machine, at least one.
    pub fn sha256(&self) -> String {
        use sha2::Digest;
        let mut words = self.words();
        words.resize(words.len().max(1), 0);
        let mut hash = sha2::Sha256::new();
        words.iter().for_each(|word| hash.update(word.to_ne_bytes()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Puts bits back (undoing a clear, loading); missing words are clean.
    pub fn restore(&self, words: Vec<u64>) {
        let mut bits = self.bits.lock();
        let len = bits.words.len();
        bits.words = words;
        bits.words.resize(len, 0);
        let size = bits.size;
        bits.cut_tail(size, self.granularity);
    }
}

impl Bits {
    fn resize(&mut self, size: u64, granularity: u32) {
        let count = size.div_ceil(u64::from(granularity)).div_ceil(64) as usize;
        self.words.resize(count, 0);
        self.size = size;
        self.cut_tail(size, granularity);
    }

    fn cut_tail(&mut self, size: u64, granularity: u32) {
        let used = size.div_ceil(u64::from(granularity));
        if used % 64 != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (used % 64)) - 1;
        }
        self.set = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
    }

    fn fill(&mut self, from: u64, to: u64, on: bool) {
        let mut at = from;
        while at < to {
            let Some(word) = self.words.get_mut((at / 64) as usize) else { return };
            let low = at % 64;
            let count = (64 - low).min(to - at);
            let mask = (u64::MAX >> (64 - count)) << low;
            let before = word.count_ones();
            *word = if on { *word | mask } else { *word & !mask };
            self.set = self.set + u64::from(word.count_ones()) - u64::from(before);
            at += count;
        }
    }

    /// The first bit at or after `from` that is set (or clear); clear ones end at the last word.
    fn next(&self, from: u64, set: bool) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let flip = if set { 0 } else { u64::MAX };
        let mut word = (self.words.get(index)? ^ flip) & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            index += 1;
            word = self.words.get(index)? ^ flip;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_than_memory_are_refused() {
        let all = Bitmaps::default();
        all.add(Arc::new(DirtyBitmap::new(None, 65536, 1 << 20)));
        all.check_size(1 << 48).unwrap();
        assert!(all.check_size(1 << 62).unwrap_err().text.contains("too large for a dirty bitmap"));
    }

    #[test]
    fn ranges_round_outwards_and_count_in_bytes() {
        let map = DirtyBitmap::new(None, 65536, 10 << 20);
        map.set(65535, 2);
        map.set(9 << 20, u64::MAX);
        assert_eq!(map.count(), 2 * 65536 + (1 << 20));
        assert_eq!(map.next_dirty(0, u64::MAX), Some((0, 131072)));
        assert_eq!(map.next_dirty(131072, 65536), Some((9 << 20, 65536)));
        map.reset(0, 1);
        assert_eq!(map.run(0, u64::MAX), (false, 65536));
        map.resize(1 << 20);
        assert_eq!(map.count(), 65536);
        map.resize(10 << 20);
        assert_eq!(map.next_dirty(131072, 1), None);
    }
}
