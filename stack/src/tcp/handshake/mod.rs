//! Handshakes without state: SYN cookies, and the initial sequence numbers of connections that we open.
//!
//! The initial sequence number that answers a SYN says, to whoever has the keys, when it was made and what the
//! SYN's options were; the acknowledgement that returns it makes the connection. So a SYN costs no memory.
//!
//! `ISN = M + F(ends) + cookie`, all modulo 2^32, as RFC 6528 section 3 has it, where
//!
//! * `F` is a keyed hash of both ends, with a key that does not change;
//! * `M` is the number of the period, of 2^26 µs (67 s), times 2^24: the four-microsecond clock of
//!   RFC 9293 section 3.4.1 in steps of a period;
//! * the cookie, below 2^24, is what makes it unforgeable: a [`code`] of the options in 9 bits, and 15 bits of a keyed
//!   hash of both ends, the period, the peer's own sequence number, and that code. Its key changes every
//!   [`PERIODS_PER_KEY`] periods.
//!
//! A cookie is accepted in its own period and the next. [`Marks`] of handshakes, a memory of fixed size, add what a
//! cookie has no room for. They are written with every SYN, and can be lost. There are three cases:
//!
//! * There is a mark of the ends. It has the options and the period, so one number alone is right: a blind guess is
//!   right once in 2^32.
//! * Their mark may have been overwritten a moment ago, as in a flood. The cookie speaks for itself: of 2^32 numbers,
//!   two periods times 2^9 codes are right, one in 2^22. Options are rounded.
//! * Neither. The SYN may have been answered by another core, which has the same secret, if the card now steers
//!   differently; a cookie speaks for itself then, too. Nearly all others are guesses or strays, so after a burst
//!   of [`STRANGERS_BURST`] wrong ones [`STRANGERS_PER_SECOND`] a second are looked at: a guess is right once in
//!   six days.
//!
//! Sequence numbers of one period are in no order, since the cookie varies more than the clock moves on. It cannot be
//! otherwise without state: numbers that always rise have, within time t, only t / 4 µs values to differ by, and it
//! is by these that a right one is told from a guess; for order within a second 18 bits would be left, and the
//! acceptance of a minute's cookies would make one guess in 2^17 right. The marks help here as well: the
//! connection that follows a marked one of the same ends gets numbers two periods ahead of it.

mod code;
mod marks;

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use self::code::CODE_BITS;
use self::marks::{Mark, Marks, Remembered, Stamp};
use super::segment::PeerOptions;
use crate::Instant;
use crate::token_bucket::TokenBucket;
use crate::wire::FlowKey;

/// A stamp is so many bits of microseconds long.
const STAMP_BITS: u32 = 20;
/// Stamps in a period.
const STAMPS_PER_PERIOD: u32 = 64;
/// A cookie's bits of a sequence number; the others count periods.
const COOKIE_BITS: u32 = 24;
const COOKIE_MASK: u32 = (1 << COOKIE_BITS) - 1;
const CODE_MASK: u32 = (1 << CODE_BITS) - 1;
/// Periods, besides its own, in which a cookie is accepted.
const AGE_MAX: u32 = 1;
/// How long a key makes cookies, in periods: 71 minutes.
const PERIODS_PER_KEY: u32 = 64;
/// Periods by which the numbers of a connection are ahead of those of the last one of the same ends.
const AHEAD_STEP: u32 = 2;
/// Periods by which numbers may be ahead of the clock: an eighth of all numbers. Ends that
/// connect more often than this allows, 15 times before the clock has caught up, get numbers without an order.
const AHEAD_MAX: u32 = 31;
/// Wrong cookies of ends of which nothing is remembered that are looked at, in the long run and at once.
const STRANGERS_PER_SECOND: u32 = 8;
const STRANGERS_BURST: u32 = 64;

/// 128 bits that nobody else knows.
pub(crate) type Secret = [u64; 2];

