//! Owns the system calls that std has no safe wrapper for: entering a namespace, signals, packet sockets
//! and TCP sockets before they are connected. Each function is safe to call; nothing unsafe leaves this module.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Bytes that the kernel keeps for a packet socket, its own costs included.
const RECEIVE_BUFFER_BYTES: i32 = 32 << 20;
/// Frames taken or sent by one system call.
pub(crate) const BATCH: usize = 64;
/// Bytes of a frame at most.
const FRAME_BYTES_MAX: usize = 10_000;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Whether the process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread, and no other, into the network namespace that `namespace` was opened from.
pub(crate) fn enter_network_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `namespace` is borrowed; setns touches no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Sends `signal` to the child `pid`, which the caller has not reaped yet.
pub(crate) fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill touches no memory. The pid cannot have been reused: the caller still owns the child.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Opens a raw packet socket on the interface named `interface` of the calling thread's namespace.
/// Reads give whole frames that came in (not those sent out); writes send whole frames.
pub(crate) fn packet_socket(interface: &str, read_timeout: Duration) -> io::Result<File> {
    let name = std::ffi::CString::new(interface).map_err(io::Error::other)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let all_protocols = u16::try_from(libc::ETH_P_ALL)
        .map_err(io::Error::other)?
        .to_be();
    // Protocol 0 until it is bound: nothing of another interface gets in.
    // SAFETY: socket touches no memory of ours.
    let fd =
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };

    set_option(
        &socket,
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        &1_i32,
    )?;
    let timeout = timeval(read_timeout)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    // Room for bursts that come while the reader is away.
    set_option(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        &RECEIVE_BUFFER_BYTES,
    )?;

    // SAFETY: sockaddr_ll is plain integers, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = all_protocols;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(File::from(socket))
}

/// How many frames a packet socket has lost, since this was asked last, because nobody took them in time.
pub(crate) fn packets_missed(socket: &File) -> io::Result<u64> {
    // SAFETY: tpacket_stats is plain integers, for which all zeros is a value.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `stats`, which are its own; both outlive the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    })?;
    Ok(stats.tp_drops.into())
}

/// Has the kernel wake the calling thread at the time it asks for, and not up to 50 µs later.
pub(crate) fn wake_on_time() -> io::Result<()> {
    // SAFETY: this operation takes a number of nanoseconds and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) })?;
    Ok(())
}

/// Sleeps until one of the sockets can be read, or for `wait`; which of them can be. A signal ends the sleep.
pub(crate) fn wait_readable(sockets: [&File; 2], wait: Duration) -> io::Result<[bool; 2]> {
    let mut polled = sockets.map(|socket| libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let wait = libc::timespec {
        tv_sec: libc::time_t::try_from(wait.as_secs()).map_err(io::Error::other)?,
        tv_nsec: wait.subsec_nanos().into(),
    };
    // SAFETY: the kernel writes to the two elements of `polled` and reads `wait`; all outlive the call. Without a
    // mask of signals there is none to be read.
    let polling =
        check(unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const wait, std::ptr::null()) });
    match polling {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok([false; 2]),
        polling => polling?,
    };
    Ok(polled.map(|socket| socket.revents != 0))
}

/// Frames that one system call took from a packet socket, and memory for the next.
#[derive(Debug)]
pub(crate) struct Batch {
    room: Box<[u8]>,
    lengths: Vec<usize>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            room: vec![0; BATCH * FRAME_BYTES_MAX].into(),
            lengths: Vec::with_capacity(BATCH),
        }
    }

    /// Takes the frames that are there, at most as many as fit, without waiting.
    pub(crate) fn receive(&mut self, socket: &File) -> io::Result<()> {
        self.lengths.clear();
        let mut rooms = self.room.chunks_exact_mut(FRAME_BYTES_MAX);
        let mut slices: [libc::iovec; BATCH] = std::array::from_fn(|_| {
            let room = rooms.next().unwrap_or_default();
            libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            }
        });
        let mut messages = messages(&mut slices);
        // SAFETY: the kernel writes to `messages` and to the memory that their slices name, which is `self.room`,
        // exclusively ours until the call returns. Without a timeout there is none to be read.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        });
        let count = match received {
            Err(error) if is_transient(&error) => 0,
            received => received? as usize,
        };
        let taken = messages[..count].iter();
        self.lengths
            .extend(taken.map(|message| message.msg_len as usize));
        Ok(())
    }

    /// What was received.
    pub(crate) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let rooms = self.room.chunks_exact(FRAME_BYTES_MAX);
        rooms
            .zip(&self.lengths)
            .map(|(room, &length)| &room[..length])
    }
}

