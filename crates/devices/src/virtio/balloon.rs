//! virtio-balloon (virtio 1.2 §5.5): memory the guest lends to the host, and its statistics.

use super::pci::{Generation, Shape, VirtioPci};
use super::queue::{Broken, Chain};
use super::{Link, Virtio};
use base::clock::{Clock, NANOS, Timer};
use base::notice::Notices;
use base::{Mutex, Result, fail};
use device::{Device, Model, Notice, Property, PropertyKind, Props, Wiring};
use memory::PAGE_SIZE;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

const PROPERTIES: &[Property] = &[
    Property::new("deflate-on-oom", PropertyKind::Bool, "off", "The guest may take pages back when it must"),
    Property::new("vectors", PropertyKind::U32, "0", "MSI-X vectors"),
];

three_models!("virtio-balloon-pci", "virtio-balloon", "Virtio memory balloon", [PROPERTIES], create);

const F_STATS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;

/// Names of the statistics by their tag.
const STAT_NAMES: [&str; 10] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
];
const STAT_BYTES: u64 = 10;

pub struct Balloon {
    offered: u64,
    wall: Clock,
    link: OnceLock<Arc<Link>>,
    state: Mutex<State>,
    poll: Timer,
    notices: Notices,
}

#[derive(Default)]
struct State {
    /// Pages the host asks for, and the guest has given.
    wanted: u32,
    given: u32,
    /// Seconds between statistics; 0: none.
    interval: u32,
    /// The buffer by whose return the next statistics are asked for.
    request: Option<Chain>,
    stats: [Option<u64>; STAT_NAMES.len()],
    updated: u64,
}

fn create(
    model: &'static Model,
    generation: Generation,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let offered = F_STATS | if props.bool("deflate-on-oom") { F_DEFLATE_ON_OOM } else { 0 };
    let clocks = &wiring.services.clocks;
    let device = Arc::new_cyclic(|me: &Weak<Balloon>| {
        let me = me.clone();
        Balloon {
            offered,
            wall: clocks.host.clone(),
            link: OnceLock::new(),
            state: Mutex::default(),
            poll: clocks.virtual_.timer(move |_| {
                if let Some(balloon) = me.upgrade() {
                    balloon.ask_for_stats();
                }
            }),
            notices: wiring.services.notices.clone(),
        }
    });
    let vectors = props.u64("vectors").min(2048) as u16;
    let shape = Shape { model, generation, class: 0x00_ff00, legacy_id: 0x1002, vectors };
    VirtioPci::create(shape, device, props, wiring)
}

