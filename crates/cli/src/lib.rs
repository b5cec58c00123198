//! The command line: one table of options ([`options`]) and of their keys ([`keys`]), from which
//! parser, `-help` and `query-command-line-options` come. [`parse`] gives plain data
//! ([`spec::Invocation`]) or says what was asked to be shown.

#![forbid(unsafe_code)]

mod builder;
mod chardev;
mod config;
mod drive;
mod finish;
pub mod help;
pub mod keys;
mod machine;
pub mod options;
mod params;
pub mod query;
mod tree;

pub use chardev::gdb_device;
pub use params::{Group, Key, Kind};

use base::Failure;
use builder::Builder;
use spec::Invocation;
use std::fmt;

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    Run(Box<Invocation>),
    Help(Help),
}

/// Something to be shown instead of running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Help {
    /// `-help`: [`help::usage`].
    Usage,
    Version,
    /// `-machine help`.
    Machines,
    /// `-machine TYPE,help`: [`help::group`].
    Group(&'static str),
    Accels,
    Cpus,
    /// `-device help`, or the properties of one.
    Devices(Option<String>),
    /// `-object help`, or the properties of one type.
    Objects(Option<String>),
    /// `-drive format=help`.
    Formats,
    Chardevs,
    /// `-d help`.
    LogItems,
    /// `-trace help`.
    TracePoints,
    /// `-L help`.
    FirmwareDirs,
}

/// Why a command line cannot be carried out: `-option value: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The option with its value, as given; empty when no single one is at fault.
    pub place: String,
    pub failure: Failure,
}

impl Complaint {
    pub fn at(place: impl Into<String>, failure: Failure) -> Self {
        Complaint { place: place.into(), failure }
    }

    /// What is printed on standard error after the program's name: one line, and one more when
    /// there is a hint.
    pub fn message(&self) -> String {
        let hint = self.failure.hint.as_ref().map(|h| format!("\n{h}")).unwrap_or_default();
        format!("{self}{hint}")
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.is_empty() {
            true => write!(f, "{}", self.failure),
            false => write!(f, "{}: {}", self.place, self.failure),
        }
    }
}

/// Parses the arguments after the program's name.
pub fn parse<I: IntoIterator<Item = String>>(args: I) -> Result<Parsed, Complaint> {
    let mut builder = Builder::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if !arg.starts_with('-') || arg == "-" {
            builder.place = arg.clone();
            builder.image(&arg).map_err(|f| Complaint::at(&arg, f))?;
            continue;
        }
        // GNU style is accepted as well.
        let name = arg.strip_prefix("--").or(arg.strip_prefix('-')).unwrap_or_default();
        let Some(option) = options::find(name) else {
            return Err(options::unknown(&arg, name));
        };
        let value = match option.arg {
            None => String::new(),
            Some(_) => match args.next() {
                Some(value) => value,
                None => return Err(Complaint::at(&arg, Failure::new("requires an argument"))),
            },
        };
        builder.place = if option.arg.is_some() { format!("-{name} {value}") } else { format!("-{name}") };
        (option.take)(&mut builder, &value).map_err(|f| Complaint::at(&builder.place, f))?;
        if let Some(now @ (Help::Usage | Help::Version)) = &builder.help {
            return Ok(Parsed::Help(now.clone()));
        }
    }
    match builder.help.take() {
        Some(help) => Ok(Parsed::Help(help)),
        None => finish::finish(builder).map(|inv| Parsed::Run(Box::new(inv))),
    }
}

#[cfg(test)]
mod tests;
