//! From a window that differs to the instruction: the same run anew, in smaller and smaller
//! steps. Runs are deterministic, so nothing needs to be kept of the first.

use super::report::{differences, instruction, memory_text, registers};
use super::{Divergence, Setup, Twin, memory_difference};
use base::{Result, bail};
use std::fmt::Write as _;

fn advance(twin: &mut Twin, mut windows: u64) -> Result<()> {
    while windows != 0 {
        let count = windows.min(super::ROUND);
        twin.round(count)?;
        windows -= count;
    }
    Ok(())
}

struct Pair(Twin, Twin);

impl Pair {
    /// Both machines after `windows` windows.
    fn after(setup: &Setup, engines: [&str; 2], windows: u64) -> Result<Pair> {
        let mut pair = Pair(Twin::new(setup, engines[0])?, Twin::new(setup, engines[1])?);
        pair.both(|twin| advance(twin, windows))?;
        Ok(pair)
    }

    fn both<R: Send>(&mut self, act: impl Fn(&mut Twin) -> Result<R> + Sync) -> Result<(R, R)> {
        let act = &act;
        let Pair(a, b) = self;
        let (x, y) = std::thread::scope(|scope| {
            let other = scope.spawn(move || act(b));
            (act(a), other.join())
        });
        Ok((x?, y.map_err(|_| base::fail!("the second machine's thread panicked"))??))
    }

    /// Runs `count` more windows; whether states or memories differ then.
    fn differs_after(&mut self, count: u64) -> Result<bool> {
        let (x, y) = self.both(|twin| twin.round(count))?;
        let states = super::first_difference(&x, &y).is_some();
        Ok(states || memory_difference(self.0.ram()?, self.1.ram()?).is_some())
    }
}

/// The first window in `from..=to`, by `step`, after which something differs.
fn scan(setup: &Setup, engines: [&str; 2], from: u64, to: u64, step: u64) -> Result<Option<u64>> {
    let mut pair = Pair::after(setup, engines, from)?;
    let mut at = from;
    while at <= to {
        if pair.differs_after(step)? {
            return Ok(Some(at));
        }
        at += step;
    }
    Ok(None)
}

/// Finds the instruction at which the machines of `found` go apart, and describes it.
pub fn narrow(setup: &Setup, engines: [&str; 2], found: &Divergence) -> Result<String> {
    let Some(coarse) = scan(setup, engines, found.good, found.window, 64)? else {
        bail!("the divergence did not come again: something is not deterministic");
    };
    let Some(window) = scan(setup, engines, coarse, coarse + 64, 1)? else {
        bail!("the divergence at window {coarse} did not come again");
    };
    let mut pair = Pair::after(setup, engines, window)?;
    let (length, _) = pair.both(|twin| Ok(twin.next_length()))?;
    // After `good` instructions all is alike, after `bad` it is not.
    let (mut good, mut bad) = (0, length);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        let mut pair = Pair::after(setup, engines, window)?;
        let (x, y) = pair.both(|twin| twin.probe(middle))?;
        let same = x.agrees(&y) && memory_difference(pair.0.ram()?, pair.1.ram()?).is_none();
        if same { good = middle } else { bad = middle }
    }
    describe(setup, engines, window, length, bad)
}

fn describe(setup: &Setup, engines: [&str; 2], window: u64, length: u64, bad: u64) -> Result<String> {
    let mut text = format!("window {window} of {length} instructions, instruction {bad} in it\n");
    let mut pair = Pair::after(setup, engines, window)?;
    if bad > 1 {
        let (x, _) = pair.both(|twin| twin.probe(bad - 1))?;
        let _ = writeln!(text, "before: {}\n  {}", registers(&x.state), instruction(&pair.0, &x.state));
    }
    drop(pair);
    let mut pair = Pair::after(setup, engines, window)?;
    let (x, y) = pair.both(|twin| twin.probe(bad))?;
    let _ = writeln!(text, "after in {}: {}", engines[0], registers(&x.state));
    let _ = writeln!(text, "after in {}: {}", engines[1], registers(&y.state));
    for (what, p, q) in differences(&x.state, &y.state).iter().take(24) {
        let _ = writeln!(text, "    {what}: {p} against {q}");
    }
    if let Some(at) = memory_difference(pair.0.ram()?, pair.1.ram()?) {
        text.push_str(&memory_text(&pair.0, &pair.1, at));
    }
    drop(pair);
    // The way there, by the first machine, one instruction at a time.
    let mut twin = Twin::new(setup, engines[0])?;
    advance(&mut twin, window)?;
    let shown = bad.min(24);
    if bad > shown {
        twin.probe(bad - shown)?;
    }
    for _ in 0..shown {
        let passed = twin.probe(1)?;
        let _ = writeln!(text, "  then at {}", instruction(&twin, &passed.state));
    }
    Ok(text)
}
