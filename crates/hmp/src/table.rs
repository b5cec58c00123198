//! The commands: names, parameters, a line of help, and what runs.

use crate::Session;
use crate::commands::{
    block, blockjobs, debug, drives, info, io, lifecycle, log, memory, nbd, objects, paging, registers, tree,
};
use crate::parse::Args;
use base::Result;
use control::BoxFuture;

type Run = fn(Session, Args) -> BoxFuture<Result<String>>;

/// How an argument is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `-x`.
    Flag,
    Word,
    /// All the rest of the line.
    Rest,
    /// `/fmt`.
    Format,
    /// An expression of 32 bits.
    Int,
    /// An expression of 64 bits.
    Long,
    /// Bytes with a suffix, or MiB.
    Size,
    /// `.expression`.
    Index,
}

pub(crate) struct Param {
    pub name: &'static str,
    pub kind: Kind,
    pub optional: bool,
}

pub(crate) struct Command {
    /// The first is the name, the others are aliases.
    pub names: &'static [&'static str],
    pub params: &'static [Param],
    /// The parameters as help shows them.
    pub usage: &'static str,
    pub help: &'static str,
    pub run: Run,
}

const fn need(name: &'static str, kind: Kind) -> Param {
    Param { name, kind, optional: false }
}

const fn may(name: &'static str, kind: Kind) -> Param {
    Param { name, kind, optional: true }
}

const FMT: Param = may("fmt", Kind::Format);

macro_rules! commands {
    ($($names:expr, $params:expr, $usage:literal, $help:literal, $run:path;)*) => {
        &[$(Command {
            names: &$names,
            params: &$params,
            usage: $usage,
            help: $help,
            run: |session, args| Box::pin($run(session, args)),
        }),*]
    };
}

