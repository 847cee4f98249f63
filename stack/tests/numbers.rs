//! Sequence numbers that wrap, at every place of a connection that matters: the sign (2^31) and the number (2^32),
//! on the client's side and on ours, in flows and in engines.
//!
//! An ordinary run tries every place, and at each place one combination of edge, engines, version and attention, which
//! change from place to place; with `ILET_SEEDS` or `ILET_SEED` set it tries all combinations at every place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::dialogue::{Attention, Heard, Plan, Send, Way, converse, converse_with};
use common::oracle::Oracle;
use common::packets::{ACK, SYN};
use common::pair::*;
use common::plans::{config, expected, plan, plans};
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::client::End;
use interruptlet::sim::{Sim, SimConfig};

/// Where something may change: the sign, and the number itself.
const EDGES: [u32; 2] = [1 << 31, 0];

/// Which segments engines handle: none, all, or every other one.
const ENGINES: [u64; 4] = [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa];

/// The combinations to try at a place: all of them, or one.
fn chosen<T>(all: Vec<T>, place: u32) -> Vec<T> {
    if ["ILET_SEEDS", "ILET_SEED"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        return all;
    }
    let which = place as usize % all.len();
    all.into_iter().skip(which).take(1).collect()
}

/// Numbers from the SYN on at which an edge may lie so that something begins or ends there, or nearly.
fn places(boundaries: impl Iterator<Item = usize>, end: usize) -> BTreeSet<u32> {
    let near = boundaries.flat_map(|number| number.saturating_sub(1)..=number + 2);
    let all = (0..24).chain(near).chain(end..end + 4);
    all.map(|number| number as u32).collect()
}

/// A conversation that gives the same as it does with `usual` numbers.
fn assert_same(heard: &Heard, usual: &Heard, plan: &Plan, what: &str) {
    // What came before a reset may be lost with it.
    let part = plan.resets && usual.bytes.starts_with(&heard.bytes);
    let bytes = part || heard.bytes == usual.bytes;
    let same = bytes && (heard.fin, heard.reset) == (usual.fin, usual.reset);
    let told = heard.bytes.escape_ascii();
    assert!(same, "{}, {what}: {told}", plan.name);
}

#[test]
fn the_clients_numbers_wrap() {
    for plan in plans() {
        let usual = converse(config(), &plan, Way::new(Version::V4));
        let ends = plan.sends.iter().flat_map(|send| match send {
            Send::Data(from, to) | Send::WithOptions(from, to) => vec![*from, *to],
            _ => Vec::new(),
        });
        for place in places(ends, plan.stream.len()) {
            let edges = EDGES.iter();
            let all = edges.flat_map(|edge| ENGINES.map(|engines| (edge, engines)));
            for (edge, engines) in chosen(all.collect(), place) {
                let way = Way {
                    isn: edge.wrapping_sub(place),
                    engines,
                    ..Way::new(BOTH[place as usize % 2])
                };
                let heard = converse(config(), &plan, way);
                assert_same(&heard, &usual, &plan, &format!("{way:?}"));
            }
        }
    }
}

/// The worker's numbers, at every place of the answer.
#[test]
fn our_numbers_wrap() {
    for plan in plans() {
        for version in BOTH {
            let usual = converse(config(), &plan, Way::new(version));
            let whole = expected(&plan).len();
            // Where its segments may begin and end.
            let segments = (0..whole).step_by(1440).chain((0..whole).step_by(1460));
            let chunks = (0..whole).step_by(1000);
            for place in places(segments.chain(chunks), whole) {
                let edges = EDGES.iter();
                let pairs = edges.flat_map(|edge| ENGINES.map(|engines| (edge, engines)));
                let all = pairs.flat_map(|(edge, engines)| {
                    [Attention::Prompt, Attention::Deaf].map(|how| (edge, engines, how))
                });
                for (edge, engines, attention) in chosen(all.collect(), place) {
                    let isn = edge.wrapping_sub(place);
                    let config = SimConfig {
                        isn_offset: isn.wrapping_sub(usual.isn),
                        ..config()
                    };
                    let way = Way {
                        attention,
                        engines,
                        ..Way::new(version)
                    };
                    let heard = converse(config, &plan, way);
                    assert_eq!(heard.isn, isn);
                    assert_same(&heard, &usual, &plan, &format!("{way:?} from {isn}"));
                }
            }
        }
    }
}

