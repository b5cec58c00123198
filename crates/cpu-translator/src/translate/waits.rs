//! Accesses whose addresses come from memory: what follows waits for each step of their look-ups.

use super::groups::writes;
use super::{Builder, Class, Source};
use iced_x86::OpAccess;

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
        // The registers, as bits, whose values come from memory.
        let mut loaded = 0;
        for _ in 0..if back { 2 } else { 1 } {
            for k in 0..self.steps.len() {
                loaded = self.follow_loaded(k, loaded);
            }
        }
    }

    /// `loaded` after step `k`, which is looked at.
    fn follow_loaded(&mut self, k: usize, loaded: u16) -> u16 {
        let i = self.steps[k].i;
        let bit = |register: iced_x86::Register| match register.is_gpr() {
            true => 1u16 << register.full_register().number(),
            false => 0,
        };
        self.steps[k].waits = loaded & (bit(i.memory_base()) | bit(i.memory_index())) != 0;
        let (mut read, mut written) = (0, 0);
        let info = self.info.info(&i);
        let from_memory = info.used_memory().iter().any(|used| {
            !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::NoMemAccess)
        });
        for used in info.used_registers() {
            let (bits, access) = (bit(used.register()), used.access());
            if access != OpAccess::Write {
                read |= bits;
            }
            if writes(access) {
                written |= bits;
            }
        }
        match from_memory || read & loaded != 0 {
            true => loaded | written,
            false => loaded & !written,
        }
    }
}
