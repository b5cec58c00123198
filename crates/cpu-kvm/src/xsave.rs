//! x87, SSE and AVX state in the XSAVE area's standard form (SDM vol. 1 §13.4).

use cpu::state::FpuState;

const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
/// The upper halves of the YMM registers.
const YMM_HIGH: usize = 576;
/// Bytes of KVM's fixed area.
pub const LEN: usize = 4096;
const X87_SSE: u64 = 3;
const AVX: u64 = 4;

fn word<const N: usize>(area: &[u8; LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| area[at + i])
}

pub fn from_area(area: &[u8; LEN]) -> FpuState {
    let mut fpu = FpuState {
        fcw: u16::from_le_bytes(word(area, 0)),
        fsw: u16::from_le_bytes(word(area, 2)),
        ftw: area[4],
        fop: u16::from_le_bytes(word(area, 6)),
        fip: u64::from_le_bytes(word(area, 8)),
        fdp: u64::from_le_bytes(word(area, 16)),
        mxcsr: u32::from_le_bytes(word(area, MXCSR)),
        ..FpuState::default()
    };
    let avx = u64::from_le_bytes(word(area, XSTATE_BV)) & AVX != 0;
    for i in 0..8 {
        fpu.st[i] = word(area, ST + 16 * i);
    }
    for (i, register) in fpu.ymm.iter_mut().enumerate() {
        let quad = |at: usize| u64::from_le_bytes(word(area, at));
        let (low, high) = (XMM + 16 * i, YMM_HIGH + 16 * i);
        *register = [quad(low), quad(low + 8), 0, 0];
        if avx {
            register[2] = quad(high);
            register[3] = quad(high + 8);
        }
    }
    fpu
}

/// Puts the state into an area that KVM gave, with AVX if XCR0 has it.
pub fn into_area(fpu: &FpuState, area: &mut [u8; LEN], avx: bool) {
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &fpu.fcw.to_le_bytes());
    put(2, &fpu.fsw.to_le_bytes());
    put(4, &[fpu.ftw, 0]);
    put(6, &fpu.fop.to_le_bytes());
    put(8, &fpu.fip.to_le_bytes());
    put(16, &fpu.fdp.to_le_bytes());
    put(MXCSR, &fpu.mxcsr.to_le_bytes());
    put(MXCSR_MASK, &0xffffu32.to_le_bytes());
    for (i, value) in fpu.st.iter().enumerate() {
        put(ST + 16 * i, value);
    }
    for (i, register) in fpu.ymm.iter().enumerate() {
        put(XMM + 16 * i, &register[0].to_le_bytes());
        put(XMM + 16 * i + 8, &register[1].to_le_bytes());
        put(YMM_HIGH + 16 * i, &register[2].to_le_bytes());
        put(YMM_HIGH + 16 * i + 8, &register[3].to_le_bytes());
    }
    put(XSTATE_BV, &(X87_SSE | if avx { AVX } else { 0 }).to_le_bytes());
    // Standard form.
    put(XSTATE_BV + 8, &[0; 8]);
}
