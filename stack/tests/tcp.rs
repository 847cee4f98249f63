//! Connections, against a real client and against segments made by hand: opening, echoing, closing, the
//! bounds, the timeouts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::handlers::{Echo, Lines};
use common::packets::*;
use common::raw::Raw;
use common::world::{World, read};
use common::*;
use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};
use smoltcp::socket::tcp::State;

fn lines_config() -> SimConfig {
    SimConfig {
        streams: vec![stream(Lines)],
        ..SimConfig::default()
    }
}

/// Lets TIME-WAIT pass, on both sides, then requires everything to be over.
fn assert_all_over(world: &mut World) {
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.sim.flows(), 0);
    assert_eq!(
        counter(&world.sim, "flows_opened"),
        counter(&world.sim, "flows_closed")
    );
    assert_at_rest(&mut world.sim);
}

#[test]
fn small_and_large_messages_are_echoed() {
    for version in BOTH {
        let mut world = World::new(echo_config());
        let handle = world.connected(version);
        for len in [1, 2, 535, 536, 1459, 1460, 1461, 5000, 16 * 1024, 1 << 20] {
            let message = pattern(len);
            let echoed = world.request(handle, &message, len);
            assert!(
                echoed == message,
                "{len} bytes over {version:?} came back wrong"
            );
        }
        assert!(world.close(handle).is_empty());
        assert_eq!(counter(&world.sim, "flows_established"), 1);
        assert_all_over(&mut world);
    }
}

#[test]
fn many_connections_at_a_time() {
    let mut world = World::new(echo_config());
    let handles: Vec<_> = (0..200)
        .map(|number| world.connect(BOTH[number % 2]))
        .collect();
    let mut echoed = vec![Vec::new(); handles.len()];
    let mut sent = vec![false; handles.len()];
    let done = world.run_until(Duration::from_secs(100), |world| {
        for (number, handle) in handles.iter().enumerate() {
            let socket = world.socket(*handle);
            if socket.may_send() && !sent[number] {
                socket.send_slice(&pattern(number + 1)).unwrap();
                sent[number] = true;
            }
            read(socket, &mut echoed[number]);
        }
        echoed
            .iter()
            .enumerate()
            .all(|(number, echo)| echo.len() > number)
    });
    assert!(done);
    for (number, echo) in echoed.iter().enumerate() {
        assert_eq!(*echo, pattern(number + 1));
    }
    for handle in handles {
        world.close(handle);
    }
    assert_eq!(counter(&world.sim, "flows_established"), 200);
    assert_all_over(&mut world);
}

#[test]
fn engines_are_used_again() {
    let mut world = World::new(echo_config());
    for round in 0..50 {
        let handle = world.connected(BOTH[round % 2]);
        let message = pattern(3000 + round);
        assert!(world.request(handle, &message, message.len()) == message);
        world.close(handle);
        world.sockets.remove(handle);
    }
    assert_all_over(&mut world);
}

/// What one connection suffered is no burden to the next one that gets its engine.
#[test]
fn an_engine_that_was_used_starts_afresh() {
    let mut sim = Sim::new(lines_config());
    // How much is sent at once, before anything is acknowledged.
    let first_flight = |sim: &mut Sim, port: u16| {
        let mut raw = Raw::open(sim, Version::V4, port);
        let answers = raw.send(sim, ACK | PSH, b"content 40000\n");
        let bytes: usize = answers.iter().map(|answer| answer.payload.len()).sum();
        assert!(bytes > 0);
        (raw, bytes)
    };
    let (mut raw, fresh) = first_flight(&mut sim, 5000);
    // Loss after loss: nothing is acknowledged for a while.
    for _ in 0..30 {
        sim.advance(Duration::from_secs(1));
        sim.turn();
    }
    raw.send(&mut sim, RST, b"");
    assert_eq!(sim.flows(), 0);
    sent(&sim);
    let (_, used) = first_flight(&mut sim, 5001);
    assert_eq!(used, fresh);
}

