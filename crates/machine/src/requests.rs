//! Requests that wait for the main thread. Any thread may put them; vCPUs execute nothing
//! more until the main thread has met those that change the machine.

use crate::notice::{Cause, Notice};
use crate::vcpu::{Gate, VcpuHandle, VcpuOwner};
use base::Mutex;
use base::notice::Notices;
use cpu::Request;
use device::{Device, Power, ResetCause, ShutdownCause};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device that the guest let go of.
#[derive(Clone)]
pub(crate) struct Ejected(pub Arc<dyn Device>);

impl PartialEq for Ejected {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Ejected {}

impl std::fmt::Debug for Ejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ejected({})", self.0.model().name)
    }
}

/// What is waiting to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    pub debug: Option<usize>,
    pub broken: Option<(usize, String)>,
    pub suspend: bool,
    pub shutdown: Option<Cause>,
    pub reset: Option<Cause>,
    pub wakeup: bool,
    pub powerdown: bool,
    pub panicked: bool,
    pub crash_loaded: bool,
    pub watchdog: bool,
    pub exit: Option<i32>,
    pub ejected: Vec<Ejected>,
}

impl Pending {
    fn holds_vcpus(&self) -> bool {
        self.debug.is_some()
            || self.broken.is_some()
            || self.suspend
            || self.shutdown.is_some()
            || self.reset.is_some()
            || self.panicked
            || self.watchdog
            || self.exit.is_some()
    }
}

/// The mailbox; it is the board's [`Power`] for devices.
pub(crate) struct Requests {
    pending: Mutex<Pending>,
    a20: AtomicBool,
    pub gate: Arc<Gate>,
    pub vcpus: Mutex<Vec<Arc<VcpuHandle>>>,
    notices: Notices,
}

impl Requests {
    pub(crate) fn new(notices: Notices) -> Arc<Self> {
        Arc::new(Requests {
            pending: Mutex::default(),
            a20: AtomicBool::new(true),
            gate: Arc::default(),
            vcpus: Mutex::default(),
            notices,
        })
    }

    pub(crate) fn vcpu_list(&self) -> Vec<Arc<VcpuHandle>> {
        self.vcpus.lock().clone()
    }

    pub(crate) fn put(&self, change: impl FnOnce(&mut Pending)) {
        let holds = {
            let mut pending = self.pending.lock();
            change(&mut pending);
            pending.holds_vcpus()
        };
        if holds {
            self.gate.hold(&self.vcpu_list());
        }
        self.notices.send(Notice::Pending);
    }

    /// Reset opens address line 20.
    pub(crate) fn set_a20_open(&self) {
        self.set_a20(true);
    }

    pub(crate) fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock())
    }
}

impl Power for Requests {
    fn request_reset(&self, _cause: ResetCause) {
        self.put(|pending| pending.reset = Some(Cause::GuestReset));
    }

    fn request_shutdown(&self, _cause: ShutdownCause) {
        self.put(|pending| pending.shutdown = Some(Cause::GuestShutdown));
    }

    fn request_suspend(&self) {
        self.put(|pending| pending.suspend = true);
    }

    fn guest_panicked(&self, loaded: bool) {
        self.put(|pending| if loaded { pending.crash_loaded = true } else { pending.panicked = true });
    }

    fn watchdog_expired(&self) {
        self.put(|pending| pending.watchdog = true);
    }

    fn exit(&self, status: i32) {
        self.put(|pending| pending.exit = Some(status));
    }

    fn set_a20(&self, enabled: bool) {
        if self.a20.swap(enabled, Ordering::SeqCst) != enabled {
            for vcpu in self.vcpu_list() {
                vcpu.link.set_a20(enabled);
                vcpu.link.post(Request::FLUSH);
            }
        }
    }

    fn a20(&self) -> bool {
        self.a20.load(Ordering::SeqCst)
    }

    fn inject_nmi(&self) {
        for vcpu in self.vcpu_list() {
            vcpu.link.post(Request::NMI);
        }
    }

    fn ejected(&self, device: Arc<dyn Device>) {
        self.put(|pending| pending.ejected.push(Ejected(device)));
    }
}

impl VcpuOwner for Requests {
    fn triple_fault(&self, _index: usize) {
        self.put(|pending| pending.reset = Some(Cause::GuestReset));
    }

    fn debug_stop(&self, index: usize) {
        self.put(|pending| pending.debug = Some(index));
    }

    fn broken(&self, index: usize, why: String) {
        self.put(|pending| pending.broken = Some((index, why)));
    }
}
