//! What the machine tells the control plane.

/// Why a shutdown or reset happened, as `SHUTDOWN` and `RESET` give it (`ShutdownCause` of
/// the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    HostError,
    HostQmpQuit,
    HostQmpSystemReset,
    HostSignal,
    HostUi,
    GuestShutdown,
    GuestReset,
    GuestPanic,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::HostError => "host-error",
            Cause::HostQmpQuit => "host-qmp-quit",
            Cause::HostQmpSystemReset => "host-qmp-system-reset",
            Cause::HostSignal => "host-signal",
            Cause::HostUi => "host-ui",
            Cause::GuestShutdown => "guest-shutdown",
            Cause::GuestReset => "guest-reset",
            Cause::GuestPanic => "guest-panic",
        }
    }

    /// Whether the guest caused it.
    pub fn by_guest(self) -> bool {
        matches!(self, Cause::GuestShutdown | Cause::GuestReset | Cause::GuestPanic)
    }
}

/// Sent through `base::notice::Notices`, in the order in which things happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Call [`crate::Machine::perform_pending`] on the main thread.
    Pending,
    Stop,
    Resume,
    Reset(Cause),
    Shutdown(Cause),
    Powerdown,
    Suspend,
    SuspendDisk,
    Wakeup,
    /// `pause`, `poweroff` or `run`.
    GuestPanicked {
        action: &'static str,
    },
    GuestCrashLoaded {
        action: &'static str,
    },
    /// The watchdog expired; the wire name of the action taken.
    Watchdog {
        action: &'static str,
    },
    /// A device (or the inner part of one, without id) is gone.
    DeviceDeleted {
        id: Option<String>,
        path: String,
    },
    /// A vCPU reached a breakpoint or finished a step (for the debugger).
    DebugStop {
        vcpu: usize,
    },
    /// The engine of a vCPU gave up; the text is for people.
    Broken {
        vcpu: usize,
        why: String,
    },
    /// [`crate::Machine::finished`] has a value.
    Finished,
}
