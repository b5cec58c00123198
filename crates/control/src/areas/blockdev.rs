//! Block nodes, snapshots, dirty bitmaps, exports.

use crate::{Call, Routes};
use base::{Failure, Result, bail, fail};
use block::export::{ExportSetup, Listen, Server};
use block::transaction::{Action, BitmapName, SnapshotSync};
use block::{Fut, Options, jobs, query};
use qapi::{Map, Value};
use schema::block::BlockDeviceInfo;
use schema::blockdev::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(blockdev_add);
    routes.add(blockdev_del);
    routes.add(blockdev_reopen);
    routes.add(blockdev_create);
    routes.add(query_named_block_nodes);
    routes.add(block_resize);
    routes.add(block_set_write_threshold);
    routes.add(snapshot_sync);
    routes.add(snapshot);
    routes.add(snapshot_internal);
    routes.add(snapshot_delete_internal);
    routes.add(bitmap_add);
    routes.add(bitmap_remove);
    routes.add(bitmap_clear);
    routes.add(bitmap_enable);
    routes.add(bitmap_disable);
    routes.add(bitmap_merge);
    routes.add(transaction);
    routes.add(nbd_server_start);
    routes.add(nbd_server_add);
    routes.add(nbd_server_remove);
    routes.add(nbd_server_stop);
}

pub(super) fn graph(call: &Call) -> Arc<block::Graph> {
    call.world().host.graph.clone()
}

/// Runs `work` on the block layer's own thread, where what it starts goes on.
pub(super) async fn there<T: Send + 'static>(
    call: &Call,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let handle = graph(call).main_thread().handle().clone();
    handle.spawn(work).await.map_err(|_| fail!("The block layer failed"))?
}

async fn blockdev_add(call: Call, command: BlockdevAdd) -> Result<()> {
    let graph = graph(&call);
    let options = Options::crumple(command.options)?;
    let at = graph.clone();
    if let (Some(Value::Object(first)), 1) = (options.get("options"), options.0.len()) {
        return first_form(&call, first.clone()).await;
    }
    there(&call, async move { at.add(options).await.map(drop) }).await
}

/// The form of 2015: `options` with an `id` that names a back end.
async fn first_form(call: &Call, options: Map) -> Result<()> {
    let at = graph(call);
    let mut options = Options::crumple(options)?;
    let id = options.take_str("id")?;
    match id {
        None if !options.contains("node-name") => bail!("Block device needs an ID"),
        None => there(call, async move { at.add(options).await.map(drop) }).await,
        Some(id) => there(call, async move { at.open_drive(&id, options.0).await.map(drop) }).await,
    }
}

async fn blockdev_del(call: Call, command: BlockdevDel) -> Result<()> {
    let at = graph(&call);
    there(&call, async move { at.delete(&command.node_name).await }).await
}

async fn blockdev_reopen(call: Call, command: BlockdevReopen) -> Result<()> {
    let at = graph(&call);
    there(&call, async move {
        for options in command.options {
            at.reopen(Options::crumple(options)?).await?;
        }
        Ok(())
    })
    .await
}

/// The body of a `blockdev-create` job.
struct Creation {
    graph: Arc<block::Graph>,
    options: Option<Options>,
    why: Option<Failure>,
}

impl jobs::Body for Creation {
    fn run<'a>(&'a mut self, job: &'a jobs::Job) -> Fut<'a, std::io::Result<()>> {
        Box::pin(async move {
            job.set_len(1);
            let Some(options) = self.options.take() else { return Ok(()) };
            match self.graph.create(options).await {
                Ok(()) => job.advance(1),
                // Told by `commit`, which can say it in words.
                Err(why) => self.why = Some(why),
            }
            Ok(())
        })
    }

    fn commit<'a>(&'a mut self, _job: &'a jobs::Job) -> Fut<'a, Result<()>> {
        let result = self.why.take().map_or(Ok(()), Err);
        Box::pin(std::future::ready(result))
    }
}

