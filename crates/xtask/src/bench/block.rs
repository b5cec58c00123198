//! `cargo xtask bench block`: images, NBD exports and jobs against QEMU's tools.

use super::nbd::{self, Load};
use super::{median, ours, rss};
use crate::run::{Result, output, root, step};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::Qmp;

const DAEMON: &str = "qemu-storage-daemon";
/// Pages apart, so that requests lie all over the image.
const STRIDE: u64 = 1_052_672;
/// Runs of each measurement; the median counts.
const REPEAT: usize = 5;
const JOB_BYTES: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(120);

const PARTS: [&str; 4] = ["requests", "nbd", "jobs", "open"];

/// `args` are names of parts and pieces of names of rows ("1 MiB", "mirror"): only these are
/// measured, if there are any.
pub fn run(args: &[String]) -> Result {
    let (parts, rows): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| PARTS.contains(&arg.as_str()));
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|arg| arg == part);
    step("build", "cargo", &["build", "-q", "--release", "-p", "block", "--example", "block-bench"])?;
    let dir = PathBuf::from(format!("/dev/shm/ryokan-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let bench = Bench { dir: dir.clone(), rows };
    println!("{:<44}{:>12}{:>12}{:>8}", "", "ryokan", "qemu", "ratio");
    let measured = (|| {
        if wanted("requests") {
            bench.requests()?;
        }
        if wanted("nbd") {
            bench.exports()?;
        }
        if wanted("jobs") {
            bench.jobs()?;
        }
        if wanted("open") {
            bench.opening()?;
        }
        Ok(())
    })();
    let _ = std::fs::remove_dir_all(&dir);
    println!("a ratio above 1: Ryokan is better");
    measured
}

struct Bench {
    dir: PathBuf,
    /// Pieces of the names of rows that are wanted; none: all.
    rows: Vec<String>,
}

/// A row: `high` if more is better.
fn row(name: &str, high: bool, ours: f64, peer: f64) {
    let ratio = if high { ours / peer } else { peer / ours };
    println!("{name:<44}{ours:>12.2}{peer:>12.2}{ratio:>8.2}");
}

fn fill(path: &Path, bytes: u64) -> Result {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = std::fs::File::create(path).map_err(failed)?;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        for word in block.chunks_exact_mut(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            word.copy_from_slice(&random.to_le_bytes());
        }
        file.write_all(&block).map_err(failed)?;
    }
    Ok(())
}

