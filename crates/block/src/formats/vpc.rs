//! `vpc`: Microsoft's VHD images, dynamic and fixed.
//!
//! Source: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006).

use super::mapped::*;
use crate::driver::{Create, CreateOption, Driver, Layer, Open, Probe};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub static DRIVER: Driver = Driver {
    name: "vpc",
    probe: Some(probe),
    open,
    create: Some(create),
    create_words: &[("subformat", &["dynamic", "fixed"])],
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption {
            name: "subformat",
            modern: "subformat",
            help: "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed}",
        },
        CreateOption {
            name: "force_size",
            modern: "force-size",
            help: "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
        },
    ],
    blocks_migration: true,
    ..Driver::DEFAULT
};

const COOKIE: &[u8] = b"conectix";
const FOOTER: u64 = 512;
const UNUSED: u64 = 0xffff_ffff;
const BLOCK: u64 = 2 << 20;
/// Largest disk that cylinders, heads and sectors can tell, in sectors.
const MAX_CHS: u64 = 65535 * 16 * 255;
/// 2040 GiB in sectors.
const MAX_SECTORS: u64 = 2040 << 21;
/// The format counts seconds from 2000-01-01.
const EPOCH: u64 = 946_684_800;

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.head.len() >= FOOTER as usize && probe.head.starts_with(COOKIE) { 100 } else { 0 }
}

struct Vpc {
    footer: Vec<u8>,
    /// From a block's first byte to its data.
    bitmap: u64,
    /// The footer in the file is where the file ends.
    footer_stale: AtomicBool,
}

impl Format for Vpc {
    fn decode(&self, word: u64) -> IoResult<Place> {
        Ok(match word {
            UNUSED => Place::Absent,
            sector => Place::At(sector * 512 + self.bitmap),
        })
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(UNUSED),
            Place::At(offset) => Some((offset - self.bitmap) / 512).filter(|sector| *sector < UNUSED),
            _ => None,
        }
    }

    /// The footer moves behind the new block before the block is used. (If it is lost, its
    /// copy at the head of the file counts.)
    fn extended<'a>(&'a self, image: &'a Image<Self>, end: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.footer_stale.store(true, Ordering::Release);
            image.file.write(end, &self.footer, WriteFlags::empty()).await
        })
    }

    fn close<'a>(&'a self, image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.footer_stale.swap(false, Ordering::AcqRel) {
                image.file.write(image.end(), &self.footer, WriteFlags::empty()).await?;
                image.file.flush().await?;
            }
            Ok(())
        })
    }
}

fn checksum(data: &[u8]) -> u32 {
    !data.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Whether the checksum at `at` fits.
fn sums_up(data: &[u8], at: usize) -> bool {
    let mut copy = data.to_vec();
    put(&mut copy, at, &[0; 4]);
    checksum(&copy) == Fields(data).be32(at)
}

/// The footer: its copy at the head of a dynamic image, else at the end of the file.
async fn read_footer(file: &Child) -> Result<(Vec<u8>, bool)> {
    if file.size() < FOOTER {
        bail!("File too small for a VHD header");
    }
    let head = file.read_vec(0, FOOTER, FOOTER).await?;
    if head.starts_with(COOKIE) {
        return Ok((head, true));
    }
    let tail = file.read_vec(file.size() - FOOTER, FOOTER, FOOTER).await?;
    if !tail.starts_with(COOKIE) {
        bail!("invalid VPC image");
    }
    Ok((tail, false))
}

/// The disk's size in sectors. Makers that size by geometry are told from others by name.
fn sectors(footer: &[u8], by: Option<bool>) -> u64 {
    let fields = Fields(footer);
    let chs = u64::from(footer[56]) << 8 | u64::from(footer[57]);
    let chs = chs * u64::from(footer[58]) * u64::from(footer[59]);
    let current = fields.be64(48) / 512;
    let by_size =
        [&b"win "[..], b"qem2", b"d2v ", b"tap\0", b"vs  ", b"CTXS", b"wa\0\0"].contains(&&footer[28..32]);
    match by {
        Some(current_wins) if current_wins => current,
        Some(_) => chs,
        None if by_size || chs >= MAX_CHS => current,
        None => chs,
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let how = [("chs", false), ("current_size", true), ("current-size", true)];
        let by = open.options.take_word("force_size_calc", &how)?;
        let by = open.options.take_word("force-size-calc", &how)?.or(by);
        let file = open.file().await?;
        let (footer, at_head) = read_footer(&file).await?;
        if !sums_up(&footer, 64) {
            eprintln!("vpc: the header checksum of '{}' is wrong", file.node().filename());
        }
        let total = sectors(&footer, by);
        if total > MAX_SECTORS {
            bail!("The image is larger than 2040 GiB");
        }
        match Fields(&footer).be32(60) {
            2 => open_fixed(file, total, at_head),
            3 => open_dynamic(open, file, footer, total).await,
            kind => bail!("VHD images of type {kind} are not supported"),
        }
    })
}

