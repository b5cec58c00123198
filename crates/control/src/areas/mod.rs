//! The handlers, one file an area of `schema`.

mod backup;
mod block;
mod blockdev;
mod blockjobs;
mod chardev;
mod cpu;
mod export;
mod fd;
mod introspect;
mod lifecycle;
mod machine;
mod media;
mod memory;
mod migration;
mod monitor;
mod pci;
mod qom;
mod snapshot;
mod topology;
mod trace;
mod types;

use crate::Routes;

/// Routes every command that has a handler.
pub fn route_all(routes: &mut Routes) {
    lifecycle::route(routes);
    machine::route(routes);
    cpu::route(routes);
    memory::route(routes);
    migration::route(routes);
    qom::route(routes);
    pci::route(routes);
    block::route(routes);
    media::route(routes);
    blockdev::route(routes);
    backup::route(routes);
    blockjobs::route(routes);
    snapshot::route(routes);
    export::route(routes);
    chardev::route(routes);
    fd::route(routes);
    monitor::route(routes);
    introspect::route(routes);
    trace::route(routes);
}
