//! What the kernel knows of the interface.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use smoltcp::wire::EthernetAddress;

use super::packet_socket::PacketSocket;
use crate::neighbour::solicited_node_link;
use crate::wire::Address;

/// An interface of this network namespace.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) kind: Kind,
    pub(super) link: EthernetAddress,
    pub(super) mtu: usize,
    pub(super) is_up: bool,
    /// Addresses that the kernel has on any interface here.
    pub(super) kernel_addresses: Vec<(String, IpAddr)>,
    /// Receive queues, if sysfs shows this namespace.
    pub(super) queues: Option<u32>,
    /// The most receive queues that it can be given, if its driver tells.
    pub(super) queues_max: Option<u32>,
    /// Whether it is up and has a link, which means that the other end is there, and up.
    pub(super) has_link: bool,
    /// The name of its driver, if that tells.
    pub(super) driver: Option<String>,
}

impl Interface {
    /// Returns the present value of [`queues`](Self::queues).
    pub(super) fn queues_now(&self) -> Option<u32> {
        receive_queues(&self.name, self.index)
    }

    /// Returns the present number of transmit queues, if sysfs shows this namespace. It may be smaller than the number of
    /// receive queues: a driver may add receive queues for XDP that have no transmit queue.
    pub(super) fn transmit_queues_now(&self) -> Option<u32> {
        queues_in_sysfs(&self.name, self.index, "tx-")
    }

    /// Returns the present value of [`has_link`](Self::has_link).
    pub(super) fn has_link_now(&self) -> bool {
        interruptlet_xdp::interface_has_link(&self.name).unwrap_or(false)
    }

    /// Returns the receive queues that it spreads flows over now, if its driver tells.
    pub(super) fn spread_now(&self) -> Option<Vec<u32>> {
        interruptlet_xdp::interface_spread(&self.name).ok()
    }

    /// Returns whether its driver has zero-copy, if the kernel tells.
    pub(super) fn has_zero_copy(&self) -> Option<bool> {
        interruptlet_xdp::interface_has_zero_copy(&self.name)
    }
}

/// The kind of an interface, by its hardware type (`ARPHRD_*` of <linux/if_arp.h>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ethernet,
    Loopback,
    /// Any other type, with its number.
    Other(u16),
}

impl Kind {
    fn of(hardware_type: u16) -> Self {
        match hardware_type {
            libc::ARPHRD_ETHER => Self::Ethernet,
            libc::ARPHRD_LOOPBACK => Self::Loopback,
            other => Self::Other(other),
        }
    }
}

/// Looks an interface up; `None` if there is none of this name.
pub(super) fn find(name: &str) -> io::Result<Option<Interface>> {
    let mut flags = None;
    let mut link_address = None;
    let mut kernel_addresses = Vec::new();
    for entry in getifaddrs()? {
        if entry.interface_name == name {
            flags = Some(entry.flags);
        }
        // An interface without a link address has an entry without an address.
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            kernel_addresses.push((entry.interface_name.clone(), IpAddr::V4(v4.ip())));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            kernel_addresses.push((entry.interface_name.clone(), IpAddr::V6(v6.ip())));
        } else if let Some(link) = address.as_link_addr()
            && entry.interface_name == name
        {
            link_address = link.addr();
        }
    }
    let Some(flags) = flags else {
        return Ok(None);
    };
    let index = if_nametoindex(name)?;
    Ok(Some(Interface {
        name: name.to_owned(),
        index,
        kind: Kind::of(interruptlet_xdp::interface_hardware_type(name)?),
        // Every Ethernet interface has a link address.
        link: EthernetAddress(link_address.unwrap_or_default()),
        mtu: interruptlet_xdp::interface_mtu(name)? as usize,
        is_up: flags.contains(InterfaceFlags::IFF_UP),
        kernel_addresses,
        queues: receive_queues(name, index),
        queues_max: interruptlet_xdp::interface_queues_max(name).ok(),
        has_link: interruptlet_xdp::interface_has_link(name).unwrap_or(false),
        driver: interruptlet_xdp::interface_driver(name).ok(),
    }))
}

/// Returns the present number of receive queues, if sysfs shows this namespace.
fn receive_queues(name: &str, index: u32) -> Option<u32> {
    queues_in_sysfs(name, index, "rx-")
}

/// Counts the queues in sysfs whose names begin with `prefix`. Returns `None` if sysfs does not show this interface: it
/// may show one of the same name in another namespace.
fn queues_in_sysfs(name: &str, index: u32, prefix: &str) -> Option<u32> {
    let folder = std::path::Path::new("/sys/class/net").join(name);
    let shown: u32 = std::fs::read_to_string(folder.join("ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    if shown != index {
        return None;
    }
    let queues = std::fs::read_dir(folder.join("queues"))
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .count();
    Some(queues as u32)
}

/// Makes the interface's filter let the solicited-node groups of `addresses` through, for as long as `socket` lives; IPv4
/// addresses have none. The kernel would do so for addresses of its own.
pub(super) fn join_solicited_node_groups(
    socket: &PacketSocket,
    index: u32,
    addresses: &[Address],
) -> io::Result<()> {
    for address in addresses.iter().filter(|address| !address.is_ipv4()) {
        socket.join(index, solicited_node_link(address).0)?;
    }
    Ok(())
}
