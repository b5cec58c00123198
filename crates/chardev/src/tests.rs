//! Over real sockets, terminals and pipes.

use crate::*;
use base::{Failure, Mutex, Result};
use rustix::fs::OFlags;
use spec::chardev::{ChardevLog, ChardevSocket};
use spec::{Chardev, ChardevKind, SocketAddress};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Default)]
struct TestHost {
    fds: base::fd::FdSets,
    passed: Mutex<Option<OwnedFd>>,
    said: Mutex<Vec<String>>,
    escapes: Mutex<Vec<Escape>>,
}

impl Host for TestHost {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        self.passed.lock().take().ok_or_else(|| Failure::new(format!("no {name}")))
    }
    fn open_fdset(&self, set: u64, flags: OFlags) -> Result<base::fd::SetFd, rustix::io::Errno> {
        self.fds.open(set, flags)
    }
    fn info(&self, text: &str) {
        self.said.lock().push(text.into());
    }
    fn escape(&self, what: Escape) {
        self.escapes.lock().push(what);
    }
}

/// Records what it is given; takes as much as `room` says.
struct Front {
    room: AtomicUsize,
    got: Mutex<Vec<u8>>,
    fds: Mutex<Vec<OwnedFd>>,
    events: Mutex<Vec<Event>>,
    /// How many bytes had come when the back end was said to be open.
    early: AtomicUsize,
    writable: AtomicUsize,
}

impl Front {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Front {
            room: AtomicUsize::new(room),
            got: Mutex::default(),
            fds: Mutex::default(),
            events: Mutex::default(),
            early: AtomicUsize::new(0),
            writable: AtomicUsize::new(0),
        })
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.got.lock()).into_owned()
    }
}

impl FrontEnd for Front {
    fn can_receive(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }
    fn receive(&self, bytes: &[u8], fds: Vec<OwnedFd>) {
        let room = self.room.fetch_sub(bytes.len(), Ordering::SeqCst);
        assert!(bytes.len() <= room, "{} bytes for a room of {room}", bytes.len());
        self.got.lock().extend(bytes);
        self.fds.lock().extend(fds);
    }
    fn event(&self, event: Event) {
        if event == Event::Opened {
            self.early.store(self.got.lock().len(), Ordering::SeqCst);
        }
        self.events.lock().push(event);
    }
    fn writable(&self) {
        self.writable.fetch_add(1, Ordering::SeqCst);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("test hangs") });
}

fn make() -> (Chardevs, Arc<TestHost>) {
    let host = Arc::new(TestHost::default());
    (Chardevs::new(tokio::runtime::Handle::current(), host.clone()), host)
}

async fn until(mut what: impl FnMut() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn socket(addr: SocketAddress, server: bool) -> ChardevSocket {
    ChardevSocket { addr, server, wait: false, nodelay: false, telnet: false, reconnect: 0 }
}

fn filename(chardevs: &Chardevs, id: &str) -> String {
    chardevs.query().into_iter().find(|i| i.label == id).unwrap().filename
}

/// Reads in another thread, so that the runtime goes on.
async fn read_exactly(mut from: impl Read + Send + 'static, n: usize) -> Vec<u8> {
    let read = move || {
        let mut buf = vec![0; n];
        from.read_exact(&mut buf).map(|()| buf)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap()
}

#[test]
fn unix_server_serves_one_client_after_the_other() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_string();
        let (chardevs, _) = make();
        let kind = ChardevKind::Socket(socket(SocketAddress::unix(&path), true));
        chardevs.add(&Chardev::new("c0", kind.clone())).await.unwrap();
        assert_eq!(filename(&chardevs, "c0"), format!("disconnected:unix:{path},server=on"));
        let again = chardevs.add(&Chardev::new("c0", kind)).await.unwrap_err();
        assert_eq!(again.text, "Chardev 'c0' already exists");
        let front = Front::new(5);
        let port = chardevs.claim("c0").unwrap();
        assert_eq!(chardevs.claim("c0").unwrap_err().text, "chardev 'c0' is in use");
        port.connect(&front);
        assert_eq!(port.write(b"nobody there"), 12);

        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        second.write_all(b"second").unwrap();
        first.write_all(b"hello world").unwrap();
        until(|| front.text() == "hello").await;
        assert_eq!(filename(&chardevs, "c0"), format!("unix:{path},server=on"));
        front.room.store(100, Ordering::SeqCst);
        port.accept_input();
        until(|| front.text() == "hello world").await;
        assert_eq!(port.write(b"answer"), 6);
        assert_eq!(read_exactly(first.try_clone().unwrap(), 6).await, b"answer");
        drop(first);
        until(|| front.text() == "hello worldsecond").await;
        assert_eq!(*front.events.lock(), [Event::Opened, Event::Closed, Event::Opened]);
        assert!(chardevs.query()[0].frontend_open);
        assert_eq!(chardevs.remove("c0").await.unwrap_err().text, "Chardev 'c0' is busy");
        drop(port);
        chardevs.remove("c0").await.unwrap();
        assert!(!std::path::Path::new(&path).exists());
        assert_eq!(chardevs.remove("c0").await.unwrap_err().text, "Chardev 'c0' not found");
        assert_eq!(chardevs.claim("c0").unwrap_err().text, "Chardev 'c0' not found");
    });
}

