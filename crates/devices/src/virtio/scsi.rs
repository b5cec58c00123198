//! virtio-scsi (virtio 1.2 §5.6): a SCSI host.

use super::pci::{Generation, Shape, VirtioPci};
use super::queue::{Broken, Chain};
use super::{Link, Virtio};
use crate::sg::Span;
use crate::storage::cdrom::{READ_ERROR, Sense, fixed_sense};
use crate::storage::mover::{Mover, Stopped};
use crate::storage::scsi::{Command, Lun, ScsiBus, ScsiHost, WRITE_ERROR, absent};
use crate::storage::{Pending, Runs, iothread};
use base::{Mutex, Result, bail};
use block::{IoThread, Request};
use device::{Bus, Device, Model, Property, PropertyKind, Props, Wiring};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};

const PROPERTIES: &[Property] = &[
    Property::new("num_queues", PropertyKind::U32, "1", "Number of request queues"),
    Property::new("virtqueue_size", PropertyKind::U32, "256", "Descriptors in each queue"),
    Property::new("max_sectors", PropertyKind::U32, "65535", "Longest transfer in sectors"),
    Property::new("cmd_per_lun", PropertyKind::U32, "128", "Most commands for one unit"),
    Property::new("hotplug", PropertyKind::Bool, "on", "Tell about units that come and go"),
    Property::new("param_change", PropertyKind::Bool, "on", "Tell about sizes that change"),
    Property::unset("iothread", PropertyKind::Link("iothread"), "Thread that runs the requests"),
    Property::new("vectors", PropertyKind::U32, "4294967295", "MSI-X vectors"),
];

three_models!("virtio-scsi-pci", "virtio-scsi", "Virtio SCSI host", [PROPERTIES], create);

const F_HOTPLUG: u64 = 1 << 1;
const F_CHANGE: u64 = 1 << 2;
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const FIRST_REQUEST: usize = 2;
const MAX_TARGET: u8 = 255;
const MAX_LUN: u16 = 16383;
const DEFAULT_CDB: u32 = 32;
const DEFAULT_SENSE: u32 = 96;

const STATUS_GOOD: u8 = 0;
const STATUS_CHECK: u8 = 2;
const R_OK: u8 = 0;
const R_OVERRUN: u8 = 1;
const R_BAD_TARGET: u8 = 3;
const R_FAILURE: u8 = 9;
const TMF_SUCCEEDED: u8 = 10;
const TMF_REJECTED: u8 = 11;
const R_INCORRECT_LUN: u8 = 12;

const EVENT_TRANSPORT_RESET: u32 = 1;
const EVENT_PARAM_CHANGE: u32 = 3;
const EVENT_MISSED: u32 = 1 << 31;
/// Events that wait for buffers.
const MAX_WAITING: usize = 256;

pub struct Scsi {
    me: Weak<Scsi>,
    bus: OnceLock<Arc<ScsiBus>>,
    queues: u16,
    queue_size: u16,
    max_sectors: u32,
    cmd_per_lun: u32,
    offered: u64,
    thread: Option<Arc<IoThread>>,
    link: OnceLock<Arc<Link>>,
    pending: Pending,
    state: Mutex<State>,
}

struct State {
    cdb_size: u32,
    sense_size: u32,
    events: VecDeque<[u8; 16]>,
    missed: bool,
}

impl Default for State {
    fn default() -> Self {
        State { cdb_size: DEFAULT_CDB, sense_size: DEFAULT_SENSE, events: VecDeque::new(), missed: false }
    }
}

