//! `snapshot-access`: reads the state that a `copy-before-write` node keeps.

use super::{CopyBeforeWrite, Old};
use crate::driver::{Driver, Kind, Layer, Open, layer_of};
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver { name: "snapshot-access", kind: Kind::Format, open, ..Driver::DEFAULT };

struct Access {
    old: Arc<Old>,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.child("file", Role::PRIMARY).await?;
        let node = file.node();
        let Some(layer) = layer_of::<CopyBeforeWrite>(&node) else {
            bail!("Node '{}' is not a copy-before-write filter", node.name())
        };
        Ok(Arc::new(Access { old: layer.old.clone() }) as Arc<dyn Layer>)
    })
}

/// A range of the file that writers leave alone until this is dropped.
struct Reading<'a> {
    old: &'a Old,
    range: (u64, u64),
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut work = self.old.work.lock();
        if let Some(at) = work.reading.iter().position(|range| *range == self.range) {
            work.reading.swap_remove(at);
        }
        drop(work);
        self.old.changed.notify_waiters();
    }
}

impl Access {
    /// Where the beginning of a range is to be read, how long that is so, and the guard for
    /// reading the file.
    fn place(&self, offset: u64, len: u64) -> IoResult<(Option<Reading<'_>>, u64)> {
        let old = &*self.old;
        let mut work = old.work.lock();
        let (readable, run) = old.readable.run(offset, len);
        if work.broken || !readable {
            return Err(errno(libc::EACCES));
        }
        let (todo, run) = old.todo.run(offset, run);
        if !todo {
            return Ok((None, run));
        }
        let range = (offset, offset + run);
        work.reading.push(range);
        Ok((Some(Reading { old, range }), run))
    }
}

impl Layer for Access {
    fn size(&self) -> u64 {
        self.old.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let at = offset + done as u64;
                let (reading, run) = self.place(at, (buf.len() - done) as u64)?;
                let piece = &mut buf[done..done + run as usize];
                match reading {
                    Some(_reading) => self.old.file.read(at, piece).await?,
                    None => self.old.target.read(at, piece).await?,
                }
                done += run as usize;
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, _offset: u64, _data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    fn write_zeroes<'a>(&'a self, _offset: u64, _len: u64, _flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::EACCES)) })
    }

    /// What is discarded is no longer kept: it can be read no more.
    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let old = &*self.old;
            let end =
                if offset + len >= old.size { old.size } else { (offset + len) / old.cluster * old.cluster };
            let start = offset.next_multiple_of(old.cluster);
            if start >= end {
                return Ok(());
            }
            {
                let _work = old.work.lock();
                old.readable.reset(start, end - start);
                old.todo.reset(start, end - start);
            }
            old.target.discard(start, end - start).await
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (reading, run) = self.place(offset, len)?;
            let (child, _guard) = match reading {
                Some(reading) => (&self.old.file, Some(reading)),
                None => (&self.old.target, None),
            };
            let (zero, run) = crate::jobs::known_zero(&child.node(), offset, run).await?;
            let kind = if zero { StatusFlags::ZERO } else { StatusFlags::DATA };
            Ok(Status { flags: kind | StatusFlags::ALLOCATED, len: run, offset: None })
        })
    }

    fn child_perm(&self, _role: Role, _read_only: bool, _perm: Perm, _shared: Perm) -> (Perm, Perm) {
        // Nothing is asked of the filter itself: the guest goes on writing through it.
        (Perm::empty(), Perm::all())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
