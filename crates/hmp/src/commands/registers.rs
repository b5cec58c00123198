use crate::Session;
use crate::parse::Args;
use base::{Result, bail, fail};
use cpu::CpuState;
use cpu::state::{Activity, FpuState, Segment, gpr, seg};
use cpu::xsave;
use std::fmt::Write;
use std::sync::atomic::Ordering;

const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;

/// The state of the session's CPU.
pub fn state(session: &Session, index: usize) -> Result<CpuState> {
    let vcpu = session.machine().vcpu(index).ok_or_else(|| fail!("No CPU available"))?;
    vcpu.with(|cpu| cpu.save())
}

fn long_code(s: &CpuState) -> bool {
    s.efer & EFER_LMA != 0 && s.seg[seg::CS].long()
}

/// 16, 32 or 64: what the CPU executes now.
pub fn code_bits(session: &Session) -> u32 {
    match state(session, session.cpu()) {
        Ok(s) if long_code(&s) => 64,
        Ok(s) if s.seg[seg::CS].big() => 32,
        Ok(_) => 16,
        Err(_) => 64,
    }
}

const GPR: [&str; 16] =
    ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// The register behind `$name` in an expression.
pub fn value(session: &Session, name: &str) -> Result<u64> {
    let s = state(session, session.cpu())?;
    let base = name.strip_prefix(['r', 'e']).unwrap_or(name);
    let general = GPR.iter().position(|&n| n == name || (n == base && !n.starts_with('r')));
    if let Some(at) = general {
        return Ok(s.gpr[at]);
    }
    let (segment, part) = name.split_once('.').unwrap_or((name, ""));
    if let Some(at) = SEGMENTS.iter().position(|&n| n == segment) {
        return match part {
            "" => Ok(u64::from(s.seg[at].selector)),
            "base" => Ok(s.seg[at].base),
            "limit" => Ok(u64::from(s.seg[at].limit)),
            _ => bail!("unknown register"),
        };
    }
    Ok(match name {
        "rip" | "eip" | "pc" => s.rip,
        "rflags" | "eflags" => s.rflags,
        "cr0" => s.cr0,
        "cr2" => s.cr2,
        "cr3" => s.cr3,
        "cr4" => s.cr4,
        "efer" => s.efer,
        _ => bail!("unknown register"),
    })
}

pub async fn cpu(session: Session, args: Args) -> Result<String> {
    let index = usize::try_from(args.need_int("index")).ok();
    match index.filter(|&i| session.machine().vcpu(i).is_some()) {
        Some(index) => {
            session.cpu.store(index, Ordering::Relaxed);
            Ok(String::new())
        }
        None => Ok("invalid CPU index\n".into()),
    }
}

pub async fn info(session: Session, args: Args) -> Result<String> {
    let machine = session.machine();
    if args.flag("a") {
        let mut out = String::new();
        for vcpu in machine.vcpus() {
            let s = vcpu.with(|cpu| cpu.save())?;
            out += &format!("\nCPU#{}\n{}", vcpu.index, dump(&s));
        }
        return Ok(out);
    }
    let index = match args.int("vcpu") {
        Some(index) => match usize::try_from(index).ok().filter(|&i| machine.vcpu(i).is_some()) {
            Some(index) => index,
            None => return Ok(format!("CPU#{index} not available\n")),
        },
        None => session.cpu(),
    };
    if machine.vcpu(index).is_none() {
        return Ok("No CPU available\n".into());
    }
    Ok(format!("\nCPU#{index}\n{}", dump(&state(&session, index)?)))
}

