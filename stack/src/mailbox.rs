//! The way from other threads to a core: a bounded queue of commands, and a wake-up for a core that
//! sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};

use crate::pool::Command;

/// The core's end: commands to carry out.
#[derive(Debug)]
pub(crate) struct Mailbox {
    commands: Receiver<Command>,
    waker: Arc<Waker>,
    sender: MailboxSender,
}

/// Another thread's end.
#[derive(Debug, Clone)]
pub(crate) struct MailboxSender {
    commands: Sender<Command>,
    waker: Arc<Waker>,
}

/// Wakes a core that sleeps in `poll()`.
#[derive(Debug)]
pub(crate) struct Waker {
    /// `None` in simulations, where nobody sleeps.
    event: Option<OwnedFd>,
    /// Set by the core before it looks at its queues for the last time and sleeps: spares awake cores
    /// the system call.
    sleeping: AtomicBool,
}

impl Mailbox {
    /// A mailbox with room for `capacity` commands, and the event descriptor that a sleeping core is
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
        });
        Self {
            commands: receiver,
            waker: Arc::clone(&waker),
            sender: MailboxSender {
                commands: sender,
                waker,
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
        self.commands.try_recv().ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl MailboxSender {
    /// Sends a command, waiting while the core's queue is full. Does nothing if the core is gone.
    pub(crate) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.waker.wake();
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
        self.sleeping.store(false, Ordering::SeqCst);
        if let Some(event) = &self.event {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(event, &mut count);
        }
    }

    /// The descriptor to sleep on, beside the queue's own.
    pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }
}
