//! Key slots of a LUKS volume in use, as `x-blockdev-amend` changes them.

use super::SECTOR;
use super::luks::{Header, Volume, random, rounds_by, take_time};
use super::luks_header::{SLOTS, STRIPES, slot_sectors};
use crate::graph::Child;
use crate::options::Options;
use crate::types::WriteFlags;
use crate::vault::Vault;
use base::{Failure, Result, bail, fail};
use std::time::Duration;

/// One change (`QCryptoBlockAmendOptionsLUKS`).
pub enum Change {
    /// Puts a password into a free slot, or the one that is named.
    Activate { new: Vec<u8>, old: Option<Vec<u8>>, slot: Option<usize>, time: Duration },
    /// Empties the slots that a password opens, or the one that is named.
    Erase { old: Option<Vec<u8>>, slot: Option<usize> },
}

impl Change {
    /// Takes `state`, `new-secret`, `old-secret`, `secret` (of a slot to be activated), `keyslot` and `iter-time`.
    pub fn take(options: &mut Options, vault: &dyn Vault) -> Result<Change> {
        let active = options.take_word("state", &[("active", true), ("inactive", false)])?;
        let active = active.ok_or_else(|| fail!("Parameter 'state' is missing"))?;
        let slot = match options.take_u64("keyslot")? {
            Some(slot) if slot >= SLOTS as u64 => {
                bail!("Invalid keyslot {slot} specified, must be between 0 and {}", SLOTS - 1)
            }
            slot => slot.map(|slot| slot as usize),
        };
        let mut secret = |key: &str| match options.take_str(key)? {
            Some(id) => vault.secret(&id).map(Some),
            None => Ok(None),
        };
        let (new, mut old) = (secret("new-secret")?, secret("old-secret")?);
        if active {
            // What opens the volume now, if it is not what opened it then.
            old = secret("secret")?.or(old);
        }
        match (active, new) {
            (true, Some(new)) => Ok(Change::Activate { new, old, slot, time: take_time(options)? }),
            (true, None) => bail!("'new-secret' is required to activate a keyslot"),
            (false, Some(_)) => bail!("'new-secret' must not be given when erasing keyslots"),
            (false, None) if options.contains("iter-time") => {
                bail!("'iter-time' must not be given when erasing keyslots")
            }
            (false, None) => Ok(Change::Erase { old, slot }),
        }
    }
}

impl Volume {
    /// Changes key slots in `file`. `own` is the password that the volume was opened with; with
    /// `force` slots in use are overwritten and the last one is emptied.
    pub async fn amend(&self, file: &Child, change: Change, own: Result<Vec<u8>>, force: bool) -> Result<()> {
        match change {
            Change::Activate { new, old, slot, time } => {
                let old = old.map_or(own, Ok)?;
                self.activate(file, (new, old), slot, time, force).await
            }
            Change::Erase { old, slot } => self.erase(file, old, slot, force).await,
        }
    }

    async fn activate(
        &self,
        file: &Child,
        (new, old): (Vec<u8>, Vec<u8>),
        slot: Option<usize>,
        time: Duration,
        force: bool,
    ) -> Result<()> {
        let mut header = self.header();
        let index = match slot {
            Some(index) if header.slots[index].active && !force => {
                bail!("Refusing to overwrite active keyslot {index} - please erase it first")
            }
            Some(index) => index,
            None => header
                .slots
                .iter()
                .position(|slot| !slot.active)
                .ok_or_else(|| fail!("Can't add a keyslot - all keyslots are in use"))?,
        };
        let key = header.unlock(file, self.place, &old).await?;
        let made = tokio::task::spawn_blocking(move || {
            let rounds = rounds_by(header.hash, header.spec.key_bytes())(time);
            let material = header.fill_slot(index, &key, &new, rounds)?;
            Ok::<_, Failure>((header, material))
        });
        let (header, material) = made.await.map_err(|_| fail!("The change was interrupted"))??;
        // The header names the slot only when its material is there.
        self.write(file, u64::from(header.slots[index].offset) * SECTOR, &material).await?;
        self.write(file, 0, &header.encode()).await?;
        self.set_header(header);
        Ok(())
    }

    async fn erase(
        &self,
        file: &Child,
        old: Option<Vec<u8>>,
        slot: Option<usize>,
        force: bool,
    ) -> Result<()> {
        let mut header = self.header();
        let active: Vec<usize> = (0..SLOTS).filter(|&index| header.slots[index].active).collect();
        let erased = match (old, slot) {
            (Some(old), slot) => {
                let mut found = Vec::new();
                for &index in active.iter().filter(|&&index| slot.is_none_or(|slot| slot == index)) {
                    if header.try_slot(file, self.place, index, &old).await?.is_some() {
                        found.push(index);
                    }
                }
                if found.is_empty() {
                    bail!("No keyslots match given (old) password for erase operation");
                }
                if found.len() == active.len() && !force {
                    bail!(
                        "All the active keyslots match the (old) password that was given and erasing them will \
                         erase all the data in the image irreversibly - refusing operation"
                    );
                }
                found
            }
            (None, Some(index)) if !header.slots[index].active && !force => {
                bail!("Given keyslot {index} is already erased (inactive)")
            }
            (None, Some(index)) if active == [index] && !force => bail!(
                "Attempt to erase the only active keyslot {index} which will erase all the data in the image \
                 irreversibly - refusing operation"
            ),
            (None, Some(index)) => vec![index],
            (None, None) => bail!(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in \
                 them must be given"
            ),
        };
        for index in erased {
            header.slots[index].active = false;
            (header.slots[index].rounds, header.slots[index].salt) = (0, [0; 32]);
            self.write(file, 0, &header.encode()).await?;
            self.set_header(header.clone());
            self.wipe(file, &header, index).await?;
        }
        Ok(())
    }

    /// Overwrites a slot's material.
    async fn wipe(&self, file: &Child, header: &Header, index: usize) -> Result<()> {
        let bytes = header.spec.key_bytes();
        let material = bytes as u64 * u64::from(STRIPES);
        let mut noise = vec![0; material.min(slot_sectors(bytes) * SECTOR) as usize];
        random(&mut noise)?;
        self.write(file, u64::from(header.slots[index].offset) * SECTOR, &noise).await
    }

    async fn write(&self, file: &Child, at: u64, data: &[u8]) -> Result<()> {
        let failed = |error: std::io::Error| Failure::os("Unable to write LUKS header", &error);
        file.write(self.place.0 + at, data, WriteFlags::empty()).await.map_err(failed)?;
        file.flush().await.map_err(failed)
    }
}
