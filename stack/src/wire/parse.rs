//! From a received frame to a packet that a protocol may see, or the reason why not.
//!
//! What passes is plain: whole, checksums right, from an address that can be answered to an address of
//! ours, IPv4 without options and IPv6 without extension headers (legal ones are taken out of the frame
//! here, so that everything behind this point, and every reply in place, has one header shape).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv6Message,
};

use super::checksum::Sum;
use super::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use super::link::TAGS_MAX;
use super::{
    Address, ETHERNET_HEADER_BYTES, FlowKey, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, LinkHeader,
    Reject, UDP_HEADER_BYTES,
};
use crate::config::Cidr;

const TCP_HEADER_BYTES_MIN: usize = 20;
const ICMP_HEADER_BYTES: usize = 8;
/// Type and code of "destination unreachable: fragmentation needed and DF set" (RFC 792).
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];

/// A frame that passed all checks. Offsets are from the start of the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// ARP or neighbour discovery, for the link interface: a frame of `len` bytes, tags taken out.
    Neighbour {
        /// Length of the frame now.
        len: usize,
    },
    /// A packet for one of our addresses.
    Ip(Transport),
}

/// An IP packet for one of our addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// The link header of an answer.
    pub link: LinkHeader,
    /// Where the IP header begins.
    pub ip: usize,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where the packet ends: link padding is not part of it.
    pub end: usize,
    /// Both ends; the ports are zero for ICMP. For [`TransportKind::TooBig`], the ends of the quoted segment.
    pub key: FlowKey,
    /// What it is.
    pub kind: TransportKind,
}

/// The protocol, with what was found out on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// TCP; `payload` is where the payload begins, and it ends where the packet ends.
    Tcp {
        /// Start of the payload.
        payload: usize,
        /// The flag bits of header byte 13 (RFC 9293 section 3.1).
        flags: u8,
    },
    /// UDP; the payload begins 8 bytes after the transport header.
    Udp {
        /// End of the payload, by the UDP length.
        payload_end: usize,
    },
    /// ICMP echo request of the packet's IP version.
    EchoRequest,
    /// ICMP message of the packet's IP version about a TCP segment of ours that a link on its way is too narrow for. Any
    /// host may have sent it, and the quoted segment need not have been sent.
    TooBig(TooBig),
}

/// "Fragmentation needed" (RFC 792, RFC 1191 section 4) or "packet too big" (RFC 4443 section 3.2), about a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// The sequence number of the quoted segment.
    pub seq: u32,
    /// Bytes of the IP packet that had it, by its own header.
    pub len: u16,
    /// Bytes of the largest packet that the link takes, at most 65,535; 0 if the router does not say.
    pub mtu: u16,
}

/// What [`parse`] needs to know of us.
#[derive(Debug, Clone)]
pub struct Local {
    link: EthernetAddress,
    /// Our addresses.
    addresses: Vec<Address>,
    /// Prefixes whose addresses are all ours.
    sources: Vec<Prefix>,
    /// The directed broadcast addresses of our IPv4 prefixes.
    broadcasts: Vec<Address>,
    /// Bytes of an IP packet at most.
    mtu: usize,
}

/// A prefix of either IP version, ready to be compared with.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    network: u128,
    mask: u128,
    is_ipv4: bool,
}

impl Prefix {
    fn new(cidr: &Cidr) -> Self {
        let width = if cidr.address.is_ipv4() { 32 } else { 128 };
        let host_bits = width - u32::from(cidr.prefix);
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        let address = u128::from_be_bytes(*Address::from(cidr.address).octets());
        Self {
            network: address & mask,
            mask,
            is_ipv4: cidr.address.is_ipv4(),
        }
    }

    #[inline]
    fn contains(&self, address: &Address) -> bool {
        u128::from_be_bytes(*address.octets()) & self.mask == self.network
            && address.is_ipv4() == self.is_ipv4
    }
}

impl Local {
    /// `addresses` are ours, with the prefixes that are on the link; of `sources` every address in the
    /// prefix is ours, but for the broadcast addresses. `mtu` in bytes of an IP packet.
    pub fn new(link: EthernetAddress, addresses: &[Cidr], sources: &[Cidr], mtu: usize) -> Self {
        Self {
            link,
            addresses: addresses.iter().map(|cidr| cidr.address.into()).collect(),
            sources: sources.iter().map(Prefix::new).collect(),
            broadcasts: addresses
                .iter()
                .chain(sources)
                .filter_map(|cidr| cidr.broadcast())
                .map(Address::from)
                .collect(),
            mtu,
        }
    }

