//! One job: its state, and what its body asks (may I go on, how fast, what about this error).

use super::{Ending, Group, Jobs, Kind, Progress, Status};
use crate::backend::{IoStatus, OnError};
use crate::graph::{Haste, IoThread};
use crate::notice::{Action, Notice};
use crate::types::{IoResult, errno, errno_of};
use base::failure::strerror;
use base::{Class, Failure, Mutex, Result};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

mod requests;

/// Length of a rate limit slice.
const SLICE: Duration = Duration::from_millis(100);

/// How a job was asked to be.
#[derive(Clone, Debug)]
pub struct Setup {
    pub id: String,
    /// Bytes per second, 0 is unlimited.
    pub speed: u64,
    pub auto_finalize: bool,
    pub auto_dismiss: bool,
    /// Internal jobs are not listed.
    pub kind: Kind,
    /// Only block jobs have the old events and commands.
    pub block_job: bool,
    /// Jobs that end well together or not at all.
    pub group: Option<Arc<Group>>,
    /// Waits for [`Job::begin`].
    pub deferred: bool,
    /// Nothing is done, whatever its state, before this is told: who asked for it has the answer.
    pub after: Option<Arc<Notify>>,
    /// Where it runs, if not on the graph's own thread.
    pub thread: Option<IoThread>,
}

impl Setup {
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Setup {
            id: id.into(),
            speed: 0,
            auto_finalize: true,
            auto_dismiss: true,
            kind,
            block_job: true,
            group: None,
            deferred: false,
            after: None,
            thread: None,
        }
    }
}

#[derive(Debug)]
struct State {
    status: Status,
    speed: u64,
    len: u64,
    offset: u64,
    busy: bool,
    user_paused: bool,
    /// Others that hold the job still (transactions, drains).
    held: u32,
    begun: bool,
    cancelled: bool,
    forced: bool,
    ready: bool,
    /// Source and target are the same and stay it.
    synced: Option<bool>,
    complete: bool,
    finalize: bool,
    io_status: IoStatus,
    error: Option<String>,
    slice: (Instant, u64),
    paced: bool,
}

impl State {
    fn ends_at_once(&self) -> bool {
        self.cancelled && (!self.ready || self.forced)
    }

    fn is_to_pause(&self) -> bool {
        (self.user_paused || self.held > 0) && !self.ends_at_once()
    }

    /// The status of a job that goes on.
    fn running(&self) -> Status {
        match self.status {
            Status::Paused => Status::Running,
            Status::Standby => Status::Ready,
            other => other,
        }
    }

    /// The status at a pause point.
    fn at_pause_point(&self) -> Status {
        match (self.is_to_pause(), self.ready) {
            (true, true) => Status::Standby,
            (true, false) => Status::Paused,
            // It may have become ready while it stood.
            (false, true) if self.status == Status::Paused => Status::Ready,
            (false, _) => self.running(),
        }
    }
}

/// A job; see [`super`].
pub struct Job {
    pub setup: Setup,
    jobs: std::sync::Weak<super::Inner>,
    state: Mutex<State>,
    /// Held while the status changes and the change is told of: both have one order.
    telling: Mutex<()>,
    woken: Notify,
    /// Of a cancelled job, until it has ended.
    haste: Mutex<Option<Haste>>,
}

/// What `query-block-jobs` and `query-jobs` tell.
#[derive(Clone, Debug)]
pub struct Info {
    pub progress: Progress,
    pub busy: bool,
    pub paused: bool,
    pub ready: bool,
    /// Of a mirror: source and target are the same, and writes go to both.
    pub synced: Option<bool>,
    pub status: Status,
    pub io_status: IoStatus,
    pub auto_finalize: bool,
    pub auto_dismiss: bool,
    pub error: Option<String>,
    pub block_job: bool,
}

impl Job {
    pub(super) fn new(setup: Setup, jobs: &Arc<super::Inner>) -> Arc<Self> {
        let state = State {
            status: Status::Created,
            speed: setup.speed,
            len: 0,
            offset: 0,
            busy: true,
            user_paused: false,
            held: 0,
            begun: false,
            cancelled: false,
            forced: false,
            ready: false,
            synced: None,
            complete: false,
            finalize: false,
            io_status: IoStatus::Ok,
            error: None,
            slice: (Instant::now(), 0),
            paced: false,
        };
        let jobs = Arc::downgrade(jobs);
        let (state, telling, woken, haste) =
            (Mutex::new(state), Mutex::default(), Notify::new(), Mutex::default());
        Arc::new(Job { setup, jobs, state, telling, woken, haste })
    }

    pub fn id(&self) -> &str {
        &self.setup.id
    }

