//! Handlers that panic: the connection is reset or the datagram dropped, the core and everybody else go on, and a
//! handler that does it again and again leaves the core for a while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use common::handlers::{Lines, SlowDatagrams};
use common::packets::*;
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};
use interruptlet::sim::{Sim, SimConfig};

/// Warnings about port [`TOLD_PORT`], which one test has for itself.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
const TOLD_PORT: u16 = 4321;

struct Kept;

impl log::Log for Kept {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if line.contains(&format!("port {TOLD_PORT}:")) {
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// Panics in every call with a request that begins with `panic`, and leaves the others to [`Lines`]; echoes datagrams.
struct Panicky;

fn panic_if_asked(bytes: &[u8]) {
    assert!(!bytes.starts_with(b"panic"), "as the request wants it");
}

impl StreamInterruptlet for Panicky {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        if request.bytes().ends_with(b"\n") {
            panic_if_asked(request.bytes());
        }
        Lines.handle(request)
    }

    fn timed_out(&mut self, request: StreamRequest<'_>) -> StreamReply {
        panic_if_asked(request.bytes());
        Lines.timed_out(request)
    }

    fn overloaded(&mut self, _: StreamRequest<'_>) -> StreamReply {
        panic!("it always does")
    }
}

impl DatagramInterruptlet for Panicky {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        panic_if_asked(request.bytes());
        if request.bytes().starts_with(b"defer") {
            return request.defer();
        }
        let len = request.bytes().len();
        request.reply_in_place().send(len)
    }

    fn overloaded(&mut self, _: DatagramRequest<'_>) -> DatagramReply {
        panic!("it always does")
    }
}

fn panicky(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut lines = stream(Panicky);
    lines.slow = Some(Arc::new(Lines));
    let mut echo = datagram(Panicky);
    echo.slow = Some(Arc::new(SlowDatagrams));
    let mut config = SimConfig {
        streams: vec![lines],
        datagrams: vec![echo],
        ..SimConfig::default()
    };
    change(&mut config);
    Sim::new(config)
}

fn datagram_of(payload: &[u8]) -> Vec<u8> {
    udp((CLIENT_V4.into(), SERVER_V4.into()), (5000, PORT), payload)
}

/// Opens a connection on which a call of the handler panics, and checks that the peer is told so by a reset.
fn panic_once(sim: &mut Sim, port: u16) {
    let mut raw = Raw::open(sim, Version::V4, port);
    let answers = raw.send(sim, ACK, b"panic\n");
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].flags & RST, RST, "{answers:?}");
}

#[test]
fn a_panic_costs_its_own_connection_and_nothing_else() {
    for engine_only in [false, true] {
        let mut sim = panicky(|config| config.engine_only = engine_only);
        let mut other = Raw::open(&mut sim, Version::V4, 4000);
        panic_once(&mut sim, 5000);
        assert_eq!(counter(&sim, "handler_panics"), 1);
        assert_eq!(other.request(&mut sim, b"reply x\n"), b"<x>\n");
        assert_eq!(sim.flows(), 1);
        assert_at_rest(&mut sim);
    }
}

