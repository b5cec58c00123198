//! What the command line asks of the process and of the board, seen from outside.

use serde_json::{Value, json};
use std::io::{Seek, Write};
use std::process::Command;
use testkit::Vm;
use testkit::bench::SOON;
use testkit::vm::binary;

/// Starts a machine without guest.
#[track_caller]
fn start(args: &[&str]) -> Vm {
    let mut all = vec!["-nodefaults", "-display", "none"];
    all.extend(args);
    Vm::start_plain(&all).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Starts what must end at once with an error; what it wrote to standard error.
#[track_caller]
fn refused(args: &[&str]) -> String {
    let mut limited = Command::new("timeout");
    limited.arg(SOON.as_secs().to_string()).arg(binary()).args(["-nodefaults", "-display", "none"]);
    let ended = limited.args(args).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{args:?}");
    String::from_utf8(ended.stderr).unwrap()
}

/// A byte of the CMOS memory.
#[track_caller]
fn cmos(vm: &mut Vm, index: u8) -> u8 {
    vm.qmp.hmp(&format!("o /b 0x70 {index}")).unwrap();
    let said = vm.qmp.hmp("i /b 0x71").unwrap();
    let value = said.trim().rsplit("0x").next().and_then(|hex| u8::from_str_radix(hex, 16).ok());
    value.unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn the_boot_order_for_once_ends_with_the_second_reset() {
    let mut vm = start(&["-S", "-boot", "order=dc,once=n"]);
    assert_eq!((cmos(&mut vm, 0x3d), cmos(&mut vm, 0x38)), (0x04, 0x00));
    vm.qmp.execute("system_reset", Value::Null).unwrap();
    assert_eq!((cmos(&mut vm, 0x3d), cmos(&mut vm, 0x38)), (0x23, 0x00));
    vm.qmp.execute("system_reset", Value::Null).unwrap();
    assert_eq!(cmos(&mut vm, 0x3d), 0x23);
    let mut vm = start(&["-S", "-no-fd-bootchk"]);
    assert_eq!((cmos(&mut vm, 0x3d), cmos(&mut vm, 0x38)), (0x12, 0x31));
}

#[test]
fn every_spelling_of_a_switch_counts() {
    for off in ["off", "no", "false", "n"] {
        let mut vm = start(&["-S", "-M", &format!("pc,acpi={off},hpet={off}")]);
        let told = vm.qmp.execute("query-current-machine", Value::Null).unwrap();
        assert_eq!(told["wakeup-suspend-support"], json!(false), "{off}");
        // Where the HPET would say what it is.
        let there = vm.qmp.hmp("xp /1wx 0xfed00000").unwrap();
        assert!(!there.contains("0x8086a201"), "{off}: {there}");
    }
    let mut vm = start(&["-S", "-M", "pc,acpi=yes,hpet=yes"]);
    let told = vm.qmp.execute("query-current-machine", Value::Null).unwrap();
    assert_eq!(told["wakeup-suspend-support"], json!(true));
    assert!(vm.qmp.hmp("xp /1wx 0xfed00000").unwrap().contains("0x8086a201"));
}

#[test]
fn guest_memory_stays_out_of_core_dumps_when_asked() {
    // Flags of mappings of the guest's size: "dd" is "do not dump", "mg" is "mergeable".
    let flags = |vm: &Vm| {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", vm.pid())).unwrap();
        let mut all = Vec::new();
        let mut large = false;
        for line in maps.lines() {
            if let Some(size) = line.strip_prefix("Size:") {
                large = size.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()) >= Some(190 << 10);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| large) {
                all.push(flags.split_whitespace().map(str::to_string).collect::<Vec<_>>());
            }
        }
        all
    };
    let has = |vm: &Vm, flag: &str| flags(vm).iter().any(|all| all.iter().any(|one| one == flag));
    let common = ["-S", "-accel", "qtest", "-m", "190", "-M"];
    let plain = start(&[&common[..], &["pc"]].concat());
    assert!(!flags(&plain).is_empty());
    assert!(!has(&plain, "dd") && !has(&plain, "mg"));
    let asked = start(&[&common[..], &["pc,dump-guest-core=off,mem-merge=on"]].concat());
    assert!(has(&asked, "dd"));
    // A kernel without KSM refuses; that is no error.
    assert_eq!(has(&asked, "mg"), std::path::Path::new("/sys/kernel/mm/ksm").exists());
}

#[test]
fn messages_begin_as_asked() {
    let said = refused(&["-name", "inn", "-msg", "timestamp=on,guest-name=on", "-device", "nonsense"]);
    let (time, rest) = said.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "{said}");
    assert_eq!(rest, "inn ryokan: -device nonsense: 'nonsense' is not a valid device model name\n");
    let said = refused(&["-name", "inn", "-device", "nonsense"]);
    assert!(said.starts_with("ryokan: -device nonsense: "), "{said}");
}

