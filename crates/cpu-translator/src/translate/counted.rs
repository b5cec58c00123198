//! Blocks that count their instructions, for [`cpu::Vcpu::run_exactly`].
//!
//! A block takes all its instructions from the budget at its entry and leaves if that does
//! not suffice. Ways out in its midst give back what was not executed: side exits in their
//! stubs, sites of the interpreter in the run loop (by [`crate::cache::Site::left`]). Flags
//! stay as they are.

use super::{Builder, Cold};
use crate::asm::*;
use crate::layout::*;
use iced_x86::{Instruction, Mnemonic};

/// Whether the flags that `i` leaves undefined differ between processors and the interpreter.
/// Counted runs are compared to the bit with the interpreter's: it executes these.
pub fn has_open_flags(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        i.mnemonic(),
        Shl | Sal
            | Shr
            | Sar
            | Shld
            | Shrd
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Imul
            | Mul
            | Div
            | Idiv
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
    )
}

impl Builder {
    /// Takes the block's instructions from the budget; leaves through the head's `site` if
    /// there are fewer.
    pub(super) fn count_down(&mut self, site: u32) {
        let count = self.steps.len() as i32;
        let short = self.code.label();
        self.code.load(T1, BUDGET);
        self.code.lea(T1, T1, -count);
        self.code.store(BUDGET, T1);
        self.code.pext(T1, T1, MASK_SIGN);
        self.zero_test(T1, short);
        self.cold.push(Cold::Leave { label: short, site, reason: reason::BUDGET, restore: false });
    }

    pub(super) fn give_back(&mut self, instructions: u16) {
        self.code.load(T1, BUDGET);
        self.code.lea(T1, T1, i32::from(instructions));
        self.code.store(BUDGET, T1);
    }

    /// Whether the present branch leaves instructions of a counted block behind.
    pub(super) fn leaves_early(&self) -> bool {
        self.counted && self.k + 1 < self.steps.len()
    }
}
