//! `cargo xtask bench NAME`: our figure, the peer's and the ratio, from one run.

mod block;
mod nbd;

use crate::run::{Result, root, step};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::Qmp;

const NAMES: &str = "cpu [OPTION...]   guest code against QEMU's TCG and the host (shared/bench/guest-cpu.py)\n  \
                     control           start-up, QMP commands per second, memory, binary size\n  \
                     block [PART...]   images, exports and jobs against QEMU's tools (requests, nbd, jobs, open)";

pub fn run(args: &[String]) -> Result {
    let Some(name) = args.first() else { return Err(format!("which benchmark?\n  {NAMES}")) };
    step("build", "cargo", &["build", "--quiet", "--release", "--package", "ryokan"])?;
    match name.as_str() {
        "cpu" => cpu(&args[1..]),
        "control" => control(),
        "block" => block::run(&args[1..]),
        other => Err(format!("no benchmark '{other}'; there are:\n  {NAMES}")),
    }
}

fn ours() -> PathBuf {
    testkit::vm::binary()
}

/// QEMU, if it is installed (or named by `PEER`).
fn peer() -> Option<PathBuf> {
    let named = std::env::var_os("PEER").map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"));
    path.exists().then_some(path)
}

fn cpu(options: &[String]) -> Result {
    let script = root().join("../shared/bench/guest-cpu.py");
    if !script.exists() {
        return Err(format!(
            "{} is missing: the shared bench folder belongs beside the repository",
            script.display()
        ));
    }
    let ours = ours().display().to_string();
    let script = script.display().to_string();
    // `PEER` may carry arguments, as the script's own do.
    let named = std::env::var("PEER").ok();
    let peer = named.or_else(|| peer().map(|path| path.display().to_string()));
    let mut args = vec![script.as_str(), ours.as_str()];
    match &peer {
        Some(peer) => args.push(peer),
        None => {
            println!("no QEMU to compare with: apt-get install --no-install-recommends qemu-system-x86");
            args.push(&ours);
        }
    }
    args.extend(options.iter().map(String::as_str));
    step("guest-cpu", "python3", &args)
}

/// One emulator's figures.
#[derive(Default)]
struct Figures {
    greeting_ms: Vec<f64>,
    commands_per_second: Vec<f64>,
    rss_greeting: f64,
    rss_idle: f64,
    binary: f64,
}

fn control() -> Result {
    let mut columns = vec![("ryokan", ours(), Figures::default())];
    match peer() {
        Some(path) => columns.push(("qemu", path, Figures::default())),
        None => println!("no QEMU to compare with: apt-get install --no-install-recommends qemu-system-x86"),
    }
    for _ in 0..7 {
        for (_, path, figures) in &mut columns {
            measure(path, figures)?;
        }
    }
    for (_, path, figures) in &mut columns {
        figures.binary = std::fs::metadata(&*path).map_or(0.0, |meta| meta.len() as f64 / 1e6);
    }
    let figures: Vec<&Figures> = columns.iter().map(|(_, _, figures)| figures).collect();
    println!("{:<28}{:>12}{:>12}{:>10}", "", "ryokan", if figures.len() > 1 { "qemu" } else { "" }, "ratio");
    let row = |name: &str, high: bool, value: &dyn Fn(&Figures) -> f64| {
        let values: Vec<f64> = figures.iter().map(|f| value(f)).collect();
        let ratio = match values[..] {
            [ours, peer] if high => format!("{:.2}", ours / peer),
            [ours, peer] => format!("{:.2}", peer / ours),
            _ => String::new(),
        };
        let shown: String = values.iter().map(|v| format!("{v:>12.1}")).collect();
        println!("{name:<28}{shown}{ratio:>10}");
    };
    row("exec to greeting, ms", false, &|f| median(&f.greeting_ms));
    row("query-status, thousand/s", true, &|f| median(&f.commands_per_second) / 1e3);
    row("RSS at greeting, MB", false, &|f| f.rss_greeting);
    row("RSS idle (pc, 128 MB), MB", false, &|f| f.rss_idle);
    row("binary, MB", false, &|f| f.binary);
    println!("a ratio above 1: Ryokan is better");
    Ok(())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn start(path: &Path, args: &[&str], socket: &Path) -> Result<Child> {
    let _ = std::fs::remove_file(socket);
    Command::new(path)
        .args(args)
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn measure(path: &Path, figures: &mut Figures) -> Result {
    let socket = std::env::temp_dir().join(format!("ryokan-bench-{}", std::process::id()));
    let none = ["-M", "none", "-nodefaults", "-display", "none", "-S"];
    let begin = Instant::now();
    let mut child = start(path, &none, &socket)?;
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20))?;
    figures.greeting_ms.push(begin.elapsed().as_secs_f64() * 1e3);
    figures.rss_greeting = rss(child.id());
    figures.commands_per_second.push(commands_per_second(&mut qmp)?);
    qmp.execute("quit", Value::Null)?;
    let _ = child.wait();
    let idle = ["-M", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-m", "128"];
    let mut child = start(path, &idle, &socket)?;
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20))?;
    figures.rss_idle = rss(child.id());
    qmp.execute("quit", Value::Null)?;
    let _ = child.wait();
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

fn commands_per_second(qmp: &mut Qmp) -> Result<f64> {
    const COUNT: u32 = 4000;
    let begin = Instant::now();
    for _ in 0..COUNT {
        qmp.execute("query-status", Value::Null)?;
    }
    Ok(f64::from(COUNT) / begin.elapsed().as_secs_f64())
}

/// Resident memory in MB.
fn rss(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
