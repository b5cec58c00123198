//! Media that come and go: the tray, its lock, taking out, putting in, changing.

use super::{Backend, FrontEnd};
use crate::graph::{Node, Settings};
use crate::options::Options;
use base::{Result, bail, fail};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A tray as it is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tray {
    pub open: bool,
    /// The guest keeps it closed.
    pub locked: bool,
}

/// The facet of a front end whose medium can be changed.
pub trait Media: Send + Sync {
    /// The user moved the tray (`loaded`: closed it) or, where there is none, put a medium in or
    /// took it out. The drive moves its tray, sends [`crate::Notice::TrayMoved`] if it was
    /// elsewhere, and tells the guest.
    fn changed(&self, loaded: bool);

    /// `None` for a drive without one (floppies).
    fn tray(&self) -> Option<Tray> {
        None
    }

    /// The user wants the medium out: the guest is asked to release it. `force` unlocks the tray.
    fn request_eject(&self, _force: bool) {}

    /// Whether the drive can write its media at all.
    fn writes(&self) -> bool {
        true
    }
}

/// What trying to open a tray led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Open,
    /// There is no tray to be opened.
    NoTray,
    /// The guest holds it closed, and has been asked to open it.
    Locked,
}

/// `read-only-mode` of a new medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// As the drive was given.
    #[default]
    Retain,
    ReadOnly,
    ReadWrite,
}

/// The image of a new medium.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    pub filename: String,
    /// Probed if not given.
    pub format: Option<String>,
    pub access: Access,
    /// May be encrypted by a password that is yet to come.
    pub late_key: bool,
}

/// How the files of later media are opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habit {
    pub settings: Settings,
    /// Writes go to a temporary overlay.
    pub snapshot: bool,
}

/// The drive of a back end, if a device holds it.
struct Drive(Option<Arc<dyn FrontEnd>>);

impl Drive {
    fn media(&self) -> Option<&dyn Media> {
        self.0.as_ref().and_then(|front| front.media())
    }

    fn tray(&self) -> Option<Tray> {
        self.media().and_then(Media::tray)
    }
}

impl Backend {
    /// Its name, or else that of its medium's node: how `drive=` of a device means it.
    pub fn label(&self) -> String {
        match self.name() {
            "" => self.node().map(|node| node.name().to_string()).unwrap_or_default(),
            name => name.to_string(),
        }
    }

    /// The board makes the device for it, whichever is asked for.
    pub fn set_automatic(&self) {
        self.0.automatic.store(true, Ordering::Release);
    }

    /// Refuses where a device has it.
    pub fn check_unused(&self) -> Result<()> {
        let name = self.name();
        match (self.front_end(), self.0.automatic.load(Ordering::Acquire)) {
            (None, _) => Ok(()),
            (Some(_), false) => bail!("Drive '{name}' is already in use by another device"),
            (Some(_), true) => bail!(
                "Drive '{name}' is already in use because it has been automatically connected to another device \
                 (did you need 'if=none' in the drive options?)"
            ),
        }
    }
}

/// In all of these `named` is how the user called the drive, for messages.
impl Backend {
    fn drive(&self, named: &str) -> Result<Drive> {
        let drive = Drive(self.front_end());
        if drive.0.is_some() && drive.media().is_none() {
            bail!("Device '{named}' is not removable");
        }
        Ok(drive)
    }

    /// Opens the tray unless the guest has locked it; `force` opens it nevertheless.
    pub fn open_tray(&self, named: &str, force: bool) -> Result<Opening> {
        let drive = self.drive(named)?;
        let (Some(media), Some(tray)) = (drive.media(), drive.tray()) else { return Ok(Opening::NoTray) };
        if tray.open {
            return Ok(Opening::Open);
        }
        if tray.locked {
            media.request_eject(force);
            if !force {
                return Ok(Opening::Locked);
            }
        }
        media.changed(false);
        Ok(Opening::Open)
    }

    /// Closes the tray, if there is one.
    pub fn close_tray(&self, named: &str) -> Result<()> {
        let drive = self.drive(named)?;
        if let (Some(media), Some(Tray { open: true, .. })) = (drive.media(), drive.tray()) {
            media.changed(true);
        }
        Ok(())
    }

