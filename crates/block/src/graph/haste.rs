//! Limits lifted for a while, so that what is in flight can be waited for.

use super::{Graph, Node, Parent};
use crate::backend::Backend;
use std::sync::Arc;

/// While this lives, what waits in throttle nodes goes on at once.
pub struct Haste {
    nodes: Vec<Arc<Node>>,
    backend: Option<Backend>,
    /// Where requests do not wait for a lost server.
    given_up: Vec<Arc<Node>>,
}

impl Haste {
    /// In `tops` and all nodes below them.
    pub fn below(tops: impl IntoIterator<Item = Arc<Node>>) -> Self {
        let nodes = Node::subtree(tops);
        nodes.iter().for_each(|node| node.layer().hasten(true));
        Haste { nodes, backend: None, given_up: Vec::new() }
    }

    /// Also the limits of the back end itself.
    pub fn through(backend: &Backend) -> Self {
        let mut haste = Self::below(backend.node());
        backend.hasten(true);
        haste.backend = Some(backend.clone());
        haste
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        self.nodes.iter().for_each(|node| node.layer().hasten(false));
        self.given_up.iter().for_each(|node| node.layer().give_up(false));
        if let Some(backend) = &self.backend {
            backend.hasten(false);
        }
    }
}

impl Graph {
    /// For the nodes that a cancelled job uses; what it has not yet written to its target is not
    /// waited for.
    pub(crate) fn hasten_job(&self, job: &str) -> Haste {
        let by = |parent: &Parent| matches!(parent, Parent::Job { id, .. } if id == job);
        let used = |node: &Arc<Node>| node.parents().iter().any(|edge| by(edge.parent()));
        let target =
            |node: &Arc<Node>| node.parents().iter().any(|edge| by(edge.parent()) && edge.name() == "target");
        let mut haste = Haste::below(self.nodes().into_iter().filter(used));
        haste.given_up = Node::subtree(self.nodes().into_iter().filter(target));
        haste.given_up.iter().for_each(|node| node.layer().give_up(true));
        haste
    }
}
