use super::*;
use crate::graph::tests::graph;
use crate::jobs::{Kind, Setup};
use base::Mutex;
use tokio::sync::Notify;

const SIZE: u64 = 1050;

/// Something is to be done in every second stretch of 70 bytes.
struct Fake {
    /// Where work fails, how many times more, and whether reading is to blame.
    fails: Mutex<Vec<(u64, u32, bool)>>,
    /// Where looking fails, once.
    blind: Mutex<Option<u64>>,
    done: Mutex<Vec<(u64, u64)>>,
    tried: Mutex<u32>,
    /// Pieces wait for it, if there is one.
    gate: Option<Notify>,
    begun: Notify,
}

impl Fake {
    fn new() -> Fake {
        Fake {
            fails: Mutex::default(),
            blind: Mutex::default(),
            done: Mutex::default(),
            tried: Mutex::default(),
            gate: None,
            begun: Notify::new(),
        }
    }

    fn failing(at: u64, times: u32) -> Fake {
        let fake = Fake::new();
        fake.fails.lock().push((at, times, false));
        fake
    }

    /// What has been done, in order; every byte at most once.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let mut done = self.done.lock().clone();
        done.sort();
        assert!(done.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{done:?}");
        done
    }

    /// Whether a byte has been done.
    fn has(&self, byte: u64) -> bool {
        self.ranges().iter().any(|&(from, len)| (from..from + len).contains(&byte))
    }
}

fn wanted(byte: u64) -> bool {
    (byte / 70).is_multiple_of(2)
}

impl Sweep for Fake {
    fn look(&self, at: u64, len: u64) -> Fut<'_, IoResult<(bool, u64)>> {
        Box::pin(async move {
            if self.blind.lock().take_if(|place| *place == at).is_some() {
                return Err(errno(libc::EIO));
            }
            Ok((wanted(at), len.min(70 - at % 70)))
        })
    }

    fn work(&self, at: u64, len: u64) -> Fut<'_, Result<(), Failed>> {
        Box::pin(async move {
            *self.tried.lock() += 1;
            self.begun.notify_one();
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            for (place, times, source) in self.fails.lock().iter_mut() {
                if (at..at + len).contains(place) && *times > 0 {
                    *times -= 1;
                    let error = errno(libc::ENOSPC);
                    return Err(if *source { Failed::Source(error) } else { Failed::Target(error) });
                }
            }
            self.done.lock().push((at, len));
            Ok(())
        })
    }
}

/// A pass over `what` in the making, and its job.
fn begin(
    what: &Arc<Fake>,
    on_error: OnError,
    leaves_out: bool,
) -> (Arc<Graph>, Arc<Job>, tokio::task::JoinHandle<IoResult>) {
    let graph = graph();
    let job = Job::new(Setup::new(Kind::Stream, "j"), &graph.jobs.0);
    let (at, running, what) = (graph.clone(), job.clone(), what.clone());
    let pass = graph.main_thread().handle().spawn(async move {
        let pass = Pass { job: &running, graph: &at, size: SIZE, piece: 100, on_error, leaves_out };
        pass.run(&what).await
    });
    (graph, job, pass)
}

/// What came of the pass, as an error number.
fn end(graph: &Arc<Graph>, pass: tokio::task::JoinHandle<IoResult>) -> Option<i32> {
    let limited = async { tokio::time::timeout(Duration::from_secs(60), pass).await };
    let result = graph.block_on(limited).expect("the pass ends").expect("the pass does not panic");
    result.err().map(|error| error.raw_os_error().unwrap_or(-1))
}

fn all_done(what: &Fake, but: &[u64]) -> bool {
    (0..SIZE).all(|byte| what.has(byte) == (wanted(byte) && !but.contains(&byte)))
}

#[test]
fn everything_is_done_once_and_counted() {
    let what = Arc::new(Fake::new());
    let (graph, job, pass) = begin(&what, OnError::Report, false);
    assert_eq!(end(&graph, pass), None);
    assert!(all_done(&what, &[]), "{:?}", what.ranges());
    let progress = job.info().progress;
    assert_eq!((progress.offset, progress.len), (SIZE, SIZE));
}

#[test]
fn an_error_that_is_reported_ends_the_pass_after_what_was_begun() {
    let what = Arc::new(Fake::failing(300, 1));
    let (graph, job, pass) = begin(&what, OnError::Report, true);
    assert_eq!(end(&graph, pass), Some(libc::ENOSPC));
    assert!(!what.has(300));
    // What was done behind it does not count.
    assert_eq!(job.info().progress.offset, 300);
    let tried = *what.tried.lock();
    assert_eq!(tried as usize, what.ranges().len() + 1, "nothing was left running");
}

#[test]
fn what_may_be_left_out_is_and_the_first_error_is_told() {
    let what = Arc::new(Fake::failing(300, 1));
    what.fails.lock().push((850, 1, true));
    let (graph, job, pass) = begin(&what, OnError::Ignore, true);
    assert_eq!(end(&graph, pass), Some(libc::ENOSPC));
    assert!(!what.has(300) && !what.has(850) && what.has(0) && what.has(1049));
    let progress = job.info().progress;
    assert_eq!((progress.offset, progress.len), (SIZE, SIZE));
}

#[test]
fn what_may_not_be_left_out_is_tried_until_it_works() {
    let what = Arc::new(Fake::failing(300, 3));
    let (graph, job, pass) = begin(&what, OnError::Ignore, false);
    assert_eq!(end(&graph, pass), None);
    assert!(all_done(&what, &[]));
    assert_eq!(job.info().progress.offset, SIZE);
}

#[test]
fn a_place_that_cannot_be_looked_at_is_looked_at_again() {
    let what = Arc::new(Fake::new());
    *what.blind.lock() = Some(200);
    let (graph, _job, pass) = begin(&what, OnError::Ignore, false);
    assert_eq!(end(&graph, pass), None);
    assert!(all_done(&what, &[]) && what.blind.lock().is_none());
}

#[test]
fn an_error_may_stop_the_job_until_it_is_resumed() {
    let what = Arc::new(Fake::failing(300, 1));
    let (graph, job, pass) = begin(&what, OnError::Stop, false);
    job.set_status(crate::jobs::Status::Running);
    while !job.info().paused {
        assert!(!pass.is_finished(), "it waits");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!what.has(300));
    // It may not have come to its pause point yet.
    job.resume().unwrap();
    assert_eq!(end(&graph, pass), None);
    assert!(all_done(&what, &[]));
    assert_eq!(job.info().progress.offset, SIZE);
}

#[test]
fn a_cancelled_pass_waits_for_what_was_begun() {
    let what = Arc::new(Fake { gate: Some(Notify::new()), ..Fake::new() });
    let (graph, job, pass) = begin(&what, OnError::Report, false);
    job.set_status(crate::jobs::Status::Running);
    let seen = what.clone();
    graph.block_on(async move { seen.begun.notified().await });
    job.cancel(true).unwrap();
    assert!(what.ranges().is_empty() && !pass.is_finished());
    // Each piece is let through; more may begin until the job looks.
    while !pass.is_finished() {
        what.gate.as_ref().expect("a gate").notify_one();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(end(&graph, pass), Some(libc::ECANCELED));
    assert_eq!(what.ranges().len(), *what.tried.lock() as usize, "nothing was left running");
    let offset = job.info().progress.offset;
    assert!(offset > 0 && (0..offset).all(|byte| what.has(byte) == wanted(byte)), "{offset} is done");
}
