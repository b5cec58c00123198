//! A node: a layer with its name, settings, users and bookkeeping.

use super::{Child, IoThread, edge::Edge};
use crate::bitmap::Bitmaps;
use crate::driver::{Context, Driver, Layer};
use crate::options::Options;
use crate::types::*;
use base::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// How a node is used, whatever its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    pub read_only: bool,
    /// May become read-only when the file cannot be written.
    pub auto_read_only: bool,
    pub cache: Cache,
    /// Discards are passed on.
    pub discard: bool,
    pub detect_zeroes: DetectZeroes,
    /// Opened although others write; takes no locks that would refuse them.
    pub force_share: bool,
    /// May be opened although its key is missing (see [`Layer::late_key`]).
    pub late_key: bool,
    pub aio: Aio,
}

impl Settings {
    /// What a child in `role` gets where its own options say nothing.
    pub fn for_child(&self, role: Role) -> Settings {
        let backing = role.contains(Role::BACKING);
        Settings {
            read_only: self.read_only || backing,
            auto_read_only: self.auto_read_only && !backing,
            discard: true,
            detect_zeroes: DetectZeroes::Off,
            ..*self
        }
    }
}

/// A node of the graph.
pub struct Node {
    name: String,
    driver: &'static Driver,
    layer: Arc<dyn Layer>,
    /// What it was opened with, but for what says who and what it is.
    given: Options,
    /// The backing file that its header named when it was opened, and the node that was opened
    /// for it.
    found: Mutex<Option<(String, String)>>,
    /// Settings that were said, not taken from the node above or the defaults.
    explicit: Mutex<Options>,
    settings: Mutex<Settings>,
    read_only: AtomicBool,
    no_flush: AtomicBool,
    pub(crate) context: Context,
    pub(super) children: Mutex<Vec<Child>>,
    pub(super) parents: Mutex<Vec<Weak<Edge>>>,
    /// Kept by the user (`blockdev-add`) until `blockdev-del`.
    pub(super) kept: AtomicBool,
    /// Opened by the options of a node above.
    pub(super) inherited: AtomicBool,
    implicit: AtomicBool,
    pub(super) pins: AtomicUsize,
    pub(super) io: super::io::State,
    write_threshold: AtomicU64,
    /// `x-blockdev-set-iothread`.
    thread: Mutex<Option<IoThread>>,
    /// Reasons why some operations are refused, by job or feature.
    blockers: Mutex<Vec<(u64, String)>>,
}

pub(super) struct Parts {
    pub driver: &'static Driver,
    pub layer: Arc<dyn Layer>,
    pub context: Context,
    pub settings: Settings,
    pub children: Vec<Child>,
    pub options: Options,
    pub explicit: Options,
}

