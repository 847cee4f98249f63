//! Flows that change hands, or end, at an awkward moment: without a free frame, without an engine, in the turn in which
//! a timer is due.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use common::handlers::Lines;
use common::packets::*;
use common::pair::{Event, Pair, Wish, server, source};
use common::raw::{Raw, segments};
use common::*;
use interruptlet::client::{Client, Core, End, Reach, Stream};
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::{Duration, Instant};

const VERSION: Version = Version::V4;

fn config() -> SimConfig {
    SimConfig {
        streams: vec![stream(Lines)],
        ..SimConfig::default()
    }
}

/// Turns for `seconds`, a hundred in each; what was sent to `port` meanwhile.
fn wait(sim: &mut Sim, seconds: u64, port: u16) -> Vec<Segment> {
    let mut all = Vec::new();
    for _ in 0..seconds * 100 {
        sim.advance(Duration::from_millis(10));
        sim.turn();
        all.extend(segments(&sent(sim), port));
    }
    all
}

/// A client side with a connection, on an arena of `frames` frames.
fn connected(frames: u32) -> Pair {
    let mut pair = Pair::new(config(), |client| client.limits.frames = frames);
    pair.resolve(VERSION);
    pair.wish(Wish::Open(source(VERSION, 1, 5000), server(VERSION), 1));
    pair.settle();
    assert_eq!(pair.events(), [Event::Connected(1)]);
    pair
}

/// Has the client do something, and lets nobody hear of it.
fn unheard(pair: &mut Pair, wish: Wish) {
    pair.wish(wish);
    pair.client.advance(Duration::from_millis(1));
    pair.client.turn();
    let _ = sent(&pair.client);
}

#[test]
fn a_lost_fin_is_sent_again_whatever_duplicates_come() {
    for engine_only in [false, true] {
        let mut sim = Sim::new(SimConfig {
            engine_only,
            ..config()
        });
        let mut raw = Raw::open(&mut sim, VERSION, 5000);
        let answers = raw.send(&mut sim, ACK, b"close\n");
        assert_eq!(answers.last().unwrap().flags & FIN, FIN);
        raw.ack = raw.ack.wrapping_add(4);
        for _ in 0..5 {
            raw.send(&mut sim, ACK, b"");
        }
        let again = wait(&mut sim, 10, 5000);
        assert!(again.iter().any(|segment| segment.flags & FIN != 0));
    }
}

/// Bytes whose numbers say "a long time" mean just that.
#[test]
fn a_timeout_of_a_month_does_not_fire_at_once() {
    let month = Duration::from_secs(30 * 86_400);
    let mut config = config();
    config.streams[0].idle_timeout = Some(month);
    config.streams[0].keep_alive = Some(month);
    let mut sim = Sim::new(config);
    Raw::open(&mut sim, VERSION, 5000);
    assert!(wait(&mut sim, 60, 5000).is_empty());
    assert_eq!(sim.flows(), 1);
}

#[test]
fn who_resets_when_a_timer_is_due_hears_of_it_and_sends_no_more() {
    let mut pair = connected(512);
    unheard(&mut pair, Wish::Send(1, b"x\n".to_vec()));
    // Both in one turn.
    pair.wish(Wish::Abort(1));
    pair.client.advance(Duration::from_millis(1500));
    pair.client.turn();
    let last: Vec<u8> = sent(&pair.client)
        .iter()
        .map(|frame| dissect(frame).segment().flags)
        .collect();
    assert_eq!(last, [RST | ACK]);
    assert_eq!(pair.events().last(), Some(&Event::Closed(1, End::Aborted)));
    assert_eq!(pair.client.flows(), 0);
}

/// All frames are held, and a FIN waits for one: the timer gets them back.
#[test]
fn frames_that_are_all_held_come_home() {
    let mut pair = connected(2);
    unheard(&mut pair, Wish::Send(1, b"x".to_vec()));
    unheard(&mut pair, Wish::Send(1, b"y\n".to_vec()));
    unheard(&mut pair, Wish::Close(1));
    assert!(counter(&pair.client, "tx_no_frame") > 0);
    let ended = |events: &[Event]| events.contains(&Event::Closed(1, End::Closed));
    assert!(pair.run_until(Duration::from_secs(100), |shared| ended(&shared.events)));
    assert_eq!(pair.client.engines(), 0);
}

/// A close that waits for a frame is a close for the engine, too.
#[test]
fn a_close_without_a_frame_is_not_forgotten() {
    let mut pair = connected(2);
    unheard(&mut pair, Wish::Send(1, b"x".to_vec()));
    unheard(&mut pair, Wish::Send(1, b"y\n".to_vec()));
    unheard(&mut pair, Wish::Close(1));
    // What is sent after that is not.
    unheard(&mut pair, Wish::Send(1, b"z\n".to_vec()));
    let ended = |events: &[Event]| events.contains(&Event::Closed(1, End::Closed));
    assert!(pair.run_until(Duration::from_secs(100), |shared| ended(&shared.events)));
    assert_eq!((pair.client.engines(), pair.server.flows()), (0, 0));
}

