//! Starting and steering block jobs.

use super::blockdev::{graph, there};
use crate::{Call, Routes};
use base::{Class, Failure, Result, bail, fail};
use block::jobs::{
    self, BackingMode, BackupSpec, BackupSync, BitmapMode, Kind, MirrorSpec, MirrorSync, Setup,
};
use block::transaction::Action;
use block::{Graph, IoStatus, Node, OnError, Options, Role, Settings};
use schema::block::BlockDeviceIoStatus;
use schema::blockjobs::*;
use serde_json::json;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(block_stream);
    routes.add(block_commit);
    routes.add(drive_mirror);
    routes.add(blockdev_mirror);
    routes.add(drive_backup);
    routes.add(blockdev_backup);
    routes.add(set_speed);
    routes.add(cancel);
    routes.add(pause);
    routes.add(resume);
    routes.add(complete);
    routes.add(finalize);
    routes.add(dismiss);
    routes.add(query_block_jobs);
    routes.add(job_pause);
    routes.add(job_resume);
    routes.add(job_cancel);
    routes.add(job_complete);
    routes.add(job_finalize);
    routes.add(job_dismiss);
    routes.add(query_jobs);
}

fn policy(given: Option<BlockdevOnError>) -> OnError {
    match given {
        None | Some(BlockdevOnError::Report) => OnError::Report,
        Some(BlockdevOnError::Ignore) => OnError::Ignore,
        Some(BlockdevOnError::Enospc | BlockdevOnError::Auto) => OnError::Enospc,
        Some(BlockdevOnError::Stop) => OnError::Stop,
    }
}

fn setup(graph: &Graph, kind: Kind, job: JobOptions, node: &Arc<Node>) -> Result<Setup> {
    let device = || {
        let at =
            graph.backends().into_iter().find(|one| one.node().is_some_and(|root| Arc::ptr_eq(&root, node)));
        at.map(|backend| backend.name().to_string()).unwrap_or_default()
    };
    let id = job.job_id.unwrap_or_else(device);
    graph.jobs.check_id(&id)?;
    let Ok(speed) = u64::try_from(job.speed.unwrap_or(0)) else { bail!("Invalid parameter 'speed'") };
    Ok(Setup {
        speed,
        auto_finalize: job.auto_finalize.unwrap_or(true),
        auto_dismiss: job.auto_dismiss.unwrap_or(true),
        ..Setup::new(kind, id)
    })
}

fn root(graph: &Graph, device: &str) -> Result<Arc<Node>> {
    graph.lookup(Some(device), Some(device))
}

/// The node in the chain under `top` that `wanted` is.
pub(super) fn in_chain(top: &Arc<Node>, wanted: impl Fn(&Arc<Node>) -> bool) -> Option<Arc<Node>> {
    let mut node = Some(top.clone());
    while let Some(one) = node {
        if wanted(&one) {
            return Some(one);
        }
        node = one.filtered().or_else(|| one.backing());
    }
    None
}

/// The image under `top` of that file name.
fn by_file(top: &Arc<Node>, file: &str) -> Option<Arc<Node>> {
    in_chain(top, |node| {
        let named = node.filename() == file;
        let same = || match (std::fs::canonicalize(node.filename()), std::fs::canonicalize(file)) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        };
        named || same()
    })
}

async fn block_stream(call: Call, command: BlockStream) -> Result<()> {
    let graph = graph(&call);
    let top = root(&graph, &command.device)?;
    if command.base.is_some() && command.base_node.is_some() {
        bail!("'base' and 'base-node' cannot be specified at the same time");
    }
    let base = match (&command.base, &command.base_node) {
        (Some(file), _) => {
            let found = top.backing().and_then(|below| by_file(&below, file));
            Some(found.ok_or_else(|| fail!("Can't find '{file}' in the backing chain"))?)
        }
        (_, Some(name)) => {
            let found = top.backing().and_then(|below| in_chain(&below, |node| node.name() == name));
            let missing = || fail!("Node '{name}' is not a backing image of '{}'", command.device);
            Some(found.ok_or_else(missing)?)
        }
        _ => None,
    };
    let setup = setup(&graph, Kind::Stream, command.job, &top)?;
    let on_error = policy(command.on_error);
    let spec = jobs::StreamSpec { setup, top, base, backing_file: command.backing_file, on_error };
    there(&call, async move { graph.jobs.stream(&graph, spec).await.map(drop) }).await
}

