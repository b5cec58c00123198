//! `ryokan`: from the command line to a running machine, and its end.

#![forbid(unsafe_code)]

mod daemon;
mod process;
mod sandbox;
mod session;
mod show;

use base::fd::Inherited;
use cli::Parsed;
use std::process::ExitCode;
use std::sync::Arc;

/// What the program calls itself in `-version` and `query-version`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next().unwrap_or_default();
    let program = program.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("ryokan").to_string();
    let invocation = match cli::parse(args) {
        Err(complaint) => {
            eprintln!("{}", complaint.message(&program));
            return ExitCode::FAILURE;
        }
        Ok(Parsed::Help(help)) => return show::help(&help, &program),
        Ok(Parsed::Run(invocation)) => *invocation,
    };
    let ready = match daemon::detach(invocation.daemonize) {
        Ok(daemon::Role::Parent(status)) => return status,
        Ok(daemon::Role::Program(ready)) => ready,
        Err(failure) => {
            eprintln!("{program}: {failure}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(sandbox) = &invocation.sandbox
        && let Err(failure) = sandbox::enter(sandbox)
    {
        eprintln!("{program}: -sandbox on: {failure}");
        return ExitCode::FAILURE;
    }
    let inherited = Arc::new(Inherited::at_start());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{program}: cannot start the event loop: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(session::run(invocation, inherited, ready, &program)) {
        Ok(status) => ExitCode::from(status as u8),
        Err(complaint) => {
            eprintln!("{}", complaint.message(&program));
            ExitCode::FAILURE
        }
    }
}
