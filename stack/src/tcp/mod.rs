//! TCP: connections of stream services and of the client.
//!
//! * [`passive`]: segments for no flow, which may begin one; [`handshake`]: handshakes without state.
//! * [`direct`]: flows in the common case, on the frames themselves; [`held`]: what they have in flight;
//!   [`rtt`]: their timer.
//! * [`connection`]: flows with an engine, [`engine`]; [`summon`]: how they come by it; [`outgoing`]: what a
//!   reply has left to send.
//! * [`path_mtu`]: links on the way that are narrower than ours.
//! * [`time_wait`]: what is left of connections that we closed first.
//! * [`segment`]: reading and writing headers.
//!
//! This module owns the table of flows, their timers, and the bounds.

mod connection;
mod direct;
mod engine;
mod handshake;
mod held;
mod outgoing;
mod passive;
mod path_mtu;
mod rtt;
mod segment;
mod summon;
mod time_wait;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ahash::RandomState;
use smoltcp::iface::Interface;
use smoltcp::wire::{HardwareAddress, IpCidr};

use self::connection::{Connection, Status, Window};
use self::direct::{After, Call, Context, Direct, Done, Flags, Millis, Screened, Side};
use self::engine::Engine;
use self::handshake::Handshake;
pub(crate) use self::handshake::Secret;
use self::held::Held;
use self::passive::drop_odd;
use self::path_mtu::PathMtu;
use self::segment::{Segment, is_before};
use self::time_wait::{Closed, TimeWait};
use crate::arena::{Frame, FrameMemory, Owner};
use crate::client::{Actions, Client, End, OpenError, Stream, StreamId};
use crate::clock::{self, Clock};
use crate::config::{Cidr, ENGINE_RX_BYTES, ENGINE_TX_BYTES, Limits, SCRATCH_ROOM_BYTES};
use crate::device::{Device, Translation};
use crate::egress::Egress;
use crate::flow::{FlowId, FlowTable};
use crate::interruptlet::{Outbox, StreamInterruptlet, StreamOutcome, StreamReply, StreamRequest};
use crate::pool::{Job, MailboxSender, Response, SlowPath, Source, Submitter};
use crate::service::{Budget, Handler};
use crate::telemetry::{Counters, Summon};
use crate::timer::TimerWheel;
use crate::wire::{FlowKey, LinkHeader, Transport};
use crate::{Duration, Instant};

/// How long a handshake of ours may take. SYNs are repeated within it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may keep its side open after we closed ours: Linux's `tcp_fin_timeout`.
const LINGER_TIMEOUT: Duration = Duration::from_secs(60);
/// Used engines that are kept for the next flows that need one.
const SPARE_ENGINES_MAX: usize = 1024;
// The window scale that is announced to peers of services must be the one that an engine derives from its
// buffer: none.
const _: () = assert!(receive_shift(ENGINE_RX_BYTES) == 0);

/// How far the windows of a receive buffer of so many bytes are shifted: as smoltcp's are.
const fn receive_shift(rx_bytes: usize) -> u8 {
    let bits = usize::BITS - rx_bytes.leading_zeros();
    bits.saturating_sub(16) as u8
}

/// A stream service of one core.
pub(crate) struct StreamPort {
    pub(crate) port: u16,
    pub(crate) handler: Handler<dyn StreamInterruptlet>,
    pub(crate) slow: Option<Arc<dyn SlowPath>>,
    pub(crate) budget: Budget,
    pub(crate) request_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) keep_alive: Option<Duration>,
}

impl StreamPort {
    /// Has the handler handle a request on the core; `None` if the pool has the handler. A handler that panics resets the
    /// connection.
    #[inline(always)]
    fn handle(
        &mut self,
        request: StreamRequest<'_>,
        now: Instant,
        clock: &mut dyn Clock,
    ) -> Option<StreamOutcome> {
        let handled = self.handler.run(&mut self.budget, now, clock, |handler| {
            handler.handle(request).into_outcome()
        })?;
        Some(handled.unwrap_or(StreamOutcome::Abort))
    }

    /// Has the handler answer a request that it does not get to handle, wherever it is; `None` if the pool is running it
    /// right now. A handler that panics resets the connection.
    fn excuse(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut dyn StreamInterruptlet) -> StreamReply,
    ) -> Option<StreamOutcome> {
        let answered = self.handler.call(&mut self.budget, now, |handler| {
            call(handler).into_outcome()
        })?;
        Some(answered.unwrap_or(StreamOutcome::Abort))
    }
}

