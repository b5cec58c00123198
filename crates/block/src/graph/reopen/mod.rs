//! Other settings for open nodes: `blockdev-reopen`, read-only to read-write and back.

mod plan;

use super::{Child, Graph, Node, Pin, Settings, perm};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Result, bail};
use plan::Plan;
use std::sync::Arc;

/// What was changed, and how it was.
enum Step {
    /// The nodes whose files these are, and where they led.
    Files(Vec<Arc<Node>>, Vec<(Child, Arc<Node>)>, Vec<Pin>),
    Backing(Arc<Node>, Option<Arc<Node>>, Option<Pin>),
    /// Its settings, those that were said, and what brings its layer back.
    Settings(Arc<Node>, Settings, Options, Options),
}

impl Graph {
    /// Makes a node and the files under it writable, or read-only again.
    pub async fn set_read_only(&self, node: &Arc<Node>, on: bool) -> Result<()> {
        self.make_read_only(node, on).await?;
        let mut explicit = node.explicit();
        explicit.set("read-only", on);
        node.set_explicit(explicit);
        Ok(())
    }

    fn make_read_only<'a>(&'a self, node: &'a Arc<Node>, on: bool) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if node.is_read_only() == on {
                return Ok(());
            }
            let settings = Settings { read_only: on, ..node.settings() };
            let mut below: Vec<Arc<Node>> = node
                .children()
                .iter()
                .filter(|child| child.role().intersects(Role::PRIMARY | Role::DATA | Role::METADATA))
                .map(|child| child.node())
                .collect();
            if on {
                // A node that the user has made by itself stays as it was asked for.
                below.retain(|child| child.is_inherited() || child.settings().auto_read_only);
            } else {
                // What the user has made read-only stays it, and refuses the permission to write.
                below.retain(|child| child.is_read_only() && !child.is_said_read_only());
                for child in &below {
                    self.make_read_only(child, false).await?;
                }
            }
            let applied = self.apply(node, settings, &mut node.layer().reopened_by()).await;
            if on || applied.is_err() {
                for child in &below {
                    // Another user may need it writable.
                    let _ = self.make_read_only(child, true).await;
                }
            }
            applied
        })
    }

    async fn apply(&self, node: &Arc<Node>, settings: Settings, options: &mut Options) -> Result<()> {
        let old = node.settings();
        if old.read_only && !settings.read_only {
            // The permission to write comes before the layer writes.
            node.set_settings(settings);
            if let Err(why) = self.refresh_perm(node) {
                node.set_settings(old);
                return Err(why);
            }
            if let Err(why) = node.layer().reopen(&settings, options).await {
                node.set_settings(old);
                let _ = self.refresh_perm(node);
                return Err(why);
            }
            return Ok(());
        }
        if settings.read_only && perm::cumulative(node).0.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) {
            bail!("Read-only block node '{}' cannot support read-write users", node.name());
        }
        node.layer().reopen(&settings, options).await?;
        node.set_settings(settings);
        self.refresh_perm(node)
    }

    /// `blockdev-reopen`: options of each node as for opening; what is not given gets its
    /// default. All or none are changed.
    pub async fn reopen(&self, list: Vec<Options>) -> Result<()> {
        let mut plans = Vec::new();
        for options in list {
            self.plan_reopen(options, &mut plans)?;
        }
        for plan in &plans {
            self.check_threads(plan)?;
        }
        let mut held = Vec::new();
        for plan in &plans {
            held.extend(self.drain(&plan.node).await);
        }
        let access = self.access_below(&plans);
        let mut done = Vec::new();
        let result = self.perform_all(plans, &mut done).await;
        for step in done.into_iter().rev().filter(|_| result.is_err()) {
            self.undo_reopen(step).await;
        }
        if result.is_err() {
            self.restore_access(&access).await;
        }
        drop(access);
        // What was kept for going back is closed.
        drop(held);
        self.collect().await;
        result
    }

    /// Whether each node that these plans reach is read-only.
    fn access_below(&self, plans: &[Plan]) -> Vec<(Arc<Node>, bool)> {
        let mut tops = Vec::new();
        for plan in plans {
            tops.push(&plan.node);
            tops.extend(plan.file.iter().map(|(_, to)| to));
            tops.extend(plan.backing.iter().flatten());
        }
        let mut nodes = self.nodes();
        nodes.retain(|node| tops.iter().any(|top| super::surgery::below(top, node)));
        nodes.into_iter().map(|node| (node.clone(), node.is_read_only())).collect()
    }

    /// Files that followed what is undone go back too.
    async fn restore_access(&self, access: &[(Arc<Node>, bool)]) {
        // One may have to wait for another.
        for _ in access {
            let mut changed = false;
            for (node, was) in access.iter().filter(|(node, was)| node.is_read_only() != *was) {
                changed |= self.make_read_only(node, *was).await.is_ok();
            }
            if !changed {
                return;
            }
        }
    }

    /// Nodes become writable from below, and read-only from above.
    async fn perform_all(&self, mut plans: Vec<Plan>, done: &mut Vec<Step>) -> Result<()> {
        let mut moved = Vec::new();
        let mut moves = Vec::new();
        for plan in &mut plans {
            if let Some(to) = plan.file.take() {
                moved.push(plan.node.clone());
                moves.push(to);
            }
        }
        let (down, mut up): (Vec<_>, Vec<_>) =
            plans.into_iter().partition(|plan| plan.settings.read_only && !plan.node.is_read_only());
        up.reverse();
        let joins = |plan: &Plan| moves.iter().any(|(_, to)| super::surgery::below(to, &plan.node));
        let (early, late): (Vec<_>, Vec<_>) = up.into_iter().partition(joins);
        for plan in early {
            self.perform_reopen(plan, done).await?;
        }
        let back = moves.iter().map(|(child, _)| (child.clone(), child.node())).collect::<Vec<_>>();
        let pins = back.iter().map(|(_, node)| node.pin()).collect();
        for (at, node) in moved.iter().enumerate() {
            if let Err(why) = node.layer().leave_file().await {
                for left in &moved[..at] {
                    let _ = left.layer().file_moved().await;
                }
                return Err(why);
            }
        }
        done.push(Step::Files(moved.clone(), back, pins));
        self.redirect_each(&moves)?;
        for node in &moved {
            node.layer().file_moved().await?;
        }
        for plan in late.into_iter().chain(down) {
            self.perform_reopen(plan, done).await?;
        }
        Ok(())
    }

    /// Writes another backing file name, as `name` is, into the header of `node`; what is open
    /// stays as it is. A read-only image is made writable for that long.
    pub async fn change_backing_file(&self, node: &Arc<Node>, name: &str) -> Result<()> {
        let Some(below) = node.backing() else {
            bail!("not allowing backing file change on an image without a backing file")
        };
        let was_read_only = node.is_read_only();
        if was_read_only {
            self.set_read_only(node, false).await?;
        }
        let format = below.skip_filters().driver().name;
        let changed = node.layer().change_backing(Some(name), Some(format)).await;
        if was_read_only {
            self.set_read_only(node, true).await?;
        }
        changed.map_err(|why| Failure::os(format!("Could not change backing file to '{name}'"), &why))?;
        node.forget_found();
        Ok(())
    }

    /// Whether `node` is what its users see, filters aside.
    fn is_topmost(&self, node: &Arc<Node>) -> bool {
        node.parents().iter().all(|edge| match edge.parent() {
            super::Parent::Node(name) => self
                .find(name)
                .is_none_or(|above| above.driver().kind == crate::Kind::Filter && self.is_topmost(&above)),
            _ => true,
        })
    }

    /// Changes one node; what was changed is noted in `done`, also when a later part fails.
    async fn perform_reopen(&self, mut plan: Plan, done: &mut Vec<Step>) -> Result<()> {
        let node = plan.node;
        let (old, said, by) = (node.settings(), node.explicit(), node.layer().reopened_by());
        self.follow(&node, plan.settings.read_only, false).await;
        self.apply(&node, plan.settings, &mut plan.options).await?;
        node.set_explicit(plan.explicit);
        done.push(Step::Settings(node.clone(), old, said, by));
        if let Some(key) = plan.options.0.keys().next() {
            bail!("Cannot change the option '{key}'");
        }
        self.follow(&node, plan.settings.read_only, true).await;
        if let Some(to) = plan.backing {
            let was = node.backing();
            let same = match (&was, &to) {
                (Some(was), Some(to)) => Arc::ptr_eq(was, to),
                (was, to) => was.is_none() && to.is_none(),
            };
            if !same {
                let pin = was.as_ref().map(|node| node.pin());
                self.set_backing(&node, to.as_ref())?;
                done.push(Step::Backing(node, was, pin));
            }
        }
        Ok(())
    }

    /// Files below that follow (`auto-read-only`, or opened with the node) become writable
    /// before a node does, and read-only after it.
    async fn follow(&self, node: &Arc<Node>, read_only: bool, after: bool) {
        if read_only != after {
            return;
        }
        for child in node.children() {
            let below = child.node();
            let file = child.role().intersects(Role::PRIMARY | Role::DATA | Role::METADATA);
            if file && (below.settings().auto_read_only || below.is_inherited()) {
                // Where it cannot, the node's own change says so.
                let _ = self.make_read_only(&below, read_only).await;
            }
        }
    }

    /// Going back to what was allowed before is allowed.
    async fn undo_reopen(&self, step: Step) {
        match step {
            Step::Files(nodes, moves, _pins) => {
                let _ = self.redirect_each(&moves);
                for node in nodes {
                    // It was read from there before.
                    let _ = node.layer().file_moved().await;
                }
            }
            Step::Backing(node, was, _pin) => drop(self.set_backing(&node, was.as_ref())),
            Step::Settings(node, old, said, mut by) => {
                node.set_explicit(said);
                self.follow(&node, old.read_only, false).await;
                let _ = self.apply(&node, old, &mut by).await;
                self.follow(&node, old.read_only, true).await;
            }
        }
    }

    /// `block_resize`: another size for a node; its users learn of it.
    pub async fn resize(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        if !self.is_topmost(node) {
            bail!("The feature 'resize' is not enabled");
        }
        if size > LARGEST {
            bail!("offset({size}) exceeds maximum({LARGEST})");
        }
        let held = self.drain(node).await;
        let result = node
            .truncate(size, Truncate { exact: false, preallocation: Preallocation::Off, zero: true })
            .await;
        let users = self.users_of(node);
        drop(held);
        result?;
        for user in users {
            if let Some(front) = user.front_end() {
                front.resized();
            }
        }
        Ok(())
    }
}
