//! One connection with an engine: the conversation between it, its service's handler and the slow path.
//!
//! An event (a segment, a deadline, an answer of the slow path) changes the state and then has the
//! connection [`converse`](Connection::converse): requests are handled, replies go to the engine's send
//! buffer. At the end of the turn [`flush`](Connection::flush) sends. So the time between two readings of
//! the clock is a handler's, not that of the segments that its reply takes, and all segments of a batch
//! are acknowledged together. When the engine has nothing more to do that a direct flow could not, `flush`
//! says so, and it is dismissed.
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

use self::client::ClientSide;
use self::deadline::earliest;
pub(super) use self::window::Window;
use super::direct::{self, ACK_AGE_MAX, Call, Direct, Done, Flags, Screened, Side, screen};
use super::engine::Engine;
use super::outgoing::Outgoing;
use super::segment::{self, ACK, Numbers, RST, SYN, Segment, is_before};
use super::time_wait::Closed;
use super::{Resources, Turn, summon};
use crate::arena::Frame;
use crate::client::End;
use crate::config::ENGINE_RX_BYTES;
use crate::device::{Device, Translation};
use crate::flow::FlowId;
use crate::interruptlet::{Info, RequestInfo, StreamOutcome, StreamRequest};
use crate::pool::{Body, Job, Response, Source};
use crate::telemetry::Summon;
use crate::wire::FlowKey;
use crate::{Duration, Instant};

/// When to offer a body source to a full slow path again.
const RETRY_DELAY: Duration = Duration::from_millis(2);
/// More than this in a send buffer is a large reply (RFC 6928 section 2: an initial window).
const LARGE_BYTES: usize = 14_600;
/// How long an engine that sent a large reply stays after it is quiet: its congestion window is worth a
/// round trip or two, and no more (RFC 5681 section 4.1: after a retransmission timeout it begins anew).
const LARGE_REPLY_LINGER: Duration = Duration::from_millis(200);

/// The state of one connection with an engine.
#[derive(Debug)]
pub(super) struct Connection {
    engine: Engine,
    /// What it was when the engine was summoned: what both kinds of flow have (whose it is, the way to the peer,
    /// the peer's options) is kept here, the rest is put right when the engine is dismissed.
    pub(super) direct: Direct,
    /// Which of the core's services this is a connection of; of no meaning for one that we opened.
    service: usize,
    /// For a connection that we opened.
    client: Option<ClientSide>,
    local: SocketAddr,
    peer: SocketAddr,
    translation: Translation,
    /// Sequence number of the first byte that no handler has consumed.
    next_seq: u32,
    /// The number behind everything that the peer is known to have sent, and since when something before it is
    /// missing.
    peer_max: u32,
    gap_since: Option<Instant>,
    /// The oldest sequence number that is not acknowledged.
    snd_una: u32,
    /// Where the last window came from (RFC 9293 section 3.3.1: SND.WL1).
    window_seq: u32,
    /// The slow path has a request of this connection.
    deferred: bool,
    /// How many bytes the handler was shown since it last consumed some, and whether with the end of the
    /// stream behind them: it is not called again for the same.
    shown: Option<(usize, bool)>,
    /// When the first byte of an incomplete request was seen.
    request_since: Option<Instant>,
    out: Outgoing,
    /// A reply was larger than a direct flow sends.
    sends_large: bool,
    /// Close when everything is sent; what still arrives is dropped.
    closing: bool,
    /// The last time that either side got something done.
    progress_at: Instant,
    /// When to offer a body source to the pool again.
    retry_at: Option<Instant>,
}

/// What a connection has come to.
#[derive(Debug)]
pub(super) enum Status {
    /// It wants to be looked at again by then.
    Alive(Option<Instant>),
    /// It can do without an engine.
    Quiet,
    /// The engine does not see that its FIN is lost: another one will.
    Stuck,
    TimeWait(Closed),
    Gone(End),
}

impl Connection {
    /// Of no flow yet: room for one.
    pub(super) fn spare(engine: Engine, direct: Direct, key: &FlowKey, now: Instant) -> Self {
        Self {
            engine,
            direct,
            service: 0,
            client: None,
            local: key.local_addr(),
            peer: key.peer_addr(),
            translation: Translation::default(),
            next_seq: 0,
            peer_max: 0,
            gap_since: None,
            snd_una: 0,
            window_seq: 0,
            deferred: false,
            shown: None,
            request_since: None,
            out: Outgoing::default(),
            sends_large: false,
            closing: false,
            progress_at: now,
            retry_at: None,
        }
    }

