//! Block nodes.

use crate::block::BlockDeviceInfo;
use crate::{commands, events};
use qapi::{Command, Describe, Event, Map, Value};

commands![
    ChangeBackingFile,
    BlockdevAdd,
    BlockdevDel,
    BlockdevReopen,
    XBlockdevReopen,
    BlockdevCreate,
    XBlockdevAmend,
    QueryNamedBlockNodes,
    BlockResize,
    BlockSetWriteThreshold,
    XBlockdevChange,
    XBlockdevSetIothread,
    XDebugQueryBlockGraph
];
events![BlockWriteThreshold, QuorumReportBad, QuorumFailure];

/// Opens a tree of block nodes. The node's options stand beside `driver`; the first form of the
/// command wraps them in `options`.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevAdd {
    #[qapi(rest)]
    pub options: Map,
}

/// Closes a node that `blockdev-add` opened.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevDel {
    pub node_name: String,
}

/// Gives open nodes other options.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevReopen {
    pub options: Vec<Map>,
}

/// Gives one open node other options, which stand beside `driver`: the first form of
/// `blockdev-reopen`.
#[derive(Command, Debug, Clone)]
#[command(name = "x-blockdev-reopen", preconfig)]
pub struct XBlockdevReopen {
    #[qapi(rest)]
    pub options: Map,
}

/// Starts a job that makes an image.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevCreate {
    pub job_id: String,
    pub options: Map,
}

/// Starts a job that changes an image in use: key slots of LUKS.
#[derive(Command, Debug, Clone)]
#[command(name = "x-blockdev-amend", preconfig)]
pub struct XBlockdevAmend {
    pub job_id: String,
    pub node_name: String,
    pub options: Map,
    /// also where data may be lost, as by emptying the last key slot
    pub force: Option<bool>,
}

/// All block nodes.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<BlockDeviceInfo>, preconfig)]
pub struct QueryNamedBlockNodes {
    /// leave out what images are based on
    pub flat: Option<bool>,
}

/// Gives a disk another size in bytes.
#[derive(Command, Debug, Clone)]
#[command(name = "block_resize", preconfig)]
pub struct BlockResize {
    pub device: Option<String>,
    pub node_name: Option<String>,
    pub size: i64,
}

/// Writes another backing file name into an image's header. What is open stays as it is.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct ChangeBackingFile {
    pub device: String,
    pub image_node_name: String,
    pub backing_file: String,
}

/// Arms an event for the first write beyond an offset; 0 disarms.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockSetWriteThreshold {
    pub node_name: String,
    pub write_threshold: u64,
}

/// Gives a node with children of one kind (a quorum) one more, or takes one from it.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct XBlockdevChange {
    pub parent: String,
    /// name of the child that goes
    pub child: Option<String>,
    /// node that comes
    pub node: Option<String>,
}

/// Gives a node, with all it stands on, to an I/O thread.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct XBlockdevSetIothread {
    pub node_name: String,
    /// id of the thread's object, or null for the main one
    pub iothread: Value,
    /// also where a device, an export or a drive uses the node
    pub force: Option<bool>,
}

/// All nodes, jobs and back ends, and who uses whom.
#[derive(Command, Debug, Clone)]
#[command(reply = XDbgBlockGraph, preconfig)]
pub struct XDebugQueryBlockGraph {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct XDbgBlockGraph {
    pub nodes: Vec<XDbgBlockGraphNode>,
    pub edges: Vec<XDbgBlockGraphEdge>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct XDbgBlockGraphNode {
    pub id: u64,
    /// block-backend, block-job or block-driver
    #[qapi(name = "type")]
    pub kind: String,
    pub name: String,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct XDbgBlockGraphEdge {
    pub parent: u64,
    pub child: u64,
    pub name: String,
    /// words consistent-read, write, write-unchanged, resize
    pub perm: Vec<String>,
    pub shared_perm: Vec<String>,
}

/// A write went beyond the threshold, which is disarmed now.
#[derive(Event, Debug, Clone)]
pub struct BlockWriteThreshold {
    pub node_name: String,
    pub amount_exceeded: u64,
    pub write_threshold: u64,
}

/// A child of a quorum failed or was out-voted.
#[derive(Event, Debug, Clone)]
#[event(throttle("node-name"))]
pub struct QuorumReportBad {
    #[qapi(name = "type")]
    pub operation: String,
    pub error: Option<String>,
    pub node_name: String,
    pub sector_num: i64,
    pub sectors_count: i64,
}

/// A quorum had no majority.
#[derive(Event, Debug, Clone)]
#[event(throttle)]
pub struct QuorumFailure {
    pub reference: String,
    pub sector_num: i64,
    pub sectors_count: i64,
}
