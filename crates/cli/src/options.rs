//! The table of options.

use crate::builder::Builder;
use crate::keys as k;
use crate::params::Group;
use crate::{Complaint, Help};
use base::{Failure, Result, bail, fail};

/// One option.
pub struct Opt {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// How its argument looks, if it has one.
    pub arg: Option<&'static str>,
    pub help: &'static str,
    pub group: Option<&'static Group>,
    pub(crate) take: fn(&mut Builder, &str) -> Result<()>,
}

/// A heading of `-help` with its options.
pub struct Section {
    pub title: &'static str,
    pub options: &'static [Opt],
}

type Take = fn(&mut Builder, &str) -> Result<()>;

const fn opt(name: &'static str, arg: &'static str, help: &'static str, take: Take) -> Opt {
    let arg = if arg.is_empty() { None } else { Some(arg) };
    Opt { name, aliases: &[], arg, help, group: None, take }
}

const fn keyed(
    name: &'static str,
    arg: &'static str,
    help: &'static str,
    group: &'static Group,
    take: Take,
) -> Opt {
    Opt { name, aliases: &[], arg: Some(arg), help, group: Some(group), take }
}

const fn alias(option: Opt, aliases: &'static [&'static str]) -> Opt {
    Opt { aliases, ..option }
}

pub static SECTIONS: &[Section] = &[
    Section { title: "Machine", options: MACHINE },
    Section { title: "Disks", options: DISKS },
    Section { title: "Boot", options: BOOT },
    Section { title: "Devices and objects", options: DEVICES },
    Section { title: "Character devices, monitors, debugging", options: CHARDEVS },
    Section { title: "Process", options: PROCESS },
];

static MACHINE: &[Opt] = &[
    alias(
        keyed(
            "machine",
            "TYPE[,KEY=VALUE...]",
            "machine: pc (default), q35, none; 'help' lists",
            &k::MACHINE,
            |b, v| b.machine(v),
        ),
        &["M"],
    ),
    keyed(
        "accel",
        "NAME[:NAME...][,KEY=VALUE...]",
        "CPU engine: kvm, tcg, translator, interpreter, qtest",
        &k::ACCEL,
        |b, v| b.accel(v),
    ),
    opt("enable-kvm", "", "same as -accel kvm", |b, _| b.accel("kvm")),
    opt("cpu", "MODEL[,+FLAG][,-FLAG][,KEY=VALUE...]", "CPU model; 'help' lists", |b, v| b.cpu(v)),
    keyed(
        "smp",
        "N[,maxcpus=N][,sockets=N][,cores=N][,threads=N]",
        "number of CPUs and topology",
        &k::SMP,
        |b, v| b.smp.extend(v, &k::SMP),
    ),
    keyed("m", "SIZE", "memory, in MiB without suffix (default 128)", &k::MEMORY, |b, v| {
        b.memory.extend(v, &k::MEMORY)
    }),
    opt("mem-prealloc", "", "allocate guest memory at the start", |b, _| {
        b.inv.machine.memory.prealloc = true;
        Ok(())
    }),
    keyed("numa", "node[,KEY=VALUE...]", "NUMA node", &k::NUMA, |b, v| b.numa(v)),
    keyed("name", "NAME[,process=NAME][,debug-threads=on|off]", "name of the guest", &k::NAME, |b, v| {
        b.name.extend(v, &k::NAME)
    }),
    opt("uuid", "UUID", "UUID of the machine", |b, v| b.uuid(v)),
    keyed(
        "rtc",
        "[base=utc|localtime|DATE][,clock=host|rt|vm][,driftfix=none|slew]",
        "real time clock",
        &k::RTC,
        |b, v| b.rtc(v),
    ),
    opt("no-hpet", "", "no HPET", |b, _| b.machine_key("hpet", "off")),
    opt("no-acpi", "", "no ACPI", |b, _| b.machine_key("acpi", "off")),
    opt("no-fd-bootchk", "", "boot from floppies without signature, too", |b, _| {
        b.machine_key("fd-bootchk", "off")
    }),
    keyed("smbios", "type=N[,KEY=VALUE...]", "SMBIOS fields", &k::SMBIOS, |b, v| b.smbios(v)),
    keyed("global", "DRIVER.PROPERTY=VALUE", "property of all devices of a model", &k::GLOBAL, |b, v| {
        b.global(v)
    }),
    opt("nodefaults", "", "no default devices", |b, _| {
        b.inv.machine.nodefaults = true;
        Ok(())
    }),
];

