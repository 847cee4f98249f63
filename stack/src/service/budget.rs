//! The run-time budget of a handler: which time counts against it, and when a handler that overruns it, or panics,
//! leaves the core.

use std::fmt;

use crate::clock::{self, ThreadTime};
use crate::{Duration, Instant};

/// Watches the run time of one handler, and decides whether it runs on the core.
///
/// A handler is trusted or suspected. Calls of a trusted handler are not measured. The loop reads its clock after each
/// frame anyway, and if handling the whole frame took no longer than the budget, neither did the handler. A frame that
/// took longer only makes the handler suspected, because the rest of the frame's work or another process may have used
/// the time. Each call of a suspected handler is measured with the clock of the thread. An overrun adds to the handler's
/// score, and a call within the budget takes one off. At [`CLEARED_SCORE`] the handler is trusted again. At
/// [`DEMOTED_SCORE`] the pool runs it for a while, after which it returns to the core, suspected.
///
/// A handler that panics is suspected, too. [`PANICS_MAX`] panics within [`PANICS_WITHIN`] raise its score to
/// [`DEMOTED_SCORE`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// In nanoseconds.
    limit: u64,
    /// Zero while the handler is trusted.
    score: u32,
    /// Total duration of the overruns since the handler was last trusted or came back, in nanoseconds.
    overran: u64,
    /// Length of the handler's last time in the pool; zero if it was trusted since.
    away: Duration,
    /// When the handler comes back, while it is away.
    back_at: Option<Instant>,
    /// Times of the last panics, one less than [`PANICS_MAX`], in a ring whose oldest is at `oldest_panic`.
    panics: [Option<Instant>; PANICS_MAX - 1],
    oldest_panic: usize,
    /// Events since the last [`settle`](Self::settle).
    news: News,
}

/// A handler of this score is trusted again as soon as its frame is settled.
const CLEARED_SCORE: u32 = 1;
/// Score of a handler that becomes suspected: 64 calls within the budget clear it.
const SUSPECTED_SCORE: u32 = CLEARED_SCORE + 64;
/// Points that an overrun adds for each time that the budget fits into it.
const OVERRUN_SCORE: u32 = 16;
/// Largest number of times that the budget is counted in one overrun. One very long call does not prove enough: some
/// kernels count interrupts, and time that a hypervisor took, as the thread's.
const OVERRUN_TIMES_MAX: u64 = 4;
/// Score at which the pool runs the handler: reached after 16 short overruns, or four long ones.
const DEMOTED_SCORE: u32 = SUSPECTED_SCORE + 16 * OVERRUN_SCORE;
/// Score of a handler that comes back. Half as many overruns as at first demote it again, and 192 calls within the budget
/// clear it.
const RETURNED_SCORE: u32 = DEMOTED_SCORE - 8 * OVERRUN_SCORE;
/// Length of a handler's first time away. It doubles each time that the handler comes back and is demoted again.
const AWAY_FIRST: Duration = Duration::from_secs(1);
/// Limit of the doubling of [`AWAY_FIRST`].
const AWAY_MAX: Duration = Duration::from_secs(256);
/// Ratio of a handler's time away to the duration of its overruns, at least. It limits the share of the core's time that
/// a handler that blocks in every call can take to one in this number.
const AWAY_TIMES: u64 = 128;
/// Panics within [`PANICS_WITHIN`] that move a handler to the pool.
const PANICS_MAX: usize = 8;
const PANICS_WITHIN: Duration = Duration::from_secs(10);

/// Events of a handler in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct News {
    /// It became suspected.
    pub(crate) suspected: bool,
    /// Calls that overran the budget.
    pub(crate) overruns: u32,
    /// Calls that took longer than the budget only because the core was taken away in the middle of them.
    pub(crate) preemptions: u32,
    /// Calls that panicked.
    pub(crate) panics: u32,
    /// They were so many that it is to be demoted for them.
    pub(crate) too_many_panics: bool,
    /// It came back to the core.
    pub(crate) returned: bool,
    /// It is trusted again.
    pub(crate) cleared: bool,
    /// Time for which it is to be demoted, if it is.
    pub(crate) demoted: Option<Duration>,
    /// The last overrun.
    pub(crate) last: Overrun,
}

/// A call that exceeded the budget, by the way in which it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overrun {
    /// It ran for this many nanoseconds.
    Ran(u64),
    /// It waited for something, and took this many nanoseconds including the wait.
    Waited(u64),
}

impl Default for Overrun {
    fn default() -> Self {
        Self::Ran(0)
    }
}

