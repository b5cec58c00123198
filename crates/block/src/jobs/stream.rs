//! `block-stream`: fills a node with what it so far takes from the nodes below it.

use super::copy::{CHUNK, Failed, Held, allocated_above, below, chain, known_zero};
use super::sweep::{Pass, Sweep};
use super::{Body, Job, Jobs, Setup, filter};
use crate::backend::OnError;
use crate::graph::{Graph, Node};
use crate::types::*;
use base::{Result, bail};
use std::sync::Arc;

/// What to stream. Nodes below `top` down to (not including) `base` are taken in.
pub struct StreamSpec {
    pub setup: Setup,
    pub top: Arc<Node>,
    pub base: Option<Arc<Node>>,
    /// Name to write into the header instead of the base's own.
    pub backing_file: Option<String>,
    pub on_error: OnError,
    pub filter_node_name: Option<String>,
}

struct Stream {
    spec: StreamSpec,
    /// The node above the base, which may be another one by and by (a job's filter, which that
    /// job takes out).
    last: Option<Arc<Node>>,
    held: Held,
    tracked: bool,
    was_read_only: bool,
}

impl Jobs {
    pub async fn stream(&self, graph: &Arc<Graph>, spec: StreamSpec) -> Result<Arc<Job>> {
        self.check_id(&spec.setup.id)?;
        spec.top.check_busy()?;
        if spec.backing_file.is_some() && spec.base.is_none() {
            bail!("backing file specified, but streaming the entire chain");
        }
        let mut node = below(&spec.top);
        let last = spec.base.as_ref().and_then(|base| chain(Some(spec.top.clone()), Some(base)).last());
        let mut held = Held::new(graph, "stream", &spec.setup.id);
        held.block(&spec.top);
        while let Some(next) = node {
            if spec.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, &next)) {
                break;
            }
            next.check_busy()?;
            held.block(&next);
            node = below(&next);
        }
        let was_read_only = spec.top.is_read_only();
        if was_read_only {
            graph.set_read_only(&spec.top, false).await?;
        }
        let prepared = async {
            let filter =
                held.put_filter(&filter::STREAM, spec.filter_node_name.as_deref(), &spec.top, None).await?;
            attach(&mut held, &spec, last.as_ref(), &filter)
        };
        if let Err(why) = prepared.await {
            held.take_filter().await;
            held.release();
            graph.collect().await;
            if was_read_only {
                let _ = graph.set_read_only(&spec.top, true).await;
            }
            return Err(why);
        }
        let drained = graph.drain(&spec.top).await;
        spec.top.track();
        drop(drained);
        let setup = spec.setup.clone();
        self.start(setup, Stream { spec, last, held, tracked: true, was_read_only })
    }
}

fn attach(held: &mut Held, spec: &StreamSpec, last: Option<&Arc<Node>>, filter: &Arc<Node>) -> Result<()> {
    let still = Perm::GUEST_SHARED | Perm::WRITE;
    held.attach("main node", filter, Perm::empty(), Perm::all())?;
    held.attach_root(filter, Perm::CONSISTENT_READ, still)?;
    held.attach("active node", &spec.top, Perm::empty(), still)?;
    for node in chain(below(&spec.top), spec.base.as_ref()) {
        held.attach("intermediate node", &node, Perm::empty(), Perm::GUEST_SHARED)?;
    }
    held.freeze(&spec.top, last)
}

impl Stream {
    async fn fill(&self, job: &Job) -> IoResult {
        let top = &self.spec.top;
        let size = top.size();
        let nothing_between = self.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, top));
        if nothing_between || below(top).is_none() {
            return Ok(());
        }
        let pass = Pass {
            job,
            graph: &self.held.graph,
            size,
            piece: CHUNK / 2,
            on_error: self.spec.on_error,
            leaves_out: true,
        };
        pass.run(&Arc::new(Fill { top: top.clone(), last: self.last.clone() })).await
    }

    async fn relink(&self) -> Result<()> {
        let (graph, top) = (&self.held.graph, &self.spec.top);
        if top.backing().is_none() {
            return Ok(());
        }
        let _alone = graph.relinking.lock().await;
        let drained = graph.drain(top).await;
        let base = self.last.as_ref().and_then(below);
        let image = base.as_ref().map(Node::skip_filters);
        let name = match (&image, &self.spec.backing_file) {
            (_, Some(name)) => Some(name.clone()),
            (Some(image), None) => Some(image.filename()),
            (None, None) => None,
        };
        let format = image.map(|image| image.driver().name);
        top.flush().await?;
        graph.set_backing(top, base.as_ref())?;
        let changed = top.layer().change_backing(name.as_deref(), format).await;
        drop(drained);
        changed.map_err(Into::into)
    }
}

/// What goes into the top: all that the nodes below it hold, down to the last one.
struct Fill {
    top: Arc<Node>,
    last: Option<Arc<Node>>,
}

impl Fill {
    /// Copies into the top what is not yet there; guest writes wait meanwhile.
    async fn pull(&self, mut at: u64, len: u64) -> IoResult {
        let (top, end) = (&self.top, at + len);
        let _alone = top.exclusive(at, len).await;
        while at < end {
            let now = top.block_status(at, end - at).await?;
            let len = now.len.min(end - at);
            if now.flags.contains(StatusFlags::ALLOCATED) {
                at += len;
                continue;
            }
            let (zero, run) = known_zero(top, at, len).await?;
            if zero {
                top.zero_unchanged(at, run).await?;
            } else {
                let mut data = crate::buffers::take(run as usize);
                top.read(at, &mut data).await?;
                top.write_unchanged(at, &data).await?;
            }
            at += run;
        }
        Ok(())
    }
}

impl Sweep for Fill {
    fn look(&self, at: u64, len: u64) -> Fut<'_, IoResult<(bool, u64)>> {
        Box::pin(async move {
            let own = self.top.block_status(at, len).await?;
            let len = own.len.min(len);
            if own.flags.contains(StatusFlags::ALLOCATED) {
                return Ok((false, len));
            }
            let next = below(&self.top).ok_or_else(|| errno(libc::EIO))?;
            match at < next.size() {
                true => {
                    let base = self.last.as_ref().and_then(below);
                    allocated_above(&next, base.as_ref(), at, len).await
                }
                false => Ok((true, len)),
            }
        })
    }

    fn work(&self, at: u64, len: u64) -> Fut<'_, Result<(), Failed>> {
        Box::pin(async move { self.pull(at, len).await.map_err(Failed::Source) })
    }
}

impl Body for Stream {
    fn run<'a>(&'a mut self, job: &'a Job) -> Fut<'a, IoResult> {
        Box::pin(self.fill(job))
    }

    fn commit<'a>(&'a mut self, _job: &'a Job) -> Fut<'a, Result<()>> {
        Box::pin(self.relink())
    }

    fn clean<'a>(&'a mut self, _ok: bool) -> Fut<'a, ()> {
        Box::pin(async {
            if std::mem::take(&mut self.tracked) {
                self.spec.top.untrack();
            }
            self.held.take_filter().await;
            self.held.release();
            if self.was_read_only {
                // The filter, which fills the top, is still there.
                self.held.graph.collect().await;
                // It stays writable if somebody began to write it.
                let _ = self.held.graph.set_read_only(&self.spec.top, true).await;
            }
        })
    }
}
