//! Notices in, events out: mapped by type, stamped with the time of the notice, throttled as
//! the schema says, and given to every monitor in the same order.

use base::Mutex;
use base::clock::{Clock, Timer};
use base::notice::{Notice, Notices};
use machine::Machine;
use qapi::{Event, Map, Value};
use qmp::{Line, Monitor};
use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

mod notices;
mod throttle;

use throttle::{Throttle, Verdict};

trace::points! {
    /// An event goes to the monitors.
    QMP_EVENT = "monitor_protocol_event_emit";
    /// An event is held back because the last of its kind was less than a second ago.
    QMP_EVENT_HELD = "monitor_protocol_event_queue";
}

type Listener = Arc<dyn Fn(&dyn Any) + Send + Sync>;

pub struct Events {
    notices: Notices,
    machine: Arc<Machine>,
    wake: Arc<Notify>,
    monitors: Mutex<Vec<Weak<Monitor>>>,
    throttle: Mutex<Throttle>,
    /// Measures what is held back, and wakes for it.
    clock: Clock,
    timer: Timer,
    listeners: Mutex<Vec<Listener>>,
}

impl Events {
    pub(crate) fn new(notices: Notices, machine: Arc<Machine>, clock: Clock) -> Self {
        let wake = Arc::new(Notify::new());
        let due = wake.clone();
        let timer = clock.timer(move |_| due.notify_one());
        let waker = wake.clone();
        notices.on_send(move || waker.notify_one());
        Events {
            notices,
            machine,
            wake,
            monitors: Mutex::default(),
            throttle: Mutex::default(),
            clock,
            timer,
            listeners: Mutex::default(),
        }
    }

    pub(crate) fn join(&self, monitor: &Arc<Monitor>) {
        let mut monitors = self.monitors.lock();
        monitors.retain(|other| other.strong_count() > 0);
        monitors.push(Arc::downgrade(monitor));
    }

    /// Calls `listener` with each notice, before its event goes out. For what is no event: the
    /// end of the machine, a debugger's stop.
    pub fn listen(&self, listener: impl Fn(&dyn Any) + Send + Sync + 'static) {
        self.listeners.lock().push(Arc::new(listener));
    }

    /// Handles notices as they come, for ever. Belongs on the main thread.
    pub async fn run(&self) {
        loop {
            let due = self.throttle.lock().next_due();
            if let Some(due) = due {
                self.timer.arm(due);
            }
            // A clock that only a test moves does not come by again at what is past: it is looked
            // at when the timer is there to hear of what comes.
            if due.is_none_or(|due| due > self.clock.now()) {
                self.wake.notified().await;
            }
            self.release();
            self.pump();
        }
    }

    /// Handles every notice that waits, and those that come of it.
    pub fn pump(&self) {
        loop {
            let waiting = self.notices.drain();
            if waiting.is_empty() {
                return;
            }
            for Notice { when, what } in waiting {
                self.handle(when, what);
            }
        }
    }

    fn handle(&self, when: SystemTime, what: Box<dyn Any + Send>) {
        for listener in self.listeners.lock().clone() {
            listener(&*what);
        }
        let what = match what.downcast::<machine::Notice>() {
            Ok(notice) => return notices::machine(self, when, *notice),
            Err(other) => other,
        };
        let what = match what.downcast::<device::Notice>() {
            Ok(notice) => return notices::device(self, when, *notice),
            Err(other) => other,
        };
        if let Ok(notice) = what.downcast::<block::Notice>() {
            notices::block(self, when, *notice);
        }
    }

    /// Sends an event that happened at `when`.
    pub fn emit<E: Event>(&self, when: SystemTime, event: E) {
        let mut data = Map::new();
        event.put(&mut data);
        let Some(keys) = E::INFO.throttle else {
            return self.broadcast(&line(E::INFO.name, data, when));
        };
        let key = keys.iter().map(|key| data.get(*key).cloned().unwrap_or_default()).collect();
        let line = line(E::INFO.name, data, when);
        let verdict = self.throttle.lock().offer(E::INFO.name, key, line, self.clock.now());
        match verdict {
            Verdict::Send(line) => self.broadcast(&line),
            Verdict::Held => {
                trace::trace!(QMP_EVENT_HELD, "{}", E::INFO.name);
                self.wake.notify_one();
            }
        }
    }

    fn release(&self) {
        let due = self.throttle.lock().take_due(self.clock.now());
        for line in due {
            self.broadcast(&line);
        }
    }

    fn broadcast(&self, line: &Line) {
        trace::trace!(QMP_EVENT, "{}", line.value()["event"].as_str().unwrap_or_default());
        let monitors: Vec<_> = self.monitors.lock().iter().filter_map(Weak::upgrade).collect();
        for monitor in monitors {
            monitor.event(line);
        }
    }

    /// Whether every monitor's output has been handed on.
    pub fn flushed(&self) -> bool {
        self.monitors.lock().iter().filter_map(Weak::upgrade).all(|monitor| monitor.is_flushed())
    }
}

fn line(name: &str, data: Map, when: SystemTime) -> Line {
    let (seconds, microseconds) = match when.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, i64::from(since.subsec_micros())),
        Err(_) => (-1, -1),
    };
    let mut timestamp = Map::new();
    timestamp.insert("seconds".into(), seconds.into());
    timestamp.insert("microseconds".into(), microseconds.into());
    let mut message = Map::new();
    message.insert("timestamp".into(), Value::Object(timestamp));
    message.insert("event".into(), name.into());
    if !data.is_empty() {
        message.insert("data".into(), Value::Object(data));
    }
    Line::new(Value::Object(message))
}
