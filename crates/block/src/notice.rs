//! What happened in the block layer that people want to hear of; `control` makes events.

use crate::jobs;

/// What an error policy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Ignore,
    Report,
    Stop,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Ignore => "ignore",
            Action::Report => "report",
            Action::Stop => "stop",
        }
    }
}

/// A block notice, sent through [`base::notice::Notices`].
#[derive(Clone, Debug)]
pub enum Notice {
    /// BLOCK_IO_ERROR. With `Stop` the machine must stop (state `io-error`).
    IoError {
        /// Name of the back end, "" if it has none.
        device: String,
        qdev: Option<String>,
        node: Option<String>,
        write: bool,
        action: Action,
        /// Only where io-status is kept.
        nospace: Option<bool>,
        reason: String,
    },
    /// BLOCK_IMAGE_CORRUPTED.
    ImageCorrupted {
        device: String,
        node: Option<String>,
        text: String,
        offset: Option<u64>,
        size: Option<u64>,
        fatal: bool,
    },
    /// BLOCK_WRITE_THRESHOLD.
    WriteThreshold { node: String, exceeded: u64, threshold: u64 },
    /// DEVICE_TRAY_MOVED.
    TrayMoved { device: String, id: String, open: bool },
    /// QUORUM_REPORT_BAD.
    QuorumReportBad {
        operation: &'static str,
        error: Option<String>,
        node: String,
        sector: u64,
        sectors: u64,
    },
    /// QUORUM_FAILURE.
    QuorumFailure { reference: String, sector: u64, sectors: u64 },
    /// JOB_STATUS_CHANGE.
    JobStatus { id: String, status: jobs::Status },
    /// BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED, BLOCK_JOB_READY.
    JobEnded { kind: jobs::Ending, job: jobs::Progress, error: Option<String> },
    /// BLOCK_JOB_ERROR.
    JobError { device: String, write: bool, action: Action },
    /// BLOCK_JOB_PENDING.
    JobPending { kind: jobs::Kind, id: String },
    /// BLOCK_EXPORT_DELETED.
    ExportDeleted { id: String },
}
