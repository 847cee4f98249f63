//! The client for protocols over TCP: a slot for each connection that is to be open, and everything that
//! happens to them.
//!
//! Per request there is no allocation and no search: slots are found by the number in the connection's
//! token, what is due by queues.

use std::collections::VecDeque;

use interruptlet::client::{Client, Core, End, OpenError, Stream, StreamId};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::Outcome;
use super::course::{Course, Fatal, Load, Phase};
use super::echo::Echo;
use super::http::{Exchange, Http};
use super::pattern::Pattern;
use super::record::ErrorKind;
use super::schedule::{Bucket, Opening};
use super::sources::Sources;
use super::target::Protocol;
use super::timeouts::Timeouts;
use super::upload::Upload;

/// Connections opened at once, requests sent, and late ones looked after, in one turn at most: the core must
/// look at what arrives.
const PER_TURN: usize = 256;
/// Connections reset per second at the end: a reset that is lost leaves the server with a connection.
const RESETS_PER_SECOND: f64 = 100_000.0;
/// Pairs of address and port tried for one connection: one that is still being closed is passed over.
const PAIRS_TRIED: usize = 16;
/// Refusals in a row, with no connection open, that end the run.
const REFUSALS_MAX: u32 = 3;

/// The client.
#[derive(Debug)]
pub struct StreamClient {
    course: Course,
    protocol: Protocol,
    pattern: Pattern,
    http: Http,
    sources: Sources,
    next_source: u64,
    slots: Vec<Slot>,
    /// When the outstanding requests of each busy slot were due: a ring of the depth for each.
    due: Vec<u64>,
    /// Slots to be opened at the rate, and at once.
    to_open: VecDeque<u32>,
    to_reopen: VecDeque<u32>,
    opening: Opening,
    /// Slots that can take a request of an open loop.
    ready: VecDeque<u32>,
    timeouts: Timeouts,
    /// Slots whose uploads are done since the last turn.
    uploaded: Vec<u32>,
    /// The clock when something happened last: not every event tells it.
    now: u64,
    open: u64,
    waiting: u64,
    unsettled: u64,
    refusals: u32,
    /// Slots that are closed at the end, and their pace.
    closed: usize,
    closing: Opening,
}

#[derive(Debug)]
struct Slot {
    id: Option<StreamId>,
    /// Of the slot's connections; those before are no concern any more.
    generation: u32,
    state: State,
    /// In [`StreamClient::ready`].
    is_ready: bool,
    /// In [`StreamClient::timeouts`].
    is_watched: bool,
    /// It waits for something since `since`.
    is_waiting: bool,
    /// Opened once, whatever came of it.
    is_settled: bool,
    /// Requests without an answer, and the place in the ring of the first of them.
    outstanding: u32,
    first: u32,
    since: u64,
    bucket: Bucket,
    talk: Talk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    Open,
    /// All is answered, and the server is to close.
    Closing,
}

#[derive(Debug)]
enum Talk {
    Echo(Echo),
    Http(Exchange),
    Upload(Upload),
}

impl StreamClient {
    /// The client for a plan with a protocol over TCP.
    pub fn new(course: Course) -> Self {
        let plan = course.plan();
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let protocol = plan.target.protocol;
        let slots = plan.slots();
        let busy = plan.connections;
        let host = plan.target.authority();
        let mut client = Self {
            protocol,
            pattern: Pattern::new(&mut random),
            http: Http::new(&host, &plan.target.path, plan.body.clone()),
            sources: Sources::new(plan.sources, &mut random),
            next_source: 0,
            slots: Vec::with_capacity(slots),
            due: vec![0; busy as usize * plan.depth as usize + plan.idle as usize],
            // Idle ones first: they have their request before the others begin.
            to_open: (busy..slots as u32).collect(),
            to_reopen: VecDeque::new(),
            opening: Opening::new(plan.open_rate),
            ready: VecDeque::new(),
            timeouts: Timeouts::new(plan.timeout, 0),
            uploaded: Vec::new(),
            now: 0,
            open: 0,
            waiting: 0,
            unsettled: slots as u64,
            refusals: 0,
            closed: 0,
            closing: Opening::new(RESETS_PER_SECOND),
            course,
        };
        client.slots.extend((0..slots).map(|_| Slot {
            id: None,
            generation: 0,
            state: State::Closed,
            is_ready: false,
            is_watched: false,
            is_waiting: false,
            is_settled: false,
            outstanding: 0,
            first: 0,
            since: 0,
            bucket: Bucket::new(0),
            talk: Talk::Echo(Echo::new(0)),
        }));
        for index in 0..busy {
            if client.is_opened_per_request(index) && client.is_open_loop() {
                client.settle(index);
                client.make_ready(index);
            } else {
                client.to_open.push_back(index);
            }
        }
        client
    }