    /// The engine, to be led to where a flow is.
    pub(super) fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Becomes the connection of the flow that `direct` was, now that the engine is where that was; `shift` is
    /// between their sequence numbers.
    pub(super) fn begin(
        &mut self,
        direct: Direct,
        key: &FlowKey,
        shift: u32,
        reason: Summon,
        now: Instant,
    ) {
        let ended = direct.state.has_ended();
        self.direct = direct;
        self.direct.leave(reason);
        (self.service, self.client) = match direct.side {
            Side::Service(service) => (usize::from(service), None),
            Side::Client(token) => {
                let wants_room = direct.flags.has(Flags::WANTS_ROOM);
                (0, Some(ClientSide::connected(token, ended, wants_room)))
            }
        };
        self.local = key.local_addr();
        self.peer = key.peer_addr();
        self.translation = Translation {
            shift,
            snd_max: direct.snd_nxt,
            // Where there was no frame for an acknowledgement that was due, it still is.
            acknowledged: direct
                .rcv_nxt
                .wrapping_sub(u32::from(direct.flags.has(Flags::ACK_DUE))),
            window_end: direct.snd_una.wrapping_add(direct.snd_wnd),
        };
        // A FIN is no byte that anybody consumes.
        self.next_seq = direct.rcv_nxt.wrapping_sub(u32::from(ended));
        self.peer_max = direct.rcv_nxt;
        self.gap_since = None;
        self.snd_una = direct.snd_una;
        self.window_seq = direct.rcv_nxt;
        self.deferred = false;
        self.shown = None;
        self.request_since = None;
        debug_assert!(self.out.is_empty());
        self.sends_large = false;
        self.closing = direct.closes();
        let idle = direct::millis(now).wrapping_sub(direct.progress_at);
        self.progress_at = now - Duration::from_millis(idle.into());
        self.retry_at = None;
    }

    /// What the connection is without its engine.
    pub(super) fn direct_again(&mut self) -> Direct {
        let mut direct = self.direct;
        direct.state = match self.engine.state() {
            State::FinWait1 => direct::State::FinWait1,
            State::FinWait2 => direct::State::FinWait2,
            State::CloseWait => direct::State::CloseWait,
            State::Closing => direct::State::Closing,
            State::LastAck => direct::State::LastAck,
            _ => direct::State::Established,
        };
        direct.rcv_nxt = self.rcv_nxt();
        // What is in flight is acknowledged by the very segment that ends the engine's work.
        direct.snd_una = if self.is_all_acknowledged() {
            self.translation.snd_max
        } else {
            self.snd_una
        };
        direct.snd_nxt = self.translation.snd_max;
        direct.progress_at = direct::millis(self.progress_at);
        if self.translation.acknowledged != direct.rcv_nxt {
            direct.flags.set(Flags::ACK_DUE);
        }
        direct
    }

    /// Whether we opened it.
    pub(super) fn is_client(&self) -> bool {
        self.client.is_some()
    }

    /// Drops what is left to send; returns the body source that nobody needs any more.
    pub(super) fn abandon_body(&mut self) -> Option<Source> {
        self.out.abandon()
    }

    /// The sequence number that is expected next.
    pub(super) fn rcv_nxt(&mut self) -> u32 {
        let ended = self.peer_has_closed() && self.engine.state() != State::Closed;
        let waiting = self.engine.socket().recv_queue() as u32;
        self.next_seq
            .wrapping_add(waiting)
            .wrapping_add(u32::from(ended))
    }

    /// Bytes of the window that the peer sees.
    pub(super) fn window_bytes(&mut self) -> u32 {
        let socket = self.engine.socket();
        (socket.recv_capacity() - socket.recv_queue()) as u32
    }

    /// What is to be done about a segment, before the engine sees it: where smoltcp is not as strict as RFC 5961
    /// and RFC 9293 are.
    pub(super) fn screen(&mut self, segment: &Segment) -> Screened {
        let rcv_nxt = self.rcv_nxt();
        let screened = screen(segment, rcv_nxt, self.window_bytes());
        if screened != Screened::Pass {
            return screened;
        }
        let old = is_before(segment.ack, self.snd_una)
            && self.snd_una.wrapping_sub(segment.ack) > ACK_AGE_MAX;
        // Nothing comes after a FIN.
        let late =
            self.peer_has_closed() && segment.seq_len() > 0 && !is_before(segment.seq, rcv_nxt);
        if old || late {
            Screened::Challenge
        } else if self.misleads(segment, rcv_nxt) {
            Screened::Drop
        } else {
            Screened::Pass
        }
    }

