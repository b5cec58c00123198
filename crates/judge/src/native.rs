//! Running cases on the host CPU, in a child process that can do nothing else.
//!
//! The child lives inside its signal handler: every case ends in a signal, whose handler
//! records the registers, puts the next case's into the signal frame and returns into it.
//! That makes one signal a case (about 2 us) and lets the kernel load the whole state.

use crate::case::{Case, MAX_CODE, Outcome, layout};
use base::{Failure, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Instead of a vector: the case ended the child (by a system call, say).
pub const DIED: u64 = 255;
/// Instead of a vector: the case did not end within a second.
pub const TIMED_OUT: u64 = 254;

/// Cases per exchange with the child.
pub const BATCH: usize = 256;

/// Where the child finds its control block; handlers have no other way to it.
const CONTROL: usize = 0x2ead_0000_0000;
const STACK_SIZE: usize = 256 << 10;

#[repr(C)]
struct Control {
    count: u64,
    /// The case under way, or the first to run.
    current: u64,
    /// Not 0 until the child's first signal.
    first: u64,
    go: i32,
    done: i32,
    /// Where opmasks, ZMM0-15's upper halves and ZMM16-31 stand in a signal frame.
    avx512: [u64; 3],
    /// Writable alias of the code pages.
    code_alias: u64,
    /// Code bytes to fill with INT3 again.
    dirty: u64,
    dirty_len: u64,
    template: [u8; layout::DATA_SIZE as usize],
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

/// A fork server for cases.
pub struct Native {
    control: *mut Control,
    control_fd: OwnedFd,
    code_fd: OwnedFd,
    code_alias: usize,
    read_only: [u8; layout::PAGE as usize],
    child: Option<Child>,
}

// SAFETY: the pointer is to a shared mapping that only this value (and the child) uses.
unsafe impl Send for Native {}

struct Child {
    pid: libc::pid_t,
    go: OwnedFd,
    done: OwnedFd,
}

fn last(what: &str) -> Failure {
    Failure::os(what, &std::io::Error::last_os_error())
}

fn memfd(name: &std::ffi::CStr, size: usize) -> Result<OwnedFd> {
    // SAFETY: plain system calls on a new descriptor.
    unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(last("memfd_create"));
        }
        let fd = OwnedFd::from_raw_fd(fd);
        if libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) != 0 {
            return Err(last("ftruncate"));
        }
        Ok(fd)
    }
}

fn map_anywhere(fd: RawFd, size: usize) -> Result<usize> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
    };
    if at == libc::MAP_FAILED { Err(last("mmap")) } else { Ok(at as usize) }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills both descriptors on success.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(last("pipe2"));
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

impl Native {
    /// `template`: what the data pages hold before each case; `read_only`: the page above.
    pub fn new(
        template: &[u8; layout::DATA_SIZE as usize],
        read_only: &[u8; layout::PAGE as usize],
    ) -> Result<Native> {
        let control_fd = memfd(c"judge-control", size_of::<Control>())?;
        let code_fd = memfd(c"judge-code", (layout::CODE_SIZE + layout::PAGE) as usize)?;
        let control = map_anywhere(control_fd.as_raw_fd(), size_of::<Control>())? as *mut Control;
        let code_alias = map_anywhere(code_fd.as_raw_fd(), (layout::CODE_SIZE + layout::PAGE) as usize)?;
        // SAFETY: both mappings are ours, of the given sizes.
        unsafe {
            (*control).template = *template;
            std::ptr::write_bytes(code_alias as *mut u8, 0xcc, layout::CODE_SIZE as usize);
            let page = (code_alias + layout::CODE_SIZE as usize) as *mut u8;
            page.copy_from_nonoverlapping(read_only.as_ptr(), read_only.len());
        }
        Ok(Native { control, control_fd, code_fd, code_alias, read_only: *read_only, child: None })
    }

