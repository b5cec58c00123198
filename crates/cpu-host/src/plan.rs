//! [`Thunks`] makes [`Plan`]s, [`Plan::run`] executes them.

use crate::area::Area;
use crate::context::{Operand, SimdContext};
use crate::evex::{self, Spread};
use crate::fault;
use crate::gather::Gather;
use crate::shape::{self, ARITHMETIC_FLAGS};
use crate::{host_supports, thunk};
use base::Result;
use bitflags::bitflags;
use iced_x86::{
    Code, CodeSize, CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};
use std::collections::HashMap;
use std::sync::Mutex;

bitflags! {
    /// State an instruction reads or writes beside its memory operand.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Touches: u16 {
        const X87 = 1;
        const MMX = 2;
        /// XMM or YMM registers.
        const VECTOR = 4;
        const MXCSR = 8;
        const GPR_WRITE = 16;
        const FLAGS_READ = 32;
        const FLAGS_WRITE = 64;
    }
}

/// Which control bits an instruction depends on (SDM vol. 2 §2.4, vol. 3A §2.5, §13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// #NM if CR0.EM or CR0.TS.
    X87,
    /// FWAIT: #NM if CR0.MP and CR0.TS.
    Wait,
    /// #UD if CR0.EM; #NM if CR0.TS.
    Mmx,
    /// #UD if CR0.EM or not CR4.OSFXSR; #NM if CR0.TS.
    Sse,
    /// #UD in real and virtual-8086 mode, if not CR4.OSXSAVE, or if XCR0 lacks SSE or AVX;
    /// #NM if CR0.TS.
    Avx,
    /// As `Avx`, and XCR0 must have its three components as well.
    Avx512,
}

/// The memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes, 1..=64.
    pub size: u8,
    pub read: bool,
    pub write: bool,
    /// #GP unless the linear address is a multiple of this; 1: any.
    pub align: u8,
    /// Only the bytes of [`Plan::byte_mask`] are accessed.
    pub masked: bool,
    /// All bytes must be accessible.
    pub whole: bool,
    /// Bytes of an element, the unit of masked stores.
    pub element: u8,
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdFault {
    /// An x87 exception was pending; nothing was executed. (CR0.NE decides its form.)
    Mf,
    /// Unmasked SIMD floating-point exception: MXCSR has its flags, no result was written.
    /// (#UD instead if CR4.OSXMMEXCPT is clear.)
    Xm,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Calls the thunk.
    Native,
    /// Of so many registers: outside 64-bit mode only the lower eight are touched.
    ZeroUpper(u8),
    ZeroAll(u8),
    /// VMASKMOV store, MASKMOVDQU: copies the register to the operand.
    StoreRegister(u8),
    /// Runs element by element; [`Plan::gather`].
    Gather(Gather),
}

/// Where a masked access has its mask.
#[derive(Clone, Copy, Debug)]
enum Mask {
    None,
    /// Top bits of elements of so many bytes of a vector register.
    Vector(u8, u8),
    /// MASKMOVQ: a thunk that leaves the byte mask in the context's R10 slot.
    Mmx(usize),
    /// An opmask register; the destination's elements.
    Opmask(u8, u8, Spread),
}

bitflags! {
    /// What [`Plan::run`] has to do beside calling the thunk.
    #[derive(Clone, Copy, Debug)]
    struct Extra: u8 {
        const X87 = 1;
        const MXCSR = 2;
        const GPR = 4;
        const FLAGS = 8;
        const SPECIAL = 16;
        /// Does not report pending x87 exceptions.
        const NON_WAITING = 32;
        /// May change FCW.
        const CONTROL_WORD = 64;
        /// Opmasks are operands, the state counts as in use.
        const AVX512 = 128;
    }
}

/// How to execute one instruction. Cheap to copy, valid for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    entry: usize,
    recovery: usize,
    vectors: [u8; 4],
    /// (canonical slot, guest GPR); slot 255 ends the list.
    gprs: [(u8, u8); 3],
    /// Guest opmask registers by canonical slot, and whether they are written; 255 ends the list.
    masks: [(u8, bool); 4],
    extra: Extra,
    kind: Kind,
    mask: Mask,
    pub class: Class,
    pub touches: Touches,
    pub memory: Option<Memory>,
    /// All of these must be in the guest's CPUID.
    pub features: &'static [CpuidFeature],
    /// FIP, FOP and (with a memory operand) FDP point to this instruction afterwards.
    pub sets_x87_pointers: bool,
}

type Entry = extern "sysv64" fn(*mut SimdContext, *mut Operand, *mut u64, *mut u64, *mut u64, *mut u64);

