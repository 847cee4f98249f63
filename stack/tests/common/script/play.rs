//! Plays scripts against a simulated worker.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use interruptlet::sim::{Sim, SimConfig};
use interruptlet::{Cidr, Duration, Instant};

use super::parse::FLAGS;
use super::{Act, Data, Described, How, Isn, Limit, Mode, Options, Script, Settings, Told};
use crate::common::handlers::{Echo, Lines};
use crate::common::packets::{self, ACK, Ends, FIN, PSH, RST, SYN, TCP, checksum, dissect};
use crate::common::pair::{Event, Shared, Wish, told};
use crate::common::{CLIENT_LINK, PORT, Version, stream};

/// The port that our client opens its connections from.
const OUR_CLIENT_PORT: u16 = 1024;
/// The peer's, of its first connection, if it is the client.
const PEER_PORT: u16 = 5000;
const PEER_ISN: u32 = 1000;
/// Of a peer that says nothing (RFC 9293 section 3.7.1, MUST-15): IPv4, IPv6.
const DEFAULT_MSS: [usize; 2] = [536, 1220];
/// Less is no honest MSS, and we need not respect it.
const LEAST_MSS: usize = 64;
/// What our client calls its connection.
const TOKEN: u64 = 1;
const ETHERNET_HEADER_BYTES: usize = 14;
/// How many lines of what happened a failure shows.
const TRACE_LINES: usize = 14;
/// Turns at one instant after which a worker will never come to rest.
const TURNS_MAX: usize = 10_000;
/// Time always passes, also if a deadline is over: the timing wheel's ticks are about a millisecond.
const STEP_MIN: Duration = Duration::from_micros(100);

/// What a script wanted and did not get.
#[derive(Debug, Clone)]
pub struct Failure {
    pub line: usize,
    pub expected: String,
    pub came: String,
    /// The last of what was sent and received.
    pub trace: Vec<String>,
}

/// Plays a script in one mode.
///
/// # Errors
///
/// The first step that did not go as it is written.
///
/// # Panics
///
/// If we send a frame that is not well-formed, or the script has our client act on a connection that is gone.
pub fn play(script: &Script, mode: Mode) -> Result<(), Failure> {
    let mut stage = Stage::new(&script.settings, mode);
    let mut last = 0;
    for step in &script.steps {
        last = step.line;
        if step.only.is_none_or(|only| only == mode) {
            stage
                .step(&step.act)
                .map_err(|miss| stage.fail(step.line, miss))?;
        }
    }
    stage.finish().map_err(|miss| stage.fail(last, miss))
}

/// What was expected, and what came.
struct Miss(String, String);

/// What one connection's numbers are relative to, and what its segments must fit.
#[derive(Debug, Clone, Copy)]
struct Connection {
    peer: u32,
    /// 0 until we have sent a SYN.
    ours: Option<u32>,
    /// Bytes of data that the peer takes in one segment.
    peer_mss: usize,
}

/// A segment that we sent, and that no step has expected yet.
#[derive(Debug, Clone)]
struct Sent {
    at: Instant,
    segment: packets::Segment,
}

struct Stage {
    sim: Sim,
    ends: Ends,
    mtu: usize,
    our_port: u16,
    peer_port: u16,
    connections: BTreeMap<u16, Connection>,
    sent: VecDeque<Sent>,
    /// What our client does and is told; how many of its events were expected so far.
    client: Option<Arc<Mutex<Shared>>>,
    events_seen: usize,
    start: Instant,
    trace: Vec<String>,
}

impl Stage {
    fn new(settings: &Settings, mode: Mode) -> Self {
        let client = settings.client.then(Arc::default);
        let mut sim = Sim::new(config(settings, mode, client.as_ref()));
        if let Some(shared) = &client {
            resolve(&mut sim, shared, settings.version);
        }
        let version = settings.version;
        let (our_port, peer_port) = if settings.client {
            (OUR_CLIENT_PORT, PORT)
        } else {
            (settings.port, PEER_PORT)
        };
        Self {
            start: sim.now(),
            sim,
            ends: (version.client(), version.server()),
            mtu: settings.mtu,
            our_port,
            peer_port,
            connections: BTreeMap::new(),
            sent: VecDeque::new(),
            client,
            events_seen: 0,
            trace: Vec::new(),
        }
    }

