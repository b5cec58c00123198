//! Registers as gdb sees them: those of its i386 features, then system registers.

use cpu::CpuState;
use cpu::state::{Segment, seg};
use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use std::sync::OnceLock;

/// 64-bit x86 with system registers.
pub enum X86_64 {}

/// System registers, in the order in which gdb gets them.
const SYSTEM: [&str; 8] = ["fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "efer"];

/// Bytes of the registers that gdb knows itself.
const CORE: usize = 0x218;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    core: X86_64CoreRegs,
    system: [u64; SYSTEM.len()],
}

impl Registers for Regs {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write);
        self.system.iter().flat_map(|value| value.to_le_bytes()).for_each(|byte| write(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let (core, system) = bytes.split_at_checked(CORE).ok_or(())?;
        self.core.gdb_deserialize(core)?;
        let (words, _) = system.as_chunks::<8>();
        for (register, word) in self.system.iter_mut().zip(words) {
            *register = u64::from_le_bytes(*word);
        }
        Ok(())
    }
}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = Regs;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        static XML: OnceLock<String> = OnceLock::new();
        Some(XML.get_or_init(description))
    }
}

fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
         <architecture>i386:x86-64</architecture><feature name=\"org.gnu.gdb.i386.core\">",
    );
    let mut register = |name: &str, bits: u32, kind: &str| {
        xml += &format!("<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>");
    };
    for name in ["rax", "rbx", "rcx", "rdx", "rsi", "rdi"] {
        register(name, 64, "int64");
    }
    register("rbp", 64, "data_ptr");
    register("rsp", 64, "data_ptr");
    (8..16).for_each(|number| register(&format!("r{number}"), 64, "int64"));
    register("rip", 64, "code_ptr");
    register("eflags", 32, "int32");
    ["cs", "ss", "ds", "es", "fs", "gs"].into_iter().for_each(|name| register(name, 32, "int32"));
    (0..8).for_each(|number| register(&format!("st{number}"), 80, "i387_ext"));
    for name in ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"] {
        register(name, 32, "int");
    }
    xml += "</feature><feature name=\"org.gnu.gdb.i386.sse\">\
            <vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>\
            <vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
            <vector id=\"v16i8\" type=\"int8\" count=\"16\"/>\
            <vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
            <vector id=\"v4i32\" type=\"int32\" count=\"4\"/>\
            <vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\
            <union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/>\
            <field name=\"v2_double\" type=\"v2d\"/><field name=\"v16_int8\" type=\"v16i8\"/>\
            <field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>\
            <field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>";
    let mut register = |name: &str, bits: u32, kind: &str| {
        xml += &format!("<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>");
    };
    (0..16).for_each(|number| register(&format!("xmm{number}"), 128, "vec128"));
    register("mxcsr", 32, "int");
    xml += "</feature><feature name=\"org.gnu.gdb.i386.segments\">";
    for (number, name) in SYSTEM.into_iter().enumerate() {
        if number == 2 {
            xml += "</feature><feature name=\"org.ryokan.x86.system\">";
        }
        xml += &format!("<reg name=\"{name}\" bitsize=\"64\" type=\"int64\"/>");
    }
    xml += "</feature></target>";
    xml
}

/// gdb's order of the general registers, as indices in encoding order.
const GPRS: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];

fn extended(bytes: &[u8; 16]) -> [u8; 10] {
    std::array::from_fn(|at| bytes[at])
}

/// The full x87 tag word of FXSAVE's abridged one (SDM vol. 1 §8.1.7 and §10.5.1).
fn full_tags(state: &CpuState) -> u16 {
    let top = usize::from(state.fpu.fsw >> 11 & 7);
    (0..8).fold(0, |tags, physical| {
        let value = extended(&state.fpu.st[(physical + 8 - top) & 7]);
        let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
        let fraction = &value[..8];
        let tag = if state.fpu.ftw & 1 << physical == 0 {
            3
        } else if exponent == 0 && fraction.iter().all(|&byte| byte == 0) {
            1
        } else if exponent == 0 || exponent == 0x7fff || fraction[7] & 0x80 == 0 {
            2
        } else {
            0
        };
        tags | tag << (physical * 2)
    })
}

