//! The loop of one core.
//!
//! [`Worker::turn`] is one pass over everything, in a fixed order, each step with its budget; it reads
//! the time only from the clock that it is given, and does I/O only through its port.

mod budget;
mod handlers;

use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use smoltcp::wire::EthernetAddress;

use self::handlers::{Handlers, Service};
use crate::arena::{Arena, Frame, FrameCount};
use crate::client::{Client, Core, Datagram, Datagrams};
use crate::clock::{self, Clock};
use crate::config::{ADDRESSES_MAX, Cidr, Limits, Poll};
use crate::egress::Egress;
use crate::icmp::Icmp;
use crate::neighbour::{self, Resolver};
use crate::pool::{Command, Mailbox, Route, Submitter};
use crate::port::idle::{Action, Idle};
use crate::port::{self, Port};
use crate::tcp::{Secret, StreamPort, Tcp, TcpParts, Turn};
use crate::telemetry::{Counters, RateLimit};
use crate::udp::{DatagramPort, Udp, Verdict};
use crate::wire::{
    Colons, Local, Packet, Reject, Transport, TransportKind, UDP_HEADER_BYTES, parse,
};
use crate::{Duration, Instant};

/// How often the log says that a neighbour leaves checksums to a card. It does so for good, or until somebody
/// reads that.
const CHECKSUM_WARNING_EVERY: Duration = Duration::from_secs(60);

/// How long a worker that stops waits at most for frames to tell peers in that their connections are reset.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What the runtime wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RunState {
    Running = 0,
    /// No new connections; finish what was begun.
    Draining = 1,
    /// Reset what is left and end.
    Stopping = 2,
}

/// A [`RunState`] that the runtime sets and workers read.
#[derive(Debug, Default)]
pub(crate) struct RunSwitch(AtomicU8);

impl RunSwitch {
    pub(crate) fn set(&self, state: RunState) {
        self.0.store(state as u8, Ordering::Release);
    }

    fn get(&self) -> RunState {
        match self.0.load(Ordering::Acquire) {
            0 => RunState::Running,
            1 => RunState::Draining,
            _ => RunState::Stopping,
        }
    }
}

/// What a worker is made of, besides its port and arena.
pub(crate) struct WorkerParts {
    pub(crate) link_address: EthernetAddress,
    pub(crate) addresses: Vec<Cidr>,
    /// See [`Config::sources`](crate::Config::sources).
    pub(crate) sources: Vec<Cidr>,
    pub(crate) gateways: Vec<IpAddr>,
    /// The kernel answers ARP, neighbour discovery and ICMP.
    pub(crate) shared_address: bool,
    pub(crate) ip_mtu: usize,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    /// For what must not be guessed; the same for all workers of a stack.
    pub(crate) secret: Secret,
    /// Added to our initial sequence numbers: for tests.
    pub(crate) isn_offset: u32,
    pub(crate) engine_only: bool,
    pub(crate) streams: Vec<StreamPort>,
    pub(crate) datagrams: Vec<DatagramPort>,
    pub(crate) client: Option<Box<dyn Client>>,
    pub(crate) pool: Submitter,
    pub(crate) mailbox: Mailbox,
    pub(crate) counters: Arc<Counters>,
}

/// One core's stack.
pub(crate) struct Worker<P> {
    port: P,
    local: Local,
    egress: Egress,
    /// The payload of the datagram that the client is shown.
    datagram: Vec<u8>,
    /// Whether ARP and neighbour discovery are ours to answer.
    answers_neighbours: bool,
    /// Next hops of what the client sends.
    resolver: Resolver,
    /// When the client wants its next turn at the latest, in nanoseconds.
    client_due: Option<u64>,
    /// Something happened since the client had its turn.
    client_stirred: bool,
    has_services: bool,
    ip_mtu: usize,
    icmp: Icmp,
    udp: Udp,
    tcp: Tcp,
    mailbox: Mailbox,
    counters: Arc<Counters>,
    /// Received frames of this turn; empty between turns.
    batch: Vec<Frame>,
    body_warnings: RateLimit,
    checksum_warnings: RateLimit,
    handlers: Handlers,
}

