//! Writing metadata back so that the file is valid at every instant.
//!
//! Order, with a flush between the steps where needed:
//! 1. data and refcount blocks (only counts that grew, or were given up durably before),
//! 2. refcount table, 3. L2 tables, 4. L1.
//!
//! A cluster given up is counted down only after the tables that no longer name it are on
//! disk, and when no request that began before can still use it. So a file that was cut off
//! anywhere has at worst clusters that are counted but not used.

use super::Qcow2;
use super::header::*;
use super::meta::{Free, Meta};
use super::refcounts::{Attempt, Miss, Wrong};
use crate::filters::blkdebug;
use crate::types::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests in flight by epoch; see the module text.
#[derive(Default)]
pub struct Epochs {
    current: AtomicUsize,
    counts: [AtomicUsize; 2],
}

pub struct Epoch<'a>(&'a AtomicUsize);

impl Epochs {
    pub fn enter(&self) -> Epoch<'_> {
        loop {
            let epoch = self.current.load(Ordering::SeqCst);
            let count = &self.counts[epoch];
            count.fetch_add(1, Ordering::SeqCst);
            let entered = Epoch(count);
            if self.current.load(Ordering::SeqCst) == epoch {
                return entered;
            }
        }
    }

    fn is_over(&self, epoch: usize) -> bool {
        self.counts[epoch].load(Ordering::SeqCst) == 0
    }

    /// Begins a new epoch if nobody is left of the one before; returns the one that ended.
    fn turn(&self) -> Option<usize> {
        let old = self.current.load(Ordering::SeqCst);
        if !self.is_over(1 - old) {
            return None;
        }
        self.current.store(1 - old, Ordering::SeqCst);
        Some(old)
    }
}

impl Drop for Epoch<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes to be written at an offset.
type Piece = (u64, Vec<u8>);

#[derive(Default)]
struct Capture {
    blocks: Vec<(usize, Vec<(usize, usize)>, Vec<Piece>)>,
    table: Vec<Piece>,
    /// The refcount table has a new place: header fields follow it.
    table_moved: bool,
    l2: Vec<(usize, Vec<(usize, usize)>, Vec<Piece>)>,
    l1: Vec<Piece>,
    /// What these tables no longer name. What is given up while they are written waits for the
    /// next write-back.
    frees: Vec<Free>,
}

fn words_to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn word_pieces(words: &[u64], ranges: &[(usize, usize)], base: u64) -> Vec<Piece> {
    ranges
        .iter()
        .map(|&(from, to)| (base + from as u64, words_to_bytes(&words[from / 8..to.div_ceil(8)])))
        .collect()
}

impl Meta {
    /// Finds a new place for a refcount table that outgrew its own.
    fn place_reftable(&mut self) -> Attempt<()> {
        while self.refs.table_moved {
            let bytes = self.refs.table.len() as u64 * 8;
            let clusters = bytes.div_ceil(self.geometry.cluster_size());
            let len = self.refs.table.len();
            let offset = self.allocate(clusters)?;
            if self.refs.table.len() != len {
                // It grew by being placed; what was taken is given up again.
                self.frees.push(Free { offset, len: clusters << self.geometry.cluster_bits });
                continue;
            }
            let old = Free {
                offset: self.refs.table_offset,
                len: u64::from(self.header.reftable_clusters) << self.geometry.cluster_bits,
            };
            self.frees.push(old);
            self.refs.table_offset = offset;
            self.header.reftable_offset = offset;
            self.header.reftable_clusters = clusters as u32;
            self.refs.table_dirty.mark_all();
            self.refs.table_moved = false;
        }
        Ok(())
    }

