//! Frames as these programs need them: turned around, and made.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, IpRepr, Ipv4Repr,
    Ipv6Repr,
};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of a UDP header.
pub(super) const UDP: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Where a packet's ends are, the source first: two addresses of `address` bytes from `addresses` on, and behind
/// the IP header the ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) addresses: usize,
    pub(super) address: usize,
    pub(super) ports: usize,
}

impl Layout {
    /// Of packets with addresses of this version.
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { IPV4 } else { IPV6 }
    }
}

const IPV4: Layout = Layout {
    addresses: ETHERNET + 12,
    address: 4,
    ports: ETHERNET + 20,
};
const IPV6: Layout = Layout {
    addresses: ETHERNET + 8,
    address: 16,
    ports: ETHERNET + 40,
};

/// Turns a UDP packet to `port` around in place: link addresses, IP addresses and ports change their places,
/// which leaves the checksums right. Returns where its payload begins.
///
/// Any other frame stays as it is and gives `None`: untagged Ethernet, no IP options or extension headers, no
/// fragments. What comes from `port` is not turned either, or two reflectors could keep a packet going for ever.
pub(super) fn turn_around(frame: &mut [u8], port: u16) -> Option<usize> {
    let layout = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = frame.get(ETHERNET..ETHERNET + 20)?;
            // A header of five words; neither a first nor a later fragment; UDP.
            let plain = header[0] == 0x45 && header[6] & 0x3f == 0 && header[7] == 0;
            (plain && header[9] == 17).then_some(IPV4)?
        }
        [0x86, 0xdd] => {
            let header = frame.get(ETHERNET..ETHERNET + 40)?;
            (header[0] >> 4 == 6 && header[6] == 17).then_some(IPV6)?
        }
        _ => return None,
    };
    let (from, to) = frame.get(layout.ports..layout.ports + 4)?.split_at(2);
    if to != port.to_be_bytes() || from == to {
        return None;
    }
    let payload = layout.ports + UDP;
    // A group never sends (IEEE 802.3), and nothing is sent to one.
    if frame.len() < payload || frame[6] & 1 != 0 {
        return None;
    }
    swap(frame, 0, 6);
    swap(frame, layout.addresses, layout.address);
    swap(frame, layout.ports, 2);
    Some(payload)
}

/// Swaps two neighbouring fields of `len` bytes.
fn swap(frame: &mut [u8], at: usize, len: usize) {
    let (first, second) = frame[at..at + 2 * len].split_at_mut(len);
    first.swap_with_slice(second);
}

/// Ethernet and IP headers for a transport packet of `len` bytes, which is to follow. `links` and `addresses`
/// are source and destination; `None` if the addresses are of two versions.
pub(super) fn headers(
    links: ([u8; 6], [u8; 6]),
    addresses: (IpAddr, IpAddr),
    protocol: IpProtocol,
    len: usize,
) -> Option<Vec<u8>> {
    let ip = match addresses {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => IpRepr::Ipv4(Ipv4Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        }),
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => IpRepr::Ipv6(Ipv6Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        }),
        _ => return None,
    };
    let mut bytes = vec![0; ETHERNET + ip.header_len()];
    let ethertype = match ip {
        IpRepr::Ipv4(_) => EthernetProtocol::Ipv4,
        IpRepr::Ipv6(_) => EthernetProtocol::Ipv6,
    };
    link_header(&mut bytes, links, ethertype);
    ip.emit(&mut bytes[ETHERNET..], &ChecksumCapabilities::default());
    Some(bytes)
}

