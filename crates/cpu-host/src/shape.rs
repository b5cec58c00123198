//! What an instruction is, from iced's tables: its class, its memory operand, its quirks.

use crate::evex;
use crate::plan::{Class, Memory, Touches};
use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};

/// RFLAGS bits that instructions of these sets read or write.
pub const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// Instructions that this crate leaves to the interpreter: they move whole states between
/// memory and the vCPU, or carry FIP/FDP/FOP.
fn is_state_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Fnstenv
            | M::Fldenv
            | M::Fnsave
            | M::Frstor
            | M::Fstenv
            | M::Fsave
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Frstpm
            | M::Fnsetpm
            | M::Fsetpm
            | M::Fstdw
            | M::Fnstdw
            | M::Fstsg
            | M::Fnstsg
    )
}

fn is_x87(instruction: &Instruction) -> bool {
    instruction
        .cpuid_features()
        .iter()
        .any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
}

/// The class, or `None` if this is not one of our instructions.
pub fn class(instruction: &Instruction, info: &InstructionInfo) -> Option<Class> {
    let mnemonic = instruction.mnemonic();
    if is_state_move(mnemonic) {
        return None;
    }
    if mnemonic == Mnemonic::Wait {
        return Some(Class::Wait);
    }
    let uses = |kind: fn(Register) -> bool| info.used_registers().iter().any(|r| kind(r.register()));
    // Conversions between memory and general or MMX registers name no vector register.
    let vector = uses(Register::is_vector_register)
        || matches!(mnemonic, Mnemonic::Vzeroupper | Mnemonic::Vzeroall)
        || uses_mxcsr(instruction);
    match instruction.code().encoding() {
        EncodingKind::EVEX => Some(Class::Avx512),
        EncodingKind::VEX if uses(Register::is_k) => Some(Class::Avx512),
        EncodingKind::VEX if vector => Some(Class::Avx),
        EncodingKind::Legacy if is_x87(instruction) => Some(Class::X87),
        EncodingKind::Legacy if vector => Some(Class::Sse),
        EncodingKind::Legacy if uses(Register::is_mm) || mnemonic == Mnemonic::Emms => Some(Class::Mmx),
        _ => None,
    }
}

/// Whether the instruction obeys and updates MXCSR.
pub fn uses_mxcsr(instruction: &Instruction) -> bool {
    const STEMS: [&str; 35] = [
        "addp", "adds", "subp", "subs", "mulp", "muls", "divp", "divs", "sqrt", "min", "max", "cmpp", "cmps",
        "comis", "ucomis", "cvt", "round", "dpp", "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub",
        "addsub", "rcp", "rsqrt", "fixupimm", "fpclass", "getexp", "getmant", "range", "reduce", "rndscale",
        "scalef",
    ];
    use CpuidFeature as F;
    // CMPSB and others share a stem.
    let brings = |f: &F| {
        let before = matches!(
            f,
            F::SSE | F::SSE2 | F::SSE3 | F::SSE4_1 | F::SSE4A | F::AVX | F::AVX2 | F::FMA | F::F16C
        );
        before || matches!(f, F::AVX512F | F::AVX512DQ)
    };
    if !instruction.cpuid_features().iter().any(brings) {
        return false;
    }
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let stem = name.strip_prefix('v').unwrap_or(&name);
    STEMS.iter().any(|s| stem.starts_with(s))
}

pub fn touches(instruction: &Instruction, info: &InstructionInfo, class: Class) -> Touches {
    let mut touches = Touches::empty();
    for used in info.used_registers() {
        let register = used.register();
        let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        if register.is_mm() {
            touches |= Touches::MMX;
        } else if register.is_vector_register() {
            touches |= Touches::VECTOR;
        } else if register.is_gpr() && writes && !is_address(instruction, register) {
            touches |= Touches::GPR_WRITE;
        }
    }
    if matches!(class, Class::X87 | Class::Wait) {
        touches |= Touches::X87;
    }
    if matches!(instruction.mnemonic(), Mnemonic::Emms) {
        touches |= Touches::MMX;
    }
    if class != Class::X87 && uses_mxcsr(instruction) {
        touches |= Touches::MXCSR;
    }
    if u64::from(instruction.rflags_modified()) & ARITHMETIC_FLAGS_ICED != 0 {
        touches |= Touches::FLAGS_WRITE;
    }
    if u64::from(instruction.rflags_read()) & ARITHMETIC_FLAGS_ICED != 0 {
        touches |= Touches::FLAGS_READ;
    }
    touches
}

const ARITHMETIC_FLAGS_ICED: u64 =
    (RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF)
        as u64;

fn is_address(instruction: &Instruction, register: Register) -> bool {
    let full = register.full_register();
    full == instruction.memory_base().full_register() || full == instruction.memory_index().full_register()
}

/// The memory operand, if there is one.
pub fn memory(instruction: &Instruction, info: &InstructionInfo, class: Class) -> Option<Memory> {
    let operand = (0..instruction.op_count()).find(|&i| {
        matches!(
            instruction.op_kind(i),
            OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
        )
    })?;
    let access = info.op_access(operand);
    let size = instruction.memory_size().size();
    let masked = is_masked_move(instruction.mnemonic()) || evex::restricts(instruction);
    Some(Memory {
        size: u8::try_from(size).ok().filter(|&size| (1..=64).contains(&size))?,
        read: matches!(
            access,
            OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        ),
        write: matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        ),
        align: alignment(instruction.mnemonic(), class, size),
        masked,
        whole: !masked || evex::needs_all(instruction),
        element: evex::element(instruction),
    })
}

/// Required alignment in bytes (#GP otherwise), SDM vol. 1 §10.4.1.1 and vol. 2 §2.4.
fn alignment(mnemonic: Mnemonic, class: Class, size: usize) -> u8 {
    use Mnemonic as M;
    match class {
        Class::Sse if size == 16 => match mnemonic {
            M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Maskmovdqu => 1,
            M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm => 1,
            M::Pcmpestri64 | M::Pcmpestrm64 => 1,
            _ => 16,
        },
        Class::Avx => match mnemonic {
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => {
                size as u8
            }
            _ => 1,
        },
        Class::Avx512 => match mnemonic {
            M::Vmovaps | M::Vmovapd | M::Vmovdqa32 | M::Vmovdqa64 => size as u8,
            M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => size as u8,
            _ => 1,
        },
        _ => 1,
    }
}

pub fn is_masked_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
    )
}

/// x87 instructions that do not wait for pending exceptions.
pub fn is_non_waiting(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fninit | M::Fnclex | M::Fnstcw | M::Fnstsw | M::Fndisi | M::Fneni)
}

/// x87 control instructions: they leave FIP, FDP and FOP alone.
pub fn is_x87_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    is_non_waiting(mnemonic) || matches!(mnemonic, M::Fldcw | M::Wait)
}

/// FOP of an x87 instruction (SDM vol. 1 §8.1.9): three bits of the first opcode byte over the
/// ModRM byte. `bytes` is the instruction as fetched.
pub fn x87_opcode(bytes: &[u8]) -> u16 {
    let mut rest = bytes.iter().skip_while(|b| !(0xd8..=0xdf).contains(*b));
    match (rest.next(), rest.next()) {
        (Some(&opcode), Some(&modrm)) => u16::from(opcode & 7) << 8 | u16::from(modrm),
        _ => 0,
    }
}

/// A masked store: its data is copied, not executed.
pub fn is_masked_store(instruction: &Instruction) -> bool {
    is_masked_move(instruction.mnemonic()) && instruction.op0_kind() != OpKind::Register
}
