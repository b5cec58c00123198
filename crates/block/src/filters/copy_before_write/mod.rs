//! `copy-before-write`: what is about to be overwritten is first copied to a target, so that
//! the state at the time of opening stays readable by `snapshot-access`.

mod access;

pub use access::DRIVER as SNAPSHOT_ACCESS;

use crate::bitmap::DirtyBitmap;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::filters::pass;
use crate::graph::Child;
use crate::jobs::known_zero;
use crate::options::Options;
use crate::types::*;
use base::{Mutex, Result, bail, fail};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

pub static DRIVER: Driver = Driver { name: "copy-before-write", kind: Kind::Filter, open, ..Driver::DEFAULT };

/// Longest piece that is copied at once, in bytes, if clusters are not longer.
const LONGEST: u64 = 1 << 20;
/// Smallest unit of copying in bytes.
const CLUSTER: u64 = 65536;

/// An open layer; [`access`] reads the old state through `old`.
pub struct CopyBeforeWrite {
    file: Child,
    old: Arc<Old>,
}

/// The state as it was.
struct Old {
    file: Child,
    target: Child,
    size: u64,
    cluster: u64,
    /// Not yet copied.
    todo: DirtyBitmap,
    /// What may be read of the old state.
    readable: DirtyBitmap,
    work: Mutex<Work>,
    changed: Notify,
    /// A failed copy fails the guest's write, rather than the old state.
    guest_fails: bool,
    limit: Option<Duration>,
}

#[derive(Default)]
struct Work {
    /// Clusters being copied.
    copying: Vec<u64>,
    /// Ranges of `file` that are being read as old state.
    reading: Vec<(u64, u64)>,
    /// Why the old state is lost.
    broken: bool,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let policies = [("break-guest-write", true), ("break-snapshot", false)];
        let guest_fails = open.options.take_word("on-cbw-error", &policies)?.unwrap_or(true);
        let limit = open.options.take_u64("cbw-timeout")?.filter(|seconds| *seconds > 0);
        let least = open.options.take_u64("min-cluster-size")?.unwrap_or(0);
        if least > 0 && (!least.is_power_of_two() || least > 1 << 30) {
            bail!("min-cluster-size needs to be a power of 2");
        }
        let bitmap = open.options.take_table("bitmap")?;
        let file = open.child("file", Role::FILTER).await?;
        let target = open.child("target", Role::DATA).await?;
        let size = file.size();
        if target.size() < size {
            bail!("Copy-before-write target is smaller than the disk");
        }
        let cluster = target.node().layer().info().cluster_size.unwrap_or(0);
        let cluster = cluster.max(least).clamp(CLUSTER, 1 << 30);
        DirtyBitmap::check_size(cluster as u32, size)?;
        let todo = DirtyBitmap::new(None, cluster as u32, size);
        let readable = DirtyBitmap::new(None, cluster as u32, size);
        match bitmap {
            None => {
                todo.set(0, size);
                readable.set(0, size);
            }
            Some(options) => {
                let bitmap = find_bitmap(open, options)?;
                todo.merge(&bitmap);
                readable.merge(&bitmap);
            }
        }
        let old = Arc::new(Old {
            file: file.clone(),
            target,
            size,
            cluster,
            todo,
            readable,
            work: Mutex::default(),
            changed: Notify::new(),
            guest_fails,
            limit: limit.map(Duration::from_secs),
        });
        Ok(Arc::new(CopyBeforeWrite { file, old }) as Arc<dyn Layer>)
    })
}

fn find_bitmap(open: &Open, mut options: Options) -> Result<Arc<DirtyBitmap>> {
    let (node, name) = (options.need_str("node")?, options.need_str("name")?);
    let node = open.graph.lookup(Some(&node), Some(&node))?;
    node.bitmaps().find(&name).ok_or_else(|| fail!("Dirty bitmap '{name}' not found"))
}

