//! What a device front end (or an export, or a job) holds of the block layer.
//!
//! A [`Backend`] is cheap to clone, may be called from any thread, and needs no async
//! runtime at the caller: requests run on its I/O thread and answer through a callback.
//! Guest-facing policy is here: error policies, throttling, statistics.

mod gate;
pub mod medium;
mod policy;
pub mod stats;

pub use gate::Drained;
pub use medium::{Media, Tray};
pub use policy::{IoStatus, OnError};
pub use stats::Stats;

use crate::buffers::Lent;
use crate::graph::{Child, Graph, Haste, IoThread, Node, Parent};
use crate::throttle;
use crate::types::*;
use base::{Mutex, Result, bail, fail};
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Reads and writes from this many bytes on are shared among processors.
const LONG: u64 = 256 << 10;

/// So many of them after two that came together are taken to have company: the thread that
/// they come from is kept free for the next ones.
const COMPANY: usize = 16;

/// A request of a device. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Lent, fua: bool },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Flush,
}

impl Request {
    /// Bytes that are moved.
    fn moves(&self) -> u64 {
        match self {
            Request::Read { len, .. } => *len as u64,
            Request::Write { data, .. } => data.len() as u64,
            _ => 0,
        }
    }
}

/// Called once with the data read (empty for other requests), on an I/O thread.
pub type Done = Box<dyn FnOnce(io::Result<Lent>) + Send>;

/// What the block layer asks of the device that holds a back end.
pub trait FrontEnd: Send + Sync {
    /// The medium has another size.
    fn resized(&self);
    /// The facet of a drive whose medium can be changed.
    fn media(&self) -> Option<&dyn Media> {
        None
    }
    /// The id or path that events name the device by.
    fn qdev_id(&self) -> String;
    /// `share-rw=on`: others may write the same image.
    fn share_rw(&self) -> bool {
        false
    }
    /// The device takes `rerror`/`werror` and shows an I/O status.
    fn keeps_io_status(&self) -> bool {
        true
    }
}

/// See the module text.
#[derive(Clone)]
pub struct Backend(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    name: String,
    /// The name is free for another one.
    nameless: AtomicBool,
    graph: Weak<Graph>,
    root: Mutex<Option<Child>>,
    front: Mutex<Option<Arc<dyn FrontEnd>>>,
    gate: gate::Gate,
    policy: policy::Policy,
    /// Requests kept by `stop` are tried again.
    resumed: Notify,
    write_cache: AtomicBool,
    /// The drive was given as read-only (also holds for media put in later).
    read_only: AtomicBool,
    /// Others than a device write by it (monitor, exports), even where it is read-only.
    lent: AtomicBool,
    habit: Mutex<medium::Habit>,
    /// Deleted with the device that has it.
    for_device: AtomicBool,
    automatic: AtomicBool,
    thread: Mutex<IoThread>,
    throttle: Mutex<Option<Arc<throttle::Group>>>,
    /// The throttle group is another one: who waits asks again.
    regrouped: Notify,
    /// Open while somebody waits for its requests.
    valve: throttle::Valve,
    stats: Stats,
    /// Long requests that were begun and have not ended.
    long: AtomicUsize,
    /// Long requests to come that go to other threads.
    company: AtomicUsize,
}

/// Ends a long request when dropped.
struct Ending(Arc<Inner>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.long.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inner {
    fn name(&self) -> &str {
        if self.nameless.load(Ordering::Acquire) { "" } else { &self.name }
    }

    /// Counts a long request. Whether others are there, or were there lately.
    fn begin_long(&self) -> bool {
        if self.long.fetch_add(1, Ordering::AcqRel) > 0 {
            self.company.store(COMPANY, Ordering::Relaxed);
            return true;
        }
        let left = self.company.load(Ordering::Relaxed);
        // One that is counted twice or not at all does no harm.
        self.company.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    /// Waits for the limits of the group, whichever it is by then.
    async fn pass_limits(&self, write: bool, bytes: u64) {
        loop {
            let regrouped = self.regrouped.notified();
            let Some(group) = self.throttle.lock().clone() else { return };
            tokio::select! {
                biased;
                () = self.valve.wait(&group, write, bytes) => return,
                () = regrouped => {}
            }
        }
    }
}

/// The medium of a back end, kept from being changed while it is used.
pub struct Access<'a> {
    root: Child,
    _inside: gate::Inside<'a>,
}

impl std::ops::Deref for Access<'_> {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.root
    }
}

/// How a back end begins.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// "" for one that only its device knows.
    pub name: String,
    pub read_only: bool,
    pub account_invalid: Option<bool>,
    pub account_failed: Option<bool>,
    /// `stats-intervals` in seconds.
    pub intervals: Vec<u32>,
}

