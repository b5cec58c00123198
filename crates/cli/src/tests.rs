use crate::*;
use serde_json::json;
use spec::invocation::*;
use spec::machine::*;
use spec::{ChardevKind, SocketAddress};

/// Splits at blanks, which the tests' values do not contain; `_` stands for one.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_string).collect()
}

fn run(line: &str) -> Invocation {
    match parse(words(line)) {
        Ok(Parsed::Run(inv)) => *inv,
        other => panic!("{line}: {other:?}"),
    }
}

fn asked(line: &str) -> Help {
    match parse(words(line)) {
        Ok(Parsed::Help(help)) => help,
        other => panic!("{line}: {other:?}"),
    }
}

/// The message without and with its hint.
fn complaint(line: &str) -> String {
    format!("q: {}", parse(words(line)).expect_err(line).message())
}

#[test]
fn libvirt_probing() {
    let inv = run("-S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg \
         -qmp unix:/tmp/qmp.monitor,server=on,wait=off -pidfile /tmp/qmp.pid -daemonize");
    assert_eq!((inv.machine.kind, inv.machine.start_stopped, inv.daemonize), (MachineKind::None, true, true));
    let names: Vec<_> = inv.machine.accels.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["kvm", "tcg"]);
    assert_eq!(inv.pidfile.as_deref(), Some("/tmp/qmp.pid"));
    let ChardevKind::Socket(socket) = &inv.chardevs[0].kind else { panic!() };
    assert_eq!(
        (&socket.addr, socket.server, socket.wait),
        (&SocketAddress::unix("/tmp/qmp.monitor"), true, false)
    );
    assert_eq!(inv.monitors[0].mode, MonitorMode::Control { pretty: false });
    assert_eq!(inv.monitors[0].chardev, "compat_monitor0");
    assert!(inv.machine.serials.is_empty());
    assert_eq!(json!(inv.machine.options), json!({"graphics": "off"}));
}

