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
    // In optimised builds handlers end in jumps. Were one of these a call, half a million rounds
    // would overflow the stack.
    // mov ecx,500000; mov ebx,STACK-64
    // l: jmp +0; addsd xmm0,xmm1; movsd xmm2,[rbx]; movsd [rbx],xmm2; paddd xmm3,xmm4
    //    fld1; fstp st0; push rax; pop rdx; inc dword [rbx]; add eax,[rbx]; mov [rbx],eax
    //    shl edx,cl; imul edx,eax; mul edx; setc al; cmovc eax,edx; lea rsi,[rbx+8]; movzx edi,byte [rsi]
    //    lahf; bt eax,3; bswap eax; lodsb; call f; dec ecx; jnz l; hlt; f: ret
    let mut code = vec![0xb9, 0x20, 0xa1, 0x07, 0, 0xbb];
    code.extend(((STACK - 64) as u32).to_le_bytes());
    let top = code.len();
    code.extend([0xeb, 0, 0xf2, 0x0f, 0x58, 0xc1, 0xf2, 0x0f, 0x10, 0x13, 0xf2, 0x0f, 0x11, 0x13]);
    code.extend([0x66, 0x0f, 0xfe, 0xdc, 0xd9, 0xe8, 0xdd, 0xd8, 0x50, 0x5a, 0xff, 0x03, 0x03, 0x03]);
    code.extend([0x89, 0x03, 0xd3, 0xe2, 0x0f, 0xaf, 0xd0, 0xf7, 0xe2, 0x0f, 0x92, 0xc0, 0x0f, 0x42, 0xc2]);
    code.extend([0x48, 0x8d, 0x73, 8, 0x0f, 0xb6, 0x3e, 0x9f, 0x0f, 0xba, 0xe0, 3, 0x0f, 0xc8, 0xac]);
    code.extend([0xe8, 5, 0, 0, 0, 0xff, 0xc9]);
    let back = top as i64 - (code.len() as i64 + 2);
    code.extend([0x75, back as u8, 0xf4, 0xc3]);
    let mut guest = Guest::long(&code);
    let state = guest.run();
    assert_eq!((state.gpr[1], state.gpr[4]), (0, STACK));
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

/// 32-bit protected mode over a GDT at 0x9000: 8 code, 0x10 data, 0x18 user code, 0x20 user
/// data, 0x28 TSS at 0xb000, 0x30 TSS at 0xb100, 0x38 call gate to 8:0x12000 with one word.
fn protected_guest(code: &[u8]) -> Guest {
    let mut state = CpuState::reset(true, 0);
    let flat =
        |selector: u16, access: u16| cpu::state::Segment { selector, base: 0, limit: u32::MAX, access };
    state.seg = [flat(0x10, 0xc093); 6];
    state.seg[1] = flat(8, 0xc09b);
    state.cr0 = 0x11;
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.gdtr = cpu::state::TableRegister { base: 0x9000, limit: 0x3f };
    state.idtr = cpu::state::TableRegister { base: 0xa000, limit: 0x7ff };
    let mut guest = Guest::new(&state, code);
    let tss = |base: u64| 0x0000_8900_0000_0067 | (base & 0xffff) << 16;
    let entries = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        tss(0xb000),
        tss(0xb100),
        0x0001_ec01_0008_2000,
    ];
    for (k, entry) in entries.into_iter().enumerate() {
        guest.memory.store(0x9000 + 8 * k as u64, 8, entry);
    }
    guest.memory.store(0xb004, 4, 0x70000);
    guest.memory.store(0xb008, 4, 0x10);
    guest.stepper.accept_software_interrupts();
    guest
}

#[test]
fn a_far_jump_to_a_tss_switches_tasks() {
    // mov ax,28h; ltr ax; jmp 30h:0; (back:) hlt   task: mov eax,1234h; hlt
    let mut guest = protected_guest(&[0x66, 0xb8, 0x28, 0, 0x0f, 0, 0xd8, 0xea, 0, 0, 0, 0, 0x30, 0, 0xf4]);
    let task = 0xb100;
    guest.memory.write(0x11000, &[0xb8, 0x34, 0x12, 0, 0, 0xf4]);
    for (offset, value) in [(0x20, 0x11000), (0x24, 2), (0x38, 0x60000), (0x4c, 8)] {
        guest.memory.store(task + offset, 4, value);
    }
    for offset in [0x48, 0x50, 0x54, 0x58, 0x5c] {
        guest.memory.store(task + offset, 4, 0x10);
    }
    let state = guest.run();
    assert_eq!((state.gpr[0], state.gpr[4], state.tr.selector), (0x1234, 0x60000, 0x30));
    assert_eq!(state.cr0 & 8, 8);
    // the old task's state, and the busy bits
    assert_eq!(guest.memory.load(0xb020, 4), CODE + 14);
    assert_eq!((guest.memory.load(0x902d, 1), guest.memory.load(0x9035, 1)), (0x89, 0x8b));
}

