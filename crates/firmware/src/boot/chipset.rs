//! What a firmware does to chipset and processors before it loads an operating system.

use crate::platform::{Chipset, ECAM, Platform};
use base::GIB;
use cpu::CpuState;
use memory::AddressSpace;

const ADDRESS_PORT: u64 = 0xcf8;
const DATA_PORT: u64 = 0xcfc;
/// 8259 inputs of PIRQA-D (and E-H).
const PIRQ: [u8; 4] = [10, 10, 11, 11];

/// Configuration accesses of bus 0 by mechanism 1.
struct Config<'a>(&'a AddressSpace);

impl Config<'_> {
    fn select(&self, devfn: u8, offset: u8) {
        let address = 1 << 31 | u64::from(devfn) << 8 | u64::from(offset & 0xfc);
        self.0.store(ADDRESS_PORT, 4, address);
    }

    fn read(&self, devfn: u8, offset: u8, size: u8) -> u32 {
        self.select(devfn, offset);
        self.0.load(DATA_PORT + u64::from(offset & 3), size) as u32
    }

    fn write(&self, devfn: u8, offset: u8, size: u8, value: u32) {
        self.select(devfn, offset);
        self.0.store(DATA_PORT + u64::from(offset & 3), size, value.into());
    }

    fn bytes(&self, devfn: u8, offset: u8, values: &[u8]) {
        for (at, &value) in (offset..).zip(values) {
            self.write(devfn, at, 1, value.into());
        }
    }
}

const fn devfn(slot: u8, function: u8) -> u8 {
    slot << 3 | function
}

/// Programs the chipset: shadow RAM readable and writable, PM base, interrupt routing and
/// levels, the configuration window of q35, addresses of the functions on bus 0. Call it
/// after the devices were reset.
pub fn program(platform: &Platform, ports: &AddressSpace) {
    let config = Config(ports);
    let pm_base = u32::from(platform.pm.pm_base) | 1;
    const SHADOW: [u8; 7] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];
    match platform.chipset {
        Chipset::I440fx => {
            config.bytes(devfn(0, 0), 0x59, &SHADOW);
            config.bytes(devfn(1, 0), 0x60, &PIRQ);
            // Both IDE channels decode their legacy ports.
            config.write(devfn(1, 1), 0x40, 2, 0x8000);
            config.write(devfn(1, 1), 0x42, 2, 0x8000);
            config.write(devfn(1, 3), 0x40, 4, pm_base);
            config.write(devfn(1, 3), 0x80, 1, 1);
            config.write(devfn(1, 3), 0x90, 4, 0xb101);
            config.write(devfn(1, 3), 0xd2, 1, 9);
        }
        Chipset::Q35 => {
            config.bytes(devfn(0, 0), 0x90, &SHADOW);
            config.write(devfn(0, 0), 0x64, 4, 0);
            config.write(devfn(0, 0), 0x60, 4, ECAM.0 as u32 | 1);
            config.write(devfn(31, 0), 0x40, 4, pm_base);
            config.write(devfn(31, 0), 0x44, 1, 0x80);
            config.bytes(devfn(31, 0), 0x60, &PIRQ);
            config.bytes(devfn(31, 0), 0x68, &PIRQ);
        }
    }
    // Edge/level register: 10 and 11 are level triggered.
    ports.store(0x4d0, 1, 0);
    ports.store(0x4d1, 1, 0x0c);
    assign(platform, &config);
}

