//! One connection: the conversation between its engine, its service's handler and the slow path.
//!
//! An event (a segment, a deadline, an answer of the slow path) changes the state and then has the
//! connection [`converse`](Connection::converse): requests are handled, replies go to the engine's send
//! buffer. At the end of the turn [`flush`](Connection::flush) sends. So the time between two readings of
//! the clock is a handler's, not that of the segments that its reply takes, and all segments of a batch
//! are acknowledged together.
//!
//! * [`client`]: the other side, for connections that we opened.
//! * [`window`]: where the unconsumed bytes can be seen as one slice.
//! * [`slow`]: deferring, and handlers that were demoted.
//! * [`deadline`]: what the connection waits for, and how long.

mod client;
mod deadline;
mod slow;
mod window;

use std::net::SocketAddr;

use bytes::Bytes;
use smoltcp::socket::tcp::State;

pub(super) use self::client::ClientSide;
use self::deadline::earliest;
pub(super) use self::window::Window;
use super::engine::Engine;
use super::outgoing::Outgoing;
use super::{ACK, RST, Resources, SYN, Segment, Turn};
use crate::arena::Frame;
use crate::client::End;
use crate::config::ENGINE_RX_BYTES;
use crate::device::{Device, SndMax};
use crate::flow::FlowId;
use crate::interruptlet::{RequestInfo, StreamOutcome, StreamRequest};
use crate::pool::{Body, Job, Response, Source};
use crate::wire::LinkHeader;
use crate::{Duration, Instant};

/// When to offer a body source to a full slow path again.
const RETRY_DELAY: Duration = Duration::from_millis(2);

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    link: LinkHeader,
    engine: Engine,
    /// Which of the core's services this is a connection of; of no meaning for one that we opened.
    service: usize,
    /// For a connection that we opened.
    client: Option<ClientSide>,
    local: SocketAddr,
    peer: SocketAddr,
    pub(super) phase: Phase,
    /// The phase that the core has counted this connection in.
    pub(super) counted_as: Phase,
    /// It is to be forgotten without a word.
    gone: bool,
    /// It is on the core's list of connections to flush at the end of the turn.
    pub(super) touched: bool,
    snd_max: SndMax,
    /// Sequence number of the first byte that no handler has consumed.
    next_seq: u32,
    /// The last acknowledgement number that got something done.
    last_ack: u32,
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

/// How far a connection has come, as far as the core's bounds and its drain care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// We opened it, and the handshake is not complete.
    Opening,
    /// The peer opened it, and the handshake is not complete.
    Handshake,
    /// Data may flow, or our side is being closed.
    Open,
    /// Everything of ours was received, our FIN included: only the peer's FIN is missing.
    Finished,
    TimeWait,
}

/// Whether a connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It does, and wants to be looked at again by then.
    Alive(Option<Instant>),
    Gone,
}

impl Connection {
    /// One that a peer opens, with a SYN of this sequence number.
    pub(super) fn new(
        engine: Engine,
        service: usize,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        syn_seq: u32,
        now: Instant,
    ) -> Self {
        let mut connection = Self::begin(engine, Phase::Handshake, local, peer, link, now);
        connection.service = service;
        connection.next_seq = syn_seq.wrapping_add(1);
        connection
    }

    /// One that we open.
    pub(super) fn open(
        engine: Engine,
        client: ClientSide,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        now: Instant,
    ) -> Self {
        let mut connection = Self::begin(engine, Phase::Opening, local, peer, link, now);
        connection.client = Some(client);
        connection
    }

