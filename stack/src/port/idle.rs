//! What a core does when a turn found nothing to do.

use crate::config::Poll;
use crate::{Duration, Instant};

/// How long an adaptive core looks again before it sleeps: longer than the gap between two packets of a
/// busy client, shorter than anything a human or a power meter would notice.
const SPIN: Duration = Duration::from_micros(100);
/// Empty turns between two system calls that let the kernel work on the queue.
const BUSY_POLL_EVERY: u32 = 64;
/// The longest sleep: an upper bound on how late a stop request or a published count may be.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What to do before the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look again at once.
    Spin,
    /// Let the kernel work on the queue in our own time, then look again.
    BusyPoll,
    /// Sleep, at most this long.
    Sleep(Duration),
}

/// The idle strategy of one core: [`Poll`] with the time since something happened.
#[derive(Debug)]
pub struct Idle {
    poll: Poll,
    busy_at: Instant,
    empty_turns: u32,
}

impl Idle {
    /// A core that did something at `now`.
    pub fn new(poll: Poll, now: Instant) -> Self {
        Self {
            poll,
            busy_at: now,
            empty_turns: 0,
        }
    }

    /// The turn at `now` did something.
    pub fn worked(&mut self, now: Instant) {
        self.busy_at = now;
        self.empty_turns = 0;
    }

    /// The turn at `now` did nothing; the next timer is due at `deadline`.
    pub fn next(&mut self, now: Instant, deadline: Option<Instant>) -> Action {
        self.empty_turns = self.empty_turns.wrapping_add(1);
        let spinning = match self.poll {
            Poll::Busy => true,
            Poll::Adaptive => now - self.busy_at < SPIN,
            Poll::Sleep => false,
        };
        if spinning {
            return if self.empty_turns.is_multiple_of(BUSY_POLL_EVERY) {
                Action::BusyPoll
            } else {
                Action::Spin
            };
        }
        let until_timer = match deadline {
            Some(deadline) if deadline <= now => return Action::Spin,
            Some(deadline) => deadline - now,
            None => SLEEP_MAX,
        };
        Action::Sleep(until_timer.min(SLEEP_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn busy_never_sleeps_and_sleep_never_spins() {
        let mut idle = Idle::new(Poll::Busy, at(0));
        assert!(!matches!(idle.next(at(10_000_000), None), Action::Sleep(_)));
        let mut idle = Idle::new(Poll::Sleep, at(0));
        assert_eq!(idle.next(at(0), None), Action::Sleep(SLEEP_MAX));
    }

    #[test]
    fn adaptive_sleeps_until_the_next_timer_after_a_while() {
        let mut idle = Idle::new(Poll::Adaptive, at(0));
        idle.worked(at(1000));
        assert_eq!(idle.next(at(1050), None), Action::Spin);
        assert_eq!(
            idle.next(at(1200), Some(at(3200))),
            Action::Sleep(Duration::from_micros(2000))
        );
        assert_eq!(idle.next(at(1200), Some(at(1200))), Action::Spin);
    }
}