#[test]
fn globals_that_concern_nothing_are_named() {
    let vm = start(&["-S", "-global", "frob.knob=1", "-global", "virtio-rng-pci.max-bytes=7"]);
    let begin = std::time::Instant::now();
    while vm.errors().is_empty() && begin.elapsed() < SOON {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(vm.errors(), "ryokan: warning: global frob.knob has invalid class name\n");
    let said = refused(&["-S", "-global", "virtio-rng-pci.knob=1"]);
    assert_eq!(said, "ryokan: -global virtio-rng-pci.knob=1: Property 'virtio-rng-pci.knob' not found\n");
}

#[test]
fn a_daemon_tells_what_went_wrong_or_goes_on_alone() {
    let said = refused(&["-S", "-daemonize", "-device", "frob"]);
    assert_eq!(said, "ryokan: -device frob: 'frob' is not a valid device model name\n");
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("pid"), dir.path().join("qmp"));
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let status = Command::new(binary())
        .args(["-nodefaults", "-display", "none", "-S", "-daemonize", "-qmp", &monitor, "-pidfile"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let mut qmp = testkit::Qmp::connect(&socket, SOON).unwrap();
    let told = qmp.execute("query-status", Value::Null).unwrap();
    assert_eq!(told["status"], "prelaunch");
    let pid = std::fs::read_to_string(&file).unwrap();
    let session = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
    assert_eq!(session.rsplit(") ").next().unwrap().split(' ').nth(3), Some(pid.trim()));
    qmp.execute("quit", Value::Null).unwrap();
    let begin = std::time::Instant::now();
    while file.exists() && begin.elapsed() < SOON {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(!file.exists());
}

#[test]
fn a_process_keeps_its_pid_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let path = file.to_str().unwrap();
    let mut vm = start(&["-S", "-pidfile", path]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", vm.pid()));
    let said = refused(&["-S", "-pidfile", path]);
    assert!(said.contains(&format!("-pidfile {path}: cannot create PID file: ")), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", vm.pid()));
    vm.qmp.execute("quit", Value::Null).unwrap();
    assert!(vm.wait(SOON).unwrap().success());
    assert!(!file.exists());
    // One that a crash left behind is nobody's.
    std::fs::write(&file, "123456789\n").unwrap();
    let vm = start(&["-S", "-pidfile", path]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", vm.pid()));
}

#[test]
fn what_is_asked_for_wrongly_is_named() {
    for (args, text) in [
        (&["-M", "pcc"][..], "-M pcc: unsupported machine type: \"pcc\"\nDid you mean 'pc'?"),
        (&["-cpu", "Haswel"], "-cpu Haswel: unable to find CPU model 'Haswel'\nDid you mean 'Haswell'?"),
        (
            &["-boot", "splash-time=65536"],
            "-boot splash-time=65536: splash-time is invalid, it should be a value between 0 and 65535",
        ),
        (
            &["-M", "pc,kernel-irqchip=on"],
            "-M pc,kernel-irqchip=on: kernel-irqchip=on is not supported by Ryokan (possible: 'off')",
        ),
        (
            &["-object", "iothread,id=a", "-object", "iothread,id=a"],
            "-object iothread,id=a: Duplicate ID 'a' for object",
        ),
    ] {
        assert_eq!(refused(args), format!("ryokan: {text}\n"));
    }
}

#[test]
fn a_panic_stops_the_guest_unless_told_otherwise() {
    for (action, status, word) in [(None, "guest-panicked", "pause"), (Some("panic=none"), "running", "run")]
    {
        let mut args = vec!["-device", "pvpanic", "-M", "pc"];
        args.extend(action.into_iter().flat_map(|action| ["-action", action]));
        let mut vm = start(&args);
        vm.qmp.hmp("o /b 0x505 1").unwrap();
        let event = vm.qmp.event("GUEST_PANICKED", SOON).unwrap();
        assert_eq!(event["data"]["action"], json!(word));
        if action.is_none() {
            vm.qmp.event("STOP", SOON).unwrap();
        }
        assert_eq!(vm.qmp.execute("query-status", Value::Null).unwrap()["status"], json!(status));
    }
}

/// A ROM that ends the machine with status 7: header, PCI data (an RNG's), code, checksum.
fn ending_rom() -> Vec<u8> {
    let mut rom = vec![0x55, 0xaa, 1, 0xeb, 0x3b];
    rom.resize(0x18, 0);
    rom.extend([0x20, 0]);
    rom.resize(0x20, 0);
    rom.extend(b"PCIR\xf4\x1a\x05\x10\0\0\x18\0\0\0\0\0\x01\0\0\0\0\x80\0\0");
    rom.resize(0x40, 0);
    // mov dx, 501h; mov al, 3; out dx, al; retf
    rom.extend([0xba, 0x01, 0x05, 0xb0, 3, 0xee, 0xcb]);
    rom.resize(511, 0);
    rom.push(rom.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte)));
    rom
}

#[test]
fn the_firmware_runs_option_roms() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("end.rom");
    std::fs::write(&file, ending_rom()).unwrap();
    let path = file.to_str().unwrap();
    let on_card = format!("virtio-rng-pci,romfile={path}");
    for args in [["-option-rom", path], ["-device", &on_card]] {
        let mut vm = start(&[&["-device", "isa-debug-exit"][..], &args].concat());
        let ended = vm.wait(SOON).unwrap();
        assert_eq!(ended.code(), Some(7), "{args:?}: {}", vm.errors());
    }
}

/// What a start that fails says: the human monitor on its standard output, and the complaint.
#[track_caller]
fn said(dir: &std::path::Path, args: &str) -> (String, String) {
    let mut limited = Command::new("timeout");
    limited.arg(SOON.as_secs().to_string()).arg(binary()).current_dir(dir);
    limited.args(["-nodefaults", "-display", "none", "-accel", "qtest", "-monitor", "stdio"]);
    let ended = limited.args(args.split(' ')).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{args}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(ended.stdout), text(ended.stderr))
}

/// Images in a directory: `v3.qcow2`, `v2.qcow2`, `d.raw`.
fn images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, more) in [("v3.qcow2", &[][..]), ("v2.qcow2", &["-o", "compat=0.10"])] {
        let path = dir.path().join(name).display().to_string();
        testkit::images::tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], more, &[&path, "1M"]].concat());
    }
    std::fs::write(dir.path().join("d.raw"), [0; 65536]).unwrap();
    dir
}

