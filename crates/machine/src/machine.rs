//! The machine: its run state, vCPUs, devices and memory, and the driver that performs
//! requests in order.

use crate::notice::{Cause, Notice};
use crate::requests::{Pending, Requests};
use crate::runstate::{Decision, Request, RunState, decide};
use crate::vcpu::VcpuHandle;
use crate::{Board, Devices, Memory};
use base::{Mutex, Result, bail, fail};
use device::{ResetKind, Services};
use spec::machine::{Actions, MachineSpec, PanicAction, WatchdogChoice};
use std::sync::Arc;

type StateHook = Arc<dyn Fn(bool) + Send + Sync>;

struct Status {
    state: RunState,
    /// Start when an incoming migration ends.
    autostart: bool,
    finished: Option<i32>,
}

/// A virtual machine. State changes happen on the main thread; queries on any.
pub struct Machine {
    pub spec: MachineSpec,
    pub services: Services,
    pub memory: Memory,
    pub devices: Devices,
    pub tree: Arc<qom::Tree>,
    /// The engine in use: `kvm`, `translator`, `interpreter`, `qtest` or `none`.
    pub engine: Arc<dyn cpu::Engine>,
    /// The CPUID table of the bootstrap processor.
    pub cpuid: Arc<cpu::cpuid::CpuidTable>,
    /// The CPU model of `-cpu`, met with the engine; `None` without CPUs.
    pub cpu_model: Option<Arc<cpu::models::CpuModel>>,
    pub(crate) board: Box<dyn Board>,
    pub(crate) requests: Arc<Requests>,
    status: Mutex<Status>,
    actions: Mutex<Actions>,
    hooks: Mutex<Vec<StateHook>>,
}

/// What the builder puts together.
pub(crate) struct Parts {
    pub spec: MachineSpec,
    pub services: Services,
    pub memory: Memory,
    pub devices: Devices,
    pub tree: Arc<qom::Tree>,
    pub engine: Arc<dyn cpu::Engine>,
    pub cpuid: Arc<cpu::cpuid::CpuidTable>,
    pub cpu_model: Option<Arc<cpu::models::CpuModel>>,
    pub board: Box<dyn Board>,
    pub requests: Arc<Requests>,
}

impl Machine {
    pub(crate) fn new(parts: Parts) -> Arc<Machine> {
        let actions = parts.spec.actions;
        let machine = Arc::new(Machine {
            spec: parts.spec,
            services: parts.services,
            memory: parts.memory,
            devices: parts.devices,
            tree: parts.tree,
            engine: parts.engine,
            cpuid: parts.cpuid,
            cpu_model: parts.cpu_model,
            board: parts.board,
            requests: parts.requests,
            status: Mutex::new(Status { state: RunState::Prelaunch, autostart: true, finished: None }),
            actions: Mutex::new(actions),
            hooks: Mutex::default(),
        });
        crate::shown::enter(&machine);
        machine
    }

    pub fn run_state(&self) -> RunState {
        self.status.lock().state
    }

    pub fn is_running(&self) -> bool {
        self.run_state() == RunState::Running
    }

    /// The exit status, once the machine has ended.
    pub fn finished(&self) -> Option<i32> {
        self.status.lock().finished
    }

    pub fn vcpus(&self) -> Vec<Arc<VcpuHandle>> {
        self.requests.vcpu_list()
    }

    pub fn vcpu(&self, index: usize) -> Option<Arc<VcpuHandle>> {
        self.requests.vcpus.lock().get(index).cloned()
    }

    pub fn actions(&self) -> Actions {
        *self.actions.lock()
    }

    pub fn set_actions(&self, change: impl FnOnce(&mut Actions)) {
        change(&mut self.actions.lock());
    }

    /// Calls `hook(running)` on the main thread after the vCPUs stopped (false: drain and
    /// flush back ends) and before they start (true: retry what failed).
    pub fn on_run_change(&self, hook: impl Fn(bool) + Send + Sync + 'static) {
        self.hooks.lock().push(Arc::new(hook));
    }

    /// Lets the machine run (`cont`). Idempotent.
    pub fn start(&self) -> Result<()> {
        match decide(self.run_state(), Request::Start) {
            Decision::Enter(_) => {
                self.start_vcpus(Some(Notice::Resume));
                Ok(())
            }
            Decision::ResetRequired => bail!("Resetting the Virtual Machine is required"),
            Decision::Autostart(on) => {
                self.status.lock().autostart = on;
                Ok(())
            }
            Decision::Nothing | Decision::Stay => Ok(()),
        }
    }

    /// Stops a running machine (`stop`). Idempotent.
    pub fn stop(&self) {
        match decide(self.run_state(), Request::Stop) {
            Decision::Enter(state) => {
                self.stop_for(state);
            }
            Decision::Autostart(on) => self.status.lock().autostart = on,
            _ => {}
        }
    }

