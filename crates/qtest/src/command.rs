use crate::base64;
use base::clock::Kind;
use devices::pc::ioapic::{InputWatch, IoApic};
use devices::pc::pic::Pic;
use machine::{Entry, Machine};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory that one request may touch (bytes).
const MAX_TRANSFER: u64 = 256 << 20;
pub const ENABLED: &str = "IRQ intercept already enabled";

pub enum Outcome {
    Reply(String),
    /// Interrupts that come into, or out of, the device at this path are to be watched.
    Watch {
        path: String,
        outputs: bool,
    },
}

type Answer = Result<String, String>;

/// Performs one request.
pub fn run(machine: &Machine, line: &str) -> Outcome {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let Some((&name, args)) = words.split_first() else {
        return Outcome::Reply("FAIL Unknown command ''".into());
    };
    if let ("irq_intercept_in" | "irq_intercept_out", [path]) = (name, args) {
        return Outcome::Watch { path: path.to_string(), outputs: name == "irq_intercept_out" };
    }
    let answer = match name {
        "outb" | "outw" | "outl" | "inb" | "inw" | "inl" => port(machine, name, args),
        "writeb" | "writew" | "writel" | "writeq" => store(machine, name, args),
        "readb" | "readw" | "readl" | "readq" => load(machine, name, args),
        "read" | "b64read" => read(machine, name == "b64read", args),
        "write" | "b64write" => write(machine, name == "b64write", args),
        "memset" => memset(machine, args),
        "clock_step" | "clock_set" => clock(machine, name == "clock_step", args),
        "endianness" => Ok("OK little".into()),
        "set_irq_in" => set_irq(machine, args),
        "irq_intercept_in" | "irq_intercept_out" => Err("Expected 1 arguments".into()),
        _ => Err(format!("Unknown command '{name}'")),
    };
    Outcome::Reply(answer.unwrap_or_else(|why| format!("FAIL {why}")))
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("Not a number: '{text}'"))
}

fn numbers<const N: usize>(args: &[&str]) -> Result<[u64; N], String> {
    if args.len() < N {
        return Err(format!("Expected {N} arguments"));
    }
    let mut values = [0; N];
    for (value, arg) in values.iter_mut().zip(args) {
        *value = number(arg)?;
    }
    Ok(values)
}

fn size_of(name: &str) -> u8 {
    match name.as_bytes().last() {
        Some(b'b') => 1,
        Some(b'w') => 2,
        Some(b'l') => 4,
        _ => 8,
    }
}

fn port(machine: &Machine, name: &str, args: &[&str]) -> Answer {
    let ports = &machine.services.ports;
    let size = size_of(name);
    if name.starts_with("in") {
        let [port] = numbers(args)?;
        let port = u16::try_from(port).map_err(|_| "Port out of range")?;
        return Ok(format!("OK 0x{:04x}", ports.load(port.into(), size)));
    }
    let [port, value] = numbers(args)?;
    let port = u16::try_from(port).map_err(|_| "Port out of range")?;
    ports.store(port.into(), size, value);
    Ok("OK".into())
}

fn store(machine: &Machine, name: &str, args: &[&str]) -> Answer {
    let [address, value] = numbers(args)?;
    machine.services.memory.store(address, size_of(name), value);
    Ok("OK".into())
}

fn load(machine: &Machine, name: &str, args: &[&str]) -> Answer {
    let [address] = numbers(args)?;
    Ok(format!("OK 0x{:016x}", machine.services.memory.load(address, size_of(name))))
}

fn length(value: u64) -> Result<usize, String> {
    if value > MAX_TRANSFER {
        return Err(format!("Length {value} is above the limit of {MAX_TRANSFER} bytes"));
    }
    Ok(value as usize)
}

fn read(machine: &Machine, base64: bool, args: &[&str]) -> Answer {
    let [address, len] = numbers(args)?;
    let mut bytes = vec![0; length(len)?];
    machine.services.memory.read(address, &mut bytes);
    if base64 {
        return Ok(format!("OK {}", base64::encode(&bytes)));
    }
    let mut reply = String::with_capacity(5 + bytes.len() * 2);
    reply.push_str("OK 0x");
    for byte in bytes {
        let _ = write!(reply, "{byte:02x}");
    }
    Ok(reply)
}

