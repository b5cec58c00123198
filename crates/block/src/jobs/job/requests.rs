//! What users may ask of a job. What changes its state later than the answer has a check of its own.

use super::{Job, State, Status};
use crate::backend::IoStatus;
use base::{Class, Failure, Result, bail};

impl Job {
    fn refuse(&self, verb: &str) -> Result<()> {
        let status = self.status();
        bail!("Job '{}' in state '{}' cannot accept command verb '{verb}'", self.setup.id, status.as_str())
    }

    pub fn set_speed(&self, speed: u64) -> Result<()> {
        use Status::*;
        if !matches!(self.status(), Created | Running | Paused | Ready | Standby) {
            return self.refuse("set-speed");
        }
        let mut state = self.state.lock();
        // What has been done in excess of the old limit counts against the new one.
        state.speed = speed;
        drop(state);
        self.woken.notify_waiters();
        Ok(())
    }

    /// Whether a user (or an error) has paused it.
    pub fn is_user_paused(&self) -> bool {
        self.state.lock().user_paused
    }

    pub fn pause(&self) -> Result<()> {
        use Status::*;
        if !matches!(self.status(), Created | Running | Paused | Ready | Standby) {
            return self.refuse("pause");
        }
        let mut state = self.state.lock();
        if state.user_paused {
            bail!("Job is already paused");
        }
        state.user_paused = true;
        drop(state);
        self.woken.notify_waiters();
        Ok(())
    }

    /// No longer paused, which shows at once; goes on when it is woken ([`Job::wake`]).
    pub fn unpause(&self) -> Result<()> {
        use Status::*;
        if !self.state.lock().user_paused {
            bail!("Can't resume a job that was not paused");
        }
        if !matches!(self.status(), Created | Running | Paused | Ready | Standby) {
            return self.refuse("resume");
        }
        let mut state = self.state.lock();
        state.user_paused = false;
        state.io_status = IoStatus::Ok;
        let goes_on = state.held == 0;
        drop(state);
        if goes_on {
            self.show_running();
        }
        Ok(())
    }

    pub fn resume(&self) -> Result<()> {
        self.unpause()?;
        self.wake();
        Ok(())
    }

    /// Whether [`Job::cancel`] is refused now.
    pub fn check_cancel(&self, force: bool) -> Result<()> {
        use Status::*;
        let status = self.status();
        if !matches!(status, Created | Running | Paused | Ready | Standby | Waiting | Pending) {
            return self.refuse("cancel");
        }
        let paused = self.state.lock().user_paused;
        if paused && !force && self.setup.block_job && !matches!(status, Waiting | Pending) {
            bail!("The block job for device '{}' is currently paused", self.setup.id);
        }
        Ok(())
    }

    /// A paused job goes on, which shows at once.
    pub fn show_running(&self) {
        self.change(State::running);
    }

    /// `force`: also where a ready mirror would otherwise end cleanly.
    pub fn cancel(&self, force: bool) -> Result<()> {
        self.check_cancel(force)?;
        let mut state = self.state.lock();
        state.cancelled = true;
        state.forced |= force;
        state.user_paused = false;
        let ends_at_once = state.ends_at_once();
        drop(state);
        self.woken.notify_waiters();
        if ends_at_once {
            self.hasten();
        }
        Ok(())
    }

    /// Lets the requests of the cancelled job through all limits, until it has ended.
    fn hasten(&self) {
        let Some(graph) = self.jobs.upgrade().and_then(|jobs| jobs.graph.upgrade()) else { return };
        let haste = graph.hasten_job(self.id());
        let mut held = self.haste.lock();
        if !matches!(self.status(), Status::Concluded | Status::Null) {
            *held = Some(haste);
        }
    }

    /// To be called when the job has concluded.
    pub(in crate::jobs) fn end_haste(&self) {
        let haste = self.haste.lock().take();
        drop(haste);
    }

    /// Whether [`Job::complete`] is refused now.
    pub fn check_complete(&self) -> Result<()> {
        if self.status() != Status::Ready {
            return self.refuse("complete");
        }
        let state = self.state.lock();
        if !state.ready || state.cancelled || state.user_paused {
            let text = format!("The active block job '{}' cannot be completed", self.setup.id);
            return Err(Failure::of(Class::GenericError, text));
        }
        Ok(())
    }

    pub fn complete(&self) -> Result<()> {
        self.check_complete()?;
        self.state.lock().complete = true;
        self.woken.notify_waiters();
        Ok(())
    }

    pub fn finalize(&self) -> Result<()> {
        if self.status() != Status::Pending {
            return self.refuse("finalize");
        }
        match &self.setup.group {
            Some(group) => group.finalize(),
            None => self.let_finish(),
        }
        Ok(())
    }

    /// Waits until the finalized job, and those that end with it, have concluded.
    pub async fn concluded(&self) {
        for job in self.setup.group.iter().flat_map(|group| group.members()) {
            job.conclusion().await;
        }
        self.conclusion().await;
    }

    async fn conclusion(&self) {
        loop {
            let woken = self.woken.notified();
            if matches!(self.status(), Status::Concluded | Status::Null) {
                return;
            }
            woken.await;
        }
    }
}
