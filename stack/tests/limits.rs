//! The bounds of [`Limits`](interruptlet::Limits) that concern connections, at and beyond them: what the
//! documentation promises happens and is counted, nothing stalls, nothing leaks, and afterwards all is as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::handlers::{Lines, answer};
use common::packets::*;
use common::raw::Raw;
use common::seeds::for_some_seeds;
use common::world::{World, read};
use common::*;
use interruptlet::arena::Owner;
use interruptlet::port::faulty::Faults;
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::{Duration, Limits};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

/// No conversation of these takes longer: USER TIMEOUT, TIME-WAIT and a peer's backed-off timer fit in.
const PATIENCE: Duration = Duration::from_secs(600);
/// What goes wrong on the wire, besides nothing.
const LOSS: f64 = 0.06;
/// Worlds of an ordinary run; see [`common::seeds`].
const WORLDS: u64 = 3;

/// A worker of lines with other limits.
fn config(seed: u64, limit: &impl Fn(&mut Limits)) -> SimConfig {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    service.request_timeout = PATIENCE;
    // A reset that gets lost leaves a connection behind.
    service.idle_timeout = Some(Duration::from_secs(120));
    let mut config = SimConfig {
        streams: vec![service],
        seed,
        ..SimConfig::default()
    };
    limit(&mut config.limits);
    config
}

fn sim(limit: impl Fn(&mut Limits)) -> Sim {
    Sim::new(config(1, &limit))
}

/// A real client that sends `asks` one after the other, each when what was whole before it is answered, and closes.
struct Talk {
    handle: SocketHandle,
    asks: Vec<Vec<u8>>,
    /// Asks that were begun, and bytes of the last one that are left.
    begun: usize,
    left: Vec<u8>,
    expected: Vec<u8>,
    /// Bytes of the answers before each ask, and of all.
    due: Vec<usize>,
    received: Vec<u8>,
}

/// What the whole lines of `asks` are answered with.
fn answers(asks: &[Vec<u8>]) -> Vec<u8> {
    let asks = asks.concat();
    let lines = asks.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.filter(|line| line.ends_with(b"\n"));
    whole.flat_map(answer).collect()
}

impl Talk {
    fn begin(world: &mut World, version: Version, asks: &[&[u8]]) -> Self {
        let handle = world.connect(version);
        // A client whose connection is no more finds out.
        let socket = world.socket(handle);
        socket.set_keep_alive(Some(Duration::from_secs(10)));
        let asks: Vec<Vec<u8>> = asks.iter().map(|ask| ask.to_vec()).collect();
        Self {
            handle,
            begun: 0,
            left: Vec::new(),
            expected: answers(&asks),
            due: (0..=asks.len())
                .map(|count| answers(&asks[..count]).len())
                .collect(),
            asks,
            received: Vec::new(),
        }
    }

    fn is_whole(&self) -> bool {
        self.received == self.expected
    }

    /// Reads, writes or closes; returns whether the conversation is over.
    fn go_on(&mut self, world: &mut World) -> bool {
        let socket = world.socket(self.handle);
        read(socket, &mut self.received);
        assert!(self.expected.starts_with(&self.received));
        if matches!(socket.state(), State::Closed | State::TimeWait) {
            return true;
        }
        let answered = self.received.len() == self.due[self.begun];
        if self.left.is_empty() && answered {
            match self.asks.get(self.begun) {
                Some(ask) => self.left.clone_from(ask),
                None if socket.state() == State::Established => socket.close(),
                None => {}
            }
            self.begun = self.asks.len().min(self.begun + 1);
        }
        if socket.may_send() && !self.left.is_empty() {
            let sent = socket.send_slice(&self.left).unwrap();
            self.left.drain(..sent);
        }
        if socket.state() == State::CloseWait {
            socket.close();
        }
        false
    }
}

/// Clients at a worker with limits.
struct Crowd {
    world: World,
    talks: Vec<Talk>,
    /// The most that there ever was of each.
    flows: usize,
    engines: usize,
    held: u32,
    time_wait: usize,
}

impl Crowd {
    fn new(seed: u64, loss: f64, limit: impl Fn(&mut Limits)) -> Self {
        let faults = Faults {
            loss,
            ..Faults::default()
        };
        Self {
            world: World::with_faults(config(seed, &limit), faults),
            talks: Vec::new(),
            flows: 0,
            engines: 0,
            held: 0,
            time_wait: 0,
        }
    }

