//! Timer ticks that came while the guest had not yet taken the one before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

type Deliver = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether some timer owes the guest ticks, and how the next one is delivered. A vCPU that gets
/// the host's processor for moments only takes many ticks in one of them that way, and guests
/// that count ticks (Linux does, to see whether the timer works) count enough.
#[derive(Default)]
pub struct OwedTicks {
    any: AtomicBool,
    deliver: OnceLock<Deliver>,
}

impl OwedTicks {
    pub fn set(&self, any: bool) {
        self.any.store(any, Ordering::Relaxed);
    }

    /// What is called when ticks are owed and a processor has taken an interrupt, on its thread;
    /// returns whether ticks are owed still.
    pub fn on_taken(&self, deliver: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.deliver.set(Box::new(deliver));
    }

    /// A processor has taken an interrupt.
    #[inline]
    pub fn taken(&self) {
        if self.any.load(Ordering::Relaxed)
            && let Some(deliver) = self.deliver.get()
        {
            self.set(deliver());
        }
    }
}
