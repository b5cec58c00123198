//! Which event each notice is.

use super::Events;
use machine::{Cause, RunState};
use schema::lifecycle::{self, ShutdownCause};
use schema::machine as board;
use std::time::SystemTime;

pub fn machine(events: &Events, when: SystemTime, notice: machine::Notice) {
    use machine::Notice::*;
    match notice {
        Pending => events.machine.perform_pending(),
        Stop => events.emit(when, lifecycle::StopEvent {}),
        Resume => events.emit(when, lifecycle::Resume {}),
        Reset(by) => events.emit(when, lifecycle::Reset { guest: by.by_guest(), reason: cause(by) }),
        Shutdown(by) => events.emit(when, lifecycle::Shutdown { guest: by.by_guest(), reason: cause(by) }),
        Powerdown => events.emit(when, lifecycle::Powerdown {}),
        Suspend => events.emit(when, lifecycle::Suspend {}),
        SuspendDisk => events.emit(when, lifecycle::SuspendDisk {}),
        Wakeup => events.emit(when, lifecycle::Wakeup {}),
        GuestPanicked { action } => {
            if let Some(action) = board::GuestPanicAction::from_name(action) {
                events.emit(when, board::GuestPanicked { action });
            }
        }
        GuestCrashLoaded { action } => {
            if let Some(action) = board::GuestPanicAction::from_name(action) {
                events.emit(when, board::GuestCrashloaded { action });
            }
        }
        Watchdog { action } => {
            if let Some(action) = board::WatchdogAction::from_name(action) {
                events.emit(when, board::Watchdog { action });
            }
        }
        // Heard by listeners: the debugger, the main program.
        DebugStop { .. } | Broken { .. } | Finished => {}
    }
}

fn cause(cause: Cause) -> ShutdownCause {
    match cause {
        Cause::HostError => ShutdownCause::HostError,
        Cause::HostQmpQuit => ShutdownCause::HostQmpQuit,
        Cause::HostQmpSystemReset => ShutdownCause::HostQmpSystemReset,
        Cause::HostSignal => ShutdownCause::HostSignal,
        Cause::HostUi => ShutdownCause::HostUi,
        Cause::GuestShutdown => ShutdownCause::GuestShutdown,
        Cause::GuestReset => ShutdownCause::GuestReset,
        Cause::GuestPanic => ShutdownCause::GuestPanic,
    }
}

pub fn device(events: &Events, when: SystemTime, notice: device::Notice) {
    match notice {
        device::Notice::RtcChange { offset, qom_path } => {
            events.emit(when, board::RtcChange { offset, qom_path });
        }
        device::Notice::PortChanged { id, open } => {
            events.emit(when, schema::qom::VserportChange { id, open });
        }
    }
}

pub fn block(events: &Events, when: SystemTime, notice: block::Notice) {
    use block::Notice::*;
    use schema::block as wire;
    match notice {
        IoError { device, qdev, node, write, action, nospace, reason } => {
            let operation = if write { wire::IoOperation::Write } else { wire::IoOperation::Read };
            let stops = action == block::Action::Stop;
            let action = match action {
                block::Action::Ignore => wire::BlockErrorAction::Ignore,
                block::Action::Report => wire::BlockErrorAction::Report,
                block::Action::Stop => wire::BlockErrorAction::Stop,
            };
            let event = wire::BlockIoError {
                qom_path: qdev,
                device,
                node_name: node,
                operation,
                action,
                nospace,
                reason,
            };
            events.emit(when, event);
            if stops {
                events.machine.stop_for(RunState::IoError);
            }
        }
        TrayMoved { device, id, open } => {
            events.emit(when, wire::DeviceTrayMoved { device, id, tray_open: open });
        }
        ImageCorrupted { device, node, text, offset, size, fatal } => {
            let (offset, size) = (offset.map(|n| n as i64), size.map(|n| n as i64));
            let event = wire::BlockImageCorrupted { device, node_name: node, msg: text, offset, size, fatal };
            events.emit(when, event);
        }
        _ => {}
    }
}
