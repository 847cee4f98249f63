//! Whether the frames on the TX ring leave, and by which system call the kernel is told of them.
//!
//! The decision only: [`Watch`] is told the time, how many frames are out and how many came back, and says
//! what is to be done. The port does it.

use crate::{Duration, Instant};

/// How long frames may be out, with none coming back, before something is done about it. Far longer than a
/// queue takes to send a full ring, and short enough for a peer's first retransmission to go out.
const STALL: Duration = Duration::from_millis(50);
/// Stalls in a row after which another way is tried: a machine that is short of processors is late as well.
const STALLS_PER_WAY: u32 = 3;
/// Stalls in a row after which the queue is said to be stuck: a little more than a second. Every way was tried twice
/// by then, and a flow-controlled link may stand still for a while.
const STUCK_STALLS: u32 = 21;
/// The least time between two questions for the link: the answer takes a socket and the kernel's RTNL lock.
const LINK_KNOWN: Duration = Duration::from_secs(1);
/// How long another way is used, the first time, before [`Way::USUAL`] is tried again. The time doubles with each
/// change.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest such time. A driver that the usual way never wakes up makes a peer wait once in this time.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// How the kernel is told of frames on the TX ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `sendto`.
    Send,
    /// `poll` for `POLLOUT`: wakes the driver up also if the socket prefers busy polling.
    Poll,
    /// `sendto`, while the socket's busy-poll options are taken back.
    SendUnpolled,
}

impl Way {
    /// The way that is used unless frames do not come back.
    pub(super) const USUAL: Self = Self::Send;
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Send => "sendto",
            Self::Poll => "poll(POLLOUT)",
            Self::SendUnpolled => "sendto without busy polling",
        })
    }
}

/// The result of a look at the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing to do.
    Fine,
    /// Frames came back while the kernel was told in another way than the usual one. That way is used for so long,
    /// and then the usual one again.
    Changed(Duration),
    /// The usual way is used again from now on.
    Returned,
    /// Frames come back again; it was said that they did not.
    Recovered,
    /// Nothing came back for too long: [`Watch::overdue`] says what to do.
    Overdue,
}

/// The remedy for frames that do not come back. In any case the kernel is to be told of them again, by
/// [`Watch::way`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing else: they are waited for already.
    Wait,
    /// Count a stall: this is the first time.
    Count,
    /// Say that the queue does not send.
    Stuck,
}

/// The watch over the frames that are out: on the TX ring, or not yet reported on the COMPLETION ring.
#[derive(Debug)]
pub(super) struct Watch {
    way: Way,
    /// The socket has busy-poll options, which can be taken back.
    busy_polling: bool,
    /// The time from which on the usual way is tried again; none until frames came back with another one.
    retry_at: Option<Instant>,
    /// How long the last change was to be kept.
    retry_after: Duration,
    /// The last time at which none was out, or one came back.
    moved_at: Option<Instant>,
    /// Stalls since a frame came back, or since `taken` changed.
    stalls: u32,
    /// The kernel had taken all frames from the TX ring at the last stall. A driver that keeps what it took and a
    /// kernel that takes nothing are two different stalls.
    taken: bool,
    /// When it was asked for the link, and whether there was one.
    link: Option<(Instant, bool)>,
    /// It was said that frames do not come back.
    stuck: bool,
    /// The number of frames that are taken to be lost in the driver, since a reset may drop some without a report.
    /// While no more than these are out, the queue is not said to be stuck once more.
    lost: u32,
}

impl Watch {
    /// The watch over a new socket.
    pub(super) fn new(busy_polling: bool) -> Self {
        Self {
            way: Way::USUAL,
            busy_polling,
            retry_at: None,
            retry_after: Duration::ZERO,
            moved_at: None,
            stalls: 0,
            taken: false,
            link: None,
            stuck: false,
            lost: 0,
        }
    }

    /// A watch that has come to `way`.
    #[cfg(test)]
    pub(super) fn using(way: Way) -> Self {
        Self {
            way,
            ..Self::new(true)
        }
    }

    /// How to tell the kernel.
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Whether frames are out that no way gets sent.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Looks at `now`: `out` frames are out, after `back` came back since the last look.
    #[inline]
    pub(super) fn look(&mut self, now: Instant, out: u32, back: u32) -> Look {
        if out == 0 {
            self.moved_at = None;
        } else if back > 0 {
            self.moved_at = Some(now);
        } else {
            let moved_at = *self.moved_at.get_or_insert(now);
            return if now - moved_at < STALL {
                Look::Fine
            } else {
                Look::Overdue
            };
        }
        if self.stalls == 0 && self.lost == 0 && self.way == Way::USUAL {
            return Look::Fine;
        }
        self.moved(now, out)
    }

