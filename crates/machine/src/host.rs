//! What the process has before and beside a machine, shared with the control plane.

use crate::Objects;
use base::clock::{Clock, Kind};
use base::notice::Notices;
use base::{Result, fail};
use device::Clocks;
use qom::Tree;
use std::any::Any;
use std::sync::Arc;

/// Back ends and the object tree; made from `-object`, `-chardev`, `-blockdev` and by the
/// control plane.
#[derive(Clone)]
pub struct Host {
    pub notices: Notices,
    pub tree: Arc<Tree>,
    pub objects: Arc<Objects>,
    pub chardevs: chardev::Chardevs,
    pub graph: Arc<block::Graph>,
    pub clocks: Clocks,
}

/// The clocks of a machine. With `-accel qtest` the virtual clock moves only by the test
/// channel; block throttling, statistics and events that are held back then follow it ([`block_clock`]).
pub fn clocks(qtest: bool) -> Clocks {
    Clocks {
        virtual_: Clock::new(if qtest { Kind::Manual } else { Kind::Virtual }),
        realtime: Clock::new(Kind::Realtime),
        host: Clock::new(Kind::Host),
    }
}

/// The clock that the block graph measures with, and the limits of events.
pub fn block_clock(clocks: &Clocks) -> Clock {
    match clocks.virtual_.kind() {
        Kind::Manual => clocks.virtual_.clone(),
        _ => clocks.realtime.clone(),
    }
}

impl Host {
    /// Empty: no objects, character devices as given, no block nodes.
    pub fn new(
        notices: Notices,
        chardevs: chardev::Chardevs,
        fdsets: base::fd::FdSets,
        clocks: Clocks,
    ) -> Self {
        let tree = Arc::new(Tree::new());
        let graph = block::Graph::new(notices.clone(), block_clock(&clocks), fdsets);
        let objects = Arc::new(Objects::new(tree.clone(), graph.clone()));
        graph.set_vault(Arc::new(crate::objects::Shelf(Arc::downgrade(&objects))));
        Host { notices, tree, objects, chardevs, graph, clocks }
    }
}

impl device::Backends for Host {
    fn chardev(&self, name: &str) -> Result<chardev::Port> {
        self.chardevs.claim(name)
    }

    fn drive(&self, name: &str, kind: &str) -> Result<block::Backend> {
        let Some(backend) = self.graph.device_drive(name)? else {
            return Err(fail!("Property '{kind}.drive' can't find value '{name}'"));
        };
        backend.check_unused()?;
        Ok(backend)
    }

    fn is_taken(&self, name: &str) -> bool {
        self.graph.backend(name).is_some_and(|backend| backend.front_end().is_some())
    }

    fn empty_drive(&self) -> Result<block::Backend> {
        block::Backend::new(&self.graph, block::Setup::default())
    }

    fn release(&self, unplug: &dyn Fn()) {
        let mut held = self.graph.backends();
        held.retain(|backend| backend.is_for_device() && backend.front_end().is_some());
        unplug();
        for backend in held.iter().filter(|backend| backend.front_end().is_none()) {
            backend.cancel_jobs();
            backend.delete();
        }
    }

    fn object(&self, id: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.objects.find(id)
    }
}
