//! Encryption of images: AES over sectors, and LUKS version 1.

mod cipher;
mod late;
pub mod luks;
mod luks_header;
mod luks_slots;

pub use cipher::{Cipher, Iv, Mode, Spec};
pub use late::OldAes;
pub use luks_slots::Change;

/// Bytes that are encrypted together.
pub const SECTOR: u64 = 512;

/// A hash function that LUKS headers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

/// What options call the hash functions.
pub const HASHES: [(&str, Hash); 3] =
    [("sha1", Hash::Sha1), ("sha256", Hash::Sha256), ("sha512", Hash::Sha512)];

impl Hash {
    pub fn as_str(self) -> &'static str {
        match self {
            Hash::Sha1 => "sha1",
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
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
            Hash::Sha256 => of::<sha2::Sha256>(pieces),
            Hash::Sha512 => of::<sha2::Sha512>(pieces),
        }
    }

    /// PBKDF2 with HMAC of this hash (RFC 8018).
    fn pbkdf2(self, password: &[u8], salt: &[u8], rounds: u32, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt, rounds, &mut out),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, salt, rounds, &mut out),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, salt, rounds, &mut out),
        }
        out
    }
}

#[cfg(test)]
mod tests;
