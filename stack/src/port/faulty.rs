//! A port behind a modelled link ([`link`](super::link)) in each direction: loss, duplication, reordering, corruption,
//! rate, queue and delay.
//!
//! The same seed over the same traffic at the same times makes the same faults. What is delayed waits in buffers of the
//! port's own: its frame goes home to the arena at once, and it gets another one when it arrives.

use std::io;
use std::os::fd::BorrowedFd;

use super::Port;
pub use super::link::{Burst, Faults};
use super::pipe::{PIPE_BYTES_MAX, Pipe};
use crate::arena::{Arena, Frame, Owner};
use crate::telemetry::Counters;
use crate::{Duration, Instant};

/// `inner` with faults.
#[derive(Debug)]
pub struct FaultyPort<P> {
    inner: P,
    inbound: Pipe,
    outbound: Pipe,
    /// Frames that are about to cross a link; empty between calls, and kept so that nothing is allocated per call.
    arriving: Vec<Frame>,
    /// Frames at the head of the queue of [`transmit`](Port::transmit) that have crossed the link already, and that
    /// `inner` had no room for.
    crossed: usize,
}

impl<P: Port> FaultyPort<P> {
    /// Wraps `inner`. Each direction is a link of its own with these properties.
    pub fn new(inner: P, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            inbound: Pipe::new(faults, seed, PIPE_BYTES_MAX),
            outbound: Pipe::new(faults, !seed, PIPE_BYTES_MAX),
            arriving: Vec::new(),
            crossed: 0,
        }
    }

    /// The port without the faults. What was under way is lost.
    pub fn into_inner(self) -> P {
        self.inner
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.inbound.set_faults(faults);
        self.outbound.set_faults(faults);
    }

    /// Whether nothing goes wrong now, and nothing is under way.
    fn is_clear(&self) -> bool {
        let pipes = [&self.inbound, &self.outbound];
        pipes
            .into_iter()
            .all(|pipe| pipe.link().faults().is_perfect() && pipe.is_empty())
    }
}

/// Frames that cross a link in one call.
struct Crossing<'a> {
    pipe: &'a mut Pipe,
    arena: &'a mut Arena,
    /// Who has what arrives.
    owner: Owner,
    to: &'a mut Vec<Frame>,
    /// The length that `to` may have.
    to_max: usize,
    now: Instant,
}

