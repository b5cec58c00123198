//! `vmdk`: VMware's virtual disks: one or many extents, flat, sparse or compressed.
//!
//! Source: "Virtual Disk Format 5.0" (VMware, 2011); "VMware Virtual Disk Format 1.1" for COWD.

mod create;
mod descriptor;
mod sparse;

use super::mapped::{Fields, Image};
use crate::driver::{CreateOption, Driver, Info, Layer, Open, Probe, layer_of};
use crate::graph::{Child, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Mutex, Result, bail};
use descriptor::{Descriptor, ExtentKind, ExtentLine};
use serde_json::{Value, json};
use sparse::Sparse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub static DRIVER: Driver = Driver {
    name: "vmdk",
    probe: Some(probe),
    open,
    create: Some(create::create),
    create_words: &[("adapter-type", create::ADAPTERS), ("subformat", create::NAMES)],
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption {
            name: "adapter_type",
            modern: "adapter-type",
            help: "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
        },
        CreateOption { name: "backing_file", modern: "backing-file", help: "File name of a base image" },
        CreateOption { name: "backing_fmt", modern: "backing-fmt", help: "Must be 'vmdk' if present" },
        CreateOption { name: "compat6", modern: "compat6", help: "VMDK version 6 image" },
        CreateOption { name: "hwversion", modern: "hwversion", help: "VMDK hardware version" },
        CreateOption { name: "toolsversion", modern: "toolsversion", help: "VMware guest tools version" },
        CreateOption {
            name: "subformat",
            modern: "subformat",
            help: "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized}",
        },
        CreateOption {
            name: "zeroed_grain",
            modern: "zeroed-grain",
            help: "Enable efficient zero writes using the zeroed-grain GTE feature",
        },
    ],
    backing: true,
    compresses: true,
    blocks_migration: true,
    defaults: ("", " compat6=off hwversion=undefined"),
    ..Driver::DEFAULT
};

const SECTOR: u64 = 512;
/// Parent content ID of an image without one.
const NO_PARENT: u32 = 0xffff_ffff;
/// Longest descriptor that is read, in bytes.
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Most extents of one image.
const MAX_EXTENTS: usize = 4096;

fn probe(probe: &Probe<'_>) -> u32 {
    if matches!(probe.head.get(..4), Some(b"KDMV" | b"COWD")) || descriptor::looks_like(probe.head) {
        100
    } else {
        0
    }
}

enum Store {
    Flat { file: Child, offset: u64 },
    Sparse(Box<Image<Sparse>>),
    Zero,
}

struct Extent {
    /// First byte on the disk, and length.
    start: u64,
    len: u64,
    store: Store,
    filename: String,
}

pub(super) struct Vmdk {
    file: Child,
    descriptor: Option<Descriptor>,
    cid: AtomicU32,
    /// A new content ID is written before the first change.
    renewed: tokio::sync::Mutex<bool>,
    is_renewed: AtomicBool,
    extents: Vec<Extent>,
    size: u64,
    backing: Mutex<Option<Child>>,
}

/// One extent's part of a request: the extent, offset within it, length.
type Part<'a> = (&'a Extent, u64, u64);

impl Vmdk {
    fn part(&self, offset: u64, len: u64) -> IoResult<Part<'_>> {
        let at = self.extents.partition_point(|extent| extent.start + extent.len <= offset);
        let extent = self.extents.get(at).ok_or_else(|| errno(libc::EIO))?;
        let inner = offset - extent.start;
        Ok((extent, inner, len.min(extent.len - inner)))
    }

    fn sparse(&self) -> impl Iterator<Item = &Image<Sparse>> {
        self.extents.iter().filter_map(|extent| match &extent.store {
            Store::Sparse(image) => Some(&**image),
            _ => None,
        })
    }

    /// Overlays must see that this image is not what it was.
    async fn begin(&self) -> IoResult {
        if self.is_renewed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut renewed = self.renewed.lock().await;
        if let (false, Some(descriptor)) = (*renewed, &self.descriptor) {
            let (place, digits) = descriptor.cid_at.ok_or_else(|| errno(libc::EROFS))?;
            // The text keeps its length: some tools write no leading zeroes.
            let cid = fresh_cid() & (u32::MAX >> (32 - 4 * digits));
            self.file.write(place, format!("{cid:0digits$x}").as_bytes(), WriteFlags::empty()).await?;
            self.cid.store(cid, Ordering::Release);
        }
        *renewed = true;
        self.is_renewed.store(true, Ordering::Release);
        Ok(())
    }

    fn specific(&self) -> Option<Value> {
        let descriptor = self.descriptor.as_ref()?;
        let tell = |extent: &Extent| match &extent.store {
            Store::Sparse(image) => json!({"filename": extent.filename, "format": "SPARSE",
                "virtual-size": extent.len, "cluster-size": image.shape.cluster,
                "compressed": image.format.is_compressed()}),
            Store::Flat { .. } => {
                json!({"filename": extent.filename, "format": "FLAT", "virtual-size": extent.len})
            }
            Store::Zero => json!({"filename": "", "format": "ZERO", "virtual-size": extent.len}),
        };
        let extents: Vec<Value> = self.extents.iter().map(tell).collect();
        Some(json!({"type": "vmdk", "data": {"create-type": descriptor.create_type,
            "cid": self.cid.load(Ordering::Acquire), "parent-cid": descriptor.parent_cid, "extents": extents}}))
    }
}

