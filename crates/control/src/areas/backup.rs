//! `drive-backup`, `blockdev-backup`, alone or in a transaction.

use super::blockdev::graph;
use super::blockjobs::{open_target, policy, root, setup};
use crate::{Call, Routes};
use base::{Result, bail, fail};
use block::jobs::{self, BackupSpec, BackupSync, BitmapMode, Group, Kind, Setup};
use block::transaction::Action;
use block::{Node, Role};
use schema::blockjobs::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(drive_backup);
    routes.add(blockdev_backup);
}

/// What both backup commands say of what is copied, and how.
struct Wanted {
    sync: MirrorSyncMode,
    bitmap: Option<String>,
    bitmap_mode: Option<BitmapSyncMode>,
    x_perf: Option<BackupPerf>,
}

type SyncBitmap = Option<(Arc<block::DirtyBitmap>, BitmapMode)>;

impl Wanted {
    fn incremental(&self) -> bool {
        matches!(self.sync, MirrorSyncMode::Incremental | MirrorSyncMode::DirtyBitmap)
    }

    fn word(&self) -> &'static str {
        match self.sync {
            MirrorSyncMode::Top => "top",
            MirrorSyncMode::Full => "full",
            MirrorSyncMode::None => "none",
            MirrorSyncMode::Bitmap => "bitmap",
            MirrorSyncMode::Incremental => "incremental",
            MirrorSyncMode::DirtyBitmap => "dirty-bitmap",
        }
    }

    fn sync(&self, source: &Arc<Node>) -> BackupSync {
        match self.sync {
            _ if self.incremental() => BackupSync::Bitmap,
            MirrorSyncMode::Bitmap => BackupSync::Bitmap,
            MirrorSyncMode::Top if source.skip_filters().child(Role::BACKING).is_some() => BackupSync::Top,
            MirrorSyncMode::None => BackupSync::None,
            _ => BackupSync::Full,
        }
    }

    fn bitmap(&self, source: &Arc<Node>) -> Result<SyncBitmap> {
        let word = self.word();
        let needs = self.incremental() || self.sync == MirrorSyncMode::Bitmap;
        let Some(name) = &self.bitmap else {
            if self.sync == MirrorSyncMode::DirtyBitmap {
                bail!("must provide a valid bitmap name for \"dirty-bitmap\" sync mode");
            }
            if needs {
                bail!("must provide a valid bitmap name for '{word}' sync mode");
            }
            if self.bitmap_mode.is_some() {
                bail!("Cannot specify bitmap sync mode without a bitmap");
            }
            return Ok(None);
        };
        let found = source.skip_filters().bitmaps().find(name);
        let found = found.ok_or_else(|| fail!("Bitmap '{name}' could not be found"))?;
        let mode = match self.bitmap_mode {
            Some(BitmapSyncMode::OnSuccess) => BitmapMode::OnSuccess,
            Some(_) if self.incremental() => {
                bail!("Bitmap sync mode must be 'on-success' when using sync mode '{word}'")
            }
            Some(BitmapSyncMode::Always) => BitmapMode::Always,
            Some(BitmapSyncMode::Never) => BitmapMode::Never,
            None if self.incremental() => BitmapMode::OnSuccess,
            None => bail!("Bitmap sync mode must be given when providing a bitmap"),
        };
        if self.sync == MirrorSyncMode::None {
            bail!("sync mode '{word}' does not produce meaningful bitmap outputs");
        }
        if mode == BitmapMode::Never && self.sync != MirrorSyncMode::Bitmap {
            bail!("Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{word}'");
        }
        Ok(Some((found, mode)))
    }

    fn perf(&self) -> Result<jobs::Perf> {
        let mut perf = jobs::Perf::default();
        let Some(given) = &self.x_perf else { return Ok(perf) };
        if given.use_copy_range == Some(true) {
            bail!("use-copy-range is not supported");
        }
        if let Some(workers) = given.max_workers {
            if !(1..=i64::from(i32::MAX)).contains(&workers) {
                bail!("max-workers must be between 1 and {}", i32::MAX);
            }
            perf.workers = workers as usize;
        }
        let chunk = given.max_chunk.unwrap_or(0);
        perf.chunk = u64::try_from(chunk)
            .map_err(|_| fail!("max-chunk must be zero (which means no limit) or positive"))?;
        Ok(perf)
    }
}

