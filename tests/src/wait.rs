//! Owns waiting: polling with a bound.

use std::time::{Duration, Instant};

/// How long anything that should happen soon may take before the test fails. Generous on purpose:
/// test machines are busy, and nothing here measures speed.
pub const SOON: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(10);

/// Polls `probe` until it gives a value, for at most `limit`.
pub fn poll_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Polls `probe` until it gives a value, for at most [`SOON`]; panics naming `what` otherwise.
pub fn expect_soon<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    poll_for(SOON, probe).unwrap_or_else(|| panic!("did not happen within {SOON:?}: {what}"))
}

/// Polls `condition` until it holds, for at most [`SOON`]; panics naming `what` otherwise.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    expect_soon(what, || condition().then_some(()));
}
