//! Heads, plain instructions, and the code behind a block.

use super::access::{MADE, Reached, Where, slot};
use super::class::alignment;
use super::groups::{Member, writes};
use super::{Builder, Class, Cold, From, Source};
use crate::asm::*;
use crate::cache::{Cache, Kind};
use crate::layout::*;
use iced_x86::{Code as Op, Instruction, Mnemonic, OpAccess, OpKind, Register};

impl Builder {
    /// The three entries. Returns the offsets of the later two.
    pub(super) fn head(&mut self, source: &Source) -> (u32, u32) {
        self.k = 0;
        // Those of other code, if the bytes are others now.
        let live = source.checked || self.steps[0].live_before != 0;
        let other = self.code.label();
        // Whoever comes here by mistake may need the flags.
        match i32::try_from(source.rip.wrapping_neg() as i64) {
            Ok(back) => self.code.lea(T1, T0, back),
            Err(_) => {
                self.code.constant(T1, source.rip.wrapping_neg());
                self.code.lea_sum(T1, T0, T1, 0);
            }
        }
        self.code.mov(T0, RCX);
        self.code.mov(RCX, T1);
        self.rcx_test(other);
        if live {
            let away = self.code.label();
            let back = self.code.label();
            self.code.mov(T0, RCX);
            self.code.load32(RCX, FLAGS_AWAY);
            self.rcx_test(away);
            self.code.bind(back);
            self.cold.push(Cold::Flags { label: away, back });
        }
        let to = [self.code.label(), self.code.label()];
        let poll = self.code.at();
        self.code.bind(to[0]);
        let site = self.site(Kind::Head);
        let pending = self.code.label();
        self.poll(live, pending);
        let body = self.code.at();
        self.code.bind(to[1]);
        if live {
            self.cold.push(Cold::Entries { to });
        }
        self.begin_rounds();
        if self.counted {
            self.count_down(site);
        }
        self.check_second(source, live);
        if source.checked {
            self.check_bytes(source);
        }
        self.cold.push(Cold::Away { label: other, rip: source.rip });
        self.cold.push(Cold::Leave { label: pending, site, reason: reason::POLL, restore: false });
        (poll, body)
    }

    /// Goes to `pending` if something is asked of the vCPU; `live`: flags stay. T0 changes.
    pub(super) fn poll(&mut self, live: bool, pending: Label) {
        if self.counted {
            return;
        }
        if live {
            self.code.mov(T0, RCX);
            self.code.load32(RCX, ASKED);
            self.rcx_test(pending);
        } else {
            self.code.cmp32_gs(ASKED, 0);
            self.code.jcc(5, pending);
        }
    }

    /// Goes to `other` unless RCX, whose own value is in T0, is zero; flags stay. RCX has its value
    /// then. Less work than [`Builder::zero_test`], whose XCHGs are three micro-operations each.
    pub(super) fn rcx_test(&mut self, other: Label) {
        let label = self.code.label();
        self.code.jrcxz(5);
        self.code.jmp(label);
        self.code.mov(RCX, T0);
        self.cold.push(Cold::Back { label, other });
    }

    /// Goes to `other` unless `reg` is zero; flags stay.
    pub(super) fn zero_test(&mut self, reg: u8, other: Label) {
        self.code.xchg(RCX, reg);
        self.code.jrcxz(3 + 5);
        self.code.xchg(RCX, reg);
        self.code.jmp(other);
        self.code.xchg(RCX, reg);
    }

    /// Goes to `other` if `reg` is zero; flags stay.
    pub(super) fn none_test(&mut self, reg: u8, other: Label) {
        self.code.xchg(RCX, reg);
        self.code.jrcxz(2);
        self.code.raw(&[0xeb, 3 + 5]);
        self.code.xchg(RCX, reg);
        self.code.jmp(other);
        self.code.xchg(RCX, reg);
    }

    /// Translates the present step.
    pub(super) fn step(&mut self, source: &Source) {
        let i = self.steps[self.k].i;
        match self.steps[self.k].class {
            Class::Nothing => {}
            Class::Native => self.native(source, &i),
            Class::Push => self.push(source, &i),
            Class::Pop => self.pop(source, &i),
            Class::Leave => self.leave(source, &i),
            Class::Interpret => self.interpret(true),
            Class::InterpretEnd => self.interpret(false),
            Class::System | Class::SystemEnd | Class::Enter => self.system(source, &i),
            _ => return self.control(source, &i),
        }
        if self.runs_out() {
            self.pay_stack();
            self.link_after(source, i.next_ip());
        }
    }

