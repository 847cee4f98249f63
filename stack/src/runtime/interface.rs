//! What the kernel knows of the interface.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use smoltcp::wire::EthernetAddress;

/// An interface of this network namespace.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) link: EthernetAddress,
    pub(super) mtu: usize,
    pub(super) is_up: bool,
    /// Addresses that the kernel has on any interface here.
    pub(super) kernel_addresses: Vec<(String, IpAddr)>,
    /// Receive queues, if sysfs shows this namespace.
    pub(super) queues: Option<u32>,
    /// Receive queues that it can be given, if its driver tells.
    pub(super) queues_max: Option<u32>,
    /// Whether it is up and has a link.
    pub(super) has_link: bool,
    /// The name of its driver, if that tells.
    pub(super) driver: Option<String>,
}

impl Interface {
    /// As [`queues`](Self::queues), now.
    pub(super) fn queues_now(&self) -> Option<u32> {
        receive_queues(&self.name, self.index)
    }

    /// As [`has_link`](Self::has_link), now.
    pub(super) fn has_link_now(&self) -> bool {
        interruptlet_xdp::interface_has_link(&self.name).unwrap_or(false)
    }

    /// The receive queues that it spreads flows over now, if its driver tells.
    pub(super) fn spread_now(&self) -> Option<Vec<u32>> {
        interruptlet_xdp::interface_spread(&self.name).ok()
    }

    /// Whether its driver has zero-copy, if the kernel tells.
    pub(super) fn has_zero_copy(&self) -> Option<bool> {
        interruptlet_xdp::interface_has_zero_copy(&self.name)
    }
}

/// Looks an interface up; `None` if there is none of this name, or none with a link address.
pub(super) fn find(name: &str) -> io::Result<Option<Interface>> {
    let mut found = None;
    let mut kernel_addresses = Vec::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            kernel_addresses.push((entry.interface_name.clone(), IpAddr::V4(v4.ip())));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            kernel_addresses.push((entry.interface_name.clone(), IpAddr::V6(v6.ip())));
        } else if let Some(link) = address.as_link_addr()
            && entry.interface_name == name
            && let Some(bytes) = link.addr()
        {
            let is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
            found = Some((link.ifindex() as u32, EthernetAddress(bytes), is_up));
        }
    }
    let Some((index, link, is_up)) = found else {
        return Ok(None);
    };
    Ok(Some(Interface {
        name: name.to_owned(),
        index,
        link,
        mtu: interruptlet_xdp::interface_mtu(name)? as usize,
        is_up,
        kernel_addresses,
        queues: receive_queues(name, index),
        queues_max: interruptlet_xdp::interface_queues_max(name).ok(),
        has_link: interruptlet_xdp::interface_has_link(name).unwrap_or(false),
        driver: interruptlet_xdp::interface_driver(name).ok(),
    }))
}

/// Counts the receive queues in sysfs, if what sysfs shows is this very interface: it may show another
/// namespace's of the same name.
fn receive_queues(name: &str, index: u32) -> Option<u32> {
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
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
        .count();
    Some(queues as u32)
}

/// Makes the interface's filter let the solicited-node groups of our IPv6 addresses through, for as long
/// as the result lives (packet(7), RFC 4291 section 2.7.1). The kernel would do so for addresses of its
/// own.
pub(super) fn join_solicited_node_groups(
    index: u32,
    addresses: impl Iterator<Item = Ipv6Addr>,
) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        // Protocol 0: this socket receives nothing.
        None,
    )?;
    for address in addresses {
        let host = address.octets();
        let mut membership = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: [0; 8],
        };
        membership.mr_address[..6]
            .copy_from_slice(&[0x33, 0x33, 0xff, host[13], host[14], host[15]]);
        // SAFETY: the descriptor is open, and the option value is a `packet_mreq` of the size given that
        // outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const membership).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}
