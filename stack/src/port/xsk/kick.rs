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
/// Stalls in a row after which the queue is said to be stuck, if the kernel leaves the frames on the TX ring:
/// every way was tried by then.
const STUCK_STALLS: u32 = 3 * STALLS_PER_WAY;
/// The same if the kernel took the frames and the driver keeps them: a flow-controlled link may stand still for
/// a while.
const STUCK_STALLS_TAKEN: u32 = 20;

/// How the kernel is told of frames on the TX ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `sendto`.
    Send,
    /// `poll` for `POLLOUT`: wakes the driver up also if the socket prefers busy polling.
    Poll,
    /// `sendto`, after the socket's busy-poll options were taken back.
    SendUnpolled,
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

/// What a look at the queue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing to do.
    Fine,
    /// Frames come back again, since the kernel is told in another way, which is kept.
    Changed,
    /// Frames come back again; it was said that they did not.
    Recovered,
    /// Nothing came back for too long: [`Watch::overdue`] says what to do.
    Overdue,
}

/// What to do about frames that do not come back. In any case the kernel is to be told of them again, by
/// [`Watch::way`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing else: they are waited for already.
    Wait,
    /// Count a stall: this is the first time.
    Count,
    /// Say that no way works.
    Stuck,
}

/// The watch over the frames that are out: on the TX ring, or not yet reported on the COMPLETION ring.
#[derive(Debug)]
pub(super) struct Watch {
    way: Way,
    /// The way with which frames came back last.
    proven: Way,
    /// The socket has busy-poll options, which can be taken back.
    busy_polling: bool,
    /// The last time at which none was out, or one came back.
    moved_at: Option<Instant>,
    /// Stalls since a frame came back.
    stalls: u32,
    /// It was said that frames do not come back.
    stuck: bool,
    /// As many frames are taken to be lost in the driver: a reset may lose some without a report. They are no
    /// reason to say that the queue is stuck once more.
    lost: u32,
}

impl Watch {
    /// The watch over a new socket.
    pub(super) fn new(busy_polling: bool) -> Self {
        Self {
            way: Way::Send,
            proven: Way::Send,
            busy_polling,
            moved_at: None,
            stalls: 0,
            stuck: false,
            lost: 0,
        }
    }

    /// A watch that has come to `way`.
    #[cfg(test)]
    pub(super) fn using(way: Way) -> Self {
        Self {
            way,
            proven: way,
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
        if self.stalls == 0 && self.lost == 0 {
            return Look::Fine;
        }
        self.moved(out)
    }

    /// What to do at `now` about `out` frames of which none came back for [`STALL`], `untaken` of them still on the
    /// TX ring. Without a link nothing can be sent, which is no defect.
    pub(super) fn overdue(&mut self, now: Instant, out: u32, untaken: u32, has_link: bool) -> Cure {
        self.moved_at = Some(now);
        if !has_link || out <= self.lost {
            return Cure::Wait;
        }
        self.stalls = self.stalls.saturating_add(1);
        if self.stalls == 1 {
            // The driver may have gone to sleep while the frames were added: told once more, it goes on.
            return Cure::Count;
        }
        let stalls_max = if untaken > 0 {
            if self.stalls.is_multiple_of(STALLS_PER_WAY) {
                self.way = self.next_way();
            }
            STUCK_STALLS
        } else {
            STUCK_STALLS_TAKEN
        };
        if self.stalls < stalls_max {
            return Cure::Wait;
        }
        self.lost = out;
        if std::mem::replace(&mut self.stuck, true) {
            return Cure::Wait;
        }
        Cure::Stuck
    }

    fn moved(&mut self, out: u32) -> Look {
        self.lost = self.lost.min(out);
        self.stalls = 0;
        let was_stuck = std::mem::take(&mut self.stuck);
        if self.way != self.proven {
            self.proven = self.way;
            Look::Changed
        } else if was_stuck {
            Look::Recovered
        } else {
            Look::Fine
        }
    }

    fn next_way(&mut self) -> Way {
        match self.way {
            Way::Send | Way::SendUnpolled => Way::Poll,
            Way::Poll if self.busy_polling => Way::SendUnpolled,
            Way::Poll => Way::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    /// A queue in zero-copy mode with 10 frames on its TX ring that only `works` moves; looks every 10 ms from
    /// `start` on until they are sent, at most 2 s. What was seen, by time.
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
            let cure =
                (look == Look::Overdue).then(|| watch.overdue(at(start + millis), out, out, true));
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
        assert_eq!(watch.overdue(at(50), 1, 1, true), Cure::Count);
        assert_eq!(watch.look(at(51), 0, 1), Look::Fine);
        assert_eq!(watch.way(), Way::Send);
    }

    #[test]
    fn a_ring_that_only_another_way_moves_gets_it_and_keeps_it() {
        for (busy_polling, works) in [
            (false, Way::Poll),
            (true, Way::Poll),
            (true, Way::SendUnpolled),
        ] {
            let mut watch = Watch::new(busy_polling);
            let seen = play(&mut watch, 0, Some(works));
            assert_eq!(seen[0], (50, Look::Overdue, Some(Cure::Count)));
            let (millis, last, _) = seen[seen.len() - 1];
            assert!(last == Look::Changed && millis <= 310, "{seen:?}");
            assert_eq!(watch.way(), works);
            assert!(play(&mut watch, 10_000, Some(works)).is_empty());
        }
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
        assert_eq!(stuck, [450], "said once, {seen:?}");
        let counted = seen
            .iter()
            .filter(|(_, _, cure)| *cure == Some(Cure::Count));
        assert_eq!(counted.count(), 1);
        assert!(watch.is_stuck());
        // It is told again for as long as it lasts.
        assert!(seen.len() > 30 && seen.last().is_some_and(|(millis, ..)| *millis > 1900));
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
                assert_eq!(watch.overdue(at(millis), 10, 0, true), Cure::Wait);
            }
        }
        assert!(!watch.is_stuck());
        // With one more that does not come back, it is a stall.
        watch.look(at(9000), 11, 1);
        assert_eq!(watch.look(at(9050), 11, 0), Look::Overdue);
        assert_eq!(watch.overdue(at(9050), 11, 1, true), Cure::Count);
    }

    #[test]
    fn without_a_link_nothing_is_changed_or_said() {
        let mut watch = Watch::new(true);
        watch.look(at(0), 5, 0);
        for millis in (50..60_000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            assert_eq!(watch.overdue(at(millis), 5, 5, false), Cure::Wait);
        }
        assert_eq!(watch.way(), Way::Send);
        assert_eq!(watch.look(at(60_000), 0, 5), Look::Fine);
    }

    #[test]
    fn frames_that_the_driver_keeps_are_waited_for_in_the_same_way() {
        let mut watch = Watch::new(true);
        watch.look(at(0), 5, 0);
        let mut stuck_at = None;
        for millis in (50..2000).step_by(50) {
            assert_eq!(watch.look(at(millis), 5, 0), Look::Overdue);
            if watch.overdue(at(millis), 5, 0, true) == Cure::Stuck {
                stuck_at = Some(millis);
            }
        }
        assert_eq!((stuck_at, watch.way()), (Some(1000), Way::Send));
        assert_eq!(watch.look(at(2000), 4, 1), Look::Recovered);
    }
}
