//! Hardware task switches (SDM vol. 3A ch. 8).

use super::Descriptor;
use crate::core::Core;
use crate::flags::{self, mask};
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::{CR0_PG, CR0_TS};
use cpu::state::{Segment, seg};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Jump,
    Call,
    Return,
}

/// Offsets in a TSS, 32-bit and 16-bit form.
struct Layout {
    wide: bool,
}

impl Layout {
    fn size(&self) -> usize {
        if self.wide { 4 } else { 2 }
    }
    fn ip(&self) -> u64 {
        if self.wide { 0x20 } else { 0x0e }
    }
    fn registers(&self) -> u64 {
        if self.wide { 0x28 } else { 0x12 }
    }
    fn segments(&self) -> u64 {
        if self.wide { 0x48 } else { 0x22 }
    }
    fn segment_count(&self) -> usize {
        if self.wide { 6 } else { 4 }
    }
    fn ldt(&self) -> u64 {
        if self.wide { 0x60 } else { 0x2a }
    }
    fn min_limit(&self) -> u32 {
        if self.wide { 0x67 } else { 0x2b }
    }
}

const BUSY: u64 = 1 << 41;

impl Core {
    /// SS and ESP of level `cpl` from the current 16- or 32-bit TSS.
    pub fn tss_stack(&mut self, cpl: u8) -> Result<(u16, u64), Fault> {
        let wide = self.st.tr.kind() & 8 != 0;
        let (step, size) = if wide { (8, 4) } else { (4, 2) };
        let offset = u64::from(cpl) * step + if wide { 4 } else { 2 };
        if offset + step - 1 > u64::from(self.st.tr.limit) + if wide { 2 } else { 0 } {
            return Err(Fault::selector(vector::TS, self.st.tr.selector));
        }
        let base = self.st.tr.base;
        let sp = self.read_system(base.wrapping_add(offset), size)?;
        let ss = self.read_system(base.wrapping_add(offset + size as u64), 2)?;
        Ok((ss as u16, sp))
    }

    pub fn task_gate(&mut self, selector: u16, error: Option<u32>) -> Result<(), Fault> {
        self.switch(selector, Reason::Call)?;
        if let Some(code) = error {
            let size = if self.st.tr.kind() & 8 != 0 { 4 } else { 2 };
            self.push(size, u64::from(code))?;
        }
        Ok(())
    }

    pub fn task_jump(&mut self, selector: u16) -> Result<(), Fault> {
        self.switch(selector, Reason::Jump)
    }

    pub fn task_call(&mut self, selector: u16) -> Result<(), Fault> {
        self.switch(selector, Reason::Call)
    }

    pub fn task_return(&mut self) -> Result<(), Fault> {
        let link = self.read_system(self.st.tr.base, 2)? as u16;
        self.switch(link, Reason::Return)
    }