/// Data shorter than the length is filled with zeroes.
fn write(machine: &Machine, base64: bool, args: &[&str]) -> Answer {
    let [address, len] = numbers(args)?;
    let len = length(len)?;
    let data = args.get(2).ok_or("Expected 3 arguments")?;
    let mut bytes = if base64 { base64::decode(data).ok_or("Malformed base64")? } else { hex(data)? };
    if base64 && bytes.len() != len {
        return Err(format!("b64write: {} bytes of data for a length of {len}", bytes.len()));
    }
    bytes.resize(len, 0);
    machine.services.memory.write(address, &bytes);
    Ok("OK".into())
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").ok_or("Expected data of the form 0x...")?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err("Odd number of hexadecimal digits".into());
    }
    let digit =
        |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8).ok_or("Not a hexadecimal digit");
    digits.chunks(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn memset(machine: &Machine, args: &[&str]) -> Answer {
    let [address, len, pattern] = numbers(args)?;
    machine.services.memory.write(address, &vec![pattern as u8; length(len)?]);
    Ok("OK".into())
}

fn clock(machine: &Machine, step: bool, args: &[&str]) -> Answer {
    let clock = &machine.services.clocks.virtual_;
    if clock.kind() != Kind::Manual {
        return Err("the clock can only be set with -accel qtest".into());
    }
    let to = match (step, args.first()) {
        (true, None) => clock.next_deadline().unwrap_or_else(|| clock.now()),
        (true, Some(by)) => clock.now().saturating_add(number(by)?).min(i64::MAX as u64),
        (false, Some(to)) => number(to)?.min(i64::MAX as u64),
        (false, None) => return Err("Expected 1 arguments".into()),
    };
    Ok(format!("OK {}", clock.advance(to)))
}

enum Controller<'a> {
    IoApic(&'a IoApic),
    Pic(&'a Pic),
}

/// Finds a device by path, id, last path component or type.
pub fn device(machine: &Machine, path: &str) -> Result<Arc<Entry>, String> {
    let is_it = |entry: &Arc<Entry>| {
        entry.path == path
            || entry.id.as_deref() == Some(path)
            || entry.path.rsplit('/').next() == Some(path)
            || entry.model().answers_to(path)
    };
    machine.devices.entries().into_iter().find(is_it).ok_or_else(|| "Unknown device".into())
}

fn controller(entry: &Entry) -> Result<Controller<'_>, String> {
    let device = entry.device.as_any();
    if let Some(ioapic) = device.downcast_ref::<IoApic>() {
        Ok(Controller::IoApic(ioapic))
    } else if let Some(pic) = device.downcast_ref::<Pic>() {
        Ok(Controller::Pic(pic))
    } else {
        Err("the device has no interrupt inputs".into())
    }
}

/// An I/O APIC's input 2 is interrupt 0 of the board.
fn board_irq(pin: usize) -> usize {
    if pin == 2 { 0 } else { pin }
}

/// Has `tell` called for each change of an interrupt input of the device.
pub fn watch_inputs(entry: &Entry, tell: InputWatch) -> Result<(), String> {
    let first = match controller(entry)? {
        Controller::IoApic(ioapic) => ioapic.watch(Box::new(move |pin, level| tell(board_irq(pin), level))),
        Controller::Pic(pic) => pic.watch(tell),
    };
    if first { Ok(()) } else { Err(ENABLED.into()) }
}

/// Has `tell` called for each change of an interrupt output of the device, numbered in the
/// order in which the device has them.
pub fn watch_outputs(entry: &Entry, tell: InputWatch) -> Result<(), String> {
    if entry.outputs.is_empty() {
        return Err("the device has no interrupt outputs".into());
    }
    let tell = Arc::new(tell);
    for (number, wire) in entry.outputs.iter().enumerate() {
        let (tell, before) = (tell.clone(), AtomicBool::new(false));
        let changed = move |level| {
            if before.swap(level, Ordering::AcqRel) != level {
                tell(number, level);
            }
        };
        if !wire.tap(Box::new(changed)) {
            return Err(ENABLED.into());
        }
    }
    Ok(())
}

fn set_irq(machine: &Machine, args: &[&str]) -> Answer {
    let &[path, name, irq, level] = args else { return Err("Expected 4 arguments".into()) };
    if name != "unnamed-gpio-in" {
        return Err(format!("the device has no inputs named '{name}'"));
    }
    let (irq, level) = (number(irq)?, number(level)? != 0);
    let entry = device(machine, path)?;
    let inputs = |count: usize| {
        usize::try_from(irq).ok().filter(|&irq| irq < count).ok_or_else(|| "No such interrupt".to_string())
    };
    match controller(&entry)? {
        Controller::IoApic(ioapic) => {
            let pin = inputs(24)?;
            ioapic.set_irq(if pin == 0 { 2 } else { pin }, level);
        }
        Controller::Pic(pic) => pic.set_irq(inputs(16)? as u8, level),
    }
    Ok("OK".into())
}
