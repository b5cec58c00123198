//! A CD/DVD drive: MMC-5 and SPC-3 commands, the tray, and its medium.

use base::Mutex;
use base::notice::Notices;
use block::{Backend, Media, Tray};

pub const BLOCK: u64 = 2048;
/// Sectors of the largest CD; more is a DVD.
const CD_SECTORS: u64 = 360_000;

/// Sense key, additional sense code and qualifier (SPC-3 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sense {
    pub key: u8,
    pub code: u8,
    pub qualifier: u8,
}

pub const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense { key, code, qualifier }
}

pub const NO_SENSE: Sense = sense(0, 0, 0);
pub const NO_MEDIUM: Sense = sense(2, 0x3a, 0);
pub const READ_ERROR: Sense = sense(3, 0x11, 0);
pub const INVALID_OPCODE: Sense = sense(5, 0x20, 0);
pub const LBA_OUT_OF_RANGE: Sense = sense(5, 0x21, 0);
pub const INVALID_FIELD: Sense = sense(5, 0x24, 0);
const REMOVAL_PREVENTED: Sense = sense(5, 0x53, 2);
pub const MEDIUM_CHANGED: Sense = sense(6, 0x28, 0);

/// What a command leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Data(Vec<u8>),
    /// Bytes of the medium.
    Read {
        offset: u64,
        len: u64,
    },
    Check(Sense),
}

/// Names that INQUIRY tells.
#[derive(Clone, Debug)]
pub struct Names {
    pub vendor: String,
    pub product: String,
    pub revision: String,
}

pub struct Cdrom {
    pub backend: Backend,
    names: Names,
    /// How events name the drive.
    id: String,
    notices: Notices,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tray_open: bool,
    locked: bool,
    /// Of the last failed command, for REQUEST SENSE.
    sense: Sense,
    attention: Option<Sense>,
    new_medium: bool,
    removed: bool,
    eject_request: bool,
}

