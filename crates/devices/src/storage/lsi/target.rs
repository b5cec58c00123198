//! The other end of the bus: targets that ask for phases, exchange messages and carry out
//! commands (SPI-2 chapters 10 and 16, SCSI-2 chapter 6).

use super::chip::{self, Chip, reg};
use super::side::{Afterwards, Line, Phase, Side, Task, Then, Work};
use crate::storage::cdrom::READ_ERROR;
use crate::storage::scsi::{Command, WRITE_ERROR, absent};
use block::{Lent, Request};
use std::collections::VecDeque;
use std::io;

/// Long transfers move in pieces of this many bytes.
const PIECE: u64 = 1 << 20;
const STATUS_GOOD: u8 = 0;
const STATUS_CHECK: u8 = 2;
/// Longest command block, and longest run of messages that a program sends at once.
const MAX_COMMAND: u32 = 16;
const MAX_MESSAGES: u32 = 256;

const MSG_COMPLETE: u8 = 0;
const MSG_EXTENDED: u8 = 1;
const MSG_SAVE_POINTERS: u8 = 2;
const MSG_DISCONNECT: u8 = 4;
const MSG_ABORT: u8 = 6;
const MSG_REJECT: u8 = 7;
const MSG_DEVICE_RESET: u8 = 0x0c;
const MSG_ABORT_TAG: u8 = 0x0d;
const MSG_CLEAR_QUEUE: u8 = 0x0e;
const MSG_SIMPLE_TAG: u8 = 0x20;
const MSG_IDENTIFY: u8 = 0x80;
const EXTENDED_SYNCHRONOUS: u8 = 1;
const EXTENDED_WIDE: u8 = 3;

/// What a request at the disk was for.
enum For {
    Read { left: Option<(u64, u64)> },
    Write { offset: u64, len: u64, fua: bool },
    Requests(VecDeque<Request>),
}

impl Chip {
    // ---- connecting ----

    /// Selects a target. That nobody is there shows when the program asks for a phase.
    pub fn select(&mut self, target: u8, attention: bool) {
        self.side.serial += 1;
        if self.bus.numbers(target).is_empty() {
            return self.side.calling = true;
        }
        self.side.connected = Some(Task {
            serial: self.side.serial,
            target,
            lun: 0,
            tag: None,
            may_disconnect: false,
            reselected: false,
            moved: false,
            unit: None,
            cdb: [0; 32],
            work: Work::New,
        });
        self.side.attention = attention;
        // Messages are taken without attention too: firmware sends them so.
        self.side.phase = Some(Phase::MessageOut);
        self.side.latched = Phase::MessageOut.bits();
    }

    /// A selection that nobody answers times out. True: there was one.
    pub fn give_up_selection(&mut self) -> bool {
        let calling = std::mem::take(&mut self.side.calling);
        if calling {
            self.running = false;
            self.scsi_interrupt(0, chip::SIST1_SELECTION);
        }
        calling
    }

    /// A target whose disk is done connects again. True: there was one.
    pub fn reselect(&mut self) -> bool {
        let ready = self.side.disconnected.iter().position(|task| !matches!(task.work, Work::Busy));
        let Some(at) = ready.filter(|_| !self.side.calling) else { return false };
        let mut task = self.side.disconnected.remove(at);
        task.reselected = true;
        self.set8(reg::SSID, MSG_IDENTIFY | task.target);
        self.side.messages = VecDeque::from([MSG_IDENTIFY | task.lun]);
        if let Some(tag) = task.tag {
            self.side.messages.extend([MSG_SIMPLE_TAG, tag]);
        }
        self.side.afterwards = Afterwards::GoOn;
        self.side.attention = false;
        self.side.connected = Some(task);
        self.side.settle();
        if self.get8(reg::SIEN0) & chip::SIST0_RESELECTED != 0 {
            self.scsi_interrupt(chip::SIST0_RESELECTED, 0);
        }
        true
    }

    /// Frees the bus; gives what was connected.
    fn disconnect(&mut self) -> Option<Task> {
        self.side.messages.clear();
        self.side.afterwards = Afterwards::GoOn;
        (self.side.phase, self.side.attention) = (None, false);
        self.side.connected.take()
    }

    /// The RST line.
    pub fn reset_bus(&mut self) {
        self.side = Side::fresh(&self.side);
        self.bus.luns().iter().for_each(|(_, lun)| lun.reset());
    }

