//! The memory of handshakes: marks of ends whose SYN was answered lately, or whose handshake was completed.
//!
//! It is of fixed size, and only a help: each mark has its place, and the last one written there wins.

use super::{AGE_MAX, STAMPS_PER_PERIOD};
use crate::tcp::segment::PeerOptions;

/// Marks that the memory has room for: 512 KiB.
const MARKS: usize = 1 << 16;
/// A mark that was written so many stamps ago at most (8.4 s) may have taken the place of one that is still wanted:
/// nearly all handshakes are complete by then.
const RECENT: u32 = 8;
/// No window scaling, where a shift (0 to 14) would be.
const NO_SHIFT: u8 = 15;

/// A point in time, in steps of 2^20 µs since the clock's start.
pub(super) type Stamp = u32;

/// A handshake as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// When the first of its SYNs was answered.
    pub(super) stamp: Stamp,
    /// Periods by which its sequence numbers are ahead of the clock, below 32.
    pub(super) ahead: u32,
    /// The options of its last SYN.
    pub(super) options: PeerOptions,
    /// Whether it was completed, and its connection begun.
    pub(super) is_used: bool,
}

/// What the memory knows of two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// There is a mark of theirs.
    Mark(Mark),
    /// There is none, but there may have been one until a moment ago.
    Lost,
    /// There is none.
    Nothing,
}

/// The marks of one core.
#[derive(Debug)]
pub(super) struct Marks(Box<[u64]>);

impl Marks {
    pub(super) fn new() -> Self {
        // Written now, so that no flood makes the process larger.
        Self(vec![EMPTY; MARKS].into_boxed_slice())
    }

    /// Returns what is known of the ends with this hash.
    pub(super) fn find(&self, ends: u64, now: Stamp) -> Remembered {
        let word = self.0[place(ends)];
        if word == EMPTY {
            return Remembered::Nothing;
        }
        let mark = unpack(word, now);
        let periods = now / STAMPS_PER_PERIOD - mark.stamp / STAMPS_PER_PERIOD;
        if periods > AGE_MAX {
            Remembered::Nothing
        } else if word & TAG_MASK == tag(ends) {
            Remembered::Mark(mark)
        } else if now - mark.stamp <= RECENT {
            Remembered::Lost
        } else {
            Remembered::Nothing
        }
    }

    /// Remembers a handshake between the ends with this hash.
    pub(super) fn write(&mut self, ends: u64, mark: Mark) {
        self.0[place(ends)] = tag(ends) | pack(mark);
    }

    /// Writes a mark of other ends over that of these.
    #[cfg(test)]
    pub(super) fn overwrite(&mut self, ends: u64, mark: Mark) {
        self.0[place(ends)] = (tag(ends) ^ 1 << 40) | pack(mark);
    }
}

// From the most significant bit on: 24 bits of the ends' hash, 12 of the stamp, 5 of `ahead`, 16 of segment size, 4 of
// shift, SACK, "used", and a bit that is set in every mark.
const EMPTY: u64 = 0;
const TAG_MASK: u64 = !0 << 40;
const STAMP_SHIFT: u32 = 28;
const STAMP_MASK: u32 = 0xfff;
const AHEAD_SHIFT: u32 = 23;
const MSS_SHIFT: u32 = 7;
const SHIFT_SHIFT: u32 = 3;
const SACK: u64 = 4;
const USED: u64 = 2;
const PRESENT: u64 = 1;

fn place(ends: u64) -> usize {
    (ends >> 32) as usize % MARKS
}

/// Bits of a hash that are not the place's.
fn tag(ends: u64) -> u64 {
    (ends >> 48) << 48 | (ends & 0xff) << 40
}

fn pack(mark: Mark) -> u64 {
    let PeerOptions { mss, shift, sack } = mark.options;
    let flag = |set: bool, bit| if set { bit } else { 0 };
    u64::from(mark.stamp & STAMP_MASK) << STAMP_SHIFT
        | u64::from(mark.ahead & 0x1f) << AHEAD_SHIFT
        | u64::from(mss) << MSS_SHIFT
        | u64::from(shift.unwrap_or(NO_SHIFT)) << SHIFT_SHIFT
        | flag(sack, SACK)
        | flag(mark.is_used, USED)
        | PRESENT
}

/// Reads a mark that was written at `now` or before. One from more than 71 minutes ago seems younger than it is.
fn unpack(word: u64, now: Stamp) -> Mark {
    let age = now.wrapping_sub((word >> STAMP_SHIFT) as u32) & STAMP_MASK;
    let shift = (word >> SHIFT_SHIFT) as u8 & 0x0f;
    Mark {
        stamp: now.saturating_sub(age),
        ahead: (word >> AHEAD_SHIFT) as u32 & 0x1f,
        options: PeerOptions {
            mss: (word >> MSS_SHIFT) as u16,
            shift: (shift != NO_SHIFT).then_some(shift),
            sack: word & SACK != 0,
        },
        is_used: word & USED != 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_one_wins_and_a_place_is_known_as_taken_for_a_while() {
        let mut marks = Marks::new();
        let options = PeerOptions {
            mss: 1400,
            shift: None,
            sack: true,
        };
        let mark = |stamp| Mark {
            stamp,
            ahead: 0,
            options,
            is_used: false,
        };
        let ends = 0x1234_5678_9abc_def0;
        let other = ends ^ 1 << 63;
        assert_eq!(marks.find(ends, 100), Remembered::Nothing);
        marks.write(ends, mark(100));
        assert_eq!(marks.find(ends, 127), Remembered::Mark(mark(100)));
        assert_eq!(marks.find(other, 127), Remembered::Nothing);
        marks.write(other, mark(127));
        assert_eq!(marks.find(ends, 127), Remembered::Lost);
        assert_eq!(marks.find(ends, 135), Remembered::Lost);
        assert_eq!(marks.find(ends, 136), Remembered::Nothing);
        assert_eq!(marks.find(other, 191), Remembered::Mark(mark(127)));
        assert_eq!(marks.find(other, 192), Remembered::Nothing, "two periods");
    }

    proptest! {
        #[test]
        fn a_mark_comes_back(ends in any::<u64>(), stamp in any::<u32>(), age in 0u32..64,
                             ahead in 0u32..32, mss in any::<u16>(), shift in prop::option::of(0u8..=14),
                             sack in any::<bool>(), is_used in any::<bool>()) {
            let stamp = stamp.min(u32::MAX - 64);
            let mark = Mark { stamp, ahead, options: PeerOptions { mss, shift, sack }, is_used };
            let mut marks = Marks::new();
            marks.write(ends, mark);
            prop_assert_eq!(marks.find(ends, stamp + age), Remembered::Mark(mark));
        }
    }
}
