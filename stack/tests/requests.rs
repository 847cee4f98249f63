//! Requests and replies of a stream handler: wherever the bytes are, however they come, whoever answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::handlers::{Chunks, Lines, Takes, Timed, answer};
use common::packets::*;
use common::raw::Raw;
use common::world::{World, read};
use common::*;
use interruptlet::Duration;
use interruptlet::arena::Owner;
use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use interruptlet::pool::{Body, BodySource, Deferred, Responder, Response, SlowPath};
use interruptlet::sim::{Sim, SimConfig};
use smoltcp::socket::tcp::State;

fn lines_config() -> SimConfig {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    SimConfig {
        streams: vec![service],
        ..SimConfig::default()
    }
}

/// What a conversation is answered with.
fn answers(conversation: &[u8]) -> Vec<u8> {
    conversation
        .split_inclusive(|byte| *byte == b'\n')
        .flat_map(answer)
        .collect()
}

/// The same, with a handler that overruns its budget in every call.
fn slow_lines_config() -> SimConfig {
    let mut config = lines_config();
    let (slow, _) = Timed::new(Lines, Takes::Work(Duration::from_millis(1)), &config);
    config.streams[0].interruptlet = Box::new(slow);
    config
}

/// Has the handler overrun its budget until the slow path runs it. It will be tried again after a second, and
/// demoted again.
fn demote(sim: &mut Sim) {
    let mut raw = Raw::open(sim, Version::V4, 3000);
    while counter(sim, "services_demoted") == 0 {
        let frame = raw.segment(ACK, b"silence\n").frame(raw.ends);
        raw.seq += 8;
        sim.peer().inject(&frame);
        sim.turn();
        assert!(counter(sim, "handler_overruns") < 100);
    }
    raw.send(sim, RST, b"");
    sent(sim);
}

/// A body without end that tells on which thread it is dropped.
struct Endless(Arc<Mutex<Vec<bool>>>, Arc<std::sync::atomic::AtomicBool>);

impl BodySource for Endless {
    fn next_chunk(&mut self) -> std::io::Result<Option<bytes::Bytes>> {
        Ok(Some(bytes::Bytes::from_static(&[b'x'; 1000])))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let in_turn = self.1.load(Ordering::Relaxed);
        self.0.lock().unwrap().push(in_turn);
    }
}

struct Streams(Arc<Mutex<Vec<bool>>>, Arc<std::sync::atomic::AtomicBool>);

impl SlowPath for Streams {
    fn serve(&self, _request: Deferred, responder: Responder) {
        responder.send(Response {
            body: Body::Source(Box::new(Endless(self.0.clone(), self.1.clone()))),
            ..Response::default()
        });
    }
}

/// Dropping a source may close a file, which may take long: not the core's to do.
#[test]
fn sources_that_nobody_wants_are_dropped_by_the_slow_path() {
    for pool_has_it in [false, true] {
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let in_turn = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut config = lines_config();
        config.streams[0].slow = Some(Arc::new(Streams(dropped.clone(), in_turn.clone())));
        let mut sim = Sim::new(config);
        let mut raw = Raw::open(&mut sim, Version::V4, 5000);
        raw.send(&mut sim, ACK, b"defer x\n");
        // The reply, and the first chunk.
        for _ in 0..2 {
            assert_eq!(sim.run_jobs(1), 1);
            sim.turn();
        }
        if !pool_has_it {
            // Enough chunks that the flow wants no more for now: the source is with it.
            while sim.run_jobs(1) == 1 {
                sim.turn();
            }
        }
        in_turn.store(true, Ordering::Relaxed);
        raw.send(&mut sim, RST, b"");
        assert_eq!(sim.flows(), 0);
        in_turn.store(false, Ordering::Relaxed);
        sim.run_jobs(1);
        in_turn.store(true, Ordering::Relaxed);
        sim.turn();
        in_turn.store(false, Ordering::Relaxed);
        sim.run_jobs(1);
        assert_eq!(*dropped.lock().unwrap(), [false], "{pool_has_it}");
        sent(&sim);
        assert_at_rest(&mut sim);
    }
}

/// The bytes of a call, whether they were the end of the stream, and whether the buffer was full.
type Shown = (Vec<u8>, bool, bool);

/// Records what it is shown, answers as [`Lines`] does.
struct Recorder(Arc<Mutex<Vec<Shown>>>);

