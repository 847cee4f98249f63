//! One connection: the conversation between its engine, its service's handler and the slow path.

use std::net::SocketAddr;

use bytes::Bytes;
use smoltcp::socket::tcp::State;

use super::engine::Engine;
use super::outgoing::Outgoing;
use super::{Resources, Segment, Turn};
use crate::arena::Frame;
use crate::config::ENGINE_RX_BYTES;
use crate::device::Device;
use crate::flow::FlowId;
use crate::interruptlet::{RequestInfo, StreamOutcome, StreamRequest};
use crate::pool::{Body, Deferred, Job, ReplyTo, Responder, Response, Route, SharedStream, Source};
use crate::wire::LinkHeader;
use crate::{Duration, Instant};

/// How long a handshake may take. SYN-ACKs are repeated within it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may leave replies untaken, its window closed.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a peer may keep its side open after we closed ours.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// When to offer work to a full slow path again.
const RETRY_DELAY: Duration = Duration::from_millis(2);

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    link: LinkHeader,
    engine: Engine,
    /// Which of the core's services this is a connection of.
    service: usize,
    local: SocketAddr,
    peer: SocketAddr,
    /// The handshake is not complete.
    half_open: bool,
    time_wait: bool,
    /// The core has this connection on its list of those in TIME-WAIT.
    time_wait_listed: bool,
    /// Sequence number of the first byte that no handler has consumed.
    next_seq: u32,
    /// The slow path has a request of this connection.
    deferred: bool,
    /// How many bytes the handler was shown since it last consumed some, and whether with the end of the
    /// stream behind them: it is not called again for the same.
    shown: Option<(usize, bool)>,
    /// When the first byte of an incomplete request was seen.
    request_since: Option<Instant>,
    out: Outgoing,
    /// Close when everything is sent; what still arrives is dropped.
    closing: bool,
    /// The last time that either side got something done.
    progress_at: Instant,
    /// When to offer a body source to the pool again.
    retry_at: Option<Instant>,
    /// The deadline that the timing wheel has.
    pub(super) armed: Option<Instant>,
}

/// The bytes of the segment at hand that are still in its frame and not consumed.
#[derive(Debug, Default)]
pub(super) struct InFrame {
    pub(super) frame: Option<Frame>,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl InFrame {
    fn holds(&self, available: usize) -> bool {
        self.frame.is_some() && self.end - self.start == available
    }
}

/// Whether a connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It does, and wants to be looked at again by then.
    Alive(Option<Instant>),
    Gone,
}

impl Connection {
    pub(super) fn new(
        engine: Engine,
        service: usize,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        syn_seq: u32,
        now: Instant,
    ) -> Self {
        Self {
            link,
            engine,
            service,
            local,
            peer,
            half_open: true,
            time_wait: false,
            time_wait_listed: false,
            next_seq: syn_seq.wrapping_add(1),
            deferred: false,
            shown: None,
            request_since: None,
            out: Outgoing::default(),
            closing: false,
            progress_at: now,
            retry_at: None,
            armed: None,
        }
    }

    pub(super) fn into_engine(self) -> Engine {
        self.engine
    }

    pub(super) fn is_half_open(&self) -> bool {
        self.half_open
    }

    /// Whether the connection is in TIME-WAIT and this was not asked before.
    pub(super) fn enters_time_wait(&mut self) -> bool {
        self.time_wait && !std::mem::replace(&mut self.time_wait_listed, true)
    }

    /// Whether the core counts this connection among those in TIME-WAIT.
    pub(super) fn is_listed_in_time_wait(&self) -> bool {
        self.time_wait_listed
    }

    /// Whether a SYN with this sequence number may begin a new connection in place of this one
    /// (RFC 9293 section 3.10.7.4: beyond everything that this one received).
    pub(super) fn gives_way_to(&self, syn_seq: u32) -> bool {
        self.time_wait && (syn_seq.wrapping_sub(self.next_seq) as i32) > 0
    }

