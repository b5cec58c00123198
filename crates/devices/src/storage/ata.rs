//! ATA/ATAPI-7 commands: what a taskfile asks of a disk or CD drive, and IDENTIFY data. How
//! the bytes travel (PIO, bus master, AHCI) is the controller's business.

use super::cdrom::{Cdrom, padded};
use super::{Conf, Geometry};
use base::Mutex;
use block::{Backend, Request};

pub const BUSY: u8 = 0x80;
pub const READY: u8 = 0x40;
pub const SEEK: u8 = 0x10;
pub const DRQ: u8 = 0x08;
pub const ERR: u8 = 0x01;
pub const ABORTED: u8 = 0x04;
const ID_NOT_FOUND: u8 = 0x10;
pub const UNCORRECTABLE: u8 = 0x40;
pub const SECTOR: u64 = 512;
/// Most sectors in one block of READ MULTIPLE.
const MAX_MULTIPLE: u8 = 16;

/// The command block registers; `hob` holds what was written before the last write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taskfile {
    pub features: u8,
    pub count: u8,
    pub low: u8,
    pub mid: u8,
    pub high: u8,
    pub device: u8,
    pub hob: [u8; 5],
    pub status: u8,
    pub error: u8,
}

impl Taskfile {
    /// What a drive shows after reset (ATA-7 §5.15).
    pub fn signature(&mut self, packet: bool) {
        (self.count, self.low) = (1, 1);
        (self.mid, self.high) = if packet { (0x14, 0xeb) } else { (0, 0) };
        self.device &= !0x0f;
        self.error = 1;
    }
}

/// What a command leads to.
#[derive(Debug)]
pub enum Action {
    Done,
    /// The error register's value.
    Fail(u8),
    /// Bytes for the host, ready now, by PIO.
    Answer(Vec<u8>),
    /// From the disk to the host; `block` bytes with each PIO request.
    Read {
        offset: u64,
        len: u64,
        block: usize,
        dma: bool,
    },
    /// From the host to the disk.
    Write {
        offset: u64,
        len: u64,
        block: usize,
        dma: bool,
        fua: bool,
    },
    /// No data for the host.
    Disk(Request),
    /// Ranges to discard come from the host, by DMA.
    Trim {
        len: u64,
    },
    /// A command packet follows; its data by DMA or not.
    Packet {
        dma: bool,
    },
    /// Both drives of the channel reset.
    Diagnose,
    /// Only this drive resets, without interrupt.
    DeviceReset,
}

/// Who a drive is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub serial: String,
    pub model: String,
    pub version: String,
    pub wwn: u64,
    /// Nominal rotation rate (1: not rotating, 0: not told).
    pub rotation: u16,
    /// Serial ATA.
    pub sata: bool,
}

/// A disk or CD drive as it understands commands.
pub struct Drive {
    pub backend: Backend,
    pub conf: Conf,
    identity: Identity,
    /// Set for CD drives.
    pub cdrom: Option<Cdrom>,
    state: Mutex<State>,
}

struct State {
    multiple: u8,
    /// Heads and sectors a track as software chose them.
    heads: u32,
    sectors: u32,
    /// Selected transfer mode, the SET FEATURES value.
    mode: u8,
}

enum Size {
    Short,
    Long,
}

impl Drive {
    pub fn new(backend: Backend, conf: Conf, identity: Identity, cdrom: Option<Cdrom>) -> Self {
        let drive = Drive {
            state: Mutex::new(State { multiple: MAX_MULTIPLE, heads: 16, sectors: 63, mode: 0x45 }),
            backend,
            conf,
            identity,
            cdrom,
        };
        drive.reset(true);
        drive
    }

    /// Software resets keep what SET FEATURES and SET MULTIPLE chose.
    pub fn reset(&self, hard: bool) {
        let geometry = self.geometry();
        let mut state = self.state.lock();
        (state.heads, state.sectors) = (geometry.heads, geometry.sectors);
        if hard {
            (state.multiple, state.mode) = (MAX_MULTIPLE, 0x45);
        }
        drop(state);
        if let Some(cdrom) = &self.cdrom
            && hard
        {
            cdrom.reset();
        }
    }

    pub fn is_packet(&self) -> bool {
        self.cdrom.is_some()
    }

    fn geometry(&self) -> Geometry {
        self.conf.geometry(self.backend.size())
    }

