//! Building the host code of one instruction.

use crate::context::{FAULTED_OFFSET, FLAGS_OFFSET, GPR_OFFSET, MASKS_OFFSET, MXCSR_OFFSET, ZMM_OFFSET};
use crate::emit::{self, Reg, Width};
use crate::plan::{Class, Touches};
use crate::shape;
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, OpAccess, OpCodeOperandKind, OpKind, Register,
};

/// Pointers to the guest's vector registers, by operand: RDI and RSI are taken, and the
/// implicit GPRs (RAX, RCX, RDX) never meet a third vector operand.
pub const POINTERS: [Reg; 4] = [Reg::R8, Reg::R9, Reg::Rdx, Reg::Rcx];
const MASKS: [Register; 4] = [Register::K1, Register::K2, Register::K3, Register::K4];

/// Canonical GPRs in the order of `SimdContext::gpr`.
const GPRS: [Reg; 5] = [Reg::Rax, Reg::Rcx, Reg::Rdx, Reg::R10, Reg::R11];
const GPR_NAMES: [Register; 5] = [Register::RAX, Register::RCX, Register::RDX, Register::R10, Register::R11];
const FIRST_EXPLICIT_GPR: usize = 3;

/// An instruction with its operands replaced by canonical ones.
pub struct Canonical {
    pub instruction: Instruction,
    /// Guest vector register of each vector operand.
    pub vectors: Vec<(u8, OpAccess)>,
    /// Implicit XMM0.
    zero: Option<OpAccess>,
    /// (canonical slot, guest register, access).
    pub gprs: Vec<(u8, u8, OpAccess)>,
    /// Guest opmask register of each canonical one.
    pub masks: Vec<(u8, OpAccess)>,
}

fn is_fixed(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::al
            | K::cl
            | K::ax
            | K::dx
            | K::eax
            | K::rax
            | K::st0
            | K::sti_opcode
            | K::es
            | K::cs
            | K::ss
            | K::ds
    )
}

fn sized(size: usize, slot: usize) -> Register {
    let names = match size {
        1 => [Register::R10L, Register::R11L],
        2 => [Register::R10W, Register::R11W],
        4 => [Register::R10D, Register::R11D],
        _ => [Register::R10, Register::R11],
    };
    names[slot]
}

fn reads(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Write | OpAccess::NoMemAccess)
}

pub fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// Replaces registers and the memory operand; `None` if the operands do not fit the scheme.
pub fn canonical(guest: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Canonical> {
    let mut c = Canonical {
        instruction: *guest,
        vectors: Vec::new(),
        zero: None,
        gprs: Vec::new(),
        masks: Vec::new(),
    };
    let opcode = guest.op_code();
    let mut places = Vec::new();
    let masked = guest.op_mask() != Register::None;
    if masked {
        c.masks.push((guest.op_mask().number() as u8, OpAccess::Read));
        c.instruction.set_op_mask(MASKS[0]);
    }
    for i in 0..guest.op_count() {
        match guest.op_kind(i) {
            OpKind::Register if is_fixed(opcode.op_kind(i)) => {}
            OpKind::Register => places.push((i, replace_register(&mut c, i)?)),
            OpKind::Memory => replace_memory(&mut c.instruction),
            _ => {}
        }
    }
    // Only now: of `psubd xmm1, xmm1` iced says that it does not read XMM1, but the thunk
    // serves other operands as well.
    let info = factory.info(&c.instruction);
    for (operand, place) in places {
        let access = info.op_access(operand);
        match place {
            // Elements that are masked out keep their value.
            Place::Vector(slot) if masked && writes(access) => c.vectors[slot].1 = OpAccess::ReadWrite,
            Place::Vector(slot) => c.vectors[slot].1 = access,
            Place::Mask(slot) => c.masks[slot].1 = access,
            Place::Gpr(slot) => c.gprs[slot].2 = access,
            Place::Own => {}
        }
    }
    add_implicit(&mut c, factory)?;
    Some(c)
}

/// Where a replaced operand's register is kept.
enum Place {
    Vector(usize),
    Gpr(usize),
    Mask(usize),
    /// MMX and x87 registers stay what they are.
    Own,
}

fn replace_memory(instruction: &mut Instruction) {
    instruction.set_segment_prefix(Register::None);
    instruction.set_memory_base(Register::RSI);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(0);
}

fn replace_register(c: &mut Canonical, operand: u32) -> Option<Place> {
    let register = c.instruction.op_register(operand);
    if register.is_vector_register() {
        let slot = c.vectors.len();
        let first = match register.size() {
            16 => Register::XMM1,
            32 => Register::YMM1,
            _ => Register::ZMM1,
        };
        c.vectors.push((register.number() as u8, OpAccess::ReadWrite));
        c.instruction.set_op_register(operand, first + slot as u32);
        return (slot < POINTERS.len()).then_some(Place::Vector(slot));
    }
    if register.is_k() {
        let slot = c.masks.len();
        c.masks.push((register.number() as u8, OpAccess::ReadWrite));
        c.instruction.set_op_register(operand, *MASKS.get(slot)?);
        return Some(Place::Mask(slot));
    }
    if register.is_gpr() {
        let slot = c.gprs.len();
        if slot > 1 || matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
            return None;
        }
        let number = register.full_register().number() as u8;
        c.gprs.push(((FIRST_EXPLICIT_GPR + slot) as u8, number, OpAccess::ReadWrite));
        c.instruction.set_op_register(operand, sized(register.size(), slot));
        return Some(Place::Gpr(slot));
    }
    (register.is_mm() || register.is_st()).then_some(Place::Own)
}

