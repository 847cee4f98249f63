//! Owns the raw link: whole Ethernet frames sent and received at the client's end, past its kernel's
//! own protocols.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::lab::{CLIENT_IF, Lab};
use crate::sys;
use crate::wait::SOON;

/// A packet socket on the client's interface.
#[derive(Debug)]
pub struct RawLink {
    socket: File,
}

impl RawLink {
    /// Opens it. Frames that arrive from now on are received.
    pub fn open(lab: &Lab) -> Self {
        // A short timeout: `receive` looks at its own deadline between reads.
        let timeout = Duration::from_millis(50);
        let socket = lab
            .client()
            .inside(|| sys::packet_socket(CLIENT_IF, timeout));
        Self {
            socket: socket.expect("open a packet socket"),
        }
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) {
        let sent = self.socket.write(frame);
        assert_eq!(sent.expect("send a frame"), frame.len());
    }

    /// Receives frames until `wanted` gives a value for one, for at most `limit`.
    pub fn receive<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut frame = vec![0; 70_000];
        while Instant::now() < deadline {
            match self.socket.read(&mut frame) {
                Ok(length) => {
                    if let Some(value) = wanted(&frame[..length]) {
                        return Some(value);
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => panic!("receive a frame: {error}"),
            }
        }
        None
    }

    /// Receives frames until one satisfies `wanted`; panics naming `what` if none does soon.
    pub fn expect(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let frame = self.receive(SOON, |frame| wanted(frame).then(|| frame.to_vec()));
        frame.unwrap_or_else(|| panic!("did not arrive within {SOON:?}: {what}"))
    }
}
