//! A TCP echo on smoltcp, as one would write it first: one interface, all sockets in one set.
//!
//! A turn is a batch received, taken in packet by packet, a look at every socket, and everything that smoltcp
//! then has to send. smoltcp searches its sockets one by one, so that a packet costs more the more there are.
//! Neither is a packet copied between port and smoltcp, nor anything allocated per packet.
//!
//! smoltcp resolves one neighbour a second and remembers eight: clients that are not more than a few addresses
//! on its link are served at once.

use std::io;
use std::net::IpAddr;
use std::vec::Drain;

use interruptlet::arena::{Arena, Frame, Owner};
use interruptlet::config::{ENGINE_RX_BYTES, ENGINE_TX_BYTES};
use interruptlet::port::Port;
use interruptlet::{Cidr, Duration, Instant};
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::{Lane, Program, Turn};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// smoltcp's timers are looked at so often where nothing arrives: they are of milliseconds.
const TIMERS_EVERY: Duration = Duration::from_millis(1);

/// Where and how to serve.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The link address.
    pub link: [u8; 6],
    /// Bytes of an IP packet at most.
    pub mtu: usize,
    /// The address.
    pub address: Cidr,
    /// TCP port, not 0.
    pub port: u16,
    /// Connections at most. Each has buffers of the size of the stack's engines (16 KiB and 64 KiB), of which the
    /// system only provides what is used.
    pub sockets: usize,
}

/// The echo server.
pub struct Server {
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
    port: u16,
    mtu: usize,
    /// Bytes on their way from a socket's receive buffer to its send buffer.
    scratch: Vec<u8>,
    timers_at: Instant,
}

impl Server {
    /// A server that listens with all its sockets. `seed` decides sequence numbers.
    pub fn new<P: Port>(place: &Place, lane: &mut Lane<P>, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(place.link)));
        config.random_seed = seed;
        let mut device = Device::new(lane, place.mtu);
        let mut interface = Interface::new(config, &mut device, now);
        let (address, prefix) = (place.address.address, place.address.prefix);
        interface.update_ip_addrs(|addresses| {
            let cidr = match address {
                IpAddr::V4(v4) => IpCidr::new(v4.into(), prefix.min(32)),
                IpAddr::V6(v6) => IpCidr::new(v6.into(), prefix.min(128)),
            };
            // The table is empty, and has room for eight.
            let _ = addresses.push(cidr);
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(place.sockets));
        let handles = (0..place.sockets)
            .map(|_| {
                let mut socket = Socket::new(
                    SocketBuffer::new(vec![0; ENGINE_RX_BYTES]),
                    SocketBuffer::new(vec![0; ENGINE_TX_BYTES]),
                );
                socket.set_nagle_enabled(false);
                sockets.add(socket)
            })
            .collect();
        let mut server = Self {
            interface,
            sockets,
            handles,
            port: place.port,
            mtu: place.mtu,
            scratch: vec![0; ENGINE_RX_BYTES],
            timers_at: now,
        };
        server.echo();
        server
    }

    /// Looks at every socket: echoes what came, closes after the peer, and listens again.
    fn echo(&mut self) {
        for handle in &self.handles {
            let socket = self.sockets.get_mut::<Socket<'_>>(*handle);
            if !socket.is_open() {
                // The socket is closed and the port is not 0, which is all that could be wrong.
                let _ = socket.listen(self.port);
            } else if socket.can_recv() {
                let room = socket.send_capacity() - socket.send_queue();
                let room = room.min(self.scratch.len());
                let taken = socket.recv_slice(&mut self.scratch[..room]).unwrap_or(0);
                // There is room, and the socket sends as long as it receives.
                let _ = socket.send_slice(&self.scratch[..taken]);
            } else if socket.state() == State::CloseWait {
                socket.close();
            }
        }
    }
}

