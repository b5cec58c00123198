//! Opening an image.

use super::entry::Geometry;
use super::header::*;
use super::meta::Meta;
use super::refcounts::Refcounts;
use super::{Qcow2, encrypt, snapshot};
use crate::driver::{Layer, Open};
use crate::graph::{Child, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Mutex, Result, bail};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Memory for L2 tables unless options say otherwise.
const CACHE_BYTES: u64 = 32 << 20;

pub(super) fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let mut runtime = take_runtime_options(&mut open.options)?;
        let file = open.file().await?;
        let header = read_header(&file).await?;
        let (given, late) = (runtime.encrypt.take(), open.settings.late_key);
        let crypto = encrypt::unlock(&file, &header, given, late, open.graph.vault()).await?;
        if header.has(INCOMPAT_CORRUPT) && !open.settings.read_only {
            bail!("qcow2: Image is corrupt; cannot be opened read/write");
        }
        runtime.check(&header)?;
        let data = open_data(open, &header).await?;
        let (l1, refs) = read_tables(&file, &header).await?;
        let stored = snapshot::read_table(&file, &header).await?;
        let names = header.backing.clone();
        let backing = match &names {
            Some(name) => open.backing(Some((name, header.backing_format.as_deref()))).await?,
            None => open.backing(None).await?,
        };
        let geometry = Geometry::of(&header);
        let tables = (runtime.cache.unwrap_or(CACHE_BYTES) >> header.cluster_bits).clamp(2, 1 << 16) as usize;
        let image = Qcow2 {
            context: open.context.clone(),
            data,
            crypto,
            backing: Mutex::new(backing),
            geometry,
            size: AtomicU64::new(header.size),
            meta: Mutex::new(Meta::new(header, l1, refs)),
            snapshots: Mutex::new(stored),
            sync_lock: tokio::sync::Mutex::new(()),
            epochs: Default::default(),
            allocated: Default::default(),
            unpacked: Mutex::new(None),
            read_only: AtomicBool::new(open.settings.read_only),
            dead: AtomicBool::new(false),
            complained: AtomicBool::new(false),
            header_stale: AtomicBool::new(false),
            cached_tables: tables,
            pass_discard: AtomicBool::new(runtime.passes_discard(&open.settings)),
            pool: open.graph.main_thread().handle().clone(),
            file,
        };
        image.load_bitmaps().await?;
        if !open.settings.read_only {
            image.begin_writing().await?;
        }
        Ok(Arc::new(image) as Arc<dyn Layer>)
    })
}

pub(super) async fn read_header(file: &Child) -> Result<Header> {
    let len = file.size().min(MAX_HEADER);
    let failed = |error: std::io::Error| Failure::os("Could not read qcow2 header", &error);
    let mut head = vec![0; len.min(4096) as usize];
    file.read(0, &mut head).await.map_err(failed)?;
    let bits = head.get(20..24).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    if (13..=21).contains(&bits) {
        head.resize(len.min(1 << bits) as usize, 0);
        file.read(0, &mut head).await.map_err(failed)?;
    }
    Header::parse(&head, file.size())
}

/// The tables that are kept in memory: of L2 tables and of refcount blocks.
async fn read_tables(file: &Child, header: &Header) -> Result<(Vec<u64>, Refcounts)> {
    let l1 = read_words(file, header.l1_offset, u64::from(header.l1_size)).await?;
    let bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
    let table = read_words(file, header.reftable_offset, bytes / 8).await?;
    let (bits, order) = (header.cluster_bits, header.refcount_order);
    Ok((l1, Refcounts::new(bits, order, table, header.reftable_offset, file.size())))
}

async fn open_data(open: &mut Open, header: &Header) -> Result<Option<Child>> {
    if !header.has(INCOMPAT_DATA_FILE) {
        if open.options.contains("data-file") {
            bail!("'data-file' can only be set for images with an external data file");
        }
        return Ok(None);
    }
    let role = Role::DATA;
    match open.options.take("data-file") {
        Some(value) => open.child_from("data-file", role, value).await.map(Some),
        None => {
            let Some(name) = &header.data_file else { bail!("'data-file' is required for this image") };
            let value = json!({"filename": open.path_beside(name)?});
            open.child_from("data-file", role, value).await.map(Some)
        }
    }
}