    fn sectors(&self) -> u64 {
        self.backend.size() / SECTOR
    }

    /// Takes a command; may change the registers it reports in.
    pub fn start(&self, task: &mut Taskfile, command: u8) -> Action {
        match (command, self.is_packet()) {
            (0x08, true) => Action::DeviceReset,
            (0x90, _) => Action::Diagnose,
            (0xa0, true) => self.start_packet(task),
            (0xa1, true) => Action::Answer(self.identify_packet()),
            (0xec | 0x20 | 0x21, true) => {
                // A packet device aborts these and shows its signature.
                task.signature(true);
                Action::Fail(ABORTED)
            }
            (0xef, _) => self.set_features(task),
            (0xe5 | 0x98, _) => {
                task.count = 0xff;
                Action::Done
            }
            (0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99, _) => Action::Done,
            (_, true) => Action::Fail(ABORTED),
            (_, false) => self.start_disk(task, command),
        }
    }

    fn start_disk(&self, task: &mut Taskfile, command: u8) -> Action {
        let multiple = usize::from(self.state.lock().multiple) * SECTOR as usize;
        let sector = SECTOR as usize;
        match command {
            0x20 | 0x21 => self.read(task, Size::Short, sector, false),
            0x24 => self.read(task, Size::Long, sector, false),
            0xc4 if multiple != 0 => self.read(task, Size::Short, multiple, false),
            0x29 if multiple != 0 => self.read(task, Size::Long, multiple, false),
            0xc8 | 0xc9 => self.read(task, Size::Short, sector, true),
            0x25 => self.read(task, Size::Long, sector, true),
            0x30 | 0x31 => self.write(task, Size::Short, sector, (false, false)),
            0x34 => self.write(task, Size::Long, sector, (false, false)),
            0xc5 if multiple != 0 => self.write(task, Size::Short, multiple, (false, false)),
            0x39 if multiple != 0 => self.write(task, Size::Long, multiple, (false, false)),
            0xce if multiple != 0 => self.write(task, Size::Long, multiple, (false, true)),
            0xca | 0xcb => self.write(task, Size::Short, sector, (true, false)),
            0x35 => self.write(task, Size::Long, sector, (true, false)),
            0x3d => self.write(task, Size::Long, sector, (true, true)),
            0x40 | 0x41 => self.verify(task, Size::Short),
            0x42 => self.verify(task, Size::Long),
            0x10..=0x1f => Action::Done,
            0x70 => self.verify(&Taskfile { count: 1, ..*task }, Size::Short),
            0x91 => self.set_geometry(task),
            0xc6 => self.set_multiple(task),
            0xe7 | 0xea => Action::Disk(Request::Flush),
            0xec => Action::Answer(self.identify()),
            0xf8 => self.native_max(task, Size::Short),
            0x27 => self.native_max(task, Size::Long),
            0x06 if task.features & 1 != 0 && self.conf.discard_granularity != 0 => {
                let blocks = u64::from(task.count) | u64::from(task.hob[1]) << 8;
                if blocks == 0 { Action::Done } else { Action::Trim { len: blocks * SECTOR } }
            }
            _ => Action::Fail(ABORTED),
        }
    }

    /// Start and length in bytes of the sectors a taskfile names.
    fn range(&self, task: &Taskfile, size: Size) -> Option<(u64, u64)> {
        let (count, sector) = match size {
            Size::Long => {
                let count = u64::from(task.count) | u64::from(task.hob[1]) << 8;
                let low = [task.low, task.mid, task.high, task.hob[2], task.hob[3], task.hob[4], 0, 0];
                (if count == 0 { 65536 } else { count }, u64::from_le_bytes(low))
            }
            Size::Short => {
                let count = if task.count == 0 { 256 } else { u64::from(task.count) };
                (count, self.short_address(task)?)
            }
        };
        let end = sector.checked_add(count)?;
        (end <= self.sectors()).then_some((sector * SECTOR, count * SECTOR))
    }