async fn blockdev_create(call: Call, command: BlockdevCreate) -> Result<()> {
    let graph = graph(&call);
    let options = Options(command.options);
    let name = options.get_str("driver").ok_or_else(|| fail!("Parameter 'driver' is missing"))?;
    let Some(driver) = block::formats::find(name) else {
        bail!("Parameter 'driver' does not accept value '{name}'")
    };
    if driver.create.is_none() {
        bail!("Driver does not support blockdev-create");
    }
    let setup = jobs::Setup {
        auto_dismiss: false,
        block_job: false,
        ..jobs::Setup::new(jobs::Kind::Create, command.job_id)
    };
    let body = Creation { graph: graph.clone(), options: Some(options), why: None };
    graph.jobs.start(setup, body).map(drop)
}

async fn query_named_block_nodes(call: Call, command: QueryNamedBlockNodes) -> Result<Vec<BlockDeviceInfo>> {
    let nodes: Vec<query::NodeInfo> = graph(&call).query_nodes(command.flat.unwrap_or(false)).await;
    Ok(nodes.into_iter().map(super::block::node).collect())
}

async fn block_resize(call: Call, command: BlockResize) -> Result<()> {
    let at = graph(&call);
    let node = at.lookup(command.device.as_deref(), command.node_name.as_deref())?;
    let Ok(size) = u64::try_from(command.size) else { bail!("Parameter 'size' expects a >0 size") };
    there(&call, async move { at.resize(&node, size).await }).await
}

async fn block_set_write_threshold(call: Call, command: BlockSetWriteThreshold) -> Result<()> {
    let name = command.node_name;
    let node = graph(&call).find(&name).ok_or_else(|| fail!("Device '{name}' not found"))?;
    node.set_write_threshold(command.write_threshold);
    Ok(())
}

async fn perform(call: &Call, actions: Vec<Action>) -> Result<()> {
    let at = graph(call);
    there(call, async move { at.transaction(actions).await }).await
}

fn sync_spec(command: BlockdevSnapshotSync) -> Action {
    Action::SnapshotSync(SnapshotSync {
        device: command.device,
        node_name: command.node_name,
        file: command.snapshot_file,
        snapshot_node_name: command.snapshot_node_name,
        format: command.format,
        existing: command.mode == Some(NewImageMode::Existing),
    })
}

async fn snapshot_sync(call: Call, command: BlockdevSnapshotSync) -> Result<()> {
    perform(&call, vec![sync_spec(command)]).await
}

async fn snapshot(call: Call, command: BlockdevSnapshot) -> Result<()> {
    perform(&call, vec![Action::Snapshot { node: command.node, overlay: command.overlay }]).await
}

fn internal(call: &Call, device: String, name: String) -> Action {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let snapshot = block::Snapshot {
        name,
        date_sec: now.as_secs() as u32,
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: graph(call).clock.now(),
        ..block::Snapshot::default()
    };
    Action::Internal { device, snapshot }
}

async fn snapshot_internal(call: Call, command: BlockdevSnapshotInternalSync) -> Result<()> {
    let action = internal(&call, command.device, command.name);
    perform(&call, vec![action]).await
}

async fn snapshot_delete_internal(
    call: Call,
    command: BlockdevSnapshotDeleteInternalSync,
) -> Result<SnapshotInfo> {
    let at = graph(&call);
    let gone = there(&call, async move {
        at.delete_internal(&command.device, command.id.as_deref(), command.name.as_deref()).await
    })
    .await?;
    Ok(SnapshotInfo {
        id: gone.id,
        name: gone.name,
        vm_state_size: gone.vm_state_size as i64,
        date_sec: i64::from(gone.date_sec),
        date_nsec: i64::from(gone.date_nsec),
        vm_clock_sec: (gone.vm_clock_nsec / 1_000_000_000) as i64,
        vm_clock_nsec: (gone.vm_clock_nsec % 1_000_000_000) as i64,
        icount: gone.icount.map(|count| count as i64),
    })
}

