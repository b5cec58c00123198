//! Command blocks of one logical unit.

use crate::storage::Conf;
use crate::storage::cdrom::{
    Cdrom, INVALID_FIELD, INVALID_OPCODE, LBA_OUT_OF_RANGE, MEDIUM_CHANGED, NO_MEDIUM, Reply, Sense,
    fixed_sense, padded, sense,
};
use base::Mutex;
use block::{Backend, Media, Request};

pub const WRITE_PROTECTED: Sense = sense(7, 0x27, 0);
pub const WRITE_ERROR: Sense = sense(3, 0x0c, 2);
const PARAMETER_LENGTH: Sense = sense(5, 0x1a, 0);
const INVALID_PARAMETER: Sense = sense(5, 0x26, 0);
const CAPACITY_CHANGED: Sense = sense(6, 0x2a, 9);
const NOT_READY_STOPPED: Sense = sense(2, 0x04, 2);

/// What a command block leads to.
#[derive(Debug)]
pub enum Command {
    Done,
    /// For the host.
    Data(Vec<u8>),
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    /// Parameters from the host; [`Lun::taken`] goes on with them.
    Take {
        len: usize,
    },
    /// Requests of the disk, in order.
    Disk(Vec<Request>),
    Check(Sense),
}

/// What INQUIRY and its pages tell.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub vendor: String,
    pub product: String,
    pub version: String,
    pub device_id: String,
    pub wwn: u64,
    pub port_wwn: u64,
    pub port_index: u16,
    pub scsi_version: u8,
    pub removable: bool,
    pub dpofua: bool,
    pub rotation: u16,
    /// Bytes.
    pub max_unmap: u64,
    pub max_io: u64,
}

pub struct Lun {
    pub backend: Backend,
    pub conf: Conf,
    pub names: Names,
    pub cdrom: Option<Cdrom>,
    /// How messages name the device.
    pub id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sense: Sense,
    attention: Option<Sense>,
    stopped: bool,
}

