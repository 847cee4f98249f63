//! Whatever handles a segment, an engine or the worker itself, and however often that changes within a connection:
//! the peer sees the same bytes and the same end, and an oracle sees nothing wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use common::dialogue::{
    ATTENTIONS, Attention, Handled, Heard, Plan, Send, Way, converse_counted, converse_together,
};
use common::handlers::answer;
use common::pair::*;
use common::plans::{config, expected, plans};
use common::*;
use interruptlet::Duration;
use interruptlet::client::End;
use interruptlet::sim::SimConfig;

/// What a plan comes to, whoever handles its segments.
fn assert_complete(heard: &Heard, plan: &Plan, what: &str) {
    let whole = heard.bytes == expected(plan);
    let part = plan.resets && expected(plan).starts_with(&heard.bytes);
    let told = heard.bytes.escape_ascii();
    assert!(whole || part, "{}, {what}: {told}", plan.name);
    assert!(heard.fin || plan.resets, "{}, {what}", plan.name);
}

fn every_mask(attention: Attention) {
    let mut dismissed = 0;
    for plan in plans() {
        let segments = 1 + plan.sends.len();
        assert!(segments <= 8, "{}", plan.name);
        for version in BOTH {
            let way = |engines| Way {
                attention,
                engines,
                ..Way::new(version)
            };
            let (direct, handled) = converse_counted(config(), &plan, way(0));
            assert_complete(&direct, &plan, "all direct");
            assert_eq!(handled.asked, 0);
            let mut switched = Handled::default();
            for engines in 1..1 << segments {
                let (heard, handled) = converse_counted(config(), &plan, way(engines));
                assert!(
                    heard == direct,
                    "{} over {version:?}, {attention:?}, engines for {engines:#b}",
                    plan.name
                );
                switched.asked += handled.asked;
                switched.dismissed += handled.dismissed;
            }
            // That each segment went where its bit says was checked as it was sent.
            assert!(switched.asked > 0, "{}", plan.name);
            dismissed += switched.dismissed;
        }
    }
    // And back: only where nothing is in flight.
    assert!(dismissed > 100, "{dismissed}");
}

#[test]
fn a_client_that_acknowledges_sees_no_difference() {
    every_mask(ATTENTIONS[0]);
}

#[test]
fn a_client_that_acknowledges_late_sees_no_difference() {
    every_mask(ATTENTIONS[1]);
}

#[test]
fn a_client_that_loses_everything_sees_no_difference() {
    every_mask(ATTENTIONS[2]);
}

/// Few segments by engines, many, and every other one.
const MASKS: [u64; 4] = [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa];

/// RFC 5961 section 3.2: a reset that is not exactly what is expected next changes nothing, wherever it comes; one that
/// is ends the connection.
#[test]
fn a_reset_at_any_place_ends_the_connection_or_changes_nothing() {
    let mut challenges = 0;
    let mut ended = 0;
    for (number, plan) in plans().iter().enumerate() {
        for place in 0..=plan.sends.len() {
            let version = BOTH[(number + place) % 2];
            // In the window, beyond it, before it, and where it counts.
            for offset in [1, 100, 20_000, -1, 0] {
                let mut with_reset = plan.clone();
                with_reset.sends.insert(place, Send::Reset(offset));
                for engines in MASKS {
                    let way = Way {
                        engines,
                        ..Way::new(version)
                    };
                    let (heard, handled) = converse_counted(config(), &with_reset, way);
                    let what = format!("{offset} away at {place}, engines for {engines:#b}");
                    let ends = offset == 0 && heard.reset && !plan.resets;
                    if ends {
                        assert!(expected(plan).starts_with(&heard.bytes));
                        ended += 1;
                    } else {
                        assert_complete(&heard, plan, &what);
                    }
                    if offset == 100 {
                        challenges += handled.challenges;
                    }
                }
            }
        }
    }
    assert!(challenges > 300 && ended > 300, "{challenges} {ended}");
}

