//! IRETQ and INVLPG out of translated code do what the interpreter does.

use super::{CODE, Guest, STACK};
use cpu::CpuState;
use cpu::state::Segment;
use cpu_interpreter::testing::long_mode_state;
use memory::AddressSpace;

const GDT: u64 = 0x7000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x5_0000;
const FRAME: u64 = 0x4_0000;
const TARGET: u64 = CODE + 0x400;
const HANDLERS: u64 = CODE + 0x600;

/// 64-bit code and data of rings 0 and 3, not accessed ones, and what must not be returned to.
const DESCRIPTORS: [u64; 12] = [
    0,
    0xaf_9b00_0000_ffff,
    0xcf_9300_0000_ffff,
    0xaf_fb00_0000_ffff,
    0xcf_f300_0000_ffff,
    0xaf_fa00_0000_ffff,
    0xcf_f200_0000_ffff,
    // Conforming code; code of 32 bits; code that is not present; data that is read-only.
    0xaf_ff00_0000_ffff,
    0xcf_fb00_0000_ffff,
    0xaf_7b00_0000_ffff,
    0xcf_f100_0000_ffff,
    0xef_fb00_0000_ffff,
];

/// A return: where from, and what is on the stack.
struct Case {
    state: CpuState,
    stack: u64,
    frame: [u64; 5],
}

impl Case {
    /// To `level`, with interrupts on.
    fn to(level: u64) -> Case {
        let mut state = long_mode_state(CODE, STACK, 0);
        (state.gdtr.base, state.gdtr.limit) = (GDT, (8 * DESCRIPTORS.len() - 1) as u16);
        (state.idtr.base, state.idtr.limit) = (IDT, 0xfff);
        state.tr = Segment { selector: 0x60, base: TSS, limit: 0x67, access: 0x8b };
        let (cs, ss) = if level == 0 { (8, 0x10) } else { (0x1b, 0x23) };
        Case { state, stack: FRAME, frame: [TARGET, cs, 0x202, STACK - 0x100, ss] }
    }

    fn with(mut self, change: impl FnOnce(&mut Case)) -> Case {
        change(&mut self);
        self
    }

    fn prepare(&self, memory: &AddressSpace) {
        DESCRIPTORS.iter().enumerate().for_each(|(n, d)| memory.store(GDT + 8 * n as u64, 8, *d));
        self.frame.iter().enumerate().for_each(|(n, word)| memory.store(self.stack + 8 * n as u64, 8, *word));
        memory.store(TSS + 4, 8, STACK);
        memory.store(TARGET, 1, 0xf4);
        for vector in 0..32 {
            let handler = HANDLERS + vector;
            memory.store(handler, 1, 0xf4);
            memory.store(
                IDT + 16 * vector,
                8,
                handler & 0xffff | 8 << 16 | 0x8e00 << 32 | handler >> 16 << 48,
            );
            memory.store(IDT + 16 * vector + 8, 8, 0);
        }
    }

    /// All that can be seen of it in the end.
    fn outcome(&self, guest: &mut Guest) -> String {
        self.prepare(&guest.memory);
        let mut state = self.state.clone();
        state.gpr[4] = self.stack;
        guest.vcpu.load(&state).unwrap();
        let end = guest.run();
        let words: Vec<u64> = (1..8).map(|n| guest.memory.load(STACK - 8 * n, 8)).collect();
        let gdt: Vec<u64> =
            (0..DESCRIPTORS.len() as u64).map(|n| guest.memory.load(GDT + 8 * n, 8)).collect();
        format!(
            "{:x?} {:#x} {:#x} {:x?} {} {:x} {} {words:x?} {gdt:x?}",
            end.gpr,
            end.rip,
            end.rflags,
            end.seg,
            end.cpl(),
            end.cr2,
            end.nmi_blocked
        )
    }
}

fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("to ring 0", Case::to(0)),
        ("to ring 0, no stack segment", Case::to(0).with(|c| c.frame[4] = 0)),
        ("to ring 3", Case::to(3)),
        ("to ring 3, no stack segment", Case::to(3).with(|c| c.frame[4] = 3)),
        ("not accessed", Case::to(3).with(|c| (c.frame[1], c.frame[4]) = (0x2b, 0x33))),
        ("conforming", Case::to(3).with(|c| c.frame[1] = 0x3b)),
        ("to 32 bits", Case::to(3).with(|c| c.frame[1] = 0x43)),
        ("not present", Case::to(3).with(|c| c.frame[1] = 0x4b)),
        ("stack that is read-only", Case::to(3).with(|c| c.frame[4] = 0x53)),
        ("both sizes", Case::to(3).with(|c| c.frame[1] = 0x5b)),
        ("other privilege of the stack", Case::to(3).with(|c| c.frame[4] = 0x10)),
        ("other privilege of the selector", Case::to(3).with(|c| c.frame[1] = 0x18)),
        ("selector beyond the table", Case::to(3).with(|c| c.frame[1] = 0x7b)),
        ("selector of the LDT", Case::to(3).with(|c| c.frame[1] = 0x1f)),
        ("no code segment", Case::to(0).with(|c| c.frame[1] = 0)),
        ("data as code", Case::to(0).with(|c| c.frame[1] = 0x10)),
        (
            "upper bits of selectors",
            Case::to(3).with(|c| (c.frame[1], c.frame[4]) = (0xffff_001b, 1 << 40 | 0x23)),
        ),
        ("strange address", Case::to(0).with(|c| c.frame[0] = 1 << 47)),
        ("strange address in ring 3", Case::to(3).with(|c| c.frame[0] = 0x8000_0000_0000_0000)),
        ("strange stack", Case::to(0).with(|c| c.frame[3] = 0x1234_5678_9abc_def0)),
        ("all flags but TF", Case::to(0).with(|c| c.frame[2] = 0xffff_ffff_ffff_feff)),
        ("all flags but TF in ring 3", Case::to(3).with(|c| c.frame[2] = !0x100)),
        ("no flags", Case::to(3).with(|c| c.frame[2] = 0)),
        ("nested task", Case::to(0).with(|c| c.state.rflags |= 0x4000)),
        ("NMI", Case::to(0).with(|c| c.state.nmi_blocked = true)),
        ("NMI and a fault", Case::to(0).with(|c| (c.state.nmi_blocked, c.frame[0]) = (true, 1 << 47))),
        ("carry and direction", Case::to(3).with(|c| c.state.rflags |= 0x401)),
        ("AC", Case::to(0).with(|c| c.frame[2] |= 0x4_0000)),
        ("odd stack", Case::to(3).with(|c| c.stack += 4)),
        ("stack across pages", Case::to(3).with(|c| c.stack += 0xff0)),
        (
            "segments of ring 0",
            Case::to(3).with(|c| {
                for (n, selector) in [(0, 0x10), (3, 0x23), (4, 0x10), (5, 0)] {
                    c.state.seg[n].selector = selector;
                    c.state.seg[n].access = if selector == 0x23 { 0xc0f3 } else { 0xc093 };
                    c.state.seg[n].base = 0x1000 * n as u64;
                }
            }),
        ),
        ("the table ends within a descriptor", Case::to(3).with(|c| c.state.gdtr.limit = 0x1e)),
    ]
}

#[test]
fn returns_end_as_the_interpreter_ends_them() {
    // mov rax,[rsp]; mov rax,[rsp+32]; mov rax,[0x7000]; stc; iretq
    let code = [
        0x48, 0x8b, 0x04, 0x24, 0x48, 0x8b, 0x44, 0x24, 32, 0x48, 0x8b, 0x04, 0x25, 0, 0x70, 0, 0, 0xf9,
        0x48, 0xcf,
    ];
    for (name, case) in cases() {
        let expected = case.outcome(&mut Guest::interpreted(&case.state, &code));
        let mut guest = Guest::with(&case.state, &code);
        for round in 0..4 {
            assert_eq!(case.outcome(&mut guest), expected, "{name}, round {round}");
        }
        assert!(guest.translated() > 0, "{name}");
    }
}

#[test]
fn invlpg_through_any_address_drops_the_page_and_goes_on() {
    // Pages of 4 KiB for the first 2 MiB. Each round maps 0x9_0000 elsewhere and reads it:
    // mov rax,[0x9_0000]; add rdi,rax; xor qword [0x8480],0x3000; invlpg ...
    let start = [
        0x48, 0x8b, 0x04, 0x25, 0, 0, 9, 0, 0x48, 0x01, 0xc7, 0x48, 0x81, 0x34, 0x25, 0x80, 0x84, 0, 0, 0,
        0x30, 0, 0,
    ];
    let forms: [&[u8]; 5] = [
        // [rbx]; [r8+rdx*4+0x10]; gs:[rsi]; fs:[rsi]; [0x9_0fff]
        &[0x0f, 0x01, 0x3b],
        &[0x41, 0x0f, 0x01, 0x7c, 0x90, 0x10],
        &[0x65, 0x0f, 0x01, 0x3e],
        &[0x64, 0x0f, 0x01, 0x3e],
        &[0x0f, 0x01, 0x3c, 0x25, 0xff, 0x0f, 9, 0],
    ];
    for form in forms {
        // stc; dec ecx keeps the carry, which INVLPG keeps too; adc rbp,0
        let mut code = vec![0xb9, 64, 0, 0, 0];
        code.extend(start);
        code.push(0xf9);
        code.extend(form);
        code.extend([0x48, 0x83, 0xd5, 0, 0xff, 0xc9]);
        let back = 5 - (code.len() as i64 + 2);
        code.extend([0x75, back as u8, 0xf4]);
        let mut state = long_mode_state(CODE, STACK, 0);
        (state.gpr[3], state.gpr[8], state.gpr[2]) = (0x9_0123, 0x8_0000, 0x4004);
        (state.gpr[6], state.seg[5].base, state.seg[4].base) = (0x8_0000, 0x1_0008, 0x1_0010);
        let mut guest = Guest::with(&state, &code);
        (0..512u64).for_each(|k| guest.memory.store(0x8000 + 8 * k, 8, k << 12 | 7));
        guest.memory.store(0x3000, 8, 0x8007);
        guest.memory.store(0x9_0000, 8, 1);
        guest.memory.store(0x9_3000, 8, 100);
        for _ in 0..3 {
            guest.vcpu.load(&state).unwrap();
            let end = guest.run();
            assert_eq!((end.gpr[7], end.gpr[5]), (32 * 101, 64), "{form:x?}");
        }
    }
}
