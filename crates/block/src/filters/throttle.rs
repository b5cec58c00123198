//! `throttle`: the limits of a throttle group on a node.

use super::pass;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::{Child, Graph, Settings};
use crate::options::Options;
use crate::throttle::{Group, Valve};
use crate::types::*;
use base::{Mutex, Result, fail};
use std::sync::{Arc, Weak};

pub static DRIVER: Driver = Driver {
    name: "throttle",
    kind: Kind::Filter,
    open,
    changes: &["throttle-group"],
    telling: &["throttle-group"],
    ..Driver::DEFAULT
};

struct Throttle {
    file: Child,
    group: Mutex<Arc<Group>>,
    valve: Valve,
    graph: Weak<Graph>,
}

impl Throttle {
    fn group(&self) -> Arc<Group> {
        self.group.lock().clone()
    }
}

fn find(graph: &Graph, name: &str) -> Result<Arc<Group>> {
    let group = graph.throttle_groups.find(name);
    group.ok_or_else(|| fail!("Throttle group '{name}' does not exist"))
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let name = open
            .options
            .take_str("throttle-group")?
            .ok_or_else(|| fail!("Parameter 'throttle-group' is missing"))?;
        let group = Mutex::new(find(&open.graph, &name)?);
        let file = open.child("file", Role::FILTER).await?;
        let graph = open.context.graph.clone();
        Ok(Arc::new(Throttle { file, group, valve: Valve::default(), graph }) as Arc<dyn Layer>)
    })
}

impl Layer for Throttle {
    pass!(size);
    pass!(limits);
    pass!(status);

    fn reopen<'a>(&'a self, _to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async {
            if let (Some(name), Some(graph)) = (options.take_str("throttle-group")?, self.graph.upgrade()) {
                *self.group.lock() = find(&graph, &name)?;
            }
            Ok(())
        })
    }

    fn reopened_by(&self) -> Options {
        let mut options = Options::new();
        options.set("throttle-group", self.group().name.as_str());
        options
    }

    fn hasten(&self, on: bool) {
        if on { self.valve.open() } else { self.valve.close() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.valve.wait(&self.group(), false, buf.len() as u64).await;
            self.file.read(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.valve.wait(&self.group(), true, data.len() as u64).await;
            self.file.write(offset, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.valve.wait(&self.group(), true, len).await;
            self.file.write_zeroes(offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.valve.wait(&self.group(), true, len).await;
            self.file.discard(offset, len).await
        })
    }
}
