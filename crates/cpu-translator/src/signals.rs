//! Instructions that the host refuses while translated code runs (a division by zero, a
//! non-canonical address, an unmasked SIMD exception): the signal leaves translated code
//! through its fault exit, with all registers as they were.
//!
//! Translated code runs with the guest's stack pointer, so a vCPU's thread takes no other
//! signal, and these only on a stack of their own.

use crate::layout::State;
use base::{Failure, Result};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::mem::offset_of;
use std::sync::OnceLock;

#[derive(Clone, Copy)]
struct Place {
    start: usize,
    size: usize,
    exit: usize,
}

thread_local! {
    /// The code area that this thread's vCPU runs in.
    static PLACE: Cell<Place> = const { Cell::new(Place { start: 0, size: 0, exit: 0 }) };
    static STACK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const SIGNALS: [i32; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];
const STACK_SIZE: usize = 256 << 10;

/// The handlers that were there before, by signal number.
static BEFORE: OnceLock<Result<[Option<libc::sigaction>; 32], i32>> = OnceLock::new();

/// Installs the handlers, once in a process.
pub fn install() -> Result<()> {
    let done = BEFORE.get_or_init(|| {
        let mut before: [Option<libc::sigaction>; 32] = [None; 32];
        for signal in SIGNALS {
            // SAFETY: sigaction with valid, zero-initialised structures and a handler of the
            // SA_SIGINFO signature.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let mut old: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                if libc::sigaction(signal, &action, &mut old) != 0 {
                    return Err(*libc::__errno_location());
                }
                before[signal as usize] = Some(old);
            }
        }
        Ok(before)
    });
    match done {
        Ok(_) => Ok(()),
        Err(errno) => Err(Failure::os("cannot handle faults", &std::io::Error::from_raw_os_error(*errno))),
    }
}

/// Makes the calling thread fit for translated code in this area.
pub fn prepare_thread(start: usize, size: usize, exit: usize) -> Result<()> {
    PLACE.set(Place { start, size, exit });
    STACK.with_borrow_mut(|stack| {
        if !stack.is_empty() {
            return Ok(());
        }
        stack.resize(STACK_SIZE, 0);
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_SIZE };
        // SAFETY: the stack lives as long as the thread; the mask is initialised by sigfillset.
        let failed = unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut mask);
            for signal in SIGNALS {
                libc::sigdelset(&mut mask, signal);
            }
            libc::sigaltstack(&alternate, std::ptr::null_mut()) != 0
                || libc::pthread_sigmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut()) != 0
        };
        if failed {
            return Err(Failure::os("cannot prepare a vCPU's thread", &std::io::Error::last_os_error()));
        }
        Ok(())
    })
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let place = PLACE.get();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as usize;
    if rip.wrapping_sub(place.start) < place.size {
        // SAFETY: within translated code GS addresses the vCPU's state page.
        unsafe {
            std::arch::asm!("mov gs:[{at}], {rip}", at = const offset_of!(State, fault_rip), rip = in(reg) rip,
                options(nostack));
        }
        registers[libc::REG_RIP as usize] = place.exit as i64;
        return;
    }
    pass_on(signal, info, context);
}

/// What would have happened without this handler.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = match BEFORE.get() {
        Some(Ok(before)) => before[signal as usize & 31],
        _ => None,
    };
    // SAFETY: calls the previous handler as the kernel would, by its flags; or restores the
    // default, under which the instruction is executed and fails again.
    unsafe {
        match before {
            Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                        std::mem::transmute(action.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(libc::c_int) = std::mem::transmute(action.sa_sigaction);
                    handler(signal);
                }
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
