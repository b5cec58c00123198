//! `block-commit` of images that are not active: writes them into their base.

use super::copy::{CHUNK, Failed, Held, How, allocated_above, below, chain, copy};
use super::sweep::{Pass, Sweep};
use super::{Body, Job, Jobs, Setup, filter};
use crate::backend::OnError;
use crate::graph::{Graph, Node};
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

/// Everything above `base` up to `top` goes into `base`; `overlay` is what stands on `top`, and
/// `active` what the guest uses.
pub struct CommitSpec {
    pub setup: Setup,
    pub active: Arc<Node>,
    pub overlay: Arc<Node>,
    pub top: Arc<Node>,
    pub base: Arc<Node>,
    /// Name to write into the overlay's header instead of the base's own.
    pub backing_file: Option<String>,
    pub on_error: OnError,
    pub filter_node_name: Option<String>,
}

struct Commit {
    spec: CommitSpec,
    held: Held,
    base_was_read_only: bool,
}

impl Jobs {
    pub async fn commit(&self, graph: &Arc<Graph>, spec: CommitSpec) -> Result<Arc<Job>> {
        self.check_id(&spec.setup.id)?;
        if Arc::ptr_eq(&spec.top, &spec.base) {
            bail!("cannot commit an image into itself");
        }
        spec.active.check_busy()?;
        let above: Vec<Arc<Node>> = chain(Some(spec.top.clone()), Some(&spec.base)).collect();
        if above.last().and_then(below).is_none() {
            bail!("'{}' is not in this backing file chain", spec.base.filename());
        }
        for node in above.iter().chain([&spec.base, &spec.overlay]) {
            node.check_busy()?;
        }
        let mut held = Held::new(graph, "commit", &spec.setup.id);
        held.keep(&spec.overlay);
        held.block(&spec.active);
        above.iter().chain([&spec.base]).for_each(|node| held.block(node));
        let base_was_read_only = spec.base.is_read_only();
        if base_was_read_only {
            graph.set_read_only(&spec.base, false).await?;
        }
        let prepared = async {
            held.put_filter(&filter::COMMIT, spec.filter_node_name.as_deref(), &spec.top, None).await?;
            let grows = spec.base.size() < spec.top.size();
            attach(&mut held, &spec, grows)?;
            if grows {
                spec.base.truncate(spec.top.size(), Truncate::default()).await?;
            }
            Ok(())
        };
        if let Err(why) = prepared.await {
            held.take_filter().await;
            held.release();
            graph.collect().await;
            if base_was_read_only {
                let _ = graph.set_read_only(&spec.base, true).await;
            }
            self.tell_stillborn(&spec.setup.id);
            return Err(why);
        }
        let setup = spec.setup.clone();
        self.start(setup, Commit { spec, held, base_was_read_only })
    }
}

/// Who stands on the base sees it change: only the overlay, which reads through the filter, may.
fn attach(held: &mut Held, spec: &CommitSpec, grows: bool) -> Result<()> {
    held.freeze(&spec.top, Some(&spec.base))?;
    held.attach("main node", &spec.active, Perm::empty(), Perm::all())?;
    held.attach_above_base(Some(spec.top.clone()), &spec.base)?;
    let mut perm = Perm::CONSISTENT_READ | Perm::WRITE;
    perm.set(Perm::RESIZE, grows);
    held.attach_root(&spec.base, perm, Perm::GUEST_SHARED)?;
    held.attach("base", &spec.base, Perm::empty(), Perm::all())?;
    held.attach_root(&spec.top, Perm::empty(), Perm::all())
}

impl Graph {
    /// Writes what `top` itself holds into the image it stands on, and empties it where its
    /// format can do that (monitor command `commit`). `ENOTSUP`: it stands on none; `EBUSY`: a
    /// job has one of the two; `EACCES`: one of the two cannot be written.
    pub async fn commit_now(self: &Arc<Self>, top: &Arc<Node>) -> IoResult {
        let base = below(top).ok_or_else(|| errno(libc::ENOTSUP))?;
        if top.check_busy().and(base.check_busy()).is_err() {
            return Err(errno(libc::EBUSY));
        }
        if top.is_read_only() {
            return Err(errno(libc::EACCES));
        }
        let was_read_only = base.is_read_only();
        if was_read_only {
            self.set_read_only(&base, false).await.map_err(|_| errno(libc::EACCES))?;
        }
        let mut held = Held::new(self, "commit", "commit");
        let drained = self.drain(top).await;
        let perm = Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE;
        // What stands on the base does not rely on it meanwhile.
        let alone = match held.put_filter(&filter::COMMIT, None, &base, None).await {
            Ok(_) => held.attach_root(&base, perm, Perm::GUEST_SHARED),
            Err(why) => Err(why),
        };
        let result = match alone {
            Ok(()) => pour(top, &base).await,
            Err(_) => Err(errno(libc::EACCES)),
        };
        held.release();
        drop(drained);
        if was_read_only {
            // It stays writable if somebody began to write it.
            let _ = self.set_read_only(&base, true).await;
        }
        result
    }
}

