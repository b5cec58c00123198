//! Disk front ends and what they share.
//!
//! - [`Conf`], [`claim`]: the properties of every disk; [`Geometry`]: of fixed ones.
//! - `ata`: ATA commands of a disk; `cdrom`: MMC commands of a CD drive; neither knows how its
//!   bytes travel.
//! - `mover`: bytes between a drive and scattered guest memory.
//! - `ide`: the channel of a parallel ATA controller; `piix3`: that controller; `ahci`: SATA.
//! - `lsi`: the LSI53C895A, a parallel SCSI host with a processor of its own.
//! - `flash`: flash chips with the board's firmware.
//! - `floppy`: the floppy disk controller and its drives.
//! - `scsi`: logical units on any SCSI host.

mod ahci;
mod ata;
pub(crate) mod cdrom;
mod conf;
pub mod flash;
pub mod floppy;
mod geometry;
mod ide;
mod lsi;
pub(crate) mod mover;
mod pending;
mod piix3;
pub mod scsi;
#[cfg(test)]
mod tests;
mod unit;

pub use conf::{BLOCK, BOOT, Conf, ERRORS, Runs, claim, iothread, wait_idle};
pub use geometry::{GEOMETRY, Geometry, Translation};
pub use pending::Pending;
pub use piix3::fixed_disks;
pub use unit::IdeBus;

use device::Model;

/// The models of this folder.
pub fn models() -> Vec<&'static Model> {
    vec![
        &piix3::MODEL,
        &ahci::MODEL,
        &unit::HD,
        &unit::CD,
        &scsi::HD,
        &scsi::CD,
        &lsi::MODEL,
        &flash::MODEL,
        &floppy::CONTROLLER_MODEL,
        &floppy::DRIVE_MODEL,
    ]
}
