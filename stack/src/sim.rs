//! A worker without a machine: in-memory port, virtual clock, slow path on demand.
//!
//! What runs is the very worker that runs on a NIC queue; only port, clock and threads are replaced. So
//! protocol tests, seeded fault simulations, fuzzing and instruction counts need neither root nor a NIC,
//! and a seed replays exactly.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use smoltcp::wire::EthernetAddress;

use crate::arena::{Arena, FrameCount};
use crate::client::Client;
use crate::clock::{Clock, ThreadTime, VirtualClock};
use crate::config::{Cidr, Limits};
use crate::interruptlet::{DatagramInterruptlet, StreamInterruptlet};
use crate::pool::{Job, Mailbox, SlowPath, Submitter};
use crate::port::faulty::{Faults, FaultyPort};
use crate::port::memory::{self, MemoryPeer, MemoryPort};
use crate::service::{Budget, Handler};
use crate::tcp::StreamPort;
use crate::telemetry::Counters;
use crate::udp::DatagramPort;
use crate::worker::{Worker, WorkerParts};
use crate::{Duration, Instant};

/// Bytes of a simulated frame's data area: those of a 2 KiB UMEM chunk.
const FRAME_BYTES: u16 = 1792;

/// What a simulated worker is made of.
pub struct SimConfig {
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// See [`Config::sources`](crate::Config::sources).
    pub sources: Vec<Cidr>,
    /// See [`Config::gateways`](crate::Config::gateways).
    pub gateways: Vec<IpAddr>,
    /// Its link address.
    pub link: [u8; 6],
    /// Bytes of an IP packet at most.
    pub mtu: usize,
    /// Bounds.
    pub limits: Limits,
    /// The kernel would have the addresses too.
    pub shared_address: bool,
    /// What goes wrong on the wire.
    pub faults: Faults,
    /// Decides faults, hashes and sequence numbers.
    pub seed: u64,
    /// Added to all initial sequence numbers, modulo 2^32.
    pub isn_offset: u32,
    /// See [`Config::engine_only`](crate::Config::engine_only).
    pub engine_only: bool,
    /// Stream services: port, handler, slow path.
    pub streams: Vec<SimStream>,
    /// Datagram services.
    pub datagrams: Vec<SimDatagram>,
    /// What it runs on its client side.
    pub client: Option<Box<dyn Client>>,
    /// Its clock, of which handlers may have clones.
    pub clock: VirtualClock,
}

/// A stream service of a simulation.
pub struct SimStream {
    /// TCP port.
    pub port: u16,
    /// The handler.
    pub interruptlet: Box<dyn StreamInterruptlet>,
    /// Serves what it defers.
    pub slow: Option<Arc<dyn SlowPath>>,
    /// See [`StreamService`](crate::StreamService).
    pub request_timeout: Duration,
    /// See [`StreamService`](crate::StreamService).
    pub idle_timeout: Option<Duration>,
    /// See [`StreamService`](crate::StreamService).
    pub keep_alive: Option<Duration>,
}

/// A datagram service of a simulation.
pub struct SimDatagram {
    /// UDP port.
    pub port: u16,
    /// The handler.
    pub interruptlet: Box<dyn DatagramInterruptlet>,
    /// Serves what it defers.
    pub slow: Option<Arc<dyn SlowPath>>,
}

impl Default for SimConfig {
    /// 192.0.2.1/24 and 2001:db8::1/64, no services, no faults, a small arena.
    fn default() -> Self {
        Self {
            addresses: vec![
                Cidr {
                    address: IpAddr::from([192, 0, 2, 1]),
                    prefix: 24,
                },
                Cidr {
                    address: IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
                    prefix: 64,
                },
            ],
            sources: Vec::new(),
            gateways: Vec::new(),
            link: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            limits: Limits {
                frames: 512,
                flows: 1024,
                held_frames: 256,
                time_wait: 64,
                loans: 64,
                slow_queue: 16,
                ..Limits::default()
            },
            shared_address: false,
            faults: Faults::default(),
            seed: 1,
            isn_offset: 0,
            engine_only: false,
            streams: Vec::new(),
            datagrams: Vec::new(),
            client: None,
            clock: VirtualClock::default(),
        }
    }
}

/// A simulated worker.
pub struct Sim {
    worker: Worker<FaultyPort<MemoryPort>>,
    clock: VirtualClock,
    peer: MemoryPeer,
    jobs: Receiver<Job>,
    counters: Arc<Counters>,
}

