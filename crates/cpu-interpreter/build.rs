//! Chooses the dispatch: handlers that end in a call of the next one need LLVM's sibling-call
//! optimisation, which only optimised builds have; others run a loop.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(tail_dispatch)");
    let level = std::env::var("OPT_LEVEL").unwrap_or_default();
    let debug = std::env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    if matches!(level.as_str(), "2" | "3") && !debug {
        println!("cargo:rustc-cfg=tail_dispatch");
    }
}
