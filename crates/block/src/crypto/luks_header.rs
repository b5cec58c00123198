//! The header of LUKS version 1.
//!
//! Source: LUKS On-Disk Format Specification 1.2.3. All numbers are big endian.

use super::{Algorithm, HASHES, Hash, SECTOR, Spec};
use base::{Result, bail, fail};

pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Bytes of the header proper.
pub const HEADER: usize = 592;
pub const SLOTS: usize = 8;
pub const STRIPES: u32 = 4000;
/// Where the first key slot's material may begin, in sectors; also what slots are aligned to.
pub const ALIGN: u64 = 8;
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
pub const DIGEST: usize = 20;
/// More rounds than a person would wait for are an attack.
const MAX_ROUNDS: u32 = 500_000_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    pub active: bool,
    pub rounds: u32,
    pub salt: [u8; 32],
    /// In sectors.
    pub offset: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub spec: Spec,
    pub hash: Hash,
    /// Where the guest's data begin, in sectors.
    pub payload: u32,
    pub digest: [u8; DIGEST],
    pub digest_salt: [u8; 32],
    pub digest_rounds: u32,
    pub uuid: String,
    pub slots: [Slot; SLOTS],
}

fn be32(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn copy<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&data[at..at + N]);
    out
}

/// A text that ends at its first zero byte.
fn text<'a>(data: &'a [u8], at: usize, len: usize, what: &str) -> Result<&'a str> {
    let field = &data[at..at + len];
    let end = field.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| fail!("LUKS header {what} is not NUL terminated"))?;
    std::str::from_utf8(&field[..end]).map_err(|_| fail!("LUKS header {what} is not a text"))
}

/// Sectors that one slot's key material takes, aligned.
pub fn slot_sectors(key_bytes: usize) -> u64 {
    (key_bytes as u64 * u64::from(STRIPES)).div_ceil(SECTOR).next_multiple_of(ALIGN)
}

/// Sectors from the beginning to the payload as images are made here.
pub fn payload_sectors(key_bytes: usize) -> u64 {
    ALIGN + SLOTS as u64 * slot_sectors(key_bytes)
}

impl Header {
    /// Reads and checks a header.
    pub fn parse(data: &[u8]) -> Result<Header> {
        if data.len() < HEADER || data[..6] != MAGIC {
            bail!("Volume is not in LUKS format");
        }
        let version = u16::from_be_bytes([data[6], data[7]]);
        if version != 1 {
            bail!("LUKS version {version} is not supported");
        }
        let algorithm = Algorithm::parse(text(data, 8, 32, "cipher name")?)?;
        let hash = text(data, 72, 32, "hash spec")?;
        let known = HASHES.iter().find(|(name, _)| *name == hash);
        let hash = known.ok_or_else(|| fail!("Hash algorithm '{hash}' with LUKS is not supported"))?.1;
        let key_bytes = be32(data, 108) as usize;
        let mut header = Header {
            spec: Spec::parse(algorithm, text(data, 40, 32, "cipher mode")?, key_bytes)?,
            hash,
            payload: be32(data, 104),
            digest: copy(data, 112),
            digest_salt: copy(data, 132),
            digest_rounds: be32(data, 164),
            uuid: text(data, 168, 40, "UUID").unwrap_or_default().to_string(),
            slots: Default::default(),
        };
        for (index, slot) in header.slots.iter_mut().enumerate() {
            let at = 208 + index * 48;
            *slot = Slot {
                active: match be32(data, at) {
                    ENABLED => true,
                    DISABLED => false,
                    other => bail!("Keyslot {index} state {other:#x} is not valid"),
                },
                rounds: be32(data, at + 4),
                salt: copy(data, at + 8),
                offset: be32(data, at + 40),
            };
            if be32(data, at + 44) != STRIPES {
                bail!("Keyslot {index} is corrupted (stripes {} != {STRIPES})", be32(data, at + 44));
            }
        }
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<()> {
        let material = (self.spec.key_bytes() as u64 * u64::from(STRIPES)).div_ceil(SECTOR);
        let payload = u64::from(self.payload);
        let range = |slot: &Slot| (u64::from(slot.offset), u64::from(slot.offset) + material);
        for (index, slot) in self.slots.iter().enumerate() {
            let (start, end) = range(slot);
            if start < (HEADER as u64).div_ceil(SECTOR) {
                bail!("Keyslot {index} is overlapping the LUKS header");
            }
            if end > payload {
                bail!("Keyslot {index} is overlapping with the encrypted payload");
            }
            if slot.active && (slot.rounds == 0 || slot.rounds > MAX_ROUNDS) {
                bail!("Keyslot {index} iteration count {} is not valid", slot.rounds);
            }
            for (other, slot) in self.slots.iter().enumerate().skip(index + 1) {
                let (from, to) = range(slot);
                if start < to && from < end {
                    bail!("Keyslots {index} and {other} are overlapping in the header");
                }
            }
        }
        if self.digest_rounds == 0 || self.digest_rounds > MAX_ROUNDS {
            bail!("LUKS key iteration count {} is not valid", self.digest_rounds);
        }
        Ok(())
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let mut put = |at: usize, data: &[u8]| out[at..at + data.len()].copy_from_slice(data);
        put(0, &MAGIC);
        put(6, &1u16.to_be_bytes());
        put(8, self.spec.algorithm.as_str().as_bytes());
        put(40, self.spec.mode_text().as_bytes());
        put(72, self.hash.as_str().as_bytes());
        put(104, &self.payload.to_be_bytes());
        put(108, &(self.spec.key_bytes() as u32).to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_rounds.to_be_bytes());
        put(168, &self.uuid.as_bytes()[..self.uuid.len().min(39)]);
        for (index, slot) in self.slots.iter().enumerate() {
            let at = 208 + index * 48;
            put(at, &(if slot.active { ENABLED } else { DISABLED }).to_be_bytes());
            put(at + 4, &slot.rounds.to_be_bytes());
            put(at + 8, &slot.salt);
            put(at + 40, &slot.offset.to_be_bytes());
            put(at + 44, &STRIPES.to_be_bytes());
        }
        out
    }
}
