//! What a PC's firmware finds or does: tables, the fw_cfg device, kernels booted directly.
//!
//! - [`platform`]: the plain description of a board that everything here is derived from.
//! - [`fw_cfg`]: the configuration device that SeaBIOS and guests read.
//! - [`acpi`], [`smbios`], [`e820`]: tables, for a firmware to place or placed directly.
//! - [`boot`]: Linux, PVH and multiboot kernels without any firmware.
//! - [`rom`]: finding and mapping BIOS images and option ROMs.
//!
//! Nothing here knows how a board is put together: data and functions over
//! [`memory::AddressSpace`] and [`cpu::CpuState`].

#![forbid(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod e820;
pub mod fw_cfg;
pub mod platform;
pub mod rom;
pub mod smbios;

pub use fw_cfg::FwCfg;
pub use platform::{Chipset, CpuSlot, IsaDevices, NumaNode, Platform, PmBlocks};
