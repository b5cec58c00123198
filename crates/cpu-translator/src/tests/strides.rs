//! Loops that look their pages up for many rounds at once, beside the interpreter.

use super::{CODE, Guest, STACK};
use cpu::CpuState;
use cpu_interpreter::testing::long_mode_state;

const A: u64 = 0x20_0000;
const B: u64 = 0x30_0000;
const BYTES: usize = 0x8000;

/// Code that begins with a loop and ends with HLT, the registers before it, and how often it is
/// run at most.
struct Loop<'a> {
    code: &'a [u8],
    rsi: u64,
    rdi: u64,
    rcx: u64,
    flags: u64,
}

fn fill(guest: &Guest) {
    let bytes: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    guest.memory.write(A, &bytes);
    guest.memory.write(B, &bytes[1..]);
}

fn ends_as(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; 2 * BYTES];
    guest.memory.read(A, &mut bytes[..BYTES]);
    guest.memory.read(B, &mut bytes[BYTES..]);
    bytes
}

fn start(case: &Loop) -> CpuState {
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[6], state.gpr[7], state.gpr[1]) = (case.rsi, case.rdi, case.rcx);
    (state.gpr[3], state.gpr[9]) = (A + 0x100, 3);
    state.rflags |= case.flags;
    // SSE is on.
    state.cr4 |= 0x600;
    state
}

/// Runs the loop in both engines and compares registers, flags and memory.
fn same(case: &Loop) -> CpuState {
    let state = start(case);
    let (mut ours, mut theirs) = (Guest::with(&state, case.code), Guest::interpreted(&state, case.code));
    for guest in [&ours, &theirs] {
        fill(guest);
    }
    let (a, b) = (ours.run(), theirs.run());
    assert_eq!((a.gpr, a.rip, a.rflags), (b.gpr, b.rip, b.rflags));
    assert!(a.fpu == b.fpu && ends_as(&ours) == ends_as(&theirs));
    assert_eq!(a.gpr[1], 0, "to its end");
    assert!(ours.translated() > 0 || case.rcx < 3);
    a
}

#[test]
fn copies_over_page_ends_at_any_alignment() {
    // l: mov rax,[rsi]; add rsi,8; mov [rdi],rax; add rdi,8; dec rcx; jnz l; hlt
    let up = [
        0x48, 0x8b, 0x06, 0x48, 0x83, 0xc6, 8, 0x48, 0x89, 0x07, 0x48, 0x83, 0xc7, 8, 0x48, 0xff, 0xc9, 0x75,
        0xed, 0xf4,
    ];
    // The same with sub.
    let mut down = up;
    (down[5], down[12]) = (0xee, 0xef);
    for (code, from) in [(&up, 0), (&down, 0x6000)] {
        for (rsi, rdi) in [(A, B), (A + 3, B + 5), (A + 0xff8, B + 0xff9), (A + 8, A), (A, A + 8), (A, A + 1)]
        {
            for rcx in [1, 5, 6, 13, 600, 2500] {
                same(&Loop { code, rsi: rsi + from, rdi: rdi + from, rcx, flags: 0 });
            }
        }
    }
}

#[test]
fn carries_from_round_to_round_stay() {
    // l: mov rax,[rsi]; adc rax,[rdi]; mov [rdi],rax; lea rsi,[rsi+8]; lea rdi,[rdi+8]; dec rcx; jnz l; hlt
    let code = [
        0x48, 0x8b, 0x06, 0x48, 0x13, 0x07, 0x48, 0x89, 0x07, 0x48, 0x8d, 0x76, 8, 0x48, 0x8d, 0x7f, 8, 0x48,
        0xff, 0xc9, 0x75, 0xea, 0xf4,
    ];
    for flags in [0, 1, 0x8d5] {
        for (offset, rcx) in [(0, 40), (0xf04, 1500), (1, 7)] {
            same(&Loop { code: &code, rsi: A + offset, rdi: B + offset, rcx, flags });
        }
    }
}

