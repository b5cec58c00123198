use crate::{Call, Routes};
use base::Result;
use block::IoStatus;
use block::query;
use schema::block::*;

pub fn route(routes: &mut Routes) {
    routes.add(query_block);
    routes.add(query_blockstats);
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
        backing_image: image.backing_image.map(|below| Box::new(self::image(*below))),
    }
}

async fn query_blockstats(call: Call, command: QueryBlockstats) -> Result<Vec<BlockStats>> {
    let graph = &call.world().host.graph;
    Ok(match command.query_nodes {
        true => graph.query_node_stats().into_iter().map(node_stats).collect(),
        false => graph.query_device_stats().into_iter().map(device_stats).collect(),
    })
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
    };
    let below = stats.node.map(node_stats).unwrap_or_default();
    BlockStats {
        device: Some(stats.device),
        qdev: stats.qdev,
        node_name: below.node_name,
        stats: counted,
        parent: below.parent,
        backing: below.backing,
    }
}

fn node_stats(stats: query::NodeStats) -> BlockStats {
    BlockStats {
        node_name: stats.node_name,
        stats: BlockDeviceStats { wr_highest_offset: stats.highest_offset as i64, ..Default::default() },
        parent: stats.file.map(|file| Box::new(node_stats(*file))),
        backing: stats.backing.map(|backing| Box::new(node_stats(*backing))),
        ..BlockStats::default()
    }
}
