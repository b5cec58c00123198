//! Snapshots, dirty bitmaps, transactions.

use super::blockdev::{graph, there};
use crate::{Call, Routes};
use base::{Failure, Result, bail};
use block::transaction::{Action, BitmapName, SnapshotSync};
use block::{Options, Origin, jobs};
use qapi::{Map, Value};
use schema::blockjobs::NewImageMode;
use schema::snapshot::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
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
    routes.add(bitmap_sha256);
    routes.add(transaction);
}

pub(super) async fn perform(call: &Call, actions: Vec<Action>) -> Result<()> {
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
    });
    gone.await.map(told)
}

/// A snapshot inside of an image, as clients are told of it.
pub(super) fn told(snapshot: block::Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: snapshot.id,
        name: snapshot.name,
        vm_state_size: snapshot.vm_state_size as i64,
        date_sec: i64::from(snapshot.date_sec),
        date_nsec: i64::from(snapshot.date_nsec),
        vm_clock_sec: (snapshot.vm_clock_nsec / 1_000_000_000) as i64,
        vm_clock_nsec: (snapshot.vm_clock_nsec % 1_000_000_000) as i64,
        icount: snapshot.icount.map(|count| count as i64),
    }
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
                let BlockDirtyBitmapClear { node, name } = qapi::arguments(map)?;
                BitmapName { node, name }
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

async fn bitmap_sha256(call: Call, command: XDebugBlockDirtyBitmapSha256) -> Result<BlockDirtyBitmapSha256> {
    let at = BitmapName { node: command.node, name: command.name };
    let (_, bitmap) = graph(&call).bitmap(&at)?;
    Ok(BlockDirtyBitmapSha256 { sha256: bitmap.sha256() })
}

async fn transaction(call: Call, command: Transaction) -> Result<()> {
    let group = match completion_mode(command.properties)? {
        true => Some(Arc::<jobs::Group>::default()),
        false => None,
    };
    let mut actions = Vec::new();
    for TransactionAction { kind, data } in command.actions {
        if group.is_some() && !["drive-backup", "blockdev-backup", "abort"].contains(&kind.as_str()) {
            bail!("Action '{kind}' does not support transaction property completion-mode = grouped");
        }
        let name = |data: Map| {
            let BlockDirtyBitmapClear { node, name } = qapi::arguments(data)?;
            Ok::<_, Failure>(BitmapName { node, name })
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
            "drive-backup" => {
                super::backup::drive_backup_action(&call, qapi::arguments(data)?, group.clone())
            }
            "blockdev-backup" => {
                super::backup::blockdev_backup_action(&call, qapi::arguments(data)?, group.clone())
            }
            "block-dirty-bitmap-add" => add_action(qapi::arguments(data)?),
            "block-dirty-bitmap-remove" => Action::BitmapRemove(name(data)?),
            "block-dirty-bitmap-clear" => Action::BitmapClear(name(data)?),
            "block-dirty-bitmap-enable" => Action::BitmapEnable(name(data)?, true),
            "block-dirty-bitmap-disable" => Action::BitmapEnable(name(data)?, false),
            "block-dirty-bitmap-merge" => merge_action(qapi::arguments(data)?)?,
            "abort" => match data.keys().next() {
                Some(key) => bail!("Invalid parameter '{key}'"),
                None => Action::Abort,
            },
            other => bail!("Invalid parameter '{other}'"),
        });
    }
    let done = perform(&call, actions).await;
    if let (Ok(()), Some(group)) = (&done, group) {
        group.close();
    }
    done
}

/// Whether all jobs of a transaction are to end well or none.
fn completion_mode(properties: Option<Map>) -> Result<bool> {
    let mut properties =
        Options::from(properties.unwrap_or_default()).said(Origin::Typed("properties.".into()));
    let mode = properties.take_word("completion-mode", &[("individual", false), ("grouped", true)])?;
    match properties.0.keys().next() {
        Some(key) => bail!("Parameter '{key}' is unexpected"),
        None => Ok(mode.unwrap_or(false)),
    }
}
