//! The graph: all nodes, the edges between them and their users.

pub mod create;
mod edge;
pub mod filename;
mod haste;
mod insert;
mod io;
mod iothread;
mod keys;
mod node;
mod open;
pub mod perm;
mod polling;
mod reopen;
mod surgery;
mod workers;

pub use crate::backend::Drained;
pub use edge::{Child, Parent};
pub use haste::Haste;
pub use io::{Change, Hook, RangeGuard};
pub use iothread::IoThread;
pub use node::{Node, Pin, Settings};
pub(crate) use open::{DETECT_ZEROES, take_settings};
pub use polling::Limits as PollLimits;
pub(crate) use surgery::{below, check_cycle};

use crate::backend::Backend;
use crate::types::Perm;
use crate::vault::Vault;
use base::clock::Clock;
use base::notice::Notices;
use base::{Failure, Mutex, Result, bail, fail};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// All block nodes of a process and who uses them. Methods may be called from any thread.
pub struct Graph {
    this: Weak<Graph>,
    pub notices: Notices,
    /// Throttling and statistics go by this clock.
    pub clock: Clock,
    main: IoThread,
    workers: workers::Workers,
    /// Held while unused nodes are closed: who collects returns when they are.
    collecting: tokio::sync::Mutex<()>,
    /// One job at a time puts images onto others.
    pub(crate) relinking: tokio::sync::Mutex<()>,
    /// Held while edges and permissions change.
    topology: Mutex<()>,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// Names of nodes that are being opened.
    claimed: Mutex<Vec<String>>,
    pub(crate) backends: Mutex<Vec<Backend>>,
    counter: AtomicU64,
    pub throttle_groups: crate::throttle::Groups,
    pub jobs: crate::jobs::Jobs,
    pub exports: crate::export::Exports,
    /// What `/dev/fdset/N` opens.
    pub fdsets: base::fd::FdSets,
    /// Descriptors of this process that options may name by their numbers.
    inherited: std::sync::OnceLock<Arc<base::fd::Inherited>>,
    /// Sockets that options may name while a command is carried out.
    offered: Mutex<std::collections::HashMap<String, OwnedFd>>,
    vault: std::sync::OnceLock<Arc<dyn Vault>>,
}

/// A node's name while the node is being opened.
struct Claim(Arc<Graph>, String);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.lock().retain(|name| *name != self.1);
    }
}

impl Graph {
    /// An empty graph with an I/O thread of its own.
    pub fn new(notices: Notices, clock: Clock, fdsets: base::fd::FdSets) -> Arc<Self> {
        Arc::new_cyclic(|this| Graph {
            this: this.clone(),
            throttle_groups: crate::throttle::Groups::new(clock.clone()),
            jobs: crate::jobs::Jobs::new(this.clone(), notices.clone()),
            exports: Default::default(),
            notices,
            clock,
            main: IoThread::start("block"),
            workers: Default::default(),
            collecting: Default::default(),
            relinking: Default::default(),
            topology: Mutex::new(()),
            nodes: Mutex::default(),
            claimed: Mutex::default(),
            backends: Mutex::default(),
            counter: AtomicU64::new(0),
            fdsets,
            inherited: Default::default(),
            offered: Default::default(),
            vault: Default::default(),
        })
    }

    /// Gives the graph the descriptors that may be asked for by number; the first given stay.
    pub fn set_inherited(&self, inherited: Arc<base::fd::Inherited>) {
        // A second one has nothing to say.
        let _ = self.inherited.set(inherited);
    }

    /// Lets options name a socket until [`Graph::withdraw_fd`].
    pub fn offer_fd(&self, name: &str, fd: OwnedFd) {
        self.offered.lock().insert(name.to_string(), fd);
    }

    /// Closes an offered socket that nobody took.
    pub fn withdraw_fd(&self, name: &str) {
        self.offered.lock().remove(name);
    }

