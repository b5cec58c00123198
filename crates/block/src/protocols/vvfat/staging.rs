//! Changes below a directory that are all made or all undone. Paths are relative to it, and no
//! link is followed on the way.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;

const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How a step is taken back.
enum Undo {
    Rename { from: String, to: String },
    Made(String),
    Removed(String, Mode),
}

pub(super) struct Staging<'a> {
    root: &'a OwnedFd,
    /// A directory for what is new and for what is to go.
    place: String,
    done: Vec<Undo>,
}

/// The directory a path lies in, and its last part.
fn parent<'a>(root: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let (way, last) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = root.as_fd().try_clone_to_owned()?;
    for part in way.split('/').filter(|part| !part.is_empty()) {
        at = rustix::fs::openat(&at, part, WAY, Mode::empty())?;
    }
    Ok((at, last))
}

/// Renames, but never over something else.
fn rename(root: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
    let ((old, from), (new, to)) = (parent(root, from)?, parent(root, to)?);
    match rustix::fs::renameat_with(&old, from, &new, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag.
        Err(Errno::INVAL) => match rustix::fs::statat(&new, to, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(rustix::fs::renameat(&old, from, &new, to)?),
            _ => Err(Errno::EXIST.into()),
        },
        other => Ok(other?),
    }
}

impl<'a> Staging<'a> {
    pub fn begin(root: &'a OwnedFd) -> io::Result<Self> {
        for number in 0u32.. {
            let place = format!(".ryokan-vvfat-{}-{number}", std::process::id());
            match rustix::fs::mkdirat(root, &place, Mode::RWXU) {
                Ok(()) => return Ok(Staging { root, place, done: Vec::new() }),
                Err(Errno::EXIST) if number < 1000 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Where something called `name` is put aside.
    pub fn aside(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    /// A new file, put aside; with the permissions of the file at `like`, if there is one.
    pub fn create(&self, name: &str, like: &str) -> io::Result<File> {
        let (at, last) = parent(self.root, &self.place)?;
        let place = rustix::fs::openat(at, last, WAY, Mode::empty())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place, name, flags, Mode::from_raw_mode(0o666))?;
        if let Ok((at, last)) = parent(self.root, like)
            && let Ok(about) = rustix::fs::statat(&at, last, AtFlags::SYMLINK_NOFOLLOW)
            && rustix::fs::FileType::from_raw_mode(about.st_mode).is_file()
        {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(about.st_mode & 0o777))?;
        }
        Ok(file.into())
    }

    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        rename(self.root, from, to)?;
        self.done.push(Undo::Rename { from: from.into(), to: to.into() });
        Ok(())
    }

    pub fn make_dir(&mut self, path: &str) -> io::Result<()> {
        let (at, last) = parent(self.root, path)?;
        rustix::fs::mkdirat(at, last, Mode::from_raw_mode(0o777))?;
        self.done.push(Undo::Made(path.into()));
        Ok(())
    }

    /// Refuses if there is anything in it.
    pub fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        let (at, last) = parent(self.root, path)?;
        let about = rustix::fs::statat(&at, last, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::unlinkat(at, last, AtFlags::REMOVEDIR)?;
        self.done.push(Undo::Removed(path.into(), Mode::from_raw_mode(about.st_mode & 0o777)));
        Ok(())
    }

    /// Everything is as it should be: what was put aside goes.
    pub fn finish(self) {
        self.clear();
    }

    /// Takes back every step.
    pub fn undo(mut self) {
        while let Some(step) = self.done.pop() {
            let (path, result) = match &step {
                Undo::Rename { from, to } => (to, rename(self.root, to, from)),
                Undo::Made(path) => (path, self.remove(path)),
                Undo::Removed(path, mode) => (path, self.restore(path, *mode)),
            };
            if let Err(error) = result {
                // What was put aside stays there.
                eprintln!("vvfat: '{}' could not be put back: {error}", path.escape_debug());
                return;
            }
        }
        self.clear();
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (at, last) = parent(self.root, path)?;
        Ok(rustix::fs::unlinkat(at, last, AtFlags::REMOVEDIR)?)
    }

    fn restore(&self, path: &str, mode: Mode) -> io::Result<()> {
        let (at, last) = parent(self.root, path)?;
        Ok(rustix::fs::mkdirat(at, last, mode)?)
    }

    fn clear(&self) {
        if let Err(error) = self.try_clear() {
            eprintln!("vvfat: '{}' could not be removed: {error}", self.place);
        }
    }

    fn try_clear(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(self.root, &self.place, flags, Mode::empty())?;
        let entries = rustix::fs::Dir::read_from(&place)?.collect::<Result<Vec<_>, _>>()?;
        for entry in entries.iter().filter(|one| !matches!(one.file_name().to_bytes(), b"." | b"..")) {
            rustix::fs::unlinkat(&place, entry.file_name(), AtFlags::empty())?;
        }
        self.remove(&self.place)
    }
}
