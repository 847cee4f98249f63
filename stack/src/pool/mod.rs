//! The slow path: ordinary threads that serve deferred requests and produce streamed bodies.
//!
//! The core hands over `Job`s through one bounded queue and never waits: when the queue is full it
//! answers for itself, and so it does when too many answers to it are outstanding (`mailbox`). Results come back as
//! `Command`s through the core's `Mailbox`, where a thread never waits either. A large body is
//! produced chunk by chunk, one job per chunk, asked for by the core when the flow has room: so a slow
//! client holds one chunk of memory and no thread.

mod command;
mod demoted;
mod job;
mod mailbox;
mod request;

pub(crate) use command::{Command, Source};
pub(crate) use demoted::Demoted;
pub(crate) use job::Job;
pub(crate) use mailbox::{Mailbox, MailboxSender, Waker};
pub use request::{Body, BodySource, Deferred, Responder, Response, SlowPath};
pub(crate) use request::{ReplyTo, Route};

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};

/// How often a stopping pool looks whether its threads have ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The threads.
#[derive(Debug)]
pub(crate) struct Pool {
    submitter: Submitter,
    queue: Receiver<Job>,
    /// Set once: what is still queued is not begun any more.
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A core's access to the pool.
#[derive(Clone, Debug)]
pub(crate) struct Submitter {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `threads` threads, at least one (demoted handlers need it), behind a queue of `capacity`
    /// jobs.
    ///
    /// # Errors
    ///
    /// If the system has no room for a thread; those that were started end by themselves.
    pub(crate) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded(capacity);
        let stopping = Arc::new(AtomicBool::new(false));
        let threads = (0..threads.max(1))
            .map(|number| {
                let queue = queue.clone();
                let stopping = Arc::clone(&stopping);
                std::thread::Builder::new()
                    .name(format!("ilet-slow-{number}"))
                    .spawn(move || work(&queue, &stopping))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            submitter: Submitter { jobs },
            queue,
            stopping,
            threads,
        })
    }

    pub(crate) fn submitter(&self) -> &Submitter {
        &self.submitter
    }

