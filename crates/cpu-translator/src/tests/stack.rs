//! Random sequences of what moves the stack pointer and what looks at it, beside the interpreter.

use super::{CODE, Guest, STACK};
use cpu_interpreter::testing::long_mode_state;

/// All but R13, which counts rounds.
const PIECES: [&[u8]; 36] = [
    &[0x50],                         // push rax
    &[0x53],                         // push rbx
    &[0x55],                         // push rbp
    &[0x54],                         // push rsp
    &[0x41, 0x52],                   // push r10
    &[0x41, 0x53],                   // push r11
    &[0x41, 0x54],                   // push r12
    &[0x6a, 0x85],                   // push -123
    &[0x68, 1, 2, 3, 4],             // push 0x4030201
    &[0xff, 0x34, 0x24],             // push qword [rsp]
    &[0xff, 0x74, 0x24, 0xf8],       // push qword [rsp-8]
    &[0x9c],                         // pushfq
    &[0x58],                         // pop rax
    &[0x5b],                         // pop rbx
    &[0x5d],                         // pop rbp
    &[0x41, 0x5a],                   // pop r10
    &[0x41, 0x5b],                   // pop r11
    &[0x41, 0x5c],                   // pop r12
    &[0x8f, 0x44, 0x24, 8],          // pop qword [rsp+8]
    &[0x48, 0x89, 0xe2],             // mov rdx,rsp
    &[0x48, 0x8d, 0x54, 0x24, 8],    // lea rdx,[rsp+8]
    &[0x48, 0x89, 0xe5],             // mov rbp,rsp
    &[0x89, 0xe6],                   // mov esi,esp
    &[0x48, 0x89, 0x44, 0x24, 0xf0], // mov [rsp-16],rax
    &[0x48, 0x8b, 0x04, 0x24],       // mov rax,[rsp]
    &[0x48, 0x83, 0xec, 0x10],       // sub rsp,16
    &[0x48, 0x8d, 0x64, 0x24, 8],    // lea rsp,[rsp+8]
    &[0x01, 0xd8],                   // add eax,ebx
    &[0x48, 0x11, 0xe3],             // adc rbx,rsp
    &[0x48, 0x39, 0xd8],             // cmp rax,rbx
    &[0x0f, 0x92, 0xc2],             // setc dl
    &[0x0f, 0xc8],                   // bswap eax
    &[0x66, 0x48, 0x0f, 0x6e, 0xc4], // movq xmm0,rsp
    &[0xd9, 0xe8, 0xdd, 0xd8],       // fld1; fstp st0
    &[0xe8, 0, 0, 0, 0],             // call the next instruction
    &[0x49, 0xff, 0xc2],             // inc r10
];

fn program(mut seed: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..14 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        code.extend(PIECES[(seed >> 33) as usize % PIECES.len()]);
    }
    // mov rsp,STACK; dec r13; jnz to the start; hlt
    code.extend([0x48, 0xc7, 0xc4]);
    code.extend((STACK as u32).to_le_bytes());
    code.extend([0x49, 0xff, 0xcd, 0x0f, 0x85]);
    code.extend((-(code.len() as i32 + 4)).to_le_bytes());
    code.push(0xf4);
    code
}

#[test]
fn the_stack_pointer_is_right_wherever_it_is_seen() {
    let mut translated = 0;
    for seed in 0..200 {
        let code = program(seed);
        let mut state = long_mode_state(CODE, STACK, 0);
        state.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(5 * n as u32));
        (state.gpr[4], state.gpr[13]) = (STACK, 24);
        state.cr4 |= 0x600;
        let (mut ours, mut theirs) = (Guest::with(&state, &code), Guest::interpreted(&state, &code));
        let ends = [&mut ours, &mut theirs].map(|guest| {
            let end = guest.run();
            let mut stack = vec![0; 0x800];
            guest.memory.read(STACK - 0x400, &mut stack);
            (end.gpr, end.rip, end.rflags, stack)
        });
        assert!(ends[0] == ends[1], "seed {seed}: {code:02x?}\n{:x?}\n{:x?}", ends[0].0, ends[1].0);
        translated += ours.translated();
    }
    assert!(translated > 200);
}
