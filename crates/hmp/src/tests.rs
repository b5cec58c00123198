//! The monitor over a stopped PC whose firmware is made here.

use crate::*;
use base::fd::{FdSets, Inherited};
use base::notice::Notices;
use control::{Identity, World};
use machine::Host;
use spec::chardev::ChardevSocket;
use spec::{Chardev, ChardevKind, SocketAddress};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> base::Result<OwnedFd> {
        Err(base::fail!("no descriptor {name}"))
    }
    fn open_fdset(&self, _: u64, _: rustix::fs::OFlags) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, _text: &str) {}
    fn escape(&self, _what: chardev::Escape) {}
}

fn control(kind: spec::MachineKind, bios: Option<String>) -> Control {
    let notices = Notices::new();
    let clocks = machine::clocks(false);
    let host = Host::new(
        notices,
        chardev::Chardevs::new(tokio::runtime::Handle::current(), Arc::new(NoHost)),
        FdSets::new(),
        clocks,
    );
    let mut spec = spec::MachineSpec {
        kind,
        name: Some("inn".into()),
        uuid: Some(*b"0123456789abcdef"),
        start_stopped: true,
        nodefaults: true,
        accels: vec![spec::Accel { name: "interpreter".into(), options: spec::Tree::new() }],
        ..spec::MachineSpec::default()
    };
    spec.smp = spec::machine::Smp { cpus: 2, maxcpus: 2, cores: 2, ..Default::default() };
    spec.boot.bios = bios;
    let machine = machine::build(spec, &host).unwrap();
    Control::new(World {
        identity: Identity::default(),
        host,
        machine,
        fdsets: FdSets::new(),
        inherited: Arc::new(Inherited::default()),
        trace: trace::Points::new(),
        options: Vec::new(),
        human_monitor: Some(human_monitor()),
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("test hangs") });
}

/// 64 KiB of HLT, with a far jump at the reset vector.
fn firmware(dir: &std::path::Path) -> String {
    let mut image = vec![0xf4u8; 65536];
    image[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0xe0, 0x00, 0xf0]);
    image[0x100..0x105].copy_from_slice(b"ab'\\\n");
    let path = dir.join("bios.bin");
    std::fs::write(&path, image).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn commands_on_a_pc() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let s = Session::new(control(spec::MachineKind::Pc, Some(firmware(dir.path()))), 0);
        assert_eq!(s.run("info status").await, "VM status: paused (prelaunch)\n");
        assert_eq!(s.run("info name").await, "inn\n");
        assert_eq!(s.run("info uuid").await, "30313233-3435-3637-3839-616263646566\n");
        assert!(s.run("info version").await.starts_with("7.2.0 (Ryokan "));
        assert_eq!(s.run("info kvm").await.lines().count(), 1);

        let cpus = s.run("info cpus").await;
        assert!(
            cpus.starts_with("* CPU #0: thread_id=") && cpus.contains("\n  CPU #1: thread_id="),
            "{cpus}"
        );
        assert_eq!(s.run("cpu 1").await, "");
        assert!(s.run("info cpus").await.contains("\n* CPU #1:"));
        assert_eq!(s.run("cpu 2").await, "invalid CPU index\n");
        s.run("cpu 0").await;

        let registers = s.run("info registers").await;
        for line in [
            "CPU#0",
            "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0",
            "CS =f000 ffff0000 0000ffff 00009b00",
            "GDT=     00000000 0000ffff",
            "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000",
            "DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 ",
            "DR6=00000000ffff0ff0 DR7=0000000000000400",
            "EFER=0000000000000000",
            "FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80",
        ] {
            assert!(registers.lines().any(|l| l == line), "{line}\n{registers}");
        }
        assert!(s.run("info registers -a").await.contains("\nCPU#1\n"));
        assert_eq!(s.run("info registers 7").await, "CPU#7 not available\n");
        assert_eq!(s.run("print $eip + $cs.base").await, "0xfffffff0\n");
        assert_eq!(s.run("p /d -5").await, "-5\n");

        assert_eq!(s.run("xp /5xb 0xfffffff0").await, "00000000fffffff0: 0xea 0x00 0xe0 0x00 0xf0\n");
        assert_eq!(s.run("xp /2hx 0xfffffff0").await, "00000000fffffff0: 0x00ea 0x00e0\n");
        assert_eq!(s.run("xp /5c 0xffff0100").await, "00000000ffff0100: 'a' 'b' '\\'' '\\\\' '\\n'\n");
        assert_eq!(s.run("xp /2dw 0xfffffff8").await, "00000000fffffff8: -185273100 -185273100\n");
        assert_eq!(s.run("xp /1ow 0x100").await, "0000000000000100:           0\n");
        assert_eq!(s.run("x /xg 0").await.len(), "0000000000000000: 0x0000000000000000\n".len());
        let code = s.run("x /2i $cs.base + $eip").await;
        assert!(code.starts_with("0xfffffff0:  ea 00 e0 00 f0           jmp"), "{code}");
        let endless = s.run("xp /4000000000xb 0").await;
        assert!(endless.len() < 5 << 20 && endless.ends_with("(output is cut off here)\n"));

        assert_eq!(s.run("info mem").await, "PG disabled\n");
        assert_eq!(s.run("info tlb").await, "PG disabled\n");
        let mtree = s.run("info mtree -f").await;
        assert!(mtree.contains("AS \"memory\"") && mtree.contains("(prio 0, ram)"), "{mtree}");
        assert!(s.run("info mtree").await.contains("address-space: I/O"));
        let pci = s.run("info pci").await;
        assert!(
            pci.starts_with("  Bus  0, device   0, function 0:\n    Host bridge: PCI device 8086:1237\n"),
            "{pci}"
        );
        let qtree = s.run("info qtree").await;
        assert!(qtree.contains("bus: pci.0\n"), "{qtree}");
        assert!(s.run("info qom-tree").await.starts_with("/machine ("));
        assert!(s.run("info pic").await.contains("pic0"), "{}", s.run("info pic").await);
        assert!(s.run("info roms").await.contains("addr="));

        assert_eq!(s.run("o /b 0x70 0x0f").await, "");
        assert!(s.run("i /b 0x71").await.starts_with("portb[0x0071] = 0x"));
        assert!(s.run("sum 0xffff0000 16").await.trim().parse::<u32>().is_ok());
        let file = dir.path().join("dump");
        assert_eq!(s.run(&format!("pmemsave 0xfffffff0 5 \"{}\"", file.display())).await, "");
        assert_eq!(std::fs::read(&file).unwrap(), [0xea, 0x00, 0xe0, 0x00, 0xf0]);
        s.machine().tear_down();
    });
}