    /// Whether a target has come by itself and waits for the program. One that a former program
    /// selected and left is let go.
    pub fn is_reselected(&mut self) -> bool {
        match &self.side.connected {
            Some(task) if task.reselected => true,
            Some(_) => {
                self.disconnect();
                self.reselect()
            }
            None => self.reselect(),
        }
    }

    // ---- phases ----

    /// The phase that a program sees which tests it, waiting for REQ or not.
    pub fn phase_now(&mut self, wait: bool) -> Line {
        if self.give_up_selection() {
            return Line::Nobody;
        }
        match self.side.phase {
            Some(phase) => Line::Phase(phase),
            None if !wait && !self.side.is_connected() => Line::Phase(Phase::of(self.side.latched.into())),
            None => Line::Later,
        }
    }

    /// The phase for a block move of this one.
    pub fn phase_for(&mut self, wanted: Phase) -> Line {
        // Selected without attention a target may be given a command at once.
        if wanted == Phase::Command && self.side.phase == Some(Phase::MessageOut) && !self.side.attention {
            self.side.settle();
        }
        self.phase_now(true)
    }

    /// The initiator took the last byte of a message.
    pub fn acknowledge(&mut self) {
        if self.side.attention {
            self.side.messages.clear();
            self.side.afterwards = Afterwards::GoOn;
            self.side.settle();
        }
    }

    /// Moves bytes of the present phase to or from memory; gives how many. `None`: not memory.
    pub fn exchange(&mut self, phase: Phase, address: u64, room: u32) -> Option<u32> {
        match phase {
            Phase::DataIn | Phase::Status | Phase::MessageIn => self.give(phase, address, room as usize),
            Phase::DataOut => self.take_data(address, room as usize),
            Phase::Command => {
                let len = room.min(MAX_COMMAND);
                let bytes = self.fetch_bytes(address, len as usize)?;
                self.begin(&bytes);
                Some(room)
            }
            Phase::MessageOut => {
                let bytes = self.fetch_bytes(address, room.min(MAX_MESSAGES) as usize)?;
                // The last byte of a move goes without attention.
                self.side.attention = false;
                self.hear(&bytes);
                Some(room)
            }
            Phase::Reserved(_) => None,
        }
    }

    fn fetch_bytes(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.dma.read(address, &mut bytes).ok()?;
        self.set8(reg::SFBR, bytes[0]);
        Some(bytes)
    }

    /// Bytes from the target.
    fn give(&mut self, phase: Phase, address: u64, room: usize) -> Option<u32> {
        let task = self.side.connected.as_mut()?;
        let len = match (phase, &mut task.work) {
            (Phase::DataIn, Work::In { data, at, .. }) => {
                let len = room.min(data.len() - *at);
                let bytes = &data[*at..*at + len];
                self.dma.write(address, bytes).ok()?;
                let (first, last) = (bytes[0], bytes[len - 1]);
                *at += len;
                task.moved = true;
                self.received(first, last);
                self.data_given();
                len
            }
            (Phase::Status, &mut Work::Status(status)) => {
                self.dma.write(address, &[status]).ok()?;
                self.received(status, status);
                self.side.messages.push_back(MSG_COMPLETE);
                self.side.afterwards = Afterwards::Done;
                self.side.settle();
                1
            }
            (Phase::MessageIn, _) => {
                let len = room.min(self.side.messages.len());
                let bytes: Vec<u8> = self.side.messages.iter().copied().take(len).collect();
                self.dma.write(address, &bytes).ok()?;
                self.side.messages.drain(..len);
                self.received(bytes[0], bytes[len - 1]);
                self.messages_given();
                len
            }
            _ => return None,
        };
        Some(len as u32)
    }

    fn received(&mut self, first: u8, last: u8) {
        self.set8(reg::SFBR, first);
        self.set8(reg::SIDL, last);
    }

    /// After a piece of data: the next one, or the status.
    fn data_given(&mut self) {
        let Some(Task { work: Work::In { data, at, left }, serial, .. }) = &self.side.connected else {
            return;
        };
        if *at < data.len() {
            return;
        }
        let (serial, left) = (*serial, *left);
        let work = match left {
            Some((offset, len)) => self.read_disk(serial, offset, len),
            None => Work::Status(STATUS_GOOD),
        };
        self.set_work(serial, work);
        self.side.settle();
    }

