//! Moves, extensions, LEA, conditional moves.

use super::{ANY, FLAT32, FLAT64, address, form, is_immediate, plain_register};
use crate::block::Cache;
use crate::core::Core;
use crate::flags::{mask, sx};
use crate::op::{Op, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};

fn mov_rr<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    core.set_reg(op.dst, S, core.reg(op.src, S));
    next!(core, cache, op, rest)
}

fn mov_ri<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    core.set_reg(op.dst, S, op.imm);
    next!(core, cache, op, rest)
}

fn mov_rm<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let value = some!(core.load(linear, S, op), core, op);
    core.set_reg(op.dst, S, value);
    next!(core, cache, op, rest)
}

fn mov_mr<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, true), core, op);
    let value = core.r[usize::from(op.src)];
    store!(core.store(linear, S, value, op), core, cache, op, rest, {})
}

fn mov_mi<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, true), core, op);
    store!(core.store(linear, S, op.imm, op), core, cache, op, rest, {})
}

/// MOVZX and MOVSX to a register of `aux` bytes from one of S bytes.
fn extend_rr<'a, const SIGN: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    extend::<SIGN, S>(core, op, core.reg(op.src, S));
    next!(core, cache, op, rest)
}

fn extend_rm<'a, const SIGN: bool, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let value = some!(core.load(linear, S, op), core, op);
    extend::<SIGN, S>(core, op, value);
    next!(core, cache, op, rest)
}

#[inline(always)]
fn extend<const SIGN: bool, const S: usize>(core: &mut Core, op: &Op, value: u64) {
    let value = if SIGN { sx(value, S) } else { value };
    match op.aux {
        8 => core.set_reg(op.dst, 8, value),
        4 => core.set_reg(op.dst, 4, value),
        _ => core.set_reg(op.dst, 2, value),
    }
}

fn lea<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let value = if A == ANY {
        core.offset(op)
    } else {
        core.r[usize::from(op.base)]
            .wrapping_add(core.r[usize::from(op.index)] << (op.scale & 3))
            .wrapping_add(op.disp)
    };
    core.set_reg(op.dst, S, value & mask(S));
    next!(core, cache, op, rest)
}

fn nothing<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    next!(core, cache, op, rest)
}

/// CBW, CWDE, CDQE: S is the result's size.
fn extend_a<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    core.set_reg(0, S, sx(core.reg(0, S / 2), S / 2) & mask(S));
    next!(core, cache, op, rest)
}

/// CWD, CDQ, CQO.
fn sign_d<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let sign = (sx(core.reg(0, S), S) as i64 >> 63) as u64;
    core.set_reg(2, S, sign & mask(S));
    next!(core, cache, op, rest)
}

fn cmov_rr<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let from = if core.cond(op.aux as u8) { op.src } else { op.dst };
    core.set_reg(op.dst, S, core.reg(from, S));
    next!(core, cache, op, rest)
}

fn cmov_rm<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let value = some!(core.load(linear, S, op), core, op);
    let value = if core.cond(op.aux as u8) { value } else { core.reg(op.dst, S) };
    core.set_reg(op.dst, S, value);
    next!(core, cache, op, rest)
}

fn setcc_r<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let value = u64::from(core.cond(op.aux as u8));
    core.set_reg(op.dst, 1, value);
    next!(core, cache, op, rest)
}

fn xchg_rr<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let (a, b) = (core.reg(op.dst, S), core.reg(op.src, S));
    core.set_reg(op.dst, S, b);
    core.set_reg(op.src, S, a);
    next!(core, cache, op, rest)
}

macro_rules! by_form {
    ($form:expr, $size:expr, $f:ident $(, $x:expr)*) => {
        match $form {
            FLAT64 => sized!($size, $f $(, $x)*, FLAT64),
            FLAT32 => sized!($size, $f $(, $x)*, FLAT32),
            _ => sized!($size, $f $(, $x)*, ANY),
        }
    };
}

