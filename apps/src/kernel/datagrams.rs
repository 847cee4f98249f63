//! The echo service of RFC 862 over UDP, many datagrams per system call.

use std::io::{IoSlice, IoSliceMut};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::echo::is_safe_to_answer;

/// Datagrams per system call.
const BATCH: usize = 64;
/// From one buffer to the next: the longest datagram, and a cache line, so that the beginnings, which is
/// all that most datagrams have, do not compete for the same place in the cache.
const STRIDE: usize = 65_536 + 64;

/// Echoes the datagrams of a socket.
#[derive(Debug)]
pub struct DatagramEcho {
    socket: OwnedFd,
    buffers: Box<[u8]>,
    received: MultiHeaders<SockaddrStorage>,
    to_send: MultiHeaders<SockaddrStorage>,
    /// Where the datagrams to be answered are: the buffer, and the length.
    answers: Vec<(usize, usize)>,
    /// Whom to answer, in the same order. All are there; `sendmmsg` takes them so.
    peers: Vec<Option<SockaddrStorage>>,
}

impl AsFd for DatagramEcho {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl DatagramEcho {
    /// An echo on `socket`, which must not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffers: vec![0; BATCH * STRIDE].into(),
            received: MultiHeaders::preallocate(BATCH, None),
            to_send: MultiHeaders::preallocate(BATCH, None),
            answers: Vec::with_capacity(BATCH),
            peers: Vec::with_capacity(BATCH),
        }
    }

    /// Echoes what has come, one batch at most.
    pub fn turn(&mut self) {
        self.receive();
        self.send();
    }

    fn receive(&mut self) {
        self.answers.clear();
        self.peers.clear();
        let mut buffers = self.buffers.chunks_exact_mut(STRIDE);
        let mut room: [_; BATCH] = std::array::from_fn(|_| {
            let buffer = buffers.next().unwrap_or_default();
            [IoSliceMut::new(buffer)]
        });
        let received = recvmmsg(
            self.socket.as_raw_fd(),
            &mut self.received,
            &mut room,
            MsgFlags::MSG_DONTWAIT,
            None,
        );
        // Else nothing is there, or an earlier datagram had an error, which is gone with being told.
        let Ok(received) = received else { return };
        for (buffer, message) in received.enumerate() {
            let peer = message.address;
            if peer.as_ref().and_then(port).is_some_and(is_safe_to_answer) {
                self.answers.push((buffer, message.bytes));
                self.peers.push(peer);
            }
        }
    }

    fn send(&mut self) {
        let mut datagrams = [[IoSlice::new(&[])]; BATCH];
        for (datagram, &(buffer, len)) in datagrams.iter_mut().zip(&self.answers) {
            let start = buffer * STRIDE;
            *datagram = [IoSlice::new(&self.buffers[start..start + len])];
        }
        let count = self.answers.len();
        let mut done = 0;
        while done < count {
            let sent = sendmmsg(
                self.socket.as_raw_fd(),
                &mut self.to_send,
                &datagrams[done..count],
                &self.peers[done..],
                [],
                MsgFlags::MSG_DONTWAIT,
            );
            // What cannot be sent is lost, as datagrams may be, and only that.
            done += sent.map_or(1, Iterator::count);
        }
    }
}

fn port(peer: &SockaddrStorage) -> Option<u16> {
    let of_v4 = peer.as_sockaddr_in().map(|peer| peer.port());
    of_v4.or_else(|| peer.as_sockaddr_in6().map(|peer| peer.port()))
}
