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
        DeviceDeleted { id, path } => {
            events.emit(when, schema::qom::DeviceDeleted { device: id, path });
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
        device::Notice::BalloonChanged { bytes } => {
            let actual = events.machine.memory.size().saturating_sub(bytes);
            events.emit(when, schema::memory::BalloonChange { actual: actual as i64 });
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
        other => block_job(events, when, other),
    }
}

fn block_job(events: &Events, when: SystemTime, notice: block::Notice) {
    use block::Notice::*;
    use block::jobs::Ending;
    use schema::block as old;
    use schema::{blockdev, blockjobs as wire, export};
    match notice {
        JobStatus { id, status } => {
            events.emit(when, wire::JobStatusChange { id, status: status.as_str().into() });
        }
        JobEnded { kind, job, error } => {
            let (len, offset, speed) = (job.len as i64, job.offset as i64, job.speed as i64);
            let (device, job) = (job.id, job.kind.as_str().to_string());
            match kind {
                Ending::Completed => {
                    events
                        .emit(when, wire::BlockJobCompleted { kind: job, device, len, offset, speed, error });
                }
                Ending::Cancelled => {
                    events.emit(when, wire::BlockJobCancelled { kind: job, device, len, offset, speed });
                }
                Ending::Ready => {
                    events.emit(when, wire::BlockJobReady { kind: job, device, len, offset, speed })
                }
            }
        }
        JobError { device, write, action } => {
            let operation = if write { old::IoOperation::Write } else { old::IoOperation::Read };
            let action = match action {
                block::Action::Ignore => old::BlockErrorAction::Ignore,
                block::Action::Report => old::BlockErrorAction::Report,
                block::Action::Stop => old::BlockErrorAction::Stop,
            };
            events.emit(when, wire::BlockJobError { device, operation, action });
        }
        JobPending { kind, id } => {
            events.emit(when, wire::BlockJobPending { kind: kind.as_str().into(), id });
        }
        WriteThreshold { node, exceeded, threshold } => {
            let event = blockdev::BlockWriteThreshold {
                node_name: node,
                amount_exceeded: exceeded,
                write_threshold: threshold,
            };
            events.emit(when, event);
        }
        QuorumReportBad { operation, error, node, sector, sectors } => {
            let event = blockdev::QuorumReportBad {
                operation: operation.into(),
                error,
                node_name: node,
                sector_num: sector as i64,
                sectors_count: sectors as i64,
            };
            events.emit(when, event);
        }
        QuorumFailure { reference, sector, sectors } => {
            let (sector_num, sectors_count) = (sector as i64, sectors as i64);
            events.emit(when, blockdev::QuorumFailure { reference, sector_num, sectors_count });
        }
        ExportDeleted { id } => events.emit(when, export::BlockExportDeleted { id }),
        _ => {}
    }
}