#[test]
fn after_half_close_the_rest_of_the_reply_arrives() {
    for version in BOTH {
        let mut world = World::new(lines_config());
        let handle = world.connected(version);
        let request = b"content 300000\nreply last\n";
        world.socket(handle).send_slice(request).unwrap();
        let received = world.close(handle);
        let expected = [pattern(300_000), b"<last>\n".to_vec()].concat();
        assert!(received == expected, "{} bytes", received.len());
        assert_all_over(&mut world);
    }
}

#[test]
fn the_server_closes_after_its_reply() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V6);
    let reply = world.request(handle, b"close\nreply not this\n", 100);
    assert_eq!(reply, b"bye\n");
    assert_eq!(world.socket(handle).state(), State::CloseWait);
    world.close(handle);
    assert_all_over(&mut world);
}

#[test]
fn a_handler_can_reset() {
    let mut world = World::new(lines_config());
    let handle = world.connected(Version::V4);
    world.socket(handle).send_slice(b"abort\n").unwrap();
    assert!(world.run_until(Duration::from_secs(1), |world| {
        world.socket(handle).state() == State::Closed
    }));
    assert_all_over(&mut world);
}

#[test]
fn closed_ports_are_refused_with_a_reset() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        let raw = Raw::new(version, 5000);
        let syn = Segment {
            destination_port: CLOSED_PORT,
            ack: 0,
            ..raw.segment(SYN, b"")
        };
        let answers = raw.send_segment(&mut sim, &syn);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].flags, RST | ACK);
        assert_eq!((answers[0].seq, answers[0].ack), (0, raw.seq + 1));
        assert_eq!(counter(&sim, "tcp_resets"), 1);
        assert_at_rest(&mut sim);
    }
}

/// RFC 9293 section 3.10.7.1.
#[test]
fn stray_segments_are_reset_but_resets_are_not_answered() {
    for port in [PORT, CLOSED_PORT] {
        let mut sim = Sim::new(echo_config());
        let mut raw = Raw::new(Version::V4, 5000);
        raw.ack = 4711;
        let stray = |flags| Segment {
            destination_port: port,
            ..raw.segment(flags, b"stray")
        };
        let answers = raw.send_segment(&mut sim, &stray(ACK));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].flags, RST);
        assert_eq!(answers[0].seq, 4711);
        let answers = raw.send_segment(&mut sim, &stray(SYN | ACK));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].flags, RST);
        assert!(raw.send_segment(&mut sim, &stray(RST)).is_empty());
        assert!(raw.send_segment(&mut sim, &stray(RST | ACK)).is_empty());
        assert_eq!(counter(&sim, "tcp_resets"), 2);
        assert_eq!(sim.flows(), 0);
        assert_at_rest(&mut sim);
    }
}

/// A handshake is remembered by nobody until it is complete, however many there are.
#[test]
fn handshakes_keep_no_state() {
    let mut sim = Sim::new(echo_config());
    let mut peers: Vec<Raw> = (0..3000).map(|n| Raw::new(Version::V4, 5000 + n)).collect();
    for raw in &mut peers {
        let answers = raw.syn(&mut sim);
        assert_eq!(answers.len(), 1);
        raw.ack = answers[0].seq.wrapping_add(1);
    }
    assert_eq!(sim.flows(), 0);
    for raw in peers.iter_mut().take(100) {
        let answers = raw.send(&mut sim, ACK, b"hello");
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].payload, b"hello");
    }
    assert_eq!(counter(&sim, "flows_established"), 100);
    assert_eq!(counter(&sim, "cookies_sent"), 3000);
    assert_eq!(counter(&sim, "cookies_accepted"), 100);
}

