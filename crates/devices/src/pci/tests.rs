use super::*;
use crate::testbed::{Random, Testbed};
use memory::Target;

fn pc() -> (Testbed, Arc<Host>, Vec<Arc<dyn Device>>) {
    let bed = Testbed::new();
    let rom = memory::RamBlock::new("bios", 0x20000).unwrap();
    rom.write(0, &[0x55; 0x20000]);
    let host = Host::i440fx(&bed.services);
    let devices = vec![
        bed.make(&i440fx::MODEL, host.bus().clone(), &[("addr", "0")]),
        bed.make(&piix3::MODEL, host.bus().clone(), &[("addr", "1.0"), ("multifunction", "on")]),
        bed.make(&piix4_pm::MODEL, host.bus().clone(), &[("addr", "1.3")]),
    ];
    bed.services
        .memory
        .edit(|edit| edit.map("bios", 0xe0000, 0x20000, 1, Target::Rom { block: rom, offset: 0 }));
    (bed, host, devices)
}

fn q35() -> (Testbed, Arc<Host>, Vec<Arc<dyn Device>>) {
    let bed = Testbed::new();
    let host = Host::q35(&bed.services);
    let devices = vec![
        bed.make(&q35::MODEL, host.bus().clone(), &[("addr", "0")]),
        bed.make(&ich9::MODEL, host.bus().clone(), &[("addr", "1f.0"), ("multifunction", "on")]),
        bed.make(&ich9::SMBUS_MODEL, host.bus().clone(), &[("addr", "1f.3")]),
    ];
    (bed, host, devices)
}

fn config(at: u64, register: u64) -> u64 {
    1 << 31 | at << 8 | register & 0xfc
}

#[test]
fn mechanism_one_reaches_functions_and_absent_ones_read_ones() {
    let (bed, ..) = pc();
    bed.port_out(0xcf8, 4, config(8, 0));
    assert_eq!(bed.port_in(0xcf8, 4), config(8, 0));
    assert_eq!(bed.port_in(0xcfc, 4), 0x7000_8086);
    assert_eq!(bed.port_in(0xcfe, 2), 0x7000);
    bed.port_out(0xcf8, 4, config(8, 0x0c));
    assert_eq!(bed.port_in(0xcfe, 1), 0x80, "multifunction");
    bed.port_out(0xcf8, 4, config(9, 0));
    assert_eq!(bed.port_in(0xcfc, 4), 0xffff_ffff);
    bed.port_out(0xcf8, 4, config(11, 0));
    assert_eq!(bed.port_in(0xcfc, 4), 0x7113_8086);
    bed.port_out(0xcf8, 4, config(1 << 8, 0));
    assert_eq!(bed.port_in(0xcfc, 4), 0xffff_ffff, "no bus 1");
}

#[test]
fn reset_control_asks_for_reset() {
    let (bed, ..) = pc();
    bed.port_out(0xcf9, 1, 2);
    assert_eq!(bed.port_in(0xcf9, 1), 2);
    bed.port_out(0xcf9, 1, 6);
    assert_eq!(*bed.recorder.asked.lock().unwrap(), ["reset"]);
}

#[test]
fn pam_switches_rom_and_ram() {
    let (bed, host, devices) = pc();
    let memory = &bed.services.memory;
    assert_eq!(memory.load(0xf0000, 1), 0x55);
    assert_eq!(memory.load(0xc8000, 1), 0xff, "open bus");
    bed.ram.write(0xf0000, &[7]);
    host.bus().config_write(0, 0x59, 1, 0x30);
    assert_eq!(memory.load(0xf0000, 1), 7);
    memory.store(0xf0001, 1, 8);
    host.bus().config_write(0, 0x59, 1, 0x10);
    memory.store(0xf0001, 1, 9);
    assert_eq!(memory.load(0xf0001, 1), 8, "read only");
    assert_eq!(memory.load(0xe0000, 1), 0x55);
    host.bus().config_write(0, 0x5c, 4, 0x3300_0030);
    memory.store(0xec000, 2, 0xaa55);
    assert_eq!(memory.load(0xec000, 2), 0xaa55);
    assert_eq!(memory.load(0xd0000, 1), 0xff);
    assert_eq!(memory.load(0xd4000, 1), 0);
    devices[0].reset(device::ResetKind::Warm);
    assert_eq!(memory.load(0xf0000, 1), 0x55);
    assert_eq!(memory.load(0xa0000, 1), 0xff);
    host.bus().config_write(0, 0x72, 1, 0x4a);
    assert_eq!(memory.load(0xa0000, 1), 0);
    host.bus().config_write(0, 0x72, 1, 0x1a);
    host.bus().config_write(0, 0x72, 1, 0x4a);
    assert_eq!((memory.load(0xa0000, 1), host.bus().config_read(0, 0x72, 1)), (0xff, 0x1a));
}

