//! Deflate streams of known length.

use crate::types::*;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// How a stream is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrap {
    Raw,
    Zlib,
}

/// Unpacks a stream of at most `most` bytes; what follows it is ignored.
pub(crate) fn inflate(wrap: Wrap, data: &[u8], most: usize) -> IoResult<Vec<u8>> {
    let mut out = vec![0; most];
    let mut stream = Decompress::new_with_window_bits(wrap == Wrap::Zlib, 15);
    let end = stream.decompress(data, &mut out, FlushDecompress::Finish).map_err(|_| errno(libc::EIO))?;
    if end != Status::StreamEnd && stream.total_out() as usize != most {
        return Err(errno(libc::EIO));
    }
    out.truncate(stream.total_out() as usize);
    Ok(out)
}

/// As [`inflate`], of exactly `len` bytes.
pub(crate) fn inflate_exact(wrap: Wrap, data: &[u8], len: usize) -> IoResult<Vec<u8>> {
    let out = inflate(wrap, data, len)?;
    if out.len() == len { Ok(out) } else { Err(errno(libc::EIO)) }
}

/// Packs with a window of `1 << window` bytes; `None` if that takes `most` bytes or more.
pub(crate) fn deflate(wrap: Wrap, window: u8, data: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; most.saturating_sub(1)];
    let mut stream = Compress::new_with_window_bits(Compression::default(), wrap == Wrap::Zlib, window);
    match stream.compress(data, &mut out, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => out.truncate(stream.total_out() as usize),
        _ => return None,
    }
    Some(out)
}
