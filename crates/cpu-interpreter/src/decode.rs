//! Bytes to blocks.

mod features;

use crate::block::{Cache, CodePage, Head};
use crate::core::{Core, mode};
use crate::exec::gpr;
use crate::fast;
use crate::op::{FLAT_SEG, Op, ZERO};
use cpu::Fault;
use cpu::paging::Access;
use cpu::state::seg;
use iced_x86::{
    CodeSize, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use memory::{RamBlock, UNWATCHED, Watch};
use std::cell::Cell;

pub use features::Features;

/// Most instructions of a block.
const MAX_BLOCK: usize = 64;
/// Most bytes of a block. (Few blocks are longer without a branch; they are cut.)
const MAX_BYTES: usize = 256;

/// The page behind a code address.
enum CodeSource {
    Ram(RamBlock, u64, u64),
    /// Physical address of the page; read through the bus, never cached.
    Io(u64),
}

impl Core {
    pub fn linear_rip(&self, rip: u64) -> u64 {
        let linear = rip.wrapping_add(self.sc[seg::CS].base);
        if self.is_64bit() { linear } else { linear & 0xffff_ffff }
    }

    /// Physical address behind `linear` for execution, filling the code TLB.
    pub fn translate_code(&mut self, linear: u64) -> Result<u64, Fault> {
        if self.is_64bit() && !Core::canonical(linear) {
            return Err(Fault::GP0);
        }
        let entry = self.tlb.code[crate::tlb::code_index(linear)];
        if entry.tag == linear & !0xfff {
            return Ok(entry.physical | linear & 0xfff);
        }
        let access = Access::execute(self.view == crate::tlb::View::User);
        let mapping = self.paging.walk(&self.memory_view, linear, access)?;
        let tag = linear & !0xfff;
        if mapping.size > 4096 {
            self.tlb.note_large(tag, mapping.size);
        }
        self.tlb.add_code(tag, (mapping.page, mapping.size), mapping.global);
        Ok(mapping.page | linear & 0xfff)
    }

    /// Of the page of `linear`, which [`Core::translate_code`] has just translated: whether it
    /// is global, and the size of its mapping.
    pub fn code_mapping(&self, linear: u64) -> (bool, u64) {
        let entry = self.tlb.code[crate::tlb::code_index(linear)];
        if entry.tag == linear & !0xfff { (entry.global, entry.size) } else { (false, 0) }
    }

    fn code_source(&self, physical: u64) -> CodeSource {
        match self.memory_view.memory_page(physical) {
            Some((block, offset, _)) => CodeSource::Ram(block, offset, physical & !0xfff),
            None => CodeSource::Io(physical & !0xfff),
        }
    }

    /// 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        [16, 32, 64, 64][(self.mode & mode::CODE) as usize]
    }
}

/// Bytes fetched for one block.
struct Fetch {
    bytes: [u8; MAX_BYTES],
    len: usize,
    first: Option<CodePage>,
    second: Option<CodePage>,
    /// Versions of the pages; never equal to one that is [`UNWATCHED`].
    seen: (u32, u32),
    /// The first page is unwatched.
    checked: bool,
}

impl Fetch {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Up to `want` bytes of the page at `linear`.
    fn page(core: &mut Core, linear: u64, want: usize) -> Result<Fetch, Fault> {
        let physical = core.translate_code(linear)?;
        let at = (linear & 0xfff) as usize;
        let len = want.min(4096 - at).min(MAX_BYTES);
        let mut bytes = [0; MAX_BYTES];
        match core.code_source(physical) {
            CodeSource::Ram(block, offset, physical) => {
                let version = block.code_version_cell(offset);
                let seen = core.watch_code(block, offset);
                let page = block.page(offset);
                page.read(at, &mut bytes[..len]);
                let page = CodePage { page, version, physical };
                let checked = seen & UNWATCHED != 0;
                Ok(Fetch {
                    bytes,
                    len,
                    first: Some(page),
                    second: None,
                    seen: (seen & !UNWATCHED, 0),
                    checked,
                })
            }
            CodeSource::Io(page) => {
                for (k, byte) in bytes.iter_mut().take(len.min(16)).enumerate() {
                    *byte = core.bus.load(page + (at + k) as u64, 1) as u8;
                }
                core.after_io();
                Ok(Fetch { bytes, len, first: None, second: None, seen: (0, 0), checked: false })
            }
        }
    }
}

