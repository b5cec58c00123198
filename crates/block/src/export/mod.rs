//! Disks given to others: the NBD server and its exports.

mod nbd;
mod negotiation;
mod outbox;
mod session;

pub use nbd::{Export, ExportSetup, Listen, Server, Tls};

use base::Mutex;
use std::sync::Arc;

/// What a graph exports.
#[derive(Default)]
pub struct Exports {
    /// The one NBD server of the process, if started.
    pub server: Mutex<Option<Arc<Server>>>,
}