/// The means of an event in one turn: where to send, where to count, the time, and the clock for calls of handlers
/// that are measured.
pub(crate) struct Turn<'a> {
    pub(crate) egress: &'a mut Egress,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Instant,
    /// The same time in milliseconds, for direct flows.
    millis: Millis,
    /// The same time in nanoseconds, for clients.
    pub(crate) nanos: u64,
    clock: &'a mut dyn Clock,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(
        egress: &'a mut Egress,
        counters: &'a Counters,
        nanos: u64,
        clock: &'a mut dyn Clock,
    ) -> Self {
        let now = clock::instant(nanos);
        Self {
            egress,
            counters,
            now,
            millis: direct::millis(now),
            nanos,
            clock,
        }
    }
}

/// What all connections of a core share.
pub(crate) struct Resources {
    interface: Interface,
    ip_mtu: usize,
    memory: Arc<FrameMemory>,
    ports: Vec<StreamPort>,
    outbox: Outbox,
    /// Replies to requests that came in one segment, to be sent together.
    replies: Vec<u8>,
    /// Whom the connections that we open belong to. Not here while it takes its turn.
    client: Option<Box<dyn Client>>,
    /// What the client asks for in an event.
    actions: Actions,
    client_rx_bytes: usize,
    client_tx_bytes: usize,
    /// How far the windows of connections that we open are shifted.
    client_shift: u8,
    /// Paths that are narrower than our link.
    path_mtu: PathMtu,
    /// What direct flows have in flight.
    held: Held,
    /// Where a request is made one slice, with room behind it.
    scratch: Vec<u8>,
    pool: Submitter,
    core: MailboxSender,
    /// No new connections; idle ones are closed.
    draining: bool,
    /// Every segment is an engine's.
    engine_only: bool,
    /// The service whose handler ran last, and how often since it was asked.
    called: Option<(usize, u32)>,
}

impl Resources {
    /// The largest segment that our link, and the path to the peer as far as it is known, have room for.
    fn path_mss(&self, key: &FlowKey, now: Instant) -> u16 {
        let local = segment::local_mss(self.ip_mtu, key);
        let path = self.path_mtu.mtu(&key.peer, now);
        path.map_or(local, |mtu| local.min(path_mtu::mss(mtu, key)))
    }

    fn note_call(&mut self, service: usize) {
        let calls = self.called.map_or(0, |(_, calls)| calls);
        self.called = Some((service, calls + 1));
    }

    /// Bytes of the receive window of a direct flow, in which nothing waits.
    #[inline]
    fn window_bytes(&self, direct: &Direct) -> u32 {
        let bytes = match direct.side {
            Side::Service(_) => ENGINE_RX_BYTES,
            Side::Client(_) => self.client_rx_bytes,
        };
        bytes.min(usize::from(u16::MAX) << self.shift(direct)) as u32
    }

    /// The same as it is in a header.
    #[inline]
    fn window(&self, direct: &Direct) -> u16 {
        (self.window_bytes(direct) >> self.shift(direct)) as u16
    }

    #[inline]
    fn shift(&self, direct: &Direct) -> u8 {
        match (direct.side, direct.peer.shift) {
            (Side::Client(_), Some(_)) => self.client_shift,
            _ => 0,
        }
    }
}

/// One connection.
#[derive(Debug)]
enum Flow {
    /// Without an engine.
    Direct(Direct),
    /// With one.
    Engine(Box<Connection>),
}

/// What a core's TCP is made of.
pub(crate) struct TcpParts {
    pub(crate) ports: Vec<StreamPort>,
    pub(crate) addresses: Vec<Cidr>,
    pub(crate) ip_mtu: usize,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    pub(crate) secret: Secret,
    /// Added to our initial sequence numbers.
    pub(crate) isn_offset: u32,
    pub(crate) engine_only: bool,
    pub(crate) client: Option<Box<dyn Client>>,
    pub(crate) pool: Submitter,
    pub(crate) core: MailboxSender,
}

/// The connections of one core.
pub(crate) struct Tcp {
    flows: FlowTable<Flow>,
    timers: TimerWheel,
    time_wait: TimeWait,
    handshake: Handshake,
    resources: Resources,
    /// Engines that were dismissed, for services, and for connections that we opened, whose buffers are of
    /// another size.
    #[allow(clippy::vec_box)] // they go into flows and come back as they are
    spare: Vec<Box<Connection>>,
    #[allow(clippy::vec_box)]
    spare_client: Vec<Box<Connection>>,
    /// Flows that have an engine now, and how many may.
    engines: usize,
    engines_max: usize,
    /// Flows to look after at the end of the turn.
    touched: Vec<FlowId>,
    /// Flows that only wait for their peer's FIN.
    finished: usize,
}

