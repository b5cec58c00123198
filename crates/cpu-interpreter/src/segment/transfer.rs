//! Far jumps, calls and returns (SDM vol. 3A §5.8).

use super::Descriptor;
use crate::core::Core;
use crate::exec::{Done, Flow};
use crate::flags::mask;
use cpu::Fault;
use cpu::fault::vector;
use cpu::state::{Segment, seg};

impl Core {
    fn real_far(&mut self, selector: u16, offset: u64) -> Result<(), Fault> {
        if offset > u64::from(self.st.seg[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        let cs = &mut self.st.seg[seg::CS];
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        if self.st.cr0 & 1 == 0 {
            self.st.seg[seg::CS].access = self.st.seg[seg::CS].access & !0x60 | 0x9b;
        }
        self.rip = offset;
        self.mode_changed();
        Ok(())
    }

    /// JMP far; `rip` is the next instruction.
    pub fn far_jump(&mut self, selector: u16, offset: u64, size: usize) -> Done {
        if !self.protected() {
            self.real_far(selector, offset & mask(size))?;
            return Ok(Flow::Branch);
        }
        if selector & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let d = self.descriptor(selector, vector::GP)?;
        if !d.is_system() {
            self.check_direct_code(selector, d)?;
            self.check_return_target(d, offset & mask(size))?;
            let d = self.mark_accessed(selector, d)?;
            self.set_code_segment(selector, d, self.cpl);
            self.rip = offset & mask(size);
            self.mode_changed();
            return Ok(Flow::Branch);
        }
        self.check_gate(selector, d)?;
        match d.kind() {
            1 | 9 if !self.long_mode() => self.task_jump(selector)?,
            5 if !self.long_mode() => self.task_jump(d.gate_selector())?,
            4 | 12 => {
                let (code, target, at) = self.gate_target(selector, d)?;
                let (_, cpl) = self.check_gate_code(code, target, true)?;
                self.check_return_target(target, at)?;
                let target = self.mark_accessed(code, target)?;
                self.set_code_segment(code, target, cpl);
                self.rip = at;
                self.mode_changed();
            }
            _ => return Err(Fault::gp(selector)),
        }
        Ok(Flow::Branch)
    }

    /// A code segment reached directly, without a gate.
    fn check_direct_code(&self, selector: u16, d: Descriptor) -> Result<(), Fault> {
        let rpl = (selector & 3) as u8;
        let allowed =
            if d.conforming() { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
        if !d.is_code() || !allowed || self.long_mode() && d.long() && d.big() {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        Ok(())
    }

    fn check_gate(&self, selector: u16, d: Descriptor) -> Result<(), Fault> {
        let known = match d.kind() {
            1 | 4 | 5 | 9 => !self.long_mode(),
            12 => true,
            _ => false,
        };
        if !known || d.dpl() < self.cpl || d.dpl() < (selector & 3) as u8 {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        Ok(())
    }

    /// Code selector, descriptor and offset behind a call gate.
    fn gate_target(&mut self, selector: u16, d: Descriptor) -> Result<(u16, Descriptor, u64), Fault> {
        let mut offset = d.gate_offset();
        if d.kind() == 4 {
            offset &= 0xffff;
        }
        if self.long_mode() {
            let at = self.descriptor_address(selector, 16).map_err(|()| Fault::gp(selector))?;
            let high = self.read_system(at.wrapping_add(8), 8)?;
            if high >> 40 & 0x1f != 0 {
                return Err(Fault::gp(selector));
            }
            offset |= high << 32;
        }
        let code = d.gate_selector();
        if code & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let target = self.descriptor(code, vector::GP)?;
        Ok((code, target, offset))
    }

    /// (goes to an inner level, new CPL).
    fn check_gate_code(&self, code: u16, d: Descriptor, jump: bool) -> Result<(bool, u8), Fault> {
        let bad = !d.is_code()
            || d.dpl() > self.cpl
            || jump && !d.conforming() && d.dpl() != self.cpl
            || self.long_mode() && (!d.long() || d.big());
        if bad {
            return Err(Fault::gp(code));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, code));
        }
        let inner = !d.conforming() && d.dpl() < self.cpl;
        Ok((inner, if inner { d.dpl() } else { self.cpl }))
    }

    /// Whether `offset` may be the new instruction pointer in code segment `d`.
    pub fn check_return_target(&self, d: Descriptor, offset: u64) -> Result<(), Fault> {
        let ok = if self.long_mode() && d.long() {
            Core::canonical(offset)
        } else {
            offset & 0xffff_ffff <= u64::from(d.limit())
        };
        if ok { Ok(()) } else { Err(Fault::GP0) }
    }

    /// CALL far; `rip` is the return address.
    pub fn far_call(&mut self, selector: u16, offset: u64, size: usize) -> Done {
        let return_items = [u64::from(self.st.seg[seg::CS].selector), self.rip];
        if !self.protected() {
            if offset & mask(size) > u64::from(self.st.seg[seg::CS].limit) {
                return Err(Fault::GP0);
            }
            self.push_pair(size, return_items)?;
            self.real_far(selector, offset & mask(size))?;
            return Ok(Flow::Branch);
        }
        if selector & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let d = self.descriptor(selector, vector::GP)?;
        if !d.is_system() {
            self.check_direct_code(selector, d)?;
            self.check_return_target(d, offset & mask(size))?;
            let d = self.mark_accessed(selector, d)?;
            self.push_pair(size, return_items)?;
            self.set_code_segment(selector, d, self.cpl);
            self.rip = offset & mask(size);
            self.mode_changed();
            return Ok(Flow::Branch);
        }
        self.check_gate(selector, d)?;
        match d.kind() {
            1 | 9 if !self.long_mode() => self.task_call(selector)?,
            5 if !self.long_mode() => self.task_call(d.gate_selector())?,
            4 | 12 => self.call_gate(selector, d)?,
            _ => return Err(Fault::gp(selector)),
        }
        Ok(Flow::Branch)
    }

    fn push_pair(&mut self, size: usize, items: [u64; 2]) -> Result<(), Fault> {
        let width = self.stack_size();
        let top = self.reg(4, width);
        let mut at = top;
        for write in [false, true] {
            at = top;
            for item in items {
                at = at.wrapping_sub(size as u64) & mask(width);
                let linear = self.linear(seg::SS as u8, at, size, true)?;
                if write {
                    self.write(linear, size, item & mask(size))?;
                } else {
                    self.probe_write(linear, size)?;
                }
            }
        }
        self.set_pointer(4, width, at);
        Ok(())
    }

    fn call_gate(&mut self, selector: u16, d: Descriptor) -> Result<(), Fault> {
        let (code, target, offset) = self.gate_target(selector, d)?;
        let (inner, cpl) = self.check_gate_code(code, target, false)?;
        self.check_return_target(target, offset)?;
        let size = if self.long_mode() {
            8
        } else if d.kind() == 12 {
            4
        } else {
            2
        };
        let return_items = [u64::from(self.st.seg[seg::CS].selector), self.rip];
        let target = self.mark_accessed(code, target)?;
        if !inner {
            self.push_pair(size, return_items)?;
            self.set_code_segment(code, target, cpl);
            self.rip = offset;
            self.mode_changed();
            return Ok(());
        }
        let mut items = vec![u64::from(self.st.seg[seg::SS].selector), self.r[4]];
        let (stack, top) = if self.long_mode() {
            let top = self.inner_stack_64(cpl)?;
            (Core::null_stack(u16::from(cpl), cpl), top)
        } else {
            let count = (d.0 >> 32 & 31) as usize;
            for k in (0..count).rev() {
                let value = self.peek_stack((k * size) as u64, size)?;
                items.push(value);
            }
            let (ss, top) = self.tss_stack(cpl)?;
            (self.check_stack_segment(ss, cpl, vector::TS)?, top)
        };
        items.extend(return_items);
        let top = self.push_items(Some(&stack), top, size, &items)?;
        self.st.seg[seg::SS] = stack;
        self.set_code_segment(code, target, cpl);
        self.rip = offset;
        self.mode_changed();
        self.set_pointer(4, self.stack_size(), top);
        Ok(())
    }

    fn inner_stack_64(&mut self, cpl: u8) -> Result<u64, Fault> {
        let at = self.st.tr.base.wrapping_add(4 + 8 * u64::from(cpl));
        let top = self.read_system(at, 8)?;
        if Core::canonical(top) { Ok(top) } else { Err(Fault::SS0) }
    }

    /// The code segment of a far return or IRET: (descriptor, RPL).
    pub fn check_return_code(&mut self, selector: u16) -> Result<(Descriptor, u8), Fault> {
        if selector & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let d = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        let allowed = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || rpl < self.cpl || !allowed || self.long_mode() && d.long() && d.big() {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        Ok((d, rpl))
    }

    /// The stack segment of a return to privilege `rpl`.
    pub fn check_return_stack(&mut self, selector: u16, rpl: u8, to_64: bool) -> Result<Segment, Fault> {
        if selector & 0xfffc == 0 {
            if to_64 && rpl != 3 {
                return Ok(Core::null_stack(selector, rpl));
            }
            return Err(Fault::GP0);
        }
        self.check_stack_segment(selector, rpl, vector::GP)
    }

    /// RETF, releasing `room` bytes of arguments.
    pub fn far_return(&mut self, size: usize, _has_room: bool, room: u64) -> Done {
        let step = size as u64;
        let offset = self.peek_stack(0, size)?;
        let selector = self.peek_stack(step, size)? as u16;
        let room = room & 0xffff;
        if !self.protected() {
            if offset > u64::from(self.st.seg[seg::CS].limit) {
                return Err(Fault::GP0);
            }
            self.move_stack((2 * step + room) as i64);
            self.real_far(selector, offset)?;
            return Ok(Flow::Branch);
        }
        let (d, rpl) = self.check_return_code(selector)?;
        self.check_return_target(d, offset)?;
        if rpl == self.cpl {
            let d = self.mark_accessed(selector, d)?;
            self.move_stack((2 * step + room) as i64);
            self.set_code_segment(selector, d, rpl);
            self.rip = offset;
            self.mode_changed();
            return Ok(Flow::Branch);
        }
        let sp = self.peek_stack(2 * step + room, size)?;
        let ss = self.peek_stack(3 * step + room, size)? as u16;
        let stack = self.check_return_stack(ss, rpl, d.long() && self.long_mode())?;
        let d = self.mark_accessed(selector, d)?;
        self.st.seg[seg::SS] = stack;
        self.set_code_segment(selector, d, rpl);
        self.rip = offset;
        self.mode_changed();
        let width = self.stack_size();
        self.set_pointer(4, width, sp.wrapping_add(room) & mask(width));
        self.drop_inner_segments();
        self.mode_changed();
        Ok(Flow::Branch)
    }
}