impl Node {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let backing = parts.children.iter().find(|child| child.role().contains(Role::BACKING));
        let found = backing.filter(|_| !parts.options.contains("backing")).and_then(|child| {
            let name = parts.layer.header_backing()?;
            Some((name, child.node().name().to_string()))
        });
        Arc::new(Node {
            name: parts.context.node_name.clone(),
            driver: parts.driver,
            layer: parts.layer,
            given: parts.options,
            found: Mutex::new(found),
            explicit: Mutex::new(parts.explicit),
            settings: Mutex::new(parts.settings),
            read_only: AtomicBool::new(parts.settings.read_only),
            no_flush: AtomicBool::new(parts.settings.cache.no_flush),
            context: parts.context,
            children: Mutex::new(parts.children),
            parents: Mutex::default(),
            kept: AtomicBool::new(false),
            inherited: AtomicBool::new(false),
            implicit: AtomicBool::new(false),
            pins: AtomicUsize::new(0),
            io: super::io::State::of(parts.driver.kind),
            write_threshold: AtomicU64::new(0),
            thread: Mutex::default(),
            blockers: Mutex::default(),
        })
    }

    /// The node name; every node has one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Made up (`#block123`), not given by the user.
    pub fn is_auto_named(&self) -> bool {
        self.name.starts_with('#')
    }

    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    pub fn layer(&self) -> &dyn Layer {
        &*self.layer
    }

    /// The I/O thread that it, or what it stands on, was given to: jobs and back ends that begin
    /// to use it run there if they have none of their own.
    pub fn thread(&self) -> Option<IoThread> {
        let own = self.thread.lock().clone();
        own.or_else(|| self.children().iter().find_map(|child| child.node().thread()))
    }

    pub(super) fn set_thread(&self, thread: Option<&IoThread>) {
        *self.thread.lock() = thread.cloned();
        self.children().iter().for_each(|child| child.node().set_thread(thread));
    }

    /// A plain file name, or `json:{...}`: what opens the same nodes again.
    pub fn filename(&self) -> String {
        super::filename::of(self)
    }

    /// The name of the file that its data lies in.
    pub fn place(&self) -> String {
        super::filename::place_of(self)
    }

    pub(super) fn given(&self) -> &Options {
        &self.given
    }

    /// Whether `below` was opened because the header said `name`.
    pub(super) fn found_backing(&self, name: &str, below: &Node) -> bool {
        self.found.lock().as_ref().is_some_and(|(said, node)| said == name && node == below.name())
    }

    /// The header names another backing file than what was opened.
    pub(super) fn forget_found(&self) {
        *self.found.lock() = None;
    }

    pub(super) fn explicit(&self) -> Options {
        self.explicit.lock().clone()
    }

    /// Whether its own options made it read-only.
    pub(super) fn is_said_read_only(&self) -> bool {
        self.is_read_only() && self.explicit.lock().contains("read-only")
    }

    pub(super) fn set_explicit(&self, options: Options) {
        *self.explicit.lock() = options;
    }

    pub fn settings(&self) -> Settings {
        *self.settings.lock()
    }

    pub(crate) fn set_settings(&self, settings: Settings) {
        *self.settings.lock() = settings;
        self.read_only.store(settings.read_only, Ordering::Release);
        self.no_flush.store(settings.cache.no_flush, Ordering::Release);
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub(super) fn no_flush(&self) -> bool {
        self.no_flush.load(Ordering::Acquire)
    }

    /// Guest-visible size in bytes.
    pub fn size(&self) -> u64 {
        self.layer.size()
    }

    pub fn bitmaps(&self) -> &Arc<Bitmaps> {
        &self.context.bitmaps
    }

    pub fn children(&self) -> Vec<Child> {
        self.children.lock().clone()
    }

    /// `tops` and all nodes below them, each once; a chain from its top.
    pub(super) fn subtree(tops: impl IntoIterator<Item = Arc<Node>>) -> Vec<Arc<Node>> {
        let mut found: Vec<Arc<Node>> = Vec::new();
        let mut left: Vec<Arc<Node>> = tops.into_iter().collect();
        while let Some(node) = left.pop() {
            if found.iter().any(|known| Arc::ptr_eq(known, &node)) {
                continue;
            }
            left.extend(node.children().iter().map(Child::node));
            found.push(node);
        }
        found
    }

    /// The edges of users that are neither `top` nor stand below it.
    pub(crate) fn parents_outside(&self, top: Option<&Arc<Node>>) -> Vec<Child> {
        let within = Node::subtree(top.cloned());
        let mut users = self.parents();
        users.retain(|edge| match edge.parent() {
            super::Parent::Node(name) => !within.iter().any(|one| one.name() == name),
            _ => true,
        });
        users
    }

    /// The child in a role (`BACKING`, `PRIMARY` ...).
    pub fn child(&self, role: Role) -> Option<Child> {
        self.children.lock().iter().find(|child| child.role().intersects(role)).cloned()
    }

    pub fn child_named(&self, name: &str) -> Option<Child> {
        self.children.lock().iter().find(|child| child.name() == name).cloned()
    }

    /// Where the places lie that [`Status::offset`](crate::types::Status) tells of.
    pub(super) fn places(&self) -> Option<Child> {
        self.child_named("data-file").or_else(|| self.child(Role::DATA | Role::FILTERED))
    }

    /// The backing node of an image format.
    pub fn backing(&self) -> Option<Arc<Node>> {
        self.child(Role::BACKING).map(|child| child.node())
    }

    /// The node a filter shows; `None` of a node that is no filter.
    pub fn filtered(&self) -> Option<Arc<Node>> {
        let filter = self.driver.kind == crate::driver::Kind::Filter;
        self.child(Role::FILTERED).filter(|_| filter).map(|child| child.node())
    }

    /// Past filters, the first node that is none.
    pub fn skip_filters(self: &Arc<Self>) -> Arc<Node> {
        let mut node = self.clone();
        while let Some(next) = node.filtered() {
            node = next;
        }
        node
    }

    /// A filter that nobody named: what tells of the disks of a machine leaves it out.
    pub fn is_implicit(&self) -> bool {
        self.implicit.load(Ordering::Acquire)
    }

    pub(crate) fn set_implicit(&self, on: bool) {
        self.implicit.store(on, Ordering::Release);
    }

    /// Past implicit filters, the first node that is none.
    pub fn skip_implicit(self: &Arc<Self>) -> Arc<Node> {
        let mut node = self.clone();
        while let Some(next) = node.filtered().filter(|_| node.is_implicit()) {
            node = next;
        }
        node
    }

    /// Refuses unless only back ends use it: no other node stands on it, no job has it.
    pub fn check_root(&self) -> base::Result<()> {
        if self.parents().iter().all(|edge| matches!(edge.parent(), super::Parent::Backend(_))) {
            return Ok(());
        }
        base::bail!("Need a root block node")
    }

    /// The edges that lead here.
    pub fn parents(&self) -> Vec<Child> {
        let mut parents = self.parents.lock();
        parents.retain(|edge| edge.strong_count() > 0);
        parents.iter().filter_map(Weak::upgrade).map(Child).collect()
    }

    /// Bytes; 0 is off.
    pub fn write_threshold(&self) -> u64 {
        self.write_threshold.load(Ordering::Acquire)
    }

    pub fn set_write_threshold(&self, threshold: u64) {
        self.write_threshold.store(threshold, Ordering::Release);
    }

    /// Takes the threshold away if `end` passes it.
    pub(super) fn cross_threshold(&self, end: u64) -> Option<u64> {
        let threshold = self.write_threshold.load(Ordering::Acquire);
        let crossed = threshold != 0
            && end > threshold
            && self
                .write_threshold
                .compare_exchange(threshold, 0, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
        crossed.then_some(threshold)
    }

    /// One past the highest byte written through this node.
    pub fn highest_written(&self) -> u64 {
        self.io.highest.load(Ordering::Relaxed)
    }

    /// Refuses operations on this node for a reason ("block device is in use by block
    /// job: mirror") until the returned token is given to [`Node::unblock`].
    pub fn block(&self, reason: impl Into<String>) -> u64 {
        let mut blockers = self.blockers.lock();
        let token = blockers.last().map_or(1, |(token, _)| token + 1);
        blockers.push((token, reason.into()));
        token
    }

    pub fn unblock(&self, token: u64) {
        self.blockers.lock().retain(|(one, _)| *one != token);
    }

    /// Whether clusters of it can be written compressed.
    pub(crate) fn compresses(&self) -> bool {
        let apart = |told: serde_json::Value| !told["data"]["data-file"].is_null();
        self.driver.compresses && !self.layer().info().specific.is_some_and(apart)
    }

    /// The first reason why operations are refused, as "Node 'x' is busy: why".
    pub fn check_busy(&self) -> base::Result<()> {
        let why = self.blockers.lock().first().map(|(_, why)| why.clone());
        why.map_or(Ok(()), |why| Err(base::fail!("Node '{}' is busy: {why}", self.shown_name())))
    }

    /// As [`Node::check_busy`]; also refuses a node that an overlay stands on.
    pub fn check_free(&self) -> base::Result<()> {
        let edge = self.parents().into_iter().rev().find(|edge| edge.role().contains(Role::BACKING));
        let Some(super::Parent::Node(overlay)) = edge.map(|edge| edge.parent().clone()) else {
            return self.check_busy();
        };
        let name = self.shown_name();
        Err(base::fail!("Node '{name}' is busy: node is used as backing hd of '{overlay}'"))
    }

    /// The name of the back end whose root it is, else its own.
    pub fn shown_name(&self) -> String {
        let root = |edge: Child| match edge.parent() {
            super::Parent::Backend(name) if !name.is_empty() => Some(name.clone()),
            _ => None,
        };
        self.parents().into_iter().find_map(root).unwrap_or_else(|| self.name.clone())
    }

    /// Opened by `blockdev-add` for its own sake.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// Opened by the options of a node above: that one's settings are its own where nothing else
    /// was said.
    pub(super) fn is_inherited(&self) -> bool {
        self.inherited.load(Ordering::Acquire)
    }

    /// Keeps the node open until the pin is dropped (and the graph collected).
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.pins.fetch_add(1, Ordering::AcqRel);
        Pin(self.clone())
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.driver.name)
    }
}

/// Keeps a node open.
pub struct Pin(Arc<Node>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::ops::Deref for Pin {
    type Target = Arc<Node>;
    fn deref(&self) -> &Arc<Node> {
        &self.0
    }
}
