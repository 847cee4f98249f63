//! Running handlers without a stack, for the unit tests of those who write them.

use std::net::SocketAddr;

use crate::Instant;
use crate::interruptlet::{
    Info, Outbox, RequestInfo, StreamInterruptlet, StreamOutcome, StreamRequest,
};
use crate::pool::{Command, Deferred, Mailbox, ReplyTo, Responder, Response, Route, SlowPath};
use crate::wire::LinkHeader;

/// What a stream handler did with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// It wants more bytes.
    NeedMore,
    /// It replied, maybe with nothing.
    Reply {
        /// Request bytes that it consumed.
        consumed: usize,
        /// The whole reply, content included.
        bytes: Vec<u8>,
        /// It closes the connection afterwards.
        close: bool,
    },
    /// It deferred.
    Defer {
        /// Request bytes that the slow path gets.
        consumed: usize,
    },
    /// It reset the connection.
    Abort,
}

/// Facts for a made-up request at time `now`.
pub fn request_info(now: Instant) -> RequestInfo {
    RequestInfo {
        local: SocketAddr::from(([192, 0, 2, 1], 80)),
        peer: SocketAddr::from(([192, 0, 2, 2], 40_000)),
        now,
        end_of_stream: false,
        full: false,
    }
}

/// Bytes of room behind the request, as in a frame.
const ROOM_BYTES: usize = 1024;

/// Calls [`StreamInterruptlet::handle`] with `bytes`.
pub fn handle(handler: &mut dyn StreamInterruptlet, bytes: &[u8], info: &RequestInfo) -> Called {
    called(bytes, info, |request| {
        handler.handle(request).into_outcome()
    })
}

/// Calls [`StreamInterruptlet::timed_out`] with `bytes`.
pub fn timed_out(handler: &mut dyn StreamInterruptlet, bytes: &[u8], info: &RequestInfo) -> Called {
    called(bytes, info, |request| {
        handler.timed_out(request).into_outcome()
    })
}

/// Calls [`StreamInterruptlet::overloaded`] with `bytes`.
pub fn overloaded(
    handler: &mut dyn StreamInterruptlet,
    bytes: &[u8],
    info: &RequestInfo,
) -> Called {
    called(bytes, info, |request| {
        handler.overloaded(request).into_outcome()
    })
}

fn called(
    bytes: &[u8],
    info: &RequestInfo,
    call: impl FnOnce(StreamRequest<'_>) -> StreamOutcome,
) -> Called {
    let mut buffer = bytes.to_vec();
    buffer.resize(bytes.len() + ROOM_BYTES, 0);
    let mut outbox = Outbox::default();
    let outcome = call(StreamRequest::new(
        &mut buffer,
        bytes.len(),
        Info::Told(info),
        &mut outbox,
    ));
    match outcome {
        StreamOutcome::NeedMore => Called::NeedMore,
        StreamOutcome::InPlace { consumed, len } => Called::Reply {
            consumed,
            bytes: buffer[..len].to_vec(),
            close: false,
        },
        StreamOutcome::Reply { consumed, close } => {
            let (mut bytes, content) = outbox.into_parts();
            bytes.extend_from_slice(&content);
            Called::Reply {
                consumed,
                bytes,
                close,
            }
        }
        StreamOutcome::Defer { consumed } => Called::Defer { consumed },
        StreamOutcome::Abort => Called::Abort,
    }
}

/// Serves `bytes` on the calling thread; `None` if the handler dropped its responder.
pub fn serve(slow: &dyn SlowPath, bytes: &[u8], info: &RequestInfo) -> Option<Response> {
    let mailbox = Mailbox::detached(1);
    let mut responder = Responder::new(ReplyTo {
        core: mailbox.sender().clone(),
        route: Route::Datagram {
            link: LinkHeader::default(),
            info: *info,
        },
        consumed: 0,
    });
    // As a job does that is submitted.
    responder.reserve();
    slow.serve(Deferred::copied(bytes, *info), responder);
    match mailbox.try_recv() {
        Some(Command::Reply { response, .. }) => Some(response),
        _ => None,
    }
}