#[test]
fn a_panic_drops_its_datagram() {
    let mut sim = panicky(|_| {});
    assert!(exchange(&mut sim, &datagram_of(b"panic")).is_empty());
    assert_eq!(counter(&sim, "handler_panics"), 1);
    assert_eq!(exchange(&mut sim, &datagram_of(b"x")).len(), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn a_panic_about_a_late_request_or_a_full_slow_path_is_contained() {
    let mut sim = panicky(|config| config.limits.slow_queue = 1);
    let mut late = Raw::open(&mut sim, Version::V4, 5000);
    late.send(&mut sim, ACK, b"panic");
    sim.advance(Duration::from_secs(11));
    let ends: Vec<u8> = (0..40)
        .flat_map(|_| {
            sim.advance(Duration::from_millis(100));
            sim.turn();
            late.received(&sim)
        })
        .map(|segment| segment.flags & RST)
        .collect();
    assert_eq!(ends, [RST]);
    assert_eq!(counter(&sim, "handler_panics"), 1);

    let mut first = Raw::open(&mut sim, Version::V4, 5001);
    first.send(&mut sim, ACK, b"defer reply x\n");
    let mut refused = Raw::open(&mut sim, Version::V4, 5002);
    let answers = refused.send(&mut sim, ACK, b"defer reply y\n");
    assert!(answers.iter().any(|answer| answer.flags & RST != 0));
    assert_eq!(counter(&sim, "handler_panics"), 2);
    assert!(exchange(&mut sim, &datagram_of(b"defer")).is_empty());
    assert_eq!(counter(&sim, "handler_panics"), 3);

    sim.run_jobs(1);
    sim.turn();
    let answers = first.received(&sim);
    assert_eq!(first.take(&mut sim, &answers), b"<x>\n");
    assert_eq!(sim.flows(), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn repeated_panics_move_the_handler_to_the_slow_path_which_survives_them_too() {
    let mut sim = panicky(|_| {});
    for port in 5000..5007 {
        panic_once(&mut sim, port);
        sim.advance(Duration::from_millis(1400));
    }
    assert_eq!(counter(&sim, "services_demoted"), 0);
    panic_once(&mut sim, 5007);
    assert_eq!(counter(&sim, "services_demoted"), 1);
    assert_eq!(counter(&sim, "handler_panics"), 8);

    // The pool runs it now: a panic there costs a connection, too, and the next request is served.
    let mut raw = Raw::open(&mut sim, Version::V4, 6000);
    raw.send(&mut sim, ACK, b"panic\n");
    assert_eq!(sim.run_jobs(8), 1);
    sim.turn();
    let answers = raw.received(&sim);
    assert_eq!(answers[0].flags & RST, RST, "{answers:?}");
    assert_eq!(counter(&sim, "handler_panics"), 9);
    let mut raw = Raw::open(&mut sim, Version::V4, 6001);
    raw.send(&mut sim, ACK, b"reply x\n");
    assert_eq!(sim.run_jobs(8), 1);
    sim.turn();
    let answers = raw.received(&sim);
    assert_eq!(raw.take(&mut sim, &answers), b"<x>\n");

    // It comes back, as one that overran its budget does.
    sim.advance(Duration::from_secs(2));
    let mut raw = Raw::open(&mut sim, Version::V4, 6002);
    assert_eq!(raw.request(&mut sim, b"reply x\n"), b"<x>\n");
    assert_eq!(counter(&sim, "services_returned"), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn panics_that_are_far_apart_do_not_move_the_handler() {
    let mut sim = panicky(|_| {});
    for port in 5000..5050 {
        panic_once(&mut sim, port);
        sim.advance(Duration::from_millis(1450));
    }
    assert_eq!(counter(&sim, "handler_panics"), 50);
    assert_eq!(counter(&sim, "services_demoted"), 0);
}

#[test]
fn repeated_panics_about_datagrams_move_their_handler_and_cost_the_pool_nothing() {
    let mut sim = panicky(|_| {});
    for _ in 0..8 {
        exchange(&mut sim, &datagram_of(b"panic"));
    }
    assert_eq!(counter(&sim, "services_demoted"), 1);
    for payload in [&b"panic"[..], b"x"] {
        exchange(&mut sim, &datagram_of(payload));
    }
    assert_eq!(sim.run_jobs(8), 2);
    sim.turn();
    assert_eq!(sent(&sim).len(), 1);
    assert_eq!(counter(&sim, "handler_panics"), 9);
    assert_at_rest(&mut sim);
}

#[test]
fn panics_are_told_with_port_and_message_once_a_second() {
    log::set_logger(&Kept).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut sim = panicky(|config| config.datagrams[0].port = TOLD_PORT);
    let frame = udp(
        (CLIENT_V4.into(), SERVER_V4.into()),
        (5000, TOLD_PORT),
        b"panic",
    );
    let told = |lines: usize, last: &str| {
        let all = LINES.lock().unwrap();
        assert_eq!(all.len(), lines, "{all:?}");
        for part in ["UDP", last, "as the request wants it"] {
            assert!(all[lines - 1].contains(part), "no {part:?} in {all:?}");
        }
    };
    for millis in [0, 10, 900] {
        sim.advance(Duration::from_millis(millis));
        exchange(&mut sim, &frame);
        told(1, "dropped");
    }
    sim.advance(Duration::from_secs(1));
    for _ in 0..4 {
        exchange(&mut sim, &frame);
        told(2, "dropped");
    }
    exchange(&mut sim, &frame);
    told(3, "panicked too often");
    sim.advance(Duration::from_millis(999));
    exchange(&mut sim, &frame);
    sim.run_jobs(1);
    sim.turn();
    told(3, "panicked too often");
    assert_eq!(counter(&sim, "handler_panics"), 9);
}