    /// Takes a socket by its name, or a descriptor by its number.
    pub(crate) fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        let unknown = || fail!("File descriptor named '{name}' has not been found");
        if !name.starts_with(|c: char| c.is_ascii_digit()) {
            return self.offered.lock().remove(name).ok_or_else(unknown);
        }
        let number = name.parse().map_err(|_| unknown())?;
        match self.inherited.get() {
            Some(inherited) => inherited.take(number),
            None => bail!("File descriptor {number} is not open or already in use"),
        }
    }

    /// Gives the graph its keys and credentials; the first vault given stays.
    pub fn set_vault(&self, vault: Arc<dyn Vault>) {
        // A second one has nothing to say.
        let _ = self.vault.set(vault);
    }

    pub fn vault(&self) -> &dyn Vault {
        self.vault.get().map_or(&crate::vault::Empty, |vault| &**vault)
    }

    pub(crate) fn arc(&self) -> Arc<Graph> {
        self.this.upgrade().expect("a graph in use is alive")
    }

    /// The I/O thread of nodes and back ends that were given no other.
    pub fn main_thread(&self) -> &IoThread {
        &self.main
    }

    /// A thread for work that is long enough to be shared among processors: the one that has
    /// the least to do.
    pub fn worker(&self) -> &IoThread {
        self.workers.next()
    }

    /// Runs a future on the I/O thread and waits. Not to be called on an I/O thread.
    pub fn block_on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.main.run(work)
    }

    /// Every node, in the order of opening.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().clone()
    }

    /// A node by its node name.
    pub fn find(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.lock().iter().find(|node| node.name() == name).cloned()
    }

    pub fn backends(&self) -> Vec<Backend> {
        self.backends.lock().clone()
    }

    /// A back end by its name.
    pub fn backend(&self, name: &str) -> Option<Backend> {
        self.backends.lock().iter().find(|one| !name.is_empty() && one.name() == name).cloned()
    }

    /// The root node of a back end, or a node, by either name.
    pub fn lookup(&self, device: Option<&str>, node: Option<&str>) -> Result<Arc<Node>> {
        if let Some(name) = device
            && let Some(backend) = self.backend(name)
        {
            return backend.node().ok_or_else(|| fail!("Device '{name}' has no medium"));
        }
        if let Some(found) = node.and_then(|name| self.find(name)) {
            return Ok(found);
        }
        let (device, node) = (device.unwrap_or(""), node.unwrap_or(""));
        Err(fail!("Cannot find device='{device}' nor node-name='{node}'"))
    }

    /// A fresh `#block...` name.
    pub(crate) fn auto_name(&self) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        // Two scrambled digits keep people from relying on the number.
        format!("#block{count}{:02}", (count.wrapping_mul(2_654_435_761) >> 7) % 100)
    }

    /// Whether a node of this name is being opened.
    pub(crate) fn is_claimed(&self, name: &str) -> bool {
        self.claimed.lock().iter().any(|one| one == name)
    }

    /// Keeps a name for a node that is being opened.
    fn claim_name(&self, name: &str) -> Result<Claim> {
        if !well_formed(name) {
            bail!("Invalid node-name: '{name}'");
        }
        if name.len() > 31 {
            bail!("Node name too long");
        }
        if self.backend(name).is_some() {
            bail!("node-name={name} is conflicting with a device id");
        }
        let mut claimed = self.claimed.lock();
        if self.find(name).is_some() || claimed.iter().any(|one| one == name) {
            bail!("Duplicate nodes with node-name='{name}'");
        }
        claimed.push(name.to_string());
        Ok(Claim(self.arc(), name.to_string()))
    }

    /// Makes an edge count: checks and takes its permissions, then lists it at its node.
    pub(crate) fn attach(&self, child: &Child, perm: Perm, shared: Perm) -> Result<()> {
        let _topology = self.topology.lock();
        let node = child.node();
        let mut plan = perm::Plan::default();
        plan.set(child, perm, shared);
        plan.lead(child, Some(&node));
        plan.check(std::slice::from_ref(&node))?;
        plan.commit()?;
        *child.0.perm.lock() = (perm, shared);
        node.parents.lock().push(Arc::downgrade(&child.0));
        Ok(())
    }

    /// Changes the permissions of an attached edge.
    pub(crate) fn set_perm(&self, child: &Child, perm: Perm, shared: Perm) -> Result<()> {
        let _topology = self.topology.lock();
        let mut plan = perm::Plan::default();
        plan.set(child, perm, shared);
        plan.check(&[child.node()])?;
        plan.commit()
    }

    /// Works out anew what a node does to those below it.
    fn refresh_perm(&self, node: &Arc<Node>) -> Result<()> {
        let _topology = self.topology.lock();
        let mut plan = perm::Plan::default();
        plan.check(std::slice::from_ref(node))?;
        plan.commit()
    }

    /// Takes what [`Layer::amend`](crate::Layer::amend) needs below a node, or gives it back.
    pub fn amending(&self, node: &Arc<Node>, on: bool) -> Result<()> {
        node.layer().amending(on);
        let done = self.refresh_perm(node);
        if on && done.is_err() {
            node.layer().amending(false);
        }
        done
    }

    /// Gives a node, and all it stands on, to an I/O thread (`None`: to the graph's own): requests
    /// of the back ends above it run there from now on. Without `force` there may be none.
    pub fn set_thread(&self, node: &Arc<Node>, thread: Option<&IoThread>, force: bool) -> Result<()> {
        let above = self.users_of(node);
        if !force && !above.is_empty() {
            let name = node.name();
            bail!(
                "Node {name} is associated with a BlockBackend and could be in use (use force=true to override \
                 this check)"
            );
        }
        node.set_thread(thread);
        above.iter().for_each(|one| one.set_thread(thread.unwrap_or(self.main_thread())));
        Ok(())
    }

    /// Takes an edge away; the node may then be collected.
    pub(crate) fn detach(&self, child: &Child) {
        let _topology = self.topology.lock();
        let node = child.node();
        node.parents.lock().retain(|edge| !std::ptr::eq(edge.as_ptr(), Arc::as_ptr(&child.0)));
        let mut plan = perm::Plan::default();
        // Fewer users cannot conflict.
        if plan.check(&[node]).is_ok() {
            let _ = plan.commit();
        }
    }

    /// Closes and forgets every node that nobody uses any more; also waits for those that
    /// others are closing.
    pub async fn collect(&self) {
        let _alone = self.collecting.lock().await;
        while let Some(node) = self.take_unused() {
            let closed = node.layer().close().await;
            // A filter holds nothing of its own: what it stands on tells.
            if let Err(error) = closed
                && node.driver().kind != crate::driver::Kind::Filter
            {
                let what = Failure::os(format!("closing node '{}'", node.name()), &error);
                eprintln!("block: {what}");
            }
            for child in node.children.lock().drain(..) {
                self.detach(&child);
            }
        }
    }

    fn take_unused(&self) -> Option<Arc<Node>> {
        let mut nodes = self.nodes.lock();
        let unused = |node: &Arc<Node>| {
            !node.kept.load(Ordering::Acquire)
                && node.pins.load(Ordering::Acquire) == 0
                && node.parents().is_empty()
        };
        let at = nodes.iter().position(unused)?;
        Some(nodes.remove(at))
    }

    /// `blockdev-del`.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Some(node) = self.find(name) else { bail!("Failed to find node with node-name='{name}'") };
        let users = node.parents();
        let shows = |edge: &Child| !matches!(edge.parent(), Parent::Node(_) | Parent::Job { .. });
        if users.iter().any(shows) {
            bail!("Node {name} is in use");
        }
        node.check_free()?;
        if !node.is_kept() {
            bail!("Node {name} is not owned by the monitor");
        }
        if !users.is_empty() {
            bail!("Block device {name} is in use");
        }
        node.kept.store(false, Ordering::Release);
        self.collect().await;
        Ok(())
    }

    /// Flushes and closes everything (end of the process).
    pub async fn shutdown(&self) {
        for backend in self.backends() {
            backend.drain().await;
            backend.release_root();
        }
        self.backends.lock().clear();
        for node in self.nodes() {
            node.kept.store(false, Ordering::Release);
        }
        self.collect().await;
    }
}

/// An identifier as QEMU has them: a letter, then letters, digits, `-`, `.`, `_`.
pub fn well_formed(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

#[cfg(test)]
pub(crate) mod tests;
