//! The block layer: images, the graph of nodes over them, and what works on it.
//!
//! - [`Graph`] owns [`Node`]s; a node is a [`Layer`] (format, protocol or filter) opened by
//!   a [`Driver`] record from a tree of [`Options`].
//! - [`Backend`] is what a device front end, an export or a job holds of it.
//! - [`Notice`] is everything that becomes an event.
//!
//! Nodes belong to no thread: layers are `Send + Sync`, requests run on the I/O thread of
//! the back end they come from, and the graph changes only while its users are drained.
//! How to write a format: `README.md` beside this crate.

#![deny(unsafe_code)]

mod aio;
pub mod backend;
pub mod bitmap;
pub mod buffers;
pub mod crypto;
pub mod drive;
pub mod driver;
pub mod export;
pub mod filters;
pub mod formats;
pub mod graph;
pub mod jobs;
pub mod notice;
pub mod options;
pub mod protocols;
pub mod qemu_io;
pub mod query;
pub mod throttle;
pub mod transaction;
pub mod types;
pub mod vault;

pub use backend::{Backend, Done, FrontEnd, IoStatus, Media, OnError, Request, Setup, Tray};
pub use bitmap::{Bitmaps, DirtyBitmap};
pub use buffers::Lent;
pub use driver::{
    Check, Context, Create, CreateOption, Driver, Fix, Info, Kind, Layer, Open, Probe, Snapshot, Snapshots,
    StoredBitmaps, layer_of,
};
pub use graph::filename;
pub use graph::{Child, Drained, Graph, Haste, Hook, IoThread, Node, Parent, Pin, PollLimits, Settings};
pub use notice::{Action, Notice};
pub use options::{Options, Origin, parse_size};
pub use types::*;
pub use vault::Vault;
