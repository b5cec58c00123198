//! Moves, exchanges, stack and flag instructions.

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{self, AC, CF, DF, ID, IF, IOPL, NT, RF, VIF, VIP, VM, mask, of_add, of_sub, sx};
use crate::op::Op;
use cpu::Fault;
use cpu::paging::{CR4_PVI, CR4_VME};
use cpu::state::seg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// POPF's size from the mnemonic.
fn width(m: Mnemonic) -> usize {
    use Mnemonic::*;
    match m {
        Pushf | Popf | Pusha | Popa => 2,
        Pushfd | Popfd | Pushad | Popad => 4,
        _ => 8,
    }
}

impl Core {
    /// `None`: not one of these instructions.
    pub(super) fn data(&mut self, i: &Instruction, op: &Op, m: Mnemonic) -> Option<Done> {
        use Mnemonic::*;
        Some(match m {
            Mov => self.mov(i, op),
            Movzx | Movbe | Movnti => self.mov_plain(i, op),
            Movsx | Movsxd => self.mov_signed(i, op),
            Lea => {
                let offset = self.offset(op);
                self.write_register(i.op0_register(), offset & mask(i.op0_register().size()));
                Ok(Flow::Next)
            }
            Xchg => self.exchange(i, op),
            Xadd => self.exchange_add(i, op),
            Cmpxchg => self.compare_exchange(i, op),
            Cmpxchg8b | Cmpxchg16b => self.compare_exchange_pair(i, op),
            Bswap => {
                let size = i.op0_register().size();
                let a = self.read_register(i.op0_register());
                let r = match size {
                    8 => a.swap_bytes(),
                    4 => u64::from((a as u32).swap_bytes()),
                    _ => 0,
                };
                self.write_register(i.op0_register(), r);
                Ok(Flow::Next)
            }
            Push => self.push_operand(i, op),
            Pop => self.pop_operand(i, op),
            Pusha | Pushad => self.push_all(width(m)),
            Popa | Popad => self.pop_all(width(m)),
            Pushf | Pushfd | Pushfq => self.push_flags(width(m)),
            Popf | Popfd | Popfq => self.pop_flags(width(m)),
            Enter => self.enter(i),
            Leave => self.leave(i),
            Cbw | Cwde | Cdqe => {
                let size = [2, 4, 8][(m == Cwde) as usize + 2 * (m == Cdqe) as usize];
                let a = sx(self.reg(0, size / 2), size / 2);
                self.set_reg(0, size, a & mask(size));
                Ok(Flow::Next)
            }
            Cwd | Cdq | Cqo => {
                let size = [2, 4, 8][(m == Cdq) as usize + 2 * (m == Cqo) as usize];
                let sign = (sx(self.reg(0, size), size) as i64 >> 63) as u64;
                self.set_reg(2, size, sign & mask(size));
                Ok(Flow::Next)
            }
            Xlatb => self.xlat(op),
            Lahf => {
                let flags = self.arith() & 0xff | 2;
                let slot = &mut self.r[0];
                *slot = *slot & !0xff00 | flags << 8;
                Ok(Flow::Next)
            }
            Sahf => {
                let ah = self.r[0] >> 8 & 0xff;
                self.change_arith(flags::ARITH & 0xff, ah);
                Ok(Flow::Next)
            }
            Salc => {
                let al = if self.cf() { 0xff } else { 0 };
                self.set_reg(0, 1, al);
                Ok(Flow::Next)
            }
            Cmc | Clc | Stc => {
                let cf = match m {
                    Cmc => !self.cf(),
                    Clc => false,
                    _ => true,
                };
                self.aux = self.aux & !CF | u64::from(cf);
                Ok(Flow::Next)
            }
            Cld => {
                self.st.rflags &= !DF;
                Ok(Flow::Next)
            }
            Std => {
                self.st.rflags |= DF;
                Ok(Flow::Next)
            }
            Cli | Sti => self.interrupt_flag(m == Sti),
            Nop | Pause | Endbr64 | Endbr32 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2
            | Prefetch | Prefetchw | Prefetchwt1 | Reservednop
            // Without shadow stacks these are hint NOPs (unwinders execute them).
            | Rdsspd | Rdsspq => Ok(Flow::Next),
            Clflush | Clflushopt | Clwb => self.operand(op, 1, false).and_then(|linear| {
                self.read(linear, 1)?;
                Ok(Flow::Next)
            }),
            Lfence | Sfence | Mfence => {
                if m == Mfence {
                    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                }
                Ok(Flow::Next)
            }
            Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp
            | Setl | Setge | Setle | Setg => {
                let value = u64::from(self.cond(i.condition_code() as u8 - 1));
                self.put(i, op, 0, 1, value).map(|()| Flow::Next)
            }
            Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns | Cmovp
            | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => {
                let size = self.operand_size(i, 0);
                let take = self.cond(i.condition_code() as u8 - 1);
                self.get(i, op, 1, size).map(|value| {
                    let value = if take { value } else { self.read_register(i.op0_register()) };
                    self.write_register(i.op0_register(), value);
                    Flow::Next
                })
            }
            _ => return None,
        })
    }

