//! The datagram (UDP) side: a request is one datagram, in the frame that it came in.

use std::net::SocketAddr;

use bytes::Bytes;

use super::{Outbox, RequestInfo};
use crate::Instant;

/// A handler for the datagrams of a UDP port. A call that panics drops its datagram; otherwise that is as with a
/// [`StreamInterruptlet`](super::StreamInterruptlet).
pub trait DatagramInterruptlet: Send {
    /// Handles one datagram. Must not block; its run time is measured against the configured budget.
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply;

    /// The datagram was deferred but the slow path has no room.
    /// [`DatagramRequest::defer`] counts as [`DatagramRequest::ignore`] here.
    fn overloaded(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        request.ignore()
    }
}

/// One datagram's payload, borrowed for the length of one handler call.
#[derive(Debug)]
pub struct DatagramRequest<'a> {
    /// The payload, then the room behind it up to what one datagram of this flow may hold.
    buffer: &'a mut [u8],
    len: usize,
    info: &'a RequestInfo,
    outbox: &'a mut Outbox,
}

impl<'a> DatagramRequest<'a> {
    pub(crate) fn new(
        buffer: &'a mut [u8],
        len: usize,
        info: &'a RequestInfo,
        outbox: &'a mut Outbox,
    ) -> Self {
        debug_assert!(len <= buffer.len());
        outbox.clear();
        Self {
            buffer,
            len,
            info,
            outbox,
        }
    }

    /// The payload; may be empty.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Where the datagram was sent to.
    pub fn local(&self) -> SocketAddr {
        self.info.local
    }

    /// Where the datagram came from.
    pub fn peer(&self) -> SocketAddr {
        self.info.peer
    }

    /// The loop's clock (see [`RequestInfo::now`]).
    pub fn now(&self) -> Instant {
        self.info.now
    }

    /// Sends nothing.
    pub fn ignore(self) -> DatagramReply {
        DatagramReply(DatagramOutcome::Ignore)
    }

    /// Hands the datagram to the port's [`SlowPath`](crate::pool::SlowPath), in its frame.
    pub fn defer(self) -> DatagramReply {
        DatagramReply(DatagramOutcome::Defer)
    }

    /// Replies in the frame that carries the request.
    pub fn reply_in_place(self) -> DatagramInPlace<'a> {
        DatagramInPlace {
            buffer: self.buffer,
        }
    }

    /// Replies with a copy of `bytes`. Longer than one datagram may be, it is cut and counted.
    pub fn reply(self, bytes: &[u8]) -> DatagramReply {
        self.outbox.head.extend_from_slice(bytes);
        DatagramReply(DatagramOutcome::Outbox)
    }

    /// Replies with a copy of shared content. Longer than one datagram may be, it is cut and counted.
    pub fn reply_content(self, content: Bytes) -> DatagramReply {
        self.outbox.content = content;
        DatagramReply(DatagramOutcome::Outbox)
    }
}

/// A reply that is made in the request's own frame.
#[derive(Debug)]
pub struct DatagramInPlace<'a> {
    buffer: &'a mut [u8],
}

impl DatagramInPlace<'_> {
    /// The request's payload, then room up to the largest payload that one datagram may carry.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Sends the first `len` bytes of the buffer (capped at its length).
    pub fn send(self, len: usize) -> DatagramReply {
        DatagramReply(DatagramOutcome::InPlace {
            len: len.min(self.buffer.len()),
        })
    }
}

/// The outcome of a handler call. Made only by consuming a [`DatagramRequest`].
#[derive(Debug)]
#[must_use = "a handler returns its outcome to the core"]
pub struct DatagramReply(DatagramOutcome);

impl DatagramReply {
    pub(crate) fn into_outcome(self) -> DatagramOutcome {
        self.0
    }
}

/// What the core does with the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatagramOutcome {
    Ignore,
    InPlace { len: usize },
    Outbox,
    Defer,
}
