//! Tools of the tests: Debian guests, initramfs archives, a driver for the real binary and a
//! QMP client.

#![forbid(unsafe_code)]

pub mod bench;
pub mod cpio;
pub mod disk;
pub mod foreign;
pub mod guests;
pub mod images;
pub mod linux;
pub mod qmp;
pub mod vm;

pub use bench::Bench;
pub use images::Images;
pub use linux::Linux;
pub use qmp::Qmp;
pub use vm::Vm;