impl Sim {
    /// A worker at the time of its clock: zero, unless somebody has it set.
    pub fn new(config: SimConfig) -> Self {
        let now = config.clock.time();
        let (port, peer) = memory::pair();
        let port = FaultyPort::new(port, config.faults, config.seed);
        let limits = config.limits;
        let arena = Arena::anonymous(limits.frames, FRAME_BYTES, limits.loans);
        let (pool, jobs) = Submitter::detached(limits.slow_queue);
        let counters = Arc::new(Counters::default());
        let budget = Budget::new(limits.handler_budget);
        let parts = WorkerParts {
            link_address: EthernetAddress(config.link),
            addresses: config.addresses,
            sources: config.sources,
            gateways: config.gateways,
            shared_address: config.shared_address,
            ip_mtu: config.mtu,
            limits,
            seed: config.seed,
            secret: [config.seed, !config.seed],
            isn_offset: config.isn_offset,
            engine_only: config.engine_only,
            streams: config
                .streams
                .into_iter()
                .map(|stream| StreamPort {
                    port: stream.port,
                    handler: Handler::new(stream.interruptlet),
                    slow: stream.slow,
                    budget,
                    request_timeout: stream.request_timeout,
                    idle_timeout: stream.idle_timeout,
                    keep_alive: stream.keep_alive,
                })
                .collect(),
            datagrams: config
                .datagrams
                .into_iter()
                .map(|datagram| DatagramPort {
                    port: datagram.port,
                    handler: Handler::new(datagram.interruptlet),
                    slow: datagram.slow,
                    budget,
                })
                .collect(),
            client: config.client,
            pool,
            mailbox: Mailbox::detached(limits.commands),
            counters: Arc::clone(&counters),
        };
        Self {
            worker: Worker::new(port, arena, parts, now),
            clock: config.clock,
            peer,
            jobs,
            counters,
        }
    }

    /// The other end of the wire.
    pub fn peer(&self) -> &MemoryPeer {
        &self.peer
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.time()
    }

    /// Lets time pass.
    pub fn advance(&mut self, by: Duration) {
        self.clock.pass(by);
    }

    /// One pass of the worker's loop. Returns whether there was anything to do.
    pub fn turn(&mut self) -> bool {
        // The memory port cannot fail.
        self.worker
            .turn(&mut self.clock)
            .is_ok_and(|turned| turned.worked)
    }

    /// One pass of the worker's loop in which the loop finds every reading of the clock `step` later than the last:
    /// what it does takes that long, apart from the handlers, who take the time that they give themselves.
    pub fn turn_taking(&mut self, step: Duration) -> bool {
        struct Stepping<'a>(&'a mut VirtualClock, Duration);
        impl Clock for Stepping<'_> {
            fn nanos(&mut self) -> u64 {
                self.0.work(self.1);
                self.0.nanos()
            }
            fn thread_time(&mut self) -> ThreadTime {
                self.0.thread_time()
            }
        }
        let mut clock = Stepping(&mut self.clock, step);
        self.worker
            .turn(&mut clock)
            .is_ok_and(|turned| turned.worked)
    }

    /// Runs up to `count` jobs of the slow path on the calling thread; returns how many there were.
    pub fn run_jobs(&mut self, count: usize) -> usize {
        let mut done = 0;
        while done < count
            && let Ok(job) = self.jobs.try_recv()
        {
            job.run();
            done += 1;
        }
        done
    }

    /// Takes one job of the slow path, if there is one, to be run on any thread.
    pub fn take_job(&mut self) -> Option<impl FnOnce() + Send + use<>> {
        let job = self.jobs.try_recv().ok()?;
        Some(move || job.run())
    }

    /// Changes what goes wrong on the wire from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.worker.port_mut().set_faults(faults);
    }

    /// Takes no new connections from now on and closes idle ones.
    pub fn drain(&mut self) {
        self.worker.drain(&mut self.clock);
    }

    /// Resets all connections, as a worker that stops does.
    pub fn stop(&mut self) {
        self.worker.stop(&mut self.clock);
    }

    /// A time before which no timer is due, and nothing arrives that is delayed on the wire.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.worker.next_deadline()
    }

    /// From now on every segment is handled by an engine, or only those that need one.
    pub fn set_engine_only(&mut self, engine_only: bool) {
        self.worker.tcp_mut().set_engine_only(engine_only);
    }

    /// Connections, those in TIME-WAIT included.
    pub fn flows(&self) -> usize {
        self.worker.tcp().flows()
    }

    /// Connections that have an engine.
    pub fn engines(&self) -> usize {
        self.worker.tcp().engines()
    }

    /// Connections in TIME-WAIT.
    pub fn time_wait(&self) -> usize {
        self.worker.tcp().time_wait()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where the frames are.
    pub fn frames(&self) -> FrameCount {
        self.worker.frames()
    }

    /// Whether every frame is in the free pool, or held by a connection until its bytes are acknowledged (between
    /// turns). What is delayed on the wire is in no frame.
    pub fn is_at_rest(&self) -> bool {
        self.worker.is_at_rest()
    }
}