    fn mov(&mut self, i: &Instruction, op: &Op) -> Done {
        for n in 0..2 {
            if i.op_kind(n) == OpKind::Register {
                let r = i.op_register(n);
                if r.is_segment_register() {
                    return self.mov_segment(i, op, n);
                }
                if r.is_cr() || r.is_dr() {
                    return self.mov_control(i, n);
                }
                if r.is_tr() {
                    return Err(Fault::UD);
                }
            }
        }
        let size = self.operand_size(i, 0);
        let value = self.get(i, op, 1, size)?;
        self.put(i, op, 0, size, value)?;
        Ok(Flow::Next)
    }

    fn mov_segment(&mut self, i: &Instruction, op: &Op, n: u32) -> Done {
        let index = super::seg_index(i.op_register(n));
        if n == 1 {
            let selector = u64::from(self.st.seg[index].selector);
            let size = if i.op0_kind() == OpKind::Register { i.op0_register().size() } else { 2 };
            self.put(i, op, 0, size, selector)?;
            return Ok(Flow::Next);
        }
        if index == seg::CS {
            return Err(Fault::UD);
        }
        let selector = if i.op1_kind() == OpKind::Register {
            self.read_register(i.op1_register()) as u16
        } else {
            self.get(i, op, 1, 2)? as u16
        };
        self.load_segment(index, selector)?;
        if index == seg::SS {
            self.st.interrupt_shadow = true;
        }
        Ok(Flow::End)
    }

    /// MOVZX, MOVBE, MOVNTI.
    fn mov_plain(&mut self, i: &Instruction, op: &Op) -> Done {
        let from = self.operand_size(i, 1);
        let size = self.operand_size(i, 0);
        let mut value = self.get(i, op, 1, from)? & mask(from);
        if i.mnemonic() == Mnemonic::Movbe {
            value = value.swap_bytes() >> (64 - size * 8);
        }
        self.put(i, op, 0, size, value)?;
        Ok(Flow::Next)
    }

    fn mov_signed(&mut self, i: &Instruction, op: &Op) -> Done {
        let from = self.operand_size(i, 1);
        let value = self.get(i, op, 1, from)?;
        let size = self.operand_size(i, 0);
        self.write_register(i.op0_register(), sx(value, from) & mask(size));
        Ok(Flow::Next)
    }

    fn exchange(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = self.operand_size(i, 0);
        let (register, value) = if i.op1_kind() == OpKind::Register {
            (i.op1_register(), self.read_register(i.op1_register()))
        } else {
            return Err(Fault::UD);
        };
        let old = self.modify(i, op, size, |_| value)?;
        self.write_register(register, old);
        Ok(Flow::Next)
    }

