//! The control plane: every command's handler, and the way from notices to events.
//!
//! - [`Control`] finds the handler of a command. Two doors lead in: [`Control::call`] takes a
//!   typed command (human monitor, tests), [`qmp::Door`] takes JSON.
//! - [`World`] is all that handlers can reach.
//! - One file an area (`lifecycle.rs`, `cpu.rs`, ...) holds handlers
//!   `async fn(Call, Command) -> Result<Reply>` and routes them with one line each.
//! - [`events`] turns notices of the layers below into events.

#![forbid(unsafe_code)]

mod areas;
mod call;
mod door;
pub mod events;
mod port;
mod routes;
mod world;

pub use areas::route_all;
pub use call::Call;
pub use door::{Control, declare_trace_points};
pub use events::Events;
pub use port::QmpPort;
pub use routes::Routes;
pub use world::{HumanMonitor, Identity, World};

/// The future of a handler.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

#[cfg(test)]
mod tests;
