//! The interpreter against the silicon, with a fixed seed. `RYOKAN_JUDGE_CASES` asks for more
//! cases, `RYOKAN_JUDGE_SEED` for others, `RYOKAN_JUDGE_FAMILY` for one family.

use cpu_interpreter::Interpreter;
use judge::{Family, Generator, Report, judge};

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

fn accept(report: &Report) {
    println!("{} cases, {} ran through, by exception: {:?}", report.cases, report.completed, report.vectors);
    for text in &report.texts {
        println!("{text}");
    }
    for (what, count) in &report.tally {
        println!("{count:6} {what}");
    }
    assert!(report.endless < 1 + report.cases / 10_000, "{} endless cases", report.endless);
    assert_eq!(report.disagreements, 0, "the interpreter disagrees with the silicon");
}

#[test]
fn single_instructions() {
    let engine = Interpreter::new().unwrap();
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 1), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 120_000);
    let report =
        judge(&engine, cases, number("RYOKAN_JUDGE_SHOW", 40) as usize, |i| generator.single(i as usize))
            .unwrap();
    accept(&report);
    assert!(report.completed > cases / 2, "most cases must test more than faults");
}

#[test]
fn snippets() {
    let engine = Interpreter::new().unwrap();
    let mut generator = Generator::new(number("RYOKAN_JUDGE_SEED", 2), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 60_000) / 2;
    let report =
        judge(&engine, cases, number("RYOKAN_JUDGE_SHOW", 40) as usize, |_| generator.snippet(12)).unwrap();
    accept(&report);
    assert!(report.completed > cases / 4, "most snippets must run through");
}

#[test]
fn compatibility_mode() {
    let engine = Interpreter::new().unwrap();
    let mut generator = Generator::compatibility(number("RYOKAN_JUDGE_SEED", 3), &families());
    let cases = number("RYOKAN_JUDGE_CASES", 60_000);
    let show = number("RYOKAN_JUDGE_SHOW", 40) as usize;
    let next = |i: u64| if i % 4 == 0 { generator.snippet(8) } else { generator.single(i as usize) };
    let report = judge(&engine, cases, show, next).unwrap();
    accept(&report);
    assert!(report.completed > cases / 2, "most cases must test more than faults");
}
