//! Whatever handles a segment, an engine or the worker itself, and however often that changes within a connection:
//! the peer sees the same bytes and the same end, and an oracle sees nothing wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::dialogue::{ATTENTIONS, Attention, Way, converse};
use common::handlers::answer;
use common::pair::*;
use common::plans::{config, expected, plans};
use common::*;
use interruptlet::Duration;
use interruptlet::client::End;

fn every_mask(attention: Attention) {
    for plan in plans() {
        let segments = 1 + plan.sends.len();
        assert!(segments <= 8, "{}", plan.name);
        for version in BOTH {
            let way = |engines| Way {
                attention,
                engines,
                ..Way::new(version)
            };
            let direct = converse(config(), &plan, way(0));
            let whole = direct.bytes == expected(&plan);
            let part = plan.resets && expected(&plan).starts_with(&direct.bytes);
            assert!(
                whole || part,
                "{}: {:?}",
                plan.name,
                direct.bytes.escape_ascii().to_string()
            );
            assert!(direct.fin || plan.resets, "{}", plan.name);
            for engines in 1..1 << segments {
                let heard = converse(config(), &plan, way(engines));
                assert!(
                    heard == direct,
                    "{} over {version:?}, {attention:?}, engines for {engines:#b}",
                    plan.name
                );
            }
        }
    }
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
