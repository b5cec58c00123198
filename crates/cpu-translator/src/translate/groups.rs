//! Accesses that share one look-up.
//!
//! Accesses of a block whose addresses differ by constants (the same base registers, moved
//! only by constants between them) are a group if they span little. The first one looks up
//! the page of the whole span; the others use its result. Where the span crosses a page, or
//! the page is no plain memory, a variant of the block without groups takes over at the first
//! access.

use super::{Builder, Class, flags};
use crate::asm::Address;
use crate::layout::SHARED;
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

/// Bytes that a group may span.
pub const SPAN: i64 = 256;

/// A step's part in a group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub group: u16,
    /// It is the group's first.
    pub leader: bool,
    /// Offset of the access from the start of the group's span.
    pub offset: i32,
}

pub struct Group {
    pub span: u32,
    pub write: bool,
    /// The result is kept in the state page, because others use the scratch in between.
    pub kept: bool,
    /// The look-up is made before the first access; see [`Early`].
    pub early: bool,
    /// Bytes of which the span's start must be a multiple: as some members demand it.
    pub align: u32,
    /// Offset of one of those.
    anchor: i64,
    min: i64,
    max: i64,
    members: u32,
    last: usize,
}

/// A look-up that is made before step `step`, where the flags are dead, for an access of a
/// later step, where they are live.
#[derive(Clone, Copy)]
pub struct Early {
    pub step: usize,
    pub group: u16,
    pub at: Address,
    /// Base of FS (0) or GS (1) instead of a base register.
    pub segment: Option<u8>,
}

/// One memory access of a step, as far as groups can take part in it.
#[derive(Clone, Copy)]
pub struct Access {
    pub base: Register,
    pub index: Register,
    pub scale: u32,
    pub segment: Register,
    pub disp: i64,
    pub size: u32,
    pub write: bool,
}

impl Access {
    /// At an address without registers.
    pub fn constant(address: u64, size: u32, write: bool) -> Access {
        let none = Register::None;
        Access { base: none, index: none, scale: 1, segment: none, disp: address as i64, size, write }
    }
}

impl Group {
    /// Whose look-up is made before a loop.
    pub fn hoisted(write: bool) -> Group {
        let (span, min, max, members, last) = Default::default();
        Group { span, write, kept: true, early: true, align: 1, anchor: 0, min, max, members, last }
    }

    /// Whether an access at `offset`, which must be a multiple of `align`, can be if those here are.
    fn suits(&self, offset: i64, align: u32) -> bool {
        (offset - self.anchor) % i64::from(align.min(self.align)) == 0
    }

    /// Begins the span where the alignment is seen.
    fn settle(&mut self) {
        self.min -= (self.min - self.anchor).rem_euclid(self.align.into());
        self.span = (self.max - self.min) as u32;
    }
}

/// A register's value as an unknown plus a constant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value {
    pub id: u32,
    pub offset: i64,
}

#[derive(PartialEq, Eq)]
struct Base {
    base: u32,
    index: u32,
    scale: u32,
    segment: Register,
}

/// The registers before a step, and its access.
struct Moment {
    values: [Value; 16],
    access: Option<Access>,
}

/// What is known of the registers. At first they are the unknowns 1 to 16.
pub struct Values {
    pub values: [Value; 16],
    next: u32,
}

impl Values {
    pub fn new() -> Values {
        let mut values = Values { values: [Value { id: 0, offset: 0 }; 16], next: 1 };
        values.forget();
        values
    }

    fn forget(&mut self) {
        for n in 0..16 {
            self.fresh(n);
        }
    }

    fn fresh(&mut self, n: usize) {
        self.values[n] = Value { id: self.next, offset: 0 };
        self.next += 1;
    }

    pub fn get(&self, r: Register) -> Value {
        self.values[r.full_register().number()]
    }

    fn set(&mut self, n: usize, mut value: Value, by: i64) {
        value.offset += by;
        if value.offset.abs() > 1 << 30 {
            self.fresh(n);
        } else {
            self.values[n] = value;
        }
    }
}

impl Builder {
    /// Finds the groups; fills in each step's part.
    pub(super) fn find_groups(&mut self) {
        self.groups.clear();
        let mut values = Values::new();
        let mut open: Vec<(Base, u16)> = Vec::new();
        let mut history = Vec::with_capacity(self.steps.len());
        for k in 0..self.steps.len() {
            let (i, class) = (self.steps[k].i, self.steps[k].class);
            history.push(Moment { values: values.values, access: None });
            if class.is_barrier() {
                values.forget();
                open.clear();
                continue;
            }
            if let Some((access, align)) = self.access_of(&i, class) {
                self.join(&mut open, &values, k, &access, align);
                history[k].access = Some(access);
            }
            self.follow(&mut values, &i, class);
        }
        self.settle_groups(&history);
    }

