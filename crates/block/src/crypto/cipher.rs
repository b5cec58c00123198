//! AES in the modes that disks are encrypted with.

use super::{Hash, SECTOR};
use aes::Block;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use base::{Result, bail, fail};

/// Bytes of an AES block.
const BLOCK: usize = 16;

/// How blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ecb,
    Cbc,
    /// IEEE 1619.
    Xts,
}

/// How the initialisation vector of a sector is made from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iv {
    /// The number's low 32 bits.
    Plain,
    Plain64,
    /// The number, encrypted with the hash of the key.
    Essiv(Hash),
}

/// A cipher without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Bytes of one AES key: 16, 24 or 32.
    pub key: usize,
    pub mode: Mode,
    /// Not used by ECB.
    pub iv: Option<Iv>,
}

impl Spec {
    /// Bytes of the whole key: XTS has two.
    pub fn key_bytes(&self) -> usize {
        if self.mode == Mode::Xts { self.key * 2 } else { self.key }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.key {
            16 => "aes-128",
            24 => "aes-192",
            _ => "aes-256",
        }
    }

    /// "xts-plain64", "cbc-essiv:sha256", "ecb-plain64".
    pub fn mode_text(&self) -> String {
        let iv = match self.iv {
            Some(Iv::Plain) => "-plain".into(),
            // ECB has none, but tools want to read of one.
            None | Some(Iv::Plain64) => "-plain64".into(),
            Some(Iv::Essiv(hash)) => format!("-essiv:{}", hash.as_str()),
        };
        format!("{}{iv}", self.mode_name())
    }

    pub fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Ecb => "ecb",
            Mode::Cbc => "cbc",
            Mode::Xts => "xts",
        }
    }

    /// The reverse of [`Spec::mode_text`], for a key of `bytes`.
    pub fn parse(mode_text: &str, bytes: usize) -> Result<Spec> {
        let (mode, iv) = mode_text.split_once('-').unwrap_or((mode_text, ""));
        let mode = match mode {
            "ecb" => Mode::Ecb,
            "cbc" => Mode::Cbc,
            "xts" => Mode::Xts,
            other => bail!("Cipher mode '{other}' is not supported"),
        };
        let iv = match iv.split_once(':').unwrap_or((iv, "")) {
            _ if mode == Mode::Ecb => None,
            ("plain", "") => Some(Iv::Plain),
            ("plain64", "") => Some(Iv::Plain64),
            ("essiv", hash) => {
                let hash = super::HASHES.iter().find(|(name, _)| *name == hash);
                Some(Iv::Essiv(hash.ok_or_else(|| fail!("Hash of IV generator '{iv}' is not supported"))?.1))
            }
            _ => bail!("IV generator '{iv}' is not supported"),
        };
        let key = if mode == Mode::Xts { bytes / 2 } else { bytes };
        let spec = Spec { key, mode, iv };
        if spec.key_bytes() != bytes {
            bail!("Cipher aes-{mode_text} with a key of {bytes} bytes is not supported");
        }
        spec.check()?;
        Ok(spec)
    }

    pub fn check(&self) -> Result<()> {
        if ![16, 24, 32].contains(&self.key) || (self.mode == Mode::Xts && self.key == 24) {
            bail!(
                "Cipher aes-{} with a key of {} bytes is not supported",
                self.mode_text(),
                self.key_bytes()
            );
        }
        if self.mode != Mode::Ecb && self.iv.is_none() {
            bail!("Cipher mode '{}' needs an IV generator", self.mode_name());
        }
        match self.iv {
            Some(Iv::Essiv(hash)) if hash != Hash::Sha256 => {
                bail!("There is no AES with a key of the length of {}", hash.as_str())
            }
            _ => Ok(()),
        }
    }
}

