//! `preallocate`: a file that grows is allocated far ahead, and cut when it is closed.

use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::{Child, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Mutex;

pub static DRIVER: Driver = Driver {
    name: "preallocate",
    kind: Kind::Filter,
    open,
    changes: &["prealloc-align", "prealloc-size"],
    ..Driver::DEFAULT
};

struct Preallocate {
    file: Child,
    /// Where the data ends: the size that is shown. Bytes.
    end: AtomicU64,
    /// Where the file ends. Bytes.
    allocated: AtomicU64,
    growing: Mutex<()>,
    ahead: AtomicU64,
    align: AtomicU64,
    writable: AtomicBool,
}

/// `prealloc-align` and `prealloc-size` in bytes.
fn take_sizes(options: &mut Options) -> Result<(u64, u64)> {
    let align = options.take_u64("prealloc-align")?.unwrap_or(1 << 20);
    let size = options.take_u64("prealloc-size")?.unwrap_or(128 << 20);
    if align == 0 || !align.is_multiple_of(512) {
        bail!("prealloc-align parameter of preallocate filter is not aligned to 512");
    }
    Ok((align, size))
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let (align, ahead) = take_sizes(&mut open.options)?;
        let file = open.child("file", Role::FILTER).await?;
        let size = file.size();
        let layer = Preallocate {
            file,
            end: AtomicU64::new(size),
            allocated: AtomicU64::new(size),
            growing: Mutex::new(()),
            ahead: AtomicU64::new(ahead),
            align: AtomicU64::new(align),
            writable: AtomicBool::new(!open.settings.read_only),
        };
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

impl Preallocate {
    /// Makes the file longer if a write up to `end` would. A host that cannot is no error:
    /// then the write itself makes it longer.
    async fn reach(&self, end: u64) {
        if end <= self.allocated.load(Ordering::Acquire) || self.ahead.load(Ordering::Relaxed) == 0 {
            return;
        }
        let _alone = self.growing.lock().await;
        if end <= self.allocated.load(Ordering::Acquire) {
            return;
        }
        let ahead = self.ahead.load(Ordering::Relaxed);
        let to = end.saturating_add(ahead).checked_next_multiple_of(self.align.load(Ordering::Relaxed));
        let Some(to) = to.filter(|to| *to <= i64::MAX as u64) else { return };
        let how = Truncate { exact: false, preallocation: Preallocation::Falloc, zero: false };
        let grown = self.file.truncate(to, how).await;
        self.allocated.store(if grown.is_ok() { to } else { end }, Ordering::Release);
    }

    /// Gives back what was allocated ahead.
    async fn cut(&self) -> IoResult {
        let _alone = self.growing.lock().await;
        let end = self.end.load(Ordering::Acquire);
        if self.writable.load(Ordering::Acquire) && self.file.size() > end {
            let how = Truncate { exact: true, ..Truncate::default() };
            self.file.truncate(end, how).await.map_err(std::io::Error::other)?;
        }
        self.allocated.store(end, Ordering::Release);
        Ok(())
    }
}

impl Layer for Preallocate {
    fn size(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    fn grows(&self) -> bool {
        self.file.node().layer().grows()
    }

    fn zero_initialised(&self) -> bool {
        self.file.node().layer().zero_initialised()
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let end = offset + data.len() as u64;
            self.reach(end).await;
            self.file.write(offset, data, flags).await?;
            self.end.fetch_max(end, Ordering::AcqRel);
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let end = offset + len;
            self.reach(end).await;
            self.file.write_zeroes(offset, len, flags).await?;
            self.end.fetch_max(end, Ordering::AcqRel);
            Ok(())
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        self.file.discard(offset, len)
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        self.file.block_status(offset, len)
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            self.cut().await?;
            self.file.truncate(size, how).await?;
            self.end.store(self.file.size(), Ordering::Release);
            self.allocated.store(self.file.size(), Ordering::Release);
            Ok(())
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(self.cut())
    }

    fn reopen<'a>(&'a self, to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let (align, ahead) = take_sizes(options)?;
            if to.read_only {
                self.cut().await?;
            }
            self.align.store(align, Ordering::Relaxed);
            self.ahead.store(ahead, Ordering::Relaxed);
            self.writable.store(!to.read_only, Ordering::Release);
            Ok(())
        })
    }

    fn reopened_by(&self) -> Options {
        let mut options = Options::new();
        options.set("prealloc-align", self.align.load(Ordering::Relaxed));
        options.set("prealloc-size", self.ahead.load(Ordering::Relaxed));
        options
    }

    fn child_perm(&self, _role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        match read_only {
            true => (perm, shared),
            false => (perm | Perm::WRITE | Perm::RESIZE, shared - Perm::WRITE - Perm::RESIZE),
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