    fn step(&mut self, act: &Act) -> Result<(), Miss> {
        match act {
            Act::Inject { segment, batched } => {
                self.require_silence("nothing that was not expected")?;
                self.inject(segment);
                if *batched { Ok(()) } else { self.settle() }
            }
            Act::Expect { segment, how } => self.expect(segment, *how),
            Act::TooBig { mtu, seq, len } => {
                let seq = self.connection().ours.unwrap_or(0).wrapping_add(*seq);
                let ports = (self.our_port, self.peer_port);
                let frame = packets::too_big(self.ends, ports, seq, *len, *mtu);
                self.sim.peer().inject(&frame);
                self.settle()
            }
            Act::Nothing => {
                self.settle()?;
                self.require_silence("nothing")
            }
            Act::Wait(time) => self.pass(self.sim.now() + *time, |_| false),
            Act::At(time) => {
                let until = self.start + *time;
                if until < self.sim.now() {
                    return Err(Miss(format!("{}", until - self.start), self.time()));
                }
                self.pass(until, |_| false)
            }
            Act::Jobs => {
                // A body's chunks are jobs that the last one makes for.
                while self.sim.run_jobs(1) > 0 {
                    self.settle()?;
                }
                Ok(())
            }
            Act::Drain => {
                self.sim.drain();
                self.settle()
            }
            Act::EngineOnly(on) => {
                self.sim.set_engine_only(*on);
                Ok(())
            }
            Act::PeerIsn(isn) => {
                let connection = self.connection();
                connection.ours = None;
                connection.peer = match *isn {
                    Isn::Is(number) => number,
                    Isn::Beyond(number) => connection.peer.wrapping_add(number),
                };
                Ok(())
            }
            Act::PeerPort(port) => {
                self.require_silence("nothing that was not expected")?;
                self.peer_port = *port;
                Ok(())
            }
            Act::Flows(count) => counted("flows", *count, self.sim.flows()),
            Act::Engines(count) => counted("engines", *count, self.sim.engines()),
            Act::TimeWait(count) => counted("time-wait", *count, self.sim.time_wait()),
            Act::Counter(name, count) => {
                let found = self.sim.counters().snapshot();
                let found = found.into_iter().find(|(known, _)| known == name);
                let found = found.ok_or_else(|| {
                    Miss(
                        format!("a counter {name}"),
                        "no counter of that name".into(),
                    )
                })?;
                counted(name, *count as usize, found.1 as usize)
            }
            Act::Open => {
                let version = if self.ends.0.is_ipv4() {
                    Version::V4
                } else {
                    Version::V6
                };
                let local = SocketAddr::new(version.server(), self.our_port);
                let peer = SocketAddr::new(version.client(), self.peer_port);
                self.wish(Wish::Open(local, peer, TOKEN))
            }
            Act::Send(bytes) => self.wish(Wish::Send(TOKEN, bytes.clone())),
            Act::Close => self.wish(Wish::Close(TOKEN)),
            Act::Abort => self.wish(Wish::Abort(TOKEN)),
            Act::Event(wanted) => {
                let came = self.next_event();
                if came.as_ref() == Some(wanted) {
                    return Ok(());
                }
                Err(Miss(format!("the event {wanted:?}"), format!("{came:?}")))
            }
            Act::NoEvent => match self.next_event() {
                None => Ok(()),
                Some(came) => Err(Miss("no event".into(), format!("{came:?}"))),
            },
        }
    }

    /// Nothing may be left when the script ends.
    fn finish(&mut self) -> Result<(), Miss> {
        self.settle()?;
        self.require_silence("nothing more before the end of the script")?;
        if let Some(event) = self.next_event() {
            let expected = "no more events before the end of the script";
            return Err(Miss(expected.into(), format!("{event:?}")));
        }
        let frames = self.sim.frames();
        if !frames.is_conserved() {
            return Err(Miss("all frames".into(), format!("{frames:?}")));
        }
        Ok(())
    }

    fn fail(&self, line: usize, Miss(expected, came): Miss) -> Failure {
        let shown = self.trace.len().saturating_sub(TRACE_LINES);
        Failure {
            line,
            expected,
            came,
            trace: self.trace[shown..].to_vec(),
        }
    }

    fn time(&self) -> String {
        (self.sim.now() - self.start).to_string()
    }