async fn pour(top: &Arc<Node>, base: &Arc<Node>) -> IoResult {
    let size = top.size();
    if base.size() < size {
        base.truncate(size, Truncate::default()).await.map_err(|_| errno(libc::EIO))?;
    }
    let mut at = 0;
    while at < size {
        let status = top.block_status(at, (size - at).min(CHUNK)).await?;
        if status.flags.contains(StatusFlags::ALLOCATED) {
            let copied = copy(top, base, at, status.len, How { unmap: true, compress: false }).await;
            copied.map_err(|(Failed::Source(error) | Failed::Target(error))| error)?;
        }
        at += status.len;
    }
    base.flush().await?;
    match top.layer().make_empty().await {
        Err(error) if errno_of(&error) != libc::ENOTSUP => Err(error),
        _ => top.flush().await,
    }
}

impl Commit {
    async fn copy_all(&self, job: &Job) -> IoResult {
        let CommitSpec { top, base, on_error, .. } = &self.spec;
        let pass = Pass {
            job,
            graph: &self.held.graph,
            size: top.size(),
            piece: CHUNK / 2,
            on_error: *on_error,
            leaves_out: false,
        };
        pass.run(&Arc::new(Merge { top: top.clone(), base: base.clone() })).await?;
        base.flush().await
    }

    /// All that stood on what was committed stands on the base now.
    async fn relink(&self) -> Result<()> {
        let _alone = self.held.graph.relinking.lock().await;
        let mut overlays = self.held.overlays();
        overlays.retain(|one| !Arc::ptr_eq(one, &self.spec.overlay));
        self.relink_one(&self.spec.overlay).await?;
        for overlay in &overlays {
            self.relink_one(overlay).await?;
        }
        Ok(())
    }

    async fn relink_one(&self, overlay: &Arc<Node>) -> Result<()> {
        let (graph, base) = (&self.held.graph, &self.spec.base);
        let drained = graph.drain(overlay).await;
        let was_read_only = overlay.is_read_only();
        if was_read_only {
            graph.set_read_only(overlay, false).await?;
        }
        let name = self.spec.backing_file.clone().unwrap_or_else(|| base.filename());
        let changed = overlay.layer().change_backing(Some(&name), Some(base.driver().name)).await;
        let linked = match changed {
            Ok(()) => graph.set_backing(overlay, Some(base)),
            Err(error) => Err(error.into()),
        };
        if was_read_only {
            let _ = graph.set_read_only(overlay, true).await;
        }
        drop(drained);
        linked
    }
}

/// What goes into the base: all that the nodes above it hold.
struct Merge {
    top: Arc<Node>,
    base: Arc<Node>,
}

impl Sweep for Merge {
    fn look(&self, at: u64, len: u64) -> Fut<'_, IoResult<(bool, u64)>> {
        Box::pin(allocated_above(&self.top, Some(&self.base), at, len))
    }

    fn work(&self, at: u64, len: u64) -> Fut<'_, Result<(), Failed>> {
        Box::pin(copy(&self.top, &self.base, at, len, How { unmap: true, compress: false }))
    }
}

impl Body for Commit {
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult> {
        Box::pin(self.copy_all(job))
    }

    fn commit<'a>(&'a mut self, _job: &'a Job) -> Fut<'a, Result<()>> {
        Box::pin(async {
            self.held.detach();
            self.relink().await
        })
    }

    fn clean<'a>(&'a mut self, _ok: bool) -> Fut<'a, ()> {
        Box::pin(async {
            self.held.take_filter().await;
            self.held.release();
            if self.base_was_read_only {
                // It stays writable if somebody began to write it.
                let _ = self.held.graph.set_read_only(&self.spec.base, true).await;
            }
        })
    }
}
