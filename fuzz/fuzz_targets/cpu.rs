//! Any bytes as code, in real, protected, compatibility and 64-bit mode, at both privileges:
//! decoding and executing must end in a result or in an exception, never in a panic.
#![no_main]

use cpu::CpuState;
use cpu::cpuid::CpuidTable;
use cpu::state::{Segment, seg};
use cpu_interpreter::testing::{Stepper, identity_tables, long_mode_state};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::cell::RefCell;
use std::sync::Arc;

const CODE: u64 = 0x9000;
const STEPS: usize = 24;

struct Machine {
    ram: RamBlock,
    /// What low memory holds before each input: page tables, else zeros.
    image: Vec<u8>,
    stepper: Stepper,
}

fn machine() -> Machine {
    let ram = RamBlock::new("fuzz", 1 << 20).expect("memory");
    let memory = AddressSpace::new(SpaceKind::Memory);
    memory.edit(|edit| edit.ram(ram, 0));
    identity_tables(&memory);
    let mut image = vec![0; 0x10000];
    ram.read(0, &mut image);
    let state = long_mode_state(CODE, 0x8f00, 0);
    let stepper = Stepper::new(memory, Arc::new(CpuidTable::default()), &state).expect("a vCPU");
    Machine { ram, image, stepper }
}

thread_local!(static MACHINE: RefCell<Machine> = RefCell::new(machine()));

/// Flat 32-bit code at privilege 0 without paging.
fn protected_state() -> CpuState {
    let mut state = long_mode_state(CODE, 0x8f00, 0);
    state.efer = 0;
    state.cr0 &= !(1 << 31);
    state.seg[seg::CS].access = 0xc09b;
    state
}

fn real_state() -> CpuState {
    let mut state = CpuState::reset(true, 0);
    state.seg[seg::CS] = Segment::real_mode(0, 0x9b);
    state.rip = CODE;
    state.gpr[4] = 0x8f00;
    state
}

fn start(mode: u8, registers: &[u8]) -> CpuState {
    let mut state = match mode & 7 {
        0 => real_state(),
        1 => protected_state(),
        2 => {
            let mut state = long_mode_state(CODE, 0x8f00, 3);
            state.seg[seg::CS].access = 0xc0fb;
            state
        }
        3 | 4 => long_mode_state(CODE, 0x8f00, 3),
        _ => long_mode_state(CODE, 0x8f00, 0),
    };
    for (gpr, &byte) in state.gpr.iter_mut().zip(registers) {
        *gpr = match byte >> 5 {
            0 => u64::from(byte),
            1 => 0xa000 + 8 * u64::from(byte & 31),
            2 => u64::from(byte & 31).wrapping_neg(),
            3 => 1 << (2 * (byte & 31)),
            4 => (1u64 << (2 * (byte & 31))).wrapping_sub(1),
            5 => 0xafff - u64::from(byte & 31),
            6 => 0xffff_fff0 + u64::from(byte & 31),
            _ => *gpr,
        };
    }
    if mode & 8 != 0 {
        state.rflags |= 0xcd5;
    }
    state
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&mode, rest)) = input.split_first() else { return };
    let (registers, code) = rest.split_at(rest.len().min(16));
    MACHINE.with_borrow_mut(|machine| {
        machine.ram.write(0, &machine.image);
        machine.ram.write(CODE, &code[..code.len().min(512)]);
        let state = start(mode, registers);
        if machine.stepper.load(&state).is_err() {
            return;
        }
        for _ in 0..STEPS {
            if machine.stepper.step().is_err() {
                break;
            }
        }
        let end = machine.stepper.state();
        assert_eq!(end.rflags & 2, 2, "bit 1 of RFLAGS is always set");
    });
});
