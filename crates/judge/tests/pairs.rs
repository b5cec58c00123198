//! Random programs on the interpreter and the translator. `RYOKAN_JUDGE_CASES` asks for more,
//! `RYOKAN_JUDGE_SEED` for others. The fuzz target `engines` runs the same with inputs of its own.

use cpu_interpreter::Interpreter;
use cpu_translator::{Options, Translator};
use judge::{Case, Family, Generator, Pair, Rng};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs `count` inputs; fails at the end if any was told apart.
fn accept(count: u64, always_watch: bool, mut next: impl FnMut(&mut Rng) -> Vec<u8>) {
    let interpreter = Interpreter::new().unwrap();
    let translator = Translator::with(Options { warm: 1, always_watch, ..Options::default() }).unwrap();
    let mut pair = Pair::new([&interpreter, &translator]).unwrap();
    let mut rng = Rng::new(number("RYOKAN_JUDGE_SEED", 7));
    let mut wrong = 0;
    for _ in 0..count {
        let input = next(&mut rng);
        if let Some(text) = pair.run(&input).unwrap() {
            wrong += 1;
            if wrong <= number("RYOKAN_JUDGE_SHOW", 12) {
                println!("{input:02x?}\n{text}");
            }
        }
    }
    assert_eq!(wrong, 0, "of {count} programs");
}

fn head(rng: &mut Rng) -> Vec<u8> {
    let mut input = vec![rng.word() as u8];
    input.extend((0..16).map(|_| rng.word() as u8));
    input
}

#[test]
fn random_bytes() {
    accept(number("RYOKAN_JUDGE_CASES", 3_000), false, |rng| {
        let mut input = head(rng);
        let len = 1 + rng.below(40);
        input.extend((0..len).map(|_| rng.word() as u8));
        input
    });
}

/// Real instructions with the registers' addresses as they come, in a loop.
#[test]
fn random_instructions() {
    let families = [Family::Integer, Family::String, Family::Sse, Family::Vex, Family::Evex];
    let mut generator = Generator::new(11, &families);
    accept(number("RYOKAN_JUDGE_CASES", 3_000), true, |rng| {
        let mut input = head(rng);
        // 64-bit code only.
        input[0] &= !2;
        let case: Case = if rng.one_in(2) { generator.looped(10, 8) } else { generator.snippet(10) };
        input.extend_from_slice(case.code());
        // Once more, or an endless loop.
        if rng.one_in(2) {
            input.extend([0xeb, (case.code().len() as i8).wrapping_add(2).wrapping_neg() as u8]);
        }
        input
    });
}

/// An indirect call with the stack beyond its limit.
#[test]
fn inputs_that_were_told_apart() {
    let call = [
        0x7b, 0x89, 0x2a, 0xef, 0x0f, 0x02, 0xb9, 0x52, 0x3c, 0xa6, 0xea, 0x2c, 0x9f, 0xf7, 0xef, 0x59, 0x2a,
        0x46, 0xff, 0xd7, 0x33, 0x50, 0xa9, 0xba, 0x2b, 0x6c,
    ];
    accept(1, true, |_| call.to_vec());
}
