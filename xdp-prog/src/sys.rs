//! The system calls without a safe wrapper: bpf links with a chosen XDP mode, an interface's MTU and type.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// Attach an XDP program through a link: it is detached when the last descriptor of the link closes.
/// `mode` is `XDP_FLAGS_DRV_MODE` or `XDP_FLAGS_SKB_MODE`; libbpf-rs offers only "whichever works".
pub(crate) fn create_xdp_link(
    program: BorrowedFd<'_>,
    interface_index: i32,
    mode: u32,
) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: mem::size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: mode,
        ..Default::default()
    };
    // SAFETY: `options` is initialised, says its own size and outlives the call, which keeps no pointer
    // to it; `program` is an open descriptor for as long as it is borrowed.
    let link = check(unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            interface_index,
            libbpf_sys::BPF_XDP,
            &options,
        )
    })?;
    // SAFETY: the call succeeded, so `link` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Detach the program of a link now, whoever else has a descriptor of the link.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor, which is open for as long as it is borrowed, and no pointer.
    check(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) })?;
    Ok(())
}

/// The index of the interface that an XDP link is attached to; 0 once that interface is gone.
pub(crate) fn xdp_link_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut size = mem::size_of_val(&info) as u32;
    // SAFETY: `info` and `size` are initialised and outlive the call, which writes no more than `size`
    // bytes to `info`.
    check(unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut size) })?;
    // SAFETY: every bit pattern is a u32, and the whole of `info` was zeroed; the kernel fills this
    // member for XDP links, the only ones that this module makes.
    Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex })
}

/// The index of an interface of this network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    Ok(netdevice::name_to_index(any_socket()?, name)?)
}

/// The MTU of an interface of this network namespace, in bytes (netdevice(7)).
///
/// # Errors
/// As the kernel says: ENODEV if there is no such interface.
pub fn interface_mtu(name: &str) -> io::Result<u32> {
    let answer = ask_about(name, libc::SIOCGIFMTU)?;
    // SAFETY: the call succeeded, so the MTU is the member that it wrote.
    let mtu = unsafe { answer.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The hardware type of an interface of this network namespace (netdevice(7)): an `ARPHRD_*` number of
/// <linux/if_arp.h>.
///
/// # Errors
/// As the kernel says: ENODEV if there is no such interface.
pub fn interface_hardware_type(name: &str) -> io::Result<u16> {
    let answer = ask_about(name, libc::SIOCGIFHWADDR)?;
    // SAFETY: the call succeeded, so the hardware address is the member that it wrote.
    Ok(unsafe { answer.ifr_ifru.ifru_hwaddr.sa_family })
}

/// What the kernel answers to `request`, one that reads an interface's name and writes one fixed-size value.
fn ask_about(name: &str, request: libc::Ioctl) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is an `ifreq`: bytes, integers and null pointers.
    let mut value: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: the name is a C string.
    let room = value.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in value.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the callers' requests read the name and write a value, both inside `value`, which outlives the
    // call.
    let result = unsafe { libc::ioctl(any_socket()?.as_raw_fd(), request, &mut value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// A socket to ask about interfaces with (netdevice(7)): any kind does.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::UNIX, SocketType::DGRAM, None)?)
}

/// libbpf returns a negative error number.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(result)
}
