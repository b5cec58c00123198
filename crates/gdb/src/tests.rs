//! A debugger's conversation with a `pc` under the interpreter.

use super::*;
use base::fail;
use machine::{Host, clocks};
use spec::chardev::ChardevSocket;
use spec::{Chardev, ChardevKind, SocketAddress};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        Err(fail!("no descriptor {name}"))
    }
    fn open_fdset(
        &self,
        _set: u64,
        _flags: rustix::fs::OFlags,
    ) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

/// The debugger's side of the remote protocol.
struct Gdb(UnixStream);

impl Gdb {
    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }
    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        let packet = format!("${packet}#{sum:02x}");
        std::io::Write::write_all(&mut self.0, packet.as_bytes()).unwrap();
    }
    fn reply(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                // Run-length encoding.
                b'*' => {
                    let count = self.byte() - 29;
                    let last = text.chars().last().unwrap();
                    text.extend(std::iter::repeat_n(last, count.into()));
                }
                byte => text.push(byte.into()),
            }
        }
        // The checksum.
        self.byte();
        self.byte();
        std::io::Write::write_all(&mut self.0, b"+").unwrap();
        text
    }
    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.reply()
    }
    fn registers(&mut self) -> Vec<u8> {
        let text = self.ask("g");
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap()).collect()
    }
    fn register(&mut self, index: usize) -> u64 {
        let bytes = self.registers();
        u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap())
    }
    fn set_registers(&mut self, bytes: &[u8]) {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("G{text}")), "OK");
    }
}

const RAX: usize = 0;
const RIP: usize = 16;
/// Byte offset of CS among the registers.
const CS: usize = 0x8c;

fn with_debugger(test: impl FnOnce(&mut Gdb) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir =
        std::env::temp_dir().join(format!("gdb-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let client = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        test(&mut Gdb(stream));
    });
    runtime.block_on(async {
        let clocks = clocks(false);
        let notices = base::notice::Notices::new();
        let host = Host::new(
            notices,
            chardev::Chardevs::new(tokio::runtime::Handle::current(), Arc::new(NoHost)),
            base::fd::FdSets::default(),
            clocks,
        );
        let spec = spec::MachineSpec {
            accels: vec![spec::machine::Accel { name: "interpreter".into(), options: Default::default() }],
            ..Default::default()
        };
        let machine = machine::build(spec, &host).unwrap();
        let address =
            spec::socket::UnixAddress { path: path.to_string_lossy().into_owned(), ..Default::default() };
        let socket = ChardevSocket {
            addr: SocketAddress::Unix(address),
            server: false,
            wait: false,
            nodelay: false,
            telnet: false,
            reconnect: 0,
        };
        host.chardevs.add(&Chardev::new("gdb", ChardevKind::Socket(socket))).await.unwrap();
        let monitor: MonitorCommand = Arc::new(|line| format!("asked: {line}\n"));
        let server = Server::open(&machine, host.chardevs.claim("gdb").unwrap(), Some(monitor));
        while !client.is_finished() {
            for notice in host.notices.drain() {
                match notice.what.downcast_ref::<Notice>() {
                    Some(Notice::Pending) => machine.perform_pending(),
                    Some(notice) => server.notice(notice),
                    None => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        machine.tear_down();
    });
    std::fs::remove_dir_all(&dir).unwrap();
    client.join().unwrap();
}

/// Puts `code` at 0x1000 and the processor in real mode before it.
fn prepare(gdb: &mut Gdb, code: &[u8]) {
    let text: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(gdb.ask(&format!("M1000,{:x}:{text}", code.len())), "OK");
    let mut registers = gdb.registers();
    registers[RAX * 8..RAX * 8 + 8].fill(0);
    registers[RIP * 8..RIP * 8 + 8].copy_from_slice(&0x1000u64.to_le_bytes());
    registers[CS..CS + 4].fill(0);
    gdb.set_registers(&registers);
}

/// inc ax; mov [0x5000], ax; nop; jmp 0x1000
const LOOP: &[u8] = &[0x40, 0xa3, 0x00, 0x50, 0x90, 0xeb, 0xf9];

#[test]
fn memory_steps_breakpoints_and_watchpoints() {
    with_debugger(|gdb| {
        assert!(gdb.ask("?").starts_with('S') || gdb.ask("?").starts_with('T'));
        prepare(gdb, LOOP);
        assert_eq!(gdb.ask("m1000,7"), "40a3005090ebf9");
        assert!(gdb.ask("vCont;s:1").starts_with("T05"));
        assert_eq!((gdb.register(RIP), gdb.register(RAX)), (0x1001, 1));
        assert_eq!(gdb.ask("Z0,1004,1"), "OK");
        assert!(gdb.ask("vCont;c").starts_with("T05thread:01"));
        assert_eq!((gdb.register(RIP), gdb.register(RAX)), (0x1004, 1));
        // A second time round.
        assert!(gdb.ask("vCont;c").starts_with("T05"));
        assert_eq!((gdb.register(RIP), gdb.register(RAX)), (0x1004, 2));
        assert_eq!(gdb.ask("z0,1004,1"), "OK");
        assert_eq!(gdb.ask("Z2,5000,2"), "OK");
        let stop = gdb.ask("vCont;c");
        assert!(stop.contains("watch:5000") || stop.contains("watch:0000000000005000"), "{stop}");
        assert_eq!(gdb.register(RAX), 3);
        assert_eq!(gdb.ask("m5000,2"), "0300");
        assert_eq!(gdb.ask("z2,5000,2"), "OK");
        // A step stays in a range until it is left.
        assert!(gdb.ask("vCont;r1000,1005:1").starts_with("T05"));
        assert_eq!(gdb.register(RIP), 0x1005);
    });
}

#[test]
fn interrupting_and_the_monitor() {
    with_debugger(|gdb| {
        prepare(gdb, LOOP);
        gdb.send("vCont;c");
        std::thread::sleep(Duration::from_millis(50));
        std::io::Write::write_all(&mut gdb.0, &[3]).unwrap();
        assert!(gdb.reply().contains("02"));
        assert!(gdb.register(RAX) > 0);
        // "status" to the monitor; the answer is console output.
        let output = gdb.ask("qRcmd,737461747573");
        assert!(output.starts_with('O'), "{output}");
        assert_eq!(gdb.reply(), "OK");
        let threads = gdb.ask("qfThreadInfo");
        assert!(threads.starts_with('m') && !threads.contains(','), "one vCPU: {threads}");
        assert_eq!(gdb.ask("D"), "OK");
    });
}