/// RFC 9293 section 3.10.7.4: a peer that lost its state is challenged, resets, and gets through.
#[test]
fn a_peer_that_begins_anew_is_challenged_and_gets_a_new_connection() {
    for payload in [&b""[..], b"early data"] {
        let mut sim = Sim::new(echo_config());
        let mut old = Raw::open(&mut sim, Version::V4, 5000);
        assert_eq!(old.request(&mut sim, b"before"), b"before");

        let mut new = Raw::new(Version::V4, 5000);
        new.seq = old.seq.wrapping_add(77_777);
        let syn = Segment {
            ack: 0,
            ..new.segment(SYN, payload)
        };
        let challenge = new.send_segment(&mut sim, &syn);
        assert_eq!(challenge.len(), 1, "{challenge:?}");
        assert_eq!(
            (challenge[0].flags, challenge[0].seq, challenge[0].ack),
            (ACK, old.ack, old.seq)
        );
        // The old connection is unharmed by the SYN itself.
        assert_eq!(old.clone().request(&mut sim, b"still"), b"still");

        let reset = Segment {
            seq: old.seq.wrapping_add(5),
            ..new.segment(RST, b"")
        };
        assert!(new.send_segment(&mut sim, &reset).is_empty());
        assert_eq!(sim.flows(), 0);
        let mut new = Raw::open(&mut sim, Version::V4, 5000);
        assert_eq!(new.request(&mut sim, b"after"), b"after");
        assert_at_rest(&mut sim);
    }
}

/// A flood of SYNs costs neither memory nor the connections that are established.
#[test]
fn a_syn_flood_is_bounded() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 4999);
    for port in 5000..8000 {
        let answers = Raw::new(Version::V6, port).syn(&mut sim);
        assert_eq!(answers.len(), 1);
        assert_eq!(sim.flows(), 1);
    }
    assert_eq!(raw.request(&mut sim, b"still here"), b"still here");
    assert_at_rest(&mut sim);
}

#[test]
fn a_full_table_refuses() {
    let mut config = echo_config();
    config.limits.flows = 3;
    let mut sim = Sim::new(config);
    let mut open: Vec<Raw> = (0..3)
        .map(|number| Raw::open(&mut sim, Version::V4, 5000 + number))
        .collect();
    assert!(Raw::new(Version::V4, 6000).syn(&mut sim).is_empty());
    assert_eq!(counter(&sim, "flows_refused"), 1);
    for raw in &mut open {
        assert_eq!(raw.request(&mut sim, b"x"), b"x");
    }
    // One goes, one may come.
    open[0].send(&mut sim, RST, b"");
    Raw::open(&mut sim, Version::V4, 6000);
    assert_at_rest(&mut sim);
}

/// Opens a connection and has the server close it first, which leaves it in TIME-WAIT.
fn time_wait(sim: &mut Sim, port: u16) -> Raw {
    let mut raw = Raw::open(sim, Version::V4, port);
    let answers = raw.send(sim, ACK, b"close\n");
    assert_eq!(raw.take(sim, &answers), b"bye\n");
    let answers = raw.send(sim, FIN | ACK, b"");
    assert_eq!(answers.last().unwrap().ack, raw.seq);
    raw
}

#[test]
fn time_wait_is_bounded() {
    let mut config = lines_config();
    config.limits.time_wait = 4;
    let mut sim = Sim::new(config);
    for port in 5000..5010 {
        time_wait(&mut sim, port);
    }
    assert_eq!(sim.flows(), 4);
    assert_eq!(counter(&sim, "time_wait_evicted"), 6);
    // The oldest went: the newest still knows its peer and acknowledges a FIN again.
    sim.advance(Duration::from_secs(55));
    sim.turn();
    assert_eq!(sim.flows(), 4);
    sim.advance(Duration::from_secs(6));
    sim.turn();
    assert_eq!(sim.flows(), 0);
    assert_at_rest(&mut sim);
}

/// Entries that ended by themselves leave room for others.
#[test]
fn ended_time_waits_do_not_push_out_living_ones() {
    let mut config = lines_config();
    config.limits.time_wait = 4;
    let mut sim = Sim::new(config);
    time_wait(&mut sim, 5000);
    time_wait(&mut sim, 5001);
    sim.advance(Duration::from_secs(58));
    time_wait(&mut sim, 5002);
    time_wait(&mut sim, 5003);
    sim.advance(Duration::from_secs(3));
    sim.turn();
    assert_eq!(sim.flows(), 2);
    time_wait(&mut sim, 5004);
    time_wait(&mut sim, 5005);
    assert_eq!(sim.flows(), 4);
    assert_eq!(counter(&sim, "time_wait_evicted"), 0);
}

