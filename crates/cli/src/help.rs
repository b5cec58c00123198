//! What `-help` and its relatives print, as far as the command line itself knows.

use crate::chardev;
use crate::keys::LISTED;
use crate::options::{Opt, SECTIONS};
use crate::params::Kind;

/// The text of `-help` for a program of the given name.
pub fn usage(program: &str, version: &str) -> String {
    let mut text = format!(
        "Ryokan {version}, a virtual machine monitor with QEMU's command line\n\
         \n\
         usage: {program} [OPTION...] [DISK-IMAGE]\n\
         \n\
         Try:\n  \
           {program} -m 1G disk.qcow2\n  \
           {program} -m 512 -nographic -kernel vmlinuz -initrd initrd.img -append console=ttyS0\n\
         \n\
         Leave the terminal's machine with Ctrl-A x; Ctrl-A c switches to the monitor.\n\
         DEV is one of: stdio, null, none, pty, file:PATH, pipe:PATH, /dev/ttyX,\n\
         tcp:HOST:PORT[,server=on][,wait=off], unix:PATH[,server=on][,wait=off],\n\
         telnet:HOST:PORT,server=on, udp:HOST:PORT, chardev:ID, and mon:DEV (with monitor).\n"
    );
    for section in SECTIONS {
        text += &format!("\n{}:\n", section.title);
        section.options.iter().for_each(|o| text += &line(o));
    }
    text += "\nSIZE takes a suffix k, M, G or T. Commas inside values are doubled.\n";
    text
}

fn line(option: &Opt) -> String {
    let names: Vec<String> =
        std::iter::once(&option.name).chain(option.aliases).map(|n| format!("-{n}")).collect();
    let head = format!("  {} {}", names.join(", "), option.arg.unwrap_or_default());
    let head = head.trim_end();
    if head.len() < 24 {
        format!("{head:<24}{}\n", option.help)
    } else {
        format!("{head}\n{:24}{}\n", "", option.help)
    }
}

/// The keys of an option (`-machine pc,help`).
pub fn group(name: &str) -> String {
    let Some(group) = LISTED.iter().find(|g| g.name == name) else { return String::new() };
    let mut text = format!("{name} options:\n");
    for key in group.keys {
        let kind = match key.kind {
            Kind::String => "str",
            Kind::Bool => "bool (on/off)",
            Kind::Number => "num",
            Kind::Size => "size",
        };
        text += &format!("  {}=<{kind}> - {}\n", key.name, key.help);
    }
    text
}

/// `-chardev help`.
pub fn chardevs() -> String {
    let mut kinds = chardev::KINDS;
    kinds.sort_unstable();
    format!("Available chardev backend types: \n{}", kinds.map(|k| format!("  {k}\n")).concat())
}

/// `-accel help`.
pub fn accels() -> String {
    "Accelerators supported in QEMU binary:\nqtest\ntcg\nkvm\ntranslator\ninterpreter\n".into()
}

/// `-machine help`; the default's line ends in `(default)`.
pub fn machines() -> String {
    let version = crate::machine::VERSION;
    let pc = "Standard PC (i440FX + PIIX, 1996)";
    let q35 = "Standard PC (Q35 + ICH9, 2009)";
    let mut text = "Supported machines are:\n".to_string();
    for (name, what) in [
        ("none".to_string(), "empty machine".to_string()),
        ("pc".into(), format!("{pc} (alias of pc-i440fx-{version})")),
        (format!("pc-i440fx-{version}"), format!("{pc} (default)")),
        ("q35".into(), format!("{q35} (alias of pc-q35-{version})")),
        (format!("pc-q35-{version}"), q35.into()),
    ] {
        text += &format!("{name:<20} {what}\n");
    }
    text
}
