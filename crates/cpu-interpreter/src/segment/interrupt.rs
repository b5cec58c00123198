//! Delivery of interrupts and exceptions, and IRET.

use super::Descriptor;
use crate::core::Core;
use crate::exec::{Done, Flow};
use crate::flags::{self, mask};
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::CR4_VME;
use cpu::state::{Segment, seg};

/// What caused a delivery: it decides privilege checks and the EXT bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An exception, NMI or external interrupt.
    Hardware,
    /// INT n.
    Software,
    /// INT3, INTO: privilege checks, but not V86 IOPL checks.
    Trap,
    /// INT1 (ICEBP).
    Icebp,
}

impl Source {
    fn checks_dpl(self) -> bool {
        matches!(self, Source::Software | Source::Trap)
    }

    /// Adds EXT to the error code of a fault during this delivery.
    fn extend(self, fault: Fault) -> Fault {
        let hardware = matches!(self, Source::Hardware | Source::Icebp);
        match fault.vector {
            vector::TS | vector::NP | vector::SS | vector::GP if hardware => {
                Fault { error: fault.error.map(|code| code | 1), ..fault }
            }
            _ => fault,
        }
    }
}

/// Where a gate leads.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of each pushed item.
    size: usize,
    is_trap: bool,
    stack_index: u8,
}

impl Core {
    /// Transfers to the handler of `vector`; `rip` must be the value to push. On `Err`
    /// nothing has changed (but memory below the new stack pointer).
    pub fn interrupt(&mut self, vector: u8, error: Option<u32>, source: Source) -> Result<(), Fault> {
        let result = if !self.protected() && !self.v86() {
            self.interrupt_real(vector)
        } else {
            self.interrupt_protected(vector, error, source)
        };
        result.map_err(|fault| source.extend(fault))
    }

    fn interrupt_real(&mut self, vector: u8) -> Result<(), Fault> {
        let offset = u64::from(vector) * 4;
        if offset + 3 > u64::from(self.st.idtr.limit) {
            return Err(Fault::coded(cpu::fault::vector::GP, 0));
        }
        let entry = self.read_system(self.st.idtr.base.wrapping_add(offset), 4)?;
        let old = self.r[4];
        let items = [self.rflags(), u64::from(self.st.seg[seg::CS].selector), self.rip];
        for item in items {
            self.push(2, item & 0xffff).inspect_err(|_| self.r[4] = old)?;
        }
        let selector = (entry >> 16) as u16;
        let cs = &mut self.st.seg[seg::CS];
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        self.rip = entry & 0xffff;
        self.st.rflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
        self.mode_changed();
        Ok(())
    }

    fn interrupt_protected(&mut self, vector: u8, error: Option<u32>, source: Source) -> Result<(), Fault> {
        if self.v86() && source == Source::Software {
            if self.st.cr4 & CR4_VME != 0 && self.redirect_v86(vector)? {
                return Ok(());
            }
            if self.iopl() < 3 {
                return Err(Fault::GP0);
            }
        }
        let long = self.long_mode();
        let here = Fault::coded(cpu::fault::vector::GP, u32::from(vector) << 3 | 2);
        let (low, high) = self.idt_entry(vector)?;
        let d = Descriptor(low);
        let kind = d.kind();
        let known = d.is_system() && (matches!(kind, 0xe | 0xf) || !long && matches!(kind, 5..=7));
        if !known {
            return Err(here);
        }
        if source.checks_dpl() && d.dpl() < self.cpl {
            return Err(here);
        }
        if !d.present() {
            return Err(Fault { vector: cpu::fault::vector::NP, ..here });
        }
        if kind == 5 {
            return self.task_gate(d.gate_selector(), error);
        }
        let gate = Gate {
            selector: d.gate_selector(),
            offset: d.gate_offset() | if long { high << 32 } else { 0 },
            size: if long {
                8
            } else if kind >= 0xe {
                4
            } else {
                2
            },
            is_trap: kind & 1 != 0,
            stack_index: if long { (low >> 32) as u8 & 7 } else { 0 },
        };
        self.through_gate(&gate, error)
    }

