//! What one TCP echo request costs in user space: a server over memory, and a client that costs it nothing.
//!
//! Both servers take their frames from the same in-memory port and are driven turn by turn; only their turns
//! (`counted_turn`) are timed, and a profiler can be told to count nothing else. The client writes its
//! segments into one prepared frame, and checks every answer, outside of that.
//!
//! Time is virtual and a turn takes as long as a turn on a network may, so that no timer is due while a round
//! over all connections lasts.

use std::net::{IpAddr, Ipv4Addr};
use std::time;

use interruptlet::arena::Arena;
use interruptlet::port::faulty::{Faults, FaultyPort};
use interruptlet::port::memory::{self, MemoryPeer, MemoryPort};
use interruptlet::sim::{Sim, SimConfig, SimStream};
use interruptlet::wire::checksum::Sum;
use interruptlet::{Cidr, Duration, Instant, Limits};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::frame::{headers, link_header};
use super::plain::{Place, Server as Plain};
use super::{BATCH, Lane, Program};
use crate::echo::StreamEcho;

/// Connections at most: their ports are of one address.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Bytes of a message at least and at most: a tag, and what one segment holds.
pub const SIZE_MIN: usize = 4;
/// See [`SIZE_MIN`].
pub const SIZE_MAX: usize = MTU - 20 - TCP;

/// The counted requests are cut in so many repetitions.
const REPETITIONS: u64 = 5;
/// Virtual time between two turns.
const STEP: Duration = Duration::from_micros(20);

const MTU: usize = 1500;
/// Bytes of a simulated frame's data area, as in `interruptlet::sim`.
const FRAME_BYTES: u16 = 1792;
const SEED: u64 = 1;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PREFIX: u8 = 24;
const SERVER_LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_LINK: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: u16 = 7;
/// The port of the first connection.
const FIRST_PORT: u16 = 20_000;
/// The client's first sequence number.
const FIRST_SEQ: u32 = 1000;

/// Offsets in a frame with IPv4 and TCP without options.
const ETHERNET: usize = 14;
const SEGMENT: usize = ETHERNET + 20;
const TCP: usize = 20;
const PAYLOAD: usize = SEGMENT + TCP;
const SOURCE_PORT: usize = SEGMENT;
const SEQ: usize = SEGMENT + 4;
const ACK: usize = SEGMENT + 8;
const CHECKSUM: usize = SEGMENT + 16;

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Interruptlet: a whole worker.
    Stack,
    /// The same, with an engine that handles every segment.
    Engines,
    /// [`plain`](super::plain): smoltcp with all sockets in one set.
    Smoltcp,
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The server.
    pub kind: Kind,
    /// Established connections, 1 to [`CONNECTIONS_MAX`], which are used one after another.
    pub connections: usize,
    /// Requests that are counted, at least 1.
    pub requests: u64,
    /// Bytes of a request and of its answer, [`SIZE_MIN`] to [`SIZE_MAX`].
    pub size: usize,
}

/// The server did something else than it was measured for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the server did not {expected}: a defect of this program, please report it with the options"
)]
pub struct Broken {
    expected: &'static str,
}

fn broken<T>(expected: &'static str) -> Result<T, Broken> {
    Err(Broken { expected })
}

/// One turn of the server, and the only thing that is counted: `--toggle-collect='*counted_turn*'` makes
/// callgrind count the instructions of nothing else.
#[inline(never)]
fn counted_turn<S: Server>(server: &mut S) {
    server.turn();
}

/// Opens the connections, uses each once, then counts; returns the nanoseconds per request, the median of
/// several repetitions.
///
/// # Errors
/// If an answer is missing or wrong.
pub fn measure(plan: &Plan) -> Result<f64, Broken> {
    match plan.kind {
        Kind::Stack | Kind::Engines => {
            Bench::new(StackServer::new(plan), plan)?.measure(plan.requests)
        }
        Kind::Smoltcp => Bench::new(PlainServer::new(plan), plan)?.measure(plan.requests),
    }
}