    fn begin(
        engine: Engine,
        phase: Phase,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        now: Instant,
    ) -> Self {
        Self {
            link,
            engine,
            service: 0,
            client: None,
            local,
            peer,
            phase,
            counted_as: phase,
            gone: false,
            touched: false,
            snd_max: SndMax::default(),
            next_seq: 0,
            last_ack: 0,
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

    /// Whether we opened it.
    pub(super) fn is_client(&self) -> bool {
        self.client.is_some()
    }

    /// What can be used again, and the body source that nobody needs any more.
    pub(super) fn into_parts(mut self) -> (Engine, Option<Source>) {
        let source = self.out.abandon();
        (self.engine, source)
    }

    /// Whether a SYN with this sequence number may begin a new connection in place of this one
    /// (RFC 9293 section 3.10.7.4: beyond everything that this one received).
    pub(super) fn gives_way_to(&self, syn_seq: u32) -> bool {
        self.phase == Phase::TimeWait && (syn_seq.wrapping_sub(self.next_seq) as i32) > 0
    }

    /// Lets the engine take in the segment whose IP packet is `frame[ip..end]` and whose payload begins
    /// at `payload`. Returns where the unconsumed bytes are.
    pub(super) fn take_in(
        &mut self,
        mut frame: Frame,
        segment: &Segment,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) -> Window {
        let opening = matches!(self.phase, Phase::Opening | Phase::Handshake);
        if segment.flags & (SYN | ACK | RST) == SYN && !opening {
            let packet = &mut resources.memory.frame_mut(&mut frame)[..segment.end];
            self.make_challenged(packet, segment);
        }
        let socket = self.engine.socket();
        let (received_before, unsent_before) = (socket.recv_queue(), socket.send_queue());
        let packet = &resources.memory.frame(&frame)[segment.ip..segment.end];
        let mut device = Device {
            received: Some(packet),
            egress: turn.egress,
            link: &segment.link,
            ip_mtu: resources.ip_mtu,
            counters: turn.counters,
            snd_max: Some(&mut self.snd_max),
            sent: 0,
        };
        self.engine
            .ingress(&mut resources.interface, &mut device, turn.now);

        let socket = self.engine.socket();
        let received = socket.recv_queue();
        let taken = socket.send_queue() < unsent_before;
        self.note_client_end(segment.flags & RST != 0);
        let opening = self.phase == Phase::Opening;
        let established = self.note_established(turn);
        if established && opening {
            self.next_seq = segment.seq.wrapping_add(1);
        }
        // Who keeps sending after we closed is not getting anything done.
        if taken || (received > received_before && !self.closing) {
            self.progress_at = turn.now;
        }
        if taken || established || received > received_before {
            // Only a segment that fits the connection may say where its peer is and what it has.
            self.link = segment.link;
            self.last_ack = segment.ack;
        }
        let whole = segment.end - segment.payload == received
            && received_before == 0
            && segment.seq == self.next_seq;
        if whole {
            Window::in_frame(frame, segment.payload, segment.end)
        } else {
            Window::apart(frame)
        }
    }

    /// A SYN on a connection is to be answered with a challenge ACK (RFC 9293 section 3.10.7.4), so that a
    /// peer that lost its state can reset ours. smoltcp ignores such a SYN, but it does challenge, at most
    /// once a second, a segment from before the window: this makes the SYN one.
    fn make_challenged(&self, packet: &mut [u8], segment: &Segment) {
        let header = &mut packet[segment.transport..];
        let payload_len = (segment.end - segment.payload) as u32;
        let seq = self.next_seq.wrapping_sub(1).wrapping_sub(payload_len);
        header[4..8].copy_from_slice(&seq.to_be_bytes());
        header[8..12].copy_from_slice(&self.last_ack.to_be_bytes());
        header[13] = ACK;
    }

    /// Has requests handled and replies sent as far as both can go now. What is to be sent leaves with
    /// [`flush`](Self::flush).
    pub(super) fn converse(
        &mut self,
        id: FlowId,
        mut window: Window,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        if self.is_client() {
            self.attend(id, resources, turn);
        } else {
            loop {
                self.pump(id, resources, turn);
                if !self.serve_one(id, &mut window, resources, turn) {
                    break;
                }
            }
        }
        if let Some(frame) = window.take_frame() {
            turn.egress.arena.free(frame);
        }
    }

    /// Closes if it is time, sends everything that may be sent, and tells what the connection has come to.
    pub(super) fn flush(&mut self, resources: &mut Resources, turn: &mut Turn<'_>) -> Status {
        if self.gone {
            return Status::Gone;
        }
        let idle = self.engine.socket().recv_queue() == 0 && !self.is_busy();
        let opening = matches!(self.phase, Phase::Opening | Phase::Handshake);
        if resources.draining && idle && !opening {
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
            link: &self.link,
            ip_mtu: resources.ip_mtu,
            counters: turn.counters,
            snd_max: Some(&mut self.snd_max),
            sent: 0,
        };
        let wanted = self
            .engine
            .egress(&mut resources.interface, &mut device, turn.now);
        match self.engine.state() {
            // Reset in the handshake: smoltcp listens again.
            State::Closed | State::Listen => return Status::Gone,
            State::TimeWait => {
                self.phase = Phase::TimeWait;
                return Status::Alive(wanted);
            }
            State::FinWait2 => self.phase = Phase::Finished,
            _ => {}
        }
        Status::Alive(earliest(wanted, self.own_deadline(resources)))
    }

    /// The answer to the deferred request.
    pub(super) fn reply(&mut self, consumed: usize, response: Response, turn: &Turn<'_>) {
        self.deferred = false;
        self.consume(consumed, &mut Window::default(), turn.now);
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
        if let Some(side) = &mut self.client {
            side.note_end(End::Aborted);
        }
        self.engine.socket().abort();
    }

    /// The next chunk of the body, or its end.
    pub(super) fn add_chunk(&mut self, chunk: Option<Bytes>, source: Option<Source>) {
        self.out.add_chunk(chunk, source);
    }

    /// Whether a reply is outstanding.
    fn is_busy(&self) -> bool {
        self.deferred || !self.out.is_empty()
    }

    /// Notices the end of the handshake; returns whether it was now.
    fn note_established(&mut self, turn: &Turn<'_>) -> bool {
        let established = matches!(self.phase, Phase::Opening | Phase::Handshake)
            && !matches!(
                self.engine.state(),
                State::Listen | State::SynSent | State::SynReceived | State::Closed
            );
        if established {
            self.phase = Phase::Open;
            self.progress_at = turn.now;
            turn.counters.flows_established.increment();
        }
        established
    }

    /// Fills the engine's send buffer from what is outgoing, and has more produced.
    fn pump(&mut self, id: FlowId, resources: &mut Resources, turn: &Turn<'_>) {
        if self.out.is_empty() || self.engine.state() == State::Closed {
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
        window: &mut Window,
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
            self.consume(available, window, turn.now);
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
        if !window.holds(available) {
            // The bytes came in several segments: make them one slice.
            let copied = self
                .engine
                .socket()
                .peek_slice(&mut resources.scratch[..available])
                .unwrap_or(0);
            debug_assert_eq!(copied, available);
            window.set_scratch(available);
        }
        let buffer = window.buffer(&resources.memory, &mut resources.scratch);
        let request = StreamRequest::new(buffer, available, &info, &mut resources.outbox);
        let outcome = handler.handle(request).into_outcome();
        resources.note_call(self.service);
        match outcome {
            StreamOutcome::NeedMore => {
                self.request_since.get_or_insert(turn.now);
                true
            }
            StreamOutcome::Defer { consumed } => {
                self.defer(id, consumed, window, info, resources, turn);
                true
            }
            outcome => {
                turn.counters.tcp_requests.increment();
                self.carry_out(outcome, window, resources, turn);
                true
            }
        }
    }

    /// Sends a handler's reply and consumes its request, which is where `window` says.
    fn carry_out(
        &mut self,
        outcome: StreamOutcome,
        window: &mut Window,
        resources: &mut Resources,
        turn: &Turn<'_>,
    ) {
        match outcome {
            StreamOutcome::InPlace { consumed, len } => {
                let buffer = window.buffer(&resources.memory, &mut resources.scratch);
                self.send(&buffer[..len]);
                self.consume(consumed, window, turn.now);
            }
            StreamOutcome::Reply { consumed, close } => {
                self.send(&resources.outbox.head);
                self.send_content(&resources.outbox.content);
                self.closing |= close;
                self.consume(consumed, window, turn.now);
            }
            StreamOutcome::Abort => self.abort(),
            // Where these are not allowed they count as close.
            StreamOutcome::NeedMore | StreamOutcome::Defer { .. } => self.closing = true,
        }
    }

    /// Drops the oldest `count` bytes of the receive queue.
    fn consume(&mut self, count: usize, window: &mut Window, now: Instant) {
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
        window.advance(count);
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
}
