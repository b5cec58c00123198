//! `vhdx`: Microsoft's second virtual hard disk format, dynamic and fixed.
//!
//! Source: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format". A dirty log is replayed when
//! the image is opened for writing. Table words are written in place: one word lies in one
//! sector, so that no log is needed for them.

mod create;
mod log;

use super::mapped::*;
use crate::driver::{CreateOption, Driver, Layer, Open, Probe};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "vhdx",
    probe: Some(probe),
    open,
    create: Some(create::create),
    create_words: &[("subformat", &["dynamic", "fixed"])],
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "log_size", modern: "log-size", help: "Log size; min 1 MB" },
        CreateOption {
            name: "block_size",
            modern: "block-size",
            help: "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size",
        },
        CreateOption {
            name: "subformat",
            modern: "subformat",
            help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'",
        },
        CreateOption {
            name: "block_state_zero",
            modern: "block-state-zero",
            help: "Force use of payload blocks of type 'ZERO'",
        },
    ],
    blocks_migration: true,
    defaults: ("", " log_size=1048576 block_size=0"),
    ..Driver::DEFAULT
};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 4096;
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_LEN: u64 = 64 << 10;
const MAX_SIZE: u64 = 64 << 40;

const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const PAGE_83: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// A GUID as it stands in the file: three numbers little-endian, the rest as written.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.head.starts_with(b"vhdxfile") { 100 } else { 0 }
}

/// CRC-32C (Castagnoli).
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut word = at as u32;
            let mut bit = 0;
            while bit < 8 {
                word = if word & 1 != 0 { word >> 1 ^ 0x82f6_3b78 } else { word >> 1 };
                bit += 1;
            }
            table[at] = word;
            at += 1;
        }
        table
    };
    !data.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// The checksum of a structure whose own checksum is the word at 4.
fn seal(data: &mut [u8]) {
    put(data, 4, &[0; 4]);
    let sum = crc32c(data);
    put(data, 4, &sum.to_le_bytes());
}

fn is_sealed(data: &[u8]) -> bool {
    let mut copy = data.to_vec();
    seal(&mut copy);
    // A fuzzer would not get past a checksum.
    copy == data || cfg!(fuzzing)
}

/// Makes the checksums of headers and region tables right again.
#[cfg(test)]
pub(super) fn reseal(image: &mut [u8]) {
    for (offset, len) in
        [(HEADERS[0], SECTOR), (HEADERS[1], SECTOR), (REGIONS[0], REGION_LEN), (REGIONS[1], REGION_LEN)]
    {
        if let Some(part) = image.get_mut(offset as usize..(offset + len) as usize) {
            seal(part);
        }
    }
}

/// The header in force, as it stands in the file.
struct Header {
    bytes: Vec<u8>,
    /// Which of the two places holds it.
    place: usize,
}

impl Header {
    fn sequence(&self) -> u64 {
        Fields(&self.bytes).le64(8)
    }

    fn log_guid(&self) -> [u8; 16] {
        let mut guid = [0; 16];
        guid.copy_from_slice(&self.bytes[48..64]);
        guid
    }

    /// Offset and length in bytes.
    fn log(&self) -> (u64, u64) {
        (Fields(&self.bytes).le64(72), Fields(&self.bytes).le32(68).into())
    }

    async fn read(file: &Child) -> Result<Header> {
        let mut best: Option<Header> = None;
        for (place, offset) in HEADERS.into_iter().enumerate() {
            let Ok(bytes) = file.read_vec(offset, SECTOR, SECTOR).await else { continue };
            if bytes.starts_with(b"head") && is_sealed(&bytes) && Fields(&bytes).le16(66) == 1 {
                let header = Header { bytes, place };
                if best.as_ref().is_none_or(|best| best.sequence() < header.sequence()) {
                    best = Some(header);
                }
            }
        }
        match best {
            Some(header) => Ok(header),
            None => bail!("No valid VHDX header found"),
        }
    }

    /// Writes a changed copy to the other place; it counts from then on.
    async fn renew(&mut self, file: &Child, change: impl FnOnce(&mut [u8])) -> IoResult {
        let mut bytes = self.bytes.clone();
        let place = 1 - self.place;
        put(&mut bytes, 8, &self.sequence().wrapping_add(1).to_le_bytes());
        change(&mut bytes);
        seal(&mut bytes);
        file.write(HEADERS[place], &bytes, WriteFlags::empty()).await?;
        file.flush().await?;
        (self.bytes, self.place) = (bytes, place);
        Ok(())
    }
}

struct Vhdx {
    header: tokio::sync::Mutex<Header>,
    /// Data blocks to one word for a sector bitmap.
    chunk: u64,
}

impl Format for Vhdx {
    fn decode(&self, word: u64) -> IoResult<Place> {
        match word & 7 {
            0 | 1 => Ok(Place::Absent),
            2 | 3 | 5 => Ok(Place::Zero),
            6 if word >> 20 > 0 => Ok(Place::At(word >> 20 << 20)),
            _ => Err(errno(libc::EIO)),
        }
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(0),
            Place::Zero => Some(2),
            Place::At(offset) => Some(offset | 6),
            Place::Packed(..) => None,
        }
    }

    fn slot(&self, index: u64) -> u64 {
        index + index / self.chunk
    }

    /// Others must see that the file, and the data in it, are not what they were.
    fn begin<'a>(&'a self, image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut header = self.header.lock().await;
            header
                .renew(&image.file, |bytes| {
                    put(bytes, 16, &super::random_uuid());
                    put(bytes, 32, &super::random_uuid());
                })
                .await
        })
    }
}