static DISKS: &[Opt] = &[
    keyed(
        "drive",
        "[file=FILE][,KEY=VALUE...]",
        "disk with image; 'format=help' lists formats",
        &k::DRIVE,
        |b, v| b.drive(v),
    ),
    keyed("blockdev", "[driver=]DRIVER[,KEY=VALUE...] or JSON", "block node", &k::BLOCKDEV, |b, v| {
        b.blockdev(v)
    }),
    alias(
        opt("hda", "FILE", "-hda, -hdb, -hdc, -hdd: image of an IDE disk", |b, v| b.hd(v)),
        &["hdb", "hdc", "hdd"],
    ),
    opt("cdrom", "FILE", "image of a CD", |b, v| b.shorthand(v, &[("index", "2"), ("media", "cdrom")])),
    opt("fda", "FILE", "image of floppy A", |b, v| b.shorthand(v, &[("if", "floppy"), ("index", "0")])),
    opt("fdb", "FILE", "image of floppy B", |b, v| b.shorthand(v, &[("if", "floppy"), ("index", "1")])),
    opt("pflash", "FILE", "image of a flash device", |b, v| b.shorthand(v, &[("if", "pflash")])),
    opt("snapshot", "", "write to temporary files instead of the images", |b, _| {
        b.snapshot = true;
        Ok(())
    }),
    opt("set", "GROUP.ID.KEY=VALUE", "change a key of an earlier -drive, -device or -chardev", |b, v| {
        b.set(v)
    }),
];

static BOOT: &[Opt] = &[
    opt("kernel", "FILE", "Linux (bzImage), multiboot or PVH kernel", |b, v| {
        b.boot_file(|x| &mut x.kernel, v)
    }),
    opt("initrd", "FILE", "initial RAM disk", |b, v| b.boot_file(|x| &mut x.initrd, v)),
    opt("append", "TEXT", "kernel command line", |b, v| b.boot_file(|x| &mut x.append, v)),
    opt("bios", "FILE", "firmware", |b, v| b.boot_file(|x| &mut x.bios, v)),
    opt("L", "DIR", "directory with firmware; 'help' lists", |b, v| b.firmware_dir(v)),
    keyed(
        "boot",
        "[order=DRIVES][,once=DRIVES][,menu=on|off][,strict=on|off]...",
        "boot order",
        &k::BOOT,
        |b, v| b.boot.extend(v, &k::BOOT),
    ),
    keyed("option-rom", "[romfile=]FILE", "option ROM that the firmware runs", &k::OPTION_ROM, |b, v| {
        b.option_rom(v)
    }),
    keyed("fw_cfg", "[name=]NAME,file=FILE|string=TEXT", "item for the firmware", &k::FW_CFG, |b, v| {
        b.fw_cfg(v)
    }),
];

static DEVICES: &[Opt] = &[
    keyed(
        "device",
        "DRIVER[,KEY=VALUE...] or JSON",
        "device; 'help' lists, 'DRIVER,help' shows",
        &k::DEVICE,
        |b, v| b.device(v),
    ),
    keyed("object", "TYPE,id=ID[,KEY=VALUE...] or JSON", "object; 'help' lists", &k::OBJECT, |b, v| {
        b.object(v)
    }),
    opt("display", "none", "no display (there is none yet)", |b, v| b.display(v)),
    opt("nographic", "", "serial port and monitor on the terminal", |b, _| {
        b.nographic = true;
        Ok(())
    }),
    opt("vga", "none", "no display adapter (there is none yet)", |b, v| none_only(b, v, "display adapter")),
    opt("net", "none", "no network (there is none yet)", |b, v| none_only(b, v, "network")),
    opt("nic", "none", "no network (there is none yet)", |b, v| none_only(b, v, "network")),
    opt("vnc", "none", "no VNC server (there is none yet)", |b, v| none_only(b, v, "VNC server")),
    keyed("audiodev", "none,id=ID", "silent audio back end", &k::AUDIODEV, |b, v| b.audiodev(v)),
];

