//! The flood: TCP SYNs from random addresses at a rate. Nothing that comes back is answered, only counted.
//!
//! What differs between two SYNs (source address and port, sequence number) is written into a prepared frame,
//! and added to a prepared sum.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use interruptlet::arena::Owner;
use interruptlet::port::Port;
use interruptlet::wire::checksum::Sum;
use interruptlet::{Attachment, Cidr, Config, Duration, Instant};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr};

use super::cli::FloodArgs;
use super::frame::{ETHERNET, Layout, headers};
use super::{BATCH, Lane, Program, Turn, close, conserved, drive, mode};
use crate::cli::Misuse;
use crate::ending::Ending;
use crate::load::sources::Sources;
use crate::serve::{Failure, log_to_stderr};

/// How long it waits after the last SYN for what comes back.
const LINGER: Duration = Duration::from_millis(200);
/// How often SYNs are sent at a rate, if nothing arrives meanwhile: those of a tick go out together.
const TICK: Duration = Duration::from_micros(250);

/// What a Linux host on Ethernet announces.
const MSS: u16 = 1460;
const WINDOW: u16 = 64_240;
const WINDOW_SCALE: u8 = 7;

/// Offset in an IPv4 header.
const IPV4_CHECKSUM: usize = 10;
/// Offsets in a TCP header.
const SEQ: usize = 4;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Floods as the command line says, and prints what came of it.
///
/// # Errors
/// When it cannot start or ends by itself.
pub fn run(args: &FloodArgs) -> Result<(), Failure> {
    log_to_stderr();
    let ending = Ending::watch().map_err(Failure::Signals)?;
    let config = Config {
        addresses: Vec::new(),
        sources: vec![args.sources],
        ..args.queue.config(args.sources, args.core, args.poll)
    };
    let (attachment, port, arena) = Attachment::open(&config, &[], &[])?;
    let plan = Plan {
        links: (attachment.link_address(), args.peer_link.0),
        sources: args.sources,
        target: args.target,
        count: args.count,
        rate: (args.rate > 0.0).then_some(args.rate),
        duration: args.duration.into(),
        seed: args.seed,
    };
    let mut flooder = Flooder::new(plan).ok_or(Misuse::Versions {
        option: "--sources",
        from: args.sources.address,
        to: args.target.ip(),
    })?;
    let mut lane = Lane::new(port, arena);
    let mode = mode(&attachment);
    let began = SystemTime::now();
    let ended = drive(&mut flooder, &mut lane, &attachment, config.poll, &ending);
    let report = close(attachment, lane);
    let outcome = flooder.outcome();
    let line = if args.json {
        outcome.json(began, mode)
    } else {
        outcome.text(mode)
    };
    // If nobody listens any more, the exit code is left.
    let _ = writeln!(io::stdout(), "{line}");
    ended?;
    conserved(&report)
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Link addresses: ours and the next hop's.
    pub links: ([u8; 6], [u8; 6]),
    /// Where SYNs come from: any host address of the prefix, any port from 1024.
    pub sources: Cidr,
    /// Where they go, an address of the same version.
    pub target: SocketAddr,
    /// How many, if there is time for all.
    pub count: u64,
    /// How many per second; `None` for as many as possible.
    pub rate: Option<f64>,
    /// How long at most.
    pub duration: Duration,
    /// Decides addresses, ports and sequence numbers.
    pub seed: u64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// SYNs that were sent.
    pub sent: u64,
    /// SYN-ACKs of the target that came back, those that it repeated included.
    pub syn_acks: u64,
    /// Its RSTs.
    pub resets: u64,
    /// How long the sending took, in seconds.
    pub seconds: f64,
}

impl Outcome {
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.sent as f64 / self.seconds
        } else {
            0.0
        }
    }

    fn json(&self, began: SystemTime, mode: &str) -> String {
        // A clock before its own beginning is nobody's.
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "sent": self.sent,
            "began_at": began.as_secs_f64(),
            "seconds": self.seconds,
            "sent_per_second": self.per_second(),
            "syn_acks": self.syn_acks,
            "resets": self.resets,
            "mode": mode,
        })
        .to_string()
    }

    fn text(&self, mode: &str) -> String {
        format!(
            "{} SYNs in {:.2} s, {:.0} per second; {} SYN-ACKs and {} resets came back, {mode} mode",
            self.sent,
            self.seconds,
            self.per_second(),
            self.syn_acks,
            self.resets
        )
    }
}