impl Old {
    /// Before `[offset, offset + len)` of the file changes.
    async fn save(self: &Arc<Self>, offset: u64, len: u64) -> IoResult {
        let start = offset / self.cluster * self.cluster;
        let end = offset.saturating_add(len).min(self.size);
        if let Err(error) = self.save_in_time(start, end).await {
            if self.guest_fails {
                return Err(error);
            }
            self.work.lock().broken = true;
        }
        self.wait_for_readers(start, end).await;
        Ok(())
    }

    async fn save_in_time(self: &Arc<Self>, start: u64, end: u64) -> IoResult {
        let Some(limit) = self.limit else { return self.save_all(start, end).await };
        // The copy goes on when its time is over: others may wait for it.
        let old = self.clone();
        let copy = tokio::spawn(async move { old.save_all(start, end).await });
        match tokio::time::timeout(limit, copy).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(errno(libc::EIO)),
            Err(_) => Err(errno(libc::ETIMEDOUT)),
        }
    }

    async fn save_all(&self, mut at: u64, end: u64) -> IoResult {
        while at < end && !self.work.lock().broken {
            at = self.save_run(at, end).await?;
        }
        Ok(())
    }

    /// Saves the clusters from `at` that have not been saved and that nobody else saves; returns
    /// where they end.
    async fn save_run(&self, at: u64, end: u64) -> IoResult<u64> {
        let mut stop = at;
        while stop == at {
            let changed = self.changed.notified();
            {
                let mut work = self.work.lock();
                if !work.copying.contains(&at) && !self.todo.get(at) {
                    return Ok(at + self.cluster);
                }
                while stop < end
                    && stop - at < LONGEST
                    && self.todo.get(stop)
                    && !work.copying.contains(&stop)
                {
                    work.copying.push(stop);
                    stop += self.cluster;
                }
            }
            if stop == at {
                changed.await;
            }
        }
        let len = stop.min(self.size) - at;
        let result = self.copy(at, len).await;
        let mut work = self.work.lock();
        work.copying.retain(|one| !(at..stop).contains(one));
        if result.is_ok() {
            self.todo.reset(at, len);
        }
        drop(work);
        self.changed.notify_waiters();
        result.map(|()| stop)
    }

    async fn copy(&self, from: u64, len: u64) -> IoResult {
        let mut at = from;
        while at < from + len {
            let (zero, run) = known_zero(&self.file.node(), at, from + len - at).await?;
            if zero {
                self.target.write_zeroes(at, run, ZeroFlags::MAY_UNMAP).await?;
            } else {
                let mut data = crate::buffers::take(run as usize);
                self.file.read(at, &mut data).await?;
                self.target.write(at, &data, WriteFlags::empty()).await?;
            }
            at += run;
        }
        Ok(())
    }

    async fn wait_for_readers(&self, from: u64, to: u64) {
        loop {
            let changed = self.changed.notified();
            if !self.work.lock().reading.iter().any(|&(start, end)| start < to && from < end) {
                return;
            }
            changed.await;
        }
    }
}

impl Layer for CopyBeforeWrite {
    pass!(size);
    pass!(limits);
    pass!(status);

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if !flags.contains(WriteFlags::UNCHANGED) {
                self.old.save(offset, data.len() as u64).await?;
            }
            self.file.write(offset, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if !flags.contains(ZeroFlags::UNCHANGED) {
                self.old.save(offset, len).await?;
            }
            self.file.write_zeroes(offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.old.save(offset, len).await?;
            self.file.discard(offset, len).await
        })
    }

    fn child_perm(&self, role: Role, _read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        if !role.contains(Role::FILTERED) {
            return (Perm::WRITE | Perm::CONSISTENT_READ, Perm::all() - Perm::RESIZE);
        }
        // Nobody uses the filter yet: the disk may still be in other hands.
        if perm.is_empty() {
            return (perm, shared);
        }
        (perm | Perm::CONSISTENT_READ, shared - Perm::WRITE - Perm::RESIZE)
    }
}
