//! The run-state machine: which state may follow which, and what each request does.
//!
//! ```text
//!  prelaunch --start--> running <--start/stop--> paused, io-error, watchdog, guest-panicked, debug
//!  running --power-off (-no-shutdown)--> shutdown --reset--> paused
//!  running --engine cannot go on--> internal-error --reset--> paused
//!  running --S3--> suspended --wake-up--> running
//! ```

/// The state of a machine (`RunState` of the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    Debug,
    Inmigrate,
    InternalError,
    IoError,
    Paused,
    Postmigrate,
    Prelaunch,
    FinishMigrate,
    RestoreVm,
    Running,
    SaveVm,
    Shutdown,
    Suspended,
    Watchdog,
    GuestPanicked,
}

impl RunState {
    /// The state as it stands on the wire.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Debug => "debug",
            RunState::Inmigrate => "inmigrate",
            RunState::InternalError => "internal-error",
            RunState::IoError => "io-error",
            RunState::Paused => "paused",
            RunState::Postmigrate => "postmigrate",
            RunState::Prelaunch => "prelaunch",
            RunState::FinishMigrate => "finish-migrate",
            RunState::RestoreVm => "restore-vm",
            RunState::Running => "running",
            RunState::SaveVm => "save-vm",
            RunState::Shutdown => "shutdown",
            RunState::Suspended => "suspended",
            RunState::Watchdog => "watchdog",
            RunState::GuestPanicked => "guest-panicked",
        }
    }

    /// Whether the machine may go from `self` to `to`.
    pub fn may_become(self, to: RunState) -> bool {
        use RunState::*;
        match self {
            Prelaunch => matches!(to, Running | FinishMigrate | Inmigrate | Paused),
            Inmigrate => matches!(to, Running | Paused),
            Running => !matches!(to, Running | Prelaunch | Inmigrate | Postmigrate),
            Paused | IoError | Postmigrate | Watchdog | GuestPanicked => {
                matches!(to, Running | FinishMigrate | SaveVm | RestoreVm | Paused)
            }
            Debug => matches!(to, Running | FinishMigrate | Suspended | SaveVm | RestoreVm | Paused),
            Suspended => matches!(to, Running | FinishMigrate | SaveVm | RestoreVm),
            FinishMigrate => matches!(to, Running | Postmigrate | Paused),
            SaveVm | RestoreVm => matches!(to, Running | Paused | Prelaunch),
            InternalError | Shutdown => matches!(to, Paused | FinishMigrate),
        }
    }
}

/// What is asked of the run-state driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Start,
    Stop,
    Reset,
}

/// What the driver does with a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do it and enter the state.
    Enter(RunState),
    /// Already so: success, no event.
    Nothing,
    /// Remember it: the machine starts (or not) when the incoming migration ends.
    Autostart(bool),
    /// Refused until the machine is reset.
    ResetRequired,
    /// Do it and stay in the present state.
    Stay,
}

/// Decides on a request in a state. Pure.
pub fn decide(state: RunState, request: Request) -> Decision {
    use RunState::*;
    match (request, state) {
        (Request::Start, Running | Suspended | FinishMigrate | SaveVm | RestoreVm) => Decision::Nothing,
        (Request::Start, Inmigrate) => Decision::Autostart(true),
        (Request::Start, InternalError | Shutdown) => Decision::ResetRequired,
        (Request::Start, _) => Decision::Enter(Running),
        (Request::Stop, Running) => Decision::Enter(Paused),
        (Request::Stop, Inmigrate) => Decision::Autostart(false),
        (Request::Stop, _) => Decision::Nothing,
        (Request::Reset, InternalError | Shutdown) => Decision::Enter(Paused),
        (Request::Reset, _) => Decision::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [RunState; 15] = [
        RunState::Debug,
        RunState::Inmigrate,
        RunState::InternalError,
        RunState::IoError,
        RunState::Paused,
        RunState::Postmigrate,
        RunState::Prelaunch,
        RunState::FinishMigrate,
        RunState::RestoreVm,
        RunState::Running,
        RunState::SaveVm,
        RunState::Shutdown,
        RunState::Suspended,
        RunState::Watchdog,
        RunState::GuestPanicked,
    ];

    #[test]
    fn every_decision_is_a_legal_transition() {
        for state in ALL {
            for request in [Request::Start, Request::Stop, Request::Reset] {
                if let Decision::Enter(to) = decide(state, request) {
                    assert!(state.may_become(to), "{state:?} {request:?} -> {to:?}");
                }
            }
        }
    }

    #[test]
    fn a_dead_machine_starts_only_after_reset() {
        for state in [RunState::InternalError, RunState::Shutdown] {
            assert_eq!(decide(state, Request::Start), Decision::ResetRequired);
            assert_eq!(decide(state, Request::Reset), Decision::Enter(RunState::Paused));
        }
    }

    #[test]
    fn stop_changes_only_a_running_machine() {
        for state in ALL.into_iter().filter(|&s| s != RunState::Running) {
            assert!(!matches!(decide(state, Request::Stop), Decision::Enter(_)));
        }
    }
}
