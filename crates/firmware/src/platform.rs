//! The board as tables describe it.

use base::{GIB, MIB};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    /// i440FX and PIIX3/PIIX4.
    I440fx,
    /// Q35 and ICH9.
    Q35,
}

/// A place for a processor; `maxcpus` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSlot {
    pub apic_id: u32,
    /// Plugged in at start.
    pub present: bool,
    /// NUMA node (0 without NUMA).
    pub node: u32,
}

/// One NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NumaNode {
    /// Bytes of RAM; nodes take RAM in ascending order.
    pub memory: u64,
    /// Distance to each node (10: itself). Empty: 10 and 20.
    pub distances: Vec<u8>,
}

/// Which legacy devices the board has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IsaDevices {
    /// 8042 with PS/2 keyboard and mouse.
    pub i8042: bool,
    /// COM1 to COM4.
    pub serial: [bool; 4],
    /// LPT1 to LPT3.
    pub parallel: [bool; 3],
    pub floppy: bool,
    /// Port of the pvpanic device.
    pub pvpanic: Option<u16>,
    pub hpet: bool,
    /// A VGA-compatible display.
    pub vga: bool,
}

/// Fixed ACPI hardware (ACPI 3.0 §4.7), as the board decodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmBlocks {
    /// PM1a event block (4 bytes), control block at +4, timer at +8.
    pub pm_base: u16,
    pub gpe0: u16,
    /// Bytes: half status, half enable.
    pub gpe0_len: u8,
    pub sci: u8,
    pub smi_command: u16,
    pub acpi_enable: u8,
    pub acpi_disable: u8,
}

impl PmBlocks {
    /// What SeaBIOS programs (and [`crate::boot::chipset`] without it).
    pub fn of(chipset: Chipset) -> Self {
        let (gpe0, gpe0_len, acpi_enable, acpi_disable) = match chipset {
            Chipset::I440fx => (0xafe0, 4, 0xf1, 0xf0),
            Chipset::Q35 => (0x620, 16, 2, 3),
        };
        PmBlocks { pm_base: 0x600, gpe0, gpe0_len, sci: 9, smi_command: 0xb2, acpi_enable, acpi_disable }
    }
}

/// Everything that firmware tables tell about a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub chipset: Chipset,
    pub cpus: Vec<CpuSlot>,
    /// Bytes of RAM from address 0.
    pub ram_low: u64,
    /// Bytes of RAM from 4 GiB.
    pub ram_high: u64,
    /// Empty: no NUMA tables.
    pub numa: Vec<NumaNode>,
    pub isa: IsaDevices,
    pub pm: PmBlocks,
    pub s3: bool,
    pub s4: bool,
    /// Physical address width of the CPUs, in bits.
    pub phys_bits: u8,
}

/// The PCI Express configuration window of q35: base and length.
pub const ECAM: (u64, u64) = (0xb000_0000, 0x1000_0000);
pub const IOAPIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
pub const HPET: u32 = 0xfed0_0000;
/// End of the 32-bit PCI memory window (inclusive): the I/O APIC follows.
pub const PCI32_LAST: u64 = 0xfebf_ffff;

impl Platform {
    /// A board with its customary devices and `cpus` processors of APIC ids 0, 1, 2...
    pub fn new(chipset: Chipset, cpus: u32, ram: u64) -> Self {
        let (ram_low, ram_high) = split_ram(chipset, ram);
        let slot = |apic_id| CpuSlot { apic_id, present: true, node: 0 };
        let serial = [true, false, false, false];
        Platform {
            chipset,
            cpus: (0..cpus).map(slot).collect(),
            ram_low,
            ram_high,
            numa: Vec::new(),
            isa: IsaDevices { i8042: true, serial, hpet: true, ..IsaDevices::default() },
            pm: PmBlocks::of(chipset),
            s3: true,
            s4: true,
            phys_bits: 40,
        }
    }

    /// The 32-bit window of PCI memory: first and last address.
    pub fn pci32(&self) -> (u64, u64) {
        let start = match self.chipset {
            // Above the configuration window, wherever RAM ends below it.
            Chipset::Q35 => ECAM.0 + ECAM.1,
            Chipset::I440fx => self.ram_low.max(0x8000_0000).next_multiple_of(256 * MIB).min(0xe000_0000),
        };
        (start, PCI32_LAST)
    }

    /// The 64-bit window of PCI memory: first and last address.
    pub fn pci64(&self) -> Option<(u64, u64)> {
        let end = 1u64.checked_shl(self.phys_bits.into()).unwrap_or(u64::MAX);
        let start = (4 * GIB).checked_add(self.ram_high)?.checked_next_multiple_of(GIB)?;
        let len = (end.checked_sub(start)?).min(512 * GIB);
        (len >= GIB).then(|| (start, start + len - 1))
    }

    pub fn is_q35(&self) -> bool {
        self.chipset == Chipset::Q35
    }
}

/// RAM below and above 4 GiB (catalog.md §4).
pub fn split_ram(chipset: Chipset, ram: u64) -> (u64, u64) {
    let (most, split) = match chipset {
        Chipset::I440fx => (0xe000_0000, 0xc000_0000),
        Chipset::Q35 => (0xb000_0000, 0x8000_0000),
    };
    let fits = match chipset {
        Chipset::I440fx => ram < most,
        Chipset::Q35 => ram <= most,
    };
    if fits { (ram, 0) } else { (split, ram - split) }
}