/// Sends the first of `frames`; how many of them were tried, and how many of those the kernel took. None were tried
/// only if there are none.
pub(crate) fn send_frames<'a>(
    socket: &File,
    mut frames: impl Iterator<Item = &'a [u8]>,
) -> (usize, usize) {
    let mut count = 0;
    let mut slices: [libc::iovec; BATCH] = std::array::from_fn(|_| {
        let frame = frames.next();
        count += usize::from(frame.is_some());
        let frame = frame.unwrap_or_default();
        libc::iovec {
            // The kernel only reads it.
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        }
    });
    if count == 0 {
        return (0, 0);
    }
    let mut messages = messages(&mut slices);
    // SAFETY: the kernel reads the first `count` of `messages` and the memory that their slices name, which
    // `frames` lends for longer than the call, and writes the lengths to `messages`.
    let sent = check(unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            0,
        )
    });
    match sent {
        // It stops at the first that it cannot send, and says so when that is the first of all.
        Ok(sent) => (sent as usize, sent as usize),
        Err(_) => (1, 0),
    }
}

/// A message for each slice.
fn messages(slices: &mut [libc::iovec; BATCH]) -> [libc::mmsghdr; BATCH] {
    // SAFETY: mmsghdr is plain integers and pointers, for which all zeros is a value.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (message, slice) in messages.iter_mut().zip(slices) {
        message.msg_hdr.msg_iov = slice;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages
}

fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

/// A TCP socket of the calling thread's namespace, for addresses of the version of `to`, whose
/// [`connect`] takes at most `limit`.
pub(crate) fn tcp_socket(to: SocketAddr, limit: Duration) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: socket touches no memory of ours.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let limit = timeval(limit)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &limit)?;
    Ok(socket)
}

/// Gives a socket its own address.
pub(crate) fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let (address, length) = raw_address(address)?;
    // SAFETY: `address` outlives the call and its first `length` bytes are an address.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(())
}

/// Connects a socket.
pub(crate) fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let (address, length) = raw_address(to)?;
    // SAFETY: `address` outlives the call and its first `length` bytes are an address.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(())
}

/// Sets an option whose value is a number.
pub(crate) fn set_number(socket: impl AsFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(value).map_err(io::Error::other)?;
    set_option(socket, level, name, &value)
}

/// Has the close of a connected socket reset the connection at once (`SO_LINGER` of zero).
pub(crate) fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// An address as system calls take it, and how many of the bytes are it.
fn raw_address(address: SocketAddr) -> io::Result<(libc::sockaddr_storage, libc::socklen_t)> {
    // SAFETY: sockaddr_storage is plain integers, for which all zeros is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: u16::try_from(libc::AF_INET).map_err(io::Error::other)?,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*address.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage has the room and the alignment for every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: u16::try_from(libc::AF_INET6).map_err(io::Error::other)?,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: sockaddr_storage has the room and the alignment for every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    Ok((storage, length as libc::socklen_t))
}

fn timeval(duration: Duration) -> io::Result<libc::timeval> {
    Ok(libc::timeval {
        tv_sec: libc::time_t::try_from(duration.as_secs()).map_err(io::Error::other)?,
        tv_usec: libc::suseconds_t::from(duration.subsec_micros()),
    })
}

fn set_option<T>(socket: impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which outlives the call; the kernel
    // only reads it.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}
