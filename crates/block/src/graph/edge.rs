//! Edges: who uses a node, as what, and with which permissions.

use super::Node;
use crate::types::*;
use arc_swap::{ArcSwap, ArcSwapOption};
use base::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Who holds an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    Node(String),
    /// A back end by its name ("" if it has none).
    Backend(String),
    Job {
        kind: &'static str,
        id: String,
    },
    Named(String),
}

impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Parent::Node(name) => write!(f, "node '{name}'"),
            Parent::Backend(name) if name.is_empty() => f.write_str("an unnamed block device"),
            Parent::Backend(name) => write!(f, "block device '{name}'"),
            Parent::Job { kind, id } => write!(f, "{kind} job '{id}'"),
            Parent::Named(name) => f.write_str(name),
        }
    }
}

/// A parent's handle on a child node; clones are the same edge. Where it leads can be
/// changed by the graph while no request is in flight.
#[derive(Clone)]
pub struct Child(pub(crate) Arc<Edge>);

pub(crate) struct Edge {
    pub name: String,
    pub role: Role,
    pub parent: Parent,
    pub target: ArcSwap<Node>,
    /// The device that holds a parent without name.
    pub holder: ArcSwapOption<String>,
    /// What the parent does and what it lets others do.
    pub perm: Mutex<(Perm, Perm)>,
    /// How many rely on it leading where it does.
    pub frozen: AtomicUsize,
    /// The node that it leads to is tracked; see [`Child::track`].
    tracks: AtomicBool,
}

impl Edge {
    /// Leads to `node` from now on, which is drained.
    pub(super) fn lead_to(&self, node: &Arc<Node>) {
        let tracks = self.tracks.load(Ordering::Acquire);
        if tracks {
            node.track();
        }
        let old = self.target.swap(node.clone());
        if tracks {
            old.untrack();
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if *self.tracks.get_mut() {
            self.target.load().untrack();
        }
    }
}

impl Child {
    /// An edge that grants nothing yet; [`super::Graph`] attaches it.
    pub(crate) fn new(name: &str, role: Role, parent: Parent, node: &Arc<Node>) -> Self {
        Child(Arc::new(Edge {
            name: name.to_string(),
            role,
            parent,
            target: ArcSwap::new(node.clone()),
            holder: ArcSwapOption::empty(),
            perm: Mutex::new((Perm::empty(), Perm::all())),
            frozen: AtomicUsize::new(0),
            tracks: AtomicBool::new(false),
        }))
    }

    /// The node it leads to now.
    pub fn node(&self) -> Arc<Node> {
        self.0.target.load_full()
    }

    /// Has the node that it leads to, also later, tracked ([`Node::track`]) while the edge lives.
    pub(crate) fn track(&self) {
        if !self.0.tracks.swap(true, Ordering::AcqRel) {
            self.node().track();
        }
    }

    /// "file", "backing", "children.0" ...
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn role(&self) -> Role {
        self.0.role
    }

    pub fn parent(&self) -> &Parent {
        &self.0.parent
    }

    /// What people are told of who uses it.
    pub fn user(&self) -> String {
        match (&self.0.parent, self.0.holder.load_full()) {
            (Parent::Backend(name), Some(id)) if name.is_empty() => {
                Parent::Backend(id.to_string()).to_string()
            }
            (parent, _) => parent.to_string(),
        }
    }

    /// The id or path of the device that holds a back end; "" if none does.
    pub fn set_holder(&self, id: &str) {
        self.0.holder.store((!id.is_empty()).then(|| Arc::new(id.to_string())));
    }

    /// Permissions used and shared.
    pub fn perm(&self) -> (Perm, Perm) {
        *self.0.perm.lock()
    }

    /// Refuses users who want it to lead elsewhere, until [`Child::thaw`].
    pub(crate) fn freeze(&self) {
        self.0.frozen.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn thaw(&self) {
        self.0.frozen.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.0.frozen.load(Ordering::Acquire) > 0
    }

    pub fn same(&self, other: &Child) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Length of the child in bytes.
    pub fn size(&self) -> u64 {
        self.0.target.load().size()
    }

    /// Reads exactly `buf`; what lies past the end reads as zeroes.
    pub fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move { self.node().read(offset, buf).await })
    }

    pub fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move { self.node().write(offset, data, flags).await })
    }

    /// Falls back to writing buffers unless told not to.
    pub fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'_, IoResult> {
        Box::pin(async move { self.node().write_zeroes(offset, len, flags).await })
    }

    pub fn discard(&self, offset: u64, len: u64) -> Fut<'_, IoResult> {
        Box::pin(async move { self.node().discard(offset, len).await })
    }

    /// Everything written before is on stable storage afterwards (unless `cache.no-flush`).
    pub fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async move { self.node().flush().await })
    }

    pub fn block_status(&self, offset: u64, len: u64) -> Fut<'_, IoResult<Status>> {
        Box::pin(async move { self.node().block_status(offset, len).await })
    }

    pub fn truncate(&self, size: u64, how: Truncate) -> Fut<'_, base::Result<()>> {
        Box::pin(async move { self.node().truncate(size, how).await })
    }

    /// Reads `len` bytes that must all lie in the file: for metadata whose place an image
    /// header claims. `limit` bounds the allocation.
    pub async fn read_vec(&self, offset: u64, len: u64, limit: u64) -> IoResult<Vec<u8>> {
        let end = offset.checked_add(len);
        if len > limit || end.is_none_or(|end| end > self.size()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut data = vec![0; len as usize];
        if len > 0 {
            self.read(offset, &mut data).await?;
        }
        Ok(data)
    }
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -{}-> {}", self.0.parent, self.0.name, self.node().name())
    }
}