#[test]
fn a_slow_reader_bounds_the_outbox_and_loses_nothing() {
    run(async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let (chardevs, host) = make();
        *host.passed.lock() = Some(a.into());
        let kind = ChardevKind::Socket(socket(SocketAddress::fd(7), false));
        chardevs.add(&Chardev::new("c", kind)).await.unwrap();
        let front = Front::new(0);
        let port = chardevs.claim("c").unwrap();
        port.connect(&front);
        let data: Vec<u8> = (0..4_000_000u32).map(|i| (i / 7) as u8).collect();
        let mut sent = port.write(&data);
        assert!(sent > 0 && sent < 1_000_000, "{sent}");
        assert_eq!(port.write(b"x"), 0);
        let want = data.len();
        let reader = tokio::task::spawn_blocking(move || {
            let mut all = vec![0; want];
            b.read_exact(&mut all).map(|()| (all, b))
        });
        while sent < data.len() {
            let seen = front.writable.load(Ordering::SeqCst);
            let n = port.write(&data[sent..]);
            sent += n;
            if n == 0 {
                until(|| front.writable.load(Ordering::SeqCst) > seen || port.drained()).await;
            }
            tokio::task::yield_now().await;
        }
        let (all, _b) = reader.await.unwrap().unwrap();
        assert!(all == data);
        assert!(chardevs.drain(Duration::from_secs(1)).await);
    });
}

#[test]
fn descriptors_come_with_their_bytes() {
    run(async {
        let (a, b) = UnixStream::pair().unwrap();
        let (chardevs, host) = make();
        *host.passed.lock() = Some(a.into());
        chardevs
            .add(&Chardev::new("c", ChardevKind::Socket(socket(SocketAddress::fd("mon"), false))))
            .await
            .unwrap();
        let front = Front::new(100);
        let port = chardevs.claim("c").unwrap();
        port.connect(&front);
        let passed = tempfile::tempfile().unwrap();
        let fds = [passed.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let message = [std::io::IoSlice::new(b"getfd")];
        rustix::net::sendmsg(&b, &message, &mut control, rustix::net::SendFlags::empty()).unwrap();
        until(|| front.text() == "getfd").await;
        let got = front.fds.lock();
        assert_eq!(got.len(), 1);
        assert_ne!(got[0].as_raw_fd(), passed.as_raw_fd());
        drop(got);
        drop(b);
        until(|| *front.events.lock() == [Event::Opened, Event::Closed]).await;
    });
}

#[test]
fn tcp_with_telnet() {
    run(async {
        let (chardevs, _) = make();
        let mut spec = socket(SocketAddress::inet("127.0.0.1", 0), true);
        spec.telnet = true;
        chardevs.add(&Chardev::new("t", ChardevKind::Socket(spec))).await.unwrap();
        let name = filename(&chardevs, "t");
        let place = name.strip_prefix("disconnected:telnet:").unwrap().strip_suffix(",server=on").unwrap();
        let front = Front::new(100);
        let port = chardevs.claim("t").unwrap();
        port.connect(&front);
        let mut client = std::net::TcpStream::connect(place).unwrap();
        client.write_all(b"a\xff\xfd\x01b\xff\xf3\xff\xffc").unwrap();
        let greeting = read_exactly(client.try_clone().unwrap(), 12).await;
        assert_eq!(greeting, telnet::GREETING);
        until(|| *front.got.lock() == b"ab\xffc").await;
        assert!(front.events.lock().contains(&Event::Break));
        assert_eq!(port.write(b"x\xffy"), 3);
        assert_eq!(read_exactly(client.try_clone().unwrap(), 4).await, b"x\xff\xffy");
        let local = client.local_addr().unwrap();
        assert_eq!(filename(&chardevs, "t"), format!("telnet:{place},server=on <-> {local}"));
    });
}

#[test]
fn a_client_connects_again() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_string();
        let (chardevs, _) = make();
        let mut spec = socket(SocketAddress::unix(&path), false);
        let refused = chardevs.add(&Chardev::new("c", ChardevKind::Socket(spec.clone()))).await.unwrap_err();
        assert_eq!(refused.text, format!("Failed to connect to '{path}': No such file or directory"));
        assert!(chardevs.query().is_empty());
        spec.reconnect = 1;
        chardevs.add(&Chardev::new("c", ChardevKind::Socket(spec))).await.unwrap();
        let front = Front::new(100);
        let port = chardevs.claim("c").unwrap();
        port.connect(&front);
        let listener = UnixListener::bind(&path).unwrap();
        for round in 1..3 {
            let accepting = listener.try_clone().unwrap();
            let (mut peer, _) =
                tokio::task::spawn_blocking(move || accepting.accept()).await.unwrap().unwrap();
            peer.write_all(b"hi").unwrap();
            until(|| front.text().len() == 2 * round).await;
        }
    });
}

