use crate::{Call, Routes};
use base::Result;
use schema::migration::*;

pub fn route(routes: &mut Routes) {
    routes.add(query_migrate_capabilities);
    routes.add(migrate_set_capabilities);
}

async fn query_migrate_capabilities(
    call: Call,
    _: QueryMigrateCapabilities,
) -> Result<Vec<MigrationCapabilityStatus>> {
    let on = call.control().migration_capabilities().lock();
    let status = |&capability: &MigrationCapability| MigrationCapabilityStatus {
        capability,
        state: on.contains(&capability),
    };
    Ok(MigrationCapability::ALL.iter().map(status).collect())
}

async fn migrate_set_capabilities(call: Call, command: MigrateSetCapabilities) -> Result<()> {
    let mut on = call.control().migration_capabilities().lock();
    for MigrationCapabilityStatus { capability, state } in command.capabilities {
        on.retain(|other| *other != capability);
        if state {
            on.push(capability);
        }
    }
    Ok(())
}
