//! Questions about addresses that are ours alone, answered on their own frame, whoever asks.
//!
//! Everything but a question about one of our addresses is ignored.

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

use super::{
    ADVERTISEMENT, ARP_BYTES, ARP_KIND, ARP_REPLY, ARP_REQUEST, MESSAGE_BYTES,
    MESSAGE_WITH_LINK_BYTES, SOLICITATION, TARGET_LINK_OPTION, ipv4, ipv6,
};
use crate::arena::Frame;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::wire::checksum::Sum;
use crate::wire::{Address, ETHERNET_HEADER_BYTES, IPV6_HEADER_BYTES, Local, Reject, ip};

/// Flags of an advertisement: an answer, and to override what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Answers the question in the first `len` bytes of `frame`, or drops and counts it.
pub(crate) fn answer(
    mut frame: Frame,
    len: usize,
    local: &Local,
    egress: &mut Egress,
    counters: &Counters,
) {
    let buffer = egress.arena.buffer_mut(&mut frame);
    let answered = match EthernetFrame::new_unchecked(&*buffer).ethertype() {
        EthernetProtocol::Arp => answer_arp(buffer, len, local),
        _ => answer_solicitation(buffer, len, local),
    };
    match answered {
        Some(len) => {
            counters.neighbour_messages.increment();
            egress.arena.set_len(&mut frame, len);
            egress.send(frame);
        }
        None => {
            counters.reject(Reject::Neighbour);
            egress.arena.free(frame);
        }
    }
}

/// RFC 826; a probe, whose sender has no address yet, is answered too: that is how it finds out that the
/// address is taken (RFC 5227 section 2.1.1). Returns the length of the answer.
fn answer_arp(frame: &mut [u8], len: usize, local: &Local) -> Option<usize> {
    let arp = frame.get_mut(ETHERNET_HEADER_BYTES..len)?;
    let arp = arp.get_mut(..ARP_BYTES)?;
    let target = ipv4(&arp[24..28]);
    if arp[0..6] != ARP_KIND || arp[6..8] != ARP_REQUEST || !local.has(&target) {
        return None;
    }
    let mut asker = [0; 10];
    asker.copy_from_slice(&arp[8..18]);
    let asker_link = EthernetAddress::from_bytes(&asker[..6]);
    // Nobody else may claim our address, and only one station can be told.
    if !asker_link.is_unicast() || local.has(&ipv4(&asker[6..])) {
        return None;
    }
    let mut ours = [0; 4];
    ours.copy_from_slice(&arp[24..28]);
    arp[6..8].copy_from_slice(&ARP_REPLY);
    arp[8..14].copy_from_slice(local.link().as_bytes());
    arp[14..18].copy_from_slice(&ours);
    arp[18..28].copy_from_slice(&asker);
    write_link(frame, asker_link, local);
    Some(ETHERNET_HEADER_BYTES + ARP_BYTES)
}

/// RFC 4861 section 7.2.4. Checksum and hop limit were verified. Returns the length of the answer.
fn answer_solicitation(frame: &mut [u8], len: usize, local: &Local) -> Option<usize> {
    let packet = frame.get(ETHERNET_HEADER_BYTES..len)?;
    let message = packet.get(IPV6_HEADER_BYTES..)?;
    if message.len() < MESSAGE_BYTES || message[0] != SOLICITATION || message[1] != 0 {
        return None;
    }
    let asker = ipv6(&packet[8..24]);
    let target = Address::from(std::net::IpAddr::V6(ipv6(&message[8..24])));
    if !local.has(&target) || target.is_ipv4() || asker.is_multicast() {
        return None;
    }
    // The asker's link address is its frame's source. An asker without address is trying out ours: all
    // nodes are told that it is taken (section 7.2.4, RFC 4862 section 5.4.3).
    let probing = asker.is_unspecified();
    let (destination, flags) = if probing {
        (
            std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            OVERRIDE,
        )
    } else {
        (asker, SOLICITED | OVERRIDE)
    };
    let link = if probing {
        EthernetAddress([0x33, 0x33, 0, 0, 0, 1])
    } else {
        EthernetFrame::new_unchecked(&*frame).src_addr()
    };
    let answer_len = ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + MESSAGE_WITH_LINK_BYTES;
    let answer = frame.get_mut(ETHERNET_HEADER_BYTES..answer_len)?;
    let destination = Address::from(std::net::IpAddr::V6(destination));
    ip::write_header(answer, &target, &destination, ip::PROTOCOL_ICMPV6);
    // Proof that no router forwarded it (section 7.1.2).
    answer[7] = 255;
    let message = &mut answer[IPV6_HEADER_BYTES..];
    message[..8].copy_from_slice(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    message[8..24].copy_from_slice(target.octets());
    message[24..26].copy_from_slice(&TARGET_LINK_OPTION);
    message[26..32].copy_from_slice(local.link().as_bytes());
    let sum = Sum::pseudo_header(
        &target,
        &destination,
        ip::PROTOCOL_ICMPV6,
        MESSAGE_WITH_LINK_BYTES as u16,
    );
    let field = sum.plus(message).finish();
    message[2..4].copy_from_slice(&field);
    write_link(frame, link, local);
    Some(answer_len)
}

/// Addresses the frame; its type stays.
fn write_link(frame: &mut [u8], to: EthernetAddress, local: &Local) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_dst_addr(to);
    ethernet.set_src_addr(local.link());
}

/// For tests that need what a station answers.
#[cfg(test)]
pub(super) mod tests_support {
    use std::net::IpAddr;

    use smoltcp::wire::EthernetAddress;

    use super::answer;
    use crate::arena::{Arena, Owner};
    use crate::config::Cidr;
    use crate::egress::Egress;
    use crate::telemetry::Counters;
    use crate::wire::Local;

    /// Returns the answer of the station `link`, which has `address`, to the frame `question`.
    pub(in crate::neighbour) fn answer_to(
        question: &[u8],
        link: EthernetAddress,
        address: IpAddr,
    ) -> Vec<u8> {
        let cidr = Cidr { address, prefix: 0 };
        let local = Local::new(link, &[cidr], &[], 1500);
        let mut egress = Egress::new(Arena::anonymous(1, 1792, 0));
        let mut frame = egress.arena.alloc(Owner::Rx).unwrap();
        egress.arena.buffer_mut(&mut frame)[..question.len()].copy_from_slice(question);
        answer(
            frame,
            question.len(),
            &local,
            &mut egress,
            &Counters::default(),
        );
        let frame = egress.queue.pop().unwrap();
        egress.arena.bytes(&frame).to_vec()
    }
}