impl Plan {
    /// Executes the instruction.
    ///
    /// `mem` holds the memory operand if it is read. `Ok(true)`: the memory operand, if it is
    /// written, must now be stored from `mem`; `Ok(false)`: the store is suppressed (unmasked
    /// x87 exception).
    #[inline]
    pub fn run(
        &self,
        context: &mut SimdContext,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        mem: &mut Operand,
    ) -> Result<bool, SimdFault> {
        if self.extra.is_empty() {
            self.call(context, mem);
            return Ok(true);
        }
        self.run_extra(context, gpr, rflags, mem)
    }

    #[inline(always)]
    fn call(&self, context: &mut SimdContext, mem: &mut Operand) {
        let context: *mut SimdContext = context;
        let register = |slot: usize| {
            // SAFETY: vector numbers are 0..32 (masked), so the pointer stays within `zmm`.
            unsafe { (&raw mut (*context).zmm).cast::<u64>().add(usize::from(self.vectors[slot] & 31) * 8) }
        };
        let (p0, p1, p2, p3) = (register(0), register(1), register(2), register(3));
        // SAFETY: `entry` is a thunk of `Thunks`, which lives for ever and follows the sysv64
        // ABI (thunk.rs); it accesses the context, at most 64 bytes of the operand and the
        // vector registers at the given pointers. x87 state that it leaves is the context's.
        unsafe {
            let entry = std::mem::transmute::<usize, Entry>(self.entry);
            entry(context, mem, p2, p3, p0, p1);
        }
    }

    #[inline(never)]
    fn run_extra(
        &self,
        context: &mut SimdContext,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        mem: &mut Operand,
    ) -> Result<bool, SimdFault> {
        if self.extra.contains(Extra::X87) {
            self.check_pending(context)?;
            context.enter_x87();
        }
        if self.extra.contains(Extra::SPECIAL) {
            return self.run_special(context, mem);
        }
        if self.extra.contains(Extra::GPR) {
            for &(slot, guest) in self.gprs.iter().take_while(|g| g.0 != 255) {
                context.gpr[usize::from(slot)] = gpr[usize::from(guest & 15)];
            }
        }
        if self.extra.contains(Extra::FLAGS) {
            context.flags = *rflags;
        }
        if self.extra.contains(Extra::AVX512) {
            context.avx512 = true;
            for (to, &(guest, _)) in context.masks.iter_mut().zip(&self.masks).take_while(|m| m.1.0 != 255) {
                *to = context.opmask[usize::from(guest & 7)];
            }
        }
        if self.extra.contains(Extra::MXCSR) {
            self.call_with_mxcsr(context, mem)?;
        } else {
            self.call(context, mem);
        }
        if self.extra.contains(Extra::GPR) {
            for &(slot, guest) in self.gprs.iter().take_while(|g| g.0 != 255) {
                gpr[usize::from(guest & 15)] = context.gpr[usize::from(slot)];
            }
        }
        if self.extra.contains(Extra::FLAGS) {
            *rflags = *rflags & !ARITHMETIC_FLAGS | context.flags & ARITHMETIC_FLAGS;
        }
        if self.extra.contains(Extra::AVX512) {
            for (value, &(guest, _)) in context.masks.iter().zip(&self.masks).filter(|m| m.1.1) {
                context.opmask[usize::from(guest & 7)] = *value;
            }
        }
        if self.extra.contains(Extra::CONTROL_WORD) {
            context.reload_fcw();
        }
        Ok(!self.extra.contains(Extra::X87) || self.stores(context))
    }

    /// Whether an x87 store took place: any unmasked exception but precision suppresses it.
    fn stores(&self, context: &SimdContext) -> bool {
        !self.memory.is_some_and(|m| m.write)
            || self.extra.contains(Extra::NON_WAITING)
            || context.fcw() & 0x3f == 0x3f
            || context.fsw() & !context.fcw() & 0x1f == 0
    }

    #[inline(always)]
    fn call_with_mxcsr(&self, context: &mut SimdContext, mem: &mut Operand) -> Result<(), SimdFault> {
        if context.has_default_mxcsr() {
            context.enter_mxcsr();
            self.call(context, mem);
        } else if context.under_guest_mxcsr(self.recovery, |context| self.call(context, mem)) {
            return Err(SimdFault::Xm);
        }
        Ok(())
    }

