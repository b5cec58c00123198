//! From what was read to what is to be done: defaults, checks between options.

use crate::Complaint;
use crate::builder::Builder;
use crate::chardev::{from_params, gdb_device, short_form};
use crate::machine::place_of;
use base::{Failure, Result, fail};
use spec::Invocation;
use spec::invocation::{Monitor, MonitorMode};

pub(crate) fn finish(mut b: Builder) -> Result<Invocation, Complaint> {
    let machine_place = b.machine.place.clone();
    let steps: [(&str, fn(&mut Builder) -> Result<()>); 4] = [
        (&machine_place, Builder::finish_machine),
        (&b.smp.place.clone(), Builder::finish_smp),
        (&b.memory.place.clone(), Builder::finish_memory),
        (&b.boot.place.clone(), Builder::finish_boot),
    ];
    for (place, step) in steps {
        step(&mut b).map_err(|f| Complaint::at(place, f))?;
    }
    b.finish_name();
    b.finish_drives();
    for (device, place) in std::mem::take(&mut b.devices) {
        b.inv.machine.devices.push(device);
        b.inv.places.devices.push(place);
    }
    b.inv.places.machine = place_of(&machine_place);
    b.inv.escape = if b.inv.escape == 0 { 1 } else { b.inv.escape };
    check_boot(&b.inv)?;
    for (params, place) in std::mem::take(&mut b.chardevs) {
        let chardev = from_params(&params).map_err(|f| Complaint::at(&place, f))?;
        b.inv.chardevs.push(chardev);
        b.inv.places.chardevs.push(place);
    }
    defaults(&mut b)?;
    attach(&mut b)?;
    check_names(&b.inv)?;
    b.inv.machine.places = b.inv.places.clone();
    Ok(b.inv)
}

fn check_boot(inv: &Invocation) -> Result<(), Complaint> {
    let boot = &inv.machine.boot;
    let lonely = |option: &str| Complaint::at("", fail!("{option} only allowed with -kernel option"));
    if boot.kernel.is_none() && boot.append.is_some() {
        return Err(lonely("-append"));
    }
    if boot.kernel.is_none() && boot.initrd.is_some() {
        return Err(lonely("-initrd"));
    }
    Ok(())
}

/// What there is when nothing was said: a serial port and a monitor, on the terminal unless
/// there is a (disabled) display or no terminal.
fn defaults(b: &mut Builder) -> Result<(), Complaint> {
    let nodefaults = b.inv.machine.nodefaults;
    let serial = b.serials.is_empty() && !nodefaults && !b.inv.machine.has_device(&["isa-serial"]);
    let parallel = b.parallels.is_empty() && !nodefaults && !b.inv.machine.has_device(&["isa-parallel"]);
    let monitor = !b.has_mon && !nodefaults;
    let default = |text: &str| (text.to_string(), String::new());
    if b.nographic && b.inv.daemonize && (serial || parallel || monitor) {
        return Err(Complaint::at("", fail!("-nographic cannot be used with -daemonize")));
    }
    let terminal = b.nographic || (!b.display_none && !b.inv.daemonize);
    if !terminal {
        if serial {
            b.serials.push(default("null"));
        }
    } else if serial && monitor && !b.uses_stdio() {
        b.serials.push(default("mon:stdio"));
    } else if serial && !b.uses_stdio() {
        b.serials.push(default("stdio"));
    } else if serial {
        b.serials.push(default("null"));
    } else if monitor && !b.uses_stdio() {
        b.monitors.push(("stdio".into(), MonitorMode::Readline, String::new()));
    }
    if terminal && (serial || b.nographic) && b.inv.machine.options.get("graphics").is_none() {
        // The firmware talks on the serial port.
        b.inv.machine.options.insert("graphics".into(), "off".into());
    }
    if parallel {
        b.parallels.push(default("null"));
    }
    Ok(())
}

impl Builder {
    /// Whether some option has taken the terminal.
    fn uses_stdio(&self) -> bool {
        let short = self
            .serials
            .iter()
            .chain(&self.parallels)
            .chain(&self.debugcon)
            .chain(&self.gdb)
            .chain(&self.qtest);
        short
            .map(|(dev, _)| dev)
            .chain(self.monitors.iter().map(|(dev, ..)| dev))
            .any(|d| d == "stdio" || d == "mon:stdio")
            || self.inv.chardevs.iter().any(|c| matches!(c.kind, spec::ChardevKind::Stdio { .. }))
    }

