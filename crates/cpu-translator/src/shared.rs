//! What the vCPUs of one machine share: the code cache, and who may write where.

use crate::area::Area;
use crate::cache::Cache;
use crate::layout::State;
use crate::restless::Restless;
use crate::tables::{Form, Tables, VIEWS};
use crate::time::Time;
use crate::writers::Writers;
use base::Result;
use cpu::{Link, Request};
use memory::{CodeObserver, RamBlock};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A vCPU as the others see it.
pub struct Peer {
    pub gs: [usize; VIEWS],
    pub link: Arc<Link>,
    /// Counts entries (odd: translated code is running).
    pub inside: AtomicU64,
    pub counters: Counters,
}

/// What a vCPU tells about itself now and then.
#[derive(Default)]
pub struct Counters {
    pub fills: AtomicU64,
    pub flushes: AtomicU64,
    pub rounds: AtomicU64,
    pub entries: AtomicU64,
}

pub struct Shared {
    pub interpreter: cpu_interpreter::Shared,
    cache: Mutex<Cache>,
    peers: Mutex<Vec<Arc<Peer>>>,
    writers: Mutex<Writers>,
    /// Counts when [`Writers`] forgot pages that the tables do not know now: entries for writing
    /// that were set aside before are void.
    pub forgotten: AtomicU64,
    /// Counts flushes of the cache; what was taken from an earlier one is void.
    pub generation: AtomicU64,
    /// Counts blocks that were begun.
    pub added: AtomicU64,
    /// Counts blocks that ended.
    pub ended: AtomicU64,
    /// Counts pages that lost write entries to a code watch: look-ups made before are void.
    pub revoked: AtomicU64,
    pub warm: AtomicU32,
    pub exact: bool,
    /// Loops count their rounds from the start.
    pub measures: bool,
    pub form: Form,
    pub time: Time,
    restless: Restless,
    pub sampler: crate::sampler::Sampler,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(options: crate::Options, form: Form) -> Result<Shared> {
        let mut cache = Cache::new(Area::new(options.cache_size)?)?;
        cache.always_watch = options.always_watch;
        cache.near.always = options.always_near;
        if options.perf_map {
            cache.map_for_perf()?;
        }
        Ok(Shared {
            interpreter: cpu_interpreter::Shared::new()?,
            cache: Mutex::new(cache),
            peers: Mutex::default(),
            writers: Mutex::default(),
            forgotten: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            added: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            warm: AtomicU32::new(options.warm.max(1)),
            exact: options.exact_flags,
            measures: options.measure_loops,
            form,
            time: Time::new(),
            restless: Restless::default(),
            sampler: Default::default(),
        })
    }

    /// For `info jit` and `info accel`.
    pub fn report(&self) -> String {
        let cache = self.cache();
        let s = cache.statistics;
        let (remember, given_up) = cache.near.counts();
        let counts: Vec<String> = locked(&self.peers)
            .iter()
            .enumerate()
            .map(|(n, peer)| {
                let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let c = &peer.counters;
                format!(
                    "CPU #{n}: table fills {}, table flushes {}, interpreted pieces {}, entries into code {}\n",
                    of(&c.fills),
                    of(&c.flushes),
                    of(&c.rounds),
                    of(&c.entries)
                )
            })
            .collect();
        format!(
            "Translation buffer state:\n\
             gen code size       {}/{}\n\
             TB count            {}\n\
             TB ended            {}\n\
             TB avg target size  {} max={} instructions\n\
             TB avg host size    {} bytes\n\
             direct jump count   {}\n\
             TB flush count      {}\n\
             unwatched pages     {}\n\
             TB that remember    {} ({} accesses given up)\n\
             address translation {} tables\n{}",
            cache.area.used(),
            cache.area.size,
            s.translated - s.invalidated,
            s.invalidated,
            s.instructions / s.translated.max(1),
            crate::translate::LONGEST,
            s.host_bytes / s.translated.max(1),
            s.links,
            s.flushes,
            self.unwatched_pages(),
            remember,
            given_up,
            self.form.name(),
            counts.concat()
        )
    }

