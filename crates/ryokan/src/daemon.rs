//! `-daemonize`: the program starts itself anew in a session of its own; the parent waits
//! until that is ready, and ends with status 0, or with what went wrong.

use base::fd::Inherited;
use base::{Failure, Result, fail};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Names the descriptor on which the second process tells that it is ready.
const VARIABLE: &str = "RYOKAN_DAEMON_READY";

/// Tells the parent, if there is one, that the program is ready.
pub struct Ready(Option<File>);

impl Ready {
    /// Detaches from the terminal and lets the parent go.
    pub fn tell(&mut self) -> Result<()> {
        let Some(mut pipe) = self.0.take() else { return Ok(()) };
        // Only now: relative paths on the command line are the user's.
        std::env::set_current_dir("/").ok();
        let null = File::options().read(true).write(true).open("/dev/null")?;
        for result in [
            rustix::stdio::dup2_stdin(&null),
            rustix::stdio::dup2_stdout(&null),
            rustix::stdio::dup2_stderr(&null),
        ] {
            result.map_err(|e| Failure::from(std::io::Error::from(e)))?;
        }
        pipe.write_all(b"+")?;
        Ok(())
    }
}

/// Whether this is the process that was started and not the one that does the work.
pub fn is_parent(daemonize: bool) -> bool {
    daemonize && std::env::var_os(VARIABLE).is_none()
}

/// The process that does the work: in a session of its own.
pub fn enter(daemonize: bool, inherited: &Inherited) -> Result<Ready> {
    let Some(fd) = std::env::var(VARIABLE).ok().filter(|_| daemonize) else { return Ok(Ready(None)) };
    let pipe = inherited.take(fd.parse().map_err(|_| fail!("{VARIABLE} is not a descriptor"))?)?;
    rustix::process::setsid().map_err(|e| Failure::from(std::io::Error::from(e)))?;
    Ok(Ready(Some(pipe.into())))
}

/// Starts the process that does the work, with all descriptors this one has, and waits for it:
/// the exit status.
pub fn detach() -> Result<ExitCode> {
    let (reader, writer): (OwnedFd, OwnedFd) =
        rustix::pipe::pipe().map_err(|e| Failure::from(std::io::Error::from(e)))?;
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| Failure::from(std::io::Error::from(e)))?;
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(VARIABLE, writer.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| Failure::os("cannot start the daemon", &e))?;
    drop(writer);
    let mut told = [0; 1];
    if File::from(reader).read(&mut told)? == 1 {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().map_err(|e| fail!("waiting for the daemon: {e}"))?;
    Ok(ExitCode::from(status.code().unwrap_or(1).clamp(1, 255) as u8))
}