    fn capture(&mut self) -> Attempt<Capture> {
        let moved = self.refs.table_moved;
        self.place_reftable()?;
        let mut capture = Capture { table_moved: moved, ..Capture::default() };
        for (&index, block) in &mut self.refs.blocks {
            let ranges = block.dirty.take();
            if !ranges.is_empty() {
                let base = self.refs.table[index];
                let pieces =
                    ranges.iter().map(|&(a, b)| (base + a as u64, block.data[a..b].to_vec())).collect();
                capture.blocks.push((index, ranges, pieces));
            }
        }
        let ranges = self.refs.table_dirty.take();
        capture.table = word_pieces(&self.refs.table, &ranges, self.refs.table_offset);
        for (&index, table) in &mut self.l2 {
            let ranges = table.dirty.take();
            if !ranges.is_empty() {
                let base = self.l1[index] & super::entry::OFFSET;
                let pieces = word_pieces(&table.words, &ranges, base);
                capture.l2.push((index, ranges, pieces));
            }
        }
        let ranges = self.l1_dirty.take();
        capture.l1 = word_pieces(&self.l1, &ranges, self.header.l1_offset);
        capture.frees = std::mem::take(&mut self.frees);
        Ok(capture)
    }

    /// A write-back failed: everything it had is dirty again.
    fn put_back(&mut self, capture: Capture) {
        self.frees.extend(capture.frees);
        for (index, ranges, _) in &capture.blocks {
            if let Some(block) = self.refs.blocks.get_mut(index) {
                ranges.iter().for_each(|&(from, to)| block.dirty.mark(from, to - from));
            }
        }
        for (index, ranges, _) in &capture.l2 {
            if let Some(table) = self.l2.get_mut(index) {
                ranges.iter().for_each(|&(from, to)| table.dirty.mark(from, to - from));
            }
        }
        if !capture.table.is_empty() {
            self.refs.table_dirty.mark_all();
        }
        if !capture.l1.is_empty() {
            self.l1_dirty.mark_all();
        }
    }
}

impl Qcow2 {
    /// Writes all dirty metadata back, in order. Data need not be flushed afterwards by
    /// this, but everything named by the tables is on disk before they are.
    pub(super) async fn sync(&self) -> IoResult {
        let _one = self.sync_lock.lock().await;
        self.sync_locked().await
    }

    pub(super) async fn sync_locked(&self) -> IoResult {
        self.release_ripe().await?;
        let capture = self.with(Meta::capture).await?;
        let tables = !capture.l2.is_empty() || !capture.l1.is_empty();
        if tables || !capture.blocks.is_empty() || !capture.table.is_empty() {
            if let Err(error) = self.write_capture(&capture).await {
                if capture.table_moved {
                    self.header_stale.store(true, Ordering::Release);
                }
                self.meta.lock().put_back(capture);
                return Err(error);
            }
            self.header_stale.store(false, Ordering::Release);
        }
        let mut meta = self.meta.lock();
        if !capture.frees.is_empty() {
            match self.epochs.turn() {
                Some(epoch) => meta.ripe.push((epoch, capture.frees)),
                None => meta.frees.extend(capture.frees),
            }
        }
        let (tables, blocks) = (self.cached_tables, self.cached_tables / 4 + 16);
        meta.shrink(tables);
        meta.refs.shrink(blocks);
        Ok(())
    }

    /// The host gets back what the last write-back let go of: the next may be long in coming.
    pub(super) async fn give_back(&self) -> IoResult {
        if !self.pass_discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _one = self.sync_lock.lock().await;
        self.release_ripe().await
    }

    async fn write_capture(&self, capture: &Capture) -> IoResult {
        let table = !capture.table.is_empty() || self.header_stale.load(Ordering::Acquire);
        for (.., pieces) in &capture.blocks {
            blkdebug::event(&self.file, "refblock_update").await;
            self.write_pieces(pieces).await?;
        }
        if table || !capture.l2.is_empty() || !capture.l1.is_empty() {
            self.barrier().await?;
        }
        if table {
            blkdebug::event(&self.file, "reftable_update").await;
            self.write_pieces(&capture.table).await?;
            self.file.flush().await?;
            if capture.table_moved || self.header_stale.load(Ordering::Acquire) {
                self.write_header().await?;
            }
        }
        for (.., pieces) in &capture.l2 {
            blkdebug::event(&self.file, "l2_update").await;
            self.write_pieces(pieces).await?;
        }
        if !capture.l1.is_empty() {
            self.file.flush().await?;
            blkdebug::event(&self.file, "l1_update").await;
            self.write_pieces(&capture.l1).await?;
        }
        Ok(())
    }

