//! One channel of a parallel ATA host: taskfile registers of two drives, PIO, and the bus
//! master (SFF-8038i, "Programming Interface for Bus Master IDE Controller" 1.0).

mod busmaster;

use super::IdeBus;
use super::ata::{ABORTED, Action, BUSY, DRQ, Drive, ERR, READY, SEEK, Taskfile, UNCORRECTABLE};
use super::cdrom::{READ_ERROR, Reply, Sense};
use base::Mutex;
use block::{Lent, Request};
use busmaster::Job;
use device::IrqLine;
use memory::Dma;
use std::io;
use std::sync::{Arc, Weak};

const CONTROL_NO_INTERRUPT: u8 = 2;
const CONTROL_RESET: u8 = 4;
const CONTROL_HOB: u8 = 0x80;
/// Interrupt reason of packet commands: command packet, direction to the host.
const REASON_COMMAND: u8 = 1;
const REASON_TO_HOST: u8 = 2;
const PACKET_BYTES: usize = 12;
/// Bytes that PIO keeps at a time.
const PIO_CHUNK: u64 = 64 << 10;

const BM_INTERRUPT: u8 = 4;

/// One channel.
pub struct Channel {
    me: Weak<Channel>,
    bus: Arc<IdeBus>,
    irq: IrqLine,
    dma: Dma,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tasks: [Taskfile; 2],
    selected: usize,
    control: u8,
    interrupt: bool,
    work: Work,
    /// Changes whenever work in flight becomes void.
    life: u64,
    bm_command: u8,
    bm_status: u8,
    bm_table: u32,
}

/// What the selected drive is doing.
#[derive(Default)]
enum Work {
    #[default]
    Idle,
    /// Waiting for the disk.
    Busy,
    In(PioIn),
    Out(PioOut),
    /// Waiting for the bus master to be started.
    Dma(Job),
    /// The bus master runs.
    Moving,
}

/// Bytes on their way to the host.
struct PioIn {
    data: Vec<u8>,
    at: usize,
    /// End of the present data block.
    end: usize,
    block: usize,
    /// What is still to be read from the disk.
    rest: Option<(u64, u64)>,
    packet: bool,
}

/// Bytes on their way from the host.
struct PioOut {
    data: Vec<u8>,
    /// Bytes of this chunk, and of one data block.
    goal: usize,
    block: usize,
    /// Where they go: a disk offset, all bytes left including this chunk, forced; else a packet.
    disk: Option<(u64, u64, bool)>,
    packet_dma: bool,
}

impl State {
    fn task(&mut self) -> &mut Taskfile {
        &mut self.tasks[self.selected]
    }

    fn set_status(&mut self, status: u8) {
        self.task().status = status;
    }

    fn finish(&mut self) {
        self.work = Work::Idle;
        self.set_status(READY | SEEK);
        self.interrupt = true;
        self.bm_status |= BM_INTERRUPT;
    }

    fn fail(&mut self, error: u8) {
        self.finish();
        self.task().error = error;
        self.set_status(READY | SEEK | ERR);
    }

    fn fail_packet(&mut self, sense: Sense) {
        self.fail(sense.key << 4 | if sense.key == 5 { ABORTED } else { 0 });
        self.task().count = REASON_COMMAND | REASON_TO_HOST;
        self.set_status(READY | ERR);
    }

    fn finish_packet(&mut self) {
        self.finish();
        self.task().count = REASON_COMMAND | REASON_TO_HOST;
        self.set_status(READY | SEEK);
    }

    /// Offers the next data block to the host.
    fn offer_block(&mut self) {
        let Work::In(pio) = &mut self.work else { return };
        pio.end = (pio.at + pio.block).min(pio.data.len());
        let (bytes, packet) = (pio.end - pio.at, pio.packet);
        if packet {
            let task = self.task();
            (task.mid, task.high) = (bytes as u8, (bytes >> 8) as u8);
            task.count = REASON_TO_HOST;
        }
        self.set_status(READY | SEEK | DRQ);
        self.interrupt = true;
        self.bm_status |= BM_INTERRUPT;
    }
}

