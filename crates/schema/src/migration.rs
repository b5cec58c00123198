//! Migration.

use crate::commands;
use qapi::{Command, Describe};

commands![QueryMigrateCapabilities];

/// The capabilities that a migration can have here, and whether they are switched on.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<MigrationCapabilityStatus>, preconfig)]
pub struct QueryMigrateCapabilities {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct MigrationCapabilityStatus {
    pub capability: String,
    pub state: bool,
}
