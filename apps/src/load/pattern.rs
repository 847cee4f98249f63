//! The bytes that are sent to be echoed: random ones, different for each connection and offset.
//!
//! They come from one table that is walked round and round. Its length is a prime, so that messages of
//! any size begin at ever other places, and each connection begins at a place of its own: what is changed,
//! lost, doubled or swapped differs from what is expected.

use rand::RngCore;
use rand::rngs::SmallRng;

/// Bytes of a round.
const ROUND: usize = 65_521;
/// The most that [`Pattern::slice`] gives at once: what the table has beyond a round.
pub const SLICE_MAX: usize = 65_536;

/// The table.
#[derive(Debug)]
pub struct Pattern {
    table: Box<[u8]>,
}

/// A place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// Where connection `number` begins. Neighbours are far apart.
    pub fn of_connection(number: u64) -> Self {
        // An odd multiplier near the golden ratio's spreads them over the round.
        Self((number.wrapping_mul(40_503) % ROUND as u64) as u32)
    }

    /// The place `bytes` further.
    #[must_use]
    #[inline]
    pub fn plus(self, bytes: u32) -> Self {
        let sum = u64::from(self.0) + u64::from(bytes);
        Self((sum % ROUND as u64) as u32)
    }

    /// The place `bytes` before.
    #[must_use]
    pub fn minus(self, bytes: u32) -> Self {
        self.plus(ROUND as u32 - bytes % ROUND as u32)
    }
}

impl Pattern {
    /// A table of random bytes.
    pub fn new(random: &mut SmallRng) -> Self {
        let mut table = vec![0; ROUND + SLICE_MAX].into_boxed_slice();
        random.fill_bytes(&mut table[..ROUND]);
        for index in ROUND..table.len() {
            table[index] = table[index - ROUND];
        }
        Self { table }
    }

    /// The bytes from `place`, at most [`SLICE_MAX`].
    #[inline]
    pub fn slice(&self, place: Place, len: usize) -> &[u8] {
        let start = place.0 as usize;
        &self.table[start..start + len.min(SLICE_MAX)]
    }

    /// Whether `bytes` are those from `place`, however many.
    #[inline]
    pub fn matches(&self, mut place: Place, mut bytes: &[u8]) -> bool {
        while bytes.len() > SLICE_MAX {
            let (chunk, rest) = bytes.split_at(SLICE_MAX);
            if chunk != self.slice(place, SLICE_MAX) {
                return false;
            }
            place = place.plus(SLICE_MAX as u32);
            bytes = rest;
        }
        bytes == self.slice(place, bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use std::collections::HashSet;

    fn pattern() -> Pattern {
        Pattern::new(&mut SmallRng::seed_from_u64(1))
    }

    #[test]
    fn it_goes_round_and_round() {
        let pattern = pattern();
        let end = Place(ROUND as u32 - 3);
        let over = pattern.slice(end, 6);
        assert_eq!(over[..3], *pattern.slice(end, 3));
        assert_eq!(over[3..], *pattern.slice(Place(0), 3));
        assert_eq!(end.plus(3), Place(0));
        assert_eq!(Place(2).minus(5), end);
        assert_eq!(Place(2).minus(ROUND as u32), Place(2));
        assert_eq!(
            Place(5).plus(u32::MAX).plus(1).0,
            ((5 + (1u64 << 32)) % ROUND as u64) as u32
        );
    }

    #[test]
    fn connections_begin_at_places_of_their_own() {
        let places: HashSet<u32> = (0..ROUND as u64)
            .map(|number| Place::of_connection(number).0)
            .collect();
        assert_eq!(places.len(), ROUND);
    }

    proptest! {
        #[test]
        fn what_is_changed_lost_doubled_or_swapped_differs(
            connection: u64,
            offset: u32,
            len in 8usize..3000,
            at in 0usize..3000,
            bit in 0u8..8,
            lost in 1usize..100,
        ) {
            let pattern = pattern();
            let place = Place::of_connection(connection).plus(offset);
            let right = pattern.slice(place, len).to_vec();
            prop_assert!(pattern.matches(place, &right));

            let at = at % len;
            let mut changed = right.clone();
            changed[at] ^= 1 << bit;
            prop_assert!(!pattern.matches(place, &changed));

            // Bytes are missing, or are there twice: what follows is not what is due.
            prop_assert!(!pattern.matches(place, pattern.slice(place.plus(lost as u32), len)));
            let doubled = [&right[..], &right[..]].concat();
            prop_assert!(!pattern.matches(place, &doubled));
            let next = pattern.slice(place.plus(len as u32), len);
            prop_assert!(!pattern.matches(place, &[next, &right[..]].concat()));
        }

        #[test]
        fn long_messages_are_compared_to_their_end(len in SLICE_MAX..4 * SLICE_MAX, at: prop::sample::Index) {
            let pattern = pattern();
            let place = Place::of_connection(3);
            let mut bytes: Vec<u8> = Vec::new();
            while bytes.len() < len {
                let chunk = (len - bytes.len()).min(1000);
                bytes.extend_from_slice(pattern.slice(place.plus(bytes.len() as u32), chunk));
            }
            prop_assert!(pattern.matches(place, &bytes));
            let at = at.index(len);
            bytes[at] ^= 1;
            prop_assert!(!pattern.matches(place, &bytes));
        }
    }
}
