//! Every counter is incremented somewhere: a scenario provokes it, or the list of exceptions says why not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::handlers::{DeferDatagrams, Echo, Lines, SlowDatagrams, Takes, Timed};
use common::packets::*;
use common::pair::{Pair, Wish, server, source};
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::interruptlet::{DatagramInterruptlet, DatagramReply, DatagramRequest};
use interruptlet::port::link::Faults;
use interruptlet::port::pipe::PIPE_BYTES_MAX;
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::telemetry::Counters;
use interruptlet::wire::Reject;

/// Counters, and what makes them count.
type Scenario = (&'static [&'static str], fn() -> Sim);

const SCENARIOS: &[Scenario] = &[
    (
        &[
            "rx_frames",
            "rx_bytes",
            "tx_frames",
            "tx_bytes",
            "tx_kicks",
            "rx_batches",
        ],
        ping,
    ),
    (&["icmp_echo_replies"], ping),
    (&["path_mtu_lowered", "icmp_too_big_ignored"], narrow_path),
    (&["neighbour_messages"], neighbours),
    (
        &[
            "neighbours_asked",
            "neighbours_learned",
            "active_opens",
            "client_datagrams",
        ],
        client,
    ),
    (&["udp_requests"], datagrams),
    (&["icmp_unreachables", "icmp_rate_limited"], closed_port),
    (&["udp_replies_cut"], long_datagram),
    (&["tcp_resets"], stray_segment),
    (
        &["flows_opened", "flows_established", "flows_closed"],
        connections,
    ),
    (
        &[
            "tcp_requests",
            "cookies_sent",
            "cookies_accepted",
            "direct_segments",
        ],
        connections,
    ),
    (&["cookies_refused"], stray_segment),
    (&["cookies_early"], early_segment),
    (&["flows_refused"], full_table),
    (
        &[
            "summoned_partial_request",
            "engine_segments",
            "dismissed",
            "engines_refused",
        ],
        partial_requests,
    ),
    (&["summoned_out_of_order"], out_of_order),
    (&["summoned_deferred"], abandoned),
    (&["summoned_demoted"], demoted),
    (&["summoned_large_reply"], stalled),
    (&["summoned_timeout", "summoned_duplicate_acks"], unanswered),
    (&["summoned_held_frames"], held_frames),
    (&["summoned_no_frame"], no_frame_to_reply),
    (&["summoned_client"], slow_reader),
    (&["summoned_asked"], engine_only),
    (&["segments_unacceptable", "challenges"], old_segments),
    (&["keep_alive_probes", "keep_alive_timeouts"], silent_peer),
    (
        &["deferred", "deferred_copied", "deferred_refused"],
        deferrals,
    ),
    (&["deferred_abandoned"], abandoned),
    (&["bodies_failed"], failing_body),
    (&["replies_lost"], late_reply),
    (
        &[
            "handlers_suspected",
            "handler_overruns",
            "services_demoted",
            "services_returned",
        ],
        overruns,
    ),
    (&["handler_preemptions"], preemptions),
    (&["handler_panics"], panics),
    (&["request_timeouts"], slow_request),
    (&["idle_timeouts"], idle),
    (&["stall_timeouts"], stalled),
    (&["gap_timeouts"], a_gap_that_stays),
    (&["time_wait_evicted"], time_waits),
    (&["time_wait_reused"], reused_ends),
    (&["time_wait_unanswered"], repeated_fins),
    (&["tx_no_frame"], no_frame),
    (&["link_overflows"], a_full_link),
];

const PUBLISHED: &str =
    "what is there now is published between turns, which the simulation takes itself";

const WATCHED: &str = "only AF_XDP sends late; `port::xsk::kick` has the tests";

/// Counters that a simulation cannot provoke, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "sleeps",
        "the simulation takes turns itself and never idles",
    ),
    (
        "workers_lost",
        "the simulation is the worker; `tests/tests/lost_workers.rs` has the tests",
    ),
    ("flows_direct", PUBLISHED),
    ("flows_engine", PUBLISHED),
    ("flows_time_wait", PUBLISHED),
    ("tx_stalls", WATCHED),
    ("tx_stuck", WATCHED),
    (
        "tx_unsent",
        "only AF_XDP sends late; `port` and `port::xsk::privileged` have the tests",
    ),
    (
        "unserved_queue_answers",
        "counted by the runtime, beside the workers",
    ),
    (
        "ring_errors",
        "only AF_XDP has rings shared with the kernel",
    ),
];

