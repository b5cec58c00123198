//! Jobs over block nodes.

use crate::{commands, events};
use qapi::{Command, Describe, Event};

commands![
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
    QueryJobs
];
events![BlockJobCompleted, BlockJobCancelled, BlockJobReady, BlockJobError, BlockJobPending, JobStatusChange];

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
    /// what was written is copied some time later
    Background,
    /// a write is answered when the target has it too
    WriteBlocking,
}

/// How a backup copies.
#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BackupPerf {
    /// let the host copy; `true` is not supported
    pub use_copy_range: Option<bool>,
    /// copies at the same time, 64 if not given
    pub max_workers: Option<i64>,
    /// bytes of one copy, 0 for the usual
    pub max_chunk: Option<i64>,
}

/// What every command that starts a job may say of it.
#[derive(Describe, Debug, Clone, Default)]
pub struct JobOptions {
    /// the device's name if not given
    pub job_id: Option<String>,
    /// bytes a second; 0: no limit
    pub speed: Option<i64>,
    pub auto_finalize: Option<bool>,
    pub auto_dismiss: Option<bool>,
}

/// What `drive-mirror` and `blockdev-mirror` share.
#[derive(Describe, Debug, Clone)]
pub struct MirrorOptions {
    #[qapi(flatten)]
    pub job: JobOptions,
    pub device: String,
    pub target: String,
    pub replaces: Option<String>,
    pub sync: MirrorSyncMode,
    pub granularity: Option<u32>,
    pub buf_size: Option<i64>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    pub copy_mode: Option<MirrorCopyMode>,
}

/// What `drive-backup` and `blockdev-backup` share.
#[derive(Describe, Debug, Clone)]
pub struct BackupOptions {
    #[qapi(flatten)]
    pub job: JobOptions,
    pub device: String,
    pub target: String,
    pub sync: MirrorSyncMode,
    pub bitmap: Option<String>,
    pub bitmap_mode: Option<BitmapSyncMode>,
    /// write compressed clusters
    pub compress: Option<bool>,
    pub on_source_error: Option<BlockdevOnError>,
    pub on_target_error: Option<BlockdevOnError>,
    /// name for the node that the job puts over the disk
    pub filter_node_name: Option<String>,
    pub x_perf: Option<BackupPerf>,
}

/// Copies data from backing files into an image.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockStream {
    #[qapi(flatten)]
    pub job: JobOptions,
    pub device: String,
    pub base: Option<String>,
    pub base_node: Option<String>,
    /// the last node that is taken in
    pub bottom: Option<String>,
    pub backing_file: Option<String>,
    pub on_error: Option<BlockdevOnError>,
    /// name for the node that the job puts over the disk
    pub filter_node_name: Option<String>,
}

/// Writes images into the one they are based on.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockCommit {
    #[qapi(flatten)]
    pub job: JobOptions,
    pub device: String,
    pub base_node: Option<String>,
    pub base: Option<String>,
    pub top_node: Option<String>,
    pub top: Option<String>,
    pub backing_file: Option<String>,
    pub on_error: Option<BlockdevOnError>,
    /// name for the node that the job puts over the disk
    pub filter_node_name: Option<String>,
}

/// Copies a disk to a file and keeps it up to date.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct DriveMirror {
    #[qapi(flatten)]
    pub common: MirrorOptions,
    pub format: Option<String>,
    pub node_name: Option<String>,
    pub mode: Option<NewImageMode>,
    pub unmap: Option<bool>,
}

/// Copies a disk to a node and keeps it up to date.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevMirror {
    #[qapi(flatten)]
    pub common: MirrorOptions,
    /// name for the node that the job puts over the disk
    pub filter_node_name: Option<String>,
}

/// Copies the present state of a disk to a file.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct DriveBackup {
    #[qapi(flatten)]
    pub common: BackupOptions,
    pub format: Option<String>,
    pub mode: Option<NewImageMode>,
}

/// Copies the present state of a disk to a node.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevBackup {
    #[qapi(flatten)]
    pub common: BackupOptions,
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
    /// of a mirror: source and target are the same, and writes go to both before they are answered
    pub actively_synced: Option<bool>,
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

/// A job ended by itself, or a ready one was told to.
#[derive(Event, Debug, Clone)]
pub struct BlockJobCompleted {
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
    #[qapi(name = "type")]
    pub kind: String,
    pub error: Option<String>,
}

/// A job was stopped.
#[derive(Event, Debug, Clone)]
pub struct BlockJobCancelled {
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
    #[qapi(name = "type")]
    pub kind: String,
}

/// A mirror has caught up.
#[derive(Event, Debug, Clone)]
pub struct BlockJobReady {
    pub device: String,
    pub len: i64,
    pub offset: i64,
    pub speed: i64,
    #[qapi(name = "type")]
    pub kind: String,
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
