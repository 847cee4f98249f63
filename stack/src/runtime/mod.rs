//! Starting and stopping a stack. This file has the running stack: its health, its report, its end (`grace` has the time
//! that this may take).
//! `check` and `capabilities` refuse what cannot work before anything is changed, `probe` asks whether a
//! neighbour has our addresses, `reserve` takes ports and groups from the kernel, `queues` binds the queues and looks
//! what the attachment made of them, and `builder` puts the parts together. `unserved` answers for queues without a
//! worker while the stack runs. `attachment` starts one queue without a stack.

mod attachment;
mod builder;
mod capabilities;
mod check;
mod error;
mod grace;
mod interface;
mod packet_socket;
mod probe;
mod queues;
mod report;
mod reserve;
mod unserved;

pub use attachment::Attachment;
pub use builder::Builder;
pub use error::{MissingCapability, RunError, StartError};
pub use report::{Facts, QueueFacts, Report};

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use interruptlet_xdp::Program;

use self::grace::Grace;
use self::interface::Interface;
use self::reserve::Reservations;
use self::unserved::Responder;
use crate::arena::FrameCount;
use crate::config::Config;
use crate::pool::{Pool, Waker};
use crate::port::xsk::{XskPort, XskStatistics};
use crate::telemetry::Counters;
use crate::worker::{Ended, RunState, RunSwitch};

/// Time that a core has to reset its connections and to take its frames home, a second at most each. One that takes longer
/// hangs in a handler.
const CORE_STOP_MAX: Duration = Duration::from_secs(4);
/// How often the ends of cores are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Time that a slow-path handler has at least to come back when the stack stops.
const SLOW_PATH_GRACE_MIN: Duration = Duration::from_secs(1);

/// A running stack. Dropping it stops it at once, resetting its connections; see
/// [`shutdown`](Self::shutdown) for the orderly way.
pub struct Stack {
    /// Its queues are those that have a worker.
    config: Config,
    interface: Interface,
    /// `None` once stopped.
    program: Option<Program>,
    workers: Vec<RunningWorker>,
    /// `None` before the start is complete, and once stopped.
    pool: Option<Pool>,
    switch: Arc<RunSwitch>,
    facts: Facts,
    /// Answers for queues without a worker, if there are any.
    responder: Option<Responder>,
    /// For as long as we have the addresses or ports.
    _reservations: Reservations,
}

struct RunningWorker {
    queue: u32,
    counters: Arc<Counters>,
    /// `None` once stopped: it holds the socket open.
    statistics: Option<XskStatistics>,
    waker: Arc<Waker>,
    state: WorkerState,
}

enum WorkerState {
    /// Or has ended, and nobody has looked yet.
    Runs(JoinHandle<Ended<XskPort>>),
    /// It ended by itself. `None`: by a panic, and nothing is left of it.
    Lost(Option<Box<Ended<XskPort>>>),
    /// Its end was taken care of.
    Gone,
}

impl RunningWorker {
    fn is_finished(&self) -> bool {
        match &self.state {
            WorkerState::Runs(thread) => thread.is_finished(),
            WorkerState::Lost(_) | WorkerState::Gone => true,
        }
    }

    /// Waits for the thread, and takes what is left of the worker. `None` if it panicked.
    fn join(&mut self) -> Option<Box<Ended<XskPort>>> {
        match std::mem::replace(&mut self.state, WorkerState::Gone) {
            WorkerState::Runs(thread) => thread.join().ok().map(Box::new),
            WorkerState::Lost(ended) => ended,
            WorkerState::Gone => None,
        }
    }

    /// Looks whether the worker has ended by itself. Returns whether that is news.
    fn is_newly_lost(&mut self) -> bool {
        if !matches!(&self.state, WorkerState::Runs(thread) if thread.is_finished()) {
            return false;
        }
        self.state = WorkerState::Lost(self.join());
        true
    }

