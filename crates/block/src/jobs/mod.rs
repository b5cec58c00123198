//! Background operations over the graph: stream, commit, mirror, backup, create.

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Commit,
    Stream,
    Mirror,
    Backup,
    Create,
    Amend,
    SnapshotLoad,
    SnapshotSave,
    SnapshotDelete,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Commit => "commit",
            Kind::Stream => "stream",
            Kind::Mirror => "mirror",
            Kind::Backup => "backup",
            Kind::Create => "create",
            Kind::Amend => "amend",
            Kind::SnapshotLoad => "snapshot-load",
            Kind::SnapshotSave => "snapshot-save",
            Kind::SnapshotDelete => "snapshot-delete",
        }
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Ready,
    Standby,
    Waiting,
    Pending,
    Aborting,
    Concluded,
    Null,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Ready => "ready",
            Status::Standby => "standby",
            Status::Waiting => "waiting",
            Status::Pending => "pending",
            Status::Aborting => "aborting",
            Status::Concluded => "concluded",
            Status::Null => "null",
        }
    }
}

/// Which BLOCK_JOB_ event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Completed,
    Cancelled,
    Ready,
}

/// What the events and `query-block-jobs` tell of a job. Bytes; bytes per second.
#[derive(Clone, Debug)]
pub struct Progress {
    pub kind: Kind,
    pub id: String,
    pub len: u64,
    pub offset: u64,
    pub speed: u64,
}
