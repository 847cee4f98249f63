//! One direction of a wire, with faults of its own.
//!
//! The worker's own port can have faults too (`port::faulty`); these are beyond it, so that an
//! [`oracle`](super::oracle) can stand between the worker and what goes wrong.

use std::collections::VecDeque;

use interruptlet::port::faulty::Faults;
use interruptlet::{Duration, Instant};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Bytes of the link header, which is not corrupted.
const LINK_BYTES: usize = 14;

/// Frames on their way.
pub struct Lane {
    faults: Faults,
    random: SmallRng,
    /// Those that others overtake, and when they arrive.
    held: Vec<(Instant, Vec<u8>)>,
    arrived: VecDeque<Vec<u8>>,
}

impl Lane {
    /// The same seed over the same frames at the same times makes the same faults.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            random: SmallRng::seed_from_u64(seed),
            held: Vec::new(),
            arrived: VecDeque::new(),
        }
    }

    /// A wire without faults.
    pub fn perfect() -> Self {
        Self::new(Faults::default(), 0)
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub fn send(&mut self, mut frame: Vec<u8>, now: Instant) {
        if self.happens(self.faults.loss) {
            return;
        }
        let intact = self.happens(self.faults.duplication).then(|| frame.clone());
        if self.happens(self.faults.corruption) && frame.len() > LINK_BYTES {
            let byte = self.random.random_range(LINK_BYTES..frame.len());
            frame[byte] ^= 1 << self.random.random_range(0..8);
        }
        for frame in [Some(frame), intact].into_iter().flatten() {
            if self.happens(self.faults.reordering) {
                let micros = self.faults.delay_max.total_micros().max(1);
                let delay = Duration::from_micros(self.random.random_range(0..micros));
                self.held.push((now + delay, frame));
            } else {
                self.arrived.push_back(frame);
            }
        }
    }

    /// The next frame that has arrived.
    pub fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        while let Some(at) = self.held.iter().position(|(due, _)| *due <= now) {
            self.arrived.push_back(self.held.swap_remove(at).1);
        }
        self.arrived.pop_front()
    }

    /// When the next frame arrives of those that are held back.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.held.iter().map(|(due, _)| *due).min()
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability.min(1.0))
    }
}
