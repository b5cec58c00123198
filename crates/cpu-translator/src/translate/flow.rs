//! Branches, calls and returns.

use super::access::{Where, slot};
use super::{Builder, Class, Cold, FlagsAt, Source, flags};
use crate::asm::*;
use crate::cache::{Cache, Kind, LinkFlags};
use crate::layout::*;
use crate::tables::map_slot;
use iced_x86::{Instruction, OpKind};

impl Builder {
    pub(super) fn control(&mut self, source: &Source, i: &Instruction) {
        match self.steps[self.k].class {
            // Within the trace the next step is the target.
            Class::Jump if self.k + 1 == self.steps.len() => {
                self.link_after(source, i.near_branch_target());
            }
            Class::Branch => self.branch(source, i),
            Class::Loop | Class::CountZero => self.count(source, i),
            Class::Call => self.call(source, i),
            Class::CallIndirect => self.call_indirect(source, i),
            Class::JumpIndirect => {
                self.target_of(source, i);
                self.indirect(0);
            }
            Class::Return => self.ret(source, i),
            _ => {}
        }
        if self.runs_out() {
            self.link_after(source, i.next_ip());
        }
    }

    /// Goes to `target` when the present instruction, the block's last, is done.
    pub(super) fn link_after(&mut self, source: &Source, target: u64) {
        let live = self.steps[self.k].live_after != 0;
        let away = self.flags == FlagsAt::Saved && live && source.offset(target).is_none();
        if away {
            // It is not known whether they are wanted there: they stay where they are.
            self.flags = FlagsAt::Host;
        } else {
            self.want_flags_behind(live);
        }
        self.link(source, target, if away { LinkFlags::Away } else { LinkFlags::live(live) });
    }

    /// At the head of a block whose instruction reaches into the next page: leaves unless that
    /// is the page that it was translated from.
    pub(super) fn check_second(&mut self, source: &Source, live: bool) {
        let step = &self.steps[0];
        let crosses = usize::from(step.at) + step.i.len() > 4096;
        let Some((_, id)) = source.second.filter(|_| crosses) else { return };
        let slot = CODE_MAP + 4 * map_slot((source.rip & !0xfff).wrapping_add(4096)) as i32;
        let site = self.site(Kind::Crossing);
        let away = self.code.label();
        if live {
            self.code.load32(T1, slot);
            self.code.lea(T1, T1, (id as i32).wrapping_neg());
            self.zero_test(T1, away);
        } else {
            self.code.cmp32_gs(slot, id as i32);
            self.code.jcc(5, away);
        }
        self.cold.push(Cold::Leave { label: away, site, reason: reason::SLOW, restore: false });
    }

    /// Goes to `other` unless bytes `from` to `to` of the page, which T0 addresses, are the same.
    fn compare(&mut self, source: &Source, from: usize, to: usize, other: Label) {
        let mut at = from;
        while at < to {
            let left = to - at;
            if left >= 8 {
                let word = source.bytes[at..at + 8].try_into().unwrap_or_default();
                self.code.constant(T1, u64::from_le_bytes(word));
                self.code.op_at(true, 0x3b, T1, &Address::at(T0, at as i32));
                at += 8;
            } else {
                self.code.cmp8_at(T0, at as i32, source.bytes[at]);
                at += 1;
            }
            self.code.jcc(5, other);
        }
    }

    /// At the head of a block of an unwatched page: leaves unless its bytes are the same still.
    /// Whether flags are live is not known if they are not, so that they are saved.
    pub(super) fn check_bytes(&mut self, source: &Source) {
        let site = self.site(Kind::Stale);
        let other = self.code.label();
        self.code.save_flags();
        self.flags = FlagsAt::Saved;
        let mut ranges: Vec<(usize, usize)> = self
            .steps
            .iter()
            .map(|s| (usize::from(s.at), (usize::from(s.at) + s.i.len()).min(4096)))
            .collect();
        ranges.sort_unstable();
        self.code.constant(T0, source.host as u64);
        let mut rest = ranges.into_iter().peekable();
        while let Some((from, mut to)) = rest.next() {
            while let Some((_, end)) = rest.next_if(|next| next.0 <= to) {
                to = to.max(end);
            }
            self.compare(source, from, to, other);
        }
        self.cold.push(Cold::Leave { label: other, site, reason: reason::SLOW, restore: true });
    }

    /// Jumps to `target` for good.
    pub(super) fn link(&mut self, source: &Source, target: u64, flags: LinkFlags) {
        self.align_patch(1);
        self.code.raw(&[0xe9]);
        self.linked(source, target, flags);
    }

