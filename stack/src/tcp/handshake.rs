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
//! * the cookie, below 2^24, is what makes it unforgeable: one byte of options, and 16 bits of a keyed hash of
//!   both ends, the period, the peer's own sequence number, and that byte. Its key changes every
//!   [`PERIODS_PER_KEY`] periods.
//!
//! A cookie is accepted in its own period and the next. Who guesses blindly has one chance in 2^23.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use super::segment::{MSS_MIN, PeerOptions};
use crate::Instant;
use crate::wire::FlowKey;

/// A period is so many bits of microseconds long.
const PERIOD_BITS: u32 = 26;
/// A cookie's bits of a sequence number; the others count periods.
const COOKIE_BITS: u32 = 24;
const COOKIE_MASK: u32 = (1 << COOKIE_BITS) - 1;
/// Periods, besides its own, in which a cookie is accepted.
const AGE_MAX: u32 = 1;
/// How long a key makes cookies, in periods: 71 minutes.
const PERIODS_PER_KEY: u32 = 64;

/// Segment sizes that a cookie can say: the largest that the peer takes is rounded down to one of them. The
/// last stands for "at least what our MTU has room for".
const SIZES: [u16; 7] = [MSS_MIN, 256, 536, 900, 1220, 1360, 1420];
/// No window scaling, where a shift (0 to 14) would be.
const NO_SHIFT: u8 = 15;

/// Entries of the memory of handshakes: 256 KiB.
const MEMORY: usize = 1 << 16;
/// No mark.
const NOBODY: u32 = 1;
/// A handshake that was completed.
const USED: u32 = 0x200;

/// 128 bits that nobody else knows.
pub(crate) type Secret = [u64; 2];

/// Makes and checks cookies.
pub(super) struct Handshake {
    /// The key of `F`.
    ends: SipHasher24,
    /// The key of this period's cookies, and the one before it.
    keys: [Secret; 2],
    /// How many keys there were before this one.
    key_number: u32,
    /// Added to every sequence number: for tests that want it to wrap.
    offset: u32,
    /// Marks of ends whose SYN was answered lately, or whose handshake was completed, each in its place, the last
    /// one winning. A segment that comes between SYN and handshake and does not complete it is early (its first was
    /// lost, or is late), not wrong. One that completes it once more is a late copy: what it opened may be closed
    /// since, and must not be opened again. Only a help: of fixed size, and forgotten where a flood takes the place.
    memory: Box<[u32]>,
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
            // Written now, so that no flood makes the process larger.
            memory: vec![NOBODY; MEMORY].into_boxed_slice(),
        }
    }

    /// The initial sequence number that answers a SYN numbered `peer_isn` with these options. `local_mss` is
    /// the largest segment that we can send.
    pub(super) fn cookie(
        &mut self,
        key: &FlowKey,
        peer_isn: u32,
        options: PeerOptions,
        local_mss: u16,
        now: Instant,
    ) -> u32 {
        let period = period(now);
        self.turn_key(period);
        let ends = self.hash_ends(key);
        let (place, mark) = place(ends, period);
        self.memory[place] = mark;
        let cookie = self.seal(key, peer_isn, period, pack(options, local_mss));
        self.base(ends, period).wrapping_add(cookie)
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
        let now = period(now);
        self.turn_key(now);
        let ends = self.hash_ends(key);
        let rest = isn.wrapping_sub(self.base(ends, now));
        // How many periods ago it was made, in the sequence number's arithmetic.
        let age = 0u32.wrapping_sub(rest >> COOKIE_BITS) & 0xff;
        let is_marked = |flag| {
            (0..=AGE_MAX).any(|age| {
                let (place, mark) = place(ends, now.wrapping_sub(age));
                self.memory[place] == mark | flag
            })
        };
        if age <= AGE_MAX && age <= now && !is_marked(USED) {
            let cookie = rest & COOKIE_MASK;
            let packed = cookie as u8;
            if cookie == self.seal(key, peer_isn, now - age, packed) {
                return Completion::Complete(unpack(packed, local_mss));
            }
        }
        if is_marked(0) {
            Completion::Early
        } else {
            Completion::Refused
        }
    }

    /// A handshake was completed, and its connection begun: no copy of what completed it shall begin another one.
    pub(super) fn use_up(&mut self, key: &FlowKey, now: Instant) {
        let (place, mark) = place(self.hash_ends(key), period(now));
        self.memory[place] = mark | USED;
    }

    /// The initial sequence number of a connection that we open.
    pub(super) fn isn(&self, key: &FlowKey, now: Instant) -> u32 {
        // RFC 6528 section 3, with the four-microsecond clock.
        let clock = (now.total_micros() >> 2) as u32;
        clock
            .wrapping_add(self.hash_ends(key) as u32)
            .wrapping_add(self.offset)
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

    /// The cookie that says `packed`.
    fn seal(&self, key: &FlowKey, peer_isn: u32, period: u32, packed: u8) -> u32 {
        // A cookie of the last period may have been made with the key before this one.
        let made_now = period / PERIODS_PER_KEY == self.key_number;
        let mut hasher = hasher(self.keys[usize::from(!made_now)]);
        write_ends(&mut hasher, key);
        hasher.write_u32(peer_isn);
        hasher.write_u32(period);
        hasher.write_u8(packed);
        (hasher.finish() as u32) << 8 & COOKIE_MASK | u32::from(packed)
    }

    /// Replaces the key if its time is over. Each comes from the one before it, which cannot be found out
    /// from it.
    fn turn_key(&mut self, period: u32) {
        while self.key_number < period / PERIODS_PER_KEY {
            self.keys = [derive(self.keys[0], 2), self.keys[0]];
            self.key_number += 1;
        }
    }
}

