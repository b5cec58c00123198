//! The SCRIPTS processor (technical manual, chapter 5).

use super::chip::{self, Chip, reg};
use super::side::{Line, Phase};

/// Work that is done at once before others may run: one for an instruction and each 64 bytes.
const BURST: u64 = 20_000;
const TABLE_INDIRECT_64: u8 = 2;
const TABLE_INDIRECT_HIGH_BYTE: u8 = 4;
const DIRECT_64: u8 = 1;
const MISMATCH_JUMPS: u8 = 0x80;
const MISMATCH_BY_DIRECTION: u8 = 0x40;
const MISMATCH_WITHOUT_DATA: u8 = 0x20;

/// An instruction that waits for the bus.
pub enum Stalled {
    Move(Move),
    Other(u32, u32),
}

/// A block move under way.
pub struct Move {
    phase: Phase,
    address: u64,
    left: u32,
    done: u32,
    /// Where the instruction is.
    at: u32,
    /// Bits 24 to 31 of its count.
    high: u8,
}

/// What becomes of an instruction.
enum Flow {
    Next,
    /// It is tried again when the bus has changed.
    Stall(Stalled),
    /// An interrupt stopped the processor.
    Stop,
}

fn signed24(value: u32) -> u32 {
    ((value << 8) as i32 >> 8) as u32
}

impl Chip {
    /// Executes until the program stops, waits for the bus, or has had its share.
    pub fn run(&mut self) {
        let mut budget = BURST;
        self.woken = false;
        while self.is_going() {
            let before = self.get32(reg::CSBC);
            let flow = match self.stalled.take() {
                Some(Stalled::Move(block)) => self.block_move(block),
                Some(Stalled::Other(first, second)) => self.perform(first, second, &mut budget),
                None => self.fetch(&mut budget),
            };
            match flow {
                Flow::Next => {}
                Flow::Stall(stalled) => return self.stalled = Some(stalled),
                Flow::Stop => return,
            }
            if self.get8(reg::DCNTL) & chip::DCNTL_SINGLE != 0 {
                return self.dma_interrupt(chip::DSTAT_SINGLE);
            }
            budget = budget.saturating_sub(1 + u64::from(self.get32(reg::CSBC).wrapping_sub(before)) / 64);
            if budget == 0 {
                return self.breathe();
            }
        }
    }

    fn fault(&mut self) -> Flow {
        self.dma_interrupt(chip::DSTAT_BUS_FAULT);
        Flow::Stop
    }

    fn illegal(&mut self) -> Flow {
        self.dma_interrupt(chip::DSTAT_ILLEGAL);
        Flow::Stop
    }

    fn load32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.dma.read(address, &mut bytes).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The next dword of the program.
    fn fetch32(&mut self) -> Option<u32> {
        let at = self.get32(reg::DSP);
        let value = self.load32(u64::from(self.get32(reg::SFS)) << 32 | u64::from(at))?;
        self.set32(reg::DSP, at.wrapping_add(4));
        Some(value)
    }

    fn fetch(&mut self, budget: &mut u64) -> Flow {
        let Some(first) = self.fetch32() else { return self.fault() };
        // A move of nothing, which firmware leaves in its program as zeroes, is passed over.
        if first == 0 {
            return Flow::Next;
        }
        let Some(second) = self.fetch32() else { return self.fault() };
        self.set32(reg::DBC, first);
        self.set32(reg::DSPS, second);
        self.perform(first, second, budget)
    }

    fn perform(&mut self, first: u32, second: u32, budget: &mut u64) -> Flow {
        let target = self.get8(reg::SCNTL0) & chip::SCNTL0_TARGET != 0;
        match first >> 29 {
            0 | 1 if !target => self.begin_move(first, second),
            2 | 3 => match first >> 27 & 7 {
                operation @ 0..=4 if !target => self.bus_operation(operation, first, second),
                operation @ 5..=7 => {
                    self.register_operation(operation, first);
                    Flow::Next
                }
                _ => self.illegal(),
            },
            4 | 5 => self.control(first, second),
            6 => self.memory_move(first, second, budget),
            7 => self.load_or_store(first, second),
            _ => self.illegal(),
        }
    }

