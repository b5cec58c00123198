//! `raw`: the file as it is, or a window of it (`offset`, `size`).

use crate::driver::{Create, CreateOption, Driver, Info, Kind, Layer, Open};
use crate::filters::blkdebug;
use crate::graph::{Child, Node, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub static DRIVER: Driver = Driver {
    name: "raw",
    kind: Kind::Format,
    open,
    create: Some(create),
    create_options: &[CreateOption { name: "size", modern: "size", help: "Virtual disk size" }],
    changes: &["offset", "size"],
    telling: &["offset", "size"],
    ..Driver::DEFAULT
};

/// The head of a raw image that was only guessed to be raw must not come to look like
/// another format.
const GUARDED: u64 = 512;

/// No size was given.
const WHOLE: u64 = u64::MAX;

struct Raw {
    file: Child,
    offset: AtomicU64,
    /// Given as an option; otherwise ([`WHOLE`]) it is the file's.
    size: AtomicU64,
    probed: bool,
}

/// The node that a raw image shows all of.
pub(crate) fn whole(node: &Node) -> Option<Arc<Node>> {
    let raw: &Raw = crate::driver::layer_of(node)?;
    (raw.offset() == 0 && raw.fixed_size().is_none()).then(|| raw.file.node())
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let (offset, size) = take_window(&mut open.options)?;
        let probed = open.options.take_bool("probed")?.unwrap_or(false);
        let window = offset != 0 || size.is_some();
        let role = if window { Role::DATA | Role::PRIMARY } else { Role::FILTER };
        let file = open.child("file", role).await?;
        if probed {
            // Customary words.
            eprintln!(
                "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         Automatically \
                 detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
                 Specify the 'raw' format explicitly to remove the restrictions.",
                file.node().filename()
            );
        }
        let size = window_size(&file, offset, size)?;
        let raw = Raw { file, offset: AtomicU64::new(offset), size: AtomicU64::new(size), probed };
        Ok(Arc::new(raw) as Arc<dyn Layer>)
    })
}

fn take_window(options: &mut Options) -> Result<(u64, Option<u64>)> {
    Ok((options.take_u64("offset")?.unwrap_or(0), options.take_u64("size")?))
}

/// Bytes from `offset` that the window has, which must lie in the file; [`WHOLE`] is all of it.
fn window_size(file: &Child, offset: u64, size: Option<u64>) -> Result<u64> {
    let whole = file.size();
    if offset > whole {
        bail!("Offset ({offset}) cannot be greater than size of the containing file ({whole})");
    }
    match size {
        Some(size) if size > whole - offset => bail!(
            "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the containing file ({whole})"
        ),
        Some(size) => Ok(size),
        None => Ok(WHOLE),
    }
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.size()?;
        let preallocation = crate::graph::create::take_preallocation(&mut create.options)?;
        let file = create.file().await?;
        create.finish()?;
        let how = Truncate { exact: true, preallocation, zero: false };
        file.truncate(size, how).await
    })
}

impl Raw {
    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    fn fixed_size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Acquire)).filter(|size| *size != WHOLE)
    }

    fn at(&self, offset: u64) -> IoResult<u64> {
        offset.checked_add(self.offset()).ok_or_else(|| errno(libc::EINVAL))
    }

    /// Refuses to turn a guessed raw image into something else.
    async fn guard(&self, offset: u64, data: &[u8]) -> IoResult {
        if !self.probed || offset >= GUARDED || data.is_empty() {
            return Ok(());
        }
        let mut head = vec![0; 2048.min(self.size().max(offset + data.len() as u64)) as usize];
        self.file.read(self.offset(), &mut head).await?;
        let end = (offset as usize + data.len()).min(head.len());
        head[offset as usize..end].copy_from_slice(&data[..end - offset as usize]);
        let size = self.size();
        let probe = crate::driver::Probe { head: &head, filename: "", size };
        let looks = |driver: &&Driver| driver.probe.is_some_and(|looks_like| looks_like(&probe) > 0);
        match crate::formats::all().find(looks) {
            Some(_) => Err(errno(libc::EPERM)),
            None => Ok(()),
        }
    }
}

impl Layer for Raw {
    fn size(&self) -> u64 {
        self.fixed_size().unwrap_or_else(|| self.file.size().saturating_sub(self.offset()))
    }

    fn limits(&self) -> Limits {
        let below = self.file.node().layer().limits();
        Limits { request_alignment: 1, ..below }
    }

    fn grows(&self) -> bool {
        self.fixed_size().is_none() && self.file.node().layer().grows()
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        if self.offset() == 0 && !blkdebug::watching() {
            return self.file.read(offset, buf);
        }
        Box::pin(async move {
            blkdebug::event(&self.file, "read_aio").await;
            self.file.read(self.at(offset)?, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        if self.offset() == 0 && !self.probed && !blkdebug::watching() {
            return self.file.write(offset, data, flags);
        }
        Box::pin(async move {
            self.guard(offset, data).await?;
            blkdebug::event(&self.file, "write_aio").await;
            self.file.write(self.at(offset)?, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move { self.file.write_zeroes(self.at(offset)?, len, flags).await })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move { self.file.discard(self.at(offset)?, len).await })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let at = self.at(offset)?;
            let mut status = self.file.block_status(at, len).await?;
            status.flags |= StatusFlags::ALLOCATED;
            status.offset = Some(at);
            Ok(status)
        })
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if self.fixed_size().is_some() {
                bail!("Cannot resize fixed-size raw disks");
            }
            let Some(end) = size.checked_add(self.offset()) else { bail!("Required too big image size") };
            self.file.truncate(end, how).await
        })
    }

    fn reopen<'a>(&'a self, _to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async {
            let (offset, size) = take_window(options)?;
            let size = window_size(&self.file, offset, size)?;
            self.offset.store(offset, Ordering::Release);
            self.size.store(size, Ordering::Release);
            Ok(())
        })
    }

    fn reopened_by(&self) -> Options {
        let mut options = Options::new();
        options.set("offset", self.offset());
        if let Some(size) = self.fixed_size() {
            options.set("size", size);
        }
        options
    }

    fn child_perm(&self, role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        crate::graph::perm::default_for(role, read_only, perm, shared)
    }

    fn info(&self) -> Info {
        Info { dirty: self.file.node().layer().info().dirty, ..Info::default() }
    }

    fn zero_initialised(&self) -> bool {
        self.offset() == 0 && self.file.node().layer().zero_initialised()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
