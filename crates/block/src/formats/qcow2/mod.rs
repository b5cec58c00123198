//! `qcow2`: QEMU's copy-on-write image format, versions 2 and 3.
//!
//! Source: QEMU docs/interop/qcow2.txt.
//!
//! - `header`, `entry`, `dirty`: what stands in the file.
//! - `refcounts`, `meta`: metadata in memory; pure computation under one short lock. What is
//!   not loaded is a [`refcounts::Miss`]: it is read, and the attempt made again.
//! - `sync`: writing metadata back in a safe order.
//! - `read`, `write`, `zero`, `compress`: requests.
//! - `rebuild`: rare changes of everything (snapshots, repair, growing tables): new tables are
//!   written beside the old ones and one write of the header switches over.

mod bitmaps;
mod check;
mod compress;
mod create;
mod dirty;
mod encrypt;
mod entry;
mod header;
mod meta;
mod open;
mod read;
mod rebuild;
mod refcounts;
mod resize;
mod snapshot;
mod sync;
mod write;
mod zero;

use crate::driver::*;
use crate::graph::{Child, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Mutex, Result, bail};
use entry::{Geometry, Kind};
use header::*;
use meta::Meta;
use refcounts::Attempt;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub static DRIVER: Driver = Driver {
    name: "qcow2",
    probe: Some(probe),
    open: open::open,
    create: Some(create::create),
    create_words: &[("version", &["v2", "v3"]), ("compression-type", &["zlib", "zstd"])],
    create_options: create::OPTIONS,
    amends: true,
    backing: true,
    compresses: true,
    defaults: (
        "cluster_size=65536 extended_l2=off compression_type=zlib ",
        " lazy_refcounts=off refcount_bits=16",
    ),
    changes: open::RUNTIME,
    telling: &["encrypt", "data-file"],
    ..Driver::DEFAULT
};

fn probe(probe: &Probe<'_>) -> u32 {
    let version = probe.head.get(4..8).map(|v| u32::from_be_bytes([v[0], v[1], v[2], v[3]]));
    match (probe.head.get(..4), version) {
        (Some(magic), Some(2..)) if magic == MAGIC.to_be_bytes() => 100,
        _ => 0,
    }
}

/// An open image.
pub struct Qcow2 {
    context: Context,
    file: Child,
    /// The external data file.
    data: Option<Child>,
    crypto: Option<encrypt::Crypto>,
    backing: Mutex<Option<Child>>,
    geometry: Geometry,
    meta: Mutex<Meta>,
    snapshots: Mutex<Vec<snapshot::Stored>>,
    size: AtomicU64,
    sync_lock: tokio::sync::Mutex<()>,
    epochs: sync::Epochs,
    /// An allocation in progress ended.
    allocated: Notify,
    /// The cluster that was decompressed last, by its entry.
    unpacked: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
    read_only: AtomicBool,
    /// Metadata was found corrupt: nothing more is done.
    dead: AtomicBool,
    /// That was told of an image that is only read.
    complained: AtomicBool,
    /// The header in the file is older than the one in memory.
    header_stale: AtomicBool,
    cached_tables: usize,
    pass_discard: AtomicBool,
    pool: Handle,
}

impl Qcow2 {
    /// Tries a computation on the metadata, reading what it misses.
    async fn with<T>(&self, mut work: impl FnMut(&mut Meta) -> Attempt<T>) -> IoResult<T> {
        loop {
            let attempt = work(&mut self.meta.lock());
            match attempt {
                Ok(value) => return Ok(value),
                Err(miss) => self.load(miss).await?,
            }
        }
    }

    fn backing(&self) -> Option<Child> {
        self.backing.lock().clone()
    }

