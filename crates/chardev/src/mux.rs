use crate::hub::Hub;
use crate::port::Port;
use crate::registry::{Host, Made};
use crate::{Backend, Event, FrontEnd};
use base::Mutex;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// A multiplexer serves at most so many front ends.
const MAX_FRONTS: usize = 4;
/// Input kept for a front end that does not read, so that the escape still works.
const KEPT: usize = 32;
/// A front end's input never grows beyond this, whatever it says it can take.
const LIMIT: usize = 64 << 10;

/// What a person typed after the escape character and the program has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// End the program at once.
    Quit,
    /// Write back the disks that run with temporary changes.
    SaveDisks,
}

/// Several front ends on one back end: the output of all is mixed, the input goes to one.
pub(crate) struct Mux {
    hub: Arc<Hub>,
    base: Port,
    host: Arc<dyn Host>,
    escape: u8,
    wake: Arc<Notify>,
    state: Mutex<State>,
}

struct State {
    /// The escape character was the last one.
    escaped: bool,
    /// What each front end (by its tag) has not taken yet.
    input: HashMap<u32, VecDeque<u8>>,
    stamps: bool,
    line_start: bool,
    since: Instant,
    /// The rest of a time stamp that the base did not take at once.
    stamp: VecDeque<u8>,
}

struct Shared(Arc<Mux>);

impl Mux {
    pub fn over(base: Port, runtime: &Handle, hub: &Arc<Hub>, host: Arc<dyn Host>, escape: u8) -> Made {
        hub.set_mux();
        let wake = Arc::new(Notify::new());
        let state = State {
            escaped: false,
            input: HashMap::new(),
            stamps: false,
            line_start: true,
            since: Instant::now(),
            stamp: VecDeque::new(),
        };
        let mux = Arc::new(Mux {
            hub: hub.clone(),
            base: base.clone(),
            host,
            escape,
            wake: wake.clone(),
            state: Mutex::new(state),
        });
        base.connect(&mux);
        let weak = Arc::downgrade(&mux);
        let task = runtime.spawn(async move {
            loop {
                wake.notified().await;
                let Some(mux) = weak.upgrade() else { return };
                mux.deliver();
                mux.base.accept_input();
            }
        });
        Made { tasks: vec![task], ..Made::new(Shared(mux)) }
    }

    /// Gives the kept input to the front end that has the focus, as far as it can take it.
    fn deliver(&self) {
        while let Some(focus) = self.hub.focus() {
            let room = self.hub.can_receive();
            let now: Vec<u8> = {
                let mut state = self.state.lock();
                if state.input.len() > 2 * MAX_FRONTS {
                    // Front ends that are gone.
                    state.input.retain(|&tag, _| tag == focus);
                }
                let input = state.input.entry(focus).or_default();
                let n = room.min(input.len());
                input.drain(..n).collect()
            };
            if now.is_empty() {
                return;
            }
            self.hub.receive(&now, Vec::new());
        }
    }

    fn command(&self, key: u8) {
        match key {
            b'h' | b'?' => self.help(),
            b'x' => {
                self.base.write(b"QEMU: Terminated\n\r");
                self.host.escape(Escape::Quit);
            }
            b's' => self.host.escape(Escape::SaveDisks),
            b'b' => self.hub.send_break(),
            b'c' => {
                self.deliver();
                if let Some(next) = self.hub.next_focus().filter(|&next| Some(next) != self.hub.focus()) {
                    self.hub.set_focus(next);
                }
            }
            b't' => {
                let mut state = self.state.lock();
                state.stamps = !state.stamps;
                state.since = Instant::now();
                state.line_start = false;
            }
            _ => {}
        }
    }

    fn help(&self) {
        let name = match self.escape {
            1..=26 => format!("C-{}", char::from(b'a' + self.escape - 1)),
            other => format!("escape-char {other:#04x}"),
        };
        let mut text = String::from("\n\r");
        for (key, what) in [
            ("h", "show these keys"),
            ("x", "end the emulator"),
            ("s", "write disk changes back (with -snapshot)"),
            ("t", "switch time stamps on or off"),
            ("b", "send a break"),
            ("c", "switch between console and monitor"),
        ] {
            text += &format!("{name} {key}    {what}\n\r");
        }
        text += &format!("{name} {name}  send {name}\n\r");
        self.base.write(text.as_bytes());
    }

    /// Writes what is left of a time stamp, and a new one at the start of a line.
    fn stamp(&self, state: &mut State) -> bool {
        if state.stamps && state.line_start {
            let ms = state.since.elapsed().as_millis();
            let (s, h) = (ms / 1000, ms / 3_600_000);
            let text = format!("[{h:02}:{:02}:{:02}.{:03}] ", s / 60 % 60, s % 60, ms % 1000);
            state.stamp.extend(text.as_bytes());
            state.line_start = false;
        }
        let taken = self.base.write(state.stamp.make_contiguous());
        state.stamp.drain(..taken);
        state.stamp.is_empty()
    }
}

impl Backend for Shared {
    fn write(&self, bytes: &[u8]) -> usize {
        let mux = &self.0;
        let mut state = mux.state.lock();
        if !state.stamps && state.stamp.is_empty() {
            return mux.base.write(bytes);
        }
        let mut taken = 0;
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            if !mux.stamp(&mut state) {
                break;
            }
            let n = mux.base.write(line);
            taken += n;
            if n < line.len() {
                break;
            }
            state.line_start = line.ends_with(b"\n");
        }
        taken
    }

    fn filename(&self) -> String {
        "mux".into()
    }

    fn drained(&self) -> bool {
        self.0.base.drained()
    }

    fn max_fronts(&self) -> usize {
        MAX_FRONTS
    }

    fn accept_input(&self) {
        self.0.wake.notify_one();
    }

    fn set_params(&self, params: crate::Params) {
        self.0.base.set_params(params);
    }

    fn set_break(&self, on: bool) {
        self.0.base.set_break(on);
    }

    fn set_echo(&self, on: bool) {
        self.0.base.set_echo(on);
    }
}

impl FrontEnd for Mux {
    fn can_receive(&self) -> usize {
        let Some(focus) = self.hub.focus() else { return KEPT };
        let kept = self.state.lock().input.get(&focus).map_or(0, VecDeque::len);
        self.hub.can_receive().max(KEPT).saturating_sub(kept)
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        for &byte in bytes {
            let command = {
                let mut state = self.state.lock();
                let escaped = std::mem::take(&mut state.escaped);
                if byte == self.escape && !escaped {
                    state.escaped = true;
                    continue;
                }
                let command = escaped && byte != self.escape;
                if let Some(focus) = self.hub.focus().filter(|_| !command) {
                    let input = state.input.entry(focus).or_default();
                    if input.len() < LIMIT {
                        input.push_back(byte);
                    }
                }
                command
            };
            if command {
                self.command(byte);
            }
        }
        self.deliver();
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => self.hub.opened(),
            Event::Closed => self.hub.closed(),
            Event::Break => self.hub.send_break(),
            Event::MuxIn | Event::MuxOut => {}
        }
    }

    fn writable(&self) {
        self.hub.writable();
    }
}
