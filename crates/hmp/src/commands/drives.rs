//! Drives: adding, removing, media, sizes, limits, snapshots.

use crate::Session;
use crate::parse::Args;
use base::{Failure, Result, bail, fail};
use block::Snapshot;
use schema::block::{BlockPasswd, BlockSetIoThrottle};
use schema::blockdev::BlockResize;
use schema::media::*;
use schema::snapshot::*;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::Arc;

pub async fn eject(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "force": args.flag("f")});
    session.ask::<Eject>(asked).await.map(|()| String::new())
}

pub async fn change(session: Session, args: Args) -> Result<String> {
    let (device, filename, format) = (args.need("device"), args.need("filename"), args.text("format"));
    let graph = &session.control.world().host.graph;
    let mode = args.text("mode");
    if mode.is_none() || (device == "vnc" && graph.backend(&device).is_none()) {
        let asked = json!({"device": device, "target": filename, "arg": format});
        return session.ask::<Change>(asked).await.map(|()| String::new());
    }
    let known = ["retain", "read-only", "read-write"];
    if let Some(mode) = mode.filter(|mode| !known.contains(mode)) {
        bail!("invalid parameter value: {mode}");
    }
    let asked = json!({"device": device, "filename": filename, "format": format, "read-only-mode": mode});
    session.ask::<BlockdevChangeMedium>(asked).await.map(|()| String::new())
}

/// `key=value,key=value`; a comma in a value is doubled, a key alone is switched on.
fn keys(text: &str) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_some() => part.push(','),
            ',' => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
        if key.is_empty() {
            bail!("Invalid parameter ''");
        }
        all.insert(key.into(), value.into());
    }
    Ok(all)
}

/// Failures are told plainly, without "Error:", as is customary here.
fn plainly(done: Result<String>) -> Result<String> {
    done.or_else(|why| {
        let hint = why.hint.map(|hint| format!("{hint}\n")).unwrap_or_default();
        Ok(format!("{}\n{hint}", why.text))
    })
}

pub async fn add(session: Session, args: Args) -> Result<String> {
    let added = async {
        let keys = keys(&args.need("opts"))?;
        if args.flag("n") {
            return add_node(&session, keys).await.map(|()| String::new());
        }
        let world = session.control.world();
        let (host, kind) = (world.host.clone(), world.machine.spec.kind);
        let made = tokio::task::spawn_blocking(move || machine::add_drive(&host, kind, &keys)).await;
        made.map_err(|_| fail!("The block layer failed"))?.map(|()| "OK\n".to_string())
    };
    plainly(added.await)
}

/// As `blockdev-add`, by texts.
async fn add_node(session: &Session, keys: qapi::Map) -> Result<()> {
    let options = block::Options::crumple(keys)?;
    if !options.contains("driver") {
        base::bail!("Parameter 'driver' is missing");
    }
    let graph = session.control.world().host.graph.clone();
    there(session, async move { graph.add(options).await.map(drop) }).await
}

/// Runs on the block layer's own thread.
async fn there<T: Send + 'static>(
    session: &Session,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let handle = session.control.world().host.graph.main_thread().handle().clone();
    handle.spawn(work).await.map_err(|_| fail!("The block layer failed"))?
}

pub async fn del(session: Session, args: Args) -> Result<String> {
    let (graph, id) = (session.control.world().host.graph.clone(), args.need("id"));
    let gone = there(&session, async move { graph.delete_drive(&id).await });
    plainly(gone.await.map(|()| String::new()))
}

pub async fn resize(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "size": args.int("size")});
    session.ask::<BlockResize>(asked).await.map(|()| String::new())
}

pub async fn commit(session: Session, args: Args) -> Result<String> {
    let (graph, name) = (session.control.world().host.graph.clone(), args.need("device"));
    let done = there(&session, async move {
        let stands = |node: &Arc<block::Node>| node.skip_filters().backing().is_some();
        let tops = match graph.backend(&name) {
            _ if name == "all" => {
                graph.backends().into_iter().filter_map(|one| one.node()).filter(stands).collect()
            }
            None => bail!("Device '{name}' not found"),
            Some(one) => vec![one.node().ok_or_else(|| fail!("Device '{name}' has no medium"))?],
        };
        for top in tops {
            let poured = graph.commit_now(&top.skip_filters()).await;
            poured.map_err(|why| Failure::os(format!("'commit' error for '{name}'"), &why))?;
        }
        Ok(String::new())
    });
    plainly(done.await)
}

pub async fn password(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "password": args.need("password")});
    session.ask::<BlockPasswd>(asked).await.map(|()| String::new())
}

