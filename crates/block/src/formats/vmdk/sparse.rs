//! Sparse extents: KDMV (hosted) and COWD (ESX).

use super::super::mapped::deflate::{Wrap, deflate, inflate};
use super::super::mapped::table::Levels;
use super::super::mapped::*;
use super::SECTOR;
use crate::driver::Open;
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};

const FLAG_TWIN: u32 = 1 << 1;
const FLAG_ZERO: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
/// The directory is named by a copy of the header at the end of the file.
const AT_END: u64 = u64::MAX;
/// Largest directory that is read, in bytes.
const MAX_DIRECTORY: u64 = 32 << 20;
const MAX_GRAIN: u64 = 64 << 20;
/// Bytes before the data of a compressed grain: sector number and length.
const MARKER: usize = 12;

pub(super) struct Sparse {
    zero_words: bool,
    compressed: bool,
    markers: bool,
    grain: u64,
}

impl Sparse {
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }
}

impl Format for Sparse {
    fn decode(&self, word: u64) -> IoResult<Place> {
        Ok(match word {
            0 => Place::Absent,
            1 if self.zero_words => Place::Zero,
            // How long the packed data are stands before them.
            at if self.compressed => Place::Packed(at * SECTOR, 2 * self.grain + MARKER as u64),
            at => Place::At(at * SECTOR),
        })
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(0),
            Place::Zero => self.zero_words.then_some(1),
            Place::At(_) if self.compressed => None,
            Place::At(offset) | Place::Packed(offset, _) => {
                Some(offset / SECTOR).filter(|sector| u32::try_from(*sector).is_ok())
            }
        }
    }

    fn unpack(&self, data: &[u8], cluster: usize) -> IoResult<Vec<u8>> {
        let mut data = data;
        if self.markers {
            let len = Fields(data).le32(8) as usize;
            data = data.get(MARKER..).and_then(|data| data.get(..len)).ok_or_else(|| errno(libc::EIO))?;
        }
        let mut out = inflate(Wrap::Zlib, data, cluster)?;
        // The last grain may be as short as the disk.
        out.resize(cluster, 0);
        Ok(out)
    }

    fn pack(&self, index: u64, data: &[u8]) -> Option<Vec<u8>> {
        let packed = deflate(Wrap::Zlib, 15, data, 2 * data.len())?;
        let mut out = Vec::with_capacity(MARKER + packed.len());
        if self.markers {
            out.extend((index * (self.grain / SECTOR)).to_le_bytes());
            out.extend((packed.len() as u32).to_le_bytes());
        }
        out.extend(packed);
        Some(out)
    }

    fn packs(&self) -> bool {
        self.compressed
    }

    fn packed_only(&self) -> bool {
        self.compressed
    }
}

/// Where the descriptor within a sparse file is, in bytes.
pub(super) fn descriptor_place(head: &[u8]) -> Option<(u64, u64)> {
    let (at, len) = (Fields(head).le64(28), Fields(head).le64(36));
    let is_there = head.starts_with(b"KDMV") && at != 0 && len != 0;
    is_there.then(|| (at.saturating_mul(SECTOR), len.saturating_mul(SECTOR)))
}

struct Header {
    capacity: u64,
    grain: u64,
    /// Words of one table.
    table: u64,
    directory: u64,
    twin: Option<u64>,
    format: Sparse,
}

fn parse_kdmv(head: &[u8]) -> Result<Header> {
    let fields = Fields(head);
    let (version, flags) = (fields.le32(4), fields.le32(8));
    if version > 3 {
        bail!("Unsupported VMDK version {version}");
    }
    let compressed = flags & FLAG_COMPRESSED != 0;
    if compressed && fields.le16(77) != 1 {
        bail!("Unsupported compression of the VMDK extent");
    }
    let table = fields.le32(44).into();
    if !(1..=512).contains(&table) {
        bail!("L2 table size too big");
    }
    let grain = fields.le64(20);
    Ok(Header {
        capacity: fields.le64(12),
        grain,
        table,
        directory: fields.le64(56),
        twin: (flags & FLAG_TWIN != 0).then(|| fields.le64(48)),
        format: Sparse {
            zero_words: flags & FLAG_ZERO != 0,
            compressed,
            markers: flags & FLAG_MARKERS != 0,
            grain: grain.saturating_mul(SECTOR),
        },
    })
}

fn parse_cowd(head: &[u8]) -> Header {
    let fields = Fields(head);
    let grain = u64::from(fields.le32(16));
    Header {
        capacity: fields.le32(12).into(),
        grain,
        table: 4096,
        directory: fields.le32(20).into(),
        twin: None,
        format: Sparse { zero_words: false, compressed: false, markers: false, grain: grain * SECTOR },
    }
}

/// The copy of the header before the end-of-stream marker.
async fn read_footer(file: &Child) -> Result<Vec<u8>> {
    let at = file.size().saturating_sub(2 * SECTOR);
    match file.read_vec(at, SECTOR, SECTOR).await {
        Ok(footer) if footer.starts_with(b"KDMV") => Ok(footer),
        _ => bail!("The footer of the VMDK extent is missing"),
    }
}