/// Connections that are over take no room of those that are not.
#[test]
fn time_wait_has_a_table_of_its_own() {
    let mut config = lines_config();
    config.limits.flows = 2;
    let mut sim = Sim::new(config);
    time_wait(&mut sim, 5000);
    time_wait(&mut sim, 5001);
    Raw::open(&mut sim, Version::V4, 5002);
    assert_eq!(counter(&sim, "time_wait_evicted"), 0);
    assert_eq!((sim.flows(), sim.time_wait()), (3, 2));
}

#[test]
fn a_new_syn_reuses_a_connection_in_time_wait() {
    let mut sim = Sim::new(lines_config());
    let old = time_wait(&mut sim, 5000);
    // Not with a sequence number of the old connection: that may be a SYN that was long under way.
    let mut stale = Raw::new(Version::V4, 5000);
    stale.seq = old.seq.wrapping_sub(5);
    let answers = stale.syn(&mut sim);
    assert!(answers.iter().all(|answer| answer.flags & SYN == 0));

    let mut new = Raw::new(Version::V4, 5000);
    new.seq = old.seq.wrapping_add(1);
    let answers = new.syn(&mut sim);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].flags, SYN | ACK);
    new.ack = answers[0].seq.wrapping_add(1);
    assert_eq!(new.request(&mut sim, b"reply again\n"), b"<again>\n");
    assert_eq!(sim.flows(), 1);
    assert_at_rest(&mut sim);
}

/// Asks for a connection, as a peer does that repeats its SYN and resets what does not answer it (RFC 9293 section
/// 3.10.7.3); returns it, and the seconds that it took.
fn insist(sim: &mut Sim, port: u16, isn: u32) -> (Raw, u64) {
    for seconds in 0..140 {
        let mut raw = Raw::new(Version::V4, port);
        raw.seq = isn;
        let answers = raw.syn(sim);
        if let Some(offer) = answers.iter().find(|answer| answer.flags & SYN != 0) {
            raw.ack = offer.seq.wrapping_add(1);
            return (raw, seconds);
        }
        for answer in answers {
            let reset = Segment {
                seq: answer.ack,
                ..raw.segment(RST, b"")
            };
            assert!(raw.send_segment(sim, &reset).is_empty());
        }
        sim.advance(Duration::from_secs(1));
        sim.turn();
    }
    panic!("no answer");
}

/// RFC 1122 section 4.2.2.13: who begins behind the old numbers need not wait for TIME-WAIT to end (but for where
/// our own numbers would be those of the last connection); who begins before them waits that long at most.
#[test]
fn the_same_ends_are_used_again_and_again_after_our_close() {
    for (distance, immediate, most) in [
        (1u32, 50, 68),
        (1 << 20, 50, 68),
        (5000u32.wrapping_neg(), 0, 61),
    ] {
        let mut sim = Sim::new(lines_config());
        let mut isn = 1000u32;
        let mut at_once = 0;
        for round in 0..64 {
            let (mut raw, seconds) = insist(&mut sim, 5000, isn);
            assert!(seconds <= most, "{seconds} s in round {round}");
            at_once += u32::from(round > 0 && seconds == 0);
            assert_eq!(raw.request(&mut sim, b"reply on\n"), b"<on>\n");
            let answers = raw.send(&mut sim, ACK, b"close\n");
            assert_eq!(raw.take(&mut sim, &answers), b"bye\n");
            raw.send(&mut sim, FIN | ACK, b"");
            assert_eq!((sim.flows(), sim.time_wait()), (1, 1));
            isn = raw.seq.wrapping_add(distance);
        }
        assert!(at_once >= immediate, "{at_once} with {distance}");
        sim.advance(Duration::from_secs(61));
        sim.turn();
        assert_eq!(sim.flows(), 0);
        assert_at_rest(&mut sim);
    }
}

