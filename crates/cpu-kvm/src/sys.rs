//! The `ioctl`s and the shared run area that `kvm-ioctls` does not give in the form needed
//! (Linux `Documentation/virt/kvm/api.rst`).

use kvm_bindings::{kvm_device_attr, kvm_msr_filter, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

const KVM_RUN: libc::c_ulong = 0xae80;
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_X86_SET_MSR_FILTER: libc::c_ulong = 0x4188_aec6;

fn check(result: libc::c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Queues an external interrupt.
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<()> {
    let vector = u32::from(vector);
    // SAFETY: the argument is a `struct kvm_interrupt`, one 32-bit word, which is only read.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const vector) })
}

/// Sets what the guest's TSC is ahead of the host's (Linux 5.16 and later).
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<()> {
    // KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.
    let attribute = kvm_device_attr { flags: 0, group: 0, attr: 0, addr: (&raw const offset) as u64 };
    // SAFETY: the attribute names a 64-bit value that lives through the call, which copies it.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) })
}

/// Makes accesses to the given ranges of MSRs leave to user space: (first, count, reads too).
pub fn filter_msrs(vm: &VmFd, ranges: &[(u32, u32, bool)]) -> Result<()> {
    // All zero: every MSR of a range is filtered.
    let mut bitmap = [0u8; 64];
    let mut filter = kvm_msr_filter::default();
    for (entry, &(base, nmsrs, reads)) in filter.ranges.iter_mut().zip(ranges) {
        assert!(nmsrs as usize <= bitmap.len() * 8);
        entry.flags = kvm_bindings::KVM_MSR_FILTER_WRITE;
        if reads {
            entry.flags |= kvm_bindings::KVM_MSR_FILTER_READ;
        }
        entry.base = base;
        entry.nmsrs = nmsrs;
        entry.bitmap = bitmap.as_mut_ptr();
    }
    // SAFETY: the filter and the bitmap it points to live through the call, which copies both.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_X86_SET_MSR_FILTER, &raw const filter) })
}

/// The memory a vCPU shares with the host kernel.
pub struct RunArea {
    at: *mut kvm_run,
    len: usize,
}

// SAFETY: the area belongs to one vCPU and moves with it between threads.
unsafe impl Send for RunArea {}
// SAFETY: shared references only read plain fields; nobody writes while they exist.
unsafe impl Sync for RunArea {}

impl RunArea {
    /// `len` is the size of the mapping. The area must not be used after `vcpu` is dropped.
    pub fn new(vcpu: &mut VcpuFd, len: usize) -> Self {
        RunArea { at: vcpu.get_kvm_run(), len }
    }

    pub fn get(&self) -> &kvm_run {
        // SAFETY: mapped while the vCPU lives, large enough by KVM's contract; the kernel
        // writes it only during `enter`, which takes `&mut self`.
        unsafe { &*self.at }
    }

    pub fn get_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as in `get`, and `&mut self` excludes other references made here.
        unsafe { &mut *self.at }
    }

    /// `immediate_exit`, which other threads set.
    pub fn immediate_exit(&self) -> *const AtomicU8 {
        // SAFETY: in bounds of the mapping; only the address is computed.
        unsafe { (&raw const (*self.at).immediate_exit).cast() }
    }

    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: mapped while the vCPU lives; all accesses to this byte after creation are atomic.
        unsafe { &*self.immediate_exit() }.store(on.into(), Ordering::SeqCst);
    }

    /// Runs guest code until KVM needs user space.
    pub fn enter(&mut self, vcpu: &VcpuFd) -> Result<()> {
        // SAFETY: `self` is the run area of `vcpu`; no reference into it lives now.
        check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) })
    }

    /// The data of a port access: `len` bytes at `offset` of the area.
    pub fn data(&mut self, offset: u64, len: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        if offset < size_of::<kvm_run>() || offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: checked to lie in the mapping, behind the structure.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u8>().add(offset), len) })
    }
}