    /// The one that steps are about.
    fn connection(&mut self) -> &mut Connection {
        self.connections
            .entry(self.peer_port)
            .or_insert(Connection {
                peer: PEER_ISN,
                ours: None,
                peer_mss: usize::MAX,
            })
    }

    fn inject(&mut self, segment: &Described) {
        let default_mss = DEFAULT_MSS[usize::from(self.ends.0.is_ipv6())];
        let connection = self.connection();
        if segment.flags & SYN != 0 {
            let mss = segment.options.mss.map_or(default_mss, usize::from);
            connection.peer_mss = mss.max(LEAST_MSS);
        }
        let connection = *connection;
        let ours = connection.ours.unwrap_or(0);
        let acknowledges = segment.flags & ACK != 0;
        let Data::Bytes(payload) = &segment.data else {
            unreachable!("the parser lets no other data be sent")
        };
        let sent = packets::Segment {
            source_port: self.peer_port,
            destination_port: self.our_port,
            seq: connection.peer.wrapping_add(segment.seq),
            ack: if acknowledges {
                ours.wrapping_add(segment.ack)
            } else {
                0
            },
            flags: segment.flags,
            window: segment.window.unwrap_or(u16::MAX),
            options: encode(&segment.options, ours),
            payload: payload.clone(),
        };
        let mut bytes = sent.bytes(self.ends);
        bytes[18..20].copy_from_slice(&segment.urgent.to_be_bytes());
        packets::fix_transport(self.ends, TCP, &mut bytes, 16);
        self.sim.peer().inject(&packets::ip(self.ends, TCP, &bytes));
        let line = format!("{} > {}", self.time(), show(segment));
        self.trace.push(line);
    }

    fn expect(&mut self, wanted: &Described, how: How) -> Result<(), Miss> {
        let from = self.sim.now();
        match how {
            How::Within(_, latest) => self.pass(from + latest, |stage| !stage.sent.is_empty())?,
            _ => self.settle()?,
        }
        match how {
            How::Several => return self.expect_several(wanted),
            How::Times(least, most) => return self.expect_times(wanted, least, most),
            _ => {}
        }
        let Some(sent) = self.sent.front().cloned() else {
            if how == How::Optional {
                return Ok(());
            }
            return Err(Miss(show(wanted), format!("nothing by {}", self.time())));
        };
        let came = self.describe(&sent.segment);
        if !fits(wanted, &came) {
            if how == How::Optional {
                return Ok(());
            }
            return Err(Miss(show(wanted), show(&came)));
        }
        if let How::Within(earliest, latest) = how
            && !(from + earliest..=from + latest).contains(&sent.at)
        {
            let after = sent.at.total_micros() - from.total_micros();
            let expected = format!("{} after {earliest} to {latest}", show(wanted));
            return Err(Miss(expected, format!("the same after {after} µs")));
        }
        self.sent.pop_front();
        Ok(())
    }

    /// The data of one segment in several of them, without a gap.
    fn expect_several(&mut self, wanted: &Described) -> Result<(), Miss> {
        let mut next = wanted.clone();
        let mut bytes = Vec::new();
        let mut ended = false;
        while bytes.len() < wanted.data.size() {
            let miss = |came| {
                let so_far = bytes.len();
                Miss(
                    format!("{}, of which {so_far} bytes came", show(wanted)),
                    came,
                )
            };
            let Some(sent) = self.sent.front() else {
                return Err(miss("nothing more".into()));
            };
            let came = self.describe(&sent.segment);
            let last = bytes.len() + came.data.size() >= wanted.data.size();
            next.data = came.data.clone();
            ended = last && came.flags & FIN != 0;
            next.flags = wanted.flags & !FIN;
            if ended {
                next.flags |= wanted.flags & FIN;
            }
            let Data::Bytes(data) = &came.data else {
                unreachable!("what came is bytes")
            };
            if !fits(&next, &came) {
                return Err(miss(show(&came)));
            }
            next.seq = next.seq.wrapping_add(data.len() as u32);
            bytes.extend(data);
            self.sent.pop_front();
        }
        if !wanted.data.is(&bytes) {
            let came = format!("{} other bytes", bytes.len());
            return Err(Miss(show(wanted), came));
        }
        if wanted.flags & FIN != 0 && !ended {
            next.flags = wanted.flags;
            next.data = Data::default();
            return self.expect(&next, How::Next);
        }
        Ok(())
    }

