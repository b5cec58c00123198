//! A QMP monitor on a character device.

use crate::Control;
use base::{Mutex, Result};
use chardev::{Event, FrontEnd, Port};
use qmp::{Monitor, Outlet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the monitor writes to.
struct Out(Port);

impl Outlet for Out {
    fn write(&self, bytes: &[u8]) -> usize {
        self.0.write(bytes)
    }
    fn accept_input(&self) {
        self.0.accept_input();
    }
}

/// The front end of a QMP monitor; the monitor lives as long as this.
pub struct QmpPort {
    port: Port,
    monitor: Arc<Monitor>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl QmpPort {
    /// Puts a QMP monitor on the character device `chardev`. To be called on the runtime.
    pub fn open(control: &Control, chardev: &str, options: qmp::Options) -> Result<Arc<QmpPort>> {
        let port = control.world().host.chardevs.claim(chardev)?;
        let monitor = control.monitor(Arc::new(Out(port.clone())), options);
        let task = tokio::spawn(monitor.clone().run());
        let front = Arc::new(QmpPort { port, monitor, task: Mutex::new(Some(task)) });
        front.port.connect(&front);
        Ok(front)
    }

    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }
}

impl Drop for QmpPort {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl FrontEnd for QmpPort {
    fn can_receive(&self) -> usize {
        self.monitor.can_receive()
    }

    fn receive(&self, bytes: &[u8], fds: Vec<OwnedFd>) {
        self.monitor.receive(bytes, fds);
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => self.monitor.opened(),
            Event::Closed => self.monitor.closed(),
            Event::Break | Event::MuxIn | Event::MuxOut => {}
        }
    }

    fn writable(&self) {
        self.monitor.writable();
    }
}
