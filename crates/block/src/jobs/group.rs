//! Jobs of one transaction with `completion-mode: grouped`: all end well or none.

use super::Job;
use base::Mutex;
use std::sync::{Arc, Weak};

/// The members, as they join.
#[derive(Debug, Default)]
pub struct Group {
    members: Mutex<Vec<Weak<Job>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody joins any more.
    closed: bool,
    failed: bool,
    arrived: usize,
}

impl Group {
    pub(super) fn join(&self, job: &Arc<Job>) {
        self.members.lock().push(Arc::downgrade(job));
    }

    pub(super) fn members(&self) -> Vec<Arc<Job>> {
        self.members.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// All have joined: they may finish.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.members().iter().for_each(|job| job.wake());
    }

    /// A member has done its work.
    pub(super) fn arrive(&self) {
        self.state.lock().arrived += 1;
        self.members().iter().for_each(|job| job.wake());
    }

    pub(super) fn is_done(&self) -> bool {
        let count = self.members.lock().len();
        let state = self.state.lock();
        state.closed && state.arrived >= count
    }

    /// Whether a member wants to be told to finish.
    pub(super) fn waits(&self) -> bool {
        self.members().iter().any(|job| !job.setup.auto_finalize)
    }

    pub(super) fn finalize(&self) {
        self.members().iter().for_each(|job| job.let_finish());
    }

    /// A member failed or was cancelled: so are the others.
    pub(super) fn fail(&self) {
        if !std::mem::replace(&mut self.state.lock().failed, true) {
            for job in self.members() {
                // Refused by those that have ended.
                let _ = job.cancel(true);
            }
        }
    }
}