pub(super) fn select(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        Mov => select_mov(core, i, op),
        Movzx | Movsx | Movsxd => select_extend(core, i, op),
        Lea => {
            let Some(target) = plain_register(i, 0) else { return false };
            op.dst = target;
            let size = i.op0_register().size();
            // The upper half falls away for results of 32 bits from 64-bit sums.
            op.run = if op.cut == 0 { sized!(size, lea, FLAT64) } else { sized!(size, lea, ANY) };
            true
        }
        Nop | Endbr64 | Endbr32 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw => {
            op.run = nothing;
            true
        }
        Cbw | Cwde | Cdqe => {
            let size = [2, 4, 8][(i.mnemonic() == Cwde) as usize + 2 * (i.mnemonic() == Cdqe) as usize];
            op.run = sized!(size, extend_a_any);
            true
        }
        Cwd | Cdq | Cqo => {
            let size = [2, 4, 8][(i.mnemonic() == Cdq) as usize + 2 * (i.mnemonic() == Cqo) as usize];
            op.run = sized!(size, sign_d);
            true
        }
        Xchg => {
            let (Some(a), Some(b)) = (plain_register(i, 0), plain_register(i, 1)) else { return false };
            (op.dst, op.src) = (a, b);
            op.run = sized!(i.op0_register().size(), xchg_rr);
            true
        }
        _ => select_conditional(core, i, op),
    }
}

/// As [`extend_a`]; a result of one byte does not exist.
fn extend_a_any<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    match S {
        2 => extend_a::<2>(core, cache, op, rest),
        4 => extend_a::<4>(core, cache, op, rest),
        _ => extend_a::<8>(core, cache, op, rest),
    }
}

fn select_mov(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    let size = core.operand_size(i, 0);
    if let Some(target) = plain_register(i, 0) {
        op.dst = target;
        if is_immediate(i, 1) {
            op.imm = i.immediate(1) & mask(size);
            op.run = sized!(size, mov_ri);
        } else if let Some(source) = plain_register(i, 1) {
            op.src = source;
            op.run = sized!(size, mov_rr);
        } else if i.op1_kind() == OpKind::Memory {
            op.run = by_form!(form(core, i, op), size, mov_rm);
        } else {
            return false;
        }
        return true;
    }
    if i.op0_kind() != OpKind::Memory {
        return false;
    }
    if is_immediate(i, 1) {
        op.imm = i.immediate(1) & mask(size);
        op.run = by_form!(form(core, i, op), size, mov_mi);
    } else if let Some(source) = plain_register(i, 1) {
        op.src = source;
        op.run = by_form!(form(core, i, op), size, mov_mr);
    } else {
        return false;
    }
    true
}

fn select_extend(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    let Some(target) = plain_register(i, 0) else { return false };
    let signed = i.mnemonic() != Mnemonic::Movzx;
    let from = core.operand_size(i, 1);
    op.dst = target;
    op.aux = i.op0_register().size() as u16;
    if i.op1_kind() == OpKind::Memory {
        let form = form(core, i, op);
        op.run = if signed {
            by_form!(form, from, extend_rm, true)
        } else {
            by_form!(form, from, extend_rm, false)
        };
        return true;
    }
    let Some(source) = plain_register(i, 1) else { return false };
    op.src = source;
    op.run = if signed { sized!(from, extend_rr, true) } else { sized!(from, extend_rr, false) };
    true
}

fn select_conditional(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    let code = i.condition_code() as u8;
    let Some(target) = (i.op_count() > 0).then(|| plain_register(i, 0)).flatten() else { return false };
    match i.mnemonic() {
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns | Cmovp
        | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => {
            op.dst = target;
            op.aux = u16::from(code - 1);
            let size = i.op0_register().size();
            if let Some(source) = plain_register(i, 1) {
                op.src = source;
                op.run = sized!(size, cmov_rr);
            } else {
                op.run = by_form!(form(core, i, op), size, cmov_rm);
            }
            true
        }
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp | Setl
        | Setge | Setle | Setg => {
            op.dst = target;
            op.aux = u16::from(code - 1);
            op.run = setcc_r;
            true
        }
        _ => false,
    }
}
