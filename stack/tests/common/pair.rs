//! Two simulated workers on one wire and one virtual time: a server, and one with a client side that the
//! test tells what to do.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use interruptlet::client::{
    Client, Core, Datagram, Datagrams, End, OpenError, Reach, Stream, StreamId,
};
use interruptlet::port::faulty::Faults;
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::{Cidr, Duration, Instant};

use super::lane::Lane;
use super::oracle::Oracle;
use super::packets::{TCP, try_dissect};
use super::{CLIENT_LINK, PORT, Version, pattern};

/// See [`Shared::tick`].
const TICK: Duration = Duration::from_millis(1);

/// What happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Connected(u64),
    Received(u64, Vec<u8>),
    Ended(u64),
    Closed(u64, End),
    Datagram(SocketAddr, SocketAddr, Vec<u8>),
}

/// What the client does in its next turn.
pub enum Wish {
    Open(SocketAddr, SocketAddr, u64),
    Send(u64, Vec<u8>),
    Close(u64),
    Abort(u64),
    Datagram(SocketAddr, SocketAddr, Vec<u8>),
}

/// What test and client share.
#[derive(Default)]
pub struct Shared {
    pub events: Vec<Event>,
    pub wishes: Vec<Wish>,
    pub refused: Vec<OpenError>,
    /// Peers to be resolved before the wishes are carried out, and what became of it.
    pub reach: Vec<IpAddr>,
    pub reached: Vec<Reach>,
    /// Bytes that are taken of what is shown; none is all.
    pub takes: Option<usize>,
    /// Nanoseconds from then to the next look, if not all was taken.
    pub pause: u64,
    /// Whether the end of the peer's side is answered with ours.
    pub stays_open: bool,
    /// How often the client looks for wishes; none is every millisecond.
    pub tick: Option<Duration>,
    open: Vec<(u64, StreamId)>,
    unsent: Vec<(u64, Vec<u8>)>,
}

struct Told(Arc<Mutex<Shared>>);

/// A client side that does what it is told.
pub fn told(shared: &Arc<Mutex<Shared>>) -> Box<dyn Client> {
    Box::new(Told(Arc::clone(shared)))
}

impl Client for Told {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        let mut shared = self.0.lock().unwrap();
        let peers = shared.reach.clone();
        shared.reached = peers.iter().map(|peer| core.reach(*peer)).collect();
        if shared.reached.contains(&Reach::Asking) {
            return Some(core.nanos() + 1_000_000);
        }
        for wish in std::mem::take(&mut shared.wishes) {
            match wish {
                Wish::Open(local, peer, token) => match core.open(local, peer, token) {
                    Ok(id) => shared.open.push((token, id)),
                    Err(error) => shared.refused.push(error),
                },
                Wish::Send(token, bytes) => {
                    let id = shared.id(token);
                    let waiting = shared.unsent.iter_mut().find(|(of, _)| *of == token);
                    if let Some((_, unsent)) = waiting {
                        unsent.extend(bytes);
                        continue;
                    }
                    let mut sent = 0;
                    let is_there = core.stream(id, |stream| sent = stream.send(&bytes));
                    assert!(is_there || shared.is_closed(token));
                    if is_there && sent < bytes.len() {
                        shared.unsent.push((token, bytes[sent..].to_vec()));
                    }
                }
                Wish::Close(token) => {
                    let is_there = core.stream(shared.id(token), |stream| stream.close());
                    assert!(is_there || shared.is_closed(token));
                }
                Wish::Abort(token) => {
                    let is_there = core.stream(shared.id(token), |stream| stream.abort());
                    assert!(is_there || shared.is_closed(token));
                }
                Wish::Datagram(local, peer, bytes) => {
                    assert!(core.datagrams().send(local, peer, &bytes));
                }
            }
        }
        Some(core.nanos() + shared.tick.unwrap_or(TICK).total_micros() * 1000)
    }

    fn connected(&mut self, stream: &mut Stream<'_>) {
        self.push(Event::Connected(stream.token()));
    }

    fn received(&mut self, bytes: &[u8], stream: &mut Stream<'_>) -> usize {
        let mut shared = self.0.lock().unwrap();
        let taken = shared
            .takes
            .map_or(bytes.len(), |most| most.min(bytes.len()));
        if taken < bytes.len() {
            stream.read_at(stream.nanos() + shared.pause);
        }
        if taken > 0 {
            let event = Event::Received(stream.token(), bytes[..taken].to_vec());
            shared.events.push(event);
        }
        taken
    }

    fn writable(&mut self, stream: &mut Stream<'_>) {
        let mut shared = self.0.lock().unwrap();
        let token = stream.token();
        if let Some(at) = shared.unsent.iter().position(|(of, _)| *of == token) {
            let (_, bytes) = shared.unsent.remove(at);
            let sent = stream.send(&bytes);
            assert!(sent > 0, "writable without room");
            if sent < bytes.len() {
                shared.unsent.push((token, bytes[sent..].to_vec()));
            }
        }
    }

    fn ended(&mut self, stream: &mut Stream<'_>) {
        self.push(Event::Ended(stream.token()));
        if !self.0.lock().unwrap().stays_open {
            stream.close();
        }
    }

    fn closed(&mut self, token: u64, end: End) {
        self.push(Event::Closed(token, end));
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, _datagrams: &mut Datagrams<'_>) {
        self.push(Event::Datagram(
            datagram.local,
            datagram.peer,
            datagram.payload.to_vec(),
        ));
    }
}