impl StreamInterruptlet for Recorder {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        self.0.lock().unwrap().push((
            request.bytes().to_vec(),
            request.is_end_of_stream(),
            request.is_full(),
        ));
        Lines.handle(request)
    }
}

#[test]
fn a_conversation_may_be_cut_anywhere() {
    let conversation = b"place abc\nreply de\ncontent 20\nplace f\n";
    let expected = answers(conversation);
    for version in BOTH {
        for first in 1..conversation.len() {
            for second in [first, (first + 7).min(conversation.len())] {
                let mut sim = Sim::new(lines_config());
                let mut raw = Raw::open(&mut sim, version, 5000);
                let mut reply = Vec::new();
                for part in [
                    &conversation[..first],
                    &conversation[first..second],
                    &conversation[second..],
                ] {
                    if !part.is_empty() {
                        reply.extend(raw.request(&mut sim, part));
                    }
                }
                assert_eq!(reply, expected, "cut at {first} and {second}");
                assert_eq!(
                    counter(&sim, "tcp_requests"),
                    4,
                    "cut at {first} and {second}"
                );
                assert_at_rest(&mut sim);
            }
        }
    }
}

/// The same bytes in order, out of order, overlapping and repeated: the handler is shown the same.
#[test]
fn segments_may_come_in_any_order() {
    let conversation = b"place abcdef\nreply ghijkl\nplace mnopqr\n";
    let expected = answers(conversation);
    // Parts of the conversation by where they begin and end.
    let orders: [&[(usize, usize)]; 8] = [
        &[(0, 39)],
        &[(13, 39), (0, 13)],
        &[(26, 39), (13, 26), (0, 13)],
        &[(0, 20), (10, 39)],
        &[(10, 39), (0, 20)],
        &[(0, 13), (0, 13), (0, 39)],
        &[(5, 13), (0, 13), (13, 39), (26, 39)],
        &[(3, 39), (0, 3), (0, 39)],
    ];
    for order in orders {
        let mut sim = Sim::new(lines_config());
        let mut raw = Raw::open(&mut sim, Version::V4, 5000);
        let start = raw.seq;
        let mut reply = Vec::new();
        for (from, to) in order {
            raw.seq = start + *from as u32;
            let answers = raw.send(&mut sim, ACK, &conversation[*from..*to]);
            raw.seq = start + conversation.len() as u32;
            reply.extend(raw.take(&mut sim, &answers));
        }
        assert_eq!(reply, expected, "{order:?}");
        assert_eq!(counter(&sim, "tcp_requests"), 3, "{order:?}");
        assert_at_rest(&mut sim);
    }
}

/// What was consumed is never seen again, even if it comes again with other bytes.
#[test]
fn the_first_copy_of_a_byte_counts() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let start = raw.seq;
    assert_eq!(raw.request(&mut sim, b"reply a\nrep"), b"<a>\n");
    raw.seq = start;
    assert_eq!(raw.request(&mut sim, b"REPLY B\nreply b\n"), b"<b>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn many_requests_in_one_segment() {
    let conversation = b"place a\nreply b\nsilence\ncontent 3\nplace c\n".repeat(20);
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V6, 5000);
    assert_eq!(raw.request(&mut sim, &conversation), answers(&conversation));
    assert_eq!(counter(&sim, "tcp_requests"), 100);
    assert_at_rest(&mut sim);
}

#[test]
fn an_in_place_reply_does_not_touch_the_next_request() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let conversation = b"place xyz\nplace uvw\nreply not yet";
    assert_eq!(raw.request(&mut sim, conversation), b"XYZ\nUVW\n");
    assert_eq!(raw.request(&mut sim, b" but now\n"), b"<not yet but now>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn deferred_and_direct_replies_keep_their_order() {
    for version in BOTH {
        let mut world = World::new(lines_config());
        let handle = world.connected(version);
        let conversation = b"reply 1\ndefer reply 2\nplace 3\ndefer content 50000\ndefer reply 4\n\
            content 40000\ndefer source 90000 7000\nreply 5\n"
            .repeat(5);
        let expected = answers(&conversation);
        let reply = world.request(handle, &conversation, expected.len());
        assert!(reply == expected, "{} bytes", reply.len());
        world.close(handle);
        assert_eq!(counter(&world.sim, "deferred"), 20);
        assert_at_rest(&mut world.sim);
    }
}