fn period(now: Instant) -> u32 {
    (now.total_micros() >> PERIOD_BITS) as u32
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

/// Where it is remembered that a SYN between the ends with this hash was answered in this period, and how (not
/// as nobody).
fn place(ends: u64, period: u32) -> (usize, u32) {
    let high = (ends >> 32) as u32;
    let mark = high & 0xffff_fc00 | 0x100 | period & 0xff;
    (high as usize % MEMORY, mark)
}

/// One byte that says what the options of a SYN were: 3 bits of segment size, 4 of shift, 1 of SACK.
fn pack(options: PeerOptions, local_mss: u16) -> u8 {
    let size = if options.mss >= local_mss {
        SIZES.len()
    } else {
        // The smallest is the least that there is.
        SIZES
            .iter()
            .rposition(|size| *size <= options.mss)
            .unwrap_or(0)
    };
    let shift = options.shift.unwrap_or(NO_SHIFT);
    (size as u8) << 5 | shift << 1 | u8::from(options.sack)
}

fn unpack(packed: u8, local_mss: u16) -> PeerOptions {
    let shift = packed >> 1 & 0x0f;
    PeerOptions {
        mss: SIZES
            .get(usize::from(packed >> 5))
            .copied()
            .map_or(local_mss, |size| size.min(local_mss)),
        shift: (shift != NO_SHIFT).then_some(shift),
        sack: packed & 1 != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::Duration;

    const LOCAL_MSS: u16 = 1460;
    const PERIOD: Duration = Duration::from_micros(1 << PERIOD_BITS);

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
    fn sizes_fit_their_bits_and_none_is_above_what_the_peer_takes() {
        assert!(SIZES.is_sorted() && SIZES.len() == 7);
        for mss in (MSS_MIN..2000).step_by(7) {
            let read = unpack(pack(options(mss, None, false), LOCAL_MSS), LOCAL_MSS);
            assert!(read.mss <= mss && read.mss <= LOCAL_MSS, "{mss}");
            assert!(
                read.mss == LOCAL_MSS || u32::from(read.mss) * 6 >= u32::from(mss),
                "{mss}"
            );
        }
    }

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
        handshake.use_up(&key(1), now);
        for peer_isn in [77, 78] {
            let late = complete(&mut handshake, 1, peer_isn, isn);
            assert_eq!(late, Completion::Refused);
        }
        handshake.cookie(&key(1), 77, LINUX, LOCAL_MSS, now);
        assert_eq!(
            complete(&mut handshake, 1, 77, isn),
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
    fn guesses_are_hardly_ever_right() {
        let mut handshake = Handshake::new([1, 2], 0);
        let now = Instant::from_secs(1000);
        let right = (0..1_000_000u32)
            .filter(|guess| {
                let isn = guess.wrapping_mul(0x9e37_79b9);
                let complete = handshake.complete(&key(1), 1, isn, LOCAL_MSS, now);
                matches!(complete, Completion::Complete(_))
            })
            .count();
        // One in 2^23 (the byte of options is free to choose, and the period one of two).
        assert!(right <= 4, "{right} of a million guesses");
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
            prop_assert!(read.mss <= mss.min(LOCAL_MSS));
        }
    }
}
