//! `-machine`, `-accel`, `-smp`, `-m`, `-boot`, `-rtc`, `-action`.

use crate::builder::Builder;
use crate::params::{Params, size_failure};
use crate::{Help, keys as k};
use base::{Result, bail, fail};
use spec::machine::*;
use spec::size::parse_size;

/// The machine whose version an unversioned name stands for.
pub const VERSION: &str = "7.2";

impl Builder {
    pub fn machine(&mut self, text: &str) -> Result<()> {
        if matches!(text, "help" | "?") {
            self.ask(Help::Machines);
            return Ok(());
        }
        // QEMU takes kernel_irqchip for kernel-irqchip, and the like, in all of these keys.
        let mut params = Params::parse(&underscores(text), &k::MACHINE)?;
        if params.help {
            self.ask(Help::Group("machine"));
            return Ok(());
        }
        if let Some(kind) = params.get("type") {
            machine_kind(kind)?;
        }
        if let Some(accel) = params.owned("accel") {
            accel.split(':').try_for_each(check_accel)?;
        }
        self.machine.params.list.append(&mut params.list);
        self.machine.place = self.place.clone();
        Ok(())
    }

    pub fn machine_key(&mut self, key: &str, value: &str) -> Result<()> {
        self.machine.params.set(key, value);
        Ok(())
    }

    pub fn accel(&mut self, text: &str) -> Result<()> {
        if matches!(text, "help" | "?") {
            self.ask(Help::Accels);
            return Ok(());
        }
        let params = Params::parse(&underscores(text), &k::ACCEL)?;
        if params.help {
            self.ask(Help::Group("accel"));
            return Ok(());
        }
        let names = params.owned("accel").ok_or_else(|| fail!("Parameter 'accel' is missing"))?;
        let mut options = params.into_tree();
        options.remove("accel");
        for name in names.split(':') {
            check_accel(name)?;
            let accel = Accel { name: name.into(), options: options.clone() };
            if !self.inv.machine.accels.contains(&accel) {
                self.inv.machine.accels.push(accel);
            }
        }
        self.inv.places.accel = Some(self.place.clone());
        Ok(())
    }

