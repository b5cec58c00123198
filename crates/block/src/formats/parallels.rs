//! `parallels`: Parallels expandable images.
//!
//! Source: QEMU docs/interop/parallels.txt. Tables are ordered on disk (see
//! [`super::mapped`]), so that the mark of an open image is not needed and not set.

use super::mapped::*;
use crate::driver::{Create, CreateOption, Driver, Fix, Layer, Open, Probe};
use crate::types::*;
use base::{Failure, Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "parallels",
    probe: Some(probe),
    open,
    create: Some(create),
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "cluster_size", modern: "cluster-size", help: "Parallels image cluster size" },
    ],
    defaults: ("", " cluster_size=1048576"),
    ..Driver::DEFAULT
};

/// The table counts sectors, or (the other) clusters.
const BY_SECTOR: &[u8; 16] = b"WithoutFreeSpace";
const BY_CLUSTER: &[u8; 16] = b"WithouFreSpacExt";
const HEADER: u64 = 64;
/// Longest table that readers accept. A disk may be longer than it tells of: what is past it
/// cannot be written.
const MAX_ENTRIES: u64 = i32::MAX as u64 / 4;
/// Longest cluster in sectors.
const MAX_TRACKS: u64 = i32::MAX as u64 / 513;
const IN_USE: u32 = 0x746f_6e59;

fn probe(probe: &Probe<'_>) -> u32 {
    let known = probe.head.starts_with(BY_SECTOR) || probe.head.starts_with(BY_CLUSTER);
    if known && probe.head.len() >= HEADER as usize && Fields(probe.head).le32(16) == 2 { 100 } else { 0 }
}

struct Parallels {
    /// What one unit of a table word is, in bytes.
    unit: u64,
}

impl Format for Parallels {
    fn decode(&self, word: u64) -> IoResult<Place> {
        Ok(match word {
            0 => Place::Absent,
            at => Place::At(at.checked_mul(self.unit).ok_or_else(|| errno(libc::EIO))?),
        })
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(0),
            Place::At(offset) => Some(offset / self.unit).filter(|word| u32::try_from(*word).is_ok()),
            _ => None,
        }
    }

    fn checks(&self) -> bool {
        true
    }

    fn checked<'a>(&'a self, image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            image.file.write(44, &[0; 4], WriteFlags::empty()).await?;
            image.file.flush().await
        })
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = file.read_vec(0, HEADER, HEADER).await;
        let head = head.map_err(|why| Failure::os("Could not read the Parallels header", &why))?;
        let fields = Fields(&head);
        let by_cluster = head.starts_with(BY_CLUSTER);
        if !by_cluster && !head.starts_with(BY_SECTOR) || fields.le32(16) != 2 {
            bail!("Image not in Parallels format");
        }
        let (tracks, entries) = (u64::from(fields.le32(28)), u64::from(fields.le32(32)));
        if tracks == 0 {
            bail!("Invalid image: Zero sectors per track");
        }
        if tracks > MAX_TRACKS {
            bail!("Invalid image: Too big cluster");
        }
        let sectors = if by_cluster { fields.le64(36) } else { fields.le32(36).into() };
        let cluster = tracks * 512;
        let Some(size) = sectors.checked_mul(512).filter(|size| *size <= i64::MAX as u64) else {
            bail!("Invalid image: Too many sectors")
        };
        let table_end = HEADER + entries * 4;
        if table_end > file.size() || (size > entries * cluster && entries < MAX_ENTRIES) {
            bail!("Invalid image: the table is too small, or not within the file");
        }
        if fields.le64(56) != 0 {
            // Dirty bitmaps there would no longer be true after a write.
            open.read_only()
                .map_err(|_| Failure::new("Parallels images with an extension can only be read"))?;
        }
        let unit = if by_cluster { cluster } else { 512 };
        let data = match u64::from(fields.le32(48)) * 512 {
            0 => table_end.next_multiple_of(512),
            data if data < table_end => bail!("Invalid image: data_off is too small"),
            data => data,
        };
        let base = data.next_multiple_of(unit);
        let shape =
            Shape { cluster, word: Word::Le32, slots: entries, base, step: cluster, prefix: Vec::new() };
        let end = base.max(file.size());
        let unclean = fields.le32(44) == IN_USE;
        let parts = Parts { file, backing: None, shape, root: Root::Flat(HEADER), size, end };
        let image = Image::new(open, Parallels { unit }, parts);
        if unclean && !open.settings.read_only {
            let found = image.check(Fix::All).await?;
            if found.corruptions > 0 {
                bail!("The image was not closed correctly and is corrupt; cannot be opened read/write");
            }
        }
        Ok(Arc::new(image) as Arc<dyn Layer>)
    })
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.options.need_u64("size")?;
        let cluster = create.options.take_u64("cluster-size")?.unwrap_or(1 << 20);
        if cluster / 512 > MAX_TRACKS {
            bail!("Cluster size is too large");
        }
        if size >= cluster << 32 {
            bail!("Image size is too large for this cluster size");
        }
        if !size.is_multiple_of(512) {
            bail!("Image size must be a multiple of 512 bytes");
        }
        if !cluster.is_multiple_of(512) {
            bail!("Cluster size must be a multiple of 512 bytes");
        }
        let entries = size.div_ceil(cluster).min(MAX_ENTRIES);
        let file = create.file().await?;
        create.finish()?;
        let data = (HEADER + entries * 4).next_multiple_of(cluster);
        let mut header = vec![0; HEADER as usize];
        put(&mut header, 0, BY_CLUSTER);
        let geometry = (size / 512).div_ceil(32 * 16).min(65535) as u32;
        let words = [2, 16, geometry, (cluster / 512) as u32, entries as u32];
        for (at, word) in words.iter().enumerate() {
            put(&mut header, 16 + at * 4, &word.to_le_bytes());
        }
        put(&mut header, 36, &(size / 512).to_le_bytes());
        put(&mut header, 48, &((data / 512) as u32).to_le_bytes());
        file.truncate(0, Truncate::default()).await?;
        file.truncate(data, Truncate::default()).await?;
        file.write(0, &header, WriteFlags::empty()).await?;
        Ok(file.flush().await?)
    })
}