#[test]
fn a_call_gate_copies_parameters_to_the_inner_stack() {
    // mov ax,28h; ltr ax; push 23h; push 50000h; push 1bh; push 11000h; retf
    let mut guest = protected_guest(&[
        0x66, 0xb8, 0x28, 0, 0x0f, 0, 0xd8, 0x6a, 0x23, 0x68, 0, 0, 5, 0, 0x6a, 0x1b, 0x68, 0, 0x10, 1, 0,
        0xcb,
    ]);
    // ring 3: push 77h; call 3bh:0; ring 0 at 12000h: mov eax,[esp+8]; hlt
    guest.memory.write(0x11000, &[0x6a, 0x77, 0x9a, 0, 0, 0, 0, 0x3b, 0]);
    guest.memory.write(0x12000, &[0x8b, 0x44, 0x24, 8, 0xf4]);
    let state = guest.run();
    assert_eq!(state.gpr[0], 0x77);
    assert_eq!((state.seg[1].selector, state.seg[2].selector), (8, 0x10));
    // SS, ESP, parameter, CS, EIP
    assert_eq!(state.gpr[4], 0x70000 - 20);
    let word = |n: u64| guest.memory.load(0x70000 - 20 + 4 * n, 4);
    assert_eq!([word(0), word(1), word(2), word(3), word(4)], [0x11009, 0x1b, 0x77, 0x5_0000 - 4, 0x23]);
}

#[test]
fn virtual_8086_mode_leaves_through_the_idt() {
    // mov ax,28h; ltr ax; push 0 (gs fs ds es) x4; push 3000h (ss); push 100h; push 23002h (VM, IOPL 3);
    // push 2000h (cs); push 0; iretd
    let mut code = vec![0x66, 0xb8, 0x28, 0, 0x0f, 0, 0xd8];
    for value in [0u32, 0, 0x1234, 0, 0x3000, 0x100, 0x2_3002, 0x2000, 0] {
        code.push(0x68);
        code.extend(value.to_le_bytes());
    }
    code.push(0xcf);
    let mut guest = protected_guest(&code);
    // mov ax,ds; int 21h
    guest.memory.write(0x20000, &[0x8c, 0xd8, 0xcd, 0x21]);
    guest.memory.store(0xa000 + 8 * 0x21, 8, 0x0001_ee00_0008_2000);
    guest.memory.write(0x12000, &[0xf4]);
    let state = guest.run();
    assert_eq!(state.gpr[0] & 0xffff, 0x1234);
    assert_eq!(state.gpr[4], 0x70000 - 36);
    let word = |n: u64| guest.memory.load(0x70000 - 36 + 4 * n, 4);
    assert_eq!([word(0), word(1), word(2), word(3), word(4)], [4, 0x2000, 0x2_3002, 0x100, 0x3000]);
    assert_eq!(word(6), 0x1234);
    assert_eq!(state.rflags & (1 << 17), 0);
}

#[test]
fn segment_limits_are_kept() {
    // mov eax,[ebx] with a DS limit of 0xfff
    let mut guest = protected_guest(&[0x8b, 0x03, 0xf4]);
    let mut state = guest.stepper.state();
    state.seg[3].limit = 0xfff;
    state.gpr[3] = 0xffd;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Err(Fault::GP0));
    state.gpr[3] = 0xffc;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Ok(()));
}

/// Steps two NOPs and a HLT; each trap increments EBX, the third is the last. Another HLT follows.
fn stepping_guest() -> Guest {
    // pushfd; or dword [esp],100h; popfd; nop; nop; hlt; hlt
    let guest = protected_guest(&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90, 0xf4, 0xf4]);
    guest.memory.store(0xa000 + 8, 8, 0x0001_8e00_0008_2000);
    // inc ebx; cmp ebx,3; jne out; jmp on; on: and dword [esp+8],~100h; out: iretd
    let handler =
        [0x43, 0x83, 0xfb, 3, 0x75, 0x0a, 0xeb, 0, 0x81, 0x64, 0x24, 8, 0xff, 0xfe, 0xff, 0xff, 0xcf];
    guest.memory.write(0x12000, &handler);
    guest
}

