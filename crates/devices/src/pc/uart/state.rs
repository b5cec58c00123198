use chardev::{Params, Parity};
use std::collections::VecDeque;

pub const FIFO: usize = 16;
/// A receive FIFO below its trigger level interrupts after so many character times.
pub const TIMEOUT_CHARS: u64 = 4;

pub mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMIT: u8 = 2;
    pub const LINE: u8 = 4;
    pub const MODEM: u8 = 8;
}

pub mod lsr {
    pub const READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const BREAK: u8 = 0x10;
    pub const THRE: u8 = 0x20;
    pub const TEMT: u8 = 0x40;
    pub const ERRORS: u8 = 0x1e;
}

pub mod mcr {
    pub const LOOPBACK: u8 = 0x10;
    pub const OUT2: u8 = 8;
}

/// CTS, DSR and DCD: a character device is always ready.
const MODEM_READY: u8 = 0xb0;
const DLAB: u8 = 0x80;
/// Baud rate at divisor 1.
const BASE_BAUD: u32 = 115_200;

pub struct State {
    pub transmit: VecDeque<u8>,
    received: VecDeque<u8>,
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scratch: u8,
    /// The transmitter-empty interrupt waits to be seen.
    transmit_interrupt: bool,
    /// The transmitter emptied; its interrupt is due after the pace.
    pace_wanted: bool,
    pub paced: bool,
    timeout_interrupt: bool,
    /// The receive FIFO was touched: its time-out starts anew.
    touched: bool,
    /// The character device was told there is no room.
    starved: bool,
    /// Level of the interrupt line.
    pub irq: bool,
}

impl State {
    pub fn new() -> Self {
        State {
            transmit: VecDeque::with_capacity(FIFO),
            received: VecDeque::with_capacity(FIFO),
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: mcr::OUT2,
            lsr: lsr::THRE | lsr::TEMT,
            msr: MODEM_READY,
            scratch: 0,
            transmit_interrupt: false,
            pace_wanted: false,
            paced: false,
            timeout_interrupt: false,
            touched: false,
            starved: false,
            irq: false,
        }
    }

    pub fn reset(&mut self) {
        let (irq, starved) = (self.irq, self.starved);
        *self = State { irq, starved, ..State::new() };
    }

    fn fifo(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fifo() { [1, 4, 8, 14][usize::from(self.fcr >> 6)] } else { 1 }
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOPBACK != 0
    }

    pub fn params(&self) -> Params {
        let speed = BASE_BAUD / u32::from(self.divisor.max(1));
        let parity = match (self.lcr & 8 != 0, self.lcr & 0x10 != 0) {
            (false, _) => Parity::None,
            (true, false) => Parity::Odd,
            (true, true) => Parity::Even,
        };
        Params {
            speed,
            parity,
            data_bits: (self.lcr & 3) + 5,
            stop_bits: if self.lcr & 4 != 0 { 2 } else { 1 },
        }
    }

    pub fn sends_break(&self) -> bool {
        self.lcr & 0x40 != 0
    }

    /// Nanoseconds one character takes on the line.
    pub fn char_nanos(&self) -> u64 {
        let params = self.params();
        let parity = u64::from(params.parity != Parity::None);
        let bits = 1 + u64::from(params.data_bits) + parity + u64::from(params.stop_bits);
        bits * 1_000_000_000 * u64::from(self.divisor.max(1)) / u64::from(BASE_BAUD)
    }

    /// How many bytes may come.
    pub fn room(&mut self) -> usize {
        let room = self.capacity().saturating_sub(self.received.len());
        self.starved |= room == 0;
        room
    }

    /// Whether the character device waits to hear that there is room again.
    pub fn take_resume(&mut self) -> bool {
        let resume = self.starved && self.received.len() < self.capacity();
        self.starved &= !resume;
        resume
    }

    pub fn receive(&mut self, byte: u8) {
        if self.received.len() >= self.capacity() {
            self.lsr |= lsr::OVERRUN;
            if self.fifo() {
                return;
            }
            self.received.clear();
        }
        self.received.push_back(byte);
        self.lsr |= lsr::READY;
        self.touched = true;
    }

    pub fn receive_break(&mut self) {
        self.receive(0);
        self.lsr |= lsr::BREAK;
    }

    pub fn receive_timeout(&mut self) {
        self.timeout_interrupt = !self.received.is_empty();
    }

