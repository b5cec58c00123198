//! The NBD server and its exports.

use super::blockdev::{graph, there};
use crate::{Call, Routes};
use base::{Failure, Result, bail, fail};
use block::export::{Export, ExportSetup, Listen, Server, Tls};
use block::{Backend, DirtyBitmap, Node, Options, Origin};
use qapi::{Map, Value};
use schema::export::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(nbd_server_start);
    routes.add(nbd_server_add);
    routes.add(nbd_server_remove);
    routes.add(nbd_server_stop);
    routes.add(block_export_add);
    routes.add(block_export_del);
    routes.add(query_block_exports);
}

/// A listening socket that `getfd` gave a name.
fn passed_in(call: &Call, name: &str) -> Result<Listen> {
    use rustix::net::{AddressFamily, getsockname};
    let fd = call.take_named(name);
    let fd = fd.ok_or_else(|| fail!("File descriptor named '{name}' has not been found"))?;
    let bound = getsockname(&fd).map_err(|why| Failure::os("Failed to use the socket", &why.into()))?;
    match bound.address_family() {
        AddressFamily::UNIX => Ok(Listen::UnixSocket(fd.into())),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Listen::TcpSocket(fd.into())),
        _ => bail!("File descriptor '{name}' is not a socket that NBD clients can connect to"),
    }
}

fn listen_on(call: &Call, addr: Map) -> Result<Listen> {
    let mut addr = Options::from(addr).said(Origin::Typed("addr.".into()));
    let kind = addr.need_str("type")?;
    let (mut data, shown) = match addr.take_table("data")? {
        Some(data) => (data, "addr.data"),
        None => (std::mem::take(&mut addr), "addr"),
    };
    addr.finish_in("addr")?;
    match kind.as_str() {
        "inet" => {
            let listen = inet(&mut data)?;
            data.finish_in(shown)?;
            Ok(listen)
        }
        "unix" => {
            let path = data.need_str("path")?;
            data.finish_in(shown)?;
            Ok(Listen::Unix(path))
        }
        "fd" => {
            let name = data.need_str("str")?;
            data.finish_in(shown)?;
            passed_in(call, &name)
        }
        other => bail!("Parameter 'type' does not accept value '{other}'"),
    }
}

/// Host and ports of TCP, and which kinds of addresses will do (all, unless one is asked for or
/// the other ruled out).
fn inet(data: &mut Options) -> Result<Listen> {
    let (host, port) = (data.need_str("host")?, data.need_str("port")?);
    let number = |text: &str| {
        let unknown =
            || fail!("address resolution failed for {host}:{text}: Servname not supported for ai_socktype");
        text.parse::<u16>().map_err(|_| unknown())
    };
    let port = number(&port)?;
    let to = match data.take_u64("to")? {
        Some(to) => u16::try_from(to).map_err(|_| fail!("Parameter 'to' expects uint16_t"))?,
        None => port,
    };
    let family = data.take_families()?;
    Ok(Listen::Tcp { host, port, to, family })
}

async fn nbd_server_start(call: Call, command: NbdServerStart) -> Result<()> {
    let (at, listen) = (graph(&call), listen_on(&call, command.addr)?);
    let tls = match (command.tls_creds, command.tls_authz) {
        (Some(creds), authz) => {
            let authorise = authz.map(|authz| at.vault().authorisation(&authz)).transpose()?;
            Some(Tls { credentials: at.vault().credentials(&creds)?, authorise })
        }
        (None, Some(_)) => bail!("TLS authorization is specified but no TLS credentials"),
        (None, None) => None,
    };
    let limit = command.max_connections.unwrap_or(100) as usize;
    there(&call, async move { Server::start(&at, listen, limit, tls).await.map(drop) }).await
}

pub(super) fn nbd_server(call: &Call) -> Result<Arc<Server>> {
    graph(call).exports.server.lock().clone().ok_or_else(|| fail!("NBD server not running"))
}

/// The bitmap of that name in the chain of `node`, to be shown by an export.
fn own_bitmap(node: &Arc<Node>, name: &str, writable: bool) -> Result<Arc<DirtyBitmap>> {
    let found = bitmap(node, name)?;
    if !writable && found.is_enabled() && !node.is_read_only() {
        bail!("Enabled bitmap '{name}' incompatible with readonly export");
    }
    Ok(found)
}

/// The bitmap of that name in the chain of `node`, whatever is exported.
fn bitmap(node: &Arc<Node>, name: &str) -> Result<Arc<DirtyBitmap>> {
    let mut next = Some(node.skip_filters());
    let mut found = None;
    while let (None, Some(node)) = (&found, &next) {
        found = node.bitmaps().find(name);
        let below = node.backing().map(|below| below.skip_filters());
        next = below;
    }
    let found = found.ok_or_else(|| fail!("Bitmap '{name}' is not found"))?;
    if found.is_busy() {
        bail!("Bitmap '{name}' is currently in use by another operation and cannot be used");
    }
    if found.is_inconsistent() {
        bail!("Bitmap '{name}' is inconsistent and cannot be used");
    }
    Ok(found)
}

/// A back end of its own for an export of `node`.
fn own_backend(graph: &Arc<block::Graph>, node: &Arc<Node>, writable: bool) -> Result<Backend> {
    let backend = Backend::new(graph, block::Setup { read_only: !writable, ..block::Setup::default() })?;
    match backend.insert(node) {
        Ok(()) => Ok(backend),
        Err(why) => {
            backend.delete();
            Err(why)
        }
    }
}

