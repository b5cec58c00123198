//! `drive-mirror`, `blockdev-mirror` and the commit of an active image: copies, then keeps
//! copying what the guest changes, until told to switch over or to stop.

use super::active::Active;
use super::copy::{CHUNK, Failed, Held, How, allocated_above, below, chain, copy};
use super::crew::{Crew, Ended};
use super::{Body, Job, Jobs, Kind, Setup, filter};
use crate::backend::OnError;
use crate::bitmap::DirtyBitmap;
use crate::graph::{Drained, Graph, Hook, Node, Parent};
use crate::notice::Action;
use crate::types::*;
use base::{Failure, Result, bail, fail};
use std::sync::Arc;
use std::time::Duration;

/// Pieces copied at once.
const IN_FLIGHT: usize = 16;

/// Bytes that are asked for together where `buf-size` says nothing.
const BUFFER: u64 = IN_FLIGHT as u64 * CHUNK;

type Copied = Result<(), Failed>;

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
    /// The target is new and reads as zeroes: what no image of the source holds is not copied.
    pub blank: bool,
    /// Guest writes go to both sides before they are answered.
    pub write_blocking: bool,
    /// Most bytes copied at once, 0 for the usual.
    pub buf_size: u64,
    pub filter_node_name: Option<String>,
}

impl MirrorSpec {
    /// A mirror of everything with the usual settings.
    pub fn new(setup: Setup, source: Arc<Node>, target: Arc<Node>) -> Self {
        MirrorSpec {
            setup,
            source,
            target,
            sync: MirrorSync::Full,
            granularity: 65536,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            unmap: true,
            replaces: None,
            backing: BackingMode::Leave,
            blank: false,
            write_blocking: false,
            buf_size: 0,
            filter_node_name: None,
        }
    }
}

struct Mirror {
    spec: MirrorSpec,
    held: Held,
    bitmap: Arc<DirtyBitmap>,
    /// From the last look at the bitmap until the switch.
    drained: Vec<Drained>,
    base_was_read_only: bool,
    active: Option<Arc<Active>>,
}

impl Jobs {
    pub async fn mirror(&self, graph: &Arc<Graph>, spec: MirrorSpec) -> Result<Arc<Job>> {
        self.check_id(&spec.setup.id)?;
        if Arc::ptr_eq(&spec.source, &spec.target) {
            bail!("Can't mirror node into itself");
        }
        if spec.setup.kind == Kind::Mirror {
            spec.source.check_free()?;
            spec.target.check_free()?;
        }
        spec.source.check_busy()?;
        spec.target.check_busy()?;
        if let Some(name) = &spec.replaces {
            replaceable(graph, name, &spec.source)?;
        }
        DirtyBitmap::check_size(spec.granularity.max(512), spec.source.size())?;
        let commits = spec.setup.kind == Kind::Commit;
        let mut held = Held::new(graph, spec.setup.kind.as_str(), &spec.setup.id);
        let base_was_read_only = commits && spec.target.is_read_only();
        if base_was_read_only {
            graph.set_read_only(&spec.target, false).await?;
        }
        if let Err(why) = prepare(&mut held, &spec, commits).await {
            held.take_filter().await;
            held.release();
            graph.collect().await;
            if base_was_read_only {
                let _ = graph.set_read_only(&spec.target, true).await;
            }
            return Err(why);
        }
        let bitmap = Arc::new(DirtyBitmap::new(None, spec.granularity.max(512), spec.source.size()));
        bitmap.set_private();
        spec.source.bitmaps().add(bitmap.clone());
        let setup = spec.setup.clone();
        let active = spec.write_blocking.then(|| Active::new(&spec, &bitmap));
        if let Some(active) = &active {
            let drained = graph.drain(&spec.source).await;
            // From now on the hook alone marks what is to be copied.
            bitmap.enable(false);
            spec.source.track();
            let hook: Arc<dyn Hook> = active.clone();
            spec.source.add_hook(hook);
            drop(drained);
        }
        let front = active.clone();
        let body = Mirror { spec, held, bitmap, drained: Vec::new(), base_was_read_only, active };
        let job = self.start(setup, body)?;
        if let Some(front) = front {
            front.serve(&job);
        }
        Ok(job)
    }
}

