//! Ways out of translated code, and where it goes on.

use super::*;

/// Whether an instruction may change control or model-specific registers.
fn sets_registers(i: &Instruction) -> bool {
    match i.mnemonic() {
        Mnemonic::Wrmsr | Mnemonic::Xsetbv | Mnemonic::Lmsw | Mnemonic::Clts => true,
        Mnemonic::Mov => i.op0_register().is_cr(),
        _ => false,
    }
}

impl TranslatorVcpu {
    /// The instruction of a site is executed by the interpreter.
    pub(super) fn interpret_at(&mut self, place: usize, alive: bool, key: u32) -> Result<Next, Exit> {
        if let Some(next) = self.port(place, alive) {
            return Ok(next);
        }
        if let Some(next) = self.direct(place, alive, key) {
            return Ok(next);
        }
        let left = self.exits.get(place).site.left;
        let before = self.interpreter.core().retired;
        let next = self.interpret_site(place, alive, key);
        let done = self.interpreter.core().retired.wrapping_sub(before) as u16;
        match next {
            Ok(Next::Host(_)) => self.counting.owed = left - 1,
            _ => self.give_back(left - done),
        }
        next
    }

    pub(super) fn interpret_site(&mut self, place: usize, alive: bool, key: u32) -> Result<Next, Exit> {
        let site = self.exits.get(place).site;
        self.store_state(site.rip);
        if !alive || !self.exits.decode(place, &self.shared, self.interpreter.core()) {
            return Ok(Next::Loop);
        }
        let Some(single) = &self.exits.get(place).single else { return Ok(Next::Loop) };
        let ended = self.shared.ended.load(Ordering::SeqCst);
        let all = sets_registers(single.instruction());
        if single.instruction().mnemonic() == Mnemonic::Pause {
            self.state.get().pauses = 0;
            std::thread::yield_now();
        }
        let asked = (single.instruction().mnemonic() == Mnemonic::Cpuid)
            .then(|| system::asks(self.interpreter.core()));
        let ran = self.interpreter.run_single(single)?;
        if let Some(asked) = asked
            && ran == Ran::Next
        {
            system::identify(self.state.get(), self.interpreter.core(), asked);
        }
        if self.interpreter.must_look_up() {
            return Ok(Next::Loop);
        }
        if ran == Ran::Elsewhere || site.next == 0 {
            return Ok(self.go_on(all));
        }
        if self.is_revoked() || ran == Ran::End && self.key() != Some(key) {
            return Ok(Next::Loop);
        }
        if self.shared.ended.load(Ordering::SeqCst) != ended
            && !self.shared.cache().blocks[site.block as usize].alive
        {
            return Ok(Next::Loop);
        }
        // Look-ups that the block made are void after a flush.
        if self.follow_flushes() {
            return Ok(self.go_on(all));
        }
        self.load_state(all);
        if site.kind == Kind::X87 && self.state.get().x87 == 0 {
            return Ok(Next::Loop);
        }
        Ok(Next::Host(self.host(site.next)))
    }

    /// On at the interpreter's `rip`, as an indirect branch goes there; `all`: control or
    /// model-specific registers may have changed.
    fn go_on(&mut self, all: bool) -> Next {
        let Some(key) = self.key() else { return Next::Loop };
        self.note_key(key);
        self.load_state(all);
        match self.entry(self.interpreter.core().rip, key) {
            Some(host) => Next::Other(host, key),
            None => Next::Loop,
        }
    }

    /// Where an indirect branch to `rip` goes; the state page says so.
    pub(crate) fn entry(&mut self, rip: u64, key: u32) -> Option<usize> {
        let state = self.state.get();
        (state.s0, state.flags_away) = (rip, 0);
        self.revoked = self.shared.revoked.load(Ordering::SeqCst);
        let slot = branch_slot(self.tables.gs(self.interpreter.core().view), (rip & 0xffff) as u32);
        let host = slot.load(Ordering::Acquire) as usize;
        if host == self.unknown { self.branch(rip, key) } else { Some(host) }
    }

