//! The node that a job puts over the one it works on when it is given a name for it
//! (`filter-node-name`): passes everything on and is gone with the job.

use crate::driver::{Driver, Kind, Layer, Open};
use crate::filters::pass;
use crate::graph::Child;
use crate::types::*;
use base::Result;
use std::sync::Arc;

pub(super) static MIRROR: Driver = named("mirror_top");
pub(super) static COMMIT: Driver = named("commit_top");
pub(super) static BACKUP: Driver = named("copy-before-write");
pub(super) static STREAM: Driver = named("copy-on-read");

const fn named(name: &'static str) -> Driver {
    Driver { name, kind: Kind::Filter, open, ..Driver::DEFAULT }
}

struct Pass {
    file: Child,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.child("file", Role::FILTER).await?;
        Ok(Arc::new(Pass { file }) as Arc<dyn Layer>)
    })
}

impl Layer for Pass {
    pass!(size);
    pass!(limits);
    pass!(status);

    fn filename(&self) -> Option<String> {
        Some(self.file.node().filename().to_string())
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
