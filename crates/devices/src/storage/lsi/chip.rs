//! Registers (technical manual, chapter 4), interrupts and timers.

use super::Lsi;
use super::scripts::Stalled;
use super::side::Side;
use crate::storage::Pending;
use crate::storage::scsi::ScsiBus;
use base::clock::{Clock, Timer};
use device::pci::{PciCore, regs as pci_regs};
use memory::Dma;
use std::sync::{Arc, Weak};

/// Addresses of registers.
pub mod reg {
    pub const SCNTL0: u8 = 0x00;
    pub const SCNTL1: u8 = 0x01;
    pub const SCNTL2: u8 = 0x02;
    pub const SCNTL3: u8 = 0x03;
    pub const SCID: u8 = 0x04;
    pub const SXFER: u8 = 0x05;
    pub const SDID: u8 = 0x06;
    pub const GPREG: u8 = 0x07;
    pub const SFBR: u8 = 0x08;
    pub const SOCL: u8 = 0x09;
    pub const SSID: u8 = 0x0a;
    pub const SBCL: u8 = 0x0b;
    pub const DSTAT: u8 = 0x0c;
    pub const SSTAT0: u8 = 0x0d;
    pub const SSTAT1: u8 = 0x0e;
    pub const SSTAT2: u8 = 0x0f;
    pub const DSA: u8 = 0x10;
    pub const ISTAT0: u8 = 0x14;
    pub const ISTAT1: u8 = 0x15;
    pub const CTEST1: u8 = 0x19;
    pub const CTEST2: u8 = 0x1a;
    pub const CTEST3: u8 = 0x1b;
    pub const TEMP: u8 = 0x1c;
    pub const DFIFO: u8 = 0x20;
    pub const CTEST5: u8 = 0x22;
    pub const DBC: u8 = 0x24;
    pub const DNAD: u8 = 0x28;
    pub const DSP: u8 = 0x2c;
    pub const DSPS: u8 = 0x30;
    pub const SCRATCHA: u8 = 0x34;
    pub const DMODE: u8 = 0x38;
    pub const DIEN: u8 = 0x39;
    pub const DCNTL: u8 = 0x3b;
    pub const SIEN0: u8 = 0x40;
    pub const SIEN1: u8 = 0x41;
    pub const SIST0: u8 = 0x42;
    pub const SIST1: u8 = 0x43;
    pub const GPCNTL: u8 = 0x47;
    pub const STIME1: u8 = 0x49;
    pub const STEST0: u8 = 0x4c;
    pub const STEST3: u8 = 0x4f;
    pub const SIDL: u8 = 0x50;
    pub const STEST4: u8 = 0x52;
    pub const CCNTL0: u8 = 0x56;
    pub const CCNTL1: u8 = 0x57;
    pub const SBDL: u8 = 0x58;
    pub const SCRATCHB: u8 = 0x5c;
    /// The first of the scratch registers C to R.
    pub const SCRATCHC: u8 = 0x60;
    pub const MMRS: u8 = 0xa0;
    pub const MMWS: u8 = 0xa4;
    pub const SFS: u8 = 0xa8;
    pub const DRS: u8 = 0xac;
    pub const SBMS: u8 = 0xb0;
    pub const DBMS: u8 = 0xb4;
    pub const DNAD64: u8 = 0xb8;
    pub const PMJAD1: u8 = 0xc0;
    pub const PMJAD2: u8 = 0xc4;
    pub const RBC: u8 = 0xc8;
    pub const UA: u8 = 0xcc;
    pub const ESA: u8 = 0xd0;
    pub const IA: u8 = 0xd4;
    pub const SBC: u8 = 0xd8;
    pub const CSBC: u8 = 0xdc;
}

