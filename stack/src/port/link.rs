//! A model of one direction of a link: when the frames that are sent arrive, and which of them do not.
//!
//! The model moves no bytes and reads no clock: [`Link::send`] is told how long a frame is and when it is sent, and
//! says when its copies arrive. [`pipe`](super::pipe) carries the bytes.
//!
//! ```text
//!   send --> [ queue of queue_bytes, drop tail ] --rate--> loss --> copies --> delay --> arrival
//!                                                  random and bursty, duplication,     reordering adds to it
//!                                                  corruption
//! ```
//!
//! The same seed over the same frames at the same times gives the same arrivals.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Duration;
use crate::wire::ETHERNET_HEADER_BYTES;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The properties of a link in one direction. The default is a perfect one: nothing is lost, and frames arrive at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// The probability, from 0 to 1, that a frame is lost.
    pub loss: f64,
    /// Loss in bursts, in addition to `loss`.
    pub burst: Burst,
    /// The probability, from 0 to 1, that a frame comes twice.
    pub duplication: f64,
    /// The probability, from 0 to 1, that a frame is held back for up to [`delay_max`](Self::delay_max), so that others
    /// overtake it.
    pub reordering: f64,
    /// The probability, from 0 to 1, that one bit of the packet is flipped. The link header is spared: it does not
    /// outlive its link, whose own check (the Ethernet FCS) guards it; what is behind it may have been damaged anywhere.
    pub corruption: f64,
    /// The longest additional delay of a frame that is held back.
    pub delay_max: Duration,
    /// Bits per second of a bottleneck, counted over frames with their link headers; 0 is no bottleneck.
    pub rate: u64,
    /// Bytes that may wait for the bottleneck, those of the frame that it is sending included: a frame that finds it
    /// busy and does not fit is dropped (drop tail). 0 is no bound. Without a `rate` nothing waits.
    pub queue_bytes: usize,
    /// The delay of every frame, from the bottleneck to the arrival.
    pub delay: Duration,
}

impl Faults {
    /// Returns whether every frame arrives intact, once and at once.
    pub fn is_perfect(&self) -> bool {
        let Self {
            loss,
            burst,
            duplication,
            reordering,
            corruption,
            delay_max: _,
            rate,
            queue_bytes: _,
            delay,
        } = *self;
        loss + burst.enter + burst.loss_good + duplication + reordering + corruption == 0.0
            && rate == 0
            && delay == Duration::ZERO
    }
}

/// Loss in bursts: the model of Gilbert and Elliott. The link is in a good or in a bad state, and each state has its
/// own loss. Before each frame the state may change. All values are probabilities from 0 to 1; the default is a link
/// that is good for ever and loses nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Burst {
    /// The probability, per frame in the good state, that the link becomes bad (p).
    pub enter: f64,
    /// The probability, per frame in the bad state, that the link becomes good (r). A bad state lasts for 1/r frames
    /// on average.
    pub leave: f64,
    /// The loss in the good state.
    pub loss_good: f64,
    /// The loss in the bad state.
    pub loss_bad: f64,
}

impl Burst {
    /// Returns the share of frames that are lost in the long run: each state's loss, weighted by the share of frames
    /// that find the link in it.
    pub fn stationary_loss(&self) -> f64 {
        if self.enter == 0.0 {
            return self.loss_good;
        }
        let bad = self.enter / (self.enter + self.leave);
        bad * self.loss_bad + (1.0 - bad) * self.loss_good
    }
}

/// The arrival of one copy of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The time, in nanoseconds of the caller's clock; never before the frame was sent.
    pub at: u64,
    /// The bit of the frame that was flipped on the way, counted from the lowest bit of the first byte.
    pub flipped_bit: Option<usize>,
}

/// The frames that a link was given, and those of them that it did not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounts {
    /// Frames sent.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Frames dropped because the queue was full.
    pub queue_drops: u64,
    /// Frames lost at random or in bursts.
    pub lost: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    faults: Faults,
    random: SmallRng,
    /// The time at which the bottleneck has sent everything that it accepted, in nanoseconds.
    free_at: u64,
    /// Whether the link is in the bad state of [`Burst`].
    is_bad: bool,
    counts: LinkCounts,
}