    /// `count` clients that ask for the same, half of them over each version.
    fn join(&mut self, count: usize, asks: &[&[u8]]) {
        for number in 0..count {
            let talk = Talk::begin(&mut self.world, BOTH[number % 2], asks);
            self.talks.push(talk);
        }
    }

    /// Lets all of them talk until they are done.
    fn talk(&mut self) {
        let Self {
            world,
            talks,
            flows,
            engines,
            held,
            time_wait,
        } = self;
        let over = world.run_until(PATIENCE, |world| {
            let sim = &world.sim;
            *flows = (*flows).max(sim.flows() - sim.time_wait());
            *engines = (*engines).max(sim.engines());
            *held = (*held).max(sim.frames().of(Owner::Flow));
            *time_wait = (*time_wait).max(sim.time_wait());
            let talking = talks.iter_mut().filter_map(|talk| {
                let over = talk.go_on(world);
                (!over).then_some(())
            });
            talking.count() == 0
        });
        assert!(over, "it stalls\n{}", world.history());
    }

    fn count(&self, name: &str) -> u64 {
        counter(&self.world.sim, name)
    }

    fn whole(&self) -> usize {
        self.talks.iter().filter(|talk| talk.is_whole()).count()
    }

    fn assert_all_whole(&self) {
        assert_eq!(
            self.whole(),
            self.talks.len(),
            "{:?}\n{}",
            self.world.sim.counters().snapshot(),
            self.world.history()
        );
    }

    /// When nobody presses any more: nothing is left, and whoever comes is served.
    fn assert_recovers(mut self) {
        self.world.wire.set_faults(Faults::default());
        self.assert_empty();
        for version in BOTH {
            // In two halves: that takes an engine.
            let asks: [&[u8]; 3] = [
                b"place hello\nreply you\n",
                b"place he",
                b"re\ncontent 9000\n",
            ];
            self.talks = vec![Talk::begin(&mut self.world, version, &asks)];
            self.talk();
            self.assert_all_whole();
            self.assert_empty();
        }
    }

    fn assert_empty(&mut self) {
        let gone = self
            .world
            .run_until(PATIENCE, |world| world.sim.flows() == 0);
        assert!(gone, "a connection is left\n{}", self.world.history());
        assert_eq!(self.world.sim.engines(), 0);
        self.world.run_for(Duration::from_secs(1));
        assert_at_rest(&mut self.world.sim);
        assert_eq!(self.world.sim.frames().of(Owner::Flow), 0);
    }
}

/// Carries `scenario`, the test called `name`, out in a world without loss, and in some with.
fn worlds(name: &str, scenario: impl Fn(u64, f64)) {
    for_some_seeds(name, WORLDS, |seed| {
        scenario(seed, if seed == 0 { 0.0 } else { LOSS });
    });
}

/// Lets time pass, and returns what comes to `raw` meanwhile.
fn wait(sim: &mut Sim, raw: &Raw, millis: u64) -> Vec<Segment> {
    let mut all = Vec::new();
    for _ in 0..millis / 10 {
        sim.advance(Duration::from_millis(10));
        sim.turn();
        all.extend(raw.received(sim));
    }
    all
}

fn resets(answers: &[Segment]) -> bool {
    answers.iter().any(|answer| answer.flags & RST != 0)
}

/// Has a peer reset its connection.
fn reset(sim: &mut Sim, raw: &mut Raw) {
    raw.send(sim, RST, b"");
}

/// All connections are over, and TIME-WAIT too.
fn assert_forgotten(sim: &mut Sim) {
    sim.advance(Duration::from_secs(61));
    for _ in 0..4 {
        sim.turn();
    }
    assert_eq!((sim.flows(), sim.engines()), (0, 0));
    assert_at_rest(sim);
    assert_eq!(sim.frames().of(Owner::Flow), 0);
}

// held_per_flow, held_frames