impl Backend {
    /// A back end without medium, listed in the graph.
    pub fn new(graph: &Arc<Graph>, setup: Setup) -> Result<Self> {
        if !setup.name.is_empty() {
            if graph.backend(&setup.name).is_some() {
                bail!("Device with id '{}' already exists", setup.name);
            }
            if graph.find(&setup.name).is_some() || graph.is_claimed(&setup.name) {
                bail!("Device name '{}' conflicts with an existing node name", setup.name);
            }
        }
        let stats = Stats::new(
            graph.clock.clone(),
            setup.account_invalid.unwrap_or(true),
            setup.account_failed.unwrap_or(true),
            &setup.intervals,
        );
        let backend = Backend(Arc::new(Inner {
            name: setup.name,
            nameless: AtomicBool::new(false),
            graph: Arc::downgrade(graph),
            root: Mutex::new(None),
            front: Mutex::new(None),
            gate: gate::Gate::default(),
            policy: policy::Policy::default(),
            resumed: Notify::new(),
            write_cache: AtomicBool::new(true),
            read_only: AtomicBool::new(setup.read_only),
            lent: AtomicBool::new(false),
            habit: Mutex::default(),
            for_device: AtomicBool::new(false),
            automatic: AtomicBool::new(false),
            thread: Mutex::new(graph.main_thread().clone()),
            throttle: Mutex::new(None),
            regrouped: Notify::new(),
            valve: throttle::Valve::default(),
            stats,
            long: AtomicUsize::new(0),
            company: AtomicUsize::new(0),
        }));
        graph.backends.lock().push(backend.clone());
        Ok(backend)
    }

    /// "ide0-hd0", "virtio0" ..., "" for an anonymous one.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// From now on only its device knows it.
    pub(crate) fn forget_name(&self) {
        self.0.nameless.store(true, Ordering::Release);
    }

    pub fn graph(&self) -> Option<Arc<Graph>> {
        self.0.graph.upgrade()
    }

