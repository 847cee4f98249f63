//! Which connections to look after, and when: all of them wait equally long, so a few buckets will do.
//!
//! A connection has one entry for as long as it waits for something. The entry is not moved when an
//! answer comes: when its time is over, the connection is asked since when it waits, and put back if that
//! is not long enough. So a request costs nothing here. What is due is found at most a sixteenth of the
//! timeout late.

/// Parts of the timeout.
const GRAINS: u64 = 16;
/// One for each part, and for what is rounded up.
const BUCKETS: u64 = GRAINS + 2;

/// The entries.
#[derive(Debug)]
pub struct Timeouts {
    grain: u64,
    /// The bucket that is looked at next; its entries are due at `tick * grain`.
    tick: u64,
    buckets: Vec<Vec<u32>>,
    len: usize,
}

impl Timeouts {
    /// For deadlines that are at most `timeout` nanoseconds ahead, beginning at `now`.
    pub fn new(timeout: u64, now: u64) -> Self {
        let grain = (timeout / GRAINS).max(1);
        Self {
            grain,
            tick: now / grain,
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            len: 0,
        }
    }

    /// The longest that something is found late, in nanoseconds.
    pub fn grain(&self) -> u64 {
        self.grain
    }

    /// Looks after `entry` at `at`.
    pub fn add(&mut self, entry: u32, at: u64) {
        let tick = (at / self.grain + 1).clamp(self.tick, self.tick + BUCKETS - 1);
        self.buckets[(tick % BUCKETS) as usize].push(entry);
        self.len += 1;
    }

    /// An entry whose time is over at `now`.
    pub fn pop(&mut self, now: u64) -> Option<u32> {
        if self.len == 0 {
            self.tick = self.tick.max(now / self.grain);
            return None;
        }
        while self.tick * self.grain <= now {
            if let Some(entry) = self.buckets[(self.tick % BUCKETS) as usize].pop() {
                self.len -= 1;
                return Some(entry);
            }
            self.tick += 1;
        }
        None
    }

    /// When to call [`pop`](Self::pop) again; `None` if there is no entry.
    pub fn next_time(&self) -> Option<u64> {
        (self.len > 0).then_some(self.tick * self.grain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_early_and_nothing_later_than_a_part_of_the_timeout() {
        let mut timeouts = Timeouts::new(1600, 10_000);
        assert_eq!(timeouts.next_time(), None);
        timeouts.add(1, 11_600);
        timeouts.add(2, 10_050);
        assert_eq!(timeouts.pop(10_050), None);
        assert_eq!(timeouts.pop(10_150), Some(2));
        assert_eq!(timeouts.pop(11_599), None);
        assert!(timeouts.next_time().unwrap() <= 11_700);
        assert_eq!(timeouts.pop(11_700), Some(1));
        assert_eq!((timeouts.pop(99_999), timeouts.next_time()), (None, None));
    }

    proptest! {
        #[test]
        fn every_entry_comes_out_once_after_its_time(
            timeout in 1u64..100_000,
            steps in prop::collection::vec((0u64..5_000, 0u64..=100), 1..200),
        ) {
            let mut now = 123_456;
            let mut timeouts = Timeouts::new(timeout, now);
            let mut due = Vec::new();
            for (step, percent) in steps {
                now += step;
                while let Some(entry) = timeouts.pop(now) {
                    let at: &mut Option<u64> = &mut due[entry as usize];
                    prop_assert!(at.take().unwrap() < now + timeouts.grain());
                }
                let at = now + timeout * percent / 100;
                timeouts.add(due.len() as u32, at);
                due.push(Some(at));
                // Nothing that was due a part of the timeout ago is left.
                prop_assert!(due.iter().flatten().all(|at| *at + 2 * timeouts.grain() > now));
            }
            now += 3 * timeout + 10;
            while let Some(entry) = timeouts.pop(now) {
                prop_assert!(due[entry as usize].take().is_some());
            }
            prop_assert!(due.iter().all(Option::is_none));
        }
    }
}