#[test]
fn a_connection_holds_as_many_frames_as_it_may_and_then_gets_an_engine() {
    for version in BOTH {
        let mut sim = sim(|limits| limits.held_per_flow = 2);
        let mut raw = Raw::open(&mut sim, version, 5000);
        for held in 1..=2 {
            assert_eq!(raw.send(&mut sim, ACK | PSH, b"reply a\n").len(), 1);
            assert_eq!((sim.frames().of(Owner::Flow), sim.engines()), (held, 0));
        }
        let more = raw.send(&mut sim, ACK | PSH, b"reply b\n");
        assert_eq!(more[0].payload, b"<b>\n");
        // Its bytes are the engine's now, all of them.
        assert_eq!((sim.frames().of(Owner::Flow), sim.engines()), (0, 1));
        assert_eq!(counter(&sim, "summoned_held_frames"), 1);
        // Acknowledged, it needs none any more.
        raw.ack = raw.ack.wrapping_add(12);
        assert!(raw.send(&mut sim, ACK, b"").is_empty());
        assert_eq!((sim.engines(), counter(&sim, "dismissed")), (0, 1));
        assert_eq!(raw.request(&mut sim, b"reply c\n"), b"<c>\n");
        assert_eq!(sim.engines(), 0);
        reset(&mut sim, &mut raw);
        assert_forgotten(&mut sim);
    }
}

/// A reply in several frames counts as several.
#[test]
fn a_reply_of_more_frames_than_may_be_held_leaves_through_an_engine() {
    let mut sim = sim(|limits| limits.held_per_flow = 2);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let two = raw.send(&mut sim, ACK | PSH, b"content 2900\n");
    assert_eq!((two.len(), sim.engines()), (2, 0));
    assert_eq!(raw.take(&mut sim, &two), pattern(2900));
    let three = raw.send(&mut sim, ACK | PSH, b"content 4000\n");
    assert_eq!(counter(&sim, "summoned_held_frames"), 1);
    assert_eq!(raw.take(&mut sim, &three), pattern(4000));
    reset(&mut sim, &mut raw);
    assert_forgotten(&mut sim);
}

#[test]
fn all_connections_together_hold_as_many_frames_as_they_may() {
    let mut sim = sim(|limits| limits.held_frames = 3);
    let mut peers: Vec<Raw> = (0..4)
        .map(|number| Raw::open(&mut sim, BOTH[number % 2], 5000 + number as u16))
        .collect();
    for raw in &mut peers {
        assert_eq!(raw.send(&mut sim, ACK | PSH, b"reply a\n").len(), 1);
    }
    assert_eq!((sim.frames().of(Owner::Flow), sim.engines()), (3, 1));
    assert_eq!(counter(&sim, "summoned_held_frames"), 1);
    // One acknowledges: its frame is another one's.
    let mut first = peers.remove(0);
    first.ack = first.ack.wrapping_add(4);
    first.send(&mut sim, ACK, b"");
    assert_eq!(sim.frames().of(Owner::Flow), 2);
    assert_eq!(peers[0].send(&mut sim, ACK | PSH, b"reply b\n").len(), 1);
    assert_eq!((sim.frames().of(Owner::Flow), sim.engines()), (3, 1));
    for raw in peers.iter_mut().chain([&mut first]) {
        reset(&mut sim, raw);
    }
    assert_forgotten(&mut sim);
}

/// Requests that nobody waits for the answers of, and replies of many segments.
#[test]
fn clients_hear_everything_however_few_frames_may_be_held() {
    let many = b"reply you\n".repeat(200);
    worlds(
        "clients_hear_everything_however_few_frames_may_be_held",
        |seed, loss| {
            for (per_flow, total) in [(1, 256), (20, 1), (2, 3)] {
                let mut crowd = Crowd::new(seed, loss, |limits| {
                    limits.held_per_flow = per_flow;
                    limits.held_frames = total;
                });
                crowd.join(
                    6,
                    &[
                        b"place hello\n",
                        &many,
                        b"content 4000\n",
                        b"content 30000\n",
                    ],
                );
                crowd.join(4, &[b"defer place later\n", b"place bye\n"]);
                crowd.talk();
                crowd.assert_all_whole();
                assert!(
                    crowd.count("summoned_held_frames") > 0,
                    "{per_flow} of {total}"
                );
                assert!(crowd.held <= total.min(10 * u32::from(per_flow)));
                assert_eq!(crowd.count("engines_refused"), 0);
                crowd.assert_recovers();
            }
        },
    );
}

// engines

