//! PUSH, POP and LEAVE; the stack pointer.
//!
//! Several in a row move RSP once: while steps follow that cannot leave the block and do not look at RSP,
//! what it has to be moved by is only noted ([`Builder::owed`]).

use super::access::{Where, slot};
use super::groups::{Member, has_memory};
use super::{Builder, Class, Source, class};
use crate::asm::*;
use crate::layout::*;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

impl Builder {
    /// Before the present step: RSP has its value, unless that can wait.
    pub(super) fn settle_stack(&mut self) {
        if self.owed != 0 && !self.can_owe() {
            self.pay_stack();
        }
    }

    /// RSP has its value.
    pub(super) fn pay_stack(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        if owed != 0 {
            self.code.lea_word(self.word == 8, RSP, RSP, owed);
        }
    }

    /// The present step moves RSP.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.owed += by;
        if !matches!(self.steps[self.k].class, Class::Push | Class::Pop) || !self.can_owe() {
            self.pay_stack();
        }
    }

    /// Whether the present step does without RSP's value and cannot leave the block before the next.
    fn can_owe(&mut self) -> bool {
        let step = &self.steps[self.k];
        let (i, class, member) = (step.i, step.class, step.member);
        if self.word != 8 || !self.hoisted && self.early.iter().any(|early| early.step == self.k) {
            return false;
        }
        match class {
            Class::Nothing => true,
            Class::Push | Class::Pop => {
                i.op0_kind() != OpKind::Memory
                    && i.op0_register() != Register::RSP
                    && member.is_some_and(|member| self.is_found(member))
            }
            Class::Return => member.is_some_and(|member| self.is_found(member)),
            Class::Native => {
                let leaves = matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
                    || has_memory(&i) && i.mnemonic() != Mnemonic::Lea
                    || class::uses_x87(&i)
                    || class::is_avx512(&i)
                    || self.is_vector_arithmetic(&i);
                !leaves && !self.uses_stack_pointer(&i)
            }
            _ => false,
        }
    }

    /// Whether an access needs no look-up of its own and cannot be refused: a group's first can.
    fn is_found(&self, member: Member) -> bool {
        let group = &self.groups[usize::from(member.group)];
        !member.leader && (group.kept || self.t1 == Some(member.group))
    }

    fn uses_stack_pointer(&mut self, i: &Instruction) -> bool {
        let info = self.info.info(i);
        info.used_registers().iter().any(|used| used.register().full_register() == Register::RSP)
    }

    pub(super) fn push(&mut self, source: &Source, i: &Instruction) {
        let (word, wide) = (u32::from(self.word), self.word == 8);
        if i.op0_kind() == OpKind::Memory {
            let retry = self.here();
            let first = self.reach(source, i, Where::Operand, (word, 1, false));
            self.accesses(&first);
            self.code.op_at(wide, 0x8b, T0, &first.at);
            self.code.store(SPARE, T0);
            let second = self.reach(source, i, Where::At(RSP, -(word as i32)), (word, 1, true));
            if let Some(site) = second.site {
                // A retry begins with the first access: its value may be stale.
                self.site_mut(site).retry = retry;
            }
            let at = self.free_t1(&second);
            self.code.load(T1, SPARE);
            self.accesses(&second);
            self.code.op_at(wide, 0x89, T1, &at);
            self.move_stack(-(word as i32));
            self.accessed(&second);
            return self.accessed(&first);
        }
        let reached = self.reach(source, i, Where::At(RSP, -(word as i32)), (word, 1, true));
        if i.op0_kind() == OpKind::Register {
            let n = i.op0_register().full_register().number() as u8;
            if n == T0 || n == T1 {
                let at = self.free_t1(&reached);
                self.code.load(T1, slot(n));
                self.accesses(&reached);
                self.code.op_at(wide, 0x89, T1, &at);
            } else {
                self.accesses(&reached);
                self.code.op_at(wide, 0x89, n, &reached.at);
            }
        } else {
            let value = match i.op0_kind() {
                OpKind::Immediate8to64 => i.immediate8to64() as i32,
                OpKind::Immediate8to32 => i.immediate8to32(),
                OpKind::Immediate32 => i.immediate32() as i32,
                _ => i.immediate32to64() as i32,
            };
            self.accesses(&reached);
            self.code.store_imm_at(wide, value, &reached.at);
        }
        self.move_stack(-(word as i32));
        self.accessed(&reached);
    }

    pub(super) fn pop(&mut self, source: &Source, i: &Instruction) {
        let (word, wide) = (u32::from(self.word), self.word == 8);
        let n = i.op0_register().full_register().number() as u8;
        let reached = self.reach(source, i, Where::At(RSP, 0), (word, 1, false));
        self.accesses(&reached);
        if n == T0 || n == T1 {
            self.code.op_at(wide, 0x8b, T0, &reached.at);
            self.code.store(slot(n), T0);
        } else {
            self.code.op_at(wide, 0x8b, n, &reached.at);
        }
        if n != RSP {
            self.move_stack(word as i32);
        }
        self.accessed(&reached);
    }

    pub(super) fn leave(&mut self, source: &Source, i: &Instruction) {
        let (word, wide) = (u32::from(self.word), self.word == 8);
        let reached = self.reach(source, i, Where::At(RBP, 0), (word, 1, false));
        self.accesses(&reached);
        self.code.op_at(wide, 0x8b, T0, &reached.at);
        self.code.lea_word(wide, RSP, RBP, word as i32);
        self.code.mov(RBP, T0);
        self.accessed(&reached);
    }
}
