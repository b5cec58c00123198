//! SMBIOS tables (DMTF DSP0134 2.8): entry point and structures, for a firmware or placed
//! directly.

use crate::acpi::checksum;
use crate::platform::{Chipset, Platform};
use base::{GIB, MIB, Result, bail, fail};

/// What `-smbios` can say, with QEMU's defaults; empty strings are "not specified".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// Type 0; `None` leaves it to the firmware.
    pub bios: Option<Bios>,
    /// Type 1.
    pub system: System,
    /// In the order in which `-uuid` is written.
    pub uuid: Option<[u8; 16]>,
    /// Type 2; left out unless something was given.
    pub board: Option<Board>,
    /// Type 3.
    pub chassis: Chassis,
    /// Type 4.
    pub processor: Processor,
    /// Type 11.
    pub oem: Vec<String>,
    /// Type 17.
    pub module: Module,
    /// CPUID.1 EAX and EDX.
    pub cpu_id: (u32, u32),
    /// Per socket.
    pub cores: u8,
    /// Per socket (cores times threads of a core).
    pub threads: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bios {
    pub vendor: String,
    pub version: String,
    pub date: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct System {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub sku: String,
    pub family: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Board {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub asset: String,
    pub location: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chassis {
    pub manufacturer: String,
    pub version: String,
    pub serial: String,
    pub asset: String,
    pub sku: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Processor {
    pub socket_prefix: String,
    pub manufacturer: String,
    pub version: String,
    pub serial: String,
    pub asset: String,
    pub part: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Module {
    pub location_prefix: String,
    pub bank: String,
    pub manufacturer: String,
    pub serial: String,
    pub asset: String,
    pub part: String,
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
        let manufacturer = || "QEMU".to_string();
        let version = || machine.to_string();
        Config {
            system: System {
                manufacturer: manufacturer(),
                product: product.into(),
                version: version(),
                ..System::default()
            },
            chassis: Chassis { manufacturer: manufacturer(), version: version(), ..Chassis::default() },
            processor: Processor {
                socket_prefix: "CPU".into(),
                manufacturer: manufacturer(),
                version: version(),
                ..Processor::default()
            },
            module: Module {
                location_prefix: "DIMM".into(),
                manufacturer: manufacturer(),
                ..Module::default()
            },
            cores: 1,
            threads: 1,
            ..Config::default()
        }
    }

    /// Sets one key of `-smbios type=KIND`.
    pub fn set(&mut self, kind: u8, key: &str, value: &str) -> Result<()> {
        let field = match kind {
            0 => self.bios.get_or_insert_default().field(key),
            1 if key == "uuid" => {
                self.uuid = Some(parse_uuid(value).ok_or_else(|| fail!("Invalid UUID"))?);
                return Ok(());
            }
            1 => self.system.field(key),
            2 => self.board.get_or_insert_default().field(key),
            3 => self.chassis.field(key),
            4 => self.processor.field(key),
            11 if key == "value" => {
                self.oem.push(value.to_string());
                return Ok(());
            }
            17 => self.module.field(key),
            11 => None,
            _ => bail!("Don't know how to build fields for SMBIOS type {kind}"),
        };
        *field.ok_or_else(|| fail!("Invalid parameter '{key}'"))? = value.to_string();
        Ok(())
    }
}

/// The field that a key of `-smbios` names.
macro_rules! fields {
    ($record:ty, $($key:literal => $field:ident),+) => {
        impl $record {
            fn field(&mut self, key: &str) -> Option<&mut String> {
                match key {
                    $($key => Some(&mut self.$field),)+
                    _ => None,
                }
            }
        }
    };
}

fields!(Bios, "vendor" => vendor, "version" => version, "date" => date);
fields!(System, "manufacturer" => manufacturer, "product" => product, "version" => version,
    "serial" => serial, "sku" => sku, "family" => family);
fields!(Board, "manufacturer" => manufacturer, "product" => product, "version" => version,
    "serial" => serial, "asset" => asset, "location" => location);
fields!(Chassis, "manufacturer" => manufacturer, "version" => version, "serial" => serial,
    "asset" => asset, "sku" => sku);
fields!(Processor, "sock_pfx" => socket_prefix, "manufacturer" => manufacturer, "version" => version,
    "serial" => serial, "asset" => asset, "part" => part);
fields!(Module, "loc_pfx" => location_prefix, "bank" => bank, "manufacturer" => manufacturer,
    "serial" => serial, "asset" => asset, "part" => part);

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    let digits: String = text.chars().filter(|&c| c != '-').collect();
    let plain = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok();
    number.filter(|_| plain && (dashes.is_empty() || dashes == [8, 13, 18, 23])).map(u128::to_be_bytes)
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
        if let Some(board) = &config.board {
            tables.board(board);
        }
        tables.chassis(config);
        let sockets = sockets(config, platform);
        (0..sockets).for_each(|number| tables.processor(config, number));
        if !config.oem.is_empty() {
            tables.oem(&config.oem);
        }
        tables.memory(platform, &config.module);
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
        let system = &config.system;
        let mut s = Structure::new(1, 0x100);
        s.text(&system.manufacturer).text(&system.product).text(&system.version).text(&system.serial);
        let mut uuid = config.uuid.unwrap_or_default();
        // The first three fields are little endian.
        uuid[..4].reverse();
        uuid[4..6].reverse();
        uuid[6..8].reverse();
        // Woken by the power switch.
        s.put(&uuid).put(&[6]).text(&system.sku).text(&system.family);
        self.finish(s);
    }

    fn board(&mut self, board: &Board) {
        let mut s = Structure::new(2, 0x200);
        s.text(&board.manufacturer).text(&board.product).text(&board.version).text(&board.serial);
        // A hosting motherboard in the chassis of handle 300h.
        s.text(&board.asset).put(&[1]).text(&board.location).put(&0x300u16.to_le_bytes()).put(&[10, 0]);
        self.finish(s);
    }

    fn chassis(&mut self, config: &Config) {
        let chassis = &config.chassis;
        let mut s = Structure::new(3, 0x300);
        // Other; states safe; security unknown.
        s.text(&chassis.manufacturer).put(&[1]).text(&chassis.version).text(&chassis.serial);
        s.text(&chassis.asset).put(&[3, 3, 3, 2]).put(&[0; 4]).put(&[0, 0, 0, 0]).text(&chassis.sku);
        self.finish(s);
    }

    fn processor(&mut self, config: &Config, number: u16) {
        let processor = &config.processor;
        let mut s = Structure::new(4, 0x400 + number);
        s.text(&format!("{} {number}", processor.socket_prefix));
        // Central processor of another family.
        s.put(&[3, 1]).text(&processor.manufacturer);
        s.put(&config.cpu_id.0.to_le_bytes()).put(&config.cpu_id.1.to_le_bytes()).text(&processor.version);
        // Voltage and clocks unknown but for 2000 MHz; populated and enabled; no caches told.
        s.put(&[0, 0, 0]).put(&2000u16.to_le_bytes()).put(&2000u16.to_le_bytes()).put(&[0x41, 1]);
        s.put(&[0xff; 6]).text(&processor.serial).text(&processor.asset).text(&processor.part);
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

    fn memory(&mut self, platform: &Platform, each_module: &Module) {
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
            self.module(each_module, number, size);
        }
        self.range(0, 0, platform.ram_low);
        if platform.ram_high > 0 {
            self.range(1, 4 * GIB, platform.ram_high);
        }
    }

    fn module(&mut self, module: &Module, number: u16, size: u64) {
        let mut s = Structure::new(17, 0x1100 + number);
        s.put(&0x1000u16.to_le_bytes()).put(&0xfffeu16.to_le_bytes()).put(&[0xff; 4]);
        let mib = size / MIB;
        let long = mib >= 0x7fff;
        s.put(&(if long { 0x7fff } else { mib as u16 }).to_le_bytes());
        // DIMM, no set; RAM of unknown technology.
        s.put(&[9, 0])
            .text(&format!("{} {number}", module.location_prefix))
            .text(&module.bank)
            .put(&[7])
            .put(&2u16.to_le_bytes());
        s.put(&0u16.to_le_bytes()).text(&module.manufacturer).text(&module.serial);
        s.text(&module.asset).text(&module.part).put(&[0]);
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
    fn keys_of_the_command_line() {
        let platform = Platform::new(Chipset::I440fx, 1, 128 * MIB);
        let mut config = Config::new(&platform, "pc");
        let id = "00112233-4455-6677-8899-aabbccddeeff";
        for (kind, key, value) in
            [(0, "vendor", "V"), (1, "product", "P"), (1, "uuid", id), (2, "asset", "A")]
        {
            config.set(kind, key, value).unwrap();
        }
        config.set(11, "value", "x").unwrap();
        config.set(17, "loc_pfx", "Slot").unwrap();
        assert_eq!(config.set(1, "colour", "red").unwrap_err().text, "Invalid parameter 'colour'");
        assert!(config.set(99, "a", "b").unwrap_err().text.contains("SMBIOS type 99"));
        assert_eq!(config.set(1, "uuid", "1").unwrap_err().text, "Invalid UUID");
        let all = parse(Tables::build(&config, &platform).structures());
        let strings = |kind| &all.iter().find(|s| s.0 == kind).unwrap().2;
        assert_eq!(strings(0), &["V"]);
        assert_eq!(strings(1)[..2], ["QEMU", "P"]);
        assert_eq!(strings(2), &["A"]);
        assert_eq!(strings(17)[..2], ["Slot 0", "QEMU"]);
        assert_eq!(all[1].1[8..12], [0x33, 0x22, 0x11, 0x00]);
        assert_eq!(all.iter().find(|s| s.0 == 2).unwrap().1.len(), 15);
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