impl<P: Port> Worker<P> {
    pub(crate) fn new(port: P, arena: Arena, parts: WorkerParts, now: Instant) -> Self {
        let WorkerParts {
            link_address,
            addresses,
            sources,
            gateways,
            shared_address,
            ip_mtu,
            limits,
            seed,
            secret,
            isn_offset,
            engine_only,
            streams,
            datagrams,
            client,
            pool,
            mailbox,
            counters,
        } = parts;
        let mut egress = Egress::new(arena);
        let local = Local::new(link_address, &addresses, &sources, ip_mtu);
        // smoltcp and the resolver need an address of each IP version that we have.
        let mut ours = addresses;
        ours.extend(sources.iter().map(first_host));
        ours.truncate(ADDRESSES_MAX);
        let core = mailbox.sender().clone();
        let has_services = !streams.is_empty() || !datagrams.is_empty();
        let resolver = Resolver::new(link_address, &ours, &gateways);
        Self {
            port,
            local,
            answers_neighbours: !shared_address || !sources.is_empty(),
            resolver,
            client_due: None,
            client_stirred: true,
            has_services,
            ip_mtu,
            icmp: Icmp::new(ip_mtu, now),
            udp: Udp::new(datagrams, ip_mtu, pool.clone(), core.clone()),
            tcp: Tcp::new(
                TcpParts {
                    ports: streams,
                    addresses: ours,
                    ip_mtu,
                    limits,
                    seed,
                    secret,
                    isn_offset,
                    engine_only,
                    client,
                    pool,
                    core,
                },
                &mut egress,
                now,
            ),
            datagram: Vec::with_capacity(ip_mtu),
            egress,
            mailbox,
            counters,
            batch: Vec::with_capacity(budget::RX_FRAMES),
            body_warnings: RateLimit::new(now),
            checksum_warnings: RateLimit::every(CHECKSUM_WARNING_EVERY, now),
            handlers: Handlers::new(now),
        }
    }

