use block::{Backend, IoStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Counts requests of a device from their start until their completion has run to its end,
/// guest memory included.
#[derive(Clone, Default)]
pub struct Pending(Arc<AtomicUsize>);

/// One request; ends when dropped.
pub struct InFlight(Arc<AtomicUsize>);

impl Pending {
    pub fn enter(&self) -> InFlight {
        self.0.fetch_add(1, Ordering::AcqRel);
        InFlight(self.0.clone())
    }

    /// Waits until no request is in flight, except those that the error policy of one of
    /// these drives holds until the machine is continued.
    pub fn wait(&self, drives: &[Backend]) {
        let held = || drives.iter().any(|d| d.io_status().is_some_and(|status| status != IoStatus::Ok));
        while self.0.load(Ordering::Acquire) > 0 && !held() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
