//! The way into translated code and out of it.
//!
//! `enter(target)` saves the host's callee-saved registers, loads the guest's from the
//! state page (GS base) and jumps. Each way out notes its reason, saves the guest's state
//! and returns from `enter`. While the guest runs, RSP is the guest's: signal handlers run
//! on their own stack.

use crate::area::Area;
use crate::asm::*;
use crate::layout::*;
use base::{Result, fail};

/// Host addresses of the fixed code.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    pub enter: usize,
    pub exits: [usize; reason::COUNT],
}

const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];
const GUEST: [u8; 13] = [1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15, 4];

impl Stubs {
    pub fn make(area: &mut Area) -> Result<Stubs> {
        let mut stubs = Stubs::default();
        let mut code = Code::new();
        enter(&mut code);
        code.finish();
        let full = || fail!("no room for the entry code");
        stubs.enter = area.add(&code.bytes, code.bytes.len()).ok_or_else(full)?;
        code.clear();
        leave(&mut code);
        code.finish();
        let common = area.add(&code.bytes, code.bytes.len()).ok_or_else(full)?;
        for (reason, exit) in stubs.exits.iter_mut().enumerate() {
            code.clear();
            if reason == self::reason::INDIRECT as usize {
                // Flags come as the branch left them.
                code.load32(T1, FLAGS_AWAY);
                let here = code.label();
                code.xchg(RCX, T1);
                code.jrcxz(3 + 5);
                code.xchg(RCX, T1);
                let away = code.label();
                code.jmp(away);
                code.xchg(RCX, T1);
                code.jmp(here);
                code.bind(away);
                code.restore_flags();
                code.bind(here);
            }
            code.store_imm32(REASON, reason as u32);
            code.jmp_relative((common - area.execute) as i64 - area.next()[0] as i64);
            code.finish();
            *exit = area.add(&code.bytes, code.bytes.len()).ok_or_else(full)?;
        }
        area.keep();
        Ok(stubs)
    }
}

/// Bytes between registers of [`cpu_host::SimdContext::zmm`].
const STRIDE: i32 = 64;

/// `vmovups ymm, [rax + 64 * n]` or the reverse.
fn vector(code: &mut Code, n: u8, store: bool) {
    let opcode = if store { 0x11 } else { 0x10 };
    let rex = if n < 8 { 0xfc } else { 0x7c };
    code.raw(&[0xc5, rex, opcode, 0x80 | (n & 7) << 3]);
    code.raw(&(STRIDE * i32::from(n)).to_le_bytes());
}

/// `vmovups zmm, [rax + 64 * n]` or the reverse.
fn whole(code: &mut Code, n: u8, store: bool) {
    let (r, r2) = (!n >> 3 & 1, !n >> 4 & 1);
    // EVEX.512.0F.W0 10 /r with a displacement of n times 64 bytes.
    code.raw(&[0x62, 0x61 | r << 7 | r2 << 4, 0x7c, 0x48, 0x10 | u8::from(store), 0x40 | (n & 7) << 3, n]);
}

/// What AVX and SSE do not reach: ZMM16 to ZMM31 and the opmasks.
fn beyond(code: &mut Code, store: bool) {
    let opcode = u8::from(store);
    (16..32).for_each(|n| whole(code, n, store));
    for n in 0..8u8 {
        code.raw(&[0xc4, 0xe1, 0xf8, 0x90 | opcode, 0x80 | n << 3]);
        let at = cpu_host::SimdContext::OPMASK - cpu_host::SimdContext::ZMM + 8 * usize::from(n);
        code.raw(&(at as i32).to_le_bytes());
    }
}

/// Notes whether bits 511:128 of ZMM0 to ZMM15 are other than zero.
fn note_upper_of_all(code: &mut Code) {
    const EACH: u8 = 2;
    for n in EACH..16 {
        // vporq zmm0 or zmm1, zmm(n), itself
        let modrm = if n % EACH == 0 { 0xc0 } else { 0xc9 };
        code.raw(&[0x62, 0xf1, 0x85 | (!n & 15) << 3, 0x48, 0xeb, modrm]);
    }
    code.raw(&[0x62, 0xf1, 0xf5, 0x48, 0xeb, 0xc0]); // vporq zmm0, zmm1, zmm0
    code.raw(&[0x62, 0xf3, 0xfd, 0x48, 0x3b, 0xc1, 1]); // vextracti64x4 ymm1, zmm0, 1
    code.raw(&[0xc4, 0xe3, 0x7d, 0x19, 0xc0, 1]); // vextractf128 xmm0, ymm0, 1
    code.raw(&[0xc5, 0xf4, 0x56, 0xc0]); // vorps ymm0, ymm1, ymm0
    code.raw(&[0xc4, 0xe2, 0x7d, 0x17, 0xc0]); // vptest ymm0, ymm0
    code.raw(&[0x0f, 0x95, 0xc0]); // setne al
    code.raw(&[0x0f, 0xb6, 0xc0]); // movzx eax, al
    code.store32(UPPER, RAX);
}