static CHARDEVS: &[Opt] = &[
    keyed(
        "chardev",
        "KIND,id=ID[,KEY=VALUE...]",
        "character device; 'help' lists the kinds",
        &k::CHARDEV,
        |b, v| b.chardev(v),
    ),
    opt("serial", "DEV", "serial port on DEV", |b, v| b.serial(v)),
    opt("parallel", "DEV", "parallel port on DEV", |b, v| b.parallel(v)),
    opt("debugcon", "DEV", "debug console (port 0xe9) on DEV", |b, v| b.debugcon(v)),
    opt("monitor", "DEV", "human monitor on DEV", |b, v| {
        b.monitor(v, spec::invocation::MonitorMode::Readline)
    }),
    opt("qmp", "DEV", "QMP monitor on DEV", |b, v| {
        b.monitor(v, spec::invocation::MonitorMode::Control { pretty: false })
    }),
    opt("qmp-pretty", "DEV", "QMP monitor with indented replies on DEV", |b, v| {
        b.monitor(v, spec::invocation::MonitorMode::Control { pretty: true })
    }),
    keyed(
        "mon",
        "[chardev=]ID[,mode=readline|control][,pretty=on|off]",
        "monitor on a -chardev",
        &k::MON,
        |b, v| b.mon(v),
    ),
    opt("echr", "CODE", "character that introduces multiplexer commands (default 1, Ctrl-A)", |b, v| {
        b.escape(v)
    }),
    opt("gdb", "DEV", "wait for a debugger on DEV (tcp::1234)", |b, v| b.gdb(v)),
    opt("s", "", "same as -gdb tcp::1234", |b, _| b.gdb("tcp::1234")),
    opt("qtest", "DEV", "qtest protocol on DEV", |b, v| b.qtest(v)),
    opt("qtest-log", "FILE", "log of the qtest protocol", |b, v| {
        b.inv.qtest_log = Some(v.into());
        Ok(())
    }),
    opt("d", "ITEM[,ITEM...]", "log these; 'help' lists", |b, v| b.log_items(v)),
    opt("D", "FILE", "log to FILE", |b, v| {
        b.inv.log.file = Some(v.into());
        Ok(())
    }),
    keyed(
        "trace",
        "[[enable=]PATTERN][,events=FILE][,file=FILE]",
        "trace points; 'help' lists",
        &k::TRACE,
        |b, v| b.trace(v),
    ),
];

static PROCESS: &[Opt] = &[
    opt("S", "", "do not start the CPUs", |b, _| {
        b.inv.machine.start_stopped = true;
        Ok(())
    }),
    opt("no-reboot", "", "end instead of rebooting", |b, _| b.action_key("reboot", "shutdown")),
    opt("no-shutdown", "", "stop instead of ending", |b, _| b.action_key("shutdown", "pause")),
    keyed("action", "EVENT=ACTION[,...]", "what reboot, shutdown, panic, watchdog do", &k::ACTION, |b, v| {
        b.action(v)
    }),
    opt("watchdog-action", "ACTION", "same as -action watchdog=ACTION", |b, v| b.action_key("watchdog", v)),
    opt("pidfile", "FILE", "write the process id to FILE", |b, v| {
        b.inv.pidfile = Some(v.into());
        Ok(())
    }),
    opt("daemonize", "", "go to the background when ready", |b, _| {
        b.inv.daemonize = true;
        Ok(())
    }),
    keyed(
        "add-fd",
        "fd=FD,set=SET[,opaque=TEXT]",
        "put an inherited descriptor into a set",
        &k::ADD_FD,
        |b, v| b.add_fd(v),
    ),
    keyed("msg", "[timestamp=on|off][,guest-name=on|off]", "form of messages", &k::MSG, |b, v| b.msg(v)),
    keyed("overcommit", "[mem-lock=on|off]", "lock the process's memory", &k::OVERCOMMIT, |b, v| {
        b.overcommit(v)
    }),
    keyed(
        "sandbox",
        "on|off[,obsolete=][,elevateprivileges=][,spawn=][,resourcecontrol=allow|deny]",
        "system call filter",
        &k::SANDBOX,
        |b, v| b.sandbox(v),
    ),
    keyed("run-with", "async-teardown=off", "how the process runs", &k::RUN_WITH, |_, v| {
        crate::params::Params::parse(v, &k::RUN_WITH).map(drop)
    }),
    opt("readconfig", "FILE", "read options from FILE", |b, v| b.read_config(v)),
    alias(
        opt("no-user-config", "", "read no configuration of the user (never done)", |_, _| Ok(())),
        &["nodefconfig"],
    ),
    alias(
        opt("version", "", "show the version", |b, _| {
            b.help = Some(Help::Version);
            Ok(())
        }),
        &["V"],
    ),
    alias(
        opt("help", "", "show this", |b, _| {
            b.help = Some(Help::Usage);
            Ok(())
        }),
        &["h", "?"],
    ),
];

