//! Encryption of images: ciphers over sectors, and LUKS version 1.

mod cipher;
mod late;
pub mod luks;
mod luks_header;
mod luks_slots;

pub use cipher::{Algorithm, Cipher, Iv, Mode, Spec};
pub use late::OldAes;
pub use luks_slots::Change;

/// Bytes that are encrypted together.
pub const SECTOR: u64 = 512;

/// A hash function that LUKS headers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

/// What options call the hash functions.
pub const HASHES: [(&str, Hash); 6] = [
    ("sha1", Hash::Sha1),
    ("sha224", Hash::Sha224),
    ("sha256", Hash::Sha256),
    ("sha384", Hash::Sha384),
    ("sha512", Hash::Sha512),
    ("ripemd160", Hash::Ripemd160),
];

impl Hash {
    pub fn as_str(self) -> &'static str {
        HASHES.iter().find(|(_, hash)| *hash == self).map_or("", |(name, _)| name)
    }

    /// The digest of pieces put together.
    fn digest(self, pieces: &[&[u8]]) -> Vec<u8> {
        use sha2::Digest;
        fn of<D: Digest>(pieces: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            pieces.iter().for_each(|piece| hash.update(piece));
            hash.finalize().to_vec()
        }
        match self {
            Hash::Sha1 => of::<sha1::Sha1>(pieces),
            Hash::Sha224 => of::<sha2::Sha224>(pieces),
            Hash::Sha256 => of::<sha2::Sha256>(pieces),
            Hash::Sha384 => of::<sha2::Sha384>(pieces),
            Hash::Sha512 => of::<sha2::Sha512>(pieces),
            Hash::Ripemd160 => of::<ripemd::Ripemd160>(pieces),
        }
    }

    /// PBKDF2 with HMAC of this hash (RFC 8018).
    fn pbkdf2(self, password: &[u8], salt: &[u8], rounds: u32, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let make = match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<sha1::Sha1>,
            Hash::Sha224 => pbkdf2::pbkdf2_hmac::<sha2::Sha224>,
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<sha2::Sha256>,
            Hash::Sha384 => pbkdf2::pbkdf2_hmac::<sha2::Sha384>,
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<sha2::Sha512>,
            Hash::Ripemd160 => pbkdf2::pbkdf2_hmac::<ripemd::Ripemd160>,
        };
        make(password, salt, rounds, &mut out);
        out
    }
}

#[cfg(test)]
mod tests;
