//! Snapshots, dirty bitmaps and transactions.

use crate::blockjobs::NewImageMode;
use crate::commands;
use qapi::{Command, Describe, Map, Value};

commands![
    BlockdevSnapshotSync,
    BlockdevSnapshot,
    BlockdevSnapshotInternalSync,
    BlockdevSnapshotDeleteInternalSync,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapRemove,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapEnable,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapMerge,
    XDebugBlockDirtyBitmapSha256,
    Transaction
];

/// Makes a new image over a disk, which is written from now on.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevSnapshotSync {
    pub device: Option<String>,
    pub node_name: Option<String>,
    pub snapshot_file: String,
    pub snapshot_node_name: Option<String>,
    pub format: Option<String>,
    pub mode: Option<NewImageMode>,
}

/// Puts an open image over a disk.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevSnapshot {
    pub node: String,
    pub overlay: String,
}

/// Makes a snapshot inside of an image.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevSnapshotInternalSync {
    pub device: String,
    pub name: String,
}

/// Deletes a snapshot inside of an image.
#[derive(Command, Debug, Clone)]
#[command(reply = SnapshotInfo, preconfig)]
pub struct BlockdevSnapshotDeleteInternalSync {
    pub device: String,
    pub id: Option<String>,
    pub name: Option<String>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct SnapshotInfo {
    pub id: String,
    pub name: String,
    pub vm_state_size: i64,
    pub date_sec: i64,
    pub date_nsec: i64,
    pub vm_clock_sec: i64,
    pub vm_clock_nsec: i64,
    pub icount: Option<i64>,
}

/// Begins to record what is written.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapAdd {
    pub node: String,
    pub name: String,
    pub granularity: Option<u32>,
    pub persistent: Option<bool>,
    pub disabled: Option<bool>,
}

/// Forgets a dirty bitmap.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapRemove {
    pub node: String,
    pub name: String,
}

/// Takes everything as clean.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapClear {
    pub node: String,
    pub name: String,
}

/// Records again.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapEnable {
    pub node: String,
    pub name: String,
}

/// Stops recording.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapDisable {
    pub node: String,
    pub name: String,
}

/// Adds what is dirty in other bitmaps: names, or objects with `node` and `name`.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockDirtyBitmapMerge {
    pub node: String,
    pub target: String,
    pub bitmaps: Vec<Value>,
}

/// A check sum over the bits of a dirty bitmap.
#[derive(Command, Debug, Clone)]
#[command(name = "x-debug-block-dirty-bitmap-sha256", reply = BlockDirtyBitmapSha256, preconfig)]
pub struct XDebugBlockDirtyBitmapSha256 {
    pub node: String,
    pub name: String,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BlockDirtyBitmapSha256 {
    /// hexadecimal
    pub sha256: String,
}

/// Does several actions at one point in time, all or none.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct Transaction {
    pub actions: Vec<TransactionAction>,
    pub properties: Option<Map>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct TransactionAction {
    #[qapi(name = "type")]
    pub kind: String,
    /// arguments of the command of that name
    pub data: Map,
}