    /// Adds step `k` to the group of its base, or begins one.
    fn join(&mut self, open: &mut Vec<(Base, u16)>, values: &Values, k: usize, access: &Access, align: u32) {
        let value = |r: Register| {
            if r == Register::None { Value { id: 0, offset: 0 } } else { values.get(r) }
        };
        let (base, index) = (value(access.base), value(access.index));
        let key = Base { base: base.id, index: index.id, scale: access.scale, segment: access.segment };
        let offset = base.offset + index.offset * i64::from(access.scale) + access.disp;
        let end = offset + i64::from(access.size);
        let found = open.iter().position(|(other, _)| *other == key);
        if let Some(at) = found {
            let number = open[at].1;
            let group = &mut self.groups[usize::from(number)];
            let (min, max) = (group.min.min(offset), group.max.max(end));
            if max - min <= SPAN && group.suits(offset, align) {
                (group.min, group.max) = (min, max);
                if align > group.align {
                    (group.align, group.anchor) = (align, offset);
                }
                group.write |= access.write;
                group.members += 1;
                group.last = k;
                self.steps[k].member = Some(Member { group: number, leader: false, offset: offset as i32 });
                return;
            }
            open.remove(at);
        }
        let number = self.groups.len() as u16;
        self.groups.push(Group {
            span: 0,
            write: access.write,
            kept: false,
            early: false,
            align,
            anchor: offset,
            min: offset,
            max: end,
            members: 1,
            last: k,
        });
        self.steps[k].member = Some(Member { group: number, leader: true, offset: offset as i32 });
        open.push((key, number));
    }

    /// Drops groups of one (unless their look-up is better made earlier), and says which
    /// results must be kept in the state page.
    fn settle_groups(&mut self, history: &[Moment]) {
        self.groups.iter_mut().for_each(Group::settle);
        for k in 0..self.steps.len() {
            let Some(member) = self.steps[k].member else { continue };
            let group = &self.groups[usize::from(member.group)];
            let offset = (i64::from(member.offset) - group.min) as i32;
            let (alone, number) = (group.members < 2, usize::from(member.group));
            let mut from = k;
            if member.leader && number < SHARED {
                if let Some(early) = self.early(history, k, member.group, offset) {
                    from = early.step;
                    self.groups[number].early = true;
                    self.early.push(early);
                }
                self.groups[number].kept = self.is_scratch_used(from, k, member.group);
            }
            let group = &self.groups[number];
            if alone && !group.early || number >= SHARED {
                self.steps[k].member = None;
            } else {
                self.steps[k].member = Some(Member { offset, ..member });
            }
        }
    }

    /// Whether T1 may change between step `from`, before which a group's look-up is made, and
    /// its last access; its first is that of step `k`.
    fn is_scratch_used(&self, from: usize, k: usize, group: u16) -> bool {
        let last = self.groups[usize::from(group)].last;
        (from..last.max(k)).any(|n| {
            let step = &self.steps[n];
            let mine = step.member.is_some_and(|m| m.group == group);
            !mine && uses_memory(step.class, &step.i)
                || step.class == Class::Interpret
                || mentions_scratch(&step.i)
                || super::class::uses_x87(&step.i)
                || self.early.iter().any(|early| early.step == n && early.group != group)
        })
    }