impl Channel {
    pub fn new(bus: Arc<IdeBus>, irq: IrqLine, dma: Dma) -> Arc<Self> {
        Arc::new_cyclic(|me| Channel { me: me.clone(), bus, irq, dma, state: Mutex::default() })
    }

    pub fn bus(&self) -> &Arc<IdeBus> {
        &self.bus
    }

    pub fn reset(&self) {
        let mut state = self.state.lock();
        *state = State { life: state.life + 1, ..State::default() };
        self.show_signatures(&mut state);
        self.drive_irq(&state);
    }

    fn show_signatures(&self, state: &mut State) {
        for unit in 0..2 {
            let drive = self.bus.drive(unit);
            let task = &mut state.tasks[unit];
            match drive {
                Some(drive) => {
                    task.signature(drive.is_packet());
                    task.status = if drive.is_packet() { 0 } else { READY | SEEK };
                }
                None => {
                    task.signature(false);
                    (task.mid, task.high, task.status) = (0xff, 0xff, 0);
                }
            }
        }
    }

    fn drive_irq(&self, state: &State) {
        self.irq.set(state.interrupt && state.control & CONTROL_NO_INTERRUPT == 0);
    }

    // ---- registers ----

    /// The command block registers 1 to 7 (0 is [`Channel::read_data`]).
    pub fn read(&self, register: u64) -> u8 {
        let mut state = self.state.lock();
        let selected = state.selected;
        let absent = self.bus.drive(selected).is_none();
        if absent && (selected == 1 || self.bus.drive(1).is_none()) {
            return 0;
        }
        let task = &state.tasks[selected];
        let hob = state.control & CONTROL_HOB != 0;
        let of = |now: u8, index: usize| if hob { task.hob[index] } else { now };
        let value = match register {
            1 => of(task.error, 0),
            2 => of(task.count, 1),
            3 => of(task.low, 2),
            4 => of(task.mid, 3),
            5 => of(task.high, 4),
            6 => task.device | 0xa0,
            _ if absent => 0,
            _ => task.status,
        };
        if register == 7 {
            state.interrupt = false;
            self.drive_irq(&state);
        }
        value
    }

    /// The status without its effect on the interrupt.
    pub fn alternate_status(&self) -> u8 {
        let state = self.state.lock();
        if self.bus.drive(state.selected).is_some() { state.tasks[state.selected].status } else { 0 }
    }

    pub fn write(&self, register: u64, value: u8) {
        let mut state = self.state.lock();
        if register == 7 {
            self.command(&mut state, value);
            self.drive_irq(&state);
            return;
        }
        if state.task().status & BUSY != 0 {
            return;
        }
        state.control &= !CONTROL_HOB;
        for task in &mut state.tasks {
            let mut push = |now: &mut u8, index: usize| {
                task.hob[index] = *now;
                *now = value;
            };
            match register {
                1 => push(&mut task.features, 0),
                2 => push(&mut task.count, 1),
                3 => push(&mut task.low, 2),
                4 => push(&mut task.mid, 3),
                5 => push(&mut task.high, 4),
                _ => task.device = value,
            }
        }
        if register == 6 {
            state.selected = usize::from(value >> 4 & 1);
        }
    }

    /// The device control register.
    pub fn control(&self, value: u8) {
        let mut state = self.state.lock();
        let old = std::mem::replace(&mut state.control, value);
        if value & CONTROL_RESET != 0 && old & CONTROL_RESET == 0 {
            state.life += 1;
            state.work = Work::Idle;
            state.interrupt = false;
            for task in &mut state.tasks {
                (task.status, task.error) = (BUSY | SEEK, 1);
            }
        } else if value & CONTROL_RESET == 0 && old & CONTROL_RESET != 0 {
            state.selected = 0;
            (0..2).filter_map(|unit| self.bus.drive(unit)).for_each(|drive| drive.reset(false));
            self.show_signatures(&mut state);
        }
        self.drive_irq(&state);
    }

    // ---- commands ----

    fn command(&self, state: &mut State, command: u8) {
        let Some(drive) = self.bus.drive(state.selected) else { return };
        let busy = state.task().status & (BUSY | DRQ) != 0;
        if busy && !(command == 0x08 && drive.is_packet()) {
            return;
        }
        state.interrupt = false;
        state.task().error = 0;
        let mut task = *state.task();
        let action = drive.start(&mut task, command);
        *state.task() = task;
        self.carry_out(state, &drive, action);
    }

