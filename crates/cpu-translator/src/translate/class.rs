//! How each instruction is translated.

use super::{Source, key};
use iced_x86::{Code, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeTableKind, OpKind, Register};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Copied, with its memory operand replaced.
    Native,
    /// Nothing to do.
    Nothing,
    Push,
    Pop,
    Leave,
    Jump,
    /// Jcc.
    Branch,
    /// LOOP without a condition.
    Loop,
    /// JRCXZ.
    CountZero,
    Call,
    CallIndirect,
    JumpIndirect,
    Return,
    /// Left to the interpreter; the block goes on behind it.
    Interpret,
    /// Left to the interpreter; the block ends.
    InterpretEnd,
    /// A system instruction with code of its own; likewise, and the block ends behind it.
    System,
    SystemEnd,
    /// SYSCALL, SYSRET.
    Enter,
}

impl Class {
    /// Whether control goes elsewhere, always or perhaps.
    pub fn leaves(self) -> bool {
        use Class::*;
        matches!(self, Branch | Loop | CountZero | Call | CallIndirect | JumpIndirect | Return)
    }

    /// Whether no look-up of a page stays good behind it.
    pub fn is_barrier(self) -> bool {
        use Class::*;
        matches!(self, Interpret | InterpretEnd | System | SystemEnd | Enter)
    }

    /// Whether the block may be left at this instruction for another reason than a branch.
    pub fn may_leave(self) -> bool {
        !matches!(self, Class::Nothing | Class::Jump)
    }
}

/// Operand 0 is a 64-bit (or, in 32-bit code, 32-bit) stack item.
fn natural_stack(i: &Instruction, bits: u32) -> bool {
    use Code::*;
    match i.code() {
        Push_r64 | Push_rm64 | Pushq_imm8 | Pushq_imm32 | Pop_r64 | Pop_rm64 | Call_rel32_64 | Call_rm64
        | Jmp_rm64 | Retnq | Retnq_imm16 | Leaveq => bits == 64,
        Push_r32 | Push_rm32 | Pushd_imm8 | Pushd_imm32 | Pop_r32 | Pop_rm32 | Call_rel32_32 | Call_rm32
        | Jmp_rm32 | Retnd | Retnd_imm16 | Leaved => bits == 32,
        _ => false,
    }
}

pub fn classify(source: &Source, i: &Instruction) -> Class {
    use Mnemonic::*;
    if i.is_invalid() || !source.core.features.allows(i) {
        return Class::InterpretEnd;
    }
    let bits = source.bits();
    if source.key & super::key::COUNTED != 0 && super::counted::has_open_flags(i) {
        return Class::Interpret;
    }
    if let Some(class) = super::system::classify(source, i) {
        return class;
    }
    // Opcode 82 is not there in 64-bit code, whose bytes are copied.
    let alias = bits == 32 && i.op_code().table() == OpCodeTableKind::Normal && i.op_code().op_code() == 0x82;
    if alias || bits == 32 && !is_flat(source, i) {
        return if i.flow_control() == FlowControl::Next { Class::Interpret } else { Class::InterpretEnd };
    }
    let natural = natural_stack(i, bits);
    let near = if bits == 64 { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
    match i.mnemonic() {
        Nop | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw
        | Prefetch => Class::Nothing,
        Push if natural && stack_operand(i) => Class::Push,
        Pop if natural && i.op0_kind() == OpKind::Register => Class::Pop,
        Leave if natural => Class::Leave,
        Jmp => match i.op0_kind() {
            kind if kind == near => Class::Jump,
            OpKind::Register if natural => Class::JumpIndirect,
            OpKind::Memory if natural => Class::JumpIndirect,
            _ => Class::InterpretEnd,
        },
        Call => match i.op0_kind() {
            kind if natural && kind == near => Class::Call,
            OpKind::Register | OpKind::Memory if natural => Class::CallIndirect,
            _ => Class::InterpretEnd,
        },
        Ret if natural => Class::Return,
        Loop if matches!(i.code(), Code::Loop_rel8_64_RCX | Code::Loop_rel8_32_ECX) => Class::Loop,
        Jrcxz if i.code() == Code::Jrcxz_rel8_64 => Class::CountZero,
        Jecxz if i.code() == Code::Jecxz_rel8_32 => Class::CountZero,
        _ if i.is_jcc_short_or_near() && i.op0_kind() == near => Class::Branch,
        _ if i.flow_control() != FlowControl::Next => Class::InterpretEnd,
        Hlt | Mwait => Class::InterpretEnd,
        _ if is_native(source, i) => Class::Native,
        _ => Class::Interpret,
    }
}

/// 32-bit code: whether the memory operand, if there is one, has a 32-bit address in a segment
/// that is open.
fn is_flat(source: &Source, i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    if !memory {
        return true;
    }
    let narrow = |r: Register| r == Register::None || r.is_gpr32();
    let open = match i.memory_segment() {
        Register::FS => source.key & key::FS_OPEN != 0,
        Register::GS => source.key & key::GS_OPEN != 0,
        // Flat, but not writable.
        Register::CS => false,
        _ => true,
    };
    open && narrow(i.memory_base()) && narrow(i.memory_index()) && i.memory_displ_size() != 2
}

fn stack_operand(i: &Instruction) -> bool {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().is_gpr64() || i.op0_register().is_gpr32(),
        _ => true,
    }
}

