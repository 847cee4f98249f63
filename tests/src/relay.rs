//! Owns a bad link: a relay between client and server that loses, delays and doubles frames, reorders them, and has
//! a rate and a queue ([`interruptlet::port::link`]).
//!
//! One thread serves both ways. It sleeps until a frame comes or is due, and takes and sends many at once.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use interruptlet::port::link;
use interruptlet::port::pipe::{PIPE_BYTES_MAX, Pipe};

use crate::lab::{Lab, RELAY_CLIENT_IF, RELAY_SERVER_IF};
use crate::sys::{self, BATCH, Batch};
use crate::trace::Trace;

/// How long a frame waits for others to overtake it when none come.
const LULL: Duration = Duration::from_millis(3);
/// How often a relay looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// How many frames at most overtake a delayed one.
const OVERTAKING_MAX: u64 = 6;

/// What happens to frames of either way, each with a probability of its own.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Of a hundred frames, how many are overtaken by one to six others.
    pub delayed_percent: u64,
    /// Of a hundred frames, how many arrive a second time, at once or behind one to six others.
    pub doubled_percent: u64,
    /// Where the random numbers begin: neither zero nor all ones.
    pub seed: u64,
}

impl Faults {
    /// Nothing but what the link does; `seed` is for that.
    pub fn none(seed: u64) -> Self {
        Self {
            delayed_percent: 0,
            doubled_percent: 0,
            seed,
        }
    }
}

/// A running relay. Frames pass as long as it lives.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<[Passed; 2]>>>,
}

/// What a relay and its thread have in common.
#[derive(Debug, Default)]
struct Shared {
    end: Arc<AtomicBool>,
    overtaken: AtomicU64,
    doubled: AtomicU64,
}

/// What became of the frames of one way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// By the link.
    pub link: link::LinkCounts,
    /// Frames that found [`PIPE_BYTES_MAX`] under way.
    pub line_full: u64,
    /// Frames that the kernel had no room for until they were taken.
    pub missed: u64,
    /// Frames that it did not take when they were to be sent.
    pub unsent: u64,
}

impl Relay {
    /// Starts one that has no rate and no delay, in a lab that was made with a relay.
    ///
    /// # Panics
    ///
    /// If the lab has none.
    pub fn start(lab: &Lab, faults: Faults) -> Self {
        Self::start_with(lab, faults, link::Faults::default())
    }

    /// Starts one, with the same link either way, in a lab that was made with a relay.
    ///
    /// # Panics
    ///
    /// If the lab has none.
    pub fn start_with(lab: &Lab, faults: Faults, link: link::Faults) -> Self {
        let namespace = lab.relay().expect("a lab with a relay");
        let open = |interface| {
            let socket = namespace.inside(|| sys::packet_socket(interface, LULL));
            socket.expect("open a packet socket")
        };
        let ends = [open(RELAY_SERVER_IF), open(RELAY_CLIENT_IF)];
        let shared = Arc::new(Shared::default());
        let forwarder = Forwarder::new(ends, faults, [link; 2], Arc::clone(&shared), None);
        Self {
            shared,
            thread: Some(std::thread::spawn(|| forwarder.run())),
        }
    }

    /// How many frames were overtaken by as many others as they had to wait for, so far.
    pub fn overtaken(&self) -> u64 {
        self.shared.overtaken.load(Ordering::Relaxed)
    }

    /// How many frames were sent twice so far.
    pub fn doubled(&self) -> u64 {
        self.shared.doubled.load(Ordering::Relaxed)
    }

    /// Ends it; what became of the frames from the server, and of those to it.
    ///
    /// # Panics
    ///
    /// If it ended before.
    pub fn stop(mut self) -> [Passed; 2] {
        self.shared.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a thread");
        thread.join().expect("no panic").expect("no error")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say; a panic of its own is on standard error already.
            let _ = thread.join();
        }
    }
}

/// Relays between two interfaces of the calling thread's namespace until `end` is set. `links` are those of the way
/// from the first to the second, and of the way back. Calls `ready` when frames pass. All frames that come are
/// written to `trace`.
///
/// # Errors
///
/// When an interface is not there, or the system fails.
pub fn run(
    interfaces: [&str; 2],
    links: [link::Faults; 2],
    seed: u64,
    trace: Option<Trace>,
    end: Arc<AtomicBool>,
    ready: impl FnOnce(),
) -> io::Result<[Passed; 2]> {
    let open = |interface| sys::packet_socket(interface, LULL);
    let ends = [open(interfaces[0])?, open(interfaces[1])?];
    let shared = Arc::new(Shared {
        end,
        ..Shared::default()
    });
    sys::wake_on_time()?;
    let forwarder = Forwarder::new(ends, Faults::none(seed), links, shared, trace);
    ready();
    forwarder.run()
}

/// Both ways.
#[derive(Debug)]
struct Forwarder {
    ends: [File; 2],
    /// From the first end, and from the second.
    ways: [Way; 2],
    shared: Arc<Shared>,
    trace: Option<Trace>,
    began: Instant,
}

impl Forwarder {
    fn new(
        ends: [File; 2],
        faults: Faults,
        links: [link::Faults; 2],
        shared: Arc<Shared>,
        trace: Option<Trace>,
    ) -> Self {
        let [there, back] = links;
        Self {
            ends,
            ways: [
                Way::new(faults, faults.seed, there),
                Way::new(faults, !faults.seed, back),
            ],
            shared,
            trace,
            began: Instant::now(),
        }
    }