#[test]
fn pirqs_follow_their_routes() {
    let (bed, host, _devices) = pc();
    let bus = host.bus();
    bus.config_write(8, 0x60, 4, 0x0b0b_0a0a);
    bus.set_intx(device::pci::devfn(3, 0), 0, true); // PIRQC
    assert!(bed.level(11) && !bed.level(10));
    bus.set_intx(device::pci::devfn(4, 0), 0, true); // PIRQD
    bus.set_intx(device::pci::devfn(3, 0), 0, false);
    assert!(bed.level(11), "shared with PIRQD");
    bus.config_write(8, 0x63, 1, 0x80);
    assert!(!bed.level(11));
    bus.config_write(8, 0x63, 1, 5);
    assert!(bed.level(5));
}

#[test]
fn acpi_on_pc_enable_button_sleep_timer() {
    let (bed, host, devices) = pc();
    let bus = host.bus();
    assert_eq!(bus.config_read(11, 0x5b, 1), 2, "SMM is not to be set up");
    bus.config_write(11, 0x40, 4, 0x601);
    assert_eq!(bed.port_in(0x604, 2), 0xffff);
    bus.config_write(11, 0x80, 1, 1);
    let acpi = acpi_pm(&*devices[2]).unwrap();
    bed.port_out(0xb2, 1, 0xf1);
    assert_eq!(bed.port_in(0x604, 2), 1);
    acpi.power_button();
    assert!(!bed.level(9), "not listening");
    bed.port_out(0x602, 2, 1 << 8);
    acpi.power_button();
    assert!(bed.level(9));
    bed.port_out(0x600, 2, 1 << 8);
    assert!(!bed.level(9));
    let clock = &bed.services.clocks.virtual_;
    clock.advance(1_000_000_000);
    assert_eq!(bed.port_in(0x608, 4), 3_579_545);
    bed.port_out(0x602, 2, 1);
    assert!(!bed.level(9));
    clock.advance(2_343_500_000);
    assert!(bed.level(9), "the top bit toggled");
    bed.port_out(0x600, 2, 1);
    assert!(!bed.level(9));
    clock.advance(4_690_000_000);
    assert!(bed.level(9));
    bed.port_out(0xafe2, 2, 2);
    acpi.raise_gpe(1);
    assert_eq!(bed.port_in(0xafe0, 4), 0x0002_0002);
    bed.port_out(0x604, 2, 1 | 1 << 10 | 1 << 13);
    bed.port_out(0x604, 2, 1 | 1 << 13);
    assert_eq!(*bed.recorder.asked.lock().unwrap(), ["suspend", "shutdown"]);
    devices[2].reset(device::ResetKind::Warm);
    assert_eq!(bed.port_in(0x604, 2), 0xffff);
    assert!(!bed.level(9));
}

