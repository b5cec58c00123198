//! One pass over an image, in pieces that are worked on at the same time.

use super::Job;
use super::copy::Failed;
use super::crew::{Crew, Ended};
use crate::backend::OnError;
use crate::graph::Graph;
use crate::notice::Action;
use crate::types::*;
use std::sync::Arc;
use std::time::Duration;

/// Pieces worked on at once.
const IN_FLIGHT: usize = 8;

/// What a pass does.
pub(super) trait Sweep: Send + Sync + 'static {
    /// Whether anything is to be done at `at`, and for how many bytes (at most `len`) that is so.
    fn look(&self, at: u64, len: u64) -> Fut<'_, IoResult<(bool, u64)>>;

    /// Does it.
    fn work(&self, at: u64, len: u64) -> Fut<'_, Result<(), Failed>>;
}

/// How a pass goes.
pub(super) struct Pass<'a> {
    pub job: &'a Job,
    pub graph: &'a Arc<Graph>,
    pub size: u64,
    /// Most bytes of a piece.
    pub piece: u64,
    pub on_error: OnError,
    /// What failed and may be ignored is left out (and is the result at the end); else it is
    /// tried until it works.
    pub leaves_out: bool,
}

type Worked = Result<(), Failed>;

impl Pass<'_> {
    /// Goes over the whole of the image.
    pub async fn run(self, what: &Arc<impl Sweep>) -> IoResult {
        let mut crew = Crew::new(self.graph, IN_FLIGHT);
        let result = self.go(what, &mut crew).await;
        crew.settle().await;
        result
    }

    async fn go(&self, what: &Arc<impl Sweep>, crew: &mut Crew<Worked>) -> IoResult {
        let job = self.job;
        job.set_len(self.size);
        let (mut at, mut again, mut left_out) = (0, Vec::new(), None);
        loop {
            if job.is_to_pause() {
                while let Some(ended) = crew.next().await? {
                    match ended.result {
                        Ok(()) => job.advance(ended.len),
                        Err(_) => again.push((ended.from, ended.len)),
                    }
                }
            }
            job.pause_point().await?;
            let next = match crew.is_full() || job.is_limited() && !crew.is_empty() {
                true => None,
                false => again.pop().or_else(|| self.piece_at(&mut at)),
            };
            let ended = match next {
                None if crew.is_empty() => return left_out.map_or(Ok(()), Err),
                None => crew.next().await?,
                Some((from, len)) => match what.look(from, len).await {
                    Ok((todo, run)) => {
                        if run < len {
                            again.push((from + run, len - run));
                        }
                        match todo {
                            true => self.start(what, crew, from, run).await?,
                            false => job.advance(run),
                        }
                        continue;
                    }
                    Err(error) => Some(Ended { from, len, result: Err(Failed::Source(error)) }),
                },
            };
            let Some(ended) = ended else { continue };
            if let Some(error) = self.ended(ended, &mut again).await? {
                left_out.get_or_insert(error);
            }
        }
    }

    fn piece_at(&self, at: &mut u64) -> Option<(u64, u64)> {
        let from = *at;
        let len = self.piece.min(self.size - from);
        *at += len;
        (len > 0).then_some((from, len))
    }

    async fn start(&self, what: &Arc<impl Sweep>, crew: &mut Crew<Worked>, from: u64, len: u64) -> IoResult {
        self.job.pace(len).await?;
        let what = what.clone();
        crew.start(from, len, async move { what.work(from, len).await });
        Ok(())
    }

    /// Counts what was done; of what was not, decides what becomes of it. Returns the error if
    /// the piece is left out.
    async fn ended(
        &self,
        ended: Ended<Worked>,
        again: &mut Vec<(u64, u64)>,
    ) -> IoResult<Option<std::io::Error>> {
        let job = self.job;
        let (write, error) = match ended.result {
            Ok(()) => {
                job.advance(ended.len);
                return Ok(None);
            }
            Err(Failed::Source(error)) => (false, error),
            Err(Failed::Target(error)) => (true, error),
        };
        if job.is_to_pause() {
            // One error has stopped the job: that others failed too is found out again.
            again.push((ended.from, ended.len));
            return Ok(None);
        }
        match job.on_error(self.on_error, write, &error) {
            Action::Report => Err(error),
            Action::Ignore if self.leaves_out => {
                job.advance(ended.len);
                Ok(Some(error))
            }
            action => {
                again.push((ended.from, ended.len));
                if action == Action::Ignore {
                    job.wait(Duration::from_millis(10)).await;
                }
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests;
