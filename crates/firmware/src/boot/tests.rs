use super::*;
use crate::platform::Chipset;
use cpu::CpuState;
use cpu::state::{gpr, seg};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;

const RAM: u64 = 64 << 20;

struct Board {
    platform: Platform,
    acpi: acpi::Tables,
    smbios: smbios::Tables,
}

fn board() -> Board {
    let platform = Platform::new(Chipset::I440fx, 1, RAM);
    let acpi = acpi::Tables::build(&platform);
    let smbios = smbios::Tables::build(&smbios::Config::new(&platform, "pc-i440fx-7.2"), &platform);
    Board { platform, acpi, smbios }
}

impl Board {
    fn request(&self, kernel: Vec<u8>) -> Request<'_> {
        Request {
            platform: &self.platform,
            kernel_name: "k".into(),
            kernel,
            initrd: Vec::new(),
            command_line: "console=ttyS0".into(),
            long_mode: true,
            acpi: Some(&self.acpi),
            smbios: Some(&self.smbios),
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn bzimage(long: bool) -> Vec<u8> {
    let mut kernel = vec![0; 512 * 5 + 0x1000];
    kernel[0x1f1] = 4;
    put(&mut kernel, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut kernel, 0x202, b"HdrS");
    put(&mut kernel, 0x206, &0x20fu16.to_le_bytes());
    kernel[0x211] = 1;
    put(&mut kernel, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut kernel, 0x230, &0x20_0000u32.to_le_bytes());
    kernel[0x234] = 1;
    kernel[0x236] = u8::from(long);
    put(&mut kernel, 0x238, &2047u32.to_le_bytes());
    put(&mut kernel, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut kernel, 0x260, &0x80_0000u32.to_le_bytes());
    kernel[512 * 5] = 0xf4;
    kernel
}

fn memory_of(plan: &Plan) -> Arc<AddressSpace> {
    let space = AddressSpace::new(SpaceKind::Memory);
    let ram = RamBlock::new("ram", RAM).unwrap();
    space.edit(|edit| edit.ram(ram, 0));
    plan.write(&space);
    space
}

#[test]
fn bzimage_in_long_mode() {
    let board = board();
    let mut request = board.request(bzimage(true));
    request.initrd = vec![Module { line: "i".into(), bytes: vec![7; 10_000] }];
    let plan = request.plan().unwrap();
    assert_eq!(plan.protocol(), Some(Protocol::Linux64));
    let memory = memory_of(&plan);
    let mut state = CpuState::reset(true, 0);
    plan.enter(&mut state);
    assert!(state.is_64bit() && state.cpl() == 0);
    assert_eq!(state.rip, 0x10_0200);
    let page = state.gpr[gpr::RSI];
    assert_eq!(memory.load(0x10_0000, 1), 0xf4);
    assert_eq!(memory.load(page + 0x202, 4) as u32, u32::from_le_bytes(*b"HdrS"));
    let line = memory.load(page + 0x228, 4);
    assert_eq!(memory.load(line, 8).to_le_bytes(), *b"console=");
    let initrd = memory.load(page + 0x218, 4);
    assert_eq!((memory.load(page + 0x21c, 4), memory.load(initrd, 1)), (10_000, 7));
    assert!(initrd.is_multiple_of(4096) && initrd > 0x180_0000 && initrd + 10_000 < RAM);
    assert_eq!(memory.load(memory.load(page + 0x70, 8), 8).to_le_bytes(), *b"RSD PTR ");
    assert_eq!(memory.load(0xf_0040, 4) as u32, u32::from_le_bytes(*b"_SM_"));
    // The mapping is one to one.
    let walk = |linear: u64| {
        let mut table = state.cr3;
        for level in [39, 30] {
            table = memory.load(table + (linear >> level & 511) * 8, 8) & !0xfff;
        }
        memory.load(table + (linear >> 21 & 511) * 8, 8)
    };
    assert_eq!(walk(0xfee0_0000), 0xfee0_0083);
    let code = memory.load(state.gdtr.base + u64::from(state.seg[seg::CS].selector), 8);
    assert_eq!(code, 0x00af_9b00_0000_ffff);
}

#[test]
fn the_bios_has_no_services() {
    let board = board();
    let memory = memory_of(&board.request(bzimage(true)).plan().unwrap());
    // INT 15h leads to code that sets the carry flag and returns.
    let (offset, segment) = (memory.load(0x15 * 4, 2), memory.load(0x15 * 4 + 2, 2));
    assert_eq!(memory.load((segment << 4) + offset + 3, 4), 0x01_06_4e_80);
    assert_eq!(memory.load((segment << 4) + offset + 8, 1), 0xcf);
}

#[test]
fn bzimage_falls_back_to_32_bits() {
    let board = board();
    let mut request = board.request(bzimage(true));
    request.long_mode = false;
    for request in [request, board.request(bzimage(false))] {
        let plan = request.plan().unwrap();
        let mut state = CpuState::reset(true, 0);
        plan.enter(&mut state);
        assert_eq!((plan.protocol(), state.rip), (Some(Protocol::Linux32), 0x10_0000));
        assert_eq!((state.cr0, state.seg[seg::CS].base), (0x11, 0));
    }
}

fn elf(wide: bool, pvh: bool, multiboot: bool) -> Vec<u8> {
    let mut file = vec![0; 0x2000];
    put(&mut file, 0, &[0x7f, b'E', b'L', b'F', 1 + u8::from(wide), 1]);
    put(&mut file, 18, &[if wide { 62 } else { 3 }]);
    let mut segment = |i: usize, kind: u32, offset: u64, address: u64, len: u64, memory: u64| {
        let word = |v: u64| v.to_le_bytes()[..if wide { 8 } else { 4 }].to_vec();
        let mut bytes = kind.to_le_bytes().to_vec();
        if wide {
            bytes.extend([0; 4]);
        }
        for value in [offset, address, address, len, memory, 0, 0] {
            bytes.extend(word(value));
        }
        let size = if wide { 56 } else { 32 };
        put(&mut file, 0x100 + size * i, &bytes[..size]);
    };
    segment(0, 1, 0x1000, 0x20_0000, 0x800, 0x3000);
    segment(1, 4, 0x1c00, 0, if pvh { 20 } else { 0 }, 0);
    if wide {
        put(&mut file, 24, &0x20_0040u64.to_le_bytes());
        put(&mut file, 32, &0x100u64.to_le_bytes());
        put(&mut file, 54, &[56, 0, 2]);
    } else {
        put(&mut file, 24, &0x20_0040u32.to_le_bytes());
        put(&mut file, 28, &0x100u32.to_le_bytes());
        put(&mut file, 42, &[32, 0, 2]);
    }
    let mut note = Vec::new();
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x20_0080] {
        note.extend(word.to_le_bytes());
    }
    put(&mut file, 0x1c00, &note);
    if multiboot {
        for (i, word) in [0x1bad_b002u32, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)].into_iter().enumerate() {
            put(&mut file, 0x1000 + 4 * i, &word.to_le_bytes());
        }
    }
    file
}