/// Copies of what began a connection that come when it is gone begin no other one: their request is not served again.
#[test]
fn a_late_copy_of_a_handshake_is_refused() {
    for (closes_first, later) in [(true, 0), (true, 20), (true, 62), (false, 0), (false, 20)] {
        let mut sim = Sim::new(lines_config());
        let mut raw = Raw::new(Version::V4, 5000);
        raw.ack = raw.syn(&mut sim)[0].seq.wrapping_add(1);
        let line: &[u8] = if closes_first {
            b"close\n"
        } else {
            b"reply x\n"
        };
        let copies = [raw.segment(ACK, b""), raw.segment(ACK | PSH, line)];
        let answers = raw.send(&mut sim, ACK | PSH, line);
        raw.take(&mut sim, &answers);
        let last = raw.send(&mut sim, FIN | ACK, b"");
        if !closes_first {
            let fin = last.last().unwrap();
            assert_eq!(fin.flags & FIN, FIN);
            raw.ack = fin.seq.wrapping_add(1);
            raw.send(&mut sim, ACK, b"");
            assert_eq!(sim.flows(), 0);
        }
        assert_eq!(counter(&sim, "tcp_requests"), 1);
        sim.advance(Duration::from_secs(later));
        sim.turn();
        let left = sim.flows();
        for copy in &copies {
            for answer in raw.send_segment(&mut sim, copy) {
                assert!(
                    answer.payload.is_empty() && answer.flags & SYN == 0,
                    "{answer:?}"
                );
            }
        }
        assert_eq!(
            (counter(&sim, "tcp_requests"), counter(&sim, "flows_opened")),
            (1, 1)
        );
        assert_eq!(sim.flows(), left);
        assert_at_rest(&mut sim);
    }
}

#[test]
fn time_wait_acknowledges_a_repeated_fin() {
    let mut sim = Sim::new(lines_config());
    let mut raw = time_wait(&mut sim, 5000);
    raw.seq = raw.seq.wrapping_sub(1);
    sim.advance(Duration::from_secs(2));
    let answers = raw.send(&mut sim, FIN | ACK, b"");
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].flags, answers[0].ack), (ACK, raw.seq));
}

/// It is the peer's to repeat its SYN; nothing here waits for it.
#[test]
fn an_incomplete_handshake_is_forgotten_at_once() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::new(Version::V6, 5000);
    assert_eq!(raw.syn(&mut sim).len(), 1);
    assert_eq!((sim.flows(), sim.next_deadline()), (0, None));
    sim.advance(Duration::from_secs(10));
    sim.turn();
    assert!(raw.received(&sim).is_empty());
    assert_at_rest(&mut sim);
}

#[test]
fn a_reset_in_the_handshake_ends_it() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::new(Version::V4, 5000);
    raw.syn(&mut sim);
    assert!(raw.send(&mut sim, RST, b"").is_empty());
    assert_eq!(sim.flows(), 0);
    assert_at_rest(&mut sim);
}

/// A lost SYN-ACK, or a lost ACK of it.
#[test]
fn a_repeated_syn_gets_the_same_answer() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::new(Version::V4, 5000);
    let first = raw.syn(&mut sim);
    raw.ack = first[0].seq.wrapping_add(1);
    sim.advance(Duration::from_millis(1100));
    raw.seq = raw.seq.wrapping_sub(1);
    let repeated = raw.syn(&mut sim);
    assert_eq!(repeated, first);
    assert_eq!(raw.request(&mut sim, b"data"), b"data");
}

#[test]
fn data_in_a_syn_is_not_served_before_the_handshake_is_complete() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::new(Version::V4, 5000);
    let syn = Segment {
        ack: 0,
        ..raw.segment(SYN, b"early")
    };
    let answers = raw.send_segment(&mut sim, &syn);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].flags, SYN | ACK);
    assert_eq!(answers[0].ack, raw.seq + 1, "the data is not acknowledged");
    raw.seq += 1;
    raw.ack = answers[0].seq.wrapping_add(1);
    assert_eq!(raw.request(&mut sim, b"early"), b"early");
}

#[test]
fn idle_connections_are_closed_in_order() {
    let mut config = echo_config();
    config.streams[0].idle_timeout = Some(Duration::from_secs(30));
    let mut world = World::new(config);
    let handle = world.connected(Version::V4);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.request(handle, b"awake", 5), b"awake");
    world.run_for(Duration::from_secs(29));
    assert_eq!(world.socket(handle).state(), State::Established);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.socket(handle).state(), State::CloseWait);
    assert_eq!(counter(&world.sim, "idle_timeouts"), 1);
    world.close(handle);
    assert_all_over(&mut world);
}