/// One byte behind a gap is no way to have an engine for good.
#[test]
fn a_gap_that_stays_ends_the_connection() {
    let mut config = config();
    config.streams[0].idle_timeout = None;
    let mut sim = Sim::new(config);
    let mut raw = Raw::open(&mut sim, VERSION, 5000);
    raw.seq = raw.seq.wrapping_add(100);
    raw.send(&mut sim, ACK, b"x");
    assert_eq!(sim.engines(), 1);
    let last = wait(&mut sim, 110, 5000).pop().unwrap();
    assert_eq!(last.flags & RST, RST);
    assert_eq!((sim.engines(), sim.flows()), (0, 0));
}

/// The segments of a batch that come behind the one that ended their connection are nobody's.
#[test]
fn who_is_reset_for_want_of_an_engine_is_served_no_more() {
    let mut config = config();
    config.limits.engines = 1;
    let mut sim = Sim::new(config);
    let mut first = Raw::open(&mut sim, VERSION, 5000);
    first.send(&mut sim, ACK, b"partial");
    let mut second = Raw::open(&mut sim, VERSION, 5001);
    for bytes in [&b"par"[..], b"reply x\n", b"reply y\n"] {
        let segment = second.segment(ACK | PSH, bytes);
        sim.peer().inject(&segment.frame(second.ends));
        second.seq = second.seq.wrapping_add(bytes.len() as u32);
    }
    sim.turn();
    let answers = segments(&sent(&sim), 5001);
    assert!(answers.iter().all(|answer| answer.flags & RST == RST));
    assert_eq!((counter(&sim, "tcp_requests"), sim.flows()), (0, 1));
}

/// Sends before the handshake is complete, and then more than a direct flow can.
struct Eager {
    told: Arc<Mutex<Vec<&'static str>>>,
    opened: bool,
}

impl Client for Eager {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        if !self.opened && core.reach(VERSION.server()) == Reach::Ready {
            self.opened = true;
            let id = core
                .open(source(VERSION, 1, 5000), server(VERSION), 1)
                .unwrap();
            core.stream(id, |stream| assert_eq!(stream.send(b"x\n"), 0));
        }
        Some(core.nanos() + 1_000_000)
    }

    fn connected(&mut self, stream: &mut Stream<'_>) {
        self.told.lock().unwrap().push("connected");
        stream.send(&[b'a'; 15_000]);
    }

    fn received(&mut self, bytes: &[u8], _stream: &mut Stream<'_>) -> usize {
        bytes.len()
    }

    fn writable(&mut self, _stream: &mut Stream<'_>) {
        self.told.lock().unwrap().push("writable");
    }

    fn closed(&mut self, _token: u64, _end: End) {}
}

#[test]
fn who_waits_for_room_hears_of_it_from_an_engine_as_well() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let eager = Eager {
        told: Arc::clone(&told),
        opened: false,
    };
    let mut pair = Pair::new(config(), |client| {
        client.limits.client_tx_bytes = 40_000;
        client.client = Some(Box::new(eager));
    });
    pair.run_until(Duration::from_secs(20), |_| false);
    assert_eq!(counter(&pair.client, "summoned_large_reply"), 1);
    assert_eq!(*told.lock().unwrap(), ["connected", "writable"]);
}

/// RFC 5681 section 4.1: who has just lost something does not send an initial window again.
#[test]
fn after_a_loss_flights_begin_small() {
    let mut sim = Sim::new(config());
    let mut raw = Raw::open(&mut sim, VERSION, 5000);
    raw.send(&mut sim, ACK, b"reply x\n");
    wait(&mut sim, 2, 5000);
    raw.ack = raw.ack.wrapping_add(4);
    raw.send(&mut sim, ACK, b"");
    assert_eq!((counter(&sim, "summoned_timeout"), sim.engines()), (1, 0));
    // What was acknowledged makes it two segments that may be sent at once, what is acknowledged then four, eight, ten.
    for (len, engines) in [(4000, 1), (1000, 1), (4000, 1), (14_000, 1)] {
        let mut answers = raw.send(&mut sim, ACK, format!("content {len}\n").as_bytes());
        let mut payload = raw.take(&mut sim, &answers);
        while payload.len() < len {
            answers = wait(&mut sim, 1, 5000);
            payload.extend(raw.take(&mut sim, &answers));
        }
        assert_eq!(counter(&sim, "summoned_large_reply"), engines, "{len}");
        wait(&mut sim, 1, 5000);
    }
}

/// A flow whose numbers are those of another hour is none that waits for ever.
#[test]
fn direct_flows_live_across_the_wrap_of_their_clock() {
    // Milliseconds modulo 2^32 wrap after 49.7 days.
    let days = Duration::from_millis((1 << 32) - 30_000);
    let mut config = config();
    config.streams[0].idle_timeout = Some(Duration::from_secs(60));
    let mut sim = Sim::new(config);
    sim.advance(days);
    sim.turn();
    let mut raw = Raw::open(&mut sim, VERSION, 5000);
    for _ in 0..4 {
        assert_eq!(raw.request(&mut sim, b"reply x\n"), b"<x>\n");
        assert!(wait(&mut sim, 15, 5000).is_empty());
    }
    assert!(sim.now() > Instant::ZERO + days);
    let answers = wait(&mut sim, 60, 5000);
    assert_eq!(answers.first().map(|fin| fin.flags & FIN), Some(FIN));
}
