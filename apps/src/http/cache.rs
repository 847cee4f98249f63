//! The content cache: bounded by bytes, shared by all threads, without a lock on the way of a hit.
//!
//! [`SharedCache`] holds the only lasting strong references, so what it drops is gone for everybody at
//! once. Each worker keeps weak references of its own ([`super::fast`]) and comes here, with a lock that
//! it does not wait for, only for what it does not know. Recency is therefore not told by the order of
//! the list alone: a hit notes the time in the entry, and eviction looks at it.
//!
//! All times are microseconds of the loop's clock, which all workers share.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use bytes::Bytes;
use lru::LruCache;

use super::files::Identity;
use super::representation::Representation;

/// Age up to which an entry is served without a look at the file. Watched entries ([`super::watch`]) do not get that old.
const FRESH_MICROS: i64 = 700_000;
/// Older entries are never served without a look at the disk. With the time that the look takes, a
/// changed file is served changed within a second.
const USABLE_MICROS: i64 = 900_000;
/// If the request that went to look has not come back by then (it was refused, say), another goes.
const CLAIM_MICROS: i64 = 100_000;
/// Finer steps of recency are not worth a write to memory that all cores share.
const RECENCY_STEP_MICROS: i64 = 50_000;
/// Entries that one insertion may find used since they were placed, before it evicts one regardless.
const MAX_SECOND_CHANCES: usize = 32;
/// What an entry costs besides key, text and body: the structures, and the allocator's share.
const OVERHEAD_BYTES: usize = size_of::<Entry>() + size_of::<Slot>() + 128;
/// Bodies in memory may take this many times the budget. Content that is being sent when it is evicted
/// stays until then, and slow readers would otherwise decide how much of that there is.
const RESIDENT_FACTOR: usize = 2;
/// However small the cache, files up to this size are worth keeping if they fit at all.
const SMALL_FILE_BYTES: usize = 64 * 1024;

/// A file in memory.
#[derive(Debug)]
pub struct Entry {
    /// What is said of it.
    pub representation: Representation,
    /// Its content.
    pub body: Bytes,
    /// Which state of the file it was read from.
    pub identity: Identity,
    /// The file was so young when it was read that another change might not show in its identity.
    pub is_racy: bool,
    /// When the content is known to have been that of the file.
    validated_at: AtomicI64,
    /// When a request went to the slow path to look at the file.
    claimed_at: AtomicI64,
    /// When it was last served, roughly.
    last_used: AtomicI64,
    /// It is watched ([`super::watch`]), or waits for the next round to be.
    is_watched: AtomicBool,
}

/// Whether an entry may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it.
    Fresh,
    /// Serve it, but this one request should rather go and look at the file.
    Due,
    /// Look at the file first.
    Stale,
}

impl Entry {
    /// An entry read from the disk after `now`.
    pub fn new(
        representation: Representation,
        body: Bytes,
        identity: Identity,
        is_racy: bool,
        now: i64,
    ) -> Self {
        Self {
            representation,
            body,
            identity,
            is_racy,
            validated_at: AtomicI64::new(now),
            claimed_at: AtomicI64::new(i64::MIN),
            last_used: AtomicI64::new(now),
            is_watched: AtomicBool::new(false),
        }
    }

    /// Whether it may be served at `now`. [`Freshness::Due`] is told to one caller at a time.
    pub fn freshness(&self, now: i64) -> Freshness {
        let age = now.saturating_sub(self.validated_at.load(Ordering::Relaxed));
        if age < FRESH_MICROS {
            return Freshness::Fresh;
        }
        if age >= USABLE_MICROS {
            return Freshness::Stale;
        }
        let claimed_at = self.claimed_at.load(Ordering::Relaxed);
        if now.saturating_sub(claimed_at) < CLAIM_MICROS {
            return Freshness::Fresh;
        }
        let claim =
            self.claimed_at
                .compare_exchange(claimed_at, now, Ordering::Relaxed, Ordering::Relaxed);
        match claim {
            Ok(_) => Freshness::Due,
            Err(_) => Freshness::Fresh,
        }
    }

    /// Whether it may be served at `now` if nobody can look at the file.
    pub fn is_usable(&self, now: i64) -> bool {
        now.saturating_sub(self.validated_at.load(Ordering::Relaxed)) < USABLE_MICROS
    }