fn add_action(command: BlockDirtyBitmapAdd) -> Action {
    Action::BitmapAdd {
        at: BitmapName { node: command.node, name: command.name },
        granularity: command.granularity,
        persistent: command.persistent.unwrap_or(false),
        disabled: command.disabled.unwrap_or(false),
    }
}

async fn bitmap_add(call: Call, command: BlockDirtyBitmapAdd) -> Result<()> {
    perform(&call, vec![add_action(command)]).await
}

async fn bitmap_remove(call: Call, command: BlockDirtyBitmapRemove) -> Result<()> {
    perform(&call, vec![Action::BitmapRemove(BitmapName { node: command.node, name: command.name })]).await
}

async fn bitmap_clear(call: Call, command: BlockDirtyBitmapClear) -> Result<()> {
    perform(&call, vec![Action::BitmapClear(BitmapName { node: command.node, name: command.name })]).await
}

async fn bitmap_enable(call: Call, command: BlockDirtyBitmapEnable) -> Result<()> {
    perform(&call, vec![Action::BitmapEnable(BitmapName { node: command.node, name: command.name }, true)])
        .await
}

async fn bitmap_disable(call: Call, command: BlockDirtyBitmapDisable) -> Result<()> {
    perform(&call, vec![Action::BitmapEnable(BitmapName { node: command.node, name: command.name }, false)])
        .await
}

fn merge_action(command: BlockDirtyBitmapMerge) -> Result<Action> {
    let mut sources = Vec::new();
    for value in command.bitmaps {
        sources.push(match value {
            Value::String(name) => BitmapName { node: command.node.clone(), name },
            Value::Object(map) => {
                let mut options = Options(map);
                BitmapName { node: options.need_str("node")?, name: options.need_str("name")? }
            }
            _ => bail!("Invalid parameter type for 'bitmaps', expected: string or object"),
        });
    }
    Ok(Action::BitmapMerge { target: BitmapName { node: command.node, name: command.target }, sources })
}

async fn bitmap_merge(call: Call, command: BlockDirtyBitmapMerge) -> Result<()> {
    let action = merge_action(command)?;
    perform(&call, vec![action]).await
}

async fn transaction(call: Call, command: Transaction) -> Result<()> {
    if let Some(mode) = command.properties.as_ref().and_then(|map| map.get("completion-mode"))
        && mode != "individual"
    {
        bail!("completion-mode '{}' is not supported", mode.as_str().unwrap_or_default());
    }
    let mut actions = Vec::new();
    for TransactionAction { kind, data } in command.actions {
        let name = |data: Map| {
            let mut options = Options(data);
            Ok::<_, Failure>(BitmapName { node: options.need_str("node")?, name: options.need_str("name")? })
        };
        actions.push(match kind.as_str() {
            "blockdev-snapshot-sync" => sync_spec(qapi::arguments(data)?),
            "blockdev-snapshot" => {
                let command: BlockdevSnapshot = qapi::arguments(data)?;
                Action::Snapshot { node: command.node, overlay: command.overlay }
            }
            "blockdev-snapshot-internal-sync" => {
                let command: BlockdevSnapshotInternalSync = qapi::arguments(data)?;
                internal(&call, command.device, command.name)
            }
            "drive-backup" => super::blockjobs::drive_backup_action(&call, qapi::arguments(data)?).await?,
            "blockdev-backup" => super::blockjobs::blockdev_backup_action(&call, qapi::arguments(data)?)?,
            "block-dirty-bitmap-add" => add_action(qapi::arguments(data)?),
            "block-dirty-bitmap-remove" => Action::BitmapRemove(name(data)?),
            "block-dirty-bitmap-clear" => Action::BitmapClear(name(data)?),
            "block-dirty-bitmap-enable" => Action::BitmapEnable(name(data)?, true),
            "block-dirty-bitmap-disable" => Action::BitmapEnable(name(data)?, false),
            "block-dirty-bitmap-merge" => merge_action(qapi::arguments(data)?)?,
            "abort" => Action::Abort,
            other => bail!("Invalid parameter '{other}'"),
        });
    }
    perform(&call, actions).await
}