    fn through_gate(&mut self, gate: &Gate, error: Option<u32>) -> Result<(), Fault> {
        let selector = gate.selector;
        if selector & 0xfffc == 0 {
            return Err(Fault::GP0);
        }
        let d = self.descriptor(selector, vector::GP)?;
        if !d.is_code() || d.dpl() > self.cpl {
            return Err(Fault::gp(selector));
        }
        let long = self.long_mode();
        if long && (!d.long() || d.big()) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        let target = if d.conforming() { self.cpl } else { d.dpl() };
        if self.v86() && target != 0 {
            return Err(Fault::gp(selector));
        }
        if long && !Core::canonical(gate.offset) || !long && gate.offset > u64::from(d.limit()) {
            return Err(Fault::GP0);
        }
        let d = self.mark_accessed(selector, d)?;
        let inner = target < self.cpl;
        let (stack, top) = self.new_stack(gate, target, inner)?;
        let top = self.push_frame(gate, stack.as_ref(), top, error)?;
        if self.v86() {
            for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.st.seg[index] = Segment::default();
            }
        }
        if let Some(stack) = stack {
            self.st.seg[seg::SS] = stack;
        }
        self.set_code_segment(selector, d, target);
        if !gate.is_trap {
            self.st.rflags &= !flags::IF;
        }
        self.st.rflags &= !(flags::TF | flags::NT | flags::RF | flags::VM);
        self.rip = gate.offset;
        self.mode_changed();
        let width = self.stack_size();
        self.set_pointer(4, width, top);
        Ok(())
    }

    /// The stack to push on: a new segment (if SS changes) and its pointer.
    fn new_stack(&mut self, gate: &Gate, target: u8, inner: bool) -> Result<(Option<Segment>, u64), Fault> {
        if self.long_mode() {
            let top = if gate.stack_index != 0 {
                self.tss_stack_64(gate.stack_index + 3)?
            } else if inner {
                self.tss_stack_64(target)?
            } else {
                self.r[4]
            } & !15;
            let stack = inner.then(|| Core::null_stack(u16::from(target), target));
            return Ok((stack, top));
        }
        if !inner {
            return Ok((None, self.reg(4, self.stack_size())));
        }
        let (selector, top) = self.tss_stack(target)?;
        let stack = self.check_stack_segment(selector, target, vector::TS)?;
        Ok((Some(stack), top))
    }

    /// RSPn (index 0-2) or ISTn (index 4-10, as n + 3) of a 64-bit TSS.
    fn tss_stack_64(&mut self, index: u8) -> Result<u64, Fault> {
        let offset = 4 + 8 * u64::from(index);
        let selector = self.st.tr.selector;
        if offset + 7 > u64::from(self.st.tr.limit) {
            return Err(Fault::selector(vector::TS, selector));
        }
        let top = self.read_system(self.st.tr.base.wrapping_add(offset), 8)?;
        if Core::canonical(top) { Ok(top) } else { Err(Fault::SS0) }
    }

    /// Pushes the interrupt frame on `stack` (or SS) from `top`; returns the new pointer.
    fn push_frame(
        &mut self,
        gate: &Gate,
        stack: Option<&Segment>,
        top: u64,
        error: Option<u32>,
    ) -> Result<u64, Fault> {
        let s = |index: usize| u64::from(self.st.seg[index].selector);
        let size = gate.size;
        let mut items = [0u64; 10];
        let mut count = 0;
        let mut add = |value: u64| {
            items[count] = value;
            count += 1;
        };
        if self.v86() {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                add(s(index));
            }
        }
        if stack.is_some() || size == 8 {
            add(s(seg::SS));
            add(self.r[4]);
        }
        let image = self.rflags();
        add(image);
        add(s(seg::CS));
        add(self.rip);
        if let Some(code) = error {
            add(u64::from(code));
        }
        self.push_items(stack, top, size, &items[..count])
    }

    /// Pushes items on another stack at its privilege; all are checked before one is written.
    pub fn push_items(
        &mut self,
        stack: Option<&Segment>,
        top: u64,
        size: usize,
        items: &[u64],
    ) -> Result<u64, Fault> {
        let s = *stack.unwrap_or(&self.st.seg[seg::SS]);
        let long = self.long_mode() && size == 8;
        let width = if long {
            8
        } else if s.big() {
            4
        } else {
            2
        };
        let wide = mask(width);
        let fault = if stack.is_some() { Fault::selector(vector::SS, s.selector) } else { Fault::SS0 };
        let user = s.dpl() == 3 && self.cpl == 3 && stack.is_none();
        let view = self.view;
        if !user {
            self.set_view(crate::tlb::View::Supervisor);
        }
        let result = (|| {
            for write in [false, true] {
                let mut at = top;
                for &item in items {
                    at = at.wrapping_sub(size as u64) & wide;
                    let linear = if long {
                        if !Core::canonical(at) {
                            return Err(Fault::SS0);
                        }
                        at
                    } else {
                        let expand_down = s.kind() & 4 != 0 && self.protected();
                        let last = at + size as u64 - 1;
                        let limit = u64::from(s.limit);
                        let bad = if expand_down { at <= limit || last > wide } else { last > limit };
                        if bad {
                            return Err(fault);
                        }
                        s.base.wrapping_add(at) & 0xffff_ffff
                    };
                    if write {
                        self.write(linear, size, item & mask(size))?;
                    } else {
                        self.probe_write(linear, size)?;
                    }
                }
            }
            let pushed = (items.len() * size) as u64;
            Ok(top.wrapping_sub(pushed) & wide)
        })();
        self.set_view(view);
        result
    }

    /// INT n in V86 mode with VME: redirected through the 8086 vector table if the TSS's
    /// bitmap says so (SDM vol. 3B §21.3).
    fn redirect_v86(&mut self, vector: u8) -> Result<bool, Fault> {
        let map = self.read_system(self.st.tr.base.wrapping_add(0x66), 2)?;
        let at = map.wrapping_sub(32).wrapping_add(u64::from(vector / 8));
        if map < 32 || at > u64::from(self.st.tr.limit) {
            return Ok(false);
        }
        let byte = self.read_system(self.st.tr.base.wrapping_add(at), 1)?;
        if byte >> (vector & 7) & 1 != 0 {
            return Ok(false);
        }
        let entry = self.read(u64::from(vector) * 4, 4)?;
        let mut image = self.rflags() & 0xffff;
        if self.iopl() < 3 {
            let vif = self.st.rflags & flags::VIF != 0;
            image = image & !flags::IF | flags::IOPL | if vif { flags::IF } else { 0 };
        }
        let old = self.r[4];
        for item in [image, u64::from(self.st.seg[seg::CS].selector), self.rip] {
            self.push(2, item & 0xffff).inspect_err(|_| self.r[4] = old)?;
        }
        let clear = if self.iopl() < 3 { flags::VIF } else { flags::IF };
        self.st.rflags &= !(clear | flags::TF | flags::NT);
        let selector = (entry >> 16) as u16;
        self.st.seg[seg::CS].selector = selector;
        self.st.seg[seg::CS].base = u64::from(selector) << 4;
        self.rip = entry & 0xffff;
        self.mode_changed();
        Ok(true)
    }

    // ---- IRET ----

    pub fn iret(&mut self, size: usize) -> Done {
        let result = if self.v86() {
            self.iret_v86(size)
        } else if !self.protected() {
            self.iret_real(size)
        } else {
            self.iret_protected(size)
        };
        result?;
        self.st.nmi_blocked = false;
        self.mode_changed();
        Ok(Flow::Branch)
    }

    fn iret_real(&mut self, size: usize) -> Result<(), Fault> {
        let step = size as u64;
        let ip = self.peek_stack(0, size)?;
        let cs = self.peek_stack(step, size)? as u16;
        let image = self.peek_stack(2 * step, size)?;
        if ip > u64::from(self.st.seg[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        self.move_stack(3 * size as i64);
        self.st.seg[seg::CS].selector = cs;
        self.st.seg[seg::CS].base = u64::from(cs) << 4;
        self.rip = ip;
        let keep = if size == 2 { 0xffff_0000 } else { flags::VM | flags::VIF | flags::VIP };
        let new = self.rflags() & keep | image & !keep & 0x25_7fd5;
        self.set_rflags(new);
        Ok(())
    }

    fn iret_v86(&mut self, size: usize) -> Result<(), Fault> {
        let vme = self.st.cr4 & CR4_VME != 0 && size == 2;
        if self.iopl() < 3 && !vme {
            return Err(Fault::GP0);
        }
        let step = size as u64;
        let ip = self.peek_stack(0, size)?;
        let cs = self.peek_stack(step, size)? as u16;
        let image = self.peek_stack(2 * step, size)?;
        if ip > 0xffff {
            return Err(Fault::GP0);
        }
        let old = self.rflags();
        let new = if self.iopl() < 3 {
            if image & flags::TF != 0 || image & flags::IF != 0 && old & flags::VIP != 0 {
                return Err(Fault::GP0);
            }
            let vif = if image & flags::IF != 0 { flags::VIF } else { 0 };
            let change = 0x7fd5 & !(flags::IF | flags::IOPL);
            old & !(change | flags::VIF) | image & change | vif
        } else {
            let change = 0x25_7fd5 & mask(size) & !(flags::IOPL | flags::VM);
            old & !change | image & change
        };
        self.move_stack(3 * size as i64);
        self.st.seg[seg::CS].selector = cs;
        self.st.seg[seg::CS].base = u64::from(cs) << 4;
        self.rip = ip;
        self.set_rflags(new);
        Ok(())
    }

    fn iret_protected(&mut self, size: usize) -> Result<(), Fault> {
        if self.st.rflags & flags::NT != 0 {
            if self.long_mode() {
                return Err(Fault::GP0);
            }
            return self.task_return();
        }
        let step = size as u64;
        let ip = self.peek_stack(0, size)?;
        let selector = self.peek_stack(step, size)? as u16;
        let image = self.peek_stack(2 * step, size)?;
        if !self.long_mode() && image & flags::VM != 0 && self.cpl == 0 && size == 4 {
            return self.iret_to_v86(ip, selector, image);
        }
        let (d, rpl) = self.check_return_code(selector)?;
        self.check_return_target(d, ip)?;
        let outer = rpl > self.cpl;
        let from_64 = self.is_64bit();
        let new_stack = if outer || from_64 {
            let sp = self.peek_stack(3 * step, size)?;
            let ss = self.peek_stack(4 * step, size)? as u16;
            Some((sp, self.check_return_stack(ss, rpl, d.long() && self.long_mode())?))
        } else {
            None
        };
        let d = self.mark_accessed(selector, d)?;
        let change = self.iret_changes(size);
        let new = self.rflags() & !change | image & change;
        match new_stack {
            Some((sp, ss)) => {
                self.st.seg[seg::SS] = ss;
                self.set_code_segment(selector, d, rpl);
                self.rip = ip;
                self.set_rflags(new);
                self.mode_changed();
                let width = if size == 8 && !self.is_64bit() && !ss.big() { 2 } else { self.stack_size() };
                self.set_pointer(4, width, sp & mask(width));
                if outer {
                    self.drop_inner_segments();
                }
            }
            None => {
                self.move_stack(3 * size as i64);
                self.set_code_segment(selector, d, rpl);
                self.rip = ip;
                self.set_rflags(new);
            }
        }
        Ok(())
    }

    /// The RFLAGS bits that IRET loads at the present privilege.
    pub(super) fn iret_changes(&self, size: usize) -> u64 {
        let mut change = flags::ARITH | flags::TF | flags::DF | flags::NT | flags::RF | flags::AC | flags::ID;
        if self.cpl <= self.iopl() {
            change |= flags::IF;
        }
        if self.cpl == 0 {
            change |= flags::IOPL | flags::VIF | flags::VIP;
        }
        if size == 2 { change & 0xffff } else { change }
    }

    fn iret_to_v86(&mut self, ip: u64, cs: u16, image: u64) -> Result<(), Fault> {
        let sp = self.peek_stack(12, 4)?;
        let mut selectors = [0u16; 6];
        for (depth, index) in [(16, seg::SS), (20, seg::ES), (24, seg::DS), (28, seg::FS), (32, seg::GS)] {
            selectors[index] = self.peek_stack(depth, 4)? as u16;
        }
        selectors[seg::CS] = cs;
        for (index, &selector) in selectors.iter().enumerate() {
            self.st.seg[index] =
                Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3 };
        }
        self.set_rflags(image & 0x3f_7fd5);
        self.cpl = 3;
        self.rip = ip & 0xffff;
        self.r[4] = sp;
        Ok(())
    }
}
