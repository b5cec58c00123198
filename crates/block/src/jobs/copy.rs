//! What several jobs share: nodes held for a job, allocation over a chain, copying a piece.

use super::filter;
use crate::driver::Driver;
use crate::graph::{Child, Graph, Node, Parent, Pin};
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

/// Longest piece copied at once.
pub(super) const CHUNK: u64 = 1 << 20;

/// Nodes a job keeps open and edges by which it uses them.
pub(super) struct Held {
    pub graph: Arc<Graph>,
    kind: &'static str,
    id: String,
    pins: Vec<Pin>,
    edges: Vec<Child>,
    blocks: Vec<(Arc<Node>, u64)>,
    frozen: Vec<Child>,
    filter: Option<Pin>,
}

impl Held {
    pub fn new(graph: &Arc<Graph>, kind: &'static str, id: &str) -> Self {
        let (graph, id) = (graph.clone(), id.to_string());
        let (pins, edges, blocks, frozen) = Default::default();
        Held { graph, kind, id, pins, edges, blocks, frozen, filter: None }
    }

    /// The images that stand on the job's filter.
    pub fn overlays(&self) -> Vec<Arc<Node>> {
        let edges = self.filter.as_ref().map(|filter| filter.parents()).unwrap_or_default();
        let backing = edges.iter().filter(|edge| edge.role().contains(Role::BACKING));
        let above = backing.filter_map(|edge| match edge.parent() {
            Parent::Node(name) => self.graph.find(name),
            _ => None,
        });
        above.collect()
    }

    pub fn keep(&mut self, node: &Arc<Node>) {
        self.pins.push(node.pin());
    }

    /// Keeps a node and refuses other operations on it.
    pub fn block(&mut self, node: &Arc<Node>) {
        self.keep(node);
        let token = node.block(format!("block device is in use by block job: {}", self.kind));
        self.blocks.push((node.clone(), token));
    }

    /// Uses a node as part of the job, with these permissions.
    pub fn attach(&mut self, name: &str, node: &Arc<Node>, perm: Perm, shared: Perm) -> Result<()> {
        let parent = Parent::Job { kind: self.kind, id: self.id.clone() };
        self.join(name, parent, node, perm, shared)
    }

    /// Reads or writes a node as a device does.
    pub fn attach_root(&mut self, node: &Arc<Node>, perm: Perm, shared: Perm) -> Result<()> {
        self.join("root", Parent::Backend(String::new()), node, perm, shared)
    }

    /// The filter writes a node.
    pub fn attach_filter_target(&mut self, node: &Arc<Node>, perm: Perm, shared: Perm) -> Result<()> {
        let name = self.filter.as_ref().map(|filter| filter.name().to_string()).unwrap_or_default();
        self.join("target", Parent::Node(name), node, perm, shared)
    }

    fn join(&mut self, name: &str, parent: Parent, node: &Arc<Node>, perm: Perm, shared: Perm) -> Result<()> {
        let child = Child::new(name, Role::FILTER, parent, node);
        self.graph.attach(&child, perm, shared)?;
        self.edges.push(child);
        Ok(())
    }

    /// Uses the nodes from `top` down to `base` (which is not among them), into which all of them
    /// are written: what lies in an image is wrong from then on, but not what filters over the
    /// base show.
    pub fn attach_above_base(&mut self, top: Option<Arc<Node>>, base: &Arc<Node>) -> Result<()> {
        let nodes: Vec<Arc<Node>> = chain(top, Some(base)).collect();
        let images = nodes.iter().rposition(|node| node.filtered().is_none()).map_or(0, |last| last + 1);
        for (at, node) in nodes.iter().enumerate() {
            let mut shared = Perm::WRITE | Perm::WRITE_UNCHANGED;
            shared.set(Perm::CONSISTENT_READ, at >= images);
            self.attach("intermediate node", node, Perm::empty(), shared)?;
        }
        Ok(())
    }

    /// Keeps users from changing what stands on what, from `top` down to `base` (`None`: to the
    /// end). Refuses a chain through the filter of a job that will take it out.
    pub fn freeze(&mut self, top: &Arc<Node>, base: Option<&Arc<Node>>) -> Result<()> {
        let links: Vec<Child> =
            chain(Some(top.clone()), base).filter_map(|node| node.child(Role::BACKING)).collect();
        for link in &links {
            let below = link.node();
            if filter::comes_out(below.driver()) {
                bail!("Cannot freeze '{}' link to '{}'", link.name(), below.name());
            }
        }
        links.iter().for_each(Child::freeze);
        self.frozen.extend(links);
        Ok(())
    }

    /// Puts the job's filter over a node; to be called before the node is attached. What stands
    /// below `spared` keeps the node.
    pub async fn put_filter(
        &mut self,
        driver: &'static Driver,
        name: Option<&str>,
        node: &Arc<Node>,
        spared: Option<&Arc<Node>>,
    ) -> Result<Arc<Node>> {
        let drained = self.graph.drain(node).await;
        let put = self.graph.put_filter(driver, name, node, spared).await;
        // Customary: a mirror or commit says it without more ado.
        let put = put.map_err(|why| match driver.name {
            "mirror_top" | "commit_top" => why,
            _ => why.within("Could not create node"),
        })?;
        drop(drained);
        let node = put.clone();
        // Customary: the filter of a commit is open to others.
        if driver.name == filter::COMMIT.name {
            self.keep(&node);
        } else {
            self.block(&node);
        }
        self.filter = Some(put);
        Ok(node)
    }

