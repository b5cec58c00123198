//! Every loop sees what is asked of the vCPU.

use super::{CODE, Guest, STACK};
use cpu::{Exit, Request};
use cpu_interpreter::testing::long_mode_state;
use std::sync::mpsc::channel;
use std::time::Duration;

const WORD: u64 = 0x2_0000;

/// `code` loops while the word that RBX points to is not zero. It must end when asked to.
fn ends_when_asked(code: &[u8]) {
    ends_when_asked_at(WORD, code);
}

/// Likewise, with the word at another place.
fn ends_when_asked_at(word: u64, code: &[u8]) {
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gpr[3] = word;
    let mut guest = Guest::with(&state, code);
    guest.memory.store(word, 4, 1);
    let (link, memory, (ended, wait)) = (guest.link.clone(), guest.memory.clone(), channel::<()>());
    let asker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        link.post(Request::EXIT);
        let late = wait.recv_timeout(Duration::from_secs(60)).is_err();
        memory.store(word, 4, 0);
        late
    });
    let exit = guest.vcpu.run();
    let _ = ended.send(());
    assert!(!asker.join().unwrap(), "it went on until its condition changed");
    assert_eq!(exit, Exit::Asked);
    assert!(guest.translated() > 0);
}

#[test]
fn a_loop_by_a_branch() {
    // l: pause; mov eax,[rbx]; test eax,eax; jnz l; hlt
    ends_when_asked(&[0xf3, 0x90, 0x8b, 0x03, 0x85, 0xc0, 0x75, 0xf8, 0xf4]);
}

/// As Linux's spin locks wait: the jump back lies within a block, the branch leads forward.
#[test]
fn a_loop_that_goes_back_within_a_block() {
    // jmp p; l: mov eax,[rbx]; test eax,eax; jnz p; hlt; p: pause; jmp l
    ends_when_asked(&[0xeb, 7, 0x8b, 0x03, 0x85, 0xc0, 0x75, 1, 0xf4, 0xf3, 0x90, 0xeb, 0xf5]);
}

#[test]
fn a_loop_over_three_places() {
    // a: jmp c; b: mov eax,[rbx]; jmp d; c: pause; jmp b; d: test eax,eax; jnz a; hlt
    ends_when_asked(&[0xeb, 4, 0x8b, 0x03, 0xeb, 4, 0xf3, 0x90, 0xeb, 0xf8, 0x85, 0xc0, 0x75, 0xf2, 0xf4]);
}

/// Its two accesses share a look-up, which fails: the rest is done in another variant of the block.
#[test]
fn a_loop_between_two_variants_of_a_block() {
    // jmp p; l: mov eax,[rbx]; or eax,[rbx+8]; test eax,eax; jnz p; hlt; p: pause; jmp l
    let code = [0xeb, 10, 0x8b, 0x03, 0x0b, 0x43, 8, 0x85, 0xc0, 0x75, 1, 0xf4, 0xf3, 0x90, 0xeb, 0xf2];
    ends_when_asked_at(WORD + 0xffc, &code);
}
