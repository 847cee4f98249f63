//! The handler of a service on one core: where it is, and calling it there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::budget::{Budget, Spent};
use crate::Instant;
use crate::clock::Clock;

/// A service's handler: on the core, or with the pool because it overran its budget too often.
pub(crate) struct Handler<T: ?Sized> {
    fast: Option<Box<T>>,
    /// The handler while the pool may be running it: as long as jobs for it are under way, it stays here even if the
    /// core runs it again.
    shared: Option<Arc<Mutex<Box<T>>>>,
}

impl<T: ?Sized> Handler<T> {
    pub(crate) fn new(handler: Box<T>) -> Self {
        Self {
            fast: Some(handler),
            shared: None,
        }
    }

    /// Calls the handler on the core, and measures the call if the handler is suspected. `None` if the call is the
    /// pool's to make: the handler is demoted, or the pool is running it at this moment.
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
        self.take_back();
        let mut guard;
        let handler = match &mut self.fast {
            Some(handler) => handler,
            None => {
                guard = try_lock(self.shared.as_ref()?)?;
                &mut guard
            }
        };
        let before = clock.thread_time();
        let result = call(handler);
        budget.charge(&Spent::between(&before, &clock.thread_time()));
        Some(result)
    }

    /// Takes the handler back from the pool if no job for it is left.
    fn take_back(&mut self) {
        if let Some(shared) = self.shared.take() {
            match Arc::try_unwrap(shared) {
                Ok(handler) => {
                    let handler = handler.into_inner();
                    self.fast = Some(handler.unwrap_or_else(PoisonError::into_inner));
                }
                Err(shared) => self.shared = Some(shared),
            }
        }
    }

    /// The handler, if the pool may run it.
    pub(crate) fn shared(&self) -> Option<&Arc<Mutex<Box<T>>>> {
        self.shared.as_ref()
    }

    /// Calls the handler on the core, wherever it belongs; `None` if the pool is running it right now. For
    /// the short answers that only a handler can give when the pool has no room.
    pub(crate) fn call<R>(&mut self, call: impl FnOnce(&mut T) -> R) -> Option<R> {
        if let Some(handler) = &mut self.fast {
            return Some(call(handler));
        }
        let mut handler = try_lock(self.shared.as_ref()?)?;
        Some(call(&mut handler))
    }

    /// Moves the handler to the pool.
    pub(crate) fn demote(&mut self) {
        if let Some(handler) = self.fast.take() {
            self.shared = Some(Arc::new(Mutex::new(handler)));
        }
    }
}

/// Locks without waiting. A handler that panicked on a pool thread is used on, as by the pool itself.
fn try_lock<T: ?Sized>(handler: &Mutex<Box<T>>) -> Option<MutexGuard<'_, Box<T>>> {
    match handler.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(broken)) => Some(broken.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