    /// Where the look-up for the leader `k` can be made with the flags dead, if they are live
    /// at `k`: before the instruction that wrote them.
    fn early(&self, history: &[Moment], k: usize, group: u16, offset: i32) -> Option<Early> {
        if self.steps[k].live_before == 0 {
            return None;
        }
        let access = history[k].access?;
        if is_scratch(access.base) {
            return None;
        }
        let mut step = k;
        loop {
            step = step.checked_sub(1)?;
            let before = &self.steps[step];
            if !matches!(before.class, Class::Native | Class::Nothing | Class::Push | Class::Pop) {
                return None;
            }
            let written = flags::written(&before.i);
            if written != 0 {
                if before.live_before == 0 {
                    break;
                }
                if flags::killed(&before.i) != 0 {
                    return None;
                }
            }
        }
        let mut disp = access.disp - i64::from(offset);
        for (r, scale) in [(access.base, 1), (access.index, i64::from(access.scale))] {
            if r != Register::None {
                let n = r.full_register().number();
                let (then, now) = (history[step].values[n], history[k].values[n]);
                if then.id != now.id {
                    return None;
                }
                disp += (now.offset - then.offset) * scale;
            }
        }
        let register = |r: Register| (r != Register::None).then(|| r.full_register().number() as u8);
        let at = Address {
            base: register(access.base),
            index: register(access.index),
            scale: access.scale.trailing_zeros() as u8,
            disp: i32::try_from(disp).ok()?,
        };
        let segment = match access.segment {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        Some(Early { step, group, at, segment })
    }

    /// The access of a step, as far as it has a form that is known, and its alignment.
    pub(super) fn access_of(&mut self, i: &Instruction, class: Class) -> Option<(Access, u32)> {
        let word = i64::from(self.word);
        let stack = |base, disp, write| {
            let access = Access {
                base,
                index: Register::None,
                scale: 1,
                segment: Register::None,
                disp,
                size: word as u32,
                write,
            };
            Some((access, 1))
        };
        match class {
            Class::Push if i.op0_kind() != OpKind::Memory => stack(Register::RSP, -word, true),
            Class::Pop | Class::Return => stack(Register::RSP, 0, false),
            Class::Leave => stack(Register::RBP, 0, false),
            Class::Call => stack(Register::RSP, -word, true),
            Class::CallIndirect if i.op0_kind() != OpKind::Memory => stack(Register::RSP, -word, true),
            Class::JumpIndirect if i.op0_kind() == OpKind::Memory => {
                Some((self.memory_access(i, word as u32, false)?, 1))
            }
            Class::Native if i.mnemonic() != Mnemonic::Lea => {
                let size = i.memory_size().size() as u32;
                // With a mask an access may be none, so that it tells nothing of its address.
                let masked = i.has_op_mask();
                if !has_memory(i) || size == 0 || size > 64 || masked || self.is_odd(i) {
                    return None;
                }
                let write = self.writes_memory(i);
                Some((self.memory_access(i, size, write)?, super::class::alignment(i, size)))
            }
            _ => None,
        }
    }

    fn memory_access(&self, i: &Instruction, size: u32, write: bool) -> Option<Access> {
        let (base, index) = (i.memory_base(), i.memory_index());
        let wide = |r: Register| r == Register::None || self.is_word(r);
        if !wide(base) || !wide(index) || is_scratch(index) || i.has_lock_prefix() {
            return None;
        }
        let segment = match i.memory_segment() {
            r @ (Register::FS | Register::GS) => r,
            _ => Register::None,
        };
        if segment != Register::None {
            if base != Register::None
                || index != Register::None
                || i.memory_displ_size() == 4 && self.word == 8
            {
                return None;
            }
        } else if base == Register::None && index == Register::None
            || is_scratch(base) && index != Register::None
        {
            return None;
        }
        Some(Access {
            base,
            index,
            scale: if index == Register::None { 1 } else { i.memory_index_scale() },
            segment,
            disp: i64::from(i.memory_displacement64() as i32),
            size,
            write,
        })
    }

    /// Whether `r` is a register of the size of addresses.
    fn is_word(&self, r: Register) -> bool {
        if self.word == 8 { r.is_gpr64() } else { r.is_gpr32() }
    }

    pub(super) fn writes_memory(&mut self, i: &Instruction) -> bool {
        let info = self.info.info(i);
        let n = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory).unwrap_or(0);
        writes(info.op_access(n))
    }

    /// What the step does to the registers.
    pub(super) fn follow(&mut self, values: &mut Values, i: &Instruction, class: Class) {
        const RSP: usize = 4;
        let word = i64::from(self.word);
        let rsp = values.values[RSP];
        match class {
            Class::Nothing | Class::Jump | Class::Branch | Class::CountZero => return,
            Class::Push => return values.set(RSP, rsp, -word),
            Class::Pop => {
                values.set(RSP, rsp, word);
                return values.fresh(i.op0_register().full_register().number());
            }
            Class::Leave => {
                values.set(RSP, values.values[5], word);
                return values.fresh(5);
            }
            Class::Loop => return values.fresh(1),
            Class::Native => {}
            _ => return values.forget(),
        }
        let target = i.op0_register();
        if i.op_count() >= 1 && i.op0_kind() == OpKind::Register && self.is_word(target) {
            let n = target.full_register().number();
            let old = values.values[n];
            let immediate = i.op_count() == 2
                && matches!(
                    i.op_kind(1),
                    OpKind::Immediate8to64
                        | OpKind::Immediate32to64
                        | OpKind::Immediate8to32
                        | OpKind::Immediate32
                );
            let constant = || i64::from(i.immediate(1) as i32);
            match i.mnemonic() {
                Mnemonic::Add if immediate => return values.set(n, old, constant()),
                Mnemonic::Sub if immediate => {
                    return values.set(n, old, -constant());
                }
                Mnemonic::Inc => return values.set(n, old, 1),
                Mnemonic::Dec => return values.set(n, old, -1),
                Mnemonic::Mov if i.op1_kind() == OpKind::Register && self.is_word(i.op1_register()) => {
                    return values.set(n, values.get(i.op1_register()), 0);
                }
                Mnemonic::Lea if i.memory_index() == Register::None && self.is_word(i.memory_base()) => {
                    let disp = i64::from(i.memory_displacement64() as i32);
                    return values.set(n, values.get(i.memory_base()), disp);
                }
                _ => {}
            }
        }
        let info = self.info.info(i);
        for used in info.used_registers() {
            if writes(used.access()) && used.register().is_gpr() {
                values.fresh(used.register().full_register().number());
            }
        }
    }
}

/// Whether an operand or register that is accessed so may change.
pub fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

pub fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

pub fn is_scratch(r: Register) -> bool {
    matches!(r.full_register(), Register::R10 | Register::R11)
}

pub fn mentions_scratch(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && is_scratch(i.op_register(n)))
        || is_scratch(i.memory_base())
        || is_scratch(i.memory_index())
}

/// Whether the step's translation looks up memory.
pub fn uses_memory(class: Class, i: &Instruction) -> bool {
    match class {
        Class::Nothing | Class::Jump | Class::Branch | Class::Loop | Class::CountZero => false,
        Class::Native => has_memory(i),
        _ => true,
    }
}
