//! `memory-backend-ram`, `-file` and `-memfd`: host memory that becomes guest memory
//! (`-machine memory-backend=ID`).

use super::{ObjectType, Objects, UserObject};
use base::{Failure, Result, bail, fail};
use device::{Property, PropertyKind};
use memory::RamBlock;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use serde_json::{Map, Value};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: Property = Property::unset("size", PropertyKind::Size, "Size in bytes");
const PREALLOC: Property =
    Property::new("prealloc", PropertyKind::Bool, "off", "Take the host's memory at once");
const DUMP: Property = Property::new("dump", PropertyKind::Bool, "on", "Part of a core dump of this process");

const fn share(default: &'static str) -> Property {
    Property::new("share", PropertyKind::Bool, default, "Other processes can see what is written")
}

pub(super) static RAM: ObjectType = ObjectType {
    name: "memory-backend-ram",
    parent: "memory-backend",
    properties: &[SIZE, share("off"), PREALLOC, DUMP],
    create: ram,
};

pub(super) static FILE: ObjectType = ObjectType {
    name: "memory-backend-file",
    parent: "memory-backend",
    properties: &[
        SIZE,
        Property::unset("mem-path", PropertyKind::Str, "File, or folder for a file without name"),
        share("off"),
        PREALLOC,
        DUMP,
    ],
    create: file,
};

pub(super) static MEMFD: ObjectType = ObjectType {
    name: "memory-backend-memfd",
    parent: "memory-backend",
    properties: &[
        SIZE,
        Property::new("hugetlb", PropertyKind::Bool, "off", "Use huge pages"),
        share("on"),
        PREALLOC,
        DUMP,
    ],
    create: memfd,
};

/// What [`super::Objects::find`] gives for a memory back end.
pub struct MemoryBackend {
    pub block: RamBlock,
    used: AtomicBool,
}

impl MemoryBackend {
    /// Takes the memory for a machine or a device; only one may have it.
    pub fn claim(&self) -> Option<RamBlock> {
        (!self.used.swap(true, Ordering::AcqRel)).then_some(self.block)
    }
}

struct Holder(Arc<MemoryBackend>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }
    fn in_use(&self) -> bool {
        self.0.used.load(Ordering::Acquire)
    }
}

impl Drop for Holder {
    /// The addresses stay taken while the process lives, the memory goes back to the host.
    fn drop(&mut self) {
        if !self.in_use() && !self.0.block.is_foreign() {
            let _ = self.0.block.discard(0, self.0.block.len());
        }
    }
}

fn size(values: &Map<String, Value>) -> Result<u64> {
    match values.get("size").and_then(Value::as_u64) {
        None | Some(0) => bail!("can't create backend with size 0"),
        Some(size) => size.checked_next_multiple_of(4096).ok_or_else(|| fail!("memory size is too large")),
    }
}

fn flag(values: &Map<String, Value>, name: &str) -> bool {
    values.get(name).and_then(Value::as_bool).unwrap_or_default()
}

fn finish(block: RamBlock, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    if flag(values, "prealloc") {
        block.populate()?;
    }
    block.set_dump(flag(values, "dump"))?;
    Ok(Arc::new(Holder(Arc::new(MemoryBackend { block, used: AtomicBool::new(false) }))))
}

fn ram(_objects: &Objects, id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    finish(RamBlock::new(id, size(values)?)?, values)
}

fn memfd(_objects: &Objects, id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let size = size(values)?;
    let mut flags = MemfdFlags::CLOEXEC;
    flags.set(MemfdFlags::HUGETLB, flag(values, "hugetlb"));
    let failed = |e: rustix::io::Errno| Failure::os("can't create memory of the object", &e.into());
    let fd = rustix::fs::memfd_create(id, flags).map_err(failed)?;
    rustix::fs::ftruncate(&fd, size).map_err(failed)?;
    finish(RamBlock::on_file(id, size, fd, flag(values, "share"))?, values)
}

fn file(_objects: &Objects, id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let size = size(values)?;
    let path = values.get("mem-path").and_then(Value::as_str);
    let path = path.ok_or_else(|| fail!("mem-path property not set"))?;
    let failed = |e: rustix::io::Errno| {
        Failure::os(format!("can't open backing store {path} for guest RAM"), &e.into())
    };
    let fd = open(path).map_err(failed)?;
    let present = rustix::fs::fstat(&fd).map_err(failed)?.st_size as u64;
    if present == 0 {
        rustix::fs::ftruncate(&fd, size).map_err(failed)?;
    } else if present < size {
        bail!("backing store {path} size {present:#x} does not match 'size' option {size:#x}");
    }
    finish(RamBlock::on_file(id, size, fd, flag(values, "share"))?, values)
}

fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    if std::path::Path::new(path).is_dir() {
        return rustix::fs::open(path, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode);
    }
    rustix::fs::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, mode)
}
