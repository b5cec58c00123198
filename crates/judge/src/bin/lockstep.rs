//! `lockstep ENGINE ENGINE INSTRUCTIONS ARGUMENTS...`: runs two machines of the same command
//! line in lock step. Variables: `LOCKSTEP_PACE` (nanoseconds an instruction, 2),
//! `LOCKSTEP_WINDOW` (most instructions of a window, 4000), `LOCKSTEP_SEED` (1),
//! `LOCKSTEP_NARROW=0` (a divergence is only reported, not narrowed down).

use judge::lockstep::{Outcome, Setup, narrow, run};
use std::io::Write;
use std::process::ExitCode;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, second, instructions, rest @ ..] = &arguments[..] else {
        eprintln!("usage: lockstep ENGINE ENGINE INSTRUCTIONS ARGUMENTS...");
        return ExitCode::from(2);
    };
    let Ok(instructions) = instructions.parse() else {
        eprintln!("lockstep: {instructions} is not a number of instructions");
        return ExitCode::from(2);
    };
    let setup = Setup {
        arguments: rest.to_vec(),
        pace: number("LOCKSTEP_PACE", 2),
        longest: number("LOCKSTEP_WINDOW", 4000),
        seed: number("LOCKSTEP_SEED", 1),
    };
    match judge_pair(&setup, [first, second], instructions) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("lockstep: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn judge_pair(setup: &Setup, engines: [&str; 2], instructions: u64) -> base::Result<bool> {
    let mut shown = 0;
    let mut due = 0;
    let (progress, outcome) = run(setup, engines, instructions, |progress| {
        print!("{}", &progress.console[shown..]);
        shown = progress.console.len();
        if progress.instructions >= due {
            due = progress.instructions + 100_000_000;
            let (millions, rip) = (progress.instructions / 1_000_000, progress.rip);
            eprintln!("lockstep: {millions} million instructions, at {rip:#x}");
        }
        let _ = std::io::stdout().flush();
    })?;
    eprintln!(
        "lockstep: {} against {}: {} instructions, {} windows, {} halts, {} comparisons of memory",
        engines[0], engines[1], progress.instructions, progress.windows, progress.halts, progress.memories
    );
    match outcome {
        Outcome::Diverged(divergence) => {
            eprintln!("lockstep: FAIL at window {}\n{}", divergence.window, divergence.text);
            if number("LOCKSTEP_NARROW", 1) != 0 {
                eprintln!("{}", narrow(setup, engines, &divergence)?);
            }
            Ok(false)
        }
        Outcome::Agreed => {
            eprintln!("lockstep: PASS");
            Ok(true)
        }
        Outcome::Ended(how) => {
            eprintln!("lockstep: PASS, the guest ended: {how:?}");
            Ok(true)
        }
    }
}
