//! x87, MMX, SSE and AVX through [`cpu_host`].

use super::{Done, Flow};
use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::*;
use cpu::state::seg;
use cpu::xsave::{AVX, AVX512, SSE};
use cpu_host::{Class, Memory, Operand, Plan, SimdFault};
use iced_x86::{Instruction, Mnemonic};

/// What XCR0 must have for AVX-512.
const WIDE: u64 = SSE | AVX | AVX512;

/// Where the result of an instruction is stored.
struct Target {
    linear: u64,
    size: usize,
    byte_mask: u64,
    /// Bytes of an element, if the store is masked.
    element: Option<u8>,
}

impl Core {
    /// #UD and #NM by the instruction's class.
    #[inline(always)]
    pub fn check_class(&self, class: Class) -> Result<(), Fault> {
        let (cr0, cr4) = (self.st.cr0, self.st.cr4);
        let undefined = match class {
            Class::X87 | Class::Wait => false,
            Class::Mmx => cr0 & CR0_EM != 0,
            Class::Sse => cr0 & CR0_EM != 0 || cr4 & CR4_OSFXSR == 0,
            Class::Avx => cr4 & CR4_OSXSAVE == 0 || self.st.xcr0 & 6 != 6 || !self.protected(),
            Class::Avx512 => cr4 & CR4_OSXSAVE == 0 || self.st.xcr0 & WIDE != WIDE || !self.protected(),
        };
        if undefined {
            return Err(Fault::UD);
        }
        let unavailable = match class {
            Class::X87 => cr0 & (CR0_EM | CR0_TS) != 0,
            Class::Wait => cr0 & CR0_MP != 0 && cr0 & CR0_TS != 0,
            _ => cr0 & CR0_TS != 0,
        };
        if unavailable { Err(Fault::NM) } else { Ok(()) }
    }

    pub fn simd_fault(&self, fault: SimdFault) -> Fault {
        match fault {
            SimdFault::Mf => Fault::plain(vector::MF),
            SimdFault::Xm if self.st.cr4 & CR4_OSXMMEXCPT == 0 => Fault::UD,
            SimdFault::Xm => Fault::plain(vector::XM),
        }
    }

    pub(super) fn simd(&mut self, i: &Instruction, op: &Op) -> Done {
        if let Some(done) = self.fpu_state(i, op) {
            return done;
        }
        Err(Fault::UD)
    }

    pub fn run_plan(&mut self, i: &Instruction, op: &Op, plan: &Plan) -> Done {
        self.check_class(plan.class)?;
        if let Some(gather) = plan.gather() {
            let gather = *gather;
            return self.gather(i, op, &gather);
        }
        plan.check_pending(&self.simd).map_err(|fault| self.simd_fault(fault))?;
        let mut operand = Operand::default();
        let target = match &plan.memory {
            Some(memory) => self.load_for(i, op, plan, memory, &mut operand)?,
            None => None,
        };
        let uses_flags = cpu_host::Touches::FLAGS_READ | cpu_host::Touches::FLAGS_WRITE;
        let mut rflags = if plan.touches.intersects(uses_flags) { self.rflags() } else { 0 };
        let Some(gpr) = self.r.first_chunk_mut::<16>() else { return Err(Fault::UD) };
        let result = plan.run(&mut self.simd, gpr, &mut rflags, &mut operand);
        let store = result.map_err(|fault| self.simd_fault(fault))?;
        if plan.touches.contains(cpu_host::Touches::FLAGS_WRITE) {
            self.set_arith(rflags);
        }
        if plan.sets_x87_pointers {
            self.note_x87(i, op, plan.memory.is_some());
        }
        if let Some(target) = target
            && store
        {
            match target.element {
                Some(element) => {
                    self.store_masked(target.linear, target.size, &operand, target.byte_mask, element)?;
                }
                None => self.store_operand(target.linear, target.size, &operand)?,
            }
        }
        Ok(Flow::Next)
    }

    /// Checks the memory operand of `plan`, and reads it if it is read. Returns what is to be
    /// stored afterwards.
    fn load_for(
        &mut self,
        i: &Instruction,
        op: &Op,
        plan: &Plan,
        memory: &Memory,
        operand: &mut Operand,
    ) -> Result<Option<Target>, Fault> {
        let size = usize::from(memory.size);
        let by_rdi =
            matches!(i.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu);
        let (segment, offset) = if by_rdi {
            (Core::source_segment(i), self.r[7] << (op.cut & 63) >> (op.cut & 63))
        } else {
            (op.seg, self.offset(op))
        };
        let mut byte_mask = u64::MAX;
        if memory.masked {
            byte_mask = plan.byte_mask(&mut self.simd).map_err(|f| self.simd_fault(f))?;
        }
        let base = self.sc[usize::from(segment & 7)].base;
        if byte_mask != 0 && base.wrapping_add(offset) & (u64::from(memory.align) - 1) != 0 {
            return Err(Fault::GP0);
        }
        // What is masked out is not checked either. But for MASKMOV's segment: #GP and #SS come
        // whatever the mask (SDM, MASKMOVQ).
        let linear = if memory.whole || by_rdi {
            self.linear(segment, offset, size, memory.write)?
        } else {
            self.wrap(base.wrapping_add(offset))
        };
        if !memory.whole {
            if memory.write || !self.load_whole(linear, size, operand) {
                self.load_masked((segment, offset), (size, memory.write), byte_mask, operand)?;
            }
        } else {
            if memory.write {
                self.probe_write(linear, size)?;
            }
            if memory.read {
                self.load_operand(linear, size, operand)?;
            }
        }
        let element = memory.masked.then_some(memory.element);
        Ok(memory.write.then_some(Target { linear, size, byte_mask, element }))
    }

