//! The little of RFC 854 that a serial line needs: character mode, 8 bit clean, break.

pub(crate) const IAC: u8 = 255;
const WILL: u8 = 251;
const DO: u8 = 253;
const SB: u8 = 250;
const SE: u8 = 240;
const BREAK: u8 = 243;

const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;

/// Asks the client for character mode without local echo, binary both ways (RFC 856, 857, 858).
pub(crate) const GREETING: [u8; 12] =
    [IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY];

/// Takes commands out of the input, across read boundaries.
#[derive(Default)]
pub(crate) struct Decoder {
    state: State,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Data,
    Command,
    Option,
    Subnegotiation,
    SubnegotiationIac,
}

impl Decoder {
    /// Compacts the data in place. Returns its length and the number of breaks seen.
    pub fn decode(&mut self, bytes: &mut [u8]) -> (usize, usize) {
        let (mut kept, mut breaks) = (0, 0);
        for at in 0..bytes.len() {
            let byte = bytes[at];
            self.state = match (self.state, byte) {
                (State::Data, IAC) => State::Command,
                (State::Data, _) | (State::Command, IAC) => {
                    bytes[kept] = byte;
                    kept += 1;
                    State::Data
                }
                (State::Command, BREAK) => {
                    breaks += 1;
                    State::Data
                }
                (State::Command, SB) => State::Subnegotiation,
                (State::Command, WILL..=254) => State::Option,
                (State::Command, _) | (State::Option, _) => State::Data,
                (State::Subnegotiation, IAC) => State::SubnegotiationIac,
                (State::SubnegotiationIac, SE) => State::Data,
                (State::Subnegotiation | State::SubnegotiationIac, _) => State::Subnegotiation,
            };
        }
        (kept, breaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_across_boundaries() {
        let mut d = Decoder::default();
        let mut a = [b'x', IAC];
        assert_eq!(d.decode(&mut a), (1, 0));
        let mut b = [DO, 1, b'y', IAC, IAC, IAC, BREAK, IAC, SB, 24, 1, IAC, SE, b'z'];
        let (n, breaks) = d.decode(&mut b);
        assert_eq!((&b[..n], breaks), (&[b'y', IAC, b'z'][..], 1));
    }
}