    #[cold]
    fn run_special(&self, context: &mut SimdContext, mem: &mut Operand) -> Result<bool, SimdFault> {
        match self.kind {
            Kind::Native => self.call(context, mem),
            Kind::ZeroUpper(n) => context.zmm[..usize::from(n)].iter_mut().for_each(|r| r[2..].fill(0)),
            Kind::ZeroAll(n) => context.zmm[..usize::from(n)].fill([0; 8]),
            Kind::StoreRegister(register) => {
                for (bytes, word) in mem.0.chunks_exact_mut(8).zip(context.zmm[usize::from(register)]) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
            Kind::Gather(_) => {}
        }
        Ok(true)
    }

    /// For a masked memory operand: bit i set = byte i is accessed. #MF of MASKMOVQ comes first.
    pub fn byte_mask(&self, context: &mut SimdContext) -> Result<u64, SimdFault> {
        let size = u32::from(self.memory.map_or(0, |m| m.size));
        match self.mask {
            Mask::None => Ok((1u64 << size.min(63)) - 1),
            Mask::Vector(register, element) => {
                let words = context.zmm[usize::from(register)];
                let top = |byte: u32| {
                    let last = byte / u32::from(element) * u32::from(element) + u32::from(element) - 1;
                    words[last as usize / 8 & 3] >> (last % 8 * 8 + 7) & 1
                };
                Ok((0..size).map(|byte| top(byte) << byte).sum())
            }
            Mask::Mmx(entry) => {
                if context.x87_pending() {
                    return Err(SimdFault::Mf);
                }
                context.enter_x87();
                Plan { entry, ..*self }.call(context, &mut Operand::default());
                Ok(context.gpr[3] & 0xff)
            }
            Mask::Opmask(register, count, spread) => {
                let bits = context.opmask[usize::from(register)] & u64::MAX >> (64 - u32::from(count.max(1)));
                Ok(spread.bytes(bits, size, u32::from(self.memory.map_or(1, |m| m.element))))
            }
        }
    }

    /// #MF if an x87 exception is pending that this instruction reports. It comes before faults
    /// of the memory operand: ask before accessing it.
    #[inline]
    pub fn check_pending(&self, context: &SimdContext) -> Result<(), SimdFault> {
        let waits = self.extra.contains(Extra::X87) && !self.extra.contains(Extra::NON_WAITING);
        if waits && context.x87_pending() { Err(SimdFault::Mf) } else { Ok(()) }
    }

    /// The operands, if this is a gather: the caller executes it.
    pub fn gather(&self) -> Option<&Gather> {
        match &self.kind {
            Kind::Gather(gather) => Some(gather),
            _ => None,
        }
    }
}

struct Store {
    area: Area,
    entries: HashMap<Vec<u8>, usize>,
    factory: InstructionInfoFactory,
}

/// Makes plans; one for all vCPUs of an engine.
pub struct Thunks {
    store: Mutex<Store>,
    recovery: usize,
}

impl Thunks {
    pub fn new() -> Result<Thunks> {
        fault::install()?;
        let mut area = Area::new()?;
        let recovery = area.add(&thunk::recovery()).unwrap_or_default();
        let store = Store { area, entries: HashMap::new(), factory: InstructionInfoFactory::new() };
        Ok(Thunks { store: Mutex::new(store), recovery })
    }

    /// How to execute `instruction`, decoded in whatever mode. `None` if it is no x87, MMX or
    /// vector instruction this crate handles (state moves such as FXSAVE or LDMXCSR are the
    /// interpreter's), if the host lacks it, or if its operands make it undefined.
    pub fn plan(&self, instruction: &Instruction) -> Option<Plan> {
        if instruction.code() == Code::INVALID
            || !instruction.cpuid_features().iter().all(|&f| host_supports(f))
        {
            return None;
        }
        let mut store = self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        store.plan(instruction, self.recovery)
    }
}

impl Store {
    fn plan(&mut self, instruction: &Instruction, recovery: usize) -> Option<Plan> {
        let mnemonic = instruction.mnemonic();
        let info = self.factory.info(instruction);
        let class = shape::class(instruction, info)?;
        let touches = shape::touches(instruction, info, class);
        let memory = shape::memory(instruction, info, class);
        let mut plan = Plan {
            entry: 0,
            recovery,
            vectors: [0; 4],
            gprs: [(255, 0); 3],
            masks: [(255, false); 4],
            extra: Extra::empty(),
            kind: Kind::Native,
            mask: Mask::None,
            class,
            touches,
            memory,
            features: instruction.cpuid_features(),
            sets_x87_pointers: class == Class::X87 && !shape::is_x87_control(mnemonic),
        };
        plan.extra.set(Extra::X87, touches.intersects(Touches::X87 | Touches::MMX));
        plan.extra.set(Extra::MXCSR, touches.contains(Touches::MXCSR));
        plan.extra.set(Extra::FLAGS, touches.intersects(Touches::FLAGS_READ | Touches::FLAGS_WRITE));
        plan.extra.set(Extra::NON_WAITING, shape::is_non_waiting(mnemonic));
        plan.extra.set(Extra::CONTROL_WORD, matches!(mnemonic, Mnemonic::Fldcw | Mnemonic::Fninit));
        plan.extra.set(Extra::AVX512, class == Class::Avx512);
        if let Some(memory) = memory.filter(|m| m.masked)
            && instruction.op_mask() != Register::None
        {
            let (count, spread) = evex::spread(instruction, memory);
            plan.mask = Mask::Opmask(instruction.op_mask().number() as u8, count, spread);
        }
        if self.special(instruction, &mut plan)? {
            plan.extra |= Extra::SPECIAL;
            return Some(plan);
        }
        let canonical = thunk::canonical(instruction, &mut self.factory)?;
        for (to, from) in plan.vectors.iter_mut().zip(&canonical.vectors) {
            *to = from.0;
        }
        for (to, from) in plan.gprs.iter_mut().zip(&canonical.gprs) {
            *to = (from.0, from.1);
        }
        for (to, from) in plan.masks.iter_mut().zip(&canonical.masks) {
            *to = (from.0, thunk::writes(from.1));
        }
        plan.extra.set(Extra::GPR, !canonical.gprs.is_empty());
        plan.entry = self.entry(&canonical, class, touches)?;
        Some(plan)
    }

