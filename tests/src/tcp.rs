//! Owns TCP sockets with options that std cannot set before it connects, or at all.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use crate::netns::Netns;
use crate::sys;
use crate::wait::SOON;

/// What a socket has before it connects. By default it is like any other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Bytes of receive buffer (`SO_RCVBUF`), of which the kernel reserves twice as many.
    pub receive_buffer: Option<u32>,
    /// The largest segment to announce and to send, in bytes (`TCP_MAXSEG`).
    pub largest_segment: Option<u32>,
    /// The port to connect from, also if it was used lately (`SO_REUSEADDR`).
    pub source_port: Option<u16>,
}

impl Options {
    /// Connects such a socket from inside `client`, with [`SOON`] as limit of the connect and of each
    /// later read and write.
    ///
    /// # Errors
    ///
    /// What the system calls say: `AddrNotAvailable` while the same connection still exists in the
    /// client's kernel.
    pub fn connect(&self, client: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = client.inside(|| self.connect_here(to))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn connect_here(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = sys::tcp_socket(to, SOON)?;
        for (level, name, value) in [
            (libc::SOL_SOCKET, libc::SO_RCVBUF, self.receive_buffer),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG, self.largest_segment),
        ] {
            if let Some(value) = value {
                sys::set_number(&socket, level, name, value)?;
            }
        }
        if let Some(port) = self.source_port {
            sys::set_number(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
            let any = match to {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            };
            sys::bind(&socket, any)?;
        }
        sys::connect(&socket, to)?;
        Ok(socket)
    }
}

/// Closes a connection with a reset.
pub fn reset(stream: TcpStream) {
    sys::reset_on_close(&stream).expect("set SO_LINGER");
}

/// Keeps what is written from now on until the stream is told that it ends, so that the end goes out in
/// the segment that the last byte is in.
pub fn hold_back(stream: &TcpStream) {
    sys::set_number(stream, libc::IPPROTO_TCP, libc::TCP_CORK, 1).expect("set TCP_CORK");
}

/// Has the kernel probe an idle connection every second, and give it up when two probes are not answered.
pub fn probe_when_idle(stream: &TcpStream) {
    for (level, name, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 2),
    ] {
        sys::set_number(stream, level, name, value).expect("set up keep-alive");
    }
}