/// Writes an Ethernet header with these source and destination addresses.
pub(super) fn link_header(
    frame: &mut [u8],
    links: ([u8; 6], [u8; 6]),
    ethertype: EthernetProtocol,
) {
    let repr = EthernetRepr {
        src_addr: EthernetAddress(links.0),
        dst_addr: EthernetAddress(links.1),
        ethertype,
    };
    repr.emit(&mut EthernetFrame::new_unchecked(frame));
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, UdpPacket};

    use super::*;

    /// A UDP packet between link addresses `2.0.0.0.0.1` and `2.0.0.0.0.2`.
    pub(in crate::bare) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let links = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let len = UDP + payload.len();
        let mut frame = headers(links, (from.ip(), to.ip()), IpProtocol::Udp, len).unwrap();
        let mut transport = vec![0; len];
        transport[UDP..].copy_from_slice(payload);
        let mut packet = UdpPacket::new_unchecked(&mut transport[..]);
        packet.set_src_port(from.port());
        packet.set_dst_port(to.port());
        packet.set_len(len as u16);
        packet.fill_checksum(&from.ip().into(), &to.ip().into());
        frame.extend(transport);
        frame
    }

    /// Source, destination and payload of a UDP packet whose checksums hold.
    pub(in crate::bare) fn dissect(frame: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        let ends = |packet: &UdpPacket<&[u8]>, source: IpAddress, destination: IpAddress| {
            assert!(packet.verify_checksum(&source, &destination));
            (
                SocketAddr::new(source.into(), packet.src_port()),
                SocketAddr::new(destination.into(), packet.dst_port()),
                packet.payload().to_vec(),
            )
        };
        match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                assert!(ip.verify_checksum());
                let packet = UdpPacket::new_checked(ip.payload()).unwrap();
                ends(&packet, ip.src_addr().into(), ip.dst_addr().into())
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
                let packet = UdpPacket::new_checked(ip.payload()).unwrap();
                ends(&packet, ip.src_addr().into(), ip.dst_addr().into())
            }
            other => panic!("{other}"),
        }
    }

    fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            (
                "[2001:db8::1]:4000".parse().unwrap(),
                "[2001:db8::2]:9".parse().unwrap(),
            )
        } else {
            (
                "192.0.2.1:4000".parse().unwrap(),
                "192.0.2.2:9".parse().unwrap(),
            )
        }
    }

    #[test]
    fn a_packet_goes_back_whole() {
        for v6 in [false, true] {
            let (from, to) = ends(v6);
            let original = udp(from, to, b"payload");
            let mut frame = original.clone();
            let payload = turn_around(&mut frame, 9).unwrap();
            assert_eq!(&frame[payload..], b"payload");
            assert_eq!(dissect(&frame), (to, from, b"payload".to_vec()));
            assert_eq!(
                (&frame[..6], &frame[6..12]),
                (&original[6..12], &original[..6])
            );
            assert_eq!(turn_around(&mut frame, 4000), Some(payload));
            assert_eq!(frame, original);
        }
    }

    #[test]
    fn what_is_not_for_the_port_stays() {
        let (from, to) = ends(false);
        let good = udp(from, to, b"payload");
        let with = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            frame
        };
        let from_the_port = udp(SocketAddr::new(from.ip(), 9), to, b"");
        for (mut frame, port) in [
            (good.clone(), 10),
            (from_the_port, 9),
            // A group as source, a VLAN tag, options, more fragments, a later fragment, TCP.
            (with(6, 3), 9),
            (with(12, 0x81), 9),
            (with(14, 0x46), 9),
            (with(20, 0x20), 9),
            (with(21, 1), 9),
            (with(23, 6), 9),
            (good[..41].to_vec(), 9),
        ] {
            let before = frame.clone();
            assert_eq!(turn_around(&mut frame, port), None, "{frame:02x?}");
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn headers_need_one_version() {
        let (v4, v6) = (ends(false).0.ip(), ends(true).0.ip());
        assert_eq!(
            headers(([0; 6], [0; 6]), (v4, v6), IpProtocol::Udp, 8),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(mut frame in prop::collection::vec(any::<u8>(), 0..120), port: u16) {
            let before = frame.clone();
            if turn_around(&mut frame, port).is_none() {
                prop_assert_eq!(frame, before);
            }
        }

        /// Damaged packets get further than random bytes.
        #[test]
        fn damaged_packets_are_safe(
            v6: bool, at in 0usize..70, value: u8, len in 0usize..80, payload in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let (from, to) = ends(v6);
            let mut frame = udp(from, to, &payload);
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            frame.truncate(len);
            let before = frame.clone();
            let (mut sorted, mut sorted_before) = (frame.clone(), before.clone());
            match turn_around(&mut frame, 9) {
                None => prop_assert_eq!(frame, before),
                Some(payload) => {
                    prop_assert!(payload <= frame.len());
                    // Nothing is invented or lost, and the way back leads to the same packet.
                    sorted.copy_from_slice(&frame);
                    sorted.sort_unstable();
                    sorted_before.sort_unstable();
                    prop_assert_eq!(sorted, sorted_before);
                    let back = u16::from_be_bytes([frame[payload - 6], frame[payload - 5]]);
                    if frame[6] & 1 == 0 {
                        prop_assert_eq!(turn_around(&mut frame, back), Some(payload));
                        prop_assert_eq!(frame, before);
                    }
                }
            }
        }
    }
}
