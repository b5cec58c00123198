//! Disks given to others.

use crate::{commands, events};
use qapi::{Command, Describe, Event, Map, Value};

commands![
    NbdServerStart,
    NbdServerAdd,
    NbdServerRemove,
    NbdServerStop,
    BlockExportAdd,
    BlockExportDel,
    QueryBlockExports
];
events![BlockExportDeleted];

/// Starts the NBD server.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct NbdServerStart {
    /// `type` `inet` or `unix`, and `data` with `host` and `port`, or `path`
    pub addr: Map,
    pub tls_creds: Option<String>,
    pub tls_authz: Option<String>,
    pub max_connections: Option<u32>,
}

/// Exports a disk over NBD.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct NbdServerAdd {
    pub device: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub writable: Option<bool>,
    pub bitmap: Option<String>,
}

/// Whether clients may still be connected.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockExportRemoveMode {
    Safe,
    Hard,
}

/// Takes an NBD export away.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct NbdServerRemove {
    pub name: String,
    pub mode: Option<BlockExportRemoveMode>,
}

/// Ends the NBD server and all its exports.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct NbdServerStop {}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockExportType {
    /// over the NBD server, which must have been started
    Nbd,
}

/// Exports a node.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockExportAdd {
    #[qapi(name = "type")]
    pub kind: BlockExportType,
    pub id: String,
    pub node_name: String,
    pub writable: Option<bool>,
    /// every write is on stable storage when it is answered
    pub writethrough: Option<bool>,
    /// object that runs its requests
    pub iothread: Option<String>,
    /// accepted for both values: nothing else takes the export to another thread
    pub fixed_iothread: Option<bool>,
    /// the node's name if not given
    pub name: Option<String>,
    pub description: Option<String>,
    /// dirty bitmaps shown to clients: names, or objects with `node` and `name`
    pub bitmaps: Option<Vec<Value>>,
    /// how deep in the backing chain data is, shown to clients
    pub allocation_depth: Option<bool>,
}

/// Takes an export away.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockExportDel {
    pub id: String,
    pub mode: Option<BlockExportRemoveMode>,
}

/// All exports.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<BlockExportInfo>, preconfig)]
pub struct QueryBlockExports {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BlockExportInfo {
    pub id: String,
    #[qapi(name = "type")]
    pub kind: BlockExportType,
    pub node_name: String,
    /// it goes when its clients have
    pub shutting_down: bool,
}

/// An export is gone.
#[derive(Event, Debug, Clone)]
pub struct BlockExportDeleted {
    pub id: String,
}
