//! Loops whose look-ups are good for many rounds.
//!
//! A block that branches to its own start and was found running when something was asked of the
//! vCPU is translated anew, so that it counts its rounds (see [`Stage`]), and once it has done
//! [`HOT`] at a stretch, with a second body behind the first. On the way back, after a few
//! rounds, the pages are looked up of all accesses whose addresses move by a constant per round,
//! or not at all, and how many rounds they stay on those pages. The second body does that many
//! rounds (at most [`ROUNDS`]) without those look-ups and without a poll; then it looks ahead
//! again, or the first goes on. One of the moving registers tells when: no other count is kept.
//!
//! The look-ups are good as long as those of groups are (see [`super::groups`]): the block
//! goes on after a way out only if nothing was revoked.

use super::groups::{Access, Group, Member, Values, mentions_scratch, uses_memory};
use super::{Builder, Class, Cold, Source, access, class};
use crate::asm::*;
use crate::cache::{Kind, Stage};
use crate::layout::*;
use iced_x86::{Instruction, Register};

/// Rounds after which a loop is translated anew.
const HOT: u32 = 32;
/// Most rounds at a time: about 100 µs of the longest loops.
const ROUNDS: i32 = 1024;
/// Fewer are not worth it.
const FEWEST: i32 = 5;
/// Rounds by the first body before the second is tried: as many as cost what looking ahead does, fewer
/// where look-ups have to spare flags; and after it could not be.
const WARM: u32 = 4;
const WARM_DEAR: u32 = 2;
const PAUSE: u32 = 24;
/// Likewise where the pages of the second body ended.
const SOON: u32 = 2;
/// Most bytes that an address may move per round.
const FARTHEST: i64 = 4096 / 16;
/// Most instructions of such a loop.
pub const LONGEST: usize = 48;

/// Look-ups of a loop, by their place in [`State::shared`].
pub struct Hoist {
    plans: Vec<Plan>,
    members: Vec<Option<Member>>,
    /// The register that tells when the rounds are done, and what it moves by.
    counter: (u8, i32),
    /// T1 holds the only look-up all the time.
    steady: bool,
    /// The flags are live at the start.
    live: bool,
}

/// Where the code of a [`Hoist`] is.
#[derive(Clone, Copy)]
pub struct Places {
    /// The first body, after its poll.
    pub inner: Label,
    /// The second body.
    top: Label,
}

/// Accesses whose addresses differ by constants.
#[derive(PartialEq, Eq)]
struct Base {
    register: Option<u8>,
    index: Option<u8>,
    scale: u32,
    segment: Option<u8>,
    /// The page, if there are no registers.
    page: u64,
    align: u32,
}

struct Plan {
    base: Base,
    min: i64,
    max: i64,
    write: bool,
    stride: i64,
}

impl Builder {
    pub(super) fn find_loop(&mut self, source: &Source) {
        if self.word != 8 || source.checked || !self.is_loop(source) {
            return;
        }
        match source.stage {
            Stage::Hot => self.hoist = self.find_hoist(source),
            stage => self.warming = matches!(stage, Stage::Measured(_)),
        }
    }

    /// Which accesses take part.
    fn find_hoist(&mut self, source: &Source) -> Option<Hoist> {
        let mut values = Values::new();
        let mut found: Vec<Option<(Access, u32, [i64; 2])>> = Vec::with_capacity(self.steps.len());
        for k in 0..self.steps.len() {
            let (i, class) = (self.steps[k].i, self.steps[k].class);
            if class == Class::Native && super::groups::has_memory(&i) && self.is_odd(&i) {
                return None;
            }
            let access = self.movable(source, &i, class);
            found.push(access.and_then(|(mut access, align)| {
                let moved = [values.since_start(access.base)?, values.since_start(access.index)?];
                (access.base, access.index) = (moved[0].0, moved[1].0);
                Some((access, align, [moved[0].1, moved[1].1]))
            }));
            self.follow(&mut values, &i, class);
        }
        let strides: [Option<i64>; 16] = std::array::from_fn(|n| values.stride(n));
        let counter = (0..16u8).find_map(|n| match strides[usize::from(n)] {
            Some(by) if by != 0 && n != T0 && n != T1 => Some((n, i32::try_from(by).ok()?)),
            _ => None,
        })?;
        let mut hoist = Hoist {
            plans: Vec::new(),
            members: vec![None; self.steps.len()],
            counter,
            steady: false,
            live: self.steps[0].live_before != 0,
        };
        for (k, found) in found.into_iter().enumerate() {
            hoist.members[k] = found.and_then(|(access, align, moved)| {
                let plans = hoist.plans.len();
                let (group, offset) = plan(&mut hoist.plans, &strides, &access, align, moved)?;
                Some(Member { group, leader: usize::from(group) == plans, offset: offset as i32 })
            });
        }
        (!hoist.plans.is_empty()).then(|| {
            hoist.steady = self.is_steady(&hoist);
            hoist
        })
    }

