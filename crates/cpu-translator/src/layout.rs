//! Where things lie relative to the GS base while translated code runs.
//!
//! Each privilege view of a vCPU has its own GS base (see `tables`). From there:
//! the vCPU's state page (one page, mapped in all views), the code map, the table of
//! indirect branches, and upwards the table of readable pages; downwards the table of
//! writable pages. A page's index is bits 12 to 47 of its linear address.

use std::mem::offset_of;

/// The part of a vCPU's state that translated code works on.
#[repr(C, align(64))]
pub struct State {
    /// General registers at entry and exit; R10 and R11 always stand here.
    pub gpr: [u64; 16],
    /// Scratch register 0 at exit: the address of a refused access, the target of a branch.
    pub s0: u64,
    /// Scratch register 1 at entry.
    pub s1: u64,
    /// Where the entry stub goes.
    pub target: u64,
    /// Arithmetic flags at entry and exit: AH as LAHF leaves it, OF in AL.
    pub flags: u64,
    /// The same form, saved inside a block.
    pub saved_flags: u64,
    pub rax_saved: u64,
    pub spare: u64,
    /// Bases of FS and GS.
    pub seg_base: [u64; 2],
    pub site: u32,
    pub reason: u32,
    pub host_rsp: u64,
    /// Address of the guest's vector registers ([`cpu_host::SimdContext::zmm`]).
    pub vectors: u64,
    /// Not zero: bits 511:128 of ZMM0 to ZMM15 may be other than zero.
    pub upper: u64,
    /// Not zero: AVX-512 state is in the host's registers; its instructions may run.
    pub avx512: u64,
    pub mxcsr: u32,
    pub host_mxcsr: u32,
    /// Host address of an instruction that faulted on the host.
    pub fault_rip: u64,
    /// x87 instructions may run: the state is in the host's registers, all exceptions masked.
    pub x87: u32,
    /// Translated code is running.
    pub in_code: u32,
    /// Guest instructions that may still be executed (only if they are counted).
    pub budget: i64,
    /// FIP, FDP and FOP of the last x87 instruction, and the number of the segment register that
    /// FDP belongs to; [`NO_SEGMENT`]: none had an operand in memory.
    pub fip: u64,
    pub fdp: u64,
    pub fop: u64,
    pub fdp_segment: u64,
    /// At an indirect branch: its site, with the top bit if the flags are in `saved_flags`, not
    /// the host's; and whether they are, as zero or not.
    pub branch: u32,
    pub flags_away: u32,
    /// What an indirect CALL wrote its return address over.
    pub overwritten: u64,
    /// Constants for PEXT; see [`MASK`].
    pub masks: [u64; 11],
    /// Look-ups that several accesses of a block share.
    pub shared: [u64; SHARED],
    /// PAUSEs since the last that the interpreter executed; 4096 are enough.
    pub pauses: u64,
    /// T1, while an address takes it.
    pub t1_saved: u64,
    /// For REP strings (`crate::string_stubs`): where the block goes on, elements behind those
    /// of the present page, the source's table entry, the site of the destination.
    pub string_next: u64,
    pub string_left: u64,
    pub string_from: u64,
    pub other_site: u32,
    /// Loops with a second body (`crate::translate`): rounds until that is tried; rounds beyond
    /// the first that it can do; the value of a register that ends it, or its negative.
    pub turns: u32,
    pub left: u32,
    pub limit: u64,
    /// Look-ups that may yet leave the page of their slot until somebody looks at it; and which
    /// slots were filled so, from the end, as offsets from [`NEAR`].
    pub fars: u64,
    pub filled: [u32; FAR_LIMIT],
    pub system: System,
}

/// The arithmetic flags that LAHF reads.
pub const CF_TO_SF: u64 = 0xd5;

impl State {
    /// Sets the arithmetic flags to those of `rflags`.
    pub fn set_flags(&mut self, rflags: u64) {
        self.flags = (rflags & CF_TO_SF) << 8 | (rflags >> 11 & 1);
    }
}

/// Privileged state that translated code works on; see `crate::system`.
#[repr(C)]
pub struct System {
    /// RFLAGS without the arithmetic flags, IF and RF.
    pub flags: u64,
    /// RFLAGS.IF: 0 or 2.
    pub iflag: u8,
    /// An interrupt may be waiting for IF.
    pub hint: u8,
    /// The ring was changed: 1 by SYSCALL, 2 by SYSRET.
    pub ring: u8,
    /// RFLAGS.AC, and so the view, may have changed.
    pub view_changed: u8,
    /// Selectors of ES, DS, FS and GS.
    pub data_selectors: [u32; 4],
    /// CR0, CR2, CR3 and CR4.
    pub control: [u64; 4],
    /// Selectors of CS and SS; and as SYSCALL and SYSRET make them.
    pub selectors: [u32; 2],
    pub inner_selectors: [u32; 2],
    pub outer_selectors: [u32; 2],
    /// IA32_KERNEL_GS_BASE.
    pub other_gs: u64,
    /// GS bases by view, as the control registers make them.
    pub views: [u64; 3],
    pub lstar: u64,
    /// RFLAGS that SYSCALL keeps.
    pub kept: u64,
    /// Address of the address of the line for RDTSC; the guest's offset; IA32_TSC_AUX.
    pub counter: u64,
    pub counter_offset: u64,
    pub counter_id: u64,
    pub stub_syscall: u64,
    pub stub_sysret: u64,
    /// What CPUID gave lately, by [`slot_of`].
    pub identities: [Identity; IDENTITIES],
    /// What those depend on: CR4, XCR0, IA32_XSS, IA32_APIC_BASE.
    pub identified: [u64; 4],
    pub exits: [u64; reason::COUNT],
}

