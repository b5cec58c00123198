//! The engines against the silicon, with a fixed seed. `RYOKAN_JUDGE_CASES` asks for more cases,
//! `RYOKAN_JUDGE_SEED` for others, `RYOKAN_JUDGE_FAMILY` for one family.

use cpu::Engine;
use cpu_interpreter::Interpreter;
use cpu_translator::{Form, Options, Translator};
use judge::{Case, Family, Generator, Report, Subject, judge};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn families() -> Vec<Family> {
    let wanted = std::env::var("RYOKAN_JUDGE_FAMILY").ok();
    Family::ALL
        .into_iter()
        .filter(|f| wanted.as_ref().is_none_or(|w| format!("{f:?}").eq_ignore_ascii_case(w)))
        .collect()
}

/// An engine and how it is to be judged.
struct Entry {
    engine: Box<dyn Engine>,
    times: u32,
    exact_flags: bool,
}

fn interpreter() -> Entry {
    Entry { engine: Box::new(Interpreter::new().unwrap()), times: 1, exact_flags: true }
}

/// Everything is translated at once, into what guests run after a while.
fn tried() -> Options {
    Options { warm: 1, always_watch: true, measure_loops: true, always_near: true, ..Options::default() }
}

/// Blocks are translated when they are met for the second time.
fn translator() -> Entry {
    let options = Options { exact_flags: true, ..tried() };
    Entry { engine: Box::new(Translator::with(options).unwrap()), times: 3, exact_flags: true }
}

/// With flags only where they are needed, as guests run.
fn lazy_translator() -> Entry {
    let options = tried();
    Entry { engine: Box::new(Translator::with(options).unwrap()), times: 3, exact_flags: false }
}

/// As where the host does not allow flat tables; most programs run in blocks that compare their bytes.
fn hashed_translator() -> Entry {
    let options = Options { warm: 1, tables: Some(Form::Hashed), ..Options::default() };
    Entry { engine: Box::new(Translator::with(options).unwrap()), times: 3, exact_flags: false }
}

/// Judges by `cases` cases, of which at least `through` must run to their end.
fn accept(entry: &Entry, cases: u64, through: u64, mut next: impl FnMut(u64) -> Case) {
    // Flags that the architecture leaves undefined are compared too: whether an engine does as this
    // processor does, for runs in lock step with one that executes natively.
    let strict = number("RYOKAN_JUDGE_STRICT", 0) != 0;
    let next = |i| {
        let mut case = next(i);
        if strict {
            (case.undefined_flags, case.undefined_midway) = (0, 0);
        }
        case
    };
    let subject = Subject { engine: &*entry.engine, times: entry.times, exact_flags: entry.exact_flags };
    let report: Report = judge(&subject, cases, number("RYOKAN_JUDGE_SHOW", 40) as usize, next).unwrap();
    println!("{} cases, {} ran through, by exception: {:?}", report.cases, report.completed, report.vectors);
    for text in &report.texts {
        println!("{text}");
    }
    for (what, count) in &report.tally {
        println!("{count:6} {what}");
    }
    assert!(report.endless < 1 + report.cases / 10_000, "{} endless cases", report.endless);
    assert_eq!(report.disagreements, 0, "the {} disagrees with the silicon", entry.engine.name());
    assert!(report.completed > through, "most cases must test more than faults");
}

fn single_instructions(entry: &Entry) {
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 1), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 120_000);
    accept(entry, cases, cases / 2, |i| generator.single(i as usize));
}

fn snippets(entry: &Entry) {
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 2), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 60_000) / 2;
    accept(entry, cases, cases / 4, |_| generator.snippet(12));
}

fn loops(entry: &Entry) {
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 4), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 60_000) / 2;
    accept(entry, cases, cases / 4, |i| generator.looped(12, 2 + i % 40));
}

/// Short loops of many rounds: translators have other code for those.
fn long_loops(entry: &Entry) {
    let families = [Family::Integer, Family::Sse, Family::Vex];
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 5), &families);
    let cases = number("RYOKAN_JUDGE_CASES", 60_000) / 2;
    accept(entry, cases, cases / 8, |i| generator.looped(5, 20 + i % 300));
}

fn compatibility_mode(entry: &Entry) {
    let mut generator = Generator::compatibility(number("RYOKAN_JUDGE_SEED", 3), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 60_000);
    accept(entry, cases, cases / 2, |i| match i % 8 {
        0 => generator.snippet(8),
        4 => generator.looped(8, 2 + i % 40),
        _ => generator.single(i as usize),
    });
}

/// Every test for every engine, under the engine's name.
macro_rules! judged {
    ($($engine:ident),*) => {
        $(mod $engine {
            #[test]
            fn single_instructions() {
                super::single_instructions(&super::$engine());
            }
            #[test]
            fn snippets() {
                super::snippets(&super::$engine());
            }
            #[test]
            fn loops() {
                super::loops(&super::$engine());
            }
            #[test]
            fn long_loops() {
                super::long_loops(&super::$engine());
            }
            #[test]
            fn compatibility_mode() {
                super::compatibility_mode(&super::$engine());
            }
        })*
    };
}

judged!(interpreter, translator, lazy_translator, hashed_translator);