    /// Stops a running machine and enters `state` (io-error, watchdog, save-vm, ...). Not
    /// running: only changes the state where that is legal. Returns whether it was running.
    pub fn stop_for(&self, state: RunState) -> bool {
        let now = self.run_state();
        if now == RunState::Running {
            self.stop_vcpus();
            self.status.lock().state = state;
            self.services.notices.send(Notice::Stop);
            return true;
        }
        if now.may_become(state) {
            self.status.lock().state = state;
        }
        false
    }

    /// Enters a state without running anything (save-vm -> the state before).
    pub fn set_run_state(&self, state: RunState) -> Result<()> {
        let mut status = self.status.lock();
        if status.state != state && !status.state.may_become(state) {
            bail!("invalid run state transition: '{}' to '{}'", status.state.name(), state.name());
        }
        status.state = state;
        Ok(())
    }

    fn start_vcpus(&self, notice: Option<Notice>) {
        for hook in self.hooks.lock().clone() {
            hook(true);
        }
        self.devices.each(|device| device.resume());
        self.status.lock().state = RunState::Running;
        if let Some(notice) = notice {
            self.services.notices.send(notice);
        }
        self.services.clocks.virtual_.start();
        self.requests.gate.open(&self.vcpus());
    }

    fn stop_vcpus(&self) {
        self.requests.gate.close(&self.vcpus());
        self.services.clocks.virtual_.stop();
        self.devices.each(|device| device.pause());
        for hook in self.hooks.lock().clone() {
            hook(false);
        }
    }

    /// `system_reset`: done on the main thread after the reply.
    pub fn request_reset(&self) {
        self.requests.put(|pending| pending.reset = Some(Cause::HostQmpSystemReset));
    }

    /// `system_powerdown`.
    pub fn request_powerdown(&self) {
        self.requests.put(|pending| pending.powerdown = true);
    }

    /// Forgets clock interrupts that the guest missed and would still be given.
    pub fn reset_rtc_reinjection(&self) {
        self.devices.each(|device| {
            if let Some(rtc) = device.as_any().downcast_ref::<devices::pc::rtc::Rtc>() {
                rtc.reset_reinjection();
            }
        });
    }

    /// `system_wakeup`; nothing unless suspended.
    pub fn request_wakeup(&self) {
        self.requests.put(|pending| pending.wakeup = true);
    }

    /// `quit` or a signal: ends the process whatever `-no-shutdown` says.
    pub fn request_quit(&self, cause: Cause) {
        self.actions.lock().shutdown_pauses = false;
        self.requests.put(|pending| pending.shutdown = Some(cause));
    }

    /// NMI to every vCPU, through LINT1 where the local APIC is enabled.
    pub fn inject_nmi(&self) {
        self.board.inject_nmi(self);
    }

    /// Performs what waits, in order. Call on the main thread for each [`Notice::Pending`].
    pub fn perform_pending(&self) {
        let pending = self.requests.take();
        if pending == Pending::default() || self.finished().is_some() {
            return;
        }
        if let Some(status) = pending.exit {
            return self.finish(status);
        }
        if let Some(vcpu) = pending.debug
            && self.stop_for(RunState::Debug)
        {
            self.services.notices.send(Notice::DebugStop { vcpu });
        }
        if let Some((vcpu, why)) = pending.broken {
            self.services.notices.send(Notice::Broken { vcpu, why });
            self.stop_for(RunState::InternalError);
        }
        for gone in &pending.ejected {
            self.devices.ejected(&gone.0);
        }
        if pending.crash_loaded {
            self.services.notices.send(Notice::GuestCrashLoaded { action: "run" });
        }
        if pending.panicked {
            self.guest_panicked();
        }
        if pending.watchdog {
            self.watchdog_expired();
        }
        if pending.suspend {
            self.suspend();
        }
        if let Some(cause) = pending.shutdown
            && self.shut_down(cause)
        {
            return;
        }
        if let Some(cause) = pending.reset
            && self.reset_or_end(cause)
        {
            return;
        }
        if pending.wakeup && self.run_state() == RunState::Suspended {
            self.wake_up();
        }
        if pending.powerdown {
            self.services.notices.send(Notice::Powerdown);
            self.board.power_button(self);
        }
        // A held vCPU goes on unless the machine was stopped meanwhile.
        if self.is_running() {
            self.requests.gate.open(&self.vcpus());
        }
    }

    /// Returns whether the process ends.
    fn shut_down(&self, cause: Cause) -> bool {
        self.services.notices.send(Notice::Shutdown(cause));
        if self.actions().shutdown_pauses {
            self.stop_for(RunState::Shutdown);
            return false;
        }
        self.finish(0);
        true
    }

    fn reset_or_end(&self, cause: Cause) -> bool {
        if self.actions().reboot_shuts_down && cause != Cause::HostError {
            return self.shut_down(cause);
        }
        let running = self.is_running();
        if running {
            self.stop_vcpus();
        }
        self.reset_everything(ResetKind::Warm);
        self.services.notices.send(Notice::Reset(cause));
        if let Decision::Enter(state) = decide(self.run_state(), Request::Reset) {
            self.status.lock().state = state;
        }
        if running {
            self.start_vcpus(None);
        }
        false
    }

