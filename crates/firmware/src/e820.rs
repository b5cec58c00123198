//! The memory map: as `etc/e820` for a firmware, and complete for kernels booted directly.

use crate::platform::{ECAM, Platform};
use base::GIB;

/// Types of ranges (ACPI 6.4 table 15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Ram = 1,
    Reserved = 2,
    /// ACPI tables, usable once they were read.
    Acpi = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: u64,
    pub len: u64,
    pub kind: Kind,
}

impl Entry {
    /// Address, length, type: 20 bytes, as the BIOS call and the zero page have it.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }
}

/// Start of the extended BIOS data area, which ends at 640 KiB.
pub const EBDA: u64 = 0x9_fc00;

/// The file `etc/e820`: RAM as the board has it; the firmware carves out its own.
pub fn fw_cfg_file(platform: &Platform) -> Vec<u8> {
    let entry = |start, len| Entry { start, len, kind: Kind::Ram };
    let mut entries = vec![entry(0, platform.ram_low)];
    if platform.ram_high > 0 {
        entries.push(entry(4 * GIB, platform.ram_high));
    }
    entries.into_iter().flat_map(Entry::to_bytes).collect()
}

/// The map a firmware would give, with `acpi` (start, length) at the end of low RAM.
pub fn complete(platform: &Platform, acpi: (u64, u64)) -> Vec<Entry> {
    let low = platform.ram_low;
    let mut map = Vec::new();
    let mut add = |start: u64, end: u64, kind| {
        if end > start {
            map.push(Entry { start, len: end - start, kind });
        }
    };
    add(0, EBDA.min(low), Kind::Ram);
    add(EBDA, 0xa_0000, Kind::Reserved);
    add(0xf_0000, 0x10_0000, Kind::Reserved);
    add(0x10_0000, acpi.0.min(low), Kind::Ram);
    add(acpi.0, acpi.0 + acpi.1, Kind::Acpi);
    add(acpi.0 + acpi.1, low, Kind::Ram);
    if platform.is_q35() {
        add(ECAM.0, ECAM.0 + ECAM.1, Kind::Reserved);
    }
    add(0xfeff_c000, 0xff00_0000, Kind::Reserved);
    add(0xfffc_0000, 4 * GIB, Kind::Reserved);
    add(4 * GIB, 4 * GIB + platform.ram_high, Kind::Ram);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Chipset;

    #[test]
    fn ranges_ascend_without_overlap() {
        for chipset in [Chipset::I440fx, Chipset::Q35] {
            for ram in [16 << 20, 3 * GIB, 4 * GIB, 9 * GIB] {
                let platform = Platform::new(chipset, 1, ram);
                assert_eq!(platform.ram_low + platform.ram_high, ram);
                let acpi = (platform.ram_low - 0x20000, 0x10000);
                let map = complete(&platform, acpi);
                for pair in map.windows(2) {
                    assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:x?}");
                }
                let usable: u64 = map.iter().filter(|e| e.kind == Kind::Ram).map(|e| e.len).sum();
                assert_eq!(usable, ram - acpi.1 - (0x10_0000 - EBDA));
                assert!(platform.pci32().0 >= platform.ram_low);
            }
        }
    }
}