impl Regs {
    pub fn from_state(state: &CpuState) -> Regs {
        let mut regs = Regs::default();
        let core = &mut regs.core;
        core.regs = GPRS.map(|index| state.gpr[index]);
        core.rip = state.rip;
        core.eflags = state.rflags as u32;
        let selector = |index: usize| u32::from(state.seg[index].selector);
        core.segments.cs = selector(seg::CS);
        core.segments.ss = selector(seg::SS);
        core.segments.ds = selector(seg::DS);
        core.segments.es = selector(seg::ES);
        core.segments.fs = selector(seg::FS);
        core.segments.gs = selector(seg::GS);
        let fpu = &state.fpu;
        core.st = std::array::from_fn(|at| extended(&fpu.st[at]));
        core.fpu.fctrl = fpu.fcw.into();
        core.fpu.fstat = fpu.fsw.into();
        core.fpu.ftag = full_tags(state).into();
        core.fpu.fiseg = fpu.fcs.into();
        core.fpu.fioff = fpu.fip as u32;
        core.fpu.foseg = fpu.fds.into();
        core.fpu.fooff = fpu.fdp as u32;
        core.fpu.fop = fpu.fop.into();
        core.xmm = std::array::from_fn(|at| {
            let [low, high, ..] = fpu.ymm[at];
            u128::from(high) << 64 | u128::from(low)
        });
        core.mxcsr = fpu.mxcsr;
        regs.system = [
            state.seg[seg::FS].base,
            state.seg[seg::GS].base,
            state.msr.kernel_gs_base,
            state.cr0,
            state.cr2,
            state.cr3,
            state.cr4,
            state.efer,
        ];
        regs
    }

    /// Puts what the debugger changed into `state`. Selectors of a processor in real mode
    /// take their base with them.
    pub fn put_into(&self, state: &mut CpuState) {
        let core = &self.core;
        for (&value, index) in core.regs.iter().zip(GPRS) {
            state.gpr[index] = value;
        }
        state.rip = core.rip;
        state.rflags = u64::from(core.eflags) | 2;
        let segments = &core.segments;
        for (index, selector) in [
            (seg::CS, segments.cs),
            (seg::SS, segments.ss),
            (seg::DS, segments.ds),
            (seg::ES, segments.es),
            (seg::FS, segments.fs),
            (seg::GS, segments.gs),
        ] {
            let selector = selector as u16;
            if state.seg[index].selector != selector {
                let old = state.seg[index];
                let real = state.cr0 & 1 == 0;
                let base = if real { u64::from(selector) << 4 } else { old.base };
                state.seg[index] = Segment { selector, base, ..old };
            }
        }
        let fpu = &mut state.fpu;
        for (to, from) in fpu.st.iter_mut().zip(&core.st) {
            to[..10].copy_from_slice(from);
        }
        fpu.fcw = core.fpu.fctrl as u16;
        fpu.fsw = core.fpu.fstat as u16;
        fpu.ftw =
            (0..8).filter(|tag| core.fpu.ftag >> (tag * 2) & 3 != 3).fold(0, |tags, tag| tags | 1 << tag);
        fpu.fcs = core.fpu.fiseg as u16;
        fpu.fip = fpu.fip & !0xffff_ffff | u64::from(core.fpu.fioff);
        fpu.fds = core.fpu.foseg as u16;
        fpu.fdp = fpu.fdp & !0xffff_ffff | u64::from(core.fpu.fooff);
        fpu.fop = core.fpu.fop as u16;
        for (to, &from) in fpu.ymm.iter_mut().zip(&core.xmm) {
            to[0] = from as u64;
            to[1] = (from >> 64) as u64;
        }
        fpu.mxcsr = core.mxcsr & 0xffff;
        let [fs, gs, kernel_gs, cr0, cr2, cr3, cr4, efer] = self.system;
        state.seg[seg::FS].base = fs;
        state.seg[seg::GS].base = gs;
        state.msr.kernel_gs_base = kernel_gs;
        (state.cr0, state.cr2, state.cr3, state.cr4, state.efer) = (cr0, cr2, cr3, cr4, efer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trip() {
        let mut state = CpuState::reset(true, 0x663);
        state.gpr = std::array::from_fn(|at| 0x1111_0000 + at as u64);
        state.fpu.fsw = 6 << 11;
        state.fpu.ftw = 0b1100_0000;
        state.fpu.st[0][9] = 0x3f;
        state.fpu.st[0][7] = 0x80;
        state.fpu.ymm[3] = [1, 2, 3, 4];
        let regs = Regs::from_state(&state);
        assert_eq!(regs.core.regs[1], 0x1111_0003, "rbx is second");
        // ST0 is physical 6 and valid, ST1 physical 7 and zero.
        assert_eq!(regs.core.fpu.ftag, 0b01_00_11_11_11_11_11_11);
        let mut bytes = Vec::new();
        regs.gdb_serialize(|byte| bytes.push(byte.unwrap()));
        assert_eq!(bytes.len(), CORE + 8 * SYSTEM.len());
        let mut again = Regs::default();
        again.gdb_deserialize(&bytes).unwrap();
        assert_eq!(again, regs);
        let mut other = state.clone();
        again.put_into(&mut other);
        assert_eq!(other, state);
        assert!(again.gdb_deserialize(&bytes[..100]).is_err());
    }

    #[test]
    fn the_description_names_every_register() {
        let xml = X86_64::target_description_xml().unwrap();
        assert_eq!(xml.matches("<reg ").count(), 16 + 2 + 6 + 8 + 8 + 16 + 1 + SYSTEM.len());
    }
}
