//! `file`, `host_device`, `host_cdrom`: files of the host.

mod create;
mod io;
mod locks;
mod queued;

use crate::driver::{Discards, Driver, Info, Kind, Layer, Open};
use crate::graph::Settings;
use crate::options::Options;
use crate::types::*;
use arc_swap::ArcSwap;
use base::fd::{FdSets, SetFd, fdset_number};
use base::{Failure, Mutex, Result, bail, fail};
use io::{File, SECTOR};
use rustix::fs::{Mode, OFlags};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::runtime::Handle;

pub static FILE: Driver = Driver {
    name: "file",
    kind: Kind::Protocol,
    schemes: &["file"],
    open,
    create: Some(create::create),
    create_options: create::OPTIONS,
    changes: &["x-check-cache-dropped"],
    ..Driver::DEFAULT
};

pub static HOST_DEVICE: Driver =
    Driver { name: "host_device", schemes: &["host_device"], create: None, create_options: &[], ..FILE };

pub static HOST_CDROM: Driver = Driver { name: "host_cdrom", schemes: &["host_cdrom"], ..HOST_DEVICE };

/// Takes the prefix of such a driver off a file name that is not known to be a path.
pub(crate) fn strip_prefix(driver: &Driver, name: &str) -> Option<String> {
    let ours = [&FILE, &HOST_DEVICE, &HOST_CDROM].iter().any(|one| one.name == driver.name);
    let rest = name.strip_prefix(driver.name)?.strip_prefix(':')?;
    ours.then(|| rest.to_string())
}

/// The driver for a plain path.
pub(crate) fn driver_for(path: &str) -> &'static Driver {
    if path.starts_with("/dev/cdrom") || path.starts_with("/dev/sr") {
        return &HOST_CDROM;
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => &HOST_DEVICE,
        _ => &FILE,
    }
}