/// Decodes the block at `rip`. `Ok(None)`: code outside of memory was decoded into a block
/// that must not be kept ([`Cache::ops`] from the returned index on).
pub fn build(core: &mut Core, cache: &mut Cache, rip: u64) -> Result<u32, Fault> {
    let linear = core.linear_rip(rip);
    let physical = core.translate_code(linear)?;
    let room = if core.is_64bit() {
        usize::MAX
    } else {
        let limit = u64::from(core.st.seg[seg::CS].limit);
        if rip > limit {
            return Err(Fault::GP0);
        }
        (limit - rip) as usize + 1
    };
    let limit = if core.mode & mode::SINGLE != 0 { 1 } else { MAX_BLOCK };
    let mut fetch = Fetch::page(core, linear, (limit * 15).min(room))?;
    let single = fetch.first.is_none();
    let limit = if single { 1 } else { limit };
    let mut insns = std::mem::take(&mut cache.decoded);
    let done = fetch.decode(core, rip, limit, room, &mut insns);
    let block = done.map(|()| emit(core, cache, &fetch, &insns, physical));
    cache.decoded = insns;
    block
}

impl Fetch {
    /// Decodes at least one instruction, for which the next page may have to be fetched.
    fn decode(
        &mut self,
        core: &mut Core,
        rip: u64,
        limit: usize,
        room: usize,
        insns: &mut Vec<Instruction>,
    ) -> Result<(), Fault> {
        decode_bytes(core, self, rip, limit, insns);
        if !insns.is_empty() {
            return Ok(());
        }
        // The first instruction crosses the page (or the segment limit).
        let have = self.len;
        if have >= room.min(15) {
            return Err(Fault::GP0);
        }
        let next = core.linear_rip(rip.wrapping_add(have as u64));
        let next = Fetch::page(core, next, (15 - have).min(room - have))?;
        self.bytes[have..have + next.len].copy_from_slice(next.bytes());
        self.len += next.len;
        self.second = next.first;
        self.seen.1 = next.seen.0;
        decode_bytes(core, self, rip, 1, insns);
        if insns.is_empty() { Err(Fault::GP0) } else { Ok(()) }
    }
}

/// Decodes up to `limit` instructions that lie wholly in what was fetched and end with the
/// first that ends a block.
fn decode_bytes(core: &Core, fetch: &Fetch, rip: u64, limit: usize, insns: &mut Vec<Instruction>) {
    let mut decoder = Decoder::with_ip(core.code_bits(), fetch.bytes(), rip, DecoderOptions::NONE);
    insns.clear();
    while insns.len() < limit && decoder.can_decode() {
        let at = insns.len();
        insns.push(Instruction::default());
        decoder.decode_out(&mut insns[at]);
        let i = &insns[at];
        if decoder.last_error() == DecoderError::NoMoreBytes {
            insns.truncate(at);
            break;
        }
        if ends_block(i) || fetch.checked && may_store(i) {
            break;
        }
    }
}

/// Whether `i` may write to memory; `true` where that would take long to find out.
pub fn may_store(i: &Instruction) -> bool {
    use Mnemonic::{Cmp, Test, Xadd, Xchg};
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) >= OpKind::MemorySegSI);
    let loads = i.op0_kind() == OpKind::Register && !matches!(i.mnemonic(), Xchg | Xadd);
    memory && !loads && !matches!(i.mnemonic(), Cmp | Test)
        || i.is_stack_instruction() && i.stack_pointer_increment() <= 0
}

/// Whether nothing may follow `i` in its block.
pub(crate) fn ends_block(i: &Instruction) -> bool {
    use Mnemonic::*;
    if i.is_invalid() || i.flow_control() != FlowControl::Next {
        return true;
    }
    match i.mnemonic() {
        Mov => (0..2).any(|n| {
            let r = if i.op_kind(n) == OpKind::Register { i.op_register(n) } else { Register::None };
            (r.is_segment_register() && n == 0) || r.is_cr() || r.is_dr()
        }),
        Pop => i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register(),
        In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd | Sti | Popf | Popfd | Popfq | Lmsw | Clts
        | Invlpg | Invpcid | Wrmsr | Xsetbv | Lds | Les | Lss | Lfs | Lgs | Hlt | Mwait | Lldt | Ltr => true,
        _ => false,
    }
}

