//! virtio-blk (virtio 1.2 §5.2).

use super::pci::{Generation, Shape, VirtioPci};
use super::queue::{Broken, Chain};
use super::{Link, Virtio};
use crate::storage::{BLOCK, BOOT, Conf, ERRORS, GEOMETRY, Pending, Runs, claim, iothread};
use base::{Mutex, Result, bail, fail};
use block::{Backend, FrontEnd, IoThread, Lent, Request, buffers};
use device::{Device, Model, Property, PropertyKind, Props, Wiring};
use serde_json::Value;
use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

const PROPERTIES: &[Property] = &[
    Property::unset("serial", PropertyKind::Str, "Serial number, up to 20 characters"),
    Property::new("config-wce", PropertyKind::Bool, "on", "The guest may switch the write cache"),
    Property::new("num-queues", PropertyKind::U16, "1", "Number of request queues"),
    Property::new("queue-size", PropertyKind::U16, "256", "Descriptors in each queue"),
    Property::new("seg-max-adjust", PropertyKind::Bool, "on", "Segments a request follow the queue size"),
    Property::new("discard", PropertyKind::Bool, "on", "Offer discard"),
    Property::new("write-zeroes", PropertyKind::Bool, "on", "Offer write zeroes"),
    Property::new("max-discard-sectors", PropertyKind::U32, "4194303", "Longest discard"),
    Property::new("max-write-zeroes-sectors", PropertyKind::U32, "4194303", "Longest write zeroes"),
    Property::unset("iothread", PropertyKind::Link("iothread"), "Thread that runs the requests"),
    Property::new("vectors", PropertyKind::U32, "4294967295", "MSI-X vectors"),
];

three_models!(
    "virtio-blk-pci",
    "virtio-blk",
    "Virtio block device",
    [BLOCK, ERRORS, BOOT, GEOMETRY, PROPERTIES],
    create
);

const F_SEG_MAX: u64 = 1 << 2;
const F_GEOMETRY: u64 = 1 << 4;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const CONFIG_BYTES: usize = 60;
const CONFIG_WRITEBACK: usize = 32;
const SECTOR: u64 = 512;
/// Sectors of the longest request.
const MAX_SECTORS: u32 = (i32::MAX as u32) >> 9;
const HEADER: u64 = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// A long request moves in pieces of this many bytes, so that a guest cannot make us hold
/// more than pieces of what it names.
const PIECE: u64 = 2 << 20;
/// While more than this many bytes are in flight no further buffer is taken.
const IN_FLIGHT: usize = 128 << 20;

pub struct Blk {
    me: Weak<Blk>,
    backend: Backend,
    conf: Conf,
    id: String,
    offered: u64,
    /// The write cache as configured, before the guest switched it.
    first_write_cache: bool,
    /// Held so that the object stays.
    _thread: Option<Arc<IoThread>>,
    queues: u16,
    queue_size: u16,
    seg_max: u32,
    max_discard: u32,
    max_zeroes: u32,
    link: OnceLock<Arc<Link>>,
    pending: Pending,
    bytes: AtomicUsize,
    /// A queue was left unfinished because of [`IN_FLIGHT`] or a pause.
    waiting: AtomicBool,
    paused: Mutex<bool>,
}