#[test]
fn single_step_traps_after_each_instruction_and_ends_a_halt() {
    let mut guest = stepping_guest();
    let start = guest.stepper.state();
    for round in 0..2 {
        let state = guest.run();
        assert_eq!(state.gpr[3], 3, "two NOPs and the HLT in round {round}");
        assert_eq!(state.rip, start.rip + 13, "the second HLT in round {round}");
        assert_eq!(state.dr[6] & 0x4000, 0x4000);
        guest.stepper.load(&start).unwrap();
    }
}

/// Whoever saves and loads the state between an instruction and its trap loses nothing.
#[test]
fn a_trap_that_is_due_is_part_of_the_state() {
    use cpu::engine::DebugPlan;
    let mut guest = stepping_guest();
    let plan = DebugPlan { single_step: true, ..DebugPlan::default() };
    guest.stepper.vcpu().set_debug(&plan).unwrap();
    let mut due = 0;
    for _ in 0..100 {
        let exit = guest.stepper.vcpu().run();
        let state = guest.stepper.state();
        due += u32::from(state.pending.is_some());
        guest.stepper.load(&state).unwrap();
        if exit == Exit::Halted {
            break;
        }
    }
    let state = guest.stepper.state();
    assert_eq!((due, state.gpr[3]), (3, 3));
    assert_eq!(state.dr[6] & 0x4000, 0x4000);
}

/// Notes where a debug exception came (EBX) and the flags that were pushed (EDX).
fn debugged_guest(code: &[u8], dr7: u64) -> Guest {
    let mut guest = protected_guest(code);
    guest.memory.store(0xa000 + 8, 8, 0x0001_8e00_0008_2000);
    // mov ebx,[esp]; mov edx,[esp+8]; hlt
    guest.memory.write(0x12000, &[0x8b, 0x1c, 0x24, 0x8b, 0x54, 0x24, 8, 0xf4]);
    let mut state = guest.stepper.state();
    (state.dr[0], state.dr[7]) = (0x30000, dr7);
    guest.memory.store(0x30000, 8, 0x10);
    guest.stepper.load(&state).unwrap();
    guest
}

#[test]
fn debug_exceptions_do_not_set_the_resume_flag() {
    const RF: u64 = 1 << 16;
    // mov [30000h],eax; nop; hlt
    let code = [0xa3, 0, 0, 3, 0, 0x90, 0xf4];
    let mut guest = debugged_guest(&code, 0xd0001);
    let state = guest.run();
    assert_eq!((state.gpr[3], state.gpr[2] & RF, state.dr[6] & 15), (CODE + 5, 0, 1));
    let mut guest = debugged_guest(&code, 1);
    let mut state = guest.stepper.state();
    state.dr[0] = CODE + 5;
    guest.stepper.load(&state).unwrap();
    let state = guest.run();
    assert_eq!((state.gpr[3], state.gpr[2] & RF, state.dr[6] & 15), (CODE + 5, 0, 1));
}

/// A data breakpoint of MOV SS is put off by an instruction, also if the state is saved and loaded.
#[test]
fn a_trap_that_waits_for_an_instruction_more_does_so_in_a_saved_state() {
    use cpu::engine::DebugPlan;
    // mov ss,[30000h]; inc ecx; inc ecx; hlt
    let mut guest = debugged_guest(&[0x8e, 0x15, 0, 0, 3, 0, 0x41, 0x41, 0xf4], 0xf0001);
    let plan = DebugPlan { single_step: true, ..DebugPlan::default() };
    guest.stepper.vcpu().set_debug(&plan).unwrap();
    let mut due = 0;
    while guest.stepper.vcpu().run() != Exit::Halted {
        let state = guest.stepper.state();
        due += u32::from(state.pending.is_some());
        guest.stepper.load(&state).unwrap();
    }
    let state = guest.stepper.state();
    assert_eq!((due, state.gpr[1], state.gpr[3]), (2, 1, CODE + 7));
    assert_eq!(state.dr[6] & 15, 1);
}