    fn is_open_loop(&self) -> bool {
        self.course.plan().rate.is_some()
    }

    fn is_idle(&self, index: u32) -> bool {
        index >= self.course.plan().connections
    }

    fn is_opened_per_request(&self, index: u32) -> bool {
        self.protocol.is_single() && !self.is_idle(index)
    }

    /// Whether any byte of a request or an answer that goes on shows that the server is at it; else only the whole
    /// answer does.
    fn parts_count(&self) -> bool {
        let is_large = matches!(self.protocol, Protocol::HttpDownload | Protocol::TcpUpload);
        is_large || self.course.plan().slow.is_some()
    }

    /// The slot that a connection belongs to, if it still does and that is still of interest.
    fn slot_of(&self, token: u64) -> Option<u32> {
        if self.course.phase() >= Phase::Closing {
            return None;
        }
        let (generation, index) = ((token >> 32) as u32, token as u32);
        let slot = self.slots.get(index as usize)?;
        (slot.generation == generation && slot.state != State::Closed).then_some(index)
    }

    fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    fn settle(&mut self, index: u32) {
        if !std::mem::replace(&mut self.slot(index).is_settled, true) {
            self.unsettled -= 1;
        }
    }

    fn make_ready(&mut self, index: u32) {
        if !std::mem::replace(&mut self.slot(index).is_ready, true) {
            self.ready.push_back(index);
        }
    }

    /// The slot waits for something from now on.
    fn wait(&mut self, index: u32) {
        let (now, timeout) = (self.now, self.course.plan().timeout);
        let slot = &mut self.slots[index as usize];
        slot.since = now;
        if !std::mem::replace(&mut slot.is_waiting, true) {
            self.waiting += 1;
        }
        if !std::mem::replace(&mut slot.is_watched, true) {
            self.timeouts.add(index, now + timeout);
        }
    }

    fn wait_no_more(&mut self, index: u32) {
        if std::mem::replace(&mut self.slot(index).is_waiting, false) {
            self.waiting -= 1;
        }
    }

    /// The place of the `n`th outstanding request in the ring.
    fn ring(&self, index: u32, n: u32) -> usize {
        let plan = self.course.plan();
        if index >= plan.connections {
            let rings = plan.connections as usize * plan.depth as usize;
            return rings + (index - plan.connections) as usize;
        }
        let slot = &self.slots[index as usize];
        let mut place = slot.first + n;
        if place >= plan.depth {
            place -= plan.depth;
        }
        index as usize * plan.depth as usize + place as usize
    }

    /// Another request that was due at `due` waits for its answer.
    fn begin_request(&mut self, index: u32, due: u64) {
        let place = self.ring(index, self.slots[index as usize].outstanding);
        self.due[place] = due;
        self.slot(index).outstanding += 1;
    }

    /// The first outstanding request is over; returns when it was due.
    fn end_request(&mut self, index: u32) -> u64 {
        let due = self.due[self.ring(index, 0)];
        let depth = self.course.plan().depth;
        let slot = self.slot(index);
        slot.outstanding -= 1;
        slot.first += 1;
        if slot.first == depth {
            slot.first = 0;
        }
        due
    }