    /// Pages whose blocks compare their bytes.
    pub fn unwatched_pages(&self) -> usize {
        self.restless.count()
    }

    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        locked(&self.cache)
    }

    pub fn join(&self, peer: Arc<Peer>) {
        self.cache().views.extend(peer.gs);
        locked(&self.writers).join(&peer.gs);
        locked(&self.peers).push(peer);
    }

    pub fn leave(&self, peer: &Arc<Peer>) {
        self.cache().views.retain(|gs| !peer.gs.contains(gs));
        locked(&self.writers).leave(&peer.gs);
        locked(&self.peers).retain(|other| !Arc::ptr_eq(other, peer));
    }

    /// Whether there is only one vCPU.
    pub fn is_alone(&self) -> bool {
        self.interpreter.vcpus.load(Ordering::SeqCst) == 1
    }

    /// Notes that `host` (a page) may be written through `linear` of a view of `peer`, the caller.
    pub fn note_writer(&self, peer: &Peer, host: usize, gs: usize, linear: u64) {
        // Another vCPU may have noted a page that it is only about to fill.
        let alive = |gs, linear| !peer.gs.contains(&gs) || self.form.writes(gs, linear, host);
        locked(&self.writers).note((host, gs, linear), alive, || {
            self.forgotten.fetch_add(1, Ordering::SeqCst);
        });
    }

    /// Posts a request to every vCPU that is in translated code.
    pub fn ask_all(&self, request: Request) {
        for peer in locked(&self.peers).iter() {
            if peer.inside.load(Ordering::SeqCst) & 1 != 0 {
                peer.link.post(request);
            }
        }
    }

    /// Waits until every vCPU that is in translated code now has been out of it once.
    fn wait_for_peers(&self) {
        let peers = locked(&self.peers).clone();
        for peer in peers {
            let seen = peer.inside.load(Ordering::SeqCst);
            let mut spins = 0u32;
            while seen & 1 != 0 && peer.inside.load(Ordering::SeqCst) == seen {
                if spins == 0 {
                    peer.link.post(Request::INTERRUPT);
                }
                spins += 1;
                if spins.is_multiple_of(64) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
    }

    /// A page that is written to often is not watched any more; its blocks end.
    pub fn leave_unwatched(&self, cache: &mut Cache, block: RamBlock, offset: u64) {
        block.leave_unwatched(offset);
        self.restless.add(block, offset & !0xfff, Instant::now());
        if cache.leave_unwatched(block.host_address() + offset as usize, self.is_alone()) {
            block.clear_code_watch(offset);
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Pages that have been left unwatched for long enough are watched again when code of theirs
    /// is translated next.
    #[inline]
    pub fn review(&self) {
        if self.restless.is_due() {
            self.watch_again();
        }
    }

    #[cold]
    fn watch_again(&self) {
        let mut cache = self.cache();
        for (block, offset) in self.restless.take(Instant::now()) {
            block.watch_again(offset);
            cache.watch_again(block.host_address() + offset as usize);
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Drops all translated code. The caller is not in any.
    pub fn flush(&self, cache: &mut Cache) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.wait_for_peers();
        cache.clear();
    }
}

impl CodeObserver for Shared {
    fn armed(&self, block: RamBlock, offset: u64) {
        let host = block.host_address() + offset as usize;
        let list = locked(&self.writers).take(host);
        if list.is_empty() {
            return;
        }
        // Counted before, for who brings such an entry back; and behind, for who sets it aside.
        self.revoked.fetch_add(1, Ordering::SeqCst);
        for (gs, linear) in list {
            self.form.protect(gs, linear, host);
        }
        self.revoked.fetch_add(1, Ordering::SeqCst);
        self.wait_for_peers();
    }

    fn written(&self, block: RamBlock, offset: u64, len: u64) {
        let host = block.host_address() + offset as usize;
        let mut cache = self.cache();
        let before = cache.statistics.invalidated;
        if cache.written(host, len as usize) {
            block.clear_code_watch(offset);
        }
        if cache.is_restless(host) {
            self.leave_unwatched(&mut cache, block, offset);
        }
        if cache.statistics.invalidated != before {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Where the state of a vCPU lies; used by its own thread only.
pub struct StatePage(*mut State);

// SAFETY: the page is plain memory that lives as long as the vCPU; one thread at a time uses it.
unsafe impl Send for StatePage {}

impl StatePage {
    pub fn new(tables: &Tables) -> StatePage {
        StatePage(tables.state())
    }

    pub fn get(&mut self) -> &mut State {
        // SAFETY: a mapped, zero-initialised page of the right alignment; no other reference
        // exists while this one does, and generated code runs only between uses.
        unsafe { &mut *self.0 }
    }
}
