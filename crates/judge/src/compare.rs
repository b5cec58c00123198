//! Where two outcomes differ.

use crate::case::{Case, Outcome};

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
    let through = silicon.vector == BREAKPOINT;
    check("vector", silicon.vector, engine.vector);
    if silicon.vector != engine.vector {
        return list;
    }
    let (a, b) = (&silicon.registers, &engine.registers);
    check("rip", a.rip, b.rip);
    if has_error_code(silicon.vector) {
        check("error code", silicon.error_code, engine.error_code);
    }
    if silicon.vector == PAGE_FAULT {
        check("cr2", silicon.address, engine.address);
    }
    if case.undefined_result != 0 {
        return list;
    }
    let flags = if through { FLAGS & !case.undefined_flags } else { FLAGS };
    check("rflags", a.rflags & flags, b.rflags & flags);
    for (name, (a, b)) in NAMES.iter().zip(a.gpr.iter().zip(&b.gpr)) {
        check(name, *a, *b);
    }
    check("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    check("fcw", a.fcw.into(), b.fcw.into());
    check("fsw", a.fsw.into(), b.fsw.into());
    check("ftw", a.ftw.into(), b.ftw.into());
    for (i, (a, b)) in a.ymm.iter().zip(&b.ymm).enumerate() {
        if a != b {
            list.push((format!("ymm{i}"), hex(a), hex(b)));
        }
    }
    for (i, (a, b)) in a.st.iter().zip(&b.st).enumerate() {
        if a[..10] != b[..10] {
            list.push((format!("st{i}"), format!("{:02x?}", &a[..10]), format!("{:02x?}", &b[..10])));
        }
    }
    memory(silicon, engine, &mut list);
    list
}

fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

fn memory(silicon: &Outcome, engine: &Outcome, list: &mut Vec<Difference>) {
    if silicon.memory == engine.memory {
        return;
    }
    if let Some(at) = silicon.memory.iter().zip(&engine.memory).position(|(a, b)| a != b) {
        let end = (at + 16).min(silicon.memory.len());
        list.push((
            format!("memory at data+{at:#x}"),
            format!("{:02x?}", &silicon.memory[at..end]),
            format!("{:02x?}", &engine.memory[at..end]),
        ));
    }
}
