//! A packet socket (packet(7)): whole frames of an interface, beside the XDP program. It receives copies of
//! what the kernel gets, which is what the program left to it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// Lets through what came in for this host (not what goes out or is for another host) with no VLAN tag or a mere
/// priority tag, and is ARP, ICMP or ICMPv6: a classic BPF program, its jumps counted from the next instruction.
const FILTER: [libc::sock_filter; 16] = [
    // PACKET_HOST, PACKET_BROADCAST and PACKET_MULTICAST are 0 to 2.
    load_ancillary(libc::SKF_AD_PKTTYPE),
    jump(libc::BPF_JGT, 2, 13, 0),
    // The kernel has taken the tag out of the frame.
    load_ancillary(libc::SKF_AD_VLAN_TAG_PRESENT),
    jump(libc::BPF_JEQ, 0, 2, 0),
    load_ancillary(libc::SKF_AD_VLAN_TAG),
    jump(libc::BPF_JSET, 0x0fff, 9, 0),
    load(libc::BPF_H, 12),
    jump(libc::BPF_JEQ, 0x0806, 6, 0),
    jump(libc::BPF_JEQ, 0x0800, 0, 2),
    load(libc::BPF_B, 14 + 9),
    jump(libc::BPF_JEQ, 1, 3, 4),
    jump(libc::BPF_JEQ, 0x86dd, 0, 3),
    load(libc::BPF_B, 14 + 6),
    jump(libc::BPF_JEQ, 58, 0, 1),
    give(u32::MAX),
    give(0),
];

const fn load(size: u32, offset: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_LD | size | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

const fn load_ancillary(what: libc::c_int) -> libc::sock_filter {
    load(libc::BPF_W, (libc::SKF_AD_OFF + what) as u32)
}

const fn jump(condition: u32, value: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | condition | libc::BPF_K) as u16,
        jt: if_true,
        jf: if_false,
        k: value,
    }
}

/// Ends the program: so many bytes of the frame go to the socket.
const fn give(bytes: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: bytes,
    }
}

/// A packet socket. Calls on it never block.
#[derive(Debug)]
pub(super) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// A socket that neither receives nor sends. Needs CAP_NET_RAW.
    pub(super) fn new() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            // Protocol 0: nothing is received before the filter is there.
            None,
        )?;
        Ok(Self(socket))
    }

    /// Has the interface let frames to the link-layer group `group` through for as long as the socket lives.
    pub(super) fn join(&self, interface_index: u32, group: [u8; 6]) -> io::Result<()> {
        let mut membership = libc::packet_mreq {
            mr_ifindex: interface_index as i32,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: [0; 8],
        };
        membership.mr_address[..6].copy_from_slice(&group);
        self.set_option(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    /// From now on ARP, ICMP and ICMPv6 that reach the kernel on this interface are received, and
    /// [`send`](Self::send) sends there.
    pub(super) fn listen(&self, interface_index: u32) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: FILTER.len() as u16,
            filter: FILTER.as_ptr().cast_mut(),
        };
        // The kernel copies the instructions.
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        // The filter lets none of it through, but the kernel would make a copy of every frame that it sends (Linux 4.20).
        self.set_option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        // SAFETY: all zeros is a `sockaddr_ll`: plain integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = interface_index as i32;
        // SAFETY: the descriptor is open, and the address is a `sockaddr_ll` of the size given that outlives
        // the call.
        let result = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sends a whole frame.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.0, frame)?;
        Ok(())
    }

    /// Receives the start of a frame into `buffer`; returns how much, `None` if there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.0, buffer, RecvFlags::empty()) {
            Ok((received, _)) => Ok(Some(received)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: the descriptor is open; the pointer and the size are those of `value`, which outlives the
        // call, as does what it points to; the kernel only reads them.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::unless_unprivileged;
    use super::*;

    #[test]
    fn frames_that_are_sent_are_not_copied_for_it() {
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let socket = PacketSocket::new().and_then(|socket| socket.listen(lo).map(|()| socket));
        let Some(socket) = unless_unprivileged(socket) else {
            return;
        };
        let mut ignores = 0i32;
        let mut len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel writes at most `len` bytes to `ignores`, and to `len`; both outlive
        // the call.
        let result = unsafe {
            libc::getsockopt(
                socket.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw mut ignores).cast(),
                &raw mut len,
            )
        };
        assert_eq!((result, ignores), (0, 1));
    }
}

/// For tests that need a packet socket.
#[cfg(test)]
pub(super) mod tests_support {
    use std::io;

    use super::PacketSocket;

    /// The socket, or `None` without CAP_NET_RAW where `ILET_UNPRIVILEGED=1` asks to skip such tests.
    pub(in crate::runtime) fn unless_unprivileged(
        socket: io::Result<PacketSocket>,
    ) -> Option<PacketSocket> {
        let may_skip = std::env::var_os("ILET_UNPRIVILEGED").is_some_and(|value| value == "1");
        match socket {
            Err(error) if may_skip && error.kind() == io::ErrorKind::PermissionDenied => None,
            socket => Some(socket.expect("a packet socket, which needs CAP_NET_RAW")),
        }
    }
}