/// Makes and checks cookies.
///
/// All cores of a stack have the same secret and a clock with the same start, so any of them can complete a handshake
/// that another one began.
pub(super) struct Handshake {
    /// The key of `F`.
    ends: SipHasher24,
    /// The key of this period's cookies, and the one before it.
    keys: [Secret; 2],
    /// How many keys there were before this one.
    key_number: u32,
    /// Added to every sequence number: for tests that want it to wrap.
    offset: u32,
    /// Besides what cookies have no room for, they tell which segments without a connection are early and which are
    /// late. One that comes between SYN and handshake and does not complete it is early (its first was lost, or is
    /// late), not wrong. One that completes it once more is a late copy: what it opened may be closed since, and must
    /// not be opened again.
    marks: Marks,
    strangers: TokenBucket,
}

/// What became of an acknowledgement that may complete a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// It does; these were the SYN's options.
    Complete(PeerOptions),
    /// It does not, but its peer was sent a cookie a moment ago: wait for the segment before this one.
    Early,
    /// It returns no cookie of ours.
    Refused,
}

impl Handshake {
    pub(super) fn new(secret: Secret, offset: u32) -> Self {
        let [ends, cookies] = [0, 1].map(|purpose| derive(secret, purpose));
        Self {
            ends: hasher(ends),
            keys: [cookies; 2],
            key_number: 0,
            offset,
            marks: Marks::new(),
            strangers: TokenBucket::new(STRANGERS_PER_SECOND, STRANGERS_BURST, Instant::ZERO),
        }
    }

    /// The initial sequence number that answers a SYN numbered `peer_isn` with these options. `local_mss` is
    /// the largest segment that we can send.
    pub(super) fn cookie(
        &mut self,
        key: &FlowKey,
        peer_isn: u32,
        mut options: PeerOptions,
        local_mss: u16,
        now: Instant,
    ) -> u32 {
        let now = stamp(now);
        self.turn_key(now);
        options.mss = options.mss.min(local_mss);
        let ends = self.hash_ends(key);
        let (stamp, ahead) = match self.marks.find(ends, now) {
            // Another copy of the SYN gets the same answer.
            Remembered::Mark(mark) if !mark.is_used && now - mark.stamp < STAMPS_PER_PERIOD => {
                (mark.stamp, mark.ahead)
            }
            Remembered::Mark(mark) => {
                let step = if mark.is_used { AHEAD_STEP } else { 0 };
                let least = period(mark.stamp) + mark.ahead + step;
                (now, least.saturating_sub(period(now)).min(AHEAD_MAX))
            }
            Remembered::Lost | Remembered::Nothing => (now, 0),
        };
        let mark = Mark {
            stamp,
            ahead,
            options,
            is_used: false,
        };
        self.marks.write(ends, mark);
        self.isn_of(key, ends, peer_isn, &mark, local_mss)
    }

    /// Whether the acknowledgement of `isn` by a peer whose SYN was numbered `peer_isn` completes a handshake.
    pub(super) fn complete(
        &mut self,
        key: &FlowKey,
        peer_isn: u32,
        isn: u32,
        local_mss: u16,
        now: Instant,
    ) -> Completion {
        let (time, now) = (now, stamp(now));
        self.turn_key(now);
        let ends = self.hash_ends(key);
        let (opened, otherwise) = match self.marks.find(ends, now) {
            Remembered::Mark(mark) if mark.is_used => return Completion::Refused,
            Remembered::Mark(mark) => {
                if isn == self.isn_of(key, ends, peer_isn, &mark, local_mss) {
                    return Completion::Complete(mark.options);
                }
                // It may be the answer to a SYN before the last one, with other options. What is ahead has a
                // connection before it, whose handshake must not be completed again.
                let opened = (mark.ahead == 0)
                    .then(|| self.open_stranger(key, ends, peer_isn, isn, local_mss, time));
                (opened.flatten(), Completion::Early)
            }
            Remembered::Lost => (
                self.open(key, ends, peer_isn, isn, local_mss, now),
                Completion::Refused,
            ),
            Remembered::Nothing => (
                self.open_stranger(key, ends, peer_isn, isn, local_mss, time),
                Completion::Refused,
            ),
        };
        opened.map_or(otherwise, Completion::Complete)
    }