async fn block_commit(call: Call, command: BlockCommit) -> Result<()> {
    let graph = graph(&call);
    let lookup = root(&graph, &command.device);
    let active = lookup
        .map_err(|_| Failure::of(Class::DeviceNotFound, format!("Device '{}' not found", command.device)))?;
    let shown = active.skip_filters();
    let top = match (&command.top_node, &command.top) {
        (Some(name), _) => in_chain(&active, |node| node.name() == name)
            .ok_or_else(|| fail!("'{name}' is not in this backing file chain"))?,
        (_, Some(file)) => by_file(&shown, file).ok_or_else(|| fail!("Top image file {file} not found"))?,
        _ => shown.clone(),
    };
    let base = match (&command.base_node, &command.base) {
        (Some(name), _) => in_chain(&top, |node| node.name() == name)
            .ok_or_else(|| fail!("'{name}' is not in this backing file chain"))?,
        (_, Some(file)) => {
            by_file(&top, file).ok_or_else(|| fail!("Can't find '{file}' in the backing chain"))?
        }
        _ => in_chain(&top, |node| node.filtered().is_none() && node.backing().is_none())
            .ok_or_else(|| fail!("There is no backimg image"))?,
    };
    if Arc::ptr_eq(&top, &base) {
        bail!("cannot commit an image into itself");
    }
    let is_active = Arc::ptr_eq(&top, &shown) || Arc::ptr_eq(&top, &active);
    let setup = setup(&graph, Kind::Commit, command.job, &active)?;
    let on_error = policy(command.on_error);
    if is_active {
        if command.backing_file.is_some() {
            bail!("'backing-file' specified, but 'top' is the active layer");
        }
        let spec = MirrorSpec {
            setup,
            source: active,
            target: base.clone(),
            sync: MirrorSync::Top(Some(base)),
            granularity: 65536,
            on_source_error: on_error,
            on_target_error: on_error,
            unmap: true,
            replaces: None,
            backing: BackingMode::Leave,
        };
        return there(&call, async move { graph.jobs.mirror(&graph, spec).await.map(drop) }).await;
    }
    let overlay = in_chain(&shown, |node| node.backing().is_some_and(|below| Arc::ptr_eq(&below, &top)))
        .ok_or_else(|| fail!("Could not find overlay image for {}:", top.filename()))?;
    let spec = jobs::CommitSpec { setup, overlay, top, base, backing_file: command.backing_file, on_error };
    there(&call, async move { graph.jobs.commit(&graph, spec).await.map(drop) }).await
}

fn granularity(given: Option<u32>, target: &Node) -> Result<u32> {
    match given.filter(|given| *given != 0) {
        Some(given) if !(512..=64 << 20).contains(&given) => {
            bail!("Parameter 'granularity' expects a value in range [512B, 64MB]")
        }
        Some(given) if !given.is_power_of_two() => bail!("Parameter 'granularity' expects a power of 2"),
        Some(given) => Ok(given),
        None => Ok(target.layer().info().cluster_size.map_or(65536, |size| size.clamp(4096, 65536)) as u32),
    }
}

fn mirror_sync(sync: MirrorSyncMode) -> Result<MirrorSync> {
    match sync {
        MirrorSyncMode::Full => Ok(MirrorSync::Full),
        MirrorSyncMode::Top => Ok(MirrorSync::Top(None)),
        MirrorSyncMode::None => Ok(MirrorSync::None),
        MirrorSyncMode::Incremental | MirrorSyncMode::DirtyBitmap => {
            bail!("Sync mode 'incremental' not supported")
        }
        MirrorSyncMode::Bitmap => bail!("Sync mode 'bitmap' not supported"),
    }
}

/// Makes (unless it exists) and opens the file that a disk is copied to.
async fn open_target(
    graph: &Graph,
    source: &Arc<Node>,
    file: &str,
    format: Option<&str>,
    existing: bool,
    below: Option<&Arc<Node>>,
    node_name: Option<&str>,
) -> Result<block::Pin> {
    let shown = source.skip_filters();
    let format = match format {
        Some(format) => Some(format.to_string()),
        None if existing => None,
        None => Some(shown.driver().name.to_string()),
    };
    if let Some(format) = &format
        && block::formats::find(format).is_none()
    {
        bail!("Unknown driver '{format}'");
    }
    if let (false, Some(format)) = (existing, &format) {
        let mut options = Options::new();
        options.set("size", source.size());
        if let Some(below) = below {
            options.set("backing_file", below.filename());
            options.set("backing_fmt", below.driver().name);
        }
        graph.create_image(file, format, options).await?;
    }
    let mut options = Options::json(json!({"filename": file, "discard": "unmap"}));
    if let Some(name) = node_name {
        options.set("node-name", name);
    }
    if let Some(format) = &format {
        options.set("driver", format.as_str());
        if block::formats::find(format).is_some_and(|driver| driver.backing) {
            options.set("backing", serde_json::Value::Null);
        }
    }
    let settings = Settings { cache: source.settings().cache, ..Settings::default() };
    graph.open(options, settings).await
}

