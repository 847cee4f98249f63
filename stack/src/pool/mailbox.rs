//! The way from other threads to a core: a queue of commands, and a wake-up for a core that sleeps.
//!
//! Sending never waits: a core that does not look, however long, keeps no thread of the pool from serving the others.
//! A job has a [`Place`] for its one answer reserved when it is submitted, and is refused if none is left. The queue is
//! as long as there are places, so it is never full. The bound is on what the slow path has of this core in all: jobs that are
//! queued, served or kept by their handler, and answers that the core has not taken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};

use super::command::Command;

/// The core's end: commands to carry out.
#[derive(Debug)]
pub(crate) struct Mailbox {
    commands: Receiver<(Command, Option<Place>)>,
    waker: Arc<Waker>,
    sender: MailboxSender,
}

/// Another thread's end, for one command. A clone has no place, whatever the original has.
#[derive(Debug)]
pub(crate) struct MailboxSender {
    commands: Sender<(Command, Option<Place>)>,
    waker: Arc<Waker>,
    places: Arc<Places>,
    /// The place of the answer, once it is reserved.
    place: Option<Place>,
}

/// The places of a mailbox.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    max: usize,
}

/// A place for one command. It is free again when the core takes the command, or when nothing will be sent.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes a core that sleeps in `poll()`.
#[derive(Debug)]
pub(crate) struct Waker {
    /// `None` in simulations, where nobody sleeps.
    event: Option<OwnedFd>,
    /// Set by the core before it looks at its queues for the last time and sleeps: spares awake cores
    /// the system call.
    sleeping: AtomicBool,
    /// Writes to `event` that were or will be made and that the core has not read. Only the core
    /// touches it.
    unread: AtomicU64,
}

impl Mailbox {
    /// A mailbox with `capacity` places for answers, and the event descriptor that a sleeping core is
    /// woken by.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::with_event(capacity, Some(event)))
    }

    /// A mailbox of a core that never sleeps.
    pub(crate) fn detached(capacity: usize) -> Self {
        Self::with_event(capacity, None)
    }

    fn with_event(capacity: usize, event: Option<OwnedFd>) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        let waker = Arc::new(Waker {
            event,
            sleeping: AtomicBool::new(false),
            unread: AtomicU64::new(0),
        });
        Self {
            commands: receiver,
            waker: Arc::clone(&waker),
            sender: MailboxSender {
                commands: sender,
                waker,
                places: Arc::new(Places {
                    taken: AtomicUsize::new(0),
                    max: capacity,
                }),
                place: None,
            },
        }
    }

    pub(crate) fn sender(&self) -> &MailboxSender {
        &self.sender
    }

    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    pub(crate) fn try_recv(&self) -> Option<Command> {
        self.commands.try_recv().ok().map(|(command, _)| command)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl MailboxSender {
    /// Reserves a place for the command to be sent, unless it has one. Returns whether it has one now.
    pub(super) fn reserve(&mut self) -> bool {
        if self.place.is_none() {
            let max = self.places.max;
            let taken =
                self.places
                    .taken
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                        (taken < max).then_some(taken + 1)
                    });
            self.place = taken.is_ok().then(|| Place(Arc::clone(&self.places)));
        }
        self.place.is_some()
    }

    /// Sends a command, for which a place was reserved: so there is one in the queue. Does nothing if the core is gone.
    pub(crate) fn send(mut self, command: Command) {
        let place = self.place.take();
        debug_assert!(place.is_some(), "an answer to a job that was not submitted");
        if self.commands.send((command, place)).is_ok() {
            self.waker.wake();
        }
    }
}

impl Clone for MailboxSender {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            waker: Arc::clone(&self.waker),
            places: Arc::clone(&self.places),
            place: None,
        }
    }
}

impl Waker {
    /// Wakes the core if it sleeps.
    pub(crate) fn wake(&self) {
        // SeqCst pairs with `prepare_sleep`: either the core sees what was queued before this call, or
        // this call sees that the core sleeps.
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(event) = &self.event
        {
            // EAGAIN means that the counter is already far from zero: the core will wake.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// Announces sleep; the core must look at its queues once more after this and before it sleeps.
    pub(crate) fn prepare_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// The core is awake again.
    pub(crate) fn awake(&self) {
        // Who found us asleep writes once: mostly that has happened, or it is about to. What comes late
        // ends one later sleep too early and is read then. Without any there is nothing to read.
        let woken = !self.sleeping.swap(false, Ordering::SeqCst);
        let mut unread = self.unread.load(Ordering::Relaxed) + u64::from(woken);
        if unread > 0
            && let Some(event) = &self.event
        {
            let mut count = [0u8; 8];
            if rustix::io::read(event, &mut count).is_ok() {
                unread = unread.saturating_sub(u64::from_ne_bytes(count));
            }
        }
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// The descriptor to sleep on, beside the queue's own.
    pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn write(waker: &Waker) {
        rustix::io::write(waker.event.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether a core that slept now would be woken at once.
    fn is_readable(waker: &Waker) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let event = waker.event().unwrap();
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    #[test]
    fn a_core_that_sleeps_is_woken_once_and_one_that_does_not_never() {
        let mailbox = Mailbox::new(1).unwrap();
        let waker = mailbox.waker();
        waker.wake();
        assert!(!is_readable(waker));
        waker.prepare_sleep();
        waker.wake();
        waker.wake();
        assert!(is_readable(waker));
        waker.awake();
        assert!(!is_readable(waker));
    }

    #[test]
    fn a_sleep_that_nobody_ended_costs_no_read() {
        let mailbox = Mailbox::new(1).unwrap();
        let waker = mailbox.waker();
        waker.prepare_sleep();
        // Not how anybody wakes: it shows whether the event is read.
        write(waker);
        waker.awake();
        assert!(is_readable(waker));
    }

    #[test]
    fn a_late_write_ends_one_sleep_and_not_all_that_follow() {
        let mailbox = Mailbox::new(1).unwrap();
        let waker = mailbox.waker();
        // Two threads find the core asleep, one after the other, and both write when it has long been
        // awake again.
        for _ in 0..2 {
            waker.prepare_sleep();
            assert!(waker.sleeping.swap(false, Ordering::SeqCst));
            waker.awake();
        }
        for _ in 0..2 {
            write(waker);
            waker.prepare_sleep();
            assert!(is_readable(waker));
            waker.awake();
            assert!(!is_readable(waker), "the next sleep would not last");
        }
    }
}
