//! Limits lifted for a while, so that what is in flight can be waited for.

use super::{Graph, Node, Parent};
use crate::backend::Backend;
use std::sync::Arc;

/// While this lives, what waits in throttle nodes goes on at once.
pub struct Haste {
    nodes: Vec<Arc<Node>>,
    backend: Option<Backend>,
}

impl Haste {
    /// In `tops` and all nodes below them.
    pub fn below(tops: impl IntoIterator<Item = Arc<Node>>) -> Self {
        let nodes = Node::subtree(tops);
        nodes.iter().for_each(|node| node.layer().hasten(true));
        Haste { nodes, backend: None }
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
        if let Some(backend) = &self.backend {
            backend.hasten(false);
        }
    }
}

impl Graph {
    /// For the nodes that a job uses.
    pub(crate) fn hasten_job(&self, job: &str) -> Haste {
        let uses = |node: &Arc<Node>| {
            let by = |parent: &Parent| matches!(parent, Parent::Job { id, .. } if id == job);
            node.parents().iter().any(|edge| by(edge.parent()))
        };
        Haste::below(self.nodes().into_iter().filter(uses))
    }
}