    pub fn template(&self) -> [u8; layout::DATA_SIZE as usize] {
        // SAFETY: the mapping lives as long as self.
        unsafe { (*self.control).template }
    }

    pub fn read_only(&self) -> &[u8; layout::PAGE as usize] {
        &self.read_only
    }

    /// Runs cases in batches of [`BATCH`]. Outcomes with vector [`DIED`] and [`TIMED_OUT`]
    /// belong to cases that took the child down or did not end.
    pub fn run(&mut self, cases: &[Case], mut each: impl FnMut(usize, &Outcome)) -> Result<()> {
        let mut start = 0;
        while start < cases.len() {
            let count = (cases.len() - start).min(BATCH);
            self.batch(&cases[start..start + count])?;
            for i in 0..count {
                // SAFETY: the child has finished with the outcomes (it said so, or is gone).
                each(start + i, unsafe { &(*self.control).outcomes[i] });
            }
            start += count;
        }
        Ok(())
    }

    fn batch(&mut self, cases: &[Case]) -> Result<()> {
        let mut start = 0;
        while start < cases.len() {
            if self.child.is_none() {
                self.child = Some(self.spawn()?);
            }
            let Some(child) = &self.child else { break };
            // SAFETY: the child waits for the `go` byte and does not touch the block now.
            unsafe {
                for (i, case) in cases.iter().enumerate() {
                    (*self.control).cases[i] = *case;
                }
                (*self.control).current = start as u64;
                (*self.control).count = cases.len() as u64;
            }
            let vector = match child.exchange() {
                Exchange::Done => return Ok(()),
                Exchange::Died => DIED,
                Exchange::TimedOut => TIMED_OUT,
            };
            // In case `current`.
            // SAFETY: as above; the child is ended first.
            let current = unsafe {
                self.end_child();
                (*self.control).current as usize
            };
            let current = current.clamp(start, cases.len() - 1);
            // SAFETY: as above.
            unsafe {
                (*self.control).outcomes[current].vector = vector;
            }
            start = current + 1;
        }
        Ok(())
    }

    fn end_child(&mut self) {
        if let Some(child) = self.child.take() {
            // SAFETY: our own child, by its id; reaped at once.
            unsafe {
                libc::kill(child.pid, libc::SIGKILL);
                libc::waitpid(child.pid, std::ptr::null_mut(), 0);
            }
        }
    }

    fn spawn(&self) -> Result<Child> {
        let (go_read, go_write) = pipe()?;
        let (done_read, done_write) = pipe()?;
        // SAFETY: no child exists now.
        unsafe {
            (*self.control).go = go_read.as_raw_fd();
            (*self.control).done = done_write.as_raw_fd();
        }
        let fds = (self.control_fd.as_raw_fd(), self.code_fd.as_raw_fd());
        // SAFETY: the child only makes system calls and runs the handler below: nothing that
        // needs locks or the allocator of this (possibly multi-threaded) process.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(last("fork")),
            0 => child_main(fds.0, fds.1, self.code_alias as u64),
            _ => Ok(Child { pid, go: go_write, done: done_read }),
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.end_child();
        // SAFETY: both mappings were made by `new` and nothing points into them any more.
        unsafe {
            libc::munmap(self.control.cast(), size_of::<Control>());
            libc::munmap(self.code_alias as *mut _, (layout::CODE_SIZE + layout::PAGE) as usize);
        }
    }
}

enum Exchange {
    Done,
    Died,
    TimedOut,
}

