//! The project's own commands: `cargo xtask demo | test | layers | docs | bench | suites`.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod docs;
mod layers;
mod packages;
mod run;
mod suites;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  demo           build Ryokan, boot Debian's cloud kernel and drive it over QMP
  test [FILTER]  everything CI runs: layers, format, clippy, unit and system tests
  layers         check that crates import only downwards and are in ARCHITECTURE.md
  docs           write docs/qmp.md from the schema
  bench NAME     measure against QEMU and the host (cpu, control, block)
  suites         QEMU's block test suite with Ryokan in its place (see docs/proof.md)
  packages       install the Debian packages that the tests and the demo need
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "demo" => demo::run(),
        "test" => test::run(&rest),
        "bench" => bench::run(&rest),
        "docs" => docs::write(),
        "suites" => suites::run(&rest),
        "layers" => layers::check(),
        "packages" => packages::install(),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("no such command: {other}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("xtask: {text}");
            ExitCode::FAILURE
        }
    }
}