#[test]
fn libvirt_domain() {
    let line = r#"-name guest=d1,debug-threads=on -S
        -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/x"}
        -machine pc-i440fx-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram -accel tcg -cpu qemu64 -m 256
        -overcommit mem-lock=off -smp 1,maxcpus=2,sockets=2,cores=1,threads=1
        -uuid c7a5fdbd-cdaf-9455-926a-d65c16db1809 -no-user-config -nodefaults
        -chardev socket,id=charmonitor,fd=29,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control
        -rtc base=utc,driftfix=slew -no-shutdown -boot strict=on -kernel K -initrd I -append A
        -device {"driver":"virtio-serial-pci","id":"virtio-serial0","bus":"pci.0","addr":"0x4"}
        -blockdev {"node-name":"f","read-only":false,'driver':'qcow2',"file":"s","backing":null}
        -add-fd set=0,fd=27,opaque=serial0-source -chardev file,id=charserial0,path=/dev/fdset/0,append=on
        -device {"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}
        -chardev pty,id=p,logfile=/dev/fdset/0,logappend=on -audiodev {"id":"audio1","driver":"none"}
        -global ICH9-LPC.disable_s3=1 -no-hpet -sandbox off -msg timestamp=on"#;
    let inv = run(line);
    let m = &inv.machine;
    assert_eq!(m.name.as_deref(), Some("d1"));
    assert_eq!(m.type_name, "pc-i440fx-7.2");
    assert_eq!(
        json!(m.options),
        json!({"usb": "off", "dump-guest-core": "off", "memory-backend": "pc.ram", "hpet": "off"})
    );
    assert_eq!(m.memory.size, 256 << 20);
    assert_eq!(m.smp, Smp { cpus: 1, maxcpus: 2, sockets: 2, dies: 1, cores: 1, threads: 1 });
    assert_eq!(m.uuid.unwrap()[..4], [0xc7, 0xa5, 0xfd, 0xbd]);
    assert!(
        m.rtc.slew
            && m.boot.strict
            && m.actions.shutdown_pauses
            && inv.message.timestamp
            && inv.debug_threads
    );
    assert_eq!(m.boot.append.as_deref(), Some("A"));
    assert_eq!(
        json!(m.devices[1]),
        json!({"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0})
    );
    assert_eq!(m.blockdevs[0].tree["backing"], json!(null));
    assert_eq!(inv.monitors[0].id.as_deref(), Some("monitor"));
    assert_eq!(inv.add_fds, [AddFd { fd: 27, set: 0, opaque: Some("serial0-source".into()) }]);
    let file = ChardevKind::File { out: "/dev/fdset/0".into(), input: None, append: true };
    assert_eq!(inv.chardevs[1].kind, file);
    assert!(inv.chardevs[2].log.as_ref().unwrap().append);
    assert_eq!(m.globals, [("ICH9-LPC".into(), "disable_s3".into(), "1".into())]);
}

#[test]
fn block_suites() {
    let inv = run(
        "-display none -vga none -chardev socket,id=mon,path=/s -mon chardev=mon,mode=control -qtest unix:path=/s2 \
         -accel qtest -nodefaults -display none -accel qtest -drive if=virtio,id=drive0,file=a,,b.qcow2,format=qcow2,\
readonly,throttling.iops-total=5,file.driver=blkdebug -device virtio-scsi,id=s -set drive.drive0.cache=none",
    );
    assert_eq!(inv.machine.accels.len(), 1);
    assert_eq!(inv.qtest.as_deref(), Some("qtest"));
    let qtest = inv.chardevs.iter().find(|chardev| chardev.id == "qtest").unwrap();
    let ChardevKind::Socket(socket) = &qtest.kind else { panic!("{qtest:?}") };
    assert_eq!(json!(socket.addr)["path"], "/s2");
    assert_eq!(
        json!(inv.machine.drives[0]),
        json!({"if": "virtio", "id": "drive0", "file": "a,b.qcow2", "format": "qcow2", "readonly": "on",
               "throttling.iops-total": "5", "file.driver": "blkdebug", "cache": "none"})
    );
    let inv =
        run("-nodefaults -display none -accel qtest -nographic -serial none -monitor none -qmp-pretty stdio");
    assert_eq!(inv.machine.serials, [None]);
    assert_eq!(inv.monitors.len(), 1);
    assert_eq!(inv.monitors[0].mode, MonitorMode::Control { pretty: true });
    let inv = run("-nodefaults -hda foo:bar -fda f -snapshot disk.img -cdrom cd.iso");
    assert_eq!(
        json!(inv.machine.drives[0]),
        json!({"index":"0","media":"disk","file":"foo:bar","snapshot":"on"})
    );
    assert_eq!(inv.places.drives, ["-hda foo:bar", "-fda f", "disk.img", "-cdrom cd.iso"]);
    assert_eq!(inv.machine.drives[3]["index"], "2");
    let inv = run("-nodefaults -hdc x -hdd y");
    assert_eq!(
        (&inv.machine.drives[0]["index"], &inv.machine.drives[1]["index"]),
        (&json!("2"), &json!("3"))
    );
}

#[test]
fn block_trees() {
    let inv = run(
        "-nodefaults -blockdev quorum,node-name=q,children.0=a,children.1.driver=null-co,vote-threshold=1",
    );
    assert_eq!(
        json!(inv.machine.blockdevs[0].tree),
        json!({"driver":"quorum","node-name":"q","children":["a",{"driver":"null-co"}],"vote-threshold":"1"})
    );
    for (value, text) in [
        ("driver=x,a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("driver=x,a.1=2", "Parameter 'a.0' missing"),
        ("driver=x,y", "Expected '=' after parameter 'y'"),
        ("driver=x,a..b=2", "Invalid parameter 'a..b'"),
        ("node-name=x", "Parameter 'driver' is missing"),
    ] {
        let got = complaint(&format!("-blockdev {value}"));
        assert_eq!(got, format!("q: -blockdev {value}: {text}"));
    }
    assert!(complaint("-blockdev {\"driver\":").contains("JSON parse error"));
}

#[test]
fn launchers() {
    // labgrid: QMP has the terminal.
    let inv = run("-kernel K -machine q35 -cpu max -m 256M -nographic -nic none -append A -S -qmp stdio \
         -chardev socket,id=serialsocket,path=P -serial chardev:serialsocket");
    assert_eq!(inv.machine.kind, MachineKind::Q35);
    assert_eq!(inv.machine.serials, [Some("serialsocket".to_string())]);
    assert_eq!(inv.monitors.len(), 1);
    // A person at a terminal.
    for line in ["-nographic disk.img", "disk.img"] {
        let inv = run(line);
        let mux = inv.chardevs.iter().find(|c| c.id == "serial0").unwrap();
        assert_eq!((&mux.kind, mux.mux), (&ChardevKind::Stdio { signal: false }, true));
        assert_eq!(inv.monitors[0].chardev, "serial0");
        assert_eq!(inv.machine.serials, [Some("serial0".to_string())]);
    }
    assert_eq!(run("-display none").chardevs[0].kind, ChardevKind::Null);
    let inv = run("-s -monitor telnet:[::1]:4444,server,nowait -serial udp::5555@:6666 -nodefaults");
    let ChardevKind::Socket(monitor) = &inv.chardevs[0].kind else { panic!() };
    assert!(monitor.telnet && monitor.server && !monitor.wait);
    assert_eq!(monitor.addr, SocketAddress::inet("::1", 4444));
    let ChardevKind::Udp { remote, local } = &inv.chardevs[1].kind else { panic!() };
    assert_eq!(*remote, SocketAddress::inet("localhost", 5555));
    assert_eq!(*local, Some(SocketAddress::inet("", 6666)));
    let ChardevKind::Socket(gdb) = &inv.chardevs[2].kind else { panic!() };
    assert!(gdb.nodelay && gdb.server && !gdb.wait);
    // The later -machine and -cpu win.
    let inv =
        run("-machine q35,accel=tcg -cpu max -machine type=pc -cpu host -smp 2 -smp cores=2 -nodefaults");
    assert_eq!((inv.machine.type_name.as_str(), inv.machine.cpu.as_deref()), ("pc-i440fx-7.2", Some("host")));
    assert_eq!((inv.machine.smp.cpus, inv.machine.smp.cores), (2, 2));
}

#[test]
fn help_requests() {
    assert_eq!(asked("-machine help"), Help::Machines);
    assert_eq!(asked("-nodefaults -display none -accel qtest -drive format=help"), Help::Formats);
    assert_eq!(asked("-M none -device help"), Help::Devices(None));
    assert_eq!(asked("-device ?"), Help::Devices(None));
    assert_eq!(asked("-device virtio-blk,help"), Help::Devices(Some("virtio-blk".into())));
    assert_eq!(asked("-object iothread,help"), Help::Objects(Some("iothread".into())));
    assert_eq!(asked("-object help"), Help::Objects(None));
    assert_eq!(asked("-cpu help"), Help::Cpus);
    assert_eq!(asked("-chardev help"), Help::Chardevs);
    assert_eq!(asked("--version -nonsense"), Help::Version);
    assert_eq!(asked("-M q35,help"), Help::Group("machine"));
    let machines = help::machines();
    assert!(machines.lines().any(|l| l.starts_with("pc-i440fx-7.2 ") && l.ends_with("(default)")));
    assert!(machines.contains("(alias of pc-i440fx-7.2)"));
    let usage = help::usage("ryokan", "0.1.0");
    for option in options::all() {
        assert!(usage.contains(&format!("-{}", option.name)), "{}", option.name);
    }
    assert!(usage.lines().all(|l| l.len() <= 110), "{usage}");
}

#[test]
fn errors_name_what_is_wrong() {
    for (line, text) in [
        ("-dirve x", "q: -dirve: invalid option\nDid you mean -drive?"),
        ("-m", "q: -m: requires an argument"),
        ("-incoming defer", "q: -incoming: incoming migration is not supported by Ryokan yet"),
        (
            "-chardev null,id=a,sever=on",
            "q: -chardev null,id=a,sever=on: Invalid parameter 'sever'\nDid you mean 'server'?",
        ),
        (
            "-chardev null,id=a,path=x",
            "q: -chardev null,id=a,path=x: Parameter 'path' does not belong to chardev kind 'null'",
        ),
        ("-chardev socket,id=a", "q: -chardev socket,id=a: chardev: socket: no path, host or fd given"),
        (
            "-chardev sokcet,id=a,path=x",
            "q: -chardev sokcet,id=a,path=x: 'sokcet' is not a valid char driver name\nDid you mean 'socket'?",
        ),
        ("-mon chardev=x", "q: -mon chardev=x: chardev \"x\" not found"),
        (
            "-drive file=x,snapshot=maybe",
            "q: -drive file=x,snapshot=maybe: Parameter 'snapshot' expects 'on' or 'off'",
        ),
        ("-drive id=a -drive id=a", "q: -drive id=a: Duplicate ID 'a' for drive"),
        ("-set drive.d.x=1", "q: -set drive.d.x=1: there is no drive \"d\" defined"),
        (
            "-machine fancy",
            "q: -machine fancy: unsupported machine type: \"fancy\"\nUse -machine help to list supported machines",
        ),
        ("-machine pc,usb=on", "q: -machine pc,usb=on: usb=on is not supported by Ryokan (possible: 'off')"),
        (
            "-accel fast",
            "q: -accel fast: invalid accelerator fast\nUse -accel help to list supported accelerators",
        ),
        ("-uuid 123", "q: -uuid 123: failed to parse UUID string: wrong format"),
        ("-boot order=cz", "q: -boot order=cz: Invalid boot device 'z'"),
        ("-boot order=cc", "q: -boot order=cc: Boot device 'c' was given twice"),
        ("-append x", "q: -append only allowed with -kernel option"),
        ("-add-fd fd=2,set=1", "q: -add-fd fd=2,set=1: fd cannot be a standard I/O stream"),
        ("-nographic -daemonize", "q: -nographic cannot be used with -daemonize"),
        (
            "-rtc base=tomorrow",
            "q: -rtc base=tomorrow: invalid datetime format\nvalid formats: '2006-06-17T16:01:21' or '2006-06-17'",
        ),
        ("-vnc :1", "q: -vnc :1: Ryokan has no VNC server yet: only 'none' is possible"),
        ("-action panic=party", "q: -action panic=party: Parameter 'panic' does not accept value 'party'"),
        ("-device id=x", "q: -device id=x: Parameter 'driver' is missing"),
        (
            "-m 1x",
            "q: -m 1x: Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.",
        ),
        (
            "-smp 4,sockets=3",
            "q: -smp 4,sockets=3: Invalid CPU topology: product of the hierarchy must match maxcpus: sockets (3) * dies (1) * cores (1) * threads (1) != maxcpus (4)",
        ),
        ("-smp 0", "q: -smp 0: Invalid CPU topology: CPU topology parameters must be greater than zero"),
        (
            "-readconfig /nonexistent",
            "q: -readconfig /nonexistent: Cannot read config file /nonexistent: No such file or directory",
        ),
    ] {
        assert_eq!(complaint(line), text);
    }
}

#[test]
fn numbers_and_dates() {
    assert_eq!(run("-m size=1.5G -nodefaults").machine.memory.size, 3 << 29);
    assert_eq!(run("-m 262144k -nodefaults").machine.memory.size, 256 << 20);
    assert_eq!(run("-rtc base=2020-02-29T12:00:01").machine.rtc.base, RtcBase::Date(1_582_977_601));
    assert_eq!(run("-rtc base=1970-01-01").machine.rtc.base, RtcBase::Date(0));
    assert!(complaint("-rtc base=2021-02-29").contains("invalid datetime"));
    assert_eq!(run("-no-reboot -watchdog-action none").machine.actions.watchdog, WatchdogChoice::None);
}

#[test]
fn repeated_keys_are_lists_where_the_option_says_so() {
    let inv = run("-nodefaults -smbios type=11,value=a,value=b,value=c -numa node,cpus=0,cpus=2-3,nodeid=0");
    assert_eq!(json!(inv.machine.smbios[0]), json!({"type": "11", "value": ["a", "b", "c"]}));
    assert_eq!(json!(inv.machine.numa[0]), json!({"type": "node", "cpus": ["0", "2-3"], "nodeid": "0"}));
}

#[test]
fn configuration_files() {
    let dir = std::env::temp_dir().join(format!("ryokan-cli-{}", std::process::id()));
    let text = "# a comment\n[machine]\n  type = \"q35\"\n\n[drive \"d0\"]\n  file = \"a,b.img\"\n  if = \"none\"\n\
                [device]\n  driver = \"virtio-blk-pci\"\n  drive = \"d0\"\n[memory]\n  size = \"1G\"\n";
    std::fs::write(&dir, text).unwrap();
    let inv = run(&format!("-nodefaults -readconfig {}", dir.display()));
    assert_eq!(inv.machine.kind, MachineKind::Q35);
    assert_eq!(json!(inv.machine.drives), json!([{"id": "d0", "file": "a,b.img", "if": "none"}]));
    assert_eq!(inv.machine.devices[0]["driver"], "virtio-blk-pci");
    assert_eq!(inv.machine.memory.size, 1 << 30);
    std::fs::write(&dir, "[drive]\nfoo\n").unwrap();
    assert!(complaint(&format!("-readconfig {}", dir.display())).ends_with(": 2: parse error"));
    std::fs::write(&dir, "[dirve]\nfoo=\"1\"\n").unwrap();
    assert!(
        complaint(&format!("-readconfig {}", dir.display()))
            .ends_with(":1: There is no option group 'dirve'")
    );
    std::fs::remove_file(&dir).unwrap();
}

#[test]
fn one_table() {
    let mut names: Vec<_> =
        options::all().flat_map(|o| std::iter::once(o.name).chain(o.aliases.iter().copied())).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "an option stands twice");
    let listed = query::options();
    for option in options::all() {
        let Some(group) = option.group else { continue };
        if group.name != "audiodev" {
            assert!(listed.iter().any(|o| o.option == group.name), "{}", group.name);
        }
    }
    let machine = listed.iter().find(|o| o.option == "machine").unwrap();
    assert!(machine.parameters.iter().any(|p| p.name == "hpet" && p.kind == Kind::Bool));
}