/// A worker with one engine, and the connection that has it: a request of it is not whole.
fn taken() -> (Sim, Raw) {
    let mut sim = sim(|limits| limits.engines = 1);
    let mut first = Raw::open(&mut sim, Version::V4, 4999);
    first.send(&mut sim, ACK | PSH, b"reply fi");
    assert_eq!((sim.engines(), counter(&sim, "engines_refused")), (1, 0));
    (sim, first)
}

/// The connection with the engine ends its request, whoever wanted one meanwhile, and gives the engine back: then
/// `next` can have it.
fn assert_given_back(mut sim: Sim, mut first: Raw) {
    assert_eq!(first.request(&mut sim, b"rst\n"), b"<first>\n");
    assert_eq!(sim.engines(), 0);
    let mut next = Raw::open(&mut sim, Version::V6, 6000);
    next.send(&mut sim, ACK | PSH, b"content 40");
    assert_eq!(sim.engines(), 1);
    assert_eq!(next.request(&mut sim, b"000\n"), pattern(40_000));
    for raw in [&mut first, &mut next] {
        reset(&mut sim, raw);
    }
    assert_forgotten(&mut sim);
}

#[test]
fn a_request_that_was_begun_and_takes_an_engine_ends_its_connection() {
    let requests: [&[u8]; 6] = [
        b"reply par",
        b"reply whole\nreply par",
        b"content 40000\n",
        b"defer reply x\n",
        b"reply whole\ndefer reply x\n",
        b"nothing\n",
    ];
    for version in BOTH {
        let (mut sim, first) = taken();
        for (number, request) in requests.into_iter().enumerate() {
            let mut raw = Raw::open(&mut sim, version, 5000 + number as u16);
            assert_eq!(raw.request(&mut sim, b"reply a\n"), b"<a>\n");
            let answers = raw.send(&mut sim, ACK | PSH, request);
            let text = request.escape_ascii();
            assert_eq!(answers.len(), 1, "{text}: {answers:?}");
            assert_eq!((answers[0].flags & RST, answers[0].seq), (RST, raw.ack));
            assert_eq!(
                counter(&sim, "engines_refused"),
                1 + number as u64,
                "{text}"
            );
            assert_eq!((sim.flows(), sim.engines()), (1, 1), "{text}");
            // What is late of it is answered as for any connection that is no more.
            assert!(resets(&raw.send(&mut sim, ACK, b"tial\n")));
        }
        assert_given_back(sim, first);
    }
}

/// The end of its connection is the end: nothing that came with the request is answered.
#[test]
fn a_connection_that_ends_for_want_of_an_engine_answers_nothing_behind_its_reset() {
    for version in BOTH {
        let (mut sim, first) = taken();
        let raw = Raw::open(&mut sim, version, 5000);
        let partial = raw.segment(ACK | PSH, b"reply whole\nreply par");
        let whole = raw.segment(ACK | PSH, b"reply whole\n");
        let requests = counter(&sim, "tcp_requests");
        // All at once: the peer repeats what it takes for lost.
        for segment in [&partial, &whole, &partial] {
            sim.peer().inject(&segment.frame(raw.ends));
        }
        sim.turn();
        let answers = raw.received(&sim);
        assert!(
            answers.iter().all(|answer| answer.flags & RST != 0),
            "{answers:?}"
        );
        assert_eq!(counter(&sim, "tcp_requests"), requests + 1);
        assert_given_back(sim, first);
    }
}

#[test]
fn what_a_peer_sends_again_is_dropped_when_there_is_no_engine() {
    let (mut sim, first) = taken();
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let requests = raw.segment(ACK | PSH, b"reply b\n");
    let ahead = Segment {
        seq: raw.seq.wrapping_add(8),
        ..requests.clone()
    };
    // It is dropped, and answered with what is missing.
    let answers = raw.send_segment(&mut sim, &ahead);
    let numbers = |segment: &Segment| (segment.flags, segment.ack, segment.payload.len());
    assert_eq!(
        answers.iter().map(numbers).collect::<Vec<_>>(),
        [(ACK, raw.seq, 0)]
    );
    assert_eq!(counter(&sim, "engines_refused"), 1);
    // The lost one comes, then the dropped one again.
    for _ in 0..2 {
        assert_eq!(raw.request(&mut sim, b"reply b\n"), b"<b>\n");
    }
    // A part of it is new: none is taken, and nothing of it is lost.
    let overlapping = Segment {
        seq: raw.seq.wrapping_sub(8),
        ..raw.segment(ACK | PSH, b"reply b\nreply c\n")
    };
    let answers = raw.send_segment(&mut sim, &overlapping);
    assert_eq!(
        answers.iter().map(numbers).collect::<Vec<_>>(),
        [(ACK, raw.seq, 0)]
    );
    assert_eq!(counter(&sim, "engines_refused"), 2);
    assert_eq!(raw.request(&mut sim, b"reply c\n"), b"<c>\n");
    reset(&mut sim, &mut raw);
    assert_given_back(sim, first);
}

