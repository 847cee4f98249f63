//! The link addresses of next hops: asked for when a client opens connections, kept for as long as the
//! core runs, and renewed by whatever the next hop says of itself.
//!
//! Who opens connections does so to few next hops, so the table is small, bounded and searched in order.

use std::net::IpAddr;

use smoltcp::wire::EthernetAddress;

use super::Question;
use super::claim::claimed;
use crate::config::Cidr;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::wire::{Address, ETHERTYPE_IPV4, ETHERTYPE_IPV6, LinkHeader};
use crate::{Duration, Instant};

/// Next hops at most.
const NEXT_HOPS_MAX: usize = 64;
/// Between two questions about one next hop, and how many there are.
const ASK_EVERY: Duration = Duration::from_millis(250);
const ASKS_MAX: u32 = 12;

/// Whether a peer can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its next hop's link address is known.
    Ready,
    /// It was asked for, and the answer is not there yet.
    Asking,
    /// Nobody answered within three seconds, we have no address of the peer's IP version, or there are too
    /// many next hops.
    Unreachable,
}

/// The next hops of one core.
#[derive(Debug)]
pub(crate) struct Resolver {
    link: EthernetAddress,
    /// Who asks: one address of ours for each IP version that we have.
    askers: Vec<Address>,
    /// What is on the link, if there is a gateway for the rest.
    on_link: Vec<Cidr>,
    gateways: Vec<IpAddr>,
    next_hops: Vec<NextHop>,
}

#[derive(Debug)]
struct NextHop {
    address: Address,
    link: Option<EthernetAddress>,
    asked_at: Instant,
    asks: u32,
}

impl Resolver {
    /// `ours` are addresses of ours with the prefixes that are on the link; `link` is our link address.
    pub(crate) fn new(link: EthernetAddress, ours: &[Cidr], gateways: &[IpAddr]) -> Self {
        let mut askers: Vec<Address> = Vec::new();
        for cidr in ours {
            let address = Address::from(cidr.address);
            if !askers
                .iter()
                .any(|asker| asker.is_ipv4() == address.is_ipv4())
            {
                askers.push(address);
            }
        }
        Self {
            link,
            askers,
            on_link: ours.to_vec(),
            gateways: gateways.to_vec(),
            next_hops: Vec::new(),
        }
    }

    /// Says whether `peer` can be sent to, and asks for its next hop's link address if it is time to.
    pub(crate) fn reach(
        &mut self,
        peer: IpAddr,
        now: Instant,
        egress: &mut Egress,
        counters: &Counters,
    ) -> Reach {
        let address = self.next_hop(peer);
        let asker = self
            .askers
            .iter()
            .find(|asker| asker.is_ipv4() == address.is_ipv4());
        let Some(asker) = asker.copied() else {
            return Reach::Unreachable;
        };
        let known = self.next_hops.iter().position(|hop| hop.address == address);
        let index = match known {
            Some(index) => index,
            None if self.next_hops.len() >= NEXT_HOPS_MAX => return Reach::Unreachable,
            None => {
                self.next_hops.push(NextHop {
                    address,
                    link: None,
                    asked_at: now,
                    asks: 0,
                });
                self.next_hops.len() - 1
            }
        };
        let hop = &mut self.next_hops[index];
        if hop.link.is_some() {
            return Reach::Ready;
        }
        if hop.asks == 0 || now >= hop.asked_at + ASK_EVERY {
            if hop.asks >= ASKS_MAX {
                return Reach::Unreachable;
            }
            hop.asks += 1;
            hop.asked_at = now;
            counters.neighbours_asked.increment();
            let question = Question {
                link: self.link,
                asker: Some(asker),
                target: address,
            };
            // One that finds no frame is repeated later, as one that is lost.
            egress.emit(
                &question.link_header(),
                question.len(),
                counters,
                |packet| question.write(packet),
            );
        }
        Reach::Asking
    }

    /// The link header of packets to `peer`, if its next hop is known.
    #[inline]
    pub(crate) fn link_to(&self, peer: IpAddr) -> Option<LinkHeader> {
        let address = self.next_hop(peer);
        let hop = self.next_hops.iter().find(|hop| hop.address == address)?;
        let ethertype = if address.is_ipv4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        Some(LinkHeader::new(hop.link?, self.link, ethertype))
    }

    /// Takes in a frame of ARP or neighbour discovery: what a next hop of ours says of itself. Returns
    /// whether it said something.
    pub(crate) fn learn(&mut self, frame: &[u8], counters: &Counters) -> bool {
        if self.next_hops.is_empty() {
            return false;
        }
        let Some((address, link)) = claimed(frame) else {
            return false;
        };
        let Some(hop) = self.next_hops.iter_mut().find(|hop| hop.address == address) else {
            return false;
        };
        if !link.is_unicast() {
            return false;
        }
        hop.link = Some(link);
        counters.neighbours_learned.increment();
        true
    }

