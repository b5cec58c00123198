//! `luks`: a volume encrypted with LUKS version 1.

use crate::crypto::luks::{MAGIC, Recipe, Volume};
use crate::crypto::{Change, SECTOR};
use crate::driver::{Create, CreateOption, Driver, Info, Layer, Open, Probe};
use crate::graph::Child;
use crate::options::Options;
use crate::types::*;
use crate::vault::Vault;
use base::{Result, bail, fail};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub static DRIVER: Driver = Driver {
    name: "luks",
    shares: true,
    probe: Some(probe),
    open,
    create: Some(create),
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "key-secret", modern: "key-secret", help: "ID of the secret with the password" },
        CreateOption {
            name: "cipher-alg",
            modern: "cipher-alg",
            help: "Name of encryption cipher algorithm",
        },
        CreateOption { name: "cipher-mode", modern: "cipher-mode", help: "Name of encryption cipher mode" },
        CreateOption { name: "ivgen-alg", modern: "ivgen-alg", help: "Name of IV generator algorithm" },
        CreateOption { name: "ivgen-hash-alg", modern: "ivgen-hash-alg", help: "Hash of the IV generator" },
        CreateOption { name: "hash-alg", modern: "hash-alg", help: "Name of encryption hash algorithm" },
        CreateOption {
            name: "iter-time",
            modern: "iter-time",
            help: "Time to spend in PBKDF in milliseconds",
        },
        CreateOption {
            name: "preallocation",
            modern: "preallocation",
            help: "Preallocation mode (allowed values: off, falloc, full)",
        },
    ],
    amends: true,
    telling: &["key-secret"],
    ..Driver::DEFAULT
};

fn probe(probe: &Probe<'_>) -> u32 {
    let version = probe.head.get(6..8);
    if probe.head.starts_with(&MAGIC) && version == Some(&[0, 1]) { 100 } else { 0 }
}

struct Luks {
    file: Child,
    volume: Volume,
    /// The name of the secret that opened it.
    key: String,
    /// Where the guest's data begin, in bytes.
    payload: u64,
    /// Key slots are being written.
    amending: AtomicBool,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let key = open.options.take_str("key-secret")?;
        let key = key.ok_or_else(|| fail!("Parameter 'key-secret' is required for cipher"))?;
        let password = open.graph.vault().secret(&key)?;
        let file = open.file().await?;
        let volume = Volume::open(&file, 0, file.size(), password).await?;
        let payload = u64::from(volume.header().payload) * SECTOR;
        if payload > file.size() {
            bail!("LUKS payload is overlapping the end of the image");
        }
        Ok(Arc::new(Luks { file, volume, key, payload, amending: AtomicBool::new(false) }) as Arc<dyn Layer>)
    })
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.options.need_u64("size")?;
        let preallocation = crate::graph::create::take_preallocation(&mut create.options)?;
        let file = create.file().await?;
        let key = create.options.need_str("key-secret")?;
        let recipe = Recipe::take(&mut create.options)?;
        let password = create.graph.vault().secret(&key)?;
        create.finish()?;
        let whole = size.checked_add(recipe.payload_offset()).filter(|whole| *whole <= i64::MAX as u64);
        let whole = whole.ok_or_else(|| fail!("The requested file size is too large"))?;
        let made = tokio::task::spawn_blocking(move || recipe.make(&password));
        let header = made.await.map_err(|_| fail!("Making the LUKS header was interrupted"))??;
        file.truncate(whole, Truncate { exact: true, preallocation, zero: false }).await?;
        let failed = |error: std::io::Error| base::Failure::os("Unable to write LUKS header", &error);
        file.write(0, &header, WriteFlags::empty()).await.map_err(failed)?;
        file.flush().await.map_err(failed)
    })
}

impl Layer for Luks {
    fn size(&self) -> u64 {
        self.file.size().saturating_sub(self.payload) / SECTOR * SECTOR
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: SECTOR as u32, max_transfer: 1 << 20, ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.file.read(self.payload + offset, buf).await?;
            self.volume.cipher.decrypt(offset / SECTOR, buf);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut hidden = data.to_vec();
            self.volume.cipher.encrypt(offset / SECTOR, &mut hidden);
            self.file.write(self.payload + offset, &hidden, flags & WriteFlags::FUA).await
        })
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let whole = size
                .checked_add(self.payload)
                .ok_or_else(|| fail!("The requested file size is too large"))?;
            self.file.truncate(whole, Truncate { zero: false, ..how }).await
        })
    }

    fn amend<'a>(
        &'a self,
        options: &'a mut Options,
        vault: &'a dyn Vault,
        force: bool,
    ) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let change = Change::take(options, vault)?;
            options.finish()?;
            self.volume.amend(&self.file, change, vault.secret(&self.key), force).await
        })
    }

    fn amending(&self, on: bool) {
        self.amending.store(on, Ordering::Release);
    }

    /// As a filter: the header stays as it is, so that others may write too if users let them.
    /// Who changes key slots is alone.
    fn child_perm(&self, _role: Role, _read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        match self.amending.load(Ordering::Acquire) {
            true => {
                (perm | Perm::CONSISTENT_READ | Perm::WRITE, shared - Perm::CONSISTENT_READ - Perm::WRITE)
            }
            false => (perm | Perm::CONSISTENT_READ, shared),
        }
    }

    fn info(&self) -> Info {
        let specific = json!({"type": "luks", "data": self.volume.describe()});
        let dirty = self.file.node().layer().info().dirty;
        Info { encrypted: true, specific: Some(specific), dirty, ..Info::default() }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