/// Answer of CPUID.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Identity {
    /// EAX and (above) ECX; a value that is neither: none.
    pub asked: u64,
    /// EAX, EBX, ECX, EDX.
    pub answer: [u32; 4],
    pub spare: u64,
}

/// Answers of CPUID that are kept.
pub const IDENTITIES: usize = 64;

/// The slot for CPUID with these EAX and ECX: basic leaves, subleaves and extended leaves lie
/// apart.
pub fn slot_of(leaf: u32, subleaf: u32) -> usize {
    let sum = leaf.wrapping_add(leaf >> 26).wrapping_add(subleaf.wrapping_mul(8));
    sum as usize % IDENTITIES
}

pub const GPR: i32 = offset_of!(State, gpr) as i32;
pub const S1: i32 = offset_of!(State, s1) as i32;
pub const TARGET: i32 = offset_of!(State, target) as i32;
pub const S0: i32 = offset_of!(State, s0) as i32;
pub const FLAGS: i32 = offset_of!(State, flags) as i32;
pub const SAVED_FLAGS: i32 = offset_of!(State, saved_flags) as i32;
pub const RAX_SAVED: i32 = offset_of!(State, rax_saved) as i32;
pub const SPARE: i32 = offset_of!(State, spare) as i32;
pub const SEG_BASE: i32 = offset_of!(State, seg_base) as i32;
pub const SITE: i32 = offset_of!(State, site) as i32;
pub const REASON: i32 = offset_of!(State, reason) as i32;
pub const HOST_RSP: i32 = offset_of!(State, host_rsp) as i32;
pub const UPPER: i32 = offset_of!(State, upper) as i32;
pub const AVX512: i32 = offset_of!(State, avx512) as i32;
pub const VECTORS: i32 = offset_of!(State, vectors) as i32;
pub const MXCSR: i32 = offset_of!(State, mxcsr) as i32;
pub const HOST_MXCSR: i32 = offset_of!(State, host_mxcsr) as i32;
pub const X87: i32 = offset_of!(State, x87) as i32;
pub const BUDGET: i32 = offset_of!(State, budget) as i32;
pub const FIP: i32 = offset_of!(State, fip) as i32;
pub const FDP: i32 = offset_of!(State, fdp) as i32;
pub const FOP: i32 = offset_of!(State, fop) as i32;
pub const FDP_SEGMENT: i32 = offset_of!(State, fdp_segment) as i32;
pub const NO_SEGMENT: u64 = 6;
pub const BRANCH: i32 = offset_of!(State, branch) as i32;
pub const OVERWRITTEN: i32 = offset_of!(State, overwritten) as i32;
pub const FLAGS_AWAY: i32 = offset_of!(State, flags_away) as i32;
pub const MASKS: i32 = offset_of!(State, masks) as i32;
pub const PAUSES: i32 = offset_of!(State, pauses) as i32;
pub const T1_SAVED: i32 = offset_of!(State, t1_saved) as i32;
pub const STRING_NEXT: i32 = offset_of!(State, string_next) as i32;
pub const STRING_LEFT: i32 = offset_of!(State, string_left) as i32;
pub const STRING_FROM: i32 = offset_of!(State, string_from) as i32;
pub const OTHER_SITE: i32 = offset_of!(State, other_site) as i32;
pub const TURNS: i32 = offset_of!(State, turns) as i32;
pub const LEFT: i32 = offset_of!(State, left) as i32;
pub const LIMIT: i32 = offset_of!(State, limit) as i32;
pub const FARS: i32 = offset_of!(State, fars) as i32;
pub const FILLED: i32 = offset_of!(State, filled) as i32 - 4;
pub const SHARED_AT: i32 = offset_of!(State, shared) as i32;
/// Look-ups that leave the page of their slot until it is asked how fast they come.
pub const FAR_LIMIT: usize = 256;
/// Shared look-ups that a block may hold at a time.
pub const SHARED: usize = 64;

/// What [`State::masks`] holds: a page's index, an offset in a page, the bit after it, and
/// the low 1 to 6 bits, the sign, a page's slot in hashed tables.
pub const MASK: [u64; 11] =
    [0xffff_ffff_f000, 0xfff, 0x1000, 1, 3, 7, 15, 31, 63, 1 << 63, (HASHED_SLOTS - 1) << 12];