async fn drive_mirror(call: Call, command: DriveMirror) -> Result<()> {
    let graph = graph(&call);
    let common = command.common;
    let source = root(&graph, &common.device)?;
    let mut sync = mirror_sync(common.sync)?;
    let below = source.skip_filters().backing();
    if matches!(sync, MirrorSync::Top(_)) && below.is_none() {
        sync = MirrorSync::Full;
    }
    if common.replaces.is_some() && command.node_name.is_none() {
        bail!("a node-name must be provided when replacing a named node of the graph");
    }
    let setup = setup(&graph, Kind::Mirror, common.job, &source)?;
    granularity(common.granularity, &source)?;
    there(&call, async move {
        let existing = command.mode == Some(NewImageMode::Existing);
        let stand_on = match &sync {
            MirrorSync::Full => None,
            MirrorSync::Top(_) => below,
            MirrorSync::None => Some(source.clone()),
        };
        let (format, name) = (command.format.as_deref(), command.node_name.as_deref());
        let target =
            open_target(&graph, &source, &common.target, format, existing, stand_on.as_ref(), name).await?;
        let backing = if existing { BackingMode::Header } else { BackingMode::Source };
        let spec = MirrorSpec {
            setup,
            granularity: granularity(common.granularity, &target)?,
            target: target.clone(),
            source,
            sync,
            on_source_error: policy(common.on_source_error),
            on_target_error: policy(common.on_target_error),
            unmap: command.unmap.unwrap_or(true),
            replaces: common.replaces,
            backing,
        };
        let started = graph.jobs.mirror(&graph, spec).await.map(drop);
        drop(target);
        if started.is_err() {
            graph.collect().await;
        }
        started
    })
    .await
}

async fn blockdev_mirror(call: Call, command: BlockdevMirror) -> Result<()> {
    let (graph, common) = (graph(&call), command.common);
    let source = root(&graph, &common.device)?;
    let target = root(&graph, &common.target)?;
    let spec = MirrorSpec {
        setup: setup(&graph, Kind::Mirror, common.job, &source)?,
        granularity: granularity(common.granularity, &target)?,
        source,
        target,
        sync: mirror_sync(common.sync)?,
        on_source_error: policy(common.on_source_error),
        on_target_error: policy(common.on_target_error),
        unmap: true,
        replaces: common.replaces,
        backing: BackingMode::Leave,
    };
    there(&call, async move { graph.jobs.mirror(&graph, spec).await.map(drop) }).await
}

fn backup_sync(
    source: &Arc<Node>,
    sync: MirrorSyncMode,
    bitmap: Option<String>,
    mode: Option<BitmapSyncMode>,
) -> Result<BackupSync> {
    let uses =
        matches!(sync, MirrorSyncMode::Incremental | MirrorSyncMode::Bitmap | MirrorSyncMode::DirtyBitmap);
    if uses {
        let Some(name) = bitmap else {
            bail!(
                "must provide a valid bitmap name for '{}' sync mode",
                if sync == MirrorSyncMode::Bitmap { "bitmap" } else { "incremental" }
            )
        };
        let shown = source.skip_filters();
        let found = shown.bitmaps().find(&name).ok_or_else(|| fail!("Bitmap '{name}' could not be found"))?;
        let mode = match (sync, mode) {
            (MirrorSyncMode::Bitmap, None) => bail!("Bitmap sync mode must be given when providing a bitmap"),
            (_, Some(BitmapSyncMode::Never)) => BitmapMode::Never,
            (_, Some(BitmapSyncMode::Always)) => BitmapMode::Always,
            _ => BitmapMode::OnSuccess,
        };
        return Ok(BackupSync::Bitmap(found, mode));
    }
    if bitmap.is_some() {
        bail!("Bitmap given, but sync mode does not use it");
    }
    Ok(match sync {
        MirrorSyncMode::Top if source.skip_filters().child(Role::BACKING).is_some() => BackupSync::Top,
        MirrorSyncMode::None => BackupSync::None,
        _ => BackupSync::Full,
    })
}

/// A `drive-backup` with its target open.
pub(super) async fn drive_backup_action(call: &Call, command: DriveBackup) -> Result<Action> {
    let graph = graph(call);
    let common = command.common;
    let source = root(&graph, &common.device)?.skip_filters();
    let at_device = root(&graph, &common.device)?;
    let setup = setup(&graph, Kind::Backup, common.job, &at_device)?;
    let sync = backup_sync(&source, common.sync, common.bitmap, common.bitmap_mode)?;
    there(call, async move {
        let existing = command.mode == Some(NewImageMode::Existing);
        let below = match &sync {
            BackupSync::Top => source.backing(),
            BackupSync::None => Some(source.clone()),
            _ => None,
        };
        let format = command.format.as_deref();
        let target =
            open_target(&graph, &source, &common.target, format, existing, below.as_ref(), None).await?;
        if let (BackupSync::None, true) = (&sync, target.driver().backing) {
            graph.set_backing(&target, Some(&source))?;
        }
        let spec = BackupSpec {
            setup,
            target: target.clone(),
            source,
            sync,
            compress: false,
            on_source_error: policy(common.on_source_error),
            on_target_error: policy(common.on_target_error),
            pin: Some(target),
        };
        Ok(Action::Backup(Box::new(spec)))
    })
    .await
}