/// Opens a sparse extent; `len` is what the descriptor says of it, in bytes.
pub(super) async fn open(
    open: &mut Open,
    file: Child,
    len: Option<u64>,
    backing: Option<Child>,
) -> Result<Image<Sparse>> {
    let Ok(head) = file.read_vec(0, SECTOR, SECTOR).await else { bail!("The VMDK extent is too short") };
    let mut header = match &head[..4] {
        b"KDMV" => parse_kdmv(&head)?,
        b"COWD" => parse_cowd(&head),
        _ => bail!("Image not in VMDK format"),
    };
    if header.directory == AT_END {
        // Nothing can be appended to a file whose end says where all is.
        open.read_only()?;
        header = parse_kdmv(&read_footer(&file).await?)?;
    }
    let cluster = header.grain.saturating_mul(SECTOR);
    if cluster == 0 || cluster > MAX_GRAIN {
        bail!("Invalid granularity, image may be corrupt");
    }
    let Some(capacity) = header.capacity.checked_mul(SECTOR).filter(|size| *size <= i64::MAX as u64) else {
        bail!("The VMDK extent is too large")
    };
    let size = len.unwrap_or(capacity);
    if size > capacity {
        bail!("The VMDK extent is shorter than its descriptor says");
    }
    let count = size.div_ceil(cluster * header.table);
    let words = read_directory(&file, header.directory, count).await?;
    let twin = match header.twin {
        Some(at) => Some((at.saturating_mul(SECTOR), read_directory(&file, at, count).await?)),
        None => None,
    };
    let levels = Levels {
        offset: header.directory * SECTOR,
        words,
        unit: SECTOR,
        table: header.table,
        align: SECTOR,
        twin,
    };
    let shape = Shape {
        cluster,
        word: Word::Le32,
        slots: count * header.table,
        base: 0,
        step: cluster,
        prefix: Vec::new(),
    };
    let end = file.size().next_multiple_of(if header.format.compressed { SECTOR } else { cluster });
    let parts = Parts { file, backing, shape, root: Root::Levels(levels), size, end };
    Ok(Image::new(open, header.format, parts))
}

async fn read_directory(file: &Child, sector: u64, count: u64) -> Result<Vec<u64>> {
    let bytes = file.read_vec(sector.saturating_mul(SECTOR), count * 4, MAX_DIRECTORY).await;
    match bytes {
        Ok(bytes) => Ok(Word::Le32.read(&bytes)),
        Err(_) => bail!("The grain directory is too large or not within the file"),
    }
}

/// What a new sparse extent is like.
pub(super) struct New {
    /// In bytes.
    pub size: u64,
    pub compressed: bool,
    pub zero_words: bool,
}

/// Sectors kept for the descriptor, which begins at sector 1.
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;
const NEW_GRAIN: u64 = 128;
const NEW_TABLE: u64 = 512;

/// Writes an empty sparse extent.
pub(super) async fn write(file: &Child, new: &New) -> Result<()> {
    let capacity = new.size.div_ceil(SECTOR);
    let tables = capacity.div_ceil(NEW_GRAIN * NEW_TABLE);
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    let table_sectors = NEW_TABLE * 4 / SECTOR;
    let whole = directory_sectors + tables * table_sectors;
    let twin = 1 + DESCRIPTOR_SECTORS;
    let directory = twin + whole;
    let grains = (directory + whole).next_multiple_of(NEW_GRAIN);
    if u32::try_from(grains + capacity).is_err() {
        bail!("The image is too large for a sparse VMDK extent");
    }
    let version: u32 = match (new.compressed, new.zero_words) {
        (true, _) => 3,
        (_, true) => 2,
        _ => 1,
    };
    let mut flags = 1 | FLAG_TWIN;
    flags |= if new.zero_words { FLAG_ZERO } else { 0 };
    flags |= if new.compressed { FLAG_COMPRESSED | FLAG_MARKERS } else { 0 };
    let mut header = vec![0; SECTOR as usize];
    put(&mut header, 0, b"KDMV");
    put(&mut header, 4, &version.to_le_bytes());
    put(&mut header, 8, &flags.to_le_bytes());
    for (at, value) in [
        (12, capacity),
        (20, NEW_GRAIN),
        (28, 1),
        (36, DESCRIPTOR_SECTORS),
        (48, twin),
        (56, directory),
        (64, grains),
    ] {
        put(&mut header, at, &value.to_le_bytes());
    }
    put(&mut header, 44, &(NEW_TABLE as u32).to_le_bytes());
    put(&mut header, 73, b"\n \r\n");
    put(&mut header, 77, &u16::from(new.compressed).to_le_bytes());
    file.truncate(0, Truncate::default()).await?;
    file.truncate(grains * SECTOR, Truncate::default()).await?;
    for place in [twin, directory] {
        let first = place + directory_sectors;
        let words: Vec<u64> = (0..tables).map(|at| first + at * table_sectors).collect();
        file.write(place * SECTOR, &Word::Le32.write(&words), WriteFlags::empty()).await?;
    }
    Ok(file.write(0, &header, WriteFlags::empty()).await?)
}
