//! Starting and stopping a stack: checks, XDP program, sockets, threads; and the frame count at the end.

mod error;
mod interface;

pub use error::{RunError, StartError};

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant as WallInstant;

use interruptlet_xdp::{AttachMode, PortRule, Program, Protocol, Rules};

use self::interface::Interface;
use crate::arena::{Arena, FrameCount};
use crate::clock::{Clock, MonotonicClock};
use crate::config::{
    ADDRESSES_MAX, Config, LARGE_CHUNK_BYTES, MTU_MAX, MTU_MIN, Mode, SMALL_CHUNK_BYTES,
};
use crate::mailbox::{Mailbox, Waker};
use crate::pool::Pool;
use crate::port::xsk::{BindMode, XskOptions, XskPort, usable_bytes};
use crate::service::{Budget, DatagramService, Handler, StreamService};
use crate::tcp::StreamPort;
use crate::telemetry::Counters;
use crate::udp::DatagramPort;
use crate::wire::LINK_HEADER_BYTES_MAX;
use crate::worker::{Ended, RunState, RunSwitch, Worker, WorkerParts};

/// How long a queue that another socket is just leaving is waited for.
const BUSY_TIMEOUT_SECONDS: u64 = 3;
/// How often it is tried again meanwhile.
const BUSY_RETRY: std::time::Duration = std::time::Duration::from_millis(20);

/// Collects services, then starts a [`Stack`].
pub struct Builder {
    config: Config,
    streams: Vec<(u16, StreamService)>,
    datagrams: Vec<(u16, DatagramService)>,
}

/// A running stack. Dropping it stops it at once, resetting its connections; see
/// [`shutdown`](Self::shutdown) for the orderly way.
pub struct Stack {
    interface: String,
    /// `None` once stopped.
    program: Option<Program>,
    workers: Vec<RunningWorker>,
    pool: Option<Pool>,
    switch: Arc<RunSwitch>,
    facts: Facts,
    /// Keeps link-layer group memberships and, with a shared address, the ports.
    _reservations: Reservations,
}

struct RunningWorker {
    queue: u32,
    counters: Arc<Counters>,
    waker: Arc<Waker>,
    /// `None` once joined.
    thread: Option<JoinHandle<Ended<XskPort>>>,
}

#[derive(Default)]
struct Reservations {
    _groups: Option<OwnedFd>,
    _streams: Vec<TcpListener>,
    _datagrams: Vec<UdpSocket>,
}

/// How the stack is attached, for its user to see.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The XDP program runs in the driver, not in the kernel's generic path.
    pub native: bool,
    /// Why not, if not.
    pub native_refusal: Option<String>,
    /// Whether each queue is bound in zero-copy mode, by queue.
    pub zero_copy: Vec<(u32, bool)>,
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.native, &self.native_refusal) {
            (true, _) => f.write_str("XDP native")?,
            (false, None) => f.write_str("XDP generic")?,
            (false, Some(refusal)) => write!(f, "XDP generic (native: {refusal})")?,
        }
        for (queue, zero_copy) in &self.zero_copy {
            let mode = if *zero_copy { "zero-copy" } else { "copy" };
            write!(f, ", queue {queue} {mode}")?;
        }
        Ok(())
    }
}

