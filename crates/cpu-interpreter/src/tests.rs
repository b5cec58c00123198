//! Small programs on the interpreter.

use crate::testing::{Stepper, identity_tables, long_mode_state};
use cpu::cpuid::CpuidTable;
use cpu::fault::vector;
use cpu::{CpuState, Exit, Fault, Vcpu};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;

const CODE: u64 = 0x10000;
const STACK: u64 = 0x80000;

struct Guest {
    memory: Arc<AddressSpace>,
    stepper: Stepper,
}

fn ram() -> Arc<AddressSpace> {
    let memory = AddressSpace::new(SpaceKind::Memory);
    let ram = RamBlock::new("test", 16 << 20).unwrap();
    memory.edit(|edit| edit.ram(ram, 0));
    memory
}

impl Guest {
    fn new(state: &CpuState, code: &[u8]) -> Guest {
        let memory = ram();
        identity_tables(&memory);
        let at = state.rip + state.seg[1].base;
        memory.write(at, code);
        let stepper = Stepper::new(memory.clone(), Arc::new(CpuidTable::default()), state).unwrap();
        Guest { memory, stepper }
    }

    fn long(code: &[u8]) -> Guest {
        Guest::new(&long_mode_state(CODE, STACK, 0), code)
    }

    fn run(&mut self) -> CpuState {
        assert_eq!(self.stepper.vcpu().run(), Exit::Halted);
        self.stepper.state()
    }
}

#[test]
fn sums_in_a_loop() {
    // mov ecx,1000; xor eax,eax; l: add rax,rcx; dec rcx; jnz l; hlt
    let mut guest =
        Guest::long(&[0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xf4]);
    let state = guest.run();
    assert_eq!(state.gpr[0], 500_500);
    assert_eq!(state.rip, CODE + 16);
    assert_eq!(guest.stepper.vcpu().retired(), Some(3003));
}

#[test]
fn calls_return_and_the_stack_balances() {
    // call f; hlt; f: push rax; pop rbx; mov [rsp-64], rsp; ret
    let mut guest = Guest::long(&[0xe8, 1, 0, 0, 0, 0xf4, 0x50, 0x5b, 0x48, 0x89, 0x64, 0x24, 0xc0, 0xc3]);
    let state = guest.run();
    assert_eq!(state.gpr[4], STACK);
    assert_eq!(guest.memory.load(STACK - 8 - 64, 8), STACK - 8);
}

#[test]
fn a_deep_chain_of_blocks_needs_no_stack() {
    // 200 million operations would overflow any stack if handlers were calls
    // mov ecx,4000000; l: jmp +0; jmp +0; dec ecx; jnz l; hlt
    let mut guest = Guest::long(&[0xb9, 0, 9, 0x3d, 0, 0xeb, 0, 0xeb, 0, 0xff, 0xc9, 0x75, 0xf8, 0xf4]);
    let state = guest.run();
    assert_eq!(state.gpr[1], 0);
}

#[test]
fn faults_name_the_address_and_change_nothing() {
    // add [rax], rbx
    let mut guest = Guest::long(&[0x48, 0x01, 0x18]);
    let mut state = guest.stepper.state();
    state.gpr[0] = 0x1_2345_6789;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Err(Fault::page(2, 0x1_2345_6789)));
    assert_eq!(guest.stepper.state(), state);
    state.gpr[0] = 0x8000_0000_0000_0000;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Err(Fault::GP0));
    assert_eq!(guest.stepper.state(), state);
}

#[test]
fn stores_to_the_next_instruction_take_effect() {
    // mov byte [rip+0], 0x43 (changes the next instruction's REX.. inc eax -> inc ebx)
    // c6 05 01 00 00 00 c3 : writes modrm c3 at +1 of the next instruction; ff c0 (inc eax); hlt
    let code = [0xc6, 0x05, 1, 0, 0, 0, 0xc3, 0xff, 0xc0, 0xf4];
    let mut guest = Guest::long(&code);
    let state = guest.run();
    assert_eq!((state.gpr[0], state.gpr[3]), (0, 1));
    // and the block is decoded anew when it is put back
    guest.memory.write(CODE, &code);
    let mut state = state;
    state.rip = CODE + 7;
    state.activity = cpu::state::Activity::Running;
    guest.stepper.load(&state).unwrap();
    let state = guest.run();
    assert_eq!((state.gpr[0], state.gpr[3]), (1, 1));
}