impl Tcp {
    pub(crate) fn new(parts: TcpParts, egress: &mut Egress, now: Instant) -> Self {
        let TcpParts {
            ports,
            addresses,
            ip_mtu,
            limits,
            seed,
            secret,
            isn_offset,
            engine_only,
            client,
            pool,
            core,
        } = parts;
        let interface = new_interface(ip_mtu, &addresses, split_seed(seed, 1), egress, now);
        let memory = egress.arena.memory();
        Self {
            flows: FlowTable::new(limits.flows, split_seed(seed, 2)),
            timers: TimerWheel::new(now, limits.flows),
            time_wait: TimeWait::new(limits.time_wait, split_seed(seed, 3)),
            handshake: Handshake::new(secret, isn_offset),
            resources: Resources {
                interface,
                ip_mtu,
                ports,
                outbox: Outbox::with_capacity(ip_mtu),
                replies: Vec::with_capacity(ip_mtu),
                client,
                actions: Actions::default(),
                client_rx_bytes: limits.client_rx_bytes,
                client_tx_bytes: limits.client_tx_bytes,
                client_shift: receive_shift(limits.client_rx_bytes),
                path_mtu: PathMtu::new(split_seed(seed, 4)),
                held: Held::new(memory.frames(), limits.held_frames, limits.held_per_flow),
                memory,
                scratch: vec![0; ENGINE_RX_BYTES + SCRATCH_ROOM_BYTES],
                pool,
                core,
                draining: false,
                engine_only,
                called: None,
            },
            spare: Vec::new(),
            spare_client: Vec::new(),
            engines: 0,
            engines_max: limits.engines,
            touched: Vec::with_capacity(limits.flows),
            finished: 0,
        }
    }

    /// Handles a segment whose headers are checked.
    #[inline]
    pub(crate) fn receive(
        &mut self,
        frame: Frame,
        packet: &Transport,
        payload: usize,
        flags: u8,
        turn: &mut Turn<'_>,
    ) {
        let segment = Segment::read(turn.egress.arena.bytes(&frame), packet, payload, flags);
        match self.flows.find(&packet.key) {
            Some(id) if segment.is_plain() => self.dispatch(id, frame, &segment, turn),
            Some(_) => drop_odd(frame, turn),
            None => self.receive_unknown(frame, &packet.key, &segment, turn),
        }
    }

    /// Hands a segment to its flow.
    #[inline]
    fn dispatch(&mut self, id: FlowId, frame: Frame, segment: &Segment, turn: &mut Turn<'_>) {
        let Some((key, flow)) = self.flows.get_mut(id) else {
            turn.egress.arena.free(frame);
            return;
        };
        match flow {
            Flow::Direct(direct) if !self.resources.engine_only || direct.is_opening() => {
                turn.counters.direct_segments.increment();
                let mut context = Context {
                    id,
                    key,
                    resources: &mut self.resources,
                    turn,
                };
                let after = direct.receive(frame, segment, &mut context);
                self.carry_out(id, after, Some(segment), turn);
            }
            Flow::Direct(_) => {
                let call = Call {
                    reason: Summon::Asked,
                    frame: Some(frame),
                    done: Done::Nothing,
                };
                self.carry_out(id, After::Engine(call), Some(segment), turn);
            }
            Flow::Engine(_) => self.engine_segment(id, frame, segment, turn),
        }
    }

    /// Runs an event of a direct flow; `None` if this is none.
    #[inline]
    fn direct<R>(
        &mut self,
        id: FlowId,
        turn: &mut Turn<'_>,
        event: impl FnOnce(&mut Direct, &mut Context<'_, '_>) -> R,
    ) -> Option<R> {
        let (key, Flow::Direct(direct)) = self.flows.get_mut(id)? else {
            return None;
        };
        let mut context = Context {
            id,
            key,
            resources: &mut self.resources,
            turn,
        };
        Some(event(direct, &mut context))
    }

    /// Hands a segment to a flow with an engine.
    fn engine_segment(&mut self, id: FlowId, frame: Frame, segment: &Segment, turn: &mut Turn<'_>) {
        let Some((key, Flow::Engine(connection))) = self.flows.get_mut(id) else {
            turn.egress.arena.free(frame);
            return;
        };
        if !self.resources.engine_only && connection.ends_with(segment) {
            // A peer that asks again as soon as it is answered never leaves a moment without bytes in flight but this
            // one: everything is acknowledged, and the next request is still in its frame.
            self.dismiss(id, turn);
            self.dispatch(id, frame, segment, turn);
            return;
        }
        turn.counters.engine_segments.increment();
        match connection.screen(segment) {
            Screened::Pass => {
                let window = connection.take_in(frame, segment, &mut self.resources, turn);
                connection.converse(id, window, &mut self.resources, turn);
                self.touch(id);
            }
            // At once: what comes behind it in the same turn is for no connection.
            Screened::Reset => {
                turn.egress.arena.free(frame);
                self.remove(id, End::Reset, turn);
            }
            Screened::Challenge => connection.challenge(frame, key, turn),
            Screened::Drop => turn.egress.arena.free(frame),
        }
    }