struct FileLayer {
    filename: String,
    file: ArcSwap<File>,
    size: AtomicU64,
    /// Of offsets and lengths, 1 unless O_DIRECT. Bytes.
    alignment: AtomicU32,
    aio: Aio,
    pool: Handle,
    lock: Mutex<locks::Locks>,
    fdsets: FdSets,
    block_device: bool,
    /// A range that held data when last looked at: asking the file system is slow where it
    /// must walk a long extent. Whoever makes a hole forgets it.
    data: Mutex<std::ops::Range<u64>>,
    /// Held while the file system is asked: others may be answered by what it says.
    asking: tokio::sync::Mutex<()>,
    discards: Mutex<Discards>,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let path = open.options.take_str("filename")?.filter(|path| !path.is_empty());
        let path =
            path.ok_or_else(|| fail!("The '{}' block driver requires a file name", open.driver.name))?;
        let words = [("on", Some(true)), ("off", Some(false)), ("auto", None)];
        let locking = open.options.take_word("locking", &words)?.flatten();
        // Hints that need nothing here.
        open.options.take_bool("drop-cache")?;
        open.options.take_bool("x-check-cache-dropped")?;
        open.options.take_u64("aio-max-batch")?;
        open.options.take_str("pr-manager")?.map_or(Ok(()), |_| Err(fail!("pr-manager is not supported")))?;
        let graph = open.graph.clone();
        let layer = FileLayer::open(&path, open, locking, &graph.fdsets)?;
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

/// An open file and, from a descriptor set, the mark that the set is in use.
pub(super) type Opened = (rustix::fd::OwnedFd, Option<Arc<()>>);

fn open_flags(settings: &Settings) -> OFlags {
    let mut flags = OFlags::CLOEXEC;
    flags |= if settings.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if settings.cache.direct {
        flags |= OFlags::DIRECT;
    }
    flags
}

fn open_path(path: &str, flags: OFlags, fdsets: &FdSets) -> Result<Opened, rustix::io::Errno> {
    match fdset_number(path) {
        Some(set) => {
            let SetFd { fd, user } = fdsets.open(set, flags)?;
            Ok((fd, Some(user)))
        }
        None => Ok((rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?, None)),
    }
}

fn open_error(path: &str, error: rustix::io::Errno) -> Failure {
    Failure::os(format!("Could not open '{path}'"), &error.into())
}

impl FileLayer {
    fn open(path: &str, open: &mut Open, locking: Option<bool>, fdsets: &FdSets) -> Result<Self> {
        use rustix::io::Errno;
        // Nobody waits for the other end of a pipe that an image names.
        let stat = rustix::fs::stat(path);
        if stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo()) {
            bail!("'{}' driver requires '{path}' to be a regular file", open.driver.name);
        }
        let opened = match open_path(path, open_flags(&open.settings), fdsets) {
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM)
                if open.settings.auto_read_only && !open.settings.read_only =>
            {
                open.settings.read_only = true;
                open_path(path, open_flags(&open.settings), fdsets)
            }
            other => other,
        };
        let (fd, user) = opened.map_err(|error| open_error(path, error))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| open_error(path, error))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let name = open.driver.name;
        if name == "file" && !kind.is_file() && !kind.is_block_device() && !kind.is_char_device() {
            bail!("'file' driver requires '{path}' to be a regular file");
        }
        if name != "file" && !kind.is_block_device() && !kind.is_char_device() {
            bail!("'{name}' driver requires '{path}' to be either a character or block device");
        }
        let size = match kind.is_file() {
            true => stat.st_size as u64,
            false => rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).unwrap_or(0),
        };
        let direct = open.settings.cache.direct;
        let alignment = if direct { io::direct_alignment(&fd) } else { 1 };
        let aio = open.settings.aio;
        queued::check(path, aio)?;
        Ok(FileLayer {
            filename: path.to_string(),
            file: ArcSwap::from_pointee(File::new(fd, user, alignment)),
            size: AtomicU64::new(size),
            alignment: AtomicU32::new(alignment),
            aio,
            pool: open.graph.main_thread().handle().clone(),
            lock: Mutex::new(locks::Locks::new(locking != Some(false))),
            fdsets: fdsets.clone(),
            block_device: !kind.is_file(),
            data: Mutex::new(0..0),
            asking: Default::default(),
            discards: Mutex::default(),
        })
    }

    /// Runs `work` on the thread pool.
    async fn pooled<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> IoResult<T> + Send + 'static,
    ) -> IoResult<T> {
        let file = self.file.load_full();
        match self.pool.spawn_blocking(move || work(&file)).await {
            Ok(result) => result,
            Err(_) => Err(errno(libc::EIO)),
        }
    }

    fn forget_data(&self) {
        *self.data.lock() = 0..0;
    }

    /// How long there is data from `offset` on, if that is known.
    fn known_data(&self, offset: u64) -> Option<u64> {
        let known = self.data.lock();
        known.contains(&offset).then(|| known.end - offset)
    }

    /// Whether there is data at `offset`, and for how many bytes that is so.
    async fn extent(&self, offset: u64, len: u64, size: u64) -> IoResult<(bool, u64)> {
        let (data, run) = self.pooled(move |file| file.extent(offset, len, size)).await?;
        if data {
            *self.data.lock() = offset..offset + run;
        }
        Ok((data, run))
    }

    /// Length of the file in bytes.
    fn exact_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn grown(&self, end: u64) {
        if !self.block_device {
            self.size.fetch_max(end, Ordering::AcqRel);
        }
    }
}

impl Layer for FileLayer {
    /// In whole sectors, as is customary: the rest of the last one reads as zeroes.
    fn size(&self) -> u64 {
        self.exact_size().next_multiple_of(SECTOR)
    }

    fn limits(&self) -> Limits {
        let request_alignment = self.alignment.load(Ordering::Relaxed);
        Limits { request_alignment, max_transfer: 1 << 30, ..Limits::default() }
    }

    fn discards(&self) -> Option<Discards> {
        Some(*self.discards.lock())
    }

