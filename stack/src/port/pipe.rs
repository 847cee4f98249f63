//! Frames on their way over a modelled [`Link`]: their bytes, in the order in which they arrive.
//!
//! The bytes are copied into buffers of the pipe's own, which are used again, so that a long link holds no frame of an
//! arena.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::link::{Arrival, Faults, Link};
use crate::Instant;
use crate::clock::nanos;

/// Bytes that are under way at most: what a link of 1 Gbit/s and 200 ms holds, with a queue of as much.
pub const PIPE_BYTES_MAX: usize = 64 << 20;

/// Bytes that a frame counts at least towards that: it takes memory beside its own.
const FRAME_BYTES_MIN: usize = 256;

/// A frame that arrives later. The order is that of arrival; of two that arrive at once, the one sent first is first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    at: u64,
    number: u64,
    bytes: Vec<u8>,
}

/// A link with the frames that are on it.
#[derive(Debug)]
pub struct Pipe {
    link: Link,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    /// Bytes that the frames in `under_way` count.
    bytes: usize,
    bytes_max: usize,
    /// The number of the next frame that is put under way.
    next: u64,
    spare: Vec<Vec<u8>>,
    overflows: u64,
}

impl Pipe {
    /// Returns an empty pipe over a link with these properties, which holds up to `bytes_max` bytes.
    pub fn new(faults: Faults, seed: u64, bytes_max: usize) -> Self {
        Self {
            link: Link::new(faults, seed),
            under_way: BinaryHeap::new(),
            bytes: 0,
            bytes_max,
            next: 0,
            spare: Vec::new(),
            overflows: 0,
        }
    }

    /// Returns the model of the link.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Changes the link's properties for what is sent from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.link.set_faults(faults);
    }

    /// Sends a frame at `now`. Returns the arrivals of its copies, as [`Link::send`] does: none if it is lost, or if
    /// the pipe is full.
    pub fn send(&mut self, frame: &[u8], now: Instant) -> [Option<Arrival>; 2] {
        let arrivals = self.link.send(frame.len(), nanos(now));
        arrivals.map(|arrival| arrival.filter(|arrival| self.put(frame, arrival)))
    }

    /// Sends a frame at `now` as [`send`](Self::send) does, unless it passes at once and unchanged, with nothing before
    /// it. Returns whether it passes: then the caller has it, and the pipe only what may be its second copy.
    pub(super) fn passes(&mut self, frame: &[u8], now: Instant) -> bool {
        let [mut first, second] = self.link.send(frame.len(), nanos(now));
        let passes = first
            .is_some_and(|first| first.at <= nanos(now) && first.flipped_bit.is_none())
            && !self.has_arrived(now);
        if passes {
            first = None;
        }
        for arrival in [first, second].into_iter().flatten() {
            self.put(frame, &arrival);
        }
        passes
    }

    /// Hands the next frame that has arrived by `now` to `take`. Returns what `take` returns; `None` if nothing has
    /// arrived.
    pub fn take<T>(&mut self, now: Instant, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if !self.has_arrived(now) {
            return None;
        }
        let Reverse(frame) = self.under_way.pop()?;
        self.bytes -= counted(&frame.bytes);
        let taken = take(&frame.bytes);
        self.spare.push(frame.bytes);
        Some(taken)
    }

    /// Returns whether a frame has arrived by `now`.
    pub fn has_arrived(&self, now: Instant) -> bool {
        self.next_at().is_some_and(|at| at <= nanos(now))
    }

    /// Returns when the next frame arrives, in whole microseconds, rounded up.
    pub fn next_arrival(&self) -> Option<Instant> {
        let at = self.next_at()?;
        Some(Instant::from_micros(at.div_ceil(1000) as i64))
    }

    /// Returns the number of frames under way.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Returns whether no frame is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Returns the number of frames that were dropped because the pipe was full.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    fn next_at(&self) -> Option<u64> {
        self.under_way.peek().map(|Reverse(frame)| frame.at)
    }

    /// Puts one copy of a frame under way. Returns whether there is room for it.
    fn put(&mut self, frame: &[u8], arrival: &Arrival) -> bool {
        if self.bytes + counted(frame) > self.bytes_max {
            self.overflows += 1;
            return false;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        if let Some(bit) = arrival.flipped_bit {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        self.bytes += counted(&bytes);
        self.under_way.push(Reverse(UnderWay {
            at: arrival.at,
            number: self.next,
            bytes,
        }));
        self.next += 1;
        true
    }
}

/// Returns the bytes that a frame counts.
fn counted(frame: &[u8]) -> usize {
    frame.len().max(FRAME_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Duration;

    /// A byte takes a microsecond, and then a millisecond.
    fn late() -> Faults {
        Faults {
            rate: 8_000_000,
            delay: Duration::from_millis(1),
            ..Faults::default()
        }
    }

    #[test]
    fn frames_arrive_in_order_and_not_before_their_time() {
        let mut pipe = Pipe::new(late(), 1, PIPE_BYTES_MAX);
        let at = Instant::from_micros;
        for number in 0..3u8 {
            let sent = pipe.send(&[number; 100], at(0));
            assert!(sent[0].is_some() && sent[1].is_none());
        }
        assert_eq!((pipe.len(), pipe.next_arrival()), (3, Some(at(1100))));
        assert!(pipe.take(at(1099), |_| ()).is_none());
        for number in 0..3u8 {
            let now = at(1100 + 100 * i64::from(number));
            let first = pipe.take(now, |frame| (frame[0], frame.len()));
            assert_eq!(first, Some((number, 100)));
            assert!(pipe.take(now, |_| ()).is_none());
        }
        assert!(pipe.is_empty() && pipe.next_arrival().is_none());
    }

    #[test]
    fn a_full_pipe_drops_and_counts_and_buffers_are_used_again() {
        let mut pipe = Pipe::new(late(), 1, 2 * FRAME_BYTES_MIN + 50);
        let at = Instant::from_micros;
        for round in 0..10 {
            let now = at(round * 100_000);
            let passed: Vec<bool> = (0..4)
                .map(|_| pipe.send(&[1; 100], now)[0].is_some())
                .collect();
            assert_eq!(passed, [true, true, false, false]);
            assert_eq!(pipe.overflows(), 2 * (round as u64 + 1));
            while pipe.take(now + Duration::from_millis(50), |_| ()).is_some() {}
            assert_eq!((pipe.bytes, pipe.spare.len()), (0, 2));
        }
    }

    #[test]
    fn a_damaged_copy_differs_in_one_bit() {
        let faults = Faults {
            corruption: 1.0,
            duplication: 1.0,
            ..Faults::default()
        };
        let mut pipe = Pipe::new(faults, 1, PIPE_BYTES_MAX);
        let frame = [0; 40];
        pipe.send(&frame, Instant::ZERO);
        let mut ones = || {
            pipe.take(Instant::ZERO, |frame| {
                frame.iter().map(|byte| byte.count_ones()).sum::<u32>()
            })
        };
        assert_eq!((ones(), ones(), ones()), (Some(1), Some(0), None));
    }
}