pub(crate) static COMMANDS: &[Command] = commands![
    ["help", "?"], [may("name", Kind::Rest)], "[cmd]", "show what the commands do", help;
    ["info"], [may("item", Kind::Rest)], "[subcommand]", "show something about the machine", info_help;
    ["quit", "q"], [], "", "end the emulator", lifecycle::quit;
    ["stop", "s"], [], "", "stop the CPUs", lifecycle::stop;
    ["cont", "c"], [], "", "let the CPUs run", lifecycle::cont;
    ["system_reset"], [], "", "reset the machine", lifecycle::reset;
    ["system_powerdown"], [], "", "press the power button", lifecycle::powerdown;
    ["system_wakeup"], [], "", "wake the guest from sleep", lifecycle::wakeup;
    ["nmi"], [], "", "send a non-maskable interrupt to all CPUs", lifecycle::nmi;
    ["cpu"], [need("index", Kind::Int)], "index", "choose the CPU that other commands look at", registers::cpu;
    ["x"], [FMT, need("addr", Kind::Long)], "/fmt addr", "show virtual memory from 'addr' on", memory::x;
    ["xp"], [FMT, need("addr", Kind::Long)], "/fmt addr", "show physical memory from 'addr' on", memory::xp;
    ["print", "p"], [FMT, need("val", Kind::Long)], "/fmt expr", "show the value of an expression ($reg for registers)", memory::print;
    ["i"], [FMT, need("addr", Kind::Int), may("index", Kind::Index)], "/fmt addr[.index]", "read an I/O port", io::input;
    ["o"], [FMT, need("addr", Kind::Int), need("val", Kind::Int)], "/fmt addr value", "write an I/O port", io::output;
    ["sum"], [need("start", Kind::Long), need("size", Kind::Int)], "addr size", "show the checksum of a range of physical memory", memory::sum;
    ["memsave"], [need("val", Kind::Long), need("size", Kind::Long), need("filename", Kind::Word)], "addr size file", "save virtual memory to a file", memory::memsave;
    ["pmemsave"], [need("val", Kind::Long), need("size", Kind::Long), need("filename", Kind::Word)], "addr size file", "save physical memory to a file", memory::pmemsave;
    ["log"], [need("items", Kind::Word)], "item1[,...]", "log these items ('none': nothing)", log::log;
    ["logfile"], [need("filename", Kind::Word)], "filename", "log to a file", log::logfile;
    ["gdbserver"], [may("device", Kind::Word)], "[device]", "let a debugger connect to 'device' (default tcp::1234; 'none' ends it)", debug::gdbserver;
    ["trace-event"], [need("name", Kind::Word), need("option", Kind::Word)], "name on|off", "switch trace points (with * and ?)", log::trace_event;
    ["chardev-remove"], [need("id", Kind::Word)], "id", "remove a character device", objects::chardev_remove;
    ["ringbuf_write"], [need("device", Kind::Word), need("data", Kind::Rest)], "device data", "write to a ring buffer", objects::ringbuf_write;
    ["ringbuf_read"], [need("device", Kind::Word), need("size", Kind::Int)], "device size", "read from a ring buffer", objects::ringbuf_read;
    ["qom-list"], [may("path", Kind::Word)], "path", "list the properties of an object", objects::qom_list;
    ["qom-get"], [need("path", Kind::Word), need("property", Kind::Word)], "path property", "show a property of an object", objects::qom_get;
    ["qom-set"], [need("path", Kind::Word), need("property", Kind::Word), need("value", Kind::Rest)], "path property value", "set a property of an object", objects::qom_set;
    ["eject"], [need("f", Kind::Flag), need("device", Kind::Word)], "[-f] device", "take the medium out of a drive (-f: although the guest has locked it)", drives::eject;
    ["change"], [need("device", Kind::Word), need("filename", Kind::Word), may("format", Kind::Word), may("mode", Kind::Word)], "device filename [format [read-only-mode]]", "put another medium into a drive", drives::change;
    ["drive_add"], [need("n", Kind::Flag), need("place", Kind::Word), need("opts", Kind::Word)], "[-n] [[<domain>:]<bus>:]<slot> opts", "add a drive that no device uses (-n: a block node)", drives::add;
    ["drive_del"], [need("id", Kind::Word)], "device", "remove a drive; its device stays, without medium", drives::del;
    ["block_resize"], [need("device", Kind::Word), need("size", Kind::Size)], "device size", "resize an image (MiB, or with suffix)", drives::resize;
    ["block_passwd"], [need("device", Kind::Word), need("password", Kind::Word)], "device password", "set the password of an encrypted image that was opened without it", drives::password;
    ["block_set_io_throttle"], [need("device", Kind::Word), need("bps", Kind::Long), need("bps_rd", Kind::Long), need("bps_wr", Kind::Long), need("iops", Kind::Long), need("iops_rd", Kind::Long), need("iops_wr", Kind::Long)], "device bps bps_rd bps_wr iops iops_rd iops_wr", "limit the I/O of a drive (0: no limit)", drives::throttle;
    ["snapshot_blkdev"], [need("n", Kind::Flag), need("device", Kind::Word), may("snapshot-file", Kind::Word), may("format", Kind::Word)], "[-n] device [new-image-file] [format]", "write to a new image over the present one (-n: the file is there already)", drives::snapshot;
    ["snapshot_blkdev_internal"], [need("device", Kind::Word), need("name", Kind::Word)], "device name", "take a snapshot inside of an image", drives::snapshot_internal;
    ["snapshot_delete_blkdev_internal"], [need("device", Kind::Word), need("name", Kind::Word), may("id", Kind::Word)], "device name [id]", "delete a snapshot inside of an image", drives::snapshot_delete_internal;
    ["drive_mirror"], [need("n", Kind::Flag), need("f", Kind::Flag), need("device", Kind::Word), need("target", Kind::Word), may("format", Kind::Word)], "[-n] [-f] device target [format]", "copy a disk and keep the copy up to date (-n: the target is there already; -f: with all it is based on)", blockjobs::mirror;
    ["commit"], [need("device", Kind::Word)], "device|all", "write what a disk's image holds into the image it stands on, and empty it", drives::commit;
    ["drive_backup"], [need("n", Kind::Flag), need("f", Kind::Flag), need("c", Kind::Flag), need("device", Kind::Word), need("target", Kind::Word), may("format", Kind::Word)], "[-n] [-f] [-c] device target [format]", "copy a disk as it is now (-n: the target is there already; -f: with all it is based on; -c: compressed)", blockjobs::backup;
    ["block_stream"], [need("device", Kind::Word), may("speed", Kind::Size), may("base", Kind::Word)], "device [speed [base]]", "copy data from backing files into an image", blockjobs::stream;
    ["block_job_set_speed"], [need("device", Kind::Word), need("speed", Kind::Size)], "device speed", "limit the speed of a job (MiB a second, or with suffix)", blockjobs::set_speed;
    ["block_job_cancel"], [need("f", Kind::Flag), need("device", Kind::Word)], "[-f] device", "stop a job (-f: also one that is paused)", blockjobs::cancel;
    ["block_job_complete"], [need("device", Kind::Word)], "device", "switch a ready job over", blockjobs::complete;
    ["block_job_pause"], [need("device", Kind::Word)], "device", "let a job stand still", blockjobs::pause;
    ["block_job_resume"], [need("device", Kind::Word)], "device", "let a paused job go on", blockjobs::resume;
    ["nbd_server_start"], [need("a", Kind::Flag), need("w", Kind::Flag), need("uri", Kind::Word)], "[-a] [-w] host:port", "start the NBD server (-a: export all disks; -w: writable)", nbd::start;
    ["nbd_server_add"], [need("w", Kind::Flag), need("device", Kind::Word), may("name", Kind::Word)], "[-w] device [name]", "export a disk over NBD (-w: writable)", nbd::add;
    ["nbd_server_remove"], [need("f", Kind::Flag), need("name", Kind::Word)], "[-f] name", "take an NBD export away (-f: although clients use it)", nbd::remove;
    ["nbd_server_stop"], [], "", "end the NBD server", nbd::stop;
    ["qemu-io"], [need("d", Kind::Flag), need("device", Kind::Word), need("command", Kind::Word)], "[-d] device \"command\"", "run a qemu-io command on a disk (-d: of the device of that id or path)", block::qemu_io;
    ["balloon"], [need("value", Kind::Long)], "target", "ask the guest to keep 'target' MiB of its memory", memory::balloon;
    ["device_add"], [need("device", Kind::Rest)], "driver[,prop=value][,...]", "add a device, as -device does", objects::device_add;
    ["device_del"], [need("id", Kind::Word)], "id", "take a device out", objects::device_del;
    ["object_del"], [need("id", Kind::Word)], "id", "remove an object", objects::object_del;
];

