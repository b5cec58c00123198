//! One machine of a pair: built from a command line, driven window by window.

use crate::Rng;
use base::clock::Clock;
use base::fd::FdSets;
use base::notice::Notices;
use base::{Result, bail, fail};
use cli::Parsed;
use cpu::{CpuState, Exit, Vcpu};
use machine::{Host, Machine, Objects, VcpuHandle, block_clock, clocks};
use memory::RamBlock;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What both machines are made of, and how they are driven.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The command line, without engine, clock and serial port.
    pub arguments: Vec<String>,
    /// Nanoseconds of virtual time for each instruction.
    pub pace: u64,
    /// Most instructions of a window.
    pub longest: u64,
    /// For the lengths of windows.
    pub seed: u64,
}

/// How a guest came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// No interrupt can wake the vCPU, or no timer is armed that would.
    Halted,
    TripleFault,
    /// Power-off or reset was asked for.
    Asked,
}

/// One window of one vCPU, and where it led.
pub struct Passed {
    pub asked: u64,
    pub retired: u64,
    pub halted: bool,
    pub state: CpuState,
}

impl Passed {
    pub fn agrees(&self, other: &Passed) -> bool {
        (self.retired, self.halted) == (other.retired, other.halted) && self.state == other.state
    }
}

/// Windows that were run one after the other.
#[derive(Default)]
pub struct Round {
    pub windows: Vec<Passed>,
    pub ended: Option<Ended>,
}

/// Lengths of windows, and the time that they take.
#[derive(Clone)]
pub struct Pace {
    clock: Clock,
    nanos: u64,
    longest: u64,
    rng: Rng,
}

impl Pace {
    fn next(&mut self) -> u64 {
        let any = match self.rng.below(4) {
            0 => 1 + self.rng.below(self.longest.min(64)),
            _ => 1 + self.rng.below(self.longest),
        };
        let until = self.clock.next_deadline().map(|at| at.saturating_sub(self.clock.now()));
        any.min(until.map_or(u64::MAX, |nanos| nanos.div_ceil(self.nanos).max(1)))
    }

    fn pass(&self, instructions: u64) {
        self.clock.advance(self.clock.now() + instructions * self.nanos);
    }

    /// On to the next timer; `false`: there is none.
    fn skip(&self) -> bool {
        self.clock.next_deadline().map(|at| self.clock.advance(at)).is_some()
    }
}

/// A machine whose gate stays shut: its vCPUs run as jobs on their threads.
pub struct Twin {
    machine: Arc<Machine>,
    host: Host,
    pace: Pace,
    _runtime: tokio::runtime::Runtime,
}

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        Err(fail!("no descriptor {name}"))
    }
    fn open_fdset(&self, _: u64, _: rustix::fs::OFlags) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

const CONSOLE: &str = "lockstep-console";
const CONSOLE_SIZE: u64 = 1 << 20;
/// Everything that would come from the host.
const FIXED: [&str; 7] =
    ["-nodefaults", "-display", "none", "-rtc", "base=2026-01-01T00:00:00,clock=vm", "-serial", CONSOLE_PORT];
const CONSOLE_PORT: &str = "chardev:lockstep-console";

