//! Permissions: what every user of a node does and lets others do, checked before an edge
//! is made or changed.

use super::{Child, Node};
use crate::types::{Perm, Role};
use base::{Result, bail};
use std::collections::HashMap;
use std::sync::Arc;

/// The permissions on a child in `role` for a node whose own users have `perm`, `shared`.
pub fn default_for(role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
    if role.contains(Role::BACKING) {
        let others = if shared.contains(Perm::WRITE) { Perm::WRITE | Perm::RESIZE } else { Perm::empty() };
        return (perm & Perm::CONSISTENT_READ, others | Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED);
    }
    let (mut perm, mut shared) = (perm, shared);
    if role.contains(Role::FILTERED) {
        return (perm, shared);
    }
    if role.contains(Role::METADATA) {
        perm |= Perm::CONSISTENT_READ;
        if !read_only {
            perm |= Perm::WRITE | Perm::RESIZE;
        }
        shared -= Perm::WRITE | Perm::RESIZE;
    }
    if role.contains(Role::DATA) {
        shared -= Perm::WRITE | Perm::RESIZE;
        if perm.contains(Perm::WRITE_UNCHANGED) {
            perm |= Perm::WRITE;
        }
        if perm.contains(Perm::WRITE) {
            perm |= Perm::RESIZE;
        }
    }
    (perm, shared)
}

/// New permissions of edges, checked as a whole before any is set.
#[derive(Default)]
pub(super) struct Plan {
    /// By the address of the edge.
    edges: HashMap<usize, (Perm, Perm)>,
    nodes: Vec<(Arc<Node>, Perm, Perm)>,
    /// Edges that lead elsewhere in the plan: `None` is detached.
    targets: HashMap<usize, Option<Arc<Node>>>,
    /// Edges that join a node in the plan.
    joining: Vec<Child>,
}

fn key(child: &Child) -> usize {
    Arc::as_ptr(&child.0) as usize
}

impl Plan {
    pub fn set(&mut self, child: &Child, perm: Perm, shared: Perm) {
        self.edges.insert(key(child), (perm, shared));
    }

    pub fn lead(&mut self, child: &Child, node: Option<&Arc<Node>>) {
        self.targets.insert(key(child), node.cloned());
        if node.is_some() {
            self.joining.push(child.clone());
        }
    }

    fn perm_of(&self, child: &Child) -> (Perm, Perm) {
        self.edges.get(&key(child)).copied().unwrap_or_else(|| child.perm())
    }

    fn target_of(&self, child: &Child) -> Option<Arc<Node>> {
        match self.targets.get(&key(child)) {
            Some(target) => target.clone(),
            None => Some(child.node()),
        }
    }

    fn parents_of(&self, node: &Arc<Node>) -> Vec<Child> {
        let mut parents = node.parents();
        for child in &self.joining {
            if !parents.iter().any(|one| one.same(child)) {
                parents.push(child.clone());
            }
        }
        parents.retain(|child| self.target_of(child).is_some_and(|target| Arc::ptr_eq(&target, node)));
        parents
    }

    /// Works out the permissions below `starts` and refuses conflicts.
    pub fn check(&mut self, starts: &[Arc<Node>]) -> Result<()> {
        for node in topological(starts, self) {
            self.check_node(&node)?;
        }
        Ok(())
    }

    fn check_node(&mut self, node: &Arc<Node>) -> Result<()> {
        let parents = self.parents_of(node);
        let mut perm = Perm::empty();
        let mut shared = Perm::all();
        // The newest is the first that is named as one that does not share.
        for other in parents.iter().rev() {
            let (_, lets) = self.perm_of(other);
            for one in parents.iter().rev() {
                let (used, _) = self.perm_of(one);
                let denied = used - lets;
                if !one.same(other) && !denied.is_empty() {
                    bail!(
                        "Permission conflict on node '{0}': permissions '{1}' are both required by {2} (uses node \
                         '{0}' as '{3}' child) and unshared by {4} (uses node '{0}' as '{5}' child).",
                        node.name(),
                        denied.names(),
                        one.user(),
                        one.name(),
                        other.user(),
                        other.name()
                    );
                }
            }
            perm |= self.perm_of(other).0;
            shared &= lets;
        }
        let read_only = node.is_read_only();
        if read_only && perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) {
            bail!("Block node is read-only");
        }
        for child in node.children() {
            let (used, mut lets) = node.layer().child_perm(child.role(), read_only, perm, shared);
            let below = self.target_of(&child);
            if below.is_some_and(|below| below.settings().force_share) {
                lets = Perm::all();
            }
            self.set(&child, used, lets);
        }
        self.nodes.push((node.clone(), perm, shared));
        Ok(())
    }

    /// Takes locks, then makes the plan true. Leaves all as it was on failure.
    pub fn commit(self) -> Result<()> {
        for (at, (node, perm, shared)) in self.nodes.iter().enumerate() {
            if let Err(why) = node.layer().set_perm(*perm, *shared) {
                for (node, ..) in &self.nodes[..at] {
                    let (perm, shared) = cumulative(node);
                    // Going back to what was held before takes nothing new.
                    let _ = node.layer().set_perm(perm, shared);
                }
                return Err(why);
            }
        }
        for (node, ..) in &self.nodes {
            for child in node.children() {
                if let Some(perm) = self.edges.get(&key(&child)) {
                    *child.0.perm.lock() = *perm;
                }
            }
            for parent in self.parents_of(node) {
                if let Some(perm) = self.edges.get(&key(&parent)) {
                    *parent.0.perm.lock() = *perm;
                }
            }
        }
        Ok(())
    }
}

/// What all users of a node do and share now.
pub(super) fn cumulative(node: &Node) -> (Perm, Perm) {
    node.parents()
        .iter()
        .map(Child::perm)
        .fold((Perm::empty(), Perm::all()), |(perm, shared), one| (perm | one.0, shared & one.1))
}

/// `starts` and all below, parents before children.
fn topological(starts: &[Arc<Node>], plan: &Plan) -> Vec<Arc<Node>> {
    fn visit(node: &Arc<Node>, plan: &Plan, seen: &mut Vec<usize>, out: &mut Vec<Arc<Node>>) {
        let id = Arc::as_ptr(node) as usize;
        if seen.contains(&id) {
            return;
        }
        seen.push(id);
        for child in node.children() {
            if let Some(below) = plan.target_of(&child) {
                visit(&below, plan, seen, out);
            }
        }
        out.push(node.clone());
    }
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    for node in starts {
        visit(node, plan, &mut seen, &mut out);
    }
    out.reverse();
    out
}
