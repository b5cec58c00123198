//! 8042 keyboard controller (ports 0x60 and 0x64) with a PS/2 keyboard and a PS/2 mouse.

mod keyboard;
mod keymap;
mod mouse;

use super::range::{board_model, byte_range};
use base::rank::ranks;
use base::{Mutex, MutexGuard};
use device::{BusKind, Device, IrqLine, Model, Power, ResetCause, ResetKind};
use keyboard::Keyboard;
use keymap::to_set1;
use memory::AddressSpace;
use mouse::Mouse;
pub use mouse::MouseButton;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

pub static MODEL: Model = board_model("i8042", "PS/2 keyboard controller", BusKind::Isa, "isa-device");

mod status {
    pub const OUTPUT_FULL: u8 = 1;
    pub const SYSTEM: u8 = 4;
    pub const COMMAND: u8 = 8;
    pub const UNLOCKED: u8 = 0x10;
    pub const FROM_MOUSE: u8 = 0x20;
}

mod mode {
    pub const KEYBOARD_IRQ: u8 = 1;
    pub const MOUSE_IRQ: u8 = 2;
    pub const SYSTEM: u8 = 4;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const MOUSE_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
}

/// Output port bits.
const RESET_NOT: u8 = 1;
const A20: u8 = 2;

struct State {
    memory: [u8; 32],
    status: u8,
    output_port: u8,
    /// The command whose argument is awaited at port 0x60.
    pending: Option<u8>,
    output: u8,
    /// Replies of the controller itself (byte, as if from the mouse).
    replies: VecDeque<(u8, bool)>,
    keyboard: Keyboard,
    mouse: Mouse,
    /// After an F0 of scan code set 2 being translated.
    release: bool,
    irq: [bool; 2],
}

impl State {
    fn new() -> Self {
        let mut state = State {
            memory: [0; 32],
            status: status::COMMAND | status::UNLOCKED,
            output_port: RESET_NOT | A20,
            pending: None,
            output: 0,
            replies: VecDeque::new(),
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            release: false,
            irq: [false; 2],
        };
        state.memory[0] = mode::KEYBOARD_IRQ | mode::MOUSE_IRQ;
        state
    }

    fn mode(&self) -> u8 {
        self.memory[0]
    }

    /// Moves the next byte to the output buffer if that is free.
    fn fill(&mut self) {
        while self.status & status::OUTPUT_FULL == 0 {
            let (byte, from_mouse) = if let Some(reply) = self.replies.pop_front() {
                reply
            } else if let Some(byte) =
                (self.mode() & mode::KEYBOARD_OFF == 0).then(|| self.keyboard.next()).flatten()
            {
                match self.translate(byte) {
                    Some(byte) => (byte, false),
                    None => continue,
                }
            } else if let Some(byte) =
                (self.mode() & mode::MOUSE_OFF == 0).then(|| self.mouse.next()).flatten()
            {
                (byte, true)
            } else {
                return;
            };
            self.output = byte;
            self.status |= status::OUTPUT_FULL;
            if from_mouse {
                self.status |= status::FROM_MOUSE;
            } else {
                self.status &= !status::FROM_MOUSE;
            }
        }
    }

    fn translate(&mut self, byte: u8) -> Option<u8> {
        if self.mode() & mode::TRANSLATE == 0 {
            return Some(byte);
        }
        if byte == 0xf0 {
            self.release = true;
            return None;
        }
        let release = if std::mem::take(&mut self.release) { 0x80 } else { 0 };
        Some(to_set1(byte) | release)
    }

    fn wanted_irq(&self) -> [bool; 2] {
        let full = self.status & status::OUTPUT_FULL != 0;
        let from_mouse = self.status & status::FROM_MOUSE != 0;
        [
            full && !from_mouse && self.mode() & mode::KEYBOARD_IRQ != 0,
            full && from_mouse && self.mode() & mode::MOUSE_IRQ != 0,
        ]
    }

    fn reply(&mut self, byte: u8) {
        self.replies.push_back((byte, false));
    }
}

/// What is to be asked of the board after unlocking.
#[derive(Default)]
struct Demand {
    a20: Option<bool>,
    reset: bool,
}

/// The controller and both devices behind it.
pub struct I8042 {
    state: Mutex<State>,
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    power: Arc<dyn Power>,
}

impl I8042 {
    /// The lines are IRQ 1 and IRQ 12.
    pub fn new(keyboard_irq: IrqLine, mouse_irq: IrqLine, power: Arc<dyn Power>) -> Arc<Self> {
        let state = Mutex::ranked(ranks::DEVICE, State::new());
        Arc::new(I8042 { state, keyboard_irq, mouse_irq, power })
    }