    /// Takes the medium out of the open tray.
    pub async fn remove_medium(&self, named: &str) -> Result<()> {
        let drive = self.drive(named)?;
        if drive.tray().is_some_and(|tray| !tray.open) {
            bail!("Tray of device '{named}' is not open");
        }
        let Some(node) = self.node() else { return Ok(()) };
        node.check_busy()?;
        self.take_out().await;
        if let (Some(media), None) = (drive.media(), drive.tray()) {
            media.changed(false);
        }
        Ok(())
    }

    /// Removes the medium, and what is exported of it, whatever the drive says.
    pub(crate) async fn take_out(&self) {
        let server = self.graph().and_then(|graph| graph.exports.server.lock().clone());
        if let Some(server) = server {
            server.medium_goes(self).await;
        }
        self.remove().await;
    }

    /// Puts a node into the open tray.
    pub async fn insert_medium(&self, named: &str, node: &Arc<Node>) -> Result<()> {
        let drive = self.drive(named)?;
        if drive.tray().is_some_and(|tray| !tray.open) {
            bail!("Tray of device '{named}' is not open");
        }
        if self.is_inserted() {
            bail!("There already is a medium in device '{named}'");
        }
        let before = self.0.read_only.load(Ordering::Acquire);
        self.set_read_only(node.is_read_only() || drive.media().is_some_and(|media| !media.writes()));
        if let Err(why) = self.insert(node) {
            self.set_read_only(before);
            return Err(why);
        }
        if let (Some(media), None) = (drive.media(), drive.tray()) {
            media.changed(true);
        }
        Ok(())
    }

    /// Lets the device use another node (`qom-set` of its `drive`).
    pub async fn exchange(&self, node: &Arc<Node>) -> Result<()> {
        let (Some(root), Some(graph)) = (self.root(), self.graph()) else {
            bail!("Device '{}' has no medium", self.name())
        };
        if node.thread().is_some_and(|thread| !thread.is(&self.thread())) {
            bail!("Different aio context is not supported for new node");
        }
        let old = root.node();
        let drained = (graph.drain(&old).await, graph.drain(node).await);
        graph.redirect(&root, node)?;
        drop(drained);
        if let Some(front) = self.front_end().filter(|_| old.size() != node.size()) {
            front.resized();
        }
        drop(old);
        graph.collect().await;
        Ok(())
    }

    /// The medium became usable where it is, as if it had just been put in.
    pub(crate) fn medium_came(&self) {
        let drive = Drive(self.front_end());
        let Some(media) = drive.media() else { return };
        if drive.tray().is_some_and(|tray| !tray.open) {
            media.changed(false);
        }
        media.changed(true);
    }

    /// Opens the tray and takes the medium out.
    pub async fn eject(&self, named: &str, force: bool) -> Result<()> {
        self.open_unlocked(named, force)?;
        self.remove_medium(named).await
    }

    /// Puts the medium `new` in place of what is there. If that cannot be, the old medium stays.
    pub async fn change_medium(&self, named: &str, new: &Medium, force: bool) -> Result<()> {
        let graph = self.graph().ok_or_else(|| fail!("The block layer is gone"))?;
        let habit = *self.0.habit.lock();
        let read_only = match new.access {
            Access::Retain => self.0.read_only.load(Ordering::Acquire),
            Access::ReadOnly => true,
            Access::ReadWrite => false,
        };
        let mut options = Options::new();
        options.set("filename", new.filename.as_str());
        if let Some(format) = &new.format {
            options.set("driver", format.as_str());
        }
        let late_key = new.late_key;
        let settings = Settings { read_only, auto_read_only: false, late_key, ..habit.settings };
        let opened = match habit.snapshot {
            false => graph.open(options, settings).await?,
            true => graph.open_snapshot(options, settings).await?,
        };
        let old = self.node().map(|node| node.pin());
        let swapped = async {
            self.open_unlocked(named, force)?;
            self.remove_medium(named).await?;
            if let Err(why) = self.insert_medium(named, &opened).await {
                if let Some(old) = &old {
                    self.insert_medium(named, old).await?;
                }
                self.close_tray(named)?;
                return Err(why);
            }
            self.close_tray(named)
        };
        let result = swapped.await;
        drop((old, opened));
        graph.collect().await;
        result
    }

    fn open_unlocked(&self, named: &str, force: bool) -> Result<()> {
        match self.open_tray(named, force)? {
            Opening::Locked => bail!(
                "Device '{named}' is locked and force was not specified, wait for tray to open and try again"
            ),
            Opening::Open | Opening::NoTray => Ok(()),
        }
    }
}