    fn send(&self, notice: Notice) {
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.notices.send(notice);
        }
    }

    pub fn info(&self) -> Info {
        use Status::*;
        let state = self.state.lock();
        Info {
            progress: self.progress_of(&state),
            busy: state.busy && !matches!(state.status, Waiting | Pending | Concluded),
            paused: state.user_paused || state.held > 0,
            ready: state.ready,
            synced: state.synced,
            status: state.status,
            io_status: state.io_status,
            auto_finalize: self.setup.auto_finalize,
            auto_dismiss: self.setup.auto_dismiss,
            error: state.error.clone(),
            block_job: self.setup.block_job,
        }
    }

    fn progress_of(&self, state: &State) -> Progress {
        Progress {
            kind: self.setup.kind,
            id: self.setup.id.clone(),
            len: state.len,
            offset: state.offset,
            speed: state.speed,
        }
    }

    pub fn status(&self) -> Status {
        self.state.lock().status
    }

    pub(super) fn set_status(&self, status: Status) {
        self.change(|_| status);
    }

    /// Changes the status to what `to` makes of the state, and tells of it.
    fn change(&self, to: impl FnOnce(&State) -> Status) {
        let _told = self.telling.lock();
        let status = {
            let mut state = self.state.lock();
            let status = to(&state);
            if state.status == status {
                return;
            }
            state.status = status;
            status
        };
        self.send(Notice::JobStatus { id: self.setup.id.clone(), status });
    }

    pub(super) fn tell(&self, kind: Ending, error: Option<String>) {
        if self.setup.block_job {
            let job = self.progress_of(&self.state.lock());
            self.send(Notice::JobEnded { kind, job, error });
        }
    }

    pub(super) fn tell_pending(&self) {
        if self.setup.block_job {
            self.send(Notice::JobPending { kind: self.setup.kind, id: self.setup.id.clone() });
        }
    }

    pub(super) fn set_error(&self, error: String) {
        self.state.lock().error = Some(error);
    }

    /// Lets the job run, once.
    pub fn begin(&self) {
        let begun = std::mem::replace(&mut self.state.lock().begun, true);
        if !begun && !self.is_cancelled() {
            self.set_status(Status::Running);
        }
        self.woken.notify_waiters();
    }

    /// As [`Job::begin`], while what it works on is held still: shown as paused until
    /// [`Job::let_go`].
    pub(crate) fn begin_held(&self) {
        self.hold();
        self.begin();
        self.change(|state| if state.status == Status::Running { Status::Paused } else { state.status });
    }

    pub(crate) fn let_go(&self) {
        self.release();
        self.show_running();
    }

    pub(super) fn let_finish(&self) {
        self.state.lock().finalize = true;
        self.woken.notify_waiters();
    }

    /// Holds the job still from its next pause point on (drains); not shown as paused by a
    /// user.
    pub fn hold(&self) {
        self.state.lock().held += 1;
    }

    pub fn release(&self) {
        let mut state = self.state.lock();
        state.held = state.held.saturating_sub(1);
        drop(state);
        self.woken.notify_waiters();
    }

    // What bodies ask.

    pub fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Whether it is cancelled, and not after it has ended cleanly.
    pub(super) fn ends_at_once(&self) -> bool {
        self.state.lock().ends_at_once()
    }

    pub fn is_forced(&self) -> bool {
        self.state.lock().forced
    }

    pub fn wants_completion(&self) -> bool {
        self.state.lock().complete
    }

    /// Lets the body look at its state again.
    pub fn wake(&self) {
        self.woken.notify_waiters();
    }

    pub fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    pub(super) fn set_synced(&self, synced: bool) {
        self.state.lock().synced = Some(synced);
    }

    pub fn set_len(&self, len: u64) {
        self.state.lock().len = len;
    }

    pub fn advance(&self, bytes: u64) {
        self.state.lock().offset += bytes;
    }

    /// `len` is what was done and what is left.
    pub fn set_remaining(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.len = state.offset + bytes;
    }

    /// Source and target agree for the first time.
    pub fn set_ready(&self) {
        self.state.lock().ready = true;
        self.set_status(Status::Ready);
        self.tell(Ending::Ready, None);
    }

    /// Whether [`Job::pause_point`] would wait.
    pub(super) fn is_to_pause(&self) -> bool {
        self.state.lock().is_to_pause()
    }

    /// Whether its speed is limited: then one piece is done, and counted, before the next begins.
    pub(super) fn is_limited(&self) -> bool {
        self.state.lock().speed != 0
    }

    /// Lets the job be paused and cancelled here. An error of `ECANCELED` ends it.
    pub async fn pause_point(&self) -> IoResult {
        loop {
            let woken = self.woken.notified();
            let pause = {
                let mut state = self.state.lock();
                state.busy = !state.is_to_pause();
                !state.busy
            };
            // By what is asked now: a job resumed meanwhile was never shown as paused.
            self.change(State::at_pause_point);
            if !pause {
                break;
            }
            woken.await;
        }
        let state = self.state.lock();
        match state.ends_at_once() {
            true => Err(errno(libc::ECANCELED)),
            false => Ok(()),
        }
    }

    /// As [`Job::pause_point`], where nothing has been done yet: what users ask meanwhile is
    /// seen when the first piece is done.
    pub(super) async fn first_point(&self) {
        loop {
            let woken = self.woken.notified();
            if self.state.lock().held == 0 {
                break;
            }
            self.change(|state| match state.held > 0 && !state.ends_at_once() {
                true => state.at_pause_point(),
                false => state.status,
            });
            woken.await;
        }
    }

    /// Waits at most `time` for a change of the job's state.
    pub async fn wait(&self, time: Duration) {
        let woken = self.woken.notified();
        self.state.lock().busy = false;
        let _ = tokio::time::timeout(time, woken).await;
        self.state.lock().busy = true;
    }

    /// Whether the job may run, or else was cancelled before.
    pub(super) async fn wait_begun(&self) -> bool {
        let begun = self.state.lock().begun;
        if !begun && !self.wait_until(|state| state.begun).await {
            return false;
        }
        let Some(after) = &self.setup.after else { return true };
        tokio::select! {
            biased;
            _ = after.notified() => true,
            go = self.wait_until(|_| false) => go,
        }
    }

    /// Whether the job was told to finish, or else was cancelled.
    pub(super) async fn wait_finalized(&self) -> bool {
        self.wait_until(|state| state.finalize).await
    }

    /// Whether all of its group are done with their work, or else one of them failed.
    pub(super) async fn wait_for(&self, group: &Group) -> bool {
        self.wait_until(|_| group.is_done()).await
    }

    async fn wait_until(&self, reached: impl Fn(&State) -> bool) -> bool {
        let soft_before = {
            let state = self.state.lock();
            state.cancelled && state.ready && !state.forced
        };
        loop {
            let woken = self.woken.notified();
            {
                let state = self.state.lock();
                if state.cancelled && (!soft_before || state.forced) {
                    return false;
                }
                if reached(&state) {
                    return true;
                }
            }
            woken.await;
        }
    }

    /// Counts `bytes` against the speed limit and waits as it demands.
    pub async fn pace(&self, bytes: u64) -> IoResult {
        loop {
            if self.has_paced() {
                self.pause_point().await?;
            }
            let delay = {
                let mut state = self.state.lock();
                state.paced |= bytes > 0;
                if state.speed == 0 {
                    return Ok(());
                }
                let allowed = (state.speed / 10).max(1);
                let elapsed = state.slice.0.elapsed();
                let slices = (elapsed.as_nanos() / SLICE.as_nanos()) as u64;
                if slices > 0 {
                    state.slice.0 += SLICE * slices.min(1 << 30) as u32;
                    state.slice.1 = state.slice.1.saturating_sub(slices.saturating_mul(allowed));
                }
                if state.slice.1 < allowed {
                    state.slice.1 += bytes;
                    return Ok(());
                }
                SLICE.saturating_sub(state.slice.0.elapsed())
            };
            self.wait(delay.max(Duration::from_millis(1))).await;
        }
    }

    /// Whether a piece of work has begun.
    fn has_paced(&self) -> bool {
        self.state.lock().paced
    }

    /// What is to be done about an I/O error. `Stop` has paused the job already.
    pub fn on_error(&self, policy: OnError, write: bool, error: &io::Error) -> Action {
        let code = errno_of(error);
        let action = policy.action(code);
        if action == Action::Stop {
            let mut state = self.state.lock();
            state.user_paused = true;
            if state.io_status == IoStatus::Ok {
                state.io_status = if code == libc::ENOSPC { IoStatus::Nospace } else { IoStatus::Failed };
            }
        }
        if self.setup.block_job {
            self.send(Notice::JobError { device: self.setup.id.clone(), write, action });
        }
        action
    }

    /// The text of an error that ends a job.
    pub(super) fn text_of(error: &io::Error) -> String {
        strerror(error)
    }
}

impl Jobs {
    /// A block job by id, with the customary error.
    pub fn block_job(&self, id: &str) -> Result<Arc<Job>> {
        match self.find(id).filter(|job| job.setup.block_job) {
            Some(job) => Ok(job),
            None => Err(Failure::of(Class::DeviceNotActive, format!("Block job '{id}' not found"))),
        }
    }
}
