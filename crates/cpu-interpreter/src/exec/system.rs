//! Privileged and system instructions.

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{self, mask};
use crate::op::Op;
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::*;
use cpu::state::{TableRegister, seg};
use cpu::xsave;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

impl Core {
    /// `None`: not one of these instructions.
    pub(super) fn system(&mut self, i: &Instruction, op: &Op, m: Mnemonic) -> Option<Done> {
        use Mnemonic::*;
        Some(match m {
            In | Out => self.port_operand(i),
            Lgdt | Lidt => self.load_table(i, op),
            Sgdt | Sidt => self.store_table(i, op),
            Lldt | Ltr => self.load_system_segment(i, op),
            Sldt | Str | Smsw => self.store_system_word(i, op),
            Lmsw => self.load_status_word(i, op),
            Clts => self.privileged().map(|()| {
                self.st.cr0 &= !CR0_TS;
                Flow::End
            }),
            Lar | Lsl | Verr | Verw => self.inspect(i, op),
            Arpl => self.adjust_rpl(i, op),
            Lds | Les | Lss | Lfs | Lgs => self.load_far_pointer(i, op),
            Invd | Wbinvd | Wbnoinvd => self.privileged().map(|()| Flow::Next),
            Invlpg => self.invlpg(op),
            Invpcid => self.invpcid(i, op),
            Rdmsr | Wrmsr => self.msr(m == Wrmsr),
            Rdtsc | Rdtscp | Rdpmc | Rdpid => self.counters(i),
            Cpuid => {
                self.cpuid_instruction();
                Ok(Flow::Next)
            }
            Xgetbv | Xsetbv => self.extended_control(m == Xsetbv),
            Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => self.segment_base(i),
            Swapgs => self.swapgs(),
            Monitor | Mwait => self.monitor_wait(i, op),
            Stac | Clac => {
                if self.cpl != 0 {
                    Err(Fault::UD)
                } else {
                    self.st.rflags = self.st.rflags & !flags::AC | if m == Stac { flags::AC } else { 0 };
                    self.choose_view();
                    Ok(Flow::Next)
                }
            }
            Rdrand | Rdseed => {
                let value = self.next_random();
                let size = i.op0_register().size();
                self.write_register(i.op0_register(), value & mask(size));
                self.set_arith(flags::CF);
                Ok(Flow::Next)
            }
            Rsm => Err(Fault::UD),
            _ => return None,
        })
    }

    pub(super) fn privileged(&self) -> Result<(), Fault> {
        if self.cpl == 0 { Ok(()) } else { Err(Fault::GP0) }
    }

