//! System instructions that stay in translated code.

use super::{CODE, Guest, STACK};
use cpu_interpreter::testing::long_mode_state;

/// `body` in a loop of 64 rounds (ECX is in use), then HLT.
fn looped(body: &[u8]) -> Vec<u8> {
    let mut code = vec![0xb9, 64, 0, 0, 0];
    code.extend(body);
    code.extend([0xff, 0xc9]);
    let back = 5 - (code.len() as i64 + 2);
    code.extend([0x75, back as u8, 0xf4]);
    code
}

#[test]
fn flags_are_pushed_as_the_page_keeps_them() {
    // std; cli; stc; pushfq; pop rax; cld; sti; clc; pushfq; pop rbx; nop
    let mut guest =
        Guest::new(0, &looped(&[0xfd, 0xfa, 0xf9, 0x9c, 0x58, 0xfc, 0xfb, 0xf8, 0x9c, 0x5b, 0x90]));
    let state = guest.run();
    assert!(guest.translated() > 0);
    assert_eq!(state.gpr[0] & 0x601, 0x401);
    assert_eq!(state.gpr[3] & 0x601, 0x200);
    assert_eq!(state.rflags & 0x600, 0x200);
    assert_eq!(state.gpr[4], STACK);
}

#[test]
fn many_pauses_in_a_row_change_nothing() {
    // mov ecx,9000; back: stc; pause; adc eax,0; dec ecx; jnz back; hlt
    let code = [0xb9, 0x28, 0x23, 0, 0, 0xf9, 0xf3, 0x90, 0x83, 0xd0, 0, 0xff, 0xc9, 0x75, 0xf6, 0xf4];
    let mut guest = Guest::new(0, &code);
    let state = guest.run();
    assert!(guest.translated() > 0);
    assert_eq!(state.gpr[0], 9000);
}

#[test]
fn the_counter_moves_on() {
    // rdtsc; shl rdx,32; or rdx,rax; cmp rdx,rbx; jb over; inc esi; over: mov rbx,rdx
    let body = [
        0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xc2, 0x48, 0x39, 0xda, 0x72, 2, 0xff, 0xc6, 0x48,
        0x89, 0xd3,
    ];
    let mut guest = Guest::new(0, &looped(&body));
    let before = std::time::Instant::now();
    let state = guest.run();
    assert_eq!(state.gpr[6], 64);
    let first = state.gpr[3];
    std::thread::sleep(std::time::Duration::from_millis(20));
    let state = guest.again(CODE);
    // One tick is one nanosecond of the clock.
    let passed = state.gpr[3] - first;
    assert!(passed >= 20_000_000 && passed <= before.elapsed().as_nanos() as u64, "{passed}");
}

#[test]
fn swapgs_swaps_and_stays_swapped() {
    // swapgs; mov rax,gs:[0]; swapgs; mov rbx,gs:[0]; swapgs; ... an odd number of swaps in all
    let body = [
        0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8b, 0x1c,
        0x25, 0, 0, 0, 0,
    ];
    let mut code = looped(&body);
    code.pop();
    code.extend([0x0f, 0x01, 0xf8, 0xf4]);
    let mut state = long_mode_state(CODE, STACK, 0);
    state.seg[5].base = 0x2_0000;
    state.msr.kernel_gs_base = 0x3_0000;
    let mut guest = Guest::with(&state, &code);
    guest.memory.store(0x2_0000, 8, 0x1111);
    guest.memory.store(0x3_0000, 8, 0x2222);
    let state = guest.run();
    assert_eq!((state.gpr[0], state.gpr[3]), (0x2222, 0x1111));
    assert_eq!((state.seg[5].base, state.msr.kernel_gs_base), (0x3_0000, 0x2_0000));
}

#[test]
fn system_calls_change_the_ring_and_come_back() {
    // User: mov ebx,64; l: stc; syscall; adc edi,0; dec ebx; jnz l; mov eax,1; syscall
    let user = [
        0xbb, 64, 0, 0, 0, 0xf9, 0x0f, 0x05, 0x83, 0xd7, 0, 0xff, 0xcb, 0x75, 0xf6, 0xb8, 1, 0, 0, 0, 0x0f,
        0x05,
    ];
    // Kernel at +0x800: pushfq; pop rdx; mov esi,cs; test eax,eax; jnz end; inc r8; sysretq; end: hlt
    let kernel =
        [0x9c, 0x5a, 0x8c, 0xce, 0x90, 0x85, 0xc0, 0x75, 6, 0x49, 0xff, 0xc0, 0x48, 0x0f, 0x07, 0xf4];
    let mut state = long_mode_state(CODE, STACK, 3);
    state.rflags |= 0x200;
    state.msr.lstar = CODE + 0x800;
    state.msr.star = 0x20 << 48 | 0x10 << 32;
    state.msr.sfmask = 0x201;
    let mut guest = Guest::with(&state, &user);
    guest.memory.write(CODE + 0x800, &kernel);
    let state = guest.run();
    assert_eq!(state.gpr[8], 64);
    // The carry came back with each return.
    assert_eq!(state.gpr[7], 64);
    assert_eq!(state.gpr[2] & 0x201, 0);
    assert_eq!(state.gpr[6] & 0xffff, 0x10);
    assert_eq!((state.seg[1].selector, state.seg[2].selector), (0x10, 0x18));
    assert_eq!((state.cpl(), state.rflags & 0x200), (0, 0));
    assert_eq!(state.gpr[1], CODE + user.len() as u64);
    assert_eq!(state.gpr[11] & 0x200, 0x200);
}

