//! A deferred request, its answer, and the one chance to give it: what a slow-path handler sees.

use std::io;

use bytes::Bytes;

use super::command::Command;
use super::mailbox::MailboxSender;
use crate::arena::Loan;
use crate::flow::FlowId;
use crate::interruptlet::RequestInfo;
use crate::wire::LinkHeader;

/// Serves deferred requests on the threads of the pool.
///
/// One instance is shared by all threads. It may block and allocate; the core goes on meanwhile. A stack
/// that shuts down waits for it until the grace is over, at least a second, and then leaves its thread
/// behind.
pub trait SlowPath: Send + Sync + 'static {
    /// Answers one request. Dropping `responder` unused closes the connection (or sends nothing, for a
    /// datagram) and is counted, so a panicking handler cannot leave a peer hanging.
    fn serve(&self, request: Deferred, responder: Responder);
}

/// A deferred request, as a rule still in the frame that it came in.
///
/// A handler may keep it beyond its answer, but not for long: at most
/// [`Limits::loans`](crate::Limits::loans) frames can be out, further requests are copied. One that is
/// kept beyond the stack's shutdown keeps the memory of its queue, and with it the queue's socket: no
/// other socket can be bound to the queue until it is dropped.
#[derive(Debug)]
pub struct Deferred {
    bytes: DeferredBytes,
    info: RequestInfo,
}

#[derive(Debug)]
enum DeferredBytes {
    /// Still in the frame that it came in.
    Lent(Loan),
    /// Was never in one frame as a whole, or too many frames were lent already.
    Copied(Box<[u8]>),
}

impl Deferred {
    pub(crate) fn lent(loan: Loan, info: RequestInfo) -> Self {
        Self {
            bytes: DeferredBytes::Lent(loan),
            info,
        }
    }

    pub(crate) fn copied(bytes: &[u8], info: RequestInfo) -> Self {
        Self {
            bytes: DeferredBytes::Copied(bytes.into()),
            info,
        }
    }

    /// The bytes that the interruptlet deferred.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            DeferredBytes::Lent(loan) => loan.bytes(),
            DeferredBytes::Copied(bytes) => bytes,
        }
    }

    /// What the core knew of the request.
    pub fn info(&self) -> &RequestInfo {
        &self.info
    }
}

/// A reply from the slow path.
#[derive(Debug, Default)]
pub struct Response {
    /// Sent first.
    pub head: Vec<u8>,
    /// Sent after the head.
    pub body: Body,
    /// Close the connection after the body.
    pub close: bool,
}

/// The body of a [`Response`].
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Shared immutable content, of any size.
    Content(Bytes),
    /// Produced chunk by chunk while the client takes it. Not for datagrams.
    Source(Box<dyn BodySource>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Content(content) => write!(f, "Content({} bytes)", content.len()),
            Self::Source(_) => f.write_str("Source"),
        }
    }
}

/// Produces a body chunk by chunk, on the threads of the pool.
pub trait BodySource: Send + 'static {
    /// The next chunk, of a size that it chooses (64 KiB is a good one); `None` at the end. An error
    /// resets the connection, because the promised length can no longer be kept.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>>;
}

/// The one chance to answer a deferred request.
#[derive(Debug)]
pub struct Responder {
    /// `None` once used.
    to: Option<ReplyTo>,
}

impl Responder {
    pub(crate) fn new(to: ReplyTo) -> Self {
        Self { to: Some(to) }
    }

    /// Sends the reply. Never blocks.
    pub fn send(mut self, response: Response) {
        if let Some(to) = self.to.take() {
            to.core.send(Command::Reply {
                route: to.route,
                consumed: to.consumed,
                response,
            });
        }
    }

    /// Reserves a place for the answer with the core. Returns whether there was one.
    pub(crate) fn reserve(&mut self) -> bool {
        self.to.as_mut().is_none_or(|to| to.core.reserve())
    }

    /// Forgets the duty to answer: something else answers, or nothing is to be sent.
    pub(super) fn disarm(mut self) {
        self.to = None;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.core.send(Command::Abandoned { route: to.route });
        }
    }
}

/// Where a slow-path reply goes.
#[derive(Debug)]
pub(crate) struct ReplyTo {
    pub(crate) core: MailboxSender,
    pub(crate) route: Route,
    /// Bytes of the flow's receive queue that the reply consumes: zero for a deferred request, whose
    /// bytes left the queue when it was deferred.
    pub(crate) consumed: usize,
}

/// The recipient on the core.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Route {
    /// A connection.
    Flow(FlowId),
    /// A datagram keeps no flow: all that the reply needs.
    Datagram { link: LinkHeader, info: RequestInfo },
}