impl Child {
    /// Lets the child work on a batch.
    fn exchange(&self) -> Exchange {
        let byte = [1u8];
        let mut reply = [0u8];
        // SAFETY: reads and writes one byte of local buffers.
        unsafe {
            if libc::write(self.go.as_raw_fd(), byte.as_ptr().cast(), 1) != 1 {
                return Exchange::Died;
            }
            let mut poll = libc::pollfd { fd: self.done.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let ready = loop {
                let n = libc::poll(&mut poll, 1, 1_000);
                if n >= 0 || *libc::__errno_location() != libc::EINTR {
                    break n;
                }
            };
            if ready == 0 {
                Exchange::TimedOut
            } else if ready == 1 && libc::read(self.done.as_raw_fd(), reply.as_mut_ptr().cast(), 1) == 1 {
                Exchange::Done
            } else {
                Exchange::Died
            }
        }
    }
}

fn child_main(control_fd: RawFd, code_fd: RawFd, code_alias: u64) -> ! {
    // SAFETY: the child's own address space: fixed mappings go where nothing is
    // (MAP_FIXED_NOREPLACE), and every failure ends the process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &limit);
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let rx = libc::PROT_READ | libc::PROT_EXEC;
        fixed(CONTROL, size_of::<Control>(), rw, control_fd, 0);
        fixed(layout::CODE as usize, layout::CODE_SIZE as usize, rx, code_fd, 0);
        fixed(
            layout::READ_ONLY as usize,
            layout::PAGE as usize,
            libc::PROT_READ,
            code_fd,
            layout::CODE_SIZE as i64,
        );
        fixed(layout::DATA as usize, layout::DATA_SIZE as usize, rw, -1, 0);
        let control = CONTROL as *mut Control;
        (*control).code_alias = code_alias;
        (*control).avx512 =
            [5, 6, 7].map(|component| u64::from(std::arch::x86_64::__cpuid_count(0xd, component).ebx));
        (*control).first = 1;
        (*control).dirty = 0;
        (*control).dirty_len = layout::CODE_SIZE;
        let stack =
            libc::mmap(std::ptr::null_mut(), STACK_SIZE, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_SIZE };
        if stack == libc::MAP_FAILED || libc::sigaltstack(&alternate, std::ptr::null_mut()) != 0 {
            libc::_exit(3);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // 32-bit code uses DS and ES, which a 64-bit process leaves null.
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(layout::USER_SS));
        confine();
        std::arch::asm!("int3");
        libc::_exit(4)
    }
}

/// # Safety
/// For the child only, before it runs cases.
unsafe fn fixed(at: usize, size: usize, prot: i32, fd: RawFd, offset: i64) {
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // SAFETY: does not replace anything.
    let got = unsafe {
        libc::mmap(
            at as *mut _,
            size,
            prot,
            kind | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE,
            fd,
            offset,
        )
    };
    if got as usize != at {
        // SAFETY: ends the child.
        unsafe { libc::_exit(2) }
    }
}

/// Leaves the child read, write, sigreturn and exit.
///
/// # Safety
/// For the child only.
unsafe fn confine() {
    const ALLOWED: [i64; 4] = [libc::SYS_read, libc::SYS_write, libc::SYS_rt_sigreturn, libc::SYS_exit_group];
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [statement(0x20, 0); 4 + ALLOWED.len()];
    // Architecture, then number (struct seccomp_data).
    program[0] = statement(0x20, 4);
    program[1] = libc::sock_filter { code: 0x15, jt: 0, jf: ALLOWED.len() as u8 + 1, k: 0xc000_003e };
    program[2] = statement(0x20, 0);
    for (i, number) in ALLOWED.iter().enumerate() {
        let to_allow = (ALLOWED.len() - i) as u8;
        program[3 + i] = libc::sock_filter { code: 0x15, jt: to_allow, jf: 0, k: *number as u32 };
    }
    program[3 + ALLOWED.len()] = statement(0x06, libc::SECCOMP_RET_KILL_PROCESS);
    let mut all = [statement(0x06, libc::SECCOMP_RET_ALLOW); 5 + ALLOWED.len()];
    all[..program.len()].copy_from_slice(&program);
    let filter = libc::sock_fprog { len: all.len() as u16, filter: all.as_mut_ptr() };
    // SAFETY: the program is valid for the call; failure ends the child.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) != 0 {
            libc::_exit(5);
        }
    }
}

