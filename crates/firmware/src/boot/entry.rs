//! The processor state in which kernels are entered: flat protected mode, or long mode with
//! the first 4 GiB mapped one to one.

use super::place;
use super::plan::Protocol;
use cpu::CpuState;
use cpu::state::{Segment, TableRegister, seg};

#[derive(Clone, Debug)]
pub struct Entry {
    pub protocol: Protocol,
    pub rip: u64,
    /// (index, value) of general registers; the others are zero.
    pub registers: Vec<(usize, u64)>,
}

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
/// Access bytes as in [`Segment::access`].
const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA32: u16 = 0xc093;
const TSS32: u16 = 0x008b;

impl Entry {
    fn long(&self) -> bool {
        self.protocol == Protocol::Linux64
    }

    fn segments(&self) -> (Segment, Segment, Segment) {
        let code = if self.long() { CODE64 } else { CODE32 };
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        let task = Segment { selector: TASK, base: 0, limit: 0x67, access: TSS32 };
        (flat(CODE, code), flat(DATA, DATA32), task)
    }

    /// Memory that the state refers to: name, address, bytes.
    pub fn tables(&self) -> Vec<(&'static str, u64, Vec<u8>)> {
        let (code, data, task) = self.segments();
        let words = [0, 0, descriptor(code), descriptor(data), descriptor(task)];
        let mut tables = vec![("GDT", place::GDT, words.into_iter().flat_map(u64::to_le_bytes).collect())];
        if self.long() {
            tables.push(("page tables", place::PAGE_TABLES, identity_map()));
        }
        tables
    }

    pub fn apply(&self, state: &mut CpuState) {
        const PE_ET: u64 = 0x11;
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const LME_LMA: u64 = 0x500;
        let (code, data, task) = self.segments();
        state.gpr = [0; 16];
        for &(index, value) in &self.registers {
            state.gpr[index] = value;
        }
        state.rip = self.rip;
        state.rflags = 2;
        state.seg = [data; 6];
        state.seg[seg::CS] = code;
        state.tr = task;
        state.gdtr = TableRegister { base: place::GDT, limit: 5 * 8 - 1 };
        state.idtr = TableRegister { base: 0, limit: 0 };
        state.cr0 = PE_ET;
        state.a20 = true;
        if self.long() {
            state.cr0 |= PG;
            state.cr3 = place::PAGE_TABLES;
            state.cr4 = PAE;
            state.efer = LME_LMA;
        }
    }
}

/// A descriptor (SDM vol. 3A §3.4.5) of a segment at base 0.
fn descriptor(segment: Segment) -> u64 {
    let limit = if segment.access & 0x8000 != 0 { segment.limit >> 12 } else { segment.limit };
    let limit = u64::from(limit);
    (limit & 0xffff) | u64::from(segment.access) << 40 | (limit >> 16 & 0xf) << 48
}

/// Four-level tables for 4 GiB in 2 MiB pages: PML4, PDPT and four directories in a row.
fn identity_map() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut entries = vec![0u64; 6 * 512];
    entries[0] = (place::PAGE_TABLES + 0x1000) | PRESENT_WRITABLE;
    for gigabyte in 0..4 {
        entries[512 + gigabyte] = (place::PAGE_TABLES + 0x2000 + 0x1000 * gigabyte as u64) | PRESENT_WRITABLE;
    }
    for (page, entry) in entries[1024..].iter_mut().enumerate() {
        *entry = (page as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}
