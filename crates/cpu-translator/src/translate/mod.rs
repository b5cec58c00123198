//! Guest code to host code.
//!
//! A trace of instructions (straight on through untaken branches and direct jumps within one
//! page) becomes one block. Guest registers are the host's of the same name but for R10 and
//! R11, which stand in the state page and leave the host's as scratch. Most instructions are
//! copied; memory operands become `[T0 + T1 - 1]` after the table look-up of
//! [`access`]. Whatever is not worth code of its own leaves for the interpreter.
//!
//! At every instruction that may leave the block, the guest's state is complete: registers in
//! place, flags in the host's or (where a look-up had to be made while they were live) in the
//! state page, from where the stub brings them back.

mod access;
mod class;
mod counted;
mod emit;
mod flags;
mod flow;
mod groups;
mod hoist;
mod near;
mod stack;
mod system;
mod trace;
mod waits;
mod x87;

use crate::asm::{Address, Code, Label};
use crate::cache::{Block, Cache, Kind, NONE, Site, Stage};
use crate::tables::Form;
use access::Linear;
use cpu_interpreter::Core;
use iced_x86::{Instruction, InstructionInfoFactory};
use std::cell::Cell;

pub use class::{Class, classify};
pub use trace::{LONGEST, crosses};

/// Bits of a block's mode key beside the interpreter's mode word.
pub mod key {
    /// SSE instructions execute (CR0.EM and CR0.TS clear, CR4.OSFXSR set).
    pub const SSE: u32 = 1 << 16;
    /// AVX instructions execute.
    pub const AVX: u32 = 1 << 17;
    /// AVX-512 instructions execute.
    pub const AVX512: u32 = 1 << 19;
    /// x87 and MMX instructions execute.
    pub const X87: u32 = 1 << 18;
    /// 32-bit code: FS (GS) has no limit and is readable and writable.
    pub const FS_OPEN: u32 = 1 << 24;
    pub const GS_OPEN: u32 = 1 << 25;
    /// Instructions are counted; see [`super::counted`].
    pub const COUNTED: u32 = 1 << 26;
    /// A variant whose accesses do not share look-ups.
    pub const PLAIN: u32 = 1 << 20;
    /// CPL 0.
    pub const SUPERVISOR: u32 = 1 << 21;
    /// RDTSC may be executed and has a line to read.
    pub const COUNTER: u32 = 1 << 22;
    /// CR4.FSGSBASE.
    pub const BASES: u32 = 1 << 23;
}

/// Bytes beyond a page that an instruction may reach to.
pub const TAIL: usize = 16;

/// What a block is made from.
pub struct Source<'a> {
    pub core: &'a Core,
    /// The page's bytes, and those of the next page that an instruction may reach into.
    pub bytes: &'a [u8; 4096 + TAIL],
    /// The next page, if its bytes are known: its host address and its id.
    pub second: Option<(usize, u32)>,
    /// Host address of the page.
    pub host: usize,
    pub rip: u64,
    pub key: u32,
    /// Flags are correct at every way out, even where nobody can see them.
    pub exact: bool,
    /// The page is unwatched: the block compares its bytes, and ends with its first store.
    pub checked: bool,
    pub stage: Stage,
    /// First and last offset of bytes that the block relies on beyond its own.
    pub ahead: Cell<(u16, u16)>,
}

impl Source<'_> {
    /// The block is void when this instruction of its page changes.
    fn rely_on(&self, i: &Instruction) {
        let (first, last) = self.ahead.get();
        let at = (i.ip() & 0xfff) as u16;
        self.ahead.set((first.min(at), last.max(at + i.len() as u16 - 1)));
    }
}

/// One instruction of a trace.
struct Step {
    i: Instruction,
    class: Class,
    /// Offset in the page.
    at: u16,
    /// Arithmetic flags that may be read later, before and after the instruction.
    live_before: u32,
    live_after: u32,
    member: Option<groups::Member>,
    /// Where its address comes from, as far as that matters.
    address: waits::Origin,
}

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlagsAt {
    Host,
    Saved,
}

