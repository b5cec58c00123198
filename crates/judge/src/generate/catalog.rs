//! Which encodings can be judged.

use cpu::cpuid::CpuidTable;
use cpu::models::{Features, Offer, Request, Topology, executes, software_features};
use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};
use std::sync::OnceLock;

/// A family of encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Integer,
    String,
    X87,
    Mmx,
    Sse,
    /// VEX: AVX, AVX2, FMA, BMI and the rest.
    Vex,
    /// AVX-512, opmask instructions included.
    Evex,
}

impl Family {
    pub const ALL: [Family; 7] =
        [Family::Integer, Family::String, Family::X87, Family::Mmx, Family::Sse, Family::Vex, Family::Evex];

    fn of(code: Code) -> Family {
        let opcode = code.op_code();
        let kinds = || (0..opcode.op_count()).map(|i| opcode.op_kind(i));
        let string = |k| matches!(k, OpCodeOperandKind::seg_rSI | OpCodeOperandKind::es_rDI);
        let mm = |k| {
            matches!(k, OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_rm | OpCodeOperandKind::mm_or_mem)
        };
        let xmm = |k| {
            matches!(
                k,
                OpCodeOperandKind::xmm_reg | OpCodeOperandKind::xmm_rm | OpCodeOperandKind::xmm_or_mem
            )
        };
        let avx512 = |f: &CpuidFeature| format!("{f:?}").starts_with("AVX512");
        if code.encoding() == EncodingKind::EVEX || code.cpuid_features().iter().any(avx512) {
            Family::Evex
        } else if code.encoding() == EncodingKind::VEX {
            Family::Vex
        } else if kinds().any(string) {
            Family::String
        } else if kinds().any(xmm) {
            Family::Sse
        } else if kinds().any(mm) || code.mnemonic() == Mnemonic::Emms {
            Family::Mmx
        } else if code.cpuid_features().iter().any(|f| format!("{f:?}").starts_with("FPU")) {
            Family::X87
        } else {
            Family::Integer
        }
    }
}

/// CPUID that host and engines have in common.
fn table() -> &'static CpuidTable {
    static TABLE: OnceLock<CpuidTable> = OnceLock::new();
    TABLE.get_or_init(|| {
        let features = software_features(cpu_host::host_supports).intersection(&cpu_host::host_features());
        let offer = Offer { engine: "judge".into(), features, host: None, phys_bits: 40 };
        let model = Request::parse("max").and_then(|r| r.resolve(&offer));
        model.map(|m| m.table(&Topology::default(), 0)).unwrap_or_default()
    })
}

/// Instructions whose result depends on the machine, not on the case, or that would take the
/// child out of its sandbox.
fn is_excluded(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            | M::Cpuid
            | M::Rdrand
            | M::Rdseed
            | M::Rdpid
            | M::Rdpru
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Verr
            | M::Verw
            | M::Lar
            | M::Lsl
            | M::Xgetbv
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Lss
            | M::Lds
            | M::Les
            | M::Lfs
            | M::Lgs
            | M::Int1
            | M::Xabort
            | M::Xbegin
            | M::Xend
            | M::Xtest
            | M::Monitor
            | M::Mwait
            | M::Monitorx
            | M::Mwaitx
            | M::Umonitor
            | M::Rsm
            | M::Getsec
    ) || is_state_image(mnemonic)
}

/// Images whose contents depend on what else the processor has.
fn is_state_image(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}").to_lowercase();
    name.starts_with("xsave")
        || name.starts_with("xrstor")
        || matches!(name.as_str(), "frstpm" | "fnsetpm" | "fsetpm" | "fstenv" | "fsave")
}

fn is_segment(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
}

/// Whether this encoding may be run.
pub fn usable(code: Code, bits: u32) -> bool {
    let opcode = code.op_code();
    if code == Code::INVALID
        || !(if bits == 64 { opcode.mode64() } else { opcode.mode32() })
        || !opcode.is_instruction()
        || is_excluded(code.mnemonic())
    {
        return false;
    }
    if !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::EVEX) {
        return false;
    }
    // Vendors differ: how long UD0 and UD1 are, and what 66 does to near branches.
    let vendor =
        bits == 64 && !opcode.intel_decoder64() || matches!(code.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1);
    let narrow = matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16);
    if vendor || narrow || opcode.is_reserved_nop() {
        return false;
    }
    let kinds = (0..opcode.op_count()).map(|i| opcode.op_kind(i));
    for kind in kinds {
        use OpCodeOperandKind as K;
        if matches!(
            kind,
            K::farbr2_2
                | K::farbr4_2
                | K::tr_reg
                | K::mem_mpx
                | K::mem_mib
                | K::sibmem
                | K::bnd_reg
                | K::br16_1
                | K::br16_2
        ) {
            return false;
        }
    }
    // Loads of segment registers: selectors are the operating system's.
    let first = opcode.op_kind(0);
    if matches!(first, OpCodeOperandKind::seg_reg) || code.mnemonic() == Mnemonic::Pop && is_segment(first) {
        return false;
    }
    match code.flow_control() {
        FlowControl::Next
        | FlowControl::UnconditionalBranch
        | FlowControl::ConditionalBranch
        | FlowControl::Call
        | FlowControl::Exception => {}
        FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => {
            if code.is_jmp_far()
                || code.is_call_far()
                || code.is_jmp_far_indirect()
                || code.is_call_far_indirect()
            {
                return false;
            }
            if matches!(
                code.mnemonic(),
                Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Uiret
            ) {
                return false;
            }
        }
        _ => return false,
    }
    let features = Features::of_table(table());
    code.cpuid_features().iter().all(|&f| executes(&features, f))
}

pub fn codes(families: &[Family], bits: u32) -> Vec<Code> {
    Code::values().filter(|&code| usable(code, bits) && families.contains(&Family::of(code))).collect()
}