pub const SCNTL0_TARGET: u8 = 1;
const SCNTL0_START: u8 = 0x20;
const SCNTL1_CONNECTED: u8 = 0x10;
const SCNTL1_RESET: u8 = 8;
pub const SCNTL2_WSR: u8 = 1;
const SCNTL2_WSS: u8 = 8;
pub const SCID_RESELECT: u8 = 0x40;
const ISTAT_ABORT: u8 = 0x80;
const ISTAT_RESET: u8 = 0x40;
pub const ISTAT_SIGNAL: u8 = 0x20;
pub const ISTAT_FLY: u8 = 4;
const ISTAT1_DISABLE: u8 = 1;
const ISTAT1_RUNNING: u8 = 2;
const CTEST2_CONFIG: u8 = 8;
const DMODE_MANUAL: u8 = 1;
pub const DCNTL_SINGLE: u8 = 0x10;
const DCNTL_START: u8 = 4;
const DCNTL_NO_IRQ: u8 = 2;
pub const DSTAT_BUS_FAULT: u8 = 0x20;
const DSTAT_ABORTED: u8 = 0x10;
pub const DSTAT_SINGLE: u8 = 8;
pub const DSTAT_SCRIPT: u8 = 4;
pub const DSTAT_ILLEGAL: u8 = 1;
const DSTAT_FIFO_EMPTY: u8 = 0x80;
pub const SIST0_MISMATCH: u8 = 0x80;
pub const SIST0_RESELECTED: u8 = 0x10;
const SIST0_RESET: u8 = 2;
pub const SIST1_SELECTION: u8 = 4;
const SIST1_GENERAL: u8 = 2;
/// SCSI interrupts that stop the SCRIPTS even when masked (2.2.16).
const FATAL0: u8 = !0x70;
const FATAL1: u8 = !0x03;
/// A ready low-voltage bus whose clock is locked.
const STEST4_READY: u8 = 0xe0;
/// The shortest time of the general purpose timer (ns).
const GENERAL_STEP: u64 = 125_000;
/// How long a program that runs on and on lets others run (ns).
const BREATH: u64 = 20_000;

pub struct Chip {
    regs: [u8; 256],
    pub carry: bool,
    pub running: bool,
    paused: bool,
    /// The program has a reason to go on.
    pub woken: bool,
    /// The instruction that waits for the bus.
    pub stalled: Option<Stalled>,
    pub side: Side,
    pub core: Arc<PciCore>,
    pub dma: Dma,
    pub bus: Arc<ScsiBus>,
    pub pending: Pending,
    pub me: Weak<Lsi>,
    go_on: Timer,
    general: Timer,
}

impl Chip {
    pub fn new(
        me: Weak<Lsi>,
        core: Arc<PciCore>,
        bus: Arc<ScsiBus>,
        pending: Pending,
        clock: &Clock,
    ) -> Self {
        let timer = |act: fn(&mut Chip)| {
            let me = me.clone();
            clock.timer(move |_| {
                if let Some(lsi) = me.upgrade() {
                    act(&mut lsi.chip.lock());
                }
            })
        };
        let (go_on, general) = (timer(Chip::run), timer(|chip| chip.scsi_interrupt(0, SIST1_GENERAL)));
        let dma = core.dma();
        let mut chip = Chip {
            regs: [0; 256],
            carry: false,
            running: false,
            paused: false,
            woken: false,
            stalled: None,
            side: Side::default(),
            core,
            dma,
            bus,
            pending,
            me,
            go_on,
            general,
        };
        chip.reset();
        chip
    }

    /// The chip's reset; what the disks still do is forgotten.
    pub fn reset(&mut self) {
        self.regs = [0; 256];
        self.regs[usize::from(reg::SCNTL0)] = 0xc0;
        self.regs[usize::from(reg::GPREG)] = 0x7f;
        self.regs[usize::from(reg::GPCNTL)] = 0x0f;
        self.regs[usize::from(reg::STEST4)] = STEST4_READY;
        (self.carry, self.running, self.stalled) = (false, false, None);
        self.side = Side::fresh(&self.side);
        self.general.cancel();
        self.go_on.cancel();
        self.update_interrupt();
    }

    /// Holds the processor or lets it go on; gives what was before.
    pub fn set_paused(&mut self, paused: bool) -> bool {
        let before = std::mem::replace(&mut self.paused, paused);
        self.run();
        before
    }

    /// Whether the SCRIPTS processor is to fetch.
    pub fn is_going(&self) -> bool {
        self.running && !self.paused
    }

    /// Goes on a little later: others want to run too.
    pub fn breathe(&self) {
        self.go_on.arm_in(BREATH);
    }

