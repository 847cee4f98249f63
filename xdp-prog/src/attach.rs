//! The program on an interface: natively if the driver can, else in the kernel's generic mode.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::libbpf_sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{Xdp, XdpFlags};

use crate::capability;
use crate::error::AttachError;
use crate::sys;

/// The largest MTU with which a frame fits into a page of 4096 bytes beside what XDP keeps there: 256
/// bytes of headroom and 320 of `struct skb_shared_info`, an Ethernet header and two VLAN tags.
const NATIVE_MTU_MAX: u32 = 4096 - 256 - 320 - 14 - 8;

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, before the kernel makes a socket buffer of the frame.
    Native,
    /// Behind the driver, on socket buffers: works with any driver, slower, and always copies.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttachMode::Native => "native",
            AttachMode::Generic => "generic",
        })
    }
}

/// An attached program; it is detached when this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) link: OwnedFd,
    pub(crate) mode: AttachMode,
    /// Why the mode is not native.
    pub(crate) native_refusal: Option<io::Error>,
}

/// The interface that a program is to be attached to.
pub(crate) struct Target<'a> {
    name: &'a str,
    index: i32,
}

impl<'a> Target<'a> {
    /// Find the interface of this name in the network namespace of this thread.
    pub(crate) fn find(name: &'a str) -> Result<Target<'a>, AttachError> {
        sys::interface_index(name)
            .ok()
            .and_then(|index| i32::try_from(index).ok())
            .map(|index| Target { name, index })
            .ok_or_else(|| AttachError::NoSuchInterface {
                interface: name.to_owned(),
            })
    }

    /// Attach natively. Fall back to generic mode if it is the driver that cannot, not if there is
    /// something to put right.
    pub(crate) fn attach(&self, program: BorrowedFd<'_>) -> Result<Attached, AttachError> {
        let native_refusal = match sys::create_xdp_link(program, self.index, XDP_FLAGS_DRV_MODE) {
            Ok(link) => {
                return Ok(Attached {
                    link,
                    mode: AttachMode::Native,
                    native_refusal: None,
                });
            }
            Err(error) => error,
        };
        if let Some(error) = self.curable(program, &native_refusal) {
            return Err(error);
        }
        match sys::create_xdp_link(program, self.index, XDP_FLAGS_SKB_MODE) {
            Ok(link) => Ok(Attached {
                link,
                mode: AttachMode::Generic,
                native_refusal: Some(native_refusal),
            }),
            Err(source) => {
                Err(self
                    .curable(program, &source)
                    .unwrap_or_else(|| AttachError::Attach {
                        interface: self.name.to_owned(),
                        source,
                    }))
            }
        }
    }

    /// The error for a refusal that another mode would not change, or should not hide.
    fn curable(&self, program: BorrowedFd<'_>, refusal: &io::Error) -> Option<AttachError> {
        match refusal.raw_os_error()? {
            libc::EPERM | libc::EACCES => Some(not_permitted(refusal)),
            // The first is what a link meets in its own mode, the second what it meets in the other.
            libc::EBUSY | libc::EEXIST => self.other_program(program),
            // veth says so; other drivers say only that they do not like it.
            libc::ERANGE => Some(self.mtu_too_large()),
            libc::EOPNOTSUPP => None,
            _ => sys::interface_mtu(self.name)
                .is_ok_and(|mtu| mtu > NATIVE_MTU_MAX)
                .then(|| self.mtu_too_large()),
        }
    }

    fn mtu_too_large(&self) -> AttachError {
        AttachError::MtuTooLarge {
            interface: self.name.to_owned(),
            mtu: sys::interface_mtu(self.name).unwrap_or_default(),
            max: NATIVE_MTU_MAX,
        }
    }

    /// The program that is attached to the interface, if there is one and the kernel tells.
    fn other_program(&self, program: BorrowedFd<'_>) -> Option<AttachError> {
        let there = Xdp::new(program).query(self.index, XdpFlags::NONE).ok()?;
        let id = [
            there.prog_id,
            there.drv_prog_id,
            there.skb_prog_id,
            there.hw_prog_id,
        ]
        .into_iter()
        .find(|&id| id != 0)?;
        Some(AttachError::OtherProgram {
            interface: self.name.to_owned(),
            id,
            name: program_name(id),
        })
    }
}

fn not_permitted(refusal: &io::Error) -> AttachError {
    let missing = capability::missing();
    if !missing.is_empty() {
        return AttachError::MissingCapability { missing };
    }
    AttachError::NotPermitted {
        action: "attach",
        source: io::Error::from(refusal.kind()),
    }
}

/// The name of a loaded program: the first 15 bytes of that of its function.
fn program_name(id: u32) -> Option<String> {
    let info = ProgInfoIter::default().find(|program| program.id == id)?;
    let name = info.name.to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

impl Attached {
    /// Detach now, and say if that failed.
    pub(crate) fn detach(self) -> io::Result<()> {
        sys::detach_link(self.link.as_fd())
    }

    /// Whether the interface still is there; the kernel detaches from one that goes.
    pub(crate) fn has_interface(&self) -> bool {
        sys::xdp_link_interface(self.link.as_fd()).is_ok_and(|index| index != 0)
    }
}
