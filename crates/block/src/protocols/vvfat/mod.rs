//! `vvfat`: a directory of the host shown as a FAT disk (`fat:[rw:][floppy:][12:|16:|32:]dir`).
//!
//! Source: "Microsoft FAT Specification" (2005). The directory is looked at once, when the
//! disk is opened; files are read when the guest reads them. Nobody else should change them
//! meanwhile.
//!
//! With `rw` the guest may write. What it writes lies in a file without a name (in `TMPDIR`)
//! until it flushes the disk or the disk is closed. If the file system is sound then - each
//! cluster in one chain, both tables alike, nothing cut off while its clusters are in use - the
//! directory becomes what the guest has made of it: all changes or, if one fails, none. Else
//! everything waits for the next flush; what still waits when the disk is closed is reported
//! and left out. Contents are written beside the old ones and renamed. The guest sees no
//! symbolic links and cannot make any; no path that it names is followed through one, and a
//! name that the host cannot have is refused. Times and attributes are not brought over.

mod directory;
mod layout;
mod name;
mod overlay;
mod staging;
mod tree;
mod volume;
mod written;

use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::Settings;
use crate::options::Options;
use crate::types::*;
use base::{Mutex, Result, bail, fail};
use layout::{Fat, Piece, Source};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;
use written::Written;

pub static DRIVER: Driver =
    Driver { name: "vvfat", kind: Kind::Protocol, schemes: &["fat"], open, ..Driver::DEFAULT };

const SECTOR: u64 = 512;

/// The disk as it was opened.
struct Base {
    pieces: Vec<Piece>,
    size: u64,
}

struct Vvfat {
    base: Arc<Base>,
    /// If the guest may write. Held while the host is waited for, hence not a lock of `base`.
    written: Option<Arc<Mutex<Written>>>,
    filename: String,
    pool: Handle,
}

/// What `fat:` file names say before the directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Name {
    rw: bool,
    floppy: bool,
    bits: Option<u64>,
    dir: String,
}

impl Name {
    fn parse(text: &str) -> Name {
        let mut name = Name::default();
        let mut rest = text.strip_prefix("fat:").unwrap_or(text);
        loop {
            let (word, after) = rest.split_once(':').unwrap_or(("", rest));
            match word {
                "rw" => name.rw = true,
                "floppy" => name.floppy = true,
                "12" | "16" | "32" => name.bits = word.parse().ok(),
                _ => break,
            }
            rest = after;
        }
        name.dir = rest.to_string();
        name
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let options = &mut open.options;
        let filename = options.take_str("filename")?;
        let named = Name::parse(filename.as_deref().unwrap_or_default());
        let dir = options.take_str("dir")?.or(Some(named.dir).filter(|dir| !dir.is_empty()));
        let Some(dir) = dir else { bail!("vvfat block driver requires a 'dir' option") };
        let bits = options.take_u64("fat-type")?.filter(|bits| *bits != 0).or(named.bits);
        let floppy = options.take_bool("floppy")?.unwrap_or(named.floppy);
        let write = options.take_bool("rw")?.unwrap_or(named.rw);
        let label = options.take_str("label")?.unwrap_or_else(|| "QEMU VVFAT".to_string());
        if label.len() > 11 || !label.is_ascii() {
            bail!("vvfat label cannot be longer than 11 bytes");
        }
        let bits = match bits {
            None if floppy => None,
            None => Some(16),
            Some(bits @ (12 | 16 | 32)) => Some(bits),
            Some(_) => bail!("Valid FAT types are only 12, 16 and 32"),
        };
        let fat = Fat::new(bits, floppy)?;
        if write && open.settings.read_only {
            bail!("Unable to set VVFAT to 'rw' when drive is read-only");
        }
        if !write {
            open.read_only()?;
        }
        let pool = open.graph.main_thread().handle().clone();
        let path = PathBuf::from(&dir);
        let work = move || -> Result<_> {
            let root = tree::scan(&path, write)?;
            let paths = tree::paths(&root);
            let (pieces, size) = layout::build(&fat, root, &label)?;
            let base = Arc::new(Base { pieces, size });
            let written = if write { Some(Written::new(&path, &paths, fat, base.clone())?) } else { None };
            Ok((base, written))
        };
        let (base, written) =
            pool.spawn_blocking(work).await.map_err(|_| fail!("The directory could not be read"))??;
        let filename = filename.unwrap_or_else(|| format!("fat:{}{dir}", if write { "rw:" } else { "" }));
        let written = written.map(|written| Arc::new(Mutex::new(written)));
        Ok(Arc::new(Vvfat { base, written, filename, pool }) as Arc<dyn Layer>)
    })
}