#[test]
fn indices_constants_and_what_moves_not_take_part() {
    // l: movzx eax, byte [rsi+rcx]; mov edx,[rbx]; add [rdi+rcx*2+1],ax; inc dword [rip+x]
    //    push rax; pop rdx; dec rcx; jnz l; hlt; x: a dword beyond
    let code = [
        0x0f, 0xb6, 0x04, 0x0e, 0x8b, 0x13, 0x66, 0x01, 0x44, 0x4f, 1, 0xff, 0x05, 0xe9, 0x0f, 0, 0, 0x50,
        0x5a, 0x48, 0xff, 0xc9, 0x75, 0xe8, 0xf4,
    ];
    for (rsi, rdi) in [(A, B), (A + 0xffe, B + 0xfff), (A + 0x7f, B)] {
        same(&Loop { code: &code, rsi, rdi, rcx: 4500, flags: 0 });
    }
}

#[test]
fn aligned_vectors_and_far_strides_mix() {
    // l: movaps xmm0,[rsi]; paddd xmm0,[rsi+16]; movups [rdi],xmm0; mov rax,[rbx]; add rbx,0x208
    //    add rsi,16; add rdi,16; dec rcx; jnz l; hlt
    let code = [
        0x0f, 0x28, 0x06, 0x66, 0x0f, 0xfe, 0x46, 16, 0x0f, 0x11, 0x07, 0x48, 0x8b, 0x03, 0x48, 0x81, 0xc3,
        8, 2, 0, 0, 0x48, 0x83, 0xc6, 16, 0x48, 0x83, 0xc7, 16, 0x48, 0xff, 0xc9, 0x75, 0xde, 0xf4,
    ];
    for rdi in [B, B + 1, B + 0xff1] {
        same(&Loop { code: &code, rsi: A, rdi, rcx: 700, flags: 0 });
    }
}

/// l: mov rax,[rsi]; movaps xmm0,[rsi+8]; movaps [rdi+24],xmm0; mov [rdi+16],rax; add rsi,0x210;
///    add rdi,0x210; dec rcx; jnz l; hlt
const ALIGNED: [u8; 35] = [
    0x48, 0x8b, 0x06, 0x0f, 0x28, 0x46, 8, 0x0f, 0x29, 0x47, 24, 0x48, 0x89, 0x47, 16, 0x48, 0x81, 0xc6,
    0x10, 2, 0, 0, 0x48, 0x81, 0xc7, 0x10, 2, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xde, 0xf4,
];

#[test]
fn accesses_of_a_group_are_aligned_in_the_middle_of_it() {
    for (rsi, rdi) in [(A + 8, B + 8), (A + 0xfe8, B + 0xfd8), (A + 0xff8, B + 0xfe8)] {
        for rcx in [1, 7, 50] {
            same(&Loop { code: &ALIGNED, rsi, rdi, rcx, flags: 0 });
        }
    }
}

#[test]
fn what_is_not_aligned_in_a_group_faults_at_its_own_access() {
    for (rsi, rdi) in [(A + 9, B + 8), (A + 8, B + 9), (A + 8, B + 16), (A + 0xff9, B + 0xff8)] {
        let state = start(&Loop { code: &ALIGNED, rsi, rdi, rcx: 20, flags: 0 });
        let ends = [Guest::with(&state, &ALIGNED), Guest::interpreted(&state, &ALIGNED)].map(|mut guest| {
            fill(&guest);
            // Without a handler the machine shuts down at the fault.
            let exit = guest.vcpu.run();
            let end = guest.vcpu.save();
            (format!("{exit:?}"), end.gpr, end.rip, ends_as(&guest))
        });
        assert!(ends[0] == ends[1], "{rsi:x} {rdi:x}: {:x?} {:x?}", ends[0].1, ends[1].1);
        assert_eq!(ends[0].2, CODE + if rsi & 7 != 0 { 3 } else { 7 }, "{rsi:x} {rdi:x}");
    }
}