async fn prepare(held: &mut Held, spec: &MirrorSpec, commits: bool) -> Result<()> {
    let (source, target) = (&spec.source, &spec.target);
    let record = if commits { &filter::ACTIVE_COMMIT } else { &filter::MIRROR };
    let filter = held.put_filter(record, spec.filter_node_name.as_deref(), source, None).await?;
    held.block(source);
    held.block(target);
    let still = Perm::GUEST_SHARED | Perm::WRITE;
    held.attach("main node", &filter, Perm::CONSISTENT_READ, still)?;
    held.attach("source", source, Perm::empty(), still)?;
    if commits {
        for node in chain(below(source), Some(target)) {
            held.block(&node);
        }
        held.attach_above_base(below(source), target)?;
        held.freeze(source, Some(target))?;
    }
    let grows = commits && target.size() < source.size();
    let perm = if grows { Perm::WRITE | Perm::RESIZE } else { Perm::WRITE };
    held.attach_root(target, perm, if commits { still } else { Perm::WRITE_UNCHANGED })?;
    held.attach("target", target, Perm::empty(), Perm::all())?;
    if grows {
        target.truncate(source.size(), Truncate::default()).await?;
    }
    Ok(())
}

/// The node called `name`, if a copy of `source` may take its place: it must be what the source
/// shows, or one of several equal children of a quorum.
fn replaceable(graph: &Graph, name: &str, source: &Arc<Node>) -> Result<Arc<Node>> {
    let node = graph.find(name).ok_or_else(|| fail!("Node name '{name}' not found"))?;
    if node.size() != source.size() {
        bail!("cannot replace image with a mirror image of different size");
    }
    if !shows(source, &node) {
        bail!(
            "Cannot replace '{name}' by a node mirrored from '{}', because it cannot be guaranteed that doing so \
             would not lead to an abrupt change of visible data",
            source.name()
        );
    }
    Ok(node)
}

/// Whether `source` shows what `node` holds, to all who look at `node`.
fn shows(source: &Arc<Node>, node: &Arc<Node>) -> bool {
    if Arc::ptr_eq(source, node) {
        return true;
    }
    let voted = source.driver().name == "quorum";
    source.children().iter().any(|child| {
        let below = child.node();
        match child.role().contains(Role::FILTERED) {
            true => shows(&below, node),
            // One child may differ from what the quorum shows: nobody else may see that change.
            false => {
                voted
                    && shows(&below, node)
                    && below.parents().iter().all(|edge| {
                        edge.same(child) || !edge.perm().0.intersects(Perm::CONSISTENT_READ | Perm::WRITE)
                    })
            }
        }
    })
}

/// Why the switch is not made, where all can be read; the job's own error is short, as is customary.
fn not_permitted(why: impl std::fmt::Display) -> Failure {
    eprintln!("{why}");
    Failure::new(base::failure::strerror(&errno(libc::EPERM)))
}

impl Mirror {
    /// What is copied as a whole, in bytes: the target fills the rest of its cluster from nothing
    /// while it does not stand on its backing image.
    fn whole(&self) -> u64 {
        match self.spec.sync {
            MirrorSync::Full => 1,
            _ => self.spec.target.layer().info().cluster_size.unwrap_or(1),
        }
    }

    /// Marks what is to be copied at first.
    async fn begin(&self, job: &Job) -> IoResult {
        let source = &self.spec.source;
        let size = source.size();
        let base = match &self.spec.sync {
            MirrorSync::None => return Ok(()),
            MirrorSync::Full if self.spec.blank => None,
            MirrorSync::Full => {
                self.bitmap.set(0, size);
                return Ok(());
            }
            MirrorSync::Top(Some(base)) => Some(base.clone()),
            MirrorSync::Top(None) => source.skip_filters().backing(),
        };
        job.first_point().await;
        let mut at = 0;
        while at < size {
            if at > 0 {
                job.pause_point().await?;
            }
            let (data, run) = allocated_above(source, base.as_ref(), at, (size - at).min(1 << 30)).await?;
            if data {
                self.bitmap.set(at, run);
            }
            at += run;
        }
        Ok(())
    }

