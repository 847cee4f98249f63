//! Frames made and taken apart by hand, checksums by the book (RFC 1071), so that nothing under test
//! vouches for itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{CLIENT_LINK, CLIENT_V4, CLIENT_V6, SERVER_LINK};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;

/// The Internet checksum over several pieces; all but the last must have an even length.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

/// An Ethernet frame from the client to the worker.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = SERVER_LINK.to_vec();
    frame.extend(CLIENT_LINK);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `frame` with an 802.1Q tag.
pub fn tagged(frame: &[u8], tag_control: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(VLAN.to_be_bytes());
    tagged.extend(tag_control.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// A broadcast ARP request of the client for `target`.
pub fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    arp_request_from(CLIENT_V4, target)
}

/// A broadcast ARP request of the client, as if its address were `sender`, for `target`.
pub fn arp_request_from(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
    message.extend(CLIENT_LINK);
    message.extend(sender.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    let mut frame = ethernet(ARP, &message);
    frame[..6].fill(0xff);
    frame
}

/// A neighbour solicitation of the client for `target`, sent to its solicited-node group.
pub fn neighbour_solicitation(target: Ipv6Addr) -> Vec<u8> {
    neighbour_solicitation_from(CLIENT_V6, target)
}

/// A neighbour solicitation of the client, as if its address were `sender`, for `target`.
pub fn neighbour_solicitation_from(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let low = target.octets();
    let group = Ipv6Addr::from([
        0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, low[13], low[14], low[15],
    ]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    // Who has no address yet says no link address either (RFC 4861 section 4.3).
    if !sender.is_unspecified() {
        message.extend([1, 1]);
        message.extend(CLIENT_LINK);
    }
    let ends = (sender.into(), group.into());
    let sum = checksum(&[
        &pseudo_header(ends.0, ends.1, ICMPV6, message.len()),
        &message,
    ]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ip(ends, ICMPV6, &message);
    frame[..6].copy_from_slice(&[0x33, 0x33, 0xff, low[13], low[14], low[15]]);
    frame[14 + 7] = 255;
    frame
}

/// Source and destination.
pub type Ends = (IpAddr, IpAddr);

/// A frame with an IP packet of the version of its ends.
pub fn ip(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ipv4(source, destination, &[], protocol, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ipv6(source, destination, protocol, payload)
        }
        _ => panic!("two versions in one packet"),
    }
}

/// A frame with an IPv4 packet; `options` must fill whole words.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    options: &[u8],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(payload);
    let mut frame = ethernet(IPV4, &packet);
    fix_ipv4_checksum(&mut frame);
    frame
}

/// A frame with an IPv6 packet whose payload begins with what `next_header` says: a transport header,
/// or extension headers in front of it.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(IPV6, &packet)
}

/// Sets the IPv4 header checksum of an untagged frame.
pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    let header_len = usize::from(frame[14] & 0x0f) * 4;
    let header = &mut frame[14..14 + header_len];
    header[10..12].fill(0);
    let sum = checksum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Sets the checksum at `at` of a transport message.
pub fn fix_transport(ends: Ends, protocol: u8, message: &mut [u8], at: usize) {
    message[at..at + 2].fill(0);
    let pseudo = pseudo_header(ends.0, ends.1, protocol, message.len());
    let sum = match protocol {
        ICMP => checksum(&[message]),
        _ => checksum(&[&pseudo, message]),
    };
    // Zero means "no checksum" to UDP alone (RFC 768).
    let sum = if protocol == UDP && sum == 0 {
        0xffff
    } else {
        sum
    };
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A UDP datagram, to be put into [`ip`].
pub fn udp_datagram(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports.0.to_be_bytes().to_vec();
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    fix_transport(ends, UDP, &mut datagram, 6);
    datagram
}

/// A frame with a UDP datagram.
pub fn udp(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    ip(ends, UDP, &udp_datagram(ends, ports, payload))
}

/// An ICMP message of the version of its ends, to be put into [`ip`] with [`icmp_protocol`].
pub fn icmp_message(ends: Ends, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    fix_transport(ends, icmp_protocol(ends), &mut message, 2);
    message
}

pub fn icmp_protocol(ends: Ends) -> u8 {
    if ends.0.is_ipv4() { ICMP } else { ICMPV6 }
}

/// A frame with an echo request.
pub fn echo_request(ends: Ends, id: u16, number: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if ends.0.is_ipv4() { 8 } else { 128 };
    let mut rest = id.to_be_bytes().to_vec();
    rest.extend(number.to_be_bytes());
    rest.extend(payload);
    let message = icmp_message(ends, kind, 0, &rest);
    ip(ends, icmp_protocol(ends), &message)
}

/// A frame in which a router says that a segment between the second and the first of these ends, with these source and
/// destination ports, was too big.
pub fn too_big(ends: Ends, ports: (u16, u16), seq: u32, len: u16, mtu: u16) -> Vec<u8> {
    let segment = Segment {
        source_port: ports.0,
        destination_port: ports.1,
        seq,
        flags: ACK,
        ..Segment::default()
    };
    let sent = (ends.1, ends.0);
    let mut quoted = ip(sent, TCP, &segment.bytes(sent))[14..].to_vec();
    let (router, kind, code): (IpAddr, u8, u8) = if ends.0.is_ipv4() {
        quoted[2..4].copy_from_slice(&len.to_be_bytes());
        quoted[6] |= 0x40;
        // No more than RFC 792 has every router quote.
        quoted.truncate(20 + 8);
        ([198, 51, 100, 1].into(), 3, 4)
    } else {
        quoted[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        ([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1].into(), 2, 0)
    };
    let mut rest = vec![0, 0];
    rest.extend(mtu.to_be_bytes());
    rest.extend(quoted);
    let from_router = (router, ends.1);
    let message = icmp_message(from_router, kind, code, &rest);
    ip(from_router, icmp_protocol(ends), &message)
}

/// A TCP segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Whole words.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    /// The bytes, to be put into [`ip`].
    pub fn bytes(&self, ends: Ends) -> Vec<u8> {
        let mut bytes = self.source_port.to_be_bytes().to_vec();
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.push((((20 + self.options.len()) / 4) << 4) as u8);
        bytes.push(self.flags);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        fix_transport(ends, TCP, &mut bytes, 16);
        bytes
    }

    /// A frame with this segment.
    pub fn frame(&self, ends: Ends) -> Vec<u8> {
        ip(ends, TCP, &self.bytes(ends))
    }
}

/// A frame taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub link_destination: [u8; 6],
    pub link_source: [u8; 6],
    /// Tag control fields of 802.1Q tags.
    pub tags: Vec<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub protocol: u8,
    /// The transport header and its payload.
    pub transport: Vec<u8>,
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Whether a frame is ARP.
pub fn is_arp(frame: &[u8]) -> bool {
    be16(&frame[12..]) == ARP
}

/// Takes an IP frame apart; panics if a length or a checksum in it is wrong.
pub fn dissect(frame: &[u8]) -> Packet {
    try_dissect(frame).unwrap_or_else(|wrong| panic!("wrong: {wrong}"))
}

/// Takes an IP frame apart; says which length or checksum in it is wrong.
pub fn try_dissect(frame: &[u8]) -> Result<Packet, &'static str> {
    let right = |right: bool, what| if right { Ok(()) } else { Err(what) };
    right(frame.len() >= 14, "link header")?;
    let mut at = 12;
    let mut tags = Vec::new();
    while be16(&frame[at..]) == VLAN {
        right(frame.len() >= at + 6, "tag")?;
        tags.push(be16(&frame[at + 2..]));
        at += 4;
    }
    let packet = &frame[at + 2..];
    let (source, destination, hop_limit, protocol, transport): (IpAddr, IpAddr, _, _, _) =
        match be16(&frame[at..]) {
            IPV4 => {
                right(packet.len() >= 20, "IPv4 header")?;
                right(packet[0] == 0x45, "an IPv4 header without options")?;
                right(
                    usize::from(be16(&packet[2..])) == packet.len(),
                    "IPv4 length",
                )?;
                right(checksum(&[&packet[..20]]) == 0, "IPv4 checksum")?;
                let address =
                    |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
                (
                    Ipv4Addr::from(address(12)).into(),
                    Ipv4Addr::from(address(16)).into(),
                    packet[8],
                    packet[9],
                    packet[20..].to_vec(),
                )
            }
            IPV6 => {
                right(packet.len() >= 40, "IPv6 header")?;
                right(packet[0] >> 4 == 6, "IPv6 version")?;
                right(
                    usize::from(be16(&packet[4..])) == packet.len() - 40,
                    "IPv6 length",
                )?;
                let address =
                    |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes");
                (
                    Ipv6Addr::from(address(8)).into(),
                    Ipv6Addr::from(address(24)).into(),
                    packet[7],
                    packet[6],
                    packet[40..].to_vec(),
                )
            }
            _ => return Err("ethertype"),
        };
    if protocol == ICMP {
        right(checksum(&[&transport]) == 0, "ICMP checksum")?;
    } else {
        let pseudo = pseudo_header(source, destination, protocol, transport.len());
        right(checksum(&[&pseudo, &transport]) == 0, "transport checksum")?;
    }
    if protocol == UDP {
        right(transport.len() >= 8, "UDP header")?;
        right(
            usize::from(be16(&transport[4..])) == transport.len(),
            "UDP length",
        )?;
    }
    if protocol == TCP {
        right(transport.len() >= 20, "TCP header")?;
        let header_len = usize::from(transport[12] >> 4) * 4;
        right(
            (20..=transport.len()).contains(&header_len),
            "TCP data offset",
        )?;
    }
    Ok(Packet {
        link_destination: frame[..6].try_into().expect("six bytes"),
        link_source: frame[6..12].try_into().expect("six bytes"),
        tags,
        source,
        destination,
        hop_limit,
        protocol,
        transport,
    })
}

impl Packet {
    /// Source and destination port.
    pub fn ports(&self) -> (u16, u16) {
        (be16(&self.transport), be16(&self.transport[2..]))
    }

    /// The payload of a UDP datagram.
    pub fn udp_payload(&self) -> &[u8] {
        assert_eq!(self.protocol, UDP);
        &self.transport[8..]
    }

    /// The segment of a TCP packet.
    pub fn segment(&self) -> Segment {
        assert_eq!(self.protocol, TCP);
        let bytes = &self.transport;
        let header_len = usize::from(bytes[12] >> 4) * 4;
        Segment {
            source_port: be16(bytes),
            destination_port: be16(&bytes[2..]),
            seq: be32(&bytes[4..]),
            ack: be32(&bytes[8..]),
            flags: bytes[13],
            window: be16(&bytes[14..]),
            options: bytes[20..header_len].to_vec(),
            payload: bytes[header_len..].to_vec(),
        }
    }
}

/// The one's complement sum of the pseudo-header, word by word (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header_sum(ends: Ends, protocol: u8, len: usize) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let bytes = [octets(ends.0), octets(ends.1)].concat();
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + u32::from(protocol) + len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
