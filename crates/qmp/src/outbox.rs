use base::Mutex;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Where output goes: the port of a character device.
pub trait Outlet: Send + Sync {
    /// Takes as much of `bytes` as there is room for now, at once. After a short write the
    /// owner calls [`crate::Monitor::writable`] when there is room.
    fn write(&self, bytes: &[u8]) -> usize;

    /// There is room for input again.
    fn accept_input(&self);
}

/// A message with its text, made at most once for each form.
pub struct Line {
    value: Value,
    compact: OnceLock<String>,
    pretty: OnceLock<String>,
}

impl Line {
    pub fn new(value: Value) -> Self {
        Line { value, compact: OnceLock::new(), pretty: OnceLock::new() }
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    pub fn text(&self, pretty: bool) -> &str {
        let slot = if pretty { &self.pretty } else { &self.compact };
        slot.get_or_init(|| crate::text::line(&self.value, pretty))
    }
}

/// Output that the other side has not taken yet.
pub(crate) struct Outbox {
    waiting: Mutex<VecDeque<u8>>,
    outlet: Arc<dyn Outlet>,
}

impl Outbox {
    pub fn new(outlet: Arc<dyn Outlet>) -> Self {
        Outbox { waiting: Mutex::default(), outlet }
    }

    pub fn put(&self, bytes: &[u8]) {
        let mut waiting = self.waiting.lock();
        let taken = if waiting.is_empty() { self.outlet.write(bytes) } else { 0 };
        waiting.extend(&bytes[taken.min(bytes.len())..]);
    }

    /// Hands on what is waiting, as far as there is room.
    pub fn flush(&self) {
        let mut waiting = self.waiting.lock();
        while !waiting.is_empty() {
            let front = waiting.as_slices().0;
            let (length, taken) = (front.len(), self.outlet.write(front).min(front.len()));
            waiting.drain(..taken);
            if taken < length {
                return;
            }
        }
        waiting.shrink_to(1 << 16);
    }

    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    pub fn clear(&self) {
        *self.waiting.lock() = VecDeque::new();
    }

    pub fn accept_input(&self) {
        self.outlet.accept_input();
    }
}
