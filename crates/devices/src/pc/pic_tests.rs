use super::*;
use memory::SpaceKind;

fn pair() -> (Arc<Pic>, Arc<AddressSpace>) {
    let pic = Pic::new();
    let ports = AddressSpace::new(SpaceKind::Port);
    pic.map(&ports);
    for (port, base, icw3) in [(0x20u64, 0x30u64, 4u64), (0xa0, 0x38, 2)] {
        ports.store(port, 1, 0x11);
        ports.store(port + 1, 1, base);
        ports.store(port + 1, 1, icw3);
        ports.store(port + 1, 1, 1);
        ports.store(port + 1, 1, 0);
    }
    (pic, ports)
}

#[test]
fn priorities_nesting_and_eoi() {
    let (pic, ports) = pair();
    pic.set_irq(4, true);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.intr());
    // Lower priority waits, higher interrupts.
    pic.set_irq(5, true);
    assert!(!pic.intr());
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    ports.store(0x20, 1, 0x0b);
    assert_eq!(ports.load(0x20, 1), 0b1_0010);
    ports.store(0x20, 1, 0x20);
    assert_eq!(ports.load(0x20, 1), 0b1_0000);
    assert!(!pic.intr());
    ports.store(0x20, 1, 0x20);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x35);
    // An edge counts once.
    ports.store(0x20, 1, 0x20);
    assert!(!pic.intr());
}

#[test]
fn cascade_and_special_fully_nested() {
    let (pic, ports) = pair();
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_irq(8, true);
    assert!(!pic.intr(), "the master's input 2 is in service");
    ports.store(0xa0, 1, 0x20);
    ports.store(0x20, 1, 0x20);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x38);

    let (pic, ports) = pair();
    for value in [0x11, 0x30, 4, 0x11, 0] {
        ports.store(if value == 0x11 && ports.load(0x21, 1) == 0 { 0x20 } else { 0x21 }, 1, value);
    }
    // Written through the port sequence above: ICW4 with SFNM.
    ports.store(0x20, 1, 0x11);
    for value in [0x30, 4, 0x11, 0] {
        ports.store(0x21, 1, value);
    }
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_irq(8, true);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn spurious_vectors() {
    let (pic, ports) = pair();
    ports.store(0x4d0, 1, 0x20);
    pic.set_irq(5, true);
    assert!(pic.intr());
    pic.set_irq(5, false);
    assert!(!pic.intr());
    assert_eq!(pic.acknowledge(), 0x37);
    ports.store(0x20, 1, 0x0b);
    assert_eq!(ports.load(0x20, 1), 0, "a spurious interrupt is not in service");
}

#[test]
fn level_triggered_inputs_repeat() {
    let (pic, ports) = pair();
    ports.store(0x4d1, 1, 0xff);
    assert_eq!(ports.load(0x4d1, 1), 0xde);
    pic.set_irq(11, true);
    assert_eq!(pic.acknowledge(), 0x3b);
    ports.store(0xa0, 1, 0x20);
    ports.store(0x20, 1, 0x20);
    assert!(pic.intr());
    pic.set_irq(11, false);
    assert!(!pic.intr());
}

#[test]
fn rotation_and_poll() {
    let (pic, ports) = pair();
    ports.store(0x20, 1, 0xc3); // lowest priority: 3
    pic.set_irq(3, true);
    pic.set_irq(6, true);
    assert_eq!(pic.acknowledge(), 0x36);
    ports.store(0x20, 1, 0xa0); // rotate on non-specific EOI: 6 becomes lowest
    ports.store(0x20, 1, 0x0c);
    assert_eq!(ports.load(0x20, 1), 0x83);
    assert!(!pic.intr());
    ports.store(0x20, 1, 0x63); // specific EOI
    ports.store(0x20, 1, 0x0c);
    assert_eq!(ports.load(0x20, 1), 0);
}

#[test]
fn masks_and_special_mask_mode() {
    let (pic, ports) = pair();
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.set_irq(4, true);
    assert!(!pic.intr());
    ports.store(0x21, 1, 2);
    ports.store(0x20, 1, 0x68);
    assert!(pic.intr(), "special mask mode lets lower priorities through a masked input");
    ports.store(0x21, 1, 0x12);
    assert!(!pic.intr());
}

#[test]
fn output_follows_and_reset_is_idempotent() {
    let (pic, _) = pair();
    let level = Arc::new(AtomicBool::new(false));
    let seen = level.clone();
    pic.connect(IrqLine::new(move |high| seen.store(high, Ordering::SeqCst)));
    pic.set_irq(0, true);
    assert!(level.load(Ordering::SeqCst));
    pic.reset(ResetKind::Cold);
    assert!(!level.load(Ordering::SeqCst));
    let once = pic.info("pic");
    pic.reset(ResetKind::Cold);
    assert_eq!(once, pic.info("pic"));
    assert!(pic.info("irq").unwrap().contains(" 0: 1"));
}