    fn exchange_add(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = self.operand_size(i, 0);
        let b = self.read_register(i.op1_register());
        let m = mask(size);
        let old = if i.op0_kind() == OpKind::Register {
            let a = self.read_register(i.op0_register());
            self.write_register(i.op1_register(), a);
            self.write_register(i.op0_register(), a.wrapping_add(b) & m);
            a
        } else {
            let a = self.modify(i, op, size, |a| a.wrapping_add(b) & m)?;
            self.write_register(i.op1_register(), a);
            a
        };
        self.set_lazy(of_add(old & m, b & m, old.wrapping_add(b) & m, size));
        Ok(Flow::Next)
    }

    fn compare_exchange(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = self.operand_size(i, 0);
        let expected = self.reg(0, size);
        let new = self.read_register(i.op1_register());
        let old = if i.op0_kind() == OpKind::Register {
            let old = self.read_register(i.op0_register());
            if old == expected {
                self.write_register(i.op0_register(), new);
            }
            old
        } else {
            self.modify(i, op, size, |a| if a == expected { new } else { a })?
        };
        if old != expected {
            // A register destination is not written, not even its upper half.
            self.set_reg(0, size, old);
        }
        self.set_lazy(of_sub(expected, old, expected.wrapping_sub(old) & mask(size), size));
        Ok(Flow::Next)
    }

    fn compare_exchange_pair(&mut self, i: &Instruction, op: &Op) -> Done {
        let half = if i.mnemonic() == Mnemonic::Cmpxchg16b { 8 } else { 4 };
        // As for vectors, alignment comes before whether the address is canonical.
        let base = self.sc[usize::from(op.seg & 7)].base;
        if half == 8 && base.wrapping_add(self.offset(op)) & 15 != 0 {
            return Err(Fault::GP0);
        }
        let linear = self.operand(op, half * 2, true)?;
        let expected = (self.reg(0, half), self.reg(2, half));
        let new = (self.reg(3, half), self.reg(1, half));
        let old = if half == 4 {
            let both = |(low, high): (u64, u64)| low | high << 32;
            let change = |a: u64| if a == both(expected) { both(new) } else { a };
            let old = if i.has_lock_prefix() {
                self.locked(linear, 8, change)?
            } else {
                let old = self.read_rmw(linear, 8)?;
                self.write(linear, 8, change(old))?;
                old
            };
            (old & 0xffff_ffff, old >> 32)
        } else {
            self.locked_pair(linear, expected, new)?
        };
        let equal = old == expected;
        if !equal {
            self.set_reg(0, half, old.0);
            self.set_reg(2, half, old.1);
        }
        self.change_arith(flags::ZF, if equal { flags::ZF } else { 0 });
        Ok(Flow::Next)
    }

    /// Bytes that PUSH and POP move for this instruction.
    fn stack_operand_size(&self, i: &Instruction) -> usize {
        (i.stack_pointer_increment().unsigned_abs() as usize).clamp(2, 8)
    }

    fn push_operand(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = self.stack_operand_size(i);
        let value = match i.op0_kind() {
            OpKind::Register if i.op0_register().is_segment_register() => {
                u64::from(self.st.seg[super::seg_index(i.op0_register())].selector)
            }
            OpKind::Register => self.read_register(i.op0_register()),
            OpKind::Memory => self.get(i, op, 0, size)?,
            _ => i.immediate(0),
        };
        self.push(size, value & mask(size))?;
        Ok(Flow::Next)
    }

    fn pop_operand(&mut self, i: &Instruction, op: &Op) -> Done {
        let size = self.stack_operand_size(i);
        if i.op0_kind() == OpKind::Register {
            let register = i.op0_register();
            if register.is_segment_register() {
                let selector = self.peek_stack(0, size.min(2))? as u16;
                let index = super::seg_index(register);
                let width = self.stack_size();
                self.load_segment(index, selector)?;
                let top = self.reg(4, width).wrapping_add(size as u64) & mask(width);
                self.set_pointer(4, width, top);
                if index == seg::SS {
                    self.st.interrupt_shadow = true;
                }
                return Ok(Flow::End);
            }
            let value = self.pop(size)?;
            self.write_register(register, value);
            return Ok(Flow::Next);
        }
        // The address is computed with RSP already incremented.
        let old = self.r[4];
        let value = self.pop(size)?;
        self.put(i, op, 0, size, value).inspect_err(|_| self.r[4] = old)?;
        Ok(Flow::Next)
    }