    fn messages_given(&mut self) {
        if self.side.messages.is_empty() {
            match self.side.afterwards {
                Afterwards::GoOn => {}
                Afterwards::Done => {
                    self.disconnect();
                }
                Afterwards::Disconnect => {
                    let task = self.disconnect();
                    self.side.disconnected.extend(task);
                }
            }
        }
        self.side.settle();
    }

    /// Bytes for the target.
    fn take_data(&mut self, address: u64, room: usize) -> Option<u32> {
        let Some(Task { work: Work::Out { data, want, .. }, .. }) = &self.side.connected else { return None };
        let len = room.min(want - data.len());
        let bytes = self.fetch_bytes(address, len)?;
        let task = self.side.connected.as_mut()?;
        task.moved = true;
        if let Work::Out { data, want, .. } = &mut task.work {
            data.extend(bytes);
            if data.len() == *want {
                self.data_taken();
            }
        }
        Some(len as u32)
    }

    fn data_taken(&mut self) {
        let Some(task) = self.side.connected.as_mut() else { return };
        let serial = task.serial;
        let Work::Out { data, then, .. } = std::mem::replace(&mut task.work, Work::Busy) else { return };
        let last = match then {
            Then::Write { offset, len, fua } => {
                let piece = data.len() as u64;
                let rest = For::Write { offset: offset + piece, len: len - piece, fua };
                self.submit(serial, Request::Write { offset, data: data.into(), fua }, rest);
                len == piece
            }
            Then::Parameters => {
                let command = match &task.unit {
                    Some(unit) => unit.taken(&task.cdb, &data),
                    None => Command::Done,
                };
                let work = self.work_for(serial, command);
                self.set_work(serial, work);
                true
            }
        };
        if last {
            self.part();
        }
        self.side.settle();
    }

    // ---- messages ----

    /// Messages from the initiator.
    fn hear(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        self.side.messages.clear();
        while let Some((&message, more)) = rest.split_first() {
            rest = more;
            let Some(task) = self.side.connected.as_mut() else { return };
            match message {
                MSG_IDENTIFY.. => {
                    task.lun = message & 7;
                    task.may_disconnect = message & 0x40 != 0;
                }
                MSG_SIMPLE_TAG..=0x22 => {
                    let Some((&tag, more)) = rest.split_first() else { return self.reject() };
                    (task.tag, rest) = (Some(tag), more);
                }
                MSG_EXTENDED => match rest {
                    [len, body @ ..] if *len > 0 && body.len() >= usize::from(*len) => {
                        let (body, more) = body.split_at((*len).into());
                        rest = more;
                        self.negotiate(body);
                    }
                    _ => return self.reject(),
                },
                MSG_ABORT | MSG_ABORT_TAG | MSG_CLEAR_QUEUE | MSG_DEVICE_RESET => return self.abort(message),
                // No operation, and complaints about messages that were not sent.
                5 | 7..=9 => {}
                _ => return self.reject(),
            }
        }
        self.side.settle();
    }

    fn reject(&mut self) {
        self.side.messages.push_back(MSG_REJECT);
        self.side.settle();
    }

    /// Answers an offer of faster or wider transfers: narrow and asynchronous.
    fn negotiate(&mut self, body: &[u8]) {
        match *body {
            [EXTENDED_SYNCHRONOUS, period, _] => {
                self.side.messages.extend([MSG_EXTENDED, 3, EXTENDED_SYNCHRONOUS, period, 0]);
            }
            [EXTENDED_WIDE, _] => self.side.messages.extend([MSG_EXTENDED, 2, EXTENDED_WIDE, 0]),
            _ => self.side.messages.push_back(MSG_REJECT),
        }
    }

    /// Gives up tasks, and the bus. What the disk does already is done, but nobody hears.
    fn abort(&mut self, message: u8) {
        let Some(task) = self.disconnect() else { return };
        let (target, lun, tag) = (task.target, task.lun, task.tag);
        self.side.disconnected.retain(|other| {
            let same_unit = other.target == target && other.lun == lun;
            match message {
                MSG_DEVICE_RESET => other.target != target,
                MSG_ABORT_TAG => !same_unit || other.tag != tag,
                _ => !same_unit,
            }
        });
        if message == MSG_DEVICE_RESET {
            let units = self.bus.luns().into_iter().filter(|((id, _), _)| *id == target);
            units.for_each(|(_, unit)| unit.reset());
        }
    }

