//! Loads in guests that bring out what breaks CPU engines (`testkit::loads`). `RYOKAN_ACCEL`
//! names the engine; `cargo run -p testkit --bin load -- NAME SECONDS ARGUMENTS` runs any one.

use std::time::Duration;
use testkit::loads::find;

fn passes(name: &str, args: &[&str], seconds: u32) {
    let accel = std::env::var("RYOKAN_ACCEL").ok();
    let mut all = args.to_vec();
    if let Some(accel) = &accel {
        all.extend(["-accel", accel]);
    }
    let limit = Duration::from_secs(500) + Duration::from_secs(30) * seconds;
    let verdict = find(name).unwrap().run(&all, seconds, limit).unwrap();
    assert!(verdict.passed(), "{:#?}\n{:#?}\n{}", verdict.lines, verdict.complaints, verdict.console);
}

#[test]
fn luajit() {
    passes("luajit", &[], 0);
}

#[test]
fn programs_in_go() {
    passes("go", &["-smp", "2"], 0);
}

#[test]
#[ignore = "long"]
fn python() {
    passes("python", &["-cpu", "max"], 0);
}

#[test]
#[ignore = "long"]
fn modules_under_load() {
    passes("modules", &["-smp", "2"], 60);
}

#[test]
#[ignore = "long"]
fn gdb_steps_through_a_program() {
    passes("gdb", &[], 0);
}

#[test]
#[ignore = "ten minutes of the guest's time"]
fn stress_ng_verifies() {
    passes("stress", &["-smp", "2", "-cpu", "max"], 600);
}

#[test]
#[ignore = "long"]
fn ftrace_for_a_minute() {
    passes("ftrace", &["-smp", "2"], 60);
}

#[test]
fn two_cpus_contend_for_locks() {
    passes("contention", &["-smp", "2"], 2);
}

#[test]
#[ignore = "long"]
fn two_cpus_contend_for_locks_for_a_minute() {
    passes("contention", &["-smp", "2"], 60);
}

#[test]
#[ignore = "long"]
fn four_cpus_contend_for_locks() {
    passes("contention", &["-smp", "4"], 60);
}

#[test]
#[ignore = "long"]
fn stress_ng_verifies_on_four_cpus() {
    passes("stress", &["-smp", "4", "-cpu", "max"], 120);
}
