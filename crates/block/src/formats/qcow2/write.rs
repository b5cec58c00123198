//! Writing the guest's disk: in place where possible, else into new clusters.

use super::Qcow2;
use super::entry::*;
use super::meta::Meta;
use super::refcounts::{Attempt, Miss, Wrong};
use crate::filters::blkdebug;
use crate::types::*;

/// Clusters allocated at once for one request.
const MAX_RUN: u64 = 256;
/// Up to this size, data and the copied edges around it are written in one piece.
const JOIN: usize = 1 << 20;

/// How the next part of a write is done.
enum Step {
    /// Another request is allocating here: wait for it.
    Wait,
    InPlace {
        host: u64,
        len: u64,
    },
    Allocate(Allocation),
}

/// New (or so far unused) space for the guest range `[from, to)`.
#[derive(Clone, Copy, Debug)]
struct Allocation {
    from: u64,
    to: u64,
    /// What must hold this range's content too, at the edges.
    copy_from: u64,
    copy_to: u64,
    /// Host offset of the cluster that `from` is in.
    host: u64,
    /// The host clusters are new, not kept from before.
    new: bool,
    /// Whole clusters in `busy`.
    busy: (u64, u64),
}

impl Qcow2 {
    pub(super) async fn write_guest(&self, offset: u64, data: &[u8]) -> IoResult {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let left = (data.len() - done) as u64;
            let woken = self.allocated.notified();
            let external = self.data.is_some();
            match self.with(|meta| plan(meta, at, left, external)).await? {
                Step::Wait => woken.await,
                Step::InPlace { host, len } => {
                    let piece = &data[done..done + len as usize];
                    blkdebug::event(self.store(), "write_aio").await;
                    self.write_store(at, host, piece).await?;
                    done += piece.len();
                }
                Step::Allocate(space) => {
                    let piece = &data[done..done + (space.to - space.from) as usize];
                    let result = self.fill(space, piece).await;
                    self.meta.lock().finish(space.busy.0, space.busy.1);
                    self.allocated.notify_waiters();
                    result?;
                    done += piece.len();
                }
            }
        }
        Ok(())
    }

    async fn fill(&self, space: Allocation, data: &[u8]) -> IoResult {
        if space.new {
            blkdebug::event(&self.file, "cluster_alloc").await;
        }
        let result = self.fill_space(space, data).await;
        if result.is_err() && space.new && self.data.is_none() {
            // Nothing names the clusters yet.
            let clusters = (space.busy.1 - space.busy.0) >> self.geometry.cluster_bits;
            let len = clusters << self.geometry.cluster_bits;
            self.meta.lock().frees.push(super::meta::Free { offset: space.host, len });
        }
        result
    }

    async fn fill_space(&self, space: Allocation, data: &[u8]) -> IoResult {
        let mut head = vec![0; (space.from - space.copy_from) as usize];
        let mut tail = vec![0; (space.copy_to - space.to) as usize];
        if !(head.is_empty() && tail.is_empty()) {
            blkdebug::event(&self.file, "cow_read").await;
        }
        self.read_guest(space.copy_from, &mut head).await?;
        self.read_guest(space.to, &mut tail).await?;
        let base = space.busy.0;
        // Space behind the end of the file reads as zeroes already, unless they are encrypted.
        let fresh = space.new && self.crypto.is_none() && space.host >= self.store().size();
        let zero = |edge: &[u8]| edge.iter().all(|byte| *byte == 0);
        let keep_head = !(head.is_empty() || fresh && zero(&head));
        let keep_tail = !(tail.is_empty() || fresh && zero(&tail));
        let start = if keep_head { space.copy_from } else { space.from };
        if keep_head || keep_tail {
            blkdebug::event(&self.file, "cow_write").await;
        }
        blkdebug::event(self.store(), "write_aio").await;
        let host = space.host + (start - base);
        if (keep_head || keep_tail) && data.len() + head.len() + tail.len() <= JOIN {
            let mut whole = Vec::with_capacity(head.len() + data.len() + tail.len());
            whole.extend_from_slice(if keep_head { &head } else { &[] });
            whole.extend_from_slice(data);
            whole.extend_from_slice(if keep_tail { &tail } else { &[] });
            self.write_store(start, host, &whole).await?;
        } else {
            if keep_head {
                self.write_store(start, host, &head).await?;
            }
            self.write_store(space.from, space.host + (space.from - base), data).await?;
            if keep_tail {
                self.write_store(space.to, space.host + (space.to - base), &tail).await?;
            }
        }
        self.with(|meta| link(meta, space)).await
    }
}

