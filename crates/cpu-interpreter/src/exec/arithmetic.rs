//! Addition to division, and decimal adjustment (SDM vol. 2).

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{AF, CF, OF, PF, SF, ZF, mask, of_add, of_sub, sx};
use crate::op::Op;
use cpu::Fault;
use iced_x86::{Instruction, Mnemonic, OpKind};

impl Core {
    pub(super) fn arithmetic(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        match i.mnemonic() {
            Inc | Dec | Neg | Not => self.unary(i, op)?,
            Mul | Imul | Mulx => self.multiply(i, op)?,
            Div | Idiv => self.divide(i, op)?,
            Daa | Das | Aaa | Aas | Aam | Aad => self.decimal(i)?,
            Adcx | Adox => self.add_extended(i, op)?,
            _ => self.binary(i, op)?,
        }
        Ok(Flow::Next)
    }

    fn binary(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        use Mnemonic::*;
        let size = self.operand_size(i, 0);
        let m = mask(size);
        let b = self.get(i, op, 1, size)? & m;
        let carry = u64::from(self.cf());
        let mnemonic = i.mnemonic();
        let apply = |a: u64| match mnemonic {
            Add => a.wrapping_add(b),
            Adc => a.wrapping_add(b).wrapping_add(carry),
            Sub | Cmp => a.wrapping_sub(b),
            Sbb => a.wrapping_sub(b).wrapping_sub(carry),
            And | Test => a & b,
            Or => a | b,
            _ => a ^ b,
        } & m;
        let a = match mnemonic {
            Cmp | Test => self.get(i, op, 0, size)?,
            _ => self.modify(i, op, size, apply)?,
        } & m;
        let r = apply(a);
        self.set_lazy(match mnemonic {
            Add | Adc => of_add(a, b, r, size),
            Sub | Sbb | Cmp => of_sub(a, b, r, size),
            _ => (sx(r, size), 0),
        });
        Ok(())
    }

    fn unary(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        use Mnemonic::*;
        let size = self.operand_size(i, 0);
        let m = mask(size);
        let mnemonic = i.mnemonic();
        let apply = |a: u64| match mnemonic {
            Inc => a.wrapping_add(1),
            Dec => a.wrapping_sub(1),
            Neg => 0u64.wrapping_sub(a),
            _ => !a,
        } & m;
        let a = self.modify(i, op, size, apply)? & m;
        let r = apply(a);
        let carry = self.aux & CF;
        match mnemonic {
            Inc => {
                let (res, aux) = of_add(a, 1, r, size);
                self.set_lazy((res, aux & !CF | carry));
            }
            Dec => {
                let (res, aux) = of_sub(a, 1, r, size);
                self.set_lazy((res, aux & !CF | carry));
            }
            Neg => self.set_lazy(of_sub(0, a, r, size)),
            _ => {}
        }
        Ok(())
    }

    fn multiply(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        if i.mnemonic() == Mnemonic::Mulx {
            let size = self.operand_size(i, 0);
            let b = self.get(i, op, 2, size)?;
            let product = u128::from(self.reg(2, size)) * u128::from(b & mask(size));
            let high = (product >> (size * 8)) as u64;
            self.write_register(i.op1_register(), product as u64 & mask(size));
            self.write_register(i.op0_register(), high);
            return Ok(());
        }
        let size = self.operand_size(i, 0);
        let signed = i.mnemonic() == Mnemonic::Imul;
        if i.op_count() >= 2 {
            let (a, b) = if i.op_count() == 3 {
                (self.get(i, op, 1, size)?, i.immediate(2))
            } else {
                (self.reg_of(i, 0), self.get(i, op, 1, size)?)
            };
            let product = i128::from(sx(a, size) as i64) * i128::from(sx(b, size) as i64);
            let low = product as u64 & mask(size);
            self.write_register(i.op0_register(), low);
            self.multiply_flags(low, product != i128::from(sx(low, size) as i64), size);
            return Ok(());
        }
        let b = self.get(i, op, 0, size)?;
        let a = self.reg(0, size);
        let product = if signed {
            (i128::from(sx(a, size) as i64) * i128::from(sx(b, size) as i64)) as u128
        } else {
            u128::from(a) * u128::from(b & mask(size))
        };
        let low = product as u64 & mask(size);
        let high = (product >> (size * 8)) as u64 & mask(size);
        let overflow = if signed { sx(low, size) as i64 >> 63 != sx(high, size) as i64 } else { high != 0 };
        if size == 1 {
            self.set_reg(0, 2, low | high << 8);
        } else {
            self.set_reg(0, size, low);
            self.set_reg(2, size, high);
        }
        self.multiply_flags(low, overflow, size);
        Ok(())
    }

