use crate::{Call, Routes};
use base::{Result, fail};
use schema::trace::*;

pub fn route(routes: &mut Routes) {
    routes.add(get_state);
    routes.add(set_state);
}

async fn get_state(call: Call, command: TraceEventGetState) -> Result<Vec<TraceEventInfo>> {
    let points = call.world().trace.matching(&command.name).map_err(|unknown| fail!("{unknown}"))?;
    let state = |on| if on { TraceEventState::Enabled } else { TraceEventState::Disabled };
    let info =
        |point: &trace::Point| TraceEventInfo { name: point.name().to_string(), state: state(point.is_on()) };
    Ok(points.into_iter().map(info).collect())
}

async fn set_state(call: Call, command: TraceEventSetState) -> Result<()> {
    call.world().trace.set(&command.name, command.enable).map_err(|unknown| fail!("{unknown}"))
}
