//! What a device may ask of the whole machine, and what it tells the outside world.

use crate::Device;
use std::sync::Arc;

/// Why the machine is to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// 8042, port 92, port CF9, ACPI reset register, triple fault.
    Guest,
    Watchdog,
}

/// Why the machine is to be powered off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCause {
    /// ACPI S5.
    Guest,
    Watchdog,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    Reset,
    Shutdown,
    Poweroff,
    Pause,
    Debug,
    None,
    InjectNmi,
}

/// The board as devices see it. Requests return at once; the calling vCPU does not execute
/// another guest instruction before the request is met.
pub trait Power: Send + Sync {
    fn request_reset(&self, cause: ResetCause);
    fn request_shutdown(&self, cause: ShutdownCause);
    /// ACPI S3.
    fn request_suspend(&self);
    /// pvpanic: the guest crashed. `loaded`: a crash kernel takes over, only tell.
    fn guest_panicked(&self, loaded: bool);
    fn watchdog_expired(&self);
    /// isa-debug-exit: end the process with this status.
    fn exit(&self, status: i32);
    /// Address line 20 of all vCPUs.
    fn set_a20(&self, enabled: bool);
    fn a20(&self) -> bool;
    /// INIT to all vCPUs without resetting devices (8042 pulse where the chipset does so).
    fn inject_nmi(&self);
    /// The guest let go of a device, which is off its bus: the machine takes it apart.
    fn ejected(&self, device: Arc<dyn Device>);
}

/// What devices tell the control plane (through `base::notice::Notices`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest set the CMOS clock: new time minus the `-rtc base` time, in seconds.
    RtcChange { offset: i64, qom_path: String },
    /// The guest reports another size of the balloon.
    BalloonChanged { bytes: u64 },
    /// A virtio-serial port was opened or closed by the guest.
    PortChanged { id: String, open: bool },
}