    /// Lets the engine take in the segment whose IP packet is `frame[ip..end]` and whose payload begins
    /// at `payload`. Returns what of it a handler may see in the frame.
    pub(super) fn take_in(
        &mut self,
        frame: Frame,
        segment: &Segment,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) -> InFrame {
        let socket = self.engine.socket();
        let (received_before, unsent_before) = (socket.recv_queue(), socket.send_queue());
        let packet = &resources.memory.frame(&frame)[segment.ip..segment.end];
        let mut device = Device {
            received: Some(packet),
            egress: turn.egress,
            link: Some(&segment.link),
            facts: &resources.facts,
            counters: turn.counters,
            sent: 0,
        };
        self.engine
            .ingress(&mut resources.interface, &mut device, turn.now);

        let socket = self.engine.socket();
        let received = socket.recv_queue();
        let taken = socket.send_queue() < unsent_before;
        // Who keeps sending after we closed is not getting anything done.
        if taken || (received > received_before && !self.closing) {
            self.progress_at = turn.now;
        }
        if taken || received > received_before {
            // Only a segment that fits the connection may say where its peer is.
            self.link = segment.link;
        }
        let whole = segment.end - segment.payload == received
            && received_before == 0
            && segment.seq == self.next_seq;
        InFrame {
            frame: Some(frame),
            start: if whole { segment.payload } else { 0 },
            end: if whole { segment.end } else { 0 },
        }
    }

    /// Does everything that can be done now: replies, requests, closing, sending. Every event of the
    /// connection ends here.
    pub(super) fn drive(
        &mut self,
        id: FlowId,
        mut in_frame: InFrame,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) -> Status {
        self.note_state(turn);
        loop {
            self.pump(id, resources, turn);
            if !self.serve_one(id, &mut in_frame, resources, turn) {
                break;
            }
        }
        if let Some(frame) = in_frame.frame.take() {
            turn.egress.arena.free(frame);
        }
        let idle = self.engine.socket().recv_queue() == 0 && !self.is_busy();
        if resources.draining && idle && !self.half_open {
            self.closing = true;
        }
        if self.closing && self.out.is_empty() && !self.deferred {
            let socket = self.engine.socket();
            if socket.may_send() {
                socket.close();
                // The time that the peer has to close its side begins.
                self.progress_at = turn.now;
            }
        }
        let mut device = Device {
            received: None,
            egress: turn.egress,
            link: Some(&self.link),
            facts: &resources.facts,
            counters: turn.counters,
            sent: 0,
        };
        let wanted = self
            .engine
            .egress(&mut resources.interface, &mut device, turn.now);
        match self.engine.state() {
            // Reset in the handshake: smoltcp listens again.
            State::Closed | State::Listen => Status::Gone,
            State::TimeWait => {
                self.time_wait = true;
                Status::Alive(wanted)
            }
            _ => Status::Alive(earliest(wanted, self.own_deadline(resources))),
        }
    }

    /// Acts on a deadline that has passed, then goes on as after any event.
    pub(super) fn expire(
        &mut self,
        id: FlowId,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) -> Status {
        if self.retry_at.is_some_and(|at| at <= turn.now) {
            self.retry_at = None;
        }
        let due = self
            .own_deadline(resources)
            .is_some_and(|deadline| deadline <= turn.now);
        if due && self.retry_at.is_none() {
            match self.waiting_for(resources) {
                // Nobody there, or a forged SYN: no reset.
                Waiting::Handshake => return Status::Gone,
                Waiting::Request => {
                    turn.counters.request_timeouts.increment();
                    self.time_out_request(resources, turn);
                }
                Waiting::Taking => {
                    turn.counters.stall_timeouts.increment();
                    self.engine.socket().abort();
                }
                Waiting::Close => self.engine.socket().abort(),
                Waiting::Idle => {
                    turn.counters.idle_timeouts.increment();
                    self.closing = true;
                }
                Waiting::Nothing => {}
            }
        }
        self.drive(id, InFrame::default(), resources, turn)
    }

    /// The answer to the deferred request.
    pub(super) fn reply(&mut self, consumed: usize, response: Response, turn: &Turn<'_>) {
        self.deferred = false;
        self.consume(consumed, &mut InFrame::default(), turn.now);
        self.send(&response.head);
        match response.body {
            Body::Empty => {}
            Body::Content(content) => self.send_content(&content),
            Body::Source(source) => self.out.set_source(Source(source)),
        }
        self.closing |= response.close;
        self.progress_at = turn.now;
    }

    /// A demoted handler wants more than it was shown.
    pub(super) fn need_more(&mut self, turn: &Turn<'_>) {
        self.deferred = false;
        self.request_since.get_or_insert(turn.now);
    }