    /// Whether a duplicate acknowledgement would have smoltcp do what it should not: its fast retransmission does
    /// not look at the peer's window (there may be a whole segment to send by then, whatever there is now), and
    /// where there is nothing but a FIN to send it sends nothing and stops the timer. The timer does what is to be
    /// done.
    fn misleads(&mut self, segment: &Segment, rcv_nxt: u32) -> bool {
        let window = self.direct.peer.scale(segment.window);
        let duplicate = segment.seq_len() == 0
            && segment.seq.wrapping_sub(rcv_nxt) < self.window_bytes().max(1)
            && segment.ack == self.snd_una
            && window == self.direct.snd_wnd
            && self.translation.snd_max != self.snd_una;
        let nothing = self.engine.socket().send_queue() == 0;
        duplicate && (nothing || (window > 0 && (window as usize) < self.direct.mss()))
    }

    /// Says what is expected, in the segment's own frame, if that was not said a moment ago.
    pub(super) fn challenge(&mut self, frame: Frame, key: &FlowKey, turn: &mut Turn<'_>) {
        if !self.direct.may_challenge(turn.now) {
            turn.egress.arena.free(frame);
            return;
        }
        turn.counters.challenges.increment();
        let shift = self.shift();
        let numbers = Numbers {
            seq: self.translation.snd_max,
            ack: self.rcv_nxt(),
            flags: ACK,
            window: (self.window_bytes() >> shift).min(u32::from(u16::MAX)) as u16,
        };
        segment::send_bare(frame, &self.direct.link, key, numbers, turn.egress);
    }

    /// How far our windows are shifted.
    fn shift(&mut self) -> u8 {
        if self.direct.peer.shift.is_none() {
            return 0;
        }
        super::receive_shift(self.engine.socket().recv_capacity())
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
        self.note_numbers(segment);
        let tcp = &mut resources.memory.frame_mut(&mut frame)[segment.transport..segment.end];
        // smoltcp takes any segment's window for the peer's, that of one which was overtaken too.
        tcp[14..16].copy_from_slice(&self.direct.peer_window().to_be_bytes());
        if is_before(segment.ack, self.snd_una) && segment.seq_len() > 0 {
            // It would not look at its bytes. What it says of our own side is as good as not said.
            tcp[8..12].copy_from_slice(&self.snd_una.to_be_bytes());
        }
        self.translation.ingress(tcp);
        let socket = self.engine.socket();
        let (received_before, unsent_before) = (socket.recv_queue(), socket.send_queue());
        let packet = &resources.memory.frame(&frame)[segment.ip..segment.end];
        let mut device = Device {
            received: Some(packet),
            egress: turn.egress,
            link: &segment.link,
            ip_mtu: resources.ip_mtu,
            counters: turn.counters,
            translation: &mut self.translation,
        };
        self.engine
            .ingress(&mut resources.interface, &mut device, turn.now);

        let gap = self.peer_max != self.rcv_nxt();
        self.gap_since = gap.then_some(self.gap_since.unwrap_or(turn.now));
        let socket = self.engine.socket();
        let received = socket.recv_queue();
        let taken = socket.send_queue() < unsent_before;
        self.note_client_end();
        // Who keeps sending after we closed is not getting anything done.
        if taken || (received > received_before && !self.closing) {
            self.progress_at = turn.now;
        }
        if taken || received > received_before {
            // Only a segment that fits the connection may say where its peer is.
            self.direct.link = segment.link;
        }
        let whole =
            segment.len() == received && received_before == 0 && segment.seq == self.next_seq;
        if whole {
            Window::in_frame(frame, segment.payload, segment.end)
        } else {
            Window::apart(frame)
        }
    }

    /// Notes how far the peer has come, and its window, as far as the segment is one to believe.
    fn note_numbers(&mut self, segment: &Segment) {
        let rcv_nxt = self.rcv_nxt();
        let end = segment.seq.wrapping_add(segment.seq_len());
        let is_old = is_before(segment.seq, rcv_nxt);
        // One of which a part is new counts as that part.
        let seq = if is_old && is_before(rcv_nxt, end) {
            rcv_nxt
        } else {
            segment.seq
        };
        let expected = seq.wrapping_sub(rcv_nxt) < self.window_bytes().max(1);
        if (expected || is_old) && is_before(self.peer_max, end) {
            self.peer_max = end;
        }
        let possible = !is_before(self.translation.snd_max, segment.ack);
        let advances = is_before(self.snd_una, segment.ack);
        if !expected || !possible {
            return;
        }
        let window = self.direct.peer.scale(segment.window);
        // Who acknowledges more, or has more room for the same, says so later, whatever number it comes with (it may
        // be sent again, after one that came ahead); else the later number counts.
        let newer = advances
            || (segment.ack == self.snd_una
                && (window > self.direct.snd_wnd || !is_before(seq, self.window_seq)));
        if advances {
            self.snd_una = segment.ack;
        }
        if newer {
            if is_before(self.window_seq, seq) {
                self.window_seq = seq;
            }
            self.direct.snd_wnd = window;
        }
        self.translation.window_end = self.snd_una.wrapping_add(self.direct.snd_wnd);
    }