    fn jump_to(&mut self, relative: bool, to: u32) {
        let to = if relative { self.get32(reg::DSP).wrapping_add(signed24(to)) } else { to };
        self.set32(reg::DSP, to);
    }

    // ---- block moves ----

    /// Address of an entry of the table at DSA.
    fn entry(&self, offset: u32) -> u64 {
        let at = self.get32(reg::DSA).wrapping_add(signed24(offset));
        u64::from(self.get32(reg::DRS)) << 32 | u64::from(at)
    }

    fn begin_move(&mut self, first: u32, second: u32) -> Flow {
        let at = self.get32(reg::DSP).wrapping_sub(8);
        let mode = self.get8(reg::CCNTL1);
        let (mut count, mut address) = (first & 0xff_ffff, u64::from(second));
        let mut high = 0;
        if first >> 28 & 1 != 0 {
            let entry = self.entry(second);
            self.set32(reg::ESA, entry as u32);
            let (Some(size), Some(low)) = (self.load32(entry), self.load32(entry.wrapping_add(4))) else {
                return self.fault();
            };
            (count, high) = (size & 0xff_ffff, (size >> 24) as u8);
            address = u64::from(low) | self.upper(mode, high) << 32;
        } else if first >> 29 & 1 != 0 {
            let Some(low) = self.load32(u64::from(second)) else { return self.fault() };
            address = u64::from(low) | u64::from(self.get32(reg::SBMS)) << 32;
        } else if mode & DIRECT_64 != 0 {
            let Some(upper) = self.fetch32() else { return self.fault() };
            address |= u64::from(upper) << 32;
        } else {
            address |= u64::from(self.get32(reg::SBMS)) << 32;
        }
        // A count of zero is not allowed (5.4).
        if count == 0 {
            return self.illegal();
        }
        let phase = Phase::of(first >> 24 & 7);
        self.block_move(Move { phase, address, left: count, done: 0, at, high })
    }

    /// Bits 32 and up of an address in the table, whose count has these high bits (CCNTL1).
    fn upper(&self, mode: u8, high: u8) -> u64 {
        match mode & (TABLE_INDIRECT_64 | TABLE_INDIRECT_HIGH_BYTE) {
            TABLE_INDIRECT_64 => {
                let selected = match high & 0x1f {
                    register @ 0..=15 => reg::SCRATCHC + register * 4,
                    16 => reg::MMRS,
                    17 => reg::MMWS,
                    18 => reg::SFS,
                    19 => reg::DRS,
                    20 => reg::SBMS,
                    _ => reg::DBMS,
                };
                self.get32(selected).into()
            }
            0 | TABLE_INDIRECT_HIGH_BYTE => self.get32(reg::SBMS).into(),
            _ => high.into(),
        }
    }

    fn block_move(&mut self, mut block: Move) -> Flow {
        loop {
            let phase = match self.phase_for(block.phase) {
                Line::Phase(phase) => phase,
                Line::Later => return Flow::Stall(Stalled::Move(block)),
                Line::Nobody => return Flow::Stop,
            };
            if phase != block.phase {
                return self.mismatch(&block);
            }
            let Some(moved) = self.exchange(block.phase, block.address, block.left) else {
                return self.fault();
            };
            block.left -= moved;
            block.done += moved;
            block.address = block.address.wrapping_add(moved.into());
            self.show_progress(&block, moved);
            if block.left == 0 {
                return Flow::Next;
            }
        }
    }

    fn show_progress(&mut self, block: &Move, moved: u32) {
        let command = self.get32(reg::DBC) & 0xff00_0000;
        self.set32(reg::DBC, command | block.left);
        self.set32(reg::DNAD, block.address as u32);
        self.set32(reg::DNAD64, (block.address >> 32) as u32);
        self.set32(reg::CSBC, self.get32(reg::CSBC).wrapping_add(moved));
    }

