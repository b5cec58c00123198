//! Jumps, calls, returns, software interrupts, fast system calls.

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{self, mask, sx};
use crate::op::Op;
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::EFER_SCE;
use cpu::state::{Segment, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Operand size of a near branch, call or return.
pub fn branch_size(i: &Instruction, is64: bool) -> usize {
    use Code::*;
    match i.code() {
        Call_rel16 | Jmp_rel16 | Call_rm16 | Jmp_rm16 | Retnw | Retnw_imm16 | Jmp_rel8_16
        | Loop_rel8_16_CX | Loop_rel8_16_ECX | Loop_rel8_16_RCX => 2,
        Call_rel32_32 | Jmp_rel32_32 | Call_rm32 | Jmp_rm32 | Retnd | Retnd_imm16 | Jmp_rel8_32 => 4,
        Call_rel32_64 | Jmp_rel32_64 | Call_rm64 | Jmp_rm64 | Retnq | Retnq_imm16 | Jmp_rel8_64 => 8,
        _ => match i.op0_kind() {
            OpKind::NearBranch16 => 2,
            OpKind::NearBranch32 => 4,
            OpKind::NearBranch64 => 8,
            _ if is64 => 8,
            _ => 4,
        },
    }
}

impl Core {
    pub(super) fn control(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        match i.mnemonic() {
            Jmp => self.jump(i, op),
            Call => self.call(i, op),
            Ret => self.ret(i),
            Retf => self.far_return(far_size(i), i.op_count() > 0, i.immediate_or_zero()),
            Iret => self.iret(2),
            Iretd => self.iret(4),
            Iretq => self.iret(8),
            Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => self.count_jump(i),
            Int => self.software_interrupt(i.immediate(0) as u8, op, false),
            Int3 => self.software_interrupt(3, op, true),
            Into => {
                if self.aux & flags::OF != 0 {
                    self.software_interrupt(4, op, true)
                } else {
                    Ok(Flow::Next)
                }
            }
            Int1 => {
                self.rip = op.next_pc();
                self.interrupt(vector::DB, None, crate::segment::Source::Icebp)?;
                Ok(Flow::Branch)
            }
            Bound => self.bound(i, op),
            Syscall => self.syscall(i),
            Sysret => self.sysret(false),
            Sysretq => self.sysret(true),
            Sysenter => self.sysenter(),
            Sysexit => self.sysexit(false),
            Sysexitq => self.sysexit(true),
            Hlt => {
                if self.cpl != 0 {
                    return Err(Fault::GP0);
                }
                Ok(Flow::Halt)
            }
            Ud0 | Ud1 | Ud2 => Err(Fault::UD),
            _ => {
                if self.cond(i.condition_code() as u8 - 1) {
                    self.near(i.near_branch_target(), branch_size(i, self.is_64bit()))
                } else {
                    Ok(Flow::Next)
                }
            }
        }
    }

    /// Goes to a near target after its checks.
    pub fn near(&mut self, target: u64, size: usize) -> Done {
        let target = target & mask(size);
        self.check_target(target)?;
        self.rip = target;
        Ok(Flow::Branch)
    }

    pub fn check_target(&self, target: u64) -> Result<(), Fault> {
        let ok = if self.is_64bit() {
            Core::canonical(target)
        } else {
            target <= u64::from(self.st.seg[seg::CS].limit)
        };
        if ok { Ok(()) } else { Err(Fault::GP0) }
    }

    fn far_pointer(&mut self, i: &Instruction, op: &Op) -> Result<(u16, u64, usize), Fault> {
        match i.op0_kind() {
            OpKind::FarBranch16 => Ok((i.far_branch_selector(), u64::from(i.far_branch16()), 2)),
            OpKind::FarBranch32 => Ok((i.far_branch_selector(), u64::from(i.far_branch32()), 4)),
            _ => {
                let size = i.memory_size().size() - 2;
                let linear = self.operand(op, size + 2, false)?;
                let offset = self.read(linear, size)?;
                let selector = self.read(self.wrap(linear.wrapping_add(size as u64)), 2)?;
                Ok((selector as u16, offset, size))
            }
        }
    }

    fn is_far(i: &Instruction) -> bool {
        use Code::*;
        matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32)
            || matches!(i.code(), Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664)
    }

    fn jump(&mut self, i: &Instruction, op: &Op) -> Done {
        if Core::is_far(i) {
            let (selector, offset, size) = self.far_pointer(i, op)?;
            self.rip = op.next_pc();
            return self.far_jump(selector, offset, size).inspect_err(|_| self.rip = op.pc);
        }
        let size = branch_size(i, self.is_64bit());
        let target = match i.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => i.near_branch_target(),
            _ => self.get(i, op, 0, size)?,
        };
        self.near(target, size)
    }

    fn call(&mut self, i: &Instruction, op: &Op) -> Done {
        if Core::is_far(i) {
            let (selector, offset, size) = self.far_pointer(i, op)?;
            self.rip = op.next_pc();
            return self.far_call(selector, offset, size).inspect_err(|_| self.rip = op.pc);
        }
        let size = branch_size(i, self.is_64bit());
        let target = match i.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => i.near_branch_target(),
            _ => self.get(i, op, 0, size)?,
        } & mask(size);
        self.check_target(target)?;
        self.push(size, op.next_pc() & mask(size))?;
        self.rip = target;
        Ok(Flow::Branch)
    }

    fn ret(&mut self, i: &Instruction) -> Done {
        let size = branch_size(i, self.is_64bit());
        let target = self.peek_stack(0, size)?;
        self.check_target(target)?;
        self.move_stack(size as i64 + (i.immediate_or_zero() & 0xffff) as i64);
        self.rip = target;
        Ok(Flow::Branch)
    }

    fn count_jump(&mut self, i: &Instruction) -> Done {
        use Mnemonic::*;
        let width = counter_size(i);
        let size = branch_size(i, self.is_64bit());
        let counter = self.reg(1, width);
        if matches!(i.mnemonic(), Jcxz | Jecxz | Jrcxz) {
            return if counter == 0 { self.near(i.near_branch_target(), size) } else { Ok(Flow::Next) };
        }
        let left = counter.wrapping_sub(1) & mask(width);
        let go = left != 0
            && match i.mnemonic() {
                Loope => self.res == 0,
                Loopne => self.res != 0,
                _ => true,
            };
        if go {
            self.check_target(i.near_branch_target() & mask(size))?;
        }
        self.set_pointer(1, width, left);
        if go { self.near(i.near_branch_target(), size) } else { Ok(Flow::Next) }
    }

    fn software_interrupt(&mut self, vector: u8, op: &Op, is_trap: bool) -> Done {
        self.rip = op.next_pc();
        if self.report_software {
            return Err(Fault::plain(vector));
        }
        self.delivered = true;
        let source = if is_trap { crate::segment::Source::Trap } else { crate::segment::Source::Software };
        match self.interrupt(vector, None, source) {
            Ok(()) => Ok(Flow::Branch),
            Err(fault) => {
                self.rip = op.pc;
                Err(fault)
            }
        }
    }

    fn bound(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = i.op0_register().size();
        let linear = self.operand(op, 2 * size, false)?;
        let low = sx(self.read(linear, size)?, size) as i64;
        let high = sx(self.read(self.wrap(linear + size as u64), size)?, size) as i64;
        let value = sx(self.read_register(i.op0_register()), size) as i64;
        if value < low || value > high {
            return Err(Fault::plain(vector::BR));
        }
        Ok(Flow::Next)
    }

    fn flat_code(selector: u16, dpl: u16, long: bool) -> Segment {
        let size = if long { 0x2000 } else { 0x4000 };
        Segment { selector, base: 0, limit: u32::MAX, access: 0x809b | dpl << 5 | size }
    }

    fn flat_data(selector: u16, dpl: u16) -> Segment {
        Segment { selector, base: 0, limit: u32::MAX, access: 0xc093 | dpl << 5 }
    }

    /// CPL and the stack segment's privilege, after CS and SS were replaced.
    fn enter_level(&mut self, cpl: u8) -> Done {
        self.cpl = cpl;
        self.mode_changed();
        Ok(Flow::Branch)
    }

    fn syscall(&mut self, i: &Instruction) -> Done {
        if self.st.efer & EFER_SCE == 0 || !self.protected() {
            return Err(Fault::UD);
        }
        let selector = (self.st.msr.star >> 32) as u16;
        let next = i.next_ip();
        if self.long_mode() {
            let flags = self.rflags() & !flags::RF;
            self.r[1] = next;
            self.r[11] = flags;
            self.rip = if self.is_64bit() { self.st.msr.lstar } else { self.st.msr.cstar };
            self.set_rflags(flags & !self.st.msr.sfmask & !flags::RF);
            self.st.seg[seg::CS] = Core::flat_code(selector & 0xfffc, 0, true);
        } else {
            self.r[1] = next & 0xffff_ffff;
            self.rip = self.st.msr.star & 0xffff_ffff;
            self.st.rflags &= !(flags::VM | flags::IF | flags::RF);
            self.st.seg[seg::CS] = Core::flat_code(selector & 0xfffc, 0, false);
        }
        self.st.seg[seg::SS] = Core::flat_data((selector & 0xfffc).wrapping_add(8), 0);
        self.enter_level(0)
    }

    /// Segments and privilege after a 64-bit SYSCALL whose other work is done.
    pub fn finish_syscall(&mut self) {
        let selector = (self.st.msr.star >> 32) as u16 & 0xfffc;
        self.st.seg[seg::CS] = Core::flat_code(selector, 0, true);
        self.st.seg[seg::SS] = Core::flat_data(selector.wrapping_add(8), 0);
        self.cpl = 0;
        self.mode_changed();
    }

    /// Segments and privilege after a SYSRET to 64-bit code whose other work is done.
    pub fn finish_sysret(&mut self) {
        let selector = (self.st.msr.star >> 48) as u16;
        self.st.seg[seg::CS] = Core::flat_code(selector.wrapping_add(16) | 3, 3, true);
        self.st.seg[seg::SS] = Core::flat_data(selector.wrapping_add(8) | 3, 3);
        self.cpl = 3;
        self.mode_changed();
    }

    fn sysret(&mut self, wide: bool) -> Done {
        if self.st.efer & EFER_SCE == 0 || !self.protected() {
            return Err(Fault::UD);
        }
        if self.cpl != 0 {
            return Err(Fault::GP0);
        }
        let selector = (self.st.msr.star >> 48) as u16;
        if self.long_mode() {
            if wide && !Core::canonical(self.r[1]) {
                return Err(Fault::GP0);
            }
            let keep = flags::ARITH
                | flags::TF
                | flags::IF
                | flags::DF
                | flags::IOPL
                | flags::NT
                | flags::AC
                | flags::VIF
                | flags::VIP
                | flags::ID;
            self.set_rflags(self.r[11] & keep);
            self.rip = if wide { self.r[1] } else { self.r[1] & 0xffff_ffff };
            let cs = if wide { selector.wrapping_add(16) } else { selector };
            self.st.seg[seg::CS] = Core::flat_code(cs | 3, 3, wide);
        } else {
            self.st.rflags |= flags::IF;
            self.rip = self.r[1] & 0xffff_ffff;
            self.st.seg[seg::CS] = Core::flat_code(selector | 3, 3, false);
        }
        self.st.seg[seg::SS] = Core::flat_data(selector.wrapping_add(8) | 3, 3);
        self.enter_level(3)
    }

    fn sysenter(&mut self) -> Done {
        let cs = self.st.msr.sysenter_cs as u16;
        if !self.protected() && !self.v86() || cs & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let long = self.long_mode();
        self.st.rflags &= !(flags::VM | flags::IF | flags::RF);
        self.st.seg[seg::CS] = Core::flat_code(cs & 0xfffc, 0, long);
        self.st.seg[seg::SS] = Core::flat_data((cs & 0xfffc).wrapping_add(8), 0);
        let wide = if long { u64::MAX } else { 0xffff_ffff };
        self.r[4] = self.st.msr.sysenter_esp & wide;
        self.rip = self.st.msr.sysenter_eip & wide;
        self.enter_level(0)
    }

    fn sysexit(&mut self, wide: bool) -> Done {
        let cs = self.st.msr.sysenter_cs as u16;
        if !self.protected() || cs & 0xfffc == 0 || self.cpl != 0 {
            return Err(Fault::GP0);
        }
        if wide && !(Core::canonical(self.r[1]) && Core::canonical(self.r[2])) {
            return Err(Fault::GP0);
        }
        let first = (cs & 0xfffc).wrapping_add(if wide { 32 } else { 16 }) | 3;
        self.st.seg[seg::CS] = Core::flat_code(first, 3, wide);
        self.st.seg[seg::SS] = Core::flat_data(first.wrapping_add(8), 3);
        let m = if wide { u64::MAX } else { 0xffff_ffff };
        self.r[4] = self.r[1] & m;
        self.rip = self.r[2] & m;
        self.enter_level(3)
    }
}

fn far_size(i: &Instruction) -> usize {
    match i.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    }
}

fn counter_size(i: &Instruction) -> usize {
    use Code::*;
    match i.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 2,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX
        | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX
        | Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => 4,
        _ => 8,
    }
}

/// Immediate operand 0 if there is one.
trait ImmediateOrZero {
    fn immediate_or_zero(&self) -> u64;
}

impl ImmediateOrZero for Instruction {
    fn immediate_or_zero(&self) -> u64 {
        if self.op_count() > 0 && self.op0_kind() == OpKind::Immediate16 { self.immediate(0) } else { 0 }
    }
}
