//! `drive-backup`, `blockdev-backup`: the state at one point in time, copied while the guest
//! goes on writing. Before a write changes a cluster that is still to be copied, it is copied.

use super::copy::{Failed, Held, How, copy};
use super::{Body, Job, Jobs, Setup, filter};
use crate::backend::OnError;
use crate::bitmap::DirtyBitmap;
use crate::graph::{Graph, Hook, Node};
use crate::notice::Action;
use crate::types::*;
use base::{Mutex, Result, bail};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Smallest unit of copying in bytes.
const CLUSTER: u64 = 65536;

/// Most bytes that are copied at once where `x-perf` says nothing.
const CHUNK: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupSync {
    Full,
    /// Only what the source itself has.
    Top,
    /// Only what is about to be overwritten.
    None,
    /// What the bitmap says.
    Bitmap,
}

/// What becomes of the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    OnSuccess,
    Always,
    Never,
}

/// `x-perf`.
#[derive(Clone, Copy, Debug)]
pub struct Perf {
    /// Copies that run at the same time, at least 1.
    pub workers: usize,
    /// Bytes of one copy, 0 for the usual.
    pub chunk: u64,
}

impl Default for Perf {
    fn default() -> Self {
        Perf { workers: 64, chunk: 0 }
    }
}

pub struct BackupSpec {
    pub setup: Setup,
    pub source: Arc<Node>,
    pub target: Arc<Node>,
    pub sync: BackupSync,
    pub bitmap: Option<(Arc<DirtyBitmap>, BitmapMode)>,
    pub compress: bool,
    pub perf: Perf,
    pub filter_node_name: Option<String>,
    pub on_source_error: OnError,
    pub on_target_error: OnError,
    /// Holds a target that nobody else holds.
    pub pin: Option<crate::graph::Pin>,
}

/// What guest writes and the job share.
struct Front {
    source: Arc<Node>,
    target: Arc<Node>,
    cluster: u64,
    how: How,
    /// Still to be copied.
    todo: DirtyBitmap,
    copying: Mutex<Vec<(u64, u64)>>,
    copied: Notify,
}

struct Backup {
    spec: BackupSpec,
    held: Held,
    front: Arc<Front>,
    hook: Arc<dyn Hook>,
    /// Records what the guest writes while the bitmap is in use.
    successor: Option<Arc<DirtyBitmap>>,
    /// It was not cancelled before it did anything.
    began: bool,
}

/// A run of clusters that one task copies.
struct Claim<'a> {
    front: &'a Front,
    from: u64,
    to: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.front.copying.lock().retain(|run| *run != (self.from, self.to));
        self.front.copied.notify_waiters();
    }
}

impl Front {
    /// Takes a run of clusters that begins with the one at `at`, at most `max` bytes (but one
    /// cluster) long; waits while another copies that one. `None` if it is copied.
    async fn claim(&self, at: u64, max: u64) -> Option<Claim<'_>> {
        loop {
            let copied = self.copied.notified();
            {
                let mut copying = self.copying.lock();
                let taken = |at: u64| copying.iter().any(|(from, to)| (*from..*to).contains(&at));
                if !taken(at) {
                    if !self.todo.get(at) {
                        return None;
                    }
                    let mut to = at + self.cluster;
                    while to - at + self.cluster <= max && self.todo.get(to) && !taken(to) {
                        to += self.cluster;
                    }
                    copying.push((at, to));
                    return Some(Claim { front: self, from: at, to });
                }
            }
            copied.await;
        }
    }

    async fn copy(&self, claim: &Claim<'_>) -> Result<(), Failed> {
        // The source may have been made shorter meanwhile.
        let len = claim.to.min(self.source.size()).saturating_sub(claim.from);
        if len > 0 {
            copy(&self.source, &self.target, claim.from, len, self.how).await?;
        }
        self.todo.reset(claim.from, claim.to - claim.from);
        Ok(())
    }

    async fn copy_run(&self, at: u64, max: u64) -> Result<(), Failed> {
        match self.claim(at, max).await {
            Some(claim) => self.copy(&claim).await,
            None => Ok(()),
        }
    }
}

impl Hook for Front {
    fn before_write(&self, offset: u64, len: u64) -> Fut<'_, IoResult> {
        Box::pin(async move {
            let end = (offset + len).min(self.source.size());
            let mut at = offset / self.cluster * self.cluster;
            while at < end {
                let Some(claim) = self.claim(at, (end - at).min(CHUNK)).await else {
                    at += self.cluster;
                    continue;
                };
                if let Err(Failed::Source(error) | Failed::Target(error)) = self.copy(&claim).await {
                    return Err(error);
                }
                at = claim.to;
            }
            Ok(())
        })
    }
}

