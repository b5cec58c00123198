use crate::{Call, Routes};
use base::Result;
use schema::machine::*;
use spec::machine::{MACHINE_TYPES, MachineKind, MachineType};

pub fn route(routes: &mut Routes) {
    routes.add(query_name);
    routes.add(query_uuid);
    routes.add(query_kvm);
    routes.add(query_target);
    routes.add(query_machines);
    routes.add(query_current_machine);
    routes.add(inject_nmi);
    routes.add(rtc_reset_reinjection);
    routes.add(query_tpm_models);
    routes.add(query_tpm_types);
}

async fn query_name(call: Call, _: QueryName) -> Result<NameInfo> {
    Ok(NameInfo { name: call.machine().spec.name.clone() })
}

async fn query_uuid(call: Call, _: QueryUuid) -> Result<UuidInfo> {
    let bytes = call.machine().spec.uuid.unwrap_or_default();
    let mut uuid = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            uuid.push('-');
        }
        uuid.push_str(&format!("{byte:02x}"));
    }
    Ok(UuidInfo { uuid })
}

async fn query_kvm(call: Call, _: QueryKvm) -> Result<KvmInfo> {
    Ok(KvmInfo { enabled: call.machine().engine.name() == "kvm", present: true })
}

async fn query_target(_: Call, _: QueryTarget) -> Result<TargetInfo> {
    Ok(TargetInfo { arch: SysEmuTarget::X86_64 })
}

async fn query_machines(_: Call, _: QueryMachines) -> Result<Vec<MachineInfo>> {
    let has_backends = machine::Objects::types().iter().any(|kind| kind.name == "memory-backend-ram");
    let info = |board: &MachineType| {
        let is_pc = board.kind != MachineKind::None;
        MachineInfo {
            name: board.name.into(),
            alias: board.alias.map(str::to_string),
            is_default: (board.kind == MachineKind::default()).then_some(true),
            cpu_max: if is_pc { machine::cpus::MAX_CPUS.into() } else { 1 },
            hotpluggable_cpus: false,
            numa_mem_supported: false,
            deprecated: false,
            default_cpu_type: is_pc.then(|| "qemu64-x86_64-cpu".into()),
            default_ram_id: (is_pc && has_backends).then(|| "pc.ram".into()),
            acpi: is_pc,
        }
    };
    Ok(MACHINE_TYPES.iter().map(info).collect())
}

async fn query_current_machine(call: Call, _: QueryCurrentMachine) -> Result<CurrentMachineParams> {
    let spec = &call.machine().spec;
    let acpi = spec.switch("acpi").unwrap_or(true);
    Ok(CurrentMachineParams { wakeup_suspend_support: acpi && spec.kind != MachineKind::None })
}

async fn inject_nmi(call: Call, _: InjectNmi) -> Result<()> {
    call.machine().inject_nmi();
    Ok(())
}

async fn rtc_reset_reinjection(call: Call, _: RtcResetReinjection) -> Result<()> {
    call.machine().reset_rtc_reinjection();
    Ok(())
}

async fn query_tpm_models(call: Call, _: QueryTpmModels) -> Result<Vec<String>> {
    let models = call.machine().devices.models().iter();
    Ok(models.filter(|model| model.name.starts_with("tpm-")).map(|model| model.name.to_string()).collect())
}

async fn query_tpm_types(_: Call, _: QueryTpmTypes) -> Result<Vec<String>> {
    let kinds = machine::Objects::types().iter();
    Ok(kinds.filter_map(|kind| kind.name.strip_prefix("tpm-")).map(str::to_string).collect())
}