    /// The target wants another phase than the program (2.2.10).
    fn mismatch(&mut self, block: &Move) -> Flow {
        self.set32(reg::DBC, self.get32(reg::DBC) & 0xff00_0000 | block.left);
        self.set32(reg::RBC, u32::from(block.high) << 24 | block.left);
        self.set32(reg::UA, block.address as u32);
        self.set32(reg::IA, block.at);
        self.set32(reg::SBC, block.done);
        let mode = self.get8(reg::CCNTL0);
        let is_data = matches!(block.phase, Phase::DataIn | Phase::DataOut);
        if mode & MISMATCH_JUMPS == 0 || !is_data && mode & MISMATCH_WITHOUT_DATA == 0 {
            self.scsi_interrupt(chip::SIST0_MISMATCH, 0);
            return Flow::Stop;
        }
        let second = if mode & MISMATCH_BY_DIRECTION != 0 {
            block.phase == Phase::DataIn
        } else {
            self.get8(reg::SCNTL2) & chip::SCNTL2_WSR != 0
        };
        let to = self.get32(if second { reg::PMJAD2 } else { reg::PMJAD1 });
        self.set32(reg::DSP, to);
        Flow::Next
    }

    // ---- the bus ----

    fn bus_operation(&mut self, operation: u32, first: u32, second: u32) -> Flow {
        let otherwise = |chip: &mut Chip| {
            chip.jump_to(first >> 26 & 1 != 0, second);
            Flow::Next
        };
        match operation {
            0 => {
                if self.is_reselected() {
                    return otherwise(self);
                }
                let mut id = first >> 16;
                if first >> 25 & 1 != 0 {
                    let Some(entry) = self.load32(self.entry(first)) else { return self.fault() };
                    id = entry >> 16;
                    self.set8(reg::SCNTL3, (entry >> 24) as u8);
                    self.set8(reg::SXFER, (entry >> 8) as u8);
                }
                self.set8(reg::SDID, id as u8 & 0xf);
                self.select(id as u8 & 0xf, first >> 24 & 1 != 0);
                Flow::Next
            }
            1 => {
                if self.give_up_selection() {
                    Flow::Stop
                } else if self.side.is_connected() {
                    Flow::Stall(Stalled::Other(first, second))
                } else {
                    Flow::Next
                }
            }
            2 => {
                if self.side.is_connected() || self.reselect() {
                    return if self.running { Flow::Next } else { Flow::Stop };
                }
                if self.get8(reg::ISTAT0) & chip::ISTAT_SIGNAL != 0 {
                    return otherwise(self);
                }
                Flow::Stall(Stalled::Other(first, second))
            }
            _ => self.set_or_clear(operation == 3, first),
        }
    }

    /// SET and CLEAR of carry, target mode, ACK and ATN.
    fn set_or_clear(&mut self, set: bool, first: u32) -> Flow {
        if first >> 10 & 1 != 0 {
            self.carry = set;
        }
        if set && first >> 9 & 1 != 0 {
            return self.illegal();
        }
        if first >> 3 & 1 != 0 {
            self.side.set_attention(set);
        }
        if !set && first >> 6 & 1 != 0 {
            self.acknowledge();
        }
        Flow::Next
    }

    // ---- registers ----

    fn register_operation(&mut self, operation: u32, first: u32) {
        let at = (first >> 16 & 0x7f | first & 0x80) as u8;
        let source = if operation == 5 { self.get8(reg::SFBR) } else { self.read(at) };
        let data = if first >> 23 & 1 != 0 { self.get8(reg::SFBR) } else { (first >> 8) as u8 };
        let carry = u8::from(self.carry);
        let result = match first >> 24 & 7 {
            0 => data,
            1 => {
                self.carry = source & 0x80 != 0;
                source << 1 | carry
            }
            2 => source | data,
            3 => source ^ data,
            4 => source & data,
            5 => {
                self.carry = source & 1 != 0;
                source >> 1 | carry << 7
            }
            with_carry => {
                let sum = u16::from(source) + u16::from(data) + u16::from(carry * (with_carry as u8 & 1));
                self.carry = sum > 0xff;
                sum as u8
            }
        };
        if operation == 6 {
            self.set8(reg::SFBR, result);
        } else {
            self.poke(at, result);
        }
    }

    // ---- transfer control ----

