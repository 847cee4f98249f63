//! Clocks. Only the loop of a core reads one; everything under it is told the time.

use crate::Instant;

/// Where the loop reads the time.
pub trait Clock {
    /// Microseconds since an arbitrary start; never goes back.
    fn now(&mut self) -> Instant;
}

/// The machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock {
    start: std::time::Instant,
}

impl MonotonicClock {
    /// A clock whose zero is `start`.
    pub fn since(start: std::time::Instant) -> Self {
        Self { start }
    }
}

impl Clock for MonotonicClock {
    #[inline]
    fn now(&mut self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }
}

/// A clock that stands still until it is set: for simulations.
#[derive(Debug, Clone, Copy)]
pub struct VirtualClock {
    /// The time that [`now`](Clock::now) tells.
    pub time: Instant,
}

impl Clock for VirtualClock {
    fn now(&mut self) -> Instant {
        self.time
    }
}
