//! Which instructions make a block, and where their flags are seen.

use super::{Builder, Class, Source, Step, classify, flags};
use crate::cache::Stage;
use cpu_interpreter::may_store;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Most instructions of a block.
pub const LONGEST: usize = 96;
/// Most direct jumps that a block follows.
const JUMPS: usize = 8;

impl Source<'_> {
    /// Offset of `rip` in this page, if it lies there.
    pub fn offset(&self, rip: u64) -> Option<usize> {
        (rip & !0xfff == self.rip & !0xfff).then_some((rip & 0xfff) as usize)
    }

    fn decoder(&self, rip: u64) -> Option<Decoder<'_>> {
        let at = self.offset(rip)?;
        Some(Decoder::with_ip(self.bits(), &self.bytes[at..4096], rip, DecoderOptions::NONE))
    }

    /// The instruction at `rip`, which reaches into the next page.
    fn crossing(&self) -> Option<Instruction> {
        let at = self.offset(self.rip)?;
        let bytes = &self.bytes[at..];
        let mut decoder = Decoder::with_ip(self.bits(), bytes, self.rip, DecoderOptions::NONE);
        let i = decoder.decode();
        (decoder.last_error() != DecoderError::NoMoreBytes).then_some(i)
    }

    pub fn bits(&self) -> u32 {
        bits(self.key)
    }
}

fn bits(key: u32) -> u32 {
    if key & cpu_interpreter::mode::CODE == cpu_interpreter::mode::CODE64 { 64 } else { 32 }
}

/// Whether the instruction at `rip`, whose page has these bytes, reaches into the next page. No
/// other may be looked at: that would set the accessed flag of a page where the guest does not go.
pub fn crosses(page: &[u8], rip: u64, key: u32) -> bool {
    let at = (rip & 0xfff) as usize;
    if at + 15 <= page.len() {
        return false;
    }
    let mut decoder = Decoder::with_ip(bits(key), &page[at..], rip, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

impl Builder {
    /// Collects the trace; returns the first and last offset of its bytes in the page.
    pub(super) fn trace(&mut self, source: &Source) -> Option<(u16, u16)> {
        let mut decoder = source.decoder(source.rip)?;
        let (mut first, mut last) = (u16::MAX, 0);
        let mut jumps = 0;
        while self.steps.len() < LONGEST && decoder.can_decode() {
            let mut i = decoder.decode();
            let crosses = decoder.last_error() == DecoderError::NoMoreBytes;
            if crosses {
                // Such an instruction is a block of its own.
                if !self.steps.is_empty() || source.second.is_none() {
                    break;
                }
                i = source.crossing()?;
            }
            let at = (i.ip() & 0xfff) as u16;
            let class = classify(source, &i);
            (first, last) = (first.min(at), last.max(at + i.len() as u16 - 1));
            self.steps.push(Step {
                i,
                class,
                at,
                live_before: flags::ALL,
                live_after: flags::ALL,
                member: None,
                address: super::waits::Origin::Registers,
            });
            if crosses {
                break;
            }
            match class {
                Class::Jump => {
                    let target = i.near_branch_target();
                    let known = self.steps.iter().any(|s| s.i.ip() == target);
                    match source.decoder(target) {
                        Some(next) if !known && jumps < JUMPS && self.steps.len() < LONGEST => {
                            decoder = next;
                            jumps += 1;
                        }
                        _ => break,
                    }
                }
                Class::Call
                | Class::CallIndirect
                | Class::JumpIndirect
                | Class::Return
                | Class::InterpretEnd
                | Class::SystemEnd
                | Class::Enter => {
                    break;
                }
                // It may get a second body.
                Class::Branch | Class::Loop
                    if i.near_branch_target() == source.rip
                        && matches!(source.stage, Stage::Measured(_) | Stage::Hot) =>
                {
                    break;
                }
                Class::Interpret if source.checked => break,
                _ if source.checked && may_store(&i) => break,
                _ => {}
            }
        }
        if self.steps.is_empty() || matches!(self.steps[0].class, Class::InterpretEnd) {
            return None;
        }
        Some((first, last))
    }

    /// Whether the trace ends after the present step without leaving by it.
    pub(super) fn runs_out(&self) -> bool {
        let step = &self.steps[self.k];
        self.k + 1 == self.steps.len()
            && !matches!(
                step.class,
                Class::Jump
                    | Class::Call
                    | Class::CallIndirect
                    | Class::JumpIndirect
                    | Class::Return
                    | Class::InterpretEnd
                    | Class::Enter
            )
    }

    /// Fills in which flags are live around each instruction.
    pub(super) fn liveness(&mut self, source: &Source) {
        let mut live = match self.steps.last() {
            Some(step) if matches!(step.class, Class::Jump) => {
                flags::live_at(source, step.i.near_branch_target())
            }
            Some(step) if matches!(step.class, Class::Call) => {
                flags::live_at(source, step.i.near_branch_target())
            }
            Some(step) if matches!(step.class, Class::CallIndirect | Class::JumpIndirect | Class::Return) => {
                flags::ALL
            }
            Some(step) => flags::live_at(source, step.i.next_ip()),
            None => flags::ALL,
        };
        for k in (0..self.steps.len()).rev() {
            let step = &self.steps[k];
            if matches!(step.class, Class::Branch | Class::Loop | Class::CountZero) {
                live |= flags::live_at(source, step.i.near_branch_target());
            }
            let before = match step.class {
                Class::Interpret | Class::InterpretEnd | Class::Enter => flags::ALL,
                _ if source.exact && step.class.may_leave() => flags::ALL,
                _ => live & !flags::killed(&step.i) | flags::read(&step.i),
            };
            let step = &mut self.steps[k];
            step.live_after = live;
            step.live_before = before;
            live = before;
        }
    }
}