    // ---- plain access ----

    pub fn get8(&self, at: u8) -> u8 {
        self.regs[usize::from(at)]
    }

    pub fn set8(&mut self, at: u8, value: u8) {
        self.regs[usize::from(at)] = value;
    }

    pub fn get32(&self, at: u8) -> u32 {
        let at = usize::from(at);
        u32::from_le_bytes([self.regs[at], self.regs[at + 1], self.regs[at + 2], self.regs[at + 3]])
    }

    pub fn set32(&mut self, at: u8, value: u32) {
        let at = usize::from(at);
        self.regs[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    // ---- access with its effects ----

    pub fn read(&mut self, at: u8) -> u8 {
        let plain = self.get8(at);
        match at {
            reg::SCNTL1 => plain | if self.side.is_connected() { SCNTL1_CONNECTED } else { 0 },
            reg::GPREG => {
                // Pins that are inputs are pulled up.
                let inputs = self.get8(reg::GPCNTL) & 0x1f;
                plain & !inputs | inputs
            }
            reg::SOCL => plain & !8 | self.side.lines() & 8,
            reg::SBCL => self.side.lines(),
            reg::SSTAT1 => plain & !7 | self.side.phase_bits(),
            reg::SSTAT2 => plain & !2 | if self.side.is_connected() { 0 } else { 2 },
            reg::DSTAT => {
                self.set8(at, 0);
                self.update_interrupt();
                plain | DSTAT_FIFO_EMPTY
            }
            reg::SIST0 | reg::SIST1 => {
                self.set8(at, 0);
                self.update_interrupt();
                plain
            }
            reg::ISTAT0 => self.interrupt_status(),
            reg::ISTAT1 => plain & !ISTAT1_RUNNING | if self.running { ISTAT1_RUNNING } else { 0 },
            reg::CTEST1 => 0xf0,
            reg::CTEST2 => {
                let status = self.get8(reg::ISTAT0);
                self.set8(reg::ISTAT0, status & !ISTAT_SIGNAL);
                plain & CTEST2_CONFIG | (status & ISTAT_SIGNAL) << 1 | 1
            }
            // The DMA FIFO is always empty: its counter is that of the bytes left.
            reg::DFIFO => self.get8(reg::DBC),
            reg::CTEST5 => plain & !3 | self.get8(reg::DBC + 1) & 3,
            reg::SCRATCHA..0x38 | reg::SCRATCHB..0x60 if self.get8(reg::CTEST2) & CTEST2_CONFIG != 0 => {
                let bar = if at < 0x38 { 1 } else { 2 };
                (self.core.get(pci_regs::BAR0 + bar * 4, 4) >> ((at & 3) * 8)) as u8
            }
            _ => plain,
        }
    }

    fn interrupt_status(&self) -> u8 {
        let pending = |sist: u8, sien: u8, fatal: u8| self.get8(sist) & (self.get8(sien) | fatal) != 0;
        let scsi = pending(reg::SIST0, reg::SIEN0, FATAL0) || pending(reg::SIST1, reg::SIEN1, FATAL1);
        let dma = self.get8(reg::DSTAT) != 0;
        self.get8(reg::ISTAT0) | u8::from(self.side.is_connected()) << 3 | u8::from(scsi) << 1 | u8::from(dma)
    }

    /// A write from outside.
    pub fn write(&mut self, at: u8, value: u8) {
        self.poke(at, value);
        if self.woken {
            self.run();
        }
    }

    /// A write without going on with the program: it may come from there.
    pub fn poke(&mut self, at: u8, value: u8) {
        match at {
            // Arbitration by hand is not there.
            reg::SCNTL0 => self.set8(at, value & !SCNTL0_START),
            reg::SCNTL1 => self.write_control1(value),
            reg::SCNTL2 => {
                let flags = SCNTL2_WSR | SCNTL2_WSS;
                let kept = self.get8(at) & flags & !value;
                self.set8(at, value & !flags | kept);
            }
            reg::ISTAT0 => self.write_status(value),
            reg::ISTAT1 => {
                self.set8(at, value & ISTAT1_DISABLE);
                self.update_interrupt();
            }
            reg::CTEST2 => self.set8(at, value & CTEST2_CONFIG),
            // Flushing and clearing are done at once.
            reg::CTEST3 => self.set8(at, value & 3),
            reg::STEST3 => self.set8(at, value & !2),
            reg::SSID | reg::SBCL..=reg::SSTAT2 | reg::CTEST1 | reg::SIST0 | reg::SIST1 => {}
            reg::STEST0 | reg::STEST4 | reg::SIDL..reg::STEST4 | reg::SBDL..0x5a => {}
            reg::DIEN | reg::SIEN0 | reg::SIEN1 => {
                self.set8(at, value);
                self.update_interrupt();
            }
            reg::DCNTL => {
                self.set8(at, value & !DCNTL_START);
                self.update_interrupt();
                if value & DCNTL_START != 0 {
                    self.start();
                }
            }
            0x2f => {
                self.set8(at, value);
                if self.get8(reg::DMODE) & DMODE_MANUAL == 0 {
                    self.stalled = None;
                    self.start();
                }
            }
            reg::STIME1 => {
                self.set8(at, value);
                match value & 0xf {
                    0 => self.general.cancel(),
                    step => self.general.arm_in(GENERAL_STEP << (step - 1)),
                }
            }
            _ => self.set8(at, value),
        }
    }

    fn write_control1(&mut self, value: u8) {
        let asserted = value & SCNTL1_RESET != 0;
        let before = self.get8(reg::SCNTL1) & SCNTL1_RESET != 0;
        // Arbitration at once is not there, and what is connected shows by itself.
        self.set8(reg::SCNTL1, value & !(SCNTL1_CONNECTED | 3));
        let lines = self.get8(reg::SSTAT0) & !2 | u8::from(asserted) << 1;
        self.set8(reg::SSTAT0, lines);
        if asserted && !before {
            self.reset_bus();
            self.stalled = None;
            self.scsi_interrupt(SIST0_RESET, 0);
        }
    }

    fn write_status(&mut self, value: u8) {
        if value & ISTAT_RESET != 0 {
            self.reset();
            return self.set8(reg::ISTAT0, ISTAT_RESET);
        }
        let fly = self.get8(reg::ISTAT0) & ISTAT_FLY & !value;
        self.set8(reg::ISTAT0, value & 0xb0 | fly);
        if value & ISTAT_ABORT != 0 && self.running {
            self.stalled = None;
            self.dma_interrupt(DSTAT_ABORTED);
        }
        self.update_interrupt();
        self.woken |= value & ISTAT_SIGNAL != 0;
    }

    fn start(&mut self) {
        (self.running, self.woken) = (true, true);
    }

    // ---- interrupts ----

    /// Notes SCSI interrupts; those that are fatal or unmasked stop the SCRIPTS.
    pub fn scsi_interrupt(&mut self, first: u8, second: u8) {
        self.set8(reg::SIST0, self.get8(reg::SIST0) | first);
        self.set8(reg::SIST1, self.get8(reg::SIST1) | second);
        let stops = first & (self.get8(reg::SIEN0) | FATAL0) | second & (self.get8(reg::SIEN1) | FATAL1);
        if stops != 0 {
            self.running = false;
        }
        self.update_interrupt();
    }

    /// Stops the SCRIPTS with a reason in DSTAT.
    pub fn dma_interrupt(&mut self, reason: u8) {
        self.set8(reg::DSTAT, self.get8(reg::DSTAT) | reason);
        self.running = false;
        self.update_interrupt();
    }

    pub fn update_interrupt(&mut self) {
        let unmasked = self.get8(reg::DSTAT) & self.get8(reg::DIEN)
            | self.get8(reg::SIST0) & self.get8(reg::SIEN0)
            | self.get8(reg::SIST1) & self.get8(reg::SIEN1)
            | self.get8(reg::ISTAT0) & ISTAT_FLY;
        let disabled =
            self.get8(reg::DCNTL) & DCNTL_NO_IRQ != 0 || self.get8(reg::ISTAT1) & ISTAT1_DISABLE != 0;
        self.core.set_intx(unmasked != 0 && !disabled);
    }
}