    /// Sends `count` requests that were due at `due`.
    fn ask(&mut self, index: u32, count: u32, due: u64, stream: &mut Stream<'_>) {
        let size = self.course.plan().size;
        for _ in 0..count {
            self.begin_request(index, due);
            match &mut self.slots[index as usize].talk {
                Talk::Echo(echo) => echo.ask(size),
                Talk::Http(exchange) => self.http.ask(exchange),
                // It has its connection to itself, and asks by being there.
                Talk::Upload(_) => {}
            }
        }
        if !self.slots[index as usize].is_waiting {
            self.wait(index);
        }
        self.send(index, stream);
    }

    fn send(&mut self, index: u32, stream: &mut Stream<'_>) {
        match &mut self.slots[index as usize].talk {
            Talk::Echo(echo) => echo.send(&self.pattern, |bytes| stream.send(bytes)),
            Talk::Http(exchange) => self.http.send(exchange, |bytes| stream.send(bytes)),
            Talk::Upload(upload) if !upload.is_sent() => {
                let taken = upload.send(&self.pattern, |bytes| stream.send(bytes));
                if upload.is_sent() {
                    stream.close();
                }
                self.course.record.uploaded(taken, self.now);
                self.progress(index);
            }
            Talk::Upload(_) => {}
        }
    }

    /// A part of a large request or answer has gone on: the server is at it.
    fn progress(&mut self, index: u32) {
        let now = self.now;
        self.course.is_alive(now);
        self.slot(index).since = now;
    }

    /// Opens a slot's connection; `false` if that is not possible now.
    fn open(&mut self, index: u32, core: &mut Core<'_>) -> bool {
        let peer = self.course.plan().target.address;
        let token = u64::from(self.slots[index as usize].generation) << 32 | u64::from(index);
        for _ in 0..PAIRS_TRIED {
            let number = self.next_source;
            self.next_source += 1;
            match core.open(self.sources.at(number), peer, token) {
                Ok(id) => {
                    let is_single = self.is_opened_per_request(index);
                    let size = self.course.plan().size;
                    let talk = match self.protocol {
                        Protocol::TcpUpload => Talk::Upload(Upload::new(number, size)),
                        protocol if protocol.is_http() => Talk::Http(Exchange::new(is_single)),
                        _ => Talk::Echo(Echo::new(number)),
                    };
                    let now = self.now;
                    let slot = self.slot(index);
                    slot.id = Some(id);
                    slot.state = State::Connecting;
                    slot.bucket = Bucket::new(now);
                    slot.talk = talk;
                    self.course.record.opened += 1;
                    self.wait(index);
                    return true;
                }
                Err(OpenError::InUse) => {}
                Err(OpenError::Full | OpenError::Unreachable) => return false,
                Err(OpenError::BadEnds) => {
                    self.course.fail(Fatal::NotOpened);
                    return false;
                }
            }
        }
        false
    }

    /// Opens what is to be opened now.
    fn open_some(&mut self, core: &mut Core<'_>) {
        for _ in 0..PER_TURN {
            let Some(&index) = self.to_reopen.front() else {
                break;
            };
            if !self.open_for_closed_loop(index, core) {
                return;
            }
            self.to_reopen.pop_front();
        }
        while let Some(&index) = self.to_open.front()
            && self.opening.take(self.now)
        {
            if !self.open_for_closed_loop(index, core) {
                return;
            }
            self.to_open.pop_front();
        }
    }

    fn open_for_closed_loop(&mut self, index: u32, core: &mut Core<'_>) -> bool {
        let opened = self.open(index, core);
        if opened && self.is_opened_per_request(index) {
            self.begin_request(index, self.now);
        }
        opened
    }