/// RFC 6298 sections 5.4 to 5.6: what is lost is sent again, at intervals that double, engine or not.
#[test]
fn what_is_lost_is_sent_again_without_an_engine() {
    for version in BOTH {
        for close in [false, true] {
            let (mut sim, first) = taken();
            let mut raw = Raw::open(&mut sim, version, 5000);
            let request: &[u8] = if close { b"close\n" } else { b"content 2000\n" };
            let lost = raw.send(&mut sim, ACK | PSH, request);
            // Duplicate acknowledgements have an engine retransmit. There is none: the timer does.
            for _ in 0..5 {
                assert!(raw.send(&mut sim, ACK, b"").is_empty());
            }
            assert_eq!(counter(&sim, "engines_refused"), 1);
            let mut times = Vec::new();
            let started = sim.now();
            while times.len() < 4 {
                for again in wait(&mut sim, &raw, 10) {
                    assert_eq!(
                        (again.seq, &again.payload, again.flags & FIN),
                        (lost[0].seq, &lost[0].payload, lost[0].flags & FIN)
                    );
                    times.push((sim.now() - started).total_millis());
                }
                assert!(sim.now() - started < Duration::from_secs(60), "{times:?}");
            }
            assert!((1000..=1020).contains(&times[0]), "{times:?}");
            for pair in times.windows(2) {
                assert!(pair[1] >= pair[0] * 2, "{times:?}");
            }
            assert_eq!((sim.engines(), counter(&sim, "engines_refused")), (1, 5));
            // Each of the others in its turn, when the one before it is acknowledged.
            let mut heard = raw.take(&mut sim, &lost[..1]);
            for segment in &lost[1..] {
                let again = wait(&mut sim, &raw, 10_000);
                assert_eq!(again[0].payload, segment.payload);
                heard.extend(raw.take(&mut sim, &again[..1]));
            }
            if close {
                assert_eq!(heard, b"bye\n");
                assert!(!raw.send(&mut sim, FIN | ACK, b"").is_empty());
                assert_eq!(sim.time_wait(), 1);
            } else {
                assert_eq!(heard, pattern(2000));
                assert_eq!(raw.request(&mut sim, b"reply on\n"), b"<on>\n");
                assert!(wait(&mut sim, &raw, 70_000).is_empty());
                reset(&mut sim, &mut raw);
            }
            assert_given_back(sim, first);
        }
    }
}

/// RFC 9293 section 3.8.3.
#[test]
fn a_peer_that_takes_nothing_is_given_up_without_an_engine() {
    let (mut sim, first) = taken();
    let mut raw = Raw::open(&mut sim, Version::V6, 5000);
    assert_eq!(raw.send(&mut sim, ACK | PSH, b"reply x\n").len(), 1);
    let again = wait(&mut sim, &raw, 99_000);
    assert!(again.len() > 3 && !resets(&again), "{again:?}");
    let end = wait(&mut sim, &raw, 70_000);
    assert!(resets(&end), "{end:?}");
    assert_eq!((sim.flows(), sim.frames().of(Owner::Flow)), (1, 0));
    assert_given_back(sim, first);
}

/// A client that has an engine, the one after those of `count - 1` others, and keeps it: its request is never whole.
fn hog(crowd: &mut Crowd, count: usize) -> SocketHandle {
    let handle = crowd.world.connected(Version::V4);
    crowd.world.socket(handle).send_slice(b"place ").unwrap();
    let taken = crowd
        .world
        .run_until(PATIENCE, |world| world.sim.engines() == count);
    assert!(taken);
    handle
}

fn let_go(crowd: &mut Crowd, hog: SocketHandle) {
    crowd.world.socket(hog).abort();
}