#[test]
fn waiting_servers_say_so() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_string();
        let (chardevs, host) = make();
        let mut spec = socket(SocketAddress::unix(&path), true);
        spec.wait = true;
        let device = Chardev::new("w", ChardevKind::Socket(spec));
        let mut adding = std::pin::pin!(chardevs.add(&device));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut adding).await;
        assert!(early.is_err());
        assert_eq!(
            *host.said.lock(),
            [format!("QEMU waiting for connection on: disconnected:unix:{path},server=on")]
        );
        let _client = UnixStream::connect(&path).unwrap();
        adding.await.unwrap();
    });
}

#[test]
fn pty_opens_and_closes() {
    run(async {
        let (chardevs, _) = make();
        let path = chardevs.add(&Chardev::new("p", ChardevKind::Pty)).await.unwrap().pty.unwrap();
        assert_eq!(filename(&chardevs, "p"), format!("pty:{path}"));
        let front = Front::new(1000);
        let port = chardevs.claim("p").unwrap();
        port.connect(&front);
        for round in 1..3 {
            let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            until(|| port.is_open()).await;
            terminal.write_all(b"\x01\x03line\r").unwrap();
            until(|| front.got.lock().len() == 7 * round).await;
            assert_eq!(port.write(b"out\n"), 4);
            assert_eq!(read_exactly(terminal.try_clone().unwrap(), 4).await, b"out\n");
            drop(terminal);
            until(|| !port.is_open()).await;
        }
        assert_eq!(*front.events.lock(), [Event::Opened, Event::Closed].repeat(2));
    });
}

#[test]
fn files_logs_and_descriptor_sets() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        std::fs::write(path("in"), "from file").unwrap();
        std::fs::write(path("out"), "old").unwrap();
        let (chardevs, host) = make();
        let file = |out: String, append| ChardevKind::File { out, input: Some(path("in")), append };
        let mut spec = Chardev::new("f", file(path("out"), true));
        spec.log = Some(ChardevLog { file: path("log"), append: false });
        chardevs.add(&spec).await.unwrap();
        let front = Front::new(100);
        let port = chardevs.claim("f").unwrap();
        port.connect(&front);
        assert_eq!(port.write(b" new"), 4);
        until(|| front.text() == "from file").await;
        until(|| front.events.lock().len() == 2).await;
        assert_eq!(*front.events.lock(), [Event::Opened, Event::Closed]);
        assert_eq!(front.early.load(Ordering::SeqCst), 0, "input of nobody");
        assert_eq!(std::fs::read_to_string(path("out")).unwrap(), "old new");
        assert_eq!(std::fs::read_to_string(path("log")).unwrap(), " new");

        let target = std::fs::File::create(path("target")).unwrap();
        host.fds.add(Some(3), target.into(), None);
        let kind = ChardevKind::File { out: "/dev/fdset/3".into(), input: None, append: true };
        chardevs.add(&Chardev::new("s", kind)).await.unwrap();
        let port = chardevs.claim("s").unwrap();
        port.write(b"through a set");
        assert_eq!(std::fs::read_to_string(path("target")).unwrap(), "through a set");
        let kind = ChardevKind::File { out: "/dev/fdset/9".into(), input: None, append: false };
        let error = chardevs.add(&Chardev::new("n", kind)).await.unwrap_err();
        assert_eq!(error.text, "Could not open '/dev/fdset/9': No such file or directory");
    });
}

