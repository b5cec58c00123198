//! String instructions, with REP in page-sized pieces.

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::{DF, mask, of_sub};
use crate::memory_access::page_load;
use crate::op::Op;
use cpu::Fault;
use cpu::state::seg;
use iced_x86::{Instruction, Mnemonic, OpKind};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Scan,
    Compare,
    In,
    Out,
}

fn kind_of(m: Mnemonic) -> (Kind, usize) {
    use Mnemonic::*;
    match m {
        Movsb => (Kind::Move, 1),
        Movsw => (Kind::Move, 2),
        Movsd => (Kind::Move, 4),
        Movsq => (Kind::Move, 8),
        Stosb => (Kind::Store, 1),
        Stosw => (Kind::Store, 2),
        Stosd => (Kind::Store, 4),
        Stosq => (Kind::Store, 8),
        Lodsb => (Kind::Load, 1),
        Lodsw => (Kind::Load, 2),
        Lodsd => (Kind::Load, 4),
        Lodsq => (Kind::Load, 8),
        Scasb => (Kind::Scan, 1),
        Scasw => (Kind::Scan, 2),
        Scasd => (Kind::Scan, 4),
        Scasq => (Kind::Scan, 8),
        Cmpsb => (Kind::Compare, 1),
        Cmpsw => (Kind::Compare, 2),
        Cmpsd => (Kind::Compare, 4),
        Cmpsq => (Kind::Compare, 8),
        Insb => (Kind::In, 1),
        Insw => (Kind::In, 2),
        Insd => (Kind::In, 4),
        Outsb => (Kind::Out, 1),
        Outsw => (Kind::Out, 2),
        _ => (Kind::Out, 4),
    }
}

/// Address size from the implicit operands.
fn address_size(i: &Instruction) -> usize {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    8
}

struct Work {
    kind: Kind,
    size: usize,
    width: usize,
    source: u8,
    rep: bool,
    /// For SCAS/CMPS: go on while ZF has this value.
    while_zero: bool,
}

const RSI: usize = 6;
const RDI: usize = 7;
/// Elements done before interrupts are looked at again.
const PIECE: u64 = 65536;

impl Core {
    pub(super) fn string(&mut self, i: &Instruction, _op: &Op) -> Done {
        let (kind, size) = kind_of(i.mnemonic());
        let work = Work {
            kind,
            size,
            width: address_size(i),
            source: Core::source_segment(i),
            rep: i.has_rep_prefix() || i.has_repne_prefix(),
            while_zero: !i.has_repne_prefix(),
        };
        if matches!(kind, Kind::In | Kind::Out) {
            self.check_port(self.r[2] as u16, size)?;
        }
        let end = if matches!(kind, Kind::In | Kind::Out) { Flow::End } else { Flow::Next };
        if !work.rep {
            self.element(&work)?;
            return Ok(end);
        }
        let mut left = PIECE;
        while self.reg(1, work.width) != 0 {
            if left == 0 || self.smc {
                return Ok(Flow::Again);
            }
            let count = self.reg(1, work.width).min(left);
            let target = self.reg(RDI as u8, work.width);
            let (done, stop) = match self.chunk(&work, count)? {
                Some(done) => done,
                None => (1, self.element(&work)?),
            };
            left -= done;
            let rest = self.reg(1, work.width).wrapping_sub(done);
            self.set_pointer(1, work.width, rest & mask(work.width));
            if stop {
                break;
            }
            if rest != 0
                && (self.pending_db != 0 || self.debug_hit || self.mode & crate::core::mode::SINGLE != 0)
            {
                return Ok(Flow::Again);
            }
            if rest != 0 && self.overwrote(i, &work, target, done) {
                return Ok(Flow::Again);
            }
            if matches!(kind, Kind::In | Kind::Out) && rest != 0 && self.budget == 0 {
                return Ok(Flow::Again);
            }
        }
        Ok(end)
    }

    /// Whether `done` elements from offset `target` on lie on the instruction's own bytes, which are
    /// to be fetched anew then. Pages with translated or decoded code tell by `smc` already; this
    /// one may hold none.
    fn overwrote(&self, i: &Instruction, work: &Work, target: u64, done: u64) -> bool {
        if !matches!(work.kind, Kind::Move | Kind::Store | Kind::In) {
            return false;
        }
        let size = work.size as u64;
        let back = if self.st.rflags & DF != 0 { (done - 1).wrapping_mul(size) } else { 0 };
        let low = self.sc[seg::ES].base.wrapping_add(target).wrapping_sub(back);
        let own = self.sc[seg::CS].base.wrapping_add(i.ip());
        own.wrapping_sub(low) < done * size || low.wrapping_sub(own) < i.len() as u64
    }