fn create(
    model: &'static Model,
    generation: Generation,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let conf = Conf::new(props, model.name)?;
    let (queues, queue_size) = (props.u64("num-queues") as u16, props.u64("queue-size") as u16);
    let queues = if queues == u16::MAX { 1 } else { queues };
    if queues == 0 {
        bail!("num-queues property must be larger than 0");
    }
    if queues > 1024 {
        bail!("num-queues property must be at most 1024");
    }
    if queue_size <= 2 {
        bail!("invalid queue-size property ({queue_size}), must be > 2");
    }
    if !queue_size.is_power_of_two() || queue_size > 1024 {
        bail!("invalid queue-size property ({queue_size}), must be a power of 2 (max 1024)");
    }
    let (max_discard, max_zeroes) =
        (props.u64("max-discard-sectors") as u32, props.u64("max-write-zeroes-sectors") as u32);
    for (name, offered, value) in [
        ("max-discard-sectors", "discard", max_discard),
        ("max-write-zeroes-sectors", "write-zeroes", max_zeroes),
    ] {
        if props.bool(offered) && !(1..=MAX_SECTORS).contains(&value) {
            bail!("invalid {name} property ({value}), must be between 1 and {MAX_SECTORS}");
        }
    }
    let thread = iothread(props, wiring)?;
    let Some(backend) = claim(props, wiring, "virtio-blk-device", Runs::MAIN)? else {
        bail!("drive property not set")
    };
    if let Some(thread) = &thread {
        backend.set_thread(thread);
    }
    let device = Arc::new_cyclic(|me| Blk {
        me: me.clone(),
        offered: offered(props, &backend, queues),
        first_write_cache: backend.write_cache(),
        _thread: thread,
        id: format!("{}/virtio-backend", wiring.qom_path),
        backend,
        conf,
        queues,
        queue_size,
        seg_max: if props.bool("seg-max-adjust") { u32::from(queue_size) - 2 } else { 126 },
        max_discard,
        max_zeroes,
        link: OnceLock::new(),
        pending: Pending::default(),
        bytes: AtomicUsize::new(0),
        waiting: AtomicBool::new(false),
        paused: Mutex::new(false),
    });
    let vectors = match props.u64("vectors") as u32 {
        u32::MAX => queues + 1,
        vectors => vectors.min(2048) as u16,
    };
    let shape = Shape { model, generation, class: 0x01_0000, legacy_id: 0x1001, vectors };
    let attached = if device.backend.is_inserted() {
        device.backend.attach(device.clone())
    } else {
        Err(fail!("Device needs media, but drive is empty"))
    };
    let made = attached.and_then(|()| VirtioPci::create(shape, device.clone(), props, wiring));
    if made.is_err() {
        device.backend.detach();
    }
    made
}

fn offered(props: &Props, backend: &Backend, queues: u16) -> u64 {
    let mut features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY;
    if backend.write_cache() || props.bool("config-wce") {
        features |= F_FLUSH;
    }
    for (name, bit) in
        [("config-wce", F_CONFIG_WCE), ("discard", F_DISCARD), ("write-zeroes", F_WRITE_ZEROES)]
    {
        if props.bool(name) {
            features |= bit;
        }
    }
    if backend.is_read_only() {
        features = (features | F_RO) & !(F_DISCARD | F_WRITE_ZEROES);
    }
    if queues > 1 { features | F_MQ } else { features }
}

/// A request that moves data, piece by piece.
struct Transfer {
    chain: Chain,
    /// Byte offset on the disk and length of the whole.
    start: u64,
    len: u64,
    /// Bytes moved so far.
    done: u64,
    write: bool,
}

impl Blk {
    fn link(&self) -> &Arc<Link> {
        self.link.get().expect("connected when created")
    }

    fn process(&self, queue: usize) {
        loop {
            if *self.paused.lock() || self.bytes.load(Ordering::Acquire) > IN_FLIGHT {
                self.waiting.store(true, Ordering::Release);
                // The last completion may have come before the flag was seen.
                if *self.paused.lock() || self.bytes.load(Ordering::Acquire) > IN_FLIGHT {
                    return;
                }
            }
            let Some(chain) = self.link().pop(queue) else { return };
            self.begin(chain);
        }
    }

    /// Parses one request and starts it.
    fn begin(&self, chain: Chain) {
        let dma = self.link().dma();
        let mut header = [0; HEADER as usize];
        if chain.read(dma, 0, &mut header).is_none() || chain.writable_len() == 0 {
            return self.link().fail(Broken("virtio-blk missing headers"));
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let kind = word(0);
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        match kind {
            T_IN | T_OUT => self.begin_transfer(chain, sector, kind == T_OUT),
            T_FLUSH => self.submit_plain(chain, Request::Flush),
            T_GET_ID => self.get_id(chain),
            T_DISCARD | T_WRITE_ZEROES => self.begin_range(chain, kind),
            _ => self.finish(&chain, S_UNSUPP, 0),
        }
    }

    /// Byte offset of a sector range that lies on the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let block = u64::from(self.conf.logical);
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        (start.is_multiple_of(block) && len.is_multiple_of(block) && end <= self.backend.size())
            .then_some(start)
    }