    /// Runs until told to stop, or until the queue is gone. A worker that ends by itself, for that or by a panic, which goes
    /// on from here, calls `leave` first: so that nothing more is sent to its queue, where nobody would take it.
    pub(crate) fn run(
        mut self,
        clock: &mut impl Clock,
        poll: Poll,
        switch: &RunSwitch,
        leave: impl FnOnce(),
    ) -> Ended<P> {
        let result = catch_unwind(AssertUnwindSafe(|| self.take_turns(clock, poll, switch)));
        if !matches!(result, Ok(Ok(()))) {
            leave();
            self.counters.workers_lost.increment();
        }
        match result {
            Ok(result) => self.finish(clock, result),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Takes turns until told to stop, or until the queue is gone.
    fn take_turns(
        &mut self,
        clock: &mut impl Clock,
        poll: Poll,
        switch: &RunSwitch,
    ) -> io::Result<()> {
        let mut idle = Idle::new(poll, clock.now());
        let mut state = RunState::Running;
        let mut turns = 0u32;
        loop {
            let Turned { worked, now } = self.turn(clock)?;
            turns = turns.wrapping_add(1);
            if worked {
                idle.worked(now);
            }
            if !worked || turns.is_multiple_of(budget::HOUSEKEEPING_TURNS) {
                let wanted = switch.get();
                if wanted != state {
                    state = wanted;
                    self.enter(state, clock);
                    continue;
                }
                if state == RunState::Draining && self.tcp.unfinished() == 0 {
                    return Ok(());
                }
                if state == RunState::Stopping {
                    return Ok(());
                }
            }
            if turns.is_multiple_of(budget::HOUSEKEEPING_TURNS) {
                self.publish();
            }
            if worked {
                continue;
            }
            match idle.next(now, self.next_deadline()) {
                Action::Spin => std::hint::spin_loop(),
                Action::BusyPoll => self.port.busy_poll(),
                Action::Sleep(timeout) => self.sleep(timeout)?,
            }
        }
    }

    /// One pass.
    ///
    /// # Errors
    ///
    /// If the queue is gone.
    pub(crate) fn turn(&mut self, clock: &mut impl Clock) -> io::Result<Turned> {
        let mut nanos = clock.nanos();
        self.egress.arena.collect_loans();

        let mut batch = std::mem::take(&mut self.batch);
        self.port.receive(
            &mut self.egress.arena,
            &mut batch,
            budget::RX_FRAMES,
            clock::instant(nanos),
            &self.counters,
        );
        let mut worked = !batch.is_empty();
        if worked {
            self.counters.rx_batches.increment();
        }
        for frame in batch.drain(..) {
            self.receive(frame, nanos, clock);
            nanos = self.settle(nanos, clock);
        }
        self.batch = batch;

        for _ in 0..budget::COMMANDS {
            let Some(command) = self.mailbox.try_recv() else {
                break;
            };
            worked = true;
            self.carry_out(command, nanos, clock);
            nanos = self.settle(nanos, clock);
        }
        // An idle loop looks for frames, and for nothing else.
        if worked || self.client_stirred || self.client_due.is_some_and(|due| due <= nanos) {
            self.take_client_turn(nanos, clock);
        }

        let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
        let now = turn.now;
        self.tcp.expire(budget::TIMERS, &mut turn);
        // What became of connections here, the client may act on in the next turn.
        self.client_stirred = self.tcp.flush(&mut turn);
        // The time that many connections' deadlines took says nothing of a handler.
        self.settle_called(0, nanos);

        // Sent, or for the kernel to take up where it left off.
        worked |= !self.egress.queue.is_empty() || self.port.has_backlog();
        self.port.transmit(
            &mut self.egress.arena,
            &mut self.egress.queue,
            now,
            &self.counters,
        )?;
        Ok(Turned { worked, now })
    }

    /// Where the frames are.
    pub(crate) fn frames(&self) -> FrameCount {
        self.egress.arena.count()
    }

    /// Whether every frame is at home, or held by a flow that knows of it. See [`Arena::is_at_rest`].
    pub(crate) fn is_at_rest(&self) -> bool {
        self.egress
            .arena
            .is_at_rest_but_for(0, self.tcp.held_frames())
    }

    /// The connections.
    pub(crate) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    /// The connections, to change how they are handled.
    pub(crate) fn tcp_mut(&mut self) -> &mut Tcp {
        &mut self.tcp
    }

    /// A time before which no timer is due, and nothing arrives that the port delays.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let due = self.client_due.map(clock::instant);
        let deadlines = self.tcp.next_deadline().into_iter().chain(due);
        deadlines.chain(self.port.next_arrival()).min()
    }

    /// The port, to change what it does.
    pub(crate) fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Takes no new connections from now on and closes idle ones.
    pub(crate) fn drain(&mut self, clock: &mut impl Clock) {
        self.enter(RunState::Draining, clock);
    }

    /// Resets all connections, as many at a time as there are free frames to tell their peers in: frames come back when
    /// the kernel has sent them. After [`STOP_TIMEOUT`], or if the queue is gone, those that are left end without a word.
    pub(crate) fn stop(&mut self, clock: &mut impl Clock) {
        let until = clock.now() + STOP_TIMEOUT;
        let mut left = self.tcp.ids();
        loop {
            let nanos = clock.nanos();
            let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
            let now = turn.now;
            self.tcp.abort_some(&mut left, &mut turn);
            self.tcp.flush(&mut turn);
            let sent = self.port.transmit(
                &mut self.egress.arena,
                &mut self.egress.queue,
                now,
                &self.counters,
            );
            if left.is_empty() || sent.is_err() || now >= until {
                break;
            }
            self.port.reap(&mut self.egress.arena, &self.counters);
        }
        let nanos = clock.nanos();
        let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
        for id in left {
            self.tcp.abort(id, &mut turn);
        }
    }

    /// Classifies a frame and has it handled.
    fn receive(&mut self, mut frame: Frame, nanos: u64, clock: &mut impl Clock) {
        let len = frame.len();
        let buffer = self.egress.arena.buffer_mut(&mut frame);
        let packet = match parse(buffer, len, &self.local) {
            Ok(packet) => packet,
            Err(reject) => {
                self.counters.reject(reject);
                if reject == Reject::ChecksumLeft
                    && self.checksum_warnings.allows(clock::instant(nanos))
                {
                    warn_of_left_checksums(buffer);
                }
                self.egress.arena.free(frame);
                return;
            }
        };
        let packet = match packet {
            Packet::Neighbour { len } => {
                let bytes = &self.egress.arena.buffer_mut(&mut frame)[..len];
                let learned = self.resolver.learn(bytes, &self.counters);
                if learned && !neighbour::is_question(bytes) {
                    self.egress.arena.free(frame);
                } else if self.answers_neighbours {
                    neighbour::answer(frame, len, &self.local, &mut self.egress, &self.counters);
                } else {
                    self.counters.reject(Reject::Neighbour);
                    self.egress.arena.free(frame);
                }
                return;
            }
            Packet::Ip(packet) => packet,
        };
        match packet.kind {
            TransportKind::Tcp { payload, flags } => {
                let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
                self.tcp.receive(frame, &packet, payload, flags, &mut turn);
            }
            TransportKind::Udp { payload_end } => {
                let now = clock::instant(nanos);
                let verdict = self.udp.receive(
                    frame,
                    &packet,
                    payload_end,
                    now,
                    clock,
                    &mut self.egress,
                    &self.counters,
                );
                if let Verdict::PortClosed(frame) = verdict
                    && let Some(frame) = self.give_to_client(frame, &packet, payload_end, nanos)
                {
                    self.icmp.port_unreachable(
                        frame,
                        &packet,
                        now,
                        &mut self.egress,
                        &self.counters,
                    );
                }
            }
            TransportKind::EchoRequest => {
                self.icmp
                    .echo(frame, &packet, &mut self.egress, &self.counters);
            }
            TransportKind::TooBig(said) => {
                self.egress.arena.free(frame);
                let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
                self.tcp.packet_too_big(&packet.key, &said, &mut turn);
            }
        }
    }

    /// Carries out what another thread asked for.
    fn carry_out(&mut self, command: Command, nanos: u64, clock: &mut impl Clock) {
        let mut turn = Turn::new(&mut self.egress, &self.counters, nanos, clock);
        match command {
            Command::Reply {
                route: Route::Flow(flow),
                consumed,
                response,
            } => self.tcp.reply(flow, consumed, response, &mut turn),
            Command::Reply {
                route: Route::Datagram { link, info },
                response,
                ..
            } => self
                .udp
                .reply(&link, &info, &response, turn.egress, turn.counters),
            Command::Abandoned {
                route: Route::Flow(flow),
            } => self.tcp.abandon(flow, &mut turn),
            Command::Abandoned {
                route: Route::Datagram { .. },
            } => turn.counters.deferred_abandoned.increment(),
            Command::NeedMore { flow } => self.tcp.need_more(flow, &mut turn),
            Command::HandBack { flow } => self.tcp.take_back(flow, &mut turn),
            Command::HandBackDatagram { link, request } => self.udp.take_back(
                &request,
                link,
                turn.now,
                clock,
                &mut self.egress,
                &self.counters,
            ),
            Command::Panicked {
                route,
                port,
                panicked,
            } => {
                let protocol = match route {
                    Route::Flow(_) => "TCP",
                    Route::Datagram { .. } => "UDP",
                };
                let service = Service { protocol, port };
                self.handlers
                    .panicked(service, &panicked.0, turn.now, turn.counters);
                if let Route::Flow(flow) = route {
                    self.tcp.abort(flow, &mut turn);
                }
            }
            Command::Abort { flow } => self.tcp.abort(flow, &mut turn),
            Command::Chunk {
                flow,
                chunk: Ok(chunk),
                source,
            } => self.tcp.add_chunk(flow, chunk, source, &mut turn),
            Command::Chunk {
                flow,
                chunk: Err(error),
                ..
            } => {
                turn.counters.bodies_failed.increment();
                if self.body_warnings.allows(turn.now) {
                    log::warn!("a response body failed, its connection is reset: {error}");
                }
                self.tcp.abort(flow, &mut turn);
            }
        }
    }

    /// Lets the client have its turn, if there is one.
    fn take_client_turn(&mut self, nanos: u64, clock: &mut impl Clock) {
        let Some(mut client) = self.tcp.take_client() else {
            return;
        };
        self.client_due = client.turn(&mut Core {
            tcp: &mut self.tcp,
            resolver: &mut self.resolver,
            local: &self.local,
            egress: &mut self.egress,
            counters: &self.counters,
            ip_mtu: self.ip_mtu,
            nanos,
            clock,
        });
        self.tcp.restore_client(client);
    }

    /// Gives a datagram that is for no service to the client; gives the frame back if there is none.
    fn give_to_client(
        &mut self,
        frame: Frame,
        packet: &Transport,
        payload_end: usize,
        nanos: u64,
    ) -> Option<Frame> {
        let Some(mut client) = self.tcp.take_client() else {
            return Some(frame);
        };
        self.counters.client_datagrams.increment();
        // The frame goes home first: what the client sends in answer goes out in it, while it is in the cache.
        // That is worth more than the copy costs.
        let start = packet.transport + UDP_HEADER_BYTES;
        let payload = &self.egress.arena.bytes(&frame)[start..payload_end];
        self.datagram.clear();
        self.datagram.extend_from_slice(payload);
        self.egress.arena.free(frame);
        let datagram = Datagram {
            local: packet.key.local_addr(),
            peer: packet.key.peer_addr(),
            payload: &self.datagram,
            nanos,
        };
        let mut datagrams = Datagrams {
            resolver: &self.resolver,
            egress: &mut self.egress,
            counters: &self.counters,
            ip_mtu: self.ip_mtu,
        };
        client.datagram(&datagram, &mut datagrams);
        self.tcp.restore_client(client);
        None
    }

    /// Settles the budget of the handler that ran since `start`, if one did; returns the time. Without handlers nobody's
    /// time is kept, and the turn's will do.
    fn settle(&mut self, start: u64, clock: &mut impl Clock) -> u64 {
        if !self.has_services {
            return start;
        }
        let nanos = clock.nanos();
        self.settle_called(nanos.saturating_sub(start), nanos);
        nanos
    }

    /// Settles the budgets of the handlers that were called since the last time, in `spent` nanoseconds until `nanos`.
    #[inline(always)]
    fn settle_called(&mut self, spent: u64, nanos: u64) {
        if let Some((called, calls)) = self.tcp.take_called() {
            let service = Service {
                protocol: "TCP",
                port: called.port,
            };
            self.handlers.settle(
                (service, &mut called.handler, &mut called.budget),
                (spent, calls, nanos),
                &self.counters,
            );
        }
        if let Some(called) = self.udp.take_called() {
            let service = Service {
                protocol: "UDP",
                port: called.port,
            };
            self.handlers.settle(
                (service, &mut called.handler, &mut called.budget),
                (spent, 1, nanos),
                &self.counters,
            );
        }
    }

    fn enter(&mut self, state: RunState, clock: &mut impl Clock) {
        match state {
            RunState::Running => {}
            RunState::Draining => self.tcp.drain(),
            RunState::Stopping => self.stop(clock),
        }
    }

    /// Publishes what readers of the counters see of the present.
    fn publish(&self) {
        self.counters.publish_frames(&self.egress.arena.count());
        self.tcp.publish(&self.counters);
    }

    fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        self.publish();
        let waker = Arc::clone(self.mailbox.waker());
        waker.prepare_sleep();
        let result = if self.mailbox.is_empty() {
            self.counters.sleeps.increment();
            self.port.wait(waker.event(), timeout)
        } else {
            Ok(())
        };
        waker.awake();
        result
    }

