//! Image formats, and the one list of all drivers.

pub mod luks;
pub mod qcow2;
pub mod raw;

use crate::driver::Driver;

/// Every driver, in the order in which lists show them.
pub static DRIVERS: &[&Driver] = &[
    &raw::DRIVER,
    &qcow2::DRIVER,
    &luks::DRIVER,
    &crate::protocols::file::FILE,
    &crate::protocols::file::HOST_DEVICE,
    &crate::protocols::file::HOST_CDROM,
    &crate::protocols::nbd::DRIVER,
    &crate::protocols::null::NULL_CO,
    &crate::protocols::null::NULL_AIO,
    &crate::filters::blkdebug::DRIVER,
    &crate::filters::blkverify::DRIVER,
    &crate::filters::throttle::DRIVER,
    &crate::filters::copy_on_read::DRIVER,
    &crate::filters::copy_before_write::DRIVER,
    &crate::filters::copy_before_write::SNAPSHOT_ACCESS,
    &crate::filters::preallocate::DRIVER,
    &crate::filters::compress::DRIVER,
    &crate::filters::quorum::DRIVER,
    #[cfg(test)]
    &qcow2::crash::RECORDER,
];

pub fn all() -> impl Iterator<Item = &'static Driver> {
    DRIVERS.iter().copied()
}

/// A driver by its name.
pub fn find(name: &str) -> Option<&'static Driver> {
    all().find(|driver| driver.name == name)
}

/// The driver for file names that begin with `scheme:`.
pub fn by_scheme(scheme: &str) -> Option<&'static Driver> {
    all().find(|driver| driver.schemes.contains(&scheme))
}
