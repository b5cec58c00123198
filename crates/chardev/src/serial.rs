use crate::hub::Hub;
use crate::link::Link;
use crate::registry::Made;
use crate::stream::Stream;
use crate::{Backend, Params, Parity};
use base::{Failure, Result};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsendbreak, tcsetattr};
use std::sync::Arc;
use tokio::runtime::Handle;

/// A host terminal line.
struct Serial {
    stream: Arc<Stream>,
    link: Arc<Link>,
    runtime: Handle,
}

impl Serial {
    fn configure(&self, params: Params) -> Result<(), rustix::io::Errno> {
        let mut settings = tcgetattr(&*self.link)?;
        settings.make_raw();
        settings.set_speed(params.speed)?;
        let modes = &mut settings.control_modes;
        *modes -= ControlModes::CSIZE | ControlModes::PARENB | ControlModes::PARODD | ControlModes::CSTOPB;
        *modes |= match params.data_bits {
            5 => ControlModes::CS5,
            6 => ControlModes::CS6,
            7 => ControlModes::CS7,
            _ => ControlModes::CS8,
        };
        modes.set(ControlModes::PARENB, params.parity != Parity::None);
        modes.set(ControlModes::PARODD, params.parity == Parity::Odd);
        modes.set(ControlModes::CSTOPB, params.stop_bits == 2);
        tcsetattr(&*self.link, OptionalActions::Now, &settings)
    }
}

impl Backend for Serial {
    fn write(&self, bytes: &[u8]) -> usize {
        self.stream.write(bytes)
    }

    fn filename(&self) -> String {
        "serial".into()
    }

    fn drained(&self) -> bool {
        self.stream.drained()
    }

    fn set_params(&self, params: Params) {
        // A speed that the line cannot do leaves it as it was.
        let _ = self.configure(params);
    }

    fn set_break(&self, on: bool) {
        if on {
            let link = self.link.clone();
            self.runtime.spawn_blocking(move || tcsendbreak(&*link));
        }
    }
}

pub(crate) fn open(runtime: &Handle, hub: &Arc<Hub>, path: &str) -> Result<Made> {
    let failed = |e: std::io::Error| Failure::os(format!("Could not open '{path}'"), &e);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    tcgetattr(&fd).map_err(|e| failed(e.into()))?;
    let link = {
        let _runtime = runtime.enter();
        Arc::new(Link::new(fd).map_err(failed)?)
    };
    let stream = Stream::new(hub.clone(), false);
    let serial = Serial { stream: stream.clone(), link: link.clone(), runtime: runtime.clone() };
    serial.set_params(Params { speed: 115_200, parity: Parity::None, data_bits: 8, stop_bits: 1 });
    stream.open(link.clone());
    let task = runtime.spawn(async move {
        stream.carry(&link).await;
        stream.close();
    });
    Ok(Made { tasks: vec![task], ..Made::new(serial) })
}
