//! Snapshots and changes of bitmaps, alone or several at one point in time, all or none.

use crate::backend::Drained;
use crate::bitmap::DirtyBitmap;
use crate::driver::Snapshot;
use crate::graph::{Child, Graph, Node, Pin, Settings};
use crate::jobs::{BackupSpec, Job};
use crate::options::Options;
use crate::types::{Fut, Perm, errno};
use base::{Failure, Result, bail, fail};
use serde_json::json;
use std::sync::Arc;

/// Longest name of a bitmap in bytes.
const BITMAP_NAME: usize = 1023;

/// Which bitmap: of what node (or device), called what.
#[derive(Clone, Debug)]
pub struct BitmapName {
    pub node: String,
    pub name: String,
}

/// One thing to do. Names are node names or device names, as each command has them.
pub enum Action {
    /// `blockdev-snapshot-sync`.
    SnapshotSync(SnapshotSync),
    /// `blockdev-snapshot`: an opened node comes over another.
    Snapshot {
        node: String,
        overlay: String,
    },
    /// `blockdev-snapshot-internal-sync`.
    Internal {
        device: String,
        snapshot: Snapshot,
    },
    /// `drive-backup`, `blockdev-backup`: what finds or makes its nodes and bitmaps, once the
    /// actions before it are done.
    Backup(Box<dyn FnOnce() -> Fut<'static, Result<BackupSpec>> + Send>),
    BitmapAdd {
        at: BitmapName,
        granularity: Option<u32>,
        persistent: bool,
        disabled: bool,
    },
    BitmapRemove(BitmapName),
    BitmapClear(BitmapName),
    BitmapEnable(BitmapName, bool),
    /// Sources are names on the same node, or with a node of their own.
    BitmapMerge {
        target: BitmapName,
        sources: Vec<BitmapName>,
    },
    Abort,
}

/// The arguments of `blockdev-snapshot-sync`.
#[derive(Clone, Debug, Default)]
pub struct SnapshotSync {
    pub device: Option<String>,
    pub node_name: Option<String>,
    pub file: String,
    pub snapshot_node_name: Option<String>,
    pub format: Option<String>,
    /// The file exists and is as it should be.
    pub existing: bool,
}

/// How to take an action back, or make it final.
enum Done {
    /// And the users that moved to the overlay.
    Overlay {
        overlay: Arc<Node>,
        old: Arc<Node>,
        moved: Vec<Child>,
        pin: Option<Pin>,
    },
    Internal {
        node: Arc<Node>,
        id: String,
    },
    Job(Arc<Job>),
    Added(Arc<Node>, Arc<DirtyBitmap>),
    /// And where it stood in the list.
    Removed(Arc<Node>, Arc<DirtyBitmap>, usize),
    Bits(Arc<DirtyBitmap>, Vec<u64>),
    Enabled(Arc<DirtyBitmap>, bool),
}

impl Graph {
    /// Does all actions at one point in time. If one fails, those before it are undone and
    /// those after it not tried.
    pub async fn transaction(&self, actions: Vec<Action>) -> Result<()> {
        let mut held: Vec<Drained> = Vec::new();
        for backend in self.backends() {
            held.push(backend.quiesce().await);
        }
        let mut done = Vec::new();
        for action in actions {
            match self.prepare(action).await {
                Ok(step) => done.extend(step),
                Err(why) => {
                    for step in done.into_iter().rev() {
                        self.undo(step).await;
                    }
                    drop(held);
                    self.collect().await;
                    return Err(why);
                }
            }
        }
        let job = |step: &Done| match step {
            Done::Job(job) => Some(job.clone()),
            _ => None,
        };
        let jobs: Vec<_> = done.iter().filter_map(job).collect();
        for step in done {
            self.finish(step).await;
        }
        drop(held);
        jobs.iter().for_each(|job| job.let_go());
        self.collect().await;
        Ok(())
    }