    /// Carries out what an event of a direct flow has come to.
    #[inline]
    fn carry_out(
        &mut self,
        id: FlowId,
        after: After,
        segment: Option<&Segment>,
        turn: &mut Turn<'_>,
    ) {
        match after {
            After::Direct => self.settle_direct(id, turn),
            After::Engine(call) => self.summon(id, call, segment, turn),
            After::TimeWait(closed) => self.enter_time_wait(id, closed, turn),
            After::Gone(end) => self.remove(id, end, turn),
        }
    }

    /// Sees that what a direct flow has to do at the end of the turn is done, and arms its timer.
    #[inline]
    fn settle_direct(&mut self, id: FlowId, turn: &Turn<'_>) {
        let Some((_, Flow::Direct(direct))) = self.flows.get_mut(id) else {
            return;
        };
        let waits = direct
            .flags
            .any(Flags::ACK_DUE | Flags::FIN_DUE | Flags::ABORTED)
            || self.resources.draining;
        if waits && !direct.flags.has(Flags::TOUCHED) {
            direct.flags.set(Flags::TOUCHED);
            self.touched.push(id);
        }
        arm_direct(
            direct,
            id,
            &self.resources,
            &mut self.timers,
            &mut self.finished,
            turn,
        );
    }

    /// As [`settle_direct`](Self::settle_direct), at the end of the turn: what could not be done is tried again when
    /// the timer says.
    fn settle_late(&mut self, id: FlowId, turn: &Turn<'_>) {
        if let Some((_, Flow::Direct(direct))) = self.flows.get_mut(id) {
            arm_direct(
                direct,
                id,
                &self.resources,
                &mut self.timers,
                &mut self.finished,
                turn,
            );
        }
    }