#[test]
fn a_masked_access_beyond_canonical_addresses_is_no_page_fault() {
    // vpcmpeqd xmm1,xmm1,xmm1; vmaskmovps xmm0,xmm1,[rax]
    let mut guest = Guest::long(&[0xc5, 0xf1, 0x76, 0xc9, 0xc4, 0xe2, 0x71, 0x2c, 0x00]);
    let mut state = guest.stepper.state();
    (state.cr4, state.xcr0) = (state.cr4 | 1 << 18, 7);
    state.gpr[0] = 0x7fff_ffff_fff8;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Ok(()));
    assert_eq!(guest.stepper.step(), Err(Fault::GP0));
}

#[test]
fn the_debugger_stops_and_steps() {
    use cpu::engine::DebugPlan;
    let mut guest = Guest::long(&[0x90, 0x90, 0xff, 0xc0, 0x88, 0x03, 0xf4]);
    let mut state = guest.stepper.state();
    state.gpr[3] = 0x30000;
    guest.stepper.load(&state).unwrap();
    let plan = DebugPlan { breakpoints: vec![CODE + 2], ..DebugPlan::default() };
    guest.stepper.vcpu().set_debug(&plan).unwrap();
    assert_eq!(guest.stepper.vcpu().run(), Exit::Debug);
    assert_eq!(guest.stepper.state().rip, CODE + 2);
    let plan = DebugPlan { single_step: true, ..plan };
    guest.stepper.vcpu().set_debug(&plan).unwrap();
    assert_eq!(guest.stepper.vcpu().run(), Exit::Debug);
    assert_eq!((guest.stepper.state().rip, guest.stepper.state().gpr[0]), (CODE + 4, 1));
    let plan = DebugPlan { watchpoints: vec![(0x30000, 1, true)], ..DebugPlan::default() };
    guest.stepper.vcpu().set_debug(&plan).unwrap();
    assert_eq!(guest.stepper.vcpu().run(), Exit::Debug);
    assert_eq!(guest.stepper.state().rip, CODE + 6);
}

/// A loop of 300 rounds with an undefined instruction, a REP STOSB and a store into the loop's own code,
/// over the IDT of [`exceptions_go_through_the_idt_and_iretq_returns`].
fn busy_guest() -> Guest {
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gdtr = cpu::state::TableRegister { base: 0x9000, limit: 0x17 };
    state.idtr = cpu::state::TableRegister { base: 0xa000, limit: 0xfff };
    // mov ebx,300; l: ud2; mov ecx,5; mov edi,20000h; rep stosb; mov [rip+1],bl; mov al,0; add edx,eax
    // dec ebx; jnz l; hlt
    let mut code = vec![0xbb, 0x2c, 1, 0, 0, 0x0f, 0x0b, 0xb9, 5, 0, 0, 0, 0xbf, 0, 0, 2, 0, 0xf3, 0xaa];
    code.extend([0x88, 0x1d, 1, 0, 0, 0, 0xb0, 0, 0x01, 0xc2, 0xff, 0xcb, 0x75, 0xe4, 0xf4]);
    let guest = Guest::new(&state, &code);
    guest.memory.store(0x9008, 8, 0x00af_9b00_0000_ffff);
    guest.memory.store(0x9010, 8, 0x00cf_9300_0000_ffff);
    let gate = 0x11000u64 & 0xffff | 8 << 16 | 0x8e00 << 32 | (0x11000u64 >> 16) << 48;
    guest.memory.store(0xa000 + 16 * u64::from(vector::UD), 8, gate);
    guest.memory.write(0x11000, &[0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf]);
    guest
}

#[test]
fn windows_of_any_size_pass_through_the_same_states() {
    // The undefined instruction does not count; the handler's two and the round's eight do.
    const TOTAL: u64 = 1 + 300 * 10 + 1;
    let mut steps = busy_guest();
    let mut states = vec![steps.stepper.state()];
    while steps.stepper.vcpu().run_exactly(1).unwrap().exit.is_none() {
        states.push(steps.stepper.state());
    }
    assert_eq!(states.len() as u64, TOTAL + 1);
    for size in [2, 3, 7, 64, 1000, u64::MAX] {
        let mut guest = busy_guest();
        let mut done = 0;
        loop {
            let window = guest.stepper.vcpu().run_exactly(size).unwrap();
            done += window.retired;
            assert!(window.retired == size || window.exit.is_some());
            assert_eq!(guest.stepper.state(), states[done as usize], "after {done} by {size}");
            if window.exit.is_some() {
                assert_eq!((window.exit, done), (Some(Exit::Halted), TOTAL));
                break;
            }
        }
    }
}

