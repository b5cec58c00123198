//! The NBD server.

use crate::Session;
use crate::parse::Args;
use base::{Result, bail, fail};
use schema::block::QueryBlock;
use schema::export::*;
use serde_json::{Value, json};

/// `unix:PATH`, `fd:NAME` or `host:port`.
fn address(uri: &str) -> Result<Value> {
    if let Some(path) = uri.strip_prefix("unix:") {
        return Ok(json!({"type": "unix", "data": {"path": path}}));
    }
    if let Some(name) = uri.strip_prefix("fd:") {
        return Ok(json!({"type": "fd", "data": {"str": name}}));
    }
    let (host, port) = uri.rsplit_once(':').ok_or_else(|| fail!("error parsing address '{uri}'"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok(json!({"type": "inet", "data": {"host": host, "port": port}}))
}

pub async fn start(session: Session, args: Args) -> Result<String> {
    let (all, writable) = (args.flag("a"), args.flag("w"));
    if writable && !all {
        bail!("-w only valid together with -a");
    }
    session.ask::<NbdServerStart>(json!({"addr": address(&args.need("uri"))?})).await?;
    if !all {
        return Ok(String::new());
    }
    for disk in session.control.call(QueryBlock {}).await? {
        let Some(medium) = disk.inserted.filter(|_| !disk.device.is_empty()) else { continue };
        let asked = json!({"device": disk.device, "writable": writable && !medium.ro});
        if let Err(why) = session.ask::<NbdServerAdd>(asked).await {
            session.control.call(NbdServerStop {}).await?;
            return Err(why);
        }
    }
    Ok(String::new())
}

pub async fn add(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "name": args.text("name"), "writable": args.flag("w")});
    session.ask::<NbdServerAdd>(asked).await.map(|()| String::new())
}

pub async fn remove(session: Session, args: Args) -> Result<String> {
    let mode = if args.flag("f") { "hard" } else { "safe" };
    session
        .ask::<NbdServerRemove>(json!({"name": args.need("name"), "mode": mode}))
        .await
        .map(|()| String::new())
}

pub async fn stop(session: Session, _: Args) -> Result<String> {
    session.control.call(NbdServerStop {}).await.map(|()| String::new())
}