pub(crate) static INFO: &[Command] = commands![
    ["version"], [], "", "version of the emulator", info::version;
    ["status"], [], "", "whether the machine runs", info::status;
    ["name"], [], "", "name of the machine", info::name;
    ["uuid"], [], "", "UUID of the machine", info::uuid;
    ["kvm"], [], "", "whether KVM is used", info::kvm;
    ["jit"], [], "", "state of the translator's code cache", info::jit;
    ["accel"], [], "", "the CPU engine in use", info::accel;
    ["cpus"], [], "", "the CPUs and their threads", info::cpus;
    ["history"], [], "", "lines typed before", info::history;
    ["registers"], [need("a", Kind::Flag), may("vcpu", Kind::Int)], "[-a|vcpu]", "CPU registers (-a: of all CPUs)", registers::info;
    ["mem"], [], "", "virtual memory in use, by access rights", paging::mem;
    ["tlb"], [], "", "virtual to physical mappings", paging::tlb;
    ["mtree"], [need("f", Kind::Flag)], "[-f]", "memory and port ranges (-f: flat view)", tree::mtree;
    ["pci"], [], "", "PCI devices", info::pci;
    ["qtree"], [], "", "devices by bus", tree::qtree;
    ["qom-tree"], [may("path", Kind::Word)], "[path]", "object tree", tree::qom_tree;
    ["chardev"], [], "", "character devices", info::chardev;
    ["block"], [need("n", Kind::Flag), need("v", Kind::Flag), may("device", Kind::Word)], "[-n] [-v] [device]", "block devices (-v: more)", block::block;
    ["blockstats"], [], "", "statistics of block devices", block::blockstats;
    ["block-jobs"], [], "", "jobs over block devices", blockjobs::info;
    ["snapshots"], [], "", "snapshots that images hold", drives::snapshots;
    ["roms"], [], "", "ROMs and images in memory", info::roms;
    ["irq"], [], "", "counts of interrupts", info::irq;
    ["pic"], [], "", "state of the interrupt controllers", info::pic;
    ["lapic"], [], "", "state of the local APICs", info::lapic;
    ["balloon"], [], "", "memory that the balloon leaves the guest", memory::info_balloon;
    ["iothreads"], [], "", "I/O threads", objects::iothreads;
    ["memdev"], [], "", "memory back ends", info::memdev;
    ["memory_size_summary"], [], "", "memory sizes", info::memory_size;
    ["trace-events"], [may("name", Kind::Word)], "[name]", "trace points and their state", log::trace_events;
];

