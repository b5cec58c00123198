//! Integer arithmetic.

use super::{ANY, FLAT32, FLAT64, address, form, is_immediate, plain_register};
use crate::block::Cache;
use crate::core::Core;
use crate::flags::{CF, Kind, mask, of_add, of_sub, sx};
use crate::op::{Handler, Op, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(super) const ADD: u8 = 0;
const OR: u8 = 1;
const ADC: u8 = 2;
const SBB: u8 = 3;
pub(super) const AND: u8 = 4;
pub(super) const SUB: u8 = 5;
const XOR: u8 = 6;
pub(super) const CMP: u8 = 7;
pub(super) const TEST: u8 = 8;
pub(super) const INC: u8 = 9;
pub(super) const DEC: u8 = 10;

/// `a op b`.
#[inline(always)]
pub(super) fn result<const O: u8, const S: usize>(core: &Core, a: u64, b: u64) -> u64 {
    let m = mask(S);
    match O {
        ADD => a.wrapping_add(b) & m,
        ADC => a.wrapping_add(b).wrapping_add(u64::from(core.cf())) & m,
        SUB | CMP => a.wrapping_sub(b) & m,
        SBB => a.wrapping_sub(b).wrapping_sub(u64::from(core.cf())) & m,
        AND | TEST => a & b,
        OR => a | b,
        INC => a.wrapping_add(1) & m,
        DEC => a.wrapping_sub(1) & m,
        _ => a ^ b,
    }
}

/// Sets the flags of `a op b = r`.
#[inline(always)]
pub(super) fn set_flags<const O: u8, const S: usize>(core: &mut Core, a: u64, b: u64, r: u64) {
    match O {
        ADD => core.set_operands(Kind::Add, sx(r, S), sx(a, S), sx(b, S)),
        SUB | CMP => core.set_operands(Kind::Sub, sx(r, S), sx(a, S), sx(b, S)),
        ADC => core.set_lazy(of_add(a, b, r, S)),
        SBB => core.set_lazy(of_sub(a, b, r, S)),
        INC | DEC => {
            let carry = u64::from(core.cf());
            let (res, aux) = if O == INC { of_add(a, 1, r, S) } else { of_sub(a, 1, r, S) };
            core.set_lazy((res, aux & !CF | carry));
        }
        _ => core.set_lazy((sx(r, S), 0)),
    }
}

pub(super) const fn writes(o: u8) -> bool {
    o != CMP && o != TEST
}

fn rr<'a, const O: u8, const F: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let (a, b) = (core.reg(op.dst, S), core.reg(op.src, S));
    let r = result::<O, S>(core, a, b);
    if F {
        set_flags::<O, S>(core, a, b, r);
    }
    if writes(O) {
        core.set_reg(op.dst, S, r);
    }
    next!(core, cache, op, rest)
}

fn ri<'a, const O: u8, const F: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let (a, b) = (core.reg(op.dst, S), op.imm);
    let r = result::<O, S>(core, a, b);
    if F {
        set_flags::<O, S>(core, a, b, r);
    }
    if writes(O) {
        core.set_reg(op.dst, S, r);
    }
    next!(core, cache, op, rest)
}

/// register, memory
fn rm<'a, const O: u8, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let b = some!(core.load(linear, S, op), core, op);
    let a = core.reg(op.dst, S);
    let r = result::<O, S>(core, a, b);
    set_flags::<O, S>(core, a, b, r);
    if writes(O) {
        core.set_reg(op.dst, S, r);
    }
    next!(core, cache, op, rest)
}

/// memory, register or immediate (`src` is the zero register then)
fn mr<'a, const O: u8, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, writes(O)), core, op);
    let b = core.reg(op.src, S) | op.imm;
    if !writes(O) {
        let a = some!(core.load(linear, S, op), core, op);
        let r = result::<O, S>(core, a, b);
        set_flags::<O, S>(core, a, b, r);
        next!(core, cache, op, rest)
    }
    let a = some!(core.load_rmw(linear, S, op), core, op);
    let r = result::<O, S>(core, a, b);
    store!(core.store(linear, S, r, op), core, cache, op, rest, { set_flags::<O, S>(core, a, b, r) })
}

const NEG: u8 = 11;
const NOT: u8 = 12;

#[inline(always)]
fn unary_result<const O: u8, const S: usize>(a: u64) -> u64 {
    mask(S)
        & match O {
            INC => a.wrapping_add(1),
            DEC => a.wrapping_sub(1),
            NEG => a.wrapping_neg(),
            _ => !a,
        }
}

#[inline(always)]
fn unary_flags<const O: u8, const S: usize>(core: &mut Core, a: u64, r: u64) {
    match O {
        NOT => {}
        NEG => core.set_operands(Kind::Sub, sx(r, S), 0, sx(a, S)),
        _ => set_flags::<O, S>(core, a, 1, r),
    }
}

