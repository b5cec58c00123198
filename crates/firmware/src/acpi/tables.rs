//! The tables that are plain records (ACPI 6.4 ch. 5; HPET 1.0a §3.2.4; MCFG: PCI Firmware 3.2 §4.1.2).

use super::layout::Layout;
use crate::platform::{ECAM, HPET, IOAPIC, LOCAL_APIC, NumaNode, Platform};
use base::GIB;

/// FACS: no header, 64 bytes, aligned to 64.
pub fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes
}

/// FADT, revision 3 (244 bytes). The caller makes bytes 36, 40 and 140 pointers.
pub fn fadt(platform: &Platform) -> Vec<u8> {
    let mut table = header(b"FACP", 3, 244);
    let pm = &platform.pm;
    let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
    put(46, &u16::from(pm.sci).to_le_bytes());
    put(48, &u32::from(pm.smi_command).to_le_bytes());
    put(52, &[pm.acpi_enable, pm.acpi_disable]);
    put(56, &u32::from(pm.pm_base).to_le_bytes());
    put(64, &u32::from(pm.pm_base + 4).to_le_bytes());
    put(76, &u32::from(pm.pm_base + 8).to_le_bytes());
    put(80, &u32::from(pm.gpe0).to_le_bytes());
    // Lengths of PM1 event, PM1 control, PM2 control, PM timer, GPE0, GPE1; GPE1 base.
    put(88, &[4, 2, 0, 4, pm.gpe0_len, 0, 0]);
    // No C2 and C3.
    put(96, &0xfffu16.to_le_bytes());
    put(98, &0xfffu16.to_le_bytes());
    // Century in CMOS byte 32h.
    put(108, &[0x32]);
    put(109, &boot_architecture(platform).to_le_bytes());
    put(112, &fadt_flags(platform).to_le_bytes());
    // Reset register: port CF9h, value 6.
    put(116, &address(0xcf9, 8));
    put(128, &[6]);
    put(148, &address(pm.pm_base, 32));
    put(172, &address(pm.pm_base + 4, 16));
    put(208, &address(pm.pm_base + 8, 32));
    put(220, &address(pm.gpe0, pm.gpe0_len * 8));
    table
}

