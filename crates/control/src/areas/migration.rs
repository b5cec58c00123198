use crate::{Call, Routes};
use base::Result;
use schema::migration::*;

/// The capabilities of the migration that this build has: there is none yet.
const CAPABILITIES: &[(&str, bool)] = &[];

pub fn route(routes: &mut Routes) {
    routes.add(query_migrate_capabilities);
}

async fn query_migrate_capabilities(
    _: Call,
    _: QueryMigrateCapabilities,
) -> Result<Vec<MigrationCapabilityStatus>> {
    let status =
        |&(name, state): &(&str, bool)| MigrationCapabilityStatus { capability: name.to_string(), state };
    Ok(CAPABILITIES.iter().map(status).collect())
}
