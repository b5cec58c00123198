//! The NBD server and its exports.

use super::blockdev::{graph, there};
use crate::{Call, Routes};
use base::{Failure, Result, bail, fail};
use block::Options;
use block::export::{ExportSetup, Listen, Server};
use qapi::Map;
use schema::export::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(nbd_server_start);
    routes.add(nbd_server_add);
    routes.add(nbd_server_remove);
    routes.add(nbd_server_stop);
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
