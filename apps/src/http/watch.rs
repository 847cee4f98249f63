//! Looks at the files of cached entries beside the requests, so that no request has to wait for that.
//!
//! The slow path adds every entry that it puts into the cache, or finds unchanged, to the watch ([`Watch::join`]). A
//! separate thread ([`Watcher`]) looks at the files of all of them in rounds, exactly as the slow path does for a request
//! ([`Slow`]), so that the entries stay young enough to be served at once. An entry leaves when it was not used for a
//! while, or when the watch is full and others were used later. Its file is then looked at for the next request, as
//! without a watch. The same happens if the thread is held up or ends, so freshness does not depend on the thread.

use std::cmp::Reverse;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::cache::Entry;
use super::slow::Slow;

/// The most entries that a round looks at: those that were used last. Together with the time between rounds this bounds
/// the looks per second, however large the cache is.
const WATCHED_MAX: usize = 512;
/// The most entries that may wait for the next round: as many as a round may have to read again, and as many others.
const JOINING_MAX: usize = 2 * WATCHED_MAX;
/// Time between two rounds. Entries are served without a look for more than twice as long, so a round may be late.
const ROUND_EVERY: Duration = Duration::from_millis(300);
/// The thread rests for at least this many times the duration of a round, so that it does not load a slow disk or file
/// system.
const REST_TIMES: u32 = 4;
/// Time for which an entry is watched after its last use, in microseconds.
const WATCHED_MICROS: i64 = 600_000_000;

/// Entries that are to be watched from the next round on.
#[derive(Debug, Default)]
pub struct Watch {
    joining: Mutex<Joining>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Joining {
    entries: Vec<Watched>,
    stopped: bool,
}

#[derive(Debug)]
struct Watched {
    /// The entry's key in the cache.
    path: Box<[u8]>,
    entry: Weak<Entry>,
}

/// Entries that are watched.
#[derive(Debug, Default)]
pub struct Rounds {
    entries: Vec<Watched>,
}

/// The thread that looks. It is told to end when this is dropped; the drop does not wait for a look in progress.
#[derive(Debug)]
pub struct Watcher {
    slow: Arc<Slow>,
}

impl Watch {
    /// Adds the entry of `path` to the watch, if it is not already in it.
    pub fn join(&self, path: &[u8], entry: &Arc<Entry>) {
        if !entry.begin_watch() {
            return;
        }
        let mut joining = self.lock();
        if joining.entries.len() >= JOINING_MAX {
            // The next request that looks at the file tries again.
            entry.end_watch();
            return;
        }
        joining.entries.push(Watched {
            path: path.into(),
            entry: Arc::downgrade(entry),
        });
        drop(joining);
        self.changed.notify_one();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Waits until an entry wants to join. Returns false if the watch is over.
    fn wait_for_one(&self) -> bool {
        let joining = self
            .changed
            .wait_while(self.lock(), |joining| {
                !joining.stopped && joining.entries.is_empty()
            })
            .unwrap_or_else(PoisonError::into_inner);
        !joining.stopped
    }

    /// Lets `time` pass. Returns false if the watch is over.
    fn rest(&self, time: Duration) -> bool {
        let (joining, _) = self
            .changed
            .wait_timeout_while(self.lock(), time, |joining| !joining.stopped)
            .unwrap_or_else(PoisonError::into_inner);
        !joining.stopped
    }

    fn lock(&self) -> MutexGuard<'_, Joining> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rounds {
    /// Looks at the files of all entries that were used lately; `now` is the loop's time, in microseconds.
    pub fn look(&mut self, watch: &Watch, slow: &Slow, now: i64) {
        self.entries.append(&mut watch.lock().entries);
        self.entries.retain(|watched| {
            let Some(entry) = watched.entry.upgrade() else {
                return false;
            };
            let stays = now.saturating_sub(entry.last_used()) < WATCHED_MICROS;
            if !stays {
                entry.end_watch();
            }
            stays
        });
        if self.entries.len() > WATCHED_MAX {
            let last_used = |watched: &Watched| {
                let entry = watched.entry.upgrade();
                Reverse(entry.map_or(i64::MIN, |entry| entry.last_used()))
            };
            self.entries.sort_by_cached_key(last_used);
            for watched in self.entries.drain(WATCHED_MAX..) {
                watched.entry.upgrade().inspect(|entry| entry.end_watch());
            }
        }
        if !self.entries.is_empty() {
            slow.follow_root(now);
        }
        for watched in &self.entries {
            // An entry that was evicted or replaced is skipped: the one in the cache has joined by itself.
            if watched.entry.strong_count() > 0 {
                slow.look_beside(&watched.path, now);
            }
        }
    }

    /// Returns whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Watcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// Returns the system's error if it cannot start a thread.
    pub fn start(slow: Arc<Slow>) -> io::Result<Self> {
        let its = slow.clone();
        std::thread::Builder::new()
            .name("ilet-watch".into())
            .spawn(move || run(&its))?;
        Ok(Self { slow })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.slow.watch().stop();
    }
}

fn run(slow: &Slow) {
    let watch = slow.watch();
    let mut rounds = Rounds::default();
    let mut pause = ROUND_EVERY;
    while (!rounds.is_empty() || watch.wait_for_one()) && watch.rest(pause) {
        let begun_at = Instant::now();
        // There is a time: the entries were read for requests, which told it.
        if let Some(now) = slow.loop_time() {
            rounds.look(watch, slow, now);
        }
        pause = ROUND_EVERY.max(begun_at.elapsed() * REST_TIMES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Site;

    #[test]
    fn the_thread_ends_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Arc::new(Slow::new(Site::open(dir.path(), 1000).unwrap()));
        let watcher = Watcher::start(slow.clone()).unwrap();
        assert_eq!(Arc::strong_count(&slow), 3);
        drop(watcher);
        // The thread drops its reference when it ends.
        while Arc::strong_count(&slow) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
