//! `cloop`: compressed loop-back images (Knoppix), version 2; read only.
//!
//! Source: cloop 2.x `compressed_loop.h`: 128 bytes of preamble, block size and count,
//! offsets of the packed blocks, all big-endian.

use super::chunks::{Chunk, Chunks, MAX_CHUNK, Method, Source};
use super::mapped::{Fields, Word};
use crate::driver::{Driver, Layer, Open, Probe};
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver =
    Driver { name: "cloop", probe: Some(probe), open, read_only: true, ..Driver::DEFAULT };

const MAGIC: &[u8] = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop";
const PREAMBLE: u64 = 128;
/// Longest list of offsets that is read, in bytes.
const MAX_OFFSETS: u64 = 16 << 20;

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.head.starts_with(MAGIC) { 2 } else { 0 }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let Ok(head) = file.read_vec(PREAMBLE, 8, 8).await else {
            bail!("The cloop header is not within the file")
        };
        let (block, count) = (u64::from(Fields(&head).be32(0)), u64::from(Fields(&head).be32(4)));
        if !block.is_multiple_of(512) || block == 0 {
            bail!("block_size {block} must be a multiple of 512");
        }
        if block > MAX_CHUNK {
            bail!("block_size {block} must be {} MB or less", MAX_CHUNK >> 20);
        }
        let Ok(list) = file.read_vec(PREAMBLE + 8, (count + 1) * 8, MAX_OFFSETS).await else {
            bail!("The image has too many blocks, or their offsets are not within the file")
        };
        let offsets = Word::Be64.read(&list);
        let mut chunks = Vec::with_capacity(offsets.len());
        for (index, pair) in offsets.windows(2).enumerate() {
            let Some(len) = pair[1].checked_sub(pair[0]) else {
                bail!("offsets not monotonically increasing at index {index}, image file is corrupt")
            };
            let source = Source::Packed(Method::Zlib, pair[0], len);
            chunks.push(Chunk { start: index as u64 * block, len: block, source });
        }
        Ok(Arc::new(Chunks::new(file, chunks, count * block)?) as Arc<dyn Layer>)
    })
}