fn create(
    model: &'static Model,
    generation: Generation,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let queues = match props.u64("num_queues") as u32 {
        u32::MAX => 1,
        count => count,
    };
    if queues == 0 || queues > 1021 {
        bail!("Invalid number of queues (= {queues}), must be a positive integer less than 1022.");
    }
    let size = props.u64("virtqueue_size");
    if !size.is_power_of_two() || !(4..=1024).contains(&size) {
        bail!("invalid virtqueue_size property (= {size}), must be a power of 2 between 4 and 1024");
    }
    let mut offered = 0;
    for (name, bit) in [("hotplug", F_HOTPLUG), ("param_change", F_CHANGE)] {
        if props.bool(name) {
            offered |= bit;
        }
    }
    let thread = iothread(props, wiring)?;
    let device = Arc::new_cyclic(|me: &Weak<Scsi>| Scsi {
        me: me.clone(),
        bus: OnceLock::new(),
        queues: queues as u16,
        queue_size: size as u16,
        max_sectors: props.u64("max_sectors") as u32,
        cmd_per_lun: props.u64("cmd_per_lun") as u32,
        offered,
        thread,
        link: OnceLock::new(),
        pending: Pending::default(),
        state: Mutex::default(),
    });
    let host: Arc<dyn ScsiHost> = device.clone();
    let name = wiring.bus_name("scsi", 0);
    let _ = device.bus.set(ScsiBus::new(name, (MAX_TARGET, MAX_LUN), Arc::downgrade(&host)));
    let vectors = match props.u64("vectors") as u32 {
        u32::MAX => queues as u16 + 3,
        vectors => vectors.min(2048) as u16,
    };
    let shape = Shape { model, generation, class: 0x01_0000, legacy_id: 0x1004, vectors };
    VirtioPci::create(shape, device, props, wiring)
}

/// A request being executed.
struct Job {
    chain: Chain,
    lun: Arc<Lun>,
    cdb: [u8; 32],
    /// Header bytes before the host's data, response bytes before the guest's.
    header: u64,
    response: u64,
}

impl Job {
    /// Bytes the driver gives and takes.
    fn room(&self) -> (u64, u64) {
        (self.chain.readable_len() - self.header, self.chain.writable_len() - self.response)
    }
}

/// The spans from byte `skip` on.
fn after(spans: &[Span], mut skip: u64) -> Vec<Span> {
    let mut rest = Vec::with_capacity(spans.len());
    for span in spans {
        let cut = skip.min(span.len.into());
        skip -= cut;
        if cut < u64::from(span.len) {
            rest.push(Span { address: span.address.saturating_add(cut), len: span.len - cut as u32 });
        }
    }
    rest
}

/// Target and unit of a LUN field (virtio 1.2 §5.6.6.1).
fn parse_lun(lun: &[u8]) -> Option<(u8, u16)> {
    (lun[0] == 1).then(|| (lun[1], u16::from_be_bytes([lun[2], lun[3]]) & 0x3fff))
}

impl Scsi {
    fn link(&self) -> Option<&Arc<Link>> {
        self.link.get()
    }

    /// Waits for the requests in flight.
    fn wait(&self) {
        let drives: Vec<_> = self.scsi_bus().luns().into_iter().map(|(_, lun)| lun.backend.clone()).collect();
        self.pending.wait(&drives);
    }

    fn scsi_bus(&self) -> &ScsiBus {
        self.bus.get().expect("set when created")
    }

    // ---- requests ----

    fn serve(&self, link: &Arc<Link>, queue: usize) {
        while let Some(chain) = link.pop(queue) {
            self.begin(link, chain);
        }
    }

    fn begin(&self, link: &Arc<Link>, chain: Chain) {
        let (cdb_size, sense_size) = {
            let state = self.state.lock();
            (state.cdb_size, state.sense_size)
        };
        let (header, response) = (19 + u64::from(cdb_size), 12 + u64::from(sense_size));
        let mut fixed = [0; 19];
        let mut cdb = [0; 32];
        let read = chain
            .read(link.dma(), 0, &mut fixed)
            .and_then(|()| chain.read(link.dma(), 19, &mut cdb[..cdb_size.min(32) as usize]));
        if read.is_none() || chain.readable_len() < header || chain.writable_len() < response {
            return link.fail(Broken("virtio-scsi request too short"));
        }
        let (target, number) = match parse_lun(&fixed) {
            Some(at) => at,
            // REPORT LUNS to the well-known unit asks the first target.
            None if fixed[..2] == [0xc1, 1] && cdb[0] == 0xa0 => (0, 0),
            None => return self.respond(link, &chain, R_BAD_TARGET, STATUS_GOOD, None, 0),
        };
        let numbers = self.scsi_bus().numbers(target);
        let lun = match (self.scsi_bus().lun(target, number), cdb[0]) {
            (Some(lun), _) => lun,
            (None, _) if numbers.is_empty() => {
                return self.respond(link, &chain, R_BAD_TARGET, STATUS_GOOD, None, 0);
            }
            (None, 0xa0) => match self.scsi_bus().lun(target, numbers[0]) {
                Some(lun) => lun,
                None => return self.respond(link, &chain, R_BAD_TARGET, STATUS_GOOD, None, 0),
            },
            (None, _) => return self.answer(link, &chain, response, absent(number, &cdb)),
        };
        let command = lun.start(&cdb, &numbers);
        self.carry_out(link, Job { chain, lun, cdb, header, response }, command);
    }

