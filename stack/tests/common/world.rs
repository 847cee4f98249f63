//! A simulated worker and a real TCP client (a plain smoltcp interface) on one wire and one virtual time.

use interruptlet::port::faulty::Faults;
use interruptlet::port::memory::MemoryPeer;
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::{Duration, Instant};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::lane::Lane;
use super::oracle::Oracle;
use super::{CLIENT_LINK, PORT, Version};

/// The client's network device: the other end of the worker's wire.
pub struct Wire {
    peer: MemoryPeer,
    to_client: Lane,
    to_worker: Lane,
    /// Checks what the worker sends.
    pub oracle: Option<Oracle>,
}

impl Wire {
    /// Puts what the worker sent on its way. Returns whether there was anything.
    fn collect(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(frame) = self.peer.take() {
            moved = true;
            if let Some(oracle) = &mut self.oracle {
                oracle.emitted(&frame, now);
            }
            self.to_client.send(&frame, now);
            self.peer.recycle(frame);
        }
        moved
    }

    /// Gives the worker what has arrived for it.
    fn deliver(&mut self, now: Instant) {
        while let Some(frame) = self.to_worker.take(now) {
            if let Some(oracle) = &mut self.oracle {
                oracle.delivered(&frame, now);
            }
            self.peer.inject(&frame);
        }
    }

    /// Changes what goes wrong in both directions.
    pub fn set_faults(&mut self, faults: Faults) {
        self.to_client.set_faults(faults);
        self.to_worker.set_faults(faults);
    }

    fn next_arrival(&self) -> Option<Instant> {
        let lanes = [&self.to_client, &self.to_worker];
        lanes.into_iter().filter_map(Lane::next_arrival).min()
    }
}

impl Device for Wire {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, now: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.to_client.take(now)?;
        let lane = &mut self.to_worker;
        Some((RxToken { frame }, TxToken { lane, now }))
    }

    fn transmit(&mut self, now: Instant) -> Option<TxToken<'_>> {
        let lane = &mut self.to_worker;
        Some(TxToken { lane, now })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub struct RxToken {
    frame: Vec<u8>,
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.frame)
    }
}

pub struct TxToken<'a> {
    lane: &'a mut Lane,
    now: Instant,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.lane.send(&frame, self.now);
        result
    }
}

/// Worker and client.
pub struct World {
    pub sim: Sim,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub wire: Wire,
    /// Whether the slow path's jobs run by themselves, right after every turn.
    pub runs_jobs: bool,
    /// The longest step of time when nothing happens: short where a test waits for something that no deadline knows
    /// of.
    pub step_max: Duration,
    next_port: u16,
}

