//! Operands: registers, immediates, and addresses that hit what they are meant to hit.

use super::state;
use crate::case::{Case, layout};
use crate::rng::Rng;
use iced_x86::{
    Code, EncodingKind, Instruction, MemorySize, Mnemonic, OpCodeInfo, OpCodeOperandKind as K, OpKind,
    Register, RoundingControl,
};

/// Builds instructions for one case, whose registers it sets as addresses need them.
pub struct Build<'a> {
    rng: &'a mut Rng,
    case: &'a mut Case,
    /// Several instructions: some registers hold addresses, the others data.
    snippet: bool,
    /// 64-bit code; otherwise 32-bit.
    long: bool,
    /// GPRs whose value is settled.
    fixed: u16,
}

const GPR64: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
/// In snippets: RBX RBP RSI RDI R12 R13 (and RSP) hold addresses.
const ADDRESS: [usize; 7] = [3, 5, 6, 7, 12, 13, 4];
const DATA: [usize; 9] = [0, 1, 2, 8, 9, 10, 11, 14, 15];

fn gpr(number: usize, size: usize) -> Register {
    let full = GPR64[number & 15];
    match size {
        1 => Register::AL + number as u32 + if number >= 4 { 4 } else { 0 },
        2 => full.full_register32() - Register::EAX as u32 + Register::AX as u32,
        4 => full.full_register32(),
        _ => full,
    }
}

