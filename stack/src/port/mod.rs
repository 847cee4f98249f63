//! A NIC queue as a core sees it.
//!
//! * [`xsk`]: an AF_XDP socket.
//! * [`memory`]: two queues in memory, for tests, simulations and instruction counts.
//! * [`faulty`]: any port behind a simulated link, with seeded loss, duplication, reordering, corruption, rate, queue
//!   and delay.
//!
//! [`link`] is the model of such a link, [`pipe`] carries frames over it.
//!
//! [`idle`] says what to do when nothing arrives.

pub mod faulty;
pub mod idle;
pub mod link;
pub mod memory;
pub mod pipe;
pub mod xsk;

use std::io;

use crate::arena::{Arena, Frame, Owner};
use crate::clock::Clock;
use crate::telemetry::Counters;
use crate::{Duration, Instant};

/// A queue pair: frames in, frames out.
///
/// Calls in one turn of the loop: [`receive`](Self::receive), then [`transmit`](Self::transmit) with
/// everything that the turn produced. A port moves frames between itself and the arena it is given,
/// which must be the same at every call.
pub trait Port {
    /// Appends up to `budget` received frames to `batch`, and refills the receive side from the free
    /// pool.
    fn receive(
        &mut self,
        arena: &mut Arena,
        batch: &mut Vec<Frame>,
        budget: usize,
        now: Instant,
        counters: &Counters,
    );

    /// Takes the frames of `queue` for sending, as many as there is room for, tells the kernel of them if it wants to
    /// be told, and frees the frames that were sent earlier. Frames that do not fit stay in `queue`.
    ///
    /// The kernel is told once, unless it sends fewer frames a call than are out: then once for each such number, and
    /// once more at the end. Frames that are overdue cost one more call, at most every 50 ms.
    ///
    /// # Errors
    ///
    /// If the queue is gone: the interface was deleted, or the socket broke.
    fn transmit(
        &mut self,
        arena: &mut Arena,
        queue: &mut Vec<Frame>,
        now: Instant,
        counters: &Counters,
    ) -> io::Result<()>;

    /// Whether the kernel has frames of ours that it will only go on sending when
    /// [`transmit`](Self::transmit) is called again.
    fn has_backlog(&self) -> bool {
        false
    }

    /// Returns when the next frame arrives of those that the port delays, in either direction; `None` if it delays none.
    /// A frame that had to wait for a free one may have a time that is over.
    fn next_arrival(&self) -> Option<Instant> {
        None
    }

    /// Lets the kernel work on this queue in our own time (busy polling), without waiting.
    fn busy_poll(&mut self) {}

    /// Sleeps until a frame arrives, `wake` is readable, or `timeout` is over.
    ///
    /// # Errors
    ///
    /// If the queue is gone.
    fn wait(
        &mut self,
        wake: Option<std::os::fd::BorrowedFd<'_>>,
        timeout: Duration,
    ) -> io::Result<()>;

    /// Frees what was sent earlier, without sending anything.
    fn reap(&mut self, arena: &mut Arena, counters: &Counters);
}

/// Sends what is left in `queue` and takes the sent frames home, for a second at most: the end of a loop. Frames that
/// then have not found room on the ring are given up and counted; those that the kernel still has come back when the
/// port is closed.
pub fn settle(
    port: &mut impl Port,
    arena: &mut Arena,
    queue: &mut Vec<Frame>,
    clock: &mut impl Clock,
    counters: &Counters,
) {
    // Sent frames come home soon or, if the queue is gone, not at all. A queue that has to be told of them in
    // another way finds it within this time.
    const REAP_TIMEOUT: Duration = Duration::from_secs(1);
    let until = clock.now() + REAP_TIMEOUT;
    while arena.count().of(Owner::Tx) > 0 {
        let now = clock.now();
        if now >= until || port.transmit(arena, queue, now, counters).is_err() {
            break;
        }
        port.reap(arena, counters);
    }
    counters.tx_unsent.add(queue.len() as u64);
    for frame in queue.drain(..) {
        arena.sent(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ThreadTime;

    /// A queue with room for so many frames, of which it sends none.
    struct StuckPort(usize);

    impl Port for StuckPort {
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
            for frame in queue.drain(..self.0.min(queue.len())) {
                arena.park(frame, Owner::Tx);
                self.0 -= 1;
            }
            Ok(())
        }

        fn wait(&mut self, _: Option<std::os::fd::BorrowedFd<'_>>, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn reap(&mut self, _: &mut Arena, _: &Counters) {}
    }

    /// A clock that goes on by a millisecond whenever it is read.
    struct Ticking(u64);

    impl Clock for Ticking {
        fn nanos(&mut self) -> u64 {
            self.0 += 1_000_000;
            self.0
        }

        fn thread_time(&mut self) -> ThreadTime {
            ThreadTime::default()
        }
    }

    #[test]
    fn the_end_of_a_loop_does_not_wait_for_ever_and_loses_no_frame() {
        let mut arena = Arena::anonymous(8, 2048, 0);
        let counters = Counters::default();
        let mut queue: Vec<Frame> = (0..5).map(|_| arena.alloc(Owner::Tx).unwrap()).collect();
        arena.hold(&queue[0]);
        let held = queue[0].index();
        let (mut port, mut clock) = (StuckPort(3), Ticking(0));
        settle(&mut port, &mut arena, &mut queue, &mut clock, &counters);
        assert!(clock.0 < 1_100_000_000, "{} ns", clock.0);
        assert_eq!(
            (counters.tx_unsent.get(), arena.count().of(Owner::Tx)),
            (2, 3)
        );
        // A port does this when it is closed.
        assert_eq!(arena.take_back_sending(), 3);
        assert_eq!(arena.count().of(Owner::Flow), 1);
        arena.release(held);
        assert!(arena.is_at_rest(), "{:?}", arena.count());
    }
}