#[test]
fn a_return_to_a_strange_address_faults_in_the_kernel() {
    // mov rcx,1<<47; sysretq, with no IDT: a triple fault at ring 0
    let code = [0x48, 0xb9, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x48, 0x0f, 0x07];
    let mut guest = Guest::new(0, &code);
    assert_eq!(guest.vcpu.run(), cpu::Exit::TripleFault);
    assert_eq!(guest.vcpu.save().rip, CODE + 10);
}

#[test]
fn an_instruction_across_pages_follows_the_second_page() {
    // At the end of a page: add eax, imm32, of which three bytes lie in the next page.
    let mut code = looped(&[0x05, 1, 0, 0, 0]);
    let start = CODE + 0x1000 - 5 - 2;
    let mut state = long_mode_state(start, STACK, 0);
    let mut guest = Guest::with(&state, &code);
    assert_eq!(guest.run().gpr[0], 64);
    assert!(guest.translated() >= 2);
    // A store into the second page's bytes alone.
    guest.memory.store(CODE + 0x1000, 1, 1);
    assert_eq!(guest.again(start).gpr[0], 64 + 64 * 0x101);
    // Another page in the second's place: page tables of 4 KiB for the first 2 MiB.
    for k in 0..512u64 {
        guest.memory.store(0x8000 + 8 * k, 8, k << 12 | 7);
    }
    let other = CODE + 0x5000;
    guest.memory.write(other, &code.split_off(7));
    guest.memory.store(other, 1, 2);
    guest.memory.store(0x8000 + 8 * ((CODE + 0x1000) >> 12), 8, other | 7);
    guest.memory.store(0x3000, 8, 0x8007);
    state = guest.vcpu.save();
    state.gpr[0] = 0;
    guest.vcpu.load(&state).unwrap();
    assert_eq!(guest.again(start).gpr[0], 64 * 0x201);
}

#[test]
fn invlpg_of_one_page_drops_a_whole_large_page() {
    // Each round reads [0x40_0000] and, after the third, finds it elsewhere.
    // mov rax,[0x400000]; add rbx,rax; mov qword [0x3010],0x6000e7 (PDE 2 -> 0x600000); invlpg [0x401000]
    let body = [
        0x48, 0x8b, 0x04, 0x25, 0, 0, 0x40, 0, 0x48, 0x01, 0xc3, 0x48, 0xc7, 0x04, 0x25, 0x10, 0x30, 0, 0,
        0xe7, 0, 0x60, 0, 0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0x40, 0,
    ];
    let mut guest = Guest::new(0, &looped(&body));
    guest.memory.store(0x40_0000, 8, 5);
    guest.memory.store(0x60_0000, 8, 100);
    assert_eq!(guest.run().gpr[3], 5 + 63 * 100);
}

#[test]
fn bit_tests_reach_beyond_their_operand() {
    // Each round: mov rax,-65; bts [rsi],rax; mov r10d,70; btc [rsi],r10d; bt [rsi],rax; adc ebx,0
    // Bit -65 is in the quadword two before, bit 70 in the double word two behind.
    let body = [
        0x48, 0xc7, 0xc0, 0xbf, 0xff, 0xff, 0xff, 0x48, 0x0f, 0xab, 0x06, 0x41, 0xba, 70, 0, 0, 0, 0x44,
        0x0f, 0xbb, 0x16, 0x48, 0x0f, 0xa3, 0x06, 0x83, 0xd3, 0,
    ];
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gpr[6] = 0x2_0000;
    let mut guest = Guest::with(&state, &looped(&body));
    guest.memory.store(0x2_0008, 8, 0);
    let state = guest.run();
    assert_eq!(state.gpr[3], 64);
    assert_eq!(guest.memory.load(0x2_0000 - 16, 8), 1 << 63);
    assert_eq!(guest.memory.load(0x2_0008, 8), 0);
    let mut state = state;
    state.gpr[1] = 1;
    guest.vcpu.load(&state).unwrap();
    guest.again(CODE + 5);
    assert_eq!(guest.memory.load(0x2_0008, 8), 1 << 6);
}

#[test]
fn selectors_are_read_in_place() {
    // mov eax,cs; mov r11,ss; mov rbx,r11; mov dx,fs; mov [rsi],gs; mov edi,ds; mov ebp,es
    let body = [
        0x8c, 0xc8, 0x4d, 0x8c, 0xd3, 0x4c, 0x89, 0xdb, 0x66, 0x8c, 0xe2, 0x8c, 0x2e, 0x8c, 0xdf, 0x8c, 0xc5,
    ];
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[2], state.gpr[6]) = (0x5555_5555, 0x2_0000);
    for (n, selector) in [(0, 0x30), (3, 0x38), (4, 0x40), (5, 0x48)] {
        state.seg[n].selector = selector;
    }
    let mut guest = Guest::with(&state, &looped(&body));
    guest.memory.store(0x2_0000, 8, u64::MAX);
    let state = guest.run();
    assert_eq!((state.gpr[0], state.gpr[3], state.gpr[2]), (8, 0x10, 0x5555_0040));
    assert_eq!((state.gpr[7], state.gpr[5]), (0x38, 0x30));
    assert_eq!(guest.memory.load(0x2_0000, 8), 0xffff_ffff_ffff_0048);
}

