//! A machine without guest: QMP, and the qtest protocol in place of a processor.

use crate::guests::Result;
use crate::vm::Vm;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// A machine of `-accel qtest` and its test channel.
pub struct Qtest {
    pub vm: Vm,
    channel: BufReader<UnixStream>,
    dir: tempfile::TempDir,
}

impl Qtest {
    /// Starts with `-nodefaults -display none` and `args`.
    pub fn start(args: &[&str]) -> Result<Qtest> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let path = dir.path().join("qtest");
        let listener = UnixListener::bind(&path).map_err(|e| e.to_string())?;
        let channel = format!("unix:{}", path.display());
        let mut all = vec!["-nodefaults", "-display", "none"];
        all.extend(["-accel", "qtest", "-qtest", &channel, "-qtest-log", "none"]);
        all.extend(args);
        let vm = Vm::start_plain(&all)?;
        let (stream, _) = listener.accept().map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|e| e.to_string())?;
        Ok(Qtest { vm, channel: BufReader::new(stream), dir })
    }

    /// A folder of this machine's own.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Sends a request and gives what follows `OK` in the answer.
    pub fn ask(&mut self, request: &str) -> String {
        let sent = self.channel.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.unwrap_or_else(|e| panic!("{request}: {e}"));
        loop {
            let mut line = String::new();
            self.channel.read_line(&mut line).unwrap_or_else(|e| panic!("{request}: {e}"));
            if line.starts_with("IRQ ") {
                continue;
            }
            let answer = line.trim_end().strip_prefix("OK");
            return answer.unwrap_or_else(|| panic!("{request}: {line}")).trim_start().to_string();
        }
    }

    fn number(&mut self, request: &str) -> u64 {
        let answer = self.ask(request);
        let digits = answer.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap_or_else(|e| panic!("{request}: {answer}: {e}"))
    }

    pub fn inb(&mut self, port: u16) -> u8 {
        self.number(&format!("inb {port:#x}")) as u8
    }

    pub fn inl(&mut self, port: u16) -> u32 {
        self.number(&format!("inl {port:#x}")) as u32
    }

    pub fn outb(&mut self, port: u16, value: u8) {
        self.ask(&format!("outb {port:#x} {value:#x}"));
    }

    pub fn outl(&mut self, port: u16, value: u32) {
        self.ask(&format!("outl {port:#x} {value:#x}"));
    }

    pub fn readl(&mut self, address: u64) -> u32 {
        self.number(&format!("readl {address:#x}")) as u32
    }

    pub fn writel(&mut self, address: u64, value: u32) {
        self.ask(&format!("writel {address:#x} {value:#x}"));
    }

    /// Reads guest memory.
    pub fn read(&mut self, address: u64, len: usize) -> Vec<u8> {
        let answer = self.ask(&format!("read {address:#x} {len:#x}"));
        let digits = answer.trim_start_matches("0x").as_bytes();
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or_default() as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// Writes guest memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("write {address:#x} {:#x} 0x{digits}", bytes.len()));
    }

    /// Moves the virtual clock on.
    pub fn step(&mut self, nanos: u64) {
        self.ask(&format!("clock_step {nanos}"));
    }

    /// PCI configuration space of bus 0 by mechanism 1.
    pub fn config_read(&mut self, slot: u32, function: u32, offset: u32) -> u32 {
        self.outl(0xcf8, 0x8000_0000 | slot << 11 | function << 8 | offset & !3);
        self.inl(0xcfc)
    }

    pub fn config_write(&mut self, slot: u32, function: u32, offset: u32, value: u32) {
        self.outl(0xcf8, 0x8000_0000 | slot << 11 | function << 8 | offset & !3);
        self.outl(0xcfc, value);
    }
}