    fn run(mut self) -> io::Result<[Passed; 2]> {
        let mut batch = Batch::new();
        while !self.shared.end.load(Ordering::Relaxed) {
            let due = self.ways.iter().filter_map(Way::due).min();
            let wait = due.map_or(LOOK_EVERY, |due| {
                due.saturating_sub(self.began.elapsed()).min(LOOK_EVERY)
            });
            let readable = sys::wait_readable([&self.ends[0], &self.ends[1]], wait)?;
            let now = self.began.elapsed();
            for (from, way) in self.ways.iter_mut().enumerate() {
                if readable[from] {
                    batch.receive(&self.ends[from])?;
                    for frame in batch.frames() {
                        if let Some(trace) = &mut self.trace {
                            trace.write(frame, now)?;
                        }
                        way.take(frame, now, &self.shared);
                    }
                }
                way.give_up_waiting(now);
                way.send(&self.ends[1 - from], self.began.elapsed());
            }
        }
        if let Some(trace) = &mut self.trace {
            trace.flush()?;
        }
        let mut passed = self.ways.map(|way| way.passed());
        for (passed, end) in passed.iter_mut().zip(&self.ends) {
            passed.missed = sys::packets_missed(end)?;
        }
        Ok(passed)
    }
}

/// One way: first what reorders and doubles, then the link.
#[derive(Debug)]
struct Way {
    faults: Faults,
    /// The state of a xorshift generator.
    random: u64,
    waiting: VecDeque<Waiting>,
    /// When the last frame came.
    came_at: Duration,
    pipe: Pipe,
    /// Frames that have arrived and are to be sent: the first `ready_len` of these. The others are memory to be used
    /// again.
    ready: VecDeque<Vec<u8>>,
    ready_len: usize,
    unsent: u64,
}

#[derive(Debug)]
struct Waiting {
    /// How many frames are still to overtake it.
    overtaking: u64,
    frame: Vec<u8>,
}

impl Way {
    fn new(faults: Faults, seed: u64, link: link::Faults) -> Self {
        Self {
            faults,
            random: seed,
            waiting: VecDeque::new(),
            came_at: Duration::ZERO,
            pipe: Pipe::new(link, seed, PIPE_BYTES_MAX),
            ready: VecDeque::new(),
            ready_len: 0,
            unsent: 0,
        }
    }

    fn passed(&self) -> Passed {
        Passed {
            link: self.pipe.link().counts(),
            line_full: self.pipe.overflows(),
            missed: 0,
            unsent: self.unsent,
        }
    }

    /// When there is something to do, if nothing comes.
    fn due(&self) -> Option<Duration> {
        let lull = (!self.waiting.is_empty()).then_some(self.came_at + LULL);
        let arrival = self
            .pipe
            .next_arrival()
            .map(|at| Duration::from_micros(at.total_micros() as u64));
        [lull, arrival].into_iter().flatten().min()
    }

    fn take(&mut self, frame: &[u8], now: Duration, shared: &Shared) {
        self.came_at = now;
        if self.hits(self.faults.delayed_percent) {
            self.wait(frame);
            return;
        }
        self.pipe.send(frame, instant(now));
        self.release_overtaken(now, shared);
        if self.hits(self.faults.doubled_percent) {
            shared.doubled.fetch_add(1, Ordering::Relaxed);
            if self.hits(50) {
                self.pipe.send(frame, instant(now));
            } else {
                self.wait(frame);
            }
        }
    }

    fn wait(&mut self, frame: &[u8]) {
        let overtaking = 1 + self.below(OVERTAKING_MAX);
        let frame = frame.to_vec();
        self.waiting.push_back(Waiting { overtaking, frame });
    }

    /// One more frame has passed those that wait.
    fn release_overtaken(&mut self, now: Duration, shared: &Shared) {
        for waiting in &mut self.waiting {
            waiting.overtaking -= 1;
        }
        while let Some(at) = self.waiting.iter().position(|w| w.overtaking == 0) {
            if let Some(waiting) = self.waiting.remove(at) {
                shared.overtaken.fetch_add(1, Ordering::Relaxed);
                self.pipe.send(&waiting.frame, instant(now));
            }
        }
    }

    /// Nothing came that could overtake: what waits has waited long enough.
    fn give_up_waiting(&mut self, now: Duration) {
        if now.saturating_sub(self.came_at) >= LULL {
            while let Some(waiting) = self.waiting.pop_front() {
                self.pipe.send(&waiting.frame, instant(now));
            }
        }
    }

    /// Sends what has arrived. What cannot be sent is lost, as on any link.
    fn send(&mut self, to: &File, now: Duration) {
        loop {
            self.collect(now);
            let frames = self.ready.iter().take(self.ready_len);
            let (count, sent) = sys::send_frames(to, frames.map(Vec::as_slice));
            if count == 0 {
                return;
            }
            self.unsent += (count - sent) as u64;
            self.ready.rotate_left(count);
            self.ready_len -= count;
        }
    }

    /// Takes what has arrived off the link, as many frames as are sent at once.
    fn collect(&mut self, now: Duration) {
        let now = instant(now);
        while self.ready_len < BATCH && self.pipe.has_arrived(now) {
            if self.ready.len() == self.ready_len {
                self.ready.push_back(Vec::new());
            }
            let room = &mut self.ready[self.ready_len];
            room.clear();
            self.pipe.take(now, |frame| room.extend_from_slice(frame));
            self.ready_len += 1;
        }
    }

    fn hits(&mut self, percent: u64) -> bool {
        percent > 0 && self.below(100) < percent
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}

/// A time since the beginning as the link's model has it.
fn instant(since: Duration) -> interruptlet::Instant {
    interruptlet::Instant::from_micros(since.as_micros() as i64)
}
