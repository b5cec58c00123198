//! Passing file descriptors (Unix sockets only).

use crate::commands;
use qapi::{Command, Describe};

commands![Getfd, Closefd, AddFd, RemoveFd, QueryFdsets];

/// Keeps the descriptor that came with the command, under a name, for this monitor.
#[derive(Command, Debug, Clone)]
pub struct Getfd {
    pub fdname: String,
}

/// Closes a descriptor kept by `getfd`.
#[derive(Command, Debug, Clone)]
pub struct Closefd {
    pub fdname: String,
}

/// Puts the descriptor that came with the command into a set; `/dev/fdset/<id>` opens one of
/// the set with the right access mode.
#[derive(Command, Debug, Clone)]
#[command(reply = AddfdInfo)]
pub struct AddFd {
    /// default: the lowest free number
    pub fdset_id: Option<i64>,
    /// free text
    pub opaque: Option<String>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct AddfdInfo {
    pub fdset_id: i64,
    /// number of the descriptor in this process
    pub fd: i64,
}

/// Removes a descriptor, or all, from a set. What has been opened from it stays open.
#[derive(Command, Debug, Clone)]
pub struct RemoveFd {
    pub fdset_id: i64,
    pub fd: Option<i64>,
}

/// The descriptor sets.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<FdsetInfo>)]
pub struct QueryFdsets {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct FdsetInfo {
    pub fdset_id: i64,
    pub fds: Vec<FdsetFdInfo>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct FdsetFdInfo {
    pub fd: i64,
    pub opaque: Option<String>,
}