impl<'a> Build<'a> {
    pub fn new(rng: &'a mut Rng, case: &'a mut Case, snippet: bool) -> Self {
        let long = case.bits == 64;
        Build { rng, case, snippet, long, fixed: 0 }
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    pub fn rip(&self) -> u64 {
        self.case.registers.rip
    }

    fn data_gpr(&mut self) -> usize {
        if self.snippet { self.pick(&DATA) } else { self.any() }
    }

    pub fn address_gpr(&mut self) -> usize {
        if self.snippet { self.pick(&ADDRESS) } else { self.any() }
    }

    /// Any register number that the mode has.
    fn any(&mut self) -> usize {
        self.rng.below(if self.long { 16 } else { 8 }) as usize
    }

    /// The number of a vector register.
    fn vector(&mut self, i: &Instruction) -> u32 {
        let high = self.long && i.encoding() == EncodingKind::EVEX && self.rng.one_in(2);
        self.any() as u32 + if high { 16 } else { 0 }
    }

    fn pick(&mut self, from: &[usize]) -> usize {
        loop {
            let number = self.rng.pick(from);
            if self.long || number < 8 {
                return number;
            }
        }
    }

    /// An instruction of this encoding, to stand at `rip`.
    pub fn instruction(&mut self, code: Code, rip: u64) -> Option<Instruction> {
        let opcode = code.op_code();
        let mut i = Instruction::new();
        i.set_code(code);
        let evex = code.encoding() == EncodingKind::EVEX;
        let mut memory = None;
        for operand in 0..opcode.op_count() {
            self.operand(&mut i, operand, opcode.op_kind(operand), rip, &mut memory)?;
        }
        if evex {
            self.decorate(&mut i, opcode, memory.is_some());
        }
        if let Some(vsib) = memory {
            self.memory(&mut i, vsib, rip)?;
        }
        if opcode.can_use_lock_prefix() && i.op0_kind() == OpKind::Memory && self.rng.one_in(4) {
            i.set_has_lock_prefix(true);
        }
        if opcode.can_use_rep_prefix() && self.rng.one_in(2) {
            i.set_has_rep_prefix(true);
        } else if opcode.can_use_repne_prefix() && self.rng.one_in(2) {
            i.set_has_repne_prefix(true);
        }
        Some(i)
    }

    /// Masks, zeroing, broadcasts and rounding of an EVEX encoding.
    fn decorate(&mut self, i: &mut Instruction, opcode: &OpCodeInfo, memory: bool) {
        if opcode.can_use_op_mask_register() && (opcode.require_op_mask_register() || !self.rng.one_in(4)) {
            i.set_op_mask(Register::K1 + self.rng.below(7) as u32);
            let register = i.op0_kind() == OpKind::Register;
            i.set_zeroing_masking(opcode.can_use_zeroing_masking() && register && self.rng.one_in(2));
        }
        if memory {
            i.set_is_broadcast(opcode.can_broadcast() && self.rng.one_in(2));
        } else if opcode.can_use_rounding_control() && self.rng.one_in(3) {
            let modes = [
                RoundingControl::RoundToNearest,
                RoundingControl::RoundDown,
                RoundingControl::RoundUp,
                RoundingControl::RoundTowardZero,
            ];
            i.set_rounding_control(self.rng.pick(&modes));
        } else if opcode.can_suppress_all_exceptions() && self.rng.one_in(3) {
            i.set_suppress_all_exceptions(true);
        }
    }

    fn operand(
        &mut self,
        i: &mut Instruction,
        operand: u32,
        kind: K,
        rip: u64,
        memory: &mut Option<K>,
    ) -> Option<()> {
        let register = match kind {
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
                if self.rng.below(5) < 3 =>
            {
                i.set_op_kind(operand, OpKind::Memory);
                *memory = Some(kind);
                return Some(());
            }
            K::mem
            | K::mem_offs
            | K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z
            | K::seg_rBX_al => {
                i.set_op_kind(operand, OpKind::Memory);
                *memory = Some(kind);
                return Some(());
            }
            K::r8_reg | K::r8_opcode | K::r8_or_mem => {
                if self.rng.one_in(5) {
                    Register::AH + self.rng.below(4) as u32
                } else {
                    let number = self.data_gpr();
                    if self.long || number < 4 { gpr(number, 1) } else { Register::AH + (number - 4) as u32 }
                }
            }
            K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode | K::r16_or_mem => {
                gpr(self.data_gpr(), 2)
            }
            K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_or_mem => {
                gpr(self.data_gpr(), 4)
            }
            K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_or_mem => {
                gpr(self.data_gpr(), 8)
            }
            K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0 + self.rng.below(8) as u32,
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_or_mem => {
                Register::XMM0 + self.vector(i)
            }
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_or_mem => {
                Register::YMM0 + self.vector(i)
            }
            K::zmm_reg | K::zmm_rm | K::zmm_vvvv | K::zmm_or_mem => Register::ZMM0 + self.vector(i),
            K::k_reg | K::k_rm | K::k_vvvv | K::k_or_mem => Register::K0 + self.rng.below(8) as u32,
            K::seg_reg => Register::ES + self.rng.below(6) as u32,
            K::cr_reg => {
                // In 32-bit code CR8 has only AMD's encoding.
                let names = [Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8];
                self.rng.pick(&names[..if self.long { 5 } else { 4 }])
            }
            K::dr_reg => Register::DR0 + self.rng.pick(&[0u32, 1, 2, 3, 6, 7]),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + self.rng.below(8) as u32,
            _ => return self.other_operand(i, operand, kind, rip),
        };
        i.set_op_kind(operand, OpKind::Register);
        i.set_op_register(operand, register);
        Some(())
    }

    /// Immediates, branch targets and string operands.
    fn other_operand(&mut self, i: &mut Instruction, operand: u32, kind: K, rip: u64) -> Option<()> {
        let value = self.rng.value();
        let (op_kind, value) = match kind {
            K::imm8 | K::imm4_m2z => {
                (OpKind::Immediate8, if self.rng.one_in(2) { value & 0x1f } else { value & 0xff })
            }
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 => (OpKind::Immediate16, value & 0xffff),
            K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as u64),
            K::imm64 => (OpKind::Immediate64, value),
            K::br64_1 | K::br64_4 => {
                let near = rip.wrapping_add(16 + self.rng.below(100));
                i.set_op_kind(operand, OpKind::NearBranch64);
                i.set_near_branch64(near);
                return Some(());
            }
            K::br32_1 | K::br32_4 => {
                i.set_op_kind(operand, OpKind::NearBranch32);
                i.set_near_branch32(rip.wrapping_add(16 + self.rng.below(100)) as u32);
                return Some(());
            }
            K::seg_rSI | K::es_rDI | K::seg_rDI => {
                let narrow = !self.long || {
                    let first = i.op0_kind();
                    operand > 0 && matches!(first, OpKind::MemorySegESI | OpKind::MemoryESEDI)
                };
                i.set_op_kind(
                    operand,
                    match (kind, narrow) {
                        (K::seg_rSI, false) => OpKind::MemorySegRSI,
                        (K::seg_rSI, true) => OpKind::MemorySegESI,
                        (K::es_rDI, false) => OpKind::MemoryESRDI,
                        (K::es_rDI, true) => OpKind::MemoryESEDI,
                        (_, false) => OpKind::MemorySegRDI,
                        (_, true) => OpKind::MemorySegEDI,
                    },
                );
                return Some(());
            }
            _ => return None,
        };
        i.set_op_kind(operand, op_kind);
        if i.op_code().op_count() == 2 && i.mnemonic() == Mnemonic::Enter && operand == 1
            || i.mnemonic() == Mnemonic::Extrq
            || i.mnemonic() == Mnemonic::Insertq
        {
            i.try_set_immediate_i64(operand, (value & 0x3f) as i64).ok()?;
        } else {
            i.try_set_immediate_u64(operand, value).ok()?;
        }
        Some(())
    }

