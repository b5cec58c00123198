//! SMBIOS tables (DMTF DSP0134 2.8): entry point and structures, for a firmware or placed
//! directly.

use crate::acpi::checksum;
use crate::platform::{Chipset, Platform};
use base::{GIB, MIB};

/// Strings of the tables; empty strings are "not specified".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// Type 0; `None` leaves it to the firmware.
    pub bios: Option<Bios>,
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub sku: String,
    pub family: String,
    /// In the order in which `-uuid` is written.
    pub uuid: Option<[u8; 16]>,
    pub chassis_asset: String,
    /// CPUID.1 EAX and EDX.
    pub cpu_id: (u32, u32),
    /// Per socket.
    pub cores: u8,
    /// Per socket (cores times threads of a core).
    pub threads: u8,
    /// Type 11.
    pub oem: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bios {
    pub vendor: String,
    pub version: String,
    pub date: String,
}

impl Bios {
    /// What is told where no firmware runs.
    pub fn ours() -> Self {
        Bios { vendor: "Ryokan".into(), version: env!("CARGO_PKG_VERSION").into(), date: "11/22/2026".into() }
    }
}

impl Config {
    /// QEMU's defaults for a machine type name (`pc-i440fx-7.2`).
    pub fn new(platform: &Platform, machine: &str) -> Self {
        let product = match platform.chipset {
            Chipset::I440fx => "Standard PC (i440FX + PIIX, 1996)",
            Chipset::Q35 => "Standard PC (Q35 + ICH9, 2009)",
        };
        Config {
            manufacturer: "QEMU".into(),
            product: product.into(),
            version: machine.into(),
            cores: 1,
            threads: 1,
            ..Config::default()
        }
    }
}

/// The structures, in order, the end marker included.
#[derive(Clone, Debug)]
pub struct Tables {
    structures: Vec<u8>,
    count: u16,
    largest: u16,
}

const ENTRY_LEN: usize = 31;

/// One structure under construction.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut bytes = vec![kind, 0];
        bytes.extend(handle.to_le_bytes());
        Structure { bytes, strings: Vec::new(), count: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A string's number, or 0 for an empty one.
    fn text(&mut self, text: &str) -> &mut Self {
        let clean: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
        let number = if clean.is_empty() || self.count == u8::MAX {
            0
        } else {
            self.strings.extend(clean);
            self.strings.push(0);
            self.count += 1;
            self.count
        };
        self.put(&[number])
    }
}

impl Tables {
    pub fn build(config: &Config, platform: &Platform) -> Tables {
        let mut tables = Tables { structures: Vec::new(), count: 0, largest: 0 };
        if let Some(bios) = &config.bios {
            tables.bios(bios);
        }
        tables.system(config);
        tables.chassis(config);
        let sockets = sockets(config, platform);
        (0..sockets).for_each(|number| tables.processor(config, number));
        if !config.oem.is_empty() {
            tables.oem(&config.oem);
        }
        tables.memory(platform);
        let mut boot = Structure::new(32, 0x2000);
        boot.put(&[0; 7]);
        tables.finish(boot);
        tables.finish(Structure::new(127, 0x7f00));
        tables
    }

    fn finish(&mut self, structure: Structure) {
        let start = self.structures.len();
        let Structure { mut bytes, strings, .. } = structure;
        bytes[1] = bytes.len() as u8;
        self.structures.extend(bytes);
        self.structures.extend(&strings);
        // Strings end with one more NUL; without strings there are two.
        self.structures.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        let len = (self.structures.len() - start).try_into().unwrap_or(u16::MAX);
        self.largest = self.largest.max(len);
    }

    fn bios(&mut self, bios: &Bios) {
        let mut s = Structure::new(0, 0);
        s.text(&bios.vendor).text(&bios.version).put(&0xe800u16.to_le_bytes()).text(&bios.date);
        // 64 KiB; characteristics not given; ACPI; virtual machine; no releases.
        s.put(&[0]).put(&8u64.to_le_bytes()).put(&[1, 0x14, 0, 0, 0xff, 0xff]);
        self.finish(s);
    }

