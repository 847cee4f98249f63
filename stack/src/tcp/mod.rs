//! TCP: connections of stream services, one engine per connection.
//!
//! * [`engine`]: smoltcp's socket, alone in its set.
//! * [`connection`]: the conversation between engine, handler and slow path.
//! * [`outgoing`]: what a reply has left to send.
//!
//! * [`age_queue`]: the connections in one passing state, bounded.
//!
//! This module owns the table of connections, their timers, and the bounds.

mod age_queue;
mod connection;
mod engine;
mod outgoing;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ahash::RandomState;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::wire::{HardwareAddress, IpCidr};

use self::age_queue::AgeQueue;
use self::connection::{ClientSide, Connection, Phase, Status, Window};
use self::engine::Engine;
use crate::arena::{Frame, FrameMemory};
use crate::client::{Actions, Client, OpenError, Stream, StreamId};
use crate::clock;
use crate::config::{Cidr, ENGINE_RX_BYTES, ENGINE_TX_BYTES, Limits, SCRATCH_ROOM_BYTES};
use crate::device::Device;
use crate::egress::Egress;
use crate::flow::{FlowId, FlowTable};
use crate::interruptlet::{Outbox, StreamInterruptlet};
use crate::pool::{Job, MailboxSender, Response, SlowPath, Source, Submitter};
use crate::service::{Budget, Handler};
use crate::telemetry::Counters;
use crate::timer::TimerWheel;
use crate::wire::{FlowKey, LinkHeader, Transport};
use crate::{Duration, Instant};

/// TCP flag bits (RFC 9293 section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Used engines that are kept for new connections.
const SPARE_ENGINES_MAX: usize = 1024;

/// A stream service of one core.
pub(crate) struct StreamPort {
    pub(crate) port: u16,
    pub(crate) handler: Handler<dyn StreamInterruptlet>,
    pub(crate) slow: Option<Arc<dyn SlowPath>>,
    pub(crate) budget: Budget,
    pub(crate) request_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
}

/// What an event of one turn may use: where to send, where to count, and the time.
pub(crate) struct Turn<'a> {
    pub(crate) egress: &'a mut Egress,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Instant,
    /// The same time in nanoseconds, for clients.
    pub(crate) nanos: u64,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(egress: &'a mut Egress, counters: &'a Counters, nanos: u64) -> Self {
        Self {
            egress,
            counters,
            now: clock::instant(nanos),
            nanos,
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
    /// Whom the connections that we open belong to. Not here while it takes its turn.
    client: Option<Box<dyn Client>>,
    /// What the client asks for in an event.
    actions: Actions,
    /// Where a request is made one slice, with room behind it.
    scratch: Vec<u8>,
    pool: Submitter,
    core: MailboxSender,
    /// No new connections; idle ones are closed.
    draining: bool,
    /// The service whose handler ran last, and how often since it was asked.
    called: Option<(usize, u32)>,
}

/// A TCP segment whose headers are checked; offsets are from the start of the frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    link: LinkHeader,
    ip: usize,
    transport: usize,
    payload: usize,
    end: usize,
    seq: u32,
    /// Meaningless without the ACK flag.
    ack: u32,
    flags: u8,
}

/// The connections of one core.
pub(crate) struct Tcp {
    flows: FlowTable<Connection>,
    timers: TimerWheel,
    resources: Resources,
    /// For segments that belong to no connection.
    nobody: SocketSet<'static>,
    spare_engines: Vec<Engine>,
    /// The same of connections that we opened, whose buffers are of another size.
    spare_client_engines: Vec<Engine>,
    client_rx_bytes: usize,
    client_tx_bytes: usize,
    /// Connections to flush at the end of the turn.
    touched: Vec<FlowId>,
    /// Connections that have not completed the handshake.
    backlog: AgeQueue,
    time_wait: AgeQueue,
    /// Connections that only wait for their peer's FIN.
    finished: usize,
}

impl Resources {
    fn note_call(&mut self, service: usize) {
        let calls = self.called.map_or(0, |(_, calls)| calls);
        self.called = Some((service, calls + 1));
    }
}

