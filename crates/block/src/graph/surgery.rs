//! Changing the graph while it is in use: drained sections, swapping nodes under edges.

use super::{Child, Graph, Node, perm};
use crate::backend::{Backend, Drained};
use base::{Result, bail};
use std::sync::Arc;

impl Graph {
    /// The back ends from which `node` can be reached.
    pub fn users_of(&self, node: &Arc<Node>) -> Vec<Backend> {
        self.backends().into_iter().filter(|backend| backend.stands_on(node)).collect()
    }

    /// Stops new requests of every user of `node` and waits for those in flight. They go
    /// on when the returned guard is dropped.
    pub async fn drain(&self, node: &Arc<Node>) -> Vec<Drained> {
        let mut held = Vec::new();
        for backend in self.users_of(node) {
            held.push(backend.quiesce().await);
        }
        held
    }

    /// Opens the backing file that a node's header names and puts it in, if it has none.
    pub async fn open_backing(&self, node: &Arc<Node>) -> Result<()> {
        let info = node.layer().info();
        let Some(name) = info.backing_filename.filter(|_| node.backing().is_none()) else { return Ok(()) };
        let mut options = crate::options::Options::new();
        options.set("filename", super::filename::combine(&node.place(), &name)?);
        if let Some(format) = info.backing_format {
            options.set("driver", format);
        }
        let settings = node.settings().for_child(crate::types::Role::BACKING);
        let pin =
            self.open(options, settings).await.map_err(|why| why.within("Could not open backing file"))?;
        self.set_backing(node, Some(&pin))
    }

    /// `x-blockdev-change`: gives `parent` one more child.
    pub async fn add_child(&self, parent: &Arc<Node>, node: &Arc<Node>) -> Result<()> {
        let Some(siblings) = parent.layer().siblings() else {
            bail!("The node {} does not support adding a child", parent.shown_name())
        };
        if !node.parents().is_empty() {
            bail!("The node {} already has a parent", node.shown_name());
        }
        let (name, role) = (siblings.next(node.size())?, crate::types::Role::DATA);
        check_cycle(node, &name, parent)?;
        let child = Child::new(&name, role, super::Parent::Node(parent.name().into()), node);
        let held = self.drain(parent).await;
        let (perm, shared) = perm::cumulative(parent);
        let (perm, shared) = parent.layer().child_perm(role, parent.is_read_only(), perm, shared);
        self.attach(&child, perm, shared)?;
        parent.children.lock().push(child.clone());
        siblings.put(child);
        drop(held);
        Ok(())
    }

    /// `x-blockdev-change`: takes the child called `name` from `parent`.
    pub async fn remove_child(&self, parent: &Arc<Node>, name: &str) -> Result<()> {
        let shown = parent.shown_name();
        let Some(child) = parent.child_named(name) else {
            bail!("Node '{shown}' does not have child '{name}'")
        };
        let Some(siblings) = parent.layer().siblings() else {
            bail!("The node {shown} does not support removing a child")
        };
        let held = self.drain(parent).await;
        siblings.take(&child)?;
        parent.children.lock().retain(|one| !one.same(&child));
        self.detach(&child);
        drop(held);
        self.collect().await;
        Ok(())
    }

    /// Lets an edge lead to another node. No request may be in flight.
    pub fn redirect(&self, child: &Child, to: &Arc<Node>) -> Result<()> {
        self.redirect_all(std::slice::from_ref(child), to)
    }

    /// Lets several edges lead to `to`, all or none.
    pub fn redirect_all(&self, edges: &[Child], to: &Arc<Node>) -> Result<()> {
        for child in edges {
            if let super::Parent::Node(name) = child.parent()
                && let Some(parent) = self.find(name)
            {
                check_cycle(to, child.name(), &parent)?;
            }
        }
        let moves: Vec<_> = edges.iter().map(|child| (child.clone(), to.clone())).collect();
        self.redirect_each(&moves)
    }

    /// Lets several edges lead elsewhere, all or none.
    pub(super) fn redirect_each(&self, moves: &[(Child, Arc<Node>)]) -> Result<()> {
        let _topology = self.topology.lock();
        let mut plan = perm::Plan::default();
        let mut starts = Vec::new();
        for (child, to) in moves {
            plan.lead(child, Some(to));
            starts.extend([to.clone(), child.node()]);
        }
        plan.check(&starts)?;
        plan.commit()?;
        for (child, to) in moves {
            let old = child.node();
            old.parents.lock().retain(|edge| !std::ptr::eq(edge.as_ptr(), Arc::as_ptr(&child.0)));
            to.parents.lock().push(Arc::downgrade(&child.0));
            child.0.lead_to(to);
        }
        Ok(())
    }

    /// Gives `node` another backing node, or none. No request may be in flight.
    pub fn set_backing(&self, node: &Arc<Node>, backing: Option<&Arc<Node>>) -> Result<()> {
        match (node.child(crate::types::Role::BACKING), backing) {
            (Some(child), Some(to)) => self.redirect(&child, to),
            (None, Some(to)) => {
                let role = crate::types::Role::BACKING;
                let child = Child::new("backing", role, super::Parent::Node(node.name().into()), to);
                let (perm, shared) = {
                    let (perm, shared) = perm::cumulative(node);
                    node.layer().child_perm(role, node.is_read_only(), perm, shared)
                };
                node.layer().set_backing(Some(child.clone()))?;
                if let Err(why) = self.attach(&child, perm, shared) {
                    node.layer().set_backing(None)?;
                    return Err(why);
                }
                node.children.lock().push(child);
                Ok(())
            }
            (Some(child), None) => {
                node.layer().set_backing(None)?;
                node.children.lock().retain(|one| !one.same(&child));
                self.detach(&child);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }
}

/// Refuses to make `node` a child of a node that it stands on.
pub(crate) fn check_cycle(node: &Arc<Node>, role: &str, parent: &Arc<Node>) -> Result<()> {
    if below(node, parent) {
        bail!("Making '{}' a {role} child of '{}' would create a cycle", node.name(), parent.name());
    }
    Ok(())
}

/// Whether `node` is `root` or below it.
pub(crate) fn below(root: &Arc<Node>, node: &Arc<Node>) -> bool {
    Arc::ptr_eq(root, node) || root.children().iter().any(|child| below(&child.node(), node))
}
