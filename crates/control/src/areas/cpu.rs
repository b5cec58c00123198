use super::topology::place;
use crate::{Call, Routes};
use base::Result;
use cpu::state::Activity;
use machine::VcpuHandle;
use schema::cpu::*;
use schema::machine::SysEmuTarget;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(cpu);
    routes.add(query_cpus);
    routes.add(query_cpus_fast);
    routes.add(query_hotpluggable_cpus);
}

async fn cpu(_: Call, _: Cpu) -> Result<()> {
    Ok(())
}

async fn query_cpus(call: Call, _: QueryCpus) -> Result<Vec<CpuInfo>> {
    call.machine().vcpus().iter().map(|vcpu| one(vcpu)).collect()
}

fn one(vcpu: &Arc<VcpuHandle>) -> Result<CpuInfo> {
    let (pc, halted) = vcpu.with(|cpu| {
        let state = cpu.save();
        let code = state.seg[cpu::state::seg::CS].base;
        (code.wrapping_add(state.rip), state.activity != Activity::Running)
    })?;
    Ok(CpuInfo {
        cpu: vcpu.index as i64,
        current: vcpu.index == 0,
        halted,
        qom_path: path(vcpu.index),
        pc: pc as i64,
        thread_id: vcpu.thread_id().into(),
    })
}

/// Where a vCPU stands in the object tree.
fn path(index: usize) -> String {
    format!("/machine/unattached/cpu[{index}]")
}

async fn query_cpus_fast(call: Call, _: QueryCpusFast) -> Result<Vec<CpuInfoFast>> {
    let machine = call.machine();
    let info = |vcpu: &Arc<VcpuHandle>| CpuInfoFast {
        cpu_index: vcpu.index as i64,
        qom_path: path(vcpu.index),
        thread_id: vcpu.thread_id().into(),
        props: Some(place(&machine.spec.smp, vcpu.index as u32)),
        target: SysEmuTarget::X86_64,
    };
    Ok(machine.vcpus().iter().map(info).collect())
}

async fn query_hotpluggable_cpus(call: Call, _: QueryHotpluggableCpus) -> Result<Vec<HotpluggableCpu>> {
    let machine = call.machine();
    let smp = &machine.spec.smp;
    let model = machine.spec.cpu.as_deref().and_then(|cpu| cpu.split(',').next()).unwrap_or("qemu64");
    let slots = (0..smp.maxcpus.max(smp.cpus)).rev();
    Ok(slots
        .map(|index| HotpluggableCpu {
            kind: format!("{model}-x86_64-cpu"),
            vcpus_count: 1,
            props: place(smp, index),
            qom_path: machine.vcpu(index as usize).map(|vcpu| path(vcpu.index)),
        })
        .collect())
}
