//! `copy-mode: write-blocking`: guest writes go to the target as well before they are answered.

use super::Job;
use super::mirror::MirrorSpec;
use crate::backend::OnError;
use crate::bitmap::DirtyBitmap;
use crate::graph::{Change, Hook, Node};
use crate::notice::Action;
use crate::types::*;
use base::Mutex;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

/// Sits on the source. The bitmap says what the target does not have yet.
pub(super) struct Active {
    target: Arc<Node>,
    bitmap: Arc<DirtyBitmap>,
    on_error: OnError,
    unmap: bool,
    job: OnceLock<Weak<Job>>,
    failure: Mutex<Option<io::Error>>,
}

impl Active {
    pub fn new(spec: &MirrorSpec, bitmap: &Arc<DirtyBitmap>) -> Arc<Self> {
        Arc::new(Active {
            target: spec.target.clone(),
            bitmap: bitmap.clone(),
            on_error: spec.on_target_error,
            unmap: spec.unmap,
            job: OnceLock::new(),
            failure: Mutex::new(None),
        })
    }

    /// Whom to tell of errors.
    pub fn serve(&self, job: &Arc<Job>) {
        let _ = self.job.set(Arc::downgrade(job));
    }

    /// The error that ends the job, once.
    pub fn failure(&self) -> Option<io::Error> {
        self.failure.lock().take()
    }

    /// The target has a range: what lies in it as a whole need not be copied.
    fn done(&self, offset: u64, end: u64) {
        let unit = u64::from(self.bitmap.granularity());
        let from = offset.next_multiple_of(unit);
        let to = if end >= self.bitmap.size() { end } else { end / unit * unit };
        if from < to {
            self.bitmap.reset(from, to - from);
        }
    }

    fn failed(&self, offset: u64, len: u64, error: io::Error) {
        self.bitmap.set(offset, len);
        let Some(job) = self.job.get().and_then(Weak::upgrade) else { return };
        job.set_synced(false);
        if job.on_error(self.on_error, true, &error) == Action::Report {
            self.failure.lock().get_or_insert(error);
        }
        job.wake();
    }
}

impl Hook for Active {
    fn after_write<'a>(&'a self, offset: u64, len: u64, change: Change<'a>) -> Fut<'a, ()> {
        Box::pin(async move {
            let result = match change {
                Change::Data(data) => self.target.write(offset, data, WriteFlags::empty()).await,
                Change::Zeroes => {
                    let mut flags = ZeroFlags::empty();
                    flags.set(ZeroFlags::MAY_UNMAP, self.unmap);
                    self.target.write_zeroes(offset, len, flags).await
                }
                // Copied from the source, whatever it is now.
                Change::Unknown => return self.bitmap.set(offset, len),
            };
            match result {
                Ok(()) => self.done(offset, offset + len),
                Err(error) => self.failed(offset, len, error),
            }
        })
    }
}
