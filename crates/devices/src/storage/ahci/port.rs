//! One AHCI port: command slots, FISes, and the drive behind it.

use super::{SLOTS, Shared};
use crate::sg::{self, Span};
use crate::storage::IdeBus;
use crate::storage::ata::{
    ABORTED, Action, BUSY, DRQ, Drive, ERR, READY, SECTOR, SEEK, Taskfile, UNCORRECTABLE, trim_ranges,
};
use crate::storage::cdrom::{READ_ERROR, Reply, Sense};
use crate::storage::mover::{Mover, Stopped};
use base::Mutex;
use block::{Lent, Request};
use memory::Dma;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

const CMD_START: u32 = 1;
const CMD_CLEAR_BUSY: u32 = 1 << 3;
const CMD_FIS_RECEIVE: u32 = 1 << 4;
const CMD_FIS_RUNNING: u32 = 1 << 14;
const CMD_RUNNING: u32 = 1 << 15;

/// Bits of PxCMD that software writes.
const CMD_WRITABLE: u32 = 0x0f00_0000 | CMD_START | 6 | CMD_FIS_RECEIVE;

const IS_D2H: u32 = 1;
const IS_PIO: u32 = 2;
const IS_OVERFLOW: u32 = 1 << 24;
const IS_TASK_ERROR: u32 = 1 << 30;

const FIS_PIO: u64 = 0x20;
const FIS_D2H: u64 = 0x40;
/// Device detected, generation 1, active.
const SSTS_PRESENT: u32 = 0x113;
const SERR_EXCHANGED: u32 = 1 << 26;
const NO_DRIVE: u8 = 0x7f;

pub struct Port {
    me: Weak<Port>,
    shared: Weak<Shared>,
    bus: Arc<IdeBus>,
    dma: Dma,
    /// PxIS and PxIE.
    interrupts: AtomicU32,
    enabled: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    list: u64,
    fis: u64,
    command: u32,
    task: Taskfile,
    signature: u32,
    control: u32,
    error: u32,
    active: u32,
    issued: u32,
    /// The slot that the drive works on.
    running: Option<Slot>,
    /// A command failed: nothing is issued before software restarts the port.
    halted: bool,
    soft_reset: bool,
    life: u64,
}

/// A command in execution.
#[derive(Clone)]
struct Slot {
    number: u32,
    header: u64,
    spans: Arc<Vec<Span>>,
    pio: bool,
    packet: bool,
}

impl Port {
    pub fn new(shared: Weak<Shared>, bus: Arc<IdeBus>, dma: Dma) -> Arc<Self> {
        Arc::new_cyclic(|me| Port {
            me: me.clone(),
            shared,
            bus,
            dma,
            interrupts: AtomicU32::new(0),
            enabled: AtomicU32::new(0),
            state: Mutex::default(),
        })
    }

    pub fn bus(&self) -> &Arc<IdeBus> {
        &self.bus
    }

    pub fn wants_interrupt(&self) -> bool {
        self.interrupts.load(Ordering::Acquire) & self.enabled.load(Ordering::Acquire) != 0
    }

    fn post(&self, bits: u32) {
        self.interrupts.fetch_or(bits, Ordering::AcqRel);
        self.update_interrupt();
    }