    /// Same back end?
    pub fn same(&self, other: &Backend) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The node of the medium.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.0.root.lock().as_ref().map(Child::node)
    }

    pub(crate) fn root(&self) -> Option<Child> {
        self.0.root.lock().clone()
    }

    /// Whether it uses its medium by this edge.
    pub fn holds(&self, edge: &Child) -> bool {
        self.0.root.lock().as_ref().is_some_and(|root| root.same(edge))
    }

    /// Size of the medium in bytes, 0 without one.
    pub fn size(&self) -> u64 {
        self.node().map_or(0, |node| node.size())
    }

    pub fn is_inserted(&self) -> bool {
        self.0.root.lock().is_some()
    }

    pub fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Acquire) || self.node().is_some_and(|node| node.is_read_only())
    }

    pub fn set_read_only(&self, on: bool) {
        self.0.read_only.store(on, Ordering::Release);
    }

    pub(crate) fn set_habit(&self, habit: medium::Habit) {
        *self.0.habit.lock() = habit;
    }

    /// Without a write cache every write is on stable storage when it is answered.
    pub fn write_cache(&self) -> bool {
        self.0.write_cache.load(Ordering::Acquire)
    }

    pub fn set_write_cache(&self, on: bool) {
        self.0.write_cache.store(on, Ordering::Release);
    }

    /// The drive is made for a device (`-drive`, `drive_add`) and goes with it.
    pub fn set_for_device(&self) {
        self.0.for_device.store(true, Ordering::Release);
    }

    pub fn is_for_device(&self) -> bool {
        self.0.for_device.load(Ordering::Acquire)
    }

    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    pub fn thread(&self) -> IoThread {
        self.0.thread.lock().clone()
    }

    /// Runs requests on another I/O thread from now on.
    pub fn set_thread(&self, thread: &IoThread) {
        *self.0.thread.lock() = thread.clone();
    }

    /// Whether another device has the medium on an I/O thread that is not `mine`.
    pub fn is_on_other_thread(&self, mine: Option<&IoThread>) -> bool {
        let (Some(node), Some(graph)) = (self.node(), self.graph()) else { return false };
        let foreign =
            |thread: IoThread| !thread.is(graph.main_thread()) && !mine.is_some_and(|mine| mine.is(&thread));
        let same = |one: &Backend| one.node().is_some_and(|root| Arc::ptr_eq(&root, &node));
        graph.backends().iter().any(|one| one.front_end().is_some() && same(one) && foreign(one.thread()))
    }

    pub fn throttle_group(&self) -> Option<Arc<throttle::Group>> {
        self.0.throttle.lock().clone()
    }

    /// Joins (or leaves) a throttle group.
    pub fn set_throttle_group(&self, group: Option<Arc<throttle::Group>>) {
        *self.0.throttle.lock() = group;
        self.0.regrouped.notify_waiters();
    }

    /// Lifts its limits, or puts them back (see [`crate::Haste`]).
    pub(crate) fn hasten(&self, on: bool) {
        if on { self.0.valve.open() } else { self.0.valve.close() }
    }

    /// `rerror` and `werror`.
    pub fn set_error_policy(&self, read: OnError, write: OnError) {
        self.0.policy.set(read, write);
    }

    pub fn error_policy(&self) -> (OnError, OnError) {
        self.0.policy.get()
    }

    /// The I/O status, where it is kept.
    pub fn io_status(&self) -> Option<IoStatus> {
        self.0.policy.enabled().then(|| self.0.policy.status())
    }

    /// After `cont`: status back to ok, and every request kept by `stop` is tried again.
    pub fn resume(&self) {
        self.0.policy.clear_status();
        self.0.resumed.notify_waiters();
    }

    pub fn front_end(&self) -> Option<Arc<dyn FrontEnd>> {
        self.0.front.lock().clone()
    }

    /// A device takes the back end.
    pub fn attach(&self, front: Arc<dyn FrontEnd>) -> Result<()> {
        let mut slot = self.0.front.lock();
        if slot.is_some() {
            bail!("Drive '{}' is already in use by another device", self.name());
        }
        self.0.policy.enable(front.keeps_io_status());
        let id = front.qdev_id();
        *slot = Some(front);
        drop(slot);
        self.name_holder(&id);
        let kept = self.refresh_perm();
        if kept.is_err() {
            self.name_holder("");
            *self.0.front.lock() = None;
            self.0.policy.enable(false);
        }
        kept
    }

    /// Whether its medium is `node` or above it.
    pub fn stands_on(&self, node: &Arc<Node>) -> bool {
        self.node().is_some_and(|root| crate::graph::below(&root, node))
    }

    fn name_holder(&self, id: &str) {
        if let Some(root) = self.root() {
            root.set_holder(id);
        }
    }

    /// The device lets go. Not to be called while it has requests in flight.
    pub fn detach(&self) {
        *self.0.front.lock() = None;
        self.name_holder("");
        self.0.policy.enable(false);
        // What an error policy held ends in an error that nobody hears.
        self.0.resumed.notify_waiters();
        // Fewer permissions than before: nothing to refuse.
        let _ = self.refresh_perm();
        if self.name().is_empty() {
            self.delete();
        }
    }

    /// Cancels the jobs that have to do with its medium, which goes away.
    pub fn cancel_jobs(&self) {
        let (Some(node), Some(graph)) = (self.node(), self.graph()) else { return };
        for edge in node.parents() {
            let Parent::Job { id, .. } = edge.parent() else { continue };
            // One that has ended, or ends already, refuses.
            let _ = graph.jobs.find(id).map(|job| job.cancel(false));
        }
    }

    /// Takes the back end out of the graph and its medium out of it.
    pub fn delete(&self) {
        self.release_root();
        if let Some(graph) = self.graph() {
            graph.backends.lock().retain(|one| !one.same(self));
            let handle = graph.main_thread().handle().clone();
            handle.spawn(async move { graph.collect().await });
        }
    }

    pub(crate) fn release_root(&self) {
        let root = self.0.root.lock().take();
        if let (Some(root), Some(graph)) = (root, self.graph()) {
            graph.detach(&root);
        }
    }

    fn wanted_perm(&self, node: &Node) -> (Perm, Perm) {
        let mut perm = Perm::CONSISTENT_READ;
        let lent = self.0.lent.load(Ordering::Acquire);
        // A drive that no device has only shows its medium.
        let idle = self.front_end().is_none() && !self.name().is_empty();
        let writes = !idle && !self.0.read_only.load(Ordering::Acquire);
        if (writes || lent) && !node.is_read_only() {
            perm |= Perm::WRITE;
        }
        match self.front_end() {
            None => (perm, Perm::all()),
            Some(front) => {
                let mut shared = Perm::GUEST_SHARED | Perm::RESIZE;
                shared.set(Perm::WRITE, front.share_rw());
                (perm, shared)
            }
        }
    }

    /// Lets the monitor or an export write by it from now on.
    pub fn lend(&self) -> Result<()> {
        if self.0.lent.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.refresh_perm().inspect_err(|_| self.0.lent.store(false, Ordering::Release))
    }

    /// Takes the permissions again (front end or read-only changed).
    pub fn refresh_perm(&self) -> Result<()> {
        match (self.root(), self.graph()) {
            (Some(root), Some(graph)) => {
                let (perm, shared) = self.wanted_perm(&root.node());
                graph.set_perm(&root, perm, shared)
            }
            _ => Ok(()),
        }
    }

    /// Puts a medium in. The front end is not told (see [`Backend::insert_medium`]).
    pub fn insert(&self, node: &Arc<Node>) -> Result<()> {
        let graph = self.graph().ok_or_else(|| fail!("The block layer is gone"))?;
        if self.is_inserted() {
            bail!("There already is a medium in device '{}'", self.name());
        }
        let role = Role::FILTER | Role::PRIMARY;
        let child = Child::new("root", role, Parent::Backend(self.name().to_string()), node);
        child.set_holder(&self.front_end().map(|front| front.qdev_id()).unwrap_or_default());
        let (perm, shared) = self.wanted_perm(node);
        graph.attach(&child, perm, shared)?;
        *self.0.root.lock() = Some(child);
        if let Some(thread) = node.thread().filter(|_| self.thread().is(graph.main_thread())) {
            self.set_thread(&thread);
        }
        Ok(())
    }

    /// Takes the medium out, after waiting for its requests.
    pub async fn remove(&self) {
        let drained = self.quiesce().await;
        self.release_root();
        drop(drained);
        if let Some(graph) = self.graph() {
            graph.collect().await;
        }
    }

    /// Waits until no request is in flight. Throttle nodes below hold nothing up meanwhile.
    pub async fn drain(&self) {
        let _haste = Haste::below(self.node());
        self.0.gate.wait_idle().await;
    }

    /// As [`Backend::drain`] for threads without a runtime (not an I/O thread).
    pub fn drain_blocking(&self) {
        let backend = self.clone();
        self.thread().run(async move { backend.drain().await });
    }

    /// Holds new requests back and waits for those in flight.
    pub async fn quiesce(&self) -> Drained {
        Drained::new(self.0.clone()).await
    }

    /// Requests that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.0.gate.in_flight()
    }

    /// Lets others than the guest (exports, monitors) at the medium: counted for drains and
    /// limited like the guest, without its error policy.
    pub async fn access(&self, write: bool, bytes: u64) -> io::Result<Access<'_>> {
        if bytes > 0 {
            self.0.pass_limits(write, bytes).await;
        }
        let inside = self.0.gate.enter().await;
        let root = self.root().ok_or_else(|| errno(libc::ENOMEDIUM))?;
        if write && self.0.read_only.load(Ordering::Acquire) && !self.0.lent.load(Ordering::Acquire) {
            return Err(errno(libc::EPERM));
        }
        Ok(Access { root, _inside: inside })
    }

    /// Carries out a request that moves `bytes` on the I/O thread; long ones that come together
    /// go to other threads, one a processor, and leave it free to hand out the next. Not so plain
    /// writes: they lock the host's file, so that several threads would only wait for each other.
    pub fn spawn<T: Send + 'static>(
        &self,
        write: bool,
        bytes: u64,
        request: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let own = || self.0.thread.lock().handle().clone();
        // Where there is an alignment, data is encrypted or does not go through the cache.
        let plain = || self.node().is_none_or(|node| node.layer().limits().request_alignment <= 1);
        if bytes < LONG || write && plain() {
            return own().spawn(request);
        }
        let company = self.0.begin_long();
        let ending = Ending(self.0.clone());
        let request = async move {
            let _ending = ending;
            request.await
        };
        match self.0.graph.upgrade().filter(|_| company) {
            Some(graph) => graph.worker().handle().spawn(request),
            None => own().spawn(request),
        }
    }

    /// Starts a request of the guest. `done` is called on an I/O thread.
    pub fn submit(&self, request: Request, done: Done) {
        let backend = self.clone();
        let write = matches!(request, Request::Write { .. });
        self.spawn(write, request.moves(), async move { done(backend.perform(request).await) });
    }

    /// A guest request from async code: with policy, limits and statistics.
    pub async fn perform(&self, request: Request) -> io::Result<Lent> {
        policy::perform(&self.0, request).await
    }

    /// For threads without a runtime (not an I/O thread).
    pub fn perform_blocking(&self, request: Request) -> io::Result<Lent> {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let answer = move |result| drop(tx.send(result));
        self.submit(request, Box::new(answer));
        rx.recv().unwrap_or_else(|_| Err(errno(libc::EIO)))
    }

    pub fn read_blocking(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.perform_blocking(Request::Read { offset, len }).map(Vec::from)
    }

    pub fn write_blocking(&self, offset: u64, data: Vec<u8>) -> io::Result<()> {
        self.perform_blocking(Request::Write { offset, data: data.into(), fua: false }).map(drop)
    }

    pub fn flush_blocking(&self) -> io::Result<()> {
        self.perform_blocking(Request::Flush).map(drop)
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backend({})", self.name())
    }
}

#[cfg(test)]
mod tests;
