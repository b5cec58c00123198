//! Block devices and block nodes.

use crate::snapshot::SnapshotInfo;
use crate::{commands, events};
use qapi::{Command, Describe, Event, Map};

commands![QueryBlock, QueryBlockstats, BlockPasswd, BlockSetIoThrottle, BlockLatencyHistogramSet];
events![BlockIoError, BlockImageCorrupted, DeviceTrayMoved];

/// The block devices and what is in them.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<BlockInfo>, preconfig)]
pub struct QueryBlock {}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct BlockInfo {
    /// name given with `-drive id=`, or empty
    pub device: String,
    /// QOM path of the device that uses it
    pub qdev: Option<String>,
    /// always `unknown`
    #[qapi(name = "type")]
    pub kind: String,
    /// the medium can be changed
    pub removable: bool,
    /// the guest holds the tray closed
    pub locked: bool,
    /// for devices with a tray
    pub tray_open: Option<bool>,
    /// for devices that may stop the machine on errors
    #[qapi(name = "io-status")]
    pub io_status: Option<BlockDeviceIoStatus>,
    /// those of `inserted`: their old place
    #[qapi(name = "dirty-bitmaps")]
    pub dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
    /// absent without medium
    pub inserted: Option<BlockDeviceInfo>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockDeviceIoStatus {
    Ok,
    Failed,
    /// out of space
    Nospace,
}

#[derive(Describe, Debug, Clone, Default, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct BlockDeviceInfo {
    pub file: String,
    #[qapi(name = "node-name")]
    pub node_name: Option<String>,
    /// read only
    pub ro: bool,
    /// driver
    pub drv: String,
    pub backing_file: Option<String>,
    pub backing_file_depth: i64,
    pub encrypted: bool,
    /// only where it, or what it is based on, is encrypted: waits for `block_passwd`
    pub encryption_key_missing: Option<bool>,
    pub detect_zeroes: BlockdevDetectZeroesOptions,
    pub bps: i64,
    pub bps_rd: i64,
    pub bps_wr: i64,
    pub iops: i64,
    pub iops_rd: i64,
    pub iops_wr: i64,
    /// burst limits: only those that are set
    pub bps_max: Option<i64>,
    pub bps_rd_max: Option<i64>,
    pub bps_wr_max: Option<i64>,
    pub iops_max: Option<i64>,
    pub iops_rd_max: Option<i64>,
    pub iops_wr_max: Option<i64>,
    /// seconds that bursts may last, where there is a burst limit
    pub bps_max_length: Option<i64>,
    pub bps_rd_max_length: Option<i64>,
    pub bps_wr_max_length: Option<i64>,
    pub iops_max_length: Option<i64>,
    pub iops_rd_max_length: Option<i64>,
    pub iops_wr_max_length: Option<i64>,
    /// bytes that count as one operation, if limited so
    pub iops_size: Option<i64>,
    /// throttle group, where there are limits
    pub group: Option<String>,
    pub image: ImageInfo,
    pub cache: BlockdevCacheInfo,
    pub write_threshold: u64,
    /// absent where there are none
    #[qapi(name = "dirty-bitmaps")]
    pub dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
}

/// A dirty bitmap.
#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BlockDirtyInfo {
    /// absent for those of jobs
    pub name: Option<String>,
    /// dirty bytes
    pub count: i64,
    /// bytes that one bit stands for
    pub granularity: u32,
    /// guest writes are marked
    pub recording: bool,
    /// a job or an export uses it
    pub busy: bool,
    pub persistent: bool,
    /// the image was not closed well; it can only be removed
    pub inconsistent: Option<bool>,
    /// `active`, `disabled`, `frozen`, `locked` or `inconsistent`: the old way to say it
    pub status: String,
}

#[derive(Describe, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockdevDetectZeroesOptions {
    #[default]
    Off,
    On,
    /// as `on`, and unmap them
    Unmap,
}

