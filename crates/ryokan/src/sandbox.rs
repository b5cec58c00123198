//! `-sandbox on`: system calls that the process gives up before it reads an image or runs a
//! guest. A call that no part of Ryokan makes ends the process; a changed schedule is refused.

use base::{Result, fail};
use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};
use spec::{Elevate, Sandbox};
use std::collections::BTreeMap;

/// Administration of the host, other processes' memory, kernel keys and namespaces.
const NEVER: &[i64] = &[
    SYS_acct,
    SYS_add_key,
    SYS_bpf,
    SYS_clock_settime,
    SYS_delete_module,
    SYS_finit_module,
    SYS_init_module,
    SYS_ioperm,
    SYS_iopl,
    SYS_kexec_file_load,
    SYS_kexec_load,
    SYS_keyctl,
    SYS_mount,
    SYS_open_by_handle_at,
    SYS_pivot_root,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_ptrace,
    SYS_quotactl,
    SYS_reboot,
    SYS_request_key,
    SYS_setns,
    SYS_settimeofday,
    SYS_swapoff,
    SYS_swapon,
    SYS_syslog,
    SYS_umount2,
    SYS_unshare,
    SYS_vhangup,
];

const OBSOLETE: &[i64] = &[
    SYS__sysctl,
    SYS_afs_syscall,
    SYS_epoll_ctl_old,
    SYS_epoll_wait_old,
    SYS_getpmsg,
    SYS_lookup_dcookie,
    SYS_modify_ldt,
    SYS_nfsservctl,
    SYS_putpmsg,
    SYS_security,
    SYS_sysfs,
    SYS_tuxcall,
    SYS_uselib,
    SYS_ustat,
    SYS_vserver,
];

const ELEVATE: &[i64] = &[
    SYS_capset,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setuid,
];

const SPAWN: &[i64] = &[SYS_execve, SYS_execveat, SYS_fork, SYS_vfork];

const RESOURCES: &[i64] = &[
    SYS_ioprio_set,
    SYS_sched_setaffinity,
    SYS_sched_setattr,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_setpriority,
    SYS_setrlimit,
];

/// Gives the system calls up, for this process and all its threads.
pub fn enter(sandbox: &Sandbox) -> Result<()> {
    let mut ended: Rules = NEVER.iter().map(|&call| (call, Vec::new())).collect();
    let mut add = |list: &[i64], on: bool| {
        if on {
            ended.extend(list.iter().map(|&call| (call, Vec::new())));
        }
    };
    add(OBSOLETE, !sandbox.obsolete_allowed);
    add(ELEVATE, sandbox.elevate == Elevate::Deny);
    add(SPAWN, sandbox.spawn_denied);
    if sandbox.spawn_denied {
        // New threads are made by CLONE: the flags of CLONE3 cannot be seen, and the C library
        // goes without it where it does not exist.
        ended.insert(SYS_clone, vec![other_than_thread()?]);
        install([(SYS_clone3, Vec::new())].into(), SeccompAction::Errno(ENOSYS as u32))?;
    }
    if sandbox.resources_denied {
        let refused = RESOURCES.iter().map(|&call| (call, Vec::new())).collect();
        install(refused, SeccompAction::Errno(EPERM as u32))?;
    }
    install(ended, SeccompAction::KillProcess)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// CLONE without CLONE_THREAD.
fn other_than_thread() -> Result<SeccompRule> {
    let flag = CLONE_THREAD as u64;
    let op = SeccompCmpOp::MaskedEq(flag);
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, op, 0);
    condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(failed)
}

fn install(rules: Rules, action: SeccompAction) -> Result<()> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64);
    let program: BpfProgram = filter.and_then(BpfProgram::try_from).map_err(failed)?;
    apply_filter_all_threads(&program).map_err(|e| fail!("failed to install seccomp syscall filter: {e}"))
}

fn failed(error: seccompiler::BackendError) -> base::Failure {
    fail!("failed to install seccomp syscall filter: {error}")
}