#[test]
fn both_registers_that_the_host_has_not_beside_memory() {
    // l: mulx r10,r11,[rsi]; mov rax,[rsi+8]; xor rax,r10; mov [rdi],rax; add [rdi+8],r11
    //    shrx r11,[rsi+16],r10; mov [rdi+16],r11; dec rcx; jnz l; hlt
    let code = [
        0xc4, 0x62, 0xa3, 0xf6, 0x16, 0x48, 0x8b, 0x46, 8, 0x4c, 0x31, 0xd0, 0x48, 0x89, 0x07, 0x4c, 0x01,
        0x5f, 8, 0xc4, 0x62, 0xab, 0xf7, 0x5e, 16, 0x4c, 0x89, 0x5f, 16, 0x48, 0xff, 0xc9, 0x75, 0xde, 0xf4,
    ];
    for (rsi, rdi) in [(A, B), (A + 0xff1, B + 0xff4)] {
        same(&Loop { code: &code, rsi, rdi, rcx: 40, flags: 0 });
    }
}

#[test]
fn a_store_into_the_loop_itself_is_seen_at_once() {
    // l: add rsi,1; mov [rsi-1],al; dec rcx; jnz l; hlt: when the stores come to the first byte,
    // the first instruction becomes `add r14,1`.
    let code = [0x48, 0x83, 0xc6, 1, 0x88, 0x46, 0xff, 0x48, 0xff, 0xc9, 0x75, 0xf4, 0xf4];
    for distance in [3000, 37] {
        let case = Loop { code: &code, rsi: CODE - distance, rdi: 0, rcx: distance + 30, flags: 0 };
        let mut state = start(&case);
        state.gpr[0] = 0x49;
        let (mut ours, mut theirs) = (Guest::with(&state, &code), Guest::interpreted(&state, &code));
        let (a, b) = (ours.run(), theirs.run());
        assert_eq!((a.gpr, a.rip), (b.gpr, b.rip));
        assert_eq!((a.gpr[6], a.gpr[14]), (CODE + 1, 29));
    }
}

#[test]
fn a_page_that_is_not_there_faults_at_its_first_access() {
    // l: mov al,[rsi]; mov [rdi],al; inc rsi; inc rdi; dec rcx; jnz l; hlt
    let code =
        [0x8a, 0x06, 0x88, 0x07, 0x48, 0xff, 0xc6, 0x48, 0xff, 0xc7, 0x48, 0xff, 0xc9, 0x75, 0xf1, 0xf4];
    // Small pages from B on, the third read-only, the fourth missing.
    for (what, entry) in [("missing", 0u64), ("read-only", 5)] {
        let case = Loop { code: &code, rsi: A, rdi: B + 0x10, rcx: 0x3000, flags: 0 };
        let mut state = start(&case);
        state.cr0 |= 1 << 16;
        let mut ends = Vec::new();
        for mut guest in [Guest::with(&state, &code), Guest::interpreted(&state, &code)] {
            fill(&guest);
            let table = 0x9000;
            guest.memory.store(0x3000 + 8 * (B >> 21), 8, table | 0x27);
            for page in 0..512 {
                let linear = (B & !0x1f_ffff) + 4096 * page;
                let bits = if linear == B + 0x2000 { entry } else { 7 };
                guest.memory.store(table + 8 * page, 8, if bits == 0 { 0 } else { linear | bits });
            }
            // Without a handler the machine shuts down at the fault.
            let exit = guest.vcpu.run();
            let end = guest.vcpu.save();
            ends.push((format!("{exit:?}"), end.gpr, end.cr2, ends_as(&guest)));
        }
        assert!(ends[0] == ends[1], "{what}: {:x?} {:x?}", (&ends[0].0, ends[0].1), (&ends[1].0, ends[1].1));
        assert_eq!(ends[0].2, B + 0x2000, "{what}");
    }
}
