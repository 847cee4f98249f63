//! The seeds of a simulation: `ILET_SEEDS=N` tries N seeds, `ILET_SEED=K` replays one exactly. Every failure prints
//! the command.

use std::panic::{AssertUnwindSafe, catch_unwind};

use interruptlet::Duration;
use interruptlet::port::faulty::Faults;
use rand::Rng;
use rand::rngs::SmallRng;

/// Seeds of an ordinary run: a few seconds of a debug build.
const SEEDS: u64 = 200;

/// Failures after which a run is over.
const FAILURES_MAX: usize = 10;

/// No conversation may take longer: with [these](faults) faults, more means that something hangs.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs `scenario`, the test called `name`, for every seed of this run.
pub fn for_seeds(name: &str, scenario: impl Fn(u64)) {
    for_some_seeds(name, SEEDS, scenario);
}

/// As [`for_seeds`], for so many seeds in an ordinary run.
pub fn for_some_seeds(name: &str, usual: u64, scenario: impl Fn(u64)) {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .map(|value: String| value.parse::<u64>().expect("a number"))
    };
    let seeds = match variable("ILET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("ILET_SEEDS").unwrap_or(usual),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| scenario(seed))).is_err() {
            failed.push(seed);
        }
        if failed.len() == FAILURES_MAX {
            break;
        }
    }
    if let Some(seed) = failed.first() {
        panic!(
            "seeds {failed:?} failed; replay one with\n    \
             ILET_SEED={seed} cargo test -p interruptlet --test {} {name}",
            env!("CARGO_CRATE_NAME")
        );
    }
}

/// What goes wrong in the world of a seed. Not more, or smoltcp's retransmission timer (which backs off to a
/// minute, and forgets that only when a whole flight gets through) runs into the user timeout.
pub fn faults(random: &mut SmallRng) -> Faults {
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
        ..Faults::default()
    }
}