    fn carry_out(&self, state: &mut State, drive: &Arc<Drive>, action: Action) {
        match action {
            Action::Done => state.finish(),
            Action::Fail(error) => state.fail(error),
            Action::Answer(data) => {
                let block = data.len();
                state.work = Work::In(PioIn { data, at: 0, end: 0, block, rest: None, packet: false });
                state.offer_block();
            }
            Action::Read { offset, len, block, dma: false } => {
                self.fetch(state, drive, (offset, len), (block, false));
            }
            Action::Write { offset, len, block, dma: false, fua } => {
                self.take(state, (offset, len, fua), block);
                state.set_status(READY | SEEK | DRQ);
            }
            Action::Read { offset, len, .. } => {
                self.dma_job(
                    state,
                    drive,
                    Job::Disk { offset, len, write: false, fua: false, packet: false },
                );
            }
            Action::Write { offset, len, fua, .. } => {
                self.dma_job(state, drive, Job::Disk { offset, len, write: true, fua, packet: false });
            }
            Action::Trim { len } => self.dma_job(state, drive, Job::Trim { len }),
            Action::Disk(request) => {
                state.work = Work::Busy;
                state.set_status(BUSY | SEEK);
                self.submit(state.life, drive, request, |_, state, _, result| match result {
                    Ok(_) => state.finish(),
                    Err(_) => state.fail(ABORTED),
                });
            }
            Action::Packet { dma } => {
                state.work = Work::Out(PioOut {
                    data: Vec::new(),
                    goal: PACKET_BYTES,
                    block: PACKET_BYTES,
                    disk: None,
                    packet_dma: dma,
                });
                state.set_status(READY | SEEK | DRQ);
            }
            Action::Diagnose => {
                state.selected = 0;
                self.show_signatures(state);
                state.interrupt = true;
            }
            Action::DeviceReset => {
                state.life += 1;
                state.work = Work::Idle;
                let task = state.task();
                task.signature(true);
                task.status = 0;
            }
        }
    }

    /// Submits a request; its end changes the state if it still belongs to this life.
    fn submit(
        &self,
        life: u64,
        drive: &Arc<Drive>,
        request: Request,
        then: impl FnOnce(&Channel, &mut State, &Arc<Drive>, io::Result<Lent>) + Send + 'static,
    ) {
        let (me, drive) = (self.me.clone(), drive.clone());
        let backend = drive.backend.clone();
        let done = move |result| {
            let Some(channel) = me.upgrade() else { return };
            let mut state = channel.state.lock();
            if state.life == life {
                then(&channel, &mut state, &drive, result);
                channel.drive_irq(&state);
            }
        };
        backend.submit(request, Box::new(done));
    }

    // ---- PIO ----

    /// Reads the next chunk for the host.
    fn fetch(&self, state: &mut State, drive: &Arc<Drive>, rest: (u64, u64), (block, packet): (usize, bool)) {
        state.work = Work::Busy;
        state.set_status(BUSY | SEEK);
        let (offset, left) = rest;
        let len = left.min(PIO_CHUNK.next_multiple_of(block.max(1) as u64));
        let request = Request::Read { offset, len: len as usize };
        self.submit(state.life, drive, request, move |_, state, drive, result| match result {
            Ok(data) => {
                let rest = (left > len).then_some((offset + len, left - len));
                state.work = Work::In(PioIn { data: data.into(), at: 0, end: 0, block, rest, packet });
                state.offer_block();
            }
            Err(_) if packet => {
                drive.cdrom.iter().for_each(|cdrom| cdrom.set_sense(READ_ERROR));
                state.fail_packet(READ_ERROR);
            }
            Err(_) => state.fail(UNCORRECTABLE),
        });
    }

    /// Makes room for the next chunk from the host.
    fn take(&self, state: &mut State, (offset, left, fua): (u64, u64, bool), block: usize) {
        let goal = left.min(PIO_CHUNK.next_multiple_of(block as u64)) as usize;
        let data = Vec::with_capacity(goal);
        let disk = Some((offset, left, fua));
        state.work = Work::Out(PioOut { data, goal, block, disk, packet_dma: false });
    }

