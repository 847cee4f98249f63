//! The stream (TCP) side: a request is the oldest bytes that the connection has not consumed yet.

use std::net::SocketAddr;

use bytes::Bytes;

use super::{Outbox, RequestInfo};
use crate::Instant;
use crate::wire::FlowKey;

/// A handler for the byte stream of a TCP port.
///
/// The core calls [`handle`](Self::handle) with everything received and not consumed yet, again and
/// again while it consumes something, and not while a deferred request or a large reply of the same
/// connection is outstanding: so replies to pipelined requests leave in order without the handler's help.
///
/// A call that panics resets its connection; the core goes on and calls the handler again, so its state should make sense
/// at every point where it may panic. A handler that panics eight times within ten seconds runs on the slow path for a
/// while.
pub trait StreamInterruptlet: Send {
    /// Handles the request at the front of `request.bytes()`. Must not block; its run time is measured
    /// against the configured budget.
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply;

    /// The bytes given are the beginning of a request that did not become whole within the port's
    /// request timeout. [`StreamRequest::need_more`] and [`StreamRequest::defer`] count as close here.
    fn timed_out(&mut self, request: StreamRequest<'_>) -> StreamReply {
        request.close()
    }

    /// The request was deferred but the slow path has no room. The bytes are those that were deferred.
    /// [`StreamRequest::need_more`] and [`StreamRequest::defer`] count as close here.
    fn overloaded(&mut self, request: StreamRequest<'_>) -> StreamReply {
        request.close()
    }
}

/// Unconsumed bytes of a connection, borrowed for the length of one handler call.
#[derive(Debug)]
pub struct StreamRequest<'a> {
    /// The request's bytes, then room for a reply made in place.
    buffer: &'a mut [u8],
    len: usize,
    info: Info<'a>,
    outbox: &'a mut Outbox,
}

/// What is known of a request besides its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Info<'a> {
    /// As it is told to threads.
    Told(&'a RequestInfo),
    /// As a core has it: the addresses are only made where somebody asks.
    Flow {
        key: &'a FlowKey,
        now: Instant,
        end_of_stream: bool,
    },
}

impl<'a> StreamRequest<'a> {
    #[inline]
    pub(crate) fn new(
        buffer: &'a mut [u8],
        len: usize,
        info: Info<'a>,
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

    /// The bytes received and not consumed, oldest first; at least one, except when
    /// [`is_end_of_stream`](Self::is_end_of_stream).
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Our end of the connection.
    pub fn local(&self) -> SocketAddr {
        match self.info {
            Info::Told(info) => info.local,
            Info::Flow { key, .. } => key.local_addr(),
        }
    }

    /// The client's end of the connection.
    pub fn peer(&self) -> SocketAddr {
        match self.info {
            Info::Told(info) => info.peer,
            Info::Flow { key, .. } => key.peer_addr(),
        }
    }

    /// The loop's clock (see [`RequestInfo::now`]).
    pub fn now(&self) -> Instant {
        match self.info {
            Info::Told(RequestInfo { now, .. }) => *now,
            Info::Flow { now, .. } => now,
        }
    }

    /// The peer has closed its side: no more bytes will come.
    pub fn is_end_of_stream(&self) -> bool {
        match self.info {
            Info::Told(RequestInfo { end_of_stream, .. }) => *end_of_stream,
            Info::Flow { end_of_stream, .. } => end_of_stream,
        }
    }

    /// The receive buffer is full: [`need_more`](Self::need_more) would close the connection.
    pub fn is_full(&self) -> bool {
        matches!(self.info, Info::Told(RequestInfo { full: true, .. }))
    }

    /// The request is not whole yet: call again when more bytes are there.
    pub fn need_more(self) -> StreamReply {
        StreamReply(StreamOutcome::NeedMore)
    }

    /// Consumes `consumed` bytes (capped at what is there) without a reply.
    pub fn ignore(self, consumed: usize) -> StreamReply {
        let consumed = consumed.min(self.len);
        StreamReply(StreamOutcome::Reply {
            consumed,
            close: false,
        })
    }

    /// Consumes `consumed` bytes (capped at what is there) and hands them to the port's
    /// [`SlowPath`](crate::pool::SlowPath).
    pub fn defer(self, consumed: usize) -> StreamReply {
        StreamReply(StreamOutcome::Defer {
            consumed: consumed.min(self.len),
        })
    }

    /// Closes the connection in order (FIN) after what was already replied; the rest of the request is
    /// dropped.
    pub fn close(self) -> StreamReply {
        StreamReply(StreamOutcome::Reply {
            consumed: self.len,
            close: true,
        })
    }

    /// Resets the connection (RST).
    pub fn abort(self) -> StreamReply {
        StreamReply(StreamOutcome::Abort)
    }

    /// Consumes `consumed` bytes (capped at what is there) and replies in the buffer that holds them.
    pub fn reply_in_place(self, consumed: usize) -> StreamInPlace<'a> {
        let consumed = consumed.min(self.len);
        // What follows the consumed bytes is the next request and must survive.
        let room = if consumed == self.len {
            self.buffer.len()
        } else {
            consumed
        };
        StreamInPlace {
            buffer: &mut self.buffer[..room],
            consumed,
        }
    }

