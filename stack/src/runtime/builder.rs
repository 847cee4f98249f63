//! Putting a stack together: services, then everything that has to be there before the first packet.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use interruptlet_xdp::{PortRule, Program, Protocol, Rules};

use super::interface::Interface;
use super::reserve::reserve;
use super::unserved::Responder;
use super::{Facts, RunningWorker, Stack, StartError, WorkerState, check, probe, queues};
use crate::client::ClientFactory;
use crate::clock::{Clock, MonotonicClock};
use crate::config::Config;
use crate::pool::{Mailbox, Pool, Submitter};
use crate::port::faulty::FaultyPort;
use crate::port::xsk::Bound;
use crate::service::{Budget, DatagramService, Handler, StreamService};
use crate::tcp::{Secret, StreamPort};
use crate::telemetry::Counters;
use crate::udp::DatagramPort;
use crate::worker::{Ended, RunSwitch, Worker, WorkerParts};

/// Collects services, then starts a [`Stack`].
pub struct Builder {
    config: Config,
    streams: Vec<(u16, StreamService)>,
    datagrams: Vec<(u16, DatagramService)>,
    client: Option<ClientFactory>,
}

impl Builder {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            streams: Vec::new(),
            datagrams: Vec::new(),
            client: None,
        }
    }

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

    /// Has each worker run a client (see [`client`](crate::client)).
    #[must_use]
    pub fn client(mut self, factory: ClientFactory) -> Self {
        self.client = Some(factory);
        self
    }

    /// Checks everything, attaches the XDP program, binds the queues and starts the workers.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    pub fn start(self) -> Result<Stack, StartError> {
        let config = &self.config;
        let tcp_ports: Vec<u16> = self.streams.iter().map(|(port, _)| *port).collect();
        let udp_ports: Vec<u16> = self.datagrams.iter().map(|(port, _)| *port).collect();
        check::services(&tcp_ports, &udp_ports, self.client.is_some())?;
        let interface = queues::with_link(check::config(config, &tcp_ports, &udp_ports)?);
        probe::addresses(config, &interface)?;
        let reservations = reserve(config, &interface, &tcp_ports, &udp_ports)?;

        let rules = rules(config, &tcp_ports, &udp_ports);
        let program = Program::attach(&config.interface, &rules)?;
        queues::check_served(config, &interface)?;
        let bound = queues::bind_all(config, &config.queues, &interface, &program)?;
        let responder = Responder::start_if_needed(config, &interface)?;
        let facts = Facts::new(&program, &config.queues, &bound);

        let pool =
            Pool::start(config.slow_threads, config.limits.slow_queue).map_err(|source| {
                StartError::System {
                    action: "start the slow path's threads",
                    source,
                }
            })?;
        let switch = Arc::new(RunSwitch::default());
        // From here on, dropping the stack undoes everything.
        let mut stack = Stack {
            config: config.clone(),
            interface: interface.clone(),
            program: Some(program),
            workers: Vec::new(),
            pool: None,
            switch,
            facts,
            responder,
            _reservations: reservations,
        };
        // One clock and one secret for all workers: if the card steers a connection to another queue in the middle of its
        // handshake, that queue's worker completes it.
        let common = Common {
            clock: MonotonicClock::since(Instant::now()),
            secret: random_secret(),
            pool: pool.submitter().clone(),
        };
        stack.pool = Some(pool);
        for (number, bound) in bound.into_iter().enumerate() {
            let worker = self.start_worker(number, bound, &interface, &stack, &common)?;
            stack.workers.push(worker);
        }
        queues::wait_for_link(&interface);
        Ok(stack)
    }

    fn start_worker(
        &self,
        number: usize,
        bound: Bound,
        interface: &Interface,
        stack: &Stack,
        common: &Common,
    ) -> Result<RunningWorker, StartError> {
        let config = &self.config;
        let mut clock = common.clock;
        let (queue, core) = (config.queues[number], config.cores[number]);
        let system = |action| move |source| StartError::System { action, source };
        let registration = match &stack.program {
            Some(program) => {
                program.register(queue, bound.port.fd())?;
                let registration = program.registration(queue).map_err(io::Error::other);
                Some(
                    registration
                        .map_err(system("keep a second descriptor of the map of sockets"))?,
                )
            }
            None => None,
        };
        // For a worker that ends by itself.
        let leave = move || {
            if let Some(Err(error)) = registration.map(|registration| registration.end()) {
                log::error!(
                    "queue {queue} has no worker any more and cannot be left to the kernel: {error}"
                );
            }
        };
        let mailbox = Mailbox::new(config.limits.commands)
            .map_err(system("make a worker's event descriptor"))?;
        let waker = Arc::clone(mailbox.waker());
        let counters = Arc::new(Counters::default());
        let statistics = bound
            .port
            .statistics()
            .map_err(system("keep a second descriptor of a queue's socket"))?;
        let parts = WorkerParts {
            link_address: interface.link,
            addresses: config.addresses.clone(),
            sources: config.sources.clone(),
            gateways: config.gateways.clone(),
            shared_address: config.shared_address,
            ip_mtu: interface.mtu,
            limits: config.limits,
            seed: RandomState::new().hash_one(number),
            secret: common.secret,
            isn_offset: 0,
            engine_only: config.engine_only,
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
                    keep_alive: service.keep_alive,
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
            client: self.client.as_ref().map(|make| make(number)),
            pool: common.pool.clone(),
            mailbox,
            counters: Arc::clone(&counters),
        };
        let (poll, switch) = (config.poll, Arc::clone(&stack.switch));
        let faults = config.faults;
        let thread = std::thread::Builder::new()
            .name(format!("ilet-core-{core}"))
            .spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: core });
                let now = clock.now();
                let Some((faults, seed)) = faults else {
                    let worker = Worker::new(bound.port, bound.arena, parts, now);
                    return worker.run(&mut clock, poll, &switch, leave);
                };
                let port = FaultyPort::new(bound.port, faults, seed);
                let worker = Worker::new(port, bound.arena, parts, now);
                let ended = worker.run(&mut clock, poll, &switch, leave);
                Ended {
                    port: ended.port.into_inner(),
                    arena: ended.arena,
                    result: ended.result,
                }
            })
            .map_err(system("start a worker's thread"))?;
        Ok(RunningWorker {
            queue,
            counters,
            statistics: Some(statistics),
            waker,
            state: WorkerState::Runs(thread),
        })
    }
}

