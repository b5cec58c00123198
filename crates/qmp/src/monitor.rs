//! One QMP monitor: its sessions one after the other, and its named descriptors, which outlive
//! them.
//!
//! The owner of the transport calls [`Monitor::opened`], [`Monitor::receive`],
//! [`Monitor::writable`] and [`Monitor::closed`] as things happen, and runs [`Monitor::run`].

use crate::outbox::{Line, Outbox, Outlet};
use crate::request::{Request, error_reply, not_negotiated, success_reply, unknown_command};
use crate::{Framer, Message, text};
use base::{Class, Failure, Mutex, Result, fail};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Input held before the transport is told to wait, in bytes.
const INPUT_ROOM: usize = 64 << 10;
/// With so much unread output no further request is taken up.
const REPLY_ROOM: usize = 1 << 20;
/// With so much unread output further events are not kept for this monitor.
const EVENT_ROOM: usize = 16 << 20;
/// In-band requests held while one runs, when out-of-band ones may overtake them.
const QUEUE: usize = 8;
/// Requests handled before other tasks get their turn.
const BUDGET: usize = 64;

/// What is known of a command before it is called.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub allow_oob: bool,
}

/// A request on its way to the command.
pub struct Call {
    pub command: String,
    pub arguments: crate::Map,
    pub oob: bool,
    pub monitor: Arc<Monitor>,
}

/// How a command ended.
pub struct Outcome {
    pub result: Result<Value>,
    /// Done once the reply is on its way: effects that clients expect to see after it.
    pub after: Vec<Box<dyn FnOnce() + Send>>,
}

/// The commands, as far as the wire needs to know them.
pub trait Door: Send + Sync {
    fn find(&self, command: &str) -> Option<Route>;
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;
    /// The value of `QMP` in the greeting's `version`.
    fn version(&self) -> Value;
    /// A client came to a monitor, or left it.
    fn presence(&self, _monitor: &Arc<Monitor>, _present: bool) {}
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub pretty: bool,
    /// Out-of-band execution is offered.
    pub oob: bool,
}

/// One client's stay.
struct Session {
    /// `qmp_capabilities` was accepted.
    commands: AtomicBool,
    oob: AtomicBool,
    /// The client has gone.
    over: AtomicBool,
}

enum Input {
    Opened(Arc<Session>),
    Bytes(Vec<u8>, Vec<OwnedFd>),
    Closed,
}

#[derive(Default)]
struct Inbox {
    queue: VecDeque<Input>,
    bytes: usize,
    /// The transport was told to wait.
    full: bool,
}

/// A message waiting for its turn.
enum Item {
    Bad(Failure),
    Request(Request),
}

pub struct Monitor {
    door: Arc<dyn Door>,
    options: Options,
    outbox: Outbox,
    inbox: Mutex<Inbox>,
    current: Mutex<Option<Arc<Session>>>,
    wake: Notify,
    received: Mutex<Vec<OwnedFd>>,
    named: Mutex<BTreeMap<String, OwnedFd>>,
}

/// What [`Monitor::run`] holds while it runs.
struct Reading {
    session: Option<Arc<Session>>,
    framer: Framer,
    bytes: Vec<u8>,
    at: usize,
    fds: Vec<OwnedFd>,
    items: VecDeque<Item>,
}

impl Monitor {
    pub fn new(door: Arc<dyn Door>, outlet: Arc<dyn Outlet>, options: Options) -> Arc<Monitor> {
        Arc::new(Monitor {
            door,
            options,
            outbox: Outbox::new(outlet),
            inbox: Mutex::default(),
            current: Mutex::default(),
            wake: Notify::new(),
            received: Mutex::default(),
            named: Mutex::default(),
        })
    }

    // ---- called by the transport ----