fn emit(core: &mut Core, cache: &mut Cache, fetch: &Fetch, insns: &[Instruction], physical: u64) -> u32 {
    if cache.heads.is_empty() {
        cache.heads.push(Head {
            rip: u64::MAX,
            start: 0,
            len: 0,
            count: 0,
            mode: u32::MAX,
            first: parking(core),
            seen: Cell::new(0),
            heat: Cell::new(0),
            second: None,
            bytes: (0, 0),
            checked: false,
        });
    }
    let start = cache.ops.len();
    let rip = insns[0].ip();
    let needed = flags_needed(core, insns);
    let mut k = 0;
    while k < insns.len() {
        let i = &insns[k];
        let mut op = operation(core, cache, i, insns.len() - k);
        let fused = if k + 2 == insns.len() { fast::fuse(core, i, &insns[k + 1], &op) } else { None };
        if let Some(fused) = fused {
            let branch = &insns[k + 1];
            (op.run, op.dst, op.src, op.imm) = (fused.run, fused.dst, fused.src, fused.imm);
            op.len = (branch.next_ip().wrapping_sub(i.ip())) as u8;
            fast::fill_branch(&mut op, core, branch, cache.ops.len());
            cache.ops.push(op);
            k += 2;
            continue;
        }
        let at = cache.ops.len();
        let slow = core.mode & mode::SLOW != 0 || !core.features.allows(i);
        if slow || !fast::select(core, i, &mut op, needed >> k & 1 != 0, at) {
            generic(core, cache, i, &mut op, fetch, rip);
        }
        cache.ops.push(op);
        k += 1;
    }
    let last = insns[insns.len() - 1];
    if !ends_block(&last) {
        let mut op = blank(last.next_ip(), 0);
        op.imm = last.next_ip();
        op.run = fast::CONTINUE;
        let at = cache.ops.len();
        fast::fill_links(&mut op, core, at);
        op.extra = at as u32;
        cache.ops.push(op);
    }
    let used = (last.next_ip().wrapping_sub(rip) as usize).min(fetch.len);
    let bytes = (cache.bytes.len() as u32, used as u16);
    cache.bytes.extend_from_slice(&fetch.bytes[..used]);
    let volatile = fetch.first.is_none();
    let head = Head {
        rip,
        start: start as u32,
        len: (cache.ops.len() - start) as u32,
        count: insns.len() as u32,
        mode: core.mode,
        first: fetch.first.unwrap_or_else(|| parking(core)),
        seen: Cell::new(fetch.seen.0),
        heat: Cell::new(0),
        second: fetch.second.map(|page| (page, Cell::new(fetch.seen.1))),
        bytes,
        checked: fetch.checked,
    };
    let block = cache.add(physical, head);
    if volatile {
        cache.forget(physical, rip, core.mode);
    }
    block
}

/// A code page for blocks that come from no memory; its version never changes.
fn parking(core: &Core) -> CodePage {
    CodePage { page: core.parking.page(0), version: core.parking.code_version_cell(0), physical: u64::MAX }
}

fn blank(pc: u64, left: usize) -> Op {
    Op {
        run: fast::GENERIC,
        pc,
        disp: 0,
        imm: 0,
        target: 0,
        dst: ZERO,
        src: ZERO,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: FLAT_SEG,
        cut: 0,
        len: 0,
        links: [Cell::new(0), Cell::new(0)],
        extra: 0,
        left: left as u16,
        aux: 0,
    }
}

/// The operation of `i` with its memory operand filled in; the handler comes later.
fn operation(core: &Core, cache: &mut Cache, i: &Instruction, left: usize) -> Op {
    let mut op = operands(core, i, left);
    op.extra = cache.insns.len() as u32;
    cache.insns.push(*i);
    op
}

