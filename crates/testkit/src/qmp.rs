//! A QMP client over a unix socket, for tests.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connected and negotiated session.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    partial: String,
    pub greeting: Value,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects (waiting up to `limit` for the socket), reads the greeting and negotiates.
    pub fn connect(path: &Path, limit: Duration) -> Result<Qmp, String> {
        Qmp::connect_while(path, limit, || true)
    }

    /// As [`Qmp::connect`], as long as the other side may still come up.
    pub fn connect_while(
        path: &Path,
        limit: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Qmp, String> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end || !alive() => return Err(format!("{}: {e}", path.display())),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let writer = stream.try_clone().map_err(|e| e.to_string())?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
            writer,
            partial: String::new(),
            greeting: Value::Null,
            events: VecDeque::new(),
        };
        qmp.greeting =
            qmp.message(end.saturating_duration_since(Instant::now()).max(Duration::from_secs(5)))?;
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Runs a command; an error reply is `Err` with `class: desc`.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut message = Map::new();
        message.insert("execute".into(), command.into());
        if !arguments.is_null() {
            message.insert("arguments".into(), arguments);
        }
        self.send(&Value::Object(message).to_string())?;
        let mut reply = self.reply(Duration::from_secs(120))?;
        match reply.get("error") {
            Some(error) => Err(format!(
                "{}: {}",
                error["class"].as_str().unwrap_or_default(),
                error["desc"].as_str().unwrap_or_default()
            )),
            None => Ok(reply["return"].take()),
        }
    }

    /// `human-monitor-command`.
    pub fn hmp(&mut self, line: &str) -> Result<String, String> {
        let reply = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(reply.as_str().unwrap_or_default().to_string())
    }

    /// Writes raw text and a newline.
    pub fn send(&mut self, text: &str) -> Result<(), String> {
        self.writer.write_all(format!("{text}\n").as_bytes()).map_err(|e| format!("QMP write: {e}"))
    }

    /// As [`Qmp::send`], with a descriptor for the other side (`getfd`, `add-fd`).
    pub fn send_fd(&mut self, text: &str, fd: impl AsFd) -> Result<(), String> {
        let mut space = [MaybeUninit::uninit(); 64];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err("no room for the descriptor".into());
        }
        let data = [IoSlice::new(text.as_bytes())];
        let sent = rustix::net::sendmsg(&self.writer, &data, &mut ancillary, SendFlags::empty());
        sent.map(drop).map_err(|e| format!("QMP write: {e}"))
    }

    /// The next reply; events met on the way are kept.
    pub fn reply(&mut self, limit: Duration) -> Result<Value, String> {
        let end = Instant::now() + limit;
        loop {
            let message = self.message(end.saturating_duration_since(Instant::now()))?;
            if message.get("event").is_none() {
                return Ok(message);
            }
            self.events.push_back(message);
        }
    }

    /// Waits for an event of this name, dropping none of the others.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).unwrap_or_default());
            }
            let left = end.saturating_duration_since(Instant::now());
            let message = self.message(left).map_err(|e| format!("waiting for {name}: {e}"))?;
            self.events.push_back(message);
        }
    }

    /// Takes the events for which `belongs` holds, oldest first, up to the first of them that
    /// `ends` holds of; others are kept.
    pub fn events_until(
        &mut self,
        belongs: impl Fn(&Value) -> bool,
        ends: impl Fn(&Value) -> bool,
        limit: Duration,
    ) -> Result<Vec<Value>, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| belongs(event) && ends(event)) {
                let later = self.events.split_off(at + 1);
                let (taken, kept): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.events).into_iter().partition(&belongs);
                self.events = kept.into();
                self.events.extend(later);
                return Ok(taken);
            }
            let message = self.message(end.saturating_duration_since(Instant::now()));
            let message = message.map_err(|e| format!("{e}; events so far: {:?}", self.events))?;
            self.events.push_back(message);
        }
    }

    /// The names of all events received so far, oldest first, which are then forgotten.
    pub fn take_events(&mut self) -> Vec<String> {
        self.events.drain(..).map(|event| event["event"].as_str().unwrap_or_default().to_string()).collect()
    }

    fn message(&mut self, limit: Duration) -> Result<Value, String> {
        let limit = limit.max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        let end = Instant::now() + limit;
        loop {
            match self.reader.read_line(&mut self.partial) {
                Ok(0) => return Err("QMP: connection closed".into()),
                Ok(_) if self.partial.ends_with('\n') => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_str(&line).map_err(|e| format!("QMP: {e}: {line}"));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return Err("QMP: nothing came in time".into());
                    }
                }
                Err(e) => return Err(format!("QMP read: {e}")),
            }
        }
    }
}