impl Bench {
    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|piece| row.contains(piece))
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn make(&self, name: &str, format: &str, bytes: u64) -> Result<String> {
        let raw = self.path("fill.raw");
        fill(Path::new(&raw), bytes)?;
        let path = self.path(name);
        match format {
            "raw" => std::fs::rename(&raw, &path).map_err(|e| e.to_string())?,
            _ => {
                output("qemu-img", &["convert", "-f", "raw", "-O", format, &raw, &path])?;
                let _ = std::fs::remove_file(&raw);
            }
        }
        Ok(path)
    }

    fn requests(&self) -> Result {
        let shapes =
            [("4 KiB", 4096u64, 1, 20_000), ("4 KiB", 4096, 32, 60_000), ("1 MiB", 1 << 20, 4, 1500)];
        for format in ["raw", "qcow2"] {
            let file = self.make(&format!("a.{format}"), format, 256 << 20)?;
            for aio in ["threads", "io_uring"] {
                for kind in ["read", "write"] {
                    for (label, size, depth, count) in shapes {
                        let name = format!("{format} {aio} {kind} {label} x{depth}, /s");
                        if !self.wants(&name) {
                            continue;
                        }
                        let load = [size, if size > 65536 { size } else { STRIDE }, depth, count];
                        let load: Vec<String> = load.iter().map(u64::to_string).collect();
                        let (mut ours, mut peer) = (Vec::new(), Vec::new());
                        for _ in 0..REPEAT {
                            ours.push(count as f64 / own_seconds(format, aio, kind, &load, &file)?);
                            peer.push(count as f64 / peer_seconds(format, aio, kind, &load, &file)?);
                        }
                        let (ours, peer) = (median(&ours), median(&peer));
                        row(&name, true, ours, peer);
                    }
                }
            }
            let _ = std::fs::remove_file(&file);
        }
        Ok(())
    }

    /// A fresh server: ours or the peer's. One at a time, as images are locked.
    fn server(&self, peer: bool) -> Result<Server> {
        let program = if peer { DAEMON.to_string() } else { ours().display().to_string() };
        Server::start(&program, peer, self.path("qmp"))
    }

    /// Runs the same on both, in turns, and prints a row.
    fn both(&self, name: &str, high: bool, run: impl Fn(&mut Server) -> Result<f64>) -> Result {
        if !self.wants(name) {
            return Ok(());
        }
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..REPEAT {
            for (figures, peer) in figures.iter_mut().zip([false, true]) {
                match run(&mut self.server(peer)?) {
                    Ok(figure) => figures.push(figure),
                    // The other figures are still worth having.
                    Err(why) => eprintln!("{name} ({}): {why}", if peer { "qemu" } else { "ryokan" }),
                }
            }
        }
        row(name, high, median(&figures[0]), median(&figures[1]));
        Ok(())
    }

    fn exports(&self) -> Result {
        for format in ["raw", "qcow2"] {
            let file = self.make(&format!("n.{format}"), format, 256 << 20)?;
            for (write, depth) in [(false, 1), (false, 32), (true, 1), (true, 32)] {
                let kind = if write { "write" } else { "read" };
                let load = Load { write, size: 4096, depth, time: Duration::from_secs(1) };
                self.both(&format!("NBD {format} {kind} 4 KiB x{depth}, /s"), true, |server| {
                    let socket = server.export(format, &file)?;
                    nbd::measure(Path::new(&socket), "n", &load)
                })?;
            }
            self.both(&format!("nbdcopy from {format}, MB/s"), true, |server| {
                let uri = format!("nbd+unix:///n?socket={}", server.export(format, &file)?);
                let begin = Instant::now();
                for _ in 0..4 {
                    output("nbdcopy", &[&uri, "null:"])?;
                }
                Ok((1u64 << 30) as f64 / 1e6 / begin.elapsed().as_secs_f64())
            })?;
            self.both(&format!("nbdcopy to {format}, MB/s"), true, |server| {
                let uri = format!("nbd+unix:///n?socket={}", server.export(format, &file)?);
                let source = self.path("source");
                fill(Path::new(&source), 256 << 20)?;
                let begin = Instant::now();
                for _ in 0..4 {
                    output("nbdcopy", &[&source, &uri])?;
                }
                Ok((1u64 << 30) as f64 / 1e6 / begin.elapsed().as_secs_f64())
            })?;
            let _ = std::fs::remove_file(&file);
        }
        Ok(())
    }

    fn jobs(&self) -> Result {
        for format in ["raw", "qcow2"] {
            let source = self.make("source", format, JOB_BYTES)?;
            let target = self.path("target");
            let fresh = || output("qemu-img", &["create", "-q", "-f", format, &target, "1G"]);
            self.both(&format!("mirror 1 GiB {format}, s"), false, |server| {
                fresh()?;
                server.add("s", format, &source)?;
                server.add("t", format, &target)?;
                let job = json!({"job-id": "j", "device": "s", "target": "t", "sync": "full"});
                server.job("blockdev-mirror", job, "BLOCK_JOB_READY")
            })?;
            self.both(&format!("backup 1 GiB {format}, s"), false, |server| {
                fresh()?;
                server.add("s", format, &source)?;
                server.add("t", format, &target)?;
                let job = json!({"job-id": "j", "device": "s", "target": "t", "sync": "full"});
                server.job("blockdev-backup", job, "BLOCK_JOB_COMPLETED")
            })?;
            let _ = std::fs::remove_file(&source);
        }
        let (base, top, data) = (self.path("base"), self.path("top"), self.make("data", "qcow2", JOB_BYTES)?);
        self.both("commit 1 GiB qcow2, s", false, |server| {
            output("qemu-img", &["create", "-q", "-f", "qcow2", &base, "1G"])?;
            std::fs::copy(&data, &top).map_err(|e| e.to_string())?;
            server.add("b", "qcow2", &base)?;
            server.overlay("t", &top, "b")?;
            output("qemu-img", &["create", "-q", "-f", "qcow2", &self.path("active"), "1G"])?;
            server.overlay("a", &self.path("active"), "t")?;
            let job = json!({"job-id": "j", "device": "a", "top-node": "t", "base-node": "b"});
            server.job("block-commit", job, "BLOCK_JOB_COMPLETED")
        })?;
        self.both("stream 1 GiB qcow2, s", false, |server| {
            output("qemu-img", &["create", "-q", "-f", "qcow2", &top, "1G"])?;
            server.add("b", "qcow2", &data)?;
            server.overlay("t", &top, "b")?;
            server.job("block-stream", json!({"job-id": "j", "device": "t"}), "BLOCK_JOB_COMPLETED")
        })
    }

    fn opening(&self) -> Result {
        let image = self.path("big");
        output("qemu-img", &["create", "-q", "-f", "qcow2", &image, "1T"])?;
        self.both("open and close 1 TiB qcow2, ms", false, |server| {
            let begin = Instant::now();
            for _ in 0..50 {
                server.add("x", "qcow2", &image)?;
                server.qmp.execute("blockdev-del", json!({"node-name": "x"}))?;
            }
            Ok(begin.elapsed().as_secs_f64() * 1e3 / 50.0)
        })?;
        self.both("memory per open 1 TiB qcow2, kB", false, |server| {
            let before = rss(server.child.id());
            for count in 0..64 {
                let path = self.path(&format!("big{count}"));
                if !Path::new(&path).exists() {
                    std::fs::copy(&image, &path).map_err(|e| e.to_string())?;
                }
                server.add(&format!("x{count}"), "qcow2", &path)?;
            }
            Ok((rss(server.child.id()) - before) * 1e3 / 64.0)
        })
    }
}

