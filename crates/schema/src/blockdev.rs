//! Block nodes, jobs over them, snapshots, dirty bitmaps and exports.

use crate::block::BlockDeviceInfo;
use crate::{commands, events};
use qapi::{Command, Describe, Event, Map, Value};

commands![
    BlockdevAdd,
    BlockdevDel,
    BlockdevReopen,
    BlockdevCreate,
    QueryNamedBlockNodes,
    BlockResize,
    BlockSetWriteThreshold,
    BlockStream,
    BlockCommit,
    DriveMirror,
    BlockdevMirror,
    DriveBackup,
    BlockdevBackup,
    BlockJobSetSpeed,
    BlockJobCancel,
    BlockJobPause,
    BlockJobResume,
    BlockJobComplete,
    BlockJobFinalize,
    BlockJobDismiss,
    QueryBlockJobs,
    JobPause,
    JobResume,
    JobCancel,
    JobComplete,
    JobFinalize,
    JobDismiss,
    QueryJobs,
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
    Transaction,
    NbdServerStart,
    NbdServerAdd,
    NbdServerRemove,
    NbdServerStop,
];
events![
    BlockJobCompleted,
    BlockJobCancelled,
    BlockJobReady,
    BlockJobError,
    BlockJobPending,
    JobStatusChange,
    BlockWriteThreshold,
    QuorumReportBad,
    QuorumFailure,
    BlockExportDeleted,
];

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

/// Starts a job that makes an image.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevCreate {
    pub job_id: String,
    pub options: Map,
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

/// Arms an event for the first write beyond an offset; 0 disarms.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockSetWriteThreshold {
    pub node_name: String,
    pub write_threshold: u64,
}

/// What a job does about an error.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockdevOnError {
    Report,
    Ignore,
    Enospc,
    Stop,
    Auto,
}

/// What is copied.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorSyncMode {
    /// what the topmost image holds
    Top,
    Full,
    /// new writes only
    None,
    Incremental,
    Bitmap,
    /// the name that `incremental` first had
    DirtyBitmap,
}

/// Whether an image file is made.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewImageMode {
    Existing,
    AbsolutePaths,
}

/// What becomes of a bitmap after a backup.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapSyncMode {
    OnSuccess,
    Never,
    Always,
}

/// How a mirror learns of guest writes.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorCopyMode {
    Background,
}

/// Copies data from backing files into an image.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockStream {
    pub job_id: Option<String>,
    pub device: String,
    pub base: Option<String>,
    pub base_node: Option<String>,
    pub backing_file: Option<String>,
    pub speed: Option<i64>,
    pub on_error: Option<BlockdevOnError>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Writes images into the one they are based on.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockCommit {
    pub job_id: Option<String>,
    pub device: String,
    pub base_node: Option<String>,
    pub base: Option<String>,
    pub top_node: Option<String>,
    pub top: Option<String>,
    pub backing_file: Option<String>,
    pub speed: Option<i64>,
    pub on_error: Option<BlockdevOnError>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Copies a disk to a file and keeps it up to date.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct DriveMirror {
    pub job_id: Option<String>,
    pub device: String,
    pub target: String,
    pub format: Option<String>,
    pub node_name: Option<String>,
    pub replaces: Option<String>,
    pub sync: MirrorSyncMode,
    pub mode: Option<NewImageMode>,
    pub speed: Option<i64>,
    pub granularity: Option<u32>,
    pub buf_size: Option<i64>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    pub unmap: Option<bool>,
    pub copy_mode: Option<MirrorCopyMode>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Copies a disk to a node and keeps it up to date.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevMirror {
    pub job_id: Option<String>,
    pub device: String,
    pub target: String,
    pub replaces: Option<String>,
    pub sync: MirrorSyncMode,
    pub speed: Option<i64>,
    pub granularity: Option<u32>,
    pub buf_size: Option<i64>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    pub copy_mode: Option<MirrorCopyMode>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Copies the present state of a disk to a file.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct DriveBackup {
    pub job_id: Option<String>,
    pub device: String,
    pub target: String,
    pub sync: MirrorSyncMode,
    pub format: Option<String>,
    pub mode: Option<NewImageMode>,
    pub speed: Option<i64>,
    pub bitmap: Option<String>,
    pub bitmap_mode: Option<BitmapSyncMode>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Copies the present state of a disk to a node.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevBackup {
    pub job_id: Option<String>,
    pub device: String,
    pub target: String,
    pub sync: MirrorSyncMode,
    pub speed: Option<i64>,
    pub bitmap: Option<String>,
    pub bitmap_mode: Option<BitmapSyncMode>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// Sets the speed limit of a job in bytes a second.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobSetSpeed {
    pub device: String,
    pub speed: i64,
}

/// Stops a job.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobCancel {
    pub device: String,
    pub force: Option<bool>,
}

/// Lets a job stand still.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobPause {
    pub device: String,
}

/// Lets a paused job go on.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobResume {
    pub device: String,
}

/// Switches a ready mirror over.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobComplete {
    pub device: String,
}

