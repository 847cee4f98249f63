//! Who is served when: the loop around epoll.
//!
//! Connections are registered once, edge-triggered, for reading and writing, and never touched again: the
//! kernel tells each change, and each change is a reason to look. A new connection is looked at before it
//! is registered, so that one that is answered and closed at once costs no registration.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{self, Setter, opcode};
use rustix::net::{SocketFlags, accept_with};
use slab::Slab;

use super::connection::{Connection, Scratch, Then};
use super::datagrams::DatagramEcho;
use super::service::Service;
use super::stop::Stop;

/// Events taken from the kernel at once.
const EVENTS: usize = 512;
/// Connections accepted before the others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// Connections that there is room for from the start.
const CONNECTIONS: usize = 16_384;
/// When the system is out of descriptors or memory, accepting is tried again when a connection of ours
/// closes, or when nothing has happened for this time.
const ACCEPT_AGAIN_AFTER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

// What an event is about; connections have the numbers from 0.
const STOP: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const DATAGRAMS: u64 = u64::MAX - 2;

const HUNG_UP: EventFlags = EventFlags::RDHUP
    .union(EventFlags::HUP)
    .union(EventFlags::ERR);

/// A server that is ready to run.
#[derive(Debug)]
pub struct EventLoop<'s, S> {
    epoll: OwnedFd,
    listener: OwnedFd,
    datagrams: Option<DatagramEcho>,
    /// Watched by `epoll` as long as it is open.
    _stop: Stop,
    service: S,
    connections: Slab<Connection<'s>>,
    scratch: Scratch<'s>,
    /// Connections that get a turn before we sleep. Some may be closed by then, and others have their
    /// number: a turn too many does no harm.
    queue: Vec<usize>,
    is_accepting: bool,
    /// How long to poll after the last event before going to sleep.
    busy_poll: Option<Duration>,
    poll_until: Option<Instant>,
}