#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct BlockdevCacheInfo {
    pub writeback: bool,
    /// past the host's page cache
    pub direct: bool,
    /// flushes are ignored
    pub no_flush: bool,
}

#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct ImageInfo {
    pub filename: String,
    pub format: String,
    /// was not closed in good order
    pub dirty_flag: Option<bool>,
    /// bytes taken on the host
    pub actual_size: Option<i64>,
    /// bytes the guest sees
    pub virtual_size: i64,
    pub cluster_size: Option<i64>,
    pub encrypted: Option<bool>,
    pub compressed: Option<bool>,
    pub backing_filename: Option<String>,
    /// seen from the directory of the image
    pub full_backing_filename: Option<String>,
    pub backing_filename_format: Option<String>,
    pub snapshots: Option<Vec<SnapshotInfo>>,
    pub backing_image: Option<Box<ImageInfo>>,
    /// what only this format has: `type`, and its `data`
    pub format_specific: Option<Map>,
}

/// What the block devices have done.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<BlockStats>, preconfig)]
pub struct QueryBlockstats {
    /// of every named node instead of every device
    #[qapi(default)]
    pub query_nodes: bool,
}

#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct BlockStats {
    pub device: Option<String>,
    pub qdev: Option<String>,
    pub node_name: Option<String>,
    pub stats: BlockDeviceStats,
    /// of files and devices of the host
    pub driver_specific: Option<BlockStatsSpecific>,
    /// the protocol node below a format
    pub parent: Option<Box<BlockStats>>,
    pub backing: Option<Box<BlockStats>>,
}

/// How discards of a host file or device (`file`, `host_device`) went.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct BlockStatsSpecific {
    pub driver: String,
    pub discard_nb_ok: u64,
    pub discard_nb_failed: u64,
    pub discard_bytes_ok: u64,
}

/// Counts since the start, as the guest asked for them.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct BlockDeviceStats {
    pub rd_bytes: i64,
    pub wr_bytes: i64,
    pub unmap_bytes: i64,
    pub rd_operations: i64,
    pub wr_operations: i64,
    pub flush_operations: i64,
    pub unmap_operations: i64,
    /// nanoseconds, waiting included
    pub rd_total_time_ns: i64,
    pub wr_total_time_ns: i64,
    pub flush_total_time_ns: i64,
    pub unmap_total_time_ns: i64,
    /// end of the highest write
    pub wr_highest_offset: i64,
    /// requests joined to others
    pub rd_merged: i64,
    pub wr_merged: i64,
    pub unmap_merged: i64,
    pub failed_rd_operations: i64,
    pub failed_wr_operations: i64,
    pub failed_flush_operations: i64,
    pub failed_unmap_operations: i64,
    pub invalid_rd_operations: i64,
    pub invalid_wr_operations: i64,
    pub invalid_flush_operations: i64,
    pub invalid_unmap_operations: i64,
    /// invalid requests count in the numbers above
    pub account_invalid: bool,
    /// failed requests count in the numbers above
    pub account_failed: bool,
    /// nanoseconds since the last request
    pub idle_time_ns: Option<i64>,
    /// one for each interval that the drive asked for
    pub timed_stats: Vec<BlockDeviceTimedStats>,
    pub rd_latency_histogram: Option<BlockLatencyHistogramInfo>,
    pub wr_latency_histogram: Option<BlockLatencyHistogramInfo>,
    pub flush_latency_histogram: Option<BlockLatencyHistogramInfo>,
}

/// Latencies in nanoseconds, and requests in flight on average, of a sliding interval.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct BlockDeviceTimedStats {
    /// seconds
    pub interval_length: i64,
    pub min_rd_latency_ns: i64,
    pub max_rd_latency_ns: i64,
    pub avg_rd_latency_ns: i64,
    pub min_wr_latency_ns: i64,
    pub max_wr_latency_ns: i64,
    pub avg_wr_latency_ns: i64,
    pub min_flush_latency_ns: i64,
    pub max_flush_latency_ns: i64,
    pub avg_flush_latency_ns: i64,
    pub avg_rd_queue_depth: f64,
    pub avg_wr_queue_depth: f64,
}

