//! Starting, stopping, resetting and ending the machine.

use crate::machine::WatchdogAction;
use crate::{commands, events};
use qapi::{Command, Describe, Event};

commands![
    Quit,
    Stop,
    Cont,
    SystemReset,
    SystemPowerdown,
    SystemWakeup,
    QueryStatus,
    SetAction,
    WatchdogSetAction
];
events![Shutdown, Powerdown, Reset, StopEvent, Resume, Suspend, SuspendDisk, Wakeup];

/// Ends the process in good order: images are flushed and closed, exit status 0. Overrides
/// `-no-shutdown`. The reply is sent before, but may be cut off by the end of the connection.
#[derive(Command, Debug, Clone)]
pub struct Quit {}

/// Stops all vCPUs and the virtual clock. No error if they are stopped already.
#[derive(Command, Debug, Clone)]
pub struct Stop {}

/// Lets vCPUs and the virtual clock run (on). No error if they run already. Fails in the states
/// `internal-error` and `shutdown` until the machine is reset.
#[derive(Command, Debug, Clone)]
pub struct Cont {}

/// Resets the machine as its reset button would. A stopped machine stays stopped.
#[derive(Command, Debug, Clone)]
#[command(name = "system_reset")]
pub struct SystemReset {}

/// Presses the ACPI power button; what comes of it is the guest's decision.
#[derive(Command, Debug, Clone)]
#[command(name = "system_powerdown")]
pub struct SystemPowerdown {}

/// Ends a sleep (S3) of the guest. Nothing happens in any other state.
#[derive(Command, Debug, Clone)]
#[command(name = "system_wakeup")]
pub struct SystemWakeup {}

/// Tells whether the machine runs, and if not, why.
#[derive(Command, Debug, Clone)]
#[command(reply = StatusInfo, preconfig)]
pub struct QueryStatus {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct StatusInfo {
    /// true only in state `running`
    pub running: bool,
    /// the CPU engine executes one instruction at a time
    #[qapi(features("deprecated"))]
    pub singlestep: bool,
    pub status: RunState,
}

/// State of the machine.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// stopped by a debugger
    Debug,
    /// waiting for an incoming migration
    Inmigrate,
    /// the CPU engine cannot go on; needs a reset
    InternalError,
    /// stopped by a disk error that asks for it
    IoError,
    /// stopped by `stop`
    Paused,
    /// stopped after an outgoing migration
    Postmigrate,
    /// started with `-S` and not continued yet
    Prelaunch,
    /// stopped for the last part of a migration
    FinishMigrate,
    /// loading a snapshot
    RestoreVm,
    Running,
    /// saving a snapshot or a dump
    SaveVm,
    /// powered off under `-no-shutdown`; needs a reset
    Shutdown,
    /// the guest sleeps (S3)
    Suspended,
    /// stopped by the watchdog
    Watchdog,
    /// stopped because the guest reported a panic
    GuestPanicked,
}

/// Chooses what follows certain events in the machine. What is not given stays as it is.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct SetAction {
    pub reboot: Option<RebootAction>,
    pub shutdown: Option<ShutdownAction>,
    pub panic: Option<PanicAction>,
    pub watchdog: Option<WatchdogAction>,
}

/// Chooses what the watchdog does.
#[derive(Command, Debug, Clone)]
pub struct WatchdogSetAction {
    pub action: WatchdogAction,
}

/// What follows a reset that the guest asked for.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootAction {
    Reset,
    /// power off instead
    Shutdown,
}

/// What follows a power-off by the guest.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownAction {
    /// end the process
    Poweroff,
    /// stop, in state `shutdown`
    Pause,
}

/// What follows a panic of the guest.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicAction {
    Pause,
    /// power off, or stop where a power-off stops
    Shutdown,
    /// end the process with a failure
    ExitFailure,
    /// nothing
    None,
}

/// Why the machine went down or was reset.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownCause {
    None,
    /// a fault of the emulator
    HostError,
    /// command `quit`
    HostQmpQuit,
    /// command `system_reset`
    HostQmpSystemReset,
    /// SIGINT, SIGTERM or SIGHUP
    HostSignal,
    /// a window or a human monitor
    HostUi,
    /// the guest powered off
    GuestShutdown,
    /// the guest asked for a reset
    GuestReset,
    /// the guest panicked
    GuestPanic,
    /// a partial reset that the guest asked for
    SubsystemReset,
    /// a snapshot was loaded
    SnapshotLoad,
}

/// The machine has powered off or the process is about to end. With `-no-shutdown` and a guest
/// that powered off, STOP follows and the process stays.
#[derive(Event, Debug, Clone)]
pub struct Shutdown {
    /// whether the guest caused it
    pub guest: bool,
    pub reason: ShutdownCause,
}

/// The power button was pressed for the guest.
#[derive(Event, Debug, Clone)]
pub struct Powerdown {}

/// The machine was reset.
#[derive(Event, Debug, Clone)]
pub struct Reset {
    /// whether the guest caused it
    pub guest: bool,
    pub reason: ShutdownCause,
}

/// The vCPUs stopped.
#[derive(Event, Debug, Clone)]
#[event(name = "STOP")]
pub struct StopEvent {}

/// The vCPUs run.
#[derive(Event, Debug, Clone)]
pub struct Resume {}

/// The guest went to sleep (S3).
#[derive(Event, Debug, Clone)]
pub struct Suspend {}

/// The guest hibernated (S4); SHUTDOWN follows.
#[derive(Event, Debug, Clone)]
pub struct SuspendDisk {}

/// The guest woke from its sleep and runs.
#[derive(Event, Debug, Clone)]
pub struct Wakeup {}
