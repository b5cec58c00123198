//! Drives the real binary: a process with a QMP socket and its first serial port on a pipe.

use crate::guests::root;
use crate::qmp::Qmp;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The development build, which is made with the tests; `RYOKAN` names another one (also QEMU, for
/// comparison).
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("RYOKAN") {
        return path.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug/ryokan")
}

#[derive(Default)]
struct Console {
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

/// A running emulator. Dropped: killed.
pub struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Console>,
    errors: Arc<Console>,
    /// How much of the console `expect` has gone over.
    seen: usize,
    dir: PathBuf,
    pub qmp: Qmp,
}

impl Vm {
    /// Starts with `-nodefaults -display none`, a QMP socket, serial port 0 on a pipe, and `args`.
    pub fn start(args: &[&str]) -> Result<Vm, String> {
        let mut all = vec!["-nodefaults", "-display", "none", "-serial", "stdio"];
        all.extend(args);
        Vm::start_plain(&all)
    }

    /// Starts with exactly `args` and a QMP socket.
    pub fn start_plain(args: &[&str]) -> Result<Vm, String> {
        Vm::start_in(&[], args)
    }

    /// As [`Vm::start_plain`], with more in its environment.
    pub fn start_in(environment: &[(&str, &str)], args: &[&str]) -> Result<Vm, String> {
        let mut command = Command::new(binary());
        command.args(args).envs(environment.iter().copied());
        Vm::spawn(command)
    }

    /// As [`Vm::start_plain`], with `dir` as its working directory.
    pub fn start_at(dir: &Path, args: &[&str]) -> Result<Vm, String> {
        let mut command = Command::new(binary());
        command.args(args).current_dir(dir);
        Vm::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Vm, String> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ryokan-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let socket = dir.join("qmp");
        let mut child = command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e} (cargo build --release -p ryokan makes it)", binary().display()))?;
        let console = collect(child.stdout.take());
        let errors = collect(child.stderr.take());
        let stdin = child.stdin.take();
        let qmp = match Qmp::connect_while(&socket, Duration::from_secs(20), || {
            matches!(child.try_wait(), Ok(None))
        }) {
            Ok(qmp) => qmp,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                std::thread::sleep(Duration::from_millis(50));
                return Err(format!("{e}; it said: {}", text_of(&errors)));
            }
        };
        Ok(Vm { child, stdin, console, errors, seen: 0, dir, qmp })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A folder of this machine's own, removed with it.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// All console output so far.
    pub fn console(&self) -> String {
        text_of(&self.console)
    }

    /// What it wrote to standard error so far.
    pub fn errors(&self) -> String {
        text_of(&self.errors)
    }

    /// Waits until `text` appears on the console after what earlier calls went over; returns
    /// what came before it.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String, String> {
        let end = Instant::now() + limit;
        let mut guard = self.console.text.lock().unwrap_or_else(|e| e.into_inner());
        loop {
            let bytes = &guard.0[self.seen.min(guard.0.len())..];
            if let Some(at) = find(bytes, text.as_bytes()) {
                let before = String::from_utf8_lossy(&bytes[..at]).into_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || guard.1 {
                let tail = bytes.len().saturating_sub(3000);
                let why = if guard.1 { "the console ended" } else { "nothing came in time" };
                let shown = String::from_utf8_lossy(&bytes[tail..]).into_owned();
                drop(guard);
                return Err(format!(
                    "waiting for {text:?}: {why}; console: {shown}\nerrors: {}",
                    self.errors()
                ));
            }
            guard = self.console.more.wait_timeout(guard, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Types on the console.
    pub fn type_in(&mut self, text: &str) -> Result<(), String> {
        let stdin = self.stdin.as_mut().ok_or("no console input")?;
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).map_err(|e| e.to_string())
    }

    /// Runs a shell command in the guest (its shell reads the console) and returns its output.
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<String, String> {
        // The quotes keep the echo of what is typed from looking like the answer.
        self.type_in(&format!("echo BE''GIN; {command}; echo EN''D-$?\n"))?;
        self.expect("BEGIN", limit)?;
        let output = self.expect("END-", limit)?;
        Ok(output.replace('\r', "").trim_start_matches('\n').to_string())
    }

    /// Waits for the process to end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => return Ok(status),
                None if Instant::now() > end => return Err("the emulator did not end".into()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Kills it as a crash would, at once.
    pub fn kill(&mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(|e| e.to_string())?;
        // What it had written to the console is all there.
        let ended = self.console.text.lock().unwrap_or_else(|e| e.into_inner());
        drop(self.console.more.wait_while(ended, |text| !text.1));
        Ok(())
    }

    /// CPU seconds the process has used so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len().max(1)).position(|window| window == text)
}

fn text_of(console: &Console) -> String {
    String::from_utf8_lossy(&console.text.lock().unwrap_or_else(|e| e.into_inner()).0).into_owned()
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Arc<Console> {
    let console = Arc::new(Console::default());
    let Some(mut pipe) = pipe else { return console };
    let sink = console.clone();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        loop {
            let count = pipe.read(&mut chunk).unwrap_or(0);
            let mut text = sink.text.lock().unwrap_or_else(|e| e.into_inner());
            text.0.extend_from_slice(&chunk[..count]);
            text.1 = count == 0;
            sink.more.notify_all();
            if count == 0 {
                return;
            }
        }
    });
    console
}
