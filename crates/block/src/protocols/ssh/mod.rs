//! `ssh`: a file of an SSH server, through SFTP.

mod place;
mod session;

use crate::driver::{Create, Driver, Kind, Layer, Open};
use crate::graph::Settings;
use crate::options::Options;
use crate::types::*;
use base::{Result, bail};
use place::Place;
use russh_sftp::protocol::{OpenFlags, StatusCode};
use session::{PIECE, Session, number};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub static DRIVER: Driver = Driver {
    name: "ssh",
    kind: Kind::Protocol,
    schemes: &["ssh"],
    open,
    create: Some(create),
    ..Driver::DEFAULT
};

struct Remote {
    place: Place,
    session: Session,
    /// What the server calls the open file.
    handle: base::Mutex<Arc<str>>,
    writable: AtomicBool,
    size: AtomicU64,
    /// Nobody has been told yet that the server does not sync.
    untold: AtomicBool,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let place = Place::take(&mut open.options)?;
        let session = Session::open(&place).await?;
        let writable = !open.settings.read_only;
        let handle = match session.open_file(&place.path, flags(writable)).await {
            Err(_) if writable && open.settings.auto_read_only => {
                open.read_only()?;
                session.open_file(&place.path, flags(false)).await?
            }
            opened => opened?,
        };
        let size = session.size(&handle).await?;
        Ok(Arc::new(Remote {
            place,
            session,
            handle: base::Mutex::new(handle.into()),
            writable: AtomicBool::new(!open.settings.read_only),
            size: AtomicU64::new(size),
            untold: AtomicBool::new(true),
        }) as Arc<dyn Layer>)
    })
}

fn flags(writable: bool) -> OpenFlags {
    if writable { OpenFlags::READ | OpenFlags::WRITE } else { OpenFlags::READ }
}

/// `location` (as `blockdev-add` has it) or `filename`, and `size`.
fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let place = match create.options.take_table("location")? {
            Some(mut location) => {
                let place = Place::take(&mut location)?;
                location.finish_in("location")?;
                place
            }
            None => Place::take(&mut create.options)?,
        };
        let size = create.size()?;
        create.finish()?;
        let session = Session::open(&place).await?;
        let how = flags(true) | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let handle = session.open_file(&place.path, how).await?;
        session.resize(&handle, size).await?;
        let _ = session.answer(session.sftp.close(handle.as_str())).await;
        session.end();
        Ok(())
    })
}

impl Remote {
    fn handle(&self) -> Arc<str> {
        self.handle.lock().clone()
    }
}

impl Layer for Remote {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn grows(&self) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        Limits { max_transfer: PIECE, ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let handle = self.handle();
            let mut done = 0;
            while done < buf.len() {
                let left = (buf.len() - done) as u32;
                let request = self.session.sftp.read(&*handle, offset + done as u64, left);
                match self.session.answer(request).await {
                    Ok(piece) if !piece.data.is_empty() && piece.data.len() <= left as usize => {
                        buf[done..done + piece.data.len()].copy_from_slice(&piece.data);
                        done += piece.data.len();
                    }
                    // The file ends within the last sector.
                    Err(russh_sftp::client::error::Error::Status(status))
                        if status.status_code == StatusCode::Eof =>
                    {
                        buf[done..].fill(0);
                        return Ok(());
                    }
                    other => return number(other).and(Err(errno(libc::EIO))),
                }
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let handle = self.handle();
            for (n, piece) in data.chunks(PIECE as usize).enumerate() {
                let at = offset + n as u64 * u64::from(PIECE);
                number(self.session.answer(self.session.sftp.write(&*handle, at, piece.to_vec())).await)?;
            }
            self.size.fetch_max(offset + data.len() as u64, Ordering::AcqRel);
            Ok(())
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if !self.writable.load(Ordering::Acquire) {
                return Ok(());
            }
            if !self.session.syncs {
                if self.untold.swap(false, Ordering::AcqRel) {
                    let Place { host, port, .. } = &self.place;
                    eprintln!(
                        "warning: the SSH server at {host}:{port} does not support fsync: what is flushed may be lost if it fails \
                         (OpenSSH 6.3 and later do)"
                    );
                }
                return Ok(());
            }
            let handle = self.handle();
            number(self.session.answer(self.session.sftp.fsync(&*handle)).await).map(drop)
        })
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if how.preallocation != Preallocation::Off {
                bail!("Unsupported preallocation mode '{}'", how.preallocation.as_str());
            }
            self.session.resize(&self.handle(), size).await?;
            self.size.store(size, Ordering::Release);
            Ok(())
        })
    }

    fn reopen<'a>(&'a self, to: &'a Settings, _options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let writable = !to.read_only;
            if writable == self.writable.load(Ordering::Acquire) {
                return Ok(());
            }
            let handle = self.session.open_file(&self.place.path, flags(writable)).await?;
            let old = std::mem::replace(&mut *self.handle.lock(), handle.into());
            self.writable.store(writable, Ordering::Release);
            let _ = self.session.answer(self.session.sftp.close(&*old)).await;
            Ok(())
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            let flushed = self.flush().await;
            let handle = self.handle();
            let _ = self.session.answer(self.session.sftp.close(&*handle)).await;
            self.session.end();
            flushed
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.place.uri())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
