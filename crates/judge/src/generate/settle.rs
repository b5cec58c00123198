//! What follows once an instruction is chosen: values for its implicit registers, and what the
//! architecture leaves open about it.

use super::operands::target;
use crate::case::{Case, Registers, layout};
use crate::rng::Rng;
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register, RflagsBits};

/// After the instruction is known: implicit registers get values that make sense.
pub fn settle(rng: &mut Rng, case: &mut Case, i: &Instruction) {
    settle_registers(rng, case, i);
    if case.bits == 32 {
        for value in &mut case.registers.gpr[..8] {
            *value &= 0xffff_ffff;
        }
    }
}

fn settle_registers(rng: &mut Rng, case: &mut Case, i: &Instruction) {
    use Mnemonic as M;
    let used = |number: usize| {
        [i.memory_base(), i.memory_index()].iter().any(|r| r.is_gpr() && r.full_register().number() == number)
    };
    let kinds: Vec<OpKind> = (0..i.op_count()).map(|n| i.op_kind(n)).collect();
    let has = |wanted: &[OpKind]| kinds.iter().any(|k| wanted.contains(k));
    if has(&[OpKind::MemorySegRSI, OpKind::MemorySegESI]) {
        case.registers.gpr[6] = target(rng, 8);
    }
    if has(&[OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemorySegRDI, OpKind::MemorySegEDI]) {
        case.registers.gpr[7] = target(rng, 16);
        if rng.one_in(4) {
            case.registers.gpr[7] = case.registers.gpr[6].wrapping_add(rng.below(40)).wrapping_sub(20);
        }
    }
    if matches!(i.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu) {
        // Whether masked-out bytes can fault is up to the processor.
        case.registers.gpr[7] = layout::DATA + rng.below(layout::DATA_SIZE - 16);
    }
    if i.has_rep_prefix() || i.has_repne_prefix() {
        case.registers.gpr[1] = match rng.below(10) {
            0 => 0,
            1 => 1,
            2 => rng.below(3000),
            3 => rng.below(20) | 1 << 32,
            _ => rng.below(40),
        };
        if i.op_count() > 0
            && matches!(i.mnemonic(), M::Scasb | M::Cmpsb | M::Scasw | M::Cmpsw)
            && rng.one_in(2)
        {
            let same = [case.registers.gpr[0] as u8; 64];
            super::state::patch(case, 0, case.registers.gpr[7], &same);
            super::state::patch(case, 1, case.registers.gpr[6], &same);
        }
    }
    if i.is_stack_instruction() && !used(4) {
        case.registers.gpr[4] =
            if rng.one_in(3) { target(rng, 8) } else { layout::DATA + 1024 + 8 * rng.below(700) };
    }
    let rsp = case.registers.gpr[4];
    match i.mnemonic() {
        M::Popf | M::Popfd | M::Popfq => {
            let flags = rng.word() & 0x24_7cd5 | 0x202;
            super::state::patch(case, 1, rsp, &flags.to_le_bytes());
        }
        M::Ldmxcsr | M::Vldmxcsr => {
            // AMD's processors have bit 17 (misaligned exception mask), the models here do not.
            let wild = rng.word() & if rng.below(4) > 0 { 0xffff } else { !0x2_0000 };
            let start = layout::DATA + u64::from(case.patches[0].offset);
            super::state::patch(case, 0, start, &wild.to_le_bytes());
        }
        M::Fxrstor | M::Fxrstor64 => {
            // MXCSR's reserved bits mostly clear; bit 17 always (as for LDMXCSR).
            let mostly = rng.below(4) > 0;
            if let Some(high) = case.patches[0].bytes.get_mut(26..28) {
                high[0] &= !2;
                if mostly {
                    high.fill(0);
                }
            }
        }
        M::Ret => super::state::patch(case, 1, rsp, &code_target(rng, case.registers.rip).to_le_bytes()),
        // How much of POPA is done when it faults is open.
        M::Popa | M::Popad => case.registers.gpr[4] = layout::DATA + 4096 + rng.below(3000),
        M::Enter | M::Leave => case.registers.gpr[5] = target(rng, 8),
        M::Div | M::Idiv if !used(2) && rng.below(3) > 0 => {
            case.registers.gpr[2] = if rng.one_in(2) { 0 } else { rng.below(20) };
            if rng.one_in(3) && !used(0) {
                case.registers.gpr[0] = rng.below(1 << 20);
            }
        }
        M::Bt | M::Bts | M::Btr | M::Btc
            if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register =>
        {
            let number = i.op1_register().full_register().number();
            if !used(number) {
                let bits = rng.below(2000).wrapping_sub(1000);
                case.registers.gpr[number] = bits;
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if rng.one_in(2) => {
            let bytes = case.patches[0].bytes;
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
            if !used(0) {
                case.registers.gpr[0] =
                    if i.mnemonic() == M::Cmpxchg8b { word(0) & 0xffff_ffff } else { word(0) };
            }
            if i.mnemonic() != M::Cmpxchg && !used(2) {
                case.registers.gpr[2] = if i.mnemonic() == M::Cmpxchg8b { word(0) >> 32 } else { word(8) };
            }
        }
        M::Jmp | M::Call if i.op0_kind() == OpKind::Register => {
            let number = i.op0_register().full_register().number();
            case.registers.gpr[number] = code_target(rng, case.registers.rip);
        }
        M::Jmp | M::Call if i.op0_kind() == OpKind::Memory => {
            if !used(4) {
                // Which of a bad stack and a bad target comes first is open.
                case.registers.gpr[4] = layout::DATA + 4096;
            }
            let offset = case.patches[0].offset;
            super::state::patch(
                case,
                0,
                layout::DATA + u64::from(offset),
                &code_target(rng, case.registers.rip).to_le_bytes(),
            );
        }
        _ => {}
    }
}

/// x87 and SSE state images have fields that may differ.
fn is_image(name: &str) -> bool {
    name.starts_with("fxsave")
        || name.starts_with("fxrstor")
        || matches!(name, "fnstenv" | "fldenv" | "fnsave" | "frstor")
}

/// Instructions with latitude in what they access: see [`tolerate`].
fn tolerant(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}").to_lowercase();
    // AMD has a bit more in MXCSR.
    name.starts_with("sha1")
        || name.starts_with("sha256")
        || name.contains("maskmov")
        || name.contains("gather")
        || name.contains("ldmxcsr")
        || is_image(&name)
}

/// Not every processor faults on misaligned memory operands of SHA instructions.
pub fn misaligned_sha(i: &Instruction, r: &Registers) -> bool {
    i.cpuid_features().contains(&CpuidFeature::SHA)
        && (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
        && effective_address(i, r).is_none_or(|address| address & 15 != 0)
}

/// The address of the memory operand (segment bases are 0).
fn effective_address(i: &Instruction, r: &Registers) -> Option<u64> {
    let operand = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory)?;
    let value = |register: Register, _, _| {
        if !register.is_gpr() {
            return Some(0);
        }
        let full = r.gpr[register.full_register().number() & 15];
        Some(if register.size() == 4 { full & 0xffff_ffff } else { full })
    };
    i.virtual_address(operand, 0, value)
}

/// Fields of state images that depend on what ran before (FIP, FDP, FOP) or on the processor
/// (MXCSR_MASK).
fn open_fields(i: &Instruction) -> [(u64, u64); 2] {
    match i.code() {
        Code::Fxsave_m512byte | Code::Fxsave64_m512byte => [(6, 18), (28, 4)],
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => [(6, 8), (0, 0)],
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => [(12, 16), (0, 0)],
        _ => [(0, 0); 2],
    }
}

/// PUSH of a selector as a doubleword.
fn is_selector_push(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Push
        && i.op0_register().is_segment_register()
        && i.stack_pointer_increment() == -4
}

/// Latitude that processors have.
pub fn tolerate(case: &mut Case, i: &Instruction) {
    use Mnemonic as M;
    let address = effective_address(i, &case.registers).unwrap_or(0);
    if is_image(&format!("{:?}", i.mnemonic()).to_lowercase()) {
        // Which byte of a large operand is touched first is open.
        case.address_mask = 0;
    }
    case.open_memory = open_fields(i).map(|(offset, len)| (address.wrapping_add(offset), len));
    if is_selector_push(i) {
        // Some processors write the selector only, not the whole item.
        case.open_memory[0] = ((case.registers.gpr[4] as u32).wrapping_sub(2).into(), 2);
    }
    match i.mnemonic() {
        // A masked access may fault at its first byte or its first masked byte.
        M::Maskmovq
        | M::Maskmovdqu
        | M::Vmaskmovdqu
        | M::Vmaskmovps
        | M::Vmaskmovpd
        | M::Vpmaskmovd
        | M::Vpmaskmovq => {
            case.address_mask = !0xfff;
        }
        _ if i.op_mask() != Register::None => case.address_mask = !0xfff,
        M::Vpgatherdd | M::Vgatherdps | M::Vpgatherqd | M::Vgatherqps => {
            case.gather_mask = 32 << 8 | (i.op2_register().number() as u64 + 1);
        }
        M::Vpgatherdq | M::Vgatherdpd | M::Vpgatherqq | M::Vgatherqpd => {
            case.gather_mask = 64 << 8 | (i.op2_register().number() as u64 + 1);
        }
        _ => {}
    }
}

/// Where an indirect branch goes: INT3 in the code pages, or nowhere.
fn code_target(rng: &mut Rng, rip: u64) -> u64 {
    if rng.one_in(10) {
        return layout::CODE - 4096 - rng.below(1000);
    }
    loop {
        let target = layout::CODE + rng.below(layout::CODE_SIZE);
        // Not into the instruction itself: that would go round for ever.
        if target.wrapping_sub(rip) >= 16 {
            return target;
        }
    }
}

/// RFLAGS bits of iced's own numbering.
fn to_rflags(bits: u32) -> u64 {
    let map = [
        (RflagsBits::OF, 0x800),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, 0x10),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::DF, 0x400),
    ];
    map.iter().filter(|(iced, _)| bits & iced != 0).map(|(_, flag)| flag).sum()
}

