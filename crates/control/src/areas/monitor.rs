use crate::{Call, Routes};
use base::{Failure, Result, fail};
use schema::monitor::*;

pub fn route(routes: &mut Routes) {
    routes.add(qmp_capabilities);
    routes.add(human_monitor_command);
    routes.add(query_version);
}

async fn qmp_capabilities(call: Call, command: QmpCapabilities) -> Result<()> {
    let oob = command.enable.unwrap_or_default().contains(&QmpCapability::Oob);
    call.monitor()?.negotiate(oob)
}

async fn human_monitor_command(call: Call, command: HumanMonitorCommand) -> Result<String> {
    let index = command.cpu_index.map(usize::try_from);
    let cpu = match index {
        None => 0,
        Some(Ok(index)) if call.machine().vcpu(index).is_some() => index,
        Some(_) => return Err(Failure::expects("cpu-index", "a CPU number")),
    };
    let run = call.world().human_monitor.clone();
    let run = run.ok_or_else(|| fail!("this program has no human monitor"))?;
    run(call.control().clone(), command.command_line, cpu).await
}

async fn query_version(call: Call, _: QueryVersion) -> Result<VersionInfo> {
    Ok(call.world().identity.version())
}