    /// Sends the requests of an open loop that are due, as far as connections are free.
    fn ask_due(&mut self, core: &mut Core<'_>) {
        for _ in 0..PER_TURN {
            let Some(&index) = self.ready.front() else {
                return;
            };
            let is_single = self.is_opened_per_request(index);
            let state = self.slots[index as usize].state;
            if state
                != (if is_single {
                    State::Closed
                } else {
                    State::Open
                })
            {
                // It was ready when its connection ended.
                self.ready.pop_front();
                self.slot(index).is_ready = false;
                continue;
            }
            if self.course.due(self.now).is_none() || is_single && !self.open(index, core) {
                return;
            }
            let Some(due) = self.course.take_due(self.now) else {
                return;
            };
            self.ready.pop_front();
            self.slot(index).is_ready = false;
            if is_single {
                self.begin_request(index, due);
            } else if let Some(id) = self.slots[index as usize].id {
                core.stream(id, |stream| self.ask(index, 1, due, stream));
                if self.slots[index as usize].outstanding < self.course.plan().depth {
                    self.make_ready(index);
                }
            }
        }
    }

    /// Gives up what waits for too long.
    fn give_up_late(&mut self, core: &mut Core<'_>) {
        let timeout = self.course.plan().timeout;
        for _ in 0..PER_TURN {
            let Some(index) = self.timeouts.pop(self.now) else {
                return;
            };
            let slot = &mut self.slots[index as usize];
            slot.is_watched = false;
            if !slot.is_waiting {
                continue;
            }
            let until = slot.since + timeout;
            if until > self.now {
                slot.is_watched = true;
                self.timeouts.add(index, until);
                continue;
            }
            let kind = match slot.state {
                State::Connecting => ErrorKind::ConnectTimeout,
                State::Closing => ErrorKind::NotClosed,
                State::Open | State::Closed => ErrorKind::Timeout,
            };
            if let Some(id) = slot.id {
                core.stream(id, |stream| stream.abort());
            }
            self.course.is_late();
            self.fail(index, kind);
        }
    }

    /// Takes answers into account, and asks again.
    fn take_answers(&mut self, index: u32, outcome: Outcome, stream: &mut Stream<'_>) {
        for _ in 0..outcome.answers {
            let due = self.end_request(index);
            self.course.record.answer(due, self.now);
        }
        if outcome.answers == 0 || outcome.failure.is_some() {
            return;
        }
        let is_single = self.is_opened_per_request(index);
        if outcome.close || is_single {
            self.slot(index).state = State::Closing;
            self.wait(index);
            return;
        }
        if self.slots[index as usize].outstanding > 0 {
            self.wait(index);
        } else {
            self.wait_no_more(index);
        }
        if self.is_idle(index) {
            self.settle(index);
        } else if self.is_open_loop() {
            self.make_ready(index);
        } else if self.course.may_ask() {
            self.ask(index, outcome.answers, self.now, stream);
        }
    }

    /// The connection has failed, or is given up; it is reset already if it has to be.
    fn fail(&mut self, index: u32, kind: ErrorKind) {
        let outstanding = u64::from(self.slots[index as usize].outstanding);
        let errors = &mut self.course.record.errors;
        errors.add(kind, 1);
        let others = match kind {
            ErrorKind::Timeout => ErrorKind::Timeout,
            _ => ErrorKind::Lost,
        };
        errors.add(others, outstanding.saturating_sub(1));
        let is_late = matches!(kind, ErrorKind::Timeout | ErrorKind::ConnectTimeout);
        for _ in 0..outstanding {
            let due = self.end_request(index);
            if is_late {
                self.course.record.waited(due, self.now);
            }
        }
        self.part(index);
        if self.is_opened_per_request(index) && self.is_open_loop() {
            self.make_ready(index);
        } else if !self.is_idle(index) {
            self.to_open.push_back(index);
        }
        if kind == ErrorKind::Refused {
            self.refusals += 1;
            if self.refusals >= REFUSALS_MAX && self.open == 0 {
                self.course.fail(Fatal::Refused);
            }
        }
    }

    /// The connection has ended as it should; another takes its place.
    fn succeed(&mut self, index: u32) {
        if self.is_idle(index) || self.slots[index as usize].outstanding > 0 {
            // It was to be kept, or has requests on the way.
            self.fail(index, ErrorKind::ClosedEarly);
            return;
        }
        self.part(index);
        if self.is_opened_per_request(index) && self.is_open_loop() {
            self.make_ready(index);
        } else {
            self.to_reopen.push_back(index);
        }
    }

