//! Addresses that are not canonical but have the index of a page that the tables know: the guest
//! gets the same exception as on the interpreter. And addresses that are not aligned.

use super::{CODE, Guest, STACK};
use cpu::CpuState;
use cpu::fault::vector;
use cpu::state::TableRegister;
use cpu_interpreter::testing::long_mode_state;

const DATA: u64 = 0x20_0000;
/// The same bits 12 to 47.
const ALIAS: u64 = DATA | 1 << 52;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
/// HLT for each vector.
const HANDLERS: u64 = 0x11000;

fn start() -> CpuState {
    let mut state = long_mode_state(CODE, STACK, 0);
    state.gdtr = TableRegister { base: 0x9000, limit: 0x17 };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.tr.base = TSS;
    state.tr.limit = 0x67;
    state.xcr0 |= 0xe0;
    state
}

fn prepare(guest: &Guest) {
    // The last 2 MiB of the lower half and the first of the upper one.
    for (entry, [first, second], page) in
        [(255, [0xc000, 0xd000], 0x40_0000), (256, [0xe000, 0xf000], 0x60_0000)]
    {
        let at = if entry == 255 { 8 * 511 } else { 0 };
        guest.memory.store(0x1000 + 8 * entry, 8, first | 7);
        guest.memory.store(first + at, 8, second | 7);
        guest.memory.store(second + at, 8, page | 0x87);
    }
    guest.memory.store(0x9008, 8, 0x00af_9b00_0000_ffff);
    guest.memory.store(0x9010, 8, 0x00cf_9300_0000_ffff);
    // Handlers have a stack of their own.
    guest.memory.store(TSS + 0x24, 8, STACK - 0x1000);
    for n in [vector::SS, vector::GP] {
        let at = HANDLERS + u64::from(n);
        let gate = at & 0xffff | 8 << 16 | 0x8e01 << 32 | (at >> 16) << 48;
        guest.memory.store(IDT + 16 * u64::from(n), 8, gate);
        guest.memory.write(at, &[0xf4]);
    }
}

/// Runs `code` for each state; the engines must agree. Returns the vector of the last.
fn same(code: &[u8], states: &[CpuState]) -> u8 {
    let (mut ours, mut theirs) = (Guest::with(&states[0], code), Guest::interpreted(&states[0], code));
    let mut last = 0;
    for (n, state) in states.iter().enumerate() {
        let ends = [&mut ours, &mut theirs].map(|guest| {
            prepare(guest);
            guest.vcpu.load(state).unwrap();
            let end = guest.run();
            let mut frame = [0; 48];
            guest.memory.read(end.gpr[4], &mut frame);
            // Which arithmetic flags an exception shows is left open in translated code.
            (frame[24], frame[25]) = (frame[24] & !0xd5, frame[25] & !8);
            (end.gpr, end.rip, end.rflags & !0x8d5, frame)
        });
        assert_eq!(ends[0], ends[1], "state {n}");
        last = ends[0].1.wrapping_sub(HANDLERS + 1);
    }
    assert!(ours.translated() > 0);
    last as u8
}

/// Runs `body` in 40 rounds with [`DATA`] in the register `n`, in the last with [`ALIAS`]; returns the vector.
fn refused(body: &[u8], n: u8) -> u8 {
    // mov edi,40; l: mov n,r8; cmp edi,1; cmove n,r9; body; dec edi; jnz l; hlt
    let mut code =
        vec![0xbf, 40, 0, 0, 0, 0x4c, 0x89, 0xc0 | n, 0x83, 0xff, 1, 0x49, 0x0f, 0x44, 0xc1 | n << 3];
    code.extend(body);
    code.extend([0xff, 0xcf, 0x75]);
    code.push((5 - (code.len() as i64 + 1)) as u8);
    code.push(0xf4);
    let mut state = start();
    (state.gpr[8], state.gpr[9]) = (DATA, ALIAS);
    same(&code, &[state])
}