/// The texts are those of QEMU's.
#[test]
fn drives_that_cannot_be_are_refused_before_the_monitor_greets() {
    let dir = images();
    for (args, text) in [
        ("file=v3.qcow2,driver=raw,backing.file.filename=d.raw", "Driver doesn't support backing files"),
        (
            "file=v3.qcow2,file.backing.driver=file,file.backing.filename=d.raw",
            "Driver doesn't support backing files",
        ),
        (
            "file=v2.qcow2,lazy-refcounts=on",
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ),
        ("file.filename=foo:bar", "Could not open 'foo:bar': No such file or directory"),
        ("file=d.raw,iops=-1", "bps/iops/max values must be within [0, 1000000000000000]"),
        ("file=d.raw,bps=10K", "Parameter 'throttling.bps-total' expects a number"),
        (
            "file=v3.qcow2,throttling.foo=1",
            "Block format 'qcow2' does not support the option 'throttling.foo'",
        ),
        ("file=d.raw,aio=foo", "invalid aio option"),
        ("file=d.raw,discard=foo", "Invalid discard option"),
        ("file=d.raw,detect-zeroes=foo", "invalid parameter value: foo"),
        ("file=d.raw,stats-intervals.0=0", "Invalid interval length: 0"),
        ("driver=quorum,vote-threshold=2", "Number of provided children must be 1 or more"),
        ("driver=blkdebug", "A block device must be specified for \"image\""),
        (
            "file.driver=blkdebug,file.image.filename=d.raw,file.foo=1",
            "Block protocol 'blkdebug' doesn't support the option 'foo'",
        ),
        (
            "driver=nbd,path=a,server.type=unix,server.path=b",
            "Cannot use 'server' and path/host/port at the same time",
        ),
        ("driver=nbd,server.host=localhost", "Parameter 'type' is missing"),
        ("driver=nbd,server.type=foo", "Parameter 'type' does not accept value 'foo'"),
    ] {
        let place = format!("-drive {args}");
        let (greeting, complaint) = said(dir.path(), &place);
        assert_eq!((greeting.as_str(), complaint), ("", format!("ryokan: {place}: {text}\n")));
    }
}

