//! `drive-mirror`, `blockdev-mirror` and the commit of an active image: copies, then keeps
//! copying what the guest changes, until told to switch over or to stop.

use super::copy::{CHUNK, Failed, Held, allocated_above, copy};
use super::{Body, Job, Jobs, Setup};
use crate::backend::OnError;
use crate::bitmap::DirtyBitmap;
use crate::graph::{Drained, Graph, Node, Parent};
use crate::notice::Action;
use crate::types::*;
use base::{Result, bail, fail};
use std::sync::Arc;
use std::time::Duration;

/// What is copied at first.
#[derive(Clone)]
pub enum MirrorSync {
    Full,
    /// What is allocated above this node (`None`: what is in the source itself).
    Top(Option<Arc<Node>>),
    None,
}

/// What the target stands on after switching over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingMode {
    /// What the source stood on (or the source, for sync `none`).
    Source,
    /// What the target's header says.
    Header,
    /// What it has now.
    Leave,
}

pub struct MirrorSpec {
    pub setup: Setup,
    pub source: Arc<Node>,
    pub target: Arc<Node>,
    pub sync: MirrorSync,
    /// Bytes; a power of two.
    pub granularity: u32,
    pub on_source_error: OnError,
    pub on_target_error: OnError,
    pub unmap: bool,
    /// Node to be replaced instead of the source.
    pub replaces: Option<String>,
    pub backing: BackingMode,
}

struct Mirror {
    spec: MirrorSpec,
    held: Held,
    bitmap: Arc<DirtyBitmap>,
    /// From the last look at the bitmap until the switch.
    drained: Vec<Drained>,
    base_was_read_only: bool,
}

impl Jobs {
    pub async fn mirror(&self, graph: &Arc<Graph>, spec: MirrorSpec) -> Result<Arc<Job>> {
        self.check_id(&spec.setup.id)?;
        if Arc::ptr_eq(&spec.source, &spec.target) {
            bail!("Can't mirror node into itself");
        }
        spec.source.check_busy()?;
        spec.target.check_busy()?;
        let kind = spec.setup.kind.as_str();
        let mut held = Held::new(graph, kind, &spec.setup.id);
        let base_was_read_only = kind == "commit" && spec.target.is_read_only();
        if base_was_read_only {
            graph.set_read_only(&spec.target, false).await?;
        }
        held.block(&spec.source);
        held.block(&spec.target);
        let prepared = async {
            held.attach("main node", &spec.source, Perm::CONSISTENT_READ, Perm::all())?;
            let shared = if kind == "commit" { Perm::all() } else { Perm::GUEST_SHARED };
            held.attach("target", &spec.target, Perm::WRITE | Perm::RESIZE, shared)?;
            if spec.target.size() != spec.source.size()
                && (kind != "commit" || spec.target.size() < spec.source.size())
            {
                spec.target.truncate(spec.source.size(), Truncate::default()).await?;
            }
            Ok::<_, base::Failure>(())
        };
        if let Err(why) = prepared.await {
            held.release();
            if base_was_read_only {
                let _ = graph.set_read_only(&spec.target, true).await;
            }
            return Err(why);
        }
        let bitmap = Arc::new(DirtyBitmap::new(None, spec.granularity.max(512), spec.source.size()));
        spec.source.bitmaps().add(bitmap.clone());
        let (setup, source) = (spec.setup.clone(), spec.source.clone());
        let body = Mirror { spec, held, bitmap: bitmap.clone(), drained: Vec::new(), base_was_read_only };
        self.start(setup, body).inspect_err(|_| source.bitmaps().remove(&bitmap))
    }
}

impl Mirror {
    /// Marks what is to be copied at first.
    async fn begin(&self, job: &Job) -> IoResult {
        let source = &self.spec.source;
        let size = source.size();
        let (base, top_only) = match &self.spec.sync {
            MirrorSync::None => return Ok(()),
            MirrorSync::Full => {
                self.bitmap.set(0, size);
                return Ok(());
            }
            MirrorSync::Top(Some(base)) => (Some(base.clone()), false),
            MirrorSync::Top(None) => (source.backing(), true),
        };
        if top_only && base.is_none() {
            self.bitmap.set(0, size);
            return Ok(());
        }
        let mut at = 0;
        while at < size {
            job.pause_point().await?;
            let (data, run) = allocated_above(source, base.as_ref(), at, (size - at).min(1 << 30)).await?;
            if data {
                self.bitmap.set(at, run);
            }
            at += run;
        }
        Ok(())
    }