    fn push_all(&mut self, size: usize) -> Done {
        let width = self.stack_size();
        let bottom = self.reg(4, width).wrapping_sub(8 * size as u64) & mask(width);
        let values: [u64; 8] = std::array::from_fn(|n| self.reg(n as u8, size));
        let place = |n: usize| bottom.wrapping_add((7 - n as u64) * size as u64) & mask(width);
        for n in 0..values.len() {
            self.linear(seg::SS as u8, place(n), size, true)?;
        }
        // One after the other: what lies above a page that faults has been written.
        for (n, &value) in values.iter().enumerate() {
            let linear = self.linear(seg::SS as u8, place(n), size, true)?;
            self.write(linear, size, value)?;
        }
        self.set_pointer(4, width, bottom);
        Ok(Flow::Next)
    }

    fn pop_all(&mut self, size: usize) -> Done {
        let mut values = [0; 8];
        for (n, value) in values.iter_mut().enumerate().rev() {
            *value = self.peek_stack((7 - n as u64) * size as u64, size)?;
        }
        for (n, &value) in values.iter().enumerate() {
            if n != 4 {
                self.set_reg(n as u8, size, value);
            }
        }
        self.move_stack(8 * size as i64);
        Ok(Flow::Next)
    }

    fn push_flags(&mut self, size: usize) -> Done {
        let mut value = self.rflags() & !(RF | VM);
        if self.v86() && self.iopl() < 3 {
            if self.st.cr4 & CR4_VME == 0 || size != 2 {
                return Err(Fault::GP0);
            }
            value = value & !IF | IOPL | if value & VIF != 0 { IF } else { 0 };
        }
        self.push(size, value & mask(size))?;
        Ok(Flow::Next)
    }

    fn pop_flags(&mut self, size: usize) -> Done {
        let virtual_if = self.v86() && self.iopl() < 3;
        if virtual_if && (self.st.cr4 & CR4_VME == 0 || size != 2) {
            return Err(Fault::GP0);
        }
        let value = self.peek_stack(0, size)?;
        if virtual_if {
            let old = self.rflags();
            if value & flags::TF != 0 || (value & IF != 0 && old & VIP != 0) {
                return Err(Fault::GP0);
            }
            self.move_stack(2);
            let change = 0xffff & !(IF | IOPL);
            let new = old & !(change | VIF) | value & change | if value & IF != 0 { VIF } else { 0 };
            self.set_rflags(new);
        } else {
            self.move_stack(size as i64);
            self.write_flags(value, size);
        }
        self.mode_changed();
        Ok(Flow::End)
    }

    /// Loads RFLAGS as POPF does at the present privilege.
    pub fn write_flags(&mut self, value: u64, size: usize) {
        let mut change = flags::ARITH | flags::TF | DF | NT | AC | ID | RF;
        if self.cpl == 0 || !self.protected() && !self.v86() {
            change |= IOPL;
        }
        if self.cpl <= self.iopl() {
            change |= IF;
        }
        change &= mask(size);
        let new = self.rflags() & !(change | RF) | value & change & !RF;
        self.set_rflags(new);
    }

    fn interrupt_flag(&mut self, on: bool) -> Done {
        let old = self.st.rflags;
        if self.st.cr0 & 1 != 0 && self.cpl > self.iopl() {
            let vme = self.v86() && self.st.cr4 & CR4_VME != 0;
            let pvi = !self.v86() && self.cpl == 3 && self.st.cr4 & CR4_PVI != 0;
            if !(vme || pvi) || (on && old & VIP != 0) {
                return Err(Fault::GP0);
            }
            self.st.rflags = if on { old | VIF } else { old & !VIF };
            return Ok(Flow::Next);
        }
        if on {
            self.st.rflags |= IF;
            self.st.interrupt_shadow = old & IF == 0;
            return Ok(Flow::End);
        }
        self.st.rflags &= !IF;
        Ok(Flow::Next)
    }

