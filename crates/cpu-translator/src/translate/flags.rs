//! Liveness of the arithmetic flags.

use super::{Builder, Class, FlagsAt, Source, classify};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, RflagsBits};

/// OF, SF, ZF, AF, CF, PF.
pub const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Instructions looked at beyond a block's end.
const AHEAD: usize = 12;

/// Flags that `i` reads.
pub fn read(i: &Instruction) -> u32 {
    let mut read = i.rflags_read() & ALL;
    if through_carry(i) {
        read |= RflagsBits::CF;
    }
    if may_keep(i) {
        read |= ALL;
    }
    read
}

/// Flags that `i` writes (or leaves undefined).
pub fn written(i: &Instruction) -> u32 {
    let more = if through_carry(i) { RflagsBits::CF | RflagsBits::OF } else { 0 };
    i.rflags_modified() & ALL | more
}

/// Full turns, which leave CF as it was, change OF on processors.
fn through_carry(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
}

/// Flags whose value before `i` nobody can see after it.
pub fn killed(i: &Instruction) -> u32 {
    if may_keep(i) {
        return 0;
    }
    // Some processors leave OF alone then.
    let by_more = matches!(i.mnemonic(), Mnemonic::Rol | Mnemonic::Ror)
        && i.op1_kind() == OpKind::Immediate8
        && i.immediate(1) & 0x3f != 1;
    written(i) & !if by_more { RflagsBits::OF } else { 0 }
}

/// Shifts and rotates by a count of zero, and rotates of full turns through carry, leave the flags alone.
fn may_keep(i: &Instruction) -> bool {
    use Mnemonic::*;
    let turn = match i.mnemonic() {
        Rcl | Rcr if i.op0_kind() == OpKind::Memory => 8 * i.memory_size().size() as u64 + 1,
        Rcl | Rcr => 8 * i.op0_register().size() as u64 + 1,
        _ => 32,
    };
    let counted = match i.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => 1,
        Shld | Shrd => 2,
        _ => return false,
    };
    match i.op_kind(counted) {
        // Full turns through carry change none, or OF: processors differ.
        OpKind::Immediate8 => (i.immediate(counted) & 0x1f).is_multiple_of(turn),
        _ => true,
    }
}

/// Flags that code at `rip` may read before it writes them.
pub fn live_at(source: &Source, rip: u64) -> u32 {
    if source.exact || source.checked {
        return ALL;
    }
    let Some(at) = source.offset(rip) else { return ALL };
    let mut decoder = Decoder::with_ip(source.bits(), &source.bytes[at..4096], rip, DecoderOptions::NONE);
    let (mut live, mut dead) = (0, 0);
    for _ in 0..AHEAD {
        if !decoder.can_decode() {
            break;
        }
        let i = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        source.rely_on(&i);
        match classify(source, &i) {
            Class::Interpret | Class::InterpretEnd | Class::Enter => break,
            Class::Jump => {
                let Some(at) = source.offset(i.near_branch_target()) else { break };
                decoder = Decoder::with_ip(
                    source.bits(),
                    &source.bytes[at..4096],
                    i.near_branch_target(),
                    DecoderOptions::NONE,
                );
                continue;
            }
            class => {
                live |= read(&i) & !dead;
                dead |= killed(&i) & !live;
                if live | dead == ALL {
                    return live;
                }
                if class.leaves() {
                    break;
                }
            }
        }
    }
    live | ALL & !dead
}

impl Builder {
    /// Makes the host's flags the guest's, if anybody may look at them.
    pub(super) fn want_flags(&mut self, live: bool) {
        if live && self.flags == FlagsAt::Saved {
            self.code.restore_flags();
        }
        self.flags = FlagsAt::Host;
    }

    /// Likewise at the end of a block, where T0 is free.
    pub(super) fn want_flags_behind(&mut self, live: bool) {
        if live && self.flags == FlagsAt::Saved {
            self.code.restore_flags_by_t0();
        }
        self.flags = FlagsAt::Host;
    }

    /// Before what changes the host's flags.
    pub(super) fn spare_flags(&mut self) {
        if self.must_save() {
            self.code.save_flags();
        }
    }

    /// Likewise before a look-up: T0 is free.
    pub(super) fn spare_flags_by_t0(&mut self) {
        if self.must_save() {
            self.code.save_flags_by_t0();
        }
    }

    /// Whether the flags have to be saved before they change; taken as done.
    fn must_save(&mut self) -> bool {
        if self.steps[self.k].live_before == 0 {
            self.flags = FlagsAt::Host;
            return false;
        }
        std::mem::replace(&mut self.flags, FlagsAt::Saved) == FlagsAt::Host
    }

    /// Before a look-up: whether it has to leave the host's flags alone. Otherwise they may
    /// change (they are dead or saved).
    pub(super) fn keeps_flags(&mut self, source: &Source) -> bool {
        if self.steps[self.k].live_before != 0 && self.flags == FlagsAt::Host && self.wanted_ahead(source) {
            return true;
        }
        self.spare_flags_by_t0();
        false
    }

    /// Whether the flags before the present step are wanted in the host's again within the
    /// block, or by the next one of this page.
    fn wanted_ahead(&self, source: &Source) -> bool {
        let mut live = self.steps[self.k].live_before;
        for step in &self.steps[self.k..] {
            let leaves = matches!(step.class, Class::Interpret | Class::InterpretEnd | Class::Enter);
            if leaves || read(&step.i) & live != 0 {
                return true;
            }
            live &= !killed(&step.i);
            if live == 0 {
                return false;
            }
            if matches!(step.class, Class::Return | Class::JumpIndirect | Class::CallIndirect) {
                return false;
            }
            if step.class == Class::Branch {
                return true;
            }
        }
        let next = self.steps.last().map(|last| match last.class {
            Class::Call | Class::Jump => last.i.near_branch_target(),
            _ => last.i.next_ip(),
        });
        next.is_none_or(|next| source.offset(next).is_some())
    }

    /// Whether a way out at a look-up has to bring saved flags back.
    pub(super) fn restores(&self) -> bool {
        self.flags == FlagsAt::Saved && self.steps[self.k].live_before != 0
    }

    /// Before the operation itself, which may read flags or write some of them.
    pub(super) fn flags_for_operation(&mut self) {
        let step = &self.steps[self.k];
        let reads = read(&step.i) != 0;
        let written = written(&step.i);
        let keeps = written != 0 && step.live_after & !killed(&step.i) != 0;
        if reads || keeps {
            self.want_flags(true);
        } else if written != 0 {
            self.flags = FlagsAt::Host;
        }
    }
}