    fn system(&mut self, config: &Config) {
        let mut s = Structure::new(1, 0x100);
        s.text(&config.manufacturer).text(&config.product).text(&config.version).text(&config.serial);
        let mut uuid = config.uuid.unwrap_or_default();
        // The first three fields are little endian.
        uuid[..4].reverse();
        uuid[4..6].reverse();
        uuid[6..8].reverse();
        // Woken by the power switch.
        s.put(&uuid).put(&[6]).text(&config.sku).text(&config.family);
        self.finish(s);
    }

    fn chassis(&mut self, config: &Config) {
        let mut s = Structure::new(3, 0x300);
        // Other; states safe; security unknown.
        s.text(&config.manufacturer).put(&[1]).text(&config.version).text(&config.serial);
        s.text(&config.chassis_asset).put(&[3, 3, 3, 2]).put(&[0; 4]).put(&[0, 0, 0, 0]).text("");
        self.finish(s);
    }

    fn processor(&mut self, config: &Config, number: u16) {
        let mut s = Structure::new(4, 0x400 + number);
        s.text(&format!("CPU {number}"));
        // Central processor of another family.
        s.put(&[3, 1]).text(&config.manufacturer);
        s.put(&config.cpu_id.0.to_le_bytes()).put(&config.cpu_id.1.to_le_bytes()).text(&config.version);
        // Voltage and clocks unknown but for 2000 MHz; populated and enabled; no caches told.
        s.put(&[0, 0, 0]).put(&2000u16.to_le_bytes()).put(&2000u16.to_le_bytes()).put(&[0x41, 1]);
        s.put(&[0xff; 6]).text(&config.serial).text("").text("");
        s.put(&[config.cores, config.cores, config.threads])
            .put(&2u16.to_le_bytes())
            .put(&1u16.to_le_bytes());
        self.finish(s);
    }

    fn oem(&mut self, strings: &[String]) {
        let mut s = Structure::new(11, 0xe00);
        let count = strings.iter().filter(|text| !text.is_empty()).count().min(255) as u8;
        s.put(&[count]);
        for text in strings {
            s.text(text);
        }
        // The numbers that `text` appended are implied by the count.
        s.bytes.truncate(5);
        self.finish(s);
    }

    fn memory(&mut self, platform: &Platform) {
        let ram = platform.ram_low + platform.ram_high;
        let module = 16 * GIB;
        let modules = ram.div_ceil(module).clamp(1, 64) as u16;
        let mut array = Structure::new(16, 0x1000);
        // Other location, system memory, multi-bit ECC.
        array.put(&[1, 3, 6]);
        let kib = ram >> 10;
        let long = kib >= 1 << 31;
        array.put(&(if long { 1u32 << 31 } else { kib as u32 }).to_le_bytes());
        array.put(&0xfffeu16.to_le_bytes()).put(&modules.to_le_bytes());
        array.put(&(if long { ram } else { 0 }).to_le_bytes());
        self.finish(array);
        let each = if modules == 64 { ram.div_ceil(64) } else { module };
        for number in 0..modules {
            let size = each.min(ram - (each * u64::from(number)).min(ram));
            self.module(number, size);
        }
        self.range(0, 0, platform.ram_low);
        if platform.ram_high > 0 {
            self.range(1, 4 * GIB, platform.ram_high);
        }
    }

    fn module(&mut self, number: u16, size: u64) {
        let mut s = Structure::new(17, 0x1100 + number);
        s.put(&0x1000u16.to_le_bytes()).put(&0xfffeu16.to_le_bytes()).put(&[0xff; 4]);
        let mib = size / MIB;
        let long = mib >= 0x7fff;
        s.put(&(if long { 0x7fff } else { mib as u16 }).to_le_bytes());
        // DIMM, no set; RAM of unknown technology.
        s.put(&[9, 0]).text(&format!("DIMM {number}")).text("").put(&[7]).put(&2u16.to_le_bytes());
        s.put(&0u16.to_le_bytes()).text("QEMU").text("").text("").text("").put(&[0]);
        s.put(&(if long { mib as u32 } else { 0 }).to_le_bytes()).put(&0u16.to_le_bytes());
        s.put(&[0; 6]);
        self.finish(s);
    }

