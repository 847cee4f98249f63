//! The sockets of a server and their options.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt,
};

/// Connections that may wait to be accepted. The kernel takes its own limit (`net.core.somaxconn`) if that
/// is less.
const BACKLOG: i32 = 65_535;
/// Bytes that may wait on the UDP socket, of which small datagrams take several hundred each.
const DATAGRAM_BUFFER_BYTES: usize = 8 << 20;
/// The kernel's own default. Some systems have another, and BBR, which paces each connection by a timer,
/// halves the throughput of downloads on a fast and short path.
pub(super) const CONGESTION_CONTROL: &str = "cubic";
/// Seconds that a connection without a request may wait in the kernel, where it costs nobody a wakeup.
const DEFERRED_SECONDS: i32 = 1;

/// Where to listen, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// An address of the kernel's.
    pub address: IpAddr,
    /// 0 lets the kernel choose.
    pub port: u16,
    /// How long to poll before going to sleep.
    pub busy_poll: Option<Duration>,
}

/// A socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {protocol} port {port} of {address}: {source}; {advice}")]
pub struct ListenError {
    protocol: &'static str,
    address: IpAddr,
    port: u16,
    source: io::Error,
    advice: &'static str,
}

impl Endpoint {
    /// A TCP socket that listens; accepted sockets inherit its options. `client_speaks_first`: a connection
    /// is accepted with its first bytes, or after a second without them.
    ///
    /// # Errors
    /// When the address or the port is not to be had.
    pub fn listen(&self, client_speaks_first: bool) -> Result<OwnedFd, ListenError> {
        self.listening(client_speaks_first)
            .map_err(|error| self.error("TCP", error))
    }

    /// A UDP socket.
    ///
    /// # Errors
    /// When the address or the port is not to be had.
    pub fn datagrams(&self) -> Result<OwnedFd, ListenError> {
        self.bound_datagrams()
            .map_err(|error| self.error("UDP", error))
    }

    fn listening(&self, client_speaks_first: bool) -> io::Result<OwnedFd> {
        let socket = self.socket(SocketType::STREAM)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // Without it, or not for us without privileges, the system's choice has to do.
        let _ = sockopt::set_tcp_congestion(&socket, CONGESTION_CONTROL);
        if client_speaks_first {
            set_option(
                &socket,
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                DEFERRED_SECONDS,
            )?;
        }
        bind(&socket, &self.socket_address())?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    fn bound_datagrams(&self) -> io::Result<OwnedFd> {
        let socket = self.socket(SocketType::DGRAM)?;
        // Beyond `net.core.rmem_max` and `wmem_max` only with privileges; else as much as these allow.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, DATAGRAM_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, DATAGRAM_BUFFER_BYTES));
        sockopt::set_socket_send_buffer_size(&socket, DATAGRAM_BUFFER_BYTES)?;
        bind(&socket, &self.socket_address())?;
        Ok(socket)
    }

    fn socket(&self, kind: SocketType) -> io::Result<OwnedFd> {
        let family = match self.address {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, kind, flags, None)?;
        if let Some(time) = self.busy_poll {
            let micros = i32::try_from(time.as_micros()).unwrap_or(i32::MAX);
            if let Err(error) = set_option(&socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, micros) {
                log::warn!("the kernel does not poll the card's queue: {error}; run it as root");
            }
        }
        Ok(socket)
    }

    fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    fn error(&self, protocol: &'static str, source: io::Error) -> ListenError {
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => "another program has it: `ss -lnp` tells which",
            io::ErrorKind::AddrNotAvailable => "no interface has this address: see `ip address`",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: run it as root",
            _ => "check the address, the port and the limit of open files",
        };
        ListenError {
            protocol,
            address: self.address,
            port: self.port,
            source,
            advice,
        }
    }
}

/// The port that `socket` is bound to; 0 if it is none of IP.
///
/// # Errors
/// When the kernel does not tell.
pub fn port_of(socket: impl AsFd) -> io::Result<u16> {
    let address = SocketAddr::try_from(getsockname(socket)?);
    Ok(address.map_or(0, |address| address.port()))
}

/// Sets an option whose value is an `int`.
#[allow(unsafe_code)]
fn set_option(socket: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<i32>()` bytes at the address of `value`, which lives until the
    // call returns, and keeps neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    fn endpoint(address: IpAddr) -> Endpoint {
        Endpoint {
            address,
            port: 0,
            busy_poll: None,
        }
    }

    #[test]
    fn accepted_sockets_have_the_options() {
        for client_speaks_first in [false, true] {
            let listener = endpoint(Ipv4Addr::LOCALHOST.into())
                .listen(client_speaks_first)
                .unwrap();
            let listener = TcpListener::from(listener);
            listener.set_nonblocking(false).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            io::Write::write_all(&mut client, b"x").unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(accepted.nodelay().unwrap());
            let chosen = sockopt::tcp_congestion(&listener).unwrap();
            assert_eq!(sockopt::tcp_congestion(&accepted).unwrap(), chosen);
        }
    }

    #[test]
    fn a_port_that_is_taken_is_told_in_a_line() {
        for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let datagrams = endpoint(address).datagrams().unwrap();
            let port = port_of(&datagrams).unwrap();
            assert_ne!(port, 0);
            let same = Endpoint {
                port,
                ..endpoint(address)
            };
            let taken = same.datagrams().unwrap_err().to_string();
            let start = format!("cannot listen on UDP port {port} of {address}: ");
            assert!(taken.starts_with(&start), "{taken}");
            assert!(!taken.contains('\n'), "{taken}");
        }
    }
}