    /// The slow path will not answer.
    pub(super) fn abandon(&mut self) {
        self.deferred = false;
        self.closing = true;
    }

    /// Resets the connection.
    pub(super) fn abort(&mut self) {
        self.deferred = false;
        self.out = Outgoing::default();
        self.engine.socket().abort();
    }

    /// The next chunk of the body, or its end.
    pub(super) fn add_chunk(&mut self, chunk: Option<Bytes>, source: Source) {
        self.out.add_chunk(chunk, source);
    }

    /// Whether something is under way that a drain waits for.
    fn is_busy(&self) -> bool {
        self.deferred || !self.out.is_empty()
    }

    fn note_state(&mut self, turn: &Turn<'_>) {
        if self.half_open
            && !matches!(
                self.engine.state(),
                State::Listen | State::SynReceived | State::Closed
            )
        {
            self.half_open = false;
            self.progress_at = turn.now;
            turn.counters.flows_established.increment();
        }
    }

    /// Fills the engine's send buffer from what is outgoing, and has more produced.
    fn pump(&mut self, id: FlowId, resources: &mut Resources, turn: &Turn<'_>) {
        if self.out.is_empty() {
            return;
        }
        if self.out.fill(self.engine.socket()) > 0 {
            self.progress_at = turn.now;
        }
        if self.retry_at.is_some() {
            return;
        }
        if let Some(source) = self.out.take_source_if_low() {
            let job = Job::Chunk {
                flow: id,
                source,
                core: resources.core.clone(),
            };
            if let Err(Job::Chunk { source, .. }) = resources.pool.try_submit(job) {
                self.out.put_back(source);
                self.retry_at = Some(turn.now + RETRY_DELAY);
            }
        }
    }

    /// Has the next request handled, if there is one and its turn has come. Returns whether another one
    /// may follow.
    fn serve_one(
        &mut self,
        id: FlowId,
        in_frame: &mut InFrame,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) -> bool {
        // One reply at a time keeps the order, and bounds what a flow holds. After a reset nobody waits
        // for a reply.
        if self.is_busy() || self.engine.state() == State::Closed {
            return false;
        }
        let available = self.engine.socket().recv_queue();
        if self.closing {
            self.consume(available, in_frame, turn.now);
            return false;
        }
        let ended = self.peer_has_closed();
        if available == 0 {
            self.closing |= ended;
            return false;
        }
        let full = available == ENGINE_RX_BYTES;
        if self.shown == Some((available, ended)) {
            // Nothing new to show, and maybe never again.
            self.request_since.get_or_insert(turn.now);
            self.closing = ended || full;
            return self.closing;
        }
        self.shown = Some((available, ended));
        let info = RequestInfo {
            local: self.local,
            peer: self.peer,
            now: turn.now,
            end_of_stream: ended,
            full,
        };
        let service = &mut resources.ports[self.service];
        let Some(handler) = service.handler.fast() else {
            self.submit_to_demoted(id, available, info, resources, turn);
            return false;
        };
        let in_place = in_frame.holds(available);
        let buffer = if let Some(frame) = in_frame.frame.as_mut().filter(|_| in_place) {
            &mut resources.memory.frame_mut(frame)[in_frame.start..]
        } else {
            // The bytes came in several segments: make them one slice.
            let copied = self
                .engine
                .socket()
                .peek_slice(&mut resources.scratch[..available])
                .unwrap_or(0);
            debug_assert_eq!(copied, available);
            &mut resources.scratch[..]
        };
        let request = StreamRequest::new(buffer, available, &info, &mut resources.outbox);
        let outcome = handler.handle(request).into_outcome();
        resources.note_call(self.service);
        match outcome {
            StreamOutcome::NeedMore => {
                self.request_since.get_or_insert(turn.now);
                true
            }
            StreamOutcome::Defer { consumed } => {
                self.defer(id, consumed, in_place, in_frame, info, resources, turn);
                true
            }
            outcome => {
                turn.counters.tcp_requests.increment();
                self.carry_out(outcome, in_place, in_frame, resources, turn);
                true
            }
        }
    }