/// What the metadata region tells.
struct Disk {
    block: u64,
    size: u64,
    logical: u64,
}

/// A region by its GUID: offset and length.
async fn regions(file: &Child) -> Result<([u64; 2], [u64; 2])> {
    for place in REGIONS {
        let Ok(table) = file.read_vec(place, REGION_LEN, REGION_LEN).await else { continue };
        if !table.starts_with(b"regi") || !is_sealed(&table) {
            continue;
        }
        let (mut bat, mut metadata) = (None, None);
        let count = Fields(&table).le32(8).min(2047) as usize;
        for entry in table[16..].chunks_exact(32).take(count) {
            let fields = Fields(entry);
            let range = [fields.le64(16), u64::from(fields.le32(24))];
            let inside =
                range[0] >= MIB && range[0].checked_add(range[1]).is_some_and(|end| end <= file.size());
            match &entry[..16] {
                guid if guid == BAT && inside => bat = Some(range),
                guid if guid == METADATA && inside => metadata = Some(range),
                guid if guid == BAT || guid == METADATA => bail!("A VHDX region is not within the file"),
                _ if fields.le32(28) & 1 != 0 => bail!("The VHDX file has an unknown required region"),
                _ => {}
            }
        }
        if let (Some(bat), Some(metadata)) = (bat, metadata) {
            return Ok((bat, metadata));
        }
    }
    bail!("No valid VHDX region table found")
}

async fn metadata(file: &Child, region: [u64; 2]) -> Result<Disk> {
    let Ok(table) = file.read_vec(region[0], REGION_LEN.min(region[1]), REGION_LEN).await else {
        bail!("The VHDX metadata region is not within the file")
    };
    if !table.starts_with(b"metadata") {
        bail!("The VHDX metadata table is missing");
    }
    let count = Fields(&table).le16(10).min(2047) as usize;
    let mut found = [0u64; 3];
    let mut bits = 0;
    for entry in table.get(32..).unwrap_or_default().chunks_exact(32).take(count) {
        let (at, required) = (u64::from(Fields(entry).le32(16)), Fields(entry).le32(24) & 4 != 0);
        let place = match &entry[..16] {
            guid if guid == PARAMETERS => 0,
            guid if guid == DISK_SIZE => 1,
            guid if guid == LOGICAL => 2,
            guid if guid == PHYSICAL || guid == PAGE_83 || guid == PARENT => continue,
            _ if required => bail!("The VHDX file has an unknown required metadata item"),
            _ => continue,
        };
        let Ok(item) = file.read_vec(region[0] + at, 8, 8).await else {
            bail!("A VHDX metadata item is not within the file")
        };
        match place {
            0 => (found[0], bits) = (Fields(&item).le32(0).into(), Fields(&item).le32(4)),
            1 => found[1] = Fields(&item).le64(0),
            _ => found[2] = Fields(&item).le32(0).into(),
        }
    }
    let disk = Disk { block: found[0], size: found[1], logical: found[2] };
    if bits & 2 != 0 {
        bail!("Differencing VHDX images are not supported");
    }
    if !disk.block.is_power_of_two() || !(MIB..=256 * MIB).contains(&disk.block) {
        bail!("VHDX block size {} is invalid", disk.block);
    }
    if !matches!(disk.logical, 512 | 4096) {
        bail!("VHDX logical sector size {} is invalid", disk.logical);
    }
    if disk.size > MAX_SIZE || !disk.size.is_multiple_of(disk.logical) {
        bail!("VHDX disk size {} is invalid", disk.size);
    }
    Ok(disk)
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let Ok(true) = file.read_vec(0, 8, 8).await.map(|head| head == b"vhdxfile") else {
            bail!("Image not in VHDX format")
        };
        let mut header = Header::read(&file).await?;
        if header.log_guid() != [0; 16] {
            log::replay(&file, &mut header, open.settings.read_only).await?;
        }
        let (bat, region) = regions(&file).await?;
        let disk = metadata(&file, region).await?;
        let chunk = (disk.logical << 23) / disk.block;
        let blocks = disk.size.div_ceil(disk.block);
        let slots = create::slots(blocks, chunk);
        if slots * 8 > bat[1] {
            bail!("The VHDX block allocation table is too small");
        }
        let end = file.size().next_multiple_of(MIB);
        let shape =
            Shape { cluster: disk.block, word: Word::Le64, slots, base: MIB, step: MIB, prefix: Vec::new() };
        let parts = Parts { file, backing: None, shape, root: Root::Flat(bat[0]), size: disk.size, end };
        let format = Vhdx { header: tokio::sync::Mutex::new(header), chunk };
        Ok(Arc::new(Image::new(open, format, parts)) as Arc<dyn Layer>)
    })
}

#[cfg(test)]
mod tests;
