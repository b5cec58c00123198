//! Migration.

use crate::commands;
use qapi::{Command, Describe};

commands![QueryMigrateCapabilities, MigrateSetCapabilities];

/// The capabilities that a migration can have here, and whether they are switched on.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<MigrationCapabilityStatus>, preconfig)]
pub struct QueryMigrateCapabilities {}

/// Switches capabilities for migrations to come.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct MigrateSetCapabilities {
    pub capabilities: Vec<MigrationCapabilityStatus>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct MigrationCapabilityStatus {
    pub capability: MigrationCapability,
    pub state: bool,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationCapability {
    /// tell of every change of a migration's state by an event
    Events,
}
