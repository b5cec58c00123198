//! What is on the bus: who is connected or waits to be, and the phase that is asked for.

use crate::storage::scsi::Lun;
use std::collections::VecDeque;
use std::sync::Arc;

/// What MSG, C/D and I/O say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    DataOut,
    DataIn,
    Command,
    Status,
    /// No target asks for the reserved ones.
    Reserved(u8),
    MessageOut,
    MessageIn,
}

impl Phase {
    pub fn of(bits: u32) -> Phase {
        match bits & 7 {
            0 => Phase::DataOut,
            1 => Phase::DataIn,
            2 => Phase::Command,
            3 => Phase::Status,
            6 => Phase::MessageOut,
            7 => Phase::MessageIn,
            other => Phase::Reserved(other as u8),
        }
    }

    pub fn bits(self) -> u8 {
        match self {
            Phase::DataOut => 0,
            Phase::DataIn => 1,
            Phase::Command => 2,
            Phase::Status => 3,
            Phase::Reserved(bits) => bits,
            Phase::MessageOut => 6,
            Phase::MessageIn => 7,
        }
    }
}

/// What the initiator sees.
pub enum Line {
    Phase(Phase),
    /// The target asks for nothing yet.
    Later,
    /// Nobody answered the selection; the processor has been stopped.
    Nobody,
}

/// A command of one unit, connected or not.
pub struct Task {
    pub serial: u64,
    pub target: u8,
    pub lun: u8,
    pub tag: Option<u8>,
    pub may_disconnect: bool,
    /// Connected by the target.
    pub reselected: bool,
    /// Data have gone over the bus.
    pub moved: bool,
    pub unit: Option<Arc<Lun>>,
    pub cdb: [u8; 32],
    pub work: Work,
}

pub enum Work {
    /// Expects a command.
    New,
    /// At the disk.
    Busy,
    In {
        data: block::Lent,
        at: usize,
        /// Offset and length of what is still to be read.
        left: Option<(u64, u64)>,
    },
    Out {
        data: Vec<u8>,
        want: usize,
        then: Then,
    },
    Status(u8),
}

/// What the bytes from the host are for.
pub enum Then {
    /// Offset and length of the rest of a write, this piece included.
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Parameters,
}

/// What follows the messages of a target.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Afterwards {
    #[default]
    GoOn,
    Disconnect,
    Done,
}

#[derive(Default)]
pub struct Side {
    pub connected: Option<Task>,
    pub disconnected: Vec<Task>,
    /// A selection that nobody answers.
    pub calling: bool,
    pub phase: Option<Phase>,
    /// The last phase there was.
    pub latched: u8,
    pub messages: VecDeque<u8>,
    pub afterwards: Afterwards,
    pub attention: bool,
    pub serial: u64,
}

impl Side {
    /// A free bus; completions for the old one find nothing.
    pub fn fresh(old: &Side) -> Side {
        Side { serial: old.serial, ..Side::default() }
    }

    pub fn is_connected(&self) -> bool {
        self.connected.is_some()
    }

    pub fn phase_bits(&self) -> u8 {
        self.phase.map_or(self.latched, Phase::bits)
    }

    /// SBCL: REQ, ACK, BSY, SEL, ATN, MSG, C/D, I/O.
    pub fn lines(&self) -> u8 {
        if !self.is_connected() {
            return 0;
        }
        let request = if self.phase.is_some() { 0x80 } else { 0 };
        request | 0x20 | u8::from(self.attention) << 3 | self.phase_bits()
    }

    pub fn set_attention(&mut self, on: bool) {
        self.attention = on && self.is_connected();
    }

    /// Has the connected target ask for what comes next.
    pub fn settle(&mut self) {
        let Some(task) = &self.connected else { return self.phase = None };
        self.phase = if self.attention {
            Some(Phase::MessageOut)
        } else if !self.messages.is_empty() {
            Some(Phase::MessageIn)
        } else {
            match task.work {
                Work::New => Some(Phase::Command),
                Work::Busy => None,
                Work::In { .. } => Some(Phase::DataIn),
                Work::Out { .. } => Some(Phase::DataOut),
                Work::Status(_) => Some(Phase::Status),
            }
        };
        if let Some(phase) = self.phase {
            self.latched = phase.bits();
        }
    }

    pub fn task(&mut self, serial: u64) -> Option<&mut Task> {
        self.connected.iter_mut().chain(&mut self.disconnected).find(|task| task.serial == serial)
    }
}
