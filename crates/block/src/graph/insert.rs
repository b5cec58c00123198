//! Filters put over a node that is in use, and taken out again.

use super::{Graph, Node, Pin, Settings};
use crate::driver::{Context, Driver, Open};
use crate::options::Options;
use crate::types::Role;
use base::Result;
use std::sync::Arc;

impl Graph {
    /// Puts a filter over `node`: all that use the node now use the filter. `driver` takes one
    /// child, `file`. Without a name it gets one, and is implicit. Users that are `spared` or
    /// stand below it keep the node. No request may be in flight.
    pub(crate) async fn put_filter(
        &self,
        driver: &'static Driver,
        name: Option<&str>,
        node: &Arc<Node>,
        spared: Option<&Arc<Node>>,
    ) -> Result<Pin> {
        let _claim = name.map(|name| self.claim_name(name)).transpose()?;
        let node_name = name.map_or_else(|| self.auto_name(), str::to_string);
        let mut options = Options::new();
        options.set("file", node.name());
        let users = node.parents_outside(spared);
        let mut open = Open {
            graph: self.arc(),
            driver,
            context: Context {
                node_name,
                notices: self.notices.clone(),
                graph: self.this.clone(),
                bitmaps: Arc::default(),
            },
            options,
            settings: Settings { auto_read_only: true, ..node.settings().for_child(Role::FILTER) },
            children: Vec::new(),
            pins: Vec::new(),
        };
        let filter = match self.finish_open(&mut open, false, Default::default()).await {
            Ok(filter) => filter,
            Err(why) => {
                open.children.drain(..).for_each(|child| self.detach(&child));
                return Err(why);
            }
        };
        filter.set_implicit(name.is_none());
        if let Err(why) = self.redirect_all(&users, &filter) {
            drop(filter);
            self.collect().await;
            return Err(why);
        }
        Ok(filter)
    }

    /// Gives the users of a filter to the node it shows. It is closed with its last pin. No
    /// request may be in flight.
    pub(crate) fn take_filter(&self, filter: &Arc<Node>) -> Result<()> {
        let Some(below) = filter.filtered() else { return Ok(()) };
        self.redirect_all(&filter.parents(), &below)
    }
}