    /// Sends a handler's reply and consumes its request. `in_place` says where the request was.
    fn carry_out(
        &mut self,
        outcome: StreamOutcome,
        in_place: bool,
        in_frame: &mut InFrame,
        resources: &mut Resources,
        turn: &Turn<'_>,
    ) {
        match outcome {
            StreamOutcome::InPlace { consumed, len } => {
                match in_frame.frame.as_ref().filter(|_| in_place) {
                    Some(frame) => {
                        let start = in_frame.start;
                        self.send(&resources.memory.frame(frame)[start..start + len]);
                    }
                    None => self.send(&resources.scratch[..len]),
                }
                self.consume(consumed, in_frame, turn.now);
            }
            StreamOutcome::Reply { consumed, close } => {
                self.send(&resources.outbox.head);
                self.send_content(&resources.outbox.content);
                self.closing |= close;
                self.consume(consumed, in_frame, turn.now);
            }
            StreamOutcome::Abort => self.abort(),
            // Where these are not allowed they count as close.
            StreamOutcome::NeedMore | StreamOutcome::Defer { .. } => self.closing = true,
        }
    }

    /// Hands the first `consumed` bytes to the slow path: the frame itself if they are in it.
    #[allow(clippy::too_many_arguments)] // the request, taken apart
    fn defer(
        &mut self,
        id: FlowId,
        consumed: usize,
        in_place: bool,
        in_frame: &mut InFrame,
        info: RequestInfo,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        let Some(slow) = resources.ports[self.service].slow.clone() else {
            turn.counters.deferred_refused.increment();
            self.closing = true;
            return;
        };
        let range = in_frame.start..in_frame.start + consumed;
        let mut lent = None;
        if in_place && let Some(frame) = in_frame.frame.take() {
            match turn.egress.arena.lend(frame, range.clone()) {
                Ok(loan) => lent = Some(Deferred::lent(loan, info)),
                Err(frame) => in_frame.frame = Some(frame),
            }
        }
        let request = lent.unwrap_or_else(|| {
            turn.counters.deferred_copied.increment();
            match in_frame.frame.as_ref().filter(|_| in_place) {
                Some(frame) => Deferred::copied(&resources.memory.frame(frame)[range], info),
                None => Deferred::copied(&resources.scratch[..consumed], info),
            }
        });
        self.consume(consumed, in_frame, turn.now);
        let job = Job::Serve {
            slow,
            request,
            responder: Responder::new(ReplyTo {
                core: resources.core.clone(),
                route: Route::Flow(id),
                consumed: 0,
            }),
        };
        match resources.pool.try_submit(job) {
            Ok(()) => {
                turn.counters.deferred.increment();
                self.deferred = true;
            }
            Err(job) => {
                turn.counters.deferred_refused.increment();
                let Some(request) = job.cancel() else {
                    return;
                };
                let bytes = request.bytes();
                let len = bytes.len().min(resources.scratch.len());
                resources.scratch[..len].copy_from_slice(&bytes[..len]);
                let Some(handler) = resources.ports[self.service].handler.fast() else {
                    self.closing = true;
                    return;
                };
                let request =
                    StreamRequest::new(&mut resources.scratch, len, &info, &mut resources.outbox);
                let outcome = without_consuming(handler.overloaded(request).into_outcome());
                self.carry_out(outcome, false, in_frame, resources, turn);
            }
        }
    }

    /// The service's handler is with the pool: show it everything that is there.
    fn submit_to_demoted(
        &mut self,
        id: FlowId,
        available: usize,
        info: RequestInfo,
        resources: &mut Resources,
        turn: &Turn<'_>,
    ) {
        let service = &resources.ports[self.service];
        let Some(handler) = service.handler.shared() else {
            return;
        };
        let bytes = &mut resources.scratch[..available];
        let copied = self.engine.socket().peek_slice(bytes).unwrap_or(0);
        let job = Job::Stream {
            handler: SharedStream::clone(handler),
            slow: service.slow.clone(),
            request: Deferred::copied(&bytes[..copied], info),
            flow: id,
            core: resources.core.clone(),
        };
        match resources.pool.try_submit(job) {
            Ok(()) => {
                turn.counters.deferred.increment();
                self.deferred = true;
            }
            Err(_) => {
                // The handler is not here to say anything better.
                turn.counters.deferred_refused.increment();
                self.closing = true;
            }
        }
    }

