//! Handlers that stay on the core, handlers that leave it, and how these come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use common::handlers::{Echo, Takes, Timed};
use common::packets::*;
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
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
