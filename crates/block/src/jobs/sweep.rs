//! One pass over an image, in pieces that are worked on at the same time.

use super::Job;
use super::copy::Failed;
use super::crew::{Crew, Ended};
use crate::backend::OnError;
use crate::graph::Graph;
use crate::notice::Action;
use crate::types::*;
use std::collections::BTreeMap;
use std::io;
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

/// How far a pass has come. Pieces end in any order; what is counted, and which error is told,
/// is as if they were done one after the other.
#[derive(Default)]
struct Course {
    /// All before it is done and counted.
    mark: u64,
    /// Begins and lengths of what is done behind the mark.
    done: BTreeMap<u64, u64>,
    /// What is to be done (again).
    again: BTreeMap<u64, u64>,
    /// What has failed and is looked at when the mark comes there.
    failed: BTreeMap<u64, (u64, Failed)>,
    /// What has not yet been looked at begins here.
    next: u64,
    /// The first error that was left out.
    left_out: Option<io::Error>,
}

impl Course {
    fn finish(&mut self, job: &Job, from: u64, len: u64) {
        self.done.insert(from, len);
        while let Some(len) = self.done.remove(&self.mark) {
            self.mark += len;
            job.advance(len);
        }
    }

    fn note(&mut self, job: &Job, ended: Ended<Worked>) {
        match ended.result {
            Ok(()) => self.finish(job, ended.from, ended.len),
            Err(failed) => {
                self.failed.insert(ended.from, (ended.len, failed));
            }
        }
    }

    /// The next piece to begin: none behind a failure, which may end all.
    fn take(&mut self, pass: &Pass<'_>) -> Option<(u64, u64)> {
        let end = self.failed.keys().next().copied().unwrap_or(u64::MAX);
        if self.again.keys().next().is_some_and(|from| *from < end) {
            return self.again.pop_first();
        }
        let (from, len) = (self.next, pass.piece.min(pass.size - self.next));
        if from > end || len == 0 {
            return None;
        }
        self.next += len;
        Some((from, len))
    }
}

impl Pass<'_> {
    /// Goes over the whole of the image.
    pub async fn run(self, what: &Arc<impl Sweep>) -> IoResult {
        let mut crew = Crew::new(self.graph, IN_FLIGHT);
        let mut course = Course::default();
        let result = self.go(what, &mut crew, &mut course).await;
        // What was begun ends, and counts.
        loop {
            match crew.next().await {
                Ok(None) => return result,
                Ok(Some(ended)) => course.note(self.job, ended),
                Err(_) => {}
            }
        }
    }

    async fn go(&self, what: &Arc<impl Sweep>, crew: &mut Crew<Worked>, course: &mut Course) -> IoResult {
        let job = self.job;
        job.set_len(self.size);
        loop {
            if job.is_to_pause() {
                while let Some(ended) = crew.next().await? {
                    course.note(job, ended);
                }
                // That they failed is found out again.
                let failed = std::mem::take(&mut course.failed);
                course.again.extend(failed.into_iter().map(|(from, (len, _))| (from, len)));
            }
            job.pause_point().await?;
            if let Some((len, failed)) = course.failed.remove(&course.mark) {
                self.failed(course, len, failed).await?;
                continue;
            }
            let next = match crew.is_full() || job.is_limited() && !crew.is_empty() {
                true => None,
                false => course.take(self),
            };
            match next {
                None if crew.is_empty() => return course.left_out.take().map_or(Ok(()), Err),
                None => {
                    if let Some(ended) = crew.next().await? {
                        course.note(job, ended);
                    }
                }
                Some((from, len)) => self.begin(what, crew, course, from, len).await?,
            }
        }
    }

    async fn begin(
        &self,
        what: &Arc<impl Sweep>,
        crew: &mut Crew<Worked>,
        course: &mut Course,
        from: u64,
        len: u64,
    ) -> IoResult {
        let (todo, run) = match what.look(from, len).await {
            Ok(found) => found,
            Err(error) => {
                course.failed.insert(from, (len, Failed::Source(error)));
                return Ok(());
            }
        };
        if run < len {
            course.again.insert(from + run, len - run);
        }
        if !todo {
            course.finish(self.job, from, run);
            return Ok(());
        }
        self.job.pace(run).await?;
        let what = what.clone();
        crew.start(from, run, async move { what.work(from, run).await });
        Ok(())
    }

    /// Decides what becomes of the piece at the mark, which failed. The error ends the pass.
    async fn failed(&self, course: &mut Course, len: u64, failed: Failed) -> IoResult {
        let (job, from) = (self.job, course.mark);
        let (write, error) = match failed {
            Failed::Source(error) => (false, error),
            Failed::Target(error) => (true, error),
        };
        match job.on_error(self.on_error, write, &error) {
            Action::Report => return Err(error),
            Action::Ignore if self.leaves_out => {
                course.finish(job, from, len);
                course.left_out.get_or_insert(error);
            }
            action => {
                course.again.insert(from, len);
                if action == Action::Ignore {
                    job.wait(Duration::from_millis(10)).await;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
