use crate::Session;
use crate::parse::Args;
use base::Result;
use qapi::Describe;
use schema::chardev::QueryChardev;
use schema::cpu::QueryCpusFast;
use schema::lifecycle::QueryStatus;
use schema::machine::{QueryKvm, QueryName, QueryUuid};
use schema::memory::{QueryMemdev, QueryMemorySizeSummary};
use schema::monitor::QueryVersion;
use schema::pci::*;
use std::fmt::Write;

/// The wire name of an enumeration's value.
pub fn name_of(value: &impl Describe) -> String {
    value.write().as_str().unwrap_or_default().to_string()
}

pub async fn version(session: Session, _: Args) -> Result<String> {
    let version = session.control.call(QueryVersion {}).await?;
    let qemu = version.qemu;
    Ok(format!("{}.{}.{} ({})\n", qemu.major, qemu.minor, qemu.micro, version.package))
}

pub async fn status(session: Session, _: Args) -> Result<String> {
    let info = session.control.call(QueryStatus {}).await?;
    let state = name_of(&info.status);
    Ok(match info.running {
        true => "VM status: running\n".into(),
        false if state == "paused" => "VM status: paused\n".into(),
        false => format!("VM status: paused ({state})\n"),
    })
}

pub async fn name(session: Session, _: Args) -> Result<String> {
    let info = session.control.call(QueryName {}).await?;
    Ok(info.name.map(|n| format!("{n}\n")).unwrap_or_default())
}

pub async fn uuid(session: Session, _: Args) -> Result<String> {
    Ok(format!("{}\n", session.control.call(QueryUuid {}).await?.uuid))
}

pub async fn kvm(session: Session, _: Args) -> Result<String> {
    let info = session.control.call(QueryKvm {}).await?;
    let state = match (info.present, info.enabled) {
        (true, true) => "enabled",
        (true, false) => "disabled",
        (false, _) => "not compiled",
    };
    Ok(format!("kvm support: {state}\n"))
}

pub async fn cpus(session: Session, _: Args) -> Result<String> {
    let cpus = session.control.call(QueryCpusFast {}).await?;
    let current = session.cpu() as i64;
    let line = |c: schema::cpu::CpuInfoFast| {
        let mark = if c.cpu_index == current { '*' } else { ' ' };
        format!("{mark} CPU #{}: thread_id={}\n", c.cpu_index, c.thread_id)
    };
    Ok(cpus.into_iter().map(line).collect())
}

pub async fn history(session: Session, _: Args) -> Result<String> {
    let history = session.history.lock().clone();
    Ok(history.iter().enumerate().map(|(at, line)| format!("{at}: '{line}'\n")).collect())
}

pub async fn chardev(session: Session, _: Args) -> Result<String> {
    let list = session.control.call(QueryChardev {}).await?;
    Ok(list.into_iter().map(|c| format!("{}: filename={}\n", c.label, c.filename)).collect())
}

pub async fn memory_size(session: Session, _: Args) -> Result<String> {
    let info = session.control.call(QueryMemorySizeSummary {}).await?;
    let mut out = format!("base memory: {}\n", info.base_memory);
    if let Some(plugged) = info.plugged_memory {
        let _ = writeln!(out, "plugged memory: {plugged}");
    }
    Ok(out)
}

pub async fn memdev(session: Session, _: Args) -> Result<String> {
    let mut out = String::new();
    for dev in session.control.call(QueryMemdev {}).await? {
        let nodes: Vec<String> = dev.host_nodes.iter().map(|n| format!(" {n}")).collect();
        let _ = write!(
            out,
            "memory backend: {}\n  size:  {}\n  merge: {}\n  dump: {}\n  prealloc: {}\n  share: {}\n  policy: {}\n  host nodes:{}\n",
            dev.id.unwrap_or_default(),
            dev.size,
            dev.merge,
            dev.dump,
            dev.prealloc,
            dev.share,
            name_of(&dev.policy),
            nodes.concat()
        );
    }
    Ok(out + "\n")
}

/// The translator's state; other engines have none.
pub async fn jit(session: Session, _: Args) -> Result<String> {
    let engine = &session.machine().engine;
    if engine.name() != "translator" {
        return Err(base::fail!("JIT information is only available with accel=tcg"));
    }
    Ok(engine.report())
}