    /// The rel32 of a jump to `target`, whose opcode has just been emitted.
    fn linked(&mut self, source: &Source, target: u64, flags: LinkFlags) {
        if self.is_way_round(source, target) {
            return;
        }
        let near = source.offset(target).is_some();
        let counted = self.leaves_early();
        let patch = if near && !counted { self.here() } else { 0 };
        // A trace may have gone back by a jump: every loop has a way out to somewhere not beyond all
        // that its block has reached.
        let polls = self.steps[..=self.k].iter().any(|step| target <= step.i.ip());
        let site = self.site(Kind::Link { target, patch, id: 0, flags, polls });
        let label = self.code.label();
        self.code.rel32(label);
        self.cold.push(Cold::Link { label, site, counted });
    }

    /// Padding, so that the four bytes after the next `opcode` ones can be replaced at once: prefixes
    /// without a meaning, which keep a branch and the comparison before it one micro-operation.
    fn align_patch(&mut self, opcode: u32) {
        const ES: u8 = 0x26;
        let pads = pads(self.here() + opcode);
        self.code.raw(&[ES; 3][..pads]);
    }

    fn branch(&mut self, source: &Source, i: &Instruction) {
        let step = &self.steps[self.k];
        self.want_flags(step.live_before != 0);
        let live = LinkFlags::live(flags::live_at(source, i.near_branch_target()) != 0);
        let cc = i.condition_code() as u8 - 1;
        self.align_patch(2);
        self.code.raw(&[0x0f, 0x80 | cc]);
        self.linked(source, i.near_branch_target(), live);
    }

    fn count(&mut self, source: &Source, i: &Instruction) {
        let live = LinkFlags::live(flags::live_at(source, i.near_branch_target()) != 0);
        self.want_flags(self.steps[self.k].live_after != 0);
        let skip = self.code.label();
        if self.steps[self.k].class == Class::Loop {
            self.code.lea_word(self.word == 8, RCX, RCX, -1);
            self.count_zero(2);
            self.code.raw(&[0xeb, 5]); // over the way out of the loop
            self.code.jmp(skip);
        } else {
            self.count_zero(5);
            self.code.jmp(skip);
        }
        self.align_patch(1);
        self.code.raw(&[0xe9]);
        self.linked(source, i.near_branch_target(), live);
        self.code.bind(skip);
    }

    /// Over the next `over` bytes if the count is zero.
    fn count_zero(&mut self, over: u8) {
        if self.word == 8 {
            self.code.jrcxz(over);
        } else {
            self.code.jecxz(over);
        }
    }

    /// Pushes the return address of `i`. Returns the site, if the access has one.
    fn push_return(&mut self, source: &Source, i: &Instruction) -> Option<u32> {
        let (word, wide) = (i32::from(self.word), self.word == 8);
        let reached = self.reach(source, i, Where::At(RSP, -word), (word as u32, 1, true));
        let next = i.next_ip();
        let short = if wide { i32::try_from(next as i64) } else { Ok(next as u32 as i32) };
        let indirect = self.steps[self.k].class == Class::CallIndirect;
        if indirect && wide {
            self.free_t1(&reached);
            self.accesses(&reached);
            self.code.load_at(T1, T0, 0);
            self.code.store(OVERWRITTEN, T1);
            self.code.constant(T1, next);
            self.accesses(&reached);
            self.code.store_at(T0, 0, T1);
        } else if let Ok(short) = short {
            self.accesses(&reached);
            self.code.store_imm_at(wide, short, &reached.at);
        } else {
            self.free_t1(&reached);
            self.code.constant(T1, next);
            self.accesses(&reached);
            self.code.store_at(T0, 0, T1);
        }
        self.move_stack(-word);
        reached.site
    }

    fn call(&mut self, source: &Source, i: &Instruction) {
        self.push_return(source, i);
        self.link_after(source, i.near_branch_target());
    }

    fn call_indirect(&mut self, source: &Source, i: &Instruction) {
        let retry = self.here();
        let memory = i.op0_kind() == OpKind::Memory;
        if memory {
            self.target_of(source, i);
            self.code.store(SPARE, T0);
        }
        let site = self.push_return(source, i);
        match site {
            Some(site) if memory => self.site_mut(site).retry = retry,
            _ => {}
        }
        if memory {
            self.code.load(T0, SPARE);
        } else {
            let n = i.op0_register().full_register().number() as u8;
            match n {
                T0 | T1 => self.code.load(T0, slot(n)),
                // The return address was pushed already.
                RSP => self.code.lea_word(self.word == 8, T0, RSP, i32::from(self.word)),
                _ if self.word == 4 => self.code.mov32(T0, n),
                _ => self.code.mov(T0, n),
            }
        }
        self.indirect(-i32::from(self.word));
    }

