//! Panics of code that is not the stack's, contained where it is called.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The panic that ended a call: its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Panicked(pub(crate) Box<str>);

/// Makes a call, which may panic. The process's panic hook has run by the time that this returns.
///
/// What the call changed stays as the panic left it: the callers use handlers on that panicked, and nothing of the
/// stack is changed within such a call but the buffers for its reply.
#[inline(always)]
pub(crate) fn contain<R>(call: impl FnOnce() -> R) -> Result<R, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| Panicked(message(payload)))
}

/// Returns what was panicked with, if that was a text. Drops it, which may panic in turn.
#[cold]
#[inline(never)]
fn message(payload: Box<dyn Any + Send>) -> Box<str> {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).into()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.as_str().into()
    } else {
        "no message".into()
    };
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // To drop that one could go on for ever.
        std::mem::forget(second);
    }
    message
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    #[test]
    fn a_panic_is_its_message() {
        assert_eq!(contain(|| 7), Ok(7));
        let text = |result: Result<(), Panicked>| result.unwrap_err().0.into_string();
        assert_eq!(text(contain(|| panic!("plain"))), "plain");
        assert_eq!(text(contain(|| panic!("number {}", 7))), "number 7");
        assert_eq!(text(contain(|| panic_any(7))), "no message");
    }

    #[test]
    fn what_panics_when_it_is_dropped_is_contained_too() {
        struct Bad;
        impl Drop for Bad {
            fn drop(&mut self) {
                panic_any(Bad);
            }
        }
        assert_eq!(
            contain(|| panic_any(Bad)),
            Err(Panicked("no message".into()))
        );
    }
}