    fn enter(&mut self, i: &Instruction) -> Done {
        let size = match i.mnemonic() {
            _ if matches!(i.code(), iced_x86::Code::Enterw_imm16_imm8) => 2,
            _ if matches!(i.code(), iced_x86::Code::Enterd_imm16_imm8) => 4,
            _ => 8,
        };
        let (room, level) = (i.immediate(0) & 0xffff, i.immediate(1) & 31);
        let width = self.stack_size();
        let wide = mask(width);
        let mut top = self.reg(4, width);
        let mut frame = self.reg(5, width);
        let mut pushes = vec![self.reg(5, size)];
        let first = top.wrapping_sub(size as u64) & wide;
        for _ in 1..level {
            frame = frame.wrapping_sub(size as u64) & wide;
            let linear = self.linear(seg::SS as u8, frame, size, false)?;
            pushes.push(self.read(linear, size)?);
        }
        if level > 0 {
            pushes.push(first & mask(size));
        }
        for value in pushes {
            top = top.wrapping_sub(size as u64) & wide;
            let linear = self.linear(seg::SS as u8, top, size, true)?;
            self.write(linear, size, value)?;
        }
        top = top.wrapping_sub(room) & wide;
        let linear = self.linear(seg::SS as u8, top, size.min(width), true)?;
        self.probe_write(linear, size.min(width))?;
        self.set_reg(5, if width == 8 { 8 } else { size }, first);
        self.set_pointer(4, width, top);
        Ok(Flow::Next)
    }

    fn leave(&mut self, i: &Instruction) -> Done {
        let size = match i.code() {
            iced_x86::Code::Leavew => 2,
            iced_x86::Code::Leaved => 4,
            _ => 8,
        };
        let width = self.stack_size();
        let at = self.reg(5, width);
        let linear = self.linear(seg::SS as u8, at, size, false)?;
        let value = self.read(linear, size)?;
        self.set_pointer(4, width, at.wrapping_add(size as u64) & mask(width));
        self.set_reg(5, size, value);
        Ok(Flow::Next)
    }

    fn xlat(&mut self, op: &Op) -> Done {
        let sum = self.r[3].wrapping_add(self.reg(0, 1));
        let offset = sum << (op.cut & 63) >> (op.cut & 63);
        let linear = self.linear(op.seg, offset, 1, false)?;
        let value = self.read(linear, 1)?;
        self.set_reg(0, 1, value);
        Ok(Flow::Next)
    }

    /// CMPXCHG16B; returns the old (low, high).
    fn locked_pair(
        &mut self,
        linear: u64,
        expected: (u64, u64),
        new: (u64, u64),
    ) -> Result<(u64, u64), Fault> {
        use crate::memory_access::Place;
        match self.place(linear, true)? {
            Place::Ram { page, block, offset } => {
                let (old, _) = page.compare_exchange_16((linear & 0xfff) as usize, expected, new);
                self.note_write(block, offset, 16);
                Ok(old)
            }
            Place::Io(_) => {
                let old = (self.read(linear, 8)?, self.read(linear.wrapping_add(8), 8)?);
                let value = if old == expected { new } else { old };
                self.write(linear, 8, value.0)?;
                self.write(linear.wrapping_add(8), 8, value.1)?;
                Ok(old)
            }
        }
    }

    /// The segment that a string or memory operand uses by default or override.
    pub fn source_segment(i: &Instruction) -> u8 {
        match i.segment_prefix() {
            Register::None => seg::DS as u8,
            r if i.code_size() == iced_x86::CodeSize::Code64 && !matches!(r, Register::FS | Register::GS) => {
                seg::DS as u8
            }
            r => super::seg_index(r) as u8,
        }
    }
}
