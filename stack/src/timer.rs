//! The timing wheel: one deadline per flow, O(1) to set, move, cancel and expire. No clock.
//!
//! Four levels of 64 slots over ticks of 1,024 µs (Varghese and Lauck, "Hashed and Hierarchical Timing
//! Wheels", 1987, scheme 6). Deadlines are rounded up to a tick, so a timer is never early. A deadline
//! beyond the wheel's reach (4.7 hours) fires at the reach; callers look at their own deadline again
//! and set it anew, which is also how a deadline that moved back costs nothing until it is due.

use crate::Instant;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;
const TICK_BITS: u32 = 10;
/// Ticks that the wheel can look ahead.
const REACH_TICKS: u64 = 1 << (SLOT_BITS * LEVELS as u32);
const NONE: u32 = u32::MAX;

/// Deadlines by key, where a key is a small number (a flow's slot).
#[derive(Debug)]
pub struct TimerWheel {
    /// First entry of each slot's list.
    heads: [[u32; SLOTS]; LEVELS],
    /// One bit per slot: its list is not empty.
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
    /// Everything up to and including this tick has expired.
    tick: u64,
    /// Entries that are due, not yet taken by [`pop_expired`](Self::pop_expired).
    due: Vec<u32>,
    armed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Modulo 2^32: it is never further than the wheel's reach from the wheel's own.
    tick: u32,
    previous: u32,
    next: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Idle,
    Slot { level: u8, slot: u8 },
    Due,
}

const IDLE: Entry = Entry {
    tick: 0,
    previous: NONE,
    next: NONE,
    place: Place::Idle,
};

impl TimerWheel {
    /// Bytes of a timer.
    pub const BYTES_PER_TIMER: usize = size_of::<Entry>();

    /// A wheel that starts at `now` and has room for `capacity` timers before it allocates.
    pub fn new(now: Instant, capacity: usize) -> Self {
        Self {
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            entries: Vec::with_capacity(capacity),
            tick: floor_tick(now),
            due: Vec::with_capacity(capacity.min(4096)),
            armed: 0,
        }
    }

    /// Sets the deadline of `key`, in place of the one it has.
    pub fn arm(&mut self, key: u32, deadline: Instant) {
        self.cancel(key);
        if key as usize >= self.entries.len() {
            self.entries.resize(key as usize + 1, IDLE);
        }
        let earliest = self.tick + 1;
        let latest = self.tick + REACH_TICKS - 1;
        let tick = ceil_tick(deadline).clamp(earliest, latest);
        self.entries[key as usize].tick = tick as u32;
        self.armed += 1;
        self.link(key);
    }

    /// Forgets the deadline of `key`, if it has one.
    pub fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get(key as usize).copied() else {
            return;
        };
        match entry.place {
            Place::Idle => return,
            // The due list is popped from its end and looks at the place again.
            Place::Due => {}
            Place::Slot { level, slot } => {
                let (level, slot) = (usize::from(level), usize::from(slot));
                match entry.previous {
                    NONE => self.heads[level][slot] = entry.next,
                    previous => self.entries[previous as usize].next = entry.next,
                }
                if entry.next != NONE {
                    self.entries[entry.next as usize].previous = entry.previous;
                }
                if self.heads[level][slot] == NONE {
                    self.occupied[level] &= !(1 << slot);
                }
            }
        }
        self.entries[key as usize].place = Place::Idle;
        self.armed -= 1;
    }

    /// A key whose deadline has passed at `now`; it is no longer armed. `None` when there is no more.
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        loop {
            while let Some(key) = self.due.pop() {
                // Cancelled or armed again since it became due?
                if self.entries[key as usize].place == Place::Due {
                    self.entries[key as usize].place = Place::Idle;
                    self.armed -= 1;
                    return Some(key);
                }
            }
            let target = floor_tick(now);
            if self.tick >= target {
                return None;
            }
            if self.armed == 0 {
                self.tick = target;
                return None;
            }
            self.tick += 1;
            self.turn();
        }
    }

    /// A time before which nothing expires; `None` if nothing is armed. Never later than the earliest
    /// deadline rounded up to a tick, and at most one slot of its level earlier.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(Instant::from_micros(0));
        }
        (0..LEVELS)
            .filter(|level| self.occupied[*level] != 0)
            .map(|level| {
                let shift = SLOT_BITS * level as u32;
                let position = self.tick >> shift;
                let rotated =
                    self.occupied[level].rotate_right((position as u32 + 1) % SLOTS as u32);
                let slots_ahead = u64::from(rotated.trailing_zeros()) + 1;
                let tick = (position + slots_ahead) << shift;
                Instant::from_micros((tick << TICK_BITS) as i64)
            })
            .min()
    }

    /// Timers that are set.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Carries out the tick that `self.tick` just became: cascades, then collects what is due.
    fn turn(&mut self) {
        for level in (1..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if self.tick.trailing_zeros() >= shift {
                let slot = (self.tick >> shift) as usize % SLOTS;
                let mut key = self.take_slot(level, slot);
                while key != NONE {
                    let next = self.entries[key as usize].next;
                    self.link(key);
                    key = next;
                }
            }
        }
        let mut key = self.take_slot(0, self.tick as usize % SLOTS);
        while key != NONE {
            let entry = &mut self.entries[key as usize];
            entry.place = Place::Due;
            self.due.push(key);
            key = entry.next;
        }
    }

    fn take_slot(&mut self, level: usize, slot: usize) -> u32 {
        self.occupied[level] &= !(1 << slot);
        std::mem::replace(&mut self.heads[level][slot], NONE)
    }

    /// Puts an entry into the slot for its tick: the lowest level whose span covers the distance.
    fn link(&mut self, key: u32) {
        let tick = self.entries[key as usize].tick;
        // Due in this very tick: only while cascading.
        let distance = tick.wrapping_sub(self.tick as u32);
        let level = (0..LEVELS - 1)
            .find(|level| distance < 1 << (SLOT_BITS * (*level as u32 + 1)))
            .unwrap_or(LEVELS - 1);
        let slot = (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let head = self.heads[level][slot];
        if head != NONE {
            self.entries[head as usize].previous = key;
        }
        let entry = &mut self.entries[key as usize];
        entry.previous = NONE;
        entry.next = head;
        entry.place = Place::Slot {
            level: level as u8,
            slot: slot as u8,
        };
        self.heads[level][slot] = key;
        self.occupied[level] |= 1 << slot;
    }
}

