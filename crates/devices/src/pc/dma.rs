//! The two 8237/8257-compatible DMA controllers of a PC (Intel 8237A data sheet) with their
//! page registers. Channel 4 is the cascade; channels 5-7 transfer words.

use super::range::{board_model, byte_range};
use base::Mutex;
use base::rank::ranks;
use device::{BusKind, Device, Model, ResetKind};
use memory::{AddressSpace, Dma};
use std::any::Any;
use std::sync::Arc;

pub static MODEL: Model = board_model("i8257", "ISA DMA controllers", BusKind::Isa, "isa-device");

/// Page register ports relative to 0x80 and the channel each belongs to.
const PAGES: [(u64, usize); 7] = [(1, 2), (2, 3), (3, 1), (7, 0), (9, 6), (0xa, 7), (0xb, 5)];

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    mode: u8,
    page: u8,
    page_high: u8,
}

struct Controller {
    channels: [Channel; 4],
    command: u8,
    mask: u8,
    /// Terminal counts, cleared by reading.
    status: u8,
    requests: u8,
    flip_flop: bool,
}

impl Controller {
    fn new() -> Self {
        Controller {
            channels: [Channel::default(); 4],
            command: 0,
            mask: 0xf,
            status: 0,
            requests: 0,
            flip_flop: false,
        }
    }

    /// Master clear.
    fn clear(&mut self) {
        let channels = self.channels;
        *self = Controller { channels, ..Controller::new() };
    }

    /// The state of the byte pointer, which then changes.
    fn flip(&mut self) -> bool {
        self.flip_flop = !self.flip_flop;
        !self.flip_flop
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0..=7 => {
                let high = self.flip();
                let channel = &self.channels[(register >> 1) as usize & 3];
                let value = if register & 1 == 0 { channel.address } else { channel.count };
                value.to_le_bytes()[usize::from(high)]
            }
            8 => std::mem::take(&mut self.status) | self.requests << 4,
            0xf => self.mask | 0xf0,
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        match register {
            0..=7 => {
                let high = self.flip();
                let channel = &mut self.channels[(register >> 1) as usize & 3];
                let base =
                    if register & 1 == 0 { &mut channel.base_address } else { &mut channel.base_count };
                let mut bytes = base.to_le_bytes();
                bytes[usize::from(high)] = value;
                *base = u16::from_le_bytes(bytes);
                if register & 1 == 0 {
                    channel.address = channel.base_address;
                } else {
                    channel.count = channel.base_count;
                }
            }
            8 => self.command = value,
            9 => {
                let bit = 1 << (value & 3);
                self.requests = if value & 4 != 0 { self.requests | bit } else { self.requests & !bit };
            }
            0xa => {
                let bit = 1 << (value & 3);
                self.mask = if value & 4 != 0 { self.mask | bit } else { self.mask & !bit };
            }
            0xb => self.channels[usize::from(value & 3)].mode = value,
            0xc => self.flip_flop = false,
            0xd => self.clear(),
            0xe => self.mask = 0,
            0xf => self.mask = value & 0xf,
            _ => {}
        }
    }
}

/// What a channel is programmed to do, for the device that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Guest physical address of the next byte.
    pub address: u64,
    /// Bytes up to terminal count.
    pub left: u32,
    /// To memory (the device is read) rather than from memory.
    pub to_memory: bool,
    /// Verify: nothing is moved.
    pub verify: bool,
}

/// Both controllers.
pub struct IsaDma {
    state: Mutex<[Controller; 2]>,
    memory: Dma,
}

impl IsaDma {
    pub fn new(memory: Dma) -> Arc<Self> {
        let state = [Controller::new(), Controller::new()];
        Arc::new(IsaDma { state: Mutex::ranked(ranks::DEVICE, state), memory })
    }