    pub(super) fn linked(&mut self, rip: &mut u64, key: u32) -> Next {
        self.counts.links += 1;
        self.counting.owed = 0;
        let number = self.state.get().site;
        let (site, alive) = {
            let cache = self.shared.cache();
            let site = cache.sites[number as usize];
            (site, cache.blocks[site.block as usize].alive)
        };
        if let Kind::Plain { .. } = site.kind {
            *rip = site.rip;
            let Some((block, entry)) = self.plain(site.rip, key) else {
                self.store_state(site.rip);
                return Next::Loop;
            };
            let mut cache = self.shared.cache();
            if alive && cache.blocks[block as usize].alive && cache.sites[number as usize].next != block {
                cache.relink(number, block);
            }
            return Next::Host(entry);
        }
        let Kind::Link { target, id, polls, .. } = site.kind else { return Next::Loop };
        *rip = target;
        let added = self.shared.added.load(Ordering::SeqCst);
        if self.placed(target, key) != Some(None)
            && let Some((host, _, _)) = self.code_at(target)
        {
            let mut cache = self.shared.cache();
            let found = cache.find(&(host, target, key));
            if let Some(block) = found {
                if alive && cache.sites[number as usize].next != block {
                    cache.relink(number, block);
                }
                let pair = if id != 0 { cache.pair(target, host) } else { 0 };
                let b = &cache.blocks[block as usize];
                let entry = if polls { b.poll } else { b.body };
                let entry = cache.host(entry);
                drop(cache);
                if id != 0 {
                    self.note_code(target, pair);
                }
                self.revoked = self.shared.revoked.load(Ordering::SeqCst);
                return Next::Host(entry);
            }
            drop(cache);
            self.note_place(target, key, added, 0);
        }
        self.store_state(target);
        Next::Loop
    }

    pub(super) fn branched(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
        self.counts.indirect += 1;
        self.counting.owed = 0;
        let target = self.state.get().s0;
        if !Core::canonical(target) {
            return self.undo_branch(rip, key);
        }
        *rip = target;
        let absent = self.placed(target, key) == Some(None);
        match if absent { None } else { self.branch(target, key) } {
            Some(host) => Ok(Next::Host(host)),
            None => {
                self.store_state(target);
                Ok(Next::Loop)
            }
        }
    }

    /// The target of an indirect branch is no address: as if it had not begun, the interpreter
    /// executes it.
    pub(super) fn undo_branch(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
        let number = self.state.get().branch & !(1 << 31);
        let (place, alive) = self.exits.place(number, &self.shared);
        let site = self.exits.get(place).site;
        let Kind::Indirect { moved } = site.kind else {
            return Err(Exit::Broken(format!("a branch from nowhere to {:#x}", self.state.get().s0)));
        };
        *rip = site.rip;
        let state = self.state.get();
        let stack = state.gpr[4];
        state.gpr[4] = stack.wrapping_sub(i64::from(moved) as u64);
        if moved < 0 {
            let before = state.overwritten;
            let _ = self.interpreter.core_mut().write(stack, 8, before);
        }
        self.interpret_at(place, alive, key)
    }

    pub(super) fn faulted(&mut self, rip: &mut u64) -> Result<Next, Exit> {
        self.counts.faults += 1;
        let at = self.state.get().fault_rip as usize;
        let cache = self.shared.cache();
        match cache.fault_site(at).map(|site| cache.sites[site as usize]) {
            Some(site) => {
                *rip = site.rip;
                self.counting.owed = site.left;
                // Its stub brings saved flags back and comes here again.
                Ok(Next::Host(cache.host(site.stub)))
            }
            None => Err(Exit::Broken(format!("the host refused translated code at {at:#x}"))),
        }
    }
}