async fn open_dynamic(open: &Open, file: Child, footer: Vec<u8>, total: u64) -> Result<Arc<dyn Layer>> {
    let Ok(header) = file.read_vec(Fields(&footer).be64(16), 1024, 1024).await else {
        bail!("The dynamic disk header is not within the file")
    };
    if !header.starts_with(b"cxsparse") {
        bail!("The dynamic disk header is missing");
    }
    let fields = Fields(&header);
    let (table, entries, block) = (fields.be64(16), u64::from(fields.be32(28)), u64::from(fields.be32(32)));
    if !block.is_power_of_two() || block < 512 {
        bail!("Invalid block size {block}");
    }
    if entries * block < total * 512 {
        bail!("Page table too small");
    }
    let table_end = table.checked_add(entries * 4).filter(|end| *end <= file.size());
    let Some(table_end) = table_end else { bail!("The block allocation table is not within the file") };
    let bitmap = (block / 512).div_ceil(8).next_multiple_of(512);
    let end = match open.settings.read_only {
        true => file.size().next_multiple_of(512),
        false => used(&file, table, table_end, bitmap + block).await?,
    };
    let base = 512;
    let shape = Shape {
        cluster: block,
        word: Word::Be32,
        slots: entries,
        base,
        step: 512,
        prefix: vec![0xff; bitmap as usize],
    };
    let format = Vpc { footer, bitmap, footer_stale: AtomicBool::new(false) };
    let parts = Parts { file, backing: None, shape, root: Root::Flat(table), size: total * 512, end };
    Ok(Arc::new(Image::new(open, format, parts)) as Arc<dyn Layer>)
}

/// One past the last byte that the table, or anything but the trailing footer, takes.
async fn used(file: &Child, table: u64, table_end: u64, step: u64) -> Result<u64> {
    let mut end = table_end.next_multiple_of(512);
    let mut at = table;
    while at < table_end {
        let len = (table_end - at).min(1 << 20);
        for sector in Word::Be32.read(&file.read_vec(at, len, len).await?) {
            let start = sector * 512;
            if sector != UNUSED && start < file.size() {
                end = end.max(start + step);
            }
        }
        at += len;
    }
    let tail = file.size().saturating_sub(FOOTER);
    let is_footer = tail >= end && file.read_vec(tail, FOOTER, FOOTER).await?.starts_with(COOKIE);
    let file_end = if is_footer { tail } else { file.size() };
    Ok(end.max(file_end).next_multiple_of(512))
}

/// The footer follows the data.
struct Fixed {
    file: Child,
    size: u64,
}

fn open_fixed(file: Child, total: u64, at_head: bool) -> Result<Arc<dyn Layer>> {
    let size = total.checked_mul(512).filter(|size| *size <= file.size() - FOOTER);
    let (false, Some(size)) = (at_head, size) else { bail!("The disk is longer than its file") };
    Ok(Arc::new(Fixed { file, size }))
}

