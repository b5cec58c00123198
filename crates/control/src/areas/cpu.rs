use super::topology::place;
use crate::{Call, Routes};
use base::{Result, fail};
use cpu::models::{Property, Request};
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
    routes.add(query_cpu_definitions);
    routes.add(query_cpu_model_expansion);
}

async fn cpu(_: Call, _: Cpu) -> Result<()> {
    Ok(())
}

async fn query_cpus(call: Call, _: QueryCpus) -> Result<Vec<CpuInfo>> {
    call.machine().vcpus().iter().map(one).collect()
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
        qom_path: vcpu.path().to_string(),
        pc: pc as i64,
        thread_id: vcpu.thread_id().into(),
    })
}

async fn query_cpus_fast(call: Call, _: QueryCpusFast) -> Result<Vec<CpuInfoFast>> {
    let machine = call.machine();
    let info = |vcpu: &Arc<VcpuHandle>| CpuInfoFast {
        cpu_index: vcpu.index as i64,
        qom_path: vcpu.path().to_string(),
        thread_id: vcpu.thread_id().into(),
        props: Some(place(&machine.spec.smp, vcpu.index as u32)),
        target: SysEmuTarget::X86_64,
    };
    Ok(machine.vcpus().iter().map(info).collect())
}

async fn query_hotpluggable_cpus(call: Call, _: QueryHotpluggableCpus) -> Result<Vec<HotpluggableCpu>> {
    let machine = call.machine();
    let Some(model) = &machine.cpu_model else {
        return Err(fail!("machine does not support hot-plugging CPUs"));
    };
    let smp = &machine.spec.smp;
    Ok((0..smp.maxcpus)
        .rev()
        .map(|index| HotpluggableCpu {
            kind: format!("{}-x86_64-cpu", model.name),
            vcpus_count: 1,
            props: place(smp, index),
            qom_path: machine.vcpu(index as usize).map(|vcpu| vcpu.path().to_string()),
        })
        .collect())
}

async fn query_cpu_definitions(call: Call, _: QueryCpuDefinitions) -> Result<Vec<CpuDefinitionInfo>> {
    let offer = machine::engines::offer(call.machine().engine.name());
    let info = |definition: cpu::models::Definition| CpuDefinitionInfo {
        name: definition.name,
        migration_safe: Some(definition.migration_safe),
        fixed: definition.is_static,
        unavailable_features: Some(definition.unavailable_features.into_iter().map(str::to_string).collect()),
        typename: definition.typename,
        alias_of: definition.alias_of,
        deprecated: definition.deprecated,
    };
    Ok(cpu::models::definitions(&offer).into_iter().map(info).collect())
}

/// Both expansions list every feature; a static one is told on the model without any.
async fn query_cpu_model_expansion(
    call: Call,
    command: QueryCpuModelExpansion,
) -> Result<CpuModelExpansionInfo> {
    let QueryCpuModelExpansion { kind, model } = command;
    let mut request = Request::parse(&model.name)?;
    for (key, value) in model.props.unwrap_or_default() {
        let text = match value {
            serde_json::Value::Bool(on) => if on { "on" } else { "off" }.to_string(),
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => return Err(fail!("Invalid parameter type for '{key}', expected: boolean")),
        };
        request.set(&key, &text)?;
    }
    let resolved = request.resolve(&machine::engines::offer(call.machine().engine.name()))?;
    let value = |property| match property {
        Property::Bool(on) => on.into(),
        Property::Number(number) => number.into(),
        Property::Text(text) => serde_json::Value::from(text),
    };
    let props = resolved.properties().into_iter().map(|(name, property)| (name.to_string(), value(property)));
    let name = match kind {
        CpuModelExpansionType::Static => "base".to_string(),
        CpuModelExpansionType::Full => resolved.name.clone(),
    };
    Ok(CpuModelExpansionInfo { model: CpuModelInfo { name, props: Some(props.collect()) } })
}
