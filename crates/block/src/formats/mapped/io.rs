//! Requests.

use super::{Format, Image, Place};
use crate::crypto::OldAes;
use crate::filters::blkdebug;
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest run looked up at once, in clusters: bounds the work of one look.
const LOOK: u64 = 1 << 16;

/// Most zeroes written from a buffer at once.
const ZEROES: u64 = 1 << 20;

/// A range that lies in one piece. `place` is where its first byte is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub place: Place,
    pub len: u64,
}

impl<F: Format> Image<F> {
    /// What begins at `at`, at most `len` bytes long.
    pub(super) async fn run(&self, at: u64, len: u64) -> IoResult<Run> {
        let cluster = self.shape.cluster;
        let index = at / cluster;
        let inner = at % cluster;
        let first = self.place(index).await?;
        let mut have = cluster - inner;
        if !matches!(first, Place::Packed(..)) {
            let mut next = index + 1;
            while have < len && next - index < LOOK {
                let place = self.place(next).await?;
                let same = match (first, place) {
                    (Place::At(start), Place::At(here)) => {
                        start.checked_add((next - index) * cluster) == Some(here)
                    }
                    (a, b) => a == b,
                };
                if !same {
                    break;
                }
                have += cluster;
                next += 1;
            }
        }
        let place = match first {
            Place::At(start) => Place::At(start.checked_add(inner).ok_or_else(|| errno(libc::EIO))?),
            other => other,
        };
        Ok(Run { place, len: have.min(len) })
    }