/// Whole requests with small replies never take an engine but for losses, and losses are made good without.
#[test]
fn clients_with_small_requests_do_without_engines() {
    let refused = Cell::new(0);
    worlds(
        "clients_with_small_requests_do_without_engines",
        |seed, loss| {
            for kept in [false, true] {
                let mut crowd = Crowd::new(seed, loss, |limits| limits.engines = 1);
                let hog = kept.then(|| hog(&mut crowd, 1));
                crowd.join(
                    20,
                    &[
                        b"place hello\n",
                        b"reply you\n",
                        b"content 2000\n",
                        b"reply me\n",
                    ],
                );
                crowd.join(4, &[b"place hello\n", b"close\n"]);
                crowd.talk();
                crowd.assert_all_whole();
                assert!(crowd.engines <= 1);
                if loss == 0.0 {
                    assert_eq!(crowd.count("engines_refused"), 0);
                }
                refused.set(refused.get() + crowd.count("engines_refused"));
                if let Some(hog) = hog {
                    let_go(&mut crowd, hog);
                }
                crowd.assert_recovers();
            }
        },
    );
    assert!(refused.get() > 0);
}

/// Everybody needs one at once: whoever gets it is served, the others are reset; nobody waits.
#[test]
fn clients_that_all_need_the_only_engine_are_served_or_reset() {
    worlds(
        "clients_that_all_need_the_only_engine_are_served_or_reset",
        |seed, loss| {
            for kept in [false, true] {
                let mut crowd = Crowd::new(seed, loss, |limits| limits.engines = 1);
                let hog = kept.then(|| hog(&mut crowd, 1));
                let long = [b"place ".to_vec(), vec![b'x'; 3000], b"\n".to_vec()].concat();
                crowd.join(6, &[&long, b"place bye\n"]);
                crowd.join(6, &[b"content 50000\n", b"place bye\n"]);
                crowd.join(6, &[b"defer place slow\n", b"place bye\n"]);
                crowd.join(6, &[b"defer source 50000 7000\n", b"place bye\n"]);
                crowd.join(6, &[b"place hello\n", b"reply bye\n"]);
                crowd.talk();
                let (simple, others) = (&crowd.talks[24..], &crowd.talks[..24]);
                assert!(simple.iter().all(Talk::is_whole));
                let whole = others.iter().filter(|talk| talk.is_whole()).count();
                assert!(if kept { whole == 0 } else { whole > 0 }, "{whole}");
                assert!(crowd.count("engines_refused") > 0 && crowd.engines == 1);
                if let Some(hog) = hog {
                    let_go(&mut crowd, hog);
                }
                crowd.assert_recovers();
            }
        },
    );
}

/// Where every segment is to be handled by an engine, those that there are no engines for are handled without.
#[test]
fn connections_beyond_the_engines_are_served_without() {
    worlds(
        "connections_beyond_the_engines_are_served_without",
        |seed, loss| {
            let mut crowd = Crowd::new(seed, loss, |limits| limits.engines = 2);
            crowd.world.sim.set_engine_only(true);
            // They have the engines, and keep them.
            let first = [1, 2].map(|count| hog(&mut crowd, count));
            crowd.join(12, &[b"place hello\n", b"reply you\n"]);
            crowd.talk();
            crowd.assert_all_whole();
            assert_eq!(crowd.engines, 2);
            assert!(crowd.count("engines_refused") > 0);
            for handle in first {
                crowd.world.socket(handle).abort();
            }
            crowd.world.sim.set_engine_only(false);
            crowd.assert_recovers();
        },
    );
}

// flows