    /// The target of an indirect branch to T0.
    fn target_of(&mut self, source: &Source, i: &Instruction) {
        if i.op0_kind() == OpKind::Register {
            let n = i.op0_register().full_register().number() as u8;
            if n == T0 || n == T1 {
                self.code.load(T0, slot(n));
            } else if self.word == 4 {
                self.code.mov32(T0, n);
            } else {
                self.code.mov(T0, n);
            }
            return;
        }
        let reached = self.reach(source, i, Where::Operand, (u32::from(self.word), 1, false));
        self.accesses(&reached);
        self.code.op_at(self.word == 8, 0x8b, T0, &reached.at);
        self.t1 = None;
    }

    fn ret(&mut self, source: &Source, i: &Instruction) {
        let (word, wide) = (i32::from(self.word), self.word == 8);
        let reached = self.reach(source, i, Where::At(RSP, 0), (word as u32, 1, false));
        self.accesses(&reached);
        self.code.op_at(wide, 0x8b, T0, &reached.at);
        let more = if i.op_count() > 0 { i32::from(i.immediate16()) } else { 0 };
        self.move_stack(word + more);
        self.indirect(word + more);
    }

    /// Goes to the guest address in T0, for an instruction that has moved RSP by `moved`.
    fn indirect(&mut self, moved: i32) {
        let away = self.flags == FlagsAt::Saved;
        let site = self.site(Kind::Indirect { moved });
        self.code.store_imm64(BRANCH, (site | u32::from(away) << 31) as i32);
        self.flags = FlagsAt::Host;
        self.code.movzx16(T1, T0);
        self.code.jmp_entry(T1, INDIRECT);
    }

    /// The way out of a group whose span is no plain piece of one page.
    pub(super) fn cold_plain(
        &mut self,
        cache: &Cache,
        (label, site): (Label, u32),
        restore: bool,
        counted: bool,
    ) {
        self.code.bind(label);
        if restore {
            self.code.restore_flags();
        }
        if counted {
            let left = self.site_mut(site).left;
            self.give_back(left);
        }
        self.align_patch(1);
        self.code.raw(&[0xe9]);
        let patch = self.here();
        let away = self.code.label();
        self.code.rel32(away);
        self.code.bind(away);
        let here = self.here();
        let at = self.site_mut(site);
        at.stub = here;
        at.kind = Kind::Plain { patch };
        self.code.store_imm32(SITE, site);
        self.jump_out(cache, cache.stubs.exits[reason::LINK as usize]);
    }

    /// The way out of a link: at first to the run loop.
    pub(super) fn cold_link(&mut self, cache: &Cache, (label, site): (Label, u32), counted: bool) {
        let Kind::Link { target, mut patch, mut id, flags, polls } = self.site_mut(site).kind else { return };
        let behind = self.site_mut(site).left - 1;
        self.code.bind(label);
        if patch == 0 {
            let away = self.code.label();
            if counted {
                self.give_back(behind);
            }
            id = self.check_page(target, flags, away);
            self.align_patch(1);
            self.code.raw(&[0xe9]);
            patch = self.here();
            self.code.rel32(away);
            self.code.bind(away);
        }
        let here = self.here();
        let at = self.site_mut(site);
        at.stub = here;
        at.kind = Kind::Link { target, patch, id, flags, polls };
        if flags == LinkFlags::Away {
            self.code.restore_flags_by_t0();
        }
        self.code.store_imm32(SITE, site);
        self.jump_out(cache, cache.stubs.exits[reason::LINK as usize]);
    }

    /// Goes to `away` unless the page of `target` is the one whose id, a constant at the area offset
    /// that is returned, will be patched in.
    fn check_page(&mut self, target: u64, flags: LinkFlags, away: Label) -> u32 {
        let slot = CODE_MAP + 4 * map_slot(target) as i32;
        if flags == LinkFlags::Live {
            // RCX = id of the present page - id of the linked one, without flags.
            self.code.mov(T0, RCX);
            self.code.load32(RCX, slot);
            self.code.nops(pads(self.here() + 3));
            let id = self.here() + 3;
            self.code.raw(&[0x48, 0x8d, 0x89, 1, 0, 0, 0]); // lea rcx, [rcx + 1]
            self.rcx_test(away);
            return id;
        }
        self.code.nops(pads(self.here() + 9));
        self.code.cmp32_gs(slot, -1);
        let id = self.here() - 4;
        self.code.jcc(5, away);
        id
    }
}

/// How far four bytes at offset `at` must move to lie in eight aligned ones.
fn pads(at: u32) -> usize {
    match at & 7 {
        0..=4 => 0,
        past => 8 - past as usize,
    }
}
