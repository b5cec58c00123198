use crate::params::{Group, Params, parse_number};
use crate::{Help, keys as k, tree};
use base::{Failure, Result, bail, fail};
use serde_json::Value;
use spec::invocation::{AddFd, Invocation, Monitor, MonitorMode};
use spec::machine::Boot;
use spec::{Said, Tree};

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Builder {
    pub inv: Invocation,
    /// The option being read, for messages.
    pub place: String,
    pub help: Option<Help>,
    pub machine: Merged,
    pub smp: Merged,
    pub memory: Merged,
    pub boot: Merged,
    pub name: Merged,
    pub drives: Vec<(Params, String)>,
    pub devices: Vec<(Tree, String)>,
    pub chardevs: Vec<(Params, String)>,
    pub serials: Vec<(String, String)>,
    pub parallels: Vec<(String, String)>,
    pub debugcon: Option<(String, String)>,
    pub qtest: Option<(String, String)>,
    pub gdb: Option<(String, String)>,
    /// Monitors on devices in the legacy form: device, mode, place.
    pub monitors: Vec<(String, MonitorMode, String)>,
    pub snapshot: bool,
    pub nographic: bool,
    pub display_none: bool,
    pub has_mon: bool,
}

/// An option whose repetitions add up, the last value of a key winning.
#[derive(Default)]
pub(crate) struct Merged {
    pub params: Params,
    pub place: String,
}

impl Merged {
    pub fn extend(&mut self, text: &str, group: &'static Group) -> Result<()> {
        let more = Params::parse(text, group)?;
        self.place = format!("-{} {text}", group.name.strip_suffix("-opts").unwrap_or(group.name));
        self.params.help |= more.help;
        self.params.list.extend(more.list);
        Ok(())
    }
}

impl Builder {
    pub fn ask(&mut self, help: Help) {
        self.help.get_or_insert(help);
    }

    pub fn uuid(&mut self, text: &str) -> Result<()> {
        self.inv.machine.uuid = Some(parse_uuid(text)?);
        Ok(())
    }

    pub fn numa(&mut self, text: &str) -> Result<()> {
        if text.trim_start().starts_with('{') {
            self.inv.machine.numa.extend(tree::parse(text, None)?);
            return Ok(());
        }
        let params = Params::parse(text, &k::NUMA)?;
        if params.help {
            self.ask(Help::Group("numa"));
            return Ok(());
        }
        self.inv.machine.numa.push(params.into_lists());
        Ok(())
    }

    pub fn smbios(&mut self, text: &str) -> Result<()> {
        self.inv.machine.smbios.push(Params::parse(text, &k::SMBIOS)?.into_lists());
        Ok(())
    }

