//! `copy-on-read`: what is read from a backing file is kept in the image.

use super::pass;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::{Child, Node};
use crate::jobs::known_zero;
use crate::types::*;
use base::{Result, bail, fail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver { name: "copy-on-read", kind: Kind::Filter, open, ..Driver::DEFAULT };

struct CopyOnRead {
    file: Child,
    /// Down to this node what is read is not copied.
    bottom: Option<Arc<Node>>,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let bottom = open.options.take_str("bottom")?;
        let file = open.child("file", Role::FILTER).await?;
        let bottom = match bottom {
            None => None,
            Some(name) => {
                let node = open.graph.find(&name).ok_or_else(|| fail!("Bottom node '{name}' not found"))?;
                if node.driver().kind == Kind::Filter {
                    bail!("Bottom node '{name}' is a filter");
                }
                Some(node)
            }
        };
        // Everybody who writes below must be kept out while a piece is copied.
        file.track();
        Ok(Arc::new(CopyOnRead { file, bottom }) as Arc<dyn Layer>)
    })
}

/// Past filters and raw images that are all of what they stand on: what says what is allocated.
fn image_of(node: &Arc<Node>) -> Arc<Node> {
    let mut image = node.skip_filters();
    while let Some(below) = crate::formats::raw::whole(&image) {
        image = below.skip_filters();
    }
    image
}

impl CopyOnRead {
    async fn copy(&self, offset: u64, len: u64) -> IoResult {
        let node = self.file.node();
        let image = image_of(&node);
        let below = self.bottom.as_ref().and_then(|bottom| bottom.backing());
        let mut at = offset;
        let end = (offset + len).min(node.size());
        while at < end {
            let status = image.block_status(at, end - at).await?;
            let mut run = status.len.min(end - at);
            if !status.flags.contains(StatusFlags::ALLOCATED) {
                let (wanted, part) = crate::jobs::allocated_to(&image, below.as_ref(), at, run).await?;
                run = part;
                if wanted {
                    run = self.pull(&node, &image, at, run.min(1 << 20)).await?;
                }
            }
            at += run;
        }
        Ok(())
    }

    async fn pull(&self, node: &Arc<Node>, image: &Arc<Node>, at: u64, len: u64) -> IoResult<u64> {
        let _alone = node.exclusive(at, len).await;
        let now = image.block_status(at, len).await?;
        let len = now.len.min(len);
        if now.flags.contains(StatusFlags::ALLOCATED) {
            return Ok(len);
        }
        let (zero, run) = known_zero(image, at, len).await?;
        if zero {
            node.zero_unchanged(at, run).await?;
        } else {
            let mut data = crate::buffers::take(run as usize);
            node.read(at, &mut data).await?;
            node.write_unchanged(at, &data).await?;
        }
        Ok(run)
    }
}

impl Layer for CopyOnRead {
    pass!(size);
    pass!(limits);
    pass!(status);

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if !self.file.node().is_read_only() {
                self.copy(offset, buf.len() as u64).await?;
            }
            self.file.read(offset, buf).await
        })
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

    fn child_perm(&self, _role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        let extra = if read_only { Perm::empty() } else { Perm::WRITE_UNCHANGED };
        (perm | extra, shared)
    }
}
