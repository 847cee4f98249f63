//! Handlers that stay on the core, handlers that leave it, and how these come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use common::handlers::{Echo, Takes, Timed};
use common::packets::*;
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};
use interruptlet::sim::{Sim, SimConfig};

const QUICK: Takes = Takes::Work(Duration::from_micros(2));

/// A worker that echoes over TCP and UDP with handlers that take as long as they are told.
fn timed_echo(takes: Takes) -> (Sim, [Arc<Mutex<Takes>>; 2]) {
    let mut config = SimConfig::default();
    let (stream_echo, stream_takes) = Timed::new(Echo, takes, &config);
    config.streams = vec![stream(stream_echo)];
    let (datagram_echo, datagram_takes) = Timed::new(Echo, takes, &config);
    config.datagrams = vec![datagram(datagram_echo)];
    (Sim::new(config), [stream_takes, datagram_takes])
}

/// Sends a request over TCP and one over UDP, a second after the last ones, and checks that the core answers both.
fn served_on_the_core(sim: &mut Sim, raw: &mut Raw, turn: impl Fn(&mut Sim)) {
    let requests = || ["tcp_requests", "udp_requests"];
    let before = requests().map(|name| counter(sim, name));
    sim.advance(Duration::from_secs(1));
    sim.turn();
    sent(sim);
    let segment = raw.segment(ACK, b"x").frame(raw.ends);
    raw.seq = raw.seq.wrapping_add(1);
    let datagram = udp((CLIENT_V4.into(), SERVER_V4.into()), (5000, PORT), b"x");
    for frame in [segment, datagram] {
        sim.peer().inject(&frame);
        turn(sim);
    }
    let after = requests().map(|name| counter(sim, name));
    assert_eq!(after, before.map(|count| count + 1));
    raw.ack = raw.ack.wrapping_add(1);
    sent(sim);
}

fn turn(sim: &mut Sim) {
    sim.turn();
}

/// The cost of a frame besides its handler, such as waking a thread of the pool or touching an engine's memory for the
/// first time, is not charged to the handler.
#[test]
fn a_quick_handler_in_slow_frames_stays() {
    let (mut sim, _) = timed_echo(QUICK);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    for _ in 0..300 {
        served_on_the_core(&mut sim, &mut raw, |sim| {
            sim.turn_taking(Duration::from_millis(1));
        });
    }
    assert!(counter(&sim, "handlers_suspected") > 0);
    assert_eq!(counter(&sim, "handler_overruns"), 0);
    assert_eq!(counter(&sim, "services_demoted"), 0);
    assert_eq!(counter(&sim, "deferred"), 0);
}

#[test]
fn a_handler_whose_core_is_taken_away_stays() {
    let (mut sim, _) = timed_echo(Takes::Lose(Duration::from_millis(3)));
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    for _ in 0..300 {
        served_on_the_core(&mut sim, &mut raw, turn);
    }
    assert!(counter(&sim, "handler_preemptions") > 500);
    assert_eq!(counter(&sim, "handler_overruns"), 0);
    assert_eq!(counter(&sim, "services_demoted"), 0);
}

/// A handler that was slow for a while comes back by itself and stays.
#[test]
fn a_handler_that_is_quick_again_comes_back() {
    for slow in [Takes::Work, Takes::Wait] {
        let (mut sim, takes) = timed_echo(slow(Duration::from_millis(1)));
        let mut raw = Raw::open(&mut sim, Version::V4, 5000);
        // One call that makes the handler suspected, then four long overruns that are measured.
        for _ in 0..5 {
            served_on_the_core(&mut sim, &mut raw, turn);
        }
        assert_eq!(counter(&sim, "services_demoted"), 2);
        assert_eq!(counter(&sim, "deferred"), 0);
        let datagram = udp((CLIENT_V4.into(), SERVER_V4.into()), (5000, PORT), b"x");
        assert!(exchange(&mut sim, &datagram).is_empty());
        assert_eq!(counter(&sim, "deferred"), 1);
        for takes in takes {
            *takes.lock().unwrap() = QUICK;
        }
        // The core serves although the pool's job is not done yet.
        for _ in 0..500 {
            served_on_the_core(&mut sim, &mut raw, turn);
        }
        assert_eq!(sim.run_jobs(9), 1);
        sim.turn();
        assert_eq!(sent(&sim).len(), 1);
        assert_eq!(counter(&sim, "services_returned"), 2);
        assert_eq!(counter(&sim, "services_demoted"), 2);
        assert_eq!(counter(&sim, "deferred"), 1);
    }
}

/// A handler that waits in every call is tried more and more rarely.
#[test]
fn a_handler_that_blocks_is_tried_rarely() {
    let (mut sim, _) = timed_echo(Takes::Wait(Duration::from_millis(20)));
    let datagram = udp((CLIENT_V4.into(), SERVER_V4.into()), (5000, PORT), b"x");
    let begin = sim.now();
    let mut blocked = Duration::ZERO;
    while sim.now() < begin + Duration::from_secs(3600) {
        let before = sim.now();
        exchange(&mut sim, &datagram);
        blocked += sim.now() - before;
        sim.run_jobs(9);
        sim.advance(Duration::from_millis(100));
        sim.turn();
    }
    let demoted = counter(&sim, "services_demoted");
    assert!((5..30).contains(&demoted), "{demoted} times");
    assert!(blocked < Duration::from_secs(3600) / 100, "{blocked}");
}

/// Echoes. Says when a call on another thread than the test's begins, and waits there to be let go.
struct Held {
    test: thread::ThreadId,
    begun: Sender<()>,
    go_on: Receiver<()>,
}

