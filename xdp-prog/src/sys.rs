//! The system calls without a safe wrapper: bpf links with a chosen XDP mode, and questions about interfaces to the kernel
//! and to drivers.

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
/// Returns the kernel's error: ENODEV if there is no such interface.
pub fn interface_mtu(name: &str) -> io::Result<u32> {
    let request = ask(name, libc::SIOCGIFMTU)?;
    // SAFETY: the call succeeded, so the MTU is the member that it wrote.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Returns whether an interface of this network namespace is up and has a link. Both of these must say so: the flags
/// IFF_UP and IFF_RUNNING (netdevice(7)), which the kernel updates with up to a second's delay, and the driver's present
/// answer, if it gives one (ETHTOOL_GLINK).
///
/// # Errors
/// Returns the kernel's error: ENODEV if there is no such interface.
pub fn interface_has_link(name: &str) -> io::Result<bool> {
    const WANTED: libc::c_int = libc::IFF_UP | libc::IFF_RUNNING;
    let request = ask(name, libc::SIOCGIFFLAGS)?;
    // SAFETY: the call succeeded, so the flags are the member that it wrote.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if libc::c_int::from(flags) & WANTED != WANTED {
        return Ok(false);
    }
    // struct ethtool_value: command, value.
    const ETHTOOL_GLINK: u32 = 0xa;
    let mut link = [ETHTOOL_GLINK, 0];
    Ok(ethtool(name, &mut link).is_err() || link[1] != 0)
}

/// Returns the name of the driver of an interface of this network namespace (ETHTOOL_GDRVINFO).
///
/// # Errors
/// Returns the kernel's error: ENODEV if there is no such interface, EOPNOTSUPP if its driver does not tell.
pub fn interface_driver(name: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the command, 32 bytes of name, and 160 of no interest.
    const ETHTOOL_GDRVINFO: u32 = 0x3;
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    ethtool(name, &mut info)?;
    let bytes: Vec<u8> = info[1..9]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the largest number of receive queues that an interface of this network namespace can have
/// (ETHTOOL_GCHANNELS).
///
/// # Errors
/// Returns the kernel's error: ENODEV if there is no such interface, EOPNOTSUPP if its driver does not tell.
pub fn interface_queues_max(name: &str) -> io::Result<u32> {
    // struct ethtool_channels: the command, the largest numbers of receive, transmit, other and combined channels,
    // and the present ones.
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = [0; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    ethtool(name, &mut channels)?;
    Ok(channels[1].max(channels[4]))
}

/// Returns the receive queues that an interface of this network namespace spreads flows over: the entries of its
/// indirection table in their order, in which a queue may occur many times (ETHTOOL_GRXFHINDIR).
///
/// # Errors
/// Returns the kernel's error: ENODEV if there is no such interface, EOPNOTSUPP if its driver has no such table.
pub fn interface_spread(name: &str) -> io::Result<Vec<u32>> {
    // struct ethtool_rxfh_indir: the command, the number of entries, the entries. To a question with room for no entries
    // the kernel answers how many there are.
    const ETHTOOL_GRXFHINDIR: u32 = 0x38;
    let mut size = [ETHTOOL_GRXFHINDIR, 0];
    ethtool(name, &mut size)?;
    let mut table = vec![0; 2 + size[1] as usize];
    (table[0], table[1]) = (ETHTOOL_GRXFHINDIR, size[1]);
    ethtool(name, &mut table)?;
    Ok(table.split_off(2))
}

/// Returns whether the driver of an interface of this network namespace has zero-copy for AF_XDP sockets; `None` if the
/// kernel does not tell (before Linux 6.3).
pub fn interface_has_zero_copy(name: &str) -> Option<bool> {
    // enum netdev_xdp_act (linux/netdev.h).
    const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 1 << 3;
    let index = i32::try_from(interface_index(name).ok()?).ok()?;
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: mem::size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: `options` is initialised, says its own size and outlives the call, which writes no more than that.
    check(unsafe { libbpf_sys::bpf_xdp_query(index, 0, &mut options) }).ok()?;
    // Kernels before Linux 6.3 leave the flags at zero; since then a driver that has native XDP sets some.
    (options.feature_flags != 0).then_some(options.feature_flags & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0)
}

/// Sends an ethtool command (linux/ethtool.h) to the driver of an interface. `command` holds the structure of that command,
/// which begins with its number, and must be as long as the structure with the entries that it says it has. The answer
/// replaces it.
fn ethtool(name: &str, command: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut request = request_for(name)?;
    request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    // SAFETY: the kernel reads the name, and reads and writes the command's structure behind the pointer. Each caller passes
    // a `command` that is as long as that structure. Both outlive the call.
    let result = unsafe { libc::ioctl(any_socket()?.as_raw_fd(), SIOCETHTOOL, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns the hardware type of an interface of this network namespace (netdevice(7)): an `ARPHRD_*` number of
/// <linux/if_arp.h>.
///
/// # Errors
/// Returns the kernel's error: ENODEV if there is no such interface.
pub fn interface_hardware_type(name: &str) -> io::Result<u16> {
    let request = ask(name, libc::SIOCGIFHWADDR)?;
    // SAFETY: the call succeeded, so the hardware address is the member that it wrote.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// Returns the answer to `question`, an ioctl that reads an interface's name and writes one fixed-size value.
fn ask(name: &str, question: libc::Ioctl) -> io::Result<libc::ifreq> {
    let mut request = request_for(name)?;
    // SAFETY: the callers' questions read the name and write a value, inside `request`, which outlives the call.
    let result = unsafe { libc::ioctl(any_socket()?.as_raw_fd(), question, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request)
}

/// Returns an `ifreq` for a question about an interface, with its name filled in and the rest zero.
fn request_for(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is an `ifreq`: bytes, integers and null pointers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: the name is a C string.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
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