    /// Data and metadata written so far are on disk afterwards.
    async fn barrier(&self) -> IoResult {
        if let Some(data) = &self.data {
            data.flush().await?;
        }
        self.file.flush().await
    }

    async fn write_pieces(&self, pieces: &[Piece]) -> IoResult {
        for (offset, bytes) in pieces {
            self.file.write(*offset, bytes, WriteFlags::empty()).await?;
        }
        Ok(())
    }

    /// Counts down what was given up and is surely out of use.
    async fn release_ripe(&self) -> IoResult {
        let ready = {
            let mut meta = self.meta.lock();
            let (ready, later) = std::mem::take(&mut meta.ripe)
                .into_iter()
                .partition::<Vec<_>, _>(|(epoch, _)| self.epochs.is_over(*epoch));
            meta.ripe = later;
            ready
        };
        let ready: Vec<Free> = ready.into_iter().flat_map(|(_, frees)| frees).collect();
        if ready.is_empty() {
            return Ok(());
        }
        // The tables without them were written by an earlier write-back.
        self.file.flush().await?;
        let mut holes: Vec<Free> = Vec::new();
        for free in ready {
            for offset in self.clusters_of(free) {
                if self.with(|meta| meta.refs.get(offset >> meta.geometry.cluster_bits)).await? == 0 {
                    continue; // counted wrongly before; nothing to take away
                }
                let left = self.with(|meta| meta.refs.add(offset, -1)).await?;
                if left == 0 {
                    self.forget_packed(offset);
                    let len = self.geometry.cluster_size();
                    match holes.last_mut() {
                        Some(last) if last.offset + last.len == offset => last.len += len,
                        _ => holes.push(Free { offset, len }),
                    }
                }
            }
        }
        *self.unpacked.lock() = None;
        if self.pass_discard.load(Ordering::Relaxed) {
            self.punch(holes).await;
        }
        Ok(())
    }

    /// Gives space of free clusters back to the host, unless they are taken again.
    async fn punch(&self, holes: Vec<Free>) {
        for hole in holes {
            // Keep them from being allocated while the hole is made.
            let bits = self.geometry.cluster_bits;
            let held = self.meta.lock().hold(hole, bits);
            for run in held {
                // Only a hint: an error changes nothing.
                let _ = self.file.discard(run.offset, run.len).await;
                let mut meta = self.meta.lock();
                for cluster in run.offset >> bits..(run.offset + run.len) >> bits {
                    let _ = meta.refs.set(cluster, 0);
                }
            }
        }
    }

    fn clusters_of(&self, free: Free) -> impl Iterator<Item = u64> + use<> {
        let size = self.geometry.cluster_size();
        let first = free.offset & !(size - 1);
        let last = free.offset.saturating_add(free.len.saturating_sub(1)) & !(size - 1);
        (first..=last).step_by(size as usize)
    }

    fn forget_packed(&self, cluster: u64) {
        let mut meta = self.meta.lock();
        let size = meta.geometry.cluster_size();
        if meta.pack.is_some_and(|(at, _)| at & !(size - 1) == cluster) {
            meta.pack = None;
        }
    }

    /// Writes the header cluster and flushes it.
    pub(super) async fn write_header(&self) -> IoResult {
        let bytes = {
            let meta = self.meta.lock();
            meta.header.encode().map_err(|_| errno(libc::ENOSPC))?
        };
        self.file.write(0, &bytes, WriteFlags::empty()).await?;
        self.file.flush().await
    }

