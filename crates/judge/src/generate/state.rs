//! Random start states.

use crate::case::{Case, PATCH, layout};
use crate::rng::Rng;

/// Registers and flags that an instruction may meet.
/// `wide`: AVX-512 state as well, mostly; otherwise it stays zero.
pub fn randomize(case: &mut Case, rng: &mut Rng, wide: bool) {
    let r = &mut case.registers;
    for value in &mut r.gpr {
        *value = rng.value();
    }
    if case.bits == 32 {
        for value in &mut r.gpr[..8] {
            *value &= 0xffff_ffff;
        }
    }
    r.gpr[4] = layout::DATA + 512 + 8 * rng.below(900);
    r.rflags = 0x202 | rng.word() & 0x8d5 | if rng.one_in(8) { 0x400 } else { 0 };
    let wide = wide && !rng.one_in(8);
    let (registers, words) = if wide { (32, 8) } else { (16, 4) };
    for register in &mut r.zmm[..registers] {
        let floats = !rng.one_in(3);
        for word in &mut register[..words] {
            *word = if floats { rng.float() } else { rng.value() };
        }
    }
    for mask in r.opmask.iter_mut().filter(|_| wide) {
        *mask = match rng.below(4) {
            0 => rng.value(),
            1 => rng.word() & rng.word() & rng.word(),
            _ => rng.word(),
        };
    }
    r.mxcsr = match rng.below(20) {
        0..12 => 0x1f80,
        12..17 => 0x1f80 | rng.word() as u32 & 0xe07f,
        _ => rng.word() as u32 & 0xffff,
    };
    x87(case, rng);
}

fn x87(case: &mut Case, rng: &mut Rng) {
    let r = &mut case.registers;
    r.fcw = match rng.below(10) {
        0..6 => 0x37f,
        6..8 => 0x7f | (rng.word() as u16 & 0xf00),
        _ => 0x40 | rng.word() as u16 & 0xf3f,
    };
    r.fsw = rng.word() as u16 & 0x7f7f;
    if !rng.one_in(20) {
        // Nothing pending: unmasked flags are clear.
        r.fsw &= !0x3f | r.fcw & 0x3f;
    }
    if r.fsw & !r.fcw & 0x3f != 0 {
        r.fsw |= 0x8080;
    }
    r.ftw = match rng.below(5) {
        0..3 => 0xff,
        3 => rng.word() as u16 & 0xff,
        _ => 0,
    };
    for st in &mut r.st {
        *st = rng.extended();
        if rng.one_in(4) {
            st[..8].copy_from_slice(&rng.value().to_le_bytes());
            st[8..10].copy_from_slice(&[0xff, 0xff]);
        }
    }
}

/// Puts `bytes` at `address` before the case starts, if that is writable data.
pub fn patch(case: &mut Case, slot: usize, address: u64, bytes: &[u8]) {
    let offset = address.wrapping_sub(layout::DATA);
    if offset < layout::DATA_SIZE {
        let len = bytes.len().min(PATCH).min((layout::DATA_SIZE - offset) as usize);
        let patch = &mut case.patches[slot];
        patch.offset = offset as u32;
        patch.len = len as u32;
        patch.bytes[..len].copy_from_slice(&bytes[..len]);
    }
}
