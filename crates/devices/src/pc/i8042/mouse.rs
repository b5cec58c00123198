use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const ERROR: u8 = 0xfc;
/// Movement reports wait while this many bytes do; motion adds up meanwhile.
const QUEUE: usize = 16;
const REPLIES: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MouseButton {
    Left,
    Right,
    Middle,
    Side,
    Extra,
}

/// A PS/2 mouse with IntelliMouse wheel (id 3) and five buttons (id 4).
pub struct Mouse {
    queue: VecDeque<u8>,
    id: u8,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling: bool,
    resolution: u8,
    rate: u8,
    /// The last three sample rates set: a magic sequence switches the id.
    rates: [u8; 3],
    pending: Option<u8>,
    buttons: u8,
    changed: bool,
    dx: i32,
    dy: i32,
    wheel: i32,
    last: u8,
}

impl Mouse {
    pub fn new() -> Self {
        Mouse {
            queue: VecDeque::new(),
            id: 0,
            reporting: false,
            remote: false,
            wrap: false,
            scaling: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            pending: None,
            buttons: 0,
            changed: false,
            dx: 0,
            dy: 0,
            wheel: 0,
            last: 0,
        }
    }

    pub fn is_reporting(&self) -> bool {
        self.reporting
    }

    pub fn next(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        self.report();
        Some(byte)
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() <= REPLIES {
            self.queue.extend(bytes);
        }
    }

    pub fn motion(&mut self, dx: i32, dy: i32, wheel: i32) {
        if self.reporting || self.remote {
            self.dx = self.dx.saturating_add(dx);
            self.dy = self.dy.saturating_sub(dy);
            self.wheel = self.wheel.saturating_add(wheel);
            self.report();
        }
    }

    pub fn button(&mut self, button: MouseButton, pressed: bool) {
        let bit = match button {
            MouseButton::Left => 1,
            MouseButton::Right => 2,
            MouseButton::Middle => 4,
            MouseButton::Side => 8,
            MouseButton::Extra => 16,
        };
        let buttons = if pressed { self.buttons | bit } else { self.buttons & !bit };
        if buttons != self.buttons {
            self.buttons = buttons;
            self.changed = true;
            self.report();
        }
    }

    /// Queues movement reports in stream mode.
    fn report(&mut self) {
        if !self.reporting || self.remote {
            return;
        }
        let wheel = |mouse: &Mouse| mouse.id != 0 && mouse.wheel != 0;
        while self.queue.len() + 4 <= QUEUE && (self.changed || self.dx != 0 || self.dy != 0 || wheel(self)) {
            self.packet();
        }
    }

    fn packet(&mut self) {
        let dx = self.dx.clamp(-255, 255);
        let dy = self.dy.clamp(-255, 255);
        self.dx -= dx;
        self.dy -= dy;
        self.changed = false;
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        self.queue.extend([8 | self.buttons & 7 | sign(dx, 0x10) | sign(dy, 0x20), dx as u8, dy as u8]);
        match self.id {
            3 => {
                let wheel = self.wheel.clamp(-127, 127);
                self.wheel -= wheel;
                self.queue.push_back(wheel as u8);
            }
            4 => {
                let wheel = self.wheel.clamp(-7, 7);
                self.wheel -= wheel;
                self.queue.push_back(wheel as u8 & 0xf | (self.buttons & 0x18) << 1);
            }
            _ => self.wheel = 0,
        }
    }

    fn defaults(&mut self) {
        self.rate = 100;
        self.resolution = 2;
        self.scaling = false;
        self.remote = false;
        self.reporting = false;
        self.pending = None;
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        if self.wrap && !matches!(value, 0xec | 0xff) {
            self.reply(&[value]);
            return;
        }
        match self.pending.take() {
            Some(0xf3) => self.set_rate(value),
            Some(_) => {
                self.resolution = value & 3;
                self.reply(&[ACK]);
            }
            None => self.command(value),
        }
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        self.rates = [self.rates[1], self.rates[2], rate];
        match self.rates {
            [200, 100, 80] => self.id = 3,
            [200, 200, 80] => self.id = 4,
            _ => {}
        }
        self.reply(&[ACK]);
    }

    fn command(&mut self, value: u8) {
        if value == 0xfe {
            let last = self.last;
            self.queue.push_front(last);
            self.queue.truncate(REPLIES);
            return;
        }
        // Any command discards movement not yet fetched.
        self.queue.clear();
        self.reply(&[ACK]);
        match value {
            0xe6 | 0xe7 => self.scaling = value == 0xe7,
            0xe8 | 0xf3 => self.pending = Some(value),
            0xe9 => {
                let b = self.buttons;
                let buttons = (b & 1) << 2 | (b & 4) >> 1 | (b & 2) >> 1;
                let flags =
                    u8::from(self.remote) << 6 | u8::from(self.reporting) << 5 | u8::from(self.scaling) << 4;
                let (resolution, rate) = (self.resolution, self.rate);
                self.reply(&[flags | buttons, resolution, rate]);
            }
            0xea => self.remote = false,
            0xeb => self.packet(),
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => {
                let id = self.id;
                self.reply(&[id]);
            }
            0xf4 => self.reporting = true,
            0xf5 => self.reporting = false,
            0xf6 => self.defaults(),
            0xff => {
                let buttons = self.buttons;
                *self = Mouse { buttons, ..Mouse::new() };
                self.reply(&[ACK, 0xaa, 0]);
            }
            _ => {
                self.queue.clear();
                self.reply(&[ERROR]);
            }
        }
    }
}
