//! What the simulation tests share: addresses, packets made by hand ([`packets`]), a peer that speaks TCP
//! by hand ([`raw`]), scripts of such a peer ([`script`]), a real TCP client on the same virtual time ([`world`]),
//! another worker with a client side ([`pair`]), the wire between them ([`lane`]), what a stack may send on it
//! ([`oracle`]), conversations ([`acts`], [`dialogue`], [`plans`]), downloads over a link ([`downloads`], with a
//! [`meter`] on the wire), handlers ([`handlers`]), and the seeds of simulations ([`seeds`]).
// Every test binary compiles this module for itself and uses its own part of it; helpers fail by panicking.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod acts;
pub mod dialogue;
pub mod downloads;
pub mod handlers;
pub mod lane;
pub mod meter;
pub mod oracle;
pub mod packets;
pub mod pair;
pub mod plans;
pub mod raw;
pub mod script;
pub mod seeds;
pub mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use interruptlet::Duration;
use interruptlet::interruptlet::{DatagramInterruptlet, StreamInterruptlet};
use interruptlet::sim::{Sim, SimConfig, SimDatagram, SimStream};

/// The link address of the simulated worker ([`SimConfig::default`]).
pub const SERVER_LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The link address of its peer.
pub const CLIENT_LINK: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Addresses of the worker ([`SimConfig::default`]) and of its peer.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// See [`SERVER_V4`].
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// See [`SERVER_V4`].
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// See [`SERVER_V4`].
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The port of the service under test, TCP and UDP alike.
pub const PORT: u16 = 7;
/// A port that no service has.
pub const CLOSED_PORT: u16 = 9;

/// An IP version, for tests that do the same with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

/// Both versions.
pub const BOTH: [Version; 2] = [Version::V4, Version::V6];

impl Version {
    pub fn server(self) -> IpAddr {
        match self {
            Self::V4 => SERVER_V4.into(),
            Self::V6 => SERVER_V6.into(),
        }
    }

    pub fn client(self) -> IpAddr {
        match self {
            Self::V4 => CLIENT_V4.into(),
            Self::V6 => CLIENT_V6.into(),
        }
    }

    pub fn ip_header_bytes(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// A stream service on [`PORT`] without a slow path, with long timeouts.
pub fn stream(interruptlet: impl StreamInterruptlet + 'static) -> SimStream {
    SimStream {
        port: PORT,
        interruptlet: Box::new(interruptlet),
        slow: None,
        request_timeout: Duration::from_secs(10),
        idle_timeout: None,
        keep_alive: None,
    }
}

/// A datagram service on [`PORT`] without a slow path.
pub fn datagram(interruptlet: impl DatagramInterruptlet + 'static) -> SimDatagram {
    SimDatagram {
        port: PORT,
        interruptlet: Box::new(interruptlet),
        slow: None,
    }
}

/// A worker that echoes over TCP and UDP.
pub fn echo_config() -> SimConfig {
    SimConfig {
        streams: vec![stream(handlers::Echo)],
        datagrams: vec![datagram(handlers::Echo)],
        ..SimConfig::default()
    }
}

/// Everything that the worker sent and that was not taken yet.
pub fn sent(sim: &Sim) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| sim.peer().take()).collect()
}

/// Injects one frame, takes one turn, and returns what the worker sent.
pub fn exchange(sim: &mut Sim, frame: &[u8]) -> Vec<Vec<u8>> {
    sim.peer().inject(frame);
    sim.turn();
    sent(sim)
}

/// The value of the counter called `name`.
pub fn counter(sim: &Sim, name: &str) -> u64 {
    sim.counters()
        .snapshot()
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no counter is called {name}"))
        .1
}

/// Takes a turn for frames that are on their way home, then requires all of them to be there.
pub fn assert_at_rest(sim: &mut Sim) {
    sim.turn();
    assert!(sim.frames().is_conserved(), "{:?}", sim.frames());
    assert!(sim.is_at_rest(), "frames are missing: {:?}", sim.frames());
}

/// `len` bytes that differ from place to place, so that swapped or repeated parts show.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at ^ (at >> 8).wrapping_mul(31) ^ (at >> 16).wrapping_mul(7)) as u8)
        .collect()
}