fn unary_r<'a, const O: u8, const F: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let a = core.reg(op.dst, S);
    let r = unary_result::<O, S>(a);
    if F {
        unary_flags::<O, S>(core, a, r);
    }
    core.set_reg(op.dst, S, r);
    next!(core, cache, op, rest)
}

fn unary_m<'a, const O: u8, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, true), core, op);
    let a = some!(core.load_rmw(linear, S, op), core, op);
    let r = unary_result::<O, S>(a);
    store!(core.store(linear, S, r, op), core, cache, op, rest, { unary_flags::<O, S>(core, a, r) })
}

const SHL: u8 = 0;
const SHR: u8 = 1;
const SAR: u8 = 2;
const ROL: u8 = 3;
const ROR: u8 = 4;

/// Shifts of registers by an immediate that is not zero.
fn shift_ri<'a, const O: u8, const F: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let r = shift_value::<O, S>(core, core.reg(op.dst, S), (op.imm as u32, true), F);
    core.set_reg(op.dst, S, r);
    next!(core, cache, op, rest)
}

/// Shifts of registers by CL.
fn shift_rc<'a, const O: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let count = core.r[1] as u32 & if S == 8 { 63 } else { 31 };
    let mut r = core.reg(op.dst, S);
    if count != 0 {
        r = shift_value::<O, S>(core, r, (count, false), true);
    }
    core.set_reg(op.dst, S, r);
    next!(core, cache, op, rest)
}

#[inline(always)]
fn shift_value<const O: u8, const S: usize>(
    core: &mut Core,
    a: u64,
    (count, immediate): (u32, bool),
    flags: bool,
) -> u64 {
    let kind = match O {
        SHL => Mnemonic::Shl,
        SHR => Mnemonic::Shr,
        SAR => Mnemonic::Sar,
        ROL => Mnemonic::Rol,
        _ => Mnemonic::Ror,
    };
    let (r, out, full) = crate::exec::shift(kind, a, count, S, false);
    if flags {
        if full {
            core.set_lazy((sx(r, S), out));
        } else {
            core.settle_flags();
            let changed = crate::exec::changed(kind, count, S, immediate);
            core.aux = core.aux & !changed | out & changed;
        }
    }
    r
}

/// IMUL register, register or immediate: `dst = src * (index or imm)`.
fn imul_rr<'a, const F: bool, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let b = core.reg(op.index, S) | op.imm;
    let r = multiply::<F, S>(core, core.reg(op.src, S), b);
    core.set_reg(op.dst, S, r);
    next!(core, cache, op, rest)
}

/// IMUL register, memory[, immediate].
fn imul_rm<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let b = some!(core.load(linear, S, op), core, op);
    let a = core.reg(op.src, S) | op.imm;
    let r = multiply::<true, S>(core, a, b);
    core.set_reg(op.dst, S, r);
    next!(core, cache, op, rest)
}

#[inline(always)]
fn multiply<const F: bool, const S: usize>(core: &mut Core, a: u64, b: u64) -> u64 {
    if S == 8 {
        let product = i128::from(a as i64) * i128::from(b as i64);
        if F {
            core.multiply_flags(product as u64, product != i128::from(product as i64), 8);
        }
        return product as u64;
    }
    let product = (sx(a, S) as i64).wrapping_mul(sx(b, S) as i64);
    let r = product as u64 & mask(S);
    if F {
        core.multiply_flags(r, product != sx(r, S) as i64, S);
    }
    r
}

/// Picks among the ALU operations.
macro_rules! alu_op {
    ($o:expr, $size:expr, $f:ident, $x:expr) => {
        match $o {
            ADD => sized!($size, $f, ADD, $x),
            OR => sized!($size, $f, OR, $x),
            ADC => sized!($size, $f, ADC, $x),
            SBB => sized!($size, $f, SBB, $x),
            AND => sized!($size, $f, AND, $x),
            SUB => sized!($size, $f, SUB, $x),
            XOR => sized!($size, $f, XOR, $x),
            CMP => sized!($size, $f, CMP, $x),
            _ => sized!($size, $f, TEST, $x),
        }
    };
}

macro_rules! unary_op {
    ($o:expr, $size:expr, $f:ident, $x:expr) => {
        match $o {
            INC => sized!($size, $f, INC, $x),
            DEC => sized!($size, $f, DEC, $x),
            NEG => sized!($size, $f, NEG, $x),
            _ => sized!($size, $f, NOT, $x),
        }
    };
}

macro_rules! shift_op {
    ($o:expr, $size:expr, $f:ident $(, $x:expr)?) => {
        match $o {
            SHL => sized!($size, $f, SHL $(, $x)?),
            SHR => sized!($size, $f, SHR $(, $x)?),
            SAR => sized!($size, $f, SAR $(, $x)?),
            ROL => sized!($size, $f, ROL $(, $x)?),
            _ => sized!($size, $f, ROR $(, $x)?),
        }
    };
}

