//! `load NAME [SECONDS] [ARGUMENTS...]`: runs a guest load (see `testkit::loads`) on the
//! binary that `RYOKAN` names (default: the development build), with further arguments such as
//! `-accel translator -smp 2`. `load list` names the loads.

use std::process::ExitCode;
use std::time::Duration;
use testkit::loads::{LOADS, find};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let Some(load) = find(&name) else {
        eprintln!("usage: load NAME [SECONDS] [ARGUMENTS...]; loads:");
        LOADS.iter().for_each(|load| eprintln!("  {}", load.name));
        return ExitCode::from(2);
    };
    let (seconds, rest) = match rest.first().and_then(|text| text.parse().ok()) {
        Some(seconds) => (seconds, &rest[1..]),
        None => (20, &rest[..]),
    };
    let limit = Duration::from_secs(1800) + Duration::from_secs(20) * seconds;
    let args: Vec<&str> = rest.iter().map(String::as_str).collect();
    match load.run(&args, seconds, limit) {
        Ok(verdict) => {
            println!("{}", verdict.console);
            verdict.complaints.iter().for_each(|line| println!("FAIL: kernel: {line}"));
            println!("{} {name}", if verdict.passed() { "PASS" } else { "FAIL" });
            if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(text) => {
            println!("FAIL {name}: {text}");
            ExitCode::FAILURE
        }
    }
}