/// The bytes behind a deferred request are left alone until it is answered, and are not lost.
#[test]
fn what_follows_a_deferred_request_waits() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    assert!(
        raw.request(&mut sim, b"defer reply 1\nreply 2\nrep")
            .is_empty()
    );
    assert!(raw.request(&mut sim, b"ly 3\n").is_empty());
    assert_eq!(counter(&sim, "tcp_requests"), 0);
    assert_eq!(sim.run_jobs(9), 1);
    sim.turn();
    let answers = raw.received(&sim);
    assert_eq!(raw.take(&mut sim, &answers), b"<1>\n<2>\n<3>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn a_request_in_one_frame_is_lent_and_one_in_two_is_copied() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.request(&mut sim, b"defer reply whole\n");
    assert_eq!(
        (counter(&sim, "deferred"), counter(&sim, "deferred_copied")),
        (1, 0)
    );
    assert_eq!(sim.frames().of(Owner::Loan), 1);
    sim.run_jobs(1);
    sim.turn();
    assert_eq!(sim.frames().of(Owner::Loan), 0, "the loan is home");
    let answers = raw.received(&sim);
    assert_eq!(raw.take(&mut sim, &answers), b"<whole>\n");

    raw.request(&mut sim, b"defer reply in ");
    raw.request(&mut sim, b"two\n");
    assert_eq!(
        (counter(&sim, "deferred"), counter(&sim, "deferred_copied")),
        (2, 1)
    );
    assert_eq!(sim.frames().of(Owner::Loan), 0);
    sim.run_jobs(1);
    sim.turn();
    let answers = raw.received(&sim);
    assert_eq!(raw.take(&mut sim, &answers), b"<in two>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn without_a_free_loan_the_request_is_copied() {
    let mut config = lines_config();
    config.limits.loans = 1;
    let mut sim = Sim::new(config);
    let mut peers = [5000, 5001].map(|port| Raw::open(&mut sim, Version::V6, port));
    for raw in &mut peers {
        raw.request(&mut sim, b"defer reply x\n");
    }
    assert_eq!(counter(&sim, "deferred_copied"), 1);
    sim.run_jobs(9);
    sim.turn();
    let answers = sent(&sim);
    for raw in &mut peers {
        let own = common::raw::segments(&answers, raw.port);
        assert_eq!(raw.take(&mut sim, &own), b"<x>\n");
    }
    assert_at_rest(&mut sim);
}

#[test]
fn without_room_for_it_the_handler_answers_a_deferred_request() {
    let mut config = lines_config();
    config.limits.slow_queue = 1;
    let mut sim = Sim::new(config);
    let mut first = Raw::open(&mut sim, Version::V4, 5000);
    let mut second = Raw::open(&mut sim, Version::V4, 5001);
    assert!(first.request(&mut sim, b"defer reply 1\n").is_empty());
    assert_eq!(
        second.request(&mut sim, b"defer reply 2\nreply 3\ndefer reply 4\n"),
        b"busy:defer reply 2\n<3>\nbusy:defer reply 4\n"
    );
    // The same where the request was not in one frame.
    assert!(second.request(&mut sim, b"defer re").is_empty());
    assert_eq!(
        second.request(&mut sim, b"ply 5\n"),
        b"busy:defer reply 5\n"
    );
    assert_eq!(counter(&sim, "deferred_refused"), 3);
    sim.run_jobs(9);
    sim.turn();
    let answers = first.received(&sim);
    assert_eq!(first.take(&mut sim, &answers), b"<1>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn without_a_slow_path_deferring_closes() {
    let mut sim = Sim::new(SimConfig {
        streams: vec![stream(Lines)],
        ..SimConfig::default()
    });
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let answers = raw.send(&mut sim, ACK, b"defer reply x\nreply y\n");
    assert_ne!(answers.last().unwrap().flags & FIN, 0);
    assert!(answers.iter().all(|answer| answer.payload.is_empty()));
    assert_eq!(counter(&sim, "deferred_refused"), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn an_unanswered_request_closes_its_connection() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V4);
    let reply = world.request(handle, b"reply 1\ndefer drop\nreply 2\n", 100);
    assert_eq!(reply, b"<1>\n");
    assert_eq!(world.socket(handle).state(), State::CloseWait);
    assert_eq!(counter(&world.sim, "deferred_abandoned"), 1);
    world.close(handle);
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_slow_reply_can_close() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V6);
    let reply = world.request(handle, b"defer close\nreply 2\n", 100);
    assert_eq!(reply, b"bye\n");
    world.close(handle);
    assert_at_rest(&mut world.sim);
}

/// The slow path may take longer than any timeout of the connection.
#[test]
fn a_deferred_request_may_take_long() {
    let mut config = lines_config();
    config.streams[0].idle_timeout = Some(Duration::from_secs(5));
    let mut world = World::new(config);
    let handle = world.connected(Version::V4);
    world.runs_jobs = false;
    world.socket(handle).send_slice(b"defer reply x\n").unwrap();
    world.run_for(Duration::from_secs(1000));
    world.runs_jobs = true;
    assert_eq!(world.request(handle, b"", 4), b"<x>\n");
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_reply_to_a_connection_that_is_gone_is_lost() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.send(&mut sim, ACK, b"defer reply x\n");
    raw.send(&mut sim, RST, b"");
    assert_eq!(sim.flows(), 0);
    // Another connection has its slot meanwhile.
    let other = Raw::open(&mut sim, Version::V4, 5001);
    assert_eq!(sim.run_jobs(9), 1);
    sim.turn();
    assert!(other.received(&sim).is_empty());
    assert_eq!(counter(&sim, "replies_lost"), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn a_reset_with_unread_bytes_does_not_wake_the_handler() {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let mut sim = Sim::new(SimConfig {
        streams: vec![stream(Recorder(Arc::clone(&shown)))],
        ..SimConfig::default()
    });
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    assert!(raw.request(&mut sim, b"incomplete").is_empty());
    raw.send(&mut sim, RST, b"");
    assert_eq!(sim.flows(), 0);
    assert_eq!(shown.lock().unwrap().len(), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn a_handler_sees_the_end_of_the_stream_once() {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let mut sim = Sim::new(SimConfig {
        streams: vec![stream(Recorder(Arc::clone(&shown)))],
        ..SimConfig::default()
    });
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    assert!(raw.request(&mut sim, b"incomplete").is_empty());
    raw.send(&mut sim, FIN | ACK, b"");
    let bytes = b"incomplete".to_vec();
    let expected = [(bytes.clone(), false, false), (bytes, true, false)];
    assert_eq!(*shown.lock().unwrap(), expected);
}

#[test]
fn a_request_that_fills_the_buffer_is_the_end() {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let mut world = World::new(SimConfig {
        streams: vec![stream(Recorder(Arc::clone(&shown)))],
        ..SimConfig::default()
    });
    let handle = world.connected(Version::V4);
    let reply = world.request(handle, &[b'x'; 40_000], 1);
    assert!(reply.is_empty());
    let shown = shown.lock().unwrap();
    let (bytes, _, full) = shown.last().unwrap();
    assert_eq!((bytes.len(), *full), (16 * 1024, true));
    assert!(shown[..shown.len() - 1].iter().all(|(_, _, full)| !full));
    assert_ne!(world.socket(handle).state(), State::Established);
    assert_at_rest(&mut world.sim);
}

/// A handler that consumes nothing waits for more, like one that says so.
#[test]
fn a_reply_that_consumes_nothing_is_sent_once() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V4);
    let reply = world.exchange(handle, b"nothing\n", 100, Duration::from_secs(5));
    assert_eq!(reply, b"?");
    let reply = world.exchange(handle, b"more\n", 100, Duration::from_secs(5));
    assert_eq!(reply, b"?");
    world.close(handle);
    assert_at_rest(&mut world.sim);
}

/// Serves one body in chunks to whatever is asked.
struct Download(Mutex<Option<Chunks>>);

impl SlowPath for Download {
    fn serve(&self, _request: Deferred, responder: Responder) {
        let source = self.0.lock().unwrap().take().unwrap();
        responder.send(Response {
            head: b"head:".to_vec(),
            body: Body::Source(Box::new(source)),
            close: true,
        });
    }
}

#[test]
fn a_body_is_produced_as_the_client_takes_it() {
    const CHUNK: usize = 64 * 1024;
    let body = pattern(5 * 1024 * 1024);
    let source = Chunks::new(body.clone(), CHUNK);
    let made: Arc<AtomicUsize> = source.made();
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Download(Mutex::new(Some(source)))));
    let mut world = World::new(SimConfig {
        streams: vec![service],
        ..SimConfig::default()
    });
    let handle = world.connected(Version::V4);
    world.socket(handle).send_slice(b"defer it\n").unwrap();
    // Nobody reads: what is made is bounded by the buffers on the way and two chunks.
    world.run_for(Duration::from_secs(20));
    assert!(made.load(Ordering::Relaxed) <= 5, "{made:?}");
    let mut received = Vec::new();
    let over = world.run_until(Duration::from_secs(1000), |world| {
        read(world.socket(handle), &mut received);
        // Chunks taken by the client, and those that may be on their way: the engine's buffer, the
        // client's, one waiting and one being made.
        let made = made.load(Ordering::Relaxed);
        assert!(made <= received.len() / CHUNK + 5, "{made} chunks made");
        !world.socket(handle).may_recv()
    });
    assert!(over);
    assert!(received == [b"head:", &body[..]].concat());
    world.close(handle);
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_failing_body_resets_its_connection() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V4);
    let reply = world.request(handle, b"defer fail\nreply 2\n", 100);
    assert!(b"begun\n".starts_with(&reply[..]));
    assert_eq!(world.socket(handle).state(), State::Closed);
    assert_eq!(counter(&world.sim, "bodies_failed"), 1);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.sim.flows(), 0);
    assert_at_rest(&mut world.sim);
}