fn be16(bytes: &[u8]) -> u64 {
    u64::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn be32(bytes: &[u8]) -> u64 {
    u64::from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// `text` in a field of `len` bytes, padded with spaces.
pub fn padded(text: &str, len: usize) -> Vec<u8> {
    let mut field = text.bytes().map(|b| if b.is_ascii() { b } else { b'?' }).take(len).collect::<Vec<_>>();
    field.resize(len, b' ');
    field
}

fn limited(mut data: Vec<u8>, allowed: u64) -> Reply {
    data.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
    if data.is_empty() { Reply::Done } else { Reply::Data(data) }
}

/// Minute, second, frame of a block address.
fn msf(block: u64) -> [u8; 4] {
    let frames = block + 150;
    [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

impl Cdrom {
    pub fn new(backend: Backend, names: Names, id: String, notices: Notices) -> Self {
        Cdrom { backend, names, id, notices, state: Mutex::default() }
    }

    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.locked = false;
        state.sense = NO_SENSE;
        state.attention = None;
    }

    pub fn is_tray_open(&self) -> bool {
        self.state.lock().tray_open
    }

    pub fn is_locked(&self) -> bool {
        self.state.lock().locked
    }

    fn tell_tray(&self, open: bool) {
        let device = self.backend.name().to_string();
        self.notices.send(block::Notice::TrayMoved { device, id: self.id.clone(), open });
    }

    pub fn has_medium(&self) -> bool {
        !self.is_tray_open() && self.backend.is_inserted()
    }

    fn blocks(&self) -> u64 {
        if self.has_medium() { self.backend.size() / BLOCK } else { 0 }
    }

    /// Executes a command block; its sense is kept for REQUEST SENSE.
    pub fn execute(&self, cdb: &[u8; 16]) -> Reply {
        let attention = match cdb[0] {
            // INQUIRY, REQUEST SENSE, GET CONFIGURATION and GET EVENT STATUS do not report it.
            0x12 | 0x03 | 0x46 | 0x4a => None,
            _ => self.state.lock().attention.take(),
        };
        let reply = match attention {
            Some(sense) => Reply::Check(sense),
            None => self.perform(cdb),
        };
        match reply {
            Reply::Check(sense) => self.state.lock().sense = sense,
            _ if cdb[0] != 0x03 => self.state.lock().sense = NO_SENSE,
            _ => {}
        }
        reply
    }

    /// Remembers the sense of a command that failed while its data moved.
    pub fn set_sense(&self, sense: Sense) {
        self.state.lock().sense = sense;
    }

    fn perform(&self, cdb: &[u8; 16]) -> Reply {
        match cdb[0] {
            0x03 => self.request_sense(cdb),
            0x12 => self.inquiry(cdb),
            0x1b => self.start_stop(cdb),
            0x1e => {
                self.state.lock().locked = cdb[4] & 1 != 0;
                Reply::Done
            }
            0x46 => self.get_configuration(cdb),
            0x4a => self.get_event_status(cdb),
            0x5a => self.mode_sense(cdb),
            0xbb => Reply::Done,
            0xbd => limited(vec![0, 0, 0, 0, 0, 1, 0, 0], be16(&cdb[8..])),
            0x00 | 0x25 | 0x28 | 0x2b | 0x35 | 0x42 | 0x43 | 0x51 | 0xa8 | 0xbe if !self.has_medium() => {
                Reply::Check(NO_MEDIUM)
            }
            0x00 | 0x35 => Reply::Done,
            0x25 => self.read_capacity(),
            0x28 => self.read(be32(&cdb[2..]), be16(&cdb[7..])),
            0xa8 => self.read(be32(&cdb[2..]), be32(&cdb[6..])),
            0xbe => self.read_cd(cdb),
            0x2b if be32(&cdb[2..]) >= self.blocks() => Reply::Check(LBA_OUT_OF_RANGE),
            0x2b => Reply::Done,
            0x42 => limited(vec![0, 0x15, 0, 0], be16(&cdb[7..])),
            0x43 => self.read_toc(cdb),
            0x51 => self.read_disc_information(cdb),
            _ => Reply::Check(INVALID_OPCODE),
        }
    }

    fn read(&self, block: u64, count: u64) -> Reply {
        if block.checked_add(count).is_none_or(|end| end > self.blocks()) {
            return Reply::Check(LBA_OUT_OF_RANGE);
        }
        match count {
            0 => Reply::Done,
            _ => Reply::Read { offset: block * BLOCK, len: count * BLOCK },
        }
    }

    fn read_cd(&self, cdb: &[u8; 16]) -> Reply {
        let count = be32(&[0, cdb[6], cdb[7], cdb[8]]);
        match cdb[9] & 0xf8 {
            0 => Reply::Done,
            0x10 => self.read(be32(&cdb[2..]), count),
            _ => Reply::Check(INVALID_FIELD),
        }
    }

    fn read_capacity(&self) -> Reply {
        let Some(last) = self.blocks().checked_sub(1) else { return Reply::Check(NO_MEDIUM) };
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        Reply::Data([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat())
    }

    fn request_sense(&self, cdb: &[u8; 16]) -> Reply {
        let mut state = self.state.lock();
        let sense = state.attention.take().unwrap_or(state.sense);
        state.sense = NO_SENSE;
        limited(fixed_sense(sense), cdb[4].into())
    }

    fn inquiry(&self, cdb: &[u8; 16]) -> Reply {
        if cdb[1] & 1 != 0 {
            let page = match cdb[2] {
                0 => vec![5, 0, 0, 2, 0, 0x83],
                0x83 => {
                    let name = padded(&self.names.product, 32);
                    [&[5, 0x83, 0, 36, 2, 0, 0, 32][..], &name].concat()
                }
                _ => return Reply::Check(INVALID_FIELD),
            };
            return limited(page, be16(&cdb[3..]));
        }
        let mut data = vec![5, 0x80, 0, 0x21, 31, 0, 0, 0];
        data.extend(padded(&self.names.vendor, 8));
        data.extend(padded(&self.names.product, 16));
        data.extend(padded(&self.names.revision, 4));
        limited(data, be16(&cdb[3..]))
    }

    fn start_stop(&self, cdb: &[u8; 16]) -> Reply {
        let (load_eject, start) = (cdb[4] & 2 != 0, cdb[4] & 1 != 0);
        if cdb[4] >> 4 != 0 || !load_eject {
            return Reply::Done;
        }
        let mut state = self.state.lock();
        if !start && !state.tray_open && state.locked {
            return Reply::Check(REMOVAL_PREVENTED);
        }
        let moved = state.tray_open == start;
        state.tray_open = !start;
        state.eject_request = false;
        drop(state);
        if moved {
            self.tell_tray(!start);
        }
        Reply::Done
    }

    fn get_configuration(&self, cdb: &[u8; 16]) -> Reply {
        let profile: u8 = match self.blocks() {
            0 => 0,
            1..=CD_SECTORS => 0x08,
            _ => 0x10,
        };
        let mut data = vec![0, 0, 0, 0, 0, 0, 0, profile];
        // Feature 0: the profile list; 1: core; 3: removable medium.
        data.extend([0, 0, 3, 8, 0, 0x10, u8::from(profile == 0x10), 0, 0, 0x08, u8::from(profile == 8), 0]);
        data.extend([0, 1, 0x0b, 8, 0, 0, 0, 2, 1, 0, 0, 0]);
        data.extend([0, 3, 3, 4, 0x29, 0, 0, 0]);
        let len = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&len.to_be_bytes());
        limited(data, be16(&cdb[7..]))
    }

    fn get_event_status(&self, cdb: &[u8; 16]) -> Reply {
        if cdb[1] & 1 == 0 {
            return Reply::Check(INVALID_FIELD);
        }
        const MEDIA: u8 = 1 << 4;
        if cdb[4] & MEDIA == 0 {
            return limited(vec![0, 2, 0x80, MEDIA], be16(&cdb[7..]));
        }
        let inserted = self.backend.is_inserted();
        let mut state = self.state.lock();
        let event = if std::mem::take(&mut state.eject_request) {
            1
        } else if std::mem::take(&mut state.new_medium) {
            2
        } else if std::mem::take(&mut state.removed) {
            3
        } else {
            0
        };
        let status = u8::from(state.tray_open) | u8::from(inserted && !state.tray_open) << 1;
        limited(vec![0, 6, 4, MEDIA, event, status, 0, 0], be16(&cdb[7..]))
    }

    fn mode_sense(&self, cdb: &[u8; 16]) -> Reply {
        let page: Vec<u8> = match (cdb[2] >> 6, cdb[2] & 0x3f) {
            (3, _) => return Reply::Check(sense(5, 0x39, 0)),
            (_, 0x01) => vec![0x01, 6, 0, 5, 0, 0, 0, 0],
            (_, 0x2a) => self.capabilities(),
            (_, 0x3f) => [vec![0x01, 6, 0, 5, 0, 0, 0, 0], self.capabilities()].concat(),
            _ => return Reply::Check(INVALID_FIELD),
        };
        let medium = if self.has_medium() { 1 } else { 0x70 };
        let mut data = vec![0, (page.len() + 6) as u8, medium, 0, 0, 0, 0, 0];
        data.extend(page);
        limited(data, be16(&cdb[7..]))
    }

    /// The capabilities page (MMC-3 §5.5.10): reads, lockable, ejectable, tray.
    fn capabilities(&self) -> Vec<u8> {
        let locked = u8::from(self.is_locked()) << 1;
        let speed = (16u16 * 176).to_be_bytes();
        let buffer = 512u16.to_be_bytes();
        vec![
            0x2a,
            18,
            0x3b,
            0,
            0x70,
            0,
            0x29 | locked,
            0,
            speed[0],
            speed[1],
            0,
            2,
            buffer[0],
            buffer[1],
            speed[0],
            speed[1],
            0,
            0,
            0,
            0,
        ]
    }

    fn read_toc(&self, cdb: &[u8; 16]) -> Reply {
        let in_msf = cdb[1] & 2 != 0;
        let format = if cdb[2] & 0xf != 0 { cdb[2] & 0xf } else { cdb[9] >> 6 };
        let address = |block: u64| match in_msf {
            true => msf(block),
            false => u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes(),
        };
        let data = match format {
            0 => {
                let track = cdb[6];
                if track > 1 && track != 0xaa {
                    return Reply::Check(INVALID_FIELD);
                }
                let mut data = vec![0, 0, 1, 1];
                if track <= 1 {
                    data.extend([0, 0x14, 1, 0]);
                    data.extend(address(0));
                }
                data.extend([0, 0x16, 0xaa, 0]);
                data.extend(address(self.blocks()));
                let len = (data.len() - 2) as u16;
                data[..2].copy_from_slice(&len.to_be_bytes());
                data
            }
            1 => vec![0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0],
            _ => return Reply::Check(INVALID_FIELD),
        };
        limited(data, be16(&cdb[7..]))
    }

    fn read_disc_information(&self, cdb: &[u8; 16]) -> Reply {
        if cdb[1] & 7 != 0 {
            return Reply::Check(INVALID_FIELD);
        }
        let mut data = vec![0; 34];
        data[1] = 32;
        // Complete disc with one complete session and one track, no application code.
        data[2..8].copy_from_slice(&[0x0e, 1, 1, 1, 1, 0x20]);
        limited(data, be16(&cdb[7..]))
    }
}

impl Media for Cdrom {
    fn changed(&self, loaded: bool) {
        let mut state = self.state.lock();
        state.eject_request = false;
        (state.new_medium, state.removed) = (loaded, !loaded);
        state.attention = Some(MEDIUM_CHANGED);
        let moved = state.tray_open == loaded;
        state.tray_open = !loaded;
        drop(state);
        if moved {
            self.tell_tray(!loaded);
        }
    }

    fn tray(&self) -> Option<Tray> {
        let state = self.state.lock();
        Some(Tray { open: state.tray_open, locked: state.locked })
    }

    fn request_eject(&self, force: bool) {
        let mut state = self.state.lock();
        state.eject_request = true;
        if force {
            state.locked = false;
        }
    }

    fn writes(&self) -> bool {
        false
    }
}

/// Sense data in fixed format (SPC-3 §4.5.3).
pub fn fixed_sense(sense: Sense) -> Vec<u8> {
    let mut data = vec![0; 18];
    data[0] = 0x70;
    data[2] = sense.key;
    data[7] = 10;
    data[12] = sense.code;
    data[13] = sense.qualifier;
    data
}