fn fresh_cid() -> u32 {
    let random = super::random_uuid();
    // All ones means none.
    Fields(&random).le32(0) & 0x7fff_ffff
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = file.read_vec(0, SECTOR.min(file.size()), SECTOR).await?;
        let is_sparse = matches!(head.get(..4), Some(b"KDMV" | b"COWD"));
        let place = match is_sparse {
            true => sparse::descriptor_place(&head),
            false => Some((0, file.size())),
        };
        let descriptor = match place {
            Some((at, len)) => Some(read_descriptor(&file, at, len).await?),
            None => None,
        };
        let hint = descriptor.as_ref().and_then(|text| text.parent.clone());
        let backing = open.backing(hint.as_deref().map(|name| (name, None))).await?;
        let estranged = match (&descriptor, &backing) {
            (Some(descriptor), Some(backing)) => !is_parent(descriptor, backing),
            _ => false,
        };
        let mut extents = match (&descriptor, is_sparse) {
            (Some(descriptor), false) => open_extents(open, descriptor, &backing).await?,
            (Some(descriptor), true) if Fields(&head).le64(12) == 0 => {
                open_extents(open, descriptor, &backing).await?
            }
            _ => {
                let image = sparse::open(open, file.clone(), None, backing.clone()).await?;
                let (len, filename) = (image.disk_size(), file.node().filename());
                vec![Extent { start: 0, len, store: Store::Sparse(Box::new(image)), filename }]
            }
        };
        extents.retain(|extent| extent.len > 0);
        for extent in extents.iter().filter(|_| estranged) {
            if let Store::Sparse(image) = &extent.store {
                image.estrange();
            }
        }
        let size = extents.last().map_or(0, |extent| extent.start + extent.len);
        if descriptor.as_ref().is_some_and(|text| text.cid_at.is_none()) {
            open.read_only()?;
        }
        let vmdk = Vmdk {
            file,
            cid: AtomicU32::new(descriptor.as_ref().map_or(0, |text| text.cid)),
            descriptor,
            renewed: Default::default(),
            is_renewed: AtomicBool::new(false),
            extents,
            size,
            backing: Mutex::new(backing),
        };
        Ok(Arc::new(vmdk) as Arc<dyn Layer>)
    })
}

async fn read_descriptor(file: &Child, at: u64, len: u64) -> Result<Descriptor> {
    let Ok(bytes) = file.read_vec(at, len, MAX_DESCRIPTOR).await else {
        bail!("The VMDK descriptor is too large or not within the file")
    };
    Descriptor::parse(&bytes, at)
}

/// Whether a backing node is the image that the descriptor means. (Customary: of another one
/// nothing can be read; the image itself can be opened.)
fn is_parent(descriptor: &Descriptor, backing: &Child) -> bool {
    let node = backing.node().skip_filters();
    layer_of::<Vmdk>(&node).is_some_and(|parent| {
        let known = [parent.cid.load(Ordering::Acquire), NO_PARENT];
        known.contains(&descriptor.parent_cid)
    })
}

async fn open_extents(
    open: &mut Open,
    descriptor: &Descriptor,
    backing: &Option<Child>,
) -> Result<Vec<Extent>> {
    const KNOWN: &[&str] = &[
        "monolithicFlat",
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "vmfs",
        "vmfsSparse",
        "custom",
    ];
    if !KNOWN.contains(&descriptor.create_type.as_str()) {
        bail!("Unsupported image type '{}'", descriptor.create_type);
    }
    if descriptor.extents.len() > MAX_EXTENTS {
        bail!("The vmdk image has too many extents");
    }
    let mut extents = Vec::new();
    let mut start = 0u64;
    for (number, line) in descriptor.extents.iter().enumerate() {
        let (store, filename) = open_extent(open, number, line, backing, start).await?;
        let len = line.sectors * SECTOR;
        extents.push(Extent { start, len, store, filename });
        start = match start.checked_add(len) {
            Some(end) if end <= i64::MAX as u64 => end,
            _ => bail!("The extents of the vmdk image are too long"),
        };
    }
    Ok(extents)
}

