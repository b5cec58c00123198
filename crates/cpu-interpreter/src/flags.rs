//! Arithmetic flags, kept as a result and what gives the bits that do not follow from it.
//!
//! `res` is the last result, sign-extended: ZF is `res == 0`, SF its sign, PF the parity of
//! its low byte. CF, AF and OF follow from the sign-extended operands `fa` and `fb` of an
//! addition or subtraction, or ([`Kind::Explicit`]) stand in `aux` at their RFLAGS positions.
//! `aux` then also has a correction of SF at bit 7 and one of the parity byte at bits 16..24
//! (for POPF and the like, whose flags fit no result).

use crate::core::Core;

pub const CF: u64 = 1;
pub const PF: u64 = 4;
pub const AF: u64 = 0x10;
pub const ZF: u64 = 0x40;
pub const SF: u64 = 0x80;
pub const TF: u64 = 0x100;
pub const IF: u64 = 0x200;
pub const DF: u64 = 0x400;
pub const OF: u64 = 0x800;
pub const IOPL: u64 = 0x3000;
pub const NT: u64 = 0x4000;
pub const RF: u64 = 0x1_0000;
pub const VM: u64 = 0x2_0000;
pub const AC: u64 = 0x4_0000;
pub const VIF: u64 = 0x8_0000;
pub const VIP: u64 = 0x10_0000;
pub const ID: u64 = 0x20_0000;
/// The six arithmetic flags.
pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// Where CF, AF and OF come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `aux`.
    Explicit,
    /// `res = fa + fb`.
    Add,
    /// `res = fa - fb`.
    Sub,
}

/// All ones in the low `size` bytes.
#[inline(always)]
pub const fn mask(size: usize) -> u64 {
    u64::MAX >> (64 - size * 8)
}

/// Sign-extends the low `size` bytes.
#[inline(always)]
pub const fn sx(value: u64, size: usize) -> u64 {
    let by = 64 - size * 8;
    ((value << by) as i64 >> by) as u64
}

/// Flags of `a + b (+ carry) = r`; all masked to `size`.
#[inline(always)]
pub fn of_add(a: u64, b: u64, r: u64, size: usize) -> (u64, u64) {
    let top = size * 8 - 1;
    let carry = (a & b) | ((a | b) & !r);
    let overflow = (a ^ r) & (b ^ r);
    (sx(r, size), ((carry >> top) & 1) | ((a ^ b ^ r) & AF) | (((overflow >> top) & 1) << 11))
}

/// Flags of `a - b (- borrow) = r`; all masked to `size`.
#[inline(always)]
pub fn of_sub(a: u64, b: u64, r: u64, size: usize) -> (u64, u64) {
    let top = size * 8 - 1;
    let borrow = (!a & b) | (!(a ^ b) & r);
    let overflow = (a ^ b) & (a ^ r);
    (sx(r, size), ((borrow >> top) & 1) | ((a ^ b ^ r) & AF) | (((overflow >> top) & 1) << 11))
}

/// Condition codes in encoding order (Jcc, SETcc, CMOVcc).
#[inline(always)]
pub fn condition(res: u64, aux: u64, code: u8) -> bool {
    let s = || ((res >> 56) ^ aux) & SF != 0;
    let o = || aux & OF != 0;
    let value = match code >> 1 {
        0 => o(),
        1 => aux & CF != 0,
        2 => res == 0,
        3 => aux & CF != 0 || res == 0,
        4 => s(),
        5 => parity(res, aux),
        6 => s() != o(),
        _ => res == 0 || s() != o(),
    };
    value != (code & 1 != 0)
}

/// Conditions of `a - b = res`; all sign-extended (which keeps unsigned order).
#[inline(always)]
pub fn condition_sub(res: u64, a: u64, b: u64, code: u8) -> bool {
    let value = match code >> 1 {
        0 => ((a ^ b) & (a ^ res)) >> 63 != 0,
        1 => a < b,
        2 => res == 0,
        3 => a <= b,
        4 => res >> 63 != 0,
        5 => parity(res, 0),
        6 => (a as i64) < b as i64,
        _ => a as i64 <= b as i64,
    };
    value != (code & 1 != 0)
}

/// CF, AF and OF of `a + b = res` or `a - b = res`; all sign-extended.
#[inline(always)]
fn carries(kind: Kind, res: u64, a: u64, b: u64) -> u64 {
    let (carry, overflow) = match kind {
        Kind::Add => (res < a, (a ^ res) & (b ^ res)),
        _ => (a < b, (a ^ b) & (a ^ res)),
    };
    u64::from(carry) | ((a ^ b ^ res) & AF) | ((overflow >> 63) << 11)
}

#[inline(always)]
fn parity(res: u64, aux: u64) -> bool {
    ((res ^ (aux >> 16)) as u8).count_ones() & 1 == 0
}

impl Core {
    #[inline(always)]
    pub fn set_lazy(&mut self, (res, aux): (u64, u64)) {
        self.res = res;
        self.aux = aux;
        self.kind = Kind::Explicit;
    }

    /// Flags of an addition or subtraction without carry-in; all sign-extended.
    #[inline(always)]
    pub fn set_operands(&mut self, kind: Kind, res: u64, a: u64, b: u64) {
        self.res = res;
        self.fa = a;
        self.fb = b;
        self.kind = kind;
    }

    /// `aux` as it is or would be.
    #[inline(always)]
    pub fn aux_now(&self) -> u64 {
        if self.kind == Kind::Explicit { self.aux } else { carries(self.kind, self.res, self.fa, self.fb) }
    }

    /// Makes `aux` valid, for code that changes single flags.
    #[inline(always)]
    pub fn settle_flags(&mut self) {
        if self.kind != Kind::Explicit {
            self.aux = self.aux_now();
            self.kind = Kind::Explicit;
        }
    }

    /// The six arithmetic flags.
    pub fn arith(&self) -> u64 {
        let (res, aux) = (self.res, self.aux_now());
        (aux & (CF | AF | OF))
            | (((res >> 56) ^ aux) & SF)
            | if res == 0 { ZF } else { 0 }
            | if parity(res, aux) { PF } else { 0 }
    }

    /// Sets the six arithmetic flags from an RFLAGS image.
    pub fn set_arith(&mut self, flags: u64) {
        self.res = if flags & ZF != 0 { 0 } else { 0x100 };
        self.aux = (flags & (CF | AF | OF | SF)) | if flags & PF != 0 { 0 } else { 1 << 16 };
        self.kind = Kind::Explicit;
    }

    /// Replaces those arithmetic flags that `which` names.
    pub fn change_arith(&mut self, which: u64, flags: u64) {
        let flags = (self.arith() & !which) | (flags & which);
        self.set_arith(flags);
    }

    /// Replaces the six arithmetic flags, given as in RFLAGS.
    pub fn set_arithmetic(&mut self, flags: u64) {
        self.set_arith(flags & ARITH);
    }

    /// All of RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.st.rflags & !ARITH | self.arith() | 2
    }

    pub fn set_rflags(&mut self, flags: u64) {
        self.set_arith(flags);
        self.st.rflags = flags & !ARITH | 2;
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.aux_now() & CF != 0
    }

    #[inline(always)]
    pub fn cond(&self, code: u8) -> bool {
        // ZF and the like follow from the result alone.
        if code >> 1 == 2 {
            return (self.res == 0) != (code & 1 != 0);
        }
        match self.kind {
            Kind::Sub => condition_sub(self.res, self.fa, self.fb, code),
            _ => condition(self.res, self.aux_now(), code),
        }
    }
}
