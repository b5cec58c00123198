//! `docs/qmp.md`, made from the schema.

use crate::run::{Result, root};

const FILE: &str = "docs/qmp.md";

/// Writes the file.
pub fn write() -> Result {
    let path = root().join(FILE);
    std::fs::create_dir_all(root().join("docs")).map_err(|e| format!("docs: {e}"))?;
    std::fs::write(&path, schema::docs::qmp_markdown()).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("wrote {FILE}");
    Ok(())
}

/// Fails if the file is not what the schema makes now.
pub fn check() -> Result {
    let text = std::fs::read_to_string(root().join(FILE)).unwrap_or_default();
    if text == schema::docs::qmp_markdown() {
        return Ok(());
    }
    Err(format!("{FILE} is out of date: run cargo xtask docs"))
}