/// Code that is emitted after the block's straight part.
enum Cold {
    /// Leaves for `reason` of `site`.
    Leave { label: Label, site: u32, reason: u32, restore: bool },
    /// An access that is not aligned: exact test, then back.
    Unaligned { label: Label, back: Label, linear: Linear, slow: Label, size: u32, free: bool },
    /// An access that left the page of its slot.
    Far {
        label: Label,
        back: Label,
        linear: Linear,
        slot: i32,
        size: u32,
        align: u32,
        write: bool,
        ways: near::Ways,
    },
    /// An indirect branch that came to the wrong block.
    Away { label: Label, rip: u64 },
    /// RCX is in T0.
    Back { label: Label, other: Label },
    /// An indirect branch left the flags in the state page.
    Flags { label: Label, back: Label },
    /// A way out to another block.
    Link { label: Label, site: u32, counted: bool },
    /// For links that leave the flags in the state page: to the entries with a poll and without.
    Entries { to: [Label; 2] },
    /// The page of an address has no entry; it is not in T0 yet.
    Miss { label: Label, site: u32, restore: bool, from: From },
    /// On in the variant without groups.
    Plain { label: Label, site: u32, restore: bool, counted: bool },
}

/// Where an address comes from.
#[derive(Clone, Copy)]
enum From {
    Address(u64),
    /// Without a constant to add.
    Linear(Linear),
    /// Of registers.
    Sum(Address),
}

pub struct Builder {
    code: Code,
    info: InstructionInfoFactory,
    steps: Vec<Step>,
    cold: Vec<Cold>,
    sites: Vec<Site>,
    faults: Vec<(u32, u32)>,
    flags: FlagsAt,
    groups: Vec<groups::Group>,
    early: Vec<groups::Early>,
    /// The group whose look-up is in T1.
    t1: Option<u16>,
    /// Bytes of a stack item and of an address: 8 or 4.
    word: u8,
    /// Offset of the block in the area, number of its first site, its own number.
    base: u32,
    first_site: u32,
    block: u32,
    /// [`Block::restoring`].
    restoring: [u32; 2],
    /// What RSP has yet to be moved by (see [`stack`]).
    owed: i32,
    /// Index of the present step.
    k: usize,
    /// The x87 state was found in the host's registers.
    x87_ready: bool,
    /// AVX-512 state is known to be in the host's registers.
    avx512_ready: bool,
    /// [`key::COUNTED`].
    counted: bool,
    form: Form,
    /// The index of a page is made by PEXT: one micro-operation less than BEXTR's way on Intel's
    /// processors, slower on AMD's.
    pext: bool,
    /// The block is a loop with a second body, or one that may get it; where that is; it is being
    /// emitted.
    hoist: Option<hoist::Hoist>,
    warming: bool,
    places: Option<hoist::Places>,
    hoisted: bool,
    /// The next slot for look-ups that begin with their last page; `None`: the block does not run
    /// often. Instructions that shall not have one.
    next_slot: Option<u32>,
    far: Vec<u64>,
}

impl Builder {
    /// For tables of this form.
    pub fn new(form: Form) -> Builder {
        Builder {
            code: Code::new(),
            info: InstructionInfoFactory::new(),
            steps: Vec::new(),
            cold: Vec::new(),
            sites: Vec::new(),
            faults: Vec::new(),
            flags: FlagsAt::Host,
            groups: Vec::new(),
            early: Vec::new(),
            t1: None,
            word: 8,
            base: 0,
            first_site: 0,
            block: 0,
            restoring: [0; 2],
            owed: 0,
            k: 0,
            x87_ready: false,
            avx512_ready: false,
            counted: false,
            form,
            pext: cpu_host::host_identity().vendor == "GenuineIntel",
            hoist: None,
            warming: false,
            places: None,
            hoisted: false,
            next_slot: None,
            far: Vec::new(),
        }
    }
}

/// Upper bound of a block's host code, which must fit before translation starts.
pub const LARGEST: usize = 64 << 10;