impl Balloon {
    /// Asks the guest to put this many bytes into the balloon (down to whole pages).
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        self.state.lock().wanted = pages;
        if let Some(link) = self.link.get() {
            link.config_changed();
        }
    }

    /// Bytes in the balloon as the guest reports them.
    pub fn given(&self) -> u64 {
        u64::from(self.state.lock().given) * PAGE_SIZE
    }

    fn pages(&self, link: &Link, queue: usize) {
        while let Some(chain) = link.pop(queue) {
            let count = chain.readable_len() / 4;
            let mut at = 0;
            while at < count && queue == INFLATE {
                let mut bytes = [0; 1024];
                let step = (count - at).min(256);
                let part = &mut bytes[..step as usize * 4];
                if chain.read(link.dma(), at * 4, part).is_none() {
                    return link.fail(Broken("virtio-balloon page list is not in memory"));
                }
                part.as_chunks::<4>().0.iter().for_each(|frame| give_back(link, u32::from_le_bytes(*frame)));
                at += step;
            }
            link.push(&chain, 0);
        }
    }

    fn take_stats(&self, link: &Link) {
        while let Some(chain) = link.pop(STATS) {
            let mut state = self.state.lock();
            // A driver that sends another before it is asked gets the first one back.
            if let Some(older) = state.request.take() {
                link.push(&older, 0);
            }
            let count = (chain.readable_len() / STAT_BYTES).min(64);
            for index in 0..count {
                let mut entry = [0; STAT_BYTES as usize];
                if chain.read(link.dma(), index * STAT_BYTES, &mut entry).is_none() {
                    break;
                }
                let tag = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
                let value = entry[2..].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                if let Some(stat) = state.stats.get_mut(tag) {
                    *stat = Some(value);
                }
            }
            state.updated = self.wall.now() / NANOS;
            state.request = Some(chain);
            if state.interval > 0 {
                self.poll.arm_in(u64::from(state.interval) * NANOS);
            }
        }
    }

    fn ask_for_stats(&self) {
        let Some(link) = self.link.get() else { return };
        let mut state = self.state.lock();
        match state.request.take() {
            Some(chain) => link.push(&chain, 0),
            None if state.interval > 0 => self.poll.arm_in(u64::from(state.interval) * NANOS),
            None => {}
        }
    }

    fn stats(&self) -> Value {
        let state = self.state.lock();
        let names = STAT_NAMES.iter().zip(state.stats);
        let stats: Map<String, Value> =
            names.map(|(name, value)| (name.to_string(), value.unwrap_or(u64::MAX).into())).collect();
        json!({"stats": stats, "last-update": state.updated})
    }

    fn set_interval(&self, value: &Value) -> Result<()> {
        let Some(seconds) = value.as_i64() else {
            return Err(fail!(
                "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"
            ));
        };
        if seconds < 0 {
            return Err(fail!("timer value must be greater than zero"));
        }
        let seconds = u32::try_from(seconds).map_err(|_| fail!("timer value is too big"))?;
        self.state.lock().interval = seconds;
        if seconds == 0 {
            self.poll.cancel()
        } else {
            self.poll.arm_in(u64::from(seconds) * NANOS)
        }
        Ok(())
    }
}

/// Gives the host a page of guest RAM back; frames that are no RAM are ignored.
fn give_back(link: &Link, frame: u32) {
    let page = link.dma().space().view().ram_page(u64::from(frame) * PAGE_SIZE);
    if let Some((block, offset)) = page {
        // A host that cannot keeps the page: nothing is lost.
        let _ = block.discard(offset, PAGE_SIZE);
    }
}

impl Virtio for Balloon {
    fn number(&self) -> u16 {
        5
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![128; 3]
    }
    fn features(&self) -> u64 {
        self.offered
    }
    fn config(&self) -> Vec<u8> {
        let state = self.state.lock();
        [state.wanted.to_le_bytes(), state.given.to_le_bytes()].concat()
    }
    fn write_config(&self, offset: usize, bytes: &[u8]) {
        let Some(at) = offset.checked_sub(4) else { return };
        let mut state = self.state.lock();
        let mut given = state.given.to_le_bytes();
        let Some(to) = given.get_mut(at..at + bytes.len()) else { return };
        to.copy_from_slice(bytes);
        let given = u32::from_le_bytes(given);
        if std::mem::replace(&mut state.given, given) == given {
            return;
        }
        drop(state);
        self.notices.send(Notice::BalloonChanged { bytes: u64::from(given) * PAGE_SIZE });
    }
    fn connect(&self, link: &Arc<Link>) {
        let _ = self.link.set(link.clone());
    }
    fn notify(&self, queue: usize) {
        let Some(link) = self.link.get() else { return };
        match queue {
            INFLATE | DEFLATE => self.pages(link, queue),
            _ => self.take_stats(link),
        }
    }
    fn reset(&self) {
        let mut state = self.state.lock();
        state.request = None;
        state.stats = [None; STAT_NAMES.len()];
    }
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        match name {
            "guest-stats" => Some(self.stats()),
            "guest-stats-polling-interval" => Some(self.state.lock().interval.into()),
            _ => None,
        }
    }
    fn dynamic_properties(&self) -> &'static [(&'static str, &'static str)] {
        &[("guest-stats", "guest statistics"), ("guest-stats-polling-interval", "int")]
    }
    fn set_dynamic_property(&self, name: &str, value: &Value) -> Option<Result<()>> {
        match name {
            "guest-stats-polling-interval" => Some(self.set_interval(value)),
            "guest-stats" => Some(Err(fail!("Insufficient permission to perform this operation"))),
            _ => None,
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
