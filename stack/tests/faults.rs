//! Seeded network simulation: echo and download through loss, duplication, reordering and corruption at the
//! worker's own port. See [`common::seeds`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::handlers::{Lines, answer};
use common::seeds::{PATIENCE, faults, for_seeds};
use common::world::World;
use common::*;
use interruptlet::Duration;
use interruptlet::port::faulty::Faults;
use interruptlet::sim::SimConfig;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn world(seed: u64) -> (World, Version) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    // The incomplete line of a lossy client is no slow attack.
    service.request_timeout = PATIENCE;
    let mut config = SimConfig {
        streams: vec![service],
        faults: faults(&mut random),
        seed,
        ..SimConfig::default()
    };
    // Some worlds are short of frames too.
    config.limits.frames = *[24, 64, 512].get(random.random_range(0..3)).unwrap();
    let world = World::new(config);
    let version = BOTH[random.random_range(0..2)];
    (world, version)
}

/// Sends each message when the one before it is answered, then closes; requires every byte of the answers
/// once and in order, and both sides to close.
///
/// One at a time because two smoltcp ends can deadlock where both retransmit data that the other has: their
/// pure ACKs then carry old sequence numbers, which each refuses from the other. Other TCPs do not do that.
fn converse(world: &mut World, version: Version, conversation: &[(Vec<u8>, Vec<u8>)]) {
    let handle = world.connect(version);
    for (answered, (message, answer)) in conversation.iter().enumerate() {
        let received = world.exchange(handle, message, answer.len(), PATIENCE);
        assert!(
            received == *answer,
            "{} of {} bytes after {answered} answers; the client is {}, the worker counts {:?}",
            received.len(),
            answer.len(),
            world.socket(handle).state(),
            world.sim.counters().snapshot(),
        );
    }
    assert!(world.close(handle).is_empty(), "more than was asked for");
}

/// After the conversation: no connection is left and every frame is home.
fn assert_over(world: &mut World) {
    world.sim.set_faults(Faults::default());
    let over = world.run_until(PATIENCE, |world| world.sim.flows() == 0);
    assert!(over, "a connection is left");
    world.run_for(Duration::from_secs(1));
    assert_at_rest(&mut world.sim);
}

#[test]
fn echo_arrives_once_and_in_order() {
    for_seeds("echo_arrives_once_and_in_order", |seed| {
        let (mut world, version) = world(seed);
        let mut random = SmallRng::seed_from_u64(!seed);
        let mut line = |len_max: usize| {
            let len = random.random_range(0..len_max);
            let text: Vec<u8> = (0..len).map(|_| random.random_range(b'a'..=b'z')).collect();
            // Some in place, some from bytes, some by the slow path.
            let command = [&b"place "[..], b"reply ", b"defer place "][random.random_range(0..3)];
            [command, &text, b"\n"].concat()
        };
        let mut conversation = Vec::new();
        for _ in 0..6 {
            // One line in several segments, and several lines in one segment.
            let long = line(6000);
            let short: Vec<Vec<u8>> = (0..8).map(|_| line(100)).collect();
            conversation.push((long.clone(), answer(&long)));
            let answers = short.iter().flat_map(|line| answer(line)).collect();
            conversation.push((short.concat(), answers));
        }
        converse(&mut world, version, &conversation);
        assert_over(&mut world);
    });
}

/// Time goes to when a frame arrives, although no timer is due then, and not beyond.
#[test]
fn a_link_at_the_port_takes_its_time() {
    let faults = Faults {
        rate: 1_000_000,
        delay: Duration::from_millis(50),
        ..Faults::default()
    };
    for version in BOTH {
        let mut world = World::new(SimConfig {
            faults,
            ..echo_config()
        });
        let handle = world.connected(version);
        // Its acknowledgement of the handshake is still under way.
        world.run_for(Duration::from_secs(1));
        let bytes = pattern(1000);
        let start = world.sim.now();
        assert_eq!(world.request(handle, &bytes, bytes.len()), bytes);
        let taken = (world.sim.now() - start).total_micros();
        // A byte takes eight microseconds, each way.
        let frame = (1000 + 14 + version.ip_header_bytes() + 20) as u64;
        let expected = 2 * (50_000 + 8 * frame);
        assert!(
            (expected..expected + 300).contains(&taken),
            "{taken} instead of {expected} us"
        );
        assert!(world.close(handle).is_empty());
        assert_over(&mut world);
    }
}

#[test]
fn a_download_arrives_once_and_in_order() {
    for_seeds("a_download_arrives_once_and_in_order", |seed| {
        let (mut world, version) = world(seed);
        let len = 200 * 1024;
        // Shared content, or chunk by chunk from the slow path.
        let request = if seed % 2 == 0 {
            format!("content {len}\n")
        } else {
            format!("defer source {len} 30000\n")
        };
        let conversation = [(request.into_bytes(), pattern(len))];
        converse(&mut world, version, &conversation);
        assert_over(&mut world);
    });
}
