//! LUKS version 1: unlocking a volume and making one.
//!
//! Source: LUKS On-Disk Format Specification 1.2.3.

use super::luks_header::*;
pub use super::luks_header::{Header, MAGIC};
use super::{Algorithm, Cipher, HASHES, Hash, Iv, Mode, SECTOR, Spec};
use crate::graph::Child;
use crate::options::Options;
use base::{Failure, Result, bail, fail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An unlocked volume.
pub struct Volume {
    header: base::Mutex<Header>,
    pub cipher: Cipher,
    /// Where the header begins in the file, and how many bytes it may take with all slots.
    pub(super) place: (u64, u64),
}

/// How a volume is made.
pub struct Recipe {
    spec: Spec,
    hash: Hash,
    /// How long unlocking should take.
    time: Duration,
}

/// Every name that a hash function can have in options.
const ALL_HASHES: [&str; 7] = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"];

/// What options call the ciphers, with the bytes of a key.
const CIPHERS: [(&str, (Algorithm, usize)); 10] = [
    ("aes-128", (Algorithm::Aes, 16)),
    ("aes-192", (Algorithm::Aes, 24)),
    ("aes-256", (Algorithm::Aes, 32)),
    ("cast5-128", (Algorithm::Cast5, 16)),
    ("serpent-128", (Algorithm::Serpent, 16)),
    ("serpent-192", (Algorithm::Serpent, 24)),
    ("serpent-256", (Algorithm::Serpent, 32)),
    ("twofish-128", (Algorithm::Twofish, 16)),
    ("twofish-192", (Algorithm::Twofish, 24)),
    ("twofish-256", (Algorithm::Twofish, 32)),
];

impl Recipe {
    /// Takes the options of creation (`cipher-alg` ... `iter-time`).
    pub fn take(options: &mut Options) -> Result<Recipe> {
        let (algorithm, key) = options.take_word("cipher-alg", &CIPHERS)?.unwrap_or((Algorithm::Aes, 32));
        let modes = [("xts", Mode::Xts), ("cbc", Mode::Cbc), ("ctr", Mode::Ctr), ("ecb", Mode::Ecb)];
        let mode = options.take_word("cipher-mode", &modes)?.unwrap_or(Mode::Xts);
        let ivgens = [("plain", 0), ("plain64", 1), ("essiv", 2)];
        let ivgen = options.take_word("ivgen-alg", &ivgens)?;
        // Only ESSIV hashes; with another generator the name need only be one.
        let ivhash = match ivgen {
            Some(2) => options.take_word("ivgen-hash-alg", &HASHES)?,
            _ => options.take_word("ivgen-hash-alg", &ALL_HASHES.map(|name| (name, ())))?.and(None),
        };
        let iv = match ivgen {
            _ if mode == Mode::Ecb => None,
            Some(0) => Some(Iv::Plain),
            Some(2) => Some(Iv::Essiv(ivhash.unwrap_or(Hash::Sha256))),
            _ => Some(Iv::Plain64),
        };
        let hash = options.take_word("hash-alg", &HASHES)?.unwrap_or(Hash::Sha256);
        let time = take_time(options)?;
        let spec = Spec { algorithm, key, mode, iv };
        spec.check()?;
        Ok(Recipe { spec, hash, time })
    }

    /// Bytes before the guest's data.
    pub fn payload_offset(&self) -> u64 {
        payload_sectors(self.spec.key_bytes()) * SECTOR
    }

    /// The bytes before the guest's data of a new volume that `password` opens. Takes as
    /// long as unlocking will, and some.
    pub fn make(&self, password: &[u8]) -> Result<Vec<u8>> {
        let bytes = self.spec.key_bytes();
        let rounds = rounds_by(self.hash, bytes);
        let mut key = vec![0; bytes];
        random(&mut key)?;
        let mut header = Header {
            spec: self.spec,
            hash: self.hash,
            payload: payload_sectors(bytes) as u32,
            digest: [0; DIGEST],
            digest_salt: random_array()?,
            digest_rounds: rounds(self.time / 8),
            uuid: uuid()?,
            slots: Default::default(),
        };
        let digest = self.hash.pbkdf2(&key, &header.digest_salt, header.digest_rounds, DIGEST);
        header.digest.copy_from_slice(&digest);
        for (index, slot) in header.slots.iter_mut().enumerate() {
            slot.offset = (ALIGN + index as u64 * slot_sectors(bytes)) as u32;
        }
        let material = header.fill_slot(0, &key, password, rounds(self.time))?;
        let at = u64::from(header.slots[0].offset) * SECTOR;
        let mut out = header.encode();
        out.resize(self.payload_offset() as usize, 0);
        out[at as usize..at as usize + material.len()].copy_from_slice(&material);
        Ok(out)
    }
}

impl Volume {
    /// Reads the header at `start` of a file and unlocks the volume with the first key slot
    /// that `password` opens. `area` is how many bytes the header may take.
    pub async fn open(file: &Child, start: u64, area: u64, password: Vec<u8>) -> Result<Volume> {
        let unreadable = |error: std::io::Error| Failure::os("Unable to read LUKS header", &error);
        let head = file.read_vec(start, HEADER as u64, area).await.map_err(unreadable)?;
        let header = Header::parse(&head)?;
        let key = header.unlock(file, (start, area), &password).await?;
        let cipher = Cipher::new(&header.spec, &key)?;
        Ok(Volume { header: base::Mutex::new(header), cipher, place: (start, area) })
    }

    pub fn header(&self) -> Header {
        self.header.lock().clone()
    }

    /// The header in the file is another now.
    pub(super) fn set_header(&self, header: Header) {
        *self.header.lock() = header;
    }

    /// As tools show it (`QCryptoBlockInfoLUKS`).
    pub fn describe(&self) -> Value {
        let header = &self.header();
        let slots: Vec<Value> = header.slots.iter().map(describe_slot).collect();
        let mut all = json!({
            "cipher-alg": header.spec.name(),
            "cipher-mode": header.spec.mode_name(),
        });
        let (ivgen, ivhash) = match header.spec.iv {
            None | Some(Iv::Plain64) => ("plain64", None),
            Some(Iv::Plain) => ("plain", None),
            Some(Iv::Essiv(hash)) => ("essiv", Some(hash.as_str())),
        };
        all["ivgen-alg"] = ivgen.into();
        if let Some(hash) = ivhash {
            all["ivgen-hash-alg"] = hash.into();
        }
        all["hash-alg"] = header.hash.as_str().into();
        all["detached-header"] = false.into();
        all["payload-offset"] = (u64::from(header.payload) * SECTOR).into();
        all["master-key-iters"] = header.digest_rounds.into();
        all["uuid"] = header.uuid.as_str().into();
        all["slots"] = slots.into();
        all
    }
}

impl Header {
    /// The volume's key from the first key slot that `password` opens; see [`Header::try_slot`].
    pub(super) async fn unlock(&self, file: &Child, place: (u64, u64), password: &[u8]) -> Result<Vec<u8>> {
        for index in (0..SLOTS).filter(|&index| self.slots[index].active) {
            if let Some(key) = self.try_slot(file, place, index, password).await? {
                return Ok(key);
            }
        }
        bail!("Invalid password, cannot unlock any keyslot")
    }

    /// The volume's key, if `password` opens key slot `index` of the volume at `start` of a file,
    /// which takes at most `area` bytes.
    pub(super) async fn try_slot(
        &self,
        file: &Child,
        (start, area): (u64, u64),
        index: usize,
        password: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let bytes = self.spec.key_bytes() as u64 * u64::from(STRIPES);
        let padded = bytes.next_multiple_of(SECTOR);
        let at = u64::from(self.slots[index].offset) * SECTOR;
        if at + bytes > area {
            bail!("Keyslot {index} lies outside of the LUKS header");
        }
        let failed = |error: std::io::Error| Failure::os("Failed to read key material", &error);
        let mut material = file.read_vec(start + at, padded, padded).await.map_err(failed)?;
        let (known, password) = (self.clone(), password.to_vec());
        let tried = tokio::task::spawn_blocking(move || {
            let (slot, hash, len) = (&known.slots[index], known.hash, known.spec.key_bytes());
            let own = hash.pbkdf2(&password, &slot.salt, slot.rounds, len);
            Cipher::new(&known.spec, &own)?.decrypt(0, &mut material);
            material.truncate(bytes as usize);
            let key = merge(hash, &material, len);
            let digest = hash.pbkdf2(&key, &known.digest_salt, known.digest_rounds, DIGEST);
            Ok::<_, Failure>((digest == known.digest).then_some(key))
        });
        tried.await.map_err(|_| fail!("Unlocking was interrupted"))?
    }

    /// Makes key slot `index` hold `key` under `password`; returns the slot's material.
    pub(super) fn fill_slot(
        &mut self,
        index: usize,
        key: &[u8],
        password: &[u8],
        rounds: u32,
    ) -> Result<Vec<u8>> {
        let bytes = self.spec.key_bytes();
        self.slots[index] = Slot { active: true, rounds, salt: random_array()?, ..self.slots[index] };
        let slot = &self.slots[index];
        let own = self.hash.pbkdf2(password, &slot.salt, slot.rounds, bytes);
        let mut material = split(self.hash, key)?;
        material.resize((slot_sectors(bytes) * SECTOR) as usize, 0);
        Cipher::new(&self.spec, &own)?.encrypt(0, &mut material);
        Ok(material)
    }
}

/// Rounds that take so long here.
pub(super) fn rounds_by(hash: Hash, key_bytes: usize) -> impl Fn(Duration) -> u32 {
    let per_second = speed(hash, key_bytes);
    move |time| ((per_second * time.as_secs_f64()) as u64).clamp(1000, 1 << 28) as u32
}

/// `iter-time`, in milliseconds, 2000 if it is not given.
pub(super) fn take_time(options: &mut Options) -> Result<Duration> {
    let time = options.take_u64("iter-time")?.unwrap_or(2000);
    if time == 0 || time > 3_600_000 {
        bail!("iter-time is from 1 to 3600000 milliseconds");
    }
    Ok(Duration::from_millis(time))
}

fn describe_slot(slot: &Slot) -> Value {
    let key_offset = u64::from(slot.offset) * SECTOR;
    match slot.active {
        true => json!({"active": true, "iters": slot.rounds, "stripes": STRIPES, "key-offset": key_offset}),
        false => json!({"active": false, "key-offset": key_offset}),
    }
}

/// Rounds of PBKDF2 a second.
fn speed(hash: Hash, bytes: usize) -> f64 {
    let mut rounds = 1 << 12;
    loop {
        let begun = Instant::now();
        hash.pbkdf2(b"password", b"salt", rounds, bytes);
        let took = begun.elapsed().as_secs_f64();
        if took > 0.05 || rounds > 1 << 26 {
            return f64::from(rounds) / took.max(1e-6);
        }
        rounds *= 4;
    }
}

pub(super) fn random(out: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let got = rustix::rand::getrandom(&mut out[done..], rustix::rand::GetRandomFlags::empty());
        done += got.map_err(|error| Failure::os("Unable to get random bytes", &error.into()))?;
    }
    Ok(())
}