    fn expect_times(&mut self, wanted: &Described, least: usize, most: usize) -> Result<(), Miss> {
        let next = |stage: &Self| Some(stage.describe(&stage.sent.front()?.segment));
        let mut times = 0;
        while next(self).is_some_and(|came| fits(wanted, &came)) {
            self.sent.pop_front();
            times += 1;
        }
        if (least..=most).contains(&times) {
            return Ok(());
        }
        let expected = format!("{least} to {most} times {}", show(wanted));
        let behind = next(self).map_or("nothing".into(), |came| show(&came));
        Err(Miss(expected, format!("{times}, then {behind}")))
    }

    fn require_silence(&mut self, expected: &str) -> Result<(), Miss> {
        match self.sent.front().cloned() {
            None => Ok(()),
            Some(sent) => {
                let came = show(&self.describe(&sent.segment));
                let at = sent.at - self.start;
                Err(Miss(expected.into(), format!("{came} at {at}")))
            }
        }
    }

    /// What we sent, as scripts write it.
    fn describe(&self, segment: &packets::Segment) -> Described {
        let connection = self.connections.get(&segment.destination_port);
        let (peer, ours) = connection.map_or((0, 0), |connection| {
            (connection.peer, connection.ours.unwrap_or(0))
        });
        let acknowledges = segment.flags & ACK != 0;
        Described {
            flags: segment.flags,
            seq: segment.seq.wrapping_sub(ours),
            ack: if acknowledges {
                segment.ack.wrapping_sub(peer)
            } else {
                0
            },
            ack_span: 0,
            window: Some(segment.window),
            urgent: 0,
            options: decode(&segment.options, peer),
            loose: false,
            data: Data::Bytes(segment.payload.clone()),
        }
    }

    /// Lets time pass until `done`, at most until then; timers run on the way.
    fn pass(&mut self, until: Instant, done: impl Fn(&Self) -> bool) -> Result<(), Miss> {
        loop {
            self.settle()?;
            let now = self.sim.now();
            if done(self) || now >= until {
                return Ok(());
            }
            let next = self.sim.next_deadline().unwrap_or(until);
            let next = next.max(now + STEP_MIN).min(until);
            self.sim.advance(next - now);
        }
    }

    /// Takes turns until nothing happens at this instant.
    fn settle(&mut self) -> Result<(), Miss> {
        for _ in 0..TURNS_MAX {
            let worked = self.sim.turn();
            self.collect()?;
            if !worked {
                return Ok(());
            }
        }
        let came = format!("{TURNS_MAX} turns at {}", self.time());
        Err(Miss("a worker that comes to rest".into(), came))
    }

    fn collect(&mut self) -> Result<(), Miss> {
        let frames: Vec<_> = std::iter::from_fn(|| self.sim.peer().take()).collect();
        for frame in frames {
            let packet = dissect(&frame);
            let ends = (packet.destination, packet.source);
            if packet.protocol != TCP || ends != self.ends || packet.link_destination != CLIENT_LINK
            {
                return Err(Miss("TCP to the peer".into(), format!("{packet:?}")));
            }
            let segment = packet.segment();
            if (segment.source_port, segment.destination_port) != (self.our_port, self.peer_port) {
                let ours = format!("port {} to {}", self.our_port, self.peer_port);
                return Err(Miss(ours, format!("{segment:?}")));
            }
            let connection = self.connection();
            if segment.flags & SYN != 0 {
                connection.ours.get_or_insert(segment.seq);
            }
            let (peer_mss, bytes) = (connection.peer_mss, segment.payload.len());
            let line = format!("{} < {}", self.time(), show(&self.describe(&segment)));
            self.trace.push(line);
            if frame.len() > ETHERNET_HEADER_BYTES + self.mtu {
                let came = format!("{} bytes on the wire", frame.len());
                return Err(Miss(format!("an MTU of {}", self.mtu), came));
            }
            if bytes > peer_mss {
                let came = format!("{bytes} bytes in a segment");
                return Err(Miss(format!("an MSS of {peer_mss}"), came));
            }
            let at = self.sim.now();
            self.sent.push_back(Sent { at, segment });
        }
        Ok(())
    }