    pub fn rtc(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::RTC)?;
        let rtc = &mut self.inv.machine.rtc;
        if let Some(base) = params.get("base") {
            rtc.base = match base {
                "utc" => RtcBase::Utc,
                "localtime" => RtcBase::LocalTime,
                date => RtcBase::Date(parse_date(date).ok_or_else(|| {
                    fail!("invalid datetime format")
                        .hint("valid formats: '2006-06-17T16:01:21' or '2006-06-17'")
                })?),
            };
        }
        if let Some(clock) = params.get("clock") {
            rtc.clock = match clock {
                "host" => RtcClock::Host,
                "rt" => RtcClock::Realtime,
                "vm" => RtcClock::Virtual,
                other => bail!("invalid option value '{other}'"),
            };
        }
        if let Some(fix) = params.get("driftfix") {
            rtc.slew = match fix {
                "slew" => true,
                "none" => false,
                other => bail!("invalid option value '{other}'"),
            };
        }
        Ok(())
    }

    pub fn action(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::ACTION)?;
        params.list.iter().try_for_each(|(key, value)| self.action_key(key, value))
    }

    pub fn action_key(&mut self, key: &str, value: &str) -> Result<()> {
        let actions = &mut self.inv.machine.actions;
        let bad = || fail!("Parameter '{key}' does not accept value '{value}'");
        match key {
            "reboot" => {
                actions.reboot_shuts_down =
                    choice(value, &[("reset", false), ("shutdown", true)]).ok_or_else(bad)?
            }
            "shutdown" => {
                actions.shutdown_pauses =
                    choice(value, &[("poweroff", false), ("pause", true)]).ok_or_else(bad)?
            }
            "panic" => {
                let all = [
                    ("pause", PanicAction::Pause),
                    ("shutdown", PanicAction::Shutdown),
                    ("exit-failure", PanicAction::ExitFailure),
                    ("none", PanicAction::None),
                ];
                actions.panic = choice(value, &all).ok_or_else(bad)?;
            }
            _ => {
                let all = [
                    ("reset", WatchdogChoice::Reset),
                    ("shutdown", WatchdogChoice::Shutdown),
                    ("poweroff", WatchdogChoice::Poweroff),
                    ("pause", WatchdogChoice::Pause),
                    ("debug", WatchdogChoice::Debug),
                    ("none", WatchdogChoice::None),
                    ("inject-nmi", WatchdogChoice::InjectNmi),
                ];
                actions.watchdog = choice(value, &all).ok_or_else(bad)?;
            }
        }
        Ok(())
    }

    /// `-machine` and what only makes sense together with it, once all is read.
    pub fn finish_machine(&mut self) -> Result<()> {
        let params = std::mem::take(&mut self.machine.params);
        let spec = &mut self.inv.machine;
        (spec.kind, spec.type_name) = machine_kind(params.get("type").unwrap_or("pc"))?;
        if let Some(names) = params.get("accel") {
            if !spec.accels.is_empty() {
                bail!("The -accel and \"-machine accel=\" options are incompatible");
            }
            let accel = |name: &str| Accel { name: name.into(), options: spec::Tree::new() };
            spec.accels = names.split(':').map(accel).collect();
        }
        let boot = &mut spec.boot;
        boot.kernel = boot.kernel.take().or(params.owned("kernel"));
        boot.initrd = boot.initrd.take().or(params.owned("initrd"));
        boot.append = boot.append.take().or(params.owned("append"));
        boot.bios = boot.bios.take().or(params.owned("firmware"));
        let mut options = params.into_tree();
        for key in ["type", "accel", "kernel", "initrd", "append", "firmware"] {
            options.remove(key);
        }
        spec.options = options;
        Ok(())
    }

    pub fn finish_boot(&mut self) -> Result<()> {
        let params = &self.boot.params;
        let boot = &mut self.inv.machine.boot;
        for (key, to) in [("order", &mut boot.order), ("once", &mut boot.once)] {
            *to = params.owned(key);
            check_order(to.as_deref().unwrap_or_default())?;
        }
        if params.get("splash").is_some() {
            bail!("a splash picture needs a display, which Ryokan does not have yet");
        }
        boot.menu = params.flag("menu") == Some(true);
        boot.strict = params.flag("strict") == Some(true);
        boot.splash_time = params
            .number("splash-time")
            .map_err(|_| fail!("splash-time is invalid, it should be a value between 0 and 65535"))?;
        boot.reboot_timeout = match params.get("reboot-timeout") {
            Some(text) => {
                let ms = text.parse::<i32>().ok().filter(|ms| (-1..=0xffff).contains(ms));
                Some(ms.ok_or_else(|| {
                    fail!("reboot timeout is invalid, it should be a value between -1 and 65535")
                })?)
            }
            None => None,
        };
        Ok(())
    }

    pub fn finish_memory(&mut self) -> Result<()> {
        let params = &self.memory.params;
        let memory = &mut self.inv.machine.memory;
        if let Some(text) = params.get("size") {
            let size = parse_size(text, 1 << 20).ok_or_else(|| size_failure("size"))?;
            // The granularity of RAM below 4 GiB in QEMU.
            memory.size = size.checked_next_multiple_of(8192).ok_or_else(|| fail!("ram size too large"))?;
            if memory.size == 0 {
                memory.size = MemorySpec::default().size;
            }
        }
        memory.slots = params.number("slots")?.unwrap_or(0);
        memory.max = match params.get("maxmem") {
            Some(text) => parse_size(text, 1 << 20).ok_or_else(|| size_failure("maxmem"))?,
            None => memory.size,
        };
        if memory.max < memory.size {
            bail!(
                "invalid value of maxmem: maximum memory size ({:#x}) must be at least the initial memory size ({:#x})",
                memory.max,
                memory.size
            );
        }
        if memory.slots > 0 || memory.max > memory.size {
            bail!("plugging memory is not supported by Ryokan yet");
        }
        Ok(())
    }

    pub fn finish_smp(&mut self) -> Result<()> {
        let params = &self.smp.params;
        let read = |key: &str| -> Result<u32> {
            let given = params.number::<u32>(key)?;
            if given == Some(0) {
                bail!("Invalid CPU topology: CPU topology parameters must be greater than zero");
            }
            Ok(given.unwrap_or(0))
        };
        let asked = Smp {
            cpus: read("cpus")?,
            maxcpus: read("maxcpus")?,
            sockets: read("sockets")?,
            dies: read("dies")?,
            cores: read("cores")?,
            threads: read("threads")?,
        };
        self.inv.machine.smp = topology(asked)?;
        Ok(())
    }

    pub fn finish_name(&mut self) {
        let params = &self.name.params;
        self.inv.machine.name = params.owned("guest");
        self.inv.process_name = params.owned("process");
        self.inv.debug_threads = params.flag("debug-threads") == Some(true);
    }
}

/// Underscores of the keys become dashes; values stay.
fn underscores(text: &str) -> String {
    let mut in_key = true;
    text.chars()
        .map(|c| {
            in_key = match c {
                '=' => false,
                ',' => true,
                _ => in_key,
            };
            if c == '_' && in_key { '-' } else { c }
        })
        .collect()
}

fn choice<T: Copy>(value: &str, all: &[(&str, T)]) -> Option<T> {
    all.iter().find(|(name, _)| *name == value).map(|&(_, v)| v)
}

const ACCELS: [&str; 5] = ["kvm", "tcg", "interpreter", "translator", "qtest"];

