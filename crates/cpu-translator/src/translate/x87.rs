//! x87, MMX and AVX-512 instructions: they run in the host's registers once the guest's state is
//! there.

use super::class::{is_avx512, is_x87, uses_x87};
use super::{Builder, Cold, Source, key};
use crate::asm::{T0, T1};
use crate::cache::Kind;
use crate::layout::*;
use cpu_interpreter::data_segment;
use iced_x86::{Instruction, OpKind};

impl Builder {
    /// Before the first x87 instruction of a block: goes to the interpreter, which brings the
    /// state to the host, if it is not there (or has exceptions unmasked).
    pub(super) fn x87_enter(&mut self, i: &Instruction) -> Option<u32> {
        if self.x87_ready || !uses_x87(i) {
            return None;
        }
        self.x87_ready = true;
        Some(self.unless_zero(X87, Kind::X87))
    }

    /// The same before the first AVX-512 instruction of a block: the state moves between memory
    /// and the host only for guests that use it.
    pub(super) fn avx512_enter(&mut self, source: &Source, i: &Instruction) -> Option<u32> {
        if self.avx512_ready || source.key & key::AVX512 == 0 || !is_avx512(i) {
            return None;
        }
        self.avx512_ready = true;
        Some(self.unless_zero(AVX512, Kind::Interpret))
    }

    /// Leaves the present instruction to the interpreter if this word of the state is zero.
    fn unless_zero(&mut self, word: i32, kind: Kind) -> u32 {
        self.spare_flags();
        let restore = self.restores();
        let site = self.site(kind);
        let label = self.code.label();
        self.code.cmp32_gs(word, 0);
        self.code.jcc(4, label);
        self.cold.push(Cold::Leave { label, site, reason: reason::SLOW, restore });
        site
    }

    /// The interpreter may have run: it is not known what state the host has.
    pub(super) fn forget_state(&mut self) {
        self.x87_ready = false;
        self.avx512_ready = false;
    }

    /// After an x87 instruction: the pointers to it, unless the next one sets them anyway.
    pub(super) fn x87_pointers(&mut self, source: &Source, i: &Instruction, memory: bool) {
        let sets = |i: &Instruction| is_x87(i) && !cpu_host::is_x87_control(i.mnemonic());
        if !sets(i) {
            return;
        }
        if memory {
            self.code.store(FDP, T0);
            self.code.store_imm32(FDP_SEGMENT, u32::from(data_segment(i)));
        }
        let next = self.steps.get(self.k + 1);
        let covered = next.is_some_and(|next| {
            sets(&next.i)
                && (0..next.i.op_count()).all(|n| next.i.op_kind(n) == OpKind::Register)
                && next.class == super::Class::Native
        });
        if covered {
            return;
        }
        let at = usize::from(self.steps[self.k].at);
        self.t1 = None;
        self.code.constant(T1, i.ip());
        self.code.store(FIP, T1);
        self.code.store_imm32(FOP, u32::from(cpu_host::x87_opcode(&source.bytes[at..at + i.len()])));
    }
}