    /// Gives a direct flow an engine, and has it go on from there.
    fn summon(&mut self, id: FlowId, call: Call, segment: Option<&Segment>, turn: &mut Turn<'_>) {
        let reason = call.reason;
        if !self.summoned(id, reason, turn) {
            self.do_without(id, call, segment, turn);
            return;
        }
        turn.counters.count_summon(reason);
        match (&call.done, segment) {
            (Done::Nothing, Some(segment)) => {
                if let Some(frame) = call.frame {
                    self.engine_segment(id, frame, segment, turn);
                }
            }
            _ => {
                let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id) else {
                    return;
                };
                if segment.is_some() {
                    turn.counters.engine_segments.increment();
                }
                connection.take_over(id, call, segment, &mut self.resources, turn);
            }
        }
        self.touch(id);
    }

    /// Gives a direct flow an engine. Returns false if none can be had.
    fn summoned(&mut self, id: FlowId, reason: Summon, turn: &mut Turn<'_>) -> bool {
        let Some((key, flow)) = self.flows.get_mut(id) else {
            return false;
        };
        let Flow::Direct(direct) = flow else {
            return true;
        };
        if direct.flags.has(Flags::ABORTED) {
            return false;
        }
        if self.engines >= self.engines_max {
            turn.counters.engines_refused.increment();
            return false;
        }
        if direct.flags.has(Flags::ACK_DUE)
            && let Some(frame) = turn.egress.arena.alloc(Owner::Tx)
        {
            // The engine will take for granted that everything so far is acknowledged.
            let mut context = Context {
                id,
                key,
                resources: &mut self.resources,
                turn,
            };
            direct.send_acknowledgement(frame, &mut context);
        }
        let (spare, rx_bytes, tx_bytes) = match direct.side {
            Side::Service(_) => (&mut self.spare, ENGINE_RX_BYTES, ENGINE_TX_BYTES),
            Side::Client(_) => (
                &mut self.spare_client,
                self.resources.client_rx_bytes,
                self.resources.client_tx_bytes,
            ),
        };
        let mut connection = spare.pop().unwrap_or_else(|| {
            let engine = Engine::new(rx_bytes, tx_bytes);
            Box::new(Connection::spare(engine, *direct, key, turn.now))
        });
        let shift = summon::lead(
            connection.engine(),
            &mut self.resources,
            direct,
            key,
            reason,
            turn.egress,
            turn.now,
        );
        let Some(shift) = shift else {
            turn.counters.engines_refused.increment();
            return false;
        };
        self.resources
            .held
            .clear(&mut direct.held, &mut turn.egress.arena);
        connection.begin(*direct, key, shift, reason, turn.now);
        *flow = Flow::Engine(connection);
        self.engines += 1;
        true
    }

    /// Carries on a flow that needs an engine when there is none: what its peer will send again is dropped, what is in
    /// flight is sent again as it is, and what a handler or the client has begun and cannot be finished ends the
    /// connection. A flow that was only to have an engine goes on without.
    fn do_without(
        &mut self,
        id: FlowId,
        call: Call,
        segment: Option<&Segment>,
        turn: &mut Turn<'_>,
    ) {
        let after = self.direct(id, turn, |direct, context| {
            match (call.done, call.reason, call.frame, segment) {
                (Done::Nothing, Summon::Asked, Some(frame), Some(segment)) => {
                    context.turn.counters.direct_segments.increment();
                    direct.receive(frame, segment, context)
                }
                (
                    Done::Nothing
                    // The pool's to handle, from the first byte on.
                    | Done::Handled {
                        consumed: 0,
                        outcome: None,
                    },
                    reason,
                    frame,
                    _,
                ) => {
                    if let Some(frame) = frame {
                        context.turn.egress.arena.free(frame);
                    }
                    match reason {
                        Summon::Timeout => direct.retransmit(context),
                        // The peer shall hear that something is missing (RFC 5681 section 3.2).
                        Summon::OutOfOrder => {
                            direct.flags.set(Flags::ACK_DUE);
                            After::Direct
                        }
                        _ => After::Direct,
                    }
                }
                (Done::Handled { .. } | Done::Acted { .. }, _, frame, _) => {
                    direct.send_reset(frame, context);
                    After::Gone(End::Aborted)
                }
            }
        });
        if let Some(after) = after {
            self.carry_out_late(id, after, segment, turn);
        }
    }

    /// As [`carry_out`](Self::carry_out), where the client may be taking its turn: then it is told at the end of
    /// the core's.
    fn carry_out_late(
        &mut self,
        id: FlowId,
        after: After,
        segment: Option<&Segment>,
        turn: &mut Turn<'_>,
    ) {
        if let After::Gone(End::Aborted) = after
            && self.resources.client.is_none()
            && let Some((_, Flow::Direct(direct))) = self.flows.get_mut(id)
            && matches!(direct.side, Side::Client(_))
        {
            direct.flags.set(Flags::ABORTED);
            self.settle_direct(id, turn);
            return;
        }
        self.carry_out(id, after, segment, turn);
    }

    /// A flow can do without its engine.
    fn dismiss(&mut self, id: FlowId, turn: &Turn<'_>) {
        let Some((_, flow)) = self.flows.get_mut(id) else {
            return;
        };
        let Flow::Engine(connection) = flow else {
            return;
        };
        let direct = connection.direct_again();
        let old = std::mem::replace(flow, Flow::Direct(direct));
        if let Flow::Engine(connection) = old {
            self.engines -= 1;
            self.keep(connection);
        }
        turn.counters.dismissed.increment();
    }

    /// Keeps an engine for the next flow that needs one.
    fn keep(&mut self, mut connection: Box<Connection>) {
        let source = connection.abandon_body();
        let spare = match connection.direct.side {
            Side::Service(_) => &mut self.spare,
            Side::Client(_) => &mut self.spare_client,
        };
        if spare.len() < SPARE_ENGINES_MAX {
            spare.push(connection);
        }
        self.discard(source);
    }

    /// Opens a connection of the client's.
    pub(crate) fn open(
        &mut self,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        token: u64,
        turn: &mut Turn<'_>,
    ) -> Result<FlowId, OpenError> {
        let key = FlowKey::between(local, peer);
        if local.port() == 0 || peer.port() == 0 || peer.ip().is_unspecified() {
            return Err(OpenError::BadEnds);
        }
        if self.flows.find(&key).is_some() || self.time_wait.find(&key).is_some() {
            return Err(OpenError::InUse);
        }
        let isn = self.handshake.isn(&key, turn.now);
        let direct = Direct::opening(token, link, isn, turn.now);
        let Ok(id) = self.flows.insert(key, Flow::Direct(direct)) else {
            turn.counters.flows_refused.increment();
            return Err(OpenError::Full);
        };
        turn.counters.active_opens.increment();
        self.direct(id, turn, |direct, context| direct.send_syn(None, context));
        self.settle_direct(id, turn);
        Ok(id)
    }

    /// Lets the client act on a connection of its own. Returns whether it is there.
    pub(crate) fn act(
        &mut self,
        id: StreamId,
        turn: &mut Turn<'_>,
        act: impl FnOnce(&mut Stream<'_>),
    ) -> bool {
        if self.resources.engine_only
            && let Some((_, Flow::Direct(direct))) = self.flows.get_mut(id.0)
            && !direct.is_opening()
            && self.summoned(id.0, Summon::Asked, turn)
        {
            turn.counters.count_summon(Summon::Asked);
        }
        if let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id.0) {
            if !connection.is_client() {
                return false;
            }
            connection.act(id.0, turn, &mut self.resources.actions, act);
            self.touch(id.0);
            return true;
        }
        let after = self.direct(id.0, turn, |direct, context| {
            let is_client = matches!(direct.side, Side::Client(_));
            (is_client && !direct.flags.has(Flags::ABORTED)).then(|| direct.act(context, act))
        });
        let Some(after) = after.flatten() else {
            return false;
        };
        self.carry_out_late(id.0, after, None, turn);
        true
    }

    /// The client, for its turn or a datagram; to be given back.
    pub(crate) fn take_client(&mut self) -> Option<Box<dyn Client>> {
        self.resources.client.take()
    }

    /// Gives the client back.
    pub(crate) fn restore_client(&mut self, client: Box<dyn Client>) {
        self.resources.client = Some(client);
    }

    /// From now on every segment is handled by an engine, or only those that need one.
    pub(crate) fn set_engine_only(&mut self, engine_only: bool) {
        self.resources.engine_only = engine_only;
    }

    /// Sends what the events of this turn have to send, and settles what they changed. Returns whether there
    /// was anything.
    pub(crate) fn flush(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.touched.is_empty() {
            return false;
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            match self.flows.get_mut(id) {
                Some((_, Flow::Direct(direct))) => {
                    direct.flags.clear(Flags::TOUCHED);
                    self.flush_direct(id, turn);
                }
                Some((_, Flow::Engine(connection))) => {
                    connection.direct.flags.clear(Flags::TOUCHED);
                    let status = connection.flush(&mut self.resources, turn);
                    self.settle(id, status, turn);
                }
                None => {}
            }
        }
        // Nothing that is done here touches a flow; what is, will be looked after in the next turn.
        touched.append(&mut self.touched);
        self.touched = touched;
        true
    }

    /// Does what a direct flow has to do at the end of a turn.
    fn flush_direct(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        match self.direct(id, turn, Direct::flush) {
            Some(After::Direct) => self.settle_late(id, turn),
            Some(after) => self.carry_out(id, after, None, turn),
            None => {}
        }
    }

    /// Carries out what is due, at most `budget` timers.
    pub(crate) fn expire(&mut self, budget: usize, turn: &mut Turn<'_>) {
        self.time_wait.expire(budget, turn.now);
        for _ in 0..budget {
            let Some(index) = self.timers.pop_expired(turn.now) else {
                return;
            };
            let Some(id) = self.flows.id_at(index) else {
                continue;
            };
            if let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id) {
                connection.direct.flags.clear(Flags::ARMED);
                connection.expire(id, &mut self.resources, turn);
                self.touch(id);
                continue;
            }
            let after = self.direct(id, turn, |direct, context| {
                direct.flags.clear(Flags::ARMED);
                direct.expire(context)
            });
            if let Some(after) = after {
                self.carry_out(id, after, None, turn);
            }
        }
    }

    /// The slow path's answer to a deferred request.
    pub(crate) fn reply(
        &mut self,
        id: FlowId,
        consumed: usize,
        response: Response,
        turn: &mut Turn<'_>,
    ) {
        let found = self.with(id, turn, |connection, resources, turn| {
            connection.reply(consumed, response, turn);
            connection.converse(id, Window::default(), resources, turn);
        });
        if !found {
            turn.counters.replies_lost.increment();
        }
    }

    /// The slow path dropped a request without an answer.
    pub(crate) fn abandon(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        turn.counters.deferred_abandoned.increment();
        self.with(id, turn, |connection, resources, turn| {
            connection.abandon();
            connection.converse(id, Window::default(), resources, turn);
        });
    }

    /// A demoted handler wants more bytes than it was shown.
    pub(crate) fn need_more(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        self.with(id, turn, |connection, resources, turn| {
            connection.need_more(turn);
            connection.converse(id, Window::default(), resources, turn);
        });
    }

    /// The pool hands a request back that it was to show to a demoted handler.
    pub(crate) fn take_back(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        self.with(id, turn, |connection, resources, turn| {
            connection.take_back();
            connection.converse(id, Window::default(), resources, turn);
        });
    }

    /// Resets a connection.
    pub(crate) fn abort(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        if let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id) {
            connection.abort();
            connection.converse(id, Window::default(), &mut self.resources, turn);
            self.touch(id);
            return;
        }
        self.direct(id, turn, |direct, context| {
            // Of one that is only being opened nobody knows (RFC 9293 section 3.10.5).
            if !direct.is_opening() {
                direct.send_reset(None, context);
            }
        });
        self.remove(id, End::Aborted, turn);
    }

    /// The next chunk of a body, or its end.
    pub(crate) fn add_chunk(
        &mut self,
        id: FlowId,
        chunk: Option<bytes::Bytes>,
        mut source: Option<Source>,
        turn: &mut Turn<'_>,
    ) {
        self.with(id, turn, |connection, resources, turn| {
            connection.add_chunk(chunk, source.take());
            connection.converse(id, Window::default(), resources, turn);
        });
        // The connection is gone.
        self.discard(source);
    }

    /// Has the pool drop a body source: closing its file may take long. If the pool has no room it is
    /// dropped here.
    fn discard(&self, source: Option<Source>) {
        if let Some(source) = source {
            let _ = self.resources.pool.try_submit(Job::Discard(source));
        }
    }

    /// Takes no new connections from now on and closes the others as they become idle.
    pub(crate) fn drain(&mut self) {
        self.resources.draining = true;
        for id in self.ids() {
            self.touch(id);
        }
    }

    /// Returns the connections that there are, TIME-WAIT left out.
    pub(crate) fn ids(&self) -> Vec<FlowId> {
        self.flows.ids().collect()
    }

    /// Resets connections from the end of `ids`, as many as there are free frames to tell their peers in, and takes them
    /// off the list. The next [`flush`](Self::flush) has the segments of all of them on their way.
    pub(crate) fn abort_some(&mut self, ids: &mut Vec<FlowId>, turn: &mut Turn<'_>) {
        let frames = turn.egress.arena.free_frames();
        for id in ids.split_off(ids.len().saturating_sub(frames)) {
            self.abort(id, turn);
        }
    }

    /// Connections that a drain waits for: those that have something to send or to receive.
    pub(crate) fn unfinished(&self) -> usize {
        self.flows.len() - self.finished
    }

    /// Connections, those in TIME-WAIT included.
    pub(crate) fn flows(&self) -> usize {
        self.flows.len() + self.time_wait.len()
    }

    /// Flows that have an engine.
    pub(crate) fn engines(&self) -> usize {
        self.engines
    }

    /// Frames that flows hold until their bytes are acknowledged.
    pub(crate) fn held_frames(&self) -> u32 {
        self.resources.held.total()
    }

    /// Connections in TIME-WAIT.
    pub(crate) fn time_wait(&self) -> usize {
        self.time_wait.len()
    }

    /// Publishes how many flows there are of each kind.
    pub(crate) fn publish(&self, counters: &Counters) {
        let direct = self.flows.len() - self.engines;
        counters.flows_direct.set(direct as u64);
        counters.flows_engine.set(self.engines as u64);
        counters.flows_time_wait.set(self.time_wait.len() as u64);
    }

    /// A time before which no timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timers = self.timers.next_deadline().into_iter();
        timers.chain(self.time_wait.next_deadline()).min()
    }

    /// The service whose handler ran since the last call, and how often: pipelined requests are handled
    /// in one go.
    pub(crate) fn take_called(&mut self) -> Option<(&mut StreamPort, u32)> {
        let (index, calls) = self.resources.called.take()?;
        let service = self.resources.ports.get_mut(index)?;
        Some((service, calls))
    }

    /// Runs `event` on a connection with an engine. Returns whether the connection was there: what others than
    /// the peer have to say is about something that only an engine does.
    fn with(
        &mut self,
        id: FlowId,
        turn: &mut Turn<'_>,
        event: impl FnOnce(&mut Connection, &mut Resources, &mut Turn<'_>),
    ) -> bool {
        let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id) else {
            return false;
        };
        event(connection, &mut self.resources, turn);
        self.touch(id);
        true
    }

    /// Puts a flow on the list of those to look after at the end of the turn, once.
    fn touch(&mut self, id: FlowId) {
        if let Some((_, flow)) = self.flows.get_mut(id) {
            let flags = flow.flags();
            if !flags.has(Flags::TOUCHED) {
                flags.set(Flags::TOUCHED);
                self.touched.push(id);
            }
        }
    }

    /// Carries out what a flow with an engine has come to at the end of a turn.
    fn settle(&mut self, id: FlowId, status: Status, turn: &mut Turn<'_>) {
        match status {
            Status::Alive(deadline) => {
                let Some((_, Flow::Engine(connection))) = self.flows.get_mut(id) else {
                    return;
                };
                let finished = connection.is_finished();
                let direct = &mut connection.direct;
                note_finished(&mut self.finished, &mut direct.flags, finished);
                let Some(deadline) = deadline else {
                    return;
                };
                let at = direct::millis_up(deadline);
                if !direct.flags.has(Flags::ARMED) || is_before(at, direct.armed) {
                    direct.flags.set(Flags::ARMED);
                    direct.armed = at;
                    self.timers.arm(id.index(), deadline);
                }
            }
            Status::Quiet => {
                self.dismiss(id, turn);
                self.flush_direct(id, turn);
            }
            Status::Stuck => {
                self.dismiss(id, turn);
                let call = Call {
                    reason: Summon::Timeout,
                    frame: None,
                    done: Done::Nothing,
                };
                self.summon(id, call, None, turn);
            }
            Status::TimeWait(closed) => self.enter_time_wait(id, closed, turn),
            Status::Gone(end) => self.remove(id, end, turn),
        }
    }

    /// A connection that we closed first is closed by its peer, too.
    fn enter_time_wait(&mut self, id: FlowId, closed: Closed, turn: &mut Turn<'_>) {
        let Some((key, _)) = self.flows.get_mut(id) else {
            return;
        };
        let key = *key;
        self.remove(id, End::Closed, turn);
        if self.time_wait.enter(key, closed, turn.now) {
            turn.counters.time_wait_evicted.increment();
        }
    }

    /// Forgets a flow, and tells the client how it ended, if it is the client's.
    fn remove(&mut self, id: FlowId, end: End, turn: &mut Turn<'_>) {
        let Some(mut flow) = self.flows.remove(id) else {
            return;
        };
        self.timers.cancel(id.index());
        note_finished(&mut self.finished, flow.flags(), false);
        turn.counters.flows_closed.increment();
        let side = match flow {
            Flow::Direct(mut direct) => {
                self.resources
                    .held
                    .clear(&mut direct.held, &mut turn.egress.arena);
                direct.side
            }
            Flow::Engine(connection) => {
                let side = connection.direct.side;
                self.engines -= 1;
                self.keep(connection);
                side
            }
        };
        if let (Side::Client(token), Some(client)) = (side, self.resources.client.as_deref_mut()) {
            client.closed(token, end);
        }
    }
}