    /// Our link-layer address.
    pub fn link(&self) -> EthernetAddress {
        self.link
    }

    /// Whether `address` is one of ours.
    #[inline]
    pub fn has(&self, address: &Address) -> bool {
        self.addresses.contains(address) || self.is_source(address)
    }

    #[inline]
    fn is_source(&self, address: &Address) -> bool {
        self.sources.iter().any(|prefix| prefix.contains(address))
            && !self.broadcasts.contains(address)
    }
}

/// Parses the first `len` bytes of `frame`, which may be rewritten on the way (see the module's head).
///
/// Any bytes may be given: nothing panics, and nothing is read or written beyond `len`.
#[inline(always)]
pub fn parse(frame: &mut [u8], len: usize, local: &Local) -> Result<Packet, Reject> {
    let frame = frame.get_mut(..len).ok_or(Reject::Truncated)?;
    let (link_len, ethertype) = parse_link(frame, local)?;
    match ethertype {
        EthernetProtocol::Arp => {
            let len = remove_tags(frame, link_len);
            Ok(Packet::Neighbour { len })
        }
        EthernetProtocol::Ipv4 => parse_ipv4(frame, link_len, local),
        EthernetProtocol::Ipv6 => parse_ipv6(frame, link_len, local),
        EthernetProtocol::Unknown(_) => Err(Reject::Ethertype),
    }
}

/// Length of the link header with its tags, and the ethertype behind it.
#[inline(always)]
fn parse_link(frame: &[u8], local: &Local) -> Result<(usize, EthernetProtocol), Reject> {
    let ethernet = EthernetFrame::new_checked(frame).map_err(|_| Reject::Truncated)?;
    if !ethernet.src_addr().is_unicast() {
        return Err(Reject::LinkSource);
    }
    let destination = ethernet.dst_addr();
    if destination.is_unicast() && destination != local.link {
        return Err(Reject::LinkDestination);
    }
    let mut len = ETHERNET_HEADER_BYTES;
    let mut ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    for _ in 0..TAGS_MAX {
        // 802.1Q and 802.1ad.
        if ethertype != 0x8100 && ethertype != 0x88a8 {
            break;
        }
        let next = frame.get(len + 2..len + 4).ok_or(Reject::Truncated)?;
        ethertype = u16::from_be_bytes([next[0], next[1]]);
        len += 4;
    }
    Ok((len, EthernetProtocol::from(ethertype)))
}

/// Takes the tags out of a frame; returns its new length.
fn remove_tags(frame: &mut [u8], link_len: usize) -> usize {
    let tags = link_len - ETHERNET_HEADER_BYTES;
    if tags > 0 {
        frame.copy_within(link_len - 2.., ETHERNET_HEADER_BYTES - 2);
    }
    frame.len() - tags
}

#[inline(always)]
fn parse_ipv4(frame: &mut [u8], ip: usize, local: &Local) -> Result<Packet, Reject> {
    let packet = &frame[ip..];
    if packet.len() < IPV4_HEADER_BYTES {
        return Err(Reject::Truncated);
    }
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if packet[0] >> 4 != 4 || header_len < IPV4_HEADER_BYTES || total_len < header_len {
        return Err(Reject::IpHeader);
    }
    if total_len > packet.len() {
        return Err(Reject::Truncated);
    }
    if total_len > local.mtu {
        return Err(Reject::Oversized);
    }
    if !Sum::default().plus(&packet[..header_len]).is_valid() {
        return Err(Reject::IpChecksum);
    }
    let mut source = [0; 4];
    source.copy_from_slice(&packet[12..16]);
    let mut destination = [0; 4];
    destination.copy_from_slice(&packet[16..20]);
    let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
    let answerable = !(source.octets()[0] == 0
        || source.is_loopback()
        || source.is_multicast()
        || source.octets()[0] >= 240);
    let (source, destination) = (
        Address::from(IpAddr::V4(source)),
        Address::from(IpAddr::V4(destination)),
    );
    check_addresses(&source, &destination, answerable, local)?;
    // More fragments, or a fragment offset.
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return Err(Reject::IpFragment);
    }
    let protocol = packet[9];
    if has_source_route(&packet[IPV4_HEADER_BYTES..header_len]) {
        return Err(Reject::IpOption);
    }
    if frame[0] & 1 != 0 {
        return Err(Reject::LinkDestination);
    }
    let mut end = ip + total_len;
    let options = header_len - IPV4_HEADER_BYTES;
    if options > 0 {
        frame.copy_within(ip + header_len..end, ip + IPV4_HEADER_BYTES);
        end -= options;
        let header = &mut frame[ip..ip + IPV4_HEADER_BYTES];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&((total_len - options) as u16).to_be_bytes());
        header[10..12].fill(0);
        let field = Sum::default().plus(header).finish();
        header[10..12].copy_from_slice(&field);
    }
    parse_transport(
        frame,
        ip,
        ip + IPV4_HEADER_BYTES,
        end,
        protocol,
        source,
        destination,
    )
}

