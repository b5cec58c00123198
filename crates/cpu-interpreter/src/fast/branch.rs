//! Jumps, calls and returns within a code segment.

use super::stack::flat_stack;
use super::{ANY, FLAT32, FLAT64, STACK_SEG, address, alu, form, is_immediate, plain_register};
use crate::block::{Cache, follow, follow_indirect};
use crate::core::{Core, mode};
use crate::exec::branch_size;
use crate::flags::{condition, condition_sub, mask, sx};
use crate::op::{FAR_LINK, Handler, Op, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// To `imm`.
pub(super) fn jump<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    follow(core, cache, op, 0, op.imm)
}

/// To `target` if condition `aux` holds, else on.
fn jump_if<'a, const CC: u8>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    if core.cond(CC) {
        follow(core, cache, op, 0, op.target)
    } else {
        follow(core, cache, op, 1, op.next_pc())
    }
}

/// Any condition (the branch's own).
const ANY_CC: u8 = 16;

/// Whether condition `CC` holds for the flags that operation `O` has just set.
#[inline(always)]
fn holds<const O: u8, const CC: u8, const S: usize>(core: &Core, op: &Op, a: u64, b: u64, r: u64) -> bool {
    if CC == ANY_CC {
        return core.cond(op.aux as u8 & 15);
    }
    match O {
        alu::CMP | alu::SUB => condition_sub(sx(r, S), sx(a, S), sx(b, S), CC),
        alu::TEST | alu::AND => condition(sx(r, S), 0, CC),
        _ => core.cond(CC),
    }
}

/// An operation on a register and a register or immediate, then Jcc.
fn compute_jump<'a, const O: u8, const CC: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    _: &'a [Op],
) -> Stop {
    let (a, b) = (core.reg(op.dst, S), core.reg(op.src, S) | op.imm);
    let r = alu::result::<O, S>(core, a, b);
    alu::set_flags::<O, S>(core, a, b, r);
    if alu::writes(O) {
        core.set_reg(op.dst, S, r);
    }
    if holds::<O, CC, S>(core, op, a, b, r) {
        follow(core, cache, op, 0, op.target)
    } else {
        follow(core, cache, op, 1, op.next_pc())
    }
}

/// CMP or TEST of memory with a register or immediate, then Jcc.
fn memory_jump<'a, const O: u8, const A: u8, const CC: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    _: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let a = some!(core.load(linear, S, op), core, op);
    let b = core.reg(op.src, S) | op.imm;
    let r = alu::result::<O, S>(core, a, b);
    alu::set_flags::<O, S>(core, a, b, r);
    if holds::<O, CC, S>(core, op, a, b, r) {
        follow(core, cache, op, 0, op.target)
    } else {
        follow(core, cache, op, 1, op.next_pc())
    }
}

fn call<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    let top = core.r[4].wrapping_sub(S as u64) & mask(S);
    if !core.store(top, S, op.next_pc(), op) {
        if !core.smc {
            return core.refused(op);
        }
        core.smc = false;
        core.r[4] = top;
        core.rip = op.imm;
        return Stop::Resolve;
    }
    core.r[4] = top;
    follow(core, cache, op, 0, op.imm)
}

fn ret<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    let top = core.r[4] & mask(S);
    let target = some!(core.load(top, S, op), core, op);
    if S == 8 && !Core::canonical(target) {
        core.fault = cpu::Fault::GP0;
        return core.refused(op);
    }
    core.r[4] = top.wrapping_add(S as u64 + op.imm) & mask(S);
    follow_indirect(core, cache, target)
}

fn jump_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    let target = core.reg(op.src, S);
    go(core, cache, op, target)
}

fn jump_m<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    _: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let target = some!(core.load(linear, S, op), core, op);
    go(core, cache, op, target)
}

fn call_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, _: &'a [Op]) -> Stop {
    let target = core.reg(op.src, S);
    call_to::<S>(core, cache, op, target)
}

fn call_m<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    _: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let target = some!(core.load(linear, S, op), core, op);
    call_to::<S>(core, cache, op, target)
}

#[inline(always)]
fn go<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, target: u64) -> Stop {
    if !Core::canonical(target) {
        core.fault = cpu::Fault::GP0;
        return core.refused(op);
    }
    follow_indirect(core, cache, target)
}