impl Jobs {
    pub async fn backup(&self, graph: &Arc<Graph>, spec: BackupSpec) -> Result<Arc<Job>> {
        if Arc::ptr_eq(&spec.source, &spec.target) {
            bail!("Source and target cannot be the same");
        }
        spec.source.check_busy()?;
        spec.target.check_busy()?;
        if spec.source.size() != spec.target.size() {
            bail!("Source and target image have different sizes");
        }
        if spec.compress && !spec.target.skip_filters().compresses() {
            bail!("Compression is not supported for this drive {}", spec.target.name());
        }
        let cluster = spec.target.layer().info().cluster_size.unwrap_or(CLUSTER).clamp(CLUSTER, 16 << 20);
        if spec.perf.chunk != 0 && spec.perf.chunk < cluster {
            let chunk = spec.perf.chunk;
            bail!("Required max-chunk ({chunk}) is less than backup cluster size ({cluster})");
        }
        if let Some((bitmap, _)) = &spec.bitmap {
            crate::transaction::readable(bitmap, false)?;
        }
        let size = spec.source.size();
        DirtyBitmap::check_size(cluster as u32, size)?;
        let mut held = Held::new(graph, "backup", &spec.setup.id);
        let todo = DirtyBitmap::new(None, cluster as u32, size);
        // One point in time: nothing is in flight while the hook is put in.
        let drained = graph.drain(&spec.source).await;
        // What the target itself reads of the source it goes on reading there.
        let target = Some(&spec.target);
        let name = spec.filter_node_name.as_deref();
        let filter = held.put_filter(&filter::BACKUP, name, &spec.source, target).await?;
        held.block(&spec.source);
        held.block(&spec.target);
        // A user of the filter, though it may be the only one: from now on nobody may write past it.
        held.attach("main node", &filter, Perm::CONSISTENT_READ, Perm::all())?;
        held.attach_filter_target(&spec.target, Perm::WRITE, Perm::GUEST_SHARED | Perm::WRITE)?;
        held.attach("target", &spec.target, Perm::empty(), Perm::all())?;
        self.check_id(&spec.setup.id)?;
        match &spec.bitmap {
            Some((bitmap, _)) if spec.sync == BackupSync::Bitmap => todo.merge(bitmap),
            _ => todo.set(0, size),
        }
        let successor = spec.bitmap.as_ref().map(|(bitmap, _)| succeed(&spec.source, bitmap));
        let front = Arc::new(Front {
            source: spec.source.clone(),
            target: spec.target.clone(),
            cluster,
            how: How { unmap: true, compress: spec.compress },
            todo,
            copying: Mutex::default(),
            copied: Notify::new(),
        });
        let hook: Arc<dyn Hook> = front.clone();
        spec.source.add_hook(hook.clone());
        drop(drained);
        let setup = spec.setup.clone();
        self.start(setup, Backup { spec, held, front, hook, successor, began: false })
    }
}

/// Freezes a bitmap; the answer records in its place.
fn succeed(node: &Node, bitmap: &DirtyBitmap) -> Arc<DirtyBitmap> {
    let next = Arc::new(DirtyBitmap::new(None, bitmap.granularity(), bitmap.size()));
    next.enable(bitmap.is_enabled());
    bitmap.set_busy(true);
    bitmap.set_successor(Some(&next));
    bitmap.enable(false);
    node.bitmaps().add(next.clone());
    next
}

impl Backup {
    async fn copy_all(&mut self, job: &Job) -> IoResult {
        let size = self.spec.source.size();
        if self.spec.sync == BackupSync::Top {
            self.leave_out_unallocated(job).await?;
        }
        let total = match self.spec.sync {
            BackupSync::Bitmap | BackupSync::Top => self.front.todo.count().min(size),
            _ => size,
        };
        job.set_len(total);
        if self.spec.sync == BackupSync::None {
            let ended = self.watch(job, total).await;
            self.report(job, total);
            return ended;
        }
        let mut running = JoinSet::new();
        let result = self.feed(job, total, &mut running).await;
        // What has begun is waited for: nobody writes to the target after the end.
        while running.join_next().await.is_some() {}
        self.report(job, total);
        result?;
        self.spec.target.flush().await
    }

    /// Leaves the copying to those who write, until the job is cancelled.
    async fn watch(&self, job: &Job, total: u64) -> IoResult {
        loop {
            job.pause_point().await?;
            if job.is_cancelled() {
                return Err(errno(libc::ECANCELED));
            }
            self.report(job, total);
            tokio::select! {
                () = job.wait(Duration::from_secs(60)) => {}
                () = self.front.copied.notified() => {}
            }
        }
    }

