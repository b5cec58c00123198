//! The node that every job puts over the one it works on: passes everything on and is gone with
//! the job. Without a name given by the user (`filter-node-name`) it is implicit: see
//! [`Node::is_implicit`](crate::graph::Node::is_implicit).

use crate::driver::{Driver, Kind, Layer, Open, OpenFn};
use crate::filters::pass;
use crate::graph::Child;
use crate::types::*;
use base::Result;
use std::sync::Arc;

pub(super) static MIRROR: Driver =
    named("mirror_top", |open| place(open, "backing", |perm, shared| (perm, shared)));

/// Who reads through it sees what the job does not change; those below the image it stands on
/// are written meanwhile.
pub(super) static ACTIVE_COMMIT: Driver = named("mirror_top", |open| {
    place(open, "backing", |perm, shared| (perm - Perm::CONSISTENT_READ, shared | Perm::WRITE))
});

pub(super) static COMMIT: Driver = Driver {
    read_only: true,
    ..named("commit_top", |open| place(open, "backing", |_, _| (Perm::empty(), Perm::all())))
};

pub(super) static BACKUP: Driver = named("copy-before-write", |open| {
    place(open, "file", |perm, shared| {
        // Nobody uses it yet while it is put in.
        let unused = perm.is_empty() && shared == Perm::all();
        let kept_out = if unused { Perm::empty() } else { Perm::WRITE | Perm::RESIZE };
        (perm | Perm::CONSISTENT_READ, shared - kept_out)
    })
});

pub(super) static STREAM: Driver =
    named("copy-on-read", |open| place(open, "file", |perm, shared| (perm | Perm::WRITE_UNCHANGED, shared)));

/// Whether a driver is that of a filter that its job takes out although others may stand on it.
pub(super) fn comes_out(driver: &Driver) -> bool {
    [MIRROR.name, COMMIT.name].contains(&driver.name)
}

/// What the users of the filter do and share, as the filter does it to the node below.
type Perms = fn(Perm, Perm) -> (Perm, Perm);

const fn named(name: &'static str, open: OpenFn) -> Driver {
    Driver { name, kind: Kind::Filter, open, ..Driver::DEFAULT }
}

struct Pass {
    file: Child,
    perms: Perms,
}

fn place<'a>(open: &'a mut Open, child: &'static str, perms: Perms) -> Fut<'a, Result<Arc<dyn Layer>>> {
    Box::pin(async move {
        let below = open.options.take("file").unwrap_or_default();
        let file = open.child_from(child, Role::FILTER, below).await?;
        Ok(Arc::new(Pass { file, perms }) as Arc<dyn Layer>)
    })
}

impl Layer for Pass {
    pass!(size);
    pass!(limits);
    pass!(status);

    fn child_perm(&self, _role: Role, _read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        (self.perms)(perm, shared)
    }

    fn filename(&self) -> Option<String> {
        Some(self.file.node().filename())
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        self.file.write(offset, data, flags)
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        self.file.write_zeroes(offset, len, flags)
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        self.file.discard(offset, len)
    }
}
