//! Protocols: storage outside the graph.

pub mod file;
pub mod null;
