//! `cargo xtask test`: everything CI runs.

use crate::run::{Result, step};
use crate::{docs, layers, packages};

/// Runs all checks; with arguments only the tests whose name contains them.
pub fn run(filter: &[String]) -> Result {
    packages::install()?;
    let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
    if filter.is_empty() {
        layers::check()?;
        docs::check()?;
        step("format", "cargo", &["fmt", "--all", "--check"])?;
        step("clippy", "cargo", &["clippy", "--quiet", "--workspace", "--all-targets"])?;
    }
    // System tests drive the development build, which is optimised, too, and checks for overflows.
    let mut args = vec!["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"];
    args.extend(["--final-status-level", "slow", "--no-tests", "fail"]);
    args.extend(filter);
    step("tests", "cargo", &args)
}