/// A disk with `removable=on`: its medium can be changed, it has no tray.
impl Media for Lun {
    fn changed(&self, _loaded: bool) {
        self.state.lock().attention = Some(MEDIUM_CHANGED);
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn limited(mut data: Vec<u8>, allowed: u64) -> Command {
    data.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
    if data.is_empty() { Command::Done } else { Command::Data(data) }
}

/// Parameter lists longer than this are refused.
const MAX_PARAMETERS: u64 = 64 << 10;
/// Descriptors in one UNMAP.
const MAX_UNMAP_DESCRIPTORS: u32 = 255;

impl Lun {
    pub fn new(backend: Backend, conf: Conf, names: Names, cdrom: Option<Cdrom>, id: String) -> Self {
        Lun { backend, conf, names, cdrom, id, state: Mutex::default() }
    }

    pub fn reset(&self) {
        *self.state.lock() = State::default();
        if let Some(cdrom) = &self.cdrom {
            cdrom.reset();
        }
    }

    pub fn size_changed(&self) {
        self.state.lock().attention = Some(CAPACITY_CHANGED);
    }

    pub fn set_sense(&self, sense: Sense) {
        self.state.lock().sense = sense;
    }

    fn block(&self) -> u64 {
        self.conf.logical.into()
    }

    fn blocks(&self) -> u64 {
        self.backend.size() / self.block()
    }

    /// Executes a command block (INQUIRY, REPORT LUNS and REQUEST SENSE included).
    pub fn start(&self, cdb: &[u8; 32], numbers: &[u16]) -> Command {
        if cdb[0] == 0xa0 {
            let len = be(&cdb[6..10]);
            return if len < 16 {
                Command::Check(INVALID_FIELD)
            } else {
                limited(super::report_luns(numbers), len)
            };
        }
        let command = match &self.cdrom {
            Some(cdrom) => self.start_cdrom(cdrom, cdb),
            None => self.start_disk(cdb),
        };
        if let Command::Check(sense) = command {
            self.set_sense(sense);
        }
        command
    }

    fn start_cdrom(&self, cdrom: &Cdrom, cdb: &[u8; 32]) -> Command {
        let mut block = [0; 16];
        block.copy_from_slice(&cdb[..16]);
        match cdb[0] {
            0x12 if cdb[1] & 1 != 0 => return self.vital_inquiry(cdb),
            // The drive itself knows the ten-byte form.
            0x1a => {
                block[0] = 0x5a;
                (block[3], block[4], block[7], block[8]) = (0, 0, 1, 0);
                return match cdrom.execute(&block) {
                    Reply::Data(data) => {
                        let mut short = vec![data[1].saturating_sub(3), data[2], 0, 0];
                        short.extend(&data[8..]);
                        limited(short, cdb[4].into())
                    }
                    other => self.from_reply(other),
                };
            }
            0x08 => {
                let count = if cdb[4] == 0 { 256u16 } else { cdb[4].into() }.to_be_bytes();
                block =
                    [0x28, 0, 0, cdb[1] & 0x1f, cdb[2], cdb[3], 0, count[0], count[1], 0, 0, 0, 0, 0, 0, 0];
            }
            _ => {}
        }
        match cdrom.execute(&block) {
            Reply::Data(mut data) if cdb[0] == 0x12 && cdb[1] & 1 == 0 && data.len() > 3 => {
                // On this bus the drive claims SPC-3, as a rule, and the usual response format.
                (data[2], data[3]) = (self.names.scsi_version, 0x12);
                Command::Data(data)
            }
            reply => self.from_reply(reply),
        }
    }

    #[allow(clippy::wrong_self_convention)]
    fn from_reply(&self, reply: Reply) -> Command {
        match reply {
            Reply::Done => Command::Done,
            Reply::Data(data) => Command::Data(data),
            Reply::Read { offset, len } => Command::Read { offset, len },
            Reply::Check(sense) => Command::Check(sense),
        }
    }

    fn start_disk(&self, cdb: &[u8; 32]) -> Command {
        if !matches!(cdb[0], 0x12 | 0x03)
            && let Some(sense) = self.state.lock().attention.take()
        {
            return Command::Check(sense);
        }
        let stopped = self.state.lock().stopped;
        match cdb[0] {
            0x12 => self.inquiry(cdb),
            0x03 => {
                let sense = std::mem::take(&mut self.state.lock().sense);
                limited(fixed_sense(sense), cdb[4].into())
            }
            0x1b => self.start_stop(cdb),
            0x1a => self.mode_sense(cdb[2], cdb[1] & 8 != 0, cdb[4].into(), true),
            0x5a => self.mode_sense(cdb[2], cdb[1] & 8 != 0, be(&cdb[7..9]), false),
            0x15 => self.take(cdb[4].into()),
            0x55 => self.take(be(&cdb[7..9])),
            0x16 | 0x17 | 0x56 | 0x57 | 0x1d | 0x1e => Command::Done,
            _ if stopped => Command::Check(NOT_READY_STOPPED),
            _ if !self.backend.is_inserted() => Command::Check(NO_MEDIUM),
            0x00 => Command::Done,
            0x25 => self.read_capacity_10(),
            0x9e if cdb[1] & 0x1f == 0x10 => self.read_capacity_16(cdb),
            0x35 | 0x91 => Command::Disk(vec![Request::Flush]),
            0x42 => self.take(be(&cdb[7..9])),
            0x41 => self.write_same(cdb, be(&cdb[2..6]), be(&cdb[7..9])),
            0x93 => self.write_same(cdb, be(&cdb[2..10]), be(&cdb[10..14])),
            _ => self.transfer(cdb),
        }
    }

    fn take(&self, len: u64) -> Command {
        match len {
            0 => Command::Done,
            1..=MAX_PARAMETERS => Command::Take { len: len as usize },
            _ => Command::Check(PARAMETER_LENGTH),
        }
    }

    /// Reads, writes and verifies of all sizes.
    fn transfer(&self, cdb: &[u8; 32]) -> Command {
        let (block, count) = match cdb[0] {
            0x08 | 0x0a => {
                let count = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
                (be(&[cdb[1] & 0x1f, cdb[2], cdb[3]]), count)
            }
            0x28 | 0x2a | 0x2e | 0x2f | 0x34 | 0x2b => (be(&cdb[2..6]), be(&cdb[7..9])),
            0xa8 | 0xaa | 0xae | 0xaf => (be(&cdb[2..6]), be(&cdb[6..10])),
            0x88 | 0x8a | 0x8e | 0x8f | 0x90 => (be(&cdb[2..10]), be(&cdb[10..14])),
            _ => return Command::Check(INVALID_OPCODE),
        };
        let Some((offset, len)) = self.range(block, count) else { return Command::Check(LBA_OUT_OF_RANGE) };
        let fua = cdb[0] > 0x1f && cdb[1] & 8 != 0;
        match cdb[0] {
            // Prefetch, seek and verify without data have nothing to move.
            0x34 | 0x90 | 0x2b => Command::Done,
            0x2f | 0xaf | 0x8f if cdb[1] & 6 == 0 => Command::Done,
            0x2f | 0xaf | 0x8f => Command::Check(INVALID_FIELD),
            _ if len == 0 => Command::Done,
            0x08 | 0x28 | 0xa8 | 0x88 => Command::Read { offset, len },
            _ if self.backend.is_read_only() => Command::Check(WRITE_PROTECTED),
            _ => Command::Write { offset, len, fua },
        }
    }

    fn range(&self, block: u64, count: u64) -> Option<(u64, u64)> {
        let end = block.checked_add(count)?;
        (end <= self.blocks()).then(|| (block * self.block(), count * self.block()))
    }

    fn inquiry(&self, cdb: &[u8; 32]) -> Command {
        let allowed = be(&cdb[3..5]);
        if cdb[1] & 1 != 0 {
            return self.vital_inquiry(cdb);
        }
        if cdb[2] != 0 {
            return Command::Check(INVALID_FIELD);
        }
        let mut data =
            vec![0, u8::from(self.names.removable) << 7, self.names.scsi_version, 0x12, 31, 0, 0, 0x12];
        data.extend(padded(&self.names.vendor, 8));
        data.extend(padded(&self.names.product, 16));
        data.extend(padded(&self.names.version, 4));
        limited(data, allowed)
    }

    /// INQUIRY of vital product data (SPC-3 §7.6).
    fn vital_inquiry(&self, cdb: &[u8; 32]) -> Command {
        let Some(body) = self.vital_page(cdb[2]) else { return Command::Check(INVALID_FIELD) };
        let kind = if self.cdrom.is_some() { 5 } else { 0 };
        let mut page = vec![kind, cdb[2]];
        page.extend((body.len() as u16).to_be_bytes());
        page.extend(body);
        limited(page, be(&cdb[3..5]))
    }

    fn vital_page(&self, page: u8) -> Option<Vec<u8>> {
        if self.cdrom.is_some() && page >= 0xb0 {
            return None;
        }
        Some(match page {
            0x00 => {
                let mut pages = vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];
                pages.retain(|&page| self.cdrom.is_none() || page < 0xb0);
                pages.retain(|&page| page != 0x80 || !self.conf.serial.is_empty());
                pages
            }
            0x80 if !self.conf.serial.is_empty() => self.conf.serial.bytes().take(36).collect(),
            0x83 => self.identification(),
            0xb0 => self.limits(),
            0xb1 => {
                let mut body = vec![0; 60];
                body[..2].copy_from_slice(&self.names.rotation.to_be_bytes());
                body
            }
            // Unmap and both forms of write same; thin only if discard is offered.
            0xb2 => vec![0, 0xe0, u8::from(self.conf.discard_granularity != 0) + 1, 0],
            _ => return None,
        })
    }

    fn identification(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let id: Vec<u8> = self.names.device_id.bytes().take(255).collect();
        if !id.is_empty() {
            body.extend([2, 0, 0, id.len() as u8]);
            body.extend(id);
        }
        if self.names.wwn != 0 {
            body.extend([1, 3, 0, 8]);
            body.extend(self.names.wwn.to_be_bytes());
        }
        // Of the port, which speaks SAS: its name, its number.
        if self.names.port_wwn != 0 {
            body.extend([0x61, 0x93, 0, 8]);
            body.extend(self.names.port_wwn.to_be_bytes());
        }
        if self.names.port_index != 0 {
            body.extend([0x61, 0x94, 0, 4, 0, 0]);
            body.extend(self.names.port_index.to_be_bytes());
        }
        body
    }

    /// Block limits (SBC-3 §6.5.3).
    fn limits(&self) -> Vec<u8> {
        let blocks = |bytes: u64| u32::try_from(bytes / self.block()).unwrap_or(u32::MAX).to_be_bytes();
        let mut body = vec![0; 60];
        body[0] = 1;
        let minimum = (self.conf.min_io / self.conf.logical) as u16;
        body[2..4].copy_from_slice(&minimum.to_be_bytes());
        body[4..8].copy_from_slice(&blocks(self.names.max_io));
        body[8..12].copy_from_slice(&blocks(self.conf.opt_io.into()));
        body[16..20].copy_from_slice(&blocks(self.names.max_unmap));
        body[20..24].copy_from_slice(&MAX_UNMAP_DESCRIPTORS.to_be_bytes());
        body[24..28].copy_from_slice(&blocks(self.conf.discard_granularity.into()));
        body[32..40].copy_from_slice(&(self.names.max_io / self.block()).to_be_bytes());
        body
    }

    fn read_capacity_10(&self) -> Command {
        let last = u32::try_from(self.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
        Command::Data([last.to_be_bytes(), self.conf.logical.to_be_bytes()].concat())
    }

    fn read_capacity_16(&self, cdb: &[u8; 32]) -> Command {
        let mut data = vec![0; 32];
        data[..8].copy_from_slice(&self.blocks().saturating_sub(1).to_be_bytes());
        data[8..12].copy_from_slice(&self.conf.logical.to_be_bytes());
        data[13] = (self.conf.physical / self.conf.logical).ilog2() as u8;
        if self.conf.discard_granularity != 0 {
            data[14] = 0x80;
        }
        limited(data, be(&cdb[10..14]))
    }

    fn start_stop(&self, cdb: &[u8; 32]) -> Command {
        if cdb[4] >> 4 == 0 {
            self.state.lock().stopped = cdb[4] & 1 == 0;
        }
        Command::Done
    }

    fn caching_page(&self, changeable: bool) -> Vec<u8> {
        let mut page = vec![0; 20];
        (page[0], page[1]) = (8, 18);
        if changeable || self.backend.write_cache() {
            page[2] = 4;
        }
        page
    }

    /// Error recovery, both geometries, caching (SPC-3 §7.4, SBC-3 §6.4; SCSI-2 §9.3.3).
    fn mode_page(&self, code: u8, changeable: bool) -> Vec<u8> {
        let geometry = self.conf.geometry(self.backend.size());
        let cylinders = geometry.cylinders.to_be_bytes();
        let (heads, sectors) = (geometry.heads as u8, geometry.sectors as u8);
        let block = (self.conf.logical as u16).to_be_bytes();
        let mut page = match code {
            0x01 => vec![1, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            0x04 => {
                let mut page = vec![4, 22, cylinders[1], cylinders[2], cylinders[3], heads];
                page.extend([0; 8]);
                page.extend([0xff, 0xff, 0xff, 0, 0, 0, 0x15, 0x18, 0, 0]);
                page
            }
            0x05 => {
                let mut page = vec![5, 30, 0x13, 0x88, heads, sectors, block[0], block[1]];
                page.extend([cylinders[2], cylinders[3]]);
                page.extend([0; 18]);
                page.extend([0x15, 0x18, 0, 0]);
                page
            }
            _ => return self.caching_page(changeable),
        };
        if changeable {
            page[2..].fill(0);
        }
        page
    }

    fn mode_sense(&self, selector: u8, no_descriptor: bool, allowed: u64, short: bool) -> Command {
        let changeable = match selector >> 6 {
            3 => return Command::Check(sense(5, 0x39, 0)),
            control => control == 1,
        };
        let pages = match selector & 0x3f {
            page @ (0x01 | 0x04 | 0x05 | 0x08) => self.mode_page(page, changeable),
            0x3f => [1, 4, 5, 8].map(|page| self.mode_page(page, changeable)).concat(),
            0x00 => Vec::new(),
            _ => return Command::Check(INVALID_FIELD),
        };
        let mut specific = u8::from(self.names.dpofua) << 4;
        if self.backend.is_read_only() {
            specific |= 0x80;
        }
        let mut descriptor = Vec::new();
        if !no_descriptor {
            let blocks = u32::try_from(self.blocks()).unwrap_or(u32::MAX).min(0xff_ffff);
            descriptor.extend(blocks.to_be_bytes());
            descriptor.extend(self.conf.logical.to_be_bytes());
        }
        let body = descriptor.len() + pages.len();
        let mut data = if short {
            vec![(body + 3) as u8, 0, specific, descriptor.len() as u8]
        } else {
            let len = ((body + 6) as u16).to_be_bytes();
            vec![len[0], len[1], 0, specific, 0, 0, 0, descriptor.len() as u8]
        };
        data.extend(descriptor);
        data.extend(pages);
        limited(data, allowed)
    }

    fn write_same(&self, cdb: &[u8; 32], block: u64, count: u64) -> Command {
        let Some((offset, len)) = self.range(block, count) else { return Command::Check(LBA_OUT_OF_RANGE) };
        if self.backend.is_read_only() {
            return Command::Check(WRITE_PROTECTED);
        }
        // A count of 0 would mean the rest of the disk; the limits page says it is not taken.
        if count == 0 || len > self.names.max_io.max(self.block()) {
            return Command::Check(INVALID_FIELD);
        }
        if cdb[1] & 1 != 0 {
            return Command::Disk(vec![Request::WriteZeroes { offset, len, unmap: cdb[1] & 8 != 0 }]);
        }
        Command::Take { len: self.conf.logical as usize }
    }

    /// Goes on with the parameters that [`Command::Take`] asked for.
    pub fn taken(&self, cdb: &[u8; 32], data: &[u8]) -> Command {
        let command = match cdb[0] {
            0x15 => self.mode_select(data, 4),
            0x55 => self.mode_select(data, 8),
            0x42 => self.unmap(data),
            0x41 => self.write_same_data(be(&cdb[2..6]), be(&cdb[7..9]), cdb, data),
            0x93 => self.write_same_data(be(&cdb[2..10]), be(&cdb[10..14]), cdb, data),
            _ => Command::Check(INVALID_OPCODE),
        };
        if let Command::Check(sense) = command {
            self.set_sense(sense);
        }
        command
    }

    fn write_same_data(&self, block: u64, count: u64, cdb: &[u8; 32], data: &[u8]) -> Command {
        let Some((offset, len)) = self.range(block, count) else { return Command::Check(LBA_OUT_OF_RANGE) };
        if data.iter().all(|&byte| byte == 0) {
            return Command::Disk(vec![Request::WriteZeroes { offset, len, unmap: cdb[1] & 8 != 0 }]);
        }
        // A pattern is written as such; in one request that stays small.
        if len > 1 << 20 {
            return Command::Check(INVALID_FIELD);
        }
        let data = data.repeat((len / self.block()) as usize);
        Command::Disk(vec![Request::Write { offset, data: data.into(), fua: false }])
    }

    fn mode_select(&self, data: &[u8], header: usize) -> Command {
        let Some(&descriptor) = data.get(header - 1) else {
            return Command::Check(PARAMETER_LENGTH);
        };
        let mut pages = data.get(header + usize::from(descriptor)..).unwrap_or_default();
        let mut write_cache = None;
        while let [code, len, ..] = *pages {
            let end = 2 + usize::from(len);
            let Some(page) = pages.get(..end) else { return Command::Check(PARAMETER_LENGTH) };
            if code & 0x3f != 8 || len != 18 {
                return Command::Check(INVALID_PARAMETER);
            }
            write_cache = Some(page[2] & 4 != 0);
            pages = &pages[end..];
        }
        match write_cache {
            Some(on) => {
                self.backend.set_write_cache(on);
                if on { Command::Done } else { Command::Disk(vec![Request::Flush]) }
            }
            None => Command::Done,
        }
    }

    fn unmap(&self, data: &[u8]) -> Command {
        if data.len() < 8 {
            return Command::Check(PARAMETER_LENGTH);
        }
        if self.backend.is_read_only() {
            return Command::Check(WRITE_PROTECTED);
        }
        let listed = be(&data[2..4]) as usize;
        let Some(list) = data.get(8..8 + listed).filter(|list| list.len() % 16 == 0) else {
            return Command::Check(PARAMETER_LENGTH);
        };
        let mut requests = Vec::new();
        for entry in list.as_chunks::<16>().0 {
            let Some((offset, len)) = self.range(be(&entry[..8]), be(&entry[8..12])) else {
                return Command::Check(LBA_OUT_OF_RANGE);
            };
            if len > 0 {
                requests.push(Request::Discard { offset, len });
            }
        }
        if requests.len() > MAX_UNMAP_DESCRIPTORS as usize {
            return Command::Check(INVALID_PARAMETER);
        }
        Command::Disk(requests)
    }
}