/// What was counted, and where the frames are.
#[derive(Debug, Clone)]
pub struct Report {
    /// Names and values of all counters, summed over the workers.
    pub counters: Vec<(&'static str, u64)>,
    /// Names and values of the XDP program's counters; empty if they could not be read.
    pub xdp: Vec<(&'static str, u64)>,
    /// Frames by owner, by queue.
    pub frames: Vec<(u32, FrameCount)>,
    /// After a stop: whether every frame is where it belongs. While running: whether every frame has an
    /// owner.
    pub conserved: bool,
}

impl Stack {
    /// Begins a stack.
    pub fn builder(config: Config) -> Builder {
        Builder {
            config,
            streams: Vec::new(),
            datagrams: Vec::new(),
        }
    }

    /// How the stack is attached.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What was counted so far.
    pub fn report(&self) -> Report {
        let frames: Vec<_> = self
            .workers
            .iter()
            .map(|worker| (worker.queue, worker.counters.frames()))
            .collect();
        let conserved = frames.iter().all(|(_, count)| count.is_conserved());
        self.report_with(frames, conserved)
    }

    /// Whether the stack still runs, and if not, why not. Cheap: call it every now and then.
    ///
    /// # Errors
    ///
    /// If it ended by itself. The stack is to be shut down then; it does nothing any more.
    pub fn check(&mut self) -> Result<(), RunError> {
        let gone = self
            .program
            .as_ref()
            .is_some_and(|program| !program.is_attached());
        if gone {
            return Err(RunError::InterfaceGone {
                interface: self.interface.clone(),
            });
        }
        for worker in &mut self.workers {
            if !worker.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                continue;
            }
            let Some(thread) = worker.thread.take() else {
                continue;
            };
            let queue = worker.queue;
            return Err(match thread.join() {
                Ok(ended) => RunError::Queue {
                    interface: self.interface.clone(),
                    queue,
                    source: ended
                        .result
                        .err()
                        .unwrap_or_else(|| std::io::Error::other("it was stopped")),
                },
                Err(_) => RunError::Panicked { queue },
            });
        }
        Ok(())
    }

    /// Stops: no new connections; what was begun has `grace` to finish and is reset then. The kernel has
    /// its traffic back before the sockets close.
    pub fn shutdown(mut self, grace: std::time::Duration) -> Report {
        self.set_state(RunState::Draining);
        let until = WallInstant::now() + grace;
        while WallInstant::now() < until && !self.all_finished() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.stop()
    }

    fn set_state(&self, state: RunState) {
        self.switch.set(state);
        for worker in &self.workers {
            worker.waker.wake();
        }
    }

    fn all_finished(&self) -> bool {
        self.workers
            .iter()
            .all(|worker| worker.thread.as_ref().is_none_or(JoinHandle::is_finished))
    }

    fn stop(&mut self) -> Report {
        self.set_state(RunState::Stopping);
        let mut arenas: Vec<(u32, Arena)> = Vec::new();
        let mut ports = Vec::new();
        let mut complete = true;
        for worker in &mut self.workers {
            match worker.thread.take().map(JoinHandle::join) {
                Some(Ok(ended)) => {
                    ports.push(ended.port);
                    arenas.push((worker.queue, ended.arena));
                }
                // Panicked, or joined by `check` after it failed.
                Some(Err(_)) | None => complete = false,
            }
        }
        let xdp = self.xdp_counters();
        // Detach first: whatever arrives from now on is the kernel's.
        if let Some(program) = self.program.take()
            && let Err(error) = program.detach()
        {
            log::debug!("detaching the XDP program: {error}");
        }
        drop(ports);
        if let Some(pool) = self.pool.take() {
            pool.join();
        }
        let mut frames = Vec::new();
        let mut conserved = complete;
        for (queue, arena) in &mut arenas {
            arena.collect_loans();
            conserved &= arena.is_at_rest();
            frames.push((*queue, arena.count()));
        }
        let mut report = self.report_with(frames, conserved);
        report.xdp = xdp;
        report
    }

    fn report_with(&self, frames: Vec<(u32, FrameCount)>, conserved: bool) -> Report {
        let mut counters: Vec<(&'static str, u64)> = Vec::new();
        for worker in &self.workers {
            for (index, (name, value)) in worker.counters.snapshot().into_iter().enumerate() {
                match counters.get_mut(index) {
                    Some((_, sum)) => *sum += value,
                    None => counters.push((name, value)),
                }
            }
        }
        Report {
            counters,
            xdp: self.xdp_counters(),
            frames,
            conserved,
        }
    }

    fn xdp_counters(&self) -> Vec<(&'static str, u64)> {
        self.program
            .as_ref()
            .and_then(|program| program.counters().ok())
            .map(|counters| counters.iter().collect())
            .unwrap_or_default()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.program.is_some() {
            self.stop();
        }
    }
}

impl Builder {
    /// Registers a service for a TCP port of all our addresses.
    #[must_use]
    pub fn stream(mut self, port: u16, service: StreamService) -> Self {
        self.streams.push((port, service));
        self
    }

    /// Registers a service for a UDP port of all our addresses.
    #[must_use]
    pub fn datagram(mut self, port: u16, service: DatagramService) -> Self {
        self.datagrams.push((port, service));
        self
    }

    /// Checks everything, attaches the XDP program, binds the queues and starts the workers.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    pub fn start(self) -> Result<Stack, StartError> {
        let config = &self.config;
        self.check_services()?;
        let interface = check_config(config)?;
        warn_of_unserved_queues(config, &interface);
        let reservations = self.reserve(&interface)?;

        let program = Program::attach(&config.interface, &self.rules())?;
        let mut bound = Vec::new();
        for queue in &config.queues {
            bound.push(bind(config, *queue, interface.mtu)?);
        }
        let facts = Facts {
            native: program.mode() == AttachMode::Native,
            native_refusal: program.native_refusal().map(ToString::to_string),
            zero_copy: config
                .queues
                .iter()
                .zip(&bound)
                .map(|(queue, bound)| (*queue, bound.mode == BindMode::ZeroCopy))
                .collect(),
        };

        let pool =
            Pool::start(config.slow_threads, config.limits.slow_queue).map_err(|source| {
                StartError::System {
                    action: "start the slow path's threads",
                    source,
                }
            })?;
        let switch = Arc::new(RunSwitch::default());
        let clock = MonotonicClock::since(WallInstant::now());
        // From here on, dropping the stack undoes everything.
        let mut stack = Stack {
            interface: config.interface.clone(),
            program: Some(program),
            workers: Vec::new(),
            pool: None,
            switch,
            facts,
            _reservations: reservations,
        };
        let submitter = pool.submitter().clone();
        stack.pool = Some(pool);
        for (number, bound) in bound.into_iter().enumerate() {
            let worker = self.start_worker(number, bound, &interface, &stack, &submitter, clock)?;
            stack.workers.push(worker);
        }
        Ok(stack)
    }

    fn start_worker(
        &self,
        number: usize,
        bound: Bound,
        interface: &Interface,
        stack: &Stack,
        pool: &crate::pool::Submitter,
        mut clock: MonotonicClock,
    ) -> Result<RunningWorker, StartError> {
        let config = &self.config;
        let (queue, core) = (config.queues[number], config.cores[number]);
        if let Some(program) = &stack.program {
            program.register(queue, bound.port.fd())?;
        }
        let system = |action| move |source| StartError::System { action, source };
        let mailbox = Mailbox::new(config.limits.commands)
            .map_err(system("make a worker's event descriptor"))?;
        let waker = Arc::clone(mailbox.waker());
        let counters = Arc::new(Counters::default());
        let parts = WorkerParts {
            link_address: interface.link,
            addresses: config.addresses.clone(),
            shared_address: config.shared_address,
            ip_mtu: interface.mtu,
            limits: config.limits,
            // Random keys from the operating system, by way of the standard library's hasher.
            seed: RandomState::new().hash_one(number),
            streams: self
                .streams
                .iter()
                .map(|(port, service)| StreamPort {
                    port: *port,
                    handler: Handler::new((service.interruptlet)(number)),
                    slow: service.slow.clone(),
                    budget: Budget::new(config.limits.handler_budget),
                    request_timeout: service.request_timeout,
                    idle_timeout: service.idle_timeout,
                })
                .collect(),
            datagrams: self
                .datagrams
                .iter()
                .map(|(port, service)| DatagramPort {
                    port: *port,
                    handler: Handler::new((service.interruptlet)(number)),
                    slow: service.slow.clone(),
                    budget: Budget::new(config.limits.handler_budget),
                })
                .collect(),
            pool: pool.clone(),
            mailbox,
            counters: Arc::clone(&counters),
        };
        let (poll, switch) = (config.poll, Arc::clone(&stack.switch));
        let thread = std::thread::Builder::new()
            .name(format!("ilet-core-{core}"))
            .spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: core });
                let now = clock.now();
                Worker::new(bound.port, bound.arena, parts, now).run(&mut clock, poll, &switch)
            })
            .map_err(system("start a worker's thread"))?;
        Ok(RunningWorker {
            queue,
            counters,
            waker,
            thread: Some(thread),
        })
    }

    fn check_services(&self) -> Result<(), StartError> {
        if self.streams.is_empty() && self.datagrams.is_empty() {
            return Err(StartError::NoService);
        }
        let streams: Vec<u16> = self.streams.iter().map(|(port, _)| *port).collect();
        let datagrams: Vec<u16> = self.datagrams.iter().map(|(port, _)| *port).collect();
        for (protocol, ports) in [("TCP", streams), ("UDP", datagrams)] {
            if let Some(port) = first_duplicate(&ports) {
                return Err(StartError::PortTwice { protocol, port });
            }
        }
        Ok(())
    }

    fn rules(&self) -> Rules {
        let config = &self.config;
        if !config.shared_address {
            return Rules {
                // The address, not its prefix: other hosts are on that.
                own: config
                    .addresses
                    .iter()
                    .map(|cidr| (cidr.address, if cidr.address.is_ipv4() { 32 } else { 128 }))
                    .collect(),
                ports: Vec::new(),
            };
        }
        let mut ports = Vec::new();
        for cidr in &config.addresses {
            let rule = |protocol| {
                move |port: u16| PortRule {
                    address: cidr.address,
                    protocol,
                    port,
                }
            };
            ports.extend(self.streams.iter().map(|s| s.0).map(rule(Protocol::Tcp)));
            ports.extend(self.datagrams.iter().map(|d| d.0).map(rule(Protocol::Udp)));
        }
        Rules {
            own: Vec::new(),
            ports,
        }
    }

    /// Own addresses: has the interface let their groups through. Shared ones: takes the ports from the
    /// kernel, so that it gives them to nobody else.
    fn reserve(&self, interface: &Interface) -> Result<Reservations, StartError> {
        let config = &self.config;
        let mut reservations = Reservations::default();
        if !config.shared_address {
            let v6 = config
                .addresses
                .iter()
                .filter_map(|cidr| match cidr.address {
                    IpAddr::V6(v6) => Some(v6),
                    IpAddr::V4(_) => None,
                });
            match interface::join_solicited_node_groups(interface.index, v6) {
                Ok(groups) => reservations._groups = Some(groups),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    return Err(StartError::MissingNetRaw);
                }
                Err(source) => {
                    return Err(StartError::System {
                        action: "join the link-layer groups of the IPv6 addresses",
                        source,
                    });
                }
            }
            return Ok(reservations);
        }
        for cidr in &config.addresses {
            let in_use = |protocol, port| {
                move |source| StartError::PortInUse {
                    protocol,
                    port,
                    address: cidr.address,
                    source,
                }
            };
            for (port, _) in &self.streams {
                let address = SocketAddr::new(cidr.address, *port);
                let listener = TcpListener::bind(address).map_err(in_use("TCP", *port))?;
                reservations._streams.push(listener);
            }
            for (port, _) in &self.datagrams {
                let address = SocketAddr::new(cidr.address, *port);
                let socket = UdpSocket::bind(address).map_err(in_use("UDP", *port))?;
                reservations._datagrams.push(socket);
            }
        }
        Ok(reservations)
    }
}

