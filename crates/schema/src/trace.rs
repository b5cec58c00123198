//! Trace points.

use crate::commands;
use qapi::{Command, Describe};

commands![TraceEventGetState, TraceEventSetState];

/// The state of trace points.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<TraceEventInfo>, preconfig)]
pub struct TraceEventGetState {
    /// name, or a pattern with `*` and `?`
    pub name: String,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct TraceEventInfo {
    pub name: String,
    pub state: TraceEventState,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEventState {
    Unavailable,
    Disabled,
    Enabled,
}

/// Switches trace points.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct TraceEventSetState {
    /// name, or a pattern with `*` and `?`
    pub name: String,
    pub enable: bool,
    /// no error for points that cannot be switched
    #[qapi(default)]
    pub ignore_unavailable: bool,
}