#[test]
fn every_counter_is_incremented_somewhere() {
    for (names, scenario) in SCENARIOS {
        let sim = scenario();
        for name in *names {
            assert!(counter(&sim, name) > 0, "{name} was not incremented");
        }
    }
    let fresh = Counters::default();
    for (name, _) in fresh.snapshot() {
        let places = SCENARIOS
            .iter()
            .filter(|(names, _)| names.contains(&name))
            .count()
            + EXCEPTIONS.iter().filter(|(known, _)| *known == name).count()
            // Provoked one by one in `rejects.rs`.
            + Reject::ALL.iter().filter(|reject| reject.name() == name).count();
        assert_eq!(places, 1, "{name} belongs into one of the lists");
    }
}

fn worker(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    let mut echo = datagram(DeferDatagrams);
    echo.slow = Some(Arc::new(SlowDatagrams));
    let mut config = SimConfig {
        streams: vec![service],
        datagrams: vec![echo],
        ..SimConfig::default()
    };
    change(&mut config);
    Sim::new(config)
}

fn ends() -> Ends {
    (CLIENT_V4.into(), SERVER_V4.into())
}

fn ping() -> Sim {
    let mut sim = worker(|_| {});
    exchange(&mut sim, &echo_request(ends(), 1, 1, b"ping"));
    sim
}

/// A router says twice that a reply is too big.
fn narrow_path() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let seq = raw.ack;
    raw.send(&mut sim, ACK, b"content 1000\n");
    for _ in 0..2 {
        exchange(&mut sim, &too_big(ends(), (PORT, 5000), seq, 1040, 600));
    }
    sim
}

fn client() -> Sim {
    let version = Version::V4;
    let mut pair = Pair::new(echo_config(), |_| {});
    pair.resolve(version);
    let (local, peer) = (source(version, 1, 1024), server(version));
    pair.wish(Wish::Open(local, peer, 1));
    pair.wish(Wish::Datagram(local, peer, pattern(10)));
    pair.settle();
    pair.client
}

fn neighbours() -> Sim {
    let mut sim = worker(|_| {});
    exchange(&mut sim, &arp_request(SERVER_V4));
    sim
}

fn datagrams() -> Sim {
    let mut sim = Sim::new(echo_config());
    exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    sim
}

fn closed_port() -> Sim {
    let mut sim = worker(|_| {});
    for _ in 0..200 {
        exchange(&mut sim, &udp(ends(), (5000, CLOSED_PORT), b"x"));
    }
    sim
}

struct Long;

impl DatagramInterruptlet for Long {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        request.reply(&pattern(9000))
    }
}

fn long_datagram() -> Sim {
    let mut sim = worker(|config| config.datagrams = vec![datagram(Long)]);
    exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    sim
}

fn stray_segment() -> Sim {
    let mut sim = worker(|_| {});
    Raw::new(Version::V4, 5000).send(&mut sim, ACK, b"");
    sim
}

fn connections() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.request(&mut sim, b"reply x\n");
    raw.send(&mut sim, RST, b"");
    sim
}

/// The second segment of a connection, when the first one has not come.
fn early_segment() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::new(Version::V4, 5000);
    raw.ack = raw.syn(&mut sim)[0].seq.wrapping_add(1);
    raw.seq = raw.seq.wrapping_add(4);
    assert!(raw.send(&mut sim, ACK, b"rest\n").is_empty());
    sim
}

fn full_table() -> Sim {
    let mut sim = worker(|config| config.limits.flows = 1);
    Raw::open(&mut sim, Version::V4, 5000);
    Raw::new(Version::V4, 5001).syn(&mut sim);
    sim
}