    /// The peer itself if it is on the link or there is no gateway, else the gateway.
    #[inline]
    fn next_hop(&self, peer: IpAddr) -> Address {
        let gateway = self
            .gateways
            .iter()
            .find(|gateway| gateway.is_ipv4() == peer.is_ipv4());
        match gateway {
            Some(gateway) if !self.on_link.iter().any(|cidr| cidr.contains(peer)) => {
                (*gateway).into()
            }
            _ => peer.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::neighbour::question::BROADCAST;
    use crate::neighbour::{ARP_BYTES, ARP_KIND, ARP_REPLY};
    use crate::wire::{ETHERNET_HEADER_BYTES, ETHERTYPE_ARP};
    use proptest::prelude::*;

    const OURS: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const THEIRS: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn resolver(gateways: &[&str]) -> (Resolver, Egress) {
        let ours = ["10.0.1.1/24", "fd00::1/64"].map(|text| text.parse().unwrap());
        let gateways: Vec<IpAddr> = gateways.iter().map(|text| ip(text)).collect();
        (
            Resolver::new(OURS, &ours, &gateways),
            Egress::new(Arena::anonymous(64, 1792, 0)),
        )
    }

    fn arp_reply(sender: [u8; 4], link: EthernetAddress) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_HEADER_BYTES + ARP_BYTES];
        frame[12..14].copy_from_slice(&ETHERTYPE_ARP);
        frame[14..20].copy_from_slice(&ARP_KIND);
        frame[20..22].copy_from_slice(&ARP_REPLY);
        frame[22..28].copy_from_slice(link.as_bytes());
        frame[28..32].copy_from_slice(&sender);
        frame
    }

    #[test]
    fn asks_until_answered_and_then_knows() {
        let (mut resolver, mut egress) = resolver(&[]);
        let counters = Counters::default();
        let peer = ip("10.0.0.9");
        for (time, sent) in [(0, 1), (10, 1), (249, 1), (250, 2)] {
            let reach = resolver.reach(peer, at(time), &mut egress, &counters);
            assert_eq!(reach, Reach::Asking);
            assert_eq!(egress.queue.len(), sent, "at {time} ms");
        }
        assert!(resolver.link_to(peer).is_none());
        // Somebody else's answer is nobody's.
        assert!(!resolver.learn(&arp_reply([10, 0, 0, 8], THEIRS), &counters));
        assert!(resolver.learn(&arp_reply([10, 0, 0, 9], THEIRS), &counters));
        let reach = resolver.reach(peer, at(300), &mut egress, &counters);
        assert_eq!((reach, egress.queue.len()), (Reach::Ready, 2));
        let expected = LinkHeader::new(THEIRS, OURS, ETHERTYPE_IPV4);
        assert_eq!(resolver.link_to(peer), Some(expected));
    }

    #[test]
    fn gives_up_after_three_seconds() {
        let (mut resolver, mut egress) = resolver(&[]);
        let counters = Counters::default();
        for time in 0..3000 {
            let reach = resolver.reach(ip("10.0.0.9"), at(time), &mut egress, &counters);
            assert_eq!(reach, Reach::Asking, "at {time} ms");
        }
        let reach = resolver.reach(ip("10.0.0.9"), at(3000), &mut egress, &counters);
        assert_eq!(reach, Reach::Unreachable);
        assert_eq!(egress.queue.len(), ASKS_MAX as usize);
    }

    #[test]
    fn a_link_address_that_is_a_group_is_not_believed() {
        let (mut resolver, mut egress) = resolver(&[]);
        let counters = Counters::default();
        resolver.reach(ip("10.0.0.9"), at(0), &mut egress, &counters);
        assert!(!resolver.learn(&arp_reply([10, 0, 0, 9], BROADCAST), &counters));
    }

    #[test]
    fn what_is_not_on_the_link_goes_through_the_gateway() {
        let (mut resolver, mut egress) = resolver(&["10.0.1.254"]);
        let counters = Counters::default();
        resolver.reach(ip("192.0.2.1"), at(0), &mut egress, &counters);
        assert!(resolver.learn(&arp_reply([10, 0, 1, 254], THEIRS), &counters));
        assert!(resolver.link_to(ip("192.0.2.1")).is_some());
        assert!(resolver.link_to(ip("192.0.2.2")).is_some());
        assert!(resolver.link_to(ip("10.0.1.7")).is_none());
        assert!(resolver.link_to(ip("fd00::2")).is_none());
    }

    #[test]
    fn a_version_without_an_address_of_ours_is_unreachable() {
        let ours = ["10.0.1.1/24".parse().unwrap()];
        let mut resolver = Resolver::new(OURS, &ours, &[]);
        let mut egress = Egress::new(Arena::anonymous(4, 1792, 0));
        let reach = resolver.reach(ip("fd00::2"), at(0), &mut egress, &Counters::default());
        assert_eq!((reach, egress.queue.len()), (Reach::Unreachable, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 14..200), arp in any::<bool>()) {
            let (mut resolver, mut egress) = resolver(&[]);
            let counters = Counters::default();
            resolver.reach(ip("10.0.0.9"), at(0), &mut egress, &counters);
            let mut bytes = bytes;
            bytes[12..14].copy_from_slice(if arp { &ETHERTYPE_ARP } else { &ETHERTYPE_IPV6 });
            resolver.learn(&bytes, &counters);
        }
    }
}