    /// Leaves for the interpreter at this instruction.
    pub(super) fn interpret(&mut self, goes_on: bool) {
        self.t1 = None;
        self.forget_state();
        self.want_flags(true);
        let site = self.site(Kind::Interpret);
        let label = self.code.label();
        self.code.jmp(label);
        self.cold.push(Cold::Leave { label, site, reason: reason::SLOW, restore: false });
        if goes_on {
            self.goes_on(site);
        }
    }

    fn native(&mut self, source: &Source, i: &Instruction) {
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if i.mnemonic() == Mnemonic::Lea {
            return self.lea(source, i);
        }
        let entered = self.x87_enter(i).or_else(|| self.avx512_enter(source, i));
        if memory {
            self.with_memory(source, i);
        } else {
            self.without_memory(source, i);
        }
        if let Some(site) = entered {
            // The interpreter makes no look-up for those that come later.
            let leads = |m: Member| m.leader && !self.groups[usize::from(m.group)].early;
            if !self.steps[self.k].member.is_some_and(leads) {
                self.goes_on(site);
            }
            self.t1 = None;
        }
    }

    fn without_memory(&mut self, source: &Source, i: &Instruction) {
        let restore = self.restores();
        self.flags_for_operation();
        let used = self.scratch_registers(i);
        if used[0].is_some() || used[1].is_some() {
            self.t1 = None;
        }
        for &(n, access) in used.iter().flatten() {
            if access.0 {
                self.code.load(n, slot(n));
            }
        }
        if matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) || self.is_vector_arithmetic(i) {
            self.faulting(restore);
        }
        self.copy(source, i);
        for &(n, access) in used.iter().flatten() {
            if access.1 {
                self.code.store(slot(n), n);
            }
        }
        self.x87_pointers(source, i, false);
    }

    /// The host instruction that comes next may fault (if not for its memory operand).
    /// `restore`: the flags before it were saved.
    fn faulting(&mut self, restore: bool) {
        let site = self.site(Kind::Interpret);
        let label = self.code.label();
        self.cold.push(Cold::Leave { label, site, reason: reason::SLOW, restore });
        self.may_fault(site);
    }

    pub(super) fn is_vector_arithmetic(&self, i: &Instruction) -> bool {
        // MXCSR with unmasked exceptions: any vector instruction may raise one.
        (0..i.op_count()).map(|n| i.op_register(n)).any(|r| r.is_vector_register() || r.is_mm())
    }

    /// The guest's bytes as they are.
    fn copy(&mut self, source: &Source, i: &Instruction) {
        if self.word == 4 {
            // Some bytes mean other things in 64-bit mode.
            if !self.code.encode(&in_64bit(i)) {
                self.code.raw(&[0x0f, 0x0b]);
            }
            return;
        }
        let at = usize::from(self.steps[self.k].at);
        let bytes = &source.bytes[at..at + i.len()];
        self.code.raw(bytes);
    }

    /// R10 and R11 as operands other than addresses: (number, (read, written)).
    fn scratch_registers(&mut self, i: &Instruction) -> Used {
        let mut found = [None; 2];
        let mentions = (0..i.op_count()).any(|n| {
            i.op_kind(n) == OpKind::Register
                && matches!(i.op_register(n).full_register(), Register::R10 | Register::R11)
        });
        if !mentions {
            return found;
        }
        let info = self.info.info(i);
        for n in 0..i.op_count() {
            let r = i.op_register(n);
            if i.op_kind(n) != OpKind::Register || !matches!(r.full_register(), Register::R10 | Register::R11)
            {
                continue;
            }
            let number = r.full_register().number() as u8;
            let access = info.op_access(n);
            let writes = writes(access);
            let reads = access != OpAccess::Write || r.size() < 4;
            let entry = found[usize::from(number - T0)].get_or_insert((number, (false, false)));
            entry.1 = (entry.1.0 | reads, entry.1.1 | writes);
        }
        found
    }

    fn lea(&mut self, source: &Source, i: &Instruction) {
        let mut plain = *i;
        plain.set_segment_prefix(Register::None);
        let r = i.op0_register();
        let n = r.full_register().number() as u8;
        let addressed = self.word == 4
            || [i.memory_base(), i.memory_index()]
                .iter()
                .any(|r| matches!(r.full_register(), Register::R10 | Register::R11) || r.is_ip());
        if !addressed && n != T0 && n != T1 {
            return self.copy(source, i);
        }
        self.t1 = None;
        self.address(source, &plain);
        match r.size() {
            8 if n == T0 || n == T1 => {}
            8 => self.code.mov(n, T0),
            4 if n == T0 || n == T1 => self.code.mov32(T0, T0),
            4 => self.code.mov32(n, T0),
            _ => {
                // 16 bits: merged into the old value.
                let old = if n == T0 || n == T1 { T1 } else { n };
                if old == T1 {
                    self.code.load(T1, slot(n));
                }
                self.code.raw(&[0x66, 0x44 | old >> 3, 0x89, 0xd0 | old & 7]);
                if old == T1 {
                    self.code.store(slot(n), T1);
                }
                return;
            }
        }
        if n == T0 || n == T1 {
            self.code.store(slot(n), T0);
        }
    }

    /// Whether an instruction with a memory operand is left to the interpreter: it reads R10 and
    /// R11 both, or is of the x87 with a segment.
    pub(super) fn is_odd(&mut self, i: &Instruction) -> bool {
        let both = self.scratch_registers(i).iter().flatten().filter(|used| used.1.0).count() == 2;
        both || matches!(i.memory_segment(), Register::FS | Register::GS) && super::class::is_x87(i)
    }

    fn with_memory(&mut self, source: &Source, i: &Instruction) {
        let size = i.memory_size().size() as u32;
        if size == 0 || size > 64 || self.is_odd(i) {
            return self.interpret(true);
        }
        let used = self.scratch_registers(i);
        let write = self.writes_memory(i);
        let reached = self.reach(source, i, Where::Operand, (size, alignment(i, size), write));
        let scratch = stand_ins(&used);
        let mut at = reached.at;
        for &(n, host, (reads, _)) in &scratch {
            at = self.free_t1(&Reached { at, ..reached });
            if reads {
                self.code.load(host, slot(n));
            }
        }
        let host = with_stand_ins(host_form(i, &at), &scratch);
        let restore = self.restores();
        self.flags_for_operation();
        self.accesses(&reached);
        if reached.site.is_none()
            && (self.is_vector_arithmetic(i) || matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv))
        {
            self.faulting(restore);
        }
        if !self.code.encode(&host) {
            // No such form exists: execution never comes here.
            self.code.raw(&[0x0f, 0x0b]);
        }
        for &(n, host, (_, writes)) in &scratch {
            if writes {
                self.code.store(slot(n), host);
            }
        }
        if super::class::is_x87(i) && !(at.base == Some(T0) && at.index.is_some() && at.disp == -1) {
            self.t1 = None;
            self.address(source, i);
        }
        self.x87_pointers(source, i, true);
        self.accessed(&reached);
    }

    // ---- behind the block ----

    pub(super) fn finish_cold(&mut self, cache: &Cache) {
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Leave { label, site, reason, restore } => {
                    self.code.bind(label);
                    if reason == reason::SLOW {
                        let here = self.here();
                        self.site_mut(site).stub = here;
                    }
                    if restore {
                        self.code.restore_flags();
                    }
                    self.code.store_imm32(SITE, site);
                    self.jump_out(cache, cache.stubs.exits[reason as usize]);
                }
                Cold::Back { label, other } => {
                    self.code.bind(label);
                    self.code.mov(RCX, T0);
                    self.code.jmp(other);
                }
                Cold::Away { label, rip } => {
                    // T1 is how far the target is from here.
                    self.code.bind(label);
                    self.code.constant(T0, rip);
                    self.code.lea_sum(T0, T0, T1, 0);
                    self.jump_out(cache, cache.stubs.exits[reason::INDIRECT as usize]);
                }
                Cold::Flags { label, back } => {
                    self.code.bind(label);
                    self.code.restore_flags();
                    self.code.jmp(back);
                }
                Cold::Unaligned { label, back, linear, slow, size, free } => {
                    self.code.bind(label);
                    self.crossing(linear, size, slow, free);
                    self.code.jmp(back);
                }
                Cold::Far { label, back, linear, slot, size, align, write, ways } => {
                    self.far((label, back), linear, (slot, size, align, write), ways);
                }
                Cold::Miss { label, site, restore, from } => {
                    self.code.bind(label);
                    if restore {
                        self.code.restore_flags();
                    }
                    match from {
                        From::Address(address) => self.code.constant(T0, address),
                        From::Linear(linear) if linear != MADE => self.code.mov(T0, linear.register),
                        From::Linear(_) => {}
                        From::Sum(address) => self.code.lea_address(true, T0, &address),
                    }
                    self.code.store_imm32(SITE, site);
                    self.jump_out(cache, cache.stubs.exits[reason::MISS as usize]);
                }
                Cold::Plain { label, site, restore, counted } => {
                    self.cold_plain(cache, (label, site), restore, counted);
                }
                Cold::Link { label, site, counted } => self.cold_link(cache, (label, site), counted),
                Cold::Entries { to } => {
                    for (n, label) in to.into_iter().enumerate() {
                        self.restoring[n] = self.here();
                        self.code.restore_flags_by_t0();
                        self.code.jmp(label);
                    }
                }
            }
        }
    }
}