    /// Says what to do at `now` about `out` frames of which none came back for [`STALL`], `untaken` of them still on
    /// the TX ring. Without a link nothing can be sent, which is no defect: `ask_link` says whether there is one, and
    /// is called only if that matters, and at most once a second.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        out: u32,
        untaken: u32,
        ask_link: impl FnOnce() -> bool,
    ) -> Cure {
        self.moved_at = Some(now);
        if out <= self.lost {
            if self.stuck && untaken > 0 {
                self.count_untaken();
            }
            return Cure::Wait;
        }
        if !self.has_link(now, ask_link) {
            self.stalls = 0;
            if self.retry_at.is_none() {
                // The other ways were tried because of the link.
                self.way = Way::USUAL;
            }
            return Cure::Wait;
        }
        let first = self.stalls == 0;
        let taken = untaken == 0;
        if std::mem::replace(&mut self.taken, taken) != taken {
            self.stalls = 0;
        }
        if taken {
            self.stalls = self.stalls.saturating_add(1);
        } else {
            self.count_untaken();
        }
        if first {
            // The driver may have gone to sleep while the frames were added: told once more, it goes on.
            return Cure::Count;
        }
        if self.stalls < STUCK_STALLS {
            return Cure::Wait;
        }
        self.lost = out;
        if std::mem::replace(&mut self.stuck, true) {
            return Cure::Wait;
        }
        Cure::Stuck
    }

    /// Counts a stall with frames that the kernel has not taken; tries another way after a few.
    fn count_untaken(&mut self) {
        self.stalls = self.stalls.saturating_add(1);
        if self.stalls.is_multiple_of(STALLS_PER_WAY) {
            self.way = self.next_way();
            self.retry_at = None;
        }
    }

    fn has_link(&mut self, now: Instant, ask: impl FnOnce() -> bool) -> bool {
        match self.link {
            Some((asked_at, has_link)) if now - asked_at < LINK_KNOWN => has_link,
            _ => self.link.insert((now, ask())).1,
        }
    }

    /// Notes at `now` that a frame came back, or that none is out.
    ///
    /// Frames that come back after a change do not prove that the change was it: a link that was paused may have gone
    /// on by itself. The usual way is therefore tried again, after a time that is doubled with each change.
    fn moved(&mut self, now: Instant, out: u32) -> Look {
        self.lost = self.lost.min(out);
        self.stalls = 0;
        let was_stuck = std::mem::take(&mut self.stuck);
        if self.way == Way::USUAL {
            return if was_stuck {
                Look::Recovered
            } else {
                Look::Fine
            };
        }
        let Some(retry_at) = self.retry_at else {
            self.retry_after = (self.retry_after * 2).clamp(RETRY_MIN, RETRY_MAX);
            self.retry_at = Some(now + self.retry_after);
            return Look::Changed(self.retry_after);
        };
        if now >= retry_at {
            self.way = Way::USUAL;
            self.retry_at = None;
            return Look::Returned;
        }
        if was_stuck {
            Look::Recovered
        } else {
            Look::Fine
        }
    }

    fn next_way(&self) -> Way {
        match self.way {
            Way::Send => Way::Poll,
            Way::Poll if self.busy_polling => Way::SendUnpolled,
            Way::Poll | Way::SendUnpolled => Way::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    /// Plays a queue in zero-copy mode with 10 frames on its TX ring that only `works` moves, which is looked at every
    /// 10 ms from `start` on until they are sent, for 2 s at most. Returns each look that found something, by time.
    fn play(watch: &mut Watch, start: i64, works: Option<Way>) -> Vec<(i64, Look, Option<Cure>)> {
        let mut seen = Vec::new();
        let (mut out, mut back) = (10, 0);
        // The turn that sends tells the kernel.
        if works == Some(watch.way()) {
            back = 10;
        }
        for millis in (0..2000).step_by(10) {
            out -= back;
            let look = watch.look(at(start + millis), out, back);
            back = 0;
            let cure = (look == Look::Overdue)
                .then(|| watch.overdue(at(start + millis), out, out, || true));
            if cure.is_some() && works == Some(watch.way()) {
                back = out;
            }
            if look != Look::Fine {
                seen.push((millis, look, cure));
            }
            if out == 0 {
                break;
            }
        }
        seen
    }

    #[test]
    fn a_ring_that_moves_is_left_alone() {
        for busy_polling in [false, true] {
            let mut watch = Watch::new(busy_polling);
            assert!(play(&mut watch, 0, Some(Way::Send)).is_empty());
            // Also one that is never empty.
            for millis in 0..500 {
                assert_eq!(watch.look(at(1000 + millis * 10), 100, 1), Look::Fine);
            }
            assert_eq!(watch.way(), Way::Send);
        }
    }

    #[test]
    fn frames_sent_after_a_long_silence_are_not_overdue_at_once() {
        let mut watch = Watch::new(false);
        assert_eq!(watch.look(at(0), 1, 0), Look::Fine);
        assert_eq!(watch.look(at(10), 0, 1), Look::Fine);
        assert_eq!(watch.look(at(5000), 1, 0), Look::Fine);
        assert_eq!(watch.look(at(5049), 1, 0), Look::Fine);
        assert_eq!(watch.look(at(5050), 1, 0), Look::Overdue);
    }

    #[test]
    fn a_driver_that_missed_a_kick_is_told_again_in_the_same_way() {
        let mut watch = Watch::new(false);
        watch.look(at(0), 1, 0);
        assert_eq!(watch.look(at(50), 1, 0), Look::Overdue);
        assert_eq!(watch.overdue(at(50), 1, 1, || true), Cure::Count);
        assert_eq!(watch.look(at(51), 0, 1), Look::Fine);
        assert_eq!(watch.way(), Way::Send);
    }

    #[test]
    fn a_ring_that_only_another_way_moves_gets_it_and_keeps_it_while_the_usual_one_fails() {
        for (busy_polling, works) in [
            (false, Way::Poll),
            (true, Way::Poll),
            (true, Way::SendUnpolled),
        ] {
            let mut watch = Watch::new(busy_polling);
            let mut start = 0;
            for kept_secs in [1, 2, 4] {
                let seen = play(&mut watch, start, Some(works));
                assert_eq!(seen[0], (50, Look::Overdue, Some(Cure::Count)));
                let (millis, last, _) = seen[seen.len() - 1];
                let kept = Duration::from_secs(kept_secs);
                assert!(last == Look::Changed(kept) && millis <= 310, "{seen:?}");
                assert_eq!(watch.way(), works);
                assert!(play(&mut watch, start + 500, Some(works)).is_empty());
                start += 1000 * kept_secs as i64 + millis;
                assert_eq!(watch.look(at(start - 1), 0, 0), Look::Fine);
                assert_eq!(watch.look(at(start), 0, 0), Look::Returned);
                assert_eq!(watch.way(), Way::Send);
            }
        }
    }

    #[test]
    fn a_usual_way_that_never_works_is_tried_once_an_hour_in_the_end() {
        let mut watch = Watch::new(false);
        let (mut start, mut kept) = (0, Duration::ZERO);
        for _ in 0..20 {
            let seen = play(&mut watch, start, Some(Way::Poll));
            let (millis, last, _) = seen[seen.len() - 1];
            let Look::Changed(time) = last else {
                panic!("{seen:?}");
            };
            kept = time;
            start += millis + kept.total_millis() as i64;
            assert_eq!(watch.look(at(start), 0, 0), Look::Returned);
        }
        assert_eq!(kept, Duration::from_secs(3600));
    }

    /// A flow-controlled link fills the driver's ring, and frames stay on the TX ring until it goes on by itself.
    #[test]
    fn a_pause_of_the_link_changes_nothing_for_good() {
        for pause in (150..2000).step_by(50) {
            let mut watch = Watch::new(true);
            watch.look(at(0), 300, 0);
            for millis in (50..=pause).step_by(50) {
                assert_eq!(watch.look(at(millis), 300, 0), Look::Overdue);
                watch.overdue(at(millis), 300, 44, || true);
            }
            watch.look(at(pause + 10), 200, 100);
            assert!(!watch.is_stuck());
            watch.look(at(pause + 20), 0, 200);
            watch.look(at(pause + 1100), 0, 0);
            assert_eq!(watch.way(), Way::USUAL, "after a pause of {pause} ms");
        }
    }

    #[test]
    fn frames_left_on_the_ring_get_every_way_however_long_the_driver_kept_others() {
        let mut watch = Watch::new(true);
        watch.look(at(0), 5, 0);
        let mut cures = Vec::new();
        let mut ways = Vec::new();
        for millis in (50..1700).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            let untaken = (millis > 500).into();
            match watch.overdue(at(millis), 5, untaken, || true) {
                Cure::Wait => {}
                cure => cures.push((millis, cure)),
            }
            ways.push(watch.way());
        }
        // One stall, from the first frame on.
        assert_eq!(cures, [(50, Cure::Count), (1550, Cure::Stuck)]);
        assert!(ways[..12].iter().all(|way| *way == Way::Send), "{ways:?}");
        assert_eq!((ways[12], ways[15]), (Way::Poll, Way::SendUnpolled));
    }

    #[test]
    fn the_link_is_asked_for_once_a_second_and_not_for_lost_frames() {
        let mut asked = Vec::new();
        let mut watch = Watch::new(false);
        watch.look(at(0), 5, 0);
        for millis in (50..60_000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            watch.overdue(at(millis), 5, 0, || {
                asked.push(millis);
                true
            });
        }
        assert!(watch.is_stuck());
        assert_eq!(asked, [50, 1050], "the rest is taken to be lost");

        asked.clear();
        let mut watch = Watch::new(false);
        watch.look(at(0), 5, 0);
        for millis in (50..4000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            watch.overdue(at(millis), 5, 5, || {
                asked.push(millis);
                false
            });
        }
        assert_eq!(asked, [50, 1050, 2050, 3050]);
    }

    #[test]
    fn a_ring_that_no_way_moves_is_said_to_be_stuck_once_and_recovers() {
        let mut watch = Watch::new(true);
        let seen = play(&mut watch, 0, None);
        let stuck: Vec<i64> = seen
            .iter()
            .filter(|(_, _, cure)| *cure == Some(Cure::Stuck))
            .map(|(millis, ..)| *millis)
            .collect();
        assert_eq!(stuck, [1050], "said once, {seen:?}");
        let counted = seen
            .iter()
            .filter(|(_, _, cure)| *cure == Some(Cure::Count));
        assert_eq!(counted.count(), 1);
        assert!(watch.is_stuck());
        // The kernel is told again for as long as it lasts, in each way.
        assert!(seen.len() > 30 && seen.last().is_some_and(|(millis, ..)| *millis > 1900));
        for works in [Way::Send, Way::Poll, Way::SendUnpolled] {
            let mut watch = Watch::new(true);
            play(&mut watch, 0, None);
            let seen = play(&mut watch, 2000, Some(works));
            assert_ne!(
                seen.last().unwrap().1,
                Look::Overdue,
                "by {works}: {seen:?}"
            );
        }
        assert_ne!(watch.look(at(3000), 0, 10), Look::Fine);
        assert!(!watch.is_stuck());
        assert_eq!(watch.look(at(3010), 5, 0), Look::Fine);
    }

    #[test]
    fn frames_that_a_reset_lost_are_said_once() {
        let mut watch = Watch::new(false);
        let seen = play(&mut watch, 0, None);
        assert!(seen.iter().any(|(_, _, cure)| *cure == Some(Cure::Stuck)));
        // Ten are lost, others come and go.
        assert_ne!(watch.look(at(3000), 10, 3), Look::Fine);
        for millis in (3010..9000).step_by(10) {
            if watch.look(at(millis), 10, 0) == Look::Overdue {
                assert_eq!(watch.overdue(at(millis), 10, 0, || true), Cure::Wait);
            }
        }
        assert!(!watch.is_stuck());
        // With one more that does not come back, it is a stall.
        watch.look(at(9000), 11, 1);
        assert_eq!(watch.look(at(9050), 11, 0), Look::Overdue);
        assert_eq!(watch.overdue(at(9050), 11, 1, || true), Cure::Count);
    }

    #[test]
    fn without_a_link_nothing_is_changed_or_said() {
        let mut watch = Watch::new(true);
        watch.look(at(0), 5, 0);
        for millis in (50..60_000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            assert_eq!(watch.overdue(at(millis), 5, 5, || false), Cure::Wait);
        }
        assert_eq!(watch.way(), Way::Send);
        assert_eq!(watch.look(at(60_000), 0, 5), Look::Fine);
    }

    #[test]
    fn a_link_whose_loss_is_seen_late_leaves_the_usual_way() {
        let mut watch = Watch::new(false);
        watch.look(at(0), 5, 0);
        for millis in (50..2000).step_by(100) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            watch.overdue(at(millis), 5, 5, || millis < 500);
            assert_eq!(
                watch.way() == Way::Poll,
                (850..1050).contains(&millis) || (250..550).contains(&millis)
            );
        }
        assert_eq!(watch.look(at(2000), 0, 5), Look::Fine);
        assert_eq!(watch.way(), Way::USUAL);
    }

    #[test]
    fn frames_that_the_driver_keeps_are_waited_for_in_the_same_way() {
        let mut watch = Watch::new(true);
        watch.look(at(0), 5, 0);
        let mut stuck_at = None;
        for millis in (50..2000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            if watch.overdue(at(millis), 5, 0, || true) == Cure::Stuck {
                stuck_at = Some(millis);
            }
        }
        assert_eq!((stuck_at, watch.way()), (Some(1050), Way::Send));
        assert_eq!(watch.look(at(2000), 4, 1), Look::Recovered);
    }
}
