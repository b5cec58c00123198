//! The XSAVE area (SDM vol. 1 §13.4): what lies where, in its standard and compacted form.

/// Bytes of the legacy region and the header.
pub const LEGACY: usize = 576;

/// XCR0 bits: the components every processor has, and those of AVX-512, which come together.
pub const X87: u64 = 1;
pub const SSE: u64 = 2;
pub const AVX: u64 = 4;
pub const AVX512: u64 = 0xe0;

/// A component of the extended region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its bit in XCR0 and XSTATE_BV.
    pub number: u32,
    /// Where it stands in the standard form, in bytes.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

impl Component {
    pub const fn mask(&self) -> u64 {
        1 << self.number
    }

    /// Its offset in an area of standard form, or of compacted form with room for these
    /// components. (None of them asks for alignment.)
    pub fn place(&self, compacted: Option<u64>) -> usize {
        compacted.map_or(self.offset, |components| compacted_size(components & (self.mask() - 1)))
    }
}

const fn component(number: u32, offset: usize, size: usize) -> Component {
    Component { number, offset, size }
}

/// Upper halves of the YMM registers; opmasks; upper halves of ZMM0..15; ZMM16..31. The offsets
/// are those of all Intel processors; software finds them by CPUID.
pub const COMPONENTS: [Component; 4] =
    [component(2, 576, 256), component(5, 1088, 64), component(6, 1152, 512), component(7, 1664, 1024)];

/// Bytes of an area of standard form with these components.
pub fn standard_size(components: u64) -> usize {
    present(components).map(|c| c.offset + c.size).max().unwrap_or(LEGACY)
}

/// Bytes of an area of compacted form with these components.
pub fn compacted_size(components: u64) -> usize {
    LEGACY + present(components).map(|c| c.size).sum::<usize>()
}

/// Components of the extended region that are in `components`.
pub fn present(components: u64) -> impl Iterator<Item = Component> {
    COMPONENTS.into_iter().filter(move |c| components & c.mask() != 0)
}

/// Whether XCR0 may have this value on a processor with the components `supported` (SDM vol. 1
/// §13.3): x87 always, AVX with SSE only, AVX-512 as a whole and with AVX only.
pub fn is_valid(xcr0: u64, supported: u64) -> bool {
    let avx512 = xcr0 & AVX512;
    xcr0 & X87 != 0
        && xcr0 & !supported == 0
        && xcr0 & (SSE | AVX) != AVX
        && (avx512 == 0 || avx512 == AVX512 && xcr0 & AVX != 0)
}
