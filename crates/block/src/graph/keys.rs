//! Images whose password comes after opening.

use super::{Graph, Node};
use crate::backend::Backend;
use base::{Class, Failure, Result, bail};
use std::sync::Arc;

impl Node {
    /// Itself and what is below it, where a password may come late.
    fn locked(self: &Arc<Self>) -> Vec<Arc<Node>> {
        let mut found = Node::subtree([self.clone()]);
        found.retain(|node| node.layer().late_key().is_some());
        found
    }

    /// Whether a password is still to come for it or what it stands on; `None` where none can.
    pub fn key_missing(self: &Arc<Self>) -> Option<bool> {
        (!self.locked().is_empty()).then(|| self.lacks_key().is_some())
    }

    /// The first image of its chain that has no key yet.
    pub fn lacks_key(self: &Arc<Self>) -> Option<Arc<Node>> {
        self.locked().into_iter().find(|node| node.layer().late_key().is_some_and(|key| key.is_missing()))
    }
}

fn refuse(shown: &str, locked: &Node) -> Failure {
    Failure::of(Class::DeviceEncrypted, format!("'{shown}' ({}) is encrypted", locked.filename()))
}

impl Backend {
    /// Refuses a medium without its key, by class DeviceEncrypted.
    pub fn check_key(&self) -> Result<()> {
        match self.node().and_then(|node| node.lacks_key()) {
            None => Ok(()),
            Some(locked) => Err(refuse(self.name(), &locked)),
        }
    }
}

impl Graph {
    /// Refuses if any drive lacks a key.
    pub fn check_keys(&self) -> Result<()> {
        self.backends().iter().try_for_each(Backend::check_key)
    }

    /// `block_passwd`: the password of an image, and of those it stands on. Nothing tells whether
    /// it is right. Drives whose medium can be used from now on tell the guest of it.
    pub fn set_password(&self, node: &Arc<Node>, password: &str) -> Result<()> {
        let locked = node.locked();
        if locked.is_empty() {
            bail!("Node '{}' is not encrypted", node.shown_name());
        }
        let users = self.users_of(node);
        let waiting: Vec<&Backend> = users.iter().filter(|user| user.check_key().is_err()).collect();
        for key in locked.iter().filter_map(|node| node.layer().late_key()) {
            key.set(password.as_bytes())?;
        }
        waiting.iter().filter(|user| user.check_key().is_ok()).for_each(|user| user.medium_came());
        Ok(())
    }
}
