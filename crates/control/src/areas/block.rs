use super::blockdev::{drive, graph, there};
use crate::{Call, Routes};
use base::{Failure, Result, bail};
use block::IoStatus;
use block::backend::stats::Kind;
use block::query;
use block::throttle::{Bucket, Config};
use qapi::Value;
use schema::block::*;

pub fn route(routes: &mut Routes) {
    routes.add(query_block);
    routes.add(query_blockstats);
    routes.add(passwd);
    routes.add(set_io_throttle);
    routes.add(latency_histogram_set);
}

async fn query_block(call: Call, _: QueryBlock) -> Result<Vec<BlockInfo>> {
    Ok(call.world().host.graph.query_devices().await.into_iter().map(device).collect())
}

fn device(info: query::DeviceInfo) -> BlockInfo {
    BlockInfo {
        device: info.device,
        qdev: info.qdev,
        kind: "unknown".into(),
        removable: info.removable,
        locked: info.locked,
        tray_open: info.tray_open,
        io_status: info.io_status.map(|status| match status {
            IoStatus::Ok => BlockDeviceIoStatus::Ok,
            IoStatus::Failed => BlockDeviceIoStatus::Failed,
            IoStatus::Nospace => BlockDeviceIoStatus::Nospace,
        }),
        dirty_bitmaps: info.inserted.as_ref().and_then(|node| bitmaps(&node.bitmaps)),
        inserted: info.inserted.map(node),
    }
}

fn burst(bucket: Bucket) -> Option<i64> {
    (bucket.max > 0).then_some(bucket.max as i64)
}

fn length(bucket: Bucket) -> Option<i64> {
    (bucket.max > 0).then_some(bucket.burst_length as i64)
}

fn bitmaps(list: &[query::BitmapInfo]) -> Option<Vec<BlockDirtyInfo>> {
    let tell = |info: &query::BitmapInfo| BlockDirtyInfo {
        name: info.name.clone(),
        count: info.count as i64,
        granularity: info.granularity,
        recording: info.recording,
        busy: info.busy,
        persistent: info.persistent,
        inconsistent: info.inconsistent.then_some(true),
        status: info.status().into(),
    };
    (!list.is_empty()).then(|| list.iter().map(tell).collect())
}

/// A node in the form of `query-block` and `query-named-block-nodes`.
pub fn node(info: query::NodeInfo) -> BlockDeviceInfo {
    let limits = &info.limits;
    BlockDeviceInfo {
        dirty_bitmaps: bitmaps(&info.bitmaps),
        file: info.file,
        node_name: Some(info.node_name),
        ro: info.read_only,
        drv: info.driver.into(),
        backing_file: info.backing_file,
        backing_file_depth: info.backing_depth as i64,
        encrypted: info.encrypted,
        encryption_key_missing: info.key_missing.or(info.encrypted.then_some(false)),
        detect_zeroes: match info.detect_zeroes {
            block::DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
            block::DetectZeroes::On => BlockdevDetectZeroesOptions::On,
            block::DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
        },
        bps: limits.bps[0].avg as i64,
        bps_rd: limits.bps[1].avg as i64,
        bps_wr: limits.bps[2].avg as i64,
        iops: limits.iops[0].avg as i64,
        iops_rd: limits.iops[1].avg as i64,
        iops_wr: limits.iops[2].avg as i64,
        bps_max: burst(limits.bps[0]),
        bps_rd_max: burst(limits.bps[1]),
        bps_wr_max: burst(limits.bps[2]),
        iops_max: burst(limits.iops[0]),
        iops_rd_max: burst(limits.iops[1]),
        iops_wr_max: burst(limits.iops[2]),
        bps_max_length: length(limits.bps[0]),
        bps_rd_max_length: length(limits.bps[1]),
        bps_wr_max_length: length(limits.bps[2]),
        iops_max_length: length(limits.iops[0]),
        iops_rd_max_length: length(limits.iops[1]),
        iops_wr_max_length: length(limits.iops[2]),
        iops_size: (limits.iops_size > 0).then_some(limits.iops_size as i64),
        group: info.throttle_group,
        image: image(info.image),
        cache: BlockdevCacheInfo { writeback: info.writeback, direct: info.direct, no_flush: info.no_flush },
        write_threshold: info.write_threshold,
    }
}