/// A `drive-backup`; makes or opens its target when it is its turn.
async fn drive_backup_spec(
    call: Call,
    command: DriveBackup,
    group: Option<Arc<Group>>,
) -> Result<BackupSpec> {
    let (graph, common) = (graph(&call), command.common);
    let at_device = root(&graph, &common.device)?;
    let source = at_device.skip_filters();
    let setup = Setup { group, ..setup(&call, Kind::Backup, common.job, &at_device)? };
    let wanted = Wanted {
        sync: common.sync,
        bitmap: common.bitmap,
        bitmap_mode: common.bitmap_mode,
        x_perf: common.x_perf,
    };
    let (sync, bitmap, perf) = (wanted.sync(&source), wanted.bitmap(&source)?, wanted.perf()?);
    at_device.check_busy()?;
    let existing = command.mode == Some(NewImageMode::Existing);
    let below = match &sync {
        BackupSync::Top => source.backing(),
        BackupSync::None => Some(source.clone()),
        _ => None,
    };
    let format = command.format.as_deref();
    let target = open_target(&graph, &source, &common.target, format, existing, below.as_ref(), None).await?;
    if let (BackupSync::None, true) = (&sync, target.driver().backing) {
        graph.set_backing(&target, Some(&source))?;
    }
    Ok(BackupSpec {
        setup,
        target: target.clone(),
        source,
        sync,
        bitmap,
        compress: common.compress.unwrap_or(false),
        perf,
        filter_node_name: common.filter_node_name,
        on_source_error: policy(common.on_source_error),
        on_target_error: policy(common.on_target_error),
        pin: Some(target),
    })
}

fn blockdev_backup_spec(
    call: &Call,
    command: BlockdevBackup,
    group: Option<Arc<Group>>,
) -> Result<BackupSpec> {
    let (graph, common) = (graph(call), command.common);
    let source = root(&graph, &common.device)?;
    let target = root(&graph, &common.target)?;
    let setup = Setup { group, ..setup(call, Kind::Backup, common.job, &source)? };
    let wanted = Wanted {
        sync: common.sync,
        bitmap: common.bitmap,
        bitmap_mode: common.bitmap_mode,
        x_perf: common.x_perf,
    };
    Ok(BackupSpec {
        setup,
        sync: wanted.sync(&source),
        bitmap: wanted.bitmap(&source)?,
        compress: common.compress.unwrap_or(false),
        perf: wanted.perf()?,
        filter_node_name: common.filter_node_name,
        source,
        target,
        on_source_error: policy(common.on_source_error),
        on_target_error: policy(common.on_target_error),
        pin: None,
    })
}

pub(super) fn drive_backup_action(call: &Call, command: DriveBackup, group: Option<Arc<Group>>) -> Action {
    let call = call.clone();
    Action::Backup(Box::new(move || Box::pin(drive_backup_spec(call, command, group))))
}

pub(super) fn blockdev_backup_action(
    call: &Call,
    command: BlockdevBackup,
    group: Option<Arc<Group>>,
) -> Action {
    let call = call.clone();
    Action::Backup(Box::new(move || Box::pin(async move { blockdev_backup_spec(&call, command, group) })))
}

async fn drive_backup(call: Call, command: DriveBackup) -> Result<()> {
    let action = drive_backup_action(&call, command, None);
    super::snapshot::perform(&call, vec![action]).await
}

async fn blockdev_backup(call: Call, command: BlockdevBackup) -> Result<()> {
    let action = blockdev_backup_action(&call, command, None);
    super::snapshot::perform(&call, vec![action]).await
}