enum Aes {
    A128(Box<aes::Aes128>),
    A192(Box<aes::Aes192>),
    A256(Box<aes::Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Result<Aes> {
        let wrong = |_| fail!("AES has no keys of {} bytes", key.len());
        Ok(match key.len() {
            16 => Aes::A128(Box::new(aes::Aes128::new_from_slice(key).map_err(wrong)?)),
            24 => Aes::A192(Box::new(aes::Aes192::new_from_slice(key).map_err(wrong)?)),
            _ => Aes::A256(Box::new(aes::Aes256::new_from_slice(key).map_err(wrong)?)),
        })
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::A128(aes) => aes.encrypt_blocks(blocks),
            Aes::A192(aes) => aes.encrypt_blocks(blocks),
            Aes::A256(aes) => aes.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::A128(aes) => aes.decrypt_blocks(blocks),
            Aes::A192(aes) => aes.decrypt_blocks(blocks),
            Aes::A256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// Encrypts and decrypts sectors.
pub struct Cipher {
    mode: Mode,
    iv: Option<Iv>,
    data: Aes,
    /// The second key of XTS.
    tweak: Option<Aes>,
    /// Encrypts the numbers of ESSIV.
    essiv: Option<Aes>,
}

impl Cipher {
    /// `key` has [`Spec::key_bytes`] bytes.
    pub fn new(spec: &Spec, key: &[u8]) -> Result<Cipher> {
        spec.check()?;
        if key.len() != spec.key_bytes() {
            bail!("A key of {} bytes does not fit the cipher", key.len());
        }
        let (first, second) = key.split_at(spec.key);
        let tweak = (spec.mode == Mode::Xts).then(|| Aes::new(second)).transpose()?;
        let essiv = match spec.iv {
            Some(Iv::Essiv(hash)) => Some(Aes::new(&hash.digest(&[key]))?),
            _ => None,
        };
        Ok(Cipher { mode: spec.mode, iv: spec.iv, data: Aes::new(first)?, tweak, essiv })
    }

    fn vector(&self, sector: u64) -> u128 {
        match self.iv {
            None => 0,
            Some(Iv::Plain) => u128::from(sector as u32),
            Some(Iv::Plain64) => u128::from(sector),
            Some(Iv::Essiv(_)) => self.essiv.as_ref().map_or(0, |essiv| one(essiv, sector.into())),
        }
    }

    /// Encrypts whole sectors, of which `sector` is the first.
    pub fn encrypt(&self, sector: u64, data: &mut [u8]) {
        self.each(sector, data, |vector, blocks| match self.mode {
            Mode::Ecb => self.data.encrypt(blocks),
            Mode::Cbc => {
                let mut chain = vector;
                for block in blocks {
                    mask(block, chain);
                    self.data.encrypt(std::slice::from_mut(block));
                    chain = number(block);
                }
            }
            Mode::Xts => self.tweaked(vector, blocks, |blocks| self.data.encrypt(blocks)),
        });
    }

    pub fn decrypt(&self, sector: u64, data: &mut [u8]) {
        self.each(sector, data, |vector, blocks| match self.mode {
            Mode::Ecb => self.data.decrypt(blocks),
            Mode::Cbc => {
                let mut chain = [0; SECTOR as usize / BLOCK];
                chain.iter_mut().zip(&*blocks).for_each(|(kept, block)| *kept = number(block));
                self.data.decrypt(blocks);
                let before = std::iter::once(&vector).chain(&chain);
                blocks.iter_mut().zip(before).for_each(|(block, before)| mask(block, *before));
            }
            Mode::Xts => self.tweaked(vector, blocks, |blocks| self.data.decrypt(blocks)),
        });
    }

    fn each(&self, first: u64, data: &mut [u8], work: impl Fn(u128, &mut [Block])) {
        debug_assert!(data.len().is_multiple_of(SECTOR as usize));
        for (sector, piece) in (first..).zip(data.chunks_exact_mut(SECTOR as usize)) {
            work(self.vector(sector), Block::slice_as_chunks_mut(piece).0);
        }
    }

    /// XTS around the encryption or decryption of all blocks of a sector.
    fn tweaked(&self, vector: u128, blocks: &mut [Block], work: impl Fn(&mut [Block])) {
        let mut tweak = self.tweak.as_ref().map_or(0, |aes| one(aes, vector));
        let mut tweaks = [0; SECTOR as usize / BLOCK];
        for (block, kept) in blocks.iter_mut().zip(&mut tweaks) {
            mask(block, tweak);
            *kept = tweak;
            tweak = tweak << 1 ^ (tweak >> 127) * 0x87;
        }
        work(blocks);
        blocks.iter_mut().zip(tweaks).for_each(|(block, tweak)| mask(block, tweak));
    }
}

fn one(aes: &Aes, number: u128) -> u128 {
    let mut block = Block::from(number.to_le_bytes());
    aes.encrypt(std::slice::from_mut(&mut block));
    self::number(&block)
}

fn number(block: &Block) -> u128 {
    u128::from_le_bytes((*block).into())
}

fn mask(block: &mut Block, with: u128) {
    *block = (number(block) ^ with).to_le_bytes().into();
}
