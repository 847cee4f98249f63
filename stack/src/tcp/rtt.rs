//! The round-trip time of a flow, and the retransmission timeout that follows from it (RFC 6298).

use crate::Duration;

/// The timeout before anything was measured (RFC 6298 section 2.1).
const INITIAL_MILLIS: u32 = 1000;
/// The least that the timeout is beyond the round-trip time, whatever that varies: Linux's rule (`TCP_RTO_MIN`). RFC
/// 6298 section 2.4 has a second at the least, "SHOULD"; what a lost segment costs on a fast network is this and
/// nothing else.
pub(super) const MIN_MILLIS: u32 = 200;
/// RFC 6298 section 2.5.
const MAX_MILLIS: u32 = 60_000;

/// Smoothed round-trip time and its variation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rtt {
    /// SRTT in microseconds; zero before the first measurement.
    smoothed: u32,
    /// RTTVAR in microseconds.
    variation: u32,
}

impl Rtt {
    /// Takes a measurement in, of a segment that was sent once (RFC 6298 section 3).
    #[inline]
    pub(super) fn sample(&mut self, micros: u32) {
        // More than a minute is no round trip, and the sums below must fit.
        let measured = micros.clamp(1, 60_000_000);
        if self.smoothed == 0 {
            // Section 2.2.
            self.smoothed = measured;
            self.variation = measured / 2;
        } else {
            // Section 2.3.
            let difference = self.smoothed.abs_diff(measured);
            self.variation = self.variation - self.variation / 4 + difference / 4;
            self.smoothed = (self.smoothed - self.smoothed / 8 + measured / 8).max(1);
        }
    }

    /// The timeout, before any backing off.
    #[inline]
    pub(super) fn timeout(&self) -> Duration {
        let millis = if self.smoothed == 0 {
            INITIAL_MILLIS
        } else {
            let micros = self.smoothed + (4 * self.variation).max(MIN_MILLIS * 1000);
            (micros / 1000).min(MAX_MILLIS)
        };
        Duration::from_millis(millis.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(rtt: &Rtt) -> u64 {
        rtt.timeout().total_millis()
    }

    #[test]
    fn as_rfc_6298_section_2_says() {
        let mut rtt = Rtt::default();
        assert_eq!(millis(&rtt), 1000);
        rtt.sample(400_000);
        // SRTT + 4 x R/2.
        assert_eq!(millis(&rtt), 1200);
        rtt.sample(400_000);
        assert_eq!(millis(&rtt), 1000);
        for _ in 0..100 {
            rtt.sample(400_000);
        }
        assert!((600..=610).contains(&millis(&rtt)), "{}", millis(&rtt));
    }

    #[test]
    fn it_has_a_least_and_a_most() {
        let mut rtt = Rtt::default();
        for _ in 0..10 {
            rtt.sample(0);
        }
        assert_eq!(millis(&rtt), 200);
        for _ in 0..100 {
            rtt.sample(u32::MAX);
        }
        assert_eq!(millis(&rtt), 60_000);
    }
}