    /// Has our client do something; it looks for wishes every millisecond.
    fn wish(&mut self, wish: Wish) -> Result<(), Miss> {
        let shared = self
            .client
            .as_ref()
            .ok_or_else(|| Miss("a client of ours".into(), "a server: `side client`".into()))?;
        let shared = Arc::clone(shared);
        shared.lock().unwrap().wishes.push(wish);
        let until = self.sim.now() + Duration::from_millis(2);
        self.pass(until, |_| shared.lock().unwrap().wishes.is_empty())?;
        match shared.lock().unwrap().refused.pop() {
            None => Ok(()),
            Some(error) => Err(Miss("a connection".into(), error.to_string())),
        }
    }

    /// What our client was told next; bytes that it was given one after another are one event.
    fn next_event(&mut self) -> Option<Told> {
        let shared = self.client.as_ref()?.lock().unwrap();
        let mut events = shared.events[self.events_seen..].iter().peekable();
        let mut seen = 1;
        let event = match events.next()? {
            Event::Connected(_) => Told::Connected,
            Event::Ended(_) => Told::Ended,
            Event::Closed(_, end) => Told::Closed(format!("{end:?}")),
            Event::Received(_, bytes) => {
                let mut all = bytes.clone();
                while let Some(Event::Received(_, more)) = events.peek() {
                    all.extend(more);
                    seen += 1;
                    events.next();
                }
                Told::Received(all)
            }
            other @ Event::Datagram(..) => panic!("{other:?}"),
        };
        self.events_seen += seen;
        Some(event)
    }
}

fn config(settings: &Settings, mode: Mode, client: Option<&Arc<Mutex<Shared>>>) -> SimConfig {
    let mut service = if settings.echo {
        stream(Echo)
    } else {
        stream(Lines)
    };
    service.slow = Some(Arc::new(Lines));
    service.idle_timeout = settings.idle_timeout;
    service.request_timeout = settings.request_timeout;
    service.keep_alive = settings.keep_alive;
    let mut config = SimConfig {
        mtu: settings.mtu,
        seed: settings.seed,
        engine_only: mode == Mode::Engine,
        streams: vec![service],
        ..SimConfig::default()
    };
    for (limit, count) in &settings.limits {
        let limits = &mut config.limits;
        match limit {
            Limit::Flows => limits.flows = *count as usize,
            Limit::TimeWait => limits.time_wait = *count as usize,
            Limit::Engines => limits.engines = *count as usize,
            Limit::HeldFrames => limits.held_frames = *count as u32,
            Limit::HeldPerFlow => limits.held_per_flow = *count as u8,
        }
    }
    if let Some(shared) = client {
        config.streams.clear();
        config.client = Some(told(shared));
        let mut shared = shared.lock().unwrap();
        shared.takes = settings.takes;
        shared.stays_open = settings.stays_open;
    }
    config
}

/// Has our client learn the peer's link address, from a worker that is there for that alone.
fn resolve(sim: &mut Sim, shared: &Mutex<Shared>, version: Version) {
    let mut neighbour = Sim::new(SimConfig {
        addresses: [(Version::V4, 24), (Version::V6, 64)]
            .map(|(version, prefix)| Cidr {
                address: version.client(),
                prefix,
            })
            .to_vec(),
        link: CLIENT_LINK,
        ..SimConfig::default()
    });
    shared.lock().unwrap().reach.push(version.client());
    for _ in 0..3 {
        sim.advance(Duration::from_millis(1));
        sim.turn();
        while let Some(question) = sim.peer().take() {
            neighbour.peer().inject(&question);
        }
        neighbour.turn();
        while let Some(answer) = neighbour.peer().take() {
            sim.peer().inject(&answer);
        }
    }
    let mut shared = shared.lock().unwrap();
    assert_eq!(shared.reached, [interruptlet::client::Reach::Ready]);
    shared.reach.clear();
}

fn counted(what: &str, wanted: usize, found: usize) -> Result<(), Miss> {
    if wanted == found {
        return Ok(());
    }
    Err(Miss(format!("{what} {wanted}"), found.to_string()))
}