/// Options of QEMU that are known and refused: with an argument or not, and why.
static ABSENT: &[(&str, bool, &str)] = &[
    ("incoming", true, "incoming migration is not supported by Ryokan yet"),
    ("loadvm", true, "machine snapshots are not supported by Ryokan yet"),
    ("netdev", true, "networks are not supported by Ryokan yet"),
    ("spice", true, "SPICE is not supported by Ryokan"),
    ("usb", false, "USB is not supported by Ryokan yet"),
    ("usbdevice", true, "USB is not supported by Ryokan yet"),
    ("k", true, "keyboard layouts need a display, which Ryokan does not have yet"),
    ("full-screen", false, "Ryokan has no display yet"),
    ("curses", false, "Ryokan has no display yet"),
    ("sdl", false, "Ryokan has no display yet"),
    ("watchdog", true, "use -device with a watchdog model"),
    ("balloon", true, "use -device virtio-balloon"),
    ("soundhw", true, "sound is not supported by Ryokan"),
    ("audio", true, "sound is not supported by Ryokan"),
    ("tpmdev", true, "TPM is not supported by Ryokan yet"),
    ("fsdev", true, "shared directories are not supported by Ryokan"),
    ("virtfs", true, "shared directories are not supported by Ryokan"),
    ("iscsi", true, "iSCSI is not supported by Ryokan"),
    ("icount", true, "instruction counting is not supported by Ryokan"),
    ("singlestep", false, "single-step translation is not supported by Ryokan"),
    ("one-insn-per-tb", false, "single-step translation is not supported by Ryokan"),
    ("plugin", true, "TCG plugins are not supported by Ryokan"),
    ("preconfig", false, "the preconfig state is not supported by Ryokan"),
    ("acpitable", true, "additional ACPI tables are not supported by Ryokan yet"),
    (
        "mem-path",
        true,
        "use -object memory-backend-file,id=ID,mem-path=PATH,size=SIZE with -machine memory-backend=ID",
    ),
    ("dtb", true, "device trees are not used on this architecture"),
    ("sd", true, "SD cards are not supported by Ryokan"),
    ("mtdblock", true, "MTD flash is not supported by Ryokan"),
    ("chroot", true, "changing the root directory is not supported by Ryokan yet"),
    ("runas", true, "changing the user is not supported by Ryokan yet"),
    ("realtime", true, "use -overcommit mem-lock=on|off"),
    ("tb-size", true, "use -accel tcg,tb-size=N"),
    ("no-kvm", false, "use -accel tcg"),
    ("writeconfig", true, "writing configurations is not supported"),
    ("dump-vmstate", true, "describing the migration format is not supported by Ryokan"),
    ("virtioconsole", true, "use -device virtconsole"),
    ("win2k-hack", false, "not supported by Ryokan"),
    ("prom-env", true, "not used on this architecture"),
    ("semihosting", false, "not used on this architecture"),
    ("semihosting-config", true, "not used on this architecture"),
    ("enable-sync-profile", false, "not supported by Ryokan"),
    ("xen-domid", true, "Xen is not supported by Ryokan"),
    ("xen-attach", false, "Xen is not supported by Ryokan"),
    ("alt-grab", false, "Ryokan has no display yet"),
    ("ctrl-grab", false, "Ryokan has no display yet"),
    ("compat", true, "compatibility policies are not supported by Ryokan"),
    ("perfmap", false, "not supported by Ryokan"),
    ("jitdump", false, "not supported by Ryokan"),
];

pub fn all() -> impl Iterator<Item = &'static Opt> {
    SECTIONS.iter().flat_map(|s| s.options)
}

pub fn find(name: &str) -> Option<&'static Opt> {
    all().find(|o| o.name == name || o.aliases.contains(&name))
}

/// What to say about an option that is not in the table.
pub fn unknown(arg: &str, name: &str) -> Complaint {
    if let Some(&(_, _, why)) = ABSENT.iter().find(|(n, ..)| *n == name) {
        return Complaint::at(arg, Failure::new(why));
    }
    let failure = fail!("invalid option");
    let names = all().flat_map(|o| std::iter::once(o.name).chain(o.aliases.iter().copied()));
    let failure = match spec::nearest(name, names) {
        Some(near) => failure.hint(format!("Did you mean -{near}?")),
        None => failure,
    };
    Complaint::at(arg, failure)
}

fn none_only(_: &mut Builder, value: &str, what: &str) -> Result<()> {
    if value != "none" {
        bail!("Ryokan has no {what} yet: only 'none' is possible");
    }
    Ok(())
}