/// Sends SYNs, and counts what comes back.
#[derive(Debug)]
pub struct Flooder {
    plan: Plan,
    sources: Sources,
    random: SmallRng,
    layout: Layout,
    /// A SYN whose source address, source port, sequence number and checksums are zero.
    template: Vec<u8>,
    /// Sums over its IP header and over its segment with the pseudo-header.
    header_sum: Sum,
    segment_sum: Sum,
    started: Option<Instant>,
    /// When the last SYN was sent, or the time was over.
    ended: Option<Instant>,
    outcome: Outcome,
}

impl Flooder {
    /// A flooder that has sent nothing yet. `None` if sources and target are of two versions.
    pub fn new(plan: Plan) -> Option<Self> {
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let sources = Sources::new(plan.sources, &mut random);
        let repr = syn(plan.target.port());
        let len = repr.buffer_len();
        let (from, to) = (plan.sources.address, plan.target.ip());
        let mut template = headers(plan.links, (from, to), IpProtocol::Tcp, len)?;
        let segment = template.len();
        template.resize(segment + len, 0);
        repr.emit(
            &mut TcpPacket::new_unchecked(&mut template[segment..]),
            &from.into(),
            &to.into(),
            &ChecksumCapabilities::ignored(),
        );
        let layout = Layout::of(to);
        template[layout.addresses..][..layout.address].fill(0);
        if from.is_ipv4() {
            template[ETHERNET + IPV4_CHECKSUM..][..2].fill(0);
        }
        template[segment + CHECKSUM..][..2].fill(0);
        let pseudo_header = Sum::default()
            .plus(&template[layout.addresses..segment])
            .plus_u16(u8::from(IpProtocol::Tcp).into())
            .plus_u16(len as u16);
        Some(Self {
            header_sum: Sum::default().plus(&template[ETHERNET..segment]),
            segment_sum: pseudo_header.plus(&template[segment..]),
            sources,
            random,
            layout,
            template,
            started: None,
            ended: None,
            outcome: Outcome::default(),
            plan,
        })
    }

    /// What was counted so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// How many SYNs are to be sent in a turn, `elapsed` after the first.
    fn due(&self, elapsed: Duration) -> u64 {
        let sent = self.outcome.sent;
        let until_now = match self.plan.rate {
            Some(rate) => (elapsed.total_micros() as f64 * rate / 1e6) as u64,
            None => u64::MAX,
        };
        until_now
            .min(self.plan.count)
            .saturating_sub(sent)
            .min(BATCH as u64)
    }

    /// Makes a SYN from anywhere in `frame`.
    fn write(&mut self, frame: &mut [u8]) {
        let place = self.random.random_range(0..self.sources.pairs());
        let source = self.sources.at(place);
        let seq: u32 = self.random.random();
        let Layout {
            addresses,
            address,
            ports,
        } = self.layout;
        frame.copy_from_slice(&self.template);
        let octets = &mut frame[addresses..][..address];
        match source.ip() {
            IpAddr::V4(v4) => octets.copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => octets.copy_from_slice(&v6.octets()),
        }
        let sum = self.segment_sum.plus(octets);
        if source.is_ipv4() {
            let checksum = self.header_sum.plus(octets).finish();
            frame[ETHERNET + IPV4_CHECKSUM..][..2].copy_from_slice(&checksum);
        }
        let checksum = sum
            .plus_u16(source.port())
            .plus_u16((seq >> 16) as u16)
            .plus_u16(seq as u16)
            .finish();
        let segment = &mut frame[ports..];
        segment[..2].copy_from_slice(&source.port().to_be_bytes());
        segment[SEQ..][..4].copy_from_slice(&seq.to_be_bytes());
        segment[CHECKSUM..][..2].copy_from_slice(&checksum);
    }

    /// Queues the SYNs that are due, as far as there are frames.
    fn send<P: Port>(&mut self, lane: &mut Lane<P>, elapsed: Duration) {
        for _ in 0..self.due(elapsed) {
            let Some(mut frame) = lane.arena.alloc(Owner::Tx) else {
                break;
            };
            let len = self.template.len();
            self.write(&mut lane.arena.buffer_mut(&mut frame)[..len]);
            lane.arena.set_len(&mut frame, len);
            lane.outgoing.push(frame);
            self.outcome.sent += 1;
        }
    }