    /// Gives the memory operand a form and the registers values so that it hits its target.
    fn memory(&mut self, i: &mut Instruction, kind: K, rip: u64) -> Option<()> {
        let size = access_size(i);
        let mut target = target(self.rng, size);
        if !self.long && target >> 32 != 0 {
            target = 0xffff_0000 + self.rng.below(0xff00);
        }
        state::patch(self.case, 0, target, &interesting(self.rng));
        i.set_memory_displ_size(if self.long { 8 } else { 4 });
        match kind {
            K::mem_offs => {
                i.set_memory_displacement64(target);
                return Some(());
            }
            K::seg_rBX_al => {
                i.set_memory_base(if self.long { Register::RBX } else { Register::EBX });
                i.set_memory_index(Register::AL);
                i.set_memory_displ_size(0);
                self.set(3, target.wrapping_sub(self.case.registers.gpr[0] & 0xff));
                return Some(());
            }
            K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z => {
                return self.vector_memory(i, kind);
            }
            _ => {}
        }
        if self.rng.one_in(20) {
            let prefixes = [Register::DS, Register::ES, Register::SS, Register::CS, Register::GS];
            // GS is null in 32-bit code, CS not writable.
            let usable = if self.long { &prefixes[..] } else { &prefixes[..3] };
            i.set_segment_prefix(self.rng.pick(usable));
        }
        match self.rng.below(12) {
            0 if self.long => {
                i.set_memory_base(Register::RIP);
                i.set_memory_displacement64(target);
                let near = target.wrapping_sub(rip) as i64;
                (near.unsigned_abs() < 1 << 30).then_some(())
            }
            1 if !self.long || target < 1 << 31 => {
                i.set_memory_displacement64(target);
                Some(())
            }
            form => self.based(i, target, form == 2 && target < 1 << 32),
        }
    }

    fn set(&mut self, number: usize, value: u64) {
        self.case.registers.gpr[number] = if self.long { value } else { value & 0xffff_ffff };
        self.fixed |= 1 << number;
    }

