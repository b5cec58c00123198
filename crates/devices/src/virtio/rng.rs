//! virtio-rng (virtio 1.2 §5.4).

use super::pci::{Generation, Shape, VirtioPci};
use super::{Link, Virtio};
use base::clock::{Clock, Timer};
use base::{Failure, Mutex, Result, bail, fail};
use device::{Device, Entropy, EntropySource, Model, Property, PropertyKind, Props, Wiring};
use std::any::Any;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};

const PROPERTIES: &[Property] = &[
    Property::unset("rng", PropertyKind::Link("rng-backend"), "Where the bytes come from"),
    Property::new("max-bytes", PropertyKind::U64, "9223372036854775807", "Most bytes in one period"),
    Property::new("period", PropertyKind::U32, "65536", "Length of a period in milliseconds"),
    Property::new("vectors", PropertyKind::U32, "2", "MSI-X vectors"),
];

three_models!("virtio-rng-pci", "virtio-rng", "Virtio random number generator", [PROPERTIES], create);

/// Most bytes fetched at a time.
const CHUNK: usize = 64 << 10;

/// The host's generator, for devices without `rng=`.
struct Host;

impl Entropy for Host {
    fn fill(&self, to: &mut [u8]) -> std::io::Result<usize> {
        std::fs::File::open("/dev/urandom")?.read(to)
    }
}

struct Rng {
    source: Arc<EntropySource>,
    link: OnceLock<Arc<Link>>,
    clock: Clock,
    /// Nanoseconds.
    period: u64,
    max_bytes: u64,
    quota: Mutex<Quota>,
    /// Wakes the thread that fetches: sources may block.
    wake: Sender<()>,
    refill: Timer,
}

struct Quota {
    left: u64,
    until: u64,
    paused: bool,
}

fn create(
    model: &'static Model,
    generation: Generation,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let period = props.u64("period").saturating_mul(1_000_000);
    if period == 0 {
        bail!("'period' parameter expects a positive integer");
    }
    let max_bytes = props.u64("max-bytes");
    if max_bytes > i64::MAX as u64 {
        bail!("'max-bytes' parameter must be non-negative, and less than 2^63");
    }
    let source = match props.str("rng") {
        Some(id) => {
            let object = wiring.services.backends.object(id).ok_or_else(|| Failure::device_not_found(id))?;
            object
                .downcast::<EntropySource>()
                .map_err(|_| fail!("Invalid parameter type for 'rng', expected: rng-backend"))?
        }
        None => Arc::new(EntropySource(Box::new(Host))),
    };
    let (wake, woken) = channel();
    let again = wake.clone();
    let clock = wiring.clock().clone();
    let device = Arc::new(Rng {
        source,
        link: OnceLock::new(),
        refill: clock.timer(move |_| {
            // Without its thread the device is gone.
            let _ = again.send(());
        }),
        clock,
        period,
        max_bytes,
        quota: Mutex::new(Quota { left: max_bytes, until: 0, paused: false }),
        wake,
    });
    let weak = Arc::downgrade(&device);
    std::thread::Builder::new()
        .name("virtio-rng".into())
        .spawn(move || fetch(&weak, &woken))
        .map_err(|error| Failure::os("cannot start a thread for virtio-rng", &error))?;
    let vectors = props.u64("vectors").min(2048) as u16;
    let shape = Shape { model, generation, class: 0x00_ff00, legacy_id: 0x1005, vectors };
    VirtioPci::create(shape, device, props, wiring)
}

/// The fetching thread: ends with the device.
fn fetch(device: &Weak<Rng>, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        let Some(rng) = device.upgrade() else { return };
        while rng.serve() {}
    }
}

impl Rng {
    /// How many bytes may be given now; arms the timer when none.
    fn allowance(&self) -> usize {
        let mut quota = self.quota.lock();
        let now = self.clock.now();
        if now >= quota.until {
            (quota.left, quota.until) = (self.max_bytes, now.saturating_add(self.period));
        }
        if quota.paused {
            return 0;
        }
        if quota.left == 0 {
            self.refill.arm(quota.until);
        }
        usize::try_from(quota.left).unwrap_or(usize::MAX)
    }

    /// Fills one buffer; false when there is none or nothing may be given.
    fn serve(&self) -> bool {
        let Some(link) = self.link.get() else { return false };
        let allowed = self.allowance();
        if allowed == 0 {
            return false;
        }
        let Some(chain) = link.pop(0) else { return false };
        let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; room.min(allowed).min(CHUNK)];
        let given = if bytes.is_empty() { Ok(0) } else { self.source.0.fill(&mut bytes) };
        let given = given.unwrap_or(0).min(bytes.len());
        {
            let mut quota = self.quota.lock();
            quota.left = quota.left.saturating_sub(given as u64);
        }
        if link.is_current(&chain) {
            let stored = chain.write(link.dma(), 0, &bytes[..given]);
            link.push(&chain, if stored.is_some() { given as u32 } else { 0 });
        }
        true
    }
}

impl Virtio for Rng {
    fn number(&self) -> u16 {
        4
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }
    fn features(&self) -> u64 {
        0
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn connect(&self, link: &Arc<Link>) {
        let _ = self.link.set(link.clone());
    }
    fn notify(&self, _queue: usize) {
        // The thread lives as long as the device.
        let _ = self.wake.send(());
    }
    fn reset(&self) {}
    fn pause(&self) {
        self.quota.lock().paused = true;
    }
    fn resume(&self) {
        self.quota.lock().paused = false;
        let _ = self.wake.send(());
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
