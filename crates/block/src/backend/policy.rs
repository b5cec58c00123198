//! Guest requests: bounds, limits, counting, and what is done about errors.

use super::stats::Kind;
use super::{Inner, Request};
use crate::buffers::{self, Lent};
use crate::notice::{Action, Notice};
use crate::types::*;
use base::failure::strerror;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// `rerror`, `werror`, and the `on-error` of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum OnError {
    Report,
    Ignore,
    /// Stop on lack of space, report else.
    #[default]
    Enospc,
    Stop,
}

impl OnError {
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "report" => OnError::Report,
            "ignore" => OnError::Ignore,
            "enospc" => OnError::Enospc,
            "stop" => OnError::Stop,
            _ => return None,
        })
    }

    /// What to do about an errno.
    pub fn action(self, code: i32) -> Action {
        match self {
            OnError::Report => Action::Report,
            OnError::Ignore => Action::Ignore,
            OnError::Enospc if code == libc::ENOSPC => Action::Stop,
            OnError::Enospc => Action::Report,
            OnError::Stop => Action::Stop,
        }
    }

    fn from_u8(value: u8) -> Self {
        [OnError::Report, OnError::Ignore, OnError::Enospc, OnError::Stop][value as usize & 3]
    }
}

/// `io-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IoStatus {
    Ok,
    Failed,
    Nospace,
}

impl IoStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            IoStatus::Ok => "ok",
            IoStatus::Failed => "failed",
            IoStatus::Nospace => "nospace",
        }
    }
}

pub(super) struct Policy {
    read: AtomicU8,
    write: AtomicU8,
    enabled: AtomicBool,
    status: AtomicU8,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            read: AtomicU8::new(OnError::Report as u8),
            write: AtomicU8::new(OnError::Enospc as u8),
            enabled: AtomicBool::new(false),
            status: AtomicU8::new(0),
        }
    }
}

impl Policy {
    pub fn set(&self, read: OnError, write: OnError) {
        self.read.store(read as u8, Ordering::Release);
        self.write.store(write as u8, Ordering::Release);
    }

    pub fn get(&self) -> (OnError, OnError) {
        let load = |which: &AtomicU8| OnError::from_u8(which.load(Ordering::Acquire));
        (load(&self.read), load(&self.write))
    }

    pub fn enable(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
        self.clear_status();
    }

    /// The status is kept only where a policy may stop the machine.
    pub fn enabled(&self) -> bool {
        let (read, write) = self.get();
        let stops = |policy| matches!(policy, OnError::Stop | OnError::Enospc);
        self.enabled.load(Ordering::Acquire) && (stops(read) || stops(write))
    }

    pub fn status(&self) -> IoStatus {
        match self.status.load(Ordering::Acquire) {
            0 => IoStatus::Ok,
            1 => IoStatus::Failed,
            _ => IoStatus::Nospace,
        }
    }

    pub fn clear_status(&self) {
        self.status.store(0, Ordering::Release);
    }

    fn fail(&self, code: i32) {
        let to = if code == libc::ENOSPC { IoStatus::Nospace } else { IoStatus::Failed };
        // The first error stays until it is cleared.
        let _ = self.status.compare_exchange(0, to as u8, Ordering::AcqRel, Ordering::Acquire);
    }
}

fn kind_of(request: &Request) -> (Kind, u64, u64) {
    match request {
        Request::Read { offset, len } => (Kind::Read, *offset, *len as u64),
        Request::Write { offset, data, .. } => (Kind::Write, *offset, data.len() as u64),
        Request::WriteZeroes { offset, len, .. } => (Kind::Write, *offset, *len),
        Request::Discard { offset, len } => (Kind::Unmap, *offset, *len),
        Request::Flush => (Kind::Flush, 0, 0),
    }
}

pub(super) async fn perform(backend: &Inner, request: Request) -> io::Result<Lent> {
    let (kind, offset, len) = kind_of(&request);
    let started = backend.stats.start();
    loop {
        // Before the gate: limits must not hold up a drain.
        if kind != Kind::Flush {
            backend.pass_limits(!matches!(kind, Kind::Read), len).await;
        }
        let inside = backend.gate.enter().await;
        let Some(root) = backend.root.lock().clone() else { return Err(errno(libc::ENOMEDIUM)) };
        let writes = !matches!(kind, Kind::Read | Kind::Flush);
        if offset.checked_add(len).is_none_or(|end| end > root.size()) {
            backend.stats.invalid(kind);
            return Err(errno(libc::EIO));
        }
        if writes && backend.read_only.load(Ordering::Acquire) {
            backend.stats.invalid(kind);
            return Err(errno(libc::EPERM));
        }
        let result = attempt(backend, &root, &request).await;
        backend.stats.done(kind, len, started, result.is_ok());
        let Err(error) = result else { return result };
        match decide(backend, &root, kind, &error) {
            Action::Report => return Err(error),
            Action::Ignore => {
                let len = if let Request::Read { len, .. } = request { len } else { 0 };
                return Ok(vec![0; len].into());
            }
            Action::Stop => {
                let resumed = backend.resumed.notified();
                tell(backend, &root, kind, Action::Stop, &error);
                drop(inside);
                drop(root);
                resumed.await;
            }
        }
    }
}

async fn attempt(backend: &Inner, root: &crate::graph::Child, request: &Request) -> io::Result<Lent> {
    let through = !backend.write_cache.load(Ordering::Acquire);
    match request {
        Request::Read { offset, len } => {
            let mut data = buffers::take(*len);
            root.read(*offset, &mut data).await?;
            return Ok(data);
        }
        Request::Write { offset, data, fua } => {
            let mut flags = WriteFlags::empty();
            flags.set(WriteFlags::FUA, *fua || through);
            root.write(*offset, data, flags).await?;
        }
        Request::WriteZeroes { offset, len, unmap } => {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::MAY_UNMAP, *unmap);
            flags.set(ZeroFlags::FUA, through);
            root.write_zeroes(*offset, *len, flags).await?;
        }
        Request::Discard { offset, len } => root.discard(*offset, *len).await?,
        Request::Flush => root.flush().await?,
    }
    Ok(Lent::default())
}

/// Chooses the action and, unless it is `stop`, tells of it.
fn decide(backend: &Inner, root: &crate::graph::Child, kind: Kind, error: &io::Error) -> Action {
    if backend.front.lock().is_none() {
        return Action::Report;
    }
    let (read, write) = backend.policy.get();
    let policy = if kind == Kind::Read { read } else { write };
    let action = policy.action(errno_of(error));
    if action != Action::Stop {
        tell(backend, root, kind, action, error);
    }
    action
}

fn tell(backend: &Inner, root: &crate::graph::Child, kind: Kind, action: Action, error: &io::Error) {
    let code = errno_of(error);
    if action == Action::Stop {
        backend.policy.fail(code);
    }
    let Some(graph) = backend.graph.upgrade() else { return };
    let front = backend.front.lock().clone();
    let node = root.node();
    graph.notices.send(Notice::IoError {
        device: backend.name().to_string(),
        qdev: front.map(|front| front.qdev_id()),
        node: Some(node.name().to_string()),
        write: kind != Kind::Read,
        action,
        nospace: backend.policy.enabled().then_some(code == libc::ENOSPC),
        reason: strerror(error),
    });
}