/// While the slow path's queue is full a body waits, and goes on when there is room.
#[test]
fn a_body_waits_for_room_in_the_queue() {
    let mut config = lines_config();
    config.limits.slow_queue = 1;
    let mut world = World::new(config);
    let first = world.connected(Version::V4);
    let second = world.connected(Version::V6);
    world.runs_jobs = false;
    let request = b"defer source 300000 9000\n";
    world.socket(first).send_slice(request).unwrap();
    world.run_for(Duration::from_millis(50));
    // The request is answered, but before its body wants a chunk, another request has the only place.
    assert_eq!(world.sim.run_jobs(1), 1);
    world.socket(second).send_slice(b"defer reply x\n").unwrap();
    world.run_for(Duration::from_secs(1));
    assert_eq!(counter(&world.sim, "deferred"), 2);
    assert_eq!(world.socket(first).recv_queue(), 0);
    world.runs_jobs = true;
    assert!(world.request(first, b"", 300_000) == pattern(300_000));
    assert_eq!(world.request(second, b"", 4), b"<x>\n");
    world.close(first);
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_client_that_leaves_ends_its_body() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V4);
    world
        .socket(handle)
        .send_slice(b"defer source 3000000 65536\n")
        .unwrap();
    world.run_for(Duration::from_secs(1));
    world.socket(handle).abort();
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.sim.flows(), 0);
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_demoted_handler_answers_the_same() {
    let conversation = b"place abc\nreply de\ncontent 20000\nsilence\ndefer reply x\nplace f\n\
        defer source 50000 6000\ndefer content 30000\nreply end\n";
    let expected = answers(conversation);
    for step in [1000, 13, 5] {
        let mut world = World::new(slow_lines_config());
        demote(&mut world.sim);
        let handle = world.connected(Version::V6);
        let mut received = Vec::new();
        for part in conversation.chunks(step) {
            received.extend(world.exchange(handle, part, 0, Duration::from_secs(1)));
            world.run_for(Duration::from_millis(50));
        }
        received.extend(world.request(handle, b"", expected.len() - received.len()));
        assert!(received == expected, "in parts of {step}");
        assert_eq!(world.close(handle), b"");
        assert_at_rest(&mut world.sim);
    }
}

