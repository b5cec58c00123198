use super::chip::{Chip, Effect, SECTOR};
use super::*;
use memory::SpaceKind;

const LEN: u64 = 8 * SECTOR;

fn chip() -> Chip {
    Chip::new(LEN, false)
}

#[test]
fn firmware_recognises_the_chip() {
    // As OVMF asks: the status register is 0 once cleared, and neither RAM nor ROM answers so.
    let mut chip = chip();
    assert!(chip.shows_array());
    chip.write(0x123, 1, 0x50);
    assert!(chip.shows_array());
    chip.write(0x123, 1, 0x70);
    assert_eq!((chip.shows_array(), chip.read(0x123, 1)), (false, 0));
    chip.write(0x123, 1, 0xff);
    assert!(chip.shows_array());
}

#[test]
fn programs_and_erases() {
    let mut chip = chip();
    assert_eq!(chip.write(5, 1, 0x40), Effect::None);
    assert_eq!(chip.write(5, 1, 0xab), Effect::Program(vec![(5, vec![0xab])]));
    assert_eq!((chip.read(0, 1), chip.read(0, 4)), (0x80, 0x80_0080));
    chip.write(SECTOR + 7, 1, 0x20);
    assert_eq!(chip.write(SECTOR + 7, 1, 0xd0), Effect::Erase(SECTOR));
    // Not confirmed: nothing happens.
    chip.write(0, 1, 0x20);
    assert_eq!(chip.write(0, 1, 0x11), Effect::None);
    assert!(chip.shows_array());
}

#[test]
fn writes_by_the_buffer() {
    let mut chip = chip();
    chip.write(0x800, 1, 0xe8);
    chip.write(0x800, 1, 2);
    for n in 0..3 {
        assert_eq!(chip.write(0x800 + n, 1, 0x30 + n), Effect::None);
    }
    let all = (0..3u8).map(|n| (0x800 + u64::from(n), vec![0x30 + n])).collect();
    assert_eq!(chip.write(0x800, 1, 0xd0), Effect::Program(all));
    // Two places of the buffer at once: an error.
    chip.write(0x7ff, 1, 0xe8);
    chip.write(0x7ff, 1, 1);
    chip.write(0x7ff, 1, 1);
    chip.write(0x800, 1, 1);
    assert_eq!((chip.write(0x7ff, 1, 0xd0), chip.read(0, 1)), (Effect::None, 0xb0));
    chip.write(0, 1, 0xff);
    // So many values do not fit.
    chip.write(0, 2, 0xe8);
    assert_eq!((chip.write(0, 2, 0xffff), chip.read(0, 1)), (Effect::None, 0xb0));
}

#[test]
fn tells_of_itself() {
    let mut chip = chip();
    chip.write(0, 1, 0x98);
    let query: Vec<u8> = (0..0x40).map(|at| chip.read(at, 1) as u8).collect();
    assert_eq!(&query[0x10..0x14], b"QRY\x01");
    assert_eq!((query[0x27], &query[0x2c..0x31]), (15, &[1, 7, 0, 16, 0][..]));
    chip.write(0, 1, 0x90);
    assert_eq!((chip.read(0, 1), chip.read(1, 1), chip.read(2, 1)), (0x89, 0x18, 0));
}

#[test]
fn a_read_only_chip_keeps_its_contents() {
    let mut chip = Chip::new(LEN, true);
    chip.write(0, 1, 0x10);
    assert_eq!((chip.write(0, 1, 0), chip.read(0, 1)), (Effect::None, 0x90));
    chip.write(0, 1, 0x20);
    assert_eq!((chip.write(0, 1, 0xd0), chip.read(0, 1)), (Effect::None, 0xb0));
}

#[test]
fn random_writes_stay_in_the_chip() {
    let (mut chip, mut seed) = (chip(), 1u64);
    for _ in 0..200_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let commands = [0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xd0, 0xe8, 0xff, seed >> 56];
        let (size, value) = (1 << (seed >> 20 & 1), commands[(seed >> 40) as usize % commands.len()]);
        let offset = (seed >> 24) % (LEN - 1);
        match chip.write(offset, size, value) {
            Effect::None => {}
            Effect::Erase(at) => assert!(at.is_multiple_of(SECTOR) && at < LEN),
            Effect::Program(values) => {
                assert!(
                    values.len() <= 2048 && values.iter().all(|(at, bytes)| at + bytes.len() as u64 <= LEN)
                );
            }
        }
        chip.read(offset, size);
    }
}

#[test]
fn memory_and_drive_follow() {
    let rig = crate::testbed::Testbed::new();
    let (drive, file) = rig.drive("chip", &[0x5a; 2 * SECTOR as usize]);
    let flash = Flash::new("system.flash0", "/machine/system.flash0", drive).unwrap();
    let space = AddressSpace::new(SpaceKind::Memory);
    flash.map(&space, 0xffff_0000);
    assert_eq!(space.load(0xffff_0004, 4), 0x5a5a_5a5a);
    space.store(0xffff_1000, 1, 0x20);
    space.store(0xffff_1000, 1, 0xd0);
    assert_eq!(space.load(0xffff_0004, 1), 0x80);
    space.store(0xffff_1010, 1, 0x40);
    space.store(0xffff_1010, 1, 0x17);
    space.store(0xffff_0000, 1, 0xff);
    assert_eq!((space.load(0xffff_1010, 2), space.load(0xffff_0fff, 2)), (0xff17, 0xff5a));
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!((&bytes[0xffe..0x1002], bytes[0x1010]), (&[0x5a, 0x5a, 0xff, 0xff][..], 0x17));
    // A reset in the midst of a command.
    space.store(0xffff_0000, 1, 0x90);
    flash.reset(ResetKind::Cold);
    assert_eq!(space.load(0xffff_0000, 1), 0x5a);
}
