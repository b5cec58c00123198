//! Where two outcomes differ.

use crate::case::{Case, Outcome, layout};
use crate::liberties::Liberties;

/// One difference: what, on the silicon, in the engine.
pub type Difference = (String, String, String);

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const BREAKPOINT: u64 = 3;
const PAGE_FAULT: u64 = 14;
/// Arithmetic flags, DF, TF, NT, AC, ID.
const FLAGS: u64 = 0x24_4dd5;

fn hex(words: &[u64]) -> String {
    words.iter().rev().map(|w| format!("{w:016x}")).collect::<Vec<_>>().join("_")
}

/// What differs beyond what the architecture leaves open.
pub fn compare(case: &Case, silicon: &Outcome, engine: &Outcome) -> Vec<Difference> {
    let mut list = Vec::new();
    let mut check = |what: &str, a: u64, b: u64| {
        if a != b {
            list.push((what.to_owned(), format!("{a:#x}"), format!("{b:#x}")));
        }
    };
    let open = Liberties::of(case, silicon, engine);
    if open.all {
        return list;
    }
    if open.fault {
        check("rip", silicon.registers.rip, engine.registers.rip);
        return list;
    }
    let through = silicon.vector == BREAKPOINT || silicon.registers.rip != case.registers.rip;
    check("vector", silicon.vector, engine.vector);
    if silicon.vector != engine.vector {
        return list;
    }
    let (a, b) = (&silicon.registers, &engine.registers);
    check("rip", a.rip, b.rip);
    // Without the address it is open which of two pages faulted.
    if has_error_code(silicon.vector) && case.address_mask != 0 {
        check("error code", error_code(silicon), error_code(engine));
    }
    if silicon.vector == PAGE_FAULT {
        let mask = if open.offset { case.address_mask & !0xfff } else { case.address_mask };
        check("cr2", silicon.address & mask, engine.address & mask);
    }
    if case.undefined_result != 0 {
        return list;
    }
    let undefined = match silicon.vector {
        BREAKPOINT => case.undefined_flags,
        _ if open.flags => FLAGS,
        _ if through => case.undefined_flags | case.undefined_midway,
        _ => 0,
    };
    let flags = FLAGS & !undefined;
    check("rflags", a.rflags & flags, b.rflags & flags);
    for (n, (a, b)) in a.gpr.iter().zip(&b.gpr).enumerate() {
        let mask = if open.halves && matches!(n, 1 | 6 | 7) { 0xffff_ffff } else { u64::MAX };
        check(NAMES[n], a & mask, b & mask);
    }
    if !open.mxcsr {
        check("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    }
    check("fcw", a.fcw.into(), b.fcw.into());
    if !open.x87 {
        check("fsw", a.fsw.into(), b.fsw.into());
        check("ftw", a.ftw.into(), b.ftw.into());
    }
    for (i, (a, b)) in a.opmask.iter().zip(&b.opmask).enumerate() {
        check(&format!("k{i}"), *a, *b);
    }
    for (i, (a, b)) in a.zmm.iter().zip(&b.zmm).enumerate() {
        let (a, b) = (gather_mask(case, i, through, a), gather_mask(case, i, through, b));
        if a != b && !open.vectors.contains(&Some(i)) {
            list.push((format!("zmm{i}"), hex(&a), hex(&b)));
        }
    }
    for (i, (a, b)) in a.st.iter().zip(&b.st).enumerate() {
        if a[..10] != b[..10] && !open.x87 {
            list.push((format!("st{i}"), format!("{:02x?}", &a[..10]), format!("{:02x?}", &b[..10])));
        }
    }
    if !open.memory {
        memory(case, silicon, engine, &mut list);
    }
    list
}

/// Linux says "present" of all addresses beyond a process's.
fn error_code(outcome: &Outcome) -> u64 {
    if outcome.vector == PAGE_FAULT && outcome.address >= 0x7fff_ffff_f000 {
        outcome.error_code | 1
    } else {
        outcome.error_code
    }
}

fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// After a fault in a gather, clear mask elements that were passed may have been zeroed.
fn gather_mask(case: &Case, register: usize, through: bool, value: &[u64; 8]) -> [u64; 8] {
    if through || case.gather_mask & 0xff != register as u64 + 1 {
        return *value;
    }
    let bits = (case.gather_mask >> 8) as u32;
    let keep = |word: u64| {
        (0..64).step_by(bits as usize).fold(0, |kept, at| {
            let element = word >> at & (u64::MAX >> (64 - bits));
            if element >> (bits - 1) != 0 { kept | element << at } else { kept }
        })
    };
    value.map(keep)
}

fn memory(case: &Case, silicon: &Outcome, engine: &Outcome, list: &mut Vec<Difference>) {
    if silicon.memory == engine.memory {
        return;
    }
    let open = |at: usize| {
        let address = layout::DATA + at as u64;
        case.open_memory.iter().any(|(start, len)| address.wrapping_sub(*start) < *len)
    };
    let differs = |at: &usize| silicon.memory[*at] != engine.memory[*at] && !open(*at);
    if let Some(at) = (0..silicon.memory.len()).find(differs) {
        let end = (at + 16).min(silicon.memory.len());
        list.push((
            format!("memory at data+{at:#x}"),
            format!("{:02x?}", &silicon.memory[at..end]),
            format!("{:02x?}", &engine.memory[at..end]),
        ));
    }
}