#[test]
fn a_look_up_before_live_flags_tells_nothing_of_canonical_form() {
    // add eax,1; mov rcx,[rbx]; adc rdx,[rbx+8]
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x48, 0x8b, 0x0b, 0x48, 0x13, 0x53, 8], 3), vector::GP);
    // The same with a store.
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x48, 0x89, 0x0b, 0x48, 0x13, 0x53, 8], 3), vector::GP);
    // The same with an index.
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x48, 0x8b, 0x0c, 0x73, 0x48, 0x13, 0x54, 0x73, 8], 3), vector::GP);
    // Alone: add eax,1; mov rcx,[rbx]; adc edx,0
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x48, 0x8b, 0x0b, 0x83, 0xd2, 0], 3), vector::GP);
    // By RBP: add eax,1; mov rcx,[rbp]; adc rdx,[rbp+8]
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x48, 0x8b, 0x4d, 0, 0x48, 0x13, 0x55, 8], 5), vector::SS);
    // By RSP: add eax,1; pop rcx; pop rsi; adc edx,0
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x59, 0x5e, 0x83, 0xd2, 0], 4), vector::SS);
    // add eax,1; push rcx; push rsi; adc edx,0
    assert_eq!(refused(&[0x83, 0xc0, 1, 0x51, 0x56, 0x83, 0xd2, 0], 4), vector::SS);
}

#[test]
fn an_access_without_elements_tells_nothing_of_the_next() {
    if !cpu_host::has_avx512() {
        return;
    }
    // kxorq k1,k1,k1; vmovdqu32 zmm0{k1},[rbx]; mov rcx,[rbx]; mov rdx,[rbx+8]
    let code = [
        0xc4, 0xe1, 0xf4, 0x47, 0xc9, 0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x03, 0x48, 0x8b, 0x0b, 0x48, 0x8b, 0x53,
        8,
    ];
    assert_eq!(refused(&code, 3), vector::GP);
}

#[test]
fn a_loop_ends_where_canonical_addresses_end() {
    // mov rax,[rdi]; l: mov rax,[rsi]; add rsi,8; dec rcx; jnz l; hlt
    let plain = [0x48, 0x8b, 0x07, 0x48, 0x8b, 0x06, 0x48, 0x83, 0xc6, 8, 0x48, 0xff, 0xc9, 0x75, 0xf4, 0xf4];
    // The same with two accesses, a store last: mov rax,[rsi]; mov [rsi],rax
    let two = [
        0x48, 0x8b, 0x07, 0x48, 0x8b, 0x06, 0x48, 0x89, 0x06, 0x48, 0x83, 0xc6, 8, 0x48, 0xff, 0xc9, 0x75,
        0xf1, 0xf4,
    ];
    for code in [&plain[..], &two] {
        let mut state = start();
        (state.gpr[6], state.gpr[7]) = (0x7fff_ffff_c000, 0xffff_8000_0000_0000);
        state.gpr[1] = 5000;
        assert_eq!(same(code, &[state.clone(), state.clone(), state]), vector::GP);
    }
}

/// Also where the page is the one of the last time, and of other pages.
#[test]
fn what_must_be_aligned_is_refused_elsewhere() {
    // movaps xmm0,[rbx]; hlt, and of 32 bytes: vmovaps ymm0,[rbx]; hlt
    for (code, by) in [(&[0x0f, 0x28, 0x03, 0xf4][..], 8), (&[0xc5, 0xfc, 0x28, 0x03, 0xf4], 16)] {
        for last in [DATA + by, DATA + 0x1000 - by, DATA + 0x3000 + by] {
            let at = |rbx| {
                let mut state = start();
                state.gpr[3] = rbx;
                state
            };
            let mut states: Vec<CpuState> = (0..20).map(|n| at(DATA + 32 * n)).collect();
            states.push(at(last));
            assert_eq!(same(code, &states), vector::GP);
        }
    }
}