impl Builder {
    /// Translates the code at `source.rip` and registers the block. `None`: this code is left
    /// to the interpreter.
    pub fn build(&mut self, source: &Source, cache: &mut Cache) -> Option<u32> {
        self.reset(cache);
        self.word = (source.bits() / 8) as u8;
        self.counted = source.key & key::COUNTED != 0;
        let (first, last) = self.trace(source)?;
        let key = (source.host | (source.rip & 0xfff) as usize, source.rip, source.key);
        let far = cache.near.far(&key);
        self.next_slot = far.map(|_| cache.near.next);
        self.far.clear();
        self.far.extend_from_slice(far.unwrap_or_default());
        self.liveness(source);
        if source.key & key::PLAIN == 0 {
            self.find_groups();
            self.find_loop(source);
        }
        self.find_waits(source);
        let (poll, body) = self.head(source);
        for k in 0..self.steps.len() {
            self.k = k;
            self.settle_stack();
            self.lead_early();
            self.step(source);
        }
        let turn = self.second_body(source);
        let hot = self.code.bytes.len();
        let cold = cache.area.next()[1] as u32;
        self.code.apart(cold - self.base);
        self.finish_cold(cache);
        self.code.finish();
        let at = cache.area.add(&self.code.bytes, hot)?;
        let ahead = source.ahead.get();
        debug_assert_eq!(at, cache.host(self.base));
        let sites = self.first_site..self.first_site + self.sites.len() as u32;
        cache.sites.append(&mut self.sites);
        if let Some(next) = self.next_slot {
            cache.near.next = next;
        }
        let block = Block {
            key,
            indirect: self.base,
            poll: self.base + poll,
            body: self.base + body,
            turn: if turn == 0 { 0 } else { self.base + turn },
            end: self.base + hot as u32,
            cold: cold..self.here(),
            restoring: self.restoring,
            span: (first.min(ahead.0), last.max(ahead.1)),
            second: source.second.map_or(0, |(host, _)| if last > 4095 { host } else { 0 }),
            instructions: self.steps.len() as u16,
            alive: true,
            sites,
            faults: std::mem::take(&mut self.faults),
            bytes: source.bytes[usize::from(first.min(ahead.0))..=usize::from(last.max(ahead.1))].into(),
            ..Block::empty()
        };
        Some(cache.add(block))
    }

    fn reset(&mut self, cache: &Cache) {
        self.code.clear();
        self.steps.clear();
        self.cold.clear();
        self.sites.clear();
        self.faults.clear();
        self.flags = FlagsAt::Host;
        self.forget_state();
        self.groups.clear();
        self.early.clear();
        self.t1 = None;
        (self.hoist, self.warming, self.places) = (None, false, None);
        self.base = cache.area.next()[0] as u32;
        self.restoring = [0; 2];
        self.first_site = cache.sites.len() as u32;
        self.block = cache.blocks.len() as u32;
    }

    /// A new site for the present instruction; returns its number.
    fn site(&mut self, kind: Kind) -> u32 {
        let step = &self.steps[self.k];
        let site = Site {
            kind,
            block: self.block,
            rip: step.i.ip(),
            left: (self.steps.len() - self.k) as u16,
            len: step.i.len() as u8,
            retry: 0,
            next: if matches!(kind, Kind::Link { .. } | Kind::Plain { .. }) { NONE } else { 0 },
            stub: 0,
            once: 0,
            plain: NONE,
        };
        self.sites.push(site);
        self.first_site + self.sites.len() as u32 - 1
    }

    fn site_mut(&mut self, site: u32) -> &mut Site {
        &mut self.sites[(site - self.first_site) as usize]
    }

    /// The area offset of the present place.
    fn here(&self) -> u32 {
        self.base + self.code.at()
    }

    /// A jump out of the block to a fixed host address.
    fn jump_out(&mut self, cache: &Cache, host: usize) {
        let target = host as i64 - cache.host(self.base) as i64;
        self.code.jmp_relative(target);
    }
}
