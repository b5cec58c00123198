//! The virtual machine of the host kernel.

use crate::slots::SlotTable;
use crate::vcpu::KvmVcpu;
use crate::{cpuid, msrs, probe, sys};
use base::clock::Clock;
use base::{Failure, Mutex, Result, bail};
use cpu::cpuid::CpuidTable;
use cpu::models::Offer;
use cpu::{Engine, Vcpu, VcpuConfig};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory::AddressSpace;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Three pages for KVM's use on processors that cannot run real mode by themselves, behind
/// one page for its identity map: in a range that memory maps mark as reserved.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// Capabilities without which the engine does not work, by name.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::UserNmi, "KVM_CAP_USER_NMI"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
];

/// See the crate's description. One per machine.
pub struct KvmEngine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub vm: VmFd,
    pub slots: SlotTable,
    pub supported: Vec<kvm_cpuid_entry2>,
    pub run_size: usize,
    tsc: Mutex<Option<TscBase>>,
    origin: Instant,
    most_vcpus: usize,
    tsc_khz: Option<u64>,
    /// The slots follow this address space, that of the first vCPU.
    memory: Mutex<Option<Arc<AddressSpace>>>,
}

/// How the machine's TSC follows from the host's.
#[derive(Clone, Copy)]
struct TscBase {
    /// Host time minus the machine's, in nanoseconds: another value means it was stopped.
    skew: i128,
    offset: u64,
}

impl KvmEngine {
    /// Opens KVM and makes a virtual machine. Its memory is that of the first vCPU's bus.
    pub fn open() -> Result<KvmEngine> {
        let kvm = open_kvm()?;
        let cannot = |what: &'static str| move |e: kvm_ioctls::Error| Failure::os(what, &e.into());
        let vm = kvm.create_vm().map_err(cannot("KVM: cannot create a virtual machine"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .and_then(|()| vm.set_tss_address(TSS))
            .map_err(cannot("KVM: cannot reserve its pages"))?;
        let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        let user_msrs = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [reasons.into(), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&user_msrs).map_err(cannot("KVM: cannot handle MSRs in user space"))?;
        let filtered = [
            (msrs::APIC_BASE, 1, true),
            (msrs::TSC_DEADLINE, 1, true),
            (msrs::TSC_ADJUST, 1, true),
            (msrs::TSC, 1, false),
        ];
        sys::filter_msrs(&vm, &filtered).map_err(|e| Failure::os("KVM: cannot filter MSRs", &e))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(cannot("KVM: cannot ask for its CPU features"))?;
        let inner = Arc::new(Inner {
            slots: SlotTable::default(),
            supported: supported.as_slice().to_vec(),
            run_size: kvm.get_vcpu_mmap_size().map_err(cannot("KVM: cannot map its state"))?,
            tsc: Mutex::new(None),
            origin: Instant::now(),
            most_vcpus: kvm.get_max_vcpus(),
            tsc_khz: host_tsc_khz(&kvm),
            memory: Mutex::new(None),
            vm,
        });
        Ok(KvmEngine { inner })
    }

    /// Why KVM cannot be used here, without making a machine.
    pub fn check() -> Result<()> {
        open_kvm().map(drop)
    }

    /// Whether KVM here runs any operating system. Without hardware virtualisation (PVM) it
    /// only emulates some instructions: enough for a BIOS, not for a kernel.
    pub fn is_complete() -> bool {
        probe::runs_sse().unwrap_or(false)
    }

    /// What KVM can give a guest on this host.
    pub fn offer() -> Result<Offer> {
        let kvm = open_kvm()?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| Failure::os("KVM: cannot ask for its CPU features", &e.into()))?;
        Ok(cpuid::offer(supported.as_slice()))
    }

    /// A CPU model without the features that KVM does not have on this host.
    pub fn mask(&self, model: &CpuidTable) -> CpuidTable {
        cpuid::mask(model, &self.inner.supported)
    }

    /// Starts or ends logging of guest writes to RAM.
    pub fn set_dirty_logging(&self, on: bool) -> Result<()> {
        self.inner.slots.set_logging(&self.inner.vm, on)
    }

    /// Marks the pages that the guest wrote since the last call as written
    /// ([`memory::RamBlock::note_write`]).
    pub fn collect_dirty(&self) -> Result<()> {
        self.inner.slots.collect(&self.inner.vm)
    }
}

/// From a vCPU of a machine of its own, so that the machine's numbers stay free.
fn host_tsc_khz(kvm: &Kvm) -> Option<u64> {
    let khz = kvm.create_vm().and_then(|vm| vm.create_vcpu(0)).and_then(|vcpu| vcpu.get_tsc_khz());
    khz.ok().map(u64::from)
}

fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| {
        Failure::os("Could not access KVM kernel module", &e.into())
            .hint("-accel interpreter needs no KVM; -accel kvm:interpreter uses it if it is there")
    })?;
    let version = kvm.get_api_version();
    if version != 12 {
        bail!("KVM version {version} is not supported");
    }
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            bail!("this host's KVM lacks {name}");
        }
    }
    Ok(kvm)
}

impl Inner {
    /// Makes the slots follow `memory`, if they do not yet.
    fn attach(self: &Arc<Self>, memory: &Arc<AddressSpace>) -> Result<()> {
        let mut attached = self.memory.lock();
        if let Some(attached) = &*attached {
            if !Arc::ptr_eq(attached, memory) {
                bail!("KVM: all CPUs of a machine share one memory");
            }
            return Ok(());
        }
        *attached = Some(memory.clone());
        drop(attached);
        let weak: Weak<Inner> = Arc::downgrade(self);
        memory.on_change(move |view| {
            if let Some(inner) = weak.upgrade() {
                inner.slots.update(&inner.vm, view);
            }
        });
        self.slots.error().map_or(Ok(()), Err)
    }

    /// What the guest's TSC is ahead of the host's while the machine runs, offsets of
    /// single vCPUs aside. The same for all vCPUs until the machine's clock was stopped.
    pub fn tsc_base(&self, clock: &Clock, tsc_khz: u64) -> u64 {
        /// Readings of two clocks that lie further apart than this are not compared.
        const CLOSE: u128 = 20_000;
        const STOPPED: u128 = 100_000;
        let mut base = self.tsc.lock();
        for _ in 0..64 {
            let before = self.origin.elapsed().as_nanos();
            let now = clock.now();
            // SAFETY: every x86-64 processor has RDTSC.
            let host = unsafe { core::arch::x86_64::_rdtsc() };
            if self.origin.elapsed().as_nanos() - before > CLOSE {
                continue;
            }
            let skew = before as i128 - i128::from(now);
            if let Some(known) = *base
                && known.skew.abs_diff(skew) < STOPPED
            {
                return known.offset;
            }
            let guest = (u128::from(now) * u128::from(tsc_khz) / 1_000_000) as u64;
            let offset = guest.wrapping_sub(host);
            *base = Some(TscBase { skew, offset });
            return offset;
        }
        base.map_or(0, |base| base.offset)
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>> {
        if config.index >= self.inner.most_vcpus {
            bail!("KVM takes at most {} CPUs on this host", self.inner.most_vcpus);
        }
        self.inner.attach(&config.bus.memory)?;
        Ok(Box::new(KvmVcpu::new(self.inner.clone(), config)?))
    }

    fn tsc_khz(&self) -> Option<u64> {
        self.inner.tsc_khz
    }

    fn report(&self) -> String {
        format!("kvm: {} memory changes\n", self.inner.slots.changes() / 2)
    }
}