#[test]
fn without_an_idle_timeout_a_connection_stays() {
    let mut world = World::new(echo_config());
    let handle = world.connected(Version::V4);
    assert_eq!(world.request(handle, b"once", 4), b"once");
    world.run_for(Duration::from_secs(100_000));
    assert_eq!(world.request(handle, b"more", 4), b"more");
}

#[test]
fn an_incomplete_request_times_out_with_the_handlers_reply() {
    let mut config = lines_config();
    config.streams[0].request_timeout = Duration::from_secs(5);
    let mut world = World::new(config);
    let handle = world.connected(Version::V6);
    assert_eq!(world.request(handle, b"reply a\nreply b", 4), b"<a>\n");
    // Byte by byte does not make it younger.
    for _ in 0..4 {
        world.run_for(Duration::from_secs(1));
        world.socket(handle).send_slice(b"b").unwrap();
    }
    assert_eq!(world.socket(handle).state(), State::Established);
    let received = world.exchange(handle, b"", 100, Duration::from_secs(2));
    assert_eq!(received, b"timeout:reply bbbbb");
    assert_eq!(counter(&world.sim, "request_timeouts"), 1);
    world.close(handle);
    assert_all_over(&mut world);
}

#[test]
fn a_client_that_takes_nothing_is_reset_in_the_end() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    raw.window = 0;
    raw.send(&mut sim, ACK, b"content 10000\n");
    let mut reset = false;
    while sim.flows() > 0 {
        sim.advance(Duration::from_millis(500));
        sim.turn();
        for probe in raw.received(&sim) {
            reset |= probe.flags & RST != 0;
            // The window stays closed, but somebody is there (RFC 9293 section 3.8.6.1).
            if !reset {
                raw.send(&mut sim, ACK, b"");
            }
        }
        assert!(sim.now().total_millis() < 1_000_000, "it waits for ever");
    }
    assert!(reset);
    assert_eq!(counter(&sim, "stall_timeouts"), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn a_client_that_vanishes_is_given_up() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let first = raw.send(&mut sim, ACK, b"reply x\n");
    assert_eq!(first.len(), 1);
    let mut repeats = 0;
    while sim.flows() > 0 {
        sim.advance(Duration::from_millis(100));
        sim.turn();
        repeats += raw.received(&sim).len();
        assert!(sim.now().total_millis() < 400_000, "it waits for ever");
    }
    assert!(repeats > 3, "only {repeats} retransmissions");
    assert_eq!(sim.next_deadline(), None);
    assert_at_rest(&mut sim);
}

/// A peer that keeps sending after we closed holds its connection for a bounded time.
#[test]
fn a_client_that_never_closes_is_reset() {
    for talks in [false, true] {
        let mut sim = Sim::new(lines_config());
        let mut raw = Raw::open(&mut sim, Version::V4, 5000);
        let answers = raw.send(&mut sim, ACK, b"close\n");
        assert_eq!(raw.take(&mut sim, &answers), b"bye\n");
        let mut answers = Vec::new();
        while sim.flows() > 0 {
            sim.advance(Duration::from_secs(1));
            sim.turn();
            answers.extend(raw.received(&sim));
            if talks && sim.flows() > 0 {
                answers.extend(raw.send(&mut sim, ACK, b"and another thing\n"));
            }
            assert!(sim.now().total_millis() < 100_000, "talks: {talks}");
        }
        assert_ne!(answers.last().unwrap().flags & RST, 0, "talks: {talks}");
        assert_at_rest(&mut sim);
    }
}

#[test]
fn a_closed_window_opens_again() {
    for version in BOTH {
        let mut world = World::new(lines_config());
        let handle = world.connect_with(version, 4096);
        assert!(world.run_until(Duration::from_secs(10), |world| {
            world.socket(handle).may_send()
        }));
        world
            .socket(handle)
            .send_slice(b"content 100000\n")
            .unwrap();
        // The client reads nothing: its window closes.
        world.run_for(Duration::from_secs(30));
        assert_eq!(world.socket(handle).recv_queue(), 4096);
        let received = world.exchange(handle, b"", 100_000, Duration::from_secs(100));
        assert!(received == pattern(100_000));
        assert_eq!(world.request(handle, b"reply on\n", 5), b"<on>\n");
        world.close(handle);
        assert_all_over(&mut world);
    }
}

