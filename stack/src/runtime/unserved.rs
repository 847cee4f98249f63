//! Answers to ARP, neighbour discovery and pings for addresses of ours on receive queues without a worker. There the
//! kernel gets these packets and does not answer for us: one thread answers them, from a packet socket.
//!
//! Broadcast ARP arrives on any queue that the card likes, often on the first, so that a server of a dedicated
//! queue would be found by nobody. TCP and UDP are not served here: they have to be steered to a queue with a
//! worker.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::StartError;
use super::interface::Interface;
use super::packet_socket::PacketSocket;
use super::queues::without_worker;
use crate::Instant;
use crate::arena::{Arena, Owner};
use crate::config::Config;
use crate::egress::Egress;
use crate::icmp::Icmp;
use crate::neighbour;
use crate::telemetry::Counters;
use crate::wire::{LINK_HEADER_BYTES_MAX, Local, Packet, TransportKind, parse};

/// Frames that are looked at in a row at most, and the pause after them: at most 64,000 a second, so that a flood
/// of pings takes no core from the workers.
const BATCH: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);
/// One that is answered at a time.
const FRAMES: u32 = 1;

/// The thread that answers. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Responder {
    counters: Arc<Counters>,
    stop: Arc<OwnedFd>,
    /// `None` once stopped.
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts the thread, if addresses are ours alone and the interface has receive queues without a worker, or
    /// may have: drivers add some for XDP, so this is to be called when the program is attached.
    pub(super) fn start_if_needed(
        config: &Config,
        interface: &Interface,
    ) -> Result<Option<Self>, StartError> {
        let own = !config.shared_address || !config.sources.is_empty();
        let all_served = interface
            .queues_now()
            .is_some_and(|queues| without_worker(&config.queues, queues).is_empty());
        if !own || all_served {
            return Ok(None);
        }
        Self::start(config, interface)
            .map(Some)
            .map_err(|source| StartError::System {
                action: "answer for the queues without a worker",
                source,
            })
    }

    fn start(config: &Config, interface: &Interface) -> io::Result<Self> {
        // The kernel answers for shared addresses.
        let addresses = if config.shared_address {
            &[][..]
        } else {
            &config.addresses
        };
        let socket = PacketSocket::new()?;
        socket.listen(interface.index)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let counters = Arc::new(Counters::default());
        let local = Local::new(interface.link, addresses, &config.sources, interface.mtu);
        let answerer = Answerer::new(local, interface.mtu, Arc::clone(&counters));
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::Builder::new()
                .name("ilet-unserved".to_owned())
                .spawn(move || run(&socket, &stop, answerer))?
        };
        Ok(Self {
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// The counters of the thread: it counts `unserved_queue_answers`, and nothing else.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The descriptor is open and the counter far from full: it cannot fail.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if thread.join().is_err() {
            log::warn!("the thread that answers for queues without a worker had panicked");
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers until `stop` is written to.
fn run(socket: &PacketSocket, stop: &OwnedFd, mut answerer: Answerer) {
    loop {
        let mut ready = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let polled = poll(&mut ready, None);
        if !ready[1].revents().is_empty() {
            return;
        }
        if let Err(error) = polled
            && error != rustix::io::Errno::INTR
        {
            log::warn!("nothing more is answered for queues without a worker: {error}");
            return;
        }
        for _ in 0..BATCH {
            match answerer.receive_from(socket) {
                Ok(true) => {}
                Ok(false) => break,
                // The interface went down, or is gone. If it comes back, this goes on.
                Err(error) => {
                    log::debug!("answering for queues without a worker: {error}");
                    break;
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// A worker's way with what it answers by itself, over an arena of its own.
struct Answerer {
    local: Local,
    icmp: Icmp,
    egress: Egress,
    /// Takes the counts of `neighbour` and `icmp`, which nobody reads: they include the kernel's traffic.
    unread: Counters,
    counters: Arc<Counters>,
}

impl Answerer {
    fn new(local: Local, mtu: usize, counters: Arc<Counters>) -> Self {
        // The MTU is within what frames of a queue hold, too.
        let frame_bytes = (mtu + LINK_HEADER_BYTES_MAX) as u16;
        Self {
            local,
            icmp: Icmp::new(mtu, Instant::ZERO),
            egress: Egress::new(Arena::anonymous(FRAMES, frame_bytes, 0)),
            unread: Counters::default(),
            counters,
        }
    }

    /// Takes one frame and answers it, if it is to be answered. Returns whether there was one.
    fn receive_from(&mut self, socket: &PacketSocket) -> io::Result<bool> {
        let Some(mut frame) = self.egress.arena.alloc(Owner::Rx) else {
            return Ok(false);
        };
        let buffer = self.egress.arena.buffer_mut(&mut frame);
        let received = socket.receive(buffer);
        let Ok(Some(len)) = received else {
            self.egress.arena.free(frame);
            return received.map(|_| false);
        };
        match parse(buffer, len, &self.local) {
            Ok(Packet::Neighbour { len }) => {
                neighbour::answer(frame, len, &self.local, &mut self.egress, &self.unread);
            }
            Ok(Packet::Ip(packet)) if packet.kind == TransportKind::EchoRequest => {
                self.icmp
                    .echo(frame, &packet, &mut self.egress, &self.unread);
            }
            Ok(Packet::Ip(_)) | Err(_) => self.egress.arena.free(frame),
        }
        for frame in self.egress.queue.drain(..) {
            let sent = socket.send(self.egress.arena.bytes(&frame));
            self.egress.arena.sent(frame);
            match sent {
                Ok(()) => self.counters.unserved_queue_answers.increment(),
                Err(error) => log::debug!("an answer for a queue without a worker: {error}"),
            }
        }
        Ok(true)
    }
}
