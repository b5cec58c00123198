//! `cargo xtask demo`: boots Debian's cloud kernel and shows it being driven over QMP.

use crate::packages;
use crate::run::{Result, step};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::{Vm, guests};

const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(30);

pub fn run() -> Result {
    packages::install()?;
    step("build", "cargo", &["build", "--release", "--package", "ryokan"])?;
    println!("==> guest: Debian's linux-image-cloud-amd64, unmodified, with a busybox initramfs");
    let kernel = guests::kernel("linux-image-cloud-amd64")?;
    let initrd = guests::initramfs_file("demo", guests::SHELL, &[])?;
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let args = [
        "-m",
        "256",
        "-smp",
        "2",
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        "console=ttyS0 quiet panic=-1",
    ];
    println!("==> ryokan -nodefaults -display none -serial stdio {}", args.join(" "));
    let start = Instant::now();
    let mut vm = Vm::start(&args)?;
    let greeting = vm.qmp.greeting["QMP"]["version"].clone();
    println!("    greeting after {:.0} ms: {greeting}", start.elapsed().as_secs_f64() * 1e3);
    vm.expect("GUEST-UP", BOOT)?;
    vm.expect("# ", SOON)?;
    println!(
        "    shell after {:.1} s of wall time, {:.1} s of CPU time",
        start.elapsed().as_secs_f64(),
        vm.cpu_seconds()
    );
    print!("{}", indent(&vm.shell("uname -a; cat /proc/uptime; grep -m1 'model name' /proc/cpuinfo", SOON)?));
    drive(&mut vm)?;
    println!("==> poweroff in the guest");
    vm.type_in("poweroff -f\n")?;
    let event = vm.qmp.event("SHUTDOWN", SOON)?;
    println!("    event {} {}", event["event"], event["data"]);
    let status = vm.wait(SOON)?;
    println!("    the process ended: {status}");
    let _ = std::fs::remove_file(&initrd);
    if status.success() { Ok(()) } else { Err("the emulator failed".into()) }
}

fn drive(vm: &mut Vm) -> Result {
    for command in ["query-status", "query-kvm", "query-cpus-fast", "query-memory-size-summary"] {
        show(vm, command, Value::Null)?;
    }
    show(vm, "human-monitor-command", json!({ "command-line": "info registers" }))?;
    println!("==> stop: the guest's clock stands while the host's goes on");
    let before = uptime(vm)?;
    show(vm, "stop", Value::Null)?;
    std::thread::sleep(Duration::from_secs(2));
    show(vm, "query-status", Value::Null)?;
    show(vm, "cont", Value::Null)?;
    println!("    guest uptime {before:.2} s before, {:.2} s after", uptime(vm)?);
    println!("==> system_reset: the guest boots again");
    show(vm, "system_reset", Value::Null)?;
    vm.qmp.event("RESET", SOON)?;
    vm.expect("GUEST-UP", BOOT)?;
    vm.expect("# ", SOON)?;
    println!("    guest uptime {:.2} s; events so far: {}", uptime(vm)?, vm.qmp.take_events().join(", "));
    Ok(())
}

fn uptime(vm: &mut Vm) -> Result<f64> {
    let text = vm.shell("cat /proc/uptime", SOON)?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| format!("uptime: {text}"))
}

fn show(vm: &mut Vm, command: &str, arguments: Value) -> Result {
    println!("--> {command} {}", if arguments.is_null() { String::new() } else { arguments.to_string() });
    let reply = vm.qmp.execute(command, arguments)?;
    match reply.as_str() {
        Some(text) => print!("{}", indent(text)),
        None => println!("<-- {reply}"),
    }
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {}\n", line.trim_end())).collect()
}