impl Crossing<'_> {
    /// Sends `frame`, and appends what has arrived then to `to`.
    fn send(&mut self, frame: Frame) {
        // The bytes of a frame that a flow holds stay as they are: damage is done to the pipe's copy.
        if self.pipe.passes(self.arena.bytes(&frame), self.now) {
            self.to.push(frame);
        } else {
            self.arena.sent(frame);
        }
        self.release();
    }

    /// Appends what has arrived to `to`, as far as there is room and frames are free. The rest waits.
    fn release(&mut self) {
        while self.to.len() < self.to_max && self.pipe.has_arrived(self.now) {
            let Some(mut frame) = self.arena.alloc(self.owner) else {
                return;
            };
            self.pipe.take(self.now, |bytes| {
                // Frames of one arena have one size, and these bytes were in one.
                self.arena.buffer_mut(&mut frame)[..bytes.len()].copy_from_slice(bytes);
                self.arena.set_len(&mut frame, bytes.len());
            });
            self.to.push(frame);
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
        let to_max = batch.len() + budget;
        let overflows = self.inbound.overflows();
        let mut crossing = Crossing {
            pipe: &mut self.inbound,
            arena,
            owner: Owner::Rx,
            to: batch,
            to_max,
            now,
        };
        crossing.release();
        // As many as there is room for, even if all of them arrive at once.
        let room = to_max - crossing.to.len();
        let arriving = &mut self.arriving;
        self.inner
            .receive(crossing.arena, arriving, room, now, counters);
        for frame in arriving.drain(..) {
            crossing.send(frame);
        }
        counters
            .link_overflows
            .add(self.inbound.overflows() - overflows);
    }

    fn transmit(
        &mut self,
        arena: &mut Arena,
        queue: &mut Vec<Frame>,
        now: Instant,
        counters: &Counters,
    ) -> io::Result<()> {
        if self.is_clear() {
            self.crossed = 0;
            return self.inner.transmit(arena, queue, now, counters);
        }
        let overflows = self.outbound.overflows();
        self.arriving
            .extend(queue.drain(self.crossed.min(queue.len())..));
        let mut crossing = Crossing {
            pipe: &mut self.outbound,
            arena: &mut *arena,
            owner: Owner::Tx,
            to: &mut *queue,
            to_max: usize::MAX,
            now,
        };
        crossing.release();
        for frame in self.arriving.drain(..) {
            crossing.send(frame);
        }
        counters
            .link_overflows
            .add(self.outbound.overflows() - overflows);
        let result = self.inner.transmit(arena, queue, now, counters);
        self.crossed = queue.len();
        result
    }

    fn next_arrival(&self) -> Option<Instant> {
        let pipes = [&self.inbound, &self.outbound];
        let delayed = pipes.into_iter().filter_map(Pipe::next_arrival);
        delayed.chain(self.inner.next_arrival()).min()
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

    const HUNDRED_MICROS: Duration = Duration::from_micros(100);

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
            // What is delayed holds no frame.
            assert!(arena.is_at_rest(), "{:?}", arena.count());
        }
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
            delay_max: HUNDRED_MICROS,
            ..Faults::default()
        };
        assert!(!received(reordering, 1).is_sorted());

        let corruption = Faults {
            corruption: 0.5,
            ..Faults::default()
        };
        let all = received(corruption, 1);
        assert!(all.iter().any(|frame| frame.iter().any(|b| *b != frame[0])));

        // Ten frames of ten microseconds each are under way at the end.
        let delay = Faults {
            delay: HUNDRED_MICROS,
            ..Faults::default()
        };
        let all = received(delay, 1);
        assert_eq!(all, (0..190u8).map(|n| vec![n; 20]).collect::<Vec<_>>());
        // A byte takes a microsecond: half of the frames get through.
        let rate = Faults {
            rate: 8_000_000,
            queue_bytes: 60,
            ..Faults::default()
        };
        let through = received(rate, 1).len();
        assert!((95..105).contains(&through), "{through} frames");
    }

    /// An arena, a port over memory with a delay of 100 us, and its counters.
    fn delayed() -> (
        Arena,
        FaultyPort<memory::MemoryPort>,
        memory::MemoryPeer,
        Counters,
    ) {
        let (port, peer) = memory::pair();
        let faults = Faults {
            delay: HUNDRED_MICROS,
            ..Faults::default()
        };
        let arena = Arena::anonymous(4, 256, 0);
        (
            arena,
            FaultyPort::new(port, faults, 1),
            peer,
            Counters::default(),
        )
    }

    #[test]
    fn what_is_delayed_is_told_and_waits_for_a_free_frame() {
        let (mut arena, mut port, peer, counters) = delayed();
        let (start, due) = (Instant::ZERO, Instant::ZERO + HUNDRED_MICROS);
        let mut batch = Vec::new();
        for number in 0..8 {
            peer.inject(&[number; 20]);
        }
        // More than the arena has frames.
        port.receive(&mut arena, &mut batch, 4, start, &counters);
        port.receive(&mut arena, &mut batch, 4, start, &counters);
        assert!(batch.is_empty() && arena.is_at_rest());
        assert_eq!(port.next_arrival(), Some(due));
        // No more than the budget, and no more than there are frames.
        for length in [3, 4, 4] {
            port.receive(&mut arena, &mut batch, 3, due, &counters);
            assert_eq!(batch.len(), length);
        }
        batch.drain(..).for_each(|frame| arena.free(frame));
        port.receive(&mut arena, &mut batch, 64, due, &counters);
        let numbers: Vec<u8> = batch.iter().map(|frame| arena.bytes(frame)[0]).collect();
        assert_eq!(numbers, [4, 5, 6, 7]);
        assert_eq!(port.next_arrival(), None);
    }

    #[test]
    fn a_held_frame_is_with_its_flow_while_its_copy_is_under_way() {
        let (mut arena, mut port, peer, counters) = delayed();
        let mut frame = arena.alloc(Owner::Tx).unwrap();
        arena.set_len(&mut frame, 20);
        arena.hold(&frame);
        let (index, mut queue) = (frame.index(), vec![frame]);
        let due = Instant::ZERO + HUNDRED_MICROS;
        port.transmit(&mut arena, &mut queue, Instant::ZERO, &counters)
            .unwrap();
        assert_eq!(arena.count().of(Owner::Flow), 1);
        assert!(peer.take().is_none());
        port.transmit(&mut arena, &mut queue, due, &counters)
            .unwrap();
        assert_eq!(peer.take().unwrap().len(), 20);
        arena.release(index);
        assert!(arena.is_at_rest(), "{:?}", arena.count());
    }

    /// A port that takes one frame a call.
    struct OneByOne(u32);

    impl Port for OneByOne {
        fn receive(
            &mut self,
            _: &mut Arena,
            _: &mut Vec<Frame>,
            _: usize,
            _: Instant,
            _: &Counters,
        ) {
        }

        fn transmit(
            &mut self,
            arena: &mut Arena,
            queue: &mut Vec<Frame>,
            _: Instant,
            _: &Counters,
        ) -> io::Result<()> {
            if !queue.is_empty() {
                arena.sent(queue.remove(0));
                self.0 += 1;
            }
            Ok(())
        }

        fn wait(&mut self, _: Option<BorrowedFd<'_>>, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn reap(&mut self, _: &mut Arena, _: &Counters) {}
    }

    #[test]
    fn a_frame_that_waits_for_room_crosses_the_link_once() {
        let faults = Faults {
            loss: 0.5,
            ..Faults::default()
        };
        let mut port = FaultyPort::new(OneByOne(0), faults, 1);
        let mut arena = Arena::anonymous(64, 256, 0);
        let counters = Counters::default();
        let mut queue: Vec<Frame> = (0..64).map(|_| arena.alloc(Owner::Tx).unwrap()).collect();
        for _ in 0..64 {
            port.transmit(&mut arena, &mut queue, Instant::ZERO, &counters)
                .unwrap();
        }
        let sent = port.into_inner().0;
        assert!((20..44).contains(&sent), "{sent} of 64 sent");
        assert!(queue.is_empty() && arena.is_at_rest());
    }
}
