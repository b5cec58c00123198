use super::queue::{Broken, Chain, NO_VECTOR, Queue};
use base::Mutex;
use device::pci::PciCore;
use memory::Dma;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

/// Interrupt status bits (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
pub const STATUS_DRIVER_OK: u8 = 4;
pub const STATUS_NEEDS_RESET: u8 = 0x40;

/// The transport as its device sees it: queues, interrupts, guest memory.
pub struct Link {
    core: Arc<PciCore>,
    dma: Dma,
    pub(super) queues: Vec<Mutex<Queue>>,
    pub(super) status: AtomicU8,
    /// Features the driver accepted.
    pub(super) accepted: AtomicU64,
    pub(super) config_vector: AtomicU16,
    pub(super) generation: AtomicU8,
    /// The driver broke the rules; nothing happens before a reset.
    pub(super) broken: AtomicBool,
    isr: Mutex<u8>,
}

impl Link {
    pub(super) fn new(core: Arc<PciCore>, sizes: &[u16]) -> Arc<Self> {
        Arc::new(Link {
            dma: core.dma(),
            core,
            queues: sizes.iter().map(|&size| Mutex::new(Queue::new(size))).collect(),
            status: AtomicU8::new(0),
            accepted: AtomicU64::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            generation: AtomicU8::new(0),
            broken: AtomicBool::new(false),
            isr: Mutex::new(0),
        })
    }

    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    pub fn has_feature(&self, bit: u64) -> bool {
        self.accepted.load(Ordering::Acquire) & bit != 0
    }

    /// Whether the driver is running the device.
    pub fn is_live(&self) -> bool {
        self.status.load(Ordering::Acquire) & STATUS_DRIVER_OK != 0 && !self.is_broken()
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The next buffer of a queue, if the driver made one available.
    pub fn pop(&self, queue: usize) -> Option<Chain> {
        if self.is_broken() {
            return None;
        }
        let popped = self.queues.get(queue)?.lock().pop(&self.dma, queue);
        popped.unwrap_or_else(|why| {
            self.fail(why);
            None
        })
    }

    /// Whether the driver has buffers waiting in a queue.
    pub fn has_available(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.lock().has_available(&self.dma))
    }

    /// Whether the queue has not been reset since the chain was popped.
    pub fn is_current(&self, chain: &Chain) -> bool {
        self.queues.get(chain.queue).is_some_and(|queue| queue.lock().life == chain.life)
    }

    /// The present life of a queue; a reset begins a new one.
    pub(super) fn life(&self, queue: usize) -> Option<u64> {
        Some(self.queues.get(queue)?.lock().life)
    }

    /// Gives a buffer back and interrupts if the driver wants it.
    pub fn push(&self, chain: &Chain, written: u32) {
        let Some(queue) = self.queues.get(chain.queue) else { return };
        let mut queue = queue.lock();
        let wanted = queue.push(&self.dma, chain, written);
        let vector = queue.vector;
        drop(queue);
        match wanted {
            Ok(true) => self.interrupt(ISR_QUEUE, vector),
            Ok(false) => {}
            Err(why) => self.fail(why),
        }
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status.load(Ordering::Acquire) & STATUS_DRIVER_OK != 0 {
            self.interrupt(ISR_QUEUE | ISR_CONFIG, self.config_vector.load(Ordering::Acquire));
        }
    }

    /// The driver broke the rules: the device asks to be reset and stands still.
    pub fn fail(&self, _why: Broken) {
        if self.broken.swap(true, Ordering::AcqRel) {
            return;
        }
        self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::AcqRel);
        self.config_changed();
    }

    fn interrupt(&self, bits: u8, vector: u16) {
        let mut isr = self.isr.lock();
        *isr |= bits;
        if !self.core.msix_enabled() {
            self.core.set_intx(true);
            return;
        }
        drop(isr);
        if vector != NO_VECTOR {
            self.core.msix_trigger(vector.into());
        }
    }

    /// Reads and clears the interrupt status.
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = self.isr.lock();
        self.core.set_intx(false);
        std::mem::take(&mut *isr)
    }

    pub(super) fn reset(&self) {
        for queue in &self.queues {
            queue.lock().reset();
        }
        self.status.store(0, Ordering::Release);
        self.accepted.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.broken.store(false, Ordering::Release);
        self.take_isr();
    }
}