#[test]
fn q35_ecam_acpi_and_routing() {
    let (bed, host, devices) = q35();
    let (bus, memory) = (host.bus(), &bed.services.memory);
    assert_eq!(memory.load(0xb000_0000, 4), 0);
    bus.config_write(0, 0x60, 4, 0xb000_0001);
    assert_eq!(memory.load(0xb000_0000, 4), 0x29c0_8086);
    assert_eq!(memory.load(0xb000_0000 + (0x1f << 15), 4), 0x2918_8086);
    assert_eq!(memory.load(0xb000_0000 + (0x1f << 15) + 0xffc, 4), 0);
    assert_eq!(memory.load(0xb010_0000, 4), 0xffff_ffff);
    let lpc = 0x1f << 3;
    bus.config_write(lpc, 0x40, 4, 0x601);
    bus.config_write(lpc, 0x44, 1, 0x80);
    assert_eq!(bed.port_in(0x630, 4), 0x20, "SMM is not to be set up");
    bed.port_out(0xb2, 1, 2);
    assert_eq!(bed.port_in(0x604, 2), 1);
    bed.port_out(0x628, 1, 2);
    acpi_pm(&*devices[1]).unwrap().raise_gpe(1);
    assert!(bed.level(9));
    bed.port_out(0x620, 1, 2);
    assert!(!bed.level(9));
    bus.config_write(lpc, 0x68, 4, 0x0b0b_0a0a);
    bus.set_intx(device::pci::devfn(2, 0), 0, true); // PIRQG
    assert!(bed.level(22) && bed.level(11));
    bus.set_intx(device::pci::devfn(0x1f, 2), 1, true); // PIRQB
    assert!(bed.level(17) && !bed.level(10));
    bus.config_write(lpc, 0xf0, 4, 0xfed1_c001);
    assert_eq!(memory.load(0xfed1_c000 + 0x3140, 2), 0x3210);
    let smb = lpc | 3;
    bus.config_write(smb, 0x20, 4, 0x700);
    bus.config_write(smb, 4, 2, 1);
    bus.config_write(smb, 0x40, 1, 1);
    bed.port_out(0x702, 1, 0x41);
    assert_eq!(bed.port_in(0x700, 1), 4);
}

#[test]
fn any_access_to_the_chipset_is_harmless() {
    for (bed, host, devices) in [pc(), q35()] {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let slots: Vec<u8> = host.bus().functions().iter().map(|&(at, _)| at).collect();
        for round in 0..6000 {
            let size = [1, 2, 4][random.below(3) as usize];
            let value = random.next();
            let at = slots[random.below(slots.len() as u64) as usize];
            let register = random.below(0x100 / u64::from(size)) as u16 * u16::from(size);
            host.bus().config_write(at, register, size, value as u32);
            host.bus().config_read(at, register, size);
            for base in [0xcf8, 0xb2, 0x600, 0xafe0, 0x620, 0x700] {
                let port = base + random.below(0x40);
                bed.port_out(port, size, random.next());
                bed.port_in(port, size);
            }
            host.bus().set_intx(value as u8, (value >> 8) as u8 & 3, value & 1 << 20 != 0);
            bed.services.memory.store(0xfed1_c000 + random.below(0x4000), size, random.next());
            if round % 500 == 0 {
                devices.iter().for_each(|device| device.reset(device::ResetKind::Warm));
            }
        }
    }
}

#[test]
fn bridges_forward_configuration_and_pins() {
    let (bed, host, _devices) = q35();
    let bus = host.bus();
    let port = bed.make(&bridge::ROOT_PORT, bus.clone(), &[("addr", "2"), ("chassis", "1")]);
    let below = port.pci().unwrap().secondary_bus().unwrap();
    let text = bed.try_make(&bridge::PCI_BRIDGE, below.clone(), &[("addr", "1"), ("chassis_nr", "2")]);
    assert_eq!(
        text.err().unwrap().text,
        "PCI: slot 1 is not valid for pci-bridge, parent device only allows plugging into slot 0."
    );
    let second = bed.make(&bridge::PCI_BRIDGE, below.clone(), &[("chassis_nr", "2")]);
    let last = second.pci().unwrap().secondary_bus().unwrap();
    let devfn = 2 << 3;
    assert_eq!(bus.config_read(devfn, 0x0e, 1), 1);
    bus.config_write(devfn, 0x18, 4, 0x0002_0100);
    below.config_write(0, 0x18, 4, 0x0002_0201);
    bus.config_write(0, 0x60, 4, 0xb000_0001);
    let memory = &bed.services.memory;
    assert_eq!(memory.load(0xb010_0000, 4), 0x0001_1b36, "bus 1");
    assert_eq!(memory.load(0xb020_0000, 4), 0xffff_ffff, "bus 2 is empty");
    assert_eq!(memory.load(0xb030_0000, 4), 0xffff_ffff);
    // Slot 3 pin A on bus 2 -> pin D of the bridge -> pin D of the port in slot 2 -> PIRQF.
    last.set_intx(3 << 3, 0, true);
    assert!(bed.level(16 + (2 + 3) % 4 + 4));
    last.set_intx(3 << 3, 0, false);
    assert!(!bed.level(16 + (2 + 3) % 4 + 4));
}