    /// Whether the slot's connection has a whole upload behind it.
    fn is_sent(&self, index: u32) -> bool {
        match &self.slots[index as usize].talk {
            Talk::Upload(upload) => upload.is_sent(),
            Talk::Echo(_) | Talk::Http(_) => false,
        }
    }

    /// Counts the uploads that are done: the event that said so did not tell the time.
    fn finish_uploads(&mut self) {
        while let Some(index) = self.uploaded.pop() {
            let due = self.end_request(index);
            self.course.record.answer(due, self.now);
            self.course.is_alive(self.now);
            self.succeed(index);
        }
    }

    /// The slot has no connection any more.
    fn part(&mut self, index: u32) {
        self.wait_no_more(index);
        self.settle(index);
        let slot = self.slot(index);
        slot.generation = slot.generation.wrapping_add(1);
        slot.id = None;
        let was_open = matches!(slot.state, State::Open | State::Closing);
        slot.state = State::Closed;
        self.open -= u64::from(was_open);
    }

    /// Resets some connections at the end of the run, and counts what they still owe.
    fn close_some(&mut self, core: &mut Core<'_>) {
        if self.closed == self.slots.len() {
            self.count_unsent();
            self.course.finish();
            return;
        }
        while self.closed < self.slots.len() && self.closing.take(self.now) {
            let index = self.closed as u32;
            self.closed += 1;
            let owed = self.slots[index as usize].outstanding;
            for _ in 0..owed {
                let due = self.end_request(index);
                if !self.course.is_in_order() {
                    // Nobody waited for it.
                } else if self.parts_count() {
                    self.course.record.unfinished += 1;
                } else {
                    self.course.record.errors.add(ErrorKind::Timeout, 1);
                    self.course.record.waited(due, self.now);
                }
            }
            if let Some(id) = self.slots[index as usize].id {
                core.stream(id, |stream| stream.abort());
            }
            self.part(index);
        }
    }

    /// What was due and could never be sent.
    fn count_unsent(&mut self) {
        while self.course.is_in_order()
            && let Some(due) = self.course.take_due(self.now)
        {
            self.course.record.errors.add(ErrorKind::Timeout, 1);
            self.course.record.waited(due, self.now);
        }
    }
}

