//! Making and resizing files.

use super::locks::Locks;
use crate::driver::{Create, CreateOption};
use crate::types::*;
use base::{Failure, Result, bail};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FallocateFlags, Mode, OFlags};

pub(super) static OPTIONS: &[CreateOption] = &[
    CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
    CreateOption {
        name: "preallocation",
        modern: "preallocation",
        help: "Preallocation mode (allowed values: off, falloc, full)",
    },
    CreateOption { name: "nocow", modern: "nocow", help: "Turn off copy-on-write (valid only on btrfs)" },
    CreateOption {
        name: "extent_size_hint",
        modern: "extent-size-hint",
        help: "Extent size hint for the image file",
    },
];

pub(super) fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let filename = create.options.need_str("filename")?;
        let path = filename.strip_prefix("file:").unwrap_or(&filename).to_string();
        let size = create.size()?;
        let preallocation = crate::graph::create::take_preallocation(&mut create.options)?;
        // No file system we know the call for needs it; accepted for its callers.
        create.options.take_bool("nocow")?;
        create.options.take_u64("extent-size-hint")?;
        create.finish()?;
        if preallocation == Preallocation::Metadata {
            bail!("Unsupported preallocation mode 'metadata'");
        }
        let work = move || make(&path, size, preallocation);
        let pool = create.graph.main_thread().handle().clone();
        pool.spawn_blocking(work).await.map_err(|_| base::fail!("The file could not be made"))?
    })
}

fn make(path: &str, size: u64, preallocation: Preallocation) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
        .map_err(|error| Failure::os(format!("Could not create '{path}'"), &error.into()))?;
    // An image in use elsewhere must not be cut to nothing.
    let mut locks = Locks::new(true);
    let wanted = Perm::WRITE | Perm::RESIZE;
    locks.change(fd.as_fd(), wanted, Perm::all() - Perm::RESIZE, path)?;
    rustix::fs::ftruncate(&fd, 0).map_err(|error| Failure::os("Could not resize file", &error.into()))?;
    resize(fd.as_fd(), 0, size, preallocation)
}

/// Gives a file another length.
pub(super) fn resize(fd: BorrowedFd<'_>, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
    let grow = size > old;
    let failed = |what: &'static str| move |error: rustix::io::Errno| Failure::os(what, &error.into());
    if !grow && preallocation != Preallocation::Off && size != old {
        bail!("Preallocation can't be used for shrinking files");
    }
    match preallocation {
        Preallocation::Metadata => bail!("Unsupported preallocation mode 'metadata'"),
        Preallocation::Falloc if grow => {
            let flags = FallocateFlags::empty();
            rustix::fs::fallocate(fd, flags, old, size - old).map_err(failed("Could not preallocate data"))
        }
        Preallocation::Full if grow => {
            rustix::fs::ftruncate(fd, size).map_err(failed("Could not resize file"))?;
            let zeroes = vec![0; 1 << 20];
            let mut at = old;
            while at < size {
                let piece = (size - at).min(zeroes.len() as u64) as usize;
                let done = rustix::io::pwrite(fd, &zeroes[..piece], at)
                    .map_err(failed("Could not write zeros for preallocation"))?;
                at += done as u64;
            }
            Ok(())
        }
        _ => {
            rustix::fs::ftruncate(fd, size).map_err(failed("Failed to resize the file"))?;
            if old == 0 {
                allocate_first_block(fd, size);
            }
            Ok(())
        }
    }
}

/// Gives a file the first block that it is probed by: what alignment direct I/O needs cannot be
/// found out on a hole. No harm where it cannot be had.
fn allocate_first_block(fd: BorrowedFd<'_>, size: u64) {
    let zeroes = vec![0; size.min(4096) as usize];
    let _ = rustix::io::pwrite(fd, &zeroes, 0);
}
