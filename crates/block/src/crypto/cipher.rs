//! Ciphers with blocks of 16 bytes, and CAST5 with 8, in the modes that disks are encrypted with.

use super::{Hash, SECTOR};
use aes::Block;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use base::{Result, bail, fail};

/// Bytes of a block; two blocks of CAST5 are taken as one.
const BLOCK: usize = 16;

/// A block of CAST5.
type Half = cast5::cipher::Block<cast5::Cast5>;

/// What encrypts a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Aes,
    /// RFC 2144, with keys of 128 bits.
    Cast5,
    Serpent,
    Twofish,
}

impl Algorithm {
    /// What headers call them.
    const NAMES: [(&str, Algorithm); 4] = [
        ("aes", Algorithm::Aes),
        ("cast5", Algorithm::Cast5),
        ("serpent", Algorithm::Serpent),
        ("twofish", Algorithm::Twofish),
    ];

    pub fn as_str(self) -> &'static str {
        Algorithm::NAMES.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }

    /// What people call it.
    fn title(self) -> &'static str {
        match self {
            Algorithm::Aes => "AES",
            Algorithm::Cast5 => "CAST5",
            Algorithm::Serpent => "Serpent",
            Algorithm::Twofish => "Twofish",
        }
    }

    pub fn parse(name: &str) -> Result<Algorithm> {
        let known = Algorithm::NAMES.iter().find(|(one, _)| *one == name);
        known.map(|(_, one)| *one).ok_or_else(|| fail!("Algorithm '{name}' with LUKS is not supported"))
    }
}

/// How blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ecb,
    Cbc,
    /// The initialisation vector is a number that the blocks count on from, its first byte the
    /// highest.
    Ctr,
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
    pub algorithm: Algorithm,
    /// Bytes of one key: 16, 24 or 32.
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

    /// "aes-256".
    pub fn name(&self) -> String {
        format!("{}-{}", self.algorithm.as_str(), self.key * 8)
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
            Mode::Ctr => "ctr",
            Mode::Xts => "xts",
        }
    }

    /// The reverse of [`Spec::mode_text`], for a key of `bytes`.
    pub fn parse(algorithm: Algorithm, mode_text: &str, bytes: usize) -> Result<Spec> {
        let (mode, iv) = mode_text.split_once('-').unwrap_or((mode_text, ""));
        let mode = match mode {
            "ecb" => Mode::Ecb,
            "cbc" => Mode::Cbc,
            "ctr" => Mode::Ctr,
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
        let spec = Spec { algorithm, key, mode, iv };
        if spec.key_bytes() != bytes {
            let name = algorithm.as_str();
            bail!("Cipher {name}-{mode_text} with a key of {bytes} bytes is not supported");
        }
        spec.check()?;
        Ok(spec)
    }

    pub fn check(&self) -> Result<()> {
        let narrow = self.algorithm == Algorithm::Cast5;
        let lengths: &[usize] = if narrow { &[16] } else { &[16, 24, 32] };
        if !lengths.contains(&self.key) {
            bail!(
                "Cipher {}-{} with a key of {} bytes is not supported",
                self.algorithm.as_str(),
                self.mode_text(),
                self.key_bytes()
            );
        }
        if self.mode != Mode::Ecb && self.iv.is_none() {
            bail!("Cipher mode '{}' needs an IV generator", self.mode_name());
        }
        if narrow && self.mode == Mode::Xts {
            bail!("Cipher mode 'xts' is for blocks of 16 bytes, which '{}' does not have", self.name());
        }
        match self.iv {
            // No hash that there is here makes a key for it.
            Some(Iv::Essiv(_)) if narrow => bail!("Cipher {} not supported with essiv", self.name()),
            Some(Iv::Essiv(hash)) if hash != Hash::Sha256 => {
                let bytes = hash.digest(&[]).len();
                bail!("No {} cipher with key size {bytes} available", self.algorithm.title())
            }
            _ => Ok(()),
        }
    }
}

/// An algorithm with its key.
enum Keyed {
    Aes128(Box<aes::Aes128>),
    Aes192(Box<aes::Aes192>),
    Aes256(Box<aes::Aes256>),
    Cast5(Box<cast5::Cast5>),
    Serpent(Box<serpent::Serpent>),
    Twofish(Box<twofish::Twofish>),
}

