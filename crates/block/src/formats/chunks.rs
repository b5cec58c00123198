//! Images that are only read, made of chunks that are each packed as a whole (cloop, dmg).

use super::mapped::deflate::{Wrap, inflate_exact};
use crate::driver::{Info, Layer};
use crate::graph::Child;
use crate::types::*;
use base::{Mutex, Result, bail};
use std::io::Read;
use std::sync::Arc;

/// Longest chunk that is unpacked, and longest packed one, in bytes.
pub(super) const MAX_CHUNK: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Zlib,
    Bzip2,
    /// Apple Data Compression.
    Adc,
}

/// Where a chunk's data are in the file: offset, and length if it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Zero,
    Raw(u64),
    Packed(Method, u64, u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// On the disk, in bytes.
    pub start: u64,
    pub len: u64,
    pub source: Source,
}

pub(super) struct Chunks {
    file: Child,
    list: Vec<Chunk>,
    size: u64,
    packed: bool,
    last: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl Chunks {
    /// Refuses chunks that overlap, are too long or lie outside of the file.
    pub fn new(file: Child, mut list: Vec<Chunk>, size: u64) -> Result<Self> {
        list.retain(|chunk| chunk.len > 0);
        list.sort_by_key(|chunk| chunk.start);
        let mut last = 0;
        for chunk in &list {
            let end = chunk.start.checked_add(chunk.len).filter(|end| *end <= size);
            let (Some(end), true) = (end, chunk.start >= last) else {
                bail!("The chunks of the image overlap")
            };
            last = end;
            let (offset, len) = match chunk.source {
                Source::Zero => (0, 0),
                Source::Raw(offset) => (offset, chunk.len),
                Source::Packed(_, offset, len) if len <= MAX_CHUNK && chunk.len <= MAX_CHUNK => (offset, len),
                Source::Packed(..) => bail!("A chunk of the image is too long"),
            };
            if offset.checked_add(len).is_none_or(|end| end > file.size()) {
                bail!("A chunk of the image is not within the file");
            }
        }
        let packed = list.iter().any(|one| matches!(one.source, Source::Packed(..)));
        Ok(Chunks { file, list, size, packed, last: Mutex::new(None) })
    }

    /// The chunk at a place (or the gap there, as zeroes), and what is left of it.
    fn at(&self, offset: u64) -> (Chunk, u64) {
        let next = self.list.partition_point(|chunk| chunk.start + chunk.len <= offset);
        match self.list.get(next) {
            Some(chunk) if chunk.start <= offset => (*chunk, chunk.start + chunk.len - offset),
            after => {
                let end = after.map_or(self.size, |chunk| chunk.start);
                (Chunk { start: offset, len: end - offset, source: Source::Zero }, end - offset)
            }
        }
    }

    async fn unpacked(&self, chunk: &Chunk, method: Method, offset: u64, len: u64) -> IoResult<Arc<Vec<u8>>> {
        if let Some((start, data)) = &*self.last.lock()
            && *start == chunk.start
        {
            return Ok(data.clone());
        }
        let packed = self.file.read_vec(offset, len, MAX_CHUNK).await?;
        let data = Arc::new(unpack(method, &packed, chunk.len as usize)?);
        *self.last.lock() = Some((chunk.start, data.clone()));
        Ok(data)
    }
}

fn unpack(method: Method, data: &[u8], len: usize) -> IoResult<Vec<u8>> {
    match method {
        Method::Zlib => inflate_exact(Wrap::Zlib, data, len),
        Method::Bzip2 => {
            let mut out = vec![0; len];
            bzip2::read::BzDecoder::new(data).read_exact(&mut out).map_err(|_| errno(libc::EIO))?;
            Ok(out)
        }
        Method::Adc => adc(data, len),
    }
}

/// Literals, and copies of 3 to 67 bytes from at most 64 KiB back.
fn adc(data: &[u8], len: usize) -> IoResult<Vec<u8>> {
    let wrong = || errno(libc::EIO);
    let mut out = Vec::with_capacity(len);
    let mut at = 0;
    while out.len() < len {
        let byte = |ahead: usize| data.get(at + ahead).map(|byte| usize::from(*byte)).ok_or_else(wrong);
        let first = byte(0)?;
        if first & 0x80 != 0 {
            let count = (first & 0x7f) + 1;
            out.extend_from_slice(data.get(at + 1..at + 1 + count).ok_or_else(wrong)?);
            at += 1 + count;
            continue;
        }
        let (count, back) = match first & 0x40 {
            0 => ((first >> 2) + 3, (first & 3) << 8 | byte(1)?),
            _ => ((first & 0x3f) + 4, byte(1)? << 8 | byte(2)?),
        };
        at += if first & 0x40 == 0 { 2 } else { 3 };
        let from = out.len().checked_sub(back + 1).ok_or_else(wrong)?;
        for index in from..from + count {
            out.push(out[index]);
        }
    }
    out.truncate(len);
    Ok(out)
}

impl Layer for Chunks {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let at = offset + done as u64;
                let (chunk, left) = self.at(at);
                let len = left.min((buf.len() - done) as u64) as usize;
                let piece = &mut buf[done..done + len];
                let inner = at - chunk.start;
                match chunk.source {
                    Source::Zero => piece.fill(0),
                    Source::Raw(place) => self.file.read(place + inner, piece).await?,
                    Source::Packed(method, place, packed) => {
                        let data = self.unpacked(&chunk, method, place, packed).await?;
                        piece.copy_from_slice(&data[inner as usize..inner as usize + len]);
                    }
                }
                done += len;
            }
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (chunk, left) = self.at(offset);
            let mut status = Status { flags: StatusFlags::ALLOCATED, len: left.min(len), offset: None };
            match chunk.source {
                Source::Zero => status.flags |= StatusFlags::ZERO,
                Source::Packed(..) => status.flags |= StatusFlags::DATA | StatusFlags::COMPRESSED,
                Source::Raw(place) => {
                    status.flags |= StatusFlags::DATA | StatusFlags::RECURSE;
                    status.offset = Some(place + offset - chunk.start);
                }
            }
            Ok(status)
        })
    }

    fn info(&self) -> Info {
        Info { compressed: self.packed, ..Info::default() }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adc_literals_and_copies() {
        // "abc", 3 back by 3, 4 back by 6.
        let data = [0x82, b'a', b'b', b'c', 0x00, 0x02, 0x40, 0x00, 0x05];
        assert_eq!(adc(&data, 10).unwrap(), b"abcabcabca");
        assert!(adc(&data, 11).is_err(), "the data end before the chunk");
        assert!(adc(&[0x00, 0x02], 3).is_err(), "nothing lies so far back");
    }
}
