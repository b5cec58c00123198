//! Encrypted images: LUKS and the old AES, on the way to and from the file.

use super::Qcow2;
use super::header::Header;
use crate::crypto::luks::{Recipe, Volume};
use crate::crypto::{Change, OldAes, SECTOR};
use crate::graph::Child;
use crate::options::Options;
use crate::types::*;
use crate::vault::Vault;
use base::{Failure, Result, bail, fail};
use serde_json::{Value, json};

const AES: u32 = 1;
const LUKS: u32 = 2;
/// A LUKS header with its key material is never longer.
const MAX_AREA: u64 = 64 << 20;

/// The key of an encrypted image.
pub(super) enum Crypto {
    /// Sectors are counted in the guest's disk.
    Aes(OldAes),
    /// Sectors are counted in the file. And the name of the secret that opened it.
    Luks(Box<Volume>, String),
}

impl Crypto {
    pub fn encrypt(&self, guest: u64, host: u64, data: &mut [u8]) -> IoResult {
        match self {
            Crypto::Aes(aes) => aes.encrypt(guest, data)?,
            Crypto::Luks(volume, _) => volume.cipher.encrypt(host / SECTOR, data),
        }
        Ok(())
    }

    pub fn decrypt(&self, guest: u64, host: u64, data: &mut [u8]) -> IoResult {
        match self {
            Crypto::Aes(aes) => aes.decrypt(guest, data)?,
            Crypto::Luks(volume, _) => volume.cipher.decrypt(host / SECTOR, data),
        }
        Ok(())
    }

    /// What may still be without its key.
    pub fn late(&self) -> Option<&OldAes> {
        match self {
            Crypto::Aes(aes) => Some(aes),
            Crypto::Luks(..) => None,
        }
    }

    /// As tools show it.
    pub fn describe(&self) -> Value {
        match self {
            Crypto::Aes(_) => json!({"format": "aes"}),
            Crypto::Luks(volume, _) => {
                let mut all = volume.describe();
                all["format"] = "luks".into();
                all
            }
        }
    }
}

/// Finds the key that the header needs with what option `encrypt` says. With `late` that of the old
/// AES may come later.
pub(super) async fn unlock(
    file: &Child,
    header: &Header,
    given: Option<Options>,
    late: bool,
    vault: &dyn Vault,
) -> Result<Option<Crypto>> {
    let mut given = given.unwrap_or_default();
    let format = given.take_str("format")?;
    let needed = match header.crypt_method {
        0 if format.is_some() || !given.is_empty() => {
            bail!(
                "No encryption in image header, but options specified format '{}'",
                format.unwrap_or_default()
            )
        }
        0 => return Ok(None),
        AES => "aes",
        LUKS => "luks",
        other => bail!("Unsupported encryption method {other}"),
    };
    if let Some(format) = format.filter(|format| format != needed) {
        bail!("Header reported '{needed}' encryption format but options specify '{format}'");
    }
    if header.crypt_method == AES {
        return Ok(Some(Crypto::Aes(OldAes::open(&mut given, late, vault)?)));
    }
    let key = given.take_str("key-secret")?;
    given.finish_in("encrypt")?;
    let key = key.ok_or_else(|| fail!("Parameter 'encrypt.key-secret' is required for cipher"))?;
    let password = vault.secret(&key)?;
    let Some((offset, len)) = header.crypto else { bail!("CRYPTO header extension not found") };
    if offset & (header.cluster_size() - 1) != 0 || offset == 0 {
        bail!("Encryption header offset '{offset}' is not a multiple of cluster size");
    }
    if offset.checked_add(len).is_none_or(|end| end > file.size().next_multiple_of(header.cluster_size())) {
        bail!("Encryption header lies outside of the image");
    }
    let volume = Volume::open(file, offset, len.min(MAX_AREA), password).await?;
    Ok(Some(Crypto::Luks(Box::new(volume), key)))
}

/// Takes option `encrypt` of creation: how the LUKS header is made and the secret's name.
pub(super) fn take_recipe(options: &mut Options) -> Result<Option<(Recipe, String)>> {
    let Some(mut encrypt) = options.take_table("encrypt")? else { return Ok(None) };
    match encrypt.need_str("format")?.as_str() {
        "luks" => {}
        "aes" => bail!("New images with the old AES encryption are not made; use format 'luks'"),
        other => bail!("Parameter 'encrypt.format' does not accept value '{other}'"),
    }
    let key = encrypt.need_str("key-secret")?;
    let recipe = Recipe::take(&mut encrypt)?;
    encrypt.finish_in("encrypt")?;
    Ok(Some((recipe, key)))
}

impl Qcow2 {
    /// Reads mapped data.
    pub(super) async fn read_store(&self, guest: u64, host: u64, buf: &mut [u8]) -> IoResult {
        self.store().read(host, buf).await?;
        if let Some(crypto) = &self.crypto {
            crypto.decrypt(guest, host, buf)?;
        }
        Ok(())
    }

    /// Writes to where `guest` is mapped.
    pub(super) async fn write_store(&self, guest: u64, host: u64, data: &[u8]) -> IoResult {
        let Some(crypto) = &self.crypto else {
            return self.store().write(host, data, WriteFlags::empty()).await;
        };
        let mut hidden = data.to_vec();
        crypto.encrypt(guest, host, &mut hidden)?;
        self.store().write(host, &hidden, WriteFlags::empty()).await
    }

    /// Carries out the `encrypt` of `x-blockdev-amend`.
    pub(super) async fn amend_key(&self, mut encrypt: Options, vault: &dyn Vault, force: bool) -> Result<()> {
        let format = encrypt.need_str("format")?;
        let Some(crypto) = &self.crypto else { bail!("QCOW2 image is not encrypted, can't amend") };
        let (Crypto::Luks(volume, key), "luks") = (crypto, format.as_str()) else {
            bail!("Amend can't be used to change the qcow2 encryption format")
        };
        let change = Change::take(&mut encrypt, vault)?;
        encrypt.finish_in("encrypt")?;
        volume.amend(&self.file, change, vault.secret(key), force).await
    }

    /// Puts a LUKS header into a new image that has no data yet; it is encrypted when it is
    /// opened again.
    pub(super) async fn adopt_luks(&self, luks: &[u8]) -> Result<()> {
        let failed = |error: std::io::Error| Failure::os("Could not write encryption header", &error);
        let clusters = (luks.len() as u64).div_ceil(self.geometry.cluster_size());
        let offset = self.with(|meta| meta.allocate(clusters)).await.map_err(failed)?;
        let mut padded = luks.to_vec();
        padded.resize((clusters << self.geometry.cluster_bits) as usize, 0);
        self.file.write(offset, &padded, WriteFlags::empty()).await.map_err(failed)?;
        self.sync().await.map_err(failed)?;
        self.file.flush().await.map_err(failed)?;
        {
            let mut meta = self.meta.lock();
            meta.header.crypt_method = LUKS;
            meta.header.crypto = Some((offset, luks.len() as u64));
        }
        self.write_header().await.map_err(failed)?;
        Ok(())
    }
}