    /// Ends a request whose outcome needs no disk.
    fn answer(&self, link: &Link, chain: &Chain, response: u64, outcome: Command) {
        match outcome {
            Command::Check(sense) => self.respond(link, chain, R_OK, STATUS_CHECK, Some(sense), 0),
            Command::Data(mut data) => {
                data.truncate(usize::try_from(chain.writable_len() - response).unwrap_or(usize::MAX));
                match chain.write(link.dma(), response, &data) {
                    Some(()) => self.respond(link, chain, R_OK, STATUS_GOOD, None, data.len() as u64),
                    None => self.respond(link, chain, R_FAILURE, STATUS_GOOD, None, 0),
                }
            }
            _ => self.respond(link, chain, R_OK, STATUS_GOOD, None, 0),
        }
    }

    fn carry_out(&self, link: &Arc<Link>, job: Job, command: Command) {
        let (given, wanted) = job.room();
        match command {
            Command::Done | Command::Check(_) | Command::Data(_) => {
                self.answer(link, &job.chain, job.response, command);
            }
            Command::Read { len, .. } if wanted < len => {
                self.respond(link, &job.chain, R_OVERRUN, STATUS_GOOD, None, 0);
            }
            Command::Write { len, .. } if given < len => {
                self.respond(link, &job.chain, R_OVERRUN, STATUS_GOOD, None, 0);
            }
            Command::Read { offset, len } => self.transfer(link, job, (offset, len), None),
            Command::Write { offset, len, fua } => self.transfer(link, job, (offset, len), Some(fua)),
            Command::Take { len } if given < len as u64 => {
                self.respond(link, &job.chain, R_OVERRUN, STATUS_GOOD, None, 0);
            }
            Command::Take { len } => {
                let mut data = vec![0; len];
                match job.chain.read(link.dma(), job.header, &mut data) {
                    Some(()) => {
                        let next = job.lun.taken(&job.cdb, &data);
                        // Parameters never ask for parameters.
                        if !matches!(next, Command::Take { .. }) {
                            self.carry_out(link, job, next);
                        }
                    }
                    None => self.respond(link, &job.chain, R_FAILURE, STATUS_GOOD, None, 0),
                }
            }
            Command::Disk(requests) => self.disk(link, job, requests.into()),
        }
    }

    fn transfer(&self, link: &Arc<Link>, job: Job, (offset, len): (u64, u64), write: Option<bool>) {
        let spans = match write {
            Some(_) => after(&job.chain.readable, job.header),
            None => after(&job.chain.writable, job.response),
        };
        let (me, current, life) = (self.me.clone(), link.clone(), job.chain.life);
        let (queue, in_flight) = (job.chain.queue, self.pending.enter());
        let mover = Mover {
            backend: job.lun.backend.clone(),
            dma: link.dma().clone(),
            spans,
            offset,
            len,
            write: write.is_some(),
            fua: write == Some(true),
            wanted: Box::new(move || current.life(queue) == Some(life)),
            finish: Box::new(move |result| {
                let _in_flight = in_flight;
                let Some(scsi) = me.upgrade() else { return };
                let Some(link) = scsi.link().cloned() else { return };
                match result {
                    Ok(()) => {
                        let moved = if write.is_some() { 0 } else { len };
                        scsi.respond(&link, &job.chain, R_OK, STATUS_GOOD, None, moved);
                    }
                    Err(Stopped::Disk) => scsi.failed(&link, &job, write.is_some()),
                    Err(Stopped::Memory) => {
                        scsi.respond(&link, &job.chain, R_FAILURE, STATUS_GOOD, None, 0);
                    }
                }
            }),
        };
        mover.run();
    }

