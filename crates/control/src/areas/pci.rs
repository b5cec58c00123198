use crate::{Call, Routes};
use base::Result;
use device::pci::{PciBus, Region, RegionKind, regs};
use device::{BusKind, Device};
use schema::pci::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(query_pci);
}

async fn query_pci(call: Call, _: QueryPci) -> Result<Vec<PciInfo>> {
    let entries = call.machine().devices.entries();
    let behind: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.device.pci()?.secondary_bus())
        .map(|bus| device::Bus::name(&*bus))
        .collect();
    let roots = call.machine().devices.buses().into_iter().filter(|bus| bus.kind() == BusKind::Pci);
    let roots = roots.filter(|bus| !behind.contains(&bus.name()));
    let roots = roots.filter_map(|bus| bus.as_any().downcast::<PciBus>().ok());
    Ok(roots.map(|bus| PciInfo { bus: 0, devices: functions(&call, &bus, 0) }).collect())
}

fn functions(call: &Call, bus: &Arc<PciBus>, number: i64) -> Vec<PciDeviceInfo> {
    bus.functions().into_iter().map(|(at, device)| function(call, bus, at, &device, number)).collect()
}

fn function(call: &Call, bus: &PciBus, at: u8, device: &Arc<dyn Device>, number: i64) -> PciDeviceInfo {
    let read = |offset: u16, size: u8| i64::from(bus.config_read(at, offset, size));
    let class = read(regs::REVISION + 2, 2);
    let pin = read(regs::INTERRUPT_PIN, 1);
    let is_bridge = read(regs::HEADER_TYPE, 1) & 0x7f == 1;
    let entries = call.machine().devices.entries();
    let entry = entries.iter().find(|entry| Arc::ptr_eq(&entry.device, device));
    PciDeviceInfo {
        bus: number,
        slot: i64::from(at >> 3),
        function: i64::from(at & 7),
        class_info: PciDeviceClass { desc: class_name(class).map(str::to_string), class },
        id: PciDeviceId {
            device: read(2, 2),
            vendor: read(0, 2),
            subsystem: (!is_bridge).then(|| read(0x2e, 2)),
            subsystem_vendor: (!is_bridge).then(|| read(0x2c, 2)),
        },
        irq: (pin != 0).then(|| read(regs::INTERRUPT_LINE, 1)),
        irq_pin: pin,
        qdev_id: entry.and_then(|entry| entry.id.clone()).unwrap_or_default(),
        pci_bridge: is_bridge.then(|| bridge(call, device, &read)),
        regions: device
            .pci()
            .map(|pci| pci.core().regions().into_iter().map(region).collect())
            .unwrap_or_default(),
    }
}

/// A type 1 header (PCI-to-PCI bridge specification 1.2, §3.2).
fn bridge(call: &Call, device: &Arc<dyn Device>, read: &dyn Fn(u16, u8) -> i64) -> PciBridgeInfo {
    let secondary = read(0x19, 1);
    let io_high = |offset| if read(0x1c, 1) & 0xf == 1 { read(offset, 2) << 16 } else { 0 };
    let pref_high = |offset| if read(0x24, 2) & 0xf == 1 { read(offset, 4) << 32 } else { 0 };
    let behind = device.pci().and_then(|pci| pci.secondary_bus());
    PciBridgeInfo {
        bus: PciBusInfo {
            number: read(0x18, 1),
            secondary,
            subordinate: read(0x1a, 1),
            io_range: PciMemoryRange {
                base: (read(0x1c, 1) & 0xf0) << 8 | io_high(0x30),
                limit: (read(0x1d, 1) & 0xf0) << 8 | 0xfff | io_high(0x32),
            },
            memory_range: PciMemoryRange {
                base: (read(0x20, 2) & 0xfff0) << 16,
                limit: (read(0x22, 2) & 0xfff0) << 16 | 0xfffff,
            },
            prefetchable_range: PciMemoryRange {
                base: (read(0x24, 2) & 0xfff0) << 16 | pref_high(0x28),
                limit: (read(0x26, 2) & 0xfff0) << 16 | 0xfffff | pref_high(0x2c),
            },
        },
        devices: behind.map(|bus| functions(call, &bus, secondary)),
    }
}

fn region(region: Region) -> PciMemoryRegion {
    let memory = region.kind != RegionKind::Io;
    let prefetch = matches!(region.kind, RegionKind::Memory32Prefetch | RegionKind::Memory64Prefetch);
    PciMemoryRegion {
        bar: region.index as i64,
        kind: if memory { PciRegionType::Memory } else { PciRegionType::Io },
        address: region.address.map_or(-1, |address| address as i64),
        size: region.size as i64,
        prefetch: memory.then_some(prefetch),
        mem_type_64: memory.then_some(region.kind.is_64()),
    }
}

/// Names of base and sub class (PCI Code and ID Assignment, appendix D).
fn class_name(class: i64) -> Option<&'static str> {
    Some(match class {
        0x0100 => "SCSI controller",
        0x0101 => "IDE controller",
        0x0102 => "Floppy controller",
        0x0106 => "SATA controller",
        0x0108 => "NVMe controller",
        0x0180 => "Storage controller",
        0x0200 => "Ethernet controller",
        0x0280 => "Network controller",
        0x0300 => "VGA controller",
        0x0380 => "Display controller",
        0x0401 | 0x0403 => "Audio controller",
        0x0500 => "RAM controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0680 => "Bridge",
        0x0700 => "Serial port",
        0x0780 => "Communication controller",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        _ => return None,
    })
}