impl Tcp {
    #[allow(clippy::too_many_arguments)] // made once, by the worker
    pub(crate) fn new(
        ports: Vec<StreamPort>,
        addresses: &[Cidr],
        ip_mtu: usize,
        limits: &Limits,
        seed: u64,
        client: Option<Box<dyn Client>>,
        pool: Submitter,
        core: MailboxSender,
        egress: &mut Egress,
        now: Instant,
    ) -> Self {
        let interface = new_interface(ip_mtu, addresses, split_seed(seed, 1), egress, now);
        let memory = egress.arena.memory();
        Self {
            flows: FlowTable::new(limits.flows, split_seed(seed, 2)),
            timers: TimerWheel::new(now, limits.flows),
            resources: Resources {
                interface,
                ip_mtu,
                memory,
                ports,
                outbox: Outbox::with_capacity(ip_mtu),
                client,
                actions: Actions::default(),
                scratch: vec![0; ENGINE_RX_BYTES + SCRATCH_ROOM_BYTES],
                pool,
                core,
                draining: false,
                called: None,
            },
            nobody: SocketSet::new(Vec::new()),
            spare_engines: Vec::with_capacity(SPARE_ENGINES_MAX),
            spare_client_engines: Vec::with_capacity(SPARE_ENGINES_MAX),
            client_rx_bytes: limits.client_rx_bytes,
            client_tx_bytes: limits.client_tx_bytes,
            touched: Vec::with_capacity(limits.flows),
            backlog: AgeQueue::new(limits.backlog),
            time_wait: AgeQueue::new(limits.time_wait),
            finished: 0,
        }
    }

    /// Handles a segment whose headers are checked.
    pub(crate) fn receive(
        &mut self,
        frame: Frame,
        packet: &Transport,
        payload: usize,
        flags: u8,
        turn: &mut Turn<'_>,
    ) {
        let header = &turn.egress.arena.bytes(&frame)[packet.transport..packet.end];
        let segment = Segment {
            link: packet.link,
            ip: packet.ip,
            transport: packet.transport,
            payload,
            end: packet.end,
            seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            flags,
        };
        let mut known = self.flows.find(&packet.key);
        if segment.flags & (SYN | ACK | RST) == SYN
            && let Some(old) = known
            && self
                .flows
                .get(old)
                .is_some_and(|connection| connection.gives_way_to(segment.seq))
        {
            self.remove(old, turn.counters);
            known = None;
        }
        let id = known.or_else(|| self.accept(&frame, packet, &segment, turn));
        let Some((id, connection)) = id.and_then(|id| Some((id, self.flows.get_mut(id)?.1))) else {
            turn.egress.arena.free(frame);
            return;
        };
        let window = connection.take_in(frame, &segment, &mut self.resources, turn);
        connection.converse(id, window, &mut self.resources, turn);
        self.touch(id);
    }

    /// Opens a connection of the client's.
    pub(crate) fn open(
        &mut self,
        local: SocketAddr,
        peer: SocketAddr,
        link: LinkHeader,
        token: u64,
        now: Instant,
        counters: &Counters,
    ) -> Result<FlowId, OpenError> {
        let key = FlowKey::between(local, peer);
        if self.flows.find(&key).is_some() {
            return Err(OpenError::InUse);
        }
        if !self.flows.has_room() && !self.evict_time_wait(counters) {
            counters.flows_refused.increment();
            return Err(OpenError::Full);
        }
        let mut engine = self
            .spare_client_engines
            .pop()
            .unwrap_or_else(|| Engine::new(self.client_rx_bytes, self.client_tx_bytes));
        if !engine.connect(&mut self.resources.interface, local, peer) {
            self.spare_client_engines.push(engine);
            return Err(OpenError::BadEnds);
        }
        let side = ClientSide::new(token);
        let connection = Connection::open(engine, side, local, peer, link, now);
        let id = self
            .flows
            .insert(key, connection)
            .map_err(|_| OpenError::Full)?;
        counters.active_opens.increment();
        self.touch(id);
        Ok(id)
    }

