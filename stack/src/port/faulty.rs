//! A port with faults: seeded loss, duplication, reordering (by delay) and corruption, both ways.
//!
//! The same seed over the same traffic at the same times makes the same faults.

use std::io;
use std::os::fd::BorrowedFd;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Port;
use crate::arena::{Arena, Frame, Owner};
use crate::telemetry::Counters;
use crate::wire::ETHERNET_HEADER_BYTES;
use crate::{Duration, Instant};

/// How often what goes wrong, as probabilities from 0 to 1 per frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The frame is lost.
    pub loss: f64,
    /// The frame comes twice.
    pub duplication: f64,
    /// The frame is held back for up to [`delay_max`](Self::delay_max), so that others overtake it.
    pub reordering: f64,
    /// One bit of the packet is flipped. The link header is spared: it does not outlive its link, whose
    /// own check (the Ethernet FCS) guards it; what is behind it may have been damaged anywhere.
    pub corruption: f64,
    /// The longest delay of a frame that is held back.
    pub delay_max: Duration,
}

/// Frames held back at most, per direction: beyond, they pass undelayed.
const DELAYED_MAX: usize = 64;

/// `inner` with faults.
#[derive(Debug)]
pub struct FaultyPort<P> {
    inner: P,
    faults: Faults,
    random: SmallRng,
    inbound: Vec<(Instant, Frame)>,
    outbound: Vec<(Instant, Frame)>,
    /// Frames on their way through; empty between calls, and kept so that nothing is allocated per call.
    arriving: Vec<Frame>,
    passed: Vec<Frame>,
}

impl<P: Port> FaultyPort<P> {
    /// Wraps `inner`.
    pub fn new(inner: P, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            faults,
            random: SmallRng::seed_from_u64(seed),
            inbound: Vec::with_capacity(DELAYED_MAX),
            outbound: Vec::with_capacity(DELAYED_MAX),
            arriving: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// The port without the faults. What was held back is lost: its frames go home to `arena`.
    pub fn into_inner(self, arena: &mut Arena) -> P {
        let delayed = self.inbound.into_iter().chain(self.outbound);
        for (_, frame) in delayed {
            arena.sent(frame);
        }
        self.inner
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Whether nothing goes wrong now, and nothing is held back.
    fn is_clear(&self) -> bool {
        let Faults {
            loss,
            duplication,
            reordering,
            corruption,
            ..
        } = self.faults;
        loss + duplication + reordering + corruption == 0.0
            && self.inbound.is_empty()
            && self.outbound.is_empty()
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability.min(1.0))
    }

    /// Lets one frame through to `to`, or not, or twice, or later.
    fn pass(&mut self, arena: &mut Arena, mut frame: Frame, now: Instant, inbound: bool) {
        if self.happens(self.faults.loss) {
            arena.sent(frame);
            return;
        }
        // The bytes of a held frame are its flow's: what happens to them on the wire happens to a copy.
        let changes = self.faults.corruption > 0.0 || self.faults.reordering > 0.0;
        if changes && arena.is_held(&frame) {
            let Some(copy) = copy_of(arena, &frame, Owner::Tx) else {
                self.passed.push(frame);
                return;
            };
            arena.sent(frame);
            frame = copy;
        }
        if self.happens(self.faults.corruption) && frame.len() > ETHERNET_HEADER_BYTES {
            let len = frame.len();
            let byte = self.random.random_range(ETHERNET_HEADER_BYTES..len);
            let bit = self.random.random_range(0..8);
            arena.buffer_mut(&mut frame)[byte] ^= 1 << bit;
        }
        let owner = if inbound { Owner::Rx } else { Owner::Tx };
        if self.happens(self.faults.duplication)
            && let Some(copy) = copy_of(arena, &frame, owner)
        {
            self.passed.push(copy);
        }
        let delayed = if inbound {
            self.inbound.len()
        } else {
            self.outbound.len()
        };
        if delayed < DELAYED_MAX && self.happens(self.faults.reordering) {
            let micros = self.faults.delay_max.total_micros().max(1);
            let until = now + Duration::from_micros(self.random.random_range(0..micros));
            if inbound {
                self.inbound.push((until, frame));
            } else {
                self.outbound.push((until, frame));
            }
        } else {
            self.passed.push(frame);
        }
    }
}

/// A frame with the same bytes, if one is free.
fn copy_of(arena: &mut Arena, frame: &Frame, owner: Owner) -> Option<Frame> {
    let mut copy = arena.alloc(owner)?;
    let len = frame.len();
    arena.buffer_mut(&mut copy)[..len].copy_from_slice(arena.bytes(frame));
    arena.set_len(&mut copy, len);
    Some(copy)
}

/// Moves the frames whose time has come from `delayed` to `to`.
fn release(delayed: &mut Vec<(Instant, Frame)>, now: Instant, to: &mut Vec<Frame>) {
    let mut index = 0;
    while index < delayed.len() {
        if delayed[index].0 <= now {
            to.push(delayed.swap_remove(index).1);
        } else {
            index += 1;
        }
    }
}

impl<P: Port> Port for FaultyPort<P> {
    fn receive(
        &mut self,
        arena: &mut Arena,
        batch: &mut Vec<Frame>,
        budget: usize,
        now: Instant,
        counters: &Counters,
    ) {
        if self.is_clear() {
            self.inner.receive(arena, batch, budget, now, counters);
            return;
        }
        let before = batch.len();
        self.inner.receive(arena, batch, budget, now, counters);
        let mut arriving = std::mem::take(&mut self.arriving);
        arriving.extend(batch.drain(before..));
        release(&mut self.inbound, now, batch);
        for frame in arriving.drain(..) {
            self.pass(arena, frame, now, true);
        }
        self.arriving = arriving;
        batch.append(&mut self.passed);
    }

