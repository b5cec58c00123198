//! `-help` and its relatives: what the command line asks to be shown instead of running.

use crate::VERSION;
use cli::{Help, Kind, help, query};
use device::Model;
use machine::{Objects, engines};
use schema::introspect::{CommandLineOptionInfo, CommandLineParameterInfo, CommandLineParameterType};
use std::process::ExitCode;

/// The version line of `-version`.
pub fn version() -> String {
    format!("QEMU emulator version 7.2.0 (Ryokan {VERSION})\n")
}

pub fn help(what: &Help, program: &str) -> ExitCode {
    let text = match what {
        Help::Usage => help::usage(program, VERSION),
        Help::Version => version(),
        Help::Machines => help::machines(),
        Help::Group(name) => help::group(name),
        Help::Accels => help::accels(),
        Help::Chardevs => help::chardevs(),
        Help::Cpus => cpus(),
        Help::Devices(None) => devices(),
        Help::Devices(Some(name)) => return device(name, program),
        Help::Objects(None) => objects(),
        Help::Objects(Some(name)) => return object(name, program),
        Help::Formats => formats(),
        Help::LogItems => trace::Items::help(),
        Help::TracePoints => trace_points(),
        Help::FirmwareDirs => firmware_dirs(),
    };
    print!("{text}");
    ExitCode::SUCCESS
}

fn cpus() -> String {
    let mut text = "Available CPUs:\n".to_string();
    for model in cpu::models::definitions(&engines::offer("interpreter")) {
        text += format!("x86 {:<24}  {}", model.name, model.description).trim_end();
        text.push('\n');
    }
    text
}

fn category(model: &Model) -> &'static str {
    let name = model.name;
    match model.parent {
        _ if ["blk", "ide-", "scsi", "ahci", "nvme", "floppy", "fdc"]
            .iter()
            .any(|part| name.contains(part)) =>
        {
            "Storage devices"
        }
        _ if ["serial", "console", "parallel", "debugcon", "kbd", "mouse", "tablet"]
            .iter()
            .any(|p| name.contains(p)) =>
        {
            "Input devices"
        }
        "pci-bridge" | "base-pci-bridge" => "Controller/Bridge/Hub devices",
        _ => "Misc devices",
    }
}

fn devices() -> String {
    let mut models: Vec<_> = devices::models().into_iter().filter(|model| model.user_creatable).collect();
    models.sort_by_key(|model| (category(model), model.name));
    let mut text = String::new();
    let mut last = "";
    for model in models {
        if category(model) != last {
            last = category(model);
            text += &format!("{}{last}:\n", if text.is_empty() { "" } else { "\n" });
        }
        text += &format!("name \"{}\"", model.name);
        if model.bus != device::BusKind::System {
            text += &format!(", bus {}", model.bus.name());
        }
        for alias in model.aliases {
            text += &format!(", alias \"{alias}\"");
        }
        if !model.description.is_empty() {
            text += &format!(", desc \"{}\"", model.description);
        }
        text.push('\n');
    }
    text
}

fn device(name: &str, program: &str) -> ExitCode {
    let Some(model) = devices::models().into_iter().find(|model| model.answers_to(name)) else {
        eprintln!("{program}: -device {name},help: '{name}' is not a valid device model name");
        return ExitCode::FAILURE;
    };
    println!("{} options:", model.name);
    let mut properties: Vec<_> = model.all_properties().collect();
    properties.sort_by_key(|property| property.name);
    for property in properties {
        let kind = format!("<{}>", property.type_name());
        let default = property.default.map(|d| format!(" (default: {d})")).unwrap_or_default();
        println!("  {:<23} - {}{default}", format!("{}={kind}", property.name), property.help);
    }
    ExitCode::SUCCESS
}

fn objects() -> String {
    let list: String = Objects::types().iter().map(|kind| format!("  {}\n", kind.name)).collect();
    format!("List of user creatable objects:\n{list}")
}

fn object(name: &str, program: &str) -> ExitCode {
    let Some(kind) = Objects::types().iter().find(|kind| kind.name == name) else {
        eprintln!("{program}: -object {name},help: invalid object type: {name}");
        return ExitCode::FAILURE;
    };
    println!("{name} options:");
    for property in kind.properties {
        println!("  {}=<{}> - {}", property.name, property.type_name(), property.help);
    }
    ExitCode::SUCCESS
}

fn formats() -> String {
    let names: Vec<&str> = block::formats::all().map(|driver| driver.name).collect();
    let read_only: Vec<&str> = block::formats::all().filter(|d| d.read_only).map(|d| d.name).collect();
    let mut text = format!("Supported formats: {}\n", names.join(" "));
    if !read_only.is_empty() {
        text += &format!("Supported formats (read-only): {}\n", read_only.join(" "));
    }
    text
}

fn trace_points() -> String {
    let points = trace::Points::new();
    control::declare_trace_points(&points);
    let all = points.matching("*").unwrap_or_default();
    all.into_iter().map(|point| format!("{}\n", point.name())).collect()
}

fn firmware_dirs() -> String {
    let executable = std::env::current_exe().ok();
    let dirs = firmware::rom::search_path(&[], executable.as_deref());
    dirs.iter().map(|dir| format!("{}\n", dir.display())).collect()
}

/// What `query-command-line-options` answers.
pub fn option_info() -> Vec<CommandLineOptionInfo> {
    let parameter = |p: query::Parameter| CommandLineParameterInfo {
        name: p.name.to_string(),
        kind: match p.kind {
            Kind::String => CommandLineParameterType::String,
            Kind::Bool => CommandLineParameterType::Boolean,
            Kind::Number => CommandLineParameterType::Number,
            Kind::Size => CommandLineParameterType::Size,
        },
        help: (!p.help.is_empty()).then(|| p.help.to_string()),
        default: None,
    };
    let option = |o: query::OptionInfo| CommandLineOptionInfo {
        option: o.option.to_string(),
        parameters: o.parameters.into_iter().map(parameter).collect(),
    };
    query::options().into_iter().map(option).collect()
}
