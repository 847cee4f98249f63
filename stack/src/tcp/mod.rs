//! TCP: connections of stream services, one engine per connection.
//!
//! * [`engine`]: smoltcp's socket, alone in its set.
//! * [`connection`]: the conversation between engine, handler and slow path.
//! * [`outgoing`]: what a reply has left to send.
//!
//! This module owns the table of connections, their timers, and the bounds.

mod connection;
mod engine;
mod outgoing;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::wire::{HardwareAddress, IpCidr};

use self::connection::{Connection, InFrame, Status};
use self::engine::Engine;
use crate::arena::{Frame, FrameMemory};
use crate::config::{Cidr, ENGINE_RX_BYTES, Limits, SCRATCH_ROOM_BYTES};
use crate::device::{Device, DeviceFacts};
use crate::egress::Egress;
use crate::flow::{FlowId, FlowTable};
use crate::interruptlet::{Outbox, StreamInterruptlet};
use crate::pool::{MailboxSender, Response, SlowPath, Source, Submitter};
use crate::service::{Budget, Handler};
use crate::telemetry::Counters;
use crate::timer::TimerWheel;
use crate::wire::{LinkHeader, Transport};
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
}

/// What all connections of a core share.
pub(crate) struct Resources {
    interface: Interface,
    facts: DeviceFacts,
    memory: Arc<FrameMemory>,
    ports: Vec<StreamPort>,
    outbox: Outbox,
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
    payload: usize,
    end: usize,
    seq: u32,
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
    /// Connections in the order of their SYN; those that completed are skipped.
    backlog: VecDeque<FlowId>,
    backlog_max: usize,
    /// Connections in the order of their entering TIME-WAIT; those that are gone are skipped.
    time_wait: VecDeque<FlowId>,
    time_wait_max: usize,
    /// How many connections are in TIME-WAIT.
    time_wait_count: usize,
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
        pool: Submitter,
        core: MailboxSender,
        egress: &mut Egress,
        now: Instant,
    ) -> Self {
        let facts = DeviceFacts {
            medium: Medium::Ip,
            ip_mtu,
        };
        let interface = new_interface(facts, HardwareAddress::Ip, addresses, seed, egress, now);
        let memory = egress.arena.memory();
        Self {
            flows: FlowTable::new(limits.flows, seed),
            timers: TimerWheel::new(now, limits.flows),
            resources: Resources {
                interface,
                facts,
                memory,
                ports,
                outbox: Outbox::with_capacity(ip_mtu),
                scratch: vec![0; ENGINE_RX_BYTES + SCRATCH_ROOM_BYTES],
                pool,
                core,
                draining: false,
                called: None,
            },
            nobody: SocketSet::new(Vec::new()),
            spare_engines: Vec::with_capacity(SPARE_ENGINES_MAX),
            backlog: VecDeque::with_capacity(limits.backlog),
            backlog_max: limits.backlog,
            time_wait: VecDeque::with_capacity(2 * limits.time_wait),
            time_wait_max: limits.time_wait,
            time_wait_count: 0,
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
        let bytes = turn.egress.arena.bytes(&frame);
        let seq = &bytes[packet.transport + 4..packet.transport + 8];
        let segment = Segment {
            link: packet.link,
            ip: packet.ip,
            payload,
            end: packet.end,
            seq: u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]),
            flags,
        };
        let mut known = self.flows.find(&packet.key);
        if segment.flags & (SYN | ACK | RST) == SYN
            && let Some(old) = known
            && self
                .flows
                .get_mut(old)
                .is_some_and(|(_, connection)| connection.gives_way_to(segment.seq))
        {
            self.remove(old, turn.counters);
            known = None;
        }
        let Some(id) = known.or_else(|| self.accept(&frame, packet, &segment, turn)) else {
            turn.egress.arena.free(frame);
            return;
        };
        let Some((_, connection)) = self.flows.get_mut(id) else {
            turn.egress.arena.free(frame);
            return;
        };
        let in_frame = connection.take_in(frame, &segment, &mut self.resources, turn);
        let status = connection.drive(id, in_frame, &mut self.resources, turn);
        self.settle(id, status, turn.counters);
    }

    /// Carries out what is due, at most `budget` timers; returns how many there were.
    pub(crate) fn expire(&mut self, budget: usize, turn: &mut Turn<'_>) -> usize {
        for done in 0..budget {
            let Some(index) = self.timers.pop_expired(turn.now) else {
                return done;
            };
            let Some(id) = self.flows.id_at(index) else {
                continue;
            };
            self.with(id, turn, |connection, resources, turn| {
                connection.armed = None;
                connection.expire(id, resources, turn)
            });
        }
        budget
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
            connection.drive(id, InFrame::default(), resources, turn)
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
            connection.drive(id, InFrame::default(), resources, turn)
        });
    }

    /// A demoted handler wants more bytes than it was shown.
    pub(crate) fn need_more(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        self.with(id, turn, |connection, resources, turn| {
            connection.need_more(turn);
            connection.drive(id, InFrame::default(), resources, turn)
        });
    }

    /// Resets a connection.
    pub(crate) fn abort(&mut self, id: FlowId, turn: &mut Turn<'_>) {
        self.with(id, turn, |connection, resources, turn| {
            connection.abort();
            connection.drive(id, InFrame::default(), resources, turn)
        });
    }

    /// The next chunk of a body, or its end.
    pub(crate) fn add_chunk(
        &mut self,
        id: FlowId,
        chunk: Option<bytes::Bytes>,
        source: Source,
        turn: &mut Turn<'_>,
    ) {
        self.with(id, turn, |connection, resources, turn| {
            connection.add_chunk(chunk, source);
            connection.drive(id, InFrame::default(), resources, turn)
        });
    }

    /// Takes no new connections from now on and closes the others as they become idle.
    pub(crate) fn drain(&mut self, turn: &mut Turn<'_>) {
        self.resources.draining = true;
        let ids: Vec<FlowId> = self.flows.ids().collect();
        for id in ids {
            self.with(id, turn, |connection, resources, turn| {
                if connection.is_half_open() {
                    return Status::Gone;
                }
                connection.drive(id, InFrame::default(), resources, turn)
            });
        }
    }

    /// Resets all connections.
    pub(crate) fn abort_all(&mut self, turn: &mut Turn<'_>) {
        let ids: Vec<FlowId> = self.flows.ids().collect();
        for id in ids {
            self.abort(id, turn);
        }
    }

    /// Connections that a drain waits for: all but those in TIME-WAIT.
    pub(crate) fn unfinished(&self) -> usize {
        self.flows.len() - self.time_wait_count
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
        let mut engine = self.spare_engines.pop().unwrap_or_else(Engine::new);
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
                self.backlog.push_back(id);
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
            link: Some(&segment.link),
            facts: &self.resources.facts,
            counters: turn.counters,
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
        while let Some(oldest) = self.backlog.front().copied() {
            let half_open = self
                .flows
                .get_mut(oldest)
                .is_some_and(|(_, connection)| connection.is_half_open());
            if half_open && self.backlog.len() < self.backlog_max {
                break;
            }
            self.backlog.pop_front();
            if half_open {
                counters.flows_refused.increment();
                self.remove(oldest, counters);
            }
        }
        if self.flows.has_room() {
            return true;
        }
        self.evict_time_wait(counters)
    }

    /// Takes those that are gone from the front of the list.
    fn forget_ended_time_waits(&mut self) {
        while let Some(oldest) = self.time_wait.front().copied()
            && self.flows.get_mut(oldest).is_none()
        {
            self.time_wait.pop_front();
        }
    }

    fn evict_time_wait(&mut self, counters: &Counters) -> bool {
        self.forget_ended_time_waits();
        let Some(oldest) = self.time_wait.pop_front() else {
            return false;
        };
        counters.time_wait_evicted.increment();
        self.remove(oldest, counters);
        true
    }

    /// Runs `event` on a connection and settles what follows. Returns whether the connection was there.
    fn with(
        &mut self,
        id: FlowId,
        turn: &mut Turn<'_>,
        event: impl FnOnce(&mut Connection, &mut Resources, &mut Turn<'_>) -> Status,
    ) -> bool {
        let Some((_, connection)) = self.flows.get_mut(id) else {
            return false;
        };
        let status = event(connection, &mut self.resources, turn);
        self.settle(id, status, turn.counters);
        true
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
        if connection.enters_time_wait() {
            self.forget_ended_time_waits();
            // Ended ones are still on the list while one before them lives on (its peer repeats a FIN):
            // that is bounded too.
            if self.time_wait_count >= self.time_wait_max
                || self.time_wait.len() >= 2 * self.time_wait_max
            {
                self.evict_time_wait(counters);
            }
            self.time_wait.push_back(id);
            self.time_wait_count += 1;
        }
    }

    fn remove(&mut self, id: FlowId, counters: &Counters) {
        let Some(connection) = self.flows.remove(id) else {
            return;
        };
        self.timers.cancel(id.index());
        if connection.is_listed_in_time_wait() {
            self.time_wait_count -= 1;
        }
        counters.flows_closed.increment();
        if self.spare_engines.len() < SPARE_ENGINES_MAX {
            self.spare_engines.push(connection.into_engine());
        }
    }
}

/// A smoltcp interface with our addresses.
pub(crate) fn new_interface(
    facts: DeviceFacts,
    hardware: HardwareAddress,
    addresses: &[Cidr],
    seed: u64,
    egress: &mut Egress,
    now: Instant,
) -> Interface {
    let mut config = smoltcp::iface::Config::new(hardware);
    config.random_seed = seed;
    let counters = Counters::default();
    let mut device = Device {
        received: None,
        egress,
        link: None,
        facts: &facts,
        counters: &counters,
        sent: 0,
    };
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|table| {
        for cidr in addresses {
            // `Config` was checked against the size of this table.
            let _ = table.push(IpCidr::new(cidr.address.into(), cidr.prefix));
        }
    });
    // Every engine knows its peer's link address, so any route will do; without one, smoltcp would wait
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