#[test]
fn two_connections_at_a_time_see_no_difference() {
    let plans = plans();
    for (number, plan) in plans.iter().enumerate() {
        for distance in [0, 1, 5, 11] {
            let other = &plans[(number + distance) % plans.len()];
            for (mask, attention) in MASKS.into_iter().zip(ATTENTIONS.into_iter().cycle()) {
                // One has an engine while the other one has none, or both change hands.
                for other_mask in [!mask, mask.rotate_left(1)] {
                    let ways = [(5000, mask), (5001, other_mask)].map(|(port, engines)| Way {
                        port,
                        attention,
                        engines,
                        ..Way::new(BOTH[number % 2])
                    });
                    let both = [(plan, ways[0]), (other, ways[1])];
                    let heard = converse_together(config(), &both);
                    assert_complete(&heard[0], plan, &format!("{ways:?}"));
                    assert_complete(&heard[1], other, &format!("{ways:?}"));
                }
            }
        }
    }
}

/// The smallest that IPv6 allows, and the largest that a simulated frame holds.
#[test]
fn packets_of_any_size_make_no_difference() {
    for mtu in [1280, 1700] {
        let mut largest = 0;
        let fits = |send: &Send| !matches!(send, Send::Data(from, to) if to - from > mtu - 60);
        let plans = plans();
        let plans = plans.iter().filter(|plan| plan.sends.iter().all(fits));
        for (number, plan) in plans.enumerate() {
            for attention in ATTENTIONS {
                for engines in MASKS {
                    let sized = SimConfig { mtu, ..config() };
                    let way = Way {
                        attention,
                        engines,
                        mss: 8960,
                        ..Way::new(BOTH[number % 2])
                    };
                    let (heard, handled) = converse_counted(sized, plan, way);
                    assert_complete(&heard, plan, &format!("{mtu}, {way:?}"));
                    largest = largest.max(handled.largest);
                }
            }
        }
        assert_eq!(largest, mtu - 40);
    }
}

/// What the client side is told of one connection: its bytes and its end.
fn told(
    version: Version,
    writes: &[&[u8]],
    closes: bool,
    engines: u32,
    server: bool,
) -> (Vec<u8>, End) {
    let mut pair = Pair::new(config(), |client| client.limits.frames = 64);
    pair.runs_jobs = true;
    pair.server.set_engine_only(server);
    pair.resolve(version);
    let mut segment = 0;
    pair.before_client = Some(Box::new(move |client| {
        client.set_engine_only(engines >> segment & 1 == 1);
        segment = (segment + 1) % MASK_BITS;
    }));
    pair.wish(Wish::Open(
        source(version, 1, 1024),
        common::pair::server(version),
        1,
    ));
    pair.settle();
    for write in writes {
        pair.wish(Wish::Send(1, write.to_vec()));
        pair.settle();
    }
    if closes {
        pair.wish(Wish::Close(1));
    }
    let closed = pair.run_until(Duration::from_secs(5), |shared| shared.is_closed(1));
    assert!(closed, "{}", pair.history());
    pair.shared.lock().unwrap().tick = Some(Duration::from_secs(1));
    pair.step_max = Duration::from_secs(1);
    pair.run_until(Duration::from_secs(70), |_| false);
    assert_eq!(
        (pair.client.flows(), pair.server.flows()),
        (0, 0),
        "{}",
        pair.history()
    );
    assert_at_rest(&mut pair.client);
    assert_at_rest(&mut pair.server);
    let Some(Event::Closed(1, end)) = pair.events().last().cloned() else {
        panic!("{:?}", pair.events());
    };
    (pair.received(1), end)
}

/// Segments at the client that a mask tells apart; then it begins anew.
const MASK_BITS: u32 = 6;