    /// Checks and reads the bytes of a masked operand that are accessed.
    fn load_masked(
        &mut self,
        (segment, offset): (u8, u64),
        (size, write): (usize, bool),
        byte_mask: u64,
        operand: &mut Operand,
    ) -> Result<(), Fault> {
        let bytes = || (0..size).filter(|k| byte_mask >> k & 1 != 0);
        // Limits and canonical addresses come before pages.
        for k in bytes() {
            self.linear(segment, offset.wrapping_add(k as u64), 1, write)?;
        }
        for k in bytes() {
            let at = self.linear(segment, offset.wrapping_add(k as u64), 1, write)?;
            if write {
                self.probe_write(at, 1)?;
            }
            operand.0[k] = self.read(at, 1)? as u8;
        }
        Ok(())
    }

    /// Reads an operand that lies in one page of RAM known to the TLB; otherwise `false`.
    fn load_whole(&self, linear: u64, size: usize, operand: &mut Operand) -> bool {
        let entry = &self.tlb.read[crate::tlb::data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        let hit = self.is_64bit() && offset <= 4096 - size as u64;
        if hit {
            entry.page.read(offset as usize, &mut operand.0[..size]);
        }
        hit
    }

    fn load_operand(&mut self, linear: u64, size: usize, operand: &mut Operand) -> Result<(), Fault> {
        let entry = &self.tlb.read[crate::tlb::data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 {
            let page = entry.page;
            page.read(offset as usize, &mut operand.0[..size]);
            return Ok(());
        }
        if matches!(size, 1 | 2 | 4 | 8) {
            let value = self.read(linear, size)?;
            operand.0[..8].copy_from_slice(&value.to_le_bytes());
            return Ok(());
        }
        self.read_bytes(linear, &mut operand.0[..size])
    }

    /// Stores the elements of `element` bytes whose bytes are in the mask.
    fn store_masked(
        &mut self,
        linear: u64,
        size: usize,
        operand: &Operand,
        byte_mask: u64,
        element: u8,
    ) -> Result<(), Fault> {
        let element = usize::from(element);
        for k in (0..size).step_by(element).filter(|k| byte_mask >> k & 1 != 0) {
            let mut bytes = [0; 8];
            bytes[..element].copy_from_slice(&operand.0[k..k + element]);
            let at = self.wrap(linear.wrapping_add(k as u64));
            self.write(at, element, u64::from_le_bytes(bytes))?;
        }
        Ok(())
    }

    fn store_operand(&mut self, linear: u64, size: usize, operand: &Operand) -> Result<(), Fault> {
        if matches!(size, 1 | 2 | 4 | 8) {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&operand.0[..size]);
            return self.write(linear, size, u64::from_le_bytes(bytes));
        }
        let entry = &self.tlb.write[crate::tlb::data_index(linear)];
        let offset = linear.wrapping_sub(entry.tag);
        if offset <= 4096 - size as u64 && self.watchpoints.is_empty() {
            let watch = entry.watch;
            entry.page.write(offset as usize, &operand.0[..size]);
            if watch.load(std::sync::atomic::Ordering::Relaxed) != 0 {
                self.note_stored(linear, size);
            }
            return Ok(());
        }
        self.write_bytes(linear, &operand.0[..size])
    }

    fn note_x87(&mut self, i: &Instruction, op: &Op, memory: bool) {
        self.simd.fip = i.ip();
        self.simd.fcs = self.st.seg[seg::CS].selector;
        self.simd.fop = op.aux;
        if memory {
            self.simd.fdp = self.offset(op);
            self.simd.fds = self.st.seg[usize::from(op.seg.min(5))].selector;
        }
    }

    /// A gather or a scatter.
    fn gather(&mut self, i: &Instruction, op: &Op, gather: &cpu_host::Gather) -> Done {
        self.simd.avx512 |= gather.is_evex();
        for k in 0..gather.count {
            if let Some(index) = gather.index(&self.simd, k) {
                self.gather_element(i, op, gather, k, index)?;
            }
        }
        gather.finish(&mut self.simd);
        Ok(Flow::Next)
    }

    fn gather_element(
        &mut self,
        i: &Instruction,
        op: &Op,
        gather: &cpu_host::Gather,
        k: u8,
        index: i64,
    ) -> Result<(), Fault> {
        let size = usize::from(gather.element_size);
        let base = self.r[usize::from(op.base)].wrapping_add(op.disp);
        let sum = base.wrapping_add(index.wrapping_mul(i.memory_index_scale() as i64) as u64);
        let offset = sum << (op.cut & 63) >> (op.cut & 63);
        let linear = self.linear(op.seg, offset, size, gather.scatter)?;
        if gather.scatter {
            let value = gather.get(&self.simd, k);
            self.write(linear, size, value)?;
            gather.done(&mut self.simd, k);
        } else {
            let value = self.read(linear, size)?;
            gather.set(&mut self.simd, k, value);
        }
        Ok(())
    }
}
