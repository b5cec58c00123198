//! Image formats, and the one list of all drivers.

mod mapped;
pub mod qcow2;
pub mod raw;
mod vdi;
mod vpc;

use crate::driver::Driver;

/// Every driver, in the order in which lists show them.
pub static DRIVERS: &[&Driver] = &[
    &raw::DRIVER,
    &qcow2::DRIVER,
    &vdi::DRIVER,
    &vpc::DRIVER,
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

/// A random UUID (version 4) as bytes.
fn random_uuid() -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut have = 0;
    while have < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[have..], rustix::rand::GetRandomFlags::empty()) {
            Ok(some) => have += some,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests;
