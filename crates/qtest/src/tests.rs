use super::*;
use machine::{Host, clocks};
use spec::chardev::ChardevSocket;
use spec::{Chardev, ChardevKind, SocketAddress};
use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        Err(fail!("no descriptor {name}"))
    }
    fn open_fdset(
        &self,
        _set: u64,
        _flags: rustix::fs::OFlags,
    ) -> Result<::base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    fn ask(&mut self, request: &str) -> String {
        writeln!(self.stream, "{request}").unwrap();
        self.line()
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }
}

/// Runs `test` against a `pc` with `-accel qtest`.
fn with_client(test: impl FnOnce(&mut Client) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir =
        std::env::temp_dir().join(format!("qtest-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let client = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        test(&mut Client { stream, lines });
    });
    runtime.block_on(async {
        let notices = ::base::notice::Notices::new();
        let clocks = clocks(true);
        let host = Host::new(
            notices,
            chardev::Chardevs::new(tokio::runtime::Handle::current(), Arc::new(NoHost)),
            ::base::fd::FdSets::default(),
            clocks,
        );
        let mut spec = spec::MachineSpec::default();
        spec.accels = vec![spec::machine::Accel { name: "qtest".into(), options: Default::default() }];
        let machine = machine::build(spec, &host).unwrap();
        machine.start().unwrap();
        let addr = SocketAddress::Unix(spec::socket::UnixAddress {
            path: path.to_string_lossy().into_owned(),
            ..Default::default()
        });
        let socket =
            ChardevSocket { addr, server: false, wait: false, nodelay: false, telnet: false, reconnect: 0 };
        host.chardevs.add(&Chardev::new("qtest", ChardevKind::Socket(socket))).await.unwrap();
        let port = host.chardevs.claim("qtest").unwrap();
        let _server = Server::open(&machine, port, Some("none")).unwrap();
        while !client.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        machine.tear_down();
    });
    std::fs::remove_dir_all(&dir).unwrap();
    client.join().unwrap();
}

#[test]
fn memory_and_ports() {
    with_client(|c| {
        assert_eq!(c.ask("endianness"), "OK little");
        assert_eq!(c.ask("writel 0x1000 0x12345678"), "OK");
        assert_eq!(c.ask("readw 0x1000"), "OK 0x0000000000005678");
        assert_eq!(c.ask("readq 4096"), "OK 0x0000000012345678");
        assert_eq!(c.ask("write 0x2000 4 0xaabbcc"), "OK");
        assert_eq!(c.ask("read 0x2000 4"), "OK 0xaabbcc00");
        assert_eq!(c.ask("b64write 0x2000 3 Zm9v"), "OK");
        assert_eq!(c.ask("b64read 0x2000 3"), "OK Zm9v");
        assert_eq!(c.ask("memset 0x2000 2 0x5a"), "OK");
        assert_eq!(c.ask("read 0x2000 3"), "OK 0x5a5a6f");
        assert_eq!(c.ask("outb 0x21 0xa5"), "OK");
        assert_eq!(c.ask("inb 0x21"), "OK 0x00a5");
    });
}

#[test]
fn clock_and_interrupts() {
    with_client(|c| {
        assert_eq!(c.ask("irq_intercept_in nothing"), "FAIL Unknown device");
        assert_eq!(c.ask("irq_intercept_in ioapic"), "OK");
        assert_eq!(c.ask("irq_intercept_in ioapic"), "OK");
        assert_eq!(c.ask("irq_intercept_in isa-i8259"), "FAIL IRQ intercept already enabled");
        // RTC: periodic interrupt at 1024 Hz.
        for request in ["outb 0x70 0x0b", "outb 0x71 0x42"] {
            assert_eq!(c.ask(request), "OK");
        }
        let mut line = c.ask("clock_step 2000000");
        while !line.starts_with("OK") {
            if line == "IRQ raise 8" {
                break;
            }
            assert!(line.starts_with("IRQ"), "{line}");
            line = c.line();
        }
        assert_eq!(line, "IRQ raise 8");
        while !c.line().starts_with("OK") {}
        assert_eq!(c.ask("outb 0x71 0x02"), "IRQ lower 8");
        assert_eq!(c.line(), "OK");
        assert_eq!(c.ask("clock_set 5000000000"), "OK 5000000000");
    });
}

#[test]
fn interrupt_outputs() {
    with_client(|c| {
        assert_eq!(c.ask("irq_intercept_out nothing"), "FAIL Unknown device");
        assert_eq!(c.ask("irq_intercept_out i440FX"), "FAIL the device has no interrupt outputs");
        assert_eq!(c.ask("irq_intercept_out i8042"), "OK");
        assert_eq!(c.ask("irq_intercept_out i8042"), "OK");
        assert_eq!(c.ask("irq_intercept_in ioapic"), "FAIL IRQ intercept already enabled");
        // The keyboard answers an echo: output 0; the mouse its defaults: output 1.
        for request in ["outb 0x64 0x60", "outb 0x60 0x03"] {
            assert_eq!(c.ask(request), "OK");
        }
        assert_eq!(c.ask("outb 0x60 0xee"), "IRQ raise 0");
        assert_eq!(c.line(), "OK");
        assert_eq!(c.ask("inb 0x60"), "IRQ lower 0");
        assert_eq!(c.line(), "OK 0x00ee");
        assert_eq!(c.ask("outb 0x64 0xd4"), "OK");
        assert_eq!(c.ask("outb 0x60 0xf6"), "IRQ raise 1");
        assert_eq!(c.line(), "OK");
    });
}

#[test]
fn inputs_can_be_set() {
    with_client(|c| {
        assert_eq!(c.ask("irq_intercept_in ioapic"), "OK");
        assert_eq!(c.ask("set_irq_in ioapic unnamed-gpio-in 9 1"), "IRQ raise 9");
        assert_eq!(c.line(), "OK");
        assert_eq!(c.ask("set_irq_in ioapic unnamed-gpio-in 9 0"), "IRQ lower 9");
        assert_eq!(c.line(), "OK");
        let refused = "FAIL the device has no inputs named 'other'";
        assert_eq!(c.ask("set_irq_in ioapic other 9 0"), refused);
        assert_eq!(c.ask("set_irq_in isa-i8259 unnamed-gpio-in 16 1"), "FAIL No such interrupt");
    });
}

#[test]
fn bad_requests_are_answered() {
    with_client(|c| {
        for (request, answer) in [
            ("", "FAIL Unknown command ''"),
            ("frobnicate 1", "FAIL Unknown command 'frobnicate'"),
            ("inb", "FAIL Expected 1 arguments"),
            ("inb 0x10000", "FAIL Port out of range"),
            ("readb zero", "FAIL Not a number: 'zero'"),
            (
                "read 0 0xffffffffffffffff",
                "FAIL Length 18446744073709551615 is above the limit of 268435456 bytes",
            ),
            ("write 0 1 0xz", "FAIL Odd number of hexadecimal digits"),
            ("b64write 0 1 Zm9v", "FAIL b64write: 3 bytes of data for a length of 1"),
            ("clock_set", "FAIL Expected 1 arguments"),
            ("irq_intercept_out", "FAIL Expected 1 arguments"),
            ("set_irq_in ioapic 1 1", "FAIL Expected 4 arguments"),
        ] {
            assert_eq!(c.ask(request), answer, "{request}");
        }
    });
}