/// Bytes of an answer during which our numbers reach an edge for one in some ten thousand connections.
const LONG: usize = 200_000;

/// Without any help: peers ask until our number is one that reaches an edge within a long answer.
#[test]
fn our_numbers_wrap_in_a_download() {
    let request = format!("content {LONG}\n");
    let len = request.len();
    let sends = vec![
        Send::Ack,
        Send::Data(0, len),
        Send::Ack,
        Send::Data(len, len + 1),
    ];
    let plan = plan("a long answer", request.as_bytes(), sends);
    for version in BOTH {
        for engines in [0, u64::MAX] {
            let mut sim = Sim::new(config());
            let mut oracle = Oracle::new("worker", 1500);
            let port = (1024..u16::MAX).find(|port| {
                let isn = offered(&mut sim, &mut oracle, version, *port);
                // To the next edge.
                let left = (1 << 31) - isn % (1 << 31);
                (1..LONG as u32 - 10_000).contains(&left)
            });
            let way = Way {
                port: port.expect("no number is near an edge"),
                isn: 1000,
                engines,
                ..Way::new(version)
            };
            let heard = converse_with(sim, oracle, &plan, way);
            assert!(
                heard.bytes == expected(&plan),
                "{} bytes",
                heard.bytes.len()
            );
            assert!(heard.fin);
        }
    }
}

/// Asks for a connection; returns the number that the worker offers.
fn offered(sim: &mut Sim, oracle: &mut Oracle, version: Version, port: u16) -> u32 {
    let raw = Raw::new(version, port);
    let syn = common::packets::Segment {
        ack: 0,
        options: vec![2, 4, 0x05, 0xa0],
        ..raw.segment(SYN, b"")
    };
    let frame = syn.frame(raw.ends);
    oracle.delivered(&frame, sim.now());
    let answers = exchange(sim, &frame);
    for answer in &answers {
        oracle.emitted(answer, sim.now());
    }
    let segments = common::raw::segments(&answers, port);
    assert_eq!((segments.len(), segments[0].flags), (1, SYN | ACK));
    segments[0].seq
}

/// A connection of our client side whose numbers begin with `offset` added: its first number, and whether all was
/// as it should be.
fn call(version: Version, offset: u32, engines: bool) -> u32 {
    let request: &[u8] = b"place hello\nreply you\n";
    let mut pair = Pair::new(config(), |client| {
        client.limits.frames = 64;
        client.isn_offset = offset;
    });
    pair.client.set_engine_only(engines);
    pair.resolve(version);
    let local = source(version, 1, 1024);
    pair.wish(Wish::Open(local, server(version), 1));
    pair.settle();
    pair.wish(Wish::Send(1, request.to_vec()));
    pair.settle();
    pair.wish(Wish::Send(1, request.to_vec()));
    pair.settle();
    pair.wish(Wish::Close(1));
    let closed = pair.run_until(Duration::from_secs(5), |shared| shared.is_closed(1));
    assert!(closed, "{}", pair.history());
    assert_eq!(pair.received(1), b"HELLO\n<you>\nHELLO\n<you>\n");
    assert_eq!(pair.events().last(), Some(&Event::Closed(1, End::Closed)));
    let oracle = pair.client_oracle.as_ref().unwrap();
    oracle.initial_numbers()[0]
}

#[test]
fn a_client_sides_numbers_wrap() {
    for version in BOTH {
        let usual = call(version, 0, false);
        for (place, edge) in (0..50).flat_map(|place| EDGES.map(|edge| (place, edge))) {
            for engines in [false, true] {
                let isn = edge.wrapping_sub(place);
                let chosen = call(version, isn.wrapping_sub(usual), engines);
                assert_eq!(chosen, isn);
            }
        }
    }
}