    fn is_loop(&self, source: &Source) -> bool {
        use Class::*;
        let Some((last, others)) = self.steps.split_last() else { return false };
        let back = |step: &super::Step| step.i.near_branch_target() == source.rip;
        last_branch(last.class)
            && back(last)
            && self.steps.len() <= LONGEST
            && others.iter().all(|step| match step.class {
                Native => !class::uses_x87(&step.i) && !class::is_avx512(&step.i),
                Nothing | Pop | Leave => true,
                Push => step.i.op0_kind() != iced_x86::OpKind::Memory,
                Jump | Branch | CountZero => !back(step),
                _ => false,
            })
    }

    /// The access of a step as far as it can take part, and its alignment.
    fn movable(&mut self, source: &Source, i: &Instruction, class: Class) -> Option<(Access, u32)> {
        if class == Class::Native
            && let Some(address) = access::constant_address(source, i)
            && !i.has_lock_prefix()
        {
            let size = i.memory_size().size() as u32;
            let align = class::alignment(i, size);
            let whole = (address & 0xfff) + u64::from(size) <= 4096 && address.is_multiple_of(align.into());
            let write = self.writes_memory(i);
            let memory = super::groups::has_memory(i) && (1..=64).contains(&size);
            let all = !i.has_op_mask();
            return (memory && whole && all).then(|| (Access::constant(address, size, write), 1));
        }
        self.access_of(i, class)
    }

    /// Whether nothing but the accesses of the only look-up uses T1.
    fn is_steady(&self, hoist: &Hoist) -> bool {
        hoist.plans.len() == 1
            && !hoist.live
            && !self.counted
            && self.steps.iter().zip(&hoist.members).all(|(step, member)| {
                (member.is_some() || !uses_memory(step.class, &step.i)) && !mentions_scratch(&step.i)
            })
    }

    /// At the start of the first body's rounds.
    pub(super) fn begin_rounds(&mut self) {
        if self.hoist.is_some() || self.warming {
            let dear = |hoist: &Hoist| {
                let mut accesses = self.steps.iter().zip(&hoist.members);
                accesses.any(|(step, member)| member.is_some() && step.live_before != 0)
            };
            let turns = match &self.hoist {
                None => HOT,
                Some(hoist) if dear(hoist) => WARM_DEAR,
                Some(_) => WARM,
            };
            self.code.store_imm32(TURNS, turns);
            let places = Places { inner: self.code.label(), top: self.code.label() };
            self.code.bind(places.inner);
            self.places = Some(places);
        }
    }

    /// The present branch, whose opcode is there, is the way back of the second body.
    pub(super) fn is_way_round(&mut self, source: &Source, target: u64) -> bool {
        let last = self.k + 1 == self.steps.len();
        match self.places {
            Some(places) if self.hoisted && last && target == source.rip => {
                self.code.rel32(places.top);
                true
            }
            _ => false,
        }
    }

    /// The way back of the first body, and the second one. Returns the offset of the former.
    pub(super) fn second_body(&mut self, source: &Source) -> u32 {
        let Some(places) = self.places else { return 0 };
        self.k = 0;
        let turn = self.code.at();
        let site = self.site(Kind::Head);
        let live = self.steps[0].live_before != 0;
        self.turn(live, places, site);
        let Some(hoist) = self.hoist.take() else {
            let hot = self.site(Kind::Hot);
            let label = self.code.label();
            self.code.jmp(label);
            self.cold.push(Cold::Leave { label, site: hot, reason: reason::SLOW, restore: false });
            return turn;
        };
        let (again, out, fail) = (self.code.label(), self.code.label(), self.code.label());
        self.code.bind(again);
        if live {
            self.code.save_flags();
        }
        self.look_ahead(&hoist, fail);
        let done = self.way_out(live, out);
        self.align_loop();
        self.code.bind(places.top);
        self.rounds_left(&hoist, out, done);
        if self.counted {
            self.count_down(site);
        }
        self.rounds(source, &hoist);
        self.code.bind(out);
        self.code.store_imm32(TURNS, SOON);
        self.poll_loop(live, site);
        self.code.jmp(again);
        self.code.bind(fail);
        self.not_yet(live, places);
        turn
    }

    /// The second body cannot be run now: a while later if it was never begun in this place, else
    /// soon, behind a page's end.
    fn not_yet(&mut self, live: bool, places: Places) {
        let soon = self.code.label();
        self.code.cmp32_gs(TURNS, 0);
        self.code.jcc(5, soon);
        self.code.store_imm32(TURNS, PAUSE);
        self.code.bind(soon);
        if live {
            self.code.restore_flags();
        }
        self.code.jmp(places.inner);
    }