    async fn chase(&mut self, job: &Job) -> IoResult {
        // A commit has made its base large enough.
        let sectors = |node: &Node| node.size().div_ceil(512);
        if self.spec.setup.kind == Kind::Mirror && sectors(&self.spec.source) != sectors(&self.spec.target) {
            return Err(std::io::Error::other("Source and target image have different sizes"));
        }
        if self.active.is_some() {
            job.set_synced(false);
        }
        self.begin(job).await?;
        let mut crew = Crew::new(&self.held.graph, IN_FLIGHT);
        let result = self.follow(job, &mut crew).await;
        while let Ok(Some(ended)) = crew.next().await {
            if ended.result.is_ok() {
                job.advance(ended.len);
            }
        }
        crew.settle().await;
        result
    }

    async fn follow(&mut self, job: &Job, crew: &mut Crew<Copied>) -> IoResult {
        let buffer = if self.spec.buf_size == 0 { BUFFER } else { self.spec.buf_size.min(BUFFER) };
        let whole = self.whole();
        let least = u64::from(self.bitmap.granularity()).next_multiple_of(whole);
        let buffer = buffer.max(least).next_multiple_of(whole);
        let piece = buffer.min(CHUNK).max(least).next_multiple_of(whole);
        let (mut at, mut first) = (0, true);
        loop {
            match std::mem::take(&mut first) {
                true => job.first_point().await,
                false => {
                    if job.is_to_pause() {
                        self.pause(job, crew).await?;
                    }
                    job.pause_point().await?;
                }
            }
            // A limited job asks for a buffer at a time, and waits between them.
            let chunk = if job.is_limited() { buffer } else { piece };
            job.set_remaining(self.bitmap.count().min(self.spec.source.size()) + crew.bytes());
            if let Some(error) = self.active.as_ref().and_then(|active| active.failure()) {
                return Err(error);
            }
            let next = self.bitmap.next_dirty(at, chunk).or_else(|| self.bitmap.next_dirty(0, chunk));
            let next = next.map(|(from, len)| {
                let (start, end) = (from - from % whole, (from + len).next_multiple_of(whole));
                (start, end.min(self.spec.source.size()).max(from + len) - start)
            });
            match next {
                // A range that is on its way is not sent again before it has arrived.
                Some((from, len))
                    if !crew.is_full()
                        && !crew.meets(from, len)
                        && (crew.is_empty() || !job.is_limited()) =>
                {
                    job.pace(len).await?;
                    at = from + len;
                    for from in (from..at).step_by(piece as usize) {
                        self.send(crew, from, piece.min(at - from));
                    }
                }
                _ if !crew.is_empty() => {
                    if let Some(ended) = crew.next().await? {
                        self.arrived(job, ended).await?;
                    }
                }
                _ if !job.is_ready() => {
                    // What was copied last counts against the limit, too.
                    job.pace(0).await?;
                    if self.flush_target(job).await? && self.bitmap.count() == 0 {
                        job.set_remaining(0);
                        self.tell_synced(job);
                        job.set_ready();
                    }
                }
                _ if job.wants_completion() || job.is_cancelled() => {
                    self.drained = self.held.graph.drain(&self.spec.source).await;
                    if self.bitmap.count() == 0 && self.flush_target(job).await? {
                        job.set_remaining(0);
                        return Ok(());
                    }
                    self.drained.clear();
                }
                _ => {
                    self.tell_synced(job);
                    job.wait(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Where every write goes to the target before it is answered: whether that has all.
    fn tell_synced(&self, job: &Job) {
        if self.active.is_some() {
            job.set_synced(self.bitmap.count() == 0);
        }
    }

    /// Whether the target was flushed; an error is met as those of writing are.
    async fn flush_target(&self, job: &Job) -> IoResult<bool> {
        let Err(error) = self.spec.target.flush().await else { return Ok(true) };
        match job.on_error(self.spec.on_target_error, true, &error) {
            Action::Report => return Err(error),
            Action::Ignore => job.wait(Duration::from_millis(10)).await,
            Action::Stop => {}
        }
        Ok(false)
    }

    /// Begins to copy a range.
    fn send(&self, crew: &mut Crew<Copied>, from: u64, len: u64) {
        // Cleared before reading: a write that comes meanwhile marks it again.
        self.bitmap.reset(from, len);
        let (source, target) = (self.spec.source.clone(), self.spec.target.clone());
        let (active, how) = (self.active.is_some(), How { unmap: self.spec.unmap, compress: false });
        crew.start(from, len, async move {
            // A guest write to both sides must not fall between reading and writing here.
            let _alone = match active {
                true => Some(source.exclusive(from, len).await),
                false => None,
            };
            copy(&source, &target, from, len, how).await
        });
    }

    async fn arrived(&self, job: &Job, ended: Ended<Copied>) -> IoResult {
        let (policy, write, error) = match ended.result {
            Ok(()) => {
                job.advance(ended.len);
                return Ok(());
            }
            Err(Failed::Source(error)) => (self.spec.on_source_error, false, error),
            Err(Failed::Target(error)) => (self.spec.on_target_error, true, error),
        };
        self.bitmap.set(ended.from, ended.len);
        self.tell_synced(job);
        if job.is_to_pause() {
            // One error has stopped the job: that others failed too is found out again.
            return Ok(());
        }
        match job.on_error(policy, write, &error) {
            Action::Report => Err(error),
            Action::Ignore => {
                job.wait(Duration::from_millis(10)).await;
                Ok(())
            }
            Action::Stop => Ok(()),
        }
    }

    /// Nothing is copied while the job stands still.
    async fn pause(&self, job: &Job, crew: &mut Crew<Copied>) -> IoResult {
        while let Some(ended) = crew.next().await? {
            match ended.result {
                Ok(()) => job.advance(ended.len),
                Err(_) => self.bitmap.set(ended.from, ended.len),
            }
        }
        Ok(())
    }

    async fn switch(&mut self) -> Result<()> {
        let graph = self.held.graph.clone();
        let (source, target) = (self.spec.source.clone(), self.spec.target.clone());
        let replaced = match &self.spec.replaces {
            Some(name) => replaceable(&graph, name, &source).map_err(|_| {
                not_permitted(format!(
                    "Can no longer replace '{name}' by '{}', because it can no longer be guaranteed that doing so \
                     would not lead to an abrupt change of visible data",
                    target.name()
                ))
            })?,
            None => source.clone(),
        };
        if self.spec.backing == BackingMode::Header {
            graph.open_backing(&target).await?;
        }
        let settings = replaced.settings();
        if target.is_read_only() != settings.read_only && !settings.read_only {
            graph.set_read_only(&target, false).await?;
        }
        self.held.take_filter_drained();
        let edges: Vec<_> = replaced
            .parents()
            .into_iter()
            .filter(|edge| !matches!(edge.parent(), Parent::Job { .. }))
            .filter(|edge| {
                !edge.role().contains(Role::BACKING)
                    || !Arc::ptr_eq(&replaced, &source)
                    || self.spec.setup.kind == Kind::Mirror
            })
            .filter(|edge| !matches!(edge.parent(), Parent::Node(name) if name == target.name()))
            .collect();
        graph.redirect_all(&edges, &target).map_err(not_permitted)?;
        if let Err(why) = self.put_under(&target) {
            graph.redirect_all(&edges, &replaced)?;
            return Err(why);
        }
        if matches!(self.spec.sync, MirrorSync::None) && self.spec.backing == BackingMode::Source {
            // It stays writable if somebody else writes it.
            let _ = graph.set_read_only(&source, true).await;
        }
        // The base is the active image now.
        self.base_was_read_only &= settings.read_only;
        Ok(())
    }

    /// Gives the target what it stands on from now on.
    fn put_under(&self, target: &Arc<Node>) -> Result<()> {
        let source = &self.spec.source;
        let backing = match (&self.spec.sync, self.spec.backing) {
            (MirrorSync::None, BackingMode::Source) => Some(source.clone()),
            (MirrorSync::Top(Some(base)), BackingMode::Source) => Some(base.clone()),
            (MirrorSync::Top(None), BackingMode::Source) => source.skip_filters().backing(),
            _ => None,
        };
        match backing {
            Some(backing) if target.driver().backing => self.held.graph.set_backing(target, Some(&backing)),
            _ => Ok(()),
        }
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
            if let Some(active) = self.active.take() {
                let drained = self.held.graph.drain(&self.spec.source).await;
                let hook: Arc<dyn Hook> = active;
                self.spec.source.remove_hook(&hook);
                self.spec.source.untrack();
                drop(drained);
            }
            self.spec.source.bitmaps().remove(&self.bitmap);
            self.held.take_filter().await;
            self.held.release();
            if self.base_was_read_only {
                // It stays writable if it is the active image now.
                let _ = self.held.graph.set_read_only(&self.spec.target, true).await;
            }
        })
    }
}
