//! Other settings for open nodes: `blockdev-reopen`, read-only to read-write and back.

use super::{Child, Graph, Node, Pin, Settings, open::take_settings, perm};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Result, bail, fail};
use serde_json::Value;
use std::sync::Arc;

/// What is to become of a node.
struct Plan {
    node: Arc<Node>,
    settings: Settings,
    /// What is left for the layer.
    options: Options,
    children: Vec<(Child, Arc<Node>)>,
    backing: Option<Option<Arc<Node>>>,
}

/// What was changed, and how it was.
enum Step {
    Child(Child, Arc<Node>, Pin),
    Backing(Arc<Node>, Option<Arc<Node>>, Option<Pin>),
    Settings(Arc<Node>, Settings, Options),
}

/// Largest size of a node in bytes.
const LARGEST: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// Refuses to let a node stand on another while a job needs what it stands on.
fn check_link(node: &Node) -> Result<()> {
    let Some(link) = node.child(Role::BACKING) else { return Ok(()) };
    let (name, below) = (node.name(), link.node());
    if below.is_implicit() {
        bail!("Cannot replace implicit backing child of {name}");
    }
    if link.is_frozen() {
        bail!("Cannot change frozen 'backing' link from '{name}' to '{}'", below.name());
    }
    Ok(())
}

