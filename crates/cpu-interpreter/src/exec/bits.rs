//! Shifts, rotates, bit tests and scans, BMI.

use super::arithmetic::{is_memory, result_flags};
use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{CF, OF, SF, ZF, mask, sx};
use crate::op::Op;
use cpu::Fault;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Result of a shift or rotate by `count` (already masked, not zero); the second value says
/// which of CF and OF are set, the third whether the other flags follow the result.
#[inline(always)]
pub fn shift(kind: Mnemonic, a: u64, count: u32, size: usize, carry: bool) -> (u64, u64, bool) {
    use Mnemonic::*;
    let bits = size as u32 * 8;
    let m = mask(size);
    let a = a & m;
    let top = |v: u64| v >> (bits - 1) & 1;
    let pack = |cf: u64, of: u64| cf & 1 | (of & 1) << 11;
    let first = cpu_host::rotates_tell_of_first_step;
    match kind {
        Shl | Sal => {
            let wide = u128::from(a) << count.min(127);
            let r = wide as u64 & m;
            let cf = if count <= bits { (wide >> bits) as u64 & 1 } else { 0 };
            (r, pack(cf, top(r) ^ cf), true)
        }
        Shr => {
            let r = if count >= bits { 0 } else { a >> count };
            let cf = if count <= bits { a >> (count - 1) & 1 } else { 0 };
            // Defined for a count of 1 only; then it is the old top bit.
            (r, pack(cf, top(r << 1 & m) ^ top(r)), true)
        }
        Sar => {
            let wide = sx(a, size) as i64;
            let r = (wide >> count.min(63)) as u64 & m;
            (r, pack((wide >> (count - 1).min(63)) as u64, 0), true)
        }
        Rol => {
            let c = count % bits;
            let r = if c == 0 { a } else { (a << c | a >> (bits - c)) & m };
            let of = if count > 1 && first() { top(a) ^ top(a << 1 & m) } else { r ^ top(r) };
            (r, pack(r, of), false)
        }
        Ror => {
            let c = count % bits;
            let r = if c == 0 { a } else { (a >> c | a << (bits - c)) & m };
            let of = if count > 1 && first() { a ^ top(a) } else { top(r) ^ top(r << 1 & m) };
            (r, pack(top(r), of), false)
        }
        _ => {
            // Through carry: a rotate of bits + 1.
            let c = count % (bits + 1);
            let wide = u128::from(a) | u128::from(carry) << bits;
            let all = (1u128 << (bits + 1)) - 1;
            let left = if kind == Rcl { c } else { (bits + 1 - c) % (bits + 1) };
            let out = if left == 0 { wide } else { (wide << left | wide >> (bits + 1 - left)) & all };
            let r = out as u64 & m;
            let cf = (out >> bits) as u64 & 1;
            let of = match (kind == Rcl, count > 1 && first()) {
                (true, true) => top(a) ^ top(a << 1 & m),
                (false, true) => u64::from(carry) ^ top(a),
                (true, false) => top(r) ^ cf,
                (false, false) => top(r) ^ top(r << 1 & m),
            };
            (r, pack(cf, of), false)
        }
    }
}

/// Which of CF and OF a rotate changes; OF by more than one is as the host's processor does it.
#[inline]
pub fn changed(kind: Mnemonic, count: u32, size: usize, immediate: bool) -> u64 {
    let keeps = match kind {
        Mnemonic::Rol | Mnemonic::Ror => immediate && count != 1,
        _ => count.is_multiple_of(8 * size as u32 + 1),
    };
    if keeps && cpu_host::rotates_tell_of_first_step() { CF } else { CF | OF }
}

impl Core {
    pub(super) fn bits(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        match i.mnemonic() {
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => self.shifts(i, op)?,
            Shld | Shrd => self.double_shift(i, op)?,
            Bt | Bts | Btr | Btc => self.bit_test(i, op)?,
            Bsf | Bsr | Tzcnt | Lzcnt | Popcnt => self.scan(i, op)?,
            _ => self.bmi(i, op)?,
        }
        Ok(Flow::Next)
    }