/// Everything about the configuration that can be checked before anything is changed.
fn check_config(config: &Config) -> Result<Interface, StartError> {
    if config.queues.is_empty() || config.queues.len() != config.cores.len() {
        return Err(StartError::QueuesAndCores {
            queues: config.queues.len(),
            cores: config.cores.len(),
        });
    }
    if let Some(queue) = first_duplicate(&config.queues) {
        return Err(StartError::QueueTwice(queue));
    }
    if config.addresses.is_empty() || config.addresses.len() > ADDRESSES_MAX {
        return Err(StartError::AddressCount {
            count: config.addresses.len(),
        });
    }
    for cidr in &config.addresses {
        let address = cidr.address;
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.octets()[0] >= 240);
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() || broadcast
        {
            return Err(StartError::NotUnicast(*cidr));
        }
    }
    for (index, gateway) in config.gateways.iter().enumerate() {
        let same_version = |other: &IpAddr| other.is_ipv4() == gateway.is_ipv4();
        if config.gateways[..index].iter().any(same_version)
            || !config
                .addresses
                .iter()
                .any(|cidr| same_version(&cidr.address))
        {
            return Err(StartError::Gateway(*gateway));
        }
    }
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = config
        .cores
        .iter()
        .find(|core| !allowed.iter().any(|id| id.id == **core))
    {
        let allowed: Vec<String> = allowed.iter().map(|id| id.id.to_string()).collect();
        return Err(StartError::NoSuchCore {
            core: *core,
            allowed: allowed.join(", "),
        });
    }

    let interface = interface::find(&config.interface)
        .map_err(|source| StartError::System {
            action: "list the interfaces",
            source,
        })?
        .ok_or_else(|| StartError::NoSuchInterface {
            interface: config.interface.clone(),
        })?;
    if !interface.is_up {
        return Err(StartError::InterfaceDown {
            interface: config.interface.clone(),
        });
    }
    if !(MTU_MIN..=MTU_MAX).contains(&interface.mtu) {
        return Err(StartError::Mtu {
            interface: config.interface.clone(),
            mtu: interface.mtu,
        });
    }
    if let Some(queues) = interface.queues
        && let Some(queue) = config.queues.iter().find(|queue| **queue >= queues)
    {
        return Err(StartError::QueueOutOfRange {
            interface: config.interface.clone(),
            queue: *queue,
            last: queues.saturating_sub(1),
        });
    }
    for cidr in &config.addresses {
        let at = interface.kernel_addresses.iter().find(|(name, address)| {
            *address == cidr.address && (!config.shared_address || *name == config.interface)
        });
        match (at, config.shared_address) {
            (Some((name, address)), false) => {
                return Err(StartError::KernelHasAddress {
                    address: *address,
                    interface: name.clone(),
                });
            }
            (None, true) => {
                return Err(StartError::KernelLacksAddress {
                    address: cidr.address,
                    interface: config.interface.clone(),
                });
            }
            (Some(_), true) | (None, false) => {}
        }
    }
    Ok(interface)
}

