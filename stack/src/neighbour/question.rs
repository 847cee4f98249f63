//! Questions about an address: an ARP request or a neighbour solicitation, ready to be written.

use std::net::IpAddr;

use smoltcp::wire::EthernetAddress;

use super::{
    ARP_BYTES, ARP_KIND, ARP_REQUEST, MESSAGE_BYTES, MESSAGE_WITH_LINK_BYTES, SOLICITATION,
    SOURCE_LINK_OPTION,
};
use crate::wire::checksum::Sum;
use crate::wire::{Address, ETHERTYPE_ARP, ETHERTYPE_IPV6, IPV6_HEADER_BYTES, LinkHeader, ip};

/// ARP asks everybody; neighbour discovery a group (RFC 2464 section 7).
pub(super) const BROADCAST: EthernetAddress = EthernetAddress([0xff; 6]);

/// The link address of the solicited-node group of an IPv6 address (RFC 4291 section 2.7.1, RFC 2464 section 7).
pub(crate) fn solicited_node_link(address: &Address) -> EthernetAddress {
    let low = &address.octets()[13..];
    EthernetAddress([0x33, 0x33, 0xff, low[0], low[1], low[2]])
}

/// The question who has `target`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    /// The asker's link address.
    pub(crate) link: EthernetAddress,
    /// The asker's address, of the target's version. `None` in a probe by a station that wants the target for
    /// itself, and so has no address yet (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
    pub(crate) asker: Option<Address>,
    /// The address asked for.
    pub(crate) target: Address,
}

impl Question {
    /// The link header of the question.
    pub(crate) fn link_header(&self) -> LinkHeader {
        if self.target.is_ipv4() {
            return LinkHeader::new(BROADCAST, self.link, ETHERTYPE_ARP);
        }
        LinkHeader::new(solicited_node_link(&self.target), self.link, ETHERTYPE_IPV6)
    }

    /// Bytes behind the link header.
    pub(crate) fn len(&self) -> usize {
        if self.target.is_ipv4() {
            ARP_BYTES
        } else {
            IPV6_HEADER_BYTES + self.message_len()
        }
    }

    /// Without an address to answer to, the asker's link address must not be given (RFC 4861 section 4.3).
    fn message_len(&self) -> usize {
        if self.asker.is_some() {
            MESSAGE_WITH_LINK_BYTES
        } else {
            MESSAGE_BYTES
        }
    }

    /// Writes what is behind the link header to `packet`, which is [`len`](Self::len) bytes long.
    pub(crate) fn write(&self, packet: &mut [u8]) {
        if self.target.is_ipv4() {
            self.write_arp(packet);
        } else {
            self.write_solicitation(packet);
        }
    }

    fn write_arp(&self, arp: &mut [u8]) {
        arp[0..6].copy_from_slice(&ARP_KIND);
        arp[6..8].copy_from_slice(&ARP_REQUEST);
        arp[8..14].copy_from_slice(self.link.as_bytes());
        match &self.asker {
            Some(asker) => arp[14..18].copy_from_slice(&asker.octets()[12..]),
            None => arp[14..18].fill(0),
        }
        arp[18..24].fill(0);
        arp[24..28].copy_from_slice(&self.target.octets()[12..]);
    }

    fn write_solicitation(&self, packet: &mut [u8]) {
        // The solicited-node group (RFC 4291 section 2.7.1).
        let mut group = [0; 16];
        group[..2].copy_from_slice(&[0xff, 0x02]);
        group[11..13].copy_from_slice(&[1, 0xff]);
        group[13..].copy_from_slice(&self.target.octets()[13..]);
        let group = Address::from(IpAddr::from(group));
        let source = self
            .asker
            .unwrap_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED).into());
        ip::write_header(packet, &source, &group, ip::PROTOCOL_ICMPV6);
        // Proof that no router forwarded it (RFC 4861 section 7.1.1).
        packet[7] = 255;
        let message = &mut packet[IPV6_HEADER_BYTES..];
        message[..8].copy_from_slice(&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
        message[8..24].copy_from_slice(self.target.octets());
        if self.asker.is_some() {
            message[24..26].copy_from_slice(&SOURCE_LINK_OPTION);
            message[26..32].copy_from_slice(self.link.as_bytes());
        }
        let len = self.message_len() as u16;
        let sum = Sum::pseudo_header(&source, &group, ip::PROTOCOL_ICMPV6, len);
        let field = sum.plus(message).finish();
        message[2..4].copy_from_slice(&field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{
        ArpOperation, ArpPacket, ArpRepr, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscRepr,
    };

    const LINK: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn written(question: &Question) -> Vec<u8> {
        // Whatever was in the memory before.
        let mut packet = vec![0xa5; question.len()];
        question.write(&mut packet);
        packet
    }

    #[test]
    fn an_arp_probe_has_no_sender_address() {
        for (asker, sender) in [(None, "0.0.0.0"), (Some(address("10.0.0.1")), "10.0.0.1")] {
            let question = Question {
                link: LINK,
                asker,
                target: address("10.0.0.2"),
            };
            let repr = ArpRepr::parse(&ArpPacket::new_checked(&written(&question)[..]).unwrap());
            let expected = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: LINK,
                source_protocol_addr: sender.parse().unwrap(),
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: "10.0.0.2".parse().unwrap(),
            };
            assert_eq!(repr.unwrap(), expected);
            let header = LinkHeader::new(BROADCAST, LINK, ETHERTYPE_ARP);
            assert_eq!(question.link_header(), header);
        }
    }

    #[test]
    fn a_solicitation_for_duplicates_has_neither_source_nor_link_address() {
        for (asker, source) in [(None, "::"), (Some(address("fd00::1")), "fd00::1")] {
            let question = Question {
                link: LINK,
                asker,
                target: address("fd00::12:3456"),
            };
            let bytes = written(&question);
            let packet = Ipv6Packet::new_checked(&bytes[..]).unwrap();
            assert_eq!(packet.src_addr().to_string(), source);
            assert_eq!(packet.dst_addr().to_string(), "ff02::1:ff12:3456");
            assert_eq!(packet.hop_limit(), 255);
            let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
            let repr = Icmpv6Repr::parse(
                &packet.src_addr(),
                &packet.dst_addr(),
                &message,
                &smoltcp::phy::ChecksumCapabilities::default(),
            );
            let expected = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr: "fd00::12:3456".parse().unwrap(),
                lladdr: asker.map(|_| LINK.into()),
            });
            assert_eq!(repr.unwrap(), expected);
            let group = EthernetAddress([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
            let header = LinkHeader::new(group, LINK, ETHERTYPE_IPV6);
            assert_eq!(question.link_header(), header);
        }
    }
}