/// A command as documentation shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doc {
    pub name: &'static str,
    pub usage: &'static str,
    pub help: &'static str,
}

/// All commands, and all `info` items.
pub fn docs() -> (Vec<Doc>, Vec<Doc>) {
    let doc = |c: &Command| Doc { name: c.names[0], usage: c.usage, help: c.help };
    (COMMANDS.iter().map(doc).collect(), INFO.iter().map(doc).collect())
}

fn line(prefix: &str, command: &Command) -> String {
    let usage = if command.usage.is_empty() { String::new() } else { format!(" {}", command.usage) };
    format!("{prefix}{}{usage} -- {}\n", command.names.join("|"), command.help)
}

async fn help(_: Session, args: Args) -> Result<String> {
    let Some(name) = args.text("name") else {
        return Ok(sorted(COMMANDS, ""));
    };
    let (first, item) = name.split_once(char::is_whitespace).unwrap_or((name, ""));
    if first == "info" && !item.trim().is_empty() {
        let found = INFO.iter().find(|c| c.names.contains(&item.trim()));
        return Ok(found.map_or_else(|| format!("unknown command: '{name}'\n"), |c| line("info ", c)));
    }
    Ok(match COMMANDS.iter().find(|c| c.names.contains(&first)) {
        Some(command) if command.names[0] == "info" => sorted(INFO, "info "),
        Some(command) if command.names[0] == "log" => {
            let items = trace::Items::help();
            format!(
                "{}Log items (comma separated):\n{:<15} remove all logs\n{items}",
                line("", command),
                "none"
            )
        }
        Some(command) => line("", command),
        None => format!("unknown command: '{first}'\n"),
    })
}

async fn info_help(_: Session, _: Args) -> Result<String> {
    Ok(sorted(INFO, "info "))
}

fn sorted(list: &[Command], prefix: &str) -> String {
    let mut all: Vec<&Command> = list.iter().collect();
    all.sort_by_key(|c| c.names[0]);
    all.into_iter().map(|c| line(prefix, c)).collect()
}

/// What may stand for the last word of `begun`.
pub(crate) fn complete(begun: &str) -> Vec<String> {
    let words: Vec<&str> = begun.trim_start().split(' ').filter(|w| !w.is_empty()).collect();
    let fresh = begun.ends_with(' ') || begun.is_empty();
    let last = if fresh { "" } else { words.last().copied().unwrap_or_default() };
    let list = match (words.first(), words.len() + usize::from(fresh)) {
        (_, 0 | 1) => COMMANDS,
        (Some(&"info"), 2) => INFO,
        (Some(&("help" | "?")), 2) => COMMANDS,
        (Some(&("help" | "?")), 3) if words.get(1) == Some(&"info") => INFO,
        _ => return Vec::new(),
    };
    let names = list.iter().flat_map(|c| c.names);
    names.filter(|n| n.starts_with(last)).map(|n| n.to_string()).collect()
}