fn partial_requests() -> Sim {
    let mut sim = worker(|config| config.limits.engines = 1);
    let mut first = Raw::open(&mut sim, Version::V4, 5000);
    let mut second = Raw::open(&mut sim, Version::V4, 5001);
    first.send(&mut sim, ACK, b"reply ");
    second.send(&mut sim, ACK, b"reply ");
    first.request(&mut sim, b"x\n");
    wait(&mut sim, 1);
    sim
}

fn out_of_order() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.seq = raw.seq.wrapping_add(1);
    raw.send(&mut sim, ACK, b"x\n");
    sim
}

/// An echo, over TCP and UDP, whose calls take time.
fn timed_echo(takes: Takes) -> Sim {
    let mut config = SimConfig::default();
    let (echo, _) = Timed::new(Echo, takes, &config);
    config.streams = vec![stream(echo)];
    let (echo, _) = Timed::new(Echo, takes, &config);
    config.datagrams = vec![datagram(echo)];
    Sim::new(config)
}

fn demoted() -> Sim {
    let mut sim = timed_echo(Takes::Work(Duration::from_millis(1)));
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    for _ in 0..17 {
        raw.send(&mut sim, ACK, b"x");
    }
    sim
}

/// A peer that takes replies and does not say so, or says so thrice and means another one.
fn unanswered() -> Sim {
    let mut sim = worker(|_| {});
    let mut silent = Raw::open(&mut sim, Version::V4, 5000);
    let mut missing = Raw::open(&mut sim, Version::V4, 5001);
    silent.send(&mut sim, ACK, b"reply x\n");
    missing.send(&mut sim, ACK, b"reply x\n");
    for _ in 0..3 {
        missing.send(&mut sim, ACK, b"");
    }
    wait(&mut sim, 2);
    sim
}

fn held_frames() -> Sim {
    let mut sim = worker(|config| config.limits.held_per_flow = 1);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.send(&mut sim, ACK, b"reply x\n");
    raw.send(&mut sim, ACK, b"reply x\n");
    sim
}

fn no_frame_to_reply() -> Sim {
    let mut sim = worker(|config| config.limits.frames = 2);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.send(&mut sim, ACK, b"content 4000\n");
    sim
}

fn slow_reader() -> Sim {
    let version = Version::V4;
    let mut pair = Pair::new(echo_config(), |_| {});
    pair.shared.lock().unwrap().takes = Some(1);
    pair.resolve(version);
    pair.wish(Wish::Open(source(version, 1, 1024), server(version), 1));
    pair.settle();
    pair.wish(Wish::Send(1, pattern(10)));
    pair.settle();
    pair.client
}

fn engine_only() -> Sim {
    let mut sim = worker(|config| config.engine_only = true);
    Raw::open(&mut sim, Version::V4, 5000).request(&mut sim, b"reply x\n");
    sim
}

fn old_segments() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.seq = raw.seq.wrapping_sub(1);
    assert_eq!(raw.send(&mut sim, ACK, b"").len(), 1);
    sim
}

fn silent_peer() -> Sim {
    let mut sim = worker(|config| {
        config.streams[0].keep_alive = Some(Duration::from_secs(2));
    });
    Raw::open(&mut sim, Version::V4, 5000);
    wait(&mut sim, 25);
    sim
}

fn deferrals() -> Sim {
    let mut sim = worker(|config| {
        config.limits.loans = 1;
        config.limits.slow_queue = 2;
    });
    for _ in 0..3 {
        exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    }
    sim
}

/// A connection with a request deferred.
fn deferred(sim: &mut Sim, line: &[u8]) -> Raw {
    let mut raw = Raw::open(sim, Version::V4, 5000);
    raw.send(sim, ACK, line);
    raw
}

fn run_jobs(sim: &mut Sim) {
    for _ in 0..3 {
        sim.run_jobs(8);
        sim.turn();
    }
}

fn abandoned() -> Sim {
    let mut sim = worker(|_| {});
    deferred(&mut sim, b"defer drop\n");
    run_jobs(&mut sim);
    sim
}

fn failing_body() -> Sim {
    let mut sim = worker(|_| {});
    deferred(&mut sim, b"defer fail\n");
    run_jobs(&mut sim);
    sim
}

