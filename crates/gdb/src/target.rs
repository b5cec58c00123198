use crate::arch::{Regs, X86_64};
use crate::step::step;
use crate::{MonitorCommand, Stop};
use base::Failure;
use cpu::engine::DebugPlan;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps, outputln};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{TargetError, TargetResult};
use machine::{Machine, VcpuHandle};
use std::ops::Range;
use std::sync::Arc;

const EFAULT: u8 = 14;

struct Watchpoint {
    address: u64,
    len: u64,
    kind: WatchKind,
    /// What stood there when the machine last began to run, to tell which one was met.
    before: Vec<u8>,
}

/// The machine as gdbstub sees it.
pub struct Target {
    machine: Arc<Machine>,
    monitor: Option<MonitorCommand>,
    /// With how often each was set (software and hardware kinds are the same here).
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    /// The vCPU to step, and how far.
    stepping: Option<(usize, Option<Range<u64>>)>,
    stop: Option<Stop>,
}

impl Target {
    pub fn new(machine: Arc<Machine>, monitor: Option<MonitorCommand>) -> Self {
        Target {
            machine,
            monitor,
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            stepping: None,
            stop: None,
        }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn set_stop(&mut self, reason: Stop) {
        self.stop = Some(reason);
    }

    pub fn take_stop(&mut self) -> Option<Stop> {
        self.stop.take()
    }

    /// The debugger goes: nothing of it stays behind.
    pub fn detach(&mut self) {
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.stepping = None;
        self.stop = None;
        let _ = self.apply();
    }

    fn vcpu(&self, tid: Tid) -> Result<Arc<VcpuHandle>, Failure> {
        let index = tid.get() - 1;
        self.machine.vcpu(index).ok_or_else(|| base::fail!("CPU {index} does not exist"))
    }

    fn plan(&self) -> DebugPlan {
        DebugPlan {
            single_step: false,
            breakpoints: self.breakpoints.clone(),
            watchpoints: self
                .watchpoints
                .iter()
                .map(|watch| (watch.address, watch.len, watch.kind == WatchKind::Write))
                .collect(),
        }
    }

    fn apply(&self) -> Result<(), Failure> {
        for vcpu in self.machine.vcpus() {
            let plan = self.plan();
            vcpu.with(move |vcpu| vcpu.set_debug(&plan)).and_then(|done| done)?;
        }
        Ok(())
    }

    /// Why a vCPU stopped with a debug exit.
    pub fn debug_stop(&mut self, vcpu: usize) -> Stop {
        let Some(tid) = Tid::new(vcpu + 1) else { return Stop::Signal(Signal::SIGTRAP) };
        let rip = self.vcpu(tid).and_then(|handle| handle.with(|vcpu| vcpu.save().rip)).unwrap_or(0);
        if self.watchpoints.is_empty() || self.breakpoints.contains(&rip) {
            return Stop::SignalWithThread { tid, signal: Signal::SIGTRAP };
        }
        let changed = self.watchpoints.iter().find(|watch| {
            let now = self.machine.read_linear(vcpu, watch.address, watch.before.len());
            now.is_ok_and(|now| now.is_some_and(|now| now != watch.before))
        });
        let met = changed.or_else(|| self.watchpoints.iter().find(|watch| watch.kind != WatchKind::Write));
        match met.or(self.watchpoints.first()) {
            Some(watch) => Stop::Watch { tid, kind: watch.kind, addr: watch.address },
            None => Stop::SignalWithThread { tid, signal: Signal::SIGTRAP },
        }
    }

    fn remember_watched(&mut self) {
        let machine = self.machine.clone();
        for watch in &mut self.watchpoints {
            let len = watch.len.min(64) as usize;
            watch.before = machine.read_linear(0, watch.address, len).ok().flatten().unwrap_or_default();
        }
    }

    fn add_breakpoint(&mut self, address: u64) -> TargetResult<bool, Self> {
        self.breakpoints.push(address);
        if self.apply().is_err() {
            self.breakpoints.pop();
            let _ = self.apply();
            return Ok(false);
        }
        Ok(true)
    }

    fn remove_breakpoint(&mut self, address: u64) -> TargetResult<bool, Self> {
        let Some(at) = self.breakpoints.iter().position(|&known| known == address) else {
            return Ok(false);
        };
        self.breakpoints.remove(at);
        self.apply().map_err(TargetError::Fatal)?;
        Ok(true)
    }
}

impl gdbstub::target::Target for Target {
    type Arch = X86_64;
    type Error = Failure;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, Failure> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Target {
    fn read_registers(&mut self, regs: &mut Regs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid).map_err(|_| TargetError::NonFatal)?;
        let state = vcpu.with(|vcpu| vcpu.save()).map_err(|_| TargetError::NonFatal)?;
        *regs = Regs::from_state(&state);
        Ok(())
    }

