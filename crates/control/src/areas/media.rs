//! Media and trays.

use super::blockdev::{drive, graph, there};
use crate::{Call, Routes};
use base::{Result, bail, fail};
use block::backend::medium::{Access, Medium};
use schema::media::*;

pub fn route(routes: &mut Routes) {
    routes.add(eject);
    routes.add(change);
    routes.add(open_tray);
    routes.add(close_tray);
    routes.add(remove_medium);
    routes.add(insert_medium);
    routes.add(change_medium);
}

async fn eject(call: Call, command: Eject) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    let force = command.force.unwrap_or(false);
    there(&call, async move { backend.eject(&named, force).await }).await
}

async fn change(call: Call, command: Change) -> Result<()> {
    let (device, filename, format) = (command.device, command.target, command.arg);
    if graph(&call).backend(&device).is_none() && device == "vnc" {
        bail!("VNC display not active");
    }
    let (backend, named) = drive(&call, Some(device), None)?;
    if let Some(format) = format.as_deref().filter(|format| block::formats::find(format).is_none()) {
        bail!("Invalid block format '{format}'");
    }
    let medium = Medium { filename, format, access: Access::Retain, late_key: true };
    there(&call, async move {
        backend.change_medium(&named, &medium, false).await?;
        backend.check_key()
    })
    .await
}

async fn open_tray(call: Call, command: BlockdevOpenTray) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    backend.open_tray(&named, command.force.unwrap_or(false)).map(drop)
}

async fn close_tray(call: Call, command: BlockdevCloseTray) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    backend.close_tray(&named)
}

async fn remove_medium(call: Call, command: BlockdevRemoveMedium) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    there(&call, async move { backend.remove_medium(&named).await }).await
}

async fn insert_medium(call: Call, command: BlockdevInsertMedium) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    let (graph, name) = (graph(&call), command.node_name);
    let node = graph.find(&name).ok_or_else(|| fail!("Node '{name}' not found"))?;
    let at = |one: &block::Backend| one.node().is_some_and(|root| std::sync::Arc::ptr_eq(&root, &node));
    if graph.backends().iter().any(at) {
        bail!("Node '{name}' is already in use");
    }
    there(&call, async move { backend.insert_medium(&named, &node).await }).await
}

async fn change_medium(call: Call, command: BlockdevChangeMedium) -> Result<()> {
    let (backend, named) = drive(&call, command.device, command.id)?;
    let access = match command.read_only_mode {
        None | Some(BlockdevChangeReadOnlyMode::Retain) => Access::Retain,
        Some(BlockdevChangeReadOnlyMode::ReadOnly) => Access::ReadOnly,
        Some(BlockdevChangeReadOnlyMode::ReadWrite) => Access::ReadWrite,
    };
    let medium = Medium { filename: command.filename, format: command.format, access, late_key: false };
    let force = command.force.unwrap_or(false);
    there(&call, async move { backend.change_medium(&named, &medium, force).await }).await
}