    fn control(&mut self, first: u32, second: u32) -> Flow {
        let wanted = first >> 19 & 1 != 0;
        let mut holds = wanted;
        let test = |bit: u32| first >> bit & 1 != 0;
        if test(21) {
            holds = self.carry;
        }
        if holds == wanted && test(17) {
            let current = match self.phase_now(test(16)) {
                Line::Phase(phase) => phase,
                Line::Later => return Flow::Stall(Stalled::Other(first, second)),
                Line::Nobody => return Flow::Stop,
            };
            holds = current == Phase::of(first >> 24 & 7);
        }
        if holds == wanted && test(18) {
            let mask = !(first >> 8) as u8;
            holds = self.get8(reg::SFBR) & mask == first as u8 & mask;
        }
        // Without any test, "if false" is no operation.
        if holds != wanted || !wanted && !test(21) && !test(17) && !test(18) {
            return Flow::Next;
        }
        let next = self.get32(reg::DSP);
        match first >> 27 & 7 {
            0 => self.jump_to(test(23), second),
            1 => {
                self.set32(reg::TEMP, next);
                self.jump_to(test(23), second);
            }
            2 => self.set32(reg::DSP, self.get32(reg::TEMP)),
            3 if test(20) => {
                self.set8(reg::ISTAT0, self.get8(reg::ISTAT0) | chip::ISTAT_FLY);
                self.update_interrupt();
            }
            3 => {
                self.dma_interrupt(chip::DSTAT_SCRIPT);
                return Flow::Stop;
            }
            _ => return self.illegal(),
        }
        Flow::Next
    }

    // ---- memory ----

    fn memory_move(&mut self, first: u32, source: u32, budget: &mut u64) -> Flow {
        let Some(target) = self.fetch32() else { return self.fault() };
        self.set32(reg::TEMP, target);
        let mut left = (first & 0xff_ffff) as usize;
        if left == 0 {
            return self.illegal();
        }
        *budget = budget.saturating_sub(left as u64 / 64);
        let mut from = u64::from(self.get32(reg::MMRS)) << 32 | u64::from(source);
        let mut to = u64::from(self.get32(reg::MMWS)) << 32 | u64::from(target);
        let mut bytes = [0; 4096];
        while left > 0 {
            let piece = &mut bytes[..left.min(4096)];
            let step = piece.len() as u64;
            if self.copy_in(from, piece).and_then(|()| self.copy_out(to, piece)).is_none() {
                return self.fault();
            }
            (from, to) = (from.wrapping_add(step), to.wrapping_add(step));
            left -= step as usize;
        }
        Flow::Next
    }

    /// The offset of an address within the chip's own registers in memory.
    fn own_register(&self, address: u64, len: usize) -> Option<u8> {
        let base = self.core.regions().iter().find(|region| region.index == 1)?.address?;
        let offset = address.checked_sub(base)?;
        (offset + len as u64 <= 256).then_some(offset as u8)
    }

    fn copy_in(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        if bytes.len() <= 4
            && let Some(at) = self.own_register(address, bytes.len())
        {
            (at..).zip(bytes).for_each(|(at, byte)| *byte = self.read(at));
            return Some(());
        }
        self.dma.read(address, bytes).ok()
    }

    fn copy_out(&mut self, address: u64, bytes: &[u8]) -> Option<()> {
        if bytes.len() <= 4
            && let Some(at) = self.own_register(address, bytes.len())
        {
            (at..).zip(bytes).for_each(|(at, &byte)| self.poke(at, byte));
            return Some(());
        }
        self.dma.write(address, bytes).ok()
    }

    fn load_or_store(&mut self, first: u32, second: u32) -> Flow {
        let count = (first & 7) as usize;
        let at = (first >> 16) as u8;
        if count == 0 || count > 4 || usize::from(at) + count > 256 {
            return self.illegal();
        }
        let address = if first >> 28 & 1 != 0 { self.entry(second) } else { second.into() };
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..count];
        let done = if first >> 24 & 1 != 0 {
            let read = self.dma.read(address, bytes);
            if read.is_ok() {
                (at..).zip(bytes).for_each(|(at, byte)| self.poke(at, *byte));
            }
            read
        } else {
            (at..).zip(&mut *bytes).for_each(|(at, byte)| *byte = self.read(at));
            self.dma.write(address, bytes)
        };
        if done.is_ok() { Flow::Next } else { self.fault() }
    }
}
