//! Disks given to others.

use crate::{commands, events};
use qapi::{Command, Describe, Event, Map};

commands![NbdServerStart, NbdServerAdd, NbdServerRemove, NbdServerStop];
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

/// An export is gone.
#[derive(Event, Debug, Clone)]
pub struct BlockExportDeleted {
    pub id: String,
}
