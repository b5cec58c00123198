//! The way up: lower layers tell what happened, the control plane turns it into events.
//!
//! Sending never blocks and never drops. The receiver is woken by a callback it gives,
//! so that this crate needs no async runtime.

use crate::Mutex;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// A thing that happened, with the wall-clock time at which it happened.
pub struct Notice {
    pub when: SystemTime,
    /// The sender's own notice type (`machine::Notice`, `block::Notice`, `device::Notice`).
    pub what: Box<dyn Any + Send>,
}

type Wake = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Notice>>,
    wake: Mutex<Option<Arc<Wake>>>,
}

/// The sending side; clones feed the same queue.
#[derive(Clone, Default)]
pub struct Notices(Arc<Shared>);

impl Notices {
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `what` at the end of the queue, stamped with the present time.
    pub fn send<T: Any + Send>(&self, what: T) {
        let notice = Notice { when: SystemTime::now(), what: Box::new(what) };
        self.0.queue.lock().push_back(notice);
        let wake = self.0.wake.lock().clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Takes everything queued so far, oldest first.
    pub fn drain(&self) -> Vec<Notice> {
        self.0.queue.lock().drain(..).collect()
    }

    /// Sets what is called (on the sender's thread, holding no lock) after each send.
    pub fn on_send(&self, wake: impl Fn() + Send + Sync + 'static) {
        *self.0.wake.lock() = Some(Arc::new(Box::new(wake)));
    }
}
