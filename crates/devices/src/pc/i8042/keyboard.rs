use super::keymap::{to_set2, to_set3};
use std::collections::VecDeque;

/// Bytes of key codes a keyboard holds; keys beyond are lost.
const QUEUE: usize = 16;
/// Replies come on top.
const REPLIES: usize = 32;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// A 101/102-key keyboard: commands and key codes.
pub struct Keyboard {
    queue: VecDeque<u8>,
    enabled: bool,
    set: u8,
    leds: u8,
    /// The command whose argument is awaited.
    pending: Option<u8>,
    last: u8,
    /// Set 3: keys that send make codes only (by set 3 code).
    make_only: [bool; 256],
}

impl Keyboard {
    pub fn new() -> Self {
        Keyboard {
            queue: VecDeque::new(),
            enabled: true,
            set: 2,
            leds: 0,
            pending: None,
            last: 0,
            make_only: [false; 256],
        }
    }

    pub fn leds(&self) -> u8 {
        self.leds
    }

    pub fn next(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() <= QUEUE + REPLIES {
            self.queue.extend(bytes);
        }
    }

    /// See [`super::I8042::key`].
    pub fn key(&mut self, number: u8, pressed: bool) {
        if !self.enabled {
            return;
        }
        let mut codes = Vec::with_capacity(8);
        match self.set {
            1 => set1(number, pressed, &mut codes),
            3 => {
                if let Some(code) = to_set3(number) {
                    if pressed {
                        codes.push(code);
                    } else if !self.make_only[usize::from(code)] {
                        codes.extend([0xf0, code]);
                    }
                }
            }
            _ => set2(number, pressed, &mut codes),
        }
        if self.queue.len() + codes.len() <= QUEUE {
            self.queue.extend(codes);
        }
    }

    fn defaults(&mut self) {
        self.set = 2;
        self.make_only = [false; 256];
        self.pending = None;
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        match self.pending.take() {
            None => self.command(value),
            // A command where an argument should be.
            Some(_) if value >= 0xed => self.command(value),
            Some(0xed) => {
                self.leds = value & 7;
                self.reply(&[ACK]);
            }
            Some(0xf0) => match value {
                0 => {
                    let set = self.set;
                    self.reply(&[ACK, set]);
                }
                1..=3 => {
                    self.set = value;
                    self.reply(&[ACK]);
                }
                _ => self.reply(&[RESEND]),
            },
            Some(key_type @ 0xfb..=0xfd) => {
                self.make_only[usize::from(value)] = matches!(key_type, 0xfb | 0xfd);
                // More keys may follow until the next command.
                self.pending = Some(key_type);
                self.reply(&[ACK]);
            }
            Some(_) => self.reply(&[ACK]),
        }
    }

    fn command(&mut self, value: u8) {
        match value {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.pending = Some(value);
                self.reply(&[ACK]);
            }
            0xee => self.reply(&[0xee]),
            0xf2 => self.reply(&[ACK, 0xab, 0x83]),
            0xf4 => {
                self.enabled = true;
                self.queue.clear();
                self.reply(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.defaults();
                self.enabled = value == 0xf6;
                self.queue.clear();
                self.reply(&[ACK]);
            }
            0xf7..=0xfa => {
                self.make_only = [matches!(value, 0xf7 | 0xf9); 256];
                self.reply(&[ACK]);
            }
            0xfe => {
                let last = self.last;
                self.queue.push_front(last);
                self.queue.truncate(QUEUE + REPLIES);
            }
            0xff => {
                self.defaults();
                self.enabled = true;
                self.leds = 0;
                self.queue.clear();
                self.reply(&[ACK, 0xaa]);
            }
            0x00 => {}
            _ => self.reply(&[RESEND]),
        }
    }
}

/// Print Screen and Pause have codes of their own.
const PRINT: u8 = 0xb7;
const PAUSE: u8 = 0xc6;

fn set1(number: u8, pressed: bool, codes: &mut Vec<u8>) {
    match (number, pressed) {
        (PAUSE, true) => codes.extend([0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]),
        (PAUSE, false) => {}
        (PRINT, true) => codes.extend([0xe0, 0x2a, 0xe0, 0x37]),
        (PRINT, false) => codes.extend([0xe0, 0xb7, 0xe0, 0xaa]),
        _ => {
            if number & 0x80 != 0 {
                codes.push(0xe0);
            }
            codes.push(number & 0x7f | if pressed { 0 } else { 0x80 });
        }
    }
}

fn set2(number: u8, pressed: bool, codes: &mut Vec<u8>) {
    match (number, pressed) {
        (PAUSE, true) => codes.extend([0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]),
        (PAUSE, false) => {}
        (PRINT, true) => codes.extend([0xe0, 0x12, 0xe0, 0x7c]),
        (PRINT, false) => codes.extend([0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12]),
        _ => {
            let Some(code) = to_set2(number & 0x7f) else { return };
            if number & 0x80 != 0 {
                codes.push(0xe0);
            }
            if !pressed {
                codes.push(0xf0);
            }
            codes.push(code);
        }
    }
}