/// A server over memory.
trait Server {
    /// One pass of its loop.
    fn turn(&mut self);
    /// Lets time pass.
    fn advance(&mut self, by: Duration);
    /// The other end of its wire.
    fn peer(&self) -> &MemoryPeer;
}

struct StackServer {
    sim: Sim,
}

impl StackServer {
    fn new(plan: &Plan) -> Self {
        let default = Limits::default();
        // Each connection holds its last answer until its next request acknowledges it.
        let held_frames = default.held_frames.max(plan.connections as u32);
        let config = SimConfig {
            addresses: vec![Cidr {
                address: SERVER.into(),
                prefix: PREFIX,
            }],
            link: SERVER_LINK,
            mtu: MTU,
            limits: Limits {
                flows: plan.connections,
                engines: plan.connections,
                held_frames,
                frames: default.frames - default.held_frames + held_frames,
                ..default
            },
            engine_only: plan.kind == Kind::Engines,
            seed: SEED,
            streams: vec![SimStream {
                port: PORT,
                interruptlet: Box::new(StreamEcho),
                slow: None,
                request_timeout: Duration::from_secs(10),
                idle_timeout: Some(Duration::from_secs(3600)),
                keep_alive: None,
            }],
            ..SimConfig::default()
        };
        Self {
            sim: Sim::new(config),
        }
    }
}

impl Server for StackServer {
    fn turn(&mut self) {
        self.sim.turn();
    }

    fn advance(&mut self, by: Duration) {
        self.sim.advance(by);
    }

    fn peer(&self) -> &MemoryPeer {
        self.sim.peer()
    }
}

struct PlainServer {
    server: Plain,
    /// The same port as a simulation's.
    lane: Lane<FaultyPort<MemoryPort>>,
    peer: MemoryPeer,
    now: Instant,
}

impl PlainServer {
    fn new(plan: &Plan) -> Self {
        let (port, peer) = memory::pair();
        let port = FaultyPort::new(port, Faults::default(), SEED);
        let arena = Arena::anonymous(Limits::default().frames, FRAME_BYTES, 0);
        let mut lane = Lane::new(port, arena);
        let place = Place {
            link: SERVER_LINK,
            mtu: MTU,
            address: Cidr {
                address: SERVER.into(),
                prefix: PREFIX,
            },
            port: PORT,
            sockets: plan.connections,
        };
        Self {
            server: Plain::new(&place, &mut lane, SEED, Instant::ZERO),
            lane,
            peer,
            now: Instant::ZERO,
        }
    }
}

impl Server for PlainServer {
    fn turn(&mut self) {
        // A port over memory cannot fail.
        let _ = self.server.turn(&mut self.lane, self.now);
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    fn peer(&self) -> &MemoryPeer {
        &self.peer
    }
}

/// A server and its client.
struct Bench<S> {
    server: S,
    client: Client,
    /// The connection whose turn it is.
    next: usize,
}

impl<S: Server> Bench<S> {
    /// With every connection open and used once.
    fn new(server: S, plan: &Plan) -> Result<Self, Broken> {
        let mut bench = Self {
            server,
            client: Client::new(plan),
            next: 0,
        };
        bench.meet()?;
        bench.open()?;
        bench.round(plan.connections as u64, S::turn)?;
        Ok(bench)
    }

