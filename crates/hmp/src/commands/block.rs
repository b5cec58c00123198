use super::info::name_of;
use crate::Session;
use crate::parse::Args;
use base::Result;
use schema::block::*;
use schema::blockdev::QueryNamedBlockNodes;
use serde_json::{Value, json};
use std::fmt::Write;

pub async fn block(session: Session, args: Args) -> Result<String> {
    let (wanted, verbose) = (args.text("device"), args.flag("v"));
    let mut out = String::new();
    let mut shown = false;
    if !args.flag("n") {
        for (at, info) in session.control.call(QueryBlock {}).await?.iter().enumerate() {
            if wanted.is_some_and(|wanted| wanted != info.device) {
                continue;
            }
            if at > 0 {
                out.push('\n');
            }
            drive(&mut out, info, verbose);
            shown = true;
        }
        if wanted.is_none() || shown {
            return Ok(out);
        }
    }
    for (at, node) in session.ask::<QueryNamedBlockNodes>(json!({})).await?.iter().enumerate() {
        if wanted.is_some_and(|wanted| Some(wanted) != node.node_name.as_deref()) {
            continue;
        }
        if at > 0 {
            out.push('\n');
        }
        heading(&mut out, node.node_name.as_deref().unwrap_or("<anonymous>"), Some(node));
        medium(&mut out, node, verbose);
    }
    Ok(out)
}

fn heading(out: &mut String, name: &str, inserted: Option<&BlockDeviceInfo>) {
    let _ = match inserted {
        Some(i) => {
            let ro = if i.ro { ", read-only" } else { "" };
            let encrypted = if i.encrypted { ", encrypted" } else { "" };
            writeln!(out, "{name}: {} ({}{ro}{encrypted})", i.file, i.drv)
        }
        None => writeln!(out, "{name}: [not inserted]"),
    };
}

fn drive(out: &mut String, info: &BlockInfo, verbose: bool) {
    let inserted = info.inserted.as_ref();
    let node = inserted.and_then(|i| i.node_name.as_deref());
    let name = match (info.device.as_str(), node) {
        ("", node) => node.or(info.qdev.as_deref()).unwrap_or("<anonymous>").to_string(),
        (device, Some(node)) => format!("{device} ({node})"),
        (device, None) => device.to_string(),
    };
    heading(out, &name, inserted);
    if let Some(qdev) = &info.qdev {
        let _ = writeln!(out, "    Attached to:      {qdev}");
    }
    if let Some(status) = info.io_status.filter(|s| *s != BlockDeviceIoStatus::Ok) {
        let _ = writeln!(out, "    I/O status:       {}", name_of(&status));
    }
    if info.removable {
        let lock = if info.locked { "" } else { "not " };
        let tray = if info.tray_open == Some(true) { "open" } else { "closed" };
        let _ = writeln!(out, "    Removable device: {lock}locked, tray {tray}");
    }
    if let Some(i) = inserted {
        medium(out, i, verbose);
    }
}

fn medium(out: &mut String, i: &BlockDeviceInfo, verbose: bool) {
    let mode = if i.cache.writeback { "writeback" } else { "writethrough" };
    let direct = if i.cache.direct { ", direct" } else { "" };
    let flush = if i.cache.no_flush { ", ignore flushes" } else { "" };
    let _ = writeln!(out, "    Cache mode:       {mode}{direct}{flush}");
    if let Some(backing) = &i.backing_file {
        let _ = writeln!(out, "    Backing file:     {backing} (chain depth: {})", i.backing_file_depth);
    }
    if i.detect_zeroes != BlockdevDetectZeroesOptions::Off {
        let _ = writeln!(out, "    Detect zeroes:    {}", name_of(&i.detect_zeroes));
    }
    limits(out, i);
    if verbose {
        out.push_str("\nImages:\n");
        let mut next = Some(&i.image);
        while let Some(image) = next {
            self::image(out, image);
            next = image.backing_image.as_deref();
        }
    }
}

fn limits(out: &mut String, i: &BlockDeviceInfo) {
    if [i.bps, i.bps_rd, i.bps_wr, i.iops, i.iops_rd, i.iops_wr].iter().all(|&n| n == 0) {
        return;
    }
    let or_0 = |value: Option<i64>| value.unwrap_or(0);
    let all = [
        ("bps", i.bps),
        ("bps_rd", i.bps_rd),
        ("bps_wr", i.bps_wr),
        ("bps_max", or_0(i.bps_max)),
        ("bps_rd_max", or_0(i.bps_rd_max)),
        ("bps_wr_max", or_0(i.bps_wr_max)),
        ("iops", i.iops),
        ("iops_rd", i.iops_rd),
        ("iops_wr", i.iops_wr),
        ("iops_max", or_0(i.iops_max)),
        ("iops_rd_max", or_0(i.iops_rd_max)),
        ("iops_wr_max", or_0(i.iops_wr_max)),
        ("iops_size", or_0(i.iops_size)),
    ];
    out.push_str("    I/O throttling:  ");
    for (name, value) in all {
        let _ = write!(out, " {name}={value}");
    }
    let _ = writeln!(out, " group={}", i.group.as_deref().unwrap_or_default());
}

/// Bytes in the largest fitting binary unit, three digits: "64 MiB", "196 KiB", "1.5 GiB".
pub(super) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1000 of a unit would need a fourth digit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 99.95 || value == 0.0 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    if value > 0.0 && value < 1.0 {
        text = format!("{value:.3}").trim_end_matches('0').to_string();
    }
    format!("{text} {}B", UNITS[unit])
}