/// A generic address structure for ports.
fn address(port: u16, bits: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = 1;
    bytes[1] = bits;
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

fn boot_architecture(platform: &Platform) -> u16 {
    let isa = &platform.isa;
    let legacy = isa.serial.iter().chain(&isa.parallel).any(|&there| there) || isa.floppy || isa.i8042;
    u16::from(legacy) | u16::from(isa.i8042) << 1 | u16::from(!isa.vga) << 2
}

fn fadt_flags(platform: &Platform) -> u32 {
    const WBINVD: u32 = 1;
    const PROC_C1: u32 = 1 << 2;
    const NO_FIXED_SLEEP_BUTTON: u32 = 1 << 5;
    const RTC_S4: u32 = 1 << 7;
    const RESET_REGISTER: u32 = 1 << 10;
    const USE_PLATFORM_CLOCK: u32 = 1 << 15;
    const FORCE_CLUSTER_MODEL: u32 = 1 << 18;
    let many = platform.cpus.iter().any(|slot| slot.apic_id >= 8);
    WBINVD
        | PROC_C1
        | NO_FIXED_SLEEP_BUTTON
        | RTC_S4
        | RESET_REGISTER
        | USE_PLATFORM_CLOCK
        | if many { FORCE_CLUSTER_MODEL } else { 0 }
}

pub fn madt(platform: &Platform) -> Vec<u8> {
    let mut table = header(b"APIC", 3, 36);
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend(1u32.to_le_bytes()); // also has 8259s
    for (uid, slot) in (0u32..).zip(&platform.cpus) {
        let enabled = u32::from(slot.present).to_le_bytes();
        match u8::try_from(slot.apic_id) {
            Ok(id) if id < 255 => {
                table.extend([0, 8, uid as u8, id]);
                table.extend(enabled);
            }
            _ => {
                table.extend([9, 16, 0, 0]);
                table.extend(slot.apic_id.to_le_bytes());
                table.extend(enabled);
                table.extend(uid.to_le_bytes());
            }
        }
    }
    table.extend([1, 12, 0, 0]);
    table.extend(IOAPIC.to_le_bytes());
    table.extend(0u32.to_le_bytes());
    let mut override_irq = |irq: u8, gsi: u32, flags: u16| {
        table.extend([2, 10, 0, irq]);
        table.extend(gsi.to_le_bytes());
        table.extend(flags.to_le_bytes());
    };
    override_irq(0, 2, 0);
    // Those that PCI interrupts and the SCI use: active high, level.
    [5, 9, 10, 11].into_iter().for_each(|irq| override_irq(irq, irq.into(), 0xd));
    // LINT1 of every processor is NMI.
    table.extend([4, 6, 0xff, 0, 0, 1]);
    if platform.cpus.iter().any(|slot| slot.apic_id >= 255) {
        table.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table
}

pub fn hpet() -> Vec<u8> {
    let mut table = header(b"HPET", 1, 36);
    // Capabilities: Intel, 3 timers, 64 bits, legacy replacement, revision 1.
    table.extend(0x8086_a201u32.to_le_bytes());
    table.extend([0; 4]);
    table.extend(u64::from(HPET).to_le_bytes());
    table.extend([0; 4]);
    table
}

pub fn mcfg() -> Vec<u8> {
    let mut table = header(b"MCFG", 1, 44);
    table.extend(ECAM.0.to_le_bytes());
    // Segment 0, buses 0 to 255.
    table.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    table
}

/// WAET: one read of the PM timer suffices.
pub fn waet() -> Vec<u8> {
    let mut table = header(b"WAET", 1, 36);
    table.extend(2u32.to_le_bytes());
    table
}

pub fn srat(platform: &Platform) -> Vec<u8> {
    let mut table = header(b"SRAT", 1, 36);
    table.extend(1u32.to_le_bytes());
    table.extend([0; 8]);
    for (uid, slot) in (0u32..).zip(&platform.cpus) {
        let node = slot.node.to_le_bytes();
        if slot.apic_id < 255 {
            table.extend([0, 16, node[0], slot.apic_id as u8, 1, 0, 0, 0, 0, node[1], node[2], node[3]]);
            table.extend([0; 4]);
        } else {
            let _ = uid;
            table.extend([2, 24, 0, 0]);
            table.extend(node);
            table.extend(slot.apic_id.to_le_bytes());
            table.extend(1u32.to_le_bytes());
            table.extend([0; 8]);
        }
    }
    for (node, start, len) in node_ranges(platform) {
        table.extend([1, 40]);
        table.extend(node.to_le_bytes());
        table.extend([0; 2]);
        table.extend(start.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend([0; 4]);
        table.extend(1u32.to_le_bytes());
        table.extend([0; 8]);
    }
    table
}

/// (node, start, length) of each node's RAM: nodes take it in order, leaving out the hole
/// between 640 KiB and 1 MiB and the one below 4 GiB.
fn node_ranges(platform: &Platform) -> Vec<(u32, u64, u64)> {
    let (low, high) = (platform.ram_low, 4 * GIB + platform.ram_high);
    let pieces = [(0, 0xa_0000.min(low)), (0x10_0000, low), (4 * GIB, high)];
    let mut ranges = Vec::new();
    // Position in RAM as installed; the hole's RAM exists but is not usable.
    let mut from = 0u64;
    for (node, NumaNode { memory, .. }) in (0u32..).zip(&platform.numa) {
        let to = from.saturating_add(*memory);
        for &(start, end) in &pieces {
            let shift = if start >= 4 * GIB { 4 * GIB - low } else { 0 };
            let first = start.max(from.saturating_add(shift));
            let last = end.min(to.saturating_add(shift));
            if last > first {
                ranges.push((node, first, last - first));
            }
        }
        from = to;
    }
    ranges
}

pub fn slit(platform: &Platform) -> Vec<u8> {
    let nodes = platform.numa.len();
    let mut table = header(b"SLIT", 1, 36);
    table.extend((nodes as u64).to_le_bytes());
    for (from, node) in platform.numa.iter().enumerate() {
        let usual = |to: usize| if from == to { 10 } else { 20 };
        table.extend((0..nodes).map(|to| node.distances.get(to).copied().unwrap_or(usual(to))));
    }
    table
}

/// A table header of `len` bytes in all; length and checksum follow in [`Layout::table`].
pub fn header(signature: &[u8; 4], revision: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len.max(Layout::HEADER)];
    bytes[..4].copy_from_slice(signature);
    bytes[8] = revision;
    bytes[10..16].copy_from_slice(b"RYOKAN");
    bytes[16..20].copy_from_slice(b"RYKN");
    bytes[20..24].copy_from_slice(signature);
    bytes[24..28].copy_from_slice(&1u32.to_le_bytes());
    bytes[28..32].copy_from_slice(b"RYKN");
    bytes[32..36].copy_from_slice(&1u32.to_le_bytes());
    bytes
}