/// Reads a table of big endian words that the header has bounded.
pub(super) async fn read_words(file: &Child, offset: u64, count: u64) -> Result<Vec<u64>> {
    let bytes = count * 8;
    if bytes > 0 && offset >= file.size() {
        bail!("Could not read table at {offset:#x}: it lies outside of the image");
    }
    let mut data = vec![0; bytes as usize];
    if bytes > 0 {
        file.read(offset, &mut data).await.map_err(|error| Failure::os("Could not read table", &error))?;
    }
    Ok(data.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

#[derive(Default)]
pub(super) struct Runtime {
    cache: Option<u64>,
    pass_discard: Option<bool>,
    lazy: Option<bool>,
    entry: Option<u64>,
    encrypt: Option<Options>,
}

/// What an open image can be given anew; the key stays what it is.
pub(super) const RUNTIME: &[&str] = &[
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
    "cache-clean-interval",
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "overlap-check",
];

impl Runtime {
    /// Refuses what does not suit the image.
    pub(super) fn check(&self, header: &Header) -> Result<()> {
        if self.lazy == Some(true) && header.version < 3 {
            bail!("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
        }
        let cluster = 1 << header.cluster_bits;
        if self.entry.is_some_and(|size| !size.is_power_of_two() || !(512..=cluster).contains(&size)) {
            bail!("L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})");
        }
        Ok(())
    }

    pub(super) fn passes_discard(&self, settings: &Settings) -> bool {
        self.pass_discard.unwrap_or(true) && settings.discard
    }
}

/// Options that do not change what is in the image.
pub(super) fn take_runtime_options(options: &mut Options) -> Result<Runtime> {
    let mut runtime = Runtime::default();
    let total = options.take_u64("cache-size")?;
    let l2 = options.take_u64("l2-cache-size")?;
    let refcounts = options.take_u64("refcount-cache-size")?;
    if let (Some(total), Some(l2), Some(refcounts)) = (total, l2, refcounts)
        && l2.checked_add(refcounts) != Some(total)
    {
        bail!("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    }
    for (key, part) in [("l2-cache-size", l2), ("refcount-cache-size", refcounts)] {
        if let (Some(total), Some(part)) = (total, part)
            && part > total
        {
            bail!("{key} may not exceed cache-size");
        }
    }
    runtime.cache = l2.or(total);
    runtime.entry = options.take_u64("l2-cache-entry-size")?;
    options.take_u64("cache-clean-interval")?;
    // Refcounts are always kept exactly; the header's feature is shown, not needed.
    runtime.lazy = options.take_bool("lazy-refcounts")?;
    runtime.pass_discard = options.take_bool("pass-discard-request")?;
    options.take_bool("pass-discard-snapshot")?;
    options.take_bool("pass-discard-other")?;
    options.take_bool("discard-no-unref")?;
    take_overlap_check(options)?;
    runtime.encrypt = options.take_table("encrypt")?;
    Ok(runtime)
}

/// All checks that exist are cheap and always made; the words are only looked at.
fn take_overlap_check(options: &mut Options) -> Result<()> {
    let templates = ["none", "constant", "cached", "all"];
    let check = |word: &str| match templates.contains(&word) {
        true => Ok(()),
        false => Err(base::fail!(
            "Unsupported value '{word}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all"
        )),
    };
    match options.take("overlap-check") {
        None => {}
        Some(Value::String(word)) => check(&word)?,
        Some(Value::Object(map)) => {
            let mut flags = options.within("overlap-check", map);
            if let Some(word) = flags.take_str("template")? {
                check(&word)?;
            }
            let areas = [
                "main-header",
                "active-l1",
                "active-l2",
                "refcount-table",
                "refcount-block",
                "snapshot-table",
                "inactive-l1",
                "inactive-l2",
                "bitmap-directory",
            ];
            for area in areas {
                flags.take_bool(area)?;
            }
            flags.finish_in("overlap-check")?;
        }
        Some(_) => bail!("Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks"),
    }
    Ok(())
}

impl Qcow2 {
    /// Takes the metadata from what is the file now: an image with clusters and keys as before.
    pub(super) async fn read_again(&self) -> Result<()> {
        let header = read_header(&self.file).await?;
        let kind = |header: &Header| {
            let (geometry, crypto) = (Geometry::of(header), (header.crypt_method, header.crypto));
            (geometry, header.refcount_order, crypto, header.compression, header.has(INCOMPAT_DATA_FILE))
        };
        if kind(&header) != kind(&self.meta.lock().header) {
            bail!("The new file of node '{}' is not an image of the same kind", self.context.node_name);
        }
        self.check_bitmaps_are_ours(&header).await?;
        let (l1, refs) = read_tables(&self.file, &header).await?;
        let stored = snapshot::read_table(&self.file, &header).await?;
        self.size.store(header.size, Ordering::Release);
        *self.meta.lock() = Meta::new(header, l1, refs);
        *self.snapshots.lock() = stored;
        *self.unpacked.lock() = None;
        self.header_stale.store(false, Ordering::Release);
        match self.read_only.load(Ordering::Acquire) {
            true => Ok(()),
            false => self.begin_writing().await,
        }
    }

    /// What the first writer must do: repair after a crash, drop features we do not keep.
    pub(super) async fn begin_writing(&self) -> Result<()> {
        let header = self.meta.lock().header.clone();
        if header.has(INCOMPAT_DIRTY) {
            let found = self.check_image(crate::driver::Fix::All).await?;
            if found.check_errors > 0 {
                bail!("Could not repair dirty image");
            }
        }
        let keep = AUTOCLEAR_RAW_DATA | AUTOCLEAR_BITMAPS;
        let stale = {
            let mut meta = self.meta.lock();
            let stale = meta.header.autoclear & !keep != 0 || meta.header.has(INCOMPAT_DIRTY);
            meta.header.autoclear &= keep;
            meta.header.incompatible &= !INCOMPAT_DIRTY;
            stale
        };
        if stale {
            self.write_header().await?;
        }
        self.mark_bitmaps_in_use().await
    }

    /// Writes everything and gives up what can be: the end of writing.
    pub(super) async fn settle_down(&self) -> IoResult {
        for _ in 0..3 {
            self.sync().await?;
            let meta = self.meta.lock();
            if meta.frees.is_empty() && meta.ripe.is_empty() {
                break;
            }
        }
        self.sync().await?;
        self.file.flush().await
    }

    /// Writes back early when much has gathered.
    pub(super) async fn relieve(&self) -> IoResult {
        let heavy = self.meta.lock().is_heavy(self.cached_tables);
        if heavy && !self.read_only.load(Ordering::Acquire) { self.sync().await } else { Ok(()) }
    }
}
