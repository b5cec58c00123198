//! Memory operands: the linear address in T0, the look-up of its page, the host address as
//! T0 + T1 - 1.

use super::groups::is_scratch;
use super::near::Ways;
use super::waits::Origin;
use super::{Builder, Cold, From, Source};
use crate::asm::{Address, Label, RSP, T0, T1};
use crate::cache::Kind;
use crate::layout::*;
use crate::tables::Form;
use iced_x86::{Instruction, Register};

/// Which address of a step is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The memory operand.
    Operand,
    /// A register plus a constant.
    At(u8, i32),
}

/// A guest access that may be made: the host address, and the site to name if the host
/// refuses it all the same.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub at: Address,
    pub site: Option<u32>,
    /// The instruction can be left to the interpreter and the block goes on behind it.
    pub resumes: bool,
}

/// A linear address for a look-up: a register, not T1, plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    pub register: u8,
    pub disp: i32,
}

/// The address was made in T0.
pub const MADE: Linear = Linear { register: T0, disp: 0 };

/// What is looked up.
#[derive(Clone, Copy)]
pub struct Sought {
    pub linear: Linear,
    /// The look-up begins with the page that this slot remembers.
    slot: Option<i32>,
    /// The next round waits for the look-up; and this is how its address is made again.
    again: Option<Address>,
}

impl Sought {
    pub fn plainly(linear: Linear) -> Sought {
        Sought { linear, slot: None, again: None }
    }
}

/// Place of guest register `n` in the state page.
pub fn slot(n: u8) -> i32 {
    GPR + 8 * i32::from(n)
}

impl Builder {
    /// The linear address of the memory operand of `i` to T0. Flags stay; T1 changes unless a
    /// group's look-up is in it.
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
            let kept = self.t1.is_some();
            if kept {
                self.code.store(T1_SAVED, T1);
            }
            self.code.load(T1, SEG_BASE + 8 * n);
            let sum = Address { base: Some(T0), index: Some(T1), scale: 0, disp: 0 };
            self.code.lea_address(self.word == 8, T0, &sum);
            if kept {
                self.code.load(T1, T1_SAVED);
            }
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

    /// Makes sure that `size` bytes can be accessed; afterwards T1 and the address's registers
    /// must stay until the access. Host flags may change.
    pub(super) fn reach(
        &mut self,
        source: &Source,
        i: &Instruction,
        place: Where,
        (size, align, write): (u32, u32, bool),
    ) -> Reached {
        if let Some(member) = self.steps[self.k].member {
            let group = &self.groups[usize::from(member.group)];
            if member.leader && !group.early {
                let (span, align, table) = (group.span, group.align, group.write);
                let free = self.keeps_flags(source);
                let retry = self.here();
                let slot = if free { None } else { self.near_slot(i, place, table) };
                let base = self.plain_base(i, place);
                let linear = match base {
                    Some((register, disp)) if slot.is_some() => {
                        Linear { register, disp: disp - member.offset }
                    }
                    _ => {
                        self.address_of(source, i, place, -member.offset);
                        MADE
                    }
                };
                let what = (span, align, write, table);
                let again = self.again(i, place, -member.offset).filter(|_| slot.is_none() && !free);
                let site = self.lead(member.group, Sought { linear, slot, again }, what, retry, free);
                // T0 is the start of the span: an address that takes code is not made again.
                let at = if base.is_some() {
                    self.member_address(source, i, place)
                } else {
                    self.make_again(again);
                    Address { base: Some(T0), index: Some(T1), scale: 0, disp: member.offset - 1 }
                };
                return Reached { at, site: Some(site), resumes: false };
            }
            if self.t1 == Some(member.group) || group.kept {
                if self.t1 != Some(member.group) {
                    self.code.load(T1, SHARED_AT + 8 * i32::from(member.group));
                    self.t1 = Some(member.group);
                }
                // What is not canonical may have the index of a page that is known: the host refuses it, at
                // the first of the accesses.
                let site = member.leader.then(|| self.refusable());
                let at = self.member_address(source, i, place);
                return Reached { at, site, resumes: site.is_none() };
            }
        }
        let free = self.keeps_flags(source);
        self.t1 = None;
        let retry = self.here();
        if place == Where::Operand
            && self.form == Form::Flat
            && let Some(address) = constant_address(source, i)
            && (address & 0xfff) + u64::from(size) <= 4096
            && (align <= 1 || address.is_multiple_of(u64::from(align)))
        {
            return self.reach_constant(address, write, retry, free);
        }
        let slot = if free { None } else { self.near_slot(i, place, write) };
        let linear = match self.plain_base(i, place) {
            Some((register, disp)) if disp == 0 || slot.is_some() => Linear { register, disp },
            _ => {
                self.address_of(source, i, place, 0);
                MADE
            }
        };
        let again = self.again(i, place, 0).filter(|_| slot.is_none() && !free);
        let sought = Sought { linear, slot, again };
        let site = self.look_up(sought, (size, align), write, retry, free);
        let at = Address { base: Some(linear.register), index: Some(T1), scale: 0, disp: linear.disp - 1 };
        Reached { at, site: Some(site), resumes: true }
    }