    fn shifts(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        let size = self.operand_size(i, 0);
        let raw = self.get(i, op, 1, 1)? as u32;
        let count = raw & if size == 8 { 63 } else { 31 };
        if count == 0 {
            if is_memory(i, 0) {
                // The operand is still read and written.
                self.modify(i, op, size, |a| a)?;
            } else if size == 4 {
                let value = self.read_register(i.op0_register());
                self.write_register(i.op0_register(), value);
            }
            return Ok(());
        }
        let carry = self.cf();
        let kind = i.mnemonic();
        let old = self.modify(i, op, size, |a| shift(kind, a, count, size, carry).0)?;
        let (r, flags, full) = shift(kind, old, count, size, carry);
        if full {
            self.set_lazy((sx(r, size), flags));
        } else {
            let immediate = i.op1_kind() == OpKind::Immediate8;
            let changed = changed(kind, count, size, immediate);
            self.aux = self.aux & !changed | flags & changed;
        }
        Ok(())
    }

    fn double_shift(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        let size = self.operand_size(i, 0);
        let bits = size as u32 * 8;
        let raw = self.get(i, op, 2, 1)? as u32;
        let count = raw & if size == 8 { 63 } else { 31 };
        let fill = self.get(i, op, 1, size)? & mask(size);
        if count == 0 {
            self.modify(i, op, size, |a| a)?;
            return Ok(());
        }
        let left = i.mnemonic() == Mnemonic::Shld;
        let m = mask(size);
        let apply = |a: u64| {
            let a = a & m;
            if left {
                // a:fill:a, as processors shift 16-bit operands by more than 16
                let wide = u128::from(a) << bits | u128::from(fill);
                let wide = if count > bits { wide << bits | u128::from(a) } else { wide };
                let c = if count > bits { count - bits } else { count };
                (wide >> (bits - c)) as u64 & m
            } else {
                let wide = u128::from(fill) << bits | u128::from(a);
                let wide = if count > bits { u128::from(a) << (2 * bits) | wide } else { wide };
                (wide >> count) as u64 & m
            }
        };
        let a = self.modify(i, op, size, apply)? & m;
        let r = apply(a);
        let cf = if left {
            if count <= bits { a >> (bits - count) } else { fill >> (2 * bits - count) }
        } else if count <= bits {
            a >> (count - 1)
        } else {
            fill >> (count - bits - 1)
        } & 1;
        let of = (a ^ r) >> (bits - 1) & 1;
        self.set_lazy((sx(r, size), cf | of << 11));
        Ok(())
    }

    fn bit_test(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        use Mnemonic::*;
        let size = self.operand_size(i, 0);
        let bits = size as u64 * 8;
        let index = self.get(i, op, 1, size)?;
        let bit = 1u64 << (index & (bits - 1));
        let kind = i.mnemonic();
        let apply = |a: u64| match kind {
            Bts => a | bit,
            Btr => a & !bit,
            Btc => a ^ bit,
            _ => a,
        };
        let old = if !is_memory(i, 0) {
            let old = self.read_register(i.op0_register());
            if kind != Bt {
                self.write_register(i.op0_register(), apply(old));
            }
            old
        } else {
            let mut offset = self.offset(op);
            if i.op1_kind() == iced_x86::OpKind::Register {
                let far = (sx(index, size) as i64 >> bits.trailing_zeros()) * size as i64;
                offset = offset.wrapping_add(far as u64) << (op.cut & 63) >> (op.cut & 63);
            }
            let linear = self.linear(op.seg, offset, size, kind != Bt)?;
            if kind == Bt {
                self.read(linear, size)?
            } else if i.has_lock_prefix() {
                self.locked(linear, size, apply)?
            } else {
                let old = self.read_rmw(linear, size)?;
                self.write(linear, size, apply(old))?;
                old
            }
        };
        self.aux = self.aux & !CF | u64::from(old & bit != 0);
        Ok(())
    }

    fn scan(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        use Mnemonic::*;
        let size = self.operand_size(i, 0);
        let bits = size as u64 * 8;
        let a = self.get(i, op, 1, size)? & mask(size);
        let target = i.op0_register();
        let kind = match i.mnemonic() {
            Tzcnt if !self.features.tzcnt() => Bsf,
            Lzcnt if !self.features.lzcnt() => Bsr,
            kind => kind,
        };
        match kind {
            Bsf | Bsr => {
                if a == 0 {
                    // The destination keeps its value (also its upper half).
                    self.change_arith(ZF, ZF);
                    return Ok(());
                }
                let r = if kind == Bsf {
                    u64::from(a.trailing_zeros())
                } else {
                    63 - u64::from(a.leading_zeros())
                };
                self.write_register(target, r);
                self.change_arith(ZF, 0);
            }
            Tzcnt | Lzcnt => {
                let r = if a == 0 {
                    bits
                } else if kind == Tzcnt {
                    u64::from(a.trailing_zeros())
                } else {
                    u64::from(a.leading_zeros()) - (64 - bits)
                };
                self.write_register(target, r);
                let flags = if a == 0 { CF } else { 0 } | if r == 0 { ZF } else { 0 };
                self.change_arith(CF | ZF, flags);
            }
            _ => {
                let r = u64::from(a.count_ones());
                self.write_register(target, r);
                self.set_arith(if a == 0 { ZF } else { 0 });
            }
        }
        Ok(())
    }