impl Overrun {
    fn nanos(self) -> u64 {
        match self {
            Self::Ran(nanos) | Self::Waited(nanos) => nanos,
        }
    }
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran(nanos) => write!(f, "ran for {} \u{b5}s", nanos / 1000),
            Self::Waited(nanos) => {
                write!(f, "took {} \u{b5}s, waiting for something", nanos / 1000)
            }
        }
    }
}

/// Time that a call took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// Nanoseconds from begin to end.
    elapsed: u64,
    /// Nanoseconds that the thread ran.
    ran: u64,
    waited: bool,
}

impl Spent {
    pub(super) fn between(before: &ThreadTime, after: &ThreadTime) -> Self {
        Self {
            elapsed: after.nanos.saturating_sub(before.nanos),
            ran: after.ran.saturating_sub(before.ran),
            waited: after.waits != before.waits,
        }
    }

    /// Returns the overrun of `limit` that the handler caused, if there was one.
    fn overrun(&self, limit: u64) -> Option<Overrun> {
        if self.ran > limit {
            Some(Overrun::Ran(self.ran))
        } else if self.waited && self.elapsed > limit {
            Some(Overrun::Waited(self.elapsed))
        } else {
            None
        }
    }
}

impl Budget {
    /// Lets a handler take `limit` per call.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit: nanos_of(limit),
            score: 0,
            overran: 0,
            away: Duration::ZERO,
            back_at: None,
            panics: [None; PANICS_MAX - 1],
            oldest_panic: 0,
            news: News::default(),
        }
    }

    /// Returns the time that a call may take.
    pub(crate) fn limit(&self) -> Duration {
        micros_of(self.limit)
    }

    /// Returns whether the handler's calls are to be measured.
    #[inline]
    pub(super) fn is_suspected(&self) -> bool {
        self.score > 0
    }

    /// Returns whether the core may run the handler. A handler whose time away is over comes back here.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        match self.back_at {
            Some(back_at) if now < back_at => return false,
            Some(_) => {
                self.back_at = None;
                self.score = RETURNED_SCORE;
                self.overran = 0;
                self.news.returned = true;
            }
            None => {}
        }
        true
    }

    /// Charges a call that was measured.
    pub(super) fn charge(&mut self, spent: &Spent) {
        let Some(overrun) = spent.overrun(self.limit) else {
            self.news.preemptions += u32::from(spent.elapsed > self.limit);
            // A frame may have several calls, and is settled after the last.
            if self.score > CLEARED_SCORE {
                self.score -= 1;
            }
            return;
        };
        let times = (overrun.nanos() / self.limit.max(1)).clamp(1, OVERRUN_TIMES_MAX);
        self.score += OVERRUN_SCORE * times as u32;
        self.overran = self.overran.saturating_add(overrun.nanos());
        self.news.overruns += 1;
        self.news.last = overrun;
    }

    /// Notes a call that panicked at `now`.
    pub(super) fn note_panic(&mut self, now: Instant) {
        self.news.panics += 1;
        self.score = self.score.max(SUSPECTED_SCORE);
        let oldest = self.panics[self.oldest_panic].replace(now);
        self.oldest_panic = (self.oldest_panic + 1) % self.panics.len();
        if oldest.is_some_and(|oldest| now - oldest <= PANICS_WITHIN) {
            self.panics = Default::default();
            self.score = self.score.max(DEMOTED_SCORE);
            self.news.too_many_panics = true;
        }
    }

    /// Returns the events of a frame that took `frame_nanos`, ended at `nanos`, and called the handler `calls` times;
    /// `None` if the handler is trusted and the frame was within the budget. If the events say that the handler is to be
    /// demoted, the caller demotes it.
    #[inline]
    pub(crate) fn settle(&mut self, frame_nanos: u64, calls: u32, nanos: u64) -> Option<News> {
        if !self.is_suspected() && frame_nanos <= self.limit.saturating_mul(calls.into()) {
            return None;
        }
        Some(self.settle_suspected(clock::instant(nanos)))
    }

    #[cold]
    #[inline(never)]
    fn settle_suspected(&mut self, now: Instant) -> News {
        if !self.is_suspected() {
            self.score = SUSPECTED_SCORE;
            self.news.suspected = true;
        }
        let mut news = std::mem::take(&mut self.news);
        if self.score == CLEARED_SCORE {
            self.score = 0;
            self.overran = 0;
            self.away = Duration::ZERO;
            news.cleared = true;
        }
        if self.score >= DEMOTED_SCORE && self.back_at.is_none() {
            let doubled = (self.away * 2).clamp(AWAY_FIRST, AWAY_MAX);
            self.away = doubled.max(micros_of(self.overran.saturating_mul(AWAY_TIMES)));
            self.back_at = Some(now + self.away);
            news.demoted = Some(self.away);
        }
        news
    }
}