/// The extended part of the signal frame: the XSAVE header and AVX state.
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;

const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_signal(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the control block is mapped at CONTROL in the child, the only process that has
    // this handler; the kernel passes a valid frame. AC, NT and ID of the case would stay set in
    // the handler, and the last two even beyond it.
    unsafe {
        std::arch::asm!("push 0x202", "popfq");
        let control = &mut *(CONTROL as *mut Control);
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        if std::mem::take(&mut control.first) != 0 {
            control.current = wait(control, false);
        } else {
            record(context, control.avx512, &mut control.outcomes[control.current as usize % BATCH]);
            control.current += 1;
            if control.current >= control.count {
                control.current = wait(control, true);
            }
        }
        let at = control.current as usize % BATCH;
        install(control, at, context);
    }
}

/// Waits for the next batch; returns the first case to run.
unsafe fn wait(control: &mut Control, reply: bool) -> u64 {
    let mut byte = [1u8];
    // SAFETY: one byte of a local buffer; the parent's end closing ends the child.
    unsafe {
        if reply && libc::write(control.done, byte.as_ptr().cast(), 1) != 1 {
            libc::_exit(0);
        }
        if libc::read(control.go, byte.as_mut_ptr().cast(), 1) != 1 {
            libc::_exit(0);
        }
        std::ptr::read_volatile(&control.current).min(BATCH as u64 - 1)
    }
}

unsafe fn record(context: &libc::mcontext_t, avx512: [u64; 3], outcome: &mut Outcome) {
    outcome.vector = context.gregs[libc::REG_TRAPNO as usize] as u64;
    outcome.error_code = context.gregs[libc::REG_ERR as usize] as u64;
    outcome.address = context.gregs[libc::REG_CR2 as usize] as u64;
    let r = &mut outcome.registers;
    for (to, from) in r.gpr.iter_mut().zip(GREGS) {
        *to = context.gregs[from as usize] as u64;
    }
    r.rip = context.gregs[libc::REG_RIP as usize] as u64;
    r.rflags = context.gregs[libc::REG_EFL as usize] as u64;
    // SAFETY: the frame has FXSAVE state and, on hosts with AVX, the standard-format XSAVE
    // extension, whose header says which parts are in their initial state.
    unsafe {
        let fp = context.fpregs.cast::<u8>();
        let has = features(fp);
        let present = if has & 4 != 0 { fp.add(XSTATE_BV).cast::<u64>().read_unaligned() } else { 3 };
        let [masks, upper, high] = avx512.map(|at| fp.add(at as usize));
        let word = |at: usize| fp.add(at).cast::<u16>().read_unaligned();
        if present & 1 != 0 {
            (r.fcw, r.fsw, r.ftw) = (word(0), word(2), word(4) & 0xff);
            r.st = fp.add(32).cast::<[[u8; 16]; 8]>().read_unaligned();
        } else {
            (r.fcw, r.fsw, r.ftw) = (0x37f, 0, 0);
            r.st = [[0; 16]; 8];
        }
        r.mxcsr = fp.add(24).cast::<u32>().read_unaligned();
        for i in 0..16 {
            let low = fp.add(160 + 16 * i).cast::<[u64; 2]>().read_unaligned();
            let high = fp.add(YMM_HIGH + 16 * i).cast::<[u64; 2]>();
            let low = if present & 2 != 0 { low } else { [0; 2] };
            let high = if present & 4 != 0 { high.read_unaligned() } else { [0; 2] };
            r.zmm[i][..4].copy_from_slice(&[low[0], low[1], high[0], high[1]]);
        }
        for i in 0..16 {
            let words = upper.cast::<[u64; 4]>().add(i);
            let words = if has & present & 0x40 != 0 { words.read_unaligned() } else { [0; 4] };
            r.zmm[i][4..].copy_from_slice(&words);
        }
        for i in 0..16 {
            let words = high.cast::<[u64; 8]>().add(i);
            r.zmm[16 + i] = if has & present & 0x80 != 0 { words.read_unaligned() } else { [0; 8] };
        }
        let masks = masks.cast::<[u64; 8]>();
        r.opmask = if has & present & 0x20 != 0 { masks.read_unaligned() } else { [0; 8] };
        outcome.memory = *(layout::DATA as *const [u8; layout::DATA_SIZE as usize]);
    }
}