/// Loose or strict source routing among IPv4 options (RFC 791 section 3.1); a malformed list counts too.
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return false,
            1 => options = rest,
            131 | 137 => return true,
            _ => match rest.first().map(|len| usize::from(*len)) {
                Some(len) if len >= 2 && len <= options.len() => options = &options[len..],
                _ => return true,
            },
        }
    }
    false
}

fn parse_ipv6(frame: &mut [u8], ip: usize, local: &Local) -> Result<Packet, Reject> {
    let packet = &frame[ip..];
    if packet.len() < IPV6_HEADER_BYTES {
        return Err(Reject::Truncated);
    }
    if packet[0] >> 4 != 6 {
        return Err(Reject::IpHeader);
    }
    let payload_len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if IPV6_HEADER_BYTES + payload_len > packet.len() {
        return Err(Reject::Truncated);
    }
    if IPV6_HEADER_BYTES + payload_len > local.mtu {
        return Err(Reject::Oversized);
    }
    let mut end = ip + IPV6_HEADER_BYTES + payload_len;
    let mut source = [0; 16];
    source.copy_from_slice(&packet[8..24]);
    let mut destination = [0; 16];
    destination.copy_from_slice(&packet[24..40]);
    let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
    let hop_limit = packet[7];

    let (protocol, headers) =
        skip_extension_headers(packet[6], &frame[ip + IPV6_HEADER_BYTES..end])?;
    if headers > 0 {
        let transport = ip + IPV6_HEADER_BYTES;
        frame.copy_within(transport + headers..end, transport);
        end -= headers;
        frame[ip + 4..ip + 6].copy_from_slice(&((payload_len - headers) as u16).to_be_bytes());
        frame[ip + 6] = protocol;
    }

    let transport = ip + IPV6_HEADER_BYTES;
    let kind = frame[transport..end].first().copied();
    if protocol == PROTOCOL_ICMPV6 && is_neighbour_discovery(kind) {
        // Neighbour discovery has sources and destinations of its own (the unspecified address, groups);
        // the link interface checks them. It must not have crossed a router (RFC 4861 section 7.1).
        let (source, destination) = (IpAddr::V6(source).into(), IpAddr::V6(destination).into());
        if hop_limit != 255 || local.has(&source) {
            return Err(Reject::Neighbour);
        }
        check_icmp(&frame[transport..end], Some((&source, &destination)))?;
        let tags = ip - ETHERNET_HEADER_BYTES;
        remove_tags(frame, ip);
        return Ok(Packet::Neighbour { len: end - tags });
    }

    // It would be taken for the IPv4 address that it contains.
    if destination.to_ipv4_mapped().is_some() {
        return Err(Reject::IpDestination);
    }
    let answerable = !(source.is_unspecified()
        || source.is_loopback()
        || source.is_multicast()
        || source.to_ipv4_mapped().is_some());
    let (source, destination) = (
        Address::from(IpAddr::V6(source)),
        Address::from(IpAddr::V6(destination)),
    );
    check_addresses(&source, &destination, answerable, local)?;
    if frame[0] & 1 != 0 {
        return Err(Reject::LinkDestination);
    }
    parse_transport(frame, ip, transport, end, protocol, source, destination)
}

/// Router and neighbour messages and redirects (RFC 4861 section 4).
fn is_neighbour_discovery(kind: Option<u8>) -> bool {
    kind.is_some_and(|kind| (133..=137).contains(&kind))
}

