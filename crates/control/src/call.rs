use crate::{Control, World};
use base::{Mutex, Result, fail};
use machine::Machine;
use qmp::Monitor;
use std::os::fd::OwnedFd;
use std::sync::Arc;

type After = Box<dyn FnOnce() + Send>;

/// What a handler knows of its caller. Clones are the same call.
#[derive(Clone)]
pub struct Call {
    control: Control,
    monitor: Option<Arc<Monitor>>,
    after: Arc<Mutex<Vec<After>>>,
}

impl Call {
    pub(crate) fn new(control: Control, monitor: Option<Arc<Monitor>>) -> Self {
        Call { control, monitor, after: Arc::default() }
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    pub fn world(&self) -> &World {
        self.control.world()
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.world().machine
    }

    /// The QMP monitor that the command came from.
    pub fn monitor(&self) -> Result<&Arc<Monitor>> {
        self.monitor.as_ref().ok_or_else(|| fail!("this command needs a QMP monitor"))
    }

    /// Takes the descriptor that `getfd` gave a name.
    pub fn take_named(&self, name: &str) -> Option<OwnedFd> {
        self.monitor.as_ref()?.take_named(name)
    }

    /// Does `act` once the reply is on its way (`spec/wire.md` §6): effects whose events come
    /// after the reply.
    pub fn after_reply(&self, act: impl FnOnce() + Send + 'static) {
        self.after.lock().push(Box::new(act));
    }

    pub(crate) fn take_after(&self) -> Vec<After> {
        std::mem::take(&mut self.after.lock())
    }
}
