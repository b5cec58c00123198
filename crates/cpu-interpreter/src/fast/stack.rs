//! PUSH, POP and LEAVE in 64-bit code and on flat 32-bit stacks.

use super::{STACK_SEG, is_immediate, plain_register};
use crate::block::Cache;
use crate::core::{Core, mode};
use crate::flags::mask;
use crate::op::{Op, Stop};
use iced_x86::{Instruction, Mnemonic};

/// `S`: bytes pushed and width of the stack pointer.
fn push_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let top = core.r[4].wrapping_sub(S as u64) & mask(S);
    let value = core.r[usize::from(op.src)];
    store!(core.store(top, S, value, op), core, cache, op, rest, { core.r[4] = top })
}

fn push_i<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let top = core.r[4].wrapping_sub(S as u64) & mask(S);
    store!(core.store(top, S, op.imm, op), core, cache, op, rest, { core.r[4] = top })
}

fn pop_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let top = core.r[4] & mask(S);
    let value = some!(core.load(top, S, op), core, op);
    core.r[4] = top.wrapping_add(S as u64) & mask(S);
    core.set_reg(op.dst, S, value);
    next!(core, cache, op, rest)
}

fn leave<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let frame = core.r[5] & mask(S);
    let value = some!(core.load(frame, S, op), core, op);
    core.r[4] = frame.wrapping_add(S as u64) & mask(S);
    core.r[5] = value;
    next!(core, cache, op, rest)
}

/// Bytes of the stack pointer if the stack needs no segment checks.
pub(super) fn flat_stack(core: &Core) -> Option<usize> {
    if core.is_64bit() {
        Some(8)
    } else if core.mode & (mode::FLAT | mode::STACK32) == mode::FLAT | mode::STACK32
        && core.mode & mode::CODE == mode::CODE32
    {
        Some(4)
    } else {
        None
    }
}

pub(super) fn select(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    let Some(width) = flat_stack(core) else { return false };
    match i.mnemonic() {
        Push | Pop => {}
        Leave => {
            if (i.code() == iced_x86::Code::Leaveq) != (width == 8) || i.code() == iced_x86::Code::Leavew {
                return false;
            }
            op.seg = STACK_SEG;
            op.run = if width == 8 { leave::<8> } else { leave::<4> };
            return true;
        }
        _ => return false,
    }
    if i.stack_pointer_increment().unsigned_abs() as usize != width {
        return false;
    }
    let wide = width == 8;
    if i.mnemonic() == Pop {
        let Some(target) = plain_register(i, 0) else { return false };
        op.dst = target;
        op.run = if wide { pop_r::<8> } else { pop_r::<4> };
    } else if is_immediate(i, 0) {
        op.imm = i.immediate(0);
        op.run = if wide { push_i::<8> } else { push_i::<4> };
    } else if let Some(source) = plain_register(i, 0) {
        op.src = source;
        op.run = if wide { push_r::<8> } else { push_r::<4> };
    } else {
        return false;
    }
    op.seg = STACK_SEG;
    true
}
