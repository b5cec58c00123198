//! Getting a vCPU's thread out of the host kernel: `immediate_exit` for the next entry, a
//! signal for the present one.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the kicker reaches; cut off from the run area before that is unmapped.
#[derive(Default)]
pub struct Kick {
    /// Address of `immediate_exit`, 0 when the vCPU is gone.
    flag: Mutex<usize>,
    /// The thread that runs the vCPU, 0 while none does.
    thread: AtomicI32,
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the handler (which does nothing) once in the process.
fn install() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid; the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

impl Kick {
    pub fn new(flag: *const AtomicU8) -> Self {
        install();
        Kick { flag: Mutex::new(flag as usize), thread: AtomicI32::new(0) }
    }

    /// The calling thread runs the vCPU from now on.
    pub fn enter(&self) {
        // SAFETY: no arguments; returns the caller's thread id.
        let thread = unsafe { libc::gettid() };
        self.thread.store(thread, Ordering::SeqCst);
    }

    pub fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// The run area goes away.
    pub fn cut(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    /// Makes the vCPU leave the guest soon, wherever it is.
    pub fn kick(&self) {
        let flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        if *flag == 0 {
            return;
        }
        // SAFETY: `cut` is called before the area is unmapped and waits for this lock.
        unsafe { &*(*flag as *const AtomicU8) }.store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal with a harmless handler to a thread of this process.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal());
            }
        }
    }
}
