//! Zeroes and discards: only tables change.

use super::Qcow2;
use super::entry::*;
use super::header::AUTOCLEAR_RAW_DATA;
use super::meta::Meta;
use super::refcounts::Attempt;
use crate::driver::Layer as _;
use crate::types::*;
use std::sync::atomic::Ordering;

const ALL_ZERO: u64 = 0xffff_ffff_0000_0000;

/// How a pass over a table went.
enum Pass {
    /// Everything before this guest offset is done.
    Until(u64),
    /// Another request allocates here.
    Wait,
    /// This cannot be said in a table; data must be written.
    Unable,
}

impl Qcow2 {
    pub(super) async fn zero_guest(&self, offset: u64, len: u64, unmap: bool) -> IoResult {
        let (size, sub) = (self.size(), self.geometry.subcluster_size());
        let end = offset + len;
        if offset & (sub - 1) != 0 || (end & (sub - 1) != 0 && end < size) {
            return Err(errno(libc::ENOTSUP));
        }
        if self.geometry.version < 3 {
            if self.backing().is_some() || !unmap {
                return Err(errno(libc::ENOTSUP));
            }
            return self.discard_guest(offset, len, true).await;
        }
        let raw = self.meta.lock().header.autoclear & AUTOCLEAR_RAW_DATA != 0;
        if let (Some(data), true) = (&self.data, raw) {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::MAY_UNMAP, unmap);
            data.write_zeroes(offset, len, flags).await?;
        }
        let mut at = offset;
        while at < end {
            let woken = self.allocated.notified();
            match self.with(|meta| zero_some(meta, at, end, unmap)).await? {
                Pass::Until(next) => at = next,
                Pass::Wait => woken.await,
                Pass::Unable => return Err(errno(libc::ENOTSUP)),
            }
        }
        Ok(())
    }

    /// Gives clusters up. `full`: nothing of them stays, a backing file may show; else they
    /// read as zeroes afterwards.
    pub(super) async fn discard_guest(&self, offset: u64, len: u64, full: bool) -> IoResult {
        let (size, cluster) = (self.size(), self.geometry.cluster_size());
        let backing = self.backing().is_some();
        if !full && backing && self.geometry.version < 3 {
            return Err(errno(libc::ENOTSUP));
        }
        let end = offset + len;
        let mut at = offset.next_multiple_of(cluster);
        let stop = if end >= size { end.next_multiple_of(cluster) } else { end & !(cluster - 1) };
        if let Some(data) = &self.data
            && self.pass_discard.load(Ordering::Relaxed)
            && at < stop.min(end)
        {
            data.discard(at, stop.min(end) - at).await?;
        }
        while at < stop {
            let woken = self.allocated.notified();
            match self.with(|meta| discard_some(meta, at, stop, full, backing)).await? {
                Pass::Until(next) => at = next,
                Pass::Wait => woken.await,
                Pass::Unable => return Err(errno(libc::ENOTSUP)),
            }
        }
        Ok(())
    }
}

fn zero_some(meta: &mut Meta, at: u64, end: u64, unmap: bool) -> Attempt<Pass> {
    let geometry = meta.geometry;
    let size = geometry.cluster_size();
    let first = at & !(size - 1);
    let end = end.min(at + geometry.to_table_end(at));
    let Some(free) = meta.free_of_others(first, end.next_multiple_of(size)) else { return Ok(Pass::Wait) };
    let end = end.min(free);
    meta.own_table(at)?;
    let mut cluster = first;
    while cluster < end {
        let old = meta.entry(cluster)?;
        let (from, to) = (at.max(cluster), end.min(cluster + size));
        let whole = from == cluster && (to == cluster + size || !geometry.extended);
        let mut new = old;
        if whole {
            let keeps = !unmap && geometry.has_host(old) && old.word & COPIED != 0;
            new.word = if keeps { old.word & !ZERO } else { 0 };
            if geometry.extended {
                new.bitmap = ALL_ZERO;
            } else {
                new.word |= ZERO;
            }
            if !keeps && new != old {
                meta.give_up(old);
            }
        } else {
            if old.word & COMPRESSED != 0 {
                return Ok(Pass::Unable);
            }
            let to = to.next_multiple_of(geometry.subcluster_size());
            let bits = geometry.covered(from, to);
            new.bitmap = (old.bitmap & !bits) | bits << 32;
        }
        if new != old {
            meta.set_entry(cluster, new)?;
        }
        cluster += size;
    }
    Ok(Pass::Until(end))
}

fn discard_some(meta: &mut Meta, at: u64, stop: u64, full: bool, backing: bool) -> Attempt<Pass> {
    let geometry = meta.geometry;
    let size = geometry.cluster_size();
    let span = geometry.to_table_end(at);
    let stop = stop.min(at + span);
    let index = geometry.l1_index(at);
    if index >= meta.l1.len() || (meta.l2_offset(index)?.is_none() && (full || !backing)) {
        return Ok(Pass::Until(stop));
    }
    let Some(stop) = meta.free_of_others(at, stop) else { return Ok(Pass::Wait) };
    let zero = match geometry.extended {
        true => Entry { word: 0, bitmap: ALL_ZERO },
        false => Entry { word: if geometry.version >= 3 { ZERO } else { 0 }, bitmap: 0 },
    };
    let mut cluster = at;
    while cluster < stop {
        let old = meta.entry(cluster)?;
        let new = match (full, old == Entry::default()) {
            (true, _) => Entry::default(),
            (false, true) if !backing => old,
            _ => zero,
        };
        if new != old {
            meta.own_table(cluster)?;
            meta.set_entry(cluster, new)?;
            meta.give_up(old);
        }
        cluster += size;
    }
    Ok(Pass::Until(stop))
}