fn nanos_of(duration: Duration) -> u64 {
    duration.total_micros().saturating_mul(1000)
}

fn micros_of(nanos: u64) -> Duration {
    Duration::from_micros(nanos / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, MonotonicClock, VirtualClock};
    use crate::service::Handler;

    const LIMIT: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(51);
    const LONG: Duration = Duration::from_millis(100);

    /// A handler that takes as much virtual time as it is told, with the bookkeeping that a worker does for it.
    struct World {
        handler: Handler<dyn FnMut(Act)>,
        budget: Budget,
        clock: VirtualClock,
        total: News,
    }

    #[derive(Clone, Copy)]
    enum Act {
        Work(Duration),
        Wait(Duration),
        /// The core is taken away during the call.
        Lose(Duration),
    }

    const QUICK: Act = Act::Work(Duration::from_micros(2));

    impl World {
        fn new() -> Self {
            let clock = VirtualClock::default();
            let its = clock.clone();
            Self {
                handler: Handler::new(Box::new(move |act| match act {
                    Act::Work(time) => its.work(time),
                    Act::Wait(time) => its.wait(time),
                    Act::Lose(time) => its.pass(time),
                })),
                budget: Budget::new(LIMIT),
                clock,
                total: News::default(),
            }
        }

        /// Handles a frame with one call, and `frame` of other work. Returns whether the core ran the call.
        fn call(&mut self, act: Act, frame: Duration) -> bool {
            let start = self.clock.nanos();
            let now = self.clock.time();
            let ran = self
                .handler
                .run(&mut self.budget, now, &mut self.clock, |handler| {
                    handler(act)
                });
            self.clock.work(frame);
            let end = self.clock.nanos();
            let calls = u32::from(ran.is_some());
            if calls > 0
                && let Some(news) = self.budget.settle(end - start, calls, end)
            {
                if news.demoted.is_some() {
                    self.handler.demote();
                    self.total.demoted = news.demoted;
                }
                self.total.overruns += news.overruns;
                self.total.preemptions += news.preemptions;
                self.total.suspected |= news.suspected;
                self.total.returned |= news.returned;
                self.total.cleared |= news.cleared;
                self.total.last = news.last;
            }
            ran.is_some()
        }

        /// Handles frames with such calls until the handler is demoted. Returns their number, and its time away.
        fn demote(&mut self, act: Act) -> (u32, Duration) {
            self.total = News::default();
            for calls in 1..1000 {
                assert!(self.call(act, Duration::ZERO));
                if let Some(away) = self.total.demoted {
                    return (calls, away);
                }
            }
            panic!("it is never demoted");
        }
    }

    /// A clock that tells the time and nothing else.
    struct OnlyTime(VirtualClock);

    impl Clock for OnlyTime {
        fn nanos(&mut self) -> u64 {
            self.0.nanos()
        }
        fn thread_time(&mut self) -> ThreadTime {
            panic!("a trusted handler is measured")
        }
    }

    #[test]
    fn a_trusted_handler_is_not_measured() {
        let World {
            mut handler,
            mut budget,
            clock,
            ..
        } = World::new();
        for _ in 0..100 {
            let mut clock = OnlyTime(clock.clone());
            let now = clock.now();
            assert!(
                handler
                    .run(&mut budget, now, &mut clock, |call| call(QUICK))
                    .is_some()
            );
            assert!(budget.settle(50_000, 1, clock.nanos()).is_none());
        }
    }

    #[test]
    fn slow_frames_are_not_the_handlers_fault() {
        let mut world = World::new();
        for _ in 0..10_000 {
            assert!(world.call(QUICK, LONG));
        }
        assert!(world.total.suspected && world.total.cleared);
        assert_eq!((world.total.overruns, world.total.preemptions), (0, 0));
    }

    #[test]
    fn a_core_that_is_taken_away_is_not_the_handlers_fault() {
        let mut world = World::new();
        for _ in 0..10_000 {
            assert!(world.call(Act::Lose(LONG), Duration::ZERO));
        }
        assert_eq!(world.total.overruns, 0);
        assert!(world.total.preemptions > 9000);
    }

    #[test]
    fn work_and_waiting_are() {
        // The first frame makes it suspected.
        assert_eq!(World::new().demote(Act::Work(SHORT)).0, 1 + 16);
        assert_eq!(World::new().demote(Act::Wait(SHORT)).0, 1 + 16);
        assert_eq!(World::new().demote(Act::Work(LONG)).0, 1 + 4);
        assert_eq!(World::new().demote(Act::Wait(LONG)).0, 1 + 4);
    }

    /// Measures a wait on a real thread.
    #[test]
    fn sleeping_is_seen() {
        let mut handler = Handler::new(Box::new(()));
        let mut budget = Budget::new(LIMIT);
        let mut clock = MonotonicClock::since(std::time::Instant::now());
        for call in 1..=5 {
            let (start, now) = (clock.nanos(), clock.now());
            let ran = handler.run(&mut budget, now, &mut clock, |()| {
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
            assert!(ran.is_some());
            let end = clock.nanos();
            let news = budget.settle(end - start, 1, end).unwrap();
            assert_eq!(news.overruns, u32::from(call > 1));
            assert_eq!(news.demoted.is_some(), call == 5);
        }
    }

    #[test]
    fn what_is_told_is_what_was_measured() {
        let mut world = World::new();
        world.demote(Act::Work(SHORT));
        assert_eq!(world.total.last.to_string(), "ran for 51 \u{b5}s");
        let mut world = World::new();
        world.demote(Act::Wait(LONG));
        let told = world.total.last.to_string();
        assert_eq!(told, "took 100000 \u{b5}s, waiting for something");
    }

    #[test]
    fn rare_overruns_are_forgiven() {
        let mut world = World::new();
        for _ in 0..1000 {
            assert!(world.call(Act::Work(SHORT), Duration::ZERO));
            for _ in 0..OVERRUN_SCORE {
                assert!(world.call(QUICK, Duration::ZERO));
            }
        }
        assert!(world.total.overruns > 0 && world.total.demoted.is_none());
    }

    #[test]
    fn several_calls_in_a_frame_have_a_budget_each() {
        let mut budget = Budget::new(LIMIT);
        assert!(budget.settle(150_000, 3, 0).is_none());
        assert!(
            budget
                .settle(150_001, 3, 0)
                .is_some_and(|news| news.suspected)
        );
    }

    #[test]
    fn a_demoted_handler_comes_back_and_is_trusted_if_it_behaves() {
        let mut world = World::new();
        let (_, away) = world.demote(Act::Work(SHORT));
        assert_eq!(away, AWAY_FIRST);
        world.clock.pass(AWAY_FIRST - Duration::from_micros(1));
        assert!(!world.call(QUICK, Duration::ZERO));
        world.clock.pass(Duration::from_micros(1));
        for call in 1..RETURNED_SCORE {
            assert!(!world.total.cleared, "after {call} calls");
            assert!(world.call(QUICK, Duration::ZERO));
        }
        assert!(world.total.returned && world.total.cleared);
        // Its earlier overruns do not count any more.
        assert_eq!(world.demote(Act::Work(SHORT)), (1 + 16, AWAY_FIRST));
    }

    #[test]
    fn one_that_overruns_again_stays_away_longer_and_longer() {
        let mut world = World::new();
        let mut expected = AWAY_FIRST;
        let (_, mut away) = world.demote(Act::Work(SHORT));
        for _ in 0..12 {
            assert_eq!(away, expected);
            world.clock.pass(away);
            let (calls, next) = world.demote(Act::Work(SHORT));
            assert_eq!(calls, 8);
            away = next;
            expected = (expected * 2).min(AWAY_MAX);
        }
        assert_eq!(away, AWAY_MAX);
    }

    /// Requests come every 10 ms, for hours, to a handler that blocks for as long as it likes in each.
    #[test]
    fn blocking_costs_a_bounded_share_of_time() {
        for block in [1, 100, 10_000].map(Duration::from_millis) {
            let mut world = World::new();
            let mut blocked = Duration::ZERO;
            while world.clock.time() < Instant::ZERO + Duration::from_secs(36_000) {
                if world.call(Act::Wait(block), Duration::ZERO) {
                    blocked += block;
                }
                world.clock.pass(Duration::from_millis(10));
            }
            // The share does not include the first overruns, which demote the handler, nor a trial at the end.
            let found_out = block * 8;
            let share = Duration::from_secs(36_000) / AWAY_TIMES as u32;
            assert!(blocked <= share + found_out, "{blocked} by {block}");
        }
    }
}
