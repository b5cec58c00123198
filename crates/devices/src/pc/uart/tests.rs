use super::*;
use base::clock::Kind;
use memory::SpaceKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Clone, Default)]
struct Line {
    out: Arc<Mutex<Vec<u8>>>,
    room: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    params: Arc<Mutex<Option<Params>>>,
    in_break: Arc<AtomicBool>,
}

impl Wire for Line {
    fn write(&self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(taken, Ordering::SeqCst);
        self.out.lock().extend(&bytes[..taken]);
        taken
    }
    fn accept_input(&self) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }
    fn set_break(&self, on: bool) {
        self.in_break.store(on, Ordering::SeqCst);
    }
    fn set_params(&self, params: Params) {
        *self.params.lock() = Some(params);
    }
}

struct Bench {
    uart: Arc<Uart>,
    ports: Arc<AddressSpace>,
    clock: Clock,
    line: Line,
    irq: Arc<AtomicBool>,
}

fn bench() -> Bench {
    let clock = Clock::new(Kind::Manual);
    let line = Line::default();
    line.room.store(usize::MAX / 2, Ordering::SeqCst);
    let irq = Arc::new(AtomicBool::new(false));
    let level = irq.clone();
    let irq_line = IrqLine::new(move |high| level.store(high, Ordering::SeqCst));
    let uart = Uart::with_wire(&MODEL, &clock, irq_line, Some(Box::new(line.clone())));
    let ports = AddressSpace::new(SpaceKind::Port);
    uart.map(&ports, 0);
    Bench { uart, ports, clock, line, irq }
}

impl Bench {
    fn w(&self, register: u64, value: u8) {
        self.ports.store(register, 1, value.into());
    }
    fn r(&self, register: u64) -> u8 {
        self.ports.load(register, 1) as u8
    }
    fn irq(&self) -> bool {
        self.irq.load(Ordering::SeqCst)
    }
}

#[test]
fn polled_output_runs_at_once() {
    let b = bench();
    for byte in b"hello" {
        assert_eq!(b.r(5), 0x60);
        b.w(0, *byte);
    }
    assert_eq!(*b.line.out.lock(), b"hello");
    assert_eq!(b.clock.next_deadline(), None);
}

#[test]
fn transmit_interrupts_are_paced() {
    let b = bench();
    b.w(2, 1);
    b.w(1, 2);
    assert!(b.irq(), "enabling it with an empty transmitter interrupts at once");
    assert_eq!(b.r(2), 0xc2);
    assert!(!b.irq(), "reading IIR clears it");
    for byte in 0..16 {
        b.w(0, byte);
    }
    assert_eq!(b.r(2), 0xc1);
    b.clock.advance(TRANSMIT_PACE);
    assert!(b.irq());
    assert_eq!(b.r(2), 0xc2);
    assert_eq!(b.line.out.lock().len(), 16);
    // Disabled and enabled again: reported again, as drivers test.
    b.w(1, 0);
    b.w(1, 2);
    assert_eq!(b.r(2), 0xc2);
}

#[test]
fn nothing_is_lost_while_the_other_side_is_slow() {
    let b = bench();
    b.w(2, 1);
    b.line.room.store(3, Ordering::SeqCst);
    for byte in 0..16 {
        b.w(0, byte);
    }
    assert_eq!(b.r(5) & 0x60, 0);
    assert_eq!(b.line.out.lock().len(), 3);
    b.line.room.store(100, Ordering::SeqCst);
    b.uart.writable();
    assert_eq!(*b.line.out.lock(), (0..16).collect::<Vec<u8>>());
    assert_eq!(b.r(5) & 0x60, 0x60);
}

#[test]
fn receive_trigger_and_timeout() {
    let b = bench();
    b.w(3, 0x83);
    b.w(0, 1); // 115200 baud
    b.w(1, 0);
    b.w(3, 3);
    assert_eq!(b.line.params.lock().unwrap().speed, 115_200);
    b.w(2, 0x81);
    b.w(1, 1);
    b.uart.receive(b"abc", Vec::new());
    assert!(!b.irq());
    let four_chars = 4 * 10 * 1_000_000_000u64 / 115_200;
    b.clock.advance(four_chars - 4);
    assert!(!b.irq());
    b.clock.advance(four_chars);
    assert_eq!(b.r(2), 0xcc);
    assert_eq!(b.r(0), b'a');
    assert!(!b.irq());
    b.uart.receive(b"defghi", Vec::new());
    assert_eq!(b.r(2), 0xc4);
    assert_eq!(b.r(0), b'b');
    assert!(!b.irq());
    assert_eq!((0..7).map(|_| b.r(0)).collect::<Vec<_>>(), b"cdefghi");
    assert_eq!(b.r(5), 0x60);
}

#[test]
fn input_waits_for_room() {
    let b = bench();
    assert_eq!(b.uart.can_receive(), 1);
    b.w(2, 1);
    assert_eq!(b.uart.can_receive(), 16);
    b.uart.receive(&[0x55; 16], Vec::new());
    assert_eq!(b.uart.can_receive(), 0);
    assert_eq!(b.line.resumed.load(Ordering::SeqCst), 0);
    b.r(0);
    assert_eq!(b.line.resumed.load(Ordering::SeqCst), 1);
    b.r(0);
    assert_eq!(b.line.resumed.load(Ordering::SeqCst), 1);
    b.w(2, 3);
    assert_eq!(b.uart.can_receive(), 16);
}

#[test]
fn loopback_modem_lines_break_and_scratch() {
    let b = bench();
    assert_eq!(b.r(6), 0xb0);
    b.w(4, 0x1a);
    assert_eq!(b.r(6), 0x92, "RTS to CTS, OUT2 to DCD, DSR fell");
    b.w(1, 8);
    b.w(4, 0x1f);
    assert_eq!(b.r(2), 0);
    assert_eq!(b.r(6) & 0xf0, 0xf0);
    b.w(0, 0x77);
    assert_eq!(b.r(0), 0x77);
    b.w(0, 1);
    b.w(0, 2);
    assert_eq!(b.r(5) & 3, 3, "overrun");
    b.w(4, 0);
    assert!(b.line.out.lock().is_empty());
    b.w(1, 4);
    b.uart.event(Event::Break);
    assert_eq!(b.r(2), 6);
    assert_eq!(b.r(5) & 0x10, 0x10);
    b.w(3, 0x40);
    assert!(b.line.in_break.load(Ordering::SeqCst));
    b.w(7, 0xa5);
    assert_eq!(b.r(7), 0xa5);
    b.uart.reset(ResetKind::Warm);
    assert_eq!((b.r(1), b.r(5), b.r(7)), (0, 0x60, 0));
}