    /// Keeps the workers busy until everything is copied.
    async fn feed(&self, job: &Job, total: u64, running: &mut JoinSet<Result<(), Failed>>) -> IoResult {
        let front = &self.front;
        let usual = if self.spec.compress { front.cluster } else { CHUNK.max(front.cluster) };
        let chunk = if self.spec.perf.chunk == 0 { usual } else { self.spec.perf.chunk };
        let mut at = 0;
        loop {
            if job.is_to_pause() {
                self.stand_still(job, total, running).await?;
            }
            let next = front.todo.next_dirty(at, chunk);
            match next {
                Some((from, len))
                    if running.len() < self.spec.perf.workers
                        && (running.is_empty() || !job.is_limited()) =>
                {
                    let from = from / front.cluster * front.cluster;
                    job.pace(len).await?;
                    at = from + len.next_multiple_of(front.cluster);
                    let front = front.clone();
                    let copy = async move { front.copy_run(from, chunk).await };
                    running.spawn_on(copy, self.held.graph.worker().handle());
                }
                None if running.is_empty() && front.todo.count() == 0 => return Ok(()),
                // What failed before is tried again.
                None if running.is_empty() => at = 0,
                _ => {
                    job.pause_point().await?;
                    match running.join_next().await {
                        Some(Ok(Err(failed))) => self.failed(job, failed).await?,
                        Some(Err(_)) => return Err(errno(libc::EIO)),
                        _ => self.report(job, total),
                    }
                }
            }
        }
    }

    /// Nothing is copied while the job is paused. What failed at last is found out again.
    async fn stand_still(
        &self,
        job: &Job,
        total: u64,
        running: &mut JoinSet<Result<(), Failed>>,
    ) -> IoResult {
        while let Some(ended) = running.join_next().await {
            ended.map_err(|_| errno(libc::EIO))?.ok();
        }
        self.report(job, total);
        job.pause_point().await
    }

    async fn failed(&self, job: &Job, failed: Failed) -> IoResult {
        let (policy, write, error) = match failed {
            Failed::Source(error) => (self.spec.on_source_error, false, error),
            Failed::Target(error) => (self.spec.on_target_error, true, error),
        };
        match job.on_error(policy, write, &error) {
            Action::Report => Err(error),
            Action::Stop => Ok(()),
            Action::Ignore => {
                job.wait(Duration::from_millis(10)).await;
                Ok(())
            }
        }
    }

    fn report(&self, job: &Job, total: u64) {
        let left = self.front.todo.count().min(total);
        let done = job.info().progress.offset;
        job.advance((total - left).saturating_sub(done));
    }

    async fn leave_out_unallocated(&self, job: &Job) -> IoResult {
        let (source, size) = (&self.spec.source, self.spec.source.size());
        let mut at = 0;
        while at < size {
            job.pause_point().await?;
            let from = at;
            let mut any = false;
            let end = (at + self.front.cluster).min(size);
            while at < end {
                let status = source.block_status(at, end - at).await?;
                any |= status.flags.contains(StatusFlags::ALLOCATED);
                at += status.len;
            }
            if !any {
                self.front.todo.reset(from, end - from);
            }
        }
        Ok(())
    }

    fn end_bitmap(&mut self, ok: bool) {
        let (Some((bitmap, mode)), Some(next)) = (&self.spec.bitmap, self.successor.take()) else { return };
        let copied = match mode {
            BitmapMode::OnSuccess => ok,
            BitmapMode::Always => ok || self.began,
            BitmapMode::Never => false,
        };
        if copied {
            let failed = (!ok).then(|| &self.front.todo);
            bitmap.clear();
            if let Some(left) = failed {
                bitmap.merge(left);
            }
        }
        bitmap.merge(&next);
        bitmap.enable(next.is_enabled());
        bitmap.set_successor(None);
        bitmap.set_busy(false);
        self.spec.source.bitmaps().remove(&next);
    }
}

impl Body for Backup {
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult> {
        self.began = true;
        Box::pin(self.copy_all(job))
    }

    fn clean<'a>(&'a mut self, ok: bool) -> Fut<'a, ()> {
        Box::pin(async move {
            let drained = self.held.graph.drain(&self.spec.source).await;
            self.spec.source.remove_hook(&self.hook);
            self.end_bitmap(ok);
            self.held.take_filter_drained();
            drop(drained);
            self.held.release();
        })
    }
}