    async fn prepare(&self, action: Action) -> Result<Option<Done>> {
        match action {
            Action::SnapshotSync(spec) => self.snapshot_sync(spec).await.map(Some),
            Action::Snapshot { node, overlay } => {
                let old = self.lookup(Some(&node), Some(&node))?;
                let overlay = self.lookup(Some(&overlay), Some(&overlay))?;
                let moved = self.put_over(&old, &overlay).await?;
                Ok(Some(Done::Overlay { overlay, old, moved, pin: None }))
            }
            Action::Internal { device, snapshot } => self.internal(&device, snapshot).await.map(Some),
            Action::Backup(make) => {
                // The job drains by itself; users are held already.
                let mut spec = make().await?;
                // It is set up now and runs when all actions have been done.
                spec.setup.deferred = true;
                let job = self.jobs.backup(&self.arc(), spec).await?;
                Ok(Some(Done::Job(job)))
            }
            Action::Abort => bail!("Transaction aborted using Abort action"),
            other => self.bitmap_action(other).await,
        }
    }

    async fn snapshot_sync(&self, spec: SnapshotSync) -> Result<Done> {
        let format = spec.format.clone().unwrap_or_else(|| "qcow2".into());
        let driver = crate::formats::find(&format).ok_or_else(|| fail!("Invalid block format '{format}'"))?;
        let old = self.lookup(spec.device.as_deref(), spec.node_name.as_deref())?;
        if spec.node_name.is_some() && spec.snapshot_node_name.is_none() {
            bail!("New overlay node-name missing");
        }
        if let Some(name) = &spec.snapshot_node_name
            && (self.find(name).is_some() || self.backend(name).is_some())
        {
            bail!("New overlay node-name already in use");
        }
        old.check_free()?;
        if !driver.backing {
            bail!("The overlay does not support backing images");
        }
        if !spec.existing {
            let mut options = Options::new();
            options.set("size", old.size().next_multiple_of(512));
            options.set("backing_file", crate::graph::filename::absolute(&old.filename()));
            options.set("backing_fmt", old.driver().name);
            self.create_image_told(&spec.file, &format, options).await?;
        }
        let mut options = Options::json(json!({"driver": format, "filename": spec.file, "backing": null}));
        if let Some(name) = &spec.snapshot_node_name {
            options.set("node-name", name.as_str());
        }
        let settings = Settings { read_only: false, ..old.settings() };
        let pin = self.open(options, settings).await?;
        let overlay = pin.clone();
        let moved = self.put_over(&old, &overlay).await?;
        Ok(Done::Overlay { overlay, old, moved, pin: Some(pin) })
    }

    /// Lets users of `old` use `overlay`, which stands on it; these users.
    async fn put_over(&self, old: &Arc<Node>, overlay: &Arc<Node>) -> Result<Vec<Child>> {
        old.check_free()?;
        if overlay.parents().iter().any(|edge| edge.perm().0.contains(Perm::CONSISTENT_READ)) {
            bail!("The overlay is already in use");
        }
        if overlay.driver().kind == crate::driver::Kind::Filter {
            bail!("Filters cannot be used as overlays");
        }
        if overlay.backing().is_some() {
            bail!("The overlay already has a backing image");
        }
        if !overlay.driver().backing {
            bail!("The overlay does not support backing images");
        }
        if !old.is_read_only() {
            old.flush().await.map_err(|_| Failure::new("An IO error has occurred"))?;
        }
        crate::graph::check_cycle(old, "backing", overlay)?;
        // What the overlay itself stands on stays below it.
        let edges = old.parents_outside(Some(overlay));
        self.set_backing(overlay, Some(old))?;
        if let Err(why) = self.redirect_all(&edges, overlay) {
            self.set_backing(overlay, None)?;
            return Err(why);
        }
        Ok(edges)
    }

    /// What a device holds, or the node of that name.
    fn at_device(&self, device: &str) -> Result<Arc<Node>> {
        if self.backend(device).is_none() && self.find(device).is_none() {
            return Err(Failure::device_not_found(device));
        }
        let node = self.lookup(Some(device), Some(device))?;
        node.check_root()?;
        Ok(node)
    }