    fn begin_transfer(&self, chain: Chain, sector: u64, write: bool) {
        let len = if write { chain.readable_len() - HEADER } else { chain.writable_len() - 1 };
        let writable = !write || !self.backend.is_read_only();
        let Some(start) = self.range(sector, len).filter(|_| writable) else {
            return self.finish(&chain, S_IOERR, 0);
        };
        if len == 0 {
            return self.finish(&chain, S_OK, 0);
        }
        self.next_piece(Transfer { chain, start, len, done: 0, write });
    }

    fn next_piece(&self, transfer: Transfer) {
        let len = (transfer.len - transfer.done).min(PIECE) as usize;
        let offset = transfer.start + transfer.done;
        let request = if transfer.write {
            let mut data = buffers::take(len);
            if transfer.chain.read(self.link().dma(), HEADER + transfer.done, &mut data).is_none() {
                return self.finish(&transfer.chain, S_IOERR, 0);
            }
            Request::Write { offset, data, fua: false }
        } else {
            Request::Read { offset, len }
        };
        self.bytes.fetch_add(len, Ordering::AcqRel);
        let (me, in_flight) = (self.me.clone(), self.pending.enter());
        let done = move |result| {
            let _in_flight = in_flight;
            if let Some(blk) = me.upgrade() {
                blk.piece_done(transfer, len, result);
            }
        };
        self.backend.submit(request, Box::new(done));
    }

    fn piece_done(&self, mut transfer: Transfer, len: usize, result: io::Result<Lent>) {
        self.bytes.fetch_sub(len, Ordering::AcqRel);
        let link = self.link();
        if !link.is_current(&transfer.chain) {
            return self.go_on();
        }
        let stored = result.ok().and_then(|data| {
            if transfer.write { Some(()) } else { transfer.chain.write(link.dma(), transfer.done, &data) }
        });
        if stored.is_none() {
            self.finish(&transfer.chain, S_IOERR, 0);
            return self.go_on();
        }
        transfer.done += len as u64;
        if transfer.done < transfer.len {
            return self.next_piece(transfer);
        }
        let written = if transfer.write { 0 } else { transfer.len };
        self.finish(&transfer.chain, S_OK, written);
        self.go_on();
    }

    /// Takes up queues that were left because too much was in flight.
    fn go_on(&self) {
        if self.waiting.load(Ordering::Acquire)
            && self.bytes.load(Ordering::Acquire) <= IN_FLIGHT
            && !*self.paused.lock()
            && self.waiting.swap(false, Ordering::AcqRel)
        {
            (0..usize::from(self.queues)).for_each(|queue| self.process(queue));
        }
    }

    fn submit_plain(&self, chain: Chain, request: Request) {
        let (me, in_flight) = (self.me.clone(), self.pending.enter());
        let done = move |result: io::Result<Lent>| {
            let _in_flight = in_flight;
            if let Some(blk) = me.upgrade()
                && blk.link().is_current(&chain)
            {
                blk.finish(&chain, if result.is_ok() { S_OK } else { S_IOERR }, 0);
            }
        };
        self.backend.submit(request, Box::new(done));
    }

    fn get_id(&self, chain: Chain) {
        let mut id = [0; 20];
        let serial = self.conf.serial.as_bytes();
        let len = serial.len().min(20);
        id[..len].copy_from_slice(&serial[..len]);
        let room = (chain.writable_len() - 1).min(20) as usize;
        match chain.write(self.link().dma(), 0, &id[..room]) {
            Some(()) => self.finish(&chain, S_OK, room as u64),
            None => self.finish(&chain, S_IOERR, 0),
        }
    }

