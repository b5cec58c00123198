//! Background operations over the graph: stream, commit, mirror, backup, create.
//!
//! A job is a [`Body`] (an async function over nodes with pause points, and what is done at
//! its end) run by [`Jobs::start`], which walks it through its states and tells of them.

mod active;
mod backup;
mod commit;
mod copy;
mod crew;
mod filter;
mod group;
mod job;
mod mirror;
mod stream;
mod sweep;

pub use backup::{BackupSpec, BackupSync, BitmapMode, Perf};
pub use commit::CommitSpec;
pub use group::Group;
pub use job::{Info, Job, Setup};
pub use mirror::{BackingMode, MirrorSpec, MirrorSync};
pub use stream::StreamSpec;

use crate::graph::Graph;
use crate::graph::Node;
use crate::types::{Fut, IoResult};
use base::notice::Notices;
use base::{Class, Failure, Mutex, Result, bail};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Longest wait for jobs to stand still before all are cancelled: what they write to may hang.
const STANDSTILL: Duration = Duration::from_secs(5);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Commit,
    Stream,
    Mirror,
    Backup,
    Create,
    Amend,
    SnapshotLoad,
    SnapshotSave,
    SnapshotDelete,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Commit => "commit",
            Kind::Stream => "stream",
            Kind::Mirror => "mirror",
            Kind::Backup => "backup",
            Kind::Create => "create",
            Kind::Amend => "amend",
            Kind::SnapshotLoad => "snapshot-load",
            Kind::SnapshotSave => "snapshot-save",
            Kind::SnapshotDelete => "snapshot-delete",
        }
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Ready,
    Standby,
    Waiting,
    Pending,
    Aborting,
    Concluded,
    Null,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Ready => "ready",
            Status::Standby => "standby",
            Status::Waiting => "waiting",
            Status::Pending => "pending",
            Status::Aborting => "aborting",
            Status::Concluded => "concluded",
            Status::Null => "null",
        }
    }
}

/// Which BLOCK_JOB_ event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Completed,
    Cancelled,
    Ready,
}

/// What the events and `query-block-jobs` tell of a job. Bytes; bytes per second.
#[derive(Clone, Debug)]
pub struct Progress {
    pub kind: Kind,
    pub id: String,
    pub len: u64,
    pub offset: u64,
    pub speed: u64,
}

/// Whether a range of a chain is allocated anywhere in it, and how long that is so.
pub(crate) async fn allocated(top: &Arc<Node>, offset: u64, len: u64) -> IoResult<(bool, u64)> {
    copy::allocated_above(top, None, offset, len).await
}

/// As [`allocated`], down to (not including) `base`.
pub(crate) async fn allocated_to(
    top: &Arc<Node>,
    base: Option<&Arc<Node>>,
    offset: u64,
    len: u64,
) -> IoResult<(bool, u64)> {
    copy::allocated_above(top, base, offset, len).await
}

pub(crate) use copy::known_zero;

/// What a job does.
pub trait Body: Send + 'static {
    /// The work. `ECANCELED` is taken as cancelled.
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult>;

    /// What to say of an error of `run`, where its text is not enough.
    fn reason(&mut self) -> Option<String> {
        None
    }

    /// After success (and, where asked for, finalising): makes the result take effect.
    fn commit<'a>(&'a mut self, _job: &'a Job) -> Fut<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Always at the end: lets go of nodes. `ok` is false after failure or cancelling.
    fn clean<'a>(&'a mut self, _ok: bool) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}

struct Inner {
    graph: Weak<Graph>,
    notices: Notices,
    list: Mutex<Vec<Arc<Job>>>,
}

/// The jobs of a graph.
pub struct Jobs(Arc<Inner>);

impl Jobs {
    pub(crate) fn new(graph: Weak<Graph>, notices: Notices) -> Self {
        Jobs(Arc::new(Inner { graph, notices, list: Mutex::default() }))
    }