impl Client for StreamClient {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        self.now = core.nanos();
        self.finish_uploads();
        let load = Load {
            is_settled: self.unsettled == 0,
            is_waiting: self.waiting > 0,
            open: self.open,
        };
        let next = self.course.advance(load, core);
        match self.course.phase() {
            Phase::Resolving | Phase::Done => return next,
            Phase::Closing => {
                self.close_some(core);
                return Some(self.closing.next_time());
            }
            _ => {}
        }
        if self.course.may_open() {
            self.open_some(core);
        }
        self.ask_due(core);
        self.give_up_late(core);
        let opens = self.course.may_open() && !self.to_open.is_empty();
        let opening = opens.then(|| self.opening.next_time());
        let again = (self.course.may_open() && !self.to_reopen.is_empty()).then_some(self.now);
        [next, opening, again, self.timeouts.next_time()]
            .into_iter()
            .flatten()
            .min()
    }

    fn connected(&mut self, stream: &mut Stream<'_>) {
        let Some(index) = self.slot_of(stream.token()) else {
            return;
        };
        self.now = stream.nanos();
        self.course.accepts(self.now);
        self.course.record.established += 1;
        self.open += 1;
        self.refusals = 0;
        self.slot(index).state = State::Open;
        if self.is_opened_per_request(index) {
            // Its request waits since the connection is being opened.
            if let Talk::Http(exchange) = &mut self.slots[index as usize].talk {
                self.http.ask(exchange);
            }
            // Its request may take longer than the run.
            self.settle(index);
            self.wait(index);
            self.send(index, stream);
            return;
        }
        self.wait_no_more(index);
        if self.is_idle(index) {
            self.ask(index, 1, self.now, stream);
            return;
        }
        self.settle(index);
        if self.is_open_loop() {
            self.make_ready(index);
        } else if self.course.may_ask() {
            let depth = self.course.plan().depth;
            self.ask(index, depth, self.now, stream);
        }
    }

    fn received(&mut self, bytes: &[u8], stream: &mut Stream<'_>) -> usize {
        let Some(index) = self.slot_of(stream.token()) else {
            return bytes.len();
        };
        self.now = stream.nanos();
        let mut taken = bytes.len();
        if let Some(rate) = self.course.plan().slow {
            let now = self.now;
            let bucket = &mut self.slot(index).bucket;
            let allowed = usize::try_from(bucket.allowed(now, rate)).unwrap_or(usize::MAX);
            taken = taken.min(allowed);
            bucket.take(now, rate, taken as u64);
            if taken < bytes.len() {
                stream.read_at(bucket.next_time(rate));
            }
            if taken == 0 {
                return 0;
            }
        }
        self.course.is_alive(self.now);
        self.course.record.bytes(taken, self.now);
        if self.parts_count() {
            self.slot(index).since = self.now;
        }
        let size = self.course.plan().size;
        let slot = &mut self.slots[index as usize];
        let outcome = match &mut slot.talk {
            _ if slot.state == State::Closing => Outcome::failure(ErrorKind::Unexpected),
            Talk::Echo(echo) => echo.receive(&bytes[..taken], size, &self.pattern),
            Talk::Http(exchange) => {
                let outstanding = slot.outstanding;
                self.http.receive(exchange, &bytes[..taken], outstanding)
            }
            Talk::Upload(_) => Outcome::failure(ErrorKind::Unexpected),
        };
        self.take_answers(index, outcome, stream);
        if let Some(kind) = outcome.failure {
            stream.abort();
            self.fail(index, kind);
        }
        taken
    }

    fn writable(&mut self, stream: &mut Stream<'_>) {
        if let Some(index) = self.slot_of(stream.token()) {
            self.now = stream.nanos();
            self.send(index, stream);
        }
    }

    fn ended(&mut self, stream: &mut Stream<'_>) {
        stream.close();
        let Some(index) = self.slot_of(stream.token()) else {
            return;
        };
        self.now = stream.nanos();
        self.course.is_alive(self.now);
        let slot = &mut self.slots[index as usize];
        let outcome = match &mut slot.talk {
            _ if slot.state == State::Closing => Outcome::default(),
            Talk::Echo(_) => Outcome::failure(ErrorKind::ClosedEarly),
            Talk::Http(exchange) => self.http.end(exchange),
            Talk::Upload(upload) if upload.is_sent() => Outcome {
                answers: 1,
                failure: None,
                close: true,
            },
            Talk::Upload(_) => Outcome::failure(ErrorKind::ClosedEarly),
        };
        self.take_answers(index, outcome, stream);
        match outcome.failure {
            Some(kind) => self.fail(index, kind),
            None => self.succeed(index),
        }
    }

    fn closed(&mut self, token: u64, end: End) {
        let Some(index) = self.slot_of(token) else {
            return;
        };
        let kind = match (self.slots[index as usize].state, end) {
            // The stack stops.
            (_, End::Aborted) => return,
            (State::Connecting, End::Refused | End::Reset) => ErrorKind::Refused,
            (State::Connecting, _) => ErrorKind::ConnectTimeout,
            (State::Closing, End::Closed) => return self.succeed(index),
            (State::Open, End::Closed) if self.is_sent(index) => {
                self.uploaded.push(index);
                return;
            }
            (_, End::Closed) => ErrorKind::ClosedEarly,
            (_, End::Refused | End::Reset) => ErrorKind::Reset,
            (_, End::ConnectTimeout | End::Unanswered) => ErrorKind::Timeout,
        };
        self.fail(index, kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_million_connections_take_little_memory() {
        assert!(size_of::<Slot>() <= 112, "{}", size_of::<Slot>());
    }
}
