//! What other threads ask a core to do.

use std::io;

use bytes::Bytes;

use super::request::{BodySource, Deferred, Response, Route};
use crate::flow::FlowId;
use crate::panics::Panicked;
use crate::wire::LinkHeader;

/// What other threads ask a core to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The answer to a deferred request.
    Reply {
        route: Route,
        consumed: usize,
        response: Response,
    },
    /// A deferred request will never be answered.
    Abandoned { route: Route },
    /// A demoted handler wants to see more bytes first.
    NeedMore { flow: FlowId },
    /// The core wants a demoted handler back: it is to handle the flow's request itself.
    HandBack { flow: FlowId },
    /// The same for a datagram; `link` is the link header of a reply.
    HandBackDatagram { link: LinkHeader, request: Deferred },
    /// A demoted handler panicked about a request to `port`: its connection is to be reset.
    Panicked {
        route: Route,
        port: u16,
        panicked: Panicked,
    },
    /// A demoted handler resets its connection.
    Abort { flow: FlowId },
    /// The next chunk of a streamed body (`None`: it is over), and its source if there may be more.
    Chunk {
        flow: FlowId,
        chunk: io::Result<Option<Bytes>>,
        source: Option<Source>,
    },
}

/// A [`BodySource`] on its way between core and pool.
pub(crate) struct Source(pub(crate) Box<dyn BodySource>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}