    /// A handshake was completed, and its connection begun: no copy of what completed it shall begin another one.
    pub(super) fn use_up(&mut self, key: &FlowKey, options: PeerOptions, now: Instant) {
        let now = stamp(now);
        let ends = self.hash_ends(key);
        let mark = match self.marks.find(ends, now) {
            Remembered::Mark(mark) => Mark {
                is_used: true,
                ..mark
            },
            Remembered::Lost | Remembered::Nothing => Mark {
                stamp: now,
                ahead: 0,
                options,
                is_used: true,
            },
        };
        self.marks.write(ends, mark);
    }

    /// The initial sequence number of a connection that we open.
    pub(super) fn isn(&self, key: &FlowKey, now: Instant) -> u32 {
        // RFC 6528 section 3, with the four-microsecond clock.
        let clock = (now.total_micros() >> 2) as u32;
        clock
            .wrapping_add(self.hash_ends(key) as u32)
            .wrapping_add(self.offset)
    }

    /// The options that a cookie says, if it is one, and if there were not too many lately that are none.
    fn open_stranger(
        &mut self,
        key: &FlowKey,
        ends: u64,
        peer_isn: u32,
        isn: u32,
        local_mss: u16,
        now: Instant,
    ) -> Option<PeerOptions> {
        if !self.strangers.has_token(now) {
            return None;
        }
        let opened = self.open(key, ends, peer_isn, isn, local_mss, stamp(now));
        if opened.is_none() {
            self.strangers.take(now);
        }
        opened
    }

    /// The options that a cookie says, if it is one.
    fn open(
        &self,
        key: &FlowKey,
        ends: u64,
        peer_isn: u32,
        isn: u32,
        local_mss: u16,
        now: Stamp,
    ) -> Option<PeerOptions> {
        let now = period(now);
        let rest = isn.wrapping_sub(self.base(ends, now));
        // How many periods ago it was made, in the sequence number's arithmetic.
        let age = 0u32.wrapping_sub(rest >> COOKIE_BITS) & 0xff;
        let cookie = rest & COOKIE_MASK;
        let code = cookie & CODE_MASK;
        let is_ours =
            age <= AGE_MAX && age <= now && cookie == self.seal(key, peer_isn, now - age, 0, code);
        is_ours.then(|| code::unpack(code, local_mss))
    }

    /// The number that answers a SYN of the handshake that `mark` remembers.
    fn isn_of(&self, key: &FlowKey, ends: u64, peer_isn: u32, mark: &Mark, local_mss: u16) -> u32 {
        let period = period(mark.stamp);
        let code = code::pack(mark.options, local_mss);
        self.base(ends, period + mark.ahead)
            .wrapping_add(self.seal(key, peer_isn, period, mark.ahead, code))
    }

    /// What the sequence numbers of a period begin with.
    fn base(&self, ends: u64, period: u32) -> u32 {
        (period << COOKIE_BITS)
            .wrapping_add(ends as u32)
            .wrapping_add(self.offset)
    }

    fn hash_ends(&self, key: &FlowKey) -> u64 {
        let mut hasher = self.ends;
        write_ends(&mut hasher, key);
        hasher.finish()
    }

    /// The cookie, made in `period` for numbers that are `ahead` of it, that says `code`.
    fn seal(&self, key: &FlowKey, peer_isn: u32, period: u32, ahead: u32, code: u32) -> u32 {
        // A cookie of the last period may have been made with the key before this one.
        let made_now = period / PERIODS_PER_KEY == self.key_number;
        let mut hasher = hasher(self.keys[usize::from(!made_now)]);
        write_ends(&mut hasher, key);
        hasher.write_u32(peer_isn);
        hasher.write_u32(period);
        hasher.write_u32(ahead << CODE_BITS | code);
        (hasher.finish() as u32) << CODE_BITS & COOKIE_MASK | code
    }