impl Flow {
    fn flags(&mut self) -> &mut Flags {
        match self {
            Self::Direct(direct) => &mut direct.flags,
            Self::Engine(connection) => &mut connection.direct.flags,
        }
    }
}

/// Arms the timer of a direct flow.
#[inline]
fn arm_direct(
    direct: &mut Direct,
    id: FlowId,
    resources: &Resources,
    timers: &mut TimerWheel,
    finished: &mut usize,
    turn: &Turn<'_>,
) {
    note_finished(
        finished,
        &mut direct.flags,
        direct.state == direct::State::FinWait2,
    );
    // The common case: there is a timer already, and it fires before anything new can be due.
    if direct.flags.has(Flags::ARMED) && direct.is_due_later(turn.millis) {
        return;
    }
    let Some(deadline) = direct.deadline(resources, turn.millis) else {
        return;
    };
    // A deadline that moved back is looked at again when the old one fires.
    if !direct.flags.has(Flags::ARMED) || is_before(deadline, direct.armed) {
        direct.flags.set(Flags::ARMED);
        direct.armed = deadline;
        timers.arm(id.index(), direct::instant_of(deadline, turn.now));
    }
}

/// Counts a flow among the finished ones, or no more.
#[inline]
fn note_finished(count: &mut usize, flags: &mut Flags, finished: bool) {
    if flags.has(Flags::FINISHED) == finished {
        return;
    }
    if finished {
        flags.set(Flags::FINISHED);
        *count += 1;
    } else {
        flags.clear(Flags::FINISHED);
        *count -= 1;
    }
}

