//! Memory operands: the linear address in T0, the look-up of its page, the host address as
//! T0 + T1 - 1.

use super::{Builder, Cold, Source};
use crate::asm::{Address, T0, T1};
use crate::cache::Kind;
use crate::layout::*;
use iced_x86::{Instruction, Register};

/// Place of guest register `n` in the state page.
pub fn slot(n: u8) -> i32 {
    GPR + 8 * i32::from(n)
}

impl Builder {
    /// The linear address of the memory operand of `i` to T0. Changes flags only where FS or
    /// GS is added.
    pub(super) fn address(&mut self, source: &Source, i: &Instruction) {
        let base = i.memory_base();
        let index = i.memory_index();
        let wide = source.bits() == 64
            && !(base.is_gpr32() || index.is_gpr32() || i.memory_displ_size() == 4 && base == Register::None);
        let segment = match i.memory_segment() {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        if base == Register::None && index == Register::None || base.is_ip() {
            let address = i.memory_displacement64();
            let address =
                if base == Register::EIP || !wide && !base.is_ip() { address & 0xffff_ffff } else { address };
            self.code.constant(T0, address);
        } else {
            let base = self.operand_register(base, T0);
            let index = self.operand_register(index, if base == Some(T0) { T1 } else { T0 });
            let address = Address {
                base,
                index,
                scale: i.memory_index_scale().trailing_zeros() as u8,
                disp: i.memory_displacement64() as i32,
            };
            if wide && index.is_none() && address.disp == 0 {
                if base != Some(T0) {
                    self.code.mov(T0, base.unwrap_or(T0));
                }
            } else {
                self.code.lea_address(wide, T0, &address);
            }
        }
        if let Some(n) = segment {
            self.code.op_gs(0x03, T0, SEG_BASE + 8 * n);
        }
    }

    /// The host register that holds guest register `r`, loaded into `scratch` if need be.
    fn operand_register(&mut self, r: Register, scratch: u8) -> Option<u8> {
        if r == Register::None {
            return None;
        }
        let n = r.full_register().number() as u8;
        if n == T0 || n == T1 {
            self.code.load(scratch, slot(n));
            return Some(scratch);
        }
        Some(n)
    }

    /// Looks up the page of T0 for `size` bytes. Returns the access's site. Host flags change;
    /// [`Builder::spare_flags`] comes before the address.
    pub(super) fn look_up(&mut self, size: u32, align: u32, write: bool, retry: u32) -> u32 {
        let site = self.site(Kind::Access { write });
        self.site_mut(site).retry = retry;
        let restore = self.steps[self.k].live_before != 0;
        let slow = self.code.label();
        let miss = self.code.label();
        if align > 1 {
            self.code.test8(T0, (align - 1) as u8);
            self.code.jcc(5, slow);
        } else if matches!(size, 2 | 4 | 8) {
            let label = self.code.label();
            let back = self.code.label();
            self.code.test8(T0, (size - 1) as u8);
            self.code.jcc(5, label);
            self.code.bind(back);
            self.cold.push(Cold::Unaligned { label, back, slow, size });
        } else if size > 1 {
            self.crossing(size, slow);
        }
        self.code.mov(T1, T0);
        self.code.shift(T1, true, 16);
        self.code.shift(T1, false, 28);
        if write {
            self.code.not(T1);
        }
        self.code.load_entry(T1, if write { WRITE_TABLE } else { READ_TABLE });
        self.code.test8(T1, 1);
        self.code.jcc(4, miss);
        self.cold.push(Cold::Leave { label: miss, site, reason: reason::MISS, restore });
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        site
    }

    /// The exact test whether `size` bytes from T0 cross a page.
    pub(super) fn crossing(&mut self, size: u32, slow: crate::asm::Label) {
        self.code.mov32(T1, T0);
        self.code.group32(4, T1, 0xfff);
        self.code.group32(7, T1, 0x1000 - size as i32);
        self.code.jcc(7, slow);
    }

    /// The host instruction that comes next may fault; it belongs to `site`.
    pub(super) fn may_fault(&mut self, site: u32) {
        let at = self.here();
        self.faults.push((at, site));
    }

    /// The instruction of `site` is complete: the block goes on here.
    pub(super) fn goes_on(&mut self, site: u32) {
        let here = self.here();
        self.site_mut(site).next = here;
    }
}
