//! One run: surroundings, machine, monitors, the main loop, and the end.

use crate::daemon::Ready;
use crate::message::Messages;
use crate::{VERSION, process};
use base::fd::{FdSets, Inherited};
use base::{Failure, fail};
use cli::Complaint;
use control::{Control, Identity, QmpPort, World};
use hmp::HmpPort;
use machine::{Cause, Machine, Notice};
use spec::Invocation;
use spec::invocation::{Monitor, MonitorMode};
use std::any::Any;
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// How long jobs may take to end with the process.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs a machine to its end; returns the exit status.
pub async fn run(
    invocation: Invocation,
    inherited: Arc<Inherited>,
    mut ready: Ready,
    messages: &Messages,
) -> Result<i32, Complaint> {
    let trace = start_logs(&invocation)?;
    settle(&invocation)?;
    let fdsets = FdSets::new();
    let host = process::prepare(&invocation, &inherited, &fdsets, messages).await?;
    let machine = build(&invocation, &host, messages)?;
    let world = World {
        identity: Identity { package: format!("Ryokan {VERSION}"), ..Identity::default() },
        host: host.clone(),
        machine: machine.clone(),
        fdsets,
        inherited,
        trace,
        options: crate::show::option_info(),
        human_monitor: Some(hmp::human_monitor()),
    };
    let control = Control::new(world);
    let monitors = Monitors::open(&invocation, &control)?;
    let _qtest = open_qtest(&invocation, &host, &machine)?;
    open_gdb(&invocation, &control)?;
    let _pidfile = invocation.pidfile.as_deref().map(PidFile::write).transpose()?;
    ready.tell().map_err(|f| Complaint::at("-daemonize", f))?;
    match host.graph.check_keys() {
        _ if invocation.machine.start_stopped => {}
        Ok(()) => machine.start().map_err(|f| Complaint::at("", f))?,
        Err(why) => messages.say(format_args!("not started: {why}; it waits for block_passwd and cont")),
    }
    let status = main_loop(&control, &machine, messages).await;
    // Bounded: a job may wait for a server that is gone.
    let _ = tokio::time::timeout(FAREWELL, host.graph.jobs.cancel_all()).await;
    host.graph.shutdown().await;
    // Their last events.
    control.events().pump();
    machine.tear_down();
    control.drain(Duration::from_millis(500)).await;
    drop(monitors);
    host.chardevs.close_all().await;
    Ok(status)
}

/// What concerns the process as a whole.
fn settle(invocation: &Invocation) -> Result<(), Complaint> {
    if invocation.overcommit.mem_lock {
        let all = rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE;
        rustix::mm::mlockall(all).map_err(|e| {
            Complaint::at("-overcommit mem-lock=on", Failure::os("locking memory failed", &e.into()))
        })?;
    }
    if let Some(name) = &invocation.process_name {
        let failed = || Complaint::at(format!("-name process={name}"), fail!("cannot name the process"));
        let name = std::ffi::CString::new(name.as_str()).map_err(|_| failed())?;
        rustix::thread::set_name(&name).map_err(|_| failed())?;
    }
    Ok(())
}

fn build(
    invocation: &Invocation,
    host: &machine::Host,
    messages: &Messages,
) -> Result<Arc<Machine>, Complaint> {
    let greeting = Cell::new(false);
    let built = machine::build_noting(invocation.machine.clone(), host, &|| greeting.set(true));
    // Errors name their option themselves where a single one is at fault.
    let machine = built.map_err(|failure| {
        if greeting.get() {
            greet(invocation, host);
        }
        Complaint::at("", failure)
    })?;
    for warning in machine.cpu_model.iter().flat_map(|model| &model.warnings) {
        messages.warn(warning);
    }
    for global in machine.devices.foreign_globals() {
        messages.warn(format_args!("global {global} has invalid class name"));
    }
    Ok(machine)
}

/// Human monitors greet before devices are made, also if that fails.
fn greet(invocation: &Invocation, host: &machine::Host) {
    for monitor in invocation.monitors.iter().filter(|monitor| monitor.mode == MonitorMode::Readline) {
        // The failure that is told next is the one that counts.
        let _ = HmpPort::greet_only(&host.chardevs, &monitor.chardev, &Identity::default());
    }
}

fn open_qtest(
    invocation: &Invocation,
    host: &machine::Host,
    machine: &Arc<Machine>,
) -> Result<Option<Arc<qtest::Server>>, Complaint> {
    let Some(name) = &invocation.qtest else { return Ok(None) };
    let place = invocation.places.qtest.clone().unwrap_or_default();
    let port = host.chardevs.claim(name).map_err(|f| Complaint::at(&place, f))?;
    let server = qtest::Server::open(machine, port, invocation.qtest_log.as_deref());
    server.map(Some).map_err(|f| Complaint::at(&place, f))
}

fn open_gdb(invocation: &Invocation, control: &Control) -> Result<(), Complaint> {
    let Some(name) = &invocation.gdb else { return Ok(()) };
    let place = invocation.places.gdb.clone().unwrap_or_default();
    let port = control.world().host.chardevs.claim(name).map_err(|f| Complaint::at(place, f))?;
    control.debugger().open(port);
    Ok(())
}

