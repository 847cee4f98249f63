//! A limit of so many events a second, with bursts.

use crate::Instant;

/// Millionths of a token in a token.
const TOKEN: i64 = 1_000_000;

/// Lets so many events a second happen, and so many at once after a pause.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// Tokens there are, in millionths.
    filled: i64,
    refilled_at: Instant,
    per_second: i64,
    burst: i64,
}

impl TokenBucket {
    /// Returns a full bucket.
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = i64::from(burst) * TOKEN;
        Self {
            filled: burst,
            refilled_at: now,
            per_second: per_second.into(),
            burst,
        }
    }

    /// Returns whether there is a token now.
    pub(crate) fn has_token(&mut self, now: Instant) -> bool {
        let elapsed = (now - self.refilled_at).total_micros() as i64;
        self.refilled_at = now;
        self.filled = self
            .filled
            .saturating_add(elapsed.saturating_mul(self.per_second))
            .min(self.burst);
        self.filled >= TOKEN
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let has_token = self.has_token(now);
        if has_token {
            self.filled -= TOKEN;
        }
        has_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Duration;

    #[test]
    fn a_burst_then_so_many_a_second() {
        let mut now = Instant::from_secs(1000);
        let mut bucket = TokenBucket::new(4, 10, Instant::ZERO);
        let taken = |bucket: &mut TokenBucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, now), 10);
        now += Duration::from_secs(1);
        assert_eq!(taken(&mut bucket, now), 4);
        now += Duration::from_millis(249);
        assert!(!bucket.has_token(now));
        now += Duration::from_millis(1);
        // Asking takes nothing.
        assert!(bucket.has_token(now) && bucket.has_token(now) && bucket.take(now));
        assert!(!bucket.take(now));
    }
}
