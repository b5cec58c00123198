//! What machine this is, and what its board tells.

use crate::{commands, events};
use qapi::{Command, Describe, Event};

commands![
    QueryName,
    QueryUuid,
    QueryKvm,
    QueryTarget,
    QueryMachines,
    QueryCurrentMachine,
    InjectNmi,
    RtcResetReinjection,
    QueryTpmModels,
    QueryTpmTypes,
];
events![GuestPanicked, GuestCrashloaded, Watchdog, RtcChange];

/// The name given with `-name`.
#[derive(Command, Debug, Clone)]
#[command(reply = NameInfo, preconfig)]
pub struct QueryName {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct NameInfo {
    /// absent without `-name`
    pub name: Option<String>,
}

/// The UUID of the machine, as its SMBIOS tables tell it to the guest.
#[derive(Command, Debug, Clone)]
#[command(reply = UuidInfo, preconfig)]
pub struct QueryUuid {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct UuidInfo {
    /// lower case, all zero if none was given
    #[qapi(name = "UUID")]
    pub uuid: String,
}

/// Whether KVM can be used here, and whether it is.
#[derive(Command, Debug, Clone)]
#[command(reply = KvmInfo, preconfig)]
pub struct QueryKvm {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct KvmInfo {
    /// the machine runs under KVM
    pub enabled: bool,
    /// this build has KVM
    pub present: bool,
}

/// The architecture of the guest.
#[derive(Command, Debug, Clone)]
#[command(reply = TargetInfo, preconfig)]
pub struct QueryTarget {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct TargetInfo {
    pub arch: SysEmuTarget,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysEmuTarget {
    #[qapi(name = "x86_64")]
    X86_64,
}

/// The machines that `-machine` takes.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<MachineInfo>, preconfig)]
pub struct QueryMachines {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct MachineInfo {
    pub name: String,
    pub alias: Option<String>,
    /// true for the one that is used without `-machine`
    pub is_default: Option<bool>,
    /// most vCPUs
    pub cpu_max: i64,
    /// vCPUs can be added while it runs
    pub hotpluggable_cpus: bool,
    pub numa_mem_supported: bool,
    pub deprecated: bool,
    /// type of the vCPUs without `-cpu`
    pub default_cpu_type: Option<String>,
    /// id that a memory back end for all RAM should have
    pub default_ram_id: Option<String>,
    /// whether the board has ACPI
    pub acpi: bool,
}

/// Properties of the running machine that depend on its configuration.
#[derive(Command, Debug, Clone)]
#[command(reply = CurrentMachineParams)]
pub struct QueryCurrentMachine {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CurrentMachineParams {
    /// whether `system_wakeup` can end a sleep of the guest
    pub wakeup_suspend_support: bool,
}

/// Sends a non-maskable interrupt to every vCPU.
#[derive(Command, Debug, Clone)]
pub struct InjectNmi {}

/// Forgets clock interrupts that the guest missed while it could not run.
#[derive(Command, Debug, Clone)]
pub struct RtcResetReinjection {}

/// The TPM models that `-device` takes.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<String>, preconfig)]
pub struct QueryTpmModels {}

/// The TPM back ends that exist.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<String>, preconfig)]
pub struct QueryTpmTypes {}

/// What follows a panic of the guest.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPanicAction {
    Pause,
    Poweroff,
    /// the guest goes on (with its crash kernel)
    Run,
}

/// The guest reported a panic.
#[derive(Event, Debug, Clone)]
pub struct GuestPanicked {
    pub action: GuestPanicAction,
}

/// The guest panicked and loads a crash kernel.
#[derive(Event, Debug, Clone)]
pub struct GuestCrashloaded {
    pub action: GuestPanicAction,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogAction {
    Reset,
    /// press the power button
    Shutdown,
    /// end the process
    Poweroff,
    Pause,
    /// only tell
    Debug,
    None,
    InjectNmi,
}

/// The watchdog expired. The action follows.
#[derive(Event, Debug, Clone)]
#[event(throttle)]
pub struct Watchdog {
    pub action: WatchdogAction,
}

/// The guest set its clock.
#[derive(Event, Debug, Clone)]
#[event(throttle("qom-path"))]
pub struct RtcChange {
    /// seconds between the new time and the time by `-rtc base`
    pub offset: i64,
    pub qom_path: String,
}
