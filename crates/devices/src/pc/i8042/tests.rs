use super::*;
use crate::testbed::Testbed;

struct Bench {
    bed: Testbed,
    device: Arc<I8042>,
}

fn bench() -> Bench {
    let bed = Testbed::new();
    let line = |irq: usize| bed.services.irqs[irq].clone();
    let device = I8042::new(line(1), line(12), bed.services.power.clone());
    device.map(&bed.services.ports);
    Bench { bed, device }
}

impl Bench {
    fn command(&self, value: u64) {
        self.bed.services.ports.store(0x64, 1, value);
    }
    fn data(&self, value: u64) {
        self.bed.services.ports.store(0x60, 1, value);
    }
    fn status(&self) -> u64 {
        self.bed.services.ports.load(0x64, 1)
    }
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & 1 != 0 {
            bytes.push(self.bed.services.ports.load(0x60, 1) as u8);
        }
        bytes
    }
    fn irq(&self, irq: usize) -> bool {
        self.bed.levels.lock().unwrap()[irq]
    }
    fn mouse(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.command(0xd4);
            self.data(byte.into());
        }
        self.drain()
    }
}

#[test]
fn self_tests_and_command_byte() {
    let b = bench();
    assert_eq!(b.status(), 0x18);
    b.command(0xaa);
    assert_eq!(b.drain(), [0x55]);
    assert_eq!(b.status() & 4, 4);
    b.command(0xab);
    b.command(0xa9);
    assert_eq!(b.drain(), [0, 0]);
    b.command(0x60);
    b.data(0x47);
    b.command(0x20);
    assert_eq!(b.drain(), [0x47]);
    b.command(0xd0);
    assert_eq!(b.drain(), [0x03]);
    b.command(0xd2);
    b.data(0x99);
    assert_eq!(b.drain(), [0x99]);
    b.command(0xd3);
    b.data(0x98);
    assert_eq!(b.status() & 0x21, 0x21);
    assert_eq!(b.drain(), [0x98]);
}

#[test]
fn keys_in_every_set() {
    let b = bench();
    b.command(0x60);
    b.data(0x45);
    b.device.key(0x1e, true);
    assert!(b.irq(1));
    assert_eq!(b.bed.services.ports.load(0x60, 1), 0x1e);
    assert!(!b.irq(1));
    b.device.key(0x1e, false);
    b.device.key(0xc8, true);
    b.device.key(0xc8, false);
    assert_eq!(b.drain(), [0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
    // Untranslated set 2.
    b.command(0x60);
    b.data(0x05);
    for pressed in [true, false] {
        b.device.key(0x1e, pressed);
        b.device.key(0xc8, pressed);
    }
    assert_eq!(b.drain(), [0x1c, 0xe0, 0x75, 0xf0, 0x1c, 0xe0, 0xf0, 0x75]);
    for (set, codes) in [(1, vec![0x3b, 0xbb]), (3, vec![0x07, 0xf0, 0x07]), (2, vec![0x05, 0xf0, 0x05])] {
        b.data(0xf0);
        b.data(set);
        assert_eq!(b.drain(), [0xfa, 0xfa]);
        b.data(0xf0);
        b.data(0);
        assert_eq!(b.drain(), [0xfa, 0xfa, set as u8]);
        b.device.key(0x3b, true);
        b.device.key(0x3b, false);
        assert_eq!(b.drain(), codes);
    }
    // Every set 1 code survives the way through set 2 and back.
    for code in 1..0x59 {
        if let Some(set2) = keymap::to_set2(code) {
            assert_eq!(to_set1(set2), code);
        }
    }
}

#[test]
fn keyboard_commands() {
    let b = bench();
    b.data(0xff);
    assert_eq!(b.drain(), [0xfa, 0xaa]);
    b.data(0xf2);
    assert_eq!(b.drain(), [0xfa, 0xab, 0x83]);
    b.command(0x60);
    b.data(0x45);
    b.data(0xf2);
    assert_eq!(b.drain(), [0xfa, 0xab, 0x41]);
    b.data(0xed);
    b.data(7);
    assert_eq!(b.drain(), [0xfa, 0xfa]);
    assert_eq!(b.device.leds(), 7);
    b.data(0xee);
    assert_eq!(b.drain(), [0xee]);
    b.data(0xf5);
    b.drain();
    b.device.key(0x1e, true);
    assert!(b.drain().is_empty());
    b.data(0xf4);
    b.drain();
    b.data(0xe0);
    assert_eq!(b.drain(), [0xfe]);
    // The queue is bounded; whole keys are dropped.
    for _ in 0..100 {
        b.device.key(0x1e, true);
    }
    assert!(b.drain().len() <= 17);
    // Disabled interface: keys wait.
    b.command(0xad);
    b.device.key(0x1e, true);
    assert!(b.drain().is_empty());
    b.command(0xae);
    assert_eq!(b.drain(), [0x1e]);
}

#[test]
fn mouse_protocols() {
    let b = bench();
    assert_eq!(b.mouse(&[0xff]), [0xfa, 0xaa, 0]);
    assert_eq!(b.mouse(&[0xf2]), [0xfa, 0]);
    b.device.motion(5, 5, 0);
    assert!(b.drain().is_empty(), "no report before it is enabled");
    assert_eq!(b.mouse(&[0xf4]), [0xfa]);
    b.device.motion(5, 3, 0);
    assert!(b.irq(12));
    assert_eq!(b.status() & 0x21, 0x21);
    assert_eq!(b.drain(), [0x28, 5, 0xfd]);
    assert!(!b.irq(12));
    assert_eq!(b.mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2]).last(), Some(&3));
    b.device.button(MouseButton::Left, true);
    assert_eq!(b.drain(), [9, 0, 0, 0]);
    b.device.motion(0, 0, -1);
    assert_eq!(b.drain(), [9, 0, 0, 0xff]);
    assert_eq!(b.mouse(&[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2]).last(), Some(&4));
    b.device.button(MouseButton::Side, true);
    assert_eq!(b.drain(), [9, 0, 0, 0x10]);
    assert_eq!(b.mouse(&[0xe9]), [0xfa, 0x24, 2, 80]);
    // Much motion between two looks adds up.
    for _ in 0..1000 {
        b.device.motion(1, 0, 0);
    }
    let bytes = b.drain();
    let sum: i32 = bytes.chunks(4).map(|packet| i32::from(packet[1])).sum();
    assert_eq!(sum, 1000);
}

#[test]
fn a20_and_reset() {
    let b = bench();
    let asked = || std::mem::take(&mut *b.bed.recorder.asked.lock().unwrap());
    b.command(0xdd);
    b.command(0xdf);
    assert_eq!(asked(), ["a20 off", "a20 on"]);
    b.command(0xd1);
    b.data(0xdd);
    assert_eq!(asked(), ["a20 off"]);
    b.command(0xfe);
    assert_eq!(asked(), ["reset"]);
    b.command(0xff);
    assert!(asked().is_empty());
    b.device.reset(ResetKind::Warm);
    assert_eq!(b.status(), 0x18);
}