    fn update_interrupt(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.update_interrupt();
        }
    }

    /// Back to power-on; the caller brings the interrupt in line.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        *state = State { life: state.life + 1, ..State::default() };
        self.interrupts.store(0, Ordering::Release);
        self.enabled.store(0, Ordering::Release);
        self.reset_drive(&mut state, true);
    }

    /// What the drive shows after a reset of the link or by software.
    fn reset_drive(&self, state: &mut State, hard: bool) {
        state.life += 1;
        (state.running, state.halted) = (None, false);
        state.task = Taskfile::default();
        match self.bus.drive(0) {
            Some(drive) => {
                drive.reset(hard);
                state.task.signature(drive.is_packet());
                state.task.status = READY | SEEK;
                state.signature = if drive.is_packet() { 0xeb14_0101 } else { 0x0000_0101 };
                state.error |= SERR_EXCHANGED;
                self.receive(state, FIS_D2H, 0x34);
            }
            None => {
                state.task.status = NO_DRIVE;
                state.signature = u32::MAX;
            }
        }
    }

    pub fn read(&self, register: u64) -> u32 {
        let state = self.state.lock();
        match register {
            0x00 => state.list as u32,
            0x04 => (state.list >> 32) as u32,
            0x08 => state.fis as u32,
            0x0c => (state.fis >> 32) as u32,
            0x10 => self.interrupts.load(Ordering::Acquire),
            0x14 => self.enabled.load(Ordering::Acquire),
            0x18 => state.command | state.running.as_ref().map_or(0, |slot| slot.number << 8),
            0x20 => u32::from(state.task.error) << 8 | u32::from(state.task.status),
            0x24 => state.signature,
            0x28 if self.bus.drive(0).is_some() && state.control & 0xf == 0 => SSTS_PRESENT,
            0x2c => state.control,
            0x30 => state.error,
            0x34 => state.active,
            0x38 => state.issued,
            _ => 0,
        }
    }

    pub fn write(&self, register: u64, value: u32) {
        let set_low = |old: u64, mask: u32| old >> 32 << 32 | u64::from(value & mask);
        let set_high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let mut state = self.state.lock();
        match register {
            0x00 => state.list = set_low(state.list, !0x3ff),
            0x04 => state.list = set_high(state.list),
            0x08 => state.fis = set_low(state.fis, !0xff),
            0x0c => state.fis = set_high(state.fis),
            0x10 => {
                self.interrupts.fetch_and(!value, Ordering::AcqRel);
                drop(state);
                self.update_interrupt();
            }
            0x14 => {
                self.enabled.store(value & 0xfdc0_00ff, Ordering::Release);
                drop(state);
                self.update_interrupt();
            }
            0x18 => self.write_command(&mut state, value),
            0x2c => {
                let old = std::mem::replace(&mut state.control, value);
                if old & 0xf == 1 && value & 0xf == 0 {
                    self.reset_drive(&mut state, true);
                }
            }
            0x30 => state.error &= !value,
            0x34 => state.active |= value,
            0x38 if state.command & CMD_START != 0 => {
                state.issued |= value;
                self.issue(&mut state);
            }
            _ => {}
        }
    }

    fn write_command(&self, state: &mut State, value: u32) {
        let old = state.command;
        let mut new = value & CMD_WRITABLE;
        if value & CMD_CLEAR_BUSY != 0 {
            state.task.status &= !(BUSY | DRQ);
        }
        if new & CMD_START != 0 {
            new |= CMD_RUNNING;
        } else if old & CMD_START != 0 {
            // Stopping forgets what was issued.
            state.life += 1;
            (state.issued, state.active, state.running, state.halted) = (0, 0, None, false);
            state.task.status &= !(BUSY | DRQ);
        }
        if new & CMD_FIS_RECEIVE != 0 {
            new |= CMD_FIS_RUNNING;
        }
        state.command = new;
        if new & CMD_FIS_RECEIVE != 0 && old & CMD_FIS_RECEIVE == 0 && self.bus.drive(0).is_some() {
            self.receive(state, FIS_D2H, 0x34);
        }
        self.issue(state);
    }

    // ---- commands ----

    /// Takes up the next issued slot when the drive is free.
    fn issue(&self, state: &mut State) {
        while state.running.is_none()
            && !state.halted
            && state.command & CMD_START != 0
            && let slot = state.issued.trailing_zeros()
            && slot < SLOTS
        {
            let Some(drive) = self.bus.drive(0) else { return };
            self.start_slot(state, &drive, slot);
        }
    }

    fn start_slot(&self, state: &mut State, drive: &Arc<Drive>, number: u32) {
        let header = state.list + u64::from(number) * 32;
        let (mut head, mut fis) = ([0; 16], [0; 80]);
        let table = self.dma.read(header, &mut head).ok().and_then(|()| {
            let table = u64::from_le_bytes([
                head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
            ]);
            self.dma.read(table & !0x7f, &mut fis).ok().map(|()| table & !0x7f)
        });
        let entries = u16::from_le_bytes([head[2], head[3]]);
        let spans = table.and_then(|table| self.spans(table, entries));
        let mut slot = Slot { number, header, spans: Arc::default(), pio: false, packet: false };
        let Some(spans) = spans else {
            state.running = Some(slot);
            return self.fail(state, ABORTED, 0);
        };
        slot.spans = Arc::new(spans);
        state.running = Some(slot);
        if fis[0] != 0x27 {
            return self.fail(state, ABORTED, 0);
        }
        if fis[1] & 0x80 == 0 {
            return self.control_fis(state, fis[15] & 4 != 0);
        }
        let mut task = Taskfile {
            features: fis[3],
            low: fis[4],
            mid: fis[5],
            high: fis[6],
            device: fis[7],
            count: fis[12],
            hob: [fis[11], fis[13], fis[8], fis[9], fis[10]],
            ..Taskfile::default()
        };
        let action = drive.start(&mut task, fis[2]);
        task.status = BUSY | READY | SEEK;
        state.task = task;
        self.carry_out(state, drive, action, &fis[0x40..]);
    }

    /// A FIS without command: software reset on and off.
    fn control_fis(&self, state: &mut State, reset: bool) {
        let was = std::mem::replace(&mut state.soft_reset, reset);
        let number = state.running.take().map_or(0, |slot| slot.number);
        state.issued &= !(1 << number);
        if was && !reset {
            let issued = state.issued;
            self.reset_drive(state, false);
            state.issued = issued;
        }
    }

    fn spans(&self, table: u64, entries: u16) -> Option<Vec<Span>> {
        let mut bytes = vec![0; usize::from(entries) * 16];
        self.dma.read(table.checked_add(0x80)?, &mut bytes).ok()?;
        let words = bytes.as_chunks::<16>().0.iter().map(|entry| u128::from_le_bytes(*entry));
        Some(words.map(|w| Span { address: w as u64, len: ((w >> 96) as u32 & 0x3f_ffff) + 1 }).collect())
    }

    fn carry_out(&self, state: &mut State, drive: &Arc<Drive>, action: Action, packet: &[u8]) {
        let pio = matches!(action, Action::Answer(_) | Action::Read { dma: false, .. });
        if let Some(slot) = &mut state.running {
            slot.pio = pio;
        }
        match action {
            Action::Done => self.complete(state, 0),
            Action::Fail(error) => self.fail(state, error, 0),
            Action::Answer(data) => self.answer(state, &data),
            Action::Read { offset, len, .. } => self.transfer(state, drive, (offset, len), None),
            Action::Write { offset, len, fua, .. } => self.transfer(state, drive, (offset, len), Some(fua)),
            Action::Trim { len } => self.trim(state, drive, len),
            Action::Disk(request) => {
                self.submit(state.life, drive, request, |port, state, _, result| match result {
                    Ok(_) => port.complete(state, 0),
                    Err(_) => port.fail(state, ABORTED, 0),
                });
            }
            Action::Packet { .. } => self.packet(state, drive, packet),
            Action::Diagnose | Action::DeviceReset => {
                state.task.signature(drive.is_packet());
                self.complete(state, 0);
            }
        }
    }

    fn packet(&self, state: &mut State, drive: &Arc<Drive>, packet: &[u8]) {
        let Some(cdrom) = &drive.cdrom else { return self.fail(state, ABORTED, 0) };
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&packet[..16]);
        if let Some(slot) = &mut state.running {
            slot.packet = true;
        }
        state.task.count = 3;
        match cdrom.execute(&cdb) {
            Reply::Done => self.complete(state, 0),
            Reply::Check(sense) => self.fail_packet(state, sense),
            Reply::Data(data) => self.answer(state, &data),
            Reply::Read { offset, len } => self.transfer(state, drive, (offset, len), None),
        }
    }

    fn fail_packet(&self, state: &mut State, sense: Sense) {
        self.fail(state, sense.key << 4 | if sense.key == 5 { ABORTED } else { 0 }, 0);
    }

    fn answer(&self, state: &mut State, data: &[u8]) {
        let Some(slot) = state.running.clone() else { return };
        // Less room than data: the host takes what it asked for.
        let len = sg::total(&slot.spans).min(data.len() as u64) as usize;
        match sg::write(&slot.spans, &self.dma, 0, &data[..len]) {
            Some(()) => self.complete(state, len as u32),
            None => self.fail(state, ABORTED, IS_OVERFLOW),
        }
    }

    fn transfer(&self, state: &mut State, drive: &Arc<Drive>, range: (u64, u64), write: Option<bool>) {
        let Some(slot) = state.running.clone() else { return };
        let (offset, len) = range;
        if sg::total(&slot.spans) < len {
            return self.fail(state, ABORTED, IS_OVERFLOW);
        }
        let (life, me, wanted, drive) = (state.life, self.me.clone(), self.me.clone(), drive.clone());
        let mover = Mover {
            backend: drive.backend.clone(),
            dma: self.dma.clone(),
            spans: slot.spans.to_vec(),
            offset,
            len,
            write: write.is_some(),
            fua: write == Some(true),
            wanted: Box::new(move || wanted.upgrade().is_some_and(|port| port.state.lock().life == life)),
            finish: Box::new(move |result| {
                let Some(port) = me.upgrade() else { return };
                let mut state = port.state.lock();
                if state.life != life {
                    return;
                }
                match result {
                    Ok(()) => port.complete(&mut state, len as u32),
                    Err(Stopped::Memory) => port.fail(&mut state, ABORTED, IS_OVERFLOW),
                    Err(Stopped::Disk) if slot.packet => {
                        drive.cdrom.iter().for_each(|cdrom| cdrom.set_sense(READ_ERROR));
                        port.fail_packet(&mut state, READ_ERROR);
                    }
                    Err(Stopped::Disk) => port.fail(&mut state, UNCORRECTABLE, 0),
                }
                port.issue(&mut state);
            }),
        };
        mover.run();
    }

    fn submit(
        &self,
        life: u64,
        drive: &Arc<Drive>,
        request: Request,
        then: impl FnOnce(&Port, &mut State, &Arc<Drive>, io::Result<Lent>) + Send + 'static,
    ) {
        let (me, drive) = (self.me.clone(), drive.clone());
        let backend = drive.backend.clone();
        let done = move |result| {
            let Some(port) = me.upgrade() else { return };
            let mut state = port.state.lock();
            if state.life == life {
                then(&port, &mut state, &drive, result);
                port.issue(&mut state);
            }
        };
        backend.submit(request, Box::new(done));
    }

    fn trim(&self, state: &mut State, drive: &Arc<Drive>, len: u64) {
        let Some(slot) = state.running.clone() else { return };
        let mut data = vec![0; len.min(64 * SECTOR) as usize];
        if len > 64 * SECTOR || sg::read(&slot.spans, &self.dma, 0, &mut data).is_none() {
            return self.fail(state, ABORTED, 0);
        }
        let size = drive.backend.size();
        let ranges = trim_ranges(&data);
        if ranges.iter().any(|&(at, len)| at.checked_add(len).is_none_or(|end| end > size)) {
            return self.fail(state, ABORTED, 0);
        }
        self.trim_next(state, drive, ranges, len as u32);
    }

    fn trim_next(&self, state: &mut State, drive: &Arc<Drive>, mut ranges: Vec<(u64, u64)>, moved: u32) {
        let Some((offset, len)) = ranges.pop() else { return self.complete(state, moved) };
        let request = Request::Discard { offset, len };
        self.submit(state.life, drive, request, move |port, state, drive, result| match result {
            Ok(_) => port.trim_next(state, drive, ranges, moved),
            Err(_) => port.fail(state, ABORTED, 0),
        });
    }

    // ---- completion ----

    fn complete(&self, state: &mut State, moved: u32) {
        let Some(slot) = state.running.take() else { return };
        state.task.status = READY | SEEK;
        // A header that has gone only loses its byte count.
        let _ = self.dma.store(slot.header + 4, 4, moved.into());
        let mut bits = IS_D2H;
        if slot.pio {
            self.receive(state, FIS_PIO, 0x5f);
            bits |= IS_PIO;
        }
        self.receive(state, FIS_D2H, 0x34);
        state.issued &= !(1 << slot.number);
        self.post(bits);
    }

    fn fail(&self, state: &mut State, error: u8, bits: u32) {
        state.task.status = READY | SEEK | ERR;
        state.task.error = error;
        state.halted = true;
        if let Some(slot) = state.running.clone() {
            let _ = self.dma.store(slot.header + 4, 4, 0);
        }
        self.receive(state, FIS_D2H, 0x34);
        self.post(IS_TASK_ERROR | IS_D2H | bits);
    }

    /// Puts a FIS with the present taskfile into memory.
    fn receive(&self, state: &State, at: u64, kind: u8) {
        if state.command & CMD_FIS_RECEIVE == 0 {
            return;
        }
        let task = &state.task;
        let mut fis = [0; 20];
        fis[..4].copy_from_slice(&[kind, 0x40, task.status, task.error]);
        fis[4..8].copy_from_slice(&[task.low, task.mid, task.high, task.device]);
        fis[8..11].copy_from_slice(&task.hob[2..]);
        fis[12..14].copy_from_slice(&[task.count, task.hob[1]]);
        if kind == 0x5f {
            fis[1] = 0x60;
            fis[15] = task.status;
        }
        // Without memory behind it the FIS is lost, as on a bus.
        let _ = self.dma.write(state.fis + at, &fis);
    }
}
