//! A human monitor on a character device.

use crate::Session;
use crate::readline::{Key, Readline};
use crate::table;
use base::{Mutex, Result};
use chardev::{Event, FrontEnd, Port};
use control::{Control, Identity};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

const PROMPT: &str = "(qemu) ";

/// With so much output waiting no more input is taken.
const FULL: usize = 64 << 10;

/// A human monitor; it lives as long as this.
pub struct HmpPort {
    port: Port,
    session: Session,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    own: Weak<HmpPort>,
}

struct State {
    editor: Readline,
    out: VecDeque<u8>,
    /// A multiplexer gave the terminal to somebody else: output waits.
    away: bool,
    /// A command runs, or the program ends.
    busy: bool,
    greeted: bool,
    present: bool,
}

impl HmpPort {
    /// Puts a human monitor on the character device `chardev`. To be called on the runtime.
    pub fn open(control: &Control, chardev: &str) -> Result<Arc<HmpPort>> {
        let port = control.world().host.chardevs.claim(chardev)?;
        port.set_echo(false);
        let state = State {
            editor: Readline::new(PROMPT),
            out: VecDeque::new(),
            away: false,
            busy: false,
            greeted: false,
            present: false,
        };
        let front = Arc::new_cyclic(|own| HmpPort {
            port,
            session: Session::new(control.clone(), 0),
            runtime: tokio::runtime::Handle::current(),
            state: Mutex::new(state),
            own: own.clone(),
        });
        front.port.connect_behind(&front);
        Ok(front)
    }

    /// Greets on the character device of a monitor that will not come to be.
    pub fn greet_only(chardevs: &chardev::Chardevs, chardev: &str, identity: &Identity) -> Result<()> {
        let port = chardevs.claim(chardev)?;
        port.write(format!("{}{PROMPT}", greeting(identity)).replace('\n', "\r\n").as_bytes());
        Ok(())
    }

    /// Whether all output has been taken by the character device.
    pub fn is_flushed(&self) -> bool {
        self.state.lock().out.is_empty() && self.port.drained()
    }

    fn print(&self, text: &str) {
        self.state.lock().out.extend(text.replace('\n', "\r\n").bytes());
        self.flush();
    }

    fn flush(&self) {
        let mut state = self.state.lock();
        if state.away {
            return;
        }
        while !state.out.is_empty() {
            let (first, _) = state.out.as_slices();
            let taken = self.port.write(first);
            if taken == 0 {
                return;
            }
            state.out.drain(..taken);
        }
    }

    fn prompt(&self) {
        let mut out = Vec::new();
        let mut state = self.state.lock();
        state.editor.show_prompt(&mut out);
        state.out.extend(out);
        drop(state);
        self.flush();
    }

    fn greet(&self) {
        self.print(&greeting(&self.session.control.world().identity));
        let here = {
            let mut state = self.state.lock();
            state.greeted = true;
            state.editor.restart();
            !state.away
        };
        if here {
            self.prompt();
        }
    }

    fn start(&self, line: String) {
        let Some(own) = self.own.upgrade() else { return };
        self.state.lock().busy = true;
        self.runtime.spawn(async move {
            own.session.history.lock().clone_from(&own.state.lock().editor.history());
            let text = own.session.run(&line).await;
            own.print(&text);
            let ends = own.session.control.world().machine.finished().is_some() || is_quit(&line);
            if ends {
                return;
            }
            let here = {
                let mut state = own.state.lock();
                state.busy = false;
                !state.away
            };
            if here {
                own.prompt();
            }
            own.port.accept_input();
        });
    }

    fn set_present(&self, present: bool) {
        let before = std::mem::replace(&mut self.state.lock().present, present);
        if before != present {
            self.session.control.presence(present);
        }
    }
}

fn greeting(identity: &Identity) -> String {
    let (major, minor, micro) = identity.level;
    format!("QEMU {major}.{minor}.{micro} monitor - type 'help' for more information\n")
}

fn is_quit(line: &str) -> bool {
    matches!(line.trim(), "quit" | "q")
}

impl Drop for HmpPort {
    fn drop(&mut self) {
        self.set_present(false);
    }
}

impl FrontEnd for HmpPort {
    fn can_receive(&self) -> usize {
        let state = self.state.lock();
        // One at a time: a line end starts a command, and what follows waits.
        usize::from(!state.busy && state.out.len() < FULL)
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        for &byte in bytes {
            let mut out = Vec::new();
            let key = {
                let mut state = self.state.lock();
                let key = state.editor.byte(byte, &mut out, &table::complete);
                state.out.extend(out);
                key
            };
            self.flush();
            if let Key::Line(line) = key {
                self.start(line);
            }
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => {
                self.set_present(true);
                self.greet();
            }
            Event::Closed => {
                self.set_present(false);
                self.state.lock().editor.restart();
            }
            Event::MuxIn => {
                let show = {
                    let mut state = self.state.lock();
                    state.away = false;
                    state.editor.restart();
                    state.greeted && !state.busy
                };
                self.flush();
                if show {
                    self.prompt();
                }
            }
            Event::MuxOut => {
                if self.state.lock().greeted {
                    self.print("\n");
                }
                self.state.lock().away = true;
            }
            Event::Break => {}
        }
    }

    fn writable(&self) {
        self.flush();
        if self.state.lock().out.len() < FULL {
            self.port.accept_input();
        }
    }
}