impl Layer for Fixed {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        self.file.write(offset, data, flags)
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        self.file.write_zeroes(offset, len, flags)
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        let flags = StatusFlags::DATA | StatusFlags::ALLOCATED | StatusFlags::RECURSE;
        Box::pin(async move { Ok(Status { flags, len, offset: Some(offset) }) })
    }

    fn zero_initialised(&self) -> bool {
        self.file.node().layer().zero_initialised()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Cylinders, heads and sectors of a disk, by the specification's appendix.
fn geometry(total: u64) -> (u64, u64, u64) {
    let total = total.min(MAX_CHS);
    if total >= 65535 * 16 * 63 {
        return (total / 255 / 16, 16, 255);
    }
    let (mut sectors, mut tracks) = (17, total / 17);
    let mut heads = tracks.div_ceil(1024).max(4);
    if tracks >= heads * 1024 || heads > 16 {
        (sectors, heads, tracks) = (31, 16, total / 31);
    }
    if tracks >= heads * 1024 {
        (sectors, heads, tracks) = (63, 16, total / 63);
    }
    (tracks / heads, heads, sectors)
}

struct Plan {
    total: u64,
    geometry: (u64, u64, u64),
    fixed: bool,
    force: bool,
}

/// Rounds a size up to the next that a geometry can tell, unless the size itself counts.
fn plan(size: u64, fixed: bool, force: bool) -> Result<Plan> {
    let wanted = size.div_ceil(512);
    let mut by_chs = geometry(wanted);
    let capacity = |(c, h, s): (u64, u64, u64)| c * h * s;
    let mut tried = wanted;
    while !force && wanted <= MAX_CHS && capacity(by_chs) < wanted {
        tried += 1;
        by_chs = geometry(tried);
    }
    let total = if force || wanted > MAX_CHS { wanted } else { capacity(by_chs) };
    if force || wanted > MAX_CHS {
        by_chs = geometry(MAX_CHS);
    }
    if total > MAX_SECTORS {
        bail!("Disk size is too large, max size is 2040 GiB");
    }
    Ok(Plan { total, geometry: by_chs, fixed, force })
}

fn footer(plan: &Plan) -> Vec<u8> {
    let mut footer = vec![0; FOOTER as usize];
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let (cylinders, heads, sectors) = plan.geometry;
    put(&mut footer, 0, COOKIE);
    put(&mut footer, 8, &2u32.to_be_bytes());
    put(&mut footer, 12, &0x0001_0000u32.to_be_bytes());
    put(&mut footer, 16, &(if plan.fixed { u64::MAX } else { FOOTER }).to_be_bytes());
    put(&mut footer, 24, &(now.saturating_sub(EPOCH) as u32).to_be_bytes());
    // Readers tell by this name whether the size or the geometry counts.
    put(&mut footer, 28, if plan.force { b"qem2" } else { b"qemu" });
    put(&mut footer, 32, &0x0005_0003u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &(plan.total * 512).to_be_bytes());
    put(&mut footer, 48, &(plan.total * 512).to_be_bytes());
    put(&mut footer, 56, &(cylinders as u16).to_be_bytes());
    put(&mut footer, 58, &[heads as u8, sectors as u8]);
    put(&mut footer, 60, &(if plan.fixed { 2u32 } else { 3 }).to_be_bytes());
    put(&mut footer, 68, &super::random_uuid());
    let sum = checksum(&footer);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.size()?;
        let fixed =
            create.options.take_word("subformat", &[("dynamic", false), ("fixed", true)])?.unwrap_or(false);
        let force = create.options.take_bool("force-size")?.unwrap_or(false);
        let plan = plan(size, fixed, force)?;
        if !create.by_name && plan.total * 512 != size {
            bail!("The requested image size cannot be represented in CHS geometry");
        }
        let file = create.file().await?;
        create.finish()?;
        file.truncate(0, Truncate::default()).await?;
        let footer = footer(&plan);
        if plan.fixed {
            file.truncate(plan.total * 512 + FOOTER, Truncate::default()).await?;
            file.write(plan.total * 512, &footer, WriteFlags::empty()).await?;
        } else {
            write_dynamic(&file, &plan, &footer).await?;
        }
        Ok(file.flush().await?)
    })
}

/// Copy of the footer, dynamic header, empty table, footer.
async fn write_dynamic(file: &Child, plan: &Plan, footer: &[u8]) -> Result<()> {
    let table = FOOTER + 1024;
    let entries = (plan.total * 512).div_ceil(BLOCK);
    let table_len = (entries * 4).next_multiple_of(512);
    let mut header = vec![0; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &table.to_be_bytes());
    put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
    put(&mut header, 28, &(entries as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
    let sum = checksum(&header);
    put(&mut header, 36, &sum.to_be_bytes());
    file.write(FOOTER, &header, WriteFlags::empty()).await?;
    file.write(table, &vec![0xff; table_len as usize], WriteFlags::empty()).await?;
    file.write(table + table_len, footer, WriteFlags::empty()).await?;
    file.write(0, footer, WriteFlags::empty()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_of_the_specification() {
        assert_eq!(geometry(65535 * 16 * 255 + 1), (65535, 16, 255));
        assert_eq!(geometry(20480), (301, 4, 17));
        assert_eq!(plan(10 << 20, false, false).unwrap().total, 20536);
        assert_eq!(plan(10 << 20, false, true).unwrap().total, 20480);
        assert!(plan(2041 << 30, true, true).is_err());
    }
}