async fn drive_backup(call: Call, command: DriveBackup) -> Result<()> {
    let graph = graph(&call);
    let action = drive_backup_action(&call, command).await?;
    there(&call, async move { graph.transaction(vec![action]).await }).await
}

pub(super) fn blockdev_backup_action(call: &Call, command: BlockdevBackup) -> Result<Action> {
    let (graph, common) = (graph(call), command.common);
    let source = root(&graph, &common.device)?;
    let target = root(&graph, &common.target)?;
    let setup = setup(&graph, Kind::Backup, common.job, &source)?;
    let sync = backup_sync(&source, common.sync, common.bitmap, common.bitmap_mode)?;
    Ok(Action::Backup(Box::new(BackupSpec {
        setup,
        source,
        target,
        sync,
        compress: false,
        on_source_error: policy(common.on_source_error),
        on_target_error: policy(common.on_target_error),
        pin: None,
    })))
}

async fn blockdev_backup(call: Call, command: BlockdevBackup) -> Result<()> {
    let (graph, action) = (graph(&call), blockdev_backup_action(&call, command)?);
    there(&call, async move { graph.transaction(vec![action]).await }).await
}

async fn set_speed(call: Call, command: BlockJobSetSpeed) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    let Ok(speed) = u64::try_from(command.speed) else { bail!("Invalid parameter 'speed'") };
    job.set_speed(speed)
}

async fn cancel(call: Call, command: BlockJobCancel) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    let force = command.force.unwrap_or(false);
    call.after_reply(move || {
        // Refused only when the job has ended meanwhile.
        let _ = job.cancel(force);
    });
    Ok(())
}

async fn pause(call: Call, command: BlockJobPause) -> Result<()> {
    graph(&call).jobs.block_job(&command.device)?.pause()
}

async fn resume(call: Call, command: BlockJobResume) -> Result<()> {
    graph(&call).jobs.block_job(&command.device)?.resume()
}

async fn complete(call: Call, command: BlockJobComplete) -> Result<()> {
    graph(&call).jobs.block_job(&command.device)?.complete()
}

async fn finalize(call: Call, command: BlockJobFinalize) -> Result<()> {
    graph(&call).jobs.block_job(&command.id)?.finalize()
}

async fn dismiss(call: Call, command: BlockJobDismiss) -> Result<()> {
    graph(&call).jobs.block_job(&command.id)?;
    graph(&call).jobs.dismiss(&command.id)
}

async fn job_pause(call: Call, command: JobPause) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.pause()
}

async fn job_resume(call: Call, command: JobResume) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.resume()
}

async fn job_cancel(call: Call, command: JobCancel) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.cancel(true)
}

async fn job_complete(call: Call, command: JobComplete) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.complete()
}

async fn job_finalize(call: Call, command: JobFinalize) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.finalize()
}

async fn job_dismiss(call: Call, command: JobDismiss) -> Result<()> {
    graph(&call).jobs.dismiss(&command.id)
}

async fn query_block_jobs(call: Call, _: QueryBlockJobs) -> Result<Vec<BlockJobInfo>> {
    let tell = |info: jobs::Info| BlockJobInfo {
        kind: info.progress.kind.as_str().into(),
        device: info.progress.id,
        len: info.progress.len as i64,
        offset: info.progress.offset as i64,
        busy: info.busy,
        paused: info.paused,
        speed: info.progress.speed as i64,
        io_status: match info.io_status {
            IoStatus::Ok => BlockDeviceIoStatus::Ok,
            IoStatus::Failed => BlockDeviceIoStatus::Failed,
            IoStatus::Nospace => BlockDeviceIoStatus::Nospace,
        },
        ready: info.ready,
        status: info.status.as_str().into(),
        auto_finalize: info.auto_finalize,
        auto_dismiss: info.auto_dismiss,
        error: info.error,
    };
    Ok(graph(&call)
        .jobs
        .list()
        .iter()
        .map(|job| job.info())
        .filter(|info| info.block_job)
        .map(tell)
        .collect())
}

async fn query_jobs(call: Call, _: QueryJobs) -> Result<Vec<JobInfo>> {
    let tell = |info: jobs::Info| JobInfo {
        id: info.progress.id,
        kind: info.progress.kind.as_str().into(),
        status: info.status.as_str().into(),
        current_progress: info.progress.offset as i64,
        total_progress: info.progress.len as i64,
        error: info.error,
    };
    Ok(graph(&call).jobs.list().iter().map(|job| tell(job.info())).collect())
}
