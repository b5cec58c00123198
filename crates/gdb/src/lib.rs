//! The debugger's stub (`-gdb`, `gdbserver`): the GDB remote serial protocol over a
//! character device, each vCPU a thread.
//!
//! A debugger that connects stops the machine. Continuing lets all vCPUs run; a step runs
//! one vCPU for one instruction while the others and the clock stand, and takes no
//! interrupt.

#![forbid(unsafe_code)]

mod arch;
mod step;
mod target;

use base::{Mutex, Result};
use chardev::{Event, FrontEnd, Port};
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use machine::{Cause, Machine, Notice, RunState};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use target::Target;

/// Performs a line given to gdb's `monitor` command and returns what it prints.
pub type MonitorCommand = Arc<dyn Fn(&str) -> String + Send + Sync>;

type Stop = MultiThreadStopReason<u64>;
type Stub = GdbStubStateMachine<'static, Target, Out>;

/// Output towards the debugger.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<VecDeque<u8>>>);

impl Connection for Out {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.lock().push_back(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.lock().extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

struct Session {
    /// `None` before the first connection and after a protocol error.
    stub: Option<Stub>,
    target: Target,
    out: Out,
}

/// A machine's place for one debugger, which may come and go (`-gdb`, `gdbserver`).
pub struct Debugger {
    machine: Arc<Machine>,
    monitor: Mutex<Option<MonitorCommand>>,
    server: Mutex<Option<Arc<Server>>>,
}

impl Debugger {
    pub fn new(machine: Arc<Machine>) -> Arc<Debugger> {
        Arc::new(Debugger { machine, monitor: Mutex::new(None), server: Mutex::new(None) })
    }

    /// What answers gdb's `monitor` command, for servers opened from now on.
    pub fn set_monitor(&self, monitor: MonitorCommand) {
        *self.monitor.lock() = Some(monitor);
    }

    /// Serves on `port`, in place of an earlier server.
    pub fn open(&self, port: Port) {
        self.close();
        let server = Server::open(&self.machine, port, self.monitor.lock().clone());
        *self.server.lock() = Some(server);
    }

    /// Ends the server; its breakpoints go.
    pub fn close(&self) {
        if let Some(server) = self.server.lock().take() {
            server.event(Event::Closed);
        }
    }

    /// See [`Server::notice`].
    pub fn notice(&self, notice: &Notice) {
        let server = self.server.lock().clone();
        if let Some(server) = server {
            server.notice(notice);
        }
    }
}

/// The server on one character device; it serves as long as this lives. Everything happens
/// on the main thread.
pub struct Server {
    machine: Arc<Machine>,
    port: Port,
    session: Mutex<Session>,
    out: Out,
    /// Input is being handled: notices (of a `monitor stop`, say) wait.
    busy: AtomicBool,
    deferred: Mutex<Vec<Notice>>,
}

impl Server {
    /// `monitor`: what answers gdb's `monitor` command.
    pub fn open(machine: &Arc<Machine>, port: Port, monitor: Option<MonitorCommand>) -> Arc<Server> {
        let out = Out::default();
        let session = Session { stub: None, target: Target::new(machine.clone(), monitor), out: out.clone() };
        let server = Arc::new(Server {
            machine: machine.clone(),
            port: port.clone(),
            session: Mutex::new(session),
            out,
            busy: AtomicBool::new(false),
            deferred: Mutex::default(),
        });
        port.connect(&server);
        server
    }

    /// To be called with every notice of the machine: the debugger learns of stops.
    pub fn notice(&self, notice: &Notice) {
        if !matches!(notice, Notice::DebugStop { .. } | Notice::Stop) {
            return;
        }
        if self.busy.load(Ordering::SeqCst) {
            self.deferred.lock().push(notice.clone());
            return;
        }
        let reason = match notice {
            Notice::DebugStop { vcpu } => self.session.lock().target.debug_stop(*vcpu),
            // A debug stop has a notice of its own.
            Notice::Stop if !self.machine.is_running() => match self.machine.run_state() {
                RunState::Debug => return,
                state => Stop::Signal(signal_of(state)),
            },
            _ => return,
        };
        self.session.lock().report(reason);
        self.flush();
    }

    fn flush(&self) {
        let mut out = self.out.0.lock();
        while !out.is_empty() {
            let (front, _) = out.as_slices();
            let taken = self.port.write(front);
            if taken == 0 {
                return;
            }
            out.drain(..taken);
        }
    }
}

/// What gdb calls the reason of a stop, as QEMU reports it.
fn signal_of(state: RunState) -> Signal {
    match state {
        RunState::Debug => Signal::SIGTRAP,
        RunState::Shutdown => Signal::SIGQUIT,
        RunState::IoError => Signal::SIGIO,
        RunState::Watchdog => Signal::SIGALRM,
        RunState::InternalError => Signal::SIGABRT,
        RunState::GuestPanicked => Signal::SIGABRT,
        RunState::SaveVm | RunState::RestoreVm => Signal::SIGSTOP,
        RunState::FinishMigrate => Signal::SIGXCPU,
        _ => Signal::SIGINT,
    }
}

impl Session {
    /// A debugger connected.
    fn begin(&mut self) {
        self.target.detach();
        self.out.0.lock().clear();
        let stub = GdbStub::builder(self.out.clone()).packet_buffer_size(16 << 10).build().ok();
        self.stub = stub.and_then(|stub| stub.run_state_machine(&mut self.target).ok());
    }

    fn pump(&mut self, byte: u8) {
        let Some(stub) = self.stub.take() else { return };
        let target = &mut self.target;
        let next = match stub {
            GdbStubStateMachine::Idle(stub) => stub.incoming_data(target, byte),
            GdbStubStateMachine::Running(stub) => stub.incoming_data(target, byte),
            other => Ok(other),
        };
        match next {
            Ok(stub) => {
                self.stub = Some(stub);
                self.settle();
            }
            // The conversation begins anew: the debugger misses one reply.
            Err(error) => {
                eprintln!("gdb server: {error}");
                self.begin();
            }
        }
    }

    /// Brings the stub to a state in which it waits for input.
    fn settle(&mut self) {
        loop {
            let Some(stub) = self.stub.take() else { return };
            let target = &mut self.target;
            self.stub = match stub {
                GdbStubStateMachine::CtrlCInterrupt(stub) => {
                    target.machine().stop();
                    stub.interrupt_handled(target, Some(Stop::Signal(Signal::SIGINT))).ok()
                }
                GdbStubStateMachine::Disconnected(stub) => {
                    let reason = stub.get_reason();
                    target.detach();
                    match reason {
                        DisconnectReason::Kill => target.machine().request_quit(Cause::HostUi),
                        _ => {
                            let _ = target.machine().start();
                        }
                    }
                    return;
                }
                GdbStubStateMachine::Running(stub) => match target.take_stop() {
                    Some(reason) => stub.report_stop(target, reason).ok(),
                    None => {
                        self.stub = Some(stub.into());
                        return;
                    }
                },
                idle => {
                    self.stub = Some(idle);
                    return;
                }
            };
        }
    }

    fn report(&mut self, reason: Stop) {
        if matches!(self.stub, Some(GdbStubStateMachine::Running(_))) {
            self.target.set_stop(reason);
            self.settle();
        }
    }
}

impl FrontEnd for Server {
    fn can_receive(&self) -> usize {
        4096
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        self.busy.store(true, Ordering::SeqCst);
        for &byte in bytes {
            self.session.lock().pump(byte);
        }
        self.busy.store(false, Ordering::SeqCst);
        let deferred = std::mem::take(&mut *self.deferred.lock());
        deferred.iter().for_each(|notice| self.notice(notice));
        self.flush();
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => {
                self.machine.stop();
                self.session.lock().begin();
            }
            // Breakpoints of a debugger that is gone are not left behind.
            Event::Closed => {
                let mut session = self.session.lock();
                session.stub = None;
                session.target.detach();
            }
            _ => {}
        }
    }

    fn writable(&self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