#[test]
fn the_monitor_greets_before_devices_are_made() {
    let dir = images();
    let shared = "-drive file=v3.qcow2,if=none,node-name=disk -object iothread,id=t0 -device \
                  virtio-scsi,iothread=t0,id=s0 -device scsi-hd,bus=s0.0,drive=disk,share-rw=on";
    let taken = "Cannot change iothread of active block backend";
    let (ide, blk) =
        ("-device ide-hd,drive=disk,share-rw=on", "-device virtio-blk-pci,drive=disk,share-rw=on");
    let (s1, lsi) = ("-device scsi-hd,bus=s1.0,drive=disk,share-rw=on", "-device virtio-scsi,id=s1");
    for (before, place, text) in [
        ("", "-device scsi-hd", "No 'SCSI' bus found for device 'scsi-hd'"),
        ("", "-drive if=virtio", "Device needs media, but drive is empty"),
        ("-drive if=none,id=d", "-device ide-hd,drive=d", "Device needs media, but drive is empty"),
        ("", "-drive file=d.raw,format=raw,bus=3", "machine type does not support if=ide,bus=3,unit=0"),
        (shared, ide, taken),
        (shared, blk, taken),
        (&format!("{shared} {lsi}"), s1, taken),
        (&format!("{shared} -device lsi53c895a,id=s1"), s1, "HBA does not support iothreads"),
        (
            "-device floppy -device floppy",
            "-device floppy,drive-type=144",
            "Can't create floppy unit 2, bus supports only 2 units",
        ),
        (
            "-drive if=none,id=d,file=d.raw,format=raw -global floppy.drive=x",
            "-device floppy,drive=d",
            "-global floppy.drive=... conflicts with drive=d",
        ),
    ] {
        let args = format!("{before} {place}");
        let (greeting, complaint) = said(dir.path(), args.trim());
        let (first, prompt) = greeting.split_once("\r\n").unwrap_or_else(|| panic!("{args}: {greeting}"));
        assert!(first.starts_with("QEMU ") && first.contains(" monitor - type 'help'"), "{first}");
        assert_eq!((prompt, complaint), ("(qemu) ", format!("ryokan: {place}: {text}\n")));
    }
    // The same thread may have the disk twice.
    let both = format!("{shared} -device virtio-scsi,id=s1,iothread=t0 {s1} -S")
        .replace("v3.qcow2", &{ dir.path().join("v3.qcow2").display().to_string() });
    start(&both.split(' ').chain(["-accel", "qtest"]).collect::<Vec<_>>());
}

