//! Two complete machines with different engines, run in lock step.
//!
//! Both machines have a manual virtual clock that moves by the instructions that were retired,
//! so that timers fire at exact counts. They run the same sequence of windows
//! ([`cpu::Vcpu::run_exactly`]); after each window all of the processor's state must be the
//! same, after each round of windows guest memory and console output too. A divergence is
//! found again by running anew, and narrowed down to one instruction.

mod narrow;
mod report;
mod twin;

pub use narrow::narrow;
pub use report::{Divergence, differences};
pub use twin::{Ended, Setup, Twin};

use crate::lockstep::twin::Round;
use base::{Result, bail};
use memory::RamBlock;

/// How far a run came.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Instructions retired by each machine.
    pub instructions: u64,
    pub windows: u64,
    /// Windows that ended in HLT.
    pub halts: u64,
    /// Comparisons of all guest memory.
    pub memories: u64,
    /// Where the guest is.
    pub rip: u64,
    /// What the guest wrote to its first serial port.
    pub console: String,
}

/// How a run in lock step came out.
#[derive(Debug)]
pub enum Outcome {
    /// As many instructions as asked for, all states alike.
    Agreed,
    /// The guest ended (power-off, reset, or halted for ever) on both sides alike.
    Ended(Ended),
    Diverged(Box<Divergence>),
}

/// Windows between two looks at console and requests.
const ROUND: u64 = 512;
/// Instructions between two comparisons of memory.
const MEMORY_EVERY: u64 = 20_000_000;

/// Runs two engines for `instructions`. `watch` is told of progress after each round.
pub fn run(
    setup: &Setup,
    engines: [&str; 2],
    instructions: u64,
    mut watch: impl FnMut(&Progress),
) -> Result<(Progress, Outcome)> {
    let (mut a, mut b) = (Twin::new(setup, engines[0])?, Twin::new(setup, engines[1])?);
    let mut progress = Progress::default();
    let (mut memory_due, mut good) = (0, 0);
    loop {
        let (left, right) = std::thread::scope(|scope| {
            let other = scope.spawn(|| b.round(ROUND));
            (a.round(ROUND), other.join())
        });
        let right = right.map_err(|_| base::fail!("the second machine's thread panicked"))??;
        let left = left?;
        if let Some(index) = first_difference(&left, &right) {
            let divergence =
                Divergence { good, ..report::windows(&a, &b, &left, &right, index, progress.windows) };
            return Ok((progress, Outcome::Diverged(Box::new(divergence))));
        }
        progress.windows += left.windows.len() as u64;
        progress.instructions += left.windows.iter().map(|w| w.retired).sum::<u64>();
        progress.rip = left.windows.last().map_or(0, |w| w.state.rip);
        progress.halts += left.windows.iter().filter(|w| w.halted).count() as u64;
        let (mine, yours) = (a.console()?, b.console()?);
        if mine != yours {
            bail!("console output differs with the same processor states:\n{mine}\n--\n{yours}");
        }
        progress.console.push_str(&mine);
        if progress.instructions >= memory_due || left.ended.is_some() {
            memory_due = progress.instructions + MEMORY_EVERY;
            progress.memories += 1;
            if let Some(at) = memory_difference(a.ram()?, b.ram()?) {
                let divergence = Divergence { good, ..report::memory(&a, &b, at, progress.windows) };
                return Ok((progress, Outcome::Diverged(Box::new(divergence))));
            }
            good = progress.windows;
        }
        watch(&progress);
        if left.ended != right.ended {
            bail!("one machine ended ({:?}), the other {:?}", left.ended, right.ended);
        }
        if let Some(ended) = left.ended {
            return Ok((progress, Outcome::Ended(ended)));
        }
        if progress.instructions >= instructions {
            return Ok((progress, Outcome::Agreed));
        }
    }
}

/// The first window that differs in state, length or end.
fn first_difference(a: &Round, b: &Round) -> Option<usize> {
    let common = a.windows.len().min(b.windows.len());
    let differs = |&i: &usize| !a.windows[i].agrees(&b.windows[i]);
    (0..common).find(differs).or((a.windows.len() != b.windows.len()).then_some(common))
}

/// Offset of the first byte in which two memories differ.
fn memory_difference(a: RamBlock, b: RamBlock) -> Option<u64> {
    let (mut x, mut y) = (vec![0u8; 1 << 16], vec![0u8; 1 << 16]);
    let mut at = 0;
    while at < a.len().min(b.len()) {
        let len = x.len().min((a.len() - at) as usize);
        a.read(at, &mut x[..len]);
        b.read(at, &mut y[..len]);
        if x[..len] != y[..len] {
            return x.iter().zip(&y).position(|(x, y)| x != y).map(|k| at + k as u64);
        }
        at += len as u64;
    }
    None
}

#[cfg(test)]
mod tests;