#[test]
fn rep_movs_propagates_like_the_processor() {
    // mov rsi=0x20000, rdi=0x20001, rcx=9000; rep movsb
    let mut guest = Guest::long(&[0xf3, 0xa4, 0xf4]);
    guest.memory.write(0x20000, &[7, 1, 2, 3]);
    let mut state = guest.stepper.state();
    (state.gpr[6], state.gpr[7], state.gpr[1]) = (0x20000, 0x20001, 9000);
    guest.stepper.load(&state).unwrap();
    let state = guest.run();
    assert_eq!((state.gpr[6], state.gpr[7], state.gpr[1]), (0x20000 + 9000, 0x20001 + 9000, 0));
    let mut bytes = vec![0; 9000];
    guest.memory.read(0x20001, &mut bytes);
    assert!(bytes.iter().all(|&b| b == 7));
}

#[test]
fn user_pages_and_privilege() {
    // hlt at CPL 3
    let mut guest = Guest::new(&long_mode_state(CODE, STACK, 3), &[0xf4]);
    assert_eq!(guest.stepper.step(), Err(Fault::GP0));
    // a supervisor page
    guest.memory.store(0x3000 + 8 * 7, 8, 7 << 21 | 0xe3);
    let mut guest2 = Guest::new(&long_mode_state(CODE, STACK, 3), &[0x8a, 0x00]);
    guest2.memory.store(0x3000 + 8 * 7, 8, 7 << 21 | 0xe3);
    let mut state = guest2.stepper.state();
    state.gpr[0] = 7 << 21;
    guest2.stepper.load(&state).unwrap();
    assert_eq!(guest2.stepper.step(), Err(Fault::page(5, 7 << 21)));
}

#[test]
fn real_mode_interrupts_return() {
    // mov ax,1234h; int 21h; hlt   handler: inc bx; iret
    let mut state = CpuState::reset(true, 0);
    state.seg[1] = cpu::state::Segment::real_mode(0x1000, 0x9b);
    state.rip = 0;
    state.gpr[4] = 0x8000;
    let mut guest = Guest::new(&state, &[0xb8, 0x34, 0x12, 0xcd, 0x21, 0xf4]);
    guest.memory.write(0x21 * 4, &[0, 0, 0, 0x20]);
    guest.memory.write(0x20000, &[0x43, 0xcf]);
    guest.stepper.accept_software_interrupts();
    let state = guest.run();
    assert_eq!((state.gpr[0] & 0xffff, state.gpr[3] & 0xffff, state.gpr[4]), (0x1234, 1, 0x8000));
}

#[test]
fn exceptions_go_through_the_idt_and_iretq_returns() {
    // ud2 at CODE; handler at 0x11000: add qword [rsp], 2; iretq
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gdtr = cpu::state::TableRegister { base: 0x9000, limit: 0x17 };
    state.idtr = cpu::state::TableRegister { base: 0xa000, limit: 0xfff };
    let mut guest = Guest::new(&state, &[0x0f, 0x0b, 0xf4]);
    guest.memory.store(0x9008, 8, 0x00af_9b00_0000_ffff);
    guest.memory.store(0x9010, 8, 0x00cf_9300_0000_ffff);
    let gate = 0x11000u64 & 0xffff | 8 << 16 | 0x8e00 << 32 | (0x11000u64 >> 16) << 48;
    guest.memory.store(0xa000 + 16 * u64::from(vector::UD), 8, gate);
    guest.memory.write(0x11000, &[0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf]);
    let state = guest.run();
    assert_eq!((state.rip, state.gpr[4]), (CODE + 3, STACK));
}

#[test]
fn sse_and_x87_work() {
    // mov eax,3; cvtsi2sd xmm0,eax; addsd xmm0,xmm0; cvttsd2si ebx,xmm0; fld1; fldpi; fistp dword [rsp-8]; hlt
    let mut guest = Guest::long(&[
        0xb8, 3, 0, 0, 0, 0xf2, 0x0f, 0x2a, 0xc0, 0xf2, 0x0f, 0x58, 0xc0, 0xf2, 0x0f, 0x2c, 0xd8, 0xd9, 0xe8,
        0xd9, 0xeb, 0xdb, 0x5c, 0x24, 0xf8, 0xf4,
    ]);
    let state = guest.run();
    assert_eq!(state.gpr[3], 6);
    assert_eq!(guest.memory.load(STACK - 8, 4), 3);
    assert_eq!(state.fpu.ftw, 0x80);
}
