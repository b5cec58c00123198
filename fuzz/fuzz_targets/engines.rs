//! Any bytes as code in the interpreter and in the translator, at both privileges: the same
//! states, memory and device accesses must come of them.
#![no_main]

use cpu_interpreter::Interpreter;
use cpu_translator::{Options, Translator};
use judge::Pair;
use std::cell::RefCell;

fn pair() -> Pair {
    let interpreter = Interpreter::new().expect("the interpreter");
    let translator = Translator::with(Options { warm: 1, ..Options::default() }).expect("the translator");
    Pair::new([&interpreter, &translator]).expect("two guests")
}

thread_local!(static PAIR: RefCell<Pair> = RefCell::new(pair()));

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    PAIR.with_borrow_mut(|pair| {
        if let Some(text) = pair.run(input).expect("both engines go on") {
            panic!("{text}");
        }
    });
});
