//! File descriptors: how many there may be, and how many of them may be files that are being sent.
//!
//! A file that is streamed is held open for as long as its reader takes. Without a bound, slow readers
//! would leave no descriptor to look at other files with, not even at those in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Left for the network, for files that are read into the cache and for looks at files: 17 with one queue, three more for
/// each other one, and some for each thread that opens files.
const RESERVED: u64 = 128;
/// Left at least, where the limit allows few in all.
const RESERVED_MIN: u64 = 32;

/// Allows this process as many descriptors as the system lets it have without privileges.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files: {error}; fewer can be sent at a time");
    }
}

/// How many files may be sent at a time, within the limit of this process.
pub fn streams_allowed() -> u64 {
    within(getrlimit(Resource::Nofile).current)
}

/// The streams that a `limit` allows: a quarter of a small one is reserved, or more. No limit is `None`.
fn within(limit: Option<u64>) -> u64 {
    limit.map_or(u64::MAX, |limit| {
        let reserved = limit.div_ceil(4).clamp(RESERVED_MIN, RESERVED);
        limit.saturating_sub(reserved)
    })
}

/// Counts the files that are being sent.
#[derive(Debug)]
pub struct Streams {
    open: Arc<AtomicU64>,
    max: u64,
}

/// Permission to hold one file open, until it is dropped.
#[derive(Debug)]
pub struct StreamPermit {
    open: Arc<AtomicU64>,
}

impl Streams {
    /// At most `max` at a time.
    pub fn new(max: u64) -> Self {
        Self {
            open: Arc::default(),
            max,
        }
    }

    /// Another one, if it may be.
    pub fn start(&self) -> Option<StreamPermit> {
        // Counts first, so that two threads cannot both take the last one.
        let permit = StreamPermit {
            open: self.open.clone(),
        };
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        (before < self.max).then_some(permit)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_left() {
        for (limit, streams) in [
            (Some(0), 0),
            (Some(1), 0),
            (Some(32), 0),
            (Some(64), 32),
            (Some(256), 192),
            (Some(1024), 896),
            (None, u64::MAX),
        ] {
            assert_eq!(within(limit), streams);
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        raise_limit();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(
            (after.current, after.maximum),
            (before.maximum, before.maximum)
        );
    }

    #[test]
    fn permits_come_back() {
        let streams = Streams::new(2);
        let first = streams.start().unwrap();
        let _second = streams.start().unwrap();
        assert!(streams.start().is_none());
        // What was refused counts no longer.
        assert!(streams.start().is_none());
        drop(first);
        assert!(streams.start().is_some());
    }
}