    /// A client is there: it gets the greeting, whatever the one before left behind.
    pub fn opened(self: &Arc<Self>) {
        let session = Arc::new(Session {
            commands: AtomicBool::new(false),
            oob: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        self.outbox.clear();
        *self.current.lock() = Some(session.clone());
        self.enqueue(Input::Opened(session.clone()));
        self.put(&session, &text::line(&self.greeting(), self.options.pretty));
        self.door.presence(self, true);
    }

    /// The client has gone. Complete requests that came before are still carried out.
    pub fn closed(self: &Arc<Self>) {
        self.enqueue(Input::Closed);
    }

    /// How many bytes may be received now.
    pub fn can_receive(&self) -> usize {
        let unread = self.outbox.len();
        let mut inbox = self.inbox.lock();
        let room = if unread > REPLY_ROOM { 0 } else { INPUT_ROOM.saturating_sub(inbox.bytes) };
        inbox.full |= room == 0;
        room
    }

    pub fn receive(&self, bytes: &[u8], fds: Vec<OwnedFd>) {
        self.enqueue(Input::Bytes(bytes.to_vec(), fds));
    }

    /// There is room for output again.
    pub fn writable(&self) {
        self.outbox.flush();
        self.offer_room();
        self.wake.notify_one();
    }

    /// Tells a transport that was told to wait that it may go on.
    fn offer_room(&self) {
        if !self.inbox.lock().full || self.outbox.len() > REPLY_ROOM {
            return;
        }
        self.inbox.lock().full = false;
        self.outbox.accept_input();
    }

    fn enqueue(&self, input: Input) {
        let mut inbox = self.inbox.lock();
        if let Input::Bytes(bytes, _) = &input {
            inbox.bytes += bytes.len();
        }
        inbox.queue.push_back(input);
        drop(inbox);
        self.wake.notify_one();
    }

    // ---- called by the control plane ----

    /// Delivers an event, unless the session is still negotiating. A client that leaves
    /// megabytes unread loses further events, so that it costs no more memory.
    pub fn event(&self, line: &Line) {
        let session = self.current.lock().clone();
        if let Some(session) = session
            && session.commands.load(Ordering::Acquire)
            && self.outbox.len() < EVENT_ROOM
        {
            self.put(&session, line.text(self.options.pretty));
        }
    }

    /// Ends the negotiation: what `qmp_capabilities` does.
    pub fn negotiate(&self, oob: bool) -> Result<()> {
        let Some(session) = self.current.lock().clone() else {
            return Err(fail!("Nobody is connected"));
        };
        if session.commands.load(Ordering::Acquire) {
            return Err(Failure::of(
                Class::CommandNotFound,
                "Capabilities negotiation is already complete, command 'qmp_capabilities' ignored",
            ));
        }
        if oob && !self.options.oob {
            return Err(fail!("Capability oob not available"));
        }
        session.oob.store(oob, Ordering::Release);
        session.commands.store(true, Ordering::Release);
        Ok(())
    }

    /// The first descriptor that came with the latest message that had any; the others close.
    pub fn take_received(&self) -> Result<OwnedFd> {
        let first = std::mem::take(&mut *self.received.lock()).into_iter().next();
        first.ok_or_else(|| fail!("No file descriptor supplied via SCM_RIGHTS"))
    }

    /// Keeps a descriptor under a name; one that had the name before is closed.
    pub fn name_fd(&self, name: &str, fd: OwnedFd) {
        self.named.lock().insert(name.to_string(), fd);
    }

    /// Takes a named descriptor out.
    pub fn take_named(&self, name: &str) -> Option<OwnedFd> {
        self.named.lock().remove(name)
    }

    /// Whether all output has been handed on.
    pub fn is_flushed(&self) -> bool {
        self.outbox.len() == 0
    }

    /// Whether a client is connected.
    pub fn is_present(&self) -> bool {
        self.current.lock().as_ref().is_some_and(|session| !session.over.load(Ordering::Acquire))
    }

    // ---- the monitor's own task ----

    /// Carries out requests for ever, one after the other.
    pub async fn run(self: Arc<Self>) {
        let mut reading = Reading {
            session: None,
            framer: Framer::new(),
            bytes: Vec::new(),
            at: 0,
            fds: Vec::new(),
            items: VecDeque::new(),
        };
        let mut budget = BUDGET;
        loop {
            self.read(&mut reading).await;
            let (true, Some(item)) = (self.outbox.len() <= REPLY_ROOM, reading.items.pop_front()) else {
                self.wake.notified().await;
                continue;
            };
            self.carry_out(item, &mut reading).await;
            budget -= 1;
            if budget == 0 {
                budget = BUDGET;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn carry_out(self: &Arc<Self>, item: Item, reading: &mut Reading) {
        let Some(session) = reading.session.clone() else { return };
        let request = match item {
            Item::Bad(failure) => return self.reply(&session, error_reply(&failure, None)),
            Item::Request(request) => request,
        };
        let (id, mut future) = match self.begin(request, &session) {
            Ok(begun) => begun,
            Err(reply) => return self.reply(&session, reply),
        };
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut future => break outcome,
                _ = self.wake.notified(), if session.oob.load(Ordering::Acquire) => {
                    self.read(reading).await;
                }
            }
        };
        self.end(&session, id, outcome);
    }

    /// Finds the command and checks the session's mode; the call itself is returned unpolled.
    #[allow(clippy::type_complexity)]
    fn begin(
        self: &Arc<Self>,
        request: Request,
        session: &Session,
    ) -> Result<(Option<Value>, Pin<Box<dyn Future<Output = Outcome> + Send>>), Value> {
        let Request { command, arguments, id, oob, fds } = request;
        let refusal = match self.door.find(&command) {
            None => Some(unknown_command(&command)),
            Some(_) if !session.commands.load(Ordering::Acquire) && command != "qmp_capabilities" => {
                Some(not_negotiated(&command))
            }
            Some(route) if oob && !route.allow_oob => {
                Some(fail!("The command {command} does not support OOB"))
            }
            Some(_) => None,
        };
        if let Some(failure) = refusal {
            return Err(error_reply(&failure, id));
        }
        if !fds.is_empty() {
            *self.received.lock() = fds;
        }
        Ok((id, self.door.call(Call { command, arguments, oob, monitor: self.clone() })))
    }

    fn end(&self, session: &Arc<Session>, id: Option<Value>, outcome: Outcome) {
        let reply = match outcome.result {
            Ok(value) => success_reply(value, id),
            Err(failure) => error_reply(&failure, id),
        };
        self.reply(session, reply);
        for after in outcome.after {
            after();
        }
    }

    /// Turns input into items, as many as may wait. Out-of-band requests run at once.
    async fn read(self: &Arc<Self>, reading: &mut Reading) {
        loop {
            let oob = reading.session.as_ref().is_some_and(|session| session.oob.load(Ordering::Acquire));
            if reading.items.len() >= if oob { QUEUE } else { 1 } {
                return;
            }
            if reading.at == reading.bytes.len() {
                if !self.next_input(reading) {
                    return;
                }
                continue;
            }
            let mut rest = &reading.bytes[reading.at..];
            let message = reading.framer.next(&mut rest);
            reading.at = reading.bytes.len() - rest.len();
            let Some(message) = message else { continue };
            match self.item(message, reading, oob) {
                Item::Request(request) if request.oob => {
                    let Some(session) = reading.session.clone() else { continue };
                    match self.begin(request, &session) {
                        Ok((id, future)) => self.end(&session, id, future.await),
                        Err(reply) => self.reply(&session, reply),
                    }
                }
                item => reading.items.push_back(item),
            }
        }
    }

    fn item(&self, message: Message, reading: &mut Reading, oob: bool) -> Item {
        let checked = match message {
            Message::Bad => Err(fail!("Invalid JSON syntax")),
            Message::Value(value) => Request::check(value, oob),
        };
        match checked {
            Err(failure) => Item::Bad(failure),
            Ok(mut request) => {
                request.fds = std::mem::take(&mut reading.fds);
                Item::Request(request)
            }
        }
    }

    /// Takes the next piece of input; false if there is none that may be taken now.
    fn next_input(self: &Arc<Self>, reading: &mut Reading) -> bool {
        let mut inbox = self.inbox.lock();
        let waits = !reading.items.is_empty();
        if waits && !matches!(inbox.queue.front(), Some(Input::Bytes(..))) {
            return false;
        }
        let Some(input) = inbox.queue.pop_front() else { return false };
        if let Input::Bytes(bytes, _) = &input {
            inbox.bytes -= bytes.len();
        }
        drop(inbox);
        match input {
            Input::Bytes(bytes, fds) => {
                reading.bytes = bytes;
                reading.at = 0;
                if !fds.is_empty() {
                    reading.fds = fds;
                }
            }
            Input::Opened(session) => {
                self.leave(reading);
                reading.session = Some(session);
            }
            Input::Closed => self.leave(reading),
        }
        self.offer_room();
        true
    }

    fn leave(self: &Arc<Self>, reading: &mut Reading) {
        reading.framer = Framer::new();
        reading.fds.clear();
        let Some(session) = reading.session.take() else { return };
        // Standard output may outlive standard input: events still go there.
        session.over.store(true, Ordering::Release);
        let current = self.current.lock().clone();
        if current.is_some_and(|current| Arc::ptr_eq(&current, &session)) {
            // Standard input may end before standard output does: what is unread stays.
            self.outbox.flush();
        }
        self.door.presence(self, false);
    }

    fn reply(&self, session: &Arc<Session>, reply: Value) {
        self.put(session, &text::line(&reply, self.options.pretty));
    }

    /// Output for a client, unless another one has taken its place.
    fn put(&self, session: &Arc<Session>, text: &str) {
        let current = self.current.lock().clone();
        if current.is_some_and(|current| Arc::ptr_eq(&current, session)) {
            self.outbox.put(text.as_bytes());
        }
    }

    fn greeting(&self) -> Value {
        let capabilities: &[&str] = if self.options.oob { &["oob"] } else { &[] };
        serde_json::json!({"QMP": {"version": self.door.version(), "capabilities": capabilities}})
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
