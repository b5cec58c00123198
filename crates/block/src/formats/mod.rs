//! Image formats, and the one list of all drivers.

mod bochs;
mod chunks;
mod cloop;
mod dmg;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod luks;
mod mapped;
mod parallels;
#[cfg(test)]
pub(crate) mod power_loss;
mod qcow;
pub mod qcow2;
mod qed;
pub mod raw;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use crate::driver::Driver;

/// Every driver, in the order in which lists show them.
pub static DRIVERS: &[&Driver] = &[
    &raw::DRIVER,
    &qcow2::DRIVER,
    &luks::DRIVER,
    &qcow::DRIVER,
    &qed::DRIVER,
    &vmdk::DRIVER,
    &vdi::DRIVER,
    &vpc::DRIVER,
    &vhdx::DRIVER,
    &parallels::DRIVER,
    &bochs::DRIVER,
    &cloop::DRIVER,
    &dmg::DRIVER,
    &crate::protocols::file::FILE,
    &crate::protocols::file::HOST_DEVICE,
    &crate::protocols::file::HOST_CDROM,
    &crate::protocols::vvfat::DRIVER,
    &crate::protocols::curl::HTTP,
    &crate::protocols::curl::HTTPS,
    &crate::protocols::curl::FTP,
    &crate::protocols::curl::FTPS,
    &crate::protocols::curl::TFTP,
    &crate::protocols::ssh::DRIVER,
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
    #[cfg(any(test, fuzzing))]
    &hostile::MEMORY,
    #[cfg(test)]
    &qcow2::crash::RECORDER,
];

/// Those of [`DRIVERS`] that can be used here.
pub fn all() -> impl Iterator<Item = &'static Driver> {
    DRIVERS.iter().copied().filter(|driver| (driver.present)())
}

/// A driver by its name.
pub fn find(name: &str) -> Option<&'static Driver> {
    all().find(|driver| driver.name == name)
}

/// The driver for file names that begin with `scheme:`.
pub fn by_scheme(scheme: &str) -> Option<&'static Driver> {
    all().find(|driver| driver.schemes.contains(&scheme))
}

/// A short text that stands in an image, such as the name of its backing file.
async fn read_text(file: &crate::graph::Child, offset: u64, len: u64) -> base::Result<String> {
    let bytes = file.read_vec(offset, len, 1 << 16).await;
    let bytes = bytes.map_err(|why| base::Failure::os("Could not read a file name from the image", &why))?;
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => base::bail!("A file name in the image is not text"),
    }
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
mod built;
#[cfg(test)]
mod tests;