    /// Discard and write zeroes: one segment each.
    fn begin_range(&self, chain: Chain, kind: u32) {
        let mut segment = [0; 16];
        if chain.readable_len() != HEADER + 16
            || chain.read(self.link().dma(), HEADER, &mut segment).is_none()
        {
            return self.finish(&chain, S_UNSUPP, 0);
        }
        let value = u128::from_le_bytes(segment);
        let (sector, count, flags) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
        let (offered, max, allowed) = match kind {
            T_DISCARD => (F_DISCARD, self.max_discard, 0),
            _ => (F_WRITE_ZEROES, self.max_zeroes, 1),
        };
        if self.offered & offered == 0 || flags & !allowed != 0 {
            return self.finish(&chain, S_UNSUPP, 0);
        }
        let len = u64::from(count) * SECTOR;
        let Some(offset) = self.range(sector, len).filter(|_| count <= max) else {
            return self.finish(&chain, S_IOERR, 0);
        };
        let request = match kind {
            T_DISCARD => Request::Discard { offset, len },
            _ => Request::WriteZeroes { offset, len, unmap: flags & 1 != 0 },
        };
        self.submit_plain(chain, request);
    }

    /// Writes the status byte (the last writable one) and gives the buffer back.
    fn finish(&self, chain: &Chain, status: u8, written: u64) {
        let at = chain.writable_len() - 1;
        if chain.write(self.link().dma(), at, &[status]).is_none() {
            return self.link().fail(Broken("virtio-blk status is not in memory"));
        }
        self.link().push(chain, u32::try_from(written + 1).unwrap_or(u32::MAX));
    }
}

impl Virtio for Blk {
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        self.conf.told(name, &self.backend)
    }
    fn number(&self) -> u16 {
        2
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn config(&self) -> Vec<u8> {
        let (size, conf) = (self.backend.size(), &self.conf);
        let mut geometry = conf.geometry(size);
        // Tracks are whole blocks, unless the disk is.
        if size / u64::from(geometry.heads * geometry.sectors) % u64::from(conf.logical) != 0 {
            geometry.sectors &= !(conf.logical / SECTOR as u32 - 1);
        }
        let blocks = |bytes: u32| (bytes / conf.logical).to_le_bytes();
        let mut config = vec![0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(size / SECTOR).to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(16, &(geometry.cylinders as u16).to_le_bytes());
        put(18, &[geometry.heads as u8, geometry.sectors as u8]);
        put(20, &conf.logical.to_le_bytes());
        put(24, &[(conf.physical / conf.logical).ilog2() as u8]);
        put(26, &blocks(conf.min_io)[..2]);
        put(28, &blocks(conf.opt_io));
        put(CONFIG_WRITEBACK, &[self.backend.write_cache().into()]);
        put(34, &self.queues.to_le_bytes());
        put(36, &self.max_discard.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(conf.discard_granularity.max(512) / 512).to_le_bytes());
        put(48, &self.max_zeroes.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        if let Some(at) = CONFIG_WRITEBACK.checked_sub(offset)
            && let Some(&value) = bytes.get(at)
            && self.offered & F_CONFIG_WCE != 0
        {
            self.backend.set_write_cache(value & 1 != 0);
        }
    }

    fn connect(&self, link: &Arc<Link>) {
        let _ = self.link.set(link.clone());
    }

    fn start(&self, features: u64) {
        // Without the switch the driver's use of flush decides (virtio 1.2 §5.2.5.1).
        if features & F_CONFIG_WCE == 0 {
            self.backend.set_write_cache(features & F_FLUSH != 0);
        }
    }

    fn notify(&self, queue: usize) {
        self.process(queue);
    }

    fn reset(&self) {
        self.pending.wait(std::slice::from_ref(&self.backend));
        self.backend.set_write_cache(self.first_write_cache);
    }

    fn pause(&self) {
        *self.paused.lock() = true;
        self.pending.wait(std::slice::from_ref(&self.backend));
    }

    fn resume(&self) {
        *self.paused.lock() = false;
        self.go_on();
    }

    fn unplug(&self) {
        self.pending.wait(std::slice::from_ref(&self.backend));
        if let Some(graph) = self.backend.graph() {
            self.backend.set_thread(graph.main_thread());
        }
        self.backend.detach();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FrontEnd for Blk {
    fn resized(&self) {
        if let Some(link) = self.link.get() {
            link.config_changed();
        }
    }
    fn qdev_id(&self) -> String {
        self.id.clone()
    }
    fn share_rw(&self) -> bool {
        self.conf.share_rw
    }
}