    fn source_linear(&self, work: &Work) -> Result<u64, Fault> {
        self.linear(work.source, self.reg(RSI as u8, work.width), work.size, false)
    }

    fn target_linear(&self, work: &Work, write: bool) -> Result<u64, Fault> {
        self.linear(seg::ES as u8, self.reg(RDI as u8, work.width), work.size, write)
    }

    fn advance(&mut self, register: usize, work: &Work, elements: u64) {
        let by = elements.wrapping_mul(work.size as u64);
        let old = self.reg(register as u8, work.width);
        let new = if self.st.rflags & DF != 0 { old.wrapping_sub(by) } else { old.wrapping_add(by) };
        self.set_pointer(register, work.width, new & mask(work.width));
    }

    /// One element; `true`: the REP condition ended.
    fn element(&mut self, work: &Work) -> Result<bool, Fault> {
        let size = work.size;
        match work.kind {
            Kind::Move => {
                let from = self.source_linear(work)?;
                let value = self.read(from, size)?;
                let to = self.target_linear(work, true)?;
                self.write(to, size, value)?;
                self.advance(RSI, work, 1);
                self.advance(RDI, work, 1);
            }
            Kind::Store => {
                let to = self.target_linear(work, true)?;
                self.write(to, size, self.reg(0, size))?;
                self.advance(RDI, work, 1);
            }
            Kind::Load => {
                let from = self.source_linear(work)?;
                let value = self.read(from, size)?;
                self.set_reg(0, size, value);
                self.advance(RSI, work, 1);
            }
            Kind::Scan => {
                let at = self.target_linear(work, false)?;
                let b = self.read(at, size)?;
                self.advance(RDI, work, 1);
                return Ok(self.compared(self.reg(0, size), b, work));
            }
            Kind::Compare => {
                let from = self.source_linear(work)?;
                let a = self.read(from, size)?;
                let at = self.target_linear(work, false)?;
                let b = self.read(at, size)?;
                self.advance(RSI, work, 1);
                self.advance(RDI, work, 1);
                return Ok(self.compared(a, b, work));
            }
            Kind::In => {
                let to = self.target_linear(work, true)?;
                self.probe_write(to, size)?;
                let value = self.port_read(self.r[2] as u16, size);
                self.write(to, size, value)?;
                self.advance(RDI, work, 1);
            }
            Kind::Out => {
                let from = self.source_linear(work)?;
                let value = self.read(from, size)?;
                self.port_write(self.r[2] as u16, size, value);
                self.advance(RSI, work, 1);
            }
        }
        Ok(false)
    }

    fn compared(&mut self, a: u64, b: u64, work: &Work) -> bool {
        let size = work.size;
        self.set_lazy(of_sub(a, b, a.wrapping_sub(b) & mask(size), size));
        (a == b) != work.while_zero
    }

    /// How many whole elements from `linear` lie in its page in the direction of the string;
    /// none if the access must go element by element.
    fn room(&self, linear: u64, work: &Work) -> u64 {
        let (at, size) = (linear & 0xfff, work.size as u64);
        if at + size > 4096 {
            0
        } else if self.st.rflags & DF != 0 {
            at / size + 1
        } else {
            (4096 - at) / size
        }
    }

    /// How many elements stay inside the segment and below the address-size wrap.
    fn segment_room(&self, segment: u8, register: usize, work: &Work) -> u64 {
        let at = self.reg(register as u8, work.width);
        let size = work.size as u64;
        let s = &self.sc[usize::from(segment & 7)];
        let high = s.high.min(mask(work.width));
        if self.st.rflags & DF != 0 {
            (at.saturating_sub(s.low) / size).saturating_add(1)
        } else {
            (high.saturating_sub(at) / size).max(1)
        }
    }

    /// Many elements at once where both sides are plain memory: (elements, condition ended).
    fn chunk(&mut self, work: &Work, count: u64) -> Result<Option<(u64, bool)>, Fault> {
        if self.mode & (crate::core::mode::SLOW | crate::core::mode::SINGLE) != 0 || count < 2 {
            return Ok(None);
        }
        match work.kind {
            Kind::Move | Kind::Compare => self.chunk_two(work, count),
            Kind::Store => self.chunk_store(work, count),
            Kind::Scan => self.chunk_scan(work, count),
            Kind::Load | Kind::In | Kind::Out => Ok(None),
        }
    }

