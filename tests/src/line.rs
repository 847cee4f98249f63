//! Owns one way of a link on a clock of its own: loss, then a queue in front of a rate, then a delay. No I/O.

use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that are under way at most, those that wait for the rate included: what is beyond is dropped.
pub const LINE_BYTES_MAX: usize = 64 << 20;
/// Bytes that a frame counts at least towards that: it takes memory beside its own.
const FRAME_BYTES_MIN: usize = 256;

/// What happens to the frames of one way of a link. The default passes all at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Link {
    /// How long a frame is under way.
    pub delay: Duration,
    /// Bits of frames (with Ethernet's header, without its preamble, checksum and gap) per second; 0 for any number.
    pub rate: u64,
    /// Bytes of frames that may wait for the rate; one that finds none waiting always may.
    pub queue_bytes: usize,
    /// The probability, from 0 to 1, that a frame is lost before it gets to the queue.
    pub loss: f64,
}

/// What became of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that came.
    pub taken: u64,
    /// Those that were lost by chance.
    pub lost: u64,
    /// Those that found the queue full.
    pub queue_full: u64,
    /// Those that found [`LINE_BYTES_MAX`] under way.
    pub line_full: u64,
}

/// One way of a link. Times are those since any beginning, and never go back.
#[derive(Debug)]
pub struct Line {
    link: Link,
    /// The state of a xorshift generator.
    random: u64,
    /// Until when the rate is taken up by what came so far.
    busy_until: Duration,
    /// Frames with the time at which each arrives, in order.
    under_way: VecDeque<(Duration, Vec<u8>)>,
    /// Of the frames under way.
    bytes: usize,
    /// Memory of frames that have arrived.
    spare: Vec<Vec<u8>>,
    counts: Counts,
}

impl Line {
    /// An empty one. `seed` decides which frames are lost.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            // A generator of this kind stays at zero.
            random: seed | 1 << 63,
            busy_until: Duration::ZERO,
            under_way: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// A frame sets out at `now`, or is lost.
    pub fn put(&mut self, frame: &[u8], now: Duration) {
        self.counts.taken += 1;
        if self.is_hit() {
            self.counts.lost += 1;
            return;
        }
        let waiting = self.busy_until.saturating_sub(now);
        if !waiting.is_zero() && self.bytes_in(waiting) + frame.len() > self.link.queue_bytes {
            self.counts.queue_full += 1;
            return;
        }
        let size = frame.len().max(FRAME_BYTES_MIN);
        if self.bytes + size > LINE_BYTES_MAX {
            self.counts.line_full += 1;
            return;
        }
        self.bytes += size;
        self.busy_until = now + waiting + self.time_of(frame.len());
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(frame);
        let arrives = self.busy_until + self.link.delay;
        self.under_way.push_back((arrives, copy));
    }

    /// When the next frame arrives.
    pub fn next_arrival(&self) -> Option<Duration> {
        self.under_way.front().map(|(arrives, _)| *arrives)
    }

    /// The frames that have arrived by `now` and were not [removed](Self::remove), in order.
    pub fn arrived(&self, now: Duration) -> impl Iterator<Item = &[u8]> {
        let frames = self.under_way.iter();
        frames
            .take_while(move |(arrives, _)| *arrives <= now)
            .map(|(_, frame)| &frame[..])
    }

    /// Forgets the next `count` frames.
    pub fn remove(&mut self, count: usize) {
        for (_, mut frame) in self.under_way.drain(..count) {
            self.bytes -= frame.len().max(FRAME_BYTES_MIN);
            frame.clear();
            self.spare.push(frame);
        }
    }

    /// What became of frames so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn is_hit(&mut self) -> bool {
        if self.link.loss <= 0.0 {
            return false;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The upper bits are the better ones, and a double has 53.
        ((self.random >> 11) as f64) < self.link.loss * (1_u64 << 53) as f64
    }

    /// How long the rate takes for so many bytes.
    fn time_of(&self, bytes: usize) -> Duration {
        match self.link.rate {
            0 => Duration::ZERO,
            rate => Duration::from_nanos((bytes as u64 * 8).saturating_mul(1_000_000_000) / rate),
        }
    }