fn random_array<const N: usize>() -> Result<[u8; N]> {
    let mut out = [0; N];
    random(&mut out)?;
    Ok(out)
}

fn uuid() -> Result<String> {
    let mut id: [u8; 16] = random_array()?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// The anti-forensic splitter's diffusion: each piece of a digest's length is hashed.
fn diffuse(hash: Hash, block: &mut [u8]) {
    let len = hash.digest(&[]).len();
    for (index, piece) in block.chunks_mut(len).enumerate() {
        let digest = hash.digest(&[&(index as u32).to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

/// Mixes all stripes but the last.
fn mixed(hash: Hash, stripes: &[u8], len: usize) -> Vec<u8> {
    let mut state = vec![0; len];
    for stripe in stripes.chunks_exact(len).take(STRIPES as usize - 1) {
        state.iter_mut().zip(stripe).for_each(|(state, byte)| *state ^= byte);
        diffuse(hash, &mut state);
    }
    state
}

fn split(hash: Hash, key: &[u8]) -> Result<Vec<u8>> {
    let mut stripes = vec![0; key.len() * STRIPES as usize];
    let last = stripes.len() - key.len();
    random(&mut stripes[..last])?;
    let state = mixed(hash, &stripes, key.len());
    for (at, (state, key)) in state.iter().zip(key).enumerate() {
        stripes[last + at] = state ^ key;
    }
    Ok(stripes)
}

fn merge(hash: Hash, stripes: &[u8], len: usize) -> Vec<u8> {
    let mut key = mixed(hash, stripes, len);
    key.iter_mut().zip(&stripes[stripes.len() - len..]).for_each(|(key, byte)| *key ^= byte);
    key
}