impl<P: Port> Program<P> for Server {
    fn turn(&mut self, lane: &mut Lane<P>, now: Instant) -> io::Result<Turn> {
        let received = lane.receive(now);
        if received || now >= self.timers_at {
            self.timers_at = now + TIMERS_EVERY;
            let mut device = Device::new(lane, self.mtu);
            while self
                .interface
                .poll_ingress_single(now, &mut device, &mut self.sockets)
                != PollIngressSingleResult::None
            {}
            self.echo();
            while self
                .interface
                .poll_egress(now, &mut device, &mut self.sockets)
                != PollResult::None
            {}
        }
        Ok(Turn::from(lane.transmit(now)? | received))
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

/// A lane as smoltcp sees it, for the length of one turn.
struct Device<'a> {
    arena: &'a mut Arena,
    received: Drain<'a, Frame>,
    outgoing: &'a mut Vec<Frame>,
    mtu: usize,
    /// The frame that smoltcp takes in.
    current: Option<Frame>,
    /// A frame for an answer to that.
    spare: Option<Frame>,
}

impl<'a> Device<'a> {
    fn new<P>(lane: &'a mut Lane<P>, mtu: usize) -> Self {
        Self {
            arena: &mut lane.arena,
            received: lane.received.drain(..),
            outgoing: &mut lane.outgoing,
            mtu,
            current: None,
            spare: None,
        }
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        // What is left of the batch found no frame for its answers: the peers send it again.
        let left = self.current.take().into_iter().chain(self.spare.take());
        for frame in left.chain(self.received.by_ref()) {
            self.arena.free(frame);
        }
    }
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if let Some(frame) = self.current.take() {
            self.arena.free(frame);
        }
        // Frames that smoltcp takes in may have to be answered.
        self.transmit(now)?;
        self.current = self.received.next();
        let frame = self.current.as_ref()?;
        let arena = &*self.arena;
        let rx = RxToken { arena, frame };
        let tx = TxToken {
            arena,
            spare: &mut self.spare,
            outgoing: self.outgoing,
        };
        Some((rx, tx))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        if self.spare.is_none() {
            self.spare = self.arena.alloc(Owner::Tx);
        }
        self.spare.is_some().then_some(TxToken {
            arena: self.arena,
            spare: &mut self.spare,
            outgoing: self.outgoing,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + self.mtu;
        capabilities
    }
}

struct RxToken<'a> {
    arena: &'a Arena,
    frame: &'a Frame,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.arena.bytes(self.frame))
    }
}

