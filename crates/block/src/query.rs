//! What `query-block`, `query-named-block-nodes` and `query-blockstats` tell, as plain data.

pub use crate::backend::stats::TimedStats;
use crate::backend::stats::{Counters, Kind};
use crate::backend::{Backend, IoStatus};
use crate::driver::{Info, Snapshot};
use crate::graph::{Graph, Node};
use crate::throttle::Config;
use crate::types::{DetectZeroes, Role};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sizes are told in whole sectors, in bytes.
const SECTOR: u64 = 512;

/// `BlockInfo`.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Back end name, "" if anonymous.
    pub device: String,
    pub qdev: Option<String>,
    pub removable: bool,
    pub locked: bool,
    /// Only where there is a tray.
    pub tray_open: Option<bool>,
    pub io_status: Option<IoStatus>,
    pub inserted: Option<NodeInfo>,
}

/// `BlockDirtyInfo`.
#[derive(Clone, Debug)]
pub struct BitmapInfo {
    pub name: Option<String>,
    /// Dirty bytes.
    pub count: u64,
    pub granularity: u32,
    pub recording: bool,
    pub busy: bool,
    /// Another records in its place.
    pub has_successor: bool,
    pub persistent: bool,
    pub inconsistent: bool,
}

impl BitmapInfo {
    /// The old `status` member.
    pub fn status(&self) -> &'static str {
        match (self.inconsistent, self.busy, self.recording) {
            (true, ..) => "inconsistent",
            (_, true, _) if self.has_successor => "frozen",
            (_, true, _) => "locked",
            (_, _, true) => "active",
            _ => "disabled",
        }
    }
}

/// `BlockDeviceInfo`.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub file: String,
    pub node_name: String,
    pub read_only: bool,
    pub driver: &'static str,
    pub backing_file: Option<String>,
    pub backing_depth: u64,
    pub encrypted: bool,
    /// Whether it, or what it stands on, waits for `block_passwd`; `None` where nothing can.
    pub key_missing: Option<bool>,
    pub detect_zeroes: DetectZeroes,
    /// Of the back end's group (for nodes: all zero).
    pub limits: Config,
    pub throttle_group: Option<String>,
    pub writeback: bool,
    pub direct: bool,
    pub no_flush: bool,
    pub write_threshold: u64,
    pub bitmaps: Vec<BitmapInfo>,
    pub image: ImageInfo,
}

/// `ImageInfo`.
#[derive(Clone, Debug, Default)]
pub struct ImageInfo {
    pub filename: String,
    pub format: &'static str,
    pub virtual_size: u64,
    pub actual_size: Option<u64>,
    pub info: Info,
    pub full_backing_filename: Option<String>,
    pub snapshots: Vec<Snapshot>,
    pub backing_image: Option<Box<ImageInfo>>,
}

impl ImageInfo {
    /// How many images are below.
    fn depth(&self) -> u64 {
        std::iter::successors(self.backing_image.as_deref(), |below| below.backing_image.as_deref()).count()
            as u64
    }
}

/// `BlockStats` of a node: itself and those under it.
#[derive(Clone, Debug)]
pub struct NodeStats {
    pub node_name: Option<String>,
    pub highest_offset: u64,
    pub driver: &'static str,
    pub discards: Option<crate::driver::Discards>,
    /// The protocol node (`parent` on the wire).
    pub file: Option<Box<NodeStats>>,
    pub backing: Option<Box<NodeStats>>,
}

/// `BlockStats` of a back end.
#[derive(Clone, Debug)]
pub struct DeviceStats {
    pub device: String,
    pub qdev: Option<String>,
    pub read: OpStats,
    pub write: OpStats,
    pub flush: OpStats,
    pub unmap: OpStats,
    pub idle_ns: Option<u64>,
    pub account_invalid: bool,
    pub account_failed: bool,
    pub timed: Vec<TimedStats>,
    pub node: Option<NodeStats>,
}

/// Counters of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct OpStats {
    pub bytes: u64,
    pub operations: u64,
    pub failed: u64,
    pub invalid: u64,
    pub merged: u64,
    pub time_ns: u64,
    /// Boundaries and bins.
    pub histogram: Option<(Vec<u64>, Vec<u64>)>,
}

impl From<&Counters> for OpStats {
    fn from(counters: &Counters) -> Self {
        OpStats {
            bytes: counters.bytes.load(Ordering::Relaxed),
            operations: counters.operations.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            invalid: counters.invalid.load(Ordering::Relaxed),
            merged: counters.merged.load(Ordering::Relaxed),
            time_ns: counters.time.load(Ordering::Relaxed),
            histogram: counters.histogram.lock().clone(),
        }
    }
}

impl Graph {
    /// `query-block`, in the order in which the back ends were made.
    pub async fn query_devices(&self) -> Vec<DeviceInfo> {
        let mut all = Vec::new();
        for backend in self.backends() {
            if !backend.name().is_empty() || backend.front_end().is_some() {
                all.push(device(&backend).await);
            }
        }
        all
    }

    /// `query-named-block-nodes`: every node, the newest first; `flat` leaves out nested backing images.
    pub async fn query_nodes(&self, flat: bool) -> Vec<NodeInfo> {
        let mut all = Vec::new();
        for node in self.nodes().into_iter().rev() {
            all.push(describe(&node, None, flat).await);
        }
        all
    }

    /// `query-blockstats` by device.
    pub fn query_device_stats(&self) -> Vec<DeviceStats> {
        let listed = |backend: &Backend| !backend.name().is_empty() || backend.front_end().is_some();
        self.backends().into_iter().filter(listed).map(|backend| device_stats(&backend)).collect()
    }

