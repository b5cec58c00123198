//! Cylinders, heads and sectors of a fixed disk, and how firmware is to translate them.

use base::{Result, bail};
use block::Backend;
use device::{Property, PropertyKind, Props};

/// The geometry of a fixed disk.
pub const GEOMETRY: &[Property] = &[
    Property::new("cyls", PropertyKind::U32, "0", "Cylinders"),
    Property::new("heads", PropertyKind::U32, "0", "Heads"),
    Property::new("secs", PropertyKind::U32, "0", "Sectors a track"),
];

const CHOICES: PropertyKind =
    PropertyKind::Enum("BiosAtaTranslation", &["auto", "none", "lba", "large", "rechs"]);

/// How firmware is to translate the geometry.
pub const TRANSLATION: &[Property] =
    &[Property::new("bios-chs-trans", CHOICES, "auto", "How firmware translates the geometry")];

const SECTOR: u64 = 512;
/// Most cylinders that an ATA disk tells of (ATA-7 §6.2.1).
const MAX_CYLINDERS: u64 = 16383;
/// Partition table of a master boot record: where it is, its entries and their length.
const TABLE: usize = 446;
const ENTRIES: usize = 4;
const ENTRY: usize = 16;

/// Cylinders, heads and sectors as firmware and old systems count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub cylinders: u32,
    pub heads: u32,
    pub sectors: u32,
}

/// The translations, by their numbers in CMOS 39h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Translation {
    #[default]
    None,
    Lba,
    Large,
    Rechs,
}

impl Geometry {
    /// What the properties say, if they say anything.
    pub fn given(props: &Props, max_heads: u32) -> Result<Option<Geometry>> {
        let number = |name: &str| props.u64(name) as u32;
        let given = Geometry { cylinders: number("cyls"), heads: number("heads"), sectors: number("secs") };
        if given == (Geometry { cylinders: 0, heads: 0, sectors: 0 }) {
            return Ok(None);
        }
        for (name, value, max) in [
            ("cyls", given.cylinders, 65535),
            ("heads", given.heads, max_heads),
            ("secs", given.sectors, 255),
        ] {
            if value == 0 || value > max {
                bail!("{name} must be between 1 and {max}");
            }
        }
        Ok(Some(given))
    }

    /// The customary one of a disk of so many bytes.
    pub fn of_size(bytes: u64) -> Geometry {
        let cylinders = (bytes / SECTOR / (16 * 63)).clamp(2, MAX_CYLINDERS) as u32;
        Geometry { cylinders, heads: 16, sectors: 63 }
    }

    /// The one that the first partition in use of a master boot record was made for.
    fn of_partitions(record: &[u8], bytes: u64) -> Option<Geometry> {
        if record.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        record[TABLE..].chunks_exact(ENTRY).take(ENTRIES).find_map(|entry| {
            let (heads, sectors) = (u64::from(entry[5]) + 1, u64::from(entry[6] & 63));
            if entry[12..16] == [0; 4] || heads == 1 || sectors == 0 {
                return None;
            }
            let cylinders = bytes / SECTOR / (heads * sectors);
            (1..=MAX_CYLINDERS).contains(&cylinders).then_some(Geometry {
                cylinders: cylinders as u32,
                heads: heads as u32,
                sectors: sectors as u32,
            })
        })
    }

    /// The translation that lets firmware reach all of it.
    fn translation(self) -> Translation {
        if self.cylinders <= 1024 && self.heads <= 16 && self.sectors <= 63 {
            Translation::None
        } else {
            Translation::Lba
        }
    }

    /// Geometry and translation of a disk that begins with this sector, so that firmware
    /// counts as whoever partitioned it did.
    pub fn guess(first: &[u8], bytes: u64) -> (Geometry, Translation) {
        let plain = Geometry::of_size(bytes);
        match Geometry::of_partitions(first, bytes) {
            None => (plain, plain.translation()),
            // More than a disk can have: these are heads of a translation.
            Some(found) if found.heads > 16 && plain.cylinders * plain.heads <= 131_072 => {
                (plain, Translation::Large)
            }
            Some(found) if found.heads > 16 => (plain, Translation::Lba),
            Some(found) => (found, Translation::None),
        }
    }

    /// Geometry and translation by the properties, by what is on the disk where they leave it
    /// open. What cannot be read is as if nothing were there.
    pub fn settle(given: Option<Geometry>, props: &Props, backend: &Backend) -> (Geometry, Translation) {
        let (geometry, translation) = match given {
            Some(given) => (given, given.translation()),
            None => Geometry::guess(&first_sector(backend).unwrap_or_default(), backend.size()),
        };
        let translation = match props.str("bios-chs-trans") {
            Some("none") => Translation::None,
            Some("lba") => Translation::Lba,
            Some("large") => Translation::Large,
            Some("rechs") => Translation::Rechs,
            _ => translation,
        };
        (geometry, translation)
    }
}

/// Not a request of the guest: it counts in no statistics and obeys no limits of the drive.
fn first_sector(backend: &Backend) -> Option<Vec<u8>> {
    let (graph, node) = (backend.graph()?, backend.node()?);
    graph.block_on(async move {
        let mut sector = vec![0; SECTOR as usize];
        node.read(0, &mut sector).await.ok().map(|()| sector)
    })
}
