//! The handler of a service on one core: where it is, and calling it there.
//!
//! A panic of the handler ends its call and nothing else: the call returns [`Panicked`], the handler is used on, and
//! its [`Budget`] counts.

use std::sync::Arc;

use super::budget::{Budget, Spent};
use crate::Instant;
use crate::clock::Clock;
use crate::panics::{Panicked, contain};
use crate::pool::Demoted;

/// A service's handler: on the core, or with the pool because it overran its budget or panicked too often.
pub(crate) struct Handler<T: ?Sized> {
    fast: Option<Box<T>>,
    /// The pool's handle while the handler is not on the core.
    demoted: Option<Arc<Demoted<T>>>,
    /// The message of its last panic on the core.
    last_panic: Box<str>,
}

impl<T: ?Sized> Handler<T> {
    pub(crate) fn new(handler: Box<T>) -> Self {
        Self {
            fast: Some(handler),
            demoted: None,
            last_panic: Box::default(),
        }
    }

    /// Calls the handler on the core, and measures the call if the handler is suspected. `None` if the call is the
    /// pool's to make: the handler is demoted, or it is to come back and the pool is still running it.
    #[inline(always)]
    pub(crate) fn run<R>(
        &mut self,
        budget: &mut Budget,
        now: Instant,
        clock: &mut dyn Clock,
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<Result<R, Panicked>> {
        match &mut self.fast {
            Some(handler) if !budget.is_suspected() => {
                let result = contain(|| call(handler));
                if let Err(panicked) = &result {
                    self.note_panic(panicked, budget, now);
                }
                Some(result)
            }
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
    ) -> Option<Result<R, Panicked>> {
        if !budget.admits(now) {
            return None;
        }
        if let Some(demoted) = &self.demoted {
            self.fast = Some(demoted.try_take_back()?);
            self.demoted = None;
        }
        let handler = self.fast.as_mut()?;
        let before = clock.thread_time();
        let result = contain(|| call(handler));
        match &result {
            Ok(_) => budget.charge(&Spent::between(&before, &clock.thread_time())),
            // Most of the time was the panic's, which has a bound of its own.
            Err(panicked) => self.note_panic(panicked, budget, now),
        }
        Some(result)
    }

    /// The handler for a job of the pool, if it is with the pool.
    pub(crate) fn demoted(&self) -> Option<&Arc<Demoted<T>>> {
        self.demoted.as_ref()
    }

    /// Calls the handler on the core, wherever it belongs; `None` if the pool is running it right now. For
    /// the short answers that only a handler can give when the pool has no room.
    pub(crate) fn call<R>(
        &mut self,
        budget: &mut Budget,
        now: Instant,
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<Result<R, Panicked>> {
        let result = match &mut self.fast {
            Some(handler) => contain(|| call(handler)),
            None => self.demoted.as_ref()?.try_call(call)?,
        };
        if let Err(panicked) = &result {
            self.note_panic(panicked, budget, now);
        }
        Some(result)
    }

    /// Moves the handler to the pool.
    pub(crate) fn demote(&mut self) {
        if let Some(handler) = self.fast.take() {
            self.demoted = Some(Arc::new(Demoted::new(handler)));
        }
    }

    /// Returns the message of the handler's last panic on the core, empty if there was none.
    pub(crate) fn last_panic(&self) -> &str {
        &self.last_panic
    }

    #[cold]
    #[inline(never)]
    fn note_panic(&mut self, panicked: &Panicked, budget: &mut Budget, now: Instant) {
        self.last_panic.clone_from(&panicked.0);
        budget.note_panic(now);
    }
}