/// What arrives for us on a queue without a worker goes to the kernel, which does not answer for our
/// addresses.
fn warn_of_unserved_queues(config: &Config, interface: &Interface) {
    let Some(queues) = interface.queues else {
        return;
    };
    let unserved: Vec<String> = (0..queues)
        .filter(|queue| !config.queues.contains(queue))
        .map(|queue| queue.to_string())
        .collect();
    if !unserved.is_empty() {
        log::warn!(
            "{} also has queue {}: what arrives there is left to the kernel; serve all queues, or steer or \
             reduce them (`ethtool -N`, `ethtool -L`)",
            config.interface,
            unserved.join(", ")
        );
    }
}

/// A socket that is bound to its queue.
struct Bound {
    port: XskPort,
    arena: Arena,
    mode: BindMode,
}

/// Binds a queue: zero-copy first, copy where that is allowed. A queue that somebody is just leaving
/// (teardown is asynchronous) is waited for.
fn bind(config: &Config, queue: u32, mtu: usize) -> Result<Bound, StartError> {
    let frame_bytes = (mtu + LINK_HEADER_BYTES_MAX) as u32;
    let chunk_bytes = if frame_bytes <= usable_bytes(SMALL_CHUNK_BYTES) {
        SMALL_CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    };
    let mut mode = match config.mode {
        Mode::Auto | Mode::ZeroCopy => BindMode::ZeroCopy,
        Mode::Copy => BindMode::Copy,
    };
    let interface = config.interface.clone();
    let until = WallInstant::now() + std::time::Duration::from_secs(BUSY_TIMEOUT_SECONDS);
    let mut said = false;
    loop {
        let options = XskOptions {
            interface: interface.clone(),
            queue,
            frames: config.limits.frames,
            chunk_bytes,
            ring_entries: config.limits.ring_entries,
            fill_target: config.limits.fill_target,
            loans_max: config.limits.loans,
            bind: mode,
            busy_poll: true,
        };
        let error = match XskPort::open(&options) {
            Ok((port, arena)) => return Ok(Bound { port, arena, mode }),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EBUSY) if WallInstant::now() < until => {
                if !said {
                    log::warn!("queue {queue} of {interface} is busy: waiting for it");
                    said = true;
                }
                std::thread::sleep(BUSY_RETRY);
            }
            Some(libc::EBUSY) => {
                return Err(StartError::QueueBusy {
                    interface,
                    queue,
                    seconds: BUSY_TIMEOUT_SECONDS,
                });
            }
            Some(libc::EPERM | libc::EACCES) => return Err(StartError::MissingNetRaw),
            Some(libc::ENETDOWN) => return Err(StartError::InterfaceDown { interface }),
            _ if mode == BindMode::ZeroCopy && config.mode == Mode::Auto => {
                log::info!("queue {queue} of {interface}: no zero-copy ({error}), using copy mode");
                mode = BindMode::Copy;
            }
            _ if mode == BindMode::ZeroCopy => {
                return Err(StartError::NoZeroCopy {
                    interface,
                    queue,
                    source: error,
                });
            }
            _ => {
                return Err(StartError::Bind {
                    interface,
                    queue,
                    source: error,
                });
            }
        }
    }
}

fn first_duplicate<T: PartialEq + Copy>(items: &[T]) -> Option<T> {
    items
        .iter()
        .enumerate()
        .find(|(index, item)| items[..*index].contains(item))
        .map(|(_, item)| *item)
}