    fn entry(&mut self, canonical: &thunk::Canonical, class: Class, touches: Touches) -> Option<usize> {
        if !thunk::is_plain(&canonical.instruction) {
            return None;
        }
        let core = canonical.encode()?;
        if let Some(&entry) = self.entries.get(&core) {
            return Some(entry);
        }
        let code = canonical.build(&core, class, touches);
        let entry = self.area.add(&code)?;
        self.entries.insert(core, entry);
        Some(entry)
    }

    /// Instructions that are not one call; `Some(false)` for all others.
    fn special(&mut self, instruction: &Instruction, plan: &mut Plan) -> Option<bool> {
        use Mnemonic as M;
        let count = if instruction.code_size() == CodeSize::Code64 { 16 } else { 8 };
        let number = |operand| instruction.op_register(operand).number() as u8;
        match instruction.mnemonic() {
            M::Vzeroupper => plan.kind = Kind::ZeroUpper(count),
            M::Vzeroall => plan.kind = Kind::ZeroAll(count),
            M::Maskmovdqu | M::Vmaskmovdqu => {
                plan.kind = Kind::StoreRegister(number(1));
                plan.mask = Mask::Vector(number(2), 1);
            }
            M::Maskmovq => {
                let data = Instruction::with2(Code::Movq_mmm64_mm, iced_memory(), instruction.op1_register())
                    .ok()?;
                let mask =
                    Instruction::with2(Code::Pmovmskb_r32_mm, Register::R10D, instruction.op2_register())
                        .ok()?;
                plan.entry = self.simple(&data)?;
                plan.mask = Mask::Mmx(self.simple(&mask)?);
            }
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => {
                let element =
                    if matches!(instruction.mnemonic(), M::Vmaskmovps | M::Vpmaskmovd) { 4 } else { 8 };
                let store = instruction.op0_kind() == OpKind::Memory;
                plan.mask = Mask::Vector(number(1), element);
                if store {
                    plan.kind = Kind::StoreRegister(number(2));
                }
                let operand = plan.memory.as_mut()?;
                *operand =
                    Memory { read: !store, write: store, masked: true, whole: false, element, ..*operand };
                if !store {
                    plan.mask = Mask::Vector(number(1), element);
                    return Some(false);
                }
            }
            M::Vpgatherdd
            | M::Vgatherdps
            | M::Vpgatherdq
            | M::Vgatherdpd
            | M::Vpgatherqd
            | M::Vgatherqps
            | M::Vpgatherqq
            | M::Vgatherqpd
            | M::Vpscatterdd
            | M::Vscatterdps
            | M::Vpscatterdq
            | M::Vscatterdpd
            | M::Vpscatterqd
            | M::Vscatterqps
            | M::Vpscatterqq
            | M::Vscatterqpd => plan.kind = Kind::Gather(Gather::new(instruction)?),
            _ => return Some(false),
        }
        Some(true)
    }

    /// A thunk for an instruction that is canonical already.
    fn simple(&mut self, instruction: &Instruction) -> Option<usize> {
        let canonical = thunk::canonical(instruction, &mut self.factory)?;
        self.entry(&canonical, Class::Mmx, Touches::MMX)
    }
}

fn iced_memory() -> iced_x86::MemoryOperand {
    iced_x86::MemoryOperand::with_base(Register::RSI)
}