    async fn internal(&self, device: &str, snapshot: Snapshot) -> Result<Done> {
        let node = self.at_device(device)?;
        node.check_free()?;
        if node.is_read_only() {
            bail!("Device '{device}' is read only");
        }
        let shown = node.skip_filters();
        let Some(facet) = shown.layer().snapshots() else {
            bail!(
                "Block format '{}' used by device '{device}' does not support internal snapshots",
                shown.driver().name
            )
        };
        if snapshot.name.is_empty() {
            bail!("Name is empty");
        }
        let name = snapshot.name.clone();
        if facet.find(None, Some(&name)).is_some() {
            bail!("Snapshot with name '{name}' already exists on device '{device}'");
        }
        let made = facet.create(snapshot).await;
        made.map_err(|error| {
            Failure::os(format!("Failed to create snapshot '{name}' on device '{device}'"), &error)
        })?;
        let id = facet.find(None, Some(&name)).map(|made| made.id).unwrap_or_default();
        Ok(Done::Internal { node: shown, id })
    }

    /// A bitmap by node (or device) and name.
    pub fn bitmap(&self, at: &BitmapName) -> Result<(Arc<Node>, Arc<DirtyBitmap>)> {
        let found = self.lookup(Some(&at.node), Some(&at.node));
        let node = found.map_err(|_| fail!("Node '{}' not found", at.node))?.skip_filters();
        match node.bitmaps().find(&at.name) {
            Some(bitmap) => Ok((node, bitmap)),
            None => bail!("Dirty bitmap '{}' not found", at.name),
        }
    }

    async fn bitmap_action(&self, action: Action) -> Result<Option<Done>> {
        match action {
            Action::BitmapAdd { at, granularity, persistent, disabled } => {
                self.bitmap_add(at, granularity, persistent, disabled).await.map(Some)
            }
            Action::BitmapRemove(at) => {
                let (node, bitmap) = self.bitmap(&at)?;
                usable(&bitmap, true)?;
                let at = node.bitmaps().list().iter().position(|one| Arc::ptr_eq(one, &bitmap)).unwrap_or(0);
                node.bitmaps().remove(&bitmap);
                Ok(Some(Done::Removed(node, bitmap, at)))
            }
            Action::BitmapClear(at) => {
                let (_, bitmap) = self.bitmap(&at)?;
                usable(&bitmap, false)?;
                let bits = bitmap.words();
                bitmap.clear();
                Ok(Some(Done::Bits(bitmap, bits)))
            }
            Action::BitmapEnable(at, on) => {
                let (_, bitmap) = self.bitmap(&at)?;
                usable(&bitmap, false)?;
                let was = bitmap.is_enabled();
                bitmap.enable(on);
                Ok(Some(Done::Enabled(bitmap, was)))
            }
            Action::BitmapMerge { target, sources } => {
                let (_, bitmap) = self.bitmap(&target)?;
                usable(&bitmap, false)?;
                let bits = bitmap.words();
                let sum = DirtyBitmap::new(None, bitmap.granularity(), bitmap.size());
                for source in sources {
                    let (_, other) = self.bitmap(&source)?;
                    readable(&other, false)?;
                    if other.size() != bitmap.size() {
                        bail!(
                            "Bitmaps are of different sizes (destination size is {} and source size is {}) and can't be merged",
                            bitmap.size(),
                            other.size()
                        );
                    }
                    sum.merge(&other);
                }
                bitmap.merge(&sum);
                Ok(Some(Done::Bits(bitmap, bits)))
            }
            _ => Ok(None),
        }
    }

    async fn bitmap_add(
        &self,
        at: BitmapName,
        granularity: Option<u32>,
        persistent: bool,
        disabled: bool,
    ) -> Result<Done> {
        if at.name.is_empty() {
            bail!("Bitmap name cannot be empty");
        }
        if at.name.len() > BITMAP_NAME {
            bail!("Bitmap name too long: {}", at.name);
        }
        let node = self.lookup(Some(&at.node), Some(&at.node))?.skip_filters();
        let granularity = match granularity {
            Some(given) if !given.is_power_of_two() || given < 512 => {
                bail!("Granularity must be power of 2 and at least 512")
            }
            Some(given) => given,
            None => node.layer().info().cluster_size.map_or(65536, |size| size.clamp(4096, 65536)) as u32,
        };
        if node.bitmaps().find(&at.name).is_some() {
            bail!("Bitmap already exists: {}", at.name);
        }
        DirtyBitmap::check_size(granularity, node.size())?;
        if persistent {
            let Some(facet) = node.layer().stored_bitmaps() else {
                let why = errno(libc::ENOTSUP);
                return Err(Failure::os(
                    format!("Can't store persistent bitmaps to {}", node.shown_name()),
                    &why,
                ));
            };
            if node.is_read_only() {
                bail!("Block node '{}' is read-only", node.name());
            }
            facet.can_store(&at.name, granularity).await?;
        }
        let bitmap = Arc::new(DirtyBitmap::new(Some(at.name), granularity, node.size()));
        bitmap.set_persistent(persistent);
        bitmap.enable(!disabled);
        node.bitmaps().add(bitmap.clone());
        Ok(Done::Added(node, bitmap))
    }

