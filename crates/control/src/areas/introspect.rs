use crate::{Call, Routes};
use base::{Result, fail};
use schema::introspect::*;
use schema::prepared::Prepared;
use serde_json::json;

pub fn route(routes: &mut Routes) {
    routes.add(query_commands);
    routes.add(query_events);
    routes.add(query_qmp_schema);
    routes.add(query_command_line_options);
}

async fn query_commands(call: Call, _: QueryCommands) -> Result<Prepared<Vec<NameOnly>>> {
    Ok(Prepared::new(call.control().commands()))
}

async fn query_events(_: Call, _: QueryEvents) -> Result<Prepared<Vec<NameOnly>>> {
    Ok(Prepared::new(schema::all_events().map(|entry| json!({"name": entry.info.name})).collect()))
}

async fn query_qmp_schema(call: Call, _: QueryQmpSchema) -> Result<Prepared<Vec<SchemaInfo>>> {
    Ok(Prepared::new(call.control().schema()))
}

async fn query_command_line_options(
    call: Call,
    command: QueryCommandLineOptions,
) -> Result<Vec<CommandLineOptionInfo>> {
    let all = &call.world().options;
    let Some(name) = command.option else { return Ok(all.clone()) };
    let found: Vec<_> = all.iter().filter(|info| info.option == name).cloned().collect();
    if found.is_empty() {
        return Err(fail!("invalid option name: {name}"));
    }
    Ok(found)
}
