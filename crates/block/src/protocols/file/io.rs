//! System calls on a file. What is certain not to wait is done on the calling thread,
//! the rest on the pool.

use crate::buffers::{self, Lent};
use crate::types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Files are told of in units of so many bytes.
pub(super) const SECTOR: u64 = 512;
/// Longest buffered write done without the pool.
const INLINE_WRITE: usize = 1 << 20;
/// Calls that took longer, with a part for their length, are taken as a sign that the host's
/// cache is busy, if so many come in a row (one alone may be for want of a processor)...
const IN_A_ROW: u32 = 3;
const SLOW: Duration = Duration::from_micros(500);
const SLOW_KIB: Duration = Duration::from_nanos(1000);
/// ...and for this long everything goes through the pool.
const BACK_OFF: Duration = Duration::from_millis(50);

pub(super) struct File {
    fd: OwnedFd,
    _set: Option<Arc<()>>,
    alignment: u32,
    /// The file system knows reads that do not wait.
    nowait: AtomicBool,
    begun: Instant,
    /// Microseconds after `begun` until which inline calls are not tried.
    avoid_until: AtomicU64,
    slow_calls: AtomicU32,
}

/// Alignment of offsets and lengths for O_DIRECT in bytes.
pub(super) fn direct_alignment(fd: &OwnedFd) -> u32 {
    use rustix::fs::{AtFlags, StatxFlags};
    let asked = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match asked {
        Ok(stat) if stat.stx_dio_offset_align.is_power_of_two() => {
            stat.stx_dio_offset_align.clamp(512, 65536)
        }
        _ => 4096,
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File {
    pub fn new(fd: OwnedFd, set: Option<Arc<()>>, alignment: u32) -> Self {
        File {
            fd,
            _set: set,
            alignment,
            nowait: AtomicBool::new(true),
            begun: Instant::now(),
            avoid_until: AtomicU64::new(0),
            slow_calls: AtomicU32::new(0),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn may_inline(&self) -> bool {
        self.alignment == 1
            && self.begun.elapsed().as_micros() as u64 >= self.avoid_until.load(Ordering::Relaxed)
    }

    fn timed<T>(&self, len: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        if start.elapsed() <= SLOW + SLOW_KIB * (len >> 10) as u32 {
            if self.slow_calls.load(Ordering::Relaxed) > 0 {
                self.slow_calls.store(0, Ordering::Relaxed);
            }
        } else if self.slow_calls.fetch_add(1, Ordering::Relaxed) + 1 >= IN_A_ROW {
            let until = self.begun.elapsed() + BACK_OFF;
            self.avoid_until.store(until.as_micros() as u64, Ordering::Relaxed);
        }
        result
    }

    /// Reads what can be had without waiting; returns how many bytes.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> IoResult<usize> {
        if self.alignment > 1 {
            return Ok(0);
        }
        if self.nowait.load(Ordering::Relaxed) {
            let mut slices = [std::io::IoSliceMut::new(buf)];
            match rustix::io::preadv2(&self.fd, &mut slices, offset, ReadWriteFlags::NOWAIT) {
                Ok(done) => return Ok(done),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait.store(false, Ordering::Relaxed)
                }
                Err(error) => return Err(error.into()),
            }
        }
        if buf.len() > INLINE_WRITE || !self.may_inline() {
            return Ok(0);
        }
        match self.timed(buf.len(), || rustix::io::pread(&self.fd, buf, offset)) {
            Ok(done) => Ok(done),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes on this thread if that is unlikely to wait. False: nothing was done.
    pub fn try_write(&self, offset: u64, data: &[u8]) -> IoResult<bool> {
        if data.len() > INLINE_WRITE || !self.may_inline() {
            return Ok(false);
        }
        self.timed(data.len(), || self.write_all(offset, data)).map(|()| true)
    }

    /// Reads exactly `len` bytes; past the end of the file they are zeroes.
    pub fn read(&self, offset: u64, len: usize) -> IoResult<Lent> {
        let (mut store, start) = match self.alignment {
            1 => (buffers::take(len), 0),
            _ => self.buffer(len),
        };
        let mut done = 0;
        while done < len {
            let end = start + len;
            match rustix::io::pread(&self.fd, &mut store[start + done..end], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.alignment > 1 && done % self.alignment as usize != 0 {
                break; // the unaligned end of the file
            }
        }
        store.cut(start, len);
        store[done..].fill(0);
        Ok(store)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> IoResult {
        if self.alignment == 1 {
            return self.write_all(offset, data);
        }
        let (mut store, start) = self.buffer(data.len());
        store[start..start + data.len()].copy_from_slice(data);
        self.write_all(offset, &store[start..start + data.len()])
    }

    /// Room for `len` bytes that begins at an address direct I/O accepts.
    fn buffer(&self, len: usize) -> (Lent, usize) {
        let align = (self.alignment as usize).max(4096);
        let store = buffers::take(len + align);
        let start = store.as_ptr().align_offset(align).min(align);
        (store, start)
    }

    fn write_all(&self, mut offset: u64, mut data: &[u8]) -> IoResult {
        while !data.is_empty() {
            match rustix::io::pwrite(&self.fd, data, offset) {
                Ok(0) => return Err(errno(libc::ENOSPC)),
                Ok(count) => {
                    data = &data[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub fn sync(&self) -> IoResult {
        rustix::fs::fdatasync(&self.fd).map_err(Into::into)
    }

    /// Makes a hole inside the file.
    pub fn punch(&self, offset: u64, len: u64) -> IoResult {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    /// Zeroes a range that may pass the end (`size`) of the file; never makes it shorter.
    pub fn zero(&self, offset: u64, len: u64, size: u64, unmap: bool) -> IoResult {
        let end = offset + len;
        if unmap && offset < size {
            let inside = end.min(size) - offset;
            match self.punch(offset, inside) {
                Ok(()) if end <= size => return Ok(()),
                Ok(()) => return self.allocate(FallocateFlags::empty(), size, end - size),
                Err(error) if errno_of(&error) != libc::ENOTSUP => return Err(error),
                Err(_) => {}
            }
        }
        match self.allocate(FallocateFlags::ZERO_RANGE, offset, len) {
            Err(error) if errno_of(&error) == libc::ENOTSUP && offset < size => {
                let inside = end.min(size) - offset;
                self.punch(offset, inside)?;
                self.allocate(FallocateFlags::empty(), offset, len)
            }
            other => other,
        }
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> IoResult {
        loop {
            match rustix::fs::fallocate(&self.fd, flags, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::NOTTY) => {
                    return Err(errno(libc::ENOTSUP));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether there is data at `offset`, and for how many bytes that is so.
    pub fn extent(&self, offset: u64, len: u64, size: u64) -> IoResult<(bool, u64)> {
        if offset >= size {
            return Ok((false, len));
        }
        match rustix::fs::seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((false, data - offset)),
            Ok(_) => match rustix::fs::seek(&self.fd, SeekFrom::Hole(offset)) {
                // The end of the file is that of its last sector.
                Ok(hole) if hole == size => Ok((true, hole.next_multiple_of(SECTOR) - offset)),
                Ok(hole) if hole > offset => Ok((true, hole - offset)),
                _ => Ok((true, len)),
            },
            // No data up to the end of the file.
            Err(Errno::NXIO) => Ok((false, len)),
            Err(_) => Ok((true, len)),
        }
    }
}
