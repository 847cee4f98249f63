//! The loop's clock, as far as the slow path can tell it.
//!
//! Requests say when the loop took them up. What the slow path finds out it finds out later, under load
//! much later, and an entry that was stamped with the time of its request would be old at once. So the
//! distance between our own clock and the loop's is estimated from all requests. Each shows the true
//! distance plus the time that it waited in the queue, so the least one is nearest, and still not too
//! small: the time that is told is never later than the true one.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// Tells the time of the loop, all times in microseconds.
#[derive(Debug)]
pub struct LoopClock {
    start: Instant,
    /// The least that our own clock was seen ahead of the loop's.
    least_ahead: AtomicI64,
}

impl LoopClock {
    /// A clock that has seen no request yet.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            least_ahead: AtomicI64::new(i64::MAX),
        }
    }

    /// The time now, or a little earlier, for a request that the loop took up at `taken_up`.
    pub fn now(&self, taken_up: i64) -> i64 {
        let own = self.start.elapsed().as_micros();
        self.at(i64::try_from(own).unwrap_or(i64::MAX), taken_up)
    }

    /// The time now, or a little earlier, as far as requests have told it.
    pub fn estimate(&self) -> Option<i64> {
        let least_ahead = self.least_ahead.load(Ordering::Relaxed);
        let own = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        (least_ahead < i64::MAX).then(|| own.saturating_sub(least_ahead))
    }

    fn at(&self, own: i64, taken_up: i64) -> i64 {
        // Both are rounded down, so one more, or the distance could be too small.
        let ahead = own.saturating_add(1).saturating_sub(taken_up);
        let before = self.least_ahead.fetch_min(ahead, Ordering::Relaxed);
        own.saturating_sub(before.min(ahead)).max(taken_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waiting_in_the_queue_does_not_count() {
        let clock = LoopClock::start();
        // The first request knows nothing better than its own time.
        assert_eq!(clock.at(5_000, 1_000), 1_000);
        // This one waited 1 ms less, so the next one, which waits for a second, can tell.
        assert_eq!(clock.at(9_000, 6_000), 6_000);
        assert_eq!(clock.at(1_009_000, 6_000), 1_005_999);
    }

    #[test]
    fn without_a_request_only_an_estimate_is_told() {
        let clock = LoopClock::start();
        assert_eq!(clock.estimate(), None);
        let told = clock.now(7_000_000);
        // Both are rounded.
        assert!(
            clock
                .estimate()
                .is_some_and(|estimate| estimate >= told - 1)
        );
    }

    proptest! {
        #[test]
        fn the_time_is_never_later_than_the_true_one(
            distance_nanos in -10_000_000_i64..10_000_000,
            jobs in proptest::collection::vec((20_000_000_i64..1 << 40, 0_i64..1 << 30), 1..50),
        ) {
            let clock = LoopClock::start();
            let mut least_wait = i64::MAX;
            for (taken_up, waited) in jobs {
                least_wait = least_wait.min(waited);
                let now = taken_up + waited;
                let told = clock.at((now + distance_nanos) / 1000, taken_up / 1000);
                prop_assert!(told * 1000 <= now);
                // Nor is it earlier than need be.
                prop_assert!(told * 1000 >= now - least_wait - 4000);
                prop_assert!(told >= taken_up / 1000);
            }
        }

        #[test]
        fn any_time_is_survived(times in proptest::collection::vec(any::<(i64, i64)>(), 0..20)) {
            let clock = LoopClock::start();
            for (own, taken_up) in times {
                clock.at(own, taken_up);
            }
        }
    }
}