struct TxToken<'a> {
    arena: &'a Arena,
    spare: &'a mut Option<Frame>,
    outgoing: &'a mut Vec<Frame>,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.spare.take() {
            Some(mut frame) if len <= self.arena.frame_capacity() => {
                self.arena.set_len(&mut frame, len);
                let result = f(&mut self.arena.buffer_mut(&mut frame)[..len]);
                self.outgoing.push(frame);
                result
            }
            // Never: there is a frame with each token, and frames hold packets of the MTU. smoltcp insists on
            // writing, so it writes to nowhere.
            spare => {
                *self.spare = spare;
                f(&mut vec![0; len])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use interruptlet::port::memory::{self, MemoryPeer, MemoryPort};

    use super::*;

    const LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A server at 192.0.2.1, and a client of the same making at 192.0.2.2, one wire, one time.
    struct World {
        server: Server,
        lane: Lane<MemoryPort>,
        peer: MemoryPeer,
        client: Interface,
        client_lane: Lane<MemoryPort>,
        client_peer: MemoryPeer,
        sockets: SocketSet<'static>,
        now: Instant,
    }

    impl World {
        fn new(sockets: usize) -> Self {
            let now = Instant::ZERO;
            let lane = || {
                let (port, peer) = memory::pair();
                (Lane::new(port, Arena::anonymous(256, 1792, 0)), peer)
            };
            let (mut lane_, peer) = lane();
            let place = Place {
                link: LINK,
                mtu: 1500,
                address: "192.0.2.1/24".parse().unwrap(),
                port: 7,
                sockets,
            };
            let server = Server::new(&place, &mut lane_, 1, now);
            let (mut client_lane, client_peer) = lane();
            let link = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 2]));
            let mut client = Interface::new(
                Config::new(link),
                &mut Device::new(&mut client_lane, 1500),
                now,
            );
            client.update_ip_addrs(|addresses| {
                let address = IpCidr::new(IpAddr::from([192, 0, 2, 2]).into(), 24);
                addresses.push(address).unwrap();
            });
            Self {
                server,
                lane: lane_,
                peer,
                client,
                client_lane,
                client_peer,
                sockets: SocketSet::new(Vec::new()),
                now,
            }
        }

        fn connect(&mut self, from: u16) -> SocketHandle {
            let buffer = || SocketBuffer::new(vec![0; 65_536]);
            let mut socket = Socket::new(buffer(), buffer());
            let to = (IpAddr::from([192, 0, 2, 1]), 7);
            socket.connect(self.client.context(), to, from).unwrap();
            self.sockets.add(socket)
        }

        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            self.client_lane.receive(self.now);
            let mut device = Device::new(&mut self.client_lane, 1500);
            self.client.poll(self.now, &mut device, &mut self.sockets);
            drop(device);
            self.client_lane.transmit(self.now).unwrap();
            while let Some(frame) = self.client_peer.take() {
                self.peer.inject(&frame);
            }
            self.server.turn(&mut self.lane, self.now).unwrap();
            while let Some(frame) = self.peer.take() {
                self.client_peer.inject(&frame);
            }
        }

        /// Steps until `done`; panics if that takes more than a virtual minute.
        fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
            for _ in 0..60_000 {
                if done(self) {
                    return;
                }
                self.step();
            }
            panic!("it never happened");
        }

        fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
            self.sockets.get_mut(handle)
        }

        /// Sends `bytes` and returns as many.
        fn exchange(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
            self.exchange_for(handle, bytes, bytes.len())
        }

        /// Sends `bytes` and returns what came, at least `expected`.
        fn exchange_for(&mut self, handle: SocketHandle, bytes: &[u8], expected: usize) -> Vec<u8> {
            let (mut sent, mut back) = (0, Vec::new());
            self.until(|world| {
                let socket = world.socket(handle);
                if socket.can_send() && sent < bytes.len() {
                    sent += socket.send_slice(&bytes[sent..]).unwrap();
                }
                while socket.can_recv() {
                    let mut part = [0; 4096];
                    let len = socket.recv_slice(&mut part).unwrap();
                    back.extend_from_slice(&part[..len]);
                }
                back.len() >= expected
            });
            back
        }

        fn assert_at_rest(&self) {
            assert!(
                self.lane.arena.is_at_rest(),
                "{:?}",
                self.lane.arena.count()
            );
        }
    }

    #[test]
    fn several_connections_are_echoed() {
        let mut world = World::new(3);
        let handles = [40_000, 40_001, 40_002].map(|port| world.connect(port));
        let long: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        for handle in handles {
            assert_eq!(world.exchange(handle, b"hello"), b"hello");
        }
        assert_eq!(world.exchange(handles[1], &long), long);
        assert_eq!(world.exchange(handles[2], b"still there"), b"still there");
        world.assert_at_rest();
    }

    #[test]
    fn a_socket_listens_again_after_a_close_and_after_a_reset() {
        let mut world = World::new(1);
        for port in 40_000..40_004 {
            let handle = world.connect(port);
            assert_eq!(world.exchange(handle, b"hello"), b"hello");
            let socket = world.socket(handle);
            if port % 2 == 0 {
                socket.close();
                world.until(|world| world.socket(handle).state() == State::TimeWait);
            } else {
                socket.abort();
                world.step();
                world.step();
            }
        }
        world.assert_at_rest();
    }

    #[test]
    fn without_a_free_frame_the_batch_is_dropped_and_nothing_lost() {
        let mut world = World::new(1);
        let handle = world.connect(40_000);
        assert_eq!(world.exchange(handle, b"hello"), b"hello");
        let mut hoard = Vec::new();
        while world.lane.arena.free_frames() > 1 {
            hoard.extend(world.lane.arena.alloc(Owner::Flow));
        }
        world.socket(handle).send_slice(b"world").unwrap();
        for _ in 0..5 {
            world.step();
        }
        for frame in hoard {
            world.lane.arena.free(frame);
        }
        world.assert_at_rest();
        assert_eq!(world.exchange_for(handle, b"!", 6), b"world!");
    }
}