#[test]
fn pvh_vmlinux_and_multiboot() {
    let board = board();
    let enter = |request: &Request<'_>| {
        let plan = request.plan().unwrap();
        let mut state = CpuState::reset(true, 0);
        plan.enter(&mut state);
        (plan.protocol().unwrap(), state.rip, state, memory_of(&plan))
    };
    for wide in [false, true] {
        let (protocol, rip, state, memory) = enter(&board.request(elf(wide, true, false)));
        assert_eq!((protocol, rip), (Protocol::Pvh, 0x20_0080));
        let info = state.gpr[gpr::RBX];
        assert_eq!(memory.load(info, 4), 0x336e_c578);
        assert!(memory.load(info + 48, 4) >= 4);
        assert_eq!(memory.load(memory.load(info + 32, 8), 8).to_le_bytes(), *b"RSD PTR ");
    }
    let (protocol, rip, ..) = enter(&board.request(elf(true, false, false)));
    assert_eq!((protocol, rip), (Protocol::Linux64, 0x20_0040));
    let mut request = board.request(elf(false, false, true));
    let module = |line: &str, byte| Module { line: line.into(), bytes: vec![byte; 5000] };
    request.initrd = vec![module("a x", 1), module("b", 2)];
    let (protocol, rip, state, memory) = enter(&request);
    assert_eq!((protocol, rip, state.gpr[gpr::RAX]), (Protocol::Multiboot, 0x20_0040, 0x2bad_b002));
    let info = state.gpr[gpr::RBX];
    assert_eq!(memory.load(info + 20, 4), 2);
    let list = memory.load(info + 24, 4);
    let second = memory.load(list + 16, 4);
    assert_eq!((memory.load(second, 1), memory.load(second - 4096, 1)), (2, 1));
    assert_eq!(memory.load(memory.load(list + 8, 4), 4).to_le_bytes()[..4], *b"a x\0");
    assert_eq!(memory.load(memory.load(info + 16, 4), 4).to_le_bytes()[..4], *b"k co");
}