    /// Ports 0x00-0x0f, 0xc0-0xdf and the page registers 0x81-0x8b, 0x481-0x48b.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let first = byte_range(
            self,
            |d, at, _| d.state.lock()[0].read(at).into(),
            |d, at, _, v| d.state.lock()[0].write(at, v as u8),
        );
        let second = byte_range(
            self,
            |d, at, _| d.state.lock()[1].read(at >> 1).into(),
            |d, at, _, v| d.state.lock()[1].write(at >> 1, v as u8),
        );
        ports.edit(|edit| {
            edit.io("dma-0", 0, 0x10, first);
            edit.io("dma-1", 0xc0, 0x20, second);
            for (offset, _) in PAGES {
                for base in [0x80, 0x480] {
                    edit.io("dma-page", base + offset, 1, self.page_register(offset, base == 0x480));
                }
            }
        });
    }

    fn page_register(self: &Arc<Self>, offset: u64, high: bool) -> Arc<dyn memory::Handler> {
        Arc::new(PageRegister { dma: self.clone(), channel: channel_of_page(offset), high })
    }

    /// What the channel is set to, if it is not masked and its controller is enabled.
    pub fn transfer(&self, channel: usize) -> Option<Transfer> {
        let state = self.state.lock();
        let controller = &state[channel >> 2 & 1];
        let number = channel & 3;
        if controller.mask & 1 << number != 0 || controller.command & 4 != 0 || channel == 4 {
            return None;
        }
        let c = &controller.channels[number];
        let wide = u32::from(channel >= 4);
        let page = u64::from(c.page) << 16 | u64::from(c.page_high & 0x7f) << 24;
        let address = if wide != 0 {
            page & !0x1_0000 | u64::from(c.address) << 1
        } else {
            page | u64::from(c.address)
        };
        Some(Transfer {
            address,
            left: (u32::from(c.count) + 1) << wide,
            to_memory: c.mode & 0xc == 4,
            verify: c.mode & 0xc == 0,
        })
    }

    /// Moves bytes from the device to memory; returns how many, and whether terminal count
    /// was reached.
    pub fn write_memory(&self, channel: usize, bytes: &[u8]) -> (usize, bool) {
        let Some(transfer) = self.transfer(channel).filter(|transfer| transfer.to_memory || transfer.verify)
        else {
            return (0, false);
        };
        let count = bytes.len().min(transfer.left as usize);
        if !transfer.verify {
            for (at, piece) in self.pieces(channel, transfer, count) {
                let _ = self.memory.write(at, &bytes[piece]);
            }
        }
        (count, self.advance(channel, count))
    }

    /// Moves bytes from memory to the device; see [`IsaDma::write_memory`].
    pub fn read_memory(&self, channel: usize, bytes: &mut [u8]) -> (usize, bool) {
        let Some(transfer) = self.transfer(channel).filter(|transfer| !transfer.to_memory || transfer.verify)
        else {
            return (0, false);
        };
        let count = bytes.len().min(transfer.left as usize);
        if !transfer.verify {
            for (at, piece) in self.pieces(channel, transfer, count) {
                let _ = self.memory.read(at, &mut bytes[piece]);
            }
        }
        (count, self.advance(channel, count))
    }

    /// The device raises or drops its request line (shown in the status register).
    pub fn set_request(&self, channel: usize, level: bool) {
        let mut state = self.state.lock();
        let controller = &mut state[channel >> 2 & 1];
        let bit = 1 << (channel & 3);
        controller.requests = if level { controller.requests | bit } else { controller.requests & !bit };
    }

    /// Guest addresses of `count` bytes: the address wraps within 64 KiB (128 KiB for words)
    /// and may count down.
    fn pieces(&self, channel: usize, transfer: Transfer, count: usize) -> Vec<(u64, std::ops::Range<usize>)> {
        let down = self.state.lock()[channel >> 2 & 1].channels[channel & 3].mode & 0x20 != 0;
        let segment: u64 = if channel >= 4 { 0x2_0000 } else { 0x1_0000 };
        let (base, start) = (transfer.address & !(segment - 1), transfer.address & (segment - 1));
        if down {
            return (0..count)
                .map(|at| (base | start.wrapping_sub(at as u64) & (segment - 1), at..at + 1))
                .collect();
        }
        let first = count.min((segment - start) as usize);
        let mut pieces = vec![(base | start, 0..first)];
        if first < count {
            pieces.push((base, first..count));
        }
        pieces
    }

    fn advance(&self, channel: usize, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let controller = &mut state[channel >> 2 & 1];
        let units = bytes >> u32::from(channel >= 4);
        let c = &mut controller.channels[channel & 3];
        let moved = units as u16;
        c.address =
            if c.mode & 0x20 != 0 { c.address.wrapping_sub(moved) } else { c.address.wrapping_add(moved) };
        let finished = units > usize::from(c.count);
        c.count = c.count.wrapping_sub(moved);
        if finished {
            if c.mode & 0x10 != 0 {
                c.address = c.base_address;
                c.count = c.base_count;
            } else {
                controller.mask |= 1 << (channel & 3);
            }
            controller.status |= 1 << (channel & 3);
        }
        finished
    }
}

