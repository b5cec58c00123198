//! Asks vCPUs for a while what they run.
//!
//! What runs often is found when a vCPU leaves translated code because something is asked of it
//! ([`crate::cache::Cache::runs_often`]). The guest's own timer does that now and then; while it
//! finds something, this thread does it more often, so that a program need not run for seconds
//! before its look-ups are short ones.

use crate::shared::Shared;
use cpu::Request;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

/// Between two questions, while they find something; and when it is given up.
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(16);

#[derive(Default)]
pub struct Sampler {
    thread: OnceLock<Option<Thread>>,
    found: AtomicBool,
}

impl Shared {
    /// Something was found: more will be, soon.
    pub fn sample_on(self: &Arc<Shared>) {
        self.sampler.found.store(true, Ordering::SeqCst);
        let thread = self.sampler.thread.get_or_init(|| {
            let shared = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name("sampler".into());
            // Without it the guest's timer must do.
            thread.spawn(move || run(shared)).ok().map(|handle| handle.thread().clone())
        });
        if let Some(thread) = thread {
            thread.unpark();
        }
    }
}

impl Drop for Sampler {
    /// The thread sees that nothing is left to be asked, and ends.
    fn drop(&mut self) {
        if let Some(Some(thread)) = self.thread.get() {
            thread.unpark();
        }
    }
}

fn run(shared: Weak<Shared>) {
    let mut pause = SHORT;
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            if shared.sampler.found.swap(false, Ordering::SeqCst) {
                pause = SHORT;
            } else {
                pause = (2 * pause).min(2 * LONG);
            }
            shared.ask_all(Request::INTERRUPT);
        }
        match pause > LONG {
            true => std::thread::park(),
            false => std::thread::sleep(pause),
        }
    }
}