    /// Ends the threads, dropping the jobs that are still queued: their flows are gone. A thread that is
    /// in a handler has until `is_over`, which is asked every few milliseconds, to come back; nobody can make it. Returns
    /// how many did not: they are left behind and end when their handler does.
    pub(crate) fn stop(self, mut is_over: impl FnMut() -> bool) -> usize {
        self.stopping.store(true, Ordering::Release);
        let mut threads = self.threads;
        loop {
            // With all threads busy nobody else would drop these, and they may hold frames on loan.
            while let Ok(job) = self.queue.try_recv() {
                run(job, &self.stopping);
            }
            // Threads that wait for a job are told: a core that hangs in a handler keeps its submitter, so that the queue
            // does not end by itself.
            for _ in &threads {
                let _ = self.submitter.try_submit(Job::End);
            }
            // A panic was caught and reported in `run`: joining a finished thread would add nothing.
            threads.retain(|thread| !thread.is_finished());
            if threads.is_empty() || is_over() {
                return threads.len();
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Submitter {
    /// Queues a job; gives it back when the queue is full, or when its core has as many answers outstanding as may be.
    #[allow(clippy::result_large_err)] // the job itself: boxing it would allocate when all goes well
    pub(crate) fn try_submit(&self, mut job: Job) -> Result<(), Job> {
        if !job.reserve() {
            return Err(job);
        }
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(job),
        }
    }

    /// A queue that nobody serves: what is submitted comes out of the receiver (simulations).
    pub(crate) fn detached(capacity: usize) -> (Self, Receiver<Job>) {
        let (jobs, queue) = crossbeam_channel::bounded(capacity);
        (Self { jobs }, queue)
    }
}

/// The loop of a pool thread.
fn work(queue: &Receiver<Job>, stopping: &AtomicBool) {
    while let Ok(job) = queue.recv() {
        run(job, stopping);
        if stopping.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Does the work, unless the pool stops: then the job is dropped, which tells the core if it is still
/// there. A panicking handler costs its own request (the responder's drop tells the core), not a thread.
fn run(job: Job, stopping: &AtomicBool) {
    let begin = !stopping.load(Ordering::Acquire);
    let done = catch_unwind(AssertUnwindSafe(|| {
        if begin {
            job.run();
        } else {
            drop(job);
        }
    }));
    if done.is_err() {
        log::error!("a slow-path handler panicked; its request was abandoned");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;
    use crate::interruptlet::RequestInfo;
    use crate::wire::LinkHeader;

    /// Says that it began and then waits to be let go.
    struct Stuck {
        begun: AtomicUsize,
        release: Receiver<()>,
    }

    impl SlowPath for Stuck {
        fn serve(&self, _request: Deferred, responder: Responder) {
            self.begun.fetch_add(1, Ordering::SeqCst);
            // Ends when the test lets go of the other end.
            let _ = self.release.recv();
            responder.send(Response::default());
        }
    }

    fn job(slow: &Arc<dyn SlowPath>, mailbox: &Mailbox) -> Job {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        let info = RequestInfo {
            peer: any,
            local: any,
            now: crate::Instant::ZERO,
            end_of_stream: false,
            full: false,
        };
        Job::Serve {
            slow: Arc::clone(slow),
            request: Deferred::copied(b"x", info),
            responder: Responder::new(ReplyTo {
                core: mailbox.sender().clone(),
                route: Route::Datagram {
                    link: LinkHeader::default(),
                    info,
                },
                consumed: 0,
            }),
        }
    }

    fn wait_until(what: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < until, "nothing happened");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_idle_pool_stops_at_once() {
        let pool = Pool::start(2, 4).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        assert_eq!(pool.stop(|| Instant::now() >= until), 0);
    }

    /// Answers at once.
    struct Quick;

    impl SlowPath for Quick {
        fn serve(&self, _request: Deferred, responder: Responder) {
            responder.send(Response::default());
        }
    }

    /// One thread, and a core that takes no answers: another core's are not held up.
    #[test]
    fn a_core_that_takes_no_answers_keeps_nobody_elses() {
        let pool = Pool::start(1, 16).unwrap();
        let quick: Arc<dyn SlowPath> = Arc::new(Quick);
        let submit = |mailbox: &Mailbox| {
            let refused = pool.submitter().try_submit(job(&quick, mailbox)).err();
            refused.map(Job::cancel).is_none()
        };
        let stuck = Mailbox::detached(2);
        let accepted = (0..5).filter(|_| submit(&stuck)).count();
        let other = Mailbox::detached(2);
        assert!(submit(&other));
        wait_until(|| !other.is_empty());
        // Its own further requests are refused, until it takes the answers to the first ones.
        assert_eq!(accepted, 2);
        assert!(stuck.try_recv().is_some());
        assert!(submit(&stuck) && !submit(&stuck));
        let until = Instant::now() + Duration::from_secs(10);
        assert_eq!(pool.stop(|| Instant::now() >= until), 0);
    }

    #[test]
    fn a_core_that_does_not_end_keeps_no_thread() {
        let pool = Pool::start(2, 1).unwrap();
        let kept = pool.submitter().clone();
        let until = Instant::now() + Duration::from_secs(10);
        assert_eq!(pool.stop(|| Instant::now() >= until), 0);
        let mailbox = Mailbox::detached(1);
        let quick: Arc<dyn SlowPath> = Arc::new(Quick);
        let refused = kept.try_submit(job(&quick, &mailbox)).unwrap_err();
        assert!(refused.cancel().is_some());
    }

    #[test]
    fn there_is_always_a_thread() {
        assert_eq!(Pool::start(0, 4).unwrap().threads.len(), 1);
    }

    #[test]
    fn a_stop_neither_waits_for_a_stuck_handler_nor_begins_what_is_queued() {
        let pool = Pool::start(1, 4).unwrap();
        let mailbox = Mailbox::detached(8);
        let (let_go, release) = crossbeam_channel::bounded(0);
        let stuck = Arc::new(Stuck {
            begun: AtomicUsize::new(0),
            release,
        });
        let slow: Arc<dyn SlowPath> = Arc::<Stuck>::clone(&stuck);
        for _ in 0..3 {
            assert!(pool.submitter().try_submit(job(&slow, &mailbox)).is_ok());
        }
        drop(slow);
        wait_until(|| stuck.begun.load(Ordering::SeqCst) == 1);
        let mut looks = 0;
        let left = pool.stop(|| {
            looks += 1;
            looks > 3
        });
        assert_eq!(left, 1, "one thread is in its handler");
        // The two queued requests were given up, their frames with them.
        for _ in 0..2 {
            assert!(matches!(
                mailbox.try_recv(),
                Some(Command::Abandoned { .. })
            ));
        }
        assert!(mailbox.try_recv().is_none());
        // The thread left behind ends with its handler and begins nothing else.
        drop(let_go);
        wait_until(|| Arc::strong_count(&stuck) == 1);
        assert_eq!(stuck.begun.load(Ordering::SeqCst), 1);
        assert!(matches!(mailbox.try_recv(), Some(Command::Reply { .. })));
    }
}