/// Frames under way are all that there are: segments wait for them instead of getting lost for good.
#[test]
fn an_exhausted_arena_recovers() {
    let mut service = stream(Lines);
    service.slow = Some(std::sync::Arc::new(Lines));
    let mut config = SimConfig {
        streams: vec![service],
        ..SimConfig::default()
    };
    config.limits.frames = 8;
    config.limits.loans = 8;
    let mut sim = Sim::new(config);
    let mut peers: Vec<Raw> = (0..8)
        .map(|number| Raw::open(&mut sim, Version::V4, 5000 + number))
        .collect();
    // Every frame is lent.
    for raw in &mut peers {
        assert!(raw.send(&mut sim, ACK, b"defer reply x\n").is_empty());
    }
    assert_eq!(sim.frames().of(interruptlet::arena::Owner::Loan), 8);
    // What arrives waits; what is due cannot be sent.
    let mut late = Raw::new(Version::V4, 6000);
    assert!(late.syn(&mut sim).is_empty());
    sim.advance(Duration::from_secs(1));
    sim.turn();
    assert_eq!(sim.run_jobs(64), 8);
    let mut answers = Vec::new();
    for _ in 0..10 {
        sim.turn();
        answers.extend(sent(&sim));
        sim.advance(Duration::from_millis(2));
    }
    for raw in &mut peers {
        let own = common::raw::segments(&answers, raw.port);
        assert_eq!(raw.take(&mut sim, &own), b"<x>\n");
    }
    assert_eq!(common::raw::segments(&answers, 6000)[0].flags, SYN | ACK);
    assert_at_rest(&mut sim);
}

/// A reply of many segments leaves although there are only a few frames.
#[test]
fn a_reply_larger_than_the_arena_leaves_in_parts() {
    let mut config = lines_config();
    config.limits.frames = 4;
    let mut world = World::new(config);
    let handle = world.connected(Version::V4);
    let reply = world.request(handle, b"content 200000\n", 200_000);
    assert!(reply == pattern(200_000));
    assert!(counter(&world.sim, "tx_no_frame") > 0);
    world.close(handle);
    assert_all_over(&mut world);
}

/// The echo handler on the same port number as another version's connection: flows are told apart by all
/// four parts of their key.
#[test]
fn connections_with_equal_ports_are_told_apart() {
    let mut sim = Sim::new(SimConfig {
        streams: vec![stream(Echo)],
        ..SimConfig::default()
    });
    let mut v4 = Raw::open(&mut sim, Version::V4, 5000);
    let mut v6 = Raw::open(&mut sim, Version::V6, 5000);
    assert_eq!(v4.request(&mut sim, b"four"), b"four");
    assert_eq!(v6.request(&mut sim, b"six"), b"six");
    v4.send(&mut sim, RST, b"");
    assert_eq!(v6.request(&mut sim, b"six"), b"six");
    assert_at_rest(&mut sim);
}

#[test]
fn a_request_may_come_with_the_fin() {
    for version in BOTH {
        let mut sim = Sim::new(lines_config());
        let mut raw = Raw::open(&mut sim, version, 5000);
        let answers = raw.send(&mut sim, FIN | ACK, b"reply a\nreply b\nrest");
        let payload: Vec<u8> = answers
            .iter()
            .flat_map(|answer| answer.payload.clone())
            .collect();
        assert_eq!(payload, b"<a>\n<b>\n");
        let last = answers.last().unwrap();
        assert_eq!((last.flags & FIN, last.ack), (FIN, raw.seq));
        raw.ack = last.seq.wrapping_add(last.payload.len() as u32 + 1);
        assert!(raw.send(&mut sim, ACK, b"").is_empty());
        assert_eq!(sim.flows(), 0, "who closes last has no TIME-WAIT");
        assert_at_rest(&mut sim);
    }
}