    fn time_out_request(&mut self, resources: &mut Resources, turn: &Turn<'_>) {
        let available = self.engine.socket().recv_queue();
        let service = &mut resources.ports[self.service];
        let Some(handler) = service.handler.fast() else {
            self.closing = true;
            return;
        };
        let copied = self
            .engine
            .socket()
            .peek_slice(&mut resources.scratch[..available])
            .unwrap_or(0);
        let info = RequestInfo {
            local: self.local,
            peer: self.peer,
            now: turn.now,
            end_of_stream: false,
            full: false,
        };
        let request =
            StreamRequest::new(&mut resources.scratch, copied, &info, &mut resources.outbox);
        let outcome = handler.timed_out(request).into_outcome();
        self.carry_out(outcome, false, &mut InFrame::default(), resources, turn);
        self.closing = true;
    }

    /// Drops the oldest `count` bytes of the receive queue.
    fn consume(&mut self, count: usize, in_frame: &mut InFrame, now: Instant) {
        if count == 0 {
            return;
        }
        let socket = self.engine.socket();
        let mut left = count;
        // At most twice: the ring may wrap once.
        while left > 0 {
            let dropped = socket
                .recv(|bytes| {
                    let dropped = left.min(bytes.len());
                    (dropped, dropped)
                })
                .unwrap_or(0);
            if dropped == 0 {
                break;
            }
            left -= dropped;
        }
        self.next_seq = self.next_seq.wrapping_add((count - left) as u32);
        in_frame.start = (in_frame.start + count).min(in_frame.end);
        self.shown = None;
        self.request_since = None;
        if !self.closing {
            self.progress_at = now;
        }
    }

    /// Sends bytes, keeping what the engine has no room for.
    fn send(&mut self, bytes: &[u8]) {
        let sent = if self.out.is_empty() {
            self.engine.socket().send_slice(bytes).unwrap_or(0)
        } else {
            0
        };
        if sent < bytes.len() {
            self.out.push(Bytes::copy_from_slice(&bytes[sent..]));
        }
    }

    /// As [`send`](Self::send), sharing instead of copying what is kept.
    fn send_content(&mut self, content: &Bytes) {
        let sent = if self.out.is_empty() {
            self.engine.socket().send_slice(content).unwrap_or(0)
        } else {
            0
        };
        if sent < content.len() {
            self.out.push(content.slice(sent..));
        }
    }

    fn peer_has_closed(&mut self) -> bool {
        matches!(
            self.engine.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        )
    }

    /// What the connection's own deadline is about.
    fn waiting_for(&mut self, resources: &Resources) -> Waiting {
        if self.half_open {
            Waiting::Handshake
        } else if self.deferred {
            Waiting::Nothing
        } else if !self.out.is_empty() || self.engine.socket().send_queue() > 0 {
            Waiting::Taking
        } else if self.closing {
            Waiting::Close
        } else if self.request_since.is_some() {
            Waiting::Request
        } else if resources.ports[self.service].idle_timeout.is_some() {
            Waiting::Idle
        } else {
            Waiting::Nothing
        }
    }

    /// When the connection, not its engine, wants to be looked at again.
    fn own_deadline(&mut self, resources: &Resources) -> Option<Instant> {
        let service = &resources.ports[self.service];
        let deadline = match self.waiting_for(resources) {
            Waiting::Handshake => Some(self.progress_at + HANDSHAKE_TIMEOUT),
            Waiting::Taking => Some(self.progress_at + STALL_TIMEOUT),
            Waiting::Close => Some(self.progress_at + LINGER_TIMEOUT),
            Waiting::Request => self
                .request_since
                .map(|since| since + service.request_timeout),
            Waiting::Idle => service
                .idle_timeout
                .map(|timeout| self.progress_at + timeout),
            Waiting::Nothing => None,
        };
        earliest(deadline, self.retry_at)
    }
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The ACK of our SYN-ACK.
    Handshake,
    /// The rest of a request.
    Request,
    /// The peer, to take what was sent.
    Taking,
    /// The peer's FIN.
    Close,
    /// The next request.
    Idle,
    /// Nothing that has a deadline: the slow path, or a request on a service without idle timeout.
    Nothing,
}

/// The request was consumed when it was deferred.
fn without_consuming(outcome: StreamOutcome) -> StreamOutcome {
    match outcome {
        StreamOutcome::InPlace { len, .. } => StreamOutcome::InPlace { consumed: 0, len },
        StreamOutcome::Reply { close, .. } => StreamOutcome::Reply { consumed: 0, close },
        other => other,
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