/// The upper-layer protocol and the bytes of extension headers in front of it.
fn skip_extension_headers(first: u8, payload: &[u8]) -> Result<(u8, usize), Reject> {
    // More than the kernel's own limit of 8 is nobody's honest packet.
    const HEADERS_MAX: usize = 8;
    let (mut protocol, mut offset) = (first, 0);
    for _ in 0..=HEADERS_MAX {
        let header = &payload[offset..];
        match protocol {
            // Hop-by-hop and destination options.
            0 | 60 => {
                let len = extension_header_len(header)?;
                check_options(&header[2..len])?;
                protocol = header[0];
                offset += len;
            }
            43 => {
                let len = extension_header_len(header)?;
                // With segments left we would have to forward (RFC 5095 forbids type 0 altogether).
                if header[3] != 0 {
                    return Err(Reject::IpOption);
                }
                protocol = header[0];
                offset += len;
            }
            44 => {
                let fragment = header.get(..8).ok_or(Reject::IpHeader)?;
                // An atomic fragment is a whole packet (RFC 6946).
                if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff9 != 0 {
                    return Err(Reject::IpFragment);
                }
                protocol = fragment[0];
                offset += 8;
            }
            _ => return Ok((protocol, offset)),
        }
    }
    Err(Reject::IpHeader)
}

/// Bytes of an extension header that begins with next header and length (RFC 8200 section 4.2).
fn extension_header_len(header: &[u8]) -> Result<usize, Reject> {
    let units = usize::from(*header.get(1).ok_or(Reject::IpHeader)?);
    let len = (units + 1) * 8;
    if len > header.len() {
        return Err(Reject::IpHeader);
    }
    Ok(len)
}

/// Refuses options whose type says that who does not know them discards the packet.
fn check_options(mut options: &[u8]) -> Result<(), Reject> {
    while let [kind, rest @ ..] = options {
        if *kind == 0 {
            options = rest;
            continue;
        }
        let len = 2 + usize::from(*rest.first().ok_or(Reject::IpHeader)?);
        if len > options.len() {
            return Err(Reject::IpHeader);
        }
        // Router alert (5) and padding (1) are known and harmless; the two high bits decide on others.
        if kind >> 6 != 0 {
            return Err(Reject::IpOption);
        }
        options = &options[len..];
    }
    Ok(())
}

#[inline(always)]
fn check_addresses(
    source: &Address,
    destination: &Address,
    answerable: bool,
    local: &Local,
) -> Result<(), Reject> {
    if source == destination {
        return Err(Reject::IpLand);
    }
    if local.has(source) {
        return Err(Reject::IpOwnSource);
    }
    if !answerable || local.broadcasts.contains(source) {
        return Err(Reject::IpSource);
    }
    if !local.has(destination) {
        return Err(Reject::IpDestination);
    }
    Ok(())
}

/// Why a segment is refused whose checksum is wrong: the sender left it to a card, or `otherwise`.
#[cold]
fn wrong_checksum(pseudo_header: Sum, field: [u8; 2], otherwise: Reject) -> Reject {
    if pseudo_header.is_left_in(field) {
        Reject::ChecksumLeft
    } else {
        otherwise
    }
}