    fn short_address(&self, task: &Taskfile) -> Option<u64> {
        let head = u64::from(task.device & 0x0f);
        if task.device & 0x40 != 0 {
            return Some(
                head << 24 | u64::from(task.high) << 16 | u64::from(task.mid) << 8 | u64::from(task.low),
            );
        }
        let (heads, sectors) = {
            let state = self.state.lock();
            (u64::from(state.heads), u64::from(state.sectors))
        };
        let cylinder = u64::from(task.high) << 8 | u64::from(task.mid);
        let sector = u64::from(task.low).checked_sub(1).filter(|&sector| sector < sectors)?;
        (head < heads).then_some((cylinder * heads + head) * sectors + sector)
    }

    fn read(&self, task: &Taskfile, size: Size, block: usize, dma: bool) -> Action {
        match self.range(task, size) {
            Some((offset, len)) => Action::Read { offset, len, block, dma },
            None => Action::Fail(ABORTED | ID_NOT_FOUND),
        }
    }

    fn write(&self, task: &Taskfile, size: Size, block: usize, (dma, fua): (bool, bool)) -> Action {
        match self.range(task, size) {
            _ if self.backend.is_read_only() => Action::Fail(ABORTED),
            Some((offset, len)) => Action::Write { offset, len, block, dma, fua },
            None => Action::Fail(ABORTED | ID_NOT_FOUND),
        }
    }

    fn verify(&self, task: &Taskfile, size: Size) -> Action {
        if self.range(task, size).is_some() { Action::Done } else { Action::Fail(ABORTED | ID_NOT_FOUND) }
    }

    fn set_geometry(&self, task: &Taskfile) -> Action {
        if task.count == 0 {
            return Action::Fail(ABORTED);
        }
        let mut state = self.state.lock();
        (state.heads, state.sectors) = (u32::from(task.device & 0x0f) + 1, task.count.into());
        Action::Done
    }

    fn set_multiple(&self, task: &Taskfile) -> Action {
        if task.count > MAX_MULTIPLE || (task.count != 0 && !task.count.is_power_of_two()) {
            return Action::Fail(ABORTED);
        }
        self.state.lock().multiple = task.count;
        Action::Done
    }

    fn native_max(&self, task: &mut Taskfile, size: Size) -> Action {
        let last = self.sectors().saturating_sub(1);
        let bytes = match size {
            Size::Short => last.min(0xfff_ffff),
            Size::Long => last,
        }
        .to_le_bytes();
        (task.low, task.mid, task.high) = (bytes[0], bytes[1], bytes[2]);
        match size {
            Size::Short => task.device = task.device & 0xf0 | bytes[3] & 0x0f,
            Size::Long => task.hob[2..5].copy_from_slice(&bytes[3..6]),
        }
        Action::Done
    }

    fn set_features(&self, task: &Taskfile) -> Action {
        match task.features {
            0x02 | 0x82 if !self.is_packet() => {
                let on = task.features == 0x02;
                self.backend.set_write_cache(on);
                if on { Action::Done } else { Action::Disk(Request::Flush) }
            }
            0x03 => {
                let known = matches!(task.count, 0x00 | 0x01 | 0x08..=0x0c | 0x20..=0x22 | 0x40..=0x45);
                if !known {
                    return Action::Fail(ABORTED);
                }
                if task.count >= 0x20 {
                    self.state.lock().mode = task.count;
                }
                Action::Done
            }
            // Read look-ahead and power-on defaults have no effect on what is seen.
            0x55 | 0xaa | 0x66 | 0xcc | 0x05 | 0x85 => Action::Done,
            _ => Action::Fail(ABORTED),
        }
    }

    fn start_packet(&self, task: &mut Taskfile) -> Action {
        // Overlapped operation is not offered.
        if task.features & 2 != 0 {
            return Action::Fail(ABORTED);
        }
        task.count = 1;
        Action::Packet { dma: task.features & 1 != 0 }
    }