    fn transmit(
        &mut self,
        arena: &mut Arena,
        queue: &mut Vec<Frame>,
        now: Instant,
        counters: &Counters,
    ) -> io::Result<()> {
        if self.is_clear() {
            return self.inner.transmit(arena, queue, now, counters);
        }
        let mut arriving = std::mem::take(&mut self.arriving);
        arriving.append(queue);
        release(&mut self.outbound, now, queue);
        for frame in arriving.drain(..) {
            self.pass(arena, frame, now, false);
        }
        self.arriving = arriving;
        queue.append(&mut self.passed);
        self.inner.transmit(arena, queue, now, counters)
    }

    fn has_backlog(&self) -> bool {
        self.inner.has_backlog()
    }

    fn busy_poll(&mut self) {
        self.inner.busy_poll();
    }

    fn wait(&mut self, wake: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<()> {
        self.inner.wait(wake, timeout)
    }

    fn reap(&mut self, arena: &mut Arena, counters: &Counters) {
        self.inner.reap(arena, counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory;

    /// The payloads that come through, in order.
    fn received(faults: Faults, seed: u64) -> Vec<Vec<u8>> {
        let (port, peer) = memory::pair();
        let mut port = FaultyPort::new(port, faults, seed);
        let mut arena = Arena::anonymous(256, 256, 0);
        let counters = Counters::default();
        let mut all = Vec::new();
        for number in 0..200u8 {
            peer.inject(&[number; 20]);
            let mut batch = Vec::new();
            let now = Instant::from_micros(i64::from(number) * 10);
            port.receive(&mut arena, &mut batch, 64, now, &counters);
            for frame in batch {
                all.push(arena.bytes(&frame).to_vec());
                arena.free(frame);
            }
        }
        let held = port.inbound.len() as u32;
        assert_eq!(arena.count().of(Owner::Rx), held);
        assert!(arena.count().is_conserved());
        all
    }

    #[test]
    fn without_faults_everything_passes_in_order() {
        let all = received(Faults::default(), 7);
        assert_eq!(all, (0..200u8).map(|n| vec![n; 20]).collect::<Vec<_>>());
    }

    #[test]
    fn each_fault_happens_and_the_seed_decides() {
        let loss = Faults {
            loss: 0.2,
            ..Faults::default()
        };
        let lost = 200 - received(loss, 1).len();
        assert!((10..90).contains(&lost), "{lost} of 200 lost");
        assert_eq!(received(loss, 1), received(loss, 1));
        assert_ne!(received(loss, 1), received(loss, 2));

        let duplication = Faults {
            duplication: 0.2,
            ..Faults::default()
        };
        assert!(received(duplication, 1).len() > 210);

        let reordering = Faults {
            reordering: 0.3,
            delay_max: Duration::from_micros(100),
            ..Faults::default()
        };
        assert!(!received(reordering, 1).is_sorted());

        let corruption = Faults {
            corruption: 0.5,
            ..Faults::default()
        };
        let all = received(corruption, 1);
        assert!(all.iter().any(|frame| frame.iter().any(|b| *b != frame[0])));
    }
}