impl<'s, S: Service<'s>> EventLoop<'s, S> {
    /// A loop that serves the connections of `listener` and the datagrams of `datagrams` until `stop`.
    /// `busy_poll`: how long to poll before going to sleep.
    ///
    /// # Errors
    /// When the kernel has no epoll descriptor for us.
    pub fn new(
        service: S,
        listener: OwnedFd,
        datagrams: Option<OwnedFd>,
        stop: Stop,
        busy_poll: Option<Duration>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(time) = busy_poll {
            set_busy_poll(&epoll, time);
        }
        let datagrams = datagrams.map(DatagramEcho::new);
        let mut registrations = vec![(stop.as_fd(), STOP), (listener.as_fd(), LISTENER)];
        registrations.extend(datagrams.as_ref().map(|echo| (echo.as_fd(), DATAGRAMS)));
        for (descriptor, number) in registrations {
            let data = EventData::new_u64(number);
            epoll::add(&epoll, descriptor, data, EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            listener,
            datagrams,
            _stop: stop,
            service,
            connections: Slab::with_capacity(CONNECTIONS),
            scratch: Scratch::default(),
            queue: Vec::with_capacity(CONNECTIONS),
            is_accepting: true,
            busy_poll,
            poll_until: None,
        })
    }

    /// Serves until it is told to stop, and gives the service back. Connections that are open then are closed.
    ///
    /// # Errors
    /// When epoll fails, which it does not while memory lasts.
    pub fn run(mut self) -> io::Result<S> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let mut queue = Vec::with_capacity(CONNECTIONS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), self.timeout()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if events.is_empty() && self.queue.is_empty() && !self.keeps_polling() {
                self.resume_accepting()?;
            }
            if let (Some(time), false) = (self.busy_poll, events.is_empty()) {
                self.poll_until = Some(Instant::now() + time);
            }
            mem::swap(&mut self.queue, &mut queue);
            for event in &events {
                match event.data.u64() {
                    STOP => return Ok(self.service),
                    LISTENER => self.accept()?,
                    DATAGRAMS => {
                        if let Some(datagrams) = &mut self.datagrams {
                            datagrams.turn();
                        }
                    }
                    number => {
                        let flags = event.flags;
                        // The number was made of a `usize`.
                        self.turn(number as usize, flags.intersects(HUNG_UP))?;
                    }
                }
            }
            for number in queue.drain(..) {
                if let Some(connection) = self.connections.get_mut(number) {
                    connection.is_queued = false;
                }
                self.turn(number, true)?;
            }
        }
    }

    fn keeps_polling(&self) -> bool {
        self.poll_until.is_some_and(|until| Instant::now() < until)
    }

    fn timeout(&self) -> Option<&'static Timespec> {
        if !self.queue.is_empty() || self.keeps_polling() {
            Some(&AT_ONCE)
        } else if !self.is_accepting {
            Some(&ACCEPT_AGAIN_AFTER)
        } else {
            None
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.welcome(Connection::new(socket)),
                Err(Errno::AGAIN) => break,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return self.pause_accepting();
                }
                // The connection's own trouble: it is gone already.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn welcome(&mut self, mut connection: Connection<'s>) {
        let then = connection.turn(&mut self.service, &mut self.scratch, false);
        if then == Then::Close {
            return;
        }
        let entry = self.connections.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        // It tells at once what is there to be read, so nothing is missed, nor a second look due. Only
        // without memory it fails, and there is no connection without it.
        if epoll::add(&self.epoll, &connection, data, flags).is_ok() {
            entry.insert(connection);
        }
    }

    fn turn(&mut self, number: usize, has_hung_up: bool) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(number) else {
            return Ok(());
        };
        match connection.turn(&mut self.service, &mut self.scratch, has_hung_up) {
            Then::Wait => {}
            Then::Again => {
                if !mem::replace(&mut connection.is_queued, true) {
                    self.queue.push(number);
                }
            }
            Then::Close => {
                drop(self.connections.remove(number));
                self.resume_accepting()?;
            }
        }
        Ok(())
    }

    /// An event that is not taken comes again at once: so it must not come.
    fn pause_accepting(&mut self) -> io::Result<()> {
        self.is_accepting = false;
        self.set_accepting(EventFlags::empty())
    }

    fn resume_accepting(&mut self) -> io::Result<()> {
        if mem::replace(&mut self.is_accepting, true) {
            return Ok(());
        }
        self.set_accepting(EventFlags::IN)
    }

    fn set_accepting(&self, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(LISTENER);
        Ok(epoll::modify(&self.epoll, &self.listener, data, flags)?)
    }
}

/// `struct epoll_params` of Linux 6.9.
#[repr(C)]
struct BusyPoll {
    micros: u32,
    /// Packets per look.
    budget: u16,
    /// Whether interrupts stay off between two looks; needs timers that the administrator sets.
    preferred: u8,
    reserved: u8,
}

/// Has the kernel look into the card's queue whenever it is asked for events and has none; where there is no
/// queue to look into, as on a veth pair, the loop's own polling is what saves the wakeups.
#[allow(unsafe_code)]
fn set_busy_poll(epoll: &OwnedFd, time: Duration) {
    const SET: ioctl::Opcode = opcode::write::<BusyPoll>(0x8a, 1);
    let parameters = BusyPoll {
        micros: u32::try_from(time.as_micros()).unwrap_or(u32::MAX),
        budget: 64,
        preferred: 0,
        reserved: 0,
    };
    // SAFETY: `EPIOCSPARAMS` reads a `struct epoll_params`, whose layout `BusyPoll` has, and keeps nothing.
    let result = unsafe { ioctl::ioctl(epoll, Setter::<SET, BusyPoll>::new(parameters)) };
    if let Err(error) = result {
        log::warn!(
            "the kernel does not poll the card's queue for epoll: {error}; Linux 6.9 or newer can"
        );
    }
}