fn add(server: &Server, setup: ExportSetup) -> Result<()> {
    let owned = setup.owns_backend.then(|| setup.backend.clone());
    let added = server.add(setup).map(drop);
    if let (Err(_), Some(backend)) = (&added, owned) {
        backend.delete();
    }
    added
}

async fn nbd_server_add(call: Call, command: NbdServerAdd) -> Result<()> {
    let (graph, server) = (graph(&call), nbd_server(&call)?);
    let device = command.device;
    let missing = || fail!("Cannot find device='{device}' nor node-name='{device}'");
    let of_drive = graph.backend(&device);
    let node = match &of_drive {
        Some(backend) => backend.node().ok_or_else(|| fail!("Device '{device}' has no medium"))?,
        None => graph.find(&device).ok_or_else(missing)?,
    };
    let read_only = of_drive.as_ref().map_or(node.is_read_only(), Backend::is_read_only);
    let writable = command.writable.unwrap_or(false) && !read_only;
    let bitmaps = match command.bitmap {
        Some(name) => vec![own_bitmap(&node, &name, writable)?],
        None => Vec::new(),
    };
    let name = match command.name {
        None if server.find(&device).is_some() => {
            bail!("NBD server already exporting device '{device}'")
        }
        name => name.unwrap_or_else(|| device.clone()),
    };
    let owns_backend = of_drive.is_none();
    let backend = match of_drive {
        Some(backend) if writable => backend.lend().map(|()| backend)?,
        Some(backend) => backend,
        None => own_backend(&graph, &node, writable)?,
    };
    let setup = ExportSetup {
        id: name.clone(),
        name,
        description: command.description,
        writable,
        backend,
        bitmaps,
        depth: false,
        owns_backend,
        writethrough: false,
        iothread: Default::default(),
    };
    add(&server, setup)
}

async fn block_export_add(call: Call, command: BlockExportAdd) -> Result<()> {
    let graph = graph(&call);
    if !spec::id_wellformed(&command.id) {
        bail!("Invalid block export id");
    }
    let node = graph.lookup(None, Some(&command.node_name))?;
    let writable = command.writable.unwrap_or(false);
    if writable && node.is_read_only() {
        bail!("Cannot export read-only node as writable");
    }
    let server = nbd_server(&call)?;
    let mut bitmaps = Vec::new();
    for value in command.bitmaps.unwrap_or_default() {
        bitmaps.push(match value {
            Value::String(name) => own_bitmap(&node, &name, writable)?,
            Value::Object(map) => {
                let mut options = Options::from(map).typed();
                let (at, name) = (options.need_str("node")?, options.need_str("name")?);
                options.finish_in("bitmaps")?;
                bitmap(&graph.lookup(None, Some(&at))?, &name)?
            }
            _ => bail!("Invalid parameter type for 'bitmaps', expected: string or object"),
        });
    }
    let iothread = command.iothread.map(|id| {
        let object = call.world().host.objects.find(&id).and_then(|object| object.downcast().ok());
        object.ok_or_else(|| fail!("iothread \"{id}\" not found"))
    });
    let iothread: Option<Arc<block::IoThread>> = iothread.transpose()?;
    if let Some(thread) = iothread.as_deref().filter(|_| command.fixed_iothread == Some(true)) {
        let elsewhere =
            |one: &Backend| one.front_end().is_some() && !one.thread().is(thread) && one.stands_on(&node);
        if graph.backends().iter().any(elsewhere) {
            bail!("Cannot change iothread of active block backend");
        }
    }
    let backend = own_backend(&graph, &node, writable)?;
    if let Some(thread) = &iothread {
        backend.set_thread(thread);
    }
    let setup = ExportSetup {
        id: command.id,
        name: command.name.unwrap_or(command.node_name),
        description: command.description,
        writable,
        backend,
        bitmaps,
        depth: command.allocation_depth.unwrap_or(false),
        owns_backend: true,
        writethrough: command.writethrough.unwrap_or(false),
        iothread: base::Mutex::new(iothread),
    };
    add(&server, setup)
}

/// Takes an export away once the reply is on its way.
fn take_away(call: &Call, id: &str, mode: Option<BlockExportRemoveMode>) -> Result<()> {
    let Some(server) = graph(call).exports.server.lock().clone() else { bail!("Export '{id}' is not found") };
    let export = server.shut(id, mode == Some(BlockExportRemoveMode::Hard))?;
    let handle = graph(call).main_thread().handle().clone();
    call.after_reply(move || drop(handle.spawn(async move { server.close(&export).await })));
    Ok(())
}

async fn nbd_server_remove(call: Call, command: NbdServerRemove) -> Result<()> {
    let name = command.name;
    let server = graph(&call).exports.server.lock().clone();
    let export = server.and_then(|server| server.find(&name));
    let export = export.ok_or_else(|| fail!("Export '{name}' is not found"))?;
    take_away(&call, &export.setup.id, command.mode)
}

async fn block_export_del(call: Call, command: BlockExportDel) -> Result<()> {
    take_away(&call, &command.id, command.mode)
}

async fn query_block_exports(call: Call, _: QueryBlockExports) -> Result<Vec<BlockExportInfo>> {
    let Some(server) = graph(&call).exports.server.lock().clone() else { return Ok(Vec::new()) };
    let tell = |export: Arc<Export>| BlockExportInfo {
        id: export.setup.id.clone(),
        kind: BlockExportType::Nbd,
        node_name: export.setup.backend.node().map(|node| node.name().to_string()).unwrap_or_default(),
        shutting_down: export.is_shutting_down(),
    };
    // The newest first, as is customary.
    Ok(server.exports().into_iter().rev().map(tell).collect())
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