    /// Sends what is left and takes the frames home.
    fn finish(mut self, clock: &mut impl Clock, result: io::Result<()>) -> Ended<P> {
        if result.is_err() {
            // Nobody will acknowledge what flows hold.
            self.stop(clock);
        }
        port::settle(
            &mut self.port,
            &mut self.egress.arena,
            &mut self.egress.queue,
            clock,
            &self.counters,
        );
        self.publish();
        Ended {
            port: self.port,
            arena: self.egress.arena,
            result,
        }
    }
}

/// Says who leaves checksums to a card that is not there, and what to do. `frame` is such a frame.
#[cold]
fn warn_of_left_checksums(frame: &[u8]) {
    let mut from = [0; 6];
    from.copy_from_slice(&frame[6..12]);
    let from = Colons(from);
    log::warn!(
        "TCP and UDP from link address {from} is dropped: its checksums were left to a card, which a veth or tap pair \
         does not have; turn that off on the other end, the interface with that address: `ethtool -K INTERFACE tx \
         off`"
    );
}

/// The first address of a source prefix that may be used: not the one that stands for the prefix itself.
fn first_host(prefix: &Cidr) -> Cidr {
    let address = match prefix.address {
        IpAddr::V4(v4) if prefix.prefix < 31 => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.prefix))
                .unwrap_or(0);
            IpAddr::V4(((u32::from(v4) & mask) | 1).into())
        }
        IpAddr::V6(v6) if prefix.prefix < 127 => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.prefix))
                .unwrap_or(0);
            IpAddr::V6(((u128::from(v6) & mask) | 1).into())
        }
        other => other,
    };
    Cidr {
        address,
        prefix: prefix.prefix,
    }
}

/// The outcome of one pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turned {
    /// There was something to do.
    pub(crate) worked: bool,
    /// The last reading of the clock.
    pub(crate) now: Instant,
}

/// What is left of a worker.
pub(crate) struct Ended<P> {
    /// To be closed once the XDP program is detached.
    pub(crate) port: P,
    /// Loans may still come home to it.
    pub(crate) arena: Arena,
    /// Why it ended, if not because it was told to.
    pub(crate) result: io::Result<()>,
}