    fn range(&mut self, number: u16, start: u64, len: u64) {
        let mut s = Structure::new(19, 0x1300 + number);
        let end = start + len - 1;
        let fits = end >> 10 < 0xffff_ffff;
        let short = |value: u64| if fits { (value >> 10) as u32 } else { u32::MAX }.to_le_bytes();
        let full = |value: u64| if fits { 0 } else { value }.to_le_bytes();
        s.put(&short(start)).put(&short(end)).put(&0x1000u16.to_le_bytes()).put(&[1]);
        s.put(&full(start)).put(&full(end));
        self.finish(s);
    }

    /// The structures: the file `etc/smbios/smbios-tables`.
    pub fn structures(&self) -> &[u8] {
        &self.structures
    }

    /// The file `etc/smbios/smbios-anchor`; the firmware fills in address and checksums.
    pub fn anchor(&self) -> Vec<u8> {
        self.entry_point(0).to_vec()
    }

    /// The 2.8 entry point (§5.2.1) with the structures at `address`.
    pub fn entry_point(&self, address: u32) -> [u8; ENTRY_LEN] {
        let mut entry = [0; ENTRY_LEN];
        entry[..4].copy_from_slice(b"_SM_");
        entry[5..8].copy_from_slice(&[ENTRY_LEN as u8, 2, 8]);
        entry[8..10].copy_from_slice(&self.largest.to_le_bytes());
        entry[16..21].copy_from_slice(b"_DMI_");
        let len = u16::try_from(self.structures.len()).unwrap_or(u16::MAX);
        entry[22..24].copy_from_slice(&len.to_le_bytes());
        entry[24..28].copy_from_slice(&address.to_le_bytes());
        entry[28..30].copy_from_slice(&self.count.to_le_bytes());
        entry[30] = 0x28;
        entry[21] = checksum(&entry[16..]);
        entry[4] = checksum(&entry);
        entry
    }
}

fn sockets(config: &Config, platform: &Platform) -> u16 {
    let present = platform.cpus.iter().filter(|slot| slot.present).count();
    present.div_ceil(config.threads.max(1).into()).clamp(1, 256) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (type, formatted part, strings) of each structure.
    fn parse(bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut all = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let formatted = &bytes[at..at + usize::from(bytes[at + 1])];
            let rest = &bytes[at + formatted.len()..];
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
            let strings = rest[..end - 2].split(|&b| b == 0).map(|s| String::from_utf8_lossy(s).into_owned());
            all.push((formatted[0], formatted.to_vec(), strings.filter(|s| !s.is_empty()).collect()));
            at += formatted.len() + end;
        }
        all
    }

    #[test]
    fn structures_and_entry_point() {
        for ram in [128 * MIB, 5 * GIB, 3000 * GIB] {
            let platform = Platform::new(Chipset::Q35, 2, ram);
            let mut config = Config::new(&platform, "pc-q35-7.2");
            config.bios = Some(Bios { vendor: "Ryokan".into(), ..Bios::default() });
            config.uuid = Some(std::array::from_fn(|i| i as u8));
            config.oem = vec!["a".into(), "bc".into()];
            let tables = Tables::build(&config, &platform);
            let all = parse(tables.structures());
            assert_eq!(all.len(), usize::from(tables.count));
            let kinds: Vec<u8> = all.iter().map(|s| s.0).collect();
            assert_eq!(kinds[..6], [0, 1, 3, 4, 4, 11]);
            assert_eq!(kinds[kinds.len() - 2..], [32, 127]);
            assert_eq!(all[0].1.len(), 24);
            assert_eq!(all[1].1.len(), 27);
            assert_eq!(all[1].1[8..24], [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
            assert_eq!(all[1].2[..2], ["QEMU", "Standard PC (Q35 + ICH9, 2009)"]);
            assert_eq!(all[2].1.len(), 22);
            assert_eq!(all[3].1.len(), 42);
            assert_eq!(all[5].2, ["a", "bc"]);
            let length = |kind| all.iter().find(|s| s.0 == kind).unwrap().1.len();
            assert_eq!((length(16), length(17), length(19), length(32)), (23, 40, 31, 11));
            let entry = tables.entry_point(0xf_1000);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
            assert_eq!((sum(&entry), sum(&entry[16..])), (0, 0));
        }
    }
}