pub fn flags_read(i: &Instruction) -> u64 {
    match i.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => 0x8d5,
        _ => to_rflags(i.rflags_read()),
    }
}

pub fn flags_defined(i: &Instruction) -> u64 {
    use Mnemonic as M;
    // A shift by nothing leaves the flags alone.
    if matches!(i.mnemonic(), M::Shl | M::Shr | M::Sal | M::Sar | M::Rol | M::Ror) {
        return 0;
    }
    to_rflags(i.rflags_written() | i.rflags_cleared() | i.rflags_set())
}

/// Whatever the operands, for snippets: shifts may leave every flag as it was.
pub fn undefined_flags_static(i: &Instruction) -> u64 {
    to_rflags(i.rflags_undefined())
}

/// Flags that the architecture leaves open for this instruction with these operands.
pub fn undefined_flags(i: &Instruction, r: &Registers) -> u64 {
    use Mnemonic as M;
    let undefined = to_rflags(i.rflags_undefined());
    let count = shift_count(i, r);
    match i.mnemonic() {
        M::Shl | M::Shr | M::Sal if count >= operand_bits(i) => undefined | 1,
        M::Shld | M::Shrd if count > operand_bits(i) => undefined | 0x8d5,
        _ => undefined,
    }
}

fn operand_bits(i: &Instruction) -> u64 {
    match i.op0_kind() {
        OpKind::Register => 8 * i.op0_register().size() as u64,
        _ => 8 * i.memory_size().size() as u64,
    }
}