impl Told {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().events.push(event);
    }
}

impl Shared {
    fn id(&self, token: u64) -> StreamId {
        self.open.iter().find(|(of, _)| *of == token).unwrap().1
    }

    /// Whether the connection is over.
    pub fn is_closed(&self, token: u64) -> bool {
        let closed = |event: &Event| matches!(event, Event::Closed(of, _) if *of == token);
        self.events.iter().any(closed)
    }
}

/// The prefixes whose addresses the client's side has.
pub fn sources() -> Vec<Cidr> {
    ["10.9.1.0/24", "fd09:1::/64"]
        .map(|text| text.parse().unwrap())
        .to_vec()
}

/// A source address.
pub fn source(version: Version, host: u8, port: u16) -> SocketAddr {
    match version {
        Version::V4 => SocketAddr::from(([10, 9, 1, host], port)),
        Version::V6 => SocketAddr::from(([0xfd09, 1, 0, 0, 0, 0, 0, u16::from(host)], port)),
    }
}

/// The server's end.
pub fn server(version: Version) -> SocketAddr {
    SocketAddr::new(version.server(), PORT)
}

/// What is done to a worker before it sees a segment.
pub type BeforeSegment = Box<dyn FnMut(&mut Sim)>;

/// Sees what the server sends, and what becomes of it.
pub type Tap = Box<dyn FnMut(&[u8], bool, Instant)>;

/// Server, client, and the wire between them.
pub struct Pair {
    pub server: Sim,
    pub client: Sim,
    pub shared: Arc<Mutex<Shared>>,
    /// Whether frames get through.
    pub connected: bool,
    /// The wire, and who checks what each side sends on it.
    pub to_server: Lane,
    pub to_client: Lane,
    pub server_oracle: Option<Oracle>,
    pub client_oracle: Option<Oracle>,
    /// Called with each frame that the server sends, whether a copy of it arrives intact, and the time.
    pub tap: Option<Tap>,
    /// Called with the client before each segment that arrives there, which then has a turn of its own.
    pub before_client: Option<BeforeSegment>,
    /// Whether the slow path's jobs of the server run by themselves.
    pub runs_jobs: bool,
    /// The longest step of time: short where a test waits for something that no deadline knows of.
    pub step_max: Duration,
}