/// All registers of a CPU in QEMU's layout.
pub fn dump(s: &CpuState) -> String {
    let mut out = String::new();
    let wide = long_code(s);
    general(&mut out, s, wide);
    for (name, at) in [("ES", 0), ("CS", 1), ("SS", 2), ("DS", 3), ("FS", 4), ("GS", 5)] {
        segment(&mut out, s, name, &s.seg[at], wide);
    }
    segment(&mut out, s, "LDT", &s.ldtr, wide);
    segment(&mut out, s, "TR", &s.tr, wide);
    let width = if wide { 16 } else { 8 };
    for (name, table) in [("GDT", &s.gdtr), ("IDT", &s.idtr)] {
        let _ = writeln!(out, "{name}=     {:0width$x} {:08x}", table.base, table.limit);
    }
    let (cr2, cr3) = (s.cr2, s.cr3);
    let cr4_width = if wide { 8 } else { width };
    let _ =
        writeln!(out, "CR0={:08x} CR2={cr2:0width$x} CR3={cr3:0width$x} CR4={:0cr4_width$x}", s.cr0, s.cr4);
    for at in 0..4 {
        let _ = write!(out, "DR{at}={:016x} ", s.dr[at]);
    }
    let _ = writeln!(out, "\nDR6={:016x} DR7={:016x}", s.dr[6], s.dr[7]);
    let _ = writeln!(out, "EFER={:016x}", s.efer);
    fpu(&mut out, s, wide);
    out
}

fn general(out: &mut String, s: &CpuState, wide: bool) {
    let order = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI, gpr::RBP, gpr::RSP];
    let names = ["AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP"];
    let letter = if wide { 'R' } else { 'E' };
    let width = if wide { 16 } else { 8 };
    let show = |value: u64| if wide { value } else { value & 0xffff_ffff };
    for (at, (name, index)) in names.iter().zip(order).enumerate() {
        let end = if at % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(out, "{letter}{name}={:0width$x}{end}", show(s.gpr[index]));
    }
    if wide {
        for at in 8..16 {
            let end = if at % 4 == 3 { '\n' } else { ' ' };
            let _ = write!(out, "{:<3}={:016x}{end}", format!("R{at}"), s.gpr[at]);
        }
    }
    let flags: String = [(10, 'D'), (11, 'O'), (7, 'S'), (6, 'Z'), (4, 'A'), (2, 'P'), (0, 'C')]
        .iter()
        .map(|&(bit, letter)| if s.rflags >> bit & 1 != 0 { letter } else { '-' })
        .collect();
    let names = if wide { ("RIP", "RFL") } else { ("EIP", "EFL") };
    let halted = matches!(s.activity, Activity::Halted | Activity::WaitForSipi);
    let _ = writeln!(
        out,
        "{}={:0width$x} {}={:08x} [{flags}] CPL={} II={} A20={} SMM=0 HLT={}",
        names.0,
        show(s.rip),
        names.1,
        s.rflags & 0xffff_ffff,
        if s.cr0 & CR0_PE == 0 { 0 } else { s.seg[seg::SS].dpl() },
        u8::from(s.interrupt_shadow),
        u8::from(s.a20),
        u8::from(halted),
    );
}

/// Names of system segment and gate types outside and inside of IA-32e mode (SDM vol. 3A §3.5,
/// table 3-2).
const SYSTEM_TYPES: [[&str; 16]; 2] = [
    [
        "Reserved",
        "TSS16-avl",
        "LDT",
        "TSS16-busy",
        "CallGate16",
        "TaskGate",
        "IntGate16",
        "TrapGate16",
        "Reserved",
        "TSS32-avl",
        "Reserved",
        "TSS32-busy",
        "CallGate32",
        "Reserved",
        "IntGate32",
        "TrapGate32",
    ],
    [
        "<hiword>",
        "Reserved",
        "LDT",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "TSS64-avl",
        "Reserved",
        "TSS64-busy",
        "CallGate64",
        "Reserved",
        "IntGate64",
        "TrapGate64",
    ],
];

