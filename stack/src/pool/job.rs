//! Work for a pool thread, and doing it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::command::{Command, Source};
use super::demoted::Demoted;
use super::mailbox::MailboxSender;
use super::request::{Body, Deferred, ReplyTo, Responder, Response, Route, SlowPath};
use crate::flow::FlowId;
use crate::interruptlet::{
    DatagramInterruptlet, DatagramOutcome, DatagramRequest, Info, Outbox, StreamInterruptlet,
    StreamOutcome, StreamRequest,
};
use crate::wire::LinkHeader;

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
    /// Nothing: the pool stops, and a thread that waits for a job is to see that.
    End,
    /// A body that nobody wants any more: closing its file may take long.
    Discard(Source),
    /// A stream request of a demoted handler: all unconsumed bytes of the flow.
    Stream {
        handler: Arc<Demoted<dyn StreamInterruptlet>>,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        flow: FlowId,
        core: MailboxSender,
    },
    /// A datagram of a demoted handler.
    Datagram {
        handler: Arc<Demoted<dyn DatagramInterruptlet>>,
        slow: Option<Arc<dyn SlowPath>>,
        request: Deferred,
        /// The link header of a reply.
        link: LinkHeader,
        core: MailboxSender,
    },
}

impl Job {
    /// Reserves a place for the job's answer with its core. Returns whether there was one, or none is needed.
    pub(super) fn reserve(&mut self) -> bool {
        match self {
            Self::Serve { responder, .. } => responder.reserve(),
            Self::Chunk { core, .. } | Self::Stream { core, .. } | Self::Datagram { core, .. } => {
                core.reserve()
            }
            Self::Discard(_) | Self::End => true,
        }
    }

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
            Self::Chunk { .. } | Self::Discard(_) | Self::End => None,
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
            Self::End => {}
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
                link,
                core,
            } => run_datagram(&handler, slow, request, link, core),
        }
    }
}

/// Room behind the request that a demoted handler finds for a reply in place.
const IN_PLACE_ROOM_BYTES: usize = 2048;

fn run_stream(
    handler: &Demoted<dyn StreamInterruptlet>,
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
    let (mut buffer, len) = with_room(request);
    let mut outbox = Outbox::default();
    let stream_request =
        StreamRequest::new(&mut buffer, len, Info::Told(request.info()), &mut outbox);
    let outcome = handler.call(|handler| handler.handle(stream_request).into_outcome());
    let outcome = match outcome {
        Some(Ok(outcome)) => outcome,
        Some(Err(panicked)) => {
            reply_to.core.send(Command::Panicked {
                route: reply_to.route,
                port: request.info().local.port(),
                panicked,
            });
            return;
        }
        None => {
            reply_to.core.send(Command::HandBack { flow });
            return;
        }
    };
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
    handler: &Demoted<dyn DatagramInterruptlet>,
    slow: Option<Arc<dyn SlowPath>>,
    request: Deferred,
    link: LinkHeader,
    core: MailboxSender,
) {
    let route = Route::Datagram {
        link,
        info: *request.info(),
    };
    let (mut buffer, len) = with_room(&request);
    let mut outbox = Outbox::default();
    let datagram = DatagramRequest::new(&mut buffer, len, request.info(), &mut outbox);
    let outcome = handler.call(|handler| handler.handle(datagram).into_outcome());
    let outcome = match outcome {
        Some(Ok(outcome)) => outcome,
        Some(Err(panicked)) => {
            core.send(Command::Panicked {
                route,
                port: request.info().local.port(),
                panicked,
            });
            return;
        }
        None => {
            core.send(Command::HandBackDatagram { link, request });
            return;
        }
    };
    let responder = Responder::new(ReplyTo {
        core,
        route,
        consumed: 0,
    });
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
