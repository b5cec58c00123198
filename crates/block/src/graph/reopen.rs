//! Other settings for open nodes: `blockdev-reopen`, read-only to read-write and back.

use super::{Graph, Node, Settings, open::take_settings, perm};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Result, bail, fail};
use serde_json::Value;
use std::sync::Arc;

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
                for child in &below {
                    self.set_read_only(child, false).await?;
                }
            }
            self.apply(node, settings, &mut Options::new()).await?;
            if on {
                for child in &below {
                    // Another user may need it writable.
                    let _ = self.set_read_only(child, true).await;
                }
            }
            Ok(())
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

    /// `blockdev-reopen`: `options` as for opening; what is not given gets its default.
    pub async fn reopen(&self, mut options: Options) -> Result<()> {
        let name = options.take_str("node-name")?.ok_or_else(|| fail!("node-name not specified"))?;
        let node = self.find(&name).ok_or_else(|| fail!("Failed to find node with node-name='{name}'"))?;
        if let Some(driver) = options.take_str("driver")?
            && driver != node.driver().name
        {
            bail!("Cannot change the option 'driver'");
        }
        let settings =
            take_settings(&mut options, Settings { aio: node.settings().aio, ..Settings::default() })?;
        let held = self.drain(&node).await;
        let backing = options.take("backing");
        for child in node.children().iter().filter(|child| !child.role().contains(Role::BACKING)) {
            match options.take(child.name()) {
                None => {}
                Some(Value::String(name)) if name == child.node().name() => {}
                Some(Value::String(name)) => {
                    let to = self
                        .find(&name)
                        .ok_or_else(|| fail!("Cannot find device='' nor node-name='{name}'"))?;
                    self.redirect(child, &to)?;
                }
                Some(_) => bail!("Cannot change the option '{}'", child.name()),
            }
        }
        if let Some(filename) = options.take_str("filename")?
            && node.layer().filename().is_some_and(|now| now != filename)
        {
            bail!("Cannot change the option 'filename'");
        }
        self.apply(&node, settings, &mut options).await?;
        if let Some(key) = options.0.keys().next() {
            bail!("Cannot change the option '{key}'");
        }
        match backing {
            None => {}
            Some(Value::Null) => self.set_backing(&node, None)?,
            Some(Value::String(name)) => {
                let to =
                    self.find(&name).ok_or_else(|| fail!("Cannot find device='' nor node-name='{name}'"))?;
                if super::surgery::below(&to, &node) {
                    bail!("Making '{name}' a backing child of '{}' would create a cycle", node.name());
                }
                self.set_backing(&node, Some(&to))?;
            }
            Some(_) => bail!("Cannot change the option 'backing'"),
        }
        drop(held);
        self.collect().await;
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

    /// `block_resize`: another size for a node; its users learn of it.
    pub async fn resize(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        node.check_busy()?;
        if !self.is_topmost(node) {
            bail!("The feature 'resize' is not enabled");
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
