//! Connections in TIME-WAIT (RFC 9293 section 3.6.1): what is left of a connection that we closed first, in
//! a bounded table of its own. When it is full the oldest give way.

use std::collections::VecDeque;

use super::segment::PeerOptions;
use crate::flow::{FlowId, FlowTable};
use crate::wire::FlowKey;
use crate::{Duration, Instant};

/// How long an entry stays: twice a maximum segment lifetime of 30 s, as common stacks have it (RFC 9293
/// section 3.4.2 would have 2 minutes for one).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Time between two answers of an entry, at least (RFC 5961 section 7). Peers that repeat their last segment wait longer,
/// since their timers double: after one that comes too early the next one is answered.
const ANSWER_PAUSE: Duration = Duration::from_millis(250);

/// What is still known of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed {
    /// The number behind our FIN.
    pub(super) snd_nxt: u32,
    /// The number behind the peer's FIN.
    pub(super) rcv_nxt: u32,
    /// The window that was announced last, as it is in the header.
    pub(super) window: u16,
}

/// A handshake of a new connection of the same ends: as long as there is an entry, it may as well remember that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reopening {
    pub(super) peer_isn: u32,
    pub(super) isn: u32,
    pub(super) peer: PeerOptions,
}

/// A connection in TIME-WAIT.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) id: FlowId,
    pub(super) closed: Closed,
    pub(super) reopening: Option<Reopening>,
}

#[derive(Debug)]
struct Entry {
    closed: Closed,
    reopening: Option<Reopening>,
    until: Instant,
    /// When it may acknowledge something again, and when it may answer a SYN. These are two limits: a peer that opens
    /// a new connection does not wait for old segments.
    acknowledges_from: Instant,
    answers_syns_from: Instant,
}

/// The connections in TIME-WAIT of one core.
#[derive(Debug)]
pub(super) struct TimeWait {
    entries: FlowTable<Entry>,
    /// Oldest first. Entries that are gone stay here until it is their turn, or there are too many of them.
    order: VecDeque<FlowId>,
    max: usize,
}

impl TimeWait {
    pub(super) fn new(max: usize, seed: u64) -> Self {
        Self {
            entries: FlowTable::new(max, seed),
            order: VecDeque::with_capacity(2 * max),
            max,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a connection. Returns whether another one had to give way.
    pub(super) fn enter(&mut self, key: FlowKey, closed: Closed, now: Instant) -> bool {
        let evicts = !self.entries.has_room();
        while !self.entries.has_room() {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.entries.remove(oldest);
        }
        if self.order.len() >= 2 * self.max {
            let entries = &self.entries;
            self.order.retain(|id| entries.get(*id).is_some());
        }
        let until = now + TIME_WAIT;
        if let Ok(id) = self.entries.insert(
            key,
            Entry {
                closed,
                reopening: None,
                until,
                acknowledges_from: now,
                answers_syns_from: now,
            },
        ) {
            self.order.push_back(id);
        }
        evicts
    }

    /// The connection between these ends, if there was one lately.
    pub(super) fn find(&self, key: &FlowKey) -> Option<Found> {
        let id = self.entries.find(key)?;
        let entry = self.entries.get(id)?;
        Some(Found {
            id,
            closed: entry.closed,
            reopening: entry.reopening,
        })
    }

    /// Begins a new connection of the same ends. Returns whether its SYN may be answered now; if not, the entry stays as
    /// it was.
    pub(super) fn reopen(&mut self, id: FlowId, reopening: Reopening, now: Instant) -> bool {
        let Some((_, entry)) = self.entries.get_mut(id) else {
            return false;
        };
        let may_answer = allows(&mut entry.answers_syns_from, now);
        if may_answer {
            entry.reopening = Some(reopening);
        }
        may_answer
    }

    /// Returns whether something old may be acknowledged now. The caller does so.
    pub(super) fn may_acknowledge(&mut self, id: FlowId, now: Instant) -> bool {
        self.entries
            .get_mut(id)
            .is_some_and(|(_, entry)| allows(&mut entry.acknowledges_from, now))
    }

    /// The peer has not heard that we know: the time begins again.
    pub(super) fn restart(&mut self, id: FlowId, now: Instant) {
        if let Some((_, entry)) = self.entries.get_mut(id) {
            entry.until = now + TIME_WAIT;
        }
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        self.entries.remove(id);
    }

    /// Removes entries whose time is over, looking at `budget` of them at most.
    pub(super) fn expire(&mut self, budget: usize, now: Instant) {
        for _ in 0..budget {
            let Some(oldest) = self.order.front().copied() else {
                return;
            };
            match self.entries.get(oldest).map(|entry| entry.until) {
                Some(until) if until > now => {
                    // One that began again may hide younger ones, for as long as it stays itself.
                    if !self.is_over_behind(now) {
                        return;
                    }
                    self.order.pop_front();
                    self.order.push_back(oldest);
                }
                over => {
                    self.order.pop_front();
                    if over.is_some() {
                        self.entries.remove(oldest);
                    }
                }
            }
        }
    }

    /// A time before which no entry's time is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let oldest = self.order.front()?;
        // One that is gone is taken off the queue at once.
        Some(
            self.entries
                .get(*oldest)
                .map_or(Instant::ZERO, |entry| entry.until),
        )
    }

    /// Whether the time of the second oldest is over, or it is gone.
    fn is_over_behind(&self, now: Instant) -> bool {
        self.order
            .get(1)
            .is_some_and(|id| self.entries.get(*id).is_none_or(|entry| entry.until <= now))
    }
}

/// Returns whether an answer may be sent now; the next one may be sent after a pause.
fn allows(from: &mut Instant, now: Instant) -> bool {
    let allows = *from <= now;
    if allows {
        *from = now + ANSWER_PAUSE;
    }
    allows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer_port: u16) -> FlowKey {
        FlowKey::between(
            ([192, 0, 2, 1], 80).into(),
            ([192, 0, 2, 2], peer_port).into(),
        )
    }

    fn closed() -> Closed {
        Closed {
            snd_nxt: 1,
            rcv_nxt: 2,
            window: 3,
        }
    }

    fn at(secs: i64) -> Instant {
        Instant::from_secs(secs)
    }

    #[test]
    fn an_entry_stays_a_minute_after_the_last_fin() {
        let mut table = TimeWait::new(4, 1);
        table.enter(key(1), closed(), at(0));
        table.enter(key(2), closed(), at(10));
        let first = table.find(&key(1)).unwrap().id;
        table.restart(first, at(30));
        for (secs, one, two) in [
            (59, true, true),
            (70, true, false),
            (89, true, false),
            (90, false, false),
        ] {
            table.expire(8, at(secs));
            let there = (table.find(&key(1)).is_some(), table.find(&key(2)).is_some());
            assert_eq!(there, (one, two), "{secs}");
        }
        assert_eq!((table.len(), table.next_deadline()), (0, None));
    }

    #[test]
    fn the_oldest_gives_way_and_the_queue_is_bounded() {
        let mut table = TimeWait::new(4, 1);
        for port in 1..=4 {
            assert!(!table.enter(key(port), closed(), at(port.into())));
        }
        assert!(table.enter(key(5), closed(), at(5)));
        assert!(table.find(&key(1)).is_none() && table.find(&key(2)).is_some());
        for port in 6..200 {
            let id = table.find(&key(port - 1)).unwrap().id;
            table.remove(id);
            table.enter(key(port), closed(), at(6));
            assert!(table.order.len() <= 8);
        }
        assert_eq!(table.len(), 4);
    }
}
