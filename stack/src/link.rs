//! The link interface: ARP and neighbour discovery for addresses that are ours alone, and next hops for
//! destinations that are not on the link.
//!
//! One ordinary smoltcp interface with Ethernet framing. Flows do not use it: they answer to the link
//! address that their peer's frames come from.

use std::net::IpAddr;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::Instant;
use crate::arena::Frame;
use crate::config::Cidr;
use crate::device::{Device, DeviceFacts};
use crate::egress::Egress;
use crate::tcp::new_interface;
use crate::telemetry::Counters;

/// The link interface of one core.
pub(crate) struct Link {
    interface: Interface,
    facts: DeviceFacts,
    sockets: SocketSet<'static>,
}

impl Link {
    pub(crate) fn new(
        address: EthernetAddress,
        addresses: &[Cidr],
        gateways: &[IpAddr],
        ip_mtu: usize,
        seed: u64,
        egress: &mut Egress,
        now: Instant,
    ) -> Self {
        let facts = DeviceFacts {
            medium: Medium::Ethernet,
            ip_mtu,
        };
        let hardware = HardwareAddress::Ethernet(address);
        let mut interface = new_interface(facts, hardware, addresses, seed, egress, now);
        let routes = interface.routes_mut();
        routes.remove_default_ipv4_route();
        routes.remove_default_ipv6_route();
        for gateway in gateways {
            // One per version: `Config` was checked.
            let _ = match gateway {
                IpAddr::V4(gateway) => routes.add_default_ipv4_route(*gateway).map(|_| ()),
                IpAddr::V6(gateway) => routes.add_default_ipv6_route(*gateway).map(|_| ()),
            };
        }
        Self {
            interface,
            facts,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    /// Takes in an ARP or neighbour discovery message of `len` bytes and answers it.
    pub(crate) fn receive(
        &mut self,
        frame: Frame,
        len: usize,
        now: Instant,
        egress: &mut Egress,
        counters: &Counters,
    ) {
        counters.neighbour_messages.increment();
        let memory = egress.arena.memory();
        let mut device = Device {
            received: Some(&memory.frame(&frame)[..len]),
            egress,
            link: None,
            facts: &self.facts,
            counters,
            sent: 0,
        };
        self.interface
            .poll_ingress_single(now, &mut device, &mut self.sockets);
        egress.arena.free(frame);
    }
}