    /// Counts a frame that came back, if it is a TCP segment of the target.
    fn count(&mut self, frame: &[u8]) {
        match flags(frame, self.plan.target.port()) {
            Some(flags) if flags & (SYN | ACK) == SYN | ACK => self.outcome.syn_acks += 1,
            Some(flags) if flags & RST != 0 => self.outcome.resets += 1,
            _ => {}
        }
    }
}

/// The flags of a TCP segment from `port` that has no IP options or extension headers in front.
fn flags(frame: &[u8], port: u16) -> Option<u8> {
    let (protocol, segment) = match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(ETHERNET)? == 0x45 => (frame.get(ETHERNET + 9)?, ETHERNET + 20),
        [0x86, 0xdd] => (frame.get(ETHERNET + 6)?, ETHERNET + 40),
        _ => return None,
    };
    let segment = frame.get(segment..)?;
    let is_ours =
        *protocol == u8::from(IpProtocol::Tcp) && *segment.get(..2)? == port.to_be_bytes();
    segment.get(FLAGS).copied().filter(|_| is_ours)
}

/// The SYN of a Linux host, from no port and with no sequence number yet.
fn syn(port: u16) -> TcpRepr<'static> {
    TcpRepr {
        src_port: 0,
        dst_port: port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: WINDOW,
        window_scale: Some(WINDOW_SCALE),
        max_seg_size: Some(MSS),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: Some(TcpTimestampRepr::new(1, 0)),
        payload: &[],
    }
}

impl<P: Port> Program<P> for Flooder {
    fn turn(&mut self, lane: &mut Lane<P>, now: Instant) -> io::Result<Turn> {
        let started = *self.started.get_or_insert(now);
        let received = lane.receive(now);
        let mut frames = std::mem::take(&mut lane.received);
        for mut frame in frames.drain(..) {
            let len = frame.len();
            self.count(&lane.arena.buffer_mut(&mut frame)[..len]);
            lane.arena.free(frame);
        }
        lane.received = frames;
        match self.ended {
            Some(ended) if now - ended >= LINGER => return Ok(Turn::Done),
            Some(_) => {}
            None => {
                let elapsed = now - started;
                self.send(lane, elapsed);
                self.outcome.seconds = elapsed.total_micros() as f64 / 1e6;
                if self.outcome.sent >= self.plan.count || elapsed >= self.plan.duration {
                    self.ended = Some(now);
                }
            }
        }
        Ok(Turn::from(lane.transmit(now)? | received))
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        match self.ended {
            Some(ended) => Some(ended + LINGER),
            None => Some(now + TICK),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use interruptlet::arena::Arena;
    use interruptlet::port::memory::{self, MemoryPeer, MemoryPort};
    use smoltcp::wire::{
        EthernetFrame, EthernetProtocol, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket,
    };

    use super::*;

    const V4: (&str, &str) = ("198.18.0.0/15", "192.0.2.2:7");
    const V6: (&str, &str) = ("2001:db8:1::/64", "[2001:db8::2]:7");
    const LINKS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn plan((sources, target): (&str, &str)) -> Plan {
        Plan {
            links: LINKS,
            sources: sources.parse().unwrap(),
            target: target.parse().unwrap(),
            count: 1000,
            rate: None,
            duration: Duration::from_secs(10),
            seed: 1,
        }
    }

    struct World {
        flooder: Flooder,
        lane: Lane<MemoryPort>,
        peer: MemoryPeer,
    }

    impl World {
        fn new(plan: Plan) -> Self {
            let (port, peer) = memory::pair();
            Self {
                flooder: Flooder::new(plan).unwrap(),
                lane: Lane::new(port, Arena::anonymous(128, 1792, 0)),
                peer,
            }
        }

        fn turn(&mut self, millis: i64) -> Turn {
            let now = Instant::from_millis(millis);
            self.flooder.turn(&mut self.lane, now).unwrap()
        }

        fn taken(&self) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.peer.take()).collect()
        }
    }

