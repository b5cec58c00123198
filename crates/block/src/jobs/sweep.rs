//! One pass over an image, in pieces that are worked on at the same time.

use super::Job;
use super::copy::Failed;
use super::crew::{Crew, Ended};
use crate::backend::OnError;
use crate::graph::Graph;
use crate::notice::Action;
use crate::types::*;
use std::collections::BTreeMap;
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

/// How far a pass has come. What has ended counts when all before it has: progress and errors are
/// told in the order of the image, however many pieces are worked on at once.
#[derive(Default)]
struct Course {
    /// Where nothing has begun yet.
    at: u64,
    /// Up to where all is done.
    front: u64,
    /// Begun before and to be done (again).
    again: Vec<(u64, u64)>,
    ended: BTreeMap<u64, (u64, Worked)>,
    left_out: Option<std::io::Error>,
}

impl Course {
    fn piece(&mut self, most: u64, size: u64) -> Option<(u64, u64)> {
        if let Some(piece) = self.again.pop() {
            return Some(piece);
        }
        let from = self.at;
        let len = most.min(size - from);
        self.at += len;
        (len > 0).then_some((from, len))
    }

    fn end(&mut self, ended: Ended<Worked>) {
        self.ended.insert(ended.from, (ended.len, ended.result));
    }

    /// What has ended next in the order of the image.
    fn next(&mut self) -> Option<Ended<Worked>> {
        let from = self.front;
        self.ended.remove(&from).map(|(len, result)| Ended { from, len, result })
    }

    fn pass(&mut self, job: &Job, len: u64) {
        self.front += len;
        job.advance(len);
    }

    /// All that failed is to be tried again.
    fn retry(&mut self) {
        let failed: Vec<u64> =
            self.ended.iter().filter(|(_, (_, result))| result.is_err()).map(|(from, _)| *from).collect();
        for from in failed.into_iter().rev() {
            if let Some((len, _)) = self.ended.remove(&from) {
                self.again.push((from, len));
            }
        }
    }
}

impl Pass<'_> {
    /// Goes over the whole of the image.
    pub async fn run(self, what: &Arc<impl Sweep>) -> IoResult {
        let mut crew = Crew::new(self.graph, IN_FLIGHT);
        let mut course = Course::default();
        let result = self.go(what, &mut crew, &mut course).await;
        while let Ok(Some(ended)) = crew.next().await {
            course.end(ended);
        }
        crew.settle().await;
        while let Some(Ended { len, result: Ok(()), .. }) = course.next() {
            course.pass(self.job, len);
        }
        result
    }

    async fn go(&self, what: &Arc<impl Sweep>, crew: &mut Crew<Worked>, course: &mut Course) -> IoResult {
        let job = self.job;
        job.set_len(self.size);
        job.first_point().await;
        loop {
            let next = match crew.is_full() || job.is_limited() && !crew.is_empty() {
                true => None,
                false => course.piece(self.piece, self.size),
            };
            match next {
                None if crew.is_empty() => return course.left_out.take().map_or(Ok(()), Err),
                None => {
                    if let Some(ended) = crew.next().await? {
                        course.end(ended);
                    }
                }
                Some(piece) if job.is_limited() && job.pace(0).await.is_err() => {
                    course.again.push(piece);
                    return Err(errno(libc::ECANCELED));
                }
                Some((from, len)) => match what.look(from, len).await {
                    Ok((todo, run)) => {
                        if run < len {
                            course.again.push((from + run, len - run));
                        }
                        match todo {
                            true => self.start(what, crew, course, from, run).await?,
                            false => course.end(Ended { from, len: run, result: Ok(()) }),
                        }
                    }
                    Err(error) => course.end(Ended { from, len, result: Err(Failed::Source(error)) }),
                },
            }
            while let Some(ended) = course.next() {
                self.ended(ended, course).await?;
            }
            if job.is_to_pause() {
                while let Some(ended) = crew.next().await? {
                    course.end(ended);
                }
                while let Some(ended) = course.next() {
                    self.ended(ended, course).await?;
                }
                course.retry();
            }
            job.pause_point().await?;
        }
    }

    async fn start(
        &self,
        what: &Arc<impl Sweep>,
        crew: &mut Crew<Worked>,
        course: &mut Course,
        from: u64,
        len: u64,
    ) -> IoResult {
        if let Err(ended) = self.job.pace(len).await {
            course.again.push((from, len));
            return Err(ended);
        }
        let what = what.clone();
        crew.start(from, len, async move { what.work(from, len).await });
        Ok(())
    }

    /// Counts what was done; of what was not, decides what becomes of it.
    async fn ended(&self, ended: Ended<Worked>, course: &mut Course) -> IoResult {
        let job = self.job;
        let (write, error) = match ended.result {
            Ok(()) => {
                course.pass(job, ended.len);
                return Ok(());
            }
            Err(Failed::Source(error)) => (false, error),
            Err(Failed::Target(error)) => (true, error),
        };
        if job.is_to_pause() {
            // One error has stopped the job: that others failed too is found out again.
            course.again.push((ended.from, ended.len));
            return Ok(());
        }
        match job.on_error(self.on_error, write, &error) {
            Action::Report => return Err(error),
            Action::Ignore if self.leaves_out => {
                course.pass(job, ended.len);
                course.left_out.get_or_insert(error);
            }
            Action::Ignore => {
                course.again.push((ended.from, ended.len));
                job.wait(Duration::from_millis(10)).await;
            }
            Action::Stop => {
                course.again.push((ended.from, ended.len));
                course.retry();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