fn listen_on(addr: Map) -> Result<Listen> {
    let mut addr = Options(addr);
    let kind = addr.need_str("type")?;
    let mut data = addr.take_table("data")?.unwrap_or(addr);
    match kind.as_str() {
        "inet" => {
            let number = |text: &str| text.parse::<u16>().map_err(|_| fail!("Invalid port '{text}'"));
            let (host, port) = (data.need_str("host")?, data.need_str("port")?);
            let port = number(&port)?;
            let to = data.take_str("to")?.map_or(Ok(port), |to| number(&to))?;
            Ok(Listen::Tcp { host, port, to })
        }
        "unix" => Ok(Listen::Unix(data.need_str("path")?)),
        other => bail!("Parameter 'type' does not accept value '{other}'"),
    }
}

async fn nbd_server_start(call: Call, command: NbdServerStart) -> Result<()> {
    if command.tls_creds.is_some() || command.tls_authz.is_some() {
        bail!("TLS is not supported by the NBD server");
    }
    let (at, listen) = (graph(&call), listen_on(command.addr)?);
    let limit = command.max_connections.unwrap_or(100) as usize;
    there(&call, async move { Server::start(&at, listen, limit).await.map(drop) }).await
}

pub(super) fn nbd_server(call: &Call) -> Result<Arc<Server>> {
    graph(call).exports.server.lock().clone().ok_or_else(|| fail!("NBD server not running"))
}

async fn nbd_server_add(call: Call, command: NbdServerAdd) -> Result<()> {
    let (graph, server) = (graph(&call), nbd_server(&call)?);
    let name = command.name.unwrap_or_else(|| command.device.clone());
    let (backend, owns_backend) = match graph.backend(&command.device) {
        Some(backend) => (backend, false),
        None => {
            let node = graph.lookup(None, Some(&command.device));
            node.map_err(|_| fail!("Cannot find device='{0}' nor node-name='{0}'", command.device))?;
            let made = graph.device_drive(&command.device)?;
            (made.ok_or_else(|| Failure::device_not_found(&command.device))?, true)
        }
    };
    if !backend.is_inserted() {
        bail!("Device '{}' has no medium", command.device);
    }
    let mut bitmaps = Vec::new();
    if let Some(bitmap) = command.bitmap {
        let found = backend.node().and_then(|node| node.skip_filters().bitmaps().find(&bitmap));
        let found = found.ok_or_else(|| fail!("Bitmap '{bitmap}' is not found"))?;
        if found.is_busy() {
            bail!("Bitmap '{bitmap}' is currently in use by another operation and cannot be used");
        }
        bitmaps.push(found);
    }
    let setup = ExportSetup {
        id: name.clone(),
        name,
        description: command.description,
        writable: command.writable.unwrap_or(false) && !backend.is_read_only(),
        backend,
        bitmaps,
        depth: false,
        owns_backend,
    };
    let export = server.add(setup)?;
    export.setup.bitmaps.iter().for_each(|bitmap| bitmap.set_busy(true));
    Ok(())
}

async fn nbd_server_remove(call: Call, command: NbdServerRemove) -> Result<()> {
    let server = nbd_server(&call)?;
    let force = command.mode == Some(BlockExportRemoveMode::Hard);
    there(&call, async move { server.remove(&command.name, force).await }).await
}

async fn nbd_server_stop(call: Call, _: NbdServerStop) -> Result<()> {
    match nbd_server(&call) {
        Ok(server) => {
            there(&call, async move {
                server.stop().await;
                Ok(())
            })
            .await
        }
        Err(_) => Ok(()),
    }
}