/// Gives each function of bus 0 addresses and its interrupt line, and switches decoding on.
fn assign(platform: &Platform, config: &Config<'_>) {
    let (first, last) = platform.pci32();
    let mut memory = Window { next: first, last };
    let mut io = Window { next: 0xc000, last: 0xffff };
    for at in 0..=255u8 {
        if config.read(at, 0, 2) == 0xffff {
            continue;
        }
        let multifunction = config.read(at & 0xf8, 0x0e, 1) & 0x80 != 0;
        if at & 7 != 0 && !multifunction {
            continue;
        }
        let bars = if config.read(at, 0x0e, 1) & 0x7f == 0 { 6 } else { 0 };
        let mut decode = 0;
        let mut bar = 0;
        while bar < bars {
            let (used, bits) = assign_bar(config, at, bar, &mut memory, &mut io);
            decode |= bits;
            bar += used;
        }
        let pin = config.read(at, 0x3d, 1) as u8;
        if (1..=4).contains(&pin) {
            let line = PIRQ[usize::from(pirq(platform.chipset, at >> 3, pin - 1) & 3)];
            config.write(at, 0x3c, 1, line.into());
        }
        if decode != 0 {
            let command = config.read(at, 4, 2);
            config.write(at, 4, 2, command | decode);
        }
    }
}

/// The PIRQ that a pin (0 = INTA) of a slot is wired to.
fn pirq(chipset: Chipset, slot: u8, pin: u8) -> u8 {
    match chipset {
        Chipset::I440fx => (slot + pin + 3) % 4,
        Chipset::Q35 if slot < 25 => (slot + pin) % 4,
        Chipset::Q35 => pin,
    }
}

struct Window {
    next: u64,
    last: u64,
}

impl Window {
    fn take(&mut self, len: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(len)?;
        let end = start.checked_add(len).filter(|&end| end - 1 <= self.last)?;
        self.next = end;
        Some(start)
    }
}

/// Sizes and sets one base address register; how many registers it took and the command
/// bits that it needs.
fn assign_bar(config: &Config<'_>, at: u8, bar: u8, memory: &mut Window, io: &mut Window) -> (u8, u32) {
    let offset = 0x10 + 4 * bar;
    let old = config.read(at, offset, 4);
    let is_io = old & 1 != 0;
    let wide = !is_io && old & 6 == 4 && bar < 5;
    let used = if wide { 2 } else { 1 };
    config.write(at, offset, 4, u32::MAX);
    let mask = config.read(at, offset, 4) & if is_io { 0xffff_fffc } else { 0xffff_fff0 };
    config.write(at, offset, 4, old);
    let len = if is_io { u64::from((!mask & 0xffff) + 1) } else { u64::from(!mask) + 1 };
    if mask == 0 || !len.is_power_of_two() {
        return (used, 0);
    }
    let (window, bits) = if is_io { (io, 1) } else { (memory, 2) };
    // Pages of their own, so that an operating system may map registers separately.
    let Some(start) = window.take(if is_io { len } else { len.max(4096) }) else { return (used, 0) };
    config.write(at, offset, 4, start as u32);
    if wide {
        config.write(at, offset + 4, 4, 0);
    }
    (used, bits)
}

/// Memory types as a firmware sets them on every processor: write-back, but uncached
/// for the legacy video memory and the PCI window below 4 GiB.
pub fn cpu(platform: &Platform, state: &mut CpuState) {
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    const WRITE_PROTECT: u64 = 0x0505_0505_0505_0505;
    let mtrrs = &mut state.msr;
    mtrrs.mtrr_def_type = 0xc06;
    mtrrs.mtrr_fixed = [WRITE_PROTECT; 11];
    mtrrs.mtrr_fixed[0] = WRITE_BACK;
    mtrrs.mtrr_fixed[1] = WRITE_BACK;
    mtrrs.mtrr_fixed[2] = 0;
    mtrrs.mtrr_variable = [(0, 0); 8];
    let mut start = platform.pci32().0;
    if platform.is_q35() {
        start = ECAM.0.max(platform.ram_low).min(start);
    }
    let address_mask = 1u64.checked_shl(platform.phys_bits.into()).map_or(u64::MAX, |bit| bit - 1);
    for pair in &mut mtrrs.mtrr_variable {
        if start >= 4 * GIB {
            break;
        }
        let len = 1 << start.trailing_zeros();
        *pair = (start, (address_mask & !(len - 1)) | 0x800);
        start += len;
    }
}
