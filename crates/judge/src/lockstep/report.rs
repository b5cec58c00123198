//! What is said about a divergence.

use super::twin::{Passed, Round, Twin};
use cpu::CpuState;
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use serde_json::Value;

/// Where two machines went apart.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The number of the window at whose end it was noticed, from 0.
    pub window: u64,
    /// Windows after which memory was known to be the same.
    pub good: u64,
    pub text: String,
}

/// The members in which two states differ: path, first, second.
pub fn differences(a: &CpuState, b: &CpuState) -> Vec<(String, String, String)> {
    let mut list = Vec::new();
    if let (Ok(a), Ok(b)) = (serde_json::to_value(a), serde_json::to_value(b)) {
        walk("", &a, &b, &mut list);
    }
    list
}

fn walk(path: &str, a: &Value, b: &Value, list: &mut Vec<(String, String, String)>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                walk(&format!("{path}.{name}"), value, b.get(name).unwrap_or(&Value::Null), list);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                walk(&format!("{path}[{index}]"), a, b, list);
            }
        }
        _ if a != b => list.push((path.trim_start_matches('.').to_string(), shown(a), shown(b))),
        _ => {}
    }
}

fn shown(value: &Value) -> String {
    value.as_u64().map_or_else(|| value.to_string(), |number| format!("{number:#x}"))
}

/// The instruction at the state's RIP, as `machine` sees it.
pub fn instruction(machine: &Twin, state: &CpuState) -> String {
    let base = if state.is_64bit() { 0 } else { state.seg[1].base };
    let bits = match (state.is_64bit(), state.seg[1].big()) {
        (true, _) => 64,
        (_, true) => 32,
        _ => 16,
    };
    let linear = state.rip.wrapping_add(base);
    // Near the end of a page the next one may not be mapped.
    let bytes = (1..=15).rev().find_map(|len| machine.code(linear, len)).unwrap_or_default();
    let instruction = Decoder::with_ip(bits, &bytes, state.rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    format!("{:#x}: {text} ({:02x?})", state.rip, &bytes[..instruction.len().min(bytes.len())])
}

/// Registers in short.
pub fn registers(state: &CpuState) -> String {
    format!(
        "rip {:x} rflags {:x} gpr {:x?} cr2 {:x} cr3 {:x}",
        state.rip, state.rflags, state.gpr, state.cr2, state.cr3
    )
}

fn ends(window: &Passed) -> String {
    format!("{} of {} retired, halted {}", window.retired, window.asked, window.halted)
}

/// The window `index` of a round differs.
pub(super) fn windows(a: &Twin, b: &Twin, x: &Round, y: &Round, index: usize, before: u64) -> Divergence {
    let mut text = String::new();
    match (x.windows.get(index), y.windows.get(index)) {
        (Some(p), Some(q)) => {
            text.push_str(&format!("{}: {}; {}: {}\n", a.engine(), ends(p), b.engine(), ends(q)));
            for (what, p, q) in differences(&p.state, &q.state).iter().take(24) {
                text.push_str(&format!("    {what}: {p} against {q}\n"));
            }
            if let Some(before) = index.checked_sub(1).and_then(|i| x.windows.get(i)) {
                text.push_str(&format!("    the window began with {}\n", registers(&before.state)));
            }
        }
        _ => text.push_str(&format!("{} and {} windows\n", x.windows.len(), y.windows.len())),
    }
    Divergence { window: before + index as u64, good: 0, text }
}

/// Memory differs at offset `at`, processors do not.
pub(super) fn memory(a: &Twin, b: &Twin, at: u64, windows: u64) -> Divergence {
    Divergence { window: windows.saturating_sub(1), good: 0, text: memory_text(a, b, at) }
}

/// What stands at offset `at` of both memories.
pub(super) fn memory_text(a: &Twin, b: &Twin, at: u64) -> String {
    let bytes = |twin: &Twin| {
        let mut bytes = [0; 16];
        if let Ok(ram) = twin.ram() {
            let len = bytes.len().min((ram.len() - (at & !7)) as usize);
            ram.read(at & !7, &mut bytes[..len]);
        }
        bytes
    };
    format!("memory differs at {at:#x}; from {:#x}: {:02x?} against {:02x?}\n", at & !7, bytes(a), bytes(b))
}