#[inline(always)]
fn parse_transport(
    frame: &[u8],
    ip: usize,
    transport: usize,
    end: usize,
    protocol: u8,
    peer: Address,
    local: Address,
) -> Result<Packet, Reject> {
    let segment = &frame[transport..end];
    let sum = || {
        // The length fits: it was part of a 16-bit IP length.
        Sum::pseudo_header(&peer, &local, protocol, segment.len() as u16)
    };
    let ports = |reject| {
        let bytes = segment.get(..4).ok_or(reject)?;
        let peer_port = u16::from_be_bytes([bytes[0], bytes[1]]);
        let local_port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if peer_port == 0 || local_port == 0 {
            return Err(reject);
        }
        Ok((peer_port, local_port))
    };
    let ((peer_port, local_port), kind) = match (protocol, local.is_ipv4()) {
        (PROTOCOL_TCP, _) => {
            let ports = ports(Reject::TcpHeader)?;
            if segment.len() < TCP_HEADER_BYTES_MIN {
                return Err(Reject::TcpHeader);
            }
            let header_len = usize::from(segment[12] >> 4) * 4;
            if header_len < TCP_HEADER_BYTES_MIN || header_len > segment.len() {
                return Err(Reject::TcpHeader);
            }
            // A reset says nothing else, and is never answered. Other odd flags are TCP's to refuse: to a closed port
            // whatever is not a reset is answered with one (RFC 9293 section 3.10.7.1).
            if segment[13] & 0x04 != 0 && segment[13] & 0x03 != 0 {
                return Err(Reject::TcpHeader);
            }
            check_tcp_options(&segment[TCP_HEADER_BYTES_MIN..header_len])?;
            if !sum().plus(segment).is_valid() {
                let field = [segment[16], segment[17]];
                return Err(wrong_checksum(sum(), field, Reject::TcpChecksum));
            }
            let kind = TransportKind::Tcp {
                payload: transport + header_len,
                flags: segment[13],
            };
            (ports, kind)
        }
        (PROTOCOL_UDP, is_ipv4) => {
            let ports = ports(Reject::UdpHeader)?;
            if segment.len() < UDP_HEADER_BYTES {
                return Err(Reject::UdpHeader);
            }
            let len = usize::from(u16::from_be_bytes([segment[4], segment[5]]));
            if len < UDP_HEADER_BYTES || len > segment.len() {
                return Err(Reject::UdpHeader);
            }
            let unchecked = segment[6..8] == [0, 0];
            if unchecked && !is_ipv4 {
                return Err(Reject::UdpChecksum);
            }
            let sum = Sum::pseudo_header(&peer, &local, protocol, len as u16);
            if !unchecked && !sum.plus(&segment[..len]).is_valid() {
                let field = [segment[6], segment[7]];
                return Err(wrong_checksum(sum, field, Reject::UdpChecksum));
            }
            let kind = TransportKind::Udp {
                payload_end: transport + len,
            };
            (ports, kind)
        }
        (PROTOCOL_ICMP, true) => {
            check_icmp(segment, None)?;
            if segment[..2] == FRAGMENTATION_NEEDED {
                let (quoted, said) = quoted_v4(segment, &local).ok_or(Reject::IcmpIgnored)?;
                return Ok(too_big(frame, ip, transport, end, quoted, said));
            }
            if segment[0] != u8::from(Icmpv4Message::EchoRequest) || segment[1] != 0 {
                return Err(Reject::IcmpIgnored);
            }
            ((0, 0), TransportKind::EchoRequest)
        }
        (PROTOCOL_ICMPV6, false) => {
            check_icmp(segment, Some((&peer, &local)))?;
            if segment[0] == u8::from(Icmpv6Message::PktTooBig) {
                let (quoted, said) = quoted_v6(segment, &local).ok_or(Reject::IcmpIgnored)?;
                return Ok(too_big(frame, ip, transport, end, quoted, said));
            }
            if segment[0] != u8::from(Icmpv6Message::EchoRequest) || segment[1] != 0 {
                return Err(Reject::IcmpIgnored);
            }
            ((0, 0), TransportKind::EchoRequest)
        }
        _ => return Err(Reject::IpProtocol),
    };
    Ok(Packet::Ip(Transport {
        link: LinkHeader::answering(&frame[..ip]),
        ip,
        transport,
        end,
        key: FlowKey {
            peer,
            local,
            peer_port,
            local_port,
        },
        kind,
    }))
}

/// An ICMP message about the segment between these ends.
#[cold]
fn too_big(
    frame: &[u8],
    ip: usize,
    transport: usize,
    end: usize,
    key: FlowKey,
    said: TooBig,
) -> Packet {
    Packet::Ip(Transport {
        link: LinkHeader::answering(&frame[..ip]),
        ip,
        transport,
        end,
        key,
        kind: TransportKind::TooBig(said),
    })
}

/// Reads "fragmentation needed", if it quotes a TCP segment that `local` may have sent.
#[cold]
fn quoted_v4(message: &[u8], local: &Address) -> Option<(FlowKey, TooBig)> {
    let quoted = message.get(ICMP_HEADER_BYTES..)?;
    let header: &[u8; IPV4_HEADER_BYTES] = quoted.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4
        || header_len < IPV4_HEADER_BYTES
        || header[9] != PROTOCOL_TCP
        || is_fragment
    {
        return None;
    }
    let address = |at: usize| {
        let octets = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        Address::from(IpAddr::from(octets))
    };
    let (key, seq) = quoted_segment(quoted.get(header_len..)?, address(12), address(16), local)?;
    let said = TooBig {
        seq,
        len: u16::from_be_bytes([header[2], header[3]]),
        mtu: u16::from_be_bytes([message[6], message[7]]),
    };
    Some((key, said))
}