impl Twin {
    pub fn new(setup: &Setup, engine: &str) -> Result<Twin> {
        let mut line = vec!["-accel".to_string(), engine.into()];
        line.extend(FIXED.map(String::from));
        line.extend(["-chardev".into(), format!("ringbuf,id={CONSOLE},size={CONSOLE_SIZE}")]);
        line.extend(setup.arguments.iter().cloned());
        let invocation = match cli::parse(line) {
            Ok(Parsed::Run(invocation)) => *invocation,
            Ok(Parsed::Help(_)) => bail!("help is not a machine"),
            Err(complaint) => bail!("{complaint}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let notices = Notices::new();
        // The clock moves by hand only, as for the qtest engine.
        let clocks = clocks(true);
        let tree = Arc::new(qom::Tree::new());
        let graph = block::Graph::new(notices.clone(), block_clock(&clocks), FdSets::default());
        let host = Host {
            notices,
            objects: Arc::new(Objects::new(tree.clone(), graph.clone())),
            tree,
            chardevs: chardev::Chardevs::new(runtime.handle().clone(), Arc::new(NoHost)),
            graph,
            clocks,
        };
        for chardev in &invocation.chardevs {
            runtime.block_on(host.chardevs.add(chardev))?;
        }
        let machine = machine::build(invocation.machine, &host)?;
        machine.devices.each(|device| device.resume());
        let pace = Pace {
            clock: host.clocks.virtual_.clone(),
            nanos: setup.pace.max(1),
            longest: setup.longest.max(1),
            rng: Rng::new(setup.seed),
        };
        Ok(Twin { machine, host, pace, _runtime: runtime })
    }

    pub fn engine(&self) -> &str {
        self.machine.engine.name()
    }

    pub fn ram(&self) -> Result<RamBlock> {
        self.machine.memory.ram.ok_or_else(|| fail!("the machine has no memory"))
    }

    /// Console output since the last call.
    pub fn console(&self) -> Result<String> {
        let bytes = self.host.chardevs.ringbuf_read(CONSOLE, CONSOLE_SIZE, false)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// `len` bytes from `linear`, as the first vCPU sees them.
    pub fn code(&self, linear: u64, len: usize) -> Option<Vec<u8>> {
        self.machine.read_linear(0, linear, len).ok().flatten()
    }

    pub(super) fn vcpus(&self) -> Vec<Arc<VcpuHandle>> {
        self.machine.vcpus()
    }

    /// Runs `count` windows, fewer if the guest ends.
    pub fn round(&mut self, count: u64) -> Result<Round> {
        let vcpus = self.vcpus();
        let mut round = match &vcpus[..] {
            [] => bail!("the machine has no vCPU"),
            [one] => {
                let mut pace = self.pace.clone();
                let (round, pace) = one.with(move |vcpu| (alone(vcpu, &mut pace, count), pace))?;
                self.pace = pace;
                round?
            }
            several => self.in_turn(several, count)?,
        };
        self.machine.perform_pending();
        if self.machine.finished().is_some() || self.asked_to_end() {
            round.ended = round.ended.or(Some(Ended::Asked));
        }
        Ok(round)
    }

    /// Power-off and reset are notices; nothing else may ask for anything here.
    fn asked_to_end(&self) -> bool {
        let notices = self.machine.services.notices.drain();
        notices.iter().any(|notice| {
            matches!(
                notice.what.downcast_ref::<machine::Notice>(),
                Some(machine::Notice::Shutdown(_) | machine::Notice::Reset(_) | machine::Notice::Finished)
            )
        })
    }

    /// Each vCPU has a window, then time passes by the longest.
    fn in_turn(&mut self, vcpus: &[Arc<VcpuHandle>], count: u64) -> Result<Round> {
        let mut round = Round::default();
        for _ in 0..count {
            let asked = self.pace.next();
            let mut longest = 0;
            for vcpu in vcpus {
                let (passed, exit) = vcpu.with(move |vcpu| pass(vcpu, asked))??;
                longest = longest.max(passed.retired);
                round.windows.push(passed);
                if let Some(ended) = end(exit)? {
                    round.ended = Some(ended);
                    return Ok(round);
                }
            }
            self.pace.pass(longest);
            let idle = round.windows[round.windows.len() - vcpus.len()..].iter().all(|w| w.halted);
            if idle && !self.pace.skip() && longest == 0 {
                round.ended = Some(Ended::Halted);
                return Ok(round);
            }
        }
        Ok(round)
    }

    /// Runs one more window of exactly `instructions` on the only vCPU, or up to its first exit.
    pub fn probe(&mut self, instructions: u64) -> Result<Passed> {
        let vcpus = self.vcpus();
        let [one] = &vcpus[..] else { bail!("a divergence can be narrowed down with one vCPU only") };
        Ok(one.with(move |vcpu| pass(vcpu, instructions))??.0)
    }

    /// The length of the window that comes next (and forgets it).
    pub fn next_length(&mut self) -> u64 {
        self.pace.next()
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.machine.tear_down();
        if let Ok(ram) = self.ram() {
            // RAM blocks stay mapped; their pages need not.
            let _ = ram.discard(0, ram.len());
        }
    }
}

/// One window; requests to look up (from [`VcpuHandle::with`] itself) are no end of it.
fn pass(vcpu: &mut dyn Vcpu, asked: u64) -> Result<(Passed, Option<Exit>)> {
    loop {
        let window = vcpu.run_exactly(asked)?;
        if window.exit == Some(Exit::Asked) {
            continue;
        }
        let halted = window.exit == Some(Exit::Halted);
        return Ok((Passed { asked, retired: window.retired, halted, state: vcpu.save() }, window.exit));
    }
}

/// What an exit means for the machine.
fn end(exit: Option<Exit>) -> Result<Option<Ended>> {
    match exit {
        None | Some(Exit::Halted) => Ok(None),
        Some(Exit::TripleFault) => Ok(Some(Ended::TripleFault)),
        Some(exit) => bail!("a vCPU stopped with {exit:?}"),
    }
}

/// Whether the only vCPU halts with interrupts off.
fn asleep(round: &Round) -> bool {
    round.windows.last().is_some_and(|last| last.state.rflags & 0x200 == 0)
}

fn alone(vcpu: &mut dyn Vcpu, pace: &mut Pace, count: u64) -> Result<Round> {
    let mut round = Round::default();
    for _ in 0..count {
        let (passed, exit) = pass(vcpu, pace.next())?;
        let (retired, halted) = (passed.retired, passed.halted);
        round.windows.push(passed);
        if let Some(ended) = end(exit)? {
            round.ended = Some(ended);
            break;
        }
        pace.pass(retired);
        // A timer that has just fired may be about to wake it.
        if halted && (asleep(&round) || !pace.skip() && retired == 0) {
            round.ended = Some(Ended::Halted);
            break;
        }
    }
    Ok(round)
}
