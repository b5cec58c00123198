//! The keys of every option that has some: one table for parser, help and
//! `query-command-line-options`.

use crate::params::{Group, Key, Kind};

const fn key(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, help, only: &[] }
}
const fn s(name: &'static str, help: &'static str) -> Key {
    key(name, Kind::String, help)
}
const fn b(name: &'static str, help: &'static str) -> Key {
    key(name, Kind::Bool, help)
}
const fn n(name: &'static str, help: &'static str) -> Key {
    key(name, Kind::Number, help)
}
const fn z(name: &'static str, help: &'static str) -> Key {
    key(name, Kind::Size, help)
}
/// A key of which only some values are supported.
const fn only(name: &'static str, kind: Kind, help: &'static str, only: &'static [&'static str]) -> Key {
    Key { name, kind, help, only }
}

const OFF: &[&str] = &["off"];

pub static MACHINE: Group = Group {
    name: "machine",
    implied: Some("type"),
    open: false,
    keys: &[
        s("type", "emulated machine"),
        s("accel", "accelerators in order of preference, separated by ':'"),
        b("acpi", "ACPI tables and power management"),
        b("hpet", "high precision event timer"),
        b("fd-bootchk", "whether the firmware wants a signature on floppies to boot from"),
        only("i8042", Kind::Bool, "keyboard controller with PS/2 keyboard and mouse", &["on"]),
        b("graphics", "whether the firmware may use a display"),
        b("dump-guest-core", "guest memory in core dumps of the process"),
        b("mem-merge", "allow the host to merge equal pages (default: off)"),
        s("memory-backend", "id of the object that is the guest's memory"),
        s("kernel", "kernel image"),
        s("initrd", "initial RAM disk"),
        s("append", "kernel command line"),
        s("firmware", "firmware image"),
        s("pflash0", "node that is the first flash chip, with the firmware"),
        s("pflash1", "node that is the second flash chip"),
        only("kernel-irqchip", Kind::String, "interrupt controllers in KVM", OFF),
        only("usb", Kind::Bool, "USB controller", OFF),
        only("vmport", Kind::String, "VMware I/O port", &["off", "auto"]),
        only("smm", Kind::String, "system management mode", &["off", "auto"]),
        only("nvdimm", Kind::Bool, "NVDIMM support", OFF),
        only("igd-passthru", Kind::Bool, "Intel graphics pass-through", OFF),
        only("suppress-vmdesc", Kind::Bool, "no machine description in the migration stream", OFF),
        only("default-bus-bypass-iommu", Kind::Bool, "devices of the root bus bypass the IOMMU", OFF),
    ],
};

pub static ACCEL: Group = Group {
    name: "accel",
    implied: Some("accel"),
    open: false,
    keys: &[
        s("accel", "kvm, tcg (translator or interpreter), translator, interpreter or qtest"),
        n("tb-size", "size of the translation cache in MiB"),
        only("tables", Kind::String, "how linear pages are looked up", &["flat", "hashed"]),
        b("perfmap", "write /tmp/perf-PID.map, so that perf names guest code"),
        only("split-wx", Kind::Bool, "code is never writable where it is executable", &["on"]),
        only("thread", Kind::String, "vCPU threads", &["multi"]),
        only("kernel-irqchip", Kind::String, "interrupt controllers in KVM", OFF),
    ],
};

pub static SMP: Group = Group {
    name: "smp-opts",
    implied: Some("cpus"),
    open: false,
    keys: &[
        n("cpus", "CPUs at the start"),
        n("sockets", "sockets"),
        n("dies", "dies in a socket"),
        only("clusters", Kind::Number, "clusters in a die", &["1"]),
        n("cores", "cores in a die"),
        n("threads", "threads in a core"),
        n("maxcpus", "CPUs at most, those to be plugged included"),
    ],
};

pub static MEMORY: Group = Group {
    name: "memory",
    implied: Some("size"),
    open: false,
    keys: &[
        z("size", "RAM at the start"),
        n("slots", "slots for memory to be plugged"),
        z("maxmem", "RAM at most"),
    ],
};