fn image(out: &mut String, image: &ImageInfo) {
    let bytes = image.virtual_size as u64;
    let _ = writeln!(out, "image: {}\nfile format: {}", image.filename, image.format);
    let _ = writeln!(out, "virtual size: {} ({bytes} bytes)", human_size(bytes));
    let allocated = image.actual_size.map(|size| human_size(size as u64));
    let _ = writeln!(out, "disk size: {}", allocated.as_deref().unwrap_or("unavailable"));
    if image.encrypted == Some(true) {
        out.push_str("encrypted: yes\n");
    }
    if let Some(size) = image.cluster_size {
        let _ = writeln!(out, "cluster_size: {size}");
    }
    if image.dirty_flag == Some(true) {
        out.push_str("cleanly shut down: no\n");
    }
    if let Some(below) = &image.backing_filename {
        let _ = write!(out, "backing file: {below}");
        match image.full_backing_filename.as_ref().filter(|full| *full != below) {
            Some(full) => drop(writeln!(out, " (actual path: {full})")),
            None => out.push('\n'),
        }
    }
    if let Some(format) = &image.backing_filename_format {
        let _ = writeln!(out, "backing file format: {format}");
    }
    let snapshots: Vec<block::Snapshot> = image.snapshots.iter().flatten().map(snapshot).collect();
    if !snapshots.is_empty() {
        out.push_str("Snapshot list:\n");
        super::drives::table(out, snapshots.iter().map(|one| (one.id.as_str(), one)));
    }
    format_specific(out, image.format_specific.as_ref());
}

fn snapshot(told: &schema::snapshot::SnapshotInfo) -> block::Snapshot {
    block::Snapshot {
        id: told.id.clone(),
        name: told.name.clone(),
        vm_state_size: told.vm_state_size as u64,
        date_sec: told.date_sec as u32,
        date_nsec: told.date_nsec as u32,
        vm_clock_nsec: (told.vm_clock_sec as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(told.vm_clock_nsec as u64),
        icount: told.icount.map(|count| count as u64),
    }
}

/// What `{"type": ..., "data": {...}}` says.
fn format_specific(out: &mut String, specific: Option<&serde_json::Map<String, Value>>) {
    let specific = specific.and_then(|specific| specific.get("data")?.as_object());
    if let Some(specific) = specific.filter(|specific| !specific.is_empty()) {
        out.push_str("Format specific information:\n");
        dictionary(out, specific, 1);
    }
}

fn dictionary(out: &mut String, map: &serde_json::Map<String, Value>, depth: usize) {
    for (key, value) in map {
        let _ = write!(out, "{:indent$}{}:", "", key.replace('-', " "), indent = depth * 4);
        match value {
            Value::Object(inner) => {
                out.push('\n');
                dictionary(out, inner, depth + 1);
            }
            Value::Array(list) => {
                out.push('\n');
                let list = list.iter().enumerate().map(|(at, one)| (format!("[{at}]"), one.clone()));
                dictionary(out, &list.collect(), depth + 1);
            }
            Value::String(text) => drop(writeln!(out, " {text}")),
            other => drop(writeln!(out, " {other}")),
        }
    }
}

pub async fn blockstats(session: Session, _: Args) -> Result<String> {
    let mut out = String::new();
    for entry in session.control.call(QueryBlockstats { query_nodes: false }).await? {
        let Some(device) = entry.device else { continue };
        let s = entry.stats;
        let _ = write!(
            out,
            "{device}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} flush_operations={}",
            s.rd_bytes, s.wr_bytes, s.rd_operations, s.wr_operations, s.flush_operations
        );
        let _ = writeln!(
            out,
            " wr_total_time_ns={} rd_total_time_ns={} flush_total_time_ns={} rd_merged={} wr_merged={} idle_time_ns={}",
            s.wr_total_time_ns,
            s.rd_total_time_ns,
            s.flush_total_time_ns,
            s.rd_merged,
            s.wr_merged,
            s.idle_time_ns.unwrap_or(0)
        );
    }
    Ok(out)
}

/// Reads or writes a disk in the language of `qemu-io`. As there, output goes to the standard
/// output of the process.
pub async fn qemu_io(session: Session, args: Args) -> Result<String> {
    let name = args.text("device").unwrap_or_default().to_string();
    let line = args.text("command").unwrap_or_default().to_string();
    let graph = session.control.world().host.graph.clone();
    let known = match args.flag("d") {
        true => Some(session.control.world().drive_of_device(&name)?),
        false => graph.backend(&name),
    };
    let (backend, anonymous) = match known {
        Some(backend) => (backend, false),
        None => match graph.device_drive(&name)? {
            Some(backend) => (backend, true),
            None => base::bail!("Cannot find device='' nor node-name='{name}'"),
        },
    };
    let out: block::qemu_io::Out = std::sync::Arc::new(|text: &str| {
        use std::io::Write as _;
        let mut stdout = std::io::stdout().lock();
        // Nobody may be there to read it.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    });
    let disk = backend.clone();
    let tells = matches!(line.trim(), "info" | "i");
    let specific = backend.node().filter(|_| tells).and_then(|node| node.layer().info().specific);
    let work = async move { block::qemu_io::run(&disk, &line, &out).await };
    let done = graph.main_thread().handle().spawn(work).await;
    if anonymous {
        backend.drain().await;
        backend.delete();
    }
    let mut told = done.map_err(|_| base::fail!("The block layer failed"))?;
    format_specific(&mut told, specific.as_ref().and_then(Value::as_object));
    Ok(told)
}