    /// Replaces the key if its time is over. Each comes from the one before it, which cannot be found out
    /// from it.
    fn turn_key(&mut self, now: Stamp) {
        while self.key_number < period(now) / PERIODS_PER_KEY {
            self.keys = [derive(self.keys[0], 2), self.keys[0]];
            self.key_number += 1;
        }
    }
}

fn stamp(now: Instant) -> Stamp {
    (now.total_micros() >> STAMP_BITS) as u32
}

fn period(stamp: Stamp) -> u32 {
    stamp / STAMPS_PER_PERIOD
}

fn hasher(key: Secret) -> SipHasher24 {
    SipHasher24::new_with_keys(key[0], key[1])
}

/// A key for one purpose from another one.
fn derive(secret: Secret, purpose: u64) -> Secret {
    [0, 1].map(|half| {
        let mut hasher = hasher(secret);
        hasher.write_u64(purpose);
        hasher.write_u64(half);
        hasher.finish()
    })
}

fn write_ends(hasher: &mut SipHasher24, key: &FlowKey) {
    hasher.write(key.peer.octets());
    hasher.write(key.local.octets());
    hasher.write_u32(u32::from(key.peer_port) << 16 | u32::from(key.local_port));
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::Duration;

    const LOCAL_MSS: u16 = 1460;
    const PERIOD: Duration = Duration::from_micros((STAMPS_PER_PERIOD as u64) << STAMP_BITS);

    fn key(number: u32) -> FlowKey {
        FlowKey {
            peer: IpAddr::V4(Ipv4Addr::from(number)).into(),
            local: IpAddr::from([192, 0, 2, 1]).into(),
            peer_port: 40_000,
            local_port: 80,
        }
    }

    fn options(mss: u16, shift: Option<u8>, sack: bool) -> PeerOptions {
        PeerOptions { mss, shift, sack }
    }

    const LINUX: PeerOptions = PeerOptions {
        mss: 1460,
        shift: Some(7),
        sack: true,
    };

    #[test]
    fn a_cookie_is_good_in_its_period_and_the_next() {
        let mut handshake = Handshake::new([1, 2], 0);
        for start in [0, 5, 63, 64, 255, 256, 1000] {
            let mut now = Instant::ZERO + PERIOD * start + Duration::from_secs(3);
            let isn = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
            for accepted in [true, true, false, false] {
                let complete = handshake.complete(&key(1), 77, isn, LOCAL_MSS, now);
                assert_eq!(complete == Completion::Complete(LINUX), accepted, "{start}");
                now += PERIOD;
            }
        }
    }

    #[test]
    fn a_cookie_is_for_one_peer_and_one_syn() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        let isn = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        let complete = |handshake: &mut Handshake, number, peer_isn, isn| {
            handshake.complete(&key(number), peer_isn, isn, LOCAL_MSS, now)
        };
        assert_eq!(complete(&mut handshake, 2, 77, isn), Completion::Refused);
        // What it knows of is early: its first segment may come yet.
        assert_eq!(complete(&mut handshake, 1, 78, isn), Completion::Early);
        // The next number would say other options.
        assert_eq!(
            complete(&mut handshake, 1, 77, isn.wrapping_add(1)),
            Completion::Early
        );
        assert_eq!(
            complete(&mut handshake, 1, 77, isn),
            Completion::Complete(LINUX)
        );
        // And once more only after another SYN.
        assert_eq!(
            complete(&mut handshake, 1, 77, isn),
            Completion::Complete(LINUX)
        );
        handshake.use_up(&key(1), LINUX, now);
        for peer_isn in [77, 78] {
            let late = complete(&mut handshake, 1, peer_isn, isn);
            assert_eq!(late, Completion::Refused);
        }
        // It has a number of its own, or the late copy would still be right.
        let next = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        assert_eq!(complete(&mut handshake, 1, 77, isn), Completion::Early);
        assert_eq!(
            complete(&mut handshake, 1, 77, next),
            Completion::Complete(LINUX)
        );
        let other = Handshake::new([1, 3], 0).complete(&key(1), 77, isn, LOCAL_MSS, now);
        assert_eq!(other, Completion::Refused);
    }

    #[test]
    fn the_same_syn_gets_the_same_answer_within_a_period() {
        let mut handshake = Handshake::new([1, 2], 0);
        let mut isn =
            |secs| handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, Instant::from_secs(secs));
        assert_eq!(isn(70), isn(100));
        assert_ne!(isn(100), isn(200));
    }

    #[test]
    fn sequence_numbers_of_the_same_ends_go_up_with_time() {
        let mut handshake = Handshake::new([1, 2], 0);
        // RFC 6528 section 3: later connections begin behind earlier ones.
        let later = |handshake: &mut Handshake, secs: i64| {
            let now = Instant::from_secs(secs);
            let passive = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
            (passive, handshake.isn(&key(1), now))
        };
        let mut last = later(&mut handshake, 0);
        for secs in (140..5000).step_by(140) {
            let next = later(&mut handshake, secs);
            assert!((next.0.wrapping_sub(last.0) as i32) > 0, "{secs}");
            assert!((next.1.wrapping_sub(last.1) as i32) > 0, "{secs}");
            last = next;
        }
    }

    #[test]
    fn numbers_of_connections_that_follow_each_other_go_up_within_a_period() {
        let mut handshake = Handshake::new([1, 2], 0);
        let mut last = None;
        for secs in (1000..1070).step_by(5) {
            let now = Instant::from_secs(secs);
            let isn = handshake.cookie(&key(1), secs as u32, LINUX, LOCAL_MSS, now);
            // Beyond a whole period's numbers.
            if let Some(last) = last {
                let distance = isn.wrapping_sub(last) as i32;
                assert!(distance > 1 << COOKIE_BITS, "{secs}: {distance}");
            }
            last = Some(isn);
            handshake.use_up(&key(1), LINUX, now);
        }
    }

    #[test]
    fn a_mark_has_the_exact_options() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        for (number, mss) in [48, 100, 300, 1400, 1459].into_iter().enumerate() {
            let (key, said) = (key(number as u32), options(mss, Some(11), false));
            let isn = handshake.cookie(&key, 77, said, LOCAL_MSS, now);
            let complete = handshake.complete(&key, 77, isn, LOCAL_MSS, now);
            assert_eq!(complete, Completion::Complete(said));
        }
    }

    #[test]
    fn another_core_completes_a_handshake() {
        let [mut one, mut other] = [(); 2].map(|()| Handshake::new([1, 2], 0));
        let now = Instant::from_secs(5000);
        for number in 0..1000 {
            let isn = one.cookie(&key(number), 77, LINUX, LOCAL_MSS, now);
            let complete = other.complete(&key(number), 77, isn, LOCAL_MSS, now);
            assert_eq!(complete, Completion::Complete(LINUX));
        }
    }

    #[test]
    fn a_second_syn_with_other_options_leaves_the_first_cookie_good() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        let plain = options(536, None, false);
        let first = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        let second = handshake.cookie(&key(1), 77, plain, LOCAL_MSS, now);
        for (isn, said) in [(first, LINUX), (second, plain)] {
            let complete = handshake.complete(&key(1), 77, isn, LOCAL_MSS, now);
            assert_eq!(complete, Completion::Complete(said));
        }
    }

    /// All numbers that a cookie of these ends could be, if only its hash were known.
    fn candidates(handshake: &Handshake, now: Instant) -> Vec<u32> {
        let (ends, now) = (handshake.hash_ends(&key(1)), stamp(now));
        (0..=AGE_MAX)
            .flat_map(|age| (0..1 << CODE_BITS).map(move |code| (period(now) - age, code)))
            .map(|(period, code)| {
                let cookie = handshake.seal(&key(1), 77, period, 0, code);
                handshake.base(ends, period).wrapping_add(cookie)
            })
            .collect()
    }

    /// How many of these numbers complete a handshake of `key(1)`.
    fn right(handshake: &mut Handshake, numbers: &[u32], now: Instant) -> usize {
        numbers
            .iter()
            .filter(|isn| {
                let complete = handshake.complete(&key(1), 77, **isn, LOCAL_MSS, now);
                matches!(complete, Completion::Complete(_))
            })
            .count()
    }

    #[test]
    fn one_number_is_right_for_marked_ends() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        let isn = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        let wrong: Vec<u32> = (0..200u32)
            .map(|guess| guess.wrapping_mul(0x9e37_79b9))
            .collect();
        assert_eq!(right(&mut handshake, &wrong, now), 0);
        // Nor does any other one that is a cookie by itself, once there were guesses.
        let numbers = candidates(&handshake, now);
        assert!(numbers.contains(&isn));
        assert_eq!(right(&mut handshake, &numbers, now), 1);
    }

    #[test]
    fn few_guesses_are_looked_at_without_a_mark() {
        let mut handshake = Handshake::new([1, 2], 0);
        let mut now = Instant::from_secs(1000);
        let numbers = candidates(&handshake, now);
        // Cookies that are right cost nothing.
        assert_eq!(right(&mut handshake, &numbers, now), numbers.len());
        let wrong = [0; STRANGERS_BURST as usize];
        assert_eq!(right(&mut handshake, &wrong, now), 0);
        assert_eq!(right(&mut handshake, &numbers, now), 0);
        now += Duration::from_millis(130);
        assert_eq!(right(&mut handshake, &numbers[..1], now), 1);
        assert_eq!(right(&mut handshake, &wrong[..1], now), 0);
        assert_eq!(right(&mut handshake, &numbers[..1], now), 0);
    }

    #[test]
    fn a_flood_that_takes_the_marks_takes_no_handshakes() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        let isn = handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        let ends = handshake.hash_ends(&key(1));
        let mark = Mark {
            stamp: stamp(now),
            ahead: 0,
            options: LINUX,
            is_used: false,
        };
        handshake.marks.overwrite(ends, mark);
        // However many wrong ones there are.
        let guesses: Vec<u32> = (0..1_000_000u32)
            .map(|guess| guess.wrapping_mul(0x9e37_79b9))
            .collect();
        // One in 2^22 is right by chance.
        let lucky = right(&mut handshake, &guesses, now);
        assert!(lucky <= 4, "{lucky} of a million guesses");
        assert_eq!(right(&mut handshake, &[isn], now), 1);
        let numbers = candidates(&handshake, now);
        assert_eq!(numbers.len(), 1 << (32 - 22));
        assert_eq!(right(&mut handshake, &numbers, now), numbers.len());
    }

    proptest! {
        #[test]
        fn options_come_back(mss in 48u16..9000, shift in prop::option::of(0u8..=14), sack in any::<bool>(),
                             peer_isn in any::<u32>(), secs in 0i64..1_000_000, offset in any::<u32>()) {
            let mut handshake = Handshake::new([3, 4], offset);
            let now = Instant::from_secs(secs);
            let isn = handshake.cookie(&key(9), peer_isn, options(mss, shift, sack), LOCAL_MSS, now);
            let Completion::Complete(read) = handshake.complete(&key(9), peer_isn, isn, LOCAL_MSS, now)
            else {
                return Err(TestCaseError::fail("not accepted"));
            };
            prop_assert_eq!((read.shift, read.sack), (shift, sack));
            prop_assert_eq!(read.mss, mss.min(LOCAL_MSS));
        }
    }
}
