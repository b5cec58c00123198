//! The old AES of qcow and qcow2, whose key may come after opening.

use super::{Algorithm, Cipher, Iv, Mode, SECTOR, Spec};
use crate::types::{IoResult, errno};
use base::{Mutex, Result};
use std::sync::Arc;

/// AES-128 in CBC mode over sectors of the guest's disk; the password itself is the key. Until
/// there is one every request ends in `EACCES`.
pub struct OldAes(Mutex<Option<Arc<Cipher>>>);

impl OldAes {
    pub fn new(password: Option<&[u8]>) -> Result<Self> {
        let aes = OldAes(Mutex::new(None));
        password.map_or(Ok(()), |password| aes.set(password))?;
        Ok(aes)
    }

    /// Any password will do: nothing in the image tells whether it is right. At most 16 bytes of
    /// it count.
    pub fn set(&self, password: &[u8]) -> Result<()> {
        let mut key = password.to_vec();
        key.resize(16, 0);
        let spec = Spec { algorithm: Algorithm::Aes, key: 16, mode: Mode::Cbc, iv: Some(Iv::Plain64) };
        *self.0.lock() = Some(Arc::new(Cipher::new(&spec, &key)?));
        Ok(())
    }

    pub fn is_missing(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Refuses where there is no key yet.
    pub fn check(&self) -> IoResult {
        self.cipher().map(drop)
    }

    fn cipher(&self) -> IoResult<Arc<Cipher>> {
        self.0.lock().clone().ok_or_else(|| errno(libc::EACCES))
    }

    /// Whole sectors that begin at offset `at` of the guest's disk.
    pub fn encrypt(&self, at: u64, data: &mut [u8]) -> IoResult {
        self.cipher()?.encrypt(at / SECTOR, data);
        Ok(())
    }

    /// The reverse of [`OldAes::encrypt`].
    pub fn decrypt(&self, at: u64, data: &mut [u8]) -> IoResult {
        self.cipher()?.decrypt(at / SECTOR, data);
        Ok(())
    }

    /// Takes option `encrypt` of opening. Without `key-secret` the key is missing, where `late`
    /// allows that.
    pub fn open(given: &mut crate::Options, late: bool, vault: &dyn crate::Vault) -> Result<Self> {
        let key = given.take_str("key-secret")?;
        given.finish_in("encrypt")?;
        match key {
            Some(key) => Self::new(Some(&vault.secret(&key)?)),
            None if late => Self::new(None),
            None => base::bail!("Parameter 'encrypt.key-secret' is required for cipher"),
        }
    }
}