#[test]
fn empty_drives_come_with_the_board() {
    let start = |args: &[&str]| {
        let mut all = vec!["-accel", "qtest", "-display", "none", "-serial", "none", "-monitor", "none"];
        all.extend(args);
        Vm::start_plain(&all).unwrap_or_else(|e| panic!("{args:?}: {e}"))
    };
    let names = |vm: &mut Vm| {
        let all = vm.qmp.execute("query-block", json!({})).unwrap();
        let names = all.as_array().unwrap().iter().map(|one| one["device"].as_str().unwrap().to_string());
        names.collect::<Vec<_>>()
    };
    for (args, wanted) in [
        (&[][..], &["ide1-cd0", "floppy0", "sd0"][..]),
        (&["-M", "q35"], &["ide2-cd0", "sd0"]),
        (&["-nodefaults"], &[]),
        (&["-M", "none"], &[]),
        (&["-device", "floppy,unit=1"], &["ide1-cd0", "sd0"]),
        (&["-drive", "if=none,id=d,driver=null-co", "-device", "ide-hd,drive=d"], &["d", "floppy0", "sd0"]),
    ] {
        let mut vm = start(args);
        let found = names(&mut vm);
        let missing: Vec<_> = wanted.iter().filter(|name| !found.contains(&(**name).to_string())).collect();
        let extra: Vec<_> = found.iter().filter(|name| name.starts_with(['i', 'f', 's'])).collect();
        let extra: Vec<_> = extra.iter().filter(|name| !wanted.contains(&name.as_str())).collect();
        assert!(missing.is_empty() && extra.is_empty(), "{args:?}: {found:?}");
    }
    let images = testkit::Images::new();
    let image = images.create("cd.raw", "1M", &[]);
    let mut vm = start(&[]);
    vm.qmp.execute("change", json!({"device": "ide1-cd0", "target": image})).unwrap();
    assert!(vm.qmp.hmp("info block").unwrap().contains("ide1-cd0 (#block"));
    // The place is taken: no other drive.
    let mut vm = start(&["-cdrom", &image]);
    assert_eq!(names(&mut vm), ["ide1-cd0", "floppy0", "sd0"]);
}

/// `key=value` knows only texts; JSON has types, as over QMP.
#[test]
fn texts_are_values_of_any_type_but_not_in_json() {
    let typed = json!({"driver": "null-co", "node-name": "n", "read-only": "on"}).to_string();
    let said = refused(&["-blockdev", &typed]);
    assert!(said.contains("Invalid parameter type for 'read-only', expected: boolean"), "{said}");
    let typed = json!({"qom-type": "iothread", "id": "io", "poll-max-ns": "5"}).to_string();
    let said = refused(&["-object", &typed]);
    assert!(said.contains("Invalid parameter type for 'poll-max-ns', expected: integer"), "{said}");
    let node = "driver=null-co,node-name=n,read-only=on,size=64k";
    let drive =
        r#"if=none,id=d,file=json:{"driver":"null-co","read-only":"on","size":"1M"}"#.replace(',', ",,");
    let drive = drive.replacen(",,", ",", 2);
    let mut vm = start(&["-blockdev", node, "-drive", &drive, "-object", "iothread,id=io,poll-max-ns=5"]);
    let nodes = vm.qmp.execute("query-named-block-nodes", json!({"flat": true})).unwrap();
    let told: Vec<_> =
        nodes.as_array().unwrap().iter().map(|node| (&node["ro"], &node["image"]["virtual-size"])).collect();
    assert!(told.contains(&(&json!(true), &json!(65536))), "{nodes}");
    assert!(told.contains(&(&json!(true), &json!(1 << 20))), "{nodes}");
    assert_eq!(vm.qmp.execute("query-iothreads", Value::Null).unwrap()[0]["poll-max-ns"], 5);
}

/// A drive may ask for zeroes to be unmapped where its node does not discard; a node may not.
#[test]
fn zeroes_of_a_drive_are_detected_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    let drive = format!("if=none,id=d,format=raw,file={},detect-zeroes=unmap", image.display());
    for (more, left) in [("", 1 << 20), (",discard=unmap", (1 << 20) - (512 << 10))] {
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let mut vm = start(&["-drive", &format!("{drive}{more}")]);
        let disks = vm.qmp.execute("query-block", Value::Null).unwrap();
        assert_eq!(disks[0]["inserted"]["detect_zeroes"], "unmap", "{more}");
        vm.qmp.hmp("qemu-io d \"write -P 0 0 512k\"").unwrap();
        vm.qmp.execute("quit", Value::Null).unwrap();
        vm.wait(SOON).unwrap();
        let there = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap()) * 512;
        // The file system may need a block more for its own.
        assert!((left..left + (64 << 10)).contains(&there), "{more}: {there}");
        let bytes = std::fs::read(&image).unwrap();
        assert!(bytes[..512 << 10].iter().all(|byte| *byte == 0) && bytes[512 << 10] == 7, "{more}");
    }
    let node = format!(
        "driver=raw,node-name=n,file.driver=file,file.filename={},detect-zeroes=unmap",
        image.display()
    );
    let said = refused(&["-blockdev", &node]);
    assert!(said.contains("setting detect-zeroes to unmap is not allowed without"), "{said}");
}