/// How many requests took how long.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct BlockLatencyHistogramInfo {
    /// nanoseconds, ascending
    pub boundaries: Vec<u64>,
    /// one more than boundaries: requests below the first, between each two, above the last
    pub bins: Vec<u64>,
}

/// Counts anew how long the requests of a device take, or no more if no boundaries are given.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockLatencyHistogramSet {
    /// id or QOM path of the device, or the name of its drive
    pub id: String,
    /// nanoseconds, ascending, for all kinds that have none of their own
    pub boundaries: Option<Vec<u64>>,
    pub boundaries_read: Option<Vec<u64>>,
    pub boundaries_write: Option<Vec<u64>>,
    pub boundaries_flush: Option<Vec<u64>>,
}

/// Sets the password of an image (`qcow`, `qcow2`) with the old AES encryption that was opened
/// without it, and of those that it is based on. `cont` is refused while a drive lacks one.
#[derive(Command, Debug, Clone)]
#[command(name = "block_passwd", preconfig)]
pub struct BlockPasswd {
    /// drive
    pub device: Option<String>,
    pub node_name: Option<String>,
    /// at most 16 bytes of it count; a wrong one is not recognised, and gives wrong data
    pub password: String,
}

/// Replaces the limits of a drive. Bytes and operations a second; 0: no limit. The drive is named
/// by `device` or by the `id` of the device that holds it.
#[derive(Command, Debug, Clone)]
#[command(name = "block_set_io_throttle", preconfig)]
#[qapi(rename_all = "snake")]
pub struct BlockSetIoThrottle {
    pub device: Option<String>,
    pub id: Option<String>,
    pub bps: i64,
    pub bps_rd: i64,
    pub bps_wr: i64,
    pub iops: i64,
    pub iops_rd: i64,
    pub iops_wr: i64,
    /// rates in bursts
    pub bps_max: Option<i64>,
    pub bps_rd_max: Option<i64>,
    pub bps_wr_max: Option<i64>,
    pub iops_max: Option<i64>,
    pub iops_rd_max: Option<i64>,
    pub iops_wr_max: Option<i64>,
    /// seconds that bursts may last
    pub bps_max_length: Option<i64>,
    pub bps_rd_max_length: Option<i64>,
    pub bps_wr_max_length: Option<i64>,
    pub iops_max_length: Option<i64>,
    pub iops_rd_max_length: Option<i64>,
    pub iops_wr_max_length: Option<i64>,
    /// bytes that count as one operation
    pub iops_size: Option<i64>,
    /// drives of one group share their limits
    pub group: Option<String>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoOperation {
    Read,
    /// or flush
    Write,
}

/// What was done about an error.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockErrorAction {
    Ignore,
    /// the guest was told
    Report,
    /// the machine stopped; the request is retried when it goes on
    Stop,
}

/// A request of the guest failed. With action `stop`, STOP follows.
#[derive(Event, Debug, Clone)]
pub struct BlockIoError {
    pub qom_path: Option<String>,
    /// back end name, or empty
    pub device: String,
    pub node_name: Option<String>,
    pub operation: IoOperation,
    pub action: BlockErrorAction,
    /// it failed for lack of space; only where `io-status` is kept
    pub nospace: Option<bool>,
    /// for people
    pub reason: String,
}

/// Something in an image contradicts itself.
#[derive(Event, Debug, Clone)]
pub struct BlockImageCorrupted {
    /// back end name, or empty
    pub device: String,
    pub node_name: Option<String>,
    /// for people
    pub msg: String,
    pub offset: Option<i64>,
    pub size: Option<i64>,
    /// the image cannot be used any more
    pub fatal: bool,
}

/// A tray was opened or closed.
#[derive(Event, Debug, Clone)]
pub struct DeviceTrayMoved {
    /// back end name, or empty
    pub device: String,
    /// id or QOM path of the device
    pub id: String,
    pub tray_open: bool,
}