fn shift_count(i: &Instruction, r: &Registers) -> u64 {
    let last = i.op_count().saturating_sub(1);
    let raw = match i.op_kind(last) {
        OpKind::Immediate8 => u64::from(i.immediate8()),
        OpKind::Register if i.op_register(last) == Register::CL => r.gpr[1],
        _ => 0,
    };
    raw & if operand_bits(i) == 64 { 63 } else { 31 }
}

/// Whether the result itself is undefined.
pub fn undefined_result(i: &Instruction, r: &Registers) -> bool {
    matches!(i.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && shift_count(i, r) > operand_bits(i)
}

/// Results that depend on undefined matters are not for snippets, whose later instructions
/// would use them.
pub fn suits_snippet(i: &Instruction) -> bool {
    use Mnemonic as M;
    !tolerant(i.mnemonic())
        && !is_selector_push(i)
        && !matches!(
            i.mnemonic(),
            M::Shld
                | M::Shrd
                | M::Bsf
                | M::Bsr
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::Enter
                | M::Leave
                | M::Popa
                | M::Popad
                | M::Shl
                | M::Shr
                | M::Sal
                | M::Rcl
                | M::Rcr
        )
        && !i.has_rep_prefix()
        && !i.has_repne_prefix()
        && !i.is_privileged()
}
