use crate::Backend;
use crate::hub::Hub;
use crate::link::Link;
use crate::registry::Made;
use crate::stream::Stream;
use base::{Failure, Mutex, Result, bail};
use rustix::fs::OFlags;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, isatty,
    tcgetattr, tcsetattr,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

struct Stdio {
    stream: Arc<Stream>,
    terminal: Arc<Terminal>,
    taken: Arc<AtomicBool>,
}

/// The controlling terminal's settings as they were and as they are wanted.
struct Terminal {
    before: Option<Termios>,
    signal: bool,
    echo: Mutex<bool>,
}

impl Terminal {
    fn apply(&self) {
        let Some(before) = &self.before else { return };
        let mut raw = before.clone();
        let echo = *self.echo.lock();
        if !echo {
            raw.input_modes -= InputModes::IGNBRK
                | InputModes::BRKINT
                | InputModes::PARMRK
                | InputModes::ISTRIP
                | InputModes::INLCR
                | InputModes::IGNCR
                | InputModes::ICRNL
                | InputModes::IXON;
            raw.output_modes |= OutputModes::OPOST;
            raw.local_modes -=
                LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
            raw.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
            raw.control_modes |= ControlModes::CS8;
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        }
        raw.local_modes.set(LocalModes::ISIG, self.signal);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &raw);
    }

    fn restore(&self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

impl Backend for Stdio {
    fn write(&self, bytes: &[u8]) -> usize {
        self.stream.write(bytes)
    }

    fn filename(&self) -> String {
        "stdio".into()
    }

    fn drained(&self) -> bool {
        self.stream.drained()
    }

    fn set_echo(&self, on: bool) {
        *self.terminal.echo.lock() = on;
        self.terminal.apply();
    }

    fn close(&self) {
        self.terminal.restore();
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.terminal.restore();
        self.taken.store(false, Ordering::Release);
    }
}

pub(crate) fn open(runtime: &Handle, hub: &Arc<Hub>, signals: bool, taken: Arc<AtomicBool>) -> Result<Made> {
    if taken.swap(true, Ordering::AcqRel) {
        bail!("cannot use stdio by multiple character devices");
    }
    let links = || -> std::io::Result<_> {
        let _runtime = runtime.enter();
        let input = Link::standard(fcntl_dupfd_cloexec(std::io::stdin(), 3)?, OFlags::RDONLY)?;
        let output = Link::standard(fcntl_dupfd_cloexec(std::io::stdout(), 3)?, OFlags::WRONLY)?;
        Ok((Arc::new(input), Arc::new(output)))
    };
    let (input, output) = links().map_err(|e| {
        taken.store(false, Ordering::Release);
        Failure::os("cannot use stdio", &e)
    })?;
    let before = if isatty(std::io::stdin()) { tcgetattr(std::io::stdin()).ok() } else { None };
    let terminal = Arc::new(Terminal { before, signal: signals, echo: Mutex::new(false) });
    terminal.apply();
    let stream = Stream::new(hub.clone(), false);
    stream.open(output.clone());
    let moving = stream.clone();
    let mut tasks = vec![runtime.spawn(async move { moving.carry_apart(Some(&input), &output).await })];
    if terminal.before.is_some() {
        let again = terminal.clone();
        tasks.push(runtime.spawn(async move {
            // A shell that stopped us has set the terminal for itself.
            let Ok(mut cont) = signal(SignalKind::from_raw(libc::SIGCONT)) else { return };
            while cont.recv().await.is_some() {
                again.apply();
            }
        }));
    }
    Ok(Made { tasks, ..Made::new(Stdio { stream, terminal, taken }) })
}
