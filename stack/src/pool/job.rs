//! Work for a pool thread, and doing it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::command::{Command, Source};
use super::mailbox::MailboxSender;
use super::request::{Body, Deferred, ReplyTo, Responder, Response, Route, SlowPath};
use crate::flow::FlowId;
use crate::interruptlet::{
    DatagramInterruptlet, DatagramOutcome, DatagramRequest, Info, Outbox, StreamInterruptlet,
    StreamOutcome, StreamRequest,
};

/// A handler that overran its budget too often and is now run by the pool, one call at a time.
pub(crate) type SharedStream = Arc<Mutex<Box<dyn StreamInterruptlet>>>;
/// As [`SharedStream`], for datagrams.
pub(crate) type SharedDatagram = Arc<Mutex<Box<dyn DatagramInterruptlet>>>;

/// Work for a pool thread.
pub(crate) enum Job {
    /// A deferred request.
    Serve {
        slow: Arc<dyn SlowPath>,
        request: Deferred,
        responder: Responder,
    },
    /// A body chunk.
    Chunk {
        flow: FlowId,
        source: Source,
        core: MailboxSender,
    },
    /// A body that nobody wants any more: closing its file may take long.
    Discard(Source),
    /// A stream request of a demoted handler: all unconsumed bytes of the flow.
    Stream {
        handler: SharedStream,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        flow: FlowId,
        core: MailboxSender,
    },
    /// A datagram of a demoted handler.
    Datagram {
        handler: SharedDatagram,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        reply_to: ReplyTo,
    },
}

impl Job {
    /// Takes the request back out of a job that found no room; its responder is not used. Jobs about bodies
    /// have none.
    pub(crate) fn cancel(self) -> Option<Deferred> {
        match self {
            Self::Serve {
                request, responder, ..
            } => {
                responder.disarm();
                Some(request)
            }
            Self::Stream { request, .. } | Self::Datagram { request, .. } => Some(request),
            Self::Chunk { .. } | Self::Discard(_) => None,
        }
    }

    /// Does the work on the calling thread.
    pub(crate) fn run(self) {
        match self {
            Self::Serve {
                slow,
                request,
                responder,
            } => slow.serve(request, responder),
            Self::Chunk {
                flow,
                mut source,
                core,
            } => {
                let chunk = catch_unwind(AssertUnwindSafe(|| source.0.next_chunk()))
                    .unwrap_or_else(|_| Err(io::Error::other("the body source panicked")));
                // A source that is done ends here and not on the core: closing its file may take long.
                let source = matches!(chunk, Ok(Some(_))).then_some(source);
                core.send(Command::Chunk {
                    flow,
                    chunk,
                    source,
                });
            }
            Self::Discard(source) => drop(source),
            Self::Stream {
                handler,
                slow,
                request,
                flow,
                core,
            } => run_stream(&handler, slow, &request, flow, core),
            Self::Datagram {
                handler,
                slow,
                request,
                reply_to,
            } => run_datagram(&handler, slow, request, reply_to),
        }
    }
}

/// Room behind the request that a demoted handler finds for a reply in place.
const IN_PLACE_ROOM_BYTES: usize = 2048;

fn run_stream(
    handler: &SharedStream,
    slow: Option<Arc<dyn SlowPath>>,
    request: &Deferred,
    flow: FlowId,
    core: MailboxSender,
) {
    let mut reply_to = ReplyTo {
        core,
        route: Route::Flow(flow),
        consumed: 0,
    };
    // Until the outcome is known, an unwinding handler abandons the request.
    let abandon = Responder::new(reply_to.clone());
    let (mut buffer, len) = with_room(request);
    let mut outbox = Outbox::default();
    let outcome = {
        let mut handler = handler.lock().unwrap_or_else(|broken| broken.into_inner());
        handler
            .handle(StreamRequest::new(
                &mut buffer,
                len,
                Info::Told(request.info()),
                &mut outbox,
            ))
            .into_outcome()
    };
    abandon.disarm();
    match outcome {
        StreamOutcome::NeedMore => reply_to.core.send(Command::NeedMore { flow }),
        StreamOutcome::Abort => reply_to.core.send(Command::Abort { flow }),
        StreamOutcome::InPlace { consumed, len } => {
            reply_to.consumed = consumed;
            buffer.truncate(len);
            Responder::new(reply_to).send(Response {
                head: buffer,
                ..Response::default()
            });
        }
        StreamOutcome::Reply { consumed, close } => {
            reply_to.consumed = consumed;
            Responder::new(reply_to).send(response_of(outbox, close));
        }
        StreamOutcome::Defer { consumed } => {
            reply_to.consumed = consumed;
            let responder = Responder::new(reply_to);
            if let Some(slow) = slow {
                slow.serve(
                    Deferred::copied(&request.bytes()[..consumed], *request.info()),
                    responder,
                );
            }
        }
    }
}

fn run_datagram(
    handler: &SharedDatagram,
    slow: Option<Arc<dyn SlowPath>>,
    request: Deferred,
    reply_to: ReplyTo,
) {
    let responder = Responder::new(reply_to);
    let (mut buffer, len) = with_room(&request);
    let mut outbox = Outbox::default();
    let outcome = {
        let mut handler = handler.lock().unwrap_or_else(|broken| broken.into_inner());
        handler
            .handle(DatagramRequest::new(
                &mut buffer,
                len,
                request.info(),
                &mut outbox,
            ))
            .into_outcome()
    };
    match outcome {
        DatagramOutcome::Ignore => responder.disarm(),
        DatagramOutcome::InPlace { len } => {
            buffer.truncate(len);
            responder.send(Response {
                head: buffer,
                ..Response::default()
            });
        }
        DatagramOutcome::Outbox => responder.send(response_of(outbox, false)),
        DatagramOutcome::Defer => {
            if let Some(slow) = slow {
                slow.serve(request, responder);
            }
        }
    }
}

/// A copy of the request's bytes with room behind them, and their number.
fn with_room(request: &Deferred) -> (Vec<u8>, usize) {
    let len = request.bytes().len();
    let mut buffer = Vec::with_capacity(len + IN_PLACE_ROOM_BYTES);
    buffer.extend_from_slice(request.bytes());
    buffer.resize(len + IN_PLACE_ROOM_BYTES, 0);
    (buffer, len)
}

fn response_of(outbox: Outbox, close: bool) -> Response {
    let (head, content) = outbox.into_parts();
    let body = if content.is_empty() {
        Body::Empty
    } else {
        Body::Content(content)
    };
    Response { head, body, close }
}
