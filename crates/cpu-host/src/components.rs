//! The vector registers as XSAVE's components hold them (SDM vol. 1 §13.4, §13.5).

use crate::SimdContext;

/// Which words of which registers a component is made of.
struct Part {
    first: usize,
    word: usize,
    words: usize,
}

/// Component 1 without MXCSR, 2, 6 and 7.
fn part(number: u32) -> Part {
    match number {
        1 => Part { first: 0, word: 0, words: 2 },
        2 => Part { first: 0, word: 2, words: 2 },
        6 => Part { first: 0, word: 4, words: 4 },
        _ => Part { first: 16, word: 0, words: 8 },
    }
}

fn put<const WORDS: usize>(registers: &[[u64; 8]], word: usize, to: &mut [u8]) {
    let (chunks, _) = to.as_chunks_mut::<8>();
    for (register, to) in registers.iter().zip(chunks.chunks_exact_mut(WORDS)) {
        for k in 0..WORDS {
            to[k] = register[word + k].to_le_bytes();
        }
    }
}

fn get<const WORDS: usize>(registers: &mut [[u64; 8]], word: usize, from: &[u8]) {
    let (chunks, _) = from.as_chunks::<8>();
    for (register, from) in registers.iter_mut().zip(chunks.chunks_exact(WORDS)) {
        for k in 0..WORDS {
            register[word + k] = u64::from_le_bytes(from[k]);
        }
    }
}

impl SimdContext {
    /// Writes the first bytes of a component: 1 (XMM registers), 2 (upper halves of YMM), 5
    /// (opmasks), 6 (upper halves of ZMM0..15) or 7 (ZMM16..31).
    pub fn save_component(&self, number: u32, to: &mut [u8]) {
        let Part { first, word, words } = part(number);
        let registers = &self.zmm[first..first + 16];
        match (number, words) {
            (5, _) => {
                for (to, mask) in to.as_chunks_mut::<8>().0.iter_mut().zip(self.opmask) {
                    *to = mask.to_le_bytes();
                }
            }
            (_, 2) => put::<2>(registers, word, to),
            (_, 4) => put::<4>(registers, word, to),
            _ => put::<8>(registers, word, to),
        }
    }

    /// Sets the registers of a component, as far as there are bytes.
    pub fn load_component(&mut self, number: u32, from: &[u8]) {
        let Part { first, word, words } = part(number);
        let registers = &mut self.zmm[first..first + 16];
        match (number, words) {
            (5, _) => {
                for (mask, from) in self.opmask.iter_mut().zip(from.as_chunks::<8>().0) {
                    *mask = u64::from_le_bytes(*from);
                }
            }
            (_, 2) => get::<2>(registers, word, from),
            (_, 4) => get::<4>(registers, word, from),
            _ => get::<8>(registers, word, from),
        }
        if number >= 5 {
            self.avx512 |= from.iter().any(|&byte| byte != 0);
        }
    }

    /// Whether a component is other than zero.
    pub fn uses_component(&self, number: u32) -> bool {
        let Part { first, word, words } = part(number);
        if number == 5 {
            return self.opmask != [0; 8];
        }
        let registers = self.zmm[first..first + 16].iter();
        registers.fold(0, |all, r| r[word..word + words].iter().fold(all, |all, w| all | w)) != 0
    }

    /// Whether AVX-512 state is other than zero, found out anew.
    pub fn settle_avx512(&mut self) {
        self.avx512 = self.avx512 && [5, 6, 7].iter().any(|&number| self.uses_component(number));
    }
}
