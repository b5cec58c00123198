//! One thread per vCPU: runs guest code while the machine runs, and jobs for other threads
//! in between.

use base::{Mutex, Result, fail};
use cpu::{Exit, Link, Request, Vcpu};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex as StdMutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// What a vCPU thread reports to the machine, on its own thread.
pub(crate) trait VcpuOwner: Send + Sync {
    fn triple_fault(&self, index: usize);
    fn debug_stop(&self, index: usize);
    fn broken(&self, index: usize, why: String);
}

/// Lets all vCPU threads run or holds them.
#[derive(Default)]
pub(crate) struct Gate {
    /// The machine's clock runs and vCPUs may execute.
    open: AtomicBool,
    /// A request (reset, power-off) is waiting for the main thread: execute nothing more.
    hold: AtomicBool,
    parked: StdMutex<usize>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn open(&self, vcpus: &[Arc<VcpuHandle>]) {
        self.hold.store(false, Ordering::SeqCst);
        self.open.store(true, Ordering::SeqCst);
        for vcpu in vcpus {
            vcpu.link.post(Request::EXIT);
        }
    }

    /// Stops the vCPUs from executing without waiting for them (callable on a vCPU thread).
    pub(crate) fn hold(&self, vcpus: &[Arc<VcpuHandle>]) {
        self.hold.store(true, Ordering::SeqCst);
        for vcpu in vcpus {
            vcpu.link.post(Request::EXIT);
        }
    }

    /// Closes the gate and waits until every vCPU thread is parked. Not on a vCPU thread.
    pub(crate) fn close(&self, vcpus: &[Arc<VcpuHandle>]) {
        self.open.store(false, Ordering::SeqCst);
        for vcpu in vcpus {
            vcpu.link.post(Request::EXIT);
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        while *parked < vcpus.len() {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn may_run(&self) -> bool {
        self.open.load(Ordering::SeqCst) && !self.hold.load(Ordering::SeqCst)
    }

    fn count(&self, by: isize) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        *parked = parked.wrapping_add_signed(by);
        self.changed.notify_all();
    }
}

/// One vCPU and its thread.
pub struct VcpuHandle {
    pub index: usize,
    pub apic_id: u32,
    pub link: Arc<Link>,
    /// `None` once the thread takes no more of them.
    jobs: Mutex<Option<VecDeque<Job>>>,
    quit: AtomicBool,
    tid: AtomicI32,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: OnceLock<String>,
}

impl VcpuHandle {
    pub(crate) fn start(
        index: usize,
        apic_id: u32,
        link: Arc<Link>,
        vcpu: Box<dyn Vcpu>,
        gate: Arc<Gate>,
        owner: Arc<dyn VcpuOwner>,
    ) -> Result<Arc<VcpuHandle>> {
        let handle = Arc::new(VcpuHandle {
            index,
            apic_id,
            link,
            jobs: Mutex::new(Some(VecDeque::new())),
            quit: AtomicBool::new(false),
            tid: AtomicI32::new(0),
            thread: Mutex::new(None),
            path: OnceLock::new(),
        });
        let mine = handle.clone();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("CPU {index}"))
            .stack_size(16 << 20)
            .spawn(move || {
                mine.tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
                let _ = ready.send(());
                mine.live(vcpu, &gate, &*owner);
            })
            .map_err(|e| fail!("cannot start the thread of CPU {index}: {e}"))?;
        let _ = started.recv();
        *handle.thread.lock() = Some(thread);
        Ok(handle)
    }

    pub(crate) fn set_path(&self, path: String) {
        let _ = self.path.set(path);
    }

    /// Its place in the object tree.
    pub fn path(&self) -> &str {
        self.path.get().map_or("", String::as_str)
    }

    /// The host's id of the vCPU's thread.
    pub fn thread_id(&self) -> i32 {
        self.tid.load(Ordering::Acquire)
    }

    /// Runs `job` on the vCPU's thread at an instruction boundary and waits for its result.
    /// Works while the machine runs and while it is stopped.
    pub fn with<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R> {
        let (sender, result) = mpsc::channel();
        let job: Job = Box::new(move |vcpu| {
            let _ = sender.send(job(vcpu));
        });
        match &mut *self.jobs.lock() {
            Some(jobs) => jobs.push_back(job),
            None => drop(job),
        }
        self.link.post(Request::EXIT);
        result.recv().map_err(|_| fail!("CPU {} is gone", self.index))
    }

    pub(crate) fn end(&self) {
        self.quit.store(true, Ordering::SeqCst);
        self.link.post(Request::EXIT);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn live(&self, mut vcpu: Box<dyn Vcpu>, gate: &Gate, owner: &dyn VcpuOwner) {
        let mut parked = false;
        // After a triple fault or a failure nothing runs until the machine has been stopped.
        loop {
            // First the request, then what it may have been posted for: the other way round a
            // request that came in between would be lost.
            self.link.take(Request::EXIT);
            if self.quit.load(Ordering::SeqCst) {
                break;
            }
            self.do_jobs(&mut *vcpu);
            if !gate.may_run() {
                let closed = !gate.open.load(Ordering::SeqCst);
                if closed && !parked {
                    parked = true;
                    gate.count(1);
                }
                self.link.wait(Request::EXIT, None);
                continue;
            }
            if parked {
                parked = false;
                gate.count(-1);
                continue;
            }
            match vcpu.run() {
                Exit::Asked => {}
                Exit::Halted => self.link.wait(Request::all(), None),
                Exit::TripleFault => owner.triple_fault(self.index),
                Exit::Debug => owner.debug_stop(self.index),
                Exit::Broken(why) => owner.broken(self.index, why),
            }
        }
        if !parked {
            gate.count(1);
        }
        // Whoever still waits for a job learns that the vCPU is gone.
        *self.jobs.lock() = None;
    }

    fn do_jobs(&self, vcpu: &mut dyn Vcpu) {
        while let Some(job) = self.next_job() {
            job(vcpu);
        }
    }

    fn next_job(&self) -> Option<Job> {
        self.jobs.lock().as_mut()?.pop_front()
    }
}