#[test]
fn both_sides_may_close_at_the_same_time() {
    let mut sim = Sim::new(lines_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let ack_before = raw.ack;
    let answers = raw.send(&mut sim, ACK, b"close\n");
    assert_ne!(answers.last().unwrap().flags & FIN, 0);
    // Our FIN was sent before the worker's arrived.
    assert_eq!(raw.ack, ack_before);
    raw.send(&mut sim, FIN | ACK, b"");
    raw.ack = raw.ack.wrapping_add(b"bye\n".len() as u32 + 1);
    raw.send(&mut sim, ACK, b"");
    assert_eq!(sim.time_wait(), 1);
    sim.advance(Duration::from_secs(61));
    sim.turn();
    assert_eq!(sim.flows(), 0);
    assert_at_rest(&mut sim);
}

/// RFC 5961: blind segments do not harm a connection.
#[test]
fn stray_syns_and_resets_do_not_end_a_connection() {
    let mut sim = Sim::new(echo_config());
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let syn = Segment {
        seq: raw.seq.wrapping_add(100_000),
        ack: 0,
        ..raw.segment(SYN, b"")
    };
    for answer in raw.send_segment(&mut sim, &syn) {
        assert_eq!(
            (answer.flags, answer.ack),
            (ACK, raw.seq),
            "a challenge ACK"
        );
    }
    for away in [-1, 1 << 20, i32::MIN] {
        let reset = Segment {
            seq: raw.seq.wrapping_add_signed(away),
            ..raw.segment(RST, b"")
        };
        raw.send_segment(&mut sim, &reset);
    }
    assert_eq!(raw.request(&mut sim, b"still here"), b"still here");
    assert_at_rest(&mut sim);
}

/// What comes behind a reset is answered as for a connection that is no more, in the same turn too.
#[test]
fn nothing_is_said_on_a_connection_behind_its_reset() {
    for engine_only in [false, true] {
        let mut sim = Sim::new(lines_config());
        sim.set_engine_only(engine_only);
        let mut raw = Raw::open(&mut sim, Version::V4, 5000);
        let len = 200_000;
        let request = format!("content {len}\n");
        assert_eq!(raw.request(&mut sim, request.as_bytes()).len(), len);
        assert_eq!(sim.flows(), 1);
        let reset = raw.segment(RST, b"");
        let old = Segment {
            ack: raw.ack.wrapping_sub(100_000),
            ..raw.segment(ACK, b"")
        };
        for segment in [&reset, &old] {
            sim.peer().inject(&segment.frame(raw.ends));
        }
        sim.turn();
        let answers = raw.received(&sim);
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!((answers[0].flags, answers[0].seq), (RST, old.ack));
        assert_eq!((sim.flows(), sim.engines()), (0, 0));
        assert_at_rest(&mut sim);
    }
}

/// Bytes beyond the window are not taken, and the rest of the segment is.
#[test]
fn what_does_not_fit_the_window_is_cut() {
    let mut config = lines_config();
    config.limits.flows = 4;
    let mut service = stream(Lines);
    service.slow = Some(std::sync::Arc::new(Lines));
    config.streams = vec![service];
    let mut sim = Sim::new(config);
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    // While a request is deferred nothing is consumed.
    raw.send(&mut sim, ACK, b"defer reply 0\n");
    let line = [&b"silence "[..], &[b'x'; 991], b"\n"].concat();
    let start = raw.seq;
    let mut acks = Vec::new();
    for _ in 0..20 {
        acks.extend(raw.send(&mut sim, ACK, &line));
    }
    sim.advance(Duration::from_millis(20));
    sim.turn();
    acks.extend(raw.received(&sim));
    let last = acks.last().unwrap();
    assert_eq!(last.window, 0);
    assert_eq!(last.ack, start + 16 * 1024);
    // Once it is answered, the window opens and the rest is welcome.
    sim.run_jobs(1);
    sim.turn();
    let answers = raw.received(&sim);
    raw.seq = start + 16 * 1024;
    assert_eq!(raw.take(&mut sim, &answers), b"<0>\n");
    let rest = [&line.repeat(20)[16 * 1024..], b"reply 1\n"].concat();
    let mut reply = Vec::new();
    for part in rest.chunks(1400) {
        reply.extend(raw.request(&mut sim, part));
    }
    assert_eq!(reply, b"<1>\n");
    assert_at_rest(&mut sim);
}
