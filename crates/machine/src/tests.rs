use crate::*;
use base::clock::{Clock, Kind};
use base::notice::Notices;
use cpu::engine::DebugPlan;
use cpu::{CpuState, Exit, Request, Vcpu};
use device::Power as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> base::Result<std::os::fd::OwnedFd> {
        Err(base::fail!("no descriptor {name}"))
    }
    fn open_fdset(
        &self,
        _set: u64,
        _flags: rustix::fs::OFlags,
    ) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

fn host() -> Host {
    let notices = Notices::new();
    let clocks = clocks(false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    Host::new(
        notices,
        chardev::Chardevs::new(runtime.handle().clone(), Arc::new(NoHost)),
        base::fd::FdSets::default(),
        clocks,
    )
}

fn seen(machine: &Machine) -> Vec<Notice> {
    let taken = machine.services.notices.drain();
    taken.into_iter().filter_map(|n| n.what.downcast::<Notice>().ok()).map(|n| *n).collect()
}

fn none_machine() -> Arc<Machine> {
    let spec = spec::MachineSpec { kind: spec::MachineKind::None, ..spec::MachineSpec::default() };
    build(spec, &host()).unwrap()
}

/// Counts how often it runs; stops when asked.
struct Counter(Arc<AtomicU64>, Arc<cpu::Link>, CpuState);

impl Vcpu for Counter {
    fn run(&mut self) -> Exit {
        while !self.1.requests().contains(Request::EXIT) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Exit::Asked
    }
    fn save(&self) -> CpuState {
        self.2.clone()
    }
    fn load(&mut self, state: &CpuState) -> base::Result<()> {
        self.2 = state.clone();
        Ok(())
    }
    fn translate(&self, linear: u64) -> Option<u64> {
        Some(linear)
    }
    fn set_debug(&mut self, _plan: &DebugPlan) -> base::Result<()> {
        Ok(())
    }
}

fn with_counter(machine: &Machine) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let link = Arc::new(cpu::Link::new());
    let vcpu = Box::new(Counter(count.clone(), link.clone(), CpuState::reset(true, 0)));
    let gate = machine.requests.gate.clone();
    let handle = VcpuHandle::start(0, 0, link, vcpu, gate, machine.requests.clone()).unwrap();
    machine.requests.vcpus.lock().push(handle);
    count
}

#[test]
fn stop_and_start_are_idempotent_and_tell_once() {
    let machine = none_machine();
    machine.start().unwrap();
    machine.start().unwrap();
    machine.stop();
    machine.stop();
    assert_eq!(seen(&machine), [Notice::Resume, Notice::Stop]);
    assert_eq!(machine.run_state(), RunState::Paused);
}

#[test]
fn a_stopped_vcpu_does_not_run_and_still_answers() {
    let machine = none_machine();
    let count = with_counter(&machine);
    machine.start().unwrap();
    while count.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    for _ in 0..200 {
        machine.stop();
        let before = count.load(Ordering::Relaxed);
        assert_eq!(machine.vcpus()[0].with(|vcpu| vcpu.save().rip).unwrap(), 0xfff0);
        assert_eq!(count.load(Ordering::Relaxed), before);
        machine.start().unwrap();
    }
    machine.finish(0);
    machine.tear_down();
}

#[test]
fn a_guest_reset_holds_the_vcpu_until_performed() {
    let machine = none_machine();
    with_counter(&machine);
    machine.start().unwrap();
    seen(&machine);
    machine.requests.request_reset(device::ResetCause::Guest);
    assert_eq!(seen(&machine), [Notice::Pending]);
    machine.perform_pending();
    assert_eq!(seen(&machine), [Notice::Reset(Cause::GuestReset)]);
    assert!(machine.is_running());
    machine.tear_down();
}

#[test]
fn power_off_with_no_shutdown_needs_a_reset_before_cont() {
    let machine = none_machine();
    machine.set_actions(|actions| actions.shutdown_pauses = true);
    machine.start().unwrap();
    machine.requests.request_shutdown(device::ShutdownCause::Guest);
    machine.perform_pending();
    assert_eq!(machine.run_state(), RunState::Shutdown);
    assert!(machine.start().unwrap_err().text.contains("Resetting the Virtual Machine is required"));
    machine.request_reset();
    machine.perform_pending();
    assert_eq!(machine.run_state(), RunState::Paused);
    machine.start().unwrap();
    machine.request_quit(Cause::HostQmpQuit);
    machine.perform_pending();
    assert_eq!(machine.finished(), Some(0));
}

#[test]
fn the_virtual_clock_stands_while_stopped() {
    let machine = none_machine();
    let clock: &Clock = &machine.services.clocks.virtual_;
    assert_ne!(clock.kind(), Kind::Host);
    machine.start().unwrap();
    machine.stop();
    let at = clock.now();
    std::thread::sleep(std::time::Duration::from_millis(3));
    assert_eq!(clock.now(), at);
}

#[test]
fn both_boards_come_up_with_their_functions_on_the_bus() {
    for (kind, expected) in
        [(spec::MachineKind::Pc, [0x1237, 0x7000]), (spec::MachineKind::Q35, [0x29c0, 0x2918])]
    {
        let accel = spec::Accel { name: "qtest".into(), options: spec::Tree::new() };
        let spec = spec::MachineSpec { kind, accels: vec![accel], ..spec::MachineSpec::default() };
        let machine = build(spec, &host()).unwrap();
        let root = machine.board.pci_roots()[0].clone();
        let ids: Vec<u32> = root.functions().iter().map(|(at, _)| root.config_read(*at, 2, 2)).collect();
        for id in expected {
            assert!(ids.contains(&id), "{kind:?}: {ids:x?}");
        }
        assert_eq!(machine.vcpus().len(), 1);
        assert_eq!(machine.tree.get("/machine/unattached/device[0]", "type").unwrap(), "qemu64-x86_64-cpu");
        machine.start().unwrap();
        machine.request_reset();
        machine.perform_pending();
        assert!(machine.is_running());
        machine.finish(0);
        machine.tear_down();
    }
}
