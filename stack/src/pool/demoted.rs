//! A handler that the pool runs for a while instead of the core, and the way back to the core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::panics::{Panicked, contain};

/// A demoted handler: the pool runs it, one call at a time, until the core takes it back.
///
/// A busy pool has the mutex locked nearly all the time, and the core does not wait for it. The core therefore says
/// first that it wants the handler; from then on the pool makes no call and hands requests back, and the mutex is free as soon as
/// the call that goes on is done.
///
/// A panic of the handler ends its call and nothing else: the mutex is not poisoned, and the handler is used on.
#[derive(Debug)]
pub(crate) struct Demoted<T: ?Sized> {
    /// `None` once the core has it back.
    handler: Mutex<Option<Box<T>>>,
    /// Never taken back: when the handler is demoted again, that is another `Demoted`.
    is_wanted: AtomicBool,
}

impl<T: ?Sized> Demoted<T> {
    pub(crate) fn new(handler: Box<T>) -> Self {
        Self {
            handler: Mutex::new(Some(handler)),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// Calls the handler on a thread of the pool, after the calls of other threads. `None` if the call is the core's to
    /// make, which has the handler or wants it.
    pub(super) fn call<R>(&self, call: impl FnOnce(&mut T) -> R) -> Option<Result<R, Panicked>> {
        let mut handler = self.handler.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at after the wait for the mutex: a request that came back while another thread's call goes on would
        // only be sent here again.
        if self.is_wanted.load(Ordering::Relaxed) {
            return None;
        }
        let handler = handler.as_deref_mut()?;
        Some(contain(|| call(handler)))
    }

    /// Calls the handler on the core, without waiting; `None` if the pool is running it.
    pub(crate) fn try_call<R>(
        &self,
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<Result<R, Panicked>> {
        let mut handler = self.try_lock()?;
        let handler = handler.as_deref_mut()?;
        Some(contain(|| call(handler)))
    }

    /// Takes the handler back to the core, without waiting. `None` if the pool is running it: then it is the core's for
    /// the asking once that call is done.
    pub(crate) fn try_take_back(&self) -> Option<Box<T>> {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.try_lock()?.take()
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Box<T>>>> {
        match self.handler.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(broken)) => Some(broken.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_gets_it_as_soon_as_no_call_goes_on_and_no_other_is_made() {
        let demoted = Demoted::<u32>::new(Box::new(7));
        assert_eq!(demoted.try_call(|number| *number), Some(Ok(7)));
        let during = demoted.call(|_| (demoted.try_call(|_| ()), demoted.try_take_back()));
        assert_eq!(during, Some(Ok((None, None))));
        assert_eq!(demoted.call(|number| *number), None);
        assert_eq!(demoted.try_take_back(), Some(Box::new(7)));
        // For jobs that are still queued.
        assert_eq!(demoted.call(|number| *number), None);
        assert_eq!(demoted.try_take_back(), None);
    }

    #[test]
    fn one_that_panicked_is_used_on() {
        let demoted = Demoted::<u32>::new(Box::new(7));
        let panicked = || Some(Err(Panicked("for a test".into())));
        let during = demoted.call::<()>(|_| panic!("for a test"));
        assert_eq!(during, panicked());
        assert_eq!(demoted.try_call::<()>(|_| panic!("for a test")), panicked());
        assert!(!demoted.handler.is_poisoned());
        assert_eq!(demoted.call(|number| *number), Some(Ok(7)));
        assert_eq!(demoted.try_take_back(), Some(Box::new(7)));
    }
}
