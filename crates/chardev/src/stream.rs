use crate::hub::Hub;
use crate::link::Link;
use crate::telnet;
use base::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;

/// Output that waits for the other side, in bytes.
const OUTBOX: usize = 64 << 10;
/// Read at most so much at once.
const CHUNK: usize = 4096;

/// The moving part of every back end with a descriptor: input goes to the hub, output through a
/// bounded outbox, whenever there is a link.
pub(crate) struct Stream {
    pub hub: Arc<Hub>,
    state: Mutex<State>,
    output: Notify,
    telnet: bool,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    out: VecDeque<u8>,
    /// The last attempt to write failed: the other side is gone.
    broken: bool,
}

impl Stream {
    pub fn new(hub: Arc<Hub>, telnet: bool) -> Arc<Self> {
        Arc::new(Stream { hub, state: Mutex::default(), output: Notify::new(), telnet })
    }

    /// Puts a new link in place; output goes there from now on.
    pub fn open(&self, link: Arc<Link>) {
        let mut state = self.state.lock();
        *state = State { link: Some(link), ..State::default() };
        if self.telnet {
            state.out.extend(telnet::GREETING);
            self.output.notify_one();
        }
        drop(state);
        self.hub.opened();
    }

    /// Forgets the link and what was still to be sent.
    pub fn close(&self) {
        *self.state.lock() = State::default();
        self.hub.closed();
        self.hub.writable();
    }

    /// Carries bytes both ways over one link until the other side closes.
    pub async fn carry(&self, link: &Link) {
        tokio::select! {
            () = self.read_all(link) => {}
            () = self.write_all(link) => {}
        }
    }

    /// Carries bytes over two links; output goes on when the input has ended.
    pub async fn carry_apart(&self, input: Option<&Link>, output: &Link) {
        let input = async {
            if let Some(input) = input {
                self.read_all(input).await;
                self.hub.closed();
            }
        };
        tokio::join!(input, self.write_all(output));
    }

    async fn read_all(&self, link: &Link) {
        let mut buf = [0u8; CHUNK];
        let mut telnet = self.telnet.then(telnet::Decoder::default);
        loop {
            let room = self.hub.wait_room().await.min(CHUNK);
            let mut fds = Vec::new();
            let got = match link.read(&mut buf[..room], &mut fds).await {
                Ok(0) | Err(_) => return,
                Ok(got) => got,
            };
            let mut bytes = &mut buf[..got];
            if let Some(telnet) = &mut telnet {
                let (kept, breaks) = telnet.decode(bytes);
                bytes = &mut bytes[..kept];
                (0..breaks).for_each(|_| self.hub.send_break());
            }
            self.deliver(bytes, fds).await;
        }
    }

    /// Hands over `bytes` in portions, in case the front end's room has shrunk meanwhile.
    async fn deliver(&self, mut bytes: &[u8], mut fds: Vec<std::os::fd::OwnedFd>) {
        while !bytes.is_empty() {
            let room = self.hub.wait_room().await.min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.hub.receive(now, std::mem::take(&mut fds));
            bytes = later;
        }
        // Lets other tasks run between chunks of a fast sender.
        tokio::task::yield_now().await;
    }

    async fn write_all(&self, link: &Link) {
        loop {
            self.output.notified().await;
            while self.pending() {
                let alive = link.writable().await.is_ok() && self.flush().is_ok();
                if !alive {
                    if self.hub.can_receive() == 0 {
                        return;
                    }
                    // What the other side sent before it went away is still to be read.
                    std::future::pending::<()>().await;
                }
                self.hub.writable();
            }
        }
    }

    /// Whether there is something to write or a loss to notice.
    fn pending(&self) -> bool {
        let state = self.state.lock();
        state.broken || !state.out.is_empty()
    }

    /// Writes from the outbox as much as goes without blocking.
    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(link) = state.link.clone() else {
            state.out.clear();
            return Ok(());
        };
        if state.broken {
            state.out.clear();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while !state.out.is_empty() {
            let (first, _) = state.out.as_slices();
            match link.try_write(first) {
                Ok(n) => drop(state.out.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => {
                    state.out.clear();
                    state.broken = true;
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let Some(link) = state.link.clone() else { return bytes.len() };
        if state.broken {
            return bytes.len();
        }
        let mut taken = 0;
        if state.out.is_empty() && !self.telnet {
            match link.try_write(bytes) {
                Ok(n) => taken = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // A full disk loses what did not fit, no more.
                Err(_) if link.is_direct() => return bytes.len(),
                Err(_) => {
                    // The input side notices the loss, unless nobody reads.
                    state.broken = true;
                    self.output.notify_one();
                    return bytes.len();
                }
            }
        }
        while taken < bytes.len() && state.out.len() < OUTBOX {
            state.out.push_back(bytes[taken]);
            if self.telnet && bytes[taken] == telnet::IAC {
                state.out.push_back(telnet::IAC);
            }
            taken += 1;
        }
        if !state.out.is_empty() {
            self.output.notify_one();
        }
        taken
    }

    pub fn drained(&self) -> bool {
        let state = self.state.lock();
        state.link.is_none() || state.broken || state.out.is_empty()
    }
}
