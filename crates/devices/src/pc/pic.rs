//! Two 8259A interrupt controllers, the second on input 2 of the first (Intel 8259A data
//! sheet), with the edge/level control registers of EISA chipsets (ports 0x4d0, 0x4d1).

use super::ioapic::InputWatch;
use super::range::{board_model, byte_range};
use base::Mutex;
use base::rank::ranks;
use device::{BusKind, Device, IrqLine, Model, ResetKind};
use memory::AddressSpace;
use std::any::Any;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub static MODEL: Model = board_model("isa-i8259", "8259A interrupt controllers", BusKind::Isa, "isa-device");

/// Inputs of each chip whose trigger mode can be switched (not timer, keyboard, cascade, RTC, FPU).
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];
const CASCADE: u8 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Init {
    #[default]
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Debug, Default)]
struct Chip {
    irr: u8,
    imr: u8,
    isr: u8,
    /// Input levels.
    lines: u8,
    /// Inputs that are level triggered.
    elcr: u8,
    base: u8,
    /// The input of highest priority.
    highest: u8,
    init: Init,
    single: bool,
    needs_icw4: bool,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    fully_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    is_master: bool,
}

impl Chip {
    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let level_triggered = self.elcr & bit != 0;
        if level {
            if level_triggered || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            if level_triggered {
                self.irr &= !bit;
            }
            self.lines &= !bit;
        }
    }

    /// The set input of highest priority as its distance from the highest one.
    fn rank(&self, set: u8) -> Option<u8> {
        (set != 0).then(|| set.rotate_right(u32::from(self.highest)).trailing_zeros() as u8)
    }

    fn input(&self, rank: u8) -> u8 {
        (rank + self.highest) & 7
    }

    /// The input to be served now.
    fn pending(&self) -> Option<u8> {
        let rank = self.rank(self.irr & !self.imr)?;
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        if self.fully_nested && self.is_master {
            serving &= !(1 << CASCADE);
        }
        match self.rank(serving) {
            Some(current) if current <= rank => None,
            _ => Some(self.input(rank)),
        }
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.highest = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            let keep = Chip {
                elcr: self.elcr,
                irr: self.irr & self.elcr,
                lines: self.lines & self.elcr,
                is_master: self.is_master,
                ..Chip::default()
            };
            *self = Chip { init: Init::Icw2, single: value & 2 != 0, needs_icw4: value & 1 != 0, ..keep };
        } else if value & 8 != 0 {
            if value & 4 != 0 {
                self.poll = true;
            }
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value >> 5, value & 7);
        }
    }

    /// OCW2: `command` is its bits 7:5.
    fn end_of_interrupt(&mut self, command: u8, level: u8) {
        match command {
            0 | 4 => self.rotate_on_auto_eoi = command == 4,
            1 | 5 => {
                let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(rank) = self.rank(serving) {
                    let input = self.input(rank);
                    self.isr &= !(1 << input);
                    if command == 5 {
                        self.highest = (input + 1) & 7;
                    }
                }
            }
            3 => self.isr &= !(1 << level),
            6 => self.highest = (level + 1) & 7,
            7 => {
                self.isr &= !(1 << level);
                self.highest = (level + 1) & 7;
            }
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.needs_icw4 { Init::Icw4 } else { Init::Ready };
        match self.init {
            Init::Ready => self.imr = value,
            Init::Icw2 => {
                self.base = value & 0xf8;
                self.init = if self.single { after_icw3 } else { Init::Icw3 };
            }
            Init::Icw3 => self.init = after_icw3,
            Init::Icw4 => {
                self.fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = Init::Ready;
            }
        }
    }

    fn read(&mut self, data: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    input | 0x80
                }
                None => 0,
            };
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

#[derive(Debug)]
struct State {
    chips: [Chip; 2],
}

impl State {
    fn cascade(&mut self) {
        // The slave holds its output until it is served, so the request follows the level.
        let bit = 1 << CASCADE;
        let requested = self.chips[1].pending().is_some();
        self.chips[0].irr = self.chips[0].irr & !bit | if requested { bit } else { 0 };
    }
}

/// The pair. Its INTR output goes to LINT0 of the local APICs (see [`Pic::connect`]).
pub struct Pic {
    state: Mutex<State>,
    intr: AtomicBool,
    output: OnceLock<IrqLine>,
    /// Level last given to the output; held while the output is called, so that levels
    /// arrive in order.
    sent: Mutex<bool>,
    watch: OnceLock<InputWatch>,
    counts: [AtomicU64; 16],
}

impl Pic {
    pub fn new() -> Arc<Self> {
        let chips = [Chip { is_master: true, ..Chip::default() }, Chip::default()];
        Arc::new(Pic {
            state: Mutex::ranked(ranks::INTERRUPT, State { chips }),
            intr: AtomicBool::new(false),
            output: OnceLock::new(),
            sent: Mutex::new(false),
            watch: OnceLock::new(),
            counts: Default::default(),
        })
    }

    /// Where INTR goes (once; later calls are ignored). The line must not call back into
    /// this device except [`Pic::intr`].
    pub fn connect(&self, output: IrqLine) {
        let _ = self.output.set(output);
    }

