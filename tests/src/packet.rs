//! Owns packets as bytes: builders that make them right, a way to make a checksum wrong on purpose,
//! and just enough parsing to know what came back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Protocol number of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// Byte offset of the checksum in an IPv4 header.
pub const IPV4_CHECKSUM_AT: usize = 10;
/// Byte offset of the checksum in a UDP header.
pub const UDP_CHECKSUM_AT: usize = 6;
/// Byte offset of the checksum in a TCP header.
pub const TCP_CHECKSUM_AT: usize = 16;
/// Byte offset of the checksum in an ICMP header of either version.
pub const ICMP_CHECKSUM_AT: usize = 2;

/// An Ethernet address.
pub type LinkAddress = [u8; 6];
/// The Ethernet broadcast address.
pub const BROADCAST: LinkAddress = [0xff; 6];

/// The Internet checksum over `parts`, each but the last of even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Overwrites two bytes at `at`, in network order.
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Reads two bytes at `at`, in network order.
pub fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Makes the right checksum at `at` a wrong one. Never zero, which means "none" in UDP over IPv4, nor
/// all ones, which is another way of writing zero.
pub fn spoil_checksum(bytes: &mut [u8], at: usize) {
    let right = get_u16(bytes, at);
    let wrong = [0x0101, 0x0202].map(|bits| right ^ bits);
    let usable = wrong
        .into_iter()
        .find(|&value| value != 0 && value != 0xffff);
    put_u16(
        bytes,
        at,
        usable.expect("at most one of the two is zero or all ones"),
    );
}

/// An Ethernet frame.
pub fn ethernet(to: LinkAddress, from: LinkAddress, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET_LEN + payload.len());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An ARP request by `from` for `target`.
pub fn arp_request(from_link: LinkAddress, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&from_link);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&target.octets());
    packet
}

/// An IPv4 packet: no options, not a fragment.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_fragment(from, to, protocol, Fragment::default(), payload)
}

/// Which part of a datagram a fragment is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fragment {
    /// What fragments of one datagram have in common.
    pub identification: u16,
    /// Offset in units of eight bytes.
    pub offset_units: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// An IPv4 packet that carries `payload` as the given part of a datagram.
pub fn ipv4_fragment(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    part: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0; IPV4_LEN];
    packet[0] = 0x45;
    put_u16(&mut packet, 2, length_u16(IPV4_LEN + payload.len()));
    put_u16(&mut packet, 4, part.identification);
    put_u16(
        &mut packet,
        6,
        u16::from(part.more) << 13 | part.offset_units,
    );
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    fix_ipv4_checksum(&mut packet);
    packet
}

/// Sets the header checksum of an IPv4 packet right, after something else was made wrong.
pub fn fix_ipv4_checksum(packet: &mut [u8]) {
    put_u16(packet, IPV4_CHECKSUM_AT, 0);
    let sum = checksum(&[&packet[..IPV4_LEN]]);
    put_u16(packet, IPV4_CHECKSUM_AT, sum);
}

/// An IPv6 packet without extension headers (unless `payload` starts with them).
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length_u16(payload.len()).to_be_bytes());
    packet.extend_from_slice(&[next_header, 64]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 fragment header followed by `payload`, as payload of [`ipv6`] with next header 44.
pub fn ipv6_fragment(next_header: u8, part: Fragment, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![next_header, 0];
    packet.extend_from_slice(&(part.offset_units << 3 | u16::from(part.more)).to_be_bytes());
    packet.extend_from_slice(&u32::from(part.identification).to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// An IP packet of the version that both addresses have, with the EtherType that goes with it.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> (u16, Vec<u8>) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IPV4, ipv4(from, to, protocol, payload)),
        (IpAddr::V6(from), IpAddr::V6(to)) => (IPV6, ipv6(from, to, protocol, payload)),
        _ => panic!("{from} and {to} are not of one version"),
    }
}

/// A UDP datagram between (address, port) pairs.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(from.1, to.1);
    datagram.extend_from_slice(&length_u16(8 + payload.len()).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let sum = transport_checksum(from.0, to.0, UDP, &datagram);
    // A checksum of zero would say that there is none.
    put_u16(
        &mut datagram,
        UDP_CHECKSUM_AT,
        if sum == 0 { 0xffff } else { sum },
    );
    datagram
}

/// The fields of a TCP segment that tests choose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segment<'a> {
    /// Flags, such as [`SYN`] | [`ACK`].
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// What it carries.
    pub payload: &'a [u8],
}