impl Graph {
    /// Makes a node and the files under it writable, or read-only again.
    pub fn set_read_only<'a>(&'a self, node: &'a Arc<Node>, on: bool) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if node.is_read_only() == on {
                return Ok(());
            }
            let settings = Settings { read_only: on, ..node.settings() };
            let below: Vec<Arc<Node>> = node
                .children()
                .iter()
                .filter(|child| child.role().intersects(Role::PRIMARY | Role::DATA | Role::METADATA))
                .map(|child| child.node())
                .collect();
            if !on {
                // What the user has made read-only stays it, and refuses the permission to write.
                for child in below.iter().filter(|child| !child.settings().own_read_only) {
                    self.set_read_only(child, false).await?;
                }
            }
            let applied = self.apply(node, settings, &mut Options::new()).await;
            if on || applied.is_err() {
                for child in &below {
                    // Another user may need it writable.
                    let _ = self.set_read_only(child, true).await;
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
            if let Err(why) = self.settle_again(node) {
                node.set_settings(old);
                return Err(why);
            }
            if let Err(why) = node.layer().reopen(&settings, options).await {
                node.set_settings(old);
                let _ = self.settle_again(node);
                return Err(why);
            }
            return Ok(());
        }
        if settings.read_only && perm::cumulative(node).0.intersects(Perm::WRITE) {
            bail!("Block node is read-only");
        }
        node.layer().reopen(&settings, options).await?;
        node.set_settings(settings);
        self.settle_again(node)
    }

    fn settle_again(&self, node: &Arc<Node>) -> Result<()> {
        let _topology = self.topology.lock();
        let mut plan = perm::Plan::default();
        plan.check(std::slice::from_ref(node))?;
        plan.commit()
    }

    /// `blockdev-reopen`: options of each node as for opening; what is not given gets its
    /// default. All or none are changed.
    pub async fn reopen(&self, list: Vec<Options>) -> Result<()> {
        let mut plans = Vec::new();
        for options in list {
            self.plan_reopen(options, None, &mut plans)?;
        }
        let mut held = Vec::new();
        for plan in &plans {
            held.extend(self.drain(&plan.node).await);
        }
        let mut done = Vec::new();
        let mut result = Ok(());
        for plan in plans {
            result = self.perform_reopen(plan, &mut done).await;
            if result.is_err() {
                break;
            }
        }
        if result.is_err() {
            for step in done.into_iter().rev() {
                self.undo_reopen(step).await;
            }
        }
        drop(held);
        self.collect().await;
        result
    }

    /// Looks at one node's options without changing anything. `at` is the node where its place in
    /// its parent's options says which.
    fn plan_reopen(&self, mut options: Options, at: Option<Arc<Node>>, plans: &mut Vec<Plan>) -> Result<()> {
        let name = options.take_str("node-name")?;
        let node = match (at, name) {
            (Some(node), None) => node,
            (Some(node), Some(name)) if node.name() == name => node,
            (Some(_), Some(_)) => bail!("Cannot change the option 'node-name'"),
            (None, None) => bail!("node-name not specified"),
            (None, Some(name)) => {
                self.find(&name).ok_or_else(|| fail!("Failed to find node with node-name='{name}'"))?
            }
        };
        if let Some(driver) = options.take_str("driver")?
            && driver != node.driver().name
        {
            bail!("Cannot change the option 'driver'");
        }
        let defaults = Settings { aio: node.settings().aio, ..Settings::default() };
        let settings = take_settings(&mut options, defaults)?;
        let backing = self.plan_backing(&node, &mut options)?;
        let mut children = Vec::new();
        for child in node.children().into_iter().filter(|child| !child.role().contains(Role::BACKING)) {
            match options.take(child.name()) {
                None => {}
                Some(Value::String(name)) => {
                    let to = self.named(&name)?;
                    self.check_cycle(&node, &to, child.name())?;
                    if !Arc::ptr_eq(&to, &child.node()) {
                        children.push((child, to));
                    }
                }
                Some(Value::Object(table)) => self.plan_reopen(Options(table), Some(child.node()), plans)?,
                Some(_) => bail!("Cannot change the option '{}'", child.name()),
            }
        }
        if let Some(filename) = options.take_str("filename")?
            && node.layer().filename().is_some_and(|now| now != filename)
        {
            bail!("Cannot change the option 'filename'");
        }
        plans.push(Plan { node, settings, options, children, backing });
        Ok(())
    }

    fn plan_backing(&self, node: &Arc<Node>, options: &mut Options) -> Result<Option<Option<Arc<Node>>>> {
        let given = options.take("backing");
        if !node.driver().backing {
            return match given {
                None => Ok(None),
                Some(_) => bail!("Cannot change the option 'backing'"),
            };
        }
        match given {
            None if node.backing().is_some() || node.layer().header_backing().is_some() => {
                bail!("backing is missing for '{}'", node.name())
            }
            None => Ok(None),
            Some(Value::Null) => {
                check_link(node)?;
                Ok(Some(None))
            }
            Some(Value::String(name)) => {
                let to = self.named(&name)?;
                self.check_cycle(node, &to, "backing")?;
                if node.backing().is_some_and(|now| Arc::ptr_eq(&now.skip_implicit(), &to)) {
                    return Ok(None);
                }
                check_link(node)?;
                Ok(Some(Some(to)))
            }
            Some(_) => bail!("Cannot change the option 'backing'"),
        }
    }

    fn named(&self, name: &str) -> Result<Arc<Node>> {
        self.find(name).ok_or_else(|| fail!("Cannot find device='' nor node-name='{name}'"))
    }

    fn check_cycle(&self, node: &Arc<Node>, to: &Arc<Node>, role: &str) -> Result<()> {
        if super::surgery::below(to, node) {
            bail!("Making '{}' a {role} child of '{}' would create a cycle", to.name(), node.name());
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
        changed.map_err(|why| Failure::os(format!("Could not change backing file to '{name}'"), &why))
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
        for (child, to) in plan.children {
            let was = child.node();
            let pin = was.pin();
            self.redirect(&child, &to)?;
            done.push(Step::Child(child, was, pin));
        }
        let (old, by) = (node.settings(), node.layer().reopened_by());
        self.follow(&node, plan.settings.read_only, false).await;
        self.apply(&node, plan.settings, &mut plan.options).await?;
        done.push(Step::Settings(node.clone(), old, by));
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
            if file && (below.settings().auto_read_only || !below.is_kept()) {
                // Where it cannot, the node's own change says so.
                let _ = self.set_read_only(&below, read_only).await;
            }
        }
    }

    /// Going back to what was allowed before is allowed.
    async fn undo_reopen(&self, step: Step) {
        match step {
            Step::Child(child, was, _pin) => drop(self.redirect(&child, &was)),
            Step::Backing(node, was, _pin) => drop(self.set_backing(&node, was.as_ref())),
            Step::Settings(node, old, mut by) => {
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