    /// Reads the part of the metadata that an attempt missed.
    pub(super) async fn load(&self, miss: Miss) -> IoResult {
        let size = self.geometry.cluster_size();
        match miss {
            Miss::TooBig => Err(errno(libc::EFBIG)),
            Miss::Corrupt(wrong) => {
                self.corrupt(wrong).await;
                Err(errno(libc::EIO))
            }
            Miss::L2(index) => {
                let offset = self.meta.lock().l2_offset(index);
                let offset = match offset {
                    Ok(Some(offset)) => offset,
                    Ok(None) => return Ok(()),
                    Err(Miss::Corrupt(wrong)) => {
                        self.corrupt(wrong).await;
                        return Err(errno(libc::EIO));
                    }
                    Err(_) => return Err(errno(libc::EIO)),
                };
                blkdebug::event(&self.file, "l2_load").await;
                let data = self.read_metadata(offset, size).await?;
                let mut meta = self.meta.lock();
                if meta.l2_offset(index) == Ok(Some(offset)) {
                    meta.loaded(index, &data);
                }
                self.trim(&mut meta);
                Ok(())
            }
            Miss::Refblock(index) => {
                let offset = self.meta.lock().refs.table.get(index).copied().unwrap_or(0);
                if offset & (size - 1) != 0 {
                    self.corrupt(Wrong::Refblock { offset, index }).await;
                    return Err(errno(libc::EIO));
                }
                blkdebug::event(&self.file, "refblock_load").await;
                let data = self.read_metadata(offset, size).await?;
                self.meta.lock().refs.loaded(index, data);
                Ok(())
            }
        }
    }

    /// Keeps the cache small while only reads go on.
    fn trim(&self, meta: &mut Meta) {
        if meta.l2.len() > self.cached_tables
            && let Ok(_one) = self.sync_lock.try_lock()
        {
            meta.shrink(self.cached_tables);
        }
    }

    async fn read_metadata(&self, offset: u64, len: u64) -> IoResult<Vec<u8>> {
        if offset.checked_add(len).is_none() || offset >= self.file.size() {
            self.corrupt(Wrong::Other("Metadata outside of the file", offset)).await;
            return Err(errno(libc::EIO));
        }
        let mut data = vec![0; len as usize];
        self.file.read(offset, &mut data).await?;
        Ok(data)
    }

    /// The image contradicts itself: tells, and refuses everything from now on where it could be
    /// written.
    pub(super) async fn corrupt(&self, wrong: Wrong) {
        let fatal = !self.read_only.load(Ordering::Acquire);
        let told = if fatal { &self.dead } else { &self.complained };
        if told.swap(true, Ordering::AcqRel) {
            return;
        }
        match fatal {
            true => eprintln!(
                "qcow2: Marking image as corrupt: {wrong}; further corruption events will be suppressed"
            ),
            false => eprintln!(
                "qcow2: Image is corrupt: {wrong}; further non-fatal corruption events will be suppressed"
            ),
        }
        let node = self.context.node_name.clone();
        let graph = self.context.graph.upgrade();
        let shown = graph.and_then(|graph| graph.find(&node)).map(|node| node.shown_name());
        let (offset, size) = match wrong {
            Wrong::Overlap { offset, len, .. } => (Some(offset), Some(len)),
            Wrong::Other(_, offset) => (Some(offset), None),
            _ => (None, None),
        };
        self.context.notices.send(crate::Notice::ImageCorrupted {
            device: shown.filter(|name| *name != node).unwrap_or_default(),
            node: Some(node),
            text: wrong.to_string(),
            offset,
            size,
            fatal,
        });
        if fatal && self.meta.lock().header.version >= 3 {
            self.meta.lock().header.incompatible |= INCOMPAT_CORRUPT;
            // If even that fails the node still refuses everything.
            let _ = self.write_header().await;
        }
    }
}

impl Meta {
    /// Counts free clusters of a range as used, so that nobody takes them; returns which.
    fn hold(&mut self, hole: Free, bits: u32) -> Vec<Free> {
        let mut held: Vec<Free> = Vec::new();
        for cluster in hole.offset >> bits..(hole.offset + hole.len) >> bits {
            if self.refs.get(cluster) == Ok(0) && self.refs.set(cluster, 1).is_ok() {
                let offset = cluster << bits;
                match held.last_mut() {
                    Some(last) if last.offset + last.len == offset => last.len += 1 << bits,
                    _ => held.push(Free { offset, len: 1 << bits }),
                }
            }
        }
        held
    }
}
