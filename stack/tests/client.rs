//! The client side: connections that a worker opens and datagrams that it sends, against a server worker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;

use common::handlers::Echo;
use common::packets::arp_request;
use common::pair::*;
use common::*;
use interruptlet::Duration;
use interruptlet::client::{End, OpenError, Reach};
use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use interruptlet::port::faulty::Faults;
use interruptlet::sim::SimConfig;

const SECOND: Duration = Duration::from_secs(1);

fn pair() -> Pair {
    Pair::new(echo_config(), |_| {})
}

/// A pair with a connection, called 1.
fn connected(version: Version) -> Pair {
    let mut pair = pair();
    pair.resolve(version);
    open(&mut pair, version, 1);
    pair
}

fn open(pair: &mut Pair, version: Version, token: u64) {
    let local = source(version, 1, 1024 + token as u16);
    pair.wish(Wish::Open(local, server(version), token));
    pair.settle();
    assert!(pair.events().contains(&Event::Connected(token)));
}

fn finish(mut pair: Pair) {
    assert_at_rest(&mut pair.client);
    assert_at_rest(&mut pair.server);
}

#[test]
fn events_come_in_order() {
    for version in BOTH {
        let mut pair = connected(version);
        pair.echo(1, 64, SECOND);
        pair.wish(Wish::Close(1));
        pair.settle();
        let closed = Event::Closed(1, End::Closed);
        let expected = [Event::Connected(1), Event::Received(1, pattern(64)), closed];
        assert_eq!(pair.events(), expected);
        assert_eq!(counter(&pair.client, "active_opens"), 1);
        finish(pair);
    }
}

#[test]
fn more_than_the_send_buffer_is_sent_as_room_comes() {
    let mut pair = connected(Version::V4);
    pair.echo(1, 200_000, SECOND);
    finish(pair);
}

#[test]
fn a_port_that_nobody_serves_refuses() {
    for version in BOTH {
        let mut pair = pair();
        pair.resolve(version);
        let closed = SocketAddr::new(version.server(), CLOSED_PORT);
        pair.wish(Wish::Open(source(version, 1, 1024), closed, 7));
        pair.settle();
        assert_eq!(pair.events(), [Event::Closed(7, End::Refused)]);
        assert_eq!(pair.client.flows(), 0);
        finish(pair);
    }
}

#[test]
fn a_handshake_without_an_answer_times_out() {
    let mut pair = pair();
    pair.resolve(Version::V4);
    pair.connected = false;
    let local = source(Version::V4, 1, 1024);
    pair.wish(Wish::Open(local, server(Version::V4), 7));
    let over = pair.run_until(Duration::from_secs(20), |shared| !shared.events.is_empty());
    assert!(over);
    assert_eq!(pair.events(), [Event::Closed(7, End::ConnectTimeout)]);
    // The SYN was repeated.
    assert!(counter(&pair.client, "tx_frames") >= 4);
    finish(pair);
}

#[test]
fn a_peer_that_vanishes_is_given_up() {
    let mut pair = connected(Version::V4);
    pair.connected = false;
    pair.wish(Wish::Send(1, pattern(10)));
    let closed = |shared: &Shared| shared.events.len() > 1;
    assert!(pair.run_until(Duration::from_secs(400), closed));
    assert_eq!(pair.events()[1], Event::Closed(1, End::Unanswered));
    finish(pair);
}