fn check_accel(name: &str) -> Result<()> {
    if ACCELS.contains(&name) {
        return Ok(());
    }
    let failure = fail!("invalid accelerator {name}");
    Err(match spec::nearest(name, ACCELS) {
        Some(near) => failure.hint(format!("Did you mean '{near}'?")),
        None => failure.hint("Use -accel help to list supported accelerators"),
    })
}

/// The board behind a machine name, and the name's full form.
pub(crate) fn machine_kind(name: &str) -> Result<(MachineKind, String)> {
    let version = |prefix: &str| {
        let rest = name.strip_prefix(prefix)?;
        let (major, minor) = rest.split_once('.')?;
        let digits = |s: &str| !s.is_empty() && s.len() <= 3 && s.bytes().all(|b| b.is_ascii_digit());
        (digits(major) && digits(minor)).then(|| name.to_string())
    };
    Ok(match name {
        "pc" => (MachineKind::Pc, format!("pc-i440fx-{VERSION}")),
        "q35" => (MachineKind::Q35, format!("pc-q35-{VERSION}")),
        "none" => (MachineKind::None, "none".into()),
        _ => match (version("pc-i440fx-"), version("pc-q35-")) {
            (Some(full), _) => (MachineKind::Pc, full),
            (_, Some(full)) => (MachineKind::Q35, full),
            _ => {
                let failure = fail!("unsupported machine type: \"{name}\"");
                let types = MACHINE_TYPES.iter().flat_map(|kind| [Some(kind.name), kind.alias]).flatten();
                return Err(match spec::nearest(name, types) {
                    Some(near) => failure.hint(format!("Did you mean '{near}'?")),
                    None => failure.hint("Use -machine help to list supported machines"),
                });
            }
        },
    })
}

fn check_order(letters: &str) -> Result<()> {
    for (at, letter) in letters.char_indices() {
        if !('a'..='p').contains(&letter) {
            bail!("Invalid boot device '{letter}'");
        }
        if letters[..at].contains(letter) {
            bail!("Boot device '{letter}' was given twice");
        }
    }
    Ok(())
}

/// Fills in what was left out (0): cores before sockets, as machines since 6.2 do.
pub(crate) fn topology(asked: Smp) -> Result<Smp> {
    let Smp { cpus, mut maxcpus, mut sockets, dies, mut cores, mut threads } = asked;
    let dies = dies.max(1);
    if cpus == 0 && maxcpus == 0 {
        (sockets, cores, threads) = (sockets.max(1), cores.max(1), threads.max(1));
    } else {
        maxcpus = if maxcpus > 0 { maxcpus } else { cpus };
        let rest = |a: u32, b: u32| maxcpus / a.saturating_mul(b).saturating_mul(dies).max(1);
        if cores == 0 {
            (sockets, threads) = (sockets.max(1), threads.max(1));
            cores = rest(sockets, threads);
        } else if sockets == 0 {
            threads = threads.max(1);
            sockets = rest(cores, threads);
        }
        if threads == 0 {
            threads = rest(sockets, cores);
        }
    }
    let product = [sockets, dies, cores, threads].into_iter().map(u64::from).product::<u64>();
    let total = u32::try_from(product).map_err(|_| fail!("Invalid CPU topology: too many CPUs"))?;
    let maxcpus = if maxcpus > 0 { maxcpus } else { total };
    let cpus = if cpus > 0 { cpus } else { maxcpus };
    let shape = format!("sockets ({sockets}) * dies ({dies}) * cores ({cores}) * threads ({threads})");
    if total != maxcpus {
        bail!(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: {shape} != maxcpus ({maxcpus})"
        );
    }
    if maxcpus < cpus {
        bail!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: {shape} == maxcpus ({maxcpus}) < smp_cpus ({cpus})"
        );
    }
    Ok(Smp { cpus, maxcpus, sockets, dies, cores, threads })
}

/// Seconds since 1970 of `YYYY-MM-DD[THH:MM:SS]`, UTC.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let field = |s: &str| s.parse::<i64>().ok().filter(|_| s.bytes().all(|b| b.is_ascii_digit()));
    let parts = |s: &str, by: char| -> Option<[i64; 3]> {
        let all: Option<Vec<i64>> = s.split(by).map(field).collect();
        all?.try_into().ok()
    };
    let [year, month, day] = parts(date, '-')?;
    let [hour, minute, second] = parts(time, ':')?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_at = usize::try_from(month - 1).ok().filter(|&m| m < 12)?;
    let fits = (1..=lengths[month_at]).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !fits || !(1970..=9999).contains(&year) {
        return None;
    }
    let leaps = |y: i64| y / 4 - y / 100 + y / 400;
    let days =
        (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + lengths[..month_at].iter().sum::<i64>() + day
            - 1;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// For messages of the whole machine when no single option is at fault.
pub(crate) fn place_of(place: &str) -> Option<String> {
    (!place.is_empty()).then(|| place.to_string())
}
