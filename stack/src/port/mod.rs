//! A NIC queue as a core sees it.
//!
//! * [`xsk`]: an AF_XDP socket.
//! * [`memory`]: two queues in memory, for tests, simulations and instruction counts.
//! * [`faulty`]: any port, with seeded loss, duplication, reordering and corruption.
//!
//! [`idle`] says what to do when nothing arrives.

pub mod faulty;
pub mod idle;
pub mod memory;
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

    /// Takes the frames of `queue` for sending, as many as there is room for, tells the kernel once, and
    /// frees the frames that were sent earlier. What does not fit stays in `queue`.
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

/// Sends what is left in `queue` and takes the sent frames home, as far as that takes a moment: the end of a
/// loop.
pub fn settle(
    port: &mut impl Port,
    arena: &mut Arena,
    queue: &mut Vec<Frame>,
    clock: &mut impl Clock,
    counters: &Counters,
) {
    // Sent frames come home soon or, if the queue is gone, not at all.
    const REAP_TIMEOUT: Duration = Duration::from_millis(200);
    let until = clock.now() + REAP_TIMEOUT;
    while arena.count().of(Owner::Tx) > 0 && clock.now() < until {
        if port.transmit(arena, queue, clock.now(), counters).is_err() {
            break;
        }
        port.reap(arena, counters);
    }
}
