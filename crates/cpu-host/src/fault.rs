//! Unmasked SIMD floating-point exceptions: the host raises #XM itself, which arrives as
//! SIGFPE and is turned into a return from the thunk.

use base::{Failure, Result};
use std::arch::asm;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;

/// What Rust expects of MXCSR: all exceptions masked, round to nearest.
pub const DEFAULT_MXCSR: u32 = 0x1f80;

thread_local! {
    /// Where a SIMD exception of a running thunk continues; 0 when none may occur.
    static RECOVERY: Cell<usize> = const { Cell::new(0) };
}

/// Runs `thunk`, with SIMD exceptions on this thread continuing at `recovery`.
pub fn with_recovery(recovery: usize, thunk: impl FnOnce()) {
    RECOVERY.set(recovery);
    thunk();
    RECOVERY.set(0);
}

/// Sets the host's MXCSR.
pub fn set_host_mxcsr(value: u32) {
    // SAFETY: value has no reserved bit set (callers pass masked values or the default).
    unsafe {
        asm!("ldmxcsr [{0}]", in(reg) &raw const value, options(nostack, readonly));
    }
}

/// The host's MXCSR.
pub fn host_mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores four bytes.
    unsafe {
        asm!("stmxcsr [{0}]", in(reg) &raw mut value, options(nostack));
    }
    value
}

/// Installs the SIGFPE handler, once in a process: the disposition of a signal is the
/// process's, not ours.
pub fn install() -> Result<()> {
    let done = BEFORE.get_or_init(|| {
        // SAFETY: sigaction with a valid, zero-initialised structure and a handler of the
        // SA_SIGINFO signature.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut old: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigfpe as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGFPE, &action, &mut old) != 0 {
                return Err(*libc::__errno_location());
            }
            Ok(old)
        }
    });
    match done {
        Ok(_) => Ok(()),
        Err(errno) => Err(Failure::os("cannot handle SIGFPE", &std::io::Error::from_raw_os_error(*errno))),
    }
}

/// The handler that was there before: the translator's, if it was installed first.
static BEFORE: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

extern "C" fn on_sigfpe(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let recovery = RECOVERY.get();
    let before = BEFORE.get().and_then(|before| before.as_ref().ok());
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler. Without a thunk
    // under way the handler before is called as the kernel would; or the default action is
    // restored, which ends the process when the instruction is executed again.
    unsafe {
        if recovery != 0 {
            let context = context.cast::<libc::ucontext_t>();
            (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = recovery as i64;
        } else if let Some(action) = before
            && action.sa_flags & libc::SA_SIGINFO != 0
            && action.sa_sigaction != libc::SIG_DFL
        {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(action.sa_sigaction);
            handler(signal, info, context);
        } else {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