pub async fn accel(session: Session, _: Args) -> Result<String> {
    let engine = &session.machine().engine;
    Ok(format!("accelerator {}\n{}", engine.name(), engine.report()))
}

pub async fn roms(session: Session, _: Args) -> Result<String> {
    let rom = |r: machine::Rom| {
        format!("addr={:016x} size={:#08x} mem=rom name=\"{}\"\n", r.address, r.image.len(), r.name)
    };
    Ok(session.machine().memory.roms().into_iter().map(rom).collect())
}

/// What devices say about an item; `none` if no device says anything.
fn from_devices(session: &Session, item: &str, none: &str) -> String {
    let entries = session.machine().devices.entries();
    let told: String = entries
        .iter()
        .filter_map(|e| e.device.info(item))
        .map(|mut text| {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        })
        .collect();
    if told.is_empty() { none.into() } else { told }
}

pub async fn irq(session: Session, _: Args) -> Result<String> {
    Ok(from_devices(&session, "irq", "No interrupt controller tells statistics.\n"))
}

pub async fn pic(session: Session, _: Args) -> Result<String> {
    Ok(from_devices(&session, "pic", "The machine has no interrupt controller.\n"))
}

pub async fn lapic(session: Session, _: Args) -> Result<String> {
    Ok(from_devices(&session, "lapic", "No local APIC state available.\n"))
}

pub async fn pci(session: Session, _: Args) -> Result<String> {
    let buses = session.control.call(QueryPci {}).await?;
    if buses.is_empty() {
        return Ok("PCI not supported\n".into());
    }
    let mut out = String::new();
    for bus in buses {
        bus.devices.iter().for_each(|d| pci_device(&mut out, d));
    }
    Ok(out)
}

fn pci_device(out: &mut String, dev: &PciDeviceInfo) {
    let _ = writeln!(out, "  Bus {:2}, device {:3}, function {}:", dev.bus, dev.slot, dev.function);
    let class = dev.class_info.desc.clone().unwrap_or_else(|| format!("Class {:04x}", dev.class_info.class));
    let _ = writeln!(out, "    {class}: PCI device {:04x}:{:04x}", dev.id.vendor, dev.id.device);
    if let (Some(vendor), Some(subsystem)) = (dev.id.subsystem_vendor, dev.id.subsystem) {
        let _ = writeln!(out, "      PCI subsystem {vendor:04x}:{subsystem:04x}");
    }
    if let Some(irq) = dev.irq {
        let pin = char::from(b'A' + (dev.irq_pin.clamp(1, 4) - 1) as u8);
        let _ = writeln!(out, "      IRQ {irq}, pin {pin}");
    }
    if let Some(bridge) = &dev.pci_bridge {
        let bus = &bridge.bus;
        let _ = writeln!(out, "      BUS {}.", bus.number);
        let _ = writeln!(out, "      secondary bus {}.", bus.secondary);
        let _ = writeln!(out, "      subordinate bus {}.", bus.subordinate);
        let _ = writeln!(out, "      IO range [0x{:04x}, 0x{:04x}]", bus.io_range.base, bus.io_range.limit);
        for (name, range) in [("memory", &bus.memory_range), ("prefetchable memory", &bus.prefetchable_range)]
        {
            let _ = writeln!(out, "      {name} range [0x{:08x}, 0x{:08x}]", range.base, range.limit);
        }
    }
    for region in &dev.regions {
        let (first, last) = (region.address, region.address.wrapping_add(region.size).wrapping_sub(1));
        let _ = match region.kind {
            PciRegionType::Io => {
                writeln!(out, "      BAR{}: I/O at 0x{first:04x} [0x{last:04x}].", region.bar)
            }
            PciRegionType::Memory => {
                let bits = if region.mem_type_64 == Some(true) { 64 } else { 32 };
                let kind = if region.prefetch == Some(true) { " prefetchable" } else { "" };
                writeln!(
                    out,
                    "      BAR{}: {bits} bit{kind} memory at 0x{first:08x} [0x{last:08x}].",
                    region.bar
                )
            }
        };
    }
    let _ = writeln!(out, "      id \"{}\"", dev.qdev_id);
    if let Some(PciBridgeInfo { devices: Some(behind), .. }) = &dev.pci_bridge {
        behind.iter().for_each(|d| pci_device(out, d));
    }
}