#[test]
fn control_registers_are_read_in_place() {
    // mov rax,cr0; mov r10,cr2; mov rbx,r10; mov rdx,cr3; mov rsi,cr4
    let body =
        [0x0f, 0x20, 0xc0, 0x41, 0x0f, 0x20, 0xd2, 0x4c, 0x89, 0xd3, 0x0f, 0x20, 0xda, 0x0f, 0x20, 0xe6];
    let mut state = long_mode_state(CODE, STACK, 0);
    state.cr2 = 0xffff_8000_1234_5678;
    let mut guest = Guest::with(&state, &looped(&body));
    let end = guest.run();
    assert_eq!((end.gpr[0], end.gpr[3]), (state.cr0, state.cr2));
    assert_eq!((end.gpr[2], end.gpr[6]), (state.cr3, state.cr4));
}

#[test]
fn bases_are_written_in_place() {
    // inc rbx; wrfsbase rbx; mov rdx,fs:[0]; mov r10,rbx; wrgsbase r10; mov rsi,gs:[8]; wrgsbase edi
    let body = [
        0x48, 0xff, 0xc3, 0xf3, 0x48, 0x0f, 0xae, 0xd3, 0x64, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0, 0, 0x49, 0x89,
        0xda, 0xf3, 0x49, 0x0f, 0xae, 0xda, 0x65, 0x48, 0x8b, 0x34, 0x25, 8, 0, 0, 0, 0xf3, 0x0f, 0xae, 0xdf,
    ];
    let mut state = long_mode_state(CODE, STACK, 0);
    state.cr4 |= 1 << 16;
    (state.gpr[3], state.gpr[7]) = (0x2_0000, 0xffff_8000_0000_3000);
    let mut guest = Guest::with(&state, &looped(&body));
    guest.memory.store(0x2_0040, 8, 0x1234);
    guest.memory.store(0x2_0048, 8, 0x5678);
    let end = guest.run();
    assert_eq!((end.gpr[2], end.gpr[6]), (0x1234, 0x5678));
    assert_eq!((end.seg[4].base, end.seg[5].base), (0x2_0040, 0x3000));
    // An address that is none: #GP, which without an IDT is a triple fault.
    let mut state = guest.vcpu.save();
    (state.rip, state.gpr[3]) = (CODE + 5, (1 << 47) - 1);
    state.activity = cpu::state::Activity::Running;
    guest.vcpu.load(&state).unwrap();
    assert_eq!(guest.vcpu.run(), cpu::Exit::TripleFault);
    let end = guest.vcpu.save();
    assert_eq!((end.rip, end.seg[4].base), (CODE + 8, 0x2_0040));
}

#[test]
fn restless_pages_are_watched_again_after_a_while() {
    // inc dword [rip + 1]; mov eax, n: each round changes the next instruction's constant.
    let mut guest = Guest::new(0, &looped(&[0xff, 0x05, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0]));
    assert_eq!(guest.run().gpr[0], 64);
    (2..12).for_each(|round| assert_eq!(guest.again(CODE).gpr[0], 64 * round));
    assert_eq!(guest.unwatched(), 1);
    // As long as it takes: code that does not change, on another page.
    guest.memory.write(CODE + 0x5000, &looped(&[0x90]));
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while guest.unwatched() != 0 {
        assert!(std::time::Instant::now() < limit);
        guest.again(CODE + 0x5000);
    }
    // What changes is noticed all the same.
    (12..24).for_each(|round| assert_eq!(guest.again(CODE).gpr[0], 64 * round));
    assert_eq!(guest.unwatched(), 1);
}

#[test]
fn the_resume_flag_leaves_the_next_instruction_in_translated_code() {
    // mov rax,rsp; push 0x10; push rax; pushfq; or dword [rsp],0x10000; push 8; push rbx; iretq; (rbx:) inc edx
    let body = [
        0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x9c, 0x81, 0x0c, 0x24, 0, 0, 1, 0, 0x6a, 8, 0x53, 0x48, 0xcf,
        0xff, 0xc2,
    ];
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gpr[3] = CODE + 5 + 19;
    (state.gdtr.base, state.gdtr.limit) = (0x7000, 0x17);
    let mut guest = Guest::with(&state, &looped(&body));
    guest.memory.store(0x7008, 8, 0xaf_9b00_0000_ffff);
    guest.memory.store(0x7010, 8, 0xcf_9300_0000_ffff);
    let end = guest.run();
    assert_eq!((end.gpr[2], end.gpr[4], end.rflags & 0x1_0000), (64, STACK, 0));
}