fn segment(out: &mut String, s: &CpuState, name: &str, segment: &Segment, wide: bool) {
    // As in the upper half of a descriptor: access byte at 8, flags at 20.
    let flags = u32::from(segment.access & 0xff) << 8 | u32::from(segment.access & 0xf000) << 8;
    let width = if wide { 16 } else { 8 };
    let base = if wide { segment.base } else { segment.base & 0xffff_ffff };
    let _ =
        write!(out, "{name:<3}={:04x} {base:0width$x} {:08x} {flags:08x}", segment.selector, segment.limit);
    if s.cr0 & CR0_PE != 0 && segment.present() {
        let long_mode = s.efer & EFER_LMA != 0;
        let kind = segment.kind();
        let letter = |bit: u8, on: char| if kind & bit != 0 { on } else { '-' };
        let _ = write!(out, " DPL={} ", segment.dpl());
        if !segment.is_code_or_data() {
            out.push_str(SYSTEM_TYPES[usize::from(long_mode)][usize::from(kind)]);
        } else if kind & 8 != 0 {
            let size = match (segment.long(), segment.big()) {
                (true, _) => "CS64",
                (false, true) => "CS32",
                (false, false) => "CS16",
            };
            let _ = write!(out, "{size} [{}{}{}]", letter(4, 'C'), letter(2, 'R'), letter(1, 'A'));
        } else {
            let size = if segment.big() || long_mode { "DS  " } else { "DS16" };
            let _ = write!(out, "{size} [{}{}{}]", letter(4, 'E'), letter(2, 'W'), letter(1, 'A'));
        }
    }
    out.push('\n');
}

fn fpu(out: &mut String, s: &CpuState, wide: bool) {
    let f = &s.fpu;
    let top = usize::from(f.fsw >> 11 & 7);
    let _ = writeln!(
        out,
        "FCW={:04x} FSW={:04x} [ST={top}] FTW={:02x} MXCSR={:08x}",
        f.fcw, f.fsw, f.ftw, f.mxcsr
    );
    for physical in 0..8 {
        // FPR are the physical registers; the state has them relative to TOP.
        let st = f.st[(physical + 8 - top) % 8];
        let mantissa = u64::from_le_bytes([st[0], st[1], st[2], st[3], st[4], st[5], st[6], st[7]]);
        let exponent = u16::from_le_bytes([st[8], st[9]]);
        let end = if physical % 2 == 1 { '\n' } else { ' ' };
        let _ = write!(out, "FPR{physical}={mantissa:016x} {exponent:04x}{end}");
    }
    let count = if wide { 16 } else { 8 };
    if s.xcr0 & xsave::AVX512 != 0 {
        return avx512(out, f, count);
    }
    for (at, ymm) in f.ymm.iter().take(count).enumerate() {
        if s.xcr0 & 4 != 0 {
            let _ =
                writeln!(out, "YMM{at:02}={:016x} {:016x} {:016x} {:016x}", ymm[3], ymm[2], ymm[1], ymm[0]);
        } else {
            let end = if at % 2 == 1 { '\n' } else { ' ' };
            let _ = write!(out, "XMM{at:02}={:016x} {:016x}{end}", ymm[1], ymm[0]);
        }
    }
}

/// Opmasks and ZMM registers; outside of 64-bit mode only the lower eight.
fn avx512(out: &mut String, f: &FpuState, low: usize) {
    let more = &f.avx512;
    for (at, mask) in more.opmask.iter().enumerate() {
        let end = if at % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(out, "Opmask{at:02}={mask:016x}{end}");
    }
    let lower = f.ymm.iter().zip(&more.zmm_hi256).take(low).map(|(ymm, high)| [*ymm, *high].concat());
    let upper = more.hi16_zmm.iter().filter(|_| low == 16).map(|words| words.to_vec());
    for (at, words) in lower.chain(upper).enumerate() {
        let text: Vec<String> = words.iter().rev().map(|word| format!("{word:016x}")).collect();
        let _ = writeln!(out, "ZMM{at:02}={}", text.join(" "));
    }
}