    fn write_registers(&mut self, regs: &Regs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid).map_err(|_| TargetError::NonFatal)?;
        let regs = regs.clone();
        let done = vcpu.with(move |vcpu| {
            let mut state = vcpu.save();
            regs.put_into(&mut state);
            vcpu.load(&state)
        });
        done.and_then(|done| done).map_err(|_| TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let index = tid.get() - 1;
        let all = self.machine.read_linear(index, start, data.len()).map_err(|_| TargetError::NonFatal)?;
        if let Some(bytes) = all {
            data.copy_from_slice(&bytes);
            return Ok(data.len());
        }
        // Up to the first page that is not mapped.
        let mut done = 0;
        while done < data.len() {
            let at = start.wrapping_add(done as u64);
            let len = (data.len() - done).min(4096 - (at & 4095) as usize);
            match self.machine.read_linear(index, at, len) {
                Ok(Some(bytes)) => data[done..done + len].copy_from_slice(&bytes),
                _ if done == 0 => return Err(TargetError::Errno(EFAULT)),
                _ => break,
            }
            done += len;
        }
        Ok(done)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid).map_err(|_| TargetError::NonFatal)?;
        let memory = self.machine.services.memory.clone();
        let data = data.to_vec();
        let done = vcpu.with(move |vcpu| {
            // All pages must be there before anything is written.
            let mut pieces = Vec::new();
            let mut from = 0;
            while from < data.len() {
                let at = start.wrapping_add(from as u64);
                let len = (data.len() - from).min(4096 - (at & 4095) as usize);
                pieces.push((vcpu.translate(at)?, from..from + len));
                from += len;
            }
            for (physical, piece) in pieces {
                memory.write(physical, &data[piece]);
            }
            Some(())
        });
        done.map_err(|_| TargetError::NonFatal)?.ok_or(TargetError::Errno(EFAULT))
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Failure> {
        (1..=self.machine.vcpus().len()).filter_map(Tid::new).for_each(register);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Target {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Failure> {
        let activity = self.vcpu(tid)?.with(|vcpu| vcpu.save().activity)?;
        let what = if activity == cpu::state::Activity::Running { "running" } else { "halted " };
        let text = format!("CPU#{} [{what}]", tid.get() - 1);
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Target {
    fn resume(&mut self) -> Result<(), Failure> {
        if let Some((index, range)) = self.stepping.take() {
            let plan = self.plan();
            let done = match self.machine.vcpu(index) {
                Some(vcpu) => vcpu.with(move |vcpu| step(vcpu, &plan, range)).and_then(|done| done),
                None => Err(base::fail!("CPU {index} does not exist")),
            };
            let signal = if done.is_ok() { Signal::SIGTRAP } else { Signal::SIGABRT };
            if let Some(tid) = Tid::new(index + 1) {
                self.stop = Some(Stop::SignalWithThread { tid, signal });
            }
            return Ok(());
        }
        self.remember_watched();
        self.apply()?;
        // A machine that must be reset first does not run: the debugger learns at once.
        if self.machine.start().is_err() {
            self.stop = Some(Stop::Signal(Signal::SIGABRT));
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Failure> {
        self.stepping = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), Failure> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Target {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Failure> {
        self.stepping = Some((tid.get() - 1, None));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target {
    /// Only one vCPU is to move: so it is for a step in any case. When it is to continue,
    /// the others run too: a vCPU that waits for another would never come back.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

impl MultiThreadRangeStepping for Target {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), Failure> {
        self.stepping = Some((tid.get() - 1, Some(start..end)));
        Ok(())
    }
}

impl Breakpoints for Target {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(address)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.remove_breakpoint(address)
    }
}

impl HwBreakpoint for Target {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(address)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.remove_breakpoint(address)
    }
}

impl HwWatchpoint for Target {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.watchpoints.push(Watchpoint { address, len, kind, before: Vec::new() });
        if self.apply().is_err() {
            self.watchpoints.pop();
            let _ = self.apply();
            return Ok(false);
        }
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let found =
            self.watchpoints.iter().position(|w| w.address == address && w.len == len && w.kind == kind);
        let Some(at) = found else { return Ok(false) };
        self.watchpoints.remove(at);
        self.apply().map_err(TargetError::Fatal)?;
        Ok(true)
    }
}

impl MonitorCmd for Target {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Failure> {
        let command = String::from_utf8_lossy(command);
        match &self.monitor {
            Some(monitor) => {
                for line in monitor(&command).lines() {
                    outputln!(out, "{line}");
                }
            }
            None => outputln!(out, "there is no monitor behind this server"),
        }
        Ok(())
    }
}
