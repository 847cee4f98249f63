//! What a connection waits for, how long, and what happens then. (Retransmission and the like are the
//! engine's own deadlines.)

use super::{Connection, Window};
use crate::clock;
use crate::flow::FlowId;
use crate::tcp::engine::USER_TIMEOUT;
use crate::tcp::{LINGER_TIMEOUT, Resources, StreamPort, Turn};
use crate::{Duration, Instant};

/// How long a peer may leave replies untaken, its window closed.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The rest of a request.
    Request,
    /// The peer, to take what was sent.
    Taking,
    /// The peer's FIN.
    Close,
    /// Something of the peer's, before what has come already.
    Gap,
    /// The next request.
    Idle,
    /// Nothing that has a deadline: the slow path, or a request on a service without idle timeout.
    Nothing,
}

impl Connection {
    /// Acts on a deadline that has passed, then goes on as after any event.
    pub(in crate::tcp) fn expire(
        &mut self,
        id: FlowId,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        if self.retry_at.is_some_and(|at| at <= turn.now) {
            self.retry_at = None;
        }
        if let Some(side) = &mut self.client
            && side.read_at.is_some_and(|at| at <= turn.nanos)
        {
            side.read_at = None;
        }
        let due = self
            .own_deadline(resources)
            .is_some_and(|deadline| deadline <= turn.now);
        if due && self.retry_at.is_none() {
            match self.waiting_for(resources) {
                Waiting::Request => {
                    turn.counters.request_timeouts.increment();
                    self.time_out_request(resources, turn);
                }
                Waiting::Taking => {
                    turn.counters.stall_timeouts.increment();
                    self.engine.socket().abort();
                }
                Waiting::Close => self.engine.socket().abort(),
                Waiting::Gap => {
                    turn.counters.gap_timeouts.increment();
                    self.engine.socket().abort();
                }
                Waiting::Idle => {
                    turn.counters.idle_timeouts.increment();
                    self.closing = true;
                }
                Waiting::Nothing => {}
            }
        }
        self.converse(id, Window::default(), resources, turn);
    }

    /// What the connection's own deadline is about.
    fn waiting_for(&mut self, resources: &Resources) -> Waiting {
        if self.deferred {
            Waiting::Nothing
        } else if !self.out.is_empty() || self.engine.socket().send_queue() > 0 {
            Waiting::Taking
        } else if self.closing {
            Waiting::Close
        } else if self.request_since.is_some() && self.client.is_none() {
            Waiting::Request
        } else if self.gap_since.is_some() {
            Waiting::Gap
        } else if self.client.is_some() {
            Waiting::Nothing
        } else if self.service(resources).idle_timeout.is_some() {
            Waiting::Idle
        } else {
            Waiting::Nothing
        }
    }

    /// When the connection, not its engine, wants to be looked at again.
    pub(super) fn own_deadline(&mut self, resources: &Resources) -> Option<Instant> {
        let deadline = match self.waiting_for(resources) {
            Waiting::Taking => Some(self.progress_at + STALL_TIMEOUT),
            Waiting::Close => Some(self.progress_at + LINGER_TIMEOUT),
            Waiting::Request => self
                .request_since
                .map(|since| since + self.service(resources).request_timeout),
            Waiting::Gap => self.gap_since.map(|since| since + USER_TIMEOUT),
            Waiting::Idle => self
                .service(resources)
                .idle_timeout
                .map(|timeout| self.progress_at + timeout),
            Waiting::Nothing => None,
        };
        let read_at = self
            .client
            .as_ref()
            .and_then(|side| side.read_at)
            .map(|nanos| clock::instant(nanos.next_multiple_of(1000)));
        earliest(earliest(deadline, self.retry_at), read_at)
    }

    fn service<'a>(&self, resources: &'a Resources) -> &'a StreamPort {
        &resources.ports[self.service]
    }
}

/// The earlier of two deadlines that may not be there.
pub(super) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
