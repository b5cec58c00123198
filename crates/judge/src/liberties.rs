//! What processors do differently at a fault: seen on AMD's (family 19h) and Intel's (Rocket Lake)
//! silicon; the manuals say little of it. The engines do it one way everywhere.

use crate::case::{Case, Outcome};
use iced_x86::{Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, Register};

const SIMD_FAULT: u64 = 19;
/// FSW.ES.
const SUMMARY: u16 = 1 << 7;

/// What is not compared of a case that was cut short.
#[derive(Default)]
pub struct Liberties {
    /// Anything: the silicon went on where the engine faulted.
    pub all: bool,
    /// Anything but RIP: another fault of the instruction may be told of.
    pub fault: bool,
    /// The offset in the page that CR2 tells of.
    pub offset: bool,
    /// Of an instruction with several stores or one of many bytes, the first may have been made.
    pub memory: bool,
    /// Vector registers with this number: parts beyond what was loaded may be zero.
    pub vectors: [Option<usize>; 2],
    /// MMX instructions may have emptied the x87 stack.
    pub x87: bool,
    /// Exceptions of the operation may be noted although its store was not made.
    pub mxcsr: bool,
    /// A comparison of a string that stopped may have been noted.
    pub flags: bool,
    /// The upper halves of RCX, RSI and RDI may be zero: a string instruction with 32-bit addresses.
    pub halves: bool,
}

impl Liberties {
    pub fn of(case: &Case, silicon: &Outcome, engine: &Outcome) -> Liberties {
        // Where one went on, the other tells what it was.
        let i = instruction(case, engine);
        let faults = |o: &Outcome| matches!(o.vector, 12..=14);
        if !faults(engine) {
            return Liberties::default();
        }
        Liberties {
            all: is_pending(&i, silicon) || is_out_of_bounds(&i, silicon),
            fault: may_swap(&i, silicon, engine) || may_wrap(&i, case, silicon, engine),
            offset: i.has_op_mask(),
            memory: is_x87_store(&i) || i.is_call_near_indirect(),
            vectors: gather(&i),
            x87: mentions_mmx(&i) && i.op0_kind() == OpKind::Memory,
            mxcsr: i.mnemonic() == Mnemonic::Vcvtps2ph,
            flags: is_scan(&i) && (i.has_rep_prefix() || i.has_repne_prefix()),
            halves: is_narrow_string(&i),
        }
    }
}

fn instruction(case: &Case, outcome: &Outcome) -> Instruction {
    let from = outcome.registers.rip.wrapping_sub(case.registers.rip);
    let bytes = usize::try_from(from).ok().and_then(|from| case.code().get(from..)).unwrap_or_default();
    Decoder::with_ip(case.bits as u32, bytes, outcome.registers.rip, DecoderOptions::AMD).decode()
}

/// A store of the x87 that raises an unmasked exception is not made, so that it need not fault.
fn is_pending(i: &Instruction, silicon: &Outcome) -> bool {
    is_x87_store(i) && silicon.registers.fsw & SUMMARY != 0
}

/// Intel's BOUND looks at the upper bound only where the lower one holds.
fn is_out_of_bounds(i: &Instruction, silicon: &Outcome) -> bool {
    const BR: u64 = 5;
    i.mnemonic() == Mnemonic::Bound && silicon.vector == BR
}

/// In 32-bit code what reaches beyond 4 GiB may violate the limit or wrap around (SDM 3, 5.3).
fn may_wrap(i: &Instruction, case: &Case, silicon: &Outcome, engine: &Outcome) -> bool {
    let either = matches!(silicon.vector, 12..=14) && silicon.vector != engine.vector;
    if case.bits != 32 || !either {
        return false;
    }
    let value = |r: Register| match r.is_gpr() {
        true => engine.registers.gpr[r.full_register().number()] as u32,
        false => 0,
    };
    let index = value(i.memory_index()).wrapping_mul(i.memory_index_scale());
    let at = value(i.memory_base()).wrapping_add(index).wrapping_add(i.memory_displacement64() as u32);
    // Where indices lie in a vector any may be such a one.
    i.is_vsib() || at.checked_add((i.memory_size().size() as u32).saturating_sub(1)).is_none()
}

/// CMPS touches its operands in either order, and so on.
fn may_swap(i: &Instruction, silicon: &Outcome, engine: &Outcome) -> bool {
    use Mnemonic::*;
    let faults = matches!(silicon.vector, 12..=14);
    match i.mnemonic() {
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => i.is_string_instruction() && faults,
        // The target comes first in the manuals' operation, the push on AMD's silicon.
        Call => i.is_call_near_indirect() && faults && silicon.vector != engine.vector,
        Vcvtps2ph => silicon.vector == SIMD_FAULT,
        // An operand that ends beyond the segment and begins on a bad page.
        _ => i.is_string_instruction() && faults && silicon.vector != engine.vector,
    }
}

fn is_scan(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq)
}

fn is_narrow_string(i: &Instruction) -> bool {
    let narrow = |n| matches!(i.op_kind(n), OpKind::MemoryESEDI | OpKind::MemorySegESI);
    (i.has_rep_prefix() || i.has_repne_prefix()) && (0..i.op_count()).any(narrow)
}

fn is_x87_store(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Fst | Fstp | Fist | Fistp | Fisttp | Fbstp) && i.op0_kind() == OpKind::Memory
}

fn mentions_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

/// The result's and the mask's register of a gather in AVX2's form.
fn gather(i: &Instruction) -> [Option<usize>; 2] {
    let number = |r: Register| r.is_vector_register().then(|| r.number());
    match i.is_vsib() && i.encoding() == EncodingKind::VEX {
        true => [number(i.op0_register()), number(i.op2_register())],
        false => [None; 2],
    }
}
