//! Scattered guest memory as one run of bytes.

use memory::Dma;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub address: u64,
    pub len: u32,
}

/// Bytes in all spans.
pub fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}

/// Calls `each(address, from, to)` for the pieces of bytes `at..at + len` of a span list.
fn pieces(
    spans: &[Span],
    at: u64,
    len: usize,
    mut each: impl FnMut(u64, usize, usize) -> Option<()>,
) -> Option<()> {
    let (mut skip, mut done) = (at, 0);
    for span in spans {
        if done == len {
            break;
        }
        let size = u64::from(span.len);
        if skip >= size {
            skip -= size;
            continue;
        }
        let step = (size - skip).min((len - done) as u64) as usize;
        each(span.address.checked_add(skip)?, done, done + step)?;
        (skip, done) = (0, done + step);
    }
    (done == len).then_some(())
}

/// Copies out of the spans from byte `at`; `None` past their end or outside memory.
pub fn read(spans: &[Span], dma: &Dma, at: u64, to: &mut [u8]) -> Option<()> {
    let len = to.len();
    pieces(spans, at, len, |address, from, end| dma.read(address, &mut to[from..end]).ok())
}

/// Copies into the spans from byte `at`; `None` past their end or outside memory.
pub fn write(spans: &[Span], dma: &Dma, at: u64, bytes: &[u8]) -> Option<()> {
    pieces(spans, at, bytes.len(), |address, from, end| dma.write(address, &bytes[from..end]).ok())
}