    /// Devices, ROMs, vCPUs, then the board's boot set-up. The vCPUs are parked.
    pub(crate) fn reset_everything(&self, kind: ResetKind) {
        self.devices.complete_unplugs();
        self.devices.each(|device| device.reset(kind));
        self.requests.set_a20_open();
        self.memory.restore_roms();
        for vcpu in self.vcpus() {
            let bootstrap = vcpu.index == 0;
            let signature = self.cpuid.signature();
            vcpu.link.take(cpu::Request::all());
            let state = cpu::CpuState::reset(bootstrap, signature);
            if let Err(failure) = vcpu.with(move |cpu| cpu.load(&state)).and_then(|done| done) {
                self.services.notices.send(Notice::Broken { vcpu: vcpu.index, why: failure.text });
            }
        }
        if let Err(failure) = self.board.after_reset(self) {
            self.services.notices.send(Notice::Broken { vcpu: 0, why: failure.text });
        }
    }

    fn guest_panicked(&self) {
        let actions = self.actions();
        let pauses = actions.panic == PanicAction::Pause
            || (actions.panic == PanicAction::Shutdown && actions.shutdown_pauses);
        match actions.panic {
            PanicAction::None => self.services.notices.send(Notice::GuestPanicked { action: "run" }),
            _ if pauses => {
                self.services.notices.send(Notice::GuestPanicked { action: "pause" });
                self.stop_for(RunState::GuestPanicked);
            }
            PanicAction::ExitFailure => {
                self.services.notices.send(Notice::GuestPanicked { action: "poweroff" });
                self.stop_for(RunState::GuestPanicked);
                self.finish(1);
            }
            _ => {
                self.services.notices.send(Notice::GuestPanicked { action: "poweroff" });
                self.stop_for(RunState::GuestPanicked);
                self.requests.put(|pending| pending.shutdown = Some(Cause::GuestPanic));
            }
        }
    }

    fn watchdog_expired(&self) {
        let choice = self.actions().watchdog;
        let action = match choice {
            WatchdogChoice::Reset => "reset",
            WatchdogChoice::Shutdown => "shutdown",
            WatchdogChoice::Poweroff => "poweroff",
            WatchdogChoice::Pause => "pause",
            WatchdogChoice::Debug => "debug",
            WatchdogChoice::None => "none",
            WatchdogChoice::InjectNmi => "inject-nmi",
        };
        self.services.notices.send(Notice::Watchdog { action });
        match choice {
            WatchdogChoice::Reset => self.requests.put(|pending| pending.reset = Some(Cause::GuestReset)),
            WatchdogChoice::Shutdown => self.request_powerdown(),
            WatchdogChoice::Poweroff => self.finish(0),
            WatchdogChoice::Pause => {
                self.stop_for(RunState::Watchdog);
            }
            WatchdogChoice::InjectNmi => self.inject_nmi(),
            WatchdogChoice::Debug | WatchdogChoice::None => {}
        }
    }

    fn suspend(&self) {
        if self.run_state() != RunState::Running {
            return;
        }
        self.requests.gate.close(&self.vcpus());
        self.services.clocks.virtual_.stop();
        self.status.lock().state = RunState::Suspended;
        self.services.notices.send(Notice::Suspend);
    }

    fn wake_up(&self) {
        self.reset_everything(ResetKind::Warm);
        self.board.woken(self);
        self.start_vcpus(Some(Notice::Wakeup));
    }

    /// Ends the machine: vCPUs stop for good, back ends are drained, the main loop is told.
    pub fn finish(&self, status: i32) {
        if self.finished().is_some() {
            return;
        }
        if self.run_state() == RunState::Running {
            self.stop_vcpus();
            self.status.lock().state = RunState::Shutdown;
        }
        self.status.lock().finished = Some(status);
        self.services.notices.send(Notice::Finished);
    }

    /// Ends the vCPU threads and unplugs the devices. The last call on a machine.
    pub fn tear_down(&self) {
        self.requests.gate.close(&self.vcpus());
        for vcpu in self.vcpus() {
            vcpu.end();
        }
        self.devices.each(|device| device.unplug());
    }

    /// Reads guest memory by linear address as a vCPU sees it; `None` where unmapped.
    pub fn read_linear(&self, vcpu: usize, linear: u64, len: usize) -> Result<Option<Vec<u8>>> {
        let vcpu = self.vcpu(vcpu).ok_or_else(|| fail!("CPU {vcpu} does not exist"))?;
        let space = self.services.memory.clone();
        vcpu.with(move |cpu| {
            let mut bytes = vec![0; len];
            let mut done = 0;
            while done < len {
                let at = linear.wrapping_add(done as u64);
                let physical = cpu.translate(at)?;
                let step = (len - done).min((4096 - (at & 4095)) as usize);
                space.read(physical, &mut bytes[done..done + step]);
                done += step;
            }
            Some(bytes)
        })
    }
}