    pub fn timeout_changed(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    pub fn timeout_wanted(&self) -> bool {
        self.fifo()
            && self.ier & ier::RECEIVED != 0
            && !self.received.is_empty()
            && self.received.len() < self.trigger()
    }

    /// The transmit FIFO was handed over.
    pub fn transmitted(&mut self) {
        if self.lsr & lsr::THRE == 0 {
            self.lsr |= lsr::THRE | lsr::TEMT;
            self.pace_wanted = true;
        }
    }

    /// Whether a timer is to call [`State::transmitter_ready`]. Without the interrupt
    /// enabled no timer is needed.
    pub fn wants_pace(&mut self) -> bool {
        if !std::mem::take(&mut self.pace_wanted) {
            return false;
        }
        if self.ier & ier::TRANSMIT == 0 {
            self.transmit_interrupt = true;
            return false;
        }
        !self.paced
    }

    pub fn transmitter_ready(&mut self) {
        self.paced = false;
        self.transmit_interrupt |= self.lsr & lsr::THRE != 0;
    }

    /// The interrupt of highest priority as in IIR bits 3:0.
    pub fn interrupt_id(&self) -> Option<u8> {
        let on = |bit| self.ier & bit != 0;
        if on(ier::LINE) && self.lsr & lsr::ERRORS != 0 {
            Some(6)
        } else if on(ier::RECEIVED) && self.timeout_interrupt {
            Some(0xc)
        } else if on(ier::RECEIVED) && self.received.len() >= self.trigger() {
            Some(4)
        } else if on(ier::TRANSMIT) && self.transmit_interrupt {
            Some(2)
        } else if on(ier::MODEM) && self.modem() & 0xf != 0 {
            Some(0)
        } else {
            None
        }
    }

    fn modem(&self) -> u8 {
        self.msr
    }

    fn set_modem_lines(&mut self) {
        let lines = if self.loopback() {
            // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
            let m = self.mcr;
            (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4
        } else {
            MODEM_READY
        };
        let changed = (self.msr ^ lines) & 0xf0;
        let mut delta = changed >> 4;
        // RI counts only its trailing edge.
        if lines & 0x40 != 0 {
            delta &= !4;
        }
        self.msr = lines | (self.msr & 0xf) | delta;
    }

    pub fn read(&mut self, register: u8) -> u8 {
        match register {
            0 if self.lcr & DLAB != 0 => self.divisor as u8,
            1 if self.lcr & DLAB != 0 => (self.divisor >> 8) as u8,
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                if self.received.is_empty() {
                    self.lsr &= !lsr::READY;
                }
                self.timeout_interrupt = false;
                self.touched = true;
                byte
            }
            1 => self.ier,
            2 => {
                let id = self.interrupt_id();
                if id == Some(2) {
                    self.transmit_interrupt = false;
                }
                id.unwrap_or(1) | if self.fifo() { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let value = self.lsr;
                self.lsr &= !lsr::ERRORS;
                value
            }
            6 => {
                let value = self.msr;
                self.msr &= 0xf0;
                value
            }
            _ => self.scratch,
        }
    }

    pub fn write(&mut self, register: u8, value: u8) {
        match register {
            0 if self.lcr & DLAB != 0 => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if self.lcr & DLAB != 0 => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            0 => self.send(value),
            1 => {
                let enabled = value & !self.ier;
                self.ier = value & 0xf;
                if enabled & ier::TRANSMIT != 0 && self.lsr & lsr::THRE != 0 {
                    self.transmit_interrupt = true;
                }
                self.touched |= enabled & ier::RECEIVED != 0;
            }
            2 => self.set_fifo_control(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = value & 0x1f;
                self.set_modem_lines();
            }
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn send(&mut self, byte: u8) {
        self.transmit_interrupt = false;
        if self.loopback() {
            self.receive(byte);
            self.pace_wanted = true;
            return;
        }
        if self.transmit.len() >= self.capacity() {
            // The guest did not heed THRE: the byte before is overwritten.
            self.transmit.pop_back();
        }
        self.transmit.push_back(byte);
        self.lsr &= !(lsr::THRE | lsr::TEMT);
    }

    fn set_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & 1 != 0;
        if toggled || value & 2 != 0 {
            self.received.clear();
            self.lsr &= !(lsr::READY | lsr::BREAK);
            self.timeout_interrupt = false;
            self.touched = true;
        }
        if toggled || value & 4 != 0 {
            self.transmit.clear();
            self.transmitted();
        }
        self.fcr = value & 0xc9;
    }
}