    fn failed(&self, link: &Link, job: &Job, write: bool) {
        let sense = if write { WRITE_ERROR } else { READ_ERROR };
        job.lun.set_sense(sense);
        self.respond(link, &job.chain, R_OK, STATUS_CHECK, Some(sense), 0);
    }

    /// Runs requests one after the other.
    fn disk(&self, link: &Arc<Link>, job: Job, mut requests: VecDeque<Request>) {
        let Some(request) = requests.pop_front() else {
            return self.respond(link, &job.chain, R_OK, STATUS_GOOD, None, 0);
        };
        let (me, in_flight) = (self.me.clone(), self.pending.enter());
        let backend = job.lun.backend.clone();
        let done = move |result: std::io::Result<block::Lent>| {
            let _in_flight = in_flight;
            let Some(scsi) = me.upgrade() else { return };
            let Some(link) = scsi.link().cloned() else { return };
            match result {
                _ if !link.is_current(&job.chain) => {}
                Ok(_) => scsi.disk(&link, job, requests),
                Err(_) => scsi.failed(&link, &job, true),
            }
        };
        backend.submit(request, Box::new(done));
    }

    /// Writes the response and gives the buffer back. `moved`: data bytes for the driver.
    fn respond(
        &self,
        link: &Link,
        chain: &Chain,
        response: u8,
        status: u8,
        sense: Option<Sense>,
        moved: u64,
    ) {
        if !link.is_current(chain) {
            return;
        }
        let size = self.state.lock().sense_size;
        let mut bytes = vec![0; 12 + size as usize];
        if let Some(sense) = sense {
            let data = fixed_sense(sense);
            let len = data.len().min(size as usize);
            bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
            bytes[12..12 + len].copy_from_slice(&data[..len]);
        }
        let room = chain.writable_len().saturating_sub(bytes.len() as u64);
        let residual = u32::try_from(room.saturating_sub(moved)).unwrap_or(u32::MAX);
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        (bytes[10], bytes[11]) = (status, response);
        let len = bytes.len().min(usize::try_from(chain.writable_len()).unwrap_or(usize::MAX));
        if chain.write(link.dma(), 0, &bytes[..len]).is_none() {
            return link.fail(Broken("virtio-scsi response is not in memory"));
        }
        link.push(chain, u32::try_from(len as u64 + moved).unwrap_or(u32::MAX));
    }

    // ---- control and events ----

