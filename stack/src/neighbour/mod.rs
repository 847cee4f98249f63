//! ARP and neighbour discovery.
//!
//! * [`answer`]: questions about addresses that are ours alone are answered on their own frame, whoever asks.
//! * [`question`]: ARP requests and solicitations of ours, and [`claim`]: claims of others to an address.
//! * [`resolver`]: the link addresses of the few next hops that connections of ours are opened through.
//!
//! Flows need no table of neighbours: they answer to the link address that their peer's frames come from.

mod answer;
mod claim;
mod question;
mod resolver;

pub(crate) use answer::answer;
pub(crate) use claim::conflict;
pub(crate) use question::{Question, solicited_node_link};
pub use resolver::Reach;
pub(crate) use resolver::Resolver;

use crate::wire::{Address, ETHERNET_HEADER_BYTES, ETHERTYPE_ARP, IPV6_HEADER_BYTES};

/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP_BYTES: usize = 28;
/// Its first six bytes: Ethernet, IPv4, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

/// ICMPv6 types (RFC 4861 sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Bytes of a solicitation without options, and of an advertisement without options.
const MESSAGE_BYTES: usize = 24;
/// Bytes of either with its one option.
const MESSAGE_WITH_LINK_BYTES: usize = 32;
/// Options "source link-layer address" and "target link-layer address", one unit of eight bytes.
const SOURCE_LINK_OPTION: [u8; 2] = [1, 1];
const TARGET_LINK_OPTION: [u8; 2] = [2, 1];

/// Whether a frame of ARP or neighbour discovery asks for an address.
pub(crate) fn is_question(frame: &[u8]) -> bool {
    if frame[12..14] == ETHERTYPE_ARP {
        return frame.get(20..22) == Some(&ARP_REQUEST);
    }
    frame.get(ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES) == Some(&SOLICITATION)
}

/// An IPv4 address in a packet.
fn ipv4(bytes: &[u8]) -> Address {
    let mut octets = [0; 4];
    octets.copy_from_slice(bytes);
    std::net::IpAddr::from(octets).into()
}

/// An IPv6 address in a packet.
fn ipv6(bytes: &[u8]) -> std::net::Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    octets.into()
}