    fn grows(&self) -> bool {
        !self.block_device
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let done = self.file.load().try_read(offset, buf)?;
            if done == buf.len() {
                return Ok(());
            }
            if self.is_queued() {
                return self.read_queued(offset + done as u64, &mut buf[done..]).await;
            }
            let (len, at) = (buf.len() - done, offset + done as u64);
            let data = self.pooled(move |file| file.read(at, len)).await?;
            buf[done..].copy_from_slice(&data);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let inline = self.file.load().try_write(offset, data)?;
            if !inline && self.is_queued() {
                self.write_queued(offset, data).await?;
            } else if !inline {
                let mut copy = crate::buffers::take(data.len());
                copy.copy_from_slice(data);
                self.pooled(move |file| file.write(offset, &copy)).await?;
            }
            self.grown(offset + data.len() as u64);
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.forget_data();
            let size = self.exact_size();
            let unmap = flags.contains(ZeroFlags::MAY_UNMAP);
            self.pooled(move |file| file.zero(offset, len, size, unmap)).await?;
            self.forget_data();
            self.grown(offset + len);
            Ok(())
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let punched = self.pooled(move |file| file.punch(offset, len)).await;
            self.forget_data();
            let mut discards = self.discards.lock();
            match punched {
                Ok(_) => {
                    discards.done += 1;
                    discards.bytes += len;
                }
                Err(_) => discards.failed += 1,
            }
            drop(discards);
            punched
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            match self.is_queued() {
                true => self.sync_queued().await,
                false => self.pooled(File::sync).await,
            }
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            if self.block_device {
                let flags = StatusFlags::DATA | StatusFlags::ALLOCATED;
                return Ok(Status { flags, len, offset: Some(offset) });
            }
            let size = self.exact_size();
            let (data, run) = match self.known_data(offset) {
                Some(run) => (true, run),
                None => {
                    let _asking = self.asking.lock().await;
                    match self.known_data(offset) {
                        Some(run) => (true, run),
                        None => self.extent(offset, len, size).await?,
                    }
                }
            };
            let flags = if data { StatusFlags::DATA } else { StatusFlags::ZERO };
            Ok(Status { flags: flags | StatusFlags::ALLOCATED, len: run.clamp(1, len), offset: Some(offset) })
        })
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let old = self.exact_size();
            if self.block_device {
                if size > old || (how.exact && size != old) {
                    bail!("Cannot grow device files");
                }
                return Ok(());
            }
            let work = move |file: &File| Ok(create::resize(file.fd(), old, size, how.preallocation));
            self.pooled(work).await??;
            self.forget_data();
            self.size.store(size, Ordering::Release);
            Ok(())
        })
    }

    fn set_perm(&self, perm: Perm, shared: Perm) -> Result<()> {
        let file = self.file.load();
        self.lock.lock().change(file.fd(), perm, shared, &self.filename)
    }

    fn reopen<'a>(&'a self, to: &'a Settings, options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            options.take_bool("x-check-cache-dropped")?;
            if to.aio != self.aio {
                bail!("Cannot change the option 'aio'");
            }
            let opened = open_path(&self.filename, open_flags(to), &self.fdsets);
            let (fd, user) = opened.map_err(|error| open_error(&self.filename, error))?;
            let old = self.file.load_full();
            let same =
                |a: &rustix::fs::Stat, b: &rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            match (rustix::fs::fstat(&fd), rustix::fs::fstat(old.fd())) {
                (Ok(new), Ok(old)) if same(&new, &old) => {}
                _ => bail!("Could not open '{}': the file was replaced", self.filename),
            }
            self.lock.lock().move_to(old.fd(), rustix::fd::AsFd::as_fd(&fd), &self.filename)?;
            let alignment = if to.cache.direct { io::direct_alignment(&fd) } else { 1 };
            self.alignment.store(alignment, Ordering::Relaxed);
            self.file.store(Arc::new(File::new(fd, user, alignment)));
            Ok(())
        })
    }

    fn info(&self) -> Info {
        Info { dirty: Some(false), ..Info::default() }
    }

    fn allocated_size(&self) -> Fut<'_, Option<u64>> {
        Box::pin(async {
            let stat = rustix::fs::fstat(self.file.load().fd()).ok()?;
            Some(stat.st_blocks as u64 * 512)
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
    }

    fn zero_initialised(&self) -> bool {
        !self.block_device
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