    fn measure(mut self, requests: u64) -> Result<f64, Broken> {
        let repetitions = REPETITIONS.min(requests);
        let mut times = Vec::new();
        for repetition in 0..repetitions {
            let count = requests / repetitions + u64::from(repetition < requests % repetitions);
            let elapsed = self.round(count, counted_turn)?;
            times.push(elapsed.as_nanos() as f64 / count as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Has the server take in what was injected.
    fn turn(&mut self) {
        self.server.advance(STEP);
        self.server.turn();
    }

    /// Resolves the server's link address, which has the server know the client's.
    fn meet(&mut self) -> Result<(), Broken> {
        self.server.peer().inject(&arp_request());
        self.turn();
        match self.server.peer().take() {
            Some(answer) if is_arp_answer(&answer) => Ok(()),
            _ => broken("answer ARP"),
        }
    }

    /// Opens every connection.
    fn open(&mut self) -> Result<(), Broken> {
        let all: Vec<usize> = (0..self.client.connections.len()).collect();
        for batch in all.chunks(BATCH) {
            for index in batch {
                let syn = self.client.segment(*index, TcpControl::Syn);
                self.server.peer().inject(&syn);
            }
            self.turn();
            for _ in batch {
                let Some(answer) = self.server.peer().take() else {
                    return broken("answer every SYN");
                };
                let index = self.client.established(&answer)?;
                let ack = self.client.segment(index, TcpControl::None);
                self.server.peer().inject(&ack);
                self.server.peer().recycle(answer);
            }
            self.turn();
            if self.server.peer().take().is_some() {
                return broken("keep silent after a handshake");
            }
        }
        Ok(())
    }

    /// `count` requests, in batches, one connection after another; returns how long `turn` took in all.
    fn round(&mut self, count: u64, turn: impl Fn(&mut S)) -> Result<time::Duration, Broken> {
        let connections = self.client.connections.len();
        let mut elapsed = time::Duration::ZERO;
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH.min(connections) as u64);
            for _ in 0..batch {
                self.server.peer().inject(self.client.request(self.next));
                self.next = (self.next + 1) % connections;
            }
            self.server.advance(STEP);
            let start = time::Instant::now();
            turn(&mut self.server);
            elapsed += start.elapsed();
            for _ in 0..batch {
                let Some(answer) = self.server.peer().take() else {
                    return broken("answer every request in its turn");
                };
                self.client.take(&answer)?;
                self.server.peer().recycle(answer);
            }
            if self.server.peer().take().is_some() {
                return broken("answer each request with one segment");
            }
            left -= batch;
        }
        Ok(elapsed)
    }
}

/// A client of many connections that has one request out on each at most.
struct Client {
    connections: Vec<Connection>,
    /// A request of any connection, but for what [`request`](Self::request) writes.
    template: Vec<u8>,
    /// The sum over it, those fields being zero.
    sum: Sum,
    size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    /// The next sequence number to send.
    seq: u32,
    /// The next one expected.
    ack: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Established,
    /// A request is out.
    Asked,
}

impl Client {
    fn new(plan: &Plan) -> Self {
        let connection = Connection {
            seq: FIRST_SEQ,
            ack: 0,
            state: State::Closed,
        };
        let size = plan.size.clamp(SIZE_MIN, SIZE_MAX);
        let payload: Vec<u8> = (0..size).map(|n| if n < 4 { 0 } else { n as u8 }).collect();
        let mut template = tcp_frame(&TcpRepr {
            payload: &payload,
            ..repr(0, TcpControl::Psh, 0, Some(0))
        });
        template[CHECKSUM..][..2].fill(0);
        let ends = (IpAddr::from(CLIENT).into(), IpAddr::from(SERVER).into());
        let length = (TCP + size) as u16;
        let sum = Sum::pseudo_header(&ends.0, &ends.1, 6, length).plus(&template[SEGMENT..]);
        Self {
            connections: vec![connection; plan.connections.clamp(1, CONNECTIONS_MAX)],
            template,
            sum,
            size,
        }
    }

    /// A segment of connection `index` without payload.
    fn segment(&mut self, index: usize, control: TcpControl) -> Vec<u8> {
        let connection = self.connections[index];
        let ack = (control != TcpControl::Syn).then_some(connection.ack);
        let mut repr = repr(port_of(index), control, connection.seq, ack);
        if control == TcpControl::Syn {
            repr.max_seg_size = Some((MTU - 20 - TCP) as u16);
        }
        tcp_frame(&repr)
    }