/// A directory that is only read is a disk that may be asked for writable, and is not for a device.
#[test]
fn a_directory_of_the_host_as_a_drive() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hello.txt"), "hello").unwrap();
    let fat = format!("fat:{}", folder.path().display());
    for (format, read_only) in [("", false), (",format=raw", false), (",format=vvfat", true)] {
        let mut vm = start(&["-drive", &format!("if=none,id=d,file={fat}{format}")]);
        let disks = vm.qmp.execute("query-block", Value::Null).unwrap();
        assert_eq!(disks[0]["inserted"]["ro"], read_only, "{format}: {disks}");
    }
    let said = refused(&["-hda", &fat]);
    assert!(said.contains("Block node is read-only"), "{said}");
    let said = refused(&["-blockdev", &format!("driver=vvfat,node-name=v,dir={}", folder.path().display())]);
    assert!(said.contains("Image is read-only"), "{said}");
}

#[test]
fn a_read_only_snapshot_drive_is_read_only() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), [0; 4096]).unwrap();
    for (more, read_only) in [("", false), (",read-only=on", true)] {
        let drive = format!("file={},format=raw,if=none,id=d,snapshot=on{more}", image.path().display());
        let mut vm = start(&["-accel", "qtest", "-drive", &drive]);
        let drives = vm.qmp.execute("query-block", Value::Null).unwrap();
        assert_eq!(drives[0]["inserted"]["ro"], json!(read_only), "{drives}");
        assert_eq!(drives[0]["inserted"]["drv"], "qcow2");
    }
}

#[test]
fn a_format_that_was_guessed_to_be_raw_is_warned_of() {
    let dir = images();
    let file = dir.path().join("d.raw").display().to_string();
    let warning = |file: &str| {
        format!(
            "WARNING: Image format was not specified for '{file}' and probing guessed raw.\n         Automatically \
             detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions.\n"
        )
    };
    for (more, warned) in [("", true), (",readonly=on", false), (",format=raw", false)] {
        let drive = format!("if=none,id=d,file={file}{more}");
        let mut vm = start(&["-accel", "qtest", "-drive", &drive]);
        vm.qmp.execute("quit", Value::Null).unwrap();
        vm.wait(SOON).unwrap();
        let said = vm.errors();
        assert_eq!(said.matches(&warning(&file)).count(), usize::from(warned), "{more}: {said}");
    }
}

#[test]
fn monitors_read_a_file_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    let mut run = |options: &[&str], text: &str| {
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let mut limited = Command::new("timeout");
        limited.arg(SOON.as_secs().to_string()).arg(binary());
        limited.args(["-M", "none", "-nodefaults", "-display", "none"]).args(options);
        let ended = limited.stdin(file.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(ended.status.success(), "{options:?}: {} {said}", ended.status);
        said
    };
    let mut requests = String::from("{\"execute\": \"qmp_capabilities\"}\n");
    // More than a monitor holds at once.
    for id in 0..3000 {
        requests += &format!("{{\"execute\": \"query-status\", \"id\": {id}}}\n");
    }
    requests += "{\"execute\": \"quit\", \"id\": \"quit\"}\n";
    let multiplexed = ["-chardev", "stdio,id=c,mux=on", "-mon", "c,mode=control"];
    for options in [&["-qmp", "stdio"][..], &multiplexed] {
        let said = run(options, &requests);
        let replies: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(replies[0]["QMP"].is_object(), "{}", replies[0]);
        assert_eq!(replies[1], json!({"return": {}}));
        let ids: Vec<_> = replies[2..].iter().filter_map(|reply| reply["id"].as_u64()).collect();
        assert_eq!(ids, (0..3000).collect::<Vec<_>>());
        assert_eq!(replies[3002], json!({"return": {}, "id": "quit"}));
        assert_eq!(replies[3003]["event"], "SHUTDOWN");
        assert_eq!(replies.len(), 3004);
    }
    let said = run(&["-monitor", "stdio"], "info status\nquit\n");
    assert!(said.contains("VM status: "), "{said}");
}