    fn based(&mut self, i: &mut Instruction, target: u64, narrow: bool) -> Option<()> {
        let narrow = narrow || !self.long;
        let size = if narrow { 4 } else { 8 };
        let base = self.address_gpr();
        let indexed = self.rng.one_in(3);
        let index = self.data_gpr();
        let scale = 1u64 << self.rng.below(4);
        let mut displacement = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(256) as i64 - 128,
            _ => self.rng.word() as i32 as i64 >> self.rng.below(24),
        };
        if self.snippet && self.fixed >> base & 1 != 0 {
            displacement = target.wrapping_sub(self.case.registers.gpr[base]) as i64;
            if i32::try_from(displacement).is_err() {
                return None;
            }
        } else if indexed && index != 4 && !self.snippet {
            i.set_memory_index(gpr(index, size));
            i.set_memory_index_scale(scale as u32);
            if index == base {
                let value = target.wrapping_sub(displacement as u64) / (1 + scale);
                displacement = target.wrapping_sub(value.wrapping_mul(1 + scale)) as i64;
                if i32::try_from(displacement).is_err() {
                    return None;
                }
                self.set(base, value);
            } else {
                let value = self.rng.value();
                self.set(index, value);
                self.set(
                    base,
                    target.wrapping_sub(value.wrapping_mul(scale)).wrapping_sub(displacement as u64),
                );
            }
        } else {
            self.set(base, target.wrapping_sub(displacement as u64));
        }
        if narrow && self.long && base != 4 {
            let garbage = self.rng.word() << 32;
            let low = self.case.registers.gpr[base] & 0xffff_ffff;
            self.case.registers.gpr[base] = low | garbage;
        }
        if narrow {
            displacement = i64::from(displacement as i32);
        }
        i.set_memory_base(gpr(base, size));
        i.set_memory_displacement64(if narrow {
            displacement as u64 & 0xffff_ffff
        } else {
            displacement as u64
        });
        i.set_memory_displ_size(if displacement == 0 && base & 7 != 5 { 0 } else { 1 });
        Some(())
    }

    /// Gathers: elements around a base inside the data pages, now and then one outside.
    fn vector_memory(&mut self, i: &mut Instruction, kind: K) -> Option<()> {
        let base = self.any();
        let index = self.vector(i) as usize;
        let scale = 1u64 << self.rng.below(4);
        let middle = layout::DATA + 4096 + self.rng.below(64);
        self.set(base, middle);
        let wild = self.rng.one_in(4);
        let words = if i.encoding() == EncodingKind::EVEX { 8 } else { 4 };
        for word in &mut self.case.registers.zmm[index][..words] {
            let mut near = || {
                let reach = if wild { 9000 } else { 4000 };
                (self.rng.below(2 * reach) as i64 - reach as i64) / scale as i64
            };
            *word = if matches!(kind, K::mem_vsib64x | K::mem_vsib64y | K::mem_vsib64z) {
                near() as u64
            } else {
                near() as u64 & 0xffff_ffff | (near() as u64) << 32
            };
        }
        let first = match kind {
            K::mem_vsib32x | K::mem_vsib64x => Register::XMM0,
            K::mem_vsib32y | K::mem_vsib64y => Register::YMM0,
            _ => Register::ZMM0,
        };
        i.set_memory_base(gpr(base, if self.long { 8 } else { 4 }));
        i.set_memory_index(first + index as u32);
        i.set_memory_index_scale(scale as u32);
        i.set_memory_displacement64(0);
        i.set_memory_displ_size(1);
        Some(())
    }
}

fn access_size(i: &Instruction) -> u64 {
    match i.memory_size() {
        MemorySize::Unknown => 16,
        size => (size.size() as u64).clamp(1, 64),
    }
}

/// An address to hit with an access of `size` bytes.
pub fn target(rng: &mut Rng, size: u64) -> u64 {
    use layout::{CODE, DATA, DATA_END, DATA_SIZE, PAGE, READ_ONLY};
    let align = size.next_power_of_two().min(64);
    let inside = DATA + rng.below(DATA_SIZE - size);
    let before = |rng: &mut Rng, edge: u64| edge - 1 - rng.below(size.max(2) - 1);
    match rng.below(100) {
        0..58 => inside & !(align - 1),
        58..76 => inside,
        76..82 => before(rng, DATA + PAGE),
        82..87 => before(rng, READ_ONLY),
        87..91 => (READ_ONLY + rng.below(PAGE - 64)) & !(align - 1),
        91..94 => before(rng, DATA_END),
        94..96 => before(rng, DATA),
        96..98 => DATA_END + rng.below(100_000),
        98 => CODE + rng.below(4000),
        _ => 0x8000_0000_0000 << rng.below(8),
    }
}

fn interesting(rng: &mut Rng) -> [u8; 64] {
    let mut bytes = [0; 64];
    let kind = rng.below(3);
    for word in bytes.chunks_exact_mut(8) {
        let value = if kind == 0 { rng.value() } else { rng.float() };
        word.copy_from_slice(&value.to_le_bytes());
    }
    if kind == 2 {
        bytes[..16].copy_from_slice(&rng.extended());
    }
    bytes
}