/// Reads "packet too big", if it quotes a TCP segment that `local` may have sent.
#[cold]
fn quoted_v6(message: &[u8], local: &Address) -> Option<(FlowKey, TooBig)> {
    let quoted = message.get(ICMP_HEADER_BYTES..)?;
    let header: &[u8; IPV6_HEADER_BYTES] = quoted.first_chunk()?;
    // We send no extension headers.
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_TCP {
        return None;
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Address::from(IpAddr::from(octets))
    };
    let segment = &quoted[IPV6_HEADER_BYTES..];
    let (key, seq) = quoted_segment(segment, address(8), address(24), local)?;
    let payload = u16::from_be_bytes([header[4], header[5]]);
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let said = TooBig {
        seq,
        len: payload.saturating_add(IPV6_HEADER_BYTES as u16),
        mtu: mtu.min(u16::MAX.into()) as u16,
    };
    Some((key, said))
}

/// The ends and the sequence number of the quoted beginning of a segment, if `local` may have sent it.
fn quoted_segment(
    segment: &[u8],
    source: Address,
    destination: Address,
    local: &Address,
) -> Option<(FlowKey, u32)> {
    // As much as every router quotes (RFC 792).
    let [a, b, c, d, seq @ ..]: [u8; 8] = *segment.first_chunk()?;
    let key = FlowKey {
        peer: destination,
        local: source,
        peer_port: u16::from_be_bytes([c, d]),
        local_port: u16::from_be_bytes([a, b]),
    };
    let is_ours = source == *local && destination != *local;
    (is_ours && key.peer_port != 0 && key.local_port != 0).then(|| (key, u32::from_be_bytes(seq)))
}

/// Refuses a list of TCP options whose lengths cannot be (RFC 9293 section 3.1, MUST-7).
fn check_tcp_options(mut options: &[u8]) -> Result<(), Reject> {
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => return Ok(()),
            1 => rest,
            _ => match rest.first().map(|len| usize::from(*len)) {
                Some(len) if len >= 2 && len <= options.len() => &options[len..],
                _ => return Err(Reject::TcpHeader),
            },
        };
    }
    Ok(())
}

