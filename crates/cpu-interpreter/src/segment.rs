//! Segment loading, far transfers and the delivery of interrupts (SDM vol. 3A ch. 5 and 6).

mod interrupt;
mod plain;
mod task;
mod transfer;

use crate::core::Core;
use crate::flags;
use cpu::Fault;
use cpu::fault::vector;
use cpu::state::{Segment, TableRegister, seg};

pub use interrupt::Source;

/// A raw 8-byte descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    pub fn access(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }
    pub fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 32 & 0xff00_0000)
    }
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | (self.0 >> 32) as u32 & 0xf_0000;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    pub fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 0xf
    }
    pub fn is_system(self) -> bool {
        self.0 >> 44 & 1 == 0
    }
    pub fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }
    pub fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    pub fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }
    pub fn conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    pub fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    pub fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), access: self.access() }
    }
    // Call, interrupt and trap gates.
    pub fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }
    pub fn gate_offset(self) -> u64 {
        (self.0 & 0xffff) | (self.0 >> 32 & 0xffff_0000)
    }
}

impl Core {
    /// Where the descriptor of `selector` lies; `Err(())` outside of its table.
    pub(crate) fn descriptor_address(&self, selector: u16, size: u64) -> Result<u64, ()> {
        let (base, limit) = if selector & 4 != 0 {
            if self.st.ldtr.selector & 0xfffc == 0 && !self.st.ldtr.present() {
                return Err(());
            }
            (self.st.ldtr.base, u64::from(self.st.ldtr.limit))
        } else {
            (self.st.gdtr.base, u64::from(self.st.gdtr.limit))
        };
        let offset = u64::from(selector & 0xfff8);
        if offset + size - 1 > limit { Err(()) } else { Ok(base.wrapping_add(offset)) }
    }

    /// Reads the descriptor of `selector`, or faults with `vector` and the selector.
    pub fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Fault> {
        let at = self.descriptor_address(selector, 8).map_err(|()| Fault::selector(vector, selector))?;
        Ok(Descriptor(self.read_system(at, 8)?))
    }

    /// Sets the accessed bit of a code or data descriptor in memory.
    pub fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Result<Descriptor, Fault> {
        if descriptor.is_system() || descriptor.0 >> 40 & 1 != 0 {
            return Ok(descriptor);
        }
        if let Ok(at) = self.descriptor_address(selector, 8) {
            let long = self.long_mode();
            let at = if long { at } else { at & 0xffff_ffff };
            self.as_supervisor(|core| core.locked(at.wrapping_add(5), 1, |b| b | 1))?;
        }
        Ok(Descriptor(descriptor.0 | 1 << 40))
    }

    /// MOV/POP to ES, SS, DS, FS or GS.
    pub fn load_segment(&mut self, index: usize, selector: u16) -> Result<(), Fault> {
        if !self.protected() {
            let s = &mut self.st.seg[index];
            s.selector = selector;
            s.base = u64::from(selector) << 4;
            if self.st.rflags & flags::VM != 0 {
                s.limit = 0xffff;
                s.access = 0xf3;
            } else {
                s.access = s.access & !0x60 | 0x93;
            }
            self.mode_changed();
            return Ok(());
        }
        let loaded = if index == seg::SS {
            self.check_stack_segment(selector, self.cpl, vector::GP)?
        } else {
            self.check_data_segment(selector)?
        };
        self.st.seg[index] = loaded;
        self.mode_changed();
        Ok(())
    }

    fn check_data_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if selector & 0xfffc == 0 {
            // In 64-bit mode the base of a null segment is cleared too.
            return Ok(Segment { selector, base: 0, limit: 0, access: 0 });
        }
        let d = self.descriptor(selector, vector::GP)?;
        if d.is_system() || (d.is_code() && d.kind() & 2 == 0) {
            return Err(Fault::gp(selector));
        }
        let rpl = (selector & 3) as u8;
        if !(d.is_code() && d.conforming()) && rpl.max(self.cpl) > d.dpl() {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        Ok(self.mark_accessed(selector, d)?.segment(selector))
    }

    /// The checks of a stack segment for privilege `cpl`; `vector` is #GP or #TS.
    pub fn check_stack_segment(&mut self, selector: u16, cpl: u8, vector: u8) -> Result<Segment, Fault> {
        if selector & 0xfffc == 0 {
            let to_64bit = self.is_64bit() && cpl != 3 && (selector & 3) as u8 == cpl;
            if vector == cpu::fault::vector::GP && to_64bit {
                return Ok(Core::null_stack(selector, cpl));
            }
            return Err(Fault::coded(vector, 0));
        }
        let d = self.descriptor(selector, vector)?;
        let writable_data = !d.is_system() && !d.is_code() && d.kind() & 2 != 0;
        if (selector & 3) as u8 != cpl || !writable_data || d.dpl() != cpl {
            return Err(Fault::selector(vector, selector));
        }
        if !d.present() {
            return Err(Fault::selector(cpu::fault::vector::SS, selector));
        }
        Ok(self.mark_accessed(selector, d)?.segment(selector))
    }

    /// A null SS as 64-bit mode allows it: its DPL is the CPL.
    pub fn null_stack(selector: u16, cpl: u8) -> Segment {
        Segment { selector, base: 0, limit: 0, access: u16::from(cpl) << 5 }
    }

    /// Replaces CS; the CPL becomes `cpl`.
    pub fn set_code_segment(&mut self, selector: u16, d: Descriptor, cpl: u8) {
        self.st.seg[seg::CS] = d.segment(selector & 0xfffc | u16::from(cpl));
        self.cpl = cpl;
    }

    /// After a return to an outer level: data segments of inner levels become null.
    pub fn drop_inner_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.st.seg[index];
            let conforming = s.is_code_or_data() && s.kind() & 0xc == 0xc;
            if s.selector & 0xfffc == 0 {
                s.access = 0;
            } else if !conforming && s.dpl() < self.cpl {
                *s = Segment::default();
            }
        }
    }

    pub fn idt_entry(&mut self, vector: u8) -> Result<(u64, u64), Fault> {
        let wide = self.long_mode();
        let size: u64 = if wide { 16 } else { 8 };
        let offset = u64::from(vector) * size;
        let TableRegister { base, limit } = self.st.idtr;
        let fault = Fault::coded(cpu::fault::vector::GP, u32::from(vector) << 3 | 2);
        if offset + size - 1 > u64::from(limit) {
            return Err(fault);
        }
        let low = self.read_system(base.wrapping_add(offset), 8)?;
        let high = if wide { self.read_system(base.wrapping_add(offset + 8), 8)? } else { 0 };
        Ok((low, high))
    }
}