    /// Returns why the worker ended, if it ended by itself.
    fn loss(&self, interface: &str) -> Option<RunError> {
        let queue = self.queue;
        match &self.state {
            WorkerState::Lost(None) => Some(RunError::Panicked { queue }),
            WorkerState::Lost(Some(ended)) => {
                let source = match &ended.result {
                    Ok(()) => io::Error::other("it was stopped"),
                    Err(error) => error.raw_os_error().map_or_else(
                        || io::Error::other(error.to_string()),
                        io::Error::from_raw_os_error,
                    ),
                };
                Some(RunError::Queue {
                    interface: interface.to_owned(),
                    queue,
                    source,
                })
            }
            WorkerState::Runs(_) | WorkerState::Gone => None,
        }
    }
}

impl Stack {
    /// Begins a stack.
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }

    /// How the stack is attached.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What was counted so far.
    pub fn report(&self) -> Report {
        let frames: Vec<(u32, FrameCount)> = self
            .workers
            .iter()
            .map(|worker| (worker.queue, worker.counters.frames()))
            .collect();
        Report {
            counters: self.counters(),
            xdp: self.kernel_counters(),
            conserved: frames.iter().all(|(_, count)| count.is_conserved()),
            frames,
            queues_lost: self.queues_lost(),
            queues_left: Vec::new(),
            cut_short: false,
            slow_threads_left: 0,
        }
    }

    /// Whether the stack still runs, and if not, why not. Cheap: call it every now and then.
    ///
    /// A worker that ended by itself, because it panicked or its queue broke, has left its queue's traffic to the kernel.
    /// It is noticed here, logged and reported (see [`Report::queues_lost`]), and the others go on. For addresses of our own
    /// ARP, neighbour discovery and pings are answered on that queue from then on, as on any queue without a worker; call this
    /// in the network namespace in which the stack was started.
    ///
    /// # Errors
    ///
    /// If the interface is gone, or no worker runs any more. The stack is to be shut down then; it does nothing any more.
    pub fn check(&mut self) -> Result<(), RunError> {
        let gone = self
            .program
            .as_ref()
            .is_some_and(|program| !program.is_attached());
        if gone {
            return Err(RunError::InterfaceGone {
                interface: self.interface.name.clone(),
            });
        }
        let mut newly_lost = false;
        for worker in &mut self.workers {
            if worker.is_newly_lost() {
                newly_lost = true;
                self.config.queues.retain(|queue| *queue != worker.queue);
            }
        }
        let losses = || {
            let name = &self.interface.name;
            self.workers.iter().filter_map(|worker| worker.loss(name))
        };
        if losses().count() == self.workers.len()
            && let Some(error) = losses().next()
        {
            return Err(error);
        }
        if newly_lost {
            for error in losses() {
                log::error!(
                    "{error}; meanwhile the traffic of that queue is left to the kernel, and the other queues go on"
                );
            }
            self.answer_for_lost_queues();
        }
        Ok(())
    }

    /// Has the queues without a worker answered for, if they have to be and nobody does yet.
    fn answer_for_lost_queues(&mut self) {
        if self.responder.is_some() {
            return;
        }
        match Responder::start_if_needed(&self.config, &self.interface) {
            Ok(responder) => self.responder = responder,
            Err(error) => log::error!("{error}"),
        }
    }

    fn queues_lost(&self) -> Vec<u32> {
        let lost = self
            .workers
            .iter()
            .filter(|worker| matches!(worker.state, WorkerState::Lost(_)));
        lost.map(|worker| worker.queue).collect()
    }

    /// Stops: no new connections; what was begun has `grace` to finish and is reset then. The kernel has
    /// its traffic back before the sockets close. A core whose handler has not returned four seconds after the grace is left
    /// behind (see [`Report::queues_left`]).
    ///
    /// Requests that wait for the slow path when the grace is over are dropped. Handlers that are in the
    /// middle of one have what is left of the grace, at least a second; threads that are busy even then
    /// are left behind (see [`Report::slow_threads_left`]).
    pub fn shutdown(self, grace: Duration) -> Report {
        self.shutdown_unless(grace, || false)
    }

    /// Does what [`shutdown`](Self::shutdown) does, and ends the grace when `is_urgent`, which is asked every few
    /// milliseconds, returns true. [`Report::cut_short`] says whether connections were reset for that. Handlers of the
    /// slow path have a second from then on.
    pub fn shutdown_unless(mut self, grace: Duration, is_urgent: impl Fn() -> bool) -> Report {
        self.set_state(RunState::Draining);
        let mut grace = Grace::new(Instant::now(), grace, &is_urgent);
        while !self.all_finished() && !grace.is_over(Instant::now()) {
            std::thread::sleep(LOOK_EVERY);
        }
        self.stop(grace)
    }

    fn set_state(&self, state: RunState) {
        self.switch.set(state);
        for worker in &self.workers {
            worker.waker.wake();
        }
    }

    fn all_finished(&self) -> bool {
        self.workers.iter().all(RunningWorker::is_finished)
    }

    /// Ends everything now, except that slow-path handlers have what is left of `grace`, at least
    /// [`SLOW_PATH_GRACE_MIN`].
    fn stop(&mut self, mut grace: Grace<'_>) -> Report {
        // From here on no connection is left that it could be cut short for.
        let cut_short = grace.is_cut();
        self.set_state(RunState::Stopping);
        let mut ended = Vec::new();
        let mut queues_lost = Vec::new();
        let mut queues_left = Vec::new();
        let mut complete = true;
        let until = Instant::now() + CORE_STOP_MAX;
        while !self.all_finished() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        for worker in &mut self.workers {
            if !worker.is_finished() {
                // No thread can be ended from outside. Dropping its handle leaves it behind.
                worker.state = WorkerState::Gone;
                queues_left.push(worker.queue);
                complete = false;
                continue;
            }
            let end = worker.join();
            if end.as_ref().is_none_or(|end| end.result.is_err()) {
                queues_lost.push(worker.queue);
            }
            match end {
                Some(end) => ended.push((worker.queue, Arc::clone(&worker.counters), end)),
                None => complete = false,
            }
        }
        // While there still are a program and sockets to ask.
        let xdp = self.kernel_counters();
        if let Some(responder) = &mut self.responder {
            responder.stop();
        }
        // Detach first: whatever arrives from now on is the kernel's.
        if let Some(program) = self.program.take()
            && let Err(error) = program.detach()
        {
            log::debug!("detaching the XDP program: {error}");
        }
        for queue in &queues_left {
            log::warn!(
                "the core of queue {queue} is still in a handler and is left behind, its connections without a reset; the \
                 queue stays taken until the handler returns or this process ends"
            );
        }
        for worker in &mut self.workers {
            worker.statistics = None;
        }
        let mut arenas = Vec::new();
        for (queue, counters, end) in ended {
            let Ended {
                port, mut arena, ..
            } = *end;
            port.close(&mut arena, &counters);
            arenas.push((queue, arena));
        }

        grace.extend(SLOW_PATH_GRACE_MIN, Instant::now());
        let slow_threads_left = self
            .pool
            .take()
            .map_or(0, |pool| pool.stop(|| grace.is_over(Instant::now())));
        if slow_threads_left > 0 {
            log::warn!(
                "{slow_threads_left} threads of the slow path are still in their handlers and are left \
                 behind"
            );
        }
        let (frames, conserved) = report::final_frames(&mut arenas, slow_threads_left);
        Report {
            counters: self.counters(),
            xdp,
            frames,
            conserved: conserved && complete,
            queues_lost,
            queues_left,
            cut_short,
            slow_threads_left,
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let workers = self.workers.iter().map(|worker| &*worker.counters);
        report::sum_counters(workers.chain(self.responder.iter().map(Responder::counters)))
    }

    fn kernel_counters(&self) -> Vec<(&'static str, u64)> {
        let sockets = self.workers.iter().filter_map(|w| w.statistics.as_ref());
        report::kernel_counters(self.program.as_ref(), sockets)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.program.is_some() {
            self.stop(Grace::new(Instant::now(), Duration::ZERO, &|| false));
        }
    }
}
