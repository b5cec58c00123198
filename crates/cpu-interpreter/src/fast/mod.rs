//! Handlers chosen at decode time by operation, form and size.

#[macro_use]
mod dispatch;
mod alu;
mod branch;
mod moves;
mod simd;
mod stack;
mod wide;

use crate::block::Cache;
use crate::core::{Core, mode};
use crate::exec::{Flow, gpr};
use crate::flags::mask;
use crate::op::{Handler, Op, Stop};
use cpu::state::seg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub use branch::{fill_branch, fill_links, fuse};
pub use simd::simd_handler;

/// Runs through the generic interpreter.
pub const GENERIC: Handler = generic;
/// As [`GENERIC`], for instructions that end their block.
pub const GENERIC_END: Handler = generic_end;
/// #UD.
pub const UNDEFINED: Handler = undefined;
/// Goes on at `imm` (the block was cut).
pub const CONTINUE: Handler = branch::jump;
// How a memory operand's linear address is formed.
/// 64-bit code, no FS or GS.
const FLAT64: u8 = 0;
/// Any segment, limits checked.
const ANY: u8 = 1;
/// 32-bit addresses in flat segments.
const FLAT32: u8 = 2;

/// The linear address; `None`: [`Core::fault`] is set.
#[inline(always)]
fn address<const A: u8>(core: &mut Core, op: &Op, size: usize, write: bool) -> Option<u64> {
    if A == ANY {
        return any_address(core, op, size, write);
    }
    let sum = core.r[usize::from(op.base)]
        .wrapping_add(core.r[usize::from(op.index)] << (op.scale & 3))
        .wrapping_add(op.disp);
    Some(if A == FLAT32 { sum & 0xffff_ffff } else { sum })
}

#[inline(never)]
fn any_address(core: &mut Core, op: &Op, size: usize, write: bool) -> Option<u64> {
    core.operand(op, size, write).map_err(|fault| core.fault = fault).ok()
}

/// Which address form `i` can use in the present mode.
fn form(core: &Core, i: &Instruction, op: &Op) -> u8 {
    let fs_gs = matches!(i.memory_segment(), Register::FS | Register::GS);
    // CS is flat, too, but not writable.
    let flat = core.mode & mode::FLAT != 0 && i.memory_segment() != Register::CS;
    match op.cut {
        0 if core.is_64bit() && !fs_gs => FLAT64,
        32 if core.is_64bit() && !fs_gs => FLAT32,
        32 if flat && core.mode & mode::CODE == mode::CODE32 && !fs_gs => FLAT32,
        _ => ANY,
    }
}

fn generic<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    if generic_step(core, cache, op) {
        next!(core, cache, op, rest)
    }
    generic_left(core, op)
}

/// `true`: go on with the next operation.
#[inline(never)]
fn generic_step(core: &mut Core, cache: &Cache, op: &Op) -> bool {
    let Some(i) = cache.insns.get(op.extra as usize) else { return false };
    core.rip = op.pc;
    core.settle_flags();
    match core.exec(i, op) {
        Ok(Flow::Next) if !core.smc && core.pending_db == 0 && !core.debug_hit => return true,
        Ok(flow) => core.flow = flow,
        Err(fault) => {
            core.fault = fault;
            core.flow = Flow::Halt;
            core.rip = op.pc;
            core.faulted = true;
        }
    }
    false
}

#[inline(never)]
fn generic_left(core: &mut Core, op: &Op) -> Stop {
    core.smc = false;
    if std::mem::take(&mut core.faulted) {
        core.budget += i64::from(op.left);
        return Stop::Fault;
    }
    core.budget += i64::from(op.left) - i64::from(core.flow != Flow::Again);
    match core.flow {
        Flow::Next | Flow::End => {
            core.advance_rip(op);
            Stop::Resolve
        }
        Flow::Branch => Stop::Resolve,
        Flow::Again => {
            core.rip = op.pc;
            Stop::Resolve
        }
        Flow::Halt => {
            core.advance_rip(op);
            Stop::Halt
        }
    }
}

fn generic_end<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    if generic_step(core, cache, op) {
        core.flow = Flow::Next;
    }
    generic_left(core, op)
}

fn undefined<'a>(core: &mut Core, _: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    core.fault = cpu::Fault::UD;
    core.refused(op)
}

impl Core {
    /// `rip` to the next instruction.
    pub fn advance_rip(&mut self, op: &Op) {
        let wide = [mask(2), mask(4), u64::MAX, u64::MAX];
        self.rip = op.next_pc() & wide[(self.mode & mode::CODE) as usize];
    }
}

/// The register number of operand `n` if it is a general register that handlers can use.
fn plain_register(i: &Instruction, n: u32) -> Option<u8> {
    if i.op_kind(n) != OpKind::Register || !i.op_register(n).is_gpr() {
        return None;
    }
    let (number, high) = gpr(i.op_register(n));
    (!high).then_some(number)
}

fn is_immediate(i: &Instruction, n: u32) -> bool {
    i.op_count() > n
        && matches!(
            i.op_kind(n),
            OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
}

/// Whether `i` cannot fault, reads no flags but those iced lists, and has a handler of its
/// own: then the flags before it are dead if it overwrites them.
pub fn is_pure(core: &Core, i: &Instruction) -> bool {
    use Mnemonic::*;
    if core.mode & mode::SLOW != 0 || i.has_lock_prefix() {
        return false;
    }
    let registers = (0..i.op_count()).all(|n| plain_register(i, n).is_some() || is_immediate(i, n));
    match i.mnemonic() {
        Lea => true,
        Nop | Endbr64 | Endbr32 | Cdqe | Cqo | Cdq | Cwde => true,
        Shl | Sal | Shr | Sar => registers && is_immediate(i, 1) && i.immediate(1) & 31 != 0,
        Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec
        | Neg | Not => registers,
        Imul => registers && i.op_count() >= 2,
        _ => false,
    }
}

/// Chooses a handler of its own for `i`; `at` is the operation's index in the cache.
/// `false`: the generic interpreter must do.
pub fn select(core: &Core, i: &Instruction, op: &mut Op, flags: bool, at: usize) -> bool {
    if i.is_invalid() || i.has_lock_prefix() {
        return false;
    }
    branch::select(core, i, op, at)
        || alu::select(core, i, op, flags)
        || moves::select(core, i, op)
        || stack::select(core, i, op)
        || wide::select(core, i, op)
}

/// Stack accesses of 64-bit code.
const STACK_SEG: u8 = seg::SS as u8;
