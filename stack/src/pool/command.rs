//! What other threads ask a core to do.

use std::io;

use bytes::Bytes;

use super::request::{BodySource, Response, Route};
use crate::flow::FlowId;

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
