//! The guest's clocks against the host's. `RYOKAN_SOAK` asks for a minute each instead of seconds.

use std::time::{Duration, Instant};
use testkit::Linux;

const CLOUD: &str = "linux-image-cloud-amd64";

/// What a clock of the guest showed, and the moments between which it did.
#[derive(Clone, Copy, Debug)]
struct Reading {
    value: f64,
    before: Instant,
    after: Instant,
}

/// Runs a command in the guest that shows a clock.
fn read(linux: &mut Linux, command: &str) -> Reading {
    let before = Instant::now();
    let text = linux.shell(command).unwrap();
    let after = Instant::now();
    let word = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Reading { value: word.unwrap_or_else(|| panic!("{command}: {text}")), before, after }
}

/// The clock must have moved as much as the host's did, within 0.1 % (and `grain`): the moments
/// of reading are only known to lie between two of the host's.
fn agrees(name: &str, first: Reading, last: Reading, grain: f64) {
    let moved = last.value - first.value;
    let least = last.before.duration_since(first.after).as_secs_f64() * 0.999 - grain;
    let most = last.after.duration_since(first.before).as_secs_f64() * 1.001 + grain;
    println!("{name}: {moved:.3} s between {least:.3} and {most:.3}");
    assert!(least <= moved && moved <= most, "{name}: {moved} s, host {least} to {most}");
}

/// A guest whose kernel does not talk into what is read.
fn quiet(args: &[&str], append: &str) -> Linux {
    let mut linux = Linux::boot_with(CLOUD, args, append).unwrap();
    linux.shell("dmesg -n 1").unwrap();
    linux
}

fn span() -> Duration {
    Duration::from_secs(if std::env::var_os("RYOKAN_SOAK").is_some() { 60 } else { 4 })
}

const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";
/// `sched_clock`, which is the TSC.
const TSC: &str = "echo now >/dev/kmsg; dmesg | tail -n 1 | tr -d '[]'";
/// The RTC's next second, and times of the guest's clock before and after it began.
const RTC: &str = "cd /sys/class/rtc/rtc0; read a <since_epoch; b=$a; while [ $a = $b ]; do \
                   read x y </proc/uptime; read b <since_epoch; done; read z y </proc/uptime; echo $b $x $z";

fn compare(linux: &mut Linux, name: &str, command: &str, grain: f64) {
    let first = read(linux, command);
    std::thread::sleep(span());
    let last = read(linux, command);
    agrees(name, first, last, grain);
}

#[test]
fn hpet_power_management_timer_and_tsc_agree_with_the_host() {
    let mut linux = quiet(&["-m", "256"], "");
    for source in ["hpet", "acpi_pm"] {
        let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let now = linux.shell(&format!("echo {source} >{file}; cat {file}")).unwrap();
        assert_eq!(now.trim(), source);
        compare(&mut linux, source, UPTIME, 0.011);
    }
    compare(&mut linux, "tsc", TSC, 0.000_002);
    linux.power_off().unwrap();
}

/// By the guest's clock, which is the HPET: see above.
#[test]
fn the_rtc_agrees_with_the_hpet() {
    let mut linux = quiet(&["-m", "256"], "clocksource=hpet");
    let edge = |linux: &mut Linux| -> [f64; 3] {
        let text = linux.shell(RTC).unwrap();
        let words: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        words.try_into().unwrap_or_else(|_| panic!("{text}"))
    };
    let [first, early, late] = edge(&mut linux);
    std::thread::sleep(span());
    let [last, earliest, latest] = edge(&mut linux);
    let (moved, grain) = (last - first, 0.01);
    let (least, most) = ((earliest - late) * 0.999 - grain, (latest - early) * 1.001 + grain);
    println!("rtc: {moved} s between {least:.3} and {most:.3}");
    assert!(least <= moved && moved <= most, "{moved} s, HPET {least} to {most}");
    linux.power_off().unwrap();
}

/// Interrupts of a periodic timer in the guest's count: never more than the time since the start
/// holds (some may come late); on an idle host as many as the host's time says.
fn ticks(args: &[&str], append: &str, line: &str) {
    let start = Instant::now();
    let mut linux = quiet(args, append);
    let hz = 250.0;
    let command = format!("grep '{line}' /proc/interrupts | awk '{{ print $2 / {hz} }}'");
    let first = read(&mut linux, &command);
    std::thread::sleep(span());
    let last = read(&mut linux, &command);
    let moved = last.value - first.value;
    let most = last.after.duration_since(start).as_secs_f64();
    let least = last.before.duration_since(first.after).as_secs_f64();
    println!("{line}: {moved:.3} s of ticks in {least:.3} s; in all {:.3} of {most:.3}", last.value);
    assert!(last.value <= most * 1.001, "{line}: {} s of ticks in {most} s", last.value);
    // A host without time for the guest loses ticks, as hardware does whose interrupts wait.
    assert!(moved >= least * 0.5, "{line}: {moved} s of ticks in {least} s");
    linux.power_off().unwrap();
}

#[test]
fn the_apic_timer_ticks_at_its_rate() {
    ticks(&["-m", "256"], "nohz=off highres=off", "LOC:");
}

#[test]
fn the_pit_ticks_at_its_rate() {
    ticks(&["-m", "256"], "nohz=off highres=off nolapic noapic hpet=disable", " timer");
}