pub static NUMA: Group = Group { name: "numa", implied: Some("type"), open: true, keys: &[] };

pub static NAME: Group = Group {
    name: "name",
    implied: Some("guest"),
    open: false,
    keys: &[
        s("guest", "name of the guest"),
        s("process", "name of the process"),
        b("debug-threads", "give threads telling names"),
    ],
};

pub static BOOT: Group = Group {
    name: "boot-opts",
    implied: Some("order"),
    open: false,
    keys: &[
        s("order", "drives in order (a, c, d, n)"),
        s("once", "order for the first boot only"),
        b("menu", "interactive boot menu"),
        s("splash", "boot splash picture"),
        n("splash-time", "milliseconds for the splash picture"),
        s("reboot-timeout", "milliseconds before another attempt"),
        b("strict", "boot only from what has a boot index"),
    ],
};

pub static RTC: Group = Group {
    name: "rtc",
    implied: None,
    open: false,
    keys: &[
        s("base", "utc, localtime or a date"),
        s("clock", "host, rt or vm"),
        s("driftfix", "none or slew: catch up lost ticks"),
    ],
};

pub static ACTION: Group = Group {
    name: "action",
    implied: None,
    open: false,
    keys: &[
        s("reboot", "reset or shutdown"),
        s("shutdown", "poweroff or pause"),
        s("panic", "pause, shutdown, exit-failure or none"),
        s("watchdog", "reset, shutdown, poweroff, inject-nmi, pause, debug or none"),
    ],
};

pub static DRIVE: Group = Group {
    name: "drive",
    implied: None,
    open: true,
    keys: &[
        s("file", "image"),
        s("if", "interface: ide, virtio, none, floppy, pflash, scsi"),
        n("bus", "bus number"),
        n("unit", "unit on the bus"),
        n("index", "number among the drives of the interface"),
        s("media", "disk or cdrom"),
        s("format", "image format"),
        s("cache", "writeback, none, unsafe, writethrough or directsync"),
        b("cache.writeback", "write-back cache"),
        b("cache.direct", "bypass the host's cache"),
        b("cache.no-flush", "ignore flushes"),
        s("aio", "threads, native or io_uring"),
        b("snapshot", "keep changes in a temporary file"),
        b("readonly", "no writes (older name)"),
        b("read-only", "no writes"),
        b("copy-on-read", "keep what is read from the backing image"),
        s("werror", "on write errors: report, ignore, stop or enospc"),
        s("rerror", "on read errors: report, ignore or stop"),
        s("serial", "serial number"),
        s("discard", "ignore or unmap"),
        s("detect-zeroes", "off, on or unmap"),
        b("stats-account-invalid", "count invalid requests"),
        b("stats-account-failed", "count failed requests"),
    ],
};

pub static DEVICE: Group = Group { name: "device", implied: Some("driver"), open: true, keys: &[] };
pub static OBJECT: Group = Group { name: "object", implied: Some("qom-type"), open: true, keys: &[] };
pub static BLOCKDEV: Group = Group { name: "blockdev", implied: Some("driver"), open: true, keys: &[] };

pub static GLOBAL: Group = Group {
    name: "global",
    implied: None,
    open: false,
    keys: &[
        s("driver", "device model"),
        s("property", "its property"),
        s("value", "value for all such devices"),
    ],
};

pub static CHARDEV: Group = Group {
    name: "chardev",
    implied: Some("backend"),
    open: false,
    keys: &[
        s("backend", "null, socket, udp, ringbuf, file, stdio, pty, pipe, mux or serial"),
        s("path", "file, socket, FIFO or device"),
        s("input-path", "file to read from"),
        s("host", "host name or address"),
        s("port", "port"),
        s("fd", "inherited descriptor"),
        s("localaddr", "local address (udp)"),
        s("localport", "local port (udp)"),
        n("to", "last port to try"),
        b("ipv4", "use IPv4"),
        b("ipv6", "use IPv6"),
        b("server", "listen"),
        b("wait", "wait for the first client"),
        b("delay", "Nagle's algorithm"),
        b("nodelay", "no Nagle's algorithm"),
        n("reconnect", "seconds between attempts"),
        b("telnet", "telnet protocol"),
        b("abstract", "name in the abstract space"),
        b("tight", "abstract name without padding"),
        b("mux", "serve several front ends"),
        b("signal", "keys for signals stay active (stdio)"),
        z("size", "bytes of a ring buffer"),
        s("chardev", "character device under a multiplexer"),
        b("append", "append to the file"),
        s("logfile", "file for a copy of the output"),
        b("logappend", "append to the log file"),
    ],
};

