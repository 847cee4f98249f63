//! Clocks. Only the loop of a core reads one; everything under it is told the time.

use crate::Instant;

/// Where the loop reads the time.
pub trait Clock {
    /// Nanoseconds since an arbitrary start; never goes back.
    fn nanos(&mut self) -> u64;

    /// The same in microseconds, as protocols see it.
    #[inline]
    fn now(&mut self) -> Instant {
        instant(self.nanos())
    }
}

/// A time of clocks and clients, in nanoseconds, as protocols see it.
#[inline]
pub(crate) fn instant(nanos: u64) -> Instant {
    Instant::from_micros((nanos / 1000) as i64)
}

/// A time of protocols as clocks and clients see it, in nanoseconds.
#[inline]
pub(crate) fn nanos(time: Instant) -> u64 {
    time.total_micros().max(0) as u64 * 1000
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
    fn nanos(&mut self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// A clock that stands still until it is set: for simulations.
#[derive(Debug, Clone, Copy)]
pub struct VirtualClock {
    /// The time that it tells.
    pub time: Instant,
}

impl Clock for VirtualClock {
    fn nanos(&mut self) -> u64 {
        nanos(self.time)
    }
}
