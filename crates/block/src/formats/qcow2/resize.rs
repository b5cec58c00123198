//! Other sizes.

use super::Qcow2;
use super::entry::*;
use super::header::*;
use crate::driver::Layer as _;
use crate::types::*;
use base::{Failure, Result, bail};
use std::sync::atomic::Ordering;

impl Qcow2 {
    pub(super) async fn resize(&self, size: u64, how: Truncate) -> Result<()> {
        self.alive()?;
        if !size.is_multiple_of(512) {
            bail!("The new size must be a multiple of 512");
        }
        let old = self.size();
        let header = self.meta.lock().header.clone();
        if header.snapshots > 0 && header.version < 3 {
            bail!("Can't resize a version 2 image which has snapshots");
        }
        let bitmaps = self.context.bitmaps.list();
        if bitmaps.iter().any(|bitmap| bitmap.is_persistent() && bitmap.is_read_only()) {
            bail!("Cannot resize image with bitmaps that are read-only");
        }
        if size < old {
            if how.preallocation != Preallocation::Off {
                bail!("Preallocation can't be used for shrinking an image");
            }
            return self.shrink(size, old).await;
        }
        if header.version < 3 && self.backing().is_some_and(|below| size > old && below.size() > old) {
            // Its tables cannot say that what lies below there is not to be seen.
            let why = errno(libc::ENOTSUP);
            return Err(Failure::os("Failed to zero out new clusters", &why));
        }
        let entries = header.l1_entries_for(size);
        if entries * 8 > MAX_L1_BYTES {
            bail!("The image size is too large for file format 'qcow2' (try using a larger cluster size)");
        }
        if entries > self.meta.lock().l1.len() as u64 {
            self.grow_l1(entries)
                .await
                .map_err(|error| Failure::os("Failed to grow the L1 table", &error))?;
        }
        let raw = header.autoclear & AUTOCLEAR_RAW_DATA != 0;
        if let Some(data) = &self.data {
            data.truncate(size, Truncate { exact: false, ..how }).await?;
        }
        // What a raw data file holds is the image's, whatever lies under it.
        let mode = if raw { Preallocation::Metadata } else { how.preallocation };
        if mode != Preallocation::Off && (raw || self.data.is_none()) {
            // Growth becomes visible only when its space is there.
            self.preallocate(old, size, mode).await?;
        }
        self.set_size(size).await?;
        if how.zero && !raw && self.backing().is_some() && how.preallocation == Preallocation::Off {
            let from = old.next_multiple_of(self.geometry.subcluster_size());
            if from > old {
                let edge = vec![0; (from.min(size) - old) as usize];
                self.write_guest(old, &edge).await?;
            }
            if size > from && header.version >= 3 {
                self.zero_guest(from, size - from, true).await?;
            }
        }
        Ok(())
    }

