//! Ports for firmware and test programs: `isa-debugcon`, `isa-debug-exit`, `pvpanic`, and
//! the board's own 0x80 (POST code), 0xed (delay) and 0xf0 (coprocessor error).

use super::range::{Range, board_model, byte_range, isa_model};
use base::{Mutex, bail};
use chardev::{Event, FrontEnd, Port};
use device::{BusKind, Device, IrqLine, Model, Power, Property, PropertyKind, Props, ResetKind, Wiring};
use memory::AddressSpace;
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

pub static DEBUGCON: Model =
    isa_model("isa-debugcon", "Debug console port", &[DEBUGCON_PROPERTIES], create_debugcon);
pub static DEBUG_EXIT: Model =
    isa_model("isa-debug-exit", "Port that ends the process", &[DEBUG_EXIT_PROPERTIES], create_debug_exit);
pub static PVPANIC: Model =
    isa_model("pvpanic", "Guest crash notification", &[PVPANIC_PROPERTIES], create_pvpanic);
pub static LEGACY: Model =
    board_model("isa-legacy-ports", "POST, delay and FERR ports", BusKind::Isa, "isa-device");

static DEBUGCON_PROPERTIES: &[Property] = &[
    Property::new("iobase", PropertyKind::U32, "0xe9", "I/O port"),
    Property::new("readback", PropertyKind::U32, "0xe9", "What the port reads as"),
    Property::unset("chardev", PropertyKind::Chardev, "Character device"),
];
static DEBUG_EXIT_PROPERTIES: &[Property] = &[
    Property::new("iobase", PropertyKind::U32, "0x501", "First I/O port"),
    Property::new("iosize", PropertyKind::U32, "2", "Number of ports"),
];
static PVPANIC_PROPERTIES: &[Property] = &[
    Property::new("ioport", PropertyKind::U16, "0x505", "I/O port"),
    Property::new("events", PropertyKind::U8, "3", "Supported events: 1 panicked, 2 crash kernel loaded"),
];

fn port_range(device: &str, props: &Props, name: &str, size: u64) -> base::Result<u64> {
    let at = props.u64(name);
    if size == 0 || at > 0xffff || size > 0x10000 - at {
        bail!("{device}: I/O ports 0x{at:x} (size {size}) are out of range");
    }
    Ok(at)
}

/// Writes of bytes go to a character device.
pub struct DebugCon {
    port: Port,
    readback: u32,
    /// Output the character device has not taken yet; the newest is lost beyond 64 KiB.
    waiting: Mutex<Vec<u8>>,
}

const MAX_WAITING: usize = 1 << 16;

impl DebugCon {
    pub fn new(port: Port, readback: u32) -> Arc<Self> {
        let device = Arc::new(DebugCon { port: port.clone(), readback, waiting: Mutex::default() });
        port.connect(&device);
        device
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace, iobase: u16) {
        let handler =
            byte_range(self, |d, _, _| u64::from(d.readback) & 0xff, |d, _, _, value| d.write(value as u8));
        ports.edit(|edit| edit.io("isa-debugcon", iobase.into(), 1, handler));
    }

    fn write(&self, byte: u8) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() && self.port.write(&[byte]) == 1 {
            return;
        }
        if waiting.len() < MAX_WAITING {
            waiting.push(byte);
        }
    }
}

impl FrontEnd for DebugCon {
    fn can_receive(&self) -> usize {
        usize::MAX
    }
    fn receive(&self, _: &[u8], _: Vec<OwnedFd>) {}
    fn event(&self, _: Event) {}
    fn writable(&self) {
        let mut waiting = self.waiting.lock();
        let taken = self.port.write(&waiting);
        waiting.drain(..taken);
    }
}

impl Device for DebugCon {
    fn model(&self) -> &'static Model {
        &DEBUGCON
    }
    fn reset(&self, _: ResetKind) {}
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create_debugcon(props: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let iobase = port_range("isa-debugcon", props, "iobase", 1)?;
    let Some(port) = wiring.chardev(props, "chardev")? else {
        bail!("Can't create debugcon device, empty char device");
    };
    let device = DebugCon::new(port, props.u64("readback") as u32);
    device.map(&wiring.services.ports, iobase as u16);
    Ok(device)
}