/// An image and those it is based on.
pub fn image(image: query::ImageInfo) -> ImageInfo {
    ImageInfo {
        filename: image.filename,
        format: image.format.into(),
        dirty_flag: image.info.dirty,
        actual_size: image.actual_size.map(|size| size as i64),
        virtual_size: image.virtual_size as i64,
        cluster_size: image.info.cluster_size.map(|size| size as i64),
        encrypted: image.info.encrypted.then_some(true),
        compressed: image.info.compressed.then_some(true),
        backing_filename: image.info.backing_filename,
        full_backing_filename: image.full_backing_filename,
        backing_filename_format: image.info.backing_format,
        snapshots: (!image.snapshots.is_empty())
            .then(|| image.snapshots.into_iter().map(super::snapshot::told).collect()),
        format_specific: match image.info.specific {
            Some(Value::Object(specific)) => Some(specific),
            _ => None,
        },
        backing_image: image.backing_image.map(|below| Box::new(self::image(*below))),
    }
}

async fn query_blockstats(call: Call, command: QueryBlockstats) -> Result<Vec<BlockStats>> {
    let graph = graph(&call);
    // Over there what has just been let go is counted.
    there(&call, async move {
        Ok(match command.query_nodes {
            true => graph.query_node_stats().into_iter().map(node_stats).collect(),
            false => graph.query_device_stats().into_iter().map(device_stats).collect(),
        })
    })
    .await
}

fn device_stats(stats: query::DeviceStats) -> BlockStats {
    let counted = BlockDeviceStats {
        rd_bytes: stats.read.bytes as i64,
        wr_bytes: stats.write.bytes as i64,
        unmap_bytes: stats.unmap.bytes as i64,
        rd_operations: stats.read.operations as i64,
        wr_operations: stats.write.operations as i64,
        flush_operations: stats.flush.operations as i64,
        unmap_operations: stats.unmap.operations as i64,
        rd_total_time_ns: stats.read.time_ns as i64,
        wr_total_time_ns: stats.write.time_ns as i64,
        flush_total_time_ns: stats.flush.time_ns as i64,
        unmap_total_time_ns: stats.unmap.time_ns as i64,
        wr_highest_offset: stats.node.as_ref().map_or(0, |node| node.highest_offset as i64),
        rd_merged: stats.read.merged as i64,
        wr_merged: stats.write.merged as i64,
        unmap_merged: stats.unmap.merged as i64,
        failed_rd_operations: stats.read.failed as i64,
        failed_wr_operations: stats.write.failed as i64,
        failed_flush_operations: stats.flush.failed as i64,
        failed_unmap_operations: stats.unmap.failed as i64,
        invalid_rd_operations: stats.read.invalid as i64,
        invalid_wr_operations: stats.write.invalid as i64,
        invalid_flush_operations: stats.flush.invalid as i64,
        invalid_unmap_operations: stats.unmap.invalid as i64,
        account_invalid: stats.account_invalid,
        account_failed: stats.account_failed,
        idle_time_ns: stats.idle_ns.map(|ns| ns as i64),
        timed_stats: stats.timed.iter().map(timed_stats).collect(),
        rd_latency_histogram: stats.read.histogram.map(histogram),
        wr_latency_histogram: stats.write.histogram.map(histogram),
        flush_latency_histogram: stats.flush.histogram.map(histogram),
    };
    let below = stats.node.map(node_stats).unwrap_or_default();
    BlockStats {
        device: Some(stats.device),
        qdev: stats.qdev,
        node_name: below.node_name,
        stats: counted,
        driver_specific: below.driver_specific,
        parent: below.parent,
        backing: below.backing,
    }
}

fn node_stats(stats: query::NodeStats) -> BlockStats {
    // The drive of a CD counts none.
    let discards = stats.discards.filter(|_| stats.driver != "host_cdrom");
    BlockStats {
        driver_specific: discards.map(|counted| BlockStatsSpecific {
            driver: stats.driver.into(),
            discard_nb_ok: counted.done,
            discard_nb_failed: counted.failed,
            discard_bytes_ok: counted.bytes,
        }),
        node_name: stats.node_name,
        stats: BlockDeviceStats { wr_highest_offset: stats.highest_offset as i64, ..Default::default() },
        parent: stats.file.map(|file| Box::new(node_stats(*file))),
        backing: stats.backing.map(|backing| Box::new(node_stats(*backing))),
        ..BlockStats::default()
    }
}

fn histogram((boundaries, bins): (Vec<u64>, Vec<u64>)) -> BlockLatencyHistogramInfo {
    BlockLatencyHistogramInfo { boundaries, bins }
}

