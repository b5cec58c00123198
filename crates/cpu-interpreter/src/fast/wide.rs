//! Multiplication and division with implied registers, bit tests, byte swaps, exchanges.

use super::{ANY, FLAT32, FLAT64, address, form, is_immediate, plain_register};
use crate::block::Cache;
use crate::core::Core;
use crate::flags::{CF, mask, sx};
use crate::op::{Op, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// MUL and IMUL of A by `b`, for sizes above one byte.
#[inline(always)]
fn multiply<const SIGNED: bool, const S: usize>(core: &mut Core, b: u64) {
    let a = core.reg(0, S);
    let (low, high, overflow) = if SIGNED {
        let product = i128::from(sx(a, S) as i64) * i128::from(sx(b, S) as i64);
        let low = product as u64 & mask(S);
        (low, (product >> (S * 8)) as u64 & mask(S), product != i128::from(sx(low, S) as i64))
    } else {
        let product = u128::from(a) * u128::from(b);
        let high = (product >> (S * 8)) as u64 & mask(S);
        (product as u64 & mask(S), high, high != 0)
    };
    core.set_reg(0, S, low);
    core.set_reg(2, S, high);
    core.multiply_flags(low, overflow, S);
}

fn multiply_r<'a, const SIGNED: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    multiply::<SIGNED, S>(core, core.reg(op.src, S));
    next!(core, cache, op, rest)
}

fn multiply_m<'a, const SIGNED: bool, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let b = some!(core.load(linear, S, op), core, op);
    multiply::<SIGNED, S>(core, b);
    next!(core, cache, op, rest)
}

/// DIV of D:A where the high half is zero (or the divisor large enough); `false`: #DE.
#[inline(always)]
fn divide<const S: usize>(core: &mut Core, b: u64) -> bool {
    let (low, high) = (core.reg(0, S), core.reg(2, S));
    if high >= b {
        core.fault = cpu::Fault::DE;
        return false;
    }
    let (quotient, remainder) = if S < 8 {
        let a = high << (S * 8) | low;
        (a / b, a % b)
    } else if high == 0 {
        (low / b, low % b)
    } else {
        let a = u128::from(high) << 64 | u128::from(low);
        ((a / u128::from(b)) as u64, (a % u128::from(b)) as u64)
    };
    core.set_reg(0, S, quotient);
    core.set_reg(2, S, remainder);
    true
}

fn divide_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    if !divide::<S>(core, core.reg(op.src, S)) {
        return core.refused(op);
    }
    next!(core, cache, op, rest)
}

fn bt_r<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let bit = (core.reg(op.src, S) | op.imm) & (S as u64 * 8 - 1);
    let value = core.reg(op.dst, S) >> bit & 1;
    core.settle_flags();
    core.aux = core.aux & !CF | value;
    next!(core, cache, op, rest)
}

fn bswap<'a, const S: usize>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let value = core.reg(op.dst, S).swap_bytes() >> (64 - S * 8);
    core.set_reg(op.dst, S, value);
    next!(core, cache, op, rest)
}

/// XCHG and locked CMPXCHG, XADD and the like stay generic; this is CLD, whose only effect is
/// a flag outside of the arithmetic ones.
fn cld<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    core.st.rflags &= !crate::flags::DF;
    next!(core, cache, op, rest)
}

macro_rules! above_one {
    ($size:expr, $f:ident $(, $x:expr)*) => {
        match $size {
            2 => $f::<$({ $x },)* 2>,
            4 => $f::<$({ $x },)* 4>,
            _ => $f::<$({ $x },)* 8>,
        }
    };
}

pub(super) fn select(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        Mul | Imul if i.op_count() == 1 => select_multiply(core, i, op),
        Div => {
            let Some(source) = plain_register(i, 0) else { return false };
            let size = i.op0_register().size();
            if size < 4 {
                return false;
            }
            op.src = source;
            op.run = above_one!(size, divide_r);
            true
        }
        Bt => {
            let Some(target) = plain_register(i, 0) else { return false };
            op.dst = target;
            if is_immediate(i, 1) {
                op.imm = i.immediate(1);
            } else if let Some(source) = plain_register(i, 1) {
                op.src = source;
            } else {
                return false;
            }
            op.run = above_one!(i.op0_register().size(), bt_r);
            true
        }
        Bswap if i.op0_register().size() >= 4 => {
            let Some(target) = plain_register(i, 0) else { return false };
            op.dst = target;
            op.run = above_one!(i.op0_register().size(), bswap);
            true
        }
        Cld => {
            op.run = cld;
            true
        }
        _ => false,
    }
}

fn select_multiply(core: &Core, i: &Instruction, op: &mut Op) -> bool {
    let size = core.operand_size(i, 0);
    if size == 1 {
        return false;
    }
    let signed = i.mnemonic() == Mnemonic::Imul;
    if let Some(source) = plain_register(i, 0) {
        op.src = source;
        op.run =
            if signed { above_one!(size, multiply_r, true) } else { above_one!(size, multiply_r, false) };
        return true;
    }
    if i.op0_kind() != OpKind::Memory {
        return false;
    }
    op.run = match (form(core, i, op), signed) {
        (FLAT64, true) => above_one!(size, multiply_m, true, FLAT64),
        (FLAT64, false) => above_one!(size, multiply_m, false, FLAT64),
        (FLAT32, true) => above_one!(size, multiply_m, true, FLAT32),
        (FLAT32, false) => above_one!(size, multiply_m, false, FLAT32),
        (_, true) => above_one!(size, multiply_m, true, ANY),
        (_, false) => above_one!(size, multiply_m, false, ANY),
    };
    true
}