/// Whether what came is what a script wants.
fn fits(wanted: &Described, came: &Described) -> bool {
    let Data::Bytes(bytes) = &came.data else {
        return false;
    };
    // What may be there though it is not named.
    let mut free = PSH & !wanted.flags;
    if wanted.flags & RST != 0 {
        free |= ACK & !wanted.flags;
    }
    let (named, options) = (&wanted.options, &came.options);
    let options_fit = if wanted.flags & SYN != 0 && !wanted.loose {
        named == options
    } else {
        (named.mss.is_none() || named.mss == options.mss)
            && (named.window_scale.is_none() || named.window_scale == options.window_scale)
            && (!named.sack_permitted || options.sack_permitted)
            && (named.blocks.is_empty() || named.blocks == options.blocks)
            && (named.raw.is_empty() || named.raw == options.raw)
    };
    let acknowledges = wanted.flags & ACK != 0;
    came.flags & !free == wanted.flags
        && came.seq == wanted.seq
        && (!acknowledges || came.ack.wrapping_sub(wanted.ack) <= wanted.ack_span)
        && wanted
            .window
            .is_none_or(|window| came.window == Some(window))
        && options_fit
        && wanted.data.is(bytes)
}

/// TCP options as they are in a header, in whole words (RFC 9293 section 3.1, RFC 7323, RFC 2018).
fn encode(options: &Options, isn: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mss) = options.mss {
        bytes.extend([2, 4]);
        bytes.extend(mss.to_be_bytes());
    }
    if let Some(shift) = options.window_scale {
        bytes.extend([3, 3, shift]);
    }
    if options.sack_permitted {
        bytes.extend([4, 2]);
    }
    if !options.blocks.is_empty() {
        bytes.extend([5, 2 + 8 * options.blocks.len() as u8]);
        for (from, to) in &options.blocks {
            bytes.extend(isn.wrapping_add(*from).to_be_bytes());
            bytes.extend(isn.wrapping_add(*to).to_be_bytes());
        }
    }
    bytes.extend(&options.raw);
    // No-operation fills the last word.
    bytes.resize(bytes.len().next_multiple_of(4), 1);
    bytes
}

fn decode(mut bytes: &[u8], isn: u32) -> Options {
    let mut options = Options::default();
    let number = |at: &[u8]| u32::from_be_bytes([at[0], at[1], at[2], at[3]]).wrapping_sub(isn);
    while let [kind, rest @ ..] = bytes {
        match kind {
            0 => break,
            1 => {
                bytes = rest;
                continue;
            }
            _ => {}
        }
        let len = usize::from(rest[0]);
        let (option, after) = bytes.split_at(len);
        match option {
            [2, 4, high, low] => options.mss = Some(u16::from_be_bytes([*high, *low])),
            [3, 3, shift] => options.window_scale = Some(*shift),
            [4, 2] => options.sack_permitted = true,
            [5, _, blocks @ ..] => {
                let blocks = blocks.chunks_exact(8);
                let blocks = blocks.map(|block| (number(block), number(&block[4..])));
                options.blocks.extend(blocks);
            }
            other => options.raw.extend(other),
        }
        bytes = after;
    }
    options
}

/// A segment as scripts write it.
fn show(segment: &Described) -> String {
    let names: Vec<_> = FLAGS
        .iter()
        .filter(|(_, flag)| segment.flags & flag != 0)
        .map(|(name, _)| *name)
        .collect();
    let mut text = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join("|")
    };
    text += &format!(" seq={}", segment.seq as i32);
    if segment.flags & ACK != 0 {
        text += &format!(" ack={}", segment.ack as i32);
        if segment.ack_span > 0 {
            text += &format!("..{}", segment.ack.wrapping_add(segment.ack_span) as i32);
        }
    }
    if let Some(window) = segment.window {
        text += &format!(" win={window}");
    }
    let options = &segment.options;
    if let Some(mss) = options.mss {
        text += &format!(" mss={mss}");
    }
    if let Some(shift) = options.window_scale {
        text += &format!(" wscale={shift}");
    }
    if options.sack_permitted {
        text += " sack";
    }
    for (from, to) in &options.blocks {
        text += &format!(" blocks={}-{}", *from as i32, *to as i32);
    }
    if !options.raw.is_empty() {
        text += &format!(" option={:02x?}", options.raw);
    }
    match &segment.data {
        Data::Any(least, most) => text += &format!(" len={least}..{most}"),
        Data::Bytes(bytes) if bytes.is_empty() => {}
        Data::Bytes(bytes) if bytes.len() <= 40 => {
            text += &format!(" \"{}\"", bytes.escape_ascii())
        }
        Data::Bytes(bytes) => {
            // Enough to tell one from another.
            let sum = checksum(&[bytes]);
            text += &format!(" len={} (checksum {sum:04x})", bytes.len());
        }
    }
    text
}
