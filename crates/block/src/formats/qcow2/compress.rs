//! Compressed clusters.

use super::Qcow2;
use super::entry::*;
use super::header::Compression;
use super::meta::Meta;
use super::refcounts::{Attempt, Miss, Wrong};
use crate::driver::Layer as _;
use crate::types::*;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status as Flate};
use std::io::Read;
use std::sync::Arc;

/// Window of the raw deflate streams: 4 KiB.
const WINDOW_BITS: u8 = 12;

/// Unpacks one cluster. Wrong data is an error, never more than `size` bytes.
pub(super) fn unpack(kind: Compression, data: &[u8], size: usize) -> IoResult<Vec<u8>> {
    let mut out = vec![0; size];
    match kind {
        Compression::Zlib => {
            let mut inflate = Decompress::new_with_window_bits(false, 15);
            let end =
                inflate.decompress(data, &mut out, FlushDecompress::Finish).map_err(|_| errno(libc::EIO))?;
            // The stream may be followed by what does not belong to it.
            if inflate.total_out() as usize != size || (end == Flate::BufError && inflate.total_in() == 0) {
                return Err(errno(libc::EIO));
            }
        }
        Compression::Zstd => {
            let mut reader = zstd::stream::read::Decoder::new(data)?.single_frame();
            reader.window_log_max(27)?;
            reader.read_exact(&mut out).map_err(|_| errno(libc::EIO))?;
        }
    }
    Ok(out)
}

/// Packs one cluster; `None` if that does not make it smaller.
pub(super) fn pack(kind: Compression, data: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; data.len() - 1];
    match kind {
        Compression::Zlib => {
            let mut deflate =
                Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
            match deflate.compress(data, &mut out, FlushCompress::Finish) {
                Ok(Flate::StreamEnd) => out.truncate(deflate.total_out() as usize),
                _ => return None,
            }
        }
        Compression::Zstd => {
            let len = zstd::bulk::compress_to_buffer(data, &mut out[..], 0).ok()?;
            out.truncate(len);
        }
    }
    Some(out)
}

impl Qcow2 {
    pub(super) async fn read_compressed(&self, entry: Entry, at: u64, buf: &mut [u8]) -> IoResult {
        let size = self.geometry.cluster_size();
        let inner = (at & (size - 1)) as usize;
        let known = self.unpacked.lock().clone().filter(|(word, _)| *word == entry.word);
        let data = match known {
            Some((_, data)) => data,
            None => {
                let (offset, len) = self.geometry.compressed(entry);
                if offset >= self.file.size() {
                    return Err(errno(libc::EIO));
                }
                let mut packed = vec![0; len as usize];
                self.file.read(offset, &mut packed).await?;
                let kind = self.meta.lock().header.compression;
                let work = move || unpack(kind, &packed, size as usize);
                let data = Arc::new(self.pool.spawn_blocking(work).await.map_err(|_| errno(libc::EIO))??);
                *self.unpacked.lock() = Some((entry.word, data.clone()));
                data
            }
        };
        let end = inner + buf.len();
        buf.copy_from_slice(data.get(inner..end).ok_or_else(|| errno(libc::EIO))?);
        Ok(())
    }

    /// Writes whole clusters (the last of the disk may be short) compressed.
    pub(super) async fn write_compressed(&self, offset: u64, data: &[u8]) -> IoResult {
        let size = self.geometry.cluster_size();
        let end = offset + data.len() as u64;
        if offset & (size - 1) != 0 || (end & (size - 1) != 0 && end != self.size()) {
            return Err(errno(libc::EINVAL));
        }
        let kind = self.meta.lock().header.compression;
        for (index, piece) in data.chunks(size as usize).enumerate() {
            let at = offset + index as u64 * size;
            let mut cluster = piece.to_vec();
            cluster.resize(size as usize, 0);
            let work = move || pack(kind, &cluster);
            match self.pool.spawn_blocking(work).await.map_err(|_| errno(libc::EIO))? {
                None => self.write_guest(at, piece).await?,
                Some(packed) => self.put_packed(at, piece, &packed).await?,
            }
        }
        Ok(())
    }

    async fn put_packed(&self, at: u64, plain: &[u8], packed: &[u8]) -> IoResult {
        let size = self.geometry.cluster_size();
        let place = loop {
            let woken = self.allocated.notified();
            let len = packed.len() as u64;
            let taken = self.with(|meta| {
                if meta.free_of_others(at, at + size).is_none() {
                    return Ok(None);
                }
                meta.own_table(at)?;
                meta.entry(at)?;
                let place = take_bytes(meta, len)?;
                meta.busy.push((at, at + size));
                Ok(Some(place))
            });
            match taken.await? {
                Some(place) => break place,
                None => woken.await,
            }
        };
        let Some(entry) = self.geometry.compressed_entry(place, packed.len() as u64) else {
            self.let_go(at);
            return self.write_guest(at, plain).await;
        };
        crate::filters::blkdebug::event(&self.file, "write_compressed").await;
        let result = self.file.write(place, packed, WriteFlags::empty()).await;
        let result = match result {
            Ok(()) => {
                self.with(|meta| {
                    let old = meta.entry(at)?;
                    meta.set_entry(at, entry)?;
                    meta.give_up(old);
                    Ok(())
                })
                .await
            }
            Err(error) => Err(error),
        };
        self.let_go(at);
        result
    }

    fn let_go(&self, at: u64) {
        self.meta.lock().finish(at, at + self.geometry.cluster_size());
        self.allocated.notify_waiters();
    }
}

/// Room for packed data: behind what was packed last if it fits, else in a new cluster.
fn take_bytes(meta: &mut Meta, len: u64) -> Attempt<u64> {
    let size = meta.geometry.cluster_size();
    if let Some((at, end)) = meta.pack {
        let cluster = at & !(size - 1);
        let count = meta.refs.get(cluster >> meta.geometry.cluster_bits)?;
        if count > 0 && count < meta.refs.max() && at < end {
            if at + len <= end {
                meta.refs.add(cluster, 1)?;
                meta.pack = Some((at + len, end));
                return Ok(at);
            }
            // Over the edge into the next cluster, if that is free.
            if len <= size && meta.refs.allocate_at(end)? {
                if let Some(part) = meta.overlaps(end, size) {
                    return Err(Miss::Corrupt(Wrong::Overlap { part, offset: end, len: size }));
                }
                meta.refs.add(cluster, 1)?;
                meta.pack = Some((at + len, end + size));
                return Ok(at);
            }
        }
    }
    let offset = meta.allocate(1)?;
    meta.pack = Some((offset + len, offset + size));
    Ok(offset)
}