    /// Makes the character device of a short form; an existing one is named `chardev:ID`.
    fn open(&mut self, dev: &str, label: String, place: &str) -> Result<String, Complaint> {
        if let Some(id) = dev.strip_prefix("chardev:") {
            return Ok(id.to_string());
        }
        let chardev = short_form(dev, &label).map_err(|f| Complaint::at(place, f))?;
        if chardev.mux {
            self.inv.monitors.push(Monitor { id: None, chardev: label.clone(), mode: MonitorMode::Readline });
            self.inv.places.monitors.push(place.to_string());
        }
        self.inv.chardevs.push(chardev);
        self.inv.places.chardevs.push(place.to_string());
        Ok(label)
    }

    fn ports(&mut self, list: Vec<(String, String)>, kind: &str) -> Result<Vec<Option<String>>, Complaint> {
        let mut ports = Vec::new();
        for (at, (dev, place)) in list.into_iter().enumerate() {
            ports.push(match dev.as_str() {
                "none" => None,
                dev => Some(self.open(dev, format!("{kind}{at}"), &place)?),
            });
        }
        Ok(ports)
    }
}

fn attach(b: &mut Builder) -> Result<(), Complaint> {
    if let Some((dev, place)) = b.qtest.take() {
        b.inv.qtest = Some(b.open(&dev, "qtest".into(), &place)?);
        b.inv.places.qtest = Some(place);
    }
    for (at, (dev, mode, place)) in std::mem::take(&mut b.monitors).into_iter().enumerate() {
        let chardev = b.open(&dev, format!("compat_monitor{at}"), &place)?;
        b.inv.monitors.push(Monitor { id: None, chardev, mode });
        b.inv.places.monitors.push(place);
    }
    let serials = std::mem::take(&mut b.serials);
    b.inv.machine.serials = b.ports(serials, "serial")?;
    let parallels = std::mem::take(&mut b.parallels);
    b.inv.machine.parallels = b.ports(parallels, "parallel")?;
    if let Some((dev, place)) = b.debugcon.take() {
        b.inv.machine.debugcon = Some(b.open(&dev, "debugcon".into(), &place)?);
    }
    if let Some((dev, place)) = b.gdb.take() {
        let id = match dev.strip_prefix("chardev:") {
            Some(id) => id.to_string(),
            None => {
                b.inv.chardevs.push(gdb_device(&dev).map_err(|f| Complaint::at(&place, f))?);
                b.inv.places.chardevs.push(place.clone());
                "gdb".to_string()
            }
        };
        b.inv.gdb = Some(id);
        b.inv.places.gdb = Some(place);
    }
    Ok(())
}

/// Character devices that are used must be there.
fn check_names(inv: &Invocation) -> Result<(), Complaint> {
    let known =
        |id: &str| inv.chardevs.iter().any(|c| c.id == id || (c.mux && format!("{}-base", c.id) == id));
    let missing = |id: &str, place: &str| -> Result<(), Complaint> {
        if known(id) {
            return Ok(());
        }
        let failure = fail!("chardev \"{id}\" not found");
        let near = spec::nearest(id, inv.chardevs.iter().map(|c| c.id.as_str()));
        Err(Complaint::at(
            place,
            match near {
                Some(near) => failure.hint(format!("Did you mean '{near}'?")),
                None => failure,
            },
        ))
    };
    for (monitor, place) in inv.monitors.iter().zip(&inv.places.monitors) {
        missing(&monitor.chardev, place)?;
    }
    let ports = inv.machine.serials.iter().chain(&inv.machine.parallels).flatten();
    for id in ports.chain(&inv.machine.debugcon).chain(&inv.gdb).chain(&inv.qtest) {
        missing(id, "")?;
    }
    if inv.daemonize && inv.chardevs.iter().any(|c| matches!(c.kind, spec::ChardevKind::Stdio { .. })) {
        return Err(Complaint::at("", Failure::new("cannot use stdio with -daemonize")));
    }
    Ok(())
}