impl Link {
    /// Returns an idle link in the good state.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            random: SmallRng::seed_from_u64(seed),
            free_at: 0,
            is_bad: false,
            counts: LinkCounts::default(),
        }
    }

    /// Returns the link's properties.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Changes the link's properties for the frames that are sent from now on. The bottleneck stays as busy as it is.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Returns what was counted so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// Returns the bytes that wait for the bottleneck at `now` (nanoseconds), those of the frame that it is sending
    /// included, rounded up.
    pub fn backlog_bytes(&self, now: u64) -> usize {
        let nanos = u128::from(self.free_at.saturating_sub(now));
        let bits = nanos * u128::from(self.faults.rate);
        bits.div_ceil(8 * u128::from(NANOS_PER_SECOND)) as usize
    }

    /// Sends a frame of `bytes` bytes at `now` (nanoseconds, never earlier than at the last call). Returns the arrivals
    /// of its copies: none if it is lost, two if it is duplicated. The first one is the frame itself.
    pub fn send(&mut self, bytes: usize, now: u64) -> [Option<Arrival>; 2] {
        self.counts.frames += 1;
        self.counts.bytes += bytes as u64;
        let Some(departure) = self.pass_bottleneck(bytes, now) else {
            self.counts.queue_drops += 1;
            return [None; 2];
        };
        if self.is_lost() {
            self.counts.lost += 1;
            return [None; 2];
        }
        let is_double = self.happens(self.faults.duplication);
        let bits = 8 * ETHERNET_HEADER_BYTES..8 * bytes;
        let flipped_bit = (self.happens(self.faults.corruption) && !bits.is_empty())
            .then(|| self.random.random_range(bits));
        let first = Arrival {
            at: self.arrival(departure),
            flipped_bit,
        };
        let second = is_double.then(|| Arrival {
            at: self.arrival(departure),
            flipped_bit: None,
        });
        [Some(first), second]
    }

    /// Returns when the frame has left the bottleneck; `None` if its queue is full.
    fn pass_bottleneck(&mut self, bytes: usize, now: u64) -> Option<u64> {
        let Faults {
            rate, queue_bytes, ..
        } = self.faults;
        if rate == 0 {
            return Some(now);
        }
        let is_busy = self.free_at > now;
        if is_busy && queue_bytes > 0 && self.backlog_bytes(now) + bytes > queue_bytes {
            return None;
        }
        let nanos = (8 * NANOS_PER_SECOND)
            .saturating_mul(bytes as u64)
            .div_ceil(rate);
        self.free_at = self.free_at.max(now).saturating_add(nanos);
        Some(self.free_at)
    }

    fn is_lost(&mut self) -> bool {
        let burst = self.faults.burst;
        let changes = if self.is_bad {
            burst.leave
        } else {
            burst.enter
        };
        if self.happens(changes) {
            self.is_bad = !self.is_bad;
        }
        let loss = if self.is_bad {
            burst.loss_bad
        } else {
            burst.loss_good
        };
        // Both are drawn, whatever the first comes to, so that one kind of loss does not move the other.
        let (at_random, in_burst) = (self.happens(self.faults.loss), self.happens(loss));
        at_random || in_burst
    }

    fn arrival(&mut self, departure: u64) -> u64 {
        let mut delay = nanos_of(self.faults.delay);
        if self.happens(self.faults.reordering) {
            let longest = nanos_of(self.faults.delay_max).max(1);
            delay += self.random.random_range(0..longest);
        }
        departure.saturating_add(delay)
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability.min(1.0))
    }
}

