//! Held frames: what direct flows sent and was not acknowledged yet, still in the frames that carried it.
//!
//! The arena knows that a frame is held ([`Arena::hold`]); this module knows which bytes of it a flow
//! needs, in the order of their sequence numbers, and bounds how many there are.

use crate::arena::{Arena, Frame};

const NONE: u32 = u32::MAX;

/// The frames that one flow holds, oldest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldList {
    first: u32,
    last: u32,
    len: u8,
}

impl HeldList {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for HeldList {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            len: 0,
        }
    }
}

/// Whose bytes a held frame has, by frame number.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// The flow's next frame.
    next: u32,
    /// Sequence number of the first byte.
    seq: u32,
    /// Where the bytes are in the frame.
    start: u16,
    len: u16,
}

/// The held frames of all flows of a core.
#[derive(Debug)]
pub(super) struct Held {
    records: Vec<Record>,
    total: u32,
    total_max: u32,
    per_flow_max: u8,
}

/// Bytes that a flow sent, from the oldest that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Number of the frame.
    pub(super) frame: u32,
    pub(super) seq: u32,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Held {
    /// For an arena of `frames` frames, of which all flows together may hold `total_max` and one flow
    /// `per_flow_max`.
    pub(super) fn new(frames: u32, total_max: u32, per_flow_max: u8) -> Self {
        Self {
            records: vec![Record::default(); frames as usize],
            total: 0,
            total_max,
            per_flow_max,
        }
    }

    /// Whether a flow may hold `count` frames more.
    #[inline]
    pub(super) fn has_room(&self, list: &HeldList, count: usize) -> bool {
        usize::from(list.len) + count <= usize::from(self.per_flow_max)
            && self.total as usize + count <= self.total_max as usize
    }

    /// Holds `frame`, which carries `len` bytes of payload from `start` on, the first of them numbered `seq`.
    #[inline]
    pub(super) fn push(
        &mut self,
        list: &mut HeldList,
        frame: &Frame,
        seq: u32,
        start: usize,
        len: usize,
        arena: &mut Arena,
    ) {
        arena.hold(frame);
        let index = frame.index();
        self.records[index as usize] = Record {
            next: NONE,
            seq,
            // Both are less than the size of a frame, which is 16 bits.
            start: start as u16,
            len: len as u16,
        };
        match list.last {
            NONE => list.first = index,
            last => self.records[last as usize].next = index,
        }
        list.last = index;
        list.len += 1;
        self.total += 1;
    }

    /// Releases the frames of which everything before `ack` is all.
    #[inline]
    pub(super) fn acknowledge(&mut self, list: &mut HeldList, ack: u32, arena: &mut Arena) {
        while list.first != NONE {
            let record = self.records[list.first as usize];
            let end = record.seq.wrapping_add(u32::from(record.len));
            if (ack.wrapping_sub(end) as i32) < 0 {
                return;
            }
            self.release_first(list, record.next, arena);
        }
    }

    /// Releases all frames of a flow.
    pub(super) fn clear(&mut self, list: &mut HeldList, arena: &mut Arena) {
        while list.first != NONE {
            let next = self.records[list.first as usize].next;
            self.release_first(list, next, arena);
        }
    }

    /// What a flow holds, oldest first.
    pub(super) fn sent<'a>(&'a self, list: &HeldList) -> impl Iterator<Item = Sent> + 'a {
        let mut next = list.first;
        std::iter::from_fn(move || {
            let frame = next;
            if frame == NONE {
                return None;
            }
            let record = self.records[frame as usize];
            next = record.next;
            Some(Sent {
                frame,
                seq: record.seq,
                start: usize::from(record.start),
                len: usize::from(record.len),
            })
        })
    }

    /// Frames that all flows hold.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    #[inline(always)]
    fn release_first(&mut self, list: &mut HeldList, next: u32, arena: &mut Arena) {
        arena.release(list.first);
        list.first = next;
        if next == NONE {
            list.last = NONE;
        }
        list.len -= 1;
        self.total -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Owner;

    /// Has a flow send `len` bytes from `seq` on, as far as the port.
    fn send(held: &mut Held, list: &mut HeldList, arena: &mut Arena, seq: u32, len: usize) {
        let frame = arena.alloc(Owner::Tx).unwrap();
        held.push(list, &frame, seq, 54, len, arena);
        arena.sent(frame);
    }

    #[test]
    fn frames_are_held_until_all_their_bytes_are_acknowledged() {
        // The second frame lies across the end of the sequence space.
        let at = |offset: u32| u32::MAX.wrapping_sub(14).wrapping_add(offset);
        let mut arena = Arena::anonymous(8, 256, 0);
        let mut held = Held::new(8, 8, 8);
        let mut list = HeldList::default();
        for seq in [0, 10, 20] {
            send(&mut held, &mut list, &mut arena, at(seq), 10);
        }
        for (ack, left) in [(0, 3), (9, 3), (10, 2), (19, 2), (20, 1), (30, 0), (30, 0)] {
            held.acknowledge(&mut list, at(ack), &mut arena);
            assert_eq!(held.total(), left, "{ack}");
            assert_eq!(arena.count().of(Owner::Flow), left, "{ack}");
            assert_eq!(held.sent(&list).count() as u32, left);
        }
        assert!(arena.is_at_rest());
    }

    #[test]
    fn both_bounds_hold_and_what_is_released_counts_no_more() {
        let mut arena = Arena::anonymous(8, 256, 0);
        let mut held = Held::new(8, 3, 2);
        let (mut one, mut other) = (HeldList::default(), HeldList::default());
        assert!(held.has_room(&one, 2) && !held.has_room(&one, 3));
        send(&mut held, &mut one, &mut arena, 0, 1);
        send(&mut held, &mut one, &mut arena, 1, 1);
        assert!(!held.has_room(&one, 1) && held.has_room(&other, 1));
        assert!(!held.has_room(&other, 2));
        send(&mut held, &mut other, &mut arena, 0, 1);
        held.clear(&mut one, &mut arena);
        assert!(held.has_room(&one, 2));
        held.clear(&mut other, &mut arena);
        assert!(arena.is_at_rest());
    }
}
