//! REP STOS and REP MOVS in translated code.

use super::{CODE, Guest, STACK};
use cpu::Exit;
use cpu_interpreter::testing::long_mode_state;

const FROM: u64 = 0x20_0000;
const TO: u64 = 0x30_0000;

/// The instruction after a MOV that makes a block of it, then HLT.
fn alone(instruction: &[u8]) -> Vec<u8> {
    [&[0x89, 0xdb], instruction, &[0xf4]].concat()
}

/// Runs `code` until it is translated, then with RCX, RSI, RDI as given.
fn run(guest: &mut Guest, (count, from, to): (u64, u64, u64), flags: u64) -> cpu::CpuState {
    let mut state = long_mode_state(CODE, STACK, 0);
    (state.gpr[0], state.gpr[1], state.gpr[6], state.gpr[7]) = (0x8877_6655_4433_2211, 0, FROM, TO);
    guest.vcpu.load(&state).unwrap();
    guest.again(CODE);
    guest.again(CODE);
    state = guest.vcpu.save();
    (state.gpr[1], state.gpr[6], state.gpr[7]) = (count, from, to);
    state.rflags |= flags;
    guest.vcpu.load(&state).unwrap();
    guest.again(CODE)
}

#[test]
fn copies_reach_across_pages_and_may_overlap() {
    // rep movsb, movsw, movsd, movsq
    for (size, code) in [
        (1, vec![0xf3, 0xa4]),
        (2, vec![0x66, 0xf3, 0xa5]),
        (4, vec![0xf3, 0xa5]),
        (8, vec![0xf3, 0x48, 0xa5]),
    ] {
        for (from, to, count) in
            [(0, 0x333, 0x1801), (0xffd, 5, 0x900), (0x10, 0x10, 0), (0xff8, 0xff0, 0x203)]
        {
            let mut guest = Guest::new(0, &alone(&code));
            let bytes: Vec<u8> = (0..0x10000u32).map(|n| (n * 7 + n / 251) as u8).collect();
            guest.memory.write(FROM, &bytes);
            let state = run(&mut guest, (count, FROM + from, TO + to), 0x8d5);
            let len = (count * size) as usize;
            let mut copied = vec![0; len];
            guest.memory.read(TO + to, &mut copied);
            assert!(copied == bytes[from as usize..][..len], "{size} {from:#x} {to:#x} {count:#x}");
            let end = (state.gpr[1], state.gpr[6], state.gpr[7]);
            assert_eq!(end, (0, FROM + from + len as u64, TO + to + len as u64));
            assert_eq!(state.rflags & 0x8d5, 0x8d5);
            assert_eq!(guest.memory.load(TO + to + len as u64, 8), 0);
        }
    }
    // One byte behind the source: the first is copied on and on.
    let mut guest = Guest::new(0, &alone(&[0xf3, 0xa4]));
    guest.memory.write(FROM + 0xf00, &[9, 1, 2, 3]);
    run(&mut guest, (0x1234, FROM + 0xf00, FROM + 0xf01), 0);
    let mut copied = vec![0; 0x1235];
    guest.memory.read(FROM + 0xf00, &mut copied);
    assert!(copied.iter().all(|&byte| byte == 9));
}

#[test]
fn stores_reach_across_pages_in_both_directions() {
    for (size, code) in [
        (1, vec![0xf3, 0xaa]),
        (2, vec![0x66, 0xf3, 0xab]),
        (4, vec![0xf3, 0xab]),
        (8, vec![0xf3, 0x48, 0xab]),
    ] {
        let mut guest = Guest::new(0, &alone(&code));
        let pattern: Vec<u8> = 0x8877_6655_4433_2211u64.to_le_bytes()[..size].repeat(0x900);
        let state = run(&mut guest, (0x900, 0, TO + 0xffd), 0x41);
        let mut stored = vec![0; pattern.len() + 8];
        guest.memory.read(TO + 0xffd, &mut stored);
        assert!(stored[..pattern.len()] == pattern && stored[pattern.len()..] == [0; 8], "{size}");
        assert_eq!((state.gpr[1], state.gpr[7]), (0, TO + 0xffd + pattern.len() as u64));
        assert_eq!(state.rflags & 0x8d5, 0x41);
        // Downwards: the interpreter's.
        let state = run(&mut guest, (2, 0, TO), 0x400);
        assert_eq!((state.gpr[1], state.gpr[7]), (0, TO - 2 * size as u64));
    }
}

#[test]
fn a_page_that_is_not_there_stops_the_string_at_its_start() {
    for (code, read) in [(vec![0xf3, 0xa4], false), (vec![0xf3, 0xa4], true), (vec![0xf3, 0xaa], false)] {
        let mut guest = Guest::new(0, &alone(&code));
        // Page tables of 4 KiB for the 2 MiB of the one that lacks its third page.
        let lacking = if read { FROM } else { TO };
        guest.memory.store(0x3000 + 8 * (lacking >> 21), 8, 0x9027);
        for page in 0..512 {
            guest.memory.store(0x9000 + 8 * page, 8, (lacking & !0x1f_ffff) + 4096 * page | 7);
        }
        let at = 0x9000 + 8 * ((lacking + 0x2000) >> 12 & 511);
        guest.memory.store(at, 8, 0);
        let mut state = long_mode_state(CODE, STACK, 0);
        guest.vcpu.load(&state).unwrap();
        guest.again(CODE);
        guest.again(CODE);
        (state.gpr[1], state.gpr[6], state.gpr[7]) = (0x3000, FROM + 0x10, TO + 0x20);
        guest.vcpu.load(&state).unwrap();
        // Without an IDT the fault is a triple fault.
        assert_eq!(guest.vcpu.run(), Exit::TripleFault);
        let state = guest.vcpu.save();
        let done = if read { 0x2000 - 0x10 } else { 0x2000 - 0x20 };
        assert_eq!((state.gpr[1], state.gpr[7]), (0x3000 - done, TO + 0x20 + done));
        assert_eq!((state.cr2, state.rip), (lacking + 0x2000, CODE + 2));
        if code == [0xf3, 0xa4] {
            assert_eq!(state.gpr[6], FROM + 0x10 + done);
        }
    }
}
