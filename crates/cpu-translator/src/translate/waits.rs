//! Accesses whose addresses come from memory: what follows waits for each step of their look-ups.

use super::groups::writes;
use super::{Builder, Class, Source};
use iced_x86::{OpAccess, Register};

/// What the address of an access comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Registers,
    /// It, or what it is made from, was read from memory.
    Memory,
    /// Likewise, by the same instruction in the loop's last round.
    Itself,
}

/// The general registers that an instruction reads and writes, as bits.
#[derive(Clone, Copy)]
struct Uses {
    read: u16,
    written: u16,
    address: u16,
    /// It reads memory.
    loads: bool,
}

impl Uses {
    /// Registers that depend on something behind the instruction, if `before` did before it.
    fn follow(&self, before: u16, starts: bool) -> u16 {
        match starts || self.read & before != 0 {
            true => before | self.written,
            false => before & !self.written,
        }
    }
}

impl Builder {
    /// Finds them, in a block that runs often.
    pub(super) fn find_waits(&mut self, source: &Source) {
        if !self.pext || self.next_slot.is_none() {
            return;
        }
        let back = self.steps.last().is_some_and(|last| match last.class {
            Class::Branch | Class::Loop | Class::Jump => last.i.near_branch_target() == source.rip,
            _ => false,
        });
        let uses: Vec<Uses> = (0..self.steps.len()).map(|k| self.uses(k)).collect();
        let mut loaded = 0;
        for _ in 0..if back { 2 } else { 1 } {
            for (step, uses) in self.steps.iter_mut().zip(&uses) {
                if loaded & uses.address != 0 {
                    step.address = Origin::Memory;
                }
                loaded = uses.follow(loaded, uses.loads);
            }
        }
        if back && uses.len() <= super::hoist::LONGEST {
            for k in 0..uses.len() {
                let round = uses[k + 1..].iter().chain(&uses[..k]);
                let loaded = round.fold(uses[k].written, |loaded, uses| uses.follow(loaded, false));
                if uses[k].loads && loaded & uses[k].address != 0 {
                    let leader = self.leader(k);
                    self.steps[leader].address = Origin::Itself;
                }
            }
        }
    }

    /// The step whose look-up step `k` uses.
    fn leader(&self, k: usize) -> usize {
        let Some(member) = self.steps[k].member else { return k };
        let leads =
            |step: &super::Step| step.member.is_some_and(|other| other.leader && other.group == member.group);
        self.steps.iter().position(leads).unwrap_or(k)
    }

    fn uses(&mut self, k: usize) -> Uses {
        let i = self.steps[k].i;
        let bit = |register: Register| match register.is_gpr() {
            true => 1u16 << register.full_register().number(),
            false => 0,
        };
        let info = self.info.info(&i);
        let loads = info.used_memory().iter().any(|used| {
            !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::NoMemAccess)
        });
        let address = bit(i.memory_base()) | bit(i.memory_index());
        let mut uses = Uses { read: 0, written: 0, address, loads };
        for used in info.used_registers() {
            let (bits, access) = (bit(used.register()), used.access());
            if access != OpAccess::Write {
                uses.read |= bits;
            }
            if writes(access) {
                uses.written |= bits;
            }
        }
        uses
    }
}