/// Picks the address form.
macro_rules! formed {
    ($form:expr, $pick:ident, $o:expr, $size:expr, $f:ident) => {
        match $form {
            FLAT64 => $pick!($o, $size, $f, FLAT64),
            FLAT32 => $pick!($o, $size, $f, FLAT32),
            _ => $pick!($o, $size, $f, ANY),
        }
    };
}

pub(super) fn alu_code(m: Mnemonic) -> Option<u8> {
    use Mnemonic::*;
    Some(match m {
        Add => ADD,
        Or => OR,
        Adc => ADC,
        Sbb => SBB,
        And => AND,
        Sub => SUB,
        Xor => XOR,
        Cmp => CMP,
        Test => TEST,
        _ => return None,
    })
}

pub(super) fn select(core: &Core, i: &Instruction, op: &mut Op, flags: bool) -> bool {
    use Mnemonic::*;
    if let Some(o) = alu_code(i.mnemonic()) {
        return select_binary(core, i, op, o, flags);
    }
    match i.mnemonic() {
        Inc | Dec | Neg | Not => select_unary(core, i, op, flags),
        Shl | Sal | Shr | Sar | Rol | Ror => select_shift(i, op, flags),
        Imul if i.op_count() >= 2 => select_multiply(core, i, op, flags),
        _ => false,
    }
}

fn select_binary(core: &Core, i: &Instruction, op: &mut Op, o: u8, flags: bool) -> bool {
    let size = core.operand_size(i, 0);
    let immediate = is_immediate(i, 1).then(|| i.immediate(1) & mask(size));
    if i.op0_kind() == OpKind::Memory {
        match (immediate, plain_register(i, 1)) {
            (Some(value), _) => op.imm = value,
            (None, Some(register)) => op.src = register,
            _ => return false,
        }
        op.run = formed!(form(core, i, op), alu_op, o, size, mr);
        return true;
    }
    let Some(target) = plain_register(i, 0) else { return false };
    op.dst = target;
    let run: Handler = if let Some(value) = immediate {
        op.imm = value;
        if flags { alu_op!(o, size, ri, true) } else { alu_op!(o, size, ri, false) }
    } else if let Some(source) = plain_register(i, 1) {
        op.src = source;
        if flags { alu_op!(o, size, rr, true) } else { alu_op!(o, size, rr, false) }
    } else if i.op1_kind() == OpKind::Memory {
        formed!(form(core, i, op), alu_op, o, size, rm)
    } else {
        return false;
    };
    op.run = run;
    true
}

fn select_unary(core: &Core, i: &Instruction, op: &mut Op, flags: bool) -> bool {
    let o = match i.mnemonic() {
        Mnemonic::Inc => INC,
        Mnemonic::Dec => DEC,
        Mnemonic::Neg => NEG,
        _ => NOT,
    };
    let size = core.operand_size(i, 0);
    if i.op0_kind() == OpKind::Memory {
        op.run = formed!(form(core, i, op), unary_op, o, size, unary_m);
        return true;
    }
    let Some(target) = plain_register(i, 0) else { return false };
    op.dst = target;
    op.run = if flags { unary_op!(o, size, unary_r, true) } else { unary_op!(o, size, unary_r, false) };
    true
}

fn select_shift(i: &Instruction, op: &mut Op, flags: bool) -> bool {
    let o = match i.mnemonic() {
        Mnemonic::Shr => SHR,
        Mnemonic::Sar => SAR,
        Mnemonic::Rol => ROL,
        Mnemonic::Ror => ROR,
        _ => SHL,
    };
    let Some(target) = plain_register(i, 0) else { return false };
    let size = i.op0_register().size();
    op.dst = target;
    if is_immediate(i, 1) {
        op.imm = i.immediate(1) & if size == 8 { 63 } else { 31 };
        if op.imm == 0 {
            return false;
        }
        op.run = if flags { shift_op!(o, size, shift_ri, true) } else { shift_op!(o, size, shift_ri, false) };
    } else {
        op.run = shift_op!(o, size, shift_rc);
    }
    true
}

fn select_multiply(core: &Core, i: &Instruction, op: &mut Op, flags: bool) -> bool {
    let Some(target) = plain_register(i, 0) else { return false };
    let size = i.op0_register().size();
    op.dst = target;
    let third = (i.op_count() == 3).then(|| i.immediate(2) & mask(size));
    if i.op1_kind() == OpKind::Memory {
        match third {
            Some(value) => op.imm = value,
            None => op.src = target,
        }
        op.run = match form(core, i, op) {
            FLAT64 => sized!(size, imul_rm, FLAT64),
            FLAT32 => sized!(size, imul_rm, FLAT32),
            _ => sized!(size, imul_rm, ANY),
        };
        return true;
    }
    let Some(source) = plain_register(i, 1) else { return false };
    op.src = source;
    match third {
        Some(value) => op.imm = value,
        None => op.index = target,
    }
    op.run = if flags { sized!(size, imul_rr, true) } else { sized!(size, imul_rr, false) };
    true
}