#[inline(always)]
fn call_to<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, target: u64) -> Stop {
    if S == 8 && !Core::canonical(target) {
        core.fault = cpu::Fault::GP0;
        return core.refused(op);
    }
    let top = core.r[4].wrapping_sub(S as u64) & mask(S);
    if !core.store(top, S, op.next_pc(), op) {
        if !core.smc {
            // The operand's segment is another one than the stack's.
            if core.fault == cpu::Fault::GP0 {
                core.fault = cpu::Fault::SS0;
            }
            return core.refused(op);
        }
        core.smc = false;
        core.r[4] = top;
        core.rip = target;
        return Stop::Resolve;
    }
    core.r[4] = top;
    follow_indirect(core, cache, target)
}

macro_rules! condition {
    ($cc:expr, $f:ident) => {
        match $cc {
            0 => $f::<0>,
            1 => $f::<1>,
            2 => $f::<2>,
            3 => $f::<3>,
            4 => $f::<4>,
            5 => $f::<5>,
            6 => $f::<6>,
            7 => $f::<7>,
            8 => $f::<8>,
            9 => $f::<9>,
            10 => $f::<10>,
            11 => $f::<11>,
            12 => $f::<12>,
            13 => $f::<13>,
            14 => $f::<14>,
            _ => $f::<15>,
        }
    };
}

/// Marks which links leave the page. A block that runs in one-instruction mode or under a
/// code-segment limit keeps no links at all (the run loop makes the checks).
pub fn fill_links(op: &mut Op, core: &Core, at: usize) {
    op.extra = at as u32;
    let page = |target: u64| core.linear_rip(target) & !0xfff;
    let here = core.linear_rip(op.pc) & !0xfff;
    let targets = if op.links_two() { [op.target, op.next_pc()] } else { [op.imm, op.imm] };
    for n in 0..2 {
        if page(targets[n]) != here {
            op.aux |= FAR_LINK[n];
        }
    }
}

impl Op {
    fn links_two(&self) -> bool {
        self.aux & TWO != 0
    }
}

/// [`Op::aux`]: a conditional branch (target in `target`).
const TWO: u16 = 0x400;

/// Fills a conditional branch's target and condition.
pub fn fill_branch(op: &mut Op, core: &Core, branch: &Instruction, at: usize) {
    op.target = branch.near_branch_target();
    op.aux = TWO | u16::from(branch.condition_code() as u8 - 1);
    fill_links(op, core, at);
}

fn is_jcc(i: &Instruction) -> bool {
    matches!(i.flow_control(), iced_x86::FlowControl::ConditionalBranch)
        && i.condition_code() as u8 != 0
        && !matches!(i.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne)
}

/// Whether near branches need no limit check.
fn free(core: &Core, i: &Instruction) -> bool {
    core.mode & mode::WIDE_CS != 0
        && core.mode & mode::CODE != 0
        && branch_size(i, core.is_64bit()) == if core.is_64bit() { 8 } else { 4 }
}

/// All conditions that occur often after a comparison.
macro_rules! compare {
    ($o:expr, $cc:expr, $size:expr) => {
        match $cc {
            2 => sized!($size, compute_jump, $o, 2),
            3 => sized!($size, compute_jump, $o, 3),
            4 => sized!($size, compute_jump, $o, 4),
            5 => sized!($size, compute_jump, $o, 5),
            6 => sized!($size, compute_jump, $o, 6),
            7 => sized!($size, compute_jump, $o, 7),
            8 => sized!($size, compute_jump, $o, 8),
            9 => sized!($size, compute_jump, $o, 9),
            12 => sized!($size, compute_jump, $o, 12),
            13 => sized!($size, compute_jump, $o, 13),
            14 => sized!($size, compute_jump, $o, 14),
            15 => sized!($size, compute_jump, $o, 15),
            _ => sized!($size, compute_jump, $o, ANY_CC),
        }
    };
}

/// Equal, not equal, or any.
macro_rules! equal_or_any {
    ($cc:expr, $size:expr, $f:ident $(, $x:expr)*) => {
        match $cc {
            4 => sized!($size, $f $(, $x)*, 4),
            5 => sized!($size, $f $(, $x)*, 5),
            _ => sized!($size, $f $(, $x)*, ANY_CC),
        }
    };
}

