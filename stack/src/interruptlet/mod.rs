//! Interruptlets: short handlers that run to completion inside the poll loop of a core.
//!
//! A handler borrows the bytes of a request, decides, and consumes the request by naming the outcome:
//! reply in place, reply from bytes or shared content, ask for more, defer to the slow path, or close.
//! Because every outcome takes the request by value, the compiler keeps a handler from touching the
//! request after it began the reply. Nothing in this module blocks, and nothing allocates per request
//! once the buffers are warm.
//!
//! * [`StreamInterruptlet`] serves a TCP port, [`DatagramInterruptlet`] a UDP port. Each worker (core)
//!   has its own instance, so `&mut self` needs no lock.
//! * What they defer is served by a [`SlowPath`](crate::pool::SlowPath) on ordinary threads.

mod datagram;
mod stream;

pub use datagram::{DatagramInPlace, DatagramInterruptlet, DatagramReply, DatagramRequest};
pub use stream::{StreamInPlace, StreamInterruptlet, StreamReply, StreamRequest, StreamWriter};

pub(crate) use datagram::DatagramOutcome;
pub(crate) use stream::{Info, StreamOutcome};

use std::net::SocketAddr;

use bytes::Bytes;

use crate::Instant;

/// What the core knows of a request besides its bytes.
#[derive(Debug, Clone, Copy)]
pub struct RequestInfo {
    /// Our end: the address and port that the request was sent to.
    pub local: SocketAddr,
    /// The other end: where the request came from and where the reply goes.
    pub peer: SocketAddr,
    /// The loop's clock when the request was taken up: monotonic, in microseconds since an arbitrary
    /// start. The same for all requests of one batch at most some microseconds ago.
    pub now: Instant,
    /// The peer will send nothing more (TCP FIN received). Always false for datagrams.
    pub end_of_stream: bool,
    /// The receive buffer is full: asking for more cannot succeed, and the core closes the connection
    /// if the handler does. Always false for datagrams.
    pub full: bool,
}

/// Where a handler's reply is collected when it is not made in place.
///
/// One per worker, reused: `head` keeps its capacity, so a warm worker does not allocate.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Bytes that were copied in.
    pub(crate) head: Vec<u8>,
    /// Shared content that follows `head`.
    pub(crate) content: Bytes,
}

impl Outbox {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            head: Vec::with_capacity(bytes),
            content: Bytes::new(),
        }
    }

    /// The same as a slow-path response (for handlers that run on the pool).
    pub(crate) fn into_parts(self) -> (Vec<u8>, Bytes) {
        (self.head, self.content)
    }

    pub(crate) fn clear(&mut self) {
        self.head.clear();
        self.content = Bytes::new();
    }
}
