//! Flags that look-ups have changed on the host, over ways to other pages.

use super::{CODE, Guest, STACK};
use cpu::CpuState;
use cpu_interpreter::testing::long_mode_state;

const FAR: usize = 0x1000;

/// A loop of 100 rounds whose look-up comes behind its comparison, with `way` (5 bytes, at offset 13) to
/// [`FAR`], where `there` is. When 50 are left the second byte there becomes `later`.
fn looped(way: u8, there: &[u8], later: u8) -> Vec<u8> {
    // l: cmp rcx,rax; movzx esi,al; mov rdx,[rsi+0x300000]; WAY; next: cmp ecx,50; jne +7; mov byte [there + 1],later
    //    dec rcx; jnz l; hlt
    let mut code = vec![0x48, 0x39, 0xc1, 0x0f, 0xb6, 0xf0, 0x48, 0x8b, 0x96, 0, 0, 0x30, 0, way];
    code.extend((FAR as u32 - 18).to_le_bytes());
    code.extend([0x48, 0x83, 0xf9, 50, 0x75, 7, 0xc6, 0x05]);
    code.extend((FAR as u32 + 1 - 31).to_le_bytes());
    code.extend([later, 0x48, 0xff, 0xc9, 0x75, 0xdc, 0xf4]);
    code.resize(FAR, 0x90);
    code.extend(there);
    code
}

fn same(what: &str, code: &[u8]) -> CpuState {
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[0], state.gpr[1], state.gpr[3]) = (70, 100, 5);
    let (mut ours, mut theirs) = (Guest::with(&state, code), Guest::interpreted(&state, code));
    let (a, b) = (ours.run(), theirs.run());
    assert_eq!((a.gpr, a.rip, a.rflags), (b.gpr, b.rip, b.rflags), "{what}");
    assert!(ours.translated() > 3, "{what}");
    a
}

/// ADD and ADC of RAX to RBX, the opcode second.
const ADD: [u8; 3] = [0x48, 0x01, 0xc3];
const ADC: [u8; 3] = [0x48, 0x11, 0xc3];

#[test]
fn flags_are_found_where_a_call_leads() {
    // The comparison carries from 69 on; what is stored in round 50 counts from 49 on.
    for (what, first, later, carries) in [
        ("read", ADC, 0x11, 69),
        ("lost", ADD, 0x01, 0),
        ("lost, then read", ADD, 0x11, 49),
        ("read, then lost", ADC, 0x01, 20),
    ] {
        let end = same(what, &looped(0xe8, &[&first[..], &[0xc3]].concat(), later));
        assert_eq!(end.gpr[3], 5 + 100 * 70 + carries, "{what}");
    }
}

#[test]
fn flags_are_found_where_a_jump_leads() {
    let back = |there: &[u8]| {
        let rel = 18i32 - (FAR + there.len() + 5) as i32;
        [there, &[0xe9], &rel.to_le_bytes()[..]].concat()
    };
    for (what, there) in [("read", ADC), ("lost", ADD)] {
        same(what, &looped(0xe9, &back(&there), there[1]));
        same(what, &looped(0xe9, &back(&there), there[1] ^ 0x10));
    }
}
