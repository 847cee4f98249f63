//! Claims to addresses in ARP and neighbour discovery: a station has an address, or probes for it.

use std::net::IpAddr;

use smoltcp::wire::{EthernetAddress, EthernetFrame};

use super::{
    ADVERTISEMENT, ARP_BYTES, ARP_KIND, ARP_REPLY, ARP_REQUEST, MESSAGE_BYTES, SOLICITATION,
    TARGET_LINK_OPTION, ipv4, ipv6,
};
use crate::wire::{
    Address, ETHERNET_HEADER_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV6, IPV6_HEADER_BYTES,
};

/// The address that a station says it has, and its link address. Frames are those that passed
/// [`parse`](crate::wire::parse).
pub(super) fn claimed(frame: &[u8]) -> Option<(Address, EthernetAddress)> {
    said_in_arp(frame).or_else(|| said_in_advertisement(frame))
}

/// A claim to one of `ours` by a station whose link address is not `link`: that it has the address, or that it
/// is probing for it as we do, since it wants it, too (RFC 5227 section 2.1.1, RFC 4862 sections 5.4.3 and 5.4.4).
pub(crate) fn conflict(
    frame: &[u8],
    ours: &[Address],
    link: EthernetAddress,
) -> Option<(Address, EthernetAddress)> {
    claimed(frame)
        .filter(|(address, _)| ours.contains(address))
        .or_else(|| probed(frame))
        .or_else(|| advertised(frame))
        .filter(|(address, claimant)| ours.contains(address) && *claimant != link)
}

/// The sender of an ARP packet says so of itself in questions, too (RFC 826).
fn said_in_arp(frame: &[u8]) -> Option<(Address, EthernetAddress)> {
    let arp = arp(frame)?;
    Some((ipv4(&arp[14..18]), EthernetAddress::from_bytes(&arp[8..14])))
}

/// The target of an advertisement and its link address (RFC 4861 section 7.2.5), if it gives one.
fn said_in_advertisement(frame: &[u8]) -> Option<(Address, EthernetAddress)> {
    let message = message(frame, ADVERTISEMENT)?;
    let target = target(message);
    let mut options = &message[MESSAGE_BYTES..];
    while options.len() >= 8 {
        if options[..2] == TARGET_LINK_OPTION {
            return Some((target, EthernetAddress::from_bytes(&options[2..8])));
        }
        let len = usize::from(options[1]) * 8;
        if len == 0 {
            return None;
        }
        options = options.get(len..)?;
    }
    None
}

/// The address of an advertisement, with or without a link address in it, and where the frame came from.
fn advertised(frame: &[u8]) -> Option<(Address, EthernetAddress)> {
    let message = message(frame, ADVERTISEMENT)?;
    Some((
        target(message),
        EthernetFrame::new_unchecked(frame).src_addr(),
    ))
}

/// The address that a station without an address asks for.
fn probed(frame: &[u8]) -> Option<(Address, EthernetAddress)> {
    if let Some(arp) = arp(frame) {
        let probes = arp[6..8] == ARP_REQUEST && arp[14..18] == [0; 4];
        return probes.then(|| (ipv4(&arp[24..28]), EthernetAddress::from_bytes(&arp[8..14])));
    }
    let message = message(frame, SOLICITATION)?;
    let source = ipv6(&frame[ETHERNET_HEADER_BYTES + 8..ETHERNET_HEADER_BYTES + 24]);
    source.is_unspecified().then(|| {
        let from = EthernetFrame::new_unchecked(frame).src_addr();
        (target(message), from)
    })
}

/// The ARP packet of a frame: a question or an answer.
fn arp(frame: &[u8]) -> Option<&[u8]> {
    let arp = frame.get(ETHERNET_HEADER_BYTES..ETHERNET_HEADER_BYTES + ARP_BYTES)?;
    let is_arp = frame[12..14] == ETHERTYPE_ARP && arp[0..6] == ARP_KIND;
    (is_arp && (arp[6..8] == ARP_REPLY || arp[6..8] == ARP_REQUEST)).then_some(arp)
}

/// The neighbour discovery message of this type in a frame, at least as long as its fixed part.
fn message(frame: &[u8], kind: u8) -> Option<&[u8]> {
    let message = frame.get(ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES..)?;
    let is_one = frame[12..14] == ETHERTYPE_IPV6
        && message.len() >= MESSAGE_BYTES
        && message[..2] == [kind, 0];
    is_one.then_some(message)
}

fn target(message: &[u8]) -> Address {
    IpAddr::V6(ipv6(&message[8..24])).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::Question;
    use crate::neighbour::answer::tests_support::answer_to;
    use proptest::prelude::*;

    const OURS: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const THEIRS: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);

    fn ours() -> [Address; 2] {
        ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap().into())
    }

    fn frame_of(question: &Question) -> Vec<u8> {
        let header = question.link_header();
        let mut frame = vec![0; header.len() + question.len()];
        header.write(&mut frame);
        question.write(&mut frame[header.len()..]);
        frame
    }

    fn probe(link: EthernetAddress, target: Address) -> Vec<u8> {
        frame_of(&Question {
            link,
            asker: None,
            target,
        })
    }

    #[test]
    fn the_answer_to_a_probe_is_a_conflict_that_names_who_answered() {
        for target in ours() {
            let answer = answer_to(&probe(OURS, target), THEIRS, target.to_ip());
            assert_eq!(conflict(&answer, &ours(), OURS), Some((target, THEIRS)));
        }
    }

    #[test]
    fn who_wants_the_same_address_at_the_same_time_is_a_conflict() {
        for target in ours() {
            let theirs = probe(THEIRS, target);
            assert_eq!(conflict(&theirs, &ours(), OURS), Some((target, THEIRS)));
        }
    }

    #[test]
    fn what_this_interface_says_itself_is_none() {
        for target in ours() {
            assert_eq!(conflict(&probe(OURS, target), &ours(), OURS), None);
            let answer = answer_to(&probe(THEIRS, target), OURS, target.to_ip());
            assert_eq!(conflict(&answer, &ours(), OURS), None);
        }
    }

    #[test]
    fn questions_about_the_address_and_claims_to_others_are_none() {
        let other = ["10.0.0.9", "fd00::9"].map(|text| text.parse::<IpAddr>().unwrap().into());
        for (target, other) in ours().into_iter().zip(other) {
            let asked = frame_of(&Question {
                link: THEIRS,
                asker: Some(other),
                target,
            });
            assert_eq!(conflict(&asked, &ours(), OURS), None);
            let answer = answer_to(&probe(OURS, other), THEIRS, other.to_ip());
            assert_eq!(conflict(&answer, &ours(), OURS), None);
        }
    }

    #[test]
    fn an_advertisement_without_a_link_address_is_a_conflict_with_its_sender() {
        let target = ours()[1];
        let mut answer = answer_to(&probe(OURS, target), THEIRS, target.to_ip());
        answer.truncate(ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + MESSAGE_BYTES);
        assert_eq!(conflict(&answer, &ours(), OURS), Some((target, THEIRS)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 14..200), arp in any::<bool>(),
            kind in any::<u8>(),
        ) {
            let mut bytes = bytes;
            bytes[12..14].copy_from_slice(if arp { &ETHERTYPE_ARP } else { &ETHERTYPE_IPV6 });
            if let Some(byte) = bytes.get_mut(54) { *byte = 133 + kind % 4; }
            conflict(&bytes, &ours(), OURS);
        }
    }
}
