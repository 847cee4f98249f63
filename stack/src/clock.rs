//! Clocks. Only the loop of a core reads one, and services around a call that is measured; everything else is told
//! the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::time::{ClockId, clock_gettime};

use crate::{Duration, Instant};

/// Where the loop reads the time.
pub trait Clock {
    /// Nanoseconds since an arbitrary start; never goes back.
    fn nanos(&mut self) -> u64;

    /// Returns the time that the calling thread has used of its core so far. It may cost two system calls, so it is
    /// called for suspected handlers only, and not for every packet.
    fn thread_time(&mut self) -> ThreadTime;

    /// The same in microseconds, as protocols see it.
    #[inline]
    fn now(&mut self) -> Instant {
        instant(self.nanos())
    }
}

/// The time that a thread has used of its core, each field since an arbitrary start. Two readings tell whether the thread
/// worked, waited, or lost its core to another thread: in the last case `ran` and `waits` stay as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadTime {
    /// The time that [`Clock::nanos`] returns.
    pub nanos: u64,
    /// Nanoseconds that the thread ran.
    pub ran: u64,
    /// Times that it gave its core up to wait for something: a lock, a disk, a timer.
    pub waits: u64,
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

    fn thread_time(&mut self) -> ThreadTime {
        let ran = clock_gettime(ClockId::ThreadCPUTime);
        // Fails only for a `who` that the kernel does not know (getrusage(2)); Linux knows RUSAGE_THREAD since 2.6.26.
        let waits = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or(0, |usage| usage.voluntary_context_switches());
        ThreadTime {
            nanos: self.nanos(),
            ran: ran.tv_sec as u64 * 1_000_000_000 + ran.tv_nsec as u64,
            waits: waits as u64,
        }
    }
}

/// A clock for simulations. It stands still until one of its methods advances it. Its clones share the same time, so that
/// a simulated handler can advance it.
#[derive(Debug, Clone, Default)]
pub struct VirtualClock(Arc<VirtualTime>);

#[derive(Debug, Default)]
struct VirtualTime {
    nanos: AtomicU64,
    ran: AtomicU64,
    waits: AtomicU64,
}

impl VirtualClock {
    /// Returns the time.
    pub fn time(&self) -> Instant {
        instant(self.0.nanos.load(Ordering::Relaxed))
    }

    /// Lets time pass in which the thread neither runs nor waits, because another thread has its core.
    pub fn pass(&self, by: Duration) {
        self.0
            .nanos
            .fetch_add(by.total_micros() * 1000, Ordering::Relaxed);
    }

    /// Lets time pass in which the thread works.
    pub fn work(&self, by: Duration) {
        self.pass(by);
        self.0
            .ran
            .fetch_add(by.total_micros() * 1000, Ordering::Relaxed);
    }

    /// Lets time pass in which the thread waits for something.
    pub fn wait(&self, by: Duration) {
        self.pass(by);
        self.0.waits.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn nanos(&mut self) -> u64 {
        self.0.nanos.load(Ordering::Relaxed)
    }

    fn thread_time(&mut self) -> ThreadTime {
        ThreadTime {
            nanos: self.nanos(),
            ran: self.0.ran.load(Ordering::Relaxed),
            waits: self.0.waits.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures work and a wait with the machine's clock.
    #[test]
    fn a_thread_that_waits_does_not_run() {
        let mut clock = MonotonicClock::since(std::time::Instant::now());
        let before = clock.thread_time();
        while clock.thread_time().ran < before.ran + 1_000_000 {
            std::hint::spin_loop();
        }
        let worked = clock.thread_time();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let waited = clock.thread_time();
        assert!(waited.waits > worked.waits);
        assert!(waited.nanos - worked.nanos >= 20_000_000);
        // The sleep itself does not count as run time, on a slow machine either.
        assert!(waited.ran - worked.ran < waited.nanos - worked.nanos);
    }
}