    /// Ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let master = byte_range(self, |d, at, _| d.read(0, at), |d, at, _, v| d.write(0, at, v as u8));
        let slave = byte_range(self, |d, at, _| d.read(1, at), |d, at, _, v| d.write(1, at, v as u8));
        let elcr = byte_range(self, |d, at, _| d.read_elcr(at), |d, at, _, v| d.write_elcr(at, v as u8));
        ports.edit(|edit| {
            edit.io("pic", 0x20, 2, master);
            edit.io("pic", 0xa0, 2, slave);
            edit.io("elcr", 0x4d0, 2, elcr);
        });
    }

    /// Sets the level of input `irq` (0-15).
    pub fn set_irq(&self, irq: u8, level: bool) {
        if irq > 15 || irq == CASCADE {
            return;
        }
        let mut state = self.state.lock();
        let chip = &mut state.chips[usize::from(irq >> 3)];
        let was = chip.lines & (1 << (irq & 7)) != 0;
        if level && !was {
            self.counts[usize::from(irq)].fetch_add(1, Ordering::Relaxed);
        }
        chip.set_line(irq & 7, level);
        self.settle(state);
        if level != was
            && let Some(watch) = self.watch.get()
        {
            watch(irq.into(), level);
        }
    }

    /// Watches the inputs (the qtest protocol); `false` if somebody does already.
    pub fn watch(&self, watch: InputWatch) -> bool {
        self.watch.set(watch).is_ok()
    }

    /// Input `irq` as a line.
    pub fn line(self: &Arc<Self>, irq: u8) -> IrqLine {
        let pic = self.clone();
        IrqLine::new(move |level| pic.set_irq(irq, level))
    }

    /// Level of the INTR output.
    #[inline]
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }

    /// The interrupt acknowledge cycle: the vector to be served, or the spurious vector
    /// (base + 7) when the request is gone.
    pub fn acknowledge(&self) -> u8 {
        let mut state = self.state.lock();
        let [master, slave] = &mut state.chips;
        let vector = match master.pending() {
            Some(CASCADE) => {
                master.acknowledge(CASCADE);
                let input = slave.pending();
                if let Some(input) = input {
                    slave.acknowledge(input);
                }
                slave.base + input.unwrap_or(7)
            }
            Some(input) => {
                master.acknowledge(input);
                master.base + input
            }
            None => master.base + 7,
        };
        self.settle(state);
        vector
    }

    /// Whether an interrupt of input `irq` waits to be taken and is not masked.
    pub fn is_pending(&self, irq: u8) -> bool {
        let state = self.state.lock();
        let chip = &state.chips[usize::from(irq >> 3 & 1)];
        let bit = 1 << (irq & 7);
        chip.irr & bit != 0 && chip.imr & bit == 0 && !(irq > 7 && state.chips[0].imr & 1 << CASCADE != 0)
    }

    /// How many rising edges each input has seen.
    pub fn counts(&self) -> [u64; 16] {
        std::array::from_fn(|irq| self.counts[irq].load(Ordering::Relaxed))
    }

    fn settle(&self, mut state: base::MutexGuard<'_, State>) {
        state.cascade();
        let before = self.intr();
        let intr = state.chips[0].pending().is_some();
        self.intr.store(intr, Ordering::Release);
        drop(state);
        if before != intr
            && let Some(output) = self.output.get()
        {
            let mut sent = self.sent.lock();
            let now = self.intr();
            if *sent != now {
                *sent = now;
                output.set(now);
            }
        }
    }

    fn read(&self, chip: usize, offset: u64) -> u64 {
        let mut state = self.state.lock();
        let value = state.chips[chip].read(offset & 1 != 0);
        self.settle(state);
        value.into()
    }

    fn write(&self, chip: usize, offset: u64, value: u8) {
        let mut state = self.state.lock();
        if offset & 1 == 0 {
            state.chips[chip].write_command(value);
        } else {
            state.chips[chip].write_data(value);
        }
        self.settle(state);
    }

    fn read_elcr(&self, offset: u64) -> u64 {
        self.state.lock().chips[(offset & 1) as usize].elcr.into()
    }

    fn write_elcr(&self, offset: u64, value: u8) {
        let at = (offset & 1) as usize;
        let mut state = self.state.lock();
        let chip = &mut state.chips[at];
        chip.elcr = value & ELCR_MASK[at];
        chip.irr = chip.irr & !chip.elcr | chip.lines & chip.elcr;
        self.settle(state);
    }
}

impl Device for Pic {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        for chip in &mut state.chips {
            // The sources still drive their lines; edges are forgotten.
            *chip = Chip { is_master: chip.is_master, lines: chip.lines, ..Chip::default() };
        }
        self.settle(state);
    }

    fn info(&self, item: &str) -> Option<String> {
        let mut text = String::new();
        match item {
            "pic" => {
                let state = self.state.lock();
                for (number, c) in state.chips.iter().enumerate() {
                    let _ = writeln!(
                        text,
                        "pic{number}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} elcr={:02x} fnm={}",
                        c.irr,
                        c.imr,
                        c.isr,
                        c.highest,
                        c.base,
                        u8::from(c.read_isr),
                        c.elcr,
                        u8::from(c.fully_nested)
                    );
                }
            }
            "irq" => {
                text.push_str("IRQ statistics for isa-i8259:\n");
                for (irq, count) in self.counts().into_iter().enumerate().filter(|&(_, count)| count > 0) {
                    let _ = writeln!(text, "{irq:2}: {count}");
                }
            }
            _ => return None,
        }
        Some(text)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
