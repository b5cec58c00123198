//! Look-ups that begin with the page that the same access reached the last time.
//!
//! A look-up in the tables makes every load wait for another one. Code that runs often compares
//! with what its slot remembers instead, a page and its table entry, so that the processor can
//! go on as if they were right. Behind the block the tables are asked and the slot is filled
//! anew; an access for which that happens too often goes back to the tables alone (see
//! [`crate::near`]).
//!
//! A vCPU empties its slots before it runs translated code if any of its table entries may have
//! been taken away since. A slot for writes holds entries of the table of writable pages.

use super::access::{Linear, MADE, Where};
use super::{Builder, Cold};
use crate::asm::*;
use crate::cache::{Kind, Site};
use crate::layout::*;
use crate::near::STACK;
use iced_x86::{Instruction, Register};

/// Where a look-up goes that does not succeed at once.
#[derive(Clone, Copy)]
pub struct Ways {
    /// The tables have no entry.
    pub miss: Label,
    /// The access cannot be made so.
    pub slow: Label,
    pub site: u32,
    /// Flags were saved.
    pub restore: bool,
    /// The look-up is for one access only.
    pub alone: bool,
}

impl Builder {
    /// The slot for the look-up of `i`, if it shall have one.
    pub(super) fn near_slot(&mut self, i: &Instruction, place: Where, write: bool) -> Option<i32> {
        let stack = match place {
            Where::At(base, _) => base == RSP,
            Where::Operand => i.memory_base() == Register::RSP,
        };
        self.slot_of(stack, write)
    }

    /// Likewise; `stack`: its address is RSP plus a constant.
    pub(super) fn slot_of(&mut self, stack: bool, write: bool) -> Option<i32> {
        if stack && self.word == 8 && !self.is_far() {
            return Some(slot_at(STACK, write));
        }
        let next = self.next_slot.filter(|&next| next < NEAR_SLOTS)?;
        if self.is_far() {
            return None;
        }
        self.next_slot = Some(next + 1);
        Some(slot_at(next, write))
    }

    /// The present instruction goes to other pages all the time.
    fn is_far(&self) -> bool {
        self.far.contains(&self.steps[self.k].i.ip())
    }

    /// T1 = the table entry for `size` bytes at `linear`, which is in T0 or stays where it is; T0
    /// may change. Flags change.
    pub(super) fn near(
        &mut self,
        linear: Linear,
        slot: i32,
        (size, align): (u32, u32),
        write: bool,
        ways: Ways,
    ) {
        let (label, back) = (self.code.label(), self.code.label());
        if linear.disp == 0 {
            self.code.mov(T1, linear.register);
        } else {
            self.code.lea(T1, linear.register, linear.disp);
        }
        self.code.op_gs(0x2b, T1, slot);
        if align == size && size > 1 {
            // Both at once; what is not aligned is found out behind the block.
            self.code.test64(T1, !(4096 - size as i32));
            self.code.jcc(5, label);
        } else {
            if align > 1 {
                self.code.test8(T1, (align - 1) as u8);
                self.code.jcc(5, ways.slow);
            }
            self.code.group64(7, T1, 4096 - size as i32);
            self.code.jcc(7, label);
        }
        self.code.load(T1, slot + 8);
        self.code.bind(back);
        self.cold.push(Cold::Far { label, back, linear, slot, size, align, write, ways });
    }

    /// Behind the block: asks the tables and fills the slot.
    pub(super) fn far(
        &mut self,
        (label, back): (Label, Label),
        linear: Linear,
        (slot, size, align, write): (i32, u32, u32, bool),
        ways: Ways,
    ) {
        self.code.bind(label);
        if linear != MADE {
            self.code.lea(T0, linear.register, linear.disp);
        }
        match size {
            1 => {}
            _ if align == size => self.low_bits(T0, align, ways.slow, false),
            _ => self.crossing(MADE, size, ways.slow, false),
        }
        self.index(MADE, write, ways.miss, false);
        self.code.store(slot + 8, T1);
        self.code.mov(T1, T0);
        self.code.group64(4, T1, -4096);
        self.code.store(slot, T1);
        let often = self.code.label();
        self.code.load(T1, FARS);
        self.code.store_entry32(T1, FILLED, (slot - NEAR) as u32);
        self.code.decrement32_gs(FARS);
        self.code.load(T1, slot + 8);
        self.code.jcc(4, often);
        if ways.alone {
            let here = self.here();
            self.site_mut(ways.site).once = here;
        }
        self.code.jmp(back);
        let site = Site { kind: Kind::Far, ..*self.site_mut(ways.site) };
        self.sites.push(site);
        let site = self.first_site + self.sites.len() as u32 - 1;
        self.cold.push(Cold::Leave { label: often, site, reason: reason::SLOW, restore: ways.restore });
    }
}

fn slot_at(slot: u32, write: bool) -> i32 {
    NEAR + (slot as i32) * NEAR_SIZE + if write { NEAR_SLOTS as i32 * NEAR_SIZE } else { 0 }
}