    /// Padding up to a line of the processor's caches.
    fn align_loop(&mut self) {
        let left = self.here().wrapping_neg() as usize % 64;
        self.code.nops(left);
    }

    fn poll_loop(&mut self, live: bool, site: u32) {
        let pending = self.code.label();
        self.poll(live, pending);
        self.cold.push(Cold::Leave { label: pending, site, reason: reason::POLL, restore: false });
    }

    /// Polls, and goes on in the first body unless it is time to try the second.
    fn turn(&mut self, live: bool, places: Places, site: u32) {
        self.poll_loop(live, site);
        if live {
            self.code.load32(T1, TURNS);
            self.code.lea(T1, T1, -1);
            self.code.store32(TURNS, T1);
            self.code.mov(T0, RCX);
            self.code.mov(RCX, T1);
            self.rcx_test(places.inner);
        } else {
            self.code.decrement32_gs(TURNS);
            self.code.jcc(5, places.inner);
        }
    }

    /// Looks up all pages and counts the rounds; goes to `fail` if they are too few.
    fn look_ahead(&mut self, hoist: &Hoist, fail: Label) {
        self.code.store_imm32(LEFT, ROUNDS as u32 - 1);
        for (n, plan) in hoist.plans.iter().enumerate() {
            self.look_up_plan(plan, fail);
            self.code.store(SHARED_AT + 8 * n as i32, T1);
        }
        let (register, by) = hoist.counter;
        self.code.load32(T0, LEFT);
        self.code.group32(7, T0, FEWEST - 1);
        self.code.jcc(2, fail);
        self.code.lea(T0, T0, 1);
        self.code.multiply(T0, T0, by);
        self.code.op_registers(0x01, register, T0);
        if hoist.live {
            // Its complement plus one is compared without flags.
            self.code.not(T0);
            self.code.lea(T0, T0, 1);
        }
        self.code.store(LIMIT, T0);
        if hoist.live {
            self.code.restore_flags();
        }
        self.t1 = hoist.steady.then_some(0);
    }

    /// T1 = the entry of the plan's page; LEFT at most the rounds beyond the first that stay there.
    fn look_up_plan(&mut self, plan: &Plan, fail: Label) {
        self.span_start(plan);
        let (span, stride) = ((plan.max - plan.min) as i32, plan.stride);
        if plan.base.align > 1 {
            self.code.test8(T0, (plan.base.align - 1) as u8);
            self.code.jcc(5, fail);
        }
        let moves = stride != 0;
        if span > 1 || moves {
            self.code.mov32(T1, T0);
            self.code.group32(4, T1, 0xfff);
        }
        if stride <= 0 && span > 1 {
            self.code.group32(7, T1, 4096 - span);
            self.code.jcc(7, fail);
        } else if moves && stride > 0 {
            // 4096 - span - T1
            self.code.group32(5, T1, 4096 - span);
            self.code.jcc(7, fail);
            self.code.not(T1);
            self.code.lea_word(false, T1, T1, 1);
        }
        if moves {
            let counted = self.code.label();
            let shift = stride.unsigned_abs().next_power_of_two().trailing_zeros() as u8;
            self.code.shift32(T1, false, shift);
            self.code.compare32_gs(T1, LEFT);
            self.code.jcc(3, counted);
            self.code.store32(LEFT, T1);
            self.code.bind(counted);
        }
        self.index(access::MADE, plan.write, fail, false);
    }

    /// T0 = where the plan's span starts in the next round.
    fn span_start(&mut self, plan: &Plan) {
        let Base { register, index, segment, page, .. } = plan.base;
        let address = match (segment, register) {
            (Some(segment), _) => {
                self.code.load(T0, SEG_BASE + 8 * i32::from(segment));
                Address::at(T0, plan.min as i32)
            }
            (_, Some(n @ (T0 | T1))) => {
                self.code.load(T0, access::slot(n));
                Address::at(T0, plan.min as i32)
            }
            (_, None) if index.is_none() => {
                return self.code.constant(T0, page.wrapping_add(plan.min as u64));
            }
            _ => Address {
                base: register,
                index,
                scale: plan.base.scale.trailing_zeros() as u8,
                disp: plan.min as i32,
            },
        };
        self.code.lea_address(true, T0, &address);
    }

    /// Before the second body, in JRCXZ's reach of its top (that is on the next line): to `out`, with RCX
    /// as T0 has it.
    fn way_out(&mut self, live: bool, out: Label) -> u32 {
        if !live {
            return 0;
        }
        let over = self.code.label();
        self.code.jmp(over);
        let done = self.here();
        self.code.mov(RCX, T0);
        self.code.jmp(out);
        self.code.bind(over);
        done
    }