    /// Where guest data is.
    fn store(&self) -> &Child {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// Whether guest data can be read and written.
    fn usable(&self) -> IoResult {
        self.alive()?;
        self.late_key().map_or(Ok(()), crate::crypto::OldAes::check)
    }

    fn alive(&self) -> IoResult {
        if self.dead.load(Ordering::Acquire) { Err(errno(libc::ENOMEDIUM)) } else { Ok(()) }
    }

    fn specific(&self) -> serde_json::Value {
        let meta = self.meta.lock();
        let header = &meta.header;
        let mut data = json!({"compat": if header.version >= 3 { "1.1" } else { "0.10" }});
        if header.version >= 3 {
            data["compression-type"] = match header.compression {
                Compression::Zlib => "zlib".into(),
                Compression::Zstd => "zstd".into(),
            };
            data["lazy-refcounts"] = (header.compatible & COMPAT_LAZY_REFCOUNTS != 0).into();
            data["refcount-bits"] = (1u32 << header.refcount_order).into();
            data["corrupt"] = header.has(INCOMPAT_CORRUPT).into();
            data["extended-l2"] = header.extended_l2().into();
            if let Some(name) = &header.data_file {
                data["data-file"] = name.as_str().into();
                data["data-file-raw"] = (header.autoclear & AUTOCLEAR_RAW_DATA != 0).into();
            }
            let bitmaps = self.stored_bitmap_infos();
            if !bitmaps.is_empty() {
                data["bitmaps"] = bitmaps.into();
            }
        } else {
            data["compression-type"] = "zlib".into();
            data["refcount-bits"] = 16.into();
        }
        if let Some(crypto) = &self.crypto {
            data["encrypt"] = crypto.describe();
        }
        json!({"type": "qcow2", "data": data})
    }
}

impl Layer for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: if self.crypto.is_some() { crate::crypto::SECTOR as u32 } else { 1 },
            max_transfer: if self.crypto.is_some() { 1 << 20 } else { 1 << 30 },
            zeroes_alignment: self.geometry.subcluster_size() as u32,
            discard_alignment: self.geometry.cluster_size() as u32,
            ..Limits::default()
        }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.usable()?;
            let _epoch = self.epochs.enter();
            self.read_guest(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.usable()?;
            let epoch = self.epochs.enter();
            if flags.contains(WriteFlags::COMPRESSED) && self.crypto.is_some() {
                // Compressed clusters are not encrypted.
                return Err(errno(libc::ENOTSUP));
            }
            if flags.contains(WriteFlags::COMPRESSED) && self.data.is_none() {
                self.write_compressed(offset, data).await?;
            } else {
                self.write_guest(offset, data).await?;
            }
            drop(epoch);
            self.relieve().await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.usable()?;
            self.zero_guest(offset, len, flags.contains(ZeroFlags::MAY_UNMAP)).await?;
            self.relieve().await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.usable()?;
            self.discard_guest(offset, len, false).await?;
            self.relieve().await
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if self.read_only.load(Ordering::Acquire) {
                return Ok(());
            }
            self.alive()?;
            self.sync().await?;
            self.give_back().await
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            self.alive()?;
            let map = self.with(|meta| meta.lookup(offset, len)).await?;
            let mut status = Status { flags: StatusFlags::ALLOCATED, len: map.len.min(len), offset: None };
            match map.kind {
                Kind::Unallocated => status.flags = StatusFlags::empty(),
                Kind::Zero => status.flags |= StatusFlags::ZERO,
                Kind::Compressed => status.flags |= StatusFlags::DATA | StatusFlags::COMPRESSED,
                Kind::Normal => {
                    status.flags |= StatusFlags::DATA | StatusFlags::RECURSE;
                    status.offset = map.host;
                }
            }
            if map.kind == Kind::Zero {
                status.offset = map.host;
            }
            if self.crypto.is_some() {
                status.offset = None;
                status.flags.remove(StatusFlags::RECURSE);
            }
            if map.kind == Kind::Unallocated && self.backing().is_none() {
                status.flags |= StatusFlags::ZERO;
            }
            Ok(status)
        })
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(self.resize(size, how))
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if self.read_only.load(Ordering::Acquire) || self.dead.load(Ordering::Acquire) {
                return Ok(());
            }
            if let Err(why) = self.store_bitmaps().await {
                eprintln!("qcow2: bitmaps of node '{}' are lost: {why}", self.context.node_name);
            }
            if let Err(why) = self.settle_down().await {
                for table in ["L2 table", "refcount block"] {
                    let what = format!("{}: Failed to flush the {table} cache", base::program());
                    eprintln!("{}", Failure::os(what, &why));
                }
            }
            Ok(())
        })
    }

    fn child_perm(&self, role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        crate::graph::perm::default_for(role, read_only, perm, shared)
    }

    fn reopen<'a>(&'a self, to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let runtime = open::take_runtime_options(options)?;
            runtime.check(&self.meta.lock().header)?;
            let was = self.read_only.load(Ordering::Acquire);
            if to.read_only && !was {
                self.store_bitmaps().await?;
                self.settle_down().await?;
                self.read_only.store(true, Ordering::Release);
                // What is stored of them cannot be changed any more.
                let bitmaps = self.context.bitmaps.list();
                bitmaps.iter().filter(|one| one.is_persistent()).for_each(|one| one.set_read_only(true));
            } else if !to.read_only && was {
                if self.dead.load(Ordering::Acquire) || self.meta.lock().header.has(INCOMPAT_CORRUPT) {
                    bail!("Image is corrupt; cannot be opened read/write");
                }
                self.read_only.store(false, Ordering::Release);
                if let Err(why) = self.begin_writing().await {
                    self.read_only.store(true, Ordering::Release);
                    return Err(why);
                }
            }
            self.pass_discard.store(runtime.passes_discard(to), Ordering::Relaxed);
            Ok(())
        })
    }

    fn leave_file(&self) -> Fut<'_, Result<()>> {
        Box::pin(async {
            if !self.read_only.load(Ordering::Acquire) {
                self.alive()?;
                self.store_bitmaps().await?;
                self.settle_down().await?;
            }
            Ok(())
        })
    }

    fn file_moved(&self) -> Fut<'_, Result<()>> {
        Box::pin(self.read_again())
    }

    fn reopened_by(&self) -> Options {
        let mut options = Options::new();
        options.set("pass-discard-request", self.pass_discard.load(Ordering::Relaxed));
        options
    }

    fn make_empty(&self) -> Fut<'_, IoResult> {
        Box::pin(self.discard_guest(0, self.size(), true))
    }

    fn amend<'a>(
        &'a self,
        options: &'a mut Options,
        vault: &'a dyn crate::Vault,
        force: bool,
    ) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let encrypt = options.take_table("encrypt")?;
            options.finish()?;
            match encrypt {
                Some(encrypt) => self.amend_key(encrypt, vault, force).await,
                None => Ok(()),
            }
        })
    }

    fn header_backing(&self) -> Option<String> {
        self.meta.lock().header.backing.clone()
    }

    fn info(&self) -> Info {
        let (header, vm) = {
            let meta = self.meta.lock();
            (meta.header.clone(), meta.geometry)
        };
        let span = 1u64 << (vm.cluster_bits + vm.l2_bits);
        Info {
            cluster_size: Some(header.cluster_size()),
            dirty: Some(header.has(INCOMPAT_DIRTY)),
            encrypted: header.crypt_method != 0,
            compressed: false,
            backing_filename: header.backing.clone(),
            backing_format: header.backing_format.clone(),
            specific: Some(self.specific()),
            vm_state_offset: Some(header.size.div_ceil(span) * span),
        }
    }

    fn check<'a>(&'a self, fix: Fix) -> Fut<'a, IoResult<Check>> {
        Box::pin(self.check_image(fix))
    }

    fn change_backing<'a>(&'a self, name: Option<&'a str>, format: Option<&'a str>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.read_only.load(Ordering::Acquire) {
                return Err(errno(libc::EPERM));
            }
            let old = self.meta.lock().header.clone();
            {
                let mut meta = self.meta.lock();
                meta.header.backing = name.map(str::to_string);
                meta.header.backing_format = format.map(str::to_string);
                if let Err(why) = meta.header.encode() {
                    meta.header = old;
                    drop(why);
                    return Err(errno(libc::ENOSPC));
                }
            }
            self.sync().await?;
            self.write_header().await
        })
    }

    fn set_backing(&self, backing: Option<Child>) -> Result<()> {
        *self.backing.lock() = backing;
        Ok(())
    }

    fn zero_initialised(&self) -> bool {
        // Clusters allocated ahead decrypt to anything.
        self.crypto.is_none()
    }

    fn late_key(&self) -> Option<&crate::crypto::OldAes> {
        self.crypto.as_ref()?.late()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn stored_bitmaps(&self) -> Option<&dyn StoredBitmaps> {
        Some(self)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
pub(crate) mod crash;
#[cfg(test)]
pub(crate) mod tests;
