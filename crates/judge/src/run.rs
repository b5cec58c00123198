//! Judging an engine over many cases.

use crate::case::{Case, Outcome, layout};
use crate::compare::{Difference, compare};
use crate::native::{BATCH, DIED, Native, TIMED_OUT};
use crate::rig::Rig;
use crate::rng::Rng;
use base::Result;
use cpu::Engine;
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use std::collections::BTreeMap;

/// CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8d5;
const BREAKPOINT: u64 = 3;

/// What came out.
#[derive(Default)]
pub struct Report {
    pub cases: u64,
    /// Cases that ran to their end, natively.
    pub completed: u64,
    /// Cases by the exception that ended them.
    pub vectors: BTreeMap<u64, u64>,
    pub disagreements: u64,
    /// Cases that ran in circles natively and were left out.
    pub endless: u64,
    /// The first disagreements, described.
    pub texts: Vec<String>,
    /// Disagreements by the first instruction's mnemonic and what differed.
    pub tally: BTreeMap<String, u64>,
}

/// An engine to be judged.
pub struct Subject<'a> {
    pub engine: &'a dyn Engine,
    /// How often a case is run before its outcome counts.
    pub times: u32,
    /// Flags that later instructions overwrite are right even where an exception shows them.
    pub exact_flags: bool,
}

/// Runs `count` cases from `next` natively and in an engine; describes at most `keep`
/// disagreements.
pub fn judge(
    subject: &Subject,
    count: u64,
    keep: usize,
    mut next: impl FnMut(u64) -> Case,
) -> Result<Report> {
    let mut rng = Rng::new(0x7e3a_0001);
    let mut template = [0; layout::DATA_SIZE as usize];
    let mut read_only = [0; layout::PAGE as usize];
    for word in template.chunks_exact_mut(8).chain(read_only.chunks_exact_mut(8)) {
        word.copy_from_slice(&rng.float().to_le_bytes());
    }
    let mut native = Native::new(&template, &read_only)?;
    let mut rig = Rig::new(subject.engine, subject.times, &template, &read_only)?;
    let mut report = Report::default();
    let mut done = 0;
    while done < count {
        let n = (count - done).min(BATCH as u64);
        let cases: Vec<Case> = (done..done + n).map(&mut next).collect();
        native.run(&cases, |i, silicon| {
            // What does not end natively would not end in the engine either.
            let ends = !matches!(silicon.vector, DIED | TIMED_OUT);
            let outcome = ends.then(|| {
                let mut outcome = rig.run(&cases[i])?;
                if !subject.exact_flags && silicon.vector != BREAKPOINT {
                    let flags = &mut outcome.registers.rflags;
                    *flags = *flags & !ARITHMETIC | silicon.registers.rflags & ARITHMETIC;
                }
                Ok(outcome)
            });
            report.add(&cases[i], silicon, outcome, keep);
        })?;
        done += n;
    }
    Ok(report)
}

/// Instructions of a case, one a line.
pub fn listing(case: &Case) -> String {
    let mut decoder =
        Decoder::with_ip(case.bits as u32, case.code(), case.registers.rip, DecoderOptions::AMD);
    let mut text = String::new();
    let mut formatter = FastFormatter::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        formatter.format(&instruction, &mut text);
        text.push_str("; ");
    }
    text
}

impl Report {
    fn add(&mut self, case: &Case, silicon: &Outcome, engine: Option<Result<Box<Outcome>>>, keep: usize) {
        self.cases += 1;
        *self.vectors.entry(silicon.vector).or_default() += 1;
        self.completed += u64::from(silicon.vector == 3);
        let differences = match engine {
            None if silicon.vector == TIMED_OUT => {
                self.endless += 1;
                Vec::new()
            }
            None => vec![("child".into(), "died".into(), String::new())],
            Some(Ok(outcome)) => compare(case, silicon, &outcome),
            Some(Err(failure)) => vec![("engine".into(), String::new(), failure.text)],
        };
        if !differences.is_empty() {
            self.note(case, silicon, &differences, keep);
        }
    }

    fn note(&mut self, case: &Case, silicon: &Outcome, differences: &[Difference], keep: usize) {
        self.disagreements += 1;
        let first =
            Decoder::with_ip(case.bits as u32, case.code(), case.registers.rip, DecoderOptions::AMD).decode();
        let key = format!("{:?} {}", first.code(), differences[0].0);
        let seen = self.tally.entry(key).or_default();
        *seen += 1;
        if self.texts.len() >= keep || *seen > 1 {
            return;
        }
        let mut text = format!("{:02x?} at {:#x}: {}\n", case.code(), case.registers.rip, listing(case));
        for (what, a, b) in differences.iter().take(8) {
            text.push_str(&format!("    {what}: silicon {a}, engine {b}\n"));
        }
        let r = &case.registers;
        text.push_str(&format!(
            "    before: gpr {:x?} rflags {:#x} mxcsr {:#x} fcw {:#x} fsw {:#x} ftw {:#x}; vector {}\n",
            r.gpr, r.rflags, r.mxcsr, r.fcw, r.fsw, r.ftw, silicon.vector
        ));
        self.texts.push(text);
    }
}