#[test]
fn pipes_both_ways() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p").to_str().unwrap().to_string();
        for end in [".in", ".out"] {
            let made = std::process::Command::new("mkfifo").arg(format!("{path}{end}")).status().unwrap();
            assert!(made.success());
        }
        let (chardevs, _) = make();
        chardevs.add(&Chardev::new("p", ChardevKind::Pipe { path: path.clone() })).await.unwrap();
        let front = Front::new(100);
        let port = chardevs.claim("p").unwrap();
        port.connect(&front);
        std::fs::OpenOptions::new().write(true).open(format!("{path}.in")).unwrap().write_all(b"in").unwrap();
        until(|| front.text() == "in").await;
        port.write(b"out");
        let out = std::fs::File::open(format!("{path}.out")).unwrap();
        assert_eq!(read_exactly(out, 3).await, b"out");
    });
}

#[test]
fn ring_buffers_keep_characters_whole() {
    run(async {
        let (chardevs, _) = make();
        let ring = |size| Chardev::new("r", ChardevKind::Ringbuf { size });
        let odd = chardevs.add(&ring(100)).await.unwrap_err();
        assert_eq!(odd.text, "size of ringbuf chardev must be power of two");
        chardevs.add(&ring(8)).await.unwrap();
        let port = chardevs.claim("r").unwrap();
        port.write("aé".as_bytes());
        assert_eq!(chardevs.ringbuf_read("r", 2, true).unwrap(), b"a");
        assert_eq!(chardevs.ringbuf_read("r", 99, true).unwrap(), "é".as_bytes());
        chardevs.ringbuf_write("r", "ébcdefgh".as_bytes()).unwrap();
        assert_eq!(chardevs.ringbuf_read("r", 99, true).unwrap(), b"bcdefgh");
        let text = |r: Result<Vec<u8>>| r.unwrap_err().text;
        assert_eq!(text(chardevs.ringbuf_read("r", 0, true)), "size must be greater than zero");
        assert_eq!(text(chardevs.ringbuf_read("x", 1, true)), "Device 'x' not found");
        chardevs.add(&Chardev::new("n", ChardevKind::Null)).await.unwrap();
        assert_eq!(text(chardevs.ringbuf_read("n", 1, true)), "n is not a ringbuf device");
    });
}

#[test]
fn a_multiplexer_switches_its_input() {
    run(async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let (chardevs, host) = make();
        *host.passed.lock() = Some(a.into());
        let kind = ChardevKind::Socket(socket(SocketAddress::fd(7), false));
        chardevs.add(&Chardev { mux: true, ..Chardev::new("m", kind) }).await.unwrap();
        let names: Vec<_> = chardevs.query().into_iter().map(|i| i.label).collect();
        assert_eq!(names, ["m-base", "m"]);
        let (monitor, console) = (Front::new(100), Front::new(3));
        let to_monitor = chardevs.claim("m").unwrap();
        to_monitor.connect(&monitor);
        let to_console = chardevs.claim("m").unwrap();
        to_console.connect(&console);
        until(|| console.events.lock().contains(&Event::MuxIn)).await;
        b.write_all(b"abcdef\x01cinfo\x01\x01\x01b\x01x").unwrap();
        until(|| !host.escapes.lock().is_empty()).await;
        assert_eq!(console.text(), "abc");
        assert_eq!(monitor.text(), "info\x01");
        assert_eq!(*console.events.lock(), [Event::MuxIn, Event::Opened, Event::MuxOut]);
        assert_eq!(*monitor.events.lock(), [Event::MuxOut, Event::Opened, Event::MuxIn, Event::Break]);
        assert_eq!(*host.escapes.lock(), [Escape::Quit]);
        to_monitor.write(b"1");
        to_console.write(b"2");
        let out = read_exactly(b, 20).await;
        assert_eq!(out, b"QEMU: Terminated\n\r12");
        let twice = Chardev::new("mm", ChardevKind::Mux { chardev: "nope".into() });
        assert_eq!(chardevs.add(&twice).await.unwrap_err().text, "mux: base chardev nope not found");
    });
}

#[test]
fn udp_datagrams() {
    run(async {
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = SocketAddress::inet("127.0.0.1", other.local_addr().unwrap().port());
        let (chardevs, _) = make();
        chardevs.add(&Chardev::new("u", ChardevKind::Udp { remote, local: None })).await.unwrap();
        let front = Front::new(2);
        let port = chardevs.claim("u").unwrap();
        port.connect(&front);
        port.write(b"ping");
        let mut buf = [0; 10];
        let (n, from) = other.recv_from(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"ping");
        other.send_to(b"pong", from).unwrap();
        until(|| front.text() == "po").await;
        front.room.store(2, Ordering::SeqCst);
        port.accept_input();
        until(|| front.text() == "pong").await;
    });
}