    /// Takes a SYN-ACK in; returns whose it is.
    fn established(&mut self, frame: &[u8]) -> Result<usize, Broken> {
        let expected = "answer every SYN with a SYN-ACK";
        let Some(packet) = frame
            .get(SEGMENT..)
            .and_then(|segment| TcpPacket::new_checked(segment).ok())
        else {
            return broken(expected);
        };
        let index = usize::from(packet.dst_port().wrapping_sub(FIRST_PORT));
        let Some(connection) = self.connections.get_mut(index) else {
            return broken(expected);
        };
        let seq = connection.seq.wrapping_add(1);
        let acknowledged = packet.ack_number() == TcpSeqNumber(seq as i32);
        if !packet.syn() || !packet.ack() || !acknowledged || connection.state != State::Closed {
            return broken(expected);
        }
        *connection = Connection {
            seq,
            ack: (packet.seq_number().0 as u32).wrapping_add(1),
            state: State::Established,
        };
        Ok(index)
    }

    /// The next request of connection `index`; it also acknowledges the last answer.
    fn request(&mut self, index: usize) -> &[u8] {
        let connection = &mut self.connections[index];
        connection.state = State::Asked;
        let (port, seq, ack) = (port_of(index), connection.seq, connection.ack);
        let frame = &mut self.template;
        frame[SOURCE_PORT..][..2].copy_from_slice(&port.to_be_bytes());
        frame[SEQ..][..4].copy_from_slice(&seq.to_be_bytes());
        frame[ACK..][..4].copy_from_slice(&ack.to_be_bytes());
        // A tag that no other request of the connection has.
        frame[PAYLOAD..][..4].copy_from_slice(&seq.to_be_bytes());
        let mut sum = self.sum.plus_u16(port);
        for word in [seq, seq, ack] {
            sum = sum.plus_u16((word >> 16) as u16).plus_u16(word as u16);
        }
        frame[CHECKSUM..][..2].copy_from_slice(&sum.finish());
        frame
    }

    /// Takes an answer in: the whole payload of a request that is out, in order, in one segment.
    fn take(&mut self, frame: &[u8]) -> Result<(), Broken> {
        let field = |at: usize| {
            frame
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u32::from_be_bytes)
        };
        let (Some(ports), Some(seq), Some(ack)) = (field(SOURCE_PORT), field(SEQ), field(ACK))
        else {
            return broken("answer with TCP segments");
        };
        let index = usize::from((ports as u16).wrapping_sub(FIRST_PORT));
        let Some(connection) = self.connections.get_mut(index) else {
            return broken("answer the client's ports");
        };
        let tag = connection.seq;
        let next = connection.seq.wrapping_add(self.size as u32);
        if connection.state != State::Asked || seq != connection.ack || ack != next {
            return broken("answer in order and acknowledge the request");
        }
        let payload = frame
            .get(PAYLOAD..)
            .and_then(|payload| payload.split_first_chunk());
        let Some((answered, rest)) = payload else {
            return broken("answer with the request's bytes");
        };
        if *answered != tag.to_be_bytes() || *rest != self.template[PAYLOAD + 4..] {
            return broken("answer with the request's bytes");
        }
        *connection = Connection {
            seq: next,
            ack: connection.ack.wrapping_add(self.size as u32),
            state: State::Established,
        };
        Ok(())
    }
}

fn port_of(index: usize) -> u16 {
    FIRST_PORT.wrapping_add(index as u16)
}

fn repr(port: u16, control: TcpControl, seq: u32, ack: Option<u32>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: port,
        dst_port: PORT,
        control,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
        window_len: u16::MAX,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// A frame from the client to the server.
fn tcp_frame(repr: &TcpRepr<'_>) -> Vec<u8> {
    let links = (CLIENT_LINK, SERVER_LINK);
    let len = repr.buffer_len();
    let ends = (CLIENT.into(), SERVER.into());
    // Both ends are of one version.
    let mut frame = headers(links, ends, IpProtocol::Tcp, len).unwrap_or_default();
    let segment = frame.len();
    frame.resize(segment + len, 0);
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut frame[segment..]),
        &ends.0.into(),
        &ends.1.into(),
        &ChecksumCapabilities::default(),
    );
    frame
}

