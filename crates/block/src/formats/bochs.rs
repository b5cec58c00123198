//! `bochs`: growing images of the Bochs emulator; read only.
//!
//! Source: Bochs development guide, "Harddisk images", redolog header versions 1 and 2.

use super::mapped::{Fields, Word};
use crate::driver::{Driver, Layer, Open, Probe};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver =
    Driver { name: "bochs", probe: Some(probe), open, read_only: true, ..Driver::DEFAULT };

const SECTOR: u64 = 512;
const HEADER: u64 = 512;
const NOT_THERE: u64 = 0xffff_ffff;
const MAX_CATALOG: u64 = 1 << 20;
const MAX_EXTENT: u64 = 8 << 20;

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn is_growing(head: &[u8]) -> bool {
    head.len() >= HEADER as usize
        && text(&head[..32]) == b"Bochs Virtual HD Image"
        && text(&head[32..48]) == b"Redolog"
        && text(&head[48..64]) == b"Growing"
        && matches!(Fields(head).le32(64), 0x0001_0000 | 0x0002_0000)
}

fn probe(probe: &Probe<'_>) -> u32 {
    if is_growing(probe.head) { 100 } else { 0 }
}

struct Bochs {
    file: Child,
    size: u64,
    /// Of the catalog, by extent: the number of the extent in the file.
    catalog: Vec<u64>,
    data: u64,
    extent: u64,
    /// Bytes of the bitmap before each extent, and of both.
    bitmap: u64,
    stride: u64,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = match file.read_vec(0, HEADER, HEADER).await {
            Ok(head) if is_growing(&head) => head,
            _ => bail!("Image not in Bochs format"),
        };
        let fields = Fields(&head);
        let entries = u64::from(fields.le32(72));
        let (bitmap, extent) = (u64::from(fields.le32(76)), u64::from(fields.le32(80)));
        let size = if fields.le32(64) == 0x0001_0000 { fields.le64(84) } else { fields.le64(88) };
        if entries > MAX_CATALOG {
            bail!("Catalog size is too large");
        }
        if !extent.is_power_of_two() || !(SECTOR..=MAX_EXTENT).contains(&extent) {
            bail!("Extent size {extent} is invalid");
        }
        if bitmap * 8 < extent / SECTOR || bitmap > MAX_EXTENT {
            bail!("Bitmap size {bitmap} is invalid");
        }
        if !size.is_multiple_of(SECTOR) || size > entries * extent {
            bail!("Catalog size is too small for this disk size");
        }
        let start = u64::from(fields.le32(68));
        let Ok(catalog) = file.read_vec(start, entries * 4, MAX_CATALOG * 4).await else {
            bail!("The catalog is not within the file")
        };
        let bitmap = bitmap.next_multiple_of(SECTOR);
        let bochs = Bochs {
            file,
            size,
            catalog: Word::Le32.read(&catalog),
            data: start + entries * 4,
            extent,
            bitmap,
            stride: bitmap + extent,
        };
        Ok(Arc::new(bochs) as Arc<dyn Layer>)
    })
}

impl Bochs {
    /// Where a range begins in the file (or that it is not there), and how long that holds.
    async fn run(&self, offset: u64, len: u64) -> IoResult<(Option<u64>, u64)> {
        let (index, inner) = (offset / self.extent, offset % self.extent);
        let left = len.min(self.extent - inner);
        let number = *self.catalog.get(index as usize).ok_or_else(|| errno(libc::EIO))?;
        if number == NOT_THERE {
            return Ok((None, left));
        }
        let place = self.data + number * self.stride;
        let first = inner / SECTOR;
        let last = (inner + left - 1) / SECTOR;
        let bits = self.file.read_vec(place + first / 8, last / 8 - first / 8 + 1, MAX_EXTENT).await;
        let bits = bits.map_err(|_| errno(libc::EIO))?;
        let bit = |sector: u64| bits[(sector / 8 - first / 8) as usize] >> (sector % 8) & 1 != 0;
        let there = bit(first);
        let same = (first..=last).take_while(|sector| bit(*sector) == there).count() as u64;
        let len = left.min((first + same) * SECTOR - inner);
        Ok((there.then_some(place + self.bitmap + inner), len))
    }
}

impl Layer for Bochs {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let (place, len) = self.run(offset + done as u64, (buf.len() - done) as u64).await?;
                let piece = &mut buf[done..done + len as usize];
                match place {
                    Some(at) => self.file.read(at, piece).await?,
                    None => piece.fill(0),
                }
                done += len as usize;
            }
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (place, len) = self.run(offset, len).await?;
            let flags = match place {
                Some(_) => StatusFlags::ALLOCATED | StatusFlags::DATA | StatusFlags::RECURSE,
                None => StatusFlags::ZERO,
            };
            Ok(Status { flags, len, offset: place })
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