    fn switch(&mut self, selector: u16, reason: Reason) -> Result<(), Fault> {
        let bad = if reason == Reason::Return { vector::TS } else { vector::GP };
        if selector & 4 != 0 || selector & 0xfffc == 0 {
            return Err(Fault::selector(bad, selector));
        }
        let d = self.descriptor(selector, bad)?;
        let busy = d.kind() & 2 != 0;
        if !d.is_system() || !matches!(d.kind() & !2, 1 | 9) || busy != (reason == Reason::Return) {
            return Err(Fault::selector(bad, selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        let new = Layout { wide: d.kind() & 8 != 0 };
        if d.limit() < new.min_limit() {
            return Err(Fault::selector(vector::TS, selector));
        }
        let base = d.base();
        let image = self.read_task(&new, base)?;
        self.save_task(reason)?;
        if reason == Reason::Call {
            let old = u64::from(self.st.tr.selector);
            self.write_system(base, 2, old)?;
        }
        let old = self.st.tr.selector;
        if reason != Reason::Call {
            self.set_busy(old, false)?;
        }
        if reason != Reason::Return {
            self.set_busy(selector, true)?;
        }
        self.st.tr = Descriptor(d.0 | BUSY).segment(selector);
        self.st.cr0 |= CR0_TS;
        self.load_task(&new, &image, reason)
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> Result<(), Fault> {
        if let Ok(at) = self.descriptor_address(selector, 8) {
            let value = self.read_system(at.wrapping_add(5), 1)?;
            let value = if busy { value | 2 } else { value & !2 };
            self.write_system(at.wrapping_add(5), 1, value)?;
        }
        Ok(())
    }

    /// CR3, IP, FLAGS, eight registers, segments, LDT.
    fn read_task(&mut self, layout: &Layout, base: u64) -> Result<TaskImage, Fault> {
        let size = layout.size();
        let step = size as u64;
        let mut image = TaskImage::default();
        if layout.wide {
            image.cr3 = self.read_system(base.wrapping_add(0x1c), 4)?;
            image.trap = self.read_system(base.wrapping_add(0x64), 2)? & 1 != 0;
        }
        image.ip = self.read_system(base.wrapping_add(layout.ip()), size)?;
        image.flags = self.read_system(base.wrapping_add(layout.ip() + step), size)?;
        for k in 0..8 {
            image.gpr[k] = self.read_system(base.wrapping_add(layout.registers() + k as u64 * step), size)?;
        }
        for k in 0..layout.segment_count() {
            image.segments[k] =
                self.read_system(base.wrapping_add(layout.segments() + k as u64 * step), 2)? as u16;
        }
        image.ldt = self.read_system(base.wrapping_add(layout.ldt()), 2)? as u16;
        Ok(image)
    }

    fn save_task(&mut self, reason: Reason) -> Result<(), Fault> {
        let layout = Layout { wide: self.st.tr.kind() & 8 != 0 };
        let size = layout.size();
        let step = size as u64;
        let base = self.st.tr.base;
        let mut image = self.rflags();
        if reason == Reason::Return {
            image &= !flags::NT;
        }
        self.write_system(base.wrapping_add(layout.ip()), size, self.rip)?;
        self.write_system(base.wrapping_add(layout.ip() + step), size, image & mask(size))?;
        for k in 0..8 {
            let value = self.reg(k, size);
            self.write_system(base.wrapping_add(layout.registers() + u64::from(k) * step), size, value)?;
        }
        for k in 0..layout.segment_count() {
            let selector = u64::from(self.st.seg[k].selector);
            self.write_system(base.wrapping_add(layout.segments() + k as u64 * step), 2, selector)?;
        }
        Ok(())
    }

    fn load_task(&mut self, layout: &Layout, image: &TaskImage, reason: Reason) -> Result<(), Fault> {
        if layout.wide && self.st.cr0 & CR0_PG != 0 {
            self.st.cr3 = image.cr3;
            self.paging_changed();
            self.flush_tlbs(false);
        }
        let mut new_flags = image.flags & if layout.wide { 0x3f_7fd5 } else { 0x7fd5 };
        if reason == Reason::Call {
            new_flags |= flags::NT;
        }
        self.set_rflags(new_flags);
        let size = layout.size();
        for k in 0..8 {
            let high = if layout.wide { 0 } else { 0xffff_0000 };
            self.r[k] = image.gpr[k] & mask(size) | high;
        }
        self.rip = image.ip;
        for index in 0..6 {
            let selector = image.segments[index];
            self.st.seg[index] = Segment { selector, ..Segment::default() };
        }
        self.st.dr[7] &= !0x155;
        self.debug_changed();
        self.load_task_segments(image)?;
        if self.rip > u64::from(self.st.seg[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        if image.trap {
            self.pending_db |= 1 << 15;
        }
        Ok(())
    }

    fn load_task_segments(&mut self, image: &TaskImage) -> Result<(), Fault> {
        self.st.ldtr = Segment { selector: image.ldt, ..Segment::default() };
        if image.ldt & 0xfffc != 0 {
            let d = self.descriptor(image.ldt, vector::TS)?;
            if image.ldt & 4 != 0 || !d.is_system() || d.kind() != 2 || !d.present() {
                return Err(Fault::selector(vector::TS, image.ldt));
            }
            self.st.ldtr = d.segment(image.ldt);
        }
        if self.v86() {
            for (index, &selector) in image.segments.iter().enumerate() {
                let base = u64::from(selector) << 4;
                self.st.seg[index] = Segment { selector, base, limit: 0xffff, access: 0xf3 };
            }
            self.cpl = 3;
            self.mode_changed();
            return Ok(());
        }
        let cs = image.segments[seg::CS];
        let rpl = (cs & 3) as u8;
        if cs & 0xfffc == 0 {
            return Err(Fault::selector(vector::TS, cs));
        }
        let d = self.descriptor(cs, vector::TS)?;
        let allowed = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || !allowed {
            return Err(Fault::selector(vector::TS, cs));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, cs));
        }
        self.cpl = rpl;
        let d = self.mark_accessed(cs, d)?;
        self.set_code_segment(cs, d, rpl);
        self.mode_changed();
        let ss = self.check_stack_segment(image.segments[seg::SS], rpl, vector::TS)?;
        self.st.seg[seg::SS] = ss;
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            self.load_segment(index, image.segments[index]).map_err(|fault| {
                if fault.vector == vector::GP { Fault { vector: vector::TS, ..fault } } else { fault }
            })?;
        }
        self.mode_changed();
        Ok(())
    }
}

#[derive(Default)]
struct TaskImage {
    cr3: u64,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}
