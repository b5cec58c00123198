//! Tools of the tests: Debian guests, initramfs archives, a driver for the real binary and a
//! QMP client.

#![forbid(unsafe_code)]

pub mod bench;
pub mod certificates;
pub mod cpio;
pub mod dice;
pub mod disk;
pub mod foreign;
pub mod ftp;
pub mod guests;
pub mod images;
pub mod linux;
pub mod loads;
pub mod modules;
pub mod nbd;
pub mod qmp;
pub mod qtest;
pub mod record;
pub mod ssh;
pub mod tftp;
pub mod vm;
pub mod web;
pub mod writer;

pub use bench::Bench;
pub use dice::Dice;
pub use images::Images;
pub use linux::Linux;
pub use qmp::Qmp;
pub use qtest::Qtest;
pub use vm::Vm;
pub use writer::Writer;