async fn open_extent(
    open: &mut Open,
    number: usize,
    line: &ExtentLine,
    backing: &Option<Child>,
    start: u64,
) -> Result<(Store, String)> {
    if line.kind == ExtentKind::Zero {
        return Ok((Store::Zero, String::new()));
    }
    if !line.writable {
        open.read_only()?;
    }
    let name = open.path_beside(&line.name)?;
    let role = match line.kind {
        ExtentKind::Flat => Role::DATA,
        _ => Role::DATA | Role::METADATA,
    };
    let file = open.child_from(&format!("extents.{number}"), role, json!({"filename": name})).await?;
    let len = line.sectors * SECTOR;
    if line.kind == ExtentKind::Flat {
        let inside = line.offset.checked_add(len).is_some_and(|end| end <= file.size());
        if !inside {
            bail!("The extent '{}' is longer than its file", line.name);
        }
        return Ok((Store::Flat { file, offset: line.offset }, name));
    }
    let mut image = sparse::open(open, file, Some(len), backing.clone()).await?;
    image.origin = start;
    Ok((Store::Sparse(Box::new(image)), name))
}

impl Layer for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        let unit = self.sparse().map(|image| image.limits().zeroes_alignment).max();
        Limits { zeroes_alignment: unit.unwrap_or(0), ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let (extent, inner, len) = self.part(offset + done as u64, (buf.len() - done) as u64)?;
                let piece = &mut buf[done..done + len as usize];
                match &extent.store {
                    Store::Flat { file, offset } => file.read(offset + inner, piece).await?,
                    Store::Sparse(image) => image.read(inner, piece).await?,
                    Store::Zero => piece.fill(0),
                }
                done += len as usize;
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.begin().await?;
            let mut done = 0;
            while done < data.len() {
                let (extent, inner, len) = self.part(offset + done as u64, (data.len() - done) as u64)?;
                let piece = &data[done..done + len as usize];
                match &extent.store {
                    Store::Flat { file, offset } => {
                        file.write(offset + inner, piece, WriteFlags::empty()).await?;
                    }
                    Store::Sparse(image) => image.write(inner, piece, flags).await?,
                    Store::Zero => return Err(errno(libc::EIO)),
                }
                done += len as usize;
            }
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.begin().await?;
            let mut at = offset;
            while at < offset + len {
                let (extent, inner, some) = self.part(at, offset + len - at)?;
                match &extent.store {
                    Store::Flat { file, offset } => file.write_zeroes(offset + inner, some, flags).await?,
                    Store::Sparse(image) => image.write_zeroes(inner, some, flags).await?,
                    Store::Zero => {}
                }
                at += some;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            for image in self.sparse() {
                image.flush().await?;
            }
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (extent, inner, len) = self.part(offset, len)?;
            let flags = StatusFlags::ALLOCATED;
            match &extent.store {
                Store::Flat { file, offset } => {
                    let mut status = Status { flags: flags | StatusFlags::DATA, len, offset: None };
                    // Only a place in the primary file can be told.
                    if file.same(&self.file) {
                        status.offset = Some(offset + inner);
                    }
                    let below = file.block_status(offset + inner, len).await?;
                    status.len = len.min(below.len);
                    status.flags |= below.flags & StatusFlags::ZERO;
                    Ok(status)
                }
                Store::Sparse(image) => {
                    let mut status = image.block_status(inner, len).await?;
                    if !image.file.same(&self.file) {
                        status.flags -= StatusFlags::RECURSE;
                        status.offset = None;
                    }
                    Ok(status)
                }
                Store::Zero => Ok(Status { flags: flags | StatusFlags::ZERO, len, offset: None }),
            }
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            for image in self.sparse() {
                image.close().await?;
            }
            Ok(())
        })
    }

    fn reopen<'a>(&'a self, to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            for image in self.sparse() {
                image.reopen(to, options).await?;
            }
            if to.read_only {
                *self.renewed.lock().await = false;
                self.is_renewed.store(false, Ordering::Release);
            }
            Ok(())
        })
    }

    fn info(&self) -> Info {
        let parent = self.descriptor.as_ref().and_then(|text| text.parent.clone());
        Info {
            cluster_size: self.sparse().next().map(|image| image.shape.cluster),
            compressed: self.sparse().any(|image| image.format.is_compressed()),
            backing_format: parent.as_ref().map(|_| "vmdk".to_string()),
            backing_filename: parent,
            specific: self.specific(),
            dirty: Some(false),
            ..Info::default()
        }
    }

    fn set_backing(&self, backing: Option<Child>) -> Result<()> {
        for image in self.sparse() {
            image.set_backing(backing.clone())?;
        }
        *self.backing.lock() = backing;
        Ok(())
    }

    fn zero_initialised(&self) -> bool {
        self.extents.iter().all(|extent| match &extent.store {
            Store::Flat { file, .. } => file.node().layer().zero_initialised(),
            _ => true,
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
