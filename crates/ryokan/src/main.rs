//! `ryokan`: from the command line to a running machine, and its end.

#![forbid(unsafe_code)]

mod daemon;
mod message;
mod process;
mod sandbox;
mod session;
mod show;

use base::fd::Inherited;
use cli::Parsed;
use message::Messages;
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;

/// What the program calls itself in `-version` and `query-version`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let program = base::program();
    let mut messages = Messages::new(&program);
    let invocation = match cli::parse(args) {
        Err(complaint) => return failed(&messages, complaint.message()),
        Ok(Parsed::Help(help)) => return show::help(&help, &program),
        Ok(Parsed::Run(invocation)) => *invocation,
    };
    messages.settle(&invocation);
    if daemon::is_parent(invocation.daemonize) {
        return daemon::detach().unwrap_or_else(|failure| failed(&messages, failure));
    }
    let inherited = Arc::new(Inherited::at_start());
    let ready = match daemon::enter(invocation.daemonize, &inherited) {
        Ok(ready) => ready,
        Err(failure) => return failed(&messages, failure),
    };
    if let Some(sandbox) = &invocation.sandbox
        && let Err(failure) = sandbox::enter(sandbox)
    {
        return failed(&messages, format_args!("-sandbox on: {failure}"));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&messages, format_args!("cannot start the event loop: {error}")),
    };
    match runtime.block_on(session::run(invocation, inherited, ready, &messages)) {
        Ok(status) => ExitCode::from(status as u8),
        Err(complaint) => failed(&messages, complaint.message()),
    }
}

fn failed(messages: &Messages, why: impl Display) -> ExitCode {
    messages.say(why);
    ExitCode::FAILURE
}
