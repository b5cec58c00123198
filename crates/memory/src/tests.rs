use super::*;
use std::sync::{Arc, Mutex};

struct Probe(Mutex<Vec<(u64, u8, Option<u64>)>>, u8);

impl Handler for Probe {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.lock().unwrap().push((offset, size, None));
        0x1122_3344_5566_7788 >> (offset * 8)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.lock().unwrap().push((offset, size, Some(value)));
    }
    fn max_access(&self) -> u8 {
        self.1
    }
}

#[test]
fn higher_priority_hides_and_uncovers() {
    let space = AddressSpace::new(SpaceKind::Memory);
    let ram = RamBlock::new("ram", 0x10000).unwrap();
    let probe = Arc::new(Probe(Mutex::default(), 8));
    let id = space.edit(|edit| {
        edit.ram(ram, 0);
        edit.io("probe", 0x2000, 0x10, probe.clone())
    });
    space.write(0x1ffe, &[1, 2, 3, 4]);
    let mut bytes = [0; 2];
    ram.read(0x1ffe, &mut bytes);
    assert_eq!(bytes, [1, 2]);
    assert_eq!(*probe.0.lock().unwrap(), [(0, 2, Some(0x0403))]);
    assert!(space.view().ram_page(0x2000).is_none());
    assert_eq!(space.view().ram_page(0x3010), Some((ram, 0x3000)));
    space.edit(|edit| edit.set_enabled(id, false));
    assert_eq!(space.view().ram_page(0x2000), Some((ram, 0x2000)));
    assert_eq!(space.view().ranges().len(), 1);
}

#[test]
fn accesses_are_split_to_what_the_device_takes() {
    let space = AddressSpace::new(SpaceKind::Port);
    let probe = Arc::new(Probe(Mutex::default(), 1));
    space.edit(|edit| edit.io("probe", 0x60, 4, probe.clone()));
    assert_eq!(space.load(0x60, 4), 0x5566_7788);
    assert_eq!(probe.0.lock().unwrap().len(), 4);
    assert_eq!(space.load(0x62, 4), 0xffff_5566);
    assert_eq!(space.load(0x70, 2), 0xffff);
}

#[test]
fn watches_hear_of_writes_once_and_code_counts_each() {
    let ram = RamBlock::new("ram", 0x4000).unwrap();
    ram.set_watch(0x1000, Watch::MIGRATION | Watch::CODE);
    ram.write(0x0fff, &[1, 2]);
    ram.write(0x1000, &[1]);
    assert_eq!(ram.code_version(0x1234), 4);
    assert_eq!(ram.take_dirty(Watch::MIGRATION, 0), 0b10);
    assert_eq!(ram.take_dirty(Watch::MIGRATION, 0), 0);
    assert_eq!(ram.watch(0x1000), Watch::CODE);
}

#[test]
fn locked_operations_work_at_any_alignment() {
    let ram = RamBlock::new("ram", 0x1000).unwrap();
    let page = ram.page(0);
    page.store::<u64>(61, 7);
    assert_eq!(page.compare_exchange::<u64>(61, 7, 9), (7, true));
    assert_eq!(page.compare_exchange::<u64>(61, 7, 1), (9, false));
    page.store::<u16>(63, 0x55aa);
    assert_eq!(page.compare_exchange::<u16>(63, 0x55aa, 3), (0x55aa, true));
    page.store::<u64>(64, 1);
    page.store::<u64>(72, 2);
    assert_eq!(page.compare_exchange_16(64, (1, 2), (3, 4)), ((1, 2), true));
    assert_eq!((page.load::<u64>(64), page.load::<u64>(72)), (3, 4));
}
