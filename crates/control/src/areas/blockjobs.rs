//! Starting and steering block jobs.

use super::blockdev::{graph, there};
use crate::{Call, Routes};
use base::{Class, Failure, Result, bail, fail};
use block::jobs::{self, BackingMode, Kind, MirrorSpec, MirrorSync, Setup};
use block::{Graph, IoStatus, Node, OnError, Options, Perm, Settings};
use schema::block::BlockDeviceIoStatus;
use schema::blockjobs::*;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::Notify;

pub fn route(routes: &mut Routes) {
    routes.add(block_stream);
    routes.add(block_commit);
    routes.add(drive_mirror);
    routes.add(blockdev_mirror);
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

pub(super) fn policy(given: Option<BlockdevOnError>) -> OnError {
    match given {
        None | Some(BlockdevOnError::Report) => OnError::Report,
        Some(BlockdevOnError::Ignore) => OnError::Ignore,
        Some(BlockdevOnError::Enospc | BlockdevOnError::Auto) => OnError::Enospc,
        Some(BlockdevOnError::Stop) => OnError::Stop,
    }
}

/// How a job is to be. It sets to work once the command is answered.
pub(super) fn setup(call: &Call, kind: Kind, job: JobOptions, node: &Arc<Node>) -> Result<Setup> {
    let graph = graph(call);
    let device = || {
        let at =
            graph.backends().into_iter().find(|one| one.node().is_some_and(|root| Arc::ptr_eq(&root, node)));
        at.map(|backend| backend.name().to_string()).unwrap_or_default()
    };
    let id = job.job_id.unwrap_or_else(device);
    graph.jobs.check_id(&id)?;
    let speed = speed(job.speed.unwrap_or(0))?;
    let after = Arc::new(Notify::new());
    let answered = after.clone();
    call.after_reply(move || answered.notify_one());
    Ok(Setup {
        speed,
        after: Some(after),
        auto_finalize: job.auto_finalize.unwrap_or(true),
        auto_dismiss: job.auto_dismiss.unwrap_or(true),
        thread: node.thread(),
        ..Setup::new(kind, id)
    })
}

fn speed(given: i64) -> Result<u64> {
    u64::try_from(given).map_err(|_| fail!("Parameter 'speed' expects a non-negative value"))
}

pub(super) fn root(graph: &Graph, device: &str) -> Result<Arc<Node>> {
    graph.lookup(Some(device), Some(device))
}

/// As [`root`], of a node that only back ends use.
pub(super) fn topmost(graph: &Graph, device: &str) -> Result<Arc<Node>> {
    let node = root(graph, device)?;
    node.check_root()?;
    Ok(node)
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

/// The image that `top` stands on, directly or not, of that file name; a relative one is seen from
/// the image above.
fn by_file(top: &Arc<Node>, file: &str) -> Option<Arc<Node>> {
    let mut above = top.skip_filters();
    while let Some(image) = above.backing().map(|below| below.skip_filters()) {
        let place = image.place();
        let named = place == file || image.filename() == file;
        let same = || {
            let seen = block::filename::combine(&above.place(), file).ok()?;
            Some(std::fs::canonicalize(&place).ok()? == std::fs::canonicalize(seen).ok()?)
        };
        if named || same() == Some(true) {
            return Some(image);
        }
        above = image;
    }
    None
}

fn exclusive(one: (&str, &Option<String>), other: (&str, &Option<String>)) -> Result<()> {
    if one.1.is_some() && other.1.is_some() {
        bail!("'{}' and '{}' cannot be specified at the same time", one.0, other.0);
    }
    Ok(())
}

/// Down to which node (and not this one) is streamed.
fn stream_base(graph: &Graph, top: &Arc<Node>, command: &BlockStream) -> Result<Option<Arc<Node>>> {
    let (base, node) = (("base", &command.base), ("base-node", &command.base_node));
    let bottom = ("bottom", &command.bottom);
    exclusive(base, node)?;
    exclusive(base, bottom)?;
    exclusive(bottom, node)?;
    let under = top.filtered().or_else(|| top.backing());
    if let Some(file) = &command.base {
        let found = by_file(top, file);
        return found.ok_or_else(|| fail!("Can't find '{file}' in the backing chain")).map(Some);
    }
    if let Some(name) = &command.base_node {
        graph.lookup(None, Some(name))?;
        let found = under.and_then(|below| in_chain(&below, |node| node.name() == name));
        let missing = || fail!("Node '{name}' is not a backing image of '{}'", command.device);
        return found.ok_or_else(missing).map(Some);
    }
    let Some(name) = &command.bottom else { return Ok(None) };
    let last = graph.lookup(None, Some(name))?;
    if last.driver().kind == block::Kind::Filter {
        bail!("Node '{name}' is a filter, use a non-filter node as 'bottom'");
    }
    if in_chain(top, |node| Arc::ptr_eq(node, &last)).is_none() {
        bail!("Node '{name}' is not in a chain starting from '{}'", command.device);
    }
    Ok(last.backing())
}

async fn block_stream(call: Call, command: BlockStream) -> Result<()> {
    let graph = graph(&call);
    let top = root(&graph, &command.device)?;
    let base = stream_base(&graph, &top, &command)?;
    let setup = setup(&call, Kind::Stream, command.job, &top)?;
    let on_error = policy(command.on_error);
    let (backing_file, filter_node_name) = (command.backing_file, command.filter_node_name);
    let spec = jobs::StreamSpec { setup, top, base, backing_file, on_error, filter_node_name };
    there(&call, async move { graph.jobs.stream(&graph, spec).await.map(drop) }).await
}

async fn block_commit(call: Call, command: BlockCommit) -> Result<()> {
    let graph = graph(&call);
    let lookup = root(&graph, &command.device);
    let active = lookup
        .map_err(|_| Failure::of(Class::DeviceNotFound, format!("Device '{}' not found", command.device)))?;
    active.check_root()?;
    if command.top_node.is_some() && command.top.is_some() {
        bail!("'top-node' and 'top' are mutually exclusive");
    }
    if command.base_node.is_some() && command.base.is_some() {
        bail!("'base-node' and 'base' are mutually exclusive");
    }
    for name in [&command.top_node, &command.base_node].into_iter().flatten() {
        graph.lookup(None, Some(name))?;
    }
    let shown = active.skip_filters();
    let top = match (&command.top_node, &command.top) {
        (Some(name), _) => in_chain(&active, |node| node.name() == name)
            .ok_or_else(|| fail!("'{name}' is not in this backing file chain"))?,
        (_, Some(file)) if shown.place() == *file || shown.filename() == *file => active.clone(),
        (_, Some(file)) => by_file(&shown, file).ok_or_else(|| fail!("Top image file {file} not found"))?,
        _ => active.clone(),
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
    if Arc::ptr_eq(&top, &base) || Arc::ptr_eq(&top.skip_filters(), &base) {
        bail!("cannot commit an image into itself");
    }
    let mut node = Some(top.clone());
    while let Some(one) = node {
        one.check_busy()?;
        node = if Arc::ptr_eq(&one, &base) { None } else { one.filtered().or_else(|| one.backing()) };
    }
    let is_active = Arc::ptr_eq(&top.skip_filters(), &shown);
    let written = top.parents().iter().any(|edge| edge.perm().0.contains(Perm::WRITE));
    let setup = setup(&call, Kind::Commit, command.job, &active)?;
    let on_error = policy(command.on_error);
    if is_active || written {
        if command.backing_file.is_some() {
            let why = if is_active { "is the active layer" } else { "has a writer on it" };
            bail!("'backing-file' specified, but 'top' {why}");
        }
        let spec = MirrorSpec {
            sync: MirrorSync::Top(Some(base.clone())),
            on_source_error: on_error,
            on_target_error: on_error,
            filter_node_name: command.filter_node_name,
            ..MirrorSpec::new(setup, top, base)
        };
        return there(&call, async move { graph.jobs.mirror(&graph, spec).await.map(drop) }).await;
    }
    let overlay = in_chain(&shown, |node| node.backing().is_some_and(|below| Arc::ptr_eq(&below, &top)))
        .ok_or_else(|| fail!("Could not find overlay image for {}:", top.filename()))?;
    let (backing_file, filter_node_name) = (command.backing_file, command.filter_node_name);
    let spec =
        jobs::CommitSpec { setup, active, overlay, top, base, backing_file, on_error, filter_node_name };
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

fn buffer(given: Option<i64>) -> Result<u64> {
    u64::try_from(given.unwrap_or(0)).map_err(|_| fail!("Invalid parameter 'buf-size'"))
}

fn mirror_sync(sync: MirrorSyncMode) -> Result<MirrorSync> {
    match sync {
        MirrorSyncMode::Full => Ok(MirrorSync::Full),
        MirrorSyncMode::Top => Ok(MirrorSync::Top(None)),
        MirrorSyncMode::None => Ok(MirrorSync::None),
        MirrorSyncMode::Incremental => bail!("Sync mode 'incremental' not supported"),
        MirrorSyncMode::DirtyBitmap => bail!("Sync mode 'dirty-bitmap' not supported"),
        MirrorSyncMode::Bitmap => bail!("Sync mode 'bitmap' not supported"),
    }
}

/// Makes (unless it exists) and opens the file that a disk is copied to.
pub(super) async fn open_target(
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
        bail!("Invalid block format '{format}'");
    }
    if let (false, Some(format)) = (existing, &format) {
        let mut options = Options::new();
        options.set("size", source.size());
        if let Some(below) = below {
            options.set("backing_file", below.filename());
            options.set("backing_fmt", below.driver().name);
        }
        graph.create_image_told(file, format, options).await?;
    }
    let mut options = Options::json(json!({"filename": file, "discard": "unmap"}));
    if let Some(name) = node_name {
        options.set("node-name", name);
    }
    // What it stands on may come to be only before the switch.
    if format.as_ref().is_none_or(|format| block::formats::find(format).is_some_and(|driver| driver.backing))
    {
        options.set("backing", serde_json::Value::Null);
    }
    if let Some(format) = &format {
        options.set("driver", format.as_str());
    }
    let settings = Settings { cache: source.settings().cache, ..Settings::default() };
    graph.open(options, settings).await
}

async fn drive_mirror(call: Call, command: DriveMirror) -> Result<()> {
    let (graph, common) = (graph(&call), command.common);
    let source = topmost(&graph, &common.device)?;
    let sync = mirror_sync(common.sync)?;
    let below = source.skip_filters().backing();
    if common.replaces.is_some() && command.node_name.is_none() {
        bail!("a node-name must be provided when replacing a named node of the graph");
    }
    let setup = setup(&call, Kind::Mirror, common.job, &source)?;
    granularity(common.granularity, &source)?;
    let buf_size = buffer(common.buf_size)?;
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
            granularity: granularity(common.granularity, &target)?,
            sync,
            on_source_error: policy(common.on_source_error),
            on_target_error: policy(common.on_target_error),
            unmap: command.unmap.unwrap_or(true),
            replaces: common.replaces,
            backing,
            blank: !existing && target.layer().zero_initialised(),
            write_blocking: common.copy_mode == Some(MirrorCopyMode::WriteBlocking),
            buf_size,
            ..MirrorSpec::new(setup, source, target.clone())
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
    let source = topmost(&graph, &common.device)?;
    let target = root(&graph, &common.target)?;
    let setup = setup(&call, Kind::Mirror, common.job, &source)?;
    let spec = MirrorSpec {
        granularity: granularity(common.granularity, &target)?,
        sync: mirror_sync(common.sync)?,
        on_source_error: policy(common.on_source_error),
        on_target_error: policy(common.on_target_error),
        replaces: common.replaces,
        write_blocking: common.copy_mode == Some(MirrorCopyMode::WriteBlocking),
        buf_size: buffer(common.buf_size)?,
        filter_node_name: command.filter_node_name,
        ..MirrorSpec::new(setup, source, target)
    };
    there(&call, async move { graph.jobs.mirror(&graph, spec).await.map(drop) }).await
}

async fn set_speed(call: Call, command: BlockJobSetSpeed) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    job.set_speed(speed(command.speed)?)
}

async fn cancel(call: Call, command: BlockJobCancel) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    cancel_after_reply(&call, job, command.force.unwrap_or(false))
}

fn cancel_after_reply(call: &Call, job: Arc<jobs::Job>, force: bool) -> Result<()> {
    job.check_cancel(force)?;
    job.show_running();
    call.after_reply(move || {
        // Refused only when the job has ended meanwhile.
        let _ = job.cancel(force);
    });
    Ok(())
}

/// No error where it is paused already, as the seed has it (`job-pause` is stricter).
async fn pause(call: Call, command: BlockJobPause) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    if job.is_user_paused() { Ok(()) } else { job.pause() }
}