/// An operation with the memory operand of `i` and nothing else.
pub(crate) fn operands(core: &Core, i: &Instruction, left: usize) -> Op {
    let mut op = blank(i.ip(), left);
    op.len = i.len() as u8;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        let (base, index) = (i.memory_base(), i.memory_index());
        let width = [base, index].into_iter().find(|r| r.is_gpr() || r.is_ip()).map_or_else(
            || match i.memory_displ_size() {
                2 => 2,
                4 => 4,
                8 => 8,
                _ => core.code_bits() as usize / 8,
            },
            |r| r.size(),
        );
        if base.is_gpr() {
            op.base = gpr(base).0;
        }
        if index.is_gpr() {
            op.index = gpr(index).0;
        }
        op.scale = i.memory_index_scale().trailing_zeros() as u8;
        op.disp = i.memory_displacement64();
        op.seg = data_segment(i);
        op.cut = (64 - 8 * width) as u8;
    } else {
        implicit_memory(core, i, &mut op);
    }
    op
}

/// The segment of a memory operand. In 64-bit mode only FS and GS override the default.
pub fn data_segment(i: &Instruction) -> u8 {
    let mut plain = *i;
    if i.code_size() == CodeSize::Code64 && !matches!(i.segment_prefix(), Register::FS | Register::GS) {
        plain.set_segment_prefix(Register::None);
    }
    crate::exec::seg_index(plain.memory_segment()) as u8
}

/// XLAT, MONITOR and MASKMOV: segment and address size.
fn implicit_memory(core: &Core, i: &Instruction, op: &mut Op) {
    use Mnemonic::*;
    if !matches!(i.mnemonic(), Xlatb | Monitor | Maskmovq | Maskmovdqu | Vmaskmovdqu) {
        return;
    }
    op.seg = Core::source_segment(i);
    let width = (0..i.op_count())
        .find_map(|n| match i.op_kind(n) {
            OpKind::MemorySegDI => Some(2),
            OpKind::MemorySegEDI => Some(4),
            OpKind::MemorySegRDI => Some(8),
            OpKind::Register if i.mnemonic() == Monitor && n == 0 => Some(i.op0_register().size()),
            _ => None,
        })
        .unwrap_or(core.code_bits() as usize / 8);
    op.cut = (64 - 8 * width) as u8;
}

fn generic(core: &mut Core, cache: &mut Cache, i: &Instruction, op: &mut Op, fetch: &Fetch, rip: u64) {
    if i.is_invalid() || !core.features.allows(i) {
        op.run = fast::UNDEFINED;
        return;
    }
    op.run = if ends_block(i) { fast::GENERIC_END } else { fast::GENERIC };
    op.imm = u64::MAX;
    if let Some(plan) = core.thunks.plan(i) {
        if plan.sets_x87_pointers {
            let from = i.ip().wrapping_sub(rip) as usize;
            op.aux = cpu_host::x87_opcode(fetch.bytes().get(from..from + i.len()).unwrap_or(&[]));
        }
        op.imm = cache.plans.len() as u64;
        cache.plans.push(plan);
        if !ends_block(i) {
            op.run = fast::simd_handler(core, i, op, &plan);
        }
    }
}

/// For each instruction, as a bit: whether the arithmetic flags it writes can be seen. Block ends and
/// all that may fault or run through the generic interpreter see all flags.
fn flags_needed(core: &Core, insns: &[Instruction]) -> u64 {
    const ALL: u32 = 0x3f;
    let mut live = ALL;
    let mut needed = 0;
    for (k, i) in insns.iter().enumerate().rev() {
        let modified = i.rflags_modified();
        needed |= u64::from(modified & live != 0) << k;
        live = if fast::is_pure(core, i) { live & !(modified & ALL) | i.rflags_read() & ALL } else { ALL };
    }
    needed
}

impl Core {
    /// Watches the page for writes; returns its version. What is read from the page afterwards is
    /// good while the version stays the same. An [`UNWATCHED`] page stays so.
    pub fn watch_code(&self, block: RamBlock, offset: u64) -> u32 {
        let version = block.code_version_cell(offset);
        loop {
            let now = version.load(std::sync::atomic::Ordering::SeqCst);
            if now & UNWATCHED != 0 {
                return now;
            }
            if !block.watch(offset).contains(Watch::CODE) {
                block.arm_code(offset);
                // A lone vCPU's own stores are done; those of devices are fenced.
                if self.vcpus.load(std::sync::atomic::Ordering::SeqCst) > 1 {
                    crate::vcpu::drain_stores();
                }
            }
            let seen = version.load(std::sync::atomic::Ordering::SeqCst);
            // A writer that drops the watch does so before it counts the version up.
            if block.watch(offset).contains(Watch::CODE) {
                return seen;
            }
        }
    }
}