    async fn undo(&self, step: Done) {
        match step {
            Done::Overlay { overlay, old, moved, pin } => {
                // Back to what was allowed before.
                let _ = self.redirect_all(&moved, &old);
                let _ = self.set_backing(&overlay, None);
                drop(pin);
            }
            Done::Internal { node, id } => {
                if let Some(facet) = node.layer().snapshots() {
                    let _ = facet.delete(&id).await;
                }
            }
            Done::Job(job) => {
                let _ = job.cancel(true);
                while !matches!(job.status(), crate::jobs::Status::Concluded | crate::jobs::Status::Null) {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            Done::Added(node, bitmap) => node.bitmaps().remove(&bitmap),
            Done::Removed(node, bitmap, at) => node.bitmaps().insert(at, bitmap),
            Done::Bits(bitmap, bits) => bitmap.restore(bits),
            Done::Enabled(bitmap, was) => bitmap.enable(was),
        }
    }

    async fn finish(&self, step: Done) {
        match step {
            Done::Overlay { old, .. } => {
                // It stays writable if somebody else writes it.
                let _ = self.set_read_only(&old, true).await;
            }
            Done::Removed(node, bitmap, _) => {
                if let (Some(facet), Some(name)) = (node.layer().stored_bitmaps(), bitmap.name())
                    && bitmap.is_persistent()
                    && let Err(why) = facet.remove(&name).await
                {
                    eprintln!("block: bitmap '{name}' of node '{}' stays in the image: {why}", node.name());
                }
            }
            Done::Job(job) => job.begin_held(),
            _ => {}
        }
    }

    /// `blockdev-snapshot-delete-internal-sync`.
    pub async fn delete_internal(
        &self,
        device: &str,
        id: Option<&str>,
        name: Option<&str>,
    ) -> Result<Snapshot> {
        if id.is_none() && name.is_none() {
            bail!("Name or id must be provided");
        }
        let node = self.at_device(device)?.skip_filters();
        node.check_free()?;
        let Some(facet) = node.layer().snapshots() else {
            bail!(
                "Block format '{}' used by device '{device}' does not support internal snapshot deletion",
                node.driver().name
            )
        };
        let held = self.drain(&node).await;
        let null = "(null)";
        let Some(found) = facet.find(id, name) else {
            let (id, name) = (id.unwrap_or(null), name.unwrap_or(null));
            bail!("Snapshot with id '{id}' and name '{name}' does not exist on device '{device}'")
        };
        facet.delete(&found.id).await.map_err(|error| Failure::os("Failed to delete snapshot", &error))?;
        drop(held);
        Ok(found)
    }
}

/// Refuses bitmaps that cannot be used or changed now.
fn usable(bitmap: &DirtyBitmap, any: bool) -> Result<()> {
    readable(bitmap, any)?;
    if bitmap.is_read_only() {
        bail!("Bitmap '{}' is readonly and cannot be modified", bitmap.name().unwrap_or_default());
    }
    Ok(())
}

/// Refuses bitmaps that cannot be used now.
pub(crate) fn readable(bitmap: &DirtyBitmap, any: bool) -> Result<()> {
    let name = bitmap.name().unwrap_or_default();
    if bitmap.is_busy() {
        bail!("Bitmap '{name}' is currently in use by another operation and cannot be used");
    }
    if bitmap.is_inconsistent() && !any {
        return Err(fail!("Bitmap '{name}' is inconsistent and cannot be used")
            .hint("Try block-dirty-bitmap-remove to delete this bitmap from disk"));
    }
    Ok(())
}