    async fn set_size(&self, size: u64) -> Result<()> {
        self.sync().await?;
        let old = {
            let mut meta = self.meta.lock();
            std::mem::replace(&mut meta.header.size, size)
        };
        if let Err(error) = self.write_header().await {
            self.meta.lock().header.size = old;
            return Err(Failure::os("Failed to update the image size", &error));
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// The smaller size first: a cut in between leaves data nobody sees.
    async fn shrink(&self, size: u64, old: u64) -> Result<()> {
        self.set_size(size).await?;
        let first = size.next_multiple_of(self.geometry.cluster_size());
        if first < old {
            let stop = old.next_multiple_of(self.geometry.cluster_size());
            self.discard_guest(first, stop - first, true).await?;
        }
        // What lies behind the end in the last cluster must not come back on growing.
        let end = first.min(old);
        let mut at = size;
        while at < end {
            let there = self.with(|meta| meta.lookup(at, end - at)).await?;
            if there.kind != Kind::Unallocated {
                self.write_guest(at, &vec![0; there.len as usize]).await?;
            }
            at += there.len;
        }
        if let Some(data) = &self.data {
            data.truncate(size, Truncate::default()).await?;
        }
        self.sync().await?;
        Ok(())
    }

    /// A longer L1 table in a new place.
    pub(super) async fn grow_l1(&self, entries: u64) -> IoResult {
        if entries * 8 > MAX_L1_BYTES {
            return Err(errno(libc::EFBIG));
        }
        let _one = self.sync_lock.lock().await;
        self.sync_locked().await?;
        let bits = self.geometry.cluster_bits;
        let clusters = (entries * 8).div_ceil(1 << bits);
        let offset = self.with(|meta| meta.allocate(clusters)).await?;
        // Its counts must be on disk before the header names it, and so must every table
        // that the copy of L1 names.
        let (bytes, old) = loop {
            self.sync_locked().await?;
            let mut meta = self.meta.lock();
            if !meta.l1_dirty.is_clean() {
                continue;
            }
            let old = (meta.header.l1_offset, meta.header.l1_size);
            meta.l1.resize(entries as usize, 0);
            meta.header.l1_size = entries as u32;
            meta.header.l1_offset = offset;
            meta.l1_dirty = super::dirty::Sectors::new(entries as usize * 8);
            let mut bytes = super::rebuild::to_bytes(&meta.l1);
            bytes.resize((clusters << bits) as usize, 0);
            break (bytes, old);
        };
        if let Err(error) = self.switch_l1(offset, &bytes).await {
            let mut meta = self.meta.lock();
            (meta.header.l1_offset, meta.header.l1_size) = old;
            meta.l1.truncate(old.1 as usize);
            meta.l1_dirty = super::dirty::Sectors::new(old.1 as usize * 8);
            meta.l1_dirty.mark_all();
            meta.frees.push(super::meta::Free { offset, len: clusters << bits });
            return Err(error);
        }
        if old.1 > 0 {
            self.meta.lock().frees.push(super::meta::Free { offset: old.0, len: u64::from(old.1) * 8 });
        }
        Ok(())
    }

    async fn switch_l1(&self, offset: u64, bytes: &[u8]) -> IoResult {
        self.file.write(offset, bytes, WriteFlags::empty()).await?;
        self.file.flush().await?;
        self.write_header().await
    }

    /// Gives every cluster of a guest range a place.
    pub(super) async fn preallocate(&self, from: u64, to: u64, mode: Preallocation) -> Result<()> {
        let size = self.geometry.cluster_size();
        let mut at = from & !(size - 1);
        let mut end = 0;
        while at < to {
            let left = (to - at).min(self.geometry.to_table_end(at));
            let external = self.data.is_some();
            let (next, host, host_end) = self
                .with(|meta| {
                    meta.own_table(at)?;
                    let old = meta.entry(at)?;
                    if old != Entry::default() {
                        return Ok((at + size, 0, 0));
                    }
                    let mut stop = at + size;
                    while stop < at + left && stop - at < 256 * size && meta.entry(stop)? == Entry::default()
                    {
                        stop += size;
                    }
                    let count = (stop - at) >> meta.geometry.cluster_bits;
                    let host = if external { at } else { meta.allocate(count)? };
                    let bitmap = if meta.geometry.extended { 0xffff_ffff } else { 0 };
                    for index in 0..count {
                        let word = host + index * size | COPIED;
                        meta.set_entry(at + index * size, Entry { word, bitmap })?;
                    }
                    Ok((stop, host, host + count * size))
                })
                .await?;
            if !external && host < self.store().size().min(host_end) {
                // A cluster used before must not show what was in it.
                self.store().write_zeroes(host, host_end - host, ZeroFlags::empty()).await?;
            }
            at = next;
            end = end.max(host_end);
        }
        let store = self.store();
        if store.size() < end {
            let mode = if mode == Preallocation::Metadata { Preallocation::Off } else { mode };
            store.truncate(end, Truncate { exact: false, preallocation: mode, zero: false }).await?;
        }
        self.sync().await?;
        Ok(())
    }
}
