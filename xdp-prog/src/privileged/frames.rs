//! Frames to try the program on, built from the outside in.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const VLAN: u16 = 0x8100;
pub(super) const PROVIDER_VLAN: u16 = 0x88a8;

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const ESP: u8 = 50;
pub(super) const AUTHENTICATION: u8 = 51;
pub(super) const ICMPV6: u8 = 58;
pub(super) const NO_NEXT_HEADER: u8 = 59;
pub(super) const DESTINATION: u8 = 60;

pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const SOLICITATION: u8 = 135;
pub(super) const ADVERTISEMENT: u8 = 136;

/// An untagged Ethernet frame.
pub(super) fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    tagged(&[], ethertype, packet)
}

/// An Ethernet frame with tags of (ethertype, tag control information), the outer one first.
pub(super) fn tagged(tags: &[(u16, u16)], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for (tag, control) in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An IPv4 packet: 4-byte words of options, the fragment field (flags and offset), the rest.
pub(super) fn ipv4(
    to: &str,
    protocol: u8,
    option_words: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + usize::from(option_words) * 4;
    let mut packet = vec![0x45 + option_words, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(Ipv4Addr::new(10, 1, 1, 1).octets());
    packet.extend(to.parse::<Ipv4Addr>().unwrap().octets());
    packet.resize(header, 1);
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub(super) fn ipv6(to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend("fd00::ff".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

/// An IPv6 extension header with an 8-bit length, `extra` units longer than the shortest.
pub(super) fn extension(kind: u8, extra: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    // AH counts words of 4 bytes less two and is at least 12 bytes long (RFC 4302, section 2.2).
    let (length, size) = match kind {
        AUTHENTICATION => (1 + extra, 12 + usize::from(extra) * 4),
        _ => (extra, 8 + usize::from(extra) * 8),
    };
    let mut header = vec![next, length];
    header.resize(size, 0);
    header.extend(payload);
    header
}

/// An IPv6 fragment header, with offset and flag.
pub(super) fn fragment_header(fragment: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(fragment.to_be_bytes());
    header.extend([0, 0, 0, 1]);
    header.extend(payload);
    header
}

pub(super) fn tcp(port: u16) -> Vec<u8> {
    let mut segment = transport(port);
    segment.extend([0; 8]);
    segment.extend([0x50, 2, 0, 0, 0, 0, 0, 0]);
    segment
}

pub(super) fn udp(port: u16) -> Vec<u8> {
    let mut datagram = transport(port);
    datagram.extend([0, 8, 0, 0]);
    datagram
}

/// The ports, from 40000, of either protocol.
fn transport(port: u16) -> Vec<u8> {
    [40000u16.to_be_bytes(), port.to_be_bytes()].concat()
}

/// An ICMPv6 message, with a target address as ND messages have one.
pub(super) fn icmpv6(kind: u8, target: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    message
}

/// An ARP packet for IPv4 over Ethernet.
pub(super) fn arp(operation: u16, target: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 2, 10, 1, 1, 1]);
    packet.extend([0; 6]);
    packet.extend(target.parse::<Ipv4Addr>().unwrap().octets());
    packet
}
