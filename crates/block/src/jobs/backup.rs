//! `drive-backup`, `blockdev-backup`: the state at one point in time, copied while the guest
//! goes on writing. Before a write changes a cluster that is still to be copied, it is copied.

use super::copy::{Failed, Held, copy};
use super::{Body, Job, Jobs, Setup};
use crate::backend::OnError;
use crate::bitmap::DirtyBitmap;
use crate::graph::{Graph, Hook, Node};
use crate::notice::Action;
use crate::types::*;
use base::{Mutex, Result, bail};
use std::sync::Arc;
use tokio::sync::Notify;

/// Smallest unit of copying in bytes.
const CLUSTER: u64 = 65536;

#[derive(Clone)]
pub enum BackupSync {
    Full,
    /// Only what the source itself has.
    Top,
    /// Only what is about to be overwritten.
    None,
    /// What the bitmap says.
    Bitmap(Arc<DirtyBitmap>, BitmapMode),
}

/// What becomes of the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    OnSuccess,
    Always,
    Never,
}

pub struct BackupSpec {
    pub setup: Setup,
    pub source: Arc<Node>,
    pub target: Arc<Node>,
    pub sync: BackupSync,
    pub compress: bool,
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
    /// Still to be copied.
    todo: DirtyBitmap,
    copying: Mutex<Vec<u64>>,
    copied: Notify,
}

struct Backup {
    spec: BackupSpec,
    held: Held,
    front: Arc<Front>,
    hook: Arc<dyn Hook>,
    /// Records what the guest writes while the bitmap is in use.
    successor: Option<Arc<DirtyBitmap>>,
}

impl Front {
    /// Copies a cluster unless that is done; waits if another does it.
    async fn cluster(&self, at: u64) -> Result<bool, Failed> {
        loop {
            let copied = self.copied.notified();
            {
                let mut copying = self.copying.lock();
                if !copying.contains(&at) {
                    if !self.todo.get(at) {
                        return Ok(false);
                    }
                    copying.push(at);
                    break;
                }
            }
            copied.await;
        }
        let len = self.cluster.min(self.source.size() - at);
        let result = copy(&self.source, &self.target, at, len, true).await;
        if result.is_ok() {
            self.todo.reset(at, len);
        }
        self.copying.lock().retain(|one| *one != at);
        self.copied.notify_waiters();
        result.map(|()| true)
    }
}

impl Hook for Front {
    fn before_write(&self, offset: u64, len: u64) -> Fut<'_, IoResult> {
        Box::pin(async move {
            let mut at = offset / self.cluster * self.cluster;
            while at < (offset + len).min(self.source.size()) {
                if let Err(Failed::Source(error) | Failed::Target(error)) = self.cluster(at).await {
                    return Err(error);
                }
                at += self.cluster;
            }
            Ok(())
        })
    }
}

impl Jobs {
    pub async fn backup(&self, graph: &Arc<Graph>, spec: BackupSpec) -> Result<Arc<Job>> {
        self.check_id(&spec.setup.id)?;
        if Arc::ptr_eq(&spec.source, &spec.target) {
            bail!("Source and target cannot be the same");
        }
        spec.source.check_busy()?;
        spec.target.check_busy()?;
        if spec.source.size() != spec.target.size() {
            bail!("Source and target image have different sizes");
        }
        let mut held = Held::new(graph, "backup", &spec.setup.id);
        held.block(&spec.source);
        held.block(&spec.target);
        held.attach("source", &spec.source, Perm::CONSISTENT_READ, Perm::all())?;
        held.attach("target", &spec.target, Perm::WRITE, Perm::GUEST_SHARED | Perm::WRITE)?;
        let cluster = spec.target.layer().info().cluster_size.unwrap_or(CLUSTER).clamp(CLUSTER, 16 << 20);
        let size = spec.source.size();
        let todo = DirtyBitmap::new(None, cluster as u32, size);
        // One point in time: nothing is in flight while the hook is put in.
        let drained = graph.drain(&spec.source).await;
        let mut successor = None;
        match &spec.sync {
            BackupSync::Bitmap(bitmap, _) => {
                if bitmap.is_busy() || bitmap.is_inconsistent() {
                    bail!(
                        "Bitmap '{}' is currently in use by another operation and cannot be used",
                        bitmap.name().unwrap_or_default()
                    );
                }
                todo.merge(bitmap);
                let next = Arc::new(DirtyBitmap::new(None, bitmap.granularity(), size));
                next.enable(bitmap.is_enabled());
                bitmap.set_busy(true);
                bitmap.enable(false);
                spec.source.bitmaps().add(next.clone());
                successor = Some(next);
            }
            _ => todo.set(0, size),
        }
        let (source, target) = (spec.source.clone(), spec.target.clone());
        let front = Front { source, target, cluster, todo, copying: Mutex::default(), copied: Notify::new() };
        let front = Arc::new(front);
        let hook: Arc<dyn Hook> = front.clone();
        spec.source.add_hook(hook.clone());
        drop(drained);
        let setup = spec.setup.clone();
        self.start(setup, Backup { spec, held, front, hook, successor })
    }
}

impl Backup {
    async fn copy_all(&mut self, job: &Job) -> IoResult {
        let size = self.spec.source.size();
        if matches!(self.spec.sync, BackupSync::Top) {
            self.leave_out_unallocated(job).await?;
        }
        let total = match self.spec.sync {
            BackupSync::Bitmap(..) => self.front.todo.count(),
            _ => size,
        };
        job.set_len(total);
        if matches!(self.spec.sync, BackupSync::None) {
            loop {
                job.pause_point().await?;
                if job.is_cancelled() {
                    return Err(errno(libc::ECANCELED));
                }
                job.wait(std::time::Duration::from_secs(60)).await;
            }
        }
        let mut at = 0;
        while let Some((from, _)) = self.front.todo.next_dirty(at, 1) {
            job.pause_point().await?;
            let from = from / self.front.cluster * self.front.cluster;
            let len = self.front.cluster.min(size - from);
            job.pace(len).await?;
            let (policy, write, error) = match self.front.cluster(from).await {
                Ok(_) => {
                    at = from + len;
                    let left = self.front.todo.count().min(total);
                    self.report(job, total, left);
                    continue;
                }
                Err(Failed::Source(error)) => (self.spec.on_source_error, false, error),
                Err(Failed::Target(error)) => (self.spec.on_target_error, true, error),
            };
            if job.on_error(policy, write, &error) == Action::Report {
                return Err(error);
            }
        }
        self.report(job, total, 0);
        self.spec.target.flush().await
    }

    fn report(&self, job: &Job, total: u64, left: u64) {
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
        let (BackupSync::Bitmap(bitmap, mode), Some(next)) = (&self.spec.sync, self.successor.take()) else {
            return;
        };
        let copied = match mode {
            BitmapMode::OnSuccess => ok,
            BitmapMode::Always => true,
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
        bitmap.set_busy(false);
        self.spec.source.bitmaps().remove(&next);
    }
}

impl Body for Backup {
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult> {
        Box::pin(self.copy_all(job))
    }

    fn clean<'a>(&'a mut self, ok: bool) -> Fut<'a, ()> {
        Box::pin(async move {
            let drained = self.held.graph.drain(&self.spec.source).await;
            self.spec.source.remove_hook(&self.hook);
            self.end_bitmap(ok);
            drop(drained);
            self.held.release();
        })
    }
}
