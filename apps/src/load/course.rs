//! The course of a run, the same for all protocols: finding the way, opening, warming up, measuring,
//! waiting for what is owed, closing; and what ends it early. It runs on the core; the main thread hears
//! of it through a channel that never blocks the core, and looks at [`Shared`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use interruptlet::client::{Core, Reach};

use super::plan::Plan;
use super::record::Record;
use super::schedule::Pace;
use super::target::Protocol;

/// Late answers in a row after which a silent server is given up.
const LATE_MAX: u32 = 3;
/// How often what is shared is written.
const PUBLISH_EVERY: u64 = 10_000_000;
/// How often the way to the target is asked for.
const RESOLVE_EVERY: u64 = 10_000_000;
/// Events that there are at most; the channel holds them all.
pub const EVENTS_MAX: usize = 4;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// The target's next hop is asked for.
    Resolving = 0,
    /// Connections are opened.
    Opening = 1,
    /// Requests run and are not measured.
    Warming = 2,
    /// Requests run and are measured.
    Measuring = 3,
    /// Only what is owed is waited for.
    Draining = 4,
    /// Connections are reset.
    Closing = 5,
    /// Over.
    Done = 6,
}

/// Why a run ended early by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatal {
    /// The next hop does not say its link address.
    Unreachable,
    /// Connections are refused, and there is none.
    Refused,
    /// Nothing at all came for longer than the timeout.
    Silent,
    /// The first datagrams could not be sent.
    NotSent,
    /// The stack does not open such connections.
    NotOpened,
}

/// What the main thread hears.
#[derive(Debug)]
pub enum Event {
    /// The measured interval begins.
    Begin,
    /// It is over.
    End,
    /// The run is.
    Done(Box<Finished>),
}

/// What a run comes to.
#[derive(Debug)]
pub struct Finished {
    /// All counts.
    pub record: Record,
    /// Whether the measured interval began.
    pub is_measured: bool,
    /// Connections open at its end.
    pub open_at_end: u64,
    /// Why it ended early, if it did so by itself.
    pub fatal: Option<Fatal>,
}

/// What both threads see while it runs.
#[derive(Debug, Default)]
pub struct Shared {
    /// Set by the main thread: end it now.
    pub stop: AtomicBool,
    /// The [`Phase`].
    pub phase: AtomicU8,
    /// Connections that are open.
    pub open: AtomicU64,
    /// Requests answered so far.
    pub answered: AtomicU64,
    /// Errors so far.
    pub errors: AtomicU64,
}

/// What the course depends on.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Every connection was opened, or failed once.
    pub is_settled: bool,
    /// Something is waited for: an answer, a handshake, the end of a connection.
    pub is_waiting: bool,
    /// Connections that are open.
    pub open: u64,
}

/// The course.
#[derive(Debug)]
pub struct Course {
    plan: Plan,
    shared: Arc<Shared>,
    events: Sender<Event>,
    phase: Phase,
    /// When the phase is over, if time decides that.
    until: u64,
    /// Of an open loop, once it runs.
    pace: Option<Pace>,
    /// The counts.
    pub record: Record,
    fatal: Option<Fatal>,
    is_measured: bool,
    open_at_end: u64,
    /// When the server did something last, or nothing was waited for; and what was late since.
    alive_at: u64,
    late: u32,
    publish_at: u64,
}

impl Course {
    /// At its beginning.
    pub fn new(plan: Plan, record: Record, shared: Arc<Shared>, events: Sender<Event>) -> Self {
        Self {
            plan,
            shared,
            events,
            phase: Phase::Resolving,
            until: u64::MAX,
            pace: None,
            record,
            fatal: None,
            is_measured: false,
            open_at_end: 0,
            alive_at: 0,
            late: 0,
            publish_at: 0,
        }
    }

    /// What is to be done.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the run was neither stopped nor ended by itself.
    pub fn is_in_order(&self) -> bool {
        self.fatal.is_none() && !self.shared.stop.load(Ordering::Relaxed)
    }

    /// Whether a closed loop asks again.
    pub fn may_ask(&self) -> bool {
        self.phase < Phase::Draining
    }

    /// Whether connections are opened again: for requests that are to come, or of an open loop are due.
    pub fn may_open(&self) -> bool {
        let is_open_loop = self.plan.rate.is_some();
        self.phase < Phase::Draining || self.phase == Phase::Draining && is_open_loop
    }

    /// When the next request of an open loop was to be sent, if that is over.
    pub fn due(&self, now: u64) -> Option<u64> {
        self.pace?.next_time().filter(|due| *due <= now)
    }

    /// Takes the request that [`due`](Self::due) tells.
    pub fn take_due(&mut self, now: u64) -> Option<u64> {
        self.pace.as_mut()?.take(now)
    }

    /// Ends the run early.
    pub fn fail(&mut self, fatal: Fatal) {
        self.fatal.get_or_insert(fatal);
    }

