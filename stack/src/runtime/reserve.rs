//! What the kernel is asked to keep for us while the stack runs: link-layer groups for addresses of our
//! own, ports of shared ones.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::StartError;
use super::interface::{self, Interface};
use super::packet_socket::PacketSocket;
use crate::config::Config;
use crate::port::xsk::BindError;
use crate::wire::Address;

/// Held for as long as the stack runs.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    /// Keeps the memberships.
    _groups: Option<PacketSocket>,
    /// Keeps the ports.
    _ports: Vec<OwnedFd>,
}

/// Own addresses: has the interface let their groups through. Shared ones: takes the TCP and UDP ports
/// from the kernel, so that it gives them to nobody else.
pub(super) fn reserve(
    config: &Config,
    interface: &Interface,
    tcp_ports: &[u16],
    udp_ports: &[u16],
) -> Result<Reservations, StartError> {
    let mut reservations = Reservations::default();
    if !config.shared_address {
        reservations._groups = Some(join_groups(config, interface)?);
        return Ok(reservations);
    }
    for cidr in &config.addresses {
        for (protocol, kind, ports) in [
            ("TCP", SocketType::STREAM, tcp_ports),
            ("UDP", SocketType::DGRAM, udp_ports),
        ] {
            for port in ports {
                let socket =
                    take_port(kind, SocketAddr::new(cidr.address, *port)).map_err(|source| {
                        if source.kind() == io::ErrorKind::PermissionDenied {
                            return StartError::MissingBindService { port: *port };
                        }
                        StartError::PortInUse {
                            protocol,
                            port: *port,
                            address: cidr.address,
                            source,
                        }
                    })?;
                reservations._ports.push(socket);
            }
        }
    }
    Ok(reservations)
}

fn join_groups(config: &Config, interface: &Interface) -> Result<PacketSocket, StartError> {
    let addresses: Vec<Address> = config
        .addresses
        .iter()
        .map(|cidr| cidr.address.into())
        .collect();
    let joined = PacketSocket::new().and_then(|socket| {
        interface::join_solicited_node_groups(&socket, interface.index, &addresses)?;
        Ok(socket)
    });
    joined.map_err(|source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            BindError::MissingNetRaw.into()
        } else {
            StartError::System {
                action: "join the link-layer groups of the IPv6 addresses",
                source,
            }
        }
    })
}

/// Takes a port that nobody is to use through the kernel. What reaches the kernel all the same, on a queue
/// without worker or before the XDP program is attached, is refused: a TCP socket that does not listen has
/// SYNs answered with RST, where a listening one would accept connections that nobody serves. Without
/// SO_REUSEADDR nobody else can listen there either.
fn take_port(kind: SocketType, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // Datagrams that reach it are never read: the kernel makes this the least it allows, and drops what
    // does not fit.
    sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    bind(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn address_of(socket: &OwnedFd) -> SocketAddr {
        rustix::net::getsockname(socket)
            .unwrap()
            .try_into()
            .unwrap()
    }

    #[test]
    fn a_reserved_tcp_port_refuses_clients_and_servers() {
        let socket = take_port(SocketType::STREAM, ANY_PORT).unwrap();
        let address = address_of(&socket);
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // The standard library's listeners set SO_REUSEADDR.
        let taken = TcpListener::bind(address).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        drop(socket);
        TcpListener::bind(address).unwrap();
    }

    #[test]
    fn a_reserved_udp_port_is_nobody_elses_and_keeps_little() {
        let socket = take_port(SocketType::DGRAM, ANY_PORT).unwrap();
        let address = address_of(&socket);
        let taken = UdpSocket::bind(address).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        assert!(sockopt::socket_recv_buffer_size(&socket).unwrap() <= 4096);
    }

    #[test]
    fn a_port_that_a_kernel_socket_has_is_not_taken() {
        let listener = TcpListener::bind(ANY_PORT).unwrap();
        let error = take_port(SocketType::STREAM, listener.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}