    /// The data register, 16 or 32 bits wide.
    pub fn read_data(&self, size: u8) -> u32 {
        let mut state = self.state.lock();
        let Work::In(pio) = &mut state.work else { return 0 };
        let mut bytes = [0; 4];
        let take = (pio.end - pio.at).min(size.into());
        bytes[..take].copy_from_slice(&pio.data[pio.at..pio.at + take]);
        pio.at += take;
        if pio.at == pio.end {
            self.block_read(&mut state);
            self.drive_irq(&state);
        }
        u32::from_le_bytes(bytes)
    }

    fn block_read(&self, state: &mut State) {
        let Work::In(pio) = &mut state.work else { return };
        if pio.at < pio.data.len() {
            return state.offer_block();
        }
        let (rest, block, packet) = (pio.rest, pio.block, pio.packet);
        match rest {
            Some(rest) => match self.bus.drive(state.selected) {
                Some(drive) => self.fetch(state, &drive, rest, (block, packet)),
                None => state.fail(ABORTED),
            },
            None if packet => state.finish_packet(),
            None => {
                state.work = Work::Idle;
                state.set_status(READY | SEEK);
            }
        }
    }

    pub fn write_data(&self, size: u8, value: u32) {
        let mut state = self.state.lock();
        let Work::Out(pio) = &mut state.work else { return };
        let take = (pio.goal - pio.data.len()).min(size.into());
        pio.data.extend_from_slice(&value.to_le_bytes()[..take]);
        if pio.data.len() == pio.goal {
            self.chunk_written(&mut state);
            self.drive_irq(&state);
        } else if pio.data.len().is_multiple_of(pio.block) {
            state.interrupt = true;
            self.drive_irq(&state);
        }
    }

    fn chunk_written(&self, state: &mut State) {
        let Work::Out(pio) = std::mem::take(&mut state.work) else { return };
        let Some(drive) = self.bus.drive(state.selected) else { return state.fail(ABORTED) };
        let Some((offset, left, fua)) = pio.disk else {
            return self.packet(state, &drive, &pio.data, pio.packet_dma);
        };
        state.work = Work::Busy;
        state.set_status(BUSY | SEEK);
        let (len, block) = (pio.data.len() as u64, pio.block);
        let request = Request::Write { offset, data: pio.data.into(), fua };
        self.submit(state.life, &drive, request, move |channel, state, _, result| match result {
            Ok(_) if left > len => {
                channel.take(state, (offset + len, left - len, fua), block);
                state.set_status(READY | SEEK | DRQ);
                state.interrupt = true;
            }
            Ok(_) => state.finish(),
            Err(_) => state.fail(ABORTED),
        });
    }

    // ---- packet commands ----

    fn packet(&self, state: &mut State, drive: &Arc<Drive>, cdb: &[u8], dma: bool) {
        let Some(cdrom) = &drive.cdrom else { return state.fail(ABORTED) };
        let mut block = [0; 16];
        block[..cdb.len()].copy_from_slice(cdb);
        let task = *state.task();
        // Bytes in one data block as the host limits them; an odd limit only fits the last.
        let limit = match u16::from_le_bytes([task.mid, task.high]) {
            0 | 0xffff => 0xfffe,
            limit => usize::from(limit & !1).max(2),
        };
        match cdrom.execute(&block) {
            Reply::Done => state.finish_packet(),
            Reply::Check(sense) => state.fail_packet(sense),
            Reply::Data(data) if dma => self.dma_job(state, drive, Job::Answer { data, packet: true }),
            Reply::Data(data) => {
                state.work = Work::In(PioIn { data, at: 0, end: 0, block: limit, rest: None, packet: true });
                state.offer_block();
            }
            Reply::Read { offset, len } if dma => {
                self.dma_job(state, drive, Job::Disk { offset, len, write: false, fua: false, packet: true });
            }
            Reply::Read { offset, len } => self.fetch(state, drive, (offset, len), (limit, true)),
        }
    }
}
