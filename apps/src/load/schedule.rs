//! When what is due: requests at a rate, new connections at a rate, and reading at a rate. Times are
//! nanoseconds of the loop's clock.

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// The intended times of an open loop: one request every so often, whatever the server does.
///
/// A request that cannot be sent when it is due keeps its time, and those after it theirs: how late they
/// are answered is counted from then, so a server that stalls cannot hide it. They need no queue, since
/// the time of each follows from its number.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start: u64,
    end: u64,
    period: f64,
    next: u64,
}

impl Pace {
    /// `per_second` requests per second from `start`, without an end yet.
    pub fn new(start: u64, per_second: f64) -> Self {
        Self {
            start,
            end: u64::MAX,
            period: SECOND as f64 / per_second,
            next: 0,
        }
    }

    /// Nothing is due from `end` on.
    pub fn end_at(&mut self, end: u64) {
        self.end = end;
    }

    /// When the next request is to be sent; `None` if there is none any more.
    #[inline]
    pub fn next_time(&self) -> Option<u64> {
        let time = self.start + (self.next as f64 * self.period) as u64;
        (time < self.end).then_some(time)
    }

    /// Takes the next request if it is due at `now`; returns when it was to be sent.
    #[inline]
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let time = self.next_time().filter(|time| *time <= now)?;
        self.next += 1;
        Some(time)
    }
}

/// The pace of new connections, or of the last. What could not be done in time is not made up for by a burst.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    period: u64,
    next: u64,
}

impl Opening {
    /// Connections that may be opened at once after a pause.
    const BURST: u64 = 64;

    /// `per_second` connections per second.
    pub fn new(per_second: f64) -> Self {
        Self {
            period: (SECOND as f64 / per_second) as u64,
            next: 0,
        }
    }

    /// Whether one may be opened at `now`; if so, it counts as opened.
    pub fn take(&mut self, now: u64) -> bool {
        if now < self.next {
            return false;
        }
        let earliest = now.saturating_sub(Self::BURST * self.period);
        self.next = self.next.max(earliest) + self.period;
        true
    }

    /// When the next one may be opened.
    pub fn next_time(&self) -> u64 {
        self.next
    }
}

/// What a slow reader may read: so many bytes per second, at most a second's worth at once.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    empty_at: u64,
}

impl Bucket {
    /// Bytes per second at most.
    pub const RATE_MAX: u64 = 1 << 33;

    /// Empty at `now`.
    pub fn new(now: u64) -> Self {
        Self { empty_at: now }
    }

    /// Bytes that may be read at `now`.
    pub fn allowed(&self, now: u64, rate: u64) -> u64 {
        let saved = now.saturating_sub(self.empty_at).min(SECOND);
        saved * rate / SECOND
    }

    /// `bytes` were read at `now`.
    pub fn take(&mut self, now: u64, rate: u64, bytes: u64) {
        let since = self.empty_at.max(now.saturating_sub(SECOND));
        self.empty_at = since + (bytes * SECOND).div_ceil(rate);
    }

    /// When to read again: when there is half a second's worth, at least a byte.
    pub fn next_time(&self, rate: u64) -> u64 {
        self.empty_at + (SECOND / 2).max(SECOND.div_ceil(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_keep_their_times_through_a_stall() {
        let mut pace = Pace::new(1000, 1e6);
        assert_eq!(pace.take(999), None);
        assert_eq!(pace.take(1000), Some(1000));
        assert_eq!(pace.take(1500), None);
        // Nobody came for a while.
        let late: Vec<u64> = std::iter::from_fn(|| pace.take(5500)).collect();
        assert_eq!(late, [2000, 3000, 4000, 5000]);
        pace.end_at(7000);
        assert_eq!(pace.take(9000), Some(6000));
        assert_eq!((pace.take(9000), pace.next_time()), (None, None));
    }

    #[test]
    fn connections_are_opened_at_the_rate_with_small_bursts() {
        let mut opening = Opening::new(1000.0);
        let mut opened = |now| {
            let mut count = 0;
            while opening.take(now) {
                count += 1;
            }
            count
        };
        let first = opened(SECOND);
        assert!(first <= 65, "{first} at once");
        // Ten a millisecond apart, then a pause of ten seconds.
        let steady: u64 = (1..=10).map(|n| opened(SECOND + n * 1_000_000)).sum();
        assert_eq!(steady, 10);
        assert!(opened(11 * SECOND) <= 65);
    }

    proptest! {
        #[test]
        fn the_rate_is_that_asked_for(rate in 0.1f64..5e4, seconds in 1u64..20) {
            let mut pace = Pace::new(17, rate);
            pace.end_at(17 + seconds * SECOND);
            let mut count = 0u64;
            let mut last = 0;
            while let Some(time) = pace.take(u64::MAX) {
                prop_assert!(time >= last && time < 17 + seconds * SECOND);
                last = time;
                count += 1;
            }
            let wanted = rate * seconds as f64;
            prop_assert!((count as f64 - wanted).abs() <= 1.0, "{count} instead of {wanted}");
        }

        #[test]
        fn a_slow_reader_never_reads_more_than_its_rate_and_gets_along(
            rate in 1u64..Bucket::RATE_MAX,
            gaps in prop::collection::vec(0u64..3 * SECOND, 1..50),
            hungers in prop::collection::vec(1u64..100_000, 50),
        ) {
            let mut bucket = Bucket::new(5);
            let mut now = 5;
            let mut read = 0u64;
            for (gap, hunger) in gaps.into_iter().zip(hungers) {
                now += gap;
                let bytes = bucket.allowed(now, rate).min(hunger);
                if bytes > 0 {
                    bucket.take(now, rate, bytes);
                }
                read += bytes;
                let most = u128::from(now - 5) * u128::from(rate) / u128::from(SECOND);
                prop_assert!(u128::from(read) <= most);
            }
            let next = bucket.next_time(rate).max(now);
            prop_assert!(bucket.allowed(next, rate) > 0);
        }
    }
}