    /// Consumes `consumed` bytes (capped at what is there) and replies from bytes and shared content.
    pub fn reply(self, consumed: usize) -> StreamWriter<'a> {
        StreamWriter {
            consumed: consumed.min(self.len),
            outbox: self.outbox,
        }
    }
}

/// A reply that is made in the request's own buffer.
#[derive(Debug)]
pub struct StreamInPlace<'a> {
    buffer: &'a mut [u8],
    consumed: usize,
}

impl StreamInPlace<'_> {
    /// The buffer: the consumed bytes first, then the room behind them, if any. At least as long as the
    /// consumed bytes.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Sends the first `len` bytes of the buffer (capped at its length).
    pub fn send(self, len: usize) -> StreamReply {
        StreamReply(StreamOutcome::InPlace {
            consumed: self.consumed,
            len: len.min(self.buffer.len()),
        })
    }
}

/// A reply that is made from given bytes and shared content.
#[derive(Debug)]
pub struct StreamWriter<'a> {
    consumed: usize,
    outbox: &'a mut Outbox,
}

impl StreamWriter<'_> {
    /// Appends bytes, which are copied once into the worker's reply buffer.
    pub fn write(&mut self, bytes: &[u8]) -> &mut Self {
        self.outbox.head.extend_from_slice(bytes);
        self
    }

    /// Sends what was written.
    pub fn send(self) -> StreamReply {
        self.finish(Bytes::new(), false)
    }

    /// Sends what was written, then closes the connection.
    pub fn send_and_close(self) -> StreamReply {
        self.finish(Bytes::new(), true)
    }

    /// Sends what was written, then `content`, which is shared, immutable and of any size; `close` says
    /// whether the connection ends after it.
    pub fn send_with_content(self, content: Bytes, close: bool) -> StreamReply {
        self.finish(content, close)
    }

    fn finish(self, content: Bytes, close: bool) -> StreamReply {
        self.outbox.content = content;
        StreamReply(StreamOutcome::Reply {
            consumed: self.consumed,
            close,
        })
    }
}

/// The outcome of a handler call. Made only by consuming a [`StreamRequest`].
#[derive(Debug)]
#[must_use = "a handler returns its outcome to the core"]
pub struct StreamReply(StreamOutcome);

impl StreamReply {
    pub(crate) fn into_outcome(self) -> StreamOutcome {
        self.0
    }
}

/// What the core does with the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamOutcome {
    NeedMore,
    /// Send `buffer[..len]`.
    InPlace {
        consumed: usize,
        len: usize,
    },
    /// Send what the outbox holds (maybe nothing), then close if told.
    Reply {
        consumed: usize,
        close: bool,
    },
    Defer {
        consumed: usize,
    },
    Abort,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> RequestInfo {
        RequestInfo {
            local: ([10, 0, 0, 1], 80).into(),
            peer: ([10, 0, 0, 2], 4000).into(),
            now: Instant::ZERO,
            end_of_stream: false,
            full: false,
        }
    }

    #[test]
    fn in_place_room_ends_where_the_next_request_begins() {
        let info = info();
        let mut outbox = Outbox::default();
        let mut buffer = *b"abcdef....";
        let request = StreamRequest::new(&mut buffer, 6, Info::Told(&info), &mut outbox);
        assert_eq!(request.reply_in_place(3).buffer(), b"abc");

        let request = StreamRequest::new(&mut buffer, 6, Info::Told(&info), &mut outbox);
        assert_eq!(request.reply_in_place(6).buffer(), b"abcdef....");
    }

    #[test]
    fn consumed_is_capped_at_what_is_there() {
        let info = info();
        let mut outbox = Outbox::default();
        let mut buffer = *b"abc";
        let request = StreamRequest::new(&mut buffer, 2, Info::Told(&info), &mut outbox);
        assert_eq!(
            request.defer(9).into_outcome(),
            StreamOutcome::Defer { consumed: 2 }
        );
        let request = StreamRequest::new(&mut buffer, 2, Info::Told(&info), &mut outbox);
        assert_eq!(
            request.reply_in_place(2).send(99).into_outcome(),
            StreamOutcome::InPlace {
                consumed: 2,
                len: 3
            }
        );
    }

    #[test]
    fn a_new_request_starts_with_an_empty_outbox() {
        let info = info();
        let mut outbox = Outbox::default();
        let mut buffer = *b"abc";
        let mut writer =
            StreamRequest::new(&mut buffer, 3, Info::Told(&info), &mut outbox).reply(3);
        writer.write(b"left over");
        let _ = writer.send_with_content(Bytes::from_static(b"content"), false);
        let _ = StreamRequest::new(&mut buffer, 3, Info::Told(&info), &mut outbox)
            .reply(3)
            .send();
        assert!(outbox.head.is_empty() && outbox.content.is_empty());
    }
}