#[test]
fn a_handshake_that_completes_when_the_table_is_full_is_ignored_and_may_come_again() {
    for version in BOTH {
        let mut sim = sim(|limits| limits.flows = 2);
        let mut late = [5000, 5001].map(|port| {
            let mut raw = Raw::new(version, port);
            raw.ack = raw.syn(&mut sim)[0].seq.wrapping_add(1);
            raw
        });
        let mut first = [6000, 6001].map(|port| Raw::open(&mut sim, version, port));
        for raw in &mut late {
            let again = raw.clone();
            assert!(raw.send(&mut sim, ACK, b"reply late\n").is_empty());
            *raw = again;
        }
        assert_eq!(counter(&sim, "flows_refused"), 2);
        assert!(Raw::new(version, 6002).syn(&mut sim).is_empty());
        assert_eq!((counter(&sim, "flows_refused"), sim.flows()), (3, 2));
        for raw in &mut first {
            assert_eq!(raw.request(&mut sim, b"reply a\n"), b"<a>\n");
            reset(&mut sim, raw);
        }
        // There is room: it comes again in time, or too late for what it returns to be known.
        assert_eq!(late[0].request(&mut sim, b"reply late\n"), b"<late>\n");
        sim.advance(Duration::from_secs(140));
        assert!(resets(&late[1].send(&mut sim, ACK, b"reply late\n")));
        assert_eq!(sim.flows(), 1);
        reset(&mut sim, &mut late[0]);
        assert_forgotten(&mut sim);
    }
}

#[test]
fn more_clients_than_connections_are_served_in_turn() {
    worlds(
        "more_clients_than_connections_are_served_in_turn",
        |seed, loss| {
            for flows in [1, 4] {
                let mut crowd = Crowd::new(seed, loss, |limits| limits.flows = flows);
                crowd.join(6, &[b"place hello\n", b"reply you\n"]);
                crowd.join(6, &[b"content 20000\n"]);
                crowd.talk();
                // Who was sent a cookie, and found no room for as long as it is good, is reset.
                let late = crowd.talks.len() - crowd.whole();
                assert!(late as u64 <= crowd.count("cookies_refused"));
                assert_eq!(crowd.flows, flows);
                assert!(crowd.count("flows_refused") > 0);
                crowd.assert_recovers();
            }
        },
    );
}

// time_wait

#[test]
fn clients_that_are_closed_first_are_served_however_few_may_be_in_time_wait() {
    worlds(
        "clients_that_are_closed_first_are_served_however_few_may_be_in_time_wait",
        |seed, loss| {
            for most in [1, 3] {
                let mut crowd = Crowd::new(seed, loss, |limits| limits.time_wait = most);
                for _ in 0..4 {
                    crowd.join(8, &[b"place hello\n", b"close\n"]);
                    crowd.talk();
                    crowd.assert_all_whole();
                }
                assert_eq!(crowd.time_wait, most);
                assert!(crowd.count("time_wait_evicted") >= 32 - 2 * most as u64);
                crowd.assert_recovers();
            }
        },
    );
}

// frames

#[test]
fn clients_are_served_with_hardly_any_frames() {
    worlds("clients_are_served_with_hardly_any_frames", |seed, loss| {
        for frames in [8, 16, 24] {
            let mut crowd = Crowd::new(seed, loss, |limits| limits.frames = frames);
            let many = b"reply you\n".repeat(100);
            crowd.join(
                6,
                &[b"place hello\n", &many, b"content 20000\n", b"reply bye\n"],
            );
            crowd.join(
                6,
                &[
                    b"defer source 20000 5000\n",
                    b"defer place later\n",
                    b"place bye\n",
                ],
            );
            crowd.join(4, &[b"place hello\n", b"close\n"]);
            crowd.talk();
            crowd.assert_all_whole();
            let lacked = crowd.count("tx_no_frame") + crowd.count("summoned_no_frame");
            assert!(lacked > 0 || frames > 8);
            crowd.assert_recovers();
        }
    });
}

/// The worst of all: everything is scarce at once.
#[test]
fn clients_are_served_or_reset_where_everything_is_scarce() {
    worlds(
        "clients_are_served_or_reset_where_everything_is_scarce",
        |seed, loss| {
            for frames in [8, 24] {
                let mut crowd = Crowd::new(seed, loss, |limits| {
                    limits.frames = frames;
                    limits.engines = 1;
                    limits.flows = 8;
                    limits.held_frames = frames / 2;
                    limits.held_per_flow = 2;
                    limits.time_wait = 1;
                });
                crowd.join(6, &[b"place hello\n", b"content 20000\n", b"reply bye\n"]);
                crowd.join(6, &[b"defer source 20000 5000\n", b"place bye\n"]);
                crowd.join(6, &[b"place hello\n", b"close\n"]);
                crowd.talk();
                assert!(crowd.whole() > 0);
                assert!(crowd.engines <= 1 && crowd.flows <= 8 && crowd.held <= frames / 2);
                crowd.assert_recovers();
            }
        },
    );
}