    /// Takes the filter out; its users use what it showed.
    pub async fn take_filter(&mut self) {
        if let Some(filter) = &self.filter {
            let drained = self.graph.drain(filter).await;
            self.take_filter_drained();
            drop(drained);
        }
    }

    /// As [`Held::take_filter`] where no request can be in flight. The job uses nothing any more.
    pub fn take_filter_drained(&mut self) {
        self.detach();
        if let Some(filter) = self.filter.take()
            && let Err(why) = self.graph.take_filter(&filter)
        {
            eprintln!("block: filter '{}' of job '{}' stays: {why}", filter.name(), self.id);
        }
    }

    /// Uses nothing any more.
    pub fn detach(&mut self) {
        self.frozen.drain(..).for_each(|link| link.thaw());
        for edge in self.edges.drain(..) {
            self.graph.detach(&edge);
        }
    }

    pub fn release(&mut self) {
        self.take_filter_drained();
        self.detach();
        for (node, token) in self.blocks.drain(..) {
            node.unblock(token);
        }
        self.pins.clear();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// The node below in a chain of images: what a filter shows, else the backing node.
pub(super) fn below(node: &Arc<Node>) -> Option<Arc<Node>> {
    node.filtered().or_else(|| node.backing())
}

/// The nodes from `from` down to `base`, which is not among them (`None`: to the end).
pub(super) fn chain(from: Option<Arc<Node>>, base: Option<&Arc<Node>>) -> impl Iterator<Item = Arc<Node>> {
    let base = base.cloned();
    std::iter::successors(from, below)
        .take_while(move |node| !base.as_ref().is_some_and(|base| Arc::ptr_eq(base, node)))
}

/// Whether a range is allocated in `top` or a node above `base` (`None`: in any), and how
/// long that is so.
pub(crate) async fn allocated_above(
    top: &Arc<Node>,
    base: Option<&Arc<Node>>,
    offset: u64,
    len: u64,
) -> IoResult<(bool, u64)> {
    let mut node = top.clone();
    let mut len = len;
    loop {
        if base.is_some_and(|base| Arc::ptr_eq(base, &node)) {
            return Ok((false, len));
        }
        let next = below(&node);
        if node.filtered().is_some() {
            match next {
                Some(next) => node = next,
                None => return Ok((true, len)),
            }
            continue;
        }
        if offset >= node.size() {
            // Past the end an overlay's own zeroes are what is read.
            return Ok((true, len));
        }
        let status = node.block_status(offset, len).await?;
        if status.flags.contains(StatusFlags::ALLOCATED) {
            return Ok((true, status.len.min(len)));
        }
        len = len.min(status.len);
        match next {
            Some(next) => node = next,
            None => return Ok((false, len)),
        }
    }
}

/// Whether a range reads as zeroes without reading it, over the whole chain.
pub(crate) async fn known_zero(top: &Arc<Node>, offset: u64, len: u64) -> IoResult<(bool, u64)> {
    let mut node = top.clone();
    let mut len = len;
    loop {
        if offset >= node.size() {
            return Ok((true, len));
        }
        if let Some(next) = node.filtered() {
            node = next;
            continue;
        }
        let status = node.block_status(offset, len).await?;
        len = len.min(status.len);
        if status.flags.contains(StatusFlags::ZERO)
            && (status.flags.contains(StatusFlags::ALLOCATED) || node.backing().is_none())
        {
            return Ok((true, len));
        }
        if status.flags.contains(StatusFlags::ALLOCATED) {
            return Ok((false, len));
        }
        match node.backing() {
            Some(next) => node = next,
            None => return Ok((true, len)),
        }
    }
}

/// Which side of a copy failed.
pub(super) enum Failed {
    Source(std::io::Error),
    Target(std::io::Error),
}

/// How pieces are copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// Zeroes may be holes in the target.
    pub unmap: bool,
    pub compress: bool,
}

/// Copies a range; zeroes are written as such.
pub(super) async fn copy(
    from: &Arc<Node>,
    to: &Arc<Node>,
    offset: u64,
    len: u64,
    how: How,
) -> Result<(), Failed> {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let (zero, run) = known_zero(from, at, end - at).await.map_err(Failed::Source)?;
        // Compressed clusters are written as a whole.
        let zero = zero && (!how.compress || run == end - at);
        let run = if how.compress { end - at } else { run };
        if zero {
            let flags = if how.unmap { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
            to.write_zeroes(at, run, flags).await.map_err(Failed::Target)?;
        } else {
            let mut data = crate::buffers::take(run as usize);
            from.read(at, &mut data).await.map_err(Failed::Source)?;
            let mut flags = WriteFlags::empty();
            flags.set(WriteFlags::COMPRESSED, how.compress);
            to.write(at, &data, flags).await.map_err(Failed::Target)?;
        }
        at += run;
    }
    Ok(())
}
