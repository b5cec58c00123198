//! Making cases: random instructions over every encoding, biased to what breaks engines.

mod catalog;
mod flow;
mod operands;
mod settle;
mod state;

use crate::case::{Case, layout};
use crate::rng::Rng;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, OpKind};

pub use catalog::Family;
use operands::Build;

/// A seeded source of cases.
pub struct Generator {
    rng: Rng,
    codes: Vec<Code>,
    bits: u32,
    /// Cases have AVX-512 state.
    wide: bool,
}

/// REX, size, segment and repeat prefixes to put in front of finished instructions.
const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x65, 0x40, 0x48, 0x4f];

impl Generator {
    pub fn new(seed: u64, families: &[Family]) -> Generator {
        Generator::of(seed, families, 64)
    }

    /// For 32-bit code (in compatibility mode).
    pub fn compatibility(seed: u64, families: &[Family]) -> Generator {
        Generator::of(seed, families, 32)
    }

    fn of(seed: u64, families: &[Family], bits: u32) -> Generator {
        let wide = families.contains(&Family::Evex) && cpu_host::has_avx512();
        Generator { rng: Rng::new(seed), codes: catalog::codes(families, bits), bits, wide }
    }

    fn start(&mut self) -> Case {
        let mut case = Case { bits: self.bits.into(), ..Case::default() };
        state::randomize(&mut case, &mut self.rng, self.wide);
        case
    }

    /// Number of encodings that this generator covers.
    pub fn encodings(&self) -> usize {
        self.codes.len()
    }

    /// A case of one instruction. Encodings are visited in turn, so that none is missed:
    /// `index` says which.
    pub fn single(&mut self, index: usize) -> Case {
        let code = self.codes[index % self.codes.len()];
        for _ in 0..32 {
            if let Some(case) = self.try_single(code) {
                return case;
            }
        }
        self.fallback()
    }

    /// A case of two to `max` instructions without branches in between.
    pub fn snippet(&mut self, max: usize) -> Case {
        for _ in 0..32 {
            if let Some(case) = self.try_snippet(max) {
                return case;
            }
        }
        self.fallback()
    }

    /// A loop of a snippet's kind of instructions with branches over some of them: RCX rounds.
    pub fn looped(&mut self, max: usize, rounds: u64) -> Case {
        for _ in 0..32 {
            if let Some(case) = flow::looped(self, max, rounds) {
                return case;
            }
        }
        self.fallback()
    }

    /// NOP: for encodings that turn out impossible.
    fn fallback(&self) -> Case {
        let mut case = Case::default();
        case.set_code(&[0x90]);
        case
    }

    fn try_single(&mut self, code: Code) -> Option<Case> {
        let mut case = self.start();
        let bits = self.bits;
        let rng = &mut self.rng;
        place_code(&mut case, rng);
        let rip = case.registers.rip;
        let mut build = Build::new(rng, &mut case, false);
        let instruction = build.instruction(code, rip)?;
        let mut bytes = encode(&instruction, rip, bits)?;
        if self.rng.one_in(20) {
            bytes.insert(0, self.rng.pick(&PREFIXES));
        } else if self.rng.one_in(100) {
            bytes.insert(0, 0xf0);
        }
        let decoded = decode(&bytes, rip, bits);
        let vex = matches!(bytes.get(1), Some(0xc4 | 0xc5));
        // Where an undefined instruction ends is not defined: keep it off the last page's end.
        let roomy = rip < layout::CODE + layout::CODE_SIZE - 16;
        let acceptable = match decoded.is_invalid() {
            true => roomy && (vex || bytes[0] == 0xf0),
            // AMD: LOCK MOV CR0 is MOV CR8.
            // REPNE LOOPE is not the same everywhere.
            false if decoded.is_loopcc() && matches!(bytes[0], 0xf2 | 0xf3) => false,
            false => {
                catalog::usable(decoded.code(), bits)
                    && !(bytes[..2.min(bytes.len())].contains(&0xf0) && decoded.is_privileged())
            }
        };
        if !acceptable || (!decoded.is_invalid() && decoded.len() != bytes.len()) || bytes.len() > 15 {
            return None;
        }
        if !decoded.is_invalid() {
            settle::settle(&mut self.rng, &mut case, &decoded);
            let low_address = (0..decoded.op_count()).any(|n| decoded.op_kind(n) == OpKind::MemorySegDI);
            if settle::misaligned_sha(&decoded, &case.registers) || low_address {
                return None;
            }
            case.undefined_flags = settle::undefined_flags(&decoded, &case.registers);
            settle::tolerate(&mut case, &decoded);
            case.undefined_result = u64::from(settle::undefined_result(&decoded, &case.registers));
        }
        case.set_code(&bytes);
        Some(case)
    }

    fn try_snippet(&mut self, max: usize) -> Option<Case> {
        let mut case = self.start();
        let bits = self.bits;
        case.registers.rip = layout::CODE + self.rng.below(layout::PAGE);
        let wanted = 2 + self.rng.below(max.max(3) as u64 - 2);
        let mut bytes = Vec::new();
        let mut undefined = 0;
        let mut midway = 0;
        let mut build = Build::new(&mut self.rng, &mut case, true);
        let mut done = 0;
        for _ in 0..4 * wanted {
            let code = self.codes[build.below(self.codes.len() as u64) as usize];
            let rip = build.rip() + bytes.len() as u64;
            let Some(instruction) = build.instruction(code, rip) else { continue };
            let Some(encoded) = encode(&instruction, rip, bits) else { continue };
            let decoded = decode(&encoded, rip, bits);
            let fits = bytes.len() + encoded.len() <= crate::case::MAX_CODE - 8;
            if decoded.is_invalid()
                || !fits
                || decoded.flow_control() != FlowControl::Next
                || !settle::suits_snippet(&decoded)
                || settle::flags_read(&decoded) & undefined != 0
            {
                continue;
            }
            undefined =
                undefined & !settle::flags_defined(&decoded) | settle::undefined_flags_static(&decoded);
            midway |= undefined;
            bytes.extend(encoded);
            done += 1;
            if done == wanted {
                break;
            }
        }
        case.undefined_flags = undefined;
        case.undefined_midway = midway;
        case.set_code(&bytes);
        (done >= 2).then_some(case)
    }
}

fn place_code(case: &mut Case, rng: &mut Rng) {
    let end = layout::CODE + layout::CODE_SIZE;
    case.registers.rip = match rng.below(20) {
        0 => layout::CODE + layout::PAGE - 1 - rng.below(12),
        1 => end - 1 - rng.below(12),
        _ => layout::CODE + rng.below(layout::CODE_SIZE - 64),
    };
}

fn encode(instruction: &Instruction, rip: u64, bits: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(instruction, rip).ok()?;
    Some(encoder.take_buffer())
}

fn decode(bytes: &[u8], rip: u64, bits: u32) -> Instruction {
    Decoder::with_ip(bits, bytes, rip, DecoderOptions::AMD).decode()
}