/// Length and checksum; ICMPv6 sums a pseudo-header too (RFC 4443 section 2.3).
fn check_icmp(message: &[u8], v6: Option<(&Address, &Address)>) -> Result<(), Reject> {
    if message.len() < ICMP_HEADER_BYTES {
        return Err(Reject::IcmpHeader);
    }
    let sum = match v6 {
        Some((source, destination)) => {
            Sum::pseudo_header(source, destination, PROTOCOL_ICMPV6, message.len() as u16)
        }
        None => Sum::default(),
    };
    if sum.plus(message).is_valid() {
        Ok(())
    } else {
        Err(Reject::IcmpChecksum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any address, often one near `[10, 9, 1, x]` or `fd09:1::x`.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from),
            any::<u8>().prop_map(|host| IpAddr::from([10, 9, 1, host])),
            any::<u16>().prop_map(|host| IpAddr::from([0xfd09, 1, 0, 0, 0, 0, 0, host])),
        ]
    }

    const OURS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OURS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    fn local() -> Local {
        let addresses =
            [(OURS_V4, 24), (OURS_V6, 64)].map(|(address, prefix)| Cidr { address, prefix });
        Local::new(EthernetAddress([2, 0, 0, 0, 0, 1]), &addresses, &[], 1500)
    }

    /// A frame from a router with an ICMP message about `quoted`, and `mtu` in it; checksums are right.
    fn too_big_frame(is_ipv4: bool, mtu: u16, quoted: &[u8]) -> Vec<u8> {
        let (router, ours, protocol, kind): (IpAddr, IpAddr, u8, [u8; 2]) = if is_ipv4 {
            (
                [198, 51, 100, 1].into(),
                OURS_V4,
                PROTOCOL_ICMP,
                FRAGMENTATION_NEEDED,
            )
        } else {
            (
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
                OURS_V6,
                PROTOCOL_ICMPV6,
                [2, 0],
            )
        };
        let (router, ours) = (Address::from(router), Address::from(ours));
        let mut message = vec![kind[0], kind[1], 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted);
        let sum = if is_ipv4 {
            Sum::default()
        } else {
            Sum::pseudo_header(&router, &ours, protocol, message.len() as u16)
        };
        let field = sum.plus(&message).finish();
        message[2..4].copy_from_slice(&field);
        let mut packet = vec![0; crate::wire::ip::header_bytes(&ours)];
        packet.extend(message);
        crate::wire::ip::write_header(&mut packet, &router, &ours, protocol);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(if is_ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(packet);
        frame
    }

    /// The first bytes of a segment of ours, as a router quotes it.
    fn quoted_bytes(is_ipv4: bool, ports: (u16, u16), seq: u32, options: usize) -> Vec<u8> {
        let (ours, theirs): (IpAddr, IpAddr) = if is_ipv4 {
            (OURS_V4, [203, 0, 113, 9].into())
        } else {
            (OURS_V6, IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, 9]))
        };
        let (ours, theirs) = (Address::from(ours), Address::from(theirs));
        let header = crate::wire::ip::header_bytes(&ours);
        let mut packet = vec![0; 1500];
        crate::wire::ip::write_header(&mut packet, &ours, &theirs, PROTOCOL_TCP);
        packet.truncate(header);
        if is_ipv4 {
            packet[0] += options as u8;
            packet.extend(vec![1; 4 * options]);
        }
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(seq.to_be_bytes());
        packet
    }

    proptest! {
        #[test]
        fn what_a_router_quotes_is_read(
            is_ipv4 in any::<bool>(), mtu in any::<u16>(), seq in any::<u32>(), ports in (1u16.., 1u16..),
            options in 0usize..=10, more in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut quoted = quoted_bytes(is_ipv4, ports, seq, options);
            let whole = quoted.len();
            quoted.extend(more);
            let mut frame = too_big_frame(is_ipv4, mtu, &quoted);
            let len = frame.len();
            let Ok(Packet::Ip(packet)) = parse(&mut frame, len, &local()) else {
                return Err(TestCaseError::fail("refused"));
            };
            let said = TooBig { seq, len: 1500, mtu };
            prop_assert_eq!(packet.kind, TransportKind::TooBig(said));
            prop_assert_eq!((packet.key.local_port, packet.key.peer_port), ports);
            prop_assert!(local().has(&packet.key.local) && !local().has(&packet.key.peer));
            // Less than ports and number is nothing.
            let mut short = too_big_frame(is_ipv4, mtu, &quoted[..whole - 1]);
            let len = short.len();
            prop_assert_eq!(parse(&mut short, len, &local()), Err(Reject::IcmpIgnored));
        }

        #[test]
        fn any_quote_is_read_or_ignored(
            is_ipv4 in any::<bool>(), seq in any::<u32>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut quoted = quoted_bytes(is_ipv4, (80, 4000), seq, 0);
            for (place, byte) in changes {
                let place = place.index(quoted.len());
                quoted[place] = byte;
            }
            quoted.truncate(cut.index(quoted.len() + 1));
            let mut frame = too_big_frame(is_ipv4, 1400, &quoted);
            let len = frame.len();
            match parse(&mut frame, len, &local()) {
                Ok(Packet::Ip(packet)) => {
                    prop_assert!(matches!(packet.kind, TransportKind::TooBig(_)));
                    prop_assert!(local().has(&packet.key.local) && packet.key.local != packet.key.peer);
                    prop_assert!(packet.key.local_port != 0 && packet.key.peer_port != 0);
                }
                other => prop_assert_eq!(other, Err(Reject::IcmpIgnored)),
            }
        }

        #[test]
        fn a_prefix_contains_what_the_configured_one_does(
            base in address(), bits in 0u8..=128, other in address(),
        ) {
            let prefix = if base.is_ipv4() { bits % 33 } else { bits };
            let cidr = Cidr { address: base, prefix };
            // An IPv4 address in IPv6's notation is never on the wire as IPv6.
            prop_assume!(other.to_canonical() == other && base.to_canonical() == base);
            prop_assert_eq!(Prefix::new(&cidr).contains(&other.into()), cidr.contains(other));
            prop_assert!(Prefix::new(&cidr).contains(&base.into()));
        }
    }
}