    /// Goes on where a direct flow could not, with the segment that caused the call, if one did.
    pub(super) fn take_over(
        &mut self,
        id: FlowId,
        call: Call,
        segment: Option<&Segment>,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        let mut window = match (call.frame, segment) {
            (Some(frame), Some(segment)) => self.take_in(frame, segment, resources, turn),
            (Some(frame), None) => {
                turn.egress.arena.free(frame);
                Window::default()
            }
            (None, _) => Window::default(),
        };
        match call.done {
            Done::Nothing => {}
            Done::Handled { consumed, outcome } => {
                self.consume(consumed, &mut window, turn.now);
                self.send(&resources.replies);
                if let Some(outcome) = outcome {
                    self.settle(id, outcome, &mut window, resources, turn);
                }
            }
            Done::Acted { taken } => {
                self.consume(taken, &mut window, turn.now);
                self.carry_out_actions(&resources.actions);
                // It is shown the rest with what comes next, or when it said.
                if self.engine.socket().recv_queue() > 0 {
                    if let Some(frame) = window.take_frame() {
                        turn.egress.arena.free(frame);
                    }
                    return;
                }
            }
        }
        self.converse(id, window, resources, turn);
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
        let idle = self.engine.socket().recv_queue() == 0 && !self.is_busy();
        if resources.draining && idle && self.client.is_none() {
            self.closing = true;
        }
        if self.closing && self.out.is_empty() && !self.deferred {
            // Behind the peer's FIN and its own smoltcp takes no news of a window: it must not need any.
            let blocked = self.peer_has_closed()
                && self.engine.socket().send_queue() > self.direct.snd_wnd as usize;
            let socket = self.engine.socket();
            if socket.may_send() && !blocked {
                socket.close();
                // The time that the peer has to close its side begins.
                self.progress_at = turn.now;
            }
        }
        self.sends_large |= self.engine.socket().send_queue() > LARGE_BYTES;
        let mut wanted = self.transmit(resources, turn);
        let acknowledged = self.is_all_acknowledged();
        if !acknowledged && self.engine.has_no_timer(&mut resources.interface, turn.now) {
            if self.engine.socket().send_queue() == 0 {
                return Status::Stuck;
            }
            self.nudge(resources, turn.now);
            wanted = self.transmit(resources, turn);
        }
        match self.engine.state() {
            State::Closed | State::Listen => return Status::Gone(self.end()),
            State::TimeWait => {
                let closed = Closed {
                    snd_nxt: self.translation.snd_max,
                    rcv_nxt: self.rcv_nxt(),
                    window: resources.window(&self.direct),
                };
                return Status::TimeWait(closed);
            }
            _ => {}
        }
        let quiet = self.is_quiet(resources);
        let linger = (self.progress_at + LARGE_REPLY_LINGER).max(turn.now);
        if quiet && (!self.sends_large || linger <= turn.now) {
            return Status::Quiet;
        }
        let looks = (quiet && self.sends_large).then_some(linger);
        Status::Alive(earliest(
            earliest(wanted, looks),
            self.own_deadline(resources),
        ))
    }

    /// Has the engine send everything that it may; returns when it wants to be asked again.
    fn transmit(&mut self, resources: &mut Resources, turn: &mut Turn<'_>) -> Option<Instant> {
        let mut device = Device {
            received: None,
            egress: turn.egress,
            link: &self.direct.link,
            ip_mtu: resources.ip_mtu,
            counters: turn.counters,
            translation: &mut self.translation,
        };
        self.engine
            .egress(&mut resources.interface, &mut device, turn.now)
    }

    /// Wakes an engine that has something in flight or to send, and no timer for it: smoltcp's retransmission timer
    /// stops when it fires while the window is closed, and when a probe's took its place. An acknowledgement that
    /// says what is known has it probe the window, four of them have it retransmit.
    fn nudge(&mut self, resources: &mut Resources, now: Instant) {
        let window = self.direct.peer_window();
        let numbers = Numbers {
            seq: self.rcv_nxt(),
            ack: self.snd_una.wrapping_sub(self.translation.shift),
            flags: ACK,
            window,
        };
        let key = FlowKey::between(self.local, self.peer);
        for _ in 0..if window == 0 { 1 } else { 4 } {
            summon::tell(&mut self.engine, resources, &key, numbers, now);
        }
    }