    /// The server sent something.
    #[inline]
    pub fn is_alive(&mut self, now: u64) {
        self.alive_at = now;
        self.late = 0;
    }

    /// The server accepted a connection: a kernel does so for servers that are not at it any more.
    pub fn accepts(&mut self, now: u64) {
        if self.phase == Phase::Opening {
            self.is_alive(now);
        }
    }

    /// Something was waited for in vain.
    pub fn is_late(&mut self) {
        self.late = self.late.saturating_add(1);
    }

    /// Goes on to the next phase if it is time. Returns when to be asked again at the latest.
    pub fn advance(&mut self, load: Load, core: &mut Core<'_>) -> Option<u64> {
        let now = core.nanos();
        if self.phase == Phase::Resolving {
            match core.reach(self.plan.target.address.ip()) {
                Reach::Ready => self.phase = Phase::Opening,
                Reach::Asking => {}
                Reach::Unreachable => self.fail(Fatal::Unreachable),
            }
        }
        self.step(load, now)
    }

    /// What [`advance`](Self::advance) does once the way is known.
    fn step(&mut self, load: Load, now: u64) -> Option<u64> {
        if self.late == 0 && !load.is_waiting {
            self.alive_at = now;
        }
        let silence = now.saturating_sub(self.alive_at);
        if self.late >= LATE_MAX && silence > self.silence_max() && self.phase < Phase::Draining {
            self.fail(Fatal::Silent);
        }
        if !self.is_in_order() && self.phase < Phase::Closing {
            if self.phase == Phase::Measuring {
                self.end_measuring(now, load);
            }
            if !self.is_measured {
                self.open_at_end = load.open;
            }
            self.phase = Phase::Closing;
        }
        match self.phase {
            Phase::Opening if load.is_settled => {
                self.phase = Phase::Warming;
                self.until = now + self.plan.warmup;
                self.pace = self.plan.rate.map(|rate| Pace::new(now, rate));
            }
            Phase::Warming if now >= self.until => {
                self.phase = Phase::Measuring;
                self.is_measured = true;
                self.until = now + self.plan.duration;
                self.record.measure(now, self.until);
                if let Some(pace) = &mut self.pace {
                    pace.end_at(self.until);
                }
                self.tell(Event::Begin);
            }
            Phase::Measuring if now >= self.until => {
                let end = self.until;
                self.end_measuring(end, load);
                self.phase = Phase::Draining;
                // A slow reader's answers take as long as they take, and so do uploads.
                let is_upload = self.plan.target.protocol == Protocol::TcpUpload;
                let wait = if self.plan.slow.is_some() || is_upload {
                    0
                } else {
                    self.silence_max()
                };
                self.until = end + wait;
            }
            Phase::Draining if now >= self.until || self.is_all_done(load) => {
                self.phase = Phase::Closing;
            }
            _ => {}
        }
        if now >= self.publish_at {
            self.publish(load);
            self.publish_at = now + PUBLISH_EVERY;
        }
        match self.phase {
            Phase::Resolving => Some(now + RESOLVE_EVERY),
            Phase::Done => None,
            // The end of the phase, the next look at a request to stop, the next request.
            _ => {
                let due = self.pace.and_then(|pace| pace.next_time());
                let next = due.unwrap_or(u64::MAX).min(self.publish_at);
                Some(self.until.min(next).max(now))
            }
        }
    }

    /// The connections are closed: the run is over.
    pub fn finish(&mut self) {
        self.phase = Phase::Done;
        self.tell(Event::Done(Box::new(Finished {
            record: self.record.clone(),
            is_measured: self.is_measured,
            open_at_end: self.open_at_end,
            fatal: self.fatal,
        })));
    }

    /// The timeout, and what an error may be found late: then it was counted before.
    fn silence_max(&self) -> u64 {
        self.plan.timeout + self.plan.timeout / 4
    }

    fn is_all_done(&self, load: Load) -> bool {
        !load.is_waiting && self.pace.is_none_or(|pace| pace.next_time().is_none())
    }

    fn end_measuring(&mut self, end: u64, load: Load) {
        self.record.end(end);
        if let Some(pace) = &mut self.pace {
            pace.end_at(end);
        }
        self.open_at_end = load.open;
        self.tell(Event::End);
    }

    fn publish(&self, load: Load) {
        let shared = &self.shared;
        shared.phase.store(self.phase as u8, Ordering::Relaxed);
        shared.open.store(load.open, Ordering::Relaxed);
        let record = &self.record;
        shared.answered.store(record.answered, Ordering::Relaxed);
        let errors = record.errors.total();
        shared.errors.store(errors, Ordering::Relaxed);
    }

    fn tell(&self, event: Event) {
        // There is room for all of them; if nobody listens any more, the run is of no interest.
        let _ = self.events.try_send(event);
    }
}