fn own_seconds(format: &str, aio: &str, kind: &str, load: &[String], file: &str) -> Result<f64> {
    let program = root().join("target/release/examples/block-bench").display().to_string();
    let mut args = vec![format, aio, "0", kind];
    args.extend(load.iter().map(String::as_str));
    args.push(file);
    let out = output(&program, &args)?;
    out.trim().parse().map_err(|e| format!("block-bench: {e}: {out}"))
}

fn peer_seconds(format: &str, aio: &str, kind: &str, load: &[String], file: &str) -> Result<f64> {
    let [size, step, depth, count] = load else { return Err("four numbers".into()) };
    let mut args = vec!["bench", "-t", "writeback", "-f", format, "-i", aio, "-s", size, "-S", step];
    args.extend(["-d", depth, "-c", count]);
    if kind == "write" {
        args.push("-w");
    }
    args.push(file);
    let out = output("qemu-img", &args)?;
    let words: Vec<&str> = out.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("seconds")).unwrap_or(0);
    words.get(at.wrapping_sub(1)).and_then(|word| word.parse().ok()).ok_or(format!("qemu-img bench: {out}"))
}

/// A server of ours or the peer's, driven by the same commands.
struct Server {
    child: Child,
    qmp: Qmp,
    socket: String,
}

impl Server {
    fn start(program: &str, daemon: bool, socket: String) -> Result<Server> {
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(program);
        match daemon {
            true => command
                .args(["--chardev", &format!("socket,id=c,path={socket},server=on,wait=off")])
                .args(["--monitor", "chardev=c"]),
            false => command
                .args(["-M", "none", "-nodefaults", "-display", "none", "-S"])
                .args(["-qmp", &format!("unix:{socket},server=on,wait=off")]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        let qmp = Qmp::connect(Path::new(&socket), Duration::from_secs(20))?;
        Ok(Server { child, qmp, socket })
    }

    fn add(&mut self, name: &str, format: &str, file: &str) -> Result {
        let file = json!({"driver": "file", "filename": file});
        let node = json!({"node-name": name, "driver": format, "file": file});
        self.qmp.execute("blockdev-add", node).map(drop)
    }

    fn overlay(&mut self, name: &str, file: &str, backing: &str) -> Result {
        let file = json!({"driver": "file", "filename": file});
        let node = json!({"node-name": name, "driver": "qcow2", "file": file, "backing": backing});
        self.qmp.execute("blockdev-add", node).map(drop)
    }

    /// Exports a file as "n"; returns the socket.
    fn export(&mut self, format: &str, file: &str) -> Result<String> {
        self.add("n", format, file)?;
        let socket = format!("{}.nbd", self.socket);
        let _ = std::fs::remove_file(&socket);
        let addr = json!({"type": "unix", "data": {"path": socket}});
        self.qmp.execute("nbd-server-start", json!({"addr": addr}))?;
        self.qmp.execute("nbd-server-add", json!({"device": "n", "writable": true}))?;
        Ok(socket)
    }

    /// Seconds from the command to the event.
    fn job(&mut self, command: &str, arguments: Value, event: &str) -> Result<f64> {
        let begin = Instant::now();
        self.qmp.execute(command, arguments)?;
        let ended = self.qmp.event(event, LIMIT)?;
        let time = begin.elapsed().as_secs_f64();
        match ended["data"].get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(time),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