/// Does one thing to each connection that sends something.
struct Rude(fn(StreamRequest<'_>) -> StreamReply);

impl StreamInterruptlet for Rude {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        (self.0)(request)
    }
}

fn rude(rudeness: fn(StreamRequest<'_>) -> StreamReply) -> Pair {
    let config = SimConfig {
        streams: vec![stream(Rude(rudeness))],
        ..SimConfig::default()
    };
    let mut pair = Pair::new(config, |_| {});
    pair.resolve(Version::V4);
    open(&mut pair, Version::V4, 1);
    pair
}

#[test]
fn a_reset_by_the_peer_is_told() {
    let mut pair = rude(|request| request.abort());
    pair.wish(Wish::Send(1, pattern(10)));
    pair.settle();
    assert_eq!(pair.events()[1..], [Event::Closed(1, End::Reset)]);
    finish(pair);
}

#[test]
fn the_end_of_the_peers_side_is_told_after_its_last_bytes() {
    let mut pair = rude(|request| {
        let len = request.bytes().len();
        let mut reply = request.reply(len);
        reply.write(b"bye");
        reply.send_and_close()
    });
    pair.wish(Wish::Send(1, pattern(10)));
    pair.settle();
    let expected = [
        Event::Received(1, b"bye".to_vec()),
        Event::Ended(1),
        Event::Closed(1, End::Closed),
    ];
    assert_eq!(pair.events()[1..], expected);
    finish(pair);
}

#[test]
fn our_own_reset_is_told_and_gets_there() {
    let mut pair = connected(Version::V6);
    pair.wish(Wish::Abort(1));
    pair.settle();
    assert_eq!(pair.events()[1..], [Event::Closed(1, End::Aborted)]);
    assert_eq!((pair.client.flows(), pair.server.flows()), (0, 0));
    finish(pair);
}

#[test]
fn a_slow_reader_closes_the_window_and_gets_everything() {
    let mut pair = connected(Version::V4);
    {
        let mut shared = pair.shared.lock().unwrap();
        shared.takes = Some(1000);
        shared.pause = 10_000_000;
    }
    pair.wish(Wish::Send(1, pattern(100_000)));
    // 1,000 bytes every 10 ms.
    pair.run_until(SECOND / 2, |_| false);
    let soon = pair.received(1).len();
    assert!(
        (40_000..60_000).contains(&soon),
        "{soon} bytes in half a second"
    );
    pair.run_until(Duration::from_secs(2), |_| false);
    assert!(pair.received(1) == pattern(100_000));
    finish(pair);
}

#[test]
fn every_source_address_has_connections() {
    let mut pair = Pair::new(echo_config(), |_| {});
    pair.resolve(Version::V4);
    for host in 1..=254u8 {
        let local = source(Version::V4, host, 5000);
        pair.wish(Wish::Open(local, server(Version::V4), host.into()));
    }
    pair.settle();
    let connected = pair.events().len();
    assert_eq!((connected, pair.client.flows()), (254, 254));
    for host in [1, 100, 254] {
        pair.echo(host, 64, SECOND);
    }
    finish(pair);
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let mut pair = Pair::new(echo_config(), |client| client.limits.flows = 1);
    let (local, peer) = (source(Version::V4, 1, 1024), server(Version::V4));
    let foreign = SocketAddr::from(([10, 9, 2, 1], 1024));
    // The network's own broadcast address is no source.
    let broadcast = source(Version::V4, 255, 1024);
    let other_version = server(Version::V6);
    for (local, peer) in [
        (local, peer),
        (foreign, peer),
        (broadcast, peer),
        (local, other_version),
    ] {
        pair.wish(Wish::Open(local, peer, 1));
    }
    pair.settle();
    pair.resolve(Version::V4);
    for port in [1024, 1024, 1025] {
        pair.wish(Wish::Open(source(Version::V4, 1, port), peer, 1));
    }
    pair.wish(Wish::Open(source(Version::V4, 1, 0), peer, 1));
    pair.settle();
    use OpenError::*;
    let expected = [Unreachable, BadEnds, BadEnds, BadEnds, InUse, Full, BadEnds];
    assert_eq!(pair.shared.lock().unwrap().refused, expected);
    assert_eq!(pair.events(), [Event::Connected(1)]);
    finish(pair);
}

#[test]
fn datagrams_go_out_and_come_back() {
    for version in BOTH {
        let mut pair = pair();
        pair.resolve(version);
        let (local, peer) = (source(version, 9, 4000), server(version));
        for len in [0, 1, 1000] {
            pair.wish(Wish::Datagram(local, peer, pattern(len)));
        }
        pair.settle();
        let expected = [0, 1, 1000].map(|len| Event::Datagram(local, peer, pattern(len)));
        assert_eq!(pair.events(), expected);
        assert_eq!(counter(&pair.client, "client_datagrams"), 3);
        finish(pair);
    }
}

#[test]
fn nobody_there_is_unreachable_after_three_seconds() {
    let mut pair = pair();
    pair.connected = false;
    pair.shared.lock().unwrap().reach.push(Version::V4.server());
    let given_up = |shared: &Shared| shared.reached == [Reach::Unreachable];
    assert!(!pair.run_until(Duration::from_millis(2900), given_up));
    assert!(pair.run_until(Duration::from_millis(300), given_up));
    assert_eq!(counter(&pair.client, "neighbours_asked"), 12);
    finish(pair);
}

#[test]
fn a_gateway_is_asked_for_instead_of_a_peer_beyond_it() {
    let mut pair = Pair::new(echo_config(), |client| {
        client.addresses = vec!["192.0.2.9/24".parse().unwrap()];
        client.gateways = vec![Version::V4.server()];
    });
    // The server is the gateway; nobody is at that address, but the SYN goes to the gateway's link.
    pair.shared
        .lock()
        .unwrap()
        .reach
        .push("198.51.100.1".parse().unwrap());
    pair.settle();
    assert_eq!(pair.shared.lock().unwrap().reached, [Reach::Ready]);
    let beyond: SocketAddr = "198.51.100.1:7".parse().unwrap();
    pair.wish(Wish::Open(source(Version::V4, 1, 1024), beyond, 1));
    pair.tick();
    pair.client.turn();
    let frame = pair.client.peer().take().unwrap();
    assert_eq!(frame[..6], SERVER_LINK);
    finish(pair);
}

#[test]
fn questions_about_source_addresses_are_answered() {
    let mut pair = pair();
    for (target, answers) in [
        ([10, 9, 1, 77], 1),
        ([10, 9, 1, 255], 0),
        ([10, 9, 2, 1], 0),
    ] {
        let answered = exchange(&mut pair.client, &arp_request(target.into()));
        assert_eq!(answered.len(), answers, "{target:?}");
    }
}

#[test]
fn faults_on_the_wire_harm_no_byte() {
    for seed in 1..=30 {
        let mut config = echo_config();
        config.seed = seed;
        let mut pair = Pair::new(config, |_| {});
        // An oracle cannot see the faults of a worker's own port.
        pair.client_oracle = None;
        // Before there are faults: nothing guards ARP against corruption.
        pair.resolve(Version::V4);
        pair.client.set_faults(Faults {
            loss: 0.03,
            duplication: 0.03,
            reordering: 0.1,
            corruption: 0.02,
            delay_max: Duration::from_millis(5),
            ..Faults::default()
        });
        for token in 1..=3u64 {
            let local = source(Version::V4, token as u8, 1024);
            pair.wish(Wish::Open(local, server(Version::V4), token));
        }
        let all_open = |shared: &Shared| {
            let connected = |event: &&Event| matches!(event, Event::Connected(_));
            shared.events.iter().filter(connected).count() == 3
        };
        assert!(
            pair.run_until(Duration::from_secs(60), all_open),
            "seed {seed}"
        );
        for token in 1..=3 {
            pair.echo(token, 20_000, Duration::from_secs(300));
        }
        pair.client.set_faults(Faults::default());
        pair.run_until(SECOND, |_| false);
        finish(pair);
    }
}

#[test]
fn a_datagram_for_a_service_is_not_the_clients() {
    let mut pair = Pair::new(echo_config(), |client| {
        client.addresses = vec!["192.0.2.2/24".parse().unwrap()];
        client.datagrams = vec![datagram(Echo)];
    });
    pair.resolve(Version::V4);
    // The server's echo comes to the port of the client's own service, which echoes it in turn.
    let own = SocketAddr::new(Version::V4.client(), PORT);
    pair.wish(Wish::Datagram(own, server(Version::V4), pattern(10)));
    pair.tick();
    pair.client.turn();
    let request = pair.client.peer().take().unwrap();
    let answers = exchange(&mut pair.server, &request);
    let echoes = exchange(&mut pair.client, &answers[0]);
    assert_eq!((echoes.len(), pair.events()), (1, vec![]));
    assert_eq!(counter(&pair.client, "udp_requests"), 1);
    finish(pair);
}