    /// Whether nothing of ours is in flight, nor waits to be sent.
    fn is_all_acknowledged(&mut self) -> bool {
        let fin = matches!(
            self.engine.state(),
            State::FinWait1 | State::Closing | State::LastAck
        );
        !fin && self.engine.socket().send_queue() == 0
    }

    /// Whether there is nothing left that takes an engine: all bytes of either side were taken, and nothing of
    /// the peer's is missing before something that came.
    fn is_quiet(&mut self, resources: &Resources) -> bool {
        let state = self.engine.state();
        let closing = self.closing && state != State::FinWait2;
        let waits = self.client.as_ref().is_some_and(ClientSide::waits);
        // A service answers a FIN with its own, and has not done so yet.
        let half_closed = state == State::CloseWait && self.client.is_none();
        let socket = self.engine.socket();
        let empty = socket.recv_queue() == 0 && socket.send_queue() == 0;
        matches!(
            state,
            State::Established | State::CloseWait | State::FinWait2
        ) && empty
            && !closing
            && !half_closed
            && !waits
            && !self.is_busy()
            && !resources.engine_only
            && self.peer_max == self.rcv_nxt()
    }

    /// Whether the engine's work ends with `segment`: it is the next one, and acknowledges everything that was sent.
    pub(super) fn ends_with(&mut self, segment: &Segment) -> bool {
        let plain = segment.flags & (SYN | RST | ACK) == ACK;
        if !plain || segment.ack != self.translation.snd_max || self.sends_large {
            return false;
        }
        let sent = self.translation.snd_max.wrapping_sub(self.snd_una) as usize;
        let socket = self.engine.socket();
        let open = match socket.state() {
            State::Established => !self.closing,
            State::CloseWait => !self.closing && self.client.is_some(),
            _ => false,
        };
        // A probe of a closed window is counted as sent, too.
        let all_sent = socket.send_queue() <= sent;
        let waits = self.client.as_ref().is_some_and(ClientSide::waits);
        let empty = socket.recv_queue() == 0;
        let rcv_nxt = self.rcv_nxt();
        open && all_sent
            && empty
            && !waits
            && !self.is_busy()
            && segment.seq == rcv_nxt
            && self.peer_max == rcv_nxt
    }

    /// Whether only the peer's FIN is missing.
    pub(super) fn is_finished(&mut self) -> bool {
        self.engine.state() == State::FinWait2
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

    /// The pool hands the request back: the handler is to be shown it here.
    pub(super) fn take_back(&mut self) {
        self.deferred = false;
        self.shown = None;
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
        let info = self.info(available, ended, turn.now);
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
        let request =
            StreamRequest::new(buffer, available, Info::Told(&info), &mut resources.outbox);
        let service = &mut resources.ports[self.service];
        let Some(outcome) = service.handle(request, turn.now, turn.clock) else {
            // The scratch buffer is for what the pool is shown from now on.
            window.forget();
            self.submit_to_demoted(id, available, info, resources, turn);
            return false;
        };
        resources.note_call(self.service);
        self.settle(id, outcome, window, resources, turn);
        true
    }

    /// Does what follows from the outcome of a handler's call for all unconsumed bytes.
    fn settle(
        &mut self,
        id: FlowId,
        outcome: StreamOutcome,
        window: &mut Window,
        resources: &mut Resources,
        turn: &mut Turn<'_>,
    ) {
        let available = self.engine.socket().recv_queue();
        let ended = self.peer_has_closed();
        self.shown = Some((available, ended));
        match outcome {
            StreamOutcome::NeedMore => {
                self.request_since.get_or_insert(turn.now);
            }
            StreamOutcome::Defer { consumed } => {
                let info = self.info(available, ended, turn.now);
                self.defer(id, consumed, window, info, resources, turn);
            }
            outcome => {
                turn.counters.tcp_requests.increment();
                self.carry_out(outcome, window, resources, turn);
            }
        }
    }

    /// What a handler is told of a request.
    fn info(&self, available: usize, ended: bool, now: Instant) -> RequestInfo {
        RequestInfo {
            local: self.local,
            peer: self.peer,
            now,
            end_of_stream: ended,
            full: available == ENGINE_RX_BYTES,
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