impl World {
    /// With an oracle, unless the worker's port has faults, which an oracle cannot see.
    pub fn new(config: SimConfig) -> Self {
        let seed = config.seed;
        let oracle = config
            .faults
            .is_perfect()
            .then(|| Oracle::new("worker", config.mtu));
        let sim = Sim::new(config);
        let mut wire = Wire {
            peer: sim.peer().clone(),
            to_client: Lane::perfect(),
            to_worker: Lane::perfect(),
            oracle,
        };
        let mut client = Config::new(HardwareAddress::Ethernet(EthernetAddress(CLIENT_LINK)));
        client.random_seed = !seed;
        let mut interface = Interface::new(client, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for (version, prefix) in [(Version::V4, 24), (Version::V6, 64)] {
                let address = IpCidr::new(version.client().into(), prefix);
                addresses.push(address).expect("room for two addresses");
            }
        });
        Self {
            sim,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            runs_jobs: true,
            step_max: Duration::from_secs(3600),
            next_port: 40_000,
        }
    }

    /// With faults between the client and the oracle.
    pub fn with_faults(config: SimConfig, faults: Faults) -> Self {
        let seed = config.seed;
        let mut world = Self::new(config);
        world.wire.to_client = Lane::new(faults, seed);
        world.wire.to_worker = Lane::new(faults, !seed);
        world
    }

    /// Begins a connection to [`PORT`], with buffers of 64 KiB.
    pub fn connect(&mut self, version: Version) -> SocketHandle {
        self.connect_with(version, 64 * 1024)
    }

    /// Begins a connection to [`PORT`] with a receive buffer of `window` bytes.
    pub fn connect_with(&mut self, version: Version, window: usize) -> SocketHandle {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; window]),
            SocketBuffer::new(vec![0; 64 * 1024]),
        );
        socket.set_nagle_enabled(false);
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        let server = (version.server(), PORT);
        socket
            .connect(self.interface.context(), server, port)
            .expect("a fresh socket can connect");
        self.sockets.add(socket)
    }

    /// A connection that is established.
    pub fn connected(&mut self, version: Version) -> SocketHandle {
        let handle = self.connect(version);
        let established = self.run_until(Duration::from_secs(60), |world| {
            world.socket(handle).state() == State::Established
        });
        assert!(established, "no connection");
        handle
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// One poll of the client, one turn of the worker, and its slow path's jobs. Returns whether anything
    /// happened.
    pub fn step(&mut self) -> bool {
        let now = self.sim.now();
        self.wire.collect(now);
        let polled = self.interface.poll(now, &mut self.wire, &mut self.sockets);
        self.wire.deliver(now);
        let turned = self.sim.turn() | self.wire.collect(now);
        let jobs = if self.runs_jobs {
            self.sim.run_jobs(64)
        } else {
            0
        };
        polled != PollResult::None || turned || jobs > 0
    }

    /// Steps until `done` or until `limit` has passed; returns whether it is done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.sim.now() + limit;
        loop {
            if done(self) {
                return true;
            }
            if self.step() {
                continue;
            }
            let now = self.sim.now();
            if now >= end {
                return false;
            }
            let next = self
                .interface
                .poll_at(now, &self.sockets)
                .into_iter()
                .chain(self.sim.next_deadline())
                .chain(self.wire.next_arrival())
                .min()
                .unwrap_or(end)
                // Deadlines of the wheel are ticks; a deadline that is over moves time a little.
                .max(now + Duration::from_micros(100))
                .min(now + self.step_max)
                .min(end);
            self.sim.advance(next - now);
        }
    }

    /// What the oracle saw last.
    pub fn history(&self) -> String {
        self.wire
            .oracle
            .as_ref()
            .map_or(String::new(), Oracle::history)
    }

    /// Lets `time` pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Sends all of `bytes` while reading what comes; returns what came once `expected` bytes did, the
    /// other side closed, or nothing more came for `limit`.
    pub fn exchange(
        &mut self,
        handle: SocketHandle,
        bytes: &[u8],
        expected: usize,
        limit: Duration,
    ) -> Vec<u8> {
        let mut sent = 0;
        let mut received = Vec::new();
        self.run_until(limit, |world| {
            let socket = world.socket(handle);
            if sent < bytes.len() && socket.may_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap_or(0);
            }
            read(socket, &mut received);
            (received.len() >= expected && sent == bytes.len())
                || (!socket.may_recv() && !socket.can_recv() && socket.state() != State::SynSent)
        });
        received
    }

    /// Sends a request and returns as many bytes of the reply.
    pub fn request(&mut self, handle: SocketHandle, bytes: &[u8], expected: usize) -> Vec<u8> {
        self.exchange(handle, bytes, expected, Duration::from_secs(300))
    }

    /// Closes the client's side and reads until the worker has closed its own; returns what came.
    pub fn close(&mut self, handle: SocketHandle) -> Vec<u8> {
        self.socket(handle).close();
        let mut received = Vec::new();
        let closed = self.run_until(Duration::from_secs(300), |world| {
            let socket = world.socket(handle);
            read(socket, &mut received);
            matches!(socket.state(), State::Closed | State::TimeWait)
        });
        assert!(closed, "the worker did not close");
        received
    }
}

/// Moves everything that was received to `to`.
pub fn read(socket: &mut Socket<'static>, to: &mut Vec<u8>) {
    while socket.can_recv() {
        let taken = socket.recv(|bytes| {
            to.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        });
        if taken.is_err() {
            break;
        }
    }
}