fn nanos_of(duration: Duration) -> u64 {
    duration.total_micros().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1250;
    const MICROS: u64 = 1000;
    const MILLIS: u64 = 1_000_000;

    /// 10 Mbit/s: a frame takes a millisecond.
    fn slow() -> Faults {
        Faults {
            rate: 10_000_000,
            ..Faults::default()
        }
    }

    fn arrives(link: &mut Link, bytes: usize, now: u64) -> Option<u64> {
        let [first, second] = link.send(bytes, now);
        assert_eq!(second, None);
        first.map(|arrival| arrival.at)
    }

    /// The share of 100,000 frames that is lost, and the mean length of a run of lost frames.
    fn losses(faults: Faults, seed: u64) -> (f64, f64) {
        let mut link = Link::new(faults, seed);
        let fates: Vec<bool> = (0..100_000)
            .map(|number| arrives(&mut link, FRAME, number).is_none())
            .collect();
        let lost = fates.iter().filter(|lost| **lost).count();
        let runs = fates.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
        assert_eq!(link.counts().lost as usize, lost);
        (lost as f64 / fates.len() as f64, lost as f64 / runs as f64)
    }

    #[test]
    fn a_perfect_link_delivers_at_once() {
        let mut link = Link::new(Faults::default(), 1);
        assert!(link.faults().is_perfect());
        assert_eq!(arrives(&mut link, FRAME, 5), Some(5));
    }

    #[test]
    fn frames_take_their_time_and_the_delay() {
        let mut link = Link::new(
            Faults {
                delay: Duration::from_millis(20),
                ..slow()
            },
            1,
        );
        assert_eq!(arrives(&mut link, FRAME, 0), Some(21 * MILLIS));
        assert_eq!(link.backlog_bytes(0), FRAME);
        assert_eq!(link.backlog_bytes(MILLIS / 2), FRAME / 2);
        // A second one waits for the first; after a pause the line is free.
        assert_eq!(arrives(&mut link, 2 * FRAME, MILLIS / 2), Some(23 * MILLIS));
        assert_eq!(arrives(&mut link, FRAME, 9 * MILLIS), Some(30 * MILLIS));
        // A gigabit per second: 12 microseconds for a full frame, to the nanosecond.
        let mut link = Link::new(
            Faults {
                rate: 1_000_000_000,
                ..Faults::default()
            },
            1,
        );
        assert_eq!(arrives(&mut link, 1514, 0), Some(12_112));
        assert_eq!(arrives(&mut link, 1514, 1), Some(24_224));
    }

    #[test]
    fn a_full_queue_drops_what_comes_last() {
        let mut link = Link::new(
            Faults {
                queue_bytes: 4 * FRAME,
                ..slow()
            },
            1,
        );
        let arrived = (0..10)
            .filter_map(|_| arrives(&mut link, FRAME, 0))
            .collect::<Vec<_>>();
        assert_eq!(arrived, [1, 2, 3, 4].map(|millis| millis * MILLIS));
        assert_eq!(link.counts().queue_drops, 6);
        // There is room again for as much as was sent.
        assert_eq!(arrives(&mut link, FRAME, MILLIS - MICROS), None);
        assert_eq!(arrives(&mut link, FRAME, MILLIS), Some(5 * MILLIS));
        // A frame larger than the queue passes an idle link.
        assert_eq!(arrives(&mut link, 8 * FRAME, 5 * MILLIS), Some(13 * MILLIS));
    }

    /// The reference of the utilisation that tests measure: a source of constant rate just above the bottleneck's fills
    /// it, one of half the rate fills half of it, and the queue only bounds the delay.
    #[test]
    fn a_source_of_constant_rate_fills_the_link() {
        for (rate, queue_frames) in [(10_000_000, 4), (100_000_000, 100), (1_000_000_000, 1000)] {
            for (interval_percent, expected) in [(99, 1.0), (200, 0.5)] {
                let faults = Faults {
                    rate,
                    queue_bytes: queue_frames * FRAME,
                    delay: Duration::from_millis(1),
                    ..Faults::default()
                };
                let mut link = Link::new(faults, 1);
                let frame_nanos = 8 * NANOS_PER_SECOND * FRAME as u64 / rate;
                let end = 100_000 * frame_nanos;
                let (mut now, mut arrived) = (0, 0);
                while now < end {
                    if let Some(at) = arrives(&mut link, FRAME, now) {
                        let longest = (queue_frames as u64) * frame_nanos + MILLIS;
                        assert!(at - now <= longest, "{} ns in the link", at - now);
                        arrived += u64::from(at <= end);
                    }
                    now += frame_nanos * interval_percent / 100;
                }
                let utilisation = (arrived * frame_nanos) as f64 / end as f64;
                assert!(
                    (utilisation - expected).abs() < 0.01,
                    "{utilisation} at {rate}"
                );
            }
        }
    }

    #[test]
    fn loss_is_as_frequent_and_as_bursty_as_it_should_be() {
        let random = Faults {
            loss: 0.02,
            ..Faults::default()
        };
        let (share, run) = losses(random, 1);
        assert!((share - 0.02).abs() < 0.003, "{share} lost");
        assert!(run < 1.1, "{run} lost in a row");

        let burst = Burst {
            enter: 0.01,
            leave: 0.2,
            loss_good: 0.001,
            loss_bad: 0.8,
        };
        // 1/21 of the time bad.
        let expected = 0.8 / 21.0 + 0.001 * 20.0 / 21.0;
        assert!((burst.stationary_loss() - expected).abs() < 1e-12);
        let bursty = Faults {
            burst,
            ..Faults::default()
        };
        for seed in 0..5 {
            let (share, run) = losses(bursty, seed);
            assert!((share / expected - 1.0).abs() < 0.15, "{share} lost");
            // A run goes on while the state stays bad and loses: with 0.8 * 0.8.
            assert!((2.0..3.2).contains(&run), "{run} lost in a row");
        }
        // The classic model of Gilbert: nothing is lost in the good state, everything in the bad one.
        let gilbert = Burst {
            enter: 0.01,
            leave: 0.25,
            loss_good: 0.0,
            loss_bad: 1.0,
        };
        let (share, run) = losses(
            Faults {
                burst: gilbert,
                ..Faults::default()
            },
            1,
        );
        assert!((share / gilbert.stationary_loss() - 1.0).abs() < 0.1);
        assert!((3.6..4.4).contains(&run), "{run} lost in a row");
    }

    #[test]
    fn some_frames_are_held_back_within_the_bound() {
        let mut link = Link::new(
            Faults {
                reordering: 0.3,
                delay: Duration::from_micros(500),
                delay_max: Duration::from_micros(100),
                ..Faults::default()
            },
            3,
        );
        let delays: Vec<u64> = (0..10_000)
            .filter_map(|number| {
                let now = number * MICROS;
                Some(arrives(&mut link, FRAME, now)? - now)
            })
            .collect();
        assert_eq!(delays.len(), 10_000);
        let held_back = delays.iter().filter(|delay| **delay > 500 * MICROS);
        assert!((2700..3300).contains(&held_back.count()));
        let longest = delays.iter().max().unwrap();
        assert!((590 * MICROS..600 * MICROS).contains(longest));
        assert_eq!(delays.iter().min(), Some(&(500 * MICROS)));
    }

    #[test]
    fn copies_are_intact_and_damage_spares_the_link_header() {
        let mut link = Link::new(
            Faults {
                duplication: 0.1,
                corruption: 0.5,
                ..Faults::default()
            },
            1,
        );
        let (mut doubles, mut damaged) = (0, 0);
        for _ in 0..10_000 {
            let [first, second] = link.send(20, 7);
            if let Some(bit) = first.unwrap().flipped_bit {
                assert!((8 * ETHERNET_HEADER_BYTES..160).contains(&bit));
                damaged += 1;
            }
            if let Some(copy) = second {
                assert_eq!(copy.flipped_bit, None);
                doubles += 1;
            }
        }
        assert!((900..1100).contains(&doubles), "{doubles} doubles");
        assert!((4800..5200).contains(&damaged), "{damaged} damaged");
        // Nothing of a frame without a packet can be damaged.
        assert!((0..100).all(|_| link.send(14, 7)[0].unwrap().flipped_bit.is_none()));
    }

    #[test]
    fn the_seed_decides() {
        let faults = Faults {
            loss: 0.1,
            reordering: 0.1,
            delay_max: Duration::from_millis(1),
            ..slow()
        };
        let run = |seed| {
            let mut link = Link::new(faults, seed);
            (0..100)
                .map(|number| link.send(FRAME, number))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
