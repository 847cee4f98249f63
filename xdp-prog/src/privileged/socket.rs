//! AF_XDP sockets that are bound, and so may be registered, but take no frames: their rings are empty.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use crate::sys;

const RING_ENTRIES: u32 = 64;
const PAGES: usize = 16;

/// The kernel wants whole pages.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; 4096]);

/// A bound socket and its memory.
pub(super) struct XdpSocket {
    socket: OwnedFd,
    _umem: Vec<Page>,
}

impl XdpSocket {
    /// Bind to queue 0 of an interface of this namespace, in copy mode.
    pub(super) fn bind(interface: &str) -> XdpSocket {
        let umem = vec![Page([0; 4096]); PAGES];
        let xsk = socket(AddressFamily::XDP, SocketType::RAW, None).unwrap();
        let region = XdpUmemReg {
            addr: umem.as_ptr().addr() as u64,
            len: size_of_val(&umem[..]) as u64,
            chunk_size: size_of_val(&umem[0].0) as u32,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&xsk, region).unwrap();
        sockopt::set_xdp_umem_fill_ring_size(&xsk, RING_ENTRIES).unwrap();
        sockopt::set_xdp_umem_completion_ring_size(&xsk, RING_ENTRIES).unwrap();
        sockopt::set_xdp_rx_ring_size(&xsk, RING_ENTRIES).unwrap();
        let index = sys::interface_index(interface).unwrap();
        let address = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_COPY, index, 0);
        bind(&xsk, &address).unwrap();
        XdpSocket {
            socket: xsk,
            _umem: umem,
        }
    }
}

impl AsFd for XdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
