//! The monitor itself.

use crate::commands;
use qapi::{Command, Describe};

commands![QmpCapabilities, HumanMonitorCommand, QueryVersion];

/// Ends the negotiation; must be the first command.
#[derive(Command, Debug, Clone)]
#[command(name = "qmp_capabilities", preconfig)]
pub struct QmpCapabilities {
    /// capabilities of the greeting to switch on
    pub enable: Option<Vec<QmpCapability>>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum QmpCapability {
    /// `exec-oob` runs commands ahead of queued ones
    Oob,
}

/// Runs a command of the human monitor and returns what it prints.
#[derive(Command, Debug, Clone)]
#[command(reply = String)]
pub struct HumanMonitorCommand {
    pub command_line: String,
    /// vCPU for commands that look at one (default 0)
    pub cpu_index: Option<i64>,
}

/// The version of the command set (`qemu`) and of this program (`package`).
#[derive(Command, Debug, Clone)]
#[command(reply = VersionInfo, preconfig)]
pub struct QueryVersion {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct VersionInfo {
    pub qemu: VersionTriple,
    pub package: String,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct VersionTriple {
    pub major: i64,
    pub minor: i64,
    pub micro: i64,
}