fn arp_request() -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(CLIENT_LINK),
        source_protocol_addr: CLIENT,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: SERVER,
    };
    let mut frame = vec![0; ETHERNET + repr.buffer_len()];
    let links = (CLIENT_LINK, EthernetAddress::BROADCAST.0);
    link_header(&mut frame, links, EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET..]));
    frame
}

fn is_arp_answer(frame: &[u8]) -> bool {
    let packet = EthernetFrame::new_checked(frame)
        .ok()
        .filter(|ethernet| ethernet.ethertype() == EthernetProtocol::Arp)
        .and_then(|ethernet| ArpPacket::new_checked(ethernet.payload()).ok());
    matches!(
        packet.and_then(|packet| ArpRepr::parse(&packet).ok()),
        Some(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(SERVER_LINK),
            source_protocol_addr: SERVER,
            ..
        })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: Kind, connections: usize, requests: u64, size: usize) -> Plan {
        Plan {
            kind,
            connections,
            requests,
            size,
        }
    }

    #[test]
    fn every_server_answers_everything() {
        for kind in [Kind::Stack, Kind::Engines, Kind::Smoltcp] {
            for (connections, requests, size) in [
                (1, 1, SIZE_MIN),
                (1, 300, 64),
                (3, 100, SIZE_MAX),
                (130, 1000, 65),
            ] {
                let plan = plan(kind, connections, requests, size);
                let time = measure(&plan).unwrap_or_else(|broken| panic!("{broken}: {plan:?}"));
                assert!(time > 0.0);
            }
        }
    }

    #[test]
    fn many_connections_fit() {
        for kind in [Kind::Stack, Kind::Engines] {
            measure(&plan(kind, CONNECTIONS_MAX, 100, 64)).unwrap();
        }
    }

    /// Sends each request back as the server would, but for what `damage` does.
    fn answered(damage: impl Fn(&mut Vec<u8>)) -> Result<(), Broken> {
        let mut client = Client::new(&plan(Kind::Stack, 2, 1, 64));
        client.connections[1].state = State::Established;
        client.connections[1].ack = 77;
        let mut answer = client.request(1).to_vec();
        let ack = (FIRST_SEQ + 64).to_be_bytes();
        let (source, destination) = (PORT.to_be_bytes(), port_of(1).to_be_bytes());
        answer[SOURCE_PORT..][..2].copy_from_slice(&source);
        answer[SOURCE_PORT + 2..][..2].copy_from_slice(&destination);
        answer[SEQ..][..4].copy_from_slice(&77u32.to_be_bytes());
        answer[ACK..][..4].copy_from_slice(&ack);
        damage(&mut answer);
        client.take(&answer)?;
        // The same again is no answer to anything.
        assert!(client.take(&answer).is_err());
        Ok(())
    }

    #[test]
    fn a_wrong_answer_is_noticed() {
        assert_eq!(answered(|_| {}), Ok(()));
        for at in [SOURCE_PORT + 3, SEQ + 3, ACK, PAYLOAD, PAYLOAD + 63] {
            assert!(answered(|frame| frame[at] ^= 1).is_err(), "{at}");
        }
        assert!(answered(|frame| frame.push(0)).is_err());
        assert!(answered(|frame| frame.truncate(PAYLOAD + 63)).is_err());
        assert!(answered(|frame| frame.truncate(SEQ)).is_err());
        assert!(answered(Vec::clear).is_err());
    }

    #[test]
    fn a_silent_server_is_noticed() {
        struct Silent(MemoryPeer);
        impl Server for Silent {
            fn turn(&mut self) {}
            fn advance(&mut self, _by: Duration) {}
            fn peer(&self) -> &MemoryPeer {
                &self.0
            }
        }
        let silent = Silent(memory::pair().1);
        let bench = Bench::new(silent, &plan(Kind::Stack, 1, 1, 64));
        assert_eq!(
            bench.err(),
            Some(Broken {
                expected: "answer ARP"
            })
        );
    }
}