    fn umip(&self) -> Result<(), Fault> {
        if self.st.cr4 & CR4_UMIP != 0 && self.cpl != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    fn next_random(&mut self) -> u64 {
        let mut x = self.random ^ self.bus.clock.now().rotate_left(32);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn load_table(&mut self, i: &Instruction, op: &Op) -> Done {
        self.privileged()?;
        let wide = if self.is_64bit() { 8 } else { 4 };
        let linear = self.operand(op, 2 + wide, false)?;
        let limit = self.read(linear, 2)? as u16;
        let mut base = self.read(self.wrap(linear.wrapping_add(2)), wide)?;
        if matches!(i.code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16) {
            base &= 0xff_ffff;
        }
        if self.is_64bit() && !Core::canonical(base) {
            return Err(Fault::GP0);
        }
        let table = TableRegister { base, limit };
        if i.mnemonic() == Mnemonic::Lgdt {
            self.st.gdtr = table;
        } else {
            self.st.idtr = table;
        }
        Ok(Flow::Next)
    }

    fn store_table(&mut self, i: &Instruction, op: &Op) -> Done {
        self.umip()?;
        let table = if i.mnemonic() == Mnemonic::Sgdt { self.st.gdtr } else { self.st.idtr };
        let wide = if self.is_64bit() { 8 } else { 4 };
        let linear = self.operand(op, 2 + wide, true)?;
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        self.write_bytes(linear, &bytes[..2 + wide])?;
        Ok(Flow::Next)
    }

    fn load_system_segment(&mut self, i: &Instruction, op: &Op) -> Done {
        if !self.protected() {
            return Err(Fault::UD);
        }
        self.privileged()?;
        let selector = self.get(i, op, 0, 2)? as u16;
        let ldt = i.mnemonic() == Mnemonic::Lldt;
        if selector & 0xfffc == 0 {
            if !ldt {
                return Err(Fault::GP0);
            }
            self.st.ldtr.selector = selector;
            self.st.ldtr.access = 0;
            return Ok(Flow::Next);
        }
        if selector & 4 != 0 {
            return Err(Fault::gp(selector));
        }
        let size = if self.long_mode() { 16 } else { 8 };
        let at = self.descriptor_address(selector, size).map_err(|()| Fault::gp(selector))?;
        let d = crate::segment::Descriptor(self.read_system(at, 8)?);
        let fits = if ldt { d.kind() == 2 } else { d.kind() == 9 || d.kind() == 1 && !self.long_mode() };
        if !d.is_system() || !fits {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::selector(vector::NP, selector));
        }
        let mut segment = d.segment(selector);
        if size == 16 {
            let high = self.read_system(at.wrapping_add(8), 8)?;
            if high >> 40 & 0x1f != 0 {
                return Err(Fault::gp(selector));
            }
            segment.base |= high << 32;
            if !Core::canonical(segment.base) {
                return Err(Fault::gp(selector));
            }
        }
        if ldt {
            self.st.ldtr = segment;
        } else {
            self.as_supervisor(|core| core.locked(at.wrapping_add(5), 1, |b| b | 2))?;
            segment.access |= 2;
            self.st.tr = segment;
        }
        Ok(Flow::Next)
    }

    fn store_system_word(&mut self, i: &Instruction, op: &Op) -> Done {
        if i.mnemonic() != Mnemonic::Smsw && !self.protected() {
            return Err(Fault::UD);
        }
        self.umip()?;
        let value = match i.mnemonic() {
            Mnemonic::Sldt => u64::from(self.st.ldtr.selector),
            Mnemonic::Str => u64::from(self.st.tr.selector),
            _ => self.st.cr0,
        };
        if i.op0_kind() == OpKind::Register {
            let size = i.op0_register().size();
            self.write_register(i.op0_register(), value & mask(size));
        } else {
            self.put(i, op, 0, 2, value & 0xffff)?;
        }
        Ok(Flow::Next)
    }

    fn load_status_word(&mut self, i: &Instruction, op: &Op) -> Done {
        self.privileged()?;
        let value = self.get(i, op, 0, 2)? & 0xffff;
        let keep = self.st.cr0 & CR0_PE;
        self.write_cr0(self.st.cr0 & !0xe & !CR0_PE | value & 0xf | keep)?;
        Ok(Flow::End)
    }

    /// LAR, LSL, VERR, VERW.
    fn inspect(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        if !self.protected() {
            return Err(Fault::UD);
        }
        let m = i.mnemonic();
        let source = if matches!(m, Lar | Lsl) { 1 } else { 0 };
        let selector = self.get(i, op, source, 2)? as u16;
        let found = self.inspect_descriptor(m, selector)?;
        if let Some(value) = found
            && source == 1
        {
            let size = i.op0_register().size();
            self.write_register(i.op0_register(), value & mask(size));
        }
        self.change_arith(flags::ZF, if found.is_some() { flags::ZF } else { 0 });
        Ok(Flow::Next)
    }

    fn inspect_descriptor(&mut self, m: Mnemonic, selector: u16) -> Result<Option<u64>, Fault> {
        use Mnemonic::*;
        if selector & 0xfffc == 0 {
            return Ok(None);
        }
        let Ok(at) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let d = crate::segment::Descriptor(self.read_system(at, 8)?);
        let rpl = (selector & 3) as u8;
        let inner = rpl.max(self.cpl) > d.dpl();
        if d.is_system() {
            let long = self.long_mode();
            let known = match d.kind() {
                1 | 3 => !long,
                2 | 9 | 11 => true,
                4 | 5 => m == Lar && !long,
                12 => m == Lar,
                _ => false,
            };
            if matches!(m, Verr | Verw) || !known || inner {
                return Ok(None);
            }
        } else if !(d.is_code() && d.conforming()) && inner {
            return Ok(None);
        }
        let ok = match m {
            Verr => !d.is_code() || d.kind() & 2 != 0,
            Verw => !d.is_code() && d.kind() & 2 != 0,
            _ => true,
        };
        let value = if m == Lsl { u64::from(d.limit()) } else { d.0 >> 32 & 0x00ff_ff00 };
        Ok(ok.then_some(value))
    }

    fn adjust_rpl(&mut self, i: &Instruction, op: &Op) -> Done {
        if !self.protected() {
            return Err(Fault::UD);
        }
        let rpl = self.read_register(i.op1_register()) & 3;
        let old = self.get(i, op, 0, 2)?;
        if old & 3 < rpl {
            // Only now: an operand that needs no change may be read-only.
            self.modify(i, op, 2, |a| a & !3 | rpl)?;
        }
        self.change_arith(flags::ZF, if old & 3 < rpl { flags::ZF } else { 0 });
        Ok(Flow::Next)
    }

    fn load_far_pointer(&mut self, i: &Instruction, op: &Op) -> Done {
        let index = match i.mnemonic() {
            Mnemonic::Lds => seg::DS,
            Mnemonic::Les => seg::ES,
            Mnemonic::Lss => seg::SS,
            Mnemonic::Lfs => seg::FS,
            _ => seg::GS,
        };
        let size = i.op0_register().size();
        let linear = self.operand(op, size + 2, false)?;
        let offset = self.read(linear, size)?;
        let selector = self.read(self.wrap(linear.wrapping_add(size as u64)), 2)?;
        self.load_segment(index, selector as u16)?;
        self.write_register(i.op0_register(), offset);
        Ok(Flow::End)
    }

    // ---- TLB ----

    fn invlpg(&mut self, op: &Op) -> Done {
        self.privileged()?;
        let linear = self.sc[usize::from(op.seg & 7)].base.wrapping_add(self.offset(op));
        self.flush_page(if self.is_64bit() { linear } else { linear & 0xffff_ffff });
        Ok(Flow::End)
    }

    fn invpcid(&mut self, i: &Instruction, op: &Op) -> Done {
        self.privileged()?;
        let linear = self.operand(op, 16, false)?;
        let pcid = self.read(linear, 8)?;
        let address = self.read(self.wrap(linear.wrapping_add(8)), 8)?;
        let kind = self.read_register(i.op0_register());
        let largest = if self.st.cr4 & CR4_PCIDE != 0 { 0xfff } else { 0 };
        if kind > 3 || kind < 2 && pcid > largest {
            return Err(Fault::GP0);
        }
        match kind {
            0 if !Core::canonical(address) => return Err(Fault::GP0),
            0 if pcid == u64::from(self.context()) => self.flush_page(address),
            0 | 1 => self.flush_context(Some(pcid as u16)),
            2 => self.flush_tlbs(true),
            _ => self.flush_context(None),
        }
        Ok(Flow::End)
    }

    // ---- counters and identification ----

    fn counters(&mut self, i: &Instruction) -> Done {
        use Mnemonic::*;
        match i.mnemonic() {
            Rdpid => {
                let value = self.st.msr.tsc_aux;
                let size = i.op0_register().size();
                self.write_register(i.op0_register(), value & mask(size));
            }
            Rdpmc => return Err(Fault::GP0),
            m => {
                if self.st.cr4 & CR4_TSD != 0 && self.cpl != 0 && self.st.cr0 & CR0_PE != 0 {
                    return Err(Fault::GP0);
                }
                let tsc = self.tsc();
                self.r[0] = tsc & 0xffff_ffff;
                self.r[2] = tsc >> 32;
                if m == Rdtscp {
                    self.r[1] = self.st.msr.tsc_aux & 0xffff_ffff;
                }
            }
        }
        Ok(Flow::Next)
    }

    fn cpuid_instruction(&mut self) {
        let (leaf, sub) = (self.r[0] as u32, self.r[1] as u32);
        let mut out = self.cpuid.query(leaf, sub);
        match leaf {
            1 => {
                let osxsave = self.st.cr4 & CR4_OSXSAVE != 0;
                out.ecx = out.ecx & !(1 << 27) | u32::from(osxsave && out.ecx & 1 << 26 != 0) << 27;
                let apic = self.bus.apic.base_msr() & 0x800 != 0;
                out.edx = out.edx & !(1 << 9) | if apic { out.edx & 1 << 9 } else { 0 };
            }
            0xd if sub == 0 => out.ebx = xsave::standard_size(self.st.xcr0) as u32,
            0xd if sub == 1 => {
                out.ebx = xsave::compacted_size(self.st.xcr0 | self.st.msr.xss) as u32;
            }
            _ => {}
        }
        self.r[0] = u64::from(out.eax);
        self.r[3] = u64::from(out.ebx);
        self.r[1] = u64::from(out.ecx);
        self.r[2] = u64::from(out.edx);
    }

    fn segment_base(&mut self, i: &Instruction) -> Done {
        if !self.is_64bit() || self.st.cr4 & CR4_FSGSBASE == 0 {
            return Err(Fault::UD);
        }
        use Mnemonic::*;
        let index = if matches!(i.mnemonic(), Rdfsbase | Wrfsbase) { seg::FS } else { seg::GS };
        let register = i.op0_register();
        if matches!(i.mnemonic(), Rdfsbase | Rdgsbase) {
            let value = self.st.seg[index].base & mask(register.size());
            self.write_register(register, value);
            return Ok(Flow::Next);
        }
        let value = self.read_register(register);
        if !Core::canonical(value) {
            return Err(Fault::GP0);
        }
        self.set_segment_base(index, value);
        Ok(Flow::Next)
    }

    /// Changes the base of FS or GS in 64-bit code.
    pub fn set_segment_base(&mut self, index: usize, base: u64) {
        self.st.seg[index].base = base;
        self.sc[index].base = if self.is_64bit() { base } else { base & 0xffff_ffff };
    }

    fn swapgs(&mut self) -> Done {
        if !self.is_64bit() {
            return Err(Fault::UD);
        }
        self.privileged()?;
        let base = self.st.seg[seg::GS].base;
        let new = std::mem::replace(&mut self.st.msr.kernel_gs_base, base);
        self.set_segment_base(seg::GS, new);
        Ok(Flow::Next)
    }

    fn monitor_wait(&mut self, i: &Instruction, op: &Op) -> Done {
        if self.cpl != 0 {
            return Err(Fault::UD);
        }
        if i.mnemonic() == Mnemonic::Monitor {
            if self.r[1] as u32 != 0 {
                return Err(Fault::GP0);
            }
            let offset = self.r[0] << (op.cut & 63) >> (op.cut & 63);
            let linear = self.linear(op.seg, offset, 1, false)?;
            self.read(linear, 1)?;
            self.monitor = Some(linear);
            return Ok(Flow::Next);
        }
        if self.r[1] as u32 & !1 != 0 {
            return Err(Fault::GP0);
        }
        // Nothing tells of writes by others to the monitored line, so MWAIT returns at once
        // unless it may sleep until an interrupt; a spurious wake-up is allowed.
        self.monitor = None;
        std::thread::yield_now();
        Ok(Flow::End)
    }

    // ---- control and debug registers ----

    pub(super) fn mov_control(&mut self, i: &Instruction, n: u32) -> Done {
        self.privileged()?;
        let special = i.op_register(n);
        let other = i.op_register(1 - n);
        let number = special.number();
        if special.is_dr() {
            return self.mov_debug(number, other, n == 0);
        }
        let size = if self.is_64bit() { 8 } else { 4 };
        if n == 1 {
            let value = match number {
                0 => self.st.cr0,
                2 => self.st.cr2,
                3 => self.st.cr3,
                4 => self.st.cr4,
                8 => u64::from(self.bus.apic.cr8()),
                _ => return Err(Fault::UD),
            };
            self.write_register(other, value & mask(size));
            return Ok(Flow::Next);
        }
        let value = self.read_register(other) & mask(size);
        match number {
            0 => self.write_cr0(value)?,
            2 => self.st.cr2 = value,
            3 => self.write_cr3(value)?,
            4 => self.write_cr4(value)?,
            8 => {
                if value >> 4 != 0 {
                    return Err(Fault::GP0);
                }
                self.bus.apic.set_cr8(value as u8);
                self.irq_hint = true;
            }
            _ => return Err(Fault::UD),
        }
        Ok(Flow::End)
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let value = value | 0x10;
        let old = self.st.cr0;
        let (pg, pe) = (value & CR0_PG != 0, value & CR0_PE != 0);
        let (cd, nw) = (value & 1 << 30 != 0, value & 1 << 29 != 0);
        if value >> 32 != 0 || pg && !pe || nw && !cd {
            return Err(Fault::GP0);
        }
        if pg && old & CR0_PG == 0 && self.st.efer & EFER_LME != 0 {
            if self.st.cr4 & CR4_PAE == 0 || self.st.seg[seg::CS].long() {
                return Err(Fault::GP0);
            }
            self.st.efer |= EFER_LMA;
        }
        if !pg && old & CR0_PG != 0 {
            if self.is_64bit() || self.st.cr4 & CR4_PCIDE != 0 {
                return Err(Fault::GP0);
            }
            self.st.efer &= !EFER_LMA;
        }
        self.st.cr0 = value & 0xe005_003f;
        if (old ^ value) & (CR0_PG | CR0_WP | CR0_PE) != 0 {
            self.flush_tlbs(true);
        }
        if pe && old & CR0_PE == 0 {
            self.cpl = 0;
        }
        self.paging_changed();
        self.mode_changed();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let pcid = self.st.cr4 & CR4_PCIDE != 0;
        let keep = value >> 63 != 0;
        let value = if pcid { value & !(1 << 63) } else { value };
        if self.long_mode() && value >> self.paging.physical_bits != 0 {
            return Err(Fault::GP0);
        }
        self.st.cr3 = value;
        self.paging_changed();
        if pcid {
            self.switch_context(keep);
        } else {
            self.flush_tlbs(false);
        }
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Fault> {
        let old = self.st.cr4;
        if value & !self.features.cr4() != 0 {
            return Err(Fault::GP0);
        }
        if self.long_mode() && value & CR4_PAE == 0 {
            return Err(Fault::GP0);
        }
        if value & CR4_PCIDE != 0 && old & CR4_PCIDE == 0 && (!self.long_mode() || self.st.cr3 & 0xfff != 0) {
            return Err(Fault::GP0);
        }
        self.st.cr4 = value;
        let paging = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
        if (old ^ value) & paging != 0 {
            self.flush_tlbs(true);
        }
        self.paging_changed();
        self.mode_changed();
        Ok(())
    }

    fn mov_debug(&mut self, number: usize, other: Register, write: bool) -> Done {
        let number = match number {
            4 | 5 if self.st.cr4 & CR4_DE != 0 => return Err(Fault::UD),
            4 | 5 => number + 2,
            n => n,
        };
        if self.st.dr[7] & 1 << 13 != 0 {
            self.st.dr[7] &= !(1 << 13);
            return Err(Fault { vector: vector::DB, error: None, payload: 1 << 13 });
        }
        if !write {
            let size = other.size();
            let value = self.st.dr[number] & mask(size);
            self.write_register(other, value);
            return Ok(Flow::Next);
        }
        let value = self.read_register(other);
        if number >= 6 && value >> 32 != 0 {
            return Err(Fault::GP0);
        }
        self.st.dr[number] = match number {
            6 => value & 0xe00f | 0xffff_0ff0,
            7 => value & 0xffff_2bff | 0x400,
            _ => value,
        };
        self.debug_changed();
        Ok(Flow::End)
    }

    // ---- model-specific registers ----

    fn msr(&mut self, write: bool) -> Done {
        self.privileged()?;
        let index = self.r[1] as u32;
        if write {
            let value = self.reg(0, 4) | self.r[2] << 32;
            self.write_msr(index, value)?;
            return Ok(Flow::End);
        }
        let value = self.read_msr(index)?;
        self.r[0] = value & 0xffff_ffff;
        self.r[2] = value >> 32;
        Ok(Flow::Next)
    }
}
