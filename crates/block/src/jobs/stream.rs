//! `block-stream`: fills a node with what it so far takes from the nodes below it.

use super::copy::{CHUNK, Held, allocated_above, below, known_zero};
use super::{Body, Job, Jobs, Setup, filter};
use crate::backend::OnError;
use crate::graph::{Graph, Node};
use crate::notice::Action;
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
        let mut held = Held::new(graph, "stream", &spec.setup.id);
        held.block(&spec.top);
        while let Some(next) = node {
            if spec.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, &next)) {
                held.keep(&next);
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
            held.put_filter(&filter::STREAM, spec.filter_node_name.as_deref(), &spec.top).await?;
            let perm = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
            held.attach("main node", &spec.top, perm, Perm::all())
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
        self.start(setup, Stream { spec, held, tracked: true, was_read_only })
    }
}

impl Stream {
    async fn fill(&self, job: &Job) -> IoResult {
        let top = &self.spec.top;
        let size = top.size();
        let same = |below: &Arc<Node>| self.spec.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, below));
        // Nothing lies between the top and what it shall stand on.
        if below(top).is_none_or(|below| same(&below)) {
            return Ok(());
        }
        job.set_len(size);
        let mut failed = None;
        let mut at = 0;
        while at < size {
            job.pause_point().await?;
            let step = self.step(job, at, (size - at).min(CHUNK / 2)).await;
            match step {
                Ok(done) => {
                    job.advance(done);
                    at += done;
                }
                Err(error) if errno_of(&error) == libc::ECANCELED => return Err(error),
                Err(error) => match job.on_error(self.spec.on_error, false, &error) {
                    Action::Report => return Err(error),
                    Action::Stop => {}
                    Action::Ignore => {
                        failed.get_or_insert(error);
                        let skip = (size - at).min(CHUNK / 2);
                        job.advance(skip);
                        at += skip;
                    }
                },
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn step(&self, job: &Job, at: u64, len: u64) -> IoResult<u64> {
        let top = &self.spec.top;
        let own = top.block_status(at, len).await?;
        if own.flags.contains(StatusFlags::ALLOCATED) {
            return Ok(own.len.min(len));
        }
        let next = below(top).ok_or_else(|| errno(libc::EIO))?;
        let len = own.len.min(len);
        if at < next.size() {
            let (data, run) = allocated_above(&next, self.spec.base.as_ref(), at, len).await?;
            if !data {
                return Ok(run);
            }
            job.pace(run).await?;
            return self.pull(at, run).await;
        }
        self.pull(at, len).await
    }

    /// Copies into the top what is not yet there; guest writes wait meanwhile.
    async fn pull(&self, at: u64, len: u64) -> IoResult<u64> {
        let top = &self.spec.top;
        let _alone = top.exclusive(at, len).await;
        let now = top.block_status(at, len).await?;
        let len = now.len.min(len);
        if now.flags.contains(StatusFlags::ALLOCATED) {
            return Ok(len);
        }
        let (zero, run) = known_zero(top, at, len).await?;
        if zero {
            top.zero_unchanged(at, run).await?;
        } else {
            let mut data = crate::buffers::take(run as usize);
            top.read(at, &mut data).await?;
            top.write_unchanged(at, &data).await?;
        }
        Ok(run)
    }

    async fn relink(&self) -> Result<()> {
        let (graph, top) = (&self.held.graph, &self.spec.top);
        if top.backing().is_none() {
            return Ok(());
        }
        let drained = graph.drain(top).await;
        let base = self.spec.base.as_ref();
        let name = match (base, &self.spec.backing_file) {
            (_, Some(name)) => Some(name.clone()),
            (Some(base), None) => Some(base.filename().to_string()),
            (None, None) => None,
        };
        let format = base.map(|base| base.driver().name);
        top.flush().await?;
        graph.set_backing(top, base)?;
        let changed = top.layer().change_backing(name.as_deref(), format).await;
        drop(drained);
        changed.map_err(Into::into)
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
                // It stays writable if somebody began to write it.
                let _ = self.held.graph.set_read_only(&self.spec.top, true).await;
            }
        })
    }
}
