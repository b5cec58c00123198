use base::Mutex;
use device::IrqLine;
use std::sync::Arc;

/// PCI interrupt router: PIRQ lines to ISA interrupts by routing registers, wires that share
/// an interrupt ORed (PIIX3 §2.2.8, ICH9 §13.1.8).
pub struct Router<const N: usize> {
    irqs: Arc<[IrqLine]>,
    /// I/O APIC pin of the first PIRQ, if they have pins of their own.
    direct: Option<usize>,
    state: Mutex<State<N>>,
}

struct State<const N: usize> {
    /// Number of wires that are high, for each PIRQ.
    high: [u32; N],
    /// Bit 7 set: not routed; else the interrupt in bits 3:0.
    routes: [u8; N],
    /// Last level of each ISA interrupt.
    levels: u16,
}

impl<const N: usize> Router<N> {
    pub fn new(irqs: Arc<[IrqLine]>, direct: Option<usize>) -> Self {
        let state = State { high: [0; N], routes: [0x80; N], levels: 0 };
        Router { irqs, direct, state: Mutex::new(state) }
    }

    /// A wire that leads to a PIRQ changed its level.
    pub fn set_wire(&self, pirq: usize, level: bool) {
        // Held while lines are driven: two threads must not deliver in the wrong order.
        let mut state = self.state.lock();
        let count = &mut state.high[pirq];
        let before = *count > 0;
        *count = if level { *count + 1 } else { count.saturating_sub(1) };
        let after = *count > 0;
        if before == after {
            return;
        }
        if let Some(line) = self.direct.and_then(|first| self.irqs.get(first + pirq)) {
            line.set(after);
        }
        self.drive(&mut state);
    }

    pub fn set_routes(&self, routes: [u8; N]) {
        let mut state = self.state.lock();
        state.routes = routes;
        self.drive(&mut state);
    }

    fn drive(&self, state: &mut State<N>) {
        let routed =
            state.high.iter().zip(state.routes).filter(|&(&high, route)| high > 0 && route & 0x80 == 0);
        let levels = routed.fold(0u16, |levels, (_, route)| levels | 1 << (route & 15));
        let changed = levels ^ state.levels;
        state.levels = levels;
        for irq in (0..16).filter(|irq| changed & 1 << irq != 0) {
            if let Some(line) = self.irqs.get(irq) {
                line.set(levels & 1 << irq != 0);
            }
        }
    }
}