impl Held {
    /// The handler, and the test's ends: what tells of calls, and what lets them go on.
    fn new() -> (Self, Receiver<()>, Sender<()>) {
        let (begun, calls) = channel();
        let (let_go, go_on) = channel();
        let test = thread::current().id();
        (Self { test, begun, go_on }, calls, let_go)
    }

    fn hold(&self) {
        if thread::current().id() != self.test {
            self.begun.send(()).unwrap();
            // Returns, too, when the test has dropped its end.
            let _ = self.go_on.recv();
        }
    }
}

impl StreamInterruptlet for Held {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        self.hold();
        StreamInterruptlet::handle(&mut Echo, request)
    }
}

impl DatagramInterruptlet for Held {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        self.hold();
        DatagramInterruptlet::handle(&mut Echo, request)
    }
}

/// Has the handler of one service away with the pool, one call of it going on there, and a second request behind that
/// when its time away ends. Once the first call is done, the pool makes none any more: the second request and all later
/// ones are served on the core, in the order of each connection. `request(n)` has peer `n` send one.
fn comes_back_from_a_busy_pool(
    sim: &mut Sim,
    takes: &Mutex<Takes>,
    calls: &Receiver<()>,
    let_go: Sender<()>,
    served: &str,
    mut request: impl FnMut(&mut Sim, usize),
) {
    for _ in 0..5 {
        request(sim, 0);
    }
    assert_eq!(counter(sim, "services_demoted"), 1);
    *takes.lock().unwrap() = QUICK;
    sent(sim);
    let on_core = counter(sim, served);

    // The time away is over, and a thread of the pool always has the handler.
    request(sim, 0);
    let first = thread::spawn(sim.take_job().unwrap());
    calls.recv().unwrap();
    sim.advance(Duration::from_secs(1));
    request(sim, 1);
    assert_eq!(counter(sim, served), on_core);
    let second = thread::spawn(sim.take_job().unwrap());
    drop(let_go);
    first.join().unwrap();
    second.join().unwrap();
    assert!(calls.try_recv().is_err(), "the pool keeps the handler");
    sim.turn();
    assert_eq!(counter(sim, "services_returned"), 1);
    assert_eq!(counter(sim, served), on_core + 1);
    for peer in [0, 1, 0, 1] {
        request(sim, peer);
    }
    assert_eq!(counter(sim, served), on_core + 5);
    assert_eq!(counter(sim, "deferred"), 2);
    assert_eq!(counter(sim, "replies_lost"), 0);
    assert_eq!(payloads_of(&sent(sim)).len(), 6);
}

/// The frames that carry a reply.
fn payloads_of(frames: &[Vec<u8>]) -> Vec<&Vec<u8>> {
    frames
        .iter()
        .filter(|frame| frame.ends_with(b"x"))
        .collect()
}

#[test]
fn a_busy_pool_keeps_no_stream_handler() {
    let mut config = SimConfig::default();
    let (held, calls, let_go) = Held::new();
    let (timed, takes) = Timed::new(held, Takes::Work(Duration::from_millis(1)), &config);
    config.streams = vec![stream(timed)];
    let mut sim = Sim::new(config);
    let mut peers = [5000, 5001].map(|port| Raw::open(&mut sim, Version::V4, port));
    comes_back_from_a_busy_pool(
        &mut sim,
        &takes,
        &calls,
        let_go,
        "tcp_requests",
        |sim, peer| {
            let raw = &mut peers[peer];
            let segment = raw.segment(ACK, b"x").frame(raw.ends);
            raw.seq = raw.seq.wrapping_add(1);
            raw.ack = raw.ack.wrapping_add(1);
            sim.peer().inject(&segment);
            sim.turn();
        },
    );
}

#[test]
fn a_busy_pool_keeps_no_datagram_handler() {
    let mut config = SimConfig::default();
    let (held, calls, let_go) = Held::new();
    let (timed, takes) = Timed::new(held, Takes::Work(Duration::from_millis(1)), &config);
    config.datagrams = vec![datagram(timed)];
    let mut sim = Sim::new(config);
    comes_back_from_a_busy_pool(
        &mut sim,
        &takes,
        &calls,
        let_go,
        "udp_requests",
        |sim, peer| {
            let ends = (CLIENT_V4.into(), SERVER_V4.into());
            let frame = udp(ends, (5000 + peer as u16, PORT), b"x");
            sim.peer().inject(&frame);
            sim.turn();
        },
    );
    assert!(sim.is_at_rest());
}

/// A demoted handler's request needs an engine, of which there may be none. Nothing of it was handled, so the peer may
/// send it again.
#[test]
fn a_request_for_a_demoted_handler_without_a_free_engine_is_dropped() {
    let mut config = SimConfig::default();
    let (timed, takes) = Timed::new(Echo, Takes::Work(Duration::from_millis(1)), &config);
    config.streams = vec![stream(timed)];
    config.limits.engines = 0;
    let mut sim = Sim::new(config);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    for _ in 0..5 {
        exchange(&mut sim, &raw.segment(ACK, b"x").frame(raw.ends));
        raw.seq = raw.seq.wrapping_add(1);
        raw.ack = raw.ack.wrapping_add(1);
    }
    assert_eq!(counter(&sim, "services_demoted"), 1);
    let request = raw.segment(ACK, b"x").frame(raw.ends);
    assert_eq!(exchange(&mut sim, &request), Vec::<Vec<u8>>::new());
    assert_eq!((counter(&sim, "engines_refused"), sim.flows()), (1, 1));
    *takes.lock().unwrap() = QUICK;
    sim.advance(Duration::from_secs(1));
    assert_eq!(payloads_of(&exchange(&mut sim, &request)).len(), 1);
}
