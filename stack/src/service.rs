//! Services: what is registered for a port, and the run-time budget of its handler.

use std::sync::{Arc, Mutex};

use crate::Duration;
use crate::interruptlet::{DatagramInterruptlet, StreamInterruptlet};
use crate::pool::SlowPath;

/// Makes the interruptlet of one worker, given the worker's number (from 0).
pub type StreamFactory = Box<dyn Fn(usize) -> Box<dyn StreamInterruptlet> + Send>;
/// As [`StreamFactory`], for datagrams.
pub type DatagramFactory = Box<dyn Fn(usize) -> Box<dyn DatagramInterruptlet> + Send>;

/// What serves a TCP port.
pub struct StreamService {
    /// Makes one handler per worker.
    pub interruptlet: StreamFactory,
    /// Serves what the handlers defer. Without one, deferring closes the connection.
    pub slow: Option<Arc<dyn SlowPath>>,
    /// How long a request may take to become whole, from its first byte.
    pub request_timeout: Duration,
    /// How long a connection may do nothing between requests, at most 12 days; `None`: forever.
    pub idle_timeout: Option<Duration>,
    /// How long a peer may be silent before it is asked whether it is still there (RFC 9293 section 3.8.4), and how
    /// long again between two questions, at most 75 s; after nine without an answer the connection is reset. `None`:
    /// never.
    pub keep_alive: Option<Duration>,
}

/// What serves a UDP port.
pub struct DatagramService {
    /// Makes one handler per worker.
    pub interruptlet: DatagramFactory,
    /// Serves what the handlers defer. Without one, deferring ignores the datagram.
    pub slow: Option<Arc<dyn SlowPath>>,
}

/// A service's handler: on the core, or with the pool because it overran its budget too often.
pub(crate) struct Handler<T: ?Sized> {
    fast: Option<Box<T>>,
    shared: Option<Arc<Mutex<Box<T>>>>,
}

impl<T: ?Sized> Handler<T> {
    pub(crate) fn new(handler: Box<T>) -> Self {
        Self {
            fast: Some(handler),
            shared: None,
        }
    }

    /// The handler, if it runs on the core.
    pub(crate) fn fast(&mut self) -> Option<&mut T> {
        self.fast.as_deref_mut()
    }

    /// The handler, if it runs on the pool.
    pub(crate) fn shared(&self) -> Option<&Arc<Mutex<Box<T>>>> {
        self.shared.as_ref()
    }

    /// Calls the handler on the core, wherever it belongs; `None` if the pool is running it right now. For
    /// the short answers that only a handler can give when the pool has no room.
    pub(crate) fn call<R>(&mut self, call: impl FnOnce(&mut T) -> R) -> Option<R> {
        if let Some(handler) = &mut self.fast {
            return Some(call(handler));
        }
        let mut handler = self.shared.as_ref()?.try_lock().ok()?;
        Some(call(&mut handler))
    }

    /// Moves the handler to the pool.
    pub(crate) fn demote(&mut self) {
        if let Some(handler) = self.fast.take() {
            self.shared = Some(Arc::new(Mutex::new(handler)));
        }
    }
}

/// Watches the run time of one handler.
///
/// One slow call means little (the core may have been preempted), many do: every overrun scores, every
/// call within the budget takes a little back, so a handler is demoted if more than one call in
/// [`OVERRUN_SCORE`] or so overruns, and only after [`DEMOTION_SCORE`] / [`OVERRUN_SCORE`] overruns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    limit: Duration,
    score: u32,
}

const OVERRUN_SCORE: u32 = 16;
const DEMOTION_SCORE: u32 = 16 * OVERRUN_SCORE;

/// What a call's run time means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    Within,
    Overrun,
    /// An overrun, and one too many.
    Demote,
}

impl Budget {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, score: 0 }
    }

    /// Charges `calls` calls that took `run_time` together.
    #[inline]
    pub(crate) fn charge(&mut self, run_time: Duration, calls: u32) -> Charge {
        if run_time <= self.limit * calls {
            self.score = self.score.saturating_sub(1);
            return Charge::Within;
        }
        self.score += OVERRUN_SCORE;
        if self.score >= DEMOTION_SCORE {
            Charge::Demote
        } else {
            Charge::Overrun
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_overruns_are_forgiven_and_frequent_ones_are_not() {
        let limit = Duration::from_micros(50);
        let over = Duration::from_micros(51);
        let mut budget = Budget::new(limit);
        for _ in 0..1000 {
            assert_eq!(budget.charge(over, 1), Charge::Overrun);
            for _ in 0..OVERRUN_SCORE {
                assert_eq!(budget.charge(limit, 1), Charge::Within);
            }
        }
        let demoted_after = (1..)
            .find(|_| budget.charge(over, 1) == Charge::Demote)
            .unwrap();
        assert_eq!(demoted_after, DEMOTION_SCORE / OVERRUN_SCORE);
    }
}