pub static MON: Group = Group {
    name: "mon",
    implied: Some("chardev"),
    open: false,
    keys: &[
        s("chardev", "character device"),
        only("mode", Kind::String, "readline (HMP) or control (QMP)", &["readline", "control"]),
        b("pretty", "replies over several lines (QMP)"),
    ],
};

pub static ADD_FD: Group = Group {
    name: "add-fd",
    implied: None,
    open: false,
    keys: &[
        n("fd", "inherited descriptor"),
        n("set", "descriptor set"),
        s("opaque", "free text for query-fdsets"),
    ],
};

pub static MSG: Group = Group {
    name: "msg",
    implied: None,
    open: false,
    keys: &[b("timestamp", "time before each message"), b("guest-name", "guest name before each message")],
};

pub static TRACE: Group = Group {
    name: "trace",
    implied: Some("enable"),
    open: false,
    keys: &[s("enable", "pattern"), s("events", "file with patterns"), s("file", "where trace output goes")],
};

pub static FW_CFG: Group = Group {
    name: "fw_cfg",
    implied: Some("name"),
    open: false,
    keys: &[
        s("name", "name of the item (opt/...)"),
        s("file", "file with the content"),
        s("string", "content"),
    ],
};

pub static OPTION_ROM: Group = Group {
    name: "option-rom",
    implied: Some("romfile"),
    open: false,
    keys: &[s("romfile", "file with the ROM")],
};

pub static SMBIOS: Group =
    Group { name: "smbios", implied: None, open: true, keys: &[n("type", "structure type")] };

pub static OVERCOMMIT: Group = Group {
    name: "overcommit",
    implied: None,
    open: false,
    keys: &[
        b("mem-lock", "lock all memory of the process"),
        only("cpu-pm", Kind::Bool, "guest manages host CPU power", OFF),
    ],
};

pub static SANDBOX: Group = Group {
    name: "sandbox",
    implied: Some("enable"),
    open: false,
    keys: &[
        b("enable", "system call filter"),
        only("obsolete", Kind::String, "obsolete system calls", &["allow", "deny"]),
        only("elevateprivileges", Kind::String, "gaining privileges", &["allow", "deny", "children"]),
        only("spawn", Kind::String, "starting programs", &["allow", "deny"]),
        only("resourcecontrol", Kind::String, "changing scheduling and limits", &["allow", "deny"]),
    ],
};

pub static RUN_WITH: Group = Group {
    name: "run-with",
    implied: None,
    open: false,
    keys: &[only("async-teardown", Kind::Bool, "tear down asynchronously", OFF)],
};

pub static AUDIODEV: Group = Group {
    name: "audiodev",
    implied: Some("driver"),
    open: false,
    keys: &[only("driver", Kind::String, "audio back end", &["none"])],
};

/// The groups `query-command-line-options` lists.
pub static LISTED: &[&Group] = &[
    &DRIVE,
    &CHARDEV,
    &DEVICE,
    &OBJECT,
    &MON,
    &TRACE,
    &MACHINE,
    &ACCEL,
    &RTC,
    &GLOBAL,
    &SMP,
    &MEMORY,
    &BOOT,
    &NAME,
    &NUMA,
    &ACTION,
    &ADD_FD,
    &MSG,
    &FW_CFG,
    &OPTION_ROM,
    &SMBIOS,
    &OVERCOMMIT,
    &SANDBOX,
    &BLOCKDEV,
    &RUN_WITH,
];
