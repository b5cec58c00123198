//! Protocols: storage outside the graph.

pub mod curl;
pub mod file;
pub mod nbd;
pub mod null;
pub mod vvfat;