impl Keyed {
    fn new(algorithm: Algorithm, key: &[u8]) -> Result<Keyed> {
        let wrong = |_| fail!("{} has no keys of {} bytes", algorithm.title(), key.len());
        Ok(match (algorithm, key.len()) {
            (Algorithm::Aes, 16) => Keyed::Aes128(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
            (Algorithm::Aes, 24) => Keyed::Aes192(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
            (Algorithm::Aes, _) => Keyed::Aes256(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
            (Algorithm::Cast5, _) => Keyed::Cast5(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
            (Algorithm::Serpent, _) => Keyed::Serpent(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
            (Algorithm::Twofish, _) => Keyed::Twofish(Box::new(KeyInit::new_from_slice(key).map_err(wrong)?)),
        })
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Keyed::Aes128(keyed) => keyed.encrypt_blocks(blocks),
            Keyed::Aes192(keyed) => keyed.encrypt_blocks(blocks),
            Keyed::Aes256(keyed) => keyed.encrypt_blocks(blocks),
            Keyed::Cast5(keyed) => keyed.encrypt_blocks(halves(blocks)),
            Keyed::Serpent(keyed) => keyed.encrypt_blocks(blocks),
            Keyed::Twofish(keyed) => keyed.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Keyed::Aes128(keyed) => keyed.decrypt_blocks(blocks),
            Keyed::Aes192(keyed) => keyed.decrypt_blocks(blocks),
            Keyed::Aes256(keyed) => keyed.decrypt_blocks(blocks),
            Keyed::Cast5(keyed) => keyed.decrypt_blocks(halves(blocks)),
            Keyed::Serpent(keyed) => keyed.decrypt_blocks(blocks),
            Keyed::Twofish(keyed) => keyed.decrypt_blocks(blocks),
        }
    }
}

/// Encrypts and decrypts sectors.
pub struct Cipher {
    mode: Mode,
    iv: Option<Iv>,
    data: Keyed,
    /// The second key of XTS.
    tweak: Option<Keyed>,
    /// Encrypts the numbers of ESSIV.
    essiv: Option<Keyed>,
}

impl Cipher {
    /// `key` has [`Spec::key_bytes`] bytes.
    pub fn new(spec: &Spec, key: &[u8]) -> Result<Cipher> {
        spec.check()?;
        if key.len() != spec.key_bytes() {
            bail!("A key of {} bytes does not fit the cipher", key.len());
        }
        let (first, second) = key.split_at(spec.key);
        let keyed = |key: &[u8]| Keyed::new(spec.algorithm, key);
        let tweak = (spec.mode == Mode::Xts).then(|| keyed(second)).transpose()?;
        let essiv = match spec.iv {
            Some(Iv::Essiv(hash)) => Some(keyed(&hash.digest(&[key]))?),
            _ => None,
        };
        Ok(Cipher { mode: spec.mode, iv: spec.iv, data: keyed(first)?, tweak, essiv })
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
        self.each(sector, data, |vector, blocks| match (self.mode, &self.data) {
            (Mode::Ecb, _) => self.data.encrypt(blocks),
            (Mode::Cbc, Keyed::Cast5(keyed)) => {
                let mut chain = vector as u64;
                for half in halves(blocks) {
                    *half = (chain ^ low(half)).to_le_bytes().into();
                    keyed.encrypt_block(half);
                    chain = low(half);
                }
            }
            (Mode::Cbc, _) => {
                let mut chain = vector;
                for block in blocks {
                    mask(block, chain);
                    self.data.encrypt(std::slice::from_mut(block));
                    chain = number(block);
                }
            }
            (Mode::Ctr, _) => self.counted(vector, blocks),
            (Mode::Xts, _) => self.tweaked(vector, blocks, |blocks| self.data.encrypt(blocks)),
        });
    }

    pub fn decrypt(&self, sector: u64, data: &mut [u8]) {
        self.each(sector, data, |vector, blocks| match (self.mode, &self.data) {
            (Mode::Ecb, _) => self.data.decrypt(blocks),
            (Mode::Cbc, Keyed::Cast5(keyed)) => {
                let mut chain = vector as u64;
                for half in halves(blocks) {
                    let kept = low(half);
                    keyed.decrypt_block(half);
                    *half = (chain ^ low(half)).to_le_bytes().into();
                    chain = kept;
                }
            }
            (Mode::Cbc, _) => {
                let mut chain = [0; SECTOR as usize / BLOCK];
                chain.iter_mut().zip(&*blocks).for_each(|(kept, block)| *kept = number(block));
                self.data.decrypt(blocks);
                let before = std::iter::once(&vector).chain(&chain);
                blocks.iter_mut().zip(before).for_each(|(block, before)| mask(block, *before));
            }
            (Mode::Ctr, _) => self.counted(vector, blocks),
            (Mode::Xts, _) => self.tweaked(vector, blocks, |blocks| self.data.decrypt(blocks)),
        });
    }

    fn each(&self, first: u64, data: &mut [u8], work: impl Fn(u128, &mut [Block])) {
        debug_assert!(data.len().is_multiple_of(SECTOR as usize));
        for (sector, piece) in (first..).zip(data.chunks_exact_mut(SECTOR as usize)) {
            work(self.vector(sector), Block::slice_as_chunks_mut(piece).0);
        }
    }

    /// CTR, which is its own reverse.
    fn counted(&self, vector: u128, blocks: &mut [Block]) {
        let mut stream = [0; SECTOR as usize];
        if let Keyed::Cast5(_) = self.data {
            let first = (vector as u64).swap_bytes();
            for (number, half) in (0..).zip(stream.chunks_exact_mut(BLOCK / 2)) {
                half.copy_from_slice(&first.wrapping_add(number).to_be_bytes());
            }
        } else {
            let first = vector.swap_bytes();
            for (number, block) in (0..).zip(stream.chunks_exact_mut(BLOCK)) {
                block.copy_from_slice(&first.wrapping_add(number).to_be_bytes());
            }
        }
        let stream = Block::slice_as_chunks_mut(&mut stream).0;
        self.data.encrypt(stream);
        blocks.iter_mut().zip(stream).for_each(|(block, with)| mask(block, number(with)));
    }

    /// XTS around the encryption or decryption of all blocks of a sector.
    fn tweaked(&self, vector: u128, blocks: &mut [Block], work: impl Fn(&mut [Block])) {
        let mut tweak = self.tweak.as_ref().map_or(0, |keyed| one(keyed, vector));
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

fn halves(blocks: &mut [Block]) -> &mut [Half] {
    Half::slice_as_chunks_mut(Block::slice_as_flattened_mut(blocks)).0
}

fn low(half: &Half) -> u64 {
    u64::from_le_bytes((*half).into())
}

fn one(keyed: &Keyed, number: u128) -> u128 {
    let mut block = Block::from(number.to_le_bytes());
    keyed.encrypt(std::slice::from_mut(&mut block));
    self::number(&block)
}

fn number(block: &Block) -> u128 {
    u128::from_le_bytes((*block).into())
}

fn mask(block: &mut Block, with: u128) {
    *block = (number(block) ^ with).to_le_bytes().into();
}