/// Reads what the file has; what it has lost since it was seen is zeroes.
fn read_file(path: &Path, offset: u64, buf: &mut [u8]) -> IoResult {
    let file = std::fs::File::open(path)?;
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64)? {
            0 => break,
            some => done += some,
        }
    }
    buf[done..].fill(0);
    Ok(())
}

impl Base {
    /// The piece at a place and what is left of it; `None` is a gap, which is zeroes.
    fn at(&self, offset: u64) -> (Option<&Piece>, u64) {
        let next = self.pieces.partition_point(|piece| piece.start + piece.len <= offset);
        match self.pieces.get(next) {
            Some(piece) if piece.start <= offset => (Some(piece), piece.start + piece.len - offset),
            after => (None, after.map_or(self.size, |piece| piece.start) - offset),
        }
    }

    /// Reads what the disk has; may wait for files of the host.
    fn read(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (piece, left) = self.at(at);
            let len = left.min((buf.len() - done) as u64) as usize;
            let target = &mut buf[done..done + len];
            match piece.map(|piece| (&piece.source, at - piece.start)) {
                None => target.fill(0),
                Some((Source::Bytes(bytes), inner)) => {
                    target.copy_from_slice(&bytes[inner as usize..inner as usize + len]);
                }
                Some((Source::File(path), inner)) => read_file(path, inner, target)?,
            }
            done += len;
        }
        Ok(())
    }
}

impl Vvfat {
    /// Runs `work` on the thread pool.
    async fn pooled<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> IoResult<T> + Send + 'static,
    ) -> IoResult<T> {
        self.pool.spawn_blocking(work).await.map_err(|_| errno(libc::EIO))?
    }

    /// Runs `work` on what the guest has written, if it may write.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Written) -> IoResult<T> + Send + 'static,
    ) -> IoResult<Option<T>> {
        let Some(written) = self.written.clone() else { return Ok(None) };
        let work = move || work(&mut written.lock());
        self.pooled(work).await.map(Some)
    }
}

impl Layer for Vvfat {
    fn size(&self) -> u64 {
        self.base.size
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: SECTOR as u32, max_transfer: 1 << 20, ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut data = crate::buffers::take(buf.len());
            let (base, written) = (self.base.clone(), self.written.clone());
            let work = move || {
                match written {
                    None => base.read(offset, &mut data)?,
                    Some(written) => written.lock().read(offset, &mut data)?,
                }
                Ok(data)
            };
            buf.copy_from_slice(&self.pooled(work).await?);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut copy = crate::buffers::take(data.len());
            copy.copy_from_slice(data);
            self.with(move |written| written.write(offset, &copy)).await?.ok_or_else(|| errno(libc::EROFS))
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async { self.with(Written::flush).await.map(drop) })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async { self.with(Written::close).await.map(drop) })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let held = self.with(move |written| Ok(written.extent(offset, len))).await?;
            let (data, left) = held.unwrap_or_else(|| {
                let (piece, left) = self.base.at(offset);
                (piece.is_some(), left)
            });
            let what = if data { StatusFlags::DATA } else { StatusFlags::ZERO };
            Ok(Status { flags: what | StatusFlags::ALLOCATED, len: left.min(len), offset: None })
        })
    }

    fn reopen<'a>(&'a self, to: &'a Settings, _options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async {
            if !to.read_only && self.written.is_none() {
                bail!("Block node is read-only");
            }
            self.flush().await.map_err(Into::into)
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