    /// Source, and segment, of a frame to the target whose checksums hold.
    fn dissect(frame: &[u8], target: SocketAddr) -> (SocketAddr, TcpRepr<'_>) {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        assert_eq!(ethernet.src_addr().0, LINKS.0);
        assert_eq!(ethernet.dst_addr().0, LINKS.1);
        let (from, to, segment): (IpAddress, IpAddress, _) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                assert!(ip.verify_checksum());
                (ip.src_addr().into(), ip.dst_addr().into(), ip.payload())
            }
            _ => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
                (ip.src_addr().into(), ip.dst_addr().into(), ip.payload())
            }
        };
        let packet = TcpPacket::new_checked(segment).unwrap();
        let all = ChecksumCapabilities::default();
        let repr = TcpRepr::parse(&packet, &from, &to, &all).unwrap();
        assert_eq!(SocketAddr::new(to.into(), repr.dst_port), target);
        (SocketAddr::new(from.into(), repr.src_port), repr)
    }

    #[test]
    fn syns_are_those_of_linux_from_anywhere_in_the_prefix() {
        for ends in [V4, V6] {
            let plan = plan(ends);
            let mut world = World::new(plan);
            let (mut sources, mut numbers) = (HashSet::new(), HashSet::new());
            assert_eq!(world.turn(0), Turn::Worked);
            let frames = world.taken();
            assert_eq!(frames.len(), BATCH);
            for frame in &frames {
                let (source, repr) = dissect(frame, plan.target);
                assert!(plan.sources.contains(source.ip()) && source.port() >= 1024);
                let seq = repr.seq_number;
                let expected = TcpRepr {
                    src_port: source.port(),
                    seq_number: seq,
                    ..syn(7)
                };
                assert_eq!(repr, expected);
                sources.insert(source);
                numbers.insert(seq.0);
            }
            assert!(sources.len() > BATCH - 4 && numbers.len() > BATCH - 4);
        }
    }

    #[test]
    fn the_seed_decides() {
        let first = |seed| {
            let mut world = World::new(Plan { seed, ..plan(V4) });
            world.turn(0);
            world.taken()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn it_ends_after_the_last_syn_and_what_comes_back() {
        let mut world = World::new(Plan {
            count: 100,
            ..plan(V4)
        });
        world.turn(0);
        world.turn(1);
        assert_eq!(world.taken().len(), 100);
        assert_eq!(world.turn(2), Turn::Idle);
        assert_eq!(world.turn(200), Turn::Idle);
        assert_eq!(world.turn(201), Turn::Done);
        let outcome = world.flooder.outcome();
        assert_eq!((outcome.sent, outcome.seconds), (100, 0.001));
        assert!(world.lane.arena.is_at_rest());
    }

    #[test]
    fn no_faster_than_the_rate_and_no_longer_than_the_time() {
        let mut world = World::new(Plan {
            rate: Some(10_000.0),
            duration: Duration::from_millis(20),
            ..plan(V4)
        });
        for (millis, sent) in [
            (0, 0),
            (1, 10),
            (2, 20),
            (2, 20),
            (15, 84),
            (15, 148),
            (15, 150),
        ] {
            world.turn(millis);
            world.taken();
            assert_eq!(world.flooder.outcome().sent, sent);
        }
        let now = Instant::from_millis(15);
        let deadline = Program::<MemoryPort>::deadline(&mut world.flooder, now);
        assert_eq!(deadline, Some(now + TICK));
        for millis in [25, 26, 300] {
            world.turn(millis);
        }
        assert_eq!(world.flooder.outcome().sent, 214);
    }

    #[test]
    fn what_comes_back_is_counted_and_not_answered() {
        for ends in [V4, V6] {
            let plan = plan(ends);
            let mut world = World::new(Plan { count: 4, ..plan });
            world.turn(0);
            let mut frames = world.taken();
            let ports = Layout::of(plan.target.ip()).ports;
            for (frame, flags) in frames
                .iter_mut()
                .zip([SYN | ACK, RST | ACK, ACK, SYN | ACK])
            {
                frame[ports..][..2].copy_from_slice(&7u16.to_be_bytes());
                frame[ports + FLAGS] = flags;
            }
            // From another port.
            frames[3][ports + 1] = 8;
            for frame in &frames {
                world.peer.inject(frame);
            }
            for len in [0, 13, 14, 23, 33, 54] {
                world.peer.inject(&frames[0][..len]);
            }
            world.turn(1);
            let outcome = world.flooder.outcome();
            let cut = usize::from(ends == V4);
            assert_eq!((outcome.syn_acks, outcome.resets), (1 + cut as u64, 1));
            assert!(world.taken().is_empty() && world.lane.arena.is_at_rest());
        }
    }

    #[test]
    fn one_version() {
        let mixed = Plan {
            target: V6.1.parse().unwrap(),
            ..plan(V4)
        };
        assert!(Flooder::new(mixed).is_none());
    }
}