/// A TCP segment without options between (address, port) pairs.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), segment: Segment<'_>) -> Vec<u8> {
    let mut bytes = ports(from.1, to.1);
    bytes.extend_from_slice(&segment.sequence.to_be_bytes());
    bytes.extend_from_slice(&segment.acknowledgment.to_be_bytes());
    // Header length 5 words; window 65535; checksum and urgent pointer zero.
    bytes.extend_from_slice(&[0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend_from_slice(segment.payload);
    let sum = transport_checksum(from.0, to.0, TCP, &bytes);
    put_u16(&mut bytes, TCP_CHECKSUM_AT, sum);
    bytes
}

/// An echo request of the version of the addresses, and its protocol number.
pub fn echo_request(from: IpAddr, to: IpAddr, identifier: u16, payload: &[u8]) -> (u8, Vec<u8>) {
    let (protocol, kind) = if from.is_ipv4() {
        (ICMP, 8)
    } else {
        (ICMPV6, 128)
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(payload);
    let sum = match protocol {
        ICMP => checksum(&[&message]),
        _ => transport_checksum(from, to, ICMPV6, &message),
    };
    put_u16(&mut message, ICMP_CHECKSUM_AT, sum);
    (protocol, message)
}

/// The checksum of what `protocol` carries, pseudo-header included; its own field must be zero.
pub fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let length = length_u16(bytes.len()).to_be_bytes();
    let tail = [0, protocol, length[0], length[1]];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, bytes])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, bytes])
        }
        _ => panic!("{from} and {to} are not of one version"),
    }
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

fn length_u16(length: usize) -> u16 {
    u16::try_from(length).expect("a packet of at most 64 KiB")
}

/// A received IP packet: what tests look at.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Protocol number (the first next header in IPv6).
    pub protocol: u8,
    /// What the packet carries, cut to the length that its header says.
    pub payload: &'a [u8],
}

impl<'a> Seen<'a> {
    /// Parses a frame; `None` if it is not a whole IP packet.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET_LEN..)?;
        match get_u16(frame, 12) {
            IPV4 if packet.len() >= IPV4_LEN => {
                let header_len = usize::from(packet[0] & 0xf) * 4;
                let payload = packet.get(header_len..usize::from(get_u16(packet, 2)))?;
                let address = |at: usize| {
                    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
                };
                Some(Self {
                    from: address(12).into(),
                    to: address(16).into(),
                    protocol: packet[9],
                    payload,
                })
            }
            IPV6 if packet.len() >= IPV6_LEN => {
                let payload = packet.get(IPV6_LEN..IPV6_LEN + usize::from(get_u16(packet, 4)))?;
                let address = |at: usize| {
                    let octets: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
                    Ipv6Addr::from(octets)
                };
                Some(Self {
                    from: address(8).into(),
                    to: address(24).into(),
                    protocol: packet[6],
                    payload,
                })
            }
            _ => None,
        }
    }

    /// Whether it is neighbour discovery or multicast listener housekeeping, which kernels send by
    /// themselves.
    pub fn is_housekeeping(&self) -> bool {
        // MLD reports come behind a hop-by-hop header, protocol 0.
        let icmp_type = self.payload.first().copied().unwrap_or(0);
        self.protocol == 0 || (self.protocol == ICMPV6 && (130..=143).contains(&icmp_type))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
    const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 4));
    const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1));
    const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 2));

    #[test]
    fn the_checksum_of_rfc_1071_s_example() {
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(checksum(&[&[0xff]]), !0xff00);
    }

    #[test]
    fn a_right_checksum_makes_the_whole_sum_up_to_zero() {
        for (from, to) in [(A4, B4), (A6, B6)] {
            for payload in [&b""[..], b"x", b"odd", b"even"] {
                let datagram = udp((from, 1), (to, 2), payload);
                assert_eq!(transport_checksum(from, to, UDP, &datagram), 0);
                let segment = tcp(
                    (from, 1),
                    (to, 2),
                    Segment {
                        flags: SYN,
                        payload,
                        ..Segment::default()
                    },
                );
                assert_eq!(transport_checksum(from, to, TCP, &segment), 0);
                let mut spoilt = segment;
                spoil_checksum(&mut spoilt, TCP_CHECKSUM_AT);
                assert_ne!(transport_checksum(from, to, TCP, &spoilt), 0);
            }
        }
    }

    #[test]
    fn what_was_built_is_seen() {
        for (from, to) in [(A4, B4), (A6, B6)] {
            let (ethertype, packet) = ip(from, to, UDP, b"payload");
            let mut frame = ethernet(BROADCAST, [2; 6], ethertype, &packet);
            // Padding is not payload.
            frame.extend_from_slice(&[0; 20]);
            let seen = Seen::parse(&frame).expect("an IP packet");
            assert_eq!(
                (seen.from, seen.to, seen.protocol, seen.payload),
                (from, to, UDP, &b"payload"[..])
            );
            assert!(!seen.is_housekeeping());
        }
        assert!(Seen::parse(&[0; 14]).is_none());
    }
}