#[test]
fn errors_say_what_is_wrong() {
    let board = board();
    let error = |kernel: Vec<u8>| board.request(kernel).plan().unwrap_err().text;
    assert_eq!(
        error(vec![]),
        "could not load kernel 'k': not a Linux bzImage, ELF (PVH) or multiboot kernel"
    );
    let mut old = bzimage(true);
    put(&mut old, 0x206, &[3, 2]);
    assert!(error(old).contains("2.03, is older"));
    let mut short = bzimage(true);
    short.truncate(512 * 5);
    assert!(error(short).contains("invalid kernel header"));
    let mut large = bzimage(true);
    put(&mut large, 0x260, &u32::MAX.to_le_bytes());
    assert!(error(large).contains("memory is too small"));
    assert!(error(elf(true, false, true)).contains("Cannot load x86-64 image"));
    let mut huge = elf(true, true, false);
    put(&mut huge, 0x100 + 40, &u64::MAX.to_le_bytes());
    assert!(error(huge).contains("memory is too small"));
    let mut request = board.request(bzimage(true));
    request.initrd = vec![Module { line: "i".into(), bytes: vec![0; RAM as usize] }];
    assert!(request.plan().unwrap_err().text.starts_with("initrd is too large, cannot support.(max: "));
    request.initrd.clear();
    request.command_line = "x".repeat(2048);
    assert!(request.plan().unwrap_err().text.contains("command line is too long"));
    assert!(
        read_kernel("/nonexistent")
            .unwrap_err()
            .text
            .starts_with("could not open kernel file '/nonexistent': No such")
    );
}

/// Corrupt kernels give errors or plans, never panics.
#[test]
fn mutated_kernels() {
    let board = board();
    let originals = [bzimage(true), elf(true, true, false), elf(false, true, false), elf(false, false, true)];
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    let mut good = 0;
    for round in 0..4000 {
        let mut kernel = originals[round % originals.len()].clone();
        for _ in 0..=random() % 4 {
            let areas = [(0, 0x80), (0x1f0, 0x80), (0x100, 0x80), (0x1000, 0x40), (0x1c00, 0x20)];
            let (start, len) = areas[random() % areas.len()];
            let at = (start + random() % len) % kernel.len();
            kernel[at] = [0, 1, 0x7f, 0x80, 0xff, random() as u8][random() % 6];
        }
        if random() % 8 == 0 {
            kernel.truncate(random() % kernel.len());
        }
        good += usize::from(board.request(kernel).plan().is_ok());
    }
    assert!(good > 100, "{good}");
}

#[test]
fn memory_types_cover_the_pci_window() {
    for (chipset, ram) in [(Chipset::I440fx, RAM), (Chipset::I440fx, 3 << 30), (Chipset::Q35, 5 << 30)] {
        let platform = Platform::new(chipset, 1, ram);
        let mut state = CpuState::reset(true, 0);
        chipset::cpu(&platform, &mut state);
        let covered: u64 = state
            .msr
            .mtrr_variable
            .iter()
            .filter(|pair| pair.1 != 0)
            .map(|(_, mask)| 1u64 << (mask & !0xfff).trailing_zeros())
            .sum();
        assert!(covered <= (1 << 32) - platform.ram_low && covered >= (1 << 32) - platform.pci32().0);
    }
}