    fn reg_of(&self, i: &Instruction, n: u32) -> u64 {
        self.read_register(i.op_register(n))
    }

    pub fn multiply_flags(&mut self, low: u64, overflow: bool, size: usize) {
        self.set_lazy((sx(low, size), if overflow { CF | OF } else { 0 }));
    }

    fn divide(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        let size = self.operand_size(i, 0);
        let bits = size * 8;
        let divisor = self.get(i, op, 0, size)? & mask(size);
        let dividend = if size == 1 {
            u128::from(self.reg(0, 2))
        } else {
            u128::from(self.reg(0, size)) | u128::from(self.reg(2, size)) << bits
        };
        if divisor == 0 {
            return Err(Fault::DE);
        }
        let (quotient, remainder) = if i.mnemonic() == Mnemonic::Div {
            let d = u128::from(divisor);
            if dividend >> bits >= d {
                return Err(Fault::DE);
            }
            ((dividend / d) as u64, (dividend % d) as u64)
        } else {
            let by = 128 - 2 * bits;
            let a = (dividend << by) as i128 >> by;
            let d = i128::from(sx(divisor, size) as i64);
            let q = a.wrapping_div(d);
            let limit = 1i128 << (bits - 1);
            if q >= limit || q < -limit {
                return Err(Fault::DE);
            }
            (q as u64, a.wrapping_rem(d) as u64)
        };
        let m = mask(size);
        if size == 1 {
            self.set_reg(0, 2, quotient & m | (remainder & m) << 8);
        } else {
            self.set_reg(0, size, quotient & m);
            self.set_reg(2, size, remainder & m);
        }
        Ok(())
    }

    fn add_extended(&mut self, i: &Instruction, op: &Op) -> Result<(), Fault> {
        let size = self.operand_size(i, 0);
        let flag = if i.mnemonic() == Mnemonic::Adcx { CF } else { OF };
        let b = self.get(i, op, 1, size)? & mask(size);
        let a = self.reg_of(i, 0);
        let carry = u128::from(self.aux & flag != 0);
        let sum = u128::from(a) + u128::from(b) + carry;
        self.write_register(i.op0_register(), sum as u64 & mask(size));
        self.aux = self.aux & !flag | if sum >> (size * 8) != 0 { flag } else { 0 };
        Ok(())
    }

    fn decimal(&mut self, i: &Instruction) -> Result<(), Fault> {
        use Mnemonic::*;
        let flags = self.arith();
        let (cf, af) = (flags & CF != 0, flags & AF != 0);
        let ax = self.reg(0, 2);
        let al = ax & 0xff;
        let low_adjust = al & 0xf > 9 || af;
        match i.mnemonic() {
            Daa | Das => {
                let high_adjust = al > 0x99 || cf;
                let mut adjust = 0;
                let mut carry = high_adjust;
                if low_adjust {
                    adjust += 6;
                    if i.mnemonic() == Das && al < 6 {
                        carry = true;
                    }
                }
                if high_adjust {
                    adjust += 0x60;
                }
                let r = if i.mnemonic() == Daa { al + adjust } else { al.wrapping_sub(adjust) } & 0xff;
                self.set_reg(0, 1, r);
                self.set_lazy((sx(r, 1), u64::from(carry) | if low_adjust { AF } else { 0 }));
            }
            Aaa | Aas => {
                let mut r = ax;
                if low_adjust {
                    r = if i.mnemonic() == Aaa { ax.wrapping_add(0x106) } else { ax.wrapping_sub(0x106) };
                }
                self.set_reg(0, 2, r & 0xff0f);
                let set = if low_adjust { CF | AF } else { 0 };
                self.set_lazy((sx(r & 0xf, 1), set));
            }
            Aam => {
                let by = i.immediate(0) & 0xff;
                if by == 0 {
                    return Err(Fault::DE);
                }
                let r = al % by;
                self.set_reg(0, 2, r | (al / by) << 8);
                self.set_lazy((sx(r, 1), 0));
            }
            _ => {
                let r = (al + (ax >> 8) * (i.immediate(0) & 0xff)) & 0xff;
                self.set_reg(0, 2, r);
                self.set_lazy((sx(r, 1), 0));
            }
        }
        Ok(())
    }
}

/// Flags that a shift or a bit instruction leaves: all but AF follow from the result.
pub(super) fn result_flags(r: u64, size: usize) -> u64 {
    let mut flags = if r & mask(size) == 0 { ZF } else { 0 };
    flags |= (sx(r, size) >> 56) & SF;
    if (r as u8).count_ones() & 1 == 0 {
        flags |= PF;
    }
    flags
}

/// Whether operand `n` is memory.
pub(super) fn is_memory(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}
