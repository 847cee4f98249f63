//! The time that an end in order may take, which a second request to end cuts short.

use std::time::{Duration, Instant};

/// A grace that runs.
pub(super) struct Grace<'a> {
    until: Instant,
    /// As much is left when it is cut short.
    least: Duration,
    is_urgent: &'a dyn Fn() -> bool,
    is_cut: bool,
}

impl<'a> Grace<'a> {
    /// A grace that begins at `now` and is over as soon as `is_urgent` returns true.
    pub(super) fn new(now: Instant, grace: Duration, is_urgent: &'a dyn Fn() -> bool) -> Self {
        Self {
            until: now + grace,
            least: Duration::ZERO,
            is_urgent,
            is_cut: false,
        }
    }

    /// Leaves at least `least` from `now` on, and from the moment on at which it is cut short.
    pub(super) fn extend(&mut self, least: Duration, now: Instant) {
        self.until = self.until.max(now + least);
        self.least = least;
    }

    /// Whether it is over at `now`. Asks first whether it is to be cut short.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if now < self.until && !self.is_cut && (self.is_urgent)() {
            self.is_cut = true;
            self.until = self.until.min(now + self.least);
        }
        now >= self.until
    }

    /// Whether it was cut short.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_over_in_time_or_at_once() {
        let begun = Instant::now();
        let urgent = Cell::new(false);
        let is_urgent = || urgent.get();
        let mut whole = Grace::new(begun, SECOND * 10, &is_urgent);
        let mut cut = Grace::new(begun, SECOND * 10, &is_urgent);
        assert!(!whole.is_over(begun + SECOND * 9) && !cut.is_over(begun + SECOND * 9));
        assert!(whole.is_over(begun + SECOND * 10));
        urgent.set(true);
        assert!(cut.is_over(begun + SECOND * 9) && cut.is_cut());
        // It was over before.
        assert!(whole.is_over(begun + SECOND * 11) && !whole.is_cut());
    }

    #[test]
    fn the_least_is_left_whenever_it_is_cut() {
        let begun = Instant::now();
        let urgent = Cell::new(false);
        let is_urgent = || urgent.get();
        let mut late = Grace::new(begun, SECOND * 10, &is_urgent);
        late.extend(SECOND, begun);
        assert!(!late.is_over(begun + SECOND * 3));
        urgent.set(true);
        assert!(!late.is_over(begun + SECOND * 4));
        assert!(!late.is_over(begun + SECOND * 5 - SECOND / 2));
        assert!(late.is_over(begun + SECOND * 5));

        let mut early = Grace::new(begun, SECOND * 10, &is_urgent);
        assert!(early.is_over(begun));
        early.extend(SECOND, begun);
        assert!(!early.is_over(begun + SECOND / 2));
        assert!(early.is_over(begun + SECOND));
    }
}