    async fn chase(&mut self, job: &Job) -> IoResult {
        self.begin(job).await?;
        let mut at = 0;
        loop {
            job.pause_point().await?;
            job.set_remaining(self.bitmap.count().min(self.spec.source.size()));
            let chunk = CHUNK.max(u64::from(self.bitmap.granularity()));
            let next = self.bitmap.next_dirty(at, chunk).or_else(|| self.bitmap.next_dirty(0, chunk));
            if let Some((from, len)) = next {
                job.pace(len).await?;
                self.copy_piece(job, from, len).await?;
                at = from + len;
                continue;
            }
            if !job.is_ready() {
                self.spec.target.flush().await?;
                if self.bitmap.count() == 0 {
                    job.set_remaining(0);
                    job.set_ready();
                }
                continue;
            }
            if job.wants_completion() || job.is_cancelled() {
                self.drained = self.held.graph.drain(&self.spec.source).await;
                if self.bitmap.count() == 0 {
                    job.set_remaining(0);
                    return self.spec.target.flush().await;
                }
                self.drained.clear();
                continue;
            }
            job.wait(Duration::from_millis(20)).await;
        }
    }

    async fn copy_piece(&self, job: &Job, from: u64, len: u64) -> IoResult {
        // Cleared before reading: a write that comes meanwhile marks it again.
        self.bitmap.reset(from, len);
        let result = copy(&self.spec.source, &self.spec.target, from, len, self.spec.unmap).await;
        let (policy, write, error) = match result {
            Ok(()) => {
                job.advance(len);
                return Ok(());
            }
            Err(Failed::Source(error)) => (self.spec.on_source_error, false, error),
            Err(Failed::Target(error)) => (self.spec.on_target_error, true, error),
        };
        self.bitmap.set(from, len);
        match job.on_error(policy, write, &error) {
            Action::Report => Err(error),
            Action::Ignore => {
                job.wait(Duration::from_millis(10)).await;
                Ok(())
            }
            Action::Stop => Ok(()),
        }
    }

    async fn switch(&mut self) -> Result<()> {
        let graph = self.held.graph.clone();
        let (source, target) = (self.spec.source.clone(), self.spec.target.clone());
        let replaced = match &self.spec.replaces {
            Some(name) => graph.find(name).ok_or_else(|| fail!("Node name '{name}' not found"))?,
            None => source.clone(),
        };
        if self.spec.replaces.is_some() && replaced.size() != target.size() {
            bail!("cannot replace image with a mirror image of different size");
        }
        match self.spec.backing {
            BackingMode::Leave => {}
            BackingMode::Header => graph.open_backing(&target).await?,
            BackingMode::Source => {
                let backing = match &self.spec.sync {
                    MirrorSync::None => Some(source.clone()),
                    MirrorSync::Top(Some(base)) => Some(base.clone()),
                    MirrorSync::Top(None) => source.backing(),
                    MirrorSync::Full => None,
                };
                if backing.is_some() && target.driver().backing {
                    graph.set_backing(&target, backing.as_ref())?;
                }
            }
        }
        let settings = replaced.settings();
        if target.is_read_only() != settings.read_only && !settings.read_only {
            graph.set_read_only(&target, false).await?;
        }
        self.held.detach();
        let edges: Vec<_> = replaced
            .parents()
            .into_iter()
            .filter(|edge| !matches!(edge.parent(), Parent::Job { .. }))
            .filter(|edge| {
                !edge.role().contains(Role::BACKING)
                    || !Arc::ptr_eq(&replaced, &source)
                    || self.spec.setup.kind.as_str() == "mirror"
            })
            .filter(|edge| !matches!(edge.parent(), Parent::Node(name) if name == target.name()))
            .collect();
        graph.redirect_all(&edges, &target)
    }
}

impl Body for Mirror {
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult> {
        Box::pin(self.chase(job))
    }

    fn commit<'a>(&'a mut self, job: &'a Job) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let result =
                if job.wants_completion() && !job.is_cancelled() { self.switch().await } else { Ok(()) };
            self.drained.clear();
            result
        })
    }

    fn clean<'a>(&'a mut self, _ok: bool) -> Fut<'a, ()> {
        Box::pin(async {
            self.drained.clear();
            self.spec.source.bitmaps().remove(&self.bitmap);
            self.held.release();
            if self.base_was_read_only {
                // It stays writable if it is the active image now.
                let _ = self.held.graph.set_read_only(&self.spec.target, true).await;
            }
        })
    }
}
