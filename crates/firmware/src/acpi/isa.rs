//! Legacy devices behind the ISA bridge, and others with fixed ports.

use super::term::*;
use crate::platform::Platform;
use acpi_tables::aml::OpRegionSpace::PCIConfig;

const PRESENT: u64 = 0xf;

/// The ISA (LPC) bridge with its interrupt routing registers and the devices behind it.
pub fn bridge(platform: &Platform) -> Term {
    let mut children = if platform.is_q35() {
        vec![
            name("_ADR", int(0x1f_0000)),
            region("PIRA", PCIConfig, 0x60, 4),
            byte_fields("PIRA", &[b"PRQA", b"PRQB", b"PRQC", b"PRQD"]),
            region("PIRE", PCIConfig, 0x68, 4),
            byte_fields("PIRE", &[b"PRQE", b"PRQF", b"PRQG", b"PRQH"]),
        ]
    } else {
        vec![
            name("_ADR", int(0x1_0000)),
            region("PIRA", PCIConfig, 0x60, 4),
            byte_fields("PIRA", &[b"PRQA", b"PRQB", b"PRQC", b"PRQD"]),
        ]
    };
    let isa = &platform.isa;
    children.push(simple("RTC_", "PNP0B00", 0, &[io(0x70, 8), irq(8)]));
    if isa.i8042 {
        children.push(simple("KBD_", "PNP0303", 0, &[io(0x60, 1), io(0x64, 1), irq(1)]));
        children.push(simple("MOU_", "PNP0F13", 0, &[irq(12)]));
    }
    const SERIAL: [(&str, u16, u8); 4] =
        [("COM1", 0x3f8, 4), ("COM2", 0x2f8, 3), ("COM3", 0x3e8, 4), ("COM4", 0x2e8, 3)];
    for (uid, (at, port, line)) in (1..).zip(SERIAL) {
        if isa.serial[uid - 1] {
            children.push(simple(at, "PNP0501", uid as u64, &[io(port, 8), irq(line)]));
        }
    }
    const PARALLEL: [(&str, u16, u8); 3] = [("LPT1", 0x378, 7), ("LPT2", 0x278, 5), ("LPT3", 0x3bc, 7)];
    for (uid, (at, port, line)) in (1..).zip(PARALLEL) {
        if isa.parallel[uid - 1] {
            children.push(simple(at, "PNP0400", uid as u64, &[io(port, 8), irq(line)]));
        }
    }
    if isa.floppy {
        children.push(simple("FDC0", "PNP0700", 0, &[io(0x3f2, 4), io(0x3f7, 1), irq(6), dma(2)]));
    }
    device("ISA_", &children)
}

fn simple(at: &str, id: &str, uid: u64, ranges: &[Term]) -> Term {
    let mut children = vec![name("_HID", eisa(id))];
    if uid > 0 {
        children.push(name("_UID", int(uid)));
    }
    children.push(name("_STA", int(PRESENT)));
    children.push(name("_CRS", resources(ranges)));
    device(at, &children)
}

/// The pvpanic device: a guest driver finds it by its id and port.
pub fn pvpanic(port: u16) -> Term {
    device(
        "PEVT",
        &[
            name("_HID", text("QEMU0001")),
            name("_STA", int(PRESENT)),
            name("_CRS", resources(&[io(port, 1)])),
        ],
    )
}

/// The fw_cfg device, not shown in user interfaces.
pub fn fw_cfg() -> Term {
    device(
        "FWCF",
        &[name("_HID", text("QEMU0002")), name("_STA", int(0xb)), name("_CRS", resources(&[io(0x510, 12)]))],
    )
}
