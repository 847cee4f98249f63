//! One direction of a wire: the stack's own model of a link, with faults of its own.
//!
//! The worker's own port can have faults too (`port::faulty`); these are beyond it, so that an
//! [`oracle`](super::oracle) can stand between the worker and what goes wrong. All connections of a wire share its two
//! lanes, their rate and their queue.

use interruptlet::Instant;
use interruptlet::port::link::{Faults, LinkCounts};
use interruptlet::port::pipe::{PIPE_BYTES_MAX, Pipe};

/// Frames on their way.
pub struct Lane(Pipe);

impl Lane {
    /// The same seed over the same frames at the same times makes the same faults.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self(Pipe::new(faults, seed, PIPE_BYTES_MAX))
    }

    /// A wire without faults.
    pub fn perfect() -> Self {
        Self::new(Faults::default(), 0)
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.0.set_faults(faults);
    }

    /// Returns whether a copy of the frame arrives intact.
    pub fn send(&mut self, frame: &[u8], now: Instant) -> bool {
        let arrivals = self.0.send(frame, now);
        let mut copies = arrivals.iter().flatten();
        copies.any(|copy| copy.flipped_bit.is_none())
    }

    /// The next frame that has arrived.
    pub fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.0.take(now, <[u8]>::to_vec)
    }

    /// Hands the next frame that has arrived to `take`. Returns whether there was one.
    pub fn take_with(&mut self, now: Instant, take: impl FnOnce(&[u8])) -> bool {
        self.0.take(now, take).is_some()
    }

    /// When the next frame arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.0.next_arrival()
    }

    /// What was sent, dropped and lost so far.
    pub fn counts(&self) -> LinkCounts {
        assert_eq!(self.0.overflows(), 0, "more on its way than a pipe holds");
        self.0.link().counts()
    }
}