/// A write of `value` ends the process with status `value << 1 | 1`.
pub struct DebugExit {
    power: Arc<dyn Power>,
}

impl Device for DebugExit {
    fn model(&self) -> &'static Model {
        &DEBUG_EXIT
    }
    fn reset(&self, _: ResetKind) {}
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create_debug_exit(props: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let size = props.u64("iosize");
    let iobase = port_range("isa-debug-exit", props, "iobase", size)?;
    let device = Arc::new(DebugExit { power: wiring.services.power.clone() });
    let handler = Range {
        device: device.clone(),
        read: |_, _, _| 0,
        write: |d, _, _, value| d.power.exit(((value as i32) << 1 | 1) & 0xff),
        max: 4,
        min: 1,
    };
    wiring.services.ports.edit(|edit| edit.io("isa-debug-exit", iobase, size, Arc::new(handler)));
    Ok(device)
}

/// The paravirtual panic port: the guest tells that it crashed.
pub struct PvPanic {
    power: Arc<dyn Power>,
    events: u8,
}

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

impl PvPanic {
    pub fn new(power: Arc<dyn Power>, events: u8) -> Arc<Self> {
        Arc::new(PvPanic { power, events: events & (PANICKED | CRASH_LOADED) })
    }

    /// What answers the register.
    pub fn register(self: &Arc<Self>) -> Arc<dyn memory::Handler> {
        byte_range(self, |d, _, _| d.events.into(), |d, _, _, value| d.write(value as u8))
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace, ioport: u16) {
        let handler = self.register();
        ports.edit(|edit| edit.io("pvpanic", ioport.into(), 1, handler));
    }

    /// The events the guest may tell (fw_cfg `etc/pvpanic-port` names the port).
    pub fn events(&self) -> u8 {
        self.events
    }

    fn write(&self, value: u8) {
        let value = value & self.events;
        if value & PANICKED != 0 {
            self.power.guest_panicked(false);
        } else if value & CRASH_LOADED != 0 {
            self.power.guest_panicked(true);
        }
    }
}

impl Device for PvPanic {
    fn model(&self) -> &'static Model {
        &PVPANIC
    }
    fn reset(&self, _: ResetKind) {}
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create_pvpanic(props: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let device = PvPanic::new(wiring.services.power.clone(), props.u64("events") as u8);
    device.map(&wiring.services.ports, props.u64("ioport") as u16);
    Ok(device)
}

/// Port 0x80 remembers the POST code, 0xed only takes time, 0xf0 clears the coprocessor's
/// error line (IRQ 13).
pub struct LegacyPorts {
    post: AtomicU8,
    ferr: IrqLine,
}

impl LegacyPorts {
    pub fn new(ferr: IrqLine) -> Arc<Self> {
        Arc::new(LegacyPorts { post: AtomicU8::new(0), ferr })
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let post = byte_range(
            self,
            |d, _, _| d.post.load(Ordering::Relaxed).into(),
            |d, _, _, value| d.post.store(value as u8, Ordering::Relaxed),
        );
        let delay = byte_range(self, |_, _, _| 0xff, |_, _, _, _| ());
        let ferr = byte_range(self, |_, _, _| 0xff, |d, _, _, _| d.ferr.lower());
        ports.edit(|edit| {
            edit.io("ioport80", 0x80, 1, post);
            edit.io("delay", 0xed, 1, delay);
            edit.io("ioportF0", 0xf0, 1, ferr);
        });
    }

    /// The last POST code the firmware wrote.
    pub fn post_code(&self) -> u8 {
        self.post.load(Ordering::Relaxed)
    }

    /// The processor signals an x87 error outside CR0.NE mode.
    pub fn raise_ferr(&self) {
        self.ferr.raise();
    }
}

impl Device for LegacyPorts {
    fn model(&self) -> &'static Model {
        &LEGACY
    }
    fn reset(&self, _: ResetKind) {
        self.ferr.lower();
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
#[path = "debug_tests.rs"]
mod tests;