    /// Lets go of the bus while the disk works, if the initiator allows it.
    fn part(&mut self) {
        let Some(task) = &self.side.connected else { return };
        let reselects = self.get8(reg::SCID) & chip::SCID_RESELECT != 0;
        if !matches!(task.work, Work::Busy) || !task.may_disconnect || !reselects {
            return;
        }
        if task.moved {
            self.side.messages.push_back(MSG_SAVE_POINTERS);
        }
        self.side.messages.push_back(MSG_DISCONNECT);
        self.side.afterwards = Afterwards::Disconnect;
    }

    // ---- commands ----

    fn begin(&mut self, bytes: &[u8]) {
        let Some(task) = self.side.connected.as_mut() else { return };
        let (serial, target) = (task.serial, task.target);
        task.cdb = [0; 32];
        task.cdb[..bytes.len()].copy_from_slice(bytes);
        let numbers = self.bus.numbers(target);
        let at = match numbers.first() {
            // Any unit can list them all.
            Some(&first) if bytes[0] == 0xa0 && !numbers.contains(&task.lun.into()) => first,
            _ => task.lun.into(),
        };
        task.unit = self.bus.lun(target, at);
        let command = match &task.unit {
            Some(unit) => unit.start(&task.cdb, &numbers),
            None => absent(task.lun.into(), &task.cdb),
        };
        let work = self.work_for(serial, command);
        self.set_work(serial, work);
        self.part();
        self.side.settle();
    }

    fn set_work(&mut self, serial: u64, work: Work) {
        if let Some(task) = self.side.task(serial) {
            task.work = work;
        }
    }

    fn work_for(&mut self, serial: u64, command: Command) -> Work {
        match command {
            Command::Done => Work::Status(STATUS_GOOD),
            Command::Check(_) => Work::Status(STATUS_CHECK),
            Command::Data(data) if data.is_empty() => Work::Status(STATUS_GOOD),
            Command::Data(data) => Work::In { data: data.into(), at: 0, left: None },
            Command::Read { offset, len } => self.read_disk(serial, offset, len),
            Command::Write { offset, len, fua } => {
                let want = len.min(PIECE) as usize;
                Work::Out { data: Vec::new(), want, then: Then::Write { offset, len, fua } }
            }
            Command::Take { len } => Work::Out { data: Vec::new(), want: len, then: Then::Parameters },
            Command::Disk(requests) => self.next_request(serial, requests.into()),
        }
    }

    fn read_disk(&mut self, serial: u64, offset: u64, len: u64) -> Work {
        let piece = len.min(PIECE);
        let left = (len > piece).then(|| (offset + piece, len - piece));
        self.submit(serial, Request::Read { offset, len: piece as usize }, For::Read { left });
        Work::Busy
    }

    fn next_request(&mut self, serial: u64, mut requests: VecDeque<Request>) -> Work {
        match requests.pop_front() {
            Some(request) => {
                self.submit(serial, request, For::Requests(requests));
                Work::Busy
            }
            None => Work::Status(STATUS_GOOD),
        }
    }

    fn submit(&mut self, serial: u64, request: Request, purpose: For) {
        let Some(unit) = self.side.task(serial).and_then(|task| task.unit.clone()) else { return };
        let (me, in_flight) = (self.me.clone(), self.pending.enter());
        let done = move |result: io::Result<Lent>| {
            let _in_flight = in_flight;
            if let Some(lsi) = me.upgrade() {
                lsi.chip.lock().completed(serial, purpose, result);
            }
        };
        unit.backend.submit(request, Box::new(done));
    }

    /// The disk has done something for a task, which may be gone by now.
    fn completed(&mut self, serial: u64, purpose: For, result: io::Result<Lent>) {
        let Some(task) = self.side.task(serial) else { return };
        let work = match (result, purpose) {
            (Err(_), purpose) => {
                let sense = if matches!(purpose, For::Read { .. }) { READ_ERROR } else { WRITE_ERROR };
                if let Some(unit) = &task.unit {
                    unit.set_sense(sense);
                }
                Work::Status(STATUS_CHECK)
            }
            (Ok(data), For::Read { left }) => Work::In { data, at: 0, left },
            (Ok(_), For::Write { len: 0, .. }) => Work::Status(STATUS_GOOD),
            (Ok(_), For::Write { offset, len, fua }) => {
                let want = len.min(PIECE) as usize;
                Work::Out { data: Vec::new(), want, then: Then::Write { offset, len, fua } }
            }
            (Ok(_), For::Requests(requests)) => self.next_request(serial, requests),
        };
        self.set_work(serial, work);
        self.side.settle();
        self.run();
    }
}
