//! Seeded network simulation: echo and download through loss, duplication, reordering and corruption.
//!
//! `ILET_SEEDS=N` tries N seeds, `ILET_SEED=K` replays one exactly. Every failure prints the command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::handlers::{Lines, answer};
use common::world::World;
use common::*;
use interruptlet::Duration;
use interruptlet::port::faulty::Faults;
use interruptlet::sim::SimConfig;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Seeds of an ordinary run: a few seconds of a debug build.
const SEEDS: u64 = 200;

/// No conversation may take longer: with these faults, more means that something hangs.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What goes wrong in the world of a seed. Not more, or smoltcp's retransmission timer (which backs off to a
/// minute, and forgets that only when a whole flight gets through) runs into the user timeout.
fn faults(random: &mut SmallRng) -> Faults {
    let mut up_to = |most: f64| {
        if random.random_bool(0.5) {
            random.random_range(0.0..most)
        } else {
            0.0
        }
    };
    Faults {
        loss: up_to(0.05),
        duplication: up_to(0.1),
        reordering: up_to(0.2),
        corruption: up_to(0.05),
        delay_max: Duration::from_millis(20),
    }
}

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
    let mut world = World::new(config);
    world.step_max = Duration::from_millis(10);
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

/// Runs `scenario` for every seed of this run.
fn for_seeds(name: &str, scenario: impl Fn(u64)) {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .map(|value: String| value.parse::<u64>().expect("a number"))
    };
    let seeds = match variable("ILET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("ILET_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| scenario(seed))).is_err() {
            panic!(
                "seed {seed} failed; replay it with\n    \
                 ILET_SEED={seed} cargo test -p interruptlet --test faults {name}"
            );
        }
    }
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