    /// `query-blockstats` with `query-nodes`.
    pub fn query_node_stats(&self) -> Vec<NodeStats> {
        self.nodes().iter().map(|node| NodeStats { backing: None, ..node_stats(node) }).collect()
    }
}

async fn device(backend: &Backend) -> DeviceInfo {
    let front = backend.front_end();
    let media = front.as_ref().and_then(|front| front.media());
    let tray = media.and_then(crate::Media::tray);
    let inserted = match backend.node().map(|node| node.skip_implicit()) {
        Some(node) => Some(describe(&node, Some(backend), false).await),
        None => None,
    };
    DeviceInfo {
        device: backend.name().to_string(),
        qdev: front.as_ref().map(|front| front.qdev_id()).filter(|id| !id.is_empty()),
        // As long as no device says otherwise, the medium of a drive can be changed.
        removable: front.is_none() || media.is_some(),
        locked: tray.is_some_and(|tray| tray.locked),
        tray_open: tray.map(|tray| tray.open),
        io_status: backend.io_status(),
        inserted,
    }
}

/// A node as `query-block` tells it; through `backend` where there is one.
pub async fn describe(node: &Arc<Node>, backend: Option<&Backend>, flat: bool) -> NodeInfo {
    let settings = node.settings();
    let group = backend.and_then(Backend::throttle_group);
    let image = image(node, !flat).await;
    NodeInfo {
        file: node.filename(),
        node_name: node.name().to_string(),
        read_only: node.is_read_only(),
        driver: node.driver().name,
        backing_file: node.backing().map(|below| below.filename()),
        backing_depth: image.depth(),
        encrypted: node.layer().info().encrypted,
        key_missing: node.key_missing(),
        detect_zeroes: settings.detect_zeroes,
        limits: group.as_ref().map(|group| group.config()).unwrap_or_default(),
        throttle_group: group.map(|group| group.name.clone()),
        writeback: backend.is_none_or(Backend::write_cache),
        direct: settings.cache.direct,
        no_flush: settings.cache.no_flush,
        write_threshold: node.write_threshold(),
        bitmaps: bitmaps(node),
        image,
    }
}

/// The bitmaps of a node, newest first, without those that only its job knows.
pub fn bitmaps(node: &Node) -> Vec<BitmapInfo> {
    let tell = |bitmap: Arc<crate::DirtyBitmap>| BitmapInfo {
        name: bitmap.name(),
        count: bitmap.count(),
        granularity: bitmap.granularity(),
        recording: bitmap.is_recorded(),
        busy: bitmap.is_busy(),
        has_successor: bitmap.has_successor(),
        persistent: bitmap.is_persistent(),
        inconsistent: bitmap.is_inconsistent(),
    };
    node.bitmaps().list().into_iter().rev().filter(|bitmap| !bitmap.is_private()).map(tell).collect()
}

/// `ImageInfo`, with the chain below if `deep`.
pub async fn image(node: &Arc<Node>, deep: bool) -> ImageInfo {
    let mut chain = vec![];
    let mut next = Some(node.clone());
    while let Some(node) = next {
        let below = node.filtered().or_else(|| node.backing()).filter(|_| deep);
        next = below.map(|below| below.skip_implicit());
        chain.push(one_image(&node).await);
    }
    let mut whole = chain.pop().unwrap_or_default();
    while let Some(mut above) = chain.pop() {
        above.backing_image = Some(Box::new(whole));
        whole = above;
    }
    whole
}

async fn one_image(node: &Arc<Node>) -> ImageInfo {
    let mut info = node.layer().info();
    if let Some(below) = node.filtered() {
        let below = below.skip_filters().layer().info();
        (info.cluster_size, info.dirty) = (below.cluster_size, below.dirty);
    }
    let full = info.backing_filename.as_deref();
    let full = full.and_then(|name| crate::graph::filename::combine(&node.place(), name).ok());
    ImageInfo {
        filename: node.filename(),
        format: node.driver().name,
        virtual_size: node.size().next_multiple_of(SECTOR),
        actual_size: allocated(node).await,
        full_backing_filename: full,
        snapshots: node.layer().snapshots().map(|facet| facet.list()).unwrap_or_default(),
        info,
        backing_image: None,
    }
}

/// Bytes on the host of a node and the files it keeps its own data in.
pub async fn allocated(node: &Arc<Node>) -> Option<u64> {
    if let Some(own) = node.layer().allocated_size().await {
        return Some(own);
    }
    let mut total = 0;
    let mut any = false;
    for child in node.children() {
        if child.role().intersects(Role::DATA | Role::METADATA | Role::FILTERED) {
            total += Box::pin(allocated(&child.node())).await?;
            any = true;
        }
    }
    any.then_some(total)
}

fn device_stats(backend: &Backend) -> DeviceStats {
    let stats = backend.stats();
    DeviceStats {
        device: backend.name().to_string(),
        qdev: backend.front_end().map(|front| front.qdev_id()).filter(|id| !id.is_empty()),
        read: stats.of(Kind::Read).into(),
        write: stats.of(Kind::Write).into(),
        flush: stats.of(Kind::Flush).into(),
        unmap: stats.of(Kind::Unmap).into(),
        idle_ns: stats.idle(),
        account_invalid: stats.accounting().0,
        account_failed: stats.accounting().1,
        timed: stats.timed(),
        node: backend.node().map(|node| node_stats(&node.skip_implicit())),
    }
}

fn node_stats(node: &Arc<Node>) -> NodeStats {
    let child =
        |role: Role| node.child(role).map(|child| Box::new(node_stats(&child.node().skip_implicit())));
    NodeStats {
        node_name: Some(node.name().to_string()),
        highest_offset: node.highest_written(),
        driver: node.driver().name,
        discards: node.layer().discards(),
        file: child(Role::PRIMARY),
        backing: child(Role::BACKING),
    }
}