    /// At the top of the second body: goes to `out` if the rounds are done, by way of `done` if flags
    /// must stay.
    fn rounds_left(&mut self, hoist: &Hoist, out: Label, done: u32) {
        let register = hoist.counter.0;
        if hoist.live {
            self.code.load(T1, LIMIT);
            self.code.mov(T0, RCX);
            self.code.lea_sum(RCX, register, T1, 0);
            self.code.jrcxz(done.wrapping_sub(self.here() + 2) as u8);
            self.code.mov(RCX, T0);
        } else {
            self.code.op_gs(0x3b, register, LIMIT);
            self.code.jcc(4, out);
        }
    }

    fn rounds(&mut self, source: &Source, hoist: &Hoist) {
        self.regroup(hoist);
        self.flags = super::FlagsAt::Host;
        self.hoisted = true;
        for k in 0..self.steps.len() {
            self.k = k;
            self.settle_stack();
            self.step(source);
        }
        self.hoisted = false;
    }

    /// The second body's groups: the hoisted ones, and behind them the first body's that have nothing
    /// to do with those.
    fn regroup(&mut self, hoist: &Hoist) {
        let hoisted = hoist.plans.len();
        let mut others = std::mem::take(&mut self.groups);
        let mut apart: Vec<bool> =
            (0..others.len()).map(|n| !others[n].early && hoisted + n < SHARED).collect();
        for (step, member) in self.steps.iter().zip(&hoist.members) {
            if let (Some(_), Some(mine)) = (member, step.member) {
                apart[usize::from(mine.group)] = false;
            }
        }
        for (step, member) in self.steps.iter_mut().zip(&hoist.members) {
            let kept = step.member.filter(|mine| apart[usize::from(mine.group)]);
            let kept = kept.map(|mine| Member { group: mine.group + hoisted as u16, ..mine });
            step.member = member.or(kept);
        }
        self.groups.extend(hoist.plans.iter().map(|plan| Group::hoisted(plan.write)));
        // Hoisted look-ups come into the scratch register between.
        others.iter_mut().for_each(|group| group.kept = true);
        self.groups.append(&mut others);
    }
}

fn last_branch(class: Class) -> bool {
    matches!(class, Class::Branch | Class::Jump | Class::Loop)
}

/// Adds an access to the plan of its base, or begins one; its offset from the plan's base.
fn plan(
    plans: &mut Vec<Plan>,
    strides: &[Option<i64>; 16],
    access: &Access,
    align: u32,
    moved: [i64; 2],
) -> Option<(u16, i64)> {
    let register = |r: Register| (r != Register::None).then(|| r.full_register().number() as u8);
    let stride = |n: Option<u8>| n.map_or(Some(0), |n| strides[usize::from(n)]);
    let segment = match access.segment {
        Register::FS => Some(0),
        Register::GS => Some(1),
        _ => None,
    };
    let (base, index) = (register(access.base), register(access.index));
    let scale = i64::from(access.scale);
    let by = stride(base)?.checked_add(stride(index)?.checked_mul(scale)?)?;
    if by.abs() > FARTHEST || by % i64::from(align) != 0 {
        return None;
    }
    let bare = base.is_none() && index.is_none() && segment.is_none();
    let page = if bare { access.disp as u64 & !0xfff } else { 0 };
    let min = (access.disp.wrapping_sub(page as i64)) + moved[0] + moved[1] * scale;
    let max = min + i64::from(access.size);
    let base = Base { register: base, index, scale: access.scale, segment, page, align };
    i32::try_from(min).ok()?;
    for (n, plan) in plans.iter_mut().enumerate() {
        let (from, to) = (plan.min.min(min), plan.max.max(max));
        let aligned = (min - plan.min) % i64::from(align) == 0;
        if plan.base == base && to - from <= super::groups::SPAN && aligned {
            (plan.min, plan.max) = (from, to);
            plan.write |= access.write;
            return Some((n as u16, min));
        }
    }
    if plans.len() == SHARED {
        return None;
    }
    plans.push(Plan { base, min, max, write: access.write, stride: by });
    Some((plans.len() as u16 - 1, min))
}

impl Values {
    /// The register at the loop's start that `r` is now, and by how much it was moved.
    fn since_start(&self, r: Register) -> Option<(Register, i64)> {
        if r == Register::None {
            return Some((r, 0));
        }
        let value = self.get(r);
        (1..=16).contains(&value.id).then(|| (Register::RAX + (value.id - 1), value.offset))
    }

    /// What register `n` moves by in a round.
    fn stride(&self, n: usize) -> Option<i64> {
        let value = self.values[n];
        (value.id == n as u32 + 1).then_some(value.offset)
    }
}