    fn serve_control(&self, link: &Link) {
        while let Some(chain) = link.pop(CONTROL) {
            let mut request = [0; 24];
            let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX).min(24);
            if len < 16 || chain.read(link.dma(), 0, &mut request[..len]).is_none() {
                return link.fail(Broken("virtio-scsi control request too short"));
            }
            let answer = match request[0] {
                0 => vec![self.task_management(&request)],
                // Asynchronous notifications: none besides the event queue's.
                1 | 2 => vec![0, 0, 0, 0, R_OK],
                _ => vec![R_FAILURE],
            };
            if chain.write(link.dma(), 0, &answer).is_none() {
                return link.fail(Broken("virtio-scsi control response too short"));
            }
            link.push(&chain, answer.len() as u32);
        }
    }

    fn task_management(&self, request: &[u8; 24]) -> u8 {
        let Some((target, number)) = parse_lun(&request[8..16]) else { return R_BAD_TARGET };
        let bus = self.scsi_bus();
        let units: Vec<_> = bus.luns().into_iter().filter(|((t, _), _)| *t == target).collect();
        if units.is_empty() {
            return R_BAD_TARGET;
        }
        let unit = bus.lun(target, number);
        match (request[4], unit) {
            // Resets of a nexus or target concern all its units.
            (4 | 5, _) => {
                units.iter().for_each(|(_, lun)| lun.reset());
                R_OK
            }
            (_, None) => R_INCORRECT_LUN,
            (6, Some(lun)) => {
                lun.reset();
                R_OK
            }
            // Aborts: the tasks run to their end first, then none is left.
            (0 | 1 | 3, Some(_)) => R_OK,
            // Queries: a task that is asked for has ended, or the transport still knows it.
            (7 | 8, Some(lun)) => {
                if lun.backend.in_flight() > 0 {
                    TMF_SUCCEEDED
                } else {
                    R_OK
                }
            }
            _ => TMF_REJECTED,
        }
    }

    fn tell(&self, event: u32, (target, lun): (u8, u16), reason: u32) {
        // Linux takes these bytes as they are for its own number of the unit, so that only units
        // which need it are addressed flat (SAM-5, 4.7.7.3), as REPORT LUNS does.
        let lun = if lun < 256 { lun } else { 0x4000 | lun }.to_be_bytes();
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&event.to_le_bytes());
        bytes[4..8].copy_from_slice(&[1, target, lun[0], lun[1]]);
        bytes[12..].copy_from_slice(&reason.to_le_bytes());
        let mut state = self.state.lock();
        if state.events.len() < MAX_WAITING {
            state.events.push_back(bytes);
        } else {
            state.missed = true;
        }
        self.flush(&mut state);
    }

    fn flush(&self, state: &mut State) {
        let Some(link) = self.link().filter(|link| link.is_live()) else { return };
        while let Some(mut event) = state.events.front().copied() {
            let Some(chain) = link.pop(EVENTS) else { return };
            if std::mem::take(&mut state.missed) {
                let kind = u32::from_le_bytes([event[0], event[1], event[2], event[3]]) | EVENT_MISSED;
                event[..4].copy_from_slice(&kind.to_le_bytes());
            }
            if chain.write(link.dma(), 0, &event).is_none() {
                return link.fail(Broken("virtio-scsi event buffer too short"));
            }
            link.push(&chain, 16);
            state.events.pop_front();
        }
    }
}

impl ScsiHost for Scsi {
    fn runs(&self) -> Runs {
        Runs { thread: self.thread.as_deref().cloned(), ..Runs::MAIN }
    }

    fn plugged(&self, target: u8, lun: u16, present: bool) {
        let live = self.link().is_some_and(|link| link.is_live() && link.has_feature(F_HOTPLUG));
        if live {
            let reason = if present { 1 } else { 2 };
            self.tell(EVENT_TRANSPORT_RESET, (target, lun), reason);
        }
    }

    fn resized(&self, target: u8, lun: u16) {
        let live = self.link().is_some_and(|link| link.is_live() && link.has_feature(F_CHANGE));
        if live {
            // Capacity data has changed.
            self.tell(EVENT_PARAM_CHANGE, (target, lun), 0x2a | 0x09 << 8);
        }
    }
}

impl Virtio for Scsi {
    fn number(&self) -> u16 {
        8
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; usize::from(self.queues) + FIRST_REQUEST]
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn config(&self) -> Vec<u8> {
        let state = self.state.lock();
        let words = [
            u32::from(self.queues),
            u32::from(self.queue_size) - 2,
            self.max_sectors,
            self.cmd_per_lun,
            16,
            state.sense_size,
            state.cdb_size,
        ];
        let mut config: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        config.extend(0u16.to_le_bytes());
        config.extend(u16::from(MAX_TARGET).to_le_bytes());
        config.extend(u32::from(MAX_LUN).to_le_bytes());
        config
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return };
        let value = u32::from_le_bytes(bytes);
        let mut state = self.state.lock();
        match offset {
            20 if value <= 65536 => state.sense_size = value,
            24 if value <= 255 => state.cdb_size = value,
            _ => {}
        }
    }

    fn connect(&self, link: &Arc<Link>) {
        let _ = self.link.set(link.clone());
    }

    fn notify(&self, queue: usize) {
        let Some(link) = self.link() else { return };
        match queue {
            CONTROL => self.serve_control(link),
            EVENTS => self.flush(&mut self.state.lock()),
            _ => self.serve(link, queue),
        }
    }

    fn reset(&self) {
        self.wait();
        *self.state.lock() = State::default();
    }

    fn pause(&self) {
        self.wait();
    }

    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.bus.get().map(|bus| bus.clone() as Arc<dyn Bus>).into_iter().collect()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
