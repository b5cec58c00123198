//! A disk that the guest may write, and when the directory follows.

use super::Base;
use super::directory::Directory;
use super::layout::Fat;
use super::overlay::Overlay;
use super::volume::{Trouble, Volume};
use crate::types::*;
use base::{Failure, Result, bail};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) struct Written {
    fat: Fat,
    disk: Overlay,
    directory: Directory,
    path: PathBuf,
    /// Something was written since the directory was last compared with the disk.
    changed: bool,
    /// Why it does not follow, as told last.
    told: String,
}

impl Written {
    /// `paths` are those of all that the disk shows.
    pub fn new(path: &Path, paths: &BTreeSet<String>, fat: Fat, base: Arc<Base>) -> Result<Self> {
        let failed =
            |why: std::io::Error| Failure::os(format!("Could not write to {}", path.display()), &why);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|why| failed(why.into()))?;
        rustix::fs::accessat(&root, ".", rustix::fs::Access::WRITE_OK, rustix::fs::AtFlags::EACCESS)
            .map_err(|why| failed(why.into()))?;
        let disk = Overlay::new(base).map_err(failed)?;
        let known = match Volume::read(&fat, &disk) {
            Ok(volume) => volume.tree,
            Err(why) => bail!("vvfat: {} cannot be shown for writing: {why}", path.display()),
        };
        if let Some(name) = paths.iter().find(|path| !known.contains_key(*path)) {
            bail!("vvfat: the name of '{}' cannot be shown for writing", name.escape_debug());
        }
        let directory = Directory { root, known };
        Ok(Written { fat, disk, directory, path: path.into(), changed: false, told: String::new() })
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        self.disk.read(offset, buf)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        self.changed = true;
        self.disk.write(offset, data)
    }

    pub fn extent(&self, offset: u64, len: u64) -> (bool, u64) {
        self.disk.extent(offset, len)
    }

    /// Brings the directory up to date, if the file system is sound.
    pub fn flush(&mut self) -> IoResult {
        match self.follow() {
            Ok(()) | Err(Trouble::Unsound(_)) => Ok(()),
            Err(why) => self.failed(why),
        }
    }

    /// As [`Written::flush`], but there will be no other time.
    pub fn close(&mut self) -> IoResult {
        self.changed |= self.disk.is_fresh(0, self.disk.size());
        match self.follow() {
            Ok(()) => Ok(()),
            Err(why) => self.failed(why),
        }
    }

    fn follow(&mut self) -> std::result::Result<(), Trouble> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let volume = Volume::read(&self.fat, &self.disk)?;
        let followed = self.directory.follow(&self.fat, &mut self.disk, volume);
        match &followed {
            Ok(()) => self.disk.settled(),
            // The host may be able to another time.
            Err(Trouble::Io(_)) => self.changed = true,
            Err(_) => {}
        }
        followed
    }

    fn failed(&mut self, why: Trouble) -> IoResult {
        let text = why.to_string();
        if text != self.told {
            eprintln!("vvfat: what was written does not go to {}: {text}", self.path.display());
            self.told = text;
        }
        match why {
            Trouble::Io(error) => Err(error),
            _ => Err(errno(libc::EIO)),
        }
    }
}