/// How R10 and R11 are read and written by an instruction.
type Used = [Option<(u8, (bool, bool))>; 2];

/// The host registers in place of R10 and R11 beside a memory operand that T0 addresses: T1
/// for one that is read, T0 for another one that is only written.
fn stand_ins(used: &Used) -> Vec<(u8, u8, (bool, bool))> {
    let mut both: Vec<_> = used.iter().flatten().map(|&(n, access)| (n, T1, access)).collect();
    if let [a, b] = &mut both[..] {
        let free = if a.2.0 { b } else { a };
        free.1 = T0;
    }
    both
}

/// `i` with host registers in place of R10 and R11.
fn with_stand_ins(mut i: Instruction, scratch: &[(u8, u8, (bool, bool))]) -> Instruction {
    for k in 0..i.op_count() {
        let r = i.op_register(k);
        if i.op_kind(k) != OpKind::Register || !r.is_gpr() {
            continue;
        }
        let number = r.full_register().number();
        if let Some(&(_, host, _)) = scratch.iter().find(|s| usize::from(s.0) == number) {
            let first = match r.size() {
                1 => Register::R8L,
                2 => Register::R8W,
                4 => Register::R8D,
                _ => Register::R8,
            };
            i.set_op_register(k, first + u32::from(host - 8));
        }
    }
    i
}