fn start_logs(invocation: &Invocation) -> Result<trace::Points, Complaint> {
    let points = trace::Points::new();
    let files = [("-D ", &invocation.log.file), ("-trace file=", &invocation.trace.file)];
    if let Some((option, Some(file))) = files.into_iter().find(|(_, file)| file.is_some()) {
        let cannot = |e| Failure::os("cannot open the log file", &e);
        trace::set_file(Some(file)).map_err(|e| Complaint::at(format!("{option}{file}"), cannot(e)))?;
    }
    trace::set_timestamps(invocation.message.timestamp);
    let items = invocation.log.items.join(",");
    let unknown = |name| Complaint::at(format!("-d {items}"), fail!("unknown log item '{name}'"));
    trace::Items::parse(&items).map_err(unknown)?.apply();
    let mut patterns = invocation.trace.patterns.clone();
    if let Some(file) = &invocation.trace.events {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|e| Complaint::at(format!("-trace events={file}"), e.into()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        patterns.extend(lines.map(str::to_string));
    }
    if !patterns.is_empty() {
        control::declare_trace_points(&points);
    }
    for pattern in &patterns {
        let (on, pattern) = pattern.strip_prefix('-').map_or((true, pattern.as_str()), |rest| (false, rest));
        points
            .set(pattern, on)
            .map_err(|_| Complaint::at("-trace", fail!("no trace point matches '{pattern}'")))?;
    }
    Ok(points)
}

/// The monitors, which live as long as this.
struct Monitors {
    _qmp: Vec<Arc<QmpPort>>,
    _human: Vec<Arc<HmpPort>>,
}

impl Monitors {
    fn open(invocation: &Invocation, control: &Control) -> Result<Monitors, Complaint> {
        let (mut qmp, mut human) = (Vec::new(), Vec::new());
        for (monitor, place) in invocation.monitors.iter().zip(&invocation.places.monitors) {
            let at = |failure| Complaint::at(place, failure);
            match monitor.mode {
                MonitorMode::Control { pretty } => {
                    let options = qmp::Options { pretty, oob: offers_oob(invocation, monitor) };
                    qmp.push(QmpPort::open(control, &monitor.chardev, options).map_err(at)?);
                }
                MonitorMode::Readline => human.push(HmpPort::open(control, &monitor.chardev).map_err(at)?),
            }
        }
        Ok(Monitors { _qmp: qmp, _human: human })
    }
}

/// Out-of-band execution needs a character device of the monitor's own.
fn offers_oob(invocation: &Invocation, monitor: &Monitor) -> bool {
    let chardev = invocation.chardevs.iter().find(|chardev| chardev.id == monitor.chardev);
    chardev.is_some_and(|chardev| !chardev.mux && matches!(chardev.kind, spec::ChardevKind::Socket { .. }))
}

async fn main_loop(control: &Control, machine: &Arc<Machine>, messages: &Messages) -> i32 {
    let finished = Arc::new(Notify::new());
    listen(control, machine, messages, finished.clone());
    tokio::select! {
        () = control.events().run() => {}
        () = finished.notified() => {}
        () = signals(machine, messages) => {}
    }
    control.events().pump();
    machine.finished().unwrap_or(0)
}

/// What is no event: the end, a panic of an engine, the quit key.
fn listen(control: &Control, machine: &Arc<Machine>, messages: &Messages, finished: Arc<Notify>) {
    let (machine, messages) = (machine.clone(), messages.clone());
    control.events().listen(move |what: &dyn Any| {
        if what.is::<process::QuitKey>() {
            machine.request_quit(Cause::HostUi);
        }
        match what.downcast_ref::<Notice>() {
            Some(Notice::Finished) => finished.notify_one(),
            Some(Notice::Broken { vcpu, why }) => {
                messages.say(format_args!("CPU {vcpu} cannot go on: {why}"))
            }
            _ => {}
        }
    });
}

/// TERM, INT and HUP end the machine in order.
async fn signals(machine: &Arc<Machine>, messages: &Messages) {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let Ok(mut all) = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() else {
        return std::future::pending().await;
    };
    let [terminate, interrupt, hangup] = &mut all[..] else { return std::future::pending().await };
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hangup.recv() => "SIGHUP",
        };
        messages.say(format_args!("terminating on {name}"));
        machine.request_quit(Cause::HostSignal);
    }
}

/// A file with the process id, locked while the process lives and removed at its end.
struct PidFile {
    path: PathBuf,
    _lock: File,
}

impl PidFile {
    fn write(path: &str) -> Result<PidFile, Complaint> {
        let at = |e: std::io::Error| {
            Complaint::at(format!("-pidfile {path}"), Failure::os("cannot create PID file", &e))
        };
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(at)?;
        // Another process that still runs keeps its file.
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| at(e.into()))?;
        file.set_len(0).map_err(at)?;
        writeln!(file, "{}", std::process::id()).map_err(at)?;
        // A daemon changes its directory.
        Ok(PidFile { path: std::path::absolute(path).map_err(at)?, _lock: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