    fn bmi(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        use Mnemonic::*;
        let size = self.operand_size(i, 0);
        let m = mask(size);
        let bits = size as u64 * 8;
        let target = i.op0_register();
        let logic = |r: u64, cf: bool| result_flags(r, size) & (SF | ZF) | u64::from(cf);
        let (r, flags) = match i.mnemonic() {
            Andn => {
                let a = self.get(i, op, 1, size)?;
                let r = !a & self.get(i, op, 2, size)? & m;
                (r, Some(logic(r, false)))
            }
            Blsi => {
                let a = self.get(i, op, 1, size)? & m;
                let r = a & a.wrapping_neg() & m;
                (r, Some(logic(r, a != 0)))
            }
            Blsmsk => {
                let a = self.get(i, op, 1, size)? & m;
                let r = (a ^ a.wrapping_sub(1)) & m;
                (r, Some(logic(r, a == 0) & !ZF))
            }
            Blsr => {
                let a = self.get(i, op, 1, size)? & m;
                let r = a & a.wrapping_sub(1) & m;
                (r, Some(logic(r, a == 0)))
            }
            Bextr => {
                let a = self.get(i, op, 1, size)? & m;
                let control = self.get(i, op, 2, size)?;
                let (start, len) = (control & 0xff, control >> 8 & 0xff);
                let shifted = if start >= bits { 0 } else { a >> start };
                let r = if len >= 64 { shifted } else { shifted & ((1 << len) - 1) };
                (r, Some(if r == 0 { ZF } else { 0 }))
            }
            Bzhi => {
                let a = self.get(i, op, 1, size)? & m;
                let n = self.get(i, op, 2, size)? & 0xff;
                let r = if n >= bits { a } else { a & ((1 << n) - 1) };
                (r, Some(logic(r, n >= bits)))
            }
            Pdep => {
                let (a, select) = (self.get(i, op, 1, size)?, self.get(i, op, 2, size)? & m);
                (deposit(a, select), None)
            }
            Pext => {
                let (a, select) = (self.get(i, op, 1, size)?, self.get(i, op, 2, size)? & m);
                (extract(a, select), None)
            }
            Rorx => {
                let a = self.get(i, op, 1, size)? & m;
                let c = i.immediate(2) as u32 & (bits as u32 - 1);
                (if c == 0 { a } else { (a >> c | a << (bits as u32 - c)) & m }, None)
            }
            Crc32 => {
                let from = self.operand_size(i, 1);
                let data = self.get(i, op, 1, from)?;
                (u64::from(crc32c(self.read_register(target) as u32, data, from)), None)
            }
            kind => {
                let a = self.get(i, op, 1, size)? & m;
                let c = self.get(i, op, 2, size)? as u32 & (bits as u32 - 1);
                let r = match kind {
                    Sarx => (sx(a, size) as i64 >> c) as u64,
                    Shlx => a << c,
                    _ => a >> c,
                };
                (r & m, None)
            }
        };
        self.write_register(target, r);
        if let Some(flags) = flags {
            self.set_arith(flags);
        }
        Ok(())
    }
}

fn deposit(mut a: u64, mut select: u64) -> u64 {
    let mut r = 0;
    while select != 0 {
        let bit = select & select.wrapping_neg();
        if a & 1 != 0 {
            r |= bit;
        }
        a >>= 1;
        select &= select - 1;
    }
    r
}

fn extract(a: u64, mut select: u64) -> u64 {
    let (mut r, mut at) = (0, 0);
    while select != 0 {
        let bit = select & select.wrapping_neg();
        if a & bit != 0 {
            r |= 1 << at;
        }
        at += 1;
        select &= select - 1;
    }
    r
}

/// CRC-32C (polynomial 0x11EDC6F41, reflected) over `size` bytes.
fn crc32c(mut crc: u32, data: u64, size: usize) -> u32 {
    for k in 0..size {
        crc ^= (data >> (8 * k)) as u32 & 0xff;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    crc
}