/// No error where it is not paused (`job-resume` is stricter).
async fn resume(call: Call, command: BlockJobResume) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.device)?;
    if job.is_user_paused() { resume_after_reply(&call, job) } else { Ok(()) }
}

/// Shown as running at once; what it does then is told after the reply.
fn resume_after_reply(call: &Call, job: Arc<jobs::Job>) -> Result<()> {
    job.unpause()?;
    call.after_reply(move || job.wake());
    Ok(())
}

async fn complete(call: Call, command: BlockJobComplete) -> Result<()> {
    complete_after_reply(&call, graph(&call).jobs.block_job(&command.device)?)
}

fn complete_after_reply(call: &Call, job: Arc<jobs::Job>) -> Result<()> {
    job.check_complete()?;
    call.after_reply(move || {
        // Refused only when the job is no longer ready.
        let _ = job.complete();
    });
    Ok(())
}

async fn finalize(call: Call, command: BlockJobFinalize) -> Result<()> {
    let job = graph(&call).jobs.block_job(&command.id)?;
    finish(&job).await
}

/// Answered when the job has concluded.
async fn finish(job: &jobs::Job) -> Result<()> {
    job.finalize()?;
    job.concluded().await;
    Ok(())
}

async fn dismiss(call: Call, command: BlockJobDismiss) -> Result<()> {
    graph(&call).jobs.block_job(&command.id)?;
    graph(&call).jobs.dismiss(&command.id)
}

async fn job_pause(call: Call, command: JobPause) -> Result<()> {
    graph(&call).jobs.get(&command.id)?.pause()
}

async fn job_resume(call: Call, command: JobResume) -> Result<()> {
    resume_after_reply(&call, graph(&call).jobs.get(&command.id)?)
}

async fn job_cancel(call: Call, command: JobCancel) -> Result<()> {
    cancel_after_reply(&call, graph(&call).jobs.get(&command.id)?, true)
}

async fn job_complete(call: Call, command: JobComplete) -> Result<()> {
    complete_after_reply(&call, graph(&call).jobs.get(&command.id)?)
}

async fn job_finalize(call: Call, command: JobFinalize) -> Result<()> {
    let job = graph(&call).jobs.get(&command.id)?;
    finish(&job).await
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
        actively_synced: info.synced,
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
