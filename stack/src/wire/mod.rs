//! What is on the wire: parsing and rejecting frames, flow keys, link headers, checksums.
//!
//! Field access goes through `smoltcp::wire`; this module adds what a server must refuse before any
//! protocol sees it, and says why by a [`Reject`]. Pure functions over byte slices: no state, no clock.

pub mod checksum;
pub mod ip;
mod link;
mod parse;
mod reject;

pub(crate) use link::Colons;
pub use link::{LINK_HEADER_BYTES_MAX, LinkHeader};
pub use parse::{Local, Packet, TooBig, Transport, TransportKind, parse};
pub use reject::Reject;

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes of an IPv4 header without options (RFC 791).
pub const IPV4_HEADER_BYTES: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200).
pub const IPV6_HEADER_BYTES: usize = 40;
/// Bytes of a UDP header (RFC 768).
pub const UDP_HEADER_BYTES: usize = 8;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// Ethertypes as they are on the wire (IANA, "IEEE 802 Numbers").
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// An IP address of either version in 16 bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
///
/// Unambiguous because such addresses must not appear on the wire and are rejected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address([u8; 16]);

impl Address {
    /// The address as the standard library's type.
    pub fn to_ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// The 16 bytes.
    pub fn octets(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether this is an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

/// What tells flows apart: both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    /// The other end's address.
    pub peer: Address,
    /// Our address.
    pub local: Address,
    /// The other end's port.
    pub peer_port: u16,
    /// Our port.
    pub local_port: u16,
}

impl Hash for FlowKey {
    /// As few words as they are, without the lengths that the derived one would hash, too.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.peer.0));
        state.write_u128(u128::from_ne_bytes(self.local.0));
        state.write_u32(u32::from(self.peer_port) << 16 | u32::from(self.local_port));
    }
}

impl FlowKey {
    /// The key of a connection between these two ends.
    pub fn between(local: SocketAddr, peer: SocketAddr) -> Self {
        Self {
            peer: peer.ip().into(),
            local: local.ip().into(),
            peer_port: peer.port(),
            local_port: local.port(),
        }
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.local.to_ip(), self.local_port)
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        SocketAddr::new(self.peer.to_ip(), self.peer_port)
    }
}
