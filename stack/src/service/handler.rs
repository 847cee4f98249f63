//! The handler of a service on one core: where it is, and calling it there.

use std::sync::Arc;

use super::budget::{Budget, Spent};
use crate::Instant;
use crate::clock::Clock;
use crate::pool::Demoted;

/// A service's handler: on the core, or with the pool because it overran its budget too often.
pub(crate) struct Handler<T: ?Sized> {
    fast: Option<Box<T>>,
    /// The pool's handle while the handler is not on the core.
    demoted: Option<Arc<Demoted<T>>>,
}

impl<T: ?Sized> Handler<T> {
    pub(crate) fn new(handler: Box<T>) -> Self {
        Self {
            fast: Some(handler),
            demoted: None,
        }
    }

    /// Calls the handler on the core, and measures the call if the handler is suspected. `None` if the call is the
    /// pool's to make: the handler is demoted, or it is to come back and the pool is still running it.
    #[inline]
    pub(crate) fn run<R>(
        &mut self,
        budget: &mut Budget,
        now: Instant,
        clock: &mut dyn Clock,
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<R> {
        match &mut self.fast {
            Some(handler) if !budget.is_suspected() => Some(call(handler)),
            _ => self.run_measured(budget, now, clock, call),
        }
    }

    #[cold]
    #[inline(never)]
    fn run_measured<R>(
        &mut self,
        budget: &mut Budget,
        now: Instant,
        clock: &mut dyn Clock,
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<R> {
        if !budget.admits(now) {
            return None;
        }
        if let Some(demoted) = &self.demoted {
            self.fast = Some(demoted.try_take_back()?);
            self.demoted = None;
        }
        let handler = self.fast.as_mut()?;
        let before = clock.thread_time();
        let result = call(handler);
        budget.charge(&Spent::between(&before, &clock.thread_time()));
        Some(result)
    }

    /// The handler for a job of the pool, if it is with the pool.
    pub(crate) fn demoted(&self) -> Option<&Arc<Demoted<T>>> {
        self.demoted.as_ref()
    }

    /// Calls the handler on the core, wherever it belongs; `None` if the pool is running it right now. For
    /// the short answers that only a handler can give when the pool has no room.
    pub(crate) fn call<R>(&mut self, call: impl FnOnce(&mut T) -> R) -> Option<R> {
        match &mut self.fast {
            Some(handler) => Some(call(handler)),
            None => self.demoted.as_ref()?.try_call(call),
        }
    }

    /// Moves the handler to the pool.
    pub(crate) fn demote(&mut self) {
        if let Some(handler) = self.fast.take() {
            self.demoted = Some(Arc::new(Demoted::new(handler)));
        }
    }
}