    pub(super) async fn read_guest(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = self.run(at, (buf.len() - done) as u64).await?;
            let piece = &mut buf[done..done + run.len as usize];
            match run.place {
                Place::At(host) => {
                    blkdebug::event(&self.file, "read_aio").await;
                    self.fetch(at, host, piece).await?;
                }
                Place::Zero => piece.fill(0),
                Place::Absent => self.read_below(at, piece).await?,
                Place::Packed(..) => {
                    blkdebug::event(&self.file, "read_compressed").await;
                    let data = self.unpacked(run.place).await?;
                    let inner = (at % self.shape.cluster) as usize;
                    let part = data.get(inner..inner + piece.len()).ok_or_else(|| errno(libc::EIO))?;
                    piece.copy_from_slice(part);
                }
            }
            done += piece.len();
        }
        Ok(())
    }

    /// Refuses as long as the key is missing.
    pub(super) fn unlocked(&self) -> IoResult {
        self.format.crypto().map_or(Ok(()), OldAes::check)
    }

    /// Reads data of offset `at` of the disk from where it lies.
    async fn fetch(&self, at: u64, host: u64, buf: &mut [u8]) -> IoResult {
        self.file.read(host, buf).await?;
        self.format.crypto().map_or(Ok(()), |crypto| crypto.decrypt(at, buf))
    }

    /// The reverse of [`Image::fetch`].
    async fn store(&self, at: u64, host: u64, data: &[u8]) -> IoResult {
        let Some(crypto) = self.format.crypto() else {
            return self.file.write(host, data, WriteFlags::empty()).await;
        };
        let mut hidden = data.to_vec();
        crypto.encrypt(at, &mut hidden)?;
        self.file.write(host, &hidden, WriteFlags::empty()).await
    }

    async fn read_below(&self, at: u64, buf: &mut [u8]) -> IoResult {
        match self.backing() {
            Some(_) if self.estranged.load(Ordering::Acquire) => Err(errno(libc::EINVAL)),
            Some(backing) => {
                blkdebug::event(&self.file, "read_backing_aio").await;
                backing.read(self.origin + at, buf).await
            }
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    async fn unpacked(&self, place: Place) -> IoResult<Arc<Vec<u8>>> {
        if let Some((known, data)) = &*self.unpacked.lock()
            && *known == place
        {
            return Ok(data.clone());
        }
        let Place::Packed(offset, len) = place else { return Err(errno(libc::EIO)) };
        // The length may be a bound that passes the end of the file.
        let len = len.min(self.file.size().saturating_sub(offset));
        let packed = self.file.read_vec(offset, len, 2 * self.shape.cluster + 4096).await?;
        let data = Arc::new(self.format.unpack(&packed, self.shape.cluster as usize)?);
        *self.unpacked.lock() = Some((place, data.clone()));
        Ok(data)
    }

    pub(super) async fn write_guest(&self, offset: u64, data: &[u8]) -> IoResult {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let rest = &data[done..];
            let run = self.run(at, rest.len() as u64).await?;
            done += match run.place {
                Place::At(host) => {
                    blkdebug::event(&self.file, "write_aio").await;
                    self.store(at, host, &rest[..run.len as usize]).await?;
                    run.len as usize
                }
                _ => self.fill(at, &rest[..run.len as usize]).await?,
            };
        }
        Ok(())
    }

    /// Gives clusters to a range that has none and writes it. Returns how much of it was
    /// written: 0 if another request was faster.
    async fn fill(&self, at: u64, data: &[u8]) -> IoResult<usize> {
        let _one = self.allocating.lock().await;
        let run = self.run(at, data.len() as u64).await?;
        if let Place::At(_) = run.place {
            return Ok(0);
        }
        let data = &data[..run.len as usize];
        let cluster = self.shape.cluster;
        let (first, last) = (at / cluster, (at + run.len - 1) / cluster);
        let (start, end) = (first * cluster, (last + 1) * cluster);
        let mut head = vec![0; (at - start) as usize];
        let mut tail = vec![0; (end - at - run.len) as usize];
        let keeps =
            !matches!(run.place, Place::Zero) && (self.backing().is_some() || run.place != Place::Absent);
        if keeps {
            blkdebug::event(&self.file, "cow_read").await;
            self.read_guest(start, &mut head).await?;
            let past = (at + run.len).min(self.disk_size());
            let inside = (self.disk_size() - past).min(tail.len() as u64) as usize;
            self.read_guest(past, &mut tail[..inside]).await?;
        }
        // A hole in the file is no zeroes where they would be decrypted.
        let whole = keeps || self.format.crypto().is_some();
        let around = if whole { (&head[..], &tail[..]) } else { (&[][..], &[][..]) };
        match self.shape.prefix.is_empty() && cluster.is_multiple_of(self.shape.step) || first == last {
            true => self.fill_run(first, last - first + 1, head.len() as u64, data, around).await?,
            false => {
                let mut whole = head;
                whole.extend_from_slice(data);
                whole.extend(tail);
                for (at, piece) in whole.chunks(cluster as usize).enumerate() {
                    self.fill_run(first + at as u64, 1, 0, piece, (&[], &[])).await?;
                }
            }
        }
        Ok(data.len())
    }

    /// Writes `data` at `skip` in `count` new clusters, with what lies around it.
    async fn fill_run(
        &self,
        index: u64,
        count: u64,
        skip: u64,
        data: &[u8],
        around: (&[u8], &[u8]),
    ) -> IoResult {
        let prefix = self.shape.prefix.len() as u64;
        let len = prefix + count * self.shape.cluster;
        let start = {
            let mut state = self.state.lock();
            let full = || errno(libc::EFBIG);
            let behind = state.end.saturating_sub(self.shape.base);
            let behind = behind.checked_next_multiple_of(self.shape.step).ok_or_else(full)?;
            let start = self.shape.base.checked_add(behind).ok_or_else(full)?;
            let end = start.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or_else(full)?;
            let host = start + prefix;
            // A place the table cannot name must not be written.
            self.format.encode(Place::At(host + (count - 1) * self.shape.cluster)).ok_or_else(full)?;
            state.end = end;
            start
        };
        self.extend(start, len).await?;
        self.format.extended(self, start + len).await?;
        let host = start + prefix;
        if prefix > 0 {
            self.file.write(start, &self.shape.prefix, WriteFlags::empty()).await?;
        }
        let (head, tail) = around;
        let at = index * self.shape.cluster;
        let edges = [(0, head, "cow_write"), (skip + data.len() as u64, tail, "cow_write")];
        for (offset, piece, event) in [edges[0], (skip, data, "write_aio"), edges[1]] {
            if !piece.is_empty() {
                blkdebug::event(&self.file, event).await;
                self.store(at + offset, host + offset, piece).await?;
            }
        }
        for at in 0..count {
            self.set_place(index + at, Place::At(host + at * self.shape.cluster)).await?;
        }
        Ok(())
    }

    /// Whole clusters (the last of the disk may be short), compressed where that helps.
    pub(super) async fn write_packed(&self, offset: u64, data: &[u8]) -> IoResult {
        let cluster = self.shape.cluster;
        let end = offset + data.len() as u64;
        if !offset.is_multiple_of(cluster) || (!end.is_multiple_of(cluster) && end != self.disk_size()) {
            return Err(errno(libc::EINVAL));
        }
        for (at, piece) in data.chunks(cluster as usize).enumerate() {
            let index = offset / cluster + at as u64;
            let mut whole = piece.to_vec();
            whole.resize(cluster as usize, 0);
            match self.format.pack(index, &whole) {
                Some(packed) => self.put_packed(index, &packed).await?,
                None => self.write_guest(offset + at as u64 * cluster, piece).await?,
            }
        }
        Ok(())
    }

    async fn put_packed(&self, index: u64, packed: &[u8]) -> IoResult {
        let _one = self.allocating.lock().await;
        let was = self.place(index).await?;
        if self.format.packed_only() && !matches!(was, Place::Absent | Place::Zero) {
            return Err(errno(libc::EIO));
        }
        let len = packed.len() as u64;
        let start = self.room(len.next_multiple_of(512), 512).await?;
        blkdebug::event(&self.file, "write_compressed").await;
        self.file.write(start, packed, WriteFlags::empty()).await?;
        self.set_place(index, Place::Packed(start, len)).await
    }

    /// Writes of a format that holds only compressed clusters: parts of a cluster are
    /// completed with zeroes, and nothing is written twice.
    pub(super) async fn write_once(&self, offset: u64, data: &[u8]) -> IoResult {
        let cluster = self.shape.cluster;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let inner = (at % cluster) as usize;
            let len = (data.len() - done).min(cluster as usize - inner);
            let mut whole = vec![0; cluster as usize];
            whole[inner..inner + len].copy_from_slice(&data[done..done + len]);
            let packed = self.format.pack(at / cluster, &whole).ok_or_else(|| errno(libc::EIO))?;
            self.put_packed(at / cluster, &packed).await?;
            done += len;
        }
        Ok(())
    }

    pub(super) async fn zero_guest(&self, offset: u64, len: u64, flags: ZeroFlags) -> IoResult {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let run = self.run(at, end - at).await?;
            at += match run.place {
                Place::Zero => run.len,
                Place::Absent if self.backing().is_none() => run.len,
                Place::At(host) => {
                    self.file.write_zeroes(host, run.len, flags).await?;
                    run.len
                }
                _ => self.zero_absent(at, run.len).await?,
            };
        }
        Ok(())
    }

    /// Zeroes over what only the backing file or a compressed cluster has.
    async fn zero_absent(&self, at: u64, len: u64) -> IoResult<u64> {
        let cluster = self.shape.cluster;
        let whole = at.is_multiple_of(cluster) && (len >= cluster || at + len == self.disk_size());
        if !whole || self.format.encode(Place::Zero).is_none() {
            let to_edge = cluster - at % cluster;
            let piece = if whole { len } else { len.min(to_edge) }.min(ZEROES.max(cluster));
            let zeroes = vec![0; piece as usize];
            return Ok(self.fill(at, &zeroes).await? as u64);
        }
        let _one = self.allocating.lock().await;
        let index = at / cluster;
        if let Place::At(_) = self.place(index).await? {
            return Ok(0);
        }
        self.set_place(index, Place::Zero).await?;
        Ok(cluster.min(len))
    }

    pub(super) async fn status(&self, offset: u64, len: u64) -> IoResult<Status> {
        let run = self.run(offset, len).await?;
        let mut status = Status { flags: StatusFlags::ALLOCATED, len: run.len, offset: None };
        match run.place {
            Place::Absent if self.backing().is_some() => status.flags = StatusFlags::empty(),
            Place::Absent => status.flags = StatusFlags::ZERO,
            Place::Zero => status.flags |= StatusFlags::ZERO,
            Place::Packed(..) => status.flags |= StatusFlags::DATA | StatusFlags::COMPRESSED,
            Place::At(host) => {
                status.flags |= StatusFlags::DATA;
                if self.format.crypto().is_none() {
                    status.flags |= StatusFlags::RECURSE;
                    status.offset = Some(host);
                }
            }
        }
        Ok(status)
    }
}
