//! Character devices: named streams of bytes between a front end (serial port, virtio port,
//! monitor, qtest) and a back end (socket, pty, file, ...).
//!
//! A [`FrontEnd`] claims a character device by name ([`Chardevs::claim`]), gets a [`Port`] and
//! connects itself. All calls to front ends come from the thread of the tokio runtime the
//! [`Chardevs`] was made with, with no lock held, and never from inside a [`Port`] call.
//! [`Port`] calls never block and may come from any thread.

#![forbid(unsafe_code)]

mod address;
mod file;
mod hub;
mod link;
mod mux;
mod port;
mod pty;
mod registry;
mod ringbuf;
mod serial;
mod socket;
mod stdio;
mod stream;
mod telnet;
mod udp;

pub use mux::Escape;
pub use port::Port;
pub use registry::{Added, Chardevs, Host, Info, KINDS};

use std::os::fd::OwnedFd;

/// What happened to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The back end is there: a client connected, a terminal was opened.
    Opened,
    /// The back end went away.
    Closed,
    /// A break on the serial line.
    Break,
    /// A multiplexer gave the input to this front end.
    MuxIn,
    /// A multiplexer took the input from this front end.
    MuxOut,
}

/// The consumer side of a character device.
pub trait FrontEnd: Send + Sync {
    /// How many bytes [`FrontEnd::receive`] may be given now. After having answered 0 the front
    /// end calls [`Port::accept_input`] when it has room again.
    fn can_receive(&self) -> usize;

    /// Input, never more bytes than [`FrontEnd::can_receive`] allowed, with the descriptors that
    /// came along on a Unix socket.
    fn receive(&self, bytes: &[u8], fds: Vec<OwnedFd>);

    fn event(&self, event: Event);

    /// There is room for output again after a short [`Port::write`].
    fn writable(&self) {}
}

/// Settings of a serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Bits per second.
    pub speed: u32,
    pub parity: Parity,
    /// 5 to 8.
    pub data_bits: u8,
    /// 1 or 2.
    pub stop_bits: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    None,
    Odd,
    Even,
}

/// A back end as the rest of the crate sees it.
pub(crate) trait Backend: Send + Sync {
    /// Takes as much of `bytes` as there is room for.
    fn write(&self, bytes: &[u8]) -> usize;
    fn filename(&self) -> String;
    /// Whether all that was taken has gone out.
    fn drained(&self) -> bool {
        true
    }
    fn max_fronts(&self) -> usize {
        1
    }
    /// Undoes what outlives the process (terminal settings, socket paths).
    fn close(&self) {}
    /// A front end of a multiplexer may read again or was attached.
    fn accept_input(&self) {}
    fn set_params(&self, _params: Params) {}
    fn set_break(&self, _on: bool) {}
    fn set_echo(&self, _on: bool) {}
    fn ringbuf(&self) -> Option<&ringbuf::Ringbuf> {
        None
    }
}

#[cfg(test)]
mod tests;
