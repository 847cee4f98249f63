//! The client for echo over UDP: one datagram in flight for each slot, and a pair of address and port for
//! each slot.
//!
//! So it is known from where an answer goes to what has to be in it, and nothing in it need be trusted.

use std::collections::VecDeque;

use interruptlet::client::{Client, Core, Datagram, Datagrams, End, Stream};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::course::{Course, Fatal, Load, Phase};
use super::pattern::{Pattern, Place};
use super::record::ErrorKind;
use super::schedule::SECOND;
use super::sources::Sources;
use super::timeouts::Timeouts;

/// Datagrams sent, and late ones looked after, in one turn at most.
const PER_TURN: usize = 256;
/// How long the very first datagram is tried.
const FIRST_TRIES: u64 = SECOND / 10;

/// The client.
#[derive(Debug)]
pub struct DatagramClient {
    course: Course,
    pattern: Pattern,
    sources: Sources,
    slots: Vec<Slot>,
    /// Slots without a datagram in flight.
    ready: VecDeque<u32>,
    timeouts: Timeouts,
    outstanding: u64,
    /// Until one was sent: when it was tried first.
    tried_at: Option<u64>,
    was_sent: bool,
}

#[derive(Debug)]
struct Slot {
    /// Where the bytes of its datagram are in the pattern.
    place: Place,
    is_outstanding: bool,
    /// In [`DatagramClient::timeouts`].
    is_watched: bool,
    sent_at: u64,
    due: u64,
}

impl DatagramClient {
    /// The client for a plan with UDP echo.
    pub fn new(course: Course) -> Self {
        let plan = course.plan();
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let count = plan.connections;
        Self {
            pattern: Pattern::new(&mut random),
            sources: Sources::new(plan.sources, &mut random),
            slots: (0..count)
                .map(|number| Slot {
                    place: Place::of_connection(number.into()),
                    is_outstanding: false,
                    is_watched: false,
                    sent_at: 0,
                    due: 0,
                })
                .collect(),
            ready: (0..count).collect(),
            timeouts: Timeouts::new(plan.timeout, 0),
            outstanding: 0,
            tried_at: None,
            was_sent: false,
            course,
        }
    }

    /// When the next request is due, if that is over: in a closed loop, now.
    fn due(&self, now: u64) -> Option<u64> {
        if self.course.plan().rate.is_some() {
            return self.course.due(now);
        }
        self.course.may_ask().then_some(now)
    }

    /// Sends datagrams for up to `count` slots that have none, as far as they are due.
    fn send_due(&mut self, datagrams: &mut Datagrams<'_>, now: u64, count: usize) {
        let plan = self.course.plan();
        let (size, peer, timeout) = (plan.size, plan.target.address, plan.timeout);
        for _ in 0..count {
            let Some(&index) = self.ready.front() else {
                return;
            };
            let Some(due) = self.due(now) else {
                return;
            };
            let slot = &mut self.slots[index as usize];
            let payload = self.pattern.slice(slot.place, size as usize);
            if !datagrams.send(self.sources.at(index.into()), peer, payload) {
                if !self.was_sent && now - *self.tried_at.get_or_insert(now) > FIRST_TRIES {
                    self.course.fail(Fatal::NotSent);
                }
                return;
            }
            self.was_sent = true;
            self.course.take_due(now);
            self.ready.pop_front();
            slot.is_outstanding = true;
            (slot.due, slot.sent_at) = (due, now);
            self.outstanding += 1;
            self.course.record.opened = self.course.record.opened.max(u64::from(index) + 1);
            if !std::mem::replace(&mut slot.is_watched, true) {
                self.timeouts.add(index, now + timeout);
            }
        }
    }

    /// The slot's datagram is answered, or given up; the next one has other bytes.
    fn end_request(&mut self, index: u32) -> u64 {
        let size = self.course.plan().size;
        let slot = &mut self.slots[index as usize];
        slot.is_outstanding = false;
        slot.place = slot.place.plus(size);
        self.outstanding -= 1;
        self.ready.push_back(index);
        slot.due
    }

    fn give_up_late(&mut self, now: u64) {
        let timeout = self.course.plan().timeout;
        for _ in 0..PER_TURN {
            let Some(index) = self.timeouts.pop(now) else {
                return;
            };
            let slot = &mut self.slots[index as usize];
            slot.is_watched = false;
            let until = slot.sent_at + timeout;
            if !slot.is_outstanding {
                continue;
            }
            if until > now {
                slot.is_watched = true;
                self.timeouts.add(index, until);
                continue;
            }
            self.course.is_late();
            self.give_up(index, now);
        }
    }

    fn give_up(&mut self, index: u32, now: u64) {
        let due = self.end_request(index);
        self.course.record.errors.add(ErrorKind::Timeout, 1);
        self.course.record.waited(due, now);
    }

    /// Counts what is owed at the end, and ends.
    fn finish(&mut self, now: u64) {
        if self.tried_at.is_some() && !self.was_sent {
            self.course.fail(Fatal::NotSent);
        }
        if self.course.is_in_order() {
            for index in 0..self.slots.len() {
                if self.slots[index].is_outstanding {
                    self.give_up(index as u32, now);
                }
            }
            while let Some(due) = self.course.take_due(now) {
                self.course.record.errors.add(ErrorKind::Timeout, 1);
                self.course.record.waited(due, now);
            }
        }
        self.course.finish();
    }
}

impl Client for DatagramClient {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        let now = core.nanos();
        let load = Load {
            is_settled: true,
            is_waiting: self.outstanding > 0,
            open: self.slots.len() as u64,
        };
        let next = self.course.advance(load, core);
        match self.course.phase() {
            Phase::Resolving | Phase::Done => return next,
            Phase::Closing => {
                self.finish(now);
                return None;
            }
            _ => {}
        }
        self.give_up_late(now);
        self.send_due(&mut core.datagrams(), now, PER_TURN);
        let late = self.timeouts.next_time();
        // What could not be sent is tried again at once.
        let again = (!self.ready.is_empty() && self.due(now).is_some()).then_some(now);
        [next, late, again].into_iter().flatten().min()
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, datagrams: &mut Datagrams<'_>) {
        let now = datagram.nanos;
        let plan = self.course.plan();
        let (size, peer) = (plan.size as usize, plan.target.address);
        self.course.record.bytes(datagram.payload.len(), now);
        let place = self
            .sources
            .place(datagram.local)
            .filter(|place| *place < self.slots.len() as u64)
            .filter(|place| datagram.peer == peer && self.slots[*place as usize].is_outstanding);
        let Some(index) = place.map(|place| place as u32) else {
            self.course.record.errors.add(ErrorKind::Unexpected, 1);
            return;
        };
        self.course.is_alive(now);
        let place = self.slots[index as usize].place;
        let is_whole = datagram.payload.len() == size;
        if is_whole && self.pattern.matches(place, datagram.payload) {
            let due = self.end_request(index);
            self.course.record.answer(due, now);
            self.send_due(datagrams, now, 1);
        } else if is_whole
            && self
                .pattern
                .matches(place.minus(size as u32), datagram.payload)
        {
            // The answer to the one before, again or after it was given up.
            self.course.record.errors.add(ErrorKind::Unexpected, 1);
        } else {
            self.course.record.errors.add(ErrorKind::Corrupt, 1);
            self.end_request(index);
        }
    }

    fn connected(&mut self, _stream: &mut Stream<'_>) {}

    fn received(&mut self, bytes: &[u8], _stream: &mut Stream<'_>) -> usize {
        bytes.len()
    }

    fn closed(&mut self, _token: u64, _end: End) {}
}
