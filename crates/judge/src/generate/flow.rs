//! Loops with branches inside: what an engine that translates has to chain.

use super::operands::Build;
use super::{Generator, decode, encode, settle};
use crate::case::{Case, MAX_CODE, layout};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};

/// A branch over instructions that are not there yet.
struct Forward {
    /// Where its displacement byte stands.
    at: usize,
    /// Instructions that it still has to pass.
    left: u64,
    /// Flags that were undefined at the branch.
    undefined: u64,
}

/// Bytes kept free for what ends the loop.
const TAIL: usize = 16;

pub(super) fn looped(generator: &mut Generator, max: usize, rounds: u64) -> Option<Case> {
    let mut case = generator.start();
    case.registers.rip = layout::CODE + generator.rng.below(layout::PAGE);
    let (bits, start) = (generator.bits, case.registers.rip);
    let wanted = 1 + generator.rng.below(max.max(1) as u64);
    let mut info = InstructionInfoFactory::new();
    let mut bytes = Vec::new();
    let (mut undefined, mut midway, mut done) = (0, 0, 0);
    let mut open: Vec<Forward> = Vec::new();
    let mut build = Build::new(&mut generator.rng, &mut case, true);
    // Addresses that move by constants.
    let moves = build.below(2) == 0;
    for _ in 0..6 * wanted {
        if done == wanted {
            break;
        }
        let condition = build.below(16) as u8;
        if done + 1 < wanted
            && build.below(4) == 0
            && flags_of(condition) & undefined == 0
            && bytes.len() + 2 <= MAX_CODE - TAIL
        {
            bytes.extend([0x70 | condition, 0]);
            open.push(Forward { at: bytes.len() - 1, left: 1 + build.below(3), undefined });
            continue;
        }
        if bits == 64 && moves && build.below(3) == 0 && bytes.len() + 5 <= MAX_CODE - TAIL {
            bytes.extend(moved(build.address_gpr() as u8, build.below(24) as usize));
            done += 1;
            land(&mut open, &mut bytes, &mut undefined);
            midway |= undefined;
            continue;
        }
        let code = generator.codes[build.below(generator.codes.len() as u64) as usize];
        let rip = start + bytes.len() as u64;
        let Some(instruction) = build.instruction(code, rip) else { continue };
        let Some(encoded) = encode(&instruction, rip, bits) else { continue };
        let decoded = decode(&encoded, rip, bits);
        if decoded.is_invalid()
            || bytes.len() + encoded.len() > MAX_CODE - TAIL
            || decoded.flow_control() != FlowControl::Next
            || !settle::suits_snippet(&decoded)
            || settle::flags_read(&decoded) & undefined != 0
            || writes_counter(&mut info, &decoded)
        {
            continue;
        }
        undefined = undefined & !settle::flags_defined(&decoded) | settle::undefined_flags_static(&decoded);
        bytes.extend(encoded);
        done += 1;
        land(&mut open, &mut bytes, &mut undefined);
        midway |= undefined;
    }
    for branch in &mut open {
        branch.left = 1;
    }
    land(&mut open, &mut bytes, &mut undefined);
    midway |= undefined;
    if undefined != 0 {
        // cmp edx, eax: the next round must not see what is undefined.
        bytes.extend([0x39, 0xc2]);
    }
    // dec rcx; jnz, or loop.
    let counted = bits == 64 && moves && build.below(2) == 0;
    if counted {
        bytes.extend([0x48, 0xff, 0xc9]);
    }
    let back = -(bytes.len() as i64 + 2);
    bytes.extend([if counted { 0x75 } else { 0xe2 }, i8::try_from(back).ok()? as u8]);
    case.registers.gpr[1] = rounds;
    case.undefined_flags = 0;
    case.undefined_midway = midway;
    case.set_code(&bytes);
    (done >= 1).then_some(case)
}

/// `lea r, [r + disp8]` by one of some usual distances.
fn moved(r: u8, choice: usize) -> Vec<u8> {
    const BY: [i8; 12] = [1, 2, 4, 8, 8, 16, 32, 64, -1, -4, -8, -16];
    let rex = 0x48 | (r >> 3) * 5;
    let mut bytes = vec![rex, 0x8d, 0x40 | (r & 7) * 9];
    if r & 7 == 4 {
        bytes.push(0x24);
    }
    bytes.push(BY[choice % BY.len()] as u8);
    bytes
}

/// One instruction more has been emitted: branches that end here get their displacement.
fn land(open: &mut Vec<Forward>, bytes: &mut [u8], undefined: &mut u64) {
    let end = bytes.len();
    open.retain_mut(|branch| {
        branch.left -= 1;
        if branch.left == 0 {
            bytes[branch.at] = (end - branch.at - 1) as u8;
            *undefined |= branch.undefined;
        }
        branch.left != 0
    });
}

/// What a condition reads.
fn flags_of(condition: u8) -> u64 {
    match condition >> 1 {
        0 => 0x800,
        1 => 1,
        2 => 0x40,
        3 => 0x41,
        4 => 0x80,
        5 => 4,
        6 => 0x880,
        _ => 0x8c0,
    }
}

/// Whether RCX, the loop's counter, would be lost.
fn writes_counter(info: &mut InstructionInfoFactory, i: &Instruction) -> bool {
    info.info(i).used_registers().iter().any(|used| {
        used.register().full_register() == Register::RCX
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
    })
}