    /// The address as one register, not a scratch one, plus a constant, if it is that.
    fn plain_base(&self, i: &Instruction, place: Where) -> Option<(u8, i32)> {
        if self.word != 8 {
            return None;
        }
        match place {
            Where::At(base, disp) => Some((base, disp)),
            Where::Operand => {
                let base = i.memory_base();
                let plain = base.is_gpr64()
                    && i.memory_index() == Register::None
                    && !is_scratch(base)
                    && !matches!(i.memory_segment(), Register::FS | Register::GS);
                let disp = i.memory_displacement64() as i32;
                (plain && disp.unsigned_abs() < 1 << 30).then(|| (base.number() as u8, disp))
            }
        }
    }

    /// The address of the present access plus `more` as a sum of registers, if the next round waits for
    /// what is read there.
    fn again(&self, i: &Instruction, place: Where, more: i32) -> Option<Address> {
        if self.steps[self.k].address != Origin::Itself || self.word != 8 || self.form != Form::Flat {
            return None;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let plain = |r: Register| r == Register::None || r.is_gpr64() && !is_scratch(r);
        let sum = place == Where::Operand
            && plain(base)
            && plain(index)
            && !matches!(i.memory_segment(), Register::FS | Register::GS);
        let number = |r: Register| (r != Register::None).then(|| r.number() as u8);
        sum.then(|| Address {
            base: number(base),
            index: number(index),
            scale: i.memory_index_scale().trailing_zeros() as u8,
            disp: (i.memory_displacement64() as i32).wrapping_add(more),
        })
    }

    fn make_again(&mut self, address: Option<Address>) {
        if let Some(address) = address {
            self.code.lea_address(true, T0, &address);
        }
    }

    /// T0 = the address plus `more`.
    fn address_of(&mut self, source: &Source, i: &Instruction, place: Where, more: i32) {
        match place {
            Where::Operand if more == 0 => self.address(source, i),
            Where::Operand => {
                let mut moved = *i;
                let disp = (i.memory_displacement64() as i32).wrapping_add(more);
                moved.set_memory_displacement64(i64::from(disp) as u64);
                moved.set_memory_displ_size(8);
                self.address(source, &moved);
            }
            Where::At(base, disp) if disp + more == 0 && self.word == 8 => self.code.mov(T0, base),
            Where::At(base, disp) => self.code.lea_word(self.word == 8, T0, base, disp + more),
        }
    }

    /// Looks up the whole span of a group, from `linear`.
    fn lead(
        &mut self,
        group: u16,
        Sought { linear, slot, again }: Sought,
        (span, align, write, table): (u32, u32, bool, bool),
        retry: u32,
        free: bool,
    ) -> u32 {
        self.t1 = None;
        let restore = self.restores();
        let site = self.site(Kind::Access { write, table });
        let plain = self.site(Kind::Plain { patch: 0 });
        let at = self.site_mut(site);
        (at.retry, at.plain) = (retry, plain);
        let other = self.code.label();
        let miss = self.code.label();
        match slot {
            Some(slot) => {
                let ways = Ways { miss, slow: other, site, restore, alone: false };
                self.near(linear, slot, (span, align), table, ways);
            }
            None => {
                if align > 1 {
                    self.low_bits(linear.register, align, other, free);
                }
                if span > align {
                    self.within_page(linear, span, other, free);
                }
                self.find_entry(linear, again, table, (miss, free));
            }
        }
        if self.groups[usize::from(group)].kept {
            self.code.store(SHARED_AT + 8 * i32::from(group), T1);
        }
        self.t1 = Some(group);
        let from = again.map_or(From::Linear(MADE), From::Sum);
        self.cold.push(Cold::Miss { label: miss, site, restore, from });
        self.cold.push(Cold::Plain { label: other, site: plain, restore, counted: self.counted });
        let slow = self.code.label();
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        site
    }

    /// Before the present step: the look-ups of groups whose first access comes later, where
    /// flags are live.
    pub(super) fn lead_early(&mut self) {
        for n in 0..self.early.len() {
            let early = self.early[n];
            if early.step != self.k {
                continue;
            }
            self.spare_flags_by_t0();
            let retry = self.here();
            let group = &self.groups[usize::from(early.group)];
            // Not a write yet: the page must be writable without its dirty flag being set now.
            let what = (group.span, group.align, false, group.write);
            let stack = early.at.base == Some(RSP) && early.at.index.is_none();
            let slot = self.slot_of(stack, group.write);
            let mut linear = MADE;
            match (early.segment, early.at) {
                (Some(segment), at) => {
                    self.code.load(T0, SEG_BASE + 8 * i32::from(segment));
                    self.code.lea_word(self.word == 8, T0, T0, at.disp);
                }
                (None, Address { base: Some(register), index: None, disp, .. })
                    if slot.is_some() && self.word == 8 =>
                {
                    linear = Linear { register, disp };
                }
                (None, at) => self.code.lea_address(self.word == 8, T0, &at),
            }
            self.lead(early.group, Sought { linear, slot, again: None }, what, retry, false);
        }
    }

    /// The address of a group's member, with the look-up in T1.
    fn member_address(&mut self, source: &Source, i: &Instruction, place: Where) -> Address {
        let sum = |base, disp: i32| Address { base: Some(base), index: Some(T1), scale: 0, disp: disp - 1 };
        if self.word == 4 {
            // Addresses wrap at 4 GiB.
            self.address_of(source, i, place, 0);
            return sum(T0, 0);
        }
        match place {
            Where::At(base, disp) => sum(base, disp + if base == RSP { self.owed } else { 0 }),
            Where::Operand => {
                let disp = i.memory_displacement64() as i32;
                let base = i.memory_base();
                match i.memory_segment() {
                    Register::FS => self.code.load(T0, SEG_BASE),
                    Register::GS => self.code.load(T0, SEG_BASE + 8),
                    _ if i.memory_index() != Register::None || base == Register::None || base.is_ip() => {
                        self.address(source, i);
                        return sum(T0, 0);
                    }
                    _ if is_scratch(base) => self.code.load(T0, slot(base.number() as u8)),
                    _ => return sum(base.number() as u8, disp),
                }
                sum(T0, disp)
            }
        }
    }

    /// An access to an address that is known now and does not cross a page.
    fn reach_constant(&mut self, address: u64, write: bool, retry: u32, free: bool) -> Reached {
        let site = self.site(Kind::Access { write, table: write });
        self.site_mut(site).retry = retry;
        let restore = self.restores();
        let miss = self.code.label();
        let slow = self.code.label();
        let index = (address >> 12) & (TABLE_PAGES - 1);
        self.code.constant(T1, if write { !index } else { index });
        self.entry(write, miss, free);
        let here = self.here();
        self.site_mut(site).once = here;
        let at = match i32::try_from(address as i64 - 1) {
            Ok(disp) => Address { base: Some(T1), index: None, scale: 0, disp },
            Err(_) => {
                self.code.constant(T0, address);
                Address { base: Some(T0), index: Some(T1), scale: 0, disp: -1 }
            }
        };
        self.cold.push(Cold::Miss { label: miss, site, restore, from: From::Address(address) });
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        Reached { at, site: Some(site), resumes: true }
    }

    /// Looks up the page of `linear` for `size` bytes; the result is in T1. Returns the access's site.
    pub(super) fn look_up(
        &mut self,
        Sought { linear, slot, again }: Sought,
        (size, align): (u32, u32),
        write: bool,
        retry: u32,
        free: bool,
    ) -> u32 {
        let site = self.site(Kind::Access { write, table: write });
        self.site_mut(site).retry = retry;
        let restore = self.restores();
        let slow = self.code.label();
        let miss = self.code.label();
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        if let Some(slot) = slot {
            self.near(linear, slot, (size, align), write, Ways { miss, slow, site, restore, alone: true });
            self.cold.push(Cold::Leave { label: miss, site, reason: reason::MISS, restore });
            return site;
        }
        if align > 1 {
            self.low_bits(linear.register, align, slow, free);
        } else {
            self.within_page(linear, size, slow, free);
        }
        self.find_entry(linear, again, write, (miss, free));
        let here = self.here();
        self.site_mut(site).once = here;
        let from = again.map_or(From::Linear(linear), From::Sum);
        self.cold.push(Cold::Miss { label: miss, site, restore, from });
        if linear == MADE {
            self.make_again(again);
        }
        site
    }

    /// Goes to `slow` if `size` bytes from `linear` (without a constant to add) cross a page; quick for
    /// what is aligned.
    fn within_page(&mut self, linear: Linear, size: u32, slow: Label, free: bool) {
        match size {
            1 => {}
            2 | 4 | 8 => {
                let (label, back) = (self.code.label(), self.code.label());
                self.low_bits(linear.register, size, label, free);
                self.code.bind(back);
                self.cold.push(Cold::Unaligned { label, back, linear, slow, size, free });
            }
            _ => self.crossing(linear, size, slow, free),
        }
    }

    /// Goes to `other` unless `register` is a multiple of `align`.
    pub(super) fn low_bits(&mut self, register: u8, align: u32, other: Label, free: bool) {
        if free {
            self.code.pext(T1, register, mask_below(align));
            self.zero_test(T1, other);
        } else {
            self.code.test8(register, (align - 1) as u8);
            self.code.jcc(5, other);
        }
    }

    /// T1 = the table entry of the page of `linear` (without a constant to add); goes to `miss` if
    /// there is none.
    pub(super) fn index(&mut self, linear: Linear, write: bool, miss: Label, free: bool) {
        let from = linear.register;
        if self.form == Form::Hashed {
            // Whose slot it is: the sum is an offset in a page if it is this page's.
            self.slot_index(from, write);
            self.code.load_entry(T1, if write { WRITE_TAGS } else { READ_TAGS });
            self.code.lea_sum(T1, from, T1, 0);
            self.code.pext(T1, T1, MASK_INDEX);
            self.zero_test(T1, miss);
            self.slot_index(from, write);
            return self.entry(write, miss, free);
        }
        // PEXT has the longer way to its result.
        if free || self.pext && self.steps[self.k].address == Origin::Registers {
            self.code.pext(T1, from, MASK_INDEX);
        } else {
            self.code.page_index(T1, from);
        }
        if write {
            self.code.not(T1);
        }
        self.entry(write, miss, free);
    }

    /// [`index`](Self::index), or what takes the fewest cycles if the address can be made again: T0
    /// changes then.
    fn find_entry(
        &mut self,
        linear: Linear,
        again: Option<Address>,
        write: bool,
        (miss, free): (Label, bool),
    ) {
        if again.is_none() {
            return self.index(linear, write, miss, free);
        }
        // The GS base as a segment base would be added to the address, which takes longer.
        self.code.page_index_by(T1, T0, linear.register);
        if write {
            self.code.not(T0);
        }
        self.code.load(T1, SELF);
        let disp = if write { WRITE_TABLE } else { READ_TABLE };
        self.code.op_at(true, 0x8b, T1, &Address { base: Some(T1), index: Some(T0), scale: 3, disp });
        self.code.test8(T1, 1);
        self.code.jcc(4, miss);
    }

    fn slot_index(&mut self, from: u8, write: bool) {
        self.code.pext(T1, from, MASK_SLOT);
        if write {
            self.code.not(T1);
        }
    }

    /// T1 = the entry that T1 is the index of; goes to `miss` if there is none.
    fn entry(&mut self, write: bool, miss: Label, free: bool) {
        self.code.load_entry(T1, if write { WRITE_TABLE } else { READ_TABLE });
        if free {
            self.none_test(T1, miss);
        } else {
            self.code.test8(T1, 1);
            self.code.jcc(4, miss);
        }
    }

    /// The exact test whether `size` bytes from `linear` (without a constant to add) cross a page.
    pub(super) fn crossing(&mut self, linear: Linear, size: u32, slow: Label, free: bool) {
        if free {
            self.code.pext(T1, linear.register, MASK_OFFSET);
            self.code.lea(T1, T1, size as i32 - 1);
            self.code.pext(T1, T1, MASK_NEXT);
            return self.zero_test(T1, slow);
        }
        self.code.mov32(T1, linear.register);
        self.code.group32(4, T1, 0xfff);
        self.code.group32(7, T1, 0x1000 - size as i32);
        self.code.jcc(7, slow);
    }

    /// A site for an access that the host may refuse: the interpreter executes the instruction.
    fn refusable(&mut self) -> u32 {
        let (site, label, restore) = (self.site(Kind::Interpret), self.code.label(), self.restores());
        self.cold.push(Cold::Leave { label, site, reason: reason::SLOW, restore });
        site
    }

    /// The host instruction that comes next may fault; it belongs to `site`.
    pub(super) fn may_fault(&mut self, site: u32) {
        let at = self.here();
        self.faults.push((at, site));
    }

    /// The access that comes next was reached so.
    pub(super) fn accesses(&mut self, reached: &Reached) {
        if let Some(site) = reached.site {
            self.may_fault(site);
        }
    }

    /// The instruction whose access was reached so is complete.
    pub(super) fn accessed(&mut self, reached: &Reached) {
        if let Some(site) = reached.site
            && reached.resumes
        {
            self.goes_on(site);
        }
    }

    /// T0 = the host address of an access, so that T1 is free.
    pub(super) fn free_t1(&mut self, reached: &Reached) -> Address {
        if reached.at.base != Some(T0) || reached.at.index.is_some() {
            self.code.lea_address(true, T0, &reached.at);
        }
        self.t1 = None;
        Address { base: Some(T0), index: None, scale: 0, disp: 0 }
    }

    /// The instruction of `site` is complete: the block goes on here.
    pub(super) fn goes_on(&mut self, site: u32) {
        let here = self.here();
        self.site_mut(site).next = here;
    }
}

/// The linear address of an operand that has no register in it.
pub fn constant_address(source: &Source, i: &Instruction) -> Option<u64> {
    if source.bits() != 64 || matches!(i.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    if i.memory_base() == Register::RIP {
        return Some(i.memory_displacement64());
    }
    let plain = i.memory_base() == Register::None && i.memory_index() == Register::None;
    (plain && i.memory_displ_size() == 8).then_some(i.memory_displacement64())
}