#[test]
fn mistakes() {
    run(async {
        let s = Session::new(control(spec::MachineKind::None, None), 0);
        for (line, text) in [
            ("frobnicate", "unknown command: 'frobnicate'\n"),
            ("info frobnicate now", "unknown command: 'info frobnicate'\n"),
            (
                "stop now",
                "stop: extraneous characters at the end of line\nTry \"help stop\" for more information\n",
            ),
            ("cpu", "cpu: unexpected end of expression\nTry \"help cpu\" for more information\n"),
            ("memsave 0 1", "memsave: filename expected\nTry \"help memsave\" for more information\n"),
            ("info block -z", "block: unsupported option -z\nTry \"help info block\" for more information\n"),
            ("x /q 0", "x: invalid char in format: 'q'\nTry \"help x\" for more information\n"),
            ("print $nosuch", "print: No CPU available\nTry \"help print\" for more information\n"),
            ("info registers", "No CPU available\n"),
            ("log nonsense", "Error: 'nonsense' is not a log item\nTry \"help log\" for more information\n"),
            ("chardev-remove nope", "Error: Chardev 'nope' not found\n"),
            ("qom-get /nope x", "Error: Device '/nope' not found\n"),
            ("info pci", "PCI not supported\n"),
            ("", ""),
        ] {
            assert_eq!(s.run(line).await, text, "{line}");
        }
        assert_eq!(s.run("help quit").await, "quit|q -- end the emulator\n");
        assert_eq!(s.run("help info status").await, "info status -- whether the machine runs\n");
        let all = s.run("help").await;
        for doc in docs().0 {
            assert!(all.lines().any(|l| l.starts_with(doc.name)), "{}", doc.name);
        }
        assert_eq!(s.run("info").await, s.run("help info").await);
    });
}

#[test]
fn a_terminal() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hmp").to_str().unwrap().to_string();
        let control = control(spec::MachineKind::None, None);
        let socket = ChardevSocket {
            addr: SocketAddress::unix(&path),
            server: true,
            wait: false,
            nodelay: false,
            telnet: false,
            reconnect: 0,
        };
        let chardevs = control.world().host.chardevs.clone();
        chardevs.add(&Chardev::new("m", ChardevKind::Socket(socket))).await.unwrap();
        let monitor = HmpPort::open(&control, "m").unwrap();
        let client = move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(b"info name\ninfo history\nq\n").unwrap();
            let mut text = Vec::new();
            let mut buf = [0; 4096];
            while !text.ends_with(b"q\x1b[K\r\n") {
                let n = stream.read(&mut buf).unwrap();
                assert!(n > 0);
                text.extend(&buf[..n]);
            }
            String::from_utf8(text).unwrap()
        };
        let text = tokio::task::spawn_blocking(client).await.unwrap();
        assert!(text.starts_with(
            "QEMU 7.2.0 monitor - type 'help' for more information\r\n(qemu) i\x1b[K\x1b[Din\x1b[K\x1b[D\x1b[Dinf\x1b[K"
        ));
        let plain = text.replace("\x1b[K", "").replace("\x1b[D", "");
        assert!(plain.contains("info name\r\ninn\r\n(qemu) "), "{plain}");
        assert!(
            plain.contains("info history\r\n0: 'info name'\r\n1: 'info history'\r\n(qemu) q\r\n"),
            "{plain}"
        );
        assert!(monitor.is_flushed());
    });
}