/// Points the tables to filled clusters.
fn link(meta: &mut Meta, space: Allocation) -> Attempt<()> {
    let geometry = meta.geometry;
    let size = geometry.cluster_size();
    // Load before anything changes, so that a miss changes nothing.
    meta.entry(space.busy.0)?;
    let mut cluster = space.busy.0;
    while cluster < space.busy.1 {
        let old = meta.entry(cluster)?;
        let (from, to) = (space.copy_from.max(cluster), space.copy_to.min(cluster + size));
        let covered = geometry.covered(from, to);
        let mut new = Entry { word: space.host + (cluster - space.busy.0) | COPIED, bitmap: covered };
        if !space.new {
            new.bitmap |= old.bitmap & !(covered << 32);
        } else if geometry.extended && old.word & COMPRESSED == 0 && !geometry.has_host(old) {
            // What was zero beside the new data stays so.
            new.bitmap |= old.bitmap & !(covered << 32);
        }
        meta.set_entry(cluster, new)?;
        if space.new {
            meta.give_up(old);
        }
        cluster += size;
    }
    Ok(())
}

fn plan(meta: &mut Meta, at: u64, len: u64, external: bool) -> Attempt<Step> {
    let geometry = meta.geometry;
    let size = geometry.cluster_size();
    let len = len.min(geometry.to_table_end(at));
    let first = at & !(size - 1);
    let Some(end) = meta.free_of_others(first, (at + len).next_multiple_of(size)) else {
        return Ok(Step::Wait);
    };
    let len = len.min(end - at);
    meta.own_table(at)?;
    let entry = meta.entry(at)?;
    let owned = |entry: Entry| geometry.has_host(entry) && entry.word & COPIED != 0;
    if !owned(entry) {
        return plan_new(meta, at, len, external);
    }
    let map = meta.lookup(at, len)?;
    if map.kind == Kind::Normal {
        let Some(host) = map.host else {
            return Err(Miss::Corrupt(Wrong::Other("Cluster without a place", at)));
        };
        let host_cluster = host & !(size - 1);
        if !external && let Some(part) = meta.overlaps(host_cluster, size) {
            let len = map.len.min(len).min(size);
            return Err(Miss::Corrupt(Wrong::Overlap { part, offset: host, len }));
        }
        let len = in_place_run(meta, at, map.len.min(len))?;
        return Ok(Step::InPlace { host, len });
    }
    // The cluster is ours, but the subclusters written are not in use yet.
    let to = (at + len).min(first + size);
    let host = meta.host(entry, first)?;
    let sub = geometry.subcluster_size();
    let busy = (first, first + size);
    meta.busy.push(busy);
    let copy_to = to.next_multiple_of(sub);
    Ok(Step::Allocate(Allocation {
        from: at,
        to,
        copy_from: at & !(sub - 1),
        copy_to,
        host,
        new: false,
        busy,
    }))
}

/// How far from `at` clusters belong to the active state alone.
fn in_place_run(meta: &mut Meta, at: u64, len: u64) -> Attempt<u64> {
    let size = meta.geometry.cluster_size();
    let mut end = (at | (size - 1)) + 1;
    while end < at + len {
        if meta.entry(end)?.word & COPIED == 0 {
            break;
        }
        end += size;
    }
    Ok(len.min(end - at))
}

fn plan_new(meta: &mut Meta, at: u64, len: u64, external: bool) -> Attempt<Step> {
    let geometry = meta.geometry;
    let size = geometry.cluster_size();
    let first = at & !(size - 1);
    let mut stop = first + size;
    let owned = |entry: Entry| geometry.has_host(entry) && entry.word & COPIED != 0;
    while stop < at + len && (stop - first) >> geometry.cluster_bits < MAX_RUN && !owned(meta.entry(stop)?) {
        stop += size;
    }
    let to = (at + len).min(stop);
    let host = if external { first } else { meta.allocate((stop - first) >> geometry.cluster_bits)? };
    // Where the old cluster has data of its own, the whole of it is copied.
    let unit = |entry: Entry| match geometry.has_host(entry) || entry.word & COMPRESSED != 0 {
        true => size,
        false => geometry.subcluster_size(),
    };
    let head_unit = unit(meta.entry(first)?);
    let tail_unit = unit(meta.entry(stop - size)?);
    let busy = (first, stop);
    meta.busy.push(busy);
    Ok(Step::Allocate(Allocation {
        from: at,
        to,
        copy_from: at & !(head_unit - 1),
        copy_to: to.next_multiple_of(tail_unit),
        host,
        new: true,
        busy,
    }))
}
