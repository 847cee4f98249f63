//! What the servers are compared with: programs on the AF_XDP port alone, without the stack.
//!
//! * [`reflect`]: the physical limit of a path (`ilet-reflect`).
//! * [`send`]: the least that a load generator has to do (`ilet-send`).
//! * [`flood`]: SYNs from addresses that nobody has (`ilet-flood`).
//! * [`plain`]: a TCP echo on smoltcp, as one would write it first (`plain-smoltcp`).
//! * [`memory`]: what a request costs in user space, without a network (`ilet-memory`).
//!
//! Here is what all but the last share: a [`Lane`], and the loop over it.

pub mod cli;
pub mod flood;
mod frame;
pub mod memory;
pub mod plain;
pub mod reflect;
pub mod send;

use std::io;

use interruptlet::arena::{Arena, Frame};
use interruptlet::clock::{Clock, MonotonicClock};
use interruptlet::port::Port;
use interruptlet::port::idle::{Action, Idle};
use interruptlet::port::xsk::XskPort;
use interruptlet::telemetry::Counters;
use interruptlet::{Attachment, Config, Duration, Instant, Poll, Report, RunError};

use crate::ending::Ending;
use crate::printer::Printer;
use crate::serve::{Failure, Lines, log_to_stderr};

/// Frames received per turn at most, as the stack's workers do.
const BATCH: usize = 64;
/// How often signals and the interface's health are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A port with its arena, and the frames that are neither with the kernel nor free.
#[derive(Debug)]
pub struct Lane<P> {
    /// Where frames come from and go to.
    pub port: P,
    /// All frames.
    pub arena: Arena,
    /// Received, oldest first; empty between turns.
    pub received: Vec<Frame>,
    /// To be sent, oldest first.
    pub outgoing: Vec<Frame>,
    /// What the port counts.
    pub counters: Counters,
}

impl<P: Port> Lane<P> {
    /// A port with the arena that belongs to it.
    pub fn new(port: P, arena: Arena) -> Self {
        let frames = arena.count().total as usize;
        Self {
            port,
            arena,
            received: Vec::with_capacity(BATCH),
            outgoing: Vec::with_capacity(frames),
            counters: Counters::default(),
        }
    }

    /// Receives one batch. Returns whether there was any frame.
    pub fn receive(&mut self, now: Instant) -> bool {
        let Self {
            port,
            arena,
            received,
            counters,
            ..
        } = self;
        port.receive(arena, received, BATCH, now, counters);
        !received.is_empty()
    }

    /// Sends everything in [`outgoing`](Self::outgoing), with one system call. Returns whether there was
    /// anything, or still is.
    ///
    /// # Errors
    /// When the queue is gone.
    pub fn transmit(&mut self, now: Instant) -> io::Result<bool> {
        let worked = !self.outgoing.is_empty() || self.port.has_backlog();
        let Self {
            port,
            arena,
            outgoing,
            counters,
            ..
        } = self;
        port.transmit(arena, outgoing, now, counters)?;
        Ok(worked)
    }
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There was something to do.
    Worked,
    /// There was nothing to do.
    Idle,
    /// The program has done what it was started for.
    Done,
}

impl From<bool> for Turn {
    fn from(worked: bool) -> Self {
        if worked { Self::Worked } else { Self::Idle }
    }
}

/// A program on a lane.
pub trait Program<P> {
    /// One pass: receive, do, transmit.
    ///
    /// # Errors
    /// When the queue is gone.
    fn turn(&mut self, lane: &mut Lane<P>, now: Instant) -> io::Result<Turn>;

    /// When there is something to do next, if nothing arrives. Not asked where nobody sleeps.
    fn deadline(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

/// Runs a server until a signal ends it: prints that it is ready, and its counters in the end. `services` says
/// what is served, `make` makes it of the link address, the MTU and the lane.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub fn serve<T: Program<XskPort>>(
    config: &Config,
    (tcp_ports, udp_ports): (&[u16], &[u16]),
    services: &str,
    make: impl FnOnce(&Attachment, &mut Lane<XskPort>) -> T,
) -> Result<(), Failure> {
    log_to_stderr();
    let ending = Ending::watch().map_err(Failure::Signals)?;
    let printer = Printer::start(io::stdout()).map_err(Failure::Printer)?;
    let (attachment, port, arena) = Attachment::open(config, tcp_ports, udp_ports)?;
    let mut lane = Lane::new(port, arena);
    let mut program = make(&attachment, &mut lane);
    printer.print(format!(
        "ready: {services} on {}, {}\n",
        config.interface,
        attachment.facts()
    ));
    let ended = drive(&mut program, &mut lane, &attachment, config.poll, &ending);
    let report = close(attachment, lane);
    printer.finish(Lines(&report).to_string());
    ended?;
    conserved(&report)
}

/// Turns until a signal or the program itself says that it is done.
fn drive<T: Program<XskPort>>(
    program: &mut T,
    lane: &mut Lane<XskPort>,
    attachment: &Attachment,
    poll: Poll,
    ending: &Ending,
) -> Result<(), RunError> {
    let mut clock = MonotonicClock::since(std::time::Instant::now());
    let mut now = clock.now();
    let mut idle = Idle::new(poll, now);
    let mut look_at = now;
    loop {
        if now >= look_at {
            if ending.is_asked() {
                return Ok(());
            }
            attachment.check()?;
            look_at = now + LOOK_EVERY;
        }
        let turn = program.turn(lane, now);
        match turn.map_err(|error| attachment.failed(error))? {
            Turn::Done => return Ok(()),
            Turn::Worked => idle.worked(now),
            Turn::Idle => {
                let deadline = match poll {
                    Poll::Busy => None,
                    Poll::Adaptive | Poll::Sleep => program.deadline(now),
                };
                match idle.next(now, deadline) {
                    Action::Spin => std::hint::spin_loop(),
                    Action::BusyPoll => lane.port.busy_poll(),
                    Action::Sleep(timeout) => lane
                        .port
                        .wait(None, timeout)
                        .map_err(|error| attachment.failed(error))?,
                }
            }
        }
        now = clock.now();
    }
}

/// Closes everything; what the program still holds of the lane is not conserved.
fn close(attachment: Attachment, lane: Lane<XskPort>) -> Report {
    let Lane {
        port,
        mut arena,
        received,
        outgoing,
        counters,
    } = lane;
    for frame in received {
        arena.free(frame);
    }
    attachment.close(port, arena, outgoing, &counters)
}

/// How frames reach the queue, in a word.
fn mode(attachment: &Attachment) -> &'static str {
    if attachment.facts().is_zero_copy() {
        "zero-copy"
    } else {
        "copy"
    }
}

fn conserved(report: &Report) -> Result<(), Failure> {
    if report.conserved {
        Ok(())
    } else {
        Err(Failure::FramesLost)
    }
}