#[test]
fn a_window_takes_requests_at_its_start_and_leaves_later_ones() {
    let mut guest = busy_guest();
    let link = guest.stepper.vcpu().core.bus.link.clone();
    link.post(cpu::Request::EXIT);
    let window = guest.stepper.vcpu().run_exactly(5).unwrap();
    assert_eq!(window, cpu::Window { retired: 0, exit: Some(Exit::Asked) });
    let other = link.clone();
    let poster = std::thread::spawn(move || {
        for _ in 0..200 {
            other.post(cpu::Request::EXIT);
            std::thread::yield_now();
        }
    });
    let mut done = 0;
    while !poster.is_finished() && done < 2500 {
        let window = guest.stepper.vcpu().run_exactly(50).unwrap();
        assert!(window.retired == 50 && window.exit.is_none() || window.retired == 0, "{window:?}");
        done += window.retired;
    }
    poster.join().unwrap();
    assert!(done > 0);
}

#[test]
fn a_return_that_is_stepped_over_traps_like_any_other_instruction() {
    use cpu::engine::DebugPlan;
    // call f; hlt; f: ret - several times, so that all blocks are known.
    let mut guest = Guest::long(&[0xe8, 1, 0, 0, 0, 0xf4, 0xc3]);
    let start = guest.stepper.state();
    let plan = DebugPlan { single_step: true, ..DebugPlan::default() };
    for _ in 0..3 {
        guest.stepper.vcpu().set_debug(&plan).unwrap();
        guest.stepper.load(&start).unwrap();
        for rip in [CODE + 6, CODE + 5] {
            assert_eq!(guest.stepper.vcpu().run(), Exit::Debug);
            assert_eq!(guest.stepper.state().rip, rip);
        }
    }
}

#[test]
fn reading_the_shadow_stack_pointer_does_nothing() {
    // mov eax,7; rdsspq rax; rdsspd eax; hlt: how unwinders find out that there is none.
    let mut guest =
        Guest::long(&[0xb8, 7, 0, 0, 0, 0xf3, 0x48, 0x0f, 0x1e, 0xc8, 0xf3, 0x0f, 0x1e, 0xc8, 0xf4]);
    assert_eq!(guest.run().gpr[0], 7);
}

/// 32-bit code in compatibility mode, without memory from 4 MiB to 6 MiB.
fn compatibility_guest(code: &[u8]) -> (Guest, CpuState) {
    let mut state = long_mode_state(CODE, STACK, 0);
    state.seg[1].access = 0xc09b;
    let guest = Guest::new(&state, code);
    guest.memory.store(0x3000 + 8 * 2, 8, 0);
    (guest, state)
}

#[test]
fn pushad_has_written_what_lies_above_the_page_that_faults() {
    let (mut guest, mut state) = compatibility_guest(&[0x60]);
    state.gpr = std::array::from_fn(|n| 0x100 + n as u64);
    state.gpr[4] = 0x60_0008;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Err(Fault::page(2, 0x5f_fffc)));
    assert_eq!(guest.memory.load(0x60_0000, 8), 0x100 << 32 | 0x101);
    assert_eq!(guest.stepper.state(), CpuState { cr2: guest.stepper.state().cr2, ..state });
}

#[test]
fn a_mask_of_zeros_keeps_maskmov_from_pages_but_not_from_its_segment() {
    // maskmovdqu xmm0, xmm1; then with CS, which is never writable
    let (mut guest, mut state) = compatibility_guest(&[0x66, 0x0f, 0xf7, 0xc1, 0x2e, 0x66, 0x0f, 0xf7, 0xc1]);
    state.gpr[7] = 0x40_0000;
    guest.stepper.load(&state).unwrap();
    assert_eq!(guest.stepper.step(), Ok(()));
    assert_eq!(guest.stepper.step(), Err(Fault::GP0));
}

#[test]
fn a_misaligned_cmpxchg16b_is_a_general_protection_fault_even_beyond_canonical_addresses() {
    // cmpxchg16b [rbp], whose segment is SS
    let mut guest = Guest::long(&[0x48, 0x0f, 0xc7, 0x4d, 0]);
    let mut state = guest.stepper.state();
    for (address, fault) in [(1 << 63, vector::SS), (1 << 63 | 8, vector::GP)] {
        state.gpr[5] = address;
        guest.stepper.load(&state).unwrap();
        assert_eq!(guest.stepper.step().unwrap_err().vector, fault);
    }
}