#[test]
fn a_demoted_handler_is_shown_what_came_meanwhile() {
    let mut sim = Sim::new(slow_lines_config());
    demote(&mut sim);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    assert!(raw.request(&mut sim, b"reply").is_empty());
    // The handler is asked about the first part when the second one arrives.
    assert!(raw.request(&mut sim, b" x\n").is_empty());
    for _ in 0..4 {
        sim.run_jobs(9);
        sim.turn();
    }
    let answers = raw.received(&sim);
    assert_eq!(raw.take(&mut sim, &answers), b"<x>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn a_demoted_handler_ends_like_any_other() {
    let cases: [&[u8]; 4] = [
        b"reply 1\nincomplete",
        &[b'x'; 40_000],
        b"reply 1\nabort\nreply 2\n",
        b"reply 1\nclose\nreply 2\n",
    ];
    for bytes in cases {
        let mut world = World::new(slow_lines_config());
        demote(&mut world.sim);
        let handle = world.connected(Version::V4);
        world.exchange(handle, bytes, 0, Duration::from_secs(5));
        world.run_for(Duration::from_secs(5));
        world.socket(handle).close();
        assert!(
            world.run_until(Duration::from_secs(100), |world| world.sim.flows() == 0),
            "{} bytes",
            bytes.len()
        );
        assert_eq!(world.sim.run_jobs(9), 0, "it is asked again and again");
        assert_at_rest(&mut world.sim);
    }
}

#[test]
fn a_demoted_handler_that_consumes_nothing_is_not_asked_again() {
    let mut world = World::new(slow_lines_config());
    demote(&mut world.sim);
    let handle = world.connected(Version::V4);
    let reply = world.exchange(handle, b"nothing\n", 100, Duration::from_secs(5));
    assert_eq!(reply, b"?");
    world.socket(handle).close();
    assert!(world.run_until(Duration::from_secs(100), |world| world.sim.flows() == 0));
    assert_at_rest(&mut world.sim);
}

#[test]
fn a_demoted_handler_without_room_says_so_and_closes() {
    let mut config = slow_lines_config();
    config.limits.slow_queue = 1;
    let mut sim = Sim::new(config);
    demote(&mut sim);
    let mut first = Raw::open(&mut sim, Version::V4, 5000);
    let mut second = Raw::open(&mut sim, Version::V4, 5001);
    first.request(&mut sim, b"reply 1\n");
    let answers = second.send(&mut sim, ACK, b"reply 2\n");
    assert_ne!(answers.last().unwrap().flags & FIN, 0);
    assert_eq!(second.take(&mut sim, &answers), b"busy:reply 2\n");
    assert_eq!(counter(&sim, "deferred_refused"), 1);
    sim.run_jobs(9);
    sim.turn();
    let answers = first.received(&sim);
    assert_eq!(first.take(&mut sim, &answers), b"<1>\n");
    assert_at_rest(&mut sim);
}

#[test]
fn an_incomplete_request_of_a_demoted_handler_times_out() {
    let mut config = slow_lines_config();
    config.streams[0].request_timeout = Duration::from_secs(5);
    let mut world = World::new(config);
    demote(&mut world.sim);
    let handle = world.connected(Version::V4);
    let reply = world.exchange(handle, b"incomplete", 100, Duration::from_secs(6));
    assert_eq!(reply, b"timeout:incomplete");
    assert_eq!(world.socket(handle).state(), State::CloseWait);
    assert_eq!(counter(&world.sim, "request_timeouts"), 1);
}

#[test]
fn a_drain_closes_idle_connections_and_lets_replies_finish() {
    let mut world = World::new(lines_config());
    let idle = world.connected(Version::V4);
    let busy = world.connected(Version::V6);
    let deferred = world.connected(Version::V4);
    let halfway = world.connected(Version::V6);
    world.runs_jobs = false;
    world.socket(busy).send_slice(b"content 500000\n").unwrap();
    world
        .socket(deferred)
        .send_slice(b"defer reply x\n")
        .unwrap();
    world.socket(halfway).send_slice(b"reply ").unwrap();
    for _ in 0..4 {
        world.step();
    }
    world.sim.drain();
    let late = world.connect(Version::V4);
    world.run_for(Duration::from_millis(500));
    assert_eq!(world.socket(idle).state(), State::CloseWait);
    assert_eq!(world.socket(late).state(), State::SynSent);
    assert!(counter(&world.sim, "flows_refused") > 0);
    world.runs_jobs = true;
    assert_eq!(world.request(halfway, b"y\n", 100), b"<y>\n");
    assert_eq!(world.request(deferred, b"", 100), b"<x>\n");
    assert!(world.request(busy, b"", 600_000) == pattern(500_000));
    for handle in [idle, busy, deferred, halfway] {
        assert_eq!(world.socket(handle).state(), State::CloseWait);
        world.close(handle);
    }
    world.run_for(Duration::from_secs(100));
    assert_eq!(world.sim.flows(), 0);
    assert_at_rest(&mut world.sim);
}
