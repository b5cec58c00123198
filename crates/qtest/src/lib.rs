//! The qtest protocol (`-qtest`): a program in place of the guest that reads and writes
//! ports and memory, moves the clock and sees interrupts. Line based, one reply a request:
//! `OK`, `OK <value>` or `FAIL <why>`; `IRQ raise|lower N` come unasked.

#![forbid(unsafe_code)]

mod base64;
mod command;

use ::base::{Mutex, Result, fail};
use chardev::{Event, FrontEnd, Port};
use command::Outcome;
use machine::Machine;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// A request longer than this ends the conversation (bytes).
const MAX_REQUEST: usize = 64 << 20;

enum Log {
    None,
    Stderr,
    File(File),
}

struct State {
    input: Vec<u8>,
    /// The rest of a request that was too long.
    skipping: bool,
    output: VecDeque<u8>,
    log: Log,
    opened: Instant,
    /// The other side is there.
    open: bool,
}

/// The server side on one character device; it serves as long as this lives.
pub struct Server {
    machine: Arc<Machine>,
    port: Port,
    state: Mutex<State>,
    /// Path of the device whose interrupts are told.
    watched: Mutex<Option<String>>,
    me: OnceLock<Weak<Server>>,
}

impl Server {
    /// `log`: the file to log to; none given: standard error; `none`: nowhere.
    pub fn open(machine: &Arc<Machine>, port: Port, log: Option<&str>) -> Result<Arc<Server>> {
        let log =
            match log {
                None => Log::Stderr,
                Some("none") => Log::None,
                Some(path) => Log::File(File::create(path).map_err(|e| {
                    fail!("cannot open qtest log '{path}': {}", ::base::failure::strerror(&e))
                })?),
            };
        let server = Arc::new(Server {
            machine: machine.clone(),
            port: port.clone(),
            state: Mutex::new(State {
                input: Vec::new(),
                skipping: false,
                output: VecDeque::new(),
                log,
                opened: Instant::now(),
                open: false,
            }),
            watched: Mutex::default(),
            me: OnceLock::new(),
        });
        let _ = server.me.set(Arc::downgrade(&server));
        port.connect(&server);
        Ok(server)
    }

    /// Handles one request line.
    fn request(&self, line: &str) {
        self.log('R', line);
        let reply = match command::run(&self.machine, line) {
            Outcome::Reply(reply) => reply,
            Outcome::Watch { path, outputs } => match self.watch(&path, outputs) {
                Ok(()) => "OK".into(),
                Err(why) => format!("FAIL {why}"),
            },
        };
        self.send(&reply);
    }

    /// Begins to tell the interrupts of a device: of one only, either way.
    fn watch(&self, path: &str, outputs: bool) -> std::result::Result<(), String> {
        let entry = command::device(&self.machine, path)?;
        let mut watched = self.watched.lock();
        if let Some(other) = &*watched {
            return if *other == entry.path { Ok(()) } else { Err(command::ENABLED.into()) };
        }
        if outputs {
            command::watch_outputs(&entry, self.notifier())?;
        } else {
            command::watch_inputs(&entry, self.notifier())?;
        }
        *watched = Some(entry.path.clone());
        Ok(())
    }

    /// Tells interrupts to the client.
    fn notifier(&self) -> Box<dyn Fn(usize, bool) + Send + Sync> {
        let me = self.me.get().cloned().unwrap_or_default();
        Box::new(move |irq, level| {
            if let Some(server) = me.upgrade() {
                server.send(&format!("IRQ {} {irq}", if level { "raise" } else { "lower" }));
            }
        })
    }

    fn send(&self, line: &str) {
        self.log('S', line);
        let mut state = self.state.lock();
        state.output.extend(line.as_bytes());
        state.output.push_back(b'\n');
        self.flush(&mut state);
    }

    fn flush(&self, state: &mut State) {
        while !state.output.is_empty() {
            let (front, _) = state.output.as_slices();
            let taken = self.port.write(front);
            if taken == 0 {
                return;
            }
            state.output.drain(..taken);
        }
    }

    fn log(&self, kind: char, text: &str) {
        let state = &mut *self.state.lock();
        let elapsed = state.opened.elapsed().as_secs_f64();
        let sign = if text == "OPENED" && kind == 'I' { "" } else { "+" };
        let line = format!("[{kind} {sign}{elapsed:.6}] {text}\n");
        // Logging is no reason to fail.
        let _ = match &mut state.log {
            Log::None => Ok(()),
            Log::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Log::File(file) => file.write_all(line.as_bytes()),
        };
    }

    fn close(&self) {
        if std::mem::take(&mut self.state.lock().open) {
            self.log('I', "CLOSED");
        }
    }

    /// Takes the next complete line out of the input.
    fn next_line(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        let end = state.input.iter().position(|&byte| byte == b'\n')?;
        let mut line: Vec<u8> = state.input.drain(..=end).collect();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(if std::mem::take(&mut state.skipping) { b"\xff".to_vec() } else { line })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

impl FrontEnd for Server {
    fn can_receive(&self) -> usize {
        64 << 10
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        let mut state = self.state.lock();
        state.input.extend_from_slice(bytes);
        if state.input.len() > MAX_REQUEST && !bytes.contains(&b'\n') {
            state.input.clear();
            state.skipping = true;
        }
        if !bytes.contains(&b'\n') {
            return;
        }
        drop(state);
        while let Some(line) = self.next_line() {
            match String::from_utf8(line) {
                Ok(line) => self.request(&line),
                Err(_) => self.send("FAIL Malformed request"),
            }
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => {
                let mut state = self.state.lock();
                state.opened = Instant::now();
                state.input.clear();
                state.output.clear();
                state.open = true;
                drop(state);
                self.log('I', "OPENED");
            }
            Event::Closed => self.close(),
            _ => {}
        }
    }

    fn writable(&self) {
        self.flush(&mut self.state.lock());
    }
}

#[cfg(test)]
mod tests;