fn timed_stats(timed: &query::TimedStats) -> BlockDeviceTimedStats {
    let [read, write, flush] = [timed.read, timed.write, timed.flush];
    BlockDeviceTimedStats {
        interval_length: timed.seconds as i64,
        min_rd_latency_ns: read.min as i64,
        max_rd_latency_ns: read.max as i64,
        avg_rd_latency_ns: read.average as i64,
        min_wr_latency_ns: write.min as i64,
        max_wr_latency_ns: write.max as i64,
        avg_wr_latency_ns: write.average as i64,
        min_flush_latency_ns: flush.min as i64,
        max_flush_latency_ns: flush.max as i64,
        avg_flush_latency_ns: flush.average as i64,
        avg_rd_queue_depth: read.depth,
        avg_wr_queue_depth: write.depth,
    }
}

fn limits(command: &BlockSetIoThrottle) -> Result<Config> {
    let c = command;
    let number = |value: i64| match u64::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => bail!("bps/iops/max values must be within [0, 1000000000000000]"),
    };
    let bucket = |avg: i64, max: Option<i64>, length: Option<i64>| {
        Ok::<_, Failure>(Bucket {
            avg: number(avg)?,
            max: number(max.unwrap_or(0))?,
            burst_length: number(length.unwrap_or(1))?,
        })
    };
    let config = Config {
        bps: [
            bucket(c.bps, c.bps_max, c.bps_max_length)?,
            bucket(c.bps_rd, c.bps_rd_max, c.bps_rd_max_length)?,
            bucket(c.bps_wr, c.bps_wr_max, c.bps_wr_max_length)?,
        ],
        iops: [
            bucket(c.iops, c.iops_max, c.iops_max_length)?,
            bucket(c.iops_rd, c.iops_rd_max, c.iops_rd_max_length)?,
            bucket(c.iops_wr, c.iops_wr_max, c.iops_wr_max_length)?,
        ],
        iops_size: number(c.iops_size.unwrap_or(0))?,
    };
    config.check()?;
    Ok(config)
}

async fn passwd(call: Call, command: BlockPasswd) -> Result<()> {
    let at = graph(&call);
    let node = at.lookup(command.device.as_deref(), command.node_name.as_deref())?;
    there(&call, async move { at.set_password(&node, &command.password) }).await
}

async fn set_io_throttle(call: Call, command: BlockSetIoThrottle) -> Result<()> {
    let (backend, named) = drive(&call, command.device.clone(), command.id.clone())?;
    if !backend.is_inserted() {
        bail!("Device has no medium");
    }
    let config = limits(&command)?;
    if !config.is_limited() {
        backend.set_throttle_group(None);
        return Ok(());
    }
    let groups = &graph(&call).throttle_groups;
    let group = match (command.group, backend.throttle_group()) {
        (Some(name), _) => groups.obtain(&name),
        (None, Some(group)) => group,
        (None, None) => groups.obtain(&named),
    };
    group.set_config(config);
    if !backend.throttle_group().is_some_and(|now| std::sync::Arc::ptr_eq(&now, &group)) {
        backend.set_throttle_group(Some(group));
    }
    Ok(())
}

async fn latency_histogram_set(call: Call, command: BlockLatencyHistogramSet) -> Result<()> {
    let id = command.id;
    let by_id = drive(&call, None, Some(id.clone()));
    let (backend, _) = by_id.or_else(|why| drive(&call, Some(id.clone()), None).map_err(|_| why))?;
    let all = command.boundaries;
    if all.is_none()
        && [&command.boundaries_read, &command.boundaries_write, &command.boundaries_flush]
            .iter()
            .all(|own| own.is_none())
    {
        for kind in [Kind::Read, Kind::Write, Kind::Flush] {
            *backend.stats().of(kind).histogram.lock() = None;
        }
        return Ok(());
    }
    let chosen = [
        (Kind::Read, "read", command.boundaries_read),
        (Kind::Write, "write", command.boundaries_write),
        (Kind::Flush, "flush", command.boundaries_flush),
    ]
    .map(|(kind, name, own)| (kind, name, own.or_else(|| all.clone())));
    for (_, name, boundaries) in &chosen {
        let ascends = |list: &Vec<u64>| list.first() != Some(&0) && list.is_sorted_by(|one, next| one < next);
        if !boundaries.as_ref().is_none_or(ascends) {
            bail!("Device '{id}' set {name} boundaries fail");
        }
    }
    for (kind, _, boundaries) in chosen {
        if let Some(boundaries) = boundaries {
            let bins = vec![0; boundaries.len() + 1];
            *backend.stats().of(kind).histogram.lock() = Some((boundaries, bins));
        }
    }
    Ok(())
}
