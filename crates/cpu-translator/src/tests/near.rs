//! Look-ups that begin with the page of the last time.

use super::{CODE, Guest, STACK};
use crate::{Options, Translator};
use cpu::Request;
use cpu_interpreter::testing::long_mode_state;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAGE: u64 = 0x20_0000;
const OTHER: u64 = 0x30_0000;
const TABLE: u64 = 0x9000;

/// How often loops go round; what was interpreted at first is translated then.
const ROUNDS: u64 = 20;

/// A loop that adds what is read at [`PAGE`] to RAX, gives it another page ([`OTHER`] and back), and
/// does `after`. RBX and RSP are the address.
fn sum(read: &[u8], after: &[u8]) -> u64 {
    // xchg rdi,rdx; mov [rsi],rdi
    let body = [read, &[0x48, 0x87, 0xd7, 0x48, 0x89, 0x3e], after].concat();
    // add rcx,-1; jnz; hlt. (DEC would leave CF, which the look-ups would have to spare.)
    let back = (-(body.len() as i64 + 6)) as u8;
    let code = [&body, &[0x48, 0x83, 0xc1, 0xff, 0x75, back, 0xf4][..]].concat();
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[1], state.gpr[3], state.gpr[4]) = (ROUNDS, PAGE, PAGE);
    (state.gpr[0], state.gpr[6]) = (0, TABLE);
    (state.gpr[2], state.gpr[7]) = (OTHER | 0x67, PAGE | 0x67);
    let mut guest = Guest::with(&state, &code);
    guest.memory.store(0x3008, 8, TABLE | 0x27);
    for page in 0..512 {
        guest.memory.store(TABLE + 8 * page, 8, (PAGE + 4096 * page) | 0x67);
    }
    guest.memory.store(PAGE, 8, 0x100);
    guest.memory.store(OTHER, 8, 1);
    guest.run().gpr[0]
}

/// add rax,[rbx]; add rax,[rsp], which has the stack's slot.
const READS: [&[u8]; 2] = [&[0x48, 0x03, 0x03], &[0x48, 0x03, 0x04, 0x24]];

#[test]
fn a_page_that_invlpg_forgets_is_not_remembered() {
    for read in READS {
        assert_eq!(sum(read, &[0x0f, 0x01, 0x3b]), 0x101 * ROUNDS / 2);
    }
}

#[test]
fn nothing_is_remembered_over_a_load_of_cr3() {
    for read in READS {
        // mov r8,cr3; mov cr3,r8
        assert_eq!(sum(read, &[0x41, 0x0f, 0x20, 0xd8, 0x41, 0x0f, 0x22, 0xd8]), 0x101 * ROUNDS / 2);
    }
}

/// Each round writes a function to a page that had none, calls it, and writes another over it.
#[test]
fn a_write_is_not_remembered_where_code_came_to_be() {
    let code = [
        0x48, 0x81, 0xc3, 0, 0x10, 0, 0, // add rbx,0x1000
        0xe8, 20, 0, 0, 0, 0xff, 0xd3, // call write; call rbx
        0x48, 0x97, // xchg rax,rdi
        0xe8, 11, 0, 0, 0, 0xff, 0xd3, // call write; call rbx
        0x48, 0x97, 0x48, 0x83, 0xc1, 0xff, 0x75, 0xe1, 0xf4, // xchg rax,rdi; add rcx,-1; jnz; hlt
        0x48, 0x89, 0x03, 0xc3, // write: mov [rbx],rax; ret
    ];
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[1], state.gpr[2], state.gpr[3]) = (ROUNDS, 0, OTHER);
    // add rdx,1; ret and add rdx,16; ret
    (state.gpr[0], state.gpr[7]) = (0xc3_01c2_8348, 0xc3_10c2_8348);
    assert_eq!(Guest::with(&state, &code).run().gpr[2], 17 * ROUNDS);
}

#[test]
fn accesses_that_go_to_other_pages_all_the_time_are_given_up() {
    // xor rbx,0x1000; mov rax,[rbx]; add rcx,-1; jnz
    let code = [0x48, 0x81, 0xf3, 0, 0x10, 0, 0, 0x48, 0x8b, 0x03, 0x48, 0x83, 0xc1, 0xff, 0x75, 0xf0, 0xf4];
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[1], state.gpr[3]) = (1_000_000, PAGE);
    let mut guest = Guest::with(&state, &code);
    guest.run();
    assert_eq!(guest.engine.as_ref().unwrap().0.cache().near.counts(), (1, 1));
}

#[test]
fn code_that_is_found_running_remembers_its_pages() {
    // call f; dec rcx; jnz; hlt; f: mov rax,[rbx]; ret
    let code = [0xe8, 6, 0, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xf6, 0xf4, 0x48, 0x8b, 0x03, 0xc3];
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[1], state.gpr[3]) = (30_000_000, PAGE);
    let engine = Translator::with(Options { warm: 1, ..Options::default() }).unwrap();
    let mut guest = Guest::on(&engine, &state, &code);
    let (link, done) = (guest.link.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                link.post(Request::INTERRUPT);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        guest.run();
        done.store(true, Ordering::SeqCst);
    });
    let (blocks, given_up) = engine.0.cache().near.counts();
    assert!(blocks > 0 && given_up == 0, "{blocks} {given_up}");
}

/// A list over two pages, until its accesses go to the tables at once; then on to a page that was
/// not known.
#[test]
fn each_item_of_a_list_is_found_by_the_one_before() {
    // mov rax,[rax+rbx*2+8]; and mov rdx,rax; cmpxchg [rdx],rdi, which reads RAX as well and writes.
    let bodies: [(&[u8], u64); 3] = [
        (&[0x48, 0x8b, 0x44, 0x58, 0x08], 0x28),
        // mov rsi,[rax]; mov rax,[rax+8]: one look-up.
        (&[0x48, 0x8b, 0x30, 0x48, 0x8b, 0x40, 0x08], 8),
        (&[0x48, 0x89, 0xc2, 0x48, 0x0f, 0xb1, 0x3a], 0),
    ];
    for (body, offset) in bodies {
        let back = (-(body.len() as i64 + 6)) as u8;
        let code = [body, &[0x48, 0x83, 0xc1, 0xff, 0x75, back, 0xf4][..]].concat();
        let mut state = long_mode_state(CODE, STACK, 0);
        (state.gpr[0], state.gpr[1], state.gpr[3]) = (PAGE, 1_000_000, 0x10);
        let mut guest = Guest::with(&state, &code);
        guest.memory.store(PAGE + offset, 8, OTHER);
        guest.memory.store(OTHER + offset, 8, PAGE);
        assert_eq!(guest.run().gpr[0], PAGE);
        assert_eq!(guest.engine.as_ref().unwrap().0.cache().near.counts(), (1, 1));
        let (unknown, last) = (0x40_0000, 0x50_0010);
        guest.memory.store(OTHER + offset, 8, unknown);
        guest.memory.store(unknown + offset, 8, last);
        let mut state = guest.vcpu.save();
        state.gpr[1] = 3;
        guest.vcpu.load(&state).unwrap();
        assert_eq!(guest.again(CODE).gpr[0], last, "{body:x?}");
    }
}
