//! Requests to end: SIGTERM and SIGINT.
//!
//! Supervisors send both, or one of them twice, so signals within a second are one request. The first request asks
//! for an end in order, the second for one at once, and the third ends the process whatever it is doing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// Signals within this time after the first of a request belong to it.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// The requests to end so far.
#[derive(Debug, Default)]
pub struct Ending {
    asked: AtomicBool,
    urgent: AtomicBool,
}

impl Ending {
    /// Watches for signals from now on, on a thread of its own.
    ///
    /// # Errors
    /// When the system has no descriptor or no thread left.
    pub fn watch() -> io::Result<Arc<Self>> {
        let ending = Arc::new(Self::default());
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let shared = Arc::clone(&ending);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut requests = Requests::default();
                for _ in signals.forever() {
                    match requests.signal(Instant::now()) {
                        0 | 1 => shared.asked.store(true, Ordering::Relaxed),
                        2 => shared.urgent.store(true, Ordering::Relaxed),
                        _ => low_level::exit(1),
                    }
                }
            })?;
        Ok(ending)
    }

    /// Whether the end was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether it was asked for again: it is to be at once.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }
}

/// The requests that signals make up.
#[derive(Debug, Default)]
struct Requests {
    count: u32,
    /// When the last one began.
    began: Option<Instant>,
}

impl Requests {
    /// Takes in a signal at `now`; returns how many requests there were by then.
    fn signal(&mut self, now: Instant) -> u32 {
        let is_new = self
            .began
            .is_none_or(|began| now.saturating_duration_since(began) >= ONE_REQUEST);
        if is_new {
            self.began = Some(now);
            self.count = self.count.saturating_add(1);
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_within_a_second_are_one_request() {
        let start = Instant::now();
        let mut requests = Requests::default();
        let counts: Vec<u32> = [0, 1, 500, 999, 1000, 1001, 1999, 2500, 2600, 9000]
            .map(|millis| requests.signal(start + Duration::from_millis(millis)))
            .to_vec();
        assert_eq!(counts, [1, 1, 1, 1, 2, 2, 2, 3, 3, 4]);
    }
}