pub async fn throttle(session: Session, args: Args) -> Result<String> {
    let name = args.need("device");
    let known = session.control.world().host.graph.backend(&name).is_some();
    let mut asked = json!({ if known { "device" } else { "id" }: name });
    for key in ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
        asked[key] = args.need_int(key).into();
    }
    session.ask::<BlockSetIoThrottle>(asked).await.map(|()| String::new())
}

pub async fn snapshot(session: Session, args: Args) -> Result<String> {
    let file = args.text("snapshot-file").ok_or_else(|| fail!("Parameter 'snapshot-file' is missing"))?;
    let asked = json!({
        "device": args.need("device"),
        "snapshot-file": file,
        "format": args.text("format"),
        "mode": if args.flag("n") { "existing" } else { "absolute-paths" },
    });
    session.ask::<BlockdevSnapshotSync>(asked).await.map(|()| String::new())
}

pub async fn snapshot_internal(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "name": args.need("name")});
    session.ask::<BlockdevSnapshotInternalSync>(asked).await.map(|()| String::new())
}

pub async fn snapshot_delete_internal(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "name": args.need("name"), "id": args.text("id")});
    session.ask::<BlockdevSnapshotDeleteInternalSync>(asked).await.map(|_| String::new())
}

/// Snapshots of one disk, and how the disk is called.
struct Held {
    disk: String,
    list: Vec<Snapshot>,
}

pub async fn snapshots(session: Session, _: Args) -> Result<String> {
    let graph = &session.control.world().host.graph;
    let (mut disks, mut any) = (Vec::new(), false);
    for backend in graph.backends() {
        let Some(node) = backend.node().filter(|_| !backend.is_read_only()) else { continue };
        let node = node.skip_filters();
        let list = node.layer().snapshots().map(|facet| facet.list());
        any |= list.is_some();
        let disk = if backend.name().is_empty() { node.name() } else { backend.name() };
        disks.push(Held { disk: disk.to_string(), list: list.unwrap_or_default() });
    }
    let Some((first, others)) = disks.split_first().filter(|_| any) else {
        return Ok("no block device can store vmstate for snapshot\n".into());
    };
    let everywhere =
        |one: &Snapshot| others.iter().all(|held| held.list.iter().any(|other| other.name == one.name));
    if disks.iter().all(|held| held.list.is_empty()) {
        return Ok("There is no snapshot available.\n".into());
    }
    let mut out = String::from("List of snapshots present on all disks:\n");
    let whole: Vec<&Snapshot> = first.list.iter().filter(|one| everywhere(one)).collect();
    match whole.is_empty() {
        true => out.push_str("None\n"),
        false => table(&mut out, whole.iter().map(|one| ("--", *one))),
    }
    for held in &disks {
        let rest: Vec<_> =
            held.list.iter().filter(|one| !whole.iter().any(|known| known.name == one.name)).collect();
        if !rest.is_empty() {
            let _ = writeln!(out, "\nList of partial (non-loadable) snapshots on '{}':", held.disk);
            table(&mut out, rest.into_iter().map(|one| (one.id.as_str(), one)));
        }
    }
    Ok(out)
}

/// A table of snapshots, each with the id to show.
pub(super) fn table<'a>(out: &mut String, list: impl Iterator<Item = (&'a str, &'a Snapshot)>) {
    let head = ("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    let _ =
        writeln!(out, "{:<9} {:<16} {:>8}{:>20}{:>13}{:>11}", head.0, head.1, head.2, head.3, head.4, head.5);
    for (id, one) in list {
        let seconds = one.vm_clock_nsec / 1_000_000_000;
        let clock = format!(
            "{:02}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            one.vm_clock_nsec / 1_000_000 % 1000
        );
        let size = super::block::human_size(one.vm_state_size);
        let icount = one.icount.map(|count| count.to_string()).unwrap_or_default();
        let date = date(one.date_sec);
        let line = format!("{id:<9} {:<16} {size:>8}{date:>20}{clock:>13}{icount:>11}", one.name);
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// Local time as `YYYY-MM-DD hh:mm:ss`.
fn date(unix: u32) -> String {
    let at = base::clock::Calendar::from_seconds(i64::from(unix) + base::clock::local_offset());
    let time = format!("{:02}:{:02}:{:02}", at.hour, at.minute, at.second);
    format!("{:04}-{:02}-{:02} {time}", at.year, at.month, at.day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_comma_is_part_of_a_value() {
        let keys = keys("file=a,,b.img,if=none,readonly").unwrap();
        assert_eq!(
            (&keys["file"], &keys["if"], &keys["readonly"]),
            (&json!("a,b.img"), &json!("none"), &json!("on"))
        );
        assert!(super::keys("=x").is_err());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |day: u32| date(day.wrapping_sub(base::clock::local_offset() as u32));
        assert_eq!(at(1_709_164_800), "2024-02-29 00:00:00");
        assert_eq!(at(951_868_799), "2000-02-29 23:59:59");
    }
}