fn floor_tick(now: Instant) -> u64 {
    (now.total_micros().max(0) as u64) >> TICK_BITS
}

fn ceil_tick(deadline: Instant) -> u64 {
    let micros = deadline.total_micros().max(0) as u64;
    micros.div_ceil(1 << TICK_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn fires_once_and_not_early() {
        let mut wheel = TimerWheel::new(at(0), 4);
        wheel.arm(3, at(5_000));
        assert_eq!(wheel.pop_expired(at(4_999)), None);
        assert_eq!(wheel.pop_expired(at(6_200)), Some(3));
        assert_eq!(wheel.pop_expired(at(1_000_000)), None);
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_due_timer_can_still_be_cancelled_or_moved() {
        let mut wheel = TimerWheel::new(at(0), 4);
        for key in 0..3 {
            wheel.arm(key, at(1_000));
        }
        let first = wheel.pop_expired(at(10_000)).unwrap();
        let others: Vec<u32> = (0..3).filter(|key| *key != first).collect();
        wheel.cancel(others[0]);
        wheel.arm(others[1], at(50_000));
        assert_eq!(wheel.pop_expired(at(10_000)), None);
        assert_eq!(wheel.pop_expired(at(60_000)), Some(others[1]));
    }

    proptest! {
        /// Against a sorted map: nothing early, nothing lost, nothing more than a tick late.
        #[test]
        fn behaves_like_a_sorted_map(
            start in 0i64..1 << 40,
            steps in prop::collection::vec((0u32..24, 0i64..40_000_000_000, 0i64..30_000_000, 0u8..4), 1..150),
        ) {
            let mut now = start;
            let mut wheel = TimerWheel::new(at(now), 0);
            let mut model = BTreeMap::new();
            for (key, delay, advance, action) in steps {
                match action {
                    0 => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    1 | 2 => {
                        // Short and long delays alike.
                        let delay = if action == 1 { delay % 100_000 } else { delay };
                        let deadline = now + delay.min(((REACH_TICKS - 2) << TICK_BITS) as i64);
                        wheel.arm(key, at(deadline));
                        model.insert(key, deadline);
                    }
                    _ => now += advance,
                }
                if let (Some(next), Some(earliest)) = (wheel.next_deadline(), model.values().min()) {
                    prop_assert!(next.total_micros() <= (*earliest).max(now) + 2048);
                }
                prop_assert_eq!(wheel.next_deadline().is_none(), model.is_empty());
                while let Some(key) = wheel.pop_expired(at(now)) {
                    let deadline = model.remove(&key).expect("fired a timer that is not set");
                    prop_assert!(deadline <= now);
                }
                prop_assert!(model.values().all(|deadline| *deadline > now - 2048));
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