    pub fn fw_cfg(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::FW_CFG)?;
        if params.get("name").is_none() {
            bail!("Parameter 'name' is missing");
        }
        if params.get("file").is_some() == params.get("string").is_some() {
            bail!("file or string: exactly one of them is needed");
        }
        self.inv.machine.fw_cfg.push(params.into_tree());
        Ok(())
    }

    /// An item of the firmware's own folder for ROMs that belong to no device.
    pub fn option_rom(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::OPTION_ROM)?;
        let file = params.owned("romfile").ok_or_else(|| fail!("Parameter 'romfile' is missing"))?;
        let name = file.rsplit('/').next().unwrap_or_default();
        let mut item = Params::default();
        item.set("name", &format!("genroms/{name}"));
        item.set("file", &file);
        self.inv.machine.fw_cfg.push(item.into_tree());
        Ok(())
    }

    pub fn global(&mut self, text: &str) -> Result<()> {
        let short = text.split_once('=').and_then(|(left, value)| Some((left.rsplit_once('.')?, value)));
        let (driver, property, value) = match short {
            Some(((driver, property), value)) if !left_has_comma(text) => {
                (driver.to_string(), property.to_string(), value.to_string())
            }
            _ => {
                let params = Params::parse(text, &k::GLOBAL)?;
                let need = |key: &str| params.owned(key).ok_or_else(|| fail!("Parameter '{key}' is missing"));
                (need("driver")?, need("property")?, need("value")?)
            }
        };
        self.inv.machine.globals.push((driver, property, value));
        self.inv.places.globals.push(self.place.clone());
        Ok(())
    }

    pub fn boot_file(&mut self, which: fn(&mut Boot) -> &mut Option<String>, value: &str) -> Result<()> {
        *which(&mut self.inv.machine.boot) = Some(value.into());
        Ok(())
    }

    pub fn firmware_dir(&mut self, dir: &str) -> Result<()> {
        if matches!(dir, "help" | "?") {
            self.ask(Help::FirmwareDirs);
        } else {
            self.inv.machine.boot.firmware_dirs.push(dir.into());
        }
        Ok(())
    }

    pub fn cpu(&mut self, text: &str) -> Result<()> {
        if matches!(text, "help" | "?") {
            self.ask(Help::Cpus);
        }
        self.inv.machine.cpu = Some(text.into());
        self.inv.places.cpu = Some(self.place.clone());
        Ok(())
    }

    pub fn device(&mut self, text: &str) -> Result<()> {
        let json = text.trim_start().starts_with('{');
        let device = if json {
            tree::parse(text, None)?.unwrap_or_default()
        } else {
            let params = Params::parse(text, &k::DEVICE)?;
            if params.help {
                self.ask(Help::Devices(params.owned("driver")));
                return Ok(());
            }
            params.into_tree()
        };
        match device.get("driver") {
            Some(Value::String(driver)) if matches!(driver.as_str(), "help" | "?") => {
                self.ask(Help::Devices(None));
                return Ok(());
            }
            Some(Value::String(_)) => {}
            Some(_) => return Err(Failure::expects("driver", "a device model name")),
            None => bail!("Parameter 'driver' is missing"),
        }
        let id = device.get("id").and_then(Value::as_str);
        if id.is_some() && self.devices.iter().any(|(d, _)| d.get("id").and_then(Value::as_str) == id) {
            bail!("Duplicate ID '{}' for device", id.unwrap_or_default());
        }
        self.devices.push((device, self.place.clone()));
        Ok(())
    }

    pub fn object(&mut self, text: &str) -> Result<()> {
        let Some(object) = tree::parse(text, k::OBJECT.implied)? else {
            let kind = text.split(',').next().filter(|t| !matches!(*t, "help" | "?"));
            self.ask(Help::Objects(kind.map(|t| t.strip_prefix("qom-type=").unwrap_or(t).into())));
            return Ok(());
        };
        for key in ["qom-type", "id"] {
            if !object.get(key).is_some_and(Value::is_string) {
                bail!("Parameter '{key}' is missing");
            }
        }
        let id = &object["id"];
        if self.inv.machine.objects.iter().any(|other| other.tree["id"] == *id) {
            bail!("Duplicate ID '{}' for object", id.as_str().unwrap_or_default());
        }
        self.inv.machine.objects.push(Said { tree: object, typed: tree::is_json(text) });
        self.inv.places.objects.push(self.place.clone());
        Ok(())
    }

    pub fn blockdev(&mut self, text: &str) -> Result<()> {
        let Some(node) = tree::parse(text, k::BLOCKDEV.implied)? else {
            self.ask(Help::Formats);
            return Ok(());
        };
        if !node.get("driver").is_some_and(Value::is_string) {
            bail!("Parameter 'driver' is missing");
        }
        self.inv.machine.blockdevs.push(Said { tree: node, typed: tree::is_json(text) });
        self.inv.places.blockdevs.push(self.place.clone());
        Ok(())
    }

    pub fn display(&mut self, text: &str) -> Result<()> {
        if text != "none" {
            bail!("Ryokan has no display yet: only 'none' is possible");
        }
        self.display_none = true;
        Ok(())
    }

    pub fn audiodev(&mut self, text: &str) -> Result<()> {
        let dev = tree::parse(text, k::AUDIODEV.implied)?.unwrap_or_default();
        match (dev.get("driver").and_then(Value::as_str), dev.get("id")) {
            (_, None) => bail!("Parameter 'id' is missing"),
            (Some("none"), Some(_)) if dev.len() == 2 => Ok(()),
            (Some("none"), Some(_)) => bail!("the audio back end 'none' has no options in Ryokan"),
            _ => bail!("Ryokan has no sound: only the driver 'none' is possible"),
        }
    }

    pub fn serial(&mut self, dev: &str) -> Result<()> {
        self.serials.push((dev.into(), self.place.clone()));
        Ok(())
    }

    pub fn parallel(&mut self, dev: &str) -> Result<()> {
        if self.parallels.len() >= 3 {
            bail!("too many parallel ports");
        }
        self.parallels.push((dev.into(), self.place.clone()));
        Ok(())
    }

    pub fn debugcon(&mut self, dev: &str) -> Result<()> {
        self.debugcon = Some((dev.into(), self.place.clone()));
        Ok(())
    }

    pub fn gdb(&mut self, dev: &str) -> Result<()> {
        self.gdb = (dev != "none").then(|| (dev.to_string(), self.place.clone()));
        Ok(())
    }

    pub fn qtest(&mut self, dev: &str) -> Result<()> {
        self.qtest = Some((dev.into(), self.place.clone()));
        Ok(())
    }

    pub fn monitor(&mut self, dev: &str, mode: MonitorMode) -> Result<()> {
        self.has_mon = true;
        if dev != "none" {
            self.monitors.push((dev.into(), mode, self.place.clone()));
        }
        Ok(())
    }

    pub fn mon(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::MON)?;
        let chardev = params.owned("chardev").ok_or_else(|| fail!("Parameter 'chardev' is missing"))?;
        let pretty = params.flag("pretty");
        let mode = match params.get("mode") {
            Some("control") => MonitorMode::Control { pretty: pretty == Some(true) },
            _ if pretty == Some(true) => bail!("'pretty' is not compatible with HMP monitors"),
            _ => MonitorMode::Readline,
        };
        self.has_mon = true;
        self.inv.monitors.push(Monitor { id: params.owned("id"), chardev, mode });
        self.inv.places.monitors.push(self.place.clone());
        Ok(())
    }

    pub fn escape(&mut self, text: &str) -> Result<()> {
        let code = parse_number(text).and_then(|n| u8::try_from(n).ok()).filter(|&n| n > 0 && n < 128);
        self.inv.escape = code.ok_or_else(|| Failure::expects("echr", "a character code from 1 to 127"))?;
        Ok(())
    }

    pub fn log_items(&mut self, text: &str) -> Result<()> {
        if matches!(text, "help" | "?") {
            self.ask(Help::LogItems);
            return Ok(());
        }
        self.inv.log.items.extend(text.split(',').filter(|t| !t.is_empty()).map(str::to_string));
        Ok(())
    }

    pub fn trace(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::TRACE)?;
        if params.help || matches!(params.get("enable"), Some("help" | "?")) {
            self.ask(Help::TracePoints);
            return Ok(());
        }
        let trace = &mut self.inv.trace;
        trace.patterns.extend(params.owned("enable"));
        trace.events = params.owned("events").or(trace.events.take());
        trace.file = params.owned("file").or(trace.file.take());
        Ok(())
    }

    pub fn add_fd(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::ADD_FD)?;
        let missing = |key: &str| fail!("{key} option is required and must be non-negative");
        let fd = params.number::<i32>("fd").ok().flatten().ok_or_else(|| missing("fd"))?;
        let set = params.number::<u64>("set").ok().flatten().ok_or_else(|| missing("set"))?;
        if fd <= 2 {
            bail!("fd cannot be a standard I/O stream");
        }
        self.inv.add_fds.push(AddFd { fd, set, opaque: params.owned("opaque") });
        self.inv.places.add_fds.push(self.place.clone());
        Ok(())
    }

    pub fn msg(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::MSG)?;
        let message = &mut self.inv.message;
        message.timestamp = params.flag("timestamp").unwrap_or(message.timestamp);
        message.guest_name = params.flag("guest-name").unwrap_or(message.guest_name);
        Ok(())
    }

    pub fn overcommit(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::OVERCOMMIT)?;
        let overcommit = &mut self.inv.overcommit;
        overcommit.mem_lock = params.flag("mem-lock").unwrap_or(overcommit.mem_lock);
        Ok(())
    }

    pub fn sandbox(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::SANDBOX)?;
        let is = |key: &str, value: &str| params.get(key) == Some(value);
        self.inv.sandbox = params.flag("enable").unwrap_or(false).then(|| spec::Sandbox {
            obsolete_allowed: is("obsolete", "allow"),
            elevate: match params.get("elevateprivileges") {
                Some("deny") => spec::Elevate::Deny,
                Some("children") => spec::Elevate::Children,
                _ => spec::Elevate::Allow,
            },
            spawn_denied: is("spawn", "deny"),
            resources_denied: is("resourcecontrol", "deny"),
        });
        Ok(())
    }
}

fn left_has_comma(text: &str) -> bool {
    text.split('=').next().is_some_and(|left| left.contains(','))
}

fn parse_uuid(text: &str) -> Result<[u8; 16]> {
    let hex: String = text.chars().filter(|&c| c != '-').collect();
    let dashes: Vec<usize> = text.char_indices().filter(|&(_, c)| c == '-').map(|(at, _)| at).collect();
    let number = u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32 && !hex.starts_with('+'));
    match number {
        Some(number) if dashes.is_empty() || dashes == [8, 13, 18, 23] => Ok(number.to_be_bytes()),
        _ => bail!("failed to parse UUID string: wrong format"),
    }
}
