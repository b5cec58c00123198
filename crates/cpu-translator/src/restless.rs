//! Pages of code that are written to so often that they are not watched any more (see
//! [`memory::UNWATCHED`]). Each is watched again after a while, and longer left alone if it
//! proves restless still: a kernel patches its code at its start, a compiler without end.

use crate::cache::Mixed;
use memory::RamBlock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a page stays unwatched: the first time, and at most.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(120);

struct Page {
    ram: RamBlock,
    offset: u64,
    /// When it will be watched again; `None`: it is watched.
    until: Option<Instant>,
    period: Duration,
}

pub struct Restless {
    start: Instant,
    /// When the next page is due, in milliseconds from `start`.
    due: AtomicU64,
    pages: Mutex<Mixed<usize, Page>>,
}

impl Default for Restless {
    fn default() -> Restless {
        Restless { start: Instant::now(), due: AtomicU64::new(u64::MAX), pages: Mutex::default() }
    }
}

impl Restless {
    fn pages(&self) -> MutexGuard<'_, Mixed<usize, Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page at `offset` (a multiple of 4096) is not watched from now on.
    pub fn add(&self, ram: RamBlock, offset: u64, now: Instant) {
        let host = ram.host_address() + offset as usize;
        let mut pages = self.pages();
        let page = pages.entry(host).or_insert(Page { ram, offset, until: None, period: FIRST / 2 });
        if page.until.is_none() {
            page.period = (page.period * 2).min(LONGEST);
            page.until = Some(now + page.period);
            self.tell(now + page.period);
        }
    }

    fn tell(&self, until: Instant) {
        let due = until.saturating_duration_since(self.start).as_millis() as u64;
        self.due.fetch_min(due, Ordering::Relaxed);
    }

    /// Whether a page may be due.
    #[inline]
    pub fn is_due(&self) -> bool {
        let due = self.due.load(Ordering::Relaxed);
        due != u64::MAX && self.start.elapsed().as_millis() as u64 > due
    }

    /// The pages that are to be watched again now.
    pub fn take(&self, now: Instant) -> Vec<(RamBlock, u64)> {
        let mut pages = self.pages();
        self.due.store(u64::MAX, Ordering::Relaxed);
        let mut taken = Vec::new();
        for page in pages.values_mut() {
            match page.until {
                Some(until) if until <= now => {
                    page.until = None;
                    taken.push((page.ram, page.offset));
                }
                Some(until) => self.tell(until),
                None => {}
            }
        }
        taken
    }

    pub fn count(&self) -> usize {
        self.pages().values().filter(|page| page.until.is_some()).count()
    }
}