    fn identify(&self) -> Vec<u8> {
        let (sectors, geometry) = (self.sectors(), self.geometry());
        let state = self.state.lock();
        let mut words = Words::new(0x0040, &self.identity, state.mode);
        words.set(1, geometry.cylinders as u16);
        words.set(3, geometry.heads as u16);
        words.set(6, geometry.sectors as u16);
        words.set(47, 0x8000 | u16::from(MAX_MULTIPLE));
        words.set(48, 1);
        words.set(49, 1 << 11 | 1 << 9 | 1 << 8);
        words.set(54, geometry.cylinders as u16);
        words.set(55, state.heads as u16);
        words.set(56, state.sectors as u16);
        words.set(59, 0x100 | u16::from(state.multiple));
        let capacity = u64::from(geometry.cylinders * geometry.heads) * u64::from(geometry.sectors);
        words.set_long(57, capacity, 2);
        words.set_long(60, sectors.min(0xfff_ffff), 2);
        words.set(80, 0xf0);
        words.set(81, 0x16);
        let cache = u16::from(self.backend.write_cache()) << 5;
        let wwn = u16::from(self.identity.wwn != 0) << 8;
        words.set(82, 1 << 14 | 1 << 5);
        words.set(83, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10);
        words.set(84, 1 << 14 | 1 << 6 | wwn);
        words.set(85, 1 << 14 | cache);
        words.set(86, 1 << 13 | 1 << 12 | 1 << 10);
        words.set(87, 1 << 14 | 1 << 6 | wwn);
        words.set_long(100, sectors, 4);
        self.set_block_sizes(&mut words);
        for (i, word) in (0..4).zip(108..) {
            words.set(word, (self.identity.wwn >> (48 - 16 * i)) as u16);
        }
        words.set(217, self.identity.rotation);
        words.finish()
    }

    fn set_block_sizes(&self, words: &mut Words) {
        let ratio = (self.conf.physical / self.conf.logical).ilog2() as u16;
        if ratio > 0 {
            words.set(106, 0x6000 | ratio);
        }
        if self.conf.discard_granularity != 0 {
            // Reads of trimmed sectors are not promised to give zeroes.
            words.set(105, 1);
            words.set(169, 1);
        }
    }

    fn identify_packet(&self) -> Vec<u8> {
        let state = self.state.lock();
        let mut words = Words::new(0x85c0, &self.identity, state.mode);
        words.set(48, 1);
        words.set(49, 1 << 9 | 1 << 8);
        words.set(71, 30);
        words.set(72, 30);
        words.set(80, 0x1e);
        if self.identity.wwn != 0 {
            words.set(87, 1 << 14 | 1 << 8);
            for (i, word) in (0..4).zip(108..) {
                words.set(word, (self.identity.wwn >> (48 - 16 * i)) as u16);
            }
        }
        words.finish()
    }
}

/// IDENTIFY data: 256 words.
struct Words([u16; 256]);

impl Words {
    /// What disks and packet devices have in common.
    fn new(kind: u16, identity: &Identity, mode: u8) -> Self {
        let mut words = Words([0; 256]);
        words.set(0, kind);
        words.text(10, &identity.serial, 20);
        words.set(20, 3);
        words.set(21, 512);
        words.set(22, 4);
        words.text(23, &identity.version, 8);
        words.text(27, &identity.model, 40);
        words.set(51, 0x200);
        words.set(52, 0x200);
        words.set(53, 7);
        // Supported modes in the low byte, the selected one in the high byte.
        let selected = |first: u8, last: u8| match mode {
            mode if (first..=last).contains(&mode) => 0x100u16 << (mode - first),
            _ => 0,
        };
        words.set(63, 0x07 | selected(0x20, 0x22));
        words.set(88, 0x3f | selected(0x40, 0x45));
        words.set(64, 3);
        (65..=68).for_each(|at| words.set(at, 120));
        if identity.sata {
            // Generation 1 speed, no queueing.
            words.set(76, 1 << 1);
        } else {
            words.set(93, 1 << 14 | 1 << 13 | 1);
        }
        words
    }

    fn set(&mut self, at: usize, value: u16) {
        self.0[at] = value;
    }

    fn set_long(&mut self, at: usize, value: u64, words: usize) {
        (0..words).for_each(|i| self.0[at + i] = (value >> (16 * i)) as u16);
    }

    /// Text with the bytes of each word swapped.
    fn text(&mut self, at: usize, text: &str, len: usize) {
        for (i, pair) in padded(text, len).chunks(2).enumerate() {
            self.0[at + i] = u16::from_be_bytes([pair[0], pair[1]]);
        }
    }

    fn finish(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// The discards that a block of TRIM ranges asks for: (offset, length) in bytes.
pub fn trim_ranges(data: &[u8]) -> Vec<(u64, u64)> {
    let entries = data.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    entries
        .map(|entry| ((entry & 0xffff_ffff_ffff) * SECTOR, (entry >> 48) * SECTOR))
        .filter(|&(_, len)| len != 0)
        .collect()
}
