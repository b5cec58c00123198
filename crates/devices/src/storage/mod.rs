//! Disk front ends and what they share.

mod conf;

pub use conf::{Conf, DRIVE, Geometry, LIMITS, claim, wait_idle};

use device::Model;

/// The models of this folder.
pub fn models() -> Vec<&'static Model> {
    Vec::new()
}