/// A handler for `first` and the branch after it as one operation.
pub fn fuse(core: &Core, first: &Instruction, branch: &Instruction, op: &Op) -> Option<Fused> {
    if core.mode & (mode::SLOW | mode::SINGLE) != 0 || !is_jcc(branch) || !free(core, branch) {
        return None;
    }
    if first.has_lock_prefix() || !core.features.allows(first) {
        return None;
    }
    let cc = branch.condition_code() as u8 - 1;
    let o = match first.mnemonic() {
        Mnemonic::Inc => alu::INC,
        Mnemonic::Dec => alu::DEC,
        _ => alu::alu_code(first.mnemonic())?,
    };
    let size = core.operand_size(first, 0);
    let (src, imm) = match o {
        alu::INC | alu::DEC => (crate::op::ZERO, 1),
        _ if is_immediate(first, 1) => (crate::op::ZERO, first.immediate(1) & mask(size)),
        _ => (plain_register(first, 1)?, 0),
    };
    if first.op0_kind() == OpKind::Memory {
        let form = form(core, first, op);
        let run: Handler = match (o, form) {
            (alu::CMP, FLAT64) => equal_or_any!(cc, size, memory_jump, alu::CMP, FLAT64),
            (alu::CMP, ANY) => equal_or_any!(cc, size, memory_jump, alu::CMP, ANY),
            (alu::TEST, FLAT64) => equal_or_any!(cc, size, memory_jump, alu::TEST, FLAT64),
            (alu::TEST, ANY) => equal_or_any!(cc, size, memory_jump, alu::TEST, ANY),
            _ => return None,
        };
        return Some(Fused { run, dst: crate::op::ZERO, src, imm });
    }
    let dst = plain_register(first, 0)?;
    let run = match o {
        alu::CMP => compare!(alu::CMP, cc, size),
        alu::TEST => compare!(alu::TEST, cc, size),
        alu::SUB => equal_or_any!(cc, size, compute_jump, alu::SUB),
        alu::ADD => equal_or_any!(cc, size, compute_jump, alu::ADD),
        alu::AND => equal_or_any!(cc, size, compute_jump, alu::AND),
        alu::INC => equal_or_any!(cc, size, compute_jump, alu::INC),
        alu::DEC => equal_or_any!(cc, size, compute_jump, alu::DEC),
        _ => return None,
    };
    Some(Fused { run, dst, src, imm })
}

/// What [`fuse`] found.
pub struct Fused {
    pub run: Handler,
    pub dst: u8,
    pub src: u8,
    pub imm: u64,
}

pub(super) fn select(core: &Core, i: &Instruction, op: &mut Op, at: usize) -> bool {
    use Mnemonic::*;
    let far = i.is_jmp_far_indirect() || i.is_call_far_indirect() || i.is_jmp_far() || i.is_call_far();
    if far || !matches!(i.mnemonic(), Jmp | Call | Ret) && !is_jcc(i) || !free(core, i) {
        return false;
    }
    let near = matches!(i.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
    let wide = core.is_64bit();
    if is_jcc(i) {
        fill_branch(op, core, i, at);
        op.run = condition!(i.condition_code() as u8 - 1, jump_if);
        return true;
    }
    if i.mnemonic() == Jmp && near {
        op.imm = i.near_branch_target();
        op.run = jump;
        fill_links(op, core, at);
        return true;
    }
    if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        return false;
    }
    let Some(width) = flat_stack(core) else { return false };
    match i.mnemonic() {
        Call if near => {
            op.imm = i.near_branch_target();
            op.run = if width == 8 { call::<8> } else { call::<4> };
            fill_links(op, core, at);
            op.seg = STACK_SEG;
        }
        Ret => {
            op.imm = if i.op_count() > 0 { i.immediate(0) & 0xffff } else { 0 };
            op.seg = STACK_SEG;
            op.run = if width == 8 { ret::<8> } else { ret::<4> };
        }
        _ if !matches!(i.memory_size().size(), 0 | 4 | 8) => return false,
        Jmp => match plain_register(i, 0) {
            Some(register) => {
                op.src = register;
                op.run = if wide { jump_r::<8> } else { jump_r::<4> };
            }
            None => {
                op.run = match (form(core, i, op), wide) {
                    (FLAT64, _) => jump_m::<FLAT64, 8>,
                    (FLAT32, true) => jump_m::<FLAT32, 8>,
                    (FLAT32, false) => jump_m::<FLAT32, 4>,
                    (_, true) => jump_m::<ANY, 8>,
                    (_, false) => jump_m::<ANY, 4>,
                }
            }
        },
        _ => match plain_register(i, 0) {
            Some(register) => {
                op.src = register;
                op.run = if wide { call_r::<8> } else { call_r::<4> };
            }
            None => {
                op.run = match (form(core, i, op), wide) {
                    (FLAT64, _) => call_m::<FLAT64, 8>,
                    (FLAT32, true) => call_m::<FLAT32, 8>,
                    (FLAT32, false) => call_m::<FLAT32, 4>,
                    (_, true) => call_m::<ANY, 8>,
                    (_, false) => call_m::<ANY, 4>,
                }
            }
        },
    }
    true
}
