use super::*;
use memory::{RamBlock, SpaceKind};

struct Board {
    ports: Arc<AddressSpace>,
    memory: Arc<AddressSpace>,
    device: Arc<FwCfg>,
}

fn board() -> Board {
    let (ports, memory) = (AddressSpace::new(SpaceKind::Port), AddressSpace::new(SpaceKind::Memory));
    let ram = RamBlock::new("ram", 1 << 20).unwrap();
    memory.edit(|edit| edit.ram(ram, 0));
    let device = FwCfg::new(memory.clone(), true);
    device.map(&ports);
    Board { ports, memory, device }
}

impl Board {
    fn read(&self, key: u16, len: usize) -> Vec<u8> {
        self.ports.store(SELECTOR_PORT, 2, key.into());
        (0..len).map(|_| self.ports.load(SELECTOR_PORT + 1, 1) as u8).collect()
    }

    /// Runs a descriptor at 0x1000; its control word afterwards.
    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        let mut descriptor = control.to_be_bytes().to_vec();
        descriptor.extend(length.to_be_bytes());
        descriptor.extend(address.to_be_bytes());
        self.memory.write(0x1000, &descriptor);
        self.ports.store(DMA_PORT, 4, 0);
        self.ports.store(DMA_PORT + 4, 4, 0x1000u32.swap_bytes().into());
        (self.memory.load(0x1000, 4) as u32).swap_bytes()
    }
}

#[test]
fn signature_and_files_by_ports() {
    let board = board();
    assert_eq!(board.read(key::SIGNATURE, 6), *b"QEMU\0\0");
    assert_eq!(board.read(key::ID, 4), [3, 0, 0, 0]);
    board.device.add_file("etc/b", *b"bee").unwrap();
    board.device.add_file("etc/a", *b"ay").unwrap();
    assert!(board.device.add_file("etc/a", *b"x").unwrap_err().text.contains("duplicate"));
    assert!(board.device.add_file(&"n".repeat(56), *b"x").is_err());
    let directory = board.read(key::FILE_DIR, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..18], *b"\0\0\0\x02\0\x20\0\0etc/a\0");
    assert_eq!(board.read(0x21, 4), *b"bee\0");
    assert_eq!(board.read(0x22, 2), [0, 0]);
}

#[test]
fn dma_reads_skips_and_refuses() {
    let board = board();
    assert_eq!(board.ports.load(DMA_PORT, 8).to_le_bytes(), DMA_SIGNATURE);
    assert_eq!(board.ports.load(DMA_PORT + 4, 4) as u32, u32::from_le_bytes(*b" CFG"));
    board.device.add_file("etc/a", *b"0123456789").unwrap();
    board.memory.write(0x2000, &[0xff; 16]);
    assert_eq!(board.dma(0x20 << 16 | 8 | 2, 4, 0x2000), 0);
    assert_eq!(board.dma(4, 2, 0), 0);
    assert_eq!(board.dma(2, 8, 0x2004), 0);
    let mut got = [0; 13];
    board.memory.read(0x2000, &mut got);
    assert_eq!(&got, b"01236789\0\0\0\0\xff");
    // Writes, and destinations that are not RAM, fail.
    assert_eq!(board.dma(16, 4, 0x2000), 1);
    assert_eq!(board.dma(8 | 2, u32::MAX, 0x8000), 1);
    assert_eq!(board.dma(8 | 2, 1, u64::MAX), 1);
    assert_eq!(board.dma(8 | 2, 16, u64::MAX - 3), 1);
}

#[test]
fn hostile_descriptor_addresses_are_ignored() {
    let board = board();
    for address in [u64::MAX, u64::MAX - 8, 1 << 20, (1 << 20) - 8] {
        board.ports.store(DMA_PORT, 4, u64::from(((address >> 32) as u32).swap_bytes()));
        board.ports.store(DMA_PORT + 4, 4, u64::from((address as u32).swap_bytes()));
    }
    for offset in 0..8 {
        for size in [1, 2, 4, 8] {
            board.ports.store(DMA_PORT + offset, size, u64::MAX);
            board.ports.load(DMA_PORT + offset, size);
        }
    }
    assert_eq!(board.read(key::SIGNATURE, 4), *b"QEMU");
}

#[test]
fn every_standard_item_is_there() {
    let board = board();
    let platform = Platform::new(crate::Chipset::I440fx, 2, 256 << 20);
    let tables = crate::acpi::Tables::build(&platform);
    let smbios =
        crate::smbios::Tables::build(&crate::smbios::Config::new(&platform, "pc-i440fx-7.2"), &platform);
    let boot =
        Boot { order: vec!["/pci@i0cf8/ide@1,1/drive@0/disk@0".into()], strict: true, ..Boot::default() };
    for _ in 0..2 {
        board.device.edit(|items| fill(items, &platform, &boot, Some(&tables), &smbios)).unwrap();
    }
    assert_eq!(board.read(key::NB_CPUS, 2), [2, 0]);
    assert_eq!(board.read(key::RAM_SIZE, 8), (256u64 << 20).to_le_bytes());
    let order = board.device.edit(|items| items.file("bootorder").cloned()).unwrap();
    assert_eq!(&order[..], b"/pci@i0cf8/ide@1,1/drive@0/disk@0\nHALT\0");
    let states = board.device.edit(|items| items.file("etc/system-states").cloned()).unwrap();
    assert_eq!(states[..], [128, 0, 0, 129, 130, 128]);
}

use crate::Platform;
