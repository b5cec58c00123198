//! Decoded operations.

use crate::block::Cache;
use crate::core::Core;
use std::cell::Cell;

/// Executes an operation and, when it can, the rest of its block and what follows it.
/// Returns why it stopped.
pub type Handler = for<'a> fn(&mut Core, &'a Cache, &'a Op, &'a [Op]) -> Stop;

/// Why a chain of handlers returned to the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// `rip` is up to date; look for the next block (and for interrupts).
    Resolve,
    /// As `Resolve`; the link named by [`Core::link_from`] may lead there directly.
    Link,
    /// [`Core::fault`] was raised by the instruction at `rip`.
    Fault,
    /// The block at `rip` was made from bytes that may have changed.
    Stale,
    /// The budget is used up or a request is pending.
    Poll,
    /// The block at `rip` has been entered [`Core::heat_limit`] times.
    Warm,
    /// HLT or MWAIT.
    Halt,
    /// Go on with the next operation.
    #[cfg(not(tail_dispatch))]
    Next,
    /// Go on with the block in [`Core::goto_block`].
    #[cfg(not(tail_dispatch))]
    Goto,
}

impl Stop {
    /// Whether the chain ended in front of an instruction, for a reason that is not the guest's.
    pub fn is_early(self) -> bool {
        matches!(self, Stop::Stale | Stop::Poll | Stop::Warm)
    }
}

/// Register-file slot that always reads zero.
pub const ZERO: u8 = 16;
/// Segment-cache slot without base or limit.
pub const FLAT_SEG: u8 = 6;

/// One decoded operation; one cache line.
#[repr(C, align(64))]
pub struct Op {
    pub run: Handler,
    /// RIP of the instruction.
    pub pc: u64,
    pub disp: u64,
    pub imm: u64,
    /// Where a conditional branch leads.
    pub target: u64,
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    /// Shift count of the index.
    pub scale: u8,
    pub seg: u8,
    /// Effective addresses are taken modulo 2^(64 - cut).
    pub cut: u8,
    pub len: u8,
    /// Blocks to go to (0: not linked): taken and not taken.
    pub links: [Cell<u32>; 2],
    /// Index of the iced instruction in the cache.
    pub extra: u32,
    /// Number of instructions of the block from this one on, itself included.
    pub left: u16,
    /// Condition code, link checks, x87 opcode.
    pub aux: u16,
}

/// [`Op::aux`] bits of a branch: link 0 or 1 leads to another page, so that its mapping must
/// be checked on the way.
pub const FAR_LINK: [u16; 2] = [0x100, 0x200];

impl Op {
    #[inline(always)]
    pub fn next_pc(&self) -> u64 {
        self.pc.wrapping_add(u64::from(self.len))
    }
}
