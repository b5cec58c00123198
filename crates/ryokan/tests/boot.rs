//! Debian's own kernels boot to a shell, live, and end as they should.

use serde_json::json;
use std::time::{Duration, Instant};
use testkit::Linux;
use testkit::linux::{BOOT, SOON};

const CLOUD: &str = "linux-image-cloud-amd64";

/// How often something is done: `RYOKAN_SOAK` asks for 200 times.
fn times(short: u32) -> u32 {
    if std::env::var_os("RYOKAN_SOAK").is_some() { 200 } else { short }
}

fn boots_cleanly(package: &str, args: &[&str], cpus: &str) {
    let mut linux = Linux::boot(package, args).unwrap();
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    assert_eq!(linux.shell("nproc").unwrap().trim(), cpus);
    let clocks =
        linux.shell("cat /sys/devices/system/clocksource/clocksource0/available_clocksource").unwrap();
    assert!(clocks.contains("hpet") && clocks.contains("acpi_pm"), "{clocks}");
    linux.power_off().unwrap();
}

#[test]
fn cloud_kernel_on_pc_with_qemu64() {
    boots_cleanly(CLOUD, &["-m", "256", "-M", "pc", "-cpu", "qemu64"], "1");
}

#[test]
fn cloud_kernel_on_pc_with_max_and_two_cpus() {
    boots_cleanly(CLOUD, &["-m", "256", "-cpu", "max", "-smp", "2"], "2");
}

#[test]
fn cloud_kernel_on_q35_with_max() {
    boots_cleanly(CLOUD, &["-m", "256", "-M", "q35", "-cpu", "max"], "1");
}

#[test]
fn cloud_kernel_on_q35_with_qemu64_and_two_cpus() {
    boots_cleanly(CLOUD, &["-m", "256", "-M", "q35", "-cpu", "qemu64", "-smp", "2"], "2");
}

#[test]
fn cloud_kernel_on_the_interpreter() {
    boots_cleanly(CLOUD, &["-m", "256", "-cpu", "max", "-accel", "interpreter"], "1");
}

#[test]
fn cloud_kernel_with_four_cpus() {
    boots_cleanly(CLOUD, &["-m", "512", "-cpu", "max", "-smp", "4", "-accel", "translator"], "4");
}

/// RLIMIT_AS forbids tables that span every address.
#[test]
fn little_address_space_gets_hashed_tables() {
    let own = std::process::id().to_string();
    let limited =
        std::process::Command::new("prlimit").args(["--pid", &own, "--as=3000000000"]).status().unwrap();
    assert!(limited.success());
    let mut linux = Linux::boot(CLOUD, &["-m", "256", "-cpu", "max", "-smp", "2"]).unwrap();
    assert!(linux.vm.qmp.hmp("info jit").unwrap().contains("hashed tables"));
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
}

#[test]
fn distribution_kernel_on_pc() {
    boots_cleanly("linux-image-amd64", &["-m", "512", "-cpu", "max"], "1");
}

#[test]
fn reboot_gives_reset_and_boots_again() {
    let mut linux = Linux::boot(CLOUD, &["-m", "256"]).unwrap();
    linux.vm.type_in("reboot -f\n").unwrap();
    let reset = linux.vm.qmp.event("RESET", SOON).unwrap();
    assert_eq!(reset["data"]["guest"], json!(true));
    linux.up().unwrap();
    linux.power_off().unwrap();
}

#[test]
fn no_reboot_ends_the_process_instead() {
    let mut linux = Linux::boot(CLOUD, &["-m", "256", "-no-reboot"]).unwrap();
    linux.vm.type_in("reboot -f\n").unwrap();
    linux.vm.qmp.event("SHUTDOWN", SOON).unwrap();
    assert!(linux.vm.wait(SOON).unwrap().success());
}

#[test]
fn no_shutdown_keeps_the_process_in_state_shutdown() {
    let mut linux = Linux::boot(CLOUD, &["-m", "256", "-no-shutdown"]).unwrap();
    linux.vm.type_in("poweroff -f\n").unwrap();
    linux.vm.qmp.event("SHUTDOWN", SOON).unwrap();
    linux.vm.qmp.event("STOP", SOON).unwrap();
    let status = linux.vm.qmp.execute("query-status", json!(null)).unwrap();
    assert_eq!(status["status"], "shutdown");
    let refused = linux.vm.qmp.execute("cont", json!(null)).unwrap_err();
    assert!(refused.contains("Resetting the Virtual Machine is required"), "{refused}");
    linux.vm.qmp.execute("system_reset", json!(null)).unwrap();
    linux.vm.qmp.event("RESET", SOON).unwrap();
    linux.vm.qmp.execute("cont", json!(null)).unwrap();
    linux.up().unwrap();
    linux.vm.qmp.execute("quit", json!(null)).unwrap();
    assert!(linux.vm.wait(SOON).unwrap().success());
}

#[test]
fn stop_and_cont_leave_the_guests_clock_right() {
    let mut linux = Linux::boot(CLOUD, &["-m", "256"]).unwrap();
    linux.shell("sh -c 'while :; do :; done' & true").unwrap();
    let before = linux.uptime().unwrap();
    let begin = Instant::now();
    let mut stopped = Duration::ZERO;
    for _ in 0..times(50) {
        linux.vm.qmp.execute("stop", json!(null)).unwrap();
        let at = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        stopped += at.elapsed();
        linux.vm.qmp.execute("cont", json!(null)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let host = (begin.elapsed() - stopped).as_secs_f64();
    let guest = linux.uptime().unwrap() - before;
    assert!((guest - host).abs() < 1.0, "guest {guest}, host {host}");
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
}

#[test]
fn resets_at_any_moment_are_survived() {
    let mut linux = Linux::boot(CLOUD, &["-m", "256"]).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for _ in 0..times(30) {
        linux.vm.qmp.execute("system_reset", json!(null)).unwrap();
        linux.vm.qmp.event("RESET", SOON).unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(random % 150));
    }
    let console = linux.vm.console().len();
    linux.vm.qmp.execute("system_reset", json!(null)).unwrap();
    linux.vm.expect("GUEST-UP", BOOT).unwrap();
    assert!(linux.vm.console().len() > console);
}

/// At its shell. On a machine with nothing else to do it is below 2 %, on some clouds 10; a loop that
/// waits would take all.
fn costs_next_to_nothing(args: &[&str]) {
    let linux = Linux::boot(CLOUD, &[&["-m", "256"], args].concat()).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let (cpu, begin) = (linux.vm.cpu_seconds(), Instant::now());
    std::thread::sleep(Duration::from_secs(if std::env::var_os("RYOKAN_SOAK").is_some() { 60 } else { 10 }));
    let share = (linux.vm.cpu_seconds() - cpu) / begin.elapsed().as_secs_f64();
    println!("{args:?}: {:.2} % of a CPU", share * 100.0);
    assert!(share < 0.25, "{:.1} % of a CPU", share * 100.0);
    linux.power_off().unwrap();
}

#[test]
fn a_halted_guest_on_pc_costs_next_to_nothing() {
    costs_next_to_nothing(&["-M", "pc"]);
}

#[test]
fn a_halted_guest_on_q35_with_two_cpus_costs_next_to_nothing() {
    costs_next_to_nothing(&["-M", "q35", "-smp", "2"]);
}