    /// All jobs, oldest first.
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.0.list.lock().clone()
    }

    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.0.list.lock().iter().find(|job| job.id() == id).cloned()
    }

    /// A job by id, with the customary error.
    pub fn get(&self, id: &str) -> Result<Arc<Job>> {
        self.find(id).ok_or_else(|| Failure::of(Class::GenericError, "Job not found"))
    }

    /// Refuses ids that cannot be.
    pub fn check_id(&self, id: &str) -> Result<()> {
        if !crate::graph::well_formed(id) {
            bail!("Invalid job ID '{id}'");
        }
        if self.find(id).is_some() {
            bail!("Job ID '{id}' already in use");
        }
        Ok(())
    }

    /// Starts a job, on the graph's I/O thread if it is to have no other.
    pub fn start(&self, setup: Setup, body: impl Body) -> Result<Arc<Job>> {
        self.check_id(&setup.id)?;
        let Some(graph) = self.0.graph.upgrade() else { bail!("The block layer is gone") };
        let job = Job::new(setup, &self.0);
        self.0.list.lock().push(job.clone());
        if let Some(group) = &job.setup.group {
            group.join(&job);
        }
        let inner = self.0.clone();
        inner.notices.send(crate::Notice::JobStatus { id: job.id().to_string(), status: Status::Created });
        if !job.setup.deferred {
            job.begin();
        }
        let running = job.clone();
        let handle = job.setup.thread.as_ref().unwrap_or(graph.main_thread()).handle().clone();
        handle.spawn(async move {
            let (ending, error) = conduct(&running, body).await;
            graph.collect().await;
            conclude(&inner, &running, ending, error);
            running.end_haste();
        });
        Ok(job)
    }

    /// A job that could not be set up, customarily told of where it had been made already.
    fn tell_stillborn(&self, id: &str) {
        for status in [Status::Created, Status::Null] {
            self.0.notices.send(crate::Notice::JobStatus { id: id.to_string(), status });
        }
    }

    /// `job-dismiss`.
    pub fn dismiss(&self, id: &str) -> Result<()> {
        let job = self.get(id)?;
        if job.status() != Status::Concluded {
            let status = job.status().as_str();
            bail!("Job '{id}' in state '{status}' cannot accept command verb 'dismiss'");
        }
        forget(&self.0, &job);
        Ok(())
    }

    /// Cancels all and waits for their ends. Customary: those that are at work are seen to stand
    /// still first.
    pub async fn cancel_all(&self) {
        let working = |job: &Arc<Job>| matches!(job.status(), Status::Running | Status::Ready);
        let mut halted = self.list();
        halted.retain(|job| job.setup.block_job && working(job));
        for job in &halted {
            job.hold();
            job.wake();
        }
        // What is in flight waits for no limit.
        let graph = self.0.graph.upgrade();
        let hastes: Vec<_> =
            graph.iter().flat_map(|graph| halted.iter().map(|job| graph.hasten_job(job.id()))).collect();
        let still = async {
            while halted.iter().any(working) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(STANDSTILL, still).await;
        for job in halted.iter().filter(|job| !job.is_user_paused()) {
            job.show_running();
        }
        for job in self.list() {
            // Jobs that have ended already refuse.
            let _ = job.cancel(true);
        }
        drop(hastes);
        halted.iter().for_each(|job| job.release());
        while self.list().iter().any(|job| job.status() != Status::Concluded && job.status() != Status::Null)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The last events. Whoever has read the first of them finds the job ended and, unless it waits
/// to be dismissed, its id free.
fn conclude(inner: &Inner, job: &Arc<Job>, ending: Ending, error: Option<String>) {
    let mut list = inner.list.lock();
    job.tell(ending, error);
    job.set_status(Status::Concluded);
    if job.setup.auto_dismiss {
        list.retain(|one| !Arc::ptr_eq(one, job));
        job.set_status(Status::Null);
    }
    job.wake();
}

fn forget(inner: &Inner, job: &Arc<Job>) {
    let mut list = inner.list.lock();
    list.retain(|one| !Arc::ptr_eq(one, job));
    job.set_status(Status::Null);
}

/// Why a job did not end well: cancelled, or an error.
type Why = Option<String>;

async fn work(job: &Job, body: &mut impl Body) -> Result<(), Why> {
    if !job.wait_begun().await {
        return Err(None);
    }
    if let Err(error) = body.run(job).await {
        return Err(match error.raw_os_error() {
            Some(libc::ECANCELED) => None,
            // What fails then fails because nobody waits for it.
            _ if job.ends_at_once() => None,
            _ => Some(body.reason().unwrap_or_else(|| Job::text_of(&error))),
        });
    }
    if job.is_cancelled() && !job.is_ready() {
        return Err(None);
    }
    job.set_status(Status::Waiting);
    let mut waits = !job.setup.auto_finalize;
    if let Some(group) = &job.setup.group {
        group.arrive();
        if !job.wait_for(group).await {
            return Err(None);
        }
        waits = group.waits();
    }
    job.set_status(Status::Pending);
    if waits {
        if !job.setup.auto_finalize {
            job.tell_pending();
        }
        if !job.wait_finalized().await {
            return Err(None);
        }
    }
    body.commit(job).await.map_err(|why| Some(why.text))
}

async fn conduct(job: &Job, mut body: impl Body) -> (Ending, Option<String>) {
    match work(job, &mut body).await {
        Ok(()) => {
            body.clean(true).await;
            (Ending::Completed, None)
        }
        Err(why) => {
            if let Some(group) = &job.setup.group {
                group.fail();
            }
            job.set_error(
                why.clone().unwrap_or_else(|| base::failure::strerror(&crate::errno(libc::ECANCELED))),
            );
            job.set_status(Status::Aborting);
            body.clean(false).await;
            match why {
                None => (Ending::Cancelled, None),
                Some(text) => (Ending::Completed, Some(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