    /// Ports 0x60 and 0x64.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let data = byte_range(self, |d, _, _| d.read_data().into(), |d, _, _, v| d.write_data(v as u8));
        let command =
            byte_range(self, |d, _, _| d.read_status().into(), |d, _, _, v| d.write_command(v as u8));
        ports.edit(|edit| {
            edit.io("i8042-data", 0x60, 1, data);
            edit.io("i8042-cmd", 0x64, 1, command);
        });
    }

    /// Presses or releases a key. `number` is its scan code in set 1, with bit 7 set for
    /// keys of the E0 group (the "number" of QMP key values).
    pub fn key(&self, number: u8, pressed: bool) {
        let mut state = self.state.lock();
        state.keyboard.key(number, pressed);
        self.settle(state);
    }

    /// Whether the guest has the mouse switched on.
    pub fn mouse_enabled(&self) -> bool {
        self.state.lock().mouse.is_reporting()
    }

    /// Moves the mouse right, down and its wheel down by counts.
    pub fn motion(&self, dx: i32, dy: i32, wheel: i32) {
        let mut state = self.state.lock();
        state.mouse.motion(dx, dy, wheel);
        self.settle(state);
    }

    pub fn button(&self, button: MouseButton, pressed: bool) {
        let mut state = self.state.lock();
        state.mouse.button(button, pressed);
        self.settle(state);
    }

    /// Scroll lock, num lock and caps lock lights (bits 0, 1, 2).
    pub fn leds(&self) -> u8 {
        self.state.lock().keyboard.leds()
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        state.fill();
        // A guest that never reads cannot make the queue grow.
        state.replies.truncate(16);
        let wanted = state.wanted_irq();
        for (at, line) in [&self.keyboard_irq, &self.mouse_irq].into_iter().enumerate() {
            if state.irq[at] != wanted[at] {
                state.irq[at] = wanted[at];
                line.set(wanted[at]);
            }
        }
    }

    fn meet(&self, demand: Demand) {
        if let Some(a20) = demand.a20 {
            self.power.set_a20(a20);
        }
        if demand.reset {
            self.power.request_reset(ResetCause::Guest);
        }
    }

    fn read_status(&self) -> u8 {
        self.state.lock().status
    }

    fn read_data(&self) -> u8 {
        let mut state = self.state.lock();
        let value = state.output;
        if state.status & status::OUTPUT_FULL != 0 {
            state.status &= !(status::OUTPUT_FULL | status::FROM_MOUSE);
            // Each byte is an edge of its own.
            for (at, line) in [&self.keyboard_irq, &self.mouse_irq].into_iter().enumerate() {
                if std::mem::take(&mut state.irq[at]) {
                    line.lower();
                }
            }
        }
        self.settle(state);
        value
    }

    fn write_command(&self, value: u8) {
        let a20 = if value == 0xd0 { self.power.a20() } else { true };
        let mut state = self.state.lock();
        state.status |= status::COMMAND;
        state.pending = None;
        let mut demand = Demand::default();
        match value {
            0x00..=0x3f => {
                let byte = state.memory[usize::from(value & 0x1f)];
                state.reply(byte);
            }
            0x40..=0x7f | 0xd1..=0xd4 => state.pending = Some(value),
            0xa7 => state.memory[0] |= mode::MOUSE_OFF,
            0xa8 => state.memory[0] &= !mode::MOUSE_OFF,
            0xa9 | 0xab => state.reply(0),
            0xaa => {
                state.status |= status::SYSTEM;
                state.memory[0] |= mode::SYSTEM;
                state.reply(0x55);
            }
            0xad => state.memory[0] |= mode::KEYBOARD_OFF,
            0xae => state.memory[0] &= !mode::KEYBOARD_OFF,
            0xc0 => state.reply(0x80),
            0xd0 => {
                let full = if state.status & status::OUTPUT_FULL != 0 { 0x10 } else { 0 };
                let byte = state.output_port & !A20 | if a20 { A20 } else { 0 } | full;
                state.reply(byte);
            }
            0xdd | 0xdf => {
                demand.a20 = Some(value == 0xdf);
                state.output_port = state.output_port & !A20 | if value == 0xdf { A20 } else { 0 };
            }
            // Pulses the output port bits that are zero; bit 0 is the processor's reset.
            0xf0..=0xff => demand.reset = value & 1 == 0,
            _ => {}
        }
        self.settle(state);
        self.meet(demand);
    }

    fn write_data(&self, value: u8) {
        let mut state = self.state.lock();
        state.status &= !status::COMMAND;
        let mut demand = Demand::default();
        match state.pending.take() {
            Some(command @ 0x40..=0x7f) => {
                state.memory[usize::from(command & 0x1f)] = value;
                if command & 0x1f == 0 {
                    let system = if value & mode::SYSTEM != 0 { status::SYSTEM } else { 0 };
                    state.status = state.status & !status::SYSTEM | system;
                }
            }
            Some(0xd1) => {
                state.output_port = value;
                demand.a20 = Some(value & A20 != 0);
                demand.reset = value & RESET_NOT == 0;
            }
            Some(0xd2) => state.replies.push_back((value, false)),
            Some(0xd3) => state.replies.push_back((value, true)),
            Some(0xd4) => state.mouse.write(value),
            _ => {
                // Sending to the keyboard switches its interface on.
                state.memory[0] &= !mode::KEYBOARD_OFF;
                state.keyboard.write(value);
            }
        }
        self.settle(state);
        self.meet(demand);
    }
}

impl Device for I8042 {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        let irq = state.irq;
        *state = State { irq, ..State::new() };
        self.settle(state);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
