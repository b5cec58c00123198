//! The store behind the device: numbered items and named files.

use base::{Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers of the items with a fixed key (QEMU `docs/specs/fw_cfg`, Linux
/// `include/uapi/linux/qemu_fw_cfg.h`, SeaBIOS `src/fw/paravirt.c`).
pub mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const NB_CPUS: u16 = 0x05;
    pub const KERNEL_ADDR: u16 = 0x07;
    pub const KERNEL_SIZE: u16 = 0x08;
    pub const INITRD_ADDR: u16 = 0x0a;
    pub const INITRD_SIZE: u16 = 0x0b;
    pub const NUMA: u16 = 0x0d;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const KERNEL_ENTRY: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const CMDLINE_ADDR: u16 = 0x13;
    pub const CMDLINE_SIZE: u16 = 0x14;
    pub const CMDLINE_DATA: u16 = 0x15;
    pub const SETUP_ADDR: u16 = 0x16;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIR: u16 = 0x19;
    /// Files are numbered from here, in alphabetical order.
    pub const FILE_FIRST: u16 = 0x20;
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// Length of a file's name with its final NUL.
const NAME_LEN: usize = 56;
const MAX_FILES: usize = 0x1000;

/// What the guest can select: fixed items by key, files by name.
#[derive(Clone, Default)]
pub struct Items {
    fixed: BTreeMap<u16, Arc<[u8]>>,
    files: BTreeMap<String, Arc<[u8]>>,
}

impl Items {
    pub fn set(&mut self, key: u16, data: impl Into<Arc<[u8]>>) {
        self.fixed.insert(key, data.into());
    }

    /// Adds a file; the name must fit the directory and not exist yet.
    pub fn add_file(&mut self, name: &str, data: impl Into<Arc<[u8]>>) -> Result<()> {
        if name.is_empty() || name.len() >= NAME_LEN || !name.bytes().all(|b| b.is_ascii_graphic()) {
            bail!("fw_cfg file name '{name}' is empty, longer than 55 characters or not plain ASCII");
        }
        if self.files.contains_key(name) {
            bail!("duplicate fw_cfg file name: {name}");
        }
        if self.files.len() >= MAX_FILES {
            bail!("too many fw_cfg files");
        }
        self.files.insert(name.to_string(), data.into());
        Ok(())
    }

    /// Adds a file or replaces its contents.
    pub fn put_file(&mut self, name: &str, data: impl Into<Arc<[u8]>>) -> Result<()> {
        self.files.remove(name);
        self.add_file(name, data)
    }

    pub fn file(&self, name: &str) -> Option<&Arc<[u8]>> {
        self.files.get(name)
    }

    /// The bytes behind a key; `None` for keys that lead nowhere.
    pub fn get(&self, key: u16) -> Option<Arc<[u8]>> {
        if key == key::FILE_DIR {
            return Some(self.directory().into());
        }
        let number = usize::from(key.wrapping_sub(key::FILE_FIRST));
        if key >= key::FILE_FIRST
            && let Some(data) = self.files.values().nth(number)
        {
            return Some(data.clone());
        }
        self.fixed.get(&key).cloned()
    }

    /// Count, then per file: size, key, reserved, name; numbers big endian.
    fn directory(&self) -> Vec<u8> {
        let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
        for ((name, data), key) in self.files.iter().zip(key::FILE_FIRST..) {
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&key.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
            let mut field = [0; NAME_LEN];
            field[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend_from_slice(&field);
        }
        bytes
    }
}
