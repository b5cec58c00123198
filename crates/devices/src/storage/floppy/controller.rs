//! The floppy disk controller (Intel 82078 data sheet): registers and commands. Commands that
//! move data are in `transfer`.

use super::drive::{Drive, FloppyBus, UNITS};
use super::transfer::{Job, Kind};
use crate::pc::dma::IsaDma;
use crate::storage::Pending;
use base::Mutex;
use base::clock::{Clock, Timer};
use device::IrqLine;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

const DOR_ENABLED: u8 = 1 << 2;
const DSR_RESET: u8 = 1 << 7;
const MSR_READY: u8 = 0x80;
const MSR_TO_HOST: u8 = 0x40;
const MSR_NON_DMA: u8 = 0x20;
const MSR_BUSY: u8 = 0x10;

const ST0_ABNORMAL: u8 = 0x40;
const ST0_INVALID: u8 = 0x80;
const ST0_POLLED: u8 = 0xc0;
const ST0_SEEK_END: u8 = 0x20;
const ST0_EQUIPMENT: u8 = 0x10;
/// No address mark; no data; write protected; end of cylinder; data error.
pub const ST1_MARK: u8 = 0x01;
pub const ST1_PROTECTED: u8 = 0x02;
pub const ST1_NO_DATA: u8 = 0x04;
pub const ST1_DATA_ERROR: u8 = 0x20;
pub const ST1_END: u8 = 0x80;

const SPECIFY_NON_DMA: u8 = 1;
const CONFIG_NO_POLL: u8 = 0x10;
const FIFO_OFF: u8 = 0x20;
const VERSION: u8 = 0x90;
const PART: u8 = 0x41;
/// Interrupts that wait to be sensed.
const MAX_INTERRUPTS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Command,
    Execution,
    Result,
}

pub struct Fdc {
    me: Weak<Fdc>,
    pub bus: Arc<FloppyBus>,
    irq: IrqLine,
    pub(super) dma: Arc<IsaDma>,
    pub(super) channel: usize,
    /// Looks again whether the DMA channel has been set up.
    pub(super) again: Timer,
    pub(super) pending: Pending,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    dor: u8,
    tdr: u8,
    pub rate: u8,
    pub phase: Phase,
    /// The bytes of the command so far: never more than it takes.
    command: Vec<u8>,
    results: VecDeque<u8>,
    irq: bool,
    /// ST0 and cylinder for SENSE INTERRUPT STATUS.
    interrupts: VecDeque<(u8, u8)>,
    specify: [u8; 2],
    config: u8,
    precompensation: u8,
    perpendicular: u8,
    locked: bool,
    last_sector: u8,
    pub head: u8,
    pub job: Option<Job>,
    /// Counts resets: what an earlier life started is not heard any more.
    pub life: u64,
}

impl State {
    fn new() -> Self {
        State {
            dor: DOR_ENABLED | 8,
            tdr: 0,
            rate: 2,
            phase: Phase::Command,
            command: Vec::new(),
            results: VecDeque::new(),
            irq: false,
            interrupts: VecDeque::new(),
            specify: [0; 2],
            config: FIFO_OFF,
            precompensation: 0,
            perpendicular: 0,
            locked: false,
            last_sector: 0,
            head: 0,
            job: None,
            life: 0,
        }
    }

    pub fn non_dma(&self) -> bool {
        self.specify[1] & SPECIFY_NON_DMA != 0
    }

    fn main_status(&self) -> u8 {
        if self.dor & DOR_ENABLED == 0 {
            return 0;
        }
        match (self.phase, &self.job) {
            (Phase::Command, _) if self.command.is_empty() => MSR_READY,
            (Phase::Command, _) => MSR_READY | MSR_BUSY,
            (Phase::Result, _) => MSR_READY | MSR_TO_HOST | MSR_BUSY,
            (Phase::Execution, Some(job)) if job.pio => {
                let ready = if job.wants_host() { MSR_READY } else { 0 };
                let way = if job.kind.is_from_disk() { MSR_TO_HOST } else { 0 };
                MSR_BUSY | MSR_NON_DMA | ready | way
            }
            (Phase::Execution, _) => MSR_BUSY,
        }
    }
}