    fn chunk_store(&mut self, work: &Work, count: u64) -> Result<Option<(u64, bool)>, Fault> {
        let to = self.target_linear(work, true)?;
        let n = count.min(self.room(to, work)).min(self.segment_room(seg::ES as u8, RDI, work));
        if n < 2 {
            return Ok(None);
        }
        let Some((page, watch)) = self.page_to_write(to)? else { return Ok(None) };
        let size = work.size;
        let bytes = n as usize * size;
        let back = if self.st.rflags & DF != 0 { bytes - size } else { 0 };
        let start = (to & 0xfff) as usize - back;
        let value = self.reg(0, size).to_le_bytes();
        if value[..size].iter().all(|&b| b == value[0]) {
            page.fill(start, bytes, value[0]);
        } else {
            // Eight bytes at a time hold whole elements.
            let mut wide = [0; 8];
            for (k, byte) in wide.iter_mut().enumerate() {
                *byte = value[k % size];
            }
            page.fill_words(start, bytes / 8, u64::from_le_bytes(wide));
            page.write(start + bytes / 8 * 8, &wide[..bytes % 8]);
        }
        self.watch_write(watch, to - back as u64, bytes);
        self.advance(RDI, work, n);
        Ok(Some((n, false)))
    }

    fn chunk_scan(&mut self, work: &Work, count: u64) -> Result<Option<(u64, bool)>, Fault> {
        let at = self.target_linear(work, false)?;
        let n = count.min(self.room(at, work)).min(self.segment_room(seg::ES as u8, RDI, work));
        if n < 2 {
            return Ok(None);
        }
        let Some(page) = self.page_to_read(at)? else { return Ok(None) };
        let a = self.reg(0, work.size);
        let step = if self.st.rflags & DF != 0 { -(work.size as isize) } else { work.size as isize };
        let mut offset = (at & 0xfff) as isize;
        for k in 1..=n {
            let b = page_load(page, offset as usize, work.size);
            offset += step;
            if (a == b) != work.while_zero || k == n {
                self.advance(RDI, work, k);
                return Ok(Some((k, self.compared(a, b, work))));
            }
        }
        Ok(None)
    }

    fn chunk_two(&mut self, work: &Work, count: u64) -> Result<Option<(u64, bool)>, Fault> {
        let moving = work.kind == Kind::Move;
        // Faults of the two sides come in the order in which single elements meet them.
        let (Ok(from), Ok(to)) = (self.source_linear(work), self.target_linear(work, moving)) else {
            return Ok(None);
        };
        let n = count
            .min(self.room(from, work))
            .min(self.room(to, work))
            .min(self.segment_room(work.source, RSI, work))
            .min(self.segment_room(seg::ES as u8, RDI, work));
        if n < 2 {
            return Ok(None);
        }
        let Some(source) = self.page_to_read(from)? else { return Ok(None) };
        let (target, watch) = if moving {
            let Some((page, watch)) = self.page_to_write(to)? else { return Ok(None) };
            (page, Some(watch))
        } else {
            let Some(page) = self.page_to_read(to)? else { return Ok(None) };
            (page, None)
        };
        let size = work.size;
        let (a, b) = ((from & 0xfff) as usize, (to & 0xfff) as usize);
        let down = self.st.rflags & DF != 0;
        if !moving {
            let step = if down { -(size as isize) } else { size as isize };
            let (mut a, mut b) = (a as isize, b as isize);
            for k in 1..=n {
                let (x, y) = (page_load(source, a as usize, size), page_load(target, b as usize, size));
                (a, b) = (a + step, b + step);
                if (x == y) != work.while_zero || k == n {
                    self.advance(RSI, work, k);
                    self.advance(RDI, work, k);
                    return Ok(Some((k, self.compared(x, y, work))));
                }
            }
            return Ok(None);
        }
        let bytes = n as usize * size;
        let back = if down { bytes - size } else { 0 };
        let (a_low, b_low) = (a - back, b - back);
        let overlaps = source == target
            && if down { b_low < a_low && a_low < b_low + bytes } else { a < b && b < a + bytes };
        if overlaps {
            // The target overtakes the source: each element must see the earlier ones.
            for k in 0..n as usize {
                let (x, y) = if down { (a - k * size, b - k * size) } else { (a + k * size, b + k * size) };
                let value = page_load(source, x, size);
                crate::memory_access::page_store(target, y, size, value);
            }
        } else {
            target.copy_from(b_low, source, a_low, bytes);
        }
        if let Some(watch) = watch {
            self.watch_write(watch, to - back as u64, bytes);
        }
        self.advance(RSI, work, n);
        self.advance(RDI, work, n);
        Ok(Some((n, false)))
    }
}