    /// Lets the client act on a connection of its own. Returns whether it is there.
    pub(crate) fn act(
        &mut self,
        id: StreamId,
        turn: &Turn<'_>,
        act: impl FnOnce(&mut Stream<'_>),
    ) -> bool {
        let Some((_, connection)) = self.flows.get_mut(id.0) else {
            return false;
        };
        if !connection.is_client() {
            return false;
        }
        connection.act(id.0, turn, &mut self.resources.actions, act);
        self.touch(id.0);
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

    /// Sends what the events of this turn have to send, and settles what they changed. Returns whether there
    /// was anything.
    pub(crate) fn flush(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.touched.is_empty() {
            return false;
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let Some((_, connection)) = self.flows.get_mut(id) else {
                continue;
            };
            connection.touched = false;
            let status = connection.flush(&mut self.resources, turn);
            self.settle(id, status, turn.counters);
        }
        self.touched = touched;
        true
    }

    /// Carries out what is due, at most `budget` timers.
    pub(crate) fn expire(&mut self, budget: usize, turn: &mut Turn<'_>) {
        for _ in 0..budget {
            let Some(index) = self.timers.pop_expired(turn.now) else {
                return;
            };
            let Some(id) = self.flows.id_at(index) else {
                continue;
            };
            self.with(id, turn, |connection, resources, turn| {
                connection.armed = None;
                connection.expire(id, resources, turn);
            });
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

    /// Resets a connection.
    pub(crate) fn abort(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        self.with(id, turn, |connection, resources, turn| {
            connection.abort();
            connection.converse(id, Window::default(), resources, turn);
        });
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
    pub(crate) fn drain(&mut self, counters: &Counters) {
        self.resources.draining = true;
        let ids: Vec<FlowId> = self.flows.ids().collect();
        for id in ids {
            if self.is_in(id, Phase::Handshake) {
                self.remove(id, counters);
            } else {
                self.touch(id);
            }
        }
    }

    /// Resets all connections.
    pub(crate) fn abort_all(&mut self, turn: &mut Turn<'_>) {
        let ids: Vec<FlowId> = self.flows.ids().collect();
        for id in ids {
            self.abort(id, turn);
        }
    }

    /// Connections that a drain waits for: those that have something to send or to receive.
    pub(crate) fn unfinished(&self) -> usize {
        self.flows.len() - self.time_wait.len() - self.finished
    }

    /// Connections, those in the handshake and in TIME-WAIT included.
    pub(crate) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// A time before which no timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// The service whose handler ran since the last call, and how often: pipelined requests are handled
    /// in one go.
    pub(crate) fn take_called(&mut self) -> Option<(&mut StreamPort, u32)> {
        let (index, calls) = self.resources.called.take()?;
        let service = self.resources.ports.get_mut(index)?;
        Some((service, calls))
    }

    /// A segment for no connection: begins one, or is answered with a reset, or is ignored.
    fn accept(
        &mut self,
        frame: &Frame,
        packet: &Transport,
        segment: &Segment,
        turn: &mut Turn<'_>,
    ) -> Option<FlowId> {
        let service = self
            .resources
            .ports
            .iter()
            .position(|service| service.port == packet.key.local_port);
        let (Some(service), SYN) = (service, segment.flags & (SYN | ACK | RST | FIN)) else {
            self.refuse(frame, segment, turn);
            return None;
        };
        if self.resources.draining || !self.make_room(turn.counters) {
            turn.counters.flows_refused.increment();
            return None;
        }
        let mut engine = self
            .spare_engines
            .pop()
            .unwrap_or_else(|| Engine::new(ENGINE_RX_BYTES, ENGINE_TX_BYTES));
        let local = packet.key.local_addr();
        if !engine.listen(local) {
            turn.counters.flows_refused.increment();
            return None;
        }
        let connection = Connection::new(
            engine,
            service,
            local,
            packet.key.peer_addr(),
            segment.link,
            segment.seq,
            turn.now,
        );
        match self.flows.insert(packet.key, connection) {
            Ok(id) => {
                turn.counters.flows_opened.increment();
                let flows = &self.flows;
                self.backlog
                    .enter(id, |id| is_in(flows, id, Phase::Handshake));
                Some(id)
            }
            Err(_) => {
                turn.counters.flows_refused.increment();
                None
            }
        }
    }

    /// Answers a segment that belongs to no connection, as RFC 9293 section 3.10.7.1 says.
    fn refuse(&mut self, frame: &Frame, segment: &Segment, turn: &mut Turn<'_>) {
        let packet = &self.resources.memory.frame(frame)[segment.ip..segment.end];
        let mut device = Device {
            received: Some(packet),
            egress: turn.egress,
            link: &segment.link,
            ip_mtu: self.resources.ip_mtu,
            counters: turn.counters,
            snd_max: None,
            sent: 0,
        };
        self.resources
            .interface
            .poll_ingress_single(turn.now, &mut device, &mut self.nobody);
        let resets = device.sent as u64;
        turn.counters.tcp_resets.add(resets);
    }

    /// Makes sure that one more handshake fits the bounds; the oldest give way.
    fn make_room(&mut self, counters: &Counters) -> bool {
        if self.backlog.is_full() {
            let flows = &self.flows;
            let oldest = self
                .backlog
                .take_oldest(|id| is_in(flows, id, Phase::Handshake));
            if let Some(oldest) = oldest {
                counters.flows_refused.increment();
                self.remove(oldest, counters);
            }
        }
        self.flows.has_room() || self.evict_time_wait(counters)
    }

    fn evict_time_wait(&mut self, counters: &Counters) -> bool {
        let flows = &self.flows;
        let oldest = self
            .time_wait
            .take_oldest(|id| is_in(flows, id, Phase::TimeWait));
        let Some(oldest) = oldest else {
            return false;
        };
        counters.time_wait_evicted.increment();
        self.remove(oldest, counters);
        true
    }

    fn is_in(&self, id: FlowId, phase: Phase) -> bool {
        is_in(&self.flows, id, phase)
    }

    /// Runs `event` on a connection. Returns whether the connection was there.
    fn with(
        &mut self,
        id: FlowId,
        turn: &mut Turn<'_>,
        event: impl FnOnce(&mut Connection, &mut Resources, &mut Turn<'_>),
    ) -> bool {
        let Some((_, connection)) = self.flows.get_mut(id) else {
            return false;
        };
        event(connection, &mut self.resources, turn);
        self.touch(id);
        true
    }

    /// Puts a connection on the list of those to flush, once.
    fn touch(&mut self, id: FlowId) {
        if let Some((_, connection)) = self.flows.get_mut(id)
            && !std::mem::replace(&mut connection.touched, true)
        {
            self.touched.push(id);
        }
    }

    /// Arms the timer of a connection, or removes it.
    fn settle(&mut self, id: FlowId, status: Status, counters: &Counters) {
        let deadline = match status {
            Status::Gone => {
                self.remove(id, counters);
                return;
            }
            Status::Alive(deadline) => deadline,
        };
        let Some((_, connection)) = self.flows.get_mut(id) else {
            return;
        };
        // A deadline that moved back is looked at again when the old one fires.
        if let Some(deadline) = deadline
            && connection.armed.is_none_or(|armed| deadline < armed)
        {
            connection.armed = Some(deadline);
            self.timers.arm(id.index(), deadline);
        }
        let (before, now) = (connection.counted_as, connection.phase);
        if before == now {
            return;
        }
        connection.counted_as = now;
        self.leave_phase(before);
        match now {
            Phase::Opening | Phase::Handshake | Phase::Open => {}
            Phase::Finished => self.finished += 1,
            Phase::TimeWait => {
                if let Some(client) = self.resources.client.as_deref_mut()
                    && let Some((_, connection)) = self.flows.get_mut(id)
                {
                    connection.tell_closed(client);
                }
                if self.time_wait.is_full() {
                    self.evict_time_wait(counters);
                }
                let flows = &self.flows;
                self.time_wait
                    .enter(id, |id| is_in(flows, id, Phase::TimeWait));
            }
        }
    }

    /// One connection less is counted in `phase`.
    fn leave_phase(&mut self, phase: Phase) {
        match phase {
            Phase::Handshake => self.backlog.leave(),
            Phase::Opening | Phase::Open => {}
            Phase::Finished => self.finished -= 1,
            Phase::TimeWait => self.time_wait.leave(),
        }
    }

    fn remove(&mut self, id: FlowId, counters: &Counters) {
        let Some(mut connection) = self.flows.remove(id) else {
            return;
        };
        self.timers.cancel(id.index());
        self.leave_phase(connection.counted_as);
        counters.flows_closed.increment();
        if let Some(client) = self.resources.client.as_deref_mut() {
            connection.tell_closed(client);
        }
        let spare = if connection.is_client() {
            &mut self.spare_client_engines
        } else {
            &mut self.spare_engines
        };
        let (engine, source) = connection.into_parts();
        if spare.len() < SPARE_ENGINES_MAX {
            spare.push(engine);
        }
        self.discard(source);
    }
}

/// A seed for one purpose. What is derived from one (smoltcp's initial sequence numbers, which it does not
/// mean to be secrets) must not tell the others (the keys of the flow table).
fn split_seed(seed: u64, purpose: u64) -> u64 {
    RandomState::with_seeds(seed, purpose, !seed, !purpose).hash_one(purpose)
}

/// Whether a connection lives and is in `phase`.
fn is_in(flows: &FlowTable<Connection>, id: FlowId, phase: Phase) -> bool {
    flows
        .get(id)
        .is_some_and(|connection| connection.phase == phase)
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
    let mut device = Device {
        received: None,
        egress,
        link: &link,
        ip_mtu,
        counters: &counters,
        snd_max: None,
        sent: 0,
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