/// Lets a pending job take effect.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobFinalize {
    pub id: String,
}

/// Forgets a job that has ended.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockJobDismiss {
    pub id: String,
}

/// The block jobs.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<BlockJobInfo>, preconfig)]
pub struct QueryBlockJobs {}

/// Lets a job stand still.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobPause {
    pub id: String,
}

/// Lets a paused job go on.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobResume {
    pub id: String,
}

/// Stops a job.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobCancel {
    pub id: String,
}

/// Switches a ready job over.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobComplete {
    pub id: String,
}

/// Lets a pending job take effect.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobFinalize {
    pub id: String,
}

/// Forgets a job that has ended.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct JobDismiss {
    pub id: String,
}

/// All jobs.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<JobInfo>, preconfig)]
pub struct QueryJobs {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BlockJobInfo {
    #[qapi(name = "type")]
    pub kind: String,
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub busy: bool,
    pub paused: bool,
    pub speed: i64,
    pub io_status: crate::block::BlockDeviceIoStatus,
    pub ready: bool,
    pub status: String,
    pub auto_finalize: bool,
    pub auto_dismiss: bool,
    pub error: Option<String>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct JobInfo {
    pub id: String,
    #[qapi(name = "type")]
    pub kind: String,
    pub status: String,
    pub current_progress: i64,
    pub total_progress: i64,
    pub error: Option<String>,
}

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

/// A job ended by itself, or a ready one was told to.
#[derive(Event, Debug, Clone)]
pub struct BlockJobCompleted {
    #[qapi(name = "type")]
    pub kind: String,
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
    pub error: Option<String>,
}

/// A job was stopped.
#[derive(Event, Debug, Clone)]
pub struct BlockJobCancelled {
    #[qapi(name = "type")]
    pub kind: String,
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
}

/// A mirror has caught up.
#[derive(Event, Debug, Clone)]
pub struct BlockJobReady {
    #[qapi(name = "type")]
    pub kind: String,
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
}

/// A job met an error.
#[derive(Event, Debug, Clone)]
pub struct BlockJobError {
    pub device: String,
    pub operation: crate::block::IoOperation,
    pub action: crate::block::BlockErrorAction,
}

/// A job waits to be finalized.
#[derive(Event, Debug, Clone)]
pub struct BlockJobPending {
    #[qapi(name = "type")]
    pub kind: String,
    pub id: String,
}

/// A job is in another state.
#[derive(Event, Debug, Clone)]
pub struct JobStatusChange {
    pub id: String,
    pub status: String,
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
pub struct QuorumFailure {
    pub reference: String,
    pub sector_num: i64,
    pub sectors_count: i64,
}

/// An export is gone.
#[derive(Event, Debug, Clone)]
pub struct BlockExportDeleted {
    pub id: String,
}