    /// Whether it is [`Freshness::Fresh`] without a claim.
    pub fn is_fresh(&self, now: i64) -> bool {
        now.saturating_sub(self.validated_at.load(Ordering::Relaxed)) < FRESH_MICROS
    }

    /// The file was seen unchanged after `now`.
    pub fn validated(&self, now: i64) {
        self.validated_at.fetch_max(now, Ordering::Relaxed);
    }

    /// It is served at `now`.
    pub fn used(&self, now: i64) {
        if now.saturating_sub(self.last_used.load(Ordering::Relaxed)) >= RECENCY_STEP_MICROS {
            self.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// Returns when it was last served, or read for a request.
    pub fn last_used(&self) -> i64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Takes the time of last use from `old`, which it replaces without a request.
    pub fn replaces(&self, old: &Self) {
        self.last_used.store(old.last_used(), Ordering::Relaxed);
    }

    /// Marks it as watched. Returns false if it was already.
    pub fn begin_watch(&self) -> bool {
        !self.is_watched.swap(true, Ordering::Relaxed)
    }

    /// Marks it as not watched.
    pub fn end_watch(&self) {
        self.is_watched.store(false, Ordering::Relaxed);
    }
}

/// The cache.
#[derive(Debug)]
pub struct SharedCache {
    /// In bytes.
    budget: usize,
    contents: Mutex<Contents>,
    /// The bytes of all bodies that are in memory, evicted ones that are being sent included.
    resident: Arc<AtomicUsize>,
}

/// Memory for a body, counted as resident until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    len: usize,
    resident: Arc<AtomicUsize>,
}

impl Reservation {
    /// The body, for which the memory is taken until nobody holds it any more.
    pub fn fill(self, bytes: Vec<u8>) -> Bytes {
        debug_assert_eq!(bytes.len(), self.len);
        Bytes::from_owner(ResidentBody {
            bytes,
            _reservation: self,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.resident.fetch_sub(self.len, Ordering::Relaxed);
    }
}

struct ResidentBody {
    bytes: Vec<u8>,
    /// After the bytes, which go first.
    _reservation: Reservation,
}

impl AsRef<[u8]> for ResidentBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

type Paths = LruCache<Box<[u8]>, Slot, ahash::RandomState>;

#[derive(Debug)]
struct Contents {
    /// By path as from [`super::target::file_path`].
    paths: Paths,
    /// The cost of all of them.
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    entry: Arc<Entry>,
    cost: usize,
    /// When it came to the front of the list.
    placed_at: i64,
}

impl SharedCache {
    /// A cache that takes at most `budget` bytes. Content that is being sent when it is evicted stays in
    /// memory until then; with it, all bodies together take at most twice the budget.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            contents: Mutex::new(Contents {
                paths: LruCache::unbounded_with_hasher(ahash::RandomState::new()),
                bytes: 0,
            }),
            resident: Arc::default(),
        }
    }

    /// Memory for a body of `len` bytes, unless slow readers hold too much already.
    pub fn reserve(&self, len: usize) -> Option<Reservation> {
        // Counts first, so that two threads cannot both take the last of it.
        let reservation = Reservation {
            len,
            resident: self.resident.clone(),
        };
        let before = self.resident.fetch_add(len, Ordering::Relaxed);
        let limit = self.budget.saturating_mul(RESIDENT_FACTOR);
        (before.saturating_add(len) <= limit).then_some(reservation)
    }

    /// Files up to this size are kept: a few large ones must not push out everything else.
    pub fn max_file_bytes(&self) -> usize {
        (self.budget / 8).max(SMALL_FILE_BYTES.min(self.budget))
    }

    /// Finds an entry if the cache can be had without waiting.
    pub fn try_get(&self, path: &[u8]) -> Option<Arc<Entry>> {
        let contents = match self.contents.try_lock() {
            Ok(contents) => contents,
            Err(TryLockError::Poisoned(broken)) => broken.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        contents.get(path)
    }

    /// Finds an entry.
    pub fn get(&self, path: &[u8]) -> Option<Arc<Entry>> {
        self.lock().get(path)
    }

    /// Puts an entry in the place of what is there. Says whether it fits at all.
    pub fn insert(&self, path: &[u8], entry: Arc<Entry>) -> bool {
        let cost = cost(path, &entry);
        if cost > self.budget {
            self.remove(path);
            return false;
        }
        let mut contents = self.lock();
        let replaced = contents.remove(path);
        let evicted = contents.make_room(self.budget - cost);
        contents.bytes += cost;
        let placed_at = entry.last_used.load(Ordering::Relaxed);
        let slot = Slot {
            entry,
            cost,
            placed_at,
        };
        contents.paths.put(path.into(), slot);
        // Freeing large bodies takes time, which others need not wait for.
        drop(contents);
        drop((replaced, evicted));
        true
    }

    /// Forgets a path.
    pub fn remove(&self, path: &[u8]) {
        let removed = self.lock().remove(path);
        drop(removed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut contents = self.lock();
        contents.bytes = 0;
        let empty = LruCache::unbounded_with_hasher(ahash::RandomState::new());
        let removed = std::mem::replace(&mut contents.paths, empty);
        drop(contents);
        drop(removed);
    }

    /// The number of entries and the bytes that they cost.
    pub fn size(&self) -> (usize, usize) {
        let contents = self.lock();
        (contents.paths.len(), contents.bytes)
    }

    /// A panic cannot leave the contents half changed in a way that matters: they are only a cache.
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Contents {
    fn get(&self, path: &[u8]) -> Option<Arc<Entry>> {
        self.paths.peek(path).map(|slot| slot.entry.clone())
    }

    fn remove(&mut self, path: &[u8]) -> Option<Slot> {
        let slot = self.paths.pop(path)?;
        self.bytes -= slot.cost;
        Some(slot)
    }

    /// Evicts from the end of the list until at most `limit` bytes are left. What was used since it was
    /// placed goes to the front instead; the bound keeps one insertion from walking the whole list.
    fn make_room(&mut self, limit: usize) -> Vec<Slot> {
        let mut evicted = Vec::new();
        let mut second_chances = MAX_SECOND_CHANCES;
        while self.bytes > limit {
            let Some((path, mut slot)) = self.paths.pop_lru() else {
                break;
            };
            let last_used = slot.entry.last_used.load(Ordering::Relaxed);
            if last_used > slot.placed_at && second_chances > 0 {
                second_chances -= 1;
                slot.placed_at = last_used;
                self.paths.put(path, slot);
            } else {
                self.bytes -= slot.cost;
                evicted.push(slot);
            }
        }
        evicted
    }
}

fn cost(path: &[u8], entry: &Entry) -> usize {
    path.len() + entry.body.len() + entry.representation.text_bytes() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(len: usize, now: i64) -> Arc<Entry> {
        let representation = Representation::new("a", len as u64, "\"t\"".into(), None);
        let body = Bytes::from(vec![0; len]);
        Arc::new(Entry::new(
            representation,
            body,
            Identity::default(),
            false,
            now,
        ))
    }

    fn cost_of(len: usize) -> usize {
        cost(b"a", &entry(len, 0))
    }

    #[test]
    fn the_oldest_goes_first() {
        let cache = SharedCache::new(3 * cost_of(1000));
        for path in [b"a", b"b", b"c"] {
            assert!(cache.insert(path, entry(1000, 0)));
        }
        cache.insert(b"d", entry(1000, 1));
        assert!(cache.get(b"a").is_none());
        assert!(cache.get(b"b").is_some() && cache.get(b"d").is_some());
        assert_eq!(cache.size(), (3, 3 * cost_of(1000)));
    }

    #[test]
    fn what_was_served_stays() {
        let cache = SharedCache::new(3 * cost_of(1000));
        for path in [b"a", b"b", b"c"] {
            cache.insert(path, entry(1000, 0));
        }
        cache.get(b"a").unwrap().used(RECENCY_STEP_MICROS);
        cache.insert(b"d", entry(1000, RECENCY_STEP_MICROS));
        assert!(cache.get(b"a").is_some() && cache.get(b"b").is_none());
        // Its second chance is spent.
        cache.insert(b"e", entry(1000, RECENCY_STEP_MICROS));
        cache.insert(b"f", entry(1000, RECENCY_STEP_MICROS));
        assert!(cache.get(b"a").is_none());
    }

    #[test]
    fn an_evicted_or_replaced_entry_is_gone_for_weak_references() {
        let cache = SharedCache::new(2 * cost_of(1000));
        cache.insert(b"a", entry(1000, 0));
        let old = Arc::downgrade(&cache.get(b"a").unwrap());
        cache.insert(b"a", entry(900, 0));
        assert!(old.upgrade().is_none());
        let new = Arc::downgrade(&cache.get(b"a").unwrap());
        cache.remove(b"a");
        assert!(new.upgrade().is_none());
        assert_eq!(cache.size(), (0, 0));
        cache.insert(b"a", entry(1000, 0));
        let last = Arc::downgrade(&cache.get(b"a").unwrap());
        cache.clear();
        assert!(last.upgrade().is_none());
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_replaces_nothing_newer() {
        let cache = SharedCache::new(cost_of(1000));
        cache.insert(b"a", entry(1000, 0));
        assert!(!cache.insert(b"a", entry(1001, 0)));
        assert!(cache.get(b"a").is_none());
        let none = SharedCache::new(0);
        assert!(!none.insert(b"a", entry(0, 0)));
        assert_eq!(none.max_file_bytes(), 0);
    }

    #[test]
    fn limits_of_file_sizes() {
        assert_eq!(SharedCache::new(64 << 20).max_file_bytes(), 8 << 20);
        assert_eq!(SharedCache::new(100 << 10).max_file_bytes(), 64 << 10);
        assert_eq!(SharedCache::new(1000).max_file_bytes(), 1000);
    }

    #[test]
    fn evicted_bodies_count_until_they_are_sent() {
        let cache = SharedCache::new(1000);
        let body = cache.reserve(1500).unwrap().fill(vec![7; 1500]);
        let being_sent = body.slice(100..101);
        drop(body);
        assert!(cache.reserve(501).is_none());
        // What was refused does not count.
        assert!(cache.reserve(500).is_some());
        assert_eq!(being_sent, [7][..]);
        drop(being_sent);
        assert!(cache.reserve(2000).is_some());
        assert!(SharedCache::new(0).reserve(0).is_some());
    }

    #[test]
    fn a_worker_does_not_wait() {
        let cache = SharedCache::new(1 << 20);
        cache.insert(b"a", entry(1, 0));
        let lock = cache.lock();
        assert!(cache.try_get(b"a").is_none());
        drop(lock);
        assert!(cache.try_get(b"a").is_some());
    }

    #[test]
    fn one_request_goes_to_look() {
        let entry = entry(1, 0);
        assert_eq!(entry.freshness(FRESH_MICROS - 1), Freshness::Fresh);
        assert_eq!(entry.freshness(FRESH_MICROS), Freshness::Due);
        assert_eq!(entry.freshness(FRESH_MICROS), Freshness::Fresh);
        // It did not come back.
        assert_eq!(entry.freshness(FRESH_MICROS + CLAIM_MICROS), Freshness::Due);
        assert!(entry.is_usable(USABLE_MICROS - 1) && !entry.is_usable(USABLE_MICROS));
        assert_eq!(entry.freshness(USABLE_MICROS), Freshness::Stale);
        entry.validated(USABLE_MICROS);
        assert_eq!(entry.freshness(USABLE_MICROS), Freshness::Fresh);
        // An older look does not take it back.
        entry.validated(0);
        assert_eq!(entry.freshness(USABLE_MICROS), Freshness::Fresh);
    }

    proptest! {
        #[test]
        fn the_budget_holds(
            budget in 0_usize..20_000,
            operations in proptest::collection::vec((0_u8..20, 0_usize..6000, 0_u8..3), 0..200),
        ) {
            let cache = SharedCache::new(budget);
            for (time, (name, len, operation)) in operations.into_iter().enumerate() {
                let now = time as i64 * RECENCY_STEP_MICROS;
                match operation {
                    0 => { cache.insert(&[name], entry(len, now)); }
                    1 => { cache.get(&[name]).inspect(|entry| entry.used(now)); }
                    _ => cache.remove(&[name]),
                }
                let contents = cache.lock();
                let sum: usize = contents.paths.iter().map(|(path, slot)| cost(path, &slot.entry)).sum();
                prop_assert_eq!(sum, contents.bytes);
                prop_assert!(sum <= budget);
            }
        }
    }
}