/// XCR0's components that a signal frame has.
///
/// # Safety
/// `fp` is the floating-point part of a signal frame.
unsafe fn features(fp: *const u8) -> u64 {
    // SAFETY: `sw_reserved` (bytes 464..512) is part of the FXSAVE area: magic, size, features.
    unsafe {
        let extended = fp.add(464).cast::<u32>().read_unaligned() == 0x4650_5853;
        if extended { fp.add(472).cast::<u64>().read_unaligned() } else { 3 }
    }
}

unsafe fn install(control: &mut Control, index: usize, context: &mut libc::mcontext_t) {
    let case = &control.cases[index];
    let r = &case.registers;
    for (from, to) in r.gpr.iter().zip(GREGS) {
        context.gregs[to as usize] = *from as i64;
    }
    context.gregs[libc::REG_RIP as usize] = r.rip as i64;
    context.gregs[libc::REG_EFL as usize] = r.rflags as i64;
    let selectors = &mut context.gregs[libc::REG_CSGSFS as usize];
    *selectors = *selectors & !0xffff | i64::from(case.code_selector());
    // SAFETY: see `record`; memory and code writes stay inside their mappings.
    unsafe {
        let fp = context.fpregs.cast::<u8>();
        let put = |at: usize, value: u16| fp.add(at).cast::<u16>().write_unaligned(value);
        put(0, r.fcw);
        put(2, r.fsw);
        put(4, r.ftw);
        fp.add(6).write_bytes(0, 18);
        fp.add(24).cast::<u32>().write_unaligned(r.mxcsr);
        fp.add(32).cast::<[[u8; 16]; 8]>().write_unaligned(r.st);
        let has = features(fp);
        let avx = has & 4 != 0;
        for i in 0..16 {
            let [a, b, c, d, ..] = r.zmm[i];
            fp.add(160 + 16 * i).cast::<[u64; 2]>().write_unaligned([a, b]);
            if avx {
                fp.add(YMM_HIGH + 16 * i).cast::<[u64; 2]>().write_unaligned([c, d]);
            }
        }
        let wide = has & 0xe0 == 0xe0;
        if wide {
            let [masks, upper, high] = control.avx512.map(|at| fp.add(at as usize));
            masks.cast::<[u64; 8]>().write_unaligned(r.opmask);
            for i in 0..16 {
                let [.., a, b, c, d] = r.zmm[i];
                upper.cast::<[u64; 4]>().add(i).write_unaligned([a, b, c, d]);
                high.cast::<[u64; 8]>().add(i).write_unaligned(r.zmm[16 + i]);
            }
        }
        if avx {
            fp.add(XSTATE_BV).cast::<u64>().write_unaligned(if wide { 0xe7 } else { 7 });
        }
        let data = &mut *(layout::DATA as *mut [u8; layout::DATA_SIZE as usize]);
        *data = control.template;
        for patch in &case.patches {
            let (offset, len) = (patch.offset as usize, patch.len as usize);
            data[offset..offset + len].copy_from_slice(&patch.bytes[..len]);
        }
        let code = control.code_alias as *mut u8;
        code.add(control.dirty as usize).write_bytes(0xcc, control.dirty_len as usize);
        let (offset, bytes) = case.placed();
        code.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        control.dirty = offset as u64;
        control.dirty_len = bytes.len().min(MAX_CODE) as u64;
    }
}
