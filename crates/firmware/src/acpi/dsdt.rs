//! The DSDT: PCI root, legacy devices, interrupt links, processors, sleep states.

use super::routing;
use super::term::*;
use super::{hotplug, isa};
use crate::platform::{ECAM, HPET, Platform};

/// The definition block's contents (what follows the table header).
pub fn body(platform: &Platform) -> Vec<u8> {
    let mut block = Vec::new();
    let mut add = |term: Term| block.extend(term.into_bytes());
    // Set by the operating system: 0 uses the 8259s, 1 the I/O APIC.
    add(name("PICF", int(0)));
    add(method("_PIC", 1, false, &[store(path("PICF"), arg(0))]));
    add(scope("\\_SB_", &system_bus(platform)));
    if !platform.is_q35() {
        add(hotplug::event());
    }
    sleep_states(platform).into_iter().for_each(add);
    block
}

fn system_bus(platform: &Platform) -> Vec<Term> {
    let mut devices = vec![pci_root(platform)];
    devices.extend(routing::links(platform));
    devices.push(motherboard(platform));
    if platform.isa.hpet {
        devices.push(hpet());
    }
    if let Some(port) = platform.isa.pvpanic {
        devices.push(isa::pvpanic(port));
    }
    devices.push(isa::fw_cfg());
    devices.extend(platform.cpus.iter().enumerate().map(|(index, slot)| processor(index, slot.present)));
    devices
}

fn pci_root(platform: &Platform) -> Term {
    let mut children = if platform.is_q35() {
        vec![name("_HID", eisa("PNP0A08")), name("_CID", eisa("PNP0A03"))]
    } else {
        vec![name("_HID", eisa("PNP0A03"))]
    };
    children.push(name("_UID", int(0)));
    children.push(name("_BBN", int(0)));
    children.push(name("_CRS", windows(platform)));
    children.push(routing::prt(platform));
    if platform.is_q35() {
        children.push(osc());
    }
    children.push(isa::bridge(platform));
    if !platform.is_q35() {
        children.extend(hotplug::slots());
    }
    device("PCI0", &children)
}

/// Buses, ports and memory that the root bridge passes on.
fn windows(platform: &Platform) -> Term {
    let (first, last) = platform.pci32();
    let mut ranges = vec![
        bus_window(0, 255),
        io(0xcf8, 8),
        io_window(0, 0xcf7),
        io_window(0xd00, 0xffff),
        memory_window(0xa_0000, 0xb_ffff),
        memory_window(first as u32, last as u32),
    ];
    if let Some((first, last)) = platform.pci64() {
        ranges.push(memory_window64(first, last));
    }
    resources(&ranges)
}

/// PCI Express feature negotiation (PCI Firmware 3.2 §4.5.1): native hot-plug, PME, AER and
/// the capability structure are granted, SHPC is not.
fn osc() -> Term {
    let capabilities = || path("CDW1");
    let flag = |bits| or(capabilities(), capabilities(), int(bits));
    method(
        "_OSC",
        4,
        true,
        &[
            dword_field(arg(3), 0, "CDW1"),
            when(
                equal(arg(0), uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                &[
                    dword_field(arg(3), 4, "CDW2"),
                    dword_field(arg(3), 8, "CDW3"),
                    and(local(0), path("CDW3"), int(0x1d)),
                    when(not_equal(arg(1), int(1)), &[flag(0x08)]),
                    when(not_equal(path("CDW3"), local(0)), &[flag(0x10)]),
                    store(path("CDW3"), local(0)),
                ],
            ),
            otherwise(&[flag(0x04)]),
            returns(arg(3)),
        ],
    )
}

/// Ports and memory that belong to the board and that no driver may take.
fn motherboard(platform: &Platform) -> Term {
    let pm = &platform.pm;
    // The PM block at its base belongs to a PCI function.
    let mut ranges = vec![io(pm.smi_command, 2), io(0x4d0, 2), io(0x92, 1)];
    if !platform.is_q35() {
        ranges.push(io(pm.gpe0, pm.gpe0_len));
        ranges.push(io(hotplug::PORTS.0, hotplug::PORTS.1));
    }
    if platform.is_q35() {
        ranges.push(memory32(true, ECAM.0 as u32, ECAM.1 as u32));
    }
    device("MBRD", &[name("_HID", eisa("PNP0C02")), name("_UID", int(1)), name("_CRS", resources(&ranges))])
}

fn hpet() -> Term {
    device(
        "HPET",
        &[
            name("_HID", eisa("PNP0103")),
            name("_UID", int(0)),
            name("_STA", int(0xf)),
            name("_CRS", resources(&[memory32(false, HPET, 0x400)])),
        ],
    )
}

fn processor(index: usize, present: bool) -> Term {
    let digit = |shift: usize| char::from_digit((index >> shift & 15) as u32, 16).unwrap_or('0');
    let path: String = ['C', digit(8), digit(4), digit(0)].iter().collect::<String>().to_uppercase();
    let status = if present { 0xf } else { 0 };
    device(
        &path,
        &[name("_HID", text("ACPI0007")), name("_UID", int(index as u64)), name("_STA", int(status))],
    )
}

/// SLP_TYP values of the sleep states (PM1 control register bits 10 to 12).
fn sleep_states(platform: &Platform) -> Vec<Term> {
    let state = |at: &str, kind| name(at, package(&[int(kind), int(kind), int(0), int(0)]));
    let mut states = Vec::new();
    if platform.s3 {
        states.push(state("_S3_", 1));
    }
    if platform.s4 {
        states.push(state("_S4_", 2));
    }
    states.push(state("_S5_", 0));
    states
}