/// A seed for one purpose. What is derived from one (smoltcp's initial sequence numbers, which it does not
/// mean to be secrets) must not tell the others (the keys of the flow table).
fn split_seed(seed: u64, purpose: u64) -> u64 {
    RandomState::with_seeds(seed, purpose, !seed, !purpose).hash_one(purpose)
}

/// A smoltcp interface with our addresses, for all engines.
fn new_interface(
    ip_mtu: usize,
    addresses: &[Cidr],
    seed: u64,
    egress: &mut Egress,
    now: Instant,
) -> Interface {
    let mut config = smoltcp::iface::Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let counters = Counters::default();
    let link = LinkHeader::default();
    let mut translation = Translation::default();
    let mut device = Device {
        received: None,
        egress,
        link: &link,
        ip_mtu,
        counters: &counters,
        translation: &mut translation,
    };
    let mut interface = Interface::new(config, &mut device, now);
    // `wire::parse` has checked that packets are for us; there may be more addresses than smoltcp's table
    // holds.
    interface.set_any_ip(true);
    interface.update_ip_addrs(|table| {
        for cidr in addresses {
            // `Config` was checked against the size of this table.
            let _ = table.push(IpCidr::new(cidr.address.into(), cidr.prefix));
        }
    });
    // Every flow knows its peer's link address, so any route will do; without one, smoltcp would wait
    // for a neighbour.
    for cidr in addresses {
        let routes = interface.routes_mut();
        let _ = match cidr.address {
            IpAddr::V4(address) => routes.add_default_ipv4_route(address).map(|_| ()),
            IpAddr::V6(address) => routes.add_default_ipv6_route(address).map(|_| ()),
        };
    }
    interface
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_takes_at_most_192_bytes() {
        let bytes = FlowTable::<Flow>::BYTES_PER_FLOW + TimerWheel::BYTES_PER_TIMER;
        // And its place on the list of flows that something happened to.
        let bytes = bytes + size_of::<FlowId>();
        assert!(bytes <= 192, "{bytes}: {} of a flow", size_of::<Flow>());
    }
}