/// How many bytes follow a command byte.
fn parameters(command: u8) -> Option<usize> {
    Some(match command {
        0x08 | 0x0e | 0x10 | 0x18 | 0x14 | 0x94 | 0x2e => 0,
        0x04 | 0x07 | 0x12 | 0x17 | 0x33 => 1,
        0x03 | 0x0f | 0x8f | 0xcf => 2,
        0x13 => 3,
        0x4e => 16,
        _ if command & 0xbf == 0x0a => 1,
        _ if command & 0xbf == 0x0d => 5,
        _ if Kind::of(command).is_some() => 8,
        _ => return None,
    })
}

impl Fdc {
    pub fn new(bus: Arc<FloppyBus>, irq: IrqLine, dma: (Arc<IsaDma>, usize), clock: &Clock) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Fdc>| {
            let fdc = me.clone();
            let again = clock.timer(move |_| {
                if let Some(fdc) = fdc.upgrade() {
                    fdc.go_on();
                }
            });
            Fdc {
                me: me.clone(),
                bus,
                irq,
                dma: dma.0,
                channel: dma.1,
                again,
                pending: Pending::default(),
                state: Mutex::new(State::new()),
            }
        })
    }

    pub(super) fn me(&self) -> Weak<Fdc> {
        self.me.clone()
    }

    /// Driven under the lock so that changes arrive in order.
    pub(super) fn set_irq(&self, state: &mut State, level: bool) {
        state.irq = level;
        self.irq.set(level);
    }

    /// Waits for the requests in flight.
    pub fn wait_idle(&self) {
        let drives = (0..UNITS).filter_map(|unit| self.bus.drive(unit));
        self.pending.wait(&drives.map(|drive| drive.backend.clone()).collect::<Vec<_>>());
    }

    /// Power-on.
    pub fn power_on(&self) {
        let mut state = self.state.lock();
        let life = state.life + 1;
        *state = State { life, ..State::new() };
        self.again.cancel();
        self.set_irq(&mut state, false);
        for unit in 0..UNITS {
            if let Some(drive) = self.bus.drive(unit) {
                drive.cylinder.store(0, Ordering::Release);
            }
        }
    }

    /// A reset by DOR or DSR; what LOCK locked stays.
    fn soft_reset(&self, state: &mut State) {
        state.life += 1;
        state.job = None;
        self.again.cancel();
        state.phase = Phase::Command;
        state.command.clear();
        state.results.clear();
        if !state.locked {
            (state.config, state.precompensation) = (FIFO_OFF, 0);
        }
        state.perpendicular &= 0x3c;
        state.interrupts.clear();
        self.set_irq(state, false);
    }

    fn out_of_reset(&self, state: &mut State) {
        if state.config & CONFIG_NO_POLL == 0 {
            state.interrupts = (0..4).map(|unit| (ST0_POLLED | unit, self.cylinder(unit))).collect();
        }
        self.set_irq(state, true);
    }

    fn cylinder(&self, unit: u8) -> u8 {
        self.bus.drive(unit.into()).map_or(0, |drive| drive.cylinder.load(Ordering::Acquire))
    }

    pub fn read(&self, port: u64) -> u8 {
        let state = &mut *self.state.lock();
        let selected = state.dor & 3;
        match port {
            0 => {
                let second = if self.bus.drive(1).is_none() { 0x40 } else { 0 };
                u8::from(state.irq) << 7 | second | (state.head & 1) << 3
            }
            1 => 0xc0 | (state.dor & 1) << 5 | state.dor >> 4 & 3,
            2 => state.dor,
            3 => state.tdr,
            4 => state.main_status(),
            5 => self.read_data(state),
            7 => {
                let changed = self.bus.drive(selected.into()).is_none_or(|drive| drive.is_changed());
                u8::from(changed) << 7
            }
            _ => 0xff,
        }
    }

    pub fn write(&self, port: u64, value: u8) {
        let state = &mut *self.state.lock();
        match port {
            2 => {
                let before = std::mem::replace(&mut state.dor, value);
                match (before & DOR_ENABLED != 0, value & DOR_ENABLED != 0) {
                    (true, false) => self.soft_reset(state),
                    (false, true) => self.out_of_reset(state),
                    _ => {}
                }
            }
            3 => state.tdr = value & 3,
            4 => {
                state.rate = value & 3;
                if value & DSR_RESET != 0 && state.dor & DOR_ENABLED != 0 {
                    self.soft_reset(state);
                    self.out_of_reset(state);
                }
            }
            5 if state.dor & DOR_ENABLED != 0 => self.write_data(state, value),
            7 => state.rate = value & 3,
            _ => {}
        }
    }

    fn read_data(&self, state: &mut State) -> u8 {
        match state.phase {
            Phase::Result => {
                if state.irq {
                    self.set_irq(state, false);
                }
                let value = state.results.pop_front().unwrap_or(0);
                if state.results.is_empty() {
                    state.phase = Phase::Command;
                }
                value
            }
            Phase::Execution => self.give_byte(state),
            Phase::Command => 0,
        }
    }

    fn write_data(&self, state: &mut State, value: u8) {
        match state.phase {
            Phase::Result => {}
            Phase::Execution => self.take_byte(state, value),
            Phase::Command => {
                state.command.push(value);
                match parameters(state.command[0]) {
                    None => {
                        state.command.clear();
                        self.answer(state, &[ST0_INVALID]);
                    }
                    Some(more) if state.command.len() > more => {
                        let command = std::mem::take(&mut state.command);
                        self.execute(state, &command);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// Results without an interrupt.
    fn answer(&self, state: &mut State, results: &[u8]) {
        state.results = results.iter().copied().collect();
        state.phase = if results.is_empty() { Phase::Command } else { Phase::Result };
    }

    /// The seven result bytes of a command that moves data, with an interrupt.
    pub(super) fn conclude(&self, state: &mut State, status: [u8; 3], unit: usize, place: [u8; 3]) {
        state.job = None;
        let st0 = status[0] | state.head << 2 | unit as u8;
        self.answer(state, &[st0, status[1], status[2], place[0], place[1], place[2], 2]);
        self.set_irq(state, true);
    }

    /// Ends a command that moves data before it began.
    pub(super) fn refuse(&self, state: &mut State, st1: u8, unit: usize, place: [u8; 3]) {
        self.conclude(state, [ST0_ABNORMAL, st1, 0], unit, place);
    }

    fn execute(&self, state: &mut State, command: &[u8]) {
        let unit = command.get(1).map_or(0, |byte| byte & 3);
        let parameter = |at: usize| command.get(at).copied().unwrap_or(0);
        if matches!(command[0] & 0xbf, 0x0a | 0x0d) || Kind::of(command[0]).is_some() {
            state.head = parameter(1) >> 2 & 1;
        }
        match command[0] {
            0x03 => state.specify = [parameter(1), parameter(2)],
            0x04 => {
                let status = self.drive_status(state, parameter(1));
                self.answer(state, &[status]);
            }
            0x07 => self.seek(state, unit, 0, true),
            0x0f => {
                state.head = parameter(1) >> 2 & 1;
                self.seek(state, unit, parameter(2), false);
            }
            0x8f => self.seek(state, unit, self.cylinder(unit).saturating_sub(parameter(2)), false),
            0xcf => self.seek(state, unit, self.cylinder(unit).saturating_add(parameter(2)), false),
            0x08 => self.sense_interrupt(state),
            0x0e => {
                let dump = self.registers(state);
                self.answer(state, &dump);
            }
            0x10 => self.answer(state, &[VERSION]),
            0x18 => self.answer(state, &[PART]),
            0x12 if parameter(1) & 0x80 != 0 => state.perpendicular = parameter(1) & 0x3f,
            0x12 | 0x33 => {}
            0x13 => (state.config, state.precompensation) = (parameter(2), parameter(3)),
            0x14 | 0x94 => {
                state.locked = command[0] & 0x80 != 0;
                self.answer(state, &[u8::from(state.locked) << 4]);
            }
            0x17 => self.answer(state, &[parameter(1)]),
            0x2e => self.save(state),
            0x4e => self.restore(state, &command[1..]),
            op if op & 0xbf == 0x0a => self.read_id(state, unit.into()),
            op if op & 0xbf == 0x0d => self.start_format(state, command),
            op => {
                if let Some(kind) = Kind::of(op) {
                    state.last_sector = parameter(6);
                    self.start(state, kind, command);
                }
            }
        }
    }

    fn drive_status(&self, state: &mut State, select: u8) -> u8 {
        state.head = select >> 2 & 1;
        let drive: Option<Arc<Drive>> = self.bus.drive(usize::from(select & 3));
        let protected = drive.as_ref().is_some_and(|d| d.backend.is_inserted() && d.backend.is_read_only());
        let at_zero = drive.is_some_and(|d| d.cylinder.load(Ordering::Acquire) == 0);
        // Ready and two-sided are always shown.
        0x28 | u8::from(protected) << 6 | u8::from(at_zero) << 4 | select & 7
    }

    fn seek(&self, state: &mut State, unit: u8, cylinder: u8, recalibrate: bool) {
        let drive = self.bus.drive(unit.into());
        let found = drive.is_some();
        if let Some(drive) = drive {
            drive.step_to(cylinder);
        }
        let head = if recalibrate { 0 } else { state.head << 2 };
        // A recalibration never finds track 0 of a drive that is not there.
        let lost = if recalibrate && !found { ST0_ABNORMAL | ST0_EQUIPMENT } else { 0 };
        while state.interrupts.len() >= MAX_INTERRUPTS {
            state.interrupts.pop_front();
        }
        state.interrupts.push_back((ST0_SEEK_END | lost | head | unit, cylinder));
        self.set_irq(state, true);
    }

    fn sense_interrupt(&self, state: &mut State) {
        self.set_irq(state, false);
        let Some((st0, cylinder)) = state.interrupts.pop_front() else {
            return self.answer(state, &[ST0_INVALID]);
        };
        self.answer(state, &[st0, cylinder]);
        let more = state.interrupts.front().is_some_and(|(st0, _)| st0 & ST0_POLLED != ST0_POLLED);
        if more {
            self.set_irq(state, true);
        }
    }

    fn registers(&self, state: &State) -> [u8; 10] {
        let modes = u8::from(state.locked) << 7 | state.perpendicular << 2 & 0x7c;
        let [srt, hlt] = state.specify;
        let at = |unit| self.cylinder(unit);
        [at(0), at(1), 0, 0, srt, hlt, state.last_sector, modes, state.config, state.precompensation]
    }

    fn save(&self, state: &mut State) {
        let registers = self.registers(state);
        let mut saved = [0; 16];
        saved[2..4].copy_from_slice(&registers[..2]);
        saved[6..12].copy_from_slice(&registers[4..]);
        self.answer(state, &saved);
    }

    fn restore(&self, state: &mut State, saved: &[u8]) {
        for (unit, &cylinder) in (0..UNITS).zip(&saved[2..4]) {
            if let Some(drive) = self.bus.drive(unit) {
                drive.cylinder.store(cylinder, Ordering::Release);
            }
        }
        state.specify = [saved[6], saved[7]];
        state.last_sector = saved[8];
        state.locked = saved[9] & 0x80 != 0;
        state.perpendicular = saved[9] >> 2 & 0x1f;
        (state.config, state.precompensation) = (saved[10], saved[11]);
        self.answer(state, &[]);
    }

    fn read_id(&self, state: &mut State, unit: usize) {
        let drive = self.bus.drive(unit);
        let format = drive.as_ref().and_then(|drive| drive.format());
        let (Some(drive), Some(format)) = (drive, format) else {
            return self.refuse(state, ST1_MARK, unit, [0; 3]);
        };
        let cylinder = drive.cylinder.load(Ordering::Acquire);
        let place = [cylinder, state.head, 1];
        if format.rate != state.rate || format.offset(cylinder, state.head, 1).is_none() {
            return self.refuse(state, ST1_MARK, unit, place);
        }
        self.conclude(state, [0; 3], unit, place);
    }
}