/// The general instructions that are copied.
fn is_plain(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Movbe
            | Add
            | Adc
            | Sub
            | Sbb
            | And
            | Or
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Imul
            | Mul
            | Div
            | Idiv
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Bswap
            | Xchg
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Xadd
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Lea
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Mulx
            | Adcx
            | Adox
            | Crc32
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Movnti
            | Pause
            | Lfence
            | Mfence
            | Sfence
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
    )
}

fn is_native(source: &Source, i: &Instruction) -> bool {
    if i.is_privileged() || i.is_stack_instruction() || i.is_string_instruction() || i.is_vsib() {
        return false;
    }
    // Without its feature the host's TZCNT and LZCNT are other instructions.
    let counts = match i.mnemonic() {
        Mnemonic::Tzcnt => source.core.features.tzcnt(),
        Mnemonic::Lzcnt => source.core.features.lzcnt(),
        _ => true,
    };
    if !counts {
        return false;
    }
    let mut vector = false;
    let mut high = false;
    let mut memory = false;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let r = i.op_register(n);
                if r.is_vector_register() || r.is_k() {
                    vector = true;
                } else if !r.is_gpr() && !r.is_st() && !r.is_mm() {
                    return false;
                }
                high |= matches!(r, Register::AH | Register::BH | Register::CH | Register::DH);
            }
            OpKind::Memory => memory = true,
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            _ => return false,
        }
    }
    if memory && high {
        return false;
    }
    if is_plain(i.mnemonic()) {
        return plain_memory(i);
    }
    if uses_x87(i) {
        return source.key & key::X87 != 0 && is_plain_x87(i);
    }
    if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
        // Outside of 64-bit mode they leave the upper eight registers alone.
        return source.key & key::AVX != 0 && source.bits() == 64;
    }
    vector && is_vector(source, i)
}

/// x87 and MMX: the instruction works on the x87 registers.
pub fn uses_x87(i: &Instruction) -> bool {
    let mmx = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    mmx || i.mnemonic() == Mnemonic::Emms || is_x87(i)
}

/// x87 proper, which sets the instruction and data pointers.
pub fn is_x87(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    i.cpuid_features().iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387))
}

/// Neither control nor state as a whole.
fn is_plain_x87(i: &Instruction) -> bool {
    use Mnemonic::*;
    !matches!(
        i.mnemonic(),
        Fldcw
            | Fldenv
            | Fnstenv
            | Fstenv
            | Fnsave
            | Fsave
            | Frstor
            | Fninit
            | Finit
            | Fnclex
            | Fclex
            | Fstcw
            | Fstsw
            | Wait
            | Fxsave
            | Fxrstor
            | Fxsave64
            | Fxrstor64
            | Maskmovq
            | Fneni
            | Fndisi
            | Fnsetpm
    )
}

/// Bit tests with a register reach beyond their operand.
fn plain_memory(i: &Instruction) -> bool {
    use Mnemonic::*;
    !(matches!(i.mnemonic(), Bt | Bts | Btr | Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register)
}

fn is_vector(source: &Source, i: &Instruction) -> bool {
    use Mnemonic::*;
    let on = match i.encoding() {
        EncodingKind::Legacy => key::SSE,
        _ if is_avx512(i) => key::AVX512,
        EncodingKind::VEX => key::AVX,
        _ => return false,
    };
    if source.key & on == 0 {
        return false;
    }
    let excluded = matches!(
        i.mnemonic(),
        Maskmovdqu
            | Vmaskmovdqu
            | Maskmovq
            | Vmaskmovps
            | Vmaskmovpd
            | Vpmaskmovd
            | Vpmaskmovq
            | Extrq
            | Insertq
    );
    // How much of memory they access depends on their mask.
    let compact = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) && cpu_host::is_compact(i);
    !excluded && !compact && i.cpuid_features().iter().all(|&f| cpu_host::host_supports(f))
}

/// EVEX, or an instruction on opmasks.
pub fn is_avx512(i: &Instruction) -> bool {
    let opmask = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_k();
    i.encoding() == EncodingKind::EVEX || (0..i.op_count()).any(opmask)
}

/// Bytes of which a vector's memory operand must be a multiple; 1: any address.
pub fn alignment(i: &Instruction, size: u32) -> u32 {
    use Mnemonic::*;
    let vector =
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_vector_register());
    if i.mnemonic() == Cmpxchg16b {
        return 16;
    }
    if !vector || size < 16 {
        return 1;
    }
    match i.mnemonic() {
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => size,
        Vmovdqa32 | Vmovdqa64 => size,
        Movups | Movupd | Movdqu | Lddqu | Pcmpistri | Pcmpistrm | Pcmpestri | Pcmpestrm => 1,
        _ if i.encoding() == EncodingKind::Legacy => size,
        _ => 1,
    }
}
