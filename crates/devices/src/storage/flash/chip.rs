//! What a NOR flash with bytes as its words makes of writes: Intel's command set.
//!
//! Sources: Intel AP-646 "Common Flash Interface (CFI) and Command Sets" (commands, status
//! register), JEDEC JESD68.01 (query structure).

/// Bytes that are erased together.
pub const SECTOR: u64 = 4096;
/// Log 2 of the most bytes that one buffered write takes.
const BUFFER: u32 = 11;
const MANUFACTURER: u8 = 0x89;
const DEVICE: u8 = 0x18;

/// Status register bits.
mod status {
    pub const READY: u8 = 0x80;
    pub const ERASE_FAILED: u8 = 0x20;
    pub const PROGRAM_FAILED: u8 = 0x10;
}

/// What reads give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Array,
    Status,
    Identity,
    Query,
}

/// What the next write belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expects {
    Command,
    Program,
    EraseConfirm,
    LockConfirm,
    Count,
    /// So many more values of a buffered write, and those that came.
    Values(u32, Vec<(u64, Vec<u8>)>),
    BufferConfirm(Vec<(u64, Vec<u8>)>),
}

/// What a write does to the contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Bytes replaced at offsets.
    Program(Vec<(u64, Vec<u8>)>),
    /// The sector of this offset becomes all ones.
    Erase(u64),
}

/// The command state of a chip.
pub struct Chip {
    len: u64,
    read_only: bool,
    status: u8,
    shows: Shows,
    expects: Expects,
}

impl Chip {
    /// Of `len` bytes, a multiple of [`SECTOR`].
    pub fn new(len: u64, read_only: bool) -> Chip {
        Chip { len, read_only, status: status::READY, shows: Shows::Array, expects: Expects::Command }
    }

    pub fn reset(&mut self) {
        *self = Chip::new(self.len, self.read_only);
    }

    /// Whether reads give the contents.
    pub fn shows_array(&self) -> bool {
        self.shows == Shows::Array
    }

    /// What a read of anything but the contents gives.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let byte = match self.shows {
            Shows::Identity => match offset & 0xff {
                0 => MANUFACTURER,
                1 => DEVICE,
                // Not locked.
                _ => 0,
            },
            Shows::Query => self.query(offset & 0xff),
            Shows::Status | Shows::Array => self.status,
        };
        // Two chips of 16 bits side by side would answer a wider read so.
        let upper = if size > 2 { u64::from(byte) << 16 } else { 0 };
        u64::from(byte) | upper
    }

    fn query(&self, at: u64) -> u8 {
        let [low, high, ..] = (self.len / SECTOR - 1).to_le_bytes();
        match at {
            0x10..=0x12 => b"QRY"[at as usize - 0x10],
            // Primary command set 1 (Intel), its table at 31h.
            0x13 => 0x01,
            0x15 => 0x31,
            // 4.5 to 5.5 V; typical and longest times.
            0x1b => 0x45,
            0x1c => 0x55,
            0x1f | 0x20 => 0x07,
            0x21 => 0x0a,
            0x23..=0x25 => 0x04,
            0x27 => self.len.next_power_of_two().trailing_zeros() as u8,
            0x28 => 0x02,
            0x2a => BUFFER as u8,
            // One region of equal sectors: their number less one, their size in 256 bytes.
            0x2c => 0x01,
            0x2d => low,
            0x2e => high,
            0x2f => (SECTOR >> 8) as u8,
            0x31..=0x33 => b"PRI"[at as usize - 0x31],
            0x34 => b'1',
            0x35 => b'0',
            // Protection fields.
            0x3f => 0x01,
            _ => 0,
        }
    }

    /// Takes a write of `size` bytes (1, 2 or 4).
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Effect {
        let byte = value as u8;
        match std::mem::replace(&mut self.expects, Expects::Command) {
            Expects::Command => self.command(byte),
            Expects::Program => return self.program(vec![(offset, bytes(value, size))]),
            Expects::EraseConfirm if byte == 0xd0 => {
                self.status |= status::READY;
                if !self.read_only {
                    return Effect::Erase(offset & !(SECTOR - 1));
                }
                self.status |= status::ERASE_FAILED;
            }
            Expects::LockConfirm if matches!(byte, 0x01 | 0xd0) => self.status |= status::READY,
            Expects::Count => {
                let count = (value & 0xffff) as u32 + 1;
                if count > 1 << BUFFER {
                    return self.abort();
                }
                self.expects = Expects::Values(count, Vec::new());
            }
            Expects::Values(left, mut values) => {
                values.push((offset, bytes(value, size)));
                self.expects = match left - 1 {
                    0 => Expects::BufferConfirm(values),
                    left => Expects::Values(left, values),
                };
            }
            Expects::BufferConfirm(values) if byte == 0xd0 => {
                // All of it in one buffer's place.
                let place = |at: u64| at >> BUFFER;
                let first = values.first().map_or(0, |(at, _)| place(*at));
                if values
                    .iter()
                    .any(|(at, bytes)| place(*at) != first || place(at + bytes.len() as u64 - 1) != first)
                {
                    return self.abort();
                }
                return self.program(values);
            }
            Expects::EraseConfirm | Expects::LockConfirm | Expects::BufferConfirm(_) => {
                self.shows = Shows::Array;
            }
        }
        Effect::None
    }

    fn command(&mut self, command: u8) {
        let (shows, expects) = match command {
            0x10 | 0x40 => (Shows::Status, Expects::Program),
            0x20 => (Shows::Status, Expects::EraseConfirm),
            0x50 => {
                self.status = 0;
                (Shows::Array, Expects::Command)
            }
            0x60 => (Shows::Status, Expects::LockConfirm),
            0x70 => (Shows::Status, Expects::Command),
            0x90 => (Shows::Identity, Expects::Command),
            0x98 => (Shows::Query, Expects::Command),
            0xe8 => {
                self.status |= status::READY;
                (Shows::Status, Expects::Count)
            }
            // FFh, and what the chip does not know.
            _ => (Shows::Array, Expects::Command),
        };
        (self.shows, self.expects) = (shows, expects);
    }

    fn program(&mut self, values: Vec<(u64, Vec<u8>)>) -> Effect {
        self.status |= status::READY;
        if self.read_only {
            self.status |= status::PROGRAM_FAILED;
            return Effect::None;
        }
        Effect::Program(values)
    }

    fn abort(&mut self) -> Effect {
        self.status |= status::READY | status::PROGRAM_FAILED | status::ERASE_FAILED;
        self.shows = Shows::Status;
        Effect::None
    }

    /// The last program or erase did not reach the drive.
    pub fn failed(&mut self, erase: bool) {
        self.status |= if erase { status::ERASE_FAILED } else { status::PROGRAM_FAILED };
    }
}

fn bytes(value: u64, size: u8) -> Vec<u8> {
    value.to_le_bytes()[..usize::from(size.min(8))].to_vec()
}