fn channel_of_page(offset: u64) -> usize {
    PAGES.iter().find(|&&(at, _)| at == offset).map_or(0, |&(_, channel)| channel)
}

struct PageRegister {
    dma: Arc<IsaDma>,
    channel: usize,
    high: bool,
}

impl memory::Handler for PageRegister {
    fn read(&self, _: u64, _: u8) -> u64 {
        let state = self.dma.state.lock();
        let channel = &state[self.channel >> 2].channels[self.channel & 3];
        if self.high { channel.page_high.into() } else { channel.page.into() }
    }
    fn write(&self, _: u64, _: u8, value: u64) {
        let mut state = self.dma.state.lock();
        let channel = &mut state[self.channel >> 2].channels[self.channel & 3];
        if self.high {
            channel.page_high = value as u8;
        } else {
            channel.page = value as u8;
        }
    }
    fn max_access(&self) -> u8 {
        1
    }
}

impl Device for IsaDma {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _: ResetKind) {
        *self.state.lock() = [Controller::new(), Controller::new()];
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::Testbed;

    fn program(ports: &AddressSpace, mode: u64, address: u64, count: u64) {
        ports.store(0x0a, 1, 6);
        ports.store(0x0c, 1, 0);
        ports.store(0x0b, 1, mode | 2);
        for shift in [0, 8] {
            ports.store(4, 1, address >> shift & 0xff);
        }
        for shift in [0, 8] {
            ports.store(5, 1, count >> shift & 0xff);
        }
        ports.store(0x81, 1, address >> 16);
        ports.store(0x0a, 1, 2);
    }

    #[test]
    fn transfers_wrap_and_reach_terminal_count() {
        let bed = Testbed::new();
        let dma = IsaDma::new(Dma::new(bed.services.memory.clone(), true));
        dma.map(&bed.services.ports);
        let (ports, memory) = (&bed.services.ports, &bed.services.memory);
        assert_eq!(dma.transfer(2), None);
        program(ports, 0x44, 0x1_fffe, 3);
        assert_eq!(dma.write_memory(2, &[1, 2, 3]), (3, false));
        assert_eq!(dma.write_memory(2, &[4, 5]), (1, true));
        assert_eq!(memory.load(0x1_fffe, 2), 0x0201);
        assert_eq!(memory.load(0x1_0000, 2), 0x0403);
        assert_eq!(dma.transfer(2), None, "masked at terminal count");
        assert_eq!(ports.load(8, 1), 4);
        assert_eq!(ports.load(8, 1), 0);
        program(ports, 0x58, 0x1_fffe, 3);
        let mut bytes = [0; 8];
        assert_eq!(dma.read_memory(2, &mut bytes), (4, true));
        assert_eq!(bytes, [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(dma.transfer(2).unwrap().left, 4, "auto-initialised");
        assert_eq!(dma.write_memory(2, &bytes), (0, false), "wrong direction");
    }

    #[test]
    fn word_channels() {
        let bed = Testbed::new();
        let dma = IsaDma::new(Dma::new(bed.services.memory.clone(), true));
        dma.map(&bed.services.ports);
        let ports = &bed.services.ports;
        ports.store(0xd6, 1, 0x45);
        ports.store(0xd8, 1, 0);
        for (port, value) in [(0xc4, 0x00), (0xc4, 0x80), (0xc6, 1), (0xc6, 0), (0x8b, 3), (0xd4, 1)] {
            ports.store(port, 1, value);
        }
        let transfer = dma.transfer(5).unwrap();
        assert_eq!((transfer.address, transfer.left), (0x3_0000, 4));
        assert_eq!(dma.write_memory(5, &[9; 6]), (4, true));
    }
}