impl Pair {
    /// `change` makes the client's side differ from the default.
    pub fn new(server: SimConfig, change: impl FnOnce(&mut SimConfig)) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut client = SimConfig {
            addresses: Vec::new(),
            sources: sources(),
            link: CLIENT_LINK,
            seed: !server.seed,
            client: Some(told(&shared)),
            ..SimConfig::default()
        };
        change(&mut client);
        // An oracle cannot see the faults of a worker's own port.
        let oracle = |name, config: &SimConfig| {
            let sees = config.faults.is_perfect();
            sees.then(|| Oracle::new(name, config.mtu))
        };
        Self {
            server_oracle: oracle("server", &server),
            client_oracle: oracle("client", &client),
            server: Sim::new(server),
            client: Sim::new(client),
            shared,
            connected: true,
            to_server: Lane::perfect(),
            to_client: Lane::perfect(),
            tap: None,
            before_client: None,
            runs_jobs: false,
            step_max: Duration::from_millis(100),
        }
    }

    pub fn wish(&self, wish: Wish) {
        self.shared.lock().unwrap().wishes.push(wish);
    }

    /// Resolves the server for `version`.
    pub fn resolve(&mut self, version: Version) {
        self.shared.lock().unwrap().reach.push(version.server());
        self.settle();
        assert_eq!(
            self.shared.lock().unwrap().reached.last(),
            Some(&Reach::Ready)
        );
    }

    /// Lets the time pass after which the client looks for wishes.
    pub fn tick(&mut self) {
        let tick = self.shared.lock().unwrap().tick.unwrap_or(TICK);
        self.advance(self.client.now() + tick);
    }

    /// Moves frames and takes turns until nothing happens at this instant.
    pub fn settle(&mut self) {
        let shared = self.shared.lock().unwrap();
        let wanted = !shared.wishes.is_empty() || shared.reach.len() > shared.reached.len();
        drop(shared);
        if wanted {
            self.tick();
        }
        loop {
            let mut worked = self.client.turn();
            worked |= self.server.turn();
            worked |= self.runs_jobs && self.server.run_jobs(64) > 0;
            worked |= self.collect();
            worked |= self.deliver();
            // A wish that was carried out, or an event, may make for another one.
            if !worked {
                return;
            }
        }
    }

    /// Sets faults on the wire, between the oracles.
    pub fn set_faults(&mut self, faults: Faults, seed: u64) {
        self.to_server = Lane::new(faults, seed);
        self.to_client = Lane::new(faults, !seed);
    }

    /// Puts what both sides sent on its way. Returns whether there was anything.
    fn collect(&mut self) -> bool {
        let now = self.client.now();
        let mut moved = false;
        while let Some(frame) = self.client.peer().take() {
            moved = true;
            if let Some(oracle) = &mut self.client_oracle {
                oracle.emitted(&frame, now);
            }
            if self.connected {
                self.to_server.send(&frame, now);
            }
            self.client.peer().recycle(frame);
        }
        while let Some(frame) = self.server.peer().take() {
            moved = true;
            if let Some(oracle) = &mut self.server_oracle {
                oracle.emitted(&frame, now);
            }
            let arrives = self.connected && self.to_client.send(&frame, now);
            if let Some(tap) = &mut self.tap {
                tap(&frame, arrives, now);
            }
            self.server.peer().recycle(frame);
        }
        moved
    }

    /// Gives both sides what has arrived for them. Returns whether there was anything.
    fn deliver(&mut self) -> bool {
        let now = self.client.now();
        let mut moved = false;
        while self.to_server.take_with(now, |frame| {
            if let Some(oracle) = &mut self.server_oracle {
                oracle.delivered(frame, now);
            }
            self.server.peer().inject(frame);
        }) {
            moved = true;
        }
        while let Some(frame) = self.to_client.take(now) {
            moved = true;
            if let Some(oracle) = &mut self.client_oracle {
                oracle.delivered(&frame, now);
            }
            self.client.peer().inject(&frame);
            if let Some(before) = &mut self.before_client
                && try_dissect(&frame).is_ok_and(|packet| packet.protocol == TCP)
            {
                before(&mut self.client);
                self.client.turn();
            }
        }
        moved
    }

    /// Lets time pass in steps until `done` or for `patience`; returns whether it was done.
    pub fn run_until(&mut self, patience: Duration, mut done: impl FnMut(&Shared) -> bool) -> bool {
        let until = self.client.now() + patience;
        loop {
            self.settle();
            if done(&self.shared.lock().unwrap()) {
                return true;
            }
            let now = self.client.now();
            if now >= until {
                return false;
            }
            let next = [self.client.next_deadline(), self.server.next_deadline()]
                .into_iter()
                .chain([self.to_client.next_arrival(), self.to_server.next_arrival()])
                .flatten()
                .min()
                .unwrap_or(now + self.step_max)
                .min(now + self.step_max)
                .max(now + Duration::from_micros(1));
            self.advance(next);
        }
    }

    fn advance(&mut self, to: Instant) {
        let by = to - self.client.now();
        self.client.advance(by);
        self.server.advance(by);
    }

    /// What the oracles saw last.
    pub fn history(&self) -> String {
        let oracles = [&self.server_oracle, &self.client_oracle];
        oracles.into_iter().flatten().map(Oracle::history).collect()
    }

    pub fn events(&self) -> Vec<Event> {
        self.shared.lock().unwrap().events.clone()
    }

    /// All bytes that a connection received.
    pub fn received(&self, token: u64) -> Vec<u8> {
        let shared = self.shared.lock().unwrap();
        let of_token = shared.events.iter().filter_map(|event| match event {
            Event::Received(of, bytes) if *of == token => Some(bytes.as_slice()),
            _ => None,
        });
        of_token.collect::<Vec<_>>().concat()
    }

    /// Has `len` bytes echoed on a connection.
    pub fn echo(&mut self, token: u64, len: usize, patience: Duration) {
        let bytes = pattern(len);
        let before = self.received(token).len();
        self.wish(Wish::Send(token, bytes.clone()));
        let until = self.client.now() + patience;
        while self.received(token).len() < before + len && self.client.now() < until {
            self.run_until(self.step_max, |_| false);
        }
        let received = &self.received(token)[before..];
        assert_eq!(received.len(), len, "bytes that came back");
        assert!(*received == bytes, "other bytes came back");
    }
}