/// `i` with the memory operand at `at`.
pub(super) fn host_form(i: &Instruction, at: &Address) -> Instruction {
    let mut host = *i;
    let code = match i.code() {
        Op::Mov_AL_moffs8 => Op::Mov_r8_rm8,
        Op::Mov_AX_moffs16 => Op::Mov_r16_rm16,
        Op::Mov_EAX_moffs32 => Op::Mov_r32_rm32,
        Op::Mov_RAX_moffs64 => Op::Mov_r64_rm64,
        Op::Mov_moffs8_AL => Op::Mov_rm8_r8,
        Op::Mov_moffs16_AX => Op::Mov_rm16_r16,
        Op::Mov_moffs32_EAX => Op::Mov_rm32_r32,
        Op::Mov_moffs64_RAX => Op::Mov_rm64_r64,
        code => code,
    };
    host.set_code(code);
    let register = |n: u8| Register::RAX + u32::from(n);
    host.set_memory_base(at.base.map_or(Register::None, register));
    host.set_memory_index(at.index.map_or(Register::None, register));
    host.set_memory_index_scale(1);
    host.set_memory_displacement64(i64::from(at.disp) as u64);
    host.set_memory_displ_size(match i8::try_from(at.disp) {
        Ok(0) if at.base.is_some_and(|base| base & 7 != 5) => 0,
        Ok(_) => 1,
        Err(_) => 8,
    });
    host.set_segment_prefix(Register::None);
    host
}

/// 32-bit code's short INC and DEC in their longer form.
fn in_64bit(i: &Instruction) -> Instruction {
    let mut wide = *i;
    wide.set_code(match i.code() {
        Op::Inc_r16 => Op::Inc_rm16,
        Op::Inc_r32 => Op::Inc_rm32,
        Op::Dec_r16 => Op::Dec_rm16,
        Op::Dec_r32 => Op::Dec_rm32,
        code => code,
    });
    wide
}
