//! `compress`: every write goes down as a compressed one.

use super::pass;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver { name: "compress", kind: Kind::Filter, open, ..Driver::DEFAULT };

struct Compress {
    file: Child,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.child("file", Role::FILTER).await?;
        let below = file.node();
        let image = below.skip_filters();
        if !image.compresses() {
            bail!("Compression is not supported for underlying format: {}", image.driver().name);
        }
        Ok(Arc::new(Compress { file }) as Arc<dyn Layer>)
    })
}

impl Layer for Compress {
    pass!(size);
    pass!(status);

    fn limits(&self) -> Limits {
        let node = self.file.node();
        let cluster = node.skip_filters().layer().info().cluster_size.unwrap_or(1);
        Limits { request_alignment: cluster.min(1 << 21) as u32, ..node.layer().limits() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            // The last cluster of a disk may be cut.
            let inside = self.size().saturating_sub(offset).min(data.len() as u64) as usize;
            self.file.write(offset, &data[..inside], flags | WriteFlags::COMPRESSED).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        self.file.write_zeroes(offset, len, flags)
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        self.file.discard(offset, len)
    }
}
