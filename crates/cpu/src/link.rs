//! What other threads ask of one vCPU.

use base::Mutex;
use bitflags::bitflags;
use std::sync::Condvar;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

bitflags! {
    /// Reasons for a vCPU to look up from its code.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Request: u32 {
        /// The interrupt controller may have a vector: a hint that the engine takes (clears)
        /// when it asks [`crate::LocalApic`]; it asks again whenever the guest comes to accept
        /// interrupts (STI, POPF, IRET, MOV CR8, end of a shadow), so no hint is lost and a
        /// halted vCPU with interrupts off does not spin.
        const INTERRUPT = 1;
        const NMI = 2;
        const INIT = 4;
        const SIPI = 8;
        /// Leave [`crate::Vcpu::run`] with [`crate::Exit::Asked`].
        const EXIT = 16;
        /// The memory map, a page's watches or A20 changed: drop derived translations.
        const FLUSH = 32;
        const SMI = 64;
        const MCE = 128;
    }
}

/// Told whether what is asked is new.
type Kicker = Box<dyn Fn(bool) + Send + Sync>;

/// The mailbox of one vCPU. `post` may be called from any thread, with any lock held.
#[derive(Default)]
pub struct Link {
    requests: AtomicU32,
    sipi_vector: AtomicU8,
    waiting: AtomicBool,
    park: StdMutex<()>,
    wake: Condvar,
    /// And the number that it was given.
    kicker: Mutex<(u64, Option<Kicker>)>,
    kicks: AtomicBool,
    a20_masked: AtomicBool,
}

impl Link {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks; wakes a halted vCPU and makes a running one look within a block.
    pub fn post(&self, request: Request) {
        let old = self.requests.fetch_or(request.bits(), Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) {
            drop(self.park.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
        if self.kicks.load(Ordering::Acquire)
            && let Some(kick) = &self.kicker.lock().1
        {
            // Who asked the same before may not have come to this yet.
            kick(old & request.bits() != request.bits());
        }
    }

    /// Posts a start-up IPI.
    pub fn post_sipi(&self, vector: u8) {
        self.sipi_vector.store(vector, Ordering::Release);
        self.post(Request::SIPI);
    }

    pub fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::Acquire)
    }

    /// What is asked now. Engines look at block boundaries whether that is anything.
    #[inline(always)]
    pub fn requests(&self) -> Request {
        Request::from_bits_retain(self.requests.load(Ordering::Acquire))
    }

    /// Takes (clears) the given requests; returns those that were set.
    pub fn take(&self, which: Request) -> Request {
        Request::from_bits_retain(self.requests.fetch_and(!which.bits(), Ordering::SeqCst)) & which
    }

    /// Waits until one of `which` is asked, at most `limit`.
    pub fn wait(&self, which: Request, limit: Option<Duration>) {
        let mut guard = self.park.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(true, Ordering::SeqCst);
        if self.requests.load(Ordering::SeqCst) & which.bits() == 0 {
            guard = match limit {
                Some(limit) => self.wake.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
            };
        }
        self.waiting.store(false, Ordering::SeqCst);
        drop(guard);
    }

    /// Opens or masks address line 20. The caller then posts [`Request::FLUSH`], on which
    /// engines read [`Link::a20`] again.
    pub fn set_a20(&self, enabled: bool) {
        self.a20_masked.store(!enabled, Ordering::SeqCst);
    }

    pub fn a20(&self) -> bool {
        !self.a20_masked.load(Ordering::SeqCst)
    }

    /// What interrupts a vCPU that does not look at the requests all the time: one inside the host
    /// kernel (KVM: a signal and `immediate_exit`) or in translated code. It is told whether what is
    /// asked is new. Returns its number.
    pub fn set_kicker(&self, kick: impl Fn(bool) + Send + Sync + 'static) -> u64 {
        let mut kicker = self.kicker.lock();
        *kicker = (kicker.0 + 1, Some(Box::new(kick)));
        self.kicks.store(true, Ordering::Release);
        kicker.0
    }

    /// That vCPU is gone; another one's stays.
    pub fn forget_kicker(&self, number: u64) {
        let mut kicker = self.kicker.lock();
        if kicker.0 == number {
            kicker.1 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn who_is_gone_takes_no_one_elses_kicker_away() {
        let link = Link::new();
        let kicks = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let numbers = [0, 1].map(|n| {
            let kicks = kicks.clone();
            link.set_kicker(move |_| {
                kicks[n].fetch_add(1, Ordering::SeqCst);
            })
        });
        let kick = || {
            link.post(Request::NMI);
            link.take(Request::NMI);
            [0, 1].map(|n| kicks[n].load(Ordering::SeqCst))
        };
        link.forget_kicker(numbers[0]);
        assert_eq!(kick(), [0, 1]);
        link.forget_kicker(numbers[1]);
        assert_eq!(kick(), [0, 1]);
    }
}