fn late_reply() -> Sim {
    let mut sim = worker(|_| {});
    deferred(&mut sim, b"defer reply x\n").send(&mut sim, RST, b"");
    run_jobs(&mut sim);
    sim
}

fn overruns() -> Sim {
    let mut sim = timed_echo(Takes::Wait(Duration::from_millis(1)));
    for _ in 0..17 {
        exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    }
    sim.run_jobs(16);
    wait(&mut sim, 2);
    exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    sim
}

fn preemptions() -> Sim {
    let mut sim = timed_echo(Takes::Lose(Duration::from_millis(1)));
    for _ in 0..2 {
        exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    }
    sim
}

struct Panics;

impl DatagramInterruptlet for Panics {
    fn handle(&mut self, _: DatagramRequest<'_>) -> DatagramReply {
        panic!("it always does")
    }
}

fn panics() -> Sim {
    let mut sim = worker(|config| config.datagrams = vec![datagram(Panics)]);
    exchange(&mut sim, &udp(ends(), (5000, PORT), b"x"));
    sim
}

/// Takes turns for `seconds`, four a second.
fn wait(sim: &mut Sim, seconds: u64) {
    for _ in 0..seconds * 4 {
        sim.advance(Duration::from_millis(250));
        sim.turn();
    }
}

fn slow_request() -> Sim {
    let mut sim = worker(|_| {});
    deferred(&mut sim, b"incomplete");
    wait(&mut sim, 20);
    sim
}

fn idle() -> Sim {
    let mut sim = worker(|config| {
        config.streams[0].idle_timeout = Some(Duration::from_secs(1));
    });
    Raw::open(&mut sim, Version::V4, 5000);
    wait(&mut sim, 3);
    sim
}

fn stalled() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.window = 0;
    raw.send(&mut sim, ACK, b"content 1000\n");
    for _ in 0..70 {
        wait(&mut sim, 5);
        if sim.flows() > 0 {
            raw.send(&mut sim, ACK, b"");
        }
    }
    sim
}

fn a_gap_that_stays() -> Sim {
    let mut sim = out_of_order();
    wait(&mut sim, 120);
    sim
}

fn time_waits() -> Sim {
    let mut sim = worker(|config| config.limits.time_wait = 1);
    for port in [5000, 5001] {
        let mut raw = Raw::open(&mut sim, Version::V4, port);
        let answers = raw.send(&mut sim, ACK, b"close\n");
        raw.take(&mut sim, &answers);
        raw.send(&mut sim, FIN | ACK, b"");
    }
    sim
}

/// Two connections of the same ends, one right behind the other.
fn reused_ends() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let answers = raw.send(&mut sim, ACK, b"close\n");
    raw.take(&mut sim, &answers);
    raw.send(&mut sim, FIN | ACK, b"");
    let mut again = Raw::new(Version::V4, 5000);
    again.seq = raw.seq.wrapping_add(100);
    again.ack = again.syn(&mut sim)[0].seq.wrapping_add(1);
    assert_eq!(again.request(&mut sim, b"reply x\n"), b"<x>\n");
    sim
}

/// A FIN that comes three times at once.
fn repeated_fins() -> Sim {
    let mut sim = worker(|_| {});
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let answers = raw.send(&mut sim, ACK, b"close\n");
    raw.take(&mut sim, &answers);
    let seq = raw.seq;
    for _ in 0..3 {
        raw.seq = seq;
        raw.send(&mut sim, FIN | ACK, b"");
    }
    sim
}

/// More than a link holds arrives before the first frame is through.
fn a_full_link() -> Sim {
    let faults = Faults {
        delay: Duration::from_secs(100),
        ..Faults::default()
    };
    let mut sim = worker(|config| config.faults = faults);
    let frame = [0; 1500];
    for _ in 0..=PIPE_BYTES_MAX / frame.len() {
        sim.peer().inject(&frame);
    }
    while sim.peer().pending() > 0 {
        sim.turn();
    }
    sim
}

fn no_frame() -> Sim {
    let mut sim = worker(|config| config.limits.frames = 1);
    // The only frame is the request's own when the error wants one.
    exchange(&mut sim, &udp(ends(), (5000, CLOSED_PORT), b"x"));
    sim
}
