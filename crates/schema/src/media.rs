//! Media of drives, and their trays. A drive is named by its back end (`device`) or by the
//! device that holds it (`id`): exactly one of them.

use crate::commands;
use qapi::{Command, Describe};

commands![
    Eject,
    Change,
    BlockdevOpenTray,
    BlockdevCloseTray,
    BlockdevRemoveMedium,
    BlockdevInsertMedium,
    BlockdevChangeMedium
];

/// Opens the tray and takes the medium out.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct Eject {
    pub device: Option<String>,
    pub id: Option<String>,
    /// although the guest has locked the tray
    pub force: Option<bool>,
}

/// Puts another image into a drive.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct Change {
    pub device: String,
    /// the image
    pub target: String,
    /// its format
    pub arg: Option<String>,
}

/// Opens the tray, or asks the guest for it if it has locked it. No error without tray.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevOpenTray {
    pub device: Option<String>,
    pub id: Option<String>,
    /// although the guest has locked it
    pub force: Option<bool>,
}

/// Closes the tray. No error without tray.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevCloseTray {
    pub device: Option<String>,
    pub id: Option<String>,
}

/// Takes the medium out of the open tray.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevRemoveMedium {
    pub device: Option<String>,
    pub id: Option<String>,
}

/// Puts a node into the open, empty tray.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevInsertMedium {
    pub device: Option<String>,
    pub id: Option<String>,
    pub node_name: String,
}

/// Whether a new medium may be written.
#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockdevChangeReadOnlyMode {
    /// as the drive was given
    Retain,
    ReadOnly,
    ReadWrite,
}

/// Opens the tray, puts another image in, and closes it.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct BlockdevChangeMedium {
    pub device: Option<String>,
    pub id: Option<String>,
    pub filename: String,
    /// probed if not given
    pub format: Option<String>,
    /// although the guest has locked the tray
    pub force: Option<bool>,
    pub read_only_mode: Option<BlockdevChangeReadOnlyMode>,
}