#[test]
fn a_client_side_sees_no_difference() {
    let conversations: [(&[&[u8]], bool, End); 6] = [
        (&[b"place hello\n"], true, End::Closed),
        (
            &[
                b"place hello\n",
                b"reply you\nplace again\n",
                b"pla",
                b"ce last\n",
            ],
            true,
            End::Closed,
        ),
        (&[b"content 9000\n", b"place after\n"], true, End::Closed),
        (&[b"place x\nclose\n"], false, End::Closed),
        (&[b"place x\n", b"abort\n"], false, End::Reset),
        (&[], true, End::Closed),
    ];
    for (writes, closes, end) in conversations {
        let asked = writes.concat();
        let lines = asked.split_inclusive(|byte| *byte == b'\n');
        let expected: Vec<u8> = lines.flat_map(answer).collect();
        for version in BOTH {
            for server in [false, true] {
                for engines in 0..1 << MASK_BITS {
                    let heard = told(version, writes, closes, engines, server);
                    assert!(
                        heard == (expected.clone(), end),
                        "{} over {version:?}, engines for {engines:#b} and the server {server}: {:?}",
                        asked.escape_ascii(),
                        heard.1
                    );
                }
            }
        }
    }
}

/// RFC 9293 section 3.5, MUST-10: two client sides whose SYNs cross have one connection, whoever handles it.
#[test]
fn two_client_sides_open_at_the_same_time() {
    for version in BOTH {
        for engines in 0..4 {
            let far = Arc::new(Mutex::new(Shared::default()));
            let far_prefixes = ["10.9.2.0/24", "fd09:2::/64"].map(|text| text.parse().unwrap());
            let other = SimConfig {
                addresses: Vec::new(),
                sources: far_prefixes.to_vec(),
                client: Some(common::pair::told(&far)),
                ..SimConfig::default()
            };
            let mut pair = Pair::new(other, |_| {});
            pair.client.set_engine_only(engines & 1 != 0);
            pair.server.set_engine_only(engines & 2 != 0);
            let near_end = source(version, 1, 1024);
            let far_end = match version {
                Version::V4 => SocketAddr::from(([10, 9, 2, 1], 1025)),
                Version::V6 => SocketAddr::from(([0xfd09, 2, 0, 0, 0, 0, 0, 1], 1025)),
            };
            pair.shared.lock().unwrap().reach.push(far_end.ip());
            far.lock().unwrap().reach.push(near_end.ip());
            pair.settle();
            pair.wish(Wish::Open(near_end, far_end, 1));
            far.lock()
                .unwrap()
                .wishes
                .push(Wish::Open(far_end, near_end, 2));
            pair.settle();
            pair.wish(Wish::Send(1, b"from here".to_vec()));
            far.lock()
                .unwrap()
                .wishes
                .push(Wish::Send(2, b"from there".to_vec()));
            pair.settle();
            pair.wish(Wish::Close(1));
            let closed = pair.run_until(Duration::from_secs(5), |shared| shared.is_closed(1));
            assert!(closed, "{}", pair.history());
            let near = [
                Event::Connected(1),
                Event::Received(1, b"from there".to_vec()),
                Event::Closed(1, End::Closed),
            ];
            let there = [
                Event::Connected(2),
                Event::Received(2, b"from here".to_vec()),
                Event::Ended(2),
                Event::Closed(2, End::Closed),
            ];
            assert_eq!(pair.events(), near, "{}", pair.history());
            assert_eq!(far.lock().unwrap().events, there, "{}", pair.history());
            // Neither was begun by a SYN that came to a service.
            assert_eq!(counter(&pair.server, "cookies_sent"), 0);
            assert_eq!(counter(&pair.server, "active_opens"), 1);
            pair.step_max = Duration::from_secs(1);
            pair.run_until(Duration::from_secs(70), |_| false);
            assert_eq!((pair.client.flows(), pair.server.flows()), (0, 0));
            assert_at_rest(&mut pair.client);
            assert_at_rest(&mut pair.server);
        }
    }
}