/// What all workers of a stack have in common.
struct Common {
    /// With one start: cookies say when they were made.
    clock: MonotonicClock,
    secret: Secret,
    /// Dropped before the stack is, if a worker does not start: the pool's threads wait for jobs until no
    /// submitter is left.
    pool: Submitter,
}

/// 128 bits that nobody can guess, from the operating system by way of the standard library's hasher.
fn random_secret() -> Secret {
    [0, 1].map(|half| RandomState::new().hash_one(half))
}

/// What the XDP program is to give to us.
pub(super) fn rules(config: &Config, tcp_ports: &[u16], udp_ports: &[u16]) -> Rules {
    let mut own: Vec<(IpAddr, u8)> = config
        .sources
        .iter()
        .map(|cidr| (cidr.address, cidr.prefix))
        .collect();
    if !config.shared_address {
        // The address, not its prefix: other hosts are on that.
        own.extend(
            config
                .addresses
                .iter()
                .map(|cidr| (cidr.address, if cidr.address.is_ipv4() { 32 } else { 128 })),
        );
        return Rules {
            own,
            ports: Vec::new(),
        };
    }
    let mut ports = Vec::new();
    for cidr in &config.addresses {
        let rule = |protocol| {
            move |port: &u16| PortRule {
                address: cidr.address,
                protocol,
                port: *port,
            }
        };
        ports.extend(tcp_ports.iter().map(rule(Protocol::Tcp)));
        ports.extend(udp_ports.iter().map(rule(Protocol::Udp)));
    }
    Rules { own, ports }
}
