//! Looks at the files of cached entries beside the requests, so that no request has to wait for that.
//!
//! The slow path has every entry that it puts into the cache, or finds unchanged, [join](Watch::join) the watch. A thread
//! of its own ([`Watcher`]) looks at all of them in rounds, exactly as the slow path would for a request ([`Slow`]), so
//! that they stay young enough to be served at once. Entries leave when they were not used for a while, or when others
//! were used later and the watch is full: then a request looks, as ever. Whatever holds up the thread, or ends it, has
//! the same effect, so freshness does not depend on it.

use std::cmp::Reverse;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::cache::Entry;
use super::slow::Slow;

/// Entries that are looked at in a round, at most: those that were used last. With the time between rounds this bounds
/// the looks per second, however large the cache is.
const WATCHED_MAX: usize = 512;
/// Entries that may wait for the next round, at most: as many as a round has to read again, and as many others.
const JOINING_MAX: usize = 2 * WATCHED_MAX;
/// Time between two rounds. Entries are served without a question for more than twice as long, so a round may be late.
const ROUND_EVERY: Duration = Duration::from_millis(300);
/// The thread rests so many times as long as a round took: a slow disk, or a slow file system, does not get busy.
const REST_TIMES: u32 = 4;
/// An entry is watched for so long after it was used last, in microseconds.
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
    /// In the cache.
    path: Box<[u8]>,
    entry: Weak<Entry>,
}

/// Entries that are watched.
#[derive(Debug, Default)]
pub struct Rounds {
    entries: Vec<Watched>,
}

/// The thread that looks; it ends when this is dropped. A look that it is in the middle of is not waited for.
#[derive(Debug)]
pub struct Watcher {
    slow: Arc<Slow>,
}

impl Watch {
    /// Has the entry of `path` watched, if it is not already.
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
            // Not if it was evicted or replaced: what is in the cache joined by itself.
            if watched.entry.strong_count() > 0 {
                slow.look_beside(&watched.path, now);
            }
        }
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Watcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
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
        // An entry was read for a request, which told the time.
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
        // Ends when the thread does.
        while Arc::strong_count(&slow) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