/// `movups xmm, [rax + 64 * n]`.
fn lower(code: &mut Code, n: u8) {
    if n >= 8 {
        code.raw(&[0x44]);
    }
    code.raw(&[0x0f, 0x10, 0x80 | (n & 7) << 3]);
    code.raw(&(STRIDE * i32::from(n)).to_le_bytes());
}

/// Notes whether an upper half is other than zero. (XGETBV would tell, but takes longer.)
fn note_upper(code: &mut Code) {
    const EACH: u8 = 2;
    for n in EACH..16 {
        // vorps ymm0 or ymm1, ymm(n), itself
        code.raw(&[0xc5, 0x84 | (!n & 15) << 3, 0x56, if n % EACH == 0 { 0xc0 } else { 0xc9 }]);
    }
    code.raw(&[0xc5, 0xf4, 0x56, 0xc0]); // vorps ymm0, ymm1, ymm0
    code.raw(&[0xc4, 0xe3, 0x7d, 0x19, 0xc0, 1]); // vextractf128 xmm0, ymm0, 1
    code.raw(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]); // vptest xmm0, xmm0
    code.raw(&[0x0f, 0x95, 0xc0]); // setne al
    code.raw(&[0x0f, 0xb6, 0xc0]); // movzx eax, al
    code.store32(UPPER, RAX);
}

fn enter(code: &mut Code) {
    for reg in SAVED {
        if reg >= 8 {
            code.raw(&[0x41]);
        }
        code.raw(&[0x50 | reg & 7]);
    }
    code.store(HOST_RSP, RSP);
    code.store(TARGET, 7);
    let same = code.label();
    mxcsr(code, 3, HOST_MXCSR);
    code.load32(RAX, HOST_MXCSR);
    code.raw(&[0x65, 0x3b, 0x04, 0x25]); // cmp eax, gs:[MXCSR]
    code.raw(&MXCSR.to_le_bytes());
    code.jcc(4, same);
    mxcsr(code, 2, MXCSR);
    code.bind(same);
    // Upper halves that were written, if only with zeroes, make each SSE instruction depend on
    // its target's old value.
    let (narrow, loaded) = (code.label(), code.label());
    code.load(RAX, VECTORS);
    if cpu_host::has_avx512() {
        let less = code.label();
        code.cmp32_gs(AVX512, 0);
        code.jcc(4, less);
        beyond(code, false);
        code.cmp32_gs(UPPER, 0);
        code.jcc(4, narrow);
        (0..16).for_each(|n| whole(code, n, false));
        code.jmp(loaded);
        code.bind(less);
    }
    code.cmp32_gs(UPPER, 0);
    code.jcc(4, narrow);
    for n in 0..16 {
        vector(code, n, false);
    }
    code.jmp(loaded);
    code.bind(narrow);
    code.raw(&[0xc5, 0xf8, 0x77]); // vzeroupper
    for n in 0..16 {
        lower(code, n);
    }
    code.bind(loaded);
    for reg in GUEST {
        code.load(reg, GPR + 8 * i32::from(reg));
    }
    code.flags_from(FLAGS);
    code.load(RAX, GPR);
    code.load(T0, S0);
    code.load(T1, S1);
    code.raw(&[0x65, 0xff, 0x24, 0x25]); // jmp gs:[TARGET]
    code.raw(&TARGET.to_le_bytes());
}

/// STMXCSR (3) or LDMXCSR (2) `gs:[disp]`.
fn mxcsr(code: &mut Code, op: u8, disp: i32) {
    code.raw(&[0x65, 0x0f, 0xae, 0x04 | op << 3, 0x25]);
    code.raw(&disp.to_le_bytes());
}

fn leave(code: &mut Code) {
    code.store(GPR, RAX);
    code.lahf_seto();
    code.raw(&[0x0f, 0xb7, 0xc0]); // movzx eax, ax
    code.store(FLAGS, RAX);
    for reg in GUEST {
        code.store(GPR + 8 * i32::from(reg), reg);
    }
    code.store(S0, T0);
    code.load(RAX, VECTORS);
    let stored = code.label();
    if cpu_host::has_avx512() {
        let less = code.label();
        code.cmp32_gs(AVX512, 0);
        code.jcc(4, less);
        beyond(code, true);
        (0..16).for_each(|n| whole(code, n, true));
        note_upper_of_all(code);
        code.jmp(stored);
        code.bind(less);
    }
    for n in 0..16 {
        vector(code, n, true);
    }
    note_upper(code);
    code.bind(stored);
    code.raw(&[0xc5, 0xf8, 0x77]); // vzeroupper
    mxcsr(code, 3, MXCSR);
    let plain = code.label();
    code.load32(RAX, MXCSR);
    code.group32(4, RAX, 0xffc0);
    code.group32(7, RAX, 0x1f80);
    code.jcc(4, plain);
    code.store_imm32(HOST_MXCSR, 0x1f80);
    mxcsr(code, 2, HOST_MXCSR);
    code.bind(plain);
    code.load(RSP, HOST_RSP);
    for reg in SAVED.iter().rev() {
        if *reg >= 8 {
            code.raw(&[0x41]);
        }
        code.raw(&[0x58 | reg & 7]);
    }
    code.raw(&[0xc3]);
}