pub const MASK_INDEX: i32 = MASKS;
pub const MASK_OFFSET: i32 = MASKS + 8;
pub const MASK_SIGN: i32 = MASKS + 8 * 9;
pub const MASK_NEXT: i32 = MASKS + 16;
pub const MASK_SLOT: i32 = MASKS + 8 * 10;

/// The mask of the bits below `align` (2 to 64).
pub fn mask_below(align: u32) -> i32 {
    MASKS + 8 * (2 + align.trailing_zeros() as i32)
}

const fn system(field: usize) -> i32 {
    (offset_of!(State, system) + field) as i32
}
pub const SYSTEM: i32 = system(offset_of!(System, flags));
pub const IFLAG: i32 = system(offset_of!(System, iflag));
pub const HINT: i32 = system(offset_of!(System, hint));
pub const RING: i32 = system(offset_of!(System, ring));
pub const VIEW_CHANGED: i32 = system(offset_of!(System, view_changed));
/// Where the selector of segment register `n` (ES, CS, SS, DS, FS, GS) stands.
pub fn selector(n: usize) -> i32 {
    let base = system(offset_of!(System, data_selectors));
    [base, SELECTORS, SELECTORS + 4, base + 4, base + 8, base + 12][n]
}
/// Where control register `n` stands, if it does.
pub fn control(n: usize) -> Option<i32> {
    let place = [0, 2, 3, 4].iter().position(|&kept| kept == n)?;
    Some(system(offset_of!(System, control)) + 8 * place as i32)
}
pub const SELECTORS: i32 = system(offset_of!(System, selectors));
pub const INNER_SELECTORS: i32 = system(offset_of!(System, inner_selectors));
pub const OUTER_SELECTORS: i32 = system(offset_of!(System, outer_selectors));
pub const OTHER_GS: i32 = system(offset_of!(System, other_gs));
pub const VIEWS_AT: i32 = system(offset_of!(System, views));
pub const LSTAR: i32 = system(offset_of!(System, lstar));
pub const KEPT: i32 = system(offset_of!(System, kept));
pub const COUNTER: i32 = system(offset_of!(System, counter));
pub const COUNTER_OFFSET: i32 = system(offset_of!(System, counter_offset));
pub const COUNTER_ID: i32 = system(offset_of!(System, counter_id));
pub const STUB_SYSCALL: i32 = system(offset_of!(System, stub_syscall));
pub const STUB_SYSRET: i32 = system(offset_of!(System, stub_sysret));
pub const IDENTITIES_AT: i32 = system(offset_of!(System, identities));
pub const EXITS: i32 = system(offset_of!(System, exits));

/// Bytes of the shared state page.
pub const STATE_SIZE: usize = 8192;
/// Behind the state: not zero while something may be asked of the vCPU (see `tables::asked`).
pub const ASKED: i32 = STATE_SIZE as i32 - 64;
const _: () = assert!(size_of::<State>() <= ASKED as usize);
/// Slots of look-ups that remember a page and its entry ([`crate::near`]): for reads, then for
/// writes.
pub const NEAR: i32 = STATE_SIZE as i32;
pub const NEAR_SIZE: i32 = 16;
pub const NEAR_SLOTS: u32 = 3072;
/// The GS base itself.
pub const SELF: i32 = NEAR + 2 * NEAR_SLOTS as i32 * NEAR_SIZE;
const _: () = assert!(SELF + 8 <= INDIRECT);
/// Code map: for a hash of a linear page, the id of its present (linear, physical) pair.
pub const CODE_MAP: i32 = 0xa_0000;
pub const CODE_MAP_SLOTS: usize = 1 << 16;
/// Indirect branches: host addresses by the low 16 bits of the target.
pub const INDIRECT: i32 = 0x2_0000;
pub const INDIRECT_SLOTS: usize = 1 << 16;
/// Entry 0 of the table of readable pages.
pub const READ_TABLE: i32 = 0x10_0000;
/// The table of writable pages is indexed by the complement of the page's index.
pub const WRITE_TABLE: i32 = 0;
/// Pages that a table spans.
pub const TABLE_PAGES: u64 = 1 << 36;
/// Slots of a hashed table.
pub const HASHED_SLOTS: u64 = 1 << 18;
/// Hashed tables: what the slots belong to, with the places that the entries would have here.
pub const READ_TAGS: i32 = READ_TABLE + (HASHED_SLOTS as i32) * 8;
pub const WRITE_TAGS: i32 = WRITE_TABLE - (HASHED_SLOTS as i32) * 8;

/// Why translated code was left.
pub mod reason {
    /// The table has no entry for the page at `s0`.
    pub const MISS: u32 = 0;
    /// The instruction of the site is for the interpreter.
    pub const SLOW: u32 = 1;
    /// A direct branch that is not connected.
    pub const LINK: u32 = 2;
    /// An indirect branch to `s0`.
    pub const INDIRECT: u32 = 3;
    /// A request is pending.
    pub const POLL: u32 = 4;
    /// The host refused an instruction (`fault_rip`).
    pub const FAULT: u32 = 5;
    /// The budget does not suffice for the block.
    pub const BUDGET: u32 = 6;
    pub const COUNT: usize = 7;
}