    /// How many bytes the rate takes for so long.
    fn bytes_in(&self, time: Duration) -> usize {
        (time.as_secs_f64() * self.link.rate as f64 / 8.0).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The lengths of what has arrived, which is removed.
    fn arrive(line: &mut Line, now: Duration) -> Vec<usize> {
        let lengths: Vec<usize> = line.arrived(now).map(<[u8]>::len).collect();
        line.remove(lengths.len());
        lengths
    }

    #[test]
    fn without_conditions_all_pass_at_once_and_in_order() {
        let mut line = Line::new(Link::default(), 1);
        for length in [60, 1514, 70] {
            line.put(&vec![0; length], MS);
        }
        assert_eq!(line.next_arrival(), Some(MS));
        assert_eq!(arrive(&mut line, MS), [60, 1514, 70]);
        assert_eq!((line.next_arrival(), line.bytes), (None, 0));
    }

    #[test]
    fn frames_keep_their_bytes_when_their_memory_is_used_again() {
        let mut line = Line::new(Link::default(), 1);
        for number in 0..5_u8 {
            let frame = vec![number; 100 - usize::from(number)];
            line.put(&frame, MS);
            assert_eq!(line.arrived(MS).collect::<Vec<_>>(), [&frame[..]]);
            line.remove(1);
        }
        assert_eq!(line.spare.len(), 1);
    }

    #[test]
    fn a_delay_is_the_same_for_each() {
        let link = Link {
            delay: 10 * MS,
            ..Link::default()
        };
        let mut line = Line::new(link, 1);
        line.put(&[0; 60], MS);
        line.put(&[0; 61], 3 * MS);
        assert_eq!(line.next_arrival(), Some(11 * MS));
        assert_eq!(arrive(&mut line, 11 * MS - Duration::from_nanos(1)), []);
        assert_eq!(arrive(&mut line, 12 * MS), [60]);
        assert_eq!(arrive(&mut line, 13 * MS), [61]);
    }

    #[test]
    fn a_rate_spaces_frames_and_its_queue_drops_the_last() {
        // 1,000 bytes take a millisecond.
        let link = Link {
            rate: 8_000_000,
            queue_bytes: 3_000,
            delay: 5 * MS,
            ..Link::default()
        };
        let mut line = Line::new(link, 1);
        for _ in 0..6 {
            line.put(&[0; 1_000], MS);
        }
        assert_eq!(line.counts().queue_full, 3);
        // What waits less leaves room.
        line.put(&[0; 1_000], 2 * MS);
        line.put(&[0; 1], 2 * MS);
        assert_eq!(line.counts().queue_full, 4);
        for arrives in [7, 8, 9, 10] {
            assert_eq!(line.next_arrival(), Some(arrives * MS));
            assert_eq!(arrive(&mut line, arrives * MS), [1_000]);
        }
        assert_eq!(line.next_arrival(), None);
        // Larger than the queue, but nobody waits.
        line.put(&[0; 5_000], 20 * MS);
        assert_eq!(line.next_arrival(), Some(30 * MS));
    }

    #[test]
    fn a_rate_loses_no_time_between_frames() {
        let link = Link {
            rate: 1_000_000_000,
            queue_bytes: 1 << 20,
            ..Link::default()
        };
        let mut line = Line::new(link, 1);
        // Asked every 50 µs, as a sleeper is woken.
        let (mut bytes, step) = (0, Duration::from_micros(50));
        for turn in 0..2_000 {
            let now = step * turn;
            for _ in 0..8 {
                line.put(&[0; 1_514], now);
            }
            bytes += arrive(&mut line, now).iter().sum::<usize>();
        }
        let most = 2_000.0 * 50e-6 * 1e9 / 8.0;
        assert!((0.999..=1.0).contains(&(bytes as f64 / most)), "{bytes}");
    }

    #[test]
    fn loss_has_its_probability_and_its_seed() {
        let link = Link {
            loss: 0.05,
            ..Link::default()
        };
        let pass = |seed| -> Vec<usize> {
            let mut line = Line::new(link, seed);
            (0..100_000).for_each(|_| line.put(&[0; 60], MS));
            let passed = line.arrived(MS).count();
            assert_eq!(line.counts().lost as usize + passed, 100_000);
            let lost = line.counts().lost as usize;
            vec![lost]
        };
        assert!((4_700..5_300).contains(&pass(7)[0]), "{:?}", pass(7));
        assert_eq!(pass(7), pass(7));
        assert_ne!(pass(7), pass(8));
    }

    #[test]
    fn memory_is_bounded() {
        let link = Link {
            delay: Duration::from_secs(100),
            ..Link::default()
        };
        let mut line = Line::new(link, 1);
        (0..300_000).for_each(|_| line.put(&[0; 60], MS));
        assert_eq!(
            line.counts().line_full,
            300_000 - (LINE_BYTES_MAX / 256) as u64
        );
        assert_eq!(line.bytes, LINE_BYTES_MAX);
        line.remove(1);
        line.put(&[0; 60], MS);
        assert_eq!(line.under_way.len(), LINE_BYTES_MAX / 256);
    }
}
