use super::info::name_of;
use crate::Session;
use crate::parse::Args;
use base::Result;
use schema::block::*;
use std::fmt::Write;

pub async fn block(session: Session, args: Args) -> Result<String> {
    let wanted = args.text("device");
    let mut out = String::new();
    let list = session.control.call(QueryBlock {}).await?;
    for info in &list {
        let names = [Some(info.device.as_str()), info.inserted.as_ref().and_then(|i| i.node_name.as_deref())];
        if wanted.is_some_and(|w| !names.contains(&Some(w))) {
            continue;
        }
        if !out.is_empty() {
            out.push('\n');
        }
        device(&mut out, info, args.flag("v"));
    }
    Ok(out)
}

fn device(out: &mut String, info: &BlockInfo, verbose: bool) {
    let inserted = info.inserted.as_ref();
    let node = inserted.and_then(|i| i.node_name.as_deref());
    let name = match (info.device.as_str(), node) {
        ("", node) => node.unwrap_or("<anonymous>").to_string(),
        (device, Some(node)) => format!("{device} ({node})"),
        (device, None) => device.to_string(),
    };
    let _ = match inserted {
        Some(i) => {
            let ro = if i.ro { ", read-only" } else { "" };
            let encrypted = if i.encrypted { ", encrypted" } else { "" };
            writeln!(out, "{name}: {} ({}{ro}{encrypted})", i.file, i.drv)
        }
        None => writeln!(out, "{name}: [not inserted]"),
    };
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
    if [i.bps, i.bps_rd, i.bps_wr, i.iops, i.iops_rd, i.iops_wr].iter().any(|&n| n != 0) {
        let _ = writeln!(
            out,
            "    I/O throttling:   bps={} bps_rd={} bps_wr={} iops={} iops_rd={} iops_wr={}",
            i.bps, i.bps_rd, i.bps_wr, i.iops, i.iops_rd, i.iops_wr
        );
    }
    if verbose {
        out.push_str("\nImages:\n");
        let mut next = Some(&i.image);
        while let Some(image) = next {
            let _ = writeln!(out, "image: {}\nfile format: {}", image.filename, image.format);
            let _ = writeln!(out, "virtual size: {} bytes", image.virtual_size);
            if let Some(size) = image.actual_size {
                let _ = writeln!(out, "disk size: {size} bytes");
            }
            if let Some(size) = image.cluster_size {
                let _ = writeln!(out, "cluster_size: {size}");
            }
            next = image.backing_image.as_deref();
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
    let (backend, anonymous) = match graph.backend(&name) {
        Some(backend) => (backend, false),
        None => match graph.device_drive(&name)? {
            Some(backend) => (backend, true),
            None => base::bail!("Cannot find device='{name}' nor node-name='{name}'"),
        },
    };
    let out: block::qemu_io::Out = std::sync::Arc::new(|text: &str| {
        use std::io::Write as _;
        let mut stdout = std::io::stdout().lock();
        // Nobody may be there to read it.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    });
    let disk = backend.clone();
    let work = async move { block::qemu_io::run(&disk, &line, &out).await };
    let done = graph.main_thread().handle().spawn(work).await;
    if anonymous {
        backend.drain().await;
        backend.delete();
    }
    done.map_err(|_| base::fail!("The block layer failed"))?;
    Ok(String::new())
}