/// Finds registers that the canonical instruction still uses by implication.
fn add_implicit(c: &mut Canonical, factory: &mut InstructionInfoFactory) -> Option<()> {
    let info = factory.info(&c.instruction);
    for used in info.used_registers() {
        let register = used.register().full_register();
        if used.register().is_vector_register() && used.register().number() == 0 {
            c.zero = Some(used.access());
        } else if let Some(slot) = GPR_NAMES[..FIRST_EXPLICIT_GPR].iter().position(|&r| r == register) {
            c.gprs.push((slot as u8, slot as u8, used.access()));
        } else if register.is_gpr()
            && register != Register::RSI
            && !GPR_NAMES[FIRST_EXPLICIT_GPR..].contains(&register)
        {
            return None;
        }
    }
    let implicit = c.gprs.iter().any(|g| usize::from(g.0) < FIRST_EXPLICIT_GPR);
    (c.gprs.len() <= 3 && (!implicit || c.vectors.len() <= 2)).then_some(())
}

impl Canonical {
    /// The instruction in host encoding; also the key under which its thunk is kept.
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.instruction.code() == Code::Cvtpi2ps_xmm_mmm64
            && self.instruction.op1_kind() == OpKind::Memory
        {
            // Some processors go into MMX state here (and report x87 exceptions) though no MMX
            // register is named, others do not: MOVQ XMM5, [RSI]; CVTDQ2PS XMM5, XMM5;
            // MOVSD XMM1, XMM5 is the same without.
            return Some(vec![0xf3, 0x0f, 0x7e, 0x2e, 0x0f, 0x5b, 0xed, 0xf2, 0x0f, 0x10, 0xcd]);
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.instruction, 0x1000).ok()?;
        Some(encoder.take_buffer())
    }

    /// The whole thunk around `core`, the encoded instruction.
    pub fn build(&self, core: &[u8], class: Class, touches: Touches) -> Vec<u8> {
        let width = match class {
            Class::Avx512 => Width::Zmm,
            Class::Avx => Width::Ymm,
            _ => Width::Xmm,
        };
        let mut code = emit::Code::default();
        if touches.contains(Touches::FLAGS_READ) {
            code.load_flags(FLAGS_OFFSET);
        }
        for (slot, &(_, access)) in self.vectors.iter().enumerate() {
            if reads(access) {
                code.move_vector(slot as u8 + 1, POINTERS[slot], width, false);
            }
        }
        if self.zero.is_some() {
            code.move_vector_zero(ZMM_OFFSET, width, false);
        }
        for slot in 0..self.masks.len() {
            code.move_mask(slot as u8 + 1, MASKS_OFFSET + 8 * slot, false);
        }
        for &(slot, _, _) in &self.gprs {
            code.load_gpr(GPRS[usize::from(slot)], GPR_OFFSET + 8 * usize::from(slot));
        }
        code.bytes(core);
        if touches.contains(Touches::FLAGS_WRITE) {
            code.store_flags(FLAGS_OFFSET);
        }
        if width == Width::Ymm {
            code.clear_five();
        }
        for (slot, &(_, access)) in self.vectors.iter().enumerate() {
            if writes(access) {
                code.move_vector(slot as u8 + 1, POINTERS[slot], width, true);
            }
        }
        if self.zero.is_some_and(writes) {
            code.move_vector_zero(ZMM_OFFSET, width, true);
        }
        for (slot, &(_, access)) in self.masks.iter().enumerate() {
            if writes(access) {
                code.move_mask(slot as u8 + 1, MASKS_OFFSET + 8 * slot, true);
            }
        }
        for &(slot, _, access) in &self.gprs {
            if writes(access) {
                code.store_gpr(GPRS[usize::from(slot)], GPR_OFFSET + 8 * usize::from(slot));
            }
        }
        if width != Width::Xmm {
            code.vzeroupper();
        }
        code.ret();
        code.0
    }
}

/// Where a thunk continues after an unmasked SIMD exception: nothing is stored but MXCSR.
pub fn recovery() -> Vec<u8> {
    let mut code = emit::Code::default();
    code.stmxcsr(MXCSR_OFFSET);
    code.store_byte(FAULTED_OFFSET, 1);
    if crate::host_supports(iced_x86::CpuidFeature::AVX) {
        code.vzeroupper();
    }
    code.ret();
    code.0
}

/// Whether `core` may run natively at all: never anything that leaves the thunk.
pub fn is_plain(instruction: &Instruction) -> bool {
    instruction.flow_control() == iced_x86::FlowControl::Next
        && !instruction.is_privileged()
        && !shape::is_masked_store(instruction)
}
